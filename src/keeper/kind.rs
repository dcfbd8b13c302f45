//! Kinds of jobs, as values. What is to be known of one stands in one file: its name, its typed parameters and how they are
//! carried out, which thread it runs on, how it is taken up again, and its words.
//!
//! To add one: a file with a [`JobKind`] and the [`Work`] of its parameters, and a line in [`KINDS`].

use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::many_rooms::RoomError;
use super::{Keeper, Shared, deletion, end_early, media, purge_history, repair};
use super::{retention, room_set, room_set_part, state_compress, state_sweep};
use crate::error::Error;
use crate::ids::JobId;
use crate::job::Progress;
use crate::job::media_of_events::told;
use crate::jobs::ledger::{JobRecord, State, Subject};
use crate::jobs::pool::{Pool, SubmitError};
use crate::jobs::register::JobGuard;
use crate::plural::count;
use crate::store::event_rows::RowCounts;
use crate::store::space::human;

/// Every kind of job that there is.
static KINDS: [&JobKind; 13] = [
    &purge_history::PURGE_HISTORY,
    &deletion::SHUTDOWN_AND_PURGE_ROOM,
    &deletion::DELETE_ROOM,
    &deletion::PURGE_ROOM,
    &retention::RETENTION,
    &retention::RETENTION_PURGE,
    &room_set::ROOM_SET,
    &room_set_part::PURGE_IN_SET,
    &room_set_part::DELETE_IN_SET,
    &state_sweep::STATE_SWEEP,
    &state_compress::STATE_COMPRESS,
    &repair::REPAIR,
    &media::MEDIA,
];

/// What stands for a kind that only a newer roomkeeper knows.
static UNKNOWN: JobKind = JobKind::new("unknown", RunsOn::Worker, |_| None);

/// What a job is to do: the parameters of its kind, which stand in the ledger as JSON.
pub(super) trait Work: Send {
    /// Carries it out, and says in the ledger how it ended.
    fn run(&self, on: &Runner<'_>, guard: JobGuard);

    /// Why a job that was interrupted is ended instead of taken up again, and the code of that; nothing where it goes on.
    fn given_up(&self, _: &Shared) -> Option<(&'static str, &'static str)> {
        None
    }

    /// What a line of the log says beside the job's kind and subject.
    fn detail(&self) -> String {
        String::new()
    }
}

/// What a job is carried out with.
pub(super) struct Runner<'a> {
    /// The keeper's own.
    pub(super) shared: &'a Arc<Shared>,
    /// The workers, for a job of many rooms; none on a worker, which does not wait for another.
    pub(super) workers: Option<&'a Arc<Pool>>,
}

impl Runner<'_> {
    /// Carries out a job of many rooms, which needs workers.
    pub(super) fn with_workers(&self, guard: JobGuard, run: impl FnOnce(&Arc<Pool>, JobGuard)) {
        match self.workers {
            Some(pool) => run(pool, guard),
            None => {
                let bug = Error::Bug("a worker was given a job of many rooms".into());
                end_early(guard, &bug);
            }
        }
    }
}

/// The thread that carries a kind of job out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RunsOn {
    /// One of the workers.
    Worker,
    /// The one for what is about the whole server.
    ServerThread,
    /// The one of retention runs.
    RetentionThread,
    /// The one of sets of rooms.
    RoomSetThread,
}

/// Whether jobs of a kind stand alone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Belongs {
    /// To nobody.
    Alone,
    /// They have a job for each room, and their numbers are the sums of those.
    HasParts,
    /// To a job that has them as parts, and tells of them.
    IsPart,
}

/// How much of a job is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobExtent {
    /// So many are dealt with,
    pub done: i64,
    /// of so many
    pub planned: i64,
    /// of these, in the plural.
    pub of: &'static str,
}

/// Puts how a job ended, or how far it is, into sentences.
type Words = fn(&JobRecord, &Progress) -> Vec<String>;

/// A kind of job.
pub struct JobKind {
    /// As the ledger and HTTP name it.
    pub(super) name: &'static str,
    /// The thread that it runs on.
    pub(super) runs_on: RunsOn,
    /// Whether it stands alone.
    pub(super) belongs: Belongs,
    /// Whether a plan's hash can bind it.
    pub(super) is_plannable: bool,
    /// What a job on record was to do; `None` when this roomkeeper does not understand it.
    pub(super) read: fn(&JobRecord) -> Option<Box<dyn Work>>,
    /// Whether one that was interrupted is another job's to take up, which has been looked to.
    pub(super) is_left_to_another: fn(&Shared, &JobRecord) -> Result<bool, Error>,
    /// How much of it is done.
    pub(super) measure: fn(&Progress) -> JobExtent,
    /// What it did, in sentences, but for its notes.
    pub(super) words: Words,
}

/// What became of media, where a job had anything to do with them.
pub(super) fn media(progress: &Progress) -> Vec<String> {
    told(progress).map_or_else(Vec::new, |told| told.words())
}

impl JobKind {
    /// A kind that is told of by its events, and that has no parts and is none.
    pub(super) const fn new(
        name: &'static str,
        runs_on: RunsOn,
        read: fn(&JobRecord) -> Option<Box<dyn Work>>,
    ) -> Self {
        Self {
            name,
            runs_on,
            belongs: Belongs::Alone,
            is_plannable: false,
            read,
            is_left_to_another: |_, _| Ok(false),
            measure: |progress| JobExtent {
                done: progress.events_done,
                planned: progress.events_planned,
                of: "events",
            },
            words: |job, progress| {
                let mut lines = vec![what_became_of(job)];
                lines.extend(rows(&progress.rows_removed));
                lines.push(events(progress));
                lines.extend(media(progress));
                lines.extend(reclaimable(progress));
                lines
            },
        }
    }

    /// The kind of this name; what stands for one that is not known here otherwise.
    pub fn of(name: &str) -> &'static Self {
        let mut kinds = KINDS.iter();
        kinds.find(|kind| kind.name == name).unwrap_or(&&UNKNOWN)
    }

    /// Whether this roomkeeper has jobs of a kind.
    pub fn is_known(name: &str) -> bool {
        KINDS.iter().any(|kind| kind.name == name)
    }

    /// The names of all kinds.
    pub fn names() -> Vec<&'static str> {
        KINDS.iter().map(|kind| kind.name).collect()
    }

    /// Those that are parts of others.
    pub(super) fn parts() -> impl Iterator<Item = &'static Self> {
        KINDS.into_iter().filter(|kind| kind.is_part())
    }

    /// As the ledger and HTTP name it.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether jobs of this kind belong to another one, which tells of them.
    pub fn is_part(&self) -> bool {
        self.belongs == Belongs::IsPart
    }

    /// Whether the numbers of such a job are the sums of its parts', which are counted by themselves.
    pub fn has_parts(&self) -> bool {
        self.belongs == Belongs::HasParts
    }

    /// How much of such a job is done.
    pub fn extent(&self, progress: &Progress) -> JobExtent {
        (self.measure)(progress)
    }

    /// What such a job did, in sentences, but for its notes. What others wrote is in them as it is.
    pub fn words(&self, job: &JobRecord, progress: &Progress) -> Vec<String> {
        (self.words)(job, progress)
    }
}

/// What a job on record was to do, where its parameters are all there is to know of it.
pub(super) fn parameters<W>(job: &JobRecord) -> Option<Box<dyn Work>>
where
    W: Work + DeserializeOwned + 'static,
{
    let work = W::deserialize(&job.params).ok()?;
    Some(Box::new(work))
}

/// What a job on record was to do; `None` when this roomkeeper does not know.
pub(super) fn work_of(job: &JobRecord) -> Option<Box<dyn Work>> {
    (JobKind::of(&job.kind).read)(job)
}

/// What a kind of job tells besides.
pub(super) fn summary<S: DeserializeOwned + Default>(progress: &Progress) -> S {
    serde_json::from_value(progress.more.clone().into()).unwrap_or_default()
}

/// `purge_history of room !a:b is complete`.
pub(super) fn what_became_of(job: &JobRecord) -> String {
    format!("{} of {} is {}", job.kind, job.subject, state_words(job))
}

/// Rows by table, a line each.
pub fn rows(rows: &RowCounts) -> Vec<String> {
    let width = rows.keys().map(String::len).max().unwrap_or(0);
    let line = |(table, rows): (&String, &i64)| {
        let word = if *rows == 1 { "row" } else { "rows" };
        format!("  {table:width$}  {rows:>12} {word}")
    };
    rows.iter().map(line).collect()
}

/// The events that went.
pub(super) fn events(progress: &Progress) -> String {
    format!(
        "{} deleted in {}, the longest {} ms; {} freed",
        count(progress.events_deleted, "event"),
        count(progress.batches, "transaction"),
        progress.longest_transaction_ms,
        count(progress.state_groups_freed, "state group")
    )
}

/// What can be given back to the disk.
pub(super) fn reclaimable(progress: &Progress) -> Option<String> {
    let bytes = progress.reclaimable_bytes?;
    let bytes = human(bytes);
    Some(format!(
        "`roomkeeper reclaim` would give {bytes} back to the disk"
    ))
}

/// Rooms that were left alone, or failed, a line each.
pub(super) fn rooms<'a>(
    rooms: &'a [RoomError],
    what: &'a str,
) -> impl Iterator<Item = String> + 'a {
    rooms
        .iter()
        .map(move |room| format!("  {}{what}: {}", room.room_id, room.error))
}

/// Where a job is in its life, with what can be done about it.
pub fn state_words(job: &JobRecord) -> String {
    match (job.state, &job.error) {
        (State::Failed, Some(error)) => format!("failed: {error}"),
        (State::Failed, None) => "failed".into(),
        (State::Complete, _) => "complete".into(),
        (State::Running, _) => "running".into(),
        (State::Paused, _) => format!("paused (`jobs --continue {}` goes on)", job.id),
        (State::Waiting, _) => format!(
            "waits: {}; `jobs --resume` goes on with it, `jobs --cancel {}` ends it",
            job.waits.as_deref().unwrap_or("nobody said why"),
            job.id
        ),
        (State::Queued, _) if job.started_ms.is_some() => {
            "interrupted (`jobs --resume` goes on)".into()
        }
        (State::Queued, _) => "queued".into(),
    }
}

impl Keeper {
    /// Starts a job and returns at once: it stands in the ledger, and its turn comes.
    pub(super) fn start<W>(
        &self,
        kind: &JobKind,
        subject: &Subject,
        work: W,
    ) -> Result<JobId, Error>
    where
        W: Work + Serialize + 'static,
    {
        let params = self.params_of(kind, &work)?;
        self.shared.release_reserve_if_short();
        let register = &self.shared.register;
        let guard = register.enqueue_for(self.asked_by(), kind.name, subject, params);
        let guard = guard.map_err(|e| self.shared.tell_full_disk(e, subject.room()))?;
        let id = guard.id().clone();
        log::info!("{guard} is queued{}", work.detail());
        self.submit(guard, Box::new(work))?;
        Ok(id)
    }

    /// The parameters of a job as the ledger keeps them, with the plan that it is bound to.
    pub(super) fn params_of(
        &self,
        kind: &JobKind,
        work: &impl Serialize,
    ) -> Result<serde_json::Value, Error> {
        if self.plan.is_some() && !kind.is_plannable {
            return Err(Error::bad(
                "M_INVALID_PARAM",
                format!("no plan binds a {}", kind.name.replace('_', " ")),
            ));
        }
        let params = serde_json::to_value(work).map_err(|e| Error::Bug(e.to_string()))?;
        Ok(self.bound(params))
    }

    /// Notes which database a job is about, and hands it to the thread that carries it out.
    pub(super) fn submit(&self, guard: JobGuard, work: Box<dyn Work>) -> Result<(), Error> {
        self.shared.note_the_database(&guard);
        self.hand_over(guard, work)
    }

    pub(super) fn hand_over(&self, guard: JobGuard, work: Box<dyn Work>) -> Result<(), Error> {
        let threads = &self.threads;
        let pool = match JobKind::of(&guard.live().kind).runs_on {
            RunsOn::RetentionThread => {
                let scheduler = threads.retention_scheduler.as_ref();
                return scheduler.ok_or(Error::Stopping)?.run(guard, work);
            }
            RunsOn::RoomSetThread => {
                let runner = threads.room_sets.as_ref().ok_or(Error::Stopping)?;
                return runner.run(guard, work);
            }
            RunsOn::ServerThread => threads.server_work.as_ref(),
            RunsOn::Worker => threads.pool.as_deref(),
        };
        let pool = pool.ok_or(Error::Stopping)?;
        // The guard outlives a refusal, so that it can be withdrawn.
        let slot = Arc::new(Mutex::new(Some(guard)));
        let (taken, shared) = (slot.clone(), self.shared.clone());
        let job = Box::new(move || {
            let runner = Runner {
                shared: &shared,
                workers: None,
            };
            let guard = taken.lock().take();
            if let Some(guard) = guard {
                work.run(&runner, guard);
            }
        });
        let refused = match pool.submit(job) {
            Ok(()) => return Ok(()),
            Err(SubmitError::Full) => Error::QueueFull,
            Err(SubmitError::Closed) => Error::Stopping,
        };
        if let Some(guard) = slot.lock().take() {
            guard.cancel_enqueue();
        }
        Err(refused)
    }
}

impl Shared {
    /// Carries out a job that has no parts, and says in the ledger how it ended. What it answers is told in the log.
    pub(super) fn run_one(
        &self,
        guard: JobGuard,
        run: impl FnOnce(&JobGuard, &(dyn Fn() -> bool + Sync)) -> Result<String, Error>,
    ) {
        let live = guard.live().clone();
        let is_stopping = || self.is_suspended(&live);
        if is_stopping() {
            return guard.suspend();
        }
        match guard.start().and_then(|()| run(&guard, &is_stopping)) {
            Ok(summary) => {
                log::info!("{guard} is complete: {summary}");
                guard.end(None);
            }
            Err(e) => {
                let e = self.tell_full_disk(e, Some(guard.room()));
                end_early(guard, &e);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Millis;
    use std::collections::BTreeSet;

    #[test]
    fn every_kind_has_a_name_of_its_own_by_which_it_is_found() {
        let names: BTreeSet<&str> = KINDS.iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), KINDS.len());
        for kind in KINDS {
            assert!(std::ptr::eq(JobKind::of(kind.name), kind), "{}", kind.name);
        }
    }

    #[test]
    fn what_only_a_newer_roomkeeper_knows_is_told_of_and_not_done() {
        let job = JobRecord::new("teleport", &Subject::Server {}, Millis(0));
        assert!(work_of(&job).is_none());
        let words = JobKind::of(&job.kind).words(&job, &Progress::default());
        assert_eq!(words[0], "teleport of the server is queued");
    }
}
