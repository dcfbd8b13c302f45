//! The ledger: a SQLite file of ours in which every job stands before it starts, and how it ended.
//!
//! Nothing of ours goes into Synapse's tables. The ledger has one owner at a time: it is locked for as long as
//! it is open, so a second process learns that there is a first. It is written with full durability, because
//! what it promises ("these state groups will be looked at") must be on disk before the database changes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::Value;

use super::holds::Cached;
use super::receipts::{self, Signer};
pub use super::record::{JobRecord, State, Subject};
use super::schema::{self, Found};
use crate::error::{Context, Error, StoreError};
use crate::ids::JobId;
use crate::sqlite_file;
use crate::time::Millis;

/// How long an ended job can still be asked about by its id (S-10): 24 hours.
pub const REMEMBER_ENDED_FOR: Millis = Millis(24 * 60 * 60 * 1000);

/// Time for a predecessor that is just ending to let go.
const OWNER_TIMEOUT: Duration = Duration::from_millis(500);

/// Pages of the ledger's log after which it is copied, which takes three syncs: where the disk is small and where it is not,
/// and how many free bytes that takes. A room that goes with others notes some twelve.
const SHORT_LOG: u32 = 64;
const LONG_LOG: u32 = 1_000;
const ROOM_FOR_LONG_LOG: u64 = 64 << 20;

/// The open ledger; its owner is this process until it is dropped.
pub struct Ledger {
    pub(super) conn: Mutex<Connection>,
    path: PathBuf,
    /// As the table has them, and how often each was noted; nobody else can change it.
    pending_cleanup: Mutex<BTreeMap<String, u64>>,
    pub(super) holds: Mutex<Cached>,
    pub(super) signer: Mutex<Signer>,
}

pub(super) const RECORD: &str = "
    SELECT id, kind, subject_kind, subject, state, error, error_code, waits, asked_by, params, progress, created_ms,
           started_ms, ended_ms
      FROM job";

pub(super) fn record(row: &Row<'_>) -> rusqlite::Result<JobRecord> {
    let json = |at: usize| -> rusqlite::Result<Value> {
        Ok(serde_json::from_str(&row.get::<_, String>(at)?).unwrap_or(Value::Null))
    };
    Ok(JobRecord {
        id: JobId::new(row.get::<_, String>(0)?),
        kind: row.get(1)?,
        subject: Subject::of_columns(&row.get::<_, String>(2)?, &row.get::<_, String>(3)?),
        state: State::of(&row.get::<_, String>(4)?),
        error: row.get(5)?,
        error_code: row.get(6)?,
        waits: row.get(7)?,
        asked_by: row.get(8)?,
        params: json(9)?,
        progress: json(10)?,
        created_ms: Millis(row.get(11)?),
        started_ms: row.get::<_, Option<i64>>(12)?.map(Millis),
        ended_ms: row.get::<_, Option<i64>>(13)?.map(Millis),
    })
}

/// How a job ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    /// The public text of its error, and which of ours that is; none where it ended well.
    pub error: Option<(&'a str, &'a str)>,
    /// What it did.
    pub progress: &'a Value,
    /// When.
    pub at: Millis,
}

/// Binds `$1` when, `$2` the job.
pub(super) const START: &str = "
    UPDATE job SET state = 'running', waits = NULL, started_ms = coalesce(started_ms, $1) WHERE id = $2";

const INSERT: &str = "write the job into the ledger";

fn insert(conn: &Connection, job: &JobRecord) -> rusqlite::Result<usize> {
    let (kind, subject) = job.subject.columns();
    conn.execute(
        "INSERT INTO job (id, kind, subject_kind, subject, params, state, asked_by, progress, created_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        params![
            job.id.as_str(),
            job.kind,
            kind,
            subject,
            job.params.to_string(),
            job.state.text(),
            job.asked_by,
            job.progress.to_string(),
            job.created_ms.0
        ],
    )
}

const END: &str = "note a job's end in the ledger";

/// With its receipt: there is none without the other.
fn note_end(
    conn: &Connection,
    id: &JobId,
    ended: Ended<'_>,
    is_part: bool,
) -> rusqlite::Result<usize> {
    let tx = conn.unchecked_transaction()?;
    let noted = update_ended(&tx, id, ended)?;
    receipts::note_end(&tx, id, ended, is_part)?;
    tx.commit()?;
    Ok(noted)
}

fn update_ended(conn: &Connection, id: &JobId, ended: Ended<'_>) -> rusqlite::Result<usize> {
    let state = if ended.error.is_some() {
        State::Failed
    } else {
        State::Complete
    };
    conn.execute(
        "UPDATE job SET state = $1, error = $2, error_code = $3, waits = NULL, progress = $4, ended_ms = $5
          WHERE id = $6",
        params![
            state.text(),
            ended.error.map(|(text, _)| text).filter(|e| !e.is_empty()),
            ended.error.map(|(_, code)| code),
            ended.progress.to_string(),
            ended.at.0,
            id.as_str()
        ],
    )
}

/// A place that cannot hold a ledger.
pub(crate) fn unfit(path: &Path, why: &str) -> Error {
    Error::Config(format!(
        "the ledger {} cannot be used: {why}; say another place with roomkeeper.ledger",
        path.display()
    ))
}

/// What is lost with a ledger, and that the database is not.
const WHAT_IS_LOST: &str = "lost are the list of jobs and how they ended, which of them were interrupted (they do not go \
     on), and what was left to clean up (`roomkeeper reclaim` overwrites what was deleted). The homeserver's database is \
     not touched by this";

pub(super) fn damaged(path: &Path, what: &StoreError) -> Error {
    let path = path.display();
    Error::Refused(format!(
        "the ledger {path} is damaged ({what}). With it {WHAT_IS_LOST}. Move it out of the way (mv {path} {path}.damaged), \
         look with `roomkeeper check` whether the database is sound, and start again"
    ))
}

impl Ledger {
    /// Opens or makes the ledger and becomes its owner. One of an earlier version is brought up to date.
    ///
    /// # Errors
    /// [`Error::LedgerLocked`] while another process owns it; [`Error::Config`] where it is a database of something else;
    /// [`Error::Refused`] where it is damaged, or of a newer roomkeeper.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let doing = "open the ledger";
        let conn = Connection::open(path).context(doing)?;
        conn.busy_timeout(OWNER_TIMEOUT).context(doing)?;
        let refused = |e| match StoreError::from(e) {
            e if e.is_busy() => Error::LedgerLocked(path.to_owned()),
            e if e.is_damage() || e.is_no_database() => damaged(path, &e),
            source => Error::Store { doing, source },
        };
        // Before anything is written to it.
        conn.execute_batch("PRAGMA locking_mode = EXCLUSIVE")
            .map_err(refused)?;
        match schema::look(&conn).map_err(refused)? {
            Found::Nothing | Found::Ledger => {}
            Found::Newer(version) => {
                return Err(schema::is_newer(path, version));
            }
            Found::SomethingElse => return Err(unfit(path, "it is a database of something else")),
        }
        conn.execute_batch(&format!(
            "PRAGMA journal_mode = WAL;
             PRAGMA wal_autocheckpoint = {SHORT_LOG};
             PRAGMA synchronous = FULL;
             BEGIN IMMEDIATE; COMMIT;"
        ))
        .map_err(refused)?;
        let sound: String = conn
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(refused)?;
        if sound != "ok" {
            let what = StoreError::Io(std::io::Error::other(sound));
            return Err(damaged(path, &what));
        }
        schema::bring_up_to_date(&conn).map_err(refused)?;
        // S-19: whoever ran a job was the owner, and is gone.
        conn.execute(
            "UPDATE job SET state = 'queued' WHERE state = 'running'",
            [],
        )
        .map_err(refused)?;
        let pending_cleanup = conn
            .prepare("SELECT name FROM duty")
            .and_then(|mut s| s.query_map([], |row| Ok((row.get(0)?, 1)))?.collect())
            .map_err(refused)?;
        let ledger = Self {
            conn: Mutex::new(conn),
            path: path.to_owned(),
            pending_cleanup: Mutex::new(pending_cleanup),
            holds: Mutex::default(),
            signer: Mutex::default(),
        };
        if let Err(e) = ledger.reconcile_holds() {
            // Each of the two places holds by itself.
            log::warn!("{}", crate::error::Chain(&e));
        }
        if let Err(e) = ledger.look_at_receipts() {
            log::warn!("{}", crate::error::Chain(&e));
        }
        Ok(ledger)
    }

    /// The ledger's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is unfinished work in it, and on another database than this.
    pub fn is_of_another(&self, identity: &str) -> Result<bool, Error> {
        const OF_ANOTHER: &str = "
            SELECT EXISTS (SELECT 1 FROM subject_database WHERE identity <> $1)
               AND (EXISTS (SELECT 1 FROM job WHERE state NOT IN ('complete', 'failed'))
                    OR EXISTS (SELECT 1 FROM candidate) OR EXISTS (SELECT 1 FROM step) OR EXISTS (SELECT 1 FROM duty)
                    OR EXISTS (SELECT 1 FROM media))";
        self.conn
            .lock()
            .query_row(OF_ANOTHER, [identity], |row| row.get(0))
            .context("look whose ledger it is")
    }

    /// The database that it is about, if that was ever said.
    pub fn identity(&self) -> Result<Option<String>, Error> {
        const IDENTITY: &str = "SELECT identity FROM subject_database";
        let conn = self.conn.lock();
        let found = conn.query_row(IDENTITY, [], |row| row.get(0)).optional();
        found.context("look whose ledger it is")
    }

    /// From now on it is this database's.
    pub fn adopt(&self, identity: &str) -> Result<(), Error> {
        const ADOPT: &str = "
            INSERT INTO subject_database VALUES (1, $1)
                ON CONFLICT (one) DO UPDATE SET identity = excluded.identity WHERE identity <> excluded.identity";
        self.conn
            .lock()
            .execute(ADOPT, [identity])
            .context("say whose ledger it is")
            .map(drop)
    }

    /// A change that a killed process has not lost, and that power which fails may take back: what follows from it is
    /// found in the database, and is done again. It reaches the disk with the next change that must be there.
    pub(super) fn with_relaxed_sync(
        &self,
        change: impl FnOnce(&Connection) -> rusqlite::Result<usize>,
    ) -> rusqlite::Result<usize> {
        let conn = self.conn.lock();
        let pages = match sqlite_file::free_bytes_beside(&self.path) {
            Some(free) if free > ROOM_FOR_LONG_LOG => LONG_LOG,
            _ => SHORT_LOG,
        };
        conn.execute_batch(&format!(
            "PRAGMA wal_autocheckpoint = {pages}; PRAGMA synchronous = NORMAL"
        ))?;
        let changed = change(&conn);
        conn.execute_batch("PRAGMA synchronous = FULL")?;
        changed
    }

    /// Writes a new job down. It is there before anything starts.
    pub fn insert(&self, job: &JobRecord) -> Result<(), Error> {
        let noted = insert(&self.conn.lock(), job);
        noted.context(INSERT).map(drop)
    }

    /// The same for a part of another job, which is begun again by that one where power that fails takes this back. What
    /// the part notes for certain makes this certain as well.
    pub fn insert_part(&self, job: &JobRecord) -> Result<(), Error> {
        let noted = self.with_relaxed_sync(|conn| insert(conn, job));
        noted.context(INSERT).map(drop)
    }

    /// Takes back a job that could not be queued.
    pub fn cancel_enqueue(&self, id: &JobId) -> Result<(), Error> {
        let run = || {
            let conn = self.conn.lock();
            conn.execute("DELETE FROM job WHERE id = $1", [id.as_str()])?;
            Self::forget_room_sets(&conn)
        };
        run().context("take a job out of the ledger").map(drop)
    }

    /// Notes that a worker has the job.
    pub fn start(&self, id: &JobId, now: Millis) -> Result<(), Error> {
        let run =
            || self.with_relaxed_sync(|conn| conn.execute(START, params![now.0, id.as_str()]));
        run().context("note a job's start in the ledger").map(drop)
    }

    /// Notes how far a job is.
    pub fn progress(&self, id: &JobId, progress: &Value) -> Result<(), Error> {
        let run = || {
            self.with_relaxed_sync(|conn| {
                conn.execute(
                    "UPDATE job SET progress = $1 WHERE id = $2",
                    params![progress.to_string(), id.as_str()],
                )
            })
        };
        run()
            .context("note a job's progress in the ledger")
            .map(drop)
    }

    /// Hands an interrupted job back, to be resumed at the next start; or, paused, when somebody says so.
    pub fn suspend(&self, id: &JobId, is_paused: bool, progress: &Value) -> Result<(), Error> {
        let state = if is_paused {
            State::Paused
        } else {
            State::Queued
        };
        let run = || {
            self.conn.lock().execute(
                "UPDATE job SET state = $1, progress = $2 WHERE id = $3",
                params![state.text(), progress.to_string(), id.as_str()],
            )
        };
        run().context("hand a job back to the ledger").map(drop)
    }

    /// A job that does not run waits for a person no longer, or from now on.
    pub fn set_state(&self, id: &JobId, state: State) -> Result<(), Error> {
        let run = || {
            self.conn.lock().execute(
                "UPDATE job SET state = $1, waits = NULL WHERE id = $2",
                params![state.text(), id.as_str()],
            )
        };
        run().context("note a job's state in the ledger").map(drop)
    }

    /// Notes a job's end; the 24 hours start now (S-10).
    pub fn end(&self, id: &JobId, ended: Ended<'_>) -> Result<(), Error> {
        let noted = note_end(&self.conn.lock(), id, ended, false);
        noted.context(END)?;
        self.checkpoint(ended.at);
        Ok(())
    }

    /// The same for a part of another job, whose own end is yet to come: nobody was told of it, and one whose end power
    /// that fails takes back is begun again and finds nothing to do.
    pub fn end_part(&self, id: &JobId, ended: Ended<'_>) -> Result<(), Error> {
        let noted = self.with_relaxed_sync(|conn| note_end(conn, id, ended, true));
        noted.context(END).map(drop)
    }

    /// The job of this id, ended however long ago the ledger remembers.
    pub fn get(&self, id: &JobId) -> Result<Option<JobRecord>, Error> {
        let run = || {
            self.conn
                .lock()
                .query_row(&format!("{RECORD} WHERE id = $1"), [id.as_str()], record)
                .optional()
        };
        run().context("read the ledger")
    }

    /// The job of this id and kind, unless it ended 24 hours ago or more (S-9, S-10).
    pub fn look_up(&self, id: &JobId, kind: &str, now: Millis) -> Result<Option<JobRecord>, Error> {
        let found = self.get(id)?.filter(|job| job.kind == kind);
        Ok(found.filter(|job| {
            job.ended_ms
                .is_none_or(|ended| now - ended < REMEMBER_ENDED_FOR)
        }))
    }

    /// The jobs of a subject and kind that have not ended, or ended less than 24 hours ago; oldest first (S-11, S-12).
    pub fn of_subject(
        &self,
        subject: &Subject,
        kind: &str,
        now: Millis,
    ) -> Result<Vec<JobRecord>, Error> {
        let (subject_kind, subject) = subject.columns();
        let since = now - REMEMBER_ENDED_FOR;
        let conn = self.conn.lock();
        let run = || {
            conn.prepare_cached(&format!(
                "{RECORD} WHERE subject = $1 AND subject_kind = $2 AND kind = $3 AND (ended_ms IS NULL OR ended_ms > $4)
                 ORDER BY created_ms, rowid"
            ))?
            .query_map(params![subject, subject_kind, kind, since.0], record)?
            .collect::<rusqlite::Result<Vec<_>>>()
        };
        run().context("read the ledger")
    }

    /// All jobs, oldest first.
    pub fn list(&self) -> Result<Vec<JobRecord>, Error> {
        let conn = self.conn.lock();
        let run = || {
            conn.prepare_cached(&format!("{RECORD} ORDER BY created_ms, rowid"))?
                .query_map([], record)?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        run().context("read the ledger")
    }

    /// Jobs that have not ended, oldest first: after a crash, those to resume.
    pub fn unended(&self) -> Result<Vec<JobRecord>, Error> {
        Ok(self
            .list()?
            .into_iter()
            .filter(|job| !job.state.is_ended())
            .collect())
    }

    /// Drops records of jobs that ended longer ago than `keep`. Returns how many.
    pub fn forget(&self, now: Millis, keep: Millis) -> Result<usize, Error> {
        let ended_by = now - keep.max(REMEMBER_ENDED_FOR);
        let run = || {
            let conn = self.conn.lock();
            let forgotten = conn.execute("DELETE FROM job WHERE ended_ms <= $1", [ended_by.0])?;
            if forgotten > 0 {
                Self::forget_room_sets(&conn)?;
            }
            Ok::<_, rusqlite::Error>(forgotten)
        };
        run().context("forget old jobs")
    }

    /// Drops records of jobs of one kind that ended well 24 hours ago or more: where there are many, each of which tells
    /// little.
    pub fn forget_complete(&self, kind: &str, now: Millis) -> Result<usize, Error> {
        let ended_by = now - REMEMBER_ENDED_FOR;
        let run = || {
            self.conn.lock().execute(
                "DELETE FROM job WHERE ended_ms <= $1 AND kind = $2 AND state = 'complete'",
                params![ended_by.0, kind],
            )
        };
        run().context("forget old jobs")
    }

    /// Notes numbers that must be looked at before the subject is left alone. Durable when it returns.
    pub fn add_candidates(&self, subject: &str, numbers: &[i64]) -> Result<(), Error> {
        if numbers.is_empty() {
            return Ok(());
        }
        let run = || {
            let mut conn = self.conn.lock();
            let tx = conn.transaction()?;
            {
                let mut insert = tx.prepare_cached(
                    "INSERT OR IGNORE INTO candidate (subject, number) VALUES ($1, $2)",
                )?;
                for number in numbers {
                    insert.execute(params![subject, number])?;
                }
            }
            tx.commit()
        };
        run().context("note state groups in the ledger")
    }

    /// The numbers noted for the subject, in ascending order.
    pub fn candidates(&self, subject: &str) -> Result<Vec<i64>, Error> {
        let conn = self.conn.lock();
        let run = || {
            conn.prepare_cached("SELECT number FROM candidate WHERE subject = $1 ORDER BY number")?
                .query_map([subject], |row| row.get(0))?
                .collect::<rusqlite::Result<Vec<i64>>>()
        };
        run().context("read the ledger")
    }

    /// Replaces the noted numbers by the steps decided on.
    pub fn decide(&self, subject: &str, steps: &[String]) -> Result<(), Error> {
        let run = || {
            let mut conn = self.conn.lock();
            let tx = conn.transaction()?;
            {
                tx.execute("DELETE FROM candidate WHERE subject = $1", [subject])?;
                let mut insert = tx.prepare_cached(
                    "INSERT INTO step (subject, seq, step)
                     SELECT $1, coalesce(max(seq), 0) + 1, $2 FROM step WHERE subject = $1",
                )?;
                for step in steps {
                    insert.execute(params![subject, step])?;
                }
            }
            tx.commit()
        };
        run().context("note a decision in the ledger")
    }

    /// Takes back what was decided on for the subject: the numbers are looked at again instead.
    pub fn undecide(&self, subject: &str, numbers: &[i64]) -> Result<(), Error> {
        self.add_candidates(subject, numbers)?;
        self.done_up_to(subject, i64::MAX)
    }

    /// The steps still to be done for the subject, in order.
    pub fn steps(&self, subject: &str) -> Result<Vec<(i64, String)>, Error> {
        let conn = self.conn.lock();
        let run = || {
            conn.prepare_cached("SELECT seq, step FROM step WHERE subject = $1 ORDER BY seq")?
                .query_map([subject], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        run().context("read the ledger")
    }

    /// Notes what the database is owed from now on. Durable when it returns; costs nothing when it stands there.
    pub fn add_pending(&self, duty: &str) -> Result<(), Error> {
        let mut pending_cleanup = self.pending_cleanup.lock();
        if let Some(times) = pending_cleanup.get_mut(duty) {
            *times += 1;
        } else {
            let sql = "INSERT OR IGNORE INTO duty (name) VALUES ($1)";
            let noted = self.conn.lock().execute(sql, [duty]);
            noted.context("note in the ledger what is to be done")?;
            pending_cleanup.insert(duty.to_owned(), 1);
        }
        Ok(())
    }

    /// Whether the database is owed this.
    pub fn has_pending(&self, duty: &str) -> bool {
        self.times_pending(duty) > 0
    }

    /// How often the database has come to be owed this, since it was owed nothing of the kind.
    pub fn times_pending(&self, duty: &str) -> u64 {
        let pending_cleanup = self.pending_cleanup.lock();
        pending_cleanup.get(duty).copied().unwrap_or(0)
    }

    /// It is done.
    pub fn clear_pending(&self, duty: &str) -> Result<(), Error> {
        self.clear_pending_of(duty, None)
    }

    /// What was owed when [`Ledger::times_pending`] was asked is done. What came to be owed meanwhile is not.
    pub fn clear_pending_of(&self, duty: &str, times: impl Into<Option<u64>>) -> Result<(), Error> {
        let mut pending_cleanup = self.pending_cleanup.lock();
        let now = pending_cleanup.get(duty).copied();
        if now.is_some() && times.into().is_none_or(|times| now == Some(times)) {
            let sql = "DELETE FROM duty WHERE name = $1";
            let noted = self.conn.lock().execute(sql, [duty]);
            noted.context("note in the ledger what was done")?;
            pending_cleanup.remove(duty);
        }
        Ok(())
    }

    /// From when the interval of a recurring job counts: its last run, or now if it was never heard of. A time that is
    /// yet to come was noted while the clock was wrong, and is now as well.
    pub fn interval_start(&self, name: &str, now: Millis) -> Result<Millis, Error> {
        let run = || {
            self.conn.lock().query_row(
                "INSERT INTO recurring (name, from_ms) VALUES ($1, $2)
                     ON CONFLICT (name) DO UPDATE SET from_ms = min(from_ms, excluded.from_ms)
                 RETURNING from_ms",
                params![name, now.0],
                |row| row.get(0),
            )
        };
        run().context("read the ledger").map(Millis)
    }

    /// A recurring job runs: its interval counts from now.
    pub fn set_interval_start(&self, name: &str, now: Millis) -> Result<(), Error> {
        let run = || {
            self.conn.lock().execute(
                "INSERT INTO recurring (name, from_ms) VALUES ($1, $2)
                     ON CONFLICT (name) DO UPDATE SET from_ms = excluded.from_ms",
                params![name, now.0],
            )
        };
        run().context("note a run in the ledger").map(drop)
    }

    /// When something that lasts was first seen: now, if it was not before. Of the things whose names begin with `kind`
    /// those that are not among `names` are over, and forgotten.
    pub fn first_seen(
        &self,
        kind: &str,
        names: &[String],
        now: Millis,
    ) -> Result<Vec<Millis>, Error> {
        let run = || {
            let mut conn = self.conn.lock();
            let tx = conn.transaction()?;
            let mut seen = Vec::new();
            {
                let listed = serde_json::Value::from(names).to_string();
                tx.execute(
                    "DELETE FROM recurring
                      WHERE substr(name, 1, length($1)) = $1
                        AND name NOT IN (SELECT $1 || value FROM json_each($2))",
                    params![kind, listed],
                )?;
                let mut note = tx.prepare_cached(
                    "INSERT INTO recurring (name, from_ms) VALUES ($1 || $2, $3)
                         ON CONFLICT (name) DO UPDATE SET from_ms = min(from_ms, excluded.from_ms)
                     RETURNING from_ms",
                )?;
                for name in names {
                    seen.push(Millis(
                        note.query_row(params![kind, name, now.0], |row| row.get(0))?,
                    ));
                }
            }
            tx.commit()?;
            Ok::<_, rusqlite::Error>(seen)
        };
        run().context("note in the ledger what was seen")
    }

    /// The same, without noting anything: what was seen of the things whose names begin with `kind`, and when first.
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn seen(&self, kind: &str) -> Result<Vec<(String, Millis)>, Error> {
        const SEEN: &str = "
            SELECT substr(name, length($1) + 1), from_ms FROM recurring WHERE substr(name, 1, length($1)) = $1";
        let conn = self.conn.lock();
        let run = || {
            conn.prepare_cached(SEEN)?
                .query_map([kind], |row| Ok((row.get(0)?, Millis(row.get(1)?))))?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        run().context("read the ledger")
    }

    /// Crosses out the steps up to and including `seq`. One that is done again changes nothing.
    pub fn done_up_to(&self, subject: &str, seq: i64) -> Result<(), Error> {
        let run = || {
            self.with_relaxed_sync(|conn| {
                conn.execute(
                    "DELETE FROM step WHERE subject = $1 AND seq <= $2",
                    params![subject, seq],
                )
            })
        };
        run().context("cross out a step in the ledger").map(drop)
    }
}

#[cfg(test)]
mod tests;
