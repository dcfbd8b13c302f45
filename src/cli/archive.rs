//! `roomkeeper restore` and `roomkeeper archives`: what jobs removed, and bringing it back.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{output, words};
use crate::archive::Identity;
use crate::config::Config;
use crate::error::{EXIT_FAILED, Error};
use crate::ids::{Escaped, JobId, RoomId};
use crate::keeper::{self, ArchiveReport, Restoration, RestoreRequest};
use crate::plural::count;

#[derive(Args)]
pub(super) struct Restore {
    /// The job whose archive it is in (`roomkeeper archives` lists them).
    job: String,
    /// Of that, this room alone.
    #[arg(long, value_name = "ID")]
    room: Option<String>,
    /// Only say what would come back; reads, and changes nothing.
    #[arg(long)]
    dry_run: bool,
    /// The private keys of an encrypted archive, in a file as age-keygen writes it.
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct Archives {
    #[command(subcommand)]
    act: Option<Act>,
}

#[derive(Subcommand)]
enum Act {
    /// Read every row of every archive; exit code 1 where one is damaged, or cannot be opened with the keys.
    Verify {
        /// The private keys of encrypted archives, in a file as age-keygen writes it.
        #[arg(long, value_name = "FILE")]
        identity: Option<PathBuf>,
    },
    /// Take the archive of a job away for good: what the job removed cannot come back then.
    Shred {
        /// The job.
        job: String,
    },
}

fn keys(file: Option<&Path>) -> Result<Vec<Identity>, Error> {
    file.map_or(Ok(Vec::new()), Identity::read)
}

/// Brings back what a job removed.
pub(super) fn restore(
    config: &Config,
    wanted: &Restore,
    is_said: bool,
    as_json: bool,
) -> Result<ExitCode, Error> {
    let request = RestoreRequest {
        job: JobId::from(wanted.job.as_str()),
        room: wanted.room.as_deref().map(RoomId::new),
        dry_run: wanted.dry_run,
        keys: keys(wanted.identity.as_deref())?,
    };
    if !request.dry_run && words::can_ask(is_said, as_json) {
        let plan = keeper::restore(
            config,
            &RestoreRequest {
                dry_run: true,
                ..request.clone()
            },
        )?;
        let events = count(plan.events, "event");
        let question = format!("bring back {events} that job {} removed?", request.job);
        words::ask(&question, is_said, as_json)?;
    }
    let done = keeper::restore(config, &request)?;
    if as_json {
        output::json(&json!(done));
    } else {
        show(&done, request.dry_run);
    }
    Ok(ExitCode::SUCCESS)
}

fn show(done: &Restoration, is_plan: bool) {
    let rooms: Vec<String> = done.rooms.iter().map(ToString::to_string).collect();
    let verb = match (is_plan, done.events) {
        (true, _) => "would come back",
        (false, 1) => "is back",
        (false, _) => "are back",
    };
    output::say(&format!(
        "{} of {} {verb}.",
        count(done.events, "event"),
        rooms.join(", ")
    ));
    if done.already_there > 0 {
        output::say(&format!(
            "Already there, and left as they are: {}.",
            count(done.already_there, "event")
        ));
    }
    if done.renumbered > 0 {
        output::say(&format!(
            "New numbers, because theirs were given out again: {}.",
            done.renumbered
        ));
    }
    for note in &done.notes {
        output::say(&format!("Note: {note}."));
    }
    if let Some(hold) = &done.hold {
        output::say(&format!(
            "The hold {hold} keeps it from going again: `roomkeeper hold release {hold} --reason …` ends that."
        ));
    }
}

/// Lists the archives, verifies them, or takes one away.
pub(super) fn archives(
    config: &Config,
    wanted: &Archives,
    is_said: bool,
    as_json: bool,
) -> Result<ExitCode, Error> {
    let (reports, is_shredded) = match &wanted.act {
        None => (keeper::archives(config, None)?, false),
        Some(Act::Verify { identity }) => {
            let keys = keys(identity.as_deref())?;
            (keeper::archives(config, Some(&keys))?, false)
        }
        Some(Act::Shred { job }) => {
            let question = format!("take the archive of job {} away for good?", Escaped(job));
            words::ask(&question, is_said, as_json)?;
            let job = JobId::from(job.as_str());
            (vec![keeper::shred(config, &job)?], true)
        }
    };
    if as_json {
        output::json(&match is_shredded {
            true => json!({ "shredded": reports }),
            false => json!({ "archives": reports }),
        });
    } else if is_shredded {
        for report in &reports {
            output::say(&format!("{} is gone.", report.file.display()));
        }
    } else {
        list(&reports);
    }
    let verifies = matches!(wanted.act, Some(Act::Verify { .. }));
    let is_damaged = reports.iter().any(|report| !report.damage.is_empty());
    Ok(match verifies && is_damaged {
        true => ExitCode::from(EXIT_FAILED),
        false => ExitCode::SUCCESS,
    })
}

fn list(reports: &[ArchiveReport]) {
    if reports.is_empty() {
        output::say("There are no archives.");
        return;
    }
    for report in reports {
        let job = match &report.job {
            Some(job) => job.to_string(),
            None => report.file.display().to_string(),
        };
        let until = report.until_ms.map_or_else(String::new, |until| {
            format!(", kept until {}", until.as_date())
        });
        output::say(&format!(
            "{job}: {} of {}, {} bytes{until}",
            count(report.events, "event"),
            count(report.rooms.len() as i64, "room"),
            report.bytes
        ));
        for room in &report.rooms {
            output::say(&format!("  {room}"));
        }
        if report.unopened > 0 {
            output::say(&format!(
                "  {} not opened: there was no key (--identity FILE)",
                count(report.unopened as i64, "transaction")
            ));
        }
        for damage in &report.damage {
            output::say(&format!("  damaged: {}", Escaped(damage)));
        }
    }
    let bytes: u64 = reports.iter().map(|report| report.bytes).sum();
    output::say(&format!("{bytes} bytes in all."));
}
