//! Reads one request head. Pure: bytes in, a [`Head`] or a [`ErrorResponse`] out.
//!
//! Strict on purpose. Two programs that read one request differently are how a second request is smuggled in
//! inside the first, so whatever RFC 9112 leaves to the reader's mood is refused here: a bare line feed, a
//! folded line, a space before a colon, two lengths, a length with a sign, a transfer coding beside a length.

use super::error_response::ErrorResponse;
use super::limits::{MAX_BODY, MAX_HEAD, MAX_HEADERS};

/// How long a request's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// So many bytes, at most [`MAX_BODY`].
    Known(usize),
    /// It comes in chunks and ends with the last.
    Chunked,
}

impl BodyLength {
    /// The bytes that are known to come.
    pub fn known(self) -> usize {
        match self {
            Self::Known(length) => length,
            Self::Chunked => 0,
        }
    }
}

/// What the server keeps of a request's head. Headers that nothing behind the server asks for are not in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The method as sent: a token, case and all.
    pub method: String,
    /// The target: it starts with `/`, or is `*` for `OPTIONS`. Visible ASCII only.
    pub target: String,
    /// The values of all `Authorization` headers, in order. Visible ASCII, spaces and tabs.
    pub authorization: Vec<String>,
    /// The values of all `X-Forwarded-For` headers, in order. Visible ASCII, spaces and tabs; another one is `?`.
    pub forwarded_for: Vec<String>,
    /// How long the body is, or how it says so itself.
    pub body: BodyLength,
    /// The client waits for `100 Continue` before it sends its body.
    pub expects_continue: bool,
    /// The client wants, or its version implies, that the connection ends after this request.
    pub close: bool,
}

/// Finds the end of a head in a buffer that grows, looking at each byte once.
#[derive(Debug, Default)]
pub struct Scan {
    at: usize,
}

impl Scan {
    /// The length of the head at the start of `buffer`, its empty line included; `None` when it has not
    /// arrived whole. `buffer` must be what the last call got, with more bytes at its end.
    ///
    /// # Errors
    /// Bytes that no head may hold, as soon as they arrive; a head over [`MAX_HEAD`].
    pub fn end(&mut self, buffer: &[u8]) -> Result<Option<usize>, ErrorResponse> {
        let head = &buffer[..buffer.len().min(MAX_HEAD)];
        while let Some(&byte) = head.get(self.at) {
            match byte {
                b'\r' => match head.get(self.at + 1) {
                    Some(b'\n') => {
                        self.at += 2;
                        // The one empty line that may come before a request line does not end the head.
                        if self.at > 4 && head[..self.at].ends_with(b"\r\n\r\n") {
                            return Ok(Some(self.at));
                        }
                        if self.at == 4 && head.starts_with(b"\r\n\r\n") {
                            return Err(ErrorResponse::malformed(
                                "Empty lines before the request line",
                            ));
                        }
                        continue;
                    }
                    Some(_) => {
                        return Err(ErrorResponse::malformed(
                            "A carriage return without a line feed",
                        ));
                    }
                    None => break, // Its line feed may be on the way.
                },
                b'\n' => {
                    return Err(ErrorResponse::malformed(
                        "A line feed without a carriage return",
                    ));
                }
                b'\t' | 0x20..=0x7e | 0x80..=0xff => {}
                _ => {
                    return Err(ErrorResponse::malformed(
                        "A control character in the request head",
                    ));
                }
            }
            self.at += 1;
        }
        if buffer.len() >= MAX_HEAD {
            // A carriage return before the last byte means that at least the request line was whole.
            let first_line = head.iter().skip(2).any(|&byte| byte == b'\r');
            return Err(if first_line {
                ErrorResponse::HEAD_TOO_LARGE
            } else {
                ErrorResponse::TARGET_TOO_LONG
            });
        }
        Ok(None)
    }
}

impl Head {
    /// Reads a whole head, as measured by [`Scan::end`].
    ///
    /// # Errors
    /// Whatever is not plainly one request with one meaning.
    pub fn parse(head: &[u8]) -> Result<Self, ErrorResponse> {
        let head = head.strip_prefix(b"\r\n").unwrap_or(head);
        let head = head
            .strip_suffix(b"\r\n\r\n")
            .ok_or(ErrorResponse::malformed("The request head has no end"))?;
        let mut lines = split_lines(head);
        let request_line = lines.next().unwrap_or_default();
        let (method, target, minor) = parse_request_line(request_line)?;

        let mut fields = Fields::default();
        for (count, line) in lines.enumerate() {
            if count == MAX_HEADERS {
                return Err(ErrorResponse::HEAD_TOO_LARGE);
            }
            fields.take(line)?;
        }
        fields.into_head(method, target, minor)
    }
}

fn split_lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    // Scan::end saw to it that the two bytes only come together.
    head.split(|&byte| byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

fn parse_request_line(line: &[u8]) -> Result<(String, String, u8), ErrorResponse> {
    const SHAPE: ErrorResponse =
        ErrorResponse::malformed("The request line is not 'METHOD target HTTP/1.1'");
    let mut words = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(SHAPE);
    };
    let minor = match version {
        b"HTTP/1.1" => 1,
        b"HTTP/1.0" => 0,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            return Err(ErrorResponse::VERSION);
        }
        _ => return Err(SHAPE),
    };
    // The longest registered method has 17 letters.
    if method.is_empty() || method.len() > 20 || !method.iter().copied().all(is_token) {
        return Err(ErrorResponse::malformed("The method is not a token"));
    }
    if method == b"CONNECT" {
        return Err(ErrorResponse::NO_PROXY);
    }
    if !target.iter().all(u8::is_ascii_graphic) || target.contains(&b'#') {
        return Err(ErrorResponse::malformed(
            "The request target holds bytes that must be percent-encoded",
        ));
    }
    let target = origin_form(ascii(target)?, method == b"OPTIONS")?;
    Ok((ascii(method)?.to_owned(), target, minor))
}

/// A target as a path and query. A whole `http://host/path` must be accepted too (RFC 9112, 3.2.2); we answer
/// for every host alike, so only its path counts.
fn origin_form(target: &str, options: bool) -> Result<String, ErrorResponse> {
    const FORM: ErrorResponse = ErrorResponse::malformed("The request target is not a path");
    if target.starts_with('/') || (options && target == "*") {
        return Ok(target.to_owned());
    }
    let (scheme, rest) = target.split_once("://").ok_or(FORM)?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(FORM);
    }
    let path_at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(path_at);
    if authority.is_empty() || !authority.bytes().all(is_host) {
        return Err(FORM);
    }
    Ok(if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    })
}

/// What the header lines have said so far.
#[derive(Default)]
struct Fields {
    authorization: Vec<String>,
    forwarded_for: Vec<String>,
    length: Option<usize>,
    host: bool,
    coding: Option<bool>, // whether it is exactly `chunked`
    expects_continue: bool,
    close: bool,
}

impl Fields {
    fn take(&mut self, line: &[u8]) -> Result<(), ErrorResponse> {
        if matches!(line.first(), Some(b' ' | b'\t')) {
            return Err(ErrorResponse::malformed("A folded header line"));
        }
        let colon = line
            .iter()
            .position(|&byte| byte == b':')
            .ok_or(ErrorResponse::malformed("A header without a colon"))?;
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
        if name.is_empty() || !name.iter().copied().all(is_token) {
            return Err(ErrorResponse::malformed(
                "A header name that is not a token",
            ));
        }
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        if is("content-length") {
            if self.length.replace(parse_length(value)?).is_some() {
                return Err(ErrorResponse::malformed("Several Content-Length headers"));
            }
        } else if is("transfer-encoding") {
            // A second line makes a list, and a list is not exactly `chunked`.
            let chunked = self.coding.is_none() && value.eq_ignore_ascii_case(b"chunked");
            self.coding = Some(chunked);
        } else if is("host") {
            if std::mem::replace(&mut self.host, true) {
                return Err(ErrorResponse::malformed("Several Host headers"));
            }
            if !value.iter().copied().all(is_host) {
                return Err(ErrorResponse::malformed("The Host header is not a host"));
            }
        } else if is("connection") {
            self.close |= value
                .split(|&byte| byte == b',')
                .any(|word| trim(word).eq_ignore_ascii_case(b"close"));
        } else if is("expect") {
            if !value.eq_ignore_ascii_case(b"100-continue") {
                return Err(ErrorResponse::EXPECTATION);
            }
            self.expects_continue = true;
        } else if is("authorization") {
            self.authorization.push(ascii(value)?.to_owned());
        } else if is("x-forwarded-for") {
            // Somebody's word at first: it is judged when it is known who passed it on.
            let value = ascii(value).unwrap_or("?");
            self.forwarded_for.push(value.to_owned());
        }
        Ok(())
    }

    fn into_head(self, method: String, target: String, minor: u8) -> Result<Head, ErrorResponse> {
        match (self.coding, self.length) {
            (None, _) => {}
            (Some(_), Some(_)) => {
                return Err(ErrorResponse::malformed(
                    "Both a Content-Length and a Transfer-Encoding",
                ));
            }
            (Some(_), None) if minor == 0 => {
                return Err(ErrorResponse::malformed("A Transfer-Encoding in HTTP/1.0"));
            }
            (Some(true), None) => {}
            (Some(false), None) => return Err(ErrorResponse::CODING),
        }
        if minor == 1 && !self.host {
            return Err(ErrorResponse::malformed("No Host header"));
        }
        let body = match (self.coding, self.length.unwrap_or(0)) {
            (Some(_), _) => BodyLength::Chunked,
            (None, length) if length > MAX_BODY => return Err(ErrorResponse::BODY_TOO_LARGE),
            (None, length) => BodyLength::Known(length),
        };
        let has_body = body != BodyLength::Known(0);
        Ok(Head {
            method,
            target,
            authorization: self.authorization,
            forwarded_for: self.forwarded_for,
            body,
            expects_continue: self.expects_continue && minor == 1 && has_body,
            close: self.close || minor == 0,
        })
    }
}

/// A length: digits and nothing else. One too large for a number of ours is still a length, and too large.
fn parse_length(value: &[u8]) -> Result<usize, ErrorResponse> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(ErrorResponse::malformed(
            "The Content-Length is not a number",
        ));
    }
    Ok(ascii(value)?.parse().unwrap_or(usize::MAX))
}

fn ascii(bytes: &[u8]) -> Result<&str, ErrorResponse> {
    let text = std::str::from_utf8(bytes)
        .ok()
        .filter(|text| text.is_ascii());
    text.ok_or(ErrorResponse::malformed(
        "Bytes that are not ASCII in the request head",
    ))
}

fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// A byte of a token (RFC 9110, 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A byte of `host [ ":" port ]` (RFC 3986, 3.2.2). An `@` is not one: user information has no business here.
fn is_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(&byte)
}

#[cfg(test)]
mod tests;
