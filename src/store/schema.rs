//! An empty database in Synapse's layout, from our own DDL.

use std::fs;
use std::path::Path;

use rusqlite::Connection;

use super::db::{Db, Engine, OpenOptions};
use crate::database::Database;
use crate::error::{Context, Error};

/// The tables of schema 94 that we read or write.
const SCHEMA: &str = include_str!("schema.sql");

/// What SQLite says in words of its own.
const ON_SQLITE: &str = include_str!("schema_sqlite.sql");

/// What PostgreSQL says in words of its own.
const ON_POSTGRES: &str = include_str!("schema_postgres.sql");

/// Makes an empty database: a file that must not exist yet, with the modes Synapse uses; or the tables in a database
/// on a server, which must exist and hold none.
///
/// # Errors
/// [`Error::Config`] when there is something already: nothing is ever overwritten.
pub fn create(database: impl Into<Database>) -> Result<(), Error> {
    let database = database.into();
    match &database {
        Database::File(path) => create_file(path),
        Database::Server(_) => create_on_server(&database),
    }
}

fn create_file(path: &Path) -> Result<(), Error> {
    let doing = "make the database";
    // Claims the name, so that nothing can be overwritten.
    if let Err(e) = fs::File::create_new(path) {
        return match e.kind() {
            std::io::ErrorKind::AlreadyExists => Err(Error::Config(format!(
                "{} exists already and is left as it is",
                path.display()
            ))),
            _ => Err(e).context(doing),
        };
    }
    let conn = Connection::open(path).context(doing)?;
    conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
        .context(doing)?;
    create_in(&conn)
}

fn create_on_server(database: &Database) -> Result<(), Error> {
    const TABLES: &str = "-- PostgreSQL
        SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()";
    let doing = "make the tables";
    let mut db = Db::connect(database, &OpenOptions::default())?;
    debug_assert_eq!(db.engine(), Engine::Postgres);
    db.write(doing, |db| {
        if db.count(doing, TABLES, &[])? > 0 {
            return Err(Error::Config(format!(
                "{database} holds tables already and is left as it is"
            )));
        }
        db.batch(doing, &SCHEMA.replace(" INTEGER", " BIGINT"))?;
        db.batch(doing, ON_POSTGRES)
    })
}

/// Makes the tables in an open, empty file.
pub fn create_in(conn: &Connection) -> Result<(), Error> {
    conn.execute_batch(&format!("BEGIN; {SCHEMA} {ON_SQLITE} COMMIT;"))
        .context("make the tables")
}
