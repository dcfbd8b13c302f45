//! What events say about other events: relations and redactions (M-70, M-87).

use std::collections::HashMap;

use super::db::{Db, params};
use super::pages::json_list;
use crate::error::Error;
use crate::ids::RoomId;
use crate::point::Point;

/// An event that relates to another one of the same room.
#[derive(Clone, Debug)]
pub struct Related {
    /// The other one.
    pub parent: String,
    /// How.
    pub relation: String,
    /// Its id.
    pub event_id: String,
    /// Its sender; old rows may have none.
    pub sender: Option<String>,
    /// Its type.
    pub kind: String,
    /// Its place.
    pub point: Point,
    /// What its sender says about when it was sent.
    pub origin_server_ts: Option<i64>,
}

/// Events that refer to, edit or reply in a thread to some others. Binds `$1` those others. Walks
/// `event_relations_relates`, then looks each up by id; the joins are crossed and left, so that they are done in this order
/// whatever statistics say.
const RELATED: &str = "
    SELECT x.relates_to_id, x.relation_type, x.event_id, c.sender, c.type, c.topological_ordering, c.stream_ordering,
           c.origin_server_ts, c.room_id
      FROM (SELECT value FROM json_each($1)) asked
     CROSS JOIN event_relations x
      LEFT JOIN events c ON c.event_id = x.event_id
     WHERE x.relates_to_id = asked.value
       AND x.relation_type IN ('m.reference', 'm.replace', 'm.thread')";

/// Hands over each event of the room that refers to, edits or replies in a thread to one of `parents`, in no order. There may
/// be any number of them, so none is kept.
pub fn each_related<S: AsRef<str>>(
    db: &Db,
    room: &RoomId,
    parents: &[S],
    mut each: impl FnMut(Related),
) -> Result<(), Error> {
    if parents.is_empty() {
        return Ok(());
    }
    let parents = json_list(parents);
    db.for_each("read relations", RELATED, params![parents], |r| {
        if r.get::<_, Option<String>>(8)?.as_deref() != Some(room.as_str()) {
            return Ok(());
        }
        each(Related {
            parent: r.get(0)?,
            relation: r.get(1)?,
            event_id: r.get(2)?,
            sender: r.get(3)?,
            kind: r.get(4)?,
            point: Point {
                topological: r.get(5)?,
                stream: r.get(6)?,
            },
            origin_server_ts: r.stamp(7),
        });
        Ok(())
    })
}

/// A redaction of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redaction {
    /// The event that redacts.
    pub event_id: String,
    /// Whether it is known to be allowed, so that it counts even when it is not held.
    pub is_confirmed: bool,
}

/// Binds `$1` events. Walks `redactions_redacts`.
const REDACTIONS: &str = "
    SELECT r.redacts, r.event_id, r.recheck
      FROM (SELECT value FROM json_each($1)) asked
     CROSS JOIN redactions r
     WHERE r.redacts = asked.value";

/// The same before schema 94, when all were looked at again.
const UNCONFIRMED: &str = "
    SELECT r.redacts, r.event_id, TRUE
      FROM (SELECT value FROM json_each($1)) asked
     CROSS JOIN redactions r
     WHERE r.redacts = asked.value";

/// The redactions of some events, by event.
pub fn redactions(db: &Db, events: &[&str]) -> Result<HashMap<String, Vec<Redaction>>, Error> {
    let mut redactions: HashMap<String, Vec<Redaction>> = HashMap::new();
    if events.is_empty() {
        return Ok(redactions);
    }
    let sql = if db.catalog().has_column("redactions", "recheck") {
        REDACTIONS
    } else {
        UNCONFIRMED
    };
    let events = json_list(events);
    db.for_each("read redactions", sql, params![events], |r| {
        let redaction = Redaction {
            event_id: r.get(1)?,
            is_confirmed: !r.get::<_, bool>(2)?,
        };
        redactions.entry(r.get(0)?).or_default().push(redaction);
        Ok(())
    })?;
    Ok(redactions)
}

/// The redaction of everything that a banned user said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BanRedaction {
    /// The event that banned them.
    pub event_id: String,
    /// Events that arrived from here on are none of it.
    pub end: Option<i64>,
}

/// Binds `$1` room.
const BAN_REDACTIONS: &str = "
    SELECT user_id, redacting_event_id, redact_end_ordering FROM room_ban_redactions WHERE room_id = $1";

/// Whose events of the room are redacted by their ban, by user.
pub fn ban_redactions(db: &Db, room: &RoomId) -> Result<HashMap<String, Vec<BanRedaction>>, Error> {
    let mut bans: HashMap<String, Vec<BanRedaction>> = HashMap::new();
    if !db.catalog().has("room_ban_redactions") {
        return Ok(bans);
    }
    let doing = "read bans that redact";
    db.for_each(doing, BAN_REDACTIONS, params![room.as_str()], |r| {
        let ban = BanRedaction {
            event_id: r.get(1)?,
            end: r.get(2)?,
        };
        bans.entry(r.get(0)?).or_default().push(ban);
        Ok(())
    })?;
    Ok(bans)
}
