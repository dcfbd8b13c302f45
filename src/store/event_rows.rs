//! Rows that belong to events: which tables have them, counting them, and two ways to remove them.
//!
//! *By rows*: what goes is looked up and deleted in the order in which it lies in the file. *By refilling*: where
//! nearly everything of a table goes, what stays is put aside, the table is emptied in one step and filled again;
//! none of its pages is written only to be freed.

use std::collections::BTreeMap;

use super::db::{Db, Engine, Params, params};
use crate::error::Error;

/// Rows removed, or to be removed, by table.
pub type RowCounts = BTreeMap<String, i64>;

/// How rows are to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Row by row; whatever the share.
    Rows,
    /// The large tables by putting aside what stays. Foreign keys must be off, and be checked afterwards: SQLite
    /// empties no table in one step while they are on.
    Rewrite,
}

/// Adds to the count of a table; nothing is not counted.
pub fn add(counts: &mut RowCounts, table: &str, rows: i64) {
    if rows != 0 {
        *counts.entry(table.to_owned()).or_default() += rows;
    }
}

/// How a table's rows are found by their event.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rows {
    /// Rows of events to delete, by `event_id`.
    ToDelete,
    /// Rows of all selected events, by `event_id` (P-12).
    Selection,
    /// Rows of events to delete, by room and event: the only index there is.
    ToDeleteInRoom,
    /// The events themselves.
    Events,
}

/// What is removed, in the order of P-13 (which is also the lock order of P-26): first what has a foreign key
/// on `events`, even where it would cascade (P-17), so that it is counted; our own additions of P-20 last.
const TABLES: &[(&str, Rows)] = &[
    ("event_to_state_groups", Rows::Selection),
    ("event_edges", Rows::ToDelete),
    ("event_txn_id", Rows::ToDelete),
    ("event_txn_id_device_id", Rows::ToDelete),
    ("un_partial_stated_event_stream", Rows::ToDelete),
    ("thread_subscriptions", Rows::ToDelete),
    ("event_forward_extremities", Rows::ToDelete),
    ("events", Rows::Events),
    ("event_json", Rows::ToDelete),
    ("event_auth", Rows::ToDelete),
    ("event_relations", Rows::ToDelete),
    // On PostgreSQL a table like any other.
    ("event_search", Rows::ToDelete),
    ("rejections", Rows::ToDelete),
    ("redactions", Rows::ToDelete),
    ("event_push_actions", Rows::ToDeleteInRoom),
    ("event_labels", Rows::ToDelete),
    ("event_expiry", Rows::ToDelete),
    ("event_push_actions_staging", Rows::ToDelete),
];

/// The same where a whole room goes (E-8, E-9, E-10): everything that belongs to an event before the event itself.
const ROOM_TABLES: &[(&str, Rows)] = &[
    ("event_auth", Rows::ToDelete),
    ("event_edges", Rows::ToDelete),
    ("event_json", Rows::ToDelete),
    ("event_push_actions_staging", Rows::ToDelete),
    ("event_relations", Rows::ToDelete),
    ("event_to_state_groups", Rows::ToDelete),
    ("event_auth_chains", Rows::ToDelete),
    ("event_auth_chain_to_calculate", Rows::ToDelete),
    ("redactions", Rows::ToDelete),
    ("rejections", Rows::ToDelete),
    ("state_events", Rows::ToDelete),
    ("event_expiry", Rows::ToDelete),
    ("event_labels", Rows::ToDelete),
    ("event_txn_id", Rows::ToDelete),
    ("event_txn_id_device_id", Rows::ToDelete),
    ("un_partial_stated_event_stream", Rows::ToDelete),
    ("thread_subscriptions", Rows::ToDelete),
    ("room_memberships", Rows::ToDelete),
    ("event_search", Rows::ToDelete),
    ("event_forward_extremities", Rows::ToDelete),
    ("event_push_actions", Rows::ToDeleteInRoom),
    ("events", Rows::Events),
];

/// What is removed with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The room stays: a history purge.
    History,
    /// The room goes.
    Room,
}

impl Scope {
    fn tables(self) -> &'static [(&'static str, Rows)] {
        match self {
            Self::History => TABLES,
            Self::Room => ROOM_TABLES,
        }
    }
}

/// Whether rows of the table go with their events when a room goes.
pub(super) fn goes_with_room(table: &str) -> bool {
    ROOM_TABLES.iter().any(|(known, _)| *known == table)
}

/// Tables that hold something for nearly every event: walked from the selection, without asking how large
/// they are.
const PER_EVENT: &[&str] = &["event_to_state_groups", "event_edges", "event_json"];

/// Counts what [`remove`] would remove.
pub fn count(
    db: &Db,
    scope: Scope,
    room: &str,
    selected: i64,
    counts: &mut RowCounts,
) -> Result<(), Error> {
    for found in present(db, scope, room, selected)? {
        let sql = format!("SELECT count(*) FROM {}", found.found_by());
        let rows = db.count("count the rows to purge", &sql, found.params(&[&room]))?;
        add(counts, found.table, rows);
    }
    Ok(())
}

/// Removes the rows of the selected events, in the order of P-13; on PostgreSQL a purge takes those of P-12 and P-15
/// with what it reads of them. `each` hears of a table before it is looked at; its
/// error ends the work.
pub fn remove(
    db: &Db,
    scope: Scope,
    room: &str,
    selected: i64,
    removal: Removal,
    counts: &mut RowCounts,
    each: &mut dyn FnMut(&'static str) -> Result<(), Error>,
) -> Result<(), Error> {
    let triggered = match removal {
        Removal::Rewrite => tables_with_triggers(db)?,
        Removal::Rows => Vec::new(),
    };
    for found in present(db, scope, room, selected)? {
        let is_taken = matches!(found.rows, Rows::Selection | Rows::ToDeleteInRoom);
        if is_taken && scope == Scope::History && db.engine() == Engine::Postgres {
            continue;
        }
        if found.rows == Rows::Events && db.are_triggers_off() {
            // They have gone before all others.
            continue;
        }
        each(found.table)?;
        let is_large = found.rows == Rows::Events
            || PER_EVENT.contains(&found.table)
            || found.table == "event_relations";
        // A trigger of somebody's own must not hear of rows that stay.
        let may_rewrite = is_large && !triggered.iter().any(|t| t == found.table);
        let rows = if removal == Removal::Rewrite && may_rewrite {
            rewrite(db, found.table, &found.stays())?
        } else {
            match db.engine() {
                Engine::Sqlite if found.has_few() => delete_each(db, &found, &[&room])?,
                Engine::Sqlite => {
                    db.execute("purge the events", &found.delete(), found.params(&[&room]))?
                }
                Engine::Postgres => {
                    let delete = found.delete_on_postgres();
                    db.execute("purge the events", &delete, found.params(&[&room]))?
                }
            }
        };
        add(counts, found.table, rows);
    }
    Ok(())
}

/// Where triggers are off, the events themselves before everything that belongs to them: whoever is adding a row that
/// refers to one of them holds it, so our delete waits until that row is there to be seen by the deletes that follow,
/// and nobody can add another one. An outlier that has become a part of the timeline meanwhile is let go of.
pub(super) fn remove_events_first(db: &Db, counts: &mut RowCounts) -> Result<(), Error> {
    let doing = "purge the events";
    db.count(doing, HOLD_OUTLIERS, &[])?;
    db.execute(doing, LET_GO_OF_FORMER_OUTLIERS, &[])?;
    let rows = db.execute(doing, DELETE_EVENTS_FIRST, &[])?;
    add(counts, "events", rows);
    Ok(())
}

const HOLD_OUTLIERS: &str = "-- PostgreSQL
    SELECT count(*)
      FROM (SELECT 1
              FROM rk_selected s
             CROSS JOIN events e
             WHERE s.outlier
               AND e.stream_ordering = s.stream_ordering
               FOR UPDATE OF e) AS held";

const LET_GO_OF_FORMER_OUTLIERS: &str = "-- PostgreSQL
    DELETE FROM rk_selected s
     USING events e
     WHERE s.outlier
       AND e.stream_ordering = s.stream_ordering
       AND NOT e.outlier";

const DELETE_EVENTS_FIRST: &str = "-- PostgreSQL
    DELETE FROM events t USING rk_selected s WHERE t.stream_ordering = s.stream_ordering AND s.to_delete";

/// Deletes rows one by one, in the order in which they lie in the file. Asked to delete a set of them, SQLite would read
/// from end to end a table of which statistics once told that it was small, for every purge of a few events.
fn delete_each(db: &Db, found: &TableRule, room: Params<'_>) -> Result<i64, Error> {
    let doing = "purge the events";
    let find = format!("SELECT t.rowid FROM {}", found.found_by());
    let mut rows: Vec<i64> = db.rows(doing, &find, found.params(room), |r| r.get(0))?;
    rows.sort_unstable();
    rows.dedup();
    let delete = format!("DELETE FROM {} WHERE rowid = $1", found.table);
    let mut deleted = 0;
    for row in rows {
        deleted += db.execute(doing, &delete, params![row])?;
    }
    Ok(deleted)
}

/// Puts aside the rows of `table` that satisfy `stays` (over the table as `t`), empties it, and fills it again:
/// same rowids, same order, same definition. Answers how many rows are gone.
pub fn rewrite(db: &Db, table: &str, stays: &str) -> Result<i64, Error> {
    let doing = "refill a table";
    let columns = db.rows(
        doing,
        "SELECT '\"' || name || '\"' FROM pragma_table_info($1)",
        &[&table],
        |r| r.get::<_, String>(0),
    )?;
    let columns = columns.join(", ");
    // Found by whatever index is smallest, then read in the order of the file.
    db.batch(
        doing,
        "CREATE TEMPORARY TABLE IF NOT EXISTS rk_stays (number INTEGER PRIMARY KEY);
         DELETE FROM rk_stays;
         DROP TABLE IF EXISTS rk_aside;",
    )?;
    db.execute(
        doing,
        &format!("INSERT INTO rk_stays SELECT t.rowid FROM {table} t WHERE {stays}"),
        &[],
    )?;
    db.batch(
        doing,
        &format!(
            "CREATE TEMPORARY TABLE rk_aside AS
             SELECT s.number AS rk_number, {columns} FROM rk_stays s CROSS JOIN {table} t WHERE t.rowid = s.number"
        ),
    )?;
    let emptied = db.execute(doing, &format!("DELETE FROM {table}"), &[])?;
    let filled = db.execute(
        doing,
        &format!("INSERT INTO {table} (rowid, {columns}) SELECT rk_number, {columns} FROM rk_aside ORDER BY rk_number"),
        &[],
    )?;
    db.batch(doing, "DROP TABLE rk_aside; DELETE FROM rk_stays;")?;
    Ok(emptied - filled)
}

/// Whether [`remove`] leaves no row of `table` whose `column` is the id of a deleted event.
pub fn goes_with_its_event(table: &str, column: &str) -> bool {
    column == "event_id"
        && TABLES
            .iter()
            .any(|(t, rows)| *t == table && matches!(rows, Rows::ToDelete | Rows::Selection))
}

/// The tables from which a history purge removes rows.
pub(super) fn tables_of_history() -> impl Iterator<Item = &'static str> {
    TABLES.iter().map(|(table, _)| *table)
}

/// The tables from which the deletion of a room removes rows of its events.
pub(super) fn tables_of_room() -> impl Iterator<Item = &'static str> {
    ROOM_TABLES.iter().map(|(table, _)| *table)
}

/// SQLite: the tables that have triggers, in lower case. A rewrite would have them fire for rows that stay.
pub fn tables_with_triggers(db: &Db) -> Result<Vec<String>, Error> {
    const TRIGGERS: &str =
        "SELECT DISTINCT lower(tbl_name) FROM sqlite_master WHERE type = 'trigger'";
    db.rows("look for triggers", TRIGGERS, &[], |r| r.get(0))
}

/// Rows that break a foreign key, whether or not keys are on.
pub fn broken_foreign_keys(db: &Db) -> Result<i64, Error> {
    db.count(
        "check the foreign keys",
        "SELECT count(*) FROM pragma_foreign_key_check",
        &[],
    )
}

/// A rule of [`TABLES`] whose table exists and is not empty.
struct TableRule {
    table: &'static str,
    rows: Rows,
    from_table: bool,
}

impl TableRule {
    /// `FROM` and `WHERE` that find the rows, `t` being the table; walked from the selection's side or, where the
    /// table is the smaller one, from the table's.
    fn found_by(&self) -> String {
        let (table, condition) = (self.table, self.condition());
        if self.from_table {
            format!("{table} t CROSS JOIN rk_selected s WHERE {condition}")
        } else {
            format!("rk_selected s CROSS JOIN {table} t WHERE {condition}")
        }
    }

    /// Whether the table has rows for some events only, and is looked into for each of the selected ones.
    fn has_few(&self) -> bool {
        !self.from_table && self.rows != Rows::Events && !PER_EVENT.contains(&self.table)
    }

    /// What makes a row of the table, `t`, one of the selection's, `s`.
    fn condition(&self) -> &'static str {
        match self.rows {
            Rows::Events => "t.stream_ordering = s.stream_ordering AND s.to_delete",
            Rows::ToDelete => "t.event_id = s.event_id AND s.to_delete",
            Rows::Selection => "t.event_id = s.event_id",
            Rows::ToDeleteInRoom => "t.event_id = s.event_id AND s.to_delete AND t.room_id = $1",
        }
    }

    /// Rows are collected first and deleted in the order in which they lie in the file.
    fn delete(&self) -> String {
        match self.rows {
            Rows::Events => "DELETE FROM events WHERE stream_ordering IN \
                             (SELECT stream_ordering FROM rk_selected WHERE to_delete)"
                .to_owned(),
            _ => format!(
                "DELETE FROM {} WHERE rowid IN (SELECT t.rowid FROM {})",
                self.table,
                self.found_by()
            ),
        }
    }

    /// The server finds by itself how to go about it.
    fn delete_on_postgres(&self) -> String {
        format!(
            "DELETE FROM {} t USING rk_selected s WHERE {}",
            self.table,
            self.condition()
        )
    }

    /// The condition under which a row stays, for [`rewrite`].
    fn stays(&self) -> String {
        let (of_event, to_delete) = match self.rows {
            Rows::Events => ("s.stream_ordering = t.stream_ordering", " AND s.to_delete"),
            Rows::Selection => ("s.event_id = t.event_id", ""),
            Rows::ToDelete | Rows::ToDeleteInRoom => {
                ("s.event_id = t.event_id", " AND s.to_delete")
            }
        };
        format!("NOT EXISTS (SELECT 1 FROM rk_selected s WHERE {of_event}{to_delete})")
    }

    fn params<'a>(&self, room: Params<'a>) -> Params<'a> {
        if self.rows == Rows::ToDeleteInRoom {
            room
        } else {
            &[]
        }
    }
}

/// The rules that have anything to do here, and from which side to walk each.
fn present(db: &Db, scope: Scope, room: &str, selected: i64) -> Result<Vec<TableRule>, Error> {
    let mut found = Vec::new();
    for &(table, rows) in scope.tables() {
        // SQLite's full-text index has no key on event ids, and a way of its own.
        let is_index = table == "event_search" && db.catalog().has("event_search_content");
        if !db.catalog().has(table) || is_index {
            continue;
        }
        if db.engine() == Engine::Postgres {
            found.push(TableRule {
                table,
                rows,
                from_table: false,
            });
            continue;
        }
        let mut from_table = false;
        if !PER_EVENT.contains(&table) && rows != Rows::Events {
            // No table has more rows than its greatest rowid.
            let at_most = db.count(
                "look at a table's size",
                &format!("SELECT max(rowid) FROM {table}"),
                &[],
            )?;
            if at_most <= 0 {
                continue;
            }
            from_table = at_most < selected;
        }
        if rows == Rows::ToDeleteInRoom {
            let any = format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE room_id = $1)");
            if db.count("look whether a table has rows of the room", &any, &[&room])? == 0 {
                continue;
            }
        }
        found.push(TableRule {
            table,
            rows,
            from_table,
        });
    }
    Ok(found)
}
