//! The facade: a [`Keeper`] owns the threads, the locks and the ledger, and is what HTTP, the command line and embedders speak to.

mod archives;
mod as_planned;
mod deletion;
mod holds;
mod job_context;
mod jobs;
pub mod lookups;
mod many_rooms;
mod measures;
mod messages;
mod notifier;
mod ownership;
mod put_back;
mod receipts;
pub mod repair;
mod restore;
pub mod retention;
mod retention_room;
mod retention_scheduler;
pub mod room_set;
mod room_set_part;
mod room_set_plan;
mod room_set_run;
mod rooms;
pub mod state_sweep;
mod viewer;
mod work;

use self::notifier::Notifier;
use self::ownership::{own_work, refuse_running_homeserver, refuse_wrong_server_name};
use self::retention_scheduler::RetentionScheduler;
use self::room_set_run::RoomSetRunner;
use self::work::Work;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::Receiver;
use parking_lot::Mutex;
use serde_json::json;

use crate::config::Config;
use crate::database::Database;
use crate::error::{Chain, Error};
use crate::ids::{JobId, RoomId};
use crate::job::held::warn_of_reviews;
use crate::job::{Removes, Reserve};
use crate::jobs::alarm::Alarm;
use crate::jobs::ledger::{JobRecord, State, Subject};
use crate::jobs::pool::{Pool, QUEUE_DEPTH, SubmitError};
use crate::jobs::register::{JobGuard, JobRegistry};
use crate::jobs::removed::Removed;
use crate::locks::RoomLocks;
use crate::plan_hash::PlanHash;
use crate::plural::count;
use crate::point::{Point, PurgePoint};
use crate::purge::{self, Plan, Request};
use crate::sqlite_file;
use crate::store::connections::Connections;
use crate::store::db::{Access, Db, OpenOptions};
use crate::store::free_pages::RawFile;
use crate::store::homeserver;
use crate::store::points;
use crate::store::read_limit::ReadLimit;
use crate::store::removed;
use crate::store::users::{self, Requester};
use crate::store::wal::WalGuard;
use crate::store::work_lock::WorkLock;
use crate::time::Millis;

pub use self::archives::{ArchiveReport, archives, shred};
pub use self::deletion::DeleteStatus;
pub use self::holds::{add_hold, holds, release_hold};
pub use self::measures::Measures;
pub use self::notifier::is_part;
pub use self::ownership::identity_of;
pub use self::receipts::{forget_receipts, receipt_keys, recorded_receipts};
pub use self::repair::{RepairPlan, RepairSummary};
pub use self::restore::{Restoration, RestoreRequest, restore};
pub use self::room_set::{SetAction, SetRequest, StartedSet};
pub use self::room_set_plan::{
    PlannedRoom, RoomLeftAlone, RoomPlan, SetPlan, SetTotals, plan_set, rooms_of_set,
};
pub use self::room_set_run::RoomSetSummary;
pub use self::rooms::{RoomQuery, RoomReport, rooms};
pub use self::state_sweep::{StateSweepPlan, StateSweepSummary};
pub use self::viewer::{Viewer, check_offline, reclaim, reclaim_via, recorded_jobs};

/// The kind of a history purge in the ledger (S-16 names it so).
pub const PURGE_HISTORY: &str = "purge_history";

/// Read-only connections kept open for questions: one for each handler thread of HTTP.
const READERS: usize = 8;

/// Workers that a keeper can have.
const MOST_WORKERS: usize = 64;

/// How a purge is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PurgeOptions {
    /// Whether local users' messages go as well as remote ones.
    pub delete_local_events: bool,
    /// What was received after this stays, whatever its depth; of what was backfilled, what was also sent after it. A
    /// point that is a time or an age says so already: the earlier of the two counts.
    pub keep_received_after: Option<Millis>,
    /// Go no further than to the first event that is held, instead of around it.
    pub strict: bool,
}

impl PurgeOptions {
    /// The purge up to a point, of what was received before `keep_from`.
    fn request(self, point: Point, keep_from: Option<Millis>) -> Request {
        let by_point = keep_from.map(|from| from - Millis(1));
        let keep_received_after = match (self.keep_received_after, by_point) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Request {
            point,
            delete_local_events: self.delete_local_events,
            keep_received_after,
            expiry: None,
            held: Vec::new(),
        }
    }
}

/// The status of a history purge, in Synapse's terms (S-1, S-2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PurgeStatus {
    /// `active`, `complete` or `failed`.
    pub status: &'static str,
    /// Why it failed.
    pub error: Option<String>,
}

/// Keeps the rooms of one homeserver database.
///
/// Cheap to clone; the threads end when the last clone is dropped or stopped.
#[derive(Clone)]
pub struct Keeper {
    shared: Arc<Shared>,
    threads: Arc<Threads>,
    /// For whom it speaks; jobs have it in their records.
    asked_by: Option<Arc<str>>,
    /// What its jobs must come to, where that was said.
    plan: Option<PlanHash>,
}

/// What jobs need. Jobs hold this and never the threads, so that no thread can be left to join itself.
struct Shared {
    config: Config,
    register: Arc<JobRegistry>,
    locks: RoomLocks,
    writer: Mutex<WalGuard>,
    writers: [Mutex<WalGuard>; MOST_WORKERS],
    turn: AtomicUsize,
    readers: Connections,
    queue: messages::ReaderLimit,
    is_stopping: AtomicBool,
    /// What was counted of rooms; nothing before somebody asks.
    room_statistics: Mutex<Option<crate::rooms::Statistics>>,
    alarm: Alarm,
    /// Last, because it must be closed after every connection (see [`RawFile`]).
    raw: Option<Arc<RawFile>>,
    /// After that: whoever comes next may not begin before everything is closed.
    work_lock: WorkLock,
}

/// The threads, and the way they end: dropping this.
struct Threads {
    shared: Arc<Shared>,
    pool: Option<Arc<Pool>>,
    retention_scheduler: Option<RetentionScheduler>,
    room_sets: Option<RoomSetRunner>,
    /// What is about the whole server, one after the other: a sweep of days keeps no worker from a room.
    server_work: Option<Pool>,
    /// Last: what the others ended is told.
    _notifier: Option<Notifier>,
}

impl Keeper {
    /// Opens a database and becomes the owner of its ledger.
    ///
    /// # Errors
    /// [`Error::LedgerLocked`] while another roomkeeper owns the ledger; [`Error::Refused`] while a homeserver seems to be
    /// running (unless told otherwise), or when the database is not one we know or another server's; [`Error::Config`]
    /// when there is none.
    pub fn open(config: Config) -> Result<Self, Error> {
        let file = config.database.file().map(Path::to_owned);
        Self::open_with_room(config).map_err(|e| tell_full_disk(file.as_deref(), e))
    }

    fn open_with_room(config: Config) -> Result<Self, Error> {
        if let Some(file) = config.database.file() {
            Reserve::beside(file).release_if_short();
        }
        let (ledger, work_lock) = own_work(&config)?;
        let raw = config.database.file().map(RawFile::open).transpose()?;
        refuse_running_homeserver(&config, raw.clone())?;
        let mut db = Db::open(&config.database, &OpenOptions::default())?;
        refuse_wrong_server_name(&db, &config)?;
        homeserver::release_leftover_locks(&mut db)?;
        put_back::hold_jobs_of_another_database(&db, &ledger)?;
        drop(db);
        let alarm = Alarm::default();
        let (notifier, tell) = Notifier::start(&config, &alarm)?.unzip();
        let register = Arc::new(JobRegistry::new(ledger, config.clock.clone()).telling(tell));
        let shared = Arc::new(Shared {
            register,
            locks: RoomLocks::default(),
            writer: Mutex::default(),
            writers: std::array::from_fn(|_| Mutex::default()),
            turn: AtomicUsize::new(0),
            readers: Connections::new(&config.database, READERS),
            queue: messages::ReaderLimit::default(),
            is_stopping: AtomicBool::new(false),
            room_statistics: Mutex::default(),
            alarm,
            raw,
            work_lock,
            config,
        });
        warn_of_reviews(&shared.holds()?, shared.config.clock.now());
        // Keeps the file open, so that whoever looks sees that somebody is at work here.
        shared.with_reader(|_| Ok(()))?;
        shared.register.forget_old(shared.config.keep_jobs);
        let no_thread = |e| Error::Store {
            doing: "start a thread",
            source: crate::error::StoreError::Io(e),
        };
        let pool = Pool::new(shared.config.workers.max(1), QUEUE_DEPTH, &shared.alarm)
            .map_err(no_thread)?;
        let pool = Arc::new(pool);
        let retention_scheduler = RetentionScheduler::start(shared.clone(), pool.clone())?;
        let room_sets = RoomSetRunner::start(shared.clone(), pool.clone())?;
        let server_work = Pool::new(1, QUEUE_DEPTH, &shared.alarm).map_err(no_thread)?;
        let threads = Arc::new(Threads {
            shared: shared.clone(),
            server_work: Some(server_work),
            room_sets: Some(room_sets),
            pool: Some(pool),
            retention_scheduler: Some(retention_scheduler),
            _notifier: notifier,
        });
        let keeper = Self {
            shared,
            threads,
            asked_by: None,
            plan: None,
        };
        if keeper.shared.config.resume {
            keeper.take_up(|state| state == State::Queued)?;
        }
        Ok(keeper)
    }

    /// Keeps a file on the database's disk that is given up when that is full, so that a purge can still make room. Makes
    /// it again when it was given up and there is room again; the daemon asks for it now and then.
    pub fn keep_reserve(&self) {
        if let Some(file) = self.shared.config.database.file() {
            Reserve::beside(file).make();
        }
    }

    /// The same keeper, in whose jobs' records stands who asked for them.
    #[must_use]
    pub fn on_behalf_of(&self, who: &str) -> Self {
        Self {
            asked_by: Some(who.into()),
            ..self.clone()
        }
    }

    fn asked_by(&self) -> Option<&str> {
        self.asked_by.as_deref()
    }

    /// What the keeper was opened with.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Starts a purge of a room's history and returns at once; the work is a job.
    ///
    /// # Errors
    /// [`Error::EventNotFound`], [`Error::WrongRoom`], [`Error::NothingThatOld`] for the point;
    /// [`Error::RoomBusy`] while another job has the room; [`Error::Held`] where the whole room is held; [`Error::Refused`] for an age while the clock may be ahead;
    /// [`Error::PlanDrifted`]; [`Error::QueueFull`], [`Error::Stopping`]. Nothing was started then.
    pub fn purge_history(
        &self,
        room: &RoomId,
        point: PurgePoint,
        options: PurgeOptions,
    ) -> Result<JobId, Error> {
        if self.is_stopping() {
            return Err(Error::Stopping);
        }
        if matches!(point, PurgePoint::OlderThan(_)) {
            self.shared.refuse_clock_ahead()?;
        }
        let now = self.judged_at()?;
        let keep_from = point.keep_received_from(now);
        let point = self.shared.with_reader(|db| {
            let point = points::resolve(db, room, &point, now);
            let point = point.map_err(|e| self.told_as_drift(e))?;
            self.shared.refuse_own_task(db, room)?;
            Ok(point)
        })?;
        let held = self.shared.refuse_held(room, Removes::History)?;
        let point = match options.strict {
            true => self.shared.before_what_is_held(room, point, &held)?,
            false => point,
        };
        let request = options.request(point, keep_from);
        self.refuse_drift(|viewer, plan| viewer.bind_purge(room, &request, plan.at()))?;
        let params = serde_json::to_value(&request).map_err(|e| Error::Bug(e.to_string()))?;
        let params = self.bound(params);
        self.shared.release_reserve_if_short();
        let subject = Subject::Room(room.clone());
        let guard =
            self.shared
                .register
                .enqueue_for(self.asked_by(), PURGE_HISTORY, &subject, params);
        let guard = guard.map_err(|e| self.shared.tell_full_disk(e))?;
        let id = guard.id().clone();
        log::info!("room {room}: purge {id} up to {point} is queued");
        self.submit(guard, Work::PurgeHistory(request))?;
        Ok(id)
    }

    /// What such a purge would remove, table by table. Reads only.
    pub fn plan_purge(
        &self,
        room: &RoomId,
        point: &PurgePoint,
        options: PurgeOptions,
    ) -> Result<Plan, Error> {
        self.viewer()?.plan_purge(room, point, options)
    }

    fn submit(&self, guard: JobGuard, work: Work) -> Result<(), Error> {
        self.shared.note_the_database(&guard);
        if let Work::Retention(run) = work {
            return self.run_retention(guard, run);
        }
        if let Work::RoomSet(set) = work {
            let runner = self.threads.room_sets.as_ref().ok_or(Error::Stopping)?;
            return runner.run(guard, set);
        }
        let shared = self.shared.clone();
        let pool = match work {
            Work::StateSweep | Work::Repair(_) => self.threads.server_work.as_ref(),
            _ => self.threads.pool.as_deref(),
        };
        let pool = pool.ok_or(Error::Stopping)?;
        // The guard outlives a refusal, so that it can be withdrawn.
        let slot = Arc::new(Mutex::new(Some(guard)));
        let taken = slot.clone();
        let job = Box::new(move || {
            if let Some(guard) = taken.lock().take() {
                shared.run_job(guard, &work);
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

    /// The status of a history purge; `None` when there is no such purge, or 24 hours after its end (S-10).
    pub fn purge_status(&self, id: &str) -> Result<Option<PurgeStatus>, Error> {
        let register = &self.shared.register;
        let found = register.look_up(&JobId::from(id), PURGE_HISTORY)?;
        Ok(found.map(|job| PurgeStatus {
            status: match job.state {
                State::Queued | State::Running | State::Paused | State::Waiting => "active",
                State::Complete => "complete",
                State::Failed => "failed",
            },
            error: job.error,
        }))
    }

    /// The user of a Synapse access token (U-2 … U-8).
    ///
    /// # Errors
    /// [`Error::Denied`] with the status and code to answer.
    pub fn authenticate(&self, token: &str) -> Result<Requester, Error> {
        let shared = &self.shared;
        let now = shared.config.clock.now();
        shared.with_reader(|db| {
            let requester = users::by_access_token(db, token, now)?;
            if shared.config.account_validity && users::is_expired(db, &requester.user_id, now)? {
                return Err(Error::Denied {
                    status: 403,
                    errcode: "ORG_MATRIX_EXPIRED_ACCOUNT",
                    message: "User account has expired",
                    soft_logout: None,
                });
            }
            Ok(requester)
        })
    }

    /// What tells the database from every other one, as [`identity_of`] says before it is owned.
    pub fn identity(&self) -> Result<String, Error> {
        self.shared.with_reader(Db::identity)
    }

    /// Whether this keeper itself lives, whatever becomes of the database: every thread of its own is there.
    pub fn is_alive(&self) -> bool {
        !self.shared.alarm.rang()
    }

    /// Gives a sentence when a thread has ended that should not have, and the process should end with an error.
    pub fn lost_threads(&self) -> &Receiver<String> {
        self.shared.alarm.heard()
    }

    /// Whether the database answers, and every thread is there.
    pub fn is_healthy(&self) -> bool {
        if !self.is_alive() {
            return false;
        }
        self.shared
            .with_reader(|db| db.count("ask the database", "SELECT 1", &[]))
            .is_ok()
    }

    /// Whether the keeper is stopping.
    pub fn is_stopping(&self) -> bool {
        self.shared.is_stopping.load(Ordering::SeqCst)
    }

    /// Stops: every running job ends its transaction or gives it up, and is handed back to the ledger. When this
    /// was the last clone, all threads have been joined when it returns; other clones can still ask, but nothing
    /// runs for them any more.
    pub fn stop(self) {
        self.shared.begin_to_stop();
    }
}

impl Shared {
    fn begin_to_stop(&self) {
        self.is_stopping.store(true, Ordering::SeqCst);
        self.register.interrupt_all();
    }

    fn with_reader<T>(&self, ask: impl FnOnce(&Db) -> Result<T, Error>) -> Result<T, Error> {
        self.read_within(None, ask)
    }

    /// As [`Shared::with_reader`], within a limit.
    fn read_within<T>(
        &self,
        limit: Option<&Arc<ReadLimit>>,
        ask: impl FnOnce(&Db) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.refuse_replaced_file()?;
        self.readers.ask_within(limit, ask)
    }

    /// What is open is the old file when another was put in its place: what is written to it is lost.
    fn refuse_replaced_file(&self) -> Result<(), Error> {
        match (&self.raw, self.config.database.file()) {
            (Some(raw), Some(file)) if !raw.is_at(file) => Err(Error::Refused(format!(
                "the file {} is not the one that was there when roomkeeper started: start roomkeeper again",
                file.display()
            ))),
            _ => Ok(()),
        }
    }

    /// Notes how new the database is that a job is about (S-30). What cannot be noted is only not told later.
    fn note_the_database(&self, guard: &JobGuard) {
        let noted = self.with_reader(|db| {
            let greatest = removed::greatest_stream_ordering(db)?;
            let seen = Removed {
                greatest,
                ..Removed::default()
            };
            self.register.ledger().note_removed(guard.id(), &seen)?;
            db.sync_commits_so_far()?;
            self.register
                .ledger()
                .removed_is_committed(guard.id(), true)
        });
        if let Err(e) = noted {
            log::warn!("{guard}: {}", Chain(&e));
        }
    }

    fn run_job(&self, guard: JobGuard, work: &Work) {
        if matches!(work, Work::StateSweep) {
            return self.run_state_sweep(guard);
        }
        if let Work::Repair(request) = work {
            return self.run_repair(guard, request);
        }
        let live = guard.live().clone();
        let is_stopping = || self.is_suspended(&live);
        if is_stopping() {
            return guard.suspend();
        }
        let outcome = guard.start().and_then(|()| match work {
            Work::PurgeHistory(request) => self.purge(&guard, request, &is_stopping),
            Work::RetentionOfRoom(room, purge) => {
                self.finish_room_purge(&guard, room, purge, &is_stopping)
            }
            // Runs have a thread of their own.
            Work::Retention(_) | Work::RoomSet(_) | Work::StateSweep | Work::Repair(_) => {
                Err(Error::Bug("a worker was given a job of many rooms".into()))
            }
            Work::RoomOfSet(part) => self
                .work_on_room(&guard, part, &mut None, None)
                .map(|done| format!("{} deleted", count(done.events_deleted, "event"))),
            Work::DeleteRoom(deletion) => self.delete_room(&guard, deletion, &is_stopping),
        });
        match outcome {
            Ok(summary) => {
                log::info!("{guard} is complete: {summary}");
                guard.end(None);
            }
            Err(e) => end_early(guard, &self.tell_full_disk(e)),
        }
    }

    /// That a disk is full is told with what is free on it, and what helps.
    pub(super) fn tell_full_disk(&self, e: Error) -> Error {
        tell_full_disk(self.config.database.file(), e)
    }

    fn purge(
        &self,
        guard: &JobGuard,
        request: &Request,
        is_stopping: &(dyn Fn() -> bool + Sync),
    ) -> Result<String, Error> {
        self.refuse_drift_of(guard, |viewer, plan| {
            viewer.bind_purge(guard.room(), request, plan.at())
        })?;
        let progress = purge::run(&mut self.job_context(guard, is_stopping)?, request)?;
        Ok(format!(
            "{} deleted",
            count(progress.events_deleted, "event")
        ))
    }

    /// A full disk has no room for what the ledger notes either.
    pub(super) fn release_reserve_if_short(&self) {
        if let Some(file) = self.config.database.file() {
            Reserve::beside(file).release_if_short();
        }
    }

    /// Whose turn it is to write: a file has one writer. On a server jobs on different rooms are not in each other's way;
    /// more of them than there are turns run for no keeper.
    fn turn_to_write(&self) -> &Mutex<WalGuard> {
        match self.config.database {
            Database::File(_) => &self.writer,
            Database::Server(_) => {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                &self.writers[turn % MOST_WORKERS]
            }
        }
    }
}

/// The end of a job that a newer roomkeeper has begun.
const UNKNOWN_KIND: &str = "interrupted, and this roomkeeper does not know how to go on";

/// How often a stopping keeper interrupts what still runs: a statement may begin just after the last time.
const INTERRUPT_AGAIN: Duration = Duration::from_millis(50);

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.begin_to_stop();
        let (retention_scheduler, pool) = (self.retention_scheduler.take(), self.pool.take());
        let (room_sets, server_work) = (self.room_sets.take(), self.server_work.take());
        let done = Arc::new(AtomicBool::new(false));
        thread::scope(|scope| {
            let (joined, shared) = (done.clone(), &self.shared);
            scope.spawn(move || {
                while !joined.load(Ordering::SeqCst) {
                    shared.register.interrupt_all();
                    thread::sleep(INTERRUPT_AGAIN);
                }
            });
            // They wait for workers, and hold on to their pool.
            drop(retention_scheduler);
            drop(room_sets);
            drop(server_work);
            drop(pool);
            done.store(true, Ordering::SeqCst);
        });
        self.shared.readers.close();
    }
}

fn tell_full_disk(file: Option<&Path>, e: Error) -> Error {
    match (&e, file) {
        (Error::Store { doing, .. }, Some(file)) if e.is_full() => {
            Error::NoSpace(format!("could not {doing}: {}", sqlite_file::full(file)))
        }
        _ => e,
    }
}

/// A job that came to no good end goes on at the next start, or says why it failed.
fn end_early(guard: JobGuard, error: &Error) {
    if matches!(error, Error::Stopping) {
        match guard.live().is_paused() {
            true => log::info!("{guard} is paused"),
            false => log::info!("{guard} is interrupted and goes on at the next start"),
        }
        return guard.suspend();
    }
    log::error!("{guard} failed: {}", Chain(error));
    guard.end(Some((&error.status_text(), error.code())));
}

fn options(access: Access) -> OpenOptions {
    OpenOptions {
        access,
        ..OpenOptions::default()
    }
}

/// What a job's record says, as HTTP shows it.
pub fn job_view(record: &JobRecord) -> serde_json::Value {
    serde_json::to_value(record).unwrap_or_else(|_| json!({}))
}
