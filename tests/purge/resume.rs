//! Jobs that are cancelled, stopped and taken up again; statuses; and what is refused.

use std::time::{Duration, Instant};

use crate::support::rooms::Recipe;
use crate::support::samples::{deepest_cut, for_each_sample};
use crate::support::state_model::{Graph, STATE};
use crate::support::tables::{assert_same, row};
use crate::support::work::{Ask, Site, progress_of};
use roomkeeper::deletion;
use roomkeeper::jobs::ledger::State;
use roomkeeper::jobs::pool::QUEUE_DEPTH;
use roomkeeper::time::days;
use roomkeeper::{Config, Error, JobId, Keeper, Millis, PurgeOptions, RoomId};
use rusqlite::Connection;

/// Events that a purge of a sample deletes at least: enough batches of three to be met in the middle.
const ENOUGH: i64 = 20;

/// A sample in which a purge has something to do: its first room, up to its newest event. Beside a homeserver forward
/// extremities stay (P-51), so some samples are too small; the next one is drawn then.
fn sample(seed: u64) -> (Site, Ask) {
    let recipe = Recipe {
        rooms: 1..3,
        events: 40..60,
        may_be_long: false,
    };
    (0..50)
        .map(|more| Site::random(seed.wrapping_add(more * 7_919), &recipe))
        .map(|site| {
            let ask = deepest_cut(&site.tables());
            (site, ask)
        })
        .find(|(site, ask)| {
            site.plan(ask)
                .is_ok_and(|plan| plan.events_deleted >= ENOUGH)
        })
        .expect("one of fifty samples is large enough")
}

const OPTIONS: PurgeOptions = PurgeOptions {
    delete_local_events: true,
    keep_received_after: None,
    strict: false,
    media: roomkeeper::job::MediaFate::Stay,
};

fn start(keeper: &Keeper, ask: &Ask) -> Result<JobId, Error> {
    keeper.purge_history(&RoomId::new(&*ask.room), ask.point(), OPTIONS)
}

/// Waits until the job has done some batches and not all.
fn wait_for_batches(keeper: &Keeper, id: &JobId, batches: i64) {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let job = keeper.job(id).expect("read").expect("there");
        let far = serde_json::from_value(job.progress.clone())
            .map_or(0, |p: roomkeeper::job::Progress| p.batches);
        if far >= batches || job.state.is_ended() {
            return;
        }
        assert!(Instant::now() < until, "it does not get anywhere: {job:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Small batches, slow enough to be met in the middle.
fn slowly(site: &Site) -> Config {
    let mut config = site.beside(3, 60_000);
    config.batch.pause = Duration::from_millis(60);
    config
}

#[test]
fn a_cancelled_purge_leaves_a_whole_room_and_can_be_asked_for_again() {
    for_each_sample(3, |seed, _| {
        let (site, ask) = sample(seed);
        let whole = site.copy();
        whole.purge(&ask).expect("purged");
        let keeper = Keeper::open(slowly(&site)).expect("opens");
        let id = start(&keeper, &ask).expect("started");
        wait_for_batches(&keeper, &id, 2);
        keeper.cancel(&id).expect("cancelled");
        let ended = keeper
            .wait(&id)
            .expect_err("it did not complete")
            .to_string();
        assert_eq!(ended, "cancelled", "seed {seed}");
        let status = keeper
            .purge_status(id.as_str())
            .expect("read")
            .expect("known");
        assert_eq!(
            (status.status, status.error.as_deref()),
            ("failed", Some("cancelled"))
        );
        let job = keeper.job(&id).expect("read").expect("known");
        assert!(progress_of(&job).batches >= 2, "{job:?}");
        keeper.cancel(&id).expect("ending it twice is no error");
        keeper.stop();
        let (half, end) = (site.tables(), whole.tables());
        assert!(
            half.rows("events").len() > end.rows("events").len(),
            "seed {seed}"
        );
        site.assert_sound(&format!("seed {seed}: cancelled"));
        site.purge(&ask).expect("purged");
        site.assert_sound(&format!("seed {seed}: purged again"));
        assert_same(
            &end.clone().without(STATE),
            &site.tables().without(STATE),
            &format!("seed {seed}"),
        );
        assert_eq!(Graph::of_events(&end), Graph::of_events(&site.tables()));
    });
}

#[test]
fn a_purge_that_was_stopped_goes_on_at_the_next_start_to_the_same_end() {
    for_each_sample(3, |seed, _| {
        let (site, ask) = sample(seed);
        let whole = site.copy();
        whole
            .purge_with(whole.beside(1_000, 60_000), &ask)
            .expect("purged");
        let keeper = Keeper::open(slowly(&site)).expect("opens");
        let id = start(&keeper, &ask).expect("started");
        wait_for_batches(&keeper, &id, 3);
        keeper.stop();
        site.assert_sound(&format!("seed {seed}: stopped"));
        let keeper = Keeper::open(slowly(&site)).expect("opens");
        assert_eq!(
            keeper.job(&id).expect("read").expect("known").state,
            State::Queued
        );
        assert_eq!(keeper.resume().expect("resumed"), std::slice::from_ref(&id));
        let done = keeper.wait(&id).expect("complete");
        keeper.stop();
        let total = whole.tables().rows("events").len();
        assert_eq!(site.tables().rows("events").len(), total);
        assert!(progress_of(&done).batches > 3, "both lives are counted");
        assert_same(&whole.tables(), &site.tables(), &format!("seed {seed}"));
        site.assert_sound(&format!("seed {seed}: resumed"));
    });
}

#[test]
fn opening_with_resume_takes_up_what_was_left() {
    let (site, ask) = sample(7);
    let keeper = Keeper::open(slowly(&site)).expect("opens");
    let id = start(&keeper, &ask).expect("started");
    wait_for_batches(&keeper, &id, 1);
    keeper.stop();
    let mut config = site.config();
    config.resume = true;
    let keeper = Keeper::open(config).expect("opens");
    keeper.wait(&id).expect("complete");
    keeper.stop();
    site.assert_sound("resumed at the start");
}

#[test]
fn a_job_that_waits_for_the_next_start_can_be_cancelled() {
    let (site, ask) = sample(8);
    let keeper = Keeper::open(slowly(&site)).expect("opens");
    let id = start(&keeper, &ask).expect("started");
    wait_for_batches(&keeper, &id, 1);
    keeper.stop();
    let keeper = Keeper::open(site.config()).expect("opens");
    keeper.cancel(&id).expect("cancelled");
    let job = keeper.job(&id).expect("read").expect("known");
    assert_eq!(
        (job.state, job.error.as_deref()),
        (State::Failed, Some("cancelled"))
    );
    assert!(keeper.resume().expect("nothing to resume").is_empty());
    keeper.stop();
    site.assert_sound("cancelled between two lives");
    // What it left (state groups, words to be overwritten) falls to the next purge.
    site.purge(&ask).expect("purged");
    site.assert_sound("purged by another job");
}

#[test]
fn a_paused_job_stays_where_it_is_over_every_start_and_goes_on_when_it_is_told_to() {
    for_each_sample(2, |seed, _| {
        let (site, ask) = sample(seed);
        let whole = site.copy();
        whole
            .purge_with(whole.beside(1_000, 60_000), &ask)
            .expect("purged");
        let keeper = Keeper::open(slowly(&site)).expect("opens");
        let id = start(&keeper, &ask).expect("started");
        wait_for_batches(&keeper, &id, 2);
        keeper.pause(&id).expect("paused");
        let said = keeper.wait(&id).expect_err("it has not ended").to_string();
        assert!(said.contains("--continue"), "{said}");
        let status = keeper.purge_status(id.as_str()).expect("read");
        assert_eq!(status.map(|s| s.status), Some("active"));
        keeper.pause(&id).expect("pausing it twice is no error");
        keeper.stop();
        let half = site.tables();
        site.assert_sound(&format!("seed {seed}: paused"));
        let mut config = slowly(&site);
        config.resume = true;
        let keeper = Keeper::open(config).expect("opens");
        assert!(keeper.resume().expect("nothing to resume").is_empty());
        std::thread::sleep(Duration::from_millis(100));
        let job = keeper.job(&id).expect("read").expect("known");
        assert_eq!(job.state, State::Paused);
        assert_same(&half, &site.tables(), &format!("seed {seed}: nothing goes"));
        keeper.continue_job(&id).expect("goes on");
        keeper
            .continue_job(&id)
            .expect("going on twice is no error");
        let done = keeper.wait(&id).expect("complete");
        assert!(progress_of(&done).batches > 2, "both lives are counted");
        for refused in [keeper.pause(&id), keeper.continue_job(&id)] {
            assert_eq!(refused.expect_err("it has ended").class().status, 400);
        }
        let unknown = keeper.pause(&JobId::from("AAAAAAAAAAAAAAAA"));
        assert!(matches!(unknown, Err(Error::NoSuchJob(_))));
        keeper.stop();
        assert_same(&whole.tables(), &site.tables(), &format!("seed {seed}"));
        site.assert_sound(&format!("seed {seed}: continued"));
    });
}

#[test]
fn the_room_of_a_paused_job_is_free_and_a_paused_job_can_be_cancelled() {
    let (site, ask) = sample(13);
    let keeper = Keeper::open(slowly(&site)).expect("opens");
    let id = start(&keeper, &ask).expect("started");
    wait_for_batches(&keeper, &id, 1);
    keeper.pause(&id).expect("paused");
    keeper.wait(&id).expect_err("it has not ended");
    let second = start(&keeper, &ask).expect("the room is free");
    let busy = keeper.continue_job(&id).expect_err("another has it");
    assert!(matches!(busy, Error::RoomBusy { .. }), "{busy}");
    keeper.wait(&second).expect("complete");
    keeper.cancel(&id).expect("cancelled");
    let job = keeper.job(&id).expect("read").expect("known");
    let ended = (job.state, job.error_code.as_deref());
    assert_eq!(ended, (State::Failed, Some("cancelled")));
    keeper.stop();
    site.assert_sound("paused, and cancelled");
}

/// S-1, S-2, S-3, S-10.
#[test]
fn a_status_is_active_then_complete_or_failed_and_is_forgotten_after_24_hours() {
    let (site, ask) = sample(9);
    let keeper = Keeper::open(slowly(&site)).expect("opens");
    let id = start(&keeper, &ask).expect("started");
    let status = |id: &JobId| {
        keeper
            .purge_status(id.as_str())
            .expect("read")
            .map(|s| (s.status, s.error))
    };
    assert_eq!(status(&id), Some(("active", None)));
    keeper.wait(&id).expect("complete");
    let too_far = Ask {
        below: 1_000_000,
        ..ask
    };
    let failed = start(&keeper, &too_far).expect("started");
    keeper.wait(&failed).expect_err("refused");
    let complete = Some(("complete", None));
    let said = "400: topological_ordering is greater than forward extremities".to_owned();
    assert_eq!(
        (status(&id), status(&failed)),
        (complete.clone(), Some(("failed", Some(said))))
    );
    site.clock.advance(days(1) - Millis(1));
    assert_eq!(status(&id), complete);
    site.clock.advance(Millis(1));
    assert_eq!((status(&id), status(&failed)), (None, None));
    assert_eq!(status(&JobId::from("AAAAAAAAAAAAAAAA")), None);
    // On record it stays.
    assert_eq!(keeper.jobs().expect("listed").len(), 2);
    keeper.stop();
}

/// L-1, L-2, L-8.
#[test]
fn a_room_that_is_being_purged_is_refused_and_another_is_not() {
    let (site, ask) = sample(10);
    let keeper = Keeper::open(slowly(&site)).expect("opens");
    let id = start(&keeper, &ask).expect("started");
    let refused = start(&keeper, &ask).expect_err("busy");
    assert_eq!(
        refused.to_string(),
        format!("History purge already in progress for {}", ask.room)
    );
    assert_eq!(
        (refused.class().status, refused.class().errcode),
        (400, "M_UNKNOWN")
    );
    let other =
        start(&keeper, &Ask::all_of("!other:example.org", 5)).expect("another room is free");
    keeper.wait(&id).expect("complete");
    keeper.wait(&other).expect("complete");
    let again = start(&keeper, &ask).expect("free again");
    keeper.wait(&again).expect("complete");
    keeper.stop();
    site.insert(
        "scheduled_tasks",
        &row([
            ("id", "x".into()),
            ("action", "shutdown_and_purge_room".into()),
            ("status", "active".into()),
            ("timestamp", 1.into()),
            ("resource_id", (&ask.room).into()),
        ]),
    );
    let keeper = Keeper::open(site.config()).expect("opens");
    let refused = start(&keeper, &ask).expect_err("the homeserver was deleting the room itself");
    let said = refused.to_string();
    // E-19: while it is stopped nobody is at work, and there are two ways out.
    assert!(matches!(refused, Error::LeftTask(_)), "{said}");
    assert!(
        said.contains("Start Synapse") && said.contains("WHERE id = 'x'"),
        "{said}"
    );
    keeper.stop();
    let viewer = roomkeeper::keeper::Viewer::open(site.config()).expect("opens");
    let request = deletion::Request {
        force_purge: true,
        ..deletion::Request::default()
    };
    let planned = viewer.plan_deletion(&RoomId::new(&*ask.room), &request);
    assert_eq!(planned.expect_err("refused as well").to_string(), said);
    drop(viewer);
    let planned = site
        .plan(&ask)
        .expect_err("a plan says what its purge would");
    assert_eq!(planned.to_string(), said);
    let keeper = Keeper::open(site.beside(100, 60_000)).expect("opens");
    let refused = start(&keeper, &ask).expect_err("the homeserver deletes the room itself");
    assert!(matches!(refused, Error::RoomBusy { .. }), "{refused}");
    keeper.stop();
}

/// L-4, S-19: who is told that nothing was done must not learn next week that it was.
#[test]
fn a_deletion_that_waited_for_its_room_until_the_keeper_stopped_is_not_done_later() {
    let (site, ask) = sample(11);
    let keeper = Keeper::open(slowly(&site)).expect("opens");
    let id = start(&keeper, &ask).expect("started");
    wait_for_batches(&keeper, &id, 1);
    let (waiting, room) = (keeper.clone(), RoomId::new(&*ask.room));
    let request = deletion::Request {
        force_purge: true,
        ..Default::default()
    };
    let waiter = std::thread::spawn(move || waiting.delete_room(&room, request));
    // It waits, or is about to: the end is the same.
    std::thread::sleep(Duration::from_millis(50));
    keeper.stop();
    let refused = waiter.join().expect("no panic").expect_err("refused");
    assert!(matches!(refused, Error::Stopping), "{refused}");
    let mut config = site.config();
    config.resume = true;
    let keeper = Keeper::open(config).expect("opens");
    let kinds: Vec<String> = keeper
        .jobs()
        .expect("listed")
        .into_iter()
        .map(|job| job.kind)
        .collect();
    assert_eq!(kinds, ["purge_history"]);
    keeper.wait(&id).expect("went on");
    keeper.stop();
    site.assert_sound("after the purge went on");
}

#[test]
fn a_full_queue_refuses_and_leaves_no_trace_of_what_it_refused() {
    let (site, ask) = sample(11);
    let keeper = Keeper::open(site.config()).expect("opens");
    // The only worker waits for the database.
    let writer = Connection::open(&site.database).expect("opens");
    writer.execute_batch("BEGIN IMMEDIATE").expect("locks");
    let first = start(&keeper, &ask).expect("started");
    let until = Instant::now() + Duration::from_secs(30);
    while keeper.job(&first).expect("read").expect("there").state == State::Queued {
        assert!(Instant::now() < until, "no worker takes it");
        std::thread::sleep(Duration::from_millis(5));
    }
    for n in 0..QUEUE_DEPTH {
        start(&keeper, &Ask::all_of(&format!("!r{n}:example.org"), 5)).expect("there is a place");
    }
    let one_more = Ask::all_of("!one-more:example.org", 5);
    let refused = start(&keeper, &one_more).expect_err("no place is left");
    assert!(matches!(refused, Error::QueueFull), "{refused}");
    assert_eq!(keeper.jobs().expect("listed").len(), QUEUE_DEPTH + 1);
    writer.execute_batch("COMMIT").expect("unlocks");
    keeper.wait(&first).expect("complete");
    // The room is not taken by what was refused: as soon as there is a place it is accepted.
    let until = Instant::now() + Duration::from_secs(30);
    while let Err(refused) = start(&keeper, &one_more) {
        assert!(
            matches!(refused, Error::QueueFull) && Instant::now() < until,
            "{refused}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    keeper.stop();
    // What waited is handed back, not lost.
    let keeper = Keeper::open(site.config()).expect("opens");
    let unended = keeper
        .jobs()
        .expect("listed")
        .iter()
        .filter(|j| !j.state.is_ended())
        .count();
    assert!(unended > 0);
    keeper.stop();
}

#[test]
fn a_keeper_that_stops_starts_nothing_more() {
    let (site, ask) = sample(12);
    let keeper = Keeper::open(site.config()).expect("opens");
    let other = keeper.clone();
    keeper.stop();
    assert!(matches!(start(&other, &ask), Err(Error::Stopping)));
    other.stop();
}

also_on_postgres! {
    a_cancelled_purge_leaves_a_whole_room_and_can_be_asked_for_again,
    a_purge_that_was_stopped_goes_on_at_the_next_start_to_the_same_end,
    opening_with_resume_takes_up_what_was_left,
    a_job_that_waits_for_the_next_start_can_be_cancelled,
    a_paused_job_stays_where_it_is_over_every_start_and_goes_on_when_it_is_told_to,
    a_status_is_active_then_complete_or_failed_and_is_forgotten_after_24_hours,
    a_room_that_is_being_purged_is_refused_and_another_is_not,
    a_keeper_that_stops_starts_nothing_more,
}
