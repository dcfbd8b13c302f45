//! `roomkeeper repair`: what a check finds and what can be mended without guessing.

use std::process::ExitCode;

use clap::Args;

use super::output;
use super::{attend, remote, words};
use crate::config::Config;
use crate::error::{EXIT_FAILED, Error};
use crate::ids::Escaped;
use crate::job::Progress;
use crate::jobs::ledger::JobRecord;
use crate::keeper::repair::{RepairItem, RepairRequest};
use crate::keeper::{Keeper, RepairPlan, RepairSummary, Viewer};
use crate::plural::count;

#[derive(Args)]
pub(super) struct Repair {
    /// Only by these rules, as `check` names them: I-5, I-13, …; all where none is named.
    rules: Vec<String>,
    /// Only say what would be mended, row by row; reads, and takes no lock.
    #[arg(long)]
    dry_run: bool,
}

/// Does it, by the daemon where one is at work. Exit code 1 where a rule is broken that could not be mended.
pub(super) fn repair(
    config: Config,
    wanted: &Repair,
    is_said: bool,
    as_json: bool,
) -> Result<ExitCode, Error> {
    let request = RepairRequest::of(&wanted.rules).map_err(Error::Config)?;
    if wanted.dry_run {
        show(&Viewer::open(config)?.plan_repair(&request)?, as_json);
        return Ok(ExitCode::SUCCESS);
    }
    let question = "mend what can be mended without guessing? --dry-run shows it row by row";
    words::ask(question, is_said, as_json)?;
    let asked = config.clone();
    let keeper = match Keeper::open(config) {
        Err(Error::LedgerLocked(_)) => return remote::repair(&asked, &request, as_json),
        keeper => keeper?,
    };
    let id = keeper.repair(&request)?;
    Ok(ended(&attend(&keeper, &id, as_json)?, as_json))
}

/// As for every job, and what could not be mended is a failure, too.
pub(super) fn ended(job: &JobRecord, as_json: bool) -> ExitCode {
    let code = super::ended(job, &[], as_json);
    match summary(&output::progress_of(job)).unmended.is_empty() {
        true => code,
        false => ExitCode::from(EXIT_FAILED),
    }
}

/// What a repair has done, as its record says.
pub(super) fn summary(progress: &Progress) -> RepairSummary {
    serde_json::from_value(progress.more.clone().into()).unwrap_or_default()
}

fn show(plan: &RepairPlan, as_json: bool) {
    if as_json {
        output::json(&serde_json::to_value(plan).unwrap_or_default());
        return;
    }
    for item in &plan.items {
        rows(item);
    }
    for left in &plan.left_alone {
        output::say(&format!(
            "  {}  would be left alone: {}",
            left.room_id, left.error
        ));
    }
    if plan.items.is_empty() {
        output::say("Nothing is to be mended.");
    }
    for one in &plan.unmended {
        output::say(&one.words());
    }
    output::say("Nothing was changed.");
}

fn rows(item: &RepairItem) {
    let more = if item.has_more { " or more" } else { "" };
    let what = match &*item.act {
        "deletes" => "would go",
        "adds" => "would be added",
        "rebuilds" => "would be built anew",
        _ => "would be put right",
    };
    output::say(&format!(
        "{}  {}{more} of {} {what}: {}",
        item.rule,
        count(item.rows, "row"),
        item.table,
        item.wrong
    ));
    for row in &item.told {
        match &row.room_id {
            Some(room) => output::say(&format!("  {}  in {room}", Escaped(&row.about))),
            None => output::say(&format!("  {}", Escaped(&row.about))),
        }
    }
    let untold = item.rows - i64::try_from(item.told.len()).unwrap_or(i64::MAX);
    if untold > 0 {
        output::say(&format!("  and {}", count(untold, "more row")));
    }
    if let Some(why) = &item.waits {
        output::say(&format!("  {why}"));
    }
}
