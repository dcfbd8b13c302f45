//! What is asked of a purge, as the ledger keeps it.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::hold::HeldEvents;
use crate::ids::RoomId;
use crate::job::MediaFate;
use crate::point::Point;
use crate::store::db::Db;
use crate::store::expiry::Expiry;
use crate::store::history::DepthRange;
use crate::time::Millis;

/// A purge of one room's history. What lies at the point survives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Everything of lower depth goes; the stream part is for the record (P-1).
    pub point: Point,
    /// Whether local users' messages go as well.
    pub delete_local_events: bool,
    /// What becomes of media that nothing but the events refers to which go.
    #[serde(default, skip_serializing_if = "MediaFate::is_stay")]
    pub media: MediaFate,
    /// What was received after this stays, whatever its depth. How retention, and a purge by age or time, keep
    /// what has not expired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_received_after: Option<Millis>,
    /// What that means in the database, where it has been found out already.
    #[serde(skip)]
    pub expiry: Option<Expiry>,
    /// What holds keep, found out when it is carried out or planned.
    #[serde(skip)]
    pub held: Vec<HeldEvents>,
}

impl Request {
    /// What has expired, if that counts; found out by `now` where it is not known yet.
    pub(super) fn expiry(&self, db: &Db, now: Millis) -> Result<Option<Expiry>, Error> {
        match (self.keep_received_after, self.expiry) {
            (None, _) => Ok(None),
            (Some(_), Some(expiry)) => Ok(Some(expiry)),
            // What was received in this very millisecond goes.
            (Some(after), None) => Expiry::find(db, after + Millis(1), now).map(Some),
        }
    }

    /// What the whole of it takes, of what has expired and is not held; with `keep_extremities` forward extremities stay
    /// (P-51).
    pub(super) fn cut<'a>(
        &'a self,
        room: &'a RoomId,
        server_name: &'a str,
        keep_extremities: bool,
        expiry: Option<Expiry>,
    ) -> DepthRange<'a> {
        DepthRange {
            room,
            from: i64::MIN,
            below: self.point.topological,
            delete_local_events: self.delete_local_events,
            server_name,
            keep_extremities,
            expiry,
            held: &self.held,
        }
    }
}
