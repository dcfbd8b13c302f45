//! The disk that a database file lies on: how much of it a transaction may take, and a reserve for when it is full (S-35).
//!
//! What a transaction writes goes into the write-ahead log first, which is emptied after each batch. So a batch may be as
//! large as what is free, and no job is refused because a disk is small.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::ids::RoomId;
use crate::sqlite_file::{self, NEEDED_TO_BEGIN};
use crate::store::db::Db;
use crate::store::sizes;
use crate::store::space::free_bytes;

/// From so much on, nothing here says how large a batch may be.
const PLENTY: u64 = 1 << 30;

/// Log of one event before a batch has told more: it touches some 14 pages at random, and was seen to take 56 kB.
const FIRST_PER_EVENT: u64 = 64 << 10;

/// Log of one row that is deleted by the index, at most.
const PER_ROW: u64 = 2 << 10;

/// Log of one leaf of the full-text index that is merged: it is written, and those it was made of go. Seen: 43 kB.
const PER_LEAF: u64 = 64 << 10;

/// Log of one entry of state that is written: its row, and its place in an index.
const PER_STATE_ENTRY: u64 = 512;

/// An event's text is in its table, in the full-text index, and in what both are made of meanwhile.
const TIMES_EVENT: u64 = 4;

/// Below this a job begins by letting the reserve go.
const SHORT: u64 = 4 << 20;

/// Bytes that the smallest steps of a job on a room, or on the whole server, may need; what cannot be measured counts as
/// little.
pub(crate) fn smallest_need(db: &Db, room: Option<&RoomId>) -> u64 {
    let step = sizes::smallest_step(db, room).unwrap_or_default();
    let of = |number: i64, each: u64| u64::try_from(number).unwrap_or(0).saturating_mul(each);
    NEEDED_TO_BEGIN
        .saturating_add(of(step.events.max(1), FIRST_PER_EVENT))
        .saturating_add(of(step.largest_event, TIMES_EVENT))
        .saturating_add(of(step.state_entries, PER_STATE_ENTRY))
}

/// What the disk has room for.
pub struct DiskBudget {
    path: Option<PathBuf>,
    per_event: u64,
}

impl DiskBudget {
    /// The budget of a job on this database; without bounds on a server, which looks after its own disk.
    pub fn new(db: &Db) -> Self {
        Self {
            path: db.path().map(Path::to_owned),
            per_event: FIRST_PER_EVENT,
        }
    }

    fn usable(&self) -> Result<Option<u64>, Error> {
        let Some(path) = &self.path else {
            return Ok(None);
        };
        let free = free_bytes(path)?.saturating_sub(NEEDED_TO_BEGIN);
        // Batches differ: one may take twice what the one before took.
        Ok((free < PLENTY).then_some(free / 2))
    }

    /// Most events of the next batch: at least one, which is tried whatever is free.
    pub fn events(&self) -> Result<i64, Error> {
        Ok(match self.usable()? {
            None => i64::MAX,
            Some(bytes) => i64::try_from(bytes / self.per_event.max(1))
                .unwrap_or(i64::MAX)
                .max(1),
        })
    }

    /// Most rows that one transaction deletes.
    pub fn rows(&self) -> Result<i64, Error> {
        Ok(match self.usable()? {
            None => i64::MAX,
            Some(bytes) => i64::try_from(bytes / PER_ROW).unwrap_or(i64::MAX).max(1),
        })
    }

    /// Most leaves of the full-text index that one transaction merges; `None` where the disk has room for any.
    pub fn leaves(&self) -> Result<Option<i64>, Error> {
        let leaves = |bytes: u64| i64::try_from(bytes / PER_LEAF).unwrap_or(i64::MAX);
        Ok(self.usable()?.map(|bytes| leaves(bytes).clamp(1, 512)))
    }

    /// Whether a log of this length leaves enough for the next batch.
    pub fn has_room_beside(&self, log_bytes: u64) -> bool {
        self.usable()
            .is_ok_and(|usable| usable.is_none_or(|usable| log_bytes < usable))
    }

    /// Learns from a batch what an event takes.
    pub fn observe(&mut self, events: i64, log_bytes: u64) {
        if let Ok(events @ 1..) = u64::try_from(events) {
            // Of a small batch most is the same for any.
            let told = (log_bytes / events).max(8 << 10);
            self.per_event = match events {
                0..16 => self.per_event,
                _ => told.max(self.per_event / 2),
            };
        }
    }

    /// That not even the smallest transaction on a room has room.
    pub fn full(&self, db: &Db, room: &RoomId) -> Error {
        let path = self.path.as_deref().unwrap_or(Path::new("."));
        Error::NoSpace(sqlite_file::full(&[path], smallest_need(db, Some(room))))
    }
}

/// A file that is there so that it can be given up: with it goes the room that a purge needs on a full disk.
pub struct Reserve(PathBuf);

/// What the reserve holds, in bytes.
pub const RESERVE: u64 = 16 << 20;

impl Reserve {
    /// The reserve of a database file: `roomkeeper.reserve` beside it.
    pub fn beside(database: &Path) -> Self {
        let real = fs::canonicalize(database).unwrap_or_else(|_| database.to_owned());
        Self(real.with_file_name("roomkeeper.reserve"))
    }

    /// Makes the file where it is missing and the disk has three times as much left.
    pub fn make(&self) {
        if self.0.exists() || free_bytes(&self.0).unwrap_or(0) < 4 * RESERVE {
            return;
        }
        let made = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.0)
            .and_then(|file| {
                rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE)?;
                Ok(())
            });
        if let Err(e) = made {
            log::debug!("no reserve is kept on the disk: {e}");
            let _ = fs::remove_file(&self.0);
        }
    }

    /// What it holds now, in bytes: nothing once it was given up.
    pub fn bytes(&self) -> u64 {
        fs::metadata(&self.0).map_or(0, |found| found.len())
    }

    /// Gives the file up; answers whether there was one.
    pub fn release(&self) -> bool {
        let is_gone = fs::remove_file(&self.0).is_ok();
        if is_gone {
            log::warn!(
                "the disk is full: the reserve {} was given up for it",
                self.0.display()
            );
        }
        is_gone
    }

    /// Gives the file up where the disk has hardly anything left; answers whether it did.
    pub fn release_if_short(&self) -> bool {
        free_bytes(&self.0).is_ok_and(|free| free < SHORT) && self.release()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_is_made_once_and_given_up_once() {
        let directory = tempfile::tempdir().expect("directory");
        let reserve = Reserve::beside(&directory.path().join("homeserver.db"));
        reserve.make();
        reserve.make();
        let file = directory.path().join("roomkeeper.reserve");
        assert_eq!(fs::metadata(&file).expect("made").len(), RESERVE);
        assert!(reserve.release());
        assert!(!reserve.release());
        assert!(!file.exists());
    }

    #[test]
    fn what_an_event_takes_is_learnt_and_forgotten_slowly() {
        let mut budget = DiskBudget {
            path: None,
            per_event: FIRST_PER_EVENT,
        };
        budget.observe(1_000, 1_000 << 20);
        assert_eq!(budget.per_event, 1 << 20);
        budget.observe(1_000, 1_000 << 10);
        assert_eq!(budget.per_event, 1 << 19);
        budget.observe(1, 1);
        assert_eq!(budget.per_event, 1 << 19);
        assert_eq!(budget.events().expect("no bounds"), i64::MAX);
    }
}
