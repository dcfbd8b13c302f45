//! What follows from a new event for the state of the room at this moment: current state, memberships, sliding sync
//! (D-24, D-48).

use serde_json::{Map, Value};

use super::groups::StateMap;
use super::numbers::Numbers;
use super::room_head::RoomHead;
use crate::error::Error;
use crate::event::{CREATE, Event, MEMBER};
use crate::ids::{EventId, UserId};
use crate::room_version::RoomVersion;
use crate::store::db::{Db, params};
use crate::store::tx::Tx;

const DOING: &str = "store what an event changes";

/// Types by which a room rises in the list of rooms (D-48).
const BUMPING: &[&str] = &[
    CREATE,
    "m.room.message",
    "m.room.encrypted",
    "m.sticker",
    "m.call.invite",
    "m.poll.start",
    "m.beacon_info",
];

const INSERT_MEMBERSHIP: &str = "
    INSERT INTO room_memberships
           (event_id, user_id, sender, room_id, membership, display_name, avatar_url, event_stream_ordering)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";

/// As [`INSERT_MEMBERSHIP`], before schema 74.
const INSERT_MEMBERSHIP_OF_OLD: &str = "
    INSERT INTO room_memberships (event_id, user_id, sender, room_id, membership, display_name, avatar_url)
    VALUES ($1, $2, $3, $4, $5, $6, $7)";

const DELETE_LOCAL: &str =
    "DELETE FROM local_current_membership WHERE room_id = $1 AND user_id = $2";

const INSERT_LOCAL: &str = "
    INSERT INTO local_current_membership (room_id, user_id, event_id, membership, event_stream_ordering)
    VALUES ($1, $2, $3, $4, $5)";

/// As [`INSERT_LOCAL`], before schema 74.
const INSERT_LOCAL_OF_OLD: &str = "
    INSERT INTO local_current_membership (room_id, user_id, event_id, membership) VALUES ($1, $2, $3, $4)";

/// One change of the current state, told to what follows the stream. Binds `$1` its place, `$2` the writer, `$3` room,
/// `$4` type, `$5` state key, `$6` the event, `$7` the one before.
const INSERT_DELTA: &str = "
    INSERT INTO current_state_delta_stream
           (stream_id, instance_name, room_id, type, state_key, event_id, prev_event_id)
    VALUES ($1, $2, $3, $4, $5, $6, $7)";

/// The end of the current state, told likewise. Binds `$1` its place, `$2` the writer, `$3` room.
const INSERT_DELTAS_OF_END: &str = "
    INSERT INTO current_state_delta_stream
           (stream_id, instance_name, room_id, type, state_key, event_id, prev_event_id)
    SELECT $1, $2, room_id, type, state_key, NULL, event_id
      FROM current_state_events
     WHERE room_id = $3";

const DELETE_CURRENT: &str = "DELETE FROM current_state_events WHERE room_id = $1";

const DELETE_CURRENT_OF: &str =
    "DELETE FROM current_state_events WHERE room_id = $1 AND type = $2 AND state_key = $3";

const INSERT_CURRENT: &str = "
    INSERT INTO current_state_events (room_id, type, state_key, event_id, membership, event_stream_ordering)
    VALUES ($1, $2, $3, $4, $5, $6)";

/// As [`INSERT_CURRENT`], before schema 74.
const INSERT_CURRENT_OF_OLD: &str = "
    INSERT INTO current_state_events (room_id, type, state_key, event_id, membership) VALUES ($1, $2, $3, $4, $5)";

/// What sliding sync knows of a local member, with how the room looks. Binds `$1` room, `$2` user, `$3` sender, `$4`
/// event, `$5` membership, `$6` stream ordering, `$7` writer, `$8` … `$11` the room's looks.
const UPSERT_SNAPSHOT: &str = "
    INSERT INTO sliding_sync_membership_snapshots
           (room_id, user_id, sender, membership_event_id, membership, forgotten, event_stream_ordering,
            event_instance_name, has_known_state, room_type, room_name, is_encrypted, tombstone_successor_room_id)
    VALUES ($1, $2, $3, $4, $5, 0, $6, $7, TRUE, $8, $9, $10, $11)
        ON CONFLICT (room_id, user_id) DO UPDATE
       SET sender = excluded.sender, membership_event_id = excluded.membership_event_id,
           membership = excluded.membership, forgotten = 0, event_stream_ordering = excluded.event_stream_ordering,
           event_instance_name = excluded.event_instance_name, has_known_state = TRUE,
           room_type = excluded.room_type, room_name = excluded.room_name, is_encrypted = excluded.is_encrypted,
           tombstone_successor_room_id = excluded.tombstone_successor_room_id";

/// The same where the room's state is not known any more, or never was: it looks as it did. Binds `$1` … `$7` as
/// [`UPSERT_SNAPSHOT`].
const UPSERT_SNAPSHOT_BLINDLY: &str = "
    INSERT INTO sliding_sync_membership_snapshots
           (room_id, user_id, sender, membership_event_id, membership, forgotten, event_stream_ordering,
            event_instance_name)
    VALUES ($1, $2, $3, $4, $5, 0, $6, $7)
        ON CONFLICT (room_id, user_id) DO UPDATE
       SET sender = excluded.sender, membership_event_id = excluded.membership_event_id,
           membership = excluded.membership, forgotten = 0, event_stream_ordering = excluded.event_stream_ordering,
           event_instance_name = excluded.event_instance_name";

const DELETE_JOINED_ROOM: &str = "DELETE FROM sliding_sync_joined_rooms WHERE room_id = $1";

/// A room that local users are in, with its first event. Binds `$1` room, `$2` stream ordering, `$3` how it looks.
const INSERT_JOINED_ROOM: &str = "
    INSERT INTO sliding_sync_joined_rooms (room_id, event_stream_ordering, bump_stamp, room_type)
    VALUES ($1, $2, $2, $3)";

const LOOK: &str = "
    UPDATE sliding_sync_joined_rooms
       SET room_type = $1, room_name = $2, is_encrypted = $3, tombstone_successor_room_id = $4
     WHERE room_id = $5";

/// Binds `$1` the stream ordering, `$2` the same where the event lets the room rise, `$3` room.
const RISE: &str = "
    UPDATE sliding_sync_joined_rooms
       SET event_stream_ordering = $1, bump_stamp = COALESCE($2, bump_stamp)
     WHERE room_id = $3 AND event_stream_ordering < $1";

const CONTENT: &str = "
    SELECT j.json, EXISTS (SELECT 1 FROM redactions r CROSS JOIN events e
                            WHERE r.redacts = j.event_id AND e.event_id = r.event_id)
      FROM event_json j
     WHERE j.event_id = $1";

/// How a room looks in a list of rooms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MemberProfile {
    room_type: Option<String>,
    room_name: Option<String>,
    is_encrypted: bool,
    successor: Option<String>,
}

/// State that makes a room look as it does.
const PROFILE_TYPES: &[&str] = &[
    CREATE,
    "m.room.name",
    "m.room.encryption",
    "m.room.tombstone",
];

impl MemberProfile {
    /// Reads how a room looks, where the database has a place for it.
    pub fn read(db: &Db, state: &StateMap, version: &RoomVersion) -> Result<Self, Error> {
        let mut looks = Self::default();
        if !has_sliding_sync(db) {
            return Ok(looks);
        }
        for kind in PROFILE_TYPES {
            if let Some(event) = state.get(&((*kind).to_owned(), String::new())) {
                looks.change(kind, &content(db, event, version)?);
            }
        }
        Ok(looks)
    }

    /// Takes account of a state event; answers whether it is one of those.
    fn change(&mut self, kind: &str, content: &Map<String, Value>) -> bool {
        let text = |name: &str| {
            let text = content.get(name).and_then(Value::as_str);
            text.filter(|t| !t.contains('\0')).map(str::to_owned)
        };
        match kind {
            CREATE => self.room_type = text("type"),
            "m.room.name" => self.room_name = text("name"),
            "m.room.encryption" => {
                self.is_encrypted = content.get("algorithm").is_some_and(|a| !a.is_null());
            }
            "m.room.tombstone" => self.successor = text("replacement_room"),
            _ => return false,
        }
        true
    }
}

fn content(db: &Db, event: &EventId, version: &RoomVersion) -> Result<Map<String, Value>, Error> {
    let found = db.row(
        "read the room's state",
        CONTENT,
        params![event.as_str()],
        |r| Ok((r.get::<_, String>(0)?, r.get::<_, bool>(1)?)),
    )?;
    let Some((json, is_redacted)) = found else {
        return Ok(Map::new());
    };
    let Ok(Value::Object(mut event)) = serde_json::from_str(&json) else {
        return Ok(Map::new());
    };
    if is_redacted {
        event = version.redact(&event);
    }
    match event.remove("content") {
        Some(Value::Object(content)) => Ok(content),
        _ => Ok(Map::new()),
    }
}

fn has_sliding_sync(db: &Db) -> bool {
    db.catalog().has("sliding_sync_membership_snapshots")
        && db.catalog().has("sliding_sync_joined_rooms")
}

/// Stores a membership (room_memberships).
pub(super) fn insert_membership(db: &Tx<'_>, event: &Event, stream: i64) -> Result<(), Error> {
    let (Some(user), Some(membership)) = (&event.state_key, event.membership()) else {
        return Ok(());
    };
    let (name, avatar) = (event.text("displayname"), event.text("avatar_url"));
    let (id, room, sender) = (
        event.id.as_str(),
        event.room.as_str(),
        event.sender.as_str(),
    );
    if db
        .catalog()
        .has_column("room_memberships", "event_stream_ordering")
    {
        db.execute(
            DOING,
            INSERT_MEMBERSHIP,
            params![id, user, sender, room, membership, name, avatar, stream],
        )?;
    } else {
        db.execute(
            DOING,
            INSERT_MEMBERSHIP_OF_OLD,
            params![id, user, sender, room, membership, name, avatar],
        )?;
    }
    Ok(())
}

/// Stores what a local user's membership is now: `looks` where the room's state is known.
pub(super) fn set_local_membership(
    db: &Tx<'_>,
    numbers: &Numbers,
    event: &Event,
    stream: i64,
    looks: Option<&MemberProfile>,
) -> Result<(), Error> {
    let (Some(user), Some(membership)) = (&event.state_key, event.membership()) else {
        return Ok(());
    };
    let (id, room, sender) = (
        event.id.as_str(),
        event.room.as_str(),
        event.sender.as_str(),
    );
    db.execute(DOING, DELETE_LOCAL, params![room, user])?;
    if db
        .catalog()
        .has_column("local_current_membership", "event_stream_ordering")
    {
        db.execute(
            DOING,
            INSERT_LOCAL,
            params![room, user, id, membership, stream],
        )?;
    } else {
        db.execute(
            DOING,
            INSERT_LOCAL_OF_OLD,
            params![room, user, id, membership],
        )?;
    }
    if !has_sliding_sync(db) {
        return Ok(());
    }
    let writer = numbers.writer();
    match looks {
        Some(looks) => db.execute(
            DOING,
            UPSERT_SNAPSHOT,
            params![
                room,
                user,
                sender,
                id,
                membership,
                stream,
                writer,
                looks.room_type,
                looks.room_name,
                looks.is_encrypted,
                looks.successor
            ],
        )?,
        None => db.execute(
            DOING,
            UPSERT_SNAPSHOT_BLINDLY,
            params![room, user, sender, id, membership, stream, writer],
        )?,
    };
    Ok(())
}

/// Stores what a new event of the timeline, that is in the room head's state already, changes for the room.
pub(super) fn change(
    db: &Tx<'_>,
    numbers: &Numbers,
    room_head: &mut RoomHead,
    event: &Event,
    stream: i64,
    replaced: Option<&EventId>,
) -> Result<(), Error> {
    if let Some(key) = &event.state_key {
        change_state(db, numbers, room_head, event, key, stream, replaced)?;
    }
    if has_sliding_sync(db) && room_head.is_current {
        let rises = BUMPING.contains(&event.kind.as_str()).then_some(stream);
        let room = event.room.as_str();
        db.execute(DOING, RISE, params![stream, rises, room])?;
    }
    Ok(())
}

fn change_state(
    db: &Tx<'_>,
    numbers: &Numbers,
    room_head: &mut RoomHead,
    event: &Event,
    key: &str,
    stream: i64,
    replaced: Option<&EventId>,
) -> Result<(), Error> {
    let (room, writer) = (event.room.as_str(), numbers.writer());
    let is_local_member = event.kind == MEMBER && UserId::new(key).is_local(&room_head.server);
    if is_local_member {
        match event.membership() {
            Some("join") => room_head.joined_here.insert(key.to_owned()),
            _ => room_head.joined_here.remove(key),
        };
    }
    let was_current = room_head.is_current;
    let looks_change = key.is_empty() && room_head.looks.change(&event.kind, &event.content);
    if was_current && is_local_member && room_head.joined_here.is_empty() {
        // D-24: nobody of this server is there any more to see it.
        db.execute(DOING, INSERT_DELTAS_OF_END, params![stream, writer, room])?;
        db.execute(DOING, DELETE_CURRENT, params![room])?;
        if has_sliding_sync(db) {
            db.execute(DOING, DELETE_JOINED_ROOM, params![room])?;
        }
        room_head.is_current = false;
    } else if was_current {
        let before = replaced.map(EventId::as_str);
        let (kind, id, membership) = (&event.kind, event.id.as_str(), event.membership());
        db.execute(
            DOING,
            INSERT_DELTA,
            params![stream, writer, room, kind, key, id, before],
        )?;
        db.execute(DOING, DELETE_CURRENT_OF, params![room, kind, key])?;
        if db
            .catalog()
            .has_column("current_state_events", "event_stream_ordering")
        {
            db.execute(
                DOING,
                INSERT_CURRENT,
                params![room, kind, key, id, membership, stream],
            )?;
        } else {
            db.execute(
                DOING,
                INSERT_CURRENT_OF_OLD,
                params![room, kind, key, id, membership],
            )?;
        }
        if has_sliding_sync(db) {
            if event.kind == CREATE {
                let looks = &room_head.looks.room_type;
                db.execute(DOING, INSERT_JOINED_ROOM, params![room, stream, looks])?;
            } else if looks_change {
                let looks = &room_head.looks;
                db.execute(
                    DOING,
                    LOOK,
                    params![
                        looks.room_type,
                        looks.room_name,
                        looks.is_encrypted,
                        looks.successor,
                        room
                    ],
                )?;
            }
        }
    }
    if is_local_member {
        let looks = was_current.then_some(&room_head.looks);
        set_local_membership(db, numbers, event, stream, looks)?;
    }
    Ok(())
}
