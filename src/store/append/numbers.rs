//! The numbers that new rows get: stream orderings, state groups, auth chains (D-49).

use crate::error::Error;
use crate::store::db::{Db, Engine, params};
use crate::store::tx::Tx;

/// Synapse's name for its only writer, where there are no others.
const MASTER: &str = "master";

/// The largest number in use, of each kind and table that has it. Every one is the end of an index.
const LARGEST_STREAM: &[(&str, &str)] = &[
    ("events", "SELECT max(stream_ordering) FROM events"),
    (
        "current_state_delta_stream",
        "SELECT max(stream_id) FROM current_state_delta_stream",
    ),
    (
        "ex_outlier_stream",
        "SELECT max(event_stream_ordering) FROM ex_outlier_stream",
    ),
    (
        "stream_positions",
        "SELECT max(stream_id) FROM stream_positions WHERE stream_name = 'events'",
    ),
];

/// Older releases left edges and rows of deleted groups behind (defect J): a new group must not take over those of a
/// number that was in use before.
const LARGEST_GROUP: &[(&str, &str)] = &[
    ("state_groups", "SELECT max(id) FROM state_groups"),
    (
        "state_group_edges",
        "SELECT max(state_group) FROM state_group_edges",
    ),
    (
        "state_groups_state",
        "SELECT max(state_group) FROM state_groups_state",
    ),
    (
        "state_groups_pending_deletion",
        "SELECT max(state_group) FROM state_groups_pending_deletion",
    ),
];

const LARGEST_CHAIN: &[(&str, &str)] = &[
    (
        "event_auth_chains",
        "SELECT max(chain_id) FROM event_auth_chains",
    ),
    (
        "event_auth_chain_links",
        "SELECT max(origin_chain_id) FROM event_auth_chain_links",
    ),
];

/// The writer whose stream the new events join.
const WRITER: &str = "
    SELECT instance_name FROM stream_positions
     WHERE stream_name = 'events'
     ORDER BY stream_id DESC
     LIMIT 1";

/// Says how far the events go now. Only where the homeserver keeps such a row: one that it does not expect would stay
/// behind the events. Binds `$1` the last stream ordering, `$2` the writer.
const SET_POSITION: &str = "
    UPDATE stream_positions SET stream_id = $1
     WHERE stream_name = 'events' AND instance_name = $2 AND stream_id < $1";

const NEXT_STREAM: &str = "-- PostgreSQL
    SELECT nextval('events_stream_seq')";

const NEXT_GROUP: &str = "-- PostgreSQL
    SELECT nextval('state_group_id_seq')";

const NEXT_CHAIN: &str = "-- PostgreSQL
    SELECT nextval('event_auth_chain_id')";

/// Hands out numbers within one transaction: no other writer may come in between. PostgreSQL has sequences for them.
#[derive(Clone, Debug)]
pub struct Numbers {
    stream: i64,
    group: i64,
    chain: i64,
    writer: String,
}

const DOING: &str = "find the next number";

impl Numbers {
    /// Looks where the numbers stand; inside the transaction that uses them. The homeserver looks at the same tables
    /// when it starts.
    pub fn read(db: &Db) -> Result<Self, Error> {
        let writer = match db.catalog().has("stream_positions") {
            true => db.row(DOING, WRITER, &[], |r| r.get(0))?,
            false => None,
        };
        let mut numbers = Self {
            stream: 1,
            group: 0,
            chain: 0,
            writer: writer.unwrap_or_else(|| MASTER.to_owned()),
        };
        if db.engine() == Engine::Sqlite {
            numbers.stream = largest(db, LARGEST_STREAM)?.max(1);
            numbers.group = largest(db, LARGEST_GROUP)?;
            numbers.chain = largest(db, LARGEST_CHAIN)?;
        }
        Ok(numbers)
    }

    /// The writer that the new events have as `instance_name`.
    pub fn writer(&self) -> &str {
        &self.writer
    }

    /// The next stream ordering.
    pub(super) fn next_stream(&mut self, db: &Db) -> Result<i64, Error> {
        next(db, NEXT_STREAM, &mut self.stream)
    }

    /// The next state group.
    pub(super) fn next_group(&mut self, db: &Db) -> Result<i64, Error> {
        next(db, NEXT_GROUP, &mut self.group)
    }

    /// The next auth chain.
    pub(super) fn next_chain(&mut self, db: &Db) -> Result<i64, Error> {
        next(db, NEXT_CHAIN, &mut self.chain)
    }

    /// Writes down how far the events go; at the end of the transaction.
    pub fn keep(&self, db: &Tx<'_>) -> Result<(), Error> {
        if db.catalog().has("stream_positions") {
            db.execute(
                "write down the newest stream ordering",
                SET_POSITION,
                params![self.stream, self.writer],
            )?;
        }
        Ok(())
    }
}

fn next(db: &Db, sequence: &str, last: &mut i64) -> Result<i64, Error> {
    *last = match db.engine() {
        Engine::Sqlite => *last + 1,
        Engine::Postgres => db.count(DOING, sequence, &[])?,
    };
    Ok(*last)
}

fn largest(db: &Db, tables: &[(&str, &str)]) -> Result<i64, Error> {
    let mut largest = 0;
    for (table, sql) in tables {
        if db.catalog().has(table) {
            largest = largest.max(db.count(DOING, sql, &[])?);
        }
    }
    Ok(largest)
}
