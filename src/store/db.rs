//! One connection: opening it, one transaction at a time, reading rows. Which engine answers is the affair of
//! `sqlite` and `postgres`, beside this.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;
use rusqlite::Connection;

use super::catalog::Catalog;
#[cfg(feature = "postgres")]
use super::postgres::{self, Link};
use super::read_limit::ReadLimit;
use super::reclaim::lasting_path;
use super::sqlite;
pub(crate) use super::value::params;
pub use super::value::{Bind, Params, Row, RowResult, Value};
use crate::counters::{COUNTERS, Wait};
use crate::database::Database;
use crate::error::{Context, Error, StoreError};
use crate::sqlite_file::Unchanged;

/// How often a transaction is begun again when others are in its way; on SQLite, with the time-out of a statement, half
/// a minute, after which a person should look who holds the database.
const ATTEMPTS: u32 = 5;

/// After how many steps of its machine SQLite looks whether its time is up: some hundred times a second.
const LOOKS_EVERY: i32 = 10_000;

/// Page cache beside a live server, in KiB: the pages of one small batch.
pub const CACHE_BESIDE_KIB: i64 = 112 * 1024;

/// Page cache offline, in KiB: most of the random index pages of one long batch, within 256 MiB of memory.
pub const CACHE_OFFLINE_KIB: i64 = 96 * 1024;

/// Whether deleted content is overwritten with zeros in the file (`PRAGMA secure_delete`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SecureDelete {
    /// Everything deleted is overwritten: how Synapse runs on Debian's SQLite.
    #[default]
    On,
    /// Overwritten within pages that are written anyway; pages that become free keep their content until
    /// [`crate::store::free_pages`] overwrites them. Saves writing each of them to the log and again to the file.
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
    /// Reads; not even temporary tables can be written. As the last connection to close it still empties the log, which
    /// a connection to a file that is open for reading cannot.
    ReadOnly,
    /// Read the file, which is not even opened for writing. Temporary tables can be written.
    ReadOnlyFile,
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

/// Which engine answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// SQLite, in this process.
    Sqlite,
    /// A PostgreSQL server.
    Postgres,
}

/// A connection to a homeserver's database, with what its catalogue holds.
pub struct Db {
    conn: Conn,
    path: Option<PathBuf>,
    /// The file as it was named, links and all.
    named: Option<PathBuf>,
    /// What must stay as it is while it is read without locks.
    unchanged: Option<Unchanged>,
    catalog: Arc<Catalog>,
    limit: Option<Arc<ReadLimit>>,
}

enum Conn {
    Sqlite(Connection),
    #[cfg(feature = "postgres")]
    Postgres(Box<Link>),
}

/// By which another thread stops the running statement.
pub enum InterruptHandle {
    /// Of a file.
    Sqlite(rusqlite::InterruptHandle),
    /// Of a server.
    #[cfg(feature = "postgres")]
    Postgres(postgres::Interrupt),
}

impl InterruptHandle {
    /// Stops the statement that runs now, if one does.
    pub fn interrupt(&self) {
        match self {
            Self::Sqlite(handle) => handle.interrupt(),
            #[cfg(feature = "postgres")]
            Self::Postgres(handle) => handle.interrupt(),
        }
    }
}

/// Refuses where a database is said to be, by what is written alone: nothing is opened, and nobody is asked.
///
/// # Errors
/// [`Error::Config`] for a parameter of a connection that is not supported, or has a value that means nothing (K-4).
pub fn refuse_unsupported(database: &Database) -> Result<(), Error> {
    match database {
        #[cfg(feature = "postgres")]
        Database::Server(server) => postgres::refuse_unsupported(server),
        _ => Ok(()),
    }
}

/// What a transaction comes to nothing by.
pub(super) trait Failure: From<Error> {
    /// The error among it, which says whether to try again.
    fn error(&self) -> Option<&Error>;
}

impl Failure for Error {
    fn error(&self) -> Option<&Error> {
        Some(self)
    }
}

impl Db {
    /// Opens an existing database; never creates one.
    ///
    /// # Errors
    /// [`Error::Config`] when there is no such file; [`Error::Refused`] when it is no Synapse database of a
    /// schema we know (V-1 … V-9).
    pub fn open(database: impl Into<Database>, options: &OpenOptions) -> Result<Self, Error> {
        let mut db = Self::connect(&database.into(), options)?;
        db.catalog = Arc::new(Catalog::read(&db)?);
        db.catalog.refuse_unknown_schema()?;
        Ok(db)
    }

    /// Opens a database and looks into nothing: it may be empty.
    pub(super) fn connect(database: &Database, options: &OpenOptions) -> Result<Self, Error> {
        let (conn, unchanged) = match database {
            Database::File(path) => {
                let opened = sqlite::connect(path, options)?;
                (Conn::Sqlite(opened.conn), opened.unchanged)
            }
            #[cfg(feature = "postgres")]
            Database::Server(server) => {
                let link = Link::open(server, options.access)?;
                (Conn::Postgres(Box::new(link)), None)
            }
            #[cfg(not(feature = "postgres"))]
            Database::Server(_) => {
                return Err(Error::Config(
                    "this roomkeeper was built without PostgreSQL: build it with the feature `postgres`".into(),
                ));
            }
        };
        Ok(Self {
            conn,
            // Where the log lies, a link to the file does not say.
            path: database
                .file()
                .map(|file| std::fs::canonicalize(file).unwrap_or_else(|_| file.to_owned())),
            named: database.file().map(Path::to_owned),
            unchanged,
            catalog: Arc::default(),
            limit: None,
        })
    }

    /// What tells this database from every other one, its own copies included.
    pub fn identity(&self) -> Result<String, Error> {
        const OF_SERVER: &str = "-- PostgreSQL
            SELECT 'PostgreSQL ' || (SELECT CAST(system_identifier AS TEXT) FROM pg_control_system())
                   || ' ' || CAST(oid AS TEXT)
              FROM pg_database WHERE datname = current_database()";
        let doing = "look which database it is";
        match &self.named {
            Some(path) => Ok(lasting_path(path)?.display().to_string()),
            None => self
                .row(doing, OF_SERVER, &[], |r| r.get(0))?
                .ok_or_else(|| Error::Bug("the server does not know its own database".into())),
        }
    }

    /// Which engine answers.
    pub fn engine(&self) -> Engine {
        match self.conn {
            Conn::Sqlite(_) => Engine::Sqlite,
            #[cfg(feature = "postgres")]
            Conn::Postgres(_) => Engine::Postgres,
        }
    }

    /// The text for this engine, where two really differ.
    pub fn text<'a>(&self, sqlite: &'a str, postgres: &'a str) -> &'a str {
        match self.engine() {
            Engine::Sqlite => sqlite,
            Engine::Postgres => postgres,
        }
    }

    /// Tables and columns.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The database file, where it is one.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The write-ahead log beside it.
    pub fn wal_path(&self) -> Option<PathBuf> {
        let mut name = self.path.as_ref()?.as_os_str().to_owned();
        name.push("-wal");
        Some(PathBuf::from(name))
    }

    /// Puts all statements from now on under a limit, or under none.
    pub(super) fn set_limit(&mut self, limit: Option<&Arc<ReadLimit>>) -> Result<(), Error> {
        if let Some(before) = self.limit.take() {
            before.runs_on(None);
        }
        match &mut self.conn {
            Conn::Sqlite(conn) => {
                let is_over = limit.cloned().map(|limit| move || limit.is_over());
                conn.progress_handler(LOOKS_EVERY, is_over)
                    .context("set up the connection")?;
            }
            #[cfg(feature = "postgres")]
            Conn::Postgres(link) => {
                if let Some(limit) = limit {
                    limit.runs_on(Some(InterruptHandle::Postgres(link.interrupt_handle())));
                }
            }
        }
        self.limit = limit.cloned();
        Ok(())
    }

    /// A handle by which another thread stops the running statement.
    pub fn interrupt_handle(&self) -> InterruptHandle {
        match &self.conn {
            Conn::Sqlite(conn) => InterruptHandle::Sqlite(conn.get_interrupt_handle()),
            #[cfg(feature = "postgres")]
            Conn::Postgres(link) => InterruptHandle::Postgres(link.interrupt_handle()),
        }
    }

    /// Has the engine do something, and says in the log what that was and how long it took. All statements but those
    /// of [`Db::batch`] come through here. `work` also says how many rows it met.
    fn run<T>(
        &self,
        doing: &'static str,
        sql: &str,
        work: impl FnOnce(&Conn) -> Result<(T, i64), StoreError>,
    ) -> Result<T, Error> {
        trace_hook(sql);
        if self.limit.as_ref().is_some_and(|limit| limit.is_over()) {
            return Err(StoreError::interrupted()).context(doing);
        }
        let started = Instant::now();
        let outcome = work(&self.conn);
        if let Some(unchanged) = &self.unchanged {
            unchanged.ensure()?;
        }
        let (done, rows) = outcome.context(doing)?;
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
        self.run(doing, sql, |conn| {
            let rows = match conn {
                Conn::Sqlite(conn) => sqlite::execute(conn, sql, params)?,
                #[cfg(feature = "postgres")]
                Conn::Postgres(link) => link.execute(sql, params)?,
            };
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
        self.query(doing, sql, params, &mut |row| each(row).map(|()| true))
    }

    /// The first row, if there is one.
    pub fn row<T>(
        &self,
        doing: &'static str,
        sql: &str,
        params: Params<'_>,
        read: impl FnOnce(&Row<'_>) -> RowResult<T>,
    ) -> Result<Option<T>, Error> {
        let (mut read, mut first) = (Some(read), None);
        self.query(doing, sql, params, &mut |row| {
            first = read.take().map(|read| read(row)).transpose()?;
            Ok(false)
        })?;
        Ok(first)
    }

    /// As [`Db::for_each`], until `each` says that it has enough.
    pub(super) fn query_while(
        &self,
        doing: &'static str,
        sql: &str,
        params: Params<'_>,
        mut each: impl FnMut(&Row<'_>) -> RowResult<bool>,
    ) -> Result<(), Error> {
        self.query(doing, sql, params, &mut each)
    }

    fn query(
        &self,
        doing: &'static str,
        sql: &str,
        params: Params<'_>,
        each: &mut dyn FnMut(&Row<'_>) -> RowResult<bool>,
    ) -> Result<(), Error> {
        self.run(doing, sql, |conn| {
            let met = match conn {
                Conn::Sqlite(conn) => sqlite::for_each(conn, sql, params, each)?,
                #[cfg(feature = "postgres")]
                Conn::Postgres(link) => link.for_each(sql, params, each)?,
            };
            Ok(((), met))
        })
    }

    /// The single integer a statement answers; NULL and no row count as 0.
    pub fn count(&self, doing: &'static str, sql: &str, params: Params<'_>) -> Result<i64, Error> {
        let value = self.row(doing, sql, params, |row| row.get::<_, Option<i64>>(0))?;
        Ok(value.flatten().unwrap_or(0))
    }

    /// Runs statements without parameters, as PRAGMAs and temporary tables need.
    pub fn batch(&self, doing: &'static str, sql: &str) -> Result<(), Error> {
        trace_hook(sql);
        match &self.conn {
            Conn::Sqlite(conn) => conn.execute_batch(sql).context(doing)?,
            #[cfg(feature = "postgres")]
            Conn::Postgres(link) => link.batch(sql).context(doing)?,
        }
        log::trace!("a batch: {sql}");
        Ok(())
    }

    /// Runs `work` in one transaction: on SQLite it holds the write lock from its first moment, on PostgreSQL it sees
    /// one snapshot and fails where another has changed what it changes.
    ///
    /// The transaction is begun again when others were in its way, and when a server was lost and is there again. After
    /// an error nothing of it remains, except that a failed `COMMIT` may have committed all the same: whoever tries again
    /// must look at the database first. Every caller of ours does, since each transaction starts by selecting what
    /// there is to do.
    ///
    /// For what is nobody's room: the homeserver's lock rows, a new schema, a sample. Rows of rooms go by the door of the jobs
    /// alone, which gives a [`Tx`](super::tx::Tx).
    pub(super) fn write<T>(
        &mut self,
        doing: &'static str,
        work: impl FnMut(&Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.attempt(doing, work)
    }

    /// The same for whatever a transaction can come to nothing by.
    pub(super) fn attempt<T, E: Failure>(
        &mut self,
        doing: &'static str,
        mut work: impl FnMut(&Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let failed = match self.attempt_once(doing, &mut work) {
                Ok(done) => return Ok(done),
                Err(failed) => failed,
            };
            let Some(e) = failed
                .error()
                .filter(|e| (e.is_busy() || e.is_disconnected()) && attempt < ATTEMPTS)
            else {
                return Err(failed);
            };
            log::debug!("{e}; trying again");
            // A server that starts anew needs a few seconds.
            let most = if e.is_disconnected() {
                200 << attempt
            } else {
                200
            };
            std::thread::sleep(Duration::from_millis(rand::rng().random_range(20..most)));
        }
    }

    fn attempt_once<T, E: Failure>(
        &mut self,
        doing: &'static str,
        work: &mut impl FnMut(&Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let asked = Instant::now();
        let outcome = self.begin(doing).map_err(E::from);
        // From here on others wait for us, where they want the same.
        COUNTERS.wait(Wait::Database).observe(asked.elapsed());
        let begun = outcome.is_ok().then(Instant::now);
        let outcome = outcome.and_then(|()| work(self)).and_then(|done| {
            self.commit(doing)?;
            Ok(done)
        });
        self.rollback_if_open();
        if let Some(begun) = begun {
            COUNTERS.transactions.observe(begun.elapsed());
        }
        outcome
    }

    fn begin(&self, doing: &'static str) -> Result<(), Error> {
        trace_hook("BEGIN IMMEDIATE");
        match &self.conn {
            Conn::Sqlite(conn) => conn.execute_batch("BEGIN IMMEDIATE").context(doing),
            #[cfg(feature = "postgres")]
            Conn::Postgres(link) => link.begin(postgres::Transaction::Write).context(doing),
        }
    }

    fn commit(&self, doing: &'static str) -> Result<(), Error> {
        trace_hook("COMMIT");
        match &self.conn {
            Conn::Sqlite(conn) => conn.execute_batch("COMMIT").context(doing),
            #[cfg(feature = "postgres")]
            Conn::Postgres(link) => link.commit().context(doing),
        }
    }

    /// Leaves whatever is left of a transaction.
    fn rollback_if_open(&self) {
        match &self.conn {
            Conn::Sqlite(conn) => sqlite::roll_back(conn),
            #[cfg(feature = "postgres")]
            Conn::Postgres(link) => link.roll_back(),
        }
    }

    /// Runs `work` on one snapshot of the database that nothing of it can change.
    pub fn read<T>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match &self.conn {
            Conn::Sqlite(conn) => sqlite::begin_to_read(conn).context(doing)?,
            #[cfg(feature = "postgres")]
            Conn::Postgres(link) => link.begin(postgres::Transaction::Read).context(doing)?,
        }
        let outcome = work(self);
        self.rollback_if_open();
        match outcome {
            Err(Error::Store { source, .. }) if source.is_of_reading_server() => {
                Err(Error::Refused(
                    "this PostgreSQL server can only be read (it is a hot standby), and what is planned is noted in temporary \
                     tables, which it does not make: ask the primary. What needs no plan works here: check, messages, jobs"
                        .into(),
                ))
            }
            outcome => outcome,
        }
    }

    /// Grows whenever the connection to a server was lost and another one took its place.
    pub(super) fn connection_number(&self) -> u64 {
        match &self.conn {
            Conn::Sqlite(_) => 0,
            #[cfg(feature = "postgres")]
            Conn::Postgres(link) => link.connection_number(),
        }
    }

    /// On a server: whether triggers are switched off in transactions that write, those for foreign keys among them.
    pub(super) fn are_triggers_off(&self) -> bool {
        match &self.conn {
            Conn::Sqlite(_) => false,
            #[cfg(feature = "postgres")]
            Conn::Postgres(link) => link.are_triggers_off(),
        }
    }

    /// On a server: whether triggers run in the next transactions that write.
    pub(super) fn set_triggers(&self, on: bool) {
        match &self.conn {
            Conn::Sqlite(_) => {}
            #[cfg(feature = "postgres")]
            Conn::Postgres(link) => link.set_triggers(on),
        }
        #[cfg(not(feature = "postgres"))]
        let _ = on;
    }

    /// On a server: whether the next transactions that write walk every table along an index, which takes as long as
    /// what is wanted is large and never as long as the server is old. That is how connections begin.
    pub fn prefer_index_scans(&self, on: bool) {
        match &self.conn {
            Conn::Sqlite(_) => {}
            #[cfg(feature = "postgres")]
            Conn::Postgres(link) => link.prefer_index_scans(on),
        }
        #[cfg(not(feature = "postgres"))]
        let _ = on;
    }

    /// The connection to a file, for what only SQLite has.
    ///
    /// # Errors
    /// [`Error::Bug`] where there is a server instead.
    pub(crate) fn sqlite(&self) -> Result<&Connection, Error> {
        match &self.conn {
            Conn::Sqlite(conn) => Ok(conn),
            #[cfg(feature = "postgres")]
            Conn::Postgres(_) => Err(Error::Bug(
                "PostgreSQL was asked for what only SQLite has".into(),
            )),
        }
    }

    /// The connection itself, for tests to set fault hooks on.
    #[cfg(test)]
    pub(crate) fn raw_mut(&mut self) -> &mut Connection {
        match &mut self.conn {
            Conn::Sqlite(conn) => conn,
            #[cfg(feature = "postgres")]
            Conn::Postgres(_) => unreachable!("the tests of faults run on SQLite"),
        }
    }
}

/// Tells a test which statement comes next, so that it can stop every one of them.
#[cfg(not(test))]
pub(super) fn trace_hook(_sql: &str) {}

#[cfg(test)]
pub(super) fn trace_hook(sql: &str) {
    TRACE_HOOK.with_borrow_mut(|told| sql.clone_into(told));
}

#[cfg(test)]
thread_local! {
    /// The statement that this thread asked for last.
    pub(crate) static TRACE_HOOK: std::cell::RefCell<String> = const { std::cell::RefCell::new(String::new()) };
}
