//! Whether a reader may enter, and how far back they see (M-20 … M-24).

use super::json::Document;
use crate::error::Error;
use crate::ids::{RoomId, UserId};
use crate::point::Point;
use crate::store::db::Db;
use crate::store::readers;

/// How a user comes to read a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
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
pub(crate) fn entry(db: &Db, room: &RoomId, user: &UserId) -> Result<Entry, Error> {
    if let Some(now) = readers::membership(db, user, room)? {
        match now.membership.as_str() {
            "join" => return Ok(Entry::Joined),
            "leave" if !readers::has_forgotten(db, user, room)? => {
                // Without the event nobody can say how far they may see.
                if let Some(left) = readers::place_of(db, &now.event_id)? {
                    return Ok(Entry::Departed(left));
                }
            }
            _ => {}
        }
    }
    let visibility = readers::current_visibility(db, room)?.and_then(Document::read);
    let visibility = visibility
        .as_ref()
        .and_then(|event| event.object("content"));
    let visibility = visibility.and_then(|content| content.text("history_visibility"));
    if visibility.as_deref() == Some("world_readable") {
        return Ok(Entry::Peeking);
    }
    Err(Error::NotInRoom {
        user: user.clone(),
        room: room.clone(),
    })
}
