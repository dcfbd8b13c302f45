//! The rows of a history purge (behaviour.md section 4): selecting what lies below a cut, then removing it.
//!
//! The selection is a temporary table, `rk_selected`, that every statement joins; nothing is carried back and
//! forth. A dry run counts with the same joins that a purge deletes with.

use super::db::{Db, Engine, params};
use super::event_rows::{self, Removal, RowCounts, Scope, add};
use super::expiry::{Bound, Expiry, has_expired};
use super::forward_extremities;
use super::held;
use super::push_actions;
use super::redactions;
use super::room_rows::{self, Unknown};
use super::sliding_sync;
use super::temp_tables;
pub use super::temp_tables::Extent;
use super::tx::{Abort, Tx};
use crate::error::Error;
use crate::hold::HeldEvents;
use crate::ids::{EventId, RoomId};

/// A range of depths in one room, and what may go there.
#[derive(Clone, Copy, Debug)]
pub struct DepthRange<'a> {
    /// The room.
    pub room: &'a RoomId,
    /// Lowest depth looked at (inclusive).
    pub from: i64,
    /// Depth that survives (exclusive end), P-4.
    pub below: i64,
    /// Whether local users' events go as well.
    pub delete_local_events: bool,
    /// The server's name: senders of this domain are local (P-6).
    pub server_name: &'a str,
    /// What has not expired is left out, one by one, whatever its depth. `None` spares nothing.
    pub expiry: Option<Expiry>,
    /// Whether forward extremities stay where they are, in the timeline: a homeserver that runs beside us, and that
    /// cannot be told, would write them back and then fail for want of them (P-51).
    pub keep_extremities: bool,
    /// What holds keep: it is left out, one by one, whatever its depth.
    pub held: &'a [HeldEvents],
}

/// What a selection holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Events selected: deleted ones and those that become outliers.
    pub events: i64,
    /// Events that will be deleted.
    pub to_delete: i64,
    /// Forward extremities that were left out (P-51).
    pub extremities_kept: i64,
    /// Events that were left out because they are held.
    pub held: i64,
}

const ANALYZE_EXTREMITIES: &str = "-- PostgreSQL
    ANALYZE rk_extremities";

/// P-4 to P-6: what lies in the range and either is in the timeline or may be deleted. `state_events` is the
/// authority on what is state; a missing sender is not local. Binds `$1` delete local events, `$2` server name, `$3`
/// room, `$4` lowest depth, `$5` depth that survives, and from `$6` on an [`Expiry`], or NULL: what it does not cover is
/// left out. Walks `events_order_room`.
const SELECT_BELOW: &str = concat!(
    "
    INSERT INTO rk_selected (stream_ordering, event_id, to_delete, outlier)
    SELECT stream_ordering, event_id, deletable, outlier
      FROM (SELECT e.stream_ordering, e.event_id, e.outlier,
                   s.event_id IS NULL
                   AND ($1 OR coalesce(substr(e.sender, instr(e.sender, ':') + 1) <> $2, TRUE)) AS deletable
              FROM events e
              LEFT JOIN state_events s ON s.event_id = e.event_id
             WHERE e.room_id = $3
               AND e.topological_ordering >= $4
               AND e.topological_ordering < $5
               AND (",
    has_expired!("e.", "$6", "CAST($7 AS BIGINT)", "CAST($8 AS BIGINT)", "$9", "$10", "$11"),
    "
                    OR $9 IS NULL)) AS below
     WHERE NOT outlier OR deletable"
);

/// On PostgreSQL the selection is filled in the order of its ids, so that the deletes that walk from it go through every
/// index on event ids from one end to the other.
const IN_ORDER_OF_IDS: &str = "
     ORDER BY event_id";

const COUNT_SELECTED: &str =
    "SELECT count(*), coalesce(sum(CASE WHEN to_delete THEN 1 ELSE 0 END), 0) FROM rk_selected";

/// P-18: an event to delete that a partially joined room still needs.
const PARTIAL_STATE: &str = "
    SELECT p.event_id FROM partial_state_events p
     CROSS JOIN rk_selected s
     WHERE s.event_id = p.event_id AND s.to_delete LIMIT 1";

/// P-9, first half: selected events that a surviving event of the timeline points at. Binds `$1` room.
/// Walks `ev_edges_prev_id`; the order of the joins is part of it.
const NEW_EXTREMITIES: &str = "
    INSERT INTO rk_extremities (event_id)
    SELECT DISTINCT s.event_id
      FROM rk_selected s
     CROSS JOIN event_edges g
     CROSS JOIN events v
     WHERE g.prev_event_id = s.event_id
       AND NOT EXISTS (SELECT 1 FROM rk_selected t WHERE t.event_id = g.event_id)
       AND v.event_id = g.event_id
       AND v.room_id = $1
       AND NOT v.outlier";

/// The same, walked from what survives, for when that is less. Binds `$1` room, `$2` depth that survives.
const NEW_EXTREMITIES_FROM_SURVIVORS: &str = "
    INSERT INTO rk_extremities (event_id)
    SELECT DISTINCT s.event_id
      FROM events v
     CROSS JOIN event_edges g
     CROSS JOIN rk_selected s
     WHERE v.room_id = $1
       AND v.topological_ordering >= $2
       AND NOT v.outlier
       AND g.event_id = v.event_id
       AND s.event_id = g.prev_event_id";

/// The same, where survivors may also lie below the cut. Those to delete are gone already, so little of the room is left.
/// Binds `$1` room.
const NEW_EXTREMITIES_FROM_THE_REST: &str = "
    INSERT INTO rk_extremities (event_id)
    SELECT DISTINCT s.event_id
      FROM events v
     CROSS JOIN event_edges g
     CROSS JOIN rk_selected s
     WHERE v.room_id = $1
       AND NOT v.outlier
       AND NOT EXISTS (SELECT 1 FROM rk_selected t WHERE t.stream_ordering = v.stream_ordering)
       AND g.event_id = v.event_id
       AND s.event_id = g.prev_event_id";

/// P-10, defect K: former extremities that a surviving event of the timeline still points at, and that are not
/// held in the timeline, stay. Binds `$1` room. Walks `ev_edges_prev_id`: left to itself SQLite walks the room.
const KEPT_EXTREMITIES: &str = "
    INSERT INTO rk_extremities (event_id)
    SELECT b.event_id
      FROM event_backward_extremities b
     WHERE b.room_id = $1
       AND NOT EXISTS (SELECT 1 FROM rk_extremities x WHERE x.event_id = b.event_id)
       AND NOT EXISTS (
           SELECT 1 FROM events h
            WHERE h.event_id = b.event_id AND NOT h.outlier
              AND NOT EXISTS (SELECT 1 FROM rk_selected s WHERE s.stream_ordering = h.stream_ordering))
       AND EXISTS (
           SELECT 1 FROM event_edges g
            CROSS JOIN events v
            WHERE g.prev_event_id = b.event_id
              AND v.event_id = g.event_id
              AND v.room_id = b.room_id
              AND NOT v.outlier
              AND NOT EXISTS (SELECT 1 FROM rk_selected s WHERE s.stream_ordering = v.stream_ordering))";

/// The same on PostgreSQL, where others may have written one since [`KEPT_EXTREMITIES`] looked: each is looked at again.
const DROP_EXTREMITIES_ON_POSTGRES: &str = "-- PostgreSQL
    DELETE FROM event_backward_extremities b
     WHERE b.room_id = $1
       AND b.event_id NOT IN (SELECT event_id FROM rk_extremities)
       AND NOT EXISTS (
           SELECT 1 FROM event_edges g
            CROSS JOIN events v
            WHERE g.prev_event_id = b.event_id
              AND v.event_id = g.event_id
              AND v.room_id = b.room_id
              AND NOT v.outlier
              AND NOT EXISTS (SELECT 1 FROM rk_selected s WHERE s.stream_ordering = v.stream_ordering))";

/// Extremities that are none any more. Binds `$1` room.
const DROP_EXTREMITIES: &str = "
    DELETE FROM event_backward_extremities
     WHERE room_id = $1
       AND event_id NOT IN (SELECT event_id FROM rk_extremities)";

/// Of the extremities that earlier batches of this job made, those that are none any more. They were not there
/// before the job, so they are not counted as removed by it. Outlives a batch, and goes back with it.
const DROP_OWN_EXTREMITIES: &str = "
    DELETE FROM rk_own_extremities WHERE event_id NOT IN (SELECT event_id FROM rk_extremities)";

/// Extremities that are new. Binds `$1` room.
const NOTE_OWN_EXTREMITIES: &str = "
    INSERT INTO rk_own_extremities (event_id)
    SELECT x.event_id FROM rk_extremities x
     WHERE x.event_id NOT IN (SELECT event_id FROM event_backward_extremities WHERE room_id = $1)";

/// Extremities that are new. Binds `$1` room.
const ADD_EXTREMITIES: &str = "
    INSERT INTO event_backward_extremities (room_id, event_id)
    SELECT $1, x.event_id FROM rk_extremities x
     WHERE x.event_id NOT IN (SELECT event_id FROM event_backward_extremities WHERE room_id = $1)
        ON CONFLICT DO NOTHING";

/// P-12: the state groups of everything selected.
const SELECTED_GROUPS: &str = "
    SELECT DISTINCT g.state_group
      FROM rk_selected s
     CROSS JOIN event_to_state_groups g
     WHERE g.event_id = s.event_id";

/// P-12 on PostgreSQL, where deleting the rows answers as well which groups they named, and how many rows named each.
const TAKE_GROUPS: &str = "-- PostgreSQL
    WITH gone AS (
        DELETE FROM event_to_state_groups g USING rk_selected s
         WHERE g.event_id = s.event_id
        RETURNING g.state_group)
    SELECT state_group, count(*) FROM gone GROUP BY state_group";

/// P-3: state events below the cut stop being forward extremities when another extremity remains.
/// Binds `$1` room.
const DROP_OUTLIER_EXTREMITIES: &str = "
    DELETE FROM event_forward_extremities
     WHERE room_id = $1
       AND EXISTS (SELECT 1 FROM rk_selected s WHERE s.event_id = event_forward_extremities.event_id)
       AND EXISTS (SELECT 1 FROM event_forward_extremities o
                    WHERE o.room_id = $1
                      AND NOT EXISTS (SELECT 1 FROM rk_selected s WHERE s.event_id = o.event_id))";

/// P-16.
const TURN_OUTLIER: &str = "
    UPDATE events SET outlier = TRUE
     WHERE stream_ordering IN (SELECT stream_ordering FROM rk_selected WHERE NOT to_delete)";

/// P-20: threads whose root goes. Binds `$1` room. Walks the key on room and root.
const DROP_ROOTLESS_THREADS: &str = "
    DELETE FROM threads
     WHERE rowid IN (
           SELECT t.rowid
             FROM rk_selected s
            CROSS JOIN threads t
            WHERE s.to_delete
              AND t.room_id = $1
              AND t.thread_id = s.event_id)";

const DROP_ROOTLESS_THREADS_ON_POSTGRES: &str = "-- PostgreSQL
    DELETE FROM threads
     WHERE room_id = $1
       AND EXISTS (SELECT 1 FROM rk_selected s WHERE s.event_id = threads.thread_id AND s.to_delete)";

/// Threads whose latest reply goes. Binds `$1` room, `$2` depth that survives. Walks `threads_ordering_idx`.
const THREADS_LOSING_LATEST: &str = "
    SELECT thread_id FROM threads
     WHERE room_id = $1
       AND topological_ordering < $2
       AND EXISTS (SELECT 1 FROM rk_selected s WHERE s.event_id = threads.latest_event_id AND s.to_delete)
       AND NOT EXISTS (SELECT 1 FROM rk_selected s WHERE s.event_id = threads.thread_id AND s.to_delete)";

/// The latest reply to a thread that is not to be deleted. Binds `$1` root, `$2` room.
const LATEST_REPLY: &str = "
    SELECT e.event_id, e.topological_ordering, e.stream_ordering
      FROM event_relations r
     CROSS JOIN events e
     WHERE r.relates_to_id = $1
       AND r.relation_type = 'm.thread'
       AND e.event_id = r.event_id
       AND e.room_id = $2
       AND NOT EXISTS (SELECT 1 FROM rk_selected s WHERE s.stream_ordering = e.stream_ordering AND s.to_delete)
     ORDER BY e.topological_ordering DESC, e.stream_ordering DESC
     LIMIT 1";

/// Unless a newer reply came meanwhile.
const REPOINT_THREAD: &str = "
    UPDATE threads SET latest_event_id = $1, topological_ordering = $2, stream_ordering = $3
     WHERE room_id = $4 AND thread_id = $5
       AND latest_event_id IN (SELECT event_id FROM rk_selected WHERE to_delete)";

const DROP_THREAD: &str = "
    DELETE FROM threads
     WHERE room_id = $1 AND thread_id = $2
       AND latest_event_id IN (SELECT event_id FROM rk_selected WHERE to_delete)";

/// P-11. Binds `$1` room.
const LOWEST_DEPTH: &str = "
    UPDATE room_depth
       SET min_depth = (
           SELECT coalesce(min(e.depth), 0)
             FROM event_backward_extremities b
            CROSS JOIN event_edges g
            CROSS JOIN events e
            WHERE b.room_id = $1
              AND g.prev_event_id = b.event_id
              AND e.event_id = g.event_id)
     WHERE room_id = $1";

/// The cut that leaves about `$4` events of the timeline below it. Binds `$1` room, `$2` lowest depth,
/// `$3` depth that survives, `$4` events to pass over. Walks `events_order_room`.
const DEPTH_AFTER: &str = "
    SELECT CAST(topological_ordering AS BIGINT) FROM events
     WHERE room_id = $1 AND topological_ordering >= $2 AND topological_ordering < $3 AND NOT outlier
     ORDER BY topological_ordering, stream_ordering
     LIMIT 1 OFFSET $4";

/// Events of the timeline that a cut takes. Binds `$1` room, `$2` lowest depth, `$3` depth that survives, and from `$4`
/// on an [`Expiry`], or NULL.
const COUNT_TIMELINE: &str = concat!(
    "
    SELECT count(*) FROM events
     WHERE room_id = $1 AND topological_ordering >= $2 AND topological_ordering < $3 AND NOT outlier
       AND (",
    has_expired!(
        "",
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

/// Whether the server is still joining the room, so that some of its events have partial state.
pub fn is_partially_joined(db: &Db, room: &RoomId) -> Result<bool, Error> {
    const PARTIAL: &str = "SELECT EXISTS (SELECT 1 FROM partial_state_events WHERE room_id = $1)";
    let doing = "look whether the room is still being joined";
    Ok(db.catalog().has("partial_state_events")
        && db.count(doing, PARTIAL, params![room.as_str()])? > 0)
}

/// Events of the timeline that `cut` takes.
pub fn count_timeline(db: &Db, cut: &DepthRange<'_>) -> Result<i64, Error> {
    let events = count_taken(db, "count the events to purge", COUNT_TIMELINE, cut)?;
    Ok(match cut.keep_extremities {
        true => events - forward_extremities::count(db, cut)?,
        false => events,
    })
}

/// Counts what `cut` takes, by a statement that binds `$1` room, `$2` lowest depth, `$3` depth that survives, and from `$4` on
/// an [`Expiry`], or NULL.
pub(super) fn count_taken(
    db: &Db,
    doing: &'static str,
    sql: &str,
    cut: &DepthRange<'_>,
) -> Result<i64, Error> {
    let expiry = Bound::of(cut.expiry.as_ref());
    db.count(
        doing,
        sql,
        params![
            cut.room.as_str(),
            cut.from,
            cut.below,
            expiry.near,
            expiry.live_end,
            expiry.live_before,
            expiry.ts,
            expiry.first_known,
            expiry.backfilled_after
        ],
    )
}

/// A depth above `from` that has about `events` events of the timeline between, or `None` when fewer lie
/// below `below`.
pub fn depth_after(
    db: &Db,
    room: &RoomId,
    from: i64,
    below: i64,
    events: i64,
) -> Result<Option<i64>, Error> {
    let found = db.row(
        "find the next batch",
        DEPTH_AFTER,
        params![room.as_str(), from, below, events],
        |r| r.get::<_, i64>(0),
    )?;
    // Many events may share a depth; the cut must move on all the same.
    Ok(found
        .map(|depth| depth.max(from.saturating_add(1)))
        .filter(|depth| *depth < below))
}

/// What an earlier job on this connection knew of its own batches.
pub fn forget_former_job(db: &Db) -> Result<(), Error> {
    temp_tables::begin(db, Extent::Batch)?;
    db.batch("begin a purge", "DELETE FROM rk_own_extremities")
}

/// Fills the temporary table with what `cut` takes.
///
/// # Errors
/// [`Error::PartialState`] when a partially joined room still needs one of the events (P-18); [`Error::WouldEmptyRoom`]
/// when it takes the last forward extremity (P-50): every transaction that purges looks after its selection, since an
/// event of low depth that arrives meanwhile can become the only one.
pub fn select(db: &Db, cut: &DepthRange<'_>, extent: Extent) -> Result<Selection, Error> {
    let doing = "select the events to purge";
    temp_tables::begin(db, extent)?;
    let in_order = [SELECT_BELOW, IN_ORDER_OF_IDS].concat();
    let expiry = Bound::of(cut.expiry.as_ref());
    db.execute(
        doing,
        db.text(SELECT_BELOW, &in_order),
        params![
            cut.delete_local_events,
            cut.server_name,
            cut.room.as_str(),
            cut.from,
            cut.below,
            expiry.near,
            expiry.live_end,
            expiry.live_before,
            expiry.ts,
            expiry.first_known,
            expiry.backfilled_after
        ],
    )?;
    temp_tables::end(db, extent)?;
    let held = held::leave_out(db, cut)?;
    let extremities_kept = match cut.keep_extremities {
        true => forward_extremities::leave_out(db, cut.room)?,
        false => 0,
    };
    let selected = db.count(doing, "SELECT count(*) FROM rk_selected", &[])?;
    redactions::keep(db, cut.room, selected)?;
    if db.catalog().has("partial_state_events") {
        let partial = db.row(doing, PARTIAL_STATE, &[], |r| r.get::<_, String>(0))?;
        if let Some(event) = partial {
            return Err(Error::PartialState(EventId::new(event)));
        }
    }
    if forward_extremities::are_all_selected(db, cut.room)? {
        return Err(Error::WouldEmptyRoom);
    }
    let counts = db.row(doing, COUNT_SELECTED, &[], |r| {
        Ok(Selection {
            events: r.get(0)?,
            to_delete: r.get(1)?,
            extremities_kept,
            held,
        })
    })?;
    Ok(counts.unwrap_or_default())
}

/// The state groups of the selected events (P-12), each once.
pub fn selected_groups(db: &Db) -> Result<Vec<i64>, Error> {
    db.rows(
        "read the state groups of the events",
        SELECTED_GROUPS,
        &[],
        |r| r.get(0),
    )
}

/// The state groups of the selected events, each once. On PostgreSQL their rows in `event_to_state_groups` go with that
/// answer.
fn take_groups(db: &Db, counts: &mut RowCounts) -> Result<Vec<i64>, Error> {
    if db.engine() == Engine::Sqlite {
        return selected_groups(db);
    }
    let doing = "purge the events";
    let groups: Vec<(i64, i64)> =
        db.rows(doing, TAKE_GROUPS, &[], |r| Ok((r.get(0)?, r.get(1)?)))?;
    add(
        counts,
        "event_to_state_groups",
        groups.iter().map(|(_, rows)| rows).sum(),
    );
    Ok(groups.into_iter().map(|(group, _)| group).collect())
}

/// P-56: messages of local users that leave the timeline and stay in the database. Binds `$1` server name.
const LOCAL_MESSAGES: &str = "
    SELECT count(*)
      FROM rk_selected s
     CROSS JOIN events e
      LEFT JOIN state_events t ON t.event_id = e.event_id
     WHERE NOT s.to_delete
       AND e.stream_ordering = s.stream_ordering
       AND t.event_id IS NULL
       AND substr(e.sender, instr(e.sender, ':') + 1) = $1";

/// Messages of local users among what is selected that stay, where nobody sees them any more (P-56).
pub fn local_messages(db: &Db, cut: &DepthRange<'_>) -> Result<i64, Error> {
    if cut.delete_local_events {
        return Ok(0);
    }
    db.count(
        "count the local users' messages",
        LOCAL_MESSAGES,
        params![cut.server_name],
    )
}

/// Bytes of the JSON of to_delete events.
const BYTES_TO_DELETE: &str = "
    SELECT CAST(sum(octet_length(j.json) + octet_length(j.internal_metadata)) AS BIGINT)
      FROM rk_selected s
     CROSS JOIN event_json j
     WHERE s.to_delete AND j.event_id = s.event_id";

/// Tables of somebody else's with rows that refer to what is to be deleted, or to one of these state groups (P-53).
pub fn referring_tables(db: &Db, groups: &[i64]) -> Result<Vec<Unknown>, Error> {
    let mut found = room_rows::unknown_of_selection(db)?;
    room_rows::add_unknown(&mut found, room_rows::unknown_of_groups(db, groups)?);
    Ok(found)
}

/// Bytes of the JSON of the events to delete.
pub fn bytes_to_delete(db: &Db) -> Result<i64, Error> {
    db.count("measure the events to purge", BYTES_TO_DELETE, &[])
}

/// Counts what [`remove`] would remove, table by table.
pub fn count(db: &Db, cut: &DepthRange<'_>, selected: Selection) -> Result<RowCounts, Error> {
    let room = cut.room.as_str();
    let doing = "count the rows to purge";
    let mut counts = RowCounts::new();
    event_rows::count(db, Scope::History, room, selected.events, &mut counts)?;
    // This rule takes those of events to delete as well, which the table's own rule has counted.
    let all = db.count(doing, &counting(DROP_OUTLIER_EXTREMITIES), params![room])?;
    let to_delete = counts
        .get("event_forward_extremities")
        .copied()
        .unwrap_or(0);
    add(&mut counts, "event_forward_extremities", all - to_delete);
    fill_extremities(db, cut, Removal::Rows)?;
    let dropped = db.count(doing, &counting(DROP_EXTREMITIES), params![room])?;
    add(&mut counts, "event_backward_extremities", dropped);
    if db.catalog().has("threads") {
        let rootless = db.text(DROP_ROOTLESS_THREADS, DROP_ROOTLESS_THREADS_ON_POSTGRES);
        let mut threads = db.count(doing, &counting(rootless), params![room])?;
        for thread in threads_losing_latest(db, cut)? {
            threads += i64::from(latest_reply(db, room, &thread)?.is_none());
        }
        add(&mut counts, "threads", threads);
    }
    Ok(counts)
}

/// What [`remove`] removed.
pub struct Removed {
    /// Rows, by table.
    pub rows: RowCounts,
    /// The state groups of the selected events (P-12), each once: to be noted before the transaction is committed.
    pub state_groups: Vec<i64>,
}

/// Removes the selected rows and repairs what pointed at them, in the order of P-9 to P-21. `keep_from_depth` is the
/// depth that outlives the whole job, of which this cut may be one batch.
///
/// Must run in the transaction that selected.
///
/// # Errors
/// [`Abort::TooLong`] between two tables; those of the database.
pub fn remove(
    db: &Tx<'_>,
    cut: &DepthRange<'_>,
    selected: Selection,
    keep_from_depth: i64,
    removal: Removal,
) -> Result<Removed, Abort> {
    db.ensure_held(cut.room)?;
    let room = cut.room.as_str();
    let doing = "purge the events";
    let mut counts = RowCounts::new();
    if db.are_triggers_off() {
        db.entering("events")?;
        event_rows::remove_events_first(db, &mut counts)?;
    }
    if db.engine() == Engine::Sqlite {
        push_actions::decrement(db, room)?;
    }
    sliding_sync::update_joined_room(db, cut, keep_from_depth)?;
    // Before the rows of events to delete go, so that the rule can see whether another extremity remains.
    add(
        &mut counts,
        "event_forward_extremities",
        db.execute(doing, DROP_OUTLIER_EXTREMITIES, params![room])?,
    );
    if db.catalog().has("threads") {
        let losing = threads_losing_latest(db, cut)?;
        let rootless = db.text(DROP_ROOTLESS_THREADS, DROP_ROOTLESS_THREADS_ON_POSTGRES);
        let mut gone = db.execute(doing, rootless, params![room])?;
        for thread in losing {
            gone += repair_thread(db, room, &thread)?;
        }
        add(&mut counts, "threads", gone);
    }
    db.entering("event_to_state_groups")?;
    let state_groups = take_groups(db, &mut counts)?;
    event_rows::remove(
        db,
        Scope::History,
        room,
        selected.events,
        removal,
        &mut counts,
    )?;
    if db.engine() == Engine::Postgres {
        db.entering("event_push_actions")?;
        push_actions::delete(db, room, &mut counts)?;
    }
    // When the edges of events to delete have gone, hardly any edge to a selected event is left to be looked at.
    fill_extremities(db, cut, removal)?;
    let drop = db.text(DROP_EXTREMITIES, DROP_EXTREMITIES_ON_POSTGRES);
    let dropped = db.execute(doing, drop, params![room])?;
    let own = db.execute(doing, DROP_OWN_EXTREMITIES, &[])?;
    add(&mut counts, "event_backward_extremities", dropped - own);
    db.execute(doing, NOTE_OWN_EXTREMITIES, params![room])?;
    db.execute(doing, ADD_EXTREMITIES, params![room])?;
    db.execute(doing, TURN_OUTLIER, &[])?;
    // Last: Synapse waits for this row whenever it stores an event (P-11).
    db.execute(doing, LOWEST_DEPTH, params![room])?;
    Ok(Removed {
        rows: counts,
        state_groups,
    })
}

/// The statement that counts what `delete` deletes.
fn counting(delete: &str) -> String {
    delete.replacen("DELETE", "SELECT count(*)", 1)
}

fn fill_extremities(db: &Db, cut: &DepthRange<'_>, removal: Removal) -> Result<(), Error> {
    let doing = "find the new backward extremities";
    let room = cut.room.as_str();
    match removal {
        Removal::Rows => db.execute(doing, NEW_EXTREMITIES, params![room])?,
        Removal::Rewrite
            if cut.expiry.is_some() || cut.keep_extremities || !cut.held.is_empty() =>
        {
            db.execute(doing, NEW_EXTREMITIES_FROM_THE_REST, params![room])?
        }
        // A whole purge leaves nothing in the timeline below the cut.
        Removal::Rewrite => db.execute(
            doing,
            NEW_EXTREMITIES_FROM_SURVIVORS,
            params![room, cut.below],
        )?,
    };
    db.execute(doing, KEPT_EXTREMITIES, params![room])?;
    if db.engine() == Engine::Postgres {
        db.batch(doing, ANALYZE_EXTREMITIES)?;
    }
    Ok(())
}

fn threads_losing_latest(db: &Db, cut: &DepthRange<'_>) -> Result<Vec<String>, Error> {
    db.rows(
        "find the threads that lose their latest reply",
        THREADS_LOSING_LATEST,
        params![cut.room.as_str(), cut.below],
        |r| r.get(0),
    )
}

fn latest_reply(db: &Db, room: &str, thread: &str) -> Result<Option<(String, i64, i64)>, Error> {
    db.row(
        "find a thread's latest reply",
        LATEST_REPLY,
        params![thread, room],
        |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
    )
}

/// Points a thread at its latest surviving reply, or drops it; answers how many rows went.
fn repair_thread(db: &Tx<'_>, room: &str, thread: &str) -> Result<i64, Error> {
    let doing = "repair a thread";
    match latest_reply(db, room, thread)? {
        Some((event, topological, stream)) => {
            db.execute(
                doing,
                REPOINT_THREAD,
                params![event, topological, stream, room, thread],
            )?;
            Ok(0)
        }
        None => db.execute(doing, DROP_THREAD, params![room, thread]),
    }
}
