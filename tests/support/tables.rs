//! A whole database in memory: every table as a sorted list of rows, so that two can be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, ToSql};

/// One value, of whatever type SQLite has it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    Null,
    Int(i64),
    Text(String),
    Bytes(Vec<u8>),
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("NULL"),
            Self::Int(n) => write!(f, "{n}"),
            Self::Text(text) => write!(f, "{text}"),
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
        }
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Self {
        Self::Int(b.into())
    }
}

impl<T> From<Option<T>> for Value
where
    Self: From<T>,
{
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Self::from)
    }
}

impl From<&String> for Value {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i32> for Value {
    fn from(n: i32) -> Self {
        Self::Int(n.into())
    }
}

impl From<i64> for Value {
    fn from(n: i64) -> Self {
        Self::Int(n)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// One row, by column.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row(pub BTreeMap<String, Value>);

impl Row {
    /// A column that may be NULL or missing.
    pub fn get(&self, column: &str) -> &Value {
        self.0.get(column).unwrap_or(&Value::Null)
    }

    /// An integer; NULL is none.
    pub fn int(&self, column: &str) -> Option<i64> {
        match self.get(column) {
            Value::Int(n) => Some(*n),
            _ => None,
        }
    }

    /// An integer that must be there.
    pub fn number(&self, column: &str) -> i64 {
        self.int(column)
            .unwrap_or_else(|| panic!("{column} is no number in {self:?}"))
    }

    /// A text; NULL is none.
    pub fn text(&self, column: &str) -> Option<&str> {
        match self.get(column) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A text that must be there.
    pub fn word(&self, column: &str) -> &str {
        self.text(column)
            .unwrap_or_else(|| panic!("{column} is no text in {self:?}"))
    }

    /// Whether a boolean column is true.
    pub fn is(&self, column: &str) -> bool {
        self.int(column) == Some(1)
    }

    /// Sets a column.
    pub fn set(&mut self, column: &str, value: impl Into<Value>) {
        self.0.insert(column.to_owned(), value.into());
    }
}

/// A row from columns and values.
pub fn row<const N: usize>(cells: [(&str, Value); N]) -> Row {
    Row(cells
        .into_iter()
        .map(|(column, value)| (column.to_owned(), value))
        .collect())
}

/// A row goes into a table of a database.
pub fn insert(conn: &Connection, table: &str, row: &Row) {
    let columns: Vec<&str> = row.0.keys().map(String::as_str).collect();
    let marks = vec!["?"; columns.len()].join(", ");
    let sql = format!(
        "INSERT INTO {table} ({}) VALUES ({marks})",
        columns.join(", ")
    );
    let result = conn
        .prepare_cached(&sql)
        .and_then(|mut s| s.execute(rusqlite::params_from_iter(row.0.values())));
    result.unwrap_or_else(|e| panic!("{table}: {e}: {row:?}"));
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Int(n) => ValueRef::Integer(*n),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

/// Every table of a database, each sorted.
#[derive(Clone, PartialEq, Eq)]
pub struct Tables(pub BTreeMap<String, Vec<Row>>);

/// The full-text index's own bookkeeping: how it lies in the file is its own affair. Its content is compared.
const INDEX_INTERNALS: &[&str] = &[
    "event_search",
    "event_search_segments",
    "event_search_segdir",
    "event_search_docsize",
    "event_search_stat",
];

impl Tables {
    /// Reads a database file.
    pub fn read(path: &Path) -> Self {
        let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
            .expect("the database opens");
        Self::of(&conn)
    }

    /// Reads an open database.
    pub fn of(conn: &Connection) -> Self {
        let names: Vec<String> = conn
            .prepare("SELECT name FROM main.sqlite_master WHERE type = 'table'")
            .and_then(|mut s| s.query_map([], |r| r.get(0))?.collect())
            .expect("the catalogue is read");
        let mut tables = BTreeMap::new();
        for name in names {
            if INDEX_INTERNALS.contains(&name.as_str()) {
                continue;
            }
            tables.insert(name.clone(), read(conn, &name));
        }
        Self(tables)
    }

    /// The rows of a table; none when there is no such table.
    pub fn rows(&self, table: &str) -> &[Row] {
        self.0.get(table).map_or(&[], Vec::as_slice)
    }

    /// The rows of a table, to be changed; sort afterwards.
    pub fn rows_mut(&mut self, table: &str) -> &mut Vec<Row> {
        self.0.entry(table.to_owned()).or_default()
    }

    /// Keeps the rows that `keep` wants; answers how many went.
    pub fn retain(&mut self, table: &str, keep: impl FnMut(&Row) -> bool) -> i64 {
        let Some(rows) = self.0.get_mut(table) else {
            return 0;
        };
        let before = rows.len();
        rows.retain(keep);
        i64::try_from(before - rows.len()).expect("few rows")
    }

    /// Puts every table in order again.
    pub fn sort(&mut self) {
        self.0.values_mut().for_each(|rows| rows.sort());
    }

    /// How many rows each table has.
    pub fn sizes(&self) -> BTreeMap<String, i64> {
        let size = |rows: &Vec<Row>| i64::try_from(rows.len()).expect("few rows");
        self.0
            .iter()
            .map(|(t, rows)| (t.clone(), size(rows)))
            .collect()
    }

    /// The same without some tables.
    pub fn without(mut self, tables: &[&str]) -> Self {
        self.0.retain(|name, _| !tables.contains(&name.as_str()));
        self
    }

    /// What only one of the two has, in words; empty when they are equal.
    pub fn difference(&self, other: &Self) -> String {
        let mut said = String::new();
        if self == other {
            return said;
        }
        let names: BTreeSet<&String> = self.0.keys().chain(other.0.keys()).collect();
        for name in names {
            let mut other_rows: Vec<&Row> = other.rows(name).iter().collect();
            let mut only_here = Vec::new();
            for row in self.rows(name) {
                match other_rows.iter().position(|o| *o == row) {
                    Some(at) => {
                        other_rows.remove(at);
                    }
                    None => only_here.push(row),
                }
            }
            for (mark, rows) in [("-", only_here), ("+", other_rows)] {
                for row in rows.iter().take(6) {
                    let cells: Vec<String> =
                        row.0.iter().map(|(c, v)| format!("{c}={v:?}")).collect();
                    said.push_str(&format!("{mark} {name}: {}\n", cells.join(" ")));
                }
                if rows.len() > 6 {
                    said.push_str(&format!("{mark} {name}: … {} in all\n", rows.len()));
                }
            }
        }
        said
    }
}

/// Fails with the difference when two databases are not the same.
#[track_caller]
pub fn assert_same(expected: &Tables, found: &Tables, about: &str) {
    let difference = expected.difference(found);
    assert!(
        difference.is_empty(),
        "{about}: - expected, + found\n{difference}"
    );
}

fn read(conn: &Connection, table: &str) -> Vec<Row> {
    let mut statement = conn
        .prepare(&format!("SELECT * FROM \"{table}\""))
        .expect("the table is there");
    let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let mut found = statement.query([]).expect("the table is read");
    let mut rows = Vec::new();
    while let Some(row) = found.next().expect("the table is read") {
        let cells = columns.iter().enumerate().map(|(at, column)| {
            let value = match row.get_ref(at).expect("a column") {
                ValueRef::Null => Value::Null,
                ValueRef::Integer(n) => Value::Int(n),
                ValueRef::Real(n) => Value::Text(n.to_string()),
                ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
                ValueRef::Blob(bytes) => Value::Bytes(bytes.to_vec()),
            };
            (column.clone(), value)
        });
        rows.push(Row(cells.collect()));
    }
    rows.sort();
    rows
}
