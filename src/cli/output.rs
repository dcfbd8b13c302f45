//! What the command line prints: sentences and tables for people, one JSON document for machines.

use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::logging;
use crate::database::Database;
use crate::ids::{Escaped, RoomId};
use crate::job::Progress;
use crate::jobs::ledger::{JobRecord, State};
use crate::keeper::{JobKind, rows};
use crate::plural::count;
use crate::store::check::{CheckReport, Violation};
use crate::store::event_rows::RowCounts;
use crate::store::reclaim::Reclaimed;
use crate::store::space::human;

/// Whether something was said that nobody got.
static IS_LOST: AtomicBool = AtomicBool::new(false);

/// Whether only answers and failures are told.
static IS_QUIET: AtomicBool = AtomicBool::new(false);

/// Whether somebody has closed the pipe that answers go into.
static IS_UNREAD: AtomicBool = AtomicBool::new(false);

/// From now on says nothing but what was asked for, and what went wrong: no progress, no notes, and not that it went well.
pub fn be_quiet() {
    IS_QUIET.store(true, Ordering::SeqCst);
}

pub(super) fn is_quiet() -> bool {
    IS_QUIET.load(Ordering::SeqCst)
}

/// Says that something went well, to people who want to hear that.
pub fn done(text: &str) {
    if !is_quiet() {
        say(text);
    }
}

/// Says something beside the answer, on stderr, to people who want to hear that.
pub fn note(text: &str) {
    if !is_quiet() {
        tell(log::Level::Info, text);
    }
}

/// Prints one JSON document.
pub fn json(value: &Value) {
    print(&value.to_string());
}

/// Prints a JSON document that is text already, as it is.
pub fn json_text(text: &str) {
    print(text);
}

/// Prints a line, or several. What others wrote into it moves no cursor.
pub fn say(text: &str) {
    print(&shown(text));
}

fn shown(text: &str) -> String {
    let lines = text.split('\n').map(|line| Escaped(line).to_string());
    lines.collect::<Vec<_>>().join("\n")
}

/// Says something to people alone, on stderr.
pub fn warn(text: &str) {
    tell(log::Level::Warn, text);
}

/// Says why nothing came of it.
pub fn fail(text: &str) {
    tell(log::Level::Error, text);
}

fn tell(level: log::Level, text: &str) {
    let priority = logging::priority(level);
    let text = shown(text).replace('\n', &format!("\n{priority}"));
    eprintln!("{priority}roomkeeper: {text}");
}

/// A closed pipe is the reader's choice; a full disk is not, and whoever believes what was written must hear of it.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe && !IS_LOST.swap(true, Ordering::SeqCst) => {
            eprintln!("roomkeeper: what it says cannot be written: {e}");
        }
        Err(_) => IS_UNREAD.store(true, Ordering::SeqCst),
        Ok(()) => {}
    }
}

/// Whether all that was said was written.
pub fn has_localpart() -> bool {
    !IS_LOST.load(Ordering::SeqCst)
}

/// Whether what is said is still read.
pub fn has_reader() -> bool {
    !IS_UNREAD.load(Ordering::SeqCst)
}

/// What `init` made.
pub fn created(as_json: bool, database: &Database) {
    if as_json {
        json(&json!({"database": database.to_string()}));
    } else {
        done(&format!("made an empty database {database}"));
    }
}

/// Asks something of people, on stderr; the answer stands on the same line.
pub fn ask(question: &str) {
    eprint!("roomkeeper: {} [y/N] ", shown(question));
}

/// A purge that has nothing to do.
pub fn nothing_to_do(as_json: bool, room: &RoomId, why: &str) {
    if as_json {
        json(&json!({"room_id": room, "events_deleted": 0, "nothing_to_do": why}));
    } else {
        done(&format!("room {room}: {why}; nothing was to be done"));
    }
}

/// Names of somebody else's, one after the other.
pub(super) fn in_a_row(names: &[impl AsRef<str>]) -> String {
    let names = names.iter().map(|name| Escaped(name.as_ref()).to_string());
    names.collect::<Vec<_>>().join(", ")
}

/// Rows by table.
pub fn table(removed: &RowCounts) {
    for line in rows(removed) {
        say(&line);
    }
}

pub(super) fn progress_of(job: &JobRecord) -> Progress {
    serde_json::from_value(job.progress.clone()).unwrap_or_default()
}

/// What a job did. Notes that were `said` before it began are not said again.
pub fn job_done(as_json: bool, job: &JobRecord, said: &[String]) {
    if as_json {
        json(&serde_json::to_value(job).unwrap_or_default());
        return;
    }
    if is_quiet() && job.state == State::Complete {
        return;
    }
    let progress = progress_of(job);
    for line in JobKind::of(&job.kind).words(job, &progress) {
        say(&line);
    }
    for note in progress.notes.iter().filter(|note| !said.contains(note)) {
        say(&format!("Note: {note}"));
    }
}

/// The jobs that were taken up, when all have ended; for people each was told as it ended.
pub fn resumed(as_json: bool, records: &[JobRecord]) {
    if as_json {
        json(&json!({"jobs": records}));
    } else if records.is_empty() {
        done("nothing was interrupted");
    }
}

/// What `reclaim` gave back.
pub fn reclaimed(as_json: bool, database: &Database, reclaimed: Reclaimed) {
    if as_json {
        json(&serde_json::to_value(reclaimed).unwrap_or_default());
        return;
    }
    let (before, after) = (human(reclaimed.bytes_before), human(reclaimed.bytes_after));
    match database {
        Database::File(_) => done(&format!("the database file had {before} and has {after}")),
        Database::Server(_) => {
            done(&format!(
                "the database took {before} on its server and takes {after}"
            ));
        }
    }
}

/// What `check` found.
pub fn checked(as_json: bool, report: &CheckReport) {
    if as_json {
        json(&serde_json::to_value(report).unwrap_or_default());
        return;
    }
    violations(&report.violations);
    for leftover in &report.leftovers {
        say(&format!(
            "{} left over, such as {}: {}",
            count(leftover.rows, "row"),
            Escaped(&leftover.example),
            leftover.found.join(", ")
        ));
    }
    if report.violations.is_empty() {
        say("every invariant holds");
    }
    note(&format!(
        "looked at {} of {} in {:.1} s",
        count(report.rows, "row"),
        count(report.tables, "table"),
        report.took_ms as f64 / 1000.0
    ));
    if !(report.violations.is_empty() && report.leftovers.is_empty()) {
        note("`roomkeeper repair --dry-run` says what of it can be mended");
    }
}

/// Rules that are broken.
pub fn violations(all: &[Violation]) {
    for violation in all {
        if !violation.found.is_empty() {
            say(&format!(
                "the file is damaged (rule {}). Stop the homeserver, make a copy of the file and of its -wal, and restore a \
                 backup; what is known of the damage:",
                violation.rule
            ));
            for found in &violation.found {
                say(&format!("  {found}"));
            }
            continue;
        }
        say(&format!(
            "{} is violated by {}, such as {}: {}",
            violation.rule,
            count(violation.rows, "row"),
            Escaped(&violation.example),
            violation.meaning
        ));
    }
}

/// A progress bar on a terminal, plain lines now and then otherwise, nothing with `--json`.
pub struct Bar {
    bar: Option<ProgressBar>,
    is_silent: bool,
    last_line: Instant,
}

/// How often a line is printed when there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

impl Bar {
    /// A bar on stderr.
    pub fn new(as_json: bool) -> Self {
        let is_silent = as_json || is_quiet();
        let bar = (!is_silent && std::io::stderr().is_terminal()).then(|| {
            let style =
                ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {prefix}, {eta} left")
                    .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(0).with_style(style)
        });
        Self {
            bar,
            is_silent,
            last_line: Instant::now(),
        }
    }

    /// Shows how far a job is.
    pub fn show(&mut self, job: &JobRecord) {
        let progress = progress_of(job);
        let phase = serde_json::to_value(progress.phase).unwrap_or_default();
        let phase = phase.as_str().unwrap_or_default();
        let extent = JobKind::of(&job.kind).extent(&progress);
        let (planned, done, what) = (
            u64::try_from(extent.planned).unwrap_or(0),
            u64::try_from(extent.done).unwrap_or(0),
            extent.of,
        );
        if let Some(bar) = &self.bar {
            bar.set_length(planned);
            bar.set_position(done);
            bar.set_prefix(what);
            bar.set_message(match &progress.table {
                Some(table) => format!("{phase}: {table}"),
                None => phase.to_owned(),
            });
        } else if !self.is_silent && self.last_line.elapsed() > LINE_EVERY {
            self.last_line = Instant::now();
            let rate = match progress.events_per_second {
                // What removes no events has none.
                0 => String::new(),
                rate => format!(", {rate} a second"),
            };
            eprintln!("{phase}: {done} of {planned} {what}{rate}");
        }
    }

    /// Takes the bar away.
    pub fn clear(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Names the rule that is being tested, on a terminal.
pub struct Checks(Option<ProgressBar>);

impl Checks {
    /// A line on stderr.
    pub fn new(as_json: bool) -> Self {
        let is_shown = !as_json && !is_quiet() && std::io::stderr().is_terminal();
        Self(is_shown.then(ProgressBar::new_spinner))
    }

    /// Names a rule.
    pub fn show(&mut self, rule: &str, meaning: &str) {
        if let Some(bar) = &self.0 {
            bar.set_message(format!("{rule}: {meaning}"));
            bar.tick();
        }
    }
}
