//! No statement of a purge reads a large table from end to end, or a whole room, whatever SQLite believes of the
//! database: with no statistics, with true ones, with wrong ones, and with every index that real servers have.
//!
//! The statements are not listed here: purges run, what they execute is heard in the log, and SQLite is asked how it
//! would go about each of them. A statement that is new is judged the first time a purge runs it.

mod sample;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use parking_lot::{Mutex, MutexGuard};
use roomkeeper::config::HomeserverPolicy;
#[cfg(feature = "events")]
use roomkeeper::config::{Secret, SigningKey};
#[cfg(feature = "events")]
use roomkeeper::deletion::Request;
use roomkeeper::ids::EventId;
use roomkeeper::messages::{Around, ContextRequest, HierarchyRequest};
use roomkeeper::store::read_limit::ReadLimit;
use roomkeeper::time::ManualClock;
use roomkeeper::{
    Config, Filter, Keeper, Millis, PageRequest, PurgeOptions, PurgePoint, Reader, RoomId, UserId,
    days,
};
use rusqlite::Connection;

/// Tables that grow with the server: a scan of one of them takes as long as the server is old.
const LARGE: &[&str] = &[
    "events",
    "event_json",
    "event_edges",
    "event_auth",
    "event_auth_chains",
    "event_to_state_groups",
    "event_relations",
    "event_push_actions",
    "event_labels",
    "redactions",
    "rejections",
    "state_events",
    "state_groups",
    "state_groups_state",
    "state_group_edges",
    "current_state_events",
    "room_memberships",
    "threads",
    "event_search",
    "event_search_content",
    "event_search_docsize",
];

/// What may be walked all the same: a piece of the statement, the table, and why.
const ALLOWED: &[(&str, &str, &str)] = &[
    (
        "e.contains_url = true AND e.outlier = false",
        "events",
        "the room's events with media are what is asked for, and an index has those alone",
    ),
    (
        "FROM room\n      LEFT JOIN current_state_events c",
        "current_state_events",
        "once a plan of retention",
    ),
    (
        "NOT EXISTS (SELECT 1 FROM current_state_events c WHERE c.room_id = room.room_id)",
        "current_state_events",
        "stops at the first",
    ),
    (
        "NOT EXISTS (SELECT 1 FROM current_state_events c WHERE c.room_id = room.room_id)",
        "events",
        "once a plan of retention: from room to room, and the events of those that everybody has left",
    ),
    (
        "SELECT EXISTS (SELECT 1 FROM current_state_events WHERE room_id = $1)",
        "current_state_events",
        "stops at the first",
    ),
    (
        "FROM state_events s\n     CROSS JOIN rk_cuts c",
        "state_events",
        "once a plan of retention",
    ),
    (
        "FROM redactions r\n     CROSS JOIN events e\n     CROSS JOIN rk_cuts c",
        "redactions",
        "once a plan of retention",
    ),
    (
        "AND +e.stream_ordering < c.live_end",
        "events",
        "once a plan of retention: what lies above each room's cut, in an index",
    ),
    (
        "INSERT OR IGNORE INTO rk_search",
        "event_search_content",
        "once a job, and then only what is newer than the last look: the index has no key on event ids",
    ),
    (
        "FROM event_search_content c\n     CROSS JOIN rk_selected s",
        "event_search_content",
        "once a dry run",
    ),
    (
        "FROM (SELECT 1 FROM event_search_docsize LIMIT $1) AS n",
        "event_search_docsize",
        "no more rows than twice what goes: decides between two ways that both cost far more",
    ),
    (
        "FROM redactions r\n         CROSS JOIN rk_selected own",
        "redactions",
        "where the table is smaller than the selection",
    ),
    (
        "SELECT count(*) FROM events",
        "events",
        "once an offline job: decides whether it leaps",
    ),
    (
        "SELECT EXISTS (SELECT 1 FROM event_push_actions WHERE room_id = $1)",
        "event_push_actions",
        "stops at the first",
    ),
    (
        "INSERT INTO rk_selected (stream_ordering, event_id, to_delete)\n    SELECT stream_ordering, event_id, TRUE FROM events",
        "events",
        "the next events of a room that goes, along the index, and no further than the limit",
    ),
    (
        "SELECT max(topological_ordering) FROM events WHERE room_id = $1",
        "events",
        "looks at the last",
    ),
    (
        "SELECT max(stream_ordering) FROM events WHERE room_id = $1",
        "events",
        "looks at the last",
    ),
    (
        "WHERE room_id = $1 AND type = 'm.room.message' AND sender = $2",
        "events",
        "once a shutdown, and of the new room alone, in which nobody has spoken yet",
    ),
    (
        "UPDATE room_memberships SET forgotten = 1\n         WHERE room_id = $1",
        "room_memberships",
        "once for two hundred people who leave a room: among its members, or each one's memberships",
    ),
    (
        "FROM current_state_events c\n      LEFT JOIN room_memberships m ON m.event_id = c.event_id\n     WHERE c.room_id = $1",
        "current_state_events",
        "all of a room's state is what is asked for",
    ),
    (
        "FROM current_state_events\n     WHERE room_id = $3",
        "current_state_events",
        "once a shutdown: the end of the state is told, entry by entry",
    ),
    (
        "DELETE FROM current_state_events WHERE room_id = $1",
        "current_state_events",
        "once a shutdown: all of it goes",
    ),
    (
        "FROM room_memberships WHERE user_id = $1 AND room_id = $2 AND forgotten = 0",
        "room_memberships",
        "once a page of who has left, and only if statistics lie: servers have an index on both columns",
    ),
    (
        "AND +e.stream_ordering >= $2",
        "events",
        "stops at the first that arrived late enough; for who has left and comes with a live token",
    ),
];

/// How a statement begins that walks from the side of a table which [`present`](roomkeeper::store::event_rows) has
/// found to be smaller than the selection.
const FROM_SMALLER: &str = " t CROSS JOIN rk_selected s";

/// What real databases have besides ours: indexes of schemas 72 to 94, made by deltas and background updates, and
/// tables that come and go with the schema.
const AS_ON_REAL_SERVERS: &str = "
    CREATE INDEX events_jump_to_date_idx ON events (room_id, origin_server_ts) WHERE NOT outlier;
    CREATE INDEX received_ts_idx ON events (received_ts) WHERE type = 'm.room.member';
    CREATE INDEX event_contains_url_index_72 ON events (room_id, topological_ordering, stream_ordering);
    CREATE INDEX event_push_actions_highlights_index
        ON event_push_actions (user_id, room_id, topological_ordering, stream_ordering) WHERE highlight = 1;
    CREATE INDEX event_push_actions_highlights_index_72
        ON event_push_actions (user_id, room_id, topological_ordering, stream_ordering);
    CREATE INDEX event_push_actions_stream_highlight_index
        ON event_push_actions (highlight, stream_ordering) WHERE highlight = 0;
    CREATE INDEX event_push_actions_u_highlight ON event_push_actions (user_id, stream_ordering);
    CREATE INDEX event_push_actions_thread_id_null ON event_push_actions (thread_id) WHERE thread_id IS NULL;
    CREATE INDEX event_push_summary_index_room_id ON event_push_summary (room_id);
    CREATE INDEX event_push_summary_thread_id_null ON event_push_summary (thread_id) WHERE thread_id IS NULL;
    CREATE INDEX event_expiry_expiry_ts_idx ON event_expiry (expiry_ts);
    CREATE INDEX partial_state_events_room_id_idx ON partial_state_events (room_id);
    CREATE TABLE event_txn_id (
        event_id TEXT NOT NULL REFERENCES events (event_id) ON DELETE CASCADE, room_id TEXT NOT NULL, user_id TEXT NOT NULL,
        token_id BIGINT NOT NULL, txn_id TEXT NOT NULL, inserted_ts BIGINT NOT NULL);
    CREATE UNIQUE INDEX event_txn_id_event_id ON event_txn_id (event_id);
    CREATE TABLE event_txn_id_device_id (
        event_id TEXT NOT NULL REFERENCES events (event_id) ON DELETE CASCADE, room_id TEXT NOT NULL, user_id TEXT NOT NULL,
        device_id TEXT NOT NULL, txn_id TEXT NOT NULL, inserted_ts BIGINT NOT NULL);
    CREATE UNIQUE INDEX event_txn_id_device_id_event_id ON event_txn_id_device_id (event_id);
    CREATE TABLE un_partial_stated_event_stream (
        stream_id BIGINT PRIMARY KEY NOT NULL, instance_name TEXT NOT NULL,
        event_id TEXT NOT NULL REFERENCES events (event_id) ON DELETE CASCADE, rejection_status_changed BOOLEAN NOT NULL);
    CREATE UNIQUE INDEX un_partial_stated_event_stream_room_id ON un_partial_stated_event_stream (event_id);
    CREATE TABLE thread_subscriptions (
        stream_id INTEGER PRIMARY KEY, instance_name TEXT NOT NULL, room_id TEXT NOT NULL,
        event_id TEXT NOT NULL REFERENCES events (event_id) ON DELETE CASCADE, user_id TEXT NOT NULL, subscribed BOOLEAN NOT NULL);
    CREATE INDEX thread_subscriptions_by_event ON thread_subscriptions (event_id);
    INSERT INTO event_txn_id SELECT event_id, room_id, sender, 1, event_id, 1 FROM events WHERE stream_ordering % 40 = 1;
    INSERT INTO event_txn_id_device_id SELECT event_id, room_id, sender, 'D', event_id, 1 FROM events WHERE stream_ordering % 40 = 1;
    INSERT INTO un_partial_stated_event_stream SELECT stream_ordering, 'master', event_id, FALSE FROM events WHERE stream_ordering % 40 = 1;
    INSERT INTO thread_subscriptions SELECT stream_ordering, 'master', room_id, event_id, sender, TRUE FROM events WHERE stream_ordering % 40 = 1;";

/// What the process has said of its statements. One purge at a time is listened to.
static HEARD: Mutex<Vec<Said>> = Mutex::new(Vec::new());
static LISTENING: Mutex<()> = Mutex::new(());

#[derive(Clone)]
enum Said {
    Statement(String),
    Batch(String),
}

struct Ear;

impl log::Log for Ear {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target() == "roomkeeper::store::db"
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = record.args().to_string();
        let said = if let Some(batch) = line.strip_prefix("a batch: ") {
            Said::Batch(batch.to_owned())
        } else if let Some((_, sql)) = line.split_once(" ms: ") {
            Said::Statement(sql.to_owned())
        } else {
            return;
        };
        HEARD.lock().push(said);
    }

    fn flush(&self) {}
}

/// What there is to judge: every statement once, and of the batches those that it needs. One that comes again before
/// the next new statement does nothing that its repetition does not.
fn essence(heard: Vec<Said>) -> Vec<Said> {
    let (mut seen, mut begun) = (BTreeSet::new(), BTreeSet::new());
    // What was done for the first time stays where it is: it may make what the next needs.
    let mut kept: Vec<(Said, bool)> = heard
        .into_iter()
        .filter_map(|said| match &said {
            Said::Batch(sql) => {
                let is_first = begun.insert(sql.clone());
                Some((said, is_first))
            }
            Said::Statement(sql) => seen.insert(sql.clone()).then_some((said, true)),
        })
        .collect();
    kept.reverse();
    let mut later = BTreeSet::new();
    kept.retain(|(said, is_first)| match said {
        Said::Batch(sql) => later.insert(sql.clone()) || *is_first,
        Said::Statement(_) => {
            later.clear();
            true
        }
    });
    kept.reverse();
    kept.into_iter().map(|(said, _)| said).collect()
}

/// Everything that `work` had SQLite do, in order.
fn listen(work: impl FnOnce()) -> Vec<Said> {
    static START: Once = Once::new();
    START.call_once(|| {
        log::set_logger(&Ear).expect("no other logger");
        log::set_max_level(log::LevelFilter::Trace);
    });
    let _one_at_a_time: MutexGuard<'_, ()> = LISTENING.lock();
    HEARD.lock().clear();
    work();
    std::mem::take(&mut *HEARD.lock())
}

/// A database with two rooms, and a directory to copy it in.
struct Server {
    directory: tempfile::TempDir,
    database: PathBuf,
    events: i64,
}

/// Events in each room: sixty batches of a hundred.
const EVENTS: i64 = 6_000;

/// Events of a room that goes in one rewrite, where its first 20,000 go.
const EVENTS_TO_REWRITE: i64 = 22_000;

impl Server {
    fn new(rooms: &[&str], events: i64, more: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let database = directory.path().join("homeserver.db");
        sample::create(&database, rooms, events);
        let conn = Connection::open(&database).expect("opens");
        conn.execute_batch(more).expect("what is more");
        Self {
            directory,
            database,
            events,
        }
    }

    /// What a purge of room a executes, a dry run before it included, on a copy of this database.
    fn purge(&self, name: &str, delete_local_events: bool, change: fn(&mut Config)) -> Vec<Said> {
        let copy = self.directory.path().join(name);
        std::fs::copy(&self.database, &copy).expect("copies");
        let mut config = Config::for_sqlite(copy, sample::SERVER_NAME);
        config.homeserver = HomeserverPolicy::AssumeStopped;
        config.retention.default_policy.max_lifetime = Some(roomkeeper::days(1));
        config.retention.allowed_lifetime_min = Some(roomkeeper::days(1));
        change(&mut config);
        let room = RoomId::new(sample::room_id("a"));
        let options = PurgeOptions {
            delete_local_events,
            keep_received_after: None,
            ..PurgeOptions::default()
        };
        listen(|| {
            let keeper = Keeper::open(config).expect("opens");
            for point in [
                PurgePoint::BeforeTs(Millis(sample::FIRST_TS + (self.events - 100) * 1_000)),
                PurgePoint::BeforeEvent(sample::event_id("a", self.events).as_str().into()),
            ] {
                keeper.plan_purge(&room, &point, options).expect("plans");
            }
            let point = PurgePoint::BeforeToken(sample::token(self.events - 300));
            let job = keeper.purge_history(&room, point, options).expect("begins");
            keeper.wait(&job).expect("purges");
            let everything = Default::default();
            keeper.plan_retention(everything, true).expect("plans");
        })
    }

    /// What a batch of a deletion of room a executes.
    fn deletion(&self) -> Vec<Said> {
        let copy = self.directory.path().join("deletion");
        std::fs::copy(&self.database, &copy).expect("copies");
        let mut config = Config::for_sqlite(copy, sample::SERVER_NAME);
        config.homeserver = HomeserverPolicy::AssumeRunning;
        config.batch.events = 500;
        config.batch.pause = std::time::Duration::ZERO;
        let room = RoomId::new(sample::room_id("a"));
        let mut heard = listen(|| {
            let keeper = Keeper::open(config).expect("opens");
            keeper.purge_room(&room, true).expect("deletes");
        });
        heard.retain(|said| match said {
            Said::Batch(_) => true,
            Said::Statement(sql) => sql.contains("rk_selected"),
        });
        essence(heard)
    }

    /// What a run of retention executes that purges most of room a, in batches.
    fn retention(&self) -> Vec<Said> {
        let copy = self.directory.path().join("retention");
        std::fs::copy(&self.database, &copy).expect("copies");
        let mut config = Config::for_sqlite(copy, sample::SERVER_NAME);
        config.homeserver = HomeserverPolicy::AssumeStopped;
        config.batch.events_offline = 1_000;
        config.retention.default_policy.max_lifetime = Some(days(1));
        config.retention.allowed_lifetime_min = Some(days(1));
        let a_day_after = |event: i64| Millis(sample::FIRST_TS + event * 1_000) + days(1);
        let clock = Arc::new(ManualClock::at(a_day_after(15)));
        config.clock = clock.clone();
        let heard = listen(|| {
            let keeper = Keeper::open(config).expect("opens");
            let run = || {
                let id = keeper.purge_history_for_rooms_in_range(None, None);
                let run = keeper.wait(&id.expect("begins")).expect("purges");
                run.progress["events_deleted"].as_i64().unwrap_or(0)
            };
            // Few events, fewer than even the small tables have rows; then most of them.
            let few = run();
            assert!((1..40).contains(&few), "{few}");
            clock.advance(Millis((self.events - 500) * 1_000));
            assert!(run() > self.events / 2);
        });
        essence(heard)
    }

    /// What a shutdown of room a into a new room executes: everything that writes events.
    #[cfg(feature = "events")]
    fn shutdown(&self) -> Vec<Said> {
        let copy = self.directory.path().join("shutdown");
        std::fs::copy(&self.database, &copy).expect("copies");
        let mut config = Config::for_sqlite(copy, sample::SERVER_NAME);
        config.homeserver = HomeserverPolicy::AssumeStopped;
        config.event_signing.signing_key = Some(SigningKey::Text(Secret::new(
            "ed25519 a_test AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
        )));
        let room = RoomId::new(sample::room_id("a"));
        let request = Request {
            new_room_user_id: Some(UserId::from("@mod:example.org")),
            purge: false,
            ..Request::default()
        };
        let heard = listen(|| {
            let keeper = Keeper::open(config).expect("opens");
            let done = keeper.delete_room(&room, request).expect("shuts down");
            assert_eq!(done.kicked_users.len(), 1, "{done:?}");
            assert!(done.new_room_id.is_some(), "{done:?}");
        });
        essence(heard)
    }

    /// What pages of room a execute: of every part of it, for an admin and for a user, through filters of every kind.
    fn pages(&self) -> Vec<Said> {
        let mut config = Config::for_sqlite(&self.database, sample::SERVER_NAME);
        config.homeserver = HomeserverPolicy::AssumeStopped;
        config.retention.enabled = true;
        let (room, user) = (RoomId::new(sample::room_id("a")), "@reader:example.org");
        let conn = Connection::open(&self.database).expect("opens");
        conn.execute(
            "INSERT INTO local_current_membership (room_id, user_id, event_id, membership) VALUES (?1, ?2, ?3, 'leave')",
            [room.as_str(), user, &sample::event_id("a", self.events - 10)],
        )
        .expect("a membership");
        conn.execute(
            "INSERT INTO room_memberships (event_id, user_id, sender, room_id, membership, forgotten)
             VALUES (?3, ?2, ?2, ?1, 'leave', 0)",
            [room.as_str(), user, &sample::event_id("a", self.events - 10)],
        )
        .expect("a membership");
        drop(conn);
        let filters = [
            "{}",
            r#"{"types": ["m.room.message", "m.room.t*"], "not_types": ["m.x", "m.y*"], "lazy_load_members": true}"#,
            r#"{"senders": ["@a:b"], "not_senders": ["@c:d"], "contains_url": true}"#,
            r##"{"org.matrix.labels": ["#a", "#b"]}"##,
            r#"{"related_by_senders": ["@a:b"], "related_by_rel_types": ["m.thread"]}"#,
            r#"{"org.matrix.msc3874.rel_types": ["m.thread"], "org.matrix.msc3874.not_rel_types": ["m.x"]}"#,
        ];
        let heard = listen(|| {
            let keeper = Keeper::open(config).expect("opens");
            for reader in [Reader::Admin, Reader::user(&UserId::from(user))] {
                for way in [PageRequest::backwards(50), PageRequest::forwards(50)] {
                    for filter in filters {
                        let mut request = way.clone();
                        request.filter = Filter::parse(filter, true).expect("a filter");
                        let page = keeper.messages(&room, &reader, &request).expect("a page");
                        let from = [Some(page.start), page.end, "s100".parse().ok()];
                        for from in from.into_iter().flatten() {
                            keeper
                                .messages(&room, &reader, &request.clone().from(from))
                                .expect("a page");
                        }
                    }
                }
            }
            let limit = Arc::new(ReadLimit::default());
            for filter in filters {
                let request = ContextRequest {
                    event: EventId::new(sample::event_id("a", self.events / 2)),
                    limit: 20,
                    filter: Filter::parse(filter, true).expect("a filter"),
                    reader: UserId::from(user),
                };
                let around = keeper.context(&room, &request, &limit).expect("read");
                assert!(matches!(around, Around::Events(_)), "{around:?}");
            }
            keeper.media(&room, &limit).expect("read");
            let hierarchy = HierarchyRequest {
                root: room.clone(),
                max_depth: None,
                limit: 50,
                from: 0,
            };
            keeper.hierarchy(&hierarchy, &limit).expect("read");
        });
        essence(heard)
    }

    /// What purges in batches execute: offline, and beside a homeserver.
    fn purges(&self) -> Vec<Said> {
        let mut heard = self.purge("offline", true, |_| {});
        heard.extend(self.purge("beside", false, |config| {
            config.homeserver = HomeserverPolicy::AssumeRunning;
            config.batch.events = 100;
            config.batch.pause = std::time::Duration::ZERO;
        }));
        essence(heard)
    }
}

/// One step of a plan, as `EXPLAIN QUERY PLAN` words it.
#[derive(Debug)]
struct Step {
    does: String,
    /// Whether it is done once, and not once for every row of another.
    is_outermost: bool,
}

fn plan_of(conn: &Connection, sql: &str) -> Vec<Step> {
    roomkeeper::store::prefixes::add_function(conn).expect("the function of ours");
    let mut statement = conn
        .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
        .unwrap_or_else(|e| panic!("{e}: {sql}"));
    let rows = statement
        .raw_query()
        .mapped(|row| Ok((row.get(0)?, row.get(1)?, row.get(3)?)))
        .collect::<Result<Vec<(i64, i64, String)>, _>>();
    let mut steps: Vec<Step> = Vec::new();
    // Loops stand under their parent in the order of nesting; what is done for each row of another is correlated.
    let (mut begun, mut inner) = (BTreeSet::new(), BTreeSet::new());
    for (id, parent, does) in rows.expect("a plan") {
        let is_loop = does.starts_with("SCAN") || does.starts_with("SEARCH");
        let is_inner = inner.contains(&parent) || (is_loop && !begun.insert(parent));
        if is_inner || does.starts_with("CORRELATED") {
            inner.insert(id);
        }
        steps.push(Step {
            does,
            is_outermost: !is_inner,
        });
    }
    steps
}

/// What the names in a plan stand for: the tables of a statement by the aliases it gives them.
fn tables_by_alias(sql: &str) -> HashMap<&str, &str> {
    let words: Vec<&str> = sql
        .split(|c: char| !(c.is_alphanumeric() || c == '_'))
        .filter(|word| !word.is_empty())
        .collect();
    let mut tables = HashMap::new();
    for pair in words.windows(2) {
        let [table, alias] = pair else { continue };
        if LARGE.contains(table) {
            tables.insert(*table, *table);
            // A keyword is no alias; and none of ours is longer than this.
            if alias.chars().all(char::is_lowercase) {
                tables.insert(*alias, *table);
            }
        }
    }
    tables
}

/// The large table that a step reads from end to end, or a whole room of.
fn reads_all_of<'a>(step: &str, tables: &HashMap<&str, &'a str>) -> Option<&'a str> {
    let mut words = step.split(' ');
    let (how, name) = (words.next()?, words.next()?);
    let name = match how {
        // "BLOOM FILTER ON t": made of every row.
        "BLOOM" => words.next_back()?,
        _ => name,
    };
    let by = step.rsplit_once('(').map_or("", |(_, by)| by);
    let does = match how {
        // Full-text index 1 is a look-up by number.
        "SCAN" => !step.contains("VIRTUAL TABLE INDEX 1:"),
        "BLOOM" => true,
        "SEARCH" => {
            // An index made for this one statement, or rewritten through value by value.
            step.contains("AUTOMATIC") || step.contains("ANY(")
                // A whole room, or all of it from some depth on.
                || by == "room_id=?)"
                || by == "room_id=? AND topological_ordering>?)"
        }
        _ => false,
    };
    tables.get(name).copied().filter(|_| does)
}

/// Whether somebody has thought about it.
fn is_allowed(sql: &str, plan: &[Step], table: &str) -> bool {
    // Keys that hold events are looked for in the smaller of the two: the table, or what is selected.
    let measures = format!("SELECT EXISTS (SELECT 1 FROM {table} LIMIT 1 OFFSET ");
    let looks = format!("SELECT EXISTS (SELECT 1 FROM {table} c CROSS JOIN rk_selected s WHERE ");
    if sql.starts_with(&measures) || sql.starts_with(&looks) {
        return true;
    }
    // Walking a room along an index and stopping at the first row that will do.
    if sql.trim_end().ends_with("DESC LIMIT 1")
        && !plan.iter().any(|s| s.does.contains("TEMP B-TREE"))
    {
        return true;
    }
    let from_smaller = format!("{table}{FROM_SMALLER}");
    sql.contains(&from_smaller)
        || ALLOWED
            .iter()
            .any(|(piece, of, _)| *of == table && sql.contains(piece))
}

/// Replays what was heard on a database that SQLite may think of as it likes: what makes temporary tables is
/// done, everything else is explained.
fn judge(database: &Path, heard: &[Said], believing: &str, may_read: fn(&Step) -> bool) -> usize {
    let conn = Connection::open(database).expect("opens");
    conn.execute_batch(&format!(
        "PRAGMA synchronous = OFF; BEGIN; {believing}; COMMIT"
    ))
    .expect("statistics");
    // They are read when a connection first looks at the tables.
    drop(conn);
    let conn = Connection::open(database).expect("opens");
    let mut judged = 0;
    for said in heard {
        match said {
            Said::Batch(sql) => conn.execute_batch(sql).expect("runs"),
            Said::Statement(sql) => {
                judged += 1;
                let (tables, plan) = (tables_by_alias(sql), plan_of(&conn, sql));
                for step in plan.iter().filter(|step| !may_read(step)) {
                    if let Some(table) = reads_all_of(&step.does, &tables) {
                        assert!(
                            is_allowed(sql, &plan, table),
                            "{} would read all of {table}\n  in {sql}\n  {plan:#?}\n  believing {believing}",
                            step.does
                        );
                    }
                }
            }
        }
    }
    judged
}

/// Columns with few values; what else an index begins with names one event, one group, one thing.
const COARSE: &[&str] = &[
    "room_id",
    "user_id",
    "state_key",
    "type",
    "highlight",
    "lock_name",
    "label",
];

/// The smallest table that statistics tell of. One that was analysed with fewer rows than about fifty is read from end
/// to end once a batch, however large it has become.
const ANALYSED_WITH: u64 = 100;

/// The smallest room that statistics tell of, on the average: told that a room is as good as an event id, SQLite
/// takes the room.
const SMALLEST_ROOM: u64 = 2;

/// How many kinds of wrong statistics are tried.
const INVENTIONS: u64 = 32;

/// Statistics out of thin air, of every table and index there is; the same for the same seed.
fn invented_statistics(conn: &Connection, seed: u64) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    // Numbers of every size up to ten million, evenly spread over their lengths.
    let mut number = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        10_f64.powf((state % 7_000) as f64 / 1_000.0) as u64
    };
    let mut indexes = conn
        .prepare(
            "SELECT m.name, i.name, c.name, i.\"unique\" AND c.seqno = (SELECT max(seqno) FROM pragma_index_info(i.name))
               FROM sqlite_master m, pragma_index_list(m.name) i, pragma_index_info(i.name) c
              WHERE m.type = 'table' ORDER BY m.name, i.name, c.seqno",
        )
        .expect("prepares");
    let columns: Vec<(String, String, String, bool)> = indexes
        .query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)))
        .and_then(Iterator::collect)
        .expect("indexes");
    let mut sizes: HashMap<String, u64> = HashMap::new();
    // Rows in all, then rows that are equal in the first column, in the first two, and so on: fewer and fewer.
    let mut stats: BTreeMap<(String, String), Vec<u64>> = BTreeMap::new();
    for (table, index, column, is_unique) in columns {
        let rows = *sizes
            .entry(table.clone())
            .or_insert_with(|| ANALYSED_WITH + number());
        let stat = stats.entry((table, index)).or_insert_with(|| vec![rows]);
        let most = stat.last().copied().unwrap_or(rows);
        stat.push(match (is_unique, COARSE.contains(&column.as_str())) {
            (true, _) => 1,
            (false, true) => number().max(SMALLEST_ROOM).min(most),
            (false, false) => (number() % 16 + 1).min(most),
        });
    }
    let mut sql = String::from("ANALYZE; DELETE FROM sqlite_stat1;");
    for ((table, index), stat) in stats {
        let stat: Vec<String> = stat.iter().map(u64::to_string).collect();
        let stat = stat.join(" ");
        sql.push_str(&format!(
            "INSERT INTO sqlite_stat1 VALUES ('{table}', '{index}', '{stat}');"
        ));
    }
    sql
}

/// Judges what `work` says, with and without what real servers have besides, under every belief: none, the truth, and so
/// many `inventions`. `more_than` statements must have been heard; `also` looks at them once more under each belief.
fn judge_whatever_is_believed(
    more_than: usize,
    inventions: u64,
    work: fn(&Server) -> Vec<Said>,
    also: fn(&Path, &[Said]),
) {
    for more in ["", AS_ON_REAL_SERVERS] {
        let server = Server::new(&["a", "b"], EVENTS, more);
        let heard = work(&server);
        let conn = Connection::open(&server.database).expect("opens");
        let mut beliefs = vec![String::new(), "ANALYZE".to_owned()];
        beliefs.extend((0..inventions).map(|seed| invented_statistics(&conn, seed)));
        drop(conn);
        for believing in &beliefs {
            let statements = judge(&server.database, &heard, believing, |_| false);
            assert!(
                statements > more_than,
                "only {statements} statements were heard"
            );
            also(&server.database, &heard);
        }
    }
}

#[test]
fn no_batch_reads_a_whole_table_or_room_whatever_sqlite_believes() {
    judge_whatever_is_believed(70, INVENTIONS, Server::purges, |_, _| ());
}

#[test]
fn no_batch_of_a_deletion_reads_a_whole_table_or_sorts_a_room() {
    judge_whatever_is_believed(15, INVENTIONS / 4, Server::deletion, |database, heard| {
        let conn = Connection::open(database).expect("opens");
        for said in heard {
            match said {
                Said::Batch(sql) => conn.execute_batch(sql).expect("runs"),
                Said::Statement(sql) if sql.contains("INSERT INTO rk_selected") => {
                    let plan = plan_of(&conn, sql);
                    let sorts = plan.iter().any(|step| step.does.contains("TEMP B-TREE"));
                    assert!(!sorts, "{plan:#?}");
                }
                Said::Statement(_) => {}
            }
        }
    });
}

#[test]
fn no_run_of_retention_reads_a_whole_table_or_room_for_each_of_its_purges() {
    judge_whatever_is_believed(50, INVENTIONS, Server::retention, |_, _| ());
}

#[cfg(feature = "events")]
#[test]
fn no_event_that_is_written_reads_a_whole_table_whatever_sqlite_believes() {
    judge_whatever_is_believed(40, INVENTIONS, Server::shutdown, |_, _| ());
}

#[test]
fn no_page_reads_more_than_it_shows_whatever_sqlite_believes() {
    judge_whatever_is_believed(25, INVENTIONS, Server::pages, |_, _| ());
}

#[test]
fn a_rewrite_reads_each_table_once() {
    let server = Server::new(&["a"], EVENTS_TO_REWRITE, AS_ON_REAL_SERVERS);
    let heard = server.purge("rewrite", true, |_| {});
    let is_rewrite =
        |said: &Said| matches!(said, Said::Statement(sql) if sql.contains("INTO rk_stays"));
    assert!(heard.iter().any(is_rewrite), "it leapt");
    for believing in ["", "ANALYZE"] {
        judge(&server.database, &heard, believing, |step| {
            step.is_outermost
        });
    }
}
