//! Repairs: what is wrong and can be told for sure is put right, row by row as it was; nothing else is touched, and a sound
//! database is not changed by a byte.

use std::fs;

use crate::support::draft::{Draft, Event};
use crate::support::engine::{Engine, current, share_of};
use crate::support::rooms::Recipe;
use crate::support::tables::{Tables, assert_same};
use crate::support::work::{Site, cases, progress_of, seed};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use roomkeeper::hold::Hold;
use roomkeeper::jobs::ledger::{JobRecord, State};
use roomkeeper::keeper::repair::RepairRequest;
use roomkeeper::keeper::{RepairPlan, RepairSummary, Viewer, add_hold};
use roomkeeper::store::check::CheckReport;
use roomkeeper::{Config, Keeper};

const ROOM: &str = "!room:example.org";
const ANN: &str = "@ann:example.org";
const BOB: &str = "@bob:example.org";

/// Ann made the room, Bob joined it, they talked; of what was said before, something is missing.
fn together() -> Site {
    let mut draft = Draft::new("example.org", 1);
    draft.open_room(ROOM, "a", ANN, 2);
    let joins = Event::message("$bob", ROOM, BOB, 3, 4).member(BOB, "join");
    draft.add(joins.after(&["$a-join"]));
    draft.add(Event::message("$talk", ROOM, ANN, 4, 5).after(&["$bob", "$missing"]));
    draft.add(Event::message("$last", ROOM, BOB, 5, 6).after(&["$talk"]));
    let site = Site::of(draft);
    site.run(&format!(
        "DELETE FROM users; INSERT INTO users (name) VALUES ('{ANN}'), ('{BOB}')"
    ));
    for (event, user) in [("$a-join", ANN), ("$bob", BOB)] {
        site.run(&format!(
            r#"UPDATE event_json SET json = '{{"type": "m.room.member", "room_id": "{ROOM}", "state_key": "{user}",
               "sender": "{user}", "content": {{"membership": "join"}}}}' WHERE event_id = '{event}'"#
        ));
    }
    site.run(&format!(
        r#"UPDATE event_json SET json = '{{"type": "m.room.create", "room_id": "{ROOM}", "state_key": "",
           "sender": "{ANN}", "content": {{"room_version": "10"}}}}' WHERE event_id = '$a-create'"#
    ));
    site
}

/// Member and create events say in a sample no more than that they are some; here they say it as a homeserver's do.
const AS_WRITTEN: &str = "
    UPDATE event_json SET json = (
           SELECT json_object('type', 'm.room.member', 'room_id', m.room_id, 'state_key', m.user_id, 'sender', m.sender,
                              'content', json_object('membership', m.membership))
             FROM room_memberships m WHERE m.event_id = event_json.event_id)
     WHERE event_id IN (SELECT event_id FROM room_memberships);
    UPDATE event_json SET json = (
           SELECT json_object('type', 'm.room.create', 'sender', e.sender, 'content', json_object('room_version', '10'))
             FROM events e WHERE e.event_id = event_json.event_id)
     WHERE event_id IN (SELECT event_id FROM state_events WHERE type = 'm.room.create');";

fn random(seed: u64) -> Site {
    Site::adjusted(seed, &Recipe::default(), |conn| {
        conn.execute_batch(AS_WRITTEN).expect("written");
    })
}

/// Somebody writes into the database whom no foreign key stops.
#[track_caller]
fn damage(site: &Site, sql: &str) {
    match current() {
        Engine::Sqlite => site.run(&format!("PRAGMA foreign_keys = OFF; {sql}")),
        Engine::Postgres => site.run(sql),
    }
}

fn repair(config: Config, rules: &[&str]) -> JobRecord {
    let rules: Vec<String> = rules.iter().map(|rule| (*rule).to_owned()).collect();
    let request = RepairRequest::of(&rules).expect("known rules");
    let keeper = Keeper::open(config).expect("opens");
    let id = keeper.repair(&request).expect("begins");
    let _ = keeper.wait(&id);
    let job = keeper.job(&id).expect("read").expect("there");
    keeper.stop();
    job
}

fn repaired(config: Config) -> RepairSummary {
    let job = repair(config, &[]);
    assert_eq!(job.state, State::Complete, "{job:?}");
    summary(&job)
}

fn summary(job: &JobRecord) -> RepairSummary {
    serde_json::from_value(job.progress.clone()).expect("a repair's sums")
}

fn plan(config: Config) -> RepairPlan {
    let viewer = Viewer::open(config).expect("opens");
    viewer
        .plan_repair(&RepairRequest::default())
        .expect("planned")
}

fn check(site: &Site) -> CheckReport {
    let viewer = Viewer::open(site.config()).expect("opens");
    viewer.check(|_, _| ()).expect("checked")
}

/// Everything but what the engines note of their own tables.
fn all_of(site: &Site) -> Tables {
    site.tables()
        .without(&["sqlite_stat1", "sqlite_stat4", "sqlite_sequence"])
}

/// What somebody did to the database, and the rule by which that is mended.
fn damages() -> Vec<(&'static str, String)> {
    let event = "'$gone'";
    vec![
        (
            "I-1",
            format!("INSERT INTO event_edges (event_id, prev_event_id) VALUES ({event}, '$talk')"),
        ),
        (
            "I-2",
            format!(
                "INSERT INTO event_json (event_id, room_id, internal_metadata, json, format_version)
                 VALUES ({event}, '{ROOM}', '{{}}', '{{}}', 3)"
            ),
        ),
        (
            "I-3",
            format!(
                "INSERT INTO event_to_state_groups (event_id, state_group)
                 SELECT {event}, min(id) FROM state_groups"
            ),
        ),
        (
            "I-4",
            format!(
                "INSERT INTO event_forward_extremities (event_id, room_id) VALUES ({event}, '{ROOM}')"
            ),
        ),
        (
            "I-5",
            format!(
                "INSERT INTO event_backward_extremities (event_id, room_id) VALUES ('$talk', '{ROOM}')"
            ),
        ),
        (
            "I-6",
            format!(
                "INSERT INTO event_backward_extremities (event_id, room_id) VALUES ({event}, '{ROOM}')"
            ),
        ),
        (
            "I-7",
            "DELETE FROM event_backward_extremities WHERE event_id = '$missing'".to_owned(),
        ),
        (
            "I-8",
            "INSERT INTO state_group_edges (state_group, prev_state_group)
             SELECT 1000000, min(id) FROM state_groups"
                .to_owned(),
        ),
        (
            "I-9",
            format!(
                "INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id)
                 VALUES (1000000, '{ROOM}', 't', 'k', '$talk')"
            ),
        ),
        (
            "I-11",
            "UPDATE current_state_events SET event_stream_ordering = 2 WHERE event_id = '$bob'"
                .to_owned(),
        ),
        (
            "I-11",
            "UPDATE current_state_events SET membership = 'leave' WHERE event_id = '$bob'"
                .to_owned(),
        ),
        (
            "I-12",
            format!("DELETE FROM local_current_membership WHERE user_id = '{BOB}'"),
        ),
        (
            "I-12",
            format!(
                "UPDATE local_current_membership SET membership = 'leave' WHERE user_id = '{BOB}'"
            ),
        ),
        (
            "I-12",
            format!(
                "UPDATE local_current_membership SET event_id = '$a-join' WHERE user_id = '{BOB}'"
            ),
        ),
        (
            "I-12",
            "DELETE FROM room_memberships WHERE event_id = '$bob'".to_owned(),
        ),
        (
            "I-12",
            format!("UPDATE room_memberships SET user_id = '{ANN}' WHERE event_id = '$bob'"),
        ),
        (
            "I-12",
            "UPDATE room_memberships SET membership = 'leave' WHERE event_id = '$bob'".to_owned(),
        ),
        (
            "I-12",
            "DELETE FROM current_state_events WHERE event_id = '$bob'".to_owned(),
        ),
        (
            "I-12",
            format!(
                "UPDATE sliding_sync_membership_snapshots SET membership = 'leave' WHERE user_id = '{BOB}'"
            ),
        ),
        (
            "I-12",
            format!(
                "UPDATE sliding_sync_membership_snapshots SET membership_event_id = '$a-join' WHERE user_id = '{BOB}'"
            ),
        ),
        (
            "I-13",
            format!(
                "INSERT INTO event_relations (event_id, relates_to_id, relation_type) VALUES ({event}, '$talk', 'm.x')"
            ),
        ),
        (
            "I-13",
            format!(
                "INSERT INTO state_events (event_id, room_id, type, state_key) VALUES ({event}, '{ROOM}', 't', 'k')"
            ),
        ),
        (
            "I-13",
            format!(
                "INSERT INTO redactions (event_id, redacts, have_censored) VALUES ({event}, '$talk', FALSE)"
            ),
        ),
        (
            "I-13",
            format!(
                "INSERT INTO rejections (event_id, reason, last_check) VALUES ({event}, 'r', 'l')"
            ),
        ),
        (
            "I-13",
            "INSERT INTO event_auth_chains (event_id, chain_id, sequence_number) VALUES ('$gone', 900, 1)"
                .to_owned(),
        ),
        (
            "I-14",
            "UPDATE sliding_sync_joined_rooms SET event_stream_ordering = 900".to_owned(),
        ),
        (
            "I-14",
            format!(
                "UPDATE sliding_sync_membership_snapshots SET event_stream_ordering = 900 WHERE user_id = '{BOB}'"
            ),
        ),
        (
            "I-15",
            format!(
                "INSERT INTO event_push_summary (user_id, room_id, notif_count, stream_ordering, unread_count, thread_id)
                 VALUES ('{ANN}', '{ROOM}', -3, 5, 0, 'main')"
            ),
        ),
        (
            "I-16",
            "INSERT INTO state_groups_pending_deletion (state_group, insertion_ts) VALUES (1000000, 5)"
                .to_owned(),
        ),
        (
            "I-16",
            "INSERT INTO state_groups_pending_deletion (state_group, insertion_ts)
             SELECT min(state_group), 5 FROM event_to_state_groups"
                .to_owned(),
        ),
        (
            "I-17",
            format!("DELETE FROM rooms WHERE room_id = '{ROOM}'"),
        ),
    ]
}

/// What is left in other values than it had: nobody knows those.
fn put_right(tables: Tables, rule: &str) -> Tables {
    match rule {
        "I-15" => tables.without(&["event_push_summary"]),
        "I-17" => tables.without(&["rooms"]),
        _ => tables,
    }
}

#[test]
fn each_rule_is_mended_as_it_was_and_a_second_repair_has_nothing_to_do() {
    let site = together();
    site.assert_sound("before anybody did anything");
    let sound = all_of(&site);
    for (rule, sql) in damages() {
        let broken = site.copy();
        damage(&broken, &sql);
        let before = all_of(&broken);
        let found = check(&broken).violations;
        assert!(found.iter().any(|v| v.rule == rule), "{sql}: {found:#?}");
        let planned = plan(broken.config());
        assert!(
            planned.items.iter().any(|item| item.rule == rule),
            "{sql}: {planned:#?}"
        );
        assert_same(&before, &all_of(&broken), "a plan only reads");
        let done = repaired(broken.config());
        assert_eq!(done.unmended, [], "{sql}: {done:#?}");
        assert!(done.rows_mended > 0, "{sql}");
        broken.assert_sound(&sql);
        let (sound, is) = (
            put_right(sound.clone(), rule),
            put_right(all_of(&broken), rule),
        );
        assert_same(&sound, &is, &sql);
        let again = repaired(broken.config());
        assert_eq!((again.rows_found, &*again.items), (0, &[][..]), "{sql}");
    }
}

#[test]
fn everything_at_once_is_mended_in_one_repair() {
    let first = seed();
    for seed in first..first + share_of(cases(12)) {
        mend_some(seed);
    }
}

fn mend_some(seed: u64) {
    let site = together();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut all = damages();
    // What lies in the same row, or needs what another takes.
    all.retain(|(_, sql)| !sql.contains("900 WHERE user_id") && !sql.contains("= '$a-join'"));
    let mut done: Vec<(&str, String)> = Vec::new();
    for (rule, sql) in all {
        let table = sql
            .split_whitespace()
            .nth(if sql.starts_with("UPDATE") { 1 } else { 2 });
        let is_met = |(_, other): &(&str, String)| {
            table.is_some_and(|table| other.contains(&format!("{table} ")))
        };
        if !done.iter().any(is_met) && rng.random_ratio(2, 3) {
            done.push((rule, sql));
        }
    }
    for (_, sql) in &done {
        damage(&site, sql);
    }
    let summary = repaired(site.config());
    assert_eq!(summary.unmended, [], "seed {seed}: {done:#?}");
    site.assert_sound(&format!("seed {seed}: {done:#?}"));
}

/// Random servers have rows in every table: a repair changes no byte of them.
#[test]
fn a_sound_database_is_not_changed_by_a_byte() {
    let first = seed();
    for seed in first..first + share_of(cases(12)) {
        let site = random(seed);
        // What a generator leaves that no event has is no damage; once it is gone, the server is sound.
        let cleaned = repaired(site.config());
        assert_eq!(cleaned.unmended, [], "seed {seed}");
        site.assert_sound(&format!("seed {seed}"));
        let before = all_of(&site);
        let bytes = |site: &Site| fs::read(&site.database).expect("read");
        let file = (current() == Engine::Sqlite).then(|| bytes(&site));
        let planned = plan(site.config());
        assert_eq!(planned.items, [], "seed {seed}");
        let done = repaired(site.config());
        assert_eq!(done.rows_mended, 0, "seed {seed}: {done:#?}");
        assert_same(&before, &all_of(&site), &format!("seed {seed}"));
        if let Some(file) = file {
            assert!(file == bytes(&site), "seed {seed}: the file changed");
        }
    }
}

/// No event goes, whatever else is wrong with a random server; what a generator draws is its own.
#[test]
fn events_and_what_they_say_stay_whatever_is_mended() {
    let first = seed();
    for seed in first..first + share_of(cases(12)) {
        let site = random(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let rooms: Vec<String> = {
            let tables = site.tables();
            let rooms = tables.rows("rooms").iter();
            rooms.map(|r| r.word("room_id").to_owned()).collect()
        };
        for (n, room) in rooms.iter().enumerate() {
            for sql in [
                format!("DELETE FROM event_backward_extremities WHERE room_id = '{room}'"),
                format!("UPDATE room_memberships SET membership = 'ban' WHERE room_id = '{room}'"),
                format!(
                    "UPDATE local_current_membership SET membership = 'ban' WHERE room_id = '{room}'"
                ),
                format!(
                    "UPDATE sliding_sync_joined_rooms SET event_stream_ordering = 98765{n} WHERE room_id = '{room}'"
                ),
                format!("DELETE FROM rooms WHERE room_id = '{room}'"),
            ] {
                if rng.random_ratio(1, 2) {
                    damage(&site, &sql);
                }
            }
        }
        let held = [
            "events",
            "event_json",
            "state_events",
            "event_to_state_groups",
            "state_groups",
        ];
        let before = site.tables();
        let done = repaired(site.config());
        let after = site.tables();
        let events: std::collections::BTreeSet<&str> = {
            let events = before.rows("events").iter();
            events.map(|e| e.word("event_id")).collect()
        };
        for table in held {
            let of_held = |tables: &Tables| -> usize {
                let rows = tables.rows(table).iter();
                rows.filter(|r| r.text("event_id").is_none_or(|id| events.contains(id)))
                    .count()
            };
            assert_eq!(of_held(&before), of_held(&after), "seed {seed}: {table}");
        }
        assert_eq!(
            before.rows("events"),
            after.rows("events"),
            "seed {seed}: {done:#?}"
        );
        let left = done.unmended.iter();
        let left: Vec<&str> = left.map(|one| &*one.rule).collect();
        // A create event of which there are two, or none, or what two tables say and no event proves.
        let known = ["I-17", "I-12", "I-18"];
        assert!(
            left.iter().all(|rule| known.contains(rule)),
            "seed {seed}: {done:#?}"
        );
    }
}

#[test]
fn what_cannot_be_mended_is_told_with_what_to_do_and_left() {
    let site = together();
    site.run("DELETE FROM event_json WHERE event_id = '$talk'; DELETE FROM event_to_state_groups WHERE event_id = '$last'");
    let before = all_of(&site);
    let planned = plan(site.config());
    let rules: Vec<&str> = planned.unmended.iter().map(|one| &*one.rule).collect();
    assert_eq!(rules, ["I-2", "I-3"], "{planned:#?}");
    let done = repaired(site.config());
    assert_eq!(done.unmended, planned.unmended);
    assert!(done.unmended.iter().all(|one| !one.advice.is_empty()));
    assert_same(&before, &all_of(&site), "nothing was changed");
}

#[test]
fn only_the_rules_that_were_named_are_mended() {
    let site = together();
    for (rule, sql) in damages() {
        if ["I-5", "I-9", "I-16"].contains(&rule) {
            damage(&site, &sql);
        }
    }
    let job = repair(site.config(), &["i-9"]);
    assert_eq!(job.state, State::Complete, "{job:?}");
    let done = summary(&job);
    assert_eq!(done.items.len(), 1, "{done:#?}");
    assert_eq!(progress_of(&job).rows_removed["state_groups_state"], 1);
    let left: Vec<&str> = done.unmended.iter().map(|one| &*one.rule).collect();
    assert_eq!(left, ["I-5", "I-16"]);
    let words = ["I-99".to_owned()];
    assert!(
        RepairRequest::of(&words)
            .expect_err("unknown")
            .contains("I-99")
    );
}

#[test]
fn what_is_held_stays_until_the_hold_is_released() {
    let site = together();
    for (rule, sql) in damages() {
        if ["I-2", "I-5", "I-1"].contains(&rule) {
            damage(&site, &sql);
        }
    }
    let hold = Hold {
        name: "case".to_owned(),
        rooms: vec![ROOM.into()],
        reason: "somebody asked".to_owned(),
        ..Hold::default()
    };
    add_hold(&site.config(), hold).expect("laid");
    let planned = plan(site.config());
    assert!(
        planned
            .left_alone
            .iter()
            .all(|left| left.room_id.as_str() == ROOM)
    );
    assert_eq!(planned.left_alone.len(), 1, "{planned:#?}");
    let done = repaired(site.config());
    let mended: Vec<(&str, i64)> = done
        .items
        .iter()
        .map(|item| (&*item.rule, item.rows_mended))
        .collect();
    assert_eq!(mended, [("I-1", 1), ("I-2", 0), ("I-5", 0)], "{done:#?}");
    assert_eq!(
        site.number("SELECT count(*) FROM event_json WHERE event_id = '$gone'"),
        1
    );
    roomkeeper::keeper::release_hold(&site.config(), "case", "over").expect("released");
    assert_eq!(repaired(site.config()).unmended, []);
    site.assert_sound("released");
}

#[test]
fn beside_a_homeserver_what_it_has_in_its_caches_waits() {
    let site = together();
    for (rule, sql) in damages() {
        if ["I-1", "I-5", "I-9", "I-4", "I-14"].contains(&rule) {
            damage(&site, &sql);
        }
    }
    let beside = || site.beside(10, 1_000);
    let planned = plan(beside());
    let waits = |items: &[roomkeeper::keeper::repair::RepairItem]| -> Vec<String> {
        let waiting = items.iter().filter(|item| item.waits.is_some());
        waiting.map(|item| item.rule.clone()).collect()
    };
    assert!(
        waits(&planned.items).contains(&"I-4".to_owned()),
        "{planned:#?}"
    );
    let done = repaired(beside());
    for item in &done.items {
        let expected = match &*item.rule {
            "I-4" | "I-14" => 0,
            _ => item.rows,
        };
        assert_eq!(item.rows_mended, expected, "{item:#?}");
    }
    assert_eq!(repaired(site.config()).unmended, []);
    site.assert_sound("stopped");
}

/// An index that has lost an event makes all its rows look like orphans.
#[test]
fn no_row_goes_on_the_word_of_a_damaged_index() {
    let site = together();
    let tables = all_of(&site);
    // By its word nothing points at what is missing.
    let edge = "event_id = '$talk' AND prev_event_id = '$missing'";
    site.lose_from_index(
        "ev_edges_prev_id",
        &format!("DELETE FROM event_edges WHERE {edge}"),
        "INSERT INTO event_edges (event_id, prev_event_id) VALUES ('$talk', '$missing')",
    );
    let before = all_of(&site);
    assert_eq!(
        tables.sizes(),
        before.sizes(),
        "the tables hold all they held"
    );
    let viewer = Viewer::open(site.config()).expect("opens");
    let refused = viewer
        .plan_repair(&RepairRequest::default())
        .expect_err("refused")
        .to_string();
    assert!(refused.contains("damaged"), "{refused}");
    drop(viewer);
    let job = repair(site.config(), &[]);
    assert_eq!(job.state, State::Failed, "{job:?}");
    assert_same(&before, &all_of(&site), "nothing went");
}

/// The index is derived data; offline it is built anew.
#[test]
fn a_damaged_full_text_index_is_built_anew() {
    let site = together();
    for event in ["$talk", "$last"] {
        site.run(&format!(
            "INSERT INTO event_search (event_id, room_id, sender, key, value)
             VALUES ('{event}', '{ROOM}', '{ANN}', 'content.body', 'words of {event}')"
        ));
    }
    site.run("UPDATE event_search_segdir SET root = zeroblob(length(root))");
    let before = site.number("SELECT count(*) FROM event_search_content");
    assert!(before > 0);
    let done = repaired(site.config());
    assert_eq!(done.unmended, [], "{done:#?}");
    assert_eq!(done.items[0].act, "rebuilds");
    assert_eq!(
        site.number("SELECT count(*) FROM event_search_content"),
        before
    );
    site.assert_sound("built anew");
    assert_eq!(repaired(site.config()).rows_found, 0);
}

/// What the homeserver's own deletion of a room leaves behind breaks no rule, is told, and goes.
#[test]
fn leftovers_break_no_rule_and_go() {
    let site = together();
    let sound = all_of(&site);
    damage(
        &site,
        "INSERT INTO event_labels (event_id, label, room_id, topological_ordering) VALUES ('$gone', 'l', '!gone:a', 3);
         INSERT INTO room_retention (room_id, event_id, min_lifetime, max_lifetime) VALUES ('!gone:a', '$gone', 1, 2);
         INSERT INTO room_depth (room_id, min_depth) VALUES ('!gone:a', 1);
         INSERT INTO room_tags (user_id, room_id, tag, content) VALUES ('@ann:example.org', '!gone:a', 't', '{}')",
    );
    let report = check(&site);
    assert_eq!(report.violations, []);
    assert_eq!(report.leftovers.len(), 3, "{report:#?}");
    assert!(report.rows > 20 && report.tables > 60, "{report:#?}");
    repaired(site.config());
    let report = check(&site);
    assert_eq!(report.leftovers, []);
    // A user's own tag of the room stays.
    assert_eq!(
        site.number("SELECT count(*) FROM room_tags WHERE room_id = '!gone:a'"),
        1
    );
    site.run("DELETE FROM room_tags WHERE room_id = '!gone:a'");
    assert_same(&sound, &all_of(&site), "nothing else went");
}

also_on_postgres!(
    each_rule_is_mended_as_it_was_and_a_second_repair_has_nothing_to_do,
    everything_at_once_is_mended_in_one_repair,
    a_sound_database_is_not_changed_by_a_byte,
    events_and_what_they_say_stay_whatever_is_mended,
    what_cannot_be_mended_is_told_with_what_to_do_and_left,
    only_the_rules_that_were_named_are_mended,
    what_is_held_stays_until_the_hold_is_released,
    beside_a_homeserver_what_it_has_in_its_caches_waits,
    no_row_goes_on_the_word_of_a_damaged_index,
    leftovers_break_no_rule_and_go,
);
