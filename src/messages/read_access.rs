//! Whether a reader may enter, and how far back they see (M-20 … M-24).

use super::json::Document;
use crate::error::Error;
use crate::ids::{RoomId, UserId};
use crate::point::Point;
use crate::store::db::Db;
use crate::store::reader_access;

/// How a user comes to read a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadAccess {
    /// As one of its members.
    Joined,
    /// As one who left at this place.
    Departed(Point),
    /// As anybody: the room is open to the world.
    Peeking,
}

/// How the user may read the room.
///
/// # Errors
/// [`Error::NotInRoom`].
pub(crate) fn read_access(db: &Db, room: &RoomId, user: &UserId) -> Result<ReadAccess, Error> {
    if let Some(now) = reader_access::membership(db, user, room)? {
        match now.membership.as_str() {
            "join" => return Ok(ReadAccess::Joined),
            "leave" if !reader_access::has_forgotten(db, user, room)? => {
                // Without the event nobody can say how far they may see.
                if let Some(left) = reader_access::place_of(db, &now.event_id)? {
                    return Ok(ReadAccess::Departed(left));
                }
            }
            _ => {}
        }
    }
    let visibility = reader_access::current_visibility(db, room)?.and_then(Document::read);
    let visibility = visibility
        .as_ref()
        .and_then(|event| event.object("content"));
    let visibility = visibility.and_then(|content| content.text("history_visibility"));
    if visibility.as_deref() == Some("world_readable") {
        return Ok(ReadAccess::Peeking);
    }
    Err(Error::NotInRoom {
        user: user.clone(),
        room: room.clone(),
    })
}
