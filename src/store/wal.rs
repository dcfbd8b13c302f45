//! The write-ahead log beside a live server.
//!
//! Whoever commits while the log is longer than its bound copies what it can into the database file, with a sync: the
//! server would pay for our batches, in the middle of its own commits, and the log would never start anew, because
//! there is always somebody who has just written. So a connection of ours, the *pin*, keeps a snapshot open while
//! batches follow each other: nobody copies past it. When the log is long enough, the pin is let go, everything is copied
//! at once without holding anybody up, and the log starts anew.

use std::time::Duration;

use super::db::{Access, Db, OpenOptions};
use super::space::free_bytes;
use crate::error::Error;

/// The length, in bytes, at which the log is copied into the database.
pub const LOG_AIM: i64 = 720 * 1024 * 1024;

/// The same on a disk that has less room: a quarter of what the log could take.
fn aim(db: &Db) -> Result<i64, Error> {
    let Some(path) = db.path() else {
        return Ok(LOG_AIM);
    };
    let log = db.wal_path().and_then(|log| std::fs::metadata(log).ok());
    let room = free_bytes(path)?.saturating_add(log.map_or(0, |m| m.len()));
    Ok(LOG_AIM.min(i64::try_from(room / 4).unwrap_or(LOG_AIM)))
}

/// How long starting the log anew waits for readers; others cannot write meanwhile. Tried again after the next batch.
const PATIENCE: Duration = Duration::from_millis(100);

/// What whoever writes to the database of a keeper holds: one at a time, in order of arrival.
#[derive(Default)]
pub struct WalGuard {
    pin: Option<Db>,
}

impl WalGuard {
    /// Keeps others from copying the log.
    pub fn pin(&mut self, db: &Db) -> Result<(), Error> {
        if let (None, Some(path)) = (&self.pin, db.path()) {
            let options = OpenOptions {
                access: Access::ReadOnly,
                cache_kib: 256,
                ..OpenOptions::default()
            };
            let pin = Db::open(path, &options)?;
            pin.pin_snapshot()?;
            self.pin = Some(pin);
        }
        Ok(())
    }

    /// After a batch: copies the log when it is long, and pins it again.
    pub fn checkpoint_if_long(&mut self, db: &Db) -> Result<(), Error> {
        if db.log_bytes()? < aim(db)? {
            return self.pin(db);
        }
        if self.checkpoint(db)? {
            self.pin(db)?;
        }
        Ok(())
    }

    /// Lets the pin go and copies the log into the database. Answers whether it starts anew.
    pub fn checkpoint(&mut self, db: &Db) -> Result<bool, Error> {
        self.pin = None;
        // The bulk of it while others go on, and then the little that came meanwhile.
        db.checkpoint_passive()?;
        db.checkpoint_restart(PATIENCE)
    }

    /// Lets the pin go; answers whether there was one.
    pub fn unpin(&mut self) -> bool {
        self.pin.take().is_some()
    }
}
