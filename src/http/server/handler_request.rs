//! One request on its way through `tiny_http`: written to the private socket, and its answer read back whole.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::event::PollFlags;

use super::Backend;
use super::connection::{Request, is_transient};
use super::error_response::{ErrorResponse, reason};
use super::limits::MAX_ANSWER;
use super::request_class::RequestClass;
use crate::http::private;

/// The header by which the handlers know that a request went through the server, and by what kind of listener it
/// came: `<secret> tcp` or `<secret> unix`. What a client sends under this name never gets past the server.
pub const ORIGIN_HEADER: &str = "X-Roomkeeper-Origin";

/// Answers below this are read even when memory is short: most are, and a few of them are nothing.
const SMALL: usize = 64 * 1024;

/// A request that is with a handler.
#[derive(Debug)]
pub struct HandlerRequest {
    /// Counts handler_requests, so that the oldest is known.
    pub number: u64,
    /// Whose request it is. The client may be gone by now; the handler is busy all the same.
    pub connection: u64,
    /// How long it may keep its handler.
    pub class: RequestClass,
    stream: UnixStream,
    output: Vec<u8>,
    sent: usize,
    answer: Vec<u8>,
}

impl HandlerRequest {
    /// Sends a request to the private socket, as new bytes of our own.
    ///
    /// # Errors
    /// Nobody accepts there any more, or there is no descriptor left.
    pub fn begin(
        backend: &Backend,
        number: u64,
        (connection, class): (u64, RequestClass),
        request: &Request,
    ) -> io::Result<Self> {
        let stream = private::connect(&backend.socket)?;
        Ok(Self {
            number,
            connection,
            class,
            stream,
            output: serialise(request, &backend.secret),
            sent: 0,
            answer: Vec::new(),
        })
    }

    /// What to wait for on its socket. When memory is `short`, an answer that has become large has to wait.
    pub fn wants(&self, short: bool) -> PollFlags {
        let mut wants = PollFlags::empty();
        wants.set(PollFlags::IN, !short || self.answer.len() < SMALL);
        wants.set(PollFlags::OUT, self.sent < self.output.len());
        wants
    }

    /// Bytes held.
    pub fn held(&self) -> usize {
        self.output.capacity() + self.answer.capacity()
    }

    /// The socket is ready. True when nothing more will come: [`HandlerRequest::finish`] has the outcome.
    pub fn ready(&mut self, flags: PollFlags, scratch: &mut [u8]) -> bool {
        if flags.contains(PollFlags::OUT) {
            self.write();
        }
        if !flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
            return false;
        }
        match self.stream.read(scratch) {
            Ok(0) => true,
            Ok(count) => {
                if self.answer.capacity() - self.answer.len() < count {
                    // In smaller steps than a vector takes by itself, which would hold up to twice the answer.
                    self.answer.reserve_exact(count.max(self.answer.len() / 4));
                }
                self.answer.extend_from_slice(&scratch[..count]);
                self.answer.len() > MAX_ANSWER
            }
            Err(error) if is_transient(&error) => false,
            Err(_) => true, // A reset after the answer is an end like any other.
        }
    }

    fn write(&mut self) {
        match self.stream.write(&self.output[self.sent..]) {
            Ok(count) => self.sent += count,
            Err(error) if is_transient(&error) => return,
            // The handler answered without reading the body.
            Err(_) => self.sent = self.output.len(),
        }
        if self.sent == self.output.len() {
            self.output = Vec::new();
            self.sent = 0;
        }
    }

    /// The bytes to send to the client, made of the handler's answer; our own 500 when it is not whole.
    /// `bodiless` is for answers to `HEAD`.
    pub fn finish(self, close: bool, bodiless: bool) -> Vec<u8> {
        let size = self.answer.len();
        rewrite(self.answer, close, bodiless).unwrap_or_else(|| {
            log::error!(
                "http: a handler's answer of {size} bytes was not whole, or over {MAX_ANSWER} bytes"
            );
            own(ErrorResponse::INTERNAL, close, bodiless)
        })
    }
}

impl AsFd for HandlerRequest {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn serialise(request: &Request, secret: &str) -> Vec<u8> {
    let head = &request.head;
    let mut bytes = format!(
        "{} {} HTTP/1.1\r\nHost: server\r\n",
        head.method, head.target
    );
    for value in &head.authorization {
        bytes += &format!("Authorization: {value}\r\n");
    }
    let (origin, length) = (request.origin.as_str(), request.body.len());
    bytes += &format!(
        "{ORIGIN_HEADER}: {secret} {origin}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    let mut bytes = bytes.into_bytes();
    bytes.extend_from_slice(&request.body);
    bytes
}

/// Turns an answer of `tiny_http`, read to its end, into one for a client. `None` when it is not whole.
fn rewrite(mut answer: Vec<u8>, close: bool, bodiless: bool) -> Option<Vec<u8>> {
    if answer.len() > MAX_ANSWER {
        return None;
    }
    let head_end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&answer[..head_end - 4]).ok()?;
    let mut lines = head.split("\r\n");
    let status: u16 = lines
        .next()?
        .strip_prefix("HTTP/1.1 ")?
        .get(..3)?
        .parse()
        .ok()?;
    let mut length = None;
    let mut kept = String::new();
    for line in lines {
        let (name, value) = line.split_once(": ")?;
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = Some(value.parse::<usize>().ok()?),
            "transfer-encoding" => return None, // The handlers never ask for one.
            "connection" | "server" => {}
            _ => kept += &format!("{line}\r\n"),
        }
    }
    let length = length?;
    let has_body = !bodiless && status != 204 && status != 304;
    if answer.len() - head_end != if has_body { length } else { 0 } {
        return None;
    }
    if status >= 400 && length == 0 {
        // `tiny_http` answers for a handler that panicked, and has nothing to say.
        return Some(own(
            ErrorResponse {
                status,
                ..ErrorResponse::INTERNAL
            },
            close,
            bodiless,
        ));
    }
    let length = if status == 204 {
        String::new()
    } else {
        format!("Content-Length: {length}\r\n")
    };
    let head = format!(
        "HTTP/1.1 {status} {}\r\n{kept}{length}{}\r\n",
        reason(status),
        connection(close)
    );
    answer.splice(..head_end, head.into_bytes());
    Some(answer)
}

fn own(error_response: ErrorResponse, close: bool, bodiless: bool) -> Vec<u8> {
    let body = error_response.body();
    let head = format!(
        "HTTP/1.1 {} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{}\r\n",
        error_response.status,
        reason(error_response.status),
        body.len(),
        connection(close),
    );
    (head + if bodiless { "" } else { &body }).into_bytes()
}

fn connection(close: bool) -> &'static str {
    if close { "Connection: close\r\n" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::server::head::Head;
    use crate::http::server::listen::Origin;

    fn rewritten(answer: &str, close: bool, bodiless: bool) -> Option<String> {
        rewrite(answer.as_bytes().to_vec(), close, bodiless)
            .map(|bytes| String::from_utf8(bytes).expect("text"))
    }

    #[test]
    fn a_whole_answer_keeps_its_body_and_loses_the_inner_connection() {
        let answer = "HTTP/1.1 200 OK\r\nServer: tiny-http (Rust)\r\nConnection: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(
            rewritten(answer, false, false).as_deref(),
            Some(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
            )
        );
        let closing = rewritten(answer, true, false).expect("whole");
        assert!(closing.contains("\r\nConnection: close\r\n\r\n{}"));
    }

    #[test]
    fn an_answer_that_is_not_whole_is_never_sent_on() {
        for answer in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
            "nonsense\r\n\r\n",
        ] {
            assert_eq!(rewritten(answer, false, false), None, "{answer:?}");
        }
    }

    #[test]
    fn an_empty_error_gets_a_json_body() {
        let answer =
            rewritten("HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n", false, false).expect("whole");
        assert!(answer.starts_with("HTTP/1.1 500 Internal Server Error\r\n"));
        assert!(answer.ends_with(r#"{"errcode":"M_UNKNOWN","error":"Internal server error"}"#));
    }

    #[test]
    fn an_answer_to_head_keeps_the_length_of_the_body_it_does_not_have() {
        let answer =
            rewritten("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n", false, true).expect("whole");
        assert_eq!(answer, "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n");
    }

    #[test]
    fn the_handlers_see_a_head_written_by_the_gate_alone() {
        let head = Head {
            method: "POST".into(),
            target: "/a?b".into(),
            authorization: vec!["Bearer t".into()],
            body: 2,
            expects_continue: true,
            close: false,
        };
        let request = Request {
            head,
            body: b"{}".to_vec(),
            origin: Origin::Tcp,
        };
        assert_eq!(
            String::from_utf8(serialise(&request, "SECRET")).expect("text"),
            "POST /a?b HTTP/1.1\r\nHost: server\r\nAuthorization: Bearer t\r\nX-Roomkeeper-Origin: SECRET tcp\r\n\
             Content-Length: 2\r\nConnection: close\r\n\r\n{}"
        );
    }
}
