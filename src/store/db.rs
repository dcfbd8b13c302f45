//! One connection: opening it, one transaction at a time, reading rows.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;
use rusqlite::{Connection, InterruptHandle, OpenFlags, Statement, ToSql};
pub use rusqlite::{Row, params};

use super::catalog::Catalog;
use crate::error::{Doing, Error};

/// How long one statement waits for another writer. Synapse's own writers wait 5 s, too.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a transaction is begun again when the database stays busy; with the time-out above half a minute,
/// after which a person should look who holds the database.
const BUSY_ATTEMPTS: u32 = 5;

/// Page cache beside a live server, in KiB: the pages of one small stride.
pub const CACHE_BESIDE_KIB: i64 = 112 * 1024;

/// Page cache offline, in KiB: most of the random index pages of one long stride, within 256 MiB of memory.
pub const CACHE_OFFLINE_KIB: i64 = 96 * 1024;

/// Whether deleted content is overwritten with zeros in the file (`PRAGMA secure_delete`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SecureDelete {
    /// Everything deleted is overwritten: how Synapse runs on Debian's SQLite.
    #[default]
    On,
    /// Overwritten within pages that are written anyway; pages that become free keep their content until
    /// [`crate::store::erase`] overwrites them. Saves writing each of them to the log and again to the file.
    Fast,
    /// Deleted content stays in free pages until they are used again.
    Off,
}

/// What a connection may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    #[default]
    Write,
    /// Ask; not even temporary tables can be written. As the last connection to close it still empties the log, which
    /// a connection to a file that is open for reading cannot.
    Ask,
    /// Read the file, which is not even opened for writing. Temporary tables can be written.
    ReadFile,
}

/// How a connection is to be opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// What the connection may do.
    pub access: Access,
    /// Page cache in KiB.
    pub cache_kib: i64,
    /// Whether deleted content is overwritten.
    pub secure_delete: SecureDelete,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            access: Access::Write,
            cache_kib: CACHE_BESIDE_KIB,
            secure_delete: SecureDelete::On,
        }
    }
}

/// A connection to a homeserver's database, with what its catalogue holds.
pub struct Db {
    conn: Connection,
    path: PathBuf,
    catalog: Arc<Catalog>,
}

/// What reading a row answers.
pub type RowResult<T> = rusqlite::Result<T>;

/// What a statement binds.
pub type Params<'a> = &'a [&'a dyn ToSql];

impl Db {
    /// Opens an existing database file; never creates one.
    ///
    /// # Errors
    /// [`Error::Config`] when there is no such file; [`Error::Unsafe`] when it is no Synapse database of a
    /// schema we know (V-1 … V-9).
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, Error> {
        let conn = connect(path, options)?;
        let catalog = Arc::new(Catalog::read(&conn)?);
        catalog.refuse_unknown_schema()?;
        Ok(Self {
            conn,
            path: path.to_owned(),
            catalog,
        })
    }

    /// Tables and columns.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The write-ahead log beside it.
    pub fn wal_path(&self) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push("-wal");
        PathBuf::from(name)
    }

    /// A handle by which another thread stops the running statement.
    pub fn interrupt_handle(&self) -> InterruptHandle {
        self.conn.get_interrupt_handle()
    }

    /// Prepares a statement and does `work` with it, which also says how many rows it met. All statements but those
    /// of [`Db::batch`] come through here.
    fn run<T>(
        &self,
        doing: &'static str,
        sql: &str,
        work: impl FnOnce(&mut Statement<'_>) -> rusqlite::Result<(T, i64)>,
    ) -> Result<T, Error> {
        tell(sql);
        let started = Instant::now();
        let done = self
            .conn
            .prepare_cached(sql)
            .and_then(|mut statement| work(&mut statement));
        let (done, rows) = done.doing(doing)?;
        // Statements hold no values, so they may be shown.
        log::trace!("{rows} rows in {} ms: {sql}", started.elapsed().as_millis());
        Ok(done)
    }

    /// Runs a statement that returns no rows; gives the number of rows changed.
    pub fn execute(
        &self,
        doing: &'static str,
        sql: &str,
        params: Params<'_>,
    ) -> Result<i64, Error> {
        self.run(doing, sql, |statement| {
            let rows = statement.execute(params)?;
            let rows = i64::try_from(rows).unwrap_or(i64::MAX);
            Ok((rows, rows))
        })
    }

    /// Runs a statement and reads every row.
    pub fn rows<T>(
        &self,
        doing: &'static str,
        sql: &str,
        params: Params<'_>,
        mut read: impl FnMut(&Row<'_>) -> RowResult<T>,
    ) -> Result<Vec<T>, Error> {
        let mut all = Vec::new();
        self.for_each(doing, sql, params, |row| {
            all.push(read(row)?);
            Ok(())
        })?;
        Ok(all)
    }

    /// Runs a statement and hands each row to `each`, keeping none.
    pub fn for_each(
        &self,
        doing: &'static str,
        sql: &str,
        params: Params<'_>,
        mut each: impl FnMut(&Row<'_>) -> RowResult<()>,
    ) -> Result<(), Error> {
        self.run(doing, sql, |statement| {
            let mut met = 0;
            let mut rows = statement.query(params)?;
            while let Some(row) = rows.next()? {
                met += 1;
                each(row)?;
            }
            Ok(((), met))
        })
    }

    /// The first row, if there is one.
    pub fn row<T>(
        &self,
        doing: &'static str,
        sql: &str,
        params: Params<'_>,
        read: impl FnOnce(&Row<'_>) -> RowResult<T>,
    ) -> Result<Option<T>, Error> {
        self.run(doing, sql, |statement| {
            let mut rows = statement.query(params)?;
            let first = rows.next()?.map(read).transpose()?;
            let met = i64::from(first.is_some());
            Ok((first, met))
        })
    }

    /// The single integer a statement answers; NULL and no row count as 0.
    pub fn count(&self, doing: &'static str, sql: &str, params: Params<'_>) -> Result<i64, Error> {
        let value = self.row(doing, sql, params, |row| row.get::<_, Option<i64>>(0))?;
        Ok(value.flatten().unwrap_or(0))
    }

    /// Runs statements without parameters, as PRAGMAs and temporary tables need.
    pub fn batch(&self, doing: &'static str, sql: &str) -> Result<(), Error> {
        tell(sql);
        self.conn.execute_batch(sql).doing(doing)?;
        log::trace!("a batch: {sql}");
        Ok(())
    }

    /// Runs `work` in one transaction that holds the write lock from its first moment.
    ///
    /// The transaction is begun again when the database is busy. After an error nothing of it remains, except
    /// that a failed `COMMIT` may have committed all the same: whoever tries again must look at the database
    /// first. Every caller of ours does, since each transaction starts by selecting what there is to do.
    pub fn write<T>(
        &mut self,
        doing: &'static str,
        mut work: impl FnMut(&Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.write_once(doing, &mut work) {
                Err(e) if e.is_busy() && attempt < BUSY_ATTEMPTS => {
                    std::thread::sleep(Duration::from_millis(rand::rng().random_range(20..200)));
                }
                outcome => return outcome,
            }
        }
    }

    fn write_once<T>(
        &mut self,
        doing: &'static str,
        work: &mut impl FnMut(&Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        tell("BEGIN IMMEDIATE");
        let outcome = self
            .conn
            .execute_batch("BEGIN IMMEDIATE")
            .doing(doing)
            .and_then(|()| work(self))
            .and_then(|done| {
                tell("COMMIT");
                self.conn
                    .execute_batch("COMMIT")
                    .doing(doing)
                    .map(|()| done)
            });
        // A `BEGIN` that reports an interrupt may have begun, and an interrupt can end a rollback as well:
        // so ask, and do not leave before the connection is out of the transaction.
        while !self.conn.is_autocommit() {
            tell("ROLLBACK");
            if let Err(e) = self.conn.execute_batch("ROLLBACK") {
                log::warn!("rolling back: {e}");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        outcome
    }

    /// Runs `work` on one snapshot of the database that nothing of it can change.
    pub fn read<T>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.conn.execute_batch("BEGIN DEFERRED").doing(doing)?;
        let outcome = work(self);
        while !self.conn.is_autocommit() {
            if self.conn.execute_batch("ROLLBACK").is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        outcome
    }

    /// As [`Db::checkpoint`], but waits for readers no longer than `patience`: other writers wait as long.
    pub fn checkpoint_within(&self, patience: Duration) -> Result<bool, Error> {
        let doing = "set up the connection";
        self.conn.busy_timeout(patience).doing(doing)?;
        let emptied = self.checkpoint();
        self.conn.busy_timeout(BUSY_TIMEOUT).doing(doing)?;
        emptied
    }

    /// Moves the write-ahead log into the database file and truncates it. Answers whether it could: a reader
    /// that still needs the log prevents it.
    pub fn checkpoint(&self) -> Result<bool, Error> {
        tell("PRAGMA wal_checkpoint(TRUNCATE)");
        let busy = self
            .conn
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
                row.get::<_, i64>(0)
            });
        Ok(busy.doing("empty the write-ahead log")? == 0)
    }

    /// Bytes of the write-ahead log that are in use; the file may be longer.
    pub fn log_bytes(&self) -> Result<i64, Error> {
        let doing = "measure the write-ahead log";
        let frames = self
            .conn
            .query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| {
                row.get::<_, i64>(1)
            });
        Ok(frames
            .doing(doing)?
            .saturating_mul(self.pragma("page_size")?))
    }

    /// Moves of the write-ahead log into the database file what nobody needs in the log, and holds nobody up.
    pub fn copy_log(&self) -> Result<(), Error> {
        tell("PRAGMA wal_checkpoint(PASSIVE)");
        self.conn
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
            .doing("copy the write-ahead log")
    }

    /// As [`Db::copy_log`], and lets the next writer start at the log's beginning, waiting for readers no longer than
    /// `patience`: other writers wait as long. Answers whether it could.
    pub fn restart_log(&self, patience: Duration) -> Result<bool, Error> {
        let doing = "copy the write-ahead log";
        tell("PRAGMA wal_checkpoint(RESTART)");
        self.conn.busy_timeout(patience).doing(doing)?;
        let busy = self
            .conn
            .query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| {
                row.get::<_, i64>(0)
            });
        self.conn.busy_timeout(BUSY_TIMEOUT).doing(doing)?;
        Ok(busy.doing(doing)? == 0)
    }

    /// Begins to read, and goes on until this connection is closed.
    pub fn hold_snapshot(&self) -> Result<(), Error> {
        self.conn
            .execute_batch("BEGIN DEFERRED; SELECT 1 FROM sqlite_master LIMIT 1")
            .doing("hold a snapshot")
    }

    /// Reads one integer PRAGMA.
    pub fn pragma(&self, name: &str) -> Result<i64, Error> {
        tell(name);
        self.conn
            .pragma_query_value(None, name, |row| row.get(0))
            .doing("read a setting of the database")
    }

    /// Sets one PRAGMA.
    pub fn set_pragma(&self, name: &str, value: impl ToSql) -> Result<(), Error> {
        tell(name);
        self.conn
            .pragma_update(None, name, value)
            .doing("set up the connection")
    }

    /// The connection itself, for tests to set fault hooks on.
    #[cfg(test)]
    pub(crate) fn raw_mut(&mut self) -> &mut Connection {
        &mut self.conn
    }

    /// The connection itself, for drivers' features.
    pub(crate) fn raw(&self) -> &Connection {
        &self.conn
    }
}

/// Tells a test which statement comes next, so that it can stop every one of them.
#[cfg(not(test))]
fn tell(_sql: &str) {}

#[cfg(test)]
fn tell(sql: &str) {
    TOLD.with_borrow_mut(|told| sql.clone_into(told));
}

#[cfg(test)]
thread_local! {
    /// The statement that this thread asked for last.
    pub(crate) static TOLD: std::cell::RefCell<String> = const { std::cell::RefCell::new(String::new()) };
}

/// Opens the file and sets what every connection of ours needs.
fn connect(path: &Path, options: &OpenOptions) -> Result<Connection, Error> {
    if !path.is_file() {
        return Err(Error::Config(format!(
            "there is no database file {}; `roomkeeper init` makes an empty one",
            path.display()
        )));
    }
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX
        | match options.access {
            Access::ReadFile => OpenFlags::SQLITE_OPEN_READ_ONLY,
            Access::Write | Access::Ask => OpenFlags::SQLITE_OPEN_READ_WRITE,
        };
    let conn = Connection::open_with_flags(path, flags).doing("open the database")?;
    conn.busy_timeout(BUSY_TIMEOUT)
        .doing("set up the connection")?;
    conn.set_prepared_statement_cache_capacity(256);
    let mut pragmas = String::new();
    if options.access == Access::Write {
        // As Synapse opens it; a database that nobody opened yet is switched over.
        pragmas.push_str("PRAGMA journal_mode = WAL;");
    }
    pragmas.push_str(match options.secure_delete {
        SecureDelete::On => "PRAGMA secure_delete = ON;",
        SecureDelete::Fast => "PRAGMA secure_delete = FAST;",
        SecureDelete::Off => "PRAGMA secure_delete = OFF;",
    });
    // V-0c: cascades and the lock tables rely on foreign keys.
    // Temporary tables hold event ids, which must not be spilled to a disk that is full.
    // `NORMAL` loses no consistency in WAL mode; the log is synced at every checkpoint.
    pragmas.push_str(
        "PRAGMA foreign_keys = ON;
         PRAGMA temp_store = MEMORY;
         PRAGMA synchronous = NORMAL;",
    );
    pragmas.push_str(&format!("PRAGMA cache_size = -{};", options.cache_kib));
    if options.access == Access::Ask {
        pragmas.push_str("PRAGMA query_only = ON;");
    }
    conn.execute_batch(&pragmas)
        .doing("open the database (is it a SQLite database, and whole?)")?;
    Ok(conn)
}
