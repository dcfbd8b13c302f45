//! However a purge is cut up, planned or repeated, it comes to the same end (I-41); and a dry run knows that end.

use rand::Rng;
use roomkeeper::Error;

use crate::support::draft::{Draft, Event};
use crate::support::model;
use crate::support::rooms::Recipe;
use crate::support::samples::{any_cut, count_in_samples, for_each_sample};
use crate::support::state_model::{Graph, STATE};
use crate::support::tables::assert_same;
use crate::support::work::{Ask, Site};

#[test]
fn two_batches_equal_one_rewrite_state_tables_included() {
    for_each_sample(12, |seed, rng| {
        let rewrite = Site::random(seed, &Recipe::default());
        let ask = any_cut(&rewrite.tables(), rng);
        let about = format!("seed {seed}, {ask:?}");
        let (offline, beside, hurried) = (rewrite.copy(), rewrite.copy(), rewrite.copy());
        let rewritten = rewrite.purge(&ask);
        if let Err(Error::JobFailed { text: said, .. }) = &rewritten {
            assert!(said.starts_with("400"), "{about}: {said}");
            return;
        }
        let rewritten = rewritten.expect("purged");
        let walked = offline
            .purge_with(offline.in_batches_of(rng.random_range(1..=20)), &ask)
            .expect("purged");
        assert_same(&rewrite.tables(), &offline.tables(), &about);
        assert_eq!(
            rewritten.rows_removed, walked.rows_removed,
            "{about}: rows counted"
        );
        offline.assert_sound(&about);
        // A time of 0 ms is always too short: every batch is given up, shortened, tried again.
        let kept = beside
            .purge_with(beside.beside(20, 60_000), &ask)
            .expect("purged")
            .extremities_kept;
        hurried
            .purge_with(hurried.beside(rng.random_range(1..=20), 0), &ask)
            .expect("purged");
        assert_same(
            &beside.tables(),
            &hurried.tables(),
            &format!("beside, {about}"),
        );
        // Beside a homeserver forward extremities stay where they are (P-51).
        if kept == 0 {
            assert_same(
                &rewrite.tables().without(STATE),
                &beside.tables().without(STATE),
                &format!("beside, {about}"),
            );
        }
    });
}

/// Somebody's module has a table that refers to events: one row to an event that goes, one to an event that stays.
fn with_a_table_of_others(action: &str) -> (Site, Ask) {
    const ROOM: &str = "!room:example.org";
    let mut draft = Draft::new("example.org", 1);
    draft.open_room(ROOM, "a", "@ann:example.org", 2);
    let mut before = "$a-join".to_owned();
    for n in 0..30 {
        let id = format!("$m{n}");
        draft.add(
            Event::message(&id, ROOM, "@rita:remote.example", 3 + n, 10 + n).after(&[&before]),
        );
        before = id;
    }
    let site = Site::of(draft);
    let conn = rusqlite::Connection::open(&site.database).expect("opens");
    conn.execute_batch(&format!(
        "CREATE TABLE module_marks (event TEXT REFERENCES events (event_id) {action});
         INSERT INTO module_marks VALUES ('$m12'), ('$m29');"
    ))
    .expect("made");
    (site, Ask::all_of(ROOM, 25))
}

/// The ways of going about it that delete: each looks after foreign keys in its own manner.
const WAYS: [fn(&Site) -> roomkeeper::Config; 4] = [
    |s| s.config(),
    |s| s.in_batches_of(4),
    |s| s.rewriting(),
    |s| s.beside(4, 60_000),
];

#[test]
fn an_event_that_a_foreign_table_needs_stops_the_purge_where_it_is() {
    for way in WAYS {
        let (site, ask) = with_a_table_of_others("");
        let refused = site.purge_with(way(&site), &ask).expect_err("must not");
        assert!(refused.to_string().contains("FOREIGN KEY"), "{refused}");
        let tables = site.tables();
        let is_there = tables
            .rows("events")
            .iter()
            .any(|e| e.word("event_id") == "$m12");
        assert!(is_there);
        site.assert_sound("stopped by a foreign key");
    }
}

#[test]
fn rows_that_cascade_from_an_event_go_with_it_and_no_others() {
    for way in WAYS {
        let (site, ask) = with_a_table_of_others("ON DELETE CASCADE");
        site.purge_with(way(&site), &ask).expect("purged");
        let conn = rusqlite::Connection::open(&site.database).expect("opens");
        let left: String = conn
            .query_row("SELECT group_concat(event) FROM module_marks", [], |r| {
                r.get(0)
            })
            .expect("asked");
        assert_eq!(left, "$m29");
        site.assert_sound("cascaded");
    }
}

#[test]
fn refilling_tables_removes_exactly_what_deleting_rows_removes() {
    let rewrites = count_in_samples(12, |seed, rng| {
        let mut rewrites = 0;
        let rows = Site::random(seed, &Recipe::default());
        let ask = any_cut(&rows.tables(), rng);
        let about = format!("seed {seed}, {ask:?}");
        let refilled = rows.copy();
        let by_rows = rows.purge(&ask);
        let by_refilling = refilled.purge_with(refilled.rewriting(), &ask);
        match (by_rows, by_refilling) {
            (Ok(by_rows), Ok(by_refilling)) => {
                assert_eq!(by_rows.rows_removed, by_refilling.rows_removed, "{about}");
                rewrites += u64::from(by_refilling.rewritten);
            }
            (Err(by_rows), Err(by_refilling)) => {
                assert_eq!(by_rows.to_string(), by_refilling.to_string(), "{about}");
            }
            (by_rows, by_refilling) => panic!("{about}: {by_rows:?}, {by_refilling:?}"),
        }
        assert_same(&rows.tables(), &refilled.tables(), &about);
        refilled.assert_sound(&about);
        rewrites
    });
    assert!(rewrites > 0, "no sample was rewritten");
}

#[test]
fn a_dry_run_says_exactly_what_the_purge_then_removes() {
    for_each_sample(12, |seed, rng| {
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
        let purged = site.purge_with(site.in_batches_of(rng.random_range(3..=100)), &ask);
        let (planned, purged) = match (planned, purged) {
            (Ok(planned), Ok(purged)) => (planned, purged),
            (Err(e), Err(Error::JobFailed { text: said, .. })) => {
                return assert_eq!(e.status_text(), said);
            }
            (planned, purged) => panic!("{about}: {planned:?}, {purged:?}"),
        };
        assert_eq!(planned.rows_removed, purged.rows_removed, "{about}");
        assert_eq!(planned.events_deleted, purged.events_deleted, "{about}");
        assert_eq!(
            planned.state_groups_freed, purged.state_groups_freed,
            "{about}"
        );
        let model = model::purge(&before, &site.wanted(&ask)).expect("not refused");
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

#[test]
fn a_purge_that_is_repeated_changes_nothing() {
    for_each_sample(8, |seed, rng| {
        let site = Site::random(seed, &Recipe::default());
        let ask = any_cut(&site.tables(), rng);
        let about = format!("seed {seed}, {ask:?}");
        if site.purge(&ask).is_err() {
            return;
        }
        let after = site.tables();
        let again = site.purge(&ask).expect("purged again");
        assert_eq!(again.rows_removed.len(), 0, "{about}: {again:?}");
        assert_same(&after, &site.tables(), &about);
        let rewritten = site
            .purge_with(site.rewriting(), &ask)
            .expect("and again, in a rewrite");
        assert_eq!(rewritten.rows_removed.len(), 0, "{about}: {rewritten:?}");
        assert_same(&after, &site.tables(), &about);
    });
}

/// I-41, over two jobs. Two things may differ: how state is stored, since it was stored anew twice; and which event
/// the list of rooms names, where the first purge moved it to a state event that the second one outliers (P-19 moves
/// it off deleted events only).
#[test]
fn a_purge_to_a_nearer_point_and_then_on_equals_one_purge() {
    for_each_sample(12, |seed, rng| {
        let at_once = Site::random(seed, &Recipe::default());
        let tables = at_once.tables();
        let ask = any_cut(&tables, rng);
        let nearer = Ask {
            below: rng.random_range(0..=ask.below),
            ..ask.clone()
        };
        let about = format!("seed {seed}, {ask:?}, first to {}", nearer.below);
        let in_two = at_once.copy();
        if at_once.purge(&ask).is_err() {
            return;
        }
        in_two.purge(&nearer).expect("purged");
        in_two.assert_sound(&about);
        in_two.purge(&ask).expect("purged on");
        in_two.assert_sound(&about);
        let (expected, found) = (at_once.tables(), in_two.tables());
        let states = Graph::of_events(&expected);
        assert_eq!(states, Graph::of_events(&found), "{about}: I-36");
        let but: Vec<&str> = STATE
            .iter()
            .copied()
            .chain(["sliding_sync_joined_rooms"])
            .collect();
        assert_same(&expected.without(&but), &found.without(&but), &about);
    });
}

also_on_postgres! {
    two_batches_equal_one_rewrite_state_tables_included,
    a_dry_run_says_exactly_what_the_purge_then_removes,
    a_purge_that_is_repeated_changes_nothing,
    a_purge_to_a_nearer_point_and_then_on_equals_one_purge,
}
