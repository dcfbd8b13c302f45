//! What the ledger knows of what jobs have removed: by this an older database is recognised that was put in the place of
//! the one they worked on (S-30).
//!
//! A row is noted before its batch commits. It counts once the batch has committed and power that fails can no longer take
//! it back: only then does an event that stands again mean another database. The greatest stream ordering counts from the
//! last such row on, the least of them, because of the batches since then nobody knows which have been kept.

use rusqlite::params;

use super::ledger::Ledger;
use crate::error::{Context, Error};
use crate::ids::{EventId, JobId, RoomId};

/// How many rows are kept. The last one that is certain tells as much as all of them.
const MOST_ROWS: i64 = 200;

const DOING: &str = "note in the ledger what is removed";

/// What a batch is about to remove, as far as it is noted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// One of its events, with the stream ordering.
    pub event: Option<(EventId, i64)>,
    /// The room, where its own row goes.
    pub room: Option<RoomId>,
    /// The greatest stream ordering of the database once it is done.
    pub greatest: Option<i64>,
}

/// What must not be so in the database that the jobs have worked on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Events that are gone, with their stream orderings; newest first.
    pub events: Vec<(EventId, i64)>,
    /// Rooms that are gone.
    pub rooms: Vec<RoomId>,
    /// No database of ours has a lower greatest stream ordering than this.
    pub greatest: Option<i64>,
}

impl Ledger {
    /// Notes what a transaction is about to remove; to be called inside it, before it commits. What lowers the greatest
    /// stream ordering is on the disk when this returns, because without it that would look like another database.
    pub fn note_removed(&self, job: &JobId, removed: &Removed) -> Result<(), Error> {
        const INSERT: &str = "
            INSERT INTO removed (job, event_id, stream_ordering, room_id, greatest, stage)
            VALUES ($1, $2, $3, $4, $5, 0)";
        // Its transaction was rolled back.
        const FORGET_LAST: &str = "DELETE FROM removed WHERE job = $1 AND stage = 0";
        const FORGET: &str = "
            DELETE FROM removed WHERE seq <= (SELECT max(seq) FROM removed) - $1";
        let lowers = self
            .least_greatest()?
            .is_some_and(|before| removed.greatest.is_none_or(|now| now < before));
        let event = removed.event.as_ref();
        let run = |conn: &rusqlite::Connection| {
            conn.execute(FORGET_LAST, [job.as_str()])?;
            conn.execute(
                INSERT,
                params![
                    job.as_str(),
                    event.map(|(id, _)| id.as_str()),
                    event.map(|(_, order)| order),
                    removed.room.as_ref().map(RoomId::as_str),
                    // A database without events has none that is greater.
                    removed.greatest.unwrap_or(i64::MIN),
                ],
            )?;
            conn.execute(FORGET, [MOST_ROWS])
        };
        let noted = match lowers {
            true => run(&self.conn.lock()),
            false => self.with_relaxed_sync(run),
        };
        noted.context(DOING).map(drop)
    }

    /// What a job has removed stands again, because it was restored: that is no sign of another database.
    pub fn is_restored(&self, job: &JobId) -> Result<(), Error> {
        const FORGET: &str = "DELETE FROM removed WHERE job = $1";
        self.conn
            .lock()
            .execute(FORGET, [job.as_str()])
            .context(DOING)
            .map(drop)
    }

    /// What the job noted last has committed; `is_on_disk` says that it, and all before it, cannot be taken back any more.
    pub fn removed_is_committed(&self, job: &JobId, is_on_disk: bool) -> Result<(), Error> {
        const MARK: &str = "UPDATE removed SET stage = $1 WHERE job = $2 AND stage < $1";
        let stage = if is_on_disk { 2 } else { 1 };
        self.with_relaxed_sync(|conn| conn.execute(MARK, params![stage, job.as_str()]))
            .context(DOING)
            .map(drop)
    }

    /// Events that a job has noted, and that are gone as far as is known.
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn noted_removed(&self, job: &JobId) -> Result<Vec<EventId>, Error> {
        const NOTED: &str = "
            SELECT event_id FROM removed
             WHERE job = $1 AND event_id IS NOT NULL AND stage > 0 ORDER BY seq DESC LIMIT 20";
        let conn = self.conn.lock();
        let read = || {
            conn.prepare_cached(NOTED)?
                .query_map([job.as_str()], |row| {
                    row.get(0).map(|id: String| EventId::new(id))
                })?
                .collect::<rusqlite::Result<Vec<EventId>>>()
        };
        read().context("read the ledger")
    }

    /// Whether a job may have removed anything, as far back as that is noted.
    pub fn has_noted_removed(&self, job: &JobId) -> Result<bool, Error> {
        const NOTED: &str = "
            SELECT EXISTS (SELECT 1 FROM removed
                            WHERE job = $1 AND (event_id IS NOT NULL OR room_id IS NOT NULL))";
        self.conn
            .lock()
            .query_row(NOTED, [job.as_str()], |row| row.get(0))
            .context("read the ledger")
    }

    /// No database that the jobs have worked on has a lower greatest stream ordering; `None` where that is not known.
    fn least_greatest(&self) -> Result<Option<i64>, Error> {
        const LEAST: &str = "
            SELECT min(greatest) FROM removed WHERE seq >= (SELECT max(seq) FROM removed WHERE stage = 2)";
        self.conn
            .lock()
            .query_row(LEAST, [], |row| row.get(0))
            .context("read the ledger")
    }

    /// What must not be so in a database that the jobs have worked on.
    pub fn evidence(&self) -> Result<Evidence, Error> {
        const ROWS: &str = "
            SELECT event_id, stream_ordering, room_id FROM removed WHERE stage = 2 ORDER BY seq DESC";
        let mut found = Evidence {
            greatest: self.least_greatest()?,
            ..Evidence::default()
        };
        let conn = self.conn.lock();
        let mut run = || {
            let mut statement = conn.prepare_cached(ROWS)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                if let (Some(event), Some(order)) = (row.get::<_, Option<String>>(0)?, row.get(1)?)
                {
                    found.events.push((EventId::new(event), order));
                }
                if let Some(room) = row.get::<_, Option<String>>(2)? {
                    found.rooms.push(RoomId::new(room));
                }
            }
            Ok::<_, rusqlite::Error>(())
        };
        run().context("read the ledger")?;
        Ok(found)
    }

    /// From now on the database counts as it is: a person has looked at it, or it was put back on purpose.
    #[cfg(test)]
    pub fn forget_removed(&self) -> Result<(), Error> {
        self.conn
            .lock()
            .execute("DELETE FROM removed", [])
            .context(DOING)
            .map(drop)
    }

    /// Has every job that has not ended wait for a person, with the reason; steps that were decided on become candidates
    /// again, and what was noted of the other database is forgotten. Answers how many jobs wait now.
    pub fn hold_unended(
        &self,
        why: &str,
        group_of_step: &dyn Fn(&str) -> Option<i64>,
    ) -> Result<usize, Error> {
        let run = || {
            let mut conn = self.conn.lock();
            let tx = conn.transaction()?;
            let held = tx.execute(
                "UPDATE job SET state = 'waiting', waits = $1
                  WHERE state IN ('queued', 'running', 'paused')",
                [why],
            )?;
            let steps = tx
                .prepare("SELECT subject, step FROM step")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<Vec<(String, String)>>>()?;
            for (subject, step) in steps {
                if let Some(group) = group_of_step(&step) {
                    tx.execute(
                        "INSERT OR IGNORE INTO candidate (subject, number) VALUES ($1, $2)",
                        params![subject, group],
                    )?;
                }
            }
            tx.execute("DELETE FROM step", [])?;
            tx.execute("DELETE FROM removed", [])?;
            tx.commit()?;
            Ok::<_, rusqlite::Error>(held)
        };
        run().context("have interrupted jobs wait")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> (tempfile::TempDir, Ledger) {
        let dir = tempfile::tempdir().expect("directory");
        let ledger = Ledger::open(&dir.path().join("l")).expect("opens");
        (dir, ledger)
    }

    fn of(event: &str, order: i64, greatest: i64) -> Removed {
        Removed {
            event: Some((event.into(), order)),
            room: None,
            greatest: Some(greatest),
        }
    }

    #[test]
    fn only_what_is_on_the_disk_for_certain_tells_of_another_database() {
        let (_dir, ledger) = ledger();
        let (job, other) = (JobId::from("A"), JobId::from("B"));
        ledger.note_removed(&job, &of("$1", 1, 50)).expect("noted");
        assert_eq!(ledger.evidence().expect("read"), Evidence::default());
        ledger.removed_is_committed(&job, true).expect("noted");
        ledger
            .note_removed(&other, &of("$2", 2, 60))
            .expect("noted");
        // One that is rolled back is noted again.
        ledger
            .note_removed(&other, &of("$2", 2, 60))
            .expect("noted");
        ledger.removed_is_committed(&other, false).expect("noted");
        let found = ledger.evidence().expect("read");
        assert_eq!(found.events, [("$1".into(), 1)]);
        // Whether the batch of 60 was kept is not known.
        assert_eq!(found.greatest, Some(50));
        // Nor is it of one that took the newest event of all away.
        ledger
            .note_removed(&other, &of("$3", 50, 40))
            .expect("noted");
        assert_eq!(ledger.evidence().expect("read").greatest, Some(40));
        ledger.removed_is_committed(&other, true).expect("noted");
        let found = ledger.evidence().expect("read");
        assert_eq!(found.events[0], ("$3".into(), 50));
        assert_eq!((found.events.len(), found.greatest), (3, Some(40)));
        ledger.forget_removed().expect("forgotten");
        assert_eq!(ledger.evidence().expect("read"), Evidence::default());
    }

    #[test]
    fn what_is_noted_does_not_grow_without_bound() {
        let (_dir, ledger) = ledger();
        let job = JobId::from("A");
        for n in 0..2 * MOST_ROWS {
            ledger.note_removed(&job, &of("$x", n, n)).expect("noted");
            ledger.removed_is_committed(&job, true).expect("noted");
        }
        let found = ledger.evidence().expect("read");
        assert_eq!(found.events.len() as i64, MOST_ROWS);
        assert_eq!(found.events[0].1, 2 * MOST_ROWS - 1);
    }
}
