//! Events that arrive while a purge runs: whatever comes, a room that could be written into stays one (P-50, P-51), and
//! what comes after a transaction has selected is not touched by it.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::draft::{Draft, Event};
use crate::support::engine::{Engine, current};
use crate::support::tables::Tables;
use crate::support::work::{Ask, Site};
use roomkeeper::{Config, Error};

const ROOM: &str = "!room:example.org";
const ANN: &str = "@ann:example.org";
const RITA: &str = "@rita:remote.example";

/// Messages of the room.
const MESSAGES: i64 = 80;

/// The newest message, the room's only forward extremity.
const NEWEST: &str = "$m82";

/// Everything below the newest message.
const BELOW: i64 = 82;

/// `$a-create`, `$a-join`, `$m3` to `$m82`, each after the one before.
fn room() -> Site {
    let mut draft = Draft::new("example.org", 1);
    draft.open_room(ROOM, "a", ANN, 2);
    draft.open_room("!other:example.org", "o", ANN, 900);
    for depth in 3..3 + MESSAGES {
        let before = match depth {
            3 => "$a-join".to_owned(),
            _ => format!("$m{}", depth - 1),
        };
        let id = format!("$m{depth}");
        draft.add(Event::message(&id, ROOM, RITA, depth, depth + 1).after(&[&before]));
    }
    Site::of(draft)
}

/// What arrives: an event of depth 1 that follows the newest, so that it is the only forward extremity. Any server in the
/// room can send one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Message,
    State,
}

const KINDS: [Kind; 2] = [Kind::Message, Kind::State];

/// The statements by which the homeserver stores what arrives.
fn arrival(site: &Site, kind: Kind) -> Vec<String> {
    let columns = |table: &str| -> Vec<String> {
        let tables = site.tables();
        let row = tables.rows(table).first().expect("a row");
        row.0.keys().cloned().collect()
    };
    let copied = |table: &str, new: &[(&str, &str)]| {
        let columns = columns(table);
        let values: Vec<&str> = columns
            .iter()
            .map(|c| {
                let new = new.iter().find(|(column, _)| column == c);
                new.map_or(c.as_str(), |(_, value)| value)
            })
            .collect();
        format!(
            "INSERT INTO {table} ({}) SELECT {} FROM {table} WHERE event_id = '{NEWEST}'",
            columns.join(", "),
            values.join(", ")
        )
    };
    let late = ("event_id", "'$late'");
    let mut statements = vec![
        copied(
            "events",
            &[
                late,
                ("stream_ordering", "5000"),
                ("topological_ordering", "1"),
                ("depth", "1"),
            ],
        ),
        copied("event_json", &[late]),
        copied("event_to_state_groups", &[late]),
        format!("INSERT INTO event_edges (event_id, prev_event_id) VALUES ('$late', '{NEWEST}')"),
        format!("DELETE FROM event_forward_extremities WHERE room_id = '{ROOM}'"),
        format!(
            "INSERT INTO event_forward_extremities (event_id, room_id) VALUES ('$late', '{ROOM}')"
        ),
    ];
    if kind == Kind::State {
        statements.push(format!(
            "INSERT INTO state_events (event_id, room_id, type, state_key)
             VALUES ('$late', '{ROOM}', 'm.room.topic', '')"
        ));
        statements.push("UPDATE events SET type = 'm.room.topic' WHERE event_id = '$late'".into());
    }
    statements
}

/// Stores what arrives over a connection of its own, as soon as messages of the room have gone.
fn arrives_between_batches(site: &Site, kind: Kind) -> JoinHandle<bool> {
    let statements = arrival(site, kind).join(";\n");
    let gone = format!(
        "SELECT CAST(({MESSAGES} - count(*)) AS BIGINT) FROM events WHERE room_id = '{ROOM}' AND type = 'm.room.message'"
    );
    let until = Instant::now() + Duration::from_secs(60);
    #[cfg(feature = "postgres")]
    if let Some(server) = &site.on_server {
        let mut client = server.client();
        return thread::spawn(move || {
            while Instant::now() < until {
                let seen: i64 = client.query_one(&gone, &[]).expect("asked").get(0);
                if (1..MESSAGES - 1).contains(&seen) {
                    let stored = client.batch_execute(&format!("BEGIN; {statements}; COMMIT"));
                    stored.expect("stored");
                    return true;
                }
                thread::sleep(Duration::from_micros(300));
            }
            false
        });
    }
    let conn = rusqlite::Connection::open(&site.database).expect("opens");
    thread::spawn(move || {
        conn.busy_timeout(Duration::ZERO).expect("set");
        while Instant::now() < until {
            if conn.execute_batch("BEGIN IMMEDIATE").is_ok() {
                let seen: i64 = conn.query_row(&gone, [], |r| r.get(0)).expect("asked");
                if (1..MESSAGES - 1).contains(&seen) {
                    let stored = conn.execute_batch(&format!("{statements}; COMMIT"));
                    stored.expect("stored");
                    return true;
                }
                conn.execute_batch("ROLLBACK").expect("left");
            }
            thread::sleep(Duration::from_micros(300));
        }
        false
    })
}

/// The same in the middle of a transaction of the purge, when the first messages have gone.
fn arrives_inside_a_batch(site: &Site, kind: Kind) {
    let statements = arrival(site, kind).join(";\n");
    site.run(&match current() {
        Engine::Sqlite => format!(
            "CREATE TRIGGER arrives AFTER DELETE ON event_json
               WHEN NOT EXISTS (SELECT 1 FROM events WHERE event_id = '$late')
             BEGIN {statements}; END"
        ),
        Engine::Postgres => format!(
            "CREATE FUNCTION arrives() RETURNS trigger LANGUAGE plpgsql AS $f$
             BEGIN
               IF NOT EXISTS (SELECT 1 FROM events WHERE event_id = '$late') THEN {statements}; END IF;
               RETURN NULL;
             END $f$;
             CREATE TRIGGER arrives AFTER DELETE ON event_json FOR EACH ROW EXECUTE FUNCTION arrives()"
        ),
    });
}

fn arrives_no_more(site: &Site) {
    site.run(match current() {
        Engine::Sqlite => "DROP TRIGGER arrives",
        Engine::Postgres => "DROP TRIGGER arrives ON event_json; DROP FUNCTION arrives()",
    });
}

/// What arrived is there, in the timeline, with its state, and is what the next event will follow.
#[track_caller]
fn assert_can_be_written_into(site: &Site, about: &str) {
    let tables = site.tables();
    let has = |table: &str| {
        let mut rows = tables.rows(table).iter();
        rows.any(|r| r.text("event_id") == Some("$late"))
    };
    for table in [
        "events",
        "event_json",
        "event_edges",
        "event_to_state_groups",
        "event_forward_extremities",
    ] {
        assert!(has(table), "{about}: {table} has lost what arrived");
    }
    let events = tables.rows("events").iter();
    let late = events.filter(|e| e.word("event_id") == "$late");
    for event in late {
        assert!(!event.is("outlier"), "{about}: {event:?}");
    }
    assert_eq!(
        tables.rows("event_forward_extremities").len(),
        2,
        "{about}: one of each room"
    );
    site.assert_sound(about);
}

/// The old messages have gone, or at least many of them.
#[track_caller]
fn assert_purged(tables: &Tables, about: &str) {
    let left = tables.rows("events").len();
    assert!(left < 80, "{about}: {left} events are left");
}

/// How a purge goes about it; whether a homeserver runs beside it.
type Way = (&'static str, fn(&Site) -> Config, bool);

const WAYS: [Way; 2] = [
    ("offline", |site| site.in_batches_of(1), false),
    ("beside", |site| site.beside(1, 60_000), true),
];

/// P-50. Offline the last batch would take the room's only forward extremity, and the job says so; beside a running
/// homeserver forward extremities stay by themselves (P-51).
#[track_caller]
fn assert_ended(outcome: Result<roomkeeper::job::Progress, Error>, is_beside: bool, about: &str) {
    match outcome {
        Ok(_) if is_beside => {}
        Err(Error::JobFailed { text: said, .. }) if !is_beside => assert_eq!(
            said, "400: topological_ordering is greater than forward extremities",
            "{about}"
        ),
        other => panic!("{about}: {other:?}"),
    }
}

#[test]
fn an_event_of_low_depth_that_arrives_between_batches_is_not_deleted() {
    for (way, config, is_beside) in WAYS {
        for kind in KINDS {
            let about = format!("{way}, {kind:?}");
            let site = room();
            let arrives = arrives_between_batches(&site, kind);
            let outcome = site.purge_with(config(&site), &Ask::all_of(ROOM, BELOW));
            assert!(
                arrives.join().expect("no panic"),
                "{about}: it came too late"
            );
            assert_ended(outcome, is_beside, &about);
            assert_can_be_written_into(&site, &about);
            assert_purged(&site.tables(), &about);
        }
    }
}

#[test]
fn an_event_of_low_depth_that_arrives_inside_a_batch_is_not_deleted() {
    for (way, config, is_beside) in WAYS {
        for kind in KINDS {
            let about = format!("{way}, {kind:?}");
            let site = room();
            arrives_inside_a_batch(&site, kind);
            let mut config = config(&site);
            config.batch.events = 20;
            config.batch.events_offline = 20;
            let outcome = site.purge_with(config, &Ask::all_of(ROOM, BELOW));
            assert_ended(outcome, is_beside, &about);
            arrives_no_more(&site);
            assert_can_be_written_into(&site, &about);
            assert_purged(&site.tables(), &about);
        }
    }
}

/// A room with extremities below the cut: a message and a state event. The newest event of all is of the main line.
fn room_with_branches() -> Site {
    let mut draft = Draft::new("example.org", 1);
    draft.open_room(ROOM, "a", ANN, 2);
    for depth in 3..11 {
        let before = match depth {
            3 => "$a-join".to_owned(),
            _ => format!("$m{}", depth - 1),
        };
        let id = format!("$m{depth}");
        draft.add(Event::message(&id, ROOM, RITA, depth, depth + 20).after(&[&before]));
    }
    draft.add(Event::message("$side", ROOM, RITA, 4, 15).after(&["$m3"]));
    let topic = Event::message("$side-topic", ROOM, RITA, 5, 16).state("m.room.topic", "");
    draft.add(topic.after(&["$m4"]));
    Site::of(draft)
}

/// The ids of a table, in alphabetical order.
fn ids(tables: &Tables, table: &str) -> Vec<String> {
    let rows = tables.rows(table).iter();
    let mut ids: Vec<String> = rows.map(|r| r.word("event_id").to_owned()).collect();
    ids.sort_unstable();
    ids
}

/// An event that follows all extremities of [`room_with_branches`] comes.
fn all_are_followed(site: &Site) {
    let row = |table: &str| {
        let tables = site.tables();
        let mut rows = tables.rows(table).iter();
        rows.find(|r| r.text("event_id") == Some("$m10"))
            .expect("$m10")
            .clone()
    };
    for table in ["events", "event_json", "event_to_state_groups"] {
        let mut new = row(table);
        new.set("event_id", "$merge");
        if table == "events" {
            new.set("stream_ordering", 60);
            new.set("depth", 11);
            new.set("topological_ordering", 11);
        }
        site.insert(table, &new);
    }
    for before in ["$m10", "$side", "$side-topic"] {
        site.run(&format!(
            "INSERT INTO event_edges (event_id, prev_event_id) VALUES ('$merge', '{before}')"
        ));
    }
    site.run(&format!(
        "DELETE FROM event_forward_extremities WHERE room_id = '{ROOM}';
         INSERT INTO event_forward_extremities (event_id, room_id) VALUES ('$merge', '{ROOM}')"
    ));
}

/// P-51.
#[test]
fn forward_extremities_stay_beside_a_homeserver_until_something_follows_them() {
    let ask = Ask::all_of(ROOM, 9);
    let drawn = room_with_branches();
    let before = drawn.tables();
    for events in [1, 3, 1_000] {
        let site = drawn.copy();
        let config = site.beside(events, 60_000);
        let viewer = roomkeeper::keeper::Viewer::open(config.clone()).expect("opens");
        let planned = viewer
            .plan_purge(&roomkeeper::RoomId::new(ROOM), ask.point(), ask.options())
            .expect("planned");
        let done = site.purge_with(config.clone(), &ask).expect("purged");
        assert_eq!((planned.extremities_kept, done.extremities_kept), (2, 2));
        assert_eq!(planned.events_deleted, done.events_deleted);
        let notes = done.notes.join("; ");
        assert!(notes.contains("2 forward extremities stay"), "{notes}");
        let after = site.tables();
        let extremities = ids(&after, "event_forward_extremities");
        assert_eq!(extremities, ["$m10", "$side", "$side-topic"]);
        for id in ["$side", "$side-topic"] {
            let events = after.rows("events").iter();
            let kept = |t: &Tables, table: &str| {
                let rows = t.rows(table).iter();
                let rows = rows.filter(|r| r.text("event_id") == Some(id));
                rows.cloned().collect::<Vec<_>>()
            };
            for table in [
                "events",
                "event_json",
                "event_edges",
                "event_to_state_groups",
            ] {
                assert_eq!(kept(&before, table), kept(&after, table), "{id}, {table}");
            }
            assert_eq!(events.filter(|e| e.word("event_id") == id).count(), 1);
        }
        assert_eq!(
            ids(&after, "event_backward_extremities"),
            ["$m3", "$m4", "$m8"]
        );
        site.assert_sound("extremities stay");
        // Asked again the same stays.
        let again = site.purge_with(config.clone(), &ask).expect("purged");
        assert_eq!((again.extremities_kept, again.events_deleted), (2, 0));
        // When something follows them they are events like any other.
        all_are_followed(&site);
        let last = site.purge_with(config, &ask).expect("purged");
        assert_eq!((last.extremities_kept, last.events_deleted), (0, 1));
        let after = site.tables();
        assert_eq!(ids(&after, "event_forward_extremities"), ["$merge"]);
        let events = after.rows("events").iter();
        let topic: Vec<_> = events
            .filter(|e| e.word("event_id") == "$side-topic")
            .collect();
        assert!(topic[0].is("outlier"));
        site.assert_sound("extremities gone");
    }
    // While it is stopped they go at once, as P-3 says.
    let done = drawn.purge(&ask).expect("purged");
    assert_eq!(done.extremities_kept, 0);
    assert_eq!(ids(&drawn.tables(), "event_forward_extremities"), ["$m10"]);
}

/// P-51: a homeserver that can be asked drops what is surplus itself, if what it keeps stays anyway.
#[test]
fn a_homeserver_that_can_be_asked_is_asked_to_drop_extremities() {
    let ask = Ask::all_of(ROOM, 9);
    for (newest, is_asked) in [("$m10", true), ("$side", false)] {
        let site = room_with_branches();
        if newest == "$side" {
            site.run("UPDATE events SET stream_ordering = 90 WHERE event_id = '$side'");
        }
        let database = site.copy();
        let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = server.local_addr().expect("an address");
        let mut config = database.beside(3, 60_000);
        config.homeserver_api = Some(
            roomkeeper::config::HomeserverApi::at(
                &format!("http://{address}"),
                roomkeeper::config::Secret::new("token"),
            )
            .expect("an address"),
        );
        let (asked, answers) = (config.clone(), std::thread::spawn(move || answer(&server)));
        let viewer = roomkeeper::keeper::Viewer::open(asked).expect("opens");
        let planned = viewer
            .plan_purge(&roomkeeper::RoomId::new(ROOM), ask.point(), ask.options())
            .expect("planned");
        drop(viewer);
        assert_eq!(
            planned.extremities_kept,
            if is_asked { 0 } else { 2 },
            "{newest}"
        );
        // It only says that it did: what it left stays.
        let done = database.purge_with(config, &ask).expect("purged");
        assert_eq!(done.extremities_kept, 2, "{newest}");
        let mut stop = std::net::TcpStream::connect(address).expect("still there");
        std::io::Write::write_all(&mut stop, b"STOP / HTTP/1.1\r\n\r\n").expect("told");
        let requests = answers.join().expect("no panic");
        let wanted =
            "DELETE /_synapse/admin/v1/rooms/%21room%3Aexample.org/forward_extremities HTTP/1.1";
        assert_eq!(
            requests,
            if is_asked { vec![wanted] } else { vec![] },
            "{newest}"
        );
        database.assert_sound(newest);
    }
}

/// Answers every request until one says stop; gives the first lines of those before.
fn answer(server: &std::net::TcpListener) -> Vec<String> {
    use std::io::{BufRead, BufReader, Write};
    let mut requests = Vec::new();
    loop {
        let (stream, _) = server.accept().expect("accepted");
        let mut lines = BufReader::new(&stream).lines();
        let first = lines.next().expect("a line").expect("read");
        if first.starts_with("STOP") {
            return requests;
        }
        for line in lines {
            if line.expect("read").is_empty() {
                break;
            }
        }
        requests.push(first);
        let body = r#"{"deleted": 2}"#;
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        (&stream).write_all(head.as_bytes()).expect("answered");
    }
}

/// P-56: said before everything else.
#[test]
fn local_messages_that_nobody_will_see_any_more_are_counted_first() {
    let mut draft = Draft::new("example.org", 1);
    draft.open_room(ROOM, "a", ANN, 2);
    let mut before = "$a-join".to_owned();
    for depth in 3..13 {
        let id = format!("$m{depth}");
        let sender = if depth % 2 == 0 { ANN } else { RITA };
        draft.add(Event::message(&id, ROOM, sender, depth, depth + 1).after(&[&before]));
        before = id;
    }
    let drawn = Site::of(draft);
    for (delete_local_events, kept) in [(false, 4), (true, 0)] {
        let ask = Ask {
            delete_local_events,
            ..Ask::all_of(ROOM, 12)
        };
        assert_eq!(drawn.plan(&ask).expect("planned").local_messages_kept, kept);
        for config in [Site::config, Site::rewriting, |s: &Site| s.in_batches_of(2)] {
            let site = drawn.copy();
            let done = site.purge_with(config(&site), &ask).expect("purged");
            assert_eq!(done.local_messages_kept, kept);
            let first = done.notes.first().map_or("", String::as_str);
            assert_eq!(
                first.starts_with("4 local messages stay in the database"),
                kept > 0,
                "{first}"
            );
        }
    }
}

also_on_postgres! {
    forward_extremities_stay_beside_a_homeserver_until_something_follows_them,
    a_homeserver_that_can_be_asked_is_asked_to_drop_extremities,
    local_messages_that_nobody_will_see_any_more_are_counted_first,
    an_event_of_low_depth_that_arrives_between_batches_is_not_deleted,
    an_event_of_low_depth_that_arrives_inside_a_batch_is_not_deleted,
}
