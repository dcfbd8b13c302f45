//! Hashes, id and signature: what makes an event out of a [`EventBuilder`].
//!
//! `ruma-signatures` does the cryptography and knows the canonical form; none of its types is seen from outside.

/// Whose signature an event of this server bears, held against the key that is to sign the next ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signed {
    /// This key's.
    ByThis,
    /// That of a key of another name: keys are changed now and then.
    ByAnother(String),
    /// One under this key's name that is not this key's.
    NotByThis,
}

use serde_json::{Map, Value, json};

use super::{CREATE, Event, EventBuilder, EventError, MAX_BYTES, Reference, SigningKeys};
use crate::ids::{EventId, random_letters};
use crate::room_version::{IdForm, RoomVersion};

#[cfg(feature = "events")]
pub use self::made::EventSigner;
#[cfg(not(feature = "events"))]
pub use self::missing::EventSigner;

/// Letters of an event's id that stands for no hash.
const ID_LETTERS: usize = 43;

/// The members of an event, `event_id`, `hashes` and `signatures` apart (D-40).
fn fields(version: &RoomVersion, draft: &EventBuilder<'_>) -> Map<String, Value> {
    let pairs = version.ids == IdForm::Chosen;
    let names = |references: &[Reference]| -> Value {
        references
            .iter()
            .map(|reference| match (pairs, &reference.hash) {
                (false, _) => json!(reference.id),
                (true, Some(hash)) => json!([reference.id, {"sha256": hash}]),
                (true, None) => json!([reference.id, {}]),
            })
            .collect()
    };
    let mut unsigned = json!({"age_ts": draft.at});
    if let Some(replaced) = draft.replaces {
        unsigned["replaces_state"] = json!(replaced);
    }
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    let stated = draft
        .auth
        .iter()
        .filter(|r| Some(&r.id) != draft.create_event_id);
    let stated: Vec<Reference> = stated.cloned().collect();
    set("auth_events", names(&stated));
    set("content", Value::Object(draft.content.clone()));
    set("depth", json!(draft.depth));
    set("origin_server_ts", json!(draft.at));
    set("prev_events", names(&draft.prev));
    set("sender", json!(draft.sender));
    set("type", json!(draft.kind));
    set("unsigned", unsigned);
    if let Some(key) = draft.state_key {
        set("state_key", json!(key));
    }
    if let Some(room) = draft.room
        && !(version.is_create_hash_room_id && draft.kind == CREATE)
    {
        set("room_id", json!(room));
    }
    fields
}

impl EventBuilder<'_> {
    /// Makes an event that is neither hashed nor signed, with an id of its own: one that stays in this database, because no
    /// server would accept it.
    ///
    /// # Errors
    /// [`EventError::TooLarge`].
    pub fn unsigned(self, version: &RoomVersion, server: &str) -> Result<Event, EventError> {
        let letters = random_letters(ID_LETTERS);
        let is_chosen = version.ids == IdForm::Chosen;
        let id = EventId::new(match is_chosen {
            true => format!("${letters}:{server}"),
            false => format!("${letters}"),
        });
        let mut object = fields(version, &self);
        if is_chosen {
            object.insert("event_id".into(), json!(id));
        }
        object.insert("hashes".into(), json!({}));
        object.insert("signatures".into(), json!({}));
        let json = Value::Object(object).to_string();
        if json.len() > MAX_BYTES {
            return Err(EventError::TooLarge);
        }
        let ids = |references: &[Reference]| references.iter().map(|r| r.id.clone()).collect();
        let Some(room) = self.room.cloned() else {
            return Err(EventError::Form("its room is not known".into()));
        };
        Ok(Event {
            id,
            room,
            kind: self.kind.to_owned(),
            sender: self.sender.clone(),
            state_key: self.state_key.map(str::to_owned),
            prev: ids(&self.prev),
            auth: ids(&self.auth),
            content: self.content,
            depth: self.depth,
            at: self.at,
            json,
            format: version.event_format,
            hash: letters,
        })
    }
}

#[cfg(not(feature = "events"))]
mod missing {
    use super::{Event, EventBuilder, EventError, RoomVersion, Signed, SigningKeys};

    /// Makes no events: the feature `events` is not in this build.
    pub enum EventSigner {}

    impl EventSigner {
        /// # Errors
        /// [`EventError::NotBuilt`], always.
        pub fn new(_server: &str, keys: &SigningKeys) -> Result<Self, EventError> {
            let _ = keys.version();
            Err(EventError::NotBuilt)
        }

        /// Never called: there is no `EventSigner`.
        pub fn sign(&self, _: &RoomVersion, _: EventBuilder<'_>) -> Result<Event, EventError> {
            match *self {}
        }

        /// As [`EventSigner::sign`].
        pub fn signed(&self, _: &RoomVersion, _: &str) -> Option<Signed> {
            match *self {}
        }

        /// As [`EventSigner::sign`].
        pub fn can_write(_: &RoomVersion) -> bool {
            false
        }

        /// As [`EventSigner::sign`].
        pub fn reference_hash(_: &RoomVersion, _: &str) -> Option<String> {
            None
        }
    }
}

#[cfg(feature = "events")]
mod made {
    use std::collections::BTreeMap;

    use ruma_common::RoomVersionId;
    use ruma_common::canonical_json::try_from_json_map;
    use ruma_common::room_version_rules::RoomVersionRules;
    use ruma_common::serde::Base64;
    use ruma_common::{CanonicalJsonObject, CanonicalJsonValue};
    use ruma_signatures::{
        Ed25519KeyPair, PublicKeyMap, Verified, hash_and_sign_event, reference_hash, verify_event,
        verify_json,
    };
    use serde_json::{Map, Value};

    use super::{
        Event, EventBuilder, EventError, MAX_BYTES, Reference, RoomVersion, Signed, SigningKeys,
        fields,
    };
    use crate::ids::{EventId, RoomId, random_letters};
    use crate::room_version::IdForm;

    /// PKCS#8's words before the seed of an ed25519 key.
    const DER_BEFORE_SEED: [u8; 16] = [
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04,
        0x20,
    ];

    /// Letters of an event id that its sender chooses (room versions 1 and 2).
    const CHOSEN_LETTERS: usize = 18;

    /// Makes events in a server's name.
    pub struct EventSigner {
        server: String,
        key: String,
        pair: Ed25519KeyPair,
        public: PublicKeyMap,
    }

    impl EventSigner {
        /// Takes up a server's key.
        ///
        /// # Errors
        /// [`EventError::Key`] when it is none.
        pub fn new(server: &str, keys: &SigningKeys) -> Result<Self, EventError> {
            let document: Vec<u8> = DER_BEFORE_SEED.iter().chain(keys.seed()).copied().collect();
            let pair = Ed25519KeyPair::from_der(&document, keys.version().to_owned())
                .map_err(|_| EventError::Key("the signing key is no ed25519 key".into()))?;
            let public = Base64::new(pair.public_key().to_vec());
            let public = BTreeMap::from([(keys.id(), public)]);
            Ok(Self {
                server: server.to_owned(),
                key: keys.id(),
                pair,
                public: BTreeMap::from([(server.to_owned(), public)]),
            })
        }

        /// Whether events of this room version can be made.
        pub fn can_write(version: &RoomVersion) -> bool {
            rules(version).is_ok()
        }

        /// Makes an event: content hash, reference hash, id and signature; and tests it (see [`EventSigner::test`]).
        ///
        /// # Errors
        /// Whatever is wrong with the draft; [`EventError::Broken`] when the event does not stand its test.
        pub fn sign(
            &self,
            version: &RoomVersion,
            draft: EventBuilder<'_>,
        ) -> Result<Event, EventError> {
            let rules = rules(version)?;
            let mut object = canonical(fields(version, &draft))?;
            let chosen = (version.ids == IdForm::Chosen)
                .then(|| format!("${}:{}", random_letters(CHOSEN_LETTERS), self.server));
            if let Some(id) = &chosen {
                object.insert("event_id".into(), CanonicalJsonValue::String(id.clone()));
            }
            let unsigned = object.remove("unsigned");
            hash_and_sign_event(&self.server, &self.pair, &mut object, &rules.redaction)
                .map_err(explain)?;
            let hash = reference_hash(&object, &rules).map_err(explain)?;
            let id = chosen.unwrap_or_else(|| format!("${hash}"));
            object.extend(unsigned.map(|unsigned| ("unsigned".to_owned(), unsigned)));
            let json = serde_json::to_string(&object).map_err(form)?;
            if json.len() > MAX_BYTES {
                return Err(EventError::TooLarge);
            }
            let room = match draft.room {
                Some(room) => room.clone(),
                None => RoomId::new(format!("!{hash}")),
            };
            let ids = |references: &[Reference]| references.iter().map(|r| r.id.clone()).collect();
            let event = Event {
                id: EventId::new(id),
                room,
                kind: draft.kind.to_owned(),
                sender: draft.sender.clone(),
                state_key: draft.state_key.map(str::to_owned),
                prev: ids(&draft.prev),
                auth: ids(&draft.auth),
                content: draft.content,
                depth: draft.depth,
                at: draft.at,
                json,
                format: version.event_format,
                hash,
            };
            self.test(version, &event.id, &event.json)?;
            Ok(event)
        }

        /// Tests an event as another server would: from its JSON, its id is computed anew, and its content hash and our
        /// signature are verified.
        ///
        /// # Errors
        /// [`EventError::Broken`] with what is wrong.
        pub fn test(
            &self,
            version: &RoomVersion,
            id: &EventId,
            json: &str,
        ) -> Result<(), EventError> {
            let rules = rules(version)?;
            let broken = |what: String| EventError::Broken(format!("event {id}: {what}"));
            let object: CanonicalJsonObject =
                serde_json::from_str(json).map_err(|e| broken(e.to_string()))?;
            let expected = match version.ids {
                IdForm::Chosen => object.get("event_id").and_then(CanonicalJsonValue::as_str),
                IdForm::HashStandard | IdForm::HashUrlSafe => None,
            };
            let expected = match expected {
                Some(id) => id.to_owned(),
                None => format!("${}", reference_hash(&object, &rules).map_err(explain)?),
            };
            if expected != id.as_str() {
                return Err(broken(format!("its id should be {expected}")));
            }
            match verify_event(&self.public, &object, &rules) {
                Ok(Verified::All) => Ok(()),
                Ok(_) => Err(broken("its content hash is wrong".into())),
                Err(e) => Err(broken(e.to_string())),
            }
        }

        /// Whose signature of this server an event that is held bears. Nothing where it bears none, or where its JSON is
        /// not what servers of today would accept.
        pub fn signed(&self, version: &RoomVersion, json: &str) -> Option<Signed> {
            let event: Map<String, Value> = serde_json::from_str(json).ok()?;
            let redacted = version.redact(&event);
            let ours = event.get("signatures")?.get(&self.server)?.as_object()?;
            if !ours.contains_key(&self.key) {
                return ours.keys().next().cloned().map(Signed::ByAnother);
            }
            match verify_json(&self.public, &canonical(redacted).ok()?) {
                Ok(()) => Some(Signed::ByThis),
                Err(_) => Some(Signed::NotByThis),
            }
        }

        /// The reference hash of an event that is held; none where its JSON is not what servers of today would accept
        /// (numbers that are no integers, in old rooms).
        pub fn reference_hash(version: &RoomVersion, json: &str) -> Option<String> {
            let event: Map<String, Value> = serde_json::from_str(json).ok()?;
            let mut redacted = canonical(version.redact(&event)).ok()?;
            redacted.remove("signatures");
            reference_hash(&redacted, &rules(version).ok()?).ok()
        }
    }

    fn rules(version: &RoomVersion) -> Result<RoomVersionRules, EventError> {
        let unknown = || EventError::RoomVersion(version.name.to_owned());
        if version.name.parse::<u8>().is_err() {
            return Err(unknown());
        }
        let id = RoomVersionId::try_from(version.name).map_err(|_| unknown())?;
        id.rules().ok_or_else(unknown)
    }

    fn canonical(fields: Map<String, Value>) -> Result<CanonicalJsonObject, EventError> {
        try_from_json_map(fields).map_err(form)
    }

    fn form(error: impl std::fmt::Display) -> EventError {
        EventError::Form(error.to_string())
    }

    fn explain(error: ruma_signatures::Error) -> EventError {
        match error {
            ruma_signatures::Error::PduSize => EventError::TooLarge,
            other => EventError::Form(other.to_string()),
        }
    }
}
