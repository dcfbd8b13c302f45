//! One request on its way through `tiny_http`, and its answer on the way back.
//!
//! All requests go to `tiny_http` over one private connection that stays open, one after another; never more of them than
//! there are handlers. (With several connections one may be left without a thread: `tiny_http` counts on short ones.) The
//! answers do not come back over it, where they would be copied piece by piece: a handler leaves its answer with [`Answers`]
//! and wakes the server.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::event::PollFlags;

use super::connection::{Request, is_transient};
use super::error_response::{CROSS_ORIGIN, ErrorResponse, reason};
use super::limits::MAX_ANSWER;
use super::request_class::RequestClass;
use crate::http::handlers::Response;
use crate::http::private;
use crate::store::read_limit::ReadLimit;

/// Most bytes that are kept for requests to come.
const SCRATCH: usize = 64 * 1024;

/// The header by which the handlers know that a request went through the server, by what kind of listener it came, and
/// where its answer goes: `<secret> tcp <number> <peer>` or `<secret> unix <number>`. What a client sends under this name never gets
/// past the server.
pub const ORIGIN_HEADER: &str = "X-Roomkeeper-Origin";

/// The header by which proxies say whom they speak for.
pub const FORWARDED_HEADER: &str = "X-Forwarded-For";

/// Where handlers leave their answers, by the numbers of the requests.
#[derive(Debug)]
pub struct Answers {
    limits: Mutex<HashMap<u64, Arc<ReadLimit>>>,
    answers: Mutex<Vec<(u64, Response)>>,
    /// Written to when there is one.
    wake: UnixStream,
}

impl Answers {
    /// No answers yet; and a socket that can be read when there are.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn new() -> io::Result<(Arc<Self>, UnixStream)> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let answers = Self {
            limits: Mutex::default(),
            answers: Mutex::default(),
            wake,
        };
        Ok((Arc::new(answers), woken))
    }

    /// The limit of a request that a handler has taken; `None` for one that nobody waits for.
    pub fn limit(&self, number: u64) -> Option<Arc<ReadLimit>> {
        self.limits.lock().get(&number).cloned()
    }

    /// Leaves the answer to a request.
    pub fn put(&self, number: u64, response: Response) {
        if self.limits.lock().remove(&number).is_some() {
            self.answers.lock().push((number, response));
            // Where this would block, the server has been woken often enough.
            let _ = (&self.wake).write(&[0]);
        }
    }

    fn expect(&self, number: u64, limit: Arc<ReadLimit>) {
        self.limits.lock().insert(number, limit);
    }

    /// An answer is not waited for any more. False when it is there already.
    fn give_up(&self, number: u64) -> bool {
        self.limits.lock().remove(&number).is_some()
    }

    /// The answers that are there.
    pub fn take(&self) -> Vec<(u64, Response)> {
        std::mem::take(&mut *self.answers.lock())
    }
}

/// A connection with `tiny_http`, over which requests go one after another.
#[derive(Debug)]
pub struct Link {
    stream: UnixStream,
    output: Vec<u8>,
    sent: usize,
}

impl Link {
    /// Connects.
    ///
    /// # Errors
    /// Nobody accepts there any more, or there is no descriptor left.
    pub fn open(socket: &Path) -> io::Result<Self> {
        Ok(Self {
            stream: private::connect(socket)?,
            output: Vec::new(),
            sent: 0,
        })
    }

    /// What to wait for on its socket: nothing comes back over it but its end.
    pub fn wants(&self) -> PollFlags {
        let mut wants = PollFlags::IN;
        wants.set(PollFlags::OUT, self.sent < self.output.len());
        wants
    }

    /// The socket is ready. False when the connection is over: what was sent will not be answered.
    pub fn ready(&mut self, flags: PollFlags) -> bool {
        if flags.contains(PollFlags::OUT) {
            self.write();
        }
        if !flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
            return true;
        }
        // `tiny_http` itself speaks only where it could not hand a request on.
        let mut scrap = [0; 64];
        matches!(self.stream.read(&mut scrap), Err(error) if is_transient(&error))
    }

    fn send(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
        self.write();
    }

    fn write(&mut self) {
        match self.stream.write(&self.output[self.sent..]) {
            Ok(count) => self.sent += count,
            Err(error) if is_transient(&error) => return,
            // The next look finds its end.
            Err(_) => self.sent = self.output.len(),
        }
        if self.sent == self.output.len() {
            self.sent = 0;
            self.output.clear();
            self.output.shrink_to(SCRATCH);
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A request that is with a handler.
#[derive(Debug)]
pub struct HandlerRequest {
    /// Its number.
    pub number: u64,
    /// Whose request it is. The client may be gone by now; the handler is busy all the same.
    pub connection: u64,
    /// How long it may keep its handler.
    pub class: RequestClass,
    /// Who asks (see [`Request::reader`]).
    pub reader: u64,
    /// What ends its reading.
    pub limit: Arc<ReadLimit>,
    /// Whether that was said already.
    pub is_stopped: bool,
}

impl HandlerRequest {
    /// Sends a request over a link, as new bytes of our own.
    pub fn begin(&self, link: &mut Link, answers: &Answers, secret: &str, request: &Request) {
        answers.expect(self.number, self.limit.clone());
        link.send(&serialise(request, secret, self.number));
    }

    /// Ends its reading: nobody waits for the answer.
    pub fn stop(&mut self) {
        if !std::mem::replace(&mut self.is_stopped, true) {
            self.limit.stop();
        }
    }

    /// The link is over. The answer, if there will be none.
    pub fn give_up(&self, answers: &Answers) -> Option<Response> {
        let is_lost = answers.give_up(self.number);
        is_lost.then(|| ErrorResponse::INTERNAL.to_response())
    }
}

fn serialise(request: &Request, secret: &str, number: u64) -> Vec<u8> {
    let head = &request.head;
    let mut bytes = format!(
        "{} {} HTTP/1.1\r\nHost: server\r\n",
        head.method, head.target
    );
    for value in &head.authorization {
        bytes += &format!("Authorization: {value}\r\n");
    }
    for value in &head.forwarded_for {
        bytes += &format!("{FORWARDED_HEADER}: {value}\r\n");
    }
    let (origin, length) = (request.origin.as_str(), request.body.len());
    let peer = request.peer.map(|peer| format!(" {peer}"));
    let peer = peer.unwrap_or_default();
    bytes += &format!(
        "{ORIGIN_HEADER}: {secret} {origin} {number}{peer}\r\nContent-Length: {length}\r\n\r\n"
    );
    let mut bytes = bytes.into_bytes();
    bytes.extend_from_slice(&request.body);
    bytes
}

/// The bytes to send to a client: a handler's answer, or our own 500 when it is larger than any may be. `close` is whether
/// the connection ends with it; `bodiless` is for answers to `HEAD`.
pub fn to_bytes(mut response: Response, close: bool, bodiless: bool) -> Vec<u8> {
    if response.body.len() > MAX_ANSWER {
        let size = response.body.len();
        log::error!("http: an answer of {size} bytes was not sent: {MAX_ANSWER} are the most");
        response = ErrorResponse::INTERNAL.to_response();
    }
    let Response {
        status,
        headers,
        mut body,
    } = response;
    let mut head = format!("HTTP/1.1 {status} {}\r\n", reason(status));
    let mut has_type = false;
    let headers = headers.iter().map(|(name, value)| (*name, value.as_str()));
    for (name, value) in CROSS_ORIGIN.into_iter().chain(headers) {
        has_type |= name == "Content-Type";
        if value
            .bytes()
            .all(|byte| matches!(byte, b'\t' | 0x20..=0x7e))
        {
            head += &format!("{name}: {value}\r\n");
        } else {
            log::error!("http: the header {name} of an answer is not ASCII and was left out");
        }
    }
    if !body.is_empty() && !has_type {
        head += "Content-Type: application/json\r\n";
    }
    if status != 204 {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    head += if close {
        "Connection: close\r\n\r\n"
    } else {
        "\r\n"
    };
    if bodiless || status == 204 {
        body.clear();
    }
    body.splice(..0, head.into_bytes());
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::server::head::{BodyLength, Head};
    use crate::http::server::listen::Origin;

    fn text(response: Response, close: bool, bodiless: bool) -> String {
        String::from_utf8(to_bytes(response, close, bodiless)).expect("text")
    }

    fn response(status: u16, body: &str) -> Response {
        Response {
            status,
            headers: vec![
                ("Allow", "GET".into()),
                ("Bad", "a\r\nSet-Cookie: b".into()),
            ],
            body: body.into(),
        }
    }

    #[test]
    fn an_answer_has_its_length_its_kind_and_what_browsers_ask_for() {
        let answer = text(response(200, "{}"), false, false);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\n"));
        assert!(answer.contains("\r\nAllow: GET\r\n"));
        assert!(!answer.contains("Cookie"), "what is no header is none");
        assert!(
            answer.ends_with("\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
        );
        let closing = text(response(200, "{}"), true, false);
        assert!(closing.ends_with("\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"));
    }

    #[test]
    fn an_answer_to_head_keeps_the_length_of_the_body_it_does_not_have() {
        let answer = text(response(200, "{\"a\":1}"), false, true);
        assert!(answer.ends_with("\r\nContent-Length: 7\r\n\r\n"));
        let empty = text(response(204, ""), false, false);
        assert!(empty.starts_with("HTTP/1.1 204 No Content\r\n") && empty.ends_with("\r\n\r\n"));
        assert!(!empty.contains("\r\nContent-"));
    }

    #[test]
    fn an_answer_larger_than_any_may_be_is_an_error_of_ours() {
        let answer = text(response(200, &"x".repeat(MAX_ANSWER + 1)), false, false);
        assert!(answer.starts_with("HTTP/1.1 500 Internal Server Error\r\n"));
        assert!(answer.ends_with(
            r#"{"errcode":"M_UNKNOWN","error":"Internal server error","error_code":"bug"}"#
        ));
    }

    #[test]
    fn an_answer_that_nobody_waits_for_is_not_kept() {
        let (answers, mut woken) = Answers::new().expect("sockets");
        answers.expect(1, Arc::default());
        answers.expect(2, Arc::default());
        assert!(answers.limit(2).is_some() && answers.limit(3).is_none());
        assert!(answers.give_up(2) && !answers.give_up(2));
        for number in 1..4 {
            answers.put(number, response(200, ""));
        }
        assert_eq!(
            answers.take().iter().map(|(n, _)| *n).collect::<Vec<_>>(),
            [1]
        );
        let mut bytes = [0; 9];
        assert_eq!(woken.read(&mut bytes).expect("it was woken"), 1);
    }

    #[test]
    fn the_handlers_see_a_head_written_by_the_server_alone() {
        let head = Head {
            method: "POST".into(),
            target: "/a?b".into(),
            authorization: vec!["Bearer t".into()],
            forwarded_for: vec!["a, 192.0.2.1".into()],
            body: BodyLength::Known(2),
            expects_continue: true,
            close: false,
        };
        let request = Request {
            head,
            body: b"{}".to_vec(),
            origin: Origin::Tcp,
            peer: Some([127, 0, 0, 1].into()),
        };
        assert_eq!(
            String::from_utf8(serialise(&request, "SECRET", 7)).expect("text"),
            "POST /a?b HTTP/1.1\r\nHost: server\r\nAuthorization: Bearer t\r\n\
             X-Forwarded-For: a, 192.0.2.1\r\nX-Roomkeeper-Origin: SECRET tcp 7 127.0.0.1\r\n\
             Content-Length: 2\r\n\r\n{}"
        );
    }
}
