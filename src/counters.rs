//! What this process has counted since it began: for whoever watches it. Numbers alone, and nothing that rooms or people say.
//!
//! They are the process's and no keeper's, as metrics are: what is counted deep down, at every transaction, needs no handle
//! for it. Each is one atomic, or a small map behind a lock that is held for an addition.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// The counters of this process.
pub static COUNTERS: Counters = Counters::new();

/// Upper bounds of a histogram's buckets, in seconds. One more bucket has what is longer.
pub const BOUNDS: [f64; 12] = [
    0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0,
];

/// What somebody waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Others who write into the database.
    Database,
    /// Readers and jobs of ours on the same room.
    Room,
    /// The homeserver's own lock on a room.
    Homeserver,
}

impl Wait {
    /// All of them, with their names.
    pub const ALL: [(Self, &str); 3] = [
        (Self::Database, "database"),
        (Self::Room, "room"),
        (Self::Homeserver, "homeserver"),
    ];
}

/// What is counted by two words, such as a kind of job and how it ended.
pub type Labelled = Mutex<BTreeMap<(String, String), u64>>;

/// See [`COUNTERS`].
pub struct Counters {
    /// Write transactions on the homeserver's database, from their begin to their end.
    pub transactions: Histogram,
    waits: [Histogram; 3],
    /// Events deleted, by kind of job; the second word is empty.
    pub events_removed: Labelled,
    /// Rows deleted, by kind of job; the second word is empty.
    pub rows_removed: Labelled,
    /// Jobs that ended, by kind and the code of their error; an empty code is a good end.
    pub jobs_ended: Labelled,
    /// Requests answered, by class and status.
    pub requests: Labelled,
    /// How long handlers had them.
    pub request_time: Histogram,
    /// Refusals, by their code.
    pub request_errors: Labelled,
    /// Clients turned away before a handler saw them, by status; the second word is empty.
    pub turned_away: Labelled,
    /// Requests that wait for a handler now.
    pub requests_waiting: AtomicU64,
    /// Connections that are open now.
    pub connections: AtomicU64,
}

impl Counters {
    const fn new() -> Self {
        Self {
            transactions: Histogram::new(),
            waits: [Histogram::new(), Histogram::new(), Histogram::new()],
            events_removed: Labelled::new(BTreeMap::new()),
            rows_removed: Labelled::new(BTreeMap::new()),
            jobs_ended: Labelled::new(BTreeMap::new()),
            requests: Labelled::new(BTreeMap::new()),
            request_time: Histogram::new(),
            request_errors: Labelled::new(BTreeMap::new()),
            turned_away: Labelled::new(BTreeMap::new()),
            requests_waiting: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        }
    }

    /// How long was waited for one of these.
    pub fn wait(&self, what: Wait) -> &Histogram {
        match what {
            Wait::Database => &self.waits[0],
            Wait::Room => &self.waits[1],
            Wait::Homeserver => &self.waits[2],
        }
    }
}

/// Adds to what is counted by two words.
pub fn add(to: &Labelled, words: (&str, &str), count: u64) {
    let mut map = to.lock();
    match map.get_mut(&(words.0.to_owned(), words.1.to_owned())) {
        Some(sum) => *sum = sum.saturating_add(count),
        None => {
            map.insert((words.0.to_owned(), words.1.to_owned()), count);
        }
    }
}

/// How often something took how long.
pub struct Histogram {
    counts: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

/// A histogram at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// How many there were in each bucket, that of the longest last; not summed up.
    pub counts: [u64; BOUNDS.len() + 1],
    /// Seconds of all.
    pub sum: f64,
}

impl Observed {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

impl Histogram {
    const fn new() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; BOUNDS.len() + 1],
            micros: AtomicU64::new(0),
        }
    }

    /// Once more something took this long.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound);
        self.counts[bucket.unwrap_or(BOUNDS.len())].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// As it is now.
    pub fn read(&self) -> Observed {
        let mut counts = [0; BOUNDS.len() + 1];
        for (count, now) in counts.iter_mut().zip(&self.counts) {
            *count = now.load(Ordering::Relaxed);
        }
        Observed {
            counts,
            sum: self.micros.load(Ordering::Relaxed) as f64 / 1e6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_as_long_as_a_bound_is_in_its_bucket_and_what_takes_longer_than_all_in_the_last() {
        let histogram = Histogram::new();
        for millis in [0, 1, 2, 300_000, 300_001] {
            histogram.observe(Duration::from_millis(millis));
        }
        let seen = histogram.read();
        assert_eq!(seen.counts[..3], [2, 1, 0]);
        assert_eq!(seen.counts[BOUNDS.len() - 1..], [1, 1]);
        assert_eq!(seen.count(), 5);
        assert!((seen.sum - 600.004).abs() < 1e-6);
    }

    #[test]
    fn what_has_words_is_summed_for_each_of_them() {
        let labelled = Labelled::default();
        add(&labelled, ("a", ""), 2);
        add(&labelled, ("a", ""), 3);
        add(&labelled, ("a", "b"), 1);
        let map = labelled.lock();
        assert_eq!(map[&("a".to_owned(), String::new())], 5);
        assert_eq!(map.len(), 2);
    }
}
