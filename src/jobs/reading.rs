//! Reading the ledger without owning it (S-33).

use std::path::Path;

use super::ledger::{RECORD, damaged, record, unfit};
use super::record::{JobRecord, State};
use super::schema::{self, Found};
use crate::error::{Context, Error, StoreError};
use crate::sqlite_file;

/// The same of a ledger of version 1, which nobody has brought up to date yet.
const RECORD_OF_1: &str = "
    SELECT id, kind, CASE kind WHEN 'retention' THEN 'lifetimes' ELSE 'room' END,
           CASE WHEN kind <> 'retention' THEN subject
                WHEN json_valid(params)
                THEN coalesce(json_extract(params, '$.shortest_max_lifetime'), '') || '..'
                     || coalesce(json_extract(params, '$.longest_max_lifetime'), '')
                ELSE '..' END,
           state, error, NULL, NULL, NULL, params, progress, created_ms, started_ms, ended_ms
      FROM job";

/// Every job on record, oldest first, without owning the ledger; nothing is written or made. A job that ran when its
/// process ended waits to be resumed.
///
/// # Errors
/// [`Error::Config`] where the file cannot be read, or is something else; [`Error::Refused`] for one of a newer roomkeeper.
pub fn read(path: &Path) -> Result<Vec<JobRecord>, Error> {
    sqlite_file::undisturbed(|| read_once(path))
}

fn read_once(path: &Path) -> Result<Vec<JobRecord>, Error> {
    let context = "read the ledger";
    let told = |e: rusqlite::Error| match StoreError::from(e) {
        e if e.is_damage() || e.is_no_database() => damaged(path, &e),
        e => sqlite_file::explained(path, false, context, e),
    };
    let reading = sqlite_file::try_to_read(path)?.map_err(told)?;
    match schema::look(&reading.conn).map_err(told)? {
        Found::Ledger => {}
        Found::Nothing => return Ok(Vec::new()),
        Found::Newer(version) => return Err(schema::is_newer(path, version)),
        Found::SomethingElse => return Err(unfit(path, "it is a database of something else")),
    }
    let has = |column| schema::has_column(&reading.conn, column).context(context);
    if !has("id")? {
        return Ok(Vec::new());
    }
    let select = match has("waits")? {
        true => RECORD,
        false => RECORD_OF_1,
    };
    let records = reading
        .conn
        .prepare(&format!("{select} ORDER BY created_ms, rowid"))
        .and_then(|mut s| {
            s.query_map([], record)?
                .collect::<rusqlite::Result<Vec<_>>>()
        });
    if let Some(unchanged) = &reading.unchanged {
        unchanged.ensure()?;
    }
    let mut records = records.map_err(told)?;
    for record in &mut records {
        if record.state == State::Running {
            record.state = State::Queued;
        }
    }
    Ok(records)
}
