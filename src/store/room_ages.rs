//! Since when rooms are as they are: which of their last events came before a time, and when their people left. Reads only.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::db::{Db, params};
use super::expiry::{Expiry, has_expired};
use crate::error::Error;
use crate::ids::RoomId;
use crate::time::Millis;

const DOING: &str = "look since when rooms are as they are";

/// Of these events, those that came before a time. Binds from `$1` an [`Expiry`], `$7`
/// stream orderings. Walks the key.
const CAME_BEFORE: &str = concat!(
    "
    SELECT e.stream_ordering
      FROM events e
     WHERE (",
    has_expired!(
        "+e.",
        "$1",
        "CAST($2 AS BIGINT)",
        "CAST($3 AS BIGINT)",
        "$4",
        "$5",
        "$6"
    ),
    ")
       AND e.stream_ordering IN (SELECT CAST(value AS BIGINT) FROM json_each($7))"
);

/// Of these events, by their stream orderings, those that came before a time. One that is not held, or of which nobody can
/// say when it came, is not among them.
pub fn came_before(db: &Db, streams: &[i64], expiry: &Expiry) -> Result<BTreeSet<i64>, Error> {
    let streams = Value::from(streams).to_string();
    let params = params![
        expiry.near.0,
        expiry.live_end,
        expiry.live_before,
        expiry.ts.0,
        expiry.first_known,
        expiry.backfilled_after,
        streams
    ];
    let came: Vec<i64> = db.rows(DOING, CAME_BEFORE, params, |row| row.get(0))?;
    // Near the time an event may have come before it while one that arrived earlier did not: then it counts as late.
    let is_clear = |stream: &i64| *stream < 0 || *stream < expiry.live_before;
    Ok(came.into_iter().filter(is_clear).collect())
}

/// Binds `$1` stream orderings. Walks the key.
const STAMPS: &str = "
    SELECT stream_ordering, received_ts FROM events
     WHERE stream_ordering IN (SELECT CAST(value AS BIGINT) FROM json_each($1))";

/// What these events are stamped with, by their stream orderings; for people, because a stamp may be wrong.
pub fn stamps(db: &Db, streams: &[i64]) -> Result<BTreeMap<i64, Millis>, Error> {
    let streams = Value::from(streams).to_string();
    let mut found = BTreeMap::new();
    db.for_each(DOING, STAMPS, params![streams], |row| {
        if let Some(stamp) = row.stamp(1) {
            found.insert(row.get(0)?, Millis(stamp));
        }
        Ok(())
    })?;
    Ok(found)
}

/// Walks the memberships of this server's users once.
const LAST_LEAVES: &str = "
    SELECT room_id, max(event_stream_ordering), count(*) - count(event_stream_ordering)
      FROM local_current_membership
     WHERE membership NOT IN ('join', 'invite', 'knock')
     GROUP BY room_id";

/// The last event by which somebody of this server left a room or was thrown out, for every room that anybody left; nothing
/// where the place of one of them is not known.
pub fn last_leaves(db: &Db) -> Result<BTreeMap<RoomId, Option<i64>>, Error> {
    let mut found = BTreeMap::new();
    db.for_each(DOING, LAST_LEAVES, &[], |row| {
        let last: Option<i64> = row.get(1)?;
        let unknown: i64 = row.get(2)?;
        let room = RoomId::new(row.get::<_, String>(0)?);
        // One that was fetched from elsewhere says nothing of when it came.
        let last = last.filter(|stream| unknown == 0 && *stream > 0);
        found.insert(room, last);
        Ok(())
    })?;
    Ok(found)
}

/// Binds nothing. Walks the backward extremities of all rooms, and from each by key to the events before which something is
/// missing.
const ABOVE_GAPS: &str = "
    SELECT b.room_id, max(e.stream_ordering)
      FROM event_backward_extremities b
     CROSS JOIN event_edges g
     CROSS JOIN events e
     WHERE g.prev_event_id = b.event_id AND e.event_id = g.event_id AND e.room_id = b.room_id AND NOT e.outlier
     GROUP BY b.room_id";

/// The newest event of each room before which events are missing, by its stream ordering: a purge took them, or they were never
/// fetched. What was said there nobody can look up.
pub fn above_gaps(db: &Db) -> Result<BTreeMap<RoomId, i64>, Error> {
    let mut found = BTreeMap::new();
    db.for_each(DOING, ABOVE_GAPS, &[], |row| {
        found.insert(RoomId::new(row.get::<_, String>(0)?), row.get(1)?);
        Ok(())
    })?;
    Ok(found)
}
