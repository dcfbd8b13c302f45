//! A campaign of kills and of hostile requests, in one command that takes its size:
//!
//! ```text
//! ROOMKEEPER_KILLS=1000 ROOMKEEPER_REQUESTS=100000 cargo test --release --test campaign -- --nocapture
//! ```
//!
//! Processes that purge, delete, keep retention policies or reclaim are killed at random moments, some of them several times in
//! a row: after every kill the database is sound, and the next start comes to the end that it would have come to. Now and
//! then a backup is put back in between: nothing goes from that by itself once a loss was certain, and asked to go on it
//! comes to the same end. Requests are drawn at random for every endpoint: none is answered with 500, and none leaves the
//! database unsound.
//!
//! Without these variables a small sample runs. `ROOMKEEPER_SEED` repeats a run's choices.
#![cfg(feature = "daemon")]

#[path = "support/child.rs"]
#[allow(dead_code)]
mod child;
mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use child::telling;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use roomkeeper::config::{Listen, Secret};
use roomkeeper::jobs::ledger::{JobRecord, Ledger, State};
use roomkeeper::time::ManualClock;
use roomkeeper::{Config, Error, Keeper, Millis, RoomId, http};
use serde_json::{Value, json};
use support::rooms::Recipe;
use support::samples::deepest_cut;
use support::tables::{Tables, assert_same};
use support::work::{Ask, Site, seed};

/// A number that the command gives, or the few of every run.
fn size(name: &str, few: u64) -> u64 {
    std::env::var(name).map_or(few, |text| text.parse().expect("a number"))
}

/// What a process does while it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A history purge in batches of two events.
    Batches,
    /// A history purge in one transaction.
    Rewrite,
    /// A history purge beside a homeserver.
    Beside,
    /// The deletion of a room's rows, three events at a time.
    Deletion,
    /// A retention run over all rooms.
    Retention,
    /// The program's `reclaim`.
    Reclaim,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Batches,
        Self::Rewrite,
        Self::Beside,
        Self::Deletion,
        Self::Retention,
        Self::Reclaim,
    ];

    fn config(self, site: &Site) -> Config {
        let mut config = match self {
            Self::Batches | Self::Retention => site.in_batches_of(2),
            Self::Deletion => site.in_batches_of(3),
            Self::Rewrite => site.rewriting(),
            Self::Beside => site.beside(2, 60_000),
            Self::Reclaim => site.config(),
        };
        config.retention.enabled = true;
        config.retention.default_policy.max_lifetime = Some(LIFETIME);
        config
    }
}

/// How long messages stay by the policy of the samples.
const LIFETIME: Millis = Millis(2 * 60 * 60 * 1_000);

/// One sample, what is asked of it, and where that ends when nothing disturbs it.
struct Example {
    seed: u64,
    kind: Kind,
    site: Site,
    ask: Ask,
    now: Millis,
    end: Tables,
    took: Duration,
}

impl Example {
    fn draw(seed: u64, kind: Kind) -> Self {
        let recipe = Recipe {
            rooms: 2..4,
            events: 30..70,
            may_be_long: false,
        };
        let site = Site::random(seed, &recipe);
        let before = site.tables();
        let ask = deepest_cut(&before);
        if kind == Kind::Reclaim {
            site.purge(&ask).expect("purged");
        }
        let mut arrivals: Vec<i64> = (before.rows("events").iter())
            .filter_map(|event| event.int("received_ts"))
            .collect();
        arrivals.sort_unstable();
        let now = Millis(arrivals[arrivals.len() * 2 / 3]) + LIFETIME;
        let mut example = Self {
            seed,
            kind,
            end: before,
            site,
            ask,
            now,
            took: Duration::ZERO,
        };
        let undisturbed = example.copy();
        let begun = Instant::now();
        let status = example.start(&undisturbed).wait().expect("ends");
        example.took = begun.elapsed();
        assert!(status.success(), "{}: undisturbed", example.about());
        undisturbed.assert_sound(&example.about());
        example.end = undisturbed.tables();
        example
    }

    /// The sample once more, for somebody who lives at its time.
    fn copy(&self) -> Site {
        let mut site = self.site.copy();
        site.clock = std::sync::Arc::new(ManualClock::at(self.now));
        site
    }

    fn about(&self) -> String {
        format!("ROOMKEEPER_SEED={} ({:?})", self.seed, self.kind)
    }

    /// Starts the work, or takes up what the ledger has of it.
    fn start(&self, site: &Site) -> std::process::Child {
        let mut command = if self.kind == Kind::Reclaim {
            let mut command = Command::new(env!("CARGO_BIN_EXE_roomkeeper"));
            command.arg("--database").arg(&site.database);
            command.args(["--server-name", &site.server_name]);
            command.args(["--offline", "assume", "reclaim"]);
            command
        } else {
            telling(&[
                ("DATABASE", &site.database.display().to_string()),
                ("SERVER", &site.server_name),
                ("KIND", &format!("{:?}", self.kind)),
                ("ROOM", &self.ask.room),
                ("BELOW", &self.ask.below.to_string()),
                ("NOW", &self.now.0.to_string()),
            ])
        };
        (command.stdin(Stdio::null()).stdout(Stdio::null()))
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts")
    }

    /// Kills a process at a random moment; answers how it ended.
    fn disturb(&self, site: &Site, rng: &mut StdRng) -> ExitStatus {
        let mut child = self.start(site);
        std::thread::sleep(self.took.mul_f64(rng.random_range(0.0..1.0)));
        child.kill().expect("killed");
        child.wait().expect("gone")
    }

    /// Puts the database back as it was, beside the ledger as it is, and starts a daemon; answers whether that waits for a
    /// word, and then has done nothing.
    fn put_back(&self, site: &Site) -> bool {
        for suffix in ["", "-wal", "-shm"] {
            let with = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
            let _ = std::fs::remove_file(with(&site.database));
            if with(&self.site.database).exists() {
                std::fs::copy(with(&self.site.database), with(&site.database)).expect("copied");
            }
        }
        let mut config = self.kind.config(site);
        config.resume = true;
        let keeper = Keeper::open(config).expect("opens");
        let until = Instant::now() + Duration::from_secs(60);
        let is_settled = |job: &JobRecord| job.state.is_ended() || job.state == State::Waiting;
        let waits = loop {
            let jobs = keeper.jobs().expect("listed");
            if jobs.iter().all(is_settled) {
                break jobs.iter().any(|job| job.state == State::Waiting);
            }
            assert!(Instant::now() < until, "{}: {jobs:#?}", self.about());
            std::thread::sleep(Duration::from_millis(5));
        };
        keeper.stop();
        if waits {
            let locks = ["worker_read_write_locks", "worker_read_write_locks_mode"];
            let but_locks = |mut tables: Tables| {
                tables.0.retain(|name, _| !locks.contains(&name.as_str()));
                tables
            };
            let backup = but_locks(self.site.tables());
            assert_same(&backup, &but_locks(site.tables()), &self.about());
        }
        waits
    }

    fn recover(&self, site: &Site) {
        let about = self.about();
        let status = self.start(site).wait().expect("ends");
        assert!(status.success(), "{about}: it cannot go on");
        assert_same(&self.end, &site.tables(), &about);
        site.assert_sound(&about);
        let ledger = Ledger::open(&site.config().ledger).expect("opens");
        assert!(ledger.unended().expect("read").is_empty(), "{about}");
    }
}

/// Not a test: where the processes that are killed do their work.
#[test]
fn a_child_does_as_it_is_told() {
    let told = |name: &str| std::env::var(format!("ROOMKEEPER_CHILD_{name}")).ok();
    let Some(database) = told("DATABASE") else {
        return;
    };
    let told = |name: &str| told(name).expect("told");
    let mut site = Site::at(Path::new(&database), &told("SERVER"));
    let number = |name: &str| told(name).parse::<i64>().expect("a number");
    site.clock = std::sync::Arc::new(ManualClock::at(Millis(number("NOW"))));
    let kind = (Kind::ALL.into_iter()).find(|kind| format!("{kind:?}") == told("KIND"));
    let kind = kind.expect("a kind");
    let ask = Ask::all_of(&told("ROOM"), number("BELOW"));
    let work = || -> Result<(), Error> {
        let keeper = Keeper::open(kind.config(&site))?;
        let room = RoomId::new(&*ask.room);
        let resumed = keeper.resume()?;
        let jobs = match kind {
            _ if !resumed.is_empty() => resumed,
            Kind::Deletion => {
                keeper.purge_room(&room, true)?;
                Vec::new()
            }
            Kind::Retention => vec![keeper.purge_history_for_rooms_in_range(None, None)?],
            _ => vec![keeper.purge_history(&room, ask.point(), ask.options())?],
        };
        let ended = jobs.iter().try_for_each(|id| keeper.wait(id).map(drop));
        keeper.stop();
        ended
    };
    let outcome = work();
    if let Err(e) = &outcome {
        eprintln!("{e}");
    }
    std::process::exit(i32::from(outcome.is_err()));
}

#[test]
fn a_process_that_is_killed_at_any_moment_of_any_job_goes_on_to_the_same_end() {
    let wanted = size("ROOMKEEPER_KILLS", 12);
    let seed = seed();
    println!("ROOMKEEPER_SEED={seed}, {wanted} kills");
    let mut hits: BTreeMap<Kind, u64> = BTreeMap::new();
    let (mut tried, mut backups, mut waited) = (0, 0, 0);
    for round in 0.. {
        let met: u64 = hits.values().sum();
        if met >= wanted {
            break;
        }
        assert!(
            tried <= wanted * 10 + 100,
            "hardly a kill met a living process"
        );
        let seed = seed.wrapping_add(round);
        let kind = Kind::ALL[usize::try_from(round).expect("small") % Kind::ALL.len()];
        let example = Example::draw(seed, kind);
        let mut rng = StdRng::seed_from_u64(seed);
        // A sample serves for several kills: drawing it costs more than they do.
        for _ in 0..(wanted / 12).clamp(2, 10) {
            let site = example.copy();
            for _ in 0..rng.random_range(1..4) {
                tried += 1;
                let status = example.disturb(&site, &mut rng);
                *hits.entry(kind).or_default() += u64::from(status.signal() == Some(9));
                site.assert_sound(&example.about());
            }
            if rng.random_ratio(1, 4) {
                backups += 1;
                waited += u64::from(example.put_back(&site));
                site.assert_sound(&example.about());
            }
            example.recover(&site);
        }
    }
    println!("kills that met a living process: {hits:?}");
    println!("backups put back: {backups}; {waited} times somebody had to say that it goes on");
}

/// Method and path of what is asked; `{}` stands for a drawn parameter.
const PATHS: &[(&str, &str)] = &[
    ("POST", "/_synapse/admin/v1/purge_history/{}"),
    ("POST", "/_synapse/admin/v1/purge_history/{}/{}"),
    ("GET", "/_synapse/admin/v1/purge_history_status/{}"),
    ("GET", "/_synapse/admin/v1/rooms/{}/messages"),
    ("GET", "/_matrix/client/v3/rooms/{}/messages"),
    ("GET", "/_matrix/client/r0/rooms/{}/messages"),
    ("DELETE", "/_synapse/admin/v1/rooms/{}"),
    ("DELETE", "/_synapse/admin/v2/rooms/{}"),
    ("GET", "/_synapse/admin/v2/rooms/{}/delete_status"),
    ("GET", "/_synapse/admin/v2/rooms/delete_status/{}"),
    ("GET", "/_synapse/admin/v1/rooms/{}/block"),
    ("PUT", "/_synapse/admin/v1/rooms/{}/block"),
    ("GET", "/_synapse/admin/v1/rooms"),
    ("GET", "/_synapse/admin/v1/rooms/{}"),
    ("GET", "/_synapse/admin/v1/rooms/{}/members"),
    ("GET", "/_synapse/admin/v1/server_version"),
    ("POST", "/_roomkeeper/v1/plan"),
    ("POST", "/_roomkeeper/v1/retention"),
    ("GET", "/_roomkeeper/v1/jobs"),
    ("GET", "/_roomkeeper/v1/jobs/{}"),
    ("POST", "/_roomkeeper/v1/jobs/{}/cancel"),
    ("POST", "/_roomkeeper/v1/jobs/{}/pause"),
    ("POST", "/_roomkeeper/v1/jobs/{}/continue"),
    ("GET", "/_roomkeeper/v1/rooms"),
    ("GET", "/_roomkeeper/v1/health"),
    ("GET", "/{}"),
];

/// Members of bodies and of queries, every one that an endpoint looks at among them.
const NAMES: &[&str] = &[
    "dir",
    "from",
    "to",
    "limit",
    "filter",
    "raw",
    "access_token",
    "order_by",
    "search_term",
    "public_rooms",
    "empty_rooms",
    "sort",
    "delete_local_events",
    "purge_up_to_event_id",
    "purge_up_to_ts",
    "purge_up_to_token",
    "room_id",
    "retention",
    "shortest",
    "longest",
    "job",
    "exact",
    "older_than",
    "before",
    "block",
    "purge",
    "force_purge",
    "new_room_user_id",
    "room_name",
    "message",
    "types",
    "not_types",
    "senders",
    "rooms",
    "contains_url",
    "lazy_load_members",
    "related_by_rel_types",
    "org.matrix.labels",
    "nothing",
];

struct Fuzzer {
    rng: StdRng,
    /// What the database knows: rooms, events, users.
    known: Vec<String>,
}

impl Fuzzer {
    fn word(&mut self) -> String {
        const ODD: &[&str] = &[
            "",
            "!",
            "!a",
            "!a:b",
            "$x",
            "#a:example.org",
            "@a:example.org",
            "t5-3",
            "t-1--1",
            "s0",
            "m5~1.7~2.9",
            "END",
            "t9223372036854775807-9223372036854775807",
            "s99999999999999999999",
            "b",
            "f",
            "true",
            "null",
            "-1",
            "0",
            "1",
            "10",
            "1000",
            "9223372036854775807",
            "18446744073709551616",
            "1e400",
            "0.5",
            "90",
            "90d",
            "-5d",
            "1700000000",
            "{}",
            "[]",
            "{",
            "\"",
            "*",
            "m.*",
            "%",
            "_",
            "\u{0}",
            "\u{202e}",
            "é",
            "🦀",
            "'; DROP TABLE events; --",
            "..",
        ];
        if self.rng.random_ratio(1, 2) {
            return self.known.choose(&mut self.rng).expect("some").clone();
        }
        let word = ODD.choose(&mut self.rng).expect("some");
        word.repeat(*[1, 1, 1, 2, 40].choose(&mut self.rng).expect("some"))
    }

    fn value(&mut self, depth: u32) -> Value {
        match self.rng.random_range(0..if depth == 0 { 5 } else { 8 }) {
            0 => Value::Null,
            1 => self.rng.random::<bool>().into(),
            2 => self.rng.random::<i64>().into(),
            3 => json!(self.rng.random_range(-9.0e18..9.0e18)),
            4 | 5 => self.word().into(),
            6 => (0..self.rng.random_range(0..4))
                .map(|_| self.value(depth - 1))
                .collect(),
            _ => self.object(depth - 1),
        }
    }

    fn object(&mut self, depth: u32) -> Value {
        let mut members = serde_json::Map::new();
        for _ in 0..self.rng.random_range(0..5) {
            let name = *NAMES.choose(&mut self.rng).expect("some");
            members.insert(name.to_owned(), self.value(depth));
        }
        members.into()
    }

    /// A whole request, head and body.
    fn request(&mut self) -> Vec<u8> {
        let (method, path) = *PATHS.choose(&mut self.rng).expect("some");
        let method = match self.rng.random_range(0..20) {
            0 => *["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"]
                .choose(&mut self.rng)
                .expect("some"),
            _ => method,
        };
        let mut target = String::new();
        for (n, part) in path.split("{}").enumerate() {
            if n > 0 {
                target.push_str(&escaped(&self.word()));
            }
            target.push_str(part);
        }
        for n in 0..self.rng.random_range(0..4) {
            let name = NAMES.choose(&mut self.rng).expect("some");
            let value = match self.rng.random_ratio(1, 4) {
                true => self.value(3).to_string(),
                false => self.word(),
            };
            let sign = if n == 0 { '?' } else { '&' };
            let _ = write!(target, "{sign}{name}={}", escaped(&value));
        }
        let body = match self.rng.random_range(0..8) {
            0 => String::new(),
            1 => self.value(3).to_string(),
            2 => self.word(),
            _ => self.object(3).to_string(),
        };
        let token = match self.rng.random_range(0..12) {
            0 => String::new(),
            1 => "Authorization: Bearer nobody\r\n".to_owned(),
            _ => format!("Authorization: Bearer {TOKEN}\r\n"),
        };
        let length = body.len();
        format!(
            "{method} {target} HTTP/1.1\r\nHost: a\r\n{token}Content-Length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

const TOKEN: &str = "a-token-of-the-campaign";

fn escaped(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// Sends one request on a connection that is kept, and reads its answer.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("connects");
        let timeout = Some(Duration::from_secs(60));
        stream.set_read_timeout(timeout).expect("set");
        Self(BufReader::new(stream))
    }

    /// The status, the body, and whether the connection is kept.
    fn ask(&mut self, request: &[u8]) -> std::io::Result<(u16, Vec<u8>, bool)> {
        self.0.get_mut().write_all(request)?;
        let (mut status, mut length, mut is_kept) = (0, 0, true);
        for n in 0.. {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let line = line.trim_end().to_ascii_lowercase();
            if n == 0 {
                status = line.split(' ').nth(1).map_or(0, |s| s.parse().unwrap_or(0));
            }
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            is_kept &= line != "connection: close";
        }
        let is_bodiless = request.starts_with(b"HEAD ") || status == 204;
        let mut body = vec![0; if is_bodiless { 0 } else { length }];
        self.0.read_exact(&mut body)?;
        Ok((status, body, is_kept))
    }
}

#[test]
fn no_request_whatever_it_is_is_answered_with_500_or_leaves_the_database_unsound() {
    let wanted = size("ROOMKEEPER_REQUESTS", 1_500);
    let seed = seed();
    println!("ROOMKEEPER_SEED={seed}, {wanted} requests");
    let mut answers: BTreeMap<u16, u64> = BTreeMap::new();
    let mut asked = 0;
    for round in 0.. {
        if asked >= wanted {
            break;
        }
        // A server's rooms do not last long: now and then there are new ones.
        let amount = (wanted - asked).min(2_500);
        ask_at_random(seed.wrapping_add(round), amount, &mut answers);
        asked += amount;
    }
    println!("answers: {answers:?}");
    assert!(answers.contains_key(&200), "{answers:?}");
}

fn ask_at_random(seed: u64, amount: u64, answers: &mut BTreeMap<u16, u64>) {
    let recipe = Recipe {
        rooms: 6..9,
        ..Recipe::default()
    };
    let site = Site::random(seed, &recipe);
    let mut known: Vec<String> = Vec::new();
    for (table, column) in [("rooms", "room_id"), ("events", "event_id")] {
        let rows = site.tables();
        known.extend((rows.rows(table).iter()).map(|row| row.word(column).to_owned()));
    }
    let mut config = site.config();
    config.listen = vec![Listen::Tcp(([127, 0, 0, 1], 0).into())];
    config.admin_token = Some(Secret::new(TOKEN));
    let keeper = Keeper::open(config).expect("opens");
    let server = http::serve(keeper.clone()).expect("serves");
    let address = server.addresses()[0];
    let mut fuzzer = Fuzzer {
        rng: StdRng::seed_from_u64(seed),
        known,
    };
    let mut connection = Connection::to(address);
    for _ in 0..amount {
        let request = fuzzer.request();
        let shown = || format!("ROOMKEEPER_SEED={seed}: {}", request.escape_ascii());
        let (status, body, is_kept) = match connection.ask(&request) {
            Ok(answer) => answer,
            Err(e) => panic!("{}: {e}", shown()),
        };
        *answers.entry(status).or_default() += 1;
        assert_ne!(status, 500, "{}", shown());
        assert!((200..600).contains(&status), "{status}: {}", shown());
        if status >= 400 && !body.is_empty() {
            let error: Value = serde_json::from_slice(&body).expect("JSON");
            assert!(error["errcode"].is_string(), "{}: {error}", shown());
            assert!(error["error"].is_string(), "{}: {error}", shown());
        }
        if !is_kept {
            connection = Connection::to(address);
        }
    }
    drop(connection);
    server.stop();
    keeper.stop();
    site.assert_sound(&format!("ROOMKEEPER_SEED={seed}"));
}
