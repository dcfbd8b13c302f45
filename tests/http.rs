//! The endpoints, asked over HTTP as an admin's client asks them.

#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

#[macro_use]
mod support;

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use roomkeeper::client::{Client, Reply};
use roomkeeper::config::{Listen, Secret};
use roomkeeper::http::{self, HttpServer};
use roomkeeper::store::schema;
use roomkeeper::time::SystemClock;
use roomkeeper::{Config, Keeper, UserId};
use rusqlite::Connection;
use serde_json::{Value, json};
use support::work::Site;

const ROOM: &str = "!room:example.org";
const STATIC: &str = "static-token-0123456789";

/// A daemon over a database with a few users and one room of ten messages.
struct Daemon {
    server: Option<HttpServer>,
    keeper: Keeper,
    address: SocketAddr,
    socket: PathBuf,
    site: Site,
    _directory: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Self {
        Self::start_with(|_| {})
    }

    fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        listen_to_the_log();
        let directory = tempfile::tempdir().unwrap();
        let database = directory.path().join("homeserver.db");
        schema::create(&database).unwrap();
        fill(&Connection::open(&database).unwrap());
        let socket = directory.path().join("control.sock");
        // The server's driver shows what this writes, tokens and all; it is ours that has to show none.
        IS_FILLING.set(true);
        let site = Site::of_file(&database, "example.org");
        IS_FILLING.set(false);
        let mut config = site.config();
        config.clock = Arc::new(SystemClock);
        config.listen = vec![
            Listen::Tcp(([127, 0, 0, 1], 0).into()),
            Listen::Unix(socket.clone()),
        ];
        config.admin_token = Some(Secret::new(STATIC));
        config.admin_user = UserId::from("@root:example.org");
        change(&mut config);
        let keeper = Keeper::open(config).unwrap();
        let server = http::serve(keeper.clone()).unwrap();
        let address = server.addresses()[0];
        Self {
            server: Some(server),
            keeper,
            address,
            socket,
            site,
            _directory: directory,
        }
    }

    /// A client with a token, over TCP.
    fn with(&self, token: &str) -> Client {
        Client::tcp(self.address.to_string(), token)
    }

    /// A server admin, over TCP.
    fn admin(&self) -> Client {
        self.with("admin")
    }

    /// Whoever may open the socket.
    fn local(&self) -> Client {
        Client::unix(&self.socket)
    }

    /// Sends bytes as they are and reads to the end of the connection.
    fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn get_raw(&self, target: &str, headers: &str) -> (u16, Value) {
        let answer = self.raw(&format!(
            "GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n"
        ));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (
            head[9..12].parse().unwrap(),
            serde_json::from_str(body).unwrap(),
        )
    }

    /// Waits until a purge is no longer active.
    fn outcome(&self, purge: &str) -> Value {
        let begun = Instant::now();
        loop {
            let reply = self
                .admin()
                .get(&format!("/_synapse/admin/v1/purge_history_status/{purge}"))
                .unwrap();
            assert_eq!(reply.status, 200);
            if reply.body["status"] != "active" {
                return reply.body;
            }
            assert_eq!(reply.body, json!({"status": "active"}));
            assert!(begun.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(5));
        }
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

fn fill(db: &Connection) {
    for (user, admin, guest, deactivated, locked) in [
        ("admin", 1, 0, 0, false),
        ("user", 0, 0, 0, false),
        ("guest", 1, 1, 0, false),
        ("gone", 1, 0, 1, false),
        ("locked", 1, 0, 0, true),
    ] {
        let name = format!("@{user}:example.org");
        let sql = "INSERT INTO users (name, admin, is_guest, deactivated, locked) VALUES ($1, $2, $3, $4, $5)";
        db.execute(sql, (&name, admin, guest, deactivated, locked))
            .unwrap();
        token(db, user, &name, None, None);
    }
    token(db, "expired", "@admin:example.org", Some(1), None);
    token(db, "lasting", "@admin:example.org", Some(i64::MAX), None);
    token(
        db,
        "puppet",
        "@admin:example.org",
        None,
        Some("@user:example.org"),
    );
    token(
        db,
        "master",
        "@user:example.org",
        None,
        Some("@admin:example.org"),
    );
    token(db, "orphan", "@nobody:example.org", None, None);
    // This one belongs to a user who is nobody special: the static token must not be looked up.
    token(db, STATIC, "@user:example.org", None, None);

    for (room, first) in [(ROOM, 1_i64), ("!other:example.org", 101)] {
        db.execute("INSERT INTO rooms (room_id, is_public, creator, room_version) VALUES ($1, 0, '@admin:example.org', '10')", [room]).unwrap();
        db.execute("INSERT INTO room_depth VALUES ($1, 1)", [room])
            .unwrap();
        db.execute(
            "INSERT INTO state_groups VALUES ($1, $2, $3)",
            (first, room, format!("$e{first}")),
        )
        .unwrap();
        let create = format!("$e{first}");
        db.execute(
            "INSERT INTO state_groups_state VALUES ($1, $2, 'm.room.create', '', $3)",
            (first, room, &create),
        )
        .unwrap();
        for depth in 1..=10 {
            let stream = first + depth - 1;
            let event = format!("$e{stream}");
            let kind = if depth == 1 {
                "m.room.create"
            } else {
                "m.room.message"
            };
            let state_key = (depth == 1).then_some("");
            let sql = "INSERT INTO events (stream_ordering, topological_ordering, depth, event_id, type, room_id, \
                 processed, outlier, origin_server_ts, received_ts, sender, contains_url, instance_name, state_key) \
                 VALUES ($1, $2, $2, $3, $4, $5, 1, 0, $6, $6, '@remote:elsewhere', 0, 'master', $7)";
            db.execute(
                sql,
                (stream, depth, &event, kind, room, stream * 1000, state_key),
            )
            .unwrap();
            let body = json!({"type": kind, "room_id": room, "sender": "@remote:elsewhere", "content": {"body": "hi"},
                "depth": depth, "state_key": state_key, "prev_events": [], "auth_events": []});
            db.execute(
                "INSERT INTO event_json VALUES ($1, $2, '{}', $3, 3)",
                (&event, room, body.to_string()),
            )
            .unwrap();
            db.execute(
                "INSERT INTO event_to_state_groups VALUES ($1, $2)",
                (&event, first),
            )
            .unwrap();
            if depth > 1 {
                let before = format!("$e{}", stream - 1);
                db.execute(
                    "INSERT INTO event_edges (event_id, prev_event_id) VALUES ($1, $2)",
                    (&event, before),
                )
                .unwrap();
            }
        }
        db.execute("INSERT INTO state_events (event_id, room_id, type, state_key) VALUES ($1, $2, 'm.room.create', '')", (&create, room)).unwrap();
        db.execute("INSERT INTO current_state_events (event_id, room_id, type, state_key, event_stream_ordering) VALUES ($1, $2, 'm.room.create', '', $3)", (&create, room, first)).unwrap();
        db.execute(
            "INSERT INTO event_forward_extremities VALUES ($1, $2)",
            (format!("$e{}", first + 9), room),
        )
        .unwrap();
    }
}

fn token(db: &Connection, token: &str, user: &str, until: Option<i64>, puppets: Option<&str>) {
    let sql = "INSERT INTO access_tokens (id, user_id, token, valid_until_ms, puppets_user_id) \
         SELECT count(*) + 1, $1, $2, $3, $4 FROM access_tokens";
    db.execute(sql, (user, token, until, puppets)).unwrap();
}

fn error(reply: &Reply) -> (u16, &str, &str) {
    let text = |name: &str| reply.body[name].as_str().unwrap_or_default();
    // Beside these, what some have, and nothing else.
    let known = ["errcode", "error", "error_code", "soft_logout"];
    let members = reply.body.as_object().unwrap();
    assert!(
        members.keys().all(|name| known.contains(&&**name)),
        "{reply:?}"
    );
    (reply.status, text("errcode"), text("error"))
}

const PURGE: &str = "/_synapse/admin/v1/purge_history/!room:example.org";
const OTHER: &str = "/_synapse/admin/v1/purge_history/!other:example.org";

#[test]
fn a_purge_is_started_watched_and_found_among_the_jobs() {
    let daemon = Daemon::start();
    let reply = daemon
        .admin()
        .post(
            PURGE,
            &json!({"purge_up_to_event_id": "$e6", "delete_local_events": 1}),
        )
        .unwrap();
    assert_eq!(reply.status, 200);
    let id = reply.body["purge_id"].as_str().unwrap().to_owned();
    assert_eq!(reply.body, json!({"purge_id": id}));
    assert!(id.len() == 16 && id.bytes().all(|letter| letter.is_ascii_alphabetic()));
    assert_eq!(daemon.outcome(&id), json!({"status": "complete"}));

    let jobs = daemon.admin().get("/_roomkeeper/v1/jobs").unwrap().body;
    assert_eq!(jobs["jobs"][0]["id"], id);
    let job = daemon
        .local()
        .get(&format!("/_roomkeeper/v1/jobs/{id}"))
        .unwrap();
    assert_eq!((job.status, &job.body), (200, &jobs["jobs"][0]));
    assert_eq!(job.body["room_id"], ROOM);
    assert_eq!(job.body["state"], "complete");
    assert_eq!(job.body["params"]["delete_local_events"], true);
    // The end of a job that has ended is no error.
    let cancelled = daemon
        .local()
        .post(&format!("/_roomkeeper/v1/jobs/{id}/cancel"), &json!({}))
        .unwrap();
    assert_eq!((cancelled.status, cancelled.body), (200, job.body));
    assert_eq!(daemon.outcome(&id), json!({"status": "complete"}));
}

#[test]
fn the_point_may_stand_in_the_path_encoded_or_not_and_be_a_time() {
    let daemon = Daemon::start();
    for (path, body) in [
        (
            format!("{PURGE}/$e3"),
            json!({"purge_up_to_event_id": "$unknown", "purge_up_to_ts": "x"}),
        ),
        (
            "/_synapse/admin/v1/purge_history/%21room%3Aexample.org/%24e4".to_owned(),
            json!({}),
        ),
        (PURGE.to_owned(), json!({"purge_up_to_ts": 5000})),
    ] {
        let reply = daemon.admin().post(&path, &body).unwrap();
        assert_eq!(reply.status, 200, "{path} {reply:?}");
        assert_eq!(
            daemon.outcome(reply.body["purge_id"].as_str().unwrap()),
            json!({"status": "complete"})
        );
    }
    let without_body = daemon
        .admin()
        .request("POST", &format!("{PURGE}/$e5"), None)
        .unwrap();
    assert_eq!(without_body.status, 200);
}

#[test]
fn a_purge_that_cannot_be_is_refused_in_synapses_words() {
    let daemon = Daemon::start();
    let ask = |path: &str, body: Value| daemon.admin().post(path, &body).unwrap();
    let event = |id: &str| json!({"purge_up_to_event_id": id});
    for (reply, expected) in [
        (
            ask(PURGE, event("$none")),
            (404, "M_NOT_FOUND", "Could not find event $none"),
        ),
        (
            ask(&format!("{PURGE}/"), json!({})),
            (404, "M_NOT_FOUND", "Could not find event "),
        ),
        (
            ask(PURGE, event("$e101")),
            (400, "M_UNKNOWN", "Event is for wrong room."),
        ),
        (
            ask(OTHER, json!({"purge_up_to_ts": -1})),
            (404, "M_NOT_FOUND", "there is no event to be purged"),
        ),
        (
            ask(PURGE, json!({"purge_up_to_ts": true})),
            (400, "M_BAD_JSON", "purge_up_to_ts must be an int"),
        ),
        (
            ask(PURGE, json!({})),
            (
                400,
                "M_BAD_JSON",
                "must specify purge_up_to_event_id or purge_up_to_ts",
            ),
        ),
        (
            ask(PURGE, json!([])),
            (400, "M_BAD_JSON", "Content must be a JSON object."),
        ),
        (
            ask(PURGE, json!({"purge_up_to_event_id": 5})),
            (400, "M_BAD_JSON", "purge_up_to_event_id must be a string"),
        ),
    ] {
        assert_eq!(error(&reply), expected);
    }
    let status = daemon
        .admin()
        .get("/_synapse/admin/v1/purge_history_status/abc%2F'")
        .unwrap();
    assert_eq!(
        error(&status),
        (404, "M_NOT_FOUND", "purge id 'abc/'' not found")
    );
    let job = daemon.admin().get("/_roomkeeper/v1/jobs/abc").unwrap();
    assert_eq!(
        (job.status, &job.body["errcode"]),
        (404, &json!("M_NOT_FOUND"))
    );
    // Our own answers have our word beside, and those in Synapse's place only where no client of Synapse's asks.
    assert_eq!(job.body["error_code"], "no_such_job");
    let (wrong, none) = (json!({"x": 1}), json!({}));
    for (path, body, over_tcp, by_socket) in [
        (
            "/_roomkeeper/v1/retention",
            &wrong,
            "bad_request",
            "bad_request",
        ),
        (
            "/_roomkeeper/v1/nothing",
            &none,
            "unrecognized",
            "unrecognized",
        ),
        (PURGE, &none, "", "bad_request"),
        (&format!("{PURGE}/$nothing"), &none, "", "event_not_found"),
    ] {
        for (client, code) in [(daemon.admin(), over_tcp), (daemon.local(), by_socket)] {
            let reply = client.post(path, body).unwrap();
            let said = reply.body.get("error_code").and_then(|code| code.as_str());
            assert_eq!(said.unwrap_or_default(), code, "{path}: {reply:?}");
        }
    }
    let job = daemon
        .admin()
        .post("/_roomkeeper/v1/jobs/abc/cancel", &json!({}))
        .unwrap();
    assert_eq!(
        (job.status, &job.body["errcode"]),
        (404, &json!("M_NOT_FOUND"))
    );
    assert_eq!(
        daemon.admin().get("/_roomkeeper/v1/jobs").unwrap().body,
        json!({"jobs": []})
    );
}

#[test]
fn a_failed_purge_says_why_with_its_code() {
    let daemon = Daemon::start();
    daemon.site.run(
        "UPDATE events SET depth = 11, topological_ordering = 11 WHERE event_id = '$e9';
         UPDATE events SET depth = 9, topological_ordering = 9 WHERE event_id = '$e10'",
    );
    let reply = daemon
        .admin()
        .post(PURGE, &json!({"purge_up_to_event_id": "$e9"}))
        .unwrap();
    let outcome = daemon.outcome(reply.body["purge_id"].as_str().unwrap());
    let expected = "400: topological_ordering is greater than forward extremities";
    assert_eq!(outcome, json!({"status": "failed", "error": expected}));
}

#[test]
fn over_tcp_a_token_decides() {
    let daemon = Daemon::start();
    let path = "/_roomkeeper/v1/jobs";
    for token in ["admin", "lasting", "master", STATIC] {
        assert_eq!(daemon.with(token).get(path).unwrap().status, 200, "{token}");
        assert_eq!(
            daemon
                .get_raw(&format!("{path}?access_token={token}"), "")
                .0,
            200,
            "{token}"
        );
    }
    for (token, status, errcode, text, soft_logout) in [
        (
            "nonsense",
            401,
            "M_UNKNOWN_TOKEN",
            "Invalid access token passed.",
            Some(false),
        ),
        (
            "orphan",
            401,
            "M_UNKNOWN_TOKEN",
            "Invalid access token passed.",
            Some(false),
        ),
        (
            "gone",
            401,
            "M_UNKNOWN_TOKEN",
            "Invalid access token passed.",
            Some(false),
        ),
        (
            "expired",
            401,
            "M_UNKNOWN_TOKEN",
            "Access token has expired",
            Some(true),
        ),
        (
            "locked",
            401,
            "M_USER_LOCKED",
            "User account has been locked",
            Some(true),
        ),
        (
            "guest",
            403,
            "M_GUEST_ACCESS_FORBIDDEN",
            "Guest access not allowed",
            None,
        ),
        (
            "user",
            403,
            "M_FORBIDDEN",
            "You are not a server admin",
            None,
        ),
        (
            "puppet",
            403,
            "M_FORBIDDEN",
            "You are not a server admin",
            None,
        ),
    ] {
        let reply = daemon.with(token).get(path).unwrap();
        assert_eq!(error(&reply), (status, errcode, text), "{token}");
        assert_eq!(
            reply.body.get("soft_logout").and_then(Value::as_bool),
            soft_logout,
            "{token}"
        );
    }
    for (target, headers, text) in [
        ("", "", "Missing access token"),
        (
            "?access_token=admin",
            "Authorization: Bearer admin\r\n",
            "Mixing Authorization headers and access_token query parameters.",
        ),
        (
            "",
            "Authorization: Bearer admin\r\nAuthorization: Bearer admin\r\n",
            "Too many Authorization headers.",
        ),
        (
            "",
            "Authorization: admin\r\n",
            "Invalid Authorization header.",
        ),
    ] {
        let (status, body) = daemon.get_raw(&format!("{path}{target}"), headers);
        assert_eq!(
            (status, body),
            (
                401,
                json!({"errcode": "M_MISSING_TOKEN", "error": text, "error_code": "denied"})
            )
        );
    }
}

#[test]
fn the_socket_file_needs_no_token_but_a_token_is_believed() {
    let daemon = Daemon::start();
    assert_eq!(
        daemon.local().get("/_roomkeeper/v1/jobs").unwrap().status,
        200
    );
    let mut stream = std::os::unix::net::UnixStream::connect(&daemon.socket).unwrap();
    stream
        .write_all(b"GET /_roomkeeper/v1/jobs?access_token=user HTTP/1.0\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}

#[test]
fn with_delegated_authentication_only_the_static_token_works() {
    let daemon = Daemon::start_with(|config| config.delegated_auth = true);
    let path = "/_roomkeeper/v1/jobs";
    assert_eq!(daemon.with(STATIC).get(path).unwrap().status, 200);
    assert_eq!(daemon.local().get(path).unwrap().status, 200);
    let reply = daemon.admin().get(path).unwrap();
    assert_eq!(
        (reply.status, &reply.body["errcode"]),
        (401, &json!("M_UNKNOWN_TOKEN"))
    );

    let daemon = Daemon::start_with(|config| config.admin_token = None);
    assert_eq!(
        daemon.with(STATIC).get(path).unwrap().status,
        403,
        "it is a user's token then"
    );
}

#[test]
fn accounts_that_have_run_out_are_refused_where_that_is_configured() {
    for (enabled, status) in [(true, 403), (false, 200)] {
        let daemon = Daemon::start_with(|config| config.account_validity = enabled);
        daemon.site.run(
            "INSERT INTO account_validity (user_id, expiration_ts_ms, email_sent)
             VALUES ('@admin:example.org', 1, FALSE)",
        );
        let reply = daemon.admin().get("/_roomkeeper/v1/jobs").unwrap();
        assert_eq!(reply.status, status);
        if enabled {
            assert_eq!(
                error(&reply),
                (
                    403,
                    "ORG_MATRIX_EXPIRED_ACCOUNT",
                    "User account has expired"
                )
            );
        }
    }
}

#[test]
fn who_may_not_ask_learns_nothing_from_the_order_of_checks() {
    let daemon = Daemon::start();
    // Authentication, then the admin check, then the body, then its members (H-7).
    let bad_body = |token: &str| {
        let request = format!(
            "POST {PURGE} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{token}Content-Length: 3\r\n\r\nbad"
        );
        daemon.raw(&request)
    };
    assert!(bad_body("").contains("M_MISSING_TOKEN"));
    assert!(bad_body("Authorization: Bearer user\r\n").contains("M_FORBIDDEN"));
    assert!(bad_body("Authorization: Bearer admin\r\n").contains("M_NOT_JSON"));
    let reply = daemon
        .with("user")
        .get("/_synapse/admin/v1/purge_history_status/none")
        .unwrap();
    assert_eq!(reply.status, 403);
}

#[test]
fn paths_that_are_not_ours_are_unrecognized() {
    let daemon = Daemon::start();
    for path in [
        "/_matrix/client/v3/sync",
        "/_roomkeeper/v1",
        "/_synapse/admin/v1/purge_history",
    ] {
        let reply = daemon.local().get(path).unwrap();
        assert_eq!(
            error(&reply),
            (404, "M_UNRECOGNIZED", "Unrecognized request"),
            "{path}"
        );
    }
    let reply = daemon.local().request("DELETE", PURGE, None).unwrap();
    assert_eq!(
        error(&reply),
        (405, "M_UNRECOGNIZED", "Unrecognized request")
    );
    // Browsers ask wherever they will send to, before they are told whether there is anything (H-63).
    for target in [PURGE, "/_roomkeeper/v1/health", "/no/such/path", "*", "/"] {
        let answer = daemon.raw(&format!("OPTIONS {target} HTTP/1.0\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 204 "), "{target}: {answer}");
        assert!(
            answer.contains("Access-Control-Allow-Headers: ") && answer.contains("Authorization"),
            "{target}: {answer}"
        );
    }
    let version = daemon.get_raw("/_synapse/admin/v1/server_version", "");
    assert_eq!(version.0, 200, "needs no token");
}

#[test]
fn clients_for_admins_find_what_they_ask_when_they_log_in_and_look_around() {
    let daemon = Daemon::start_with(|config| {
        let Some(file) = config.database.file() else {
            return;
        };
        let db = Connection::open(file).unwrap();
        db.execute(
            "INSERT INTO profiles (user_id, displayname, full_user_id) VALUES ('user', 'U', '@user:example.org')",
            [],
        )
        .unwrap();
    });
    let room = format!("/_synapse/admin/v1/rooms/{ROOM}");
    let ask = |token: &str, method: &str, path: &str| {
        let reply = daemon.with(token).request(method, path, None).unwrap();
        (reply.status, reply.body)
    };
    // (method, path, status for an admin, for a user, what the admin's answer has)
    let has_profile = daemon.site.config().database.file().is_some();
    let table = [
        (
            "GET",
            "/_matrix/client/versions".to_owned(),
            200,
            200,
            json!({"unstable_features": {}}),
        ),
        (
            "GET",
            "/_matrix/client/v3/login".to_owned(),
            200,
            200,
            json!({"flows": []}),
        ),
        (
            "POST",
            "/_matrix/client/v3/login".to_owned(),
            403,
            403,
            json!({"errcode": "M_FORBIDDEN"}),
        ),
        (
            "GET",
            "/_matrix/client/v3/account/whoami".to_owned(),
            200,
            200,
            json!({"user_id": "@admin:example.org", "is_guest": false}),
        ),
        (
            "GET",
            "/_matrix/client/v3/profile/@user:example.org".to_owned(),
            if has_profile { 200 } else { 404 },
            if has_profile { 200 } else { 404 },
            if has_profile {
                json!({"displayname": "U"})
            } else {
                json!({})
            },
        ),
        (
            "GET",
            "/_matrix/client/v3/profile/@nobody:example.org".to_owned(),
            404,
            404,
            json!({}),
        ),
        (
            "GET",
            "/_matrix/client/v3/profile/@user:elsewhere".to_owned(),
            404,
            404,
            json!({}),
        ),
        (
            "GET",
            "/_synapse/admin/v2/users/@user:example.org".to_owned(),
            200,
            403,
            json!({"name": "@user:example.org", "admin": false, "deactivated": false, "locked": false}),
        ),
        (
            "GET",
            "/_synapse/admin/v2/users/%40locked%3Aexample.org".to_owned(),
            200,
            403,
            json!({"admin": true, "locked": true, "erased": false}),
        ),
        (
            "GET",
            "/_synapse/admin/v2/users/@no:example.org".to_owned(),
            404,
            403,
            json!({"error": "User not found"}),
        ),
        (
            "GET",
            "/_synapse/admin/v1/users/@admin:example.org/admin".to_owned(),
            200,
            403,
            json!({"admin": true}),
        ),
        (
            "GET",
            "/_synapse/admin/v1/users/@no:example.org/admin".to_owned(),
            404,
            403,
            json!({"errcode": "M_NOT_FOUND"}),
        ),
        (
            "GET",
            "/_synapse/admin/v1/rooms/!no:example.org/state".to_owned(),
            404,
            403,
            json!({"error": "Room not found"}),
        ),
        (
            "GET",
            format!("{room}/forward_extremities"),
            200,
            403,
            json!({"count": 1, "results": [{"event_id": "$e10", "state_group": 1, "depth": 10, "received_ts": 10_000}]}),
        ),
        (
            "GET",
            "/_synapse/admin/v1/rooms/!no:example.org/forward_extremities".to_owned(),
            200,
            403,
            json!({"count": 0, "results": []}),
        ),
        (
            "GET",
            format!("{room}/timestamp_to_event?ts=4500"),
            200,
            403,
            json!({"event_id": "$e5", "origin_server_ts": 5000}),
        ),
        (
            "GET",
            format!("{room}/timestamp_to_event?ts=4500&dir=b"),
            200,
            403,
            json!({"event_id": "$e4", "origin_server_ts": 4000}),
        ),
        (
            "GET",
            format!("{room}/timestamp_to_event?ts=99999999"),
            404,
            403,
            json!({"error": "Unable to find event from 99999999 in direction f"}),
        ),
        (
            "GET",
            format!("{room}/timestamp_to_event"),
            400,
            403,
            json!({"errcode": "M_MISSING_PARAM"}),
        ),
        (
            "GET",
            format!("{room}/timestamp_to_event?ts=x"),
            400,
            403,
            json!({"errcode": "M_INVALID_PARAM"}),
        ),
        (
            "GET",
            format!("{room}/timestamp_to_event?ts=-1"),
            400,
            403,
            json!({"errcode": "M_INVALID_PARAM"}),
        ),
        (
            "GET",
            format!("{room}/timestamp_to_event?ts=1&dir=x"),
            400,
            403,
            json!({"errcode": "M_INVALID_PARAM"}),
        ),
        (
            "GET",
            "/_synapse/admin/v1/fetch_event/$nothing".to_owned(),
            404,
            403,
            json!({"error": "Event not found"}),
        ),
        (
            "POST",
            format!("{room}/make_room_admin"),
            403,
            403,
            json!({"errcode": "M_FORBIDDEN"}),
        ),
    ];
    for (method, path, for_admin, for_user, expected) in &table {
        let (status, body) = ask("admin", method, path);
        assert_eq!(status, *for_admin, "{method} {path}: {body}");
        for (member, value) in expected.as_object().unwrap() {
            assert_eq!(&body[member], value, "{method} {path}: {body}");
        }
        assert_eq!(
            ask("user", method, path).0,
            *for_user,
            "{method} {path} as a user"
        );
        let without = daemon.get_raw(path, "").0;
        let is_open = path.ends_with("versions") || path.ends_with("login");
        if *method == "GET" {
            assert_eq!(
                without,
                if is_open { 200 } else { 401 },
                "{path} without a token"
            );
        }
    }
    let (_, state) = ask("admin", "GET", &format!("{room}/state"));
    assert_eq!(state["state"].as_array().unwrap().len(), 1);
    assert_eq!(state["state"][0]["event_id"], "$e1");
    assert_eq!(state["state"][0]["type"], "m.room.create");
    let (_, event) = ask("admin", "GET", "/_synapse/admin/v1/fetch_event/$e107");
    assert_eq!(event["event"]["event_id"], "$e107");
    assert_eq!(event["event"]["content"], json!({"body": "hi"}));
}

#[test]
fn health_is_told_to_everybody_and_is_all_they_are_told() {
    let daemon = Daemon::start();
    assert_eq!(
        daemon.get_raw("/_roomkeeper/v1/health", ""),
        (200, json!({"alive": true}))
    );
    assert_eq!(
        daemon.get_raw("/_roomkeeper/v1/health", "Authorization: nonsense\r\n"),
        (200, json!({"alive": true}))
    );
    let head = daemon.raw("HEAD /_roomkeeper/v1/health HTTP/1.0\r\n\r\n");
    assert!(
        head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    daemon.keeper.clone().stop();
    assert_eq!(daemon.get_raw("/_roomkeeper/v1/health", "").0, 503);
}

#[test]
fn no_token_and_no_body_is_ever_logged() {
    let daemon = Daemon::start();
    let secret = "syt_c2VjcmV0_do-not-log";
    daemon.with(secret).get("/_roomkeeper/v1/jobs").unwrap();
    daemon.get_raw(&format!("/_roomkeeper/v1/jobs?access_token={secret}"), "");
    daemon.get_raw(
        &format!("/_roomkeeper/v1/jobs?a=b&access%5Ftoken={secret}&c"),
        "",
    );
    daemon.get_raw(&format!("/_roomkeeper/v1/jobs&access_token={secret}"), "");
    daemon.raw(&format!(
        "GET /nonsense\r\nAuthorization: Bearer {secret}\r\n\r\n"
    ));
    daemon.raw(&format!(
        "GET / HTTP/1.0\r\nAuthorization: {secret}\r\nbad header\r\n\r\n"
    ));
    daemon
        .admin()
        .post(PURGE, &json!({"purge_up_to_ts": secret}))
        .unwrap();
    daemon
        .admin()
        .post(
            PURGE,
            &json!({"access_token": secret, "purge_up_to_event_id": "$x"}),
        )
        .unwrap();
    let lines = LOG.lock();
    assert!(
        lines
            .iter()
            .any(|line| line.contains("/_roomkeeper/v1/jobs?access_token=<redacted>"))
    );
    assert!(
        lines
            .iter()
            .any(|line| line.contains("by @admin:example.org over tcp -> 404"))
    );
    for line in lines.iter() {
        assert!(
            !line.contains("do-not-log") && !line.contains(STATIC),
            "{line}"
        );
    }
}

/// The daemon's configuration, for another database: one roomkeeper at a time works on each (S-34).
fn on_a_database_of_its_own(daemon: &Daemon) -> (tempfile::TempDir, Config) {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("homeserver.db");
    schema::create(&database).unwrap();
    let mut config = daemon.keeper.config().clone();
    config.ledger = directory.path().join("ledger");
    config.database = database.into();
    (directory, config)
}

#[test]
fn a_door_without_an_address_or_with_an_impossible_token_does_not_open() {
    let daemon = Daemon::start();
    for change in [
        (|config: &mut Config| config.listen.clear()) as fn(&mut Config),
        |config| config.admin_token = Some(Secret::new("two words")),
        |config| config.admin_token = Some(Secret::new("")),
    ] {
        let (_directory, mut config) = on_a_database_of_its_own(&daemon);
        change(&mut config);
        let refused = http::serve(Keeper::open(config).unwrap()).err().unwrap();
        assert_eq!(refused.class().exit, 2, "{refused}");
    }
    let (_directory, mut config) = on_a_database_of_its_own(&daemon);
    config.listen = vec![Listen::Tcp(daemon.address)];
    let refused = http::serve(Keeper::open(config).unwrap())
        .err()
        .unwrap()
        .to_string();
    assert!(refused.contains(&daemon.address.to_string()), "{refused}");
}

/// Every line that anybody logs in this process.
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

thread_local! {
    /// What this thread does now is none of the daemon's doing.
    static IS_FILLING: Cell<bool> = const { Cell::new(false) };
}

fn listen_to_the_log() {
    struct Listener;
    impl log::Log for Listener {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            if !IS_FILLING.get() {
                LOG.lock().push(record.args().to_string());
            }
        }
        fn flush(&self) {}
    }
    if log::set_logger(&Listener).is_ok() {
        log::set_max_level(log::LevelFilter::Trace);
    }
}

also_on_postgres! {
    a_purge_is_started_watched_and_found_among_the_jobs,
    the_point_may_stand_in_the_path_encoded_or_not_and_be_a_time,
    a_purge_that_cannot_be_is_refused_in_synapses_words,
    a_failed_purge_says_why_with_its_code,
    over_tcp_a_token_decides,
    the_socket_file_needs_no_token_but_a_token_is_believed,
    with_delegated_authentication_only_the_static_token_works,
    accounts_that_have_run_out_are_refused_where_that_is_configured,
    who_may_not_ask_learns_nothing_from_the_order_of_checks,
    health_is_told_to_everybody_and_is_all_they_are_told,
    clients_for_admins_find_what_they_ask_when_they_log_in_and_look_around,
    no_token_and_no_body_is_ever_logged,
}
