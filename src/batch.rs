//! Bounds of one transaction; the configuration sets them, the purge keeps them.

use std::time::Duration;

/// Pause between batches beside a live server. SQLite polls a busy lock every 100 ms at the longest; with a pause
/// of 110 ms a waiting writer waited at most 0.53 s, with 20 ms up to 2.3 s.
pub const PAUSE: Duration = Duration::from_millis(120);

/// No offline batch is longer: its work list is held in memory.
pub const MOST_OFFLINE: i64 = 400_000;

/// Whether a purge may be one transaction that refills the large tables with what stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewrite {
    /// Batches row by row, always.
    Never,
    /// Where most of the database goes and what stays is small.
    WhereCheaper,
    /// Wherever it is safe.
    WherePossible,
}

/// Bounds of batches: beside a live server those of the configuration (`batch: {events, millis}`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Most events of one transaction.
    pub events: i64,
    /// How long one transaction should take.
    pub millis: i64,
    /// How long the job pauses after each.
    pub pause: Duration,
    /// Most events of one transaction when nobody waits.
    pub events_offline: i64,
    /// Whether a purge may be one rewrite when nobody waits.
    pub rewrite: Rewrite,
    /// Most rooms that go in one transaction, where many small ones are to be purged.
    pub rooms: usize,
    /// On a PostgreSQL server: whether foreign keys are looked after in sets where the role may switch off triggers.
    pub check_in_bulk: bool,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self {
            events: 5_000,
            millis: 500,
            pause: PAUSE,
            events_offline: MOST_OFFLINE,
            rewrite: Rewrite::WhereCheaper,
            rooms: 250,
            check_in_bulk: true,
        }
    }
}

impl BatchLimits {
    /// The same on a PostgreSQL server. There a batch holds up only who wants the same rows, so nobody needs a pause;
    /// and it looks into every index all over, which costs as much for few events as for many.
    pub fn on_server() -> Self {
        Self {
            events: 50_000,
            millis: 650,
            pause: Duration::ZERO,
            ..Self::default()
        }
    }
}
