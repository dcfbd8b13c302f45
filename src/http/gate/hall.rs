//! The gate's thread: who comes in, who waits, who is served, who has to go.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Behind;
use super::exchange::Exchange;
use super::guest::{Guest, Step};
use super::lane::{Lane, Traffic};
use super::limits::{Limits, MAX_HEAD};
use super::listen::{Listener, Stream};
use super::refusal::Refusal;

/// Most bytes read from one socket before the others have their turn.
const SCRATCH: usize = 64 * 1024;

/// Most connections accepted from one listener before those already here have their turn.
const ACCEPT_BATCH: usize = 64;

/// Evictions and accept errors are logged at most this often.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Everything the gate's thread owns.
pub struct Hall {
    listeners: Vec<Listener>,
    limits: Limits,
    behind: Behind,
    /// Reads its end when the gate is to stop.
    wakened: UnixStream,
    /// By number of arrival, so that the order of the map is the order of arrival.
    guests: BTreeMap<u64, Guest>,
    arrivals: u64,
    waiting: VecDeque<(u64, Lane)>,
    exchanges: Vec<Option<Exchange>>,
    begun: u64,
    /// No accepting before this moment.
    paused: Option<Instant>,
    /// When a stopping hall closes, finished or not.
    closing: Option<Instant>,
    evicted: Tally,
    accept_errors: Tally,
    scratch: Box<[u8]>,
}

/// Whose socket a `poll` entry is.
#[derive(Clone, Copy)]
enum Who {
    Waker,
    Listener(usize),
    Guest(u64),
    Exchange(usize),
}

impl Hall {
    pub fn new(
        listeners: Vec<Listener>,
        limits: Limits,
        behind: Behind,
        wakened: UnixStream,
    ) -> Self {
        let exchanges = (0..limits.exchanges.max(1)).map(|_| None).collect();
        Self {
            listeners,
            limits,
            behind,
            wakened,
            guests: BTreeMap::new(),
            arrivals: 0,
            waiting: VecDeque::new(),
            exchanges,
            begun: 0,
            paused: None,
            closing: None,
            evicted: Tally::default(),
            accept_errors: Tally::default(),
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
                    Who::Listener(number) => self.accept(number, now),
                    Who::Guest(id) => self.guest_ready(id, flags, now),
                    Who::Exchange(slot) => self.exchange_ready(slot, flags, now),
                }
            }
            self.expire(now);
            self.dispatch(now);
            self.make_room_in_memory(now);
            if let Some(count) = self.evicted.due(now) {
                log::warn!("http: {count} slow or idle connections were closed to make room");
            }
            if let Some(end) = self.closing {
                let busy = self.guests.values().any(Guest::is_served);
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
        if self.paused.is_none_or(|until| now >= until) {
            for (number, listener) in self.listeners.iter().enumerate() {
                whose.push(Who::Listener(number));
                sockets.push(PollFd::new(listener, PollFlags::IN));
            }
        }
        // With no memory left, large answers are read one after another: the oldest always gets on, and so all do.
        let held = self.held_for_guests()
            + self
                .exchanges
                .iter()
                .flatten()
                .map(Exchange::held)
                .sum::<usize>();
        let oldest = self
            .exchanges
            .iter()
            .flatten()
            .map(|exchange| exchange.number)
            .min();
        for (slot, exchange) in self.exchanges.iter().enumerate() {
            if let Some(exchange) = exchange {
                let short = held > self.limits.buffered && Some(exchange.number) != oldest;
                whose.push(Who::Exchange(slot));
                sockets.push(PollFd::new(exchange, exchange.wants(short)));
            }
        }
        for (id, guest) in &self.guests {
            whose.push(Who::Guest(*id));
            sockets.push(PollFd::new(guest, guest.wants()));
        }
        let deadlines = self.guests.values().filter_map(Guest::deadline);
        let next = deadlines
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
            self.guests
                .values()
                .filter(|guest| guest.listener == number)
                .count()
        };
        let crowded = if crowd(number) >= self.limits.connections_per_listener {
            Some(number)
        } else if self.guests.len() >= self.limits.connections {
            // The listener with the most guests makes room for the others.
            (0..self.listeners.len()).max_by_key(|number| crowd(*number))
        } else {
            None
        };
        if crowded.is_some() && !self.evict(crowded) {
            let _ = stream.write(&Refusal::BUSY.to_bytes());
            return;
        }
        let Some(origin) = self.listeners.get(number).map(Listener::origin) else {
            return;
        };
        let id = self.arrivals;
        self.arrivals += 1;
        self.guests
            .insert(id, Guest::new(stream, origin, number, &self.limits, now));
        // Most clients have sent their request by now: read it before anybody can be evicted for having none.
        self.guest_ready(id, PollFlags::IN, now);
    }

    /// Closes the connection that is worth least, of one listener or of all. False when all are being served.
    fn evict(&mut self, listener: Option<usize>) -> bool {
        let candidates = self
            .guests
            .iter()
            .filter(|(_, guest)| listener.is_none_or(|number| guest.listener == number));
        let least = candidates
            .filter_map(|(id, guest)| Some((guest.worth()?, *id)))
            .min();
        let Some(guest) = least.and_then(|(_, id)| self.guests.remove(&id)) else {
            return false;
        };
        guest.dismiss(Refusal::BUSY);
        self.evicted.count += 1;
        true
    }

    fn guest_ready(&mut self, id: u64, flags: PollFlags, now: Instant) {
        if let Some(guest) = self.guests.get_mut(&id) {
            let step = guest.ready(flags, &mut self.scratch, &self.limits, now);
            self.follow(id, step, now);
        }
    }

    fn follow(&mut self, id: u64, step: Step, now: Instant) {
        match step {
            Step::Stay => {}
            Step::Gone => {
                self.guests.remove(&id);
                self.waiting.retain(|(waiting, _)| *waiting != id);
            }
            Step::Complete if self.closing.is_some() => self.refuse(id, Refusal::STOPPING, now),
            Step::Complete => {
                let lane = self.guests.get(&id).map(|guest| guest.lane(&self.limits));
                let lane = lane.unwrap_or_default();
                if !self.has_place(lane) {
                    // Many came in this round, and handlers may be free.
                    self.dispatch(now);
                }
                if self.has_place(lane) {
                    self.waiting.push_back((id, lane));
                } else {
                    self.refuse(id, Refusal::BUSY, now);
                }
            }
        }
    }

    fn has_place(&self, lane: Lane) -> bool {
        let waiting: Traffic = self.waiting.iter().map(|(_, lane)| *lane).collect();
        waiting.has_place(lane, &self.limits)
    }

    fn refuse(&mut self, id: u64, refusal: Refusal, now: Instant) {
        self.waiting.retain(|(waiting, _)| *waiting != id);
        if let Some(guest) = self.guests.get_mut(&id) {
            let step = guest.refuse(refusal, &self.limits, now);
            self.follow(id, step, now);
        }
    }

    /// Hands waiting requests to free handlers, in order of arrival; what has to wait for its lane is passed.
    fn dispatch(&mut self, now: Instant) {
        while let Some(slot) = self.exchanges.iter().position(Option::is_none) {
            let traffic: Traffic = self.exchanges.iter().flatten().map(|e| e.lane).collect();
            let next = self
                .waiting
                .iter()
                .position(|(_, lane)| traffic.lets_through(*lane, &self.limits));
            let Some((id, lane)) = next.and_then(|next| self.waiting.remove(next)) else {
                return;
            };
            let Some(request) = self.guests.get_mut(&id).and_then(Guest::take_request) else {
                continue;
            };
            let number = self.begun;
            self.begun += 1;
            match Exchange::begin(&self.behind, number, (id, lane), &request) {
                Ok(exchange) => self.exchanges[slot] = Some(exchange),
                Err(error) => {
                    if matches!(
                        error.kind(),
                        ErrorKind::ConnectionRefused | ErrorKind::NotFound
                    ) {
                        let _ = self
                            .behind
                            .broken
                            .try_send(format!("the request handlers are gone: {error}"));
                    }
                    self.refuse(id, Refusal::BUSY, now);
                }
            }
        }
    }

    fn exchange_ready(&mut self, slot: usize, flags: PollFlags, now: Instant) {
        let Some(exchange) = self.exchanges[slot].as_mut() else {
            return;
        };
        if !exchange.ready(flags, &mut self.scratch) {
            return;
        }
        let Some(exchange) = self.exchanges[slot].take() else {
            return;
        };
        let id = exchange.guest;
        if let Some(guest) = self.guests.get_mut(&id) {
            let close = guest.closes(&self.limits) || self.closing.is_some();
            let answer = exchange.finish(close, guest.is_bodiless());
            let step = guest.answer(answer, close, &self.limits, now);
            self.follow(id, step, now);
        }
    }

    fn expire(&mut self, now: Instant) {
        let is_due = |guest: &Guest| guest.deadline().is_some_and(|deadline| now >= deadline);
        let due: Vec<u64> = self
            .guests
            .iter()
            .filter(|(_, guest)| is_due(guest))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            if let Some(guest) = self.guests.get_mut(&id) {
                let step = guest.expire(&self.limits, now);
                self.waiting.retain(|(waiting, _)| *waiting != id);
                self.follow(id, step, now);
            }
        }
    }

    /// Keeps the bytes held for clients under [`Limits::buffered`]. First those go who are slow and hold more than
    /// a head, then the latest of those who wait. Answers still being read are held back in [`Hall::wait`].
    fn make_room_in_memory(&mut self, now: Instant) {
        while self.held_for_guests() > self.limits.buffered {
            let large = self
                .guests
                .iter()
                .filter(|(_, guest)| guest.held() > 2 * MAX_HEAD);
            let least = large
                .filter_map(|(id, guest)| Some((guest.worth()?, *id)))
                .min();
            if let Some(guest) = least.and_then(|(_, id)| self.guests.remove(&id)) {
                guest.dismiss(Refusal::BUSY);
                self.evicted.count += 1;
            } else if let Some((id, _)) = self.waiting.back().copied() {
                self.refuse(id, Refusal::BUSY, now);
            } else {
                return;
            }
        }
    }

    fn held_for_guests(&self) -> usize {
        self.guests.values().map(Guest::held).sum()
    }

    /// Closes the listeners, drops idle clients, and gives those being served a little time.
    fn begin_to_stop(&mut self, now: Instant) {
        self.closing = Some(now + self.limits.stop);
        self.listeners.clear();
        for (id, _) in std::mem::take(&mut self.waiting) {
            self.refuse(id, Refusal::STOPPING, now);
        }
        let idle: Vec<u64> = self
            .guests
            .iter()
            .filter(|(_, guest)| !guest.is_served())
            .map(|(id, _)| *id)
            .collect();
        for guest in idle.iter().filter_map(|id| self.guests.remove(id)) {
            guest.dismiss(Refusal::STOPPING);
        }
    }
}

/// Counts what may happen thousands of times a second, to say it once a minute.
#[derive(Default)]
struct Tally {
    count: u64,
    reported: Option<Instant>,
}

impl Tally {
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
