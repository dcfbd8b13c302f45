//! The driver for PostgreSQL: one connection, its transactions and prepared statements, and what becomes of it when it
//! breaks. The client blocks; what is asynchronous inside it stays inside it.

mod address;
mod encryption;
mod passwords;
#[cfg(test)]
mod reference;
#[cfg(feature = "postgres-tls")]
mod tls;
mod wire;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use postgres::types::ToSql;
use postgres::{CancelToken, Client, SimpleQueryMessage, Statement};

use super::db::Access;
use super::dialect;
use super::value::{Of, Params, Row, RowResult, Value};
use crate::database::Server;
use crate::error::{Error, ServerError, StoreError};
use encryption::Encryption;
use wire::Bound;

pub(super) use self::address::refuse_unsupported;

/// Statements that one connection keeps prepared; ours are some two hundred.
const MOST_STATEMENTS: usize = 512;

/// How often a question that stands alone is put to a server that goes away, and how much longer it is waited for each
/// time.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(50);

/// What a connection of ours is called in `pg_stat_activity`.
pub(crate) const APPLICATION_NAME: &str = "roomkeeper";

/// What a transaction is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Transaction {
    /// To change something.
    Write,
    /// To look at one snapshot. What a dry run needs to write down goes into temporary tables, and goes with it.
    Read,
}

/// Both see one snapshot, as Synapse's transactions do (V-0e). Its time-outs are for short transactions; who waits ten
/// seconds for a lock tries again. Compiling plans costs more than it gains in batches.
const BEGIN: &str = "
    BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE;
    SET LOCAL statement_timeout = 0;
    SET LOCAL idle_in_transaction_session_timeout = 0;
    SET LOCAL lock_timeout = '10s';
    SET LOCAL jit = off";

/// As [`BEGIN`], without triggers. Those for foreign keys look past the transaction's snapshot; so must we in their place,
/// so every statement sees what has been committed before it: whoever was adding a row that refers to an event to delete held
/// that event, and our delete waited for them.
const BEGIN_WITHOUT_TRIGGERS: &str = "
    BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
    SET LOCAL statement_timeout = 0;
    SET LOCAL idle_in_transaction_session_timeout = 0;
    SET LOCAL lock_timeout = '10s';
    SET LOCAL jit = off;
    SET LOCAL session_replication_role = replica";

/// How batches and pages are planned. What a batch writes is selected in small, analysed temporary tables, and what a
/// page needs is named one by one: every other table is walked from there along an index, in the order in which the
/// statement names them. A hash over a whole table looks cheaper to the planner where tables are in memory; it grows with the
/// server. And a server that was never analysed takes a room for a handful of events.
const PREFER_INDEX_SCANS: &str = "
    SET enable_hashjoin = off;
    SET enable_mergejoin = off;
    SET enable_bitmapscan = off;
    SET join_collapse_limit = 1";

/// How what counts everything is planned, and one transaction that takes a large part of the server: reading a table from
/// end to end costs less than to look for that many of its rows one by one. Enough memory for the ids of some two
/// hundred thousand events in one piece.
const READ_TABLES: &str = "
    SET LOCAL enable_hashjoin = on;
    SET LOCAL enable_mergejoin = on;
    SET LOCAL enable_bitmapscan = on;
    SET LOCAL join_collapse_limit = 8;
    SET LOCAL work_mem = '64MB'";

/// Memory for temporary tables: what is selected for a long batch stays in it. It is taken as it is used. A role's limits
/// are for the short transactions of a homeserver (K-5); `transaction_timeout` is there from version 17 on.
const SETUP: &str = "
    SET client_encoding = 'UTF8';
    SET temp_buffers = '64MB';
    SET statement_timeout = 0;
    SET lock_timeout = 0;
    SET idle_in_transaction_session_timeout = 0;
    SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name = 'transaction_timeout'";

/// Whether the server is a standby, and whether somebody wants nothing written (K-4).
const READS_ONLY: &str = "
    VALUES (pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('default_transaction_read_only'))";

/// As [`BEGIN`], on a standby, where nothing can be written down, not even in temporary tables.
const BEGIN_ON_STANDBY: &str = "
    BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
    SET LOCAL jit = off";

/// Pages are read from an index in their order. The planner thinks little of so many conditions together, and would rather
/// sort all of a room to find those few events; or, without statistics, read all relations.
const BEGIN_READ_ONLY: &str = "
    BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
    SET LOCAL statement_timeout = 0;
    SET LOCAL idle_in_transaction_session_timeout = 0;
    SET LOCAL jit = off;
    SET LOCAL enable_sort = off;
    SET LOCAL enable_seqscan = off";

/// A connection to a server, and how to get another one.
pub(super) struct Link {
    server: Server,
    access: Access,
    client: RefCell<Client>,
    statements: RefCell<HashMap<String, Statement>>,
    token: Arc<Mutex<(CancelToken, Encryption)>>,
    in_transaction: Cell<bool>,
    triggers: Cell<bool>,
    number: Cell<u64>,
    walks: Cell<bool>,
    is_standby: Cell<bool>,
}

/// Stops the statement that a connection is running.
pub struct Interrupt(Arc<Mutex<(CancelToken, Encryption)>>);

impl Interrupt {
    /// Asks the server, over a connection of its own. What does not get there is asked again by who wants to stop.
    pub(super) fn interrupt(&self) {
        let (token, encryption) = self.0.lock().clone();
        if let Err(e) = encryption.cancel(&token) {
            log::debug!("asking the server to stop a statement: {}", error(&e));
        }
    }
}

impl Link {
    /// Connects.
    pub(super) fn open(server: &Server, access: Access) -> Result<Self, Error> {
        let (client, encryption, is_standby) = connect(server, access)?;
        Ok(Self {
            is_standby: Cell::new(is_standby),
            server: server.clone(),
            access,
            token: Arc::new(Mutex::new((client.cancel_token(), encryption))),
            client: RefCell::new(client),
            statements: RefCell::default(),
            in_transaction: Cell::new(false),
            triggers: Cell::new(true),
            number: Cell::new(0),
            walks: Cell::new(true),
        })
    }

    pub(super) fn interrupt_handle(&self) -> Interrupt {
        Interrupt(self.token.clone())
    }

    /// Grows with every connection that takes the place of one that was lost.
    pub(super) fn connection_number(&self) -> u64 {
        self.number.get()
    }

    /// Whether triggers are switched off in transactions that write.
    pub(super) fn are_triggers_off(&self) -> bool {
        !self.triggers.get()
    }

    /// Whether triggers run in the next transactions that write.
    pub(super) fn set_triggers(&self, on: bool) {
        self.triggers.set(on);
    }

    /// Whether the next transactions that write walk every table along an index, however much of it they want.
    pub(super) fn prefer_index_scans(&self, on: bool) {
        self.walks.set(on);
    }

    pub(super) fn execute(&self, sql: &str, params: Params<'_>) -> Result<i64, StoreError> {
        let rows = self.ask(sql, params, |client, statement, params| {
            client.execute(statement, params)
        })?;
        Ok(i64::try_from(rows).unwrap_or(i64::MAX))
    }

    /// Every row is here before the first is handed on, so that `each` may ask again.
    pub(super) fn for_each(
        &self,
        sql: &str,
        params: Params<'_>,
        each: &mut dyn FnMut(&Row<'_>) -> RowResult<bool>,
    ) -> Result<i64, StoreError> {
        let rows = self.ask_again(sql, params, |client, statement, params| {
            client.query(statement, params)
        })?;
        let mut met = 0;
        for row in &rows {
            met += 1;
            if !each(&Row(Of::Postgres(row)))? {
                break;
            }
        }
        Ok(met)
    }

    pub(super) fn batch(&self, sql: &str) -> Result<(), StoreError> {
        self.revive()?;
        let text = dialect::to_postgres(sql);
        let done = self.client.borrow_mut().batch_execute(&text);
        done.map_err(|e| self.failed(&e).into())
    }

    /// As [`Link::ask`]; what asks and stands alone is asked again when the server was lost meanwhile, which is seen only
    /// now, and once more when it is lost again.
    fn ask_again<T>(
        &self,
        sql: &str,
        params: Params<'_>,
        work: impl Fn(&mut Client, &Statement, &[&(dyn ToSql + Sync)]) -> Result<T, postgres::Error>,
    ) -> Result<T, StoreError> {
        let mut attempt = 1;
        loop {
            match self.ask(sql, params, &work) {
                Err(e)
                    if e.is_disconnected() && !self.in_transaction.get() && attempt < ATTEMPTS =>
                {
                    if attempt > 1 {
                        std::thread::sleep(PAUSE * attempt);
                    }
                    attempt += 1;
                    match self.replace() {
                        Err(e) if !e.is_disconnected() => return Err(e),
                        // Who is not there yet may be the next time.
                        _ => {}
                    }
                }
                answer => return answer,
            }
        }
    }

    /// Prepares a statement, or takes the one that was prepared before, and runs it.
    fn ask<T>(
        &self,
        sql: &str,
        params: Params<'_>,
        work: impl Fn(&mut Client, &Statement, &[&(dyn ToSql + Sync)]) -> Result<T, postgres::Error>,
    ) -> Result<T, StoreError> {
        self.revive()?;
        let bound: Vec<Bound<'_>> = params.iter().map(|v| Bound(v.value())).collect();
        let bound: Vec<&(dyn ToSql + Sync)> =
            bound.iter().map(|v| v as &(dyn ToSql + Sync)).collect();
        let mut client = self.client.borrow_mut();
        let known = self.statements.borrow().get(sql).cloned();
        let done = match known {
            Some(statement) => work(&mut client, &statement, &bound),
            None => client
                .prepare(&dialect::to_postgres(sql))
                .and_then(|statement| {
                    let mut statements = self.statements.borrow_mut();
                    if statements.len() >= MOST_STATEMENTS {
                        statements.clear();
                    }
                    statements.insert(sql.to_owned(), statement.clone());
                    work(&mut client, &statement, &bound)
                }),
        };
        drop(client);
        done.map_err(|e| self.failed(&e).into())
    }

    pub(super) fn begin(&self, what: Transaction) -> Result<(), StoreError> {
        self.revive()?;
        let (begin, plans) = match what {
            Transaction::Read if self.access == Access::ReadOnly => (BEGIN_READ_ONLY, ""),
            Transaction::Read if self.is_standby.get() => (BEGIN_ON_STANDBY, READ_TABLES),
            Transaction::Read => (BEGIN, READ_TABLES),
            Transaction::Write => {
                let begin = match self.triggers.get() {
                    true => BEGIN,
                    false => BEGIN_WITHOUT_TRIGGERS,
                };
                (begin, if self.walks.get() { "" } else { READ_TABLES })
            }
        };
        let begin = &[begin, plans].join(";");
        let mut begun = self.client.borrow_mut().batch_execute(begin);
        if begun
            .as_ref()
            .is_err_and(|e| self.failed(e).is_disconnected)
        {
            self.replace()?;
            begun = self.client.borrow_mut().batch_execute(begin);
        }
        // Even where it failed half way.
        self.in_transaction.set(true);
        begun.map_err(|e| self.failed(&e).into())
    }

    pub(super) fn commit(&self) -> Result<(), StoreError> {
        let done = self.client.borrow_mut().batch_execute("COMMIT");
        match done {
            Ok(()) => {
                self.in_transaction.set(false);
                Ok(())
            }
            Err(e) => Err(self.failed(&e).into()),
        }
    }

    /// Leaves the transaction; a connection on which that does not succeed is given up.
    pub(super) fn roll_back(&self) {
        if !self.in_transaction.replace(false) {
            return;
        }
        // An interrupt that was meant for the statement before can hit this one.
        for _ in 0..5 {
            let mut client = self.client.borrow_mut();
            if client.is_closed() {
                return;
            }
            match client.batch_execute("ROLLBACK") {
                Ok(()) => return,
                Err(e) => log::debug!("rolling back: {}", error(&e)),
            }
        }
        if let Err(e) = self.replace() {
            log::debug!("replacing a connection: {e}");
        }
    }

    /// A connection that broke is replaced, but never in the middle of a transaction.
    fn revive(&self) -> Result<(), StoreError> {
        if !self.client.borrow().is_closed() {
            return Ok(());
        }
        if self.in_transaction.get() {
            return Err(StoreError::Server(ServerError {
                code: None,
                text: "the connection to the server was lost".into(),
                is_disconnected: true,
            }));
        }
        log::debug!("the connection to the server was lost; connecting anew");
        self.replace()
    }

    fn replace(&self) -> Result<(), StoreError> {
        let (client, encryption, is_standby) = match connect(&self.server, self.access) {
            Ok(connected) => connected,
            Err(Error::Store { source, .. }) => return Err(source),
            Err(e) => {
                return Err(StoreError::Server(ServerError {
                    code: None,
                    text: e.to_string(),
                    is_disconnected: false,
                }));
            }
        };
        self.is_standby.set(is_standby);
        *self.token.lock() = (client.cancel_token(), encryption);
        self.statements.borrow_mut().clear();
        *self.client.borrow_mut() = client;
        self.number.set(self.number.get() + 1);
        Ok(())
    }

    fn failed(&self, e: &postgres::Error) -> ServerError {
        let mut error = error(e);
        error.is_disconnected |= self.client.borrow().is_closed();
        error
    }
}

/// Connects, and finds out whether the server is a standby. What is to write is refused where nothing may be written.
fn connect(server: &Server, access: Access) -> Result<(Client, Encryption, bool), Error> {
    let doing = "connect to the PostgreSQL server";
    let lost = |e: &postgres::Error| {
        let mut error = error(e);
        // Whatever stands in the way of connecting may be gone the next time; a wrong password or certificate is not.
        error.is_disconnected |= error.code.is_none() && !encryption::is_about_encryption(e);
        error.text = format!("{server}: {}", error.text);
        Error::Store {
            doing,
            source: error.into(),
        }
    };
    let (mut client, encryption) = address::connect(server, |e| lost(&e))?;
    let (is_standby, is_read_only) = reads_only(&mut client).map_err(|e| lost(&e))?;
    if access == Access::Write && is_standby {
        return Err(Error::Refused(format!(
            "{server}: this server is a hot standby and can only be read: name the primary, or say \
             target_session_attrs: primary where several hosts are named"
        )));
    }
    if access == Access::Write && is_read_only {
        return Err(Error::Refused(format!(
            "{server}: default_transaction_read_only is on for this role or database, so somebody wants nothing written \
             there: take that back first (ALTER ROLE … RESET default_transaction_read_only) if it is not meant"
        )));
    }
    let mut setup = String::from(SETUP);
    if access != Access::ReadOnlyFile {
        setup.push(';');
        setup.push_str(PREFER_INDEX_SCANS);
    }
    if access != Access::Write {
        setup.push_str("; SET default_transaction_read_only = on");
    }
    client.batch_execute(&setup).map_err(|e| lost(&e))?;
    Ok((client, encryption, is_standby))
}

fn reads_only(client: &mut Client) -> Result<(bool, bool), postgres::Error> {
    let answer = client.simple_query(READS_ONLY)?;
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((row.get(0) == Some("t"), row.get(1) == Some("on"))),
        _ => None,
    });
    Ok(row.unwrap_or((false, false)))
}

/// What the server said, without what it says of rows.
fn error(e: &postgres::Error) -> ServerError {
    let Some(said) = e.as_db_error() else {
        let mut text = e.to_string();
        if let Some(cause) = std::error::Error::source(e) {
            text = format!("{text}: {cause}");
        }
        return ServerError {
            code: None,
            text,
            is_disconnected: e.is_closed(),
        };
    };
    let code = said.code().code();
    let mut text = format!("{} ({code})", said.message());
    if let Some(constraint) = said.constraint() {
        let table = said.table().unwrap_or("a table");
        text.push_str(&format!(", constraint {constraint} of {table}"));
    }
    ServerError {
        code: Some(code.to_owned()),
        text,
        // An administrator or a crash ended the connection; the server starts or stops; the connection broke.
        is_disconnected: matches!(code, "57P01" | "57P02" | "57P03" | "57P05")
            || code.starts_with("08"),
    }
}

/// A column as it is.
pub(super) fn value(row: &postgres::Row, at: usize) -> RowResult<Value<'_>> {
    match row.try_get::<_, wire::Found<'_>>(at) {
        Ok(found) => Ok(found.0),
        Err(e) => Err(StoreError::Server(error(&e))),
    }
}
