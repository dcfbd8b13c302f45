//! A job on record: what it is, and where it is in its life.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::JobId;
use crate::time::Millis;

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Accepted, waiting for a worker; or interrupted, waiting for the next start.
    Queued,
    /// A worker has it.
    Running,
    /// Ended well.
    Complete,
    /// Ended with an error.
    Failed,
}

impl State {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Failed => "failed",
        }
    }

    pub(super) fn of(text: &str) -> Self {
        match text {
            "queued" => Self::Queued,
            "running" => Self::Running,
            "complete" => Self::Complete,
            _ => Self::Failed,
        }
    }

    /// Whether the job is over.
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Complete | Self::Failed)
    }
}

/// One job, as the ledger has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its id.
    pub id: JobId,
    /// What it does: `purge_history`, …
    pub kind: String,
    /// What it does it to: a room id.
    #[serde(rename = "room_id")]
    pub subject: String,
    /// Where it is in its life.
    pub state: State,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What was asked.
    pub params: Value,
    /// How far it is, or what it did.
    pub progress: Value,
    /// When it was accepted.
    pub created_ms: Millis,
    /// When a worker first took it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<Millis>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<Millis>,
}
