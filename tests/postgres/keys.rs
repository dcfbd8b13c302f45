//! Foreign keys on PostgreSQL where the role may switch triggers off, so that roomkeeper looks after them in sets: what is
//! left is what the server would have left, and every constraint holds.

use std::sync::OnceLock;

use crate::support::cluster::cluster;
use crate::support::engine::{self, Engine};
use crate::support::rooms::Recipe;
use crate::support::samples::deepest_cut;
use crate::support::server::OnServer;
use crate::support::state_model::{Graph, STATE};
use crate::support::tables::assert_same;
use crate::support::work::{Ask, Site, cases, seed};
use roomkeeper::deletion::Request;
use roomkeeper::{Config, Error, Keeper, RoomId};

/// A sample in which a purge has something to do, on a server where the role may switch triggers off.
struct Example {
    site: Site,
    ask: Ask,
    about: String,
}

impl Example {
    /// `None` where there is no server.
    fn new(seed: u64) -> Option<Self> {
        static GRANTED: OnceLock<()> = OnceLock::new();
        let cluster = cluster()?;
        GRANTED.get_or_init(|| {
            cluster.run("GRANT SET ON PARAMETER session_replication_role TO synapse");
        });
        let mut made = None;
        engine::run(Engine::Postgres, || {
            let recipe = Recipe {
                rooms: 1..3,
                events: 80..100,
                may_be_long: false,
            };
            let site = Site::random(seed, &recipe);
            let ask = deepest_cut(&site.tables());
            // Beside a homeserver surplus extremities stay (P-51), and it is not this that is compared here.
            site.run(&format!(
                "DELETE FROM event_forward_extremities f USING events e
                  WHERE e.event_id = f.event_id AND e.room_id = '{}' AND e.depth < {}",
                ask.room, ask.below
            ));
            made = Some(Self {
                site,
                ask,
                about: format!("ROOMKEEPER_SEED={seed}"),
            });
        });
        made
    }

    fn server(&self) -> &OnServer {
        self.site.on_server.as_ref().expect("on a server")
    }

    /// Purged with the keys left to the server.
    fn purged_by_triggers(&self) -> Site {
        let whole = self.site.copy();
        let mut config = whole.beside(1_000, 60_000);
        config.batch.check_in_bulk = false;
        whole.purge_with(config, &self.ask).expect("purged");
        whole
    }

    /// The room came to the same end.
    #[track_caller]
    fn assert_done(&self, whole: &Site) {
        let (expected, found) = (whole.tables(), self.site.tables());
        assert_same(
            &expected.clone().without(STATE),
            &found.clone().without(STATE),
            &self.about,
        );
        assert_eq!(
            Graph::of_events(&expected),
            Graph::of_events(&found),
            "{}",
            self.about
        );
        self.site.assert_sound(&self.about);
    }
}

/// How a job goes about it.
type Way = fn(&Site) -> Config;

const WAYS: [(&str, Way); 4] = [
    ("at once", |site| site.config()),
    ("in batches", |site| site.in_batches_of(3)),
    ("in a rewrite", |site| site.rewriting()),
    ("beside", |site| site.beside(7, 60_000)),
];

/// Synapse's tables from which the server deletes rows by itself when their event goes (P-17), with a row for every event.
const CASCADING: &str = "
    CREATE TABLE people (name TEXT PRIMARY KEY);
    CREATE TABLE event_txn_id_device_id (
        event_id TEXT NOT NULL UNIQUE REFERENCES events (event_id) ON DELETE CASCADE, room_id TEXT NOT NULL,
        user_id TEXT NOT NULL, device_id TEXT NOT NULL, txn_id TEXT NOT NULL, inserted_ts BIGINT NOT NULL,
        FOREIGN KEY (user_id, device_id) REFERENCES devices (user_id, device_id) ON DELETE CASCADE);
    CREATE TABLE un_partial_stated_event_stream (
        stream_id BIGINT PRIMARY KEY, instance_name TEXT NOT NULL,
        event_id TEXT NOT NULL UNIQUE REFERENCES events (event_id) ON DELETE CASCADE,
        rejection_status_changed BOOLEAN NOT NULL);
    CREATE TABLE thread_subscriptions (
        stream_id INTEGER PRIMARY KEY, instance_name TEXT NOT NULL,
        room_id TEXT NOT NULL CONSTRAINT thread_subscriptions_fk_rooms REFERENCES rooms (room_id) ON DELETE CASCADE,
        event_id TEXT NOT NULL CONSTRAINT thread_subscriptions_fk_events REFERENCES events (event_id) ON DELETE CASCADE,
        user_id TEXT NOT NULL CONSTRAINT thread_subscriptions_fk_users REFERENCES people (name),
        subscribed BOOLEAN NOT NULL, automatic BOOLEAN NOT NULL);
    CREATE INDEX thread_subscriptions_by_event ON thread_subscriptions (event_id);
    INSERT INTO people VALUES ('@cas:cade');
    INSERT INTO devices (user_id, device_id) VALUES ('@cas:cade', 'D');
    INSERT INTO event_txn_id_device_id (event_id, room_id, user_id, device_id, txn_id, inserted_ts)
    SELECT event_id, room_id, '@cas:cade', 'D', 't' || stream_ordering, 0 FROM events;
    INSERT INTO un_partial_stated_event_stream (stream_id, instance_name, event_id, rejection_status_changed)
    SELECT row_number() OVER (), 'master', event_id, FALSE FROM events;
    INSERT INTO thread_subscriptions (stream_id, instance_name, room_id, event_id, user_id, subscribed, automatic)
    SELECT row_number() OVER (), 'master', room_id, event_id, '@cas:cade', TRUE, FALSE FROM events
     WHERE room_id IN (SELECT room_id FROM rooms)";

/// The test below can fail.
#[test]
fn a_row_whose_key_leads_nowhere_is_found() {
    let Some(example) = Example::new(seed()) else {
        return;
    };
    assert_eq!(example.server().orphans(), Vec::<String>::new());
    // One of a table that refuses, of one that cascades, and of a key on two columns.
    example.site.run(CASCADING);
    assert_eq!(example.server().orphans(), Vec::<String>::new());
    for (broken, table) in [
        (
            "UPDATE room_memberships SET event_stream_ordering = 99999999
              WHERE ctid IN (SELECT ctid FROM room_memberships LIMIT 1)",
            "room_memberships",
        ),
        (
            "UPDATE un_partial_stated_event_stream SET event_id = 'nothing' WHERE stream_id = 1",
            "un_partial_stated_event_stream",
        ),
        ("DELETE FROM devices", "event_txn_id_device_id"),
    ] {
        let before = example.server().orphans().len();
        example.site.run(broken);
        let orphans = example.server().orphans();
        assert_eq!(orphans.len(), before + 1, "{orphans:?}");
        assert!(orphans.iter().any(|o| o.contains(table)), "{orphans:?}");
    }
}

#[test]
fn every_constraint_holds_after_purges_with_triggers_off() {
    for n in 0..cases(1) {
        let Some(example) = Example::new(seed().wrapping_add(n)) else {
            return;
        };
        example.site.run(CASCADING);
        let whole = example.purged_by_triggers();
        for (way, config) in WAYS {
            let example = Example {
                site: example.site.copy(),
                ask: example.ask.clone(),
                about: format!("{}, {way}", example.about),
            };
            let planned = example.site.plan(&example.ask).expect("planned");
            let who = planned.foreign_keys.expect("on a server");
            assert!(who.contains("in sets"), "{who}");
            let done = example
                .site
                .purge_with(config(&example.site), &example.ask)
                .unwrap_or_else(|e| panic!("{}: {e}", example.about));
            assert!(
                done.rows_removed["event_txn_id_device_id"] > 0,
                "{}: {done:?}",
                example.about
            );
            example.assert_done(&whole);
        }
    }
}

#[test]
fn every_constraint_holds_after_deletions_with_triggers_off() {
    for n in 0..cases(1) {
        let Some(example) = Example::new(seed().wrapping_add(n)) else {
            return;
        };
        example.site.run(CASCADING);
        let mut ends = Vec::new();
        for (way, config) in WAYS {
            let site = example.site.copy();
            let keeper = Keeper::open(config(&site)).expect("opens");
            let request = Request {
                force_purge: true,
                ..Request::default()
            };
            keeper
                .delete_room(&RoomId::new(&*example.ask.room), request)
                .unwrap_or_else(|e| panic!("{}, {way}: {e}", example.about));
            keeper.stop();
            site.assert_sound(&format!("{}, {way}", example.about));
            ends.push((way, site.tables()));
        }
        for (way, end) in &ends[1..] {
            assert_same(&ends[0].1, end, &format!("{}, {way}", example.about));
        }
    }
}

/// Where most of the database goes and nobody waits: one transaction that reads tables from end to end.
#[test]
fn a_rewrite_does_what_batches_do_and_what_the_plan_said() {
    for n in 0..cases(1) {
        let Some(example) = Example::new(seed().wrapping_add(n)) else {
            return;
        };
        let about = &example.about;
        let planned = example.site.plan(&example.ask).expect("planned");
        let [rewritten, strode] = [example.site.copy(), example.site.copy()];
        let rewrite = rewritten
            .purge_with(rewritten.rewriting(), &example.ask)
            .unwrap_or_else(|e| panic!("{about}: {e}"));
        let batches = strode
            .purge_with(strode.in_batches_of(3), &example.ask)
            .unwrap_or_else(|e| panic!("{about}: {e}"));
        assert!(rewrite.rewritten && !batches.rewritten, "{about}");
        assert_eq!(rewrite.batches, 1, "{about}");
        assert!(batches.batches > 3, "{about}");
        assert_same(&strode.tables(), &rewritten.tables(), about);
        assert_eq!(rewrite.rows_removed, planned.rows_removed, "{about}");
        assert_eq!(rewrite.rows_removed, batches.rows_removed, "{about}");
        assert_eq!(rewrite.events_deleted, planned.events_deleted, "{about}");
        rewritten.assert_sound(about);
        // And with the keys left to the server there is none.
        let mut config = example.site.rewriting();
        config.batch.check_in_bulk = false;
        let stayed = example
            .site
            .purge_with(config, &example.ask)
            .expect("purged");
        assert!(!stayed.rewritten, "{about}");
        assert_same(&strode.tables(), &example.site.tables(), about);
    }
}

/// What a role that may switch off triggers does is what the ordinary one does; and it may be told not to.
#[test]
fn who_looks_after_keys_is_told_and_can_be_chosen() {
    let Some(example) = Example::new(seed()) else {
        return;
    };
    let mut switched_off = example.site.config();
    switched_off.batch.check_in_bulk = false;
    for (config, words) in [
        (example.site.config(), "in sets"),
        (switched_off, "by the server"),
    ] {
        let viewer = roomkeeper::keeper::Viewer::open(config).expect("opens");
        let room = RoomId::new(&*example.ask.room);
        let planned = viewer
            .plan_purge(&room, example.ask.point(), example.ask.options())
            .expect("planned");
        let who = planned.foreign_keys.expect("on a server");
        assert!(who.contains(words), "{who}");
    }
}

/// A row that refers to an event to delete and that no rule of ours removes: the server refuses, whoever looks after keys.
#[test]
fn a_key_that_refuses_is_found_in_sets_as_well() {
    let Some(example) = Example::new(seed()) else {
        return;
    };
    let mut client = example.server().client();
    client
        .batch_execute(
            "CREATE TABLE somebody_elses (event_id TEXT REFERENCES events (event_id));
             GRANT ALL ON somebody_elses TO synapse",
        )
        .expect("made");
    client
        .execute(
            "INSERT INTO somebody_elses SELECT event_id FROM events
              WHERE room_id = $1 AND topological_ordering < $2 AND NOT outlier
                AND event_id NOT IN (SELECT event_id FROM state_events)
                AND event_id NOT IN (SELECT event_id FROM redactions)
              ORDER BY topological_ordering DESC LIMIT 1",
            &[&example.ask.room, &example.ask.below],
        )
        .expect("added");
    drop(client);
    let said = match example
        .site
        .purge_with(example.site.beside(1_000, 60_000), &example.ask)
    {
        Err(Error::JobFailed { text: said, .. }) => said,
        other => panic!("{other:?}"),
    };
    assert!(said.contains("23503"), "{said}");
    assert!(said.contains("somebody_elses"), "{said}");
    example.site.assert_sound("refused");
}

/// Where a key would delete a row, it does, whoever looks after keys.
#[test]
fn a_key_that_cascades_does_so_when_keys_are_looked_after_in_sets() {
    let Some(example) = Example::new(seed()) else {
        return;
    };
    let whole = example.purged_by_triggers();
    let mut client = example.server().client();
    client
        .batch_execute(
            "CREATE TABLE somebody_elses (event_id TEXT REFERENCES events (event_id) ON DELETE CASCADE);
             GRANT ALL ON somebody_elses TO synapse;
             INSERT INTO somebody_elses SELECT event_id FROM events",
        )
        .expect("made");
    let planned = example.site.plan(&example.ask).expect("planned");
    assert!(
        planned
            .foreign_keys
            .is_some_and(|who| who.contains("in sets"))
    );
    example
        .site
        .purge_with(example.site.beside(7, 60_000), &example.ask)
        .expect("purged");
    let left: i64 = client
        .query_one(
            "SELECT count(*) FROM somebody_elses s FULL JOIN events e USING (event_id)
              WHERE s.event_id IS NULL OR e.event_id IS NULL",
            &[],
        )
        .expect("counted")
        .get(0);
    assert_eq!(left, 0);
    client
        .batch_execute("DROP TABLE somebody_elses")
        .expect("dropped");
    example.assert_done(&whole);
}
