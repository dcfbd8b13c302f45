//! What a PostgreSQL server does to a purge: sessions that are ended, a server that crashes, locks that others hold, a
//! deadlock, a second roomkeeper. The room is whole at every moment, and the job comes to the same end.
//!
//! `ROOMKEEPER_CAMPAIGN=full` ends 200 sessions instead of a few.

#![cfg(feature = "postgres")]

#[macro_use]
mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use roomkeeper::job::Progress;
use roomkeeper::{Config, Error, JobId, Keeper, PurgeOptions, RoomId};
use support::cluster::cluster;
use support::engine::{self, Engine};
use support::rooms::Recipe;
use support::samples::deepest_cut;
use support::server::OnServer;
use support::state_model::{Graph, STATE};
use support::tables::{Tables, assert_same};
use support::work::{Ask, Site, seed};

/// One test at a time: some of them stop the server.
static ALONE: Mutex<()> = Mutex::new(());

/// A sample in which a purge has something to do, and a copy of it that was purged undisturbed.
struct Example {
    site: Site,
    ask: Ask,
    whole: Site,
    _alone: MutexGuard<'static, ()>,
}

impl Example {
    /// `None` where there is no server.
    fn new(seed: u64) -> Option<Self> {
        let alone = ALONE.lock();
        cluster()?;
        let mut made = None;
        engine::run(Engine::Postgres, || {
            let recipe = Recipe {
                rooms: 1..3,
                events: 80..100,
                may_be_long: false,
            };
            let site = Site::random(seed, &recipe);
            let ask = deepest_cut(&site.tables());
            let whole = site.copy();
            // Undisturbed, and with keys left to the server.
            whole
                .purge_with(whole.beside(1_000, 60_000), &ask)
                .expect("purged");
            made = Some(Self {
                site,
                ask,
                whole,
                _alone: alone,
            });
        });
        made
    }

    fn server(&self) -> &OnServer {
        self.site.on_server.as_ref().expect("on a server")
    }

    /// Small batches, slow enough to be met in the middle.
    fn slowly(&self) -> Config {
        let mut config = self.site.beside(3, 60_000);
        config.batch.pause = Duration::from_millis(20);
        config
    }

    fn start(&self, keeper: &Keeper) -> JobId {
        let options = PurgeOptions {
            delete_local_events: true,
            ..PurgeOptions::default()
        };
        keeper
            .purge_history(&RoomId::new(&*self.ask.room), self.ask.point(), options)
            .expect("started")
    }

    /// The room came to the end to which it comes undisturbed.
    #[track_caller]
    fn assert_done(&self, about: &str) {
        let (expected, found) = (self.whole.tables(), self.site.tables());
        let but = |tables: &Tables| tables.clone().without(STATE).without(LOCKS);
        assert_same(&but(&expected), &but(&found), about);
        assert_eq!(
            Graph::of_events(&expected),
            Graph::of_events(&found),
            "{about}"
        );
        self.site.assert_sound(about);
    }
}

/// A session that was ended gives no lock back; it is nobody's after two minutes.
const LOCKS: &[&str] = &["worker_read_write_locks", "worker_read_write_locks_mode"];

fn batches_of(keeper: &Keeper, id: &JobId) -> i64 {
    let job = keeper.job(id).expect("read").expect("there");
    serde_json::from_value(job.progress).map_or(0, |p: Progress| p.batches)
}

/// Waits until the job has done some batches and not all.
fn wait_for_batches(keeper: &Keeper, id: &JobId, batches: i64) {
    let until = Instant::now() + Duration::from_secs(60);
    while batches_of(keeper, id) < batches && !keeper.wait_for(id, Duration::from_millis(2)) {
        assert!(Instant::now() < until, "it does not get anywhere");
    }
}

#[test]
fn sessions_that_are_ended_at_random_cost_a_batch_and_not_the_job() {
    let wanted = match std::env::var("ROOMKEEPER_CAMPAIGN") {
        Ok(which) if which == "full" => 200,
        _ => 4,
    };
    let first = seed();
    let mut rng = StdRng::seed_from_u64(first);
    let (mut ended, mut lives) = (0, 0);
    while ended < wanted {
        let seed = first.wrapping_add(lives);
        lives += 1;
        let about = format!("ROOMKEEPER_SEED={first}, sample {seed}, after {ended}");
        let Some(example) = Example::new(seed) else {
            return;
        };
        let keeper = Keeper::open(example.slowly()).expect("opens");
        let id = example.start(&keeper);
        let mut admin = cluster().expect("runs").client("postgres");
        // Whoever is ended in every batch gets nowhere, which proves nothing.
        for _ in 0..3 {
            if keeper.wait_for(&id, Duration::from_micros(rng.random_range(500..150_000))) {
                break;
            }
            let rows = admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                  WHERE application_name = 'roomkeeper' AND datname = $1",
                &[&example.server().name],
            );
            ended += rows.expect("asked");
        }
        keeper.wait(&id).unwrap_or_else(|e| panic!("{about}: {e}"));
        keeper.stop();
        example.assert_done(&about);
    }
    println!("{ended} sessions ended in {lives} jobs");
}

#[test]
fn a_server_that_crashes_and_starts_again_is_waited_for() {
    let Some(example) = Example::new(seed()) else {
        return;
    };
    let keeper = Keeper::open(example.slowly()).expect("opens");
    let id = example.start(&keeper);
    wait_for_batches(&keeper, &id, 2);
    cluster().expect("runs").crash();
    let outcome = keeper.wait(&id);
    keeper.stop();
    // S-38: the tables of locks are empty after a crash; the lock is taken anew.
    outcome.expect("a crash is like a restart");
    example.assert_done("after a crash");
}

#[test]
fn a_row_that_somebody_holds_is_waited_for() {
    let Some(example) = Example::new(seed()) else {
        return;
    };
    let mut other = example.server().client();
    let mut holds = other.transaction().expect("begun");
    holds
        .execute(
            "SELECT 1 FROM room_depth WHERE room_id = $1 FOR UPDATE",
            &[&example.ask.room],
        )
        .expect("held");
    let keeper = Keeper::open(example.site.beside(1_000, 60_000)).expect("opens");
    let id = example.start(&keeper);
    // P-11: nobody else waits for what a batch takes last.
    let until = Instant::now() + Duration::from_secs(60);
    let waiting = || {
        cluster().expect("runs").number(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'roomkeeper' AND wait_event_type = 'Lock'",
        )
    };
    while waiting() != 1 {
        assert!(Instant::now() < until, "nobody waits for the row");
        assert!(
            !keeper.wait_for(&id, Duration::from_millis(20)),
            "it did not wait"
        );
    }
    assert!(
        !keeper.wait_for(&id, Duration::from_millis(500)),
        "it did not wait"
    );
    holds.rollback().expect("let go");
    keeper.wait(&id).expect("complete");
    keeper.stop();
    example.assert_done("after a wait");
}

#[test]
fn a_deadlock_costs_a_batch_and_not_the_job() {
    let Some(example) = Example::new(seed()) else {
        return;
    };
    let lowest: String = example
        .server()
        .client()
        .query_one(
            "SELECT event_id FROM events JOIN event_json USING (event_id)
              WHERE events.room_id = $1 AND topological_ordering < $2 AND NOT outlier
                AND event_id NOT IN (SELECT event_id FROM state_events)
                AND event_id NOT IN (SELECT event_id FROM redactions) LIMIT 1",
            &[&example.ask.room, &example.ask.below],
        )
        .expect("there is one")
        .get(0);
    let mut other = example.server().client();
    other
        .batch_execute("SET deadlock_timeout = '60s'")
        .expect("set");
    let mut holds = other.transaction().expect("begun");
    let held = "SELECT 1 FROM event_json WHERE event_id = $1 FOR UPDATE";
    holds.execute(held, &[&lowest]).expect("held");
    let keeper = Keeper::open(example.site.beside(1_000, 60_000)).expect("opens");
    let id = example.start(&keeper);
    // It has taken the event itself, and waits for its JSON.
    let until = Instant::now() + Duration::from_secs(30);
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'roomkeeper' AND wait_event_type = 'Lock'";
    while cluster().expect("runs").number(waits) == 0 {
        assert!(Instant::now() < until, "it does not wait");
        std::thread::sleep(Duration::from_millis(2));
    }
    let before = deadlocks();
    let taken = "SELECT 1 FROM events WHERE event_id = $1 FOR UPDATE";
    holds
        .execute(taken, &[&lowest])
        .expect("the other one gives way");
    holds.rollback().expect("let go");
    keeper.wait(&id).expect("complete");
    keeper.stop();
    let until = Instant::now() + Duration::from_secs(10);
    while deadlocks() == before {
        assert!(Instant::now() < until, "there was no deadlock");
        std::thread::sleep(Duration::from_millis(20));
    }
    example.assert_done("after a deadlock");
}

fn deadlocks() -> i64 {
    cluster()
        .expect("runs")
        .number("SELECT sum(deadlocks)::BIGINT FROM pg_stat_database")
}

/// S-34: each has a ledger of its own, and the second is refused while the first is at work. W-1 … W-8: a room is held by
/// one lock row at most.
#[test]
fn two_roomkeepers_never_purge_one_room_at_once() {
    let Some(example) = Example::new(seed()) else {
        return;
    };
    let first = Keeper::open(example.slowly()).expect("opens");
    let id = example.start(&first);
    wait_for_batches(&first, &id, 1);
    let mut config = example.slowly();
    config.ledger = example.site.directory().join("another.ledger");
    let refused = Keeper::open(config.clone()).err().expect("one at a time");
    assert_eq!(refused.class().exit, 3, "{refused}");
    assert!(refused.to_string().contains("at work"), "{refused}");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut looks = example.server().client();
            while !done.load(Ordering::SeqCst) {
                let row = looks.query_one(
                    "SELECT count(*), count(DISTINCT token) FROM worker_read_write_locks",
                    &[],
                );
                let held: i64 = row.expect("asked").get(0);
                assert!(held <= 1, "{held} hold the room");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        while !first.wait_for(&id, Duration::from_millis(1)) {
            assert!(Keeper::open(config.clone()).is_err(), "both are at work");
        }
        done.store(true, Ordering::SeqCst);
    });
    first.wait(&id).expect("complete");
    first.stop();
    let second = Keeper::open(config).expect("opens after the first");
    let other = example.start(&second);
    second.wait(&other).expect("complete");
    second.stop();
    example.assert_done("after two");
    assert_eq!(example.site.tables().sizes()["worker_read_write_locks"], 0);
}

/// W-4.
#[test]
fn a_lock_that_is_lost_stops_the_job_before_its_next_transaction() {
    let Some(example) = Example::new(seed()) else {
        return;
    };
    let keeper = Keeper::open(example.slowly()).expect("opens");
    let id = example.start(&keeper);
    wait_for_batches(&keeper, &id, 2);
    let mut client = example.server().client();
    client
        .batch_execute("DELETE FROM worker_read_write_locks")
        .expect("taken away");
    let left = || -> i64 {
        example
            .server()
            .client()
            .query_one("SELECT count(*) FROM events", &[])
            .expect("counted")
            .get(0)
    };
    // A batch that had looked already may still commit.
    std::thread::sleep(Duration::from_millis(10));
    let said = match keeper.wait(&id) {
        Err(Error::JobFailed { text: said, .. }) => said,
        other => panic!("{other:?}"),
    };
    assert!(said.contains("lock on the room was lost"), "{said}");
    let then = left();
    keeper.stop();
    assert_eq!(left(), then);
    example.site.assert_sound("stopped in the middle");
}
