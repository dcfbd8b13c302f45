//! Foreign keys on `events`, looked after in sets.
//!
//! While foreign keys are on, SQLite looks into every referencing table for every single event that is deleted: sixteen
//! look-ups an event, at random, most of them in tables that are small or were just cleared. The same question asked
//! once for all deleted events, from the smaller side, costs next to nothing. On PostgreSQL it is the same: nine tenths of
//! the time of a purge are its triggers for foreign keys. There a role must have been granted to switch them off.

use super::db::{Db, Engine, params};
use super::event_rows;
use crate::error::Error;

/// Columns that refer to `events`, whether an index begins with them, and what they refer to.
const CHILDREN: &str = r#"
    SELECT m.name, k."from", k."to",
           EXISTS (SELECT 1 FROM pragma_index_list(m.name) l, pragma_index_info(l.name) i
                    WHERE i.seqno = 0 AND i.name = k."from" AND NOT l.partial)
      FROM sqlite_master m, pragma_foreign_key_list(m.name) k
     WHERE m.type = 'table' AND k."table" = 'events' AND m.name <> 'events'"#;

/// The same on PostgreSQL. Whether such a key refuses or cascades makes no difference: a row that is found is left to it.
const CHILDREN_ON_POSTGRES: &str = "-- PostgreSQL
    SELECT c.relname, a.attname, p.attname,
           EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = k.conrelid AND i.indkey[0] = a.attnum AND i.indpred IS NULL),
           pg_table_is_visible(k.conrelid) AND array_length(k.conkey, 1) = 1
      FROM pg_constraint k
      JOIN pg_class c ON c.oid = k.conrelid
      JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = k.conkey[1]
      JOIN pg_attribute p ON p.attrelid = k.confrelid AND p.attnum = k.confkey[1]
     WHERE k.contype = 'f' AND k.confrelid = to_regclass('events') AND k.conrelid <> k.confrelid";

/// What else would not be looked after while triggers are off: triggers of somebody's own on what a purge writes to,
/// and keys that refer to something else that it deletes. Binds `$1` the tables.
const OTHER_CARE: &str = "-- PostgreSQL
    SELECT (SELECT count(*) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
             WHERE NOT t.tgisinternal AND t.tgenabled <> 'D' AND pg_table_is_visible(c.oid)
               AND c.relname IN (SELECT value FROM json_each($1)))
         + (SELECT count(*) FROM pg_constraint k JOIN pg_class c ON c.oid = k.confrelid
             WHERE k.contype = 'f' AND c.relname <> 'events' AND pg_table_is_visible(c.oid)
               AND c.relname IN (SELECT value FROM json_each($1)))";

const VERSION: &str = "-- PostgreSQL
    SELECT CAST(current_setting('server_version_num') AS INTEGER)";

/// From version 15 on somebody can be granted it.
const MAY_SWITCH: &str = "-- PostgreSQL
    SELECT has_parameter_privilege('session_replication_role', 'SET')";

const IS_SUPERUSER: &str = "-- PostgreSQL
    SELECT rolsuper FROM pg_roles WHERE rolname = current_user";

/// What a batch writes to besides what it removes with its events.
const ALSO_WRITTEN: &[&str] = &[
    "event_backward_extremities",
    "event_push_summary",
    "room_depth",
    "sliding_sync_joined_rooms",
    "threads",
];

/// A column that refers to `events`.
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
        let children = db.rows("read the foreign keys", CHILDREN, &[], |r| {
            Ok(Child {
                table: r.get(0)?,
                column: r.get(1)?,
                parent: r.get::<_, Option<String>>(2)?.unwrap_or_default(),
                is_indexed: r.get(3)?,
            })
        })?;
        if !children.iter().all(Child::is_known) {
            return Ok(None);
        }
        Ok(Some(Self {
            children: children
                .into_iter()
                .filter(|c| !event_rows::goes_with_its_event(&c.table, &c.column))
                .collect(),
        }))
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
        let written: Vec<&str> = event_rows::tables_of_history()
            .chain(ALSO_WRITTEN.iter().copied())
            .collect();
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
            Ok((child, r.get::<_, bool>(4)?))
        })?;
        let mut kept = Vec::new();
        for (child, is_plain_key) in children {
            if event_rows::goes_with_its_event(&child.table, &child.column) {
                continue;
            }
            if !(is_plain_key && child.is_known()) {
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

/// Whether a name of the catalogue can stand in a statement as it is.
fn is_plain(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
