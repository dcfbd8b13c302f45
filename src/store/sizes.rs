//! How many events there are and how much room they take, before anything is decided about them.

use serde_json::Value;

use super::db::{Db, Engine, params};
use super::event_rows::RowCounts;
use crate::error::Error;
use crate::ids::RoomId;

/// What is known of the events table before a purge.
#[derive(Clone, Copy, Debug)]
pub struct TableSizes {
    /// Events in all rooms.
    pub events: i64,
    /// Bytes in use in the file, or on the server.
    pub used_bytes: i64,
}

/// The number of events is the server's own estimate: counting them would read all of the table.
const SIZES_ON_POSTGRES: &str = "-- PostgreSQL
    SELECT CAST(greatest(reltuples, 0) AS BIGINT), pg_database_size(current_database())
      FROM pg_class WHERE oid = to_regclass('events')";

/// How many events there are, and how much room everything takes.
pub fn sizes(db: &Db) -> Result<TableSizes, Error> {
    if db.engine() == Engine::Postgres {
        let found = db.row("measure the database", SIZES_ON_POSTGRES, &[], |r| {
            Ok(TableSizes {
                events: r.get(0)?,
                used_bytes: r.get(1)?,
            })
        })?;
        return found.ok_or_else(|| Error::Bug("the server knows no table of events".into()));
    }
    let pages = db.pragma("page_count")? - db.pragma("freelist_count")?;
    Ok(TableSizes {
        events: db.count("count all events", "SELECT count(*) FROM events", &[])?,
        used_bytes: pages.saturating_mul(db.pragma("page_size")?),
    })
}

/// What an event takes in the file with everything that belongs to it: the file's use, by the number of events.
pub fn bytes_of_one_event(db: &Db) -> Result<i64, Error> {
    let sizes = sizes(db)?;
    Ok(sizes.used_bytes / sizes.events.max(1))
}

/// What an event takes in SQLite's tables besides its JSON, and what a byte of that takes (its page is never quite full,
/// and the full-text index has most of it once more): measured on databases of real servers of 16 thousand to a million
/// events.
pub(super) const SQLITE_EVENT: f64 = 1_350.0;
pub(super) const SQLITE_JSON_BYTE: f64 = 1.15;

/// The same for a row of a state (type, key, room, event, and the index on the first two), and for a state group.
pub(super) const SQLITE_STATE_ROW: f64 = 210.0;
pub(super) const SQLITE_GROUP: f64 = 190.0;

/// How long the JSON of events is here on the average: that of the newest, so that a large table costs no more.
const JSON_BYTES: &str = "
    SELECT CAST(coalesce(avg(length(json)), 0) AS BIGINT) FROM (SELECT json FROM event_json ORDER BY rowid DESC LIMIT 500)";

/// What rows of these tables take with their indexes, by the server's own estimate of how many there are.
const BYTES_ON_POSTGRES: &str = "-- PostgreSQL
    SELECT CAST(coalesce(sum(CAST(pg_total_relation_size(c.oid) AS DOUBLE PRECISION)
                             * least(CAST(given.value AS DOUBLE PRECISION) / greatest(c.reltuples, 1), 1)), 0) AS BIGINT)
      FROM json_each_text(CAST($1 AS JSON)) AS given
      JOIN pg_class c ON c.oid = to_regclass(quote_ident(given.key))";

/// Bytes that are free inside the database when these rows are gone: an estimate, and never more than all of it.
pub fn bytes_of_rows(db: &Db, rows: &RowCounts) -> Result<i64, Error> {
    let doing = "estimate what rows take";
    if db.engine() == Engine::Postgres {
        let given = Value::from_iter(rows.clone()).to_string();
        return db.count(doing, BYTES_ON_POSTGRES, params![given]);
    }
    let of = |table: &str| rows.get(table).copied().unwrap_or(0) as f64;
    let sizes = sizes(db)?;
    // A file cannot hold more than it has: then its events are smaller than they usually are.
    let most = sizes.used_bytes as f64 / sizes.events.max(1) as f64;
    let json = db.count(doing, JSON_BYTES, params![])? as f64;
    let event = (SQLITE_EVENT + SQLITE_JSON_BYTE * json).min(most);
    let bytes = of("events") * event
        + of("state_groups_state") * SQLITE_STATE_ROW
        + of("state_groups") * SQLITE_GROUP;
    Ok((bytes as i64).min(sizes.used_bytes))
}

/// What the smallest transactions of a job are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SmallestStep {
    /// Most events at one depth: a purge never goes half-way through one.
    pub events: i64,
    /// Bytes of the largest event among those that go first.
    pub largest_event: i64,
    /// Entries of the room's state, or of the largest room's: as many as a state group that is stored in full may have.
    pub state_entries: i64,
}

/// Walks the room's part of `events_order_room`.
const MOST_AT_ONE_DEPTH: &str = "
    SELECT COALESCE(max(n), 0)
      FROM (SELECT count(*) AS n FROM events WHERE room_id = $1 AND NOT outlier GROUP BY topological_ordering) AS d";

const LARGEST_EVENT: &str = "
    SELECT COALESCE(max(octet_length(j.json)), 0)
      FROM (SELECT event_id FROM events WHERE room_id = $1 AND NOT outlier
             ORDER BY topological_ordering, stream_ordering LIMIT 1000) AS e
      JOIN event_json AS j ON j.event_id = e.event_id";

const STATE_ENTRIES: &str = "SELECT count(*) FROM current_state_events WHERE room_id = $1";

const MOST_STATE_ENTRIES: &str = "
    SELECT COALESCE(max(n), 0) FROM (SELECT count(*) AS n FROM current_state_events GROUP BY room_id) AS r";

/// What the smallest transactions on a room, or on the whole server, are made of. For who has to say how much room is missing:
/// it walks the room's events.
pub fn smallest_step(db: &Db, room: Option<&RoomId>) -> Result<SmallestStep, Error> {
    let doing = "measure the smallest step";
    let Some(room) = room else {
        return Ok(SmallestStep {
            state_entries: db.count(doing, MOST_STATE_ENTRIES, &[])?,
            ..SmallestStep::default()
        });
    };
    let of_room = params![room.as_str()];
    Ok(SmallestStep {
        events: db.count(doing, MOST_AT_ONE_DEPTH, of_room)?,
        largest_event: db.count(doing, LARGEST_EVENT, of_room)?,
        state_entries: db.count(doing, STATE_ENTRIES, of_room)?,
    })
}
