//! The facade: a [`Keeper`] owns the threads, the locks and the ledger, and is what HTTP, the command line and embedders speak to.

mod append;
mod archives;
mod as_planned;
mod deletion;
mod estimate;
mod holds;
mod job_context;
mod jobs;
mod kind;
pub mod lookups;
mod many_rooms;
mod measures;
pub mod media;
mod messages;
mod notifier;
mod ownership;
mod policies;
mod purge_history;
mod put_back;
mod receipts;
pub mod repair;
mod replay;
mod residue;
mod restore;
pub mod retention;
mod retention_room;
mod retention_rooms;
mod retention_scheduler;
pub mod room_set;
mod room_set_part;
mod room_set_plan;
mod room_set_run;
mod rooms;
pub mod state_compress;
pub mod state_sweep;
mod tidying;
mod viewer;

use self::notifier::Notifier;
use self::ownership::{own_work, refuse_running_homeserver, refuse_wrong_server_name};
use self::retention_scheduler::RetentionScheduler;
use self::room_set_run::RoomSetRunner;
use self::tidying::Tidier;

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
use crate::ids::RoomId;
use crate::job::held::warn_of_reviews;
use crate::job::{Reserve, overwrite, smallest_need};
use crate::jobs::alarm::Alarm;
use crate::jobs::ledger::{JobRecord, State};
use crate::jobs::pool::{Pool, QUEUE_DEPTH};
use crate::jobs::register::{JobGuard, JobRegistry};
use crate::jobs::removed::Removed;
use crate::locks::RoomLocks;
use crate::plan_hash::PlanHash;
use crate::sqlite_file::{self, NEEDED_TO_BEGIN};
use crate::store::connections::Connections;
use crate::store::db::{Access, Db, OpenOptions};
use crate::store::free_pages::RawFile;
use crate::store::homeserver;
use crate::store::read_limit::ReadLimit;
use crate::store::removed;
use crate::store::users::{self, Requester};
use crate::store::wal::WalGuard;
use crate::store::work_lock::WorkLock;

pub use self::append::NewEvent;
pub use self::archives::{ArchiveReport, archives, shred};
pub use self::deletion::DeleteStatus;
pub use self::estimate::Estimate;
pub use self::holds::{add_hold, holds, release_hold};
pub use self::kind::{JobExtent, JobKind, rows, state_words};
pub use self::lookups::{RoomState, Task};
pub use self::many_rooms::RoomError;
pub use self::measures::Measures;
pub use self::media::MediaRequest;
pub use self::ownership::identity_of;
pub use self::policies::{PolicyPlan, RoomNotTaken, RoomTaken};
pub use self::purge_history::{PurgeOptions, PurgeStatus};
pub use self::receipts::{forget_receipts, receipt_keys, recorded_receipts};
pub use self::repair::{RepairItem, RepairPlan, RepairRequest, RepairRow, RepairSummary, Unmended};
pub use self::replay::{ReplayStep, Since, plan_replay};
pub use self::residue::{ResidueReport, residue};
pub use self::restore::{Restoration, RestoreRequest, restore};
pub use self::retention::RetentionSummary;
pub use self::room_set::{SetAction, SetRequest, StartedSet};
pub use self::room_set_plan::{
    PlannedRoom, RoomLeftAlone, RoomPlan, SetPlan, SetTotals, plan_set, rooms_of_set,
};
pub use self::room_set_run::RoomSetSummary;
pub use self::rooms::{RoomQuery, RoomReport, rooms};
pub use self::state_compress::{
    CompressRequest, CompressSums, RoomCompression, StateCompressPlan, StateCompressSummary,
};
pub use self::state_sweep::{StateSweepPlan, StateSweepSummary};
pub use self::viewer::{Viewer, check_offline, reclaim, reclaim_via, recorded_jobs};

/// Read-only connections kept open for questions: one for each handler thread of HTTP.
const READERS: usize = 8;

/// Workers that a keeper can have.
const MOST_WORKERS: usize = 64;

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
    tidier: Option<Tidier>,
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
        let asked = config.clone();
        Self::open_with_room(config).map_err(|e| tell_full_disk(&asked, e, NEEDED_TO_BEGIN))
    }

    /// The same for a job on a room: on a full disk it is said what that needs.
    ///
    /// # Errors
    /// As [`Keeper::open`].
    pub fn open_for(config: Config, room: &RoomId) -> Result<Self, Error> {
        let asked = config.clone();
        Self::open(config).map_err(|e| match (e, asked.database.file()) {
            (Error::NoSpace(said), Some(file)) => {
                let needed = Viewer::open(asked.clone()).map(|viewer| viewer.smallest_need(room));
                Error::NoSpace(needed.map_or(said, |needed| {
                    sqlite_file::full(&[file, &asked.ledger], needed)
                }))
            }
            (e, _) => e,
        })
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
        put_back::hold_jobs_of_another_database(&db, &ledger, config.clock.now())?;
        drop(db);
        let alarm = Alarm::default();
        let (notifier, tell) = Notifier::start(&config, &alarm)?.unzip();
        let (tidier, woken) = Tidier::channel(config.overwrite_when).unzip();
        let register = JobRegistry::new(ledger, config.clock.clone());
        let register = Arc::new(register.telling(tell).tidied_by(tidier));
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
        let tidier = Tidier::start(shared.clone(), woken)?;
        let server_work = Pool::new(1, QUEUE_DEPTH, &shared.alarm).map_err(no_thread)?;
        let threads = Arc::new(Threads {
            shared: shared.clone(),
            server_work: Some(server_work),
            room_sets: Some(room_sets),
            tidier,
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

    /// Whether something that jobs deleted is still to be overwritten.
    pub fn owes_overwriting(&self) -> bool {
        overwrite::is_owed(self.shared.register.ledger())
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
    ///
    /// # Errors
    /// Those of the database.
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

    /// What watches the threads.
    #[cfg(test)]
    pub(crate) fn alarm(&self) -> &Alarm {
        &self.shared.alarm
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

    /// That a disk is full is told with what is free on it, what a job on the room (or on the server) needs, and what helps.
    pub(super) fn tell_full_disk(&self, e: Error, room: Option<&RoomId>) -> Error {
        // What is missing for a step is said where that was tried.
        if !e.is_full() || matches!(e, Error::NoSpace(_)) {
            return e;
        }
        let needed = self.with_reader(|db| Ok(smallest_need(db, room)));
        tell_full_disk(&self.config, e, needed.unwrap_or(NEEDED_TO_BEGIN))
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
        let tidier = self.tidier.take();
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
            drop(tidier);
            drop(server_work);
            drop(pool);
            done.store(true, Ordering::SeqCst);
        });
        self.shared.readers.close();
    }
}

fn tell_full_disk(config: &Config, e: Error, needed: u64) -> Error {
    match (&e, config.database.file()) {
        (Error::Store { doing, .. }, Some(file)) if e.is_full() => {
            let full = sqlite_file::full(&[file, &config.ledger], needed);
            Error::NoSpace(format!("could not {doing}: {full}"))
        }
        _ => e,
    }
}

/// Does what writes, once more where a full disk kept it from its end and there was a reserve for that.
fn with_reserve<T>(
    config: &Config,
    mut work: impl FnMut() -> Result<T, Error>,
) -> Result<T, Error> {
    match (work(), config.database.file()) {
        (Err(e), Some(file)) if e.is_full() && Reserve::beside(file).release_if_short() => work(),
        (done, _) => done,
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
