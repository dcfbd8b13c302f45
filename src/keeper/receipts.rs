//! Receipts of what was done: reading them, proving them, forgetting what one says.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::ownership::{look, own_ledger};
use super::{ArchiveReport, Keeper, Restoration};
use crate::config::Config;
use crate::error::Error;
use crate::hold::{Hold, validate_reason};
use crate::ids::RoomId;
use crate::job::held;
use crate::jobs::ledger::Ledger;
use crate::jobs::receipts::{self, ReceiptReader};
use crate::receipt::note::PublicKey;
use crate::receipt::{Draft, Entry, Proof, Verified};
use crate::store::db::Db;
use crate::store::reclaim::Reclaimed;
use crate::time::Millis;

/// Receipts as they lie in the ledger, which is only read; `None` while a roomkeeper is at work, which knows more.
///
/// # Errors
/// [`Error::Config`] where the ledger cannot be read.
pub fn recorded_receipts(config: &Config) -> Result<Option<ReceiptReader>, Error> {
    ReceiptReader::open(&config.ledger)
}

/// The public keys that signed checkpoints of a ledger's receipts.
pub fn receipt_keys(config: &Config) -> Vec<PublicKey> {
    receipts::public_keys(&config.ledger)
}

/// Forgets what the receipts of a job or a hold say, or the one of a number: their hashes stay, and with them the proofs of
/// all others. Answers their numbers.
///
/// # Errors
/// [`Error::NoSuchReceipt`]; [`Error::Held`] where what one is about is held; [`Error::BadRequest`] without a reason;
/// [`Error::LedgerLocked`] while another process has the ledger.
pub fn forget_receipts(config: &Config, reference: &str, reason: &str) -> Result<Vec<u64>, Error> {
    let ledger = own_ledger(config)?;
    let by = config.admin_user.to_string();
    forget(
        &ledger,
        reference,
        reason,
        &by,
        config.clock.now(),
        &|db_asks| look(config, db_asks),
    )
}

/// What asks the database once.
type Ask<'a> =
    &'a dyn Fn(&dyn Fn(&Db) -> Result<BTreeSet<String>, Error>) -> Result<BTreeSet<String>, Error>;

fn forget(
    ledger: &Ledger,
    reference: &str,
    reason: &str,
    by: &str,
    now: Millis,
    ask: Ask<'_>,
) -> Result<Vec<u64>, Error> {
    validate_reason(reason).map_err(|why| Error::bad("M_INVALID_PARAM", why))?;
    let mut entries = ledger.receipts_of(reference)?;
    entries.retain(|entry| entry.line.is_some());
    if entries.is_empty() {
        return Err(Error::NoSuchReceipt(reference.to_owned()));
    }
    let holds = ledger.holds()?;
    if holds.iter().any(Hold::is_active) {
        let held = ask(&|db| holds_on(db, &holds, &entries))?;
        if !held.is_empty() {
            let held: Vec<String> = held.into_iter().collect();
            return Err(Error::Held(format!(
                "what the receipt is about is held by {}: release that first (`roomkeeper hold release`)",
                held.join(", ")
            )));
        }
    }
    let numbers: Vec<u64> = entries.iter().map(|entry| entry.seq).collect();
    let draft = Draft::new("forget_receipt", "forgotten", now)
        .say("who", by)
        .say("subject", json!({ "receipts": numbers }))
        .say("reason", reason)
        .say("outcome", "complete");
    ledger.forget_receipts(&entries, &draft)?;
    Ok(numbers)
}

/// The holds on what receipts are about. Of one that is about more than a room every hold may be.
fn holds_on(db: &Db, holds: &[Hold], entries: &[Entry]) -> Result<BTreeSet<String>, Error> {
    let mut found = BTreeSet::new();
    let active = || holds.iter().filter(|hold| hold.is_active());
    for entry in entries {
        let line = entry.line.as_deref().unwrap_or_default();
        let said: Value = serde_json::from_str(line).unwrap_or_default();
        let subject = &said["subject"];
        if let Some(name) = subject["hold"]["name"].as_str() {
            found.extend(active().filter(|h| h.name == name).map(|h| h.name.clone()));
        } else if let Some(room) = subject["room_id"].as_str() {
            let held = held::Holds::new(holds).of(db, &RoomId::new(room))?;
            found.extend(held.into_iter().map(|held| held.name));
        } else {
            found.extend(active().map(|hold| hold.name.clone()));
        }
    }
    Ok(found)
}

/// That a job was restored.
pub(super) fn note_restored(config: &Config, ledger: &Ledger, done: &Restoration) {
    let draft = Draft::new("restore", &done.job, config.clock.now())
        .say("who", config.admin_user.as_str())
        .say("subject", json!({ "rooms": done.rooms, "job": done.job }))
        .say(
            "after",
            json!({
                "events": done.events,
                "state_groups": done.state_groups,
                "rows": done.rows,
                "left_out": done.left_out,
                "hold": done.hold,
            }),
        )
        .say("outcome", "complete");
    note(ledger, &draft);
}

/// That free space was given back.
pub(super) fn note_reclaimed(config: &Config, ledger: &Ledger, done: Reclaimed) {
    let draft = Draft::new("reclaim", "reclaim", config.clock.now())
        .say("who", config.admin_user.as_str())
        .say("subject", json!({"server": {}}))
        .say("before", json!({"bytes": done.bytes_before}))
        .say("after", json!({"bytes": done.bytes_after}))
        .say("outcome", "complete");
    note(ledger, &draft);
}

/// The receipt of an archive that was taken away: by somebody, or because its time was over.
pub(super) fn of_shredding(
    who: &str,
    report: &ArchiveReport,
    is_expired: bool,
    now: Millis,
) -> Draft {
    let job = report.job.as_ref().map(ToString::to_string);
    let what = if is_expired {
        "expire_archive"
    } else {
        "shred_archive"
    };
    Draft::new(what, job.as_deref().unwrap_or("archive"), now)
        .say("who", who)
        .say("subject", json!({ "rooms": report.rooms, "job": job }))
        .say(
            "before",
            json!({"bytes": report.bytes, "events": report.events, "until_ms": report.until_ms}),
        )
        .say("outcome", "complete")
}

/// The same, whoever has the ledger.
pub(super) fn note_shredded(config: &Config, report: &ArchiveReport) {
    let who = config.admin_user.as_str();
    let draft = of_shredding(who, report, false, config.clock.now());
    note_whoever_has_the_ledger(config, draft);
}

/// Writes a receipt, or leaves it to the roomkeeper that has the ledger.
pub(super) fn note_whoever_has_the_ledger(config: &Config, draft: Draft) {
    let noted = match own_ledger(config) {
        Ok(ledger) => ledger.note_receipt(&draft).map(drop),
        Err(Error::LedgerLocked(_)) => receipts::leave(&config.ledger, draft),
        Err(e) => Err(e),
    };
    tell(noted);
}

pub(super) fn note(ledger: &Ledger, draft: &Draft) {
    tell(ledger.note_receipt(draft).map(drop));
}

/// What is done is done, with a receipt or without.
fn tell(noted: Result<(), Error>) {
    if let Err(e) = noted {
        log::error!("what was done has no receipt: {}", crate::error::Chain(&e));
    }
}

impl Keeper {
    /// So many receipts from a number on, oldest first.
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn receipts(&self, from: u64, most: usize) -> Result<Vec<Entry>, Error> {
        self.shared.register.ledger().receipts(from, most)
    }

    /// The receipts of a job, a hold, or the one of a number.
    ///
    /// # Errors
    /// [`Error::NoSuchReceipt`]; those of the ledger.
    pub fn receipts_of(&self, reference: &str) -> Result<Vec<Entry>, Error> {
        self.shared.register.ledger().receipts_of(reference)
    }

    /// What proves that they are among the receipts of a checkpoint of this moment.
    ///
    /// # Errors
    /// As [`Keeper::receipts_of`].
    pub fn prove_receipts(&self, reference: &str) -> Result<Vec<Proof>, Error> {
        let now = self.shared.config.clock.now();
        self.shared.register.ledger().prove_receipts(reference, now)
    }

    /// A checkpoint of this moment as a signed note, and the key that signed it.
    ///
    /// # Errors
    /// [`Error::Refused`] where there is no key; those of the ledger.
    pub fn sign_receipts(&self) -> Result<(String, PublicKey), Error> {
        let now = self.shared.config.clock.now();
        self.shared.register.ledger().sign_receipts(now)
    }

    /// Holds every receipt against the tree, and the tree against every checkpoint.
    ///
    /// # Errors
    /// Those of the ledger; what is wrong with receipts stands in the answer.
    pub fn verify_receipts(&self) -> Result<Verified, Error> {
        self.shared.register.ledger().verify_receipts()
    }

    /// As [`forget_receipts`].
    ///
    /// # Errors
    /// As there.
    pub fn forget_receipts(&self, reference: &str, reason: &str) -> Result<Vec<u64>, Error> {
        let config = &self.shared.config;
        let by = self.asked_by().map(str::to_owned);
        let by = by.unwrap_or_else(|| config.admin_user.to_string());
        let (ledger, now) = (self.shared.register.ledger(), config.clock.now());
        forget(ledger, reference, reason, &by, now, &|asks| {
            self.shared.with_reader(|db| asks(db))
        })
    }
}
