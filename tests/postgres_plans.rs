//! No statement of a batch, of a deletion or of a page reads a table that grows with the server from end to end, or a
//! whole room, on PostgreSQL: with statistics and without, with rights to switch triggers off and without (P-43).
//!
//! The statements are not listed here: the server itself tells of every plan that it carried out, those of its triggers
//! for foreign keys included, and how many rows each of their steps looked at (`auto_explain`).

#![cfg(feature = "postgres")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use roomkeeper::config::HomeserverPolicy;
use roomkeeper::ids::EventId;
use roomkeeper::messages::{Around, ContextRequest, HierarchyRequest};
use roomkeeper::store::read_limit::ReadLimit;
use roomkeeper::{
    Config, Filter, Keeper, PageRequest, PurgeOptions, PurgePoint, Reader, RoomId, UserId,
};
use support::cluster::{Cluster, cluster};

/// Tables that grow with the server.
const LARGE: &[&str] = &[
    "events",
    "event_json",
    "event_edges",
    "event_auth",
    "event_auth_chains",
    "event_auth_chain_links",
    "event_to_state_groups",
    "event_relations",
    "event_push_actions",
    "event_labels",
    "event_search",
    "redactions",
    "rejections",
    "state_events",
    "state_groups",
    "state_groups_state",
    "state_group_edges",
    "current_state_events",
    "room_memberships",
    "sliding_sync_membership_snapshots",
    "stream_ordering_to_exterm",
    "threads",
];

/// What may be walked all the same: a piece of the statement, and why.
const ALLOWED: &[(&str, &str)] = &[
    (
        "SELECT count(*) FROM events\n     WHERE room_id = $1 AND topological_ordering >=",
        "once a job: how much there is to do",
    ),
    (
        "SELECT count(*) FROM events WHERE room_id = $1",
        "once a job: how much there is to do",
    ),
    (
        "WHERE event_id IN (SELECT event_id FROM events WHERE room_id = $1)",
        "once a deletion, and only where there are tables that nobody knows",
    ),
    (
        " LIMIT 1 OFFSET ",
        "looks whether a table is longer than the selection, and at no more of it",
    ),
    (
        "FROM state_groups WHERE room_id = $1",
        "once a deletion: its list of groups",
    ),
];

/// Events of each room, and rooms. The first one is whole; the others only have rows, in every table.
const EVENTS: i64 = 3_000;
const ROOMS: i64 = 8;

/// Events of a batch.
const BATCH: i64 = 100;

/// Rows that one step of a statement may look at: some of each event of a batch, and by far not a room.
const MOST_ROWS: i64 = 2_000;

const ROOM: &str = "!r0:example.org";
const READER: &str = "@u0:example.org";

/// Rooms `!r0` to `!r7`, each a chain of events `$r…_1`, `$r…_2` … . Every twentieth event is state, with a group of its own.
const FILL: &str = "
    SET session_replication_role = replica;
    CREATE TEMPORARY TABLE e AS
    SELECT r, i, '!r' || r || ':example.org' AS room, '$r' || r || '_' || i AS event_id, r * 10000 + i + 1 AS stream,
           CASE WHEN i = 1 THEN 'm.room.create' WHEN i <= 40 THEN 'm.room.member' WHEN i % 20 = 0 THEN 'm.room.topic'
                WHEN i % 20 = 7 THEN 'm.room.redaction' ELSE 'm.room.message' END AS kind,
           CASE WHEN i > 1 AND i <= 40 THEN '@u' || i - 2 || ':example.org' WHEN i = 1 OR i % 20 = 0 THEN '' END AS state_key,
           1 + r * 1000 + CASE WHEN i <= 40 THEN 0 ELSE i / 20 END AS state_group
      FROM generate_series(0, 7) r, generate_series(1, 3000) i;
    INSERT INTO rooms (room_id, is_public, creator, room_version, has_auth_chain_index)
    SELECT room, FALSE, '@u0:example.org', '10', TRUE FROM e WHERE i = 1;
    INSERT INTO events (stream_ordering, topological_ordering, event_id, type, room_id, processed, outlier, depth,
                        origin_server_ts, received_ts, sender, contains_url, instance_name, state_key)
    SELECT stream, i, event_id, kind, room, TRUE, FALSE, i, 1600000000000 + i, 1600000000000 + i,
           '@u' || i % 39 || ':example.org', FALSE, 'master', state_key FROM e;
    INSERT INTO event_json (event_id, room_id, internal_metadata, json, format_version)
    SELECT event_id, room, '{}', json_build_object('type', kind, 'sender', '@u' || i % 39 || ':example.org', 'room_id', room,
                                                   'origin_server_ts', 1600000000000 + i, 'depth', i, 'state_key', state_key,
                                                   'content', json_build_object('body', 'words', 'membership', 'join')), 3 FROM e;
    INSERT INTO event_edges (event_id, prev_event_id) SELECT event_id, '$r' || r || '_' || i - 1 FROM e WHERE i > 1;
    INSERT INTO event_forward_extremities (event_id, room_id) SELECT event_id, room FROM e WHERE i = 3000;
    INSERT INTO room_depth (room_id, min_depth) SELECT room, 1 FROM e WHERE i = 1;
    INSERT INTO event_to_state_groups (event_id, state_group) SELECT event_id, state_group FROM e;
    INSERT INTO state_groups (id, room_id, event_id) SELECT state_group, min(room), min(event_id) FROM e GROUP BY 1;
    INSERT INTO state_group_edges (state_group, prev_state_group)
    SELECT DISTINCT state_group, CASE WHEN i < 60 THEN state_group - i / 20 ELSE state_group - 1 END FROM e WHERE i > 40 AND i % 20 = 0;
    INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id)
    SELECT state_group, room, kind, state_key, event_id FROM e WHERE state_key IS NOT NULL AND (i < 40 OR i > 40);
    INSERT INTO state_groups (id, room_id, event_id) SELECT 100000 + stream, room, event_id FROM e WHERE r > 0;
    INSERT INTO state_group_edges (state_group, prev_state_group) SELECT 100000 + stream, 99999 + stream FROM e WHERE r > 0 AND i > 1;
    INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id)
    SELECT 100000 + stream, room, t, CASE WHEN t = 'm.room.member' THEN '@v' || i || ':example.org' ELSE '' END, event_id
      FROM e CROSS JOIN unnest(ARRAY['m.room.member', 'm.room.topic', 'm.room.history_visibility']) t WHERE r > 0;
    INSERT INTO state_events (event_id, room_id, type, state_key)
    SELECT event_id, room, kind, coalesce(state_key, event_id) FROM e WHERE state_key IS NOT NULL OR r > 0;
    INSERT INTO event_auth (event_id, auth_id, room_id)
    SELECT event_id, '$r' || r || '_1', room FROM e WHERE i > 1 AND (state_key IS NOT NULL OR r > 0);
    INSERT INTO event_auth_chains (event_id, chain_id, sequence_number)
    SELECT event_id, stream, 1 FROM e WHERE state_key IS NOT NULL OR r > 0;
    INSERT INTO event_auth_chain_links (origin_chain_id, origin_sequence_number, target_chain_id, target_sequence_number)
    SELECT stream, 1, 1 + r * 10000, 1 FROM e WHERE i > 1 AND (state_key IS NOT NULL OR r > 0);
    INSERT INTO room_memberships (event_id, user_id, sender, room_id, membership, event_stream_ordering)
    SELECT event_id, CASE WHEN kind = 'm.room.member' THEN state_key ELSE '@v' || i || ':example.org' END, 's', room, 'join', stream FROM e
     WHERE kind = 'm.room.member' OR r > 0;
    INSERT INTO current_state_events (event_id, room_id, type, state_key, membership, event_stream_ordering)
    SELECT event_id, room, kind, coalesce(nullif(state_key, ''), event_id), CASE WHEN kind = 'm.room.member' THEN 'join' END, stream FROM e
     WHERE (state_key IS NOT NULL AND (i <= 40 OR i = 3000)) OR (r > 0 AND kind = 'm.room.message');
    INSERT INTO local_current_membership (room_id, user_id, event_id, membership, event_stream_ordering)
    SELECT room, state_key, event_id, 'join', stream FROM e WHERE kind = 'm.room.member';
    INSERT INTO sliding_sync_membership_snapshots (room_id, user_id, sender, membership_event_id, membership, event_stream_ordering, event_instance_name)
    SELECT room, CASE WHEN kind = 'm.room.member' THEN state_key ELSE '@v' || i || ':example.org' END, 's', event_id, 'join', stream, 'master' FROM e
     WHERE kind = 'm.room.member' OR r > 0;
    INSERT INTO sliding_sync_joined_rooms (room_id, event_stream_ordering, bump_stamp) SELECT room, stream, stream FROM e WHERE i = 3000;
    INSERT INTO redactions (event_id, redacts, have_censored, received_ts)
    SELECT event_id, '$r' || r || '_' || i - 1, FALSE, 1600000000000 FROM e WHERE kind = 'm.room.redaction' OR r > 0;
    INSERT INTO event_relations (event_id, relates_to_id, relation_type)
    SELECT event_id, '$r' || r || '_' || i - i % 100 + 1, 'm.thread' FROM e
     WHERE i > 100 AND i % 10 = 5 AND (kind = 'm.room.message' OR r > 0);
    INSERT INTO event_relations (event_id, relates_to_id, relation_type)
    SELECT event_id, '$r' || r || '_1', 'm.annotation' FROM e WHERE r > 0 AND NOT (i > 100 AND i % 10 = 5);
    INSERT INTO threads (room_id, thread_id, latest_event_id, topological_ordering, stream_ordering)
    SELECT room, '$r' || r || '_' || i - i % 100 + 1, event_id, i, stream FROM e
     WHERE i > 100 AND i % 100 = 95;
    INSERT INTO threads (room_id, thread_id, latest_event_id, topological_ordering, stream_ordering)
    SELECT room, 'x' || event_id, event_id, i, stream FROM e WHERE r > 0;
    INSERT INTO event_push_actions (room_id, event_id, user_id, actions, topological_ordering, stream_ordering, notif, highlight, unread, thread_id)
    SELECT room, event_id, '@u0:example.org', '[]', i, stream, 1, 0, 1, 'main' FROM e WHERE i % 5 = 0 OR r > 0;
    INSERT INTO event_push_summary (user_id, room_id, notif_count, stream_ordering, unread_count, thread_id)
    SELECT '@u0:example.org', room, 600, 1, 600, 'main' FROM e WHERE i = 1;
    UPDATE event_push_summary_stream_ordering SET stream_ordering = 1000000;
    INSERT INTO event_labels (event_id, label, room_id, topological_ordering)
    SELECT event_id, '#fun', room, i FROM e WHERE i % 50 = 4 OR r > 0;
    INSERT INTO rejections (event_id, reason, last_check) SELECT event_id, 'auth_error', '' FROM e WHERE i % 500 = 13 OR r > 0;
    INSERT INTO stream_ordering_to_exterm (stream_ordering, room_id, event_id) SELECT stream, room, event_id FROM e WHERE i > 2900 OR r > 0;
    INSERT INTO event_search (event_id, room_id, key, vector, stream_ordering, origin_server_ts)
    SELECT event_id, room, 'content.body', to_tsvector('english', 'words'), stream, 1 FROM e WHERE kind = 'm.room.message' OR r > 0;";

/// How a statement begins that looks for rows which still refer to what was deleted.
const LOOKS_FOR_KEYS: &str = "SELECT EXISTS (SELECT 1 FROM rk_selected s CROSS JOIN";

/// What the server tells of one step over a large table.
#[derive(Debug)]
struct Step {
    /// `Seq Scan`, `Index Scan`, …
    how: String,
    table: String,
    looked_at: i64,
    is_bounded: bool,
}

/// One statement that was carried out.
struct Carried {
    sql: String,
    steps: Vec<Step>,
    plan: String,
}

/// The statements that the server has told of, each with what it did to large tables.
fn carried_out(log: &str) -> Vec<Carried> {
    let mut all = Vec::new();
    let mut lines = log.lines().peekable();
    while let Some(line) = lines.next() {
        if !line.contains(" plan:") || !line.contains("LOG:  duration:") {
            continue;
        }
        let (mut sql, mut plan) = (Vec::new(), Vec::new());
        while let Some(line) = lines.next_if(|line| line.starts_with('\t')) {
            let line = line.strip_prefix('\t').unwrap_or(line);
            if plan.is_empty() && !line.contains("(cost=") {
                sql.push(line.strip_prefix("Query Text: ").unwrap_or(line));
            } else {
                plan.push(line);
            }
        }
        all.push(Carried {
            sql: sql.join("\n"),
            steps: steps(&plan),
            plan: plan.join("\n"),
        });
    }
    all
}

fn steps(plan: &[&str]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut is_of_step = false;
    for line in plan {
        let Some((what, figures)) = line.split_once("(cost=") else {
            let Some(step) = steps.last_mut().filter(|_| is_of_step) else {
                continue;
            };
            step.is_bounded |= line.contains("Index Cond:") || line.contains("TID Cond:");
            if let Some((_, rows)) = line.split_once("Rows Removed by Filter: ") {
                step.looked_at += rows.trim().parse::<i64>().unwrap_or(0);
            }
            continue;
        };
        is_of_step = false;
        let Some((how, rest)) = what.split_once(" on ") else {
            continue;
        };
        let table = rest.split_whitespace().next().unwrap_or_default();
        if !how.contains("Scan") || !LARGE.contains(&table) || figures.contains("never executed") {
            continue;
        }
        let number = |name: &str| -> i64 {
            let (_, rest) = figures.rsplit_once(name).unwrap_or(("", "0"));
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
            digits.and_then(|d| d.parse().ok()).unwrap_or(0)
        };
        is_of_step = true;
        steps.push(Step {
            how: how.trim_start_matches([' ', '-', '>']).to_owned(),
            table: table.to_owned(),
            looked_at: number("rows=") * number("loops=").max(1),
            // A bitmap is made below, from an index.
            is_bounded: how.contains("Bitmap Heap"),
        });
    }
    steps
}

/// Fails on a step that reads a large table from end to end, or looks at a whole room.
fn judge(about: &str, carried: &[Carried]) {
    let mut wrong = BTreeMap::new();
    for one in carried {
        if ALLOWED.iter().any(|(piece, _)| one.sql.contains(piece)) {
            continue;
        }
        for step in &one.steps {
            let is_scan = step.how.contains("Seq Scan");
            let is_walk = !step.is_bounded && step.looked_at > BATCH;
            // A page whose filter lets little through goes on along the order of the room until it is full.
            let is_page = step.how.contains("events_order_room")
                && one.sql.contains("ORDER BY e.topological_ordering");
            let is_too_much = step.looked_at > MOST_ROWS && !(is_page && step.is_bounded);
            if is_scan || is_walk || is_too_much {
                let key = format!("{} on {}: {}", step.how, step.table, one.sql);
                wrong
                    .entry(key)
                    .or_insert_with(|| format!("{} rows\n{}", step.looked_at, one.plan));
            }
        }
    }
    let wrong: Vec<String> = wrong
        .into_iter()
        .map(|(k, v)| format!("{k}\n{v}"))
        .collect();
    assert!(wrong.is_empty(), "{about}:\n{}", wrong.join("\n\n"));
}

/// What the server tells of while `work` goes on.
fn told(cluster: &Cluster, work: impl FnOnce()) -> Vec<Carried> {
    let before = cluster.log().len();
    work();
    let log = cluster.log();
    carried_out(log.get(before..).unwrap_or_default())
}

struct Server {
    cluster: &'static Cluster,
    template: String,
    directory: tempfile::TempDir,
}

impl Server {
    fn new(cluster: &'static Cluster, with_statistics: bool) -> Self {
        let template = cluster.create(cluster.empty());
        let mut client = cluster.client(&template);
        client.batch_execute(FILL).expect("filled");
        if with_statistics {
            client.batch_execute("ANALYZE").expect("analysed");
        }
        Self {
            cluster,
            template,
            directory: tempfile::tempdir().expect("a directory"),
        }
    }

    /// How to work on a copy that tells of its plans.
    fn config(&self) -> Config {
        let name = self.cluster.create(&self.template);
        for setting in [
            "session_preload_libraries = 'auto_explain'",
            "auto_explain.log_min_duration = 0",
            "auto_explain.log_analyze = on",
            "auto_explain.log_timing = off",
            "auto_explain.log_nested_statements = on",
        ] {
            self.cluster
                .run(&format!("ALTER DATABASE {name} SET {setting}"));
        }
        let ledger = self.directory.path().join(format!("{name}.ledger"));
        let mut config = Config::for_sqlite(&ledger, "example.org");
        config.ledger = ledger;
        config.database = self.cluster.database(&name);
        config.homeserver = HomeserverPolicy::AssumeRunning;
        config.workers = 1;
        config.batch.events = BATCH;
        config.batch.millis = 60_000;
        config.batch.pause = std::time::Duration::ZERO;
        config
    }

    /// What a purge below a depth has the server do.
    fn purge(&self, below: i64) -> Vec<Carried> {
        let config = self.config();
        told(self.cluster, || {
            let keeper = Keeper::open(config).expect("opens");
            let options = PurgeOptions {
                delete_local_events: true,
                ..PurgeOptions::default()
            };
            let point = PurgePoint::BeforeToken(format!("t{below}-0"));
            let job = keeper
                .purge_history(&RoomId::from(ROOM), point, options)
                .expect("begins");
            let done = keeper.wait(&job).expect("purges");
            assert!(
                done.progress["strides"].as_i64() > Some(1),
                "{:?}",
                done.progress
            );
            keeper.stop();
        })
    }

    fn deletion(&self) -> Vec<Carried> {
        let config = self.config();
        told(self.cluster, || {
            let keeper = Keeper::open(config).expect("opens");
            keeper
                .purge_room(&RoomId::from(ROOM), true)
                .expect("deletes");
            keeper.stop();
        })
    }

    fn pages(&self) -> Vec<Carried> {
        let mut config = self.config();
        config.retention.enabled = true;
        let filters = [
            "{}",
            r#"{"types": ["m.room.message", "m.room.t*"], "not_types": ["m.x", "m.y*"], "lazy_load_members": true}"#,
            r#"{"senders": ["@u1:example.org"], "not_senders": ["@c:d"], "contains_url": false}"#,
            r##"{"org.matrix.labels": ["#fun", "#b"]}"##,
            r#"{"related_by_senders": ["@u5:example.org"], "related_by_rel_types": ["m.thread"]}"#,
            r#"{"org.matrix.msc3874.rel_types": ["m.thread"], "org.matrix.msc3874.not_rel_types": ["m.x"]}"#,
        ];
        told(self.cluster, || {
            let keeper = Keeper::open(config).expect("opens");
            let room = RoomId::from(ROOM);
            for reader in [Reader::Admin, Reader::user(&UserId::from(READER))] {
                for way in [PageRequest::backwards(50), PageRequest::forwards(50)] {
                    for filter in filters {
                        let mut request = way.clone();
                        request.filter = Filter::parse(filter, true).expect("a filter");
                        let page = keeper.messages(&room, &reader, &request).expect("a page");
                        for from in [page.end, "s1500".parse().ok()].into_iter().flatten() {
                            let request = request.clone().from(from);
                            keeper.messages(&room, &reader, &request).expect("a page");
                        }
                    }
                }
            }
            let limit = Arc::new(ReadLimit::default());
            for filter in filters {
                let request = ContextRequest {
                    event: EventId::new("$r0_1503"),
                    limit: 20,
                    filter: Filter::parse(filter, true).expect("a filter"),
                    reader: UserId::from(READER),
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
            keeper.stop();
        })
    }

    /// What a plan of retention for every room has the server do.
    fn retention(&self) -> Vec<Carried> {
        let mut config = self.config();
        config.retention.default_policy.max_lifetime = Some(roomkeeper::days(1));
        config.retention.allowed_lifetime_min = Some(roomkeeper::days(1));
        told(self.cluster, || {
            let keeper = Keeper::open(config).expect("opens");
            let plan = keeper
                .plan_retention(Default::default(), false)
                .expect("plans");
            assert_eq!((plan.rooms.len() + plan.left_alone.len()) as i64, ROOMS);
            keeper.stop();
        })
    }
}

#[test]
fn nothing_reads_a_large_table_from_end_to_end() {
    let Some(cluster) = cluster() else { return };
    for with_statistics in [true, false] {
        let server = Server::new(cluster, with_statistics);
        let about = |what: &str| format!("{what}, statistics: {with_statistics}");
        // Its triggers are part of a delete, and each tells of itself: a few hundred events are enough.
        judge(&about("a purge, keys by the server"), &server.purge(350));
        judge(&about("a deletion"), &server.deletion());
        let pages = server.pages();
        assert!(pages.iter().any(|one| one.sql.contains("event_relations")));
        judge(&about("pages"), &pages);
        cluster.run("GRANT SET ON PARAMETER session_replication_role TO synapse");
        let mut purge = server.purge(EVENTS - 500);
        cluster.run("REVOKE SET ON PARAMETER session_replication_role FROM synapse");
        assert!(
            purge
                .iter()
                .any(|one| one.sql.contains("DELETE FROM event_json"))
        );
        // On a server that was never analysed, a look for rows that refer to the selection takes any of a table for one
        // of them: it reads tables until ANALYZE has run.
        purge.retain(|one| with_statistics || !one.sql.starts_with(LOOKS_FOR_KEYS));
        judge(&about("a purge, keys in sets"), &purge);
        // It asks of all rooms at once, so it may read tables; but not once for every room.
        let plan = server.retention();
        let scans = |one: &Carried| {
            one.steps
                .iter()
                .filter(|s| s.how.contains("Seq Scan"))
                .count()
        };
        let scans: usize = plan.iter().map(scans).sum();
        assert!(
            scans < ROOMS as usize,
            "a plan of retention reads {scans} tables"
        );
    }
}

/// The test above can fail: a scan is seen, and so is a walk over a whole index.
#[test]
fn a_scan_is_seen() {
    let log = "2026 [1] LOG:  duration: 1.000 ms  plan:\n\tQuery Text: SELECT 1\n\t  FROM events\n\
               \tAggregate  (cost=1.00..2.00 rows=1 width=8) (actual rows=1 loops=1)\n\
               \t  ->  Seq Scan on events e  (cost=0.00..1.00 rows=9 width=0) (actual rows=3 loops=1)\n\
               \t        Filter: outlier\n\t        Rows Removed by Filter: 7\n\
               \t  ->  Index Scan using a on event_json  (cost=0.00..1.00 rows=9 width=0) (actual rows=2 loops=500)\n\
               2026 [1] LOG:  something else\n";
    let carried = carried_out(log);
    assert_eq!(carried.len(), 1);
    assert_eq!(carried[0].sql, "SELECT 1\n  FROM events");
    let [scan, walk] = &carried[0].steps[..] else {
        panic!("{:?}", carried[0].steps);
    };
    assert_eq!(
        (scan.how.as_str(), scan.looked_at, scan.is_bounded),
        ("Seq Scan", 10, false)
    );
    assert_eq!((walk.looked_at, walk.is_bounded), (1_000, false));
    let judged = std::panic::catch_unwind(|| judge("this", &carried));
    assert!(judged.is_err());
}
