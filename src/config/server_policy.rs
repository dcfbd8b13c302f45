//! Policies of the server's own, by the life of a room: *start × period × what*.

use serde::{Deserialize, Serialize};

use crate::selectors::Selectors;
use crate::time::Millis;

/// One policy of `roomkeeper.policies`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerPolicy {
    /// Its name, which is unique.
    pub name: String,
    /// What goes.
    pub what: PolicyWhat,
    /// From when the period counts.
    pub start: PolicyStart,
    /// How long after that it goes.
    pub after: Millis,
    /// For so long after the start nothing of it goes, whichever of our policies would take it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_least: Option<Millis>,
    /// Of which rooms; all where nothing is said.
    #[serde(flatten)]
    pub selectors: Selectors,
    /// Whether it also takes rooms that have a policy of their own.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub override_rooms: bool,
    /// Whether it also deletes rooms that people of this server are in, or are invited to: they are moved out.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub even_with_members: bool,
}

/// What a policy takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyWhat {
    /// The room with everything in it.
    Room,
    /// Its messages.
    Messages,
}

/// From when the period of a policy counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyStart {
    /// The newest message of the room came; where it holds none, its newest event that is no membership. Somebody of this
    /// server who joins for the first time is like a message. Where events are missing after that message (a purge took
    /// them), any newer event counts.
    LastMessage,
    /// The last one of this server who was in the room left it, or was thrown out.
    LastLeave,
    /// We first saw that everybody of this server who left the room has forgotten it, and not before the last of them left:
    /// Synapse keeps no time of forgetting.
    LastForget,
    /// A message was received.
    Received,
}

impl PolicyStart {
    /// The word for it in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Self::LastMessage => "last_message",
            Self::LastLeave => "last_leave",
            Self::LastForget => "last_forget",
            Self::Received => "received",
        }
    }
}

impl ServerPolicy {
    /// In a few words: `rooms, 26w after last_message`.
    pub fn in_words(&self) -> String {
        let what = match self.what {
            PolicyWhat::Room => "rooms",
            PolicyWhat::Messages => "messages",
        };
        let which = match self.selectors.is_everything() {
            true => String::new(),
            false => format!(" ({})", self.selectors),
        };
        format!(
            "{what}{which}, {} after {}",
            self.after.in_words(),
            self.start.word()
        )
    }
}
