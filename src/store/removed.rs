//! Whether a database is the one that a job has worked on, or an older one that was put in its place (S-30).
//!
//! Nothing of ours is written into the database. What the ledger noted is looked up: events and rooms that were removed,
//! and the greatest stream ordering.

use super::db::{Db, Engine, params};
use crate::error::Error;
use crate::ids::{EventId, RoomId};

const DOING: &str = "look whether the database was put back";

/// The greatest stream ordering; NULL where there is no event. Walks the key.
const GREATEST: &str = "SELECT max(stream_ordering) FROM events";

/// Binds `$1` event, `$2` stream ordering. Walks the key on event id.
const EVENT_STANDS: &str =
    "SELECT count(*) FROM events WHERE event_id = $1 AND stream_ordering = $2";

/// Binds `$1` room.
const ROOM_STANDS: &str = "SELECT count(*) FROM rooms WHERE room_id = $1";

/// Some of the live events that the transaction is about to delete: a server does not give such a number out again to the same
/// event. The oldest first: the newest may be what the job itself has added (people leave), and is in no backup. Binds `$1`
/// how many.
const SOME_SELECTED: &str = "
    SELECT event_id, stream_ordering FROM rk_selected
     WHERE to_delete AND stream_ordering > 0 ORDER BY stream_ordering LIMIT $1";

/// The same of backfilled ones, where there is nothing else.
const SOME_BACKFILLED: &str = "
    SELECT event_id, stream_ordering FROM rk_selected
     WHERE to_delete AND stream_ordering < 0 ORDER BY stream_ordering DESC LIMIT $1";

/// Whether a server still has a database of this number. Binds `$1` its OID.
const HAS_DATABASE: &str = "-- PostgreSQL
    SELECT count(*) FROM pg_database WHERE CAST(oid AS TEXT) = $1";

/// Whether the database that a ledger names (see [`Db::identity`]) was on this server and is there no more, as after a
/// backup was restored: it was dropped then, and made anew.
pub fn was_dropped(db: &Db, identity: &str) -> Result<bool, Error> {
    let (Some((server, number)), own) = (identity.rsplit_once(' '), db.identity()?) else {
        return Ok(false);
    };
    if db.engine() != Engine::Postgres || own.rsplit_once(' ').is_none_or(|(own, _)| own != server)
    {
        return Ok(false);
    }
    Ok(db.count(DOING, HAS_DATABASE, params![number])? == 0)
}

/// The greatest stream ordering of all events, if there is one.
pub fn greatest_stream_ordering(db: &Db) -> Result<Option<i64>, Error> {
    let greatest = db.row(DOING, GREATEST, &[], |r| r.get::<_, Option<i64>>(0))?;
    Ok(greatest.flatten())
}

/// Whether an event stands under this stream ordering. One that was fetched again stands under another.
pub fn event_stands(db: &Db, event: &EventId, stream_ordering: i64) -> Result<bool, Error> {
    let found = db.count(
        DOING,
        EVENT_STANDS,
        params![event.as_str(), stream_ordering],
    )?;
    Ok(found > 0)
}

/// Whether a room has its row.
pub fn room_stands(db: &Db, room: &RoomId) -> Result<bool, Error> {
    Ok(db.count(DOING, ROOM_STANDS, params![room.as_str()])? > 0)
}

/// The oldest of the selected events that go, no more than `most`, with their stream orderings, those that were live before
/// those that were fetched later. Must run in the transaction that selected.
pub fn some_selected(db: &Db, most: i64) -> Result<Vec<(EventId, i64)>, Error> {
    let read = |sql: &str, most: i64| {
        db.rows(DOING, sql, params![most], |r| {
            Ok((EventId::new(r.get::<_, String>(0)?), r.get(1)?))
        })
    };
    let mut found = read(SOME_SELECTED, most)?;
    let missing = most - i64::try_from(found.len()).unwrap_or(most);
    if missing > 0 {
        found.extend(read(SOME_BACKFILLED, missing)?);
    }
    Ok(found)
}
