//! The homeserver's own lock rows on a room (W-1 … W-8) while state groups are collected, after the events: they are
//! renewed, and a lock that is lost stops the job before its next transaction.

use std::sync::Arc;

use crate::support::engine::{Engine, current};
use crate::support::rooms::Recipe;
use crate::support::samples::{deepest_cut, for_each_sample};
use crate::support::state_model::{Graph, STATE};
use crate::support::tables::{Tables, assert_same};
use crate::support::work::{Ask, Site};
use roomkeeper::time::{Clock, ManualClock};
use roomkeeper::{Config, Error, Millis};

/// A sample in which a purge frees state groups.
fn sample(seed: u64) -> (Site, Ask) {
    let recipe = Recipe {
        rooms: 1..3,
        events: 40..60,
        may_be_long: false,
    };
    for n in 0..50 {
        let site = Site::random(seed.wrapping_add(n * 1_000), &recipe);
        let ask = deepest_cut(&site.tables());
        if site.plan(&ask).expect("planned").state_groups_freed > 0 {
            return (site, ask);
        }
    }
    panic!("seed {seed}: no sample has a state group that goes");
}

/// Has the database do something whenever rows of a table are deleted or changed.
fn whenever(site: &Site, event: &str, table: &str, then: &str) {
    site.run(&match current() {
        Engine::Sqlite => format!("CREATE TRIGGER whenever AFTER {event} ON {table} BEGIN {then}; END"),
        Engine::Postgres => format!(
            "CREATE FUNCTION whenever() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN {then}; RETURN NULL; END';
             CREATE TRIGGER whenever AFTER {event} ON {table} FOR EACH ROW EXECUTE FUNCTION whenever()"
        ),
    });
}

fn no_more(site: &Site, table: &str) {
    site.run(&match current() {
        Engine::Sqlite => "DROP TRIGGER whenever".to_owned(),
        Engine::Postgres => format!("DROP TRIGGER whenever ON {table}; DROP FUNCTION whenever()"),
    });
}

/// How a purge goes about it: the first deletes state groups, the second marks them.
const WAYS: [fn(&Site) -> Config; 2] = [|site| site.config(), |site| site.beside(1_000, 60_000)];

const GROUPS: [&str; 4] = [
    "state_groups",
    "state_groups_state",
    "state_group_edges",
    "state_groups_pending_deletion",
];

fn groups(tables: &Tables) -> Tables {
    let mut of_groups = tables.clone();
    of_groups
        .0
        .retain(|table, _| GROUPS.contains(&table.as_str()));
    of_groups
}

#[test]
fn a_lock_that_is_lost_while_state_groups_are_collected_stops_the_job() {
    for_each_sample(3, |seed, _| {
        let (drawn, ask) = sample(seed);
        for way in WAYS {
            let (site, whole) = (drawn.copy(), drawn.copy());
            let about = format!("seed {seed}, {:?}", way(&site).homeserver);
            whole.purge_with(way(&whole), &ask).expect("purged");
            // Somebody takes the lock away at the moment at which the events go.
            whenever(
                &site,
                "DELETE",
                "events",
                "DELETE FROM worker_read_write_locks",
            );
            let before = site.tables();
            let said = match site.purge_with(way(&site), &ask) {
                Err(Error::JobFailed { text: said, .. }) => said,
                other => panic!("{about}: {other:?}"),
            };
            assert!(
                said.contains("lock on the room was lost"),
                "{about}: {said}"
            );
            assert_same(&groups(&before), &groups(&site.tables()), &about);
            assert_eq!(
                site.tables().rows("events").len(),
                whole.tables().rows("events").len(),
                "{about}: the events had gone"
            );
            no_more(&site, "events");
            site.assert_sound(&about);
            // Asked again it does the rest.
            site.purge_with(way(&site), &ask).expect("purged");
            let (expected, found) = (whole.tables(), site.tables());
            assert_same(
                &expected.clone().without(STATE),
                &found.clone().without(STATE),
                &about,
            );
            assert_eq!(
                Graph::of_events(&expected),
                Graph::of_events(&found),
                "{about}"
            );
            for table in GROUPS {
                assert_eq!(
                    expected.rows(table).len(),
                    found.rows(table).len(),
                    "{about}: {table}"
                );
            }
            site.assert_sound(&about);
        }
    });
}

/// Half a minute passes whenever somebody looks at it.
struct Hurrying(ManualClock);

impl Clock for Hurrying {
    fn is_synchronised(&self) -> bool {
        true
    }

    fn now(&self) -> Millis {
        self.0.now()
    }

    fn monotonic(&self) -> Millis {
        self.0.advance(Millis(31_000));
        self.0.monotonic()
    }
}

#[test]
fn the_lock_is_renewed_while_state_groups_are_collected() {
    for_each_sample(3, |seed, _| {
        let (drawn, ask) = sample(seed);
        for way in WAYS {
            let site = drawn.copy();
            let mut config = way(&site);
            let about = format!("seed {seed}, {:?}", config.homeserver);
            config.clock = Arc::new(Hurrying(ManualClock::at(site.clock.now())));
            site.run("CREATE TABLE renewals (events BIGINT, renewed BIGINT)");
            let noting =
                "INSERT INTO renewals SELECT (SELECT count(*) FROM events), NEW.last_renewed_ts";
            whenever(&site, "UPDATE", "worker_read_write_locks", noting);
            site.purge_with(config, &ask).expect("purged");
            let after_events =
                "SELECT count(*) FROM renewals WHERE events = (SELECT count(*) FROM events)";
            let renewals = site.number(after_events);
            assert!(renewals > 1, "{about}: {renewals}");
            let times = "SELECT count(DISTINCT renewed) FROM renewals";
            assert!(
                site.number(times) > 1,
                "{about}: the same time again and again"
            );
            assert_eq!(
                site.tables().rows("worker_read_write_locks").len(),
                0,
                "{about}"
            );
            no_more(&site, "worker_read_write_locks");
            site.run("DROP TABLE renewals");
            site.assert_sound(&about);
        }
    });
}

also_on_postgres! {
    a_lock_that_is_lost_while_state_groups_are_collected_stops_the_job,
    the_lock_is_renewed_while_state_groups_are_collected,
}
