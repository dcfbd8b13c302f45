//! What the keeper gives a job to work with.

use std::thread;
use std::time::Instant;

use super::Shared;
use crate::config::{Config, HomeserverPolicy};
use crate::error::{Chain, Error};
use crate::job::{BUSY_TIMEOUT, JobContext, RECONNECT_PAUSE, ServerState};
use crate::jobs::register::JobGuard;
use crate::store::db::{
    Access, CACHE_BESIDE_KIB, CACHE_OFFLINE_KIB, Db, OpenOptions, SecureDelete,
};
use crate::store::homeserver::HomeserverDetector;

impl Shared {
    /// What a job works with, its own connection among it.
    pub(super) fn job_context<'a>(
        &'a self,
        guard: &'a JobGuard,
        is_stopping: &'a (dyn Fn() -> bool + Sync),
    ) -> Result<JobContext<'a>, Error> {
        self.refuse_replaced_file()?;
        self.release_reserve_if_short();
        self.work_lock.ensure()?;
        let config = &self.config;
        let server_state = self.server_state();
        let options = OpenOptions {
            access: Access::Write,
            cache_kib: if server_state == ServerState::Stopped {
                CACHE_OFFLINE_KIB
            } else {
                CACHE_BESIDE_KIB
            },
            // Pages that become free are overwritten at the end.
            secure_delete: if config.overwrite_deleted {
                SecureDelete::Fast
            } else {
                SecureDelete::Off
            },
        };
        let detector = (config.homeserver == HomeserverPolicy::RequireStopped)
            .then(|| HomeserverDetector::new(config.endpoints.clone(), &config.database));
        let begun = Instant::now();
        let db = loop {
            match Db::open(&config.database, &options) {
                // A server that is starting anew costs a job time, and nothing else.
                Err(e)
                    if e.is_disconnected() && begun.elapsed() < BUSY_TIMEOUT && !is_stopping() =>
                {
                    log::warn!("{guard}: {}; trying again", Chain(&e));
                    thread::sleep(RECONNECT_PAUSE);
                }
                opened => break opened?,
            }
        };
        Ok(self.job_context_on(db, detector, guard, is_stopping))
    }

    /// The same on a connection that an earlier job of its kind had.
    pub(super) fn job_context_on<'a>(
        &'a self,
        db: Db,
        detector: Option<HomeserverDetector>,
        guard: &'a JobGuard,
        is_stopping: &'a (dyn Fn() -> bool + Sync),
    ) -> JobContext<'a> {
        let config = &self.config;
        JobContext {
            db,
            room: guard.room(),
            server_name: &config.server_name,
            server_state: self.server_state(),
            limits: config.batch,
            overwrite_deleted: config.overwrite_deleted,
            locks: &self.locks,
            writer: self.turn_to_write(),
            ledger: self.register.ledger(),
            live: guard.live(),
            raw: self.raw.as_ref(),
            event_signing: &config.event_signing,
            homeserver: config.homeserver_api.as_ref(),
            detector,
            clock: &*config.clock,
            register: &self.register,
            is_stopping,
            is_one_of_many: false,
        }
    }

    pub(super) fn server_state(&self) -> ServerState {
        server_state_of(&self.config)
    }
}

/// As the configuration has it.
pub(super) fn server_state_of(config: &Config) -> ServerState {
    match config.homeserver {
        HomeserverPolicy::AllowRunning => ServerState::Running,
        HomeserverPolicy::RequireStopped | HomeserverPolicy::AssumeStopped => ServerState::Stopped,
    }
}
