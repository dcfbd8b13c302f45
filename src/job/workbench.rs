//! What a job works with, on a sample and without a keeper: for tests.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use support::work::{NOW, Site};

use super::super::support;
use super::{HomeserverWatch, JobContext, ServerState};
use crate::batch::BatchLimits;
use crate::config::EventSigning;
use crate::ids::RoomId;
use crate::jobs::ledger::{Ledger, Subject};
use crate::jobs::register::{JobGuard, JobRegistry};
use crate::locks::RoomLocks;
use crate::store::db::{Db, OpenOptions};
use crate::store::wal::WalGuard;
use crate::time::ManualClock;

/// Everything that a job borrows.
pub(crate) struct Workbench {
    pub room: RoomId,
    pub locks: RoomLocks,
    pub writer: Mutex<WalGuard>,
    pub register: Arc<JobRegistry>,
    guard: JobGuard,
    server_name: String,
    database: std::path::PathBuf,
    clock: Arc<ManualClock>,
    event_signing: EventSigning,
}

impl Workbench {
    /// A job of this kind that has begun.
    pub fn new(site: &Site, room: &str, kind: &'static str) -> Self {
        let ledger = Ledger::open(&site.config().ledger).expect("opens");
        let clock = Arc::new(ManualClock::at(NOW));
        let register = Arc::new(JobRegistry::new(ledger, clock.clone()));
        let room = RoomId::new(room);
        let subject = Subject::Room(room.clone());
        let guard = register
            .enqueue(kind, &subject, serde_json::json!({}))
            .expect("the room is free");
        guard.start().expect("noted");
        Self {
            room,
            locks: RoomLocks::default(),
            writer: Mutex::default(),
            register,
            guard,
            server_name: site.server_name.clone(),
            database: site.database.clone(),
            clock,
            event_signing: EventSigning::default(),
        }
    }

    /// The job on a connection of its own. Where it looks for a homeserver it finds this, one after the other, the last for
    /// ever.
    pub fn job(
        &self,
        begins: ServerState,
        looks: impl IntoIterator<Item = ServerState>,
        may_run: bool,
        limits: BatchLimits,
    ) -> JobContext<'_> {
        JobContext {
            db: Db::open(&self.database, &OpenOptions::default()).expect("opens"),
            room: &self.room,
            server_name: &self.server_name,
            server_state: begins,
            limits,
            overwrite_deleted: true,
            overwrite_when: Default::default(),
            locks: &self.locks,
            writer: &self.writer,
            ledger: self.register.ledger(),
            live: self.guard.live(),
            raw: None,
            event_signing: &self.event_signing,
            homeserver: None,
            synapse_lock: None,
            watch: HomeserverWatch::Scripted {
                looks: looks.into_iter().collect::<VecDeque<_>>(),
                may_run,
            },
            clock: &*self.clock,
            register: &self.register,
            is_stopping: &|| false,
            is_one_of_many: false,
            archive: None,
            holds: Default::default(),
            media: Default::default(),
        }
    }

    /// The job is over.
    pub fn end(self) {
        self.guard.end(None);
    }
}
