//! Reads a body that comes in chunks (RFC 9112, 7.1). Pure: bytes in, a body or an [`ErrorResponse`] out.
//!
//! As strict as [`head`](super::head): sizes are hexadecimal digits and nothing else, lines end with both bytes, and what
//! follows the last chunk belongs to nobody. Extensions and trailers are read over, within bounds.

use super::error_response::ErrorResponse;
use super::limits::MAX_BODY;

/// Most bytes of a line that gives a chunk's size, its extensions included.
const MAX_LINE: usize = 256;

/// Most bytes of all trailers together.
const MAX_TRAILERS: usize = 4 * 1024;

/// Most bytes that come beside the body. Chunks of one byte have five beside each; who sends a large body so means no good.
const MAX_OVERHEAD: usize = MAX_BODY;

/// A body that grows, chunk by chunk.
#[derive(Debug, Default)]
pub struct Chunked {
    state: State,
    /// Of the line being read.
    line: Vec<u8>,
    body: Vec<u8>,
    overhead: usize,
    trailers: usize,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    /// So many bytes of the chunk are still to come.
    Data(usize),
    /// The line end after a chunk.
    DataEnd,
    Trailers,
    Done,
}

impl Chunked {
    /// Takes bytes in; answers how many of them were the body's. Fewer than all means that it is whole and something
    /// follows it.
    ///
    /// # Errors
    /// What is not plainly a chunked body; a body over [`MAX_BODY`].
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, ErrorResponse> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::Done {
            if let State::Data(missing) = &mut self.state {
                let count = (*missing).min(bytes.len() - at);
                self.body.extend_from_slice(&bytes[at..at + count]);
                *missing -= count;
                at += count;
                if *missing == 0 {
                    self.state = State::DataEnd;
                }
                continue;
            }
            let byte = bytes[at];
            at += 1;
            self.overhead += 1;
            if self.overhead > MAX_OVERHEAD {
                return Err(ErrorResponse::BODY_TOO_LARGE);
            }
            self.take_of_line(byte)?;
        }
        Ok(at)
    }

    fn take_of_line(&mut self, byte: u8) -> Result<(), ErrorResponse> {
        const CHUNKS: ErrorResponse =
            ErrorResponse::malformed("The chunks of the body are malformed");
        if byte != b'\n' {
            let is_fine = matches!(byte, b'\r' | b'\t' | 0x20..=0x7e | 0x80..=0xff);
            // A carriage return is the last but one of its line.
            if !is_fine || self.line.last() == Some(&b'\r') || self.line.len() >= MAX_LINE {
                return Err(CHUNKS);
            }
            self.line.push(byte);
            return Ok(());
        }
        if self.line.pop() != Some(b'\r') {
            return Err(CHUNKS);
        }
        let line = std::mem::take(&mut self.line);
        self.state = match self.state {
            State::Size => match size(&line).ok_or(CHUNKS)? {
                0 => State::Trailers,
                size if size > MAX_BODY - self.body.len() => {
                    return Err(ErrorResponse::BODY_TOO_LARGE);
                }
                size => State::Data(size),
            },
            State::DataEnd if line.is_empty() => State::Size,
            State::Trailers if line.is_empty() => State::Done,
            State::Trailers => {
                self.trailers += line.len();
                if self.trailers > MAX_TRAILERS || !line.contains(&b':') {
                    return Err(CHUNKS);
                }
                State::Trailers
            }
            State::DataEnd | State::Data(_) | State::Done => return Err(CHUNKS),
        };
        Ok(())
    }

    /// Whether the body is whole.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Bytes held.
    pub fn held(&self) -> usize {
        self.body.capacity() + self.line.capacity()
    }

    /// The body.
    pub fn into_body(self) -> Vec<u8> {
        self.body
    }
}

/// The size that a line gives; extensions after a semicolon say nothing to us.
fn size(line: &[u8]) -> Option<usize> {
    let digits = line.split(|byte| *byte == b';').next()?;
    if digits.is_empty() || digits.len() > 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let digits = std::str::from_utf8(digits).ok()?;
    // Too large for a number of ours is too large.
    Some(usize::from_str_radix(digits, 16).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a text in pieces of so many bytes: the body, and how many bytes were left over.
    fn read(text: &str, step: usize) -> Result<Option<(String, usize)>, u16> {
        let mut chunked = Chunked::default();
        let mut taken = 0;
        for piece in text.as_bytes().chunks(step) {
            let count = chunked.take(piece).map_err(|refused| refused.status)?;
            taken += count;
            if count < piece.len() {
                break;
            }
        }
        let body = |chunked: Chunked| String::from_utf8(chunked.into_body()).expect("text");
        Ok(chunked
            .is_done()
            .then(|| (body(chunked), text.len() - taken)))
    }

    #[test]
    fn a_body_is_the_same_however_it_is_cut() {
        for (text, expected) in [
            ("0\r\n\r\n", Some(("", 0))),
            ("2\r\n{}\r\n0\r\n\r\n", Some(("{}", 0))),
            (
                "1\r\n{\r\n0001;a=\"b\"\r\n}\r\n00\r\nX: y\r\n\r\nGET",
                Some(("{}", 3)),
            ),
            ("A\r\n0123456789\r\n0\r\n\r\n\r\n", Some(("0123456789", 2))),
            ("3\r\n\r\n\n\r\n0\r\n\r\n", Some(("\r\n\n", 0))),
            ("2\r\n{}\r\n0\r\n", None),
            ("2\r\n{", None),
        ] {
            for step in [1, 2, 3, 1000] {
                let found = read(text, step).expect("well formed");
                let found = found.as_ref().map(|(body, left)| (body.as_str(), *left));
                assert_eq!(found, expected, "{text:?} by {step}");
            }
        }
    }

    #[test]
    fn what_has_two_readings_is_refused() {
        for text in [
            "2\n{}\r\n0\r\n\r\n",
            "\r\n",
            "x\r\n",
            "-2\r\n",
            "+2\r\n",
            "0x2\r\n",
            "2 \r\n{}\r\n",
            " 2\r\n{}\r\n",
            "2\r\n{}0\r\n\r\n",
            "2\r\n{}x\r\n",
            "2\r\r\n",
            "2\0\r\n",
            "11111111111111111\r\n",
            "0\r\nnot a header\r\n\r\n",
            ";a\r\n",
        ] {
            assert_eq!(read(text, 1), Err(400), "{text:?}");
            assert_eq!(read(text, 1000), Err(400), "{text:?}");
        }
        assert_eq!(read(&format!("2;{}\r\n", "x".repeat(300)), 7), Err(400));
        let trailers = "X: y\r\n".repeat(2000);
        assert_eq!(read(&format!("0\r\n{trailers}\r\n"), 100), Err(400));
    }

    #[test]
    fn a_body_is_bounded_and_so_is_what_comes_beside_it() {
        assert_eq!(read("100001\r\n", 100), Err(413));
        assert_eq!(read("ffffffffffffffff\r\n", 100), Err(413));
        let whole = format!("100000\r\n{}\r\n0\r\n\r\n", "x".repeat(MAX_BODY));
        assert!(matches!(read(&whole, 65536), Ok(Some((body, 0))) if body.len() == MAX_BODY));
        let more = format!("100000\r\n{}\r\n1\r\nx\r\n0\r\n\r\n", "x".repeat(MAX_BODY));
        assert_eq!(read(&more, 65536), Err(413));
        assert_eq!(read(&"1\r\nx\r\n".repeat(300_000), 65536), Err(413));
    }
}
