//! Sweeping the state groups of a whole server: all that no event has goes, the rest stays as it says, and no index is
//! believed that its table does not bear out.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::engine::{Engine, current, share_of};
use crate::support::rooms::{self, Recipe};
use crate::support::state_model::{Graph, STATE};
use crate::support::tables::{Tables, assert_same, row};
use crate::support::work::{Site, cases, progress_of, seed};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use roomkeeper::hold::Hold;
use roomkeeper::jobs::ledger::{JobRecord, State};
use roomkeeper::keeper::{StateSweepPlan, StateSweepSummary, Viewer, add_hold};
use roomkeeper::{Config, Keeper};

/// A server whose rooms have groups that no event has: chains of them, on and beneath those of events, alone and in rooms
/// that are not there any more.
fn littered(seed: u64) -> Site {
    let mut draft = rooms::draw(seed, &Recipe::default());
    let mut rng = StdRng::seed_from_u64(seed ^ 0x51ee9);
    if draft.groups.groups.is_empty() {
        draft.settle();
    }
    let used: Vec<i64> = draft.groups.of_event.values().copied().collect();
    let mut litter: Vec<i64> = Vec::new();
    for _ in 0..rng.random_range(1..60) {
        let base = match litter.is_empty() || rng.random_ratio(1, 2) {
            true => used[rng.random_range(0..used.len())],
            false => litter[rng.random_range(0..litter.len())],
        };
        let key = format!("k{}", rng.random_range(0..5));
        // A state names events that are held.
        let entries = &draft.groups.groups[&base].entries;
        if let Some(event) = entries.values().last().cloned() {
            let key = ("org.example.litter", &*key);
            litter.push(draft.groups.store_unused(base, key, &event));
        }
    }
    // Events that have groups which rest on litter: it is of use as far as they need it.
    let events: Vec<String> = draft.groups.of_event.keys().cloned().collect();
    let mut moved = Vec::new();
    for _ in 0..rng.random_range(0..6) {
        let event = &events[rng.random_range(0..events.len())];
        let before = draft.groups.of_event[event];
        let is_state = |e: &crate::support::draft::Event| e.id == *event && e.state_key.is_some();
        if !draft.events.iter().any(is_state) {
            continue;
        }
        let on: Vec<i64> = litter
            .iter()
            .copied()
            .filter(|g| draft.groups.groups[g].room == draft.groups.groups[&before].room)
            .collect();
        if !on.is_empty() {
            let base = on[rng.random_range(0..on.len())];
            let group = draft
                .groups
                .store_unused(base, ("org.example.used", "x"), event);
            moved.push((event.clone(), group));
        }
    }
    let site = Site::of(draft);
    for (event, group) in moved {
        site.run(&format!(
            "UPDATE event_to_state_groups SET state_group = {group} WHERE event_id = '{event}'"
        ));
    }
    site
}

fn sweep(config: Config) -> JobRecord {
    let keeper = Keeper::open(config).expect("opens");
    let id = keeper.sweep_state().expect("begins");
    let _ = keeper.wait(&id);
    let job = keeper.job(&id).expect("read").expect("there");
    keeper.stop();
    job
}

fn swept(config: Config) -> JobRecord {
    let job = sweep(config);
    assert_eq!(job.state, State::Complete, "{job:?}");
    job
}

fn plan(site: &Site) -> StateSweepPlan {
    let viewer = Viewer::open(site.config()).expect("opens");
    viewer.plan_state_sweep().expect("planned")
}

fn summary(job: &JobRecord) -> StateSweepSummary {
    serde_json::from_value(job.progress.clone()).expect("a sweep's sums")
}

fn groups(tables: &Tables) -> BTreeSet<i64> {
    let groups = tables.rows("state_groups").iter();
    groups.map(|g| g.number("id")).collect()
}

fn held_events(tables: &Tables) -> BTreeSet<&str> {
    let events = tables.rows("events").iter();
    events.map(|e| e.word("event_id")).collect()
}

/// Groups that an event which is held has.
fn used(tables: &Tables) -> BTreeSet<i64> {
    let held = held_events(tables);
    let mappings = tables.rows("event_to_state_groups").iter();
    mappings
        .filter(|m| held.contains(m.word("event_id")))
        .map(|m| m.number("state_group"))
        .collect()
}

/// Everything but state groups, and the mappings of events that are held.
fn others(tables: Tables) -> Tables {
    let mut without: Vec<&str> = STATE.to_vec();
    without.extend(["event_to_state_groups", "sqlite_stat1", "sqlite_stat4"]);
    tables.without(&without)
}

/// What is left resolves as before, event by event and group by group; no table has more rows.
#[track_caller]
fn assert_only_litter_went(before: &Tables, after: &Tables, about: &str) {
    assert_same(&others(before.clone()), &others(after.clone()), about);
    let (was, is) = (Graph::of(before), Graph::of(after));
    let (all, left) = (groups(before), groups(after));
    assert!(left.is_subset(&all), "{about}");
    assert!(used(before).is_subset(&left), "{about}: live state went");
    for group in &left {
        assert_eq!(was.state(*group), is.state(*group), "{about}: {group}");
    }
    let held = held_events(before);
    let mapped = |tables: &Tables| -> BTreeMap<String, i64> {
        let mappings = tables.rows("event_to_state_groups").iter();
        mappings
            .filter(|m| held.contains(m.word("event_id")))
            .map(|m| (m.word("event_id").to_owned(), m.number("state_group")))
            .collect()
    };
    assert_eq!(mapped(before), mapped(after), "{about}");
    for table in ["state_groups", "state_groups_state", "state_group_edges"] {
        let rows = |tables: &Tables| tables.rows(table).len();
        assert!(rows(after) <= rows(before), "{about}: {table}");
    }
}

/// The plan is what goes, room by room and row by row; nothing else is touched, and doing it again does nothing.
#[test]
fn a_sweep_takes_every_group_that_no_event_has_and_its_plan_says_so() {
    let first = seed();
    for seed in first..first + cases(share_of(40)) {
        let about = format!("seed {seed}");
        let site = littered(seed);
        let before = site.tables();
        let planned = plan(&site);
        assert_same(
            &before,
            &site.tables(),
            &format!("{about}: a plan reads only"),
        );
        let job = swept(site.config());
        let after = site.tables();
        assert_only_litter_went(&before, &after, &about);
        let (sums, progress) = (summary(&job), progress_of(&job));
        let gone = groups(&before).len() - groups(&after).len();
        let count = |n: usize| i64::try_from(n).expect("few");
        assert_eq!(progress.state_groups_freed, count(gone), "{about}");
        assert_eq!(planned.state_groups, count(gone), "{about}");
        assert_eq!(
            planned.rows_removed, progress.rows_removed,
            "{about}: {job:?}"
        );
        assert_eq!(planned.rooms_swept, sums.rooms_done, "{about}");
        let unused = count(groups(&before).difference(&used(&before)).count());
        assert_eq!(planned.groups_unreferenced, unused, "{about}");
        assert_eq!(
            planned.state_groups + planned.state_groups_kept,
            unused,
            "{about}"
        );
        // Whatever stays without an event is beneath one that has an event, or that an event in flight uses.
        let graph = Graph::of(&after);
        let mut beneath = BTreeSet::new();
        let in_flight = after.rows("state_groups_persisting").iter();
        let in_flight = in_flight.map(|p| p.number("state_group"));
        for group in used(&after).into_iter().chain(in_flight) {
            let mut at = Some(group);
            while let Some(here) = at.filter(|here| beneath.insert(*here)) {
                at = graph.base.get(&here).copied();
            }
        }
        assert!(groups(&after).is_subset(&beneath), "{about}");
        site.assert_sound(&about);
        let again = swept(site.config());
        assert_eq!(
            progress_of(&again).rows_removed.len(),
            0,
            "{about}: {again:?}"
        );
        assert_same(&others(after.clone()), &others(site.tables()), &about);
        assert_eq!(groups(&after), groups(&site.tables()), "{about}");
    }
}

/// P-41, P-45: beside a homeserver nothing goes but mappings of events that are not held; it is told of the same groups.
#[test]
fn beside_a_homeserver_the_same_groups_are_marked_and_none_goes() {
    let first = seed();
    for seed in first..first + cases(share_of(12)) {
        let about = format!("seed {seed}");
        let site = littered(seed);
        let before = site.tables();
        let offline = site.copy();
        swept(site.beside(100, 60_000));
        let after = site.tables();
        assert_eq!(groups(&before), groups(&after), "{about}");
        swept(offline.config());
        let gone: BTreeSet<i64> = groups(&before)
            .difference(&groups(&offline.tables()))
            .copied()
            .collect();
        let pending = after.rows("state_groups_pending_deletion").iter();
        let pending: BTreeSet<i64> = pending.map(|p| p.number("state_group")).collect();
        assert!(gone.is_subset(&pending), "{about}");
        assert!(pending.is_disjoint(&used(&after)), "{about}");
        assert_only_litter_went(&before, &after, &about);
    }
}

/// A mapping whose event is not held keeps no group, and one whose event is held keeps it, whatever room that is of.
#[test]
fn only_events_that_are_held_keep_a_group() {
    let site = littered(7);
    let tables = site.tables();
    let unused: Vec<i64> = groups(&tables)
        .difference(&used(&tables))
        .copied()
        .collect();
    let newest = *unused.last().expect("litter");
    let ghost = row([
        ("event_id", "$ghost".into()),
        ("state_group", newest.into()),
    ]);
    site.insert("event_to_state_groups", &ghost);
    swept(site.config());
    let after = site.tables();
    assert!(!groups(&after).contains(&newest));
    let is_ghost = |m: &crate::support::tables::Row| m.word("event_id") == "$ghost";
    assert!(!after.rows("event_to_state_groups").iter().any(is_ghost));
    site.assert_sound("swept");
}

/// Holds win: a room that is held keeps what is of no use, too, and the others are swept.
#[test]
fn a_room_that_is_held_is_left_alone_and_named() {
    let site = littered(11);
    let before = site.tables();
    let planned = plan(&site);
    let held = planned.rooms.first().expect("litter").room_id.clone();
    let hold = Hold {
        name: "court".into(),
        rooms: vec![held.clone()],
        reason: "a case".into(),
        ..Hold::default()
    };
    add_hold(&site.config(), hold).expect("held");
    let planned = plan(&site);
    assert_eq!(planned.left_alone.len(), 1, "{planned:?}");
    assert_eq!(planned.left_alone[0].room_id, held);
    let sums = summary(&swept(site.config()));
    let after = site.tables();
    let of_room = |tables: &Tables| -> BTreeSet<i64> {
        let groups = tables.rows("state_groups").iter();
        groups
            .filter(|g| g.text("room_id") == Some(held.as_str()))
            .map(|g| g.number("id"))
            .collect()
    };
    assert_eq!(of_room(&before), of_room(&after));
    assert_eq!(sums.rooms_skipped, 1, "{sums:?}");
    assert_eq!(sums.skipped[0].room_id, held);
    assert_eq!(sums.skipped[0].error_code, "held");
    assert_only_litter_went(&before, &after, "a hold");
}

/// An event that is held, whose group no other event has.
fn lonely(tables: &Tables) -> (String, i64) {
    let held = held_events(tables);
    let mut events: BTreeMap<i64, Vec<&str>> = BTreeMap::new();
    for mapping in tables.rows("event_to_state_groups") {
        let of_group = events.entry(mapping.number("state_group")).or_default();
        of_group.push(mapping.word("event_id"));
    }
    let found = events
        .into_iter()
        .rev()
        .find(|(_, events)| events.len() == 1 && held.contains(events[0]));
    let (group, events) = found.expect("there is one");
    (events[0].to_owned(), group)
}

/// Live state that an index does not know any more stays: the sweep is refused, the index named, and no row goes. A large
/// server has lost state so.
#[test]
fn an_index_that_has_lost_rows_loses_no_state() {
    let with_amcheck: &[bool] = match current() {
        Engine::Sqlite => &[false],
        Engine::Postgres => &[false, true],
    };
    for (has_amcheck, index) in with_amcheck.iter().flat_map(|has| {
        [
            (*has, "event_to_state_groups_sg_index"),
            (*has, "state_group_edges_prev_idx"),
            (*has, "state_groups_state_type_idx"),
        ]
    }) {
        let site = littered(3);
        if has_amcheck {
            site.run_as_admin(
                "CREATE EXTENSION amcheck;
                 GRANT EXECUTE ON FUNCTION bt_index_check(regclass, boolean) TO PUBLIC",
            );
        }
        let tables = site.tables();
        let (event, group) = lonely(&tables);
        let (delete, insert) = match index {
            "event_to_state_groups_sg_index" => (
                format!("DELETE FROM event_to_state_groups WHERE event_id = '{event}'"),
                format!(
                    "INSERT INTO event_to_state_groups (event_id, state_group) VALUES ('{event}', {group})"
                ),
            ),
            "state_group_edges_prev_idx" => {
                let edge = &tables.rows("state_group_edges")[0];
                let (group, base) = (edge.number("state_group"), edge.number("prev_state_group"));
                (
                    format!("DELETE FROM state_group_edges WHERE state_group = {group}"),
                    format!(
                        "INSERT INTO state_group_edges (state_group, prev_state_group) VALUES ({group}, {base})"
                    ),
                )
            }
            _ => {
                let entry = &tables.rows("state_groups_state")[0];
                let [room, kind, key, id] =
                    ["room_id", "type", "state_key", "event_id"].map(|c| entry.word(c).to_owned());
                let group = entry.number("state_group");
                (
                    format!(
                        "DELETE FROM state_groups_state
                          WHERE state_group = {group} AND type = '{kind}' AND state_key = '{key}'"
                    ),
                    format!(
                        "INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id)
                         VALUES ({group}, '{room}', '{kind}', '{key}', '{id}')"
                    ),
                )
            }
        };
        site.lose_from_index(index, &delete, &insert);
        let before = site.tables();
        assert_same(
            &tables.without(&[]),
            &before,
            "the tables hold all they held",
        );
        let viewer = Viewer::open(site.config()).expect("opens");
        let planned = viewer.plan_state_sweep().expect_err("refused").to_string();
        drop(viewer);
        let job = sweep(site.config());
        assert_eq!(
            job.error_code.as_deref(),
            Some("refused"),
            "{index}: {job:?}"
        );
        let said = job.error.unwrap_or_default();
        for said in [&said, &planned] {
            assert!(
                said.contains(index),
                "{index}, amcheck {has_amcheck}: {said}"
            );
            assert!(said.contains("REINDEX"), "{said}");
        }
        assert_same(&before, &site.tables(), &format!("{index}: nothing goes"));
        // Built anew it is believed again.
        site.run(&match current() {
            Engine::Sqlite => format!("REINDEX {index}"),
            Engine::Postgres => format!("REINDEX INDEX {index}"),
        });
        swept(site.config());
        assert_only_litter_went(&before, &site.tables(), index);
        site.assert_sound(index);
    }
}

/// A sweep that is stopped goes on at the next start, to the same end, however far it had come.
#[test]
fn a_sweep_that_was_stopped_goes_on_to_the_same_end() {
    for seed in 0..4 {
        let site = littered(seed);
        let undisturbed = site.copy();
        swept(undisturbed.config());
        let keeper = Keeper::open(site.config()).expect("opens");
        let id = keeper.sweep_state().expect("begins");
        keeper.stop();
        let keeper = Keeper::open(site.config()).expect("opens");
        let _ = keeper.resume();
        let job = keeper.wait(&id).expect("complete");
        keeper.stop();
        assert_eq!(job.state, State::Complete, "{job:?}");
        assert_eq!(groups(&site.tables()), groups(&undisturbed.tables()));
        site.assert_sound("stopped");
    }
}

/// A sweep that is paused does nothing until it is to go on, and one that is cancelled has lost nothing.
#[test]
fn a_sweep_can_be_paused_and_cancelled() {
    let site = littered(5);
    let before = site.tables();
    let keeper = Keeper::open(site.config()).expect("opens");
    let id = keeper.sweep_state().expect("begins");
    if keeper.pause(&id).is_ok() {
        while !keeper.wait_for(&id, std::time::Duration::from_secs(1)) {}
        let job = keeper.job(&id).expect("read").expect("there");
        if job.state == State::Paused {
            keeper.continue_job(&id).expect("goes on");
        }
    }
    let _ = keeper.cancel(&id);
    let _ = keeper.wait(&id);
    keeper.stop();
    assert_only_litter_went(&before, &site.tables(), "cancelled");
    swept(site.config());
    assert_only_litter_went(&before, &site.tables(), "swept");
    site.assert_sound("swept");
}

also_on_postgres!(
    a_sweep_takes_every_group_that_no_event_has_and_its_plan_says_so,
    beside_a_homeserver_the_same_groups_are_marked_and_none_goes,
    only_events_that_are_held_keep_a_group,
    a_room_that_is_held_is_left_alone_and_named,
    an_index_that_has_lost_rows_loses_no_state,
    a_sweep_that_was_stopped_goes_on_to_the_same_end,
);
