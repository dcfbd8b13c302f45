//! A shutdown that is stopped at any step of SQLite leaves a sound database, and comes to the same end, event for event,
//! when it is taken up again.
//!
//! Normal runs stop at some of SQLite's calls; `ROOMKEEPER_FAULTS=all` at every fiftieth there is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::draft::{Draft, Event};
use support::tables::{Tables, assert_same, row};
use support::work::{NOW, Site, seed};

use super::super::support;
use super::request::{Request, Shutdown};
use super::shutdown::shut_down;
use crate::batch::BatchLimits;
use crate::config::{EventSigning, Secret, SigningKey};
use crate::error::Error;
use crate::ids::{RoomId, UserId};
use crate::job::{HomeserverWatch, JobContext, ServerState};
use crate::jobs::ledger::{Ledger, Subject};
use crate::jobs::register::JobRegistry;
use crate::locks::RoomLocks;
use crate::store::check;
use crate::store::db::{Db, OpenOptions};
use crate::store::free_pages::RawFile;
use crate::time::ManualClock;

const ROOM: &str = "!room:example.org";

/// Five people who are joined, one who is invited, two aliases; moved two at a time.
fn example() -> Site {
    let mut draft = Draft::new("example.org", 3);
    draft.open_room(ROOM, "room", "@ann:example.org", 2);
    let mut last = "$room-join".to_owned();
    for (n, (who, membership)) in (0..).zip([
        ("bob", "join"),
        ("cem", "join"),
        ("dee", "invite"),
        ("eva", "join"),
        ("fay", "join"),
    ]) {
        let (id, who) = (format!("$room-{n}"), format!("@{who}:example.org"));
        let event = Event::message(&id, ROOM, &who, 3 + n, 4 + n);
        draft.add(event.member(&who, membership).after(&[&last]));
        last = id;
    }
    for alias in ["#a:example.org", "#b:example.org"] {
        let cells = [("room_alias", alias.into()), ("room_id", ROOM.into())];
        draft.row("room_aliases", row(cells));
    }
    Site::of(draft)
}

/// One run of the job that the ledger has, or of a new one; interrupted at a call of SQLite, if that is said. Answers how
/// many calls there were, too.
fn life(site: &Site, stop_at: Option<i64>) -> (Result<Shutdown, Error>, i64) {
    let raw = RawFile::open(&site.database).expect("opens");
    let ledger = Ledger::open(&site.config().ledger).expect("opens");
    let clock = Arc::new(ManualClock::at(NOW));
    let register = Arc::new(JobRegistry::new(ledger, clock.clone()));
    let request = Request {
        requester: Some(UserId::from("@admin:example.org")),
        new_room_user_id: Some(UserId::from("@ann:example.org")),
        ..Request::default()
    };
    let room = RoomId::from(ROOM);
    let unended = register.ledger().unended().expect("read");
    let before: Shutdown = unended
        .first()
        .and_then(|record| serde_json::from_value(record.progress.clone()).ok())
        .unwrap_or_default();
    let guard = match unended.first() {
        Some(record) => register.requeue(record),
        None => register.enqueue(
            "delete",
            &Subject::Room(room.clone()),
            serde_json::json!({}),
        ),
    };
    let guard = guard.expect("the room is free");
    guard.start().expect("noted");
    let mut db = Db::open(&site.database, &OpenOptions::default()).expect("opens");
    let wants_to_stop = Arc::new(AtomicBool::new(false));
    let calls = Arc::new(AtomicI64::new(0));
    let (stop, count) = (wants_to_stop.clone(), calls.clone());
    let watched = move || {
        let now = count.fetch_add(1, Ordering::SeqCst) + 1;
        let is_it = stop_at == Some(now);
        if is_it {
            stop.store(true, Ordering::SeqCst);
        }
        is_it
    };
    db.raw_mut()
        .progress_handler(1, Some(watched))
        .expect("set");
    let is_stopping = || wants_to_stop.load(Ordering::SeqCst);
    let event_signing = EventSigning {
        signing_key: Some(SigningKey::Text(Secret::new(
            "ed25519 a_test AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
        ))),
        // The id of such a room is a hash, not drawn: every run makes the same one.
        room_version: Some("12".into()),
        ..EventSigning::default()
    };
    let mut job = JobContext {
        db,
        room: &room,
        server_name: &site.server_name,
        server_state: ServerState::Stopped,
        limits: BatchLimits {
            events_offline: 2,
            ..BatchLimits::default()
        },
        overwrite_deleted: true,
        overwrite_when: Default::default(),
        locks: &RoomLocks::default(),
        writer: &Mutex::default(),
        ledger: register.ledger(),
        live: guard.live(),
        raw: Some(&raw),
        event_signing: &event_signing,
        homeserver: None,
        register: &register,
        synapse_lock: None,
        watch: HomeserverWatch::Told(ServerState::Stopped),
        clock: &*clock,
        is_one_of_many: false,
        archive: None,
        holds: Default::default(),
        media: Default::default(),
        is_stopping: &is_stopping,
    };
    let (told_ledger, id) = (register.ledger(), guard.id().clone());
    let mut told = |shutdown: &Shutdown| {
        let value = serde_json::to_value(shutdown).expect("plain");
        guard.live().set_progress(value.clone());
        told_ledger.progress(&id, &value)
    };
    let outcome = shut_down(&mut job, &request, before, &mut told);
    drop(job);
    match &outcome {
        Ok(_) => guard.end(None),
        Err(_) => guard.suspend(),
    }
    (outcome, calls.load(Ordering::SeqCst))
}

fn sorted(mut shutdown: Shutdown) -> Shutdown {
    shutdown.kicked_users.sort();
    shutdown
}

#[test]
fn a_shutdown_stopped_at_any_step_is_taken_up_again_to_the_same_end() {
    let seed = seed();
    println!("ROOMKEEPER_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let site = example();
    let undisturbed = site.copy();
    let (end, calls) = life(&undisturbed, None);
    let end = sorted(end.expect("nothing disturbs it"));
    assert_eq!(end.kicked_users.len(), 6);
    assert_eq!(end.local_aliases.len(), 2);
    let tables = undisturbed.tables();
    let all = std::env::var("ROOMKEEPER_FAULTS").is_ok_and(|which| which == "all");
    let chosen: Vec<i64> = match all {
        true => (1..=calls).step_by(50).collect(),
        false => (0..12).map(|_| rng.random_range(1..=calls)).collect(),
    };
    println!("{calls} calls; {} of them interrupted", chosen.len());
    let mut interrupted = 0;
    for at in chosen {
        let about = format!("ROOMKEEPER_SEED={seed}, call {at}");
        let site = site.copy();
        let (outcome, _) = life(&site, Some(at));
        interrupted += i32::from(outcome.is_err());
        assert_sound(&site, &about);
        let (finished, _) = life(&site, None);
        let finished = finished.unwrap_or_else(|e| panic!("{about}: cannot go on: {e}"));
        // A run that had ended all the same was begun anew: then there is nobody left to move.
        if outcome.is_err() {
            assert_eq!(sorted(finished), end, "{about}");
            assert_same(&tables, &site.tables(), &about);
        }
    }
    assert!(interrupted > 0);
}

fn assert_sound(site: &Site, about: &str) {
    let db = Db::open(&site.database, &OpenOptions::default()).expect("opens");
    let violations = check::check(&db, NOW, |_, _| ())
        .expect("checked")
        .violations;
    assert!(violations.is_empty(), "{about}: {violations:#?}");
    let tables: Tables = site.tables();
    assert!(!tables.rows("events").is_empty());
}
