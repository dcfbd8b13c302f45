//! Reading what a transaction is about to remove, row by row as it stands, into a frame of an archive.
//!
//! Which tables that are comes from the one list of tables. Rows of our own stand beside them, in tables whose names begin
//! with `rk.`: what stays and changes, and by what a state group is known again whose number may be given out anew.

mod kept;

pub use self::kept::Kept;
use super::db::{Db, Engine, Params, params};
use super::event_rows::{self, RowCounts, Scope};
use super::exact_rows;
use super::tables::Rows;
use super::tx::Tx;
use super::value::Value;
use crate::archive::{Cell, Frame, Head, Kind, Witness};
use crate::error::{Context, Error, ServerError, StoreError};
use crate::ids::{EventId, RoomId};
use crate::time::Millis;

const DOING: &str = "write the archive";

/// Selected events of one chunk; bounds what reading one takes. A server's answer is here whole before it is written.
const CHUNK: i64 = 10_000;
const CHUNK_ON_POSTGRES: i64 = 1_000;

/// Events that stay and leave the timeline: `event_id`, `stream_ordering`.
pub(super) const OUTLIERS: &str = "rk.outliers";

/// State groups that are named and stay: `id`, `room_id`, `event_id`.
pub(super) const GROUPS: &str = "rk.groups";

/// The room's backward extremities before: `event_id`.
pub(super) const EXTREMITIES: &str = "rk.extremities";

/// The room's least depth before: `min_depth`.
pub(super) const DEPTH: &str = "rk.depth";

/// Behind the chunks of events, where rows of a room follow: `n`.
pub(super) const REST: &str = "rk.rest";

/// The last selected event of a chunk that begins behind `$1`, `$2` being one less than its length.
const END_OF_CHUNK: &str = "
    SELECT stream_ordering FROM rk_selected WHERE stream_ordering > $1 ORDER BY stream_ordering LIMIT 1 OFFSET $2";

/// Binds `$1` and `$2` the chunk.
const OUTLIERS_OF_CHUNK: &str = "
    SELECT s.event_id, s.stream_ordering
      FROM rk_selected s
     WHERE s.stream_ordering > $1 AND s.stream_ordering <= $2 AND NOT s.to_delete AND NOT s.outlier";

/// Binds `$1` and `$2` the chunk.
const GROUPS_OF_CHUNK: &str = "
    SELECT DISTINCT g.id, g.room_id, g.event_id
      FROM rk_selected s
     CROSS JOIN event_to_state_groups m
     CROSS JOIN state_groups g
     WHERE s.stream_ordering > $1 AND s.stream_ordering <= $2
       AND m.event_id = s.event_id
       AND g.id = m.state_group";

/// Binds `$1` and `$2` the chunk. The notes of the full-text index are there ([`Documents`](super::search::Documents)).
const DOCUMENTS_OF_CHUNK: &str = "
    SELECT c.c0event_id, c.c1room_id, c.c2sender, c.c3key, c.c4value
      FROM rk_selected s
     CROSS JOIN rk_search m
     CROSS JOIN event_search_content c
     WHERE s.stream_ordering > $1 AND s.stream_ordering <= $2 AND s.to_delete
       AND m.stream_ordering = s.stream_ordering
       AND c.docid = m.docid
       AND c.c0event_id = s.event_id";

pub(super) const DOCUMENT: [&str; 5] = ["event_id", "room_id", "sender", "key", "value"];

const EXTREMITIES_OF_ROOM: &str =
    "SELECT event_id FROM event_backward_extremities WHERE room_id = $1";

const DEPTH_OF_ROOM: &str = "SELECT min_depth FROM room_depth WHERE room_id = $1";

/// Threads that go or are repaired. Binds `$1` room. Walks the key on room and root, then `threads_ordering_idx`.
const THREADS: &str = "
    SELECT t.room_id, t.thread_id, t.latest_event_id, t.topological_ordering, t.stream_ordering
      FROM threads t
     WHERE t.room_id = $1
       AND (EXISTS (SELECT 1 FROM rk_selected s WHERE s.event_id = t.thread_id AND s.to_delete)
            OR EXISTS (SELECT 1 FROM rk_selected s WHERE s.event_id = t.latest_event_id AND s.to_delete))";

pub(super) const THREAD: [&str; 5] = [
    "room_id",
    "thread_id",
    "latest_event_id",
    "topological_ordering",
    "stream_ordering",
];

/// An event that goes, the newest; or one that leaves the timeline.
const WITNESS: &str = "
    SELECT event_id, stream_ordering, to_delete FROM rk_selected
     WHERE to_delete OR NOT outlier
     ORDER BY to_delete DESC, stream_ordering DESC LIMIT 1";

/// Binds `$1` event, `$2` stream ordering.
const EVENT_STANDS: &str =
    "SELECT count(*) FROM events WHERE event_id = $1 AND stream_ordering = $2";

/// Binds `$1` event, `$2` stream ordering.
const IN_TIMELINE: &str =
    "SELECT count(*) FROM events WHERE event_id = $1 AND stream_ordering = $2 AND NOT outlier";

/// Binds `$1` group, `$2` the event that it was made for.
const GROUP_STANDS: &str = "SELECT count(*) FROM state_groups WHERE id = $1 AND event_id = $2";

/// Whether what a transaction was to take away still stands.
pub fn stands(db: &Db, witness: &Witness) -> Result<bool, Error> {
    let found = match witness {
        Witness::Deleted {
            event_id,
            stream_ordering,
        } => db.count(
            DOING,
            EVENT_STANDS,
            params![event_id.as_str(), *stream_ordering],
        )?,
        Witness::Outlier {
            event_id,
            stream_ordering,
        } => db.count(
            DOING,
            IN_TIMELINE,
            params![event_id.as_str(), *stream_ordering],
        )?,
        Witness::StateGroup { group, event_id } => {
            db.count(DOING, GROUP_STANDS, params![*group, event_id.as_str()])?
        }
        Witness::Row { table, address } => i64::from(kept::row_stands(db, table, address)?),
    };
    Ok(found > 0)
}

pub(super) fn cell(value: Value<'_>) -> Cell<'_> {
    match value {
        Value::Null => Cell::Null,
        Value::Int(n) => Cell::Int(n),
        Value::Bool(b) => Cell::Bool(b),
        Value::Real(n) => Cell::Real(n),
        Value::Text(text) => Cell::Text(text.into()),
        Value::Bytes(bytes) => Cell::Bytes(bytes.into()),
    }
}

/// Writes what a query answers as rows of a table.
fn write(
    db: &Db,
    frame: &mut Frame<'_>,
    table: &str,
    columns: &[&str],
    sql: &str,
    params: Params<'_>,
) -> Result<(), Error> {
    let mut begun = false;
    let mut failed = None;
    db.query_while(DOING, sql, params, |row| {
        let mut cells = Vec::with_capacity(columns.len());
        for at in 0..columns.len() {
            cells.push(cell(row.value(at)?));
        }
        let named = match begun {
            true => Ok(()),
            false => frame.table(table, columns),
        };
        begun = true;
        failed = named.and_then(|()| frame.row(&cells)).err();
        Ok(failed.is_none())
    })?;
    match failed {
        Some(e) => Err(frame.explain(&e)),
        None => Ok(()),
    }
}

/// Writes everything that a history purge of the selected events removes or changes; in the transaction that selected,
/// before the first of it goes. Of a file's full-text index, the documents that are noted. Answers how many rows were
/// written, by table.
///
/// # Errors
/// Those of the archive and of the database.
pub fn write_selected(
    db: &Tx<'_>,
    room: &RoomId,
    events: i64,
    with_documents: bool,
    now: Millis,
    mut frame: Frame<'_>,
) -> Result<RowCounts, Error> {
    event_rows::hold_selected(db)?;
    let frame_ref = &mut frame;
    let of_room = params![room.as_str()];
    write(db, frame_ref, DEPTH, &["min_depth"], DEPTH_OF_ROOM, of_room)?;
    let extremity = ["event_id"];
    write(
        db,
        frame_ref,
        EXTREMITIES,
        &extremity,
        EXTREMITIES_OF_ROOM,
        of_room,
    )?;
    write_chunks(db, frame_ref, Scope::History, room, with_documents)?;
    if db.catalog().has("threads") {
        write(db, frame_ref, "threads", &THREAD, THREADS, of_room)?;
    }
    let witness = db.row(DOING, WITNESS, &[], |r| {
        let (event_id, stream_ordering) = (EventId::new(r.get::<_, String>(0)?), r.get(1)?);
        Ok(match r.get(2)? {
            true => Witness::Deleted {
                event_id,
                stream_ordering,
            },
            false => Witness::Outlier {
                event_id,
                stream_ordering,
            },
        })
    })?;
    let head = Head {
        kind: Kind::Events,
        room: room.clone(),
        at_ms: now,
        events,
        rows: frame.counts().clone(),
        is_encrypted: false,
        witness,
    };
    frame.finish(&head)?;
    Ok(head.rows)
}

/// Writes the selected events and what belongs to them, chunk by chunk.
fn write_chunks(
    db: &Db,
    frame: &mut Frame<'_>,
    scope: Scope,
    room: &RoomId,
    with_documents: bool,
) -> Result<(), Error> {
    // The events first: what becomes of them says what becomes of all other rows.
    let mut tables = scope.tables();
    let is_own = |table: &str| table == "event_search" && db.engine() == Engine::Sqlite;
    tables.retain(|(table, _)| !is_own(table.name) && db.catalog().has(table.name));
    tables.sort_by_key(|(_, rows)| *rows != Rows::Itself);
    let mut statements = Vec::new();
    for (table, rows) in tables {
        let columns = exact_rows::columns(db, table.name)?;
        let read: Vec<String> = columns.iter().map(|column| column.select()).collect();
        let columns: Vec<String> = columns.into_iter().map(|column| column.name).collect();
        let condition = match rows {
            Rows::Itself => "t.stream_ordering = s.stream_ordering AND s.to_delete",
            Rows::Deleted => "t.event_id = s.event_id AND s.to_delete",
            Rows::Selected => "t.event_id = s.event_id",
            Rows::DeletedInRoom => "t.event_id = s.event_id AND s.to_delete AND t.room_id = $3",
        };
        let sql = format!(
            "SELECT {} FROM rk_selected s CROSS JOIN {} t
              WHERE s.stream_ordering > $1 AND s.stream_ordering <= $2 AND {condition}",
            read.join(", "),
            table.name
        );
        statements.push((table.name, columns, sql, rows == Rows::DeletedInRoom));
    }
    let most = match db.engine() {
        Engine::Sqlite => CHUNK,
        Engine::Postgres => CHUNK_ON_POSTGRES,
    };
    let mut after = i64::MIN;
    loop {
        let end = db.row(DOING, END_OF_CHUNK, params![after, most - 1], |r| r.get(0))?;
        let to: i64 = end.unwrap_or(i64::MAX);
        frame.chunk().map_err(|e| frame.explain(&e))?;
        let chunk = params![after, to];
        let outlier = ["event_id", "stream_ordering"];
        write(db, frame, OUTLIERS, &outlier, OUTLIERS_OF_CHUNK, chunk)?;
        let group = ["id", "room_id", "event_id"];
        write(db, frame, GROUPS, &group, GROUPS_OF_CHUNK, chunk)?;
        for (table, columns, sql, in_room) in &statements {
            let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
            match in_room {
                true => {
                    let chunk = params![after, to, room.as_str()];
                    write(db, frame, table, &columns, sql, chunk)?;
                }
                false => write(db, frame, table, &columns, sql, chunk)?,
            }
        }
        if with_documents {
            write(
                db,
                frame,
                "event_search",
                &DOCUMENT,
                DOCUMENTS_OF_CHUNK,
                chunk,
            )?;
        }
        match end {
            Some(end) => after = end,
            None => break,
        }
    }
    Ok(())
}

/// Makes sure that no row of an event went that was not written down: where triggers are off, whoever adds one that no
/// foreign key binds to its event is not waited for. To be called before the transaction commits.
///
/// # Errors
/// As when others were in the way: the transaction is begun again.
pub fn ensure_written(db: &Db, written: &RowCounts, removed: &RowCounts) -> Result<(), Error> {
    for (table, _) in Scope::History.tables() {
        // Its rows go by a rule of their own as well (P-10), and a foreign key binds them.
        if table.name == "event_forward_extremities" {
            continue;
        }
        let rows = |counts: &RowCounts| counts.get(table.name).copied().unwrap_or(0);
        if rows(removed) <= rows(written) {
            continue;
        }
        let text = format!("rows of {} came while they were written down", table.name);
        return match db.engine() {
            Engine::Sqlite => Err(Error::Bug(text)),
            Engine::Postgres => Err(StoreError::Server(ServerError {
                code: Some("40001".into()),
                text,
                is_disconnected: false,
            }))
            .context(DOING),
        };
    }
    Ok(())
}

/// Binds `$1` group.
const GROUP: &str = "SELECT id, room_id, event_id FROM state_groups WHERE id = $1";

/// Binds `$1` group.
const EDGES: &str =
    "SELECT state_group, prev_state_group FROM state_group_edges WHERE state_group = $1";

/// What a group rests on. Binds `$1` group.
const BASES: &str = "
    SELECT g.id, g.room_id, g.event_id
      FROM state_group_edges x
     CROSS JOIN state_groups g
     WHERE x.state_group = $1 AND g.id = x.prev_state_group";

/// Binds `$1` group.
const ENTRIES: &str = "
    SELECT state_group, room_id, type, state_key, event_id FROM state_groups_state WHERE state_group = $1";

/// Writes a state group that is about to go, with what it rests on.
///
/// # Errors
/// Those of the archive and of the database.
pub fn write_group(db: &Db, group: i64, frame: &mut Frame<'_>) -> Result<(), Error> {
    let of = params![group];
    let known = ["id", "room_id", "event_id"];
    write(db, frame, "state_groups", &known, GROUP, of)?;
    let edge = ["state_group", "prev_state_group"];
    write(db, frame, "state_group_edges", &edge, EDGES, of)?;
    write(db, frame, GROUPS, &known, BASES, of)?;
    let entry = ["state_group", "room_id", "type", "state_key", "event_id"];
    write(db, frame, "state_groups_state", &entry, ENTRIES, of)
}

/// By what it is told whether a transaction that deletes this group has committed.
pub fn witness_of_group(db: &Db, group: i64) -> Result<Option<Witness>, Error> {
    db.row(DOING, GROUP, params![group], |r| {
        Ok(Witness::StateGroup {
            group,
            event_id: EventId::new(r.get::<_, String>(2)?),
        })
    })
}
