//! Foreign keys on `events`, looked after in sets.
//!
//! While foreign keys are on, SQLite looks into every referencing table for every single event that is deleted: sixteen
//! look-ups an event, at random, most of them in tables that are small or were just cleared. The same question asked
//! once for all deleted events, from the smaller side, costs next to nothing. On PostgreSQL it is the same: nine tenths of
//! the time of a purge are its triggers for foreign keys. There a role must have been granted to switch them off.

use super::db::{Db, Engine, params};
use super::{event_rows, tables};
use crate::error::Error;

/// Every foreign key of the file, a row for each of its columns: child, number of the key, column, parent, its column, and
/// whether an index begins with the column. SQLite compares names without regard to case, and keeps each as it was spelt.
const KEYS: &str = r#"
    SELECT m.name, k.id, k."from", k."table", k."to",
           EXISTS (SELECT 1 FROM pragma_index_list(m.name) l, pragma_index_info(l.name) i
                    WHERE i.seqno = 0 AND i.name = k."from" AND NOT l.partial)
      FROM sqlite_master m, pragma_foreign_key_list(m.name) k
     WHERE m.type = 'table'"#;

/// The keys on `events` on PostgreSQL. Whether such a key refuses or cascades makes no difference: a row that is found is
/// left to it. Not those of the parts of a partitioned table, which are its own.
const CHILDREN_ON_POSTGRES: &str = "-- PostgreSQL
    SELECT c.relname, a.attname, p.attname,
           EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = k.conrelid AND i.indkey[0] = a.attnum AND i.indpred IS NULL),
           array_length(k.conkey, 1) = 1 AND k.conrelid <> k.confrelid AND c.relkind = 'r' AND NOT c.relispartition
           AND NOT c.relrowsecurity,
           pg_table_is_visible(k.conrelid)
      FROM pg_constraint k
      JOIN pg_class c ON c.oid = k.conrelid
      JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = k.conkey[1]
      JOIN pg_attribute p ON p.attrelid = k.confrelid AND p.attnum = k.confkey[1]
     WHERE k.contype = 'f' AND k.confrelid = to_regclass('events')";

/// What else would not be looked after while triggers are off: triggers and rules of somebody's own on what a purge writes
/// to, tables of which rows may be hidden from us or lie in parts, and keys that refer to something else that it deletes.
/// Binds `$1` the tables.
const OTHER_CARE: &str = "-- PostgreSQL
    WITH written AS (
        SELECT c.oid, c.relname, c.relrowsecurity, c.relkind, c.relispartition
          FROM pg_class c
         WHERE pg_table_is_visible(c.oid) AND c.relname IN (SELECT value FROM json_each($1)))
    SELECT (SELECT count(*) FROM pg_trigger t JOIN written w ON w.oid = t.tgrelid
             WHERE NOT t.tgisinternal AND t.tgenabled <> 'D')
         + (SELECT count(*) FROM pg_rewrite r JOIN written w ON w.oid = r.ev_class
             WHERE r.ev_enabled <> 'D' AND r.rulename <> '_RETURN')
         + (SELECT count(*) FROM written w WHERE w.relrowsecurity OR w.relkind <> 'r' OR w.relispartition)
         + (SELECT count(*) FROM pg_inherits i JOIN written w ON w.oid = i.inhparent)
         + (SELECT count(*) FROM pg_constraint k JOIN written w ON w.oid = k.confrelid
             WHERE k.contype = 'f' AND w.relname <> 'events')";

const VERSION: &str = "-- PostgreSQL
    SELECT CAST(current_setting('server_version_num') AS INTEGER)";

/// From version 15 on somebody can be granted it.
const MAY_SWITCH: &str = "-- PostgreSQL
    SELECT has_parameter_privilege('session_replication_role', 'SET')";

const IS_SUPERUSER: &str = "-- PostgreSQL
    SELECT rolsuper FROM pg_roles WHERE rolname = current_user";

/// A column that refers to `events`.
#[derive(Clone)]
struct Child {
    table: String,
    column: String,
    parent: String,
    is_indexed: bool,
}

impl Child {
    fn is_known(&self) -> bool {
        ["event_id", "stream_ordering"].contains(&self.parent.as_str())
            && [&self.table, &self.column]
                .iter()
                .all(|name| is_plain(name))
    }

    fn goes_with_its_event(&self) -> bool {
        event_rows::goes_with_its_event(&self.table, &self.column)
    }
}

/// A column of a foreign key of a file.
struct KeyColumn {
    key: i64,
    parent: String,
    child: Child,
}

/// What refers to `events` and is not removed with it.
pub struct ForeignKeys {
    children: Vec<Child>,
}

impl ForeignKeys {
    /// Reads them from the catalogue. `None` where a key is of a kind that only the engine can look after.
    pub fn read(db: &Db) -> Result<Option<Self>, Error> {
        if db.engine() == Engine::Postgres {
            return Self::read_on_server(db);
        }
        let columns: Vec<KeyColumn> = db.rows("read the foreign keys", KEYS, &[], |r| {
            let to: Option<String> = r.get(4)?;
            Ok(KeyColumn {
                key: r.get(1)?,
                parent: r.get::<_, String>(3)?.to_ascii_lowercase(),
                child: Child {
                    table: r.get(0)?,
                    column: r.get(2)?,
                    parent: to.unwrap_or_default().to_ascii_lowercase(),
                    is_indexed: r.get(5)?,
                },
            })
        })?;
        let mut kept: Vec<Child> = Vec::new();
        for at in 0..columns.len() {
            let KeyColumn { key, parent, child } = &columns[at];
            if !is_written(parent) {
                continue;
            }
            let of_key = |c: &&KeyColumn| c.key == *key && c.child.table == child.table;
            let is_alone = columns.iter().filter(of_key).count() == 1;
            let is_on_events = parent == "events" && !child.table.eq_ignore_ascii_case("events");
            if !(is_alone && is_on_events && child.is_known()) {
                return Ok(None);
            }
            if !child.goes_with_its_event() {
                kept.push(child.clone());
            }
        }
        Ok(Some(Self { children: kept }))
    }

    /// The same on a server, where the role may switch the triggers off.
    fn read_on_server(db: &Db) -> Result<Option<Self>, Error> {
        let doing = "read the foreign keys";
        let may = if db.count(doing, VERSION, &[])? >= 150_000 {
            MAY_SWITCH
        } else {
            IS_SUPERUSER
        };
        if db.count(doing, may, &[])? == 0 {
            return Ok(None);
        }
        let written: Vec<&str> = written().collect();
        let written = serde_json::to_string(&written).map_err(|e| Error::Bug(e.to_string()))?;
        if db.count(doing, OTHER_CARE, params![written])? > 0 {
            return Ok(None);
        }
        let children = db.rows(doing, CHILDREN_ON_POSTGRES, &[], |r| {
            let child = Child {
                table: r.get(0)?,
                column: r.get(1)?,
                parent: r.get(2)?,
                is_indexed: r.get(3)?,
            };
            Ok((child, r.get::<_, bool>(4)?, r.get::<_, bool>(5)?))
        })?;
        let mut kept = Vec::new();
        for (child, is_plain_key, is_visible) in children {
            // A table of the same name in another schema is not the one that we know.
            if is_visible && child.goes_with_its_event() {
                continue;
            }
            if !(is_plain_key && is_visible && child.is_known()) {
                return Ok(None);
            }
            kept.push(child);
        }
        Ok(Some(Self { children: kept }))
    }

    /// Whether a row still refers to one of the events that were selected to be deleted; `selected` is how many those
    /// are. Must run in the transaction that deleted them.
    pub fn are_broken(&self, db: &Db, selected: i64) -> Result<bool, Error> {
        let doing = "check the foreign keys";
        for child in &self.children {
            let Child {
                table,
                column,
                parent,
                is_indexed,
            } = child;
            let from_child = !is_indexed || {
                let longer =
                    format!("SELECT EXISTS (SELECT 1 FROM {table} LIMIT 1 OFFSET {selected})");
                db.count(doing, &longer, &[])? == 0
            };
            let joined = if from_child {
                format!("{table} c CROSS JOIN rk_selected s")
            } else {
                format!("rk_selected s CROSS JOIN {table} c")
            };
            let sql = format!(
                "SELECT EXISTS (SELECT 1 FROM {joined} WHERE s.{parent} = c.{column} AND s.to_delete)"
            );
            if db.count(doing, &sql, &[])? > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The tables from which a purge removes rows, and those that it writes to besides.
fn written() -> impl Iterator<Item = &'static str> {
    let written = tables::ALL
        .iter()
        .filter(|table| table.is_written_by_purge());
    written.map(|table| table.name)
}

/// Whether a purge removes rows of the table, whose name is in lower case.
fn is_written(table: &str) -> bool {
    written().any(|known| known == table)
}

/// Whether a name of the catalogue can stand in a statement as it is, on either engine.
fn is_plain(name: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    !RESERVED.contains(&name) && name.bytes().all(is_plain)
}

/// Words that cannot stand for a table or a column, of those that somebody would call one.
const RESERVED: &[&str] = &[
    "all",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "both",
    "case",
    "cast",
    "check",
    "collate",
    "column",
    "commit",
    "constraint",
    "create",
    "current_date",
    "current_time",
    "current_timestamp",
    "default",
    "delete",
    "desc",
    "distinct",
    "do",
    "drop",
    "else",
    "end",
    "except",
    "exists",
    "false",
    "fetch",
    "for",
    "foreign",
    "from",
    "grant",
    "group",
    "having",
    "in",
    "index",
    "insert",
    "intersect",
    "into",
    "is",
    "join",
    "leading",
    "limit",
    "not",
    "null",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "primary",
    "references",
    "select",
    "session_user",
    "set",
    "some",
    "table",
    "then",
    "to",
    "transaction",
    "true",
    "union",
    "unique",
    "update",
    "user",
    "using",
    "values",
    "when",
    "where",
    "window",
    "with",
];
