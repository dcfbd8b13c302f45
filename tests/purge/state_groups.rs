//! State groups that nothing refers to, where a database is not as it should be: circles, mappings without event, groups
//! in use by a homeserver that died, another program's notes. What remains resolves as before.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::draft::{Draft, Event};
use crate::support::engine::{Engine, current};
use crate::support::groups::State;
use crate::support::state_model::Graph;
use crate::support::tables::{Tables, row};
use crate::support::work::{Ask, NOW, Site, progress_of};
use roomkeeper::config::HomeserverPolicy;
use roomkeeper::job::Progress;
use roomkeeper::{Config, Keeper, Millis, RoomId};

const ROOM: &str = "!room:example.org";
const OTHER: &str = "!other:example.org";
const ANN: &str = "@ann:example.org";

/// Topics below the point: each leaves a group that nothing refers to once it is purged.
const TOPICS: i64 = 6;

/// A room whose topic changes at depths 3 and on, with a message last; and another room beside it.
fn chatter() -> Site {
    let mut draft = Draft::new("example.org", 1);
    draft.groups.full_one_in = 0;
    draft.open_room(ROOM, "a", ANN, 2);
    draft.open_room(OTHER, "b", ANN, 1_000);
    let mut before = "$a-join".to_owned();
    for depth in 3..3 + TOPICS {
        let id = format!("$t{depth}");
        let topic = Event::message(&id, ROOM, ANN, depth, depth + 1).state("m.room.topic", "");
        draft.add(topic.after(&[&before]));
        before = id;
    }
    draft.add(
        Event::message("$name", ROOM, ANN, 19, 19)
            .state("m.room.name", "")
            .after(&[&before]),
    );
    draft.add(Event::message("$last", ROOM, ANN, 20, 20).after(&["$name"]));
    Site::of(draft)
}

/// All but the name and the last message.
fn ask() -> Ask {
    Ask::all_of(ROOM, 19)
}

fn group_of(tables: &Tables, event: &str) -> i64 {
    let mappings = tables.rows("event_to_state_groups").iter();
    mappings
        .filter(|m| m.word("event_id") == event)
        .map(|m| m.number("state_group"))
        .next()
        .expect("it has a group")
}

fn groups(tables: &Tables) -> BTreeSet<i64> {
    let groups = tables.rows("state_groups").iter();
    groups.map(|g| g.number("id")).collect()
}

/// The state after every event of the timeline that is held.
fn states(tables: &Tables) -> BTreeMap<String, State> {
    let held: BTreeSet<&str> = tables
        .rows("events")
        .iter()
        .filter(|e| !e.is("outlier"))
        .map(|e| e.word("event_id"))
        .collect();
    let mut states = Graph::of_events(tables);
    states.retain(|event, _| held.contains(event.as_str()));
    states
}

/// Events that are left have the state they had.
#[track_caller]
fn assert_states_kept(before: &Tables, after: &Tables) {
    let (before, after) = (states(before), states(after));
    assert!(!after.is_empty());
    for (event, state) in &after {
        assert_eq!(&before[event], state, "{event}");
    }
}

fn pending(tables: &Tables) -> BTreeSet<i64> {
    let rows = tables.rows("state_groups_pending_deletion").iter();
    rows.map(|g| g.number("state_group")).collect()
}

/// Only these rules are broken.
#[track_caller]
fn assert_sound_but_for(site: &Site, rules: &[&str]) {
    let found = roomkeeper::keeper::check_offline(&site.config(), |_, _| ()).expect("checked");
    let others: Vec<_> = found.iter().filter(|v| !rules.contains(&v.rule)).collect();
    assert!(others.is_empty(), "{others:#?}");
}

fn purge(site: &Site) -> Progress {
    site.purge(&ask()).expect("purged")
}

/// Ways of going about it.
type Way = fn(&Site) -> Config;

const WAYS: [(&str, Way); 2] = [
    ("offline", |site| site.config()),
    ("beside", |site| site.beside(100, 60_000)),
];

/// P-54: nobody can say what hangs on what.
#[test]
fn a_circle_of_groups_is_left_alone_and_named() {
    for (name, way) in WAYS {
        let site = chatter();
        let tables = site.tables();
        let (first, third, sixth) = (
            group_of(&tables, "$t3"),
            group_of(&tables, "$t5"),
            group_of(&tables, "$t8"),
        );
        // The first topic's group rests on the third's.
        site.run(&format!(
            "UPDATE state_group_edges SET prev_state_group = {third} WHERE state_group = {first}"
        ));
        let before = site.tables();
        let done = site.purge_with(way(&site), &ask()).expect("purged");
        let after = site.tables();
        assert_states_kept(&before, &after);
        let circle: BTreeSet<i64> = (first..=third).collect();
        assert!(circle.is_subset(&groups(&after)), "{name}");
        assert!(circle.is_disjoint(&pending(&after)), "{name}");
        let named = |note: &&String| note.contains("circle") && note.contains(&first.to_string());
        assert_eq!(
            done.notes.iter().filter(named).count(),
            1,
            "{name}: {:?}",
            done.notes
        );
        // What rests on a circle is not told apart from it.
        assert!(groups(&after).contains(&sixth), "{name}");
        assert_sound_but_for(&site, &["I-8"]);
        let again = site.purge_with(way(&site), &ask()).expect("purged again");
        assert_eq!(again.rows_removed.len(), 0, "{name}: {again:?}");
    }
}

/// A group on two others: which of them counts is not for us to say.
#[test]
fn a_group_with_two_bases_is_left_alone_and_named() {
    let site = chatter();
    let tables = site.tables();
    let (doubled, other) = (group_of(&tables, "$t5"), group_of(&tables, "$a-create"));
    site.insert(
        "state_group_edges",
        &row([
            ("state_group", doubled.into()),
            ("prev_state_group", other.into()),
        ]),
    );
    let before = site.tables();
    let done = purge(&site);
    let after = site.tables();
    assert_states_kept(&before, &after);
    assert!(groups(&after).contains(&doubled));
    assert!(
        done.notes
            .iter()
            .any(|n| n.contains(&doubled.to_string()) && n.contains("more than one")),
        "{:?}",
        done.notes
    );
}

/// The same, and nothing is left when the room itself goes.
#[test]
fn a_deleted_room_takes_its_circles_with_it() {
    for (name, way) in WAYS {
        let site = chatter();
        let tables = site.tables();
        let (first, third) = (group_of(&tables, "$t3"), group_of(&tables, "$t5"));
        site.run(&format!(
            "UPDATE state_group_edges SET prev_state_group = {third} WHERE state_group = {first}"
        ));
        delete(way(&site), ROOM);
        assert_no_state_of(&site.tables(), ROOM, name);
        site.assert_sound(name);
    }
}

fn delete(config: Config, room: &str) -> Progress {
    let keeper = Keeper::open(config).expect("opens");
    let done = keeper.purge_room(&RoomId::new(room), true);
    keeper.stop();
    progress_of(&done.expect("deleted"))
}

#[track_caller]
fn assert_no_state_of(tables: &Tables, room: &str, about: &str) {
    for table in ["state_groups", "state_groups_state"] {
        let rows = tables.rows(table).iter();
        let left = rows.filter(|g| g.text("room_id") == Some(room)).count();
        assert_eq!(left, 0, "{about}: rows of {table}");
    }
    let held = groups(tables);
    for edge in tables.rows("state_group_edges") {
        let ends = [edge.number("state_group"), edge.number("prev_state_group")];
        assert!(ends.iter().all(|end| held.contains(end)), "{about}");
    }
    for mapping in tables.rows("event_to_state_groups") {
        let group = mapping.number("state_group");
        assert!(held.contains(&group), "{about}: {mapping:?}");
    }
}

/// P-54, E-17: a mapping whose event is not held is no reason to keep a group.
#[test]
fn a_mapping_without_its_event_keeps_no_group() {
    for (name, way) in WAYS {
        let site = chatter();
        let group = group_of(&site.tables(), "$t5");
        let ghost = row([("event_id", "$ghost".into()), ("state_group", group.into())]);
        site.insert("event_to_state_groups", &ghost);
        let deleted = site.copy();
        let before = site.tables();
        site.purge_with(way(&site), &ask()).expect("purged");
        let after = site.tables();
        assert_states_kept(&before, &after);
        if name == "offline" {
            assert!(!groups(&after).contains(&group), "{name}");
        } else {
            assert!(pending(&after).contains(&group), "{name}");
        }
        let mappings = after.rows("event_to_state_groups");
        let is_left = mappings.iter().any(|m| m.word("event_id") == "$ghost");
        assert!(!is_left, "{name}: the homeserver would count it");
        site.assert_sound(name);
        delete(way(&deleted), ROOM);
        assert_no_state_of(&deleted.tables(), ROOM, name);
        deleted.assert_sound(name);
    }
}

/// A mapping of a held event is, whatever room it is of.
#[test]
fn a_mapping_of_an_event_that_is_held_keeps_its_group() {
    let site = chatter();
    let group = group_of(&site.tables(), "$t5");
    site.run(&format!(
        "UPDATE event_to_state_groups SET state_group = {group} WHERE event_id = '$b-join'"
    ));
    let before = site.tables();
    purge(&site);
    let after = site.tables();
    assert_states_kept(&before, &after);
    assert!(groups(&after).contains(&group));
}

/// E-17: the other room's group gets its whole state first.
#[test]
fn a_group_of_another_room_does_not_keep_a_deleted_rooms_state() {
    type Way = fn(&Site) -> Config;
    let ways: [(&str, Way); 4] = [
        ("at once", |site| site.config()),
        ("in batches", |site| site.in_batches_of(1)),
        ("beside", |site| site.beside(100, 60_000)),
        ("beside, in batches", |site| site.beside(1, 60_000)),
    ];
    for (name, way) in ways {
        let site = chatter();
        let tables = site.tables();
        let (theirs, ours) = (group_of(&tables, "$b-create"), group_of(&tables, "$t5"));
        // Theirs rests on ours, as a wrong compression once left them.
        site.run(&format!(
            "DELETE FROM state_group_edges WHERE state_group = {theirs}"
        ));
        site.insert(
            "state_group_edges",
            &row([
                ("state_group", theirs.into()),
                ("prev_state_group", ours.into()),
            ]),
        );
        let before = site.tables();
        let kept = states(&before)["$b-join"].clone();
        assert!(kept.len() > 2, "{name}: it has our topic");
        let mut deleted = before.clone();
        deleted.retain("events", |e| e.word("room_id") == OTHER);
        delete(way(&site), ROOM);
        let after = site.tables();
        assert_no_state_of(&after, ROOM, name);
        assert_eq!(states(&after), states(&deleted), "{name}");
        assert_sound_but_for(&site, &["I-10"]);
    }
}

/// P-54: what a homeserver is storing an event with stays, and is not forgotten.
#[test]
fn groups_that_were_in_use_go_with_the_next_purge() {
    let site = chatter();
    let group = group_of(&site.tables(), "$t5");
    let held = row([
        ("state_group", group.into()),
        ("instance_name", "master".into()),
        ("inserted_ts", NOW.0.into()),
    ]);
    site.insert("state_groups_persisting", &held);
    purge(&site);
    let after = site.tables();
    assert!(groups(&after).contains(&group));
    site.run("DELETE FROM state_groups_persisting");
    purge(&site);
    let last = site.tables();
    assert!(!groups(&last).contains(&group));
    assert_states_kept(&after, &last);
    site.assert_sound("what was skipped has gone");
}

/// A row of a homeserver that died a week ago protects nothing; a younger one does.
#[test]
fn a_row_of_a_group_in_use_is_stale_after_seven_days() {
    let week = 7 * 24 * 60 * 60 * 1_000;
    for (age, is_stale) in [(week + 1, true), (week - 1_000, false), (-week, false)] {
        let site = chatter();
        let group = group_of(&site.tables(), "$t5");
        let held = row([
            ("state_group", group.into()),
            ("instance_name", "master".into()),
            ("inserted_ts", (NOW.0 - age).into()),
        ]);
        site.insert("state_groups_persisting", &held);
        purge(&site);
        let after = site.tables();
        assert_eq!(!groups(&after).contains(&group), is_stale, "{age}");
        let rows = after.rows("state_groups_persisting").len();
        assert_eq!(rows == 0, is_stale, "{age}: the row goes with its group");
    }
}

/// Without a time in the row, seven days count from when we first saw it.
#[test]
fn a_row_without_a_time_is_stale_when_it_was_seen_for_seven_days() {
    for drops_column in [false, true] {
        let site = chatter();
        let group = group_of(&site.tables(), "$t5");
        if drops_column {
            site.run("ALTER TABLE state_groups_persisting DROP COLUMN inserted_ts");
        }
        let held = row([
            ("state_group", group.into()),
            ("instance_name", "master".into()),
        ]);
        site.insert("state_groups_persisting", &held);
        purge(&site);
        assert!(groups(&site.tables()).contains(&group));
        let week = 7 * 24 * 60 * 60 * 1_000;
        site.clock.advance(Millis(week - 1_000));
        purge(&site);
        assert!(groups(&site.tables()).contains(&group));
        site.clock.advance(Millis(2_000));
        purge(&site);
        assert!(!groups(&site.tables()).contains(&group));
        site.assert_sound("stale");
    }
}

/// Another program's notes of what it has compressed: it cannot go on from a group that is gone.
#[test]
fn the_compressors_notes_of_a_room_go_with_the_groups_that_they_name() {
    for (name, way) in WAYS {
        let site = chatter();
        let tables = site.tables();
        let (gone, stays) = (group_of(&tables, "$t5"), group_of(&tables, "$last"));
        let theirs = group_of(&tables, "$b-join");
        site.run(&format!(
            "CREATE TABLE state_compressor_state (room_id TEXT NOT NULL, level_num INT NOT NULL, max_size INT NOT NULL,
                 current_length INT NOT NULL, current_head BIGINT, UNIQUE (room_id, level_num));
             CREATE TABLE state_compressor_progress (room_id TEXT PRIMARY KEY, last_compressed BIGINT NOT NULL);
             INSERT INTO state_compressor_state VALUES ('{ROOM}', 1, 100, 3, {gone}), ('{ROOM}', 2, 50, 1, {stays}),
                 ('{OTHER}', 1, 100, 2, {theirs});
             INSERT INTO state_compressor_progress VALUES ('{ROOM}', {gone}), ('{OTHER}', {theirs})"
        ));
        let deleted = site.copy();
        let rooms = |tables: &Tables, table: &str| -> BTreeSet<String> {
            let rows = tables.rows(table).iter();
            rows.map(|r| r.word("room_id").to_owned()).collect()
        };
        let assert_only_the_other = |tables: &Tables| {
            for table in ["state_compressor_state", "state_compressor_progress"] {
                assert_eq!(
                    rooms(tables, table),
                    BTreeSet::from([OTHER.to_owned()]),
                    "{name}: {table}"
                );
            }
        };
        let unchanged = site.tables();
        site.purge_with(way(&site), &Ask::all_of(ROOM, 2))
            .expect("nothing goes");
        assert_eq!(
            rooms(&unchanged, "state_compressor_state"),
            rooms(&site.tables(), "state_compressor_state"),
            "{name}: the group is there"
        );
        site.purge_with(way(&site), &ask()).expect("purged");
        assert_only_the_other(&site.tables());
        delete(way(&deleted), ROOM);
        assert_only_the_other(&deleted.tables());
    }
}

/// Synapse's own purge leaves such notes: the next purge of ours takes them away.
#[test]
fn the_compressors_notes_of_groups_that_are_gone_go_too() {
    let site = chatter();
    site.run(&format!(
        "CREATE TABLE state_compressor_state (room_id TEXT NOT NULL, level_num INT NOT NULL, max_size INT NOT NULL,
             current_length INT NOT NULL, current_head BIGINT, UNIQUE (room_id, level_num));
         CREATE TABLE state_compressor_progress (room_id TEXT PRIMARY KEY, last_compressed BIGINT NOT NULL);
         INSERT INTO state_compressor_state VALUES ('{ROOM}', 1, 100, 3, 987654);
         INSERT INTO state_compressor_progress VALUES ('{ROOM}', 987654)"
    ));
    purge(&site);
    let after = site.tables();
    assert_eq!(after.rows("state_compressor_state").len(), 0);
    assert_eq!(after.rows("state_compressor_progress").len(), 0);
}

/// P-54: "is a homeserver running?" is asked again after the last batch.
#[test]
fn a_homeserver_that_starts_after_the_events_went_is_left_its_groups() {
    let site = chatter();
    let lock = format!(
        "INSERT INTO worker_read_write_locks (lock_name, lock_key, instance_name, write_lock, token, last_renewed_ts)
         VALUES ('x', 'y', 'master', FALSE, 'z', {}) ON CONFLICT DO NOTHING",
        NOW.0
    );
    // Its first sign of life comes with the first event that goes.
    match current() {
        Engine::Sqlite => site.run(&format!(
            "CREATE TRIGGER arrives AFTER DELETE ON event_to_state_groups BEGIN {}; END",
            lock.replace(" ON CONFLICT DO NOTHING", "")
                .replace("INSERT INTO", "INSERT OR IGNORE INTO")
        )),
        Engine::Postgres => site.run(&format!(
            "CREATE FUNCTION arrives() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {lock}; RETURN NULL; END $$;
             CREATE TRIGGER arrives AFTER DELETE ON event_to_state_groups FOR EACH STATEMENT EXECUTE FUNCTION arrives()"
        )),
    }
    let before = site.tables();
    let mut config = site.config();
    config.homeserver = HomeserverPolicy::RequireStopped;
    let done = site.purge_with(config, &ask()).expect("purged");
    let after = site.tables();
    assert!(done.events_deleted == 0 && done.rows_removed.contains_key("event_to_state_groups"));
    assert_eq!(
        groups(&before),
        groups(&after),
        "it may be using any of them"
    );
    let expected = group_of(&before, "$t5");
    assert!(
        pending(&after).contains(&expected),
        "they are marked instead"
    );
    assert!(
        done.notes.iter().any(|n| n.contains("homeserver")),
        "{:?}",
        done.notes
    );
    assert_eq!(done.state_groups_freed, 0);
    assert_states_kept(&before, &after);
}

/// Where two mark the same group at the same moment, one of them finds it marked.
#[cfg(feature = "postgres")]
#[test]
fn marking_what_the_homeserver_marks_at_the_same_moment_is_no_failure() {
    crate::support::engine::run(Engine::Postgres, || {
        let site = chatter();
        let group = group_of(&site.tables(), "$t5");
        let server = site.on_server.as_ref().expect("a server");
        let mut homeserver = server.client();
        homeserver
            .batch_execute(&format!(
                "BEGIN; INSERT INTO state_groups_pending_deletion (state_group, insertion_ts) VALUES ({group}, 1)"
            ))
            .expect("marked");
        let config = site.beside(100, 60_000);
        let done = std::thread::scope(|scope| {
            let purge = scope.spawn(|| {
                let keeper = Keeper::open(config).expect("opens");
                let ask = ask();
                let room = RoomId::new(ROOM);
                let id = keeper.purge_history(&room, ask.point(), ask.options());
                let outcome = keeper.wait(&id.expect("queued"));
                keeper.stop();
                outcome
            });
            let mut watching = server.client();
            let is_waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
                               AND datname = current_database()";
            let begun = std::time::Instant::now();
            loop {
                let waiting: i64 = watching.query_one(is_waiting, &[]).expect("asked").get(0);
                if waiting > 0 {
                    break;
                }
                assert!(begun.elapsed().as_secs() < 60, "nobody came");
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            homeserver.batch_execute("COMMIT").expect("committed");
            purge.join().expect("no panic")
        });
        done.expect("purged");
        assert!(pending(&site.tables()).contains(&group));
    });
}

also_on_postgres!(
    a_circle_of_groups_is_left_alone_and_named,
    a_group_with_two_bases_is_left_alone_and_named,
    a_deleted_room_takes_its_circles_with_it,
    a_mapping_without_its_event_keeps_no_group,
    a_mapping_of_an_event_that_is_held_keeps_its_group,
    a_group_of_another_room_does_not_keep_a_deleted_rooms_state,
    groups_that_were_in_use_go_with_the_next_purge,
    a_row_of_a_group_in_use_is_stale_after_seven_days,
    a_row_without_a_time_is_stale_when_it_was_seen_for_seven_days,
    the_compressors_notes_of_a_room_go_with_the_groups_that_they_name,
    the_compressors_notes_of_groups_that_are_gone_go_too,
    a_homeserver_that_starts_after_the_events_went_is_left_its_groups,
);
