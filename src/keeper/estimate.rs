//! What a plan would come to in bytes and in time, for people who decide by that.

use serde::{Deserialize, Serialize};

use super::kind::JobKind;
use super::room_set::ROOM_SET;
use super::room_set_plan::{DELETIONS, PURGES};
use super::viewer::{Viewer, recorded_jobs};
use crate::error::Error;
use crate::job::Progress;
use crate::jobs::ledger::{JobRecord, State};
use crate::store::event_rows::RowCounts;
use crate::store::{sizes, space};

/// Rows that must have been removed before a rate is one.
const ROWS_OF_A_RATE: i64 = 1_000;

/// What the removal of rows would come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    /// Bytes that would be free inside the database afterwards.
    pub bytes: i64,
    /// Bytes that the database takes now.
    pub database_bytes: i64,
    /// Rows a second that earlier jobs of this sort removed here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_per_second: Option<i64>,
    /// Seconds that it would take at that rate; nothing where none was measured here yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<i64>,
}

impl Viewer {
    /// What a purge that removes these rows would come to, by what is known of the tables and of earlier jobs. Reads only; a
    /// ledger that cannot be read now leaves the time unknown.
    ///
    /// # Errors
    /// Those of the database.
    pub fn estimate_purge(&self, rows: &RowCounts) -> Result<Estimate, Error> {
        self.estimate(rows, &PURGES, "purge_history")
    }

    /// The same of the deletion of a room.
    ///
    /// # Errors
    /// Those of the database.
    pub fn estimate_deletion(&self, rows: &RowCounts) -> Result<Estimate, Error> {
        self.estimate(rows, &DELETIONS, "delete_room")
    }

    fn estimate(
        &self,
        rows: &RowCounts,
        kinds: &[&JobKind],
        action: &str,
    ) -> Result<Estimate, Error> {
        let jobs = recorded_jobs(&self.config).ok().flatten();
        let rate = jobs.and_then(|jobs| rate(&jobs, kinds, action));
        let count: i64 = rows.values().sum();
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        Ok(Estimate {
            bytes: sizes::bytes_of_rows(&self.db, rows)?,
            database_bytes: bytes(space::database_bytes(&self.db)?),
            rows_per_second: rate.map(|rate| rate as i64),
            seconds: rate.map(|rate| (count as f64 / rate).ceil() as i64),
        })
    }
}

/// Rows a second that jobs which do the same have removed here; nothing before they have removed enough to tell.
pub(super) fn rate(jobs: &[JobRecord], kinds: &[&JobKind], action: &str) -> Option<f64> {
    let (mut rows, mut millis) = (0, 0);
    for job in jobs {
        let does_the_same = kinds.iter().any(|kind| kind.name == job.kind)
            || (job.kind == ROOM_SET.name && job.params["action"] == action);
        if let (State::Complete, true, Some(from), Some(to)) =
            (job.state, does_the_same, job.started_ms, job.ended_ms)
        {
            let did: Progress = serde_json::from_value(job.progress.clone()).unwrap_or_default();
            rows += did.rows_removed.values().sum::<i64>();
            millis += (to - from).0.max(0);
        }
    }
    (rows >= ROWS_OF_A_RATE && millis > 0).then(|| rows as f64 * 1_000.0 / millis as f64)
}
