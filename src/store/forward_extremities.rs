//! A room's forward extremities: events that nothing follows yet. The next event that is written follows them, so a room
//! that loses the last of them can never be written into again (P-2, P-50, P-51).

use super::db::{Db, params};
use super::expiry::has_expired;
use super::history::{DepthRange, count_taken};
use super::tx::Tx;
use crate::error::Error;
use crate::ids::RoomId;

/// P-2: the greatest depth among forward extremities that are held. Binds `$1` room.
const DEEPEST_EXTREMITY: &str = "
    SELECT max(e.depth)
      FROM event_forward_extremities f
     CROSS JOIN events e
     WHERE f.room_id = $1
       AND e.event_id = f.event_id
       AND e.room_id = f.room_id";

/// P-50: how many of the room's forward extremities that are held were selected, and how many of those in the timeline
/// were not. Binds `$1` room.
const EXTREMITIES_LEFT: &str = "
    SELECT count(s.event_id),
           count(CASE WHEN s.event_id IS NULL AND NOT e.outlier THEN 1 END)
      FROM event_forward_extremities f
     CROSS JOIN events e
      LEFT JOIN rk_selected s ON s.event_id = f.event_id
     WHERE f.room_id = $1
       AND e.event_id = f.event_id
       AND e.room_id = f.room_id";

/// P-51. Binds `$1` room. A room has few forward extremities; each is looked up among what is selected.
const LEAVE_EXTREMITIES: &str = "
    DELETE FROM rk_selected
     WHERE event_id IN (SELECT event_id FROM event_forward_extremities WHERE room_id = $1)";

/// Of the events of the timeline that a cut takes, the forward extremities; by `depth`, which is the same number and by
/// which no server is tempted to walk the room. Binds `$1` room, `$2` lowest depth, `$3` depth that survives, and from
/// `$4` on an [`Expiry`](super::expiry::Expiry), or NULL. Walks the room's extremities.
const COUNT_EXTREMITIES: &str = concat!(
    "
    SELECT count(*)
      FROM event_forward_extremities f
     CROSS JOIN events e
     WHERE f.room_id = $1
       AND e.event_id = f.event_id
       AND e.room_id = f.room_id
       AND e.depth >= $2
       AND e.depth < $3
       AND NOT e.outlier
       AND (",
    has_expired!(
        "e.",
        "$4",
        "CAST($5 AS BIGINT)",
        "CAST($6 AS BIGINT)",
        "$7",
        "$8",
        "$9"
    ),
    "
            OR $7 IS NULL)"
);

/// Of the events of the timeline that `cut` takes, the forward extremities.
pub(super) fn count(db: &Db, cut: &DepthRange<'_>) -> Result<i64, Error> {
    let doing = "count the forward extremities";
    count_taken(db, doing, COUNT_EXTREMITIES, cut)
}

/// Takes the room's forward extremities out of the selection (P-51); answers how many were in it.
pub(super) fn leave_out(db: &Db, room: &RoomId) -> Result<i64, Error> {
    let doing = "select the events to purge";
    db.execute(doing, LEAVE_EXTREMITIES, params![room.as_str()])
}

/// Of the room's forward extremities that are held, the depth of the newest by arrival. Binds `$1` room.
const NEWEST_EXTREMITY: &str = "
    SELECT e.depth
      FROM event_forward_extremities f
     CROSS JOIN events e
     WHERE f.room_id = $1
       AND e.event_id = f.event_id
       AND e.room_id = f.room_id
     ORDER BY e.stream_ordering DESC
     LIMIT 1";

/// Whether the room has forward extremities that `cut` would take, and the newest by arrival, which a homeserver keeps
/// that drops the others (P-51), is none of them.
pub fn has_surplus(db: &Db, cut: &DepthRange<'_>) -> Result<bool, Error> {
    let doing = "read the forward extremities";
    let room = params![cut.room.as_str()];
    let newest = db.row(doing, NEWEST_EXTREMITY, room, |r| r.get::<_, i64>(0))?;
    if newest.is_none_or(|depth| depth < cut.below) {
        return Ok(false);
    }
    Ok(count(db, cut)? > 0)
}

/// The greatest depth among the room's forward extremities that are held, if there is one (P-2).
pub fn deepest(db: &Db, room: &RoomId) -> Result<Option<i64>, Error> {
    let depth = db.row(
        "read the forward extremities",
        DEEPEST_EXTREMITY,
        params![room.as_str()],
        |r| r.get(0),
    )?;
    Ok(depth.flatten())
}

/// Of the room's forward extremities that are held in the timeline, the newest by arrival. Binds `$1` room.
const NEWEST: &str = "
    SELECT f.event_id
      FROM event_forward_extremities f
     CROSS JOIN events e
     WHERE f.room_id = $1
       AND e.event_id = f.event_id
       AND e.room_id = f.room_id
       AND NOT e.outlier
     ORDER BY e.stream_ordering DESC
     LIMIT 1";

/// Binds `$1` room, `$2` the event that stays one.
const DROP_SURPLUS: &str =
    "DELETE FROM event_forward_extremities WHERE room_id = $1 AND event_id <> $2";

/// Leaves the room the newest of its forward extremities alone, as Synapse's admin API does: events stay, and the next one
/// follows that. Answers how many are none any more; `None` where none is held, and so nothing was changed.
pub fn drop_surplus(tx: &Tx<'_>, room: &RoomId) -> Result<Option<i64>, Error> {
    let doing = "drop forward extremities";
    let newest = tx.row(doing, NEWEST, params![room.as_str()], |r| {
        r.get::<_, String>(0)
    })?;
    match newest {
        Some(event) => {
            let dropped = tx.execute(doing, DROP_SURPLUS, params![room.as_str(), event])?;
            Ok(Some(dropped))
        }
        None => Ok(None),
    }
}

/// P-50: whether forward extremities of the room were selected, and none that is held in the timeline is left beside
/// them. Such a room could never be written into again.
pub(super) fn are_all_selected(db: &Db, room: &RoomId) -> Result<bool, Error> {
    let left = db.row(
        "look at the forward extremities",
        EXTREMITIES_LEFT,
        params![room.as_str()],
        |r| Ok(r.get::<_, i64>(0)? > 0 && r.get::<_, i64>(1)? == 0),
    )?;
    Ok(left.unwrap_or(false))
}
