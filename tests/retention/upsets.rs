//! Rooms that are busy, rooms that are broken, and runs that are stopped half-way.

use roomkeeper::jobs::ledger::State;
use roomkeeper::retention::Reason;
use roomkeeper::{Error, Keeper, RoomId, days};
use rusqlite::Connection;

use crate::town::{Town, room};

#[test]
fn one_broken_room_stops_no_other_and_is_told_of() {
    let town = Town::new(40, 40);
    // Room 1 is still being joined, as far as one of its old messages is concerned (P-18).
    town.site.run(
        "INSERT INTO partial_state_rooms (room_id, device_lists_stream_id, join_event_id)
         VALUES ('!room1:example.org', 1, NULL);
         INSERT INTO partial_state_events (room_id, event_id) VALUES ('!room1:example.org', '$r1e5')",
    );
    let keeper = Keeper::open(town.config()).expect("opens");
    let id = keeper
        .purge_history_for_rooms_in_range(None, Some(days(30)))
        .expect("begun");
    assert!(matches!(keeper.wait(&id), Err(Error::JobFailed { .. })));
    let run = keeper.job(&id).expect("read").expect("on record");
    assert_eq!(run.state, State::Failed);
    assert_eq!(run.progress["rooms_failed"], 1);
    assert_eq!(run.progress["rooms_purged"], 14, "{}", run.progress);
    assert_eq!(run.progress["errors"][0]["room_id"], room(1));
    let said = run.error.expect("a reason");
    assert!(
        said.contains(&room(1)) && said.contains("partial state"),
        "{said}"
    );
    keeper.stop();
    // Rooms of 1, 2 and 30 days: five of each but the broken one, all purged.
    let left = "SELECT count(DISTINCT room_id) FROM events WHERE event_id LIKE '$r%e5'";
    assert_eq!(town.ask(left), 40 - 14);
    assert_eq!(
        town.ask("SELECT count(*) FROM events WHERE event_id = '$r1e5'"),
        1
    );
}

#[test]
fn a_run_of_a_range_is_not_begun_twice_and_one_that_is_stopped_goes_on() {
    let town = Town::new(160, 40);
    let due = "SELECT count(*) FROM events WHERE event_id LIKE '$r%e5'";
    let mut config = town.config();
    config.workers = 1;
    let keeper = Keeper::open(config.clone()).expect("opens");
    let id = keeper
        .purge_history_for_rooms_in_range(None, Some(days(30)))
        .expect("begun");
    let again = keeper.purge_history_for_rooms_in_range(None, Some(days(30)));
    assert!(matches!(again, Err(Error::RoomBusy { .. })));
    keeper.stop();
    config.resume = true;
    let keeper = Keeper::open(config).expect("opens again");
    // It may have ended before it was stopped.
    let run = keeper.wait(&id).expect("went on");
    assert_eq!(run.kind, "retention");
    let rooms: Vec<_> = keeper.jobs().expect("listed").into_iter().collect();
    for job in &rooms {
        keeper.wait(&job.id).expect("complete");
    }
    keeper.stop();
    assert_eq!(town.ask(due), 160 - 60);
    town.assert_sound();
}

#[test]
fn a_run_that_is_asked_for_again_goes_on_under_its_name_and_leaves_nothing_unended() {
    let town = Town::new(40, 40);
    let config = town.config();
    let run = |keeper: &Keeper| keeper.purge_history_for_rooms_in_range(None, Some(days(30)));
    let keeper = Keeper::open(config.clone()).expect("opens");
    let first = run(&keeper).expect("begun");
    keeper.wait(&first).expect("done");
    keeper.stop();
    // As if it had been killed in the middle, more than once, by an earlier roomkeeper that began anew each time.
    let ledger = Connection::open(&config.ledger).expect("opens");
    ledger
        .execute_batch(
            "UPDATE job SET state = 'running', ended_ms = NULL WHERE kind = 'retention';
             UPDATE job SET state = 'running', ended_ms = NULL
              WHERE id IN (SELECT id FROM job WHERE kind = 'retention_purge' LIMIT 2);
             INSERT INTO job (id, kind, subject_kind, subject, params, state, error, progress, created_ms, started_ms,
                              ended_ms)
                               SELECT 'again' || n, kind, subject_kind, subject, params, state, error, progress,
                                      created_ms + n, started_ms, ended_ms
                               FROM job, (SELECT 1 AS n UNION SELECT 2) WHERE kind = 'retention';",
        )
        .expect("changed");
    drop(ledger);
    let keeper = Keeper::open(config).expect("opens again");
    assert_eq!(run(&keeper).expect("goes on"), first);
    keeper.wait(&first).expect("done");
    let jobs = keeper.jobs().expect("listed");
    for job in &jobs {
        let said = job.error.as_deref().unwrap_or_default();
        match job.id.as_str().strip_prefix("again") {
            Some(_) => assert!(said.contains(&format!("superseded by {first}")), "{job:?}"),
            None => assert_eq!(job.state, State::Complete, "{job:?}"),
        }
    }
    let second = run(&keeper).expect("begun");
    assert_ne!(second, first, "what has ended is not taken up");
    keeper.wait(&second).expect("done");
    keeper.stop();
    town.assert_sound();
}

#[test]
fn a_cancelled_run_begins_no_more_rooms() {
    let town = Town::new(160, 40);
    let mut config = town.config();
    config.workers = 1;
    let keeper = Keeper::open(config).expect("opens");
    let id = keeper
        .purge_history_for_rooms_in_range(None, Some(days(30)))
        .expect("begun");
    keeper.cancel(&id).expect("asked");
    match keeper.wait(&id) {
        Err(Error::JobFailed { text: said, .. }) => assert_eq!(said, "cancelled"),
        outcome => panic!("{outcome:?}"),
    }
    keeper.stop();
    town.assert_sound();
}

#[test]
fn a_room_that_the_homeserver_itself_is_deleting_is_left_alone() {
    let town = Town::new(8, 40);
    town.site.run(
        "INSERT INTO scheduled_tasks (id, action, status, timestamp, resource_id)
         VALUES ('a', 'shutdown_and_purge_room', 'active', 1, '!room1:example.org')",
    );
    let keeper = Keeper::open(town.config()).expect("opens");
    let plan = keeper
        .plan_retention(Default::default(), false)
        .expect("planned");
    let one = RoomId::from(&*room(1));
    let left = plan.left_alone.iter().find(|left| left.room_id == one);
    assert_eq!(left.expect("left alone").reason, Reason::BusyInHomeserver);
    let id = keeper
        .purge_history_for_rooms_in_range(None, None)
        .expect("begun");
    let run = keeper.wait(&id).expect("done");
    assert_eq!(run.progress["rooms_purged"], 2, "rooms 2 and 7");
    keeper.stop();
    assert_eq!(
        town.ask("SELECT count(*) FROM events WHERE room_id = '!room1:example.org'"),
        40
    );
}

also_on_postgres! {
    one_broken_room_stops_no_other_and_is_told_of,
    a_run_of_a_range_is_not_begun_twice_and_one_that_is_stopped_goes_on,
    a_cancelled_run_begins_no_more_rooms,
    a_room_that_the_homeserver_itself_is_deleting_is_left_alone,
}
