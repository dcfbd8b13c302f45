//! What clients for admins look up beside rooms: accounts, profiles, a room's state and ends, an event by its time.

use super::db::{Db, params};
use super::value::Json;
use crate::error::Error;
use crate::ids::{EventId, RoomId, UserId};
use crate::point::Direction;

/// An account, as the homeserver has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Whether they are a server admin.
    pub is_admin: bool,
    /// Whether they are a guest.
    pub is_guest: bool,
    /// Whether the account is closed.
    pub is_deactivated: bool,
    /// Whether their data was asked to be erased.
    pub is_erased: bool,
    /// Whether others hear nothing of them, without being told.
    pub is_shadow_banned: bool,
    /// Whether the account is locked.
    pub is_locked: bool,
    /// Whether the account is suspended.
    pub is_suspended: bool,
    /// When it was made, in seconds.
    pub creation_ts: Option<i64>,
    /// The application service it belongs to.
    pub appservice_id: Option<String>,
    /// `bot`, `support`, or nothing.
    pub user_type: Option<String>,
}

/// The account of a user.
pub fn account(db: &Db, user: &UserId) -> Result<Option<Account>, Error> {
    let column = |name: &'static str| match db.catalog().has_column("users", name) {
        true => format!("coalesce(u.{name}, FALSE)"),
        false => "FALSE".to_owned(),
    };
    // Binds `$1` user. By the key on name.
    let sql = format!(
        "SELECT u.admin, u.is_guest, u.deactivated, {}, {}, {}, u.creation_ts, u.appservice_id, u.user_type,
                EXISTS (SELECT 1 FROM erased_users e WHERE e.user_id = u.name)
           FROM users u WHERE u.name = $1",
        column("shadow_banned"),
        column("locked"),
        column("suspended"),
    );
    db.row("look up an account", &sql, params![user.as_str()], |r| {
        Ok(Account {
            is_admin: r.get::<_, i64>(0)? == 1,
            is_guest: r.get::<_, i64>(1)? == 1,
            is_deactivated: r.get::<_, i64>(2)? == 1,
            is_shadow_banned: r.get(3)?,
            is_locked: r.get(4)?,
            is_suspended: r.get(5)?,
            creation_ts: r.get(6)?,
            appservice_id: r.get(7)?,
            user_type: r.get(8)?,
            is_erased: r.get(9)?,
        })
    })
}

/// Whether a user has a device. Binds `$1` user, `$2` device. By the key on both.
const HAS_DEVICE: &str =
    "SELECT EXISTS (SELECT 1 FROM devices WHERE user_id = $1 AND device_id = $2)";

/// Whether a user has a device.
pub fn has_device(db: &Db, user: &UserId, device: &str) -> Result<bool, Error> {
    let params = params![user.as_str(), device];
    let found = db.row("look up a device", HAS_DEVICE, params, |r| r.get(0))?;
    Ok(found.unwrap_or(false))
}

/// How a user shows themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// What they are called.
    pub displayname: Option<String>,
    /// The address of their picture.
    pub avatar_url: Option<String>,
}

/// A user's name and picture. Binds `$1` the part of their id before the server's name. By the key on it.
const PROFILE: &str = "SELECT displayname, avatar_url FROM profiles WHERE user_id = $1";

/// What a local user is called, and their picture; `None` where they have no profile here.
pub fn profile(db: &Db, user: &UserId) -> Result<Option<Profile>, Error> {
    let name = user.as_str().trim_start_matches('@');
    let local = name.split(':').next().unwrap_or_default();
    let doing = "look up a profile";
    db.row(doing, PROFILE, params![local], |r| {
        Ok(Profile {
            displayname: r.get(0)?,
            avatar_url: r.get(1)?,
        })
    })
}

/// Binds `$1` room. By `rooms`' key.
const IS_KNOWN: &str = "SELECT EXISTS (SELECT 1 FROM rooms WHERE room_id = $1)";

/// Whether the room has a row.
pub fn is_known(db: &Db, room: &RoomId) -> Result<bool, Error> {
    let known = db.count("look up a room", IS_KNOWN, params![room.as_str()])?;
    Ok(known != 0)
}

/// Binds `$1` room, `$2` the most. Along the key on room.
const STATE: &str = "SELECT event_id FROM current_state_events WHERE room_id = $1 ORDER BY type, state_key LIMIT $2";

/// The events of the room's current state, at most so many.
pub fn current_state(db: &Db, room: &RoomId, most: i64) -> Result<Vec<String>, Error> {
    let doing = "read the room's state";
    db.rows(doing, STATE, params![room.as_str(), most], |r| r.get(0))
}

/// One of a room's ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardExtremity {
    /// The event.
    pub event_id: String,
    /// The state after it.
    pub state_group: i64,
    /// Its depth.
    pub depth: i64,
    /// When it came.
    pub received_ts: Option<i64>,
}

/// Binds `$1` room. Along `ev_extrem_room`, then each by its id.
const EXTREMITIES: &str = "
    SELECT x.event_id, g.state_group, e.depth, e.received_ts
      FROM event_forward_extremities x
     CROSS JOIN event_to_state_groups g
     CROSS JOIN events e
     WHERE x.room_id = $1 AND g.event_id = x.event_id AND e.event_id = x.event_id
     ORDER BY x.event_id";

/// The room's forward extremities.
pub fn forward_extremities(db: &Db, room: &RoomId) -> Result<Vec<ForwardExtremity>, Error> {
    let doing = "read the forward extremities";
    db.rows(doing, EXTREMITIES, params![room.as_str()], |r| {
        Ok(ForwardExtremity {
            event_id: r.get(0)?,
            state_group: r.get(1)?,
            depth: r.get(2)?,
            received_ts: r.stamp(3),
        })
    })
}

/// Binds `$1` room, `$2` time. Along `events_ts`.
const AFTER: &str = "
    SELECT e.event_id, e.origin_server_ts FROM events e
      LEFT JOIN rejections r ON r.event_id = e.event_id
     WHERE e.room_id = $1 AND e.origin_server_ts >= $2 AND NOT e.outlier AND r.event_id IS NULL
     ORDER BY e.origin_server_ts, e.depth, e.stream_ordering LIMIT 1";

/// The same before it.
const BEFORE: &str = "
    SELECT e.event_id, e.origin_server_ts FROM events e
      LEFT JOIN rejections r ON r.event_id = e.event_id
     WHERE e.room_id = $1 AND e.origin_server_ts <= $2 AND NOT e.outlier AND r.event_id IS NULL
     ORDER BY e.origin_server_ts DESC, e.depth DESC, e.stream_ordering DESC LIMIT 1";

/// The event of the room that is nearest to a time in a direction, and its own time.
pub fn event_near(
    db: &Db,
    room: &RoomId,
    ts: i64,
    direction: Direction,
) -> Result<Option<(String, i64)>, Error> {
    let sql = match direction {
        Direction::Forwards => AFTER,
        Direction::Backwards => BEFORE,
    };
    let doing = "find an event by its time";
    db.row(doing, sql, params![room.as_str(), ts], |r| {
        Ok((r.get(0)?, r.stamp(1).unwrap_or(0)))
    })
}

/// Binds `$1` event. By its key.
const ROOM_OF: &str = "SELECT room_id FROM events WHERE event_id = $1";

/// The room of an event.
pub fn room_of(db: &Db, event: &EventId) -> Result<Option<RoomId>, Error> {
    let room = db.row("look up an event", ROOM_OF, params![event.as_str()], |r| {
        r.get::<_, String>(0)
    })?;
    Ok(room.map(RoomId::new))
}

/// Binds `$1` room. Along the index of events with an address, in the order of the timeline, then each by its id.
const WITH_ADDRESS: &str = "
    SELECT e.stream_ordering, j.json FROM events e
     CROSS JOIN event_json j
     WHERE e.room_id = $1 AND e.contains_url = true AND e.outlier = false AND j.event_id = e.event_id";

/// Hands the events of the room's timeline that have an address, with their stream orderings, to `each` until it says that
/// it has enough.
pub fn events_with_address(
    db: &Db,
    room: &RoomId,
    mut each: impl FnMut(i64, &str) -> bool,
) -> Result<(), Error> {
    let doing = "read the room's media";
    db.query_while(doing, WITH_ADDRESS, params![room.as_str()], |r| {
        Ok(each(r.get(0)?, &r.get::<_, Json>(1)?.0))
    })
}

/// A task of the homeserver's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnTask {
    /// Its id.
    pub id: String,
    /// What it does.
    pub action: String,
    /// `scheduled`, `active`, `complete`, `cancelled` or `failed`.
    pub status: String,
    /// When that was so, or is to begin.
    pub timestamp_ms: i64,
    /// To what: a room, often.
    pub resource_id: Option<String>,
    /// What came of it, as JSON.
    pub result: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
}

/// Binds `$1` the most. Synapse keeps its tasks for a week.
const OWN_TASKS: &str = "
    SELECT id, action, status, timestamp, resource_id, result, error FROM scheduled_tasks
     ORDER BY timestamp DESC, id LIMIT $1";

/// The homeserver's own tasks, the newest first, at most so many; none where it is too old to keep any.
pub fn own_tasks(db: &Db, most: i64) -> Result<Vec<OwnTask>, Error> {
    if !db.catalog().has("scheduled_tasks") {
        return Ok(Vec::new());
    }
    let doing = "read the homeserver's own tasks";
    db.rows(doing, OWN_TASKS, params![most], |r| {
        Ok(OwnTask {
            id: r.get(0)?,
            action: r.get(1)?,
            status: r.get(2)?,
            timestamp_ms: r.get(3)?,
            resource_id: r.get(4)?,
            result: r.get::<_, Option<Json>>(5)?.map(|json| json.0),
            error: r.get(6)?,
        })
    })
}
