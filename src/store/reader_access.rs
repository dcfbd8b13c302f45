//! Who may read what: memberships, ignored and erased users, a room's retention policy.

use std::collections::HashSet;

use super::db::{Db, params};
use super::pages::json_list;
use super::policies::{self, Said};
use super::value::Json;
use crate::error::Error;
use crate::ids::{RoomId, UserId};
use crate::point::Point;

/// A local user's membership of a room, now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// `join`, `leave`, `invite`, …
    pub membership: String,
    /// The event that says so.
    pub event_id: String,
}

/// Binds `$1` user, `$2` room.
const MEMBERSHIP: &str = "
    SELECT membership, event_id FROM local_current_membership WHERE user_id = $1 AND room_id = $2";

/// The user's membership of the room; `None` when there never was one.
pub fn membership(db: &Db, user: &UserId, room: &RoomId) -> Result<Option<Membership>, Error> {
    let doing = "look up a membership";
    db.row(
        doing,
        MEMBERSHIP,
        params![user.as_str(), room.as_str()],
        |r| {
            Ok(Membership {
                membership: r.get(0)?,
                event_id: r.get(1)?,
            })
        },
    )
}

/// Binds `$1` user, `$2` room.
const REMEMBERED: &str = "
    SELECT count(*) FROM room_memberships WHERE user_id = $1 AND room_id = $2 AND forgotten = 0";

/// Whether the user has forgotten the room they left (M-20).
pub fn has_forgotten(db: &Db, user: &UserId, room: &RoomId) -> Result<bool, Error> {
    let doing = "look up a membership";
    let kept = db.count(doing, REMEMBERED, params![user.as_str(), room.as_str()])?;
    Ok(kept == 0)
}

/// Binds `$1` event.
const PLACE: &str = "
    SELECT topological_ordering, stream_ordering FROM events WHERE event_id = $1";

/// The place of an event.
pub fn place_of(db: &Db, event: &str) -> Result<Option<Point>, Error> {
    db.row("look up an event", PLACE, params![event], |r| {
        Ok(Point {
            topological: r.get(0)?,
            stream: r.get(1)?,
        })
    })
}

/// Binds `$1` room.
const VISIBILITY: &str = "
    SELECT j.json FROM current_state_events s
      LEFT JOIN event_json j ON j.event_id = s.event_id
     WHERE s.room_id = $1 AND s.type = 'm.room.history_visibility' AND s.state_key = ''";

/// The room's current `m.room.history_visibility` event, as stored.
pub fn current_visibility(db: &Db, room: &RoomId) -> Result<Option<String>, Error> {
    let doing = "look up who may read the room";
    let json = db.row(doing, VISIBILITY, params![room.as_str()], |r| {
        // What is no text says nothing.
        Ok(r.get::<_, Option<Json>>(0).ok().flatten())
    })?;
    Ok(json.flatten().map(|json| json.0))
}

/// Binds `$1` user.
const IGNORED: &str = "SELECT ignored_user_id FROM ignored_users WHERE ignorer_user_id = $1";

/// Whom the user ignores.
pub fn ignored_by(db: &Db, user: &UserId) -> Result<HashSet<String>, Error> {
    let doing = "read whom a user ignores";
    let ignored = db.rows(doing, IGNORED, params![user.as_str()], |r| r.get(0))?;
    Ok(ignored.into_iter().collect())
}

/// Binds `$1` users.
const ERASED: &str = "
    SELECT user_id FROM erased_users WHERE user_id IN (SELECT value FROM json_each($1))";

/// Which of the users asked for their data to be erased.
pub fn erased(db: &Db, users: &[&str]) -> Result<HashSet<String>, Error> {
    let users = json_list(users);
    let erased = db.rows("read who is erased", ERASED, params![users], |r| r.get(0))?;
    Ok(erased.into_iter().collect())
}

/// The room's policy: a row before an event without one, that of the empty state key first. Binds `$1` room.
const POLICY: &str = "
    SELECT p.event_id IS NOT NULL, p.min_lifetime, p.max_lifetime
      FROM current_state_events s
      LEFT JOIN room_retention p ON p.room_id = s.room_id AND p.event_id = s.event_id
     WHERE s.room_id = $1 AND s.type = 'm.room.retention'
     ORDER BY p.event_id IS NULL, s.state_key LIMIT 1";

/// What the room itself says of how long its messages are shown: its row of `room_retention`. An event that has no
/// row says nothing here, unless it cannot be read.
pub fn policy(db: &Db, room: &RoomId) -> Result<Said, Error> {
    if !db.catalog().has("room_retention") {
        return Ok(Said::Nothing);
    }
    let doing = "read the room's retention policy";
    let found = db.row(doing, POLICY, params![room.as_str()], |r| {
        match r.get::<_, bool>(0)? {
            true => policies::row_says(r, 1).map(Some),
            false => Ok(None),
        }
    })?;
    Ok(match found {
        None => Said::Nothing,
        Some(Some(said)) => said,
        Some(None) => match policies::of_room(db, room)? {
            Some(Said::Unreadable) => Said::Unreadable,
            _ => Said::Nothing,
        },
    })
}
