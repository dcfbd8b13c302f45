//! A SQLite file as the file system has it: how it is read without leaving anything behind, and what is missing where it
//! cannot be used.
//!
//! SQLite reads a database that has a write-ahead log with the help of a file `-shm` beside it, and makes both files where
//! they are not there. What only reads must not need that (S-33). Whether somebody is at work is seen from the files beside it:
//! a process that has such a database open keeps both.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use crate::error::{Context, Error, StoreError};
use crate::plural::count_of;

/// A connection that reads a file and changes nothing, beside it neither.
pub struct Reading {
    /// The connection.
    pub conn: Connection,
    /// Where the file is read without locks: what must stay as it is meanwhile.
    pub unchanged: Option<Unchanged>,
}

/// How a file can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// With everybody's locks, and the files beside it that are there.
    Shared,
    /// The file alone: no log holds anything newer.
    FileAlone,
    /// The file and its log, whose index is made in our own memory.
    WithLog,
}

/// Opens a file for reading; creates nothing and needs no right to write.
///
/// # Errors
/// [`Error::Config`] says what is missing, and what to do.
pub fn open_to_read(path: &Path) -> Result<Reading, Error> {
    try_to_read(path)?.map_err(|e| explained(path, false, "open the file", e))
}

/// The same, with what SQLite says of the file as it says it.
///
/// # Errors
/// [`Error::Config`] says what is missing, and what to do.
pub fn try_to_read(path: &Path) -> Result<Result<Reading, rusqlite::Error>, Error> {
    if let Some(missing) = missing_to_read(path) {
        return Err(Error::Config(missing));
    }
    let real = fs::canonicalize(path).context("find the file")?;
    let way = way_to_read(&real)?;
    Ok(match open_by(&real, way) {
        // The index of the log has no room on the disk. Where nobody else is at work it need not lie there.
        Err(e) if way == Way::Shared && needs_index(&e) && holder(&real).is_none() => {
            open_by(&real, Way::WithLog)
        }
        opened => opened,
    })
}

fn open_by(real: &Path, way: Way) -> Result<Reading, rusqlite::Error> {
    let unchanged = (way != Way::Shared).then(|| Unchanged::of(real));
    let parameters = match way {
        Way::Shared => "?mode=ro",
        Way::FileAlone => "?mode=ro&immutable=1",
        Way::WithLog => "?mode=ro&vfs=unix-none",
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(uri(real, parameters), flags)?;
    if way == Way::WithLog {
        conn.query_row("PRAGMA locking_mode = EXCLUSIVE", [], |_| Ok(()))?;
    }
    conn.query_row("SELECT count(*) FROM sqlite_master", [], |_| Ok(()))?;
    Ok(Reading { conn, unchanged })
}

fn way_to_read(real: &Path) -> Result<Way, Error> {
    let length = |suffix| fs::metadata(beside(real, suffix)).map(|m| m.len()).ok();
    let (log, index) = (length("-wal"), length("-shm"));
    let holds = |length: Option<u64>| length.is_some_and(|bytes| bytes > 0);
    let directory = directory_of(real);
    let is_still = is_read_only(directory);
    if holds(length("-journal")) || (log.is_some() && index.is_some() && !is_still) {
        return Ok(Way::Shared);
    }
    if !holds(log) {
        return Ok(Way::FileAlone);
    }
    if is_still || may(directory, rustix::fs::Access::WRITE_OK) {
        return Ok(Way::WithLog);
    }
    Err(Error::Config(format!(
        "{} has a write-ahead log with content and no -shm file, and roomkeeper may not write into {}: run as {}, or \
         start the homeserver, whose -shm file then serves",
        real.display(),
        directory.display(),
        owner(directory)
    )))
}

/// What a file looked like before it was read without locks.
#[derive(PartialEq, Eq)]
pub struct Unchanged {
    path: PathBuf,
    file: Option<Stamp>,
    log: Option<Stamp>,
}

/// Device, number, length, and the time of the last change in seconds and nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);

impl Unchanged {
    fn of(path: &Path) -> Self {
        let stamp = |path: &Path| {
            let m = fs::metadata(path).ok()?;
            Some((m.dev(), m.ino(), m.len(), m.mtime(), m.mtime_nsec()))
        };
        Self {
            path: path.to_owned(),
            file: stamp(path),
            // An empty one holds nothing, and neither does one that is not there.
            log: stamp(&beside(path, "-wal")).filter(|stamp| stamp.2 > 0),
        }
    }

    /// Refuses what was read while somebody wrote.
    ///
    /// # Errors
    /// [`Error::ChangedWhileRead`].
    pub fn ensure(&self) -> Result<(), Error> {
        if *self == Self::of(&self.path) {
            return Ok(());
        }
        Err(Error::ChangedWhileRead(format!(
            "{} was changed while it was read (has the homeserver been started?): ask again",
            self.path.display()
        )))
    }
}

/// Reads, and once more where somebody opened the file meanwhile: from then on it is read with locks, as everybody does.
///
/// # Errors
/// Those of `work`; [`Error::ChangedWhileRead`] where it changes again and again.
pub fn undisturbed<T>(mut work: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    // Somebody who starts and stops at once can disturb twice.
    for _ in 0..3 {
        match work() {
            Err(Error::ChangedWhileRead(_)) => {}
            done => return done,
        }
    }
    work()
}

/// Another process that holds a lock on the file, as the kernel lists them; inside, its number where that is known. SQLite
/// with a write-ahead log keeps a shared lock on the file for as long as it has it open.
///
/// Read from `/proc/locks`, because opening and closing the file once more would drop our own locks on it.
pub fn holder(file: &Path) -> Option<Option<u32>> {
    holders(file).into_iter().next()
}

/// All of them.
pub fn holders(file: &Path) -> Vec<Option<u32>> {
    let (Ok(file), Ok(locks)) = (fs::metadata(file), fs::read_to_string("/proc/locks")) else {
        return Vec::new();
    };
    let id = format!(
        "{:02x}:{:02x}:{}",
        rustix::fs::major(file.dev()),
        rustix::fs::minor(file.dev()),
        file.ino()
    );
    let held = locks.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // "1: POSIX  ADVISORY  READ 1234 fe:00:5678 …"; a waiter's line has "->" after the number.
        let at = words.iter().position(|w| *w == id)?;
        let pid: i64 = words.get(at.checked_sub(1)?)?.parse().ok()?;
        (pid != i64::from(std::process::id())).then(|| u32::try_from(pid).ok().filter(|p| *p > 0))
    });
    held.collect()
}

/// What is missing for reading the file, as a sentence with what to do.
pub fn missing_to_read(path: &Path) -> Option<String> {
    if let Some(missing) = no_such_file(path) {
        return Some(missing);
    }
    [path.to_owned(), beside(path, "-wal")]
        .into_iter()
        .find(|file| file.exists() && !may(file, rustix::fs::Access::READ_OK))
        .map(|file| {
            format!(
                "roomkeeper may not read {}, which belongs to {}: run as that user",
                file.display(),
                owner(&file)
            )
        })
}

/// What is missing for writing into the file, as a sentence with what to do.
pub fn missing_to_write(path: &Path) -> Option<String> {
    if let Some(missing) = missing_to_read(path) {
        return Some(missing);
    }
    let real = fs::canonicalize(path).ok()?;
    let directory = directory_of(&real);
    if is_read_only(directory) {
        return Some(format!(
            "{} is on a read-only file system: mount it for writing, or use a command that only reads",
            path.display()
        ));
    }
    let mut needed = vec![real.clone(), directory.to_owned()];
    needed.extend(["-wal", "-shm", "-journal"].map(|suffix| beside(&real, suffix)));
    needed
        .into_iter()
        .find(|file| file.exists() && !may(file, rustix::fs::Access::WRITE_OK))
        .map(|file| {
            format!(
                "roomkeeper may not write to {}, which belongs to {}: run as that user, or use a command that only reads",
                file.display(),
                owner(&file)
            )
        })
}

/// What is missing for making the file, as a sentence with what to do.
pub fn missing_to_create(path: &Path) -> Option<String> {
    let directory = directory_of(path);
    if is_read_only(directory) {
        return Some(format!(
            "{} is on a read-only file system",
            directory.display()
        ));
    }
    (directory.is_dir() && !may(directory, rustix::fs::Access::WRITE_OK)).then(|| {
        format!(
            "roomkeeper may not write into {}, which belongs to {}: run as that user",
            directory.display(),
            owner(directory)
        )
    })
}

fn no_such_file(path: &Path) -> Option<String> {
    match fs::metadata(path) {
        Ok(m) if m.is_file() => None,
        Ok(m) if m.is_dir() => Some(format!(
            "{} is a directory: name the database file in it",
            path.display()
        )),
        Ok(_) => Some(format!("{} is no file", path.display())),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            let closed = path
                .ancestors()
                .skip(1)
                .filter(|d| !d.as_os_str().is_empty())
                .find(|d| d.is_dir() && !may(d, rustix::fs::Access::EXEC_OK));
            let closed = closed.unwrap_or(directory_of(path));
            Some(format!(
                "roomkeeper may not look into {}, which belongs to {}: run as that user",
                closed.display(),
                owner(closed)
            ))
        }
        Err(_) => Some(format!(
            "there is no database file {}; `roomkeeper init` makes an empty one",
            path.display()
        )),
    }
}

/// What SQLite said of a file, as a person needs to hear it: what is missing, and what to do.
pub fn explained(
    path: &Path,
    to_write: bool,
    doing: &'static str,
    e: impl Into<StoreError>,
) -> Error {
    let source = e.into();
    let missing = match to_write {
        true => missing_to_write(path),
        false => missing_to_read(path),
    };
    match missing {
        _ if source.is_full() => Error::NoSpace(full(&[path], NEEDED_TO_BEGIN)),
        _ if source.is_no_database() => Error::Config(format!(
            "{} is not a SQLite database: name the homeserver's database file",
            path.display()
        )),
        Some(missing) if source.is_of_file() => Error::Config(missing),
        _ => Error::Store { doing, source },
    }
}

/// What the ledger and SQLite's own files take, in bytes: nothing is written without them.
pub const NEEDED_TO_BEGIN: u64 = 1 << 20;

/// That a disk is full, with what is free on it, what is missing of the bytes that are needed, and what helps. Of files that
/// lie on several disks, that of the fullest (S-35).
pub fn full(paths: &[&Path], needed: u64) -> String {
    let free_beside = |path: &&Path| free_bytes_beside(path).unwrap_or(0);
    let fullest = paths.iter().min_by_key(|path| free_beside(path));
    let path = fullest.copied().unwrap_or(Path::new("."));
    let free = free_beside(&path);
    // Where even that was not enough, twice as much may be.
    let missing = match needed.saturating_sub(free) {
        0 => free,
        missing => missing,
    };
    format!(
        "the disk of {} is full: {} free, and some {} needed. Free some, and ask again; what only reads works meanwhile \
         (`messages`, `jobs`, `check`, `--dry-run`), and `roomkeeper reclaim --via DIRECTORY` shrinks the database by way of \
         another disk",
        directory_of(path).display(),
        count_of(free, "byte is", "bytes are"),
        count_of(missing, "more is", "more are"),
    )
}

/// Bytes free for us beside a file, where that is known.
pub fn free_bytes_beside(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(directory_of(path)).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn needs_index(e: &rusqlite::Error) -> bool {
    // SQLITE_IOERR_SHMOPEN, SHMSIZE, SHMLOCK, SHMMAP, and SQLITE_CANTOPEN.
    const OF_INDEX: [i32; 5] = [4618, 4874, 5130, 5386, 14];
    e.sqlite_error()
        .is_some_and(|e| OF_INDEX.contains(&e.extended_code) || e.extended_code == 13)
}

fn is_read_only(directory: &Path) -> bool {
    rustix::fs::statvfs(directory)
        .is_ok_and(|s| s.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

fn may(path: &Path, access: rustix::fs::Access) -> bool {
    rustix::fs::accessat(rustix::fs::CWD, path, access, rustix::fs::AtFlags::EACCESS).is_ok()
}

/// Whose a file is, by name where the machine knows it.
fn owner(path: &Path) -> String {
    let Ok(uid) = fs::metadata(path).map(|m| m.uid()) else {
        return "another user".to_owned();
    };
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut words = line.split(':');
        let name = words.next()?;
        (words.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    name.map_or_else(
        || format!("the user with the number {uid}"),
        |name| format!("user {name}"),
    )
}

fn uri(path: &Path, parameters: &str) -> OsString {
    let mut text = b"file:".to_vec();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'%' | b'?' | b'#' => text.extend(format!("%{byte:02X}").bytes()),
            byte => text.push(*byte),
        }
    }
    text.extend(parameters.bytes());
    OsString::from_vec(text)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// What was made, renamed or removed beside this path is so on the disk from now on.
///
/// # Errors
/// Those of the file system.
pub fn sync_directory_of(path: &Path) -> std::io::Result<()> {
    fs::File::open(directory_of(path))?.sync_all()
}

/// The directory of a file.
pub fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
