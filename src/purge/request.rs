//! What is asked of a purge, as the ledger keeps it.

use serde::{Deserialize, Serialize};

use crate::ids::RoomId;
use crate::point::Point;
use crate::store::history::DepthRange;
use crate::time::Millis;

/// A purge of one room's history. What lies at the point survives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Everything of lower depth goes; the stream part is for the record (P-1).
    pub point: Point,
    /// Whether local users' messages go as well.
    pub delete_local_events: bool,
    /// What this server received live after this stays, whatever its depth; of what was backfilled, what was also sent
    /// after it. How retention keeps `allowed_lifetime_min`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_received_after: Option<Millis>,
}

impl Request {
    /// What the whole of it takes; with `keep_extremities` forward extremities stay (P-51).
    pub(super) fn cut<'a>(
        &self,
        room: &'a RoomId,
        server_name: &'a str,
        keep_extremities: bool,
    ) -> DepthRange<'a> {
        DepthRange {
            room,
            from: i64::MIN,
            below: self.point.topological,
            delete_local_events: self.delete_local_events,
            server_name,
            keep_received_after: self.keep_received_after,
            keep_extremities,
        }
    }
}
