//! Retention in the facade: plans, and runs that carry them out.
//!
//! A run is a job of its own in the ledger. It hands its rooms to the workers in batches, a bounded number at a time;
//! each room is purged by a job like any other, so a room that is busy is skipped and one that fails stops nobody.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crossbeam_channel::{Sender, unbounded};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::kind::{self, Belongs, JobKind, Runner, RunsOn, Work, parameters, work_of};
use super::many_rooms::{
    BATCH_EVENTS, DoneSignal, LOOK_UP_EVERY, RoomWhy, RoomsSummary, with_summary,
};
use super::ownership::look;
use super::retention_room::{NO_LONGER_WANTED, RetentionRun, RoomPurge};
use super::{Keeper, Shared, Viewer};
use crate::error::Error;
use crate::ids::{JobId, RoomId};
use crate::job::held::warn_of_reviews;
use crate::job::{MediaFate, Phase, Progress};
use crate::jobs::ledger::{JobRecord, State, Subject};
use crate::jobs::pool::{Pool, SubmitError};
use crate::jobs::register::JobGuard;
use crate::plan_hash::{Part, PlanDigest, RoomDigest};
use crate::plural::{count, count_of};
use crate::policy::LifetimeRange;
use crate::purge::{self, Request};
use crate::retention::{self, Due, Exact, Plan, Reason};
use crate::time::Millis;

pub use super::many_rooms::RoomError;

/// A retention run.
pub(super) static RETENTION: JobKind = JobKind {
    belongs: Belongs::HasParts,
    is_plannable: true,
    words,
    ..JobKind::new(
        "retention",
        RunsOn::RetentionThread,
        parameters::<RetentionRun>,
    )
};

/// The purge of one room in such a run. Nobody was told its id (S-13).
pub(super) static RETENTION_PURGE: JobKind = JobKind {
    belongs: Belongs::IsPart,
    ..JobKind::new("retention_purge", RunsOn::Worker, RoomPurge::of_record)
};

impl Work for RetentionRun {
    fn run(&self, on: &Runner<'_>, guard: JobGuard) {
        on.with_workers(guard, |pool, guard| {
            let now = on.shared.config.clock.now();
            on.shared.note_run(self.range, now);
            on.shared.run(pool, guard, *self, now);
        });
    }

    fn given_up(&self, shared: &Shared) -> Option<(&'static str, &'static str)> {
        let is_wanted = shared.is_still_wanted(*self);
        (!is_wanted).then_some((NO_LONGER_WANTED, "no_longer_configured"))
    }
}

fn words(job: &JobRecord, progress: &Progress) -> Vec<String> {
    let summary: RetentionSummary = kind::summary(progress);
    let mut lines = vec![
        format!("retention of {} is {}", job.subject, kind::state_words(job)),
        format!(
            "{} purged of {} due; {} skipped, {} failed, {} left alone",
            count(summary.rooms_purged, "room"),
            summary.rooms_planned,
            summary.rooms_skipped,
            summary.rooms_failed,
            summary.rooms_left_alone
        ),
    ];
    lines.extend(kind::rooms(&summary.errors, ""));
    lines.extend(kind::rows(&progress.rows_removed));
    lines.push(kind::events(progress));
    lines.extend(kind::reclaimable(progress));
    lines
}

/// Most rooms of a batch: between two of them others get a worker.
const BATCH_ROOMS: usize = 1_000;

/// What a retention run has done, beside what every job tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RetentionSummary {
    /// Rooms that were due.
    pub rooms_planned: i64,
    /// Of these, rooms purged.
    pub rooms_purged: i64,
    /// Rooms skipped because another job had them.
    pub rooms_skipped: i64,
    /// Rooms whose purge failed.
    pub rooms_failed: i64,
    /// Rooms left alone by the plan, or when their turn came.
    pub rooms_left_alone: i64,
    /// Whether the clock was looked at and believed: then the end of this run is a time to measure it by.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub clock_accepted: bool,
    /// Which failed, and why; no more than a hundred.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<RoomError>,
}

impl RoomsSummary for RetentionSummary {
    const COULD_NOT: &'static str = "could not be purged";

    fn failed(&self) -> (i64, i64, &[RoomError]) {
        (self.rooms_failed, self.rooms_planned, &self.errors)
    }

    fn complete(&self) -> String {
        format!("{} purged", count(self.rooms_purged, "room"))
    }
}

fn refuse_invalid(range: &LifetimeRange) -> Result<(), Error> {
    match range.validate() {
        None => Ok(()),
        Some(why) => Err(Error::bad("M_INVALID_PARAM", why)),
    }
}

/// What retention asks of the purge of one room.
pub(super) fn request(due: &Due) -> Request {
    Request {
        point: due.point,
        delete_local_events: true,
        media: MediaFate::Stay,
        keep_received_after: Some(due.cut_off_ms - Millis(1)),
        expiry: due.expiry,
        held: Vec::new(),
    }
}

impl Keeper {
    /// What a retention run of this range would do now: every room with its policy and what would go, or why it is
    /// left alone. With `exact` each purge is counted row by row, which takes as long as it sounds. Reads only.
    ///
    /// # Errors
    /// Those of the database and of the ledger.
    pub fn plan_retention(&self, range: LifetimeRange, exact: bool) -> Result<Plan, Error> {
        let viewer = self.viewer()?;
        viewer.plan_retention_beside(range, exact, &|room| self.shared.register.is_busy(room))
    }
}

impl Keeper {
    /// Purges, as a job, the rooms whose lifetime is above `shortest` and at most `longest`, by their policies; returns
    /// at once. Needs no `retention.enabled`: whoever asks means it.
    ///
    /// # Errors
    /// [`Error::BadRequest`] where a bound is negative or the bounds are crossed; [`Error::RoomBusy`] while a run of the same
    /// range is at work (one that was interrupted goes on, under its own id); [`Error::Stopping`].
    pub fn purge_history_for_rooms_in_range(
        &self,
        shortest: Option<Millis>,
        longest: Option<Millis>,
    ) -> Result<JobId, Error> {
        if self.is_stopping() {
            return Err(Error::Stopping);
        }
        let range = LifetimeRange { shortest, longest };
        refuse_invalid(&range)?;
        self.shared.refuse_clock_ahead()?;
        let run = RetentionRun {
            range,
            scheduled: false,
            plan: self.plan,
        };
        let now = self.judged_at()?;
        let is_busy = |room: &RoomId| self.shared.register.is_busy(room);
        self.refuse_drift(|viewer, _| viewer.bind_retention(range, now, &is_busy))?;
        let guard = self.shared.enqueue_retention(run, self.asked_by())?;
        let id = guard.id().clone();
        self.hand_over(guard, Box::new(run))?;
        Ok(id)
    }

    /// Looks at the clock now instead of when it is due; answers the retention runs that began by themselves since this was
    /// last asked, at most the newest hundred, which have ended by then. For programs, and tests, that move a clock of
    /// their own.
    ///
    /// # Errors
    /// [`Error::Stopping`].
    pub fn tick_retention(&self) -> Result<Vec<JobId>, Error> {
        let retention_scheduler = self
            .threads
            .retention_scheduler
            .as_ref()
            .ok_or(Error::Stopping)?;
        retention_scheduler.tick()
    }
}

/// What a run shares with the workers that have its batches.
pub(super) struct Counters {
    summary: Mutex<(RetentionSummary, Progress)>,
    /// The purges that run now.
    pub(super) running: Mutex<Vec<JobId>>,
    /// What ended the run early, and would keep every further room from being purged: a full disk.
    pub(super) broken: Mutex<Option<Error>>,
}

impl Counters {
    pub(super) fn purged(&self, due: &Due, done: &Progress) {
        let (summary, progress) = &mut *self.summary.lock();
        summary.rooms_purged += 1;
        progress.events_done += due.events;
        progress.add_part(done);
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.lock().is_some()
    }

    pub(super) fn left_alone(&self) {
        self.summary.lock().0.rooms_left_alone += 1;
    }

    pub(super) fn skipped(&self) {
        self.summary.lock().0.rooms_skipped += 1;
    }

    pub(super) fn failed(&self, room: &RoomId, why: RoomWhy) {
        let summary = &mut self.summary.lock().0;
        summary.rooms_failed += 1;
        RoomError::tell(&mut summary.errors, room, why);
    }

    /// How far the run is.
    fn progress(&self) -> Progress {
        let (summary, progress) = &*self.summary.lock();
        with_summary(progress, summary)
    }
}

impl Shared {
    /// Admits a run: one of a range at a time. One that was interrupted goes on under its own name.
    pub(super) fn enqueue_retention(
        self: &Arc<Self>,
        run: RetentionRun,
        asked_by: Option<&str>,
    ) -> Result<JobGuard, Error> {
        let params = serde_json::to_value(run).map_err(|e| Error::Bug(e.to_string()))?;
        let subject = Subject::Lifetimes(run.range);
        self.release_reserve_if_short();
        let Some((first, others)) = self.interrupted(&subject)? else {
            let admitted = self
                .register
                .enqueue_for(asked_by, RETENTION.name, &subject, params);
            return admitted.map_err(|e| self.tell_full_disk(e, None));
        };
        if run.plan.is_some() {
            return Err(Error::Refused(format!(
                "the retention run {} of these lifetimes was interrupted and is not as planned: end it (roomkeeper jobs \
                 --cancel {}) or have it go on (--resume) first",
                first.id, first.id
            )));
        }
        let guard = self.register.requeue(&first)?;
        log::info!("{guard} goes on where it was interrupted");
        for other in others {
            let why = format!("superseded by {}, which goes on", first.id);
            self.register.end_recorded(&other, (&why, "superseded"))?;
        }
        Ok(guard)
    }

    /// The runs of a range that an earlier process left unfinished: the first, and the others.
    fn interrupted(&self, subject: &Subject) -> Result<Option<(JobRecord, Vec<JobRecord>)>, Error> {
        if self.register.is_at_work_on(subject) {
            return Ok(None);
        }
        let unended = self.register.ledger().unended()?;
        // One that is paused, or waits for a person's word, goes on by that alone.
        let mut runs = unended.into_iter().filter(|job| {
            job.kind == RETENTION.name && job.subject == *subject && job.state == State::Queued
        });
        Ok(runs.next().map(|first| (first, runs.collect())))
    }

    /// Finishes what a run that was interrupted was in the middle of: a purge of a room has noted more than a plan of
    /// today would find.
    fn finish_interrupted(self: &Arc<Self>, is_over: &dyn Fn() -> bool) -> Result<(), Error> {
        for job in self.register.ledger().unended()? {
            if job.kind != RETENTION_PURGE.name || job.state != State::Queued || is_over() {
                continue;
            }
            // Another job has the room, perhaps this one.
            let Ok(guard) = self.register.requeue(&job) else {
                continue;
            };
            match work_of(&job) {
                Some(work) => {
                    log::info!("{guard} goes on where it was interrupted");
                    let runner = Runner {
                        shared: self,
                        workers: None,
                    };
                    work.run(&runner, guard);
                }
                None => guard.end(Some((super::UNKNOWN_KIND, "unknown_kind"))),
            }
        }
        Ok(())
    }

    /// Carries a run out, and says in the ledger how it ended.
    pub(super) fn run(
        self: &Arc<Self>,
        pool: &Arc<Pool>,
        guard: JobGuard,
        run: RetentionRun,
        now: Millis,
    ) {
        self.run_many(guard, |guard| {
            let done = self.run_rooms(pool, guard, run, now);
            done.map_err(|e| self.tell_full_disk(e, None))
        });
    }

    fn run_rooms(
        self: &Arc<Self>,
        pool: &Arc<Pool>,
        guard: &JobGuard,
        run: RetentionRun,
        now: Millis,
    ) -> Result<RetentionSummary, Error> {
        self.refuse_clock_ahead()?;
        let now = run.plan.and_then(|plan| plan.at()).unwrap_or(now);
        warn_of_reviews(&self.holds()?, self.config.clock.now());
        let mut progress = Progress {
            phase: Phase::Counting,
            ..Progress::default()
        };
        let publish = |progress: &Progress| {
            let value = serde_json::to_value(progress).unwrap_or_default();
            guard.live().set_progress(value);
        };
        publish(&progress);
        self.finish_interrupted(&|| guard.live().is_cancelled() || guard.live().is_paused())?;
        if let Some(plan) = run.plan {
            let is_busy = |room: &RoomId| self.register.is_busy(room);
            self.refuse_drift(plan, |viewer, _| {
                viewer.bind_retention(run.range, now, &is_busy)
            })?;
        }
        let plan = look(&self.config, |db| {
            let handle = db.interrupt_handle();
            guard
                .live()
                .set_interrupt(Some(Box::new(move || handle.interrupt())));
            let is_busy = |room: &RoomId| self.register.is_busy(room);
            let plan = retention::plan(db, &self.config.retention, run.range, now, &is_busy);
            let plan = plan.and_then(|mut plan| {
                self.leave_held(db, &mut plan)?;
                Ok(plan)
            });
            guard.live().set_interrupt(None);
            plan
        })?;
        for left in &plan.left_alone {
            if matches!(
                left.reason,
                Reason::Busy | Reason::BusyInHomeserver | Reason::Held
            ) {
                let (room, why) = (&left.room_id, left.reason.in_words());
                log::warn!("room {room}: {why}, so this retention run skips it");
            }
        }
        // What is decided and not carried out is said.
        for reason in [Reason::UnreadablePolicy, Reason::LifetimeTooShort] {
            let rooms = plan.left_alone.iter().filter(|left| left.reason == reason);
            let rooms: Vec<_> = rooms.collect();
            let Some(first) = rooms.first() else { continue };
            let lifetime = first.lifetime.as_ref();
            let lifetime =
                lifetime.map_or_else(String::new, |of| format!(" ({})", of.lifetime.in_words()));
            let note = format!(
                "{} left alone, such as {}{lifetime}, because {}",
                count_of(rooms.len() as u64, "room is", "rooms are"),
                first.room_id,
                reason.in_words()
            );
            log::warn!("{guard}: {note}");
            progress.notes.push(note);
        }
        progress.phase = Phase::Events;
        progress.events_planned = plan.events;
        let summary = RetentionSummary {
            rooms_planned: i64::try_from(plan.rooms.len()).unwrap_or(i64::MAX),
            rooms_left_alone: i64::try_from(plan.left_alone.len()).unwrap_or(i64::MAX),
            clock_accepted: self.config.check_clock,
            ..RetentionSummary::default()
        };
        let counters = Arc::new(Counters {
            summary: Mutex::new((summary, progress)),
            running: Mutex::default(),
            broken: Mutex::default(),
        });
        let mut batches = batches(&plan, run);
        let most = self.workers_of_many();
        let (done, ended) = unbounded::<()>();
        let mut running = 0;
        let stay = || self.check_goes_on(guard.live());
        while running > 0 || !batches.is_empty() {
            if stay().is_err() {
                batches.clear();
                for id in counters.running.lock().iter() {
                    self.register.cancel(id);
                }
            }
            if counters.is_broken() {
                batches.clear();
            }
            while running < most
                && let Some(batch) = batches.pop_front()
            {
                match self.submit_batch(pool, guard, &batch, &counters, &done) {
                    Ok(()) => running += 1,
                    Err(SubmitError::Full) => {
                        batches.push_front(batch);
                        break;
                    }
                    Err(SubmitError::Closed) => batches.clear(),
                }
            }
            if ended.recv_timeout(LOOK_UP_EVERY).is_ok() {
                running -= 1;
            }
            publish(&counters.progress());
        }
        stay()?;
        if let Some(e) = counters.broken.lock().take() {
            return Err(e);
        }
        // A clock that was set meanwhile is none to measure by.
        if self.config.check_clock && self.refuse_clock_ahead().is_err() {
            counters.summary.lock().0.clock_accepted = false;
        }
        self.clean_up_after_rooms(guard, &mut counters.progress())?;
        let summary = counters.summary.lock().0.clone();
        Ok(summary)
    }

    /// Has a worker purge a batch of rooms, which says when it is through.
    fn submit_batch(
        self: &Arc<Self>,
        pool: &Pool,
        guard: &JobGuard,
        batch: &Batch,
        counters: &Arc<Counters>,
        done: &Sender<()>,
    ) -> Result<(), SubmitError> {
        let (shared, counters, batch) = (self.clone(), counters.clone(), batch.clone());
        let (live, done) = (guard.live().clone(), done.clone());
        pool.submit(Box::new(move || {
            let _says = DoneSignal(done);
            let is_over = || live.is_cancelled() || live.is_paused();
            shared.purge_batch(&batch, &counters, &is_over);
        }))
    }
}

/// What the plan of a run says of a room, but for its events.
fn digest_of_due(due: &Due) -> PlanDigest {
    let mut digest = PlanDigest::new(None);
    digest.word(Part::Points, &due.point.to_string());
    let policy = serde_json::to_string(&(&due.policy, &due.lifetime)).unwrap_or_default();
    digest.word(Part::Policies, &policy);
    due.holds
        .iter()
        .for_each(|hold| digest.word(Part::Holds, hold));
    digest
}

/// Rooms that one worker purges one after the other.
#[derive(Clone)]
pub(super) struct Batch {
    pub(super) run: RetentionRun,
    pub(super) planned_at: Millis,
    pub(super) rooms: Vec<(Due, Request)>,
}

/// The rooms of a plan in its order, in batches of bounded size.
fn batches(plan: &Plan, run: RetentionRun) -> VecDeque<Batch> {
    let mut batches: VecDeque<Batch> = VecDeque::new();
    let mut events = 0;
    for due in &plan.rooms {
        events += due.events;
        let room = (due.clone(), request(due));
        match batches.back_mut() {
            Some(batch) if events <= BATCH_EVENTS && batch.rooms.len() < BATCH_ROOMS => {
                batch.rooms.push(room);
            }
            _ => {
                events = due.events;
                batches.push_back(Batch {
                    run,
                    planned_at: plan.now_ms,
                    rooms: vec![room],
                });
            }
        }
    }
    batches
}

impl Viewer {
    /// As [`Keeper::plan_retention`], without knowing which rooms are busy.
    ///
    /// # Errors
    /// Those of the database.
    pub fn plan_retention(&self, range: LifetimeRange, exact: bool) -> Result<Plan, Error> {
        self.plan_retention_beside(range, exact, &|_| false)
    }

    fn plan_retention_beside(
        &self,
        range: LifetimeRange,
        exact: bool,
        is_busy: &dyn Fn(&RoomId) -> bool,
    ) -> Result<Plan, Error> {
        let (db, config) = (&self.db, &self.config);
        let now = config.clock.now();
        let mut plan = self.plan_retention_at(range, now, is_busy)?;
        if exact {
            // Retention leaves media alone.
            let setting = self.setting(now, &[])?;
            let mut digests = BTreeMap::new();
            for at in 0..plan.rooms.len() {
                let due = &plan.rooms[at];
                let request = Request {
                    held: self.held_of(&due.room_id)?,
                    ..request(due)
                };
                let mut digest = digest_of_due(due);
                let counted = purge::plan(db, &due.room_id, &request, setting, &mut digest)?;
                digests.insert(due.room_id.clone(), digest.of_room());
                let bytes =
                    purge::content_bytes(db, &due.room_id, &request, &config.server_name, now)?;
                plan.rooms[at].exact = Some(Exact {
                    events: counted.events_deleted,
                    content_bytes: bytes,
                    state_groups: counted.state_groups_freed,
                    rows_removed: counted.rows_removed,
                });
            }
            plan.plan = Some(self.digest_of_retention(&plan, &digests).hash());
        }
        Ok(plan)
    }

    fn plan_retention_at(
        &self,
        range: LifetimeRange,
        now: Millis,
        is_busy: &dyn Fn(&RoomId) -> bool,
    ) -> Result<Plan, Error> {
        refuse_invalid(&range)?;
        let mut plan = retention::plan(&self.db, &self.config.retention, range, now, is_busy)?;
        self.leave_held(&mut plan)?;
        Ok(plan)
    }

    /// What a run as of `now` would be bound to.
    fn bind_retention(
        &self,
        range: LifetimeRange,
        now: Millis,
        is_busy: &dyn Fn(&RoomId) -> bool,
    ) -> Result<PlanDigest, Error> {
        let plan = self.plan_retention_at(range, now, is_busy)?;
        let setting = self.setting(now, &[])?;
        let mut digests = BTreeMap::new();
        for due in &plan.rooms {
            let (room, mut digest) = (&due.room_id, digest_of_due(due));
            let request = Request {
                held: self.held_of(room)?,
                ..request(due)
            };
            let (db, bound) = (&self.db, &mut digest);
            purge::bind(db, room, &request, setting, bound)?;
            digests.insert(room.clone(), digest.of_room());
        }
        Ok(self.digest_of_retention(&plan, &digests))
    }

    fn digest_of_retention(&self, plan: &Plan, rooms: &BTreeMap<RoomId, RoomDigest>) -> PlanDigest {
        let mut digest = self.new_digest(Some(plan.now_ms));
        digest.word(Part::Asked, RETENTION.name);
        digest.word(Part::Asked, &plan.range.to_string());
        for (room, planned) in rooms {
            digest.room(room, planned);
        }
        for held in plan
            .left_alone
            .iter()
            .filter(|left| left.reason == Reason::Held)
        {
            digest.word(Part::Holds, held.room_id.as_str());
            held.holds
                .iter()
                .for_each(|hold| digest.word(Part::Holds, hold));
        }
        digest
    }
}
