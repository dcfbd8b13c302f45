//! Servers whose rooms differ in everything that can be asked after, and what the tables say of each room, found the slow
//! way.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use roomkeeper::Millis;
use roomkeeper::rooms::Condition;
use rusqlite::{Connection, params};

use crate::support::rooms::Recipe;
use crate::support::tables::{Row, Tables};
use crate::support::work::Site;

/// A server with rooms of every sort.
pub fn server(seed: u64) -> Site {
    let recipe = Recipe {
        rooms: 6..12,
        events: 6..24,
        may_be_long: false,
    };
    Site::adjusted(seed, &recipe, |conn| vary(conn, seed))
}

fn vary(conn: &Connection, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed ^ 0xd1ff);
    let rooms: Vec<String> = conn
        .prepare("SELECT room_id FROM rooms ORDER BY room_id")
        .and_then(|mut s| s.query_map([], |r| r.get(0))?.collect())
        .expect("rooms");
    for room in &rooms {
        let run = |sql: &str| {
            conn.execute(sql, [room])
                .unwrap_or_else(|e| panic!("{sql}: {e}"))
        };
        conn.execute(
            "UPDATE rooms SET is_public = ?2, room_version = ?3 WHERE room_id = ?1",
            params![
                room,
                [None, Some(false), Some(true)].choose(&mut rng),
                [None, Some("6"), Some("10"), Some("11")]
                    .choose(&mut rng)
                    .expect("one"),
            ],
        )
        .expect("set");
        match rng.random_range(0..6) {
            // Everybody of this server has left: no current state is known any more.
            0 | 1 => {
                run("UPDATE local_current_membership SET membership = 'leave' WHERE room_id = ?1");
                run("DELETE FROM current_state_events WHERE room_id = ?1");
                run("DELETE FROM sliding_sync_joined_rooms WHERE room_id = ?1");
                if rng.random() {
                    run("UPDATE room_memberships SET forgotten = 1 WHERE room_id = ?1");
                }
            }
            // One of them has.
            2 => {
                run("UPDATE local_current_membership SET membership = 'leave'
                      WHERE rowid = (SELECT min(rowid) FROM local_current_membership WHERE room_id = ?1)");
            }
            3 => {
                run("UPDATE local_current_membership SET membership = 'invite' WHERE room_id = ?1");
            }
            // Nobody of this server was ever there.
            4 => {
                run("DELETE FROM local_current_membership WHERE room_id = ?1");
            }
            _ => {}
        }
        if rng.random_ratio(1, 4) {
            // State stays in the timeline, or nothing does.
            run("UPDATE events SET outlier = TRUE WHERE room_id = ?1
                    AND event_id NOT IN (SELECT event_id FROM state_events)");
        }
        if rng.random() {
            let name = ["Old Garden", "ops", "old ÄRGER", "garden"]
                .choose(&mut rng)
                .expect("one");
            conn.execute(
                "INSERT OR REPLACE INTO room_stats_state (room_id, name, encryption, room_type) VALUES (?1, ?2, ?3, ?4)",
                params![
                    room,
                    name,
                    rng.random::<bool>().then_some("m.megolm.v1.aes-sha2"),
                    rng.random_ratio(1, 3).then_some("m.space")
                ],
            )
            .expect("noted");
        }
        // It stands in a space, in a space of that, or was taken out again.
        let parent = &rooms[rng.random_range(0..rooms.len())];
        let event = format!("$child-of-{parent}-{room}");
        let via = [r#"["x"]"#, "[]"][rng.random_range(0..2)];
        conn.execute(
            "INSERT INTO event_json (event_id, room_id, internal_metadata, json, format_version)
             VALUES (?1, ?2, '{}', ?3, 3)",
            params![
                event,
                parent,
                format!(r#"{{"type": "m.space.child", "content": {{"via": {via}}}}}"#)
            ],
        )
        .expect("told");
        conn.execute(
            "INSERT INTO current_state_events (event_id, room_id, type, state_key) VALUES (?1, ?2, 'm.space.child', ?3)",
            params![event, parent, room],
        )
        .expect("stands");
    }
    conn.execute(
        "INSERT INTO room_aliases (room_alias, room_id, creator) VALUES ('#first:x', ?1, '@a:x')",
        [&rooms[0]],
    )
    .expect("named");
}

/// What the tables say of a room.
pub struct Model<'a> {
    tables: &'a Tables,
    server: &'a str,
    pub room: &'a str,
}

/// Rooms of which anything is in the tables that are asked.
pub fn rooms(tables: &Tables) -> Vec<String> {
    let mut rooms: Vec<String> = Vec::new();
    for table in [
        "rooms",
        "events",
        "state_groups",
        "current_state_events",
        "local_current_membership",
        "room_stats_state",
        "room_aliases",
    ] {
        rooms.extend(
            tables
                .rows(table)
                .iter()
                .map(|r| r.word("room_id").to_owned()),
        );
    }
    rooms.sort();
    rooms.dedup();
    rooms
}

impl<'a> Model<'a> {
    pub fn new(tables: &'a Tables, server: &'a str, room: &'a str) -> Self {
        Self {
            tables,
            server,
            room,
        }
    }

    fn of(&self, table: &str) -> impl Iterator<Item = &'a Row> + use<'a> {
        let room = self.room;
        self.tables
            .rows(table)
            .iter()
            .filter(move |r| r.text("room_id") == Some(room))
    }

    pub fn count(&self, table: &str) -> i64 {
        i64::try_from(self.of(table).count()).expect("few")
    }

    /// Rows of the states of the room's groups, whatever room they say.
    pub fn state_rows(&self) -> i64 {
        let groups: Vec<i64> = self.of("state_groups").map(|g| g.number("id")).collect();
        let rows = self.tables.rows("state_groups_state").iter();
        let rows = rows.filter(|r| groups.contains(&r.number("state_group")));
        i64::try_from(rows.count()).expect("few")
    }

    fn is_state(&self, event: &Row) -> bool {
        let id = event.word("event_id");
        self.of("state_events").any(|s| s.word("event_id") == id)
    }

    /// Events of the timeline, with when they came.
    fn timeline(&self) -> Vec<(&'a Row, Option<i64>)> {
        let rejected = self.tables.rows("rejections");
        let is_rejected = |id: &str| rejected.iter().any(|r| r.word("event_id") == id);
        let events = self
            .of("events")
            .filter(|e| !e.is("outlier") && !is_rejected(e.word("event_id")));
        let came = |e: &Row| {
            let (received, sent) = (e.int("received_ts"), e.int("origin_server_ts"));
            match (received, sent) {
                (Some(received), Some(sent)) if e.number("stream_ordering") < 0 => {
                    Some(received.min(sent))
                }
                (received, sent) => received.or(sent),
            }
        };
        events.map(|e| (e, came(e))).collect()
    }

    /// The oldest message and the newest.
    pub fn messages(&self) -> (Option<i64>, Option<i64>) {
        let mut messages = self.timeline();
        messages.retain(|(e, _)| !self.is_state(e) && e.text("state_key").is_none());
        let oldest = messages.iter().min_by_key(|(e, _)| {
            (
                e.number("topological_ordering"),
                e.number("stream_ordering"),
            )
        });
        let newest = messages
            .iter()
            .max_by_key(|(e, _)| e.number("stream_ordering"));
        (
            oldest.and_then(|(_, at)| *at),
            newest.and_then(|(_, at)| *at),
        )
    }

    pub fn last_activity(&self) -> Option<i64> {
        let mut events = self.timeline();
        events.retain(|(e, _)| e.word("type") != "m.room.member");
        let newest = events
            .iter()
            .max_by_key(|(e, _)| e.number("stream_ordering"));
        newest.and_then(|(_, at)| *at)
    }

    fn is_local(&self, user: &str) -> bool {
        user.split_once(':')
            .is_some_and(|(_, domain)| domain == self.server)
    }

    /// Users of this server by what they are, of the two tables that say so.
    pub fn here(&self) -> i64 {
        let local = self
            .of("local_current_membership")
            .filter(|m| m.word("membership") == "join")
            .count();
        let state = self
            .joined()
            .into_iter()
            .filter(|user| self.is_local(user))
            .count();
        i64::try_from(local.max(state)).expect("few")
    }

    pub fn joined(&self) -> Vec<String> {
        let members = self.of("current_state_events");
        members
            .filter(|c| c.word("type") == "m.room.member" && c.text("membership") == Some("join"))
            .map(|c| c.word("state_key").to_owned())
            .collect()
    }

    fn is_left(&self) -> bool {
        let local: Vec<&str> = self
            .of("local_current_membership")
            .map(|m| m.word("membership"))
            .collect();
        self.here() == 0
            && !local.is_empty()
            && local
                .iter()
                .all(|m| !["join", "invite", "knock"].contains(m))
    }

    fn is_forgotten(&self) -> bool {
        let memberships: BTreeMap<&str, i64> = self
            .of("room_memberships")
            .map(|m| (m.word("event_id"), m.int("forgotten").unwrap_or(0)))
            .collect();
        self.is_left()
            && self
                .of("local_current_membership")
                .all(|m| memberships.get(m.word("event_id")) == Some(&1))
    }

    fn noted(&self) -> Option<&'a Row> {
        self.of("room_stats_state").next()
    }

    /// Rooms of a space, and of the spaces in it.
    fn is_in_space(&self, space: &str) -> bool {
        let child_of = |parent: &str| -> Vec<String> {
            let state = self.tables.rows("current_state_events").iter();
            let children =
                state.filter(|c| c.word("room_id") == parent && c.word("type") == "m.space.child");
            children
                .filter(|c| {
                    let json = self.tables.rows("event_json").iter();
                    json.filter(|j| j.get("event_id") == c.get("event_id"))
                        .any(|j| j.word("json").contains(r#""via": ["x"]"#))
                })
                .map(|c| c.word("state_key").to_owned())
                .collect()
        };
        let mut found: Vec<String> = child_of(space);
        let mut at = 0;
        while at < found.len() {
            for child in child_of(&found[at].clone()) {
                if !found.contains(&child) {
                    found.push(child);
                }
            }
            at += 1;
        }
        self.room != space && found.iter().any(|room| room == self.room)
    }

    /// Whether a condition holds; nothing where nobody can tell. Not for those that need the time or bytes.
    pub fn holds(&self, condition: &Condition, now: Millis) -> Option<bool> {
        let has_state = self.of("current_state_events").next().is_some();
        let older = |at: Option<i64>, age: &Millis| at.map(|at| Millis(at) < now - *age);
        match condition {
            Condition::Room(room) if room == "#first:x" => {
                Some(self.of("room_aliases").next().is_some())
            }
            Condition::Room(room) => Some(room == self.room),
            Condition::Empty => Some(self.here() == 0),
            Condition::Left => Some(self.is_left()),
            Condition::Forgotten => Some(self.is_forgotten()),
            Condition::StateOnly => Some(self.messages() == (None, None)),
            Condition::MessagesOlderThan(age) => {
                Some(older(self.messages().0, age).unwrap_or(false))
            }
            Condition::Name(form) => {
                // The forms of these tests are a beginning, in small letters.
                let beginning = form.strip_suffix('*').expect("a beginning");
                let name = self.noted().and_then(|noted| noted.text("name"));
                Some(name.is_some_and(|name| name.to_lowercase().starts_with(beginning)))
            }
            Condition::Version(version) => {
                let of = self.of("rooms").next().and_then(|r| r.text("room_version"));
                of.map(|of| of == version)
            }
            Condition::Encrypted => match self.noted() {
                Some(noted) => Some(noted.text("encryption").is_some()),
                None if has_state => Some(self.of("current_state_events").any(|c| {
                    c.word("type") == "m.room.encryption" && c.word("state_key").is_empty()
                })),
                None => None,
            },
            Condition::Public => Some(self.of("rooms").any(|r| r.is("is_public"))),
            Condition::Local => has_state.then(|| {
                let joined = i64::try_from(self.joined().len()).expect("few");
                let local = self
                    .of("local_current_membership")
                    .filter(|m| m.word("membership") == "join");
                joined.max(i64::try_from(local.count()).expect("few")) <= self.here()
            }),
            Condition::Space(space) => Some(self.is_in_space(space)),
            Condition::LargerThan(_) | Condition::Inactive(_) => unreachable!("asked elsewhere"),
        }
    }
}

/// A condition that some rooms of a sample meet, and some do not.
pub fn any_condition(tables: &Tables, now: Millis, rng: &mut StdRng) -> Condition {
    let all = rooms(tables);
    let room = all[rng.random_range(0..all.len())].clone();
    let times: Vec<i64> = tables
        .rows("events")
        .iter()
        .filter_map(|e| e.int("received_ts"))
        .collect();
    let age = now - Millis(times[rng.random_range(0..times.len())]);
    match rng.random_range(0..12) {
        0 => Condition::Room(room),
        1 => Condition::Room("#first:x".into()),
        2 => Condition::Empty,
        3 => Condition::Left,
        4 => Condition::Forgotten,
        5 => Condition::StateOnly,
        6 => Condition::MessagesOlderThan(age),
        7 => Condition::Name(["old*", "ops*", "*"][rng.random_range(0..3)].into()),
        8 => Condition::Version(["6", "10", "11"][rng.random_range(0..3)].into()),
        9 => Condition::Encrypted,
        10 => [Condition::Public, Condition::Local][rng.random_range(0..2)].clone(),
        _ => Condition::Space(room),
    }
}
