//! Retention on the landing: plans, and runs that carry them out.
//!
//! A run is a job of its own in the ledger. It hands its rooms to the workers in batches, a bounded number at a time;
//! each room is purged by a job like any other, so a room that is busy is skipped and one that fails stops nobody.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::{Sender, unbounded};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Keeper, Shared, Viewer, Work, end_early, options};
use crate::error::{Chain, Error};
use crate::ids::{JobId, RoomId};
use crate::jobs::ledger::Record;
use crate::jobs::pool::{Pool, SubmitError};
use crate::jobs::register::Ticket;
use crate::policy::LifetimeRange;
use crate::purge::{self, Request};
use crate::retention::{self, Due, Exact, Plan, Reason};
use crate::store::db::{Access, Db};
use crate::store::homeserver::{self, Watch};
use crate::time::Millis;
use crate::worksite::{Phase, Progress, tidy};

/// The kind of a retention run in the ledger.
pub const RETENTION: &str = "retention";

/// The kind of the purge of one room in such a run. Nobody was told its id (S-13).
pub const RETENTION_PURGE: &str = "retention_purge";

/// Most events of a batch, unless one room has more: for each batch the full-text index is walked once, and what it
/// says of them is held in memory.
const BATCH_EVENTS: i64 = 200_000;

/// Most rooms of a batch: between two of them others get a worker.
const BATCH_ROOMS: usize = 1_000;

/// How often a run looks up from waiting: for a wish to stop, and to say how far it is.
const LOOK_UP_EVERY: Duration = Duration::from_millis(100);

/// How many rooms that failed are named in a run's record.
const ERRORS_TOLD: usize = 100;

/// What a retention run has done, beside what every job tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Swept {
    /// Rooms that were due.
    pub rooms_planned: i64,
    /// Of these, rooms purged.
    pub rooms_purged: i64,
    /// Rooms skipped because another job had them.
    pub rooms_skipped: i64,
    /// Rooms whose purge failed.
    pub rooms_failed: i64,
    /// Rooms left alone by the plan.
    pub rooms_left_alone: i64,
    /// Which failed, and why; no more than a hundred.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<RoomError>,
}

/// A room whose purge failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomError {
    /// The room.
    pub room_id: RoomId,
    /// Why.
    pub error: String,
}

/// A run's parameters in the ledger.
#[derive(Serialize, Deserialize)]
pub(super) struct Range {
    #[serde(flatten)]
    pub(super) range: LifetimeRange,
}

fn refuse_nonsense(range: &LifetimeRange) -> Result<(), Error> {
    match range.nonsense() {
        None => Ok(()),
        Some(why) => Err(Error::bad("M_INVALID_PARAM", why)),
    }
}

/// What retention asks of the purge of one room.
fn request(plan: &Plan, due: &Due) -> Request {
    Request {
        point: due.point,
        delete_local_events: true,
        keep_received_after: plan.keep_received_after,
    }
}

impl Keeper {
    /// What a retention run of this range would do now: every room with its policy and what would go, or why it is
    /// left alone. With `exact` each purge is counted row by row, which takes as long as it sounds. Reads only.
    pub fn plan_retention(&self, range: LifetimeRange, exact: bool) -> Result<Plan, Error> {
        let viewer = Viewer::open(self.shared.config.clone())?;
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
        refuse_nonsense(&range)?;
        let ticket = self.shared.admit_retention(range)?;
        let id = ticket.id().clone();
        self.run_retention(ticket, range)?;
        Ok(id)
    }

    pub(super) fn run_retention(&self, ticket: Ticket, range: LifetimeRange) -> Result<(), Error> {
        let sweeper = self.threads.sweeper.as_ref().ok_or(Error::Stopping)?;
        sweeper.run(ticket, range)
    }

    /// Looks at the clock now instead of within a second; answers the retention runs that were due, which have ended
    /// by then. For programs, and tests, that move a clock of their own.
    pub fn tick_retention(&self) -> Result<Vec<JobId>, Error> {
        let sweeper = self.threads.sweeper.as_ref().ok_or(Error::Stopping)?;
        sweeper.tick()
    }
}

/// What a run shares with the workers that have its batches.
struct Tally {
    swept: Mutex<(Swept, Progress)>,
    /// The purges that run now.
    running: Mutex<Vec<JobId>>,
}

impl Tally {
    fn purged(&self, due: &Due, done: &Progress) {
        let (swept, progress) = &mut *self.swept.lock();
        swept.rooms_purged += 1;
        progress.events_done += due.events;
        progress.strides += done.strides;
        progress.state_groups_freed += done.state_groups_freed;
        progress.state_groups_marked += done.state_groups_marked;
        progress.longest_transaction_ms = progress
            .longest_transaction_ms
            .max(done.longest_transaction_ms);
        progress.add_rows(&done.rows_removed);
        for note in &done.notes {
            if !progress.notes.contains(note) {
                progress.notes.push(note.clone());
            }
        }
    }

    fn skipped(&self) {
        self.swept.lock().0.rooms_skipped += 1;
    }

    fn failed(&self, room: &RoomId, error: String) {
        let swept = &mut self.swept.lock().0;
        swept.rooms_failed += 1;
        if swept.errors.len() < ERRORS_TOLD {
            swept.errors.push(RoomError {
                room_id: room.clone(),
                error,
            });
        }
    }

    /// How far the run is.
    fn progress(&self) -> Progress {
        let (swept, progress) = &*self.swept.lock();
        let mut told = progress.clone();
        if let Ok(Value::Object(more)) = serde_json::to_value(swept) {
            told.more = more;
        }
        told
    }
}

impl Shared {
    /// Admits a run: one of a range at a time. One that was interrupted goes on under its own name.
    pub(super) fn admit_retention(self: &Arc<Self>, range: LifetimeRange) -> Result<Ticket, Error> {
        let params =
            serde_json::to_value(Range { range }).map_err(|e| Error::Bug(e.to_string()))?;
        let subject = RoomId::new(format!("rooms with {range}"));
        let Some((first, others)) = self.interrupted(&subject)? else {
            return self.register.admit(RETENTION, &subject, params);
        };
        let ticket = self.register.readmit(&first)?;
        log::info!("{ticket} goes on where it was interrupted");
        let (ledger, now) = (self.register.ledger(), self.config.clock.now());
        for other in others {
            let why = format!("superseded by {}, which goes on", first.id);
            ledger.end(&other.id, Some(&why), &other.progress, now)?;
        }
        Ok(ticket)
    }

    /// The runs of a range that an earlier process left unfinished: the first, and the others.
    fn interrupted(&self, subject: &RoomId) -> Result<Option<(Record, Vec<Record>)>, Error> {
        if self.register.is_busy(subject) {
            return Ok(None);
        }
        let unended = self.register.ledger().unended()?;
        let mut runs = unended
            .into_iter()
            .filter(|job| job.kind == RETENTION && job.subject == subject.as_str());
        Ok(runs.next().map(|first| (first, runs.collect())))
    }

    /// Finishes what a run that was interrupted was in the middle of: a purge of a room has noted more than a plan of
    /// today would find.
    fn finish_interrupted(&self, is_over: &dyn Fn() -> bool) -> Result<(), Error> {
        for job in self.register.ledger().unended()? {
            if job.kind != RETENTION_PURGE || is_over() {
                continue;
            }
            // Another job has the room, perhaps this one.
            let Ok(ticket) = self.register.readmit(&job) else {
                continue;
            };
            match Work::of_record(job) {
                Some(work) => {
                    log::info!("{ticket} goes on where it was interrupted");
                    self.run_job(ticket, &work);
                }
                None => ticket.end(Some(
                    "interrupted, and this roomkeeper does not know how to go on",
                )),
            }
        }
        Ok(())
    }

    /// Carries a run out, and says in the ledger how it ended.
    pub(super) fn sweep(
        self: &Arc<Self>,
        pool: &Arc<Pool>,
        ticket: Ticket,
        range: LifetimeRange,
        now: Millis,
    ) {
        let is_stopping = || self.is_stopping.load(Ordering::SeqCst);
        if is_stopping() {
            return ticket.suspend();
        }
        log::info!("{ticket} begins");
        let outcome = ticket
            .start()
            .and_then(|()| self.sweep_rooms(pool, &ticket, range, now));
        let outcome = match outcome {
            Err(e) if e.is_interrupt() && is_stopping() => Err(Error::Stopping),
            Err(e) if e.is_interrupt() && ticket.live().is_cancelled() => Err(Error::Cancelled),
            outcome => outcome,
        };
        match outcome {
            Ok(swept) if swept.rooms_failed == 0 => {
                log::info!("{ticket} is complete: {} rooms purged", swept.rooms_purged);
                ticket.end(None);
            }
            Ok(swept) => {
                let first = swept.errors.first();
                let first =
                    first.map_or_else(String::new, |e| format!("; {}: {}", e.room_id, e.error));
                let said = format!(
                    "{} of {} rooms could not be purged{first}",
                    swept.rooms_failed, swept.rooms_planned
                );
                log::error!("{ticket} failed: {said}");
                ticket.end(Some(&said));
            }
            Err(e) => end_early(ticket, &e),
        }
    }

    fn sweep_rooms(
        self: &Arc<Self>,
        pool: &Arc<Pool>,
        ticket: &Ticket,
        range: LifetimeRange,
        now: Millis,
    ) -> Result<Swept, Error> {
        let mut progress = Progress {
            phase: Phase::Counting,
            ..Progress::default()
        };
        let publish = |progress: &Progress| {
            let value = serde_json::to_value(progress).unwrap_or_default();
            ticket.live().set_progress(value);
        };
        publish(&progress);
        self.finish_interrupted(&|| ticket.live().is_cancelled())?;
        let plan = {
            let db = Db::open(&self.config.database, &options(Access::ReadFile))?;
            let handle = db.interrupt_handle();
            ticket
                .live()
                .set_interrupt(Some(Box::new(move || handle.interrupt())));
            let is_busy = |room: &RoomId| self.register.is_busy(room);
            let plan = retention::plan(&db, &self.config.retention, range, now, &is_busy);
            ticket.live().set_interrupt(None);
            plan?
        };
        for left in &plan.left_alone {
            if matches!(left.reason, Reason::Busy | Reason::BusyInHomeserver) {
                let (room, why) = (&left.room_id, left.reason.in_words());
                log::warn!("room {room}: {why}, so this retention run skips it");
            }
        }
        progress.phase = Phase::Events;
        progress.events_planned = plan.events;
        let swept = Swept {
            rooms_planned: i64::try_from(plan.rooms.len()).unwrap_or(i64::MAX),
            rooms_left_alone: i64::try_from(plan.left_alone.len()).unwrap_or(i64::MAX),
            ..Swept::default()
        };
        let tally = Arc::new(Tally {
            swept: Mutex::new((swept, progress)),
            running: Mutex::default(),
        });
        let mut batches = batches(&plan);
        let most = self.config.workers.div_ceil(2);
        let (done, ended) = unbounded::<()>();
        let mut running = 0;
        let stay = || {
            if self.is_stopping.load(Ordering::SeqCst) {
                Err(Error::Stopping)
            } else if ticket.live().is_cancelled() {
                Err(Error::Cancelled)
            } else {
                Ok(())
            }
        };
        while running > 0 || !batches.is_empty() {
            if stay().is_err() {
                batches.clear();
                for id in tally.running.lock().iter() {
                    self.register.cancel(id);
                }
            }
            while running < most
                && let Some(batch) = batches.pop_front()
            {
                match self.submit_batch(pool, ticket, &batch, &tally, &done) {
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
            publish(&tally.progress());
        }
        stay()?;
        // What the purges left to the end: they share one index and one log.
        let mut progress = tally.progress();
        let is_stopping = || self.is_stopping.load(Ordering::SeqCst);
        let mut site = self.worksite(ticket, &is_stopping)?;
        tidy(&mut site, &mut progress).map_err(|e| site.explain(e))?;
        publish(&progress);
        let swept = tally.swept.lock().0.clone();
        Ok(swept)
    }

    /// Has a worker purge a batch of rooms, which says when it is through.
    fn submit_batch(
        self: &Arc<Self>,
        pool: &Pool,
        ticket: &Ticket,
        batch: &Batch,
        tally: &Arc<Tally>,
        done: &Sender<()>,
    ) -> Result<(), SubmitError> {
        /// Says so even when a purge panics.
        struct Says(Sender<()>);
        impl Drop for Says {
            fn drop(&mut self) {
                let _ = self.0.send(());
            }
        }
        let (shared, tally, batch) = (self.clone(), tally.clone(), batch.clone());
        let (live, done) = (ticket.live().clone(), done.clone());
        pool.submit(Box::new(move || {
            let _says = Says(done);
            shared.purge_batch(&batch, &tally, &|| live.is_cancelled());
        }))
    }

    /// Purges rooms one after the other on one connection.
    fn purge_batch(
        self: &Arc<Self>,
        batch: &Batch,
        tally: &Tally,
        is_cancelled: &dyn Fn() -> bool,
    ) {
        let mut kept: Option<(Db, Option<Watch>)> = None;
        for (due, request) in &batch.rooms {
            if self.is_stopping.load(Ordering::SeqCst) || is_cancelled() {
                return;
            }
            let room = &due.room_id;
            let purged = catch_unwind(AssertUnwindSafe(|| {
                self.purge_due(batch, due, request, tally, &mut kept)
            }));
            match purged {
                Ok(Ok(done)) => tally.purged(due, &done),
                Ok(Err(Error::Stopping)) => return,
                Ok(Err(Error::RoomBusy { .. })) => {
                    log::warn!("room {room}: another job has it, so this retention run skips it");
                    tally.skipped();
                }
                Ok(Err(e)) => {
                    log::error!("room {room}: its retention failed: {}", Chain(&e));
                    tally.failed(room, e.status_text());
                }
                Err(_) => tally.failed(room, "the job stopped without saying why".into()),
            }
        }
    }

    /// Purges one room, as a job. The connection outlives it, unless it failed.
    fn purge_due(
        self: &Arc<Self>,
        batch: &Batch,
        due: &Due,
        request: &Request,
        tally: &Tally,
        kept: &mut Option<(Db, Option<Watch>)>,
    ) -> Result<Progress, Error> {
        let room = &due.room_id;
        let now = self.config.clock.now();
        if self.with_reader(|db| homeserver::has_own_task(db, room, now))? {
            return Err(Error::RoomBusy { room: room.clone() });
        }
        let params = serde_json::to_value(request).map_err(|e| Error::Bug(e.to_string()))?;
        let ticket = self.register.admit(RETENTION_PURGE, room, params)?;
        let id = ticket.id().clone();
        tally.running.lock().push(id.clone());
        let is_stopping = || self.is_stopping.load(Ordering::SeqCst);
        let outcome = (|| {
            ticket.start()?;
            let mut site = match kept.take() {
                Some((db, watch)) => self.worksite_on(db, watch, &ticket, &is_stopping),
                None => {
                    let site = self.worksite(&ticket, &is_stopping)?;
                    let cuts = batch.rooms.iter();
                    let cuts = cuts.map(|(due, _)| (&due.room_id, due.point.topological));
                    purge::prepare_many(&site.db, cuts)?;
                    site
                }
            };
            site.is_one_of_many = true;
            let progress = purge::run(&mut site, request)?;
            // A leap leaves nothing of what was prepared on its connection.
            if !progress.leapt {
                *kept = Some((site.db, site.watch));
            }
            Ok(progress)
        })();
        tally.running.lock().retain(|running| *running != id);
        match &outcome {
            Ok(_) => ticket.end(None),
            Err(Error::Stopping) => ticket.suspend(),
            Err(e) => ticket.end(Some(&e.status_text())),
        }
        outcome
    }
}

/// Rooms that one worker purges one after the other.
#[derive(Clone)]
struct Batch {
    rooms: Vec<(Due, Request)>,
}

/// The rooms of a plan in its order, in batches of bounded size.
fn batches(plan: &Plan) -> VecDeque<Batch> {
    let mut batches: VecDeque<Batch> = VecDeque::new();
    let mut events = 0;
    for due in &plan.rooms {
        events += due.events;
        let room = (due.clone(), request(plan, due));
        match batches.back_mut() {
            Some(batch) if events <= BATCH_EVENTS && batch.rooms.len() < BATCH_ROOMS => {
                batch.rooms.push(room);
            }
            _ => {
                events = due.events;
                batches.push_back(Batch { rooms: vec![room] });
            }
        }
    }
    batches
}

impl Viewer {
    /// As [`Keeper::plan_retention`], without knowing which rooms are busy.
    pub fn plan_retention(&self, range: LifetimeRange, exact: bool) -> Result<Plan, Error> {
        self.plan_retention_beside(range, exact, &|_| false)
    }

    fn plan_retention_beside(
        &self,
        range: LifetimeRange,
        exact: bool,
        is_busy: &dyn Fn(&RoomId) -> bool,
    ) -> Result<Plan, Error> {
        refuse_nonsense(&range)?;
        let (db, config) = (&self.db, &self.config);
        let now = config.clock.now();
        let mut plan = retention::plan(db, &config.retention, range, now, is_busy)?;
        if exact {
            for at in 0..plan.rooms.len() {
                let due = &plan.rooms[at];
                let request = request(&plan, due);
                let counted = purge::plan(db, &due.room_id, &request, &config.server_name)?;
                let bytes = purge::content_bytes(db, &due.room_id, &request, &config.server_name)?;
                plan.rooms[at].exact = Some(Exact {
                    events: counted.events_deleted,
                    content_bytes: bytes,
                    state_groups: counted.state_groups_freed,
                    rows_removed: counted.rows_removed,
                });
            }
        }
        Ok(plan)
    }
}
