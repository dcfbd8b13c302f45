//! Rooms that nobody may join (H-50, H-51).

use super::db::{Db, params};
use super::tx::Tx;
use crate::error::Error;
use crate::ids::{RoomId, UserId};

/// Who blocked the room, if it is blocked.
pub fn blocker(db: &Db, room: &RoomId) -> Result<Option<UserId>, Error> {
    const BLOCKER: &str = "SELECT user_id FROM blocked_rooms WHERE room_id = $1";
    let doing = "look whether the room is blocked";
    db.row(doing, BLOCKER, params![room.as_str()], |r| {
        r.get::<_, String>(0).map(UserId::new)
    })
}

/// Blocks a room, known or not; answers whether it was not blocked before. Who blocked it first stays on record (D-4).
pub fn add(db: &Tx<'_>, room: &RoomId, user: &UserId) -> Result<bool, Error> {
    const BLOCK: &str = "
        INSERT INTO blocked_rooms (room_id, user_id) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    let blocked = db.execute(
        "block the room",
        BLOCK,
        params![room.as_str(), user.as_str()],
    )?;
    Ok(blocked > 0)
}

/// Lets people join again.
pub fn remove(db: &Tx<'_>, room: &RoomId) -> Result<(), Error> {
    const UNBLOCK: &str = "DELETE FROM blocked_rooms WHERE room_id = $1";
    db.execute("unblock the room", UNBLOCK, params![room.as_str()])?;
    Ok(())
}
