//! One-shot commands: how they end, and what they refuse.

use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::{Command, Stdio};

use roomkeeper::store::catalog::NEWEST_SCHEMA;
use rusqlite::Connection;
use rustix::process::Signal;

use crate::home::{Daemon, Home, Ran, purge, signal, until};
use crate::sample;
use crate::support::engine::{self, Engine};

#[test]
fn what_is_done_ends_with_0() {
    let home = Home::new(300, "");
    assert_eq!(purge(&home, 200, &["--dry-run"]).code, Some(0));
    let done = purge(&home, 200, &[]);
    assert_eq!(done.code, Some(0), "{done:?}");
    // What a server could give back, only it knows.
    let is_told = done.out.contains("`roomkeeper reclaim` would give");
    let is_file = engine::current() == Engine::Sqlite;
    assert_eq!(is_told, is_file, "{}", done.out);
    home.assert_sound();
    assert_eq!(home.run(&["jobs"]).code, Some(0));
    let reclaimed = home.run(&["reclaim"]);
    assert_eq!(reclaimed.code, Some(0), "{reclaimed:?}");
    home.assert_sound();
    // And without a configuration file, on a database of our own making.
    let file = home.path("new.db");
    let file = file.to_str().expect("UTF-8");
    let made = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roomkeeper"));
        command.args(["--database", file, "--server-name", "example.org"]);
        Ran::of(command.args(words).output().expect("runs"))
    };
    assert_eq!(made(&["init"]).code, Some(0));
    made(&["init"]).assert_ended(2, "exists already and is left as it is");
    assert_eq!(made(&["check"]).code, Some(0));
}

#[test]
fn a_job_that_failed_and_a_check_that_found_something_end_with_1() {
    let home = Home::new(300, "");
    purge(&home, 302, &[]).assert_ended(
        1,
        "topological_ordering is greater than forward extremities",
    );
    let room = sample::room_id("a");
    home.run(&["purge-history", &room, "--before-event", "$none"])
        .assert_ended(1, "Could not find event $none");
    home.run(&["jobs", "--cancel", "nothing"])
        .assert_ended(1, "no job nothing is known");
    home.sql("DELETE FROM event_json WHERE event_id = '$a150'");
    let found = home.run(&["check"]);
    assert_eq!(found.code, Some(1), "{found:?}");
    assert!(
        found
            .out
            .contains("I-2 is violated by 1 row, such as $a150"),
        "{}",
        found.out
    );
    let found = home.run(&["check", "--json"]);
    assert_eq!(found.code, Some(1));
    assert_eq!(found.json()["violations"][0]["example"], "$a150");
}

#[test]
fn a_damaged_file_is_told_as_what_it_is_by_check_and_left_alone_by_reclaim() {
    const PAGE: u64 = 4096;
    let home = Home::new(300, "");
    let conn = Connection::open(home.database()).expect("opens");
    let leaf = "SELECT pageno FROM dbstat WHERE name = 'event_json' AND pagetype = 'leaf' LIMIT 1 OFFSET 3";
    let page: i64 = conn.query_row(leaf, [], |r| r.get(0)).expect("a page");
    let size = conn.pragma_query_value(None, "page_size", |r| r.get::<_, i64>(0));
    assert_eq!(size.expect("a size"), PAGE as i64);
    drop(conn);
    let file = std::fs::File::options().write(true).open(home.database());
    let at = (u64::try_from(page).expect("a number") - 1) * PAGE;
    file.and_then(|file| file.write_all_at(&[0xff; PAGE as usize], at))
        .expect("damaged");
    let bytes = std::fs::read(home.database()).expect("reads");

    let found = home.run(&["check", "--json"]);
    assert_eq!(found.code, Some(1), "{found:?}");
    let found = found.json();
    let damage = found["violations"].as_array().expect("a list").iter();
    let damage = damage.filter(|v| v["found"].is_array()).collect::<Vec<_>>();
    assert_eq!(damage.len(), 1, "{found}");
    assert_eq!(damage[0]["rule"], "I-18");
    let told = damage[0]["found"].to_string();
    assert!(told.contains(&format!("page {page}")), "{told}");
    assert!(told.contains("I-2 (every event has its JSON) could not be tested"));
    let said = home.run(&["check"]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.out.contains("the file is damaged (rule I-18)") && said.out.contains("backup"),
        "{said:?}"
    );

    let reclaim = home.run(&["reclaim"]);
    reclaim.assert_ended(3, "is damaged, and was before");
    assert!(!reclaim.err.contains("internal error"), "{}", reclaim.err);
    let again = home.run(&["check", "--json"]).json();
    assert_eq!(again["violations"], found["violations"], "nothing was lost");
    let after = std::fs::read(home.database()).expect("reads");
    assert_eq!(after.len(), bytes.len());

    // Where not even the names of the tables can be read, every command says so.
    let file = std::fs::File::options().write(true).open(home.database());
    file.and_then(|file| file.write_all_at(&[0xff; 3 * PAGE as usize], 100))
        .expect("damaged");
    let room = sample::room_id("a");
    for words in [
        &["check"][..],
        &["messages", &room],
        &["rooms"],
        &["purge-history", &room, "--older-than", "90d", "--dry-run"],
        &["purge-history", &room, "--older-than", "90d"],
        &["repair", "--dry-run"],
    ] {
        let ran = home.run(words);
        ran.assert_ended(1, "the file is damaged (rule I-18)");
        assert!(ran.err.contains("integrity_check"), "{}", ran.err);
    }
}

#[test]
fn what_is_not_so_yet_is_not_said_and_nothing_to_do_is() {
    let home = Home::new(10, "");
    // W-20: a homeserver that runs heeds its memory.
    let blocked = home.run(&["--beside=assume", "block", "!a:b"]);
    blocked.assert_ended(0, "");
    assert!(blocked.out.contains("is blocked in the database"));
    let blocked = home.run(&["block", "!a:b"]);
    assert!(blocked.out.contains("nobody can join it"), "{blocked:?}");
    let room = sample::room_id("a");
    // A dry run refuses what the run would refuse (E-18): without a key nobody could leave.
    let plan = home.run(&["delete-room", &room, "--no-purge", "--dry-run"]);
    plan.assert_ended(3, "no signing key is configured");
    home.configure(
        "",
        "signing_key: 'ed25519 a_test AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8'",
    );
    let plan = home.run(&["delete-room", &room, "--no-purge", "--dry-run"]);
    plan.assert_ended(0, "");
    assert!(
        plan.out.contains("out and remove none of its rows.\n"),
        "{plan:?}"
    );
    let resumed = home.run(&["jobs", "--resume"]);
    assert_eq!(
        (resumed.code, resumed.out.as_str()),
        (Some(0), "nothing was interrupted\n")
    );
    let resumed = home.run(&["jobs", "--resume", "--json"]);
    assert_eq!(resumed.json(), serde_json::json!({"jobs": []}));
}

#[test]
fn a_deletion_says_a_thing_once_and_one_of_an_unknown_room_that_nothing_was_there() {
    let home = Home::new(30, "");
    for (words, is_blocked) in [
        (&["--force-purge"][..], false),
        (&[], false),
        (&["--block"], true),
        (&["--no-purge", "--block"], true),
    ] {
        let mut command = vec!["delete-room", "!never:example.org", "--yes"];
        command.extend(words);
        let done = home.run(&command);
        assert_eq!(done.code, Some(0), "{done:?}");
        let says = done.out.matches("not known here").count();
        assert_eq!(says, 1, "{done:?}");
        let blocked = done.out.contains("It is blocked from now on");
        assert_eq!(blocked, is_blocked, "{done:?}");
    }
    let room = sample::room_id("a");
    let one = home.run(&["delete-room", &room, "--force-purge", "--yes"]);
    assert_eq!(one.code, Some(0), "{one:?}");
    let all = format!("{}{}", one.out, one.err);
    for once in ["only if the homeserver sends that", "local user"] {
        assert!(all.matches(once).count() <= 1, "{once}: {all}");
    }
    assert!(!all.contains("not known here"), "{all}");
    home.assert_sound();
}

#[test]
fn events_are_told_to_machines_as_they_are() {
    let home = Home::new(20, "");
    home.sql(
        "UPDATE event_json SET json = replace(json, '\"body\":\"', '\"body\":\"\u{7f}\u{202e}')",
    );
    let page = home.run(&["messages", &sample::room_id("a"), "--json"]);
    let events: Vec<serde_json::Value> = page
        .out
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let body = |e: &serde_json::Value| e["content"]["body"].as_str().map(str::to_owned);
    let odd = events.iter().filter_map(body);
    assert!(odd.clone().count() > 3, "{page:?}");
    for body in odd {
        assert!(body.starts_with("\u{7f}\u{202e}"), "{body:?}");
    }
}

#[test]
fn nobody_writes_on_the_terminal_of_whoever_asks() {
    let home = Home::new(10, "");
    let room = "!x\u{1b}[2J\n[2026-01-01T00:00:00Z ERROR] all is lost:b.c";
    home.sql(&format!(
        "INSERT INTO rooms (room_id, is_public, creator) VALUES ('{room}', FALSE, '@a:example.org')"
    ));
    home.run(&["purge-history", room, "--before-token", "t5-0"]);
    for ran in [
        home.run(&["jobs"]),
        home.run(&["-vv", "purge-history", room, "--before-token", "t5-0"]),
        home.run(&["delete-room", room]),
    ] {
        for said in [&ran.out, &ran.err] {
            assert!(!said.contains('\u{1b}'), "{said:?}");
            assert!(
                said.lines().all(|line| !line.starts_with("[2026-01-01T")),
                "{said:?}"
            );
        }
    }
    let jobs = home.run(&["jobs", "--json"]).json();
    assert_eq!(jobs["jobs"][0]["room_id"], room, "data is as it was");
}

#[test]
fn wrong_usage_and_configuration_end_with_2() {
    let home = Home::new(10, "wokers: 3");
    for words in [&["serve"][..], &["jobs"], &["check"]] {
        home.run(words)
            .assert_ended(2, "roomkeeper.wokers is not a key; the keys are");
    }
    home.configure("", "retention: {default_policy: {max_lifetime: 1s}}");
    home.run(&["retention", "run"])
        .assert_ended(2, "retention is not enabled");
    home.run(&["retention", "plan"]).assert_ended(0, "");
    home.configure("", "");
    home.run(&["purge-history", "!a:b"])
        .assert_ended(2, "--before-event");
    home.run(&["purge-history", "!a:b", "--older-than", "90 days"])
        .assert_ended(2, "is not a duration");
    for (words, says) in [
        (
            &["purge-history", "!a:b", "--older-than", "90"][..],
            "--older-than: 90 of what? say 90d",
        ),
        (
            &["purge-history", "!a:b", "--older-than", "0"],
            "0 of what?",
        ),
        (
            &["purge-history", "!a:b", "--before-ts", "1700000000"],
            "Seconds? then say 1700000000000",
        ),
        (
            &["retention", "plan", "--shortest", "1"],
            "--shortest: 1 of what?",
        ),
        (
            &["retention", "run", "--longest", "365"],
            "--longest: 365 of what?",
        ),
    ] {
        home.run(words).assert_ended(2, says);
    }
    home.run(&["purge-history", "!a:b", "--before-token", "s5"])
        .assert_ended(2, "Invalid room stream token 's5'");
    home.run(&["explode"])
        .assert_ended(2, "unrecognized subcommand");
    let empty = Home::new(10, "");
    std::fs::remove_file(empty.database()).expect("removes");
    for words in [&["check"][..], &["reclaim"], &["jobs"], &["serve"]] {
        empty
            .run(words)
            .assert_ended(2, "there is no database file");
    }
    let no_ledger = !empty.path("homeserver.db.roomkeeper").exists();
    assert!(no_ledger, "none is made beside nothing");
    let nothing = Command::new(env!("CARGO_BIN_EXE_roomkeeper"))
        .arg("check")
        .output();
    Ran::of(nothing.expect("runs")).assert_ended(2, "say which database");
}

/// Somebody sits at a terminal, and is asked before anything goes.
#[test]
fn a_retention_run_is_asked_about_in_a_terminal() {
    let home = Home::new(10, "");
    home.configure(
        "short_lifetimes: true, check_clock: off",
        "retention: {enabled: true, default_policy: {max_lifetime: 1s}}",
    );
    let at_a_terminal = |answer: &str| {
        let program = env!("CARGO_BIN_EXE_roomkeeper");
        let line = format!("{program} -c homeserver.yaml retention run");
        let mut script = Command::new("script")
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            .current_dir(home.path(""))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("bsdutils has it");
        let mut keyboard = script.stdin.take().expect("piped");
        keyboard.write_all(answer.as_bytes()).expect("typed");
        drop(keyboard);
        Ran::of(script.wait_with_output().expect("ends"))
    };
    let before = home.events();
    let no = at_a_terminal("n\n");
    assert_eq!(no.code, Some(130), "{}", no.out);
    assert!(no.out.contains("of 1 room,"), "{}", no.out);
    assert!(no.out.contains("[y/N]"), "{}", no.out);
    assert_eq!(home.events(), before);
    let yes = at_a_terminal("y\n");
    assert_eq!(yes.code, Some(0), "{}", yes.out);
    assert!(home.events() < before);
}

#[test]
fn errors_are_json_where_json_was_asked_for() {
    let home = Home::new(10, "");
    let failed = purge(&home, 11 + 1, &["--json"]);
    assert_eq!(failed.code, Some(1));
    // The job's record is the document; the sentence is for people.
    assert_eq!(failed.json()["state"], "failed", "{failed:?}");
}

#[test]
fn what_could_harm_is_refused_with_3_and_says_what_to_do() {
    let home = Home::new(100, "");
    let commands = |says: &str, what_to_do: &str| {
        for words in [
            &["serve"][..],
            &["reclaim"],
            &["purge-history", "!a:example.org", "--older-than", "1d"],
        ] {
            let refused = home.run(words);
            refused.assert_ended(3, says);
            refused.assert_ended(3, what_to_do);
        }
        assert_eq!(home.events(), 101, "nothing was changed");
    };

    // A homeserver has the database open, though it does nothing at the moment.
    let synapse = Connection::open(home.database()).expect("opens");
    let _: i64 = synapse
        .query_row("SELECT count(*) FROM events", [], |row| row.get(0))
        .expect("counts");
    commands("a homeserver seems to be running", "Stop it first");
    // Beside it, work is possible; giving space back is not.
    let room = sample::room_id("a");
    let beside = home.run(&[
        "purge-history",
        &room,
        "--before-token",
        "t50-0",
        "--beside",
        "--dry-run",
    ]);
    assert_eq!(beside.code, Some(0), "{beside:?}");
    home.run(&["reclaim", "--beside"])
        .assert_ended(3, "Stop it first");
    assert_eq!(home.run(&["check", "--beside"]).code, Some(0));
    drop(synapse);

    // Its process runs, or a listener answers.
    home.configure("", &format!("pid_file: '{}'", home.path("pid").display()));
    std::fs::write(home.path("pid"), std::process::id().to_string()).expect("writes");
    commands("the homeserver's pid_file names process", "Stop it first");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("bound").port();
    home.configure(
        "",
        &format!("listeners: [{{port: {port}, bind_addresses: ['127.0.0.1'], type: http}}]"),
    );
    commands("the homeserver's listener 127.0.0.1:", "Stop it first");
    drop(listener);
    home.configure("", "");

    // It holds a lock that it renewed just now.
    let now = "CAST(strftime('%s', 'now') AS INTEGER) * 1000";
    home.sql(&format!(
        "INSERT INTO worker_read_write_locks (lock_name, lock_key, instance_name, write_lock, token, last_renewed_ts)
         VALUES ('purge_pagination_lock', '!a:example.org', 'master', FALSE, 'x', {now})"
    ));
    commands(
        "the database holds a lock that a homeserver renewed",
        "Stop it first",
    );
    home.sql("DELETE FROM worker_read_write_locks");

    // A database that only newer programs may touch.
    let newer = NEWEST_SCHEMA + 1;
    home.sql(&format!(
        "UPDATE schema_compat_version SET compat_version = {newer}"
    ));
    commands(
        &format!("programs that know schema {newer} or newer"),
        "use a newer roomkeeper",
    );
    home.sql("UPDATE schema_compat_version SET compat_version = 84");

    // One that is too old.
    home.sql("UPDATE schema_version SET version = 71");
    commands("the database has schema 71", "upgrade Synapse first");
    home.sql("UPDATE schema_version SET version = 94");

    // An upgrade that was not finished.
    home.sql(&format!(
        "INSERT INTO applied_schema_deltas VALUES ({newer}, '{newer}/01_delta.sql')"
    ));
    commands(
        "an upgrade of the database from schema 94 was not finished",
        "start Synapse",
    );
    home.sql("DELETE FROM applied_schema_deltas");

    // Not a homeserver's at all.
    home.sql("ALTER TABLE state_groups RENAME TO other");
    commands(
        "this is not a Synapse database: it has no table state_groups",
        "in a second database",
    );
    home.sql("ALTER TABLE other RENAME TO state_groups");

    // Data in several databases.
    home.configure(
        "",
        "databases: {main: {name: sqlite3}, state: {name: sqlite3}}",
    );
    commands(
        "the configuration splits the data over several databases",
        "one that holds everything",
    );
    home.configure("", "");
    home.assert_sound();
}

#[test]
fn the_name_of_another_server_would_make_local_users_strangers_and_is_refused() {
    let home = Home::new(10, "");
    home.sql("INSERT INTO users (name) VALUES ('@alice:example.org')");
    let named = |name: &str, words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roomkeeper"));
        command
            .args(["--database", "homeserver.db", "--server-name", name])
            .args(words)
            .current_dir(home.path(""));
        Ran::of(command.output().expect("runs"))
    };
    let room = sample::room_id("a");
    for words in [
        &["purge-history", &room, "--older-than", "0d"][..],
        &["purge-history", &room, "--older-than", "0d", "--dry-run"],
        &["delete-room", &room],
    ] {
        named("example.com", words).assert_ended(3, "its users are of example.org");
        named("not a name", words).assert_ended(2, "is no server name");
    }
    assert_eq!(home.events(), 11, "nothing was changed");
    named("example.org", &["jobs"]).assert_ended(0, "");
}

#[test]
fn the_ledger_is_a_file_of_its_own_and_belongs_to_the_databases_owner() {
    let home = Home::new(10, "ledger: homeserver.db");
    let tables = |file: &str| -> i64 {
        let conn = Connection::open(home.path(file)).expect("opens");
        let count = "SELECT count(*) FROM sqlite_master";
        conn.query_row(count, [], |row| row.get(0)).expect("counts")
    };
    let before = tables("homeserver.db");
    home.run(&["jobs"])
        .assert_ended(2, "it is the homeserver's database");
    assert_eq!(tables("homeserver.db"), before);
    home.configure("ledger: ''", "");
    home.run(&["jobs"]).assert_ended(2, "roomkeeper.ledger");
    home.configure("ledger: other.db", "");
    let other = Connection::open(home.path("other.db")).expect("opens");
    other.execute_batch("CREATE TABLE mine (n)").expect("made");
    drop(other);
    home.run(&["jobs"])
        .assert_ended(2, "it is a database of something else");
    assert_eq!(tables("other.db"), 1);
    home.configure("", "");
    let mode = |file: &str, set: Option<u32>| {
        if let Some(mode) = set {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(home.path(file), mode).expect("set");
        }
        let metadata = home.path(file).metadata().expect("is there");
        metadata.permissions().mode() & 0o777
    };
    mode("homeserver.db", Some(0o600));
    home.run(&["jobs"]).assert_ended(0, "");
    let ledger = home.path("homeserver.db.roomkeeper");
    assert!(!ledger.exists(), "looking makes none");
    home.run(&["jobs", "--resume"]).assert_ended(0, "");
    assert_eq!(mode("homeserver.db.roomkeeper", None), 0o600);
}

#[test]
fn a_mistake_in_a_configuration_is_named_by_its_place_and_not_by_its_text() {
    let home = Home::new(10, "");
    for yaml in [
        "macaroon_secret_key: 'Xyzzy'\nserver_name: [a\n",
        "a: 1\npassword: \"Xyzzy\n",
        "password: Xyzzy\n\tb: [\n",
    ] {
        std::fs::write(home.path("homeserver.yaml"), yaml).expect("writes");
        for words in [&["jobs"][..], &["jobs", "--json"]] {
            let ran = home.run(words);
            ran.assert_ended(2, "roomkeeper: homeserver.yaml:");
            ran.assert_ended(2, ", column ");
            assert!(!format!("{ran:?}").contains("Xyzzy"), "{ran:?}");
        }
    }
}

/// A homeserver that was killed leaves its locks, which lapse two minutes after it renewed them.
#[test]
fn what_is_waited_for_is_said_with_the_time_until_when() {
    let home = Home::new(60, "");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.expect("after 1970").as_millis();
    let room = sample::room_id("a");
    home.sql(&format!(
        "INSERT INTO worker_read_write_locks (lock_name, lock_key, instance_name, write_lock, token, last_renewed_ts)
              VALUES ('purge_pagination_lock', '{room}', 'master', TRUE, 'abc', {})",
        now - 114_000
    ));
    purge(&home, 20, &[]).assert_ended(3, "if that was killed, the lock lapses at 20");
    let waited = purge(&home, 20, &["--offline", "assume"]);
    waited.assert_ended(
        0,
        "waiting for the homeserver's lock on it, which master holds",
    );
    assert!(
        waited.err.contains("the lock lapses at 20"),
        "{}",
        waited.err
    );
}

#[test]
fn what_cannot_be_written_is_a_failure() {
    let home = Home::new(10, "");
    for words in [&["check"][..], &["jobs", "--json"]] {
        let full = std::fs::File::options().write(true).open("/dev/full");
        let mut command = home.command(words);
        let ran = command.stdout(full.expect("opens")).output();
        Ran::of(ran.expect("runs")).assert_ended(1, "what it says cannot be written");
    }
}

/// With the README's least configuration and Synapse stopped, beside a daemon and whoever reads: neither is a homeserver.
#[test]
fn a_daemon_that_may_run_beside_synapse_deletes_a_room_while_that_is_stopped() {
    let home = Home::new(10, "");
    home.configure(
        "homeserver: {running: beside}",
        "signing_key: 'ed25519 a_test AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8'",
    );
    let daemon = Daemon::start(&home);
    let room = sample::room_id("a");
    let plan = home.run(&["delete-room", &room, "--block", "--dry-run", "--json"]);
    plan.assert_ended(0, "");
    let people = plan.json()["users_to_move"].as_object().map(|o| o.len());
    assert!(people > Some(0), "{plan:?}");
    let deleted = home.run(&["delete-room", &room, "--block", "--yes", "--json"]);
    deleted.assert_ended(0, "");
    let moved = &deleted.json()["progress"]["shutdown_room"]["kicked_users"];
    assert_eq!(moved.as_array().map(Vec::len), people, "{deleted:?}");
    let (status, _) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    assert_eq!(home.events(), 0);
    home.assert_sound();
}

#[test]
fn an_interrupted_command_ends_with_130_and_can_go_on() {
    const EVENTS: i64 = 4_000;
    let home = Home::new(EVENTS, "batch: {events: 100}");
    let room = sample::room_id("a");
    let token = sample::token(EVENTS - 100);
    let words = [
        "purge-history",
        &room,
        "--before-token",
        &token,
        "--delete-local-events",
        "--beside=assume",
    ];
    let purge = home
        .command(&words)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    until("some progress", || (home.events() < EVENTS).then_some(()));
    signal(&purge, Signal::INT);
    let ended = Ran::of(purge.wait_with_output().expect("ends"));
    ended.assert_ended(130, "`roomkeeper jobs --resume` goes on from here");
    let left = home.events();
    assert!(left > EVENTS / 10, "it was interrupted: {left}");
    home.assert_sound();
    let resumed = home.run(&["jobs", "--resume"]);
    assert_eq!(resumed.code, Some(0), "{resumed:?}");
    assert_eq!(home.events(), 101 + 3 + (EVENTS - 101) / 100);
    home.assert_sound();
}

/// The words of a simple shell command: quotes are the single ones, and ` #` begins a comment.
fn words_of(command: &str) -> Vec<String> {
    let command = command.split(" #").next().unwrap_or_default();
    let mut words = Vec::new();
    for (number, piece) in command.split('\'').enumerate() {
        if number % 2 == 1 {
            words.push(piece.to_owned());
        } else {
            words.extend(piece.split_whitespace().map(str::to_owned));
        }
    }
    words
}

#[test]
fn every_command_of_the_readme_is_understood() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = std::fs::read_dir(root.join("src/guide")).expect("a directory");
    let mut pages: Vec<_> = guide.map(|page| page.expect("a page").path()).collect();
    assert!(pages.len() >= 15, "{pages:?}");
    pages.sort();
    pages.insert(0, root.join("README.md"));
    let pages: Vec<String> = pages
        .iter()
        .map(|page| std::fs::read_to_string(page).expect("a page"))
        .collect();
    let readme = pages.join("\n");
    let mut short: Vec<String> = Vec::new();
    let mut in_shell = false;
    let mut understood = 0;
    for line in readme.lines() {
        if line.starts_with("```") {
            in_shell = line == "```sh";
        }
        if let Some(meaning) = line.strip_prefix("rk() { roomkeeper ") {
            let meaning = meaning
                .strip_suffix(" \"$@\"; }")
                .expect("a function of one command");
            short = words_of(meaning);
        }
        let before: &[String] = if line.starts_with("rk ") { &short } else { &[] };
        let command = ["rk ", "roomkeeper ", "cargo run --release -- "]
            .iter()
            .find_map(|name| line.strip_prefix(name))
            .filter(|_| in_shell);
        let Some(command) = command else { continue };
        // With this the words are looked at and nothing is done.
        let mut program = Command::new(env!("CARGO_BIN_EXE_roomkeeper"));
        let ran = Ran::of(
            program
                .args(before)
                .args(words_of(command))
                .arg("--help")
                .output()
                .expect("runs"),
        );
        assert_eq!(ran.code, Some(0), "{line}: {ran:?}");
        assert!(ran.out.contains("Usage: roomkeeper"), "{line}: {ran:?}");
        understood += 1;
    }
    assert!(understood >= 8, "only {understood} commands were found");
}

// What is refused for harm, and how usage and configuration can be wrong, is told on files; the databases' own ways of
// being unfit are in the suites of each engine.
also_on_postgres! {
    what_is_done_ends_with_0,
    a_job_that_failed_and_a_check_that_found_something_end_with_1,
    errors_are_json_where_json_was_asked_for,
    an_interrupted_command_ends_with_130_and_can_go_on,
}

#[test]
fn a_set_of_rooms_is_given_to_the_daemon_that_is_at_work() {
    let home = Home::new(120, "");
    home.sql("DELETE FROM current_state_events");
    home.sql("DELETE FROM local_current_membership");
    let daemon = Daemon::start(&home);
    let before = home.events();
    let refused = home.run(&["delete-room", "--empty"]);
    refused.assert_ended(130, "say --yes");
    let words = [
        "purge-history",
        "--all-rooms",
        "--before",
        "2100-01-01",
        "--delete-local-events",
        "--yes",
    ];
    let purged = home.run(&words);
    assert_eq!(purged.code, Some(0), "{purged:?}");
    assert!(purged.err.contains("a daemon"), "{purged:?}");
    assert!(home.events() < before, "{purged:?}");
    let deleted = home.run(&["--json", "delete-room", "--empty", "--force-purge", "--yes"]);
    assert_eq!(deleted.code, Some(0), "{deleted:?}");
    assert_eq!(deleted.json()["progress"]["rooms_failed"], 0, "{deleted:?}");
    assert_eq!(home.events(), 0, "{deleted:?}");
    let again = home.run(&["delete-room", "--empty", "--yes"]);
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(again.out.contains("no room is meant"), "{again:?}");
    daemon.terminate();
    home.assert_sound();
}
