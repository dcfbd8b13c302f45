//! Rooms' retention policies, and what is old in many rooms at once (R-7 … R-25).
//!
//! Everything here is asked in sets: a server of ten thousand rooms is planned with a few statements, not with
//! thousands. Cuts are put into a temporary table, `rk_cuts`, that the counting statements join. Reads only.

use serde_json::Value;

use super::db::{Db, Params, Row, RowResult, params};
use super::points;
use crate::error::Error;
use crate::ids::RoomId;
use crate::point::Point;
use crate::policy::Policy;
use crate::time::Millis;

/// A room with current state, and its policy if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomPolicy {
    /// The room.
    pub room: RoomId,
    /// Its current policy.
    pub policy: Option<Policy>,
}

/// Every room that has current state, with its `m.room.retention` events: the rows of `room_retention` (R-7), and the
/// event itself where it has no row (R-10). A room's rows come together, the one of the empty state key first (R-9).
/// The rooms are found by stepping from one to the next through the key of `current_state_events`.
const POLICIES: &str = "
    WITH RECURSIVE room (room_id) AS (
        SELECT min(room_id) FROM current_state_events
         UNION ALL
        SELECT (SELECT min(c.room_id) FROM current_state_events c WHERE c.room_id > room.room_id)
          FROM room WHERE room.room_id IS NOT NULL)
    SELECT room.room_id, p.event_id IS NOT NULL, p.min_lifetime, p.max_lifetime, j.json
      FROM room
      LEFT JOIN current_state_events c ON c.room_id = room.room_id AND c.type = 'm.room.retention'
      LEFT JOIN room_retention p ON p.room_id = c.room_id AND p.event_id = c.event_id
      LEFT JOIN event_json j ON j.event_id = c.event_id AND p.event_id IS NULL
     WHERE room.room_id IS NOT NULL
     ORDER BY room.room_id, c.state_key";

/// The same where the database has no `room_retention`.
const POLICIES_OF_EVENTS: &str = "
    WITH RECURSIVE room (room_id) AS (
        SELECT min(room_id) FROM current_state_events
         UNION ALL
        SELECT (SELECT min(c.room_id) FROM current_state_events c WHERE c.room_id > room.room_id)
          FROM room WHERE room.room_id IS NOT NULL)
    SELECT room.room_id, FALSE, NULL, NULL, j.json
      FROM room
      LEFT JOIN current_state_events c ON c.room_id = room.room_id AND c.type = 'm.room.retention'
      LEFT JOIN event_json j ON j.event_id = c.event_id
     WHERE room.room_id IS NOT NULL
     ORDER BY room.room_id, c.state_key";

/// The current policy of every room that has current state (the rooms of R-12).
pub fn of_all_rooms(db: &Db) -> Result<Vec<RoomPolicy>, Error> {
    let sql = match db.catalog().has("room_retention") {
        true => POLICIES,
        false => POLICIES_OF_EVENTS,
    };
    let mut rooms: Vec<RoomPolicy> = Vec::new();
    db.for_each("read the rooms' retention policies", sql, &[], |row| {
        let room = RoomId::new(row.get::<_, String>(0)?);
        let policy = policy_of(row)?;
        match rooms.last_mut() {
            Some(last) if last.room == room => last.policy = last.policy.or(policy),
            _ => rooms.push(RoomPolicy { room, policy }),
        }
        Ok(())
    })?;
    Ok(rooms)
}

fn policy_of(row: &Row<'_>) -> RowResult<Option<Policy>> {
    if row.get::<_, bool>(1)? {
        // A row written by an old background update may hold anything (R-9); what is no number says nothing.
        let lifetime = |at| row.get::<_, Option<i64>>(at).ok().flatten().map(Millis);
        return Ok(Some(Policy {
            min_lifetime: lifetime(2),
            max_lifetime: lifetime(3),
        }));
    }
    Ok(row
        .get::<_, Option<String>>(4)?
        .and_then(|json| of_event(&json)))
}

/// The policy that a retention event states: at least one lifetime, and each a whole number (R-8).
fn of_event(json: &str) -> Option<Policy> {
    let event: Value = serde_json::from_str(json).ok()?;
    let content = event.get("content")?;
    let lifetime = |key| match content.get(key) {
        None => Some(None),
        Some(value) => value.as_i64().map(|ms| Some(Millis(ms))),
    };
    let policy = Policy {
        min_lifetime: lifetime("min_lifetime")?,
        max_lifetime: lifetime("max_lifetime")?,
    };
    (policy != Policy::default()).then_some(policy)
}

/// A room whose history is to be cut, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomCut {
    /// The room.
    pub room: RoomId,
    /// Its anchor, which stays (R-21, R-22).
    pub anchor: Point,
    /// Whether the anchor itself has expired.
    pub anchor_expired: bool,
    /// The depth of the room's deepest forward extremity that is held (P-2).
    pub deepest_extremity: Option<i64>,
    /// Events below the anchor's depth, whatever they are.
    pub below: i64,
    /// Of these, state events.
    pub state: i64,
    /// Of these, the ones that are in the timeline yet, and leave it (P-5).
    pub state_in_timeline: i64,
    /// Of these, redactions whose target stays (P-21).
    pub redactions: i64,
    /// Of these, the ones received or sent too recently to go.
    pub young: i64,
    /// Expired events of the timeline at the anchor's depth or above it, the anchor apart.
    pub above: i64,
}

/// Rooms that are cut at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutOff {
    /// What was received before this has expired.
    pub ts: Millis,
    /// The rooms.
    pub rooms: Vec<RoomId>,
}

const TEMPORARY_TABLE: &str = "
    CREATE TEMPORARY TABLE IF NOT EXISTS rk_cuts (
        room_id TEXT PRIMARY KEY, ts BIGINT NOT NULL, reached BIGINT NOT NULL, anchor BIGINT, depth BIGINT);
    DELETE FROM rk_cuts;";

/// R-21 for many rooms: the newest event by arrival up to and including a place in the stream. Binds `$1` that place,
/// `$2` the time it stands for, `$3` the rooms. Walks `events_room_stream` backwards from there, once a room.
const FIND_ANCHORS: &str = "
    INSERT INTO rk_cuts (room_id, anchor, reached, ts)
    SELECT asked.value,
           (SELECT e.stream_ordering
              FROM events e
             WHERE e.room_id = asked.value AND e.stream_ordering <= $1 AND NOT e.outlier
               AND NOT EXISTS (SELECT 1 FROM rejections r WHERE r.event_id = e.event_id)
             ORDER BY e.stream_ordering DESC LIMIT 1),
           $1, $2
      FROM (SELECT value FROM json_each($3)) AS asked";

/// Rooms without an anchor have nothing that old.
const DROP_ROOMS_WITHOUT: &str = "DELETE FROM rk_cuts WHERE anchor IS NULL";

const FIND_DEPTHS: &str = "
    UPDATE rk_cuts SET depth = (SELECT topological_ordering FROM events WHERE stream_ordering = anchor)";

/// The cuts, with P-2's depth and the number of events below. Walks the room in `events_order_room` alone.
const CUTS: &str = "
    SELECT c.room_id, c.depth, c.anchor, c.anchor < c.reached,
           (SELECT max(x.depth)
              FROM event_forward_extremities f
             CROSS JOIN events x
             WHERE f.room_id = c.room_id AND x.event_id = f.event_id AND x.room_id = c.room_id),
           (SELECT count(*) FROM events e
             WHERE e.room_id = c.room_id AND e.topological_ordering < c.depth)
      FROM rk_cuts c";

/// State events below each cut. Walks `state_events` once, whose rows are fewer than the events'.
const STATE_BELOW: &str = "
    SELECT c.room_id, count(*), count(CASE WHEN NOT e.outlier THEN 1 END)
      FROM state_events s
     CROSS JOIN rk_cuts c
     CROSS JOIN events e
     WHERE c.room_id = s.room_id AND e.event_id = s.event_id AND e.topological_ordering < c.depth
     GROUP BY c.room_id";

/// Redactions below each cut whose target stays (P-21), those too young to go apart. Binds `$1` the time after which
/// what was received stays, or NULL. Walks `redactions` once.
const REDACTIONS_BELOW: &str = "
    SELECT c.room_id, count(*)
      FROM redactions r
     CROSS JOIN events e
     CROSS JOIN rk_cuts c
     CROSS JOIN events t
      LEFT JOIN state_events s ON s.event_id = t.event_id
     WHERE e.event_id = r.event_id
       AND c.room_id = e.room_id
       AND e.topological_ordering < c.depth
       AND NOT coalesce(e.received_ts > $1 AND (e.stream_ordering > 0 OR e.origin_server_ts > $1), FALSE)
       AND t.event_id = r.redacts
       AND (t.room_id <> c.room_id
            OR t.topological_ordering >= c.depth
            OR s.event_id IS NOT NULL
            OR (t.received_ts > $1 AND (t.stream_ordering > 0 OR t.origin_server_ts > $1)))
     GROUP BY c.room_id";

/// Messages below each cut that are too young to go. Binds `$1` the place in the stream from which on live events can be
/// that young, `$2` the time after which what was received stays. Walks the room in `events_order_room`, and looks at
/// few of its events: the plus signs keep SQLite on that index, and the subquery from making one of its own.
const YOUNG_BELOW: &str = "
    SELECT c.room_id,
           (SELECT count(*) FROM events e
             WHERE e.room_id = c.room_id
               AND e.topological_ordering < c.depth
               AND (+e.stream_ordering >= $1 OR +e.stream_ordering < 0)
               AND e.received_ts > $2
               AND (+e.stream_ordering > 0 OR e.origin_server_ts > $2)
               AND NOT EXISTS (SELECT 1 FROM state_events s WHERE s.event_id = e.event_id))
      FROM rk_cuts c";

/// Expired events of the timeline at each cut's depth or above it: live ones by their arrival, backfilled ones by when
/// they were sent. Walks the room in `events_order_room`, and looks at few of its events, as above.
const EXPIRED_ABOVE: &str = "
    SELECT c.room_id,
           (SELECT count(*) FROM events e
             WHERE e.room_id = c.room_id
               AND e.topological_ordering >= c.depth
               AND +e.stream_ordering < c.reached
               AND +e.stream_ordering <> c.anchor
               AND NOT e.outlier
               AND (+e.stream_ordering > 0 OR e.origin_server_ts < c.ts))
      FROM rk_cuts c";

/// Finds the cuts of all rooms and counts what lies on either side. Rooms in which nothing is that old are missing in
/// the answer. Live events received after `keep_received_after` do not go (nor backfilled ones that were also sent
/// after it).
///
/// The connection must be one that can write temporary tables.
pub fn cuts(
    db: &Db,
    cut_offs: &[CutOff],
    keep_received_after: Option<Millis>,
) -> Result<Vec<RoomCut>, Error> {
    let doing = "plan the retention of rooms";
    db.batch(doing, TEMPORARY_TABLE)?;
    for cut_off in cut_offs {
        let reached = points::first_stream_ordering_after(db, cut_off.ts)?;
        let rooms: Vec<&str> = cut_off.rooms.iter().map(RoomId::as_str).collect();
        let rooms = Value::from(rooms).to_string();
        db.execute(doing, FIND_ANCHORS, params![reached, cut_off.ts.0, rooms])?;
    }
    db.execute(doing, DROP_ROOMS_WITHOUT, &[])?;
    db.execute(doing, FIND_DEPTHS, &[])?;
    let mut cuts = db.rows(doing, CUTS, &[], |r| {
        Ok(RoomCut {
            room: RoomId::new(r.get::<_, String>(0)?),
            anchor: Point {
                topological: r.get(1)?,
                stream: r.get(2)?,
            },
            anchor_expired: r.get(3)?,
            deepest_extremity: r.get(4)?,
            below: r.get(5)?,
            state: 0,
            state_in_timeline: 0,
            redactions: 0,
            young: 0,
            above: 0,
        })
    })?;
    cuts.sort_unstable_by(|a, b| a.room.cmp(&b.room));
    type Set = fn(&mut RoomCut, &Row<'_>) -> RowResult<()>;
    let mut fill = |sql: &str, params: Params<'_>, set: Set| {
        db.for_each(doing, sql, params, |r| {
            let room = RoomId::new(r.get::<_, String>(0)?);
            match cuts.binary_search_by(|cut| cut.room.cmp(&room)) {
                Ok(at) => set(&mut cuts[at], r),
                Err(_) => Ok(()),
            }
        })
    };
    let keep = keep_received_after.map(|after| after.0);
    fill(STATE_BELOW, &[], |cut, row| {
        (cut.state, cut.state_in_timeline) = (row.get(1)?, row.get(2)?);
        Ok(())
    })?;
    fill(REDACTIONS_BELOW, params![keep], |cut, row| {
        cut.redactions = row.get(1)?;
        Ok(())
    })?;
    fill(EXPIRED_ABOVE, &[], |cut, row| {
        cut.above = row.get(1)?;
        Ok(())
    })?;
    if let Some(after) = keep_received_after {
        let from = points::first_stream_ordering_after(db, after)?;
        fill(YOUNG_BELOW, params![from, after.0], |cut, row| {
            cut.young = row.get(1)?;
            Ok(())
        })?;
    }
    db.batch(doing, "DELETE FROM rk_cuts")?;
    Ok(cuts)
}

/// Rooms that Synapse itself is purging or deleting, or is about to (L-8). Binds `$1` now.
const OWN_TASKS: &str = "
    SELECT DISTINCT resource_id FROM scheduled_tasks
     WHERE resource_id IS NOT NULL
       AND action IN ('purge_history', 'purge_room', 'shutdown_and_purge_room')
       AND (status = 'active' OR (status = 'scheduled' AND timestamp <= $1))";

/// Rooms that the homeserver's own tasks have.
pub fn rooms_with_own_tasks(db: &Db, now: Millis) -> Result<Vec<RoomId>, Error> {
    if !db.catalog().has("scheduled_tasks") {
        return Ok(Vec::new());
    }
    let doing = "look for the homeserver's own tasks";
    db.rows(doing, OWN_TASKS, params![now.0], |r| {
        Ok(RoomId::new(r.get::<_, String>(0)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retention_event_states_a_policy_only_in_whole_numbers() {
        let policy = |content: &str| of_event(&format!("{{\"content\": {content}}}"));
        let of = |min: Option<i64>, max: Option<i64>| {
            Some(Policy {
                min_lifetime: min.map(Millis),
                max_lifetime: max.map(Millis),
            })
        };
        for (content, found) in [
            (r#"{"max_lifetime": 5}"#, of(None, Some(5))),
            (r#"{"min_lifetime": 0, "x": 1}"#, of(Some(0), None)),
            (
                r#"{"min_lifetime": 1, "max_lifetime": 2}"#,
                of(Some(1), Some(2)),
            ),
            (r#"{}"#, None),
            (r#"{"max_lifetime": null}"#, None),
            (r#"{"max_lifetime": 5, "min_lifetime": true}"#, None),
            (r#"{"max_lifetime": 5.5}"#, None),
            (r#"{"max_lifetime": "5d"}"#, None),
            (r#"[]"#, None),
        ] {
            assert_eq!(policy(content), found, "{content}");
        }
        assert_eq!(of_event("not JSON"), None);
    }
}
