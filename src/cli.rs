//! The command line: words into library calls, outcomes into text and exit codes.

mod archive;
mod check_config;
mod deletion;
mod demo;
mod hold;
mod job_table;
mod jobs;
mod log_pipe;
mod logging;
mod media;
mod messages;
mod output;
mod plan_text;
mod policies;
mod receipts;
mod remote;
mod repair;
mod replay;
mod retention;
mod room_set;
mod rooms;
mod serve;
mod state;
mod timeline;
mod words;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::config::{Config, HomeserverPolicy, file};
use crate::database::Database;
use crate::error::{Chain, Context, EXIT_FAILED, Error};
use crate::ids::{EventId, JobId};
use crate::jobs::ledger::{JobRecord, State};
use crate::keeper::{self, Keeper, PurgeOptions, SetAction, Viewer};
use crate::plan_hash::PlanHash;
use crate::point::{Point, PurgePoint};
use crate::store::schema;
use crate::time::{Millis, When, check_timestamp, parse_duration_with_unit, parse_when};

/// What stands below the long help, and in the manual.
const AFTER_HELP: &str = "Examples:
  roomkeeper -c /etc/matrix-synapse check-config
  roomkeeper -c homeserver.yaml rooms --larger-than 1G
  roomkeeper -c homeserver.yaml purge-history '#general:example.org' --before 2026-01-01 --dry-run
  roomkeeper -c homeserver.yaml --database copy.db delete-room '!room:example.org' --block

Environment:
  ROOMKEEPER_LOG     what is logged, as RUST_LOG: warn, debug, roomkeeper::store=trace, …
  PGPASSWORD, PGHOST, …  what libpq reads where the configuration says nothing

Exit codes:
  0    done, or nothing was to be done
  1    the job failed, or check found something
  2    wrong usage or configuration
  3    refused for the data's safety
  130  interrupted, or somebody answered no";

/// Purges the history of rooms in a Synapse homeserver's database.
#[derive(Parser)]
#[command(name = "roomkeeper", version, max_term_width = 100, after_long_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Global {
    /// The homeserver's configuration: a file, or a directory of which every *.yaml is read; repeatable, later files win
    /// key by key.
    #[arg(
        short,
        long = "config",
        value_name = "FILE_OR_DIRECTORY",
        global = true
    )]
    config: Vec<PathBuf>,
    /// The database: a path, or postgres://user@host/name. Beside a configuration it is used instead of the one named
    /// there, and nothing that is said there of the running server is: for copies.
    #[arg(long, value_name = "PATH_OR_URL", global = true)]
    database: Option<PathBuf>,
    /// The homeserver's name, when there is no configuration file.
    #[arg(long, value_name = "NAME", global = true, conflicts_with = "config")]
    server_name: Option<String>,
    /// Machine-readable output on stdout.
    #[arg(long, global = true)]
    json: bool,
    /// Do not ask before something is destroyed. Only somebody at a terminal is asked.
    #[arg(long, global = true)]
    yes: bool,
    /// `assume` says that no homeserver is running; none is looked for.
    #[arg(long, value_name = "HOW", global = true, conflicts_with = "beside")]
    offline: Option<Offline>,
    /// Accept that a homeserver is running, and while one is, work in small transactions with rests between. `assume` says
    /// that one is, seen or not.
    #[arg(long, value_name = "HOW", global = true, num_args = 0..=1, require_equals = true, default_missing_value = "look")]
    beside: Option<Beside>,
    /// Say what was asked for and what went wrong, and nothing else: no progress, no notes, and nothing where it went well.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more; twice for every batch, three times for every statement.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
}

#[derive(Clone, Copy, ValueEnum)]
enum Offline {
    Assume,
}

#[derive(Clone, Copy, ValueEnum)]
enum Beside {
    Look,
    Assume,
}

#[derive(Subcommand)]
enum Command {
    /// The daemon.
    Serve,
    /// Purge a room's history before a point, or that of many rooms; what lies at the point stays.
    PurgeHistory(PurgeHistory),
    /// What every room has and takes: size, members, activity, policy; reads, and takes no lock.
    Rooms(rooms::Rooms),
    /// Delete a room, or many: block it, move its people out, remove every row of it.
    DeleteRoom(deletion::DeleteRoom),
    /// Let nobody join a room, known or not.
    Block {
        /// The room's id.
        room: String,
    },
    /// Let people join a room again.
    Unblock {
        /// The room's id.
        room: String,
    },
    /// What the retention policies say.
    #[command(subcommand)]
    Retention(retention::Retention),
    /// What nobody may delete for now: rooms, users, times.
    #[command(subcommand)]
    Hold(hold::HoldCommand),
    /// Bring back what a job removed, from its archive; the homeserver must be stopped.
    Restore(archive::Restore),
    /// What was removed and can come back: the archives of jobs.
    Archives(archive::Archives),
    /// After a backup of the database was restored: remove again what jobs have removed since it was made, by their receipts.
    /// Holds and policies of now count; what was restored from an archive is left. Can be repeated.
    Replay(replay::Replay),
    /// What was done, and that nobody has changed what was said of it.
    Receipts(receipts::Receipts),
    /// What the rooms' state takes, and what of it is of no use any more.
    #[command(subcommand)]
    State(state::State),
    /// Uploads, and copies of what other servers have, that nothing refers to any more.
    #[command(subcommand)]
    Media(media::Media),
    /// Look at a room's timeline, as anybody sees it.
    Messages(messages::Messages),
    /// What ran, runs, and how it ended.
    Jobs(jobs::Jobs),
    /// Give free pages back to the disk; the homeserver must be stopped.
    Reclaim {
        /// Copy into this directory on another disk, where the database's own has no room for the copy.
        #[arg(long, value_name = "DIRECTORY")]
        via: Option<PathBuf>,
    },
    /// Test the database against the invariants I-1 … I-19; exit code 1 when one is violated.
    Check,
    /// Mend what `check` finds and what can be mended without guessing.
    Repair(repair::Repair),
    /// Read the configuration and say what is wrong in it, every mistake with its file and line, and what would be used.
    CheckConfig,
    /// Print completions for a shell: bash, elvish, fish, powershell or zsh.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write a manual page for every command into a directory.
    Man {
        /// The directory, which is there.
        directory: PathBuf,
    },
    /// Make an empty database in Synapse's layout (at --database, for --server-name).
    Init,
    /// Make a small sample server in a temporary directory, plan, purge, and show what changed.
    Demo,
}

#[derive(Args)]
#[command(group(ArgGroup::new("point").required(true).args(["before", "before_event", "before_ts", "before_token", "older_than"])))]
struct PurgeHistory {
    /// The room's id, or an alias of it; or choose rooms by what they are.
    room: Option<String>,
    #[command(flatten)]
    choice: room_set::Choice,
    /// Up to the room's last event received by then: 2026-01-01, 2026-01-01T12:00Z, or so long ago: 90d.
    #[arg(long, value_name = "TIME")]
    before: Option<String>,
    /// Up to this event.
    #[arg(long, value_name = "ID")]
    before_event: Option<String>,
    /// Up to the room's last event received before then, in milliseconds since 1970; what came later stays.
    #[arg(long, value_name = "MS", allow_hyphen_values = true)]
    before_ts: Option<i64>,
    /// Up to a pagination token t<topological>-<stream>.
    #[arg(long, value_name = "TOKEN")]
    before_token: Option<String>,
    /// Up to the room's last event received this long ago: 90d, 12h, …; what came later stays.
    #[arg(long, value_name = "DURATION")]
    older_than: Option<String>,
    /// Delete local users' messages as well as remote ones.
    #[arg(long)]
    delete_local_events: bool,
    /// Go no further than to the first message that is held, instead of around it.
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    media: media::WithMedia,
    /// Only say what would be removed; reads, and takes no lock.
    #[arg(long)]
    dry_run: bool,
    /// Only as planned: what a dry run said behind "plan". Where anything else would go by now, nothing goes.
    #[arg(long, value_name = "HASH", conflicts_with = "dry_run")]
    plan: Option<PlanHash>,
    /// The clock is right, although nothing says so: for this command.
    #[arg(long)]
    trust_clock: bool,
}

/// Runs the command line and gives its exit code.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    if cli.global.quiet {
        output::be_quiet();
    }
    let _last_lines = logging::start(&cli);
    let done = dispatch(&cli);
    logging::give_up_waiting();
    let failed = match done {
        Ok(_) if !output::has_localpart() => return ExitCode::from(EXIT_FAILED),
        Ok(code) => return code,
        Err(e) => e,
    };
    let is_damage = failed.is_damage() && !failed.is_index_damage();
    if cli.global.json {
        output::json(&serde_json::json!({
            "errcode": failed.class().errcode,
            "error_code": failed.code(),
            "error": match is_damage {
                true => told(&failed),
                false => failed.to_string(),
            },
        }));
    }
    match logging::is_json() {
        true => log::error!("{}", told(&failed)),
        false => output::fail(&told(&failed)),
    }
    if let Some(code) = failed.sqlite_code() {
        log::info!("SQLite's number for that is {code}");
    }
    ExitCode::from(failed.class().exit)
}

/// A failure as people are told it: of a damaged file with what to do (P-55).
fn told(failed: &Error) -> String {
    match failed.is_damage() && !failed.is_index_damage() {
        true => format!(
            "the file is damaged (rule I-18): {}. Nothing was written by this. Stop the homeserver, make a copy of the file and of \
             its -wal, and look at the copy: `sqlite3 COPY 'PRAGMA integrity_check'`. Then restore a backup",
            Chain(failed)
        ),
        false => Chain(failed).to_string(),
    }
}

fn dispatch(cli: &Cli) -> Result<ExitCode, Error> {
    let json = cli.global.json;
    let database = cli.global.database.as_deref().map(Database::of_path);
    if let Some(Database::Server(server)) = &database
        && server.shows_password()
    {
        log::warn!(
            "everybody on this machine can read the password on the command line: put it into PGPASSWORD, into \
             ~/.pgpass, or into a configuration (-c)"
        );
    }
    match &cli.command {
        Command::Demo if cli.global.database.is_some() || !cli.global.config.is_empty() => Err(
            Error::Config("demo makes a database of its own and takes no other".into()),
        ),
        Command::Demo => demo::demo(json),
        Command::Init => {
            let (Some(database), Some(_)) = (&cli.global.database, &cli.global.server_name) else {
                return Err(Error::Config(
                    "init needs --database PATH_OR_URL and --server-name NAME".into(),
                ));
            };
            let database = Database::of_path(database);
            schema::create(&database)?;
            output::created(json, &database);
            Ok(ExitCode::SUCCESS)
        }
        Command::Serve => serve::serve(&|| config(&cli.global)),
        Command::PurgeHistory(wanted) => purge_history(config(&cli.global)?, wanted, &cli.global),
        Command::Rooms(wanted) => rooms::rooms(&config(&cli.global)?, wanted, json),
        Command::DeleteRoom(wanted) => {
            deletion::delete_room(config(&cli.global)?, wanted, cli.global.yes, json)
        }
        Command::Block { room } => deletion::set_block(config(&cli.global)?, room, true, json),
        Command::Unblock { room } => deletion::set_block(config(&cli.global)?, room, false, json),
        Command::Retention(wanted) => {
            retention::retention(config(&cli.global)?, wanted, cli.global.yes, json)
        }
        Command::State(wanted) => state::state(config(&cli.global)?, wanted, cli.global.yes, json),
        Command::Media(wanted) => media::media(config(&cli.global)?, wanted, cli.global.yes, json),
        Command::Hold(wanted) => hold::hold(&config(&cli.global)?, wanted, json),
        Command::Restore(wanted) => {
            archive::restore(&config(&cli.global)?, wanted, cli.global.yes, json)
        }
        Command::Archives(wanted) => {
            archive::archives(&config(&cli.global)?, wanted, cli.global.yes, json)
        }
        Command::Replay(wanted) => {
            replay::replay(config(&cli.global)?, wanted, cli.global.yes, json)
        }
        Command::Receipts(wanted) => {
            receipts::receipts(&config(&cli.global)?, wanted, cli.global.yes, json)
        }
        Command::Messages(wanted) => messages::messages(config(&cli.global)?, wanted, json),
        Command::Jobs(wanted) => jobs::jobs(config(&cli.global)?, wanted, json),
        Command::Reclaim { via } => {
            let config = config(&cli.global)?;
            let reclaimed = match via {
                Some(directory) => keeper::reclaim_via(&config, directory)?,
                None => keeper::reclaim(&config)?,
            };
            output::reclaimed(json, &config.database, reclaimed);
            Ok(ExitCode::SUCCESS)
        }
        Command::Check => check(config(&cli.global)?, json),
        Command::Repair(wanted) => {
            repair::repair(config(&cli.global)?, wanted, cli.global.yes, json)
        }
        Command::CheckConfig => check_config::check_config(&cli.global),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "roomkeeper", &mut text);
            output::json_text(String::from_utf8_lossy(&text).trim_end());
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { directory } => {
            clap_mangen::generate_to(Cli::command(), directory)
                .context("write the manual pages")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The configuration that the global options mean.
fn config(global: &Global) -> Result<Config, Error> {
    let database = global.database.as_deref().map(Database::of_path);
    let mut config = match (database, &global.server_name) {
        (database, _) if !global.config.is_empty() => file::load(&global.config, database)?,
        (Some(database), Some(name)) => Config::for_database(database, name),
        (Some(_), None) => {
            return Err(Error::Config(
                "say whose database that is: --server-name NAME, or -c homeserver.yaml".into(),
            ));
        }
        (None, _) => {
            return Err(Error::Config(
                "say which database: -c homeserver.yaml, or --database PATH_OR_URL and --server-name NAME"
                    .into(),
            ));
        }
    };
    if global.offline.is_some() {
        config.homeserver = HomeserverPolicy::AssumeStopped;
    } else if let Some(beside) = global.beside {
        config.homeserver = match beside {
            Beside::Look => HomeserverPolicy::AllowRunning,
            Beside::Assume => HomeserverPolicy::AssumeRunning,
        };
    }
    Ok(config)
}

impl PurgeHistory {
    fn point(&self) -> Result<PurgePoint, Error> {
        if let Some(event) = &self.before_event {
            return Ok(PurgePoint::BeforeEvent(EventId::new(event.clone())));
        }
        if let Some(ts) = self.before_ts {
            let ts = check_timestamp(ts)
                .map_err(|said| Error::Config(format!("--before-ts: {said}")))?;
            return Ok(PurgePoint::BeforeTs(ts));
        }
        if let Some(token) = &self.before_token {
            Point::parse(token).map_err(|message| Error::bad("M_UNKNOWN", message))?;
            return Ok(PurgePoint::BeforeToken(token.clone()));
        }
        if let Some(words) = &self.before {
            let when = parse_when(words).map_err(|e| Error::Config(format!("--before: {e}")))?;
            return Ok(match when {
                When::At(moment) => PurgePoint::BeforeTs(moment),
                When::Ago(age) => PurgePoint::OlderThan(age),
            });
        }
        let age = parse_duration_with_unit(self.older_than.as_deref().unwrap_or_default())
            .map_err(|said| Error::Config(format!("--older-than: {said}")))?;
        if age < Millis(0) {
            return Err(Error::Config(
                "--older-than takes no negative duration: it would purge the future".into(),
            ));
        }
        Ok(PurgePoint::OlderThan(age))
    }
}

fn purge_history(
    mut config: Config,
    wanted: &PurgeHistory,
    global: &Global,
) -> Result<ExitCode, Error> {
    config.check_clock &= !wanted.trust_clock;
    let json = global.json;
    let options = PurgeOptions {
        delete_local_events: wanted.delete_local_events,
        strict: wanted.strict,
        media: wanted.media.fate(),
        ..PurgeOptions::default()
    };
    let point = wanted.point()?;
    if let Some(selectors) = wanted.choice.selectors(wanted.room.as_deref())? {
        let action = SetAction::PurgeHistory {
            point,
            delete_local_events: wanted.delete_local_events,
            media: wanted.media.fate(),
        };
        let request = wanted.choice.request(selectors, action);
        return room_set::run(
            config,
            request,
            wanted.plan,
            wanted.dry_run,
            global.yes,
            json,
        );
    }
    let room = words::known_room(&config, wanted.room.as_deref().unwrap_or_default())?;
    let cut = match words::cut_at(&config, &room, &point) {
        Err(Error::NothingThatOld) if wanted.plan.is_none() => {
            output::nothing_to_do(json, &room, "nothing in it is that old");
            return Ok(ExitCode::SUCCESS);
        }
        // Whoever may ask a daemon may not be allowed to read the database.
        Err(Error::Store { .. } | Error::NothingThatOld) => None,
        cut => cut?,
    };
    if wanted.dry_run {
        let viewer = Viewer::open(config)?;
        let plan = viewer.plan_purge(&room, &point, options)?;
        let estimate = viewer.estimate_purge(&plan.rows_removed)?;
        plan_text::purge(json, &plan, cut.as_deref(), estimate);
        return Ok(ExitCode::SUCCESS);
    }
    let to = cut.as_deref().unwrap_or("the point that was named");
    let whose = match options.delete_local_events {
        true => "everybody's messages",
        false => "the messages of other servers' users",
    };
    let question = format!("delete {whose} in room {room} that are older than {to}?");
    words::ask(&question, global.yes, json)?;
    let planned_at = wanted.plan.and_then(|plan| plan.at());
    let now = planned_at.unwrap_or_else(|| config.clock.now());
    let asked = config.clone();
    let keeper = match Keeper::open_for(config, &room) {
        Err(Error::LedgerLocked(_)) => {
            if matches!(point, PurgePoint::OlderThan(_)) {
                Viewer::open(asked.clone())?.refuse_clock_ahead()?;
            }
            return remote::purge_history(&asked, &room, &point, options, now, wanted.plan, json);
        }
        keeper => keeper?,
    };
    let keeper = as_planned(keeper, wanted.plan);
    let id = keeper.purge_history(&room, point, options)?;
    finish(&keeper, &id, json)
}

/// The keeper that does no more than was planned, if it was.
fn as_planned(keeper: Keeper, plan: Option<PlanHash>) -> Keeper {
    match plan {
        Some(plan) => keeper.as_planned(plan),
        None => keeper,
    }
}

/// Shows what a job did, and gives the exit code for it. The record is the whole answer, so an error is told to
/// people alone.
fn ended(job: &JobRecord, said: &[String], json: bool) -> ExitCode {
    output::job_done(json, job, said);
    match job.state {
        State::Failed => {
            output::warn(job.error.as_deref().unwrap_or("failed"));
            if job.error_code.as_deref() == Some("would_empty_room") {
                output::note(
                    "that point lies above all that the room ends with: nothing would be left for anybody to go on from. Say an \
                     earlier one",
                );
            }
            ExitCode::from(EXIT_FAILED)
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Shows a job's progress until it has ended, then what it did.
fn finish(keeper: &Keeper, id: &JobId, json: bool) -> Result<ExitCode, Error> {
    finish_said(keeper, id, &[], json)
}

/// As [`finish`], where these notes of the job were `said` before it began.
fn finish_said(
    keeper: &Keeper,
    id: &JobId,
    said: &[String],
    json: bool,
) -> Result<ExitCode, Error> {
    Ok(ended(&attend(keeper, id, json)?, said, json))
}

/// Shows a job's progress until it has ended. SIGINT and SIGTERM stop it at a whole point.
fn attend(keeper: &Keeper, id: &JobId, json: bool) -> Result<JobRecord, Error> {
    let stop = signals()?;
    let mut bar = output::Bar::new(json);
    while !keeper.wait_for(id, Duration::from_millis(200)) {
        if let Some(job) = keeper.job(id)? {
            bar.show(&job);
        }
        if stop.load(std::sync::atomic::Ordering::SeqCst) {
            bar.clear();
            eprintln!("roomkeeper: stopping; `roomkeeper jobs --resume` goes on from here");
            keeper.clone().stop();
            keeper.wait_for(id, Duration::from_secs(60));
            return Err(Error::Stopping);
        }
    }
    bar.clear();
    match keeper.wait(id) {
        Err(Error::JobFailed { .. }) => keeper.job(id)?.ok_or_else(|| Error::NoSuchJob(id.clone())),
        outcome => outcome,
    }
}

/// A flag that the first SIGINT or SIGTERM sets; the second ends the process.
fn signals() -> Result<std::sync::Arc<std::sync::atomic::AtomicBool>, Error> {
    let flag = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, flag.clone())
            .and_then(|_| signal_hook::flag::register(signal, flag.clone()))
            .map_err(|e| Error::Store {
                doing: "listen for signals",
                source: e.into(),
            })?;
    }
    Ok(flag)
}

fn check(config: Config, json: bool) -> Result<ExitCode, Error> {
    let mut bar = output::Checks::new(json);
    let report = Viewer::open(config)?.check(|rule, meaning| bar.show(rule, meaning))?;
    output::checked(json, &report);
    Ok(if report.violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_FAILED)
    })
}
