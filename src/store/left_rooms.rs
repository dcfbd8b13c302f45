//! Rooms that everybody of this server has left: they have no current state here, and messages all the same.
//! Reads only.

use super::db::{Db, params};
use super::policies::{Said, of_event, row_says};
use super::state_lookup;
use crate::error::Error;
use crate::ids::RoomId;

/// A room without current state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftRoom {
    /// The room.
    pub room: RoomId,
    /// Its messages in the timeline.
    pub messages: i64,
}

/// Steps from room to room through `events_order_room`; the messages of those without current state are counted.
const LEFT_ROOMS: &str = "
    WITH RECURSIVE room (room_id) AS (
        SELECT min(room_id) FROM events
         UNION ALL
        SELECT (SELECT min(e.room_id) FROM events e WHERE e.room_id > room.room_id)
          FROM room WHERE room.room_id IS NOT NULL)
    SELECT room.room_id,
           (SELECT count(*) FROM events e
             WHERE e.room_id = room.room_id AND NOT e.outlier
               AND NOT EXISTS (SELECT 1 FROM state_events s WHERE s.event_id = e.event_id))
      FROM room
     WHERE room.room_id IS NOT NULL
       AND NOT EXISTS (SELECT 1 FROM current_state_events c WHERE c.room_id = room.room_id)";

/// The state group of the room's newest event that has one. Binds `$1` room. Walks `events_room_stream` backwards.
const NEWEST_GROUP: &str = "
    SELECT g.state_group
      FROM events e
      JOIN event_to_state_groups g ON g.event_id = e.event_id
     WHERE e.room_id = $1 AND NOT e.outlier
     ORDER BY e.stream_ordering DESC LIMIT 1";

/// What a retention event says, by its row and by itself. Binds `$1` event.
const SAID_BY: &str = "
    SELECT p.event_id IS NOT NULL, p.min_lifetime, p.max_lifetime, j.json
      FROM event_json j
      LEFT JOIN room_retention p ON p.event_id = j.event_id
     WHERE j.event_id = $1";

/// The row of the longest lifetime; one without an end is the longest. Binds `$1` room.
const LONGEST: &str = "
    SELECT TRUE, min_lifetime, max_lifetime, NULL
      FROM room_retention
     WHERE room_id = $1
     ORDER BY max_lifetime IS NOT NULL, max_lifetime DESC LIMIT 1";

/// Rooms without current state that hold messages.
pub fn left_rooms(db: &Db) -> Result<Vec<LeftRoom>, Error> {
    let mut rooms = db.rows(
        "look for rooms that everybody has left",
        LEFT_ROOMS,
        &[],
        |r| {
            Ok(LeftRoom {
                room: RoomId::new(r.get::<_, String>(0)?),
                messages: r.get(1)?,
            })
        },
    )?;
    rooms.retain(|room| room.messages > 0);
    Ok(rooms)
}

/// What such a room said last of how long its messages stay: in the state at its newest event, else in any event of its
/// that we know of, the longest.
pub fn last_said(db: &Db, room: &RoomId) -> Result<Said, Error> {
    let doing = "read the last retention policy of a room that everybody has left";
    if !db.catalog().has("room_retention") {
        return Ok(Said::Unreadable);
    }
    let group = db.row(doing, NEWEST_GROUP, params![room.as_str()], |r| {
        r.get::<_, i64>(0)
    })?;
    if let Some(group) = group {
        let found = state_lookup::state_at(
            db,
            &state_lookup::chains(db, &[group])?,
            &[group],
            "m.room.retention",
            "",
        )?;
        if let Some(event) = found.get(&group) {
            let said = db.row(doing, SAID_BY, params![event.as_str()], |r| {
                match r.get::<_, bool>(0)? {
                    true => row_says(r, 1),
                    false => r.get::<_, Vec<u8>>(3).map(|json| of_event(&json)),
                }
            })?;
            return Ok(said.unwrap_or(Said::Unreadable));
        }
    }
    let longest = db.row(doing, LONGEST, params![room.as_str()], |r| row_says(r, 1))?;
    Ok(longest.unwrap_or_default())
}
