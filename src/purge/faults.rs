//! A purge that is stopped at any step of SQLite leaves a whole room, and comes to the same end when it is taken up
//! again.
//!
//! SQLite calls us at every few instructions of its machine; at one of these calls, once, we interrupt it. Normal
//! runs stop every statement somewhere; `ROOMKEEPER_FAULTS=all` stops at every call there is.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use support::rooms::Recipe;
use support::samples::deepest_cut;
use support::state_model::{Graph, STATE};
use support::tables::{Tables, assert_same};
use support::work::{Ask, NOW, Site};

use super::super::support;
use super::{Request, run};
use crate::batch::{BatchLimits, Rewrite};
use crate::error::Error;
use crate::ids::RoomId;
use crate::job::{HomeserverWatch, JobContext, ServerState};
use crate::jobs::ledger::{Ledger, Subject};
use crate::jobs::register::JobRegistry;
use crate::locks::RoomLocks;
use crate::point::Point;
use crate::store::db::{Db, OpenOptions, SecureDelete, TRACE_HOOK};
use crate::store::free_pages::RawFile;
use crate::store::{check, homeserver};
use crate::time::ManualClock;

/// What happens to one run of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Nothing.
    Undisturbed,
    /// Nothing, and somebody takes notes.
    Observed,
    /// At this call of SQLite its statement is interrupted, and the process wants to stop: the job is handed back.
    Stop(i64),
    /// The same, out of nowhere: the job fails.
    Fail(i64),
}

/// How a purge goes about it.
#[derive(Clone, Copy, Debug)]
struct Way {
    server_state: ServerState,
    limits: BatchLimits,
}

/// What an undisturbed run shows.
#[derive(Default)]
struct Seen {
    /// Calls of SQLite by the statement that was running.
    calls: BTreeMap<String, Vec<i64>>,
    /// What the database was before each transaction: at every whole point, that is.
    points: Vec<Tables>,
}

/// Runs the job that the ledger has, or a new one.
fn life(site: &Site, room: &RoomId, below: i64, way: Way, fate: Fate) -> (Result<(), Error>, Seen) {
    let raw = RawFile::open(&site.database).expect("opens");
    let ledger = Ledger::open(&site.config().ledger).expect("opens");
    let clock = Arc::new(ManualClock::at(NOW));
    let register = Arc::new(JobRegistry::new(ledger, clock.clone()));
    let request = Request {
        point: Point {
            topological: below,
            stream: 0,
        },
        delete_local_events: true,
        media: Default::default(),
        keep_received_after: None,
        expiry: None,
        held: Vec::new(),
    };
    let guard = match register.ledger().unended().expect("read").first() {
        Some(record) => register.requeue(record),
        None => register.enqueue(
            "purge_history",
            &Subject::Room(room.clone()),
            serde_json::to_value(request.clone()).expect("plain"),
        ),
    };
    let guard = guard.expect("the room is free");
    guard.start().expect("noted");
    let options = OpenOptions {
        secure_delete: if way.server_state == ServerState::Stopped {
            SecureDelete::Fast
        } else {
            SecureDelete::On
        },
        ..OpenOptions::default()
    };
    let mut db = Db::open(&site.database, &options).expect("opens");
    homeserver::release_leftover_locks(&mut db).expect("released");
    let wants_to_stop = Arc::new(AtomicBool::new(false));
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let (stop, noted) = (wants_to_stop.clone(), seen.clone());
    let database = site.database.clone();
    let mut now = 0;
    let watched = move || {
        now += 1;
        if fate == Fate::Observed {
            let statement = TRACE_HOOK.with_borrow(String::clone);
            let mut seen = noted.lock();
            if statement == "BEGIN IMMEDIATE" {
                seen.points.push(but_locks(Tables::read(&database)));
            }
            seen.calls.entry(statement).or_default().push(now);
        }
        if fate == Fate::Stop(now) {
            stop.store(true, Ordering::SeqCst);
        }
        matches!(fate, Fate::Stop(at) | Fate::Fail(at) if at == now)
    };
    db.raw_mut()
        .progress_handler(1, Some(watched))
        .expect("set");
    let is_stopping = || wants_to_stop.load(Ordering::SeqCst);
    let event_signing = Default::default();
    let mut ctx = JobContext {
        db,
        room,
        server_name: &site.server_name,
        server_state: way.server_state,
        limits: way.limits,
        overwrite_deleted: true,
        overwrite_when: Default::default(),
        locks: &RoomLocks::default(),
        writer: &Mutex::default(),
        ledger: register.ledger(),
        live: guard.live(),
        raw: Some(&raw),
        synapse_lock: None,
        watch: HomeserverWatch::Told(way.server_state),
        clock: &*clock,
        event_signing: &event_signing,
        homeserver: None,
        register: &register,
        is_one_of_many: false,
        archive: None,
        holds: Default::default(),
        media: Default::default(),
        is_stopping: &is_stopping,
    };
    let outcome = run(&mut ctx, &request).map(drop);
    drop(ctx);
    match &outcome {
        Err(Error::Stopping) => guard.suspend(),
        Err(e) => guard.end(Some((&e.status_text(), e.code()))),
        Ok(()) => guard.end(None),
    }
    let seen = std::mem::take(&mut *seen.lock());
    (outcome, seen)
}

/// The tables that a purge itself changes: not its lock on the room, which the next start takes away.
fn but_locks(tables: Tables) -> Tables {
    tables.without(&["worker_read_write_locks", "worker_read_write_locks_mode"])
}

/// A purge, and everything that may be found when it was disturbed.
struct Example {
    site: Site,
    ask: Ask,
    way: Way,
    seen: Seen,
    /// The state groups that stay noted in the ledger: an event in flight uses them, so the next purge looks again.
    in_use: Vec<i64>,
    /// Which of the points have been found sound.
    sound: RefCell<BTreeSet<usize>>,
}

impl Example {
    fn new(seed: u64, server_state: ServerState, rewrite: Rewrite) -> Self {
        let recipe = Recipe {
            rooms: 1..2,
            events: 18..24,
            may_be_long: false,
        };
        let site = Site::random(seed, &recipe);
        let limits = BatchLimits {
            events: 6,
            millis: 60_000,
            pause: std::time::Duration::ZERO,
            events_offline: 6,
            rewrite,
            ..BatchLimits::default()
        };
        let mut example = Self {
            ask: deepest_cut(&site.tables()),
            site,
            way: Way {
                server_state,
                limits,
            },
            seen: Seen::default(),
            in_use: Vec::new(),
            sound: RefCell::default(),
        };
        let undisturbed = example.site.copy();
        let (outcome, seen) = example.live(&undisturbed, Fate::Observed);
        outcome.expect("nothing disturbs it");
        assert_sound(&undisturbed, "undisturbed");
        example.seen = seen;
        example.in_use = example.noted(&undisturbed, "undisturbed");
        example.seen.points.push(but_locks(undisturbed.tables()));
        example.seen.points.dedup_by(|a, b| a == b);
        example
    }

    fn live(&self, site: &Site, fate: Fate) -> (Result<(), Error>, Seen) {
        let room = RoomId::new(&*self.ask.room);
        life(site, &room, self.ask.below, self.way, fate)
    }

    /// All calls of SQLite; or one of every statement, be it a commit or a checkpoint.
    fn chosen(&self, rng: &mut StdRng) -> Vec<i64> {
        if std::env::var("ROOMKEEPER_FAULTS").is_ok_and(|which| which == "all") {
            let last = self
                .seen
                .calls
                .values()
                .flatten()
                .max()
                .copied()
                .unwrap_or(0);
            return (1..=last).collect();
        }
        let mut chosen = Vec::new();
        for calls in self.seen.calls.values() {
            chosen.push(calls[rng.random_range(0..calls.len())]);
        }
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }

    /// Disturbs one run and looks at what it left; then finishes.
    fn try_fate(&self, fate: Fate, about: &str) {
        let site = self.site.copy();
        let (outcome, _) = self.live(&site, fate);
        let end = self.seen.points.last().expect("the end");
        let found = but_locks(site.tables());
        let about = format!("{about}, {fate:?}, {outcome:?}");
        let fails = matches!(fate, Fate::Fail(_));
        let point = self.seen.points.iter().position(|point| *point == found);
        assert!(
            fails || point.is_some(),
            "{about}: torn; against the end:\n{}",
            end.difference(&found)
        );
        // The same rows are sound once and for all.
        if point.is_none_or(|point| self.sound.borrow_mut().insert(point)) {
            assert_sound(&site, &about);
        }
        let (finished, _) = self.live(&site, Fate::Undisturbed);
        finished.unwrap_or_else(|e| panic!("{about}: cannot go on: {e}"));
        let found = but_locks(site.tables());
        if fails {
            // A job that failed tidies up, so state was stored anew once more than otherwise.
            let but = |tables: &Tables| tables.clone().without(STATE);
            assert_same(&but(end), &but(&found), &about);
            assert_eq!(Graph::of_events(end), Graph::of_events(&found), "{about}");
            assert_sound(&site, &about);
        } else {
            assert_same(end, &found, &about);
        }
        assert_eq!(
            self.noted(&site, &about),
            self.in_use,
            "{about}: the ledger notes other state groups than after an undisturbed run"
        );
    }

    /// What the ledger notes about state groups of the room when a job has ended: those alone that are in use.
    fn noted(&self, site: &Site, about: &str) -> Vec<i64> {
        let ledger = Ledger::open(&site.config().ledger).expect("opens");
        let room = self.ask.room.as_str();
        let steps = ledger.steps(room).expect("read");
        assert!(steps.is_empty(), "{about}: left to do: {steps:?}");
        let noted = ledger.candidates(room).expect("read");
        let tables = site.tables();
        let in_use: BTreeSet<i64> = tables
            .rows("state_groups_persisting")
            .iter()
            .map(|row| row.number("state_group"))
            .collect();
        assert!(
            noted.iter().all(|group| in_use.contains(group)),
            "{about}: forgotten: {noted:?}; in use: {in_use:?}"
        );
        noted
    }
}

fn assert_sound(site: &Site, about: &str) {
    let mut db = Db::open(&site.database, &OpenOptions::default()).expect("opens");
    homeserver::release_leftover_locks(&mut db).expect("released");
    let violations = check::check(&db, NOW, |_, _| ())
        .expect("checked")
        .violations;
    assert!(violations.is_empty(), "{about}: {violations:#?}");
}

fn try_all(server_state: ServerState, rewrite: Rewrite) {
    let seed = support::work::seed();
    println!("ROOMKEEPER_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let example = Example::new(seed, server_state, rewrite);
    let mut chosen = example.chosen(&mut rng);
    // A long run that is cut short has been everywhere.
    chosen.shuffle(&mut rng);
    let calls: usize = example.seen.calls.values().map(Vec::len).sum();
    println!(
        "{} statements, {calls} calls, {} points; {} calls interrupted",
        example.seen.calls.len(),
        example.seen.points.len(),
        chosen.len()
    );
    for (done, at) in chosen.into_iter().enumerate() {
        if done > 0 && done % 1000 == 0 {
            println!("{server_state:?}, {rewrite:?}: {done} calls interrupted");
        }
        let about = format!("ROOMKEEPER_SEED={seed}");
        let fate = if rng.random_ratio(3, 4) {
            Fate::Stop(at)
        } else {
            Fate::Fail(at)
        };
        example.try_fate(fate, &about);
    }
}

#[test]
fn batches_stopped_at_any_step_leave_a_whole_room_and_go_on() {
    try_all(ServerState::Stopped, Rewrite::Never);
}

#[test]
fn a_rewrite_stopped_at_any_step_leaves_the_old_room_or_the_new_one() {
    try_all(ServerState::Stopped, Rewrite::WherePossible);
}

#[test]
fn batches_beside_a_homeserver_stopped_at_any_step_leave_a_whole_room_and_go_on() {
    try_all(ServerState::Running, Rewrite::Never);
}
