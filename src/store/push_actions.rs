//! Unread counts (P-14, P-15): what they counted of events that go, and the rows of those.

use super::db::{Db, params};
use super::event_rows::{RowCounts, add};
use super::tx::Tx;
use crate::error::Error;

/// P-14: what each user's and thread's summary counts of the events to delete. Binds `$1` room. Walks the key on room
/// and event; left to itself SQLite walks every unread count of the room.
const SUMMARY_DECREMENTS: &str = "
    SELECT a.user_id, a.thread_id,
           count(CASE WHEN a.notif = 1 THEN 1 END),
           count(CASE WHEN a.unread = 1 THEN 1 END)
      FROM rk_selected s
     CROSS JOIN event_push_actions a
     CROSS JOIN event_push_summary p
     WHERE s.to_delete
       AND a.room_id = $1
       AND a.event_id = s.event_id
       AND a.stream_ordering <= (SELECT stream_ordering FROM event_push_summary_stream_ordering)
       AND p.user_id = a.user_id
       AND p.room_id = a.room_id
       AND p.thread_id = a.thread_id
       AND (p.last_receipt_stream_ordering IS NULL OR a.stream_ordering > p.last_receipt_stream_ordering)
     GROUP BY a.user_id, a.thread_id";

/// P-14 and P-15 on PostgreSQL, where deleting the rows answers as well what the summaries counted of them, and how many
/// they were. Binds `$1` room. Walks the key on room and event.
const DELETE_PUSH_ACTIONS: &str = "-- PostgreSQL
    WITH gone AS (
        DELETE FROM event_push_actions a USING rk_selected s
         WHERE s.to_delete AND a.room_id = $1 AND a.event_id = s.event_id
        RETURNING a.user_id, a.thread_id, a.stream_ordering, a.notif, a.unread)
    SELECT g.user_id, g.thread_id,
           count(CASE WHEN p.user_id IS NOT NULL AND g.notif = 1 THEN 1 END),
           count(CASE WHEN p.user_id IS NOT NULL AND g.unread = 1 THEN 1 END),
           count(p.user_id),
           count(*)
      FROM gone g
      LEFT JOIN event_push_summary p
        ON p.user_id = g.user_id
       AND p.room_id = $1
       AND p.thread_id = g.thread_id
       AND g.stream_ordering <= (SELECT stream_ordering FROM event_push_summary_stream_ordering)
       AND (p.last_receipt_stream_ordering IS NULL OR g.stream_ordering > p.last_receipt_stream_ordering)
     GROUP BY g.user_id, g.thread_id";

/// P-15 on PostgreSQL in databases whose summaries do not tell what they count. Binds `$1` room.
const DROP_PUSH_ACTIONS: &str = "-- PostgreSQL
    DELETE FROM event_push_actions a USING rk_selected s
     WHERE s.to_delete AND a.room_id = $1 AND a.event_id = s.event_id";

/// Never below 0. Binds `$1` notifications, `$2` unread, `$3` room, `$4` user, `$5` thread.
const DECREMENT_SUMMARY: &str = "
    UPDATE event_push_summary
       SET notif_count = CASE WHEN notif_count > $1 THEN notif_count - $1 ELSE 0 END,
           unread_count = CASE WHEN coalesce(unread_count, 0) > $2 THEN unread_count - $2 ELSE 0 END
     WHERE room_id = $3 AND user_id = $4 AND thread_id = $5";

/// Whether the summaries tell what they count (P-14).
fn has_summaries(db: &Db) -> bool {
    let catalog = db.catalog();
    catalog.has_column("event_push_summary", "last_receipt_stream_ordering")
        && catalog.has_column("event_push_summary", "thread_id")
        && catalog.has_column("event_push_actions", "thread_id")
}

/// P-14, where the columns exist.
pub(super) fn decrement(db: &Tx<'_>, room: &str) -> Result<(), Error> {
    if !has_summaries(db) {
        return Ok(());
    }
    let doing = "correct the unread counts";
    type Decrement = (String, String, i64, i64);
    let decrements: Vec<Decrement> = db.rows(doing, SUMMARY_DECREMENTS, params![room], |r| {
        Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?))
    })?;
    for (user, thread, notifications, unread) in decrements {
        decrement_summary(db, room, &user, &thread, notifications, unread)?;
    }
    Ok(())
}

/// P-14 and P-15 on PostgreSQL.
pub(super) fn delete(db: &Tx<'_>, room: &str, counts: &mut RowCounts) -> Result<(), Error> {
    let doing = "correct the unread counts";
    if !db.catalog().has("event_push_actions") {
        return Ok(());
    }
    if !has_summaries(db) {
        let gone = db.execute(doing, DROP_PUSH_ACTIONS, params![room])?;
        add(counts, "event_push_actions", gone);
        return Ok(());
    }
    type Taken = (String, Option<String>, i64, i64, i64, i64);
    let taken: Vec<Taken> = db.rows(doing, DELETE_PUSH_ACTIONS, params![room], |r| {
        Ok((
            r.get(0)?,
            r.get(1)?,
            r.get(2)?,
            r.get(3)?,
            r.get(4)?,
            r.get(5)?,
        ))
    })?;
    for (user, thread, notifications, unread, counted, rows) in taken {
        add(counts, "event_push_actions", rows);
        if let Some(thread) = thread.filter(|_| counted > 0) {
            decrement_summary(db, room, &user, &thread, notifications, unread)?;
        }
    }
    Ok(())
}

fn decrement_summary(
    db: &Tx<'_>,
    room: &str,
    user: &str,
    thread: &str,
    notifications: i64,
    unread: i64,
) -> Result<(), Error> {
    db.execute(
        "correct the unread counts",
        DECREMENT_SUMMARY,
        params![notifications, unread, room, user, thread],
    )?;
    Ok(())
}
