//! When the newest events arrived, by which a clock that is ahead is found out. Reads only.

use super::db::{Db, params};
use super::expiry::FIRST_POSSIBLE;
use crate::error::Error;

/// Walks the stream backwards from its end. Binds `$1` how many.
const NEWEST_ARRIVALS: &str = "
    SELECT received_ts FROM events
     WHERE stream_ordering > 0
     ORDER BY stream_ordering DESC LIMIT $1";

/// The stamps of the newest live events, oldest first; those without one, or with one that no clock that was set can have
/// written, left out.
pub fn newest(db: &Db, count: i64) -> Result<Vec<i64>, Error> {
    let doing = "look when the newest events arrived";
    let mut stamps = db.rows(doing, NEWEST_ARRIVALS, params![count], |r| Ok(r.stamp(0)))?;
    stamps.reverse();
    let known = stamps.into_iter().flatten();
    Ok(known.filter(|stamp| *stamp >= FIRST_POSSIBLE.0).collect())
}
