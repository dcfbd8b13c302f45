//! Processes that are killed at any moment, disks that fill at any write, databases that somebody else keeps busy:
//! the room is whole, `check` is clean, and the job comes to the end that it would have come to.
//!
//! What is done here to files has no subject on PostgreSQL; what befalls a purge there is in `postgres_faults`.
//!
//! Normal runs take a sample of the calls; this runs them all, 200 random kills and the longest waits:
//!
//! ```text
//! ROOMKEEPER_CAMPAIGN=full cargo test --release --test faults -- --nocapture
//! ROOMKEEPER_FAULTS=all cargo test --release --lib faults -- --nocapture
//! ```

#[path = "support/child.rs"]
mod child;
mod support;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use child::{CHILD_TEST, Trouble, Way, is_campaign};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use roomkeeper::jobs::ledger::Ledger;
use rusqlite::Connection;
use support::rooms::Recipe;
use support::samples::deepest_cut;
use support::tables::{Tables, assert_same};
use support::work::{Ask, Site, seed};

/// Not a test: where the children of the tests below do their work.
#[test]
fn a_child_does_as_it_is_told() {
    assert_eq!(CHILD_TEST, "a_child_does_as_it_is_told");
    child::do_as_told();
}

/// A purge, and where it ends when nothing happens to it.
struct Example {
    seed: u64,
    site: Site,
    ask: Ask,
    way: Way,
    before: Tables,
    end: Tables,
    /// Calls that change files.
    calls: u64,
    took: Duration,
}

impl Example {
    fn new(seed: u64, way: Way, events: std::ops::Range<usize>) -> Self {
        let recipe = Recipe {
            rooms: 2..3,
            events,
            may_be_long: false,
        };
        let site = Site::random(seed, &recipe);
        let before = site.tables();
        let ask = deepest_cut(&before);
        let undisturbed = site.copy();
        let started = Instant::now();
        let output = child::run(&undisturbed, &ask, way, Trouble::Counted);
        let took = started.elapsed();
        assert!(output.status.success(), "seed {seed}: {output:?}");
        undisturbed.assert_sound("undisturbed");
        undisturbed.assert_forgotten(&before, "undisturbed");
        let end = undisturbed.tables();
        assert!(end.rows("events").len() < before.rows("events").len());
        Self {
            seed,
            site,
            ask,
            way,
            before,
            end,
            calls: child::counted(&undisturbed),
            took,
        }
    }

    /// What must be so after whatever happened to `site`.
    fn recover(&self, site: &Site, about: &str) {
        let about = format!("ROOMKEEPER_SEED={}, {:?}, {about}", self.seed, self.way);
        site.assert_sound(&format!("{about}: before it goes on"));
        let output = child::run(site, &self.ask, self.way, Trouble::None);
        assert!(
            output.status.success(),
            "{about}: it cannot go on: {output:?}"
        );
        assert_same(&self.end, &site.tables(), &about);
        site.assert_sound(&format!("{about}: in the end"));
        site.assert_forgotten(&self.before, &about);
        let ledger = Ledger::open(&site.config().ledger).expect("opens");
        let room = self.ask.room.as_str();
        assert!(ledger.unended().expect("read").is_empty(), "{about}");
        // What an event in flight uses stays noted for the next purge, as it does undisturbed.
        let in_use: BTreeSet<i64> = (site.tables().rows("state_groups_persisting").iter())
            .map(|row| row.number("state_group"))
            .collect();
        let noted = ledger.candidates(room).expect("read");
        assert!(
            noted.iter().all(|group| in_use.contains(group)),
            "{about}: forgotten: {noted:?}; in use: {in_use:?}"
        );
        assert!(ledger.steps(room).expect("read").is_empty(), "{about}");
    }

    /// All calls of an undisturbed run, or a few.
    fn chosen(&self, rng: &mut StdRng, few: usize) -> Vec<u64> {
        if is_campaign() {
            return (1..=self.calls).collect();
        }
        (0..few).map(|_| rng.random_range(1..=self.calls)).collect()
    }
}

fn each_way(few: usize, trouble: impl Fn(u64) -> Trouble) {
    let seed = seed();
    println!("ROOMKEEPER_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for way in [Way::Batches(5), Way::Rewrite, Way::Beside(5), Way::Program] {
        let example = Example::new(seed, way, 18..24);
        let chosen = example.chosen(&mut rng, few);
        println!(
            "{way:?}: {} calls, {} of them go wrong",
            example.calls,
            chosen.len()
        );
        for at in chosen {
            let site = example.site.copy();
            let output = child::run(&site, &example.ask, way, trouble(at));
            let about = format!("{:?}", trouble(at));
            match trouble(at) {
                // The number of calls varies a little with the time that things take.
                Trouble::KilledAt(_) => assert!(
                    output.status.signal() == Some(9) || output.status.success(),
                    "{about}: {output:?}"
                ),
                _ => assert!(
                    output.status.success()
                        || (output.status.code() == Some(1) && !output.stderr.is_empty()),
                    "{about}: {output:?}"
                ),
            }
            example.recover(&site, &about);
        }
    }
}

#[test]
fn a_purge_killed_at_any_call_that_changes_a_file_goes_on_to_the_same_end() {
    each_way(5, Trouble::KilledAt);
}

#[test]
fn a_purge_on_a_disk_that_fills_at_any_write_goes_on_to_the_same_end_when_there_is_room() {
    each_way(5, Trouble::FullFrom);
}

#[test]
fn a_purge_killed_at_random_moments_goes_on_to_the_same_end() {
    let seed = seed();
    println!("ROOMKEEPER_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let kills_each = if is_campaign() { 67 } else { 4 };
    let mut hits = 0;
    for way in [Way::Batches(2), Way::Beside(2), Way::Program] {
        let example = Example::new(seed, way, 60..90);
        let (enough, mut n) = (hits + kills_each, 0);
        // A kill that came too late was none.
        while hits < enough {
            n += 1;
            assert!(
                n <= 5 * kills_each,
                "{way:?}: hardly a kill met a living process"
            );
            let site = example.site.copy();
            // Now and then the next life is killed as well.
            for _ in 0..rng.random_range(1..3) {
                let mut child = child::start(&site, &example.ask, way, Trouble::None);
                std::thread::sleep(example.took.mul_f64(rng.random_range(0.0..1.0)));
                child.kill().expect("killed");
                let status = child.wait().expect("gone");
                hits += u64::from(status.signal() == Some(9));
                site.assert_sound(&format!("ROOMKEEPER_SEED={seed}, {way:?}, kill {n}"));
            }
            example.recover(&site, &format!("kill {n}"));
        }
    }
    println!("{hits} kills met a living process");
}

/// The file is the old one or the new one at every moment.
#[test]
fn reclaim_disturbed_at_any_call_leaves_a_whole_file_and_no_other() {
    disturb_reclaim(|_| None);
}

/// The file is the old one, the copy elsewhere that its name leads to, or the new one.
#[test]
fn reclaim_through_another_directory_disturbed_at_any_call_leaves_a_whole_database() {
    disturb_reclaim(|site| {
        let directory = site.directory().join("elsewhere");
        std::fs::create_dir_all(&directory).expect("made");
        Some(directory)
    });
}

fn disturb_reclaim(via: impl Fn(&Site) -> Option<std::path::PathBuf>) {
    let seed = seed();
    println!("ROOMKEEPER_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let example = Example::new(seed, Way::Program, 18..24);
    example.site.purge(&example.ask).expect("purged");
    let secret = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&example.site.database, secret).expect("set");
    let tables = example.site.tables();
    let undisturbed = example.site.copy();
    let output = child::reclaim(&undisturbed, via(&undisturbed).as_deref(), Trouble::Counted);
    assert!(output.status.success(), "{output:?}");
    let calls = child::counted(&undisturbed);
    let chosen: Vec<u64> = match is_campaign() {
        true => (1..=calls).collect(),
        // Where files take each other's place is near the end.
        false => [1, 1, 1, 1, 32, 32, 32, 32, 16, 16, 16, 16]
            .map(|last| match last {
                1 => rng.random_range(1..=calls),
                last => rng.random_range(calls.saturating_sub(last)..=calls),
            })
            .to_vec(),
    };
    println!(
        "reclaim: {calls} calls, {} of them go wrong, in two ways",
        chosen.len()
    );
    let mut were_away = 0;
    for at in chosen {
        for trouble in [Trouble::KilledAt(at), Trouble::FullFrom(at)] {
            let about = format!("ROOMKEEPER_SEED={seed}, {trouble:?}");
            let site = example.site.copy();
            let via = via(&site);
            child::reclaim(&site, via.as_deref(), trouble);
            assert_nobody_else_can_read(&site, via.as_deref(), &about);
            were_away += u64::from(site.database.is_symlink());
            assert_same(&tables, &site.tables(), &about);
            site.assert_sound(&about);
            let output = child::reclaim(&site, via.as_deref(), Trouble::None);
            assert!(output.status.success(), "{about}: {output:?}");
            assert!(!site.database.is_symlink(), "{about}: it is at home");
            assert_same(&tables, &site.tables(), &about);
            site.assert_sound(&about);
            let leftover = site.database.with_extension("db.reclaim");
            assert!(!leftover.exists(), "{about}");
        }
    }
    println!("{were_away} times it was left on the other disk");
}

/// Whatever a killed `reclaim` left: the database was for its owner alone, and so is every copy.
fn assert_nobody_else_can_read(site: &Site, via: Option<&std::path::Path>, about: &str) {
    let there = [Some(site.directory()), via];
    for entry in there
        .into_iter()
        .flatten()
        .flat_map(|d| std::fs::read_dir(d).expect("read"))
    {
        let path = entry.expect("an entry").path();
        let name = path.display().to_string();
        let is_copy = [".reclaim", "-unmerged", ".roomkeeper-via"];
        if is_copy.iter().any(|end| name.ends_with(end)) && !path.is_symlink() {
            let mode = std::fs::metadata(&path)
                .expect("there")
                .permissions()
                .mode();
            assert_eq!(mode & 0o077, 0, "{about}: {name} has the mode {mode:o}");
        }
    }
}

/// Holds the write lock until it is dropped.
struct Writer(Connection);

impl Writer {
    fn on(site: &Site) -> Self {
        let conn = Connection::open(&site.database).expect("opens");
        conn.execute_batch("BEGIN IMMEDIATE").expect("locks");
        Self(conn)
    }

    fn let_go(self) {
        self.0.execute_batch("COMMIT").expect("unlocks");
    }
}

#[test]
fn a_purge_waits_for_another_writer() {
    let example = Example::new(seed(), Way::Batches(5), 18..24);
    let site = example.site.copy();
    let writer = Writer::on(&site);
    let child = child::start(&site, &example.ask, example.way, Trouble::None);
    // Longer than one statement waits.
    std::thread::sleep(Duration::from_millis(6_500));
    writer.let_go();
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success(), "{output:?}");
    assert_same(&example.end, &site.tables(), "it waited");
}

#[test]
fn a_purge_that_finds_the_database_busy_for_too_long_says_so_and_can_be_asked_for_again() {
    if !is_campaign() {
        println!("left to the campaign: it takes half a minute");
        return;
    }
    let example = Example::new(seed(), Way::Program, 18..24);
    let site = example.site.copy();
    let writer = Writer::on(&site);
    let started = Instant::now();
    let output = child::run(&site, &example.ask, example.way, Trouble::None);
    println!("gave up after {:?}", started.elapsed());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("database is locked"), "{said}");
    writer.let_go();
    assert_same(&example.before, &site.tables(), "nothing was done");
    example.recover(&site, "busy");
}

/// Somebody who writes all the time, a little each time, as a homeserver does.
#[test]
fn a_purge_beside_a_busy_writer_gets_through_and_so_does_the_writer() {
    let seed = seed();
    let example = Example::new(seed, Way::Beside(5), 40..60);
    let site = example.site.copy();
    let mut child = child::start(&site, &example.ask, example.way, Trouble::None);
    let conn = Connection::open(&site.database).expect("opens");
    conn.busy_timeout(Duration::from_secs(5)).expect("set");
    // What changes nothing writes nothing.
    conn.execute_batch(
        "CREATE TABLE somebody_else (n INTEGER); INSERT INTO somebody_else VALUES (0)",
    )
    .expect("made");
    let (mut writes, mut longest) = (0, Duration::ZERO);
    let status = loop {
        let started = Instant::now();
        conn.execute("UPDATE somebody_else SET n = n + 1", [])
            .expect("a writer with Synapse's patience gets through");
        longest = longest.max(started.elapsed());
        writes += 1;
        if let Some(status) = child.try_wait().expect("asked") {
            break status;
        }
    };
    println!("{writes} writes, the longest took {longest:?}");
    let output = child.wait_with_output().expect("read");
    assert!(status.success(), "ROOMKEEPER_SEED={seed}: {output:?}");
    conn.execute_batch("DROP TABLE somebody_else")
        .expect("dropped");
    drop(conn);
    assert_same(
        &example.end,
        &site.tables(),
        &format!("ROOMKEEPER_SEED={seed}"),
    );
    site.assert_sound("beside a writer");
}
