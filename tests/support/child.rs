//! A purge in a process of its own, which can be killed, and whose disk can be full.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use roomkeeper::{Config, Error, JobId, Keeper, PurgeOptions, RoomId};

use crate::support::work::{Ask, Site};

/// How the purge goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The library, in batches of so many events.
    Batches(i64),
    /// The library, in one transaction that refills tables.
    Rewrite,
    /// The library, beside a homeserver, in batches of so many events.
    Beside(i64),
    /// The program, as a person calls it.
    Program,
}

/// What befalls the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing.
    None,
    /// Nothing; its calls that change files are counted.
    Counted,
    /// It is killed at this call.
    KilledAt(u64),
    /// The disk is full from this call on.
    FullFrom(u64),
}

impl Way {
    fn config(self, site: &Site) -> Config {
        match self {
            Self::Batches(events) => site.in_batches_of(events),
            Self::Rewrite => site.rewriting(),
            Self::Beside(events) => site.beside(events, 60_000),
            Self::Program => site.config(),
        }
    }

    fn words(self) -> (&'static str, i64) {
        match self {
            Self::Batches(events) => ("batches", events),
            Self::Rewrite => ("rewrite", 0),
            Self::Beside(events) => ("beside", events),
            Self::Program => ("program", 0),
        }
    }
}

/// Whether everything is to be tried, not a sample.
pub fn is_campaign() -> bool {
    std::env::var("ROOMKEEPER_CAMPAIGN").is_ok_and(|which| which == "full")
}

/// The test in which a child does its work; does nothing in any other process.
pub const CHILD_TEST: &str = "a_child_does_as_it_is_told";

/// What [`CHILD_TEST`] does: takes up what the ledger has, or begins. Never returns in a child.
pub fn do_as_told() {
    let told = |name: &str| std::env::var(format!("ROOMKEEPER_CHILD_{name}")).ok();
    let Some(database) = told("DATABASE") else {
        return;
    };
    let told = |name: &str| told(name).expect("told");
    let site = Site::at(Path::new(&database), &told("SERVER"));
    let events = told("EVENTS").parse().expect("a number");
    let way = match &*told("WAY") {
        "batches" => Way::Batches(events),
        "rewrite" => Way::Rewrite,
        _ => Way::Beside(events),
    };
    let ask = Ask::all_of(&told("ROOM"), told("BELOW").parse().expect("a number"));
    live_one_life(way.config(&site), |keeper| {
        let options = PurgeOptions {
            delete_local_events: true,
            keep_received_after: ask.keep_received_after.map(roomkeeper::Millis),
            ..Default::default()
        };
        keeper.purge_history(&RoomId::new(&*ask.room), ask.point(), options)
    })
}

/// Takes up what the ledger has, or begins; the process ends with the jobs.
pub fn live_one_life(config: Config, begin: impl FnOnce(&Keeper) -> Result<JobId, Error>) -> ! {
    let run = || {
        let keeper = Keeper::open(config)?;
        let mut jobs = keeper.resume()?;
        if jobs.is_empty() {
            jobs.push(begin(&keeper)?);
        }
        let ended = jobs.iter().try_for_each(|id| keeper.wait(id).map(drop));
        keeper.stop();
        ended
    };
    let outcome = run();
    if let Err(e) = &outcome {
        eprintln!("{e}");
    }
    std::process::exit(i32::from(outcome.is_err()));
}

/// A process in which [`CHILD_TEST`] hears what it is to do.
pub fn telling(what: &[(&str, &str)]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args([CHILD_TEST, "--exact", "--nocapture", "--test-threads=1"]);
    for (key, value) in what {
        command.env(format!("ROOMKEEPER_CHILD_{key}"), value);
    }
    command
}

/// Starts a purge, or takes up the one that the ledger has.
pub fn start(site: &Site, ask: &Ask, way: Way, trouble: Trouble) -> Child {
    let mut command = match way {
        Way::Program => program(site, ask),
        _ => {
            let (name, events) = way.words();
            telling(&[
                ("DATABASE", &site.database.display().to_string()),
                ("SERVER", &site.server_name),
                ("ROOM", &ask.room),
                ("BELOW", &ask.below.to_string()),
                ("WAY", name),
                ("EVENTS", &events.to_string()),
            ])
        }
    };
    befall(&mut command, site, trouble);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts")
}

/// Arranges for what befalls the process.
pub fn befall(command: &mut Command, site: &Site, trouble: Trouble) {
    let (mode, at) = match trouble {
        Trouble::None => ("", 0),
        Trouble::Counted => ("count", 0),
        Trouble::KilledAt(at) => ("kill", at),
        Trouble::FullFrom(at) => ("full", at),
    };
    if trouble != Trouble::None {
        command
            .env("LD_PRELOAD", shim())
            .env("SHIM_DIR", site.directory())
            .env("SHIM_COUNT", count_file(site))
            .env("SHIM_MODE", mode)
            .env("SHIM_AT", at.to_string());
    }
}

/// As [`start`], to its end.
pub fn run(site: &Site, ask: &Ask, way: Way, trouble: Trouble) -> Output {
    start(site, ask, way, trouble)
        .wait_with_output()
        .expect("it ends")
}

/// Runs the program's `reclaim` to its end, with its copy in a directory where one is given.
pub fn reclaim(site: &Site, via: Option<&Path>, trouble: Trouble) -> Output {
    let mut command = of_program(site);
    command.arg("reclaim");
    if let Some(directory) = via {
        command.arg("--via").arg(directory);
    }
    befall(&mut command, site, trouble);
    command.output().expect("it starts")
}

/// How many calls the last counted run made.
pub fn counted(site: &Site) -> u64 {
    let text = std::fs::read_to_string(count_file(site)).expect("the shim was loaded");
    text.trim().parse().expect("a number")
}

/// Outside the directory whose calls are counted.
fn count_file(site: &Site) -> PathBuf {
    site.directory().with_extension("calls")
}

fn of_program(site: &Site) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roomkeeper"));
    command.arg("--database").arg(&site.database).args([
        "--server-name",
        &site.server_name,
        "--offline",
        "assume",
    ]);
    command
}

fn program(site: &Site, ask: &Ask) -> Command {
    let mut command = of_program(site);
    // Only a ledger knows whether there is something to take up.
    let unended = roomkeeper::jobs::ledger::Ledger::open(&site.config().ledger)
        .and_then(|ledger| ledger.unended())
        .expect("the ledger is read");
    if unended.is_empty() {
        command.args(["purge-history", &ask.room, "--delete-local-events"]);
        command.args(["--before-token", &format!("t{}-0", ask.below)]);
    } else {
        command.args(["jobs", "--resume"]);
    }
    command
}

/// The library that makes calls go wrong, compiled once.
fn shim() -> &'static Path {
    static SHIM: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = SHIM.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("shim.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fault/shim.c");
        let compiled = Command::new("cc")
            .args([
                "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o",
            ])
            .arg(&path)
            .args([source, "-ldl"])
            .output()
            .expect("these tests need a C compiler: cc");
        assert!(
            compiled.status.success(),
            "{}",
            String::from_utf8_lossy(&compiled.stderr)
        );
        (directory, path)
    });
    path
}
