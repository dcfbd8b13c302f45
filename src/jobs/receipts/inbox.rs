//! Receipts of what was done while somebody else had the ledger: they are left in a file beside it, and whoever has it takes
//! them up with its next checkpoint, or at its next start.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use rusqlite::{Connection, params};

use super::Receipts;
use super::files::{beside, told};
use crate::error::{Chain, Context, Error};
use crate::ids::JobId;
use crate::jobs::ledger::Ledger;
use crate::receipt::Draft;
use crate::sqlite_file;

/// The largest file of what was left that is read, in bytes.
const MOST_BYTES: u64 = 16 << 20;

/// By which one that was taken up before is known.
const LEFT: &str = "left";

/// Whether a receipt is there already: a process may have ended between taking it up and taking the file away.
const IS_THERE: &str =
    "SELECT EXISTS (SELECT 1 FROM receipt WHERE about = $1 AND instr(line, $2) > 0)";

/// Leaves a receipt for whoever has the ledger. On the disk when this returns.
///
/// # Errors
/// Those of the file.
pub fn leave(ledger: &Path, draft: Draft) -> Result<(), Error> {
    let path = beside(ledger, ".receipts-left");
    let draft = draft.say(LEFT, JobId::random().as_str());
    let line = serde_json::to_string(&draft).map_err(|e| Error::Bug(e.to_string()))?;
    let write = || {
        let owner = fs::metadata(ledger)?;
        let is_new = !path.exists();
        let mut file = lock(
            &path,
            fs::OpenOptions::new()
                .append(true)
                .create(true)
                .mode(owner.mode() & 0o666),
        )?;
        if is_new {
            let _ = fchown(&file, Some(owner.uid()), Some(owner.gid()));
        }
        file.write_all(format!("{line}\n").as_bytes())?;
        file.sync_all()?;
        sqlite_file::sync_directory_of(&path)
    };
    write().map_err(|e| told(&path, e))
}

/// The file as it is now, for us alone.
fn lock(path: &Path, how: &fs::OpenOptions) -> std::io::Result<File> {
    loop {
        let file = how.open(path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
        let (ours, now) = (file.metadata()?, fs::metadata(path));
        if now.is_ok_and(|now| (now.dev(), now.ino()) == (ours.dev(), ours.ino())) {
            return Ok(file);
        }
    }
}

impl Ledger {
    /// Takes up what was left. What hinders it is told in the log: it is tried again.
    pub(super) fn take_what_was_left(&self) {
        let path = beside(self.path(), ".receipts-left");
        let taken = match lock(&path, fs::OpenOptions::new().read(true).append(true)) {
            Err(e) if e.kind() == ErrorKind::NotFound => return,
            Err(e) => Err(told(&path, e)),
            Ok(_locked) => self.take(&path),
        };
        if let Err(e) = taken {
            log::warn!("{}: {}", path.display(), Chain(&e));
        }
    }

    fn take(&self, path: &Path) -> Result<(), Error> {
        let io = |e| told(path, e);
        if fs::metadata(path).map_err(io)?.len() > MOST_BYTES {
            return Err(Error::Refused(format!(
                "it has more than {MOST_BYTES} bytes, and nobody wrote so many receipts into it: move it away"
            )));
        }
        let text = fs::read_to_string(path).map_err(io)?;
        let drafts = text.lines().filter_map(|line| {
            // What is torn was never promised.
            serde_json::from_str::<Draft>(line).ok()
        });
        let drafts: Vec<Draft> = drafts.collect();
        let take = |conn: &Connection| {
            let tx = conn.unchecked_transaction()?;
            for draft in &drafts {
                let left = draft.said.get(LEFT).and_then(|left| left.as_str());
                let is_there: bool = tx.query_row(
                    IS_THERE,
                    params![draft.reference, left.unwrap_or_default()],
                    |row| row.get(0),
                )?;
                if left.is_some() && !is_there {
                    Receipts(&tx).append(draft)?;
                }
            }
            tx.commit()
        };
        let taken = take(&self.conn.lock());
        taken.context("write receipts that were left")?;
        fs::remove_file(path).map_err(io)
    }
}
