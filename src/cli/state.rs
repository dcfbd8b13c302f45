//! `roomkeeper state`: the state groups of the whole server.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::output;
use super::rooms::Which;
use super::{finish, remote, words};
use crate::config::Config;
use crate::error::Error;
use crate::keeper::{CompressRequest, Keeper, StateCompressPlan, StateSweepPlan, Viewer};
use crate::plural::count;
use crate::store::index_test::IndexesBy;

/// What is done with them.
#[derive(Subcommand)]
pub(super) enum State {
    /// Delete every state group that no event has any more; beside a running homeserver it is told of them instead.
    Sweep(Sweep),
    /// Store the same states in fewer rows. On SQLite, and beside old releases, Synapse has to be stopped.
    Compress(Box<Compress>),
}

#[derive(Args)]
pub(super) struct Compress {
    #[command(flatten)]
    which: Which,
    /// Only say what it would come to; reads, and takes no lock.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
pub(super) struct Sweep {
    /// Only say what would go; reads, and takes no lock.
    #[arg(long)]
    dry_run: bool,
}

/// Does it, by the daemon where one is at work.
pub(super) fn state(
    config: Config,
    wanted: &State,
    is_said: bool,
    as_json: bool,
) -> Result<ExitCode, Error> {
    match wanted {
        State::Sweep(wanted) => sweep(config, wanted, is_said, as_json),
        State::Compress(wanted) => compress(config, wanted, is_said, as_json),
    }
}

/// Has the groups of rooms stored in fewer rows.
fn compress(
    config: Config,
    wanted: &Compress,
    is_said: bool,
    as_json: bool,
) -> Result<ExitCode, Error> {
    let request = CompressRequest {
        selectors: wanted.which.selectors()?,
    };
    if wanted.dry_run {
        show_compression(
            &Viewer::open(config)?.plan_state_compress(&request)?,
            as_json,
        );
        return Ok(ExitCode::SUCCESS);
    }
    let question = match wanted.which.is_said() {
        true => {
            "store the state groups of these rooms in fewer rows? --dry-run says what that comes to"
        }
        false => {
            "store the state groups of this server in fewer rows? --dry-run says what that comes to"
        }
    };
    words::ask(question, is_said, as_json)?;
    let asked = config.clone();
    let keeper = match Keeper::open(config) {
        Err(Error::LedgerLocked(_)) => return remote::compress_state(&asked, &request, as_json),
        keeper => keeper?,
    };
    let id = keeper.compress_state(&request)?;
    finish(&keeper, &id, as_json)
}

fn show_compression(plan: &StateCompressPlan, as_json: bool) {
    if as_json {
        output::json(&serde_json::to_value(plan).unwrap_or_default());
        return;
    }
    for room in &plan.rooms {
        output::say(&format!(
            "  {}  {} of state, afterwards {}",
            room.room_id,
            count(room.sums.state_rows_before, "row"),
            room.sums.state_rows_after
        ));
    }
    let untold = plan.rooms_changed - i64::try_from(plan.rooms.len()).unwrap_or(i64::MAX);
    if untold > 0 {
        output::say(&format!("  and {} that gives less", count(untold, "room")));
    }
    for left in &plan.left_alone {
        output::say(&format!(
            "  {}  is left alone: {}",
            left.room_id, left.error
        ));
    }
    let sums = &plan.sums;
    output::say(&format!(
        "{} of state in {} would become {}: {} of {} would be stored anew in {}, none would say anything else.",
        count(sums.state_rows_before, "row"),
        count(plan.rooms_looked_at, "room"),
        sums.state_rows_after,
        count(sums.groups_changed, "state group"),
        sums.groups_looked_at,
        count(plan.rooms_changed, "room"),
    ));
    if sums.groups_left_alone > 0 {
        output::say(&format!(
            "{} would be left alone: they or what they rest on are waiting for their deletion or in use, or nobody can say what \
             they hold.",
            count(sums.groups_left_alone, "state group")
        ));
    }
    for note in &plan.notes {
        output::say(&format!("Note: {note}"));
    }
    say_how_tested(plan.indexes_by);
    output::say("Nothing was changed.");
}

/// Has every group deleted that no event has.
fn sweep(config: Config, wanted: &Sweep, is_said: bool, as_json: bool) -> Result<ExitCode, Error> {
    if wanted.dry_run {
        show(&Viewer::open(config)?.plan_state_sweep()?, as_json);
        return Ok(ExitCode::SUCCESS);
    }
    let question =
        "delete every state group of this server that no event has? --dry-run says which";
    words::ask(question, is_said, as_json)?;
    let asked = config.clone();
    let keeper = match Keeper::open(config) {
        Err(Error::LedgerLocked(_)) => return remote::sweep_state(&asked, as_json),
        keeper => keeper?,
    };
    let id = keeper.sweep_state()?;
    finish(&keeper, &id, as_json)
}

fn show(plan: &StateSweepPlan, as_json: bool) {
    if as_json {
        output::json(&serde_json::to_value(plan).unwrap_or_default());
        return;
    }
    for room in &plan.rooms {
        let rows: i64 = room.rows_removed.values().sum();
        output::say(&format!(
            "  {}  {}, {}",
            room.room_id,
            count(room.state_groups, "state group"),
            count(rows, "row")
        ));
    }
    let untold = plan.rooms_swept - i64::try_from(plan.rooms.len()).unwrap_or(i64::MAX);
    if untold > 0 {
        output::say(&format!("  and {}", count(untold, "smaller room")));
    }
    for left in &plan.left_alone {
        output::say(&format!(
            "  {}  is left alone: {}",
            left.room_id, left.error
        ));
    }
    output::say(&format!(
        "A sweep would remove {} of {} in {}:",
        count(plan.state_groups, "state group"),
        plan.groups_looked_at,
        count(plan.rooms_swept, "room")
    ));
    output::table(&plan.rows_removed);
    if plan.state_groups_kept > 0 {
        output::say(&format!(
            "{} without an event would stay: others rest on them and would need more rows without.",
            count(plan.state_groups_kept, "state group")
        ));
    }
    if !plan.is_exact {
        output::say("The rows are an estimate: a room has more than fifty thousand of them.");
    }
    for note in &plan.notes {
        output::say(&format!("Note: {note}"));
    }
    say_how_tested(plan.indexes_by);
    output::say("Nothing was changed.");
}

fn say_how_tested(indexes: IndexesBy) {
    output::say(match indexes {
        IndexesBy::IntegrityCheck => "The indexes agree with their tables (SQLite's own check).",
        IndexesBy::Amcheck => "The indexes agree with their tables (amcheck).",
        IndexesBy::Comparison => "The indexes have as many entries as their tables.",
    });
}
