//! From an event or a time to a point in a room's history (H-20, R-20 … ).

use super::db::{Db, params};
use super::expiry::{Expiry, has_expired};
use crate::error::Error;
use crate::ids::{EventId, RoomId};
use crate::point::{Point, PurgePoint};
use crate::time::Millis;

/// Binds `$1` event.
const EVENT_POINT: &str = "
    SELECT e.room_id, CAST(e.depth AS BIGINT), e.stream_ordering,
           EXISTS (SELECT 1 FROM rejections r WHERE r.event_id = e.event_id)
      FROM events e
     WHERE e.event_id = $1";

/// the room's newest event by arrival that has expired. Binds `$1` room, and from `$2` on an [`Expiry`].
/// Walks `events_room_stream` backwards: without the plus signs SQLite would rather sort the room.
const ANCHOR: &str = concat!(
    "
    SELECT CAST(e.topological_ordering AS BIGINT), e.stream_ordering
      FROM events e
     WHERE e.room_id = $1 AND e.stream_ordering < $2 AND NOT e.outlier
       AND (",
    has_expired!(
        "+e.",
        "$3",
        "CAST($2 AS BIGINT)",
        "CAST($4 AS BIGINT)",
        "$5",
        "$6",
        "$7"
    ),
    ")
       AND NOT EXISTS (SELECT 1 FROM rejections r WHERE r.event_id = e.event_id)
     ORDER BY e.stream_ordering DESC LIMIT 1"
);

/// The point a caller names, for `room`.
///
/// # Errors
/// [`Error::EventNotFound`], [`Error::WrongRoom`], [`Error::NothingThatOld`] as H-20 says;
/// [`Error::BadRequest`] for a token without a topological part (P-1).
pub fn resolve(db: &Db, room: &RoomId, point: &PurgePoint, now: Millis) -> Result<Point, Error> {
    let expired_by = |ts: Millis| {
        let expiry = Expiry::find(db, ts, now)?;
        anchor(db, room, &expiry)?.ok_or(Error::NothingThatOld)
    };
    match point {
        PurgePoint::BeforeTs(ts) => expired_by(*ts),
        PurgePoint::OlderThan(age) => expired_by(now - *age),
        PurgePoint::BeforeEvent(event) => of_event(db, room, event),
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

/// The newest event of a room, by arrival, that has expired: what lies there stays.
pub fn anchor(db: &Db, room: &RoomId, expiry: &Expiry) -> Result<Option<Point>, Error> {
    db.row(
        "find the last event that old",
        ANCHOR,
        params![
            room.as_str(),
            expiry.live_end,
            expiry.near.0,
            expiry.live_before,
            expiry.ts.0,
            expiry.first_known,
            expiry.backfilled_after
        ],
        |r| {
            Ok(Point {
                topological: r.get(0)?,
                stream: r.get(1)?,
            })
        },
    )
}
