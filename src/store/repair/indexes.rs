//! The indexes by whose word rows are called orphans, tested before the first of them goes: one that has lost entries would
//! make sound rows look like orphans.

use crate::error::{Chain, Error};
use crate::store::db::{Db, Engine, params};

/// How they were tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Indexes {
    /// SQLite's own check of the whole file.
    IntegrityCheck,
    /// `bt_index_check` of the extension `amcheck`, every row of the table looked up.
    Amcheck,
    /// Their entries, counted and summed up against the tables.
    Comparison,
}

/// Tables by whose indexes it is told whether something is there, and the column that is asked.
const ASKED: [(&str, &str); 15] = [
    ("events", "event_id"),
    ("events", "stream_ordering"),
    ("events", "room_id"),
    ("event_json", "event_id"),
    ("event_edges", "prev_event_id"),
    ("event_edges", "event_id"),
    ("event_forward_extremities", "room_id"),
    ("event_to_state_groups", "event_id"),
    ("event_to_state_groups", "state_group"),
    ("state_groups", "id"),
    ("rooms", "room_id"),
    ("rejections", "event_id"),
    ("current_state_events", "room_id"),
    ("local_current_membership", "room_id"),
    ("room_memberships", "event_id"),
];

const INTEGRITY: &str =
    "SELECT integrity_check FROM pragma_integrity_check WHERE integrity_check <> 'ok'";

/// What SQLite says of a full-text index: derived data, which a rebuild mends (P-55).
const FULL_TEXT: &str = "malformed inverted index for FTS4 table";

const HAS_AMCHECK: &str = "-- PostgreSQL
    SELECT count(*) FROM (SELECT to_regprocedure('bt_index_check(regclass, boolean)') AS f) AS there
     WHERE f IS NOT NULL AND has_function_privilege(f, 'EXECUTE')";

/// Binds `$1` the tables.
const INDEXES: &str = "-- PostgreSQL
    SELECT i.indexrelid::regclass::TEXT
      FROM pg_index i
      JOIN pg_class c ON c.oid = i.indexrelid
      JOIN pg_am a ON a.oid = c.relam
      JOIN pg_class t ON t.oid = i.indrelid
     WHERE a.amname = 'btree' AND i.indisvalid AND i.indisready AND pg_table_is_visible(t.oid)
       AND t.relname IN (SELECT value FROM json_each($1))
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

/// Tests them. `each` hears what comes next.
///
/// # Errors
/// [`Error::Refused`] for what is damaged: nothing is mended then. Those of the database.
pub fn verify(db: &Db, each: &mut dyn FnMut(&str)) -> Result<Indexes, Error> {
    let doing = "test the indexes";
    if db.engine() == Engine::Sqlite {
        each("the whole file");
        let mut damage: Option<String> = None;
        let asked = db.for_each(doing, INTEGRITY, &[], |row| {
            let said: String = row.get(0)?;
            let mut lines = said.lines().filter(|line| !line.starts_with(FULL_TEXT));
            if let (None, Some(line)) = (&damage, lines.next_back()) {
                damage = Some(line.to_owned());
            }
            Ok(())
        });
        return match (asked, damage) {
            (_, Some(said)) => Err(damaged("the file", &said)),
            (Err(e), None) if e.is_damage() && !e.is_index_damage() => {
                Err(damaged("the file", &Chain(&e).to_string()))
            }
            (Err(e), None) if !e.is_damage() => Err(e),
            _ => Ok(Indexes::IntegrityCheck),
        };
    }
    if db.count(doing, HAS_AMCHECK, &[])? == 1 {
        let check = format!(
            "-- PostgreSQL
             SELECT count(*) FROM (SELECT {CHECKER}(CAST(CAST($1 AS TEXT) AS REGCLASS), TRUE)) AS checked"
        );
        let tables: Vec<&str> = ASKED.iter().map(|(table, _)| *table).collect();
        let tables = serde_json::to_string(&tables).unwrap_or_default();
        for index in db.rows(doing, INDEXES, params![tables], |r| r.get::<_, String>(0))? {
            each(&index);
            match db.count(doing, &check, params![index]) {
                Err(Error::Store { source, .. }) if source.is_index_corrupted() => {
                    return Err(damaged(&format!("the index {index}"), &source.to_string()));
                }
                checked => checked?,
            };
        }
        return Ok(Indexes::Amcheck);
    }
    for (table, column) in ASKED {
        if db.catalog().has_column(table, column) {
            each(&format!("{table}.{column}"));
            compare(db, table, column)?;
        }
    }
    Ok(Indexes::Comparison)
}

/// Counts what is found by the column along an index, and by the table, on one snapshot.
fn compare(db: &Db, table: &str, column: &str) -> Result<(), Error> {
    let doing = "hold an index against its table";
    let sums =
        format!("SELECT count({column}), coalesce(sum(hashtext(CAST({column} AS TEXT))), 0) FROM ");
    let by_table = format!("{sums} {table}");
    // Walked from its first entry to its last, where there is an index.
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
                &format!("an index on {column} of the table {table}"),
                &format!(
                    "it has {} entries, and the table has {} rows",
                    by_index.0, by_table.0
                ),
            )),
        }
    })
}

fn damaged(what: &str, how: &str) -> Error {
    Error::Refused(format!(
        "{what} is damaged: {how}. By its word sound rows would be taken for orphans, so nothing is mended. Stop the \
         homeserver, make a copy of the database, build its indexes anew (REINDEX in psql or sqlite3) or restore a \
         backup, look with `roomkeeper check`, and ask again"
    ))
}
