//! The archives that there are: listing them, verifying them, shredding them, and their end.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::ownership::own_ledger;
use super::{Keeper, Shared, Viewer};
use crate::archive::{self, Found, Identity, Reader, Record};
use crate::config::{Archive, Config};
use crate::error::{Chain, Error};
use crate::hold::Hold;
use crate::ids::{JobId, RoomId};
use crate::job::held;
use crate::jobs;
use crate::sqlite_file;
use crate::store::db::Db;
use crate::time::Millis;

/// An archive, as its file says.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ArchiveReport {
    /// The job; none where the file does not say.
    pub job: Option<JobId>,
    /// The file.
    pub file: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// When the last transaction went into it.
    pub at_ms: Option<Millis>,
    /// From then on it is taken away.
    pub until_ms: Option<Millis>,
    /// The rooms.
    pub rooms: Vec<RoomId>,
    /// Transactions in it.
    pub frames: usize,
    /// Events that left the timeline.
    pub events: i64,
    /// Transactions that are encrypted.
    pub encrypted: usize,
    /// Of these, those that were to be verified and for which there was no key.
    pub unopened: usize,
    /// What is wrong with it, a sentence each.
    pub damage: Vec<String>,
}

/// The block of the configuration that says where archives are.
///
/// # Errors
/// [`Error::Config`] where it says nothing.
pub(super) fn settings(config: &Config) -> Result<&Archive, Error> {
    config.archive.as_ref().ok_or_else(|| {
        Error::Config(
            "no archives are kept: roomkeeper.archive.directory says where they are to be".into(),
        )
    })
}

/// The file of a job's archive.
///
/// # Errors
/// [`Error::NoSuchJob`] where there is none.
pub(super) fn file_of(archive: &Archive, job: &JobId) -> Result<PathBuf, Error> {
    let file = archive::file_of(&archive.directory, job);
    // A job's id is letters; nothing else is a name of ours.
    let is_id = !job.as_str().is_empty() && job.as_str().bytes().all(|b| b.is_ascii_alphabetic());
    match is_id && file.is_file() {
        true => Ok(file),
        false => Err(Error::NoSuchJob(job.clone())),
    }
}

/// Every archive there is, oldest first. Reads the files whole; with `verify` it looks at every row as well, of what is
/// encrypted where these keys open it.
///
/// # Errors
/// [`Error::Config`] where archives are not configured; [`Error::Refused`] where the directory cannot be read.
pub fn archives(config: &Config, verify: Option<&[Identity]>) -> Result<Vec<ArchiveReport>, Error> {
    let archive = settings(config)?;
    let mut reports: Vec<ArchiveReport> = archive::list(&archive.directory)?
        .iter()
        .map(|file| report(archive, file, verify))
        .collect();
    reports.sort_by_key(|report| report.at_ms);
    Ok(reports)
}

fn report(archive: &Archive, file: &Path, verify: Option<&[Identity]>) -> ArchiveReport {
    let mut report = ArchiveReport {
        job: None,
        file: file.to_owned(),
        bytes: fs::metadata(file).map_or(0, |m| m.len()),
        at_ms: None,
        until_ms: None,
        rooms: Vec::new(),
        frames: 0,
        events: 0,
        damage: Vec::new(),
        encrypted: 0,
        unopened: 0,
    };
    if let Err(e) = read(&mut report, verify) {
        report.damage.push(Chain(&e).to_string());
    }
    report.until_ms = report.at_ms.map(|at| at + archive.keep);
    report.rooms.sort();
    report.rooms.dedup();
    report
}

fn read(report: &mut ArchiveReport, verify: Option<&[Identity]>) -> Result<(), Error> {
    let mut reader = Reader::open(&report.file)?;
    report.job = Some(reader.header().job.clone());
    report.at_ms = Some(reader.header().at_ms);
    for found in reader.frames()? {
        let frame = match found {
            Found::Whole(frame) => frame,
            Found::Damaged { at, bytes, why } => {
                let damage = format!("{bytes} bytes from byte {at} on cannot be read: {why}");
                report.damage.push(damage);
                continue;
            }
        };
        report.at_ms = report.at_ms.max(Some(frame.head.at_ms));
        report.frames += 1;
        report.events += frame.head.events;
        if report.rooms.last() != Some(&frame.head.room) {
            report.rooms.push(frame.head.room.clone());
        }
        report.encrypted += usize::from(frame.head.is_encrypted);
        let Some(keys) = verify else {
            continue;
        };
        if frame.head.is_encrypted && keys.is_empty() {
            report.unopened += 1;
            continue;
        }
        let mut rows = 0;
        let mut records = reader.records(&frame, keys)?;
        loop {
            match records.read() {
                Ok(None) => break,
                Ok(Some(record)) => rows += i64::from(matches!(record, Record::Row(_))),
                Err(e) => {
                    let damage = format!("transaction {} cannot be read: {e}", frame.number);
                    report.damage.push(damage);
                    break;
                }
            }
        }
        if rows != frame.head.rows.values().sum::<i64>() {
            let damage = format!("transaction {} has other rows than it says", frame.number);
            report.damage.push(damage);
        }
    }
    Ok(())
}

/// What of an archive is held, by the names of the holds.
fn holds_on(db: &Db, holds: &[Hold], rooms: &[RoomId]) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for room in rooms {
        let held = held::Holds::new(holds).of(db, room)?;
        names.extend(held.into_iter().map(|held| held.name));
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Takes a job's archive away for good: what the job removed cannot come back then. A hold on any of its rooms wins.
///
/// # Errors
/// [`Error::NoSuchJob`]; [`Error::Held`]; [`Error::Refused`] where the file cannot be taken away.
pub fn shred(config: &Config, job: &JobId) -> Result<ArchiveReport, Error> {
    let archive = settings(config)?;
    let file = file_of(archive, job)?;
    let report = report(archive, &file, None);
    let viewer = Viewer::open(config.clone())?;
    let holds = match own_ledger(config) {
        Ok(ledger) => ledger.holds()?.to_vec(),
        Err(Error::LedgerLocked(_)) => jobs::holds::read(&config.ledger),
        Err(e) => return Err(e),
    };
    refuse_held(&viewer.db, &holds, job, &report)?;
    remove(&file)?;
    super::receipts::note_shredded(config, &report);
    Ok(report)
}

fn refuse_held(db: &Db, holds: &[Hold], job: &JobId, report: &ArchiveReport) -> Result<(), Error> {
    // Nobody can say what is in a damaged one.
    let is_known = report.damage.is_empty();
    let names = match is_known {
        true => holds_on(db, holds, &report.rooms)?,
        false => {
            let active = holds.iter().filter(|hold| hold.is_active());
            active.map(|hold| hold.name.clone()).collect()
        }
    };
    match names.is_empty() {
        true => Ok(()),
        false => Err(Error::Held(format!(
            "the archive of {job} is held by {}: release that first (`roomkeeper hold release`)",
            names.join(", ")
        ))),
    }
}

fn remove(file: &Path) -> Result<(), Error> {
    let remove = || {
        let numbers = super::restore::numbers_of(file);
        if numbers.exists() {
            fs::remove_file(numbers)?;
        }
        fs::remove_file(file)?;
        sqlite_file::sync_directory_of(file)
    };
    remove().map_err(|e| {
        Error::Refused(format!(
            "the archive {} cannot be taken away: {e}",
            file.display()
        ))
    })
}

impl Keeper {
    /// As [`archives`]; what is encrypted is not opened.
    ///
    /// # Errors
    /// As there.
    pub fn archives(&self, verify: bool) -> Result<Vec<ArchiveReport>, Error> {
        archives(&self.shared.config, verify.then_some(&[]))
    }

    /// The archive of one job.
    ///
    /// # Errors
    /// [`Error::NoSuchJob`] where it has none; as [`archives`].
    pub fn archive(&self, job: &JobId, verify: bool) -> Result<ArchiveReport, Error> {
        let archive = settings(&self.shared.config)?;
        let file = file_of(archive, job)?;
        Ok(report(archive, &file, verify.then_some(&[])))
    }

    /// As [`shred`].
    ///
    /// # Errors
    /// As there; [`Error::BadRequest`] while the job goes on, which would write into it.
    pub fn shred_archive(&self, job: &JobId) -> Result<ArchiveReport, Error> {
        let shared = &self.shared;
        let config = &shared.config;
        let archive = settings(config)?;
        let file = file_of(archive, job)?;
        if shared.is_unended(job)? {
            return Err(Error::bad(
                "M_UNKNOWN",
                format!("job {job} has not ended, and writes into its archive: cancel it first"),
            ));
        }
        let report = report(archive, &file, None);
        let holds = shared.holds()?;
        shared.with_reader(|db| refuse_held(db, &holds, job, &report))?;
        remove(&file)?;
        let who = self.asked_by().unwrap_or(config.admin_user.as_str());
        let receipt = super::receipts::of_shredding(who, &report, false, config.clock.now());
        super::receipts::note(shared.register.ledger(), &receipt);
        Ok(report)
    }
}

impl Shared {
    /// Takes archives away whose time is over, unless they are held or the clock may be ahead.
    pub(super) fn expire_archives(&self) {
        let Some(archive) = &self.config.archive else {
            return;
        };
        let now = self.config.clock.now();
        let is_old = |file: &PathBuf| {
            let Ok(reader) = Reader::open(file) else {
                return false;
            };
            // Reading it whole can take long; it is not younger than this.
            reader.header().at_ms + archive.keep <= now
        };
        let files = archive::list(&archive.directory).unwrap_or_default();
        let old: Vec<PathBuf> = files.into_iter().filter(is_old).collect();
        if old.is_empty() || self.refuse_clock_ahead().is_err() {
            return;
        }
        for file in old {
            if let Err(e) = self.expire(archive, &file, now) {
                log::warn!("{}: {}", file.display(), Chain(&e));
            }
        }
    }

    /// Whether a job may still write into its archive.
    fn is_unended(&self, job: &JobId) -> Result<bool, Error> {
        if self.register.is_live(job) {
            return Ok(true);
        }
        let unended = self.register.ledger().unended()?;
        Ok(unended.iter().any(|record| record.id == *job))
    }

    fn expire(&self, archive: &Archive, file: &Path, now: Millis) -> Result<(), Error> {
        let report = report(archive, file, None);
        let (Some(until), Some(job)) = (report.until_ms, &report.job) else {
            return Ok(());
        };
        if until > now || self.is_unended(job)? {
            return Ok(());
        }
        let holds = self.holds()?;
        match self.with_reader(|db| refuse_held(db, &holds, job, &report)) {
            Err(Error::Held(_)) => return Ok(()),
            refused => refused?,
        }
        remove(file)?;
        let receipt = super::receipts::of_shredding("its time was over", &report, true, now);
        super::receipts::note(self.register.ledger(), &receipt);
        log::info!("the archive of {job} is taken away: its time is over");
        Ok(())
    }
}
