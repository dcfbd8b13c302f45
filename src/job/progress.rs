//! How far a job is, as the ledger keeps it and HTTP shows it.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::jobs::ledger::JobRecord;
use crate::store::event_rows::{RowCounts, add_all};

/// What a job is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waiting for a worker.
    #[default]
    Queued,
    /// Counting what there is to do.
    Counting,
    /// Moving the people out of a room that is deleted.
    ShuttingDown,
    /// Removing events.
    Events,
    /// Removing state groups that nothing refers to any more.
    StateGroups,
    /// Removing media that nothing refers to any more.
    Media,
    /// Overwriting what was deleted: merging the full-text index, emptying the log.
    Tidying,
    /// Over.
    Done,
}

/// How far a job is, and what it has done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// The table being worked on, in a batch that takes long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// Events of the timeline below the point, when it began.
    pub events_planned: i64,
    /// Of these, events dealt with.
    pub events_done: i64,
    /// Events deleted.
    pub events_deleted: i64,
    /// Messages of local users that left the timeline and stay in the database, where nobody sees them any more (P-56).
    #[serde(skip_serializing_if = "is_zero")]
    pub local_messages_kept: i64,
    /// Forward extremities below the point that stay with their events, because a homeserver ran beside us (P-51).
    #[serde(skip_serializing_if = "is_zero")]
    pub extremities_kept: i64,
    /// Rows removed, by table.
    pub rows_removed: RowCounts,
    /// State groups removed.
    pub state_groups_freed: i64,
    /// State groups left to the running homeserver, which deletes them ten minutes later (P-41).
    pub state_groups_marked: i64,
    /// Transactions so far.
    #[serde(rename = "strides")]
    pub batches: i64,
    /// Whether the large tables were refilled with what stays instead of deleted from.
    #[serde(rename = "leapt")]
    pub rewritten: bool,
    /// The longest time that others could not write, in milliseconds.
    pub longest_transaction_ms: i64,
    /// Events a second, since this process took the job up.
    pub events_per_second: i64,
    /// Seconds left at that rate; only while events are removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<i64>,
    /// Bytes of the database file that hold nothing any more, and that `reclaim` would give back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reclaimable_bytes: Option<u64>,
    /// What a person should know: work left undone on purpose, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What this kind of job has to tell besides.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// Notes of parts that are told: each room may have others.
const MOST_NOTES: usize = 20;

/// Whether there is nothing to tell.
fn is_zero(n: &i64) -> bool {
    *n == 0
}

impl Progress {
    /// How far a job is, or what it did, as its record says.
    pub fn of(job: &JobRecord) -> Self {
        serde_json::from_value(job.progress.clone()).unwrap_or_default()
    }

    /// Adds the rows of one transaction.
    pub fn add_rows(&mut self, rows: &RowCounts) {
        add_all(&mut self.rows_removed, rows);
        self.events_deleted = self.rows_removed.get("events").copied().unwrap_or(0);
    }

    /// Adds what a part of the job did that was a job of its own.
    pub fn add_part(&mut self, part: &Self) {
        self.batches += part.batches;
        self.local_messages_kept += part.local_messages_kept;
        self.extremities_kept += part.extremities_kept;
        self.state_groups_freed += part.state_groups_freed;
        self.state_groups_marked += part.state_groups_marked;
        self.longest_transaction_ms = self.longest_transaction_ms.max(part.longest_transaction_ms);
        self.add_rows(&part.rows_removed);
        for note in &part.notes {
            if self.notes.len() < MOST_NOTES && !self.notes.contains(note) {
                self.notes.push(note.clone());
            }
        }
    }

    /// Works out how fast it goes and how long it will take; `done_before` events were dealt with before `started`.
    pub fn reckon(&mut self, started: Instant, done_before: i64) {
        let seconds = started.elapsed().as_secs_f64().max(0.001);
        let rate = (self.events_done - done_before) as f64 / seconds;
        self.events_per_second = rate as i64;
        let left = self.events_planned - self.events_done;
        self.seconds_left = (rate > 0.0).then_some((left as f64 / rate).ceil() as i64);
    }
}
