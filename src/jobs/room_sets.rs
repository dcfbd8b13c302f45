//! The rooms of a job that works on a set of them: which were chosen, and what became of each.
//!
//! They stand in the ledger when the job is accepted and are never chosen again: what was decided is what goes. A room's
//! outcome and the job's progress are written as one change, so that a job that was interrupted counts no room twice.

use rusqlite::{OptionalExtension, params};
use serde_json::Value;

use super::ledger::Ledger;
use super::record::JobRecord;
use crate::error::{Context, Error};
use crate::ids::{JobId, RoomId};

/// What became of a room of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoomOutcome {
    /// It was purged, or deleted.
    Done,
    /// It was left alone.
    Skipped,
    /// It could not be purged or deleted.
    Failed,
}

impl RoomOutcome {
    fn text(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
        }
    }
}

/// A room whose turn is yet to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomLeft {
    /// Its place in the set.
    pub place: i64,
    /// The room.
    pub room: RoomId,
    /// Its events when the set was decided on.
    pub events: i64,
}

const DOING: &str = "note the rooms of a set in the ledger";

impl Ledger {
    /// Writes down the rooms of a job, in their order, each with its number of events: all of them or none.
    pub fn insert_room_set(&self, job: &JobId, rooms: &[(RoomId, i64)]) -> Result<(), Error> {
        let run = || {
            let mut conn = self.conn.lock();
            let tx = conn.transaction()?;
            {
                let mut insert = tx.prepare_cached(
                    "INSERT INTO room_of_set (job, place, room_id, events) VALUES ($1, $2, $3, $4)",
                )?;
                for (place, (room, events)) in (0_i64..).zip(rooms) {
                    insert.execute(params![job.as_str(), place, room.as_str(), events])?;
                }
            }
            tx.commit()
        };
        run().context(DOING)
    }

    /// How many rooms a job's set has.
    pub fn count_room_set(&self, job: &JobId) -> Result<i64, Error> {
        self.conn
            .lock()
            .query_row(
                "SELECT count(*) FROM room_of_set WHERE job = $1",
                [job.as_str()],
                |row| row.get(0),
            )
            .context("read the ledger")
    }

    /// The next rooms of a job's set without an outcome, from `place` on: no more than `most`.
    pub fn rooms_left(&self, job: &JobId, place: i64, most: usize) -> Result<Vec<RoomLeft>, Error> {
        let conn = self.conn.lock();
        let run = || {
            conn.prepare_cached(
                "SELECT place, room_id, events FROM room_of_set
                  WHERE job = $1 AND place >= $2 AND outcome IS NULL ORDER BY place LIMIT $3",
            )?
            .query_map(
                params![job.as_str(), place, i64::try_from(most).unwrap_or(i64::MAX)],
                |row| {
                    Ok(RoomLeft {
                        place: row.get(0)?,
                        room: RoomId::new(row.get::<_, String>(1)?),
                        events: row.get(2)?,
                    })
                },
            )?
            .collect::<rusqlite::Result<Vec<_>>>()
        };
        run().context("read the ledger")
    }

    /// The place of a room in a job's set, if nothing has become of it yet.
    pub fn place_of_room(&self, job: &JobId, room: &RoomId) -> Result<Option<i64>, Error> {
        self.conn
            .lock()
            .query_row(
                "SELECT place FROM room_of_set WHERE job = $1 AND room_id = $2 AND outcome IS NULL",
                params![job.as_str(), room.as_str()],
                |row| row.get(0),
            )
            .optional()
            .context("read the ledger")
    }

    /// Notes what became of a room of a set, and with it how far the job is. What power that fails takes back is done
    /// again, and finds nothing to do.
    pub fn note_room_outcome(
        &self,
        job: &JobId,
        place: i64,
        outcome: RoomOutcome,
        progress: &Value,
    ) -> Result<(), Error> {
        self.with_relaxed_sync(|conn| {
            let tx = conn.unchecked_transaction()?;
            tx.prepare_cached("UPDATE room_of_set SET outcome = $1 WHERE job = $2 AND place = $3")?
                .execute(params![outcome.text(), job.as_str(), place])?;
            tx.prepare_cached("UPDATE job SET progress = $1 WHERE id = $2")?
                .execute(params![progress.to_string(), job.as_str()])?;
            tx.commit().map(|()| 1)
        })
        .context(DOING)
        .map(drop)
    }

    /// Whether anything has become of a room of a job's set.
    pub fn has_room_outcomes(&self, job: &JobId) -> Result<bool, Error> {
        const OUTCOMES: &str = "
            SELECT EXISTS (SELECT 1 FROM room_of_set WHERE job = $1 AND outcome IS NOT NULL)";
        self.conn
            .lock()
            .query_row(OUTCOMES, [job.as_str()], |row| row.get(0))
            .context("read the ledger")
    }

    /// Jobs that have not ended and are parts of this one, oldest first.
    pub fn unended_parts(&self, job: &JobId) -> Result<Vec<JobRecord>, Error> {
        let unended = self.unended()?.into_iter();
        Ok(unended
            .filter(|record| record.params["set"] == job.as_str())
            .collect())
    }

    /// Forgets the rooms of sets whose jobs are forgotten.
    pub(super) fn forget_room_sets(conn: &rusqlite::Connection) -> rusqlite::Result<usize> {
        conn.execute(
            "DELETE FROM room_of_set WHERE job NOT IN (SELECT id FROM job)",
            [],
        )
    }
}
