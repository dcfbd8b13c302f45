//! Rows as they stand, to be written down and put back: what a table's columns are, and how a value of each is read and
//! bound. Types that this program has no value for are written as the text that the engine itself reads again.

use super::db::{Db, params};
use crate::error::Error;

/// Columns of a table in their order. Binds `$1` its name.
const COLUMNS: &str = "SELECT name, NULL FROM pragma_table_info($1)";

const COLUMNS_ON_POSTGRES: &str = "-- PostgreSQL
    SELECT a.attname,
           CASE WHEN t.typname IN ('bool', 'int2', 'int4', 'int8', 'float8', 'bytea', 'text', 'varchar', 'bpchar') THEN NULL
                ELSE format_type(a.atttypid, NULL) END
      FROM pg_attribute a
      JOIN pg_type t ON t.oid = a.atttypid
     WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped
     ORDER BY a.attnum";

/// Foreign keys of a table, a row for each column: number, parent, column, and the parent's. Binds `$1` table.
const KEYS: &str = r#"
    SELECT id, "table", "from", coalesce("to", "from") FROM pragma_foreign_key_list($1) ORDER BY id, seq"#;

const KEYS_ON_POSTGRES: &str = "-- PostgreSQL
    SELECT CAST(k.oid AS BIGINT), p.relname, a.attname, b.attname
      FROM pg_constraint k
      JOIN pg_class p ON p.oid = k.confrelid
     CROSS JOIN LATERAL unnest(k.conkey, k.confkey) WITH ORDINALITY AS u(child, parent, place)
      JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.child
      JOIN pg_attribute b ON b.attrelid = k.confrelid AND b.attnum = u.parent
     WHERE k.contype = 'f' AND k.conrelid = to_regclass($1)
     ORDER BY k.oid, u.place";

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub name: String,
    /// The type, where its values are read and bound as a text.
    by_text: Option<String>,
}

impl Column {
    /// Its value in a row of the table `t`.
    pub fn select(&self) -> String {
        match self.by_text {
            None => format!("t.\"{}\"", self.name),
            Some(_) => format!("CAST(t.\"{}\" AS TEXT)", self.name),
        }
    }

    /// The value that is bound in this place.
    pub fn bound(&self, place: usize) -> String {
        match &self.by_text {
            None => format!("${place}"),
            Some(kind) => format!("CAST(CAST(${place} AS TEXT) AS {kind})"),
        }
    }
}

/// The columns of a table, in their order.
pub(super) fn columns(db: &Db, table: &str) -> Result<Vec<Column>, Error> {
    let sql = db.text(COLUMNS, COLUMNS_ON_POSTGRES);
    db.rows("read a table's columns", sql, params![table], |r| {
        Ok(Column {
            name: r.get(0)?,
            by_text: r.get(1)?,
        })
    })
}

/// A column of a foreign key.
pub(super) struct KeyColumn {
    /// The key's number.
    pub key: i64,
    /// What it refers to.
    pub parent: String,
    /// The column.
    pub from: String,
    /// The parent's.
    pub to: String,
}

/// The foreign keys of a table, key by key.
pub(super) fn keys(db: &Db, table: &str) -> Result<Vec<KeyColumn>, Error> {
    let sql = db.text(KEYS, KEYS_ON_POSTGRES);
    db.rows("read a table's foreign keys", sql, params![table], |r| {
        Ok(KeyColumn {
            key: r.get(0)?,
            parent: r.get(1)?,
            from: r.get(2)?,
            to: r.get(3)?,
        })
    })
}
