//! Compressing state groups: the same states in fewer rows, in chains that stay short, on both engines.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::engine::{Engine, current, share_of};
use crate::support::groups::{Groups, State as RoomState};
use crate::support::rooms::{self, Recipe};
use crate::support::state_model::Graph;
use crate::support::tables::{Tables, assert_same, row};
use crate::support::work::{Site, cases, progress_of, seed};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use roomkeeper::error::Error;
use roomkeeper::hold::Hold;
use roomkeeper::jobs::ledger::{JobRecord, State};
use roomkeeper::keeper::{
    CompressRequest, StateCompressPlan, StateCompressSummary, Viewer, add_hold,
};
use roomkeeper::rooms::{Condition, Selectors};
use roomkeeper::{Config, Keeper};

/// The longest chain of the levels together.
const MOST_LINKS: usize = 175;

/// The state of a group of a draft.
fn full(groups: &Groups, group: i64) -> RoomState {
    let mut state = RoomState::new();
    let mut at = Some(group);
    while let Some(here) = at {
        for (key, event) in &groups.groups[&here].entries {
            state.entry(key.clone()).or_insert_with(|| event.clone());
        }
        at = groups.groups[&here].base;
    }
    state
}

/// A server whose rooms have many more groups: long chains, branches, states that lose keys, groups that rest on another room's,
/// and groups in full among them.
fn crowded(seed: u64, most: usize) -> Site {
    let mut draft = rooms::draw(seed, &Recipe::default());
    let mut rng = StdRng::seed_from_u64(seed ^ 0xc0de);
    if draft.groups.groups.is_empty() {
        draft.settle();
    }
    let groups = &mut draft.groups;
    groups.full_one_in = [0, 4, 40, 100][rng.random_range(0..4)];
    let used: Vec<i64> = groups.of_event.values().copied().collect();
    let links = |groups: &Groups, group: i64| {
        let mut all = 0;
        let mut at = groups.groups[&group].base;
        while let Some(base) = at {
            all += 1;
            at = groups.groups[&base].base;
        }
        all
    };
    let mut of_room: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for group in used {
        let all = of_room.entry(groups.groups[&group].room.clone());
        all.or_default().push(group);
    }
    let rooms: Vec<String> = of_room.keys().cloned().collect();
    let keys = rng.random_range(2..60);
    for _ in 0..rng.random_range(20..most) {
        let room = &rooms[rng.random_range(0..rooms.len())];
        let known = of_room.get_mut(room).expect("groups");
        let back = match rng.random_range(0..20) {
            0 => rng.random_range(0..known.len()),
            1 | 2 => rng.random_range(0..known.len().min(8)),
            _ => 0,
        };
        let base = known[known.len() - 1 - back];
        let mut state = full(groups, base);
        let Some(event) = state.values().next_back().cloned() else {
            continue;
        };
        for _ in 0..rng.random_range(1..4) {
            let key = format!("k{}", rng.random_range(0..keys));
            let events: Vec<String> = state.values().cloned().collect();
            let value = events[rng.random_range(0..events.len())].clone();
            state.insert(("org.example.crowd".to_owned(), key), value);
        }
        // Synapse makes no longer chain.
        let mut on = Some(base).filter(|base| links(groups, *base) < 100);
        if rng.random_ratio(1, 12) {
            // A state that lost a key can be no delta.
            let lost = state.keys().find(|(kind, _)| kind == "org.example.crowd");
            if let Some(lost) = lost.cloned() {
                state.remove(&lost);
            }
            on = None;
        }
        known.push(groups.store(room, &event, state, on));
    }
    Site::of(draft)
}

fn run(config: Config, request: &CompressRequest) -> JobRecord {
    let keeper = Keeper::open(config).expect("opens");
    let id = keeper.compress_state(request).expect("begins");
    let _ = keeper.wait(&id);
    let job = keeper.job(&id).expect("read").expect("there");
    keeper.stop();
    job
}

fn compressed(config: Config) -> JobRecord {
    let job = run(config, &CompressRequest::default());
    assert_eq!(job.state, State::Complete, "{job:?}");
    job
}

fn plan(site: &Site) -> StateCompressPlan {
    let viewer = Viewer::open(site.config()).expect("opens");
    let request = CompressRequest::default();
    viewer.plan_state_compress(&request).expect("planned")
}

fn summary(job: &JobRecord) -> StateCompressSummary {
    serde_json::from_value(job.progress.clone()).expect("a compression's sums")
}

fn rows(tables: &Tables, table: &str) -> i64 {
    i64::try_from(tables.rows(table).len()).expect("few")
}

/// Everything but how states are stored.
fn others(tables: &Tables) -> Tables {
    tables.clone().without(&[
        "state_groups_state",
        "state_group_edges",
        "sqlite_stat1",
        "sqlite_stat4",
    ])
}

fn longest_chain(graph: &Graph) -> usize {
    let links = |group: &i64| {
        let (mut at, mut met) = (Some(*group), BTreeSet::new());
        while let Some(here) = at.filter(|here| met.insert(*here)) {
            at = graph.base.get(&here).copied();
        }
        met.len() - 1
    };
    graph.exist.iter().map(links).max().unwrap_or(0)
}

/// Every state is what it was, in no more rows; nothing else was touched; chains are short, and lead to lower numbers.
#[track_caller]
fn assert_only_stored_otherwise(before: &Tables, after: &Tables, about: &str) {
    assert_same(&others(before), &others(after), about);
    let (was, is) = (Graph::of(before), Graph::of(after));
    for group in &was.exist {
        assert_eq!(was.state(*group), is.state(*group), "{about}: {group}");
    }
    let table = "state_groups_state";
    assert!(rows(after, table) <= rows(before, table), "{about}");
    let most = MOST_LINKS.max(longest_chain(&was));
    assert!(longest_chain(&is) <= most, "{about}");
    for (group, base) in &is.base {
        let is_old = was.base.get(group) == Some(base);
        assert!(is_old || base < group, "{about}: {group} on {base}");
    }
}

/// The rows that the levels alone would leave, by rooms: the head of the first level that has room, or what that rests on. Groups
/// that Synapse is about to delete or uses stay as they are, with those that rest on them.
fn rows_by_levels(tables: &Tables) -> i64 {
    let graph = Graph::of(tables);
    let gone = ["state_groups_pending_deletion", "state_groups_persisting"];
    let gone: BTreeSet<i64> = gone
        .iter()
        .flat_map(|table| tables.rows(table))
        .map(|row| row.number("state_group"))
        .collect();
    let room_of: BTreeMap<i64, &str> = tables
        .rows("state_groups")
        .iter()
        .map(|group| (group.number("id"), group.word("room_id")))
        .collect();
    let mut of_room: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for group in tables.rows("state_groups") {
        let all = of_room.entry(group.word("room_id")).or_default();
        all.push(group.number("id"));
    }
    let mut rows = 0;
    for groups in of_room.values_mut() {
        groups.sort_unstable();
        let mut levels: [(Option<i64>, usize); 3] = [(None, 0); 3];
        let mut made: BTreeMap<i64, Option<i64>> = BTreeMap::new();
        for group in groups {
            let stored = || {
                let stored = graph.entries.get(group).map_or(0, RoomState::len);
                i64::try_from(stored).expect("few")
            };
            if gone.contains(group) {
                rows += stored();
                continue;
            }
            let mut head = None;
            for (level, most) in levels.iter_mut().zip([100, 50, 25]) {
                let is_full = level.1 >= most;
                if !is_full {
                    head = level.0;
                }
                *level = (Some(*group), if is_full { 1 } else { level.1 + 1 });
                if !is_full {
                    break;
                }
            }
            let old = graph.base.get(group);
            let stays = |old: &i64| gone.contains(old) || room_of.get(old) != room_of.get(group);
            if old.is_some_and(stays) {
                made.insert(*group, old.copied());
                rows += stored();
                continue;
            }
            let state = graph.state(*group);
            let mut base = head;
            let delta = loop {
                let Some(on) = base else {
                    break state.len();
                };
                let below = graph.state(on);
                let fits = below.keys().all(|key| state.contains_key(key));
                if fits && !gone.contains(&on) {
                    let differs = |(key, event): &(&_, &String)| below.get(*key) != Some(*event);
                    break state.iter().filter(differs).count();
                }
                base = made.get(&on).copied().flatten();
            };
            made.insert(*group, base);
            rows += i64::try_from(delta).expect("few");
        }
    }
    rows
}

#[test]
fn states_stay_what_they_are_in_no_more_rows_and_a_second_run_finds_nothing() {
    let first = seed();
    for seed in first..first + cases(share_of(6)) {
        let about = format!("seed {seed}");
        let site = crowded(seed, 320);
        let before = site.tables();
        let planned = plan(&site);
        assert_same(&before, &site.tables(), &format!("{about}: a plan reads"));
        let job = compressed(site.config());
        let after = site.tables();
        assert_only_stored_otherwise(&before, &after, &about);
        let by_levels = rows_by_levels(&before);
        let left = rows(&after, "state_groups_state");
        assert!(
            left <= by_levels,
            "{about}: {left} rows and not {by_levels}"
        );
        let sums = summary(&job);
        assert_eq!(planned.sums, sums.sums, "{about}");
        let removed = progress_of(&job).rows_removed;
        let of = |table: &str| removed.get(table).copied().unwrap_or(0);
        for table in ["state_groups_state", "state_group_edges"] {
            let gone = rows(&before, table) - rows(&after, table);
            assert_eq!(of(table), gone, "{about}: {table}");
        }
        assert_eq!(planned.more_edges, -of("state_group_edges"), "{about}");
        site.assert_sound(&about);
        let again = compressed(site.config());
        assert_eq!(summary(&again).sums.groups_changed, 0, "{about}");
        assert_same(&after, &site.tables(), &format!("{about}: once more"));
    }
}

/// A room that Synapse filled: a full state every hundred groups becomes a few rows, and half of it done before comes to the same.
#[test]
fn what_synapse_stores_in_full_every_hundred_groups_becomes_small() {
    let site = crowded(3, 21);
    let tables = site.tables();
    let group = &tables.rows("state_groups")[0];
    let (room, event) = (group.word("room_id"), group.word("event_id"));
    let mut entries = Vec::new();
    let (first, many) = (1_000_000, 1_200);
    for n in 0..many {
        let group = first + n;
        let from = if n % 100 == 0 { 0 } else { n };
        for key in from..=n {
            entries.push(format!(
                "({group}, '{room}', 'org.example.member', '@u{key}', '{event}')"
            ));
        }
    }
    site.run(&format!(
        "INSERT INTO state_groups (id, room_id, event_id) VALUES {}",
        (0..many)
            .map(|n| format!("({}, '{room}', '{event}')", first + n))
            .collect::<Vec<_>>()
            .join(", ")
    ));
    site.run(&format!(
        "INSERT INTO state_group_edges (state_group, prev_state_group) VALUES {}",
        (0..many)
            .filter(|n| n % 100 != 0)
            .map(|n| format!("({}, {})", first + n, first + n - 1))
            .collect::<Vec<_>>()
            .join(", ")
    ));
    for some in entries.chunks(2_000) {
        site.run(&format!(
            "INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id) VALUES {}",
            some.join(", ")
        ));
    }
    let before = site.tables();
    let had = rows(&before, "state_groups_state");
    let job = compressed(site.config());
    let after = site.tables();
    assert_only_stored_otherwise(&before, &after, "a long room");
    let left = rows(&after, "state_groups_state");
    assert!(left * 2 < had, "{had} rows became {left}: {job:?}");
    assert!(left <= rows_by_levels(&before));
    site.assert_sound("a long room");
    // A run that was killed between two transactions: the groups from the middle on are as they were, and rest on longer chains.
    let from = first + 700;
    for table in ["state_groups_state", "state_group_edges"] {
        site.run(&format!("DELETE FROM {table} WHERE state_group >= {from}"));
    }
    let old = |table: &str| {
        let rows = before.rows(table).iter();
        rows.filter(|r| r.number("state_group") >= from)
            .collect::<Vec<_>>()
    };
    let edges: Vec<String> = old("state_group_edges")
        .iter()
        .map(|e| {
            format!(
                "({}, {})",
                e.number("state_group"),
                e.number("prev_state_group")
            )
        })
        .collect();
    site.run(&format!(
        "INSERT INTO state_group_edges (state_group, prev_state_group) VALUES {}",
        edges.join(", ")
    ));
    let entries: Vec<String> = old("state_groups_state")
        .iter()
        .map(|e| {
            let group = e.number("state_group");
            let [room, kind, key, event] =
                ["room_id", "type", "state_key", "event_id"].map(|column| e.word(column));
            format!("({group}, '{room}', '{kind}', '{key}', '{event}')")
        })
        .collect();
    for some in entries.chunks(2_000) {
        site.run(&format!(
            "INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id) VALUES {}",
            some.join(", ")
        ));
    }
    compressed(site.config());
    let again = site.tables();
    assert!(longest_chain(&Graph::of(&again)) <= MOST_LINKS);
    assert_same(&after, &again, "goes on to the same end");
}

#[test]
fn only_the_rooms_that_are_meant_are_touched_and_held_ones_are_left() {
    let site = crowded(5, 320);
    let before = site.tables();
    let planned = plan(&site);
    assert!(planned.rooms.len() > 1, "{planned:?}");
    let (meant, held) = (&planned.rooms[0].room_id, &planned.rooms[1].room_id);
    let request = CompressRequest {
        selectors: Selectors {
            only: vec![Condition::Room(meant.as_str().to_owned())],
            not: Vec::new(),
        },
    };
    let job = run(site.config(), &request);
    assert_eq!(job.state, State::Complete, "{job:?}");
    let after = site.tables();
    assert_only_stored_otherwise(&before, &after, "one room");
    let of_others = |tables: &Tables| {
        let rows = tables.rows("state_groups_state").iter();
        let of_others = rows.filter(|r| r.word("room_id") != meant.as_str());
        of_others.cloned().collect::<BTreeSet<_>>()
    };
    assert_eq!(of_others(&before), of_others(&after));
    let hold = Hold {
        name: "court".into(),
        rooms: vec![held.clone()],
        reason: "a case".into(),
        ..Hold::default()
    };
    add_hold(&site.config(), hold).expect("held");
    let sums = summary(&compressed(site.config()));
    assert_eq!(sums.rooms_skipped, 1, "{sums:?}");
    assert_eq!(sums.skipped[0].room_id, *held);
    let of_held = |tables: &Tables| {
        let rows = tables.rows("state_groups_state").iter();
        let of_held = rows.filter(|r| r.word("room_id") == held.as_str());
        of_held.cloned().collect::<BTreeSet<_>>()
    };
    assert_eq!(of_held(&before), of_held(&site.tables()));
    let nobody = CompressRequest {
        selectors: Selectors {
            only: vec![Condition::Room("!nobody:example.org".into())],
            not: Vec::new(),
        },
    };
    let keeper = Keeper::open(site.config()).expect("opens");
    assert!(keeper.compress_state(&nobody).is_err());
    keeper.stop();
}

/// Groups that Synapse is about to delete, or uses, stay as they are, with those that rest on them, and nothing comes to rest on
/// them.
#[test]
fn what_synapse_is_about_to_delete_is_left_alone() {
    let first = seed();
    for seed in first..first + cases(share_of(6)) {
        let about = format!("seed {seed}");
        let site = crowded(seed, 200);
        let mut rng = StdRng::seed_from_u64(seed);
        let tables = site.tables();
        let used: BTreeSet<i64> = tables
            .rows("event_to_state_groups")
            .iter()
            .map(|m| m.number("state_group"))
            .collect();
        let known = tables.rows("state_groups_pending_deletion").iter();
        let mut pending: BTreeSet<i64> = known.map(|p| p.number("state_group")).collect();
        for group in tables.rows("state_groups") {
            let id = group.number("id");
            if !used.contains(&id) && rng.random_ratio(1, 4) && pending.insert(id) {
                let cells = row([("state_group", id.into()), ("insertion_ts", 1.into())]);
                site.insert("state_groups_pending_deletion", &cells);
            }
        }
        let before = site.tables();
        compressed(match current() {
            Engine::Sqlite => site.config(),
            Engine::Postgres => site.beside(100, 60_000),
        });
        let after = site.tables();
        assert_only_stored_otherwise(&before, &after, &about);
        let (was, is) = (Graph::of(&before), Graph::of(&after));
        for group in &was.exist {
            let rests = |graph: &Graph| graph.base.get(group).is_some_and(|b| pending.contains(b));
            if pending.contains(group) || rests(&was) {
                assert_eq!(was.base.get(group), is.base.get(group), "{about}: {group}");
                assert_eq!(was.entries.get(group), is.entries.get(group), "{about}");
            } else {
                assert!(!rests(&is), "{about}: {group} rests on one that goes");
            }
        }
    }
}

/// Circles, groups on two others, edges to groups that are not there: nobody can say what they hold, and nothing of them changes.
#[test]
fn what_nobody_can_say_the_state_of_is_left_alone() {
    let site = crowded(8, 200);
    let tables = site.tables();
    let graph = Graph::of(&tables);
    let (group, base) = graph.base.iter().next().expect("a delta");
    let (last, before_last) = graph.base.iter().next_back().expect("a delta");
    let edge = |group: i64, base: i64| {
        site.insert(
            "state_group_edges",
            &row([
                ("state_group", group.into()),
                ("prev_state_group", base.into()),
            ]),
        );
    };
    // A circle, a group on two, and one on a group that is gone.
    edge(*base, *group);
    let newest = *graph.exist.iter().next_back().expect("groups");
    edge(
        *last,
        if before_last - 1 > 0 {
            before_last - 1
        } else {
            newest
        },
    );
    let lost = *graph.base.keys().nth(graph.base.len() / 2).expect("deltas");
    site.run(&format!(
        "UPDATE state_group_edges SET prev_state_group = 999999999 WHERE state_group = {lost}"
    ));
    let before = site.tables();
    let job = compressed(site.config());
    let after = site.tables();
    let of = |tables: &Tables, group: i64| {
        let edges = tables.rows("state_group_edges").iter();
        let edges = edges.filter(|e| e.number("state_group") == group).cloned();
        let entries = tables.rows("state_groups_state").iter();
        let entries = entries
            .filter(|e| e.number("state_group") == group)
            .cloned();
        (
            edges.collect::<BTreeSet<_>>(),
            entries.collect::<BTreeSet<_>>(),
        )
    };
    for group in [*group, *base, *last, lost] {
        assert_eq!(of(&before, group), of(&after, group), "{group}");
    }
    assert!(summary(&job).sums.groups_left_alone >= 4, "{job:?}");
    let (was, is) = (Graph::of(&before), Graph::of(&after));
    for group in was.exist.iter().filter(|g| **g != *last) {
        assert_eq!(was.state(*group), is.state(*group), "{group}");
    }
}

/// On SQLite Synapse would read one half of a group as it was and the other as it is.
#[test]
fn beside_synapse_on_a_file_it_is_refused_with_the_reason() {
    let site = crowded(4, 100);
    let before = site.tables();
    let keeper = Keeper::open(site.beside(100, 60_000)).expect("opens");
    let refused = keeper.compress_state(&CompressRequest::default());
    keeper.stop();
    let said = match refused {
        Err(Error::Refused(said)) => said,
        other => panic!("{other:?}"),
    };
    assert!(said.contains("Stop it"), "{said}");
    assert_same(&before, &site.tables(), "nothing");
    let viewer = Viewer::open(site.beside(100, 60_000)).expect("opens");
    let planned = viewer.plan_state_compress(&CompressRequest::default());
    assert!(planned.expect("planned").notes.contains(&said));
}

/// An index that does not find every row of a group: the compression is refused, the index named, and no row goes.
#[test]
fn an_index_that_has_lost_rows_loses_no_state() {
    let index = "state_groups_state_type_idx";
    let site = crowded(6, 200);
    let tables = site.tables();
    let entry = &tables.rows("state_groups_state")[0];
    let [room, kind, key, id] =
        ["room_id", "type", "state_key", "event_id"].map(|c| entry.word(c).to_owned());
    let group = entry.number("state_group");
    site.lose_from_index(
        index,
        &format!(
            "DELETE FROM state_groups_state
              WHERE state_group = {group} AND type = '{kind}' AND state_key = '{key}'"
        ),
        &format!(
            "INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id)
             VALUES ({group}, '{room}', '{kind}', '{key}', '{id}')"
        ),
    );
    let before = site.tables();
    let viewer = Viewer::open(site.config()).expect("opens");
    let planned = viewer.plan_state_compress(&CompressRequest::default());
    let planned = planned.expect_err("refused").to_string();
    drop(viewer);
    let job = run(site.config(), &CompressRequest::default());
    assert_eq!(job.error_code.as_deref(), Some("refused"), "{job:?}");
    for said in [&planned, &job.error.unwrap_or_default()] {
        assert!(said.contains(index) && said.contains("REINDEX"), "{said}");
    }
    assert_same(&before, &site.tables(), "nothing goes");
}

/// A compression that is stopped, paused or cancelled has lost nothing, and goes on to the same end.
#[test]
fn one_that_was_stopped_goes_on_to_the_same_end() {
    for seed in 0..cases(share_of(2)) {
        let site = crowded(seed, 200);
        let undisturbed = site.copy();
        compressed(undisturbed.config());
        let keeper = Keeper::open(site.config()).expect("opens");
        let id = keeper
            .compress_state(&CompressRequest::default())
            .expect("begins");
        keeper.stop();
        let keeper = Keeper::open(site.config()).expect("opens");
        let _ = keeper.resume();
        let job = keeper.wait(&id).expect("complete");
        assert_eq!(job.state, State::Complete, "{job:?}");
        let id = keeper
            .compress_state(&CompressRequest::default())
            .expect("begins");
        let _ = keeper.cancel(&id);
        let _ = keeper.wait(&id);
        keeper.stop();
        assert_same(&undisturbed.tables(), &site.tables(), "stopped");
        site.assert_sound("stopped");
    }
}

also_on_postgres!(
    states_stay_what_they_are_in_no_more_rows_and_a_second_run_finds_nothing,
    what_synapse_stores_in_full_every_hundred_groups_becomes_small,
    only_the_rooms_that_are_meant_are_touched_and_held_ones_are_left,
    what_synapse_is_about_to_delete_is_left_alone,
    what_nobody_can_say_the_state_of_is_left_alone,
    an_index_that_has_lost_rows_loses_no_state,
    one_that_was_stopped_goes_on_to_the_same_end,
);
