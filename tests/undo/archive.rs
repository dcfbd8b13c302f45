//! What a purge removes is written down first, and comes back: random rooms, purged each way, written on, restored.
//!
//! `ROOMKEEPER_SEED=<n>` repeats a failed run, `ROOMKEEPER_CASES=<n>` tries more samples.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::archives::{archiving, directory, restore};
use crate::support::engine::{self, Engine};
use crate::support::rooms::Recipe;
use crate::support::samples::{any_cut, count_in_samples, for_each_sample};
use crate::support::state_model::{Graph, STATE};
use crate::support::tables::{Row, Tables, Value, assert_same};
use crate::support::work::{Ask, Site};
use rand::Rng;
use rand::rngs::StdRng;
use roomkeeper::archive::Identity;
use roomkeeper::config::HomeserverPolicy;
use roomkeeper::hold::Hold;
use roomkeeper::keeper::{self, RestoreRequest};
use roomkeeper::{Config, Error, JobId, Keeper, RoomId};

/// What a restoration leaves as people left it.
const LEFT: &[&str] = &[
    "event_forward_extremities",
    "event_push_summary",
    "sliding_sync_joined_rooms",
];

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

/// Without what has no meaning: which documents of the index have which numbers.
fn told(mut tables: Tables) -> Tables {
    for row in tables.rows_mut("event_search_content") {
        row.0.remove("docid");
    }
    tables.sort();
    tables
}

/// The state of every event that has one.
fn states(tables: &Tables) -> BTreeMap<String, crate::support::groups::State> {
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
            assert_back(&before, &after, &ask.room, &about);
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
    let renumbered = count_in_samples(16, |seed, rng| {
        let mut renumbered = 0;
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
            if engine::current() == Engine::Postgres {
                let taken = "(SELECT last_value FROM state_group_id_seq) >= (SELECT max(id) FROM state_groups)
                    AND (SELECT -last_value FROM events_backfill_stream_seq) <= (SELECT min(stream_ordering) FROM events)";
                let taken =
                    site.number(&format!("SELECT CAST(CAST({taken} AS INTEGER) AS BIGINT)"));
                assert_eq!(taken, 1, "{about}: the server would give numbers out again");
            }
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
        renumbered as u64
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
        keys: Vec::new(),
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

/// Fails unless everything is as it was before, but for what is left to people.
#[track_caller]
pub(super) fn assert_back(before: &Tables, after: &Tables, room: &str, about: &str) {
    let left: Vec<&str> = LEFT.iter().chain(STATE).copied().collect();
    assert_same(
        &told(before.clone()).without(&left),
        &told(after.clone()).without(&left),
        about,
    );
    let found = states(after);
    for (event, state) in &states(before) {
        assert_eq!(
            found.get(event),
            Some(state),
            "{about}: the state of {event}"
        );
    }
    assert_eq!(timeline(before, room), timeline(after, room), "{about}");
}

/// The ids of the archives that there are, newest job last.
pub(super) fn archived(site: &Site) -> Vec<JobId> {
    let config = archiving(site, site.config());
    let reports = keeper::archives(&config, Some(&[])).expect("listed");
    for report in &reports {
        assert!(report.damage.is_empty(), "{:?}", report.damage);
    }
    reports
        .into_iter()
        .filter_map(|report| report.job)
        .collect()
}

/// Has the database refuse what is done to one event.
fn stop_at(site: &Site, verbs: &[&str], event: &str) {
    for verb in verbs {
        let row = if *verb == "DELETE" { "OLD" } else { "NEW" };
        match engine::current() {
            Engine::Sqlite => site.run(&format!(
                "CREATE TRIGGER stop_{verb} BEFORE {verb} ON events WHEN {row}.event_id = '{event}'
                 BEGIN SELECT RAISE(ABORT, 'stopped here'); END;"
            )),
            Engine::Postgres => site.run(&format!(
                "CREATE FUNCTION stop_{verb}() RETURNS trigger AS
                 $$BEGIN RAISE EXCEPTION 'stopped here'; END$$ LANGUAGE plpgsql;
                 CREATE TRIGGER stop_{verb} BEFORE {verb} ON events FOR EACH ROW
                 WHEN ({row}.event_id = '{event}') EXECUTE FUNCTION stop_{verb}();"
            )),
        }
    }
}

/// Takes back what [`stop_at`] did.
fn go_on(site: &Site, verbs: &[&str]) {
    for verb in verbs {
        match engine::current() {
            Engine::Sqlite => site.run(&format!("DROP TRIGGER stop_{verb}")),
            Engine::Postgres => site.run(&format!("DROP FUNCTION stop_{verb} CASCADE")),
        }
    }
}

#[test]
fn a_purge_and_a_restoration_that_fail_anywhere_leave_whole_rooms_and_can_be_done_again() {
    for_each_sample(10, |seed, rng| {
        let site = Site::random(seed, &Recipe::default());
        let before = site.tables();
        let ask = any_cut(&before, rng);
        let about = format!("seed {seed}, {ask:?}");
        let ids = timeline(&before, &ask.room);
        let any = |rng: &mut StdRng| ids[rng.random_range(0..ids.len())].clone();
        let mut jobs = Vec::new();
        for stops in [true, true, false] {
            if stops {
                let at = any(rng);
                stop_at(&site, &["DELETE"], &at);
            }
            // Its outcome is what the next one finds.
            let _ = purge(archiving(&site, site.in_batches_of(4)), &ask);
            if stops {
                go_on(&site, &["DELETE"]);
            }
            site.clock.advance(roomkeeper::Millis(1000));
            for job in archived(&site) {
                if !jobs.contains(&job) {
                    jobs.push(job);
                }
            }
            site.assert_sound(&format!("{about}: purging"));
        }
        for job in jobs.iter().rev() {
            for stops in [true, true, false] {
                if stops {
                    let at = any(rng);
                    stop_at(&site, &["INSERT", "UPDATE"], &at);
                }
                let restored = restore(&site, job, false);
                if stops {
                    go_on(&site, &["INSERT", "UPDATE"]);
                } else {
                    restored.unwrap_or_else(|e| panic!("{about}: {e}"));
                }
                site.assert_sound(&format!("{about}: restoring"));
            }
        }
        assert_back(&before, &site.tables(), &ask.room, &about);
    });
}

/// A purge of everything that may go, of the first room that has anything to purge.
fn any_purge(site: &Site, config: &Config) -> (JobId, String) {
    let tables = site.tables();
    for room in tables.rows("rooms") {
        let room = room.word("room_id");
        for below in (2..60).rev() {
            let job = purge(config.clone(), &Ask::all_of(room, below));
            if let Some(job) = job.filter(|_| site.tables() != tables) {
                return (job, room.to_owned());
            }
        }
    }
    panic!("nothing could be purged");
}

#[test]
fn without_the_private_key_an_archive_cannot_be_read() {
    let site = Site::random(11, &Recipe::default());
    let before = site.tables();
    let (key, other) = (Identity::generate(), Identity::generate());
    let mut config = archiving(&site, site.in_batches_of(9));
    let archive = config.archive.as_mut().expect("set");
    archive.recipients = vec![key.recipient(), Identity::generate().recipient()];
    let (job, room) = any_purge(&site, &config);
    let purged = site.tables();
    let file = directory(&site).join(format!("{job}.rka"));
    let bytes = std::fs::read(&file).expect("there");
    let has = |what: &[u8]| bytes.windows(what.len()).filter(|w| *w == what).count();
    let frames = keeper::archives(&config, None).expect("listed")[0].frames;
    assert!(frames > 1);
    assert_eq!(has(b"age-encryption.org/v1"), frames, "each for itself");
    assert_eq!(
        has(&[0x28, 0xb5, 0x2f, 0xfd]),
        0,
        "what is compressed is not encrypted"
    );
    let request = |keys: &[&Identity], dry_run| RestoreRequest {
        job: job.clone(),
        room: None,
        dry_run,
        keys: keys.iter().map(|key| (*key).clone()).collect(),
    };
    for keys in [&[][..], &[&other]] {
        for dry_run in [true, false] {
            let refused = keeper::restore(&config, &request(keys, dry_run));
            assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
        }
    }
    assert_same(&purged, &site.tables(), "refused");
    assert!(keeper::holds(&config).is_empty());
    let verified =
        |keys: &[Identity]| keeper::archives(&config, Some(keys)).expect("read")[0].clone();
    assert_eq!(verified(&[]).unopened, frames);
    assert!(!verified(std::slice::from_ref(&other)).damage.is_empty());
    let good = verified(&[other.clone(), key.clone()]);
    assert!(good.damage.is_empty() && good.unopened == 0, "{good:?}");
    keeper::restore(&config, &request(&[&other, &key], false)).expect("restored");
    assert_back(&before, &site.tables(), &room, "with the key");
}

#[test]
fn an_archive_goes_when_its_time_is_over_or_somebody_says_so_and_never_while_it_is_held() {
    let site = Site::random(12, &Recipe::default());
    let mut config = archiving(&site, site.config());
    config.check_clock = false;
    let (job, room) = any_purge(&site, &config);
    let hold = |name: &str| Hold {
        name: name.into(),
        rooms: vec![RoomId::new(&*room)],
        reason: "a test".into(),
        ..Hold::default()
    };
    keeper::add_hold(&config, hold("one")).expect("laid");
    let refused = keeper::shred(&config, &job);
    assert!(matches!(refused, Err(Error::Held(_))), "{refused:?}");
    let keep = config.archive.as_ref().expect("set").keep;
    let looks = |config: &Config| {
        let keeper = Keeper::open(config.clone()).expect("opens");
        // What follows a tick is done when the next one is answered.
        for _ in 0..2 {
            keeper.tick_retention().expect("answered");
        }
        keeper.stop();
        archived(&site).len()
    };
    assert_eq!(looks(&config), 1, "its time is not over");
    site.clock.advance(keep + roomkeeper::Millis(1));
    assert_eq!(looks(&config), 1, "it is held");
    keeper::release_hold(&config, "one", "over").expect("released");
    assert_eq!(looks(&config), 0, "its time is over");
    let (second, _) = any_purge(&site, &config);
    keeper::shred(&config, &second).expect("nobody holds it");
    assert_eq!(archived(&site).len(), 0);
    let gone = restore(&site, &second, false);
    assert!(matches!(gone, Err(Error::NoSuchJob(_))), "{gone:?}");
}

/// From 5,000 events on, a fifth of what is freed.
#[test]
fn an_archive_takes_a_fifth_of_what_is_freed_at_most() {
    let recipe = Recipe {
        rooms: 1..2,
        events: 7_500..7_501,
        may_be_long: false,
    };
    for (seed, way) in [(2, 2), (3, 3)] {
        let site = Site::random(seed, &recipe);
        let before = site.tables();
        let room = before.rows("rooms")[0].word("room_id").to_owned();
        let free = || {
            site.number(
                "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size",
            )
        };
        let free_before = free();
        let (name, mut config) = ways(&site).remove(way);
        config.batch.events = 1_000;
        config.batch.events_offline = 10_000;
        let extremities = before.rows("event_forward_extremities").iter();
        let depth = extremities
            .filter_map(|f| {
                with(&before, "events", "event_id", f.word("event_id"))
                    .first()
                    .copied()
            })
            .map(|e| e.number("depth"))
            .max()
            .expect("an extremity");
        let config = archiving(&site, config);
        let job = purge(config.clone(), &Ask::all_of(&room, depth)).expect("purged");
        let report = keeper::archives(&config, Some(&[]))
            .expect("read")
            .remove(0);
        let freed = free() - free_before;
        let share = report.bytes as f64 / freed as f64;
        println!(
            "{name}: {} events, {freed} bytes freed, archive {} bytes: {share:.3}",
            report.events, report.bytes
        );
        assert!(report.events >= 5_000, "{name}: {} events", report.events);
        assert!(share <= 0.2, "{name}: {} of {freed} bytes", report.bytes);
        restore(&site, &job, false).expect("restored");
        assert_back(&before, &site.tables(), &room, name);
    }
}

also_on_postgres! {
    what_a_purge_removed_comes_back_as_it_was,
    what_people_wrote_meanwhile_stays_and_numbers_that_were_given_out_again_are_exchanged,
    a_purge_and_a_restoration_that_fail_anywhere_leave_whole_rooms_and_can_be_done_again,
    without_the_private_key_an_archive_cannot_be_read,
    an_archive_goes_when_its_time_is_over_or_somebody_says_so_and_never_while_it_is_held,
}
