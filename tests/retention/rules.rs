//! R-11 … R-25 on random servers, against the rules read out slowly: sets of rooms, a search over a list, and the plain
//! model of a purge.

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng;
use rand::rngs::StdRng;
use roomkeeper::keeper::Viewer;
use roomkeeper::policy::{LifetimeRange, Policy, Retention};
use roomkeeper::retention::Stays;
use roomkeeper::time::ManualClock;
use roomkeeper::{Config, Keeper, Millis};

use crate::support::arrivals;
use crate::support::draft::FIRST_TS;
use crate::support::model::{self, Refused, Wanted};
use crate::support::rooms::Recipe;
use crate::support::samples::count_in_samples;
use crate::support::tables::{Row, Tables};
use crate::support::work::Site;

/// A room's policy as its row has it.
type Said = (Option<i64>, Option<i64>);

/// Lets some rooms say how long their messages stay: any of their state events will do as the one that says it.
fn say_policies(site: &Site, rng: &mut StdRng) {
    let rooms: Vec<String> = site
        .tables()
        .rows("rooms")
        .iter()
        .map(|r| r.word("room_id").to_owned())
        .collect();
    for room in rooms {
        if rng.random_ratio(1, 4) {
            continue;
        }
        let lifetime = |rng: &mut StdRng| match rng.random_range(0..6) {
            0 => None,
            1 => Some(0),
            _ => Some(rng.random_range(1..120) * 1_000),
        };
        let (min, max) = (lifetime(rng), lifetime(rng));
        let word = |lifetime: Option<i64>| lifetime.map_or("NULL".to_owned(), |ms| ms.to_string());
        let (min, max) = (word(min), word(max));
        // Whatever the sample has of the kind goes; and a row of an event that is not current any more says nothing.
        site.run(&format!(
            "DELETE FROM current_state_events WHERE room_id = '{room}' AND type = 'm.room.retention';
             UPDATE current_state_events SET type = 'm.room.retention', state_key = ''
              WHERE event_id = (SELECT min(event_id) FROM current_state_events WHERE room_id = '{room}');
             INSERT INTO room_retention (room_id, event_id, min_lifetime, max_lifetime)
             SELECT room_id, event_id, {min}, {max} FROM current_state_events
              WHERE room_id = '{room}' AND type = 'm.room.retention';
             INSERT INTO room_retention (room_id, event_id, min_lifetime, max_lifetime)
             VALUES ('{room}', '$former', 1, 1)"
        ));
    }
}

fn any_bound(rng: &mut StdRng) -> Option<Millis> {
    rng.random_ratio(1, 2)
        .then(|| Millis(rng.random_range(1..120) * 1_000))
}

fn any_retention(rng: &mut StdRng) -> (Retention, LifetimeRange) {
    let ends = |a: Option<Millis>, b: Option<Millis>| match (a, b) {
        (Some(a), Some(b)) => (Some(a.min(b)), Some(a.max(b))),
        ends => ends,
    };
    let limits = ends(any_bound(rng), any_bound(rng));
    let retention = Retention {
        default_policy: Policy {
            min_lifetime: None,
            max_lifetime: any_bound(rng),
        },
        allowed_lifetime_min: limits.0,
        allowed_lifetime_max: limits.1,
        short_lifetimes: true,
        ..Retention::default()
    };
    let (shortest, longest) = ends(any_bound(rng), any_bound(rng));
    (retention, LifetimeRange { shortest, longest })
}

/// The rooms a job takes, by with the repairs of; and how long each one's messages stay.
fn taken(tables: &Tables, retention: &Retention, range: &LifetimeRange) -> BTreeMap<String, i64> {
    let current: BTreeSet<(&str, &str)> = tables
        .rows("current_state_events")
        .iter()
        .map(|c| (c.word("room_id"), c.word("event_id")))
        .collect();
    let mut said: BTreeMap<&str, Said> = BTreeMap::new();
    for row in tables.rows("room_retention") {
        let (room, event) = (row.word("room_id"), row.word("event_id"));
        if current.contains(&(room, event)) {
            said.insert(room, (row.int("min_lifetime"), row.int("max_lifetime")));
        }
    }
    let default = retention.default_policy.max_lifetime.map(|ms| ms.0);
    let (min, max) = (range.shortest.map(|ms| ms.0), range.longest.map(|ms| ms.0));
    let include_null = default.is_some_and(|default| {
        min.is_none_or(|min| min < default) && max.is_none_or(|max| max >= default)
    });
    let mut taken = BTreeMap::new();
    for room in current.iter().map(|(room, _)| *room) {
        // nothing and less than nothing are not set.
        let own = said.get(room).and_then(|said| said.1).filter(|ms| *ms > 0);
        let wanted = match own {
            Some(own) if min.is_none_or(|min| own > min) && max.is_none_or(|max| own <= max) => own,
            Some(_) => continue,
            None if include_null => default.expect("it is included"),
            None => continue,
        };
        // min first, then max.
        let mut lifetime = wanted;
        if let Some(least) = retention.allowed_lifetime_min {
            lifetime = lifetime.max(least.0);
        }
        if let Some(most) = retention.allowed_lifetime_max {
            lifetime = lifetime.min(most.0);
        }
        taken.insert(room.to_owned(), lifetime);
    }
    taken
}

///
fn anchor<'a>(tables: &'a Tables, room: &str, expired: &BTreeSet<String>) -> Option<&'a Row> {
    let rejected: BTreeSet<&str> = tables
        .rows("rejections")
        .iter()
        .map(|r| r.word("event_id"))
        .collect();
    tables
        .rows("events")
        .iter()
        .filter(|e| e.word("room_id") == room && expired.contains(e.word("event_id")))
        .filter(|e| !e.is("outlier") && !rejected.contains(e.word("event_id")))
        .max_by_key(|e| e.number("stream_ordering"))
}

/// What of the room stays although one might expect it to go, redactions apart.
fn staying(
    tables: &Tables,
    wanted: &Wanted<'_>,
    anchor: &Row,
    expired: &BTreeSet<String>,
) -> Stays {
    let state: BTreeSet<&str> = tables
        .rows("state_events")
        .iter()
        .map(|s| s.word("event_id"))
        .collect();
    let mut stays = Stays::default();
    let events = tables.rows("events").iter();
    for event in events.filter(|e| e.word("room_id") == wanted.room) {
        let is_below = event.number("topological_ordering") < wanted.below;
        let is_expired = expired.contains(event.word("event_id"));
        if is_below && state.contains(event.word("event_id")) {
            stays.state += 1;
        } else if is_below {
            stays.not_expired += i64::from(!is_expired);
        } else if event.number("stream_ordering") == anchor.number("stream_ordering") {
            stays.anchor = 1;
        } else if !event.is("outlier") {
            stays.at_or_above_the_cut += i64::from(is_expired);
        }
    }
    stays
}

/// Event ids that are held, and whether each is an outlier.
fn held(tables: &Tables) -> BTreeMap<String, bool> {
    let events = tables.rows("events").iter();
    events
        .map(|e| (e.word("event_id").to_owned(), e.is("outlier")))
        .collect()
}

fn config(site: &Site, retention: &Retention, now: Millis) -> Config {
    let mut config = site.config();
    config.retention = retention.clone();
    config.clock = std::sync::Arc::new(ManualClock::at(now));
    config
}

#[test]
fn a_job_takes_the_rooms_it_should_and_of_each_what_it_should() {
    let recipe = Recipe {
        rooms: 3..7,
        events: 5..25,
        may_be_long: false,
    };
    let mut spared = 0;
    let purged = count_in_samples(12, |seed, rng| {
        let mut purged = 0;
        let site = Site::random(seed, &recipe);
        say_policies(&site, rng);
        let (retention, range) = any_retention(rng);
        let before = site.tables();
        let newest = before
            .rows("events")
            .iter()
            .map(|e| e.number("stream_ordering"))
            .max()
            .expect("events");
        let now = Millis(FIRST_TS + newest * 1_000 + rng.random_range(0..60_000));
        let about = format!("seed {seed}, now {}, {retention:?}, {range:?}", now.0);
        let viewer = Viewer::open(config(&site, &retention, now)).expect("opens");
        let plan = viewer.plan_retention(range, true).expect(&about);
        drop(viewer);

        let mut due = BTreeSet::new();
        let mut expected = held(&before);
        let mut refused = 0;
        for (room, lifetime) in taken(&before, &retention, &range) {
            let about = format!("{room}, {about}");
            let ts = now.0 - lifetime;
            let expired = arrivals::expired(&before, ts, now.0);
            let Some(anchor) = anchor(&before, &room, &expired) else {
                continue;
            };
            let wanted = Wanted {
                room: &room,
                below: anchor.number("topological_ordering"),
                delete_local_events: true,
                keep_received_after: Some(ts - 1),
                keep_extremities: false,
                held: &[],
                server_name: &site.server_name,
            };
            let done = match model::purge(&before, &wanted) {
                Ok(done) => done,
                Err(Refused::WouldEmptyRoom) => continue,
                Err(Refused::PartialState(_)) => {
                    refused += 1;
                    due.insert(room);
                    continue;
                }
            };
            if done.deleted.is_empty() && done.outliered.is_empty() {
                // Whether the plan knew that only with a closer look is of no account.
                continue;
            }
            let found = plan.rooms.iter().find(|due| due.room_id.as_str() == room);
            if found.is_none() && done.deleted.is_empty() {
                // All there is below the cut is a redaction that must not go: nothing to purge, and it stays as it is.
                continue;
            }
            let found = found.unwrap_or_else(|| panic!("{about}: not planned"));
            assert_eq!(found.lifetime.lifetime, Millis(lifetime), "{about}");
            assert_eq!(found.cut_off_ms, Millis(ts), "{about}");
            assert_eq!(found.point.topological, wanted.below, "{about}");
            let exact = found.exact.as_ref().expect("asked for");
            let deleted = i64::try_from(done.deleted.len()).expect("few");
            assert_eq!(exact.events, deleted, "{about}");
            // Chains of redactions apart, the quick count is right.
            assert!(found.events >= deleted, "{about}");
            if before.rows("redactions").is_empty() {
                assert_eq!(found.events, deleted, "{about}");
            }
            let stays = staying(&before, &wanted, anchor, &expired);
            assert_eq!(found.stays.state, stays.state, "{about}");
            assert_eq!(found.stays.anchor, stays.anchor, "{about}");
            assert_eq!(
                found.stays.at_or_above_the_cut, stays.at_or_above_the_cut,
                "{about}"
            );
            assert_eq!(found.stays.not_expired, stays.not_expired, "{about}");
            for id in &done.deleted {
                expected.remove(id);
            }
            for id in &done.outliered {
                expected.insert(id.clone(), true);
            }
            purged += 1;
            spared += found.stays.not_expired;
            due.insert(room);
        }
        for room in &plan.rooms {
            let is_more = room.exact.as_ref().is_some_and(|exact| exact.events > 0);
            assert!(
                due.contains(room.room_id.as_str()) || !is_more,
                "{about}: {} is planned",
                room.room_id
            );
        }

        let keeper = Keeper::open(config(&site, &retention, now)).expect("opens");
        let id = keeper
            .purge_history_for_rooms_in_range(range.shortest, range.longest)
            .expect("begun");
        let _ = keeper.wait(&id);
        let run = keeper.job(&id).expect("read").expect("on record");
        keeper.stop();
        assert_eq!(
            run.progress["rooms_failed"], refused,
            "{about}: {}",
            run.progress
        );
        let after = held(&site.tables());
        assert_eq!(after, expected, "{about}");
        purged
    });
    assert!(purged > 0, "no room was ever purged");
    println!("{purged} rooms purged, {spared} messages spared because they are young");
}

also_on_postgres! {
    a_job_takes_the_rooms_it_should_and_of_each_what_it_should,
}
