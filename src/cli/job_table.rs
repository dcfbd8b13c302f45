//! The list of jobs as people read it: a line with headers for each, and beneath it what there is to know or to do.

use super::output::{self, progress_of};
use crate::jobs::ledger::{JobRecord, State};
use crate::keeper::{JobExtent, JobKind, state_words};
use crate::plural::count;
use crate::time::{Clock, SystemClock};

const HEADERS: [&str; 8] = [
    "JOB",
    "STATE",
    "KIND",
    "ASKED FOR (UTC)",
    "TOOK",
    "EVENTS",
    "BY",
    "ON",
];

/// Prints them, oldest first. Those that belong to another job, and ended well, only where `shows_parts`.
pub(super) fn print(records: &[JobRecord], shows_parts: bool) {
    if records.is_empty() {
        output::done("no jobs on record");
    }
    let is_told = |job: &&JobRecord| {
        shows_parts || !JobKind::of(&job.kind).is_part() || job.state != State::Complete
    };
    let told: Vec<&JobRecord> = records.iter().filter(is_told).collect();
    let mut lines: Vec<[String; 8]> = told.iter().map(|job| columns(job)).collect();
    if !lines.is_empty() && !output::is_quiet() {
        lines.insert(0, HEADERS.map(str::to_owned));
    }
    let headers = lines.len() - told.len();
    let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max();
    let widths: Vec<usize> = (0..HEADERS.len())
        .map(|at| width(at).unwrap_or(0))
        .collect();
    for (n, line) in lines.iter().enumerate() {
        let padded = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        output::say(padded.collect::<Vec<_>>().join("  ").trim_end());
        let job = n.checked_sub(headers).and_then(|n| told.get(n));
        if let Some(job) = job.filter(|job| is_to_explain(job)) {
            output::say(&format!("  {}", state_words(job)));
        }
    }
    let untold = records.len() - told.len();
    if untold > 0 {
        output::done(&format!(
            "and {} of single rooms by retention runs and sets, all complete; --room and --kind show them",
            count(untold as u64, "job")
        ));
    }
}

/// Whether there is more to say of its state than one word.
fn is_to_explain(job: &JobRecord) -> bool {
    match job.state {
        State::Failed | State::Paused | State::Waiting => true,
        State::Queued => job.started_ms.is_some(),
        State::Running | State::Complete => false,
    }
}

fn columns(job: &JobRecord) -> [String; 8] {
    let progress = progress_of(job);
    let took = job.started_ms.map(|started| {
        let until = match job.state {
            State::Running => Some(SystemClock.now()),
            _ => job.ended_ms,
        };
        until.map(|until| (until - started).for_people())
    });
    let dash = || "-".to_owned();
    let JobExtent { done, planned, .. } = JobKind::of(&job.kind).extent(&progress);
    let events = match (done, planned) {
        (0, 0) => dash(),
        (done, planned) => format!("{done} of {planned}"),
    };
    [
        job.id.to_string(),
        job.state.text().to_owned(),
        job.kind.clone(),
        job.created_ms.as_date(),
        took.flatten().unwrap_or_else(dash),
        events,
        job.asked_by.clone().unwrap_or_else(dash),
        // A room is told by its id alone.
        match job.subject.room() {
            Some(room) => room.to_string(),
            None => job.subject.to_string(),
        },
    ]
}

/// Empties a terminal.
pub(super) fn clear_screen() {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(b"\x1b[H\x1b[2J").and_then(|()| out.flush());
}
