//! What people write into a room never costs more than a page, and never the process: relations in circles, chains of
//! redactions, contents nested deep, texts kept as bytes, filters of any size.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::engine::{self, Engine};
use crate::support::work::Site;
use roomkeeper::store::read_limit::ReadLimit;
use roomkeeper::store::schema;
use roomkeeper::{
    Config, Direction, Error, Filter, Keeper, Page, PageRequest, PurgeOptions, PurgePoint, Reader,
    RoomId, UserId,
};
use rusqlite::Connection;
use serde_json::{Value, json};

const ROOM: &str = "!room:example.org";
const READER: &str = "@reader:example.org";

/// A room that somebody else fills.
struct Story {
    directory: tempfile::TempDir,
    db: Connection,
    last: i64,
}

impl Story {
    /// A room of version 10 with one member, who may read all of it.
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let database = directory.path().join("homeserver.db");
        schema::create(&database).expect("tables");
        let db = Connection::open(&database).expect("opens");
        db.execute_batch("PRAGMA synchronous = OFF; BEGIN")
            .expect("begins");
        let mut story = Self {
            directory,
            db,
            last: 0,
        };
        story.run(
            "INSERT INTO rooms (room_id, is_public, creator, room_version) VALUES ($1, FALSE, $2, '10')",
            &[ROOM, READER],
        );
        story.run(
            "INSERT INTO state_groups VALUES (1, $1, '$create')",
            &[ROOM],
        );
        story.state("$create", "m.room.create", "", json!({"creator": READER}));
        story.state(
            "$join",
            "m.room.member",
            READER,
            json!({"membership": "join"}),
        );
        story.run(
            "INSERT INTO local_current_membership (room_id, user_id, event_id, membership) VALUES ($1, $2, '$join', 'join')",
            &[ROOM, READER],
        );
        story
    }

    fn run(&self, sql: &str, values: &[&str]) {
        let values = rusqlite::params_from_iter(values);
        self.db.execute(sql, values).expect(sql);
    }

    fn state(&mut self, id: &str, kind: &str, key: &str, content: Value) {
        let event = json!({"type": kind, "state_key": key, "content": content});
        self.event(id, event);
        self.run(
            "INSERT INTO state_groups_state VALUES (1, $1, $2, $3, $4)",
            &[ROOM, kind, key, id],
        );
        self.run(
            "INSERT INTO current_state_events (event_id, room_id, type, state_key) VALUES ($1, $2, $3, $4)",
            &[id, ROOM, kind, key],
        );
    }

    /// The next event of the room; sent by the reader unless it says by whom.
    fn event(&mut self, id: &str, event: Value) {
        self.text(
            id,
            &event.to_string(),
            event["type"].as_str().unwrap_or("m.room.message"),
        );
    }

    /// The same with a text that need not come from a value; members that it lacks are added at its beginning.
    fn text(&mut self, id: &str, event: &str, kind: &str) {
        self.last += 1;
        let place = self.last;
        let sql = "INSERT INTO events (stream_ordering, topological_ordering, depth, event_id, type, room_id, processed, \
                   outlier, origin_server_ts, received_ts, sender, contains_url) \
                   VALUES ($1, $1, $1, $2, $3, $4, TRUE, FALSE, $1, $1, $5, FALSE)";
        self.db
            .prepare_cached(sql)
            .and_then(|mut s| s.execute((place, id, kind, ROOM, READER)))
            .expect("an event");
        let json = format!(
            r#"{{"type":"m.room.message","sender":"{READER}","content":{{}},"depth":{place},"origin_server_ts":{place}{}{}"#,
            if event == "{}" { "" } else { "," },
            &event[1..]
        );
        self.db
            .prepare_cached("INSERT INTO event_json VALUES ($1, $2, '{}', $3, 3)")
            .and_then(|mut s| s.execute((id, ROOM, json)))
            .expect("its JSON");
        self.db
            .prepare_cached("INSERT INTO event_to_state_groups VALUES ($1, 1)")
            .and_then(|mut s| s.execute([id]))
            .expect("its state");
    }

    fn relates(&self, id: &str, to: &str, how: &str) {
        self.run(
            "INSERT INTO event_relations (event_id, relates_to_id, relation_type) VALUES ($1, $2, $3)",
            &[id, to, how],
        );
    }

    /// An event that relates to another, and was redacted since: its row stays, its content is gone.
    fn redacted_relation(&mut self, id: &str, to: &str, how: &str) {
        self.event(id, json!({}));
        self.relates(id, to, how);
    }

    fn redaction(&mut self, id: &str, of: &str) {
        self.event(
            id,
            json!({"type": "m.room.redaction", "redacts": of, "content": {}}),
        );
        self.run(
            "INSERT INTO redactions (event_id, redacts, received_ts, recheck) VALUES ($1, $2, 1, FALSE)",
            &[id, of],
        );
    }

    fn told(self) -> Told {
        self.db.execute_batch("COMMIT").expect("commits");
        drop(self.db);
        let site = Site::of_file(&self.directory.path().join("homeserver.db"), "example.org");
        Told {
            site,
            _directory: self.directory,
        }
    }
}

struct Told {
    site: Site,
    _directory: tempfile::TempDir,
}

impl Told {
    fn config(&self) -> Config {
        self.site.config()
    }

    /// Pages of 1000, read by a thread with little stack: as an admin, and as the member.
    fn pages(&self) -> Vec<Page> {
        let keeper = Keeper::open(self.config()).expect("opens");
        let readers = [Reader::Admin, Reader::user(&UserId::from(READER))];
        readers
            .into_iter()
            .map(|reader| {
                let keeper = keeper.clone();
                let read = move || {
                    let room = RoomId::from(ROOM);
                    keeper.messages(&room, &reader, &PageRequest::backwards(1000))
                };
                let thread = std::thread::Builder::new().stack_size(512 * 1024);
                let page = thread.spawn(read).expect("a thread").join();
                page.expect("no panic").expect("a page")
            })
            .collect()
    }
}

fn find(page: &Page, id: &str) -> Value {
    let events = page
        .chunk
        .iter()
        .map(|event| serde_json::from_str(event.as_str()));
    let mut events = events.map(|event: Result<Value, _>| event.expect("an event is JSON"));
    events
        .find(|event| event["event_id"] == id)
        .expect("it is shown")
}

/// How deep a value is nested.
fn depth(value: &Value) -> usize {
    match value {
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[test]
fn relations_in_circles_are_shown_once_and_no_deeper() {
    for how in ["m.thread", "m.replace", "m.reference"] {
        let mut story = Story::new();
        story.redacted_relation("$self", "$self", how);
        story.redacted_relation("$one", "$two", how);
        story.redacted_relation("$two", "$one", how);
        for n in 0..990 {
            story.redacted_relation(&format!("$chain{n}"), &format!("$chain{}", n + 1), how);
        }
        let begun = Instant::now();
        for page in story.told().pages() {
            let size: usize = page.chunk.iter().map(|event| event.as_str().len()).sum();
            assert!(size < 1_500_000, "{how}: {size} bytes");
            for event in &page.chunk {
                let event: Value = serde_json::from_str(event.as_str()).expect("JSON");
                assert!(depth(&event) < 10, "{how}: {event}");
            }
            if how == "m.thread" {
                let event = find(&page, "$one");
                let latest = &event["unsigned"]["m.relations"]["m.thread"]["latest_event"];
                assert_eq!(latest["event_id"], "$two");
                assert_eq!(latest["unsigned"]["m.relations"]["m.thread"], Value::Null);
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{how}");
    }
}

#[test]
fn a_redaction_is_shown_as_it_is_however_long_the_chain_behind_it() {
    let mut story = Story::new();
    story.event("$said", json!({"content": {"body": "secret"}}));
    story.redaction("$r0", "$said");
    for n in 1..4_000 {
        story.redaction(&format!("$r{n}"), &format!("$r{}", n - 1));
    }
    story.redaction("$a", "$b");
    story.redaction("$b", "$a");
    let told = story.told();
    let keeper = Keeper::open(told.config()).expect("opens");
    let room = RoomId::from(ROOM);
    let begun = Instant::now();
    let page = keeper
        .messages(&room, &Reader::Admin, &PageRequest::forwards(5))
        .expect("a page");
    assert!(begun.elapsed() < Duration::from_secs(5));
    let said = find(&page, "$said");
    assert_eq!(said["content"], json!({}));
    assert_eq!(said["redacted_because"]["event_id"], "$r0");
    // The redaction is itself redacted: its own content is gone, and it says no more about that.
    assert_eq!(
        said["redacted_because"]["unsigned"]["redacted_because"],
        Value::Null
    );
    let first = find(&page, "$r0");
    assert_eq!(first["redacted_because"]["event_id"], "$r1");
    keeper.stop();
    for page in told.pages() {
        assert!(
            page.chunk.len() >= 999,
            "the pages go on: {}",
            page.chunk.len()
        );
    }
}

#[test]
fn four_thousand_false_redactions_hide_nothing_and_one_good_one_among_them_does() {
    for good in [false, true] {
        let mut story = Story::new();
        story.event("$said", json!({"content": {"body": "secret"}}));
        for n in 0..4_000 {
            let id = format!("$r{n}");
            let sender = if good && n == 3_900 {
                READER
            } else {
                "@spam:elsewhere"
            };
            story.event(
                &id,
                json!({"type": "m.room.redaction", "redacts": "$said", "sender": sender, "content": {}}),
            );
            story.run(
                "UPDATE event_json SET internal_metadata = '{\"recheck_redaction\":true}' WHERE event_id = $1",
                &[&id],
            );
            story.run(
                "INSERT INTO redactions (event_id, redacts, received_ts, recheck) VALUES ($1, '$said', 1, TRUE)",
                &[&id],
            );
        }
        let told = story.told();
        let keeper = Keeper::open(told.config()).expect("opens");
        let page = keeper.messages(
            &RoomId::from(ROOM),
            &Reader::Admin,
            &PageRequest::forwards(3),
        );
        let said = find(&page.expect("a page"), "$said");
        assert_eq!(said["content"]["body"].is_null(), good, "{said}");
        let by = &said["unsigned"]["redacted_by"];
        assert_eq!(by.as_str(), good.then_some("$r3900"));
    }
}

#[test]
fn state_that_replaces_itself_is_shown_with_what_was_before_and_no_further() {
    let mut story = Story::new();
    for (id, before) in [("$self", "$self"), ("$one", "$two"), ("$two", "$one")] {
        story.event(
            id,
            json!({"type": "m.room.topic", "state_key": "", "content": {"topic": id},
                   "unsigned": {"replaces_state": before}}),
        );
    }
    for page in story.told().pages() {
        let event = find(&page, "$one");
        assert_eq!(event["unsigned"]["prev_content"], json!({"topic": "$two"}));
        assert!(depth(&event) < 5);
    }
}

#[test]
fn content_nested_as_deep_as_an_event_can_be_is_shown() {
    let mut story = Story::new();
    let nested =
        |open: &str, close: &str, n: usize| format!("{}{}", open.repeat(n), close.repeat(n));
    for (n, deep) in [
        nested("[", "]", 200),
        nested("[", "]", 30_000),
        nested(r#"{"a":["#, "]}", 8_000).replace("[]", "[1]"),
    ]
    .iter()
    .enumerate()
    {
        let text = format!(
            r#"{{"content":{{"body":"said","deep":{deep}}},"unsigned":{{"age_ts":1,"deep":{deep}}}}}"#
        );
        story.text(&format!("$deep{n}"), &text, "m.room.message");
        let whole = format!(
            r#"{{"type":"m.room.topic","state_key":"x","content":{{"m.relates_to":{deep}}}}}"#
        );
        story.text(&format!("$state{n}"), &whole, "m.room.topic");
    }
    for page in story.told().pages() {
        assert_eq!(page.damaged, 0);
        assert_eq!(page.chunk.len(), 8);
        // As a terminal shows it.
        let said = page
            .chunk
            .iter()
            .filter(|event| event.outline()["content"]["body"] == "said");
        assert_eq!(said.count(), 3);
    }
}

/// Puts every JSON of a table where bytes are kept. A server's columns hold texts alone.
fn keep_as_bytes(story: &Story) {
    if engine::current() == Engine::Sqlite {
        story.run(
            "UPDATE event_json SET json = CAST(json AS BLOB), internal_metadata = CAST(internal_metadata AS BLOB)",
            &[],
        );
    }
}

#[test]
fn json_that_is_kept_as_bytes_is_json() {
    let mut story = Story::new();
    story.state(
        "$open",
        "m.room.history_visibility",
        "",
        json!({"history_visibility": "world_readable"}),
    );
    story.event("$said", json!({"content": {"body": "é"}}));
    story.redacted_relation("$reply", "$said", "m.thread");
    keep_as_bytes(&story);
    let told = story.told();
    for page in told.pages() {
        assert_eq!((page.damaged, page.chunk.len()), (0, 5));
        assert_eq!(find(&page, "$said")["content"]["body"], "é");
    }
    // Who was never there reads what is open to the world, which an event says.
    let keeper = Keeper::open(told.config()).expect("opens");
    let stranger = Reader::user(&UserId::from("@stranger:example.org"));
    let page = keeper.messages(&RoomId::from(ROOM), &stranger, &PageRequest::backwards(2));
    assert_eq!(page.expect("a page").chunk.len(), 2);
}

/// Columns of SQLite hold what was put in (M-93): a place that is no number costs its event, and not the page or the purge.
#[test]
fn an_event_whose_place_is_no_number_costs_no_page_and_no_purge() {
    let mut story = Story::new();
    for n in 0..6 {
        story.event(&format!("$said{n}"), json!({"content": {"body": "é"}}));
    }
    story.event("$last", json!({"content": {"body": "é"}}));
    story.run(
        "INSERT INTO event_forward_extremities (event_id, room_id) VALUES ('$last', $1)",
        &[ROOM],
    );
    if engine::current() == Engine::Sqlite {
        for (event, place) in [
            ("$said1", "'deep'"),
            ("$said2", "7.5"),
            ("$said3", "x'00'"),
            ("$said4", "1e300"),
        ] {
            let sql = format!(
                "UPDATE events SET topological_ordering = {place} WHERE event_id = '{event}'"
            );
            story.run(&sql, &[]);
        }
    }
    let told = story.told();
    let keeper = Keeper::open(told.config()).expect("opens");
    let room = RoomId::from(ROOM);
    for direction in [Direction::Backwards, Direction::Forwards] {
        let (mut from, mut seen) = (None, Vec::new());
        for _ in 0..40 {
            let request = PageRequest {
                direction,
                from,
                ..PageRequest::backwards(1)
            };
            let page = keeper
                .messages(&room, &Reader::Admin, &request)
                .expect("a page");
            seen.extend(
                page.chunk
                    .iter()
                    .map(|event| event.outline()["event_id"].to_string()),
            );
            from = page.end;
            if from.is_none() || page.chunk.is_empty() {
                break;
            }
        }
        for event in ["$said0", "$said5", "$last"] {
            let times = seen.iter().filter(|id| id.contains(event)).count();
            assert_eq!(times, 1, "{event} of {seen:?}");
        }
    }
    let point = PurgePoint::BeforeEvent("$last".into());
    let purge = keeper.purge_history(&room, point, PurgeOptions::default());
    keeper.wait(&purge.expect("begins")).expect("is done");
}

#[test]
fn a_member_in_the_chunk_and_in_the_state_has_the_same_past_in_both() {
    let mut story = Story::new();
    story.event(
        "$renamed",
        json!({"type": "m.room.member", "state_key": READER, "content": {"membership": "join", "displayname": "R"},
               "unsigned": {"replaces_state": "$join"}}),
    );
    story.run(
        "UPDATE state_groups_state SET event_id = '$renamed' WHERE type = 'm.room.member'",
        &[],
    );
    let told = story.told();
    let keeper = Keeper::open(told.config()).expect("opens");
    let request = PageRequest {
        filter: Filter::parse(r#"{"lazy_load_members": true}"#, false).expect("a filter"),
        ..PageRequest::backwards(10)
    };
    for reader in [Reader::Admin, Reader::user(&UserId::from(READER))] {
        let page = keeper
            .messages(&RoomId::from(ROOM), &reader, &request)
            .expect("a page");
        let state: Value = serde_json::from_str(page.state[0].as_str()).expect("JSON");
        for event in [find(&page, "$renamed"), state] {
            assert_eq!(event["event_id"], "$renamed");
            assert_eq!(
                event["unsigned"]["prev_content"],
                json!({"membership": "join"})
            );
            assert_eq!(event["prev_content"], json!({"membership": "join"}));
            assert_eq!(event["unsigned"]["prev_sender"], READER);
        }
    }
}

#[test]
fn events_with_large_edits_and_replies_fit_on_pages_that_go_on() {
    let mut story = Story::new();
    let large = "x".repeat(60_000);
    let count = 200;
    for n in 0..count {
        let root = format!("$root{n}");
        story.event(&root, json!({"content": {"body": "small"}}));
    }
    for n in 0..count {
        let root = format!("$root{n}");
        for (how, id) in [
            ("m.replace", format!("$edit{n}")),
            ("m.thread", format!("$reply{n}")),
        ] {
            let content =
                json!({"body": large, "m.relates_to": {"rel_type": how, "event_id": root}});
            story.event(&id, json!({"content": content}));
            story.relates(&id, &root, how);
        }
    }
    let told = story.told();
    let keeper = Keeper::open(told.config()).expect("opens");
    let mut request = PageRequest::forwards(1000);
    let mut seen = Vec::new();
    loop {
        let page = keeper
            .messages(&RoomId::from(ROOM), &Reader::Admin, &request)
            .expect("a page");
        let size = page.to_json().len();
        assert!(size < 14 * 1024 * 1024, "{size} bytes");
        for event in &page.chunk {
            let event: Value = serde_json::from_str(event.as_str()).expect("JSON");
            seen.push(event["event_id"].as_str().expect("an id").to_owned());
        }
        let Some(end) = page.end else { break };
        request = request.from(end);
    }
    let distinct: std::collections::BTreeSet<&String> = seen.iter().collect();
    assert_eq!((seen.len(), distinct.len()), (2 + 3 * count, 2 + 3 * count));
}

fn filtered(told: &Told, filter: &Value) -> Result<(usize, Duration), Error> {
    let keeper = Keeper::open(told.config())?;
    let request = PageRequest {
        filter: Filter::parse(&filter.to_string(), true)
            .map_err(|bad| Error::bad(bad.errcode, bad.message))?,
        ..PageRequest::backwards(1000)
    };
    let begun = Instant::now();
    let page = keeper.messages(&RoomId::from(ROOM), &Reader::Admin, &request)?;
    Ok((page.chunk.len(), begun.elapsed()))
}

#[test]
fn a_filter_of_a_hundred_wildcards_costs_little_more_than_none() {
    let mut story = Story::new();
    let kinds = [
        "m.room.message",
        "m.reaction",
        "org.example.a.b.c",
        "x_y%z",
        "M.ROOM.MESSAGE",
        "[a]*^$.|é",
    ];
    for n in 0..12_000 {
        let kind = kinds[n % kinds.len()];
        story.text(&format!("$e{n}"), &format!(r#"{{"type":"{kind}"}}"#), kind);
    }
    let told = story.told();
    let mine =
        |prefixes: &[&str]| -> Vec<String> { prefixes.iter().map(|p| format!("{p}*")).collect() };
    for (types, expected) in [
        (mine(&["m.room.message"]), 1000),
        (mine(&["m.room.create"]), 1),
        (mine(&["x_y%"]), 1000),
        (mine(&["x%"]), 0),
        (mine(&["x.y"]), 0),
        (mine(&["[a]*^$.|"]), 1000),
        (mine(&["[a].^$.|"]), 0),
        (mine(&["M.room", "m.ROOM"]), 0),
        (mine(&[""]), 1000),
        (
            mine(&["m.room.m", "m.room.message", "m.room.messages"]),
            1000,
        ),
        (mine(&["no", "m.room.create"]), 1),
    ] {
        let found = filtered(&told, &json!({"types": types})).expect("a page");
        assert_eq!(found.0, expected, "{types:?}");
    }
    let not = filtered(
        &told,
        &json!({"not_types": ["m*", "org*", "x_y%z", "[a]*", "M.*"]}),
    );
    assert_eq!(not.expect("a page").0, 0);
    let hundred: Vec<String> = (0..100)
        .map(|n| format!("org.example.{n:03}.{}*", "y".repeat(n)))
        .collect();
    let plain = filtered(&told, &json!({"types": ["none"]}))
        .expect("a page")
        .1;
    for filter in [
        json!({"types": hundred}),
        json!({"types": ["none"], "not_types": hundred}),
    ] {
        let (count, took) = filtered(&told, &filter).expect("a page");
        println!("without wildcards {plain:?}, with a hundred {took:?}");
        assert_eq!(count, 0);
        assert!(
            took < plain * 4 + Duration::from_millis(400),
            "{took:?} for {plain:?}"
        );
    }
}

#[test]
fn a_list_of_a_filter_has_a_hundred_entries_at_most() {
    for name in [
        "types",
        "not_types",
        "senders",
        "not_senders",
        "rooms",
        "not_rooms",
        "org.matrix.labels",
        "org.matrix.not_labels",
        "related_by_senders",
        "related_by_rel_types",
        "org.matrix.msc3874.rel_types",
        "org.matrix.msc3874.not_rel_types",
    ] {
        let filter = |n: usize| json!({name: vec!["a*"; n]}).to_string();
        assert!(Filter::parse(&filter(100), true).is_ok(), "{name}");
        let refused = Filter::parse(&filter(101), true).expect_err(name);
        assert_eq!(refused.errcode, "M_INVALID_PARAM");
        assert!(
            refused.message.contains(name) && refused.message.contains("100"),
            "{}",
            refused.message
        );
    }
}

#[test]
fn a_reading_ends_with_its_time_and_the_next_one_is_as_if_it_had_not_been() {
    let mut story = Story::new();
    for n in 0..3_000 {
        story.event(&format!("$e{n}"), json!({}));
    }
    let told = story.told();
    let keeper = Keeper::open(told.config()).expect("opens");
    let (room, reader) = (RoomId::from(ROOM), Reader::user(&UserId::from(READER)));
    let request = PageRequest::backwards(1000);
    let read = |limit: &Arc<ReadLimit>| keeper.messages_within(&room, &reader, &request, limit);
    let count = |page: Result<Page, Error>| page.expect("a page").chunk.len();
    assert_eq!(
        count(read(&Arc::new(ReadLimit::lasting(Duration::from_secs(60))))),
        1000
    );
    let over = Arc::new(ReadLimit::lasting(Duration::ZERO));
    assert!(matches!(read(&over), Err(Error::ReadTooLong)));
    let given_up = Arc::new(ReadLimit::default());
    given_up.stop();
    assert!(matches!(read(&given_up), Err(Error::ReadTooLong)));
    assert_eq!(count(keeper.messages(&room, &reader, &request)), 1000);
    // In the middle of it, wherever that is: the whole page, or none.
    for micros in [200, 1_000, 3_000, 9_000, 27_000] {
        let limit = Arc::new(ReadLimit::default());
        let page = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_micros(micros));
                limit.stop();
            });
            read(&limit)
        });
        match page {
            Ok(page) => assert_eq!(page.chunk.len(), 1000),
            Err(e) => assert!(matches!(e, Error::ReadTooLong), "{e}"),
        }
        assert_eq!(count(keeper.messages(&room, &reader, &request)), 1000);
    }
}

also_on_postgres! {
    a_reading_ends_with_its_time_and_the_next_one_is_as_if_it_had_not_been,
    relations_in_circles_are_shown_once_and_no_deeper,
    a_redaction_is_shown_as_it_is_however_long_the_chain_behind_it,
    four_thousand_false_redactions_hide_nothing_and_one_good_one_among_them_does,
    state_that_replaces_itself_is_shown_with_what_was_before_and_no_further,
    content_nested_as_deep_as_an_event_can_be_is_shown,
    json_that_is_kept_as_bytes_is_json,
    a_member_in_the_chunk_and_in_the_state_has_the_same_past_in_both,
    a_filter_of_a_hundred_wildcards_costs_little_more_than_none,
}
