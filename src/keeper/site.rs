//! What the keeper gives a job to work with.

use std::thread;
use std::time::Instant;

use super::Shared;
use crate::config::Homeserver;
use crate::error::{Chain, Error};
use crate::jobs::register::Ticket;
use crate::store::db::{
    Access, CACHE_BESIDE_KIB, CACHE_OFFLINE_KIB, Db, OpenOptions, SecureDelete,
};
use crate::store::homeserver::Watch;
use crate::worksite::{BUSY_PATIENCE, Gait, LOST_REST, Worksite};

impl Shared {
    /// What a job works with, its own connection among it.
    pub(super) fn worksite<'a>(
        &'a self,
        ticket: &'a Ticket,
        is_stopping: &'a (dyn Fn() -> bool + Sync),
    ) -> Result<Worksite<'a>, Error> {
        self.refuse_replaced_file()?;
        let config = &self.config;
        let gait = self.gait();
        let options = OpenOptions {
            access: Access::Write,
            cache_kib: if gait == Gait::Offline {
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
        let watch = (config.homeserver == Homeserver::Refuse)
            .then(|| Watch::new(config.whereabouts.clone(), &config.database));
        let begun = Instant::now();
        let db = loop {
            match Db::open(&config.database, &options) {
                // A server that is starting anew costs a job time, and nothing else.
                Err(e) if e.is_lost() && begun.elapsed() < BUSY_PATIENCE && !is_stopping() => {
                    log::warn!("{ticket}: {}; trying again", Chain(&e));
                    thread::sleep(LOST_REST);
                }
                opened => break opened?,
            }
        };
        Ok(self.worksite_on(db, watch, ticket, is_stopping))
    }

    /// The same on a connection that an earlier job of its kind had.
    pub(super) fn worksite_on<'a>(
        &'a self,
        db: Db,
        watch: Option<Watch>,
        ticket: &'a Ticket,
        is_stopping: &'a (dyn Fn() -> bool + Sync),
    ) -> Worksite<'a> {
        let config = &self.config;
        Worksite {
            db,
            room: ticket.room(),
            server_name: &config.server_name,
            gait: self.gait(),
            bounds: config.stride,
            overwrite_deleted: config.overwrite_deleted,
            locks: &self.locks,
            writer: self.turn_to_write(),
            ledger: self.register.ledger(),
            live: ticket.live(),
            raw: self.raw.as_ref(),
            authorship: &config.authorship,
            homeserver: config.homeserver_api.as_ref(),
            watch,
            clock: &*config.clock,
            register: &self.register,
            is_stopping,
            is_one_of_many: false,
        }
    }

    pub(super) fn gait(&self) -> Gait {
        match self.config.homeserver {
            Homeserver::Beside => Gait::Beside,
            Homeserver::Refuse | Homeserver::AssumeStopped => Gait::Offline,
        }
    }
}
