//! A job that has not ended, as those see it who have not got it: how far it is, and how it is asked to end.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde_json::Value;

use super::record::JobRecord;
use crate::counters::{COUNTERS, add};
use crate::ids::{EventId, JobId};

/// Events that a job remembers of those that it removed.
const MOST_REMEMBERED: usize = 20;

/// What stops a statement that is running now.
pub type Interrupt = Box<dyn Fn() + Send>;

/// A job that has not ended, as others see it.
pub struct RunningJob {
    /// Its id.
    pub id: JobId,
    /// Its kind, as the ledger has it.
    pub kind: String,
    /// As it was accepted.
    pub(super) record: JobRecord,
    pub(super) cancelled: AtomicBool,
    pub(super) paused: AtomicBool,
    has_removed: AtomicBool,
    remembered: Mutex<Remembered>,
    pub(super) reached_cleanup: AtomicBool,
    interrupt: Mutex<Option<Interrupt>>,
    progress: Mutex<Value>,
    /// Events and rows removed that are in the counters already, or were removed before this process took the job up.
    counted: Mutex<(u64, u64)>,
}

/// Some of the events that went.
#[derive(Default)]
struct Remembered {
    /// Of the transaction that has not committed yet.
    going: Vec<EventId>,
    gone: Vec<EventId>,
    /// How many there were to remember.
    seen: usize,
}

/// Events and rows that a job has removed, as its progress tells them.
fn removed_by(progress: &Value) -> (u64, u64) {
    let events = progress.get("events_deleted").and_then(Value::as_u64);
    let rows = progress.get("rows_removed").and_then(Value::as_object);
    let rows = rows.map_or(0, |rows| rows.values().filter_map(Value::as_u64).sum());
    (events.unwrap_or(0), rows)
}

impl RunningJob {
    /// A job that begins, or is taken up again.
    pub(super) fn of(record: &JobRecord) -> Self {
        Self {
            id: record.id.clone(),
            kind: record.kind.clone(),
            record: record.clone(),
            cancelled: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            has_removed: AtomicBool::new(false),
            remembered: Mutex::default(),
            reached_cleanup: AtomicBool::new(false),
            interrupt: Mutex::new(None),
            progress: Mutex::new(record.progress.clone()),
            counted: Mutex::new(removed_by(&record.progress)),
        }
    }

    /// Whether somebody asked for the job to end.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Whether somebody asked for it to be left where it is.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Whether it has noted something that it removed (S-30).
    pub fn has_removed(&self) -> bool {
        self.has_removed.load(Ordering::SeqCst)
    }

    /// It has.
    pub fn set_has_removed(&self) {
        self.has_removed.store(true, Ordering::SeqCst);
    }

    /// What its transaction is about to remove, if it commits: some of it.
    pub fn set_removing(&self, events: Vec<EventId>) {
        self.remembered.lock().going = events;
    }

    /// It has committed. Of many transactions those are remembered that came first, and last.
    pub fn remember_removed(&self) {
        let mut all = self.remembered.lock();
        for event in std::mem::take(&mut all.going) {
            match all.gone.len() < MOST_REMEMBERED {
                true => all.gone.push(event),
                false => {
                    let half = MOST_REMEMBERED / 2;
                    let at = half + all.seen % half;
                    all.gone[at] = event;
                }
            }
            all.seen += 1;
        }
    }

    /// Some of the events that it removed since this process took it up.
    pub fn remembered(&self) -> Vec<EventId> {
        self.remembered.lock().gone.clone()
    }

    /// Says by what the job's present statement can be stopped; `None` while it must not be.
    pub fn set_interrupt(&self, interrupt: Option<Interrupt>) {
        *self.interrupt.lock() = interrupt;
    }

    /// Stops the present statement, if it may be stopped.
    pub fn interrupt(&self) {
        if let Some(interrupt) = &*self.interrupt.lock() {
            interrupt();
        }
    }

    /// Publishes how far the job is.
    pub fn set_progress(&self, progress: Value) {
        self.count_what_is_removed(&progress);
        *self.progress.lock() = progress;
    }

    /// Adds what has been removed since it was counted last to the counters of this process.
    pub(super) fn count_what_is_removed(&self, progress: &Value) {
        let mut counted = self.counted.lock();
        let now = removed_by(progress);
        let (events, rows) = (
            now.0.saturating_sub(counted.0),
            now.1.saturating_sub(counted.1),
        );
        if events > 0 || rows > 0 {
            add(&COUNTERS.events_removed, (&self.kind, ""), events);
            add(&COUNTERS.rows_removed, (&self.kind, ""), rows);
            *counted = (now.0.max(counted.0), now.1.max(counted.1));
        }
    }

    /// How far the job is.
    pub fn progress(&self) -> Value {
        self.progress.lock().clone()
    }
}
