//! What a second session commits while a purge waits for it, triggers being off (P-53): no row is left that leads nowhere, and
//! an event that has become a part of the timeline keeps everything.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::cluster::cluster;
use crate::support::draft::{Draft, Event};
use crate::support::engine::{self, Engine};
use crate::support::work::{Ask, Site};
use postgres::Client;
use roomkeeper::Config;

const ROOM: &str = "!room:example.org";

/// Twenty messages in a row, and an outlier at depth 9.
fn room() -> Site {
    let mut draft = Draft::new("example.org", 1);
    draft.open_room(ROOM, "a", "@ann:example.org", 2);
    let mut before = "$a-join".to_owned();
    for n in 0..20 {
        let id = format!("$m{n}");
        let message = Event::message(&id, ROOM, "@rita:remote.example", 3 + n, 10 + n);
        draft.add(message.after(&[&before]));
        before = id;
    }
    draft.add(Event::message("$outside", ROOM, "@rita:remote.example", 9, 5).outside());
    Site::of(draft)
}

/// Lets a purge run into what `adds` holds, which is committed as soon as it waits.
fn purge_into(
    config: fn(&Site) -> Config,
    prepare: &str,
    adds: &str,
    judge: fn(&Site, &mut Client),
) {
    let Some(cluster) = cluster() else { return };
    cluster.run("GRANT SET ON PARAMETER session_replication_role TO synapse");
    engine::run(Engine::Postgres, || {
        let site = room();
        let server = site.on_server.as_ref().expect("on a server");
        let mut other = server.client();
        other.batch_execute(prepare).expect("prepared");
        let ask = Ask::all_of(ROOM, 20);
        let who = site.plan(&ask).expect("planned").foreign_keys;
        assert!(who.is_some_and(|who| who.contains("in sets")), "{who:?}");
        other
            .batch_execute(&format!("BEGIN; {adds}"))
            .expect("added");
        thread::scope(|scope| {
            let purge = scope.spawn(|| {
                engine::run(Engine::Postgres, || {
                    site.purge_with(config(&site), &ask).expect("purged");
                });
            });
            let mut looks = server.client();
            let until = Instant::now() + Duration::from_secs(8);
            let waits = "SELECT count(*) FROM pg_stat_activity
                          WHERE datname = current_database() AND wait_event_type = 'Lock'";
            while looks.query_one(waits, &[]).expect("asked").get::<_, i64>(0) == 0 {
                assert!(Instant::now() < until, "the purge did not wait");
                thread::sleep(Duration::from_millis(5));
            }
            other.batch_execute("COMMIT").expect("committed");
            purge.join().expect("no panic");
        });
        site.assert_sound("after the race");
        judge(&site, &mut other);
    });
}

const WAYS: [fn(&Site) -> Config; 3] = [
    |site| site.config(),
    |site| site.in_batches_of(4),
    |site| site.beside(1_000, 60_000),
];

/// Somebody subscribes to a thread, or sends with a transaction id, in the moment in which the event goes.
#[test]
fn a_row_that_is_added_while_its_event_goes_goes_with_it() {
    let tables = [
        (
            "thread_subscriptions",
            "CREATE TABLE IF NOT EXISTS thread_subscriptions (
                 stream_id BIGINT, room_id TEXT, user_id TEXT,
                 event_id TEXT NOT NULL REFERENCES events (event_id) ON DELETE CASCADE)",
            "INSERT INTO thread_subscriptions (stream_id, room_id, user_id, event_id)
             VALUES (1, '!room:example.org', '@ann:example.org', '$m5')",
        ),
        (
            "un_partial_stated_event_stream",
            "CREATE TABLE IF NOT EXISTS un_partial_stated_event_stream (
                 stream_id BIGINT, event_id TEXT NOT NULL REFERENCES events (event_id) ON DELETE CASCADE)",
            "INSERT INTO un_partial_stated_event_stream (stream_id, event_id) VALUES (1, '$m5')",
        ),
        (
            "event_edges",
            "SELECT 1",
            "INSERT INTO event_edges (event_id, prev_event_id) VALUES ('$m5', '$elsewhere')",
        ),
    ];
    for way in WAYS {
        for (table, made, added) in tables {
            let made = format!("{made}; GRANT ALL ON {table} TO synapse");
            purge_into(way, &made, added, |site, client| {
                assert_eq!(
                    site.number("SELECT count(*) FROM events WHERE event_id = '$m5'"),
                    0
                );
                let left = "SELECT (SELECT count(*) FROM event_edges WHERE event_id = '$m5')";
                let left: i64 = client.query_one(left, &[]).expect("asked").get(0);
                assert_eq!(left, 0);
            });
        }
    }
}

/// An outlier that becomes a part of the timeline in that moment is let go of by the transaction that selected it. A later
/// one that looks at everything once more may take it, as one of the timeline: then with its state.
#[test]
fn an_outlier_that_is_one_no_more_keeps_its_event_and_its_state() {
    for (way, stays) in [(WAYS[0], true), (WAYS[1], false), (WAYS[2], true)] {
        let judge: fn(&Site, &mut Client) = match stays {
            true => |site, _| assert_eq!(of_outside(site), [1, 1, 1, 1]),
            false => |site, _| {
                let left = of_outside(site);
                assert!([[0; 4], [1; 4]].contains(&left), "{left:?}");
            },
        };
        purge_into(
            way,
            "SELECT 1",
            "UPDATE events SET outlier = FALSE WHERE event_id = '$outside';
             INSERT INTO event_to_state_groups (event_id, state_group)
             SELECT '$outside', state_group FROM event_to_state_groups WHERE event_id = '$m19';
             INSERT INTO event_edges (event_id, prev_event_id) VALUES ('$outside', '$m5')",
            judge,
        );
    }
}

/// How many rows of the outlier each table has.
fn of_outside(site: &Site) -> [i64; 4] {
    assert_eq!(
        site.number("SELECT count(*) FROM events WHERE event_id = '$m5'"),
        0
    );
    [
        "events",
        "event_json",
        "event_to_state_groups",
        "event_edges",
    ]
    .map(|table| {
        site.number(&format!(
            "SELECT count(*) FROM {table} WHERE event_id = '$outside'"
        ))
    })
}
