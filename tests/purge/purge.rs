//! Random rooms, purged by the engine and by the model; and batches, repeats, dry runs held against each other.
//!
//! `ROOMKEEPER_SEED=<n>` repeats a failed run, `ROOMKEEPER_CASES=<n>` tries more samples.

use std::collections::BTreeMap;

use crate::support::model::{self, Refused};
use crate::support::rooms::Recipe;
use crate::support::samples::{any_cut, for_each_sample};
use crate::support::state_model::{Collected, Graph, STATE};
use crate::support::tables::{Tables, assert_same};
use crate::support::work::Site;

#[test]
fn samples_are_sound_before_anything_is_purged() {
    for_each_sample(5, |seed, _| {
        Site::random(seed, &Recipe::default()).assert_sound("as drawn");
    });
}

#[test]
fn a_purge_does_what_the_model_does() {
    for_each_sample(25, |seed, rng| {
        let site = Site::random(seed, &Recipe::default());
        let before = site.tables();
        let ask = any_cut(&before, rng);
        let about = format!("seed {seed}, {ask:?}");
        let found = site.purge(&ask);
        let after = site.tables();
        match model::purge(&before, &site.wanted(&ask)) {
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
fn assert_state(expected: &Collected, before: &Tables, after: &Tables, about: &str) {
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

/// Beside a homeserver the groups are left to it (P-41, P-45).
#[test]
fn beside_a_homeserver_state_groups_are_marked_and_nothing_else_is_done_to_them() {
    for_each_sample(12, |seed, rng| {
        let site = Site::random(seed, &Recipe::default());
        let before = site.tables();
        let ask = any_cut(&before, rng);
        let about = format!("seed {seed}, {ask:?}");
        let Ok(purged) = model::purge(&before, &site.wanted_beside(&ask)) else {
            return;
        };
        let done = site
            .purge_with(site.beside(1_000, 60_000), &ask)
            .unwrap_or_else(|e| panic!("{about}: {e}"));
        let mut after = site.tables();
        let old = before.rows("state_groups_pending_deletion");
        let mut marked = BTreeMap::new();
        after.retain("state_groups_pending_deletion", |row| {
            if !old.contains(row) {
                marked.insert(row.number("state_group"), row.number("insertion_ts"));
            }
            old.contains(row)
        });
        let now = crate::support::work::NOW.0;
        let expected: BTreeMap<i64, i64> = purged.state.to_mark.iter().map(|g| (*g, now)).collect();
        assert_eq!(marked, expected, "{about}: groups marked");
        assert_eq!(done.state_groups_freed, 0, "{about}");
        let but = ["sqlite_sequence"];
        assert_same(&purged.tables.without(&but), &after.without(&but), &about);
        site.assert_sound(&about);
    });
}

also_on_postgres! {
    samples_are_sound_before_anything_is_purged,
    a_purge_does_what_the_model_does,
    beside_a_homeserver_state_groups_are_marked_and_nothing_else_is_done_to_them,
}
