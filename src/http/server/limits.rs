//! How much a client may take: bytes, seconds, connections.

use std::time::Duration;

use super::request_class::RequestClass;

/// Most bytes of one request head: the request line and all headers. The longest legal one is a `/messages`
/// with a filter in its query, some kilobytes; 16 KiB is what other servers of this API take.
pub const MAX_HEAD: usize = 16 * 1024;

/// Most header lines in one head. Browsers behind proxies send about thirty.
pub const MAX_HEADERS: usize = 100;

/// Most bytes of one request body. The largest legal one, a room deletion with a message, is under 64 KiB.
pub const MAX_BODY: usize = 1024 * 1024;

/// Most bytes of one answer, head included. A page of `/messages` holds at most 1000 events and is far smaller
/// than this as rooms go; what is larger is a fault of ours and answers 500.
pub const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// Everything about the server that has a number. [`Limits::default`] is what the daemon runs with; tests shorten
/// the times.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most connections at a time, all listeners together: bursts of some hundred requests, each with a connection of its
    /// own, find their places. Lowered when the process may open fewer files (see [`SPARE_FILES`]).
    pub connections: usize,
    /// Most connections at a time of one listener. Less than `connections`, so that a crowd on a TCP port can
    /// never fill the places of the operator's Unix socket.
    pub connections_per_listener: usize,
    /// Most requests at a time that are with a handler: one for each handler thread, so that nothing ever waits
    /// unseen inside `tiny_http`.
    pub handler_requests: usize,
    /// Most requests at a time of the slow classes that are with a handler. Less than `handler_requests`: the others are for
    /// quick ones alone, so that somebody always answers whether we are alive.
    pub slow: usize,
    /// Most of these that take as long as a whole job.
    pub long: usize,
    /// The class of a request, by its method and its target.
    pub class: fn(&str, &str) -> RequestClass,
    /// Most requests at a time of the slow classes that one reader has with a handler (see
    /// [`Request::reader`](super::connection::Request::reader)), so that the others always find one.
    pub slow_per_reader: usize,
    /// Most bytes of complete requests that wait for a handler; the next one is answered 429 at once. Slow ones leave a
    /// quarter of it to the others.
    pub waiting: usize,
    /// Most of these of one reader.
    pub waiting_per_reader: usize,
    /// Most bytes held for all clients together: requests being read, answers being written. Beyond it the
    /// connections that have been at it for the longest are closed, and answers come one after another from their
    /// handlers; so the most that is ever held is this, one answer, and one body for each handler_request.
    pub buffered: usize,
    /// Most requests on one connection. Bounds what one peer can do without meeting the listener's limit again.
    pub requests_per_connection: u32,
    /// Time for a whole head, from its first byte (for the first request: from the connection's start).
    pub head: Duration,
    /// Time for a whole body. A megabyte in 30 s is 35 kB/s.
    pub body: Duration,
    /// Time that a complete request waits for a handler before it is answered 429.
    pub wait: Duration,
    /// Time that a reading may take.
    pub read: Duration,
    /// Time that a reading goes on when its client has said that it will send no more: it has gone, or reads still.
    pub read_after_end: Duration,
    /// Time for a client to take its whole answer.
    pub write: Duration,
    /// Time between two requests on a connection.
    pub idle: Duration,
    /// Time after a closing answer in which the client's remaining bytes are read and dropped, because closing
    /// over unread bytes would destroy the answer on its way.
    pub linger: Duration,
    /// Time that requests already with a handler get to finish when the server stops.
    pub stop: Duration,
    /// Time without accepting after an accept failed (`EMFILE` and its kind).
    pub accept_pause: Duration,
}

/// Files that the server leaves to the rest of the process: database connections, the ledger, logs, and the three
/// descriptors of each handler_request.
pub const SPARE_FILES: usize = 256;

/// Fewest connections, however few files the process may open.
pub const MIN_CONNECTIONS: usize = 16;

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 2048,
            connections_per_listener: 1792,
            handler_requests: 8,
            slow: 6,
            long: 2,
            class: |_, _| RequestClass::Quick,
            slow_per_reader: 4,
            waiting: 16 * 1024 * 1024,
            waiting_per_reader: 1024,
            buffered: 64 * 1024 * 1024,
            requests_per_connection: 1000,
            head: Duration::from_secs(10),
            body: Duration::from_secs(30),
            wait: Duration::from_secs(10),
            read: Duration::from_secs(30),
            read_after_end: Duration::from_secs(2),
            write: Duration::from_secs(30),
            idle: Duration::from_secs(30),
            linger: Duration::from_secs(2),
            stop: Duration::from_secs(2),
            accept_pause: Duration::from_millis(100),
        }
    }
}

/// Lets the process open as many files as the server may need, as far as the system allows it.
pub(super) fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let wanted = u64::try_from(Limits::default().connections + 2 * SPARE_FILES).unwrap_or(u64::MAX);
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(limit.maximum.map_or(wanted, |most| most.min(wanted)));
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            log::debug!("http: the number of open files stays as it is: {error}");
        }
    }
}

impl Limits {
    /// These limits, lowered to what the process may open now.
    ///
    /// A process that runs out of files inside `tiny_http` loses its accept thread, so the server must run out
    /// of connections first.
    #[must_use]
    pub fn within_open_files(mut self) -> Self {
        use rustix::process::{Resource, getrlimit};
        if let Some(files) = getrlimit(Resource::Nofile).current {
            let files = usize::try_from(files).unwrap_or(usize::MAX);
            let room = files.saturating_sub(SPARE_FILES).max(MIN_CONNECTIONS);
            self.connections = self.connections.min(room);
        }
        // An eighth of the places stays out of one listener's reach, whatever the total is.
        let share = (self.connections - self.connections / 8).max(1);
        self.connections_per_listener = self.connections_per_listener.min(share);
        self
    }
}
