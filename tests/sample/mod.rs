//! A homeserver's database of any size, filled by SQL alone: large ones take seconds.
//!
//! Every room has what a purge meets: state and its groups, redactions, threads, unread counts, a gap, a late
//! arrival, words in the full-text index. `roomkeeper check` finds nothing wrong with it.

#![allow(dead_code)]

use std::path::Path;

use roomkeeper::store::schema;
use rusqlite::{Connection, params};

/// The homeserver's name.
pub const SERVER_NAME: &str = "example.org";

/// When the first event of a room was received; each further one came a second later.
pub const FIRST_TS: i64 = 1_600_000_000_000;

/// A database with `events` events in each of `rooms`, named `!a:example.org` and so on.
pub fn create(path: &Path, rooms: &[&str], events: i64) {
    schema::create(path).expect("an empty database");
    let conn = Connection::open(path).expect("opens");
    conn.execute_batch("PRAGMA foreign_keys = ON; PRAGMA synchronous = OFF; BEGIN")
        .expect("begins");
    for (number, room) in (0..).zip(rooms) {
        fill(&conn, room, events, number);
    }
    conn.execute(
        "UPDATE event_push_summary_stream_ordering SET stream_ordering =
            (SELECT max(stream_ordering) FROM events)",
        [],
    )
    .expect("one row");
    conn.execute_batch("COMMIT").expect("commits");
}

/// The id of a room.
pub fn room_id(room: &str) -> String {
    format!("!{room}:{SERVER_NAME}")
}

/// The id of the room's event at a depth.
pub fn event_id(room: &str, depth: i64) -> String {
    format!("${room}{depth}")
}

/// The token of the point at a depth: everything below it goes.
pub fn token(depth: i64) -> String {
    format!("t{depth}-0")
}

/// One room: `$1` its id, `$2` its letter, `$3` its number, `$4` events. Stream orderings and state groups of
/// several rooms lie apart.
fn fill(conn: &Connection, room: &str, events: i64, number: i64) {
    conn.execute_batch(
        "DROP TABLE IF EXISTS temp.of_room; DROP TABLE IF EXISTS temp.e;
         CREATE TEMP TABLE of_room (id TEXT, letter TEXT, number INTEGER, events INTEGER);",
    )
    .expect("temporary tables");
    conn.execute(
        "INSERT INTO of_room VALUES ($1, $2, $3, $4)",
        params![room_id(room), room, number, events],
    )
    .expect("one room");
    conn.execute_batch(EVENTS).expect("events");
    conn.execute_batch(STATE).expect("state");
    conn.execute_batch(AROUND).expect("what belongs to events");
}

/// The events, first as they are told, then as they are stored. The last one arrived late: it is the newest by
/// arrival and lies at depth 5.
const EVENTS: &str = "
    CREATE TEMP TABLE e AS
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n, of_room WHERE i <= events)
    SELECT i, r.id AS room, '$' || r.letter || CASE WHEN i > r.events THEN '-late' ELSE i END AS event_id,
           CASE WHEN i > r.events THEN 5 ELSE i END AS depth, 1 + r.number * 100000000 + i AS stream,
           CASE WHEN i = 1 THEN 'm.room.create' WHEN i <= 3 THEN 'm.room.member'
                WHEN i > r.events THEN 'm.room.message'
                WHEN i % 100 = 0 THEN 'm.room.topic' WHEN i % 20 = 7 THEN 'm.room.redaction'
                ELSE 'm.room.message' END AS kind,
           CASE WHEN i = 2 THEN '@local:example.org' WHEN i = 3 THEN '@remote:elsewhere.org'
                WHEN i = 1 OR (i % 100 = 0 AND i <= r.events) THEN '' END AS state_key,
           CASE WHEN i % 2 = 1 AND i > 2 THEN '@remote:elsewhere.org' ELSE '@local:example.org' END AS sender,
           -- The group holds the state before the event, but for the first ones.
           1 + r.number * 1000000 + CASE WHEN i > r.events THEN 0 ELSE (i - 1) / 100 END AS state_group
      FROM n, of_room r;
    CREATE UNIQUE INDEX temp.e_i ON e (i);
    INSERT INTO rooms (room_id, is_public, creator, room_version, has_auth_chain_index)
    SELECT id, FALSE, '@local:example.org', '10', TRUE FROM of_room;
    INSERT INTO events (stream_ordering, topological_ordering, event_id, type, room_id, processed, outlier, depth,
                        origin_server_ts, received_ts, sender, contains_url, instance_name, state_key)
    SELECT stream, depth, event_id, kind, room, TRUE, FALSE, depth, 1600000000000 + i * 1000,
           1600000000000 + i * 1000, sender, FALSE, 'master', state_key FROM e;
    INSERT INTO event_json (event_id, room_id, internal_metadata, json, format_version)
    SELECT event_id, room, '{}',
           json_object('type', kind, 'sender', sender, 'content', json_object('body', 'words of ' || event_id)), 3 FROM e;
    INSERT INTO event_edges (event_id, prev_event_id, is_state)
    SELECT e.event_id, p.event_id, FALSE FROM e JOIN e p ON p.i = CASE WHEN e.event_id LIKE '%late' THEN 4 ELSE e.i - 1 END
     WHERE e.i > 1;
    -- A gap that this server has never filled, at a quarter of the room.
    INSERT INTO event_edges (event_id, prev_event_id, is_state)
    SELECT e.event_id, '$' || r.letter || '-gap', FALSE FROM e JOIN of_room r ON e.i = r.events / 4;
    INSERT INTO event_backward_extremities (event_id, room_id) SELECT '$' || letter || '-gap', id FROM of_room;
    INSERT INTO event_forward_extremities (event_id, room_id)
    SELECT e.event_id, room FROM e JOIN of_room r ON e.i >= r.events;
    INSERT INTO room_depth (room_id, min_depth) SELECT id, 1 FROM of_room;";

/// State events, memberships, current state, and state groups: the first in full, each later one a delta.
const STATE: &str = "
    INSERT INTO state_events (event_id, room_id, type, state_key)
    SELECT event_id, room, kind, state_key FROM e WHERE state_key IS NOT NULL;
    INSERT INTO event_auth (event_id, auth_id, room_id)
    SELECT e.event_id, c.event_id, e.room FROM e JOIN e c ON c.i = 1 WHERE e.state_key IS NOT NULL AND e.i > 1;
    INSERT INTO event_auth_chains (event_id, chain_id, sequence_number)
    SELECT event_id, stream, 1 FROM e WHERE state_key IS NOT NULL;
    INSERT INTO room_memberships (event_id, user_id, sender, room_id, membership, event_stream_ordering)
    SELECT event_id, state_key, sender, room, 'join', stream FROM e WHERE kind = 'm.room.member';
    INSERT INTO current_state_events (event_id, room_id, type, state_key, membership, event_stream_ordering)
    SELECT event_id, room, kind, state_key, CASE WHEN kind = 'm.room.member' THEN 'join' END, stream
      FROM e WHERE state_key IS NOT NULL
       AND (i <= 3 OR i = (SELECT max(i) FROM e WHERE kind = 'm.room.topic'));
    INSERT INTO local_current_membership (room_id, user_id, event_id, membership, event_stream_ordering)
    SELECT room, state_key, event_id, 'join', stream FROM e WHERE i = 2;
    INSERT INTO state_groups (id, room_id, event_id) SELECT state_group, room, min(event_id) FROM e GROUP BY state_group;
    INSERT INTO state_group_edges (state_group, prev_state_group)
    SELECT DISTINCT state_group, state_group - 1 FROM e WHERE i > 100 AND depth > 100;
    INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id)
    SELECT 1 + r.number * 1000000, room, kind, state_key, event_id FROM e, of_room r WHERE i <= 3;
    INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id)
    SELECT e.state_group + 1, room, kind, state_key, event_id FROM e
     WHERE kind = 'm.room.topic' AND e.state_group + 1 IN (SELECT state_group FROM e);
    INSERT INTO event_to_state_groups (event_id, state_group) SELECT event_id, state_group FROM e;";

/// Redactions, threads, unread counts and the rest.
const AROUND: &str = "
    INSERT INTO redactions (event_id, redacts, have_censored, received_ts)
    SELECT e.event_id, p.event_id, FALSE, 1600000000000 FROM e JOIN e p ON p.i = e.i - 3 WHERE e.kind = 'm.room.redaction';
    -- Every hundred events a thread begins, and a tenth of what follows are replies to it.
    INSERT INTO event_relations (event_id, relates_to_id, relation_type)
    SELECT e.event_id, p.event_id, 'm.thread' FROM e JOIN e p ON p.i = e.i - e.i % 100 + 1
     WHERE e.i > 100 AND e.i % 10 = 5 AND e.kind = 'm.room.message' AND e.depth > 5;
    INSERT INTO threads (room_id, thread_id, latest_event_id, topological_ordering, stream_ordering)
    SELECT t.room, r.relates_to_id, t.event_id, t.depth, t.stream
      FROM event_relations r JOIN e t ON t.event_id = r.event_id
     WHERE t.i = (SELECT max(o.i) FROM event_relations q JOIN e o ON o.event_id = q.event_id
                   WHERE q.relates_to_id = r.relates_to_id);
    INSERT INTO event_push_actions (room_id, event_id, user_id, actions, topological_ordering, stream_ordering, notif,
                                    highlight, unread, thread_id)
    SELECT room, event_id, '@local:example.org', '[]', depth, stream, 1, 0, 1, 'main' FROM e
     WHERE i % 5 = 0 AND kind = 'm.room.message' AND sender LIKE '@remote%';
    INSERT INTO event_push_summary (user_id, room_id, notif_count, stream_ordering, unread_count, thread_id)
    SELECT '@local:example.org', room, count(*), max(stream), count(*), 'main' FROM e
     WHERE i % 5 = 0 AND kind = 'm.room.message' AND sender LIKE '@remote%' GROUP BY room;
    INSERT INTO event_push_actions_staging (event_id, user_id, actions, notif, highlight)
    SELECT event_id, '@local:example.org', '[]', 0, 0 FROM e WHERE i % 50 = 3 AND i > 3;
    INSERT INTO event_labels (event_id, label, room_id, topological_ordering)
    SELECT event_id, '#fun', room, depth FROM e WHERE i % 50 = 4;
    INSERT INTO event_expiry (event_id, expiry_ts) SELECT event_id, 1 FROM e WHERE i % 50 = 5;
    INSERT INTO rejections (event_id, reason, last_check) SELECT event_id, 'auth_error', '' FROM e WHERE i % 500 = 13;
    INSERT INTO event_search (event_id, room_id, sender, key, value)
    SELECT event_id, room, sender, 'content.body', 'words of ' || event_id FROM e WHERE kind = 'm.room.message';
    INSERT INTO sliding_sync_joined_rooms (room_id, event_stream_ordering, bump_stamp)
    SELECT room, max(stream), max(stream) FROM e GROUP BY room;";
