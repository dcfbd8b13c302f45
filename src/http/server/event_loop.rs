//! The server's thread: who comes in, who waits, who is served, who has to go.

use std::collections::{BTreeMap, VecDeque};
use std::hash::RandomState;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Backend;
use super::connection::{self, Connection, Step};
use super::error_response::ErrorResponse;
use super::handler_request::{HandlerRequest, Link, to_bytes};
use super::limits::{Limits, MAX_HEAD};
use super::listen::{Listener, Stream};
use super::request_class::{InFlight, RequestClass};
use crate::counters::COUNTERS;
use crate::http::handlers::Response;
use crate::store::read_limit::ReadLimit;

/// Most bytes read from one socket before the others have their turn.
const SCRATCH: usize = 64 * 1024;

/// Most connections accepted from one listener before those already here have their turn.
const ACCEPT_BATCH: usize = 64;

/// Evictions and accept errors are logged at most this often.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Everything the server's thread owns.
pub struct EventLoop {
    listeners: Vec<Listener>,
    limits: Limits,
    backend: Backend,
    /// Reads its end when the server is to stop.
    wakened: UnixStream,
    /// Can be read when handlers have answered.
    answered: UnixStream,
    /// By number of arrival, so that the order of the map is the order of arrival.
    connections: BTreeMap<u64, Connection>,
    arrivals: u64,
    /// Requests for which no handler is free, in order of arrival.
    waiting: VecDeque<Waiting>,
    /// A place for each handler.
    handler_requests: Vec<Option<HandlerRequest>>,
    /// The connection with `tiny_http`.
    link: Option<Link>,
    /// By which tokens are told apart, without being kept.
    keys: RandomState,
    begun: u64,
    /// No accepting before this moment.
    paused: Option<Instant>,
    /// When a stopping server closes, finished or not.
    closing: Option<Instant>,
    evicted: Counters,
    accept_errors: Counters,
    scratch: Box<[u8]>,
}

/// A request that waits.
#[derive(Clone, Copy)]
struct Waiting {
    connection: u64,
    class: RequestClass,
    reader: u64,
    held: usize,
}

/// Whose socket a `poll` entry is.
#[derive(Clone, Copy)]
enum Who {
    Waker,
    Answers,
    Listener(usize),
    Connection(u64),
    Link,
}

impl EventLoop {
    pub fn new(
        listeners: Vec<Listener>,
        limits: Limits,
        backend: Backend,
        (wakened, answered): (UnixStream, UnixStream),
    ) -> Self {
        let handlers = limits.handler_requests.max(1);
        Self {
            listeners,
            limits,
            backend,
            wakened,
            answered,
            connections: BTreeMap::new(),
            arrivals: 0,
            waiting: VecDeque::new(),
            handler_requests: (0..handlers).map(|_| None).collect(),
            link: None,
            keys: RandomState::new(),
            begun: 0,
            paused: None,
            closing: None,
            evicted: Counters::default(),
            accept_errors: Counters::default(),
            scratch: vec![0; SCRATCH].into_boxed_slice(),
        }
    }

    /// Serves until it is told to stop.
    pub fn run(mut self) {
        loop {
            let ready = self.wait();
            let now = Instant::now();
            for (who, flags) in ready {
                match who {
                    Who::Waker => self.begin_to_stop(now),
                    Who::Answers => self.deliver(now),
                    Who::Listener(number) => self.accept(number, now),
                    Who::Connection(id) => self.connection_ready(id, flags, now),
                    Who::Link => self.link_ready(flags, now),
                }
            }
            self.expire(now);
            self.dispatch(now);
            self.make_room_in_memory(now);
            let (waiting, open) = (self.waiting.len(), self.connections.len());
            COUNTERS.requests_waiting.store(waiting as u64, Relaxed);
            COUNTERS.connections.store(open as u64, Relaxed);
            if let Some(count) = self.evicted.due(now) {
                log::warn!("http: {count} slow or idle connections were closed to make room");
            }
            if let Some(end) = self.closing {
                let busy = self.connections.values().any(Connection::is_served);
                if !busy || now >= end {
                    return;
                }
            }
        }
    }

    /// Blocks until something can be done.
    fn wait(&self) -> Vec<(Who, PollFlags)> {
        let now = Instant::now();
        let mut whose = Vec::new();
        let mut sockets = Vec::new();
        if self.closing.is_none() {
            whose.push(Who::Waker);
            sockets.push(PollFd::new(&self.wakened, PollFlags::IN));
        }
        whose.push(Who::Answers);
        sockets.push(PollFd::new(&self.answered, PollFlags::IN));
        if let Some(link) = &self.link {
            whose.push(Who::Link);
            sockets.push(PollFd::new(link, link.wants()));
        }
        for (id, connection) in &self.connections {
            whose.push(Who::Connection(*id));
            sockets.push(PollFd::new(connection, connection.wants()));
        }
        // After those who are here: what arrived first is begun first.
        if self.paused.is_none_or(|until| now >= until) {
            for (number, listener) in self.listeners.iter().enumerate() {
                whose.push(Who::Listener(number));
                sockets.push(PollFd::new(listener, PollFlags::IN));
            }
        }
        let deadlines = self.connections.values().filter_map(Connection::deadline);
        let readings = self.handler_requests.iter().flatten();
        let readings = readings.filter(|request| !request.is_stopped);
        let next = deadlines
            .chain(readings.filter_map(|request| request.limit.deadline()))
            .chain(self.paused.filter(|until| *until > now))
            .chain(self.closing)
            .min();
        let timeout = next.map(|next| {
            // A millisecond more, so that the deadline has passed when the wait ends.
            let time = next.saturating_duration_since(now) + Duration::from_millis(1);
            Timespec {
                tv_sec: time.as_secs().cast_signed(),
                tv_nsec: time.subsec_nanos().into(),
            }
        });
        match poll(&mut sockets, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Vec::new(),
            Err(error) => {
                // Out of kernel memory, say. The sockets are still there: try again, but not in a hot circle.
                log::warn!("http: cannot wait for clients ({error}); trying again");
                std::thread::sleep(self.limits.accept_pause);
                return Vec::new();
            }
        }
        let flags = sockets.iter().map(PollFd::revents);
        whose
            .into_iter()
            .zip(flags)
            .filter(|(_, flags)| !flags.is_empty())
            .collect()
    }

    fn accept(&mut self, number: usize, now: Instant) {
        for _ in 0..ACCEPT_BATCH {
            // Stopping closes the listeners in the middle of a round.
            let Some(listener) = self.listeners.get(number) else {
                return;
            };
            match listener.accept() {
                Ok(stream) => self.admit(stream, number, now),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // The client went away before it was taken.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::Interrupted | ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => {
                    // No descriptors, no memory. It passes when somebody leaves: see to it that somebody does, and
                    // do not ask again at once, because the same client is still waiting to be accepted.
                    self.accept_errors.count += 1;
                    if let Some(count) = self.accept_errors.due(now) {
                        log::error!(
                            "http: cannot accept connections: {error} ({count} times); trying again"
                        );
                    }
                    self.evict(None);
                    self.paused = Some(now + self.limits.accept_pause);
                    return;
                }
            }
        }
    }

    fn admit(&mut self, mut stream: Stream, number: usize, now: Instant) {
        let crowd = |number| {
            self.connections
                .values()
                .filter(|connection| connection.listener == number)
                .count()
        };
        let crowded = if crowd(number) >= self.limits.connections_per_listener {
            Some(number)
        } else if self.connections.len() >= self.limits.connections {
            // The listener with the most connections makes room for the others.
            (0..self.listeners.len()).max_by_key(|number| crowd(*number))
        } else {
            None
        };
        if crowded.is_some() && !self.evict(crowded) {
            connection::count(ErrorResponse::BUSY);
            let _ = stream.write(&ErrorResponse::BUSY.to_bytes());
            return;
        }
        let Some(origin) = self.listeners.get(number).map(Listener::origin) else {
            return;
        };
        let id = self.arrivals;
        self.arrivals += 1;
        self.connections.insert(
            id,
            Connection::new(stream, origin, number, &self.limits, now),
        );
        if crowded.is_some() {
            // Most clients have sent their request by now: read it before anybody can be evicted for having none. Else it is
            // read in its turn, after those of connections that are older.
            self.connection_ready(id, PollFlags::IN, now);
        }
    }

    /// Closes the connection with the lowest eviction rank, of one listener or of all. False when all are being served.
    fn evict(&mut self, listener: Option<usize>) -> bool {
        let candidates = self
            .connections
            .iter()
            .filter(|(_, connection)| listener.is_none_or(|number| connection.listener == number));
        let least = candidates
            .filter_map(|(id, connection)| Some((connection.eviction_rank()?, *id)))
            .min();
        let Some(connection) = least.and_then(|(_, id)| self.connections.remove(&id)) else {
            return false;
        };
        connection.close_with(ErrorResponse::BUSY);
        self.evicted.count += 1;
        true
    }

    fn connection_ready(&mut self, id: u64, flags: PollFlags, now: Instant) {
        if let Some(connection) = self.connections.get_mut(&id) {
            let step = connection.ready(flags, &mut self.scratch, &self.limits, now);
            if connection.may_be_gone() {
                let time = self.limits.read_after_end;
                if let Some(request) = self.handler_request_of(id) {
                    request.limit.shorten(time);
                }
            }
            self.follow(id, step, now);
        }
    }

    fn follow(&mut self, id: u64, step: Step, now: Instant) {
        match step {
            Step::Stay => {}
            Step::Gone => {
                self.connections.remove(&id);
                self.waiting.retain(|waiting| waiting.connection != id);
                if let Some(request) = self.handler_request_of(id) {
                    request.stop();
                }
            }
            Step::Complete if self.closing.is_some() => {
                self.refuse(id, ErrorResponse::STOPPING, now)
            }
            Step::Complete => {
                let Some(waiting) = self.waiting_of(id) else {
                    return;
                };
                if !self.may_queue(&waiting) {
                    // Many came in this round, and handlers may be free.
                    self.dispatch(now);
                }
                if self.may_queue(&waiting) {
                    self.waiting.push_back(waiting);
                } else {
                    self.refuse(id, ErrorResponse::BUSY, now);
                }
            }
        }
    }

    fn waiting_of(&self, id: u64) -> Option<Waiting> {
        let request = self.connections.get(&id)?.waiting()?;
        let head = &request.head;
        Some(Waiting {
            connection: id,
            class: (self.limits.class)(&head.method, &head.target),
            reader: request.reader(&self.keys),
            held: request.held() + size_of::<Connection>(),
        })
    }

    fn handler_request_of(&mut self, id: u64) -> Option<&mut HandlerRequest> {
        let mut requests = self.handler_requests.iter_mut().flatten();
        requests.find(|request| request.connection == id)
    }

    /// Whether one more may wait, when others do. Slow ones leave a quarter of the bytes to quick ones, and one reader
    /// leaves places to the others.
    fn may_queue(&self, one: &Waiting) -> bool {
        let (mut all, mut slow, mut of_reader) = (one.held, one.held, 0);
        for waiting in &self.waiting {
            all += waiting.held;
            if waiting.class != RequestClass::Quick {
                slow += waiting.held;
            }
            of_reader += usize::from(waiting.reader == one.reader);
        }
        let limits = &self.limits;
        let has_place = match one.class {
            RequestClass::Quick => all <= limits.waiting,
            RequestClass::Slow | RequestClass::Long => {
                all <= limits.waiting && slow <= limits.waiting - limits.waiting / 4
            }
        };
        has_place && of_reader < limits.waiting_per_reader
    }

    fn refuse(&mut self, id: u64, error_response: ErrorResponse, now: Instant) {
        self.waiting.retain(|waiting| waiting.connection != id);
        if let Some(connection) = self.connections.get_mut(&id) {
            let step = connection.refuse(error_response, &self.limits, now);
            self.follow(id, step, now);
        }
    }

    /// Hands waiting requests to free handlers, in order of arrival; what has to wait for its class, or for what its reader has
    /// with handlers already, is passed.
    fn dispatch(&mut self, now: Instant) {
        while let Some(slot) = self.handler_requests.iter().position(Option::is_none) {
            let in_flight: InFlight = self
                .handler_requests
                .iter()
                .flatten()
                .map(|e| e.class)
                .collect();
            let of_reader = |reader: u64| {
                let requests = self.handler_requests.iter().flatten();
                let slow = requests.filter(|e| e.class != RequestClass::Quick);
                slow.filter(|e| e.reader == reader).count()
            };
            let may_run = |waiting: &Waiting| {
                in_flight.may_run(waiting.class, &self.limits)
                    && (waiting.class == RequestClass::Quick
                        || of_reader(waiting.reader) < self.limits.slow_per_reader)
            };
            let next = self.waiting.iter().position(may_run);
            let Some(waiting) = next.and_then(|next| self.waiting.remove(next)) else {
                return;
            };
            let id = waiting.connection;
            let Some(request) = self
                .connections
                .get_mut(&id)
                .and_then(Connection::take_request)
            else {
                continue;
            };
            let number = self.begun;
            self.begun += 1;
            let link = match self.link.take() {
                Some(link) => Ok(link),
                None => Link::open(&self.backend.socket),
            };
            match link {
                Ok(mut link) => {
                    let handler_request = HandlerRequest {
                        number,
                        connection: id,
                        class: waiting.class,
                        reader: waiting.reader,
                        limit: Arc::new(ReadLimit::lasting(self.limits.read)),
                        is_stopped: false,
                    };
                    let Backend {
                        answers, secret, ..
                    } = &self.backend;
                    handler_request.begin(&mut link, answers, secret, &request);
                    self.handler_requests[slot] = Some(handler_request);
                    self.link = Some(link);
                }
                Err(error) => {
                    if matches!(
                        error.kind(),
                        ErrorKind::ConnectionRefused | ErrorKind::NotFound
                    ) {
                        let _ = self
                            .backend
                            .broken
                            .try_send(format!("the request handlers are gone: {error}"));
                    }
                    self.refuse(id, ErrorResponse::NO_HANDLER, now);
                }
            }
        }
    }

    /// Something moved on the connection with `tiny_http`: its end, mostly, and with it the hope for answers to what is still
    /// on its way.
    fn link_ready(&mut self, flags: PollFlags, now: Instant) {
        if self.link.as_mut().is_some_and(|link| link.ready(flags)) {
            return;
        }
        self.link = None;
        let given_up = |request: &HandlerRequest| {
            let response = request.give_up(&self.backend.answers)?;
            Some((request.number, response))
        };
        let given_up: Vec<_> = self
            .handler_requests
            .iter()
            .flatten()
            .filter_map(given_up)
            .collect();
        for (number, response) in given_up {
            log::error!("http: a request was not handed to a handler");
            self.answer(number, response, now);
        }
    }

    /// Takes what the handlers have answered.
    fn deliver(&mut self, now: Instant) {
        // Before the answers are taken, or one that comes meanwhile would wait for the next.
        while matches!((&self.answered).read(&mut self.scratch), Ok(count) if count == SCRATCH) {}
        for (number, response) in self.backend.answers.take() {
            self.answer(number, response, now);
        }
    }

    fn answer(&mut self, number: u64, response: Response, now: Instant) {
        let of_number = |request: &Option<HandlerRequest>| {
            request
                .as_ref()
                .is_some_and(|request| request.number == number)
        };
        let slot = self.handler_requests.iter().position(of_number);
        let Some(request) = slot.and_then(|slot| self.handler_requests[slot].take()) else {
            return;
        };
        let id = request.connection;
        if let Some(connection) = self.connections.get_mut(&id) {
            let close = connection.closes(&self.limits) || self.closing.is_some();
            let bytes = to_bytes(response, close, connection.is_bodiless());
            let step = connection.answer(bytes, close, &self.limits, now);
            self.follow(id, step, now);
        }
    }

    fn expire(&mut self, now: Instant) {
        for request in self.handler_requests.iter_mut().flatten() {
            if request.limit.is_over() {
                request.stop();
            }
        }
        let is_due = |connection: &Connection| {
            connection
                .deadline()
                .is_some_and(|deadline| now >= deadline)
        };
        let due: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| is_due(connection))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            if let Some(connection) = self.connections.get_mut(&id) {
                let step = connection.expire(&self.limits, now);
                self.waiting.retain(|waiting| waiting.connection != id);
                self.follow(id, step, now);
            }
        }
    }

    /// Keeps the bytes held for clients under [`Limits::buffered`]. First those go who are slow and hold more than
    /// a head, then the latest of those who wait. Of answers that are not yet a client's there is one for each handler.
    fn make_room_in_memory(&mut self, now: Instant) {
        while self.held_for_connections() > self.limits.buffered {
            let large = self
                .connections
                .iter()
                .filter(|(_, connection)| connection.held() > 2 * MAX_HEAD);
            let least = large
                .filter_map(|(id, connection)| Some((connection.eviction_rank()?, *id)))
                .min();
            if let Some(connection) = least.and_then(|(_, id)| self.connections.remove(&id)) {
                connection.close_with(ErrorResponse::BUSY);
                self.evicted.count += 1;
            } else if let Some(last) = self.waiting.back().copied() {
                self.refuse(last.connection, ErrorResponse::BUSY, now);
            } else {
                return;
            }
        }
    }

    fn held_for_connections(&self) -> usize {
        self.connections.values().map(Connection::held).sum()
    }

    /// Closes the listeners, drops idle clients, and gives those being served a little time.
    fn begin_to_stop(&mut self, now: Instant) {
        self.closing = Some(now + self.limits.stop);
        self.listeners.clear();
        for waiting in std::mem::take(&mut self.waiting) {
            self.refuse(waiting.connection, ErrorResponse::STOPPING, now);
        }
        let idle: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| !connection.is_served())
            .map(|(id, _)| *id)
            .collect();
        for connection in idle.iter().filter_map(|id| self.connections.remove(id)) {
            connection.close_with(ErrorResponse::STOPPING);
        }
    }
}

/// Counts what may happen thousands of times a second, to say it once a minute.
#[derive(Default)]
struct Counters {
    count: u64,
    reported: Option<Instant>,
}

impl Counters {
    /// How many there were since the last report, when it is time for the next and there were any.
    fn due(&mut self, now: Instant) -> Option<u64> {
        let is_time = self
            .reported
            .is_none_or(|last| now.duration_since(last) >= LOG_EVERY);
        if self.count == 0 || !is_time {
            return None;
        }
        self.reported = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}
