//! A room's rows: in one transaction where it is small; where it is large, what makes it live first, then its documents,
//! its events and its state groups in batches, then what is left, the room's own row last.

use std::fs;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::ids::RoomId;
use crate::job::{
    BUSY_TIMEOUT, BatchSizer, DiskBudget, JobContext, Phase, Progress, Removing, ServerState,
    full_text, note_removed, overwrite, renew_lock,
};
use crate::store::db::{Db, Engine, SecureDelete};
use crate::store::event_rows::{RowCounts, add};
use crate::store::homeserver::{self, PURGE_LOCK, SynapseLock};
use crate::store::state_groups::{self, Dependent, Freed, Rebase};
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
    lock: Option<&mut SynapseLock>,
) -> Result<(), Error> {
    ctx.look_for_homeserver()?;
    copy_log(ctx)?;
    let left = room_rows::count_events(&ctx.db, ctx.room)?;
    progress.events_planned = progress.events_done + left;
    progress.phase = Phase::Events;
    let disk = DiskBudget::new(&ctx.db);
    let mut work = Work {
        force,
        sizer: BatchSizer::new(ctx.server_state, ctx.limits)
            .on_server(ctx.db.engine() == Engine::Postgres),
        lock,
        ctx,
        progress,
        disk,
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

struct Work<'a, 'b> {
    force: bool,
    sizer: BatchSizer,
    lock: Option<&'a mut SynapseLock>,
    ctx: &'a mut JobContext<'b>,
    progress: &'a mut Progress,
    disk: DiskBudget,
}

/// What one transaction did.
struct Batch<T> {
    result: T,
    rows: RowCounts,
    took: Duration,
    wal_bytes: u64,
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

    /// Whether the index may be built anew from what remains; not for each of many rooms.
    fn may_rebuild_index(&self) -> bool {
        self.is_offline() && !self.sizer.is_limited() && !self.ctx.is_one_of_many
    }

    fn rows_at_once(&self) -> Result<i64, Error> {
        let most = match self.is_offline() {
            true => ROWS_OFFLINE,
            false => ROWS_BESIDE,
        };
        Ok(most.min(self.disk.rows()?))
    }

    /// One transaction under the room's lock, the writer's and the homeserver's; `None` when others would have waited
    /// too long and nothing of it happened.
    fn batch<T>(
        &mut self,
        mut work: impl FnMut(&Db, &mut RowCounts, &mut InTime<'_>) -> Result<T, Error>,
    ) -> Result<Option<Batch<T>>, Error> {
        let waited_from = Instant::now();
        loop {
            self.ctx.publish(self.progress);
            self.ctx.check_cancelled()?;
            self.look_for_homeserver()?;
            let merged = full_text::merge_in_steps(self.ctx, &self.disk);
            match merged.and_then(|()| self.try_batch(&mut work)) {
                // Nothing of it happened, and its log is gone.
                Err(e) if e.is_full() && self.ctx.release_reserve() => {}
                Err(e)
                    if e.is_busy()
                        && self.ctx.server_state == ServerState::Running
                        && waited_from.elapsed() < BUSY_TIMEOUT =>
                {
                    log::info!(
                        "room {}: the homeserver keeps the database busy; waiting",
                        self.ctx.room
                    );
                    self.ctx.rest(self.sizer.pause());
                }
                Err(e) if e.is_index_damage() => {
                    full_text::rebuild_if_damaged(self.ctx, self.progress, e)?;
                }
                outcome => return outcome,
            }
        }
    }

    fn try_batch<T>(
        &mut self,
        work: &mut impl FnMut(&Db, &mut RowCounts, &mut InTime<'_>) -> Result<T, Error>,
    ) -> Result<Option<Batch<T>>, Error> {
        let ctx = &mut *self.ctx;
        let _room = ctx.locks.write(ctx.room);
        let writer = ctx.writer.lock();
        let (ledger, clock, server_state) = (ctx.ledger, ctx.clock, ctx.server_state);
        let (room, job) = (ctx.room, ctx.live);
        let (overwrites, sizer, lock) = (ctx.overwrite_deleted, &self.sizer, &mut self.lock);
        let mut begun = Instant::now();
        let mut gave_up = false;
        let result = ctx.db.write("delete the room", |db| {
            // From here on others wait for us; before, we waited for them.
            begun = Instant::now();
            renew_lock(db, lock, clock)?;
            if overwrites {
                overwrite::add_pending(ledger, SecureDelete::Fast, true)?;
            }
            let mut rows = RowCounts::new();
            let mut in_time = |_: &'static str| match sizer.deadline() {
                Some(deadline) if begun.elapsed() > deadline && sizer.events() > 1 => {
                    gave_up = true;
                    Err(Error::Cancelled)
                }
                _ => Ok(()),
            };
            let result = work(db, &mut rows, &mut in_time)?;
            let removing = match rows.get("events") {
                Some(events) if *events > 0 => Removing::Events,
                _ if rows.contains_key("rooms") => Removing::Room(room),
                _ => Removing::Nothing,
            };
            note_removed(db, ledger, job, removing)?;
            Ok((result, rows))
        });
        let took = begun.elapsed();
        if result.is_ok() {
            ctx.note_commit();
        }
        let wal_bytes = ctx
            .db
            .wal_path()
            .and_then(|wal| fs::metadata(wal).ok())
            .map_or(0, |m| m.len());
        // Many small rooms share the log, where the disk has room for it.
        let shares_log = result.is_ok()
            && ctx.is_one_of_many
            && !self.sizer.is_limited()
            && wal_bytes < LOG_OF_MANY;
        if server_state == ServerState::Stopped && !shares_log {
            let emptied = ctx.db.checkpoint();
            if result.is_ok() {
                emptied?;
            }
        }
        drop(writer);
        if result.is_err() && gave_up {
            return Ok(None);
        }
        let (result, rows) = result?;
        let progress = &mut *self.progress;
        progress.batches += 1;
        progress.longest_transaction_ms =
            progress.longest_transaction_ms.max(took.as_millis() as i64);
        progress.add_rows(&rows);
        progress.events_done = (progress.events_done + rows.get("events").copied().unwrap_or(0))
            .min(progress.events_planned);
        self.ctx.save_progress(self.progress);
        Ok(Some(Batch {
            result,
            rows,
            took,
            wal_bytes,
        }))
    }

    /// A small room in one transaction; answers whether it was done.
    fn at_once(&mut self) -> Result<bool, Error> {
        let (room, server, force) = (self.ctx.room.clone(), self.ctx.server_name, self.force);
        self.note_documents(&room)?;
        let offline = self.may_rebuild_index();
        let done = self.batch(|db, rows, in_time| {
            refuse_while_joined(db, &room, server, force)?;
            room_rows::delete_live_state(db, &room, rows)?;
            in_time("event_search")?;
            let (removed, _) = search::remove_room(db, &room, i64::MAX, offline)?;
            add(rows, "event_search", removed);
            let selected = room_rows::select_newest(db, &room, i64::MAX)?;
            room_rows::remove_selected(db, &room, selected, rows, in_time)?;
            in_time("state_groups")?;
            let groups = state_groups::of_room(db, &room)?;
            free(db, &room, &groups, i64::MAX, rows)?;
            in_time("rooms")?;
            room_rows::remove_room(db, &room, rows)
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
        let offline = self.is_offline();
        self.whole_batch(|db, rows, _| {
            refuse_while_joined(db, &room, server, force)?;
            match offline {
                true => room_rows::delete_live_state(db, &room, rows),
                false => room_rows::delete_live_state_bounded(db, &room, rows),
            }
        })?;
        if !offline {
            // Rows refer to events: all of these before the first of those.
            let left: Vec<_> = room_rows::left_by_live_state(&self.ctx.db).collect();
            self.delete_rest(&room, &left)?;
        }
        loop {
            self.remove_documents(&room)?;
            self.remove_events(&room)?;
            self.remove_groups(&room)?;
            if !self.is_offline() {
                let left = room_rows::tables_of_rest(&self.ctx.db, &room)?;
                self.delete_rest(&room, &left)?;
            }
            // What came meanwhile is few; where it is not, all begins again.
            let gone = self.whole_batch(|db, rows, _| {
                if room_rows::count_events(db, &room)? > 0 {
                    return Ok(false);
                }
                let groups = state_groups::of_room(db, &room)?;
                free(db, &room, &groups, i64::MAX, rows)?;
                room_rows::remove_room(db, &room, rows)?;
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
        mut work: impl FnMut(&Db, &mut RowCounts, &mut InTime<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let done = self.batch(|db, rows, _| work(db, rows, &mut |_| Ok(())))?;
        let done = done.ok_or_else(|| Error::Bug("a batch without limit was given up".into()))?;
        self.ctx.rest(self.sizer.pause());
        Ok(done.result)
    }

    /// Removes the room's rows from tables, a bounded number in each batch.
    fn delete_rest(&mut self, room: &RoomId, tables: &[&'static str]) -> Result<(), Error> {
        let most = self.rows_at_once()?;
        for table in tables {
            while self.whole_batch(|db, rows, _| {
                room_rows::delete_rest_bounded(db, room, table, most, rows)
            })? {}
        }
        Ok(())
    }

    fn remove_documents(&mut self, room: &RoomId) -> Result<(), Error> {
        let most = self.rows_at_once()?;
        let offline = self.may_rebuild_index();
        self.note_documents(room)?;
        loop {
            let more = self.whole_batch(|db, rows, _| {
                let (removed, more) = search::remove_room(db, room, most, offline)?;
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
            let done = self.batch(|db, rows, in_time| {
                let selected = room_rows::select_newest(db, room, events)?;
                room_rows::remove_selected(db, room, selected, rows, in_time)?;
                in_time("")?;
                Ok(selected)
            });
            let done = match done {
                Err(e) if e.is_full() && events > 1 => None,
                done => done?,
            };
            let Some(batch) = done else {
                self.sizer.shrink();
                self.ctx.rest(self.sizer.pause());
                continue;
            };
            if batch.result < events {
                self.progress.seconds_left = None;
                return Ok(());
            }
            self.sizer
                .observe(batch.result, batch.took, batch.wal_bytes);
            self.disk.observe(batch.result, batch.wal_bytes);
            let progress = &mut *self.progress;
            progress.reckon(started, done_before);
            log::debug!(
                "room {room}: {} of {} events, {} rows",
                progress.events_done,
                progress.events_planned,
                batch.rows.values().sum::<i64>()
            );
            self.ctx.rest(self.sizer.pause());
        }
    }

    /// E-17: a group of another room that rests on one of this room gets its whole state first. Here the number of rows
    /// may grow. The other room is only tried for, since this one is held.
    fn free_dependents(&mut self) -> Result<(), Error> {
        let doing = "store another room's state in full";
        let waited_from = Instant::now();
        loop {
            let dependents = state_groups::dependents(&self.ctx.db, self.ctx.room)?;
            let Some(dependent) = dependents.first() else {
                return Ok(());
            };
            self.ctx.check_cancelled()?;
            self.look_for_homeserver()?;
            if self.store_in_full(dependent, doing)? {
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
    fn store_in_full(&mut self, dependent: &Dependent, doing: &'static str) -> Result<bool, Error> {
        let (ctx, lock) = (&mut *self.ctx, &mut self.lock);
        let _room = ctx.locks.write(ctx.room);
        let Some(_other) = ctx.locks.try_write(&dependent.room) else {
            return Ok(false);
        };
        let _writer = ctx.writer.lock();
        let clock = ctx.clock;
        let mut theirs = None;
        if homeserver::has_locks(&ctx.db) {
            let names = &[PURGE_LOCK];
            theirs = SynapseLock::try_acquire(&mut ctx.db, names, &dependent.room, clock)?;
            if theirs.is_none() {
                return Ok(false);
            }
        }
        let whole = Rebase {
            group: dependent.group,
            base: None,
        };
        let stored = ctx.db.write(doing, |db| {
            renew_lock(db, lock, clock)?;
            let mut freed = Freed::default();
            state_groups::rebase(db, &dependent.room, whole, &mut freed)
        });
        if let Some(theirs) = theirs {
            theirs.release(&mut ctx.db)?;
        }
        log::info!(
            "room {}: state group {} of room {} rested on this room's and was stored in full",
            ctx.room,
            dependent.group,
            dependent.room
        );
        stored.map(|()| true)
    }

    fn remove_groups(&mut self, room: &RoomId) -> Result<(), Error> {
        self.progress.phase = Phase::StateGroups;
        let most = self.rows_at_once()?;
        let groups = state_groups::of_room(&self.ctx.db, room)?;
        let mut at = 0;
        while at < groups.len() {
            at += self.whole_batch(|db, rows, _| free(db, room, &groups[at..], most, rows))?;
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

/// Hears of every table before its rows go; its error ends the work.
type InTime<'a> = dyn FnMut(&'static str) -> Result<(), Error> + 'a;

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
    db: &Db,
    room: &RoomId,
    groups: &[i64],
    most: i64,
    rows: &mut RowCounts,
) -> Result<usize, Error> {
    let mut freed = Freed::default();
    let done = state_groups::delete_with_room(db, room, groups, most, &mut freed)?;
    freed.add_to(rows);
    Ok(done)
}
