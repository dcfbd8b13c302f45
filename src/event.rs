//! A Matrix event made by this server: from its parts to its hashes, its id and its signature, in every room version
//! from 1 to 12.
//!
//! Nothing here knows a database. Which events authorise another is [`auth`]; the server's key file is read by
//! [`SigningKeys`]; a [`EventSigner`] turns a [`EventBuilder`] into an [`Event`] and looks at its own work before it hands it out.
//!
//! Source: the Matrix specification, "Server-Server API", "Signing events"; behaviour.md D-40 … D-48.

pub mod auth;
mod sign;
mod signing_keys;

use serde_json::{Map, Value};

pub use self::sign::{EventSigner, Signed};
pub use self::signing_keys::SigningKeys;
use crate::ids::{EventId, RoomId, UserId};
use crate::time::Millis;

/// The type of events that say who is in a room.
pub const MEMBER: &str = "m.room.member";

/// The type of a room's first event.
pub const CREATE: &str = "m.room.create";

/// The most bytes an event may have.
pub const MAX_BYTES: usize = 65_536;

/// The greatest depth an event may have (D-41).
pub const MAX_DEPTH: i64 = (1 << 53) - 1;

/// Why an event was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// The signing key cannot be used: what is wrong with its file. Never holds any of the key.
    #[error("{0}")]
    Key(String),
    /// Events of this room version cannot be made.
    #[error("rooms of version {0} are not known well enough to write events into them")]
    RoomVersion(String),
    /// This program was built without what it takes.
    #[error("this roomkeeper was built without the feature `events`, and cannot write events")]
    NotBuilt,
    /// The event would be larger than servers accept.
    #[error("the event would be larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// The content is nothing that Matrix allows: what was wrong with it, without the content.
    #[error("the event cannot be made: {0}")]
    Form(String),
    /// The finished event did not stand its own test; it was not handed out.
    #[error("an event that was made did not stand its test: {0}")]
    Broken(String),
}

/// Another event, as the members `prev_events` and `auth_events` name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Its id.
    pub id: EventId,
    /// Its reference hash, which only room versions 1 and 2 write down beside the id; absent where it is not known, as
    /// Synapse leaves it out itself.
    pub hash: Option<String>,
}

/// What an event is to say, before it has hashes, an id and a signature.
#[derive(Clone, Debug)]
pub struct EventBuilder<'a> {
    /// Its room; none for the first event of a room whose id is that event's hash.
    pub room: Option<&'a RoomId>,
    /// Its type.
    pub kind: &'a str,
    /// Who says it; a user of this server.
    pub sender: &'a UserId,
    /// What it is the state of; no state event without.
    pub state_key: Option<&'a str>,
    /// What it says.
    pub content: Map<String, Value>,
    /// One more than the greatest depth of the events before it.
    pub depth: i64,
    /// The events before it.
    pub prev: Vec<Reference>,
    /// The events that allow it, the create event among them whatever the room version.
    pub auth: Vec<Reference>,
    /// The create event where it is no member of `auth_events` (version 12), so that it is left out there.
    pub create_event_id: Option<&'a EventId>,
    /// When it is said.
    pub at: Millis,
    /// The state event that it replaces.
    pub replaces: Option<&'a EventId>,
}

/// A whole event, as it goes into the database and to other servers.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its id (D-44).
    pub id: EventId,
    /// Its room.
    pub room: RoomId,
    /// Its type.
    pub kind: String,
    /// Who says it.
    pub sender: UserId,
    /// What it is the state of.
    pub state_key: Option<String>,
    /// What it says.
    pub content: Map<String, Value>,
    /// Its depth.
    pub depth: i64,
    /// Ids of the events before it.
    pub prev: Vec<EventId>,
    /// Ids of the events that allow it, the create event among them.
    pub auth: Vec<EventId>,
    /// When it is said.
    pub at: Millis,
    /// The event as JSON.
    pub json: String,
    /// `event_json.format_version` (D-48).
    pub format: i64,
    /// Its reference hash.
    pub hash: String,
}

impl Event {
    /// How another event names it.
    pub fn reference(&self) -> Reference {
        Reference {
            id: self.id.clone(),
            hash: Some(self.hash.clone()),
        }
    }

    /// The membership it gives, if it is a membership.
    pub fn membership(&self) -> Option<&str> {
        (self.kind == MEMBER)
            .then(|| self.content.get("membership").and_then(Value::as_str))
            .flatten()
    }

    /// A member of its content, where that is text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.content.get(name).and_then(Value::as_str)
    }
}
