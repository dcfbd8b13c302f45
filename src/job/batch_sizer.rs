//! How much one transaction does, and how long the database rests before the next.

use std::time::Duration;

use crate::batch::BatchLimits;

/// Whether a homeserver runs on the database, so that somebody waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerState {
    /// The homeserver is stopped: long batches, no rests.
    Stopped,
    /// Beside a running homeserver: batches bounded in time, and a pause after each.
    Running,
}

/// Write-ahead log that one offline batch aims at; a quarter of the 1 GiB that it must never exceed, because
/// the next batch can cost four times what this one told.
const WAL_AIM: u64 = 256 * 1024 * 1024;

/// Time that one batch aims at on a stopped homeserver's PostgreSQL server: its locks hold nobody up, but what it did
/// is lost when it is interrupted.
const SERVER_AIM: Duration = Duration::from_secs(4);

/// Events of the first batch offline; it tells how much log an event costs in this database.
const FIRST_OFFLINE: i64 = 10_000;

/// Events of the first batch beside a live server.
const FIRST_BESIDE: i64 = 250;

/// The same on a PostgreSQL server, where more events cost little more.
const FIRST_BESIDE_ON_SERVER: i64 = 1_000;

/// Fewest events of a batch: below this the fixed cost of a batch is all there is.
const FEWEST: i64 = 50;

/// The length of the next batch, learnt from the last.
#[derive(Clone, Debug)]
pub struct BatchSizer {
    server_state: ServerState,
    limits: BatchLimits,
    on_server: bool,
    events: i64,
    /// What the disk has room for.
    most: i64,
}

impl BatchSizer {
    /// The sizer that a job starts with.
    pub fn new(server_state: ServerState, limits: BatchLimits) -> Self {
        let events = match server_state {
            ServerState::Stopped => FIRST_OFFLINE.min(limits.events_offline),
            ServerState::Running => FIRST_BESIDE.min(limits.events),
        };
        Self {
            server_state,
            limits,
            on_server: false,
            events,
            most: i64::MAX,
        }
    }

    /// The same on a PostgreSQL server, where batches hold up nobody but those who want the same rows, so that offline
    /// they are bounded in time instead of in log.
    pub fn on_server(mut self, on_server: bool) -> Self {
        self.on_server = on_server;
        if on_server && self.server_state == ServerState::Running {
            self.events = FIRST_BESIDE_ON_SERVER.min(self.limits.events);
        }
        self
    }

    /// Whether a homeserver runs.
    pub fn server_state(&self) -> ServerState {
        self.server_state
    }

    /// Events the next batch should take.
    pub fn events(&self) -> i64 {
        self.events.min(self.most)
    }

    /// Bounds the next batch by what the disk has room for.
    pub fn set_limit(&mut self, events: i64) {
        self.most = events.max(1);
    }

    /// Whether the disk has less room than the next batch should take.
    pub fn is_limited(&self) -> bool {
        self.most < self.events
    }

    /// Learns from a batch: what it dealt with, how long it held the write lock, how large the log became.
    pub fn observe(&mut self, events: i64, took: Duration, wal_bytes: u64) {
        let events = events.max(1);
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
        let (aim, spent, most) = match self.server_state {
            ServerState::Stopped if self.on_server => {
                (millis(SERVER_AIM), millis(took), self.limits.events_offline)
            }
            ServerState::Stopped => (WAL_AIM, wal_bytes.max(1), self.limits.events_offline),
            ServerState::Running => {
                // Less than the bound, so that most batches keep it. A file has one writer, and who waits for it waits
                // longer than for a few rows.
                let share = if self.on_server { 90 } else { 75 };
                let aim = u64::try_from(self.limits.millis).unwrap_or(1) * share / 100;
                (aim, millis(took), self.limits.events)
            }
        };
        let fitting = (events as f64 * (aim as f64 / spent as f64)) as i64;
        // Grow by steps: the first batches of a room may be lighter than the next.
        self.events = fitting
            .min(self.events.saturating_mul(2))
            .clamp(FEWEST.min(most), most);
    }

    /// A batch took too long and was rolled back: try a quarter of it.
    pub fn shrink(&mut self) {
        self.events = (self.events() / 4).max(1);
    }

    /// How long a batch may go on before it is rolled back, if there is a limit.
    pub fn deadline(&self) -> Option<Duration> {
        match self.server_state {
            ServerState::Stopped => None,
            ServerState::Running => Some(
                Duration::from_millis(u64::try_from(self.limits.millis).unwrap_or(500)) * 3 / 2,
            ),
        }
    }

    /// The pause that others are owed after a batch.
    pub fn pause(&self) -> Duration {
        match self.server_state {
            ServerState::Stopped => Duration::ZERO,
            ServerState::Running => self.limits.pause,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_beside_a_server_settle_below_their_time() {
        let mut sizer = BatchSizer::new(ServerState::Running, BatchLimits::default());
        for _ in 0..20 {
            // A machine that deals with two events a millisecond.
            let took = Duration::from_millis(u64::try_from(sizer.events() / 2).expect("positive"));
            sizer.observe(sizer.events(), took, 0);
            assert!(sizer.events() <= 5_000);
        }
        assert!((700..=760).contains(&sizer.events()), "{}", sizer.events());
        sizer.shrink();
        assert!(sizer.events() < 200);
    }

    #[test]
    fn offline_batches_settle_below_their_log() {
        let mut sizer = BatchSizer::new(ServerState::Stopped, BatchLimits::default());
        for _ in 0..20 {
            sizer.observe(
                sizer.events(),
                Duration::ZERO,
                u64::try_from(sizer.events()).expect("positive") * 4096,
            );
        }
        assert!(u64::try_from(sizer.events()).expect("positive") * 4096 <= WAL_AIM + 4096);
        assert_eq!(sizer.pause(), Duration::ZERO);
    }
}
