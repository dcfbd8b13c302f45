//! A backup that is put back while a job is unfinished: nothing of it goes by itself, whatever the job is and wherever it
//! was (S-30). Without a backup every job goes on by itself.

#[path = "support/child.rs"]
#[allow(dead_code)]
mod child;
#[macro_use]
mod support;

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use child::{Trouble, is_campaign};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use roomkeeper::deletion;
use roomkeeper::jobs::ledger::State;
use roomkeeper::policy::Policy;
use roomkeeper::{Config, JobId, Keeper, Millis, RoomId, days};
use support::rooms::Recipe;
use support::samples::deepest_cut;
use support::tables::{Tables, assert_same};
use support::work::{Ask, Site, seed};

/// The child of every test below is this test.
#[test]
fn a_child_does_as_it_is_told() {
    let told = |name: &str| std::env::var(format!("ROOMKEEPER_CHILD_{name}")).ok();
    let (Some(database), Some(kind)) = (told("DATABASE"), told("KIND")) else {
        return;
    };
    let site = Site::at(
        std::path::Path::new(&database),
        &told("SERVER").expect("told"),
    );
    let kind = KINDS
        .into_iter()
        .find(|k| format!("{k:?}") == kind)
        .expect("a kind");
    let ask = Ask::all_of(
        &told("ROOM").expect("told"),
        told("BELOW").expect("told").parse().expect("a number"),
    );
    child::live_one_life(kind.config(&site), |keeper| kind.start(keeper, &ask))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    PurgeInBatches,
    PurgeBeside,
    PurgeByRewriting,
    Retention,
    DeletionAtOnce,
    DeletionBeside,
}

const KINDS: [Kind; 6] = [
    Kind::PurgeInBatches,
    Kind::PurgeBeside,
    Kind::PurgeByRewriting,
    Kind::Retention,
    Kind::DeletionAtOnce,
    Kind::DeletionBeside,
];

impl Kind {
    fn config(self, site: &Site) -> Config {
        match self {
            Self::PurgeInBatches => site.in_batches_of(5),
            Self::PurgeBeside | Self::DeletionBeside => site.beside(3, 60_000),
            Self::PurgeByRewriting => site.rewriting(),
            Self::DeletionAtOnce => site.config(),
            Self::Retention => {
                let mut config = site.in_batches_of(5);
                config.retention.default_policy = Policy {
                    min_lifetime: None,
                    // The shortest that is carried out; the events are a day old.
                    max_lifetime: Some(Millis(60 * 60 * 1000)),
                };
                config
            }
        }
    }

    fn start(self, keeper: &Keeper, ask: &Ask) -> Result<JobId, roomkeeper::Error> {
        let room = RoomId::new(&*ask.room);
        let request = deletion::Request {
            force_purge: true,
            ..Default::default()
        };
        match self {
            Self::PurgeInBatches | Self::PurgeBeside | Self::PurgeByRewriting => {
                keeper.purge_history(&room, ask.point(), ask.options())
            }
            Self::Retention => keeper.purge_history_for_rooms_in_range(None, Some(days(4_000))),
            Self::DeletionAtOnce | Self::DeletionBeside => {
                keeper.shutdown_and_purge_room(&room, request)
            }
        }
    }
}

struct Example {
    kind: Kind,
    site: Site,
    ask: Ask,
    before: Tables,
    calls: u64,
}

impl Example {
    fn new(seed: u64, kind: Kind) -> Self {
        let recipe = Recipe {
            rooms: 2..3,
            events: 25..35,
            may_be_long: false,
        };
        // By a room's own word its messages may stay for years: then retention has nothing to do.
        let site = Site::adjusted(seed, &recipe, |conn| {
            conn.execute_batch("DELETE FROM room_retention")
                .expect("forgotten");
        });
        let before = site.tables();
        let mut example = Self {
            ask: deepest_cut(&before),
            kind,
            site,
            before,
            calls: 0,
        };
        let undisturbed = example.site.copy();
        let output = example.child(&undisturbed, Trouble::Counted);
        assert!(output.status.success(), "{kind:?}: {output:?}");
        example.calls = child::counted(&undisturbed);
        assert!(
            undisturbed.tables().rows("events").len() < example.before.rows("events").len(),
            "{kind:?} has something to do"
        );
        example
    }

    fn child(&self, site: &Site, trouble: Trouble) -> std::process::Output {
        let mut command = child::telling(&[
            ("DATABASE", &site.database.display().to_string()),
            ("SERVER", &site.server_name),
            ("ROOM", &self.ask.room),
            ("BELOW", &self.ask.below.to_string()),
            ("KIND", &format!("{:?}", self.kind)),
        ]);
        child::befall(&mut command, site, trouble);
        command.output().expect("it runs")
    }

    /// Whether something was deleted from the database. The homeserver's locks come and go.
    fn has_lost_something(&self, site: &Site) -> bool {
        let tables = site.tables();
        ["events", "current_state_events", "rooms"]
            .into_iter()
            .any(|table| tables.rows(table) != self.before.rows(table))
    }

    /// Opens as a daemon does, and waits until nothing goes on by itself any more.
    fn as_a_daemon(&self, site: &Site) -> Vec<State> {
        let mut config = self.kind.config(site);
        config.resume = true;
        let keeper = Keeper::open(config).expect("opens");
        let states = settled(&keeper);
        keeper.stop();
        states
    }
}

/// The states of all jobs, when each has ended or waits for somebody.
fn settled(keeper: &Keeper) -> Vec<State> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let jobs = keeper.jobs().expect("listed");
        if jobs
            .iter()
            .all(|job| job.state.is_ended() || job.state == State::Waiting)
        {
            return jobs.into_iter().map(|job| job.state).collect();
        }
        assert!(Instant::now() < until, "{jobs:#?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn at_whatever_call_a_job_was_killed_nothing_goes_from_a_backup_that_was_put_back() {
    let seed = seed();
    println!("ROOMKEEPER_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let few = 8;
    for kind in KINDS {
        let example = Example::new(seed, kind);
        let chosen: Vec<u64> = match is_campaign() {
            true => (1..=example.calls).collect(),
            false => (0..few)
                .map(|_| rng.random_range(1..=example.calls))
                .collect(),
        };
        let (mut waited, mut unknown) = (0, 0);
        for at in &chosen {
            let about = format!("ROOMKEEPER_SEED={seed}, {kind:?}, killed at {at}");
            let site = example.site.copy();
            let output = example.child(&site, Trouble::KilledAt(*at));
            if output.status.signal() != Some(9) {
                continue;
            }
            let had_committed = example.has_lost_something(&site);
            site.put_back(&example.site);
            let states = example.as_a_daemon(&site);
            if states.contains(&State::Waiting) {
                waited += 1;
                assert_same(&example.before, &site.tables(), &about);
                site.assert_sound(&about);
                // Whoever is asked says yes.
                let keeper = Keeper::open(example.kind.config(&site)).expect("opens");
                assert!(!keeper.resume().expect("resumed").is_empty(), "{about}");
                let states = settled(&keeper);
                assert!(
                    states.iter().all(|s| *s == State::Complete),
                    "{about}: {states:?}"
                );
                keeper.stop();
            } else if had_committed && example.has_lost_something(&site) {
                // Between a commit and the moment from which it is certain to be on the disk nobody can know.
                unknown += 1;
                println!("{about}: nobody can know");
            }
            site.assert_sound(&about);
        }
        println!(
            "{kind:?}: {} calls, {} kills: {waited} waited, {unknown} came before it was certain",
            example.calls,
            chosen.len()
        );
        if is_campaign() {
            assert!(waited > 0 && unknown * 8 <= waited, "{kind:?}");
        }
    }
}

#[test]
fn without_a_backup_a_job_that_was_killed_goes_on_by_itself() {
    let seed = seed();
    println!("ROOMKEEPER_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for kind in KINDS {
        let example = Example::new(seed, kind);
        let undisturbed = example.site.copy();
        example.child(&undisturbed, Trouble::None);
        let chosen: Vec<u64> = match is_campaign() {
            true => (1..=example.calls).collect(),
            false => (0..4)
                .map(|_| rng.random_range(1..=example.calls))
                .collect(),
        };
        for at in chosen {
            let about = format!("ROOMKEEPER_SEED={seed}, {kind:?}, killed at {at}");
            let site = example.site.copy();
            let output = example.child(&site, Trouble::KilledAt(at));
            if output.status.signal() != Some(9) {
                continue;
            }
            let states = example.as_a_daemon(&site);
            assert!(!states.contains(&State::Waiting), "{about}: {states:?}");
            site.assert_sound(&about);
            if !states.is_empty() {
                assert_same(&undisturbed.tables(), &site.tables(), &about);
            }
        }
    }
}

/// What is in the middle of its work is stopped as a daemon stops it.
fn stopped_in_the_middle(site: &Site, kind: Kind, ask: &Ask) -> JobId {
    let mut config = kind.config(site);
    config.batch.pause = Duration::from_millis(40);
    let keeper = Keeper::open(config).expect("opens");
    let events = || site.number("SELECT count(*) FROM events");
    let before = events();
    let id = kind.start(&keeper, ask).expect("started");
    let until = Instant::now() + Duration::from_secs(60);
    while events() == before {
        assert!(Instant::now() < until, "nothing goes");
        std::thread::sleep(Duration::from_millis(1));
    }
    // The next batch, so that the one before is certain.
    std::thread::sleep(Duration::from_millis(60));
    keeper.stop();
    id
}

#[test]
fn a_job_of_a_database_that_was_put_back_waits_until_somebody_says_what_is_to_become_of_it() {
    for kind in [Kind::PurgeBeside, Kind::DeletionBeside] {
        for is_cancelled in [false, true] {
            let recipe = Recipe {
                rooms: 2..3,
                events: 40..60,
                may_be_long: false,
            };
            let site = Site::random(11, &recipe);
            let backup = site.copy();
            let before = site.tables();
            let ask = deepest_cut(&before);
            let id = stopped_in_the_middle(&site, kind, &ask);
            assert!(site.tables() != before);
            site.put_back(&backup);
            let about = format!("{kind:?}, cancelled: {is_cancelled}");
            let mut config = kind.config(&site);
            config.resume = true;
            // It waits over every start.
            for _ in 0..2 {
                let keeper = Keeper::open(config.clone()).expect("opens");
                let job = keeper.job(&id).expect("read").expect("known");
                assert_eq!(job.state, State::Waiting, "{about}: {job:?}");
                assert!(job.waits.is_some(), "{about}: it says why");
                keeper.stop();
                assert_same(&before, &site.tables(), &about);
            }
            let keeper = Keeper::open(config).expect("opens");
            if is_cancelled {
                keeper.cancel(&id).expect("cancelled");
                assert!(keeper.resume().expect("nothing").is_empty());
                keeper.stop();
                assert_same(&before, &site.tables(), &about);
            } else {
                assert_eq!(keeper.resume().expect("resumed"), std::slice::from_ref(&id));
                keeper.wait(&id).expect("complete");
                keeper.stop();
                assert!(site.tables().rows("events").len() < before.rows("events").len());
            }
            site.assert_sound(&about);
        }
    }
}

/// Events that a homeserver fetches again have new stream orderings: no backup.
#[test]
fn events_that_were_fetched_again_are_no_backup() {
    let recipe = Recipe {
        rooms: 2..3,
        events: 40..60,
        may_be_long: false,
    };
    let site = Site::random(12, &recipe);
    let backup = site.tables();
    let ask = deepest_cut(&backup);
    let id = stopped_in_the_middle(&site, Kind::PurgeBeside, &ask);
    let left: Vec<String> = site
        .tables()
        .rows("events")
        .iter()
        .map(|e| e.word("event_id").to_owned())
        .collect();
    let gone = backup
        .rows("events")
        .iter()
        .filter(|e| !left.contains(&e.word("event_id").to_owned()));
    for (n, event) in (0..).zip(gone) {
        let mut event = event.clone();
        event
            .0
            .insert("stream_ordering".into(), (-5_000_i64 - n).into());
        event.0.insert("outlier".into(), 1_i64.into());
        site.insert("events", &event);
    }
    let mut config = Kind::PurgeBeside.config(&site);
    config.resume = true;
    let keeper = Keeper::open(config).expect("opens");
    keeper.wait(&id).expect("it goes on by itself");
    keeper.stop();
}

also_on_postgres! {
    a_job_of_a_database_that_was_put_back_waits_until_somebody_says_what_is_to_become_of_it,
    events_that_were_fetched_again_are_no_backup,
}
