//! How many events there are and how much room they take, before anything is decided about them.

use super::db::{Db, Engine};
use crate::error::Error;

/// What is known of the events table before a purge.
#[derive(Clone, Copy, Debug)]
pub struct TableSizes {
    /// Events in all rooms.
    pub events: i64,
    /// Bytes in use in the file, or on the server.
    pub used_bytes: i64,
}

/// The number of events is the server's own estimate: counting them would read all of the table.
const SIZES_ON_POSTGRES: &str = "-- PostgreSQL
    SELECT CAST(greatest(reltuples, 0) AS BIGINT), pg_database_size(current_database())
      FROM pg_class WHERE oid = to_regclass('events')";

/// How many events there are, and how much room everything takes.
pub fn sizes(db: &Db) -> Result<TableSizes, Error> {
    if db.engine() == Engine::Postgres {
        let found = db.row("measure the database", SIZES_ON_POSTGRES, &[], |r| {
            Ok(TableSizes {
                events: r.get(0)?,
                used_bytes: r.get(1)?,
            })
        })?;
        return found.ok_or_else(|| Error::Bug("the server knows no table of events".into()));
    }
    let pages = db.pragma("page_count")? - db.pragma("freelist_count")?;
    Ok(TableSizes {
        events: db.count("count all events", "SELECT count(*) FROM events", &[])?,
        used_bytes: pages.saturating_mul(db.pragma("page_size")?),
    })
}

/// What an event takes in the file with everything that belongs to it: the file's use, by the number of events.
pub fn bytes_of_one_event(db: &Db) -> Result<i64, Error> {
    let sizes = sizes(db)?;
    Ok(sizes.used_bytes / sizes.events.max(1))
}
