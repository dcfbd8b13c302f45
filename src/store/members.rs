//! The people of a room that is shut down: how they are called, what they forget, what they were invited to; and the
//! aliases by which they find the next one.

use super::db::{Db, params};
use super::tx::Tx;
use crate::error::Error;
use crate::ids::{EventId, RoomId, UserId};

/// What a user shows of themself everywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Their name.
    pub displayname: Option<String>,
    /// Their picture.
    pub avatar_url: Option<String>,
}

/// The global profile of a local user; empty when there is none. By the unique index on `user_id`, which is the part of
/// the id before the domain.
pub fn profile(db: &Db, user: &UserId) -> Result<Profile, Error> {
    const PROFILE: &str = "SELECT displayname, avatar_url FROM profiles WHERE user_id = $1";
    if !db.catalog().has("profiles") {
        return Ok(Profile::default());
    }
    let name = user.as_str().trim_start_matches('@');
    let localpart = name.split_once(':').map_or(name, |(local, _)| local);
    let found = db.row("read a profile", PROFILE, params![localpart], |r| {
        Ok(Profile {
            displayname: r.get(0)?,
            avatar_url: r.get(1)?,
        })
    })?;
    Ok(found.unwrap_or_default())
}

/// Lets users forget a room that they have left (D-9). The users of a batch are found among the members of the room, or
/// each among their own memberships, as the engine thinks best: neither is asked once a user.
pub fn forget(db: &Tx<'_>, room: &RoomId, users: &[UserId]) -> Result<(), Error> {
    db.ensure_held(room)?;
    const FORGET: &str = "
        UPDATE room_memberships SET forgotten = 1
         WHERE room_id = $1
           AND user_id IN (SELECT value FROM json_each($2))
           AND forgotten = 0";
    const FORGET_SNAPSHOT: &str = "
        UPDATE sliding_sync_membership_snapshots SET forgotten = 1
         WHERE room_id = $1
           AND user_id IN (SELECT value FROM json_each($2))";
    let doing = "let users forget the room";
    let users = serde_json::to_string(users).map_err(|e| Error::Bug(e.to_string()))?;
    db.execute(doing, FORGET, params![room.as_str(), users])?;
    if db.catalog().has("sliding_sync_membership_snapshots") {
        db.execute(doing, FORGET_SNAPSHOT, params![room.as_str(), users])?;
    }
    Ok(())
}

/// A member event that is held outside the timeline.
#[derive(Clone, Debug)]
pub struct Invitation {
    /// Its id.
    pub id: EventId,
    /// Its depth.
    pub depth: i64,
    /// The event as JSON.
    pub json: String,
    /// The events that allow it.
    pub auth: Vec<EventId>,
}

/// The event that a local user's membership rests on.
pub fn invitation(db: &Db, room: &RoomId, user: &UserId) -> Result<Option<Invitation>, Error> {
    const INVITATION: &str = "
        SELECT l.event_id, e.depth, j.json
          FROM local_current_membership l
         CROSS JOIN events e
         CROSS JOIN event_json j
         WHERE l.user_id = $1 AND l.room_id = $2 AND e.event_id = l.event_id AND j.event_id = l.event_id";
    const AUTH: &str = "SELECT auth_id FROM event_auth WHERE event_id = $1 ORDER BY auth_id";
    let doing = "read an invitation";
    let found = db.row(
        doing,
        INVITATION,
        params![user.as_str(), room.as_str()],
        |r| {
            Ok(Invitation {
                id: EventId::new(r.get::<_, String>(0)?),
                depth: r.get(1)?,
                json: r.get(2)?,
                auth: Vec::new(),
            })
        },
    )?;
    let Some(mut invitation) = found else {
        return Ok(None);
    };
    let id = invitation.id.as_str();
    invitation.auth = db.rows(doing, AUTH, params![id], |r| {
        r.get::<_, String>(0).map(EventId::new)
    })?;
    Ok(Some(invitation))
}

/// Lets a room's aliases lead to another, in somebody's name (D-30). Walks `room_aliases_id`.
pub fn move_aliases(
    db: &Tx<'_>,
    room: &RoomId,
    to: &RoomId,
    requester: &UserId,
) -> Result<i64, Error> {
    db.ensure_held(room)?;
    const MOVE: &str = "UPDATE room_aliases SET room_id = $1, creator = $2 WHERE room_id = $3";
    db.execute(
        "move the room's aliases",
        MOVE,
        params![to.as_str(), requester.as_str(), room.as_str()],
    )
}

/// Whether a user has said anything in a room. Walks the room's part of `events_order_room`; for rooms of our own making,
/// which are short.
pub fn has_spoken(db: &Db, room: &RoomId, user: &UserId) -> Result<bool, Error> {
    const SPOKEN: &str = "
        SELECT EXISTS (SELECT 1 FROM events
                        WHERE room_id = $1 AND type = 'm.room.message' AND sender = $2)";
    let found = db.count(
        "look for the notice",
        SPOKEN,
        params![room.as_str(), user.as_str()],
    )?;
    Ok(found > 0)
}

/// Whether the server is still on its way into a room, and does not know its whole state yet.
pub fn is_partly_joined(db: &Db, room: &RoomId) -> Result<bool, Error> {
    const PARTLY: &str = "SELECT EXISTS (SELECT 1 FROM partial_state_rooms WHERE room_id = $1)";
    if !db.catalog().has("partial_state_rooms") {
        return Ok(false);
    }
    Ok(db.count("read the room", PARTLY, params![room.as_str()])? > 0)
}
