//! `roomkeeper jobs`: what ran and runs, and what is to become of it.

use std::io::{IsTerminal, stdout};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::{attend, ended, job_table, output, remote, words};
use crate::config::{Config, HomeserverPolicy};
use crate::error::{EXIT_FAILED, Error};
use crate::ids::{JobId, RoomId};
use crate::jobs::ledger::{JobRecord, State};
use crate::keeper::{self, JobKind, Keeper, job_view};
use crate::time::{Millis, When, parse_when};

/// How often who watches is shown what is so.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is asked of the jobs; nothing is a list of them.
#[derive(Args)]
pub(super) struct Jobs {
    #[command(flatten)]
    act: Act,
    #[command(flatten)]
    which: Which,
    /// Show the list anew each second, as long as one of them is at work or waits for a worker.
    #[arg(long, conflicts_with = "Act")]
    watch: bool,
}

#[derive(Args)]
#[group(multiple = false)]
struct Act {
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

/// Which jobs are listed: those of which everything is so that is said.
#[derive(Args)]
struct Which {
    /// Only those in this state; several with commas between.
    #[arg(
        long,
        value_name = "STATE",
        value_delimiter = ',',
        conflicts_with = "Act"
    )]
    state: Vec<StateWord>,
    /// Only those of this kind, such as purge_history or retention; several with commas between.
    #[arg(
        long,
        value_name = "KIND",
        value_delimiter = ',',
        conflicts_with = "Act"
    )]
    kind: Vec<String>,
    /// Only those of this room: its id, or an alias.
    #[arg(long, value_name = "ROOM", conflicts_with = "Act")]
    room: Option<String>,
    /// Only those that were asked for since: 2026-01-01, 2026-01-01T12:00Z, or so long ago: 2d.
    #[arg(long, value_name = "TIME", conflicts_with = "Act")]
    since: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StateWord {
    Queued,
    Running,
    Paused,
    Waiting,
    Complete,
    Failed,
}

/// [`Which`], understood.
struct Filter {
    states: Vec<String>,
    kinds: Vec<String>,
    room: Option<RoomId>,
    since: Option<Millis>,
}

impl Which {
    fn filter(&self, config: &Config) -> Result<Filter, Error> {
        let room = match self.room.as_deref() {
            None => None,
            // The ledger alone knows no aliases.
            Some(alias) if alias.starts_with('#') => Some(words::known_room(config, alias)?),
            Some(id) if id.starts_with('!') => Some(RoomId::new(id)),
            Some(other) => {
                return Err(Error::Config(format!(
                    "--room: {other} is no room: say an id (!…) or an alias (#…), in single quotes"
                )));
            }
        };
        let since = self.since.as_deref().map(parse_when).transpose();
        let since = since.map_err(|said| Error::Config(format!("--since: {said}")))?;
        let kinds = self.kind.iter().map(|kind| kind.trim().replace('-', "_"));
        let kinds: Vec<String> = kinds.collect();
        if let Some(unknown) = kinds.iter().find(|kind| !JobKind::is_known(kind)) {
            return Err(Error::Config(format!(
                "--kind: no job is of the kind '{unknown}': say {}",
                JobKind::names().join(", ")
            )));
        }
        let words = self.state.iter().filter_map(StateWord::to_possible_value);
        Ok(Filter {
            states: words.map(|word| word.get_name().to_owned()).collect(),
            kinds,
            room,
            since: since.map(|since| match since {
                When::At(moment) => moment,
                When::Ago(age) => config.clock.now() - age,
            }),
        })
    }
}

impl Filter {
    fn takes(&self, job: &JobRecord) -> bool {
        let any = |words: &[String], is: &str| words.is_empty() || words.iter().any(|w| w == is);
        any(&self.states, job.state.text())
            && any(&self.kinds, &job.kind)
            && (self.room.as_ref()).is_none_or(|room| job.subject.room() == Some(room))
            && self.since.is_none_or(|since| job.created_ms >= since)
    }

    /// Whether jobs that belong to another one are shown beside it.
    fn shows_parts(&self) -> bool {
        self.room.is_some() || !self.kinds.is_empty()
    }
}

/// One thing to do, by the word that its path ends with.
pub(super) enum Action<'a> {
    Resume,
    To(&'static str, &'a str),
}

impl Act {
    fn action(&self) -> Option<Action<'_>> {
        match self {
            Self { resume: true, .. } => Some(Action::Resume),
            Self {
                cancel: Some(id), ..
            } => Some(Action::To("cancel", id)),
            Self {
                pause: Some(id), ..
            } => Some(Action::To("pause", id)),
            Self {
                go_on: Some(id), ..
            } => Some(Action::To("continue", id)),
            _ => None,
        }
    }
}

/// Does it, by the daemon where one is at work.
pub(super) fn jobs(config: Config, wanted: &Jobs, json: bool) -> Result<ExitCode, Error> {
    let Some(action) = wanted.act.action() else {
        let filter = wanted.which.filter(&config)?;
        return match wanted.watch {
            true => watch(&config, &filter, json),
            false => {
                show(&read(&config, &filter, false)?.0, &filter, json);
                Ok(ExitCode::SUCCESS)
            }
        };
    };
    let all = wanted.which.filter(&config)?;
    let asked = config.clone();
    let runs_something = matches!(action, Action::Resume | Action::To("continue", _));
    let keeper = match Keeper::open(Config {
        // What touches the ledger alone is no reason to refuse because a homeserver runs.
        homeserver: match runs_something {
            true => config.homeserver,
            false => HomeserverPolicy::AssumeStopped,
        },
        ..config
    }) {
        Err(Error::LedgerLocked(_)) => {
            remote::act(&asked, &action)?;
            show(&remote::jobs(&asked, true)?, &all, json);
            return Ok(ExitCode::SUCCESS);
        }
        keeper => keeper?,
    };
    match action {
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
    show(&keeper.jobs()?, &all, json);
    Ok(ExitCode::SUCCESS)
}

/// The jobs that are meant, from the ledger, or from the daemon that has it; and whether somebody has it.
fn read(config: &Config, filter: &Filter, is_said: bool) -> Result<(Vec<JobRecord>, bool), Error> {
    let recorded = keeper::recorded_jobs(config)?;
    let is_owned = recorded.is_none();
    let mut records = recorded.map_or_else(|| remote::jobs(config, is_said), Ok)?;
    records.retain(|job| filter.takes(job));
    Ok((records, is_owned))
}

fn show(records: &[JobRecord], filter: &Filter, json: bool) {
    match json {
        true => {
            let views = records.iter().map(job_view).collect::<Vec<_>>();
            output::json(&json!({ "jobs": views }));
        }
        false => job_table::print(records, filter.shows_parts()),
    }
}

/// Shows them until none is at work any more: on a terminal anew in the same place, elsewhere whenever something has
/// changed.
fn watch(config: &Config, filter: &Filter, json: bool) -> Result<ExitCode, Error> {
    let stop = super::signals()?;
    let clears = !json && stdout().is_terminal();
    let mut shown = None;
    loop {
        let (records, is_owned) = read(config, filter, shown.is_some())?;
        let is_at_work = |job: &JobRecord| matches!(job.state, State::Queued | State::Running);
        let is_over = !is_owned || !records.iter().any(is_at_work);
        if clears {
            job_table::clear_screen();
        }
        if clears || shown.as_ref() != Some(&records) {
            show(&records, filter, json);
        }
        // Who reads may have gone.
        if is_over || !output::has_reader() {
            return Ok(ExitCode::SUCCESS);
        }
        shown = Some(records);
        thread::sleep(LOOK_EVERY);
        if stop.load(Ordering::SeqCst) {
            return Ok(ExitCode::SUCCESS);
        }
    }
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
            ended(&job, &[], json);
        }
        records.push(job);
    }
    output::resumed(json, &records);
    Ok(outcome)
}
