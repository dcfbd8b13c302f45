//! A small blocking HTTP client: one-shot commands talk to a running daemon with it, and a deletion beside a running
//! homeserver to that.
//!
//! One request, one connection, one whole answer in memory. It speaks to our own gate, to a homeserver's own listener and
//! to its authentication service, not to the world: no redirects, and encryption for the last alone.

#[cfg(feature = "tls")]
mod tls;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::ids::RoomId;

/// Time for a whole request and its answer. Requests that start jobs answer in milliseconds; a page of `/messages`
/// behind a purge may wait for a batch.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// How often one who waits looks up whether to go on waiting.
const LOOK_UP_EVERY: Duration = Duration::from_millis(200);

/// How long is waited for a connection before one looks up, and tries again: long enough that a lost packet has been
/// sent again.
const CONNECT_FOR: Duration = Duration::from_secs(4);

/// Most bytes of an answer; the gate sends no more (see `http::server::limits::MAX_ANSWER`).
const MAX_ANSWER: usize = 17 * 1024 * 1024;

/// A daemon that can be asked.
#[derive(Clone)]
pub struct Client {
    address: Address,
    token: Option<String>,
    timeout: Duration,
    /// Most bytes of an answer.
    most: usize,
}

#[derive(Clone)]
enum Address {
    Unix(PathBuf),
    Tcp(String),
    #[cfg(feature = "tls")]
    Tls(tls::Address),
}

/// What a request carries.
struct Content<'a> {
    /// Its `Content-Type`; JSON, as all of ours, needs none.
    kind: Option<&'a str>,
    bytes: String,
    /// Headers beside.
    headers: &'a [(&'a str, &'a str)],
}

/// What the daemon said.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// The JSON body; null when there is none.
    pub body: Value,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens there: no daemon runs, or not at this address.
    #[error("nobody answers at {address}: {source}")]
    Unreachable {
        /// The address that was tried.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke, or the time was over. The daemon may have done what it was asked.
    #[error("what listens at {address} did not answer: {source}")]
    NoReply {
        /// The address that was asked.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The answer is not one of ours.
    #[error("what answers at {address} is not what was expected there: {what}")]
    UnexpectedReply {
        /// The address that was asked.
        address: String,
        /// What was odd.
        what: &'static str,
    },
    /// Whoever asked does not wait any longer. What was asked may be done all the same.
    #[error("{address} was not waited for")]
    Abandoned {
        /// The address that was asked.
        address: String,
    },
    /// The path, the token or the address cannot be put into a request.
    #[error("{0} holds characters that cannot be sent")]
    Unsendable(&'static str),
}

impl Client {
    /// A client of the daemon behind a socket file. It needs no token.
    pub fn unix(path: impl AsRef<Path>) -> Self {
        Self::to(Address::Unix(path.as_ref().to_owned()), None)
    }

    /// A client of the daemon at `host:port`, with a token, which TCP always needs.
    pub fn tcp(address: impl Into<String>, token: impl Into<String>) -> Self {
        Self::to(Address::Tcp(address.into()), Some(token.into()))
    }

    fn to(address: Address, token: Option<String>) -> Self {
        Self {
            address,
            token,
            timeout: DEFAULT_TIMEOUT,
            most: MAX_ANSWER,
        }
    }

    /// A client of a service at `host` and `port`, with a token; encrypted, by the authorities that this machine trusts.
    ///
    /// # Errors
    /// The host has no name that a certificate could have, or there is no authority to trust.
    #[cfg(feature = "tls")]
    pub fn tls(host: &str, port: u16, token: impl Into<String>) -> Result<Self, ClientError> {
        let address = tls::Address::new(host, port)?;
        Ok(Self::to(Address::Tls(address), Some(token.into())))
    }

    /// Gives up on an answer of more bytes than this.
    #[must_use]
    pub fn with_most(mut self, bytes: usize) -> Self {
        self.most = bytes.min(MAX_ANSWER);
        self
    }

    /// With another time for a whole request and its answer.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// `GET path`. The path is sent as it is: parameters in it are percent-encoded by the caller.
    ///
    /// # Errors
    /// There is no whole JSON answer; an answer of 400 and above is a [`Reply`] like any other.
    pub fn get(&self, path: &str) -> Result<Reply, ClientError> {
        self.request("GET", path, None)
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn post(&self, path: &str, body: &Value) -> Result<Reply, ClientError> {
        self.request("POST", path, Some(body))
    }

    /// Any method.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Reply, ClientError> {
        self.request_unless(method, path, body, &|| false)
    }

    /// Any method; waits no longer once `is_over` says so, which it is asked several times a second.
    ///
    /// # Errors
    /// As [`Client::get`]; [`ClientError::Abandoned`].
    pub fn request_unless(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Reply, ClientError> {
        let content = Content {
            kind: None,
            bytes: body.map(Value::to_string).unwrap_or_default(),
            headers: &[],
        };
        self.exchange(method, path, &content, is_over, parse)
    }

    /// A client of whoever is at `host` and `port`, encrypted or not, with a token or without.
    ///
    /// # Errors
    /// As [`Client::tls`].
    #[cfg(feature = "tls")]
    pub fn web(
        is_encrypted: bool,
        host: &str,
        port: u16,
        token: Option<&str>,
    ) -> Result<Self, ClientError> {
        let address = match is_encrypted {
            true => Address::Tls(tls::Address::new(host, port)?),
            false => Address::Tcp(format!("{host}:{port}")),
        };
        Ok(Self::to(address, token.map(str::to_owned)))
    }

    /// `POST path` with a JSON body to one of whose answer only the status counts, whatever it says beside.
    ///
    /// # Errors
    /// As [`Client::request_unless`].
    pub fn post_for_status(
        &self,
        path: &str,
        body: &Value,
        is_over: &dyn Fn() -> bool,
    ) -> Result<u16, ClientError> {
        let content = Content {
            kind: Some("application/json"),
            bytes: body.to_string(),
            headers: &[("User-Agent", "roomkeeper")],
        };
        self.exchange("POST", path, &content, is_over, |answer| {
            split(answer).map(|(head, _)| head.status)
        })
    }

    /// `POST path` with a form, as browsers and OAuth have it, and headers beside.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn post_form(
        &self,
        path: &str,
        form: String,
        headers: &[(&str, &str)],
    ) -> Result<Reply, ClientError> {
        let content = Content {
            kind: Some("application/x-www-form-urlencoded"),
            bytes: form,
            headers,
        };
        self.exchange("POST", path, &content, &|| false, parse)
    }

    fn exchange<T>(
        &self,
        method: &str,
        path: &str,
        content: &Content<'_>,
        is_over: &dyn Fn() -> bool,
        parse: impl FnOnce(&[u8]) -> Result<T, &'static str>,
    ) -> Result<T, ClientError> {
        let bytes = self.serialise(method, path, content)?;
        let deadline = Deadline {
            deadline: Instant::now() + self.timeout,
            is_over,
        };
        let explain = |source: io::Error, is_reached: bool| {
            let address = self.address.to_string();
            match (is_over(), is_reached) {
                (true, _) => ClientError::Abandoned { address },
                (_, false) => ClientError::Unreachable { address, source },
                (_, true) => ClientError::NoReply { address, source },
            }
        };
        let mut stream = self.connect(&deadline).map_err(|e| explain(e, false))?;
        let answer =
            exchange(&mut *stream, &bytes, self.most, &deadline).map_err(|e| explain(e, true))?;
        parse(&answer).map_err(|what| {
            let address = self.address.to_string();
            ClientError::UnexpectedReply { address, what }
        })
    }

    fn serialise(
        &self,
        method: &str,
        path: &str,
        content: &Content<'_>,
    ) -> Result<Vec<u8>, ClientError> {
        let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if !path.starts_with('/') || !is_plain(path) || !is_plain(method) {
            return Err(ClientError::Unsendable("the path"));
        }
        let host = match &self.address {
            Address::Unix(_) => "localhost",
            Address::Tcp(address) => address,
            #[cfg(feature = "tls")]
            Address::Tls(address) => address.authority(),
        };
        if !is_plain(host) {
            return Err(ClientError::Unsendable("the address"));
        }
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
        let kind = content.kind.map(|kind| ("Content-Type", kind));
        for (name, value) in content.headers.iter().copied().chain(kind) {
            head += &format!("{name}: {value}\r\n");
        }
        if let Some(token) = &self.token {
            if token.is_empty() || !is_plain(token) {
                return Err(ClientError::Unsendable("the token"));
            }
            head += &format!("Authorization: Bearer {token}\r\n");
        }
        let body = &content.bytes;
        Ok(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes())
    }

    fn connect(&self, deadline: &Deadline<'_>) -> io::Result<Box<dyn Socket>> {
        match &self.address {
            Address::Unix(path) => Ok(Box::new(UnixStream::connect(path)?)),
            Address::Tcp(address) => Ok(Box::new(connect_to(address, deadline)?)),
            #[cfg(feature = "tls")]
            Address::Tls(address) => {
                let stream = connect_to(address.authority(), deadline)?;
                Ok(Box::new(address.encrypted(stream)?))
            }
        }
    }
}

fn connect_to(address: &str, deadline: &Deadline<'_>) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = address.to_socket_addrs()?.collect();
    loop {
        let mut failure = io::Error::from(ErrorKind::NotFound);
        let mut is_slow = false;
        for address in &addresses {
            let time = deadline.left()?.min(CONNECT_FOR);
            match TcpStream::connect_timeout(address, time) {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    is_slow |= error.kind() == ErrorKind::TimedOut;
                    failure = error;
                }
            }
        }
        if !is_slow {
            return Err(failure);
        }
    }
}

/// A room id as one piece of a path.
pub(crate) fn encoded(room: &RoomId) -> String {
    encoded_text(room.as_str())
}

/// Any text as one piece of a path.
pub(crate) fn encoded_text(whole: &str) -> String {
    let mut text = String::new();
    for byte in whole.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// A stream whose waiting can be bounded.
trait Socket: Read + Write {
    fn wait_at_most(&self, time: Duration) -> io::Result<()>;
}

impl Socket for TcpStream {
    fn wait_at_most(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

impl Socket for UnixStream {
    fn wait_at_most(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(out, "unix:{}", path.display()),
            Self::Tcp(address) => out.write_str(address),
            #[cfg(feature = "tls")]
            Self::Tls(address) => out.write_str(address.authority()),
        }
    }
}

/// How long is waited.
struct Deadline<'a> {
    deadline: Instant,
    is_over: &'a dyn Fn() -> bool,
}

impl Deadline<'_> {
    /// The time until the deadline.
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || (self.is_over)() {
            Err(ErrorKind::TimedOut.into())
        } else {
            Ok(left)
        }
    }

    /// Does something with a stream that may have to be waited for: again and again, until it has been done.
    fn wait(
        &self,
        stream: &mut dyn Socket,
        mut what: impl FnMut(&mut dyn Socket) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            stream.wait_at_most(self.left()?.min(LOOK_UP_EVERY))?;
            match what(stream) {
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut
                    ) => {}
                done => return done,
            }
        }
    }
}

/// Sends the request and reads the answer to its end, all before the deadline.
fn exchange(
    stream: &mut dyn Socket,
    request: &[u8],
    most: usize,
    deadline: &Deadline<'_>,
) -> io::Result<Vec<u8>> {
    let mut sent = 0;
    while sent < request.len() {
        match deadline.wait(stream, |stream| stream.write(&request[sent..])) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => sent += count,
            // Refused before it was read to its end: the answer says why.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                ) =>
            {
                break;
            }
            Err(error) => return Err(error),
        }
    }
    let mut answer = Vec::new();
    let mut chunk = [0; 16 * 1024];
    while answer.len() <= most {
        match deadline.wait(stream, |stream| stream.read(&mut chunk)) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::TimedOut => return Err(error),
            Err(error) if answer.is_empty() => return Err(error),
            Err(_) => break, // Whether it is whole, its length will tell.
        }
        // Not every server closes a connection that it was asked to close.
        if has_localpart(&answer) {
            break;
        }
    }
    if answer.len() > most {
        Err(io::Error::other("the answer is longer than any should be"))
    } else if answer.is_empty() {
        Err(ErrorKind::UnexpectedEof.into())
    } else {
        Ok(answer)
    }
}

/// Whether nothing can be missing of an answer, by what it says of itself.
fn has_localpart(answer: &[u8]) -> bool {
    let Ok((head, body)) = split(answer) else {
        return false;
    };
    match head.framing {
        Framing::Length(length) => body.len() >= length,
        // What ends otherwise has not ended.
        Framing::Chunked => body.ends_with(b"\r\n\r\n") && join_chunks(body).is_some(),
        Framing::UntilClosed => false,
    }
}

/// Where the body ends.
#[derive(Clone, Copy)]
enum Framing {
    Length(usize),
    Chunked,
    UntilClosed,
}

struct Head {
    status: u16,
    framing: Framing,
}

/// The head of an answer, read, and what of its body is there.
fn split(answer: &[u8]) -> Result<(Head, &[u8]), &'static str> {
    let end = answer
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .ok_or("the answer has no head")?;
    let head = std::str::from_utf8(&answer[..end]).map_err(|_| "the answer's head is not text")?;
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status_line
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok());
    let status = status.ok_or("it does not speak HTTP/1.1")?;
    let mut framing = Framing::UntilClosed;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return Err("it uses a transfer coding");
            }
            framing = Framing::Chunked;
        } else if name.eq_ignore_ascii_case("content-length")
            && let (Ok(length), Framing::UntilClosed) = (value.parse(), framing)
        {
            framing = Framing::Length(length);
        }
    }
    Ok((Head { status, framing }, &answer[end + 4..]))
}

fn parse(answer: &[u8]) -> Result<Reply, &'static str> {
    let (Head { status, framing }, body) = split(answer)?;
    let joined;
    let body = match framing {
        Framing::Chunked => {
            joined = join_chunks(body).ok_or("the answer is not whole")?;
            &joined[..]
        }
        Framing::Length(length) if length == body.len() => body,
        Framing::UntilClosed if body.is_empty() => body,
        _ => return Err("the answer is not whole"),
    };
    if body.is_empty() {
        return Ok(Reply {
            status,
            body: Value::Null,
        });
    }
    let body = serde_json::from_slice(body).map_err(|_| "the answer is not JSON")?;
    Ok(Reply { status, body })
}

/// A body in chunks, as homeservers send it; nothing when it is not whole.
fn join_chunks(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = rest.windows(2).position(|bytes| bytes == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..end]).ok()?;
        let size = size.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some(whole);
        }
        whole.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests;
