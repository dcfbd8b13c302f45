//! Who makes a shutdown's events: this server, with its key, in the name of its users.

use serde_json::{Map, Value};

use crate::error::Error;
use crate::event::auth::allowing;
use crate::event::{CREATE, Draft, Event, EventError, MEMBER, Reference, Sealer};
use crate::ids::{EventId, RoomId, UserId};
use crate::room_version::RoomVersion;
use crate::store::append::{Arrival, Tip};
use crate::store::db::Db;
use crate::store::people::Invitation;
use crate::time::{Clock, Millis};
use crate::worksite::Worksite;

/// What makes the events of one shutdown.
pub(super) struct Author {
    sealer: Sealer,
}

/// An event to be said at the end of a room.
pub(super) struct Saying<'a> {
    pub kind: &'a str,
    pub sender: &'a UserId,
    pub state_key: Option<&'a str>,
    pub content: Map<String, Value>,
}

impl Author {
    /// Takes up the server's signing key.
    ///
    /// # Errors
    /// [`Error::Unsafe`] when there is none, or it is none.
    pub fn of(site: &Worksite<'_>) -> Result<Self, Error> {
        let keys = site.authorship.keys()?;
        let sealer = Sealer::new(site.server_name, &keys).map_err(refusal)?;
        Ok(Self { sealer })
    }

    /// Makes the first event of a room, said at `at`; where its hash is the room's id, `room` is absent.
    pub fn open(
        &self,
        version: &RoomVersion,
        room: Option<&RoomId>,
        saying: Saying<'_>,
        at: Millis,
    ) -> Result<Event, EventError> {
        let draft = Draft {
            room,
            kind: saying.kind,
            sender: saying.sender,
            state_key: saying.state_key,
            content: saying.content,
            depth: 1,
            prev: Vec::new(),
            auth: Vec::new(),
            implied: None,
            at,
            replaces: None,
        };
        self.sealer.seal(version, draft)
    }

    /// Says something at the end of a room. The inner error says that nothing was said, and why; it is the sayer's own
    /// affair.
    pub fn say(
        &self,
        db: &Db,
        arrival: &mut Arrival<'_>,
        tip: &mut Tip,
        saying: Saying<'_>,
        clock: &dyn Clock,
    ) -> Result<Result<(), EventError>, Error> {
        let sender = saying.sender.as_str();
        let membership = match saying.kind {
            MEMBER => saying.content.get("membership").and_then(Value::as_str),
            _ => None,
        };
        let keys = allowing(saying.kind, sender, saying.state_key, membership);
        let auth = tip.allowing(db, &keys)?;
        let prev = tip.prev(db)?;
        let version = tip.version();
        let create = tip.state(CREATE, "").cloned();
        let replaces = saying
            .state_key
            .and_then(|key| tip.state(saying.kind, key))
            .cloned();
        let draft = Draft {
            room: Some(tip.room()),
            kind: saying.kind,
            sender: saying.sender,
            state_key: saying.state_key,
            content: saying.content,
            depth: tip.next_depth(),
            prev,
            auth,
            implied: create.as_ref().filter(|_| version.is_create_hash_room_id),
            at: clock.now(),
            replaces: replaces.as_ref(),
        };
        match self.sealer.seal(version, draft) {
            Ok(event) => arrival.append(tip, &event).map(Ok),
            Err(e) => Ok(Err(e)),
        }
    }

    /// Makes the refusal of an invitation into a room that this server is not in: it follows the invitation, and is
    /// allowed by what allowed that, and by the invitation itself.
    pub fn decline(
        &self,
        version: &RoomVersion,
        room: &RoomId,
        user: &UserId,
        invitation: &Invitation,
        clock: &dyn Clock,
    ) -> Result<Event, EventError> {
        let reference = |id: &EventId| Reference {
            id: id.clone(),
            hash: None,
        };
        let named = Reference {
            hash: Sealer::reference_hash(version, &invitation.json),
            ..reference(&invitation.id)
        };
        let mut auth: Vec<Reference> = invitation.auth.iter().map(reference).collect();
        auth.push(named.clone());
        // Where the create event is not named, its id is the room's.
        let create = version
            .is_create_hash_room_id
            .then(|| EventId::new(room.as_str().replacen('!', "$", 1)));
        let draft = Draft {
            room: Some(room),
            kind: MEMBER,
            sender: user,
            state_key: Some(user.as_str()),
            content: membership("leave"),
            depth: invitation.depth.saturating_add(1),
            prev: vec![named],
            auth,
            implied: create.as_ref(),
            at: clock.now(),
            replaces: Some(&invitation.id),
        };
        self.sealer.seal(version, draft)
    }
}

/// The content of a membership.
pub(super) fn membership(membership: &str) -> Map<String, Value> {
    Map::from_iter([("membership".to_owned(), membership.into())])
}

/// What cannot be made at all is refused before anything is touched.
pub(super) fn refusal(error: EventError) -> Error {
    match error {
        EventError::TooLarge => Error::bad(
            "M_TOO_LARGE",
            "the message or the room's name is too long: an event may have 65536 bytes",
        ),
        EventError::Form(what) => Error::Config(format!(
            "the new room cannot be made as default_power_level_content_override wants it: {what}"
        )),
        EventError::Broken(what) => Error::Bug(what),
        other => Error::Unsafe(format!(
            "{other}: shut the room down with the homeserver's own API, or delete it with --force-purge, which moves \
             nobody"
        )),
    }
}
