//! Foreign keys on `events`, looked after in sets.
//!
//! While foreign keys are on, SQLite looks into every referencing table for every single event that is deleted: sixteen
//! look-ups an event, at random, most of them in tables that are small or were just cleared. The same question asked
//! once for all deleted events, from the smaller side, costs next to nothing.

use super::db::{Db, Engine};
use super::event_rows;
use crate::error::Error;

/// Columns that refer to `events`, whether an index begins with them, and what they refer to.
const CHILDREN: &str = r#"
    SELECT m.name, k."from", k."to",
           EXISTS (SELECT 1 FROM pragma_index_list(m.name) l, pragma_index_info(l.name) i
                    WHERE i.seqno = 0 AND i.name = k."from" AND NOT l.partial)
      FROM sqlite_master m, pragma_foreign_key_list(m.name) k
     WHERE m.type = 'table' AND k."table" = 'events' AND m.name <> 'events'"#;

/// A column that refers to `events`.
struct Child {
    table: String,
    column: String,
    parent: String,
    is_indexed: bool,
}

/// What refers to `events` and is not removed with it.
pub struct Keys {
    children: Vec<Child>,
}

impl Keys {
    /// Reads them from the catalogue. `None` where a key is of a kind that only the engine can look after.
    pub fn read(db: &Db) -> Result<Option<Self>, Error> {
        if db.engine() != Engine::Sqlite {
            return Ok(None);
        }
        let children = db.rows("read the foreign keys", CHILDREN, &[], |r| {
            Ok(Child {
                table: r.get(0)?,
                column: r.get(1)?,
                parent: r.get::<_, Option<String>>(2)?.unwrap_or_default(),
                is_indexed: r.get(3)?,
            })
        })?;
        let known = |c: &Child| {
            ["event_id", "stream_ordering"].contains(&c.parent.as_str())
                && [&c.table, &c.column].iter().all(|name| is_plain(name))
        };
        if !children.iter().all(known) {
            return Ok(None);
        }
        Ok(Some(Self {
            children: children
                .into_iter()
                .filter(|c| !event_rows::goes_with_its_event(&c.table, &c.column))
                .collect(),
        }))
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
                "SELECT EXISTS (SELECT 1 FROM {joined} WHERE s.{parent} = c.{column} AND s.doomed)"
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
