//! `roomkeeper retention`: what the policies would do now, and doing it.

use std::collections::BTreeSet;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{output, plan_text, policies, remote, words};
use crate::config::Config;
use crate::error::{EXIT_FAILED, Error};
use crate::jobs::ledger::{JobRecord, State};
use crate::keeper::{Keeper, Viewer};
use crate::plan_hash::PlanHash;
use crate::plural::{count, count_of};
use crate::policy::{Clamp, LifetimeRange, Source};
use crate::retention::{Due, Plan};
use crate::store::space::human;
use crate::time::parse_duration_with_unit;

#[derive(Subcommand)]
pub(super) enum Retention {
    /// What the retention jobs and the policies of our own would do now, room by room; reads, and takes no lock.
    Plan {
        #[command(flatten)]
        which: Which,
        /// Count every purge row by row: state groups and bytes too, and say what binds a run to it. Slow.
        #[arg(long)]
        exact: bool,
    },
    /// Run the retention jobs and the policies of our own now, and wait for them.
    Run {
        #[command(flatten)]
        which: Which,
        /// Only as planned, as of the time of the plan: what `plan --exact` said of these rooms. Where anything else would
        /// go by now, nothing goes.
        #[arg(long, value_name = "HASH")]
        plan: Option<PlanHash>,
        /// Only say what would go, as `plan` does.
        #[arg(long, conflicts_with = "plan")]
        dry_run: bool,
        /// The clock is right, although nothing says so: for this command.
        #[arg(long)]
        trust_clock: bool,
    },
}

/// Which rooms.
#[derive(Args)]
pub(super) struct Which {
    /// Only this one of the configuration's `purge_jobs`, counted from 1.
    #[arg(long, value_name = "N", conflicts_with_all = ["shortest", "longest", "policy"])]
    job: Option<usize>,
    /// Only this policy of our own (`roomkeeper.policies`), by its name.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["shortest", "longest"])]
    policy: Option<String>,
    /// Instead of the jobs, the rooms whose lifetime is above this: 1d, 12h, …
    #[arg(long, value_name = "DURATION")]
    shortest: Option<String>,
    /// Instead of the jobs, the rooms whose lifetime is this at most.
    #[arg(long, value_name = "DURATION")]
    longest: Option<String>,
}

impl Which {
    /// Whether nothing in particular was asked for.
    fn is_everything(&self) -> bool {
        self.job.is_none()
            && self.shortest.is_none()
            && self.longest.is_none()
            && self.policy.is_none()
    }

    /// The names of the policies of our own that are meant: the one that is named, or all where nothing in particular is.
    fn policies(&self, config: &Config) -> Vec<String> {
        let all = config.policies.iter().map(|policy| policy.name.clone());
        match &self.policy {
            Some(name) => vec![name.clone()],
            None if self.is_everything() => all.collect(),
            None => Vec::new(),
        }
    }

    /// The ranges that are meant: one on demand, one job's, or every job's.
    pub(super) fn ranges(&self, config: &Config) -> Result<Vec<LifetimeRange>, Error> {
        if self.policy.is_some() {
            return Ok(Vec::new());
        }
        let length = |name: &str, text: &Option<String>| match text {
            Some(text) => parse_duration_with_unit(text)
                .map(Some)
                .map_err(|said| Error::Config(format!("{name}: {said}"))),
            None => Ok(None),
        };
        if self.shortest.is_some() || self.longest.is_some() {
            return Ok(vec![LifetimeRange {
                shortest: length("--shortest", &self.shortest)?,
                longest: length("--longest", &self.longest)?,
            }]);
        }
        let Some(number) = self.job else {
            return Ok(config.retention.ranges());
        };
        match config.retention.job(number) {
            Some(job) => Ok(vec![job.range]),
            None => Err(Error::Config(format!(
                "there is no job {number}: the configuration has {} (retention.purge_jobs)",
                config.retention.purge_jobs.len()
            ))),
        }
    }
}

/// Plans, or runs.
pub(super) fn retention(
    config: Config,
    wanted: &Retention,
    is_said: bool,
    as_json: bool,
) -> Result<ExitCode, Error> {
    match wanted {
        Retention::Plan { which, exact } => plan(config, which, *exact, as_json),
        Retention::Run {
            which,
            dry_run: true,
            trust_clock,
            ..
        } => {
            let mut config = config;
            config.check_clock &= !trust_clock;
            plan(config, which, false, as_json)
        }
        Retention::Run {
            which,
            plan,
            trust_clock,
            ..
        } => {
            let mut config = config;
            config.check_clock &= !trust_clock;
            run(config, which, *plan, *trust_clock, is_said, as_json)
        }
    }
}

fn plan(config: Config, which: &Which, exact: bool, as_json: bool) -> Result<ExitCode, Error> {
    let ranges = which.ranges(&config)?;
    let names = which.policies(&config);
    if !config.retention.enabled && !ranges.is_empty() && !as_json {
        output::say("Retention is not enabled: the daemon runs none of this.");
    }
    let viewer = Viewer::open(config)?;
    if let Err(e) = viewer.refuse_clock_ahead() {
        output::warn(&format!("nothing of this would be done now: {e}"));
    }
    let mut plans = Vec::new();
    for range in ranges {
        let plan = viewer.plan_retention(range, exact)?;
        if !as_json {
            show(&plan);
        }
        plans.push(plan);
    }
    let policies = policies::plans(&viewer, &names)?;
    if as_json {
        output::json(&serde_json::json!({ "plans": plans, "policies": policies }));
    } else {
        policies.iter().for_each(policies::show);
        output::say("Nothing was changed.");
    }
    Ok(ExitCode::SUCCESS)
}

fn run(
    config: Config,
    which: &Which,
    plan: Option<PlanHash>,
    trust_clock: bool,
    is_said: bool,
    as_json: bool,
) -> Result<ExitCode, Error> {
    let names = which.policies(&config);
    let is_disabled = which.is_everything() && !config.retention.enabled;
    if is_disabled && names.is_empty() {
        return Err(Error::Config(
            "retention is not enabled (retention.enabled in the configuration): say which job (--job) or which lifetimes \
             (--shortest, --longest) are to be run all the same"
                .into(),
        ));
    }
    let ranges = match is_disabled {
        true => Vec::new(),
        false => which.ranges(&config)?,
    };
    if plan.is_some() && (ranges.len() != 1 || !names.is_empty()) {
        return Err(Error::Config(
            "a plan is of one job's rooms: say which (--job), or which lifetimes (--shortest, --longest)".into(),
        ));
    }
    if words::can_ask(is_said, as_json) {
        words::ask(&question(&config, &ranges, &names)?, is_said, as_json)?;
    }
    let asked = config.clone();
    let keeper = match Keeper::open(config) {
        Err(Error::LedgerLocked(_)) if trust_clock => {
            return Err(Error::Refused(
                "a daemon is at work, and --trust-clock holds for this command alone: stop the daemon first, or say \
                 roomkeeper.check_clock: off in its configuration"
                    .into(),
            ));
        }
        Err(Error::LedgerLocked(_)) => {
            return remote::retention(&asked, &ranges, &names, plan, as_json);
        }
        keeper => keeper?,
    };
    let keeper = super::as_planned(keeper, plan);
    let mut runs = Vec::new();
    for range in ranges {
        let id = keeper.purge_history_for_rooms_in_range(range.shortest, range.longest)?;
        runs.push(super::attend(&keeper, &id, as_json)?);
    }
    for name in names {
        match keeper.run_policy(&name)?.job_id {
            Some(id) => runs.push(super::attend(&keeper, &id, as_json)?),
            None => policies::takes_nothing(&name, as_json),
        }
    }
    Ok(ended(&runs, as_json))
}

/// What a person is asked before a run: how much would go, and where to see it.
fn question(config: &Config, ranges: &[LifetimeRange], names: &[String]) -> Result<String, Error> {
    let viewer = Viewer::open(config.clone())?;
    // What would be refused is not asked about.
    viewer.refuse_clock_ahead()?;
    let (mut events, mut bytes, mut rooms) = (0, 0, BTreeSet::new());
    for range in ranges {
        let plan = viewer.plan_retention(*range, false)?;
        events += plan.events;
        bytes += plan.estimated_bytes;
        rooms.extend(plan.rooms.into_iter().map(|due| due.room_id));
    }
    let plans = policies::plans(&viewer, names)?;
    let more = policies::question(&plans);
    if ranges.is_empty() {
        return Ok(format!(
            "{more} (`roomkeeper retention plan` shows each room)?"
        ));
    }
    let more = match more.is_empty() {
        true => more,
        false => format!("; and {more}"),
    };
    Ok(format!(
        "delete what has expired by the retention policies: {} of {}, some {}{more} (`roomkeeper retention plan` shows each room)?",
        count(events, "event"),
        count(many(rooms.len()), "room"),
        human(u64::try_from(bytes).unwrap_or(0)),
    ))
}

/// Shows what the runs did, and gives the exit code for it.
pub(super) fn ended(runs: &[JobRecord], as_json: bool) -> ExitCode {
    if as_json {
        output::json(&serde_json::json!({ "runs": runs }));
    }
    let mut code = ExitCode::SUCCESS;
    for run in runs {
        if !as_json {
            output::job_done(false, run, &[]);
        }
        if run.state == State::Failed {
            output::warn(run.error.as_deref().unwrap_or("failed"));
            code = ExitCode::from(EXIT_FAILED);
        }
    }
    code
}

fn many(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A plan for people.
fn show(plan: &Plan) {
    output::say(&format!("Rooms with {}:", plan.range));
    for due in &plan.rooms {
        output::say(&format!("  {}", line(due)));
    }
    let mut reason = None;
    for room in &plan.left_alone {
        if reason != Some(room.reason) {
            reason = Some(room.reason);
            output::say(&format!("Left alone, because {}:", room.reason.in_words()));
        }
        let lifetime = room.lifetime.as_ref();
        let lifetime =
            lifetime.map_or_else(String::new, |l| format!("  {}", l.lifetime.in_words()));
        let expired = room.expired.map_or_else(String::new, |messages| {
            format!("  {}", count(messages, "message"))
        });
        let holds = match room.holds.is_empty() {
            true => String::new(),
            false => format!("  {}", room.holds.join(", ")),
        };
        output::say(&format!("  {}{lifetime}{expired}{holds}", room.room_id));
    }
    output::say(&format!(
        "{} of {} would go, some {}; {} left alone.",
        count(plan.events, "event"),
        count(many(plan.rooms.len()), "room"),
        human(u64::try_from(plan.estimated_bytes).unwrap_or(0)),
        count_of(many(plan.left_alone.len()), "room is", "rooms are")
    ));
    plan_text::bound(plan.plan);
}

fn line(due: &Due) -> String {
    let mut line = format!(
        "{}  {} ({}{})  before {} ({})  {}, some {}",
        due.room_id,
        due.lifetime.lifetime.in_words(),
        match due.lifetime.source {
            Source::Room => "the room's",
            Source::Default => "the default",
        },
        match due.lifetime.clamp {
            None => "",
            Some(Clamp::AllowedLifetimeMin) => ", raised to allowed_lifetime_min",
            Some(Clamp::AllowedLifetimeMax) => ", lowered to allowed_lifetime_max",
        },
        due.cut_off_ms.as_date(),
        due.point,
        count(due.events, "event"),
        human(u64::try_from(due.estimated_bytes).unwrap_or(0)),
    );
    let stays = &due.stays;
    let expired = [
        (stays.state, "state"),
        (stays.anchor, "the last expired one"),
        (stays.at_or_above_the_cut, "at or above the cut's depth"),
        (stays.redactions, "redactions of what stays"),
        (stays.not_expired, "not expired"),
        (stays.held, "held"),
    ];
    let told: Vec<String> = expired
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if !told.is_empty() {
        line.push_str(&format!("; stay: {}", told.join(", ")));
    }
    if let Some(exact) = &due.exact {
        line.push_str(&format!(
            "; exactly {} with {} of JSON, and {}",
            count(exact.events, "event"),
            human(u64::try_from(exact.content_bytes).unwrap_or(0)),
            count(exact.state_groups, "state group")
        ));
    }
    line
}
