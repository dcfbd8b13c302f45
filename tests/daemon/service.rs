//! `serve`: what systemd hears, what a signal does, what stands in the log.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, unbounded};
use roomkeeper::client::Client;
use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::json;

use crate::home::{Daemon, Home, Ran, SOON, signal, until};
use crate::sample;
use crate::support::engine::{self, Engine};

/// Batches that take a while: enough of them, with the rests between, for a signal to come in the middle.
const SLOWLY: &str = "batch: {events: 100}, homeserver: {running: assume}";

/// The same for a program that has to be started in the middle: on a server there are no rests.
fn more_slowly() -> &'static str {
    match engine::current() {
        Engine::Sqlite => SLOWLY,
        Engine::Postgres => "batch: {events: 3}, homeserver: {running: assume}",
    }
}

/// What systemd allows a service to take for stopping, less what a busy machine needs.
const TO_STOP: Duration = Duration::from_secs(10);

#[test]
fn systemd_hears_that_the_daemon_is_ready_alive_and_stopping() {
    let home = Home::new(100, "");
    let program = env!("CARGO_BIN_EXE_roomkeeper");
    let mut daemon = Daemon::start_with(&home, |command| {
        // The id of the process to be watched is known only when it is there.
        let mut shell = Command::new("sh");
        let script = format!("WATCHDOG_PID=$$ exec {program} -c homeserver.yaml serve");
        shell.args(["-c", &script]).env("WATCHDOG_USEC", "900000");
        for (key, value) in command.get_envs() {
            shell.env(key, value.expect("set"));
        }
        shell.current_dir(command.get_current_dir().expect("set"));
        *command = shell;
    });
    for _ in 0..3 {
        daemon.wait_to_hear("WATCHDOG=1");
    }
    let (status, took) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    assert!(took < TO_STOP, "{took:?}");
}

/// How often each thread of a process has woken so far.
fn wakings(process: u32) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("a process");
    let mut wakings: Vec<String> = threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("status")).ok())
        .flat_map(|status| {
            let lines = status.lines().map(str::to_owned);
            let told = lines.filter(|line| {
                line.starts_with("Pid:") || line.starts_with("voluntary_ctxt_switches:")
            });
            told.collect::<Vec<_>>()
        })
        .collect();
    wakings.sort();
    wakings
}

#[test]
fn a_daemon_that_has_worked_sleeps_until_it_is_called_and_ends_with_all_its_threads() {
    let home = Home::new(100, "notify: {command: ['/bin/true']}");
    let daemon = Daemon::start(&home);
    daemon.wait_until_complete(&daemon.purge(50));
    // Whoever polls, and be it once a second, never lets one pass.
    until("a second in which no thread wakes", || {
        let before = wakings(daemon.id());
        std::thread::sleep(Duration::from_secs(1));
        (wakings(daemon.id()) == before).then_some(())
    });
    let log = home.path("log");
    assert_eq!(daemon.terminate().0.code(), Some(0));
    let log = fs::read_to_string(log).expect("a log");
    assert!(!log.contains("unexpectedly"), "{log}");
}

#[test]
fn a_purge_that_a_signal_interrupts_goes_on_at_the_next_start() {
    const EVENTS: i64 = 6_000;
    let home = Home::new(EVENTS, SLOWLY);
    let mut daemon = Daemon::start(&home);
    let id = daemon.purge(EVENTS - 100);
    let is_under_way = |daemon: &Daemon<'_>, beyond: i64| {
        until("some progress", || {
            let done = daemon.job(&id)["progress"]["events_done"].as_i64();
            done.filter(|done| *done > beyond)
        })
    };
    is_under_way(&daemon, 0);
    daemon.send(Signal::KILL);
    assert_eq!(daemon.wait().signal(), Some(9));
    drop(daemon);
    // On a server its lock on the room may be another roomkeeper's, for two minutes; those have passed (W-4).
    home.sql("DELETE FROM worker_read_write_locks; DELETE FROM worker_read_write_locks_mode");
    let left = home.events();
    assert!(left < EVENTS, "something was purged");
    home.assert_sound();

    let daemon = Daemon::start(&home);
    // Not by its progress: that was noted before it was killed.
    until("some more to be purged", || {
        (home.events() < left).then_some(())
    });
    let (status, took) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    assert!(took < TO_STOP, "{took:?}");
    assert!(home.events() < left, "more was purged");
    home.assert_sound();
    let job = home.job();
    assert_eq!((&job["id"], &job["state"]), (&json!(id), &json!("queued")));
    let listed = home.run(&["jobs"]);
    assert!(
        listed.out.contains("interrupted (`jobs --resume` goes on)"),
        "{}",
        listed.out
    );

    home.configure("homeserver: {running: assume}", "");
    let daemon = Daemon::start(&home);
    let done = daemon.wait_until_complete(&id);
    // State events stay, every hundredth; and what lies at the point and above it; and, beside a homeserver, an old event
    // that came late and is a forward extremity (P-51).
    assert_eq!(home.events(), 101 + 3 + (EVENTS - 101) / 100 + 1);
    // The database and the ledger do not commit together: what was killed may have deleted one batch more than it noted.
    let deleted = done["progress"]["events_deleted"]
        .as_i64()
        .expect("a number");
    let gone = EVENTS + 1 - home.events();
    assert!(
        (gone - 100..=gone).contains(&deleted),
        "{deleted} of {gone}"
    );
    let (status, _) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    home.assert_sound();
}

#[test]
fn one_long_transaction_is_given_up_when_the_daemon_stops() {
    const EVENTS: i64 = 40_000;
    let home = Home::new(EVENTS, "");
    let daemon = Daemon::start(&home);
    let id = daemon.purge(EVENTS - 100);
    until("the rewrite", || {
        (daemon.job(&id)["progress"]["phase"] == "events").then_some(())
    });
    let (status, took) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    assert!(took < TO_STOP, "{took:?}");
    home.assert_sound();
    let resumed = home.run(&["jobs", "--resume"]);
    assert_eq!(resumed.code, Some(0), "{resumed:?}");
    assert_eq!(home.job()["state"], "complete");
    assert_eq!(home.events(), 101 + 3 + (EVENTS - 101) / 100);
    home.assert_sound();
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let home = Home::new(100, "");
    let mut daemon = Daemon::start(&home);
    // While a client keeps a request open, the first one waits for it.
    daemon.send(Signal::INT);
    daemon.send(Signal::INT);
    let status = daemon.wait();
    assert!([Some(0), Some(130)].contains(&status.code()), "{status}");
}

#[test]
fn two_daemons_never_share_a_ledger() {
    let home = Home::new(100, "");
    let daemon = Daemon::start(&home);
    home.run(&["serve"])
        .assert_ended(3, "another roomkeeper is at work: it owns the ledger");
    assert_eq!(
        daemon
            .client()
            .get("/_roomkeeper/v1/health")
            .expect("answers")
            .status,
        200
    );
}

#[test]
fn no_secret_stands_in_the_log() {
    let home = Home::new(
        100,
        "listen: ['127.0.0.1:0', 'unix:homeserver.db.roomkeeper.sock'], admin_token_path: token",
    );
    home.write_secret("token", "StaticSecret0123456789\n");
    home.sql(
        "INSERT INTO users (name, admin) VALUES ('@admin:example.org', 1);
         INSERT INTO access_tokens (id, user_id, token) VALUES (1, '@admin:example.org', 'syt_AccessSecret_0123456789');",
    );
    let daemon = Daemon::start_with(&home, |command| {
        command.env("ROOMKEEPER_LOG", "trace");
    });
    let address = until("an address", || {
        let log = daemon.log();
        let at = log.find("listening on 127.0.0.1:")?;
        log[at + "listening on ".len()..]
            .split_whitespace()
            .next()
            .map(str::to_owned)
    });
    let secrets = [
        "StaticSecret0123456789",
        "syt_AccessSecret_0123456789",
        "syt_WrongSecret_0123456789",
    ];
    for (token, status) in secrets.into_iter().zip([200, 200, 401]) {
        let by_header = Client::tcp(address.clone(), token);
        assert_eq!(
            by_header
                .get("/_roomkeeper/v1/jobs")
                .expect("answers")
                .status,
            status,
            "{token}"
        );
        let by_query = format!("/_roomkeeper/v1/jobs?access_token={token}");
        assert_eq!(
            daemon.client().get(&by_query).expect("answers").status,
            status,
            "{token}"
        );
        let both = by_header.get(&by_query).expect("answers");
        assert!(both.status >= 400, "{token}: {}", both.status);
        assert!(!both.body.to_string().contains(token));
        // Misplaced ones.
        by_header
            .get(&format!(
                "/_roomkeeper/v1/nothing&access_token={token}?x=y&access_token={token}"
            ))
            .expect("answers");
    }
    let id = daemon.purge(90);
    daemon.wait_until_complete(&id);
    let log = daemon.log();
    assert!(
        log.contains("/_roomkeeper/v1/jobs") && log.contains("TRACE"),
        "{log}"
    );
    for secret in secrets {
        assert!(!log.contains(secret), "{secret} stands in the log: {log}");
    }
    // Nor what people wrote.
    assert!(!log.contains("words of"), "{log}");
    drop(daemon);

    // A token that cannot be one is not shown, either.
    std::fs::write(home.path("token"), "Two Secrets0123456789\n").expect("writes");
    let refused = home.run(&["serve"]);
    refused.assert_ended(2, "should hold one token on one line");
    assert!(!refused.err.contains("Secrets"), "{}", refused.err);
}

#[test]
fn one_shot_commands_ask_the_daemon_that_is_at_work() {
    const EVENTS: i64 = 2_000;
    let home = Home::new(EVENTS, more_slowly());
    let daemon = Daemon::start(&home);
    let room = sample::room_id("a");
    let purge = |below: i64, more: &[&str]| -> Ran {
        let token = sample::token(below);
        let mut words = vec!["purge-history", &room, "--before-token", &token];
        words.extend_from_slice(more);
        home.run(&words)
    };
    let asking = "a daemon (process ";

    // A dry run asks nobody.
    let planned = purge(1_000, &["--dry-run"]);
    assert_eq!((planned.code, planned.err.as_str()), (Some(0), ""));
    assert!(
        planned.out.contains("Nothing was changed."),
        "{}",
        planned.out
    );
    assert_eq!(home.events(), EVENTS + 1);

    let done = purge(500, &["--delete-local-events"]);
    done.assert_ended(0, asking);
    assert!(done.out.contains("is complete"), "{}", done.out);
    let done = purge(600, &["--delete-local-events", "--json"]);
    done.assert_ended(0, asking);
    assert_eq!(done.json()["state"], "complete");

    // What the daemon refuses is a failure here.
    purge(EVENTS + 1, &[]).assert_ended(
        1,
        "topological_ordering is greater than forward extremities",
    );

    // And ends as it would have ended without one.
    home.run(&["purge-history", &room, "--before-token", "s5"])
        .assert_ended(2, "Invalid room stream token 's5'");
    let unknown = home.run(&["--json", "purge-history", &room, "--before-event", "$none"]);
    unknown.assert_ended(1, "Could not find event $none");
    assert_eq!(unknown.json()["errcode"], "M_NOT_FOUND");

    // One that is cancelled.
    let id = daemon.purge(EVENTS - 100);
    until("some progress", || {
        (daemon.job(&id)["progress"]["events_done"].as_i64()? > 0).then_some(())
    });
    let cancelled = home.run(&["jobs", "--cancel", &id]);
    cancelled.assert_ended(0, asking);
    until("the end of the job", || {
        (daemon.job(&id)["state"] == "failed").then_some(())
    });
    assert_eq!(daemon.job(&id)["error"], "cancelled");

    let listed = home.run(&["jobs", "--json"]);
    listed.assert_ended(0, asking);
    assert_eq!(listed.json()["jobs"].as_array().map(Vec::len), Some(4));

    // Looking does no harm; giving the file another shape would.
    let checked = home.run(&["check"]);
    assert_eq!(
        (checked.code, checked.out.as_str()),
        (Some(0), "every invariant holds\n")
    );
    home.run(&["reclaim"])
        .assert_ended(3, "another roomkeeper is at work");
    let (status, _) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    // It may not be taken for running any more.
    home.configure("", "");
    let reclaimed = home.run(&["reclaim", "--json"]).json();
    assert!(
        reclaimed["bytes_after"].as_i64() < reclaimed["bytes_before"].as_i64(),
        "{reclaimed}"
    );
    home.assert_sound();
}

#[test]
fn a_daemon_that_was_told_relative_paths_is_found_from_anywhere() {
    let home = Home::new(100, "listen: ['unix:ctl.sock']");
    let daemon = Daemon::start(&home);
    let yaml = home.path("homeserver.yaml");
    let from_elsewhere = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roomkeeper"));
        command.arg("-c").arg(&yaml).args(words).current_dir("/");
        Ran::of(command.output().expect("runs"))
    };
    from_elsewhere(&["jobs"]).assert_ended(0, "asking it");
    let (status, _) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
}

/// What a person should know before the first row goes.
#[test]
fn whoever_has_the_daemon_delete_a_room_hears_the_same_warnings_before() {
    let home = Home::new(100, "");
    home.sql(
        "CREATE TABLE of_an_extension (room_id TEXT);
         INSERT INTO of_an_extension VALUES ('!a:example.org')",
    );
    let daemon = Daemon::start(&home);
    let room = sample::room_id("a");
    let done = home.run(&["delete-room", &room, "--force-purge"]);
    done.assert_ended(0, "a daemon (process ");
    done.assert_ended(
        0,
        "the table of_an_extension, which is not known, has 1 row of this room",
    );
    drop(daemon);
}

/// Whether a process has said what is to be done when it is interrupted.
fn listens_to_interrupts(child: &Child) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
    let caught = status.expect("it runs");
    let caught = caught.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = u64::from_str_radix(caught.expect("a line").trim(), 16).expect("a number");
    caught & (1 << 1) != 0
}

#[test]
fn whoever_stops_waiting_for_the_daemon_hears_that_it_goes_on() {
    const EVENTS: i64 = 3_000;
    let home = Home::new(EVENTS, more_slowly());
    let daemon = Daemon::start(&home);
    let (room, token) = (sample::room_id("a"), sample::token(EVENTS - 100));
    let mut command = home.command(&["purge-history", &room, "--before-token", &token]);
    let child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn();
    let child = child.expect("starts");
    let id = until("the purge", || {
        let jobs = daemon
            .client()
            .get("/_roomkeeper/v1/jobs")
            .expect("answers")
            .body;
        let id = jobs["jobs"][0]["id"].as_str().map(str::to_owned);
        id.filter(|id| daemon.job(id)["state"] == "running")
    });
    // It listens to signals once it follows, which it does soon after it has asked.
    until("one who follows", || {
        listens_to_interrupts(&child).then_some(())
    });
    signal(&child, Signal::INT);
    let ran = Ran::of(child.wait_with_output().expect("ends"));
    ran.assert_ended(130, &format!("`roomkeeper jobs --cancel {id}` ends it"));
    daemon.wait_until_complete(&id);
}

/// A homeserver's admin API, which answers nothing until it is told to.
struct HomeserverPolicy {
    address: String,
    is_awake: Arc<AtomicBool>,
    asked: Receiver<String>,
}

impl HomeserverPolicy {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let is_awake = Arc::new(AtomicBool::new(false));
        let (ask, asked) = unbounded();
        let awake = is_awake.clone();
        std::thread::spawn(move || {
            let mut hanging = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.expect("a client");
                let mut line = String::new();
                let reader = stream.try_clone().expect("a socket");
                let _ = BufReader::new(reader).read_line(&mut line);
                let words: Vec<&str> = line.split(' ').take(2).collect();
                let line = words.join(" ");
                let running = json!({"delete_id": "x", "status": "active"});
                let (status, body) = match line.as_str() {
                    _ if !awake.load(Ordering::SeqCst) => {
                        hanging.push(stream);
                        let _ = ask.send(line);
                        continue;
                    }
                    line if line.starts_with("DELETE") => (
                        400,
                        json!({"errcode": "M_UNKNOWN", "error": "Purge already in progress for !a:example.org"}),
                    ),
                    line if line.ends_with("/delete_status") => {
                        (200, json!({"results": [running]}))
                    }
                    _ => (200, json!({"status": "complete", "shutdown_room": {}})),
                };
                let body = body.to_string();
                let length = body.len();
                // The connection stays open, as some keep it.
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} x\r\nContent-Length: {length}\r\n\r\n{body}"
                );
                hanging.push(stream);
                let _ = ask.send(line);
            }
        });
        Self {
            address,
            is_awake,
            asked,
        }
    }

    fn next(&self) -> String {
        self.asked.recv_timeout(SOON).expect("it is asked")
    }
}

#[test]
fn a_homeserver_that_does_not_answer_holds_up_no_stop_and_its_work_is_found_again() {
    let homeserver = HomeserverPolicy::start();
    let url = &homeserver.address;
    let home = Home::new(
        100,
        &format!("homeserver: {{running: assume, url: 'http://{url}', admin_token_path: token}}"),
    );
    home.write_secret("token", "syt_token\n");
    let daemon = Daemon::start(&home);
    let path = "/_synapse/admin/v2/rooms/%21a%3Aexample.org";
    let body = json!({"force_purge": true});
    let started = daemon.client().request("DELETE", path, Some(&body));
    let started = started.expect("answers").body;
    let id = started["delete_id"].as_str().expect("an id").to_owned();
    assert_eq!(homeserver.next(), format!("DELETE {path}"));
    let (status, took) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    assert!(took < TO_STOP, "{took:?}");
    let job = home.job();
    assert_eq!((&job["state"], &job["id"]), (&json!("queued"), &json!(id)));
    assert_eq!(home.events(), 101, "no row was deleted");

    // It did what it was asked, and is still at it.
    homeserver.is_awake.store(true, Ordering::SeqCst);
    let daemon = Daemon::start(&home);
    daemon.wait_until_complete(&id);
    assert_eq!(homeserver.next(), format!("DELETE {path}"));
    assert_eq!(homeserver.next(), format!("GET {path}/delete_status"));
    let status = "GET /_synapse/admin/v2/rooms/delete_status/x";
    assert_eq!(homeserver.next(), status);
    drop(daemon);
    assert_eq!(home.events(), 0);
    home.assert_sound();
}

#[test]
fn a_file_that_was_put_in_the_databases_place_is_left_alone_until_the_daemon_starts_again() {
    let home = Home::new(100, "");
    let daemon = Daemon::start(&home);
    std::fs::copy(home.database(), home.path("restored.db")).expect("copied");
    std::fs::rename(home.path("restored.db"), home.database()).expect("renamed");
    let room = sample::room_id("a");
    let token = sample::token(50);
    home.run(&["purge-history", &room, "--before-token", &token])
        .assert_ended(3, "start roomkeeper again");
    let (status, _) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    assert_eq!(home.events(), 101, "nothing was changed");
    home.assert_sound();
}

#[test]
fn an_idle_daemon_is_seen_by_whoever_keeps_another_ledger() {
    let home = Home::new(100, "");
    let daemon = Daemon::start(&home);
    home.configure("ledger: another.ledger", "");
    for words in [&["reclaim"][..], &["jobs", "--resume"]] {
        home.run(words)
            .assert_ended(3, "another roomkeeper is at work on this database");
        let who = format!("process {}", daemon.id());
        home.run(words).assert_ended(3, &who);
    }
    let (status, _) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    home.run(&["reclaim"]).assert_ended(0, "");
}

/// S-37.
#[test]
fn a_hangup_reads_the_configuration_again_and_never_ends_the_daemon() {
    let home = Home::new(100, "");
    let mut daemon = Daemon::start(&home);
    home.configure("listen: [of no kind]", "");
    daemon.send(Signal::HUP);
    until("the refusal of a configuration", || {
        daemon
            .log()
            .contains("the one of before stays")
            .then_some(())
    });
    let health = || daemon.client().get("/_roomkeeper/v1/health");
    assert_eq!(health().expect("answers").status, 200);
    home.configure("listen: ['unix:other.sock']", "");
    daemon.send(Signal::HUP);
    daemon.wait_to_hear("RELOADING=1");
    daemon.wait_to_hear("READY=1");
    let other = Client::unix(home.path("other.sock"));
    let answer = other.get("/_roomkeeper/v1/health").expect("answers");
    assert_eq!(answer.status, 200);
    let (status, _) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
}

/// S-37.
#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let home = Home::new(100, "");
    let (unread, log) = std::io::pipe().expect("a pipe");
    let daemon = Daemon::start_with(&home, |command| {
        command
            .env("ROOMKEEPER_LOG", "trace")
            .stdout(Stdio::null())
            .stderr(log);
    });
    // Far more than a pipe holds.
    for _ in 0..300 {
        let answer = daemon
            .client()
            .get("/_roomkeeper/v1/jobs")
            .expect("answers");
        assert_eq!(answer.status, 200);
    }
    let (status, took) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    assert!(took < TO_STOP, "{took:?}");
    drop(unread);
}

#[test]
fn what_is_meant_for_a_copy_is_not_done_to_the_database_that_a_daemon_works_on() {
    let home = Home::new(100, "ledger: one.ledger");
    std::fs::copy(home.database(), home.path("copy.db")).expect("copied");
    let copy = "database: {name: sqlite3, args: {database: copy.db}}\n";
    std::fs::write(home.path("copy.yaml"), copy).expect("writes");
    let daemon = Daemon::start(&home);
    let room = sample::room_id("a");
    let token = sample::token(50);
    for words in [
        &["purge-history", &room, "--before-token", &token][..],
        &["delete-room", &room, "--force-purge"],
        &["block", &room],
        &["jobs", "--cancel", "x"],
        &["retention", "run", "--longest", "1d"],
    ] {
        let mut all = vec!["-c", "copy.yaml"];
        all.extend(words);
        home.run(&all).assert_ended(3, "works on another database");
    }
    let (status, _) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    assert_eq!(home.events(), 101, "nothing was changed");

    // Nor is what was left unfinished there.
    let ledger = Connection::open(home.path("one.ledger")).expect("opens");
    ledger
        .execute_batch("INSERT INTO candidate VALUES ('!a:example.org', 1)")
        .expect("noted");
    drop(ledger);
    // Whoever only looks is told what is there.
    home.run(&["-c", "copy.yaml", "jobs"]).assert_ended(0, "");
    home.run(&["-c", "copy.yaml", "jobs", "--resume"])
        .assert_ended(3, "unfinished work on another database");
    home.run(&["jobs"]).assert_ended(0, "");
    let ledger = Connection::open(home.path("one.ledger")).expect("opens");
    ledger.execute_batch("DELETE FROM candidate").expect("done");
    drop(ledger);
    home.run(&["-c", "copy.yaml", "jobs"]).assert_ended(0, "");
}

// What is about files (another in its place, copies of it) is told on files alone.
also_on_postgres! {
    systemd_hears_that_the_daemon_is_ready_alive_and_stopping,
    a_purge_that_a_signal_interrupts_goes_on_at_the_next_start,
    one_long_transaction_is_given_up_when_the_daemon_stops,
    a_second_signal_ends_the_process_at_once,
    two_daemons_never_share_a_ledger,
    no_secret_stands_in_the_log,
    one_shot_commands_ask_the_daemon_that_is_at_work,
}
