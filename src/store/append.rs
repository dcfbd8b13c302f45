//! New events, with every row that Synapse would write for them (D-48).
//!
//! Only while no homeserver runs: it would not hear of them (W-40). An [`EventWriter`] is one transaction's worth of events;
//! each goes to the [`RoomHead`] of its room. What Synapse computes from its streams when it starts, it computes (D-50):
//! statistics, the user directory, what goes to other servers.

mod chains;
mod current;
mod groups;
mod numbers;
mod room_head;

use serde_json::{Value, json};

pub use self::numbers::Numbers;
pub use self::room_head::{RoomHead, RoomRow, room_row, version_by_create_event};
use crate::error::Error;
use crate::event::{CREATE, Event, MEMBER};
use crate::ids::{EventId, RoomId, UserId};
use crate::room_version::RoomVersion;
use crate::store::db::{Engine, params};
use crate::store::tx::Tx;
use crate::time::Millis;

const DOING: &str = "store an event";

const INSERT_ROOM: &str = "
    INSERT INTO rooms (room_id, is_public, creator, room_version, has_auth_chain_index)
    VALUES ($1, FALSE, $2, $3, TRUE)";

const INSERT_EVENT: &str = "
    INSERT INTO events
           (stream_ordering, topological_ordering, event_id, type, room_id, processed, outlier, depth,
            origin_server_ts, received_ts, sender, contains_url, instance_name, state_key)
    VALUES ($1, $2, $3, $4, $5, TRUE, $6, $2, $7, $8, $9, $10, $11, $12)";

const INSERT_JSON: &str = "
    INSERT INTO event_json (event_id, room_id, internal_metadata, json, format_version)
    VALUES ($1, $2, $3, $4, $5)";

const INSERT_STATE: &str =
    "INSERT INTO state_events (event_id, room_id, type, state_key) VALUES ($1, $2, $3, $4)";

const INSERT_EDGE: &str = "INSERT INTO event_edges (event_id, prev_event_id) VALUES ($1, $2)";

const INSERT_AUTH: &str = "INSERT INTO event_auth (event_id, auth_id, room_id) VALUES ($1, $2, $3)";

const INSERT_GROUP_OF: &str =
    "INSERT INTO event_to_state_groups (event_id, state_group) VALUES ($1, $2)";

const DELETE_EXTREMITY: &str =
    "DELETE FROM event_forward_extremities WHERE event_id = $1 AND room_id = $2";

const INSERT_EXTREMITY: &str =
    "INSERT INTO event_forward_extremities (event_id, room_id) VALUES ($1, $2)";

const INSERT_EXTREMITY_AT: &str = "
    INSERT INTO stream_ordering_to_exterm (stream_ordering, room_id, event_id) VALUES ($1, $2, $3)";

/// Depths only ever grow here: the row is written with the first event.
const INSERT_DEPTH: &str = "
    INSERT INTO room_depth (room_id, min_depth) VALUES ($1, $2) ON CONFLICT DO NOTHING";

const INSERT_WORDS: &str = "
    INSERT INTO event_search (event_id, room_id, key, value) VALUES ($1, $2, $3, $4)";

/// As [`INSERT_WORDS`]. Binds `$1` event, `$2` room, `$3` key, `$4` the words, `$5` stream ordering, `$6` when.
const INSERT_WORDS_INTO_POSTGRES: &str = "-- PostgreSQL
    INSERT INTO event_search (event_id, room_id, key, vector, stream_ordering, origin_server_ts)
    VALUES ($1, $2, $3, to_tsvector('english', $4), $5, $6)";

/// Who speaks takes part. Binds `$1` the member event.
const TAKE_PART: &str = "UPDATE room_memberships SET participant = TRUE WHERE event_id = $1";

/// The content whose words are found by a search, by type (D-48).
const SEARCHED: &[(&str, &str, &str)] = &[
    ("m.room.message", "body", "content.body"),
    ("m.room.name", "name", "content.name"),
    ("m.room.topic", "topic", "content.topic"),
];

/// Stores a room that has no event yet; the first thing of a new room.
pub fn insert_room(
    db: &Tx<'_>,
    room: &RoomId,
    version: &RoomVersion,
    creator: &UserId,
) -> Result<(), Error> {
    let (room, creator) = (room.as_str(), creator.as_str());
    db.execute(DOING, INSERT_ROOM, params![room, creator, version.name])?;
    Ok(())
}

/// One transaction's worth of new events.
pub struct EventWriter<'a> {
    db: &'a Tx<'a>,
    numbers: Numbers,
    /// When its events are received.
    received: Millis,
}

impl<'a> EventWriter<'a> {
    /// Begins; inside a transaction that holds the write lock.
    pub fn begin(db: &'a Tx<'a>, now: Millis) -> Result<Self, Error> {
        Ok(Self {
            db,
            numbers: Numbers::read(db)?,
            received: now,
        })
    }

    /// When the events that follow were received, where that is not now.
    pub fn received_at(&mut self, at: Millis) {
        self.received = at;
    }

    /// Ends, still inside the transaction.
    pub fn end(self) -> Result<(), Error> {
        self.numbers.keep(self.db)
    }

    /// Stores an event at the end of its room, and moves the end. Its prev events are those of [`RoomHead::prev`].
    pub fn append(&mut self, room_head: &mut RoomHead, event: &Event) -> Result<(), Error> {
        let db = self.db;
        let (id, room) = (event.id.as_str(), event.room.as_str());
        let stream = self.insert(event, false)?;
        for prev in &event.prev {
            db.execute(DOING, INSERT_EDGE, params![id, prev.as_str()])?;
        }
        self.insert_auth(event)?;
        let replaced = self.group(room_head, event)?;
        move_room_head(db, room_head, event, stream)?;
        db.execute(DOING, INSERT_DEPTH, params![room, event.depth])?;
        if room_head.has_chains {
            room_head.chains.place(db, &mut self.numbers, event)?;
        }
        current::insert_membership(db, event, stream)?;
        current::change(
            db,
            &self.numbers,
            room_head,
            event,
            stream,
            replaced.as_ref(),
        )?;
        self.make_known(room_head, event, stream)
    }

    /// Stores a membership outside the timeline: the answer to an invitation into a room that this server is not in.
    pub fn append_outside(&mut self, event: &Event) -> Result<(), Error> {
        let stream = self.insert(event, true)?;
        let db = self.db;
        for prev in &event.prev {
            let (id, prev) = (event.id.as_str(), prev.as_str());
            db.execute(DOING, INSERT_EDGE, params![id, prev])?;
        }
        self.insert_auth(event)?;
        current::insert_membership(db, event, stream)?;
        current::set_local_membership(db, &self.numbers, event, stream, None)
    }

    /// `events`, `event_json`, `state_events`.
    fn insert(&mut self, event: &Event, outlier: bool) -> Result<i64, Error> {
        let db = self.db;
        let stream = self.numbers.next_stream(db)?;
        let (id, room) = (event.id.as_str(), event.room.as_str());
        let has_url = event.content.get("url").is_some_and(Value::is_string);
        db.execute(
            DOING,
            INSERT_EVENT,
            params![
                stream,
                event.depth,
                id,
                event.kind,
                room,
                outlier,
                event.at.0,
                self.received.0,
                event.sender.as_str(),
                has_url,
                self.numbers.writer(),
                event.state_key
            ],
        )?;
        let metadata = match outlier {
            true => json!({"out_of_band_membership": true, "outlier": true}),
            false => json!({}),
        };
        let metadata = metadata.to_string();
        db.execute(
            DOING,
            INSERT_JSON,
            params![id, room, metadata, event.json, event.format],
        )?;
        if let Some(key) = &event.state_key {
            db.execute(DOING, INSERT_STATE, params![id, room, event.kind, key])?;
        }
        Ok(stream)
    }

    /// `event_auth`, of state events only.
    fn insert_auth(&self, event: &Event) -> Result<(), Error> {
        if event.state_key.is_some() {
            let (id, room) = (event.id.as_str(), event.room.as_str());
            for auth in &event.auth {
                self.db
                    .execute(DOING, INSERT_AUTH, params![id, auth.as_str(), room])?;
            }
        }
        Ok(())
    }

    /// The state after the event, and its group; answers the state event that it replaces.
    fn group(&mut self, room_head: &mut RoomHead, event: &Event) -> Result<Option<EventId>, Error> {
        let (db, numbers) = (self.db, &mut self.numbers);
        let mut replaced = None;
        if let Some(key) = &event.state_key {
            if event.kind == CREATE {
                room_head.group = Some(groups::empty(db, numbers, &room_head.room, &event.id)?);
            }
            let state_of = (event.kind.clone(), key.clone());
            replaced = room_head.state.insert(state_of, event.id.clone());
            let entry = (event.kind.as_str(), key.as_str(), &event.id);
            let group = groups::after(
                db,
                numbers,
                &room_head.room,
                room_head.group,
                &room_head.state,
                entry,
            )?;
            room_head.group = Some(group);
        }
        let group = match room_head.group {
            Some(group) => group,
            // The first event on top of several: their resolved state has no group of its own yet.
            None => groups::whole(db, numbers, &room_head.room, &room_head.state, &event.id)?,
        };
        room_head.group = Some(group);
        let id = event.id.as_str();
        db.execute(DOING, INSERT_GROUP_OF, params![id, group.id])?;
        Ok(replaced)
    }

    /// The full-text index, and who takes part.
    fn make_known(&self, room_head: &RoomHead, event: &Event, stream: i64) -> Result<(), Error> {
        let db = self.db;
        for (kind, member, key) in SEARCHED {
            if event.kind == *kind
                && let Some(words) = event.text(member)
                && db.catalog().has("event_search")
            {
                let (id, room) = (event.id.as_str(), event.room.as_str());
                match db.engine() {
                    Engine::Sqlite => {
                        db.execute(DOING, INSERT_WORDS, params![id, room, *key, words])?
                    }
                    Engine::Postgres => db.execute(
                        DOING,
                        INSERT_WORDS_INTO_POSTGRES,
                        params![id, room, *key, words, stream, event.at.0],
                    )?,
                };
            }
        }
        if event.kind == "m.room.message"
            && let Some(member) = room_head.state(MEMBER, event.sender.as_str())
            && db.catalog().has_column("room_memberships", "participant")
        {
            db.execute(DOING, TAKE_PART, params![member.as_str()])?;
        }
        Ok(())
    }
}

/// The forward extremities after an event.
fn move_room_head(
    db: &Tx<'_>,
    room_head: &mut RoomHead,
    event: &Event,
    stream: i64,
) -> Result<(), Error> {
    let (id, room) = (event.id.as_str(), event.room.as_str());
    for prev in &event.prev {
        db.execute(DOING, DELETE_EXTREMITY, params![prev.as_str(), room])?;
    }
    db.execute(DOING, INSERT_EXTREMITY, params![id, room])?;
    room_head
        .extremities
        .retain(|e| !event.prev.contains(&e.id));
    let extremity = room_head::Extremity {
        id: event.id.clone(),
        depth: event.depth,
    };
    room_head.extremities.insert(0, extremity);
    let ends = room_head
        .extremities
        .iter()
        .map(|e| &e.id)
        .chain(&room_head.aside);
    for end in ends {
        db.execute(
            DOING,
            INSERT_EXTREMITY_AT,
            params![stream, room, end.as_str()],
        )?;
    }
    room_head.know(event.reference());
    Ok(())
}
