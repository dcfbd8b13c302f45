//! `roomkeeper replay`: what jobs removed since a backup was made goes again.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{attend, output, words};
use crate::config::Config;
use crate::error::{EXIT_FAILED, Error};
use crate::ids::Escaped;
use crate::jobs::ledger::State;
use crate::keeper::{self, Keeper, ReplayStep, Since};
use crate::plural::{count, count_of};
use crate::receipt;
use crate::time::{When, parse_when};

#[derive(Args)]
pub(super) struct Replay {
    /// When the backup was made, or before: a date, how long ago (3d), the number of receipts that there were, or a file
    /// that holds a checkpoint of then.
    #[arg(long, value_name = "WHEN")]
    since: String,
    /// Only say what would be done; reads, and changes nothing.
    #[arg(long)]
    dry_run: bool,
}

/// From when on.
fn since(config: &Config, words: &str) -> Result<Since, Error> {
    let wrong = |said: &str| Error::Config(format!("--since: {said}"));
    let path = Path::new(words);
    if path.is_file() {
        let note = fs::read_to_string(path).map_err(|e| wrong(&format!("{words}: {e}")))?;
        let opened = receipt::open(&note, &keeper::receipt_keys(config));
        let checkpoint = opened.map_err(|why| {
            wrong(&format!(
                "{words} holds no checkpoint of this ledger's receipts: {why}"
            ))
        })?;
        return Ok(Since::Receipts(checkpoint.size));
    }
    // A year, or milliseconds, would be meant otherwise.
    if words.len() <= 9 && words.bytes().all(|b| b.is_ascii_digit()) && !words.is_empty() {
        return words
            .parse()
            .map(Since::Receipts)
            .map_err(|_| wrong("that is no number of receipts"));
    }
    match parse_when(words).map_err(|e| wrong(&e))? {
        When::At(time) => Ok(Since::Time(time)),
        When::Ago(age) => Ok(Since::Time(config.clock.now() - age)),
    }
}

/// Says what would go again, or has it go.
pub(super) fn replay(
    config: Config,
    wanted: &Replay,
    is_said: bool,
    as_json: bool,
) -> Result<ExitCode, Error> {
    let since = since(&config, &wanted.since)?;
    if wanted.dry_run {
        let steps = keeper::plan_replay(&config, since)?;
        if as_json {
            output::json(&json!({ "steps": steps }));
            return Ok(ExitCode::SUCCESS);
        }
        for step in &steps {
            output::say(&in_words(step));
        }
        let (left, all) = (
            steps.iter().filter(|s| s.left_out.is_some()).count(),
            steps.len(),
        );
        output::say(&format!(
            "{} would be done again.",
            count((all - left) as u64, "job")
        ));
        return Ok(ExitCode::SUCCESS);
    }
    if words::can_ask(is_said, as_json) {
        let steps = keeper::plan_replay(&config, since)?;
        steps.iter().for_each(|step| output::say(&in_words(step)));
        let jobs = steps.iter().filter(|step| step.left_out.is_none()).count();
        words::ask(
            &format!("do {} again?", count(jobs as u64, "job")),
            is_said,
            as_json,
        )?;
    }
    let keeper = Keeper::open(config)?;
    let (begun, mut steps) = keeper.replay(since)?;
    for job in begun {
        attend(&keeper, &job, as_json)?;
    }
    let (mut done, mut failed) = (0, 0);
    for step in steps.iter_mut().filter(|step| step.left_out.is_none()) {
        match keeper.replay_step(step) {
            Ok(None) => {
                step.left_out =
                    Some("there is nothing of it, or by the policies of now nothing goes".into())
            }
            Ok(Some(job)) => {
                let ended = attend(&keeper, &job, as_json)?;
                step.events = ended.progress["events_deleted"].as_i64();
                match ended.state {
                    State::Complete => done += 1,
                    _ => {
                        failed += 1;
                        step.left_out = ended.error;
                    }
                }
            }
            Err(Error::Stopping) => return Err(Error::Stopping),
            Err(e) => {
                // That a hold keeps it is as it should be.
                failed += usize::from(!matches!(e, Error::Held(_)));
                step.left_out = Some(e.to_string());
            }
        }
        if !as_json {
            output::done(&in_words(step));
        }
    }
    let left_out = steps.iter().filter(|step| step.left_out.is_some()).count();
    keeper.note_replayed(since, done, left_out);
    if as_json {
        output::json(&json!({ "jobs": done, "left_out": left_out, "steps": steps }));
    } else {
        output::say(&format!(
            "{} done again, {left_out} left out.",
            count_of(done as u64, "job was", "jobs were")
        ));
    }
    Ok(match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::from(EXIT_FAILED),
    })
}

fn in_words(step: &ReplayStep) -> String {
    let what = match (&step.left_out, step.events) {
        (Some(why), _) => format!("left out: {why}"),
        (None, Some(events)) => count(events, "event"),
        (None, None) => "all of it".into(),
    };
    Escaped(&format!(
        "{}  {}  {} {}: {what}",
        step.job,
        step.at_ms.as_date(),
        step.what.replace('_', " "),
        step.room
    ))
    .to_string()
}
