//! A job ends in every outcome, and the ledger knows.

use super::*;
use crate::time::ManualClock;

fn register() -> (tempfile::TempDir, Arc<JobRegistry>) {
    let dir = tempfile::tempdir().expect("directory");
    let ledger = Ledger::open(&dir.path().join("l")).expect("opens");
    (
        dir,
        Arc::new(JobRegistry::new(
            ledger,
            Arc::new(ManualClock::at(Millis(5))),
        )),
    )
}

#[test]
fn a_room_has_one_job_at_a_time_in_every_outcome() {
    let (_dir, register) = register();
    let (room, other) = (RoomId::from("!a:b"), Subject::Room("!c:d".into()));
    let subject = Subject::Room(room.clone());
    for end in 0..4 {
        let guard = register.enqueue("k", &subject, Value::Null).expect("free");
        let again = register
            .enqueue("k", &subject, Value::Null)
            .err()
            .map(|e| e.to_string());
        assert_eq!(
            again.as_deref(),
            Some("History purge already in progress for !a:b")
        );
        assert!(register.enqueue("k", &other, Value::Null).is_ok());
        match end {
            0 => guard.end(None),
            1 => guard.end(Some(("no", "failed"))),
            2 => guard.cancel_enqueue(),
            _ => drop(guard),
        }
        assert!(!register.is_busy(&room));
    }
}

#[test]
fn the_last_of_several_jobs_does_what_is_done_once_for_all() {
    let (_dir, register) = register();
    let enqueue = |room: &str| {
        register
            .enqueue("k", &Subject::Room(room.into()), Value::Null)
            .expect("free")
    };
    let (first, second) = (enqueue("!a:b"), enqueue("!c:d"));
    assert!(register.another_job_cleans_up(first.id()));
    assert!(!register.another_job_cleans_up(second.id()));
    second.end(None);
    assert!(!register.another_job_cleans_up(first.id()));
}

#[test]
fn no_job_stays_running_when_its_worker_has_gone() {
    let (_dir, register) = register();
    let guard = register
        .enqueue("k", &Subject::Room("!a:b".into()), Value::Null)
        .expect("free");
    let id = guard.id().clone();
    guard.start().expect("noted");
    let died = std::thread::spawn(move || {
        let _held = guard;
        panic!("meant to");
    });
    assert!(died.join().is_err());
    let record = register.get(&id).expect("read").expect("there");
    assert_eq!(
        (record.state, record.ended_ms),
        (State::Failed, Some(Millis(5)))
    );
    register.wait(&id);
}

#[test]
fn a_withdrawn_job_leaves_no_trace_and_a_suspended_one_waits_for_the_next_start() {
    let (_dir, register) = register();
    let guard = register
        .enqueue("k", &Subject::Room("!a:b".into()), Value::Null)
        .expect("free");
    let id = guard.id().clone();
    guard.cancel_enqueue();
    assert!(register.get(&id).expect("read").is_none());
    let guard = register
        .enqueue("k", &Subject::Room("!a:b".into()), Value::Null)
        .expect("free");
    guard.start().expect("noted");
    guard.suspend();
    let unended = register.ledger().unended().expect("read");
    assert_eq!(unended.len(), 1);
    assert_eq!(unended[0].state, State::Queued);
}

/// S-31.
#[test]
fn a_status_is_what_is_so_when_the_ledger_cannot_be_written_and_is_written_later() {
    let (_dir, register) = register();
    let writable = |is_so: bool| {
        let conn = register.ledger.conn.lock();
        conn.pragma_update(None, "query_only", !is_so).expect("set");
    };
    for error in [None, Some(("the disk is full", "no_space"))] {
        let guard = register
            .enqueue("k", &Subject::Room("!a:b".into()), Value::Null)
            .expect("free");
        let id = guard.id().clone();
        guard.start().expect("noted");
        writable(false);
        guard.end(error);
        let expected = match error {
            None => (State::Complete, None),
            Some((text, _)) => (State::Failed, Some(text)),
        };
        let is_so = |record: Option<JobRecord>| {
            let record = record.expect("known");
            assert_eq!((record.state, record.error.as_deref()), expected);
            assert_eq!(record.ended_ms, Some(Millis(5)));
        };
        is_so(register.get(&id).expect("read"));
        is_so(register.look_up(&id, "k").expect("read"));
        is_so(register.list().expect("read").pop());
        assert!(!register.is_busy(&"!a:b".into()), "the room is free");
        register.write_what_is_unwritten();
        assert!(register.has_unwritten(), "it cannot be written yet");
        assert_eq!(
            register
                .ledger
                .get(&id)
                .expect("read")
                .expect("there")
                .state,
            State::Running
        );
        writable(true);
        register.write_what_is_unwritten();
        assert!(!register.has_unwritten());
        is_so(register.ledger.get(&id).expect("read"));
    }
}
