//! Random rooms, purged by the engine and by the model; and strides, repeats, dry runs held against each other.
//!
//! `ROOMKEEPER_SEED=<n>` repeats a failed run, `ROOMKEEPER_CASES=<n>` tries more samples.

mod support;

use std::collections::BTreeMap;

use rand::Rng;
use roomkeeper::Error;

use support::model::{self, Refused, Wanted};
use support::rooms::Recipe;
use support::samples::{any_cut, for_each_sample};
use support::state_model::Graph;
use support::tables::{Tables, assert_same};
use support::work::{Ask, Site};

/// The tables of state groups: how they are stored is free, what they say is not.
const STATE: &[&str] = &[
    "state_groups",
    "state_groups_state",
    "state_group_edges",
    "state_groups_pending_deletion",
    "sqlite_sequence",
];

fn wanted<'a>(site: &'a Site, ask: &'a Ask) -> Wanted<'a> {
    Wanted {
        room: &ask.room,
        below: ask.below,
        delete_local_events: ask.delete_local_events,
        server_name: &site.server_name,
    }
}

#[test]
fn samples_are_sound_before_anything_is_purged() {
    for_each_sample(10, |seed, _| {
        Site::random(seed, &Recipe::default()).assert_sound("as drawn");
    });
}

#[test]
fn a_purge_does_what_the_model_does() {
    for_each_sample(40, |seed, rng| {
        let site = Site::random(seed, &Recipe::default());
        let before = site.tables();
        let ask = any_cut(&before, rng);
        let about = format!("seed {seed}, {ask:?}");
        let found = site.purge(&ask);
        let after = site.tables();
        match model::purge(&before, &wanted(&site, &ask)) {
            Err(Refused::WouldEmptyRoom) => {
                let said = found.expect_err("the model refuses").to_string();
                assert_eq!(
                    said,
                    "400: topological_ordering is greater than forward extremities"
                );
                assert_same(&before, &after, &about);
            }
            Err(other) => panic!("{about}: {other:?}"),
            Ok(purged) => {
                found.unwrap_or_else(|e| panic!("{about}: {e}"));
                assert_same(
                    &purged.tables.without(STATE),
                    &after.clone().without(STATE),
                    &about,
                );
                assert_state(&purged.state, &before, &after, &about);
            }
        }
        site.assert_sound(&about);
    });
}

/// Holds the state tables against the model: which groups are left, what state each stands for, how many rows.
fn assert_state(
    expected: &support::state_model::Collected,
    before: &Tables,
    after: &Tables,
    about: &str,
) {
    let graph = Graph::of(after);
    let groups: Vec<i64> = graph.exist.iter().copied().collect();
    let wanted: Vec<i64> = expected.states.keys().copied().collect();
    assert_eq!(groups, wanted, "{about}: the groups that are left");
    for (group, state) in &expected.states {
        assert_eq!(
            &graph.state(*group),
            state,
            "{about}: the state of group {group}"
        );
    }
    let sizes = (after.sizes(), before.sizes());
    for table in ["state_groups", "state_groups_state", "state_group_edges"] {
        assert!(sizes.0[table] <= sizes.1[table], "{about}: {table} grew");
    }
    assert_eq!(
        sizes.0["state_groups_state"], expected.entries,
        "{about}: rows of state"
    );
    assert_eq!(
        sizes.0["state_group_edges"], expected.edges,
        "{about}: edges"
    );
    let rooms: BTreeMap<i64, &str> = after
        .rows("state_groups")
        .iter()
        .map(|g| (g.number("id"), g.word("room_id")))
        .collect();
    for row in after.rows("state_groups_state") {
        assert_eq!(
            rooms[&row.number("state_group")],
            row.word("room_id"),
            "{about}: {row:?}"
        );
    }
    let mut pending = before.clone();
    pending.retain("state_groups_pending_deletion", |r| {
        !expected.gone.contains(&r.number("state_group"))
    });
    assert_eq!(
        pending.rows("state_groups_pending_deletion"),
        after.rows("state_groups_pending_deletion"),
        "{about}: groups that wait for deletion"
    );
}

#[test]
fn two_strides_equal_one_leap_state_tables_included() {
    for_each_sample(25, |seed, rng| {
        let leap = Site::random(seed, &Recipe::default());
        let ask = any_cut(&leap.tables(), rng);
        let about = format!("seed {seed}, {ask:?}");
        let (offline, beside, hurried) = (leap.copy(), leap.copy(), leap.copy());
        let leaped = leap.purge(&ask);
        if let Err(Error::JobFailed(said)) = &leaped {
            assert!(said.starts_with("400"), "{about}: {said}");
            return;
        }
        let leaped = leaped.expect("purged");
        let walked = offline
            .purge_with(offline.in_strides_of(rng.random_range(1..=20)), &ask)
            .expect("purged");
        assert_same(&leap.tables(), &offline.tables(), &about);
        assert_eq!(
            leaped.rows_removed, walked.rows_removed,
            "{about}: rows counted"
        );
        offline.assert_sound(&about);
        // A time of 0 ms is always too short: every stride is given up, shortened, tried again.
        beside
            .purge_with(beside.beside(20, 60_000), &ask)
            .expect("purged");
        hurried
            .purge_with(hurried.beside(rng.random_range(1..=20), 0), &ask)
            .expect("purged");
        assert_same(
            &beside.tables(),
            &hurried.tables(),
            &format!("beside, {about}"),
        );
        assert_same(
            &leap.tables().without(STATE),
            &beside.tables().without(STATE),
            &format!("beside, {about}"),
        );
    });
}

#[test]
fn refilling_tables_removes_exactly_what_deleting_rows_removes() {
    let mut leaps = 0;
    for_each_sample(30, |seed, rng| {
        let rows = Site::random(seed, &Recipe::default());
        let ask = any_cut(&rows.tables(), rng);
        let about = format!("seed {seed}, {ask:?}");
        let refilled = rows.copy();
        let by_rows = rows.purge(&ask);
        let by_refilling = refilled.purge_with(refilled.leaping(), &ask);
        match (by_rows, by_refilling) {
            (Ok(by_rows), Ok(by_refilling)) => {
                assert_eq!(by_rows.rows_removed, by_refilling.rows_removed, "{about}");
                leaps += u64::from(by_refilling.leapt);
            }
            (Err(by_rows), Err(by_refilling)) => {
                assert_eq!(by_rows.to_string(), by_refilling.to_string(), "{about}");
            }
            (by_rows, by_refilling) => panic!("{about}: {by_rows:?}, {by_refilling:?}"),
        }
        assert_same(&rows.tables(), &refilled.tables(), &about);
        refilled.assert_sound(&about);
    });
    assert!(leaps > 0, "no sample leapt");
}

#[test]
fn a_dry_run_says_exactly_what_the_purge_then_removes() {
    for_each_sample(25, |seed, rng| {
        let site = Site::random(seed, &Recipe::default());
        let before = site.tables();
        let ask = any_cut(&before, rng);
        let about = format!("seed {seed}, {ask:?}");
        let planned = site.plan(&ask);
        assert_same(
            &before,
            &site.tables(),
            &format!("{about}: a dry run changes nothing"),
        );
        let purged = site.purge_with(site.in_strides_of(rng.random_range(3..=100)), &ask);
        let (planned, purged) = match (planned, purged) {
            (Ok(planned), Ok(purged)) => (planned, purged),
            (Err(e), Err(Error::JobFailed(said))) => return assert_eq!(e.status_text(), said),
            (planned, purged) => panic!("{about}: {planned:?}, {purged:?}"),
        };
        assert_eq!(planned.rows_removed, purged.rows_removed, "{about}");
        assert_eq!(planned.events_deleted, purged.events_deleted, "{about}");
        assert_eq!(
            planned.state_groups_freed, purged.state_groups_freed,
            "{about}"
        );
        let model = model::purge(&before, &wanted(&site, &ask)).expect("not refused");
        let count = |n: usize| i64::try_from(n).expect("few");
        assert_eq!(
            planned.events_deleted,
            count(model.deleted.len()),
            "{about}"
        );
        assert_eq!(
            planned.events_kept_as_outliers,
            count(model.outliered.len()),
            "{about}"
        );
        for (table, rows) in &model.removed {
            assert_eq!(
                planned.rows_removed.get(table),
                Some(rows),
                "{about}: {table}"
            );
        }
        let (had, has) = (before.sizes(), site.tables().sizes());
        for (table, rows) in &planned.rows_removed {
            // New extremities take the place of old ones; everywhere else less is less.
            if table != "event_backward_extremities" && table != "event_search" {
                assert_eq!(had[table] - has[table], *rows, "{about}: {table}");
            }
        }
    });
}
