//! Events of this server's own, whose signatures show which key it has.

use super::append::{room_row, version_by_create_event};
use super::db::{Db, params};
use crate::error::Error;
use crate::ids::{EventId, RoomId};

/// How far back is looked for this server's own events, in stream orderings: a fraction of a second even where all of them
/// are of other servers.
const LOOK_BACK: i64 = 20_000;

/// The newest events of a server's own users. Binds `$1` how far back, `$2` server name. Walks the unique index on
/// `stream_ordering` backwards.
const NEWEST: &str = "
    SELECT e.event_id, e.room_id, j.json
      FROM events e
     CROSS JOIN event_json j
     WHERE e.stream_ordering > (SELECT max(stream_ordering) FROM events) - $1
       AND substr(e.sender, instr(e.sender, ':') + 1) = $2
       AND j.event_id = e.event_id
     ORDER BY e.stream_ordering DESC LIMIT 10";

/// The same among what the local people of one room did to come into it, however long ago. Binds `$1` room, `$2` server
/// name. Walks `local_current_membership_room_idx`.
const OF_MEMBERS: &str = "
    SELECT e.event_id, e.room_id, j.json
      FROM local_current_membership l
     CROSS JOIN events e
     CROSS JOIN event_json j
     WHERE l.room_id = $1 AND e.event_id = l.event_id
       AND substr(e.sender, instr(e.sender, ':') + 1) = $2
       AND j.event_id = e.event_id
     LIMIT 10";

/// An event of this server's own.
pub struct OwnEvent {
    /// Its id.
    pub id: EventId,
    /// The name of its room's version; none where nothing tells it.
    pub version: Option<String>,
    /// The event as JSON.
    pub json: String,
}

/// A few events of a server's own: the newest of all, the newest first; then, should they tell nothing, some of the
/// people of `room`.
pub fn own_events(db: &Db, server_name: &str, room: &RoomId) -> Result<Vec<OwnEvent>, Error> {
    let doing = "look for events of this server's own";
    let row = |r: &super::db::Row<'_>| {
        Ok((
            EventId::new(r.get::<_, String>(0)?),
            RoomId::new(r.get::<_, String>(1)?),
            r.get::<_, String>(2)?,
        ))
    };
    let mut found = db.rows(doing, NEWEST, params![LOOK_BACK, server_name], row)?;
    if db.catalog().has("local_current_membership") {
        let bound = params![room.as_str(), server_name];
        found.extend(db.rows(doing, OF_MEMBERS, bound, row)?);
    }
    found
        .into_iter()
        .map(|(id, room, json)| {
            let version = match room_row(db, &room)?.and_then(|row| row.version) {
                Some(version) => Some(version),
                None => version_by_create_event(db, &room)?,
            };
            Ok(OwnEvent { id, version, json })
        })
        .collect()
}
