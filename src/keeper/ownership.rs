//! What is made sure of before a keeper works on a database.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;
use std::sync::Arc;

use super::{options, put_back};
use crate::config::{Config, HomeserverPolicy};
use crate::error::Error;
use crate::ids::{Escaped, RoomId, is_server_name};
use crate::jobs::ledger::{Ledger, unfit};
use crate::sqlite_file;
use crate::store::db::{Access, Db};
use crate::store::free_pages::RawFile;
use crate::store::homeserver::{self, HomeserverDetector};
use crate::store::reclaim::lasting_path;
use crate::store::work_lock::WorkLock;
use crate::store::{removed, users};
use crate::time::Millis;

/// Becomes the owner of the ledger, and the only one at work on the database (S-34). The ledger comes first, because who
/// has that can be asked to do the work.
pub(super) fn own_work(config: &Config) -> Result<(Ledger, WorkLock), Error> {
    let ledger = own_ledger(config)?;
    let lock = WorkLock::take(&config.database, &config.ledger)?;
    Ok((ledger, lock))
}

/// Becomes the owner of the ledger alone.
pub(super) fn own_ledger(config: &Config) -> Result<Ledger, Error> {
    if config.database.file().is_none() {
        make_directory_of(&config.ledger)?;
    }
    // Before a ledger appears beside nothing, or beside a file that is something else.
    if let Some(missing) = config
        .database
        .file()
        .and_then(sqlite_file::missing_to_write)
    {
        return Err(Error::Config(missing));
    }
    let identity = look(config, Db::identity)?;
    make_ledger(&config.ledger, config.database.file())?;
    let ledger = Ledger::open(&config.ledger)?;
    if ledger.is_of_another(&identity)? && !lies_beside(&config.ledger, &identity) {
        let former = ledger.identity()?.unwrap_or_default();
        if look(config, |db| removed::was_dropped(db, &former))? {
            let why = "the database was dropped and made anew";
            put_back::hold_jobs(&ledger, why, config.clock.now())?;
            ledger.adopt(&identity)?;
            return Ok(ledger);
        }
        return Err(Error::Refused(format!(
            "the ledger {} has unfinished work on another database: finish that first (`roomkeeper jobs --resume` there), \
             or say another ledger (roomkeeper.ledger) for this one",
            config.ledger.display()
        )));
    }
    ledger.adopt(&identity)?;
    Ok(ledger)
}

/// Looks at the database once. A homeserver that opens it in that moment is no reason to give up.
///
/// # Errors
/// Those of `work`, and of opening the database.
pub(super) fn look<T>(
    config: &Config,
    mut work: impl FnMut(&Db) -> Result<T, Error>,
) -> Result<T, Error> {
    sqlite_file::undisturbed(|| {
        let db = Db::open(&config.database, &options(Access::ReadOnlyFile))?;
        work(&db)
    })
}

/// What tells a database from every other one, its own copies included.
///
/// # Errors
/// Those of the database; [`Error::Config`] where there is no such file.
pub fn identity_of(config: &Config) -> Result<String, Error> {
    match config.database.file() {
        Some(file) => Ok(lasting_path(file)?.display().to_string()),
        None => look(config, Db::identity),
    }
}

/// A file that was moved together with the ledger beside it is no other database.
fn lies_beside(ledger: &Path, identity: &str) -> bool {
    let beside = format!("{identity}.roomkeeper");
    fs::canonicalize(ledger).is_ok_and(|ledger| ledger == Path::new(&beside))
}

/// A new ledger belongs to whom the database belongs to, as SQLite's own files beside it do: a purge by root must not
/// lock the owner out.
fn make_ledger(ledger: &Path, database: Option<&Path>) -> Result<(), Error> {
    let unfit = |why: &str| unfit(ledger, why);
    let database = database.and_then(|file| fs::metadata(file).ok());
    let mut how = fs::OpenOptions::new();
    how.read(true).write(true);
    let mode = database
        .as_ref()
        .map_or(0o600, |d| (d.mode() & 0o666) | 0o600);
    match how.clone().create_new(true).mode(mode).open(ledger) {
        Ok(file) => {
            if let Some(database) = database {
                // Only root may; whoever else is at work here is the owner, or shares the directory with them.
                let _ = fchown(&file, Some(database.uid()), Some(database.gid()));
            }
            return Ok(());
        }
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        Err(e) if e.kind() == ErrorKind::StorageFull => {
            let needed = sqlite_file::NEEDED_TO_BEGIN;
            return Err(Error::NoSpace(sqlite_file::full(&[ledger], needed)));
        }
        Err(e) => {
            let missing = sqlite_file::missing_to_create(ledger);
            return Err(unfit(&missing.unwrap_or_else(|| e.to_string())));
        }
    }
    let is_database = |m: &fs::Metadata| {
        database
            .as_ref()
            .is_some_and(|d| (d.dev(), d.ino()) == (m.dev(), m.ino()))
    };
    match fs::metadata(ledger) {
        Ok(m) if m.is_dir() => Err(unfit("it is a directory")),
        Ok(m) if is_database(&m) => Err(unfit("it is the homeserver's database")),
        Ok(_) => how.open(ledger).map(drop).map_err(|e| {
            let missing = sqlite_file::missing_to_write(ledger);
            unfit(&missing.unwrap_or_else(|| e.to_string()))
        }),
        Err(e) => Err(unfit(&e.to_string())),
    }
}

/// The place for ledgers of databases that are no files is ours to make.
fn make_directory_of(ledger: &Path) -> Result<(), Error> {
    let Some(directory) = ledger.parent().filter(|d| !d.as_os_str().is_empty()) else {
        return Ok(());
    };
    fs::create_dir_all(directory).map_err(|e| {
        Error::Config(format!(
            "the ledger's directory {} cannot be made: {e}; say another place with roomkeeper.ledger",
            directory.display()
        ))
    })
}

/// W-22: looks for signs of a running homeserver, unless the configuration says what is the case.
pub(super) fn refuse_running_homeserver(
    config: &Config,
    raw: Option<Arc<RawFile>>,
) -> Result<(), Error> {
    if config.homeserver != HomeserverPolicy::RequireStopped {
        return Ok(());
    }
    match sign_of_homeserver(config, raw)? {
        None => Ok(()),
        Some(sign) => Err(Error::Refused(format!(
            "a homeserver seems to be running on this database: {sign}. Stop it first; or accept it with --beside \
             (roomkeeper.homeserver.running: beside); or, if you are sure that none is running, say --offline=assume"
        ))),
    }
}

/// The same for what needs the database for itself alone, whatever the configuration accepts.
pub(super) fn refuse_anybody_else(config: &Config) -> Result<(), Error> {
    let sign = match config.homeserver {
        HomeserverPolicy::AssumeRunning => Some("roomkeeper was told that one runs".to_owned()),
        HomeserverPolicy::AssumeStopped => open_elsewhere(config)?,
        HomeserverPolicy::RequireStopped | HomeserverPolicy::AllowRunning => {
            match sign_of_homeserver(config, None)? {
                None => open_elsewhere(config)?,
                sign => sign,
            }
        }
    };
    match sign {
        None => Ok(()),
        Some(sign) => Err(Error::Refused(format!(
            "this needs the database for itself alone, and a homeserver seems to be running on it: {sign}. Stop it first"
        ))),
    }
}

fn sign_of_homeserver(config: &Config, raw: Option<Arc<RawFile>>) -> Result<Option<String>, Error> {
    let mut detector = HomeserverDetector::new(config.endpoints.clone(), &config.database, raw);
    // A database that cannot be opened is told of its homeserver all the same.
    if let Some(sign) = detector.detect_without_query() {
        return Ok(Some(sign));
    }
    look(config, |db| detector.look(db, config.clock.now()))
}

fn open_elsewhere(config: &Config) -> Result<Option<String>, Error> {
    let is_open = config
        .database
        .file()
        .map_or(Ok(false), homeserver::is_open_elsewhere)?;
    Ok(is_open.then(|| "another process has the database open".to_owned()))
}

/// Who is local is told by the server's name: under a wrong one a purge would take local users' messages, and a deletion
/// would leave its people behind.
pub(super) fn refuse_wrong_server_name(db: &Db, config: &Config) -> Result<(), Error> {
    let name = &config.server_name;
    if !is_server_name(name) {
        return Err(Error::Config(format!("{name:?} is no server name")));
    }
    match users::server_name_instead_of(db, name)? {
        None => Ok(()),
        Some(other) => Err(Error::Refused(format!(
            "this is not the database of {name}: its users are of {other}. Say the server_name that the homeserver has"
        ))),
    }
}

/// L-8, E-19: Synapse's own purge or deletion of the room, which it takes up again when it starts.
///
/// # Errors
/// [`Error::RoomBusy`] while a homeserver is running; [`Error::LeftTask`] while none is.
pub(super) fn refuse_own_task(
    db: &Db,
    room: &RoomId,
    now: Millis,
    is_running: impl FnOnce() -> Result<bool, Error>,
) -> Result<(), Error> {
    let Some(task) = homeserver::own_task(db, room, now)? else {
        return Ok(());
    };
    if is_running()? {
        return Err(Error::RoomBusy { room: room.clone() });
    }
    Err(Error::LeftTask(format!(
        "Synapse was stopped in the middle of a task of its own on room {room}: {} {} is still {}. Start Synapse, which takes \
         it up again, and ask when it has ended; or, while Synapse is stopped, give the task up: UPDATE scheduled_tasks SET \
         status = 'failed' WHERE id = '{}'",
        Escaped(&task.action),
        Escaped(&task.id),
        Escaped(&task.status),
        Escaped(&task.id),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema;

    /// A homeserver may start in the moment in which a daemon or a command does.
    #[test]
    fn who_opens_the_database_meanwhile_makes_nobody_give_up() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("homeserver.db");
        schema::create(&path).expect("makes");
        let config = Config::for_sqlite(&path, "example.org");
        let (mut homeserver, mut looks) = (None, 0);
        let rooms = look(&config, |db| {
            looks += 1;
            let homeserver = homeserver.get_or_insert_with(|| {
                let conn = rusqlite::Connection::open(&path).expect("opens");
                let sql = "INSERT INTO rooms (room_id, is_public) VALUES ('!a:b', 0)";
                conn.execute_batch(sql).expect("writes");
                conn
            });
            assert!(homeserver.is_autocommit());
            db.count("count", "SELECT count(*) FROM rooms", &[])
        });
        assert_eq!((rooms.expect("looked at"), looks), (1, 2));
    }

    #[test]
    fn what_changes_again_and_again_is_told() {
        let mut looks = 0;
        let told = sqlite_file::undisturbed(|| {
            looks += 1;
            Err::<(), _>(Error::ChangedWhileRead("changed".into()))
        });
        assert!(matches!(told, Err(Error::ChangedWhileRead(_))));
        assert_eq!(looks, 4);
    }
}
