//! Nothing goes that nobody decided: policies that changed meanwhile, that cannot be read, of rooms that
//! everybody has left, without a unit, and by a clock that is ahead.

use roomkeeper::jobs::ledger::State;
use roomkeeper::policy::{LifetimeRange, PurgeJob};
use roomkeeper::retention::{LeftAlone, Reason};
use roomkeeper::{Config, Error, Keeper, Millis, PurgeOptions, PurgePoint, RoomId, days};
use rusqlite::{Connection, params};

use crate::busy::{Held, await_job};
use crate::support::engine::{self, Engine};
use crate::town::{NOW, Town, room};

fn events_of(town: &Town, number: usize) -> i64 {
    let room = room(number);
    town.ask(&format!(
        "SELECT count(*) FROM events WHERE room_id = '{room}'"
    ))
}

fn run_all(config: Config) -> i64 {
    let keeper = Keeper::open(config).expect("opens");
    let id = keeper.purge_history_for_rooms_in_range(None, None);
    let done = keeper.wait(&id.expect("begun")).expect("done");
    keeper.stop();
    done.progress["rooms_purged"].as_i64().expect("a number")
}

fn left_alone(config: &Config, number: usize) -> LeftAlone {
    let viewer = roomkeeper::keeper::Viewer::open(config.clone()).expect("opens");
    let plan = viewer
        .plan_retention(LifetimeRange::default(), false)
        .expect("planned");
    let room = RoomId::from(&*room(number));
    let left = plan
        .left_alone
        .into_iter()
        .find(|left| left.room_id == room);
    left.unwrap_or_else(|| panic!("{room} is not left alone"))
}

/// Room 1 says what it says by its event alone.
fn say_by_event(town: &Town, json: &str) {
    town.site.run(&format!(
        "DELETE FROM room_retention WHERE room_id = '{0}';
         UPDATE event_json SET json = {json} WHERE event_id = '$r1e2'",
        room(1)
    ));
}

#[test]
fn a_policy_that_cannot_be_read_leaves_its_room_alone() {
    let nested = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    for content in [
        format!("{{\"max_lifetime\": 77760000000, \"x\": {nested}}}"),
        "{\"max_lifetime\": 99999999999999999999}".to_owned(),
        "{".to_owned(),
    ] {
        let town = Town::new(8, 40);
        say_by_event(&town, &format!("'{{\"content\": {content}}}'"));
        let mut config = town.config();
        config.retention.default_policy.max_lifetime = Some(days(1));
        let left = left_alone(&config, 1);
        assert_eq!(left.reason, Reason::UnreadablePolicy, "{content}");
        assert!(run_all(config) > 0);
        assert_eq!(events_of(&town, 1), 40, "{content}");
        town.assert_sound();
    }
    // What says nothing takes the default, and a text that is stored as bytes is a text.
    let town = Town::new(8, 40);
    say_by_event(&town, "'{\"content\": {}}'");
    let mut config = town.config();
    config.retention.default_policy.max_lifetime = Some(days(1));
    run_all(config);
    assert!(events_of(&town, 1) < 10);
    if engine::current() == Engine::Sqlite {
        let town = Town::new(8, 40);
        say_by_event(
            &town,
            "CAST('{\"content\": {\"max_lifetime\": 77760000000}}' AS BLOB)",
        );
        let mut config = town.config();
        config.retention.default_policy.max_lifetime = Some(days(1));
        run_all(config);
        assert_eq!(events_of(&town, 1), 40);
    }
}

#[test]
fn a_lifetime_without_a_unit_is_shown_and_not_carried_out() {
    let town = Town::new(8, 40);
    let of_room = format!(
        "UPDATE room_retention SET max_lifetime = 365 WHERE room_id = '{}'",
        room(1)
    );
    town.site.run(&of_room);
    let mut config = town.config();
    config.retention.default_policy.max_lifetime = Some(Millis(90));
    for (number, shown) in [(1, "365ms"), (0, "90ms")] {
        let left = left_alone(&config, number);
        assert_eq!(left.reason, Reason::LifetimeTooShort);
        let lifetime = left.lifetime.expect("it is shown").lifetime;
        assert_eq!(lifetime.in_words(), shown);
    }
    run_all(config.clone());
    assert_eq!((events_of(&town, 0), events_of(&town, 1)), (40, 40));
    // The run says so, too.
    let keeper = Keeper::open(config.clone()).expect("opens");
    let run = keeper.purge_history_for_rooms_in_range(None, None);
    let run = keeper.wait(&run.expect("begins")).expect("is done");
    let notes = run.progress["notes"].to_string();
    assert!(notes.contains("its lifetime is below an hour"), "{notes}");
    keeper.stop();
    // A limit that makes every lifetime short is no better.
    config.retention.allowed_lifetime_max = Some(Millis(30));
    assert_eq!(run_all(config.clone()), 0);
    config.retention.allowed_lifetime_max = None;
    config.retention.short_lifetimes = true;
    run_all(config);
    assert!(events_of(&town, 0) < 10 && events_of(&town, 1) < 10);
    town.assert_sound();
}

#[test]
fn a_room_that_everybody_has_left_is_named_and_left_alone() {
    let town = Town::new(8, 40);
    for number in [0, 1, 3] {
        town.site.run(&format!(
            "DELETE FROM current_state_events WHERE room_id = '{0}';
             DELETE FROM local_current_membership WHERE room_id = '{0}'",
            room(number)
        ));
    }
    let mut config = town.config();
    config.retention.default_policy.max_lifetime = Some(days(1));
    let left = left_alone(&config, 1);
    assert_eq!((left.reason, left.expired), (Reason::LeftByAll, Some(37)));
    run_all(config.clone());
    let counts = || [0, 1, 3].map(|number| events_of(&town, number));
    assert_eq!(counts(), [40; 3]);
    // Who wants it has them purged by what they said last: a day, and nine hundred days.
    config.retention.of_left_rooms = true;
    run_all(config.clone());
    let [of_default, of_a_day, of_long] = counts();
    assert!(of_default < 10 && of_a_day < 10, "{:?}", counts());
    assert_eq!(of_long, 40);
}

#[test]
fn what_a_room_said_last_counts_where_only_rows_are_left() {
    let town = Town::new(8, 40);
    // No state group tells any more; of its rows the longest counts.
    town.site.run(&format!(
        "DELETE FROM current_state_events WHERE room_id = '{0}';
         DELETE FROM event_to_state_groups WHERE event_id LIKE '$r1e%';
         INSERT INTO room_retention (room_id, event_id, min_lifetime, max_lifetime) VALUES ('{0}', '$former', NULL, {1})",
        room(1),
        days(900).0
    ));
    let mut config = town.config();
    config.retention.default_policy.max_lifetime = Some(days(1));
    config.retention.of_left_rooms = true;
    run_all(config);
    assert_eq!(events_of(&town, 1), 40);
}

/// A run, and the purge of room 1 in it, that another process began and did not end.
fn leave_unfinished(town: &Town, config: &Config) {
    let keeper = Keeper::open(config.clone()).expect("opens");
    let plan = keeper
        .plan_retention(LifetimeRange::default(), false)
        .expect("planned");
    keeper.stop();
    let one = RoomId::from(&*room(1));
    let due = plan
        .rooms
        .iter()
        .find(|due| due.room_id == one)
        .expect("due");
    let purge = serde_json::json!({
        "point": {"topological": due.point.topological, "stream": due.point.stream},
        "delete_local_events": true, "keep_received_after": due.cut_off_ms.0 - 1,
    });
    let ledger = Connection::open(&config.ledger).expect("opens");
    let job =
        "INSERT INTO job (id, kind, subject_kind, subject, params, state, progress, created_ms)
               VALUES (?1, ?2, ?3, ?4, ?5, 'queued', 'null', ?6)";
    for (id, kind, of, subject, params) in [
        (
            "run",
            "retention",
            "lifetimes",
            "..".to_owned(),
            "{}".to_owned(),
        ),
        (
            "part",
            "retention_purge",
            "room",
            room(1),
            purge.to_string(),
        ),
    ] {
        ledger
            .execute(job, params![id, kind, of, subject, params, NOW.0])
            .expect("written");
    }
    drop(ledger);
    assert_eq!(events_of(town, 1), 40);
}

#[test]
fn a_run_goes_on_by_todays_policies_or_not_at_all() {
    let scheduled = |town: &Town| {
        let mut config = town.config();
        config.retention.enabled = true;
        config
    };
    let go_on = |mut config: Config| {
        config.resume = true;
        let keeper = Keeper::open(config).expect("opens");
        for id in ["part", "run"] {
            let _ = keeper.wait(&id.into());
        }
        let ended = ["run", "part"].map(|id| keeper.job(&id.into()).expect("read").expect("there"));
        keeper.stop();
        ended
    };
    // Retention is not enabled any more; and no job has these lifetimes any more.
    for change in [
        (|config| config.retention.enabled = false) as fn(&mut Config),
        |config| {
            config.retention.purge_jobs = vec![PurgeJob {
                interval: days(1),
                range: LifetimeRange {
                    shortest: Some(days(500)),
                    longest: None,
                },
            }];
        },
    ] {
        let town = Town::new(8, 40);
        let mut config = scheduled(&town);
        leave_unfinished(&town, &config);
        change(&mut config);
        let [run, part] = go_on(config);
        assert_eq!(run.state, State::Failed, "{run:?}");
        assert!(run.error.expect("a reason").contains("not taken up again"));
        assert_eq!(part.state, State::Complete, "{part:?}");
        assert_eq!(events_of(&town, 1), 40);
        town.assert_sound();
    }
    // The room says another lifetime now: longer than anything, half as long as its history, or nothing at all.
    for (says, left) in [
        ("77760000000", 40..41),
        ("4320000000", 20..26),
        ("NULL", 40..41),
    ] {
        let town = Town::new(8, 40);
        let config = scheduled(&town);
        leave_unfinished(&town, &config);
        town.site.run(&format!(
            "UPDATE room_retention SET max_lifetime = {says} WHERE room_id = '{}'",
            room(1)
        ));
        let [run, part] = go_on(config);
        assert_eq!((run.state, part.state), (State::Complete, State::Complete));
        let events = events_of(&town, 1);
        assert!(left.contains(&events), "{says}: {events}");
        town.assert_sound();
    }
    // And as it was, it goes on.
    let town = Town::new(8, 40);
    let config = scheduled(&town);
    leave_unfinished(&town, &config);
    go_on(config);
    assert!(events_of(&town, 1) < 10);
}

#[test]
fn a_policy_that_changes_while_a_run_is_at_work_counts_when_its_room_is_reached() {
    // Four rooms of a day, purged in the order of their ids: 17, 1, 25, 9.
    let town = Town::new(32, 40);
    let mut config = town.config();
    config.workers = 2;
    let keeper = Keeper::open(config).expect("opens");
    let held = Held::new(&town, 17);
    let id = keeper.purge_history_for_rooms_in_range(None, Some(days(1)));
    let id = id.expect("begun");
    await_job(&keeper, "retention_purge", 17);
    town.site.run(&format!(
        "UPDATE room_retention SET max_lifetime = {} WHERE room_id IN ('{}', '{}')",
        days(900).0,
        room(1),
        room(25)
    ));
    drop(held);
    let done = keeper.wait(&id).expect("done");
    keeper.stop();
    assert_eq!(done.progress["rooms_purged"], 2, "{}", done.progress);
    assert_eq!((events_of(&town, 1), events_of(&town, 25)), (40, 40));
    assert!(events_of(&town, 9) < 10);
    town.assert_sound();
}

#[test]
fn a_clock_that_is_ahead_deletes_nothing() {
    let town = Town::new(8, 40);
    let mut config = town.config();
    config.retention.enabled = true;
    config.retention_jobs = true;
    let keeper = Keeper::open(config.clone()).expect("opens");
    town.clock.set_adrift();
    let one = RoomId::from(&*room(1));
    let run = |keeper: &Keeper| keeper.purge_history_for_rooms_in_range(None, None);
    let by_age = |keeper: &Keeper| {
        keeper.purge_history(
            &one,
            PurgePoint::OlderThan(days(150)),
            PurgeOptions::default(),
        )
    };
    let everything = town.ask("SELECT count(*) FROM events");
    for ahead in [8, 200, 400] {
        town.clock.jump(days(ahead));
        for outcome in [run(&keeper), by_age(&keeper)] {
            let said = outcome.expect_err("refused").to_string();
            assert!(
                said.contains("the clock says") && said.contains("--trust-clock"),
                "{said}"
            );
        }
        assert!(matches!(run(&keeper), Err(Error::Refused(_))));
        town.clock.jump(days(-ahead));
    }
    keeper.stop();
    // A daemon that starts with a clock that is ahead, and whose interval has passed.
    town.clock.jump(days(200));
    let keeper = Keeper::open(config.clone()).expect("opens");
    for later in [days(0), days(1)] {
        town.clock.advance(later);
        let ran = keeper.tick_retention().expect("looked");
        assert_eq!(ran.len(), 1);
        assert!(matches!(keeper.wait(&ran[0]), Err(Error::JobFailed { .. })));
    }
    keeper.stop();
    assert_eq!(town.ask("SELECT count(*) FROM events"), everything);
    // Who says that the clock is right has it done.
    let mut trusting = config.clone();
    trusting.check_clock = false;
    let keeper = Keeper::open(trusting).expect("opens");
    keeper.wait(&run(&keeper).expect("begun")).expect("done");
    keeper.stop();
    assert!(town.ask("SELECT count(*) FROM events") < everything);
    town.assert_sound();
}

#[test]
fn a_server_that_is_quiet_for_a_while_goes_on_by_its_last_run() {
    let town = Town::new(8, 40);
    let keeper = Keeper::open(town.config()).expect("opens");
    town.clock.set_adrift();
    let run = || {
        let id = keeper.purge_history_for_rooms_in_range(None, None)?;
        keeper.wait(&id)
    };
    // Nothing comes for a month, and the clock goes on as it should.
    for _ in 0..5 {
        town.clock.advance(days(6));
        run().expect("six days after the last run, whose clock was believed");
    }
    town.clock.advance(days(8));
    assert!(matches!(run(), Err(Error::Refused(_))));
    keeper.stop();
}

#[test]
fn stamps_of_the_clock_that_is_in_doubt_do_not_vouch_for_it() {
    let town = Town::new(8, 40);
    // Some events have come since it went wrong.
    town.site.run(&format!(
        "UPDATE events SET received_ts = received_ts + {} WHERE stream_ordering > 300",
        days(200).0
    ));
    town.clock.jump(days(200));
    let keeper = Keeper::open(town.config()).expect("opens");
    let run = || keeper.purge_history_for_rooms_in_range(None, None);
    town.clock.set_adrift();
    assert!(matches!(run(), Err(Error::Refused(_))));
    keeper.stop();
}

#[test]
fn a_clock_that_the_kernel_holds_for_right_is_right() {
    let town = Town::new(8, 40);
    town.clock.advance(days(400));
    assert!(run_all(town.config()) > 0);
}

also_on_postgres! {
    a_policy_that_cannot_be_read_leaves_its_room_alone,
    a_lifetime_without_a_unit_is_shown_and_not_carried_out,
    a_room_that_everybody_has_left_is_named_and_left_alone,
    what_a_room_said_last_counts_where_only_rows_are_left,
    a_run_goes_on_by_todays_policies_or_not_at_all,
    a_clock_that_is_ahead_deletes_nothing,
}
