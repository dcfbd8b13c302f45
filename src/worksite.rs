//! What every job on a room works with: its connection, the room's locks, its pace, its duties of overwriting, and the
//! way it says how far it is. Which rows go is for the rooms above to say.

mod lock;
pub(crate) mod overwrite;
mod pace;
mod progress;

use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub(crate) use self::lock::{acquire_row_lock, hold, hold_meanwhile};
pub(crate) use self::overwrite::tidy;
pub use self::pace::{Gait, Pace};
pub use self::progress::{Phase, Progress};
use crate::config::{Authorship, HomeserverApi};
use crate::error::Error;
use crate::ids::RoomId;
use crate::jobs::ledger::Ledger;
use crate::jobs::register::{Live, Register};
use crate::locks::RoomLocks;
use crate::store::db::Db;
use crate::store::erase::RawFile;
use crate::store::homeserver::Watch;
use crate::store::log::Writer;
use crate::stride::StrideBounds;
use crate::time::Clock;

/// How often a cancelled or stopping job looks up from a rest.
const LOOK_UP_EVERY: Duration = Duration::from_millis(50);

/// How long a job beside a live server waits for the database to be free, before it ends with that reason.
pub(crate) const BUSY_PATIENCE: Duration = Duration::from_secs(10 * 60);

/// How long a job waits before it looks again for a server that was lost.
pub(crate) const LOST_REST: Duration = Duration::from_secs(1);

/// What a job on a room works with: its own connection, and what it shares with others.
pub struct Worksite<'a> {
    /// A connection for this job alone.
    pub db: Db,
    /// The room it has.
    pub room: &'a RoomId,
    /// The server's name.
    pub server_name: &'a str,
    /// Offline or beside.
    pub gait: Gait,
    /// Bounds of strides beside a live server.
    pub bounds: StrideBounds,
    /// Whether what is deleted is overwritten at the end.
    pub overwrite_deleted: bool,
    /// The rooms' locks.
    pub locks: &'a RoomLocks,
    /// One writes at a time on SQLite; asking here first is fair, where the file's own lock is not.
    pub writer: &'a Mutex<Writer>,
    /// Where what must not be forgotten is noted.
    pub ledger: &'a Ledger,
    /// The job, as others see it.
    pub live: &'a Live,
    /// The database file past SQLite, for overwriting free pages; none where the database is no file.
    pub raw: Option<&'a RawFile>,
    /// What this server's own events are made with.
    pub authorship: &'a Authorship,
    /// How a homeserver that runs beside us is asked to do what only it can do.
    pub homeserver: Option<&'a HomeserverApi>,
    /// Looks for a homeserver that is running although it should not.
    pub watch: Option<Watch>,
    /// The time.
    pub clock: &'a dyn Clock,
    /// The other jobs: what is done once for all rooms is left to the last of them.
    pub register: &'a Register,
    /// Whether the process is stopping.
    pub is_stopping: &'a (dyn Fn() -> bool + Sync),
    /// Whether more jobs of the same kind follow on this connection: what can be done for all of them at once is left
    /// to whoever runs them.
    pub is_one_of_many: bool,
}

impl Worksite<'_> {
    /// Ends the job between two transactions when somebody asked for it.
    pub(crate) fn stay_or_go(&self) -> Result<(), Error> {
        if (self.is_stopping)() {
            Err(Error::Stopping)
        } else if self.live.is_cancelled() {
            Err(Error::Cancelled)
        } else {
            Ok(())
        }
    }

    /// An interrupt of our own making is a wish to stop or to cancel.
    pub(crate) fn explain(&self, error: Error) -> Error {
        if error.is_interrupt() {
            self.stay_or_go().err().unwrap_or(error)
        } else {
            error
        }
    }

    /// Refuses to go on when a homeserver has been started meanwhile (W-22).
    pub(crate) fn still_alone(&mut self) -> Result<(), Error> {
        let Some(watch) = &mut self.watch else {
            return Ok(());
        };
        match watch.sign_of_life(&self.db, self.clock.now())? {
            None => Ok(()),
            Some(sign) => Err(Error::Unsafe(format!(
                "a homeserver seems to have been started: {sign}. Everything up to here is done and whole; stop the \
                 homeserver and ask again"
            ))),
        }
    }

    /// Lets others at the database, unless the job is to end.
    pub(crate) fn rest(&self, rest: Duration) {
        let until = Instant::now() + rest;
        while self.stay_or_go().is_ok() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(LOOK_UP_EVERY));
        }
    }

    /// Shows how far the job is.
    pub(crate) fn publish(&self, progress: &Progress) {
        self.live
            .set_progress(serde_json::to_value(progress).unwrap_or_default());
    }

    /// Writes down how far the job is, so that a killed process has not forgotten it. What is not written is only not
    /// told: the work itself is found in the database.
    pub(crate) fn keep(&self, progress: &Progress) {
        let value = serde_json::to_value(progress).unwrap_or_default();
        if let Err(e) = self.ledger.progress(&self.live.id, &value) {
            log::warn!("room {}: {}", self.room, crate::error::Chain(&e));
        }
    }
}
