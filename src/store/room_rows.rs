//! What a deletion reads of a room.

use super::db::{Db, params};
use crate::error::Error;
use crate::ids::{RoomId, UserId};

/// Local users whom a shutdown moves: joined, invited or knocking (D-7), with their membership. Walks
/// `local_current_membership_room_idx`.
pub fn local_users_to_move(
    db: &Db,
    room: &RoomId,
    server_name: &str,
) -> Result<Vec<(UserId, String)>, Error> {
    const MEMBERS: &str = "
        SELECT user_id, membership FROM local_current_membership
         WHERE room_id = $1 AND membership IN ('join', 'invite', 'knock')
         ORDER BY user_id";
    let doing = "read whom a shutdown moves";
    let users = db.rows(doing, MEMBERS, params![room.as_str()], |r| {
        Ok((UserId::new(r.get::<_, String>(0)?), r.get(1)?))
    })?;
    let users = users.into_iter();
    Ok(users
        .filter(|(user, _)| user.is_local(server_name))
        .collect())
}

/// Aliases that lead to the room.
pub fn aliases(db: &Db, room: &RoomId) -> Result<Vec<String>, Error> {
    const ALIASES: &str =
        "SELECT room_alias FROM room_aliases WHERE room_id = $1 ORDER BY room_alias";
    let doing = "read the room's aliases";
    db.rows(doing, ALIASES, params![room.as_str()], |r| r.get(0))
}
