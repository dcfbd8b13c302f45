//! Disks that are full, or nearly: a purge makes room in steps as small as the disk asks for, reading needs none, and who
//! cannot go on says how many bytes are missing.
//!
//! Each disk is a file system in memory, which takes the right to mount; where that is missing it is said loudly, and CI fails.
//!
//! ```text
//! ROOMKEEPER_CAMPAIGN=full cargo test --release --test full_disk -- --nocapture   # a database of 260 MiB, 40 sizes
//! ```

#![cfg(feature = "daemon")]

mod sample;
#[path = "support/seed.rs"]
#[allow(dead_code)]
mod seed;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use roomkeeper::client::Client;
use rusqlite::Connection;
use serde_json::{Value, json};

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
        let options = format!("mode=0700,size={}k,nr_inodes=0", size.div_ceil(1024) + 64);
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(directory.path())
            .output();
        if !mounted.as_ref().is_ok_and(|m| m.status.success()) {
            let why = format!("this process may not mount a file system: {mounted:?}");
            assert!(std::env::var_os("ROOMKEEPER_CI").is_none(), "{why}");
            println!("NOT TESTED: {why}");
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

    /// Leaves so many bytes free, in whole pages: at least so many.
    fn leave(&self, bytes: u64) {
        self.fill();
        let filler = File::options().write(true).open(self.path("filler"));
        let filler = filler.expect("there");
        let length = filler.metadata().expect("asked").len();
        filler
            .set_len(length.saturating_sub(bytes.next_multiple_of(4096)))
            .expect("cut");
    }

    /// The command with a configuration, which lies elsewhere.
    fn configured(&self, configuration: &Path, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roomkeeper"));
        command.arg("-c").arg(configuration).args(words);
        command
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
    let seed = seed::seed();
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

/// A configuration of a database on a disk; what it keeps besides is elsewhere.
fn configuration(disk: &Disk, elsewhere: &Path) -> PathBuf {
    let yaml = format!(
        "server_name: {}
database: {{name: sqlite3, args: {{database: '{}'}}}}
retention: {{enabled: true, default_policy: {{max_lifetime: 30d}}}}
roomkeeper: {{check_clock: off, archive: {{directory: '{}'}}}}
",
        sample::SERVER_NAME,
        disk.database().display(),
        elsewhere.join("archive").display()
    );
    let path = elsewhere.join("homeserver.yaml");
    fs::write(&path, yaml).expect("written");
    path
}

/// How many bytes more are needed, as it was said.
#[track_caller]
fn missing(said: &str) -> u64 {
    let words = said.split_once("and some ").map(|(_, rest)| rest);
    let number = words.and_then(|rest| rest.split_once(' ')).map(|(n, _)| n);
    let number = number.and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("no number in {said}"))
}

/// What a database needs so that each of the commands below has something to do.
fn with_litter(database: &Path) {
    let conn = Connection::open(database).expect("opens");
    conn.execute_batch(
        "INSERT INTO state_groups (id, room_id, event_id) SELECT id + 50000000, room_id, event_id FROM state_groups;
         INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id)
         SELECT state_group + 50000000, room_id, type, state_key, event_id FROM state_groups_state;
         INSERT INTO event_push_actions (room_id, event_id, user_id, actions, topological_ordering, stream_ordering,
                                         notif, highlight, unread, thread_id)
         SELECT room_id, event_id || 'x', user_id, actions, topological_ordering, stream_ordering, notif, highlight,
                unread, thread_id FROM event_push_actions;",
    )
    .expect("written");
}

/// Rooms of which even the smallest step is large: many events at one depth, long ones, and a large state.
fn with_lumps(database: &Path) {
    let conn = Connection::open(database).expect("opens");
    conn.execute_batch(
        "UPDATE events SET topological_ordering = 50, depth = 50 WHERE topological_ordering BETWEEN 50 AND 149;
         UPDATE event_json SET json = json_set(json, '$.content.body', hex(randomblob(30000)))
          WHERE event_id IN (SELECT event_id FROM events WHERE topological_ordering BETWEEN 50 AND 60 AND depth % 5 = 0);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000)
         INSERT INTO events (stream_ordering, topological_ordering, event_id, type, room_id, processed, outlier, depth,
                             origin_server_ts, received_ts, sender, contains_url, instance_name, state_key)
         SELECT -(i + 4000 * r.rowid), 900, '$m' || i || r.room_id, 'm.room.member', r.room_id, TRUE, TRUE, 900, 1, 1,
                '@m' || i || ':elsewhere.org', FALSE, 'master', '@m' || i || ':elsewhere.org'
           FROM n, rooms r;
         INSERT INTO current_state_events (room_id, event_id, type, state_key, membership, event_stream_ordering)
         SELECT room_id, event_id, type, state_key, 'leave', stream_ordering FROM events WHERE outlier;",
    )
    .expect("written");
}

/// Whoever makes as much room as was said to be missing is not told so again: whatever it was that had no room.
#[test]
fn what_is_said_to_be_missing_is_enough() {
    let (_made, database) = made(600);
    with_litter(&database);
    assert!(enough(&database, 9) >= 7);
}

#[test]
fn what_is_said_to_be_missing_is_enough_for_steps_that_are_large() {
    let (_made, database) = made(600);
    with_lumps(&database);
    enough(&database, 4);
}

/// Answers how often it was said that something is missing.
fn enough(database: &Path, most: usize) -> u64 {
    let (a, b) = (sample::room_id("a"), sample::room_id("b"));
    let commands = [
        format!("purge-history {a} --before-token t500-0 --delete-local-events"),
        format!("delete-room {b} --force-purge"),
        format!("purge-history --room {a} --room {b} --before 2026-01-01 --delete-local-events"),
        "retention run".to_owned(),
        "state sweep".to_owned(),
        "repair".to_owned(),
        format!("block {a}"),
        format!("hold add case --room {a} --reason asked"),
        "restore JOB".to_owned(),
    ];
    let mut told = 0;
    for command in commands.into_iter().take(most) {
        let elsewhere = tempfile::tempdir().expect("a directory");
        let Some(disk) = Disk::with_free(database, 24 * MIB) else {
            return u64::MAX;
        };
        let file = configuration(&disk, elsewhere.path());
        let run = |words: &[&str]| {
            let mut all = words.to_vec();
            all.extend(["--yes", "--offline", "assume"]);
            disk.configured(&file, &all).output().expect("runs")
        };
        let mut job = String::new();
        if command.starts_with("restore") {
            assert!(run(&["delete-room", &b, "--force-purge"]).status.success());
            let listed = run(&["archives", "--json"]);
            let listed: Value = serde_json::from_slice(&listed.stdout).expect("JSON");
            job.push_str(listed["archives"][0]["job"].as_str().expect("a job"));
        }
        let command = command.replace("JOB", &job);
        let words: Vec<&str> = command.split(' ').collect();
        for left in [0, 300 << 10] {
            disk.leave(left);
            let output = run(&words);
            if output.status.success() {
                println!("{words:?}: done with {left} bytes free");
                continue;
            }
            disk.is_told_full(&output);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let missing = missing(&said);
            println!("{words:?}: {missing} bytes are missing with {left} free");
            told += 1;
            disk.leave(disk.free() + missing);
            let output = run(&words);
            assert!(
                output.status.success(),
                "{words:?} after {said}: {output:?}"
            );
            break;
        }
    }
    told
}

/// The daemon, ended when it is dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for something that comes soon, on a busy machine.
fn until<T>(what: &str, mut is_so: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = is_so() {
            return answer;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(180),
            "{what} has not come about"
        );
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_daemon_on_a_full_disk_reads_purges_by_its_reserve_and_says_what_is_missing_without_one() {
    let (_made, database) = made(600);
    let Some(disk) = Disk::with_free(&database, 80 * MIB) else {
        return;
    };
    let elsewhere = tempfile::tempdir().expect("a directory");
    let file = configuration(&disk, elsewhere.path());
    let mut serve = disk.configured(&file, &["serve", "--offline", "assume"]);
    let log = File::create(elsewhere.path().join("log")).expect("made");
    serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut daemon = Daemon(serve.spawn().expect("starts"));
    let client = Client::unix(disk.path("homeserver.db.roomkeeper.sock"));
    until("the daemon", || {
        let told = fs::read_to_string(elsewhere.path().join("log")).unwrap_or_default();
        assert!(
            daemon.0.try_wait().expect("asked").is_none(),
            "it ended: {told}"
        );
        client.get("/_roomkeeper/v1/jobs").ok()
    });
    until("its reserve", || {
        disk.path("roomkeeper.reserve").exists().then_some(())
    });
    let room = sample::room_id("a").replace('!', "%21");
    let purge = |below: i64| {
        let path = format!("/_synapse/admin/v1/purge_history/{room}");
        let body = json!({"purge_up_to_event_id": sample::event_id("a", below), "delete_local_events": true});
        client.post(&path, &body).expect("answers")
    };
    let ended = |id: &Value| {
        let path = format!("/_roomkeeper/v1/jobs/{}", id.as_str().expect("an id"));
        until("the end", || {
            let job = client.get(&path).expect("answers").body;
            (job["state"] == "complete" || job["state"] == "failed").then_some(job)
        })
    };
    let reads = || {
        for path in [
            "/_roomkeeper/v1/jobs".to_owned(),
            "/_roomkeeper/v1/rooms".to_owned(),
            format!("/_synapse/admin/v1/rooms/{room}/messages"),
            format!("/_roomkeeper/v1/rooms/{room}/plan/purge_history?before_token=t500-0"),
        ] {
            let reply = client.get(&path).expect("answers");
            assert!(
                reply.status < 500,
                "{path}: {} {}",
                reply.status,
                reply.body
            );
        }
    };
    disk.fill();
    reads();
    let reply = purge(200);
    assert_eq!(reply.status, 200, "{}", reply.body);
    let job = ended(&reply.body["purge_id"]);
    assert_eq!(job["state"], "complete", "{job}");
    assert!(!disk.path("roomkeeper.reserve").exists(), "it was given up");
    // And without one.
    disk.fill();
    reads();
    let is_told = |status: u16, body: &Value| {
        let said = body["error"].as_str().unwrap_or_default();
        assert_eq!(status, 503, "{body}");
        missing(said)
    };
    let reply = purge(400);
    let missing = is_told(reply.status, &reply.body);
    let path = format!("/_synapse/admin/v1/rooms/{room}/block");
    let block = client
        .request("PUT", &path, Some(&json!({"block": true})))
        .expect("answers");
    is_told(block.status, &block.body);
    let path = format!("/_synapse/admin/v2/rooms/{room}");
    let deletion = client
        .request("DELETE", &path, Some(&json!({"force_purge": true})))
        .expect("answers");
    is_told(deletion.status, &deletion.body);
    reads();
    disk.leave(missing);
    let reply = purge(400);
    assert_eq!(reply.status, 200, "{}", reply.body);
    let job = ended(&reply.body["purge_id"]);
    assert_eq!(job["state"], "complete", "{job}");
    disk.fill();
    reads();
}
