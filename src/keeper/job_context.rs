//! What the keeper gives a job to work with.

use std::thread;
use std::time::Instant;

use super::Shared;
use crate::config::HomeserverPolicy;
use crate::error::{Chain, Error};
use crate::job::{
    BUSY_TIMEOUT, HomeserverWatch, JobArchive, JobContext, RECONNECT_PAUSE, ServerState,
};
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
        let options = OpenOptions {
            access: Access::Write,
            cache_kib: CACHE_BESIDE_KIB,
            // Pages that become free are overwritten at the end.
            secure_delete: if config.overwrite_deleted {
                SecureDelete::Fast
            } else {
                SecureDelete::Off
            },
        };
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
        let ctx = self.job_context_on(db, self.watch(), guard, is_stopping)?;
        if ctx.server_state == ServerState::Stopped {
            ctx.db.set_pragma("cache_size", -CACHE_OFFLINE_KIB)?;
        }
        Ok(ctx)
    }

    /// The same on a connection that an earlier job of its kind had.
    pub(super) fn job_context_on<'a>(
        &'a self,
        db: Db,
        mut watch: HomeserverWatch,
        guard: &'a JobGuard,
        is_stopping: &'a (dyn Fn() -> bool + Sync),
    ) -> Result<JobContext<'a>, Error> {
        let config = &self.config;
        let sign = watch.detect(&db, config.clock.now())?;
        Ok(JobContext {
            db,
            room: guard.room(),
            server_name: &config.server_name,
            server_state: match sign {
                // Where none should run, it is refused before the first transaction.
                Some(_) if config.homeserver != HomeserverPolicy::RequireStopped => {
                    ServerState::Running
                }
                _ => ServerState::Stopped,
            },
            limits: config.batch,
            overwrite_deleted: config.overwrite_deleted,
            overwrite_when: config.overwrite_when,
            locks: &self.locks,
            writer: self.turn_to_write(),
            ledger: self.register.ledger(),
            live: guard.live(),
            raw: self.raw.as_deref(),
            event_signing: &config.event_signing,
            homeserver: config.homeserver_api.as_ref(),
            synapse_lock: None,
            watch,
            clock: &*config.clock,
            register: &self.register,
            is_stopping,
            is_one_of_many: false,
            archive: config
                .archive
                .as_ref()
                .map(|archive| JobArchive::shared(archive, guard.id(), &config.server_name)),
            holds: Default::default(),
            media: Default::default(),
        })
    }

    /// Looks for a homeserver, as far as the configuration leaves that open.
    pub(super) fn watch(&self) -> HomeserverWatch {
        let config = &self.config;
        HomeserverWatch::new(config.homeserver, || {
            HomeserverDetector::new(config.endpoints.clone(), &config.database, self.raw.clone())
        })
    }

    /// How it is known that a homeserver runs at this moment, if one does.
    pub(super) fn running_homeserver(&self, db: &Db) -> Result<Option<String>, Error> {
        self.watch().look(db, self.config.clock.now())
    }
}
