//! A homeserver of many rooms that are all alike but for their policies, written in a few statements: what matters is
//! their number.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use roomkeeper::store::schema;
use roomkeeper::time::ManualClock;
use roomkeeper::{Config, Millis, days};
use rusqlite::Connection;

use crate::support::engine::{self, Engine};
use crate::support::work::Site;

/// When the newest event came.
pub const NOW: Millis = Millis(1_700_000_000_000);

/// The time that the events are spread over.
pub const SPAN: Millis = days(100);

/// What rooms say of their messages, in turn: `(min_lifetime, max_lifetime)` of the row in `room_retention`.
pub const POLICIES: &[Option<(Option<Millis>, Option<Millis>)>] = &[
    None,
    Some((None, Some(days(1)))),
    Some((Some(days(1)), Some(days(30)))),
    Some((None, Some(days(900)))),
    Some((None, Some(Millis(0)))),
    Some((Some(days(1)), None)),
    Some((None, Some(days(4_000)))),
    Some((None, Some(days(2)))),
];

const EVENTS: &str = "
    CREATE TEMPORARY TABLE made AS
    WITH RECURSIVE room (r) AS (SELECT 0 UNION ALL SELECT r + 1 FROM room WHERE r + 1 < $1),
                   place (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM place WHERE i + 1 < $2)
    SELECT 2 + i * $1 + r AS stream, i + 1 AS depth, '$r' || r || 'e' || i AS event_id,
           '!room' || r || ':example.org' AS room_id,
           CASE i WHEN 0 THEN 'm.room.create' WHEN 1 THEN 'm.room.member' WHEN 2 THEN 'm.room.retention'
                  ELSE CASE WHEN i % 50 = 0 THEN 'm.room.topic' ELSE 'm.room.message' END END AS type,
           CASE WHEN i = 1 THEN '@alice:example.org' WHEN i < 3 OR i % 50 = 0 THEN '' END AS state_key,
           r * 1000 + min(i, 2) + i / 50 + 1 AS state_group,
           CASE WHEN i = 0 THEN NULL ELSE '$r' || r || 'e' || (i - 1) END AS prev,
           $3 + (2 + i * $1 + r) * $4 / ($1 * $2) AS ts, r, i
      FROM place CROSS JOIN room";

const ROWS: &str = "
    INSERT INTO rooms (room_id, is_public, creator, room_version)
    SELECT room_id, FALSE, '@alice:example.org', '10' FROM made WHERE i = 0;
    INSERT INTO events (stream_ordering, topological_ordering, event_id, type, room_id, processed, outlier, depth,
                        origin_server_ts, received_ts, sender, state_key)
    SELECT stream, depth, event_id, type, room_id, TRUE, FALSE, depth, ts, ts,
           CASE i % 2 WHEN 0 THEN '@alice:example.org' ELSE '@bob:elsewhere.example' END, state_key
      FROM made ORDER BY stream;
    INSERT INTO event_json (event_id, room_id, internal_metadata, json, format_version)
    SELECT event_id, room_id, '{}', '{\"content\":{\"body\":\"what was said, and some more of it: ' || event_id ||
           '\"},\"type\":\"' || type || '\"}', 3 FROM made ORDER BY stream;
    INSERT INTO event_edges (event_id, prev_event_id, is_state)
    SELECT event_id, prev, FALSE FROM made WHERE prev IS NOT NULL ORDER BY stream;
    INSERT INTO state_events (event_id, room_id, type, state_key)
    SELECT event_id, room_id, type, state_key FROM made WHERE state_key IS NOT NULL ORDER BY stream;
    INSERT INTO state_groups (id, room_id, event_id)
    SELECT state_group, room_id, event_id FROM made WHERE state_key IS NOT NULL;
    INSERT INTO state_group_edges (state_group, prev_state_group)
    SELECT state_group, state_group - 1 FROM made WHERE state_key IS NOT NULL AND i > 0;
    INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id)
    SELECT state_group, room_id, type, state_key, event_id FROM made WHERE state_key IS NOT NULL;
    INSERT INTO event_to_state_groups (event_id, state_group)
    SELECT event_id, state_group FROM made ORDER BY stream;
    INSERT INTO current_state_events (event_id, room_id, type, state_key, membership, event_stream_ordering)
    SELECT event_id, room_id, type, state_key, CASE type WHEN 'm.room.member' THEN 'join' END, stream
      FROM made
     WHERE state_key IS NOT NULL AND (i < 3 OR i = (SELECT max(i) FROM made WHERE r = 0 AND type = 'm.room.topic'));
    INSERT INTO room_memberships (event_id, user_id, sender, room_id, membership, event_stream_ordering)
    SELECT event_id, state_key, state_key, room_id, 'join', stream FROM made WHERE i = 1;
    INSERT INTO local_current_membership (room_id, user_id, event_id, membership, event_stream_ordering)
    SELECT room_id, state_key, event_id, 'join', stream FROM made WHERE i = 1;
    INSERT INTO room_depth (room_id, min_depth) SELECT room_id, 1 FROM made WHERE i = 0;
    INSERT INTO event_forward_extremities (event_id, room_id)
    SELECT event_id, room_id FROM made WHERE i = (SELECT max(i) FROM made);
    INSERT INTO event_search (event_id, room_id, key, value)
    SELECT event_id, room_id, 'content.body', 'what was said, and some more of it: ' || event_id
      FROM made WHERE type = 'm.room.message' ORDER BY stream;";

const POLICY: &str = "
    INSERT INTO room_retention (room_id, event_id, min_lifetime, max_lifetime)
    SELECT room_id, event_id, $1, $2 FROM made WHERE i = 2 AND r % $3 = $4";

/// Rooms without a policy have another event there.
const NO_POLICY: &str = "UPDATE made SET type = 'm.room.name' WHERE i = 2 AND r % $1 = $2";

/// The database.
pub struct Town {
    _directory: tempfile::TempDir,
    pub site: Site,
    pub clock: Arc<ManualClock>,
}

/// The room of this number.
pub fn room(number: usize) -> String {
    format!("!room{number}:example.org")
}

impl Town {
    /// So many rooms, with so many events in each.
    pub fn new(rooms: usize, events: usize) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let database = directory.path().join("homeserver.db");
        schema::create(&database).expect("made");
        write(&database, rooms, events).expect("written");
        Self {
            site: Site::of_file(&database, "example.org"),
            _directory: directory,
            clock: Arc::new(ManualClock::at(NOW)),
        }
    }

    /// Nobody else runs.
    pub fn config(&self) -> Config {
        let mut config = self.site.config();
        config.workers = Config::for_database(config.database.clone(), "example.org").workers;
        config.clock = self.clock.clone();
        config
    }

    /// A number of the database.
    pub fn ask(&self, sql: &str) -> i64 {
        self.site.number(sql)
    }

    /// Fails when what was said in an event that is gone still stands in the file. A server's files are its own affair.
    #[track_caller]
    pub fn assert_forgotten(&self) {
        if engine::current() == Engine::Postgres {
            return;
        }
        let conn = Connection::open(&self.site.database).expect("opens");
        let mut asked = conn.prepare("SELECT event_id FROM events").expect("asks");
        let there: BTreeSet<String> = asked
            .query_map([], |row| row.get(0))
            .and_then(Iterator::collect)
            .expect("read");
        let bytes = std::fs::read(&self.site.database).expect("read");
        let said = b"and some more of it: ";
        let mut found = bytes
            .windows(said.len() + 14)
            .filter(|at| at.starts_with(said));
        let gone = found.find(|at| {
            let text = String::from_utf8_lossy(&at[said.len()..]).into_owned();
            // In JSON a quotation mark follows; elsewhere one cannot tell where the id ends.
            text.split_once("\"},")
                .is_some_and(|(id, _)| !there.contains(id))
        });
        assert!(gone.is_none(), "{:?}", gone.map(String::from_utf8_lossy));
    }

    /// Fails when the database breaks an invariant.
    #[track_caller]
    pub fn assert_sound(&self) {
        let found = roomkeeper::keeper::check_offline(&self.config(), |_, _| ()).expect("checked");
        assert!(found.is_empty(), "{found:#?}");
    }
}

fn write(database: &Path, rooms: usize, events: usize) -> rusqlite::Result<()> {
    let conn = Connection::open(database)?;
    conn.execute_batch("PRAGMA synchronous = OFF; PRAGMA cache_size = -200000; BEGIN")?;
    let number = |n: usize| i64::try_from(n).expect("few");
    conn.execute(
        EVENTS,
        [number(rooms), number(events), (NOW - SPAN).0, SPAN.0],
    )?;
    for (turn, policy) in POLICIES.iter().enumerate() {
        let turn = [number(POLICIES.len()), number(turn)];
        match policy {
            None => conn.execute(NO_POLICY, turn)?,
            Some((min, max)) => conn.execute(
                POLICY,
                (min.map(|ms| ms.0), max.map(|ms| ms.0), turn[0], turn[1]),
            )?,
        };
    }
    conn.execute_batch(ROWS)?;
    conn.execute_batch("DROP TABLE made; COMMIT")
}
