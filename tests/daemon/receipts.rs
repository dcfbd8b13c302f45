//! Receipts, as they are asked for at a terminal and over HTTP; and as others read them, who have no roomkeeper.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::home::{Daemon, Home, Ran, purge};
use crate::sample;

/// What a second reader says, which shares nothing with ours.
fn by_python(key: &str, file: &Path, input: &str) -> Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/daemon/receipts.py");
    let mut child = Command::new("python3")
        .arg(script)
        .arg(key)
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python3 starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("sent");
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(err));
    String::from_utf8_lossy(out).trim().to_owned()
}

/// That it ended so, and said so.
#[track_caller]
fn ended(ran: &Ran, code: i32, says: &str) {
    assert_eq!(ran.code, Some(code), "{ran:?}");
    let is_said = ran.out.contains(says) || ran.err.contains(says);
    assert!(is_said, "{says:?} is not in {ran:?}");
}

/// Of a job of which nothing but its kind is known: its id.
fn job_of(ran: &Ran) -> String {
    let job = ran.json();
    job["id"].as_str().expect("an id").to_owned()
}

#[test]
fn what_was_done_has_a_receipt_that_others_can_verify() {
    let home = Home::new(300, "");
    let room = sample::room_id("a");
    let receipts = |more: &[&str]| home.run(&[&["receipts"], more].concat());
    assert!(receipts(&[]).out.contains("There are no receipts."));
    ended(&receipts(&["verify"]), 0, "0 receipts");
    ended(
        &receipts(&["show", "nothing"]),
        1,
        "there is no receipt of nothing",
    );
    let job = job_of(&purge(&home, 200, &["--json"]));
    let add = [
        "hold", "add", "case-7", "--room", &room, "--reason", "a court",
    ];
    assert_eq!(home.run(&add).code, Some(0));
    assert_eq!(home.run(&["reclaim"]).code, Some(0));
    let listed = receipts(&[]).out;
    for words in ["purge history", "hold add case-7", "reclaim", &job, &room] {
        assert!(listed.contains(words), "{words}: {listed}");
    }
    let shown = receipts(&["show", &job]).json();
    assert_eq!(shown["subject"]["room_id"], room);
    let removed = shown["after"]["events_deleted"].as_i64();
    assert_eq!(removed, Some(300 - home.events() + 1));
    assert_eq!(shown["after"]["rows_removed"]["events"].as_i64(), removed);
    assert!(shown["point"].is_object(), "{shown}");
    ended(
        &receipts(&["verify"]),
        0,
        "3 receipts (0 forgotten) and 3 checkpoints",
    );

    let file = home.path("receipts.txt");
    let (exported, keys) = (receipts(&["export"]).out, receipts(&["keys"]).out);
    fs::write(&file, format!("{}\n", exported.trim_end())).expect("written");
    let path = file.to_str().expect("a path");
    let key = keys.trim();
    ended(&receipts(&["verify", path]), 0, "3 receipts");
    ended(&receipts(&["verify", path, "--key", key]), 0, "3 receipts");
    assert_eq!(said(&by_python(key, &file, "")), "verified 3");
    let proofs = receipts(&["proof", &job]).out;
    assert_eq!(
        said(&by_python(key, Path::new("--proof"), &proofs)),
        "proven 0 of 3"
    );

    // Somebody makes it less than it was.
    let whole = fs::read_to_string(&file).expect("read");
    fs::write(
        &file,
        whole.replacen("\"events_deleted\":", "\"events_deleted\":1", 1),
    )
    .expect("written");
    ended(&receipts(&["verify", path]), 1, "other receipts");
    assert!(!by_python(key, &file, "").status.success());

    // What a hold is about is not forgotten.
    let forget = ["forget", &job, "--reason", "asked for", "--yes"];
    ended(&receipts(&forget), 3, "is held by case-7");
    let release = ["hold", "release", "case-7", "--reason", "over"];
    assert_eq!(home.run(&release).code, Some(0));
    assert_eq!(receipts(&forget).code, Some(0));
    ended(&receipts(&["show", &job]), 1, "there is no receipt of");
    ended(
        &receipts(&["verify"]),
        0,
        "5 receipts (1 forgotten) and 5 checkpoints",
    );
    let exported = receipts(&["export"]).out;
    assert!(!exported.contains(&job), "{exported}");
    fs::write(&file, format!("{}\n", exported.trim_end())).expect("written");
    ended(&receipts(&["verify", path]), 0, "5 receipts (1 forgotten)");
    assert_eq!(said(&by_python(key, &file, "")), "verified 5");

    // The ledger itself.
    let ledger = home.path("homeserver.db.roomkeeper");
    let sql = "UPDATE receipt SET line = replace(line, 'complete', 'failed') WHERE seq = 2";
    let conn = rusqlite::Connection::open(ledger).expect("opens");
    assert_eq!(conn.execute(sql, []).expect("changed"), 1);
    drop(conn);
    ended(&receipts(&["verify"]), 1, "receipt 2 is not what it was");
}

#[test]
fn receipts_are_read_and_forgotten_over_http_and_beside_a_daemon() {
    let home = Home::new(300, "");
    let daemon = Daemon::start(&home);
    let client = daemon.client();
    let job = daemon.purge(200);
    daemon.wait_until_complete(&job);
    let get = |path: &str| {
        let path = format!("/_roomkeeper/v1/receipts{path}");
        client.get(&path).expect("answered")
    };
    let page = get("");
    assert_eq!(page.status, 200);
    let listed = page.body["receipts"].as_array().expect("a list");
    assert_eq!((listed.len(), &page.body["next"]), (1, &1.into()));
    let key = page.body["key"].as_str().expect("a key").to_owned();
    assert_eq!(
        get("?from=1").body["receipts"].as_array().map(Vec::len),
        Some(0)
    );
    for wrong in ["?from=x", "?limit=-1"] {
        let reply = get(wrong);
        assert_eq!(
            (reply.status, reply.body["errcode"].as_str()),
            (400, Some("M_INVALID_PARAM"))
        );
    }
    let missing = get("/nothing");
    assert_eq!(
        (missing.status, missing.body["errcode"].as_str()),
        (404, Some("M_NOT_FOUND"))
    );
    let line = get(&format!("/{job}")).body["receipts"][0]["line"].clone();
    let line: serde_json::Value = serde_json::from_str(line.as_str().expect("text")).expect("JSON");
    assert_eq!(
        (&line["ref"], &line["outcome"]),
        (&job.as_str().into(), &"complete".into())
    );
    assert!(
        line["who"].as_str().is_some_and(|who| who.starts_with('@')),
        "{line}"
    );
    let proofs = get(&format!("/{job}/proof")).body.to_string();
    assert_eq!(
        said(&by_python(&key, Path::new("--proof"), &proofs)),
        "proven 0 of 1"
    );
    assert_eq!(
        get("/verify").body["faults"].as_array().map(Vec::len),
        Some(0)
    );
    // The same words at a terminal ask the daemon.
    let receipts = |more: &[&str]| home.run(&[&["receipts"], more].concat());
    assert!(receipts(&[]).out.contains(&job));
    ended(&receipts(&["verify"]), 0, "1 receipt (0 forgotten)");
    let file = home.path("receipts.txt");
    fs::write(&file, format!("{}\n", receipts(&["export"]).out.trim_end())).expect("written");
    assert_eq!(said(&by_python(&key, &file, "")), "verified 1");
    let forget = |body: serde_json::Value| {
        let path = format!("/_roomkeeper/v1/receipts/{job}/forget");
        client.post(&path, &body).expect("answered").status
    };
    assert_eq!(forget(serde_json::json!({})), 400);
    assert_eq!(forget(serde_json::json!({"reason": 5})), 400);
    assert_eq!(forget(serde_json::json!({"reason": "asked for"})), 200);
    assert_eq!(forget(serde_json::json!({"reason": "asked for"})), 404);
    ended(&receipts(&["verify"]), 0, "2 receipts (1 forgotten)");
    ended(
        &receipts(&["forget", "1", "--reason", "that too", "--yes"]),
        0,
        "forgotten",
    );
}
