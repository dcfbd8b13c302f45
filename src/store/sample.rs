//! A small made-up homeserver, for the demo: two rooms, a few people, some weeks of talk. Its event ids are no hashes, so
//! no homeserver would start on it.

use super::db::{Db, params};
use crate::error::Error;
use crate::ids::{EventId, RoomId, UserId};
use crate::time::Millis;

/// A user of the sample; `local` on this server, or from elsewhere.
fn user(name: &str, server: &str) -> UserId {
    UserId::new(format!("@{name}:{server}"))
}

/// Fills an empty database: one room after the other, `messages` in each, one an hour, the newest now. Answers the rooms.
pub fn fill(db: &mut Db, server: &str, messages: i64, now: Millis) -> Result<Vec<RoomId>, Error> {
    let names = ["garden", "workshop"];
    db.write("make the sample", |db| {
        let mut stream = 1;
        let mut rooms = Vec::new();
        for name in names {
            let room = RoomId::new(format!("!{name}:{server}"));
            fill_room(db, &room, server, messages, now, &mut stream)?;
            rooms.push(room);
        }
        Ok(rooms)
    })
}

const INDEX_TEXT: &str = "
    INSERT INTO event_search (event_id, room_id, sender, key, value) VALUES ($1, $2, $3, 'content.body', $4)";

const INDEX_TEXT_ON_POSTGRES: &str = "-- PostgreSQL
    INSERT INTO event_search (event_id, room_id, sender, key, vector)
    VALUES ($1, $2, $3, 'content.body', to_tsvector('english', $4))";

/// The room while it is being written.
struct Writer<'a> {
    db: &'a Db,
    room: &'a RoomId,
    server: &'a str,
    depth: i64,
    group: i64,
    last: Option<EventId>,
}

fn fill_room(
    db: &Db,
    room: &RoomId,
    server: &str,
    messages: i64,
    now: Millis,
    stream: &mut i64,
) -> Result<(), Error> {
    let doing = "make the sample";
    let (alice, bob) = (user("alice", server), user("bob", "elsewhere.example"));
    db.execute(
        doing,
        "INSERT INTO rooms (room_id, is_public, creator, room_version) VALUES ($1, TRUE, $2, '11')",
        params![room.as_str(), alice.as_str()],
    )?;
    let mut writer = Writer {
        db,
        room,
        server,
        depth: 0,
        group: *stream * 1_000,
        last: None,
    };
    let start = now - Millis(messages * 3_600_000);
    let state = [
        (
            "m.room.create",
            String::new(),
            &alice,
            r#"{"room_version":"11"}"#,
        ),
        (
            "m.room.member",
            alice.as_str().to_owned(),
            &alice,
            r#"{"membership":"join"}"#,
        ),
        (
            "m.room.join_rules",
            String::new(),
            &alice,
            r#"{"join_rule":"public"}"#,
        ),
        (
            "m.room.member",
            bob.as_str().to_owned(),
            &bob,
            r#"{"membership":"join"}"#,
        ),
        (
            "m.room.topic",
            String::new(),
            &bob,
            r#"{"topic":"what grows, and what does not"}"#,
        ),
    ];
    for (kind, key, sender, content) in state {
        writer.event(stream, kind, Some(&key), sender, content, start)?;
    }
    for n in 0..messages {
        let sender = if n % 3 == 0 { &bob } else { &alice };
        let content = format!(r#"{{"msgtype":"m.text","body":"message number {n}"}}"#);
        writer.event(
            stream,
            "m.room.message",
            None,
            sender,
            &content,
            start + Millis(n * 3_600_000),
        )?;
    }
    writer.finish()
}

impl Writer<'_> {
    fn event(
        &mut self,
        stream: &mut i64,
        kind: &str,
        state_key: Option<&str>,
        sender: &UserId,
        content: &str,
        ts: Millis,
    ) -> Result<(), Error> {
        let doing = "make the sample";
        let (db, room) = (self.db, self.room.as_str());
        *stream += 1;
        self.depth += 1;
        let (at, depth) = (*stream, self.depth);
        let event = EventId::new(format!("${at}-of-the-sample"));
        db.execute(
            doing,
            "INSERT INTO events (stream_ordering, topological_ordering, event_id, type, room_id, processed, outlier,
                                 depth, origin_server_ts, received_ts, sender, contains_url, instance_name, state_key)
             VALUES ($1, $2, $3, $4, $5, TRUE, FALSE, $2, $6, $6, $7, FALSE, 'master', $8)",
            params![at, depth, event.as_str(), kind, room, ts.0, sender.as_str(), state_key],
        )?;
        let json = format!(
            r#"{{"type":"{kind}","room_id":"{room}","sender":"{sender}","depth":{depth},"origin_server_ts":{},"content":{content}}}"#,
            ts.0
        );
        db.execute(
            doing,
            "INSERT INTO event_json (event_id, room_id, internal_metadata, json, format_version)
             VALUES ($1, $2, '{}', $3, 3)",
            params![event.as_str(), room, json],
        )?;
        if let Some(last) = &self.last {
            let edge = "INSERT INTO event_edges (event_id, prev_event_id, is_state) VALUES ($1, $2, FALSE)";
            db.execute(doing, edge, params![event.as_str(), last.as_str()])?;
        }
        if let Some(key) = state_key {
            self.state(at, &event, kind, key, sender)?;
        } else {
            db.execute(
                doing,
                db.text(INDEX_TEXT, INDEX_TEXT_ON_POSTGRES),
                params![event.as_str(), room, sender.as_str(), content],
            )?;
        }
        let group = "INSERT INTO event_to_state_groups (event_id, state_group) VALUES ($1, $2)";
        db.execute(doing, group, params![event.as_str(), self.group])?;
        self.last = Some(event);
        Ok(())
    }

    /// A state event makes a state group of its own, a delta on the one before.
    fn state(
        &mut self,
        at: i64,
        event: &EventId,
        kind: &str,
        key: &str,
        sender: &UserId,
    ) -> Result<(), Error> {
        let doing = "make the sample";
        let (db, room) = (self.db, self.room.as_str());
        let before = self.group;
        self.group += 1;
        db.execute(
            doing,
            "INSERT INTO state_groups (id, room_id, event_id) VALUES ($1, $2, $3)",
            params![self.group, room, event.as_str()],
        )?;
        db.execute(
            doing,
            "INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id)
             VALUES ($1, $2, $3, $4, $5)",
            params![self.group, room, kind, key, event.as_str()],
        )?;
        if self.depth > 1 {
            let edge =
                "INSERT INTO state_group_edges (state_group, prev_state_group) VALUES ($1, $2)";
            db.execute(doing, edge, params![self.group, before])?;
        }
        db.execute(
            doing,
            "INSERT INTO state_events (event_id, room_id, type, state_key) VALUES ($1, $2, $3, $4)",
            params![event.as_str(), room, kind, key],
        )?;
        let membership = (kind == "m.room.member").then_some("join");
        db.execute(
            doing,
            "INSERT INTO current_state_events (event_id, room_id, type, state_key, membership, event_stream_ordering)
             VALUES ($1, $2, $3, $4, $5, $6)",
            params![event.as_str(), room, kind, key, membership, at],
        )?;
        if membership.is_some() {
            db.execute(
                doing,
                "INSERT INTO room_memberships (event_id, user_id, sender, room_id, membership, event_stream_ordering)
                 VALUES ($1, $2, $2, $3, 'join', $4)",
                params![event.as_str(), sender.as_str(), room, at],
            )?;
        }
        if membership.is_some() && sender.is_local(self.server) {
            db.execute(
                doing,
                "INSERT INTO local_current_membership (room_id, user_id, event_id, membership, event_stream_ordering)
                 VALUES ($1, $2, $3, 'join', $4)",
                params![room, sender.as_str(), event.as_str(), at],
            )?;
        }
        Ok(())
    }

    fn finish(self) -> Result<(), Error> {
        let doing = "make the sample";
        let last = self.last.as_ref().map_or("", EventId::as_str);
        let newest = "INSERT INTO event_forward_extremities (event_id, room_id) VALUES ($1, $2)";
        self.db
            .execute(doing, newest, params![last, self.room.as_str()])?;
        let depth = "INSERT INTO room_depth (room_id, min_depth) VALUES ($1, 1)";
        self.db.execute(doing, depth, params![self.room.as_str()])?;
        Ok(())
    }
}

/// Events of the timeline, by room.
pub fn events_by_room(db: &Db) -> Result<Vec<(String, i64)>, Error> {
    const COUNTS: &str =
        "SELECT room_id, count(*) FROM events WHERE NOT outlier GROUP BY room_id ORDER BY room_id";
    db.rows("count the sample's events", COUNTS, &[], |r| {
        Ok((r.get(0)?, r.get(1)?))
    })
}
