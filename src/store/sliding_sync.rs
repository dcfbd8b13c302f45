//! The room's newest event, as the list of rooms knows it (P-19): what a purge must let go of before it deletes that.

use super::db::params;
use super::expiry::{Bound, has_expired};
use super::history::DepthRange;
use super::tx::Tx;
use crate::error::Error;

/// P-19, defect D: the room whose newest event by arrival is to be deleted. Binds `$1` room.
const SLIDING_SYNC_TO_DELETE: &str = "
    SELECT j.bump_stamp
      FROM sliding_sync_joined_rooms j
      JOIN rk_selected s ON s.stream_ordering = j.event_stream_ordering
     WHERE j.room_id = $1 AND s.to_delete";

/// The newest event by arrival that outlives the whole job. Binds `$1` room, `$2` depth that survives, from `$3` on an
/// [`Expiry`](super::expiry::Expiry), or NULL: what it does not cover stays; `$9` whether forward extremities stay; what is held stays. Walks
/// `events_room_stream` backwards and stops at once: without the
/// upper bound and the plus SQLite would sort all that survives.
const NEWEST_SURVIVOR: &str = concat!(
    "
    SELECT stream_ordering FROM events
     WHERE room_id = $1 AND stream_ordering <= 9223372036854775807
       AND (+topological_ordering >= $2
            OR NOT coalesce(
                   ",
    has_expired!("", "$3", "CAST($4 AS BIGINT)", "CAST($5 AS BIGINT)", "$6", "$7", "$8"),
    "
                   OR $6 IS NULL, FALSE)
            OR ($9 AND event_id IN (SELECT event_id FROM event_forward_extremities WHERE room_id = $1))
            OR EXISTS (SELECT 1 FROM rk_held h
                        WHERE coalesce(h.sender = events.sender, TRUE)
                          AND (events.received_ts IS NULL
                               OR events.received_ts > 9223372036854775807
                               OR events.origin_server_ts > 9223372036854775807
                               OR events.received_ts BETWEEN h.since AND h.until
                               OR events.origin_server_ts BETWEEN h.since AND h.until)))
       AND NOT outlier
     ORDER BY stream_ordering DESC LIMIT 1"
);

/// The same among the types that bump a room in the list (D-48).
const NEWEST_BUMP: &str = concat!(
    "
    SELECT stream_ordering FROM events
     WHERE room_id = $1 AND stream_ordering <= 9223372036854775807
       AND (+topological_ordering >= $2
            OR NOT coalesce(
                   ",
    has_expired!("", "$3", "CAST($4 AS BIGINT)", "CAST($5 AS BIGINT)", "$6", "$7", "$8"),
    "
                   OR $6 IS NULL, FALSE)
            OR ($9 AND event_id IN (SELECT event_id FROM event_forward_extremities WHERE room_id = $1))
            OR EXISTS (SELECT 1 FROM rk_held h
                        WHERE coalesce(h.sender = events.sender, TRUE)
                          AND (events.received_ts IS NULL
                               OR events.received_ts > 9223372036854775807
                               OR events.origin_server_ts > 9223372036854775807
                               OR events.received_ts BETWEEN h.since AND h.until
                               OR events.origin_server_ts BETWEEN h.since AND h.until)))
       AND NOT outlier
       AND type IN ('m.room.create', 'm.room.message', 'm.room.encrypted', 'm.sticker', 'm.call.invite',
                    'm.poll.start', 'm.beacon_info')
     ORDER BY stream_ordering DESC LIMIT 1"
);

/// Whether the event that lifts the room in the list outlives the whole job: an earlier batch may have deleted
/// it, and a later one may be going to. Binds `$1` its stream ordering, `$2` depth that survives, from `$3` on an
/// [`Expiry`](super::expiry::Expiry), or NULL, `$9` whether forward extremities stay, `$10` delete local events, `$11`
/// server name.
const BUMP_SURVIVES: &str = concat!(
    "
    SELECT EXISTS (
        SELECT 1 FROM events e
          LEFT JOIN state_events s ON s.event_id = e.event_id
         WHERE e.stream_ordering = $1
           AND (e.topological_ordering >= $2
                OR NOT coalesce(
                       ",
    has_expired!("e.", "$3", "CAST($4 AS BIGINT)", "CAST($5 AS BIGINT)", "$6", "$7", "$8"),
    "
                       OR $6 IS NULL, FALSE)
                OR ($9 AND EXISTS (SELECT 1 FROM event_forward_extremities f WHERE f.event_id = e.event_id))
                OR EXISTS (SELECT 1 FROM rk_held h
                            WHERE coalesce(h.sender = e.sender, TRUE)
                              AND (e.received_ts IS NULL
                                   OR e.received_ts > 9223372036854775807
                                   OR e.origin_server_ts > 9223372036854775807
                                   OR e.received_ts BETWEEN h.since AND h.until
                                   OR e.origin_server_ts BETWEEN h.since AND h.until))
                OR s.event_id IS NOT NULL
                OR NOT ($10 OR coalesce(substr(e.sender, instr(e.sender, ':') + 1) <> $11, TRUE))))"
);

/// Unless a newer event came meanwhile.
const REPOINT_SLIDING_SYNC: &str = "
    UPDATE sliding_sync_joined_rooms SET event_stream_ordering = $1
     WHERE room_id = $2
       AND event_stream_ordering IN (SELECT stream_ordering FROM rk_selected WHERE to_delete)";

const REPOINT_BUMP_STAMP: &str = "
    UPDATE sliding_sync_joined_rooms SET bump_stamp = $1 WHERE room_id = $2 AND bump_stamp = $3";

/// P-19, defect D: lets go of an event that is to be deleted, in favour of one that outlives the whole job, so that
/// the row is the same however the job is cut into batches.
pub fn update_joined_room(
    db: &Tx<'_>,
    cut: &DepthRange<'_>,
    keep_from_depth: i64,
) -> Result<(), Error> {
    let room = cut.room.as_str();
    if !db.catalog().has("sliding_sync_joined_rooms") {
        return Ok(());
    }
    let doing = "move the room's newest event";
    let to_delete = db.row(doing, SLIDING_SYNC_TO_DELETE, params![room], |r| {
        r.get::<_, Option<i64>>(0)
    })?;
    let Some(bump) = to_delete else {
        return Ok(());
    };
    let expiry = Bound::of(cut.expiry.as_ref());
    let newest = |sql| {
        let params = params![
            room,
            keep_from_depth,
            expiry.near,
            expiry.live_end,
            expiry.live_before,
            expiry.ts,
            expiry.first_known,
            expiry.backfilled_after,
            cut.keep_extremities
        ];
        db.row(doing, sql, params, |r| r.get::<_, i64>(0))
    };
    let Some(stream) = newest(NEWEST_SURVIVOR)? else {
        return Ok(());
    };
    db.execute(doing, REPOINT_SLIDING_SYNC, params![stream, room])?;
    let Some(bump) = bump else { return Ok(()) };
    let local = params![
        bump,
        keep_from_depth,
        expiry.near,
        expiry.live_end,
        expiry.live_before,
        expiry.ts,
        expiry.first_known,
        expiry.backfilled_after,
        cut.keep_extremities,
        cut.delete_local_events,
        cut.server_name
    ];
    // I-14: nothing lifts the room higher than its newest event.
    if bump > stream || db.count(doing, BUMP_SURVIVES, local)? == 0 {
        db.execute(
            doing,
            REPOINT_BUMP_STAMP,
            params![newest(NEWEST_BUMP)?, room, bump],
        )?;
    }
    Ok(())
}
