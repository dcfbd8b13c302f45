//! Access tokens that are with an authentication service: asked by introspection, from one that speaks the protocol, and
//! from those that do not.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::served::{LOG, Served, listen_to_the_log};
use parking_lot::Mutex;
use roomkeeper::UserId;
use roomkeeper::client::{Client, Reply};
use roomkeeper::config::{AuthenticationService, Secret};
use rusqlite::Connection;
use serde_json::{Value, json};

const STATIC: &str = "static-token-0123456789";
const SECRET: &str = "the-secret-of-both";
const API: &str = "urn:matrix:client:api:*";
const ADMIN: &str = "urn:matrix:client:api:* urn:synapse:admin:*";
const JOBS: &str = "/_roomkeeper/v1/jobs";

/// What the service does when it is asked.
#[derive(Clone)]
enum Says {
    /// By token, as the real one: those it does not know are not active. With the right secret only.
    Tokens(HashMap<&'static str, Value>),
    /// These bytes, and the end of the connection.
    Bytes(Vec<u8>),
    /// A head, and a byte of a body now and then.
    Drip,
    /// Nothing.
    Silence,
}

/// An authentication service, as far as it is asked.
struct Service {
    address: SocketAddr,
    says: Arc<Mutex<Says>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Service {
    fn start(says: Says) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let service = Self {
            address: listener.local_addr().expect("an address"),
            says: Arc::new(Mutex::new(says)),
            asked: Arc::default(),
        };
        let (says, asked) = (service.says.clone(), service.asked.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (says, asked) = (says.lock().clone(), asked.clone());
                thread::spawn(move || answer(stream.expect("a client"), says, &asked));
            }
        });
        service
    }

    fn says(&self, says: Says) {
        *self.says.lock() = says;
    }

    fn asked(&self) -> usize {
        self.asked.lock().len()
    }
}

/// Reads a request by its length.
fn request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("Content-Length: "));
            if body.len() >= length?.parse().ok()? {
                return Some(text);
            }
        }
        match stream.read(&mut chunk) {
            Ok(count @ 1..) => bytes.extend_from_slice(&chunk[..count]),
            _ => return None,
        }
    }
}

fn answer(mut stream: TcpStream, says: Says, asked: &Mutex<Vec<String>>) {
    let Some(request) = request(&mut stream) else {
        return;
    };
    asked.lock().push(request.clone());
    let json = |status: &str, body: &Value| {
        let body = body.to_string();
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    match says {
        Says::Tokens(tokens) => {
            let is_right = request.contains(&format!("\r\nAuthorization: Bearer {SECRET}\r\n"));
            let form = request.split("\r\n\r\n").nth(1).unwrap_or_default();
            let token = form
                .split('&')
                .find_map(|pair| pair.strip_prefix("token="))
                .unwrap_or_default();
            let said = tokens
                .get(token)
                .cloned()
                .unwrap_or_else(|| json!({"active": false}));
            let said = match is_right {
                true => json("200 OK", &said),
                false => json("401 Unauthorized", &json!({"error": "invalid_client"})),
            };
            let _ = stream.write_all(said.as_bytes());
        }
        Says::Bytes(bytes) => drop(stream.write_all(&bytes)),
        Says::Drip => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n");
            while stream.write_all(b" ").is_ok() {
                thread::sleep(Duration::from_millis(100));
            }
        }
        Says::Silence => drop(stream.read(&mut [0; 16])),
    }
}

/// A token that is good for this.
fn good(scope: &str, username: &str) -> Value {
    json!({"active": true, "scope": scope, "username": username, "token_type": "access_token", "exp": 1, "iat": 1, "sub": "01J"})
}

fn with(mut answer: Value, member: &str, value: Value) -> Value {
    answer[member] = value;
    answer
}

/// What the service knows in these tests.
fn tokens() -> Says {
    let of_device = |scope: &str| format!("{scope} urn:matrix:client:device:HERE");
    Says::Tokens(HashMap::from([
        ("mat_admin", good(ADMIN, "admin")),
        ("mat_device", good(&of_device(ADMIN), "admin")),
        (
            "mat_logged_out",
            with(good(ADMIN, "admin"), "device_id", "GONE".into()),
        ),
        (
            "mat_short",
            with(good(ADMIN, "admin"), "expires_in", 1.into()),
        ),
        (
            "mat_unstable",
            good(
                "urn:matrix:org.matrix.msc2967.client:api:* urn:synapse:admin:*",
                "admin",
            ),
        ),
        ("mat_user", good(API, "admin")),
        ("mat_only_admin", good("urn:synapse:admin:*", "admin")),
        (
            "mat_client",
            json!({"active": true, "scope": "urn:matrix:client:api:* urn:synapse:admin:*"}),
        ),
        ("mat_nobody", good(ADMIN, "nobody")),
        ("mat_gone", good(ADMIN, "gone")),
        ("mat_locked", good(ADMIN, "locked")),
        ("mat_elsewhere", good(ADMIN, "admin:elsewhere.org")),
    ]))
}

/// A database with people of whom the service alone says who is an admin.
fn people(database: &Path) {
    crate::sample::create(database, &["a"], 10);
    let conn = Connection::open(database).expect("opens");
    for (user, deactivated, locked) in
        [("admin", 0, false), ("gone", 1, false), ("locked", 0, true)]
    {
        conn.execute(
            "INSERT INTO users (name, admin, is_guest, deactivated, locked) VALUES ($1, 0, 0, $2, $3)",
            (format!("@{user}:example.org"), deactivated, locked),
        )
        .expect("written");
    }
    conn.execute(
        "INSERT INTO devices (user_id, device_id) VALUES ('@admin:example.org', 'HERE')",
        [],
    )
    .expect("written");
}

struct Daemon(Served);

impl Daemon {
    fn start(service: &Service, secret: &str) -> Self {
        listen_to_the_log(log::LevelFilter::Trace);
        let url = format!("http://{}/", service.address);
        let found = AuthenticationService::at(&url, Secret::new(secret)).expect("an address");
        Self(Served::start(STATIC, people, |config| {
            config.admin_user = UserId::from("@root:example.org");
            config.delegated_auth = true;
            config.authentication_service = Some(found);
        }))
    }

    fn ask(&self, token: &str, path: &str) -> Reply {
        Client::tcp(self.address.to_string(), token)
            .get(path)
            .expect("an answer")
    }

    fn jobs(&self, token: &str) -> (u16, Value) {
        let reply = self.ask(token, JOBS);
        (reply.status, reply.body)
    }

    fn sql(&self, sql: &str) {
        Connection::open(&self.database)
            .expect("opens")
            .execute_batch(sql)
            .expect("done");
    }
}

impl Deref for Daemon {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.0
    }
}

#[test]
fn the_service_is_asked_as_it_wants_to_be_and_an_admin_of_it_is_an_admin_here() {
    let service = Service::start(tokens());
    let daemon = Daemon::start(&service, SECRET);
    assert_eq!(daemon.jobs("mat_admin").0, 200);
    let asked = service.asked.lock()[0].clone();
    let (head, form) = asked.split_once("\r\n\r\n").expect("a head");
    assert!(
        head.starts_with("POST /oauth2/introspect HTTP/1.1\r\n"),
        "{head}"
    );
    for line in [
        &format!("Host: {}", service.address),
        "Content-Type: application/x-www-form-urlencoded",
        "Accept: application/json",
        "X-MAS-Supports-Device-Id: 1",
        &format!("Authorization: Bearer {SECRET}"),
    ] {
        assert_eq!(
            head.lines().filter(|found| *found == line).count(),
            1,
            "{line}: {head}"
        );
    }
    assert_eq!(form, "token=mat_admin&token_type_hint=access_token");

    for token in ["mat_device", "mat_unstable"] {
        assert_eq!(daemon.jobs(token).0, 200, "{token}");
    }
    let who = daemon
        .ask("mat_device", "/_matrix/client/v3/account/whoami")
        .body;
    let expected = json!({"user_id": "@admin:example.org", "is_guest": false, "device_id": "HERE"});
    assert_eq!(who, expected);

    let (status, body) = daemon.jobs("mat_user");
    assert_eq!((status, &body["errcode"]), (403, &json!("M_FORBIDDEN")));
    for token in [
        "mat_unknown",
        "mat_only_admin",
        "mat_client",
        "mat_nobody",
        "mat_gone",
        "mat_elsewhere",
        "mat_logged_out",
        "+&=% ü",
    ] {
        let encoded: String = form_urlencoded::byte_serialize(token.as_bytes()).collect();
        let reply = get_as_it_is(&daemon, &format!("{JOBS}?access_token={encoded}"));
        assert_eq!(reply.0, 401, "{token}: {}", reply.1);
        assert!(
            reply.1.contains(r#""errcode":"M_UNKNOWN_TOKEN""#)
                && reply.1.contains(r#""soft_logout":false"#)
        );
    }
    let form = service.asked.lock().last().cloned().expect("asked");
    assert!(
        form.contains("\r\n\r\ntoken=%2B%26%3D%25+%C3%BC&token_type_hint="),
        "{form}"
    );
    let (status, body) = daemon.jobs("mat_locked");
    assert_eq!((status, &body["errcode"]), (401, &json!("M_USER_LOCKED")));

    // A token of the database's is none here, and the static one is not asked about.
    daemon.sql("INSERT INTO access_tokens (id, user_id, token) VALUES (1, '@admin:example.org', 'syt_old')");
    assert_eq!(daemon.jobs("syt_old").0, 401);
    let before = service.asked();
    assert_eq!(daemon.jobs(STATIC).0, 200);
    assert_eq!(
        Client::unix(&daemon.socket)
            .get(JOBS)
            .expect("an answer")
            .status,
        200
    );
    assert_eq!(service.asked(), before);
}

/// Sends a target as it is, without a header for the token.
fn get_as_it_is(daemon: &Daemon, target: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(daemon.address).expect("connects");
    let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    (answer[9..12].parse().expect("a status"), answer)
}

#[test]
fn an_answer_is_remembered_for_as_long_as_it_may_and_what_the_database_knows_counts_at_once() {
    let service = Service::start(tokens());
    let daemon = Daemon::start(&service, SECRET);
    for _ in 0..3 {
        assert_eq!(daemon.jobs("mat_admin").0, 200);
        assert_eq!(daemon.jobs("mat_unknown").0, 401);
    }
    assert_eq!(service.asked(), 2, "once for each");
    assert_eq!(daemon.jobs("mat_short").0, 200);
    thread::sleep(Duration::from_millis(1_100));
    assert_eq!(daemon.jobs("mat_short").0, 200);
    assert_eq!(service.asked(), 4, "it lived for a second");

    assert_eq!(daemon.jobs("mat_device").0, 200);
    daemon.sql("DELETE FROM devices WHERE device_id = 'HERE'");
    assert_eq!(daemon.jobs("mat_device").0, 401, "it was logged out");
    daemon.sql("UPDATE users SET deactivated = 1 WHERE name = '@admin:example.org'");
    assert_eq!(daemon.jobs("mat_admin").0, 401, "the account was closed");
}

#[test]
fn what_is_no_answer_is_503_and_nothing_is_remembered_of_it() {
    let service = Service::start(tokens());
    let daemon = Daemon::start(&service, SECRET);
    let json = |status: &str, body: &str| {
        format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    };
    let huge = {
        let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for _ in 0..64 {
            bytes.extend_from_slice(b"10000\r\n");
            bytes.extend_from_slice(&[b' '; 0x10000]);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes
    };
    let deep = "[".repeat(50_000);
    let hostile: Vec<(&str, Says)> = vec![
        ("silence", Says::Silence),
        ("a drip", Says::Drip),
        ("nothing", Says::Bytes(Vec::new())),
        (
            "another protocol",
            Says::Bytes(b"SSH-2.0-x\r\n\r\n".to_vec()),
        ),
        ("no JSON", Says::Bytes(json("200 OK", "<html>"))),
        ("JSON without end", Says::Bytes(json("200 OK", &deep))),
        ("another JSON", Says::Bytes(json("200 OK", r#"["active"]"#))),
        (
            "no bool",
            Says::Bytes(json("200 OK", r#"{"active": "true"}"#)),
        ),
        (
            "a list of scopes",
            Says::Bytes(json(
                "200 OK",
                r#"{"active": true, "scope": ["urn:synapse:admin:*"]}"#,
            )),
        ),
        (
            "an error",
            Says::Bytes(json("500 Internal Server Error", r#"{"active": true}"#)),
        ),
        (
            "another way",
            Says::Bytes(
                b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
                    .to_vec(),
            ),
        ),
        ("too much", Says::Bytes(huge)),
        (
            "less than it said",
            Says::Bytes(
                b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"active\": true}".to_vec(),
            ),
        ),
    ];
    for (n, (what, says)) in hostile.into_iter().enumerate() {
        service.says(says);
        let token = format!("mat_hostile_{n}");
        let begun = Instant::now();
        let (status, body) = daemon.jobs(&token);
        assert_eq!(status, 503, "{what}: {body}");
        assert_eq!(body["error"], "Unable to introspect the access token");
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "{what}: {:?}",
            begun.elapsed()
        );
        // It is left alone for a moment; the static token and the socket work on.
        let (before, at_once) = (service.asked(), Instant::now());
        assert_eq!(daemon.jobs(&token).0, 503);
        if at_once.elapsed() < Duration::from_secs(1) {
            assert_eq!(service.asked(), before, "{what}");
        }
        assert_eq!(daemon.jobs(STATIC).0, 200);
        thread::sleep(Duration::from_millis(2_050));
    }
    service.says(tokens());
    assert_eq!(daemon.jobs("mat_admin").0, 200, "it is there again");
    let wrong = Daemon::start(&service, "another-secret");
    assert_eq!(wrong.jobs("mat_admin").0, 503);
    assert!(
        LOG.lock()
            .contains("matrix_authentication_service.secret the one that it has")
    );

    let log = LOG.lock().clone();
    for secret in [
        "mat_hostile",
        "mat_admin",
        "mat_user",
        SECRET,
        "another-secret",
        STATIC,
        "syt_old",
    ] {
        assert!(!log.contains(secret), "{secret} was logged");
    }
    assert!(log.contains("by @admin:example.org over tcp -> 200"));
}

#[test]
fn a_service_that_hangs_holds_up_nobody_who_does_not_need_it() {
    let service = Service::start(Says::Silence);
    let daemon = Daemon::start(&service, SECRET);
    let address = daemon.address.to_string();
    let asking: Vec<_> = (0..24)
        .map(|n| {
            let client = Client::tcp(address.clone(), format!("mat_{n}"));
            thread::spawn(move || client.get(JOBS).map(|reply| reply.status))
        })
        .collect();
    thread::sleep(Duration::from_millis(300));
    for _ in 0..5 {
        let begun = Instant::now();
        assert_eq!(daemon.jobs(STATIC).0, 200);
        let socket = Client::unix(&daemon.socket);
        assert_eq!(socket.get(JOBS).expect("an answer").status, 200);
        assert!(
            begun.elapsed() < Duration::from_secs(9),
            "{:?}",
            begun.elapsed()
        );
    }
    for asked in asking {
        let status = asked.join().expect("no panic").expect("an answer");
        assert!([503, 429].contains(&status), "{status}");
    }
}
