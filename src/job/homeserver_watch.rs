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
    /// The looks find this, one after the other, and the last for ever.
    #[cfg(test)]
    Scripted {
        /// What they find; not empty.
        looks: std::collections::VecDeque<ServerState>,
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
        match self {
            Self::Told(_) => false,
            Self::Looking { may_run, .. } => !may_run,
            #[cfg(test)]
            Self::Scripted { may_run, .. } => !may_run,
        }
    }

    /// How it is known that a homeserver runs, if one does; a look of half a second ago is good enough.
    ///
    /// # Errors
    /// Those of the database.
    pub fn detect(&mut self, db: &Db, now: Millis) -> Result<Option<String>, Error> {
        match self {
            Self::Told(state) => Ok(told(*state)),
            Self::Looking { detector, .. } => detector.detect(db, now),
            #[cfg(test)]
            Self::Scripted { looks, .. } => Ok(told(next(looks))),
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
            #[cfg(test)]
            Self::Scripted { looks, .. } => Ok(told(next(looks))),
        }
    }
}

fn told(state: ServerState) -> Option<String> {
    match state {
        ServerState::Stopped => None,
        ServerState::Running => Some("roomkeeper was told that one runs".to_owned()),
    }
}

#[cfg(test)]
fn next(looks: &mut std::collections::VecDeque<ServerState>) -> ServerState {
    match looks.len() {
        1 => looks[0],
        _ => looks.pop_front().expect("not empty"),
    }
}
