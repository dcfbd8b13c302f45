//! What is asked of a deletion, and what its shutdown did; both as the ledger keeps them.

use serde::{Deserialize, Serialize};

use crate::ids::{RoomId, UserId};
use crate::job::MediaFate;

/// The name of the new room, where none is given (D-1).
pub const DEFAULT_ROOM_NAME: &str = "Content Violation Notification";

/// The notice in the new room, where none is given (D-1).
pub const DEFAULT_MESSAGE: &str = "Sharing illegal content on this server is not permitted and rooms in violation will be blocked.";

/// A deletion of one room: what happens to its members, and whether its rows go (H-40).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Request {
    /// Who asked; recorded as the blocker (D-4) and as the creator of the moved aliases (D-10).
    pub requester: Option<UserId>,
    /// The local user who makes the new room; no user, no new room (D-6).
    pub new_room_user_id: Option<UserId>,
    /// The new room's name; absent or empty means [`DEFAULT_ROOM_NAME`].
    pub room_name: Option<String>,
    /// The notice in the new room; absent or empty means [`DEFAULT_MESSAGE`].
    pub message: Option<String>,
    /// Whether nobody may join the room again.
    pub block: bool,
    /// Whether the room's rows go; without it only its people do.
    pub purge: bool,
    /// Whether they go even while local users are joined.
    pub force_purge: bool,
    /// What becomes of media that nothing but the room's events refers to.
    #[serde(skip_serializing_if = "MediaFate::is_stay")]
    pub media: MediaFate,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            requester: None,
            new_room_user_id: None,
            room_name: None,
            message: None,
            block: false,
            purge: true,
            force_purge: false,
            media: MediaFate::Stay,
        }
    }
}

impl Request {
    /// The new room's name, with its default (D-1).
    pub fn room_name(&self) -> &str {
        given(self.room_name.as_deref()).unwrap_or(DEFAULT_ROOM_NAME)
    }

    /// The notice, with its default (D-1).
    pub fn message(&self) -> &str {
        given(self.message.as_deref()).unwrap_or(DEFAULT_MESSAGE)
    }
}

fn given(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

/// What shutting a room down did, or has done so far, in Synapse's words (S-6).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shutdown {
    /// Local users who were in the room and are not any more.
    pub kicked_users: Vec<UserId>,
    /// Local users who could not be moved.
    pub failed_to_kick_users: Vec<UserId>,
    /// The aliases that lead to the new room now.
    pub local_aliases: Vec<String>,
    /// The new room.
    pub new_room_id: Option<RoomId>,
}
