//! Policies by the life of a room: what a plain model says is taken is what goes, and nothing else changes.

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng;
use roomkeeper::config::{HomeserverPolicy, PolicyStart, PolicyWhat, ServerPolicy};
use roomkeeper::jobs::ledger::{JobRecord, Ledger, State, Subject};
use roomkeeper::keeper::{PolicyPlan, RoomSetSummary, Viewer};
use roomkeeper::rooms::{Condition, Selectors, WhyNot};
use roomkeeper::{Config, Error, Keeper, Millis, RoomId, days};

use crate::model::{Model, rooms, server};
use crate::support::samples::{count_in_samples, for_each_sample};
use crate::support::tables::{Tables, assert_same};
use crate::support::work::{Site, progress_of};

/// When the first event came; each came a day after the one before it.
const FIRST: i64 = 1_600_000_000_000;

/// A server on which every event came a day after the one before it, and who left a room left with its last event.
fn aged(seed: u64) -> (Site, Millis) {
    let site = server(seed);
    let day = days(1).0;
    site.run(&format!(
        "UPDATE events SET received_ts = {FIRST} + stream_ordering * {day}, origin_server_ts = {FIRST} + stream_ordering * {day};
         UPDATE local_current_membership SET event_stream_ordering =
                coalesce((SELECT e.stream_ordering FROM events e WHERE e.event_id = local_current_membership.event_id), 1)"
    ));
    let newest = site.number("SELECT max(stream_ordering) FROM events");
    let now = Millis(FIRST + (newest + 1) * day);
    site.clock.advance(now - site.config().clock.now());
    (site, now)
}

fn policy(name: &str, start: PolicyStart, after: Millis) -> ServerPolicy {
    ServerPolicy {
        name: name.into(),
        what: match start {
            PolicyStart::Received => PolicyWhat::Messages,
            _ => PolicyWhat::Room,
        },
        start,
        after,
        at_least: None,
        selectors: Selectors::default(),
        override_rooms: false,
        even_with_members: false,
    }
}

fn with(site: &Site, policies: Vec<ServerPolicy>) -> Config {
    let mut config = site.config();
    config.policies = policies;
    config
}

fn run(keeper: &Keeper, name: &str) -> Option<JobRecord> {
    let id = keeper.run_policy(name).expect("started").job_id?;
    let _ = keeper.wait(&id);
    keeper.job(&id).expect("read")
}

fn summary(job: &JobRecord) -> RoomSetSummary {
    serde_json::from_value(progress_of(job).more.into()).expect("a set's summary")
}

fn taken(plan: &PolicyPlan) -> BTreeSet<String> {
    plan.rooms
        .iter()
        .map(|room| room.room_id.to_string())
        .collect()
}

fn reasons(plan: &PolicyPlan) -> BTreeMap<String, WhyNot> {
    let left = plan.left_alone.iter();
    left.map(|left| (left.room_id.to_string(), left.reason))
        .collect()
}

/// The newest event of a room's timeline before which an event is missing.
fn above_gap(room: &str, tables: &Tables) -> Option<i64> {
    let gaps = tables.rows("event_backward_extremities").iter();
    let gaps: BTreeSet<&str> = gaps
        .filter(|b| b.word("room_id") == room)
        .map(|b| b.word("event_id"))
        .collect();
    let edges = tables.rows("event_edges").iter();
    let above: BTreeSet<&str> = edges
        .filter(|edge| gaps.contains(edge.word("prev_event_id")))
        .map(|edge| edge.word("event_id"))
        .collect();
    let events = tables.rows("events").iter();
    events
        .filter(|e| e.word("room_id") == room && !e.is("outlier"))
        .filter(|e| above.contains(e.word("event_id")))
        .map(|e| e.number("stream_ordering"))
        .max()
}

/// When what a policy counts from happened, by its stream ordering; nothing where the room has no such thing.
fn began(model: &Model<'_>, tables: &Tables, start: PolicyStart) -> Option<i64> {
    let of = |table: &str| {
        let rows = tables.rows(table).iter();
        rows.filter(|r| r.text("room_id") == Some(model.room))
    };
    match start {
        PolicyStart::LastLeave => {
            let local = of("local_current_membership");
            let left = model.holds(&Condition::Left, Millis(0)) == Some(true);
            let last = local.filter_map(|m| m.int("event_stream_ordering")).max();
            // One that was fetched from elsewhere says nothing of when it came.
            last.filter(|last| left && *last > 0)
        }
        _ => {
            let stream_of = |at: Option<i64>| at.map(|at| (at - FIRST) / days(1).0);
            let newest = of("events").map(|e| e.number("stream_ordering")).max();
            let message = stream_of(model.messages().1);
            // Where something is missing after it, that may have been a message.
            let gap = above_gap(model.room, tables);
            let message = match gap.is_none_or(|gap| message.is_some_and(|message| message > gap)) {
                true => message.or(stream_of(model.last_activity())).or(newest),
                false => newest,
            };
            // Somebody of this server who came later is like a message.
            let came = of("local_current_membership")
                .filter(|m| m.word("membership") == "join")
                .filter_map(|m| m.int("event_stream_ordering"))
                .max();
            message.map(|message| message.max(came.unwrap_or(i64::MIN)))
        }
    }
}

/// For every start: what goes is what a plain model takes, and rooms that are not taken are as they were, to the last row.
#[test]
fn a_policy_takes_the_rooms_of_a_plain_model_and_no_row_of_any_other() {
    let went = count_in_samples(10, |seed, rng| {
        let (site, now) = aged(seed);
        let before = site.tables();
        let newest = (now.0 - FIRST) / days(1).0;
        let start = [PolicyStart::LastMessage, PolicyStart::LastLeave][rng.random_range(0..2)];
        let mut policy = policy("p", start, days(rng.random_range(2..newest.max(3))));
        policy.override_rooms = rng.random();
        policy.even_with_members = start == PolicyStart::LastMessage && rng.random_ratio(1, 3);
        if rng.random_ratio(1, 3) {
            policy.selectors.not = vec![Condition::Public];
        }
        let about = format!("{seed}: {policy:?}");
        let config = with(&site, vec![policy.clone()]);
        let keeper = Keeper::open(config.clone()).expect("opens");
        let plan = keeper.plan_policies(None).expect("planned").remove(0);
        let (is_taken, why) = (taken(&plan), reasons(&plan));
        for room in rooms(&before) {
            let model = Model::new(&before, &site.server_name, &room);
            let about = format!("{about}: {room}: {:?}", why.get(&room));
            let since = began(&model, &before, start);
            let is_meant = policy.selectors.not.is_empty()
                || model.holds(&Condition::Public, now) == Some(false);
            let is_over =
                since.is_some_and(|since| Millis(FIRST + since * days(1).0) < now - policy.after);
            match is_taken.contains(&room) {
                true => assert!(is_meant && is_over, "{about}: {since:?}"),
                false if !is_meant => assert_eq!(why[&room], WhyNot::NotMeant, "{about}"),
                false if !is_over => assert!(
                    matches!(
                        why[&room],
                        WhyNot::NotYet | WhyNot::NotMeant | WhyNot::UnknownTime
                    ),
                    "{about}: {since:?}"
                ),
                false => assert!(
                    matches!(
                        why[&room],
                        WhyNot::PeopleInIt | WhyNot::SpaceWithPeople | WhyNot::OwnPolicy
                    ),
                    "{about}: {since:?}"
                ),
            }
            if is_taken.contains(&room) && !policy.even_with_members {
                assert_eq!(model.here(), 0, "{about}");
            }
        }
        assert_same(
            &before,
            &site.tables(),
            &format!("{about}: a plan reads only"),
        );
        let Some(job) = run(&keeper, "p") else {
            assert!(is_taken.is_empty(), "{about}");
            assert_same(&before, &site.tables(), &about);
            return 0;
        };
        let did = summary(&job);
        keeper.stop();
        assert_eq!(
            did.rooms_planned as usize,
            is_taken.len(),
            "{about}: {job:?}"
        );
        let after = site.tables();
        let failed: BTreeSet<String> = did.errors.iter().map(|e| e.room_id.to_string()).collect();
        for table in before.0.keys() {
            let of_others = |tables: &Tables| -> Vec<_> {
                let rows = tables.rows(table).iter();
                rows.filter(|r| {
                    r.text("room_id").is_some_and(|room| {
                        !is_taken.contains(room) && rooms(&before).iter().any(|known| known == room)
                    })
                })
                .cloned()
                .collect()
            };
            assert_eq!(of_others(&before), of_others(&after), "{about}: {table}");
        }
        for room in is_taken.iter().filter(|room| !failed.contains(*room)) {
            let events = after.rows("events").iter();
            assert_eq!(
                events.filter(|e| e.text("room_id") == Some(room)).count(),
                0,
                "{about}: {room}"
            );
        }
        did.rooms_done as u64
    });
    assert!(went > 0);
}

/// A room that goes by no policy and stays because of one: what counts before what.
#[test]
fn people_own_policies_at_least_holds_and_unknown_times_keep_a_room() {
    for_each_sample(2, |seed, _| {
        let (site, now) = aged(seed);
        let long = days((now.0 - FIRST) / days(1).0 + 1_000);
        let everything = || policy("all", PolicyStart::LastMessage, days(2));
        let plan = |policies: Vec<ServerPolicy>| {
            let viewer = Viewer::open(with(&site, policies)).expect("opens");
            viewer
                .plan_policies(Some("all"))
                .expect("planned")
                .remove(0)
        };
        let open = plan(vec![everything()]);
        let Some(room) = open.rooms.first().map(|room| room.room_id.to_string()) else {
            return;
        };
        // A policy that keeps rooms at least so long, whatever else it is for.
        let mut keeps = policy("keeps", PolicyStart::LastMessage, long);
        keeps.at_least = Some(long);
        assert_eq!(
            reasons(&plan(vec![everything(), keeps]))[&room],
            WhyNot::AtLeast,
            "{seed}"
        );
        let mut keeps = policy("keeps", PolicyStart::Received, long);
        keeps.at_least = Some(long);
        assert_eq!(
            reasons(&plan(vec![everything(), keeps]))[&room],
            WhyNot::AtLeast,
            "{seed}"
        );
        // An earlier policy takes it first.
        let first = ServerPolicy {
            name: "first".into(),
            ..everything()
        };
        assert_eq!(
            reasons(&plan(vec![first, everything()]))[&room],
            WhyNot::AnotherPolicy,
            "{seed}"
        );
        // Where no stamp can be believed nothing is old.
        let copy = site.copy();
        copy.run(&format!(
            "UPDATE events SET received_ts = NULL, origin_server_ts = {}",
            now.0 + days(9).0
        ));
        let mut config = with(&copy, vec![everything()]);
        config.clock = site.clock.clone();
        let unknown = Viewer::open(config)
            .expect("opens")
            .plan_policies(None)
            .expect("planned")
            .remove(0);
        assert!(!taken(&unknown).contains(&room), "{seed}");
        // A hold, and nothing of it goes.
        let keeper = Keeper::open(with(&site, vec![everything()])).expect("opens");
        keeper
            .add_hold(roomkeeper::hold::Hold {
                name: "h".into(),
                rooms: vec![room.as_str().into()],
                reason: "a matter".into(),
                ..roomkeeper::hold::Hold::default()
            })
            .expect("laid");
        let held = keeper.plan_policies(None).expect("planned").remove(0);
        assert_eq!(reasons(&held)[&room], WhyNot::Held, "{seed}");
        let before = site.tables();
        run(&keeper, "all");
        keeper.stop();
        let of = |tables: &Tables| -> Vec<_> {
            let rows = tables.rows("events").iter();
            rows.filter(|r| r.text("room_id") == Some(&room))
                .cloned()
                .collect()
        };
        assert_eq!(of(&before), of(&site.tables()), "{seed}");
    });
}

/// The period counts from when we first saw it, never from before.
#[test]
fn who_forgot_a_room_is_known_from_when_it_was_seen() {
    let went = count_in_samples(4, |seed, _| {
        let (site, _) = aged(seed);
        let mut forgets = policy("f", PolicyStart::LastForget, days(7));
        forgets.override_rooms = true;
        let keeper = Keeper::open(with(&site, vec![forgets])).expect("opens");
        let plan = || keeper.plan_policies(None).expect("planned").remove(0);
        let first = plan();
        assert_eq!(taken(&first), BTreeSet::new(), "{seed}: seen just now");
        let forgotten: Vec<_> = first
            .left_alone
            .iter()
            .filter(|left| left.reason == WhyNot::NotYet)
            .collect();
        site.clock.advance(days(6));
        assert_eq!(taken(&plan()), BTreeSet::new(), "{seed}");
        assert!(run(&keeper, "f").is_none());
        site.clock.advance(days(2));
        assert_eq!(taken(&plan()).len(), forgotten.len(), "{seed}");
        let done = run(&keeper, "f").map_or(0, |job| summary(&job).rooms_done);
        assert_eq!(done as usize, forgotten.len(), "{seed}");
        keeper.stop();
        done as u64
    });
    assert!(went > 0);
}

/// Who comes back, leaves and forgets again between two looks forgot it then, and not when it was first seen.
#[test]
fn who_forgot_a_room_again_forgot_it_then() {
    let kept = count_in_samples(4, |seed, _| {
        let (site, now) = aged(seed);
        let mut forgets = policy("f", PolicyStart::LastForget, days(7));
        forgets.override_rooms = true;
        let keeper = Keeper::open(with(&site, vec![forgets])).expect("opens");
        let plan = || keeper.plan_policies(None).expect("planned").remove(0);
        let forgotten = reasons(&plan());
        let forgotten = forgotten
            .iter()
            .filter(|(_, why)| **why == WhyNot::NotYet)
            .map(|(room, _)| room.clone());
        let Some(room) = forgotten.into_iter().next() else {
            return 0;
        };
        // They left once more, on the sixth day, with the last event of the server.
        let newest = site.number("SELECT max(stream_ordering) FROM events");
        let at = (now + days(6)).0;
        site.run(&format!(
            "UPDATE events SET received_ts = {at}, origin_server_ts = {at} WHERE stream_ordering = {newest};
             UPDATE local_current_membership SET event_stream_ordering = {newest} WHERE room_id = '{room}'"
        ));
        site.clock.advance(days(8));
        assert!(!taken(&plan()).contains(&room), "{seed}: {room}");
        site.clock.advance(days(6));
        assert!(taken(&plan()).contains(&room), "{seed}: {room}");
        keeper.stop();
        1
    });
    assert!(kept > 0);
}

/// A room whose last messages a purge took is no older for it.
#[test]
fn a_purge_makes_no_room_older() {
    let purged = count_in_samples(6, |seed, rng| {
        let (site, now) = aged(seed);
        let newest = (now.0 - FIRST) / days(1).0;
        let mut inactive = policy("p", PolicyStart::LastMessage, days(2));
        inactive.override_rooms = true;
        inactive.even_with_members = true;
        inactive.after = days(rng.random_range(2..newest.max(3)));
        let plan = |inactive: &ServerPolicy| {
            let viewer = Viewer::open(with(&site, vec![inactive.clone()])).expect("opens");
            taken(&viewer.plan_policies(None).expect("planned").remove(0))
        };
        let before = plan(&inactive);
        let mut messages = policy(
            "m",
            PolicyStart::Received,
            days(rng.random_range(1..newest.max(3))),
        );
        messages.override_rooms = true;
        let keeper = Keeper::open(with(&site, vec![messages])).expect("opens");
        let went = run(&keeper, "m").map_or(0, |job| summary(&job).rooms_done);
        keeper.stop();
        // Of messages of other servers alone, as Synapse's own purge does unless it is told otherwise.
        let keeper = Keeper::open(site.config()).expect("opens");
        for room in rooms(&site.tables()) {
            let options = roomkeeper::PurgeOptions {
                delete_local_events: false,
                ..roomkeeper::PurgeOptions::default()
            };
            let before = now - days(rng.random_range(1..newest.max(3)));
            let point = roomkeeper::PurgePoint::BeforeTs(before);
            if let Ok(id) = keeper.purge_history(&RoomId::from(room.as_str()), &point, options) {
                let _ = keeper.wait(&id);
            }
        }
        keeper.stop();
        let after = plan(&inactive);
        assert!(
            after.is_subset(&before),
            "{seed}: {:?} {inactive:?}",
            after.difference(&before).collect::<Vec<_>>()
        );
        went as u64
    });
    assert!(purged > 0);
}

/// A policy that was taken away, or that waits longer by now, takes nothing of what an earlier process chose.
#[test]
fn what_was_chosen_by_a_policy_that_is_another_now_stays() {
    let stayed = count_in_samples(4, |seed, rng| {
        let (site, now) = aged(seed);
        let everything = policy("p", PolicyStart::LastMessage, days(2));
        let keeper = Keeper::open(with(&site, vec![everything.clone()])).expect("opens");
        let planned = keeper.plan_policies(None).expect("planned").remove(0);
        keeper.stop();
        let rooms: Vec<(RoomId, i64)> = planned
            .rooms
            .into_iter()
            .map(|room| (room.room_id, room.events))
            .collect();
        // As a process leaves it that ends before the first room.
        let mut record = JobRecord::new("room_set", &Subject::Rooms("the policy p".into()), now);
        record.params = serde_json::json!({
            "action": "delete_room", "request": {}, "selectors": {}, "rooms": rooms.len(), "decided_ms": now, "policy": "p",
        });
        let ledger = Ledger::open(&site.config().ledger).expect("opens");
        ledger.insert(&record).expect("noted");
        ledger.insert_room_set(&record.id, &rooms).expect("noted");
        drop(ledger);
        let id = record.id;
        let before = site.tables();
        let policies = match rng.random() {
            true => Vec::new(),
            false => vec![ServerPolicy {
                after: now,
                ..everything
            }],
        };
        let mut config = with(&site, policies);
        config.resume = true;
        let keeper = Keeper::open(config).expect("opens again");
        let _ = keeper.wait(&id);
        let job = keeper.job(&id).expect("read").expect("on record");
        keeper.stop();
        assert_eq!(job.state, State::Complete, "{seed}: {job:?}");
        let did = summary(&job);
        assert_eq!(
            (did.rooms_done, did.rooms_skipped),
            (0, did.rooms_planned),
            "{seed}"
        );
        assert_same(&before, &site.tables(), &format!("{seed}"));
        did.rooms_planned as u64
    });
    assert!(stayed > 0);
}

/// Messages go by age in rooms without a policy of their own, by the same cut as retention's, and no other.
#[test]
fn messages_go_by_age_and_what_has_not_expired_stays() {
    let went = count_in_samples(6, |seed, rng| {
        let (site, now) = aged(seed);
        let newest = (now.0 - FIRST) / days(1).0;
        let policy = policy(
            "m",
            PolicyStart::Received,
            days(rng.random_range(2..newest.max(3))),
        );
        let about = format!("{seed}: {policy:?}");
        site.run("DELETE FROM current_state_events WHERE type = 'm.room.retention'");
        let before = site.tables();
        let single = site.copy();
        let mut config = single.config();
        config.clock = site.clock.clone();
        config.retention.default_policy.max_lifetime = Some(policy.after);
        let keeper = Keeper::open(config).expect("opens");
        let all = roomkeeper::policy::LifetimeRange::default();
        let by_default = keeper.plan_retention(all, false).expect("planned");
        let id = keeper
            .purge_history_for_rooms_in_range(None, None)
            .expect("started");
        let _ = keeper.wait(&id);
        keeper.stop();
        let keeper = Keeper::open(with(&site, vec![policy.clone()])).expect("opens");
        let plan = keeper.plan_policies(None).expect("planned").remove(0);
        let job = run(&keeper, "m");
        keeper.stop();
        let after = site.tables();
        let ids = |tables: &Tables| -> BTreeSet<String> {
            tables
                .rows("events")
                .iter()
                .map(|e| e.word("event_id").to_owned())
                .collect()
        };
        let (is_taken, left) = (taken(&plan), ids(&after));
        for event in before
            .rows("events")
            .iter()
            .filter(|e| !left.contains(e.word("event_id")))
        {
            assert!(is_taken.contains(event.word("room_id")), "{about}");
            assert!(
                Millis(event.number("received_ts")) < now - policy.after,
                "{about}"
            );
        }
        // It is what retention does where the server's default says the same.
        assert_eq!(plan.events, by_default.events, "{about}");
        let numbers = ["sqlite_sequence", "sqlite_stat1", "sqlite_stat4"];
        assert_same(
            &single.tables().without(&numbers),
            &after.clone().without(&numbers),
            &format!("{about}: {job:?}"),
        );
        (before.rows("events").len() - after.rows("events").len()) as u64
    });
    assert!(went > 0);
}

#[test]
fn a_clock_that_is_ahead_deletes_nothing_and_a_name_that_is_none_is_told() {
    let (site, _) = aged(1);
    let mut config = with(&site, vec![policy("p", PolicyStart::LastMessage, days(2))]);
    config.check_clock = true;
    let before = site.tables();
    site.clock.set_adrift();
    site.clock.advance(days(400));
    let keeper = Keeper::open(config).expect("opens");
    let refused = keeper.run_policy("p").expect_err("refused");
    assert!(matches!(refused, Error::Refused(_)), "{refused}");
    let unknown = keeper.run_policy("q").expect_err("refused").to_string();
    assert!(
        unknown.contains("there is no policy q; there are p"),
        "{unknown}"
    );
    keeper.stop();
    assert_same(&before, &site.tables(), "nothing went");
}

/// Beside a homeserver that runs nobody is moved out by us, and what cannot be done is told room by room, with no row touched.
#[test]
fn beside_a_homeserver_a_room_goes_whole_or_stays_whole() {
    let stayed = count_in_samples(4, |seed, _| {
        let (site, _) = aged(seed);
        let mut everything = policy("p", PolicyStart::LastMessage, days(2));
        everything.override_rooms = true;
        everything.even_with_members = true;
        let before = site.tables();
        let mut config = with(&site, vec![everything]);
        config.homeserver = HomeserverPolicy::AssumeRunning;
        let keeper = Keeper::open(config).expect("opens");
        let planned = taken(&keeper.plan_policies(None).expect("planned").remove(0));
        let Some(job) = run(&keeper, "p") else {
            return 0;
        };
        keeper.stop();
        let did = summary(&job);
        let events = |tables: &Tables, room: &str| {
            let rows = tables.rows("events").iter();
            rows.filter(|r| r.text("room_id") == Some(room)).count()
        };
        let after = site.tables();
        let failed: BTreeSet<String> = did.errors.iter().map(|e| e.room_id.to_string()).collect();
        let mut kept = 0;
        for room in rooms(&before) {
            let goes = planned.contains(&room) && !failed.contains(&room);
            let left = events(&after, &room);
            match goes {
                true => assert_eq!(left, 0, "{seed}: {room}"),
                false => assert_eq!(left, events(&before, &room), "{seed}: {room}"),
            }
            let people = Model::new(&before, &site.server_name, &room).here();
            assert!(people == 0 || !goes, "{seed}: {room}: {job:?}");
            kept += u64::from(planned.contains(&room) && !goes);
        }
        kept
    });
    assert!(stayed > 0);
}

/// Once a day, and one interval after the start like retention.
#[test]
fn policies_are_carried_out_once_a_day() {
    let went = count_in_samples(2, |seed, _| {
        let (site, _) = aged(seed);
        let mut everything = policy("p", PolicyStart::LastMessage, days(2));
        everything.override_rooms = true;
        let mut config = with(&site, vec![everything]);
        config.retention_jobs = true;
        config.check_clock = false;
        let keeper = Keeper::open(config).expect("opens");
        assert!(keeper.tick_retention().expect("looked").is_empty());
        let planned = keeper.plan_policies(None).expect("planned").remove(0);
        site.clock.advance(days(1));
        let ran = keeper.tick_retention().expect("looked");
        let done = ran.first().map_or(0, |id| {
            summary(&keeper.job(id).expect("read").expect("on record")).rooms_planned
        });
        assert!(done as usize >= planned.rooms.len(), "{seed}");
        assert!(
            keeper.tick_retention().expect("looked").is_empty(),
            "{seed}"
        );
        keeper.stop();
        done as u64
    });
    assert!(went > 0);
}

crate::also_on_postgres!(
    a_policy_takes_the_rooms_of_a_plain_model_and_no_row_of_any_other,
    people_own_policies_at_least_holds_and_unknown_times_keep_a_room,
    who_forgot_a_room_is_known_from_when_it_was_seen,
    who_forgot_a_room_again_forgot_it_then,
    messages_go_by_age_and_what_has_not_expired_stays,
);
