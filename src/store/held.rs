//! What holds mean in the database: who was in a room, which of its events are held, and how these are left out of a
//! selection.

use std::collections::HashSet;

use super::db::{Db, params};
use super::history::DepthRange;
use crate::error::Error;
use crate::hold::HeldEvents;
use crate::ids::{RoomId, UserId};

/// Whether a user is or ever was in a room. Binds `$1` user, `$2` room. Walks `room_memberships_user_id`.
const WAS_JOINED: &str = "
    SELECT EXISTS (SELECT 1 FROM room_memberships
                    WHERE user_id = $1 AND room_id || '' = $2 AND membership = 'join')";

/// The rooms that a user is or ever was in. Binds `$1` user.
const ROOMS_OF: &str =
    "SELECT DISTINCT room_id FROM room_memberships WHERE user_id = $1 AND membership = 'join'";

/// Binds `$1` sender or NULL, `$2` the first moment, `$3` the last one.
const ADD_HELD: &str = "INSERT INTO rk_held (sender, since, until) VALUES ($1, $2, $3)";

const FORGET_HELD: &str = "DELETE FROM rk_held";

/// Takes what is held out of a selection. Which of the two clocks a time is meant by is not asked: what either says is held,
/// and so is what nobody can tell: on SQLite a text in place of a number is greater than any.
const LEAVE_HELD: &str = "
    DELETE FROM rk_selected
     WHERE stream_ordering IN (
           SELECT s.stream_ordering
             FROM rk_selected s
            CROSS JOIN events e
            WHERE e.stream_ordering = s.stream_ordering
              AND EXISTS (SELECT 1 FROM rk_held h
                           WHERE coalesce(h.sender = e.sender, TRUE)
                             AND (e.received_ts IS NULL
                                  OR e.received_ts > 9223372036854775807
                                  OR e.origin_server_ts > 9223372036854775807
                                  OR e.received_ts BETWEEN h.since AND h.until
                                  OR e.origin_server_ts BETWEEN h.since AND h.until)))";

/// Of a room's events below a depth that are held, the least depth. Binds `$1` room, `$2` depth, `$3` sender or NULL, `$4`
/// the first moment, `$5` the last one. Walks `events_order_room`.
const LOWEST_HELD: &str = "
    SELECT e.topological_ordering
      FROM events e
     WHERE e.room_id = $1
       AND e.topological_ordering < $2
       AND coalesce(e.sender = CAST($3 AS TEXT), TRUE)
       AND (e.received_ts IS NULL
            OR e.received_ts > 9223372036854775807
            OR e.origin_server_ts > 9223372036854775807
            OR e.received_ts BETWEEN $4 AND $5
            OR e.origin_server_ts BETWEEN $4 AND $5)
     ORDER BY e.topological_ordering, e.stream_ordering LIMIT 1";

/// Whether a user is or ever was in a room, as far as the database remembers.
///
/// # Errors
/// Those of the database.
pub fn was_joined(db: &Db, user: &UserId, room: &RoomId) -> Result<bool, Error> {
    let found = db.row(
        "look whether a user was in the room",
        WAS_JOINED,
        params![user.as_str(), room.as_str()],
        |r| r.get::<_, bool>(0),
    )?;
    Ok(found.unwrap_or(false))
}

/// The rooms that a user is or ever was in.
///
/// # Errors
/// Those of the database.
pub fn rooms_of(db: &Db, user: &UserId) -> Result<HashSet<RoomId>, Error> {
    let doing = "read the rooms that a user was in";
    let rooms = db.rows(doing, ROOMS_OF, params![user.as_str()], |r| {
        r.get::<_, String>(0).map(RoomId::new)
    })?;
    Ok(rooms.into_iter().collect())
}

/// Of the room's events of lower depth than `below` that are held, the least depth; `None` where none is.
///
/// # Errors
/// Those of the database.
pub fn lowest(
    db: &Db,
    room: &RoomId,
    below: i64,
    held: &[HeldEvents],
) -> Result<Option<i64>, Error> {
    let mut lowest: Option<i64> = None;
    for held in held {
        let found = db.row(
            "look for events that are held",
            LOWEST_HELD,
            params![
                room.as_str(),
                lowest.unwrap_or(below),
                held.sender.as_ref().map(UserId::as_str),
                held.since.0,
                held.until.0
            ],
            |r| r.get::<_, i64>(0),
        )?;
        lowest = found.or(lowest);
    }
    Ok(lowest)
}

/// Notes on the connection what is held; inside the transaction that selects.
pub(super) fn note(db: &Db, held: &[HeldEvents]) -> Result<(), Error> {
    let doing = "note what is held";
    db.execute(doing, FORGET_HELD, &[])?;
    for held in held {
        let sender = held.sender.as_ref().map(UserId::as_str);
        db.execute(doing, ADD_HELD, params![sender, held.since.0, held.until.0])?;
    }
    Ok(())
}

/// Takes what is held out of the selection; answers how many events that were.
pub(super) fn leave_out(db: &Db, cut: &DepthRange<'_>) -> Result<i64, Error> {
    if cut.held.is_empty() {
        return Ok(0);
    }
    note(db, cut.held)?;
    db.execute("select the events to purge", LEAVE_HELD, &[])
}
