//! Who makes a shutdown's events: this server, with its key, in the name of its users.

use serde_json::{Map, Value};

use crate::config::EventSigning;
use crate::error::Error;
use crate::event::auth::auth_event_keys;
use crate::event::{
    CREATE, Event, EventBuilder, EventError, EventSigner, MEMBER, Reference, Signed,
};
use crate::ids::{EventId, RoomId, UserId};
use crate::room_version::RoomVersion;
use crate::store::append::{EventWriter, RoomHead};
use crate::store::db::Db;
use crate::store::members::Invitation;
use crate::store::own_events::own_events;
use crate::time::{Clock, Millis};

/// What makes the events of one shutdown.
pub(super) struct EventAuthor {
    signer: EventSigner,
    /// What a person should know of the key, where there is something.
    pub note: Option<String>,
}

/// An event to be said at the end of a room.
pub(super) struct NewEvent<'a> {
    pub kind: &'a str,
    pub sender: &'a UserId,
    pub state_key: Option<&'a str>,
    pub content: Map<String, Value>,
}

impl EventAuthor {
    /// Takes up the server's signing key, and holds it against what the server has signed.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is none, it is none, or it is not this server's.
    pub fn of(
        db: &Db,
        event_signing: &EventSigning,
        server_name: &str,
        room: &RoomId,
    ) -> Result<Self, Error> {
        let keys = event_signing.keys()?;
        let signer = EventSigner::new(server_name, &keys).map_err(refusal)?;
        let note = compare(db, &signer, &keys.id(), server_name, room)?;
        Ok(Self { signer, note })
    }

    /// Makes the first event of a room, said at `at`; where its hash is the room's id, `room` is absent.
    pub fn open(
        &self,
        version: &RoomVersion,
        room: Option<&RoomId>,
        saying: NewEvent<'_>,
        at: Millis,
    ) -> Result<Event, EventError> {
        let draft = EventBuilder {
            room,
            kind: saying.kind,
            sender: saying.sender,
            state_key: saying.state_key,
            content: saying.content,
            depth: 1,
            prev: Vec::new(),
            auth: Vec::new(),
            create_event_id: None,
            at,
            replaces: None,
        };
        self.signer.sign(version, draft)
    }

    /// Says something at the end of a room. The inner error says that nothing was said, and why; it is the sayer's own
    /// affair.
    pub fn create(
        &self,
        db: &Db,
        arrival: &mut EventWriter<'_>,
        room_head: &mut RoomHead,
        saying: NewEvent<'_>,
        clock: &dyn Clock,
    ) -> Result<Result<(), EventError>, Error> {
        let sender = saying.sender.as_str();
        let membership = match saying.kind {
            MEMBER => saying.content.get("membership").and_then(Value::as_str),
            _ => None,
        };
        let keys = auth_event_keys(saying.kind, sender, saying.state_key, membership);
        let auth = room_head.auth_event_keys(db, &keys)?;
        let prev = room_head.prev(db)?;
        let version = room_head.version();
        let create = room_head.state(CREATE, "").cloned();
        let replaces = saying
            .state_key
            .and_then(|key| room_head.state(saying.kind, key))
            .cloned();
        let draft = EventBuilder {
            room: Some(room_head.room()),
            kind: saying.kind,
            sender: saying.sender,
            state_key: saying.state_key,
            content: saying.content,
            depth: room_head.next_depth(),
            prev,
            auth,
            create_event_id: create.as_ref().filter(|_| version.is_create_hash_room_id),
            at: clock.now(),
            replaces: replaces.as_ref(),
        };
        match self.signer.sign(version, draft) {
            Ok(event) => arrival.append(room_head, &event).map(Ok),
            Err(e) => Ok(Err(e)),
        }
    }

    /// Makes the refusal of an invitation into a room that this server is not in: it follows the invitation, and is
    /// allowed by what allowed that, and by the invitation itself.
    pub fn reject_invite(
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
            hash: EventSigner::reference_hash(version, &invitation.json),
            ..reference(&invitation.id)
        };
        let mut auth: Vec<Reference> = invitation.auth.iter().map(reference).collect();
        auth.push(named.clone());
        // Where the create event is not named, its id is the room's.
        let create = version
            .is_create_hash_room_id
            .then(|| EventId::new(room.as_str().replacen('!', "$", 1)));
        let draft = EventBuilder {
            room: Some(room),
            kind: MEMBER,
            sender: user,
            state_key: Some(user.as_str()),
            content: membership("leave"),
            depth: invitation.depth.saturating_add(1),
            prev: vec![named],
            auth,
            create_event_id: create.as_ref(),
            at: clock.now(),
            replaces: Some(&invitation.id),
        };
        self.signer.sign(version, draft)
    }
}

/// Other servers would reject what a wrong key signs, and nobody here would hear of it: the newest event of this server
/// that shows one tells which key it has. A changed key is none that is wrong.
fn compare(
    db: &Db,
    signer: &EventSigner,
    key: &str,
    server_name: &str,
    room: &RoomId,
) -> Result<Option<String>, Error> {
    for own in own_events(db, server_name, room)? {
        let version = own.version.as_deref().and_then(RoomVersion::of);
        let signed = version.and_then(|version| signer.signed(version, &own.json));
        match signed {
            None => {}
            Some(Signed::ByThis) => return Ok(None),
            Some(Signed::ByAnother(other)) => {
                return Ok(Some(format!(
                    "the signing key is {key}, and this server signed its event {} with {other}: other servers accept \
                     what the new key signs only where the homeserver has published it",
                    own.id
                )));
            }
            Some(Signed::NotByThis) => {
                return Err(refusal(EventError::Key(format!(
                    "the signing key {key} is not this server's: its event {} is signed under that name with another key",
                    own.id
                ))));
            }
        }
    }
    Ok(None)
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
        other => Error::Refused(format!(
            "{other}: shut the room down with the homeserver's own API, or delete it with --force-purge, which moves \
             nobody"
        )),
    }
}
