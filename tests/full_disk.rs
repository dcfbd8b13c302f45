//! Disks that are full, or nearly: a purge makes room in steps as small as the disk asks for, reading needs none, and who
//! cannot go on says how many bytes are missing.
//!
//! Each disk is a file system in memory, which takes the right to mount; where that is missing it is said loudly.
//!
//! ```text
//! ROOMKEEPER_CAMPAIGN=full cargo test --release --test full_disk -- --nocapture   # a database of 260 MiB, 40 sizes
//! ```

mod sample;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rusqlite::Connection;

const MIB: u64 = 1 << 20;

fn is_campaign() -> bool {
    std::env::var("ROOMKEEPER_CAMPAIGN").is_ok_and(|which| which == "full")
}

/// A disk of some size with a database on it.
struct Disk {
    directory: tempfile::TempDir,
    is_mounted: bool,
}

impl Disk {
    /// With so many bytes free beside a copy of a database; `None`, said loudly, where this process may not mount.
    fn with_free(database: &Path, free: u64) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let size = fs::metadata(database).expect("there").len() + free;
        // Pages of bookkeeping.
        let options = format!("size={}k,nr_inodes=0", size.div_ceil(1024) + 64);
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(directory.path())
            .output();
        if !mounted.as_ref().is_ok_and(|m| m.status.success()) {
            println!("NOT TESTED: this process may not mount a file system: {mounted:?}");
            return None;
        }
        let disk = Self {
            directory,
            is_mounted: true,
        };
        fs::copy(database, disk.database()).expect("copied");
        Some(disk)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn database(&self) -> PathBuf {
        self.path("homeserver.db")
    }

    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.directory.path()).expect("asked");
        stat.f_bavail * stat.f_frsize
    }

    /// Fills it to the last byte.
    fn fill(&self) {
        let mut file = File::create(self.path("filler")).expect("made");
        for size in [MIB, 4096, 512, 1] {
            while file.write_all(&vec![b'x'; size as usize]).is_ok() {}
        }
        assert_eq!(self.free(), 0);
    }

    fn run(&self, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_roomkeeper"))
            .arg("--database")
            .arg(self.database())
            .args(["--server-name", sample::SERVER_NAME, "--offline", "assume"])
            .args(words)
            .output()
            .expect("runs")
    }

    #[track_caller]
    fn succeeds(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Ends with 1 and says that the disk is full, how much is free, and how much is missing.
    #[track_caller]
    fn is_told_full(&self, output: &Output) {
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("is full"), "{said}");
        assert!(said.contains("bytes are free"), "{said}");
        assert!(said.contains("more are needed"), "{said}");
        assert!(
            !said.contains("rror code") && !said.contains("4874"),
            "{said}"
        );
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = Command::new("umount").arg(self.directory.path()).status();
        }
    }
}

/// A database with rooms `a` and `b`, made once for each size.
fn made(events: i64) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let database = directory.path().join("homeserver.db");
    sample::create(&database, &["a", "b"], events);
    (directory, database)
}

fn purge_of(room: &str, below: i64) -> Vec<String> {
    let (room, token) = (sample::room_id(room), sample::token(below));
    [
        "purge-history",
        &room,
        "--before-token",
        &token,
        "--delete-local-events",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn words(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[test]
fn on_a_disk_with_16_mib_free_purges_and_reclaim_bring_a_large_database_down() {
    let events = if is_campaign() { 200_000 } else { 12_000 };
    let (_made, database) = made(events);
    let before = fs::metadata(&database).expect("there").len();
    let Some(disk) = Disk::with_free(&database, 16 * MIB) else {
        return;
    };
    println!(
        "a database of {} MiB, {} MiB free",
        before / MIB,
        disk.free() / MIB
    );
    for room in ["a", "b"] {
        disk.succeeds(&words(&purge_of(room, events - 100)));
    }
    assert_eq!(disk.succeeds(&["check"]), "every invariant holds\n");
    let elsewhere = tempfile::tempdir().expect("a directory");
    let via = elsewhere.path().to_str().expect("UTF-8");
    disk.succeeds(&["reclaim", "--via", via]);
    assert_eq!(disk.succeeds(&["check"]), "every invariant holds\n");
    let after = fs::metadata(disk.database()).expect("there").len();
    println!("and of {} KiB in the end", after / 1024);
    assert!(after < before / 4, "{before} bytes became {after}");
    assert!(!disk.database().is_symlink());
    assert_eq!(fs::read_dir(elsewhere.path()).expect("read").count(), 0);
}

/// FTS4 merges 16 segments of a level at once, within whatever writes next: on a small disk they are merged before, in steps.
#[test]
fn a_full_text_index_that_is_about_to_be_merged_needs_no_more_room_than_a_batch() {
    let events = 12_000;
    let (_made, database) = made(events);
    let conn = Connection::open(&database).expect("opens");
    let many = |level: &str| -> i64 {
        let sql =
            format!("SELECT count(*) FROM event_search_segdir WHERE level {level} GROUP BY level");
        conn.query_row(&sql, [], |row| row.get(0)).unwrap_or(0)
    };
    let mut turn = 0;
    while many("= 0") < 15 {
        conn.execute(
            "UPDATE event_search SET value = value || ' ' || hex(randomblob(40)) || ' ' || hex(randomblob(40)) || ' ' ||
                    hex(randomblob(40)) || ' ' || hex(randomblob(40))
              WHERE rowid % 15 = $1",
            [turn % 15],
        )
        .expect("written");
        turn += 1;
        assert!(turn < 40);
    }
    let index: i64 = conn
        .query_row(
            "SELECT sum(length(block)) FROM event_search_segments",
            [],
            |row| row.get(0),
        )
        .expect("asked");
    conn.close().expect("closes");
    for what in ["purge", "delete"] {
        let Some(disk) = Disk::with_free(&database, 5 * MIB) else {
            return;
        };
        println!("an index of {index} bytes, {} free", disk.free());
        let room = sample::room_id("a");
        match what {
            "purge" => disk.succeeds(&words(&purge_of("a", events - 100))),
            _ => disk.succeeds(&["delete-room", &room, "--force-purge"]),
        };
        assert_eq!(disk.succeeds(&["check"]), "every invariant holds\n");
    }
}

#[test]
fn with_nothing_free_everything_can_be_read_and_a_reserve_is_what_a_purge_needs() {
    let (_made, database) = made(600);
    let Some(disk) = Disk::with_free(&database, 20 * MIB) else {
        return;
    };
    // A job on record.
    disk.succeeds(&words(&purge_of("b", 100)));
    let reserve = File::create(disk.path("roomkeeper.reserve")).expect("made");
    reserve.set_len(0).expect("set");
    rustix::fs::fallocate(&reserve, rustix::fs::FallocateFlags::empty(), 0, 12 * MIB)
        .expect("allocated");
    // Whoever has it open keeps its room.
    drop(reserve);
    disk.fill();
    let room = sample::room_id("a");
    let purge = purge_of("a", 500);
    let mut planned = words(&purge);
    planned.push("--dry-run");
    assert_eq!(disk.succeeds(&["check"]), "every invariant holds\n");
    assert!(!disk.succeeds(&["messages", &room]).is_empty());
    assert!(disk.succeeds(&["jobs", "--json"]).contains("complete"));
    disk.succeeds(&planned);
    disk.succeeds(&["delete-room", &room, "--force-purge", "--dry-run"]);
    assert!(
        disk.path("roomkeeper.reserve").exists(),
        "reading needs no reserve"
    );
    // Without one nothing can be written, and it is said what is missing.
    fs::rename(disk.path("roomkeeper.reserve"), disk.path("aside")).expect("renamed");
    disk.is_told_full(&disk.run(&words(&purge)));
    disk.is_told_full(&disk.run(&["delete-room", &room, "--force-purge"]));
    assert_eq!(disk.succeeds(&["check"]), "every invariant holds\n");
    // With it the purge is done.
    fs::rename(disk.path("aside"), disk.path("roomkeeper.reserve")).expect("renamed");
    disk.succeeds(&words(&purge));
    assert!(!disk.path("roomkeeper.reserve").exists(), "it was given up");
    assert_eq!(disk.succeeds(&["check"]), "every invariant holds\n");
    // The file shrinks by way of another disk, with nothing free on its own.
    disk.fill();
    let before = fs::metadata(disk.database()).expect("there").len();
    let elsewhere = tempfile::tempdir().expect("a directory");
    disk.succeeds(&[
        "reclaim",
        "--via",
        elsewhere.path().to_str().expect("UTF-8"),
    ]);
    assert!(fs::metadata(disk.database()).expect("there").len() < before);
    assert_eq!(disk.succeeds(&["check"]), "every invariant holds\n");
}

/// A log with content and the index of a homeserver that was killed, and no room for another index.
#[test]
fn a_log_is_read_with_nothing_free() {
    let (_made, database) = made(300);
    let Some(disk) = Disk::with_free(&database, 2 * MIB) else {
        return;
    };
    let source = rusqlite::Connection::open(&database).expect("opens");
    source
        .execute_batch("UPDATE rooms SET creator = '@log:example.org'")
        .expect("written");
    for suffix in ["-wal", "-shm"] {
        let file = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
        fs::copy(file(&database), file(&disk.database())).expect("copied");
        disk.fill();
        assert_eq!(
            disk.succeeds(&["check"]),
            "every invariant holds\n",
            "with {suffix}"
        );
        fs::remove_file(disk.path("filler")).expect("removed");
    }
}

#[test]
fn on_a_disk_of_any_size_a_purge_and_a_deletion_are_done_or_say_what_is_missing() {
    let (_made, database) = made(if is_campaign() { 20_000 } else { 1_500 });
    let seed = std::env::var("ROOMKEEPER_SEED").map_or_else(
        |_| rand::random::<u32>().into(),
        |seed| seed.parse().expect("a number"),
    );
    println!("ROOMKEEPER_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut sizes: Vec<u64> = vec![0, 64 << 10, MIB, 4 * MIB, 512 * MIB];
    let more = if is_campaign() { 35 } else { 3 };
    sizes.extend((0..more).map(|_| 1 << rng.random_range(12..29)));
    let (mut done, mut told) = (0, 0);
    for size in sizes {
        let Some(disk) = Disk::with_free(&database, size) else {
            return;
        };
        let purge = purge_of("a", 1_000);
        let room = sample::room_id("b");
        for words in [words(&purge), vec!["delete-room", &room, "--force-purge"]] {
            let output = disk.run(&words);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            match output.status.code() {
                Some(0) => done += 1,
                Some(1) if said.contains("is full") => {
                    told += 1;
                    assert!(size < 16 * MIB, "{size} bytes free: {said}");
                    disk.is_told_full(&output);
                }
                _ => panic!("ROOMKEEPER_SEED={seed}, {size} bytes free, {words:?}: {output:?}"),
            }
        }
        assert_eq!(
            disk.succeeds(&["check"]),
            "every invariant holds\n",
            "{size} bytes free"
        );
    }
    println!("{done} jobs were done, {told} said what is missing");
    assert!(done > 0 && told > 0);
}
