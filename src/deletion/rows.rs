//! A room's rows: in one transaction where it is small; where it is large, what makes it live first, then its documents,
//! its events and its state groups in strides, then what is left, the room's own row last.

use std::fs;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::ids::RoomId;
use crate::store::db::{Db, Engine, SecureDelete};
use crate::store::event_rows::{RowCounts, add};
use crate::store::homeserver::RowLock;
use crate::store::state_groups::{self, Freed};
use crate::store::{room_rows, search, space};
use crate::worksite::{BUSY_PATIENCE, Gait, Pace, Phase, Progress, Worksite, hold, overwrite};

/// Events of a room that goes in one transaction when nobody waits: its log stays in the tens of megabytes.
const SMALL_OFFLINE: i64 = 10_000;

/// Rows of state, or documents, that one transaction deletes beside a live server: some 0.1 s.
const ROWS_BESIDE: i64 = 2_000;

/// The same when nobody waits; bounds the log.
const ROWS_OFFLINE: i64 = 1_000_000;

/// Deletes every row of the room, from wherever an earlier run left it.
pub(super) fn delete(
    site: &mut Worksite<'_>,
    force: bool,
    progress: &mut Progress,
    lock: Option<&mut RowLock>,
) -> Result<(), Error> {
    if site.gait == Gait::Offline {
        // The strides say themselves when the log is copied.
        site.db.set_pragma("wal_autocheckpoint", 0)?;
    }
    space::check_room_to_purge(&site.db)?;
    let left = room_rows::count_events(&site.db, site.room)?;
    progress.events_planned = progress.events_done + left;
    progress.phase = Phase::Events;
    let mut work = Work {
        force,
        pace: Pace::new(site.gait, site.bounds).on_server(site.db.engine() == Engine::Postgres),
        lock,
        site,
        progress,
    };
    if work.is_small(left) && work.at_once()? {
        work.forget()
    } else {
        work.in_strides()
    }
}

struct Work<'a, 'b> {
    force: bool,
    pace: Pace,
    lock: Option<&'a mut RowLock>,
    site: &'a mut Worksite<'b>,
    progress: &'a mut Progress,
}

/// What one transaction did.
struct Stride<T> {
    result: T,
    rows: RowCounts,
    took: Duration,
    wal_bytes: u64,
}

impl Work<'_, '_> {
    fn is_small(&self, events: i64) -> bool {
        events
            <= match self.site.gait {
                Gait::Offline => SMALL_OFFLINE.min(self.site.bounds.events_offline),
                Gait::Beside => self.pace.events(),
            }
    }

    fn is_offline(&self) -> bool {
        self.site.gait == Gait::Offline
    }

    fn rows_at_once(&self) -> i64 {
        if self.is_offline() {
            ROWS_OFFLINE
        } else {
            ROWS_BESIDE
        }
    }

    /// One transaction under the room's lock, the writer's and the homeserver's; `None` when others would have waited
    /// too long and nothing of it happened.
    fn stride<T>(
        &mut self,
        mut work: impl FnMut(&Db, &mut RowCounts, &mut InTime<'_>) -> Result<T, Error>,
    ) -> Result<Option<Stride<T>>, Error> {
        let waited_from = Instant::now();
        loop {
            self.site.publish(self.progress);
            self.site.stay_or_go()?;
            self.site.still_alone()?;
            match self.try_stride(&mut work) {
                Err(e)
                    if e.is_busy()
                        && self.site.gait == Gait::Beside
                        && waited_from.elapsed() < BUSY_PATIENCE =>
                {
                    log::info!(
                        "room {}: the homeserver keeps the database busy; waiting",
                        self.site.room
                    );
                    self.site.rest(self.pace.rest());
                }
                outcome => return outcome,
            }
        }
    }

    fn try_stride<T>(
        &mut self,
        work: &mut impl FnMut(&Db, &mut RowCounts, &mut InTime<'_>) -> Result<T, Error>,
    ) -> Result<Option<Stride<T>>, Error> {
        let site = &mut *self.site;
        let _room = site.locks.write(site.room);
        let writer = site.writer.lock();
        let (ledger, clock, gait) = (site.ledger, site.clock, site.gait);
        let (overwrites, pace, lock) = (site.overwrite_deleted, &self.pace, &mut self.lock);
        let mut begun = Instant::now();
        let mut gave_up = false;
        let result = site.db.write("delete the room", |db| {
            // From here on others wait for us; before, we waited for them.
            begun = Instant::now();
            hold(db, lock, clock)?;
            if overwrites {
                overwrite::owe(ledger, SecureDelete::Fast, true)?;
            }
            let mut rows = RowCounts::new();
            let mut in_time = |_: &'static str| match pace.deadline() {
                Some(deadline) if begun.elapsed() > deadline && pace.events() > 1 => {
                    gave_up = true;
                    Err(Error::Cancelled)
                }
                _ => Ok(()),
            };
            let result = work(db, &mut rows, &mut in_time)?;
            Ok((result, rows))
        });
        let took = begun.elapsed();
        let wal_bytes = site
            .db
            .wal_path()
            .and_then(|wal| fs::metadata(wal).ok())
            .map_or(0, |m| m.len());
        if gait == Gait::Offline {
            site.db.checkpoint()?;
        }
        drop(writer);
        if result.is_err() && gave_up {
            return Ok(None);
        }
        let (result, rows) = result?;
        let progress = &mut *self.progress;
        progress.strides += 1;
        progress.longest_transaction_ms =
            progress.longest_transaction_ms.max(took.as_millis() as i64);
        progress.add_rows(&rows);
        progress.events_done = (progress.events_done + rows.get("events").copied().unwrap_or(0))
            .min(progress.events_planned);
        self.site.keep(self.progress);
        Ok(Some(Stride {
            result,
            rows,
            took,
            wal_bytes,
        }))
    }

    /// A small room in one transaction; answers whether it was done.
    fn at_once(&mut self) -> Result<bool, Error> {
        let (room, server, force) = (self.site.room.clone(), self.site.server_name, self.force);
        search::note_room(&self.site.db, &room)?;
        let offline = self.is_offline();
        let done = self.stride(|db, rows, in_time| {
            refuse_while_joined(db, &room, server, force)?;
            room_rows::take_life(db, &room, rows)?;
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
        })?;
        Ok(done.is_some())
    }

    /// A large room: after the first transaction the homeserver sees no room there.
    fn in_strides(&mut self) -> Result<(), Error> {
        let (room, server, force) = (self.site.room.clone(), self.site.server_name, self.force);
        let offline = self.is_offline();
        self.whole_stride(|db, rows, _| {
            refuse_while_joined(db, &room, server, force)?;
            match offline {
                true => room_rows::take_life(db, &room, rows),
                false => room_rows::take_life_only(db, &room, rows),
            }
        })?;
        if !offline {
            // Rows refer to events: all of these before the first of those.
            let left: Vec<_> = room_rows::left_by_life(&self.site.db).collect();
            self.sweep(&room, &left)?;
        }
        loop {
            self.remove_documents(&room)?;
            self.remove_events(&room)?;
            self.remove_groups(&room)?;
            if !self.is_offline() {
                let left = room_rows::to_sweep(&self.site.db, &room)?;
                self.sweep(&room, &left)?;
            }
            // What came meanwhile is few; where it is not, all begins again.
            let gone = self.whole_stride(|db, rows, _| {
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

    /// A stride that is not given up, however long it takes, and the rest after it.
    fn whole_stride<T>(
        &mut self,
        mut work: impl FnMut(&Db, &mut RowCounts, &mut InTime<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let done = self.stride(|db, rows, _| work(db, rows, &mut |_| Ok(())))?;
        let done = done.ok_or_else(|| Error::Bug("a stride without limit was given up".into()))?;
        self.site.rest(self.pace.rest());
        Ok(done.result)
    }

    /// Removes the room's rows from tables, a bounded number in each stride.
    fn sweep(&mut self, room: &RoomId, tables: &[&'static str]) -> Result<(), Error> {
        let most = self.rows_at_once();
        for table in tables {
            while self
                .whole_stride(|db, rows, _| room_rows::sweep_some(db, room, table, most, rows))?
            {
            }
        }
        Ok(())
    }

    fn remove_documents(&mut self, room: &RoomId) -> Result<(), Error> {
        let (most, offline) = (self.rows_at_once(), self.is_offline());
        search::note_room(&self.site.db, room)?;
        loop {
            let more = self.whole_stride(|db, rows, _| {
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
            let events = self.pace.events();
            let done = self.stride(|db, rows, in_time| {
                let selected = room_rows::select_newest(db, room, events)?;
                room_rows::remove_selected(db, room, selected, rows, in_time)?;
                in_time("")?;
                Ok(selected)
            })?;
            let Some(stride) = done else {
                self.pace.shorten();
                self.site.rest(self.pace.rest());
                continue;
            };
            if stride.result < events {
                self.progress.seconds_left = None;
                return Ok(());
            }
            self.pace
                .learn(stride.result, stride.took, stride.wal_bytes);
            let progress = &mut *self.progress;
            progress.reckon(started, done_before);
            log::debug!(
                "room {room}: {} of {} events, {} rows",
                progress.events_done,
                progress.events_planned,
                stride.rows.values().sum::<i64>()
            );
            self.site.rest(self.pace.rest());
        }
    }

    fn remove_groups(&mut self, room: &RoomId) -> Result<(), Error> {
        self.progress.phase = Phase::StateGroups;
        let most = self.rows_at_once();
        let groups = state_groups::of_room(&self.site.db, room)?;
        let mut at = 0;
        while at < groups.len() {
            at += self.whole_stride(|db, rows, _| free(db, room, &groups[at..], most, rows))?;
        }
        Ok(())
    }

    /// What the ledger noted for the room is settled: there is nothing left to look at.
    fn forget(&mut self) -> Result<(), Error> {
        let (ledger, room) = (self.site.ledger, self.site.room.as_str());
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
    let done = state_groups::delete(db, room, groups, most, &mut freed)?;
    for (table, count) in [
        ("state_groups", freed.groups),
        ("state_groups_state", freed.entries),
        ("state_group_edges", freed.edges),
        ("state_groups_pending_deletion", freed.pending),
    ] {
        add(rows, table, count);
    }
    Ok(done)
}
