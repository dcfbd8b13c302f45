//! Giving free pages back to the disk: what is used is copied into a new file, which is put in the old one's place.
//!
//! The copy lies beside the database, or, where its disk has no room, in a directory on another disk (`via`). Then the
//! database's name becomes a link to the copy, which frees the old file's space, and the copy is brought home. At every
//! moment the name leads to one whole database: the old file, the copy that the link leads to, or the new file. Nobody can read the
//! copy who could not read the original (S-36).

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::space::{free_bytes_in, human};
use crate::error::{Context, Error, StoreError};
use crate::sqlite_file::{directory_of, sync_directory_of};

/// Ends the name of a copy on another disk. A link to such a file is one of ours.
const AWAY: &str = ".roomkeeper-via";

/// Ends the name of a copy beside the database, and of a link that is about to take the database's name.
const COPY: &str = ".reclaim";

/// Sizes of the database file before and after [`reclaim`], in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Reclaimed {
    /// File size before.
    pub bytes_before: u64,
    /// File size after.
    pub bytes_after: u64,
}

/// How the space is to be given back.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReclaimOptions<'a> {
    /// A directory on another disk for the copy.
    pub via: Option<&'a Path>,
    /// Whether the copy's full-text index is merged, which could not be done before for lack of room.
    pub merge_index: bool,
}

/// Where the file of a database is.
struct Home {
    /// The database's name, behind every link but ours.
    path: PathBuf,
    /// The copy on another disk that a link of ours leads to: an earlier `reclaim` did not come to its end.
    away: Option<PathBuf>,
}

impl Home {
    fn of(database: &Path) -> Result<Self, Error> {
        const MOST_LINKS: usize = 40;
        let context = "find the database file";
        let mut path = database.to_owned();
        for _ in 0..MOST_LINKS {
            let directory = fs::canonicalize(directory_of(&path)).context(context)?;
            path = match path.file_name() {
                Some(name) => directory.join(name),
                None => return Err(Error::Config(format!("{} is no file", path.display()))),
            };
            let Ok(target) = fs::read_link(&path) else {
                return Ok(Self { path, away: None });
            };
            let target = directory.join(target);
            if is_away(&target) {
                let away = Some(fs::canonicalize(target).context(context)?);
                return Ok(Self { path, away });
            }
            path = target;
        }
        Err(Error::Config(format!(
            "{} is a circle of links",
            database.display()
        )))
    }
}

/// The name that a database has when no `reclaim` is under way: what tells it from others.
pub fn lasting_path(database: &Path) -> Result<PathBuf, Error> {
    Home::of(database).map(|home| home.path)
}

fn is_away(target: &Path) -> bool {
    target
        .file_name()
        .is_some_and(|name| name.as_bytes().ends_with(AWAY.as_bytes()))
}

/// Gives free pages back to the file system. Nothing else may have the file open.
///
/// # Errors
/// [`Error::NoSpace`] before anything is written when a disk has no room for the copy; [`Error::Refused`] when the file
/// is open elsewhere, or has a second name. The database is whole, whatever happens; where it is on another disk for the
/// time being, the error says so.
pub fn reclaim(database: &Path, options: ReclaimOptions<'_>) -> Result<Reclaimed, Error> {
    let context = "reclaim free space";
    let home = Home::of(database)?;
    if let Some(away) = &home.away {
        let bytes_before = fs::metadata(away).context(context)?.len();
        return Ok(Reclaimed {
            bytes_before,
            bytes_after: bring_home(&home.path, away)?,
        });
    }
    let before = fs::metadata(&home.path).context(context)?;
    refuse_second_name(&home.path, &before)?;
    let bytes_after = match options.via {
        None => reclaim_beside(&home.path, options.merge_index)?,
        Some(directory) => {
            let away = send_away(&home.path, directory, options.merge_index)?;
            bring_home(&home.path, &away)?
        }
    };
    Ok(Reclaimed {
        bytes_before: before.len(),
        bytes_after,
    })
}

/// A file that has another name would keep its old content under that one, and whoever uses it would go on there.
fn refuse_second_name(file: &Path, metadata: &fs::Metadata) -> Result<(), Error> {
    if metadata.nlink() == 1 {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "{} is a hard link: the file has {} names, and under the others the old file would stay. Remove the others \
         (`find DIRECTORY -inum {}` shows them), then reclaim",
        file.display(),
        metadata.nlink(),
        metadata.ino()
    )))
}

/// With the copy beside the database; answers the size of the new file.
fn reclaim_beside(database: &Path, merge_index: bool) -> Result<u64, Error> {
    let context = "reclaim free space";
    let conn = open_alone(database)?;
    refuse_without_room(&conn, directory_of(database), merge_index)?;
    let copy = with_suffix(database, COPY);
    let replaced = copy_into(&conn, &copy, merge_index)
        .and_then(|()| Attributes::of(database)?.give_to(&copy))
        .and_then(|()| {
            sync(&copy).context(context)?;
            fs::rename(&copy, database).context(context)?;
            sync_directory_of(database).context(context)
        });
    if replaced.is_err() {
        let _ = fs::remove_file(&copy);
    }
    drop(conn);
    replaced?;
    Ok(fs::metadata(database).context(context)?.len())
}

/// Copies the database into a directory on another disk and makes its name a link to the copy.
fn send_away(database: &Path, directory: &Path, merge_index: bool) -> Result<PathBuf, Error> {
    let context = "reclaim free space";
    let directory = fs::canonicalize(directory)
        .ok()
        .filter(|d| d.is_dir())
        .ok_or_else(|| Error::Config(format!("{} is no directory", directory.display())))?;
    refuse_memory(&directory, database)?;
    let conn = open_alone_keeping_log(database)?;
    refuse_without_room(&conn, &directory, merge_index)?;
    let away = directory.join(name_away(database));
    let link = with_suffix(database, COPY);
    let linked = copy_into(&conn, &away, merge_index)
        .and_then(|()| Attributes::of(database)?.give_to(&away))
        .and_then(|()| {
            sync(&away).context(context)?;
            sync(&directory).context(context)?;
            remove_if_there(&link).context(context)?;
            symlink(&away, &link).context(context)?;
            fs::rename(&link, database).context(context)?;
            sync_directory_of(database).context(context)
        });
    if let Err(e) = linked {
        let _ = remove_if_there(&link);
        // The last step can have been taken all the same.
        if Home::of(database).is_ok_and(|home| home.away.is_none()) {
            let _ = remove_if_there(&away);
        }
        return Err(e);
    }
    // The old file's space is free when nobody has it open any more.
    drop(conn);
    Ok(away)
}

/// Copies the file that a link of ours leads to beside the link, and puts it in the link's place; answers its size.
fn bring_home(home: &Path, away: &Path) -> Result<u64, Error> {
    let stays_away = |e: Error| {
        let why = match e {
            Error::NoSpace(why) | Error::Refused(why) => why,
            e => crate::error::Chain(&e).to_string(),
        };
        Error::NoSpace(format!(
            "{why}. The database is whole and lies in {} for the time being; {} is a link to it. `roomkeeper reclaim` \
             brings it home",
            away.display(),
            home.display()
        ))
    };
    bring_home_unless(home, away).map_err(stays_away)
}

fn bring_home_unless(home: &Path, away: &Path) -> Result<u64, Error> {
    let context = "bring the database home";
    let conn = open_alone(away)?;
    // Left beside the link by the old file: nobody's, and must not be taken for the new file's.
    for suffix in ["-wal", "-shm", "-journal"] {
        remove_if_there(&with_suffix(home, suffix)).context(context)?;
    }
    let copy = with_suffix(home, COPY);
    remove_if_there(&copy).context(context)?;
    let size = fs::metadata(away).context(context)?.len();
    let free = free_bytes_in(directory_of(home))?;
    // Its own log, while it is set up.
    let needed = size + 64 * 1024;
    if free < needed {
        return Err(Error::NoSpace(format!(
            "the database needs {} on its own disk, which has {} free: {} are missing",
            human(needed),
            human(free),
            human(needed - free)
        )));
    }
    // Closing it would let our hold on the file go, so it stays open until the copy is in its place.
    let mut from = File::open(away).context(context)?;
    let brought = create_private(&copy)
        .and_then(|mut to| std::io::copy(&mut from, &mut to))
        .context(context)
        .and_then(|_| finish_copy(&conn, &copy))
        .and_then(|()| Attributes::of(away)?.give_to(&copy))
        .and_then(|()| {
            sync(&copy).context(context)?;
            fs::rename(&copy, home).context(context)?;
            sync_directory_of(home).context(context)
        });
    if let Err(e) = brought {
        let _ = remove_if_there(&copy);
        return Err(e);
    }
    drop(conn);
    remove_if_there(away).context(context)?;
    let _ = sync_directory_of(away);
    Ok(fs::metadata(home).context(context)?.len())
}

/// Refuses when a disk has no room for the copy.
fn refuse_without_room(
    conn: &Connection,
    directory: &Path,
    merge_index: bool,
) -> Result<(), Error> {
    let number = |name| {
        conn.pragma_query_value(None, name, |r| r.get::<_, i64>(0))
            .context("measure the database")
    };
    let used =
        (number("page_count")? - number("freelist_count")?).saturating_mul(number("page_size")?);
    let used = u64::try_from(used).unwrap_or(u64::MAX);
    // A tenth more: full-text and index pages are packed anew, not always tighter. What is merged is copied twice.
    let needed = used
        .saturating_add(used / 10)
        .saturating_mul(if merge_index { 2 } else { 1 });
    let free = free_bytes_in(directory)?;
    if free < needed {
        return Err(Error::NoSpace(format!(
            "the copy of what is in use needs {} in {}, which has {} free: {} are missing. Free some, or name a directory \
             on another disk (`roomkeeper reclaim --via DIRECTORY`)",
            human(needed),
            directory.display(),
            human(free),
            human(needed - free)
        )));
    }
    Ok(())
}

/// What is in memory is gone with the power; the database must not be.
fn refuse_memory(directory: &Path, database: &Path) -> Result<(), Error> {
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    let is_memory = |path: &Path| {
        let kind = rustix::fs::statfs(path).map(|s| s.f_type as u64);
        matches!(kind, Ok(TMPFS | RAMFS))
    };
    if is_memory(directory) && !is_memory(directory_of(database)) {
        return Err(Error::Refused(format!(
            "{} is in memory, and the database would be lost with the power: name a directory on a disk",
            directory.display()
        )));
    }
    Ok(())
}

/// Tells the copies of databases of the same name apart, on this machine and on others.
fn name_away(database: &Path) -> String {
    let machine = fs::read("/proc/sys/kernel/hostname").unwrap_or_default();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in machine.iter().chain(database.as_os_str().as_bytes()) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let name = database.file_name().unwrap_or_default().to_string_lossy();
    format!("{name}.{hash:016x}{AWAY}")
}

fn open_elsewhere() -> Error {
    Error::Refused(
        "another process has the database open: stop the homeserver (and roomkeeper's daemon), then reclaim"
            .into(),
    )
}

fn connect(database: &Path) -> Result<Connection, Error> {
    let context = "take the database for ourselves";
    let conn = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_WRITE)
        .context(context)?;
    conn.busy_timeout(Duration::ZERO).context(context)?;
    Ok(conn)
}

fn refused(e: rusqlite::Error) -> Error {
    match StoreError::from(e) {
        e if e.is_busy() => open_elsewhere(),
        source => Error::Store {
            doing: "take the database for ourselves",
            source,
        },
    }
}

/// Empties the log and takes the file for this connection alone. With a rollback journal nothing is left beside
/// the file that could be taken for the new file's log.
fn open_alone(database: &Path) -> Result<Connection, Error> {
    let conn = connect(database)?;
    let checkpoint: i64 = conn
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |r| r.get(0))
        .map_err(refused)?;
    let mode: String = conn
        .query_row("PRAGMA journal_mode = DELETE", [], |r| r.get(0))
        .map_err(refused)?;
    if checkpoint != 0 || mode != "delete" {
        return Err(open_elsewhere());
    }
    conn.query_row("PRAGMA locking_mode = EXCLUSIVE", [], |_| Ok(()))
        .map_err(refused)?;
    conn.execute_batch("BEGIN EXCLUSIVE; COMMIT")
        .map_err(refused)?;
    Ok(conn)
}

/// Takes the file for this connection alone and writes nothing, for which there may be no room: what the log holds is
/// read from there. The caller moves the file out of the log's way.
fn open_alone_keeping_log(database: &Path) -> Result<Connection, Error> {
    let conn = connect(database)?;
    conn.query_row("PRAGMA locking_mode = EXCLUSIVE", [], |_| Ok(()))
        .map_err(refused)?;
    conn.execute_batch("BEGIN IMMEDIATE; ROLLBACK")
        .map_err(refused)?;
    Ok(conn)
}

/// What is damaged is copied by nobody: what is still there might get lost.
pub fn damaged(what: &str) -> Error {
    Error::Refused(format!(
        "the database file is damaged, and was before: {what}. It stays as it is (rule I-18), and nothing was lost by this. \
         Stop the homeserver, make a copy of the file and of its -wal, and look at the copy: `roomkeeper check`, or \
         `sqlite3 COPY 'PRAGMA integrity_check'`. Then restore a backup"
    ))
}

/// Writes what `conn` sees into a new file that only we can read, and makes sure that all is there.
fn copy_into(conn: &Connection, copy: &Path, merge_index: bool) -> Result<(), Error> {
    let context = "copy the database";
    if merge_index {
        let unmerged = with_suffix(copy, "-unmerged");
        let merged = vacuum_into(conn, &unmerged).and_then(|()| {
            let made = connect(&unmerged)?;
            made.execute_batch(
                "PRAGMA secure_delete = ON; INSERT INTO event_search(event_search) VALUES ('rebuild')",
            )
            .context("merge the full-text index")?;
            vacuum_into(&made, copy)
        });
        let _ = remove_if_there(&unmerged);
        let _ = remove_if_there(&with_suffix(&unmerged, "-journal"));
        merged?;
    } else {
        vacuum_into(conn, copy)?;
    }
    finish_copy(conn, copy).and_then(|()| {
        let copied = connect(copy)?;
        for table in ["events", "event_json", "state_groups_state"] {
            let sql = format!("SELECT count(*) FROM {table}");
            let count = |c: &Connection| {
                c.query_row(&sql, [], |r| r.get::<_, i64>(0))
                    .context(context)
            };
            if count(conn)? != count(&copied)? {
                return Err(Error::Bug(format!(
                    "the copy does not hold all rows of {table}"
                )));
            }
        }
        copied.close().map_err(|(_, e)| e).context(context)
    })
}

fn vacuum_into(conn: &Connection, copy: &Path) -> Result<(), Error> {
    let context = "copy the database";
    let name = copy
        .to_str()
        .ok_or_else(|| Error::Config(format!("{} is not UTF-8", copy.display())))?;
    remove_if_there(copy).context(context)?;
    // SQLite fills an empty file that is there, and leaves its mode.
    create_private(copy).context(context)?;
    conn.execute("VACUUM INTO $1", [name])
        .context(context)
        .map(drop)
}

/// Reads every page of the copy, and says that it has a write-ahead log, as the original had.
fn finish_copy(conn: &Connection, copy: &Path) -> Result<(), Error> {
    let context = "copy the database";
    let verdict = |conn: &Connection| -> Result<String, Error> {
        conn.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))
            .context(context)
    };
    let made = connect(copy)?;
    let copied = verdict(&made)?;
    if copied != "ok" {
        // What was damaged is copied as it is.
        return Err(match verdict(conn)?.as_str() {
            "ok" => Error::Bug(format!("the copy is not whole: {copied}")),
            held => damaged(held),
        });
    }
    made.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
        .context(context)?;
    made.close().map_err(|(_, e)| e).context(context)
}

/// Who may do what with a file: what a homeserver needs to open it, and nobody else may get.
struct Attributes {
    mode: u32,
    owner: (u32, u32),
    /// Extended attributes, ACLs and security labels among them.
    extended: Vec<(CString, Vec<u8>)>,
}

impl Attributes {
    /// Asked by name: closing a descriptor of the database would drop our locks on it.
    fn of(file: &Path) -> Result<Self, Error> {
        let context = "read the attributes of the database file";
        let metadata = fs::metadata(file).context(context)?;
        Ok(Self {
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            extended: extended(file).context(context)?,
        })
    }

    /// Gives a file that only we can read these attributes, and no others.
    fn give_to(&self, copy: &Path) -> Result<(), Error> {
        let refuse = |what: &str, e: std::io::Error| {
            Error::Refused(format!(
                "{} cannot be given {what} of the database file ({e}), and nothing was changed: run as the file's owner or \
                 as root, and copy to a file system that keeps them",
                copy.display()
            ))
        };
        let made = fs::metadata(copy).context("look at the copy")?;
        if (made.uid(), made.gid()) != self.owner {
            chown(copy, Some(self.owner.0), Some(self.owner.1))
                .map_err(|e| refuse("the owner", e))?;
        }
        // Inherited from the directory.
        for (name, _) in extended(copy).context("look at the copy")? {
            let is_ours = self.extended.iter().any(|(wanted, _)| *wanted == name);
            if !is_ours && !name.as_bytes().starts_with(b"security.") {
                rustix::fs::removexattr(copy, &name)
                    .map_err(|e| refuse("exactly the attributes", e.into()))?;
            }
        }
        let held = extended(copy).context("look at the copy")?;
        for attribute in &self.extended {
            let (name, value) = attribute;
            if !held.contains(attribute) {
                let what = format!("the attribute {}", name.to_string_lossy());
                rustix::fs::setxattr(copy, name, value, rustix::fs::XattrFlags::empty())
                    .map_err(|e| refuse(&what, e.into()))?;
            }
        }
        fs::set_permissions(copy, fs::Permissions::from_mode(self.mode))
            .map_err(|e| refuse("the mode", e))?;
        let made = fs::metadata(copy).context("look at the copy")?;
        if (made.mode() & 0o7777, (made.uid(), made.gid())) != (self.mode, self.owner) {
            let e = std::io::Error::from(ErrorKind::Unsupported);
            return Err(refuse("mode and owner", e));
        }
        Ok(())
    }
}

/// Labels that are made of a file's content, which the kernel makes itself.
const OF_CONTENT: [&[u8]; 2] = [b"security.ima", b"security.evm"];

fn extended(file: &Path) -> std::io::Result<Vec<(CString, Vec<u8>)>> {
    let mut names = vec![0; 1 << 16];
    let length = match rustix::fs::listxattr(file, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::NOSYS) => return Ok(Vec::new()),
        Err(e) => return Err(e.into()),
    };
    let mut all = Vec::new();
    for name in names[..length].split(|byte| *byte == 0) {
        if name.is_empty() || OF_CONTENT.contains(&name) {
            continue;
        }
        let name = CString::new(name)?;
        let mut value = vec![0; 1 << 16];
        let length = rustix::fs::getxattr(file, &name, &mut value[..])?;
        value.truncate(length);
        all.push((name, value));
    }
    all.sort();
    Ok(all)
}

/// A new, empty file that only we can read.
fn create_private(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// What a file or a directory holds is on the disk from now on.
fn sync(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
