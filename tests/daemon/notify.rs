//! Whoever is told when a job has ended, and the log in the forms that its readers want.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::thread;
use std::time::Instant;

use serde_json::Value;

use crate::home::{Daemon, Home, Ran, purge};
use crate::sample;

/// A program of this home's, that is told.
fn program(home: &Home, script: &str) -> String {
    let path = home.path("tell");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("writes");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
    path.display().to_string()
}

fn told(home: &Home) -> Vec<Value> {
    let text = fs::read_to_string(home.path("told")).unwrap_or_default();
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

#[test]
fn a_program_gets_the_end_of_every_job_on_its_standard_input_and_nothing_secret() {
    let home = Home::new(300, "");
    let script = "cat >> told; echo \"$@\" >> words; env >> surroundings; echo noise";
    let program = program(&home, script);
    home.configure(
        &format!("notify: {{command: ['{program}', --room-jobs]}}"),
        "",
    );
    let ran = {
        let (room, token) = (sample::room_id("a"), sample::token(200));
        let mut command =
            home.command(&["purge-history", &room, "--before-token", &token, "--json"]);
        command
            .env("PGPASSWORD", "s3cret")
            .env("PATH", "/usr/bin:/bin");
        Ran::of(command.output().expect("runs"))
    };
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let done = ran.json();
    // When the command has ended, it is told.
    let (all, room) = (told(&home), sample::room_id("a"));
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(all[0]["server_name"], "example.org");
    assert_eq!(all[0]["job"], done);
    let text = all[0]["text"].as_str().expect("a sentence");
    let events = &done["progress"]["events_deleted"];
    let says = format!("purge history of room {room} is complete: {events} events deleted in ");
    assert!(text.starts_with(&says), "{text}");
    let words = fs::read_to_string(home.path("words")).expect("written");
    assert_eq!(words, "--room-jobs\n");
    let surroundings = fs::read_to_string(home.path("surroundings")).expect("written");
    assert!(!surroundings.contains("s3cret"), "{surroundings}");
    // A failure too; and with `when` that alone.
    home.configure(
        &format!("notify: {{command: ['{program}'], when: [failed]}}"),
        "",
    );
    assert_eq!(purge(&home, 250, &[]).code, Some(0));
    assert_eq!(purge(&home, 302, &[]).code, Some(1));
    let all = told(&home);
    assert_eq!(all.len(), 2, "{all:?}");
    assert_eq!(all[1]["job"]["state"], "failed");
    let text = all[1]["text"].as_str().expect("a sentence");
    assert!(
        text.contains("failed: 400: topological_ordering is greater"),
        "{text}"
    );
    // A copy of the database tells nobody of what was done to it.
    let copy = home.path("homeserver.db").display().to_string();
    let dry = ["--database", &copy, "check-config"];
    let used = home.run(&dry);
    assert!(
        used.out.contains("told of ended jobs    nobody"),
        "{used:?}"
    );
    home.assert_sound();
}

#[test]
fn whoever_cannot_be_told_or_takes_too_long_stops_no_job_and_is_named_in_the_log() {
    let home = Home::new(300, "");
    for (script, says) in [
        ("exit 7", "it ended with exit code 7"),
        ("sleep 600 & wait", "it took too long and was ended"),
        ("kill -9 $$", "signal 9 ended it"),
        // Reads nothing of what it is told.
        ("exec 0<&-; exit 3", "it ended with exit code 3"),
    ] {
        let program = program(&home, script);
        home.configure(
            &format!("notify: {{command: ['{program}'], timeout: 1s}}"),
            "",
        );
        let begun = Instant::now();
        let ran = purge(&home, 100, &[]);
        ran.assert_ended(0, says);
        assert!(
            ran.err.contains("could not be told of the end of job"),
            "{ran:?}"
        );
        assert!(begun.elapsed() < crate::home::SOON, "{script}");
    }
    home.assert_sound();
}

/// Answers each request in turn with one of these statuses, and gives what was asked.
fn hook(statuses: &'static [u16]) -> (u16, thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let serve = move || {
        let answer = |status: &u16| {
            let (mut stream, _) = listener.accept().expect("a client");
            let asked = request(&mut stream);
            let body = "it is no JSON";
            let length = body.len();
            let head = format!("HTTP/1.1 {status} Said\r\nContent-Length: {length}\r\n\r\n");
            stream
                .write_all(format!("{head}{body}").as_bytes())
                .expect("sent");
            asked
        };
        statuses.iter().map(answer).collect()
    };
    (port, thread::spawn(serve))
}

fn request(stream: &mut TcpStream) -> String {
    let (mut text, mut chunk) = (String::new(), [0; 4096]);
    loop {
        let read = stream.read(&mut chunk).expect("a request");
        text += std::str::from_utf8(&chunk[..read]).expect("text");
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        if body.len() >= length.expect("a length").parse().expect("a number") {
            return text;
        }
    }
}

#[test]
fn a_web_address_gets_the_same_with_its_token_and_is_asked_again_where_it_fails() {
    let home = Home::new(300, "");
    home.write_secret("hook.token", "t0ken\n");
    let (port, served) = hook(&[503, 204]);
    let block =
        format!("notify: {{url: 'http://127.0.0.1:{port}/in/s3cret?x=1', token_path: hook.token}}");
    home.configure(&block, "");
    let daemon = Daemon::start(&home);
    let id = daemon.purge(200);
    daemon.wait_until_complete(&id);
    let asked = served.join().expect("served");
    assert_eq!(asked.len(), 2);
    for asked in &asked {
        assert!(
            asked.starts_with("POST /in/s3cret?x=1 HTTP/1.1\r\n"),
            "{asked}"
        );
        assert!(
            asked.contains("\r\nAuthorization: Bearer t0ken\r\n"),
            "{asked}"
        );
        assert!(
            asked.contains("\r\nContent-Type: application/json\r\n"),
            "{asked}"
        );
        let body = asked.split("\r\n\r\n").nth(1).expect("a body");
        let body: Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(body["job"]["id"], id.as_str());
        assert_eq!(body["job"]["state"], "complete");
    }
    let (status, _) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    // What it refuses, it is not asked again; and a redirect is nobody who was told.
    let (port, served) = hook(&[302]);
    home.configure(
        &format!("notify: {{url: 'http://127.0.0.1:{port}/s3cret'}}"),
        "",
    );
    let ran = purge(&home, 250, &[]);
    ran.assert_ended(0, "it answered 302");
    assert_eq!(served.join().expect("served").len(), 1);
    for said in [
        &ran.err,
        &ran.out,
        &fs::read_to_string(home.path("log")).expect("a log"),
    ] {
        assert!(
            !said.contains("s3cret") && !said.contains("t0ken"),
            "{said}"
        );
    }
}

#[test]
fn a_daemon_that_stops_tells_what_ended_before_it() {
    let home = Home::new(300, "");
    let program = program(&home, "read line; sleep 1; echo \"$line\" >> told");
    home.configure(&format!("notify: {{command: ['{program}']}}"), "");
    let daemon = Daemon::start_with(&home, |command| {
        command.env("PATH", "/usr/bin:/bin");
    });
    let id = daemon.purge(200);
    daemon.wait_until_complete(&id);
    let (status, _) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    assert_eq!(told(&home)[0]["job"]["id"], id.as_str());
}

#[test]
fn the_log_is_json_from_its_first_line_where_that_is_asked_for() {
    let home = Home::new(50, "log_format: json, keep_jobs: 1_000_000");
    let config = home.path("homeserver.yaml");
    let mut text = fs::read_to_string(&config).expect("reads");
    // What is told before the configuration is known: a key that is there twice.
    text.push_str("report_stats: true\nreport_stats: false\n");
    fs::write(&config, text).expect("writes");
    let daemon = Daemon::start(&home);
    drop(daemon);
    let log = fs::read_to_string(home.path("log")).expect("a log");
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    assert_eq!(lines[0]["level"], "warn", "{log}");
    assert!(
        lines[0]["message"]
            .as_str()
            .expect("a text")
            .contains("report_stats")
    );
    for line in &lines {
        assert!(
            line["time"]
                .as_str()
                .is_some_and(|time| time.ends_with('Z')),
            "{line}"
        );
        assert!(
            line["target"]
                .as_str()
                .expect("a module")
                .starts_with("roomkeeper")
        );
    }
    // One that cannot begin says so in the same form.
    home.configure("log_format: json, ledger: /nowhere/at/all", "");
    let failed = home.run(&["serve"]);
    let last = failed.err.lines().last().expect("a reason");
    let last: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {failed:?}"));
    assert_eq!(last["level"], "error");
    // And one whose configuration cannot be read says everything for people.
    home.configure("log_format: yaml", "");
    home.run(&["serve"]).assert_ended(2, "roomkeeper: ");
}

#[test]
fn the_journal_gets_priorities_and_no_second_time() {
    let home = Home::new(50, "");
    let log = File::create(home.path("log")).expect("a log");
    let stream = log.metadata().expect("a file");
    let stream = format!("{}:{}", stream.dev(), stream.ino());
    let daemon = Daemon::start_with(&home, |command| {
        command.env("JOURNAL_STREAM", &stream);
    });
    let (status, _) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    let said = fs::read_to_string(home.path("log")).expect("a log");
    assert!(said.contains("<6>listening on "), "{said}");
    assert!(said.lines().all(|line| line.starts_with('<')), "{said}");
    // Commands that a timer starts, too.
    let err = File::create(home.path("err")).expect("a file");
    let stream = err.metadata().expect("a file");
    let status = home
        .command(&["purge-history", "!none:example.org", "--older-than", "1d"])
        .env(
            "JOURNAL_STREAM",
            format!("{}:{}", stream.dev(), stream.ino()),
        )
        .stderr(err)
        .status()
        .expect("runs");
    assert_eq!(status.code(), Some(1));
    let said = fs::read_to_string(home.path("err")).expect("reads");
    assert!(
        said.starts_with("<3>roomkeeper: this server knows no room"),
        "{said}"
    );
    // Where the variable is inherited and somebody else reads, nothing changes.
    let ran = {
        let mut command = home.command(&["jobs", "--cancel", "x"]);
        Ran::of(command.env("JOURNAL_STREAM", "1:2").output().expect("runs"))
    };
    assert!(ran.err.starts_with("roomkeeper: "), "{ran:?}");
}
