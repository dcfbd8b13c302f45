//! What is asked of a purge, as the ledger keeps it.

use serde::{Deserialize, Serialize};

use crate::point::Point;

/// A purge of one room's history. What lies at the point survives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Everything of lower depth goes; the stream part is for the record (P-1).
    pub point: Point,
    /// Whether local users' messages go as well.
    pub delete_local_events: bool,
}
