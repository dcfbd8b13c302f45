//! `/metrics`: who may read it, that the ecosystem's parser does, that everything is described, that a purge is told, and
//! that the dashboard and the alerts under `etc/` name what there is.
//!
//! `tests/api/metrics.py` parses it with `prometheus_client`, the library of the ecosystem; ROOMKEEPER_METRICS_PYTHON names
//! a Python that has it. Where there is none this suite says so, and fails in CI.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use crate::support::served::Served;
use roomkeeper::config::Secret;
use roomkeeper::{PurgeOptions, PurgePoint, RoomId};

const TOKEN: &str = "the-token-of-the-scraper";
/// What reads what is measured, and nothing else.
const SCRAPER: &str = "reads-and-nothing-else";
const DASHBOARD: &str = include_str!("../../etc/grafana-dashboard.json");
const ALERTS: &str = include_str!("../../etc/prometheus-alerts.yaml");

struct Daemon(Served);

impl Daemon {
    fn start() -> Self {
        Self(Served::start(
            TOKEN,
            |database| crate::sample::create(database, &["a"], 400),
            |config| {
                config.check_clock = false;
                config.retention.enabled = true;
                config.retention_jobs = true;
                config.metrics_token = Some(Secret::new(SCRAPER));
            },
        ))
    }

    fn ask(
        &self,
        stream: &mut (impl Read + Write),
        path: &str,
        token: Option<&str>,
    ) -> (u16, String, String) {
        let token = token.map_or(String::new(), |token| {
            format!("Authorization: Bearer {token}\r\n")
        });
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{token}\r\n");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head[9..12].parse().expect("a status");
        (status, head.to_owned(), body.to_owned())
    }

    fn over_tcp(&self, path: &str, token: Option<&str>) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.address).expect("connects");
        self.ask(&mut stream, path, token)
    }

    fn scrape(&self) -> Scraped {
        let (status, head, body) = self.over_tcp("/metrics", Some(TOKEN));
        assert_eq!(status, 200, "{body}");
        assert!(
            head.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8"),
            "{head}"
        );
        Scraped::of(&body)
    }
}

#[test]
fn a_token_of_its_own_reads_what_is_measured_and_nothing_else() {
    let daemon = Daemon::start();
    let (status, _, body) = daemon.over_tcp("/metrics", Some(SCRAPER));
    assert_eq!(status, 200, "{body}");
    for path in [
        "/_roomkeeper/v1/jobs",
        "/_roomkeeper/v1/rooms",
        "/_synapse/admin/v1/rooms",
        "/_synapse/admin/v1/rooms/!a:example.org/messages",
        "/_matrix/client/v3/account/whoami",
    ] {
        let (status, _, body) = daemon.over_tcp(path, Some(SCRAPER));
        assert_eq!(status, 403, "{path}: {body}");
        assert!(
            body.contains("reads /metrics and nothing else"),
            "{path}: {body}"
        );
    }
    for (token, expected) in [(Some("another"), 401), (None, 401)] {
        assert_eq!(daemon.over_tcp("/metrics", token).0, expected, "{token:?}");
    }
}

impl Deref for Daemon {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.0
    }
}

/// What a scrape says, read as the format has it.
struct Scraped {
    text: String,
    /// Families with their kinds and descriptions.
    families: BTreeMap<String, (String, String)>,
    /// Series, labels and all, with their values.
    series: BTreeMap<String, f64>,
}

impl Scraped {
    fn of(text: &str) -> Self {
        let mut scraped = Self {
            text: text.to_owned(),
            families: BTreeMap::new(),
            series: BTreeMap::new(),
        };
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').expect("a description");
                let family = scraped.families.entry(name.to_owned()).or_default();
                assert!(family.1.is_empty(), "{name} is described twice");
                family.1 = help.to_owned();
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a kind");
                scraped.families.entry(name.to_owned()).or_default().0 = kind.to_owned();
            } else if !line.is_empty() && !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').expect("a value");
                let value = value.parse().expect("a number");
                assert_eq!(
                    scraped.series.insert(series.to_owned(), value),
                    None,
                    "{series} twice"
                );
            }
        }
        scraped
    }

    fn value(&self, series: &str) -> f64 {
        let value = self.series.get(series).copied();
        value.unwrap_or_else(|| panic!("{series} is not there:\n{}", self.text))
    }

    fn or_zero(&self, series: &str) -> f64 {
        self.series.get(series).copied().unwrap_or(0.0)
    }

    /// Names that a query may use.
    fn names(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for (name, (kind, _)) in &self.families {
            match kind.as_str() {
                "histogram" => {
                    names.extend(["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")))
                }
                _ => drop(names.insert(name.clone())),
            }
        }
        names
    }
}

#[test]
fn only_an_admin_and_the_socket_read_it() {
    let daemon = Daemon::start();
    assert_eq!(daemon.over_tcp("/metrics", None).0, 401);
    assert_eq!(daemon.over_tcp("/metrics", Some("wrong")).0, 401);
    assert_eq!(daemon.over_tcp("/metrics", Some(TOKEN)).0, 200);
    let mut socket = UnixStream::connect(&daemon.socket).expect("connects");
    assert_eq!(daemon.ask(&mut socket, "/metrics", None).0, 200);
}

/// One test: the counters are the process's, and another's purges would be counted with ours.
#[test]
fn a_purge_and_its_failure_are_told_and_everything_is_described() {
    let daemon = Daemon::start();
    let before = daemon.scrape();
    let room = RoomId::from(crate::sample::room_id("a").as_str());
    let point = |depth| PurgePoint::BeforeToken(crate::sample::token(depth));
    let purge = |depth| {
        let options = PurgeOptions {
            delete_local_events: true,
            ..PurgeOptions::default()
        };
        let id = daemon
            .keeper
            .purge_history(&room, point(depth), options)
            .expect("accepted");
        daemon.keeper.wait(&id)
    };
    let done = purge(200).expect("purged");
    purge(1_000_000).expect_err("it would empty the room");
    daemon.over_tcp("/nowhere", Some(TOKEN));
    daemon.over_tcp(
        "/_synapse/admin/v1/rooms/%21x/messages?token=very-secret",
        Some("very-secret"),
    );
    let after = daemon.scrape();
    let grown = |series: &str| after.or_zero(series) - before.or_zero(series);

    let events = done.progress["events_deleted"].as_f64().expect("a number");
    assert!(events > 100.0);
    assert_eq!(
        grown(r#"roomkeeper_events_removed_total{kind="purge_history"}"#),
        events
    );
    assert!(grown(r#"roomkeeper_rows_removed_total{kind="purge_history"}"#) > events);
    let ended = |outcome: &str, code: &str| {
        format!(
            r#"roomkeeper_jobs_ended_total{{kind="purge_history",outcome="{outcome}",code="{code}"}}"#
        )
    };
    assert_eq!(grown(&ended("complete", "")), 1.0);
    assert_eq!(grown(&ended("failed", "would_empty_room")), 1.0);
    for state in ["complete", "failed"] {
        let jobs = format!(r#"roomkeeper_jobs{{kind="purge_history",state="{state}"}}"#);
        assert_eq!(after.value(&jobs), 1.0);
    }
    assert!(grown("roomkeeper_transaction_seconds_count") >= 1.0);
    assert!(grown("roomkeeper_transaction_seconds_sum") > 0.0);
    assert_eq!(
        after.value(r#"roomkeeper_transaction_seconds_bucket{le="+Inf"}"#),
        after.value("roomkeeper_transaction_seconds_count")
    );
    assert!(grown(r#"roomkeeper_wait_seconds_count{for="database"}"#) >= 1.0);
    assert!(grown(r#"roomkeeper_wait_seconds_count{for="room"}"#) >= 1.0);
    assert!(grown(r#"roomkeeper_http_requests_total{class="quick",status="404"}"#) >= 1.0);
    assert!(grown(r#"roomkeeper_http_requests_total{class="slow",status="401"}"#) >= 1.0);
    assert!(grown(r#"roomkeeper_http_errors_total{errcode="M_UNRECOGNIZED"}"#) >= 1.0);
    assert_eq!(after.value("roomkeeper_alive"), 1.0);
    assert_eq!(after.value("roomkeeper_database_up"), 1.0);
    let size = std::fs::metadata(&daemon.database).expect("there").len();
    assert_eq!(after.value("roomkeeper_database_bytes"), size as f64);
    assert!(after.value("roomkeeper_database_disk_free_bytes") > 0.0);
    assert!(after.value("roomkeeper_ledger_bytes") > 0.0);
    let lag: Vec<_> = after
        .series
        .iter()
        .filter(|(name, _)| name.starts_with("roomkeeper_retention_lag_seconds{"))
        .collect();
    assert_eq!(lag.len(), 1, "one for the one job: {lag:?}");
    assert!((0.0..600.0).contains(lag[0].1), "{lag:?}");

    for (name, (kind, help)) in &after.families {
        assert!(name.starts_with("roomkeeper_"), "{name}");
        assert!(
            ["counter", "gauge", "histogram"].contains(&kind.as_str()),
            "{name}: {kind}"
        );
        assert!(help.len() > 15, "{name} is not described: {help}");
    }
    let known = after.names();
    for series in after.series.keys() {
        let name = series.split('{').next().unwrap_or_default();
        assert!(known.contains(name), "{series} has no description");
    }
    assert_eq!(
        known,
        before.names(),
        "every family is there before there is anything to tell"
    );
    for word in ["very-secret", TOKEN, "!a:", "example.org"] {
        assert!(!after.text.contains(word), "{word} stands in the metrics");
    }
    the_ecosystem_parses(&after);
}

/// What `prometheus_client` finds in it is what we find.
fn the_ecosystem_parses(scraped: &Scraped) {
    let python = std::env::var("ROOMKEEPER_METRICS_PYTHON").unwrap_or_else(|_| "python3".into());
    let has_it = Command::new(&python)
        .args(["-c", "import prometheus_client"])
        .output();
    if !has_it.is_ok_and(|output| output.status.success()) {
        assert!(
            std::env::var_os("ROOMKEEPER_CI").is_none(),
            "no Python with prometheus_client: nobody else has parsed the metrics"
        );
        println!("TESTED IN PART: no Python with prometheus_client");
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/api/metrics.py");
    let mut child = Command::new(python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(scraped.text.as_bytes()).expect("sent");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    let parsed: BTreeMap<String, usize> = serde_json::from_str(&said).expect("JSON");
    assert_eq!(parsed["families"], scraped.families.len());
    assert_eq!(parsed["series"], scraped.series.len());
    assert_eq!(parsed["undescribed"], 0);
}

/// Every name of ours in a text.
fn named_in(text: &str) -> BTreeSet<String> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_of_name(c));
    words
        .filter(|word| word.starts_with("roomkeeper_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_dashboard_and_the_alerts_name_what_there_is() {
    let daemon = Daemon::start();
    let known = daemon.scrape().names();
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        assert!(
            panel["description"]
                .as_str()
                .is_some_and(|text| text.len() > 20),
            "{title} is not described"
        );
        let targets = panel["targets"].as_array().expect("targets");
        assert!(
            targets
                .iter()
                .all(|t| t["expr"].as_str().is_some_and(|e| !named_in(e).is_empty())),
            "{title}"
        );
    }
    let (shown, watched) = (named_in(DASHBOARD), named_in(ALERTS));
    assert!(
        shown.len() >= 15 && watched.len() >= 6,
        "{shown:?} {watched:?}"
    );
    for name in shown.union(&watched) {
        assert!(
            known.contains(name),
            "{name} is no metric; there are {known:?}"
        );
    }
    let forgotten: Vec<_> = known
        .iter()
        .filter(|name| !name.ends_with("_sum") && !shown.contains(*name))
        .collect();
    let plain = |name: &&&String| !name.ends_with("_bucket") && !name.ends_with("_count");
    let forgotten: Vec<_> = forgotten.iter().filter(plain).collect();
    assert!(
        forgotten.is_empty(),
        "the dashboard shows nothing of {forgotten:?}"
    );
}
