//! The indexes by whose word rows are called orphans, tested before the first of them goes: one that has lost entries would
//! make sound rows look like orphans.

use crate::error::{Chain, Error};
use crate::store::db::{Db, Engine, params};
use crate::store::index_test::{self, IndexesBy};

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

/// Tests them. `each` hears what comes next.
///
/// # Errors
/// [`Error::Refused`] for what is damaged: nothing is mended then. Those of the database.
pub fn verify(db: &Db, each: &mut dyn FnMut(&str)) -> Result<IndexesBy, Error> {
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
            _ => Ok(IndexesBy::IntegrityCheck),
        };
    }
    let tables: Vec<&str> = ASKED.iter().map(|(table, _)| *table).collect();
    let tables = serde_json::to_string(&tables).unwrap_or_default();
    let of_index = |index: &str, how: &str| damaged(&format!("the index {index}"), how);
    if index_test::by_amcheck(db, INDEXES, params![tables], each, of_index)? {
        return Ok(IndexesBy::Amcheck);
    }
    for (table, column) in ASKED {
        if db.catalog().has_column(table, column) {
            each(&format!("{table}.{column}"));
            let sums =
                format!("count({column}), coalesce(sum(hashtext(CAST({column} AS TEXT))), 0)");
            if let Some(wrong) = index_test::compare(db, table, column, &sums)? {
                let what = format!("an index on {column} of the table {table}");
                return Err(damaged(&what, &wrong));
            }
        }
    }
    Ok(IndexesBy::Comparison)
}

fn damaged(what: &str, how: &str) -> Error {
    Error::Refused(format!(
        "{what} is damaged: {how}. By its word sound rows would be taken for orphans, so nothing is mended. Stop the \
         homeserver, make a copy of the database, build its indexes anew (REINDEX in psql or sqlite3) or restore a \
         backup, look with `roomkeeper check`, and ask again"
    ))
}
