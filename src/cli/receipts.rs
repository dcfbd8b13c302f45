//! `roomkeeper receipts`: what was done, and that nobody has changed what was said of it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::remote::ReceiptsOfDaemon;
use super::{output, words};
use crate::archive::Identity;
use crate::config::Config;
use crate::error::{Context, EXIT_FAILED, Error};
use crate::ids::Escaped;
use crate::jobs::receipts::ReceiptReader;
use crate::keeper::{self, ResidueReport};
use crate::plural::count;
use crate::receipt::note::PublicKey;
use crate::receipt::{Entry, FileReader, LONGEST_LINE, Proof, Verified};
use crate::time::Millis;

/// Receipts that are read at once.
const PAGE: usize = 500;

#[derive(Args)]
pub(super) struct Receipts {
    #[command(subcommand)]
    act: Option<Act>,
}

#[derive(Subcommand)]
enum Act {
    /// What was done, a line each, oldest first.
    List {
        /// From this number on.
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        from: u64,
        /// No more than so many.
        #[arg(long, value_name = "COUNT")]
        limit: Option<usize>,
    },
    /// The receipts of a job or a hold, or the one of a number, as they are written.
    Show {
        /// The job, the hold, or the number.
        reference: String,
    },
    /// What proves to others that a receipt is one: its hashes up to a signed checkpoint, as JSON.
    Proof {
        /// The job, the hold, or the number.
        reference: String,
    },
    /// Hold every receipt against the tree, and the tree against every checkpoint; or a file that `export` wrote. Exit
    /// code 1 where anything was changed.
    Verify {
        /// A file of receipts.
        file: Option<PathBuf>,
        /// The public key of who signed it; else those beside the ledger.
        #[arg(long, value_name = "KEY", requires = "file")]
        key: Option<PublicKey>,
    },
    /// Every receipt and a signed checkpoint, as `verify FILE` reads them.
    Export,
    /// The public keys with which checkpoints are verified.
    Keys,
    /// Look through every text of the database for what a job removed: for all of its events where its archive can be read,
    /// else for those that its receipt names. Reads every table once. Exit code 1 where something stands that should not.
    Residue {
        /// The job.
        job: String,
        /// The private keys of an encrypted archive, in a file as age-keygen writes it.
        #[arg(long, value_name = "FILE")]
        identity: Option<PathBuf>,
    },
    /// Forget what a receipt says. Its hash stays, and with it the proofs of all others; that it was done has a receipt.
    Forget {
        /// The job, the hold, or the number.
        reference: String,
        /// Why; it stays on record.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

/// Where receipts are read: in the ledger, or from the daemon that has it.
enum Source {
    Ledger(ReceiptReader),
    Daemon(ReceiptsOfDaemon),
}

impl Source {
    fn of(config: &Config) -> Result<Self, Error> {
        Ok(match keeper::recorded_receipts(config)? {
            Some(reader) => Self::Ledger(reader),
            None => Self::Daemon(ReceiptsOfDaemon::of(config)?),
        })
    }

    fn page(&self, from: u64, most: usize) -> Result<Vec<Entry>, Error> {
        match self {
            Self::Ledger(reader) => reader.page(from, most),
            Self::Daemon(daemon) => daemon.page(from, most),
        }
    }

    fn of_reference(&self, reference: &str) -> Result<Vec<Entry>, Error> {
        match self {
            Self::Ledger(reader) => reader.of(reference),
            Self::Daemon(daemon) => daemon.of_reference(reference),
        }
    }

    fn prove(&self, reference: &str) -> Result<Vec<Proof>, Error> {
        match self {
            Self::Ledger(reader) => reader.prove(reference),
            Self::Daemon(daemon) => daemon.prove(reference),
        }
    }

    fn verify(&self) -> Result<Verified, Error> {
        match self {
            Self::Ledger(reader) => reader.verify(),
            Self::Daemon(daemon) => daemon.verify(),
        }
    }

    fn checkpoint(&self) -> Result<(String, u64), Error> {
        match self {
            Self::Ledger(reader) => reader.checkpoint(),
            Self::Daemon(daemon) => daemon.checkpoint(),
        }
    }

    /// Hands out receipts from a number on, page by page, until there are no more or `each` has enough.
    fn each(&self, from: u64, mut each: impl FnMut(&Entry) -> bool) -> Result<(), Error> {
        let mut from = from;
        loop {
            let page = self.page(from, PAGE)?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            from = last.seq + 1;
            if !page.iter().all(&mut each) {
                return Ok(());
            }
        }
    }
}

/// Lists, shows, proves, verifies, exports, forgets.
pub(super) fn receipts(
    config: &Config,
    wanted: &Receipts,
    is_said: bool,
    as_json: bool,
) -> Result<ExitCode, Error> {
    match &wanted.act {
        None => list(&Source::of(config)?, 0, None, as_json)?,
        Some(Act::List { from, limit }) => list(&Source::of(config)?, *from, *limit, as_json)?,
        Some(Act::Show { reference }) => {
            for entry in Source::of(config)?.of_reference(reference)? {
                output::json_text(&entry.in_file());
            }
        }
        Some(Act::Proof { reference }) => {
            let proofs = Source::of(config)?.prove(reference)?;
            output::json(&json!({ "proofs": proofs }));
        }
        Some(Act::Verify { file: None, .. }) => {
            return Ok(verified(&Source::of(config)?.verify()?, as_json));
        }
        Some(Act::Verify {
            file: Some(file),
            key,
        }) => {
            let keys = match key {
                Some(key) => vec![key.clone()],
                None => keeper::receipt_keys(config),
            };
            return Ok(verified(&verify_file(file, &keys)?, as_json));
        }
        Some(Act::Export) => export(&Source::of(config)?)?,
        Some(Act::Keys) => {
            for key in keeper::receipt_keys(config) {
                output::json_text(&key.to_string());
            }
        }
        Some(Act::Residue { job, identity }) => {
            let receipts = Source::of(config)?.of_reference(job)?;
            let keys = match identity {
                Some(file) => Identity::read(file)?,
                None => Vec::new(),
            };
            let stop = super::signals()?;
            let on_table = &mut |table: &str| {
                log::debug!("looking through {table}");
                !stop.load(std::sync::atomic::Ordering::SeqCst)
            };
            let found = keeper::residue(config, job, &receipts, &keys, on_table)?;
            return Ok(left_over(&found, as_json));
        }
        Some(Act::Forget { reference, reason }) => {
            let question = format!("forget what the receipts of {} say?", Escaped(reference));
            words::ask(&question, is_said, as_json)?;
            let numbers = match keeper::forget_receipts(config, reference, reason) {
                Err(Error::LedgerLocked(_)) => {
                    ReceiptsOfDaemon::of(config)?.forget(reference, reason)?
                }
                numbers => numbers?,
            };
            if as_json {
                output::json(&json!({ "forgotten": numbers }));
            } else {
                let forgotten = count(numbers.len() as i64, "receipt");
                output::done(&format!("What {forgotten} said is forgotten."));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(source: &Source, from: u64, limit: Option<usize>, as_json: bool) -> Result<(), Error> {
    let (mut told, most) = (0, limit.unwrap_or(usize::MAX));
    source.each(from, |entry| {
        if told < most {
            told += 1;
            match as_json {
                true => output::json_text(&entry.in_file()),
                false => output::say(&in_words(entry)),
            }
        }
        told < most
    })?;
    if told == 0 && !as_json {
        output::say("There are no receipts.");
    }
    Ok(())
}

/// A receipt on a line, for people.
fn in_words(entry: &Entry) -> String {
    let seq = entry.seq;
    let Some(line) = &entry.line else {
        return format!("{seq}  forgotten");
    };
    let said: Value = serde_json::from_str(line).unwrap_or_default();
    let word = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
    let at = Millis(said["at"].as_i64().unwrap_or(0)).as_date();
    let subject = &said["subject"];
    let of = match (
        &subject["room_id"],
        &subject["hold"]["name"],
        &subject["rooms"],
    ) {
        (Value::String(room), ..) => format!(" {room}"),
        (_, Value::String(hold), _) => format!(" {hold}"),
        (_, _, Value::String(rooms)) => format!(" {rooms}"),
        _ => String::new(),
    };
    let events = match said["after"]["events_deleted"].as_i64() {
        Some(events) => format!(", {} deleted", count(events, "event")),
        None => String::new(),
    };
    Escaped(&format!(
        "{seq}  {at}  {}{of}: {}{events}, by {} ({})",
        word("what").replace('_', " "),
        word("outcome").replace('_', " "),
        word("who"),
        word("ref"),
    ))
    .to_string()
}

fn left_over(report: &ResidueReport, as_json: bool) -> ExitCode {
    let is_clean = report.residue.surprises().next().is_none();
    if as_json {
        output::json(&json!(report));
    } else {
        for found in &report.residue.found {
            let why = match &found.why {
                Some(why) => why,
                None => "this should not be there",
            };
            output::say(&format!(
                "{}.{}: {} ({why})",
                Escaped(&found.table),
                Escaped(&found.column),
                count(found.count, "row")
            ));
        }
        let events = count(report.events as i64, "event");
        let what = match (report.is_whole, report.from_archive) {
            (true, true) => format!("the room and all {events} of its archive"),
            (true, false) => format!("the room and {events} of it"),
            (false, true) => format!("all {events} of its archive"),
            (false, false) => format!("{events} that its receipt names"),
        };
        let columns = count(report.residue.columns_scanned as i64, "column");
        output::say(&format!("Looked for {what} in {columns}."));
        if is_clean {
            output::done("Nothing of it is left but what others say of it.");
        }
    }
    match is_clean {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(EXIT_FAILED),
    }
}

fn verified(found: &Verified, as_json: bool) -> ExitCode {
    if as_json {
        output::json(&json!(found));
    } else {
        for fault in &found.faults {
            output::say(&format!("Wrong: {}.", Escaped(fault)));
        }
        let of = format!(
            "{} ({} forgotten) and {}",
            count(i128::from(found.receipts), "receipt"),
            found.forgotten,
            count(i128::from(found.checkpoints), "checkpoint"),
        );
        match found.faults.is_empty() {
            true => output::done(&format!(
                "{of} are as they were written. Root {}.",
                found.root
            )),
            false => output::say(&format!("{of} were looked at.")),
        }
    }
    match found.faults.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(EXIT_FAILED),
    }
}

fn verify_file(path: &Path, keys: &[PublicKey]) -> Result<Verified, Error> {
    let cannot = |e: io::Error| Error::Config(format!("{} cannot be read: {e}", path.display()));
    let mut file = BufReader::new(File::open(path).map_err(cannot)?);
    let (mut reader, mut line) = (FileReader::default(), Vec::new());
    loop {
        line.clear();
        let mut bounded = file.by_ref().take(LONGEST_LINE);
        if bounded.read_until(b'\n', &mut line).map_err(cannot)? == 0 {
            return Ok(reader.end(keys).0);
        }
        reader.line(&line);
    }
}

/// Up to what a checkpoint covers, and that checkpoint.
fn export(source: &Source) -> Result<(), Error> {
    let (note, size) = source.checkpoint()?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut written = Ok(());
    source.each(0, |entry| {
        if entry.seq < size && written.is_ok() {
            written = writeln!(out, "{}", entry.in_file());
        }
        entry.seq + 1 < size && written.is_ok()
    })?;
    written
        .and_then(|()| write!(out, "\n{note}"))
        .and_then(|()| out.flush())
        .context("write the receipts")
}
