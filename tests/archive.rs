//! What a purge removes is written down first, and comes back: random rooms, purged each way, written on, restored.
//!
//! `ROOMKEEPER_SEED=<n>` repeats a failed run, `ROOMKEEPER_CASES=<n>` tries more samples.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use roomkeeper::config::{Archive, HomeserverPolicy};
use roomkeeper::keeper::{self, Restoration, RestoreRequest};
use roomkeeper::{Config, Error, JobId, Keeper, RoomId};
use support::rooms::Recipe;
use support::samples::{any_cut, for_each_sample};
use support::state_model::{Graph, STATE};
use support::tables::{Row, Tables, Value, assert_same};
use support::work::{Ask, Site};

/// What a restoration leaves as people left it.
const LEFT: &[&str] = &[
    "event_forward_extremities",
    "event_push_summary",
    "sliding_sync_joined_rooms",
];

fn directory(site: &Site) -> PathBuf {
    site.directory().join("archive")
}

fn archiving(site: &Site, config: Config) -> Config {
    let mut config = config;
    config.archive = Some(Archive::in_directory(directory(site)));
    config
}

/// How a purge goes about it.
fn ways(site: &Site) -> Vec<(&'static str, Config)> {
    vec![
        ("in one batch", site.config()),
        ("in batches", site.in_batches_of(5)),
        ("rewriting", site.rewriting()),
        ("beside a homeserver", site.beside(7, 60_000)),
    ]
}

/// Purges; `None` where that is refused.
fn purge(config: Config, ask: &Ask) -> Option<JobId> {
    let keeper = Keeper::open(config).expect("opens");
    let room = RoomId::new(&*ask.room);
    let id = keeper
        .purge_history(&room, ask.point(), ask.options())
        .expect("accepted");
    let outcome = keeper.wait(&id);
    keeper.stop();
    outcome.ok().map(|_| id)
}

fn restore(site: &Site, job: &JobId, dry_run: bool) -> Result<Restoration, Error> {
    let config = archiving(site, site.config());
    let request = RestoreRequest {
        job: job.clone(),
        room: None,
        dry_run,
    };
    keeper::restore(&config, &request)
}

/// Without what has no meaning: which documents of the index have which numbers.
fn told(mut tables: Tables) -> Tables {
    for row in tables.rows_mut("event_search_content") {
        row.0.remove("docid");
    }
    tables.sort();
    tables
}

/// The state of every event that has one.
fn states(tables: &Tables) -> BTreeMap<String, support::groups::State> {
    Graph::of_events(tables)
}

/// The timeline of a room, in its order.
fn timeline(tables: &Tables, room: &str) -> Vec<String> {
    let events = tables.rows("events").iter();
    let mut events: Vec<&Row> = events
        .filter(|e| e.word("room_id") == room && !e.is("outlier"))
        .collect();
    events.sort_by_key(|e| {
        (
            e.number("topological_ordering"),
            e.number("stream_ordering"),
        )
    });
    events
        .iter()
        .map(|e| e.word("event_id").to_owned())
        .collect()
}

#[test]
fn what_a_purge_removed_comes_back_as_it_was() {
    for_each_sample(16, |seed, rng| {
        let original = Site::random(seed, &Recipe::default());
        let before = original.tables();
        let ask = any_cut(&before, rng);
        for n in 0..4 {
            let site = original.copy();
            let (way, config) = ways(&site).remove(n);
            let about = format!("seed {seed}, {way}, {ask:?}");
            let job = purge(archiving(&site, config), &ask);
            let purged = site.tables();
            let (Some(job), true) = (job, purged != before) else {
                continue;
            };
            if purged.rows("events").len() == before.rows("events").len()
                && !directory(&site).exists()
            {
                continue;
            }
            let plan = restore(&site, &job, true).unwrap_or_else(|e| panic!("{about}: {e}"));
            assert_same(&purged, &site.tables(), &format!("{about}: a dry run"));
            let done = restore(&site, &job, false).unwrap_or_else(|e| panic!("{about}: {e}"));
            assert_eq!(plan.events, done.events, "{about}");
            let after = site.tables();
            let left: Vec<&str> = LEFT.iter().chain(STATE).copied().collect();
            assert_same(
                &told(before.clone()).without(&left),
                &told(after.clone()).without(&left),
                &about,
            );
            let (wanted, found) = (states(&before), states(&after));
            for (event, state) in &wanted {
                assert_eq!(
                    found.get(event),
                    Some(state),
                    "{about}: the state of {event}"
                );
            }
            assert_eq!(
                timeline(&before, &ask.room),
                timeline(&after, &ask.room),
                "{about}"
            );
            site.assert_sound(&about);
            // A second time there is nothing to do.
            let again = restore(&site, &job, false).unwrap_or_else(|e| panic!("{about}: {e}"));
            assert_eq!((again.events, again.state_groups), (0, 0), "{about}");
            assert_same(&after, &site.tables(), &format!("{about}: again"));
            // It would go again, and does not.
            let config = site.config();
            let keeper = Keeper::open(config).expect("opens");
            let held = keeper.purge_history(&RoomId::new(&*ask.room), ask.point(), ask.options());
            assert!(matches!(held, Err(Error::Held(_))), "{about}: {held:?}");
            keeper.stop();
        }
    });
}

/// Rows of a table whose column has the value.
fn with<'a>(tables: &'a Tables, table: &str, column: &'a str, value: &'a str) -> Vec<&'a Row> {
    let rows = tables.rows(table).iter();
    rows.filter(|r| r.text(column) == Some(value)).collect()
}

/// People go on: another room gets the numbers of state groups and of backfilled events that went, and the purged room an
/// event on top of its newest.
fn write_on(site: &Site, before: &Tables, ask: &Ask) -> Vec<String> {
    let after = site.tables();
    let ids = |tables: &Tables, table: &str, column: &str| -> BTreeSet<i64> {
        tables
            .rows(table)
            .iter()
            .map(|r| r.number(column))
            .collect()
    };
    let gone: Vec<i64> = ids(before, "state_groups", "id")
        .difference(&ids(&after, "state_groups", "id"))
        .copied()
        .collect();
    let orders: Vec<i64> = ids(before, "events", "stream_ordering")
        .difference(&ids(&after, "events", "stream_ordering"))
        .copied()
        .collect();
    let tip = with(&after, "event_forward_extremities", "room_id", &ask.room);
    let Some(tip) = tip.first().map(|f| f.word("event_id").to_owned()) else {
        return Vec::new();
    };
    let tip_row = with(&after, "events", "event_id", &tip)[0].clone();
    let group = with(&after, "event_to_state_groups", "event_id", &tip)[0].number("state_group");
    let add = |n: i64, order: i64, group: i64| {
        let id = format!("$written-on-{n}-{order}:elsewhere.example");
        let mut row = tip_row.clone();
        row.set("event_id", id.as_str());
        row.set("stream_ordering", order);
        row.set("topological_ordering", tip_row.number("depth") + n);
        row.set("depth", tip_row.number("depth") + n);
        site.insert("events", &row);
        let mut json = with(&after, "event_json", "event_id", &tip)[0].clone();
        json.set("event_id", id.as_str());
        site.insert("event_json", &json);
        site.run(&format!(
            "INSERT INTO event_to_state_groups (event_id, state_group) VALUES ('{id}', {group});
             INSERT INTO event_edges (event_id, prev_event_id, is_state) VALUES ('{id}', '{tip}', FALSE);"
        ));
        id
    };
    let newest = ids(before, "events", "stream_ordering")
        .into_iter()
        .max()
        .unwrap_or(0);
    // A message is no state event, whatever its tip was.
    let mut new = vec![add(1, newest + 1, group)];
    if let Some(order) = orders.first() {
        new.push(add(2, *order, group));
    }
    if let Some(taken) = gone.last() {
        let made_for = new[0].clone();
        site.run(&format!(
            "INSERT INTO state_groups (id, room_id, event_id) VALUES ({taken}, '{}', '{made_for}');
             INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id)
             SELECT {taken}, room_id, 'm.room.topic', '', event_id FROM events WHERE event_id = '{made_for}';",
            ask.room
        ));
        new.push(add(3, newest + 2, *taken));
    }
    site.run(&format!(
        "DELETE FROM event_forward_extremities WHERE event_id = '{tip}';
         INSERT INTO event_forward_extremities (event_id, room_id) VALUES ('{}', '{}');",
        new[new.len() - 1],
        ask.room
    ));
    new
}

#[test]
fn what_people_wrote_meanwhile_stays_and_numbers_that_were_given_out_again_are_exchanged() {
    let mut renumbered = 0;
    for_each_sample(16, |seed, rng| {
        let original = Site::random(seed, &Recipe::default());
        let before = original.tables();
        let ask = any_cut(&before, rng);
        for n in 0..4 {
            let site = original.copy();
            let (way, config) = ways(&site).remove(n);
            let about = format!("seed {seed}, {way}, {ask:?}");
            let Some(job) = purge(archiving(&site, config), &ask) else {
                continue;
            };
            if !directory(&site).exists() {
                continue;
            }
            let new = write_on(&site, &before, &ask);
            let meanwhile = site.tables();
            let done = restore(&site, &job, false).unwrap_or_else(|e| panic!("{about}: {e}"));
            renumbered += done.renumbered;
            let after = site.tables();
            let old: BTreeSet<String> = timeline(&before, &ask.room).into_iter().collect();
            let found: BTreeSet<String> = timeline(&after, &ask.room).into_iter().collect();
            assert!(found.is_superset(&old), "{about}: events are missing");
            assert!(
                new.iter().all(|id| found.contains(id)),
                "{about}: what was written is gone"
            );
            let (wanted, kept, states) = (states(&before), states(&meanwhile), states(&after));
            for (event, state) in wanted.iter().chain(&kept) {
                assert_eq!(
                    states.get(event),
                    Some(state),
                    "{about}: the state of {event}"
                );
            }
            // In each depth what was before is in its order, unless it got another number.
            if done.renumbered == 0 {
                let order: Vec<String> = timeline(&after, &ask.room)
                    .into_iter()
                    .filter(|id| old.contains(id))
                    .collect();
                assert_eq!(order, timeline(&before, &ask.room), "{about}");
            }
            for table in [
                "events",
                "event_json",
                "event_to_state_groups",
                "state_groups",
            ] {
                let rows: BTreeSet<&Row> = after.rows(table).iter().collect();
                let came_back = |row: &&Row| {
                    // It left the timeline with the purge.
                    table == "events" && row.is("outlier")
                };
                let lost: Vec<&Row> = meanwhile
                    .rows(table)
                    .iter()
                    .filter(|row| !rows.contains(row) && !came_back(row))
                    .collect();
                assert!(lost.is_empty(), "{about}: {table} lost {lost:?}");
            }
            let extremities = |tables: &Tables| -> Vec<Value> {
                let rows = tables.rows("event_forward_extremities").iter();
                rows.map(|r| r.get("event_id").clone()).collect()
            };
            assert_eq!(extremities(&meanwhile), extremities(&after), "{about}");
            let sound = keeper::check_offline(&site.config(), |_, _| ()).expect("checked");
            let broken: Vec<_> = sound
                .iter()
                .filter(|found| !new.iter().any(|id| found.example.contains(id.as_str())))
                .collect();
            assert!(broken.is_empty(), "{about}: {broken:#?}");
        }
    });
    assert!(renumbered > 0, "no sample had numbers to exchange");
}

#[test]
fn a_restoration_is_refused_while_a_homeserver_runs_and_for_a_job_without_an_archive() {
    let site = Site::random(5, &Recipe::default());
    let mut config = archiving(&site, site.config());
    let request = |job: &str| RestoreRequest {
        job: JobId::from(job),
        room: None,
        dry_run: false,
    };
    for job in ["abc", "", "../homeserver", "a/b"] {
        let refused = keeper::restore(&config, &request(job));
        assert!(matches!(refused, Err(Error::NoSuchJob(_))), "{refused:?}");
    }
    let refused = keeper::restore(&site.config(), &request("abc"));
    assert!(matches!(refused, Err(Error::Config(_))), "{refused:?}");
    let before = site.tables();
    let Some(job) = (1..20).find_map(|depth| {
        let room = before.rows("rooms")[0].word("room_id");
        let job = purge(config.clone(), &Ask::all_of(room, depth))?;
        directory(&site).exists().then_some(job)
    }) else {
        panic!("nothing was purged");
    };
    let purged = site.tables();
    config.homeserver = HomeserverPolicy::AssumeRunning;
    let refused = keeper::restore(&config, &request(job.as_str()));
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    assert_same(&purged, &site.tables(), "refused");
}
