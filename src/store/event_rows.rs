//! Rows that belong to events: which tables have them, counting them, and two ways to remove them.
//!
//! *By rows*: what goes is looked up and deleted in the order in which it lies in the file. *By refilling*: where
//! nearly everything of a table goes, what stays is put aside, the table is emptied in one step and filled again;
//! none of its pages is written only to be freed.

use std::collections::BTreeMap;

use super::db::{Db, Engine, Params, params};
use super::tables::{self, Per, Rows, Table};
use super::tx::{Abort, Tx};
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

/// Adds the counts of every table.
pub fn add_all(counts: &mut RowCounts, more: &RowCounts) {
    for (table, rows) in more {
        add(counts, table, *rows);
    }
}

/// What is removed with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The room stays: a history purge.
    History,
    /// The room goes.
    Room,
}

impl Scope {
    /// The tables that lose rows, in the order in which they do; each with how its rows are found.
    pub(super) fn tables(self) -> Vec<(&'static Table, Rows)> {
        let rows = |table: &'static Table| match self {
            Self::History => table.purged(),
            Self::Room => table.with_event,
        };
        let with_rows = |table| Some((table, rows(table)?));
        match self {
            Self::History => tables::purged().filter_map(with_rows).collect(),
            Self::Room => tables::with_events_of_room()
                .filter_map(with_rows)
                .collect(),
        }
    }
}

/// Counts what `remove` would remove.
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
        add(counts, found.table.name, rows);
    }
    Ok(())
}

/// Removes the rows of the selected events, in the order of P-13; on PostgreSQL a purge takes those of P-12 and P-15
/// with what it reads of them.
pub(super) fn remove(
    db: &Tx<'_>,
    scope: Scope,
    room: &str,
    selected: i64,
    removal: Removal,
    counts: &mut RowCounts,
) -> Result<(), Abort> {
    let triggered = match removal {
        Removal::Rewrite => tables_with_triggers(db)?,
        Removal::Rows => Vec::new(),
    };
    for found in present(db, scope, room, selected)? {
        let is_taken = matches!(found.rows, Rows::Selected | Rows::DeletedInRoom);
        if is_taken && scope == Scope::History && db.engine() == Engine::Postgres {
            continue;
        }
        if found.rows == Rows::Itself && db.are_triggers_off() {
            // They have gone before all others.
            continue;
        }
        db.entering(found.table.name)?;
        let is_large = matches!(found.table.per, Per::Event | Per::ManyEvents);
        // A trigger of somebody's own must not hear of rows that stay.
        let may_rewrite = is_large && !triggered.iter().any(|t| t == found.table.name);
        let rows = if removal == Removal::Rewrite && may_rewrite {
            rewrite(db, found.table.name, &found.stays())?
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
        add(counts, found.table.name, rows);
    }
    Ok(())
}

/// Where triggers are off, the events themselves before everything that belongs to them: whoever is adding a row that
/// refers to one of them holds it, so our delete waits until that row is there to be seen by the deletes that follow,
/// and nobody can add another one. An outlier that has become a part of the timeline meanwhile is let go of.
pub(super) fn remove_events_first(db: &Tx<'_>, counts: &mut RowCounts) -> Result<(), Error> {
    let doing = "purge the events";
    db.count(doing, HOLD_OUTLIERS, &[])?;
    db.execute(doing, LET_GO_OF_FORMER_OUTLIERS, &[])?;
    let rows = db.execute(doing, DELETE_EVENTS_FIRST, &[])?;
    add(counts, "events", rows);
    Ok(())
}

/// Where triggers are off: has the selected events to itself, so that what belongs to them by a foreign key stays as it is
/// until they go. Outliers that have become a part of the timeline meanwhile are let go of.
pub(super) fn hold_selected(db: &Tx<'_>) -> Result<(), Error> {
    if db.are_triggers_off() {
        let doing = "hold the events to purge";
        db.count(doing, HOLD_SELECTED, &[])?;
        db.execute(doing, LET_GO_OF_FORMER_OUTLIERS, &[])?;
    }
    Ok(())
}

const HOLD_SELECTED: &str = "-- PostgreSQL
    SELECT count(*)
      FROM (SELECT 1
              FROM rk_selected s
             CROSS JOIN events e
             WHERE e.stream_ordering = s.stream_ordering
               FOR UPDATE OF e) AS held";

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
fn delete_each(db: &Tx<'_>, found: &TableRule, room: Params<'_>) -> Result<i64, Error> {
    let doing = "purge the events";
    let find = format!("SELECT t.rowid FROM {}", found.found_by());
    let mut rows: Vec<i64> = db.rows(doing, &find, found.params(room), |r| r.get(0))?;
    rows.sort_unstable();
    rows.dedup();
    let delete = format!("DELETE FROM {} WHERE rowid = $1", found.table.name);
    let mut deleted = 0;
    for row in rows {
        deleted += db.execute(doing, &delete, params![row])?;
    }
    Ok(deleted)
}

/// Puts aside the rows of `table` that satisfy `stays` (over the table as `t`), empties it, and fills it again:
/// same rowids, same order, same definition. Answers how many rows are gone.
pub fn rewrite(db: &Tx<'_>, table: &str, stays: &str) -> Result<i64, Error> {
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

/// Whether `remove` leaves no row of `table` whose `column` is the id of a deleted event.
pub fn goes_with_its_event(table: &str, column: &str) -> bool {
    let goes = |rows| matches!(rows, Rows::Deleted | Rows::Selected);
    column == "event_id"
        && tables::named(table)
            .and_then(Table::purged)
            .is_some_and(goes)
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

/// A table of the list that exists and is not empty, and how its rows are found.
struct TableRule {
    table: &'static Table,
    rows: Rows,
    from_table: bool,
}

impl TableRule {
    /// `FROM` and `WHERE` that find the rows, `t` being the table; walked from the selection's side or, where the
    /// table is the smaller one, from the table's.
    fn found_by(&self) -> String {
        let (table, condition) = (self.table.name, self.condition());
        if self.from_table {
            format!("{table} t CROSS JOIN rk_selected s WHERE {condition}")
        } else {
            format!("rk_selected s CROSS JOIN {table} t WHERE {condition}")
        }
    }

    /// Whether the table has rows for some events only, and is looked into for each of the selected ones.
    fn has_few(&self) -> bool {
        !self.from_table && self.table.per != Per::Event
    }

    /// What makes a row of the table, `t`, one of the selection's, `s`.
    fn condition(&self) -> &'static str {
        match self.rows {
            Rows::Itself => "t.stream_ordering = s.stream_ordering AND s.to_delete",
            Rows::Deleted => "t.event_id = s.event_id AND s.to_delete",
            Rows::Selected => "t.event_id = s.event_id",
            Rows::DeletedInRoom => "t.event_id = s.event_id AND s.to_delete AND t.room_id = $1",
        }
    }

    /// Rows are collected first and deleted in the order in which they lie in the file.
    fn delete(&self) -> String {
        match self.rows {
            Rows::Itself => "DELETE FROM events WHERE stream_ordering IN \
                             (SELECT stream_ordering FROM rk_selected WHERE to_delete)"
                .to_owned(),
            _ => format!(
                "DELETE FROM {} WHERE rowid IN (SELECT t.rowid FROM {})",
                self.table.name,
                self.found_by()
            ),
        }
    }

    /// The server finds by itself how to go about it.
    fn delete_on_postgres(&self) -> String {
        format!(
            "DELETE FROM {} t USING rk_selected s WHERE {}",
            self.table.name,
            self.condition()
        )
    }

    /// The condition under which a row stays, for [`rewrite`].
    fn stays(&self) -> String {
        let (of_event, to_delete) = match self.rows {
            Rows::Itself => ("s.stream_ordering = t.stream_ordering", " AND s.to_delete"),
            Rows::Selected => ("s.event_id = t.event_id", ""),
            Rows::Deleted | Rows::DeletedInRoom => ("s.event_id = t.event_id", " AND s.to_delete"),
        };
        format!("NOT EXISTS (SELECT 1 FROM rk_selected s WHERE {of_event}{to_delete})")
    }

    fn params<'a>(&self, room: Params<'a>) -> Params<'a> {
        if self.rows == Rows::DeletedInRoom {
            room
        } else {
            &[]
        }
    }
}

/// The rules that have anything to do here, and from which side to walk each.
fn present(db: &Db, scope: Scope, room: &str, selected: i64) -> Result<Vec<TableRule>, Error> {
    let mut found = Vec::new();
    for (table, rows) in scope.tables() {
        let name = table.name;
        // SQLite's full-text index has no key on event ids, and a way of its own.
        let is_index = name == "event_search" && db.catalog().has("event_search_content");
        if !db.catalog().has(name) || is_index {
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
        if table.per != Per::Event {
            // No table has more rows than its greatest rowid.
            let at_most = db.count(
                "look at a table's size",
                &format!("SELECT max(rowid) FROM {name}"),
                &[],
            )?;
            if at_most <= 0 {
                continue;
            }
            from_table = at_most < selected;
        }
        if rows == Rows::DeletedInRoom {
            let any = format!("SELECT EXISTS (SELECT 1 FROM {name} WHERE room_id = $1)");
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
