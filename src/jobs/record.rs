//! A job on record: what it is, and where it is in its life.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{JobId, RoomId};
use crate::policy::LifetimeRange;
use crate::time::Millis;

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Accepted, waiting for a worker; or interrupted, waiting for the next start.
    Queued,
    /// A worker has it.
    Running,
    /// Somebody has it paused: it goes on when somebody says so, not at a start.
    Paused,
    /// It would go on in another database than the one it was asked for: a person says whether it may (S-30).
    Waiting,
    /// Ended well.
    Complete,
    /// Ended with an error.
    Failed,
}

impl State {
    /// As it is written.
    pub fn text(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Waiting => "waiting",
            Self::Complete => "complete",
            Self::Failed => "failed",
        }
    }

    pub(super) fn of(text: &str) -> Self {
        match text {
            "queued" => Self::Queued,
            "running" => Self::Running,
            "paused" => Self::Paused,
            "waiting" => Self::Waiting,
            "complete" => Self::Complete,
            _ => Self::Failed,
        }
    }

    /// Whether the job is over.
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Complete | Self::Failed)
    }
}

/// What a job is done to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Subject {
    /// One room.
    #[serde(rename = "room_id")]
    Room(RoomId),
    /// Every room whose lifetime is in a range.
    #[serde(rename = "lifetimes")]
    Lifetimes(LifetimeRange),
    /// Rooms that were chosen, in words: `3 rooms (empty, not public)`.
    #[serde(rename = "rooms")]
    Rooms(String),
    /// The whole server.
    #[serde(rename = "server")]
    Server {},
}

impl Subject {
    /// The room, if it is one.
    pub fn room(&self) -> Option<&RoomId> {
        match self {
            Self::Room(room) => Some(room),
            Self::Lifetimes(_) | Self::Rooms(_) | Self::Server {} => None,
        }
    }

    /// As two columns of the ledger: which of these it is, and the rest.
    pub(super) fn columns(&self) -> (&'static str, String) {
        let bound = |bound: Option<Millis>| bound.map_or_else(String::new, |ms| ms.0.to_string());
        match self {
            Self::Room(room) => ("room", room.as_str().to_owned()),
            Self::Lifetimes(range) => (
                "lifetimes",
                format!("{}..{}", bound(range.shortest), bound(range.longest)),
            ),
            Self::Rooms(words) => ("rooms", words.clone()),
            Self::Server {} => ("server", String::new()),
        }
    }

    pub(super) fn of_columns(kind: &str, text: &str) -> Self {
        let bound = |text: &str| text.parse().ok().map(Millis);
        match (kind, text.split_once("..")) {
            ("lifetimes", Some((shortest, longest))) => Self::Lifetimes(LifetimeRange {
                shortest: bound(shortest),
                longest: bound(longest),
            }),
            ("rooms", _) => Self::Rooms(text.to_owned()),
            ("server", _) => Self::Server {},
            _ => Self::Room(RoomId::from(text)),
        }
    }
}

/// For people.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Room(room) => write!(f, "room {room}"),
            Self::Lifetimes(range) => write!(f, "rooms with {range}"),
            Self::Rooms(words) => f.write_str(words),
            Self::Server {} => f.write_str("the server"),
        }
    }
}

/// One job, as the ledger has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its id.
    pub id: JobId,
    /// What it does: `purge_history`, …
    pub kind: String,
    /// What it does it to: `room_id`, `lifetimes`, `rooms` or `server`.
    #[serde(flatten)]
    pub subject: Subject,
    /// Where it is in its life.
    pub state: State,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Which of our errors that is, for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    /// Why it does not go on by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
    /// Who asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_by: Option<String>,
    /// What was asked.
    pub params: Value,
    /// How far it is, or what it did.
    pub progress: Value,
    /// When it was accepted.
    pub created_ms: Millis,
    /// When a worker first took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<Millis>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<Millis>,
}

impl JobRecord {
    /// A job of which nothing is done, with an id of its own and no parameters.
    pub fn new(kind: &str, subject: &Subject, created_ms: Millis) -> Self {
        Self {
            id: JobId::random(),
            kind: kind.to_owned(),
            subject: subject.clone(),
            state: State::Queued,
            error: None,
            error_code: None,
            waits: None,
            asked_by: None,
            params: Value::Null,
            progress: Value::Null,
            created_ms,
            started_ms: None,
            ended_ms: None,
        }
    }
}
