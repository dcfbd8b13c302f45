//! Commands that only read need no right to write, leave nothing behind, and say what is missing where they cannot.
//!
//! Root may write everywhere, so the program runs as somebody else here (`setpriv`); read-only file systems are mounted,
//! where this process may. What could not be tested for want of either is said. Files have no subject on PostgreSQL.

mod sample;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rusqlite::Connection;

/// Who runs the program: nobody.
const NOBODY: &str = "65534";

/// Events that the file holds, and those that only its log holds.
const EVENTS: i64 = 60;

/// What lies in the log and not in the file.
const NEWEST: &str = "UPDATE rooms SET creator = '@log:example.org'";

/// How a database was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// The homeserver has ended: the log is gone.
    Closed,
    /// The homeserver was killed: log and index lie there.
    Killed,
    /// The file and the log were copied, not the index.
    Copied,
    /// Another journal mode.
    RollbackJournal,
}

/// A directory with a database, its configuration, and a ledger with one job.
fn place(left: Left) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let database = directory.path().join("homeserver.db");
    let made = tempfile::tempdir().expect("a directory");
    let source = made.path().join("homeserver.db");
    sample::create(&source, &["a"], EVENTS);
    fs::write(
        directory.path().join("homeserver.yaml"),
        format!(
            "server_name: example.org\ndatabase: {{name: sqlite3, args: {{database: '{}'}}}}\n\
             retention: {{enabled: true, default_policy: {{max_lifetime: 1d}}}}\n\
             roomkeeper: {{}}\n",
            database.display()
        ),
    )
    .expect("written");
    // A ledger with a job on record.
    let purge = Command::new(env!("CARGO_BIN_EXE_roomkeeper"))
        .args(["--database"])
        .arg(&source)
        .args(["--server-name", "example.org", "purge-history"])
        .args([&sample::room_id("a"), "--before-token", &sample::token(20)])
        .output()
        .expect("runs");
    assert!(purge.status.success(), "{purge:?}");
    let copy = |suffix: &str| {
        let with = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
        if with(&source).exists() {
            fs::copy(with(&source), with(&database)).expect("copied");
        }
    };
    copy(".roomkeeper");
    let conn = Connection::open(&source).expect("opens");
    match left {
        Left::Closed => {
            conn.execute_batch(NEWEST).expect("written");
            drop(conn);
            copy("");
        }
        Left::RollbackJournal => {
            conn.execute_batch(NEWEST).expect("written");
            conn.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))
                .expect("set");
            drop(conn);
            copy("");
        }
        Left::Killed | Left::Copied => {
            conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
                .expect("emptied");
            conn.execute_batch(NEWEST).expect("written");
            for suffix in ["", "-wal"] {
                copy(suffix);
            }
            if left == Left::Killed {
                copy("-shm");
            }
        }
    }
    directory
}

/// Names, sizes, and times of what lies in a directory.
fn listing(directory: &Path) -> BTreeMap<String, (u64, i64, i64)> {
    let entries = fs::read_dir(directory).expect("read");
    entries
        .map(|entry| {
            let entry = entry.expect("an entry");
            let m = entry.metadata().expect("there");
            let name = entry.file_name().to_string_lossy().into_owned();
            // Who reads the log with others notes in the index how far they read.
            let time = match name.ends_with("-shm") {
                true => (0, 0),
                false => (m.mtime(), m.mtime_nsec()),
            };
            (name, (m.len(), time.0, time.1))
        })
        .collect()
}

fn set_modes(directory: &Path, of_directory: u32, of_files: u32) {
    for entry in fs::read_dir(directory).expect("read") {
        let path = entry.expect("an entry").path();
        fs::set_permissions(path, fs::Permissions::from_mode(of_files)).expect("set");
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(of_directory)).expect("set");
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The program, as somebody who is not root.
fn run(directory: &Path, words: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_roomkeeper");
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command
            .arg(format!("--reuid={NOBODY}"))
            .arg(format!("--regid={NOBODY}"))
            .args(["--clear-groups", program]);
        command
    } else {
        Command::new(program)
    };
    command
        .args(["-c", "homeserver.yaml"])
        .args(words)
        .current_dir(directory)
        .output()
        .expect("it starts (setpriv is of util-linux)")
}

fn text(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// Every command that only reads.
fn commands() -> Vec<Vec<String>> {
    let room = sample::room_id("a");
    let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    vec![
        words(&["check"]),
        words(&["messages", &room, "--limit", "5"]),
        words(&["jobs", "--json"]),
        words(&[
            "purge-history",
            &room,
            "--before-token",
            &sample::token(40),
            "--dry-run",
        ]),
        words(&["delete-room", &room, "--force-purge", "--dry-run"]),
        words(&["retention", "plan"]),
    ]
}

/// Runs them all; nothing in the directory changes.
fn assert_readable(directory: &Path, about: &str) {
    let before = listing(directory);
    for words in commands() {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = run(directory, &words);
        let said = text(&output);
        assert!(output.status.success(), "{about}, {words:?}: {said}");
        match words[0] {
            "check" => assert!(
                said.starts_with("every invariant holds\n"),
                "{about}: {said}"
            ),
            "jobs" => assert!(said.contains("\"complete\""), "{about}: {said}"),
            _ => assert!(
                said.contains("!a:example.org") || !output.stdout.is_empty(),
                "{said}"
            ),
        }
        assert_eq!(before, listing(directory), "{about}, {words:?}");
    }
    let database = directory.join("homeserver.db");
    let viewer =
        roomkeeper::keeper::Viewer::open(roomkeeper::Config::for_sqlite(&database, "example.org"));
    drop(viewer.expect("opens"));
    assert_eq!(before, listing(directory), "{about}, the library");
}

/// What the program reads is what the log says, and not what the file alone says.
fn assert_log_is_read(directory: &Path, about: &str) {
    use roomkeeper::store::db::{Access, Db, OpenOptions};
    let options = OpenOptions {
        access: Access::ReadOnlyFile,
        ..OpenOptions::default()
    };
    let db = Db::open(directory.join("homeserver.db"), &options).expect("opens");
    let creator = db
        .row("ask", "SELECT creator FROM rooms", &[], |r| {
            r.get::<_, String>(0)
        })
        .expect("asked");
    assert_eq!(creator.as_deref(), Some("@log:example.org"), "{about}");
}

#[test]
fn files_and_directories_that_may_only_be_read_are_read_and_nothing_is_left() {
    for left in [
        Left::Closed,
        Left::Killed,
        Left::Copied,
        Left::RollbackJournal,
    ] {
        for (of_directory, of_files) in [(0o555, 0o444), (0o777, 0o444), (0o777, 0o666)] {
            let directory = place(left);
            set_modes(directory.path(), of_directory, of_files);
            let about = format!("{left:?}, {of_directory:o}, {of_files:o}");
            if left == Left::Copied && of_directory == 0o555 {
                let output = run(directory.path(), &["check"]);
                assert_eq!(output.status.code(), Some(2), "{about}: {output:?}");
                let said = text(&output);
                let says = "write-ahead log with content and no -shm file";
                assert!(said.contains(says) && said.contains("run as"), "{said}");
            } else {
                assert_readable(directory.path(), &about);
                assert_log_is_read(directory.path(), &about);
            }
            set_modes(directory.path(), 0o755, 0o644);
        }
    }
}

/// A file system, for as long as it is wanted.
struct Mounted(PathBuf);

impl Mounted {
    /// In memory, of so many bytes; `None`, said loudly, where this process may not mount.
    fn tmpfs(at: &Path, size: &str) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(at)
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(at.to_owned())),
            other => {
                let why = format!("this process may not mount a file system: {other:?}");
                assert!(std::env::var_os("ROOMKEEPER_CI").is_none(), "{why}");
                println!("NOT TESTED: {why}");
                None
            }
        }
    }

    fn make_read_only(&self) {
        let options = ["-o", "remount,ro"];
        let status = Command::new("mount").args(options).arg(&self.0).status();
        assert!(status.expect("mount").success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_read_only_file_system_is_read() {
    for left in [
        Left::Closed,
        Left::Killed,
        Left::Copied,
        Left::RollbackJournal,
    ] {
        let source = place(left);
        let Some(mounted) = Mounted::tmpfs_over(source.path()) else {
            return;
        };
        set_modes(source.path(), 0o755, 0o644);
        mounted.make_read_only();
        let about = format!("{left:?}, read-only file system");
        assert_readable(source.path(), &about);
        assert_log_is_read(source.path(), &about);
        let output = run(
            source.path(),
            &[
                "purge-history",
                &sample::room_id("a"),
                "--before-token",
                "t40-0",
            ],
        );
        let said = text(&output);
        assert!(!output.status.success());
        assert!(said.contains("read-only file system"), "{said}");
    }
}

impl Mounted {
    /// A file system at a directory, which then holds what the directory held.
    fn tmpfs_over(directory: &Path) -> Option<Self> {
        let held: Vec<(PathBuf, Vec<u8>)> = fs::read_dir(directory)
            .expect("read")
            .map(|entry| entry.expect("an entry").path())
            .map(|path| (path.clone(), fs::read(path).expect("read")))
            .collect();
        let mounted = Self::tmpfs(directory, "64m")?;
        for (path, bytes) in held {
            fs::write(path, bytes).expect("written");
        }
        Some(mounted)
    }
}

#[test]
fn beside_a_server_the_newest_is_read_with_its_files() {
    let directory = place(Left::Closed);
    let server = Connection::open(directory.path().join("homeserver.db")).expect("opens");
    server
        .execute_batch("UPDATE rooms SET creator = '@nobody:example.org'")
        .expect("written");
    server.execute_batch(NEWEST).expect("written");
    set_modes(directory.path(), 0o555, 0o444);
    assert_readable(directory.path(), "beside a server");
    assert_log_is_read(directory.path(), "beside a server");
    drop(server);
    set_modes(directory.path(), 0o755, 0o644);
}

/// A file that somebody writes while it is read without locks.
#[test]
fn what_changes_while_it_is_read_is_told_and_not_shown() {
    use roomkeeper::store::db::{Access, Db, OpenOptions};
    let directory = place(Left::Closed);
    let database = directory.path().join("homeserver.db");
    let options = OpenOptions {
        access: Access::ReadOnlyFile,
        ..OpenOptions::default()
    };
    let db = Db::open(&database, &options).expect("opens");
    db.count("ask", "SELECT count(*) FROM events", &[])
        .expect("asked");
    let server = Connection::open(&database).expect("opens");
    server
        .execute_batch("DELETE FROM event_json")
        .expect("written");
    let refused = db.count("ask", "SELECT count(*) FROM events", &[]);
    let refused = refused.expect_err("somebody wrote").to_string();
    assert!(
        refused.contains("was changed while it was read"),
        "{refused}"
    );
}

/// The file's own check looks into the full-text index as well, and needs nobody who may write.
#[test]
fn a_full_text_index_that_disagrees_is_found_without_writing() {
    let directory = place(Left::Closed);
    let database = directory.path().join("homeserver.db");
    let conn = Connection::open(&database).expect("opens");
    conn.execute_batch("UPDATE event_search_content SET c4value = 'others' WHERE docid = (SELECT max(docid) FROM event_search_content)")
        .expect("changed");
    drop(conn);
    set_modes(directory.path(), 0o555, 0o444);
    let check = run(directory.path(), &["check", "--json"]);
    assert_eq!(check.status.code(), Some(1), "{check:?}");
    let said = text(&check);
    assert!(
        said.contains("the full-text index agrees with its content"),
        "{said}"
    );
    assert!(!said.contains("finds the file whole"), "{said}");
    set_modes(directory.path(), 0o755, 0o644);
}

#[test]
fn what_is_missing_is_said_once_with_what_to_do() {
    if !is_root() {
        let why = "only root can make files of somebody else";
        assert!(std::env::var_os("ROOMKEEPER_CI").is_none(), "{why}");
        println!("NOT TESTED: {why}");
        return;
    }
    let directory = place(Left::Closed);
    let database = directory.path().join("homeserver.db");
    set_modes(directory.path(), 0o755, 0o644);
    let said = |words: &[&str], code: i32| {
        let output = run(directory.path(), words);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert_eq!(said.trim().lines().count(), 1, "{said}");
        for number in ["rror code", "(14)", "4874", "is it a SQLite"] {
            assert!(!said.contains(number), "{said}");
        }
        said
    };
    let room = sample::room_id("a");
    let purge = ["purge-history", &room, "--before-token", "t40-0"];
    // Nothing to read it with.
    fs::set_permissions(&database, fs::Permissions::from_mode(0o600)).expect("set");
    for words in [vec!["check"], vec!["messages", &room], purge.to_vec()] {
        let said = said(&words, 2);
        assert!(
            said.contains("may not read") && said.contains("user root"),
            "{said}"
        );
    }
    // `jobs` asks the ledger alone.
    let jobs = run(directory.path(), &["jobs", "--json"]);
    assert!(jobs.status.success(), "{jobs:?}");
    assert!(text(&jobs).contains("\"complete\""), "{jobs:?}");
    // May be read and not written.
    fs::set_permissions(&database, fs::Permissions::from_mode(0o644)).expect("set");
    let refused = said(&purge, 2);
    assert!(
        refused.contains("may not write") && refused.contains("user root"),
        "{refused}"
    );
    // A ledger that only its owner may read.
    let ledger = directory.path().join("homeserver.db.roomkeeper");
    fs::set_permissions(&ledger, fs::Permissions::from_mode(0o600)).expect("set");
    let refused = said(&["jobs"], 2);
    assert!(
        refused.contains("may not read") && refused.contains("roomkeeper"),
        "{refused}"
    );
    // Something else than a database, and nothing.
    fs::write(&database, vec![b'x'; 9_000]).expect("written");
    let refused = said(&["check"], 2);
    assert!(refused.contains("is not a SQLite database"), "{refused}");
    fs::remove_file(&database).expect("removed");
    let refused = said(&["check"], 2);
    assert!(refused.contains("there is no database file"), "{refused}");
    fs::create_dir(&database).expect("made");
    let refused = said(&["check"], 2);
    assert!(refused.contains("is a directory"), "{refused}");
    // A directory that is closed to us.
    let closed = directory.path().join("closed");
    fs::create_dir(&closed).expect("made");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("set");
    let yaml = fs::read_to_string(directory.path().join("homeserver.yaml")).expect("read");
    let yaml = yaml.replace("/homeserver.db", "/closed/homeserver.db");
    fs::write(directory.path().join("homeserver.yaml"), yaml).expect("written");
    let refused = said(&["check"], 2);
    assert!(refused.contains("may not look into"), "{refused}");
}

#[test]
fn a_ledger_is_always_its_owners_to_write() {
    let directory = place(Left::Closed);
    let database = directory.path().join("homeserver.db");
    let ledger = directory.path().join("homeserver.db.roomkeeper");
    fs::remove_file(&ledger).expect("removed");
    fs::set_permissions(&database, fs::Permissions::from_mode(0o400)).expect("set");
    // As root, who may purge a file of this mode.
    if is_root() {
        let purge = Command::new(env!("CARGO_BIN_EXE_roomkeeper"))
            .args([
                "-c",
                "homeserver.yaml",
                "purge-history",
                &sample::room_id("a"),
            ])
            .args(["--before-token", &sample::token(30)])
            .current_dir(directory.path())
            .output()
            .expect("runs");
        assert!(purge.status.success(), "{purge:?}");
        let mode = fs::metadata(&ledger).expect("made").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
