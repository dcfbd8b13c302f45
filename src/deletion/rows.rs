//! A room's rows: in one transaction where it is small; where it is large, what makes it live first, then its documents,
//! its events and its state groups in batches, then what is left, the room's own row last.

use std::time::{Duration, Instant};

use crate::error::Error;
use crate::ids::RoomId;
use crate::job::{
    BUSY_TIMEOUT, BatchSizer, Cost, DiskBudget, Duties, Effects, JobContext, Limits, Log, Outcome,
    Phase, Progress, Scope, ServerState, Why, full_text, overwrite,
};
use crate::plural::count;
use crate::store::archived::Kept;
use crate::store::db::{Db, Engine, SecureDelete};
use crate::store::event_rows::{RowCounts, add};
use crate::store::state_groups::{self, Dependent, Freed, Rebase};
use crate::store::tx::{Abort, Tx};
use crate::store::{room_rows, search};

/// Events of a room that goes in one transaction when nobody waits: its log stays in the tens of megabytes.
const SMALL_OFFLINE: i64 = 10_000;

/// Rows of state, or documents, that one transaction deletes beside a live server: some 0.1 s.
const ROWS_BESIDE: i64 = 2_000;

/// The same when nobody waits; bounds the log.
const ROWS_OFFLINE: i64 = 1_000_000;

/// Bytes of log that many small rooms may leave before it is emptied.
const LOG_OF_MANY: u64 = 4 << 20;

/// How long a room that somebody else works on is left to them before it is tried for again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Prepares a connection for the deletions of many rooms, one after the other.
///
/// # Errors
/// Those of the database.
pub fn prepare_many<'a>(db: &Db, rooms: impl Iterator<Item = &'a RoomId>) -> Result<(), Error> {
    search::note_rooms(db, rooms)
}

/// Deletes every row of the room, from wherever an earlier run left it.
pub(super) fn delete(
    ctx: &mut JobContext<'_>,
    force: bool,
    progress: &mut Progress,
) -> Result<(), Error> {
    ctx.look_for_homeserver()?;
    copy_log(ctx)?;
    let left = room_rows::count_events(&ctx.db, ctx.room)?;
    progress.events_planned = progress.events_done + left;
    progress.phase = Phase::Events;
    let disk = DiskBudget::new(&ctx.db);
    let pages = match ctx.overwrite_deleted {
        true if !ctx.is_one_of_many => overwrite::choose_secure_delete(ctx, left)?,
        _ => SecureDelete::Fast,
    };
    let mut work = Work {
        force,
        sizer: BatchSizer::new(ctx.server_state, ctx.limits)
            .on_server(ctx.db.engine() == Engine::Postgres),
        ctx,
        progress,
        disk,
        most_rows: i64::MAX,
        pages,
    };
    work.free_dependents()?;
    work.sizer.set_limit(work.disk.events()?);
    if work.is_small(left) && work.at_once()? {
        work.forget()
    } else {
        work.in_batches()
    }
}

/// Offline the batches say themselves when the log is copied.
fn copy_log(ctx: &JobContext<'_>) -> Result<(), Error> {
    let pages = match ctx.server_state {
        ServerState::Stopped => 0,
        ServerState::Running => 1_000,
    };
    ctx.db.set_pragma("wal_autocheckpoint", pages)
}

/// What one transaction may do, by whether a homeserver runs as it begins.
#[derive(Clone, Copy)]
struct Pace {
    is_offline: bool,
    /// Most rows that it deletes.
    rows: i64,
    /// Whether the full-text index may be built anew from what remains.
    may_rebuild: bool,
}

struct Work<'a, 'b> {
    force: bool,
    sizer: BatchSizer,
    ctx: &'a mut JobContext<'b>,
    progress: &'a mut Progress,
    disk: DiskBudget,
    /// How pages that become free are overwritten.
    pages: SecureDelete,
    /// Most rows of one transaction, since the disk had no room for more.
    most_rows: i64,
}

impl Work<'_, '_> {
    fn is_small(&self, events: i64) -> bool {
        events
            <= match self.ctx.server_state {
                // Where the disk is small, what it has room for.
                ServerState::Stopped if self.sizer.is_limited() => self.sizer.events(),
                ServerState::Stopped => SMALL_OFFLINE.min(self.ctx.limits.events_offline),
                ServerState::Running => self.sizer.events(),
            }
    }

    fn is_offline(&self) -> bool {
        self.ctx.server_state == ServerState::Stopped
    }

    /// Looks whether a homeserver runs, and goes on as that takes.
    fn look_for_homeserver(&mut self) -> Result<(), Error> {
        self.ctx.look_for_homeserver()?;
        if self.sizer.server_state() != self.ctx.server_state {
            self.sizer = BatchSizer::new(self.ctx.server_state, self.ctx.limits)
                .on_server(self.ctx.db.engine() == Engine::Postgres);
            self.sizer.set_limit(self.disk.events()?);
            copy_log(self.ctx)?;
        }
        Ok(())
    }

    /// Which documents of the index are the room's: found by one walk for each room, or for many of them.
    fn note_documents(&self, room: &RoomId) -> Result<(), Error> {
        match self.ctx.is_one_of_many {
            true => search::note_one_of_rooms(&self.ctx.db, room),
            false => search::note_room(&self.ctx.db, room),
        }
    }

    fn pace(&self) -> Result<Pace, Error> {
        let is_offline = self.is_offline();
        let most = match is_offline {
            true => ROWS_OFFLINE,
            false => ROWS_BESIDE,
        };
        Ok(Pace {
            is_offline,
            rows: most.min(self.disk.rows()?).min(self.most_rows),
            // Not for each of many rooms.
            may_rebuild: is_offline && !self.sizer.is_limited() && !self.ctx.is_one_of_many,
        })
    }

    /// One transaction, tried for as long as others are in its way. Where it `may_give_up` and is not of a single event,
    /// `None` when others would have waited too long and nothing of it happened.
    fn batch<T>(
        &mut self,
        may_give_up: bool,
        mut work: impl FnMut(&Tx<'_>, &mut Effects, &mut Kept<'_>, Pace) -> Result<T, Abort>,
    ) -> Result<Option<(T, Cost)>, Error> {
        let waited_from = Instant::now();
        loop {
            self.ctx.publish(self.progress);
            self.look_for_homeserver()?;
            let pace = self.pace()?;
            let limits = Limits {
                deadline: self
                    .sizer
                    .deadline()
                    .filter(|_| may_give_up && self.sizer.events() > 1),
                log: match pace.is_offline {
                    true => Log::Batches(&self.disk, LOG_OF_MANY),
                    false => Log::Leave,
                },
                is_batch: true,
                ..Limits::default()
            };
            let merged = full_text::merge_in_steps(self.ctx, &self.disk);
            let (ctx, progress) = (&mut *self.ctx, &mut *self.progress);
            let (archive, clock, room) = (ctx.archive.clone(), ctx.clock, ctx.room);
            let (how, pages) = (ctx.server_state, self.pages);
            let work = |tx: &Tx<'_>, effects: &mut Effects| {
                // Whatever it deletes.
                effects.duties = Some(Duties { pages, index: true });
                let mut archive = archive.as_ref().map(|archive| archive.lock());
                let frame = archive
                    .as_mut()
                    .map(|archive| archive.frame(tx, how, clock.now()));
                let mut kept = Kept::new(frame.transpose()?);
                let done = work(tx, effects, &mut kept, pace)?;
                kept.finish(room, clock.now())?;
                effects.events = effects.rows.get("events").copied().unwrap_or(0);
                Ok(done)
            };
            match merged.and_then(|()| {
                ctx.transaction(progress, "delete the room", Scope::Room, limits, work)
            }) {
                Ok(Outcome::Done(done, cost)) => return Ok(Some((done, cost))),
                Ok(Outcome::TooLong) => return Ok(None),
                // At another pace.
                Ok(Outcome::Aborted(Why::ServerStateChanged)) => {}
                Ok(outcome @ Outcome::Aborted(_)) => return outcome.done().map(Some),
                // Nothing of it happened, and its log is gone: fewer rows at once may have room.
                Err(e)
                    if e.is_full()
                        && !may_give_up
                        && pace.rows > 1
                        && ctx.db.engine() == Engine::Sqlite =>
                {
                    self.most_rows = (pace.rows / 8).max(1);
                }
                Err(e) if e.is_full() && ctx.release_reserve() => {}
                Err(e)
                    if e.is_busy()
                        && ctx.server_state == ServerState::Running
                        && waited_from.elapsed() < BUSY_TIMEOUT =>
                {
                    log::info!(
                        "room {}: the homeserver keeps the database busy; waiting",
                        ctx.room
                    );
                    ctx.rest(self.sizer.pause());
                }
                Err(e) if e.is_index_damage() => {
                    full_text::rebuild_if_damaged(ctx, progress, e)?;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// A small room in one transaction; answers whether it was done.
    fn at_once(&mut self) -> Result<bool, Error> {
        let (room, server, force) = (self.ctx.room.clone(), self.ctx.server_name, self.force);
        self.note_documents(&room)?;
        let notes_media = self.ctx.media.are_taken;
        let done = self.batch(true, |tx, effects, kept, pace| {
            refuse_while_joined(tx, &room, server, force)?;
            room_rows::delete_live_state(tx, &room, &mut effects.rows, kept)?;
            tx.entering("event_search")?;
            let (removed, _) = search::remove_room(tx, &room, i64::MAX, pace.may_rebuild, kept)?;
            add(&mut effects.rows, "event_search", removed);
            let selected = room_rows::select_newest(tx, &room, i64::MAX)?;
            if notes_media {
                effects.note_media_of_selected(tx, server)?;
            }
            let rows = &mut effects.rows;
            room_rows::remove_selected(tx, &room, selected, rows, kept)?;
            tx.entering("state_groups")?;
            let groups = state_groups::of_room(tx, &room)?;
            free(tx, &room, &groups, i64::MAX, rows, kept)?;
            tx.entering("rooms")?;
            Ok(room_rows::remove_room(tx, &room, rows, kept)?)
        });
        match done {
            // In smaller steps it may have room.
            Err(e) if e.is_full() => Ok(false),
            done => Ok(done?.is_some()),
        }
    }

    /// A large room: after the first transaction the homeserver sees no room there.
    fn in_batches(&mut self) -> Result<(), Error> {
        let (room, server, force) = (self.ctx.room.clone(), self.ctx.server_name, self.force);
        let is_whole = self.whole_batch(|tx, rows, kept, pace| {
            refuse_while_joined(tx, &room, server, force)?;
            let is_whole = pace.is_offline && pace.rows == ROWS_OFFLINE;
            match is_whole {
                true => room_rows::delete_live_state(tx, &room, rows, kept)?,
                false => room_rows::delete_live_state_bounded(tx, &room, rows, kept)?,
            }
            Ok(is_whole)
        })?;
        if !is_whole {
            // Rows refer to events: all of these before the first of those.
            let left: Vec<_> = room_rows::left_by_live_state(&self.ctx.db).collect();
            self.delete_rest(&room, &left)?;
        }
        loop {
            self.remove_documents(&room)?;
            self.remove_events(&room)?;
            self.remove_groups(&room)?;
            if !self.is_offline() || self.pace()?.rows < ROWS_OFFLINE {
                let left = room_rows::tables_of_rest(&self.ctx.db, &room)?;
                self.delete_rest(&room, &left)?;
            }
            // What came meanwhile is few; where it is not, all begins again.
            let gone = self.whole_batch(|tx, rows, kept, _| {
                if room_rows::count_events(tx, &room)? > 0 {
                    return Ok(false);
                }
                let groups = state_groups::of_room(tx, &room)?;
                free(tx, &room, &groups, i64::MAX, rows, kept)?;
                room_rows::remove_room(tx, &room, rows, kept)?;
                Ok(true)
            })?;
            if gone {
                return self.forget();
            }
        }
    }

    /// A batch that is not given up, however long it takes, and the pause after it.
    fn whole_batch<T>(
        &mut self,
        mut work: impl FnMut(&Tx<'_>, &mut RowCounts, &mut Kept<'_>, Pace) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let done = self.batch(false, |tx, effects, kept, pace| {
            Ok(work(tx, &mut effects.rows, kept, pace)?)
        })?;
        let (done, _) =
            done.ok_or_else(|| Error::Bug("a batch without limit was given up".into()))?;
        self.ctx.rest(self.sizer.pause());
        Ok(done)
    }

    /// Removes the room's rows from tables, a bounded number in each batch.
    fn delete_rest(&mut self, room: &RoomId, tables: &[&'static str]) -> Result<(), Error> {
        for table in tables {
            while self.whole_batch(|tx, rows, kept, pace| {
                room_rows::delete_rest_bounded(tx, room, table, pace.rows, rows, kept)
            })? {}
        }
        Ok(())
    }

    fn remove_documents(&mut self, room: &RoomId) -> Result<(), Error> {
        self.note_documents(room)?;
        loop {
            let more = self.whole_batch(|tx, rows, kept, pace| {
                let (removed, more) =
                    search::remove_room(tx, room, pace.rows, pace.may_rebuild, kept)?;
                add(rows, "event_search", removed);
                Ok(more)
            })?;
            if !more {
                return Ok(());
            }
        }
    }

    fn remove_events(&mut self, room: &RoomId) -> Result<(), Error> {
        self.progress.phase = Phase::Events;
        let (started, done_before) = (Instant::now(), self.progress.events_done);
        loop {
            self.sizer.set_limit(self.disk.events()?);
            let events = self.sizer.events();
            let (notes_media, server) = (self.ctx.media.are_taken, self.ctx.server_name);
            let done = self.batch(true, |tx, effects, kept, _| {
                let selected = room_rows::select_newest(tx, room, events)?;
                if notes_media {
                    effects.note_media_of_selected(tx, server)?;
                }
                room_rows::remove_selected(tx, room, selected, &mut effects.rows, kept)?;
                tx.in_time()?;
                Ok(selected)
            });
            let done = match done {
                Err(e) if e.is_full() && events > 1 => None,
                done => done?,
            };
            let Some((selected, cost)) = done else {
                self.sizer.shrink();
                self.ctx.rest(self.sizer.pause());
                continue;
            };
            if selected < events {
                self.progress.seconds_left = None;
                return Ok(());
            }
            self.sizer.observe(selected, cost.took, cost.wal_bytes);
            self.disk.observe(selected, cost.wal_bytes);
            let progress = &mut *self.progress;
            progress.reckon(started, done_before);
            log::debug!(
                "room {room}: {} of {}",
                progress.events_done,
                count(progress.events_planned, "event")
            );
            self.ctx.rest(self.sizer.pause());
        }
    }

    /// E-17: a group of another room that rests on one of this room gets its whole state first. Here the number of rows
    /// may grow. The other room is only tried for, since this one is held.
    fn free_dependents(&mut self) -> Result<(), Error> {
        let waited_from = Instant::now();
        loop {
            let dependents = state_groups::dependents(&self.ctx.db, self.ctx.room)?;
            let Some(dependent) = dependents.first() else {
                return Ok(());
            };
            self.look_for_homeserver()?;
            if self.store_in_full(dependent)? {
                continue;
            }
            if waited_from.elapsed() > BUSY_TIMEOUT {
                return Err(Error::Refused(format!(
                    "the state of room {} rests on that of room {}, and somebody else has worked on it for ten minutes: \
                     try again when that has ended",
                    dependent.room, self.ctx.room
                )));
            }
            self.ctx.rest(LOOK_AGAIN);
        }
    }

    /// Answers whether the other room could be had.
    fn store_in_full(&mut self, dependent: &Dependent) -> Result<bool, Error> {
        let whole = Rebase {
            group: dependent.group,
            base: None,
        };
        let stored = self.ctx.small_transaction(
            "store another room's state in full",
            Scope::RoomAnd(std::slice::from_ref(&dependent.room)),
            Limits::default(),
            |tx| {
                let mut freed = Freed::default();
                Ok(state_groups::rebase(
                    tx,
                    &dependent.room,
                    whole,
                    &mut freed,
                )?)
            },
        )?;
        if let Outcome::Aborted(Why::RoomInUse(_) | Why::ServerStateChanged) = stored {
            return Ok(false);
        }
        stored.done()?;
        log::info!(
            "room {}: state group {} of room {} rested on this room's and was stored in full",
            self.ctx.room,
            dependent.group,
            dependent.room
        );
        Ok(true)
    }

    fn remove_groups(&mut self, room: &RoomId) -> Result<(), Error> {
        self.progress.phase = Phase::StateGroups;
        let groups = state_groups::of_room(&self.ctx.db, room)?;
        let mut at = 0;
        while at < groups.len() {
            at += self.whole_batch(|tx, rows, kept, pace| {
                free(tx, room, &groups[at..], pace.rows, rows, kept)
            })?;
        }
        Ok(())
    }

    /// What the ledger noted for the room is settled: there is nothing left to look at.
    fn forget(&mut self) -> Result<(), Error> {
        let (ledger, room) = (self.ctx.ledger, self.ctx.room.as_str());
        self.progress.state_groups_freed = self
            .progress
            .rows_removed
            .get("state_groups")
            .copied()
            .unwrap_or(0);
        ledger.decide(room, &[])?;
        ledger.done_up_to(room, i64::MAX)
    }
}

/// E-1.
fn refuse_while_joined(db: &Db, room: &RoomId, server: &str, force: bool) -> Result<(), Error> {
    if force || room_rows::joined_local_users(db, room, server)?.is_empty() {
        Ok(())
    } else {
        Err(Error::UsersStillJoined)
    }
}

/// Deletes state groups until about `most` rows are gone; answers how many groups were dealt with.
fn free(
    db: &Tx<'_>,
    room: &RoomId,
    groups: &[i64],
    most: i64,
    rows: &mut RowCounts,
    kept: &mut Kept<'_>,
) -> Result<usize, Error> {
    let mut freed = Freed::default();
    let done = state_groups::delete_with_room(db, room, groups, most, &mut freed, kept)?;
    freed.add_to(rows);
    Ok(done)
}
