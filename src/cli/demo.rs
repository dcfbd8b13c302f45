//! `roomkeeper demo`: what it does, shown on a made-up homeserver in a temporary directory.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use super::output;
use crate::config::{Config, HomeserverPolicy};
use crate::error::{Context, EXIT_FAILED, Error};
use crate::ids::JobId;
use crate::keeper::{Keeper, PurgeOptions, Viewer, check_offline};
use crate::point::PurgePoint;
use crate::store::db::{Db, OpenOptions};
use crate::store::{sample, schema};
use crate::time::days;

/// Messages in each room of the sample: some seven weeks, one an hour.
const MESSAGES: i64 = 1_200;

/// The sample's server.
const SERVER: &str = "example.org";

/// A directory that goes away with its value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, Error> {
        let name = format!("roomkeeper-demo-{}", JobId::random());
        let path = std::env::temp_dir().join(name);
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .context("make a temporary directory")?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Makes a sample, plans a purge of one room, purges it, and shows what changed and what did not.
pub(super) fn demo(as_json: bool) -> Result<ExitCode, Error> {
    let scratch = Scratch::new()?;
    let database = scratch.0.join("homeserver.db");
    schema::create(&database)?;
    let mut config = Config::for_sqlite(&database, SERVER);
    config.homeserver = HomeserverPolicy::AssumeStopped;
    let now = config.clock.now();
    let rooms = sample::fill(
        &mut Db::open(&database, &OpenOptions::default())?,
        SERVER,
        MESSAGES,
        now,
    )?;
    let (garden, workshop) = (&rooms[0], &rooms[1]);
    let before = counts(&database)?;
    let tell = |text: String| {
        if !as_json {
            output::say(&text);
        }
    };
    tell(format!(
        "A made-up homeserver, {SERVER}: rooms {garden} and {workshop}, {MESSAGES} messages in each, one an hour.\n\n\
         $ roomkeeper purge-history {garden} --older-than 7d --delete-local-events --dry-run"
    ));
    let (point, options) = (
        PurgePoint::OlderThan(days(7)),
        PurgeOptions {
            delete_local_events: true,
            ..PurgeOptions::default()
        },
    );
    let plan = Viewer::open(config.clone())?.plan_purge(garden, &point, options)?;
    if !as_json {
        output::plan(false, &plan, None);
    }
    tell(format!(
        "\n$ roomkeeper purge-history {garden} --older-than 7d --delete-local-events"
    ));
    let keeper = Keeper::open(config.clone())?;
    let id = keeper.purge_history(garden, point, options)?;
    let job = keeper.wait(&id)?;
    keeper.stop();
    if !as_json {
        output::job_done(false, &job, &[]);
    }
    let after = counts(&database)?;
    tell("\nEvents before and after, by room:".to_owned());
    for ((room, before), (_, after)) in before.iter().zip(&after) {
        tell(format!("  {room:<22} {before:>5} {after:>5}"));
    }
    tell("\n$ roomkeeper check".to_owned());
    let violations = check_offline(&config, |_, _| ())?;
    if as_json {
        output::json(&json!({
            "plan": plan, "job": job, "events_before": before, "events_after": after, "violations": violations,
        }));
    } else {
        output::violations(&violations);
        if violations.is_empty() {
            output::say("every invariant holds");
        }
        output::say(
            "\nThe sample is deleted again. On your own server, begin with a copy: see the README.",
        );
    }
    Ok(if violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_FAILED)
    })
}

/// Events of the timeline, by room.
fn counts(database: &Path) -> Result<Vec<(String, i64)>, Error> {
    let db = Db::open(database, &OpenOptions::default())?;
    sample::events_by_room(&db)
}
