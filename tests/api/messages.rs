//! Pages of random rooms, held against a plain list of their events; and readers while a room is purged.
//!
//! `ROOMKEEPER_SEED=<n>` repeats a failed run, `ROOMKEEPER_CASES=<n>` tries more samples.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::engine::{self, Engine};
use crate::support::rooms::Recipe;
use crate::support::samples::for_each_sample;
use crate::support::work::{NOW, Site};
use rand::Rng;
use rand::rngs::StdRng;
use roomkeeper::store::{db::Db, sample, schema};
use roomkeeper::{
    Config, Direction, Error, Filter, Keeper, Page, PageRequest, PurgeOptions, PurgePoint, Reader,
    RoomId, StreamToken, UserId,
};
use rusqlite::Connection;
use serde_json::Value;

/// Gives the events of a sample the JSON that events have; a sample's own has not even a sender.
fn make_readable(conn: &Connection) {
    conn.execute_batch(
        "UPDATE event_json SET json = (
             SELECT CASE WHEN s.event_id IS NULL THEN whole ELSE json_set(whole, '$.state_key', s.state_key) END
               FROM (SELECT e.event_id, json_object(
                            'type', e.type, 'sender', e.sender, 'room_id', e.room_id, 'depth', e.depth,
                            'origin_server_ts', e.origin_server_ts,
                            'content', json_object('body', e.event_id, 'membership', m.membership)) AS whole
                       FROM events e LEFT JOIN room_memberships m ON m.event_id = e.event_id) w
               LEFT JOIN state_events s ON s.event_id = w.event_id
              WHERE w.event_id = event_json.event_id);
         DELETE FROM redactions",
    )
    .expect("the sample is made readable");
}

/// The plain model: the events that an admin sees, oldest first, with their order of arrival. Redactions are left out: whether they are shown depends
/// on what they redact.
fn readable(site: &Site, room: &str) -> Vec<(i64, String)> {
    let tables = site.tables();
    let rejected: BTreeSet<&str> = tables
        .rows("rejections")
        .iter()
        .map(|row| row.word("event_id"))
        .collect();
    let mut events: Vec<(i64, i64, String)> = tables
        .rows("events")
        .iter()
        .filter(|row| row.word("room_id") == room && !row.is("outlier"))
        .filter(|row| row.text("sender").is_some() && row.word("type") != "m.room.redaction")
        .filter(|row| !rejected.contains(row.word("event_id")))
        .map(|row| {
            (
                row.number("topological_ordering"),
                row.number("stream_ordering"),
                row.word("event_id").to_owned(),
            )
        })
        .collect();
    events.sort();
    events
        .into_iter()
        .map(|(_, stream, id)| (stream, id))
        .collect()
}

fn ids(page: &Page) -> Vec<String> {
    let id = |json: &str| {
        let event: Value = serde_json::from_str(json).expect("an event is JSON");
        event["event_id"].as_str().expect("an id").to_owned()
    };
    page.chunk.iter().map(|event| id(event.as_str())).collect()
}

fn request(direction: Direction, limit: u32) -> PageRequest {
    PageRequest {
        direction,
        filter: Filter::parse(r#"{"not_types": ["m.room.redaction"]}"#, false).expect("a filter"),
        ..PageRequest::backwards(limit)
    }
}

/// Every page from `from` on, and the tokens between them.
fn walk(
    keeper: &Keeper,
    room: &RoomId,
    reader: &Reader,
    direction: Direction,
    limit: u32,
    from: Option<StreamToken>,
) -> (Vec<String>, Vec<StreamToken>) {
    let (mut all, mut tokens) = (Vec::new(), Vec::new());
    let mut asked = PageRequest {
        from,
        ..request(direction, limit)
    };
    loop {
        let page = keeper.messages(room, reader, &asked).expect("a page");
        assert!(
            page.chunk.len() <= limit as usize,
            "a page holds no more than its limit"
        );
        all.extend(ids(&page));
        let Some(end) = page.end else {
            return (all, tokens);
        };
        assert!(tokens.len() < 1_000, "the walk does not end");
        tokens.push(end.clone());
        asked.from = Some(end);
    }
}

fn any_limit(rng: &mut StdRng) -> u32 {
    [1, 2, 3, 7, 20, 1000][rng.random_range(0..6)]
}

#[test]
fn every_event_is_met_once_whichever_way_and_however_large_the_pages() {
    for_each_sample(6, |seed, rng| {
        let site = Site::adjusted(seed, &Recipe::default(), make_readable);
        let tables = site.tables();
        let rooms: Vec<String> = tables
            .rows("rooms")
            .iter()
            .map(|row| row.word("room_id").to_owned())
            .collect();
        let keeper = Keeper::open(site.config()).expect("opens");
        for room in rooms {
            let events = readable(&site, &room);
            let expected: Vec<String> = events.iter().map(|(_, id)| id.clone()).collect();
            // Without a token a reader begins at the live stream's beginning, as with Synapse: what was backfilled later
            // lies before it (M-10, M-31).
            let live = events.into_iter().filter(|(stream, _)| *stream > 0);
            let live: Vec<String> = live.map(|(_, id)| id).collect();
            let id = RoomId::new(&*room);
            let about = format!("seed {seed}, {room}");
            let first = keeper
                .messages(&id, &Reader::Admin, &request(Direction::Forwards, 1000))
                .expect("a page");
            assert_eq!(ids(&first), live, "{about}: from nowhere");
            let beginning: StreamToken = "t0--1000000".parse().expect("a token");
            let (found, tokens) = walk(
                &keeper,
                &id,
                &Reader::Admin,
                Direction::Forwards,
                any_limit(rng),
                Some(beginning),
            );
            assert_eq!(found, expected, "{about}: forwards");
            let (mut back, more) = walk(
                &keeper,
                &id,
                &Reader::Admin,
                Direction::Backwards,
                any_limit(rng),
                None,
            );
            back.reverse();
            assert_eq!(back, expected, "{about}: backwards");
            // Turning round at a token: what is before it, and what is after it, and nothing twice (I-71).
            let between: Vec<&StreamToken> = tokens.iter().chain(&more).collect();
            for _ in 0..3.min(between.len()) {
                let token = between[rng.random_range(0..between.len())];
                let (after, _) = walk(
                    &keeper,
                    &id,
                    &Reader::Admin,
                    Direction::Forwards,
                    1000,
                    Some(token.clone()),
                );
                let (mut both, _) = walk(
                    &keeper,
                    &id,
                    &Reader::Admin,
                    Direction::Backwards,
                    1000,
                    Some(token.clone()),
                );
                both.reverse();
                both.extend(after);
                assert_eq!(both, expected, "{about}: on both sides of {token}");
            }
        }
        keeper.stop();
    });
}

/// The demo's server on a clock that stands still, with a reader who was there and left at one message of the garden.
struct Garden {
    site: Site,
    _directory: tempfile::TempDir,
    garden: RoomId,
    workshop: RoomId,
    left: Reader,
}

/// The message after which they left.
const LEFT_AT: &str = "$307-of-the-sample";

impl Garden {
    fn new(messages: i64) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let database = directory.path().join("homeserver.db");
        schema::create(&database).expect("tables");
        let mut db = Db::open(&*database, &Default::default()).expect("opens");
        let rooms = sample::fill(&mut db, "example.org", messages, NOW).expect("a sample");
        drop(db);
        let user = UserId::from("@carol:example.org");
        let conn = Connection::open(&database).expect("opens");
        conn.execute(
            "INSERT INTO local_current_membership (room_id, user_id, event_id, membership) VALUES (?1, ?2, ?3, 'leave')",
            [rooms[0].as_str(), user.as_str(), LEFT_AT],
        )
        .expect("a membership");
        conn.execute(
            "INSERT INTO room_memberships (event_id, user_id, sender, room_id, membership, forgotten)
             VALUES (?3, ?2, ?2, ?1, 'leave', 0)",
            [rooms[0].as_str(), user.as_str(), LEFT_AT],
        )
        .expect("a membership");
        drop(conn);
        Self {
            site: Site::of_file(&database, "example.org"),
            _directory: directory,
            garden: rooms[0].clone(),
            workshop: rooms[1].clone(),
            left: Reader::user(&user),
        }
    }

    fn config(&self) -> Config {
        self.site.config()
    }

    fn keeper(&self) -> Keeper {
        Keeper::open(self.config()).expect("opens")
    }
}

#[test]
fn who_left_sees_nothing_of_what_came_after_whichever_way_they_look() {
    let site = Garden::new(400);
    let keeper = site.keeper();
    let (all, _) = walk(
        &keeper,
        &site.garden,
        &Reader::Admin,
        Direction::Forwards,
        1000,
        None,
    );
    let end = all
        .iter()
        .position(|id| id == LEFT_AT)
        .expect("it is there")
        + 1;
    for limit in [3, 100, 1000] {
        let (seen, _) = walk(
            &keeper,
            &site.garden,
            &site.left,
            Direction::Forwards,
            limit,
            None,
        );
        assert_eq!(seen, all[..end], "forwards, {limit}");
        let (mut seen, _) = walk(
            &keeper,
            &site.garden,
            &site.left,
            Direction::Backwards,
            limit,
            None,
        );
        seen.reverse();
        assert_eq!(seen, all[..end], "backwards, {limit}");
    }
    // From beyond, too: by a token of the live stream, and by one of history.
    for token in ["s399", "t390-395"] {
        let from: StreamToken = token.parse().expect("a token");
        let forwards = request(Direction::Forwards, 10).from(from.clone());
        let page = keeper
            .messages(&site.garden, &site.left, &forwards)
            .expect("a page");
        assert_eq!((ids(&page), page.end), (Vec::new(), None), "{token}");
        let backwards = request(Direction::Backwards, 1).from(from);
        let page = keeper
            .messages(&site.garden, &site.left, &backwards)
            .expect("a page");
        assert_eq!(ids(&page), [LEFT_AT], "{token}");
        assert!(
            page.start.to_string().starts_with("t306-307"),
            "{}",
            page.start
        );
    }
    let refused = keeper.messages(
        &site.workshop,
        &site.left,
        &request(Direction::Backwards, 1),
    );
    assert!(
        matches!(refused, Err(Error::NotInRoom { .. })),
        "{refused:?}"
    );
}

/// R-9, R-40: the homeserver stores what an event says, and events say what they like.
#[test]
fn a_policy_that_is_no_number_hides_nothing_and_costs_nobody_a_page() {
    let site = Garden::new(400);
    let mut config = site.config();
    config.retention.enabled = true;
    // What cannot be read may say that everything stays: the default does not hide it.
    config.retention.default_policy.max_lifetime = Some(roomkeeper::Millis(1));
    let keeper = Keeper::open(config).expect("opens");
    let alice = Reader::user(&UserId::from("@alice:example.org"));
    let page = || {
        let page = request(Direction::Backwards, 50);
        ids(&keeper
            .messages(&site.garden, &alice, &page)
            .expect("a page"))
    };
    // A column of a server holds numbers or nothing, so this is for files.
    let conn = Connection::open(&site.site.database).expect("opens");
    conn.execute_batch(
        "INSERT INTO current_state_events (event_id, room_id, type, state_key)
         SELECT '$policy', room_id, 'm.room.retention', '' FROM events WHERE event_id = '$307-of-the-sample'",
    )
    .expect("a policy");
    let say = |json: &str| {
        let sql = format!(
            "INSERT OR REPLACE INTO event_json (event_id, room_id, internal_metadata, json, format_version)
             SELECT '$policy', room_id, '{{}}', '{json}', 3 FROM current_state_events WHERE event_id = '$policy'"
        );
        conn.execute_batch(&sql).expect("an event");
    };
    say(r#"{"content": {}}"#);
    let hidden = page();
    say("{");
    let before = page();
    assert!(before.len() > hidden.len(), "an event that is no JSON");
    say(r#"{"content": {"max_lifetime": 99999999999999999999}}"#);
    assert_eq!(page(), before, "a number that nobody holds");
    for (min, max) in [("'abc'", "'1d'"), ("NULL", "1.5"), ("x'00'", "x'31'")] {
        let sql = format!(
            "INSERT OR REPLACE INTO room_retention (room_id, event_id, min_lifetime, max_lifetime)
             SELECT room_id, '$policy', {min}, {max} FROM current_state_events WHERE event_id = '$policy'"
        );
        conn.execute_batch(&sql).expect("changed");
        assert_eq!(page(), before, "{min} {max}");
    }
    // One that is a number does hide.
    conn.execute_batch("UPDATE room_retention SET min_lifetime = NULL, max_lifetime = 1")
        .expect("changed");
    assert_ne!(page(), before);
}

#[test]
fn tokens_of_every_release_lead_to_the_same_page() {
    let site = Garden::new(100);
    let keeper = site.keeper();
    let page = |token: &str| {
        let from = token.parse().expect("a token");
        let page = keeper.messages(
            &site.garden,
            &Reader::Admin,
            &request(Direction::Backwards, 5).from(from),
        );
        ids(&page.expect("a page"))
    };
    let expected = page("t50-51");
    assert_eq!(expected.len(), 5);
    for token in [
        "t50-51_1_2_3_4_5_6_7_8_9",
        "t50-51_1_2_3_4_m5~1.6_7_8_9_10_11_12_13_14",
        "s51",
        "m51",
    ] {
        assert_eq!(page(token), expected, "{token}");
    }
    let odd = keeper.messages(
        &site.garden,
        &Reader::Admin,
        &request(Direction::Backwards, 5).from("m5~77.9".parse().expect("a token")),
    );
    let said = odd.expect_err("nobody is writer 77").to_string();
    assert_eq!(said, "'from' parameter is invalid");
}

#[test]
fn a_damaged_event_costs_itself_and_not_the_page() {
    let site = Garden::new(50);
    // Text on a server cannot hold everything that a file can.
    let rubbish = match engine::current() {
        Engine::Sqlite => "json = x'00ff'",
        Engine::Postgres => "json = 'ff'",
    };
    for (event, damage) in [
        (21, "json = '{\"type\":'"),
        (22, rubbish),
        (23, "internal_metadata = 'none'"),
        (24, "format_version = 9"),
        (25, "json = '{\"type\":\"m\",\"sender\":\"@a:b\"}'"),
    ] {
        site.site.run(&format!(
            "UPDATE event_json SET {damage} WHERE event_id = '${event}-of-the-sample'"
        ));
    }
    for (event, table) in [(20, "event_json"), (26, "event_to_state_groups")] {
        site.site.run(&format!(
            "DELETE FROM {table} WHERE event_id = '${event}-of-the-sample'"
        ));
    }
    site.site.run(
        "UPDATE local_current_membership SET membership = 'join', event_id = '$40-of-the-sample'",
    );
    let keeper = site.keeper();
    let page = |reader: &Reader| {
        let page = keeper.messages(&site.garden, reader, &PageRequest::backwards(1000));
        page.expect("a page")
    };
    let (admin, user) = (page(&Reader::Admin), page(&site.left));
    assert_eq!((admin.chunk.len(), admin.damaged), (55 - 6, 6));
    assert_eq!(
        (user.chunk.len(), user.damaged),
        (55 - 7, 7),
        "without its state nobody knows who may see an event"
    );
}

#[test]
fn while_a_room_is_purged_readers_see_it_whole_and_others_do_not_wait() {
    const PAGE: u32 = 40;
    let site = Garden::new(1_500);
    let mut config = site.config();
    config.batch.events_offline = 60;
    config.batch.rewrite = roomkeeper::batch::Rewrite::Never;
    let keeper = Keeper::open(config).expect("opens");
    let all = |room: &RoomId| {
        walk(
            &keeper,
            room,
            &Reader::Admin,
            Direction::Forwards,
            1000,
            None,
        )
        .0
    };
    let (garden, workshop) = (all(&site.garden), all(&site.workshop));
    let is_done = AtomicBool::new(false);
    let (pages, others) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let options = PurgeOptions {
        delete_local_events: true,
        ..PurgeOptions::default()
    };
    // Everything but the last hundred messages.
    let point = PurgePoint::BeforeToken("t1406-0".into());
    std::thread::scope(|scope| {
        for n in 0..6 {
            let (keeper, site, garden, workshop) = (&keeper, &site, &garden, &workshop);
            let (is_done, pages, others) = (&is_done, &pages, &others);
            scope.spawn(move || {
                let (room, whole, count) = match n {
                    0..4 => (&site.garden, garden, pages),
                    _ => (&site.workshop, workshop, others),
                };
                let mut begins = 0;
                while !is_done.load(Ordering::SeqCst) {
                    let begun = Instant::now();
                    let page =
                        keeper.messages(room, &Reader::Admin, &request(Direction::Forwards, PAGE));
                    let found = ids(&page.expect("nobody sees an error"));
                    // The oldest ones that are left, without a hole; and what was gone does not come back.
                    let first = whole
                        .iter()
                        .position(|id| *id == found[0])
                        .expect("an event of the room");
                    assert_eq!(found, whole[first..first + found.len()], "a torn room");
                    assert_eq!(found.len(), PAGE as usize, "a torn page");
                    assert!(first >= begins, "what was gone is there again");
                    assert!(n < 4 || first == 0, "another room has changed");
                    assert!(
                        begun.elapsed() < Duration::from_secs(20),
                        "a reader starves"
                    );
                    begins = first;
                    count.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let id = keeper
            .purge_history(&site.garden, point, options)
            .expect("starts");
        keeper.wait(&id).expect("is done");
        is_done.store(true, Ordering::SeqCst);
    });
    let count = |count: &AtomicUsize| count.load(Ordering::SeqCst);
    println!(
        "{} pages of the purged room and {} of the other",
        count(&pages),
        count(&others)
    );
    assert!(count(&pages) > 0 && count(&others) > 0);
    assert_eq!(all(&site.garden), garden[garden.len() - 100..]);
}

also_on_postgres! {
    every_event_is_met_once_whichever_way_and_however_large_the_pages,
    who_left_sees_nothing_of_what_came_after_whichever_way_they_look,
    tokens_of_every_release_lead_to_the_same_page,
    a_damaged_event_costs_itself_and_not_the_page,
    while_a_room_is_purged_readers_see_it_whole_and_others_do_not_wait,
}
