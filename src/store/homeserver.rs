//! The homeserver beside us: signs that one is running (W-22), and the lock rows it honours (W-1 … W-8).

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use super::db::{Db, params};
use crate::error::{Doing, Error};
use crate::ids::{RoomId, random_letters};
use crate::time::Millis;
use crate::whereabouts::Whereabouts;

/// How long a listener may take to accept before it counts as absent; it is on this machine.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);

/// A lock row older than this belongs to nobody (W-4).
const LOCK_TIMEOUT: Millis = Millis(2 * 60 * 1000);

/// How often a held lock is renewed (W-4).
const LOCK_RENEWAL: Duration = Duration::from_secs(30);

/// How long one look around stays good: strides can follow each other faster.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// How we sign the lock rows that we hold (I-19).
pub const INSTANCE_NAME: &str = "roomkeeper";

/// Looks for signs of a running homeserver, again and again.
pub struct Watch {
    whereabouts: Whereabouts,
    database: PathBuf,
    looked: Option<(Instant, Option<String>)>,
}

impl Watch {
    /// A watch over one database file.
    pub fn new(whereabouts: Whereabouts, database: &Path) -> Self {
        Self {
            whereabouts,
            database: database.to_owned(),
            looked: None,
        }
    }

    /// The first sign of life that is found, as a sentence; a recent look is not repeated.
    pub fn sign_of_life(&mut self, db: &Db, now: Millis) -> Result<Option<String>, Error> {
        if let Some((when, sign)) = &self.looked
            && when.elapsed() < LOOK_AGAIN_AFTER
        {
            return Ok(sign.clone());
        }
        let sign = match self.outside() {
            Some(sign) => Some(sign),
            None => fresh_lock_row(db, now)?,
        };
        self.looked = Some((Instant::now(), sign.clone()));
        Ok(sign)
    }

    /// Signs that need no query: the process, its listeners, its hold on the file.
    pub fn outside(&self) -> Option<String> {
        let pid_file = self.whereabouts.pid_file.as_deref();
        if let Some(pid) = pid_file.and_then(running_pid) {
            return Some(format!(
                "the homeserver's pid_file names process {pid}, which is running"
            ));
        }
        let listener = self
            .whereabouts
            .listeners
            .iter()
            .find(|a| TcpStream::connect_timeout(a, CONNECT_TIMEOUT).is_ok());
        if let Some(address) = listener {
            return Some(format!("the homeserver's listener {address} answers"));
        }
        foreign_lock(&self.database).map(|pid| match pid {
            Some(pid) => format!("process {pid} has the database open"),
            None => "another process has the database open".to_owned(),
        })
    }
}

fn running_pid(file: &Path) -> Option<u32> {
    let pid: u32 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    (pid != std::process::id() && Path::new("/proc").join(pid.to_string()).exists()).then_some(pid)
}

/// Whether another process holds a lock on the file, as the kernel lists them. SQLite in WAL mode keeps a shared
/// lock on the file for as long as it has it open.
///
/// Read from `/proc/locks`, because opening and closing the file once more would drop our own locks on it.
fn foreign_lock(database: &Path) -> Option<Option<u32>> {
    let file = fs::metadata(database).ok()?;
    let id = format!(
        "{:02x}:{:02x}:{}",
        rustix::fs::major(file.dev()),
        rustix::fs::minor(file.dev()),
        file.ino()
    );
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // "1: POSIX  ADVISORY  READ 1234 fe:00:5678 …"; a waiter's line has "->" after the number.
        let at = words.iter().position(|w| *w == id)?;
        let pid: i64 = words.get(at.checked_sub(1)?)?.parse().ok()?;
        (pid != i64::from(std::process::id())).then(|| u32::try_from(pid).ok().filter(|p| *p > 0))
    })
}

/// Tries to have the file to itself for a moment, before any other connection of ours is open: fails while any
/// other process has it open (W-22). Exclusive locking would lock out our own readers, so it is let go at once.
///
/// # Errors
/// Only when the file cannot be opened at all.
pub fn is_open_elsewhere(database: &Path) -> Result<bool, Error> {
    let doing = "look whether the database is in use";
    let conn = Connection::open_with_flags(
        database,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .doing(doing)?;
    conn.busy_timeout(Duration::ZERO).doing(doing)?;
    let probe = conn
        .query_row("PRAGMA locking_mode = EXCLUSIVE", [], |_| Ok(()))
        .and_then(|()| conn.execute_batch("BEGIN IMMEDIATE; ROLLBACK"));
    match probe {
        Ok(()) => Ok(false),
        Err(e) => {
            let error = crate::error::StoreError::from(e);
            if error.is_busy() {
                Ok(true)
            } else {
                Err(Error::Store {
                    doing,
                    source: error,
                })
            }
        }
    }
}

fn fresh_lock_row(db: &Db, now: Millis) -> Result<Option<String>, Error> {
    const FRESH: &str = "
        SELECT EXISTS (SELECT 1 FROM worker_read_write_locks
                        WHERE last_renewed_ts > $1 AND instance_name <> $2)";
    if !db.catalog().has("worker_read_write_locks") {
        return Ok(None);
    }
    let fresh = db.count(
        "look for locks of a homeserver",
        FRESH,
        params![(now - LOCK_TIMEOUT).0, INSTANCE_NAME],
    )?;
    Ok((fresh > 0).then(|| {
        "the database holds a lock that a homeserver renewed in the last two minutes".to_owned()
    }))
}

/// The lock that keeps other processes from purging or paginating the room (W-7).
pub const PURGE_LOCK: &str = "purge_pagination_lock";

/// A write lock in Synapse's own tables, where it has them.
pub struct RowLock {
    name: &'static str,
    room: RoomId,
    token: String,
    renewed: Instant,
}

impl RowLock {
    /// Tries once to take the lock; `None` when somebody else holds it (W-2).
    pub fn try_acquire(
        db: &mut Db,
        name: &'static str,
        room: &RoomId,
        now: Millis,
    ) -> Result<Option<Self>, Error> {
        const INSERT: &str = "
            INSERT INTO worker_read_write_locks (lock_name, lock_key, instance_name, write_lock, token, last_renewed_ts)
            VALUES ($1, $2, $3, TRUE, $4, $5)";
        const REAP: &str = "
            DELETE FROM worker_read_write_locks
             WHERE lock_name = $1 AND lock_key = $2 AND last_renewed_ts < $3";
        let doing = "take the homeserver's lock on the room";
        let token = random_letters(6);
        let taken = db.write(doing, |db| {
            db.execute(
                doing,
                REAP,
                params![name, room.as_str(), (now - LOCK_TIMEOUT).0],
            )?;
            db.execute(
                doing,
                INSERT,
                params![name, room.as_str(), INSTANCE_NAME, token, now.0],
            )
        });
        match taken {
            Ok(_) => Ok(Some(Self {
                name,
                room: room.clone(),
                token,
                renewed: Instant::now(),
            })),
            Err(e) if e.is_constraint() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Renews the lock when it is time to, and answers whether it is still ours (W-4). Inside a transaction.
    pub fn is_held(&mut self, db: &Db, now: Millis) -> Result<bool, Error> {
        const RENEW: &str = "
            UPDATE worker_read_write_locks SET last_renewed_ts = $1
             WHERE lock_name = $2 AND lock_key = $3 AND token = $4";
        const HELD: &str = "
            SELECT count(*) FROM worker_read_write_locks WHERE lock_name = $1 AND lock_key = $2 AND token = $3";
        let doing = "renew the homeserver's lock on the room";
        let (name, room, token) = (self.name, self.room.as_str(), &self.token);
        if self.renewed.elapsed() < LOCK_RENEWAL {
            return Ok(db.count(doing, HELD, params![name, room, token])? == 1);
        }
        self.renewed = Instant::now();
        Ok(db.execute(doing, RENEW, params![now.0, name, room, token])? == 1)
    }

    /// Gives the lock back (W-3).
    pub fn release(self, db: &mut Db) -> Result<(), Error> {
        const DELETE: &str = "
            DELETE FROM worker_read_write_locks WHERE lock_name = $1 AND lock_key = $2 AND token = $3";
        let doing = "give the homeserver's lock on the room back";
        db.write(doing, |db| {
            db.execute(
                doing,
                DELETE,
                params![self.name, self.room.as_str(), self.token],
            )
        })?;
        Ok(())
    }
}

/// Whether the database has Synapse's lock tables (schema ≥ 79).
pub fn has_locks(db: &Db) -> bool {
    db.catalog().has("worker_read_write_locks") && db.catalog().has("worker_read_write_locks_mode")
}

/// Lock rows of ours that nobody renews (I-19). A younger one is that of a job which runs, or ran just now.
pub fn leftover_locks(db: &Db, now: Millis) -> Result<i64, Error> {
    const LEFTOVER: &str = "
        SELECT count(*) FROM worker_read_write_locks WHERE instance_name = $1 AND last_renewed_ts < $2";
    if !has_locks(db) {
        return Ok(0);
    }
    db.count(
        "look for locks that were left behind",
        LEFTOVER,
        params![INSTANCE_NAME, (now - LOCK_TIMEOUT).0],
    )
}

/// Removes lock rows that an earlier, killed roomkeeper left; only where no other one can be running.
pub fn release_leftover_locks(db: &mut Db) -> Result<(), Error> {
    const DELETE: &str = "DELETE FROM worker_read_write_locks WHERE instance_name = $1";
    if has_locks(db) {
        let doing = "remove locks that were left behind";
        db.write(doing, |db| {
            db.execute(doing, DELETE, params![INSTANCE_NAME])
        })?;
    }
    Ok(())
}

/// Whether Synapse itself is purging or deleting the room, or is about to (L-8).
pub fn has_own_task(db: &Db, room: &RoomId, now: Millis) -> Result<bool, Error> {
    const TASK: &str = "
        SELECT count(*) FROM scheduled_tasks
         WHERE resource_id = $1
           AND action IN ('purge_history', 'purge_room', 'shutdown_and_purge_room')
           AND (status = 'active' OR (status = 'scheduled' AND timestamp <= $2))";
    if !db.catalog().has("scheduled_tasks") {
        return Ok(false);
    }
    Ok(db.count(
        "look for the homeserver's own tasks",
        TASK,
        params![room.as_str(), now.0],
    )? > 0)
}
