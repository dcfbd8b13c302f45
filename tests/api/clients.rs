//! Clients that admins use: what they ask, recorded, asked again; and what each of these paths says and refuses.

use std::time::{Duration, Instant};

use crate::support::work::Site;
use roomkeeper::Keeper;
use roomkeeper::client::{Client, Reply};
use roomkeeper::config::{Listen, Secret};
use roomkeeper::http::{self, HttpServer};
use roomkeeper::store::schema;
use rusqlite::Connection;
use serde_json::{Value, json};

const STATIC: &str = "static-token-0123456789";
const TALK: &str = "!talk:example.org";

/// What ketesa asks of a server, page by page: rooms, purges, deletions, tasks, statistics, and who is who. A text in angle
/// brackets is a type; `keep` names an answer that later paths have; `until` is asked until it is so.
const KETESA: &str = include_str!("ketesa.jsonl");

struct Daemon {
    server: Option<HttpServer>,
    keeper: Keeper,
    address: String,
    site: Site,
    _directory: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let database = directory.path().join("homeserver.db");
        schema::create(&database).expect("made");
        fill(&Connection::open(&database).expect("opens"));
        let site = Site::of_file(&database, "example.org");
        let mut config = site.config();
        config.listen = vec![Listen::Tcp(([127, 0, 0, 1], 0).into())];
        config.admin_token = Some(Secret::new(STATIC));
        let keeper = Keeper::open(config).expect("opens");
        let server = http::serve(keeper.clone()).expect("serves");
        let address = server.addresses()[0].to_string();
        Self {
            server: Some(server),
            keeper,
            address,
            site,
            _directory: directory,
        }
    }

    fn ask(&self, token: &str, method: &str, path: &str, body: Option<&Value>) -> Reply {
        let reply = Client::tcp(&self.address, token).request(method, path, body);
        reply.unwrap_or_else(|e| panic!("{method} {path}: {e}"))
    }

    fn get(&self, path: &str) -> Value {
        let reply = self.ask("admin", "GET", path, None);
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        reply.body
    }

    fn refused(&self, method: &str, path: &str) -> (u16, String) {
        let reply = self.ask("admin", method, path, None);
        let errcode = reply.body["errcode"].as_str().unwrap_or_default();
        (reply.status, errcode.to_owned())
    }

    fn assert_invalid(&self, path: &str) {
        let expected = (400, "M_INVALID_PARAM".to_owned());
        assert_eq!(self.refused("GET", path), expected, "{path}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop();
        }
        self.keeper.clone().stop();
    }
}

/// A room that grows event by event, each with its state.
struct Room<'a> {
    db: &'a Connection,
    id: String,
    word: &'a str,
    /// Of its first event, and of its state group.
    first: i64,
    depth: i64,
}

impl<'a> Room<'a> {
    fn new(db: &'a Connection, word: &'a str, first: i64, room_type: Option<&str>) -> Self {
        let id = format!("!{word}:example.org");
        run(
            db,
            "INSERT INTO rooms (room_id, is_public, creator, room_version) VALUES ($1, 0, '@admin:example.org', '10')",
            [&id],
        );
        run(db, "INSERT INTO room_depth VALUES ($1, 1)", [&id]);
        run(
            db,
            "INSERT INTO room_stats_state (room_id, name, topic, history_visibility, guest_access, is_federatable, room_type, join_rules)
             VALUES ($1, $2, 'About ' || $2, 'shared', 'can_join', 1, $3, 'public')",
            (&id, word, room_type),
        );
        run(
            db,
            "INSERT INTO room_stats_current VALUES ($1, 3, 1, 0, 0, 0, 1, 1, 0)",
            [&id],
        );
        run(
            db,
            "INSERT INTO state_groups VALUES ($1, $2, 'none')",
            (first, &id),
        );
        let mut room = Self {
            db,
            id,
            word,
            first,
            depth: 0,
        };
        let create = match room_type {
            Some(kind) => json!({"type": kind, "room_version": "10"}),
            None => json!({"room_version": "10"}),
        };
        room.add("m.room.create", Some(""), create);
        room.add(
            "m.room.member",
            Some("@admin:example.org"),
            json!({"membership": "join"}),
        );
        room.add(
            "m.room.join_rules",
            Some(""),
            json!({"join_rule": "public"}),
        );
        room
    }

    /// Adds an event; answers its id.
    fn add(&mut self, kind: &str, state_key: Option<&str>, content: Value) -> String {
        self.depth += 1;
        let (stream, event) = (
            self.first + self.depth,
            format!("${}{}", self.word, self.depth),
        );
        let ts = 1_700_000_000_000 + self.depth * 1000;
        let has_url = content.get("url").is_some();
        run(
            self.db,
            "INSERT INTO events (stream_ordering, topological_ordering, depth, event_id, type, room_id, processed, outlier,
                                 origin_server_ts, received_ts, sender, contains_url, instance_name, state_key)
             VALUES ($1, $2, $2, $3, $4, $5, 1, 0, $6, $6, '@admin:example.org', $7, 'master', $8)",
            (stream, self.depth, &event, kind, &self.id, ts, has_url, state_key),
        );
        let mut json = json!({"type": kind, "room_id": self.id, "sender": "@admin:example.org", "content": content,
            "depth": self.depth, "origin_server_ts": ts, "prev_events": [], "auth_events": []});
        if let Some(key) = state_key {
            json["state_key"] = key.into();
        }
        run(
            self.db,
            "INSERT INTO event_json VALUES ($1, $2, '{}', $3, 3)",
            (&event, &self.id, json.to_string()),
        );
        run(
            self.db,
            "INSERT INTO event_to_state_groups VALUES ($1, $2)",
            (&event, self.first),
        );
        if self.depth > 1 {
            run(
                self.db,
                "INSERT INTO event_edges (event_id, prev_event_id) VALUES ($1, $2)",
                (&event, format!("${}{}", self.word, self.depth - 1)),
            );
        }
        if let Some(key) = state_key {
            let membership = content["membership"].as_str();
            run(
                self.db,
                "INSERT INTO state_events (event_id, room_id, type, state_key) VALUES ($1, $2, $3, $4)",
                (&event, &self.id, kind, key),
            );
            run(
                self.db,
                "INSERT INTO current_state_events (event_id, room_id, type, state_key, membership, event_stream_ordering)
                 VALUES ($1, $2, $3, $4, $5, $6)",
                (&event, &self.id, kind, key, membership, stream),
            );
            run(
                self.db,
                "INSERT INTO state_groups_state VALUES ($1, $2, $3, $4, $5)",
                (self.first, &self.id, kind, key, &event),
            );
            if let Some(membership) = membership {
                run(
                    self.db,
                    "INSERT INTO room_memberships (event_id, user_id, sender, room_id, membership, event_stream_ordering)
                     VALUES ($1, $2, $2, $3, $4, $5)",
                    (&event, key, &self.id, membership, stream),
                );
                run(
                    self.db,
                    "INSERT INTO local_current_membership (room_id, user_id, event_id, membership, event_stream_ordering)
                     VALUES ($1, $2, $3, $4, $5)",
                    (&self.id, key, &event, membership, stream),
                );
            }
        }
        event
    }

    fn say(&mut self, body: &str) -> String {
        self.add(
            "m.room.message",
            None,
            json!({"body": body, "msgtype": "m.text"}),
        )
    }

    fn names(&mut self, child: &str, content: Value) {
        self.add("m.space.child", Some(child), content);
    }

    fn ends_with(&self, event: &str) {
        let sql = "INSERT INTO event_forward_extremities VALUES ($1, $2)";
        run(self.db, sql, (event, &self.id));
    }
}

fn run(db: &Connection, sql: &str, params: impl rusqlite::Params) {
    db.execute(sql, params)
        .unwrap_or_else(|e| panic!("{e}: {sql}"));
}

fn fill(db: &Connection) {
    for (user, admin, deactivated, kind) in [
        ("admin", 1, 0, None),
        ("user", 0, 0, None),
        ("robot", 0, 0, Some("bot")),
        ("gone", 0, 1, None),
    ] {
        let name = format!("@{user}:example.org");
        run(
            db,
            "INSERT INTO users (name, admin, deactivated, creation_ts, user_type) VALUES ($1, $2, $3, 1700000000, $4)",
            (&name, admin, deactivated, kind),
        );
        run(
            db,
            "INSERT INTO access_tokens (id, user_id, token) SELECT count(*) + 1, $1, $2 FROM access_tokens",
            (&name, user),
        );
        run(
            db,
            "INSERT INTO profiles (user_id, displayname, full_user_id) VALUES ($1, 'The ' || upper(substr($1, 1, 1)) || substr($1, 2), $2)",
            (user, &name),
        );
    }
    for (device, seen) in [("A", 5), ("B", 7)] {
        run(
            db,
            "INSERT INTO devices (user_id, device_id, last_seen) VALUES ('@admin:example.org', $1, $2)",
            (device, seen),
        );
    }
    let mut talk = Room::new(db, "talk", 100, None);
    talk.say("one");
    talk.add(
        "m.room.message",
        None,
        json!({"url": "mxc://elsewhere/file", "msgtype": "m.file"}),
    );
    talk.say("two");
    talk.add(
        "m.room.message",
        None,
        json!({"url": "mxc://example.org/picture", "info": {"thumbnail_url": "mxc://example.org/small"}}),
    );
    talk.say("three");
    let side = talk.say("four");
    let last = talk.say("five");
    talk.ends_with(&side);
    talk.ends_with(&last);

    let mut inner = Room::new(db, "inner", 200, Some("m.space"));
    inner.names(TALK, json!({"via": ["example.org"]}));
    let circle = json!({"via": ["example.org"]});
    inner.names("!space:example.org", circle);
    inner.ends_with("$inner5");

    let mut space = Room::new(db, "space", 300, Some("m.space"));
    space.names("!inner:example.org", json!({"via": ["a"], "order": "b"}));
    space.names("!unknown:elsewhere", json!({"via": ["a"], "order": "c"}));
    space.names(TALK, json!({"via": ["a"], "order": "a", "suggested": true}));
    space.names("!left:example.org", json!({}));
    space.ends_with("$space7");

    let mut left = Room::new(db, "left", 400, None);
    let last = left.say("bye");
    left.ends_with(&last);
    for sql in [
        "DELETE FROM current_state_events WHERE room_id = '!left:example.org' AND type = 'm.room.member'",
        "DELETE FROM local_current_membership WHERE room_id = '!left:example.org'",
        "UPDATE room_stats_current SET joined_members = 0, local_users_in_room = 0 WHERE room_id = '!left:example.org'",
        "INSERT INTO scheduled_tasks VALUES ('their', 'purge_room', 'complete', 1500000000000, '!old:example.org', NULL, '{\"a\": 1}', NULL)",
    ] {
        run(db, sql, []);
    }
}

/// Whether a value is what is wanted of it: itself, or of a type.
fn fits(value: &Value, wanted: &Value) -> bool {
    match wanted.as_str() {
        Some("<list>") => value.as_array().is_some_and(|list| !list.is_empty()),
        Some("<object>") => value.as_object().is_some_and(|o| !o.is_empty()),
        Some("<text>") => value.as_str().is_some_and(|text| !text.is_empty()),
        _ => value == wanted,
    }
}

#[test]
fn what_ketesa_asks_is_answered_as_it_expects() {
    let daemon = Daemon::start();
    let mut kept: Vec<(String, String)> = Vec::new();
    for line in KETESA.lines() {
        let asked: Value = serde_json::from_str(line).expect("a line of JSON");
        let word = |name: &str| asked[name].as_str().expect("a word").to_owned();
        let (method, mut path) = (word("method"), word("path"));
        for (name, id) in &kept {
            path = path.replace(&format!("{{{name}}}"), id);
        }
        // A browser asks first.
        let allowed = daemon.ask("nobody", "OPTIONS", &path, None).status;
        assert_eq!(allowed, 204, "OPTIONS {path}");
        for (token, flag, otherwise) in [("nobody", "open", 401), ("user", "guest", 403)] {
            if asked["open"] == true || asked[flag] == true {
                continue;
            }
            let status = daemon.ask(token, &method, &path, asked.get("body")).status;
            assert_eq!(status, otherwise, "{method} {path} as {token}");
        }
        let begun = Instant::now();
        let reply = loop {
            let reply = daemon.ask("admin", &method, &path, asked.get("body"));
            let has = asked["has"].as_object().expect("an object");
            let wrong = has
                .iter()
                .find(|(name, wanted)| !fits(&reply.body[*name], wanted));
            match wrong {
                None => break reply,
                Some(_) if asked["until"] == true && begun.elapsed() < Duration::from_secs(120) => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Some((name, wanted)) => {
                    panic!("{method} {path}: {name} is not {wanted}: {}", reply.body)
                }
            }
        };
        assert_eq!(
            reply.status, asked["status"],
            "{method} {path}: {}",
            reply.body
        );
        if let Some(name) = asked["keep"].as_str() {
            let id = reply.body[name].as_str().expect("an id").to_owned();
            kept.push((name.to_owned(), id));
        }
    }
    let found = roomkeeper::keeper::Viewer::open(daemon.site.config());
    let found = found.expect("opens").check(|_, _| {}).expect("checked");
    assert!(found.violations.is_empty(), "{found:?}");
}

fn ids<'a>(list: &'a Value, member: &str) -> Vec<&'a str> {
    let list = list.as_array().expect("a list");
    let ids = list.iter().map(|one| one[member].as_str().expect("an id"));
    ids.collect()
}

#[test]
fn users_are_listed_in_pages_by_whatever_they_are() {
    let daemon = Daemon::start();
    let names = |query: &str| -> (Vec<String>, i64) {
        let body = daemon.get(&format!("/_synapse/admin/v3/users?{query}"));
        let names = ids(&body["users"], "name");
        let names = names
            .iter()
            .map(|name| name[1..].split(':').next().unwrap_or_default().to_owned());
        (names.collect(), body["total"].as_i64().expect("a number"))
    };
    let are = |list: &[&str]| -> Vec<String> { list.iter().map(|s| (*s).to_owned()).collect() };
    for (query, expected) in [
        ("", &["admin", "gone", "robot", "user"][..]),
        ("dir=b", &["user", "robot", "gone", "admin"]),
        ("deactivated=false", &["admin", "robot", "user"]),
        ("deactivated=true", &["gone"]),
        ("admins=true", &["admin"]),
        ("admins=false", &["gone", "robot", "user"]),
        ("not_user_type=bot", &["admin", "gone", "user"]),
        ("not_user_type=", &["robot"]),
        ("not_user_type=&not_user_type=bot", &[]),
        ("name=ADM", &["admin"]),
        ("name=the%20r", &["robot"]),
        ("name=example", &[]),
        ("user_id=example", &["admin", "gone", "robot", "user"]),
        ("user_id=rob", &["robot"]),
        (
            "order_by=displayname&dir=b",
            &["user", "robot", "gone", "admin"],
        ),
        (
            "order_by=admin&dir=b&guests=false",
            &["admin", "gone", "robot", "user"],
        ),
        (
            "order_by=deactivated&dir=b&locked=true",
            &["gone", "admin", "robot", "user"],
        ),
    ] {
        let total = i64::try_from(expected.len()).expect("few");
        assert_eq!(names(query), (are(expected), total), "{query}");
    }
    for order in [
        "name",
        "is_guest",
        "user_type",
        "avatar_url",
        "shadow_banned",
        "creation_ts",
        "last_seen_ts",
        "locked",
    ] {
        assert_eq!(names(&format!("order_by={order}")).1, 4, "{order}");
    }
    assert_eq!(names("limit=1&from=2"), (are(&["robot"]), 4));
    let page = daemon.get("/_synapse/admin/v2/users?limit=1");
    assert_eq!(page["next_token"], "1");
    assert_eq!(page["total"], 3, "closed accounts are not in it");
    let shown = &page["users"][0];
    let expected = json!({
        "name": "@admin:example.org", "user_type": null, "is_guest": false, "admin": true, "deactivated": false,
        "shadow_banned": false, "displayname": "The Admin", "avatar_url": null, "creation_ts": 1_700_000_000_000_i64,
        "erased": false, "last_seen_ts": 7, "locked": false,
    });
    assert_eq!(shown, &expected);
    assert!(
        daemon
            .get("/_synapse/admin/v2/users?limit=1&from=2")
            .get("next_token")
            .is_none()
    );
    assert_eq!(
        daemon.get("/_synapse/admin/v2/users?deactivated=true")["total"],
        4
    );
    for wrong in [
        "limit=x",
        "from=-1",
        "guests=1",
        "order_by=x",
        "dir=x",
        "admins=x",
        "locked=2",
    ] {
        let path = format!("/_synapse/admin/v3/users?{wrong}");
        let expected = (400, "M_INVALID_PARAM".to_owned());
        assert_eq!(daemon.refused("GET", &path), expected, "{wrong}");
    }
}

#[test]
fn an_event_is_shown_with_what_was_said_around_it() {
    let daemon = Daemon::start();
    let around = |event: &str, query: &str| {
        daemon.get(&format!(
            "/_synapse/admin/v1/rooms/{TALK}/context/{event}?{query}"
        ))
    };
    let body = around("$talk6", "limit=5");
    assert_eq!(
        ids(&body["events_before"], "event_id"),
        ["$talk5", "$talk4"]
    );
    assert_eq!(body["event"]["event_id"], "$talk6");
    assert_eq!(
        ids(&body["events_after"], "event_id"),
        ["$talk7", "$talk8", "$talk9"]
    );
    assert_eq!(
        ids(&body["state"], "event_id"),
        ["$talk1", "$talk3", "$talk2"]
    );
    assert_eq!(body["start"], "t4-103_0_0_0_0_0_0_0_0_0");
    assert_eq!(body["end"], "t9-109_0_0_0_0_0_0_0_0_0");
    // Its tokens lead on.
    let more = daemon.get(&format!(
        "/_synapse/admin/v1/rooms/{TALK}/messages?dir=b&from={}",
        body["start"].as_str().expect("a token")
    ));
    assert_eq!(
        ids(&more["chunk"], "event_id"),
        ["$talk3", "$talk2", "$talk1"]
    );

    let alone = around("$talk1", "limit=0");
    assert_eq!(
        (&alone["events_before"], &alone["events_after"]),
        (&json!([]), &json!([]))
    );
    let filter = "filter=%7B%22types%22%3A%5B%22m.room.create%22%5D%7D";
    let filtered = around("$talk6", filter);
    assert_eq!(ids(&filtered["events_before"], "event_id"), ["$talk1"]);
    assert_eq!(ids(&filtered["state"], "event_id"), ["$talk1"]);
    let lazy = around("$talk6", "filter=%7B%22lazy_load_members%22%3Atrue%7D");
    assert_eq!(lazy["state"].as_array().map(Vec::len), Some(3));
    let path = |event: &str| format!("/_synapse/admin/v1/rooms/{TALK}/context/{event}");
    for event in ["$nothing", "$space1", ""] {
        let expected = (404, "M_NOT_FOUND".to_owned());
        assert_eq!(daemon.refused("GET", &path(event)), expected, "{event}");
    }
    for (query, errcode) in [
        ("limit=-1", "M_INVALID_PARAM"),
        ("limit=x", "M_INVALID_PARAM"),
        ("filter=x", "M_NOT_JSON"),
    ] {
        let path = format!("{}?{query}", path("$talk6"));
        assert_eq!(
            daemon.refused("GET", &path),
            (400, errcode.to_owned()),
            "{query}"
        );
    }
}

#[test]
fn a_space_is_told_with_its_rooms_and_no_circle_is_endless() {
    let daemon = Daemon::start();
    let path = "/_synapse/admin/v1/rooms/!space:example.org/hierarchy";
    let body = daemon.get(path);
    // By their order; each before its own children; none twice; none that is not ours, or that is named no more.
    let all = ["!space:example.org", TALK, "!inner:example.org"];
    assert_eq!(ids(&body["rooms"], "room_id"), all);
    let expected = json!({
        "room_id": "!space:example.org", "room_version": "10", "name": "space", "topic": "About space",
        "num_joined_members": 1, "world_readable": false, "guest_can_join": true, "room_type": "m.space",
        "join_rule": "public", "children_state": body["rooms"][0]["children_state"],
    });
    assert_eq!(body["rooms"][0], expected);
    let children = &body["rooms"][0]["children_state"];
    assert_eq!(
        ids(children, "state_key"),
        [TALK, "!inner:example.org", "!unknown:elsewhere"]
    );
    let expected = json!({
        "type": "m.space.child", "state_key": TALK, "sender": "@admin:example.org",
        "content": {"via": ["a"], "order": "a", "suggested": true}, "origin_server_ts": 1_700_000_006_000_i64,
    });
    assert_eq!(children[0], expected);
    assert_eq!(body["rooms"][1]["children_state"], json!([]));
    let root = daemon.get(&format!("{path}?max_depth=0"));
    assert_eq!(ids(&root["rooms"], "room_id"), all[..1]);
    let (mut told, mut query) = (Vec::new(), "limit=1".to_owned());
    loop {
        let page = daemon.get(&format!("{path}?{query}"));
        told.extend(
            ids(&page["rooms"], "room_id")
                .into_iter()
                .map(str::to_owned),
        );
        assert!(told.len() <= all.len(), "{told:?}");
        match page["next_batch"].as_str() {
            Some(next) => query = format!("limit=1&from={next}"),
            None => break,
        }
    }
    assert_eq!(told, all);
    let unknown = daemon.refused("GET", "/_synapse/admin/v1/rooms/!no:example.org/hierarchy");
    assert_eq!(unknown, (404, "M_NOT_FOUND".to_owned()));
    for wrong in ["max_depth=-1", "limit=x", "from=x", "from=99999999"] {
        daemon.assert_invalid(&format!("{path}?{wrong}"));
    }
}

#[test]
fn tasks_are_ours_with_the_homeservers_beside_them() {
    let daemon = Daemon::start();
    let path = "/_synapse/admin/v1/scheduled_tasks";
    let their = json!({
        "id": "their", "action": "purge_room", "status": "complete", "timestamp_ms": 1_500_000_000_000_i64,
        "resource_id": "!old:example.org", "result": {"a": 1}, "error": null,
    });
    assert_eq!(daemon.get(path), json!({"scheduled_tasks": [their]}));
    let body = json!({"purge_up_to_ts": 1_700_000_006_500_i64, "delete_local_events": true});
    let purge = format!("/_synapse/admin/v1/purge_history/{TALK}");
    let id = daemon.ask("admin", "POST", &purge, Some(&body)).body["purge_id"].clone();
    let id = id.as_str().expect("an id");
    daemon.keeper.wait(&id.into()).expect("purged");
    let all = daemon.get(path);
    assert_eq!(ids(&all["scheduled_tasks"], "id"), ["their", id]);
    let ours = &all["scheduled_tasks"][1];
    assert_eq!(
        (&ours["action"], &ours["status"]),
        (&json!("purge_history"), &json!("complete"))
    );
    assert_eq!(
        (&ours["resource_id"], &ours["error"]),
        (&json!(TALK), &Value::Null)
    );
    for (query, expected) in [
        ("action_name=purge_room", &["their"][..]),
        (
            "action_name=purge_room&action_name=purge_history",
            &["their", id],
        ),
        ("status=active", &[]),
        (
            "job_status=complete&resource_id=!old:example.org",
            &["their"],
        ),
        ("max_timestamp=1600000000000", &["their"]),
    ] {
        let found = daemon.get(&format!("{path}?{query}"));
        assert_eq!(ids(&found["scheduled_tasks"], "id"), expected, "{query}");
    }
    for wrong in ["status=done", "job_status=x", "max_timestamp=x"] {
        daemon.assert_invalid(&format!("{path}?{wrong}"));
    }
}

#[test]
fn surplus_extremities_are_dropped_and_nothing_else_is() {
    let daemon = Daemon::start();
    let path = format!("/_synapse/admin/v1/rooms/{TALK}/forward_extremities");
    let before = daemon.site.tables();
    for (expected, left) in [(1, vec!["$talk10"]), (0, vec!["$talk10"])] {
        let reply = daemon.ask("admin", "DELETE", &path, None);
        assert_eq!(
            (reply.status, reply.body),
            (200, json!({"deleted": expected}))
        );
        assert_eq!(ids(&daemon.get(&path)["results"], "event_id"), left);
    }
    let after = daemon.site.tables();
    let gone: Vec<&str> = before
        .rows("event_forward_extremities")
        .iter()
        .map(|row| row.word("event_id"))
        .filter(|id| {
            let mut rows = after.rows("event_forward_extremities").iter();
            !rows.any(|row| row.word("event_id") == *id)
        })
        .collect();
    assert_eq!(gone, ["$talk9"]);
    let mut expected = before;
    expected.retain("event_forward_extremities", |row| {
        row.word("event_id") != "$talk9"
    });
    assert_eq!(expected.difference(&after), "");
    // A room that has none that is held keeps what it has.
    let none = daemon.refused(
        "DELETE",
        "/_synapse/admin/v1/rooms/!no:example.org/forward_extremities",
    );
    assert_eq!(none, (400, "M_UNKNOWN".to_owned()));
    let alias = daemon.refused(
        "DELETE",
        "/_synapse/admin/v1/rooms/%23no%3Aexample.org/forward_extremities",
    );
    assert_eq!(alias, (404, "M_NOT_FOUND".to_owned()));
    let neither = daemon.refused("GET", "/_synapse/admin/v1/rooms/word/forward_extremities");
    assert_eq!(neither, (400, "M_UNKNOWN".to_owned()));
}

#[test]
fn the_largest_rooms_are_told_on_both_engines() {
    let daemon = Daemon::start();
    let body = daemon.get("/_synapse/admin/v1/statistics/database/rooms");
    let rooms = body["rooms"].as_array().expect("a list");
    assert_eq!(rooms.len(), 4);
    let sizes: Vec<i64> = rooms
        .iter()
        .filter_map(|room| room["estimated_size"].as_i64())
        .collect();
    assert_eq!(sizes.len(), 4);
    assert!(sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
}

also_on_postgres! {
    what_ketesa_asks_is_answered_as_it_expects,
    users_are_listed_in_pages_by_whatever_they_are,
    an_event_is_shown_with_what_was_said_around_it,
    a_space_is_told_with_its_rooms_and_no_circle_is_endless,
    tasks_are_ours_with_the_homeservers_beside_them,
    surplus_extremities_are_dropped_and_nothing_else_is,
    the_largest_rooms_are_told_on_both_engines,
}
