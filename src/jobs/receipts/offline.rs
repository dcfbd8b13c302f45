//! Receipts of a ledger that nobody has open: read without owning it, nothing is written or made (S-33).

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension};

use super::files::last_checkpoint;
use super::{Receipts, Verifier, checkpoints_of, public_keys, receipts_of, tree};
use crate::error::{Context, Error};
use crate::receipt::tree::Frontier;
use crate::receipt::{Entry, Proof, Verified};
use crate::sqlite_file::{self, Reading};

const HAS_RECEIPTS: &str =
    "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'receipt')";

/// The receipts of a ledger, as they lie there.
pub struct ReceiptReader {
    ledger: PathBuf,
    /// None where there are no receipts yet.
    reading: Option<Reading>,
}

impl ReceiptReader {
    /// Opens a ledger to read; `None` while somebody owns it, who knows more.
    ///
    /// # Errors
    /// [`Error::Config`] where the file cannot be read.
    pub fn open(ledger: &Path) -> Result<Option<Self>, Error> {
        if sqlite_file::holder(ledger).is_some() {
            return Ok(None);
        }
        let reading = match ledger.exists() {
            true => Some(sqlite_file::open_to_read(ledger)?),
            false => None,
        };
        let has = |reading: &Reading| {
            let has = reading.conn.query_row(HAS_RECEIPTS, [], |row| row.get(0));
            has.optional().map(|has| has.unwrap_or(false))
        };
        let has_receipts = match &reading {
            Some(reading) => has(reading).context("read receipts")?,
            None => false,
        };
        Ok(Some(Self {
            ledger: ledger.to_owned(),
            reading: reading.filter(|_| has_receipts),
        }))
    }

    fn conn(&self) -> Option<&Connection> {
        self.reading.as_ref().map(|reading| &reading.conn)
    }

    /// So many receipts from a number on.
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn page(&self, from: u64, most: usize) -> Result<Vec<Entry>, Error> {
        match self.conn() {
            Some(conn) => Receipts(conn).page(from, most).context("read receipts"),
            None => Ok(Vec::new()),
        }
    }

    /// The receipts of a job, a hold, or the one of a number.
    ///
    /// # Errors
    /// [`Error::NoSuchReceipt`]; those of the ledger.
    pub fn of(&self, reference: &str) -> Result<Vec<Entry>, Error> {
        match self.conn() {
            Some(conn) => receipts_of(conn, reference),
            None => Err(Error::NoSuchReceipt(reference.to_owned())),
        }
    }

    /// How many receipts there are.
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn size(&self) -> Result<u64, Error> {
        match self.conn() {
            Some(conn) => Receipts(conn).size().context("read receipts"),
            None => Ok(0),
        }
    }

    /// The last checkpoint that was written, as a signed note, and of how many receipts it is.
    ///
    /// # Errors
    /// [`Error::Refused`] where none is there; those of the file.
    pub fn checkpoint(&self) -> Result<(String, u64), Error> {
        let last = last_checkpoint(&self.ledger, &checkpoints_of(&self.ledger))?;
        match last {
            Some((note, last)) => Ok((note, last.size)),
            None => Err(Error::Refused(
                "there is no checkpoint of the receipts yet: the next job writes one".into(),
            )),
        }
    }

    /// What proves each of the receipts of a job, a hold, or the one of a number, by the last checkpoint.
    ///
    /// # Errors
    /// As [`ReceiptReader::of`] and [`ReceiptReader::checkpoint`].
    pub fn prove(&self, reference: &str) -> Result<Vec<Proof>, Error> {
        let entries = self.of(reference)?;
        let (note, size) = self.checkpoint()?;
        let keys = public_keys(&self.ledger);
        let key = keys.iter().find(|key| key.open(&note).is_ok());
        let (Some(conn), Some(key)) = (self.conn(), key) else {
            return Err(Error::NoSuchReceipt(reference.to_owned()));
        };
        let mut proofs = Vec::new();
        for entry in entries {
            if entry.seq >= size {
                return Err(Error::Refused(
                    "no checkpoint covers it yet: the next start of roomkeeper writes one".into(),
                ));
            }
            let path = tree::prove(entry.seq, size, &mut |level, place| {
                Receipts(conn).subtree(level, place)
            });
            let path = path.context("read receipts")?;
            proofs.push(Proof::new(entry, &path, note.clone(), key));
        }
        Ok(proofs)
    }

    /// As [`super::super::ledger::Ledger::verify_receipts`].
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn verify(&self) -> Result<Verified, Error> {
        let mut verifier = Verifier::default();
        let Some(conn) = self.conn() else {
            let mut found = Verified::default();
            found.set_root(&Frontier::default());
            let checkpoint = last_checkpoint(&self.ledger, &checkpoints_of(&self.ledger))?;
            if let Some((_, last)) = checkpoint {
                found.fault(format!(
                    "the last checkpoint knows {} receipts, and there are none: the ledger was lost or put back",
                    last.size
                ));
            }
            return Ok(found);
        };
        while verifier.page(conn)? {}
        verifier.checkpoints(conn, &self.ledger)
    }
}
