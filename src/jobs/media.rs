//! Media in the ledger: which files a job has to look at once its events are gone, and which lose their rows just now.
//!
//! Rows go before files. Between the two the ledger alone knows the files, so it is told before the rows go, and whoever comes
//! next finds a file whose row is gone.

use rusqlite::params;

use super::ledger::Ledger;
use crate::error::{Context, Error};
use crate::ids::JobId;

/// A file that is noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotedMedia {
    /// The server that it came from; empty where it is of this one.
    pub origin: String,
    /// Its id there.
    pub media_id: String,
    /// What it is called on the disk, where its row is going or gone.
    pub file: Option<String>,
}

const DOING: &str = "note media in the ledger";

const NOTE: &str = "INSERT OR IGNORE INTO media (job, origin, media_id) VALUES ($1, $2, $3)";

const NOTE_GOING: &str = "
    INSERT INTO media (job, origin, media_id, file) VALUES ($1, $2, $3, $4)
        ON CONFLICT (job, origin, media_id) DO UPDATE SET file = excluded.file";

const STANDS: &str =
    "UPDATE media SET file = NULL WHERE job = $1 AND origin = $2 AND media_id = $3";

const FORGET: &str = "DELETE FROM media WHERE job = $1 AND origin = $2 AND media_id = $3";

const FORGET_JOB: &str = "DELETE FROM media WHERE job = $1 AND file IS NULL";

/// Binds `$1` job, `$2` and `$3` the one before, `$4` most.
const NOTED: &str = "
    SELECT origin, media_id FROM media
     WHERE job = $1 AND file IS NULL AND (origin, media_id) > ($2, $3)
     ORDER BY origin, media_id
     LIMIT $4";

const GOING: &str = "SELECT job, origin, media_id, file FROM media WHERE file IS NOT NULL";

impl Ledger {
    /// Notes files that a job has to look at, each with origin (empty for this server) and id.
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn note_media(&self, job: &JobId, files: &[(String, String)]) -> Result<(), Error> {
        self.of_each(files, |insert, (origin, id)| {
            insert
                .prepare_cached(NOTE)?
                .execute(params![job.as_str(), origin, id])
        })
    }

    /// Notes files whose rows are about to go: on the disk when this returns.
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn media_is_going(&self, job: &JobId, files: &[NotedMedia]) -> Result<(), Error> {
        self.of_each(files, |insert, one| {
            insert.prepare_cached(NOTE_GOING)?.execute(params![
                job.as_str(),
                one.origin,
                one.media_id,
                one.file
            ])
        })
    }

    /// Forgets files: they are gone, or stay.
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn media_is_decided(&self, job: &JobId, files: &[(String, String)]) -> Result<(), Error> {
        self.of_each(files, |conn, (origin, id)| {
            conn.prepare_cached(FORGET)?
                .execute(params![job.as_str(), origin, id])
        })
    }

    /// Files whose rows stand after all: the job has to look at them again.
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn media_stands(&self, job: &JobId, files: &[(String, String)]) -> Result<(), Error> {
        self.of_each(files, |conn, (origin, id)| {
            conn.prepare_cached(STANDS)?
                .execute(params![job.as_str(), origin, id])
        })
    }

    /// Forgets all that a job had to look at.
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn forget_media(&self, job: &JobId) -> Result<(), Error> {
        let conn = self.conn.lock();
        conn.execute(FORGET_JOB, [job.as_str()])
            .context(DOING)
            .map(drop)
    }

    /// The next files that a job has to look at, after one.
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn noted_media(
        &self,
        job: &JobId,
        after: &(String, String),
        most: i64,
    ) -> Result<Vec<(String, String)>, Error> {
        let conn = self.conn.lock();
        let read = || {
            conn.prepare_cached(NOTED)?
                .query_map(params![job.as_str(), after.0, after.1, most], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        read().context("read the ledger")
    }

    /// Files whose rows were about to go when somebody was interrupted, with the job.
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn going_media(&self) -> Result<Vec<(JobId, NotedMedia)>, Error> {
        let conn = self.conn.lock();
        let read = || {
            conn.prepare_cached(GOING)?
                .query_map([], |row| {
                    let noted = NotedMedia {
                        origin: row.get(1)?,
                        media_id: row.get(2)?,
                        file: row.get(3)?,
                    };
                    Ok((JobId::from(row.get::<_, String>(0)?.as_str()), noted))
                })?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        read().context("read the ledger")
    }

    fn of_each<T>(
        &self,
        all: &[T],
        each: impl Fn(&rusqlite::Connection, &T) -> rusqlite::Result<usize>,
    ) -> Result<(), Error> {
        if all.is_empty() {
            return Ok(());
        }
        let run = || {
            let mut conn = self.conn.lock();
            let tx = conn.transaction()?;
            for one in all {
                each(&tx, one)?;
            }
            tx.commit()
        };
        run().context(DOING)
    }
}
