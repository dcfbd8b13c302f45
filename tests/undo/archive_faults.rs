//! A purge with an archive, a restoration and a shredding that are killed, or whose disk is full, at any call that changes a
//! file: the archive and the database agree after each resume, and what went comes back whole.
//!
//! It is stopped at calls that change files, so there is none of it on PostgreSQL. Normal runs take a sample; this takes every
//! call:
//!
//! ```text
//! ROOMKEEPER_CAMPAIGN=full cargo test --test undo -- archive_faults --nocapture
//! ```

use std::path::PathBuf;
use std::process::{Command, Output};

use super::archive::{archived, assert_back};
use crate::child::{self, Trouble, is_campaign};
use crate::support::archives::directory;
use crate::support::rooms::Recipe;
use crate::support::samples::deepest_cut;
use crate::support::tables::{Tables, assert_same};
use crate::support::work::{Ask, Site, seed};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use roomkeeper::jobs::ledger::Ledger;

/// Nobody runs, and all goes at once; or a few events at a time.
const WAYS: [&str; 2] = ["--offline=assume", "--beside=assume"];

struct Example {
    seed: u64,
    way: &'static str,
    site: Site,
    ask: Ask,
    before: Tables,
}

fn example(seed: u64, way: &'static str) -> Example {
    let recipe = Recipe {
        rooms: 1..2,
        events: 24..36,
        may_be_long: false,
    };
    for more in 0..50 {
        let site = Site::random(seed.wrapping_add(more * 7_919), &recipe);
        let before = site.tables();
        let ask = deepest_cut(&before);
        if site.plan(&ask).is_ok_and(|plan| plan.events_deleted >= 8) {
            return Example {
                seed,
                way,
                site,
                ask,
                before,
            };
        }
    }
    panic!("one of fifty samples is large enough");
}

/// The same again, archives included.
fn copy(site: &Site) -> Site {
    let other = site.copy();
    if directory(site).exists() {
        let copied = Command::new("cp")
            .arg("-a")
            .args([directory(site), directory(&other)])
            .output();
        assert!(copied.expect("cp").status.success());
    }
    other
}

fn configuration(site: &Site) -> PathBuf {
    let file = site.directory().with_extension("yaml");
    let text = format!(
        "server_name: \"{}\"\ndatabase: {{name: sqlite3, args: {{database: \"{}\"}}}}\n\
         roomkeeper: {{ledger: \"{}\", archive: {{directory: \"{}\"}}, batch: {{events: 5}}}}\n",
        site.server_name,
        site.database.display(),
        site.config().ledger.display(),
        directory(site).display(),
    );
    std::fs::write(&file, text).expect("written");
    file
}

impl Example {
    fn run(&self, site: &Site, way: &str, words: &[&str], trouble: Trouble) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roomkeeper"));
        command
            .arg("-c")
            .arg(configuration(site))
            .arg(way)
            .args(words);
        child::befall(&mut command, site, trouble);
        command.output().expect("it starts")
    }

    /// Begins, or takes up what the ledger has.
    fn purge(&self, site: &Site, trouble: Trouble) -> Output {
        let unended = Ledger::open(&site.config().ledger).and_then(|ledger| ledger.unended());
        let below = format!("t{}-0", self.ask.below);
        let begins = ["purge-history", &self.ask.room, "--before-token", &below];
        let begins = [&begins[..], &["--delete-local-events"]].concat();
        match unended.is_ok_and(|unended| unended.is_empty()) {
            true => self.run(site, self.way, &begins, trouble),
            false => self.run(site, self.way, &["jobs", "--resume"], trouble),
        }
    }

    fn restore(&self, site: &Site, job: &str, trouble: Trouble) -> Output {
        self.run(site, WAYS[0], &["restore", job], trouble)
    }

    fn shred(&self, site: &Site, job: &str, trouble: Trouble) -> Output {
        self.run(site, WAYS[0], &["archives", "shred", job], trouble)
    }

    /// What was begun comes to its end, and every archive brings back what its job removed.
    fn comes_back(&self, site: &Site, about: &str) {
        let mut last = self.purge(site, Trouble::None);
        for _ in 0..2 {
            if !last.status.success() {
                last = self.purge(site, Trouble::None);
            }
        }
        assert!(last.status.success(), "{about}: {last:?}");
        site.assert_sound(&format!("{about}: purged"));
        let jobs = archived(site);
        assert!(!jobs.is_empty(), "{about}: no archive");
        for job in jobs.iter().rev() {
            let restored = self.restore(site, job.as_str(), Trouble::None);
            assert!(restored.status.success(), "{about}: {restored:?}");
        }
        site.assert_sound(&format!("{about}: restored"));
        assert_back(&self.before, &site.tables(), &self.ask.room, about);
    }
}

/// Which calls are met: all, or some of each part of the work.
fn calls_met(calls: u64, some: u64, rng: &mut StdRng) -> Vec<u64> {
    assert!(calls > 0, "nothing was counted");
    if is_campaign() {
        return (1..=calls).collect();
    }
    let part = calls.div_ceil(some);
    let parts = (0..some).map(|n| n * part + 1);
    parts
        .map(|first| rng.random_range(first..first + part).min(calls))
        .collect()
}

#[test]
fn an_archive_and_its_database_agree_wherever_somebody_is_stopped() {
    let seed = seed();
    println!("ROOMKEEPER_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for (n, way) in WAYS.into_iter().enumerate() {
        let example = example(seed.wrapping_add(n as u64), way);
        let about = |what: &str, trouble: Trouble| {
            format!(
                "ROOMKEEPER_SEED={}, {way}, {what}, {trouble:?}",
                example.seed
            )
        };
        let whole = example.site.copy();
        let done = example.purge(&whole, Trouble::Counted);
        assert!(done.status.success(), "{done:?}");
        let calls = child::counted(&whole);
        let mut troubles: Vec<Trouble> = calls_met(calls, 3, &mut rng)
            .into_iter()
            .map(Trouble::KilledAt)
            .collect();
        troubles.extend(
            calls_met(calls, 1, &mut rng)
                .into_iter()
                .map(Trouble::FullFrom),
        );
        for trouble in troubles {
            let site = example.site.copy();
            let _ = example.purge(&site, trouble);
            example.comes_back(&site, &about("purge", trouble));
        }
        let job = archived(&whole).pop().expect("an archive").to_string();
        let purged = whole.tables();
        let counted = copy(&whole);
        let done = example.restore(&counted, &job, Trouble::Counted);
        assert!(done.status.success(), "{done:?}");
        let calls = child::counted(&counted);
        let mut troubles: Vec<Trouble> = calls_met(calls, 2, &mut rng)
            .into_iter()
            .map(Trouble::KilledAt)
            .collect();
        troubles.extend(
            calls_met(calls, 1, &mut rng)
                .into_iter()
                .map(Trouble::FullFrom),
        );
        for trouble in troubles {
            let about = about("restore", trouble);
            let site = copy(&whole);
            let _ = example.restore(&site, &job, trouble);
            site.assert_sound(&about);
            let again = example.restore(&site, &job, Trouble::None);
            assert!(again.status.success(), "{about}: {again:?}");
            assert_back(&example.before, &site.tables(), &example.ask.room, &about);
            site.assert_sound(&about);
        }
        if n > 0 {
            continue;
        }
        let counted = copy(&whole);
        let done = example.shred(&counted, &job, Trouble::Counted);
        assert!(done.status.success(), "{done:?}");
        let calls = child::counted(&counted);
        for at in calls_met(calls, 2, &mut rng) {
            let trouble = Trouble::KilledAt(at);
            let about = about("shred", trouble);
            let site = copy(&whole);
            let _ = example.shred(&site, &job, trouble);
            // It is whole, or not there; never something in between.
            let there = archived(&site);
            let again = example.shred(&site, &job, Trouble::None);
            assert_eq!(
                again.status.success(),
                !there.is_empty(),
                "{about}: {again:?}"
            );
            assert_eq!(archived(&site), [], "{about}");
            let restored = example.restore(&site, &job, Trouble::None);
            assert!(!restored.status.success(), "{about}: {restored:?}");
            assert_same(&purged, &site.tables(), &about);
        }
    }
}
