//! Bounds of one transaction; the configuration sets them, the purge keeps them.

use std::time::Duration;

/// Rest between strides beside a live server. SQLite polls a busy lock every 100 ms at the longest; with a rest
/// of 110 ms a waiting writer waited at most 0.53 s, with 20 ms up to 2.3 s.
pub const REST: Duration = Duration::from_millis(120);

/// No offline stride is longer: its work list is held in memory.
pub const MOST_OFFLINE: i64 = 400_000;

/// Whether a purge may be one transaction that refills the large tables with what stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leap {
    /// Strides row by row, always.
    Never,
    /// Where most of the database goes and what stays is small.
    WhereCheaper,
    /// Wherever it is safe.
    WherePossible,
}

/// Bounds of strides: beside a live server those of the configuration (`stride: {events, millis}`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StrideBounds {
    /// Most events of one transaction.
    pub events: i64,
    /// How long one transaction should take.
    pub millis: i64,
    /// How long the database rests after each.
    pub rest: Duration,
    /// Most events of one transaction when nobody waits.
    pub events_offline: i64,
    /// Whether a purge may be one leap when nobody waits.
    pub leap: Leap,
    /// On a PostgreSQL server: whether foreign keys are looked after in sets where the role may switch off triggers.
    pub keys_in_sets: bool,
}

impl Default for StrideBounds {
    fn default() -> Self {
        Self {
            events: 5_000,
            millis: 500,
            rest: REST,
            events_offline: MOST_OFFLINE,
            leap: Leap::WhereCheaper,
            keys_in_sets: true,
        }
    }
}

impl StrideBounds {
    /// The same on a PostgreSQL server. There a stride holds up only who wants the same rows, so nobody is owed a rest;
    /// and it looks into every index all over, which costs as much for few events as for many.
    pub fn on_server() -> Self {
        Self {
            events: 50_000,
            millis: 650,
            rest: Duration::ZERO,
            ..Self::default()
        }
    }
}
