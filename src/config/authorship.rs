//! What this server's own events are made with: its signing key, and how it makes rooms.

use std::fs;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::Secret;
use crate::error::Error;
use crate::event::Keys;

/// Where the signing key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SigningKey {
    /// In a file of Synapse's form (`signing_key_path`).
    File(PathBuf),
    /// In the configuration itself (`signing_key`).
    Text(Secret),
}

/// What a shutdown's events are made with, as the homeserver's configuration says.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Authorship {
    /// The signing key; without one, no events can be made.
    pub signing_key: Option<SigningKey>,
    /// `default_room_version`; without, that of the release that wrote the database, as far as it can be told.
    pub room_version: Option<String>,
    /// Whether every room is made encrypted (`encryption_enabled_by_default_for_room_type: all`).
    pub encrypts_rooms: bool,
    /// `default_power_level_content_override.public_chat`.
    pub power_levels: Map<String, Value>,
}

impl Authorship {
    /// Reads the signing key.
    ///
    /// # Errors
    /// [`Error::Unsafe`] when there is none, with what to do. The key is in no message.
    pub fn keys(&self) -> Result<Keys, Error> {
        let refused = |what: String| {
            Error::Unsafe(format!(
                "{what}; leaves and new rooms are signed with the homeserver's own key. Say where it is (-c with the \
                 homeserver's own configuration: signing_key_path), or delete with --force-purge, which moves nobody"
            ))
        };
        let text = match &self.signing_key {
            None => return Err(refused("no signing key is configured".into())),
            Some(SigningKey::Text(text)) => text.reveal().to_owned(),
            Some(SigningKey::File(path)) => fs::read_to_string(path).map_err(|e| {
                refused(format!("the signing key {} cannot be read: {e}", path.display()))
            })?,
        };
        Keys::parse(&text).map_err(|e| refused(e.to_string()))
    }
}
