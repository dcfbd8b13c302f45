//! What this server's own events are made with: its signing key, and how it makes rooms.

use std::fs;
#[cfg(feature = "daemon")]
use std::path::Path;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::Secret;
#[cfg(feature = "daemon")]
use super::secrets;
#[cfg(feature = "daemon")]
use super::values::{text, wrong};
#[cfg(feature = "daemon")]
use super::yaml;
use crate::error::Error;
use crate::event::SigningKeys;

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
pub struct EventSigning {
    /// The signing key; without one, no events can be made.
    pub signing_key: Option<SigningKey>,
    /// `default_room_version`; without, that of the release that wrote the database, as far as it can be told.
    pub room_version: Option<String>,
    /// Whether every room is made encrypted (`encryption_enabled_by_default_for_room_type: all`).
    pub encrypts_rooms: bool,
    /// `default_power_level_content_override.public_chat`.
    pub power_levels: Map<String, Value>,
}

impl EventSigning {
    /// Reads the signing key.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is none, with what to do. The key is in no message.
    pub fn keys(&self) -> Result<SigningKeys, Error> {
        let refused = |what: String| {
            Error::Refused(format!(
                "{what}; leaves and new rooms are signed with the homeserver's own key. Say where it is (-c with the \
                 homeserver's own configuration: signing_key_path), or delete with --force-purge, which moves nobody"
            ))
        };
        let text = match &self.signing_key {
            None => return Err(refused("no signing key is configured".into())),
            Some(SigningKey::Text(text)) => text.reveal().to_owned(),
            Some(SigningKey::File(path)) => fs::read_to_string(path).map_err(|e| {
                refused(format!(
                    "the signing key {} cannot be read: {e}",
                    path.display()
                ))
            })?,
        };
        SigningKeys::parse(&text).map_err(|e| refused(e.to_string()))
    }
}

#[cfg(feature = "daemon")]
const LEVELS: &str = "default_power_level_content_override.public_chat";

/// What Synapse's keys say of it. Relative paths start where Synapse starts them, in the working directory; where there
/// is no such file, beside the first configuration file.
///
/// # Errors
/// [`Error::Config`] with the key and what would do.
#[cfg(feature = "daemon")]
pub(super) fn read(
    keys: &yaml::Map,
    directory: &Path,
    server_name: &str,
) -> Result<EventSigning, Error> {
    let inline = text(keys, "signing_key")?;
    let signing_key = match (inline, text(keys, "signing_key_path")?) {
        (Some(key), _) => Some(SigningKey::Text(Secret::new(key))),
        (None, Some(path)) => {
            let beside = directory.join(&path);
            let path = PathBuf::from(path);
            let is_beside = !path.exists() && beside.exists();
            Some(SigningKey::File(if is_beside { beside } else { path }))
        }
        // Where Synapse makes it when nothing is said.
        (None, None) => {
            let path = directory.join(format!("{server_name}.signing.key"));
            path.exists().then_some(SigningKey::File(path))
        }
    };
    let room_version = text(keys, "default_room_version")?;
    let encrypts = keys.get("encryption_enabled_by_default_for_room_type");
    let levels = keys
        .get("default_power_level_content_override")
        .and_then(|presets| presets.get("public_chat"));
    let power_levels = match levels.filter(|levels| !levels.is_null()) {
        None => Map::new(),
        Some(levels) => {
            let wrong = |wanted| wrong(LEVELS, levels, wanted);
            match levels.to_json().map_err(|_| wrong("a block of levels"))? {
                Value::Object(levels) => levels,
                _ => return Err(wrong("a block of levels")),
            }
        }
    };
    if let Some(SigningKey::File(path)) = &signing_key
        && let Some(said) = secrets::everybody_reads("signing_key_path", path)
        && let Some(at) = keys.get("signing_key_path").or(keys.get("server_name"))
    {
        at.warn(said);
    }
    Ok(EventSigning {
        signing_key,
        room_version,
        encrypts_rooms: encrypts.and_then(yaml::Value::as_str) == Some("all"),
        power_levels,
    })
}

#[cfg(all(test, feature = "daemon"))]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_in(directory: &Path, keys: Value) -> Result<EventSigning, Error> {
        let keys = yaml::Value::from_json(&keys);
        read(keys.as_map().expect("keys"), directory, "example.org")
    }

    #[test]
    fn the_homeservers_own_keys_say_how_rooms_are_made() {
        let keys = json!({
            "signing_key": "ed25519 a_x AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
            "default_room_version": 9,
            "encryption_enabled_by_default_for_room_type": "all",
            "default_power_level_content_override": {"public_chat": {"ban": 99}, "private_chat": {"ban": 1}},
        });
        let found = read_in(Path::new("/nowhere"), keys).expect("read");
        assert_eq!(found.room_version.as_deref(), Some("9"));
        assert!(found.encrypts_rooms);
        assert_eq!(found.power_levels["ban"], json!(99));
        assert_eq!(found.keys().expect("a key").id(), "ed25519:a_x");
        assert!(!format!("{found:?}").contains("AAEC"));
        assert!(read_in(Path::new("/"), json!({"default_room_version": []})).is_err());
    }

    #[test]
    fn a_key_is_found_where_the_homeserver_makes_it_and_missed_with_advice() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("example.org.signing.key");
        assert_eq!(
            read_in(directory.path(), json!({}))
                .expect("read")
                .signing_key,
            None
        );
        std::fs::write(&path, "ed25519 1 nonsense").expect("written");
        let found = read_in(directory.path(), json!({})).expect("read");
        assert_eq!(found.signing_key, Some(SigningKey::File(path)));
        let said = found.keys().expect_err("no key").to_string();
        assert!(
            said.contains("--force-purge") && !said.contains("nonsense"),
            "{said}"
        );
        let named = json!({"signing_key_path": "example.org.signing.key"});
        let named = read_in(directory.path(), named).expect("read");
        assert_eq!(named.signing_key, found.signing_key);
        let none = EventSigning::default().keys().expect_err("none");
        assert_eq!(none.class().exit, crate::error::EXIT_REFUSED);
    }
}
