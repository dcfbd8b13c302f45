//! A homeserver's database before it is written: events as one would tell them, everything that follows from them
//! computed. Random rooms and the hand-made rooms of single tests are both drafts.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::Connection;

use super::groups::Groups;
use super::ids::word_of;
use super::tables::{Row, Value, insert, row};

/// How an event refers to another.
#[derive(Clone, Debug)]
pub struct Relation {
    pub to: String,
    pub kind: &'static str,
    pub key: Option<&'static str>,
}

/// One event, as the server holds it.
#[derive(Clone, Debug)]
pub struct Event {
    pub id: String,
    pub room: String,
    pub kind: String,
    pub state_key: Option<String>,
    /// Old rows have none.
    pub sender: Option<String>,
    pub depth: i64,
    pub stream: i64,
    pub prevs: Vec<String>,
    pub outlier: bool,
    pub rejected: bool,
    pub soft_failed: bool,
    pub redacts: Option<String>,
    pub relates: Option<Relation>,
    pub body: String,
    pub membership: Option<&'static str>,
    pub received_ts: Option<i64>,
}

/// When the first event of a sample was received: the number is of no account.
pub const FIRST_TS: i64 = 1_600_000_000_000;

impl Event {
    /// A message; everything else is said by the methods below.
    pub fn message(id: &str, room: &str, sender: &str, depth: i64, stream: i64) -> Self {
        Self {
            id: id.to_owned(),
            room: room.to_owned(),
            kind: "m.room.message".into(),
            state_key: None,
            sender: Some(sender.to_owned()),
            depth,
            stream,
            prevs: Vec::new(),
            outlier: false,
            rejected: false,
            soft_failed: false,
            redacts: None,
            relates: None,
            body: format!("they say {}", word_of(id)),
            membership: None,
            received_ts: Some(FIRST_TS + stream * 1_000),
        }
    }

    /// Follows these events.
    pub fn after(mut self, prevs: &[&str]) -> Self {
        self.prevs = prevs.iter().map(|&p| p.to_owned()).collect();
        self
    }

    /// Is state of this type and key.
    pub fn state(mut self, kind: &str, key: &str) -> Self {
        self.kind = kind.to_owned();
        self.state_key = Some(key.to_owned());
        self
    }

    /// Is the membership of a user.
    pub fn member(self, user: &str, membership: &'static str) -> Self {
        let mut event = self.state("m.room.member", user);
        event.membership = Some(membership);
        event
    }

    /// Redacts another event.
    pub fn redacting(mut self, target: &str) -> Self {
        self.kind = "m.room.redaction".into();
        self.redacts = Some(target.to_owned());
        self
    }

    /// Refers to another event.
    pub fn relating(mut self, to: &str, kind: &'static str) -> Self {
        self.relates = Some(Relation {
            to: to.to_owned(),
            kind,
            key: None,
        });
        self
    }

    /// Is held without being part of the timeline.
    pub fn outside(mut self) -> Self {
        self.outlier = true;
        self
    }

    /// Whether it is in the timeline and was accepted.
    pub fn is_sound(&self) -> bool {
        !self.outlier && !self.rejected
    }
}

/// Types by which a room rises in the list of rooms.
pub const BUMPING: &[&str] = &[
    "m.room.create",
    "m.room.message",
    "m.room.encrypted",
    "m.sticker",
    "m.call.invite",
    "m.poll.start",
    "m.beacon_info",
];

/// A database to be.
pub struct Draft {
    pub server_name: String,
    pub events: Vec<Event>,
    pub groups: Groups,
    /// Rows that do not follow from the events.
    pub extra: Vec<(&'static str, Row)>,
    /// Whether `events.state_key` is filled, as newer rows have it.
    pub fills_state_key: bool,
    /// Up to where unread counts have been rotated into the summary.
    pub rotated_to: i64,
}

impl Draft {
    /// Nothing yet.
    pub fn new(server_name: &str, seed: u64) -> Self {
        Self {
            server_name: server_name.to_owned(),
            events: Vec::new(),
            groups: Groups::new(seed),
            extra: Vec::new(),
            fills_state_key: true,
            rotated_to: 0,
        }
    }

    /// Adds an event.
    pub fn add(&mut self, event: Event) -> &mut Self {
        self.events.push(event);
        self
    }

    /// Adds a room as a homeserver makes it, by `creator` at depths 1 and 2, stream orderings from `stream` on.
    /// The ids are `$<tag>-create` and `$<tag>-join`.
    pub fn open_room(&mut self, room: &str, tag: &str, creator: &str, stream: i64) -> &mut Self {
        let (create, join) = (format!("${tag}-create"), format!("${tag}-join"));
        self.add(Event::message(&create, room, creator, 1, stream).state("m.room.create", ""));
        let joins = Event::message(&join, room, creator, 2, stream + 1).member(creator, "join");
        self.add(joins.after(&[&create]))
    }

    /// Adds a row that does not follow from the events.
    pub fn row(&mut self, table: &'static str, row: Row) -> &mut Self {
        self.extra.push((table, row));
        self
    }

    /// The rooms, each once.
    pub fn rooms(&self) -> BTreeSet<&str> {
        self.events.iter().map(|e| e.room.as_str()).collect()
    }

    /// The events of a room.
    pub fn of_room<'a>(&'a self, room: &str) -> impl Iterator<Item = &'a Event> + use<'a> {
        let room = room.to_owned();
        self.events.iter().filter(move |e| e.room == room)
    }

    /// The event of this id, if it is held.
    pub fn event(&self, id: &str) -> Option<&Event> {
        self.events.iter().find(|e| e.id == id)
    }

    /// Whether the user is of this server.
    pub fn is_local(&self, user: &str) -> bool {
        user.split_once(':')
            .is_some_and(|(_, domain)| domain == self.server_name)
    }

    /// Gives every event of the timeline its state group. Must come before [`Draft::write`]; groups can be added
    /// in between.
    pub fn settle(&mut self) -> &mut Self {
        let rooms: Vec<String> = self.rooms().into_iter().map(str::to_owned).collect();
        for room in rooms {
            let events: Vec<&Event> = self.events.iter().filter(|e| e.room == room).collect();
            self.groups.settle(&room, &events);
        }
        self
    }

    /// Events of the timeline that nothing sound follows.
    pub fn forward_extremities<'a>(&'a self, room: &str) -> Vec<&'a Event> {
        let sound = |e: &&Event| e.is_sound() && !e.soft_failed;
        let followed: BTreeSet<&String> = self
            .of_room(room)
            .filter(sound)
            .flat_map(|e| &e.prevs)
            .collect();
        self.of_room(room)
            .filter(sound)
            .filter(|e| !followed.contains(&e.id))
            .collect()
    }

    /// Ids that events of the timeline follow and that are not in it.
    pub fn backward_extremities<'a>(&'a self, room: &str) -> BTreeSet<&'a String> {
        let held: BTreeSet<&String> = self
            .of_room(room)
            .filter(|e| !e.outlier)
            .map(|e| &e.id)
            .collect();
        let sound = self.of_room(room).filter(|e| e.is_sound());
        sound
            .flat_map(|e| &e.prevs)
            .filter(|p| !held.contains(p))
            .collect()
    }

    /// Writes everything into an empty database.
    pub fn write(&self, conn: &Connection) {
        conn.execute_batch("PRAGMA foreign_keys = ON; BEGIN")
            .expect("begins");
        for room in self.rooms() {
            insert(
                conn,
                "rooms",
                &row([
                    ("room_id", room.into()),
                    ("is_public", false.into()),
                    ("room_version", "10".into()),
                ]),
            );
        }
        self.write_events(conn);
        self.groups.write(conn);
        for room in self.rooms() {
            self.write_extremities(conn, room);
            self.write_current_state(conn, room);
        }
        for (table, row) in &self.extra {
            insert(conn, table, row);
        }
        conn.execute(
            "UPDATE event_push_summary_stream_ordering SET stream_ordering = ?",
            [self.rotated_to],
        )
        .expect("one row");
        conn.execute_batch("COMMIT").expect("commits");
    }

    fn write_events(&self, conn: &Connection) {
        for event in &self.events {
            let (id, room) = (Value::from(&event.id), Value::from(&event.room));
            let state_key = event.state_key.clone().filter(|_| self.fills_state_key);
            insert(
                conn,
                "events",
                &row([
                    ("stream_ordering", event.stream.into()),
                    ("topological_ordering", event.depth.into()),
                    ("depth", event.depth.into()),
                    ("event_id", id.clone()),
                    ("type", (&event.kind).into()),
                    ("room_id", room.clone()),
                    ("processed", true.into()),
                    ("outlier", event.outlier.into()),
                    ("origin_server_ts", (FIRST_TS + event.stream * 1_000).into()),
                    ("received_ts", event.received_ts.into()),
                    ("sender", event.sender.as_ref().into()),
                    ("instance_name", "master".into()),
                    ("state_key", state_key.into()),
                    (
                        "rejection_reason",
                        event.rejected.then_some("auth_error").into(),
                    ),
                ]),
            );
            let metadata = if event.soft_failed {
                r#"{"soft_failed": true}"#
            } else {
                "{}"
            };
            let json = format!(
                r#"{{"type": "{}", "content": {{"body": "{}"}}}}"#,
                event.kind, event.body
            );
            insert(
                conn,
                "event_json",
                &row([
                    ("event_id", id.clone()),
                    ("room_id", room.clone()),
                    ("internal_metadata", metadata.into()),
                    ("json", json.into()),
                    ("format_version", 3.into()),
                ]),
            );
            self.write_what_belongs_to(conn, event, &id, &room);
        }
    }

    fn write_what_belongs_to(&self, conn: &Connection, event: &Event, id: &Value, room: &Value) {
        if event.rejected {
            insert(
                conn,
                "rejections",
                &row([
                    ("event_id", id.clone()),
                    ("reason", "auth_error".into()),
                    ("last_check", "0".into()),
                ]),
            );
        }
        if let Some(key) = &event.state_key {
            insert(
                conn,
                "state_events",
                &row([
                    ("event_id", id.clone()),
                    ("room_id", room.clone()),
                    ("type", (&event.kind).into()),
                    ("state_key", key.into()),
                ]),
            );
        }
        if let Some(target) = &event.redacts {
            insert(
                conn,
                "redactions",
                &row([
                    ("event_id", id.clone()),
                    ("redacts", target.into()),
                    ("have_censored", (event.stream % 2 == 0).into()),
                    ("received_ts", event.received_ts.into()),
                ]),
            );
        }
        if event.rejected {
            return;
        }
        for prev in &event.prevs {
            insert(
                conn,
                "event_edges",
                &row([("event_id", id.clone()), ("prev_event_id", prev.into())]),
            );
        }
        if let Some(relation) = &event.relates {
            insert(
                conn,
                "event_relations",
                &row([
                    ("event_id", id.clone()),
                    ("relates_to_id", (&relation.to).into()),
                    ("relation_type", relation.kind.into()),
                    ("aggregation_key", relation.key.into()),
                ]),
            );
        }
        if let (Some(user), Some(membership)) = (&event.state_key, event.membership) {
            insert(
                conn,
                "room_memberships",
                &row([
                    ("event_id", id.clone()),
                    ("user_id", user.into()),
                    (
                        "sender",
                        event.sender.as_deref().unwrap_or("@unknown:nowhere").into(),
                    ),
                    ("room_id", room.clone()),
                    ("membership", membership.into()),
                    ("event_stream_ordering", event.stream.into()),
                ]),
            );
        }
    }

    fn write_extremities(&self, conn: &Connection, room: &str) {
        for event in self.forward_extremities(room) {
            let cells = row([("event_id", (&event.id).into()), ("room_id", room.into())]);
            insert(conn, "event_forward_extremities", &cells);
        }
        for id in self.backward_extremities(room) {
            let cells = row([("event_id", id.into()), ("room_id", room.into())]);
            insert(conn, "event_backward_extremities", &cells);
        }
        let least = self
            .of_room(room)
            .filter(|e| !e.outlier)
            .map(|e| e.depth)
            .min();
        insert(
            conn,
            "room_depth",
            &row([
                ("room_id", room.into()),
                ("min_depth", least.unwrap_or(0).into()),
            ]),
        );
    }

    /// The state after the forward extremities: the deepest has the last word.
    pub fn current_state(&self, room: &str) -> BTreeMap<(String, String), &Event> {
        let mut last = self.forward_extremities(room);
        last.sort_by_key(|e| (e.depth, e.stream));
        let states = last
            .iter()
            .filter_map(|e| self.groups.state_of_event(&e.id));
        states
            .flatten()
            .filter_map(|(key, id)| Some((key, self.event(&id)?)))
            .collect()
    }

    fn write_current_state(&self, conn: &Connection, room: &str) {
        for ((kind, key), event) in self.current_state(room) {
            let (id, stream) = (Value::from(&event.id), Value::from(event.stream));
            insert(
                conn,
                "current_state_events",
                &row([
                    ("event_id", id.clone()),
                    ("room_id", room.into()),
                    ("type", (&kind).into()),
                    ("state_key", (&key).into()),
                    ("membership", event.membership.into()),
                    ("event_stream_ordering", stream.clone()),
                ]),
            );
            if kind == "m.room.member" && self.is_local(&key) {
                let membership = Value::from(event.membership.unwrap_or("leave"));
                insert(
                    conn,
                    "local_current_membership",
                    &row([
                        ("room_id", room.into()),
                        ("user_id", (&key).into()),
                        ("event_id", id.clone()),
                        ("membership", membership.clone()),
                        ("event_stream_ordering", stream.clone()),
                    ]),
                );
                insert(
                    conn,
                    "sliding_sync_membership_snapshots",
                    &row([
                        ("room_id", room.into()),
                        ("user_id", (&key).into()),
                        ("sender", event.sender.as_deref().unwrap_or("").into()),
                        ("membership_event_id", id),
                        ("membership", membership),
                        ("event_stream_ordering", stream),
                        ("event_instance_name", "master".into()),
                    ]),
                );
            }
        }
        let timeline = || self.of_room(room).filter(|e| !e.outlier);
        let bump = timeline()
            .filter(|e| BUMPING.contains(&e.kind.as_str()))
            .map(|e| e.stream)
            .max();
        if let Some(newest) = timeline().map(|e| e.stream).max() {
            insert(
                conn,
                "sliding_sync_joined_rooms",
                &row([
                    ("room_id", room.into()),
                    ("event_stream_ordering", newest.into()),
                    ("bump_stamp", bump.into()),
                ]),
            );
        }
    }
}
