//! One roomkeeper at work for each database, whatever ledger it has (S-34).
//!
//! For a file that is a lock on `<canonical path>.roomkeeper-lock`, never one more descriptor of the database itself:
//! closing that would drop SQLite's own locks. On a server it is a session's advisory lock, on a connection of its own.
//! Reading needs neither.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};

use super::db::{Db, OpenOptions, params};
use crate::database::Database;
use crate::error::Error;

/// Time for a predecessor that is just ending to let go.
const PATIENCE: Duration = Duration::from_millis(500);

/// How often is looked whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Most of what is read of who has the lock.
const LONGEST_NAME: u64 = 4096;

/// The two halves of the advisory lock's key: "room", "keep".
const KEY: (i64, i64) = (0x726f_6f6d, 0x6b65_6570);

/// The key itself.
const WHOLE_KEY: i64 = (KEY.0 << 32) | KEY.1;

const TRY_LOCK: &str = "-- PostgreSQL
    SELECT CAST(CASE WHEN pg_try_advisory_lock(CAST($1 AS BIGINT)) THEN 1 ELSE 0 END AS BIGINT)";

/// Who we are, for whoever comes and is refused. Binds `$1` at most 63 bytes.
const SET_NAME: &str = "-- PostgreSQL
    SELECT set_config('application_name', $1, FALSE)";

/// Whether our own session still has the lock: one that was replaced after a crash of the server has none.
const IS_HELD: &str = "-- PostgreSQL
    SELECT count(*) FROM pg_locks
     WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()
       AND CAST(classid AS BIGINT) = $1 AND CAST(objid AS BIGINT) = $2 AND objsubid = 1
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// Who has it, as the server knows them.
const HOLDER: &str = "-- PostgreSQL
    SELECT a.application_name, CAST(a.pid AS TEXT), coalesce(host(a.client_addr), 'this machine'), a.usename
      FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
     WHERE l.locktype = 'advisory' AND l.granted
       AND CAST(l.classid AS BIGINT) = $1 AND CAST(l.objid AS BIGINT) = $2 AND l.objsubid = 1
       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
     LIMIT 1";

/// The right to be at work on a database; let go when this is dropped.
pub struct WorkLock(Held);

enum Held {
    File { file: File, path: PathBuf },
    Server(Box<Mutex<Db>>),
}

impl WorkLock {
    /// Takes the lock. `ledger` is told to whoever asks meanwhile.
    ///
    /// # Errors
    /// [`Error::Refused`] while another roomkeeper has it, with who that is.
    pub fn take(database: &Database, ledger: &Path) -> Result<Self, Error> {
        let until = Instant::now() + PATIENCE;
        loop {
            let taken = match database {
                Database::File(path) => take_file(path, ledger)?,
                Database::Server(_) => take_on_server(database)?,
            };
            match taken {
                Ok(held) => return Ok(Self(held)),
                Err(_) if Instant::now() < until => thread::sleep(LOOK_EVERY),
                Err(who) => {
                    return Err(Error::Refused(format!(
                        "another roomkeeper is at work on this database: {who}. Wait until it has ended, or stop it"
                    )));
                }
            }
        }
    }

    /// Makes sure that it is still ours: a server that crashed has forgotten it.
    ///
    /// # Errors
    /// [`Error::Refused`] when another roomkeeper has taken it meanwhile.
    pub fn ensure(&self) -> Result<(), Error> {
        let Held::Server(db) = &self.0 else {
            return Ok(());
        };
        let db = db.lock();
        if is_held(&db)? || try_lock(&db)? {
            return Ok(());
        }
        let who = holder(&db)?;
        Err(Error::Refused(format!(
            "the database server was restarted, and another roomkeeper has come first: {who}"
        )))
    }
}

impl Drop for WorkLock {
    fn drop(&mut self) {
        // While the lock is held: whoever comes next makes a file of their own, and looks whether it is the one that lies
        // there.
        if let Held::File { file, path } = &self.0 {
            let _ = fs::remove_file(path);
            let _ = flock(file, FlockOperation::Unlock);
        }
    }
}

/// Where the lock of a database file lies.
pub fn lock_file(database: &Path) -> PathBuf {
    let canonical = fs::canonicalize(database).unwrap_or_else(|_| database.to_owned());
    let mut name = canonical.into_os_string();
    name.push(".roomkeeper-lock");
    name.into()
}

/// The lock, or who has it.
fn take_file(database: &Path, ledger: &Path) -> Result<Result<Held, String>, Error> {
    let path = lock_file(database);
    let unfit = |e: std::io::Error| {
        Error::Refused(format!(
            "the lock file {} cannot be made or opened ({e}): roomkeeper needs to write into the directory of the \
             database; run as its owner",
            path.display()
        ))
    };
    let owner = fs::metadata(database).ok();
    let mode = owner.as_ref().map_or(0o600, |d| d.mode() & 0o666);
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(mode)
        .open(&path)
        .map_err(unfit)?;
    if let Err(e) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if e != rustix::io::Errno::WOULDBLOCK {
            return Err(unfit(e.into()));
        }
        let mut who = String::new();
        let _ = (&file).take(LONGEST_NAME).read_to_string(&mut who);
        return Ok(Err(match who.trim() {
            "" => format!("it has locked {}", path.display()),
            who => who.to_owned(),
        }));
    }
    // Whoever had it last may have taken the file away between our opening and our locking it.
    let is_there = match (file.metadata(), fs::metadata(&path)) {
        (Ok(mine), Ok(there)) => (mine.dev(), mine.ino()) == (there.dev(), there.ino()),
        (_, Err(e)) if e.kind() == ErrorKind::NotFound => false,
        (Err(e), _) | (_, Err(e)) => return Err(unfit(e)),
    };
    if !is_there {
        return Ok(Err("one that is just ending".into()));
    }
    if let Some(owner) = owner {
        // Only root may; whoever else is at work here is the owner, or shares the directory with them.
        let _ = fchown(&file, Some(owner.uid()), Some(owner.gid()));
    }
    let name = format!(
        "process {} with the ledger {}\n",
        std::process::id(),
        ledger.display()
    );
    // What cannot be written is only not told.
    let _ = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(name.as_bytes()));
    Ok(Ok(Held::File { file, path }))
}

fn take_on_server(database: &Database) -> Result<Result<Held, String>, Error> {
    let db = Db::open(database.clone(), &OpenOptions::default())?;
    let doing = "take the lock of whoever is at work";
    let name = format!(
        "roomkeeper process {} on {}",
        std::process::id(),
        host_name()
    );
    let name: String = name
        .chars()
        .filter(|c| c.is_ascii_graphic() || *c == ' ')
        .take(63)
        .collect();
    db.execute(doing, SET_NAME, params![name])?;
    match try_lock(&db)? {
        true => Ok(Ok(Held::Server(Box::new(Mutex::new(db))))),
        false => Ok(Err(holder(&db)?)),
    }
}

fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname");
    name.map_or_else(
        |_| "an unnamed machine".into(),
        |name| name.trim().to_owned(),
    )
}

fn try_lock(db: &Db) -> Result<bool, Error> {
    let doing = "take the lock of whoever is at work";
    Ok(db.count(doing, TRY_LOCK, params![WHOLE_KEY])? == 1)
}

fn is_held(db: &Db) -> Result<bool, Error> {
    let doing = "look at the lock of whoever is at work";
    Ok(db.count(doing, IS_HELD, params![KEY.0, KEY.1])? > 0)
}

fn holder(db: &Db) -> Result<String, Error> {
    let doing = "look who is at work";
    let found = db.row(doing, HOLDER, params![KEY.0, KEY.1], |r| {
        let name = r.get::<_, Option<String>>(0)?.unwrap_or_default();
        let (pid, host) = (
            r.get::<_, String>(1)?,
            r.get::<_, Option<String>>(2)?.unwrap_or_default(),
        );
        let user = r.get::<_, Option<String>>(3)?.unwrap_or_default();
        Ok(format!(
            "{name} (session {pid} of {user}, connected from {host})"
        ))
    })?;
    Ok(found.unwrap_or_else(|| "one that is just ending".into()))
}
