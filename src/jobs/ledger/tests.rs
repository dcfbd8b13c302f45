use super::*;
use crate::time::days;

fn job(id: &str) -> JobRecord {
    JobRecord {
        id: JobId::from(id),
        kind: "purge_history".into(),
        subject: Subject::Room("!a:b".into()),
        state: State::Queued,
        error: None,
        error_code: None,
        waits: None,
        asked_by: None,
        params: Value::Null,
        progress: Value::Null,
        created_ms: Millis(1),
        started_ms: None,
        ended_ms: None,
    }
}

#[test]
fn a_ledger_has_one_owner_at_a_time() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("l");
    let first = Ledger::open(&path).expect("opens");
    assert!(matches!(Ledger::open(&path), Err(Error::LedgerLocked(_))));
    drop(first);
    Ledger::open(&path).expect("opens again");
}

#[test]
fn a_ledger_that_was_analysed_is_still_ours_and_a_file_with_another_table_is_not() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("l");
    drop(Ledger::open(&path).expect("opens"));
    let run = |sql| {
        let conn = Connection::open(&path).expect("opens");
        conn.execute_batch(sql).expect("done");
    };
    run("INSERT INTO duty VALUES ('x'); ANALYZE; SELECT * FROM sqlite_stat1;");
    drop(Ledger::open(&path).expect("opens again"));
    run("CREATE TABLE sqliteish (x)");
    assert!(matches!(Ledger::open(&path), Err(Error::Config(_))));
}

#[test]
fn what_ran_when_its_owner_was_killed_waits_for_the_next() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("l");
    let ledger = Ledger::open(&path).expect("opens");
    ledger.insert(&job("A")).expect("insert");
    ledger.start(&JobId::from("A"), Millis(2)).expect("start");
    drop(ledger);
    let next = Ledger::open(&path).expect("opens");
    let found = next.get(&JobId::from("A")).expect("read").expect("there");
    assert_eq!(
        (found.state, found.started_ms),
        (State::Queued, Some(Millis(2)))
    );
}

#[test]
fn an_ended_job_is_found_for_24_hours_and_kept_on_record_longer() {
    let dir = tempfile::tempdir().expect("directory");
    let ledger = Ledger::open(&dir.path().join("l")).expect("opens");
    ledger.insert(&job("A")).expect("insert");
    let long = days(1000);
    assert!(
        ledger
            .look_up(&JobId::from("A"), "purge_history", long)
            .expect("read")
            .is_some()
    );
    ledger
        .end(
            &JobId::from("A"),
            Ended {
                error: Some(("x", "failed")),
                progress: &Value::Null,
                at: Millis(100),
            },
        )
        .expect("end");
    let at = |ms| {
        ledger
            .look_up(&JobId::from("A"), "purge_history", Millis(ms))
            .expect("read")
    };
    assert_eq!(
        at(100 + REMEMBER_ENDED_FOR.0 - 1)
            .expect("there")
            .error
            .as_deref(),
        Some("x")
    );
    assert!(at(100 + REMEMBER_ENDED_FOR.0).is_none());
    assert!(
        ledger
            .look_up(&JobId::from("A"), "shutdown", Millis(100))
            .expect("read")
            .is_none()
    );
    ledger.forget(days(89), days(90)).expect("forget");
    assert!(ledger.get(&JobId::from("A")).expect("read").is_some());
    ledger.forget(days(91), days(90)).expect("forget");
    assert!(ledger.get(&JobId::from("A")).expect("read").is_none());
}

#[test]
fn candidates_become_steps_and_steps_are_crossed_out_in_order() {
    let dir = tempfile::tempdir().expect("directory");
    let ledger = Ledger::open(&dir.path().join("l")).expect("opens");
    ledger.add_candidates("r", &[3, 1, 3]).expect("note");
    ledger.add_candidates("other", &[7]).expect("note");
    assert_eq!(ledger.candidates("r").expect("read"), [1, 3]);
    ledger
        .decide("r", &["a".into(), "b".into(), "c".into()])
        .expect("decide");
    assert!(ledger.candidates("r").expect("read").is_empty());
    let steps = ledger.steps("r").expect("read");
    ledger.done_up_to("r", steps[1].0).expect("cross out");
    assert_eq!(
        ledger.steps("r").expect("read"),
        [(steps[2].0, "c".to_owned())]
    );
    assert_eq!(ledger.candidates("other").expect("read"), [7]);
}

#[test]
fn what_comes_to_be_owed_meanwhile_stays_owed() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("l");
    let ledger = Ledger::open(&path).expect("opens");
    assert_eq!(ledger.times_pending("d"), 0);
    ledger
        .clear_pending_of("d", 0)
        .expect("there is nothing to clear");
    ledger.add_pending("d").expect("noted");
    let seen = ledger.times_pending("d");
    ledger.add_pending("d").expect("noted");
    ledger.clear_pending_of("d", seen).expect("asked");
    assert!(ledger.has_pending("d"), "somebody noted it meanwhile");
    drop(ledger);
    let ledger = Ledger::open(&path).expect("opens");
    let seen = ledger.times_pending("d");
    ledger.clear_pending_of("d", seen).expect("cleared");
    assert!(!ledger.has_pending("d"));
}

/// What many small jobs note reaches the file together: copying the log takes three syncs.
#[test]
fn the_log_is_copied_seldom_where_the_disk_is_large() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("l");
    let ledger = Ledger::open(&path).expect("opens");
    for n in 0..150 {
        let subject = Subject::Room(crate::ids::RoomId::from(&*format!("!{n}:x")));
        let job = JobRecord::new("k", &subject, Millis(n));
        ledger.insert_part(&job).expect("noted");
        ledger.start(&job.id, Millis(n)).expect("noted");
        let ended = Ended {
            error: None,
            progress: &Value::Null,
            at: Millis(n),
        };
        ledger.end_part(&job.id, ended).expect("noted");
    }
    let log = std::fs::metadata(dir.path().join("l-wal")).expect("there");
    let pages = log.len() / 4_096;
    match sqlite_file::free_bytes_beside(&path) {
        Some(free) if free > ROOM_FOR_LONG_LOG => assert!(pages > 500, "{pages} pages"),
        _ => assert!(pages < 100, "{pages} pages"),
    }
}
