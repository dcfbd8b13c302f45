//! The homeserver beside us: signs that one is running (W-22), and the lock rows it honours (W-1 … W-8).

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use super::db::{Db, Engine, params};
use super::free_pages::RawFile;
use super::work_lock;
use crate::database::Database;
use crate::endpoints::HomeserverEndpoints;
use crate::error::{Context, Error};
use crate::ids::{RoomId, random_letters};
use crate::sqlite_file;
use crate::time::{Clock, Millis};

/// How long a listener may take to accept before it counts as absent; it is on this machine.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);

/// A lock row older than this belongs to nobody (W-4).
const LOCK_TIMEOUT: Millis = Millis(2 * 60 * 1000);

/// How often a held lock is renewed (W-4).
const LOCK_RENEWAL: Millis = Millis(30 * 1000);

/// How long one look around stays good: batches can follow each other faster.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// How we sign the lock rows that we hold (I-19).
pub const INSTANCE_NAME: &str = "roomkeeper";

/// Looks for signs of a running homeserver, again and again.
pub struct HomeserverDetector {
    endpoints: HomeserverEndpoints,
    database: Database,
    raw: Option<Arc<RawFile>>,
    looked: Option<(Instant, Option<String>)>,
}

impl HomeserverDetector {
    /// A watch over one database. Without `raw`, its file, a homeserver in another container may hold it unseen.
    pub fn new(
        endpoints: HomeserverEndpoints,
        database: &Database,
        raw: Option<Arc<RawFile>>,
    ) -> Self {
        Self {
            endpoints,
            database: database.clone(),
            raw,
            looked: None,
        }
    }

    /// The first sign of life that is found, as a sentence; a recent look is not repeated.
    pub fn detect(&mut self, db: &Db, now: Millis) -> Result<Option<String>, Error> {
        if let Some((when, sign)) = &self.looked
            && when.elapsed() < LOOK_AGAIN_AFTER
        {
            return Ok(sign.clone());
        }
        self.look(db, now)
    }

    /// The same, looked for at this moment.
    pub fn look(&mut self, db: &Db, now: Millis) -> Result<Option<String>, Error> {
        let sign = match self.detect_without_query() {
            Some(sign) => Some(sign),
            None => match foreign_session(db)? {
                None if is_standby(db)? => Some(
                    "the database is a standby, and a homeserver may be at work on its primary"
                        .to_owned(),
                ),
                None => fresh_lock_row(db, now)?,
                sign => sign,
            },
        };
        self.looked = Some((Instant::now(), sign.clone()));
        Ok(sign)
    }

    /// Signs that need no query: the process, its hold on the file, its listeners.
    pub fn detect_without_query(&self) -> Option<String> {
        let pid_files = &self.endpoints.pid_files;
        if let Some(pid) = pid_files.iter().find_map(|file| running_pid(file)) {
            return Some(format!(
                "the homeserver's pid_file names process {pid}, which is running"
            ));
        }
        if let Some(holder) = self.holder() {
            return Some(match holder {
                Some(pid) => format!("process {pid} has the database open"),
                None => "another process has the database open".to_owned(),
            });
        }
        let listener = self
            .endpoints
            .listeners
            .iter()
            .find(|a| TcpStream::connect_timeout(a, CONNECT_TIMEOUT).is_ok());
        listener.map(|address| format!("the homeserver's listener {address} answers"))
    }

    /// Who has the file open, and is no roomkeeper: those that only read may look at it at any time.
    fn holder(&self) -> Option<Option<u32>> {
        let file = self.database.file()?;
        let at_work = sqlite_file::holders(&work_lock::lock_file(file));
        let is_ours = |pid: u32| at_work.contains(&Some(pid)) || is_roomkeeper(pid);
        let mut listed = sqlite_file::holders(file).into_iter();
        let foreign = listed.find(|holder| !holder.is_some_and(is_ours));
        foreign.or_else(|| {
            let holder = self.raw.as_ref()?.holder()?;
            (!holder.is_some_and(is_ours)).then_some(holder)
        })
    }
}

fn is_roomkeeper(pid: u32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    name.is_ok_and(|name| name.trim() == env!("CARGO_PKG_NAME"))
}

/// Who else has a session on this database of a server. Not those of ours, and not those of a person or a copy: Synapse
/// gives its sessions no name.
const FOREIGN_SESSION: &str = "-- PostgreSQL
    SELECT pid, usename
      FROM pg_stat_activity
     WHERE datname = current_database()
       AND pid <> pg_backend_pid()
       AND coalesce(backend_type, 'client backend') = 'client backend'
       AND coalesce(application_name, '') NOT LIKE 'roomkeeper%'
       AND coalesce(application_name, '') NOT IN ('psql', 'pg_dump', 'pg_dumpall', 'pg_restore', 'pg_repack', 'vacuumdb')
     LIMIT 1";

fn foreign_session(db: &Db) -> Result<Option<String>, Error> {
    if db.engine() != Engine::Postgres {
        return Ok(None);
    }
    let doing = "look who is connected to the database";
    db.row(doing, FOREIGN_SESSION, &[], |r| {
        let user = r.get::<_, Option<String>>(1)?.unwrap_or_default();
        let pid = r.get::<_, i64>(0)?;
        Ok(format!(
            "session {pid} of {user} is connected to the database"
        ))
    })
}

fn running_pid(file: &Path) -> Option<u32> {
    let pid: u32 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    (pid != std::process::id() && Path::new("/proc").join(pid.to_string()).exists()).then_some(pid)
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
    .context(doing)?;
    conn.busy_timeout(Duration::ZERO).context(doing)?;
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
        SELECT max(last_renewed_ts) FROM worker_read_write_locks
         WHERE last_renewed_ts > $1 AND instance_name <> $2";
    if !db.catalog().has("worker_read_write_locks") {
        return Ok(None);
    }
    let renewed = db.count(
        "look for locks of a homeserver",
        FRESH,
        params![(now - LOCK_TIMEOUT).0, INSTANCE_NAME],
    )?;
    Ok((renewed > 0).then(|| {
        format!(
            "the database holds a lock that a homeserver renewed in the last two minutes; if that was killed, the lock \
             lapses at {}",
            Millis(renewed + LOCK_TIMEOUT.0).as_date()
        )
    }))
}

/// Who holds a lock on the room, and when it lapses unless that one renews it.
pub fn lock_holder(db: &Db, room: &RoomId) -> Result<Option<(String, Millis)>, Error> {
    const HOLDER: &str = "
        SELECT instance_name, last_renewed_ts FROM worker_read_write_locks
         WHERE lock_name IN ($1, $2) AND lock_key = $3 AND instance_name <> $4
         ORDER BY last_renewed_ts DESC";
    db.row(
        "look who holds the lock on the room",
        HOLDER,
        params![PURGE_LOCK, NEW_EVENT_LOCK, room.as_str(), INSTANCE_NAME],
        |r| Ok((r.get(0)?, Millis(r.get::<_, i64>(1)? + LOCK_TIMEOUT.0))),
    )
}

/// The lock that keeps other processes from purging or paginating the room (W-7).
pub const PURGE_LOCK: &str = "purge_pagination_lock";

/// The lock that keeps the homeserver from putting events into the room (W-7).
pub const NEW_EVENT_LOCK: &str = "new_event_during_purge_lock";

/// Whether a lock is held under a token. Binds `$1` lock, `$2` room, `$3` token.
const HELD: &str = "
    SELECT count(*) FROM worker_read_write_locks WHERE lock_name = $1 AND lock_key = $2 AND token = $3";

/// Binds `$1` lock, `$2` room, `$3` our name, `$4` token, `$5` the time.
const TAKE_LOCK: &str = "
    INSERT INTO worker_read_write_locks (lock_name, lock_key, instance_name, write_lock, token, last_renewed_ts)
    VALUES ($1, $2, $3, TRUE, $4, $5)";

/// Write locks on one room, or several, in Synapse's own tables, where it has them.
pub struct SynapseLock {
    names: &'static [&'static str],
    /// In ascending order of ids (L-12).
    rooms: Vec<RoomId>,
    token: String,
    /// When it was renewed, by the clock that nobody sets.
    renewed: Millis,
    /// Over which connection it was seen last, of those that `Db` has had.
    connection: u64,
}

impl SynapseLock {
    /// Tries once to take the locks of all the rooms together (W-5); `None` when somebody else holds one (W-2).
    pub fn try_acquire(
        db: &mut Db,
        names: &'static [&'static str],
        rooms: &[RoomId],
        clock: &dyn Clock,
    ) -> Result<Option<Self>, Error> {
        const REAP: &str = "
            DELETE FROM worker_read_write_locks
             WHERE lock_name = $1 AND lock_key = $2 AND last_renewed_ts < $3";
        let doing = "take the homeserver's lock on the room";
        let token = random_letters(6);
        let (now, renewed) = (clock.now(), clock.monotonic());
        let mut rooms = rooms.to_vec();
        rooms.sort_unstable();
        rooms.dedup();
        let taken = db.write(doing, |db| {
            for (room, name) in rooms.iter().flat_map(|r| names.iter().map(move |n| (r, n))) {
                // A commit whose answer was lost may have taken it already.
                if db.count(doing, HELD, params![name, room.as_str(), token])? == 1 {
                    continue;
                }
                db.execute(
                    doing,
                    REAP,
                    params![name, room.as_str(), (now - LOCK_TIMEOUT).0],
                )?;
                db.execute(
                    doing,
                    TAKE_LOCK,
                    params![name, room.as_str(), INSTANCE_NAME, token, now.0],
                )?;
            }
            Ok(())
        });
        match taken {
            Ok(()) => Ok(Some(Self {
                names,
                rooms,
                token,
                renewed,
                connection: db.connection_number(),
            })),
            Err(e) if e.is_constraint() => Ok(None),
            // Somebody takes it or gives it back at this moment.
            Err(e) if e.is_busy() && db.engine() == Engine::Postgres => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Every room, with every name.
    fn locks(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let names = self.names;
        self.rooms
            .iter()
            .flat_map(move |room| names.iter().map(move |name| (room.as_str(), *name)))
    }

    /// Whether it is time to renew the locks (W-4).
    pub fn is_due(&self, clock: &dyn Clock) -> bool {
        clock.monotonic() - self.renewed >= LOCK_RENEWAL
    }

    /// Renews the locks when it is time to, and answers whether they are still ours (W-4). A server that crashed, or that
    /// another one took over from, has forgotten all locks (W-11): over a new connection they are taken anew, if nobody
    /// else has them by now (S-38). Inside a transaction, which may still be rolled back: then that is found again.
    pub fn is_held(&mut self, db: &Db, clock: &dyn Clock) -> Result<bool, Error> {
        const RENEW: &str = "
            UPDATE worker_read_write_locks SET last_renewed_ts = $1
             WHERE lock_name = $2 AND lock_key = $3 AND token = $4";
        let doing = "renew the homeserver's lock on the room";
        let renews = self.is_due(clock);
        let token = &self.token;
        let (now, monotonic) = (clock.now(), clock.monotonic());
        let mut is_new = false;
        for (room, name) in self.locks() {
            let held = if renews {
                db.execute(doing, RENEW, params![now.0, name, room, token])?
            } else {
                db.count(doing, HELD, params![name, room, token])?
            };
            if held == 1 {
                continue;
            }
            if self.connection == db.connection_number() {
                return Ok(false);
            }
            let taken = params![name, room, INSTANCE_NAME, token, now.0];
            match db.execute(doing, TAKE_LOCK, taken) {
                Ok(_) => is_new = true,
                Err(e) if e.is_constraint() => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        if is_new {
            for room in &self.rooms {
                log::info!("room {room}: the server had forgotten our lock on it; taken anew");
            }
            return Ok(true);
        }
        self.connection = db.connection_number();
        if renews {
            self.renewed = monotonic;
        }
        Ok(true)
    }

    /// Gives the locks back (W-3).
    pub fn release(self, db: &mut Db) -> Result<(), Error> {
        const DELETE: &str = "
            DELETE FROM worker_read_write_locks WHERE lock_name = $1 AND lock_key = $2 AND token = $3";
        let doing = "give the homeserver's lock on the room back";
        let mut tries = 0;
        loop {
            tries += 1;
            let released = db.write(doing, |db| {
                for (room, name) in self.locks() {
                    db.execute(doing, DELETE, params![name, room, self.token])?;
                }
                Ok(())
            });
            match released {
                // What was meant for an earlier statement can come late; a server is asked over a connection of its own.
                Err(e) if e.is_interrupt() && tries < RELEASE_TRIES => thread::sleep(RELEASE_PAUSE),
                outcome => return outcome,
            }
        }
    }
}

/// How often giving a lock back is tried while interrupts come, and the pause between two tries: together longer than
/// a stopping process goes on interrupting a job that has nothing else to do.
const RELEASE_TRIES: u32 = 40;
const RELEASE_PAUSE: Duration = Duration::from_millis(20);

/// Whether the database has Synapse's lock tables (schema ≥ 79).
pub fn has_locks(db: &Db) -> bool {
    db.catalog().has("worker_read_write_locks") && db.catalog().has("worker_read_write_locks_mode")
}

/// A standby has no content of unlogged tables, and nobody writes there.
fn is_standby(db: &Db) -> Result<bool, Error> {
    const ON_STANDBY: &str = "-- PostgreSQL
        SELECT count(*) WHERE pg_is_in_recovery()";
    Ok(db.engine() == Engine::Postgres
        && db.count("look whether this is a standby", ON_STANDBY, &[])? > 0)
}

/// Lock rows of ours that nobody renews (I-19). A younger one is that of a job which runs, or ran just now.
pub fn leftover_locks(db: &Db, now: Millis) -> Result<i64, Error> {
    const LEFTOVER: &str = "
        SELECT count(*) FROM worker_read_write_locks WHERE instance_name = $1 AND last_renewed_ts < $2";
    if !has_locks(db) || is_standby(db)? {
        return Ok(0);
    }
    db.count(
        "look for locks that were left behind",
        LEFTOVER,
        params![INSTANCE_NAME, (now - LOCK_TIMEOUT).0],
    )
}

/// Removes every lock row of ours: for whoever is the only roomkeeper at work on the database (S-34), and has not begun.
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

/// A task of Synapse's own on a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnTask {
    /// Its id.
    pub id: String,
    /// `purge_history`, `purge_room` or `shutdown_and_purge_room`.
    pub action: String,
    /// `active`, or `scheduled` where it is due.
    pub status: String,
}

/// Whether Synapse itself is purging or deleting the room, or is about to (L-8).
pub fn has_own_task(db: &Db, room: &RoomId, now: Millis) -> Result<bool, Error> {
    Ok(own_task(db, room, now)?.is_some())
}

/// What Synapse itself is doing to the room, or is about to (L-8).
pub fn own_task(db: &Db, room: &RoomId, now: Millis) -> Result<Option<OwnTask>, Error> {
    const TASK: &str = "
        SELECT id, action, status FROM scheduled_tasks
         WHERE resource_id = $1
           AND action IN ('purge_history', 'purge_room', 'shutdown_and_purge_room')
           AND (status = 'active' OR (status = 'scheduled' AND timestamp <= $2))
         ORDER BY status, id
         LIMIT 1";
    if !db.catalog().has("scheduled_tasks") {
        return Ok(None);
    }
    let doing = "look for the homeserver's own tasks";
    db.row(doing, TASK, params![room.as_str(), now.0], |r| {
        Ok(OwnTask {
            id: r.get(0)?,
            action: r.get(1)?,
            status: r.get(2)?,
        })
    })
}
