//! Whether a PostgreSQL server's indexes agree with their tables: by `amcheck` where somebody has installed it; where nobody
//! has, by what each index holds, counted and summed up against its table, which shows rows that it has lost.

use super::db::{Db, Params, params};
use crate::error::Error;
use crate::plural::{count, count_of};

/// How indexes were tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IndexesBy {
    /// SQLite's own check.
    IntegrityCheck,
    /// `bt_index_check` of the extension `amcheck`, every row of the table looked up.
    Amcheck,
    /// Their entries, counted and summed up against the tables.
    Comparison,
}

const HAS_AMCHECK: &str = "-- PostgreSQL
    SELECT count(*) FROM (SELECT to_regprocedure('bt_index_check(regclass, boolean)') AS f) AS there
     WHERE f IS NOT NULL AND has_function_privilege(f, 'EXECUTE')";

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

/// Has the extension test the indexes that `list` names; answers `false` where it is not there. `each` hears which comes
/// next, and `damaged` makes the refusal of an index and of what is said of it.
pub(super) fn by_amcheck(
    db: &Db,
    list: &str,
    of: Params<'_>,
    each: &mut dyn FnMut(&str),
    damaged: fn(&str, &str) -> Error,
) -> Result<bool, Error> {
    let doing = "test the indexes";
    if db.count(doing, HAS_AMCHECK, &[])? != 1 {
        return Ok(false);
    }
    let check = format!(
        "-- PostgreSQL
         SELECT count(*) FROM (SELECT {CHECKER}(CAST(CAST($1 AS TEXT) AS REGCLASS), TRUE)) AS checked"
    );
    for index in db.rows(doing, list, of, |r| r.get::<_, String>(0))? {
        each(&index);
        match db.count(doing, &check, params![index]) {
            Err(Error::Store { source, .. }) if source.is_index_corrupted() => {
                return Err(damaged(&index, &source.to_string()));
            }
            checked => checked?,
        };
    }
    Ok(true)
}

/// Counts what is found by a column along its index, and by the table, on one snapshot; `sums` is a count and a sum over
/// the column. Answers what is wrong where they differ.
pub(super) fn compare(
    db: &Db,
    table: &str,
    column: &str,
    sums: &str,
) -> Result<Option<String>, Error> {
    let doing = "hold an index against its table";
    let by_table = format!("SELECT {sums} FROM {table}");
    // Walked from its first entry to its last, where there is an index.
    let by_index =
        format!("SELECT {sums} FROM (SELECT {column} FROM {table} ORDER BY {column}) AS entries");
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
        let differ = || {
            format!(
                "it has {}, and the table {table} has {}",
                count_of(by_index.0, "entry", "entries"),
                count(by_table.0, "row")
            )
        };
        Ok((by_table != by_index).then(differ))
    })
}
