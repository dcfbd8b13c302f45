//! Whether a homeserver runs: what the configuration says of it, and what is so at this moment.

use super::ServerState;
use crate::config::HomeserverPolicy;
use crate::error::Error;
use crate::store::db::Db;
use crate::store::homeserver::HomeserverDetector;
use crate::time::Millis;

/// Looks for a homeserver, where the configuration leaves it open whether one runs.
pub enum HomeserverWatch {
    /// Somebody said what is the case; nobody looks.
    Told(ServerState),
    /// What is so is looked at.
    Looking {
        /// Finds it.
        detector: HomeserverDetector,
        /// Whether work goes on beside one.
        may_run: bool,
    },
}

impl HomeserverWatch {
    /// As the configuration has it.
    pub fn new(policy: HomeserverPolicy, detector: impl FnOnce() -> HomeserverDetector) -> Self {
        let may_run = match policy {
            HomeserverPolicy::AssumeStopped => return Self::Told(ServerState::Stopped),
            HomeserverPolicy::AssumeRunning => return Self::Told(ServerState::Running),
            HomeserverPolicy::AllowRunning => true,
            HomeserverPolicy::RequireStopped => false,
        };
        Self::Looking {
            detector: detector(),
            may_run,
        }
    }

    /// Whether one is refused wherever it is met.
    pub(super) fn refuses(&self) -> bool {
        matches!(self, Self::Looking { may_run: false, .. })
    }

    /// How it is known that a homeserver runs, if one does; a look of half a second ago is good enough.
    ///
    /// # Errors
    /// Those of the database.
    pub fn detect(&mut self, db: &Db, now: Millis) -> Result<Option<String>, Error> {
        match self {
            Self::Told(state) => Ok(told(*state)),
            Self::Looking { detector, .. } => detector.detect(db, now),
        }
    }

    /// The same, looked for at this moment.
    ///
    /// # Errors
    /// Those of the database.
    pub fn look(&mut self, db: &Db, now: Millis) -> Result<Option<String>, Error> {
        match self {
            Self::Told(state) => Ok(told(*state)),
            Self::Looking { detector, .. } => detector.look(db, now),
        }
    }
}

fn told(state: ServerState) -> Option<String> {
    match state {
        ServerState::Stopped => None,
        ServerState::Running => Some("roomkeeper was told that one runs".to_owned()),
    }
}
