//! The indexes that decide over state groups, looked at before the first group goes.
//!
//! SQLite tests a file itself. A PostgreSQL server does so by `amcheck` where somebody has installed it; where nobody has,
//! what each index holds is counted and summed up against its table, which shows rows that it has lost.

use super::unreferenced::damaged;
use crate::error::Error;
use crate::plural::{count, count_of};
use crate::store::db::{Db, Engine, params};

/// How the indexes were looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IndexesBy {
    /// SQLite's own check of the tables.
    IntegrityCheck,
    /// `bt_index_check` of the extension `amcheck`, every row of the table looked up.
    Amcheck,
    /// Their entries, counted and summed up against the tables.
    Comparison,
}

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

const HAS_AMCHECK: &str = "-- PostgreSQL
    SELECT count(*) FROM (SELECT to_regprocedure('bt_index_check(regclass, boolean)') AS f) AS there
     WHERE f IS NOT NULL AND has_function_privilege(f, 'EXECUTE')";

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

/// A function of the extension, which most servers do not have.
const CHECKER: &str = "bt_index_check";

const BY_TABLE: &str = "-- PostgreSQL
    SET LOCAL enable_seqscan = on;
    SET LOCAL enable_indexscan = off;
    SET LOCAL enable_indexonlyscan = off;
    SET LOCAL enable_bitmapscan = off";

const BY_INDEX: &str = "-- PostgreSQL
    SET LOCAL enable_seqscan = off;
    SET LOCAL enable_sort = off;
    SET LOCAL enable_indexscan = on;
    SET LOCAL enable_indexonlyscan = on;
    SET LOCAL max_parallel_workers_per_gather = 0";

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
    if db.count(doing, HAS_AMCHECK, &[])? == 1 {
        let check = format!(
            "-- PostgreSQL
             SELECT count(*) FROM (SELECT {CHECKER}(CAST(CAST($1 AS TEXT) AS REGCLASS), TRUE)) AS checked"
        );
        for index in db.rows(doing, INDEXES, &[], |r| r.get::<_, String>(0))? {
            each(&index);
            match db.count(doing, &check, params![index]) {
                Err(Error::Store { source, .. }) if source.is_index_corrupted() => {
                    return Err(damaged(&index, &source.to_string()));
                }
                checked => checked?,
            };
        }
        return Ok(IndexesBy::Amcheck);
    }
    for (table, column, index) in FOUND_BY {
        each(index);
        compare(db, table, column, index)?;
    }
    Ok(IndexesBy::Comparison)
}

/// Counts what is found by the column along its index, and by the table, on one snapshot.
fn compare(db: &Db, table: &str, column: &str, index: &str) -> Result<(), Error> {
    let doing = "hold an index against its table";
    let sums = format!("SELECT count(*), coalesce(sum(hashint8({column})), 0) FROM ");
    let by_table = format!("{sums} {table}");
    // Walked from its first entry to its last.
    let by_index = format!("{sums} (SELECT {column} FROM {table} ORDER BY {column}) AS entries");
    db.read(doing, |db| {
        let ask = |setting: &str, sql: &str| {
            db.batch(doing, setting)?;
            let read = db.row(doing, sql, &[], |r| {
                Ok((r.get::<_, i64>(0)?, r.get::<_, i64>(1)?))
            })?;
            read.ok_or_else(|| Error::Bug("a count has no answer".into()))
        };
        let by_table = ask(BY_TABLE, &by_table)?;
        let by_index = ask(BY_INDEX, &by_index)?;
        match by_table == by_index {
            true => Ok(()),
            false => Err(damaged(
                index,
                &format!(
                    "it has {}, and the table {table} has {}",
                    count_of(by_index.0, "entry", "entries"),
                    count(by_table.0, "row")
                ),
            )),
        }
    })
}
