//! What every room of the server has: counts, times, members, names, all asked in sets.
//!
//! What is expensive to count (rows of state, the first and the last message) is counted once and kept by the caller; the
//! statements here say cheaply what has changed since. Every statement reads only, takes no lock that anybody waits for,
//! and needs no temporary table.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::db::{Db, Engine, Row, RowResult, params};
use super::sizes::{SQLITE_EVENT, SQLITE_GROUP, SQLITE_JSON_BYTE, SQLITE_STATE_ROW};
use crate::error::Error;
use crate::ids::RoomId;
use crate::time::Millis;

const DOING: &str = "count what the rooms have";

/// The events of a room, as its index tells: what changes whenever one comes or goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventCount {
    /// Events that are held, outliers included.
    pub events: i64,
    /// The least stream ordering.
    pub first_stream: i64,
    /// The greatest stream ordering.
    pub last_stream: i64,
}

/// Walks one index on room and stream ordering, and no table.
const EVENTS: &str = "
    SELECT room_id, count(*), min(stream_ordering), max(stream_ordering) FROM events GROUP BY room_id";

/// The events of every room that has any.
pub fn events(db: &Db) -> Result<BTreeMap<RoomId, EventCount>, Error> {
    by_room(db, EVENTS, |row| {
        Ok(EventCount {
            events: row.get(1)?,
            first_stream: row.get(2)?,
            last_stream: row.get(3)?,
        })
    })
}

/// How many events the server has.
pub fn count_events(db: &Db) -> Result<i64, Error> {
    db.count(DOING, "SELECT count(*) FROM events", &[])
}

/// Events that came after a place in the stream. Binds `$1` that place. Walks the key.
const EVENTS_AFTER: &str = "SELECT room_id, stream_ordering FROM events WHERE stream_ordering > $1";

/// Events that were backfilled after the one of a place in the stream. Binds `$1` that place. Walks the key.
const EVENTS_BEFORE: &str =
    "SELECT room_id, stream_ordering FROM events WHERE stream_ordering < $1";

/// What came in each room beyond the greatest and the least stream ordering that were there.
pub fn events_beyond(
    db: &Db,
    greatest: i64,
    least: i64,
) -> Result<BTreeMap<RoomId, EventCount>, Error> {
    let mut found: BTreeMap<RoomId, EventCount> = BTreeMap::new();
    for (sql, place) in [(EVENTS_AFTER, greatest), (EVENTS_BEFORE, least.min(0))] {
        db.for_each(DOING, sql, params![place], |row| {
            let stream: i64 = row.get(1)?;
            let one = EventCount {
                events: 1,
                first_stream: stream,
                last_stream: stream,
            };
            let of = found.entry(room(row)?);
            of.and_modify(|of| *of = of.with(one)).or_insert(one);
            Ok(())
        })?;
    }
    Ok(found)
}

impl EventCount {
    /// The two together.
    pub fn with(self, other: Self) -> Self {
        Self {
            events: self.events + other.events,
            first_stream: self.first_stream.min(other.first_stream),
            last_stream: self.last_stream.max(other.last_stream),
        }
    }
}

/// The state groups of a room: how many, and the newest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupCount {
    /// State groups.
    pub groups: i64,
    /// The newest of them, by the order in which they were written.
    pub newest: i64,
}

/// Walks the index on room, which holds the row numbers.
const GROUPS: &str = "SELECT room_id, count(*), max(rowid) FROM state_groups GROUP BY room_id";

/// Walks the table once.
const GROUPS_ON_POSTGRES: &str = "-- PostgreSQL
    SELECT room_id, count(*), max(id) FROM state_groups GROUP BY room_id";

/// The state groups of every room that has any.
pub fn groups(db: &Db) -> Result<BTreeMap<RoomId, GroupCount>, Error> {
    by_room(db, db.text(GROUPS, GROUPS_ON_POSTGRES), |row| {
        Ok(GroupCount {
            groups: row.get(1)?,
            newest: row.get(2)?,
        })
    })
}

/// State groups written after `$1`, and the rows that their states take. Walks those groups and their part of the index
/// on state.
const STATE_ROWS_SINCE: &str = "
    SELECT g.room_id, count(*),
           coalesce(sum((SELECT count(*) FROM state_groups_state s WHERE s.state_group = g.id)), 0)
      FROM state_groups g
     WHERE g.rowid > $1
     GROUP BY g.room_id";

const STATE_ROWS_SINCE_ON_POSTGRES: &str = "-- PostgreSQL
    SELECT g.room_id, count(*), CAST(coalesce(sum(s.n), 0) AS BIGINT)
      FROM state_groups g
      LEFT JOIN (SELECT state_group, count(*) AS n FROM state_groups_state WHERE state_group > $1 GROUP BY state_group) s
        ON s.state_group = g.id
     WHERE g.id > $1
     GROUP BY g.room_id";

/// For every room with state groups newer than `mark` (as [`GroupCount::newest`] has it): how many these are, and the
/// rows of their states.
pub fn state_rows_since(db: &Db, mark: i64) -> Result<BTreeMap<RoomId, (i64, i64)>, Error> {
    let sql = db.text(STATE_ROWS_SINCE, STATE_ROWS_SINCE_ON_POSTGRES);
    let mut found = BTreeMap::new();
    db.for_each(DOING, sql, params![mark], |row| {
        found.insert(room(row)?, (row.get(1)?, row.get(2)?));
        Ok(())
    })?;
    Ok(found)
}

/// The rows of the states of rooms, all of their groups. Binds `$1` rooms. Walks each room's groups.
const STATE_ROWS_OF: &str = "
    SELECT g.room_id, coalesce(sum((SELECT count(*) FROM state_groups_state s WHERE s.state_group = g.id)), 0)
      FROM state_groups g
     WHERE g.room_id IN (SELECT value FROM json_each($1))
     GROUP BY g.room_id";

const STATE_ROWS_OF_ON_POSTGRES: &str = "-- PostgreSQL
    SELECT g.room_id, CAST(coalesce(sum((SELECT count(*) FROM state_groups_state s WHERE s.state_group = g.id)), 0) AS BIGINT)
      FROM state_groups g
     WHERE g.room_id IN (SELECT value FROM json_each($1))
     GROUP BY g.room_id";

/// The rows of the states of these rooms.
pub fn state_rows_of<'a>(
    db: &Db,
    rooms: impl Iterator<Item = &'a RoomId>,
) -> Result<BTreeMap<RoomId, i64>, Error> {
    let sql = db.text(STATE_ROWS_OF, STATE_ROWS_OF_ON_POSTGRES);
    let mut found = BTreeMap::new();
    db.for_each(DOING, sql, params![array(rooms)], |row| {
        found.insert(room(row)?, row.get(1)?);
        Ok(())
    })?;
    Ok(found)
}

/// When a room was spoken in. Times are those of this server's clock, and for what was backfilled the earlier one of that
/// and what the sender claims.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// The first message that is held, by its place in the room.
    pub oldest_message: Option<Millis>,
    /// The last message, by its arrival.
    pub newest_message: Option<Millis>,
    /// The last event of any kind but a membership, by its arrival: people who change their picture change it in all
    /// of their rooms.
    pub last_activity: Option<Millis>,
    /// Bytes of an event's JSON, by a sample of the room's newest and oldest ones.
    pub json_bytes: i64,
    /// The events that these are the times of, by their stream ordering.
    pub of: [Option<i64>; 3],
}

/// Of these events, the ones that are no longer in the timeline, by their rooms. Binds `$1` stream orderings. Walks the key.
const OUT_OF_TIMELINE: &str = "
    SELECT DISTINCT room_id FROM events
     WHERE stream_ordering IN (SELECT CAST(value AS BIGINT) FROM json_each($1)) AND outlier";

/// Rooms with events that have come into the timeline after a place in the stream, although they were held before. Binds
/// `$1` that place. Walks the key.
const INTO_TIMELINE: &str = "
    SELECT DISTINCT e.room_id
      FROM ex_outlier_stream x
     CROSS JOIN events e
     WHERE x.event_stream_ordering > $1 AND e.event_id = x.event_id";

/// Rooms whose timeline is another one although no event came or went: one of `landmarks` has left it (state stays behind
/// when a purge goes by, and so does a redaction of what stays), or one came into it after `since` that was held before.
pub fn timelines_changed(
    db: &Db,
    landmarks: impl Iterator<Item = i64>,
    since: i64,
) -> Result<Vec<RoomId>, Error> {
    let landmarks = Value::from(landmarks.collect::<Vec<_>>()).to_string();
    let mut rooms = db.rows(DOING, OUT_OF_TIMELINE, params![landmarks], room)?;
    if db.catalog().has("ex_outlier_stream") {
        rooms.extend(db.rows(DOING, INTO_TIMELINE, params![since], room)?);
    }
    Ok(rooms)
}

/// The events that a room's times are those of. Binds `$1` rooms. Walks the room backwards, or forwards, to the first
/// event that counts.
const LANDMARKS: &str = "
    SELECT asked.value,
           (SELECT e.stream_ordering FROM events e
             WHERE e.room_id = asked.value AND NOT e.outlier AND e.state_key IS NULL
               AND NOT EXISTS (SELECT 1 FROM state_events s WHERE s.event_id = e.event_id)
               AND NOT EXISTS (SELECT 1 FROM rejections r WHERE r.event_id = e.event_id)
             ORDER BY e.topological_ordering, e.stream_ordering LIMIT 1),
           (SELECT e.stream_ordering FROM events e
             WHERE e.room_id = asked.value AND NOT e.outlier AND e.state_key IS NULL
               AND NOT EXISTS (SELECT 1 FROM state_events s WHERE s.event_id = e.event_id)
               AND NOT EXISTS (SELECT 1 FROM rejections r WHERE r.event_id = e.event_id)
             ORDER BY e.stream_ordering DESC LIMIT 1),
           (SELECT e.stream_ordering FROM events e
             WHERE e.room_id = asked.value AND NOT e.outlier AND e.type <> 'm.room.member'
               AND NOT EXISTS (SELECT 1 FROM rejections r WHERE r.event_id = e.event_id)
             ORDER BY e.stream_ordering DESC LIMIT 1)
      FROM (SELECT value FROM json_each($1)) AS asked";

/// When events came, and what their senders claim. Binds `$1` stream orderings. Walks the key.
const ARRIVALS: &str = "
    SELECT stream_ordering, received_ts, origin_server_ts FROM events
     WHERE stream_ordering IN (SELECT CAST(value AS BIGINT) FROM json_each($1))";

/// Bytes of the JSON of a few events of each room. Binds `$1` how many from either end, `$2` rooms.
const SAMPLE: &str = "
    SELECT asked.value,
           (SELECT sum(octet_length(j.json)) FROM
               (SELECT event_id FROM events WHERE room_id = asked.value ORDER BY topological_ordering, stream_ordering LIMIT $1) few
             CROSS JOIN event_json j WHERE j.event_id = few.event_id),
           (SELECT sum(octet_length(j.json)) FROM
               (SELECT event_id FROM events WHERE room_id = asked.value ORDER BY topological_ordering DESC, stream_ordering DESC LIMIT $1) few
             CROSS JOIN event_json j WHERE j.event_id = few.event_id)
      FROM (SELECT value FROM json_each($2)) AS asked";

/// Events of a sample, from either end of a room.
const SAMPLED: i64 = 8;

/// The times of these rooms, each with how many events it has.
pub fn times(db: &Db, rooms: &[(&RoomId, i64)]) -> Result<BTreeMap<RoomId, Times>, Error> {
    let asked = array(rooms.iter().map(|(room, _)| *room));
    let mut landmarks: BTreeMap<RoomId, [Option<i64>; 3]> = BTreeMap::new();
    db.for_each(DOING, LANDMARKS, params![asked], |row| {
        landmarks.insert(room(row)?, [row.get(1)?, row.get(2)?, row.get(3)?]);
        Ok(())
    })?;
    let streams: Vec<i64> = landmarks.values().flatten().flatten().copied().collect();
    let streams = Value::from(streams).to_string();
    let mut arrivals: BTreeMap<i64, Option<Millis>> = BTreeMap::new();
    db.for_each(DOING, ARRIVALS, params![streams], |row| {
        let stream: i64 = row.get(0)?;
        let (received, sent) = (row.stamp(1), row.stamp(2));
        let at = match (received, sent) {
            (Some(received), Some(sent)) if stream < 0 => Some(received.min(sent)),
            (received, sent) => received.or(sent),
        };
        arrivals.insert(stream, at.map(Millis));
        Ok(())
    })?;
    let mut sizes: BTreeMap<RoomId, i64> = BTreeMap::new();
    db.for_each(DOING, SAMPLE, params![SAMPLED, asked], |row| {
        let (old, new): (Option<i64>, Option<i64>) = (row.get(1)?, row.get(2)?);
        sizes.insert(
            room(row)?,
            old.unwrap_or(0).saturating_add(new.unwrap_or(0)),
        );
        Ok(())
    })?;
    let mut found = BTreeMap::new();
    for (room, events) in rooms {
        let of = landmarks.get(*room).copied().unwrap_or_default();
        let at =
            |which: usize| of[which].and_then(|stream| arrivals.get(&stream).copied().flatten());
        let looked_at = 2 * (*events).min(SAMPLED);
        found.insert(
            (*room).clone(),
            Times {
                oldest_message: at(0),
                newest_message: at(1),
                last_activity: at(2),
                json_bytes: sizes.get(*room).copied().unwrap_or(0) / looked_at.max(1),
                of,
            },
        );
    }
    Ok(found)
}

/// Who is in a room, as its current state says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateMembers {
    /// Entries of the current state.
    pub entries: i64,
    /// Users that are joined, of all servers.
    pub joined: i64,
    /// Of these, users of this server.
    pub joined_here: i64,
}

/// Binds `$1` the server's name. Walks the current state of all rooms once. In very old databases the membership stands
/// with the event alone.
const STATE_MEMBERS: &str = "
    SELECT c.room_id, count(*),
           count(CASE WHEN c.type = 'm.room.member' AND
                      coalesce(c.membership, (SELECT m.membership FROM room_memberships m WHERE m.event_id = c.event_id)) = 'join'
                 THEN 1 END),
           count(CASE WHEN c.type = 'm.room.member'
                       AND substr(c.state_key, instr(c.state_key, ':') + 1) = $1 AND
                      coalesce(c.membership, (SELECT m.membership FROM room_memberships m WHERE m.event_id = c.event_id)) = 'join'
                 THEN 1 END)
      FROM current_state_events c
     GROUP BY c.room_id";

/// The members of every room that has current state.
pub fn state_members(db: &Db, server_name: &str) -> Result<BTreeMap<RoomId, StateMembers>, Error> {
    let mut found = BTreeMap::new();
    db.for_each(DOING, STATE_MEMBERS, params![server_name], |row| {
        let members = StateMembers {
            entries: row.get(1)?,
            joined: row.get(2)?,
            joined_here: row.get(3)?,
        };
        found.insert(room(row)?, members);
        Ok(())
    })?;
    Ok(found)
}

/// What this server's users are to a room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalMembers {
    /// Users that are joined.
    pub joined: i64,
    /// Users that are invited, or have knocked.
    pub waiting: i64,
    /// Users that have left, or are banned.
    pub left: i64,
    /// Of these, the ones that have forgotten the room.
    pub forgotten: i64,
}

/// Walks the memberships of this server's users once, and looks each one's event up.
const LOCAL_MEMBERS: &str = "
    SELECT l.room_id,
           count(CASE WHEN l.membership = 'join' THEN 1 END),
           count(CASE WHEN l.membership IN ('invite', 'knock') THEN 1 END),
           count(CASE WHEN l.membership NOT IN ('join', 'invite', 'knock') THEN 1 END),
           count(CASE WHEN l.membership NOT IN ('join', 'invite', 'knock') AND m.forgotten = 1 THEN 1 END)
      FROM local_current_membership l
      LEFT JOIN room_memberships m ON m.event_id = l.event_id
     GROUP BY l.room_id";

/// This server's users, for every room that any of them ever was in.
pub fn local_members(db: &Db) -> Result<BTreeMap<RoomId, LocalMembers>, Error> {
    by_room(db, LOCAL_MEMBERS, |row| {
        Ok(LocalMembers {
            joined: row.get(1)?,
            waiting: row.get(2)?,
            left: row.get(3)?,
            forgotten: row.get(4)?,
        })
    })
}

/// Rooms that somebody of this server has joined for the first time after a place in the stream. Binds `$1` that place.
/// Walks the memberships once.
const JOINED_SINCE: &str = "
    SELECT DISTINCT l.room_id
      FROM local_current_membership l
     WHERE l.membership = 'join' AND l.event_stream_ordering > $1
       AND (l.room_id, l.user_id) NOT IN (
           SELECT m.room_id, m.user_id FROM room_memberships m
            WHERE m.membership = 'join' AND coalesce(m.event_stream_ordering, 0) <= $1)";

/// Rooms that somebody of this server has joined for the first time after a place in the stream.
pub fn joined_since(db: &Db, stream: i64) -> Result<Vec<RoomId>, Error> {
    db.rows(DOING, JOINED_SINCE, params![stream], room)
}

/// What a room is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// Its name.
    pub name: Option<String>,
    /// Its canonical alias, or else one that leads there.
    pub alias: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// Whether it is in the public directory.
    pub public: bool,
    /// Whether it is encrypted; nothing where that cannot be told.
    pub encrypted: Option<bool>,
    /// Its type: `m.space`, or nothing.
    pub room_type: Option<String>,
}

/// Binds `$1` room, `$2` stream ordering. Walks `events_room_stream`.
const HAS_NEWER: &str = "
    SELECT EXISTS (SELECT 1 FROM events WHERE room_id = $1 AND stream_ordering > $2)";

/// Whether anything came into a room after an event.
pub fn has_newer(db: &Db, room: &RoomId, stream: i64) -> Result<bool, Error> {
    let found = db.row(DOING, HAS_NEWER, params![room.as_str(), stream], |row| {
        row.get(0)
    })?;
    Ok(found.unwrap_or(false))
}

const ROOMS: &str = "SELECT room_id, is_public, room_version FROM rooms";

const ALIASES: &str = "SELECT room_id, min(room_alias) FROM room_aliases GROUP BY room_id";

/// What the homeserver has noted of each room.
const NOTED: &str = "
    SELECT room_id, name, canonical_alias, encryption IS NOT NULL, room_type FROM room_stats_state";

/// What current state says of rooms. Binds `$1` rooms. Walks four entries of each room's key.
const STATED: &str = "
    SELECT c.room_id, c.type, j.json
      FROM (SELECT value FROM json_each($1)) AS asked
     CROSS JOIN current_state_events c
     CROSS JOIN event_json j
     WHERE c.room_id = asked.value
       AND c.type IN ('m.room.create', 'm.room.name', 'm.room.canonical_alias', 'm.room.encryption')
       AND c.state_key = ''
       AND j.event_id = c.event_id";

/// What every room is that the homeserver knows. `live` are rooms with current state.
pub fn descriptions<'a>(
    db: &Db,
    live: impl Iterator<Item = &'a RoomId>,
) -> Result<BTreeMap<RoomId, Description>, Error> {
    let mut found: BTreeMap<RoomId, Description> = by_room(db, ROOMS, |row| {
        Ok(Description {
            public: row.get::<_, Option<bool>>(1)?.unwrap_or(false),
            version: row.get(2)?,
            ..Description::default()
        })
    })?;
    let aliases = by_room(db, ALIASES, |row| row.get::<_, Option<String>>(1))?;
    let mut noted = std::collections::BTreeSet::new();
    if db.catalog().has("room_stats_state") {
        db.for_each(DOING, NOTED, &[], |row| {
            let id = room(row)?;
            let of = found.entry(id.clone()).or_default();
            of.name = row.get(1)?;
            of.alias = row.get(2)?;
            of.encrypted = Some(row.get(3)?);
            of.room_type = row.get(4)?;
            noted.insert(id);
            Ok(())
        })?;
    }
    let others: Vec<&RoomId> = live.filter(|room| !noted.contains(*room)).collect();
    for room in &others {
        found.entry((*room).clone()).or_default().encrypted = Some(false);
    }
    db.for_each(DOING, STATED, params![array(others.into_iter())], |row| {
        let of = found.entry(room(row)?).or_default();
        // What cannot be read says nothing.
        let json: Option<String> = row.get(2).ok();
        let event: Value = json
            .and_then(|json| serde_json::from_str(&json).ok())
            .unwrap_or_default();
        let said = |key: &str| {
            let text = event.get("content").and_then(|content| content.get(key));
            text.and_then(Value::as_str).map(str::to_owned)
        };
        match row.get::<_, String>(1)?.as_str() {
            "m.room.name" => of.name = said("name").filter(|name| !name.is_empty()),
            "m.room.canonical_alias" => of.alias = said("alias"),
            "m.room.encryption" => of.encrypted = Some(true),
            _ => of.room_type = said("type"),
        }
        Ok(())
    })?;
    for (room, alias) in aliases {
        let of = found.entry(room).or_default();
        of.alias = of.alias.take().or(alias);
    }
    Ok(found)
}

/// The rooms of a space, as its current state says. Binds `$1` spaces.
const CHILDREN: &str = "
    SELECT c.state_key, j.json
      FROM (SELECT value FROM json_each($1)) AS asked
     CROSS JOIN current_state_events c
     CROSS JOIN event_json j
     WHERE c.room_id = asked.value AND c.type = 'm.space.child' AND j.event_id = c.event_id";

/// The rooms that stand in these spaces themselves; a child without servers to join it through has been taken out.
pub fn children<'a>(
    db: &Db,
    spaces: impl Iterator<Item = &'a RoomId>,
) -> Result<Vec<RoomId>, Error> {
    let mut found = Vec::new();
    db.for_each(
        "read the rooms of a space",
        CHILDREN,
        params![array(spaces)],
        |row| {
            let json: Option<String> = row.get(1).ok();
            let event: Value = json
                .and_then(|json| serde_json::from_str(&json).ok())
                .unwrap_or_default();
            let via = event.get("content").and_then(|content| content.get("via"));
            if via
                .and_then(Value::as_array)
                .is_some_and(|via| !via.is_empty())
            {
                found.push(room(row)?);
            }
            Ok(())
        },
    )?;
    Ok(found)
}

/// The room an alias of this server leads to.
pub fn by_alias(db: &Db, alias: &str) -> Result<Option<RoomId>, Error> {
    const BY_ALIAS: &str = "SELECT room_id FROM room_aliases WHERE room_alias = $1";
    db.row("look up an alias", BY_ALIAS, params![alias], room)
}

/// What rows take in the database, on the average.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowSizes {
    /// An event in all tables, without its JSON where that is known apart.
    pub event: f64,
    /// What a byte of an event's JSON takes; 0 where `event` has it.
    pub json_byte: f64,
    /// A row of a state.
    pub state_row: f64,
    /// A state group, without its state.
    pub group: f64,
    /// An entry of the current state, with its membership rows.
    pub entry: f64,
}

/// What the tables take on a server, rows and indexes, in four classes: state, groups, current state with memberships,
/// and everything else that is about events.
const SIZES_ON_POSTGRES: &str = "-- PostgreSQL
    SELECT CASE WHEN c.relname = 'state_groups_state' THEN 'state'
                WHEN c.relname IN ('state_groups', 'state_group_edges') THEN 'groups'
                WHEN c.relname IN ('current_state_events', 'room_memberships', 'local_current_membership',
                                   'sliding_sync_membership_snapshots', 'users_in_public_rooms',
                                   'users_who_share_private_rooms') THEN 'entries'
                ELSE 'events' END,
           CAST(sum(pg_total_relation_size(c.oid)) AS BIGINT)
      FROM pg_class c
      JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind = 'r' AND pg_table_is_visible(c.oid) AND n.nspname NOT IN ('pg_catalog', 'information_schema')
       AND EXISTS (SELECT 1 FROM pg_attribute a
                    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                      AND a.attname IN ('event_id', 'room_id', 'state_group', 'origin_chain_id'))
       AND c.relname NOT IN ('e2e_room_keys', 'device_lists_changes_in_room', 'user_directory')
     GROUP BY 1";

/// What a member of a room takes in SQLite's tables.
const SQLITE_ENTRY: f64 = 900.0;

/// What rows take on the average. `events`, `state_rows`, `groups` and `entries` are the server's.
pub fn row_sizes(
    db: &Db,
    events: i64,
    state_rows: i64,
    groups: i64,
    entries: i64,
) -> Result<RowSizes, Error> {
    if db.engine() == Engine::Sqlite {
        return Ok(RowSizes {
            event: SQLITE_EVENT,
            json_byte: SQLITE_JSON_BYTE,
            state_row: SQLITE_STATE_ROW,
            group: SQLITE_GROUP,
            entry: SQLITE_ENTRY,
        });
    }
    let mut sizes = RowSizes::default();
    let each = |bytes: i64, rows: i64| bytes as f64 / rows.max(1) as f64;
    db.for_each("measure the tables", SIZES_ON_POSTGRES, &[], |row| {
        let bytes: i64 = row.get(1)?;
        match row.get::<_, String>(0)?.as_str() {
            "state" => sizes.state_row = each(bytes, state_rows),
            "groups" => sizes.group = each(bytes, groups),
            "entries" => sizes.entry = each(bytes, entries),
            _ => sizes.event = each(bytes, events),
        }
        Ok(())
    })?;
    Ok(sizes)
}

/// Bytes that the database holds on SQLite, free pages apart; nothing on a server.
pub fn used_bytes(db: &Db) -> Result<Option<i64>, Error> {
    if db.engine() == Engine::Postgres {
        return Ok(None);
    }
    let pages = db.pragma("page_count")? - db.pragma("freelist_count")?;
    Ok(Some(pages.saturating_mul(db.pragma("page_size")?)))
}

fn by_room<T>(
    db: &Db,
    sql: &str,
    mut read: impl FnMut(&Row<'_>) -> RowResult<T>,
) -> Result<BTreeMap<RoomId, T>, Error> {
    let mut found = BTreeMap::new();
    db.for_each(DOING, sql, &[], |row| {
        found.insert(room(row)?, read(row)?);
        Ok(())
    })?;
    Ok(found)
}

fn room(row: &Row<'_>) -> RowResult<RoomId> {
    Ok(RoomId::new(row.get::<_, String>(0)?))
}

/// Ids as a JSON array.
fn array<'a>(rooms: impl Iterator<Item = &'a RoomId>) -> String {
    Value::from(rooms.map(RoomId::as_str).collect::<Vec<_>>()).to_string()
}
