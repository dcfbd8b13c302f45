//! Redactions that a history purge keeps (P-21, P-52).

use super::db::{Db, Engine, params};
use crate::error::Error;
use crate::ids::RoomId;

/// P-21, defect E: a redaction whose target survives is kept, or the target would read as before it was redacted.
/// Keeping a redaction makes its target of what redacts it survive, and so on along a chain: each link is looked at once
/// (P-52). Only within the room: across rooms no redaction has an effect. Binds `$1` room. Walks `redactions` by event id
/// and, from link to link, by what they redact; `events` by event id.
const KEEP_REDACTIONS: &str = "
    WITH RECURSIVE kept (event_id) AS (
        SELECT own.event_id
          FROM rk_selected own
         CROSS JOIN redactions r
         CROSS JOIN events target
          LEFT JOIN rk_selected t ON t.stream_ordering = target.stream_ordering
         WHERE own.to_delete
           AND r.event_id = own.event_id
           AND target.event_id = r.redacts
           AND target.room_id = $1
           AND (t.stream_ordering IS NULL OR NOT t.to_delete)
        UNION
        SELECT own.event_id
          FROM kept k
         CROSS JOIN redactions r
         CROSS JOIN rk_selected own
         WHERE r.redacts = k.event_id
           AND own.event_id = r.event_id
           AND own.to_delete)
    UPDATE rk_selected SET to_delete = FALSE WHERE event_id IN (SELECT event_id FROM kept)";

/// The same, walked from the redactions, for when those are fewer than the selection.
const KEEP_FEW_REDACTIONS: &str = "
    WITH RECURSIVE kept (event_id) AS (
        SELECT own.event_id
          FROM redactions r
         CROSS JOIN rk_selected own
         CROSS JOIN events target
          LEFT JOIN rk_selected t ON t.stream_ordering = target.stream_ordering
         WHERE own.event_id = r.event_id
           AND own.to_delete
           AND target.event_id = r.redacts
           AND target.room_id = $1
           AND (t.stream_ordering IS NULL OR NOT t.to_delete)
        UNION
        SELECT own.event_id
          FROM kept k
         CROSS JOIN redactions r
         CROSS JOIN rk_selected own
         WHERE r.redacts = k.event_id
           AND own.event_id = r.event_id
           AND own.to_delete)
    UPDATE rk_selected SET to_delete = FALSE WHERE event_id IN (SELECT event_id FROM kept)";

/// Events kept by [`KEEP_REDACTIONS`] that are outliers already need nothing done. The order of the joins is part of
/// it: with statistics SQLite would rather walk all events.
const FORGET_KEPT_OUTLIERS: &str = "
    DELETE FROM rk_selected
     WHERE NOT to_delete
       AND stream_ordering IN (
           SELECT e.stream_ordering FROM rk_selected s CROSS JOIN events e
            WHERE NOT s.to_delete AND e.stream_ordering = s.stream_ordering AND e.outlier)";

/// Takes from what is to be deleted every redaction of `room` whose target survives. Of `selected` events; inside the
/// transaction that selected them.
pub(super) fn keep(db: &Db, room: &RoomId, selected: i64) -> Result<(), Error> {
    let doing = "select the events to purge";
    // No table has more rows than its greatest rowid. PostgreSQL finds by itself from which side to walk.
    let redactions = match db.engine() {
        Engine::Sqlite => db.count(doing, "SELECT max(rowid) FROM redactions", &[])?,
        Engine::Postgres => i64::MAX,
    };
    let keep = if redactions < selected {
        KEEP_FEW_REDACTIONS
    } else {
        KEEP_REDACTIONS
    };
    if redactions > 0 && db.execute(doing, keep, params![room.as_str()])? > 0 {
        db.execute(doing, FORGET_KEPT_OUTLIERS, &[])?;
    }
    Ok(())
}
