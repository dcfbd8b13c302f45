//! Purging and deleting sets of rooms: what the plan says is what goes, room by room, and nothing else changes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::Rng;
use roomkeeper::deletion::Request;
use roomkeeper::jobs::ledger::{JobRecord, State};
use roomkeeper::keeper::{
    RoomPlan, RoomQuery, RoomSetSummary, SetAction, SetRequest, StartedSet, Viewer,
};
use roomkeeper::rooms::{Condition, Selectors, Sort, Statistics};
use roomkeeper::{Config, Error, JobId, Keeper, Millis, PurgeOptions, PurgePoint, RoomId, days};

use crate::model::{any_condition, server};
use crate::support::rooms::Recipe;
use crate::support::samples::for_each_sample;
use crate::support::tables::{Tables, assert_same};
use crate::support::work::{Site, progress_of};
use crate::town::{self, Town};

fn forced() -> Request {
    Request {
        force_purge: true,
        ..Request::default()
    }
}

fn set(only: Vec<Condition>, action: SetAction) -> SetRequest {
    SetRequest {
        selectors: Selectors {
            only,
            not: Vec::new(),
        },
        all_rooms: false,
        among: None,
        action,
    }
}

fn every_room(action: SetAction) -> SetRequest {
    SetRequest {
        all_rooms: true,
        ..set(Vec::new(), action)
    }
}

fn summary(job: &JobRecord) -> RoomSetSummary {
    let more = progress_of(job).more;
    serde_json::from_value(more.into()).expect("a set's summary")
}

/// Starts a set that takes some rooms.
fn started(keeper: &Keeper, request: &SetRequest) -> JobId {
    let started = keeper.start_set(request).expect("started");
    started.job_id.expect("there are rooms")
}

fn ended(keeper: &Keeper, id: &JobId) -> JobRecord {
    let _ = keeper.wait(id);
    keeper.job(id).expect("read").expect("on record")
}

/// The job of each room of a set.
fn parts(keeper: &Keeper) -> BTreeMap<RoomId, JobRecord> {
    let jobs = keeper.jobs().expect("listed").into_iter();
    let parts = jobs.filter(|job| job.kind.ends_with("_in_set"));
    parts
        .map(|job| (job.subject.room().expect("a room").clone(), job))
        .collect()
}

/// The rooms that are chosen, in the order in which they are taken.
fn chosen(site: &Site, request: &SetRequest) -> Vec<RoomId> {
    let query = RoomQuery {
        selectors: request.selectors.clone(),
        sort: Sort::Bytes,
        limit: None,
    };
    let viewer = Viewer::open(site.config()).expect("opens");
    let listed = viewer.rooms(&query, &mut Statistics::default());
    let rooms = listed.expect("listed").0.rooms.into_iter();
    rooms.map(|room| room.room_id).collect()
}

/// Lock rows come and go; the numbers of pending rows are SQLite's own.
fn comparable(tables: Tables) -> Tables {
    tables.without(&["sqlite_sequence", "sqlite_stat1", "sqlite_stat4"])
}

/// What the single commands do to the same rooms, one after the other: why each failed that did.
fn one_by_one(config: Config, request: &SetRequest, rooms: &[RoomId]) -> BTreeMap<RoomId, String> {
    let keeper = Keeper::open(config).expect("opens");
    let mut failed = BTreeMap::new();
    for room in rooms {
        let begun = match &request.action {
            SetAction::DeleteRoom(request) => keeper.shutdown_and_purge_room(room, request.clone()),
            SetAction::PurgeHistory {
                point,
                delete_local_events,
                ..
            } => {
                let options = PurgeOptions {
                    delete_local_events: *delete_local_events,
                    ..PurgeOptions::default()
                };
                keeper.purge_history(room, point.clone(), options)
            }
        };
        match begun {
            Err(Error::NothingThatOld) => {}
            Err(e) => drop(failed.insert(room.clone(), e.to_string())),
            Ok(id) => {
                if let Some(error) = ended(&keeper, &id).error {
                    failed.insert(room.clone(), error);
                }
            }
        }
    }
    keeper.stop();
    failed
}

fn any_action(now: Millis, tables: &Tables, rng: &mut impl Rng) -> SetAction {
    let came = tables.rows("events").iter();
    let came: Vec<i64> = came.filter_map(|e| e.int("received_ts")).collect();
    let at = Millis(came[rng.random_range(0..came.len())]);
    match rng.random_range(0..3) {
        0 => SetAction::DeleteRoom(forced()),
        1 => SetAction::PurgeHistory {
            point: PurgePoint::BeforeTs(at),
            delete_local_events: rng.random(),
            media: Default::default(),
        },
        _ => SetAction::PurgeHistory {
            point: PurgePoint::OlderThan(now - at),
            delete_local_events: rng.random(),
            media: Default::default(),
        },
    }
}

/// For every selector and both actions: the rooms are those of the list, each loses what its plan says, and the database is
/// the same as after the single commands. What is not selected is as it was to the last row.
#[test]
fn a_set_does_what_its_plan_says_and_what_the_single_commands_would_do() {
    for_each_sample(40, |seed, rng| {
        let site = server(seed);
        let (tables, config) = (site.tables(), site.config());
        let now = config.clock.now();
        let draw = |rng: &mut _, least, most| -> Vec<Condition> {
            let count = Rng::random_range(rng, least..=most);
            (0..count)
                .map(|_| match Rng::random_range(rng, 0..14) {
                    0 => Condition::LargerThan(Rng::random_range(rng, 0..200_000)),
                    1 => Condition::Inactive(Millis(Rng::random_range(rng, 0..days(3).0))),
                    _ => any_condition(&tables, now, rng),
                })
                .collect()
        };
        let all_rooms = rng.random_ratio(1, 4);
        let request = SetRequest {
            selectors: Selectors {
                only: match all_rooms {
                    true => Vec::new(),
                    false => draw(rng, 1, 2),
                },
                not: draw(rng, 0, 1),
            },
            all_rooms,
            among: None,
            action: any_action(now, &tables, rng),
        };
        let about = format!("{seed}: {} {:?}", request.selectors, request.action);
        let rooms = chosen(&site, &request);
        let single = site.copy();
        let failed = one_by_one(single.config(), &request, &rooms);

        let keeper = Keeper::open(config).expect("opens");
        let plan = keeper.plan_set(&request, usize::MAX).expect("planned");
        assert_same(
            &tables,
            &site.tables(),
            &format!("{about}: a plan reads only"),
        );
        let mut planned: Vec<&RoomId> = plan.rooms.iter().map(RoomPlan::room_id).collect();
        planned.extend(plan.left_alone.iter().map(|left| &left.room_id));
        let mut meant: Vec<&RoomId> = rooms.iter().collect();
        planned.sort();
        meant.sort();
        assert_eq!(planned, meant, "{about}");

        let started = keeper.start_set(&request).expect("started");
        let Some(id) = started.job_id else {
            assert!(rooms.is_empty(), "{about}");
            return;
        };
        let job = ended(&keeper, &id);
        let (did, parts) = (summary(&job), parts(&keeper));
        keeper.stop();
        let about = format!("{about}: {job:?}");
        let count = |n: usize| i64::try_from(n).expect("few");
        assert_eq!(did.rooms_planned, count(rooms.len()), "{about}");
        assert_eq!(
            did.rooms_done + did.rooms_skipped + did.rooms_failed,
            did.rooms_planned,
            "{about}"
        );
        for plan in &plan.rooms {
            let part = &parts[plan.room_id()];
            assert_eq!(part.state, State::Complete, "{about}: {part:?}");
            assert_eq!(
                &progress_of(part).rows_removed,
                plan.rows_removed(),
                "{about}: {part:?}"
            );
        }
        // What a plan left alone was left alone, for the same reason.
        let said: Vec<&str> = did.skipped.iter().map(|room| &*room.error).collect();
        for left in &plan.left_alone {
            match parts.get(&left.room_id) {
                Some(part) => assert!(
                    part.error.as_ref().is_some_and(|e| e.ends_with(&left.why)),
                    "{about}: {left:?} {part:?}"
                ),
                None => assert!(said.contains(&&*left.why), "{about}: {left:?}"),
            }
        }
        let in_set: BTreeMap<RoomId, String> = parts
            .into_iter()
            .filter_map(|(room, part)| Some((room, part.error?)))
            .collect();
        assert_eq!(in_set, failed, "{about}");
        assert_eq!(did.rooms_failed, count(failed.len()), "{about}");
        assert_eq!(job.state == State::Failed, did.rooms_failed > 0, "{about}");
        let totals = &plan.totals;
        assert_eq!(totals.rooms, count(plan.rooms.len()), "{about}");
        let rows: i64 = progress_of(&job).rows_removed.values().sum();
        assert_eq!(totals.rows, rows, "{about}");
        assert_same(
            &comparable(single.tables()),
            &comparable(site.tables()),
            &about,
        );
    });
}

#[test]
fn what_a_set_leaves_is_sound_and_what_went_is_forgotten() {
    for_each_sample(8, |seed, rng| {
        let recipe = Recipe {
            rooms: 3..7,
            ..Recipe::default()
        };
        let site = Site::random(seed, &recipe);
        let before = site.tables();
        let action = any_action(site.config().clock.now(), &before, rng);
        let about = format!("{seed}: {action:?}");
        let room = before.rows("rooms")[0].word("room_id").to_owned();
        let mut request = every_room(action);
        request.selectors.not.push(Condition::Room(room.clone()));
        let keeper = Keeper::open(site.config()).expect("opens");
        let started = keeper.start_set(&request).expect("started");
        ended(&keeper, &started.job_id.expect("there are rooms"));
        keeper.stop();
        site.assert_sound(&about);
        let after = site.tables();
        for table in ["events", "state_groups", "state_groups_state", "event_json"] {
            let of_room = |tables: &Tables| -> Vec<_> {
                let rows = tables.rows(table).iter();
                rows.filter(|r| r.text("room_id") == Some(&room))
                    .cloned()
                    .collect()
            };
            assert_eq!(of_room(&before), of_room(&after), "{about}: {table}");
        }
        // Until then, old copies of rows that SQLite moved may be left in the file.
        roomkeeper::keeper::reclaim(&site.config()).expect("reclaimed");
        site.assert_forgotten(&before, &about);
    });
}

#[test]
fn a_request_that_names_no_rooms_or_may_mean_more_than_was_meant_is_refused() {
    let site = server(1);
    let before = site.tables();
    let keeper = Keeper::open(site.config()).expect("opens");
    let delete = || SetAction::DeleteRoom(forced());
    let only_not = SetRequest {
        selectors: Selectors {
            only: Vec::new(),
            not: vec![Condition::Empty],
        },
        ..set(Vec::new(), delete())
    };
    let both = SetRequest {
        all_rooms: true,
        ..set(vec![Condition::Empty], delete())
    };
    let purge = |point| SetAction::PurgeHistory {
        point,
        delete_local_events: true,
        media: Default::default(),
    };
    let of_elsewhere = Request {
        new_room_user_id: Some("@a:elsewhere.example".into()),
        ..Request::default()
    };
    let too_many = vec![Condition::Empty; 1_001];
    for (request, errcode) in [
        (set(Vec::new(), delete()), "M_MISSING_PARAM"),
        (only_not, "M_INVALID_PARAM"),
        (both, "M_INVALID_PARAM"),
        (set(too_many, delete()), "M_INVALID_PARAM"),
        (
            every_room(purge(PurgePoint::BeforeToken("t5-5".into()))),
            "M_INVALID_PARAM",
        ),
        (
            every_room(purge(PurgePoint::BeforeEvent("$a".into()))),
            "M_INVALID_PARAM",
        ),
        (
            every_room(purge(PurgePoint::OlderThan(Millis(-1)))),
            "M_INVALID_PARAM",
        ),
        (
            set(vec![Condition::Room("!none:x".into())], delete()),
            "M_NOT_FOUND",
        ),
        (every_room(SetAction::DeleteRoom(of_elsewhere)), "M_UNKNOWN"),
    ] {
        let planned = keeper.plan_set(&request, 1).expect_err("refused");
        let refused = keeper.start_set(&request).expect_err("refused");
        assert_eq!(planned.to_string(), refused.to_string());
        assert_eq!(refused.class().errcode, errcode, "{refused}");
        assert_eq!(refused.class().status, 400, "{refused}");
    }
    assert_eq!(keeper.jobs().expect("listed"), Vec::new());
    // Nobody fits: there is no job.
    let nobody = set(vec![Condition::Name("no such name".into())], delete());
    let started = keeper.start_set(&nobody).expect("nothing is to be done");
    assert_eq!(
        started,
        StartedSet {
            job_id: None,
            rooms: 0
        }
    );
    keeper.stop();
    assert_same(&before, &site.tables(), "nothing went");
}

/// A set of which nothing has been done yet: somebody else writes.
fn begun_but_held(site: &Site, config: &Config, request: &SetRequest) -> JobId {
    let mut config = config.clone();
    // It waits for others.
    config.homeserver = roomkeeper::config::HomeserverPolicy::AllowRunning;
    let other = rusqlite::Connection::open(&site.database).expect("opens");
    let keeper = Keeper::open(config).expect("opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("held");
    let id = started(&keeper, request);
    let begun = Instant::now();
    while parts(&keeper).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "no room's turn");
        std::thread::sleep(Duration::from_millis(10));
    }
    keeper.stop();
    other.execute_batch("ROLLBACK").expect("let go");
    id
}

#[test]
fn a_room_that_is_another_when_its_turn_comes_is_left_alone_and_told() {
    let town = Town::new(6, 20);
    let site = &town.site;
    site.run("DELETE FROM current_state_events; UPDATE local_current_membership SET membership = 'leave'");
    let request = set(vec![Condition::Empty], SetAction::DeleteRoom(forced()));
    let rooms = chosen(site, &request);
    assert_eq!(rooms.len(), 6);
    let id = begun_but_held(site, &town.config(), &request);
    // Somebody comes into two of them: into the one before its rows are looked at, into the other with an event.
    let (joined, first) = (&rooms[3], &rooms[0]);
    site.run(&format!(
        "UPDATE local_current_membership SET membership = 'join' WHERE room_id = '{joined}'"
    ));
    // A room that fits by now was not decided on.
    site.run(
        "INSERT INTO rooms (room_id, is_public, creator, room_version) VALUES ('!new:example.org', FALSE, '@a:example.org', '10')",
    );
    let mut config = town.config();
    config.resume = false;
    let keeper = Keeper::open(config).expect("opens");
    assert_eq!(keeper.resume().expect("resumed"), std::slice::from_ref(&id));
    let job = ended(&keeper, &id);
    let did = summary(&job);
    assert_eq!(job.state, State::Complete, "{job:?}");
    assert_eq!((did.rooms_done, did.rooms_skipped), (5, 1), "{did:?}");
    assert_eq!(&did.skipped[0].room_id, joined);
    assert!(did.skipped[0].error.contains("not any more"), "{did:?}");
    assert_eq!(did.skipped[0].error_code, "no_longer_fits");
    assert_eq!(parts(&keeper)[first].state, State::Complete);
    keeper.stop();
    assert_eq!(
        town.ask(&format!(
            "SELECT count(*) FROM events WHERE room_id = '{joined}'"
        )),
        20
    );
    assert_eq!(town.ask("SELECT count(*) FROM rooms"), 2);
    assert_eq!(town.ask("SELECT count(*) FROM events"), 20);
}

#[test]
fn a_set_that_is_stopped_goes_on_with_the_next_room_and_counts_none_twice() {
    let town = Town::new(40, 30);
    let request = every_room(SetAction::DeleteRoom(forced()));
    let mut config = town.config();
    config.resume = false;
    let keeper = Keeper::open(config.clone()).expect("opens");
    let id = started(&keeper, &request);
    let mut lives = 1_i64;
    let mut keeper = Some(keeper);
    loop {
        let at_work = keeper.take().expect("open");
        // Longer each time: on a busy machine a short life comes to nothing.
        std::thread::sleep(Duration::from_millis(60 + 15 * lives.unsigned_abs()));
        let before = summary(&at_work.job(&id).expect("read").expect("there"));
        at_work.stop();
        let opened = Keeper::open(config.clone()).expect("opens");
        let now = opened.job(&id).expect("read").expect("there");
        let did = summary(&now);
        assert!(did.rooms_done >= before.rooms_done, "{did:?}");
        if now.state.is_ended() {
            keeper = Some(opened);
            break;
        }
        assert_eq!(now.state, State::Queued, "{now:?}");
        opened.resume().expect("resumed");
        keeper = Some(opened);
        lives += 1;
        assert!(lives < 200, "it never ends");
    }
    println!("{lives} lives");
    let keeper = keeper.expect("open");
    let job = ended(&keeper, &id);
    let did = summary(&job);
    assert_eq!((did.rooms_done, did.rooms_planned), (40, 40), "{did:?}");
    // What an interrupted transaction had committed all the same is not counted.
    let rows = progress_of(&job).rows_removed;
    assert!(
        rows["rooms"] <= 40 && rows["rooms"] > 40 - lives,
        "{rows:?}"
    );
    assert!(rows["events"] <= 40 * 30, "{rows:?}");
    assert!(
        parts(&keeper)
            .values()
            .all(|part| part.state == State::Complete)
    );
    keeper.stop();
    assert_eq!(town.ask("SELECT count(*) FROM events"), 0);
    town.assert_sound();
}

#[test]
fn a_set_is_paused_goes_on_and_is_cancelled_as_one() {
    let town = Town::new(6, 20);
    let request = every_room(SetAction::DeleteRoom(forced()));
    let mut config = town.config();
    config.homeserver = roomkeeper::config::HomeserverPolicy::AllowRunning;
    let other = rusqlite::Connection::open(&town.site.database).expect("opens");
    let keeper = Keeper::open(config).expect("opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("held");
    let id = started(&keeper, &request);
    while parts(&keeper).is_empty() {
        std::thread::sleep(Duration::from_millis(10));
    }
    keeper.pause(&id).expect("paused");
    while !keeper.wait_for(&id, Duration::from_secs(1)) {}
    let state = |id: &JobId| keeper.job(id).expect("read").expect("there").state;
    assert_eq!(state(&id), State::Paused);
    assert!(
        parts(&keeper)
            .values()
            .all(|part| part.state == State::Paused)
    );
    other.execute_batch("ROLLBACK").expect("let go");
    assert_eq!(keeper.resume().expect("nothing"), [], "paused stays paused");
    assert_eq!(town.ask("SELECT count(*) FROM events"), 120);
    keeper.continue_job(&id).expect("goes on");
    let job = ended(&keeper, &id);
    assert_eq!(job.state, State::Complete, "{job:?}");
    assert_eq!(summary(&job).rooms_done, 6);
    assert_eq!(town.ask("SELECT count(*) FROM events"), 0);

    // Another one is cancelled while it is paused, with its parts.
    let town = Town::new(3, 20);
    let config = town.config();
    let id = begun_but_held(&town.site, &config, &request);
    let mut config = config;
    config.resume = false;
    let keeper = Keeper::open(config).expect("opens");
    keeper.pause(&id).expect("paused");
    keeper.cancel(&id).expect("cancelled");
    for job in keeper.jobs().expect("listed") {
        assert_eq!(job.state, State::Failed, "{job:?}");
        assert_eq!(job.error_code.as_deref(), Some("cancelled"), "{job:?}");
    }
    assert_eq!(keeper.resume().expect("nothing"), []);
    keeper.stop();
    assert_eq!(town.ask("SELECT count(*) FROM events"), 60, "nothing went");
}

#[test]
fn a_room_that_fails_and_one_that_is_busy_stop_no_other() {
    let town = Town::new(6, 20);
    let bad = town::room(2);
    let site = &town.site;
    site.run(&format!(
        "CREATE TRIGGER no BEFORE DELETE ON events WHEN old.room_id = '{bad}' BEGIN SELECT RAISE(ABORT, 'no'); END"
    ));
    let request = every_room(SetAction::DeleteRoom(forced()));
    let keeper = Keeper::open(town.config()).expect("opens");
    let id = started(&keeper, &request);
    let job = ended(&keeper, &id);
    let did = summary(&job);
    assert_eq!(job.state, State::Failed);
    assert_eq!(job.error_code.as_deref(), Some("rooms_failed"));
    assert_eq!((did.rooms_done, did.rooms_failed), (5, 1), "{did:?}");
    assert_eq!(did.errors[0].room_id.as_str(), bad);
    keeper.stop();
    assert_eq!(
        town.ask("SELECT count(*) FROM events"),
        20,
        "the bad room is whole"
    );
    assert_eq!(town.ask("SELECT count(*) FROM rooms"), 1);
    // It is asked for again when the fault is gone.
    site.run("DROP TRIGGER no");
    let keeper = Keeper::open(town.config()).expect("opens");
    let id = started(&keeper, &request);
    assert_eq!(summary(&ended(&keeper, &id)).rooms_done, 1);
    keeper.stop();
    assert_eq!(town.ask("SELECT count(*) FROM events"), 0);
    town.assert_sound();
}

also_on_postgres! {
    a_set_does_what_its_plan_says_and_what_the_single_commands_would_do,
    what_a_set_leaves_is_sound_and_what_went_is_forgotten,
    a_set_that_is_stopped_goes_on_with_the_next_room_and_counts_none_twice,
}

/// The program, as a person calls it in a script.
fn program(site: &Site, words: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_roomkeeper"));
    command.arg("--database").arg(&site.database);
    command.args(["--server-name", &site.server_name, "--offline", "assume"]);
    command.args(words).stdin(std::process::Stdio::null());
    command
}

#[test]
fn the_program_takes_rooms_by_what_they_are_and_never_more_than_was_said() {
    let town = Town::new(5, 20);
    let site = &town.site;
    let before = site.tables();
    let run = |words: &[&str]| {
        let out = program(site, words).output().expect("it starts");
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        (out.status.code(), text(&out.stdout), text(&out.stderr))
    };
    let room = town::room(0);
    for (words, code) in [
        (vec!["delete-room"], 2),
        (vec!["delete-room", "--not", "empty"], 2),
        (vec!["delete-room", "--all-rooms", "--public"], 2),
        (vec!["delete-room", &room, "--empty"], 2),
        (vec!["delete-room", "--room", "-"], 2),
        (vec!["delete-room", "--room", "!none:x", "--yes"], 2),
        (vec!["purge-history", "--before", "2030-01-01"], 2),
        (
            vec![
                "purge-history",
                "--all-rooms",
                "--before-token",
                "t5-5",
                "--yes",
            ],
            2,
        ),
        // Nobody can be asked.
        (vec!["delete-room", "--all-rooms"], 130),
        (
            vec![
                "--json",
                "purge-history",
                "--local",
                "--before",
                "2030-01-01",
            ],
            130,
        ),
        // Nothing is meant.
        (vec!["delete-room", "--name", "no such name"], 0),
    ] {
        let (status, out, err) = run(&words);
        assert_eq!(status, Some(code), "{words:?}: {out}{err}");
        assert!(!(out.clone() + &err).is_empty(), "{words:?}");
    }
    let (status, out, err) = run(&[
        "--json",
        "delete-room",
        "--all-rooms",
        "--force-purge",
        "--dry-run",
    ]);
    assert_eq!(status, Some(0), "{err}");
    let plan: serde_json::Value = serde_json::from_str(&out).expect(&out);
    assert_eq!(plan["rooms"].as_array().map(Vec::len), Some(5), "{plan}");
    assert_eq!(plan["totals"]["events"], 100, "{plan}");
    assert_same(&before, &site.tables(), "nothing was changed");

    let other = town::room(3);
    let words = [
        "delete-room",
        "--room",
        &room,
        "--room",
        &other,
        "--force-purge",
        "--yes",
    ];
    let (status, out, err) = run(&words);
    assert_eq!(status, Some(0), "{err}");
    assert!(out.contains("2 done of 2 rooms"), "{out}");
    assert_eq!(town.ask("SELECT count(*) FROM rooms"), 3);
    let all_but = format!("room={}", town::room(1));
    let words = [
        "purge-history",
        "--all-rooms",
        "--not",
        &all_but,
        "--before",
        "2030-01-01",
        "--delete-local-events",
        "--yes",
    ];
    let (status, out, err) = run(&words);
    assert_eq!(status, Some(0), "{err}");
    assert!(out.contains("2 done of 2 rooms"), "{out}");
    let kept = format!(
        "SELECT count(*) FROM events WHERE room_id = '{}'",
        town::room(1)
    );
    assert_eq!(town.ask(&kept), 20, "it was excepted");
    assert!(town.ask("SELECT count(*) FROM events") < 60);
    town.assert_sound();
}

#[test]
fn a_set_that_is_killed_goes_on_to_the_end() {
    for_each_sample(2, |seed, rng| {
        let town = Town::new(30, 20);
        let site = &town.site;
        let spawned = program(
            site,
            &["delete-room", "--all-rooms", "--force-purge", "--yes"],
        )
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn();
        let mut child = spawned.expect("it starts");
        let begun = Instant::now();
        let gone = 600 - rng.random_range(0..500);
        while town.ask("SELECT count(*) FROM events") > gone
            && child.try_wait().expect("asked").is_none()
            && begun.elapsed() < Duration::from_secs(60)
        {}
        child.kill().expect("killed");
        child.wait().expect("gone");
        println!(
            "{seed}: killed with {} events left",
            town.ask("SELECT count(*) FROM events")
        );
        site.assert_sound(&format!("{seed}: killed"));
        let out = program(site, &["--json", "jobs", "--resume"])
            .output()
            .expect("it starts");
        assert!(out.status.success(), "{seed}: {out:?}");
        assert_eq!(town.ask("SELECT count(*) FROM rooms"), 0, "{seed}: {out:?}");
        assert_eq!(town.ask("SELECT count(*) FROM events"), 0, "{seed}");
        town.assert_sound();
        let ledger = roomkeeper::jobs::ledger::Ledger::open(&site.config().ledger).expect("opens");
        for job in ledger.list().expect("read") {
            assert_eq!(job.state, State::Complete, "{seed}: {job:?}");
            if job.kind == "room_set" {
                assert_eq!(summary(&job).rooms_done, 30, "{seed}: {job:?}");
            }
        }
    });
}
