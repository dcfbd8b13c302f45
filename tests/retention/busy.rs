//! A room that another job has when a run comes to it: skipped, said, and planned again by the next run.
//!
//! Nothing here is left to luck: a job is held in a room for as long as the test holds the homeserver's own lock on it.

use std::sync::Once;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use roomkeeper::jobs::ledger::State;
use roomkeeper::policy::{LifetimeRange, PurgeJob};
use roomkeeper::retention::Reason;
use roomkeeper::{JobId, Keeper, Millis, PurgeOptions, PurgePoint, RoomId, days};
use rusqlite::{Connection, params};

use crate::town::{NOW, Town, room};

/// Warnings of this process.
static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Ear;

impl log::Log for Ear {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            SAID.lock().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

fn listen() {
    static START: Once = Once::new();
    START.call_once(|| {
        log::set_logger(&Ear).expect("no other logger");
        log::set_max_level(log::LevelFilter::Warn);
    });
}

/// How often it was said that this room is skipped. No other test skips rooms of such numbers.
fn said_of(number: usize) -> usize {
    let said = SAID.lock();
    let of = format!("room {}: another job has it", room(number));
    said.iter().filter(|line| line.starts_with(&of)).count()
}

/// The homeserver's lock on a room's history, held by it.
pub struct Held<'a>(&'a Town, String);

impl<'a> Held<'a> {
    pub fn new(town: &'a Town, number: usize) -> Self {
        let held = Self(town, room(number));
        held.write(
            "INSERT INTO worker_read_write_locks (lock_name, lock_key, instance_name, write_lock, token, last_renewed_ts)
             VALUES ('purge_pagination_lock', ?1, 'master', FALSE, 'held', ?2)",
            params![held.1, NOW.0 + days(1_000).0],
        );
        held
    }

    fn write(&self, sql: &str, params: impl rusqlite::Params) {
        let conn = Connection::open(&self.0.site.database).expect("opens");
        conn.busy_timeout(Duration::from_secs(60)).expect("set");
        conn.pragma_update(None, "foreign_keys", true).expect("set");
        conn.execute(sql, params).expect(sql);
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let sql = "DELETE FROM worker_read_write_locks WHERE lock_key = ?1 AND token = 'held'";
        self.write(sql, params![self.1]);
    }
}

/// Waits until a job of this kind works in the room.
pub fn await_job(keeper: &Keeper, kind: &str, number: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let jobs = keeper.jobs().expect("listed");
        let of = |job: &roomkeeper::jobs::ledger::JobRecord| {
            job.kind == kind
                && job
                    .subject
                    .room()
                    .is_some_and(|r| r.as_str() == room(number))
                && job.state == State::Running
        };
        if jobs.iter().any(of) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "no {kind} in room {number}: {jobs:#?}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A purge of few of the room's events, which begins and waits.
fn begin_purge(keeper: &Keeper, number: usize) -> JobId {
    let options = PurgeOptions {
        delete_local_events: true,
        keep_received_after: None,
        ..PurgeOptions::default()
    };
    let point = PurgePoint::BeforeToken("t6-0".into());
    let id = keeper.purge_history(&RoomId::from(&*room(number)), point, options);
    let id = id.expect("begun");
    await_job(keeper, "purge_history", number);
    id
}

fn events_of(town: &Town, number: usize) -> i64 {
    let sql = format!(
        "SELECT count(*) FROM events WHERE room_id = '{}'",
        room(number)
    );
    town.ask(&sql)
}

#[test]
fn a_room_that_another_job_gets_before_a_run_comes_to_it_is_skipped_and_planned_at_the_next_tick() {
    listen();
    // Four rooms of a day.
    let town = Town::new(32, 40);
    let mut config = town.config();
    config.workers = 2;
    config.retention.enabled = true;
    config.retention_jobs = true;
    let range = LifetimeRange {
        shortest: None,
        longest: Some(days(1)),
    };
    config.retention.purge_jobs = vec![PurgeJob {
        interval: days(1),
        range,
    }];
    let keeper = Keeper::open(config).expect("opens");
    // The rooms of a plan are purged in the order of their ids: 17, 1, 25, 9.
    let (first, later) = (17, 25);
    let of_first = Held::new(&town, first);
    let run = keeper.purge_history_for_rooms_in_range(range.shortest, range.longest);
    let run = run.expect("begun");
    await_job(&keeper, "retention_purge", first);
    // By now the plan is made, and has both.
    let of_later = Held::new(&town, later);
    let other = begin_purge(&keeper, later);
    drop(of_first);
    let done = keeper.wait(&run).expect("a room that is busy fails no run");
    let number = |key: &str| done.progress[key].as_i64();
    assert_eq!(number("rooms_planned"), Some(4), "{}", done.progress);
    assert_eq!(number("rooms_purged"), Some(3), "{}", done.progress);
    assert_eq!(number("rooms_skipped"), Some(1), "{}", done.progress);
    assert_eq!(number("rooms_failed"), Some(0), "{}", done.progress);
    assert_eq!((said_of(first), said_of(later)), (0, 1));
    assert_eq!(events_of(&town, later), 40, "nobody has touched it yet");
    drop(of_later);
    keeper.wait(&other).expect("goes on");
    let left = events_of(&town, later);
    assert!((30..40).contains(&left), "{left}");
    // At the next tick it is a room like the others.
    town.clock.advance(days(1));
    let ticked = keeper.tick_retention().expect("looked");
    assert_eq!(ticked.len(), 1);
    let done = keeper.wait(&ticked[0]).expect("done");
    assert_eq!(done.progress["rooms_skipped"], 0, "{}", done.progress);
    assert!(events_of(&town, later) < 10);
    keeper.stop();
    town.assert_sound();
}

#[test]
fn a_room_that_another_job_has_when_a_run_is_planned_is_left_alone_and_planned_at_the_next() {
    listen();
    // Five rooms of a day, the last of them busy.
    let town = Town::new(40, 40);
    let keeper = Keeper::open(town.config()).expect("opens");
    let held = Held::new(&town, 33);
    let other = begin_purge(&keeper, 33);
    let range = LifetimeRange {
        shortest: None,
        longest: Some(days(1)),
    };
    let plan = keeper.plan_retention(range, false).expect("planned");
    let busy: Vec<_> = plan
        .left_alone
        .iter()
        .filter(|left| left.reason == Reason::Busy)
        .collect();
    assert_eq!(busy.len(), 1, "{busy:?}");
    let run = || {
        let id = keeper.purge_history_for_rooms_in_range(range.shortest, range.longest);
        keeper.wait(&id.expect("begun")).expect("done")
    };
    let done = run();
    assert_eq!(done.progress["rooms_planned"], 4, "{}", done.progress);
    assert_eq!(done.progress["rooms_purged"], 4, "{}", done.progress);
    assert_eq!(said_of(33), 1);
    drop(held);
    keeper.wait(&other).expect("goes on");
    town.clock.advance(Millis(1));
    let done = run();
    assert_eq!(done.progress["rooms_planned"], 1, "{}", done.progress);
    assert_eq!(done.progress["rooms_purged"], 1, "{}", done.progress);
    keeper.stop();
    town.assert_sound();
}
