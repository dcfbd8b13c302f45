//! Spaces: which rooms a room names as its children, and who may join by being elsewhere.

use super::db::{Db, params};
use crate::error::Error;
use crate::ids::RoomId;

/// Binds `$1` room. By the index of `local_current_membership` on room.
const IS_JOINED: &str = "SELECT EXISTS (SELECT 1 FROM local_current_membership WHERE room_id = $1 AND membership = 'join')";

/// Whether somebody of this server is joined.
pub fn is_joined(db: &Db, room: &RoomId) -> Result<bool, Error> {
    let doing = "look who is in the room";
    let joined = db.row(doing, IS_JOINED, params![room.as_str()], |r| r.get(0))?;
    Ok(joined.unwrap_or(false))
}

/// Binds `$1` room, `$2` type, `$3` the most. Along the key on room and type.
const STATE_OF_TYPE: &str = "
    SELECT event_id FROM current_state_events WHERE room_id = $1 AND type = $2 ORDER BY state_key LIMIT $3";

/// The events of one type in the room's current state, at most so many.
pub fn state_of_type(db: &Db, room: &RoomId, kind: &str, most: i64) -> Result<Vec<String>, Error> {
    let doing = "read the room's state";
    let params = params![room.as_str(), kind, most];
    db.rows(doing, STATE_OF_TYPE, params, |r| r.get(0))
}
