//! Rooms that go together are left as each is that goes by itself; and what is in the way of one sends all of them back.

use rand::Rng;
use support::rooms::Recipe;
use support::samples::for_each_sample;
use support::state_model::{Graph, STATE};
use support::tables::{Tables, assert_same};
use support::work::{Ask, Site};

use super::super::super::support;
use super::super::{Request, prepare_many, run};
use super::*;
use crate::batch::BatchLimits;
use crate::job::ServerState::{Running, Stopped};
use crate::job::workbench::Workbench;
use crate::jobs::ledger::Subject;
use crate::jobs::register::JobGuard;
use crate::point::Point;

const LIMITS: BatchLimits = BatchLimits {
    events: 5_000,
    millis: 60_000,
    pause: std::time::Duration::ZERO,
    events_offline: 5_000,
    rewrite: crate::batch::Rewrite::Never,
    rooms: 250,
    check_in_bulk: true,
};

const KIND: &str = "retention_purge";

fn request(ask: &Ask) -> Request {
    Request {
        point: Point {
            topological: ask.below,
            stream: 0,
        },
        delete_local_events: ask.delete_local_events,
        media: Default::default(),
        keep_received_after: None,
        expiry: None,
        held: Vec::new(),
    }
}

/// Somewhere in every room.
fn cuts(tables: &Tables, rng: &mut impl Rng) -> Vec<Ask> {
    let rooms: std::collections::BTreeSet<&str> = tables
        .rows("event_forward_extremities")
        .iter()
        .map(|row| row.text("room_id").expect("a room"))
        .collect();
    let of_room = |room: &str| {
        let events = tables.rows("events").iter();
        let depths = events
            .filter(|row| row.text("room_id") == Some(room))
            .map(|row| row.number("topological_ordering"));
        depths.max().unwrap_or(1)
    };
    rooms
        .into_iter()
        .map(|room| {
            let mut ask = Ask::all_of(room, rng.random_range(1..=of_room(room)));
            ask.delete_local_events = rng.random_ratio(3, 4);
            ask
        })
        .collect()
}

fn alone(site: &Site, asks: &[Ask], state: ServerState) -> Vec<Result<Progress, Error>> {
    let purge = |ask: &Ask| {
        let bench = Workbench::new(site, &ask.room, KIND);
        let mut job = bench.job(state, [state], true, LIMITS);
        let done = run(&mut job, &request(ask));
        drop(job);
        bench.end();
        done
    };
    asks.iter().map(purge).collect()
}

fn together(
    site: &Site,
    asks: &[Ask],
    state: ServerState,
    before: impl FnOnce(&Workbench),
) -> Result<Option<Vec<Progress>>, Error> {
    let bench = Workbench::new(site, &asks[0].room, KIND);
    let rooms: Vec<RoomId> = asks.iter().map(|ask| RoomId::new(&*ask.room)).collect();
    let requests: Vec<Request> = asks.iter().map(request).collect();
    let others: Vec<JobGuard> = rooms[1..]
        .iter()
        .map(|room| {
            let subject = Subject::Room(room.clone());
            let guard = bench
                .register
                .enqueue(KIND, &subject, serde_json::json!({}));
            guard.expect("the room is free")
        })
        .collect();
    let mut job = bench.job(state, [state], true, LIMITS);
    job.is_one_of_many = true;
    let cuts = rooms.iter().zip(asks.iter().map(|ask| ask.below));
    prepare_many(&job.db, cuts).expect("prepared");
    before(&bench);
    let first = job.live;
    let lives = std::iter::once(first).chain(others.iter().map(|guard| &**guard.live()));
    let mut parts: Vec<OneOfMany<'_>> = lives
        .zip(&rooms)
        .zip(&requests)
        .map(|((live, room), request)| OneOfMany {
            live,
            room,
            request,
            progress: Progress::default(),
        })
        .collect();
    let done = run_together(&mut job, &mut parts);
    let done = done.map(|done| done.then(|| parts.into_iter().map(|part| part.progress).collect()));
    drop(job);
    for room in &rooms {
        let steps = bench.register.ledger().steps(room.as_str()).expect("read");
        if matches!(done, Ok(Some(_))) {
            assert!(steps.is_empty(), "{room}: {steps:?}");
        }
    }
    others.into_iter().for_each(|guard| guard.end(None));
    bench.end();
    done
}

fn but_state(tables: &Tables) -> Tables {
    tables.clone().without(STATE)
}

fn rows_but_state(progress: &Progress) -> crate::store::event_rows::RowCounts {
    let mut rows = progress.rows_removed.clone();
    rows.retain(|table, n| !STATE.contains(&table.as_str()) && *n != 0);
    rows
}

#[test]
fn rooms_that_go_together_are_as_if_each_had_gone_alone() {
    let mut went = 0;
    for_each_sample(12, |seed, rng| {
        let recipe = Recipe {
            rooms: 2..6,
            events: 12..40,
            may_be_long: false,
        };
        let site = Site::random(seed, &recipe);
        let before = site.tables();
        let asks = cuts(&before, rng);
        for state in [Stopped, Running] {
            let about = format!("seed {seed}, {state:?}, {asks:?}");
            let (one, all) = (site.copy(), site.copy());
            let wanted = alone(&one, &asks, state);
            let found = together(&all, &asks, state, |_| ());
            let (expected, after) = (one.tables(), all.tables());
            match (found, wanted.iter().all(Result::is_ok)) {
                (Ok(Some(found)), true) => {
                    went += 1;
                    assert_same(&but_state(&expected), &but_state(&after), &about);
                    let states = |tables: &Tables| Graph::of_events(tables);
                    assert_eq!(states(&expected), states(&after), "{about}");
                    for (wanted, found) in wanted.iter().zip(&found) {
                        let wanted = wanted.as_ref().expect("well");
                        assert_eq!(rows_but_state(wanted), rows_but_state(found), "{about}");
                        assert_eq!(wanted.events_done, found.events_done, "{about}");
                        let kept = |p: &Progress| (p.extremities_kept, p.local_messages_kept);
                        assert_eq!(kept(wanted), kept(found), "{about}");
                        assert_eq!(wanted.notes, found.notes, "{about}");
                    }
                }
                (Ok(Some(_)), false) => panic!("{about}: one of them is refused"),
                // Nothing is half done.
                (Ok(None) | Err(_), _) => assert_same(&before, &after, &about),
            }
            all.assert_sound(&about);
        }
    });
    println!("{went} went together");
    assert!(went > 0, "none went together");
}

/// Two rooms of one event after the other.
fn example() -> (Site, Vec<Ask>) {
    use support::draft::{Draft, Event};
    let mut draft = Draft::new("example.org", 3);
    let mut stream = 2;
    for tag in ["a", "b"] {
        let room = format!("!{tag}:example.org");
        draft.open_room(&room, tag, "@ann:example.org", stream);
        stream += 2;
        let mut last = format!("${tag}-join");
        for n in 0..12 {
            let id = format!("${tag}-{n}");
            let event = Event::message(&id, &room, "@ann:example.org", 3 + n, stream);
            stream += 1;
            draft.add(match n % 3 {
                0 => event.after(&[&last]),
                _ => event.after(&[&last]).state("m.room.topic", ""),
            });
            last = id;
        }
    }
    let asks = ["!a:example.org", "!b:example.org"].map(|room| Ask::all_of(room, 12));
    (Site::of(draft), asks.into())
}

#[test]
fn whatever_is_in_the_way_of_one_sends_all_of_them_back_untouched() {
    let (site, asks) = example();
    for state in [Stopped, Running] {
        assert!(matches!(
            together(&site.copy(), &asks, state, |_| ()),
            Ok(Some(_))
        ));
    }
    let before = site.tables();
    let untouched = |site: &Site, about: &str| {
        assert_same(&before, &site.tables(), about);
    };
    // Somebody of ours reads the second room.
    let copy = site.copy();
    let mut reader = None;
    let found = together(&copy, &asks, Stopped, |bench| {
        reader = Some(bench.locks.read(&RoomId::from("!b:example.org")));
    });
    assert!(matches!(found, Ok(None)), "{found:?}");
    untouched(&copy, "read");
    // A point that would empty the second room.
    let copy = site.copy();
    let mut emptying = asks.clone();
    emptying[1].below = 1_000;
    let found = together(&copy, &emptying, Stopped, |_| ());
    assert!(matches!(found, Ok(None)), "{found:?}");
    untouched(&copy, "emptied");
    // The homeserver's own lock on the second room.
    let copy = site.copy();
    copy.run(
        "INSERT INTO worker_read_write_locks (lock_name, lock_key, instance_name, write_lock, token, last_renewed_ts)
         VALUES ('purge_pagination_lock', '!b:example.org', 'master', FALSE, 'held', 9000000000000)",
    );
    let locked = copy.tables();
    let found = together(&copy, &asks, Stopped, |_| ());
    assert!(matches!(found, Ok(None)), "{found:?}");
    assert_same(&locked, &copy.tables(), "locked");
}
