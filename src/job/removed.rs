//! What a job notes of what it removes, so that an older database which is put in the place of the one it works on is
//! known for what it is (S-30).

use super::JobContext;
use crate::error::{Chain, Error};
use crate::ids::RoomId;
use crate::jobs::ledger::Ledger;
use crate::jobs::register::RunningJob;
use crate::jobs::removed::Removed;
use crate::store::db::{Db, Engine};
use crate::store::removed;

/// Events of a transaction of which the job remembers that they went.
const SOME: i64 = 5;

/// What a transaction removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removing<'a> {
    /// The selected events that go.
    Events,
    /// The room's own row.
    Room(&'a RoomId),
    /// Nothing that could be named.
    Nothing,
}

/// Notes what a transaction removes; to be called inside it, when all of it is done.
pub(crate) fn note_removed(
    db: &Db,
    ledger: &Ledger,
    job: &RunningJob,
    what: Removing<'_>,
) -> Result<(), Error> {
    let some = match what {
        Removing::Events => removed::some_selected(db, SOME)?,
        Removing::Room(_) | Removing::Nothing => Vec::new(),
    };
    let ids = some.iter().map(|(event, _)| event.clone()).collect();
    job.set_removing(ids);
    let removed = Removed {
        event: some.into_iter().next(),
        room: match what {
            Removing::Room(room) => Some(room.clone()),
            Removing::Events | Removing::Nothing => None,
        },
        greatest: removed::greatest_stream_ordering(db)?,
    };
    if removed.event.is_some() || removed.room.is_some() {
        job.set_has_removed();
    }
    ledger.note_removed(&job.id, &removed)
}

impl JobContext<'_> {
    /// To be called after a commit: sees to it that the commits so far are on the disk, from when on what was noted of them
    /// counts; once a second where many small jobs follow each other. What cannot be noted is only not told later.
    pub(crate) fn note_commit(&self) {
        let is_cheap = self.db.engine() == Engine::Postgres || !self.is_one_of_many;
        let syncs = is_cheap || (self.live.has_removed() && self.register.is_time_to_sync());
        self.note(syncs);
    }

    /// As [`JobContext::note_commit`], after a commit that added: notes how new the database is now.
    pub(crate) fn note_additions(&self) {
        match note_removed(&self.db, self.ledger, self.live, Removing::Nothing) {
            Ok(()) => self.note(true),
            Err(e) => log::warn!("room {}: {}", self.room, Chain(&e)),
        }
    }

    fn note(&self, syncs: bool) {
        let noted = match syncs {
            true => self.db.sync_commits_so_far(),
            false => Ok(()),
        };
        let noted = noted.and_then(|()| self.ledger.removed_is_committed(&self.live.id, syncs));
        if let Err(e) = noted {
            log::warn!("room {}: {}", self.room, Chain(&e));
        }
    }
}
