//! All groups of a room that goes, and what other programs noted of a room's groups.

use super::{FORGET_ORPHANS, Freed, OF_ROOM, REFERENCED, delete_group};
use crate::error::Error;
use crate::ids::RoomId;
use crate::store::archived::Kept;
use crate::store::db::{Db, Engine, params};
use crate::store::event_rows::{RowCounts, add};
use crate::store::tx::Tx;

/// A group of another room, and that room, which rests on a group of a room that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependent {
    /// The group.
    pub group: i64,
    /// Its room.
    pub room: RoomId,
}

/// Groups of other rooms that are deltas on groups of this one (E-17). Walks the room's groups and
/// `state_group_edges_prev_idx`.
pub fn dependents(db: &Db, room: &RoomId) -> Result<Vec<Dependent>, Error> {
    const DEPENDENTS: &str = "
        SELECT s.id, s.room_id
          FROM state_groups g
         CROSS JOIN state_group_edges x
         CROSS JOIN state_groups s
         WHERE g.room_id = $1
           AND x.prev_state_group = g.id
           AND s.id = x.state_group
           AND s.room_id <> $1
         ORDER BY s.id";
    let doing = "look for other rooms' state that rests on this room's";
    db.rows(doing, DEPENDENTS, params![room.as_str()], |r| {
        Ok(Dependent {
            group: r.get(0)?,
            room: RoomId::new(r.get::<_, String>(1)?),
        })
    })
}

/// Deletes groups of a room that goes, until about `rows` rows are gone; answers how many of `groups` were dealt with.
/// Inside a transaction. What hangs on what within the room is of no account: all of it goes. A group stays that an event
/// has which is held, or that another room's group rests on ([`dependents`]).
pub fn delete_with_room(
    db: &Tx<'_>,
    room: &RoomId,
    groups: &[i64],
    rows: i64,
    freed: &mut Freed,
    kept: &mut Kept<'_>,
) -> Result<usize, Error> {
    db.ensure_held(room)?;
    const RESTS_ELSEWHERE: &str = "
        SELECT EXISTS (
            SELECT 1 FROM state_group_edges x
             CROSS JOIN state_groups s
             WHERE x.prev_state_group = $1 AND s.id = x.state_group AND s.room_id <> $2)";
    let doing = "delete state groups";
    let until = freed.entries + rows;
    for (done, &group) in groups.iter().enumerate() {
        if freed.entries >= until {
            return Ok(done);
        }
        if db.count(doing, OF_ROOM, params![group, room.as_str()])? == 0 {
            continue;
        }
        if db.count(doing, REFERENCED, params![group])? == 1
            || db.count(doing, RESTS_ELSEWHERE, params![group, room.as_str()])? == 1
        {
            log::warn!("state group {group} is of use to another room and stays");
            continue;
        }
        kept.group(db, group)?;
        delete_group(db, group, freed)?;
    }
    Ok(groups.len())
}

/// Whether the state compressor (another program) has noted anything of the room, in tables that are ours to write.
pub fn has_compressor_notes(db: &Db, room: &RoomId) -> Result<bool, Error> {
    let [levels, _] = COMPRESSOR_TABLES;
    let doing = "look what the state compressor noted of the room";
    let sql = format!("SELECT count(*) FROM {levels} WHERE room_id = $1");
    Ok(db.catalog().has_column(levels, "current_head")
        && may_forget(db)?
        && db.count(doing, &sql, params![room.as_str()])? > 0)
}

/// Takes away what the state compressor noted of the room, where it goes by a group that is gone or waits for its
/// deletion: it cannot go on from there, and begins the room anew without its notes. Inside a transaction.
pub fn forget_compressor(db: &Tx<'_>, room: &RoomId, freed: &mut Freed) -> Result<(), Error> {
    db.ensure_held(room)?;
    let [levels, _] = COMPRESSOR_TABLES;
    let doing = "look what the state compressor noted of the room";
    let has_gone = format!(
        "SELECT count(*) FROM {levels} s
          WHERE s.room_id = $1 AND s.current_head IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM state_groups g WHERE g.id = s.current_head AND g.room_id = $1)"
    );
    let is_marked = format!(
        "SELECT count(*) FROM {levels} s CROSS JOIN state_groups_pending_deletion p
          WHERE s.room_id = $1 AND p.state_group = s.current_head"
    );
    let is_stale = db.count(doing, &has_gone, params![room.as_str()])? > 0
        || (db.catalog().has("state_groups_pending_deletion")
            && db.count(doing, &is_marked, params![room.as_str()])? > 0);
    if is_stale {
        forget_compressor_with_room(db, room, &mut freed.notes)?;
    }
    Ok(())
}

/// What the state compressor notes of rooms.
const COMPRESSOR_TABLES: [&str; 2] = ["state_compressor_state", "state_compressor_progress"];

/// The tables are another program's, and may be another role's.
fn may_forget(db: &Db) -> Result<bool, Error> {
    const MAY: &str = "-- PostgreSQL
        SELECT count(*) FROM json_array_elements_text(CAST($1 AS JSON)) AS t(name)
         WHERE to_regclass(t.name) IS NOT NULL
           AND NOT (has_table_privilege(t.name, 'SELECT') AND has_table_privilege(t.name, 'DELETE'))";
    if db.engine() == Engine::Sqlite {
        return Ok(true);
    }
    let tables =
        serde_json::to_string(&COMPRESSOR_TABLES).map_err(|e| Error::Bug(e.to_string()))?;
    let doing = "look whether the compressor's tables are ours to write";
    Ok(db.count(doing, MAY, params![tables])? == 0)
}

/// Forgets them with the room.
pub fn forget_compressor_with_room(
    db: &Tx<'_>,
    room: &RoomId,
    counts: &mut RowCounts,
) -> Result<(), Error> {
    if !COMPRESSOR_TABLES
        .iter()
        .any(|table| db.catalog().has(table))
        || !may_forget(db)?
    {
        return Ok(());
    }
    for table in COMPRESSOR_TABLES
        .iter()
        .filter(|table| db.catalog().has(table))
    {
        let sql = format!("DELETE FROM {table} WHERE room_id = $1");
        let rows = db.execute(
            "forget what the compressor noted",
            &sql,
            params![room.as_str()],
        )?;
        add(counts, table, rows);
    }
    Ok(())
}

/// The room's groups, newest first, which is children before parents (P-33). Walks `state_groups_room_id_idx`.
pub fn of_room(db: &Db, room: &RoomId) -> Result<Vec<i64>, Error> {
    const GROUPS: &str = "SELECT id FROM state_groups WHERE room_id = $1 ORDER BY id DESC";
    let doing = "read the room's state groups";
    db.rows(doing, GROUPS, params![room.as_str()], |r| r.get(0))
}

/// Counts the rows of the room's groups, and the orphans that [`forget_orphans`](super::forget_orphans) would forget.
pub fn count_of_room(db: &Db, room: &RoomId, counts: &mut RowCounts) -> Result<(), Error> {
    const GROUPS: &str = "SELECT count(*) FROM state_groups WHERE room_id = $1";
    const ENTRIES: &str = "
        SELECT count(*) FROM state_groups g CROSS JOIN state_groups_state s
         WHERE g.room_id = $1 AND s.state_group = g.id";
    const EDGES: &str = "
        SELECT count(*) FROM state_group_edges
         WHERE state_group IN (SELECT id FROM state_groups WHERE room_id = $1)
            OR prev_state_group IN (SELECT id FROM state_groups WHERE room_id = $1)";
    const PENDING: &str = "
        SELECT count(*) FROM state_groups_pending_deletion
         WHERE state_group IN (SELECT id FROM state_groups WHERE room_id = $1)";
    let doing = "count the room's state groups";
    const MAPPINGS: &str = "
        SELECT count(*) FROM event_to_state_groups u
         WHERE u.state_group IN (SELECT id FROM state_groups WHERE room_id = $1)
           AND NOT EXISTS (SELECT 1 FROM events e WHERE e.event_id = u.event_id)";
    for (table, sql) in [
        ("event_to_state_groups", MAPPINGS),
        ("state_groups", GROUPS),
        ("state_groups_state", ENTRIES),
        ("state_group_edges", EDGES),
        ("state_groups_pending_deletion", PENDING),
    ] {
        if db.catalog().has(table) {
            add(counts, table, db.count(doing, sql, params![room.as_str()])?);
        }
    }
    for table in COMPRESSOR_TABLES
        .iter()
        .filter(|table| db.catalog().has(table))
    {
        let sql = format!("SELECT count(*) FROM {table} WHERE room_id = $1");
        add(
            counts,
            table,
            db.count(doing, &sql, params![room.as_str()])?,
        );
    }
    if db.catalog().has("state_groups_persisting") {
        let count = OF_ROOM_PERSISTING.replacen("DELETE", "SELECT count(*)", 1);
        let rows = db.count(doing, &count, params![room.as_str()])?;
        add(counts, "state_groups_persisting", rows);
    }
    if db.catalog().has("state_groups_pending_deletion") {
        let count = FORGET_ORPHANS.replacen("DELETE", "SELECT count(*)", 1);
        let orphans = db.count(doing, &count, &[])?;
        add(counts, "state_groups_pending_deletion", orphans);
    }
    Ok(())
}

const OF_ROOM_PERSISTING: &str = "
    DELETE FROM state_groups_persisting
     WHERE state_group IN (SELECT id FROM state_groups WHERE room_id = $1)";

/// Forgets that events of the room are being stored: nothing is any more, or it was in a homeserver that died, and the
/// groups' numbers may be used again.
pub fn forget_persisting(db: &Tx<'_>, room: &RoomId, counts: &mut RowCounts) -> Result<(), Error> {
    if db.catalog().has("state_groups_persisting") {
        let doing = "forget state groups in use";
        let rows = db.execute(doing, OF_ROOM_PERSISTING, params![room.as_str()])?;
        add(counts, "state_groups_persisting", rows);
    }
    Ok(())
}
