//! Rooms' retention policies, and what is old in many rooms at once (R-7 … R-25).
//!
//! Everything here is asked in sets: a server of ten thousand rooms is planned with a few statements, not with
//! thousands. Cuts are put into a temporary table, `rk_cuts`, that the counting statements join. Reads only.

use std::collections::BTreeMap;

use serde_json::Value;

use super::db::{Db, Row, RowResult, params};
use super::expiry::{self, Expiry, has_expired};
use crate::error::Error;
use crate::ids::RoomId;
use crate::point::Point;
use crate::policy::Policy;
use crate::time::Millis;

/// What a room says of how long its messages stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Said {
    /// Nothing.
    #[default]
    Nothing,
    /// This.
    Policy(Policy),
    /// Something that we cannot read: the room is left alone (R-53).
    Unreadable,
}

impl Said {
    /// The policy, where there is one that can be read.
    pub fn policy(self) -> Option<Policy> {
        match self {
            Self::Policy(policy) => Some(policy),
            Self::Nothing | Self::Unreadable => None,
        }
    }
}

/// A room with current state, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomPolicy {
    /// The room.
    pub room: RoomId,
    /// Its current policy.
    pub said: Said,
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
    SELECT room.room_id, c.event_id IS NOT NULL, p.event_id IS NOT NULL, p.min_lifetime, p.max_lifetime, j.json
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
    SELECT room.room_id, c.event_id IS NOT NULL, FALSE, NULL, NULL, j.json
      FROM room
      LEFT JOIN current_state_events c ON c.room_id = room.room_id AND c.type = 'm.room.retention'
      LEFT JOIN event_json j ON j.event_id = c.event_id
     WHERE room.room_id IS NOT NULL
     ORDER BY room.room_id, c.state_key";

/// The same of one room. Binds `$1` room.
const POLICY_OF_ROOM: &str = "
    SELECT c.room_id, TRUE, p.event_id IS NOT NULL, p.min_lifetime, p.max_lifetime, j.json
      FROM current_state_events c
      LEFT JOIN room_retention p ON p.room_id = c.room_id AND p.event_id = c.event_id
      LEFT JOIN event_json j ON j.event_id = c.event_id AND p.event_id IS NULL
     WHERE c.room_id = $1 AND c.type = 'm.room.retention'
     ORDER BY c.state_key";

/// The same where the database has no `room_retention`. Binds `$1` room.
const POLICY_OF_ROOMS_EVENTS: &str = "
    SELECT c.room_id, TRUE, FALSE, NULL, NULL, j.json
      FROM current_state_events c
      LEFT JOIN event_json j ON j.event_id = c.event_id
     WHERE c.room_id = $1 AND c.type = 'm.room.retention'
     ORDER BY c.state_key";

/// The current policy of every room that has current state (the rooms of R-12).
pub fn of_all_rooms(db: &Db) -> Result<Vec<RoomPolicy>, Error> {
    let sql = match db.catalog().has("room_retention") {
        true => POLICIES,
        false => POLICIES_OF_EVENTS,
    };
    let mut rooms: Vec<RoomPolicy> = Vec::new();
    db.for_each("read the rooms' retention policies", sql, &[], |row| {
        let room = RoomId::new(row.get::<_, String>(0)?);
        let said = said(row)?;
        match rooms.last_mut() {
            Some(last) if last.room == room => {
                if last.said == Said::Nothing {
                    last.said = said;
                }
            }
            _ => rooms.push(RoomPolicy { room, said }),
        }
        Ok(())
    })?;
    Ok(rooms)
}

/// The current policy of a room; `None` where it has no current state here (R-54).
pub fn of_room(db: &Db, room: &RoomId) -> Result<Option<Said>, Error> {
    const HAS_STATE: &str = "SELECT EXISTS (SELECT 1 FROM current_state_events WHERE room_id = $1)";
    let doing = "read the room's retention policy";
    let sql = match db.catalog().has("room_retention") {
        true => POLICY_OF_ROOM,
        false => POLICY_OF_ROOMS_EVENTS,
    };
    if db.count(doing, HAS_STATE, params![room.as_str()])? == 0 {
        return Ok(None);
    }
    let all = db.rows(doing, sql, params![room.as_str()], said)?;
    let first = all.into_iter().find(|said| *said != Said::Nothing);
    Ok(Some(first.unwrap_or_default()))
}

fn said(row: &Row<'_>) -> RowResult<Said> {
    if !row.get::<_, bool>(1)? {
        return Ok(Said::Nothing);
    }
    if row.get::<_, bool>(2)? {
        return row_says(row, 3);
    }
    // On SQLite a text may have been stored as bytes (M-93).
    Ok(match row.get::<_, Option<Vec<u8>>>(5)? {
        Some(json) => of_event(&json),
        None => Said::Unreadable,
    })
}

/// What the lifetimes of a row of `room_retention` say, which stand at two columns. A row written by an old background
/// update may hold anything (R-9).
pub(super) fn row_says(row: &Row<'_>, at: usize) -> RowResult<Said> {
    let lifetime = |at| row.get::<_, Option<i64>>(at).ok();
    Ok(match (lifetime(at), lifetime(at + 1)) {
        (Some(min), Some(max)) => Said::Policy(Policy {
            min_lifetime: min.map(Millis),
            max_lifetime: max.map(Millis),
        }),
        _ => Said::Unreadable,
    })
}

/// The policy that a retention event states: at least one lifetime, and each a whole number (R-8). What is no JSON by
/// our reading, or nested deeper than that goes, or a number that we cannot hold, says something that we do not know.
pub(super) fn of_event(json: &[u8]) -> Said {
    let Ok(event) = serde_json::from_slice::<Value>(json) else {
        return Said::Unreadable;
    };
    let Some(content) = event.get("content") else {
        return Said::Nothing;
    };
    let mut policy = Policy::default();
    for (key, lifetime) in [
        ("min_lifetime", &mut policy.min_lifetime),
        ("max_lifetime", &mut policy.max_lifetime),
    ] {
        match content.get(key) {
            None => {}
            Some(Value::Number(number)) => match number.as_i64() {
                Some(ms) => *lifetime = Some(Millis(ms)),
                None if is_huge(number) => return Said::Unreadable,
                None => return Said::Nothing,
            },
            Some(_) => return Said::Nothing,
        }
    }
    match policy == Policy::default() {
        true => Said::Nothing,
        false => Said::Policy(policy),
    }
}

/// Whether it may have been written as a whole number, of more digits than we hold.
fn is_huge(number: &serde_json::Number) -> bool {
    number.is_u64() || number.as_f64().is_none_or(|n| n.abs() >= 9e18)
}

/// A room whose history is to be cut, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomCut {
    /// The room.
    pub room: RoomId,
    /// Its anchor, which stays (R-21, R-22).
    pub anchor: Point,
    /// What has expired there.
    pub expiry: Expiry,
    /// The depth of the room's deepest forward extremity that is held (P-2).
    pub deepest_extremity: Option<i64>,
    /// Events below the anchor's depth, whatever they are.
    pub below: i64,
    /// Of these, state events.
    pub state: i64,
    /// Of these, the ones that are in the timeline yet, and have expired: they leave it (P-5).
    pub state_in_timeline: i64,
    /// Of these, expired redactions whose target stays (P-21).
    pub redactions: i64,
    /// Of these, messages that have not expired.
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
        room_id TEXT PRIMARY KEY, ts BIGINT NOT NULL, near BIGINT NOT NULL, live_before BIGINT NOT NULL,
        live_end BIGINT NOT NULL, first_known BIGINT NOT NULL, backfilled_after BIGINT NOT NULL,
        anchor BIGINT, depth BIGINT);
    DELETE FROM rk_cuts;";

/// The rooms of a cut-off. Binds from `$1` on an [`Expiry`], `$7` the rooms.
const NOTE_ROOMS: &str = "
    INSERT INTO rk_cuts (room_id, ts, near, live_before, live_end, first_known, backfilled_after)
    SELECT asked.value, $1, $2, $3, $4, $5, $6
      FROM (SELECT value FROM json_each($7)) AS asked";

/// R-21, R-50 for many rooms: each one's newest event by arrival that has expired. Walks `events_room_stream` backwards
/// from where none can have expired, once a room.
const FIND_ANCHORS: &str = concat!(
    "
    UPDATE rk_cuts SET anchor = (
           SELECT e.stream_ordering
             FROM events e
            WHERE e.room_id = rk_cuts.room_id AND e.stream_ordering < rk_cuts.live_end AND NOT e.outlier
              AND (",
    has_expired!("+e." of "rk_cuts"),
    ")
              AND NOT EXISTS (SELECT 1 FROM rejections r WHERE r.event_id = e.event_id)
            ORDER BY e.stream_ordering DESC LIMIT 1)"
);

/// Rooms without an anchor have nothing that old.
const DROP_ROOMS_WITHOUT: &str = "DELETE FROM rk_cuts WHERE anchor IS NULL";

const FIND_DEPTHS: &str = "
    UPDATE rk_cuts SET depth = (SELECT topological_ordering FROM events WHERE stream_ordering = anchor)";

/// The cuts, with P-2's depth and the number of events below. Walks the room in `events_order_room` alone.
const CUTS: &str = "
    SELECT c.room_id, c.depth, c.anchor,
           (SELECT max(x.depth)
              FROM event_forward_extremities f
             CROSS JOIN events x
             WHERE f.room_id = c.room_id AND x.event_id = f.event_id AND x.room_id = c.room_id),
           (SELECT count(*) FROM events e
             WHERE e.room_id = c.room_id AND e.topological_ordering < c.depth),
           c.ts
      FROM rk_cuts c";

/// State events below each cut that have expired, and all of them. Walks `state_events` once, whose rows are fewer than
/// the events'.
const STATE_BELOW: &str = concat!(
    "
    SELECT c.room_id, count(*), count(CASE WHEN NOT e.outlier AND
               (",
    has_expired!("e." of "c"),
    ")
               THEN 1 END)
      FROM state_events s
     CROSS JOIN rk_cuts c
     CROSS JOIN events e
     WHERE c.room_id = s.room_id AND e.event_id = s.event_id AND e.topological_ordering < c.depth
     GROUP BY c.room_id"
);

/// Redactions below each cut that have expired, and whose target stays (P-21). Walks `redactions` once.
const REDACTIONS_BELOW: &str = concat!(
    "
    SELECT c.room_id, count(*)
      FROM redactions r
     CROSS JOIN events e
     CROSS JOIN rk_cuts c
     CROSS JOIN events t
      LEFT JOIN state_events s ON s.event_id = t.event_id
     WHERE e.event_id = r.event_id
       AND c.room_id = e.room_id
       AND e.topological_ordering < c.depth
       AND (",
    has_expired!("e." of "c"),
    ")
       AND t.event_id = r.redacts
       AND (t.room_id <> c.room_id
            OR t.topological_ordering >= c.depth
            OR s.event_id IS NOT NULL
            OR NOT coalesce((",
    has_expired!("t." of "c"),
    "), FALSE))
     GROUP BY c.room_id"
);

/// Messages below each cut that have not expired. Walks the room in `events_order_room`, and looks at few of its events:
/// the plus signs keep SQLite on that index, and the subquery from making one of its own. Stamps that go back and forth
/// by some hours around the cut are not all looked at: a count for people, by which nothing is deleted.
const YOUNG_BELOW: &str = concat!(
    "
    SELECT c.room_id,
           (SELECT count(*) FROM events e
             WHERE e.room_id = c.room_id
               AND e.topological_ordering < c.depth
               AND (+e.stream_ordering >= c.live_before OR +e.stream_ordering <= c.first_known)
               AND NOT coalesce((",
    has_expired!("+e." of "c"),
    "), FALSE)
               AND NOT EXISTS (SELECT 1 FROM state_events s WHERE s.event_id = e.event_id))
      FROM rk_cuts c"
);

/// Expired events of the timeline at each cut's depth or above it. Walks the room in `events_order_room`, and looks at
/// few of its events, as above.
const EXPIRED_ABOVE: &str = concat!(
    "
    SELECT c.room_id,
           (SELECT count(*) FROM events e
             WHERE e.room_id = c.room_id
               AND e.topological_ordering >= c.depth
               AND +e.stream_ordering < c.live_end
               AND +e.stream_ordering <> c.anchor
               AND NOT e.outlier
               AND (",
    has_expired!("+e." of "c"),
    "))
      FROM rk_cuts c"
);

/// Finds the cuts of all rooms and counts what lies on either side. Rooms in which nothing is that old are missing in
/// the answer. What has not expired by `now` does not go.
///
/// The connection must be one that can write temporary tables.
pub fn cuts(db: &Db, cut_offs: &[CutOff], now: Millis) -> Result<Vec<RoomCut>, Error> {
    let doing = "plan the retention of rooms";
    db.batch(doing, TEMPORARY_TABLE)?;
    if cut_offs.is_empty() {
        return Ok(Vec::new());
    }
    let search = expiry::Search::new(db, now)?;
    let mut expiries = BTreeMap::new();
    for cut_off in cut_offs {
        let expiry = search.before(cut_off.ts)?;
        expiries.insert(cut_off.ts, expiry);
        let rooms: Vec<&str> = cut_off.rooms.iter().map(RoomId::as_str).collect();
        let rooms = Value::from(rooms).to_string();
        let params = params![
            expiry.ts.0,
            expiry.near.0,
            expiry.live_before,
            expiry.live_end,
            expiry.first_known,
            expiry.backfilled_after,
            rooms
        ];
        db.execute(doing, NOTE_ROOMS, params)?;
    }
    db.execute(doing, FIND_ANCHORS, &[])?;
    db.execute(doing, DROP_ROOMS_WITHOUT, &[])?;
    db.execute(doing, FIND_DEPTHS, &[])?;
    let mut cuts = db.rows(doing, CUTS, &[], |r| {
        let ts = Millis(r.get(5)?);
        Ok(RoomCut {
            room: RoomId::new(r.get::<_, String>(0)?),
            anchor: Point {
                topological: r.get(1)?,
                stream: r.get(2)?,
            },
            expiry: expiries[&ts],
            deepest_extremity: r.get(3)?,
            below: r.get(4)?,
            state: 0,
            state_in_timeline: 0,
            redactions: 0,
            young: 0,
            above: 0,
        })
    })?;
    cuts.sort_unstable_by(|a, b| a.room.cmp(&b.room));
    type Set = fn(&mut RoomCut, &Row<'_>) -> RowResult<()>;
    let mut fill = |sql: &str, set: Set| {
        db.for_each(doing, sql, &[], |r| {
            let room = RoomId::new(r.get::<_, String>(0)?);
            match cuts.binary_search_by(|cut| cut.room.cmp(&room)) {
                Ok(at) => set(&mut cuts[at], r),
                Err(_) => Ok(()),
            }
        })
    };
    fill(STATE_BELOW, |cut, row| {
        (cut.state, cut.state_in_timeline) = (row.get(1)?, row.get(2)?);
        Ok(())
    })?;
    fill(REDACTIONS_BELOW, |cut, row| {
        cut.redactions = row.get(1)?;
        Ok(())
    })?;
    fill(EXPIRED_ABOVE, |cut, row| {
        cut.above = row.get(1)?;
        Ok(())
    })?;
    fill(YOUNG_BELOW, |cut, row| {
        cut.young = row.get(1)?;
        Ok(())
    })?;
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
        let policy = |content: &str| of_event(format!("{{\"content\": {content}}}").as_bytes());
        let of = |min: Option<i64>, max: Option<i64>| {
            Said::Policy(Policy {
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
            (r#"{}"#, Said::Nothing),
            (r#"{"max_lifetime": null}"#, Said::Nothing),
            (
                r#"{"max_lifetime": 5, "min_lifetime": true}"#,
                Said::Nothing,
            ),
            (r#"{"max_lifetime": 5.5}"#, Said::Nothing),
            (r#"{"max_lifetime": "5d"}"#, Said::Nothing),
            (r#"[]"#, Said::Nothing),
        ] {
            assert_eq!(policy(content), found, "{content}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_not_nothing() {
        let nested = format!(
            "{{\"max_lifetime\": 77760000000, \"x\": {}1{}}}",
            "[".repeat(200),
            "]".repeat(200)
        );
        for content in [
            nested.as_str(),
            r#"{"max_lifetime": 99999999999999999999}"#,
            r#"{"max_lifetime": 18446744073709551615}"#,
            r#"{"max_lifetime": NaN}"#,
            r#"{"max_lifetime": 5"#,
        ] {
            let json = format!("{{\"content\": {content}}}");
            assert_eq!(of_event(json.as_bytes()), Said::Unreadable, "{content}");
        }
        assert_eq!(of_event(b"not JSON"), Said::Unreadable);
        assert_eq!(
            of_event(b"{\"content\": {\"x\": \"\xff\"}}"),
            Said::Unreadable
        );
    }
}
