//! One client connection, from its first byte to its last. It never blocks: the server calls it when its socket is
//! ready or its time is up, and it says what came of it.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::io::{ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use rustix::event::PollFlags;

use super::chunked::Chunked;
use super::error_response::ErrorResponse;
use super::head::{BodyLength, Head, Scan};
use super::limits::{Limits, MAX_HEAD};
use super::listen::{Origin, Stream};
use crate::counters::{COUNTERS, add};
use crate::http::auth::TOKEN_PARAMETER;

/// A whole request, ready for a handler.
#[derive(Debug)]
pub struct Request {
    /// Its head.
    pub head: Head,
    /// Its body, exactly as long as the head says.
    pub body: Vec<u8>,
    /// Through what kind of listener it came.
    pub origin: Origin,
    /// Who is at the other end, over TCP.
    pub peer: Option<IpAddr>,
}

impl Request {
    /// Bytes held.
    pub fn held(&self) -> usize {
        let authorization = self.head.authorization.iter();
        let authorization = authorization.chain(&self.head.forwarded_for);
        let authorization = authorization.map(String::capacity);
        self.body.capacity() + self.head.target.capacity() + authorization.sum::<usize>()
    }

    /// Who asks, as far as that can be told before a database is asked: whose token it is.
    pub fn reader(&self, keys: &RandomState) -> u64 {
        let mut hasher = keys.build_hasher();
        self.head.authorization.hash(&mut hasher);
        let query = self
            .head
            .target
            .split_once('?')
            .map_or("", |(_, query)| query);
        let mut query = form_urlencoded::parse(query.as_bytes());
        let token = query.find(|(name, _)| name == TOKEN_PARAMETER);
        token.map(|(_, value)| value).hash(&mut hasher);
        hasher.finish()
    }
}

/// Counts a client that no handler sees.
pub(super) fn count(error_response: ErrorResponse) {
    let status = error_response.status.to_string();
    add(&COUNTERS.turned_away, (&status, ""), 1);
}

/// What came of a call.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// The connection goes on.
    Stay,
    /// A request is complete: [`Connection::take_request`] has it.
    Complete,
    /// The connection is over and the connection can be dropped.
    Gone,
}

/// One client connection.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    origin: Origin,
    /// The listener it came by, for that listener's count.
    pub listener: usize,
    stage: Stage,
    /// Of the head or the body being read.
    input: Vec<u8>,
    /// What waits to be written; the first `sent` bytes of it are.
    output: Vec<u8>,
    sent: usize,
    served: u32,
    /// Bytes came before the answer went: either pipelining, which is not done here, or something smuggled.
    early: bool,
    /// The client will send no more. It may still read.
    ended: bool,
    /// When this stage began.
    since: Instant,
    /// When a byte last went either way.
    last_activity: Instant,
    deadline: Option<Instant>,
}

#[derive(Debug)]
enum Stage {
    /// Reading a head; idle as long as no byte of it is there.
    Head(Scan),
    Body(Head, Option<Chunked>),
    /// A request waits for a handler.
    Waiting(Option<Request>),
    /// The request is with a handler.
    Away {
        close: bool,
        bodiless: bool,
    },
    /// Writing an answer.
    Answer {
        close: bool,
    },
    /// All said; reading what still comes so that the answer survives (see [`Limits::linger`]).
    Linger,
}

impl Connection {
    /// A client that has just come in.
    pub fn new(
        stream: Stream,
        origin: Origin,
        listener: usize,
        limits: &Limits,
        now: Instant,
    ) -> Self {
        Self {
            stream,
            origin,
            listener,
            stage: Stage::Head(Scan::default()),
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            served: 0,
            early: false,
            ended: false,
            since: now,
            last_activity: now,
            deadline: Some(now + limits.head),
        }
    }

    /// What to wait for on its socket.
    pub fn wants(&self) -> PollFlags {
        let mut wants = match self.stage {
            Stage::Head(_) | Stage::Body(..) | Stage::Linger => PollFlags::IN,
            Stage::Waiting(_) | Stage::Away { .. } if !self.early && !self.ended => PollFlags::IN,
            Stage::Waiting(_) | Stage::Away { .. } | Stage::Answer { .. } => PollFlags::empty(),
        };
        if self.sent < self.output.len() {
            wants |= PollFlags::OUT;
        }
        wants
    }

    /// When [`Connection::expire`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Bytes held for this client.
    pub fn held(&self) -> usize {
        let request = match &self.stage {
            Stage::Waiting(Some(request)) => request.held(),
            Stage::Body(_, Some(chunked)) => chunked.held(),
            _ => 0,
        };
        self.input.capacity() + self.output.capacity() + request
    }

    /// How readily this connection is closed to make room, the least first; `None` while a request is waiting or
    /// with a handler. Connections that nobody would miss go first, then the ones that have been sending one
    /// request for the longest, then the slowest readers of an answer.
    pub fn eviction_rank(&self) -> Option<(u8, Instant)> {
        match &self.stage {
            Stage::Linger => Some((0, self.since)),
            Stage::Head(_) if self.input.is_empty() && self.served > 0 => Some((1, self.since)),
            Stage::Head(_) | Stage::Body(..) => Some((2, self.since)),
            Stage::Answer { .. } => Some((3, self.last_activity)),
            Stage::Waiting(_) | Stage::Away { .. } => None,
        }
    }

    /// Whether a request of this client is waiting or with a handler, or its answer on its way.
    pub fn is_served(&self) -> bool {
        matches!(
            self.stage,
            Stage::Waiting(_) | Stage::Away { .. } | Stage::Answer { .. }
        )
    }

    /// The socket is ready for what `wants` asked, or broken.
    pub fn ready(
        &mut self,
        flags: PollFlags,
        scratch: &mut [u8],
        limits: &Limits,
        now: Instant,
    ) -> Step {
        let broken = flags.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
        if broken && self.is_served() {
            return Step::Gone;
        }
        if flags.contains(PollFlags::OUT) && self.write(limits, now) == Step::Gone {
            return Step::Gone;
        }
        if !broken && !flags.contains(PollFlags::IN) {
            return Step::Stay;
        }
        match self.stage {
            Stage::Head(_) => self.read_head(scratch, limits, now),
            Stage::Body(..) => self.read_body(scratch, limits, now),
            Stage::Waiting(_) | Stage::Away { .. } => {
                match self.stream.read(&mut scratch[..1024]) {
                    Ok(0) => self.ended = true,
                    Ok(_) => self.early = true,
                    Err(error) if is_transient(&error) => {}
                    Err(_) => return Step::Gone,
                }
                Step::Stay
            }
            Stage::Answer { .. } => Step::Stay,
            Stage::Linger => match self.stream.read(scratch) {
                Ok(0) => Step::Gone,
                Ok(_) => Step::Stay,
                Err(error) if is_transient(&error) => Step::Stay,
                Err(_) => Step::Gone,
            },
        }
    }

    /// The deadline has passed.
    pub fn expire(&mut self, limits: &Limits, now: Instant) -> Step {
        match &self.stage {
            // Said nothing, is told nothing.
            Stage::Head(_) if self.input.is_empty() => Step::Gone,
            Stage::Head(_) | Stage::Body(..) => self.refuse(ErrorResponse::TIMEOUT, limits, now),
            Stage::Waiting(_) => self.refuse(ErrorResponse::BUSY, limits, now),
            Stage::Away { .. } => Step::Stay,
            Stage::Answer { .. } | Stage::Linger => Step::Gone,
        }
    }

    /// The request that waits for a handler.
    pub fn waiting(&self) -> Option<&Request> {
        match &self.stage {
            Stage::Waiting(request) => request.as_ref(),
            _ => None,
        }
    }

    /// Whether a request is with a handler, and the client has said that it will send no more.
    pub fn may_be_gone(&self) -> bool {
        self.ended && matches!(self.stage, Stage::Away { .. })
    }

    /// The complete request, once; from now on it is with a handler.
    pub fn take_request(&mut self) -> Option<Request> {
        let Stage::Waiting(request) = &mut self.stage else {
            return None;
        };
        let request = request.take()?;
        self.stage = Stage::Away {
            close: request.head.close,
            bodiless: request.head.method == "HEAD",
        };
        self.deadline = None;
        Some(request)
    }

    /// Whether the answer to the request that is with a handler has no body, whatever its length says.
    pub fn is_bodiless(&self) -> bool {
        matches!(self.stage, Stage::Away { bodiless: true, .. })
    }

    /// Whether the connection ends with the answer to the request that is with a handler.
    pub fn closes(&self, limits: &Limits) -> bool {
        let asked = !matches!(self.stage, Stage::Away { close: false, .. });
        asked || self.early || self.ended || self.served + 1 >= limits.requests_per_connection
    }

    /// Sends a whole answer, in bytes; `close` is what its head says about the connection.
    pub fn answer(&mut self, bytes: Vec<u8>, close: bool, limits: &Limits, now: Instant) -> Step {
        self.input = Vec::new();
        if self.sent == self.output.len() {
            self.output = bytes;
            self.sent = 0;
        } else {
            self.output.extend_from_slice(&bytes); // A `100 Continue` that has not gone yet.
        }
        self.enter(Stage::Answer { close }, limits.write, now);
        self.write(limits, now)
    }

    /// Sends an answer of the server's own, and then ends the connection.
    pub fn refuse(&mut self, error_response: ErrorResponse, limits: &Limits, now: Instant) -> Step {
        count(error_response);
        self.answer(error_response.to_bytes(), true, limits, now)
    }

    /// Tells the client, if that takes no waiting, why the connection ends now. For connections that are evicted.
    pub fn close_with(mut self, error_response: ErrorResponse) {
        let is_asking = match &self.stage {
            Stage::Head(_) => !self.input.is_empty(),
            Stage::Body(..) | Stage::Waiting(_) => true,
            _ => false,
        };
        if is_asking {
            count(error_response);
        }
        if is_asking && self.sent == self.output.len() {
            let _ = self.stream.write(&error_response.to_bytes());
        }
    }

    fn enter(&mut self, stage: Stage, time: std::time::Duration, now: Instant) {
        self.stage = stage;
        self.since = now;
        self.deadline = Some(now + time);
    }

    fn read_head(&mut self, scratch: &mut [u8], limits: &Limits, now: Instant) -> Step {
        let room = (MAX_HEAD - self.input.len()).min(scratch.len());
        let count = match self.stream.read(&mut scratch[..room]) {
            Ok(0) => return Step::Gone,
            Ok(count) => count,
            Err(error) if is_transient(&error) => return Step::Stay,
            Err(_) => return Step::Gone,
        };
        self.last_activity = now;
        if self.input.is_empty() && self.served > 0 {
            self.since = now;
            self.deadline = Some(now + limits.head);
        }
        self.input.extend_from_slice(&scratch[..count]);
        let Stage::Head(scan) = &mut self.stage else {
            return Step::Stay;
        };
        match scan.end(&self.input).and_then(|end| {
            end.map(|end| Ok((end, Head::parse(&self.input[..end])?)))
                .transpose()
        }) {
            Err(error_response) => self.refuse(error_response, limits, now),
            Ok(None) => Step::Stay,
            Ok(Some((end, head))) => {
                // What came with the head is the beginning of the body, and must be no more than that.
                self.input.drain(..end);
                let mut chunked = None;
                if head.expects_continue && self.input.is_empty() {
                    self.output = b"HTTP/1.1 100 Continue\r\n\r\n".to_vec();
                    self.sent = 0;
                }
                if head.body == BodyLength::Chunked {
                    let mut chunks = Chunked::default();
                    match chunks.take(&self.input) {
                        Ok(taken) => self.early = taken < self.input.len(),
                        Err(refusal) => return self.refuse(refusal, limits, now),
                    }
                    self.input.clear();
                    chunked = Some(chunks);
                } else {
                    self.early = self.input.len() > head.body.known();
                    self.input.truncate(head.body.known());
                }
                self.enter(Stage::Body(head, chunked), limits.body, now);
                if self.write(limits, now) == Step::Gone {
                    Step::Gone
                } else {
                    self.complete(limits, now)
                }
            }
        }
    }

    fn read_body(&mut self, scratch: &mut [u8], limits: &Limits, now: Instant) -> Step {
        let Stage::Body(head, chunked) = &mut self.stage else {
            return Step::Stay;
        };
        let room = match chunked {
            Some(_) => scratch.len(),
            None => (head.body.known() - self.input.len()).min(scratch.len()),
        };
        match (self.stream.read(&mut scratch[..room]), chunked) {
            (Ok(0), _) => return Step::Gone,
            (Ok(count), Some(chunked)) => match chunked.take(&scratch[..count]) {
                Ok(taken) => self.early = taken < count,
                Err(refusal) => return self.refuse(refusal, limits, now),
            },
            (Ok(count), None) => {
                // Exactly what came: many half bodies are held at a time.
                self.input.reserve_exact(count);
                self.input.extend_from_slice(&scratch[..count]);
            }
            (Err(error), _) if is_transient(&error) => return Step::Stay,
            (Err(_), _) => return Step::Gone,
        }
        self.last_activity = now;
        self.complete(limits, now)
    }

    /// Moves on when the body is whole.
    fn complete(&mut self, limits: &Limits, now: Instant) -> Step {
        let Stage::Body(head, chunked) = &mut self.stage else {
            return Step::Stay;
        };
        let is_whole = match chunked {
            Some(chunked) => chunked.is_done(),
            None => self.input.len() >= head.body.known(),
        };
        if !is_whole {
            return Step::Stay;
        }
        let request = Request {
            head: head.clone(),
            body: match chunked.take() {
                Some(chunked) => chunked.into_body(),
                None => std::mem::take(&mut self.input),
            },
            origin: self.origin,
            peer: self.stream.peer(),
        };
        self.enter(Stage::Waiting(Some(request)), limits.wait, now);
        Step::Complete
    }

    fn write(&mut self, limits: &Limits, now: Instant) -> Step {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(0) => return Step::Gone,
                Ok(count) => {
                    self.sent += count;
                    self.last_activity = now;
                }
                Err(error) if is_transient(&error) => return Step::Stay,
                Err(_) => return Step::Gone,
            }
        }
        self.output = Vec::new();
        self.sent = 0;
        match self.stage {
            Stage::Answer { close: true } => {
                if self.stream.finish().is_err() || self.ended {
                    return Step::Gone;
                }
                self.enter(Stage::Linger, limits.linger, now);
            }
            Stage::Answer { close: false } => {
                self.served += 1;
                self.enter(Stage::Head(Scan::default()), limits.idle, now);
            }
            _ => {}
        }
        Step::Stay
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Whether an error only means "not now".
pub fn is_transient(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
