//! The events that would go, told one by one in an order that is always the same, page by page, so that memory is bounded
//! on a server too.

use super::db::{Db, params};
use crate::error::Error;
use crate::ids::RoomId;

/// Events of a page.
const PAGE: i64 = 10_000;

/// Binds `$1` stream ordering of the last page's last, `$2` events of a page.
const SELECTED_AFTER: &str = "
    SELECT stream_ordering, event_id, to_delete FROM rk_selected
     WHERE stream_ordering > $1
     ORDER BY stream_ordering LIMIT $2";

/// Binds `$1` room, `$2` depth and `$3` stream ordering of the last page's last, `$4` events of a page. Walks
/// `events_order_room`.
const OF_ROOM_AFTER: &str = "
    SELECT topological_ordering, stream_ordering, event_id FROM events
     WHERE room_id = $1 AND (topological_ordering, stream_ordering) > ($2, $3)
     ORDER BY topological_ordering, stream_ordering LIMIT $4";

/// Reads page by page: `page` reads the next one, from where it noted that the last one ended, and says how many it had.
fn by_pages(mut page: impl FnMut() -> Result<i64, Error>) -> Result<(), Error> {
    while page()? == PAGE {}
    Ok(())
}

/// Hands every selected event to `each`, with whether it is deleted (else it becomes an outlier). Must run in the
/// transaction that selected.
///
/// # Errors
/// Those of the database.
pub fn for_each_selected(db: &Db, each: &mut dyn FnMut(&str, bool)) -> Result<(), Error> {
    let mut after = i64::MIN;
    by_pages(|| {
        let (from, mut told) = (after, 0);
        let doing = "read the events that go";
        db.for_each(doing, SELECTED_AFTER, params![from, PAGE], |row| {
            after = row.get(0)?;
            each(&row.get::<_, String>(1)?, row.get(2)?);
            told += 1;
            Ok(())
        })?;
        Ok(told)
    })
}

/// Hands every event of a room to `each`.
///
/// # Errors
/// Those of the database.
pub fn for_each_of_room(db: &Db, room: &RoomId, each: &mut dyn FnMut(&str)) -> Result<(), Error> {
    let mut after = (i64::MIN, i64::MIN);
    by_pages(|| {
        let ((depth, stream), mut told) = (after, 0);
        let doing = "read the room's events";
        let from = params![room.as_str(), depth, stream, PAGE];
        db.for_each(doing, OF_ROOM_AFTER, from, |row| {
            after = (row.get(0)?, row.get(1)?);
            each(&row.get::<_, String>(2)?);
            told += 1;
            Ok(())
        })?;
        Ok(told)
    })
}
