//! Rooms as people name them: by id or alias; and what is known of a place in one.

use super::db::{Db, params};
use crate::error::Error;
use crate::ids::RoomId;
use crate::point::Point;
use crate::time::Millis;

/// Whether this server knows a room at all. Walks the primary key of `rooms`, then `events_order_room`.
pub fn is_known(db: &Db, room: &RoomId) -> Result<bool, Error> {
    const KNOWN: &str = "
        SELECT count(*)
         WHERE EXISTS (SELECT 1 FROM rooms WHERE room_id = $1)
            OR EXISTS (SELECT 1 FROM events WHERE room_id = $1)";
    Ok(db.count("look up the room", KNOWN, params![room.as_str()])? > 0)
}

/// The room that an alias of this server leads to. Walks the unique index of `room_aliases`.
pub fn of_alias(db: &Db, alias: &str) -> Result<Option<RoomId>, Error> {
    const OF_ALIAS: &str = "SELECT room_id FROM room_aliases WHERE room_alias = $1";
    db.row("look up the alias", OF_ALIAS, params![alias], |row| {
        Ok(RoomId::new(row.get::<_, String>(0)?))
    })
}

/// An event that marks a place in a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its id.
    pub event_id: String,
    /// Who sent it.
    pub sender: String,
    /// When, as its sender says.
    pub sent: Millis,
}

/// The event at a place, where there is one: of several at that depth the one next to it. Walks `events_order_room`.
pub fn at(db: &Db, room: &RoomId, point: Point) -> Result<Option<Mark>, Error> {
    const AT: &str = "
        SELECT event_id, sender, origin_server_ts
          FROM events
         WHERE room_id = $1 AND topological_ordering = $2
         ORDER BY abs(stream_ordering - $3)
         LIMIT 1";
    let place = params![room.as_str(), point.topological, point.stream];
    db.row("look up the event at the cut", AT, place, |row| {
        Ok(Mark {
            event_id: row.get(0)?,
            sender: row.get::<_, Option<String>>(1)?.unwrap_or_default(),
            sent: Millis(row.stamp(2).unwrap_or(0)),
        })
    })
}
