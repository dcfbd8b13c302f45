//! What jobs of many rooms share, be they retention runs or sets: how long they go on, how they end, and what they say of
//! rooms that failed.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::Sender;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Shared, end_early};
use crate::error::Error;
use crate::ids::RoomId;
use crate::job::{Progress, clean_up};
use crate::jobs::register::{JobGuard, RunningJob};
use crate::plural::count;

/// Most events of a batch, unless one room has more: for each batch the full-text index is walked once, and what it
/// says of them is held in memory.
pub(super) const BATCH_EVENTS: i64 = 200_000;

/// How often such a job looks up from waiting: for a wish to stop, and to say how far it is.
pub(super) const LOOK_UP_EVERY: Duration = Duration::from_millis(100);

/// How many rooms are named in the record of such a job, of those that failed and of those that were left alone.
const ROOMS_TOLD: usize = 100;

/// A room that could not be done, or was left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomError {
    /// The room.
    pub room_id: RoomId,
    /// Why.
    pub error: String,
    /// The same for programs, by [`Error::code`]; empty in records that are older.
    #[serde(default)]
    pub error_code: String,
}

/// Why a room could not be done: in a sentence, and the same for programs.
pub(super) type RoomWhy = (String, &'static str);

/// A worker of ours ended by a panic.
pub(super) fn without_a_word() -> RoomWhy {
    ("the job stopped without saying why".to_owned(), "bug")
}

impl RoomError {
    /// Adds a room to those that a record names, as long as there is room for it.
    pub(super) fn tell(told: &mut Vec<Self>, room: &RoomId, (error, code): RoomWhy) {
        if told.len() < ROOMS_TOLD {
            told.push(Self {
                room_id: room.clone(),
                error,
                error_code: code.to_owned(),
            });
        }
    }
}

/// What the end of such a job is told by.
pub(super) trait RoomsSummary {
    /// What could not be done to the rooms that failed.
    const COULD_NOT: &'static str;

    /// How many rooms failed, of how many, and which.
    fn failed(&self) -> (i64, i64, &[RoomError]);

    /// What was done, where no room failed.
    fn complete(&self) -> String;
}

/// Says that a batch is through, even when it panics.
pub(super) struct DoneSignal(pub(super) Sender<()>);

impl Drop for DoneSignal {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// How far such a job is: what every job tells, and its sums.
pub(super) fn with_summary(progress: &Progress, summary: &impl Serialize) -> Progress {
    let mut told = progress.clone();
    if let Ok(Value::Object(more)) = serde_json::to_value(summary) {
        told.more = more;
    }
    told
}

impl Shared {
    /// How many workers have rooms of such a job at a time. A file has one writer: a second one would only have the first
    /// read its pages again.
    pub(super) fn workers_of_many(&self) -> usize {
        match self.config.database.file() {
            Some(_) => 1,
            None => self.config.workers.div_ceil(2),
        }
    }

    /// Whether a job is handed back to the ledger, to go on later.
    pub(super) fn is_suspended(&self, live: &RunningJob) -> bool {
        self.is_stopping.load(Ordering::SeqCst) || live.is_paused()
    }

    /// Fails where a job is not to go on.
    ///
    /// # Errors
    /// [`Error::Stopping`], [`Error::Cancelled`].
    pub(super) fn check_goes_on(&self, live: &RunningJob) -> Result<(), Error> {
        match () {
            () if self.is_suspended(live) => Err(Error::Stopping),
            () if live.is_cancelled() => Err(Error::Cancelled),
            () => Ok(()),
        }
    }

    /// Carries such a job out, and says in the ledger how it ended.
    pub(super) fn run_many<S: RoomsSummary>(
        &self,
        guard: JobGuard,
        run: impl FnOnce(&JobGuard) -> Result<S, Error>,
    ) {
        if self.is_suspended(guard.live()) {
            return guard.suspend();
        }
        log::info!("{guard} begins");
        let outcome = guard.start().and_then(|()| run(&guard));
        let summary = match outcome {
            Err(e) if e.is_interrupt() => {
                let why = self.check_goes_on(guard.live()).err();
                return end_early(guard, &why.unwrap_or(e));
            }
            Err(e) => return end_early(guard, &e),
            Ok(summary) => summary,
        };
        let (failed, planned, errors) = summary.failed();
        if failed == 0 {
            log::info!("{guard} is complete: {}", summary.complete());
            return guard.end(None);
        }
        let first = errors.first();
        let first = first.map_or_else(String::new, |e| format!("; {}: {}", e.room_id, e.error));
        let said = format!(
            "{failed} of {} {}{first}",
            count(planned, "room"),
            S::COULD_NOT
        );
        log::error!("{guard} failed: {said}");
        guard.end(Some((&said, "rooms_failed")));
    }

    /// Does what the rooms left to the end, who share one index and one log.
    pub(super) fn clean_up_after_rooms(
        &self,
        guard: &JobGuard,
        progress: &mut Progress,
    ) -> Result<(), Error> {
        let is_stopping = || self.is_suspended(guard.live());
        let mut ctx = self.job_context(guard, &is_stopping)?;
        clean_up(&mut ctx, progress).map_err(|e| ctx.map_interrupt(e))?;
        ctx.publish(progress);
        Ok(())
    }
}
