//! Archives: what a job removes, written down before it goes, so that it can come back.
//!
//! One file a job. Behind a header stands one *frame* for each transaction: the exact rows that it removes, compressed by
//! themselves, and a digest over them and over the frame before. A frame is on the disk before its transaction commits; one
//! whose transaction did not commit is written over by the next. So the file says at every moment at least what is gone, and
//! a frame can be read whatever became of its neighbours. What rows mean is for `store` to say.

mod cells;
mod keys;
mod reader;
mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use self::cells::{Cell, Record};
pub use self::keys::{Identity, Recipient};
pub use self::reader::{Found, FrameAt, Reader, Records};
pub use self::writer::{Frame, Writer};
use crate::error::Error;
use crate::ids::{EventId, JobId, RoomId};
use crate::time::Millis;

/// How a file of ours begins. The number is the format's.
const MAGIC: &[u8] = b"roomkeeper archive 1\n";

/// How a frame begins.
const FRAME: &[u8; 4] = b"RKFR";

/// Longest header of a file or head of a frame that is believed, in bytes.
const LONGEST_HEAD: u32 = 16 << 20;

/// What a digest is.
type Digest = [u8; 32];

/// The file's header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The job.
    pub job: JobId,
    /// When the file was begun.
    pub at_ms: Millis,
    /// The homeserver's name.
    pub server_name: String,
    /// `sqlite`, or `postgres`: rows come back to the engine that they come from.
    pub engine: String,
    /// Synapse's schema version.
    pub schema: i64,
}

/// What a frame says of itself beside its rows. No words of anybody stand in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// What kind of transaction it was.
    pub kind: Kind,
    /// The room.
    pub room: RoomId,
    /// When.
    pub at_ms: Millis,
    /// Events that left the timeline.
    pub events: i64,
    /// Rows, by table.
    pub rows: BTreeMap<String, i64>,
    /// Whether its rows are encrypted.
    #[serde(default)]
    pub is_encrypted: bool,
    /// One thing that stands as long as the transaction has not committed.
    pub witness: Option<Witness>,
}

/// What a transaction took away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Events of a history purge, with what belongs to them.
    Events,
    /// State groups that nothing referred to any more.
    StateGroups,
    /// State groups that were left to the running homeserver to delete.
    MarkedStateGroups,
    /// Rows of a room that goes, of whatever table.
    Room,
}

/// By what it is told whether a transaction has committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Witness {
    /// This event was deleted.
    Deleted {
        /// Its id.
        event_id: EventId,
        /// Its number.
        stream_ordering: i64,
    },
    /// This event left the timeline and stays as an outlier.
    Outlier {
        /// Its id.
        event_id: EventId,
        /// Its number.
        stream_ordering: i64,
    },
    /// This state group was deleted.
    StateGroup {
        /// Its number.
        group: i64,
        /// The event that it was made for.
        event_id: EventId,
    },
    /// This row was deleted.
    Row {
        /// Its table.
        table: String,
        /// Where it lay: on SQLite its number; on a server its place, and who wrote it.
        address: String,
    },
}

/// The archive of a job in a directory.
pub fn file_of(directory: &Path, job: &JobId) -> PathBuf {
    directory.join(format!("{job}.rka"))
}

/// The jobs that have an archive in a directory, by their files; those that are no archives are not listed.
///
/// # Errors
/// Where the directory cannot be read.
pub fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match std::fs::read_dir(directory) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| unreadable(directory, &e))?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| unreadable(directory, &e))?.path();
        if path.extension().is_some_and(|ext| ext == "rka") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The digest of a frame: over its rows, the digest of the frame before, and what it says of itself.
fn digest_of(rows: Sha256, before: &Digest, number: u32, length: u64, head: &[u8]) -> Digest {
    let mut digest = rows;
    digest.update(before);
    digest.update(number.to_le_bytes());
    digest.update(length.to_le_bytes());
    digest.update(head);
    digest.finalize().into()
}

fn unreadable(path: &Path, e: &std::io::Error) -> Error {
    Error::Refused(format!("{} cannot be read: {e}", path.display()))
}

/// What could not be written. The transaction that waits for it is rolled back, so nothing is lost.
pub fn unwritable(path: &Path, e: &std::io::Error) -> Error {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    match e.kind() {
        StorageFull | QuotaExceeded => Error::NoSpace(format!(
            "there is no room for the archive {}: what is not in it was not removed. Make room there, or say another \
             directory (roomkeeper.archive.directory)",
            path.display()
        )),
        _ => Error::Refused(format!(
            "the archive {} cannot be written: {e}. What is not in it was not removed",
            path.display()
        )),
    }
}
