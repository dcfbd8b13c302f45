//! What is wrong in a database and can be mended without guessing: rows that no Synapse reads any more go, and what follows
//! from rows that are right is written down again.
//!
//! Nothing is mended on the word of what may itself be damaged: the indexes are tested first ([`verify`]), and what is
//! found is tested again by the statement that mends it. Events, their JSON where the event is held, and state groups that
//! anything refers to are never touched.

mod indexes;
mod members;
mod rows;

use self::members::Subject;
use super::db::{Db, Engine, Row, RowResult, params};
use super::search;
use super::tx::Tx;
use crate::error::Error;
use crate::event;
use crate::ids::RoomId;

pub use self::indexes::verify;

/// What becomes of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// It goes.
    Deletes,
    /// It is put right.
    Corrects,
    /// It was missing.
    Adds,
    /// An index is built anew from its content.
    Rebuilds,
}

/// Something that can be mended.
#[derive(Clone, Debug)]
pub struct Mend {
    /// Number of the rule in behaviour.md.
    pub rule: &'static str,
    /// What is wrong, for people.
    pub wrong: String,
    /// What becomes of it.
    pub act: Act,
    /// The table.
    pub table: &'static str,
    /// Why it is not done beside a homeserver, where it is not.
    pub needs_stopped: Option<&'static str>,
    /// Whether what people wrote stands in the rows.
    pub has_text: bool,
    /// Whether it breaks no rule: what the homeserver itself, or others, have left behind.
    pub is_leftover: bool,
    how: How,
}

#[derive(Clone, Debug)]
enum How {
    /// Rows of one table that a condition tells.
    Rows { find: String, act: String },
    /// Events that a timeline does not have, and that nothing marks as missing (I-7).
    Gaps,
    /// A room without a row of its own (I-17).
    Room,
    /// Rows of memberships.
    Members(Subject),
    /// The full-text index of a file.
    FullText,
}

/// One thing to mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where it is, for the statement that mends it.
    address: String,
    /// The room that it belongs to, as far as it says so.
    pub room: Option<RoomId>,
    /// What a person knows it by.
    pub shown: String,
}

impl Finding {
    /// By an address that people know it by, and its room.
    fn of_room(row: &Row<'_>) -> RowResult<Self> {
        let address: String = row.get(0)?;
        let room: String = row.get(1)?;
        Ok(Self {
            shown: address.clone(),
            address,
            room: Some(RoomId::new(room)),
        })
    }
}

/// Most things that are found at once: the rest is found by looking again.
pub const MOST_FOUND: i64 = 50_000;

/// I-7. Binds `$1` how many.
const GAPS: &str = "
    SELECT DISTINCT g.prev_event_id, e.room_id FROM event_edges g JOIN events e ON e.event_id = g.event_id
     WHERE NOT e.outlier
       AND NOT EXISTS (SELECT 1 FROM rejections r WHERE r.event_id = e.event_id)
       AND NOT EXISTS (SELECT 1 FROM events p WHERE p.event_id = g.prev_event_id AND NOT p.outlier)
       AND NOT EXISTS (SELECT 1 FROM rejections r WHERE r.event_id = g.prev_event_id)
       AND NOT EXISTS (SELECT 1 FROM event_backward_extremities b
                        WHERE b.event_id = g.prev_event_id AND b.room_id = e.room_id)
       AND NOT EXISTS (SELECT 1 FROM event_json j WHERE j.event_id = g.prev_event_id
                          AND j.internal_metadata LIKE '%soft_failed%')
     LIMIT $1";

/// The same for one of them, which is marked. Binds `$1` the event that is missing, `$2` room.
const MARK_GAP: &str = "
    INSERT INTO event_backward_extremities (event_id, room_id)
    SELECT DISTINCT g.prev_event_id, e.room_id FROM event_edges g JOIN events e ON e.event_id = g.event_id
     WHERE g.prev_event_id = $1 AND e.room_id = $2
       AND NOT e.outlier
       AND NOT EXISTS (SELECT 1 FROM rejections r WHERE r.event_id = e.event_id)
       AND NOT EXISTS (SELECT 1 FROM events p WHERE p.event_id = g.prev_event_id AND NOT p.outlier)
       AND NOT EXISTS (SELECT 1 FROM rejections r WHERE r.event_id = g.prev_event_id)
       AND NOT EXISTS (SELECT 1 FROM event_backward_extremities b
                        WHERE b.event_id = g.prev_event_id AND b.room_id = e.room_id)
       AND NOT EXISTS (SELECT 1 FROM event_json j WHERE j.event_id = g.prev_event_id
                          AND j.internal_metadata LIKE '%soft_failed%')";

/// Rooms without a row of their own whose create event is held. Binds `$1` how many.
const ROOMS: &str = "
    SELECT min(s.event_id), s.room_id FROM state_events s
      JOIN events c ON c.event_id = s.event_id AND c.room_id = s.room_id
     WHERE s.type = 'm.room.create' AND s.state_key = ''
       AND NOT EXISTS (SELECT 1 FROM rooms r WHERE r.room_id = s.room_id)
       AND NOT EXISTS (SELECT 1 FROM rejections j WHERE j.event_id = s.event_id)
       AND EXISTS (SELECT 1 FROM events e WHERE e.room_id = s.room_id AND NOT e.outlier)
     GROUP BY s.room_id HAVING count(*) = 1 LIMIT $1";

const CREATE_JSON: &str = "
    SELECT json FROM event_json WHERE event_id = $1 AND room_id = $2";

/// Binds `$1` room, `$2` its creator, `$3` its version. In no directory until somebody puts it there again, and without
/// the index of auth chains, which the homeserver can do without.
const INSERT_ROOM: &str = "
    INSERT INTO rooms (room_id, is_public, creator, room_version, has_auth_chain_index)
    SELECT $1, FALSE, $2, $3, FALSE
     WHERE NOT EXISTS (SELECT 1 FROM rooms r WHERE r.room_id = $1)";

const DOING: &str = "mend the database";

impl Mend {
    /// What is to be mended, no more than [`MOST_FOUND`]. Reads only.
    ///
    /// # Errors
    /// Those of the database.
    pub fn find(&self, db: &Db) -> Result<Vec<Finding>, Error> {
        let doing = "look what can be mended";
        let of_room = |sql: &str| db.rows(doing, sql, params![MOST_FOUND], Finding::of_room);
        match &self.how {
            How::Rows { find, .. } => db.rows(doing, find, params![MOST_FOUND], |r| {
                let room: Option<String> = r.get(1)?;
                let shown: Option<String> = r.get(2)?;
                Ok(Finding {
                    address: r.get(0)?,
                    room: room.map(RoomId::new),
                    shown: shown.unwrap_or_default(),
                })
            }),
            How::Gaps => of_room(GAPS),
            How::Room => {
                let mut found = of_room(ROOMS)?;
                let mut readable = Vec::new();
                for one in found.drain(..) {
                    if room_of(db, &one)?.is_some() {
                        readable.push(one);
                    }
                }
                Ok(readable)
            }
            How::Members(subject) => subject.find(db),
            How::FullText => Ok(match index_is_damaged(db)? {
                true => vec![Finding {
                    address: String::new(),
                    room: None,
                    shown: "event_search".to_owned(),
                }],
                false => Vec::new(),
            }),
        }
    }

    /// Mends one thing, where it is still as it was found; answers how many rows that changed.
    ///
    /// # Errors
    /// Those of the database.
    pub fn apply(&self, tx: &Tx<'_>, found: &Finding) -> Result<i64, Error> {
        if let Some(room) = &found.room {
            tx.ensure_held(room)?;
        }
        match &self.how {
            How::Rows { act, .. } => tx.execute(DOING, act, params![found.address]),
            How::Gaps => {
                let room = found.room.as_ref().map(RoomId::as_str);
                tx.execute(DOING, MARK_GAP, params![found.address, room])
            }
            How::Room => match (room_of(tx, found)?, &found.room) {
                (Some((creator, version)), Some(room)) => {
                    tx.execute(DOING, INSERT_ROOM, params![room.as_str(), creator, version])
                }
                _ => Ok(0),
            },
            How::Members(subject) => subject.apply(tx, found),
            How::FullText => {
                search::rebuild(tx)?;
                Ok(1)
            }
        }
    }
}

/// Creator and version of a room, by its create event.
fn room_of(db: &Db, found: &Finding) -> Result<Option<(String, String)>, Error> {
    let room = found.room.as_ref().map(RoomId::as_str);
    let json = db.row(DOING, CREATE_JSON, params![found.address, room], |r| {
        r.get::<_, super::value::Json>(0)
    })?;
    let Some(json) = json else { return Ok(None) };
    let Ok(event) = serde_json::from_str::<serde_json::Value>(&json.0) else {
        return Ok(None);
    };
    let version = match &event["content"]["room_version"] {
        serde_json::Value::Null => "1",
        serde_json::Value::String(version) => version,
        _ => return Ok(None),
    };
    let is_create = event["type"] == event::CREATE;
    let sender = event["sender"].as_str().filter(|_| is_create);
    Ok(sender.map(|sender| (sender.to_owned(), version.to_owned())))
}

/// What SQLite says of a full-text index that does not agree with its content.
const MALFORMED: &str = "
    SELECT integrity_check FROM pragma_integrity_check('event_search') WHERE integrity_check <> 'ok'";

/// Whether the full-text index of a file does not agree with its content.
fn index_is_damaged(db: &Db) -> Result<bool, Error> {
    if db.engine() == Engine::Postgres || !db.catalog().has("event_search") {
        return Ok(false);
    }
    let asked = db.row("test the full-text index", MALFORMED, &[], |r| {
        r.get::<_, String>(0)
    });
    match asked {
        Err(e) if e.is_index_damage() => return Ok(true),
        asked => {
            if asked?.is_some() {
                return Ok(true);
            }
        }
    }
    if db.pragma("query_only")? != 0 || db.is_read_only() {
        return Ok(false);
    }
    match search::verify(db) {
        Err(e) if e.is_index_damage() => Ok(true),
        verified => verified.map(|()| false),
    }
}

/// Everything that can be mended in this database, in the order in which it is: each may need what those before it did.
pub fn all(db: &Db) -> Vec<Mend> {
    let mut all = Vec::new();
    if db.engine() == Engine::Sqlite && db.catalog().has("event_search") {
        all.push(Mend {
            rule: "I-18",
            wrong: "a full-text index that does not agree with its content".to_owned(),
            act: Act::Rebuilds,
            table: "event_search",
            needs_stopped: Some("a rebuild is one long transaction"),
            has_text: false,
            is_leftover: false,
            how: How::FullText,
        });
    }
    all.push(Mend {
        rule: "I-17",
        wrong: "a room with a timeline and a create event, and no row of its own".to_owned(),
        act: Act::Adds,
        table: "rooms",
        needs_stopped: Some(CACHES),
        has_text: false,
        is_leftover: false,
        how: How::Room,
    });
    all.extend(rows::all(db));
    all.push(Mend {
        rule: "I-7",
        wrong: "a gap in a timeline that no backward extremity marks".to_owned(),
        act: Act::Adds,
        table: "event_backward_extremities",
        needs_stopped: None,
        has_text: false,
        is_leftover: false,
        how: How::Gaps,
    });
    all.extend(members::all(db).into_iter().map(|subject| Mend {
        rule: subject.rule(),
        wrong: subject.wrong().to_owned(),
        act: Act::Corrects,
        table: subject.table(),
        needs_stopped: Some(CACHES),
        has_text: false,
        is_leftover: false,
        how: How::Members(subject),
    }));
    all
}

/// Why much is mended only while the homeserver is stopped.
const CACHES: &str = "a running homeserver has it in its caches, and would go on by those";

/// What a person can do about what is not mended, by the number of its rule.
pub fn advice(rule: &str) -> &'static str {
    match rule {
        "I-2" => {
            "what such an event said is lost: purge the room's history up to behind it, or restore a backup"
        }
        "I-3" => {
            "which state such an event saw cannot be told: purge the room's history up to behind it, or restore a backup"
        }
        "I-4" => {
            "the room cannot be written into: restore a backup, or delete the room here and join it again through another \
             server"
        }
        "I-8" | "I-10" => {
            "what the state was cannot be told any more: `roomkeeper state sweep` removes what no event has; for the rest \
             restore a backup, or delete the room and join it again"
        }
        "I-11" | "I-12" => {
            "the tables say different things and none of them can be proved right: let the user leave and join again, or \
             delete the room and join it again"
        }
        "I-17" => {
            "the room's create event is not held, so its version is not known: delete the room (`roomkeeper delete-room`)"
        }
        "I-18" => {
            "make a copy first; a damaged file wants a backup, a broken foreign key of another program's table is that \
             program's to mend"
        }
        "I-19" => "a job is at work, or a roomkeeper on another machine",
        _ => "look at the rows by hand, on a copy, or ask where this program is discussed",
    }
}

/// The rules by which something can be mended.
pub const RULES: &[&str] = &[
    "I-1", "I-2", "I-3", "I-4", "I-5", "I-6", "I-7", "I-8", "I-9", "I-11", "I-12", "I-13", "I-14",
    "I-15", "I-16", "I-17", "I-18",
];
