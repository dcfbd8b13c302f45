//! The list of rooms.

use std::mem::discriminant;

use rand::Rng;
use roomkeeper::deletion::Request;
use roomkeeper::keeper::{self, RoomQuery, RoomReport, Viewer};
use roomkeeper::rooms::{Condition, Selectors, Sort, Statistics, Summary};
use roomkeeper::{Error, Keeper, Millis, RoomId};

use crate::model::{Model, any_condition, rooms, server};
use crate::support::samples::{any_cut, for_each_sample};
use crate::support::work::Site;

fn list(site: &Site, selectors: Selectors) -> Vec<Summary> {
    let query = RoomQuery {
        selectors,
        sort: Sort::Id,
        limit: None,
    };
    let viewer = Viewer::open(site.config()).expect("opens");
    let listed = viewer.rooms(&query, &mut Statistics::default());
    listed.expect("listed").0.rooms
}

#[test]
fn every_room_is_listed_with_what_its_tables_say() {
    for_each_sample(24, |seed, _| {
        let site = server(seed);
        let tables = site.tables();
        let listed = list(&site, Selectors::default());
        let ids: Vec<&str> = listed.iter().map(|room| room.room_id.as_str()).collect();
        assert_eq!(ids, rooms(&tables), "{seed}");
        for room in &listed {
            let model = Model::new(&tables, &site.server_name, room.room_id.as_str());
            let about = format!("{seed}: {room:?}");
            assert_eq!(room.events, model.count("events"), "{about}");
            assert_eq!(room.state_groups, model.count("state_groups"), "{about}");
            assert_eq!(room.state_rows, model.state_rows(), "{about}");
            let times = (room.oldest_message_ms, room.newest_message_ms);
            let (oldest, newest) = model.messages();
            assert_eq!(times, (oldest.map(Millis), newest.map(Millis)), "{about}");
            assert_eq!(
                room.last_activity_ms,
                model.last_activity().map(Millis),
                "{about}"
            );
            assert_eq!(room.joined_local_members, model.here(), "{about}");
            let joined = i64::try_from(model.joined().len()).expect("few");
            assert!(room.joined_members >= joined, "{about}");
        }
    });
}

/// What a policy would free is reckoned by the size of the whole database, which a server changes by itself.
fn timeless(report: RoomReport) -> Vec<Summary> {
    let mut rooms = report.rooms;
    for room in &mut rooms {
        if let Some(of) = &mut room.retention {
            of.estimated_bytes = 0;
        }
        (room.bytes, room.state_bytes) = (0, 0);
    }
    rooms.sort_by(|a, b| a.room_id.cmp(&b.room_id));
    rooms
}

#[test]
fn what_is_kept_is_what_would_be_counted_anew_whatever_happened_meanwhile() {
    for_each_sample(12, |seed, rng| {
        let site = server(seed);
        let query = RoomQuery::default();
        let mut kept = Statistics::default();
        let mut look = |about: &str| {
            let viewer = Viewer::open(site.config()).expect("opens");
            let (report, _) = viewer.rooms(&query, &mut kept).expect("listed");
            let mut anew = Statistics::default();
            let (counted, _) = viewer.rooms(&query, &mut anew).expect("listed");
            assert_eq!(timeless(report), timeless(counted), "{seed}: {about}");
            assert_eq!(kept, anew, "{seed}: {about}");
            let (_, changed) = viewer.rooms(&query, &mut kept).expect("listed");
            assert_eq!(changed, Vec::new(), "{seed}: nothing happened");
        };
        look("at first");
        for _ in 0..2 {
            let ask = any_cut(&site.tables(), rng);
            // Some purges are refused, and change nothing.
            let _ = site.purge(&ask);
            look("after a purge");
        }
        let tables = site.tables();
        let all = rooms(&tables);
        let room = &all[rng.random_range(0..all.len())];
        let keeper = Keeper::open(site.config()).expect("opens");
        keeper
            .purge_room(&RoomId::from(room.as_str()), true)
            .expect("deleted");
        keeper.stop();
        look("after a deletion");
        // State groups that come and go without an event.
        site.run(
            "INSERT INTO state_groups (id, room_id, event_id) SELECT max(id) + 1, '!new:x', '$e' FROM state_groups;
             INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id)
             SELECT max(id), '!new:x', 't', 'k', '$e' FROM state_groups",
        );
        look("after a new group");
        site.run("DELETE FROM state_groups_state WHERE room_id = '!new:x'; DELETE FROM state_groups WHERE room_id = '!new:x'");
        look("after it went");
    });
}

#[test]
fn rooms_are_chosen_as_a_plain_model_chooses_them() {
    for_each_sample(40, |seed, rng| {
        let site = server(seed);
        let (tables, now) = (site.tables(), site.config().clock.now());
        for _ in 0..6 {
            let draw = |rng: &mut _, most| -> Vec<Condition> {
                let count = Rng::random_range(rng, 0..=most);
                (0..count)
                    .map(|_| any_condition(&tables, now, rng))
                    .collect()
            };
            let selectors = Selectors {
                only: draw(rng, 3),
                not: draw(rng, 2),
            };
            let meant: Vec<String> = rooms(&tables)
                .into_iter()
                .filter(|room| {
                    let model = Model::new(&tables, &site.server_name, room);
                    let holds = |condition: &Condition| model.holds(condition, now);
                    let can_be_one_of = |condition: &Condition| {
                        matches!(
                            condition,
                            Condition::Room(_)
                                | Condition::Name(_)
                                | Condition::Version(_)
                                | Condition::Space(_)
                        )
                    };
                    selectors.only.iter().all(|condition| {
                        let mut alike = selectors
                            .only
                            .iter()
                            .filter(|other| discriminant(*other) == discriminant(condition));
                        match can_be_one_of(condition) {
                            true => alike.any(|other| holds(other) == Some(true)),
                            false => holds(condition) == Some(true),
                        }
                    }) && selectors
                        .not
                        .iter()
                        .all(|condition| holds(condition) == Some(false))
                })
                .collect();
            let chosen: Vec<String> = list(&site, selectors.clone())
                .iter()
                .map(|room| room.room_id.as_str().to_owned())
                .collect();
            assert_eq!(chosen, meant, "{seed}: {selectors}");
        }
    });
}

#[test]
fn a_room_that_nobody_knows_chooses_nothing_and_is_an_error() {
    let site = server(1);
    let viewer = Viewer::open(site.config()).expect("opens");
    for named in ["!none:x", "#none:x"] {
        for condition in [
            Condition::Room(named.into()),
            Condition::Space(named.into()),
        ] {
            for is_negative in [false, true] {
                let mut selectors = Selectors::default();
                match is_negative {
                    true => selectors.not.push(condition.clone()),
                    false => selectors.only.push(condition.clone()),
                }
                let query = RoomQuery {
                    selectors,
                    ..RoomQuery::default()
                };
                let refused = viewer.rooms(&query, &mut Statistics::default());
                assert!(
                    matches!(refused, Err(Error::BadRequest { .. })),
                    "{condition}"
                );
            }
        }
    }
}

#[test]
fn a_room_is_inactive_where_nothing_was_said_and_nobody_came() {
    let site = server(3);
    let all = rooms(&site.tables());
    let now = site.config().clock.now();
    let inactive = |age: Millis| -> Vec<String> {
        let selectors = Selectors {
            only: vec![Condition::Inactive(age)],
            not: Vec::new(),
        };
        let found = list(&site, selectors);
        found
            .iter()
            .map(|room| room.room_id.as_str().to_owned())
            .collect()
    };
    let tables = site.tables();
    for room in &all {
        let model = Model::new(&tables, &site.server_name, room);
        let Some(last) = model.last_activity() else {
            assert!(!inactive(Millis(0)).contains(room));
            continue;
        };
        let age = now - Millis(last);
        assert!(!inactive(age).contains(room), "{room}");
        assert!(!inactive(age + Millis(1)).contains(room), "{room}");
    }
    // Everything is, a year later; a picture that somebody changes is no activity, a newcomer is.
    site.clock.advance(roomkeeper::days(400));
    let year = roomkeeper::days(365);
    let (room, before) = (&inactive(year)[0], inactive(year).len());
    let came = site.config().clock.now() - roomkeeper::days(1);
    let join = |user: &str, event: &str| {
        site.run(&format!(
            "INSERT INTO events (stream_ordering, topological_ordering, depth, event_id, type, room_id, processed, outlier,
                                 sender, received_ts, origin_server_ts, state_key)
             SELECT max(stream_ordering) + 1, 9000, 9000, '{event}', 'm.room.member', '{room}', TRUE, FALSE,
                    '{user}', {at}, {at}, '{user}' FROM events;
             INSERT INTO room_memberships (event_id, user_id, sender, room_id, membership, forgotten, event_stream_ordering)
             SELECT '{event}', '{user}', '{user}', '{room}', 'join', 0, max(stream_ordering) FROM events;
             DELETE FROM local_current_membership WHERE room_id = '{room}' AND user_id = '{user}';
             INSERT INTO local_current_membership (room_id, user_id, event_id, membership, event_stream_ordering)
             SELECT '{room}', '{user}', '{event}', 'join', max(stream_ordering) FROM events",
            at = came.0
        ));
    };
    let newcomer = format!("@newcomer:{}", site.server_name);
    join(&newcomer, "$came");
    assert_eq!(inactive(year).len(), before - 1);
    site.clock.advance(roomkeeper::days(400));
    assert_eq!(inactive(year).len(), before, "that was long ago, too");
    site.run(&format!(
        "UPDATE events SET received_ts = {} WHERE event_id = '$came'",
        came.0
    ));
    join(&newcomer, "$picture");
    site.run(&format!(
        "UPDATE events SET received_ts = {} WHERE event_id = '$picture'",
        (site.config().clock.now() - roomkeeper::days(1)).0
    ));
    assert_eq!(inactive(year).len(), before, "they were there before");
}

#[test]
fn the_list_is_sorted_and_cut_and_its_sums_are_of_all_that_was_meant() {
    let site = server(5);
    let viewer = Viewer::open(site.config()).expect("opens");
    for (word, sort) in Sort::ALL {
        assert_eq!(sort.word(), *word);
        let of = |limit| {
            let query = RoomQuery {
                sort: *sort,
                limit,
                ..RoomQuery::default()
            };
            viewer
                .rooms(&query, &mut Statistics::default())
                .expect("listed")
                .0
        };
        let (all, few) = (of(None), of(Some(2)));
        assert_eq!(few.rooms, all.rooms[..2], "{word}");
        assert_eq!((few.selected, few.server), (all.selected, all.server));
        assert_eq!(all.selected, all.server);
        let is_sorted = |order: &dyn Fn(&Summary, &Summary) -> bool| {
            all.rooms.windows(2).all(|two| order(&two[0], &two[1]))
        };
        assert!(
            match *word {
                "bytes" => is_sorted(&|a, b| a.bytes >= b.bytes),
                "events" => is_sorted(&|a, b| a.events >= b.events),
                "activity" => is_sorted(&|a, b| a.last_activity_ms <= b.last_activity_ms),
                "id" => is_sorted(&|a, b| a.room_id < b.room_id),
                _ => true,
            },
            "{word}"
        );
    }
    assert!(Sort::parse("weight").is_err());
}

#[test]
fn looking_at_rooms_writes_nothing_and_a_ledger_that_is_there_keeps_what_was_counted() {
    let site = server(7);
    let before = site.tables();
    let query = RoomQuery::default();
    let config = site.config();
    let first = keeper::rooms(&config, &query).expect("listed");
    assert!(!config.ledger.exists(), "reading makes no file");
    assert!(site.tables() == before);
    Keeper::open(site.config()).expect("opens").stop();
    let second = keeper::rooms(&config, &query).expect("listed");
    assert_eq!(first.rooms, second.rooms);
    // Whoever has the ledger does not stop anybody from looking.
    let keeper = Keeper::open(site.config()).expect("opens");
    assert_eq!(
        keeper::rooms(&config, &query).expect("listed").rooms,
        first.rooms
    );
    assert_eq!(keeper.rooms(&query).expect("listed").rooms, first.rooms);
    keeper.stop();
    // Damage in what is kept is counted over.
    let ledger = rusqlite::Connection::open(&config.ledger).expect("opens");
    let kept = "SELECT count(*) FROM room_statistics";
    let rows: i64 = ledger.query_row(kept, [], |row| row.get(0)).expect("kept");
    assert!(rows > 0);
    ledger
        .execute_batch("UPDATE room_statistics SET counted = 'x'")
        .expect("damaged");
    drop(ledger);
    assert_eq!(
        keeper::rooms(&config, &query).expect("listed").rooms,
        first.rooms
    );
}

#[test]
fn a_deletion_that_was_asked_for_is_not_in_the_list_any_more() {
    let site = server(9);
    let keeper = Keeper::open(site.config()).expect("opens");
    let query = RoomQuery::default();
    let before = keeper.rooms(&query).expect("listed");
    let room = before.rooms[0].room_id.clone();
    let request = Request {
        force_purge: true,
        ..Request::default()
    };
    let id = keeper
        .shutdown_and_purge_room(&room, request)
        .expect("begun");
    let _ = keeper.wait(&id);
    let after = keeper.rooms(&query).expect("listed");
    assert!(
        after
            .rooms
            .iter()
            .all(|left| left.room_id != room || left.events == 0)
    );
    keeper.stop();
}

also_on_postgres!(
    every_room_is_listed_with_what_its_tables_say,
    what_is_kept_is_what_would_be_counted_anew_whatever_happened_meanwhile,
    rooms_are_chosen_as_a_plain_model_chooses_them,
    a_room_is_inactive_where_nothing_was_said_and_nobody_came,
);

#[test]
fn a_server_of_many_rooms_is_listed_in_a_few_statements() {
    let size = |name: &str, usual| {
        std::env::var(name).map_or(usual, |text| text.parse().expect("a number"))
    };
    let (rooms, events) = (size("ROOMKEEPER_ROOMS", 80), size("ROOMKEEPER_EVENTS", 60));
    let town = crate::town::Town::new(rooms, events);
    let keeper = Keeper::open(town.config()).expect("opens");
    let query = RoomQuery::default();
    for about in ["the first time", "the second", "the third"] {
        let report = keeper.rooms(&query).expect("listed");
        println!(
            "{rooms} rooms of {events} events, {about}: {} ms, {} bytes of {}",
            report.took_ms,
            report.server.bytes,
            std::fs::metadata(&town.site.database).map_or(0, |m| m.len())
        );
        assert_eq!(report.rooms.len(), rooms);
        let all = i64::try_from(rooms * events).expect("few");
        assert_eq!(report.server.events, all);
        let due = report
            .rooms
            .iter()
            .filter_map(|room| room.retention.as_ref());
        assert!(due.map(|of| of.events_over).sum::<i64>() > 0);
    }
    keeper.stop();
}
