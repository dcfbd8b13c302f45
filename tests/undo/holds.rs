//! What is held is not deleted, whatever asks for it: held against a plain model, in generated series, and in the middle of
//! jobs.
//!
//! `ROOMKEEPER_SEED=<n>` repeats a failed run, `ROOMKEEPER_CASES=<n>` tries more samples.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::support::model;
use crate::support::rooms::Recipe;
use crate::support::samples::{any_cut, deepest_cut, for_each_sample};
use crate::support::state_model::STATE;
use crate::support::tables::{Row, Tables, assert_same};
use crate::support::work::{Ask, Site};
use rand::Rng;
use rand::rngs::StdRng;
use roomkeeper::deletion::Request;
use roomkeeper::hold::{HeldEvents, Hold};
use roomkeeper::keeper::Viewer;
use roomkeeper::policy::LifetimeRange;
use roomkeeper::retention::Reason;
use roomkeeper::{Config, Error, Keeper, Millis, PurgeOptions, RoomId, UserId, days};

fn on_room(name: &str, room: &str) -> Hold {
    Hold {
        name: name.into(),
        rooms: vec![RoomId::new(room)],
        reason: "a court said so".into(),
        ..Hold::default()
    }
}

fn rooms_of(tables: &Tables) -> Vec<String> {
    let rooms = tables.rows("rooms").iter();
    rooms.map(|r| r.word("room_id").to_owned()).collect()
}

fn events_in<'a>(tables: &'a Tables, room: &'a str) -> impl Iterator<Item = &'a Row> {
    let events = tables.rows("events").iter();
    events.filter(move |e| e.word("room_id") == room)
}

/// Whether somebody is or ever was in a room.
fn was_joined(tables: &Tables, user: &UserId, room: &RoomId) -> bool {
    tables.rows("room_memberships").iter().any(|m| {
        m.word("user_id") == user.as_str()
            && m.word("room_id") == room.as_str()
            && m.word("membership") == "join"
    })
}

/// What holds keep of a room, by the model's own reading of the tables.
fn held_of(tables: &Tables, holds: &BTreeMap<String, Hold>, room: &str) -> Vec<HeldEvents> {
    let room = RoomId::new(room);
    let mut all = Vec::new();
    for hold in holds.values() {
        let (since, until) = (
            hold.from_ms.map_or(i64::MIN, |ms| ms.0),
            hold.to_ms.map_or(i64::MAX, |ms| ms.0),
        );
        let of = |sender: Option<&UserId>| HeldEvents {
            sender: sender.cloned(),
            since: Millis(since),
            until: Millis(until),
        };
        if hold.everything || hold.rooms.contains(&room) {
            all.push(of(None));
        }
        for user in &hold.users {
            let sees = !hold.written && was_joined(tables, user, &room);
            all.push(of((!sees).then_some(user)));
        }
    }
    all
}

/// Any hold, of which no other has the name.
fn any_hold(tables: &Tables, number: usize, rng: &mut StdRng) -> Hold {
    let rooms = rooms_of(tables);
    let room = &rooms[rng.random_range(0..rooms.len())];
    let mut hold = on_room(&format!("hold-{number}"), room);
    match rng.random_range(0..6) {
        0 | 1 => {}
        2 => {
            hold.rooms.clear();
            hold.everything = true;
        }
        kind => {
            let senders: BTreeSet<&str> = events_in(tables, room)
                .filter_map(|e| e.text("sender"))
                .collect();
            let senders: Vec<&str> = senders.into_iter().collect();
            if !senders.is_empty() {
                hold.rooms.clear();
                hold.users = vec![UserId::from(senders[rng.random_range(0..senders.len())])];
                hold.written = kind > 3;
            }
        }
    }
    let times: Vec<i64> = events_in(tables, room)
        .filter_map(|e| e.int(["received_ts", "origin_server_ts"][rng.random_range(0..2)]))
        .collect();
    if !times.is_empty() && (hold.everything || rng.random_ratio(1, 2)) {
        let mut any = || times[rng.random_range(0..times.len())];
        let (one, other) = (any(), any());
        hold.from_ms = Some(Millis(one.min(other)));
        hold.to_ms = rng.random_ratio(2, 3).then_some(Millis(one.max(other)));
    }
    hold
}

#[test]
fn what_is_held_stays_in_the_timeline_and_the_rest_goes_as_in_the_model() {
    for_each_sample(20, |seed, rng| {
        let site = Site::random(seed, &Recipe::default());
        let before = site.tables();
        let ask = any_cut(&before, rng);
        let mut holds = BTreeMap::new();
        for number in 0..rng.random_range(1..3) {
            let hold = any_hold(&before, number, rng);
            roomkeeper::keeper::add_hold(&site.config(), hold.clone()).expect("laid");
            holds.insert(hold.name.clone(), hold);
        }
        let held = held_of(&before, &holds, &ask.room);
        let about = format!("seed {seed}, {ask:?}, {held:?}");
        let (plan, config) = (
            site.plan(&ask),
            match rng.random_range(0..3) {
                0 => site.in_batches_of(rng.random_range(1..9)),
                1 => site.rewriting(),
                _ => site.config(),
            },
        );
        let found = site.purge_with(config, &ask);
        let after = site.tables();
        if held.iter().any(HeldEvents::is_all) {
            let said = found.expect_err("it is held");
            assert!(matches!(said, Error::Held(_)), "{about}: {said}");
            assert_eq!(
                said.to_string(),
                plan.expect_err("too").to_string(),
                "{about}"
            );
            return assert_same(&before, &after, &about);
        }
        let mut wanted = site.wanted(&ask);
        wanted.held = &held;
        match model::purge(&before, &wanted) {
            Err(_) => {
                found.expect_err("the model refuses");
                assert_same(&before, &after, &about);
            }
            Ok(purged) => {
                let done = found.unwrap_or_else(|e| panic!("{about}: {e}"));
                let plan = plan.expect("planned");
                assert_eq!(plan.events_deleted, done.events_deleted, "{about}");
                let (expected, after) = (purged.tables.without(STATE), after.without(STATE));
                assert_same(&expected, &after, &about);
            }
        }
        site.assert_sound(&about);
    });
}

/// Whether anything is held of a room that has rows.
fn is_anything_held(tables: &Tables, held: &[HeldEvents], room: &str) -> bool {
    held.iter().any(HeldEvents::is_all)
        || events_in(tables, room).any(|e| held.iter().any(|held| model::is_held(e, held)))
}

/// Holds, policies, purges, deletions and releases as they come.
#[test]
fn a_series_of_holds_purges_deletions_and_releases_deletes_nothing_that_is_held() {
    for_each_sample(6, |seed, rng| {
        let site = Site::random(seed, &Recipe::default());
        let mut holds: BTreeMap<String, Hold> = BTreeMap::new();
        let (mut laid, mut refused, mut deleted) = (0, 0, 0);
        let mut said: Vec<String> = Vec::new();
        for turn in 0..10 {
            let before = site.tables();
            if rooms_of(&before).is_empty() {
                break;
            }
            let mut config = site.config();
            config.retention.default_policy.max_lifetime = Some(days(1));
            config.check_clock = false;
            let keeper = Keeper::open(config).expect("opens");
            let about = format!("seed {seed}, turn {turn}: {said:?}");
            match rng.random_range(0..7) {
                0 | 1 => {
                    let hold = any_hold(&before, laid, rng);
                    laid += 1;
                    said.push(format!("{hold:?}"));
                    keeper.add_hold(hold.clone()).expect("laid");
                    holds.insert(hold.name.clone(), hold);
                }
                2 => {
                    if let Some(name) = holds.keys().next().cloned() {
                        keeper.release_hold(&name, "over", None).expect("released");
                        holds.remove(&name);
                        said.push(format!("{name} released"));
                    }
                }
                3 => {
                    let rooms = rooms_of(&before);
                    let room = &rooms[rng.random_range(0..rooms.len())];
                    said.push(format!("{room} deleted"));
                    let held = held_of(&before, &holds, room);
                    let done = keeper.purge_room(&RoomId::new(&**room), true);
                    match is_anything_held(&before, &held, room) {
                        true => {
                            refused += 1;
                            let e = done.expect_err(&about);
                            assert!(matches!(e, Error::Held(_)), "{about}: {e}");
                            assert_same(&before, &site.tables(), &about);
                        }
                        false => {
                            deleted += 1;
                            done.unwrap_or_else(|e| panic!("{about}: {e}"));
                            assert_eq!(events_in(&site.tables(), room).count(), 0, "{about}");
                        }
                    }
                }
                4 => {
                    said.push("retention".into());
                    let id = keeper.purge_history_for_rooms_in_range(None, None);
                    let done = keeper.wait(&id.expect("begun"));
                    done.unwrap_or_else(|e| panic!("{about}: {e}"));
                }
                _ => {
                    let ask = any_cut(&before, rng);
                    said.push(format!("{ask:?}"));
                    let started =
                        keeper.purge_history(&RoomId::new(&*ask.room), ask.point(), ask.options());
                    let done = started.and_then(|id| keeper.wait(&id));
                    let held = held_of(&before, &holds, &ask.room);
                    if held.iter().any(HeldEvents::is_all) {
                        refused += 1;
                        let e = done.expect_err(&about);
                        assert!(matches!(e, Error::Held(_)), "{about}: {e}");
                    } else {
                        deleted += 1;
                    }
                }
            }
            keeper.stop();
            let after = site.tables();
            let left: BTreeMap<&str, &Row> = (after.rows("events").iter())
                .map(|e| (e.word("event_id"), e))
                .collect();
            for room in rooms_of(&before) {
                let held = held_of(&before, &holds, &room);
                for event in events_in(&before, &room) {
                    if held.iter().any(|held| model::is_held(event, held)) {
                        assert_eq!(left.get(event.word("event_id")), Some(&event), "{about}");
                    }
                }
            }
            site.assert_sound(&about);
        }
        println!("seed {seed}: {laid} laid, {refused} refused, {deleted} done");
    });
}

/// A room of some size, and how far it can be purged.
fn large() -> (Site, Ask) {
    let recipe = Recipe {
        rooms: 1..2,
        events: 120..160,
        ..Recipe::default()
    };
    (1..50)
        .map(|seed| Site::random(seed, &recipe))
        .map(|site| {
            let ask = deepest_cut(&site.tables());
            (site, ask)
        })
        .find(|(site, ask)| site.plan(ask).is_ok_and(|plan| plan.events_deleted > 50))
        .expect("one of fifty is large enough")
}

/// As a job that takes its time.
fn slow(site: &Site) -> Config {
    let mut config = site.in_batches_of(4);
    config.homeserver = roomkeeper::config::HomeserverPolicy::AllowRunning;
    config.batch.events = 4;
    config.batch.pause = Duration::from_millis(100);
    config
}

fn wait_for_a_batch(keeper: &Keeper, id: &roomkeeper::JobId) {
    for _ in 0..18_000 {
        let job = keeper.job(id).expect("read").expect("there");
        // The first ones may have been kept without their places in the timeline.
        if job.progress["events_deleted"].as_i64().unwrap_or(0) > 0 {
            return;
        }
        assert!(!job.state.is_ended(), "{job:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("no batch in three minutes");
}

#[test]
fn a_hold_that_is_laid_meanwhile_stops_the_next_transaction() {
    let (site, ask) = large();
    // What has no sender is held with everybody's.
    site.run("UPDATE events SET sender = '@somebody:localhost' WHERE sender IS NULL");
    let tables = site.tables();
    let point: Ask = ask.clone();
    let last = events_in(&tables, &ask.room)
        .filter(|e| e.number("topological_ordering") < ask.below)
        .filter(|e| e.text("sender").is_some() && !e.is("outlier"))
        .max_by_key(|e| e.number("topological_ordering"))
        .expect("an event")
        .word("sender")
        .to_owned();
    let written = |name: &str, user: &str| Hold {
        rooms: Vec::new(),
        users: vec![UserId::from(user)],
        written: true,
        ..on_room(name, "!")
    };
    for (stops, hold) in [
        (true, on_room("room", &ask.room)),
        (true, written("user", &last)),
        (false, on_room("another", "!another:example.org")),
        (false, written("nobody", "@nobody:nowhere")),
    ] {
        for deletes in [false, true] {
            let site = site.copy();
            let keeper = Keeper::open(slow(&site)).expect("opens");
            let room = RoomId::new(&*point.room);
            let id = match deletes {
                false => keeper.purge_history(&room, point.point(), point.options()),
                true => {
                    let request = Request {
                        force_purge: true,
                        ..Request::default()
                    };
                    keeper.shutdown_and_purge_room(&room, request)
                }
            };
            let id = id.expect("begun");
            wait_for_a_batch(&keeper, &id);
            let about = format!("{hold:?}, deletes: {deletes}");
            keeper.add_hold(hold.clone()).expect("laid");
            let _ = keeper.wait(&id);
            let job = keeper.job(&id).expect("read").expect("there");
            keeper.stop();
            let code = job.error_code.as_deref();
            assert_eq!(code, stops.then_some("held"), "{about}: {job:?}");
            if stops {
                let said = job.error.unwrap_or_default();
                assert!(said.contains(&hold.name), "{said}");
                let left = site.tables();
                let count = events_in(&left, &ask.room).count();
                let all = events_in(&tables, &ask.room).count();
                assert!(count < all, "{about}: something had gone before");
                assert!(count > 10, "{about}: {count} of {all} are left");
                // Nothing more goes, whatever is asked.
                let keeper = Keeper::open(site.config()).expect("opens");
                assert!(keeper.purge_room(&room, true).is_err(), "{about}");
                keeper.stop();
                assert_same(&left, &site.tables(), &about);
            }
            if !deletes {
                site.assert_sound(&about);
            }
        }
    }
}

#[test]
fn a_hold_beats_every_way_of_deleting_a_room_and_its_release_frees_it() {
    let (site, ask) = large();
    let before = site.tables();
    let room = RoomId::new(&*ask.room);
    let mut config = site.config();
    config.retention.default_policy.max_lifetime = Some(days(1));
    config.check_clock = false;
    site.clock.advance(days(400));
    let keeper = Keeper::open(config.clone()).expect("opens");
    for name in ["one", "two"] {
        keeper.add_hold(on_room(name, &ask.room)).expect("laid");
    }
    let is_held = |done: Result<(), Error>| {
        let e = done.expect_err("it is held");
        assert!(
            matches!(&e, Error::Held(said) if said.contains("one, two")),
            "{e}"
        );
        assert_eq!((e.class().status, e.class().exit), (409, 3));
    };
    let purge = Request::default;
    is_held(
        keeper
            .purge_history(&room, ask.point(), ask.options())
            .map(drop),
    );
    is_held(keeper.shutdown_and_purge_room(&room, purge()).map(drop));
    is_held(keeper.delete_room(&room, purge()).map(drop));
    is_held(keeper.purge_room(&room, true).map(drop));
    is_held(
        keeper
            .plan_purge(&room, ask.point(), ask.options())
            .map(drop),
    );
    is_held(keeper.plan_deletion(&room, &purge()).map(drop));
    let viewer = Viewer::open(config.clone()).expect("opens");
    is_held(viewer.plan_deletion(&room, &purge()).map(drop));
    let plan = viewer
        .plan_retention(LifetimeRange::default(), true)
        .expect("planned");
    assert!(plan.rooms.is_empty(), "{plan:?}");
    let left = plan.left_alone.first().expect("the room");
    assert_eq!(
        (left.reason, &left.holds[..]),
        (Reason::Held, &["one".to_owned(), "two".into()][..])
    );
    let id = keeper.purge_history_for_rooms_in_range(None, None);
    let run = keeper.wait(&id.expect("begun")).expect("nothing failed");
    assert_eq!(run.progress["rooms_left_alone"], 1, "{run:?}");
    assert_same(&before, &site.tables(), "all of it stands");
    keeper.release_hold("one", "over", None).expect("released");
    let still = keeper.purge_history(&room, ask.point(), ask.options());
    assert!(matches!(still, Err(Error::Held(said)) if !said.contains("one")));
    keeper.release_hold("two", "over", None).expect("released");
    let id = keeper.purge_history(&room, ask.point(), ask.options());
    keeper.wait(&id.expect("begun")).expect("done");
    keeper.stop();
    assert!(events_in(&site.tables(), &ask.room).count() < events_in(&before, &ask.room).count());
    site.assert_sound("released");
}

/// Retention around what somebody wrote: the plan says how much stays, and the run does that.
#[test]
fn retention_leaves_what_is_held_where_it_is_and_says_so() {
    let (site, ask) = large();
    let mut config = site.config();
    config.retention.default_policy.max_lifetime = Some(days(1));
    config.check_clock = false;
    site.clock.advance(days(400));
    let plan_of = || {
        let viewer = Viewer::open(config.clone()).expect("opens");
        viewer
            .plan_retention(LifetimeRange::default(), false)
            .expect("planned")
    };
    let free = plan_of();
    let cut = free.rooms[0].point.topological;
    let before = site.tables();
    let state: BTreeSet<&str> = (before.rows("state_events").iter())
        .map(|s| s.word("event_id"))
        .collect();
    let user = events_in(&before, &ask.room)
        .filter(|e| e.number("topological_ordering") < cut && !state.contains(e.word("event_id")))
        .find_map(|e| e.text("sender"))
        .expect("a message");
    let hold = Hold {
        rooms: Vec::new(),
        users: vec![UserId::from(user)],
        written: true,
        ..on_room("case", "!")
    };
    roomkeeper::keeper::add_hold(&config, hold).expect("laid");
    let held = plan_of();
    assert_eq!(held.rooms[0].holds, ["case"]);
    assert!(
        held.rooms[0].stays.held > 0 && held.events < free.events,
        "{held:?}"
    );
    let keeper = Keeper::open(config.clone()).expect("opens");
    let id = keeper.purge_history_for_rooms_in_range(None, None);
    let run = keeper.wait(&id.expect("begun")).expect("done");
    keeper.stop();
    assert_eq!(run.progress["events_deleted"], held.events);
    site.assert_sound("after retention");
}

#[test]
fn strict_goes_no_further_than_to_the_first_held_event() {
    let (site, ask) = large();
    let before = site.tables();
    let senders: BTreeSet<&str> = events_in(&before, &ask.room)
        .filter_map(|e| e.text("sender"))
        .collect();
    // Nobody can tell of an event without a sender, so it is held, too.
    let first_of = |user: &str| {
        let held = HeldEvents {
            sender: Some(UserId::from(user)),
            since: Millis(i64::MIN),
            until: Millis(i64::MAX),
        };
        let held = events_in(&before, &ask.room).filter(|e| model::is_held(e, &held));
        held.map(|e| e.number("topological_ordering")).min()
    };
    let (first, user) = (senders.iter())
        .filter_map(|user| Some((first_of(user)?, *user)))
        .max()
        .expect("one");
    assert!(first > 2 && first < ask.below, "{user} {first}");
    let hold = Hold {
        rooms: Vec::new(),
        users: vec![UserId::from(user)],
        written: true,
        ..on_room("case", "!")
    };
    let keeper = Keeper::open(site.config()).expect("opens");
    keeper.add_hold(hold).expect("laid");
    let options = PurgeOptions {
        strict: true,
        ..ask.options()
    };
    let room = RoomId::new(&*ask.room);
    let plan = keeper
        .plan_purge(&room, ask.point(), options)
        .expect("planned");
    assert_eq!((plan.point, plan.events_held), (format!("t{first}-0"), 0));
    let id = keeper
        .purge_history(&room, ask.point(), options)
        .expect("begun");
    keeper.wait(&id).expect("done");
    keeper.stop();
    let lower = Ask {
        below: first,
        ..ask.clone()
    };
    let expected = model::purge(&before, &site.wanted(&lower)).unwrap_or_else(|e| panic!("{e:?}"));
    let (expected, after) = (expected.tables.without(STATE), site.tables().without(STATE));
    assert_same(&expected, &after, "as if less had been asked for");
}

also_on_postgres! {
    what_is_held_stays_in_the_timeline_and_the_rest_goes_as_in_the_model,
    a_series_of_holds_purges_deletions_and_releases_deletes_nothing_that_is_held,
    a_hold_that_is_laid_meanwhile_stops_the_next_transaction,
    a_hold_beats_every_way_of_deleting_a_room_and_its_release_frees_it,
    retention_leaves_what_is_held_where_it_is_and_says_so,
    strict_goes_no_further_than_to_the_first_held_event,
}
