//! `roomkeeper jobs`: what ran and runs, and what is to become of it.

use std::process::ExitCode;

use clap::Args;

use super::{attend, ended, output, remote};
use crate::config::{Config, HomeserverPolicy};
use crate::error::{EXIT_FAILED, Error};
use crate::ids::JobId;
use crate::jobs::ledger::{JobRecord, State};
use crate::keeper::{self, Keeper, job_view};

/// What is asked of the jobs; nothing is a list of them.
#[derive(Args)]
#[group(multiple = false)]
pub(super) struct Jobs {
    /// Take up what was interrupted, and what waits for a word because an older database was put back; wait for it.
    #[arg(long)]
    resume: bool,
    /// End a job at the next whole point.
    #[arg(long, value_name = "ID")]
    cancel: Option<String>,
    /// Leave a job where it is, at the next whole point; no start takes it up.
    #[arg(long, value_name = "ID")]
    pause: Option<String>,
    /// Go on with a job that is paused, or that waits for a word.
    #[arg(long = "continue", value_name = "ID")]
    go_on: Option<String>,
}

/// One thing to do, by the word that its path ends with.
pub(super) enum Action<'a> {
    List,
    Resume,
    To(&'static str, &'a str),
}

impl Jobs {
    fn action(&self) -> Action<'_> {
        match self {
            Self { resume: true, .. } => Action::Resume,
            Self {
                cancel: Some(id), ..
            } => Action::To("cancel", id),
            Self {
                pause: Some(id), ..
            } => Action::To("pause", id),
            Self {
                go_on: Some(id), ..
            } => Action::To("continue", id),
            _ => Action::List,
        }
    }
}

/// Does it, by the daemon where one is at work.
pub(super) fn jobs(config: Config, wanted: &Jobs, json: bool) -> Result<ExitCode, Error> {
    let (asked, action) = (config.clone(), wanted.action());
    if matches!(action, Action::List) {
        return match keeper::recorded_jobs(&config)? {
            Some(records) => {
                show(&records, json);
                Ok(ExitCode::SUCCESS)
            }
            None => remote::jobs(&asked, &action, json),
        };
    }
    let runs_something = matches!(action, Action::Resume | Action::To("continue", _));
    let keeper = match Keeper::open(Config {
        // What touches the ledger alone is no reason to refuse because a homeserver runs.
        homeserver: match runs_something {
            true => config.homeserver,
            false => HomeserverPolicy::AssumeStopped,
        },
        ..config
    }) {
        Err(Error::LedgerLocked(_)) => return remote::jobs(&asked, &action, json),
        keeper => keeper?,
    };
    match action {
        Action::List => {}
        Action::Resume => {
            let ids = keeper.resume()?;
            return run_to_the_end(&keeper, &ids, json);
        }
        Action::To("continue", id) => {
            let id = JobId::from(id);
            keeper.continue_job(&id)?;
            return run_to_the_end(&keeper, &[id], json);
        }
        Action::To("pause", id) => keeper.pause(&JobId::from(id))?,
        Action::To(_, id) => keeper.cancel(&JobId::from(id))?,
    }
    show(&keeper.jobs()?, json);
    Ok(ExitCode::SUCCESS)
}

fn show(records: &[JobRecord], json: bool) {
    let views = records.iter().map(job_view).collect::<Vec<_>>();
    output::jobs(json, &views, records);
}

/// Shows each job until it has ended.
fn run_to_the_end(keeper: &Keeper, ids: &[JobId], json: bool) -> Result<ExitCode, Error> {
    let mut outcome = ExitCode::SUCCESS;
    let mut records: Vec<JobRecord> = Vec::new();
    for id in ids {
        let job = attend(keeper, id, json)?;
        if job.state == State::Failed {
            outcome = ExitCode::from(EXIT_FAILED);
        }
        if !json {
            ended(&job, json);
        }
        records.push(job);
    }
    output::resumed(json, &records);
    Ok(outcome)
}
