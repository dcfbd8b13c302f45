//! A deletion that is killed at any moment: the database is sound, and the next start comes to the end that it would
//! have come to.
//!
//! On PostgreSQL only moments can be met, not calls: the data is not in files of ours.
//!
//! Normal runs take a sample; this runs every call and 100 random kills:
//!
//! ```text
//! ROOMKEEPER_CAMPAIGN=full cargo test --release --test deletion_faults -- --nocapture
//! ```

#[path = "support/child.rs"]
#[allow(dead_code)]
mod child;
#[macro_use]
mod support;

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use child::{Trouble, is_campaign};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use roomkeeper::database::{Database, Server};
use roomkeeper::jobs::ledger::Ledger;
use support::engine::{Engine, current};
use support::rooms::Recipe;
use support::tables::{Tables, assert_same};
use support::work::{Site, seed};

/// How the program goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Offline: the room is small and goes in one transaction.
    AtOnce,
    /// Beside a homeserver, a few events at a time.
    Batches,
}

impl Way {
    fn command(self, site: &Site) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roomkeeper"));
        let configuration = site.directory().with_extension("yaml");
        let database = match site.config().database {
            Database::Server(Server::Keys(keys)) => {
                serde_json::json!({"name": "psycopg2", "args": keys})
            }
            _ => serde_json::json!({"name": "sqlite3", "args": {"database": site.database}}),
        };
        let text = format!(
            "server_name: \"{}\"\ndatabase: {database}\n\
             roomkeeper: {{ledger: \"{}\", batch: {{events: 3}}}}\n",
            site.server_name,
            site.config().ledger.display(),
        );
        std::fs::write(&configuration, text).expect("written");
        command.arg("-c").arg(configuration);
        command.arg(match self {
            Self::AtOnce => "--offline=assume",
            Self::Batches => "--beside=assume",
        });
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }
}

struct Example {
    seed: u64,
    site: Site,
    room: String,
    way: Way,
    end: Tables,
    calls: u64,
    took: Duration,
}

impl Example {
    fn new(seed: u64, way: Way) -> Self {
        let recipe = Recipe {
            rooms: 2..3,
            events: 12..18,
            may_be_long: false,
        };
        let site = Site::random(seed, &recipe);
        let room = site.tables().rows("rooms")[0].word("room_id").to_owned();
        let mut example = Self {
            end: site.tables(),
            site,
            seed,
            room,
            way,
            calls: 0,
            took: Duration::ZERO,
        };
        let undisturbed = example.site.copy();
        let started = Instant::now();
        let counting = match current() {
            Engine::Sqlite => Trouble::Counted,
            Engine::Postgres => Trouble::None,
        };
        let output = example.run(&undisturbed, counting);
        example.took = started.elapsed();
        assert!(output.status.success(), "seed {seed}: {output:?}");
        undisturbed.assert_sound("undisturbed");
        example.end = undisturbed.tables();
        if current() == Engine::Sqlite {
            example.calls = child::counted(&undisturbed);
        }
        let left = example.end.rows("rooms").iter();
        assert!(left.clone().all(|r| r.word("room_id") != example.room));
        example
    }

    /// Begins, or takes up what the ledger has.
    fn command(&self, site: &Site, trouble: Trouble) -> Command {
        let mut command = self.way.command(site);
        let unended = Ledger::open(&site.config().ledger)
            .and_then(|ledger| ledger.unended())
            .expect("the ledger is read");
        if unended.is_empty() {
            command.args(["delete-room", &self.room, "--force-purge", "--block"]);
        } else {
            command.args(["jobs", "--resume"]);
        }
        child::befall(&mut command, site, trouble);
        command
    }

    fn run(&self, site: &Site, trouble: Trouble) -> Output {
        self.command(site, trouble).output().expect("it starts")
    }

    /// The server does away with what a killed process had begun, and so does time with its locks (W-4).
    fn bury(&self, site: &Site) {
        if current() == Engine::Sqlite {
            return;
        }
        let until = Instant::now() + Duration::from_secs(60);
        let sessions = "SELECT count(*) FROM pg_stat_activity
                         WHERE datname = current_database() AND pid <> pg_backend_pid()";
        while site.number(sessions) > 0 {
            assert!(Instant::now() < until, "a session outlives its process");
            std::thread::sleep(Duration::from_millis(10));
        }
        site.run("UPDATE worker_read_write_locks SET last_renewed_ts = last_renewed_ts - 180000");
    }

    fn recover(&self, site: &Site, about: &str) {
        let about = format!("ROOMKEEPER_SEED={}, {:?}, {about}", self.seed, self.way);
        site.assert_sound(&format!("{about}: before it goes on"));
        let output = self.run(site, Trouble::None);
        assert!(output.status.success(), "{about}: {output:?}");
        assert_same(&self.end, &site.tables(), &about);
        site.assert_sound(&format!("{about}: in the end"));
        let ledger = Ledger::open(&site.config().ledger).expect("opens");
        assert!(ledger.unended().expect("read").is_empty(), "{about}");
        assert!(
            ledger.candidates(&self.room).expect("read").is_empty(),
            "{about}"
        );
    }
}

#[test]
fn a_deletion_killed_at_any_call_that_changes_a_file_goes_on_to_the_same_end() {
    let seed = seed();
    println!("ROOMKEEPER_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for way in [Way::AtOnce, Way::Batches] {
        let example = Example::new(seed, way);
        let chosen: Vec<u64> = match is_campaign() {
            true => (1..=example.calls).collect(),
            false => (0..3)
                .map(|_| rng.random_range(1..=example.calls))
                .collect(),
        };
        println!(
            "{way:?}: {} calls, {} of them go wrong",
            example.calls,
            chosen.len()
        );
        for at in chosen {
            let site = example.site.copy();
            let output = example.run(&site, Trouble::KilledAt(at));
            // The number of calls varies a little with the time that things take.
            let about = format!("killed at {at}");
            assert!(
                output.status.signal() == Some(9) || output.status.success(),
                "{about}: {output:?}"
            );
            example.recover(&site, &about);
        }
    }
}

#[test]
fn a_deletion_killed_at_random_moments_goes_on_to_the_same_end() {
    let seed = seed();
    println!("ROOMKEEPER_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let kills = if is_campaign() { 100 } else { 6 };
    let mut hits = 0;
    for way in [Way::AtOnce, Way::Batches] {
        let example = Example::new(seed, way);
        for n in 0..kills / 2 {
            let site = example.site.copy();
            // Now and then the next life is killed as well.
            for _ in 0..rng.random_range(1..3) {
                let mut child = example
                    .command(&site, Trouble::None)
                    .spawn()
                    .expect("it starts");
                std::thread::sleep(example.took.mul_f64(rng.random_range(0.0..1.0)));
                child.kill().expect("killed");
                let status = child.wait().expect("gone");
                hits += u64::from(status.signal() == Some(9));
                example.bury(&site);
                site.assert_sound(&format!("ROOMKEEPER_SEED={seed}, {way:?}, kill {n}"));
            }
            example.recover(&site, &format!("kill {n}"));
        }
    }
    println!("{hits} kills met a living process");
    assert!(hits > 0);
}

also_on_postgres!(a_deletion_killed_at_random_moments_goes_on_to_the_same_end);
