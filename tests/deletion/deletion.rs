//! Rooms that are deleted: what goes, what stays, and that it is the same however it is cut.
//!
//! `ROOMKEEPER_SEED=<n>` repeats a failed run, `ROOMKEEPER_CASES=<n>` tries more samples.

use std::collections::BTreeSet;

use crate::support::litter::litter;
use crate::support::rooms::Recipe;
use crate::support::samples::for_each_sample;
use crate::support::tables::{Row, Tables, assert_same, row};
use roomkeeper::deletion::{Request, Shutdown};
use roomkeeper::{Config, Error, Keeper, Millis, RoomId, UserId};

use crate::support::work::{Site, progress_of};

/// A request that asks nobody.
fn forced() -> Request {
    Request {
        force_purge: true,
        ..Request::default()
    }
}

/// Tables that keep what they say of a deleted room (E-10).
const KEPT: &[&str] = &[
    "blocked_rooms",
    "event_reports",
    "room_reports",
    "current_state_delta_stream",
];

/// The same database without one room, told plainly: by its name, by its events, by its groups.
fn without_room(before: &Tables, room: &str) -> Tables {
    let of = |table: &str, column: &str| -> BTreeSet<String> {
        let rows = before.rows(table).iter();
        rows.filter(|r| r.text("room_id") == Some(room))
            .map(|r| format!("{:?}", r.get(column)))
            .collect()
    };
    let (events, aliases) = (of("events", "event_id"), of("room_aliases", "room_alias"));
    let groups = of("state_groups", "id");
    let all_groups: BTreeSet<String> = before
        .rows("state_groups")
        .iter()
        .map(|g| format!("{:?}", g.get("id")))
        .collect();
    let positions: BTreeSet<(i64, i64)> = before
        .rows("event_auth_chains")
        .iter()
        .filter(|c| events.contains(&format!("{:?}", c.get("event_id"))))
        .map(|c| (c.number("chain_id"), c.number("sequence_number")))
        .collect();
    let mut after = before.clone();
    let names: Vec<String> = after.0.keys().cloned().collect();
    for name in names.iter().filter(|n| !KEPT.contains(&n.as_str())) {
        after.retain(name, |row: &Row| {
            let names = |column: &str, set: &BTreeSet<String>| {
                row.0
                    .get(column)
                    .is_some_and(|value| set.contains(&format!("{value:?}")))
            };
            let of_room = ["room_id", "c1room_id"]
                .iter()
                .any(|column| row.text(column) == Some(room));
            let of_group = names("state_group", &groups) || names("prev_state_group", &groups);
            let of_chain = name == "event_auth_chain_links"
                && positions.contains(&(
                    row.number("origin_chain_id"),
                    row.number("origin_sequence_number"),
                ));
            // P-46.
            let is_orphan =
                name == "state_groups_pending_deletion" && !names("state_group", &all_groups);
            !(of_room
                || names("event_id", &events)
                || names("room_alias", &aliases)
                || of_group
                || of_chain
                || is_orphan)
        });
    }
    after
}

/// Lock rows come and go; the numbers of pending rows are SQLite's own.
fn comparable(tables: Tables) -> Tables {
    tables.without(&["sqlite_sequence", "sqlite_stat1", "sqlite_stat4"])
}

fn delete(config: Config, room: &str, request: Request) -> Result<Shutdown, Error> {
    let keeper = Keeper::open(config)?;
    let outcome = keeper.delete_room(&RoomId::new(room), request);
    keeper.stop();
    outcome
}

#[test]
fn a_deleted_room_leaves_nothing_and_no_other_room_changes() {
    for_each_sample(4, |seed, _| {
        let site = Site::random(seed, &Recipe::default());
        let rooms = litter(&site);
        let before = site.tables();
        let room = &rooms[seed as usize % rooms.len()];
        let expected = comparable(without_room(&before, room));
        type Way = fn(&Site) -> Config;
        let ways: [(&str, Way); 5] = [
            ("at once", |site| site.config()),
            ("in batches", |site| site.in_batches_of(3)),
            ("in batches of one", |site| site.in_batches_of(1)),
            ("beside, at once", |site| site.beside(100_000, 60_000)),
            ("beside, in strides", |site| site.beside(4, 60_000)),
        ];
        for (name, way) in ways {
            let about = format!("seed {seed}, {room}, {name}");
            let copy = site.copy();
            delete(way(&copy), room, forced()).unwrap_or_else(|e| panic!("{about}: {e}"));
            assert_same(&expected, &comparable(copy.tables()), &about);
            copy.assert_sound(&about);
            if name == "at once" {
                // Until then, old copies of rows that SQLite moved may be left in the file.
                roomkeeper::keeper::reclaim(&copy.config()).expect("reclaimed");
                copy.assert_forgotten(&before, &about);
            }
        }
    });
}

/// Without rows that only SQLite is given above: the same on both engines.
#[test]
fn a_room_goes_whole_and_alone() {
    for_each_sample(6, |seed, _| {
        let site = Site::random(seed, &Recipe::default());
        let before = site.tables();
        let room = before.rows("rooms")[0].word("room_id").to_owned();
        let expected = comparable(without_room(&before, &room));
        let viewer = roomkeeper::keeper::Viewer::open(site.config()).expect("opens");
        let plan = viewer.plan_deletion(&RoomId::new(&*room), &forced());
        let plan = plan.expect("planned");
        drop(viewer);
        for batches in [100_000, 3] {
            let about = format!("seed {seed}, in batches of {batches}");
            let copy = site.copy();
            let keeper = Keeper::open(copy.in_batches_of(batches)).expect("opens");
            let done = keeper.purge_room(&RoomId::new(&*room), true);
            let done = done.unwrap_or_else(|e| panic!("{about}: {e}"));
            keeper.stop();
            assert_same(&expected, &comparable(copy.tables()), &about);
            assert_eq!(
                plan.rows_removed,
                progress_of(&done).rows_removed,
                "{about}"
            );
            copy.assert_sound(&about);
        }
    });
}

fn first_room(site: &Site) -> String {
    let rooms = litter(site);
    rooms[0].clone()
}

/// Nobody is in any room any more, as after a shutdown.
fn empty(site: &Site) {
    site.run("DELETE FROM current_state_events; DELETE FROM local_current_membership");
}

#[test]
fn a_dry_run_counts_exactly_the_rows_that_then_go() {
    for_each_sample(6, |seed, _| {
        let site = Site::random(seed, &Recipe::default());
        let room = RoomId::new(first_room(&site));
        let before = site.tables();
        let viewer = roomkeeper::keeper::Viewer::open(site.config()).expect("opens");
        let plan = viewer.plan_deletion(&room, &forced()).expect("planned");
        drop(viewer);
        assert_same(&before, &site.tables(), "a dry run changes nothing");
        for batches in [100_000, 2] {
            let copy = site.copy();
            let keeper = Keeper::open(copy.in_batches_of(batches)).expect("opens");
            let done = keeper.purge_room(&room, true).expect("deleted");
            assert_eq!(
                plan.rows_removed,
                progress_of(&done).rows_removed,
                "seed {seed}"
            );
            keeper.stop();
            let sizes = (before.sizes(), copy.tables().sizes());
            for (table, rows) in &plan.rows_removed {
                if table != "event_search" {
                    assert_eq!(sizes.0[table] - sizes.1[table], *rows, "{table}");
                }
            }
        }
    });
}

#[test]
fn a_room_with_local_people_in_it_is_not_deleted_unless_it_is_forced() {
    for_each_sample(3, |seed, _| {
        let site = Site::random(seed, &Recipe::default());
        let (room, local) = (
            first_room(&site),
            UserId::new(format!("@somebody:{}", site.server_name)),
        );
        // In a very old database the current state does not know who is joined (E-1).
        let before = site.tables();
        let mut members = before.rows("room_memberships").iter();
        let joined = members.find(|m| m.word("room_id") == room && m.word("membership") == "join");
        empty(&site);
        site.insert(
            "current_state_events",
            &row([
                (
                    "event_id",
                    joined.expect("somebody").word("event_id").into(),
                ),
                ("room_id", room.as_str().into()),
                ("type", "m.room.member".into()),
                ("state_key", local.as_str().into()),
            ]),
        );
        let before = site.tables();
        for config in [site.config(), site.in_batches_of(1)] {
            let keeper = Keeper::open(config).expect("opens");
            let refused = keeper.purge_room(&RoomId::new(&*room), false);
            let refused = refused.expect_err("somebody is in it");
            assert!(matches!(refused, Error::UsersStillJoined), "{refused}");
            assert_eq!(refused.to_string(), "Users are still joined to this room");
            keeper.stop();
            assert_same(&before, &site.tables(), &format!("seed {seed}"));
        }
        let keeper = Keeper::open(site.config()).expect("opens");
        keeper
            .purge_room(&RoomId::new(&*room), true)
            .expect("forced");
        keeper.stop();
        assert_same(
            &comparable(without_room(&before, &room)),
            &comparable(site.tables()),
            &format!("seed {seed}"),
        );
    });
}

#[test]
fn people_of_other_servers_and_of_similar_names_do_not_keep_a_room() {
    let site = Site::random(1, &Recipe::default());
    let room = first_room(&site);
    empty(&site);
    let tables = site.tables();
    let events = tables.rows("events").iter();
    let events = events.filter(|e| e.word("room_id") == room);
    let server = &site.server_name;
    let users = [
        format!("@a:x{server}"),
        format!("@a:{}", server.to_uppercase()),
        format!("@a:evil:{server}"),
    ];
    for (event, user) in events.zip(&users) {
        site.insert(
            "current_state_events",
            &row([
                ("event_id", event.word("event_id").into()),
                ("room_id", room.as_str().into()),
                ("type", "m.room.member".into()),
                ("state_key", user.into()),
                ("membership", "join".into()),
            ]),
        );
    }
    let keeper = Keeper::open(site.config()).expect("opens");
    let plan = keeper
        .plan_deletion(&RoomId::new(&*room), &Request::default())
        .expect("planned");
    assert_eq!(plan.other_servers.len(), 3, "{plan:?}");
    assert!(plan.notes[0].contains("--no-purge"), "{:?}", plan.notes);
    keeper
        .purge_room(&RoomId::new(&*room), false)
        .expect("nobody local is in it");
    keeper.stop();
}

#[test]
fn deleting_a_room_again_or_one_that_never_was_clears_what_is_left_and_is_no_error() {
    let site = Site::random(2, &Recipe::default());
    let room = first_room(&site);
    delete(site.config(), &room, forced()).expect("deleted");
    let after = site.tables();
    delete(site.config(), &room, Request::default()).expect("deleted again");
    assert_same(&after, &site.tables(), "there was nothing left");
    // A vestige of a room without a row of its own (E-5).
    site.run(&format!(
        "INSERT INTO room_tags (user_id, room_id, tag, content) VALUES ('@u:x', '{room}', 't', '{{}}')"
    ));
    delete(site.config(), &room, Request::default()).expect("cleared");
    assert_same(&after, &site.tables(), "the vestige went");
}

#[test]
fn a_block_is_written_first_and_outlives_the_room() {
    let site = Site::random(3, &Recipe::default());
    let room = RoomId::new(first_room(&site));
    let unknown = RoomId::from("!unknown:example.org");
    let (mod_a, mod_b) = (UserId::from("@a:x"), UserId::from("@b:x"));
    let keeper = Keeper::open(site.config()).expect("opens");
    assert_eq!(keeper.blocker(&room).expect("asked"), None);
    let request = Request {
        requester: Some(mod_a.clone()),
        block: true,
        ..forced()
    };
    keeper.delete_room(&room, request.clone()).expect("deleted");
    keeper.block(&room, &mod_b).expect("blocked already");
    assert_eq!(
        keeper.blocker(&room).expect("asked").as_ref(),
        Some(&mod_a),
        "who was first"
    );
    let done = keeper.delete_room(&unknown, request).expect("blocked");
    assert_eq!(done, Shutdown::default());
    assert_eq!(keeper.blocker(&unknown).expect("asked"), Some(mod_a));
    keeper.unblock(&room).expect("unblocked");
    keeper.unblock(&room).expect("twice is fine");
    assert_eq!(keeper.blocker(&room).expect("asked"), None);
    let illegal = keeper.block(&RoomId::from("x"), &mod_b);
    assert_eq!(
        illegal.expect_err("illegal").to_string(),
        "x is not a legal room ID"
    );
    keeper.stop();
}

#[test]
fn a_deletion_has_a_status_for_a_day_and_its_room_knows_it() {
    let site = Site::random(4, &Recipe::default());
    let room = RoomId::new(first_room(&site));
    empty(&site);
    let keeper = Keeper::open(site.config()).expect("opens");
    let first = keeper
        .shutdown_and_purge_room(&room, Request::default())
        .expect("started");
    keeper.wait(&first).expect("deleted");
    let second = keeper
        .shutdown_and_purge_room(&room, Request::default())
        .expect("started");
    keeper.wait(&second).expect("deleted again");
    keeper
        .purge_room(&room, false)
        .expect("no status tells of it");
    assert_eq!(
        keeper.delete_ids_by_room(&room).expect("asked"),
        [first.clone(), second.clone()]
    );
    let status = keeper
        .delete_status(first.as_str())
        .expect("asked")
        .expect("known");
    assert_eq!(
        (status.status.as_str(), &status.error, &status.room_id),
        ("complete", &None, &room)
    );
    assert_eq!(status.shutdown_room, Shutdown::default());
    assert!(
        keeper
            .purge_status(first.as_str())
            .expect("asked")
            .is_none(),
        "S-9"
    );
    site.clock.advance(Millis(24 * 60 * 60 * 1000));
    assert!(keeper.delete_ids_by_room(&room).expect("asked").is_empty());
    assert!(
        keeper
            .delete_status(first.as_str())
            .expect("asked")
            .is_none()
    );
    keeper.stop();
}

#[test]
fn rows_of_a_table_that_nobody_knows_stop_the_delete_before_it_begins() {
    let site = Site::random(5, &Recipe::default());
    let room = first_room(&site);
    site.run(&format!(
        "CREATE TABLE module_notes (room TEXT REFERENCES rooms (room_id), note TEXT);
         CREATE TABLE module_marks (event TEXT REFERENCES events (event_id) ON DELETE CASCADE);
         CREATE TABLE module_list (room_id TEXT);
         INSERT INTO module_notes VALUES ('{room}', 'x');
         INSERT INTO module_list VALUES ('{room}');
         INSERT INTO module_marks SELECT event_id FROM events WHERE room_id = '{room}'",
    ));
    let before = site.tables();
    let keeper = Keeper::open(site.config()).expect("opens");
    // E-18: a dry run says so, with the sentence of the run; without the purge it tells of the tables.
    let foretold = keeper
        .plan_deletion(&RoomId::new(&*room), &forced())
        .expect_err("it would be stopped")
        .to_string();
    let refused = keeper.purge_room(&RoomId::new(&*room), true);
    let refused = refused.expect_err("it would be stopped").to_string();
    assert_eq!(refused, foretold);
    assert!(refused.contains("module_notes"), "{refused}");
    let whole = Request {
        block: true,
        ..forced()
    };
    let refused = keeper.delete_room(&RoomId::new(&*room), whole);
    let refused = refused.expect_err("it would be stopped").to_string();
    assert_eq!(refused, foretold);
    assert_same(&before, &site.tables(), "nothing went, and nobody");
    site.run("DELETE FROM module_notes");
    let plan = keeper
        .plan_deletion(&RoomId::new(&*room), &forced())
        .expect("planned");
    let told: Vec<(&str, bool)> = plan
        .unknown_tables
        .iter()
        .map(|u| (u.table.as_str(), u.stops_delete))
        .collect();
    assert_eq!(told, [("module_list", false), ("module_marks", false)]);
    keeper.stop();
    delete(site.config(), &room, forced()).expect("deleted");
    let after = site.tables();
    assert_eq!(after.rows("module_list").len(), 1, "it is not ours");
    assert!(after.rows("module_marks").is_empty(), "it went along");
    site.assert_sound("deleted");
}

also_on_postgres! {
    a_deleted_room_leaves_nothing_and_no_other_room_changes,
    a_room_goes_whole_and_alone,
    a_dry_run_counts_exactly_the_rows_that_then_go,
    a_room_with_local_people_in_it_is_not_deleted_unless_it_is_forced,
    people_of_other_servers_and_of_similar_names_do_not_keep_a_room,
    deleting_a_room_again_or_one_that_never_was_clears_what_is_left_and_is_no_error,
    a_block_is_written_first_and_outlives_the_room,
    a_deletion_has_a_status_for_a_day_and_its_room_knows_it,
    rows_of_a_table_that_nobody_knows_stop_the_delete_before_it_begins,
}
