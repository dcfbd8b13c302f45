//! What is known of rooms at large: the list that admins page through, and one room's details.

use std::collections::BTreeSet;

use serde::Serialize;

use super::db::{Db, Row, RowResult, params};
use crate::error::Error;
use crate::ids::{RoomId, UserId};

/// A room, as the homeserver's statistics have it. Members are named as Synapse's admin API names them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Room {
    /// The room.
    pub room_id: RoomId,
    /// Its name.
    pub name: Option<String>,
    /// Its canonical alias.
    pub canonical_alias: Option<String>,
    /// Joined users; nothing until the homeserver has counted.
    pub joined_members: Option<i64>,
    /// Joined users of this server.
    pub joined_local_members: Option<i64>,
    /// Room version.
    pub version: Option<String>,
    /// Who made it.
    pub creator: Option<String>,
    /// Algorithm of its encryption.
    pub encryption: Option<String>,
    /// Whether other servers may join.
    pub federatable: bool,
    /// Whether it is in the public directory.
    pub public: bool,
    /// `m.room.join_rules`.
    pub join_rules: Option<String>,
    /// `m.room.guest_access`.
    pub guest_access: Option<String>,
    /// `m.room.history_visibility`.
    pub history_visibility: Option<String>,
    /// Events of its current state.
    pub state_events: Option<i64>,
    /// Type of the room: a space, or nothing.
    pub room_type: Option<String>,
}

/// One room, with what only its own page shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Details {
    /// As in the list.
    #[serde(flatten)]
    pub room: Room,
    /// Its avatar.
    pub avatar: Option<String>,
    /// Its topic.
    pub topic: Option<String>,
    /// Devices of its joined users.
    pub joined_local_devices: i64,
    /// Whether every local user has forgotten it.
    pub forgotten: bool,
    /// Whether it has ended and another has taken its place.
    pub tombstoned: bool,
    /// That other one.
    pub replacement_room: Option<String>,
}

/// Rooms that the homeserver has statistics of. Walks the three tables once, by the key on room.
const ROOMS: &str = "
    SELECT r.room_id, s.name, s.canonical_alias, c.joined_members, c.local_users_in_room, r.room_version, r.creator,
           s.encryption, s.is_federatable, r.is_public, s.join_rules, s.guest_access, s.history_visibility,
           c.current_state_events, s.room_type
      FROM rooms r
      JOIN room_stats_state s ON s.room_id = r.room_id
      JOIN room_stats_current c ON c.room_id = r.room_id";

/// One of them, counted or not. Binds `$1` room.
const ROOM: &str = "
    SELECT r.room_id, s.name, s.canonical_alias, c.joined_members, c.local_users_in_room, r.room_version, r.creator,
           s.encryption, s.is_federatable, r.is_public, s.join_rules, s.guest_access, s.history_visibility,
           c.current_state_events, s.room_type, s.avatar, s.topic
      FROM rooms r
      LEFT JOIN room_stats_state s ON s.room_id = r.room_id
      LEFT JOIN room_stats_current c ON c.room_id = r.room_id
     WHERE r.room_id = $1";

fn room(row: &Row<'_>) -> RowResult<Room> {
    Ok(Room {
        room_id: RoomId::new(row.get::<_, String>(0)?),
        name: row.get(1)?,
        canonical_alias: row.get(2)?,
        joined_members: row.get(3)?,
        joined_local_members: row.get(4)?,
        version: row.get(5)?,
        creator: row.get(6)?,
        encryption: row.get(7)?,
        federatable: row.get::<_, Option<bool>>(8)?.unwrap_or(false),
        public: row.get::<_, Option<bool>>(9)?.unwrap_or(false),
        join_rules: row.get(10)?,
        guest_access: row.get(11)?,
        history_visibility: row.get(12)?,
        state_events: row.get(13)?,
        room_type: row.get(14)?,
    })
}

/// Every room that the homeserver has counted, in no order.
pub fn list(db: &Db) -> Result<Vec<Room>, Error> {
    if !(db.catalog().has("room_stats_state") && db.catalog().has("room_stats_current")) {
        return Ok(Vec::new());
    }
    let mut rooms = db.rows("read the rooms", ROOMS, &[], room)?;
    let uncounted = uncounted(db)?;
    for room in &mut rooms {
        if uncounted.contains(room.room_id.as_str()) {
            recount(db, room)?;
        }
    }
    Ok(rooms)
}

/// Rooms of which something has changed that the homeserver has not counted yet, because it was stopped then (D-52). Walks
/// the end of `current_state_delta_stream` by its index on stream.
fn uncounted(db: &Db) -> Result<BTreeSet<String>, Error> {
    const UNCOUNTED: &str = "
        SELECT DISTINCT room_id FROM current_state_delta_stream
         WHERE stream_id > (SELECT coalesce(max(completed_delta_stream_id), 0) FROM room_stats_current)";
    if !db.catalog().has("room_stats_current") {
        return Ok(BTreeSet::new());
    }
    let doing = "look which rooms have changed since they were counted";
    let rooms = db.rows(doing, UNCOUNTED, &[], |r| r.get(0))?;
    Ok(rooms.into_iter().collect())
}

/// Counts members and state as they are now, where the homeserver had counted them before.
fn recount(db: &Db, room: &mut Room) -> Result<(), Error> {
    const LOCAL: &str =
        "SELECT count(*) FROM local_current_membership WHERE room_id = $1 AND membership = 'join'";
    const STATE: &str = "SELECT count(*) FROM current_state_events WHERE room_id = $1";
    let doing = "count the room's members";
    let id = room.room_id.clone();
    if room.joined_members.is_some() {
        let joined = members(db, &id)?.len();
        room.joined_members = Some(i64::try_from(joined).unwrap_or(i64::MAX));
        room.joined_local_members = Some(db.count(doing, LOCAL, params![id.as_str()])?);
        room.state_events = Some(db.count(doing, STATE, params![id.as_str()])?);
    }
    Ok(())
}

/// A room as it is counted, with its avatar and its topic.
pub type Described = (Room, Option<String>, Option<String>);

/// The same of one room, if the homeserver knows it.
pub fn described(db: &Db, id: &RoomId) -> Result<Option<Described>, Error> {
    let found = db.row("read the room", ROOM, params![id.as_str()], |row| {
        Ok((room(row)?, row.get(15)?, row.get(16)?))
    })?;
    let Some((mut room, avatar, topic)) = found else {
        return Ok(None);
    };
    if uncounted(db)?.contains(id.as_str()) {
        recount(db, &mut room)?;
    }
    Ok(Some((room, avatar, topic)))
}

/// One room, if the homeserver knows it.
pub fn details(db: &Db, id: &RoomId) -> Result<Option<Details>, Error> {
    let doing = "read the room";
    let Some((room, avatar, topic)) = described(db, id)? else {
        return Ok(None);
    };
    const DEVICES: &str = "
        SELECT count(*) FROM devices
         WHERE NOT coalesce(hidden, FALSE) AND user_id IN (SELECT value FROM json_each($1))";
    const REMEMBERED: &str = "
        SELECT count(*)
          FROM local_current_membership l
          JOIN room_memberships m ON m.event_id = l.event_id
         WHERE l.room_id = $1 AND m.forgotten = 0";
    const TOMBSTONE: &str = "
        SELECT j.json
          FROM current_state_events c
          JOIN event_json j ON j.event_id = c.event_id
         WHERE c.room_id = $1 AND c.type = 'm.room.tombstone' AND c.state_key = ''";
    let members = serde_json::to_string(&members(db, id)?).unwrap_or_default();
    let joined_local_devices = match db.catalog().has("devices") {
        true => db.count(doing, DEVICES, params![members])?,
        false => 0,
    };
    let tombstone = db.row(doing, TOMBSTONE, params![id.as_str()], |row| {
        row.get::<_, String>(0)
    })?;
    let replacement = |text: &String| {
        let event: serde_json::Value = serde_json::from_str(text).ok()?;
        let room = event.get("content")?.get("replacement_room")?.as_str()?;
        Some(room.to_owned())
    };
    Ok(Some(Details {
        room,
        avatar,
        topic,
        joined_local_devices,
        forgotten: db.count(doing, REMEMBERED, params![id.as_str()])? == 0,
        tombstoned: tombstone.is_some(),
        replacement_room: tombstone.as_ref().and_then(replacement),
    }))
}

/// Who is joined, from every server.
pub fn members(db: &Db, room: &RoomId) -> Result<Vec<UserId>, Error> {
    super::room_rows::joined_users(db, room)
}
