//! From an event or a time to a point in a room's history (H-20, R-20 … R-24).

use super::db::{Db, params};
use crate::error::Error;
use crate::ids::{EventId, RoomId};
use crate::point::{Point, PurgePoint};
use crate::time::Millis;

/// Binds `$1` event.
const EVENT_POINT: &str = "
    SELECT e.room_id, e.depth, e.stream_ordering,
           EXISTS (SELECT 1 FROM rejections r WHERE r.event_id = e.event_id)
      FROM events e
     WHERE e.event_id = $1";

const NEWEST: &str = "SELECT max(stream_ordering) FROM events";

/// R-24 (a), defect C: only live events are probed. Binds `$1` stream ordering.
const PROBE: &str = "
    SELECT received_ts FROM events
     WHERE stream_ordering <= $1 AND stream_ordering > 0
     ORDER BY stream_ordering DESC LIMIT 1";

/// Binds `$1` room, `$2` stream ordering. Walks `events_room_stream` backwards.
const ANCHOR: &str = "
    SELECT e.topological_ordering, e.stream_ordering
      FROM events e
     WHERE e.room_id = $1 AND e.stream_ordering <= $2 AND NOT e.outlier
       AND NOT EXISTS (SELECT 1 FROM rejections r WHERE r.event_id = e.event_id)
     ORDER BY e.stream_ordering DESC LIMIT 1";

/// The point a caller names, for `room`.
///
/// # Errors
/// [`Error::EventNotFound`], [`Error::WrongRoom`], [`Error::NothingThatOld`] as H-20 says;
/// [`Error::BadRequest`] for a token without a topological part (P-1).
pub fn resolve(db: &Db, room: &RoomId, point: &PurgePoint, now: Millis) -> Result<Point, Error> {
    match point {
        PurgePoint::BeforeEvent(event) => of_event(db, room, event),
        PurgePoint::BeforeTs(ts) => received_by(db, room, *ts),
        PurgePoint::OlderThan(age) => received_by(db, room, now - *age),
        PurgePoint::BeforeToken(token) => {
            Point::parse(token).map_err(|message| Error::bad("M_UNKNOWN", message))
        }
    }
}

fn of_event(db: &Db, room: &RoomId, event: &EventId) -> Result<Point, Error> {
    let found = db.row(
        "look up the event",
        EVENT_POINT,
        params![event.as_str()],
        |r| {
            let point = Point {
                topological: r.get(1)?,
                stream: r.get(2)?,
            };
            Ok((r.get::<_, String>(0)?, point, r.get::<_, bool>(3)?))
        },
    )?;
    match found {
        None | Some((_, _, true)) => Err(Error::EventNotFound(event.clone())),
        Some((of, _, _)) if of != room.as_str() => Err(Error::WrongRoom),
        Some((_, point, _)) => Ok(point),
    }
}

fn received_by(db: &Db, room: &RoomId, ts: Millis) -> Result<Point, Error> {
    let after = first_stream_ordering_after(db, ts)?;
    let anchor = db.row(
        "find the last event that old",
        ANCHOR,
        params![room.as_str(), after],
        |r| {
            Ok(Point {
                topological: r.get(0)?,
                stream: r.get(1)?,
            })
        },
    )?;
    anchor.ok_or(Error::NothingThatOld)
}

/// The binary search of R-23 over all rooms: the first stream ordering received at or after `ts`.
/// A missing `received_ts` counts as older than any time.
pub fn first_stream_ordering_after(db: &Db, ts: Millis) -> Result<i64, Error> {
    let doing = "find the first event received after a time";
    let newest = db.count(doing, NEWEST, &[])?;
    let (mut low, mut high) = (0_i64, newest.max(0) + 1);
    if newest == 0 {
        return Ok(0);
    }
    while high > low {
        let middle = low + (high - low) / 2;
        let received = db.row(doing, PROBE, params![middle], |r| {
            r.get::<_, Option<i64>>(0)
        })?;
        match received.flatten() {
            Some(received) if received >= ts.0 => high = middle,
            _ => low = middle + 1,
        }
    }
    Ok(high)
}
