//! What every job on a room works with: its connection, the room's locks, its sizer, its duties of overwriting, and the
//! way it says how far it is. Which rows go is for the rooms above to say.

pub(crate) mod archive;
mod batch_sizer;
mod disk;
pub(crate) mod full_text;
pub(crate) mod held;
mod homeserver_watch;
mod lock;
pub mod media;
pub mod media_of_events;
pub(crate) mod overwrite;
mod progress;
pub(crate) mod removed;
mod residue;
mod transaction;
#[cfg(test)]
pub(crate) mod workbench;

use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub(crate) use self::archive::{GroupsFrame, JobArchive, SharedArchive, archive_events};
pub use self::batch_sizer::{BatchSizer, ServerState};
pub(crate) use self::disk::{DiskBudget, Reserve, smallest_need};
pub(crate) use self::held::{HoldWatch, Removes};
pub use self::homeserver_watch::HomeserverWatch;
pub(crate) use self::lock::acquire_synapse_lock;
pub(crate) use self::media_of_events::MediaNotes;
pub use self::media_of_events::{MediaFate, MediaPlan, PlannedMedia};
pub(crate) use self::overwrite::clean_up;
pub use self::progress::{Phase, Progress};
pub(crate) use self::transaction::{
    Cost, Duties, Effects, Endurance, IfStarted, Limits, Log, Outcome, Scope, Why, write_once,
};
use crate::batch::BatchLimits;
use crate::config::{EventSigning, HomeserverApi, OverwriteWhen};
use crate::error::Error;
use crate::ids::{Escaped, RoomId};
use crate::jobs::ledger::Ledger;
use crate::jobs::register::{JobRegistry, RunningJob};
use crate::locks::RoomLocks;
use crate::store::db::Db;
use crate::store::free_pages::RawFile;
use crate::store::homeserver::SynapseLock;
use crate::store::reclaim;
use crate::store::room_rows;
use crate::store::wal::WalGuard;
use crate::time::Clock;

/// How often a cancelled or stopping job looks up from a rest.
const LOOK_UP_EVERY: Duration = Duration::from_millis(50);

/// How long a job beside a live server waits for the database to be free, before it ends with that reason.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// How long a job waits before it looks again for a server that was lost.
pub(crate) const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// What a job on a room works with: its own connection, and what it shares with others.
pub struct JobContext<'a> {
    /// A connection for this job alone.
    pub db: Db,
    /// The room it has.
    pub room: &'a RoomId,
    /// The server's name.
    pub server_name: &'a str,
    /// Whether a homeserver runs, as it was seen last: before every transaction.
    pub server_state: ServerState,
    /// Bounds of batches beside a live server.
    pub limits: BatchLimits,
    /// Whether what is deleted is overwritten at the end.
    pub overwrite_deleted: bool,
    /// When that is, and the rest of what overwriting takes.
    pub overwrite_when: OverwriteWhen,
    /// The rooms' locks.
    pub locks: &'a RoomLocks,
    /// One writes at a time on SQLite; asking here first is fair, where the file's own lock is not.
    pub writer: &'a Mutex<WalGuard>,
    /// Where what must not be forgotten is noted.
    pub ledger: &'a Ledger,
    /// The job, as others see it.
    pub live: &'a RunningJob,
    /// The database file past SQLite, for overwriting free pages; none where the database is no file.
    pub raw: Option<&'a RawFile>,
    /// What this server's own events are made with.
    pub event_signing: &'a EventSigning,
    /// How a homeserver that runs beside us is asked to do what only it can do.
    pub homeserver: Option<&'a HomeserverApi>,
    /// The homeserver's own lock on the room, while the job holds it.
    pub synapse_lock: Option<SynapseLock>,
    /// Looks whether a homeserver runs.
    pub watch: HomeserverWatch,
    /// The time.
    pub clock: &'a dyn Clock,
    /// The other jobs: what is done once for all rooms is left to the last of them.
    pub register: &'a JobRegistry,
    /// Whether the process is stopping.
    pub is_stopping: &'a (dyn Fn() -> bool + Sync),
    /// Whether more jobs of the same kind follow on this connection: what can be done for all of them at once is left
    /// to whoever runs them.
    pub is_one_of_many: bool,
    /// Where what it removes is written down first, if anywhere.
    pub(crate) archive: SharedArchive,
    /// The holds that it knows of.
    pub(crate) holds: HoldWatch,
    /// Whether media go with its events.
    pub(crate) media: MediaNotes,
}

impl JobContext<'_> {
    /// Ends the job between two transactions when somebody asked for it.
    pub(crate) fn check_cancelled(&self) -> Result<(), Error> {
        if (self.is_stopping)() {
            Err(Error::Stopping)
        } else if self.live.is_cancelled() {
            Err(Error::Cancelled)
        } else {
            Ok(())
        }
    }

    /// An interrupt of our own making is a wish to stop or to cancel; a damaged file is told with what to do (P-55).
    pub(crate) fn map_interrupt(&self, error: Error) -> Error {
        if error.is_interrupt() {
            self.check_cancelled().err().unwrap_or(error)
        } else if error.is_damage() && !error.is_index_damage() {
            reclaim::damaged(&crate::error::Chain(&error).to_string())
        } else {
            error
        }
    }

    /// What stopped a statement is named where it is a table that we know nothing of (P-53).
    pub(crate) fn map_constraint(&self, error: Error) -> Error {
        if !error.is_constraint() {
            return error;
        }
        match room_rows::strangers(&self.db) {
            Ok(tables) if !tables.is_empty() => Error::Refused(format!(
                "a row that would go is referred to by {}, which this roomkeeper does not know, and that stops it ({}). What was \
                 done up to here is whole. Delete the rows there that refer to it, if they are not the homeserver's own, and ask \
                 again; a dry run counts them",
                match &tables[..] {
                    [table] => format!("the table {}", Escaped(table)),
                    tables => {
                        let names = tables.iter().map(|table| Escaped(table).to_string());
                        format!("one of the tables {}", names.collect::<Vec<_>>().join(", "))
                    }
                },
                crate::error::Chain(&error)
            )),
            _ => error,
        }
    }

    /// Before a transaction: looks whether a hold was laid on what would go, and refuses to go on then. Looks whether a
    /// homeserver runs, and goes on as that takes; or refuses to, where one should not run (W-22).
    pub(crate) fn look_for_homeserver(&mut self) -> Result<(), Error> {
        self.refuse_new_holds()?;
        match self.watch.detect(&self.db, self.clock.now())? {
            Some(sign) if self.watch.refuses() => Err(Error::Refused(format!(
                "a homeserver seems to have been started: {sign}. Everything up to here is done and whole; stop the \
                 homeserver and ask again"
            ))),
            sign => {
                self.adapt(sign.as_deref());
                Ok(())
            }
        }
    }

    /// Whether a homeserver runs at this moment, and then how that is known. What is done once the events have gone can be
    /// done either way, so nothing is refused here.
    pub(crate) fn running_homeserver(&mut self) -> Result<Option<String>, Error> {
        let sign = self.watch.look(&self.db, self.clock.now())?;
        if !self.watch.refuses() {
            self.adapt(sign.as_deref());
        }
        Ok(sign)
    }

    fn adapt(&mut self, sign: Option<&str>) {
        match (sign, self.server_state) {
            (Some(sign), ServerState::Stopped) => {
                log::info!("room {}: working beside a homeserver: {sign}", self.room);
                self.server_state = ServerState::Running;
            }
            (None, ServerState::Running) => {
                log::info!("room {}: no homeserver runs any more", self.room);
                self.server_state = ServerState::Stopped;
            }
            _ => {}
        }
    }

    /// As the homeserver is at this moment.
    pub(crate) fn server_state_now(&mut self) -> Result<ServerState, Error> {
        Ok(match self.running_homeserver()? {
            Some(_) => ServerState::Running,
            None => ServerState::Stopped,
        })
    }

    /// Gives up the reserve for a full disk; answers whether there was one.
    pub(crate) fn release_reserve(&self) -> bool {
        self.db
            .path()
            .is_some_and(|file| Reserve::beside(file).release())
    }

    /// Lets others at the database, unless the job is to end.
    pub(crate) fn rest(&self, rest: Duration) {
        let until = Instant::now() + rest;
        while self.check_cancelled().is_ok() {
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
    pub(crate) fn save_progress(&self, progress: &Progress) {
        let value = serde_json::to_value(progress).unwrap_or_default();
        if let Err(e) = self.ledger.progress(&self.live.id, &value) {
            log::warn!("room {}: {}", self.room, crate::error::Chain(&e));
        }
    }
}
