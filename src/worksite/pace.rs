//! How much one transaction does, and how long the database rests before the next.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::stride::StrideBounds;

/// Whether somebody waits for the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gait {
    /// The homeserver is stopped: long strides, no rests.
    Offline,
    /// Beside a running homeserver: strides bounded in time, and a rest after each.
    Beside,
}

/// Write-ahead log that one offline stride aims at; a quarter of the 1 GiB that it must never exceed, because
/// the next stride can cost four times what this one told.
const WAL_AIM: u64 = 256 * 1024 * 1024;

/// Time that one stride aims at on a stopped homeserver's PostgreSQL server: its locks hold nobody up, but what it did
/// is lost when it is interrupted.
const SERVER_AIM: Duration = Duration::from_secs(4);

/// Events of the first stride offline; it tells how much log an event costs in this database.
const FIRST_OFFLINE: i64 = 10_000;

/// Events of the first stride beside a live server.
const FIRST_BESIDE: i64 = 250;

/// The same on a PostgreSQL server, where more events cost little more.
const FIRST_BESIDE_ON_SERVER: i64 = 1_000;

/// Fewest events of a stride: below this the fixed cost of a stride is all there is.
const FEWEST: i64 = 50;

/// The length of the next stride, learnt from the last.
#[derive(Clone, Debug)]
pub struct Pace {
    gait: Gait,
    bounds: StrideBounds,
    on_server: bool,
    events: i64,
}

impl Pace {
    /// The pace at which a job starts.
    pub fn new(gait: Gait, bounds: StrideBounds) -> Self {
        let events = match gait {
            Gait::Offline => FIRST_OFFLINE.min(bounds.events_offline),
            Gait::Beside => FIRST_BESIDE.min(bounds.events),
        };
        Self {
            gait,
            bounds,
            on_server: false,
            events,
        }
    }

    /// The same on a PostgreSQL server, where strides hold up nobody but those who want the same rows, so that offline
    /// they are bounded in time instead of in log.
    pub fn on_server(mut self, on_server: bool) -> Self {
        self.on_server = on_server;
        if on_server && self.gait == Gait::Beside {
            self.events = FIRST_BESIDE_ON_SERVER.min(self.bounds.events);
        }
        self
    }

    /// The gait.
    pub fn gait(&self) -> Gait {
        self.gait
    }

    /// Events the next stride should take.
    pub fn events(&self) -> i64 {
        self.events
    }

    /// Learns from a stride: what it dealt with, how long it held the write lock, how large the log became.
    pub fn learn(&mut self, events: i64, took: Duration, wal_bytes: u64) {
        let events = events.max(1);
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
        let (aim, spent, most) = match self.gait {
            Gait::Offline if self.on_server => {
                (millis(SERVER_AIM), millis(took), self.bounds.events_offline)
            }
            Gait::Offline => (WAL_AIM, wal_bytes.max(1), self.bounds.events_offline),
            Gait::Beside => {
                // Less than the bound, so that most strides keep it. A file has one writer, and who waits for it waits
                // longer than for a few rows.
                let share = if self.on_server { 90 } else { 75 };
                let aim = u64::try_from(self.bounds.millis).unwrap_or(1) * share / 100;
                (aim, millis(took), self.bounds.events)
            }
        };
        let fitting = (events as f64 * (aim as f64 / spent as f64)) as i64;
        // Grow by steps: the first strides of a room may be lighter than the next.
        self.events = fitting
            .min(self.events.saturating_mul(2))
            .clamp(FEWEST.min(most), most);
    }

    /// A stride took too long and was rolled back: try a quarter of it.
    pub fn shorten(&mut self) {
        self.events = (self.events / 4).max(1);
    }

    /// How long a stride may go on before it is rolled back, if there is a limit.
    pub fn deadline(&self) -> Option<Duration> {
        match self.gait {
            Gait::Offline => None,
            Gait::Beside => Some(
                Duration::from_millis(u64::try_from(self.bounds.millis).unwrap_or(500)) * 3 / 2,
            ),
        }
    }

    /// The rest that others are owed after a stride.
    pub fn rest(&self) -> Duration {
        match self.gait {
            Gait::Offline => Duration::ZERO,
            Gait::Beside => self.bounds.rest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_beside_a_server_settle_below_their_time() {
        let mut pace = Pace::new(Gait::Beside, StrideBounds::default());
        for _ in 0..20 {
            // A machine that deals with two events a millisecond.
            let took = Duration::from_millis(u64::try_from(pace.events() / 2).expect("positive"));
            pace.learn(pace.events(), took, 0);
            assert!(pace.events() <= 5_000);
        }
        assert!((700..=760).contains(&pace.events()), "{}", pace.events());
        pace.shorten();
        assert!(pace.events() < 200);
    }

    #[test]
    fn offline_strides_settle_below_their_log() {
        let mut pace = Pace::new(Gait::Offline, StrideBounds::default());
        for _ in 0..20 {
            pace.learn(
                pace.events(),
                Duration::ZERO,
                u64::try_from(pace.events()).expect("positive") * 4096,
            );
        }
        assert!(u64::try_from(pace.events()).expect("positive") * 4096 <= WAL_AIM + 4096);
        assert_eq!(pace.rest(), Duration::ZERO);
    }
}
