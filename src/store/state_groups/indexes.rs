//! The indexes that decide over state groups, looked at before the first group goes.
//!
//! SQLite tests a file itself; on PostgreSQL [`index_test`] does.

use super::unreferenced::damaged;
use crate::error::Error;
use crate::store::db::{Db, Engine, params};
use crate::store::index_test::{self, IndexesBy};

/// Tables whose indexes say what refers to what.
const TABLES: [&str; 5] = [
    "event_to_state_groups",
    "state_group_edges",
    "state_groups",
    "state_groups_state",
    "events",
];

const INTEGRITY: &str =
    "SELECT integrity_check FROM pragma_integrity_check($1) WHERE integrity_check <> 'ok'";

/// Indexes that statements may walk: those of the tables that say what refers to what, and of `events` the one by id.
const INDEXES: &str = "-- PostgreSQL
    SELECT i.indexrelid::regclass::TEXT
      FROM pg_index i
      JOIN pg_class c ON c.oid = i.indexrelid
      JOIN pg_am a ON a.oid = c.relam
      JOIN pg_class t ON t.oid = i.indrelid
     WHERE a.amname = 'btree' AND i.indisvalid AND i.indisready
       AND (t.oid IN (to_regclass('event_to_state_groups'), to_regclass('state_group_edges'),
                      to_regclass('state_groups'), to_regclass('state_groups_state'))
            OR t.oid = to_regclass('events')
               AND i.indkey[0] = (SELECT attnum FROM pg_attribute
                                   WHERE attrelid = t.oid AND attname = 'event_id'))
     ORDER BY 1";

/// Columns by which rows are found, and what their index is called.
const FOUND_BY: [(&str, &str, &str); 5] = [
    (
        "event_to_state_groups",
        "state_group",
        "event_to_state_groups_sg_index",
    ),
    (
        "state_group_edges",
        "prev_state_group",
        "state_group_edges_prev_idx",
    ),
    (
        "state_group_edges",
        "state_group",
        "state_group_edges_unique_idx",
    ),
    ("state_groups", "id", "state_groups_pkey"),
    (
        "state_groups_state",
        "state_group",
        "state_groups_state_type_idx",
    ),
];

/// Looks at the indexes. `each` hears which table or index comes next.
///
/// # Errors
/// [`Error::Refused`] for one that is damaged: which, and what to do. Those of the database.
pub fn verify_indexes(db: &Db, each: &mut dyn FnMut(&str)) -> Result<IndexesBy, Error> {
    let doing = "test the indexes of state groups";
    if db.engine() == Engine::Sqlite {
        for table in TABLES {
            each(table);
            let mut found: Option<String> = None;
            let asked = db.for_each(doing, INTEGRITY, params![table], |row| {
                let said: String = row.get(0)?;
                found.get_or_insert(said);
                Ok(())
            });
            match (asked, found) {
                (_, Some(said)) => {
                    let said = said.lines().next_back().unwrap_or_default().to_owned();
                    return Err(damaged(&format!("of the table {table}"), &said));
                }
                (asked, None) => asked?,
            }
        }
        return Ok(IndexesBy::IntegrityCheck);
    }
    if index_test::by_amcheck(db, INDEXES, &[], each, damaged)? {
        return Ok(IndexesBy::Amcheck);
    }
    for (table, column, index) in FOUND_BY {
        each(index);
        let sums = format!("count(*), coalesce(sum(hashint8({column})), 0)");
        if let Some(wrong) = index_test::compare(db, table, column, &sums)? {
            return Err(damaged(index, &wrong));
        }
    }
    Ok(IndexesBy::Comparison)
}
