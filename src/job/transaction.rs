//! The one door to what destroys: every transaction of a job that deletes or rewrites rows goes through it.
//!
//! Whoever has something to do says what it is about ([`Scope`]) and what bounds it ([`Limits`]), and gets a [`Tx`] to do it
//! with. The rest is the same for all, and its order is law:
//!
//! 1. has somebody cancelled the job? then wait for the room, then for the writer's turn: an open transaction never waits for
//!    a lock of ours;
//! 2. has somebody laid a hold on what would go? has a homeserver been started meanwhile?
//! 3. BEGIN; renew the homeserver's lock on the room; the work;
//! 4. before anything goes, it is in the archive, where there is one (the work sees to that, see `archive`); note in the ledger
//!    what must not be forgotten: pages to overwrite, state groups to look at, what was removed;
//! 5. COMMIT; have it on the disk; see to the write-ahead log; let the locks go;
//! 6. add it to the progress, and save that.

use std::cell::RefCell;
use std::fs;
use std::time::Duration;

use parking_lot::Mutex;

use super::disk::DiskBudget;
use super::lock::renew_lock;
use super::removed::{Removing, note_removed};
use super::{JobContext, Progress, ServerState, overwrite};
use crate::error::Error;
use crate::ids::RoomId;
use crate::locks::RoomLocks;
use crate::store::db::{Db, Engine, SecureDelete};
use crate::store::event_rows::RowCounts;
use crate::store::homeserver::{self, PURGE_LOCK, SynapseLock};
use crate::store::media;
use crate::store::tx::{Abort, Held, Terms, Tx};
use crate::store::wal::WalGuard;

/// What a transaction is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scope<'a> {
    /// The job's own room.
    Room,
    /// The job's own room, which is waited for, and others, which are only tried for (L-12): in the homeserver's lock table
    /// as well.
    RoomAnd(&'a [RoomId]),
    /// The job's own room, which is waited for, and others, which are only tried for (L-12), and of which the job holds the
    /// homeserver's locks already: small rooms that go together.
    Together(&'a [RoomId]),
    /// What has no room.
    Server,
}

/// What becomes of a transaction when a homeserver has been started that should not run (W-22).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum IfStarted {
    /// Where it must not run the job ends with that reason. Where it may, and what was prepared was prepared for the other
    /// case, it is not begun: [`Why::ServerStateChanged`].
    #[default]
    Refuse,
    /// It is not begun: [`Why::HomeserverStarted`].
    Abort,
    /// It may be done all the same. It takes nothing that anybody could hold: so holds are not looked at either.
    GoOn,
}

/// What keeps a job from its next transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Endurance {
    /// That the process stops, or somebody cancelled the job.
    #[default]
    UntilCancelled,
    /// Only that the process stops: what is half done is finished.
    UntilStopping,
    /// Nothing: it takes a moment, and nobody would do it later.
    Always,
}

/// What is done with the write-ahead log.
#[derive(Clone, Copy, Default)]
pub(crate) enum Log<'a> {
    /// Nothing: it is short, or SQLite looks after it by itself.
    #[default]
    Leave,
    /// It is emptied afterwards, whether or not the transaction came to anything.
    Empty,
    /// Many transactions follow each other: it is emptied after each where nobody waits, after those of one of many small
    /// jobs only when it has so many bytes, or the disk no room for them; beside a running homeserver it is kept from being
    /// copied until it is long.
    Batches(&'a DiskBudget, u64),
}

/// What bounds a transaction, and what is looked after around it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Limits<'a> {
    /// After so long it is given up, because others wait.
    pub deadline: Option<Duration>,
    /// What a homeserver that was started means for it.
    pub if_started: IfStarted,
    /// What keeps it from being begun.
    pub endures: Endurance,
    /// What is done with the log.
    pub log: Log<'a>,
    /// Whether it takes so long that the progress shows its tables one by one.
    pub shows_tables: bool,
    /// Whether it is one of the batches that the progress counts and the ledger keeps.
    pub is_batch: bool,
}

/// What a transaction leaves to be overwritten at the end of the job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Duties {
    /// How pages that became free were overwritten.
    pub pages: SecureDelete,
    /// Whether the full-text index still knows words that were deleted.
    pub index: bool,
}

/// What a transaction did, for the ledger and the progress; made anew for each attempt.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Rows that went, by table.
    pub rows: RowCounts,
    /// Events dealt with.
    pub events: i64,
    /// State groups of events that went: somebody has to look whether they are needed (P-12).
    pub state_groups: Vec<i64>,
    /// The same of other rooms of the scope, where several go together.
    pub of_rooms: Vec<(RoomId, Vec<i64>)>,
    /// State groups that went.
    pub state_groups_freed: i64,
    /// Messages of local users that left the timeline and stay in the database (P-56).
    pub local_messages: i64,
    /// Forward extremities that stay, where it looked (P-51).
    pub extremities_kept: Option<i64>,
    /// Files that events refer to which went, each with origin (empty for this server) and id: somebody has to look whether
    /// anything else does.
    pub media: Vec<(String, String)>,
    /// What is to be overwritten, if anything.
    pub duties: Option<Duties>,
}

/// What a transaction cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// How long others waited.
    pub took: Duration,
    /// Bytes of the write-ahead log.
    pub wal_bytes: u64,
}

/// Why a transaction was not carried out although nothing failed; nothing of it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Something refers to a row that goes, and the engine does not look after that by itself.
    BreaksForeignKeys,
    /// A homeserver was started: the sign of it.
    HomeserverStarted(String),
    /// A homeserver was started or stopped, next to which the job may work: it has to be prepared otherwise.
    ServerStateChanged,
    /// Another room of the scope belongs to somebody else now.
    RoomInUse(RoomId),
}

/// What became of a transaction.
#[must_use]
#[derive(Debug)]
pub(crate) enum Outcome<T> {
    /// It has committed.
    Done(T, Cost),
    /// Others would have waited too long; nothing of it happened.
    TooLong,
    /// It was not to be; nothing of it happened.
    Aborted(Why),
}

impl Effects {
    /// Notes the media that the selected events refer to which go; before they do.
    pub(crate) fn note_media_of_selected(
        &mut self,
        tx: &Tx<'_>,
        server_name: &str,
    ) -> Result<(), Error> {
        let files = media::files_of_selected(tx, server_name)?;
        let key = |file: media::MediaFile| (file.origin.unwrap_or_default(), file.media_id);
        self.media.extend(files.into_iter().map(key));
        Ok(())
    }
}

impl<T> Outcome<T> {
    /// What was done by a transaction that nothing but an error can keep from its end.
    pub fn done(self) -> Result<(T, Cost), Error> {
        match self {
            Self::Done(value, cost) => Ok((value, cost)),
            Self::TooLong => Err(Error::Bug(
                "a transaction without limit was given up".into(),
            )),
            Self::Aborted(why) => Err(Error::Bug(format!("a transaction was given up: {why:?}"))),
        }
    }
}

impl JobContext<'_> {
    /// Carries out one transaction that deletes or rewrites rows, adds what it did to the progress, and saves that.
    ///
    /// The work is done again from its beginning when others were in its way. It says in its [`Effects`] what it does; what a
    /// former attempt said is forgotten.
    ///
    /// # Errors
    /// Those of the work and of the database; [`Error::Stopping`], [`Error::Cancelled`], [`Error::Refused`] before it began.
    /// Nothing of it happened then, except where a COMMIT was interrupted or its answer lost: whoever goes on looks first.
    ///
    /// # Locking
    /// Waits for the room and for the writer's turn, both of which must not be held. Tries for other rooms.
    pub(crate) fn transaction<T>(
        &mut self,
        progress: &mut Progress,
        doing: &'static str,
        scope: Scope<'_>,
        limits: Limits<'_>,
        work: impl FnMut(&Tx<'_>, &mut Effects) -> Result<T, Abort>,
    ) -> Result<Outcome<T>, Error> {
        let live = self.live;
        let shown = RefCell::new(&mut *progress);
        let show = |table: &'static str| {
            let mut progress = shown.borrow_mut();
            progress.table = Some(table.to_owned());
            live.set_progress(serde_json::to_value(&**progress).unwrap_or_default());
        };
        let on_table: &dyn Fn(&'static str) = match limits.shows_tables {
            true => &show,
            false => &|_| {},
        };
        let (outcome, cared) = self.carry_out_with_room(doing, scope, limits, on_table, work)?;
        let (value, effects, cost) = match outcome {
            Outcome::Done((value, effects), cost) => (value, effects, cost),
            Outcome::TooLong => return Ok(Outcome::TooLong),
            Outcome::Aborted(why) => return Ok(Outcome::Aborted(why)),
        };
        progress.table = None;
        progress.add_transaction(&effects, cost.took);
        if limits.is_batch {
            progress.batches += 1;
            self.save_progress(progress);
        }
        cared?;
        Ok(Outcome::Done(value, cost))
    }

    /// The same for what adds nothing to the progress.
    pub(crate) fn small_transaction<T>(
        &mut self,
        doing: &'static str,
        scope: Scope<'_>,
        limits: Limits<'_>,
        mut work: impl FnMut(&Tx<'_>) -> Result<T, Abort>,
    ) -> Result<Outcome<T>, Error> {
        let (outcome, cared) =
            self.carry_out_with_room(doing, scope, limits, &|_| {}, |tx, _| work(tx))?;
        cared?;
        Ok(match outcome {
            Outcome::Done((value, _), cost) => Outcome::Done(value, cost),
            Outcome::TooLong => Outcome::TooLong,
            Outcome::Aborted(why) => Outcome::Aborted(why),
        })
    }

    /// Once more where a full disk kept it from its end and the reserve was there for that. Whoever empties the log each time
    /// works in steps, and makes them smaller first.
    #[expect(clippy::type_complexity, reason = "named, it would say no more")]
    fn carry_out_with_room<T>(
        &mut self,
        doing: &'static str,
        scope: Scope<'_>,
        limits: Limits<'_>,
        on_table: &dyn Fn(&'static str),
        mut work: impl FnMut(&Tx<'_>, &mut Effects) -> Result<T, Abort>,
    ) -> Result<(Outcome<(T, Effects)>, Result<(), Error>), Error> {
        match self.carry_out(doing, scope, limits, on_table, &mut work) {
            Err(e) if e.is_full() && matches!(limits.log, Log::Leave) && self.release_reserve() => {
                self.carry_out(doing, scope, limits, on_table, &mut work)
            }
            done => done,
        }
    }

    /// Answers besides whether the log could be looked after.
    #[expect(clippy::type_complexity, reason = "named, it would say no more")]
    fn carry_out<T>(
        &mut self,
        doing: &'static str,
        scope: Scope<'_>,
        limits: Limits<'_>,
        on_table: &dyn Fn(&'static str),
        mut work: impl FnMut(&Tx<'_>, &mut Effects) -> Result<T, Abort>,
    ) -> Result<(Outcome<(T, Effects)>, Result<(), Error>), Error> {
        self.ensure_going_on(limits.endures)?;
        let held = match hold(self.locks, self.room, scope) {
            Ok(held) => held,
            Err(other) => return Ok((Outcome::Aborted(Why::RoomInUse(other)), Ok(()))),
        };
        let mut turn = self.writer.lock();
        if let Some(why) = self.homeserver_started(limits.if_started)? {
            return Ok((Outcome::Aborted(why), Ok(())));
        }
        if let Log::Batches(..) = limits.log {
            match self.server_state {
                ServerState::Running => turn.pin(&self.db)?,
                ServerState::Stopped => {
                    turn.unpin();
                }
            }
        }
        let their_locks = match scope {
            Scope::RoomAnd(others) if homeserver::has_locks(&self.db) && !others.is_empty() => {
                let names = &[PURGE_LOCK];
                match SynapseLock::try_acquire(&mut self.db, names, others, self.clock)? {
                    Some(lock) => Some(lock),
                    None => {
                        let why = Why::RoomInUse(others[0].clone());
                        return Ok((Outcome::Aborted(why), Ok(())));
                    }
                }
            }
            _ => None,
        };
        let terms = Terms {
            doing,
            held: &held,
            deadline: limits.deadline,
            on_table,
        };
        let wal_before = log_length(&self.db);
        let (ledger, live, room, clock) = (self.ledger, self.live, self.room, self.clock);
        let overwrites = self.overwrite_deleted && self.db.engine() == Engine::Sqlite;
        let notes_media_of = self.media.under.clone();
        let lock = &mut self.synapse_lock;
        let result = self.db.transaction(&turn, terms, |tx| {
            renew_lock(tx, lock.as_mut(), clock)?;
            let mut effects = Effects::default();
            let value = work(tx, &mut effects)?;
            if let (true, Some(duties)) = (overwrites, effects.duties) {
                overwrite::add_pending(ledger, duties.pages, duties.index)?;
            }
            ledger.add_candidates(room.as_str(), &effects.state_groups)?;
            ledger.add_candidates_of(&effects.of_rooms)?;
            ledger.note_media(notes_media_of.as_ref().unwrap_or(&live.id), &effects.media)?;
            if let Some(removing) = effects.removing(room) {
                note_removed(tx, ledger, live, removing)?;
            }
            Ok((value, effects))
        });
        let wal_bytes = log_length(&self.db);
        if result.is_ok() {
            live.remember_removed();
            self.archive_committed();
        }
        if let Ok(((_, effects), _)) = &result
            && effects.removing(room).is_some()
        {
            self.note_commit();
        }
        let cared = self.care_for_log(limits.log, &mut turn, wal_bytes, result.is_ok());
        let released = their_locks.map_or(Ok(()), |lock| lock.release(&mut self.db));
        drop(turn);
        drop(held);
        let outcome = match result {
            Ok((done, took)) => {
                let wal_bytes = match wal_bytes.saturating_sub(wal_before) {
                    // It began anew meanwhile.
                    0 => wal_bytes,
                    grown => grown,
                };
                Outcome::Done(done, Cost { took, wal_bytes })
            }
            Err(Abort::TooLong) => Outcome::TooLong,
            Err(Abort::BreaksForeignKeys) => Outcome::Aborted(Why::BreaksForeignKeys),
            Err(Abort::Failed(e)) => return Err(e),
        };
        Ok((outcome, cared.and(released)))
    }

    fn is_stopped(&self) -> bool {
        self.server_state == ServerState::Stopped
    }

    fn ensure_going_on(&self, endures: Endurance) -> Result<(), Error> {
        match endures {
            Endurance::UntilCancelled => self.check_cancelled(),
            Endurance::UntilStopping if (self.is_stopping)() => Err(Error::Stopping),
            Endurance::UntilStopping | Endurance::Always => Ok(()),
        }
    }

    fn homeserver_started(&mut self, if_started: IfStarted) -> Result<Option<Why>, Error> {
        Ok(match if_started {
            IfStarted::Refuse => {
                let prepared_for = self.server_state;
                self.look_for_homeserver()?;
                (self.server_state != prepared_for).then_some(Why::ServerStateChanged)
            }
            IfStarted::Abort => {
                self.refuse_new_holds()?;
                self.running_homeserver()?.map(Why::HomeserverStarted)
            }
            IfStarted::GoOn => None,
        })
    }

    /// After a transaction that took the log to `wal_bytes`. What cannot be done after one that failed is not told: its own
    /// error says more.
    fn care_for_log(
        &self,
        log: Log<'_>,
        turn: &mut WalGuard,
        wal_bytes: u64,
        has_committed: bool,
    ) -> Result<(), Error> {
        let cared = match log {
            _ if self.db.engine() == Engine::Postgres => Ok(()),
            Log::Leave => Ok(()),
            Log::Batches(..) if !self.is_stopped() => turn.checkpoint_if_long(&self.db),
            // Emptying it costs as much for one small room as for hundreds of them.
            Log::Batches(disk, long)
                if has_committed
                    && self.is_one_of_many
                    && wal_bytes < long
                    && disk.has_room_beside(wal_bytes) =>
            {
                Ok(())
            }
            // With readers about, it is empty when they have gone.
            Log::Batches(..) | Log::Empty => {
                turn.unpin();
                self.db.checkpoint().map(drop)
            }
        };
        match has_committed {
            true => cared,
            false => Ok(()),
        }
    }
}

/// Bytes of the write-ahead log.
fn log_length(db: &Db) -> u64 {
    let wal = db.wal_path();
    wal.and_then(|wal| fs::metadata(wal).ok())
        .map_or(0, |m| m.len())
}

fn hold(locks: &RoomLocks, room: &RoomId, scope: Scope<'_>) -> Result<Held, RoomId> {
    Ok(match scope {
        Scope::Room => Held::Rooms(locks.write_all(room, &[])?),
        Scope::RoomAnd(others) | Scope::Together(others) => {
            Held::Rooms(locks.write_all(room, others)?)
        }
        Scope::Server => Held::Server,
    })
}

/// One small change by whoever is no job. Nothing is noted of it.
///
/// # Locking
/// Waits for the room, where it is about one, and for the writer's turn.
pub(crate) fn write_once<T>(
    db: &mut Db,
    locks: &RoomLocks,
    writer: &Mutex<WalGuard>,
    room: Option<&RoomId>,
    doing: &'static str,
    mut work: impl FnMut(&Tx<'_>) -> Result<T, Error>,
) -> Result<T, Error> {
    let held = match room {
        Some(room) => locks.write_all(room, &[]).map(Held::Rooms),
        None => Ok(Held::Server),
    };
    let held = held.map_err(|room| Error::RoomBusy { room })?;
    let turn = writer.lock();
    let terms = Terms {
        doing,
        held: &held,
        deadline: None,
        on_table: &|_| {},
    };
    match db.transaction(&turn, terms, |tx| Ok(work(tx)?)) {
        Ok((value, _)) => Ok(value),
        Err(Abort::Failed(e)) => Err(e),
        Err(abort) => Err(Error::Bug(format!(
            "a small change was given up: {abort:?}"
        ))),
    }
}

impl Effects {
    /// What is noted of it (S-30), where anything went that could be named.
    fn removing<'a>(&self, room: &'a RoomId) -> Option<Removing<'a>> {
        match self.rows.get("events") {
            Some(events) if *events > 0 => Some(Removing::Events),
            _ if self.rows.contains_key("rooms") => Some(Removing::Room(room)),
            _ => None,
        }
    }
}

impl Progress {
    /// Adds what a transaction did, and how long others waited for it.
    pub(crate) fn add_transaction(&mut self, effects: &Effects, took: Duration) {
        self.events_done = (self.events_done + effects.events).min(self.events_planned);
        let took = i64::try_from(took.as_millis()).unwrap_or(i64::MAX);
        self.longest_transaction_ms = self.longest_transaction_ms.max(took);
        self.add_rows(&effects.rows);
        self.state_groups_freed += effects.state_groups_freed;
        self.local_messages_kept += effects.local_messages;
        if let Some(kept) = effects.extremities_kept {
            self.extremities_kept = kept;
        }
    }
}

#[cfg(test)]
mod tests;
