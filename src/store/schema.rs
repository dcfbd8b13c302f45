//! An empty database in Synapse's layout, from our own DDL.

use std::fs;
use std::path::Path;

use rusqlite::Connection;

use crate::error::{Doing, Error};

/// The tables of schema 94 that we read or write.
const SCHEMA: &str = include_str!("schema.sql");

/// Makes an empty database file, with the modes Synapse uses.
///
/// # Errors
/// [`Error::Config`] when the file exists already: nothing is ever overwritten.
pub fn create(path: &Path) -> Result<(), Error> {
    let doing = "make the database";
    // Claims the name, so that nothing can be overwritten.
    if let Err(e) = fs::File::create_new(path) {
        return match e.kind() {
            std::io::ErrorKind::AlreadyExists => Err(Error::Config(format!(
                "{} exists already and is left as it is",
                path.display()
            ))),
            _ => Err(e).doing(doing),
        };
    }
    let conn = Connection::open(path).doing(doing)?;
    conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
        .doing(doing)?;
    create_in(&conn)
}

/// Makes the tables in an open, empty database.
pub fn create_in(conn: &Connection) -> Result<(), Error> {
    conn.execute_batch(&format!("BEGIN; {SCHEMA} COMMIT;"))
        .doing("make the tables")
}
