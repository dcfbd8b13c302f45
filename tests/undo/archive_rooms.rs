//! Rooms that were deleted come back from their archive: as they were, or their history alone where people are in them again.
//!
//! `ROOMKEEPER_SEED=<n>` repeats a failed run, `ROOMKEEPER_CASES=<n>` tries more samples.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::archives::{archiving, restore};
use crate::support::groups::State;
use crate::support::litter::litter;
use crate::support::rooms::Recipe;
use crate::support::samples::{count_in_samples, for_each_sample};
use crate::support::state_model::Graph;
use crate::support::tables::{Row, Tables, Value, assert_same};
use crate::support::work::Site;
use roomkeeper::deletion::Request;
use roomkeeper::keeper;
use roomkeeper::{Config, Error, JobId, Keeper, RoomId};

/// How a deletion goes about it.
fn ways(site: &Site) -> Vec<(&'static str, Config)> {
    vec![
        ("at once", site.config()),
        ("in batches", site.in_batches_of(5)),
        ("beside, at once", site.beside(100_000, 60_000)),
        ("beside, in batches", site.beside(3, 60_000)),
    ]
}

/// Deletes a room with nobody asked; the job's archive.
fn delete(site: &Site, config: Config, room: &str) -> JobId {
    let archive = archiving(site, site.config());
    let before: BTreeSet<_> = jobs(&archive).into_iter().collect();
    let keeper = Keeper::open(archiving(site, config)).expect("opens");
    let request = Request {
        force_purge: true,
        ..Request::default()
    };
    keeper
        .delete_room(&RoomId::new(room), request)
        .expect("deleted");
    keeper.stop();
    let mut new = jobs(&archive)
        .into_iter()
        .filter(|job| !before.contains(job));
    let job = new.next().expect("it has an archive");
    assert_eq!(new.next(), None, "and no other");
    job
}

fn jobs(config: &Config) -> Vec<JobId> {
    let reports = keeper::archives(config, Some(&[])).expect("listed");
    for report in &reports {
        assert!(report.damage.is_empty(), "{:?}", report.damage);
    }
    reports
        .into_iter()
        .filter_map(|report| report.job)
        .collect()
}

/// Without what has no meaning, and what only ever waits for somebody.
fn told(mut tables: Tables) -> Tables {
    for row in tables.rows_mut("event_search_content") {
        row.0.remove("docid");
    }
    tables.sort();
    tables.without(&[
        "state_groups_persisting",
        "state_groups_pending_deletion",
        "sqlite_sequence",
    ])
}

#[test]
fn a_deleted_room_comes_back_as_it_was() {
    for_each_sample(5, |seed, _| {
        let original = Site::random(seed, &Recipe::default());
        let rooms = litter(&original);
        let room = &rooms[seed as usize % rooms.len()];
        let before = original.tables();
        for n in 0..4 {
            let site = original.copy();
            let (way, config) = ways(&site).remove(n);
            let about = format!("seed {seed}, {way}, {room}");
            let sound =
                |site: &Site| keeper::check_offline(&site.config(), |_, _| ()).expect("checked");
            let broken = sound(&site);
            let job = delete(&site, config, room);
            let deleted = site.tables();
            assert!(
                deleted
                    .rows("rooms")
                    .iter()
                    .all(|r| r.word("room_id") != room)
            );
            let plan = restore(&site, &job, true).unwrap_or_else(|e| panic!("{about}: {e}"));
            assert_same(&deleted, &site.tables(), &format!("{about}: a dry run"));
            let done = restore(&site, &job, false).unwrap_or_else(|e| panic!("{about}: {e}"));
            assert_eq!(plan.events, done.events, "{about}");
            let after = site.tables();
            assert_same(&told(before.clone()), &told(after.clone()), &about);
            assert_eq!(broken.len(), sound(&site).len(), "{about}");
            let again = restore(&site, &job, false).unwrap_or_else(|e| panic!("{about}: {e}"));
            assert_eq!((again.events, again.state_groups), (0, 0), "{about}");
            assert_same(&after, &site.tables(), &format!("{about}: again"));
            let keeper = Keeper::open(site.config()).expect("opens");
            let held = keeper.delete_room(&RoomId::new(&**room), Request::default());
            assert!(matches!(held, Err(Error::Held(_))), "{about}: {held:?}");
            keeper.stop();
        }
    });
}

/// Another room takes the numbers of the state groups, of the chains and of the events that went and can be given out again.
fn give_out_again(site: &Site, before: &Tables, elsewhere: &str) {
    let after = site.tables();
    let gone = |table: &str, column: &str| -> Option<i64> {
        let ids = |tables: &Tables| -> BTreeSet<i64> {
            tables
                .rows(table)
                .iter()
                .map(|r| r.number(column))
                .collect()
        };
        ids(before).difference(&ids(&after)).copied().max()
    };
    let mut event = after
        .rows("events")
        .iter()
        .find(|e| e.word("room_id") == elsewhere)
        .expect("a room has events")
        .clone();
    let id = "$given-out-again:elsewhere.example";
    event.set("event_id", id);
    if let Some(order) = gone("events", "stream_ordering") {
        event.set("stream_ordering", order);
        event.set("outlier", true);
        site.insert("events", &event);
    }
    if let Some(group) = gone("state_groups", "id") {
        site.run(&format!(
            "INSERT INTO state_groups (id, room_id, event_id) VALUES ({group}, '{elsewhere}', '{id}');
             INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id)
             VALUES ({group}, '{elsewhere}', 'm.room.topic', '', '{id}')"
        ));
    }
    if let Some(chain) = gone("event_auth_chains", "chain_id") {
        site.run(&format!(
            "INSERT INTO event_auth_chains (event_id, chain_id, sequence_number) VALUES ('{id}', {chain}, 1)"
        ));
    }
}

/// For each event of a room the state, and where it stands in the room's auth graph, told without numbers.
fn graph(tables: &Tables, room: &str) -> BTreeMap<String, (Option<State>, BTreeSet<String>)> {
    let mut states = Graph::of_events(tables);
    let mut chains: BTreeMap<i64, Vec<(i64, &str)>> = BTreeMap::new();
    for row in tables.rows("event_auth_chains") {
        let place = (row.number("sequence_number"), row.word("event_id"));
        chains
            .entry(row.number("chain_id"))
            .or_default()
            .push(place);
    }
    let at = |chain: i64, number: i64| {
        let mut of_chain = chains.get(&chain).into_iter().flatten();
        let found = of_chain.rfind(|(n, _)| *n == number);
        found.map_or("nobody", |(_, id)| *id).to_owned()
    };
    let ids: BTreeSet<String> = {
        let events = tables.rows("events").iter();
        let of_room = events.filter(|e| e.word("room_id") == room);
        of_room.map(|e| e.word("event_id").to_owned()).collect()
    };
    let mut near: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for of_chain in chains.values() {
        for (n, id) in of_chain {
            let before = of_chain.iter().filter(|(m, _)| m < n);
            near.entry((*id).to_owned())
                .or_default()
                .extend(before.map(|(_, id)| (*id).to_owned()));
        }
    }
    for link in tables.rows("event_auth_chain_links") {
        let end = |of: &str| {
            at(
                link.number(&format!("{of}_chain_id")),
                link.number(&format!("{of}_sequence_number")),
            )
        };
        if ids.contains(&end("target")) {
            near.entry(end("origin"))
                .or_default()
                .insert(format!("link to {}", end("target")));
        }
    }
    let events = tables.rows("events").iter();
    events
        .filter(|e| e.word("room_id") == room)
        .map(|e| {
            let id = e.word("event_id").to_owned();
            let told = (states.remove(&id), near.remove(&id).unwrap_or_default());
            (id, told)
        })
        .collect()
}

#[test]
fn numbers_that_were_given_out_again_are_exchanged() {
    let renumbered = count_in_samples(5, |seed, _| {
        let original = Site::random(seed, &Recipe::default());
        let rooms = litter(&original);
        let before = original.tables();
        let room = &rooms[seed as usize % rooms.len()];
        let Some(elsewhere) = rooms.iter().find(|other| *other != room) else {
            return 0;
        };
        let mut renumbered = 0;
        for n in 0..4 {
            let site = original.copy();
            let (way, config) = ways(&site).remove(n);
            let about = format!("seed {seed}, {way}, {room}");
            let job = delete(&site, config, room);
            give_out_again(&site, &before, elsewhere);
            let meanwhile = site.tables();
            let done = restore(&site, &job, false).unwrap_or_else(|e| panic!("{about}: {e}"));
            renumbered += done.renumbered as u64;
            let restored = site.tables();
            let after = graph(&restored, room);
            assert_eq!(graph(&before, room), after, "{about}");
            let states = Graph::of_events(&restored);
            for (event, state) in &Graph::of_events(&meanwhile) {
                assert_eq!(states.get(event), Some(state), "{about}: {event}");
            }
            for table in [
                "events",
                "event_auth_chains",
                "state_groups",
                "state_groups_state",
            ] {
                for row in meanwhile.rows(table) {
                    let stays = restored.rows(table).contains(row);
                    assert!(stays, "{about}: {table} lost {row:?}");
                }
            }
            let again = restore(&site, &job, false).unwrap_or_else(|e| panic!("{about}: {e}"));
            assert_eq!((again.events, again.state_groups), (0, 0), "{about}: again");
            assert_eq!(graph(&site.tables(), room), after, "{about}: again");
        }
        renumbered
    });
    assert!(renumbered > 0, "no sample had numbers to exchange");
}

/// Somebody has joined the room again by way of another server: it has a state and an event of its own, and one of the old
/// state events was fetched for it.
fn join_anew(site: &Site, before: &Tables, room: &str) -> String {
    let of = |table: &str, id: &str| -> Row {
        let mut rows = before.rows(table).iter();
        let found = rows.find(|r| r.text("event_id") == Some(id));
        found.expect("it was there").clone()
    };
    let rows = before.rows("current_state_events").iter();
    let mut current =
        rows.filter(|r| r.word("room_id") == room && r.word("type") == "m.room.create");
    let create = current.next().expect("a room has been made").clone();
    let create_id = create.word("event_id").to_owned();
    let newest = |column: &str| {
        let events = before.rows("events").iter();
        events.map(|e| e.number(column)).max().expect("events")
    };
    let (order, depth) = (newest("stream_ordering") + 5, newest("depth") + 5);
    let mut rows = before.rows("rooms").iter();
    let own = rows
        .find(|r| r.word("room_id") == room)
        .expect("it was there");
    site.insert("rooms", own);
    let mut event = of("events", &create_id);
    event.set("stream_ordering", order);
    site.insert("events", &event);
    site.insert("event_json", &of("event_json", &create_id));
    site.insert("state_events", &of("state_events", &create_id));
    let join = "$joined-anew:elsewhere.example";
    event.set("event_id", join);
    event.set("stream_ordering", order + 1);
    event.set("depth", depth);
    event.set("topological_ordering", depth);
    event.set("type", "m.room.message");
    event.set("state_key", Value::Null);
    site.insert("events", &event);
    let mut json = of("event_json", &create_id);
    json.set("event_id", join);
    site.insert("event_json", &json);
    let mut state = create;
    if matches!(state.get("event_stream_ordering"), Value::Int(_)) {
        state.set("event_stream_ordering", order);
    }
    site.insert("current_state_events", &state);
    let group = before
        .rows("state_groups")
        .iter()
        .map(|g| g.number("id"))
        .max()
        .unwrap_or(0)
        + 9;
    site.run(&format!(
        "INSERT INTO state_groups (id, room_id, event_id) VALUES ({group}, '{room}', '{create_id}');
         INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id)
         VALUES ({group}, '{room}', 'm.room.create', '', '{create_id}');
         INSERT INTO event_to_state_groups (event_id, state_group) VALUES ('{create_id}', {group});
         INSERT INTO event_to_state_groups (event_id, state_group) VALUES ('{join}', {group});
         INSERT INTO event_edges (event_id, prev_event_id, is_state) VALUES ('{join}', '$not-here:elsewhere.example', FALSE);
         INSERT INTO event_backward_extremities (event_id, room_id) VALUES ('$not-here:elsewhere.example', '{room}');
         INSERT INTO room_depth (room_id, min_depth) VALUES ('{room}', {depth});
         INSERT INTO event_forward_extremities (event_id, room_id) VALUES ('{join}', '{room}');"
    ));
    create_id
}

#[test]
fn of_a_room_that_was_joined_anew_the_history_comes_back_and_what_it_is_now_stays() {
    for_each_sample(5, |seed, _| {
        let original = Site::random(seed, &Recipe::default());
        let rooms = litter(&original);
        let before = original.tables();
        let room = &rooms[seed as usize % rooms.len()];
        let has_create = |r: &Row| r.word("room_id") == room && r.word("type") == "m.room.create";
        if !before.rows("current_state_events").iter().any(has_create) {
            return;
        }
        for n in 0..4 {
            let site = original.copy();
            let (way, config) = ways(&site).remove(n);
            let about = format!("seed {seed}, {way}, {room}");
            let job = delete(&site, config, room);
            let create = join_anew(&site, &before, room);
            let meanwhile = site.tables();
            let done = restore(&site, &job, false).unwrap_or_else(|e| panic!("{about}: {e}"));
            assert!(
                done.notes.iter().any(|note| note.contains("joined anew")),
                "{about}"
            );
            let after = site.tables();
            let of_room = |tables: &Tables, table: &str| -> Vec<Row> {
                let rows = tables.rows(table).iter();
                rows.filter(|r| r.text("room_id") == Some(room))
                    .cloned()
                    .collect()
            };
            for table in [
                "rooms",
                "current_state_events",
                "local_current_membership",
                "event_forward_extremities",
                "room_stats_current",
                "room_stats_state",
                "sliding_sync_joined_rooms",
            ] {
                assert_eq!(
                    of_room(&meanwhile, table),
                    of_room(&after, table),
                    "{about}: {table}"
                );
            }
            let events = |tables: &Tables| -> BTreeSet<String> {
                of_room(tables, "events")
                    .iter()
                    .map(|e| e.word("event_id").to_owned())
                    .collect()
            };
            let wanted: BTreeSet<String> = events(&before)
                .union(&events(&meanwhile))
                .cloned()
                .collect();
            assert_eq!(wanted, events(&after), "{about}");
            let (old, now) = (Graph::of_events(&before), Graph::of_events(&after));
            let ids = events(&before);
            for (event, state) in old
                .iter()
                .filter(|(event, _)| ids.contains(*event) && **event != create)
            {
                assert_eq!(now.get(event), Some(state), "{about}: the state of {event}");
            }
            for table in [
                "events",
                "event_json",
                "event_to_state_groups",
                "state_groups",
            ] {
                for row in meanwhile.rows(table) {
                    let stays = after.rows(table).contains(row);
                    assert!(stays, "{about}: {table} lost {row:?}");
                }
            }
            let again = restore(&site, &job, false).unwrap_or_else(|e| panic!("{about}: {e}"));
            assert_eq!((again.events, again.state_groups), (0, 0), "{about}");
            assert_same(&after, &site.tables(), &format!("{about}: again"));
        }
    });
}

also_on_postgres! {
    of_a_room_that_was_joined_anew_the_history_comes_back_and_what_it_is_now_stays,
    numbers_that_were_given_out_again_are_exchanged,
    a_deleted_room_comes_back_as_it_was,
}
