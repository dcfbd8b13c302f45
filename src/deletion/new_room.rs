//! The new room: the notice, and the people who are to read it (D-20 … D-22).

use serde_json::{Map, Value, json};

use super::author::{EventAuthor, NewEvent, refusal};
use super::members::joining;
use crate::config::EventSigning;
use crate::error::Error;
use crate::event::{CREATE, MEMBER};
use crate::ids::{RoomId, UserId, random_letters};
use crate::room_version::RoomVersion;
use crate::store::append::{self, EventWriter, RoomHead};
use crate::store::db::Db;
use crate::store::tx::Tx;
use crate::time::{Clock, Millis};

/// Letters of a room id (behaviour.md section 12).
const ROOM_LETTERS: usize = 18;

/// How often a room id is drawn again that is taken (D-21).
const ROOM_DRAWS: i64 = 5;

/// The version of rooms that are made when the configuration names none: that of the release which wrote the database,
/// as far as its tables tell (D-20).
const VERSIONS_BY_AGE: (&str, &str, &str) = ("10", "11", "12");

/// What is to be made.
pub(super) struct Plan<'a> {
    /// Who makes it.
    pub creator: &'a UserId,
    /// How it is called.
    pub name: &'a str,
    /// Its version.
    pub version: &'static RoomVersion,
    /// How rooms are made on this server.
    pub event_signing: &'a EventSigning,
}

/// A room whose first event is made and whose id is known, so that it can be told of before anything is written.
pub(super) struct CreatedRoom {
    pub room: RoomId,
    create: crate::event::Event,
}

/// A state event to be: type, state key, content.
type StateContent = (&'static str, String, Map<String, Value>);

/// The version of new rooms.
///
/// # Errors
/// [`Error::Config`] when the configured one is not known.
pub(super) fn version(
    db: &Db,
    event_signing: &EventSigning,
) -> Result<&'static RoomVersion, Error> {
    let catalog = db.catalog();
    let by_age = if catalog.has("profile_updates") {
        VERSIONS_BY_AGE.2
    } else if catalog.has("thread_subscriptions") {
        VERSIONS_BY_AGE.1
    } else {
        VERSIONS_BY_AGE.0
    };
    let name = event_signing.room_version.as_deref().unwrap_or(by_age);
    let known = RoomVersion::of(name).filter(|v| super::members::can_write(v));
    known.ok_or_else(|| {
        Error::Config(format!(
            "default_room_version: rooms of version {name} cannot be made by this roomkeeper"
        ))
    })
}

impl Plan<'_> {
    /// Makes the room's first event, and thereby its id. Writes nothing.
    pub fn open(
        &self,
        db: &Db,
        author: &EventAuthor,
        clock: &dyn Clock,
    ) -> Result<CreatedRoom, Error> {
        refuse_powerless(self)?;
        let mut content = Map::from_iter([("room_version".to_owned(), self.version.name.into())]);
        if !self.version.has_new_redactions {
            content.insert("creator".to_owned(), json!(self.creator));
        }
        let now = clock.now();
        for draw in 0..ROOM_DRAWS {
            // Where the id is a hash, a room that was made in the same millisecond would have the same one.
            let (room, at) = match self.version.is_create_hash_room_id {
                true => (None, now + Millis(draw)),
                false => (Some(self.draw()), now),
            };
            let saying = NewEvent {
                kind: CREATE,
                sender: self.creator,
                state_key: Some(""),
                content: content.clone(),
            };
            let create = author
                .open(self.version, room.as_ref(), saying, at)
                .map_err(refusal)?;
            if append::room_row(db, &create.room)?.is_none() {
                let room = create.room.clone();
                return Ok(CreatedRoom { room, create });
            }
        }
        Err(Error::Bug("every room id that was drawn is taken".into()))
    }

    fn draw(&self) -> RoomId {
        let letters = random_letters(ROOM_LETTERS);
        RoomId::new(format!("!{letters}:{}", self.creator.domain()))
    }

    /// Writes the room with everything but its people and the notice, inside one transaction.
    pub fn write(
        &self,
        db: &Tx<'_>,
        opening: &CreatedRoom,
        author: &EventAuthor,
        clock: &dyn Clock,
    ) -> Result<(), Error> {
        append::insert_room(db, &opening.room, self.version, self.creator)?;
        let mut room_head =
            RoomHead::of_new_room(&opening.room, self.version, self.creator.domain());
        let mut arrival = EventWriter::begin(db, clock.now())?;
        arrival.append(&mut room_head, &opening.create)?;
        for (kind, state_key, content) in self.contents(db)? {
            let saying = NewEvent {
                kind,
                sender: self.creator,
                state_key: Some(&state_key),
                content,
            };
            author
                .create(db, &mut arrival, &mut room_head, saying, clock)?
                .map_err(refusal)?;
        }
        arrival.end()
    }

    /// The state of the new room after its create event, in order (D-22).
    fn contents(&self, db: &Db) -> Result<Vec<StateContent>, Error> {
        let object = |value: Value| match value {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        let state = |kind, value| (kind, String::new(), object(value));
        let mut contents = vec![
            (
                MEMBER,
                self.creator.as_str().to_owned(),
                joining(db, self.creator)?,
            ),
            ("m.room.power_levels", String::new(), self.power_levels()),
            state("m.room.join_rules", json!({"join_rule": "public"})),
            state(
                "m.room.history_visibility",
                json!({"history_visibility": "shared"}),
            ),
        ];
        if self.event_signing.encrypts_rooms {
            contents.push(state(
                "m.room.encryption",
                json!({"algorithm": "m.megolm.v1.aes-sha2"}),
            ));
        }
        contents.push(state("m.room.name", json!({"name": self.name})));
        Ok(contents)
    }

    /// Who may do what: the people who are moved in may only read (D-22).
    fn power_levels(&self) -> Map<String, Value> {
        let creators_stand_above = self.version.have_creators_power;
        let users = match creators_stand_above {
            true => json!({}),
            false => json!({self.creator.as_str(): 100}),
        };
        let tombstone = if creators_stand_above { 150 } else { 100 };
        let levels = json!({
            "users": users,
            "users_default": 0,
            "events": {
                "m.call.invite": 50,
                "m.room.avatar": 50,
                "m.room.canonical_alias": 50,
                "m.room.encryption": 100,
                "m.room.history_visibility": 100,
                "m.room.name": 50,
                "m.room.power_levels": 100,
                "m.room.server_acl": 100,
                "m.room.tombstone": tombstone,
            },
            "events_default": 0,
            "state_default": 50,
            "ban": 50,
            "kick": 50,
            "redact": 50,
            "invite": 50,
            "historical": 100,
        });
        let mut levels = match levels {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        levels.extend(self.event_signing.power_levels.clone());
        levels.insert("users_default".to_owned(), json!(-10));
        levels
    }
}

/// Refuses an override of power levels by which whoever makes the room could not finish it.
fn refuse_powerless(plan: &Plan<'_>) -> Result<(), Error> {
    let levels = plan.power_levels();
    let refused = |what: String| {
        Err(Error::Config(format!(
            "default_power_level_content_override.public_chat: {what}"
        )))
    };
    let of_creator = levels
        .get("users")
        .and_then(|u| u.get(plan.creator.as_str()));
    if plan.version.have_creators_power {
        return match of_creator {
            Some(_) => refused("the creator of a room has no level in `users` there".into()),
            None => Ok(()),
        };
    }
    let number = |value: Option<&Value>, otherwise: i64| match value {
        None => Some(otherwise),
        Some(value) => value.as_i64(),
    };
    let creators = number(of_creator, -10);
    for (kind, default, otherwise) in [
        ("m.room.join_rules", "state_default", 50),
        ("m.room.history_visibility", "state_default", 50),
        ("m.room.encryption", "state_default", 50),
        ("m.room.name", "state_default", 50),
        ("m.room.message", "events_default", 0),
    ] {
        let default = number(levels.get(default), otherwise);
        let of_kind = levels.get("events").and_then(|e| e.get(kind));
        let needed = match of_kind {
            Some(level) => level.as_i64(),
            None => default,
        };
        let (Some(creators), Some(needed)) = (creators, needed) else {
            return refused("levels must be whole numbers".into());
        };
        if creators < needed {
            return refused(format!(
                "who makes a room has level {creators} in it and needs {needed} for {kind}"
            ));
        }
    }
    Ok(())
}

/// Says the notice, where the people of the old room will find it (D-10); inside one transaction.
pub(super) fn notify(
    db: &Tx<'_>,
    author: &EventAuthor,
    room: &RoomId,
    version: &'static RoomVersion,
    sender: &UserId,
    message: &str,
    clock: &dyn Clock,
) -> Result<(), Error> {
    let Some(mut room_head) = RoomHead::read(db, room, version, sender.domain())? else {
        return Err(Error::Bug(format!("the new room {room} is not there")));
    };
    let mut arrival = EventWriter::begin(db, clock.now())?;
    let saying = NewEvent {
        kind: "m.room.message",
        sender,
        state_key: None,
        content: notice(message),
    };
    author
        .create(db, &mut arrival, &mut room_head, saying, clock)?
        .map_err(refusal)?;
    arrival.end()
}

/// The content of the notice.
pub(super) fn notice(message: &str) -> Map<String, Value> {
    Map::from_iter([
        ("body".to_owned(), message.into()),
        ("msgtype".to_owned(), "m.text".into()),
    ])
}
