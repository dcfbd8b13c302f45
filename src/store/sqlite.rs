//! The driver for SQLite, and what only SQLite has: settings of a connection, the write-ahead log.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, Statement, ToSql};

use super::db::{Access, Db, Engine, OpenOptions, SecureDelete, trace_hook};
use super::prefixes;
use super::value::{Bind, Of, Params, Row, RowResult, Value};
use crate::error::{Context, Error, StoreError};
use crate::sqlite_file::{self, Reading};

/// How long one statement waits for another writer. Synapse's own writers wait 5 s, too.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A bound value on its way to SQLite.
struct Bound<'a>(&'a dyn Bind);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0.value() {
            Value::Null => ValueRef::Null,
            Value::Int(n) => ValueRef::Integer(n),
            Value::Bool(b) => ValueRef::Integer(b.into()),
            Value::Real(n) => ValueRef::Real(n),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

fn bind<'a>(params: Params<'a>) -> impl rusqlite::Params + 'a {
    rusqlite::params_from_iter(params.iter().map(|value| Bound(*value)))
}

/// A column as it is.
pub(super) fn value<'r>(row: &'r rusqlite::Row<'_>, at: usize) -> RowResult<Value<'r>> {
    Ok(match row.get_ref(at)? {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(n) => Value::Int(n),
        ValueRef::Real(n) => Value::Real(n),
        ValueRef::Text(text) => match std::str::from_utf8(text) {
            Ok(text) => Value::Text(text),
            Err(_) => Value::Bytes(text),
        },
        ValueRef::Blob(bytes) => Value::Bytes(bytes),
    })
}

/// Runs a statement that returns no rows; gives the number of rows changed.
pub(super) fn execute(conn: &Connection, sql: &str, params: Params<'_>) -> Result<i64, StoreError> {
    let rows = conn.prepare_cached(sql)?.execute(bind(params))?;
    Ok(i64::try_from(rows).unwrap_or(i64::MAX))
}

/// Hands each row to `each` until that says enough; answers how many it saw.
pub(super) fn for_each(
    conn: &Connection,
    sql: &str,
    params: Params<'_>,
    each: &mut dyn FnMut(&Row<'_>) -> RowResult<bool>,
) -> Result<i64, StoreError> {
    let mut statement = conn.prepare_cached(sql)?;
    let statement: &mut Statement<'_> = &mut statement;
    let mut rows = statement.query(bind(params))?;
    let mut met = 0;
    while let Some(row) = rows.next()? {
        met += 1;
        if !each(&Row(Of::Sqlite(row)))? {
            break;
        }
    }
    Ok(met)
}

/// Opens the file and sets what every connection of ours needs.
pub(super) fn connect(path: &Path, options: &OpenOptions) -> Result<Reading, Error> {
    let Reading { conn, unchanged } = match options.access {
        Access::ReadOnlyFile => sqlite_file::open_to_read(path)?,
        Access::Write | Access::ReadOnly => Reading {
            conn: open_to_write(path)?,
            unchanged: None,
        },
    };
    conn.busy_timeout(BUSY_TIMEOUT)
        .context("set up the connection")?;
    conn.set_prepared_statement_cache_capacity(256);
    prefixes::add_function(&conn).context("set up the connection")?;
    let mut pragmas = String::new();
    // The catalogue says what is wrong with a database of something else; it stays as it is.
    const IS_SYNAPSES: &str =
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'schema_version')";
    if options.access == Access::Write
        && conn
            .query_row(IS_SYNAPSES, [], |row| row.get(0))
            .map_err(|e| sqlite_file::explained(path, true, "open the database", e))?
    {
        // As Synapse opens it; a database that nobody opened yet is switched over.
        pragmas.push_str("PRAGMA journal_mode = WAL;");
    }
    pragmas.push_str(secure_delete(options.secure_delete));
    // V-0c: cascades and the lock tables rely on foreign keys.
    // Temporary tables hold event ids, which must not be spilled to a disk that is full.
    // `NORMAL` loses no consistency in WAL mode; the log is synced at every checkpoint.
    pragmas.push_str(
        "PRAGMA foreign_keys = ON;
         PRAGMA temp_store = MEMORY;
         PRAGMA synchronous = NORMAL;",
    );
    pragmas.push_str(&format!("PRAGMA cache_size = -{};", options.cache_kib));
    if options.access == Access::ReadOnly {
        pragmas.push_str("PRAGMA query_only = ON;");
    }
    let to_write = options.access != Access::ReadOnlyFile;
    conn.execute_batch(&pragmas)
        .map_err(|e| sqlite_file::explained(path, to_write, "open the database", e))?;
    // Or SQLite prepares a statement anew whenever another value is bound that it could have planned by.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)
        .context("set up the connection")?;
    Ok(Reading { conn, unchanged })
}

fn open_to_write(path: &Path) -> Result<Connection, Error> {
    if let Some(missing) = sqlite_file::missing_to_write(path) {
        return Err(Error::Config(missing));
    }
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_READ_WRITE;
    Connection::open_with_flags(path, flags)
        .map_err(|e| sqlite_file::explained(path, true, "open the database", e))
}

fn secure_delete(how: SecureDelete) -> &'static str {
    match how {
        SecureDelete::On => "PRAGMA secure_delete = ON;",
        SecureDelete::Fast => "PRAGMA secure_delete = FAST;",
        SecureDelete::Off => "PRAGMA secure_delete = OFF;",
    }
}

/// Begins a transaction that takes its snapshot with the first statement.
pub(super) fn begin_to_read(conn: &Connection) -> Result<(), StoreError> {
    conn.prepare_cached("BEGIN DEFERRED")?.execute([])?;
    Ok(())
}

/// Leaves the transaction, whatever happens. A `BEGIN` that reports an interrupt may have begun, and an interrupt can end
/// a rollback as well: so ask, and do not leave before the connection is out of the transaction.
pub(super) fn roll_back(conn: &Connection) {
    while !conn.is_autocommit() {
        trace_hook("ROLLBACK");
        if let Err(e) = conn.execute_batch("ROLLBACK") {
            log::warn!("rolling back: {e}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What only a file of SQLite's has. A server looks after its own log and settings: asked for the one it has nothing to
/// do, asked for the other there is nothing to read.
impl Db {
    /// As [`Db::checkpoint`], but waits for readers no longer than `patience`: other writers wait as long.
    pub fn checkpoint_within(&self, patience: Duration) -> Result<bool, Error> {
        if self.engine() == Engine::Postgres {
            return Ok(true);
        }
        let doing = "set up the connection";
        self.sqlite()?.busy_timeout(patience).context(doing)?;
        let emptied = self.checkpoint();
        self.sqlite()?.busy_timeout(BUSY_TIMEOUT).context(doing)?;
        emptied
    }

    /// Moves the write-ahead log into the database file and truncates it. Answers whether it could: a reader
    /// that still needs the log prevents it.
    pub fn checkpoint(&self) -> Result<bool, Error> {
        if self.engine() == Engine::Postgres {
            return Ok(true);
        }
        trace_hook("PRAGMA wal_checkpoint(TRUNCATE)");
        let busy = self
            .sqlite()?
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
                row.get::<_, i64>(0)
            });
        Ok(busy.context("empty the write-ahead log")? == 0)
    }

    /// Bytes of the write-ahead log that are in use; the file may be longer.
    pub fn log_bytes(&self) -> Result<i64, Error> {
        let doing = "measure the write-ahead log";
        let frames = self
            .sqlite()?
            .query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| {
                row.get::<_, i64>(1)
            });
        Ok(frames
            .context(doing)?
            .saturating_mul(self.pragma("page_size")?))
    }

    /// Moves of the write-ahead log into the database file what nobody needs in the log, and holds nobody up.
    pub fn checkpoint_passive(&self) -> Result<(), Error> {
        trace_hook("PRAGMA wal_checkpoint(PASSIVE)");
        self.sqlite()?
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
            .context("copy the write-ahead log")
    }

    /// As [`Db::checkpoint_passive`], and lets the next writer start at the log's beginning, waiting for readers no longer than
    /// `patience`: other writers wait as long. Answers whether it could.
    pub fn checkpoint_restart(&self, patience: Duration) -> Result<bool, Error> {
        let doing = "copy the write-ahead log";
        trace_hook("PRAGMA wal_checkpoint(RESTART)");
        let conn = self.sqlite()?;
        conn.busy_timeout(patience).context(doing)?;
        let busy = conn.query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| {
            row.get::<_, i64>(0)
        });
        conn.busy_timeout(BUSY_TIMEOUT).context(doing)?;
        Ok(busy.context(doing)? == 0)
    }

    /// Says whether what is deleted from now on is overwritten with zeros.
    pub fn set_secure_delete(&self, how: SecureDelete) -> Result<(), Error> {
        self.batch("set up the connection", secure_delete(how))
    }

    /// Begins to read, and goes on until this connection is closed.
    pub fn pin_snapshot(&self) -> Result<(), Error> {
        self.sqlite()?
            .execute_batch("BEGIN DEFERRED; SELECT 1 FROM sqlite_master LIMIT 1")
            .context("hold a snapshot")
    }

    /// Reads one integer PRAGMA.
    pub fn pragma(&self, name: &str) -> Result<i64, Error> {
        trace_hook(name);
        self.sqlite()?
            .pragma_query_value(None, name, |row| row.get(0))
            .context("read a setting of the database")
    }

    /// Sets one PRAGMA.
    pub fn set_pragma(&self, name: &str, value: impl ToSql) -> Result<(), Error> {
        if self.engine() == Engine::Postgres {
            return Ok(());
        }
        trace_hook(name);
        self.sqlite()?
            .pragma_update(None, name, value)
            .context("set up the connection")
    }

    /// From now on a commit returns when it, and every one before it, is on the disk; or, with `false`, lets the next
    /// checkpoint see to that. For what the ledger forgets afterwards, which is on the disk at once.
    pub fn sync_commits(&self, at_once: bool) -> Result<(), Error> {
        self.set_pragma("synchronous", if at_once { "FULL" } else { "NORMAL" })
    }

    /// Returns when every commit so far is on the disk. A server sees to that at each commit. The log is opened past
    /// SQLite, which holds no locks on it.
    pub fn sync_commits_so_far(&self) -> Result<(), Error> {
        let Some(log) = self.wal_path() else {
            return Ok(());
        };
        let doing = "sync the write-ahead log";
        match std::fs::File::open(log) {
            Ok(log) => log.sync_data().context(doing),
            // It was emptied into the file and taken away, and that was synced.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e).context(doing),
        }
    }

    /// Whether foreign keys are looked after by the engine. On a server this is of the next transactions that write: with
    /// `false` their triggers are switched off, which the role must be allowed to do.
    pub fn set_foreign_keys(&self, on: bool) -> Result<(), Error> {
        match self.engine() {
            Engine::Sqlite => self.set_pragma("foreign_keys", on),
            Engine::Postgres => {
                self.set_triggers(on);
                Ok(())
            }
        }
    }

    /// Whether a connection to a file may not write; one to a server always answers no.
    pub fn is_read_only(&self) -> bool {
        self.sqlite()
            .is_ok_and(|conn| conn.is_readonly("main").unwrap_or(true))
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;

    /// Counted, since it costs a third of a purge of small rooms: an index of some rows, and a value that says whether it serves.
    #[test]
    fn no_value_that_is_bound_has_a_statement_prepared_anew() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("d");
        let made = Connection::open(&path).expect("opens");
        made.execute_batch(
            "CREATE TABLE t (a INTEGER, b INTEGER);
             CREATE INDEX some ON t (a) WHERE b = 5;",
        )
        .expect("made");
        drop(made);
        for access in [Access::Write, Access::ReadOnly] {
            let options = OpenOptions {
                access,
                ..OpenOptions::default()
            };
            let conn = connect(&path, &options).expect("opens").conn;
            let sql = "SELECT count(*) FROM t WHERE a = $1 AND b = $2";
            let mut statement = conn.prepare(sql).expect("prepared");
            for n in 0..9 {
                let count: i64 = statement.query_row([n, n], |row| row.get(0)).expect("read");
                assert_eq!(count, 0);
            }
            assert_eq!(statement.get_status(StatementStatus::RePrepare), 0);
        }
    }
}
