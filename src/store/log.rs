//! The write-ahead log beside a live server.
//!
//! Whoever commits while the log is longer than its bound copies what it can into the database file, with a sync: the
//! server would pay for our strides, in the middle of its own commits, and the log would never start anew, because
//! there is always somebody who has just written. So a connection of ours, the *pin*, keeps a snapshot open while
//! strides follow each other: nobody copies past it. When the log is long enough, the pin is let go, everything is copied
//! at once without holding anybody up, and the log starts anew.

use std::time::Duration;

use super::db::{Access, Db, OpenOptions};
use crate::error::Error;

/// The length, in bytes, at which the log is copied into the database.
pub const LOG_AIM: i64 = 720 * 1024 * 1024;

/// How long starting the log anew waits for readers; others cannot write meanwhile. Tried again after the next stride.
const PATIENCE: Duration = Duration::from_millis(100);

/// What whoever writes to the database of a keeper holds: one at a time, in order of arrival.
#[derive(Default)]
pub struct Writer {
    pin: Option<Db>,
}

impl Writer {
    /// Keeps others from copying the log.
    pub fn pin(&mut self, db: &Db) -> Result<(), Error> {
        if let (None, Some(path)) = (&self.pin, db.path()) {
            let options = OpenOptions {
                access: Access::Ask,
                cache_kib: 256,
                ..OpenOptions::default()
            };
            let pin = Db::open(path, &options)?;
            pin.hold_snapshot()?;
            self.pin = Some(pin);
        }
        Ok(())
    }

    /// After a stride: copies the log when it is long, and pins it again.
    pub fn shorten(&mut self, db: &Db) -> Result<(), Error> {
        if db.log_bytes()? < LOG_AIM {
            return self.pin(db);
        }
        if self.copy(db)? {
            self.pin(db)?;
        }
        Ok(())
    }

    /// Lets the pin go and copies the log into the database. Answers whether it starts anew.
    pub fn copy(&mut self, db: &Db) -> Result<bool, Error> {
        self.pin = None;
        // The bulk of it while others go on, and then the little that came meanwhile.
        db.copy_log()?;
        db.restart_log(PATIENCE)
    }

    /// Lets the pin go.
    pub fn unpin(&mut self) {
        self.pin = None;
    }
}
