//! One room of a set: whether it is still what it was chosen for, and the job that purges or deletes it.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::Shared;
use super::deletion as room_deletion;
use super::kind::{Belongs, JobKind, Runner, RunsOn, Work, parameters};
use super::room_set::{Action, RoomSet};
use crate::deletion::{self, DeletionScope};
use crate::error::Error;
use crate::ids::{JobId, RoomId};
use crate::job::{HomeserverWatch, Progress};
use crate::jobs::ledger::{Ended, JobRecord};
use crate::jobs::register::JobGuard;
use crate::plural::count;
use crate::purge;
use crate::rooms::{Condition, Selectors};
use crate::store::db::Db;
use crate::store::room_statistics;
use crate::time::Millis;

/// The purge of one room of a set.
pub(super) static PURGE_IN_SET: JobKind = JobKind {
    belongs: Belongs::IsPart,
    is_left_to_another: Shared::leave_to_set,
    ..JobKind::new(
        "purge_history_in_set",
        RunsOn::Worker,
        parameters::<RoomOfSet>,
    )
};

/// The deletion of one room of a set.
pub(super) static DELETE_IN_SET: JobKind = JobKind {
    belongs: Belongs::IsPart,
    is_left_to_another: Shared::leave_to_set,
    words: room_deletion::words,
    ..JobKind::new(
        "delete_room_in_set",
        RunsOn::Worker,
        parameters::<RoomOfSet>,
    )
};

/// One room of a set: the parameters of its job in the ledger.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct RoomOfSet {
    pub(super) set: JobId,
    #[serde(flatten)]
    pub(super) work: RoomWork,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RoomWork {
    Purge(purge::Request),
    Deletion(deletion::Request),
    /// Its rows go, as long as nobody of this server is in it: nobody is moved out.
    DeletionOfEmpty(deletion::Request),
}

impl RoomOfSet {
    pub(super) fn of_record(record: &JobRecord) -> Option<Self> {
        let is_one = [&PURGE_IN_SET, &DELETE_IN_SET]
            .iter()
            .any(|kind| kind.name == record.kind);
        is_one.then(|| Self::deserialize(&record.params).ok())?
    }
}

impl Work for RoomOfSet {
    fn run(&self, on: &Runner<'_>, guard: JobGuard) {
        on.shared.run_one(guard, |guard, _| {
            let done = on.shared.work_on_room(guard, self, &mut None, None)?;
            Ok(format!("{} deleted", count(done.events_deleted, "event")))
        });
    }
}

/// A connection that one room's job leaves to the next.
pub(super) type Kept = Option<(Db, HomeserverWatch)>;

/// Prepares a connection for the rooms that follow each other on it.
pub(super) type Prepare<'a> = &'a dyn Fn(&Db) -> Result<(), Error>;

/// Which rooms are still what they were chosen for. Looked up for all of them at once; again as soon as something came into
/// a room since.
pub(super) struct Fits {
    selectors: Selectors,
    decided: Millis,
    /// The policy that decides instead, and what it does.
    policy: Option<(String, Action)>,
    /// Those that fit, and the newest event of the moment when that was so.
    known: Option<(HashSet<RoomId>, i64)>,
}

impl Fits {
    pub(super) fn new(set: &RoomSet) -> Self {
        Self {
            selectors: set.selectors.clone(),
            decided: set.decided_ms,
            policy: set.policy.clone().map(|name| (name, set.action.clone())),
            known: None,
        }
    }

    pub(super) fn fits(&mut self, shared: &Shared, room: &RoomId) -> Result<bool, Error> {
        if self.selectors.is_everything() && self.policy.is_none() {
            return Ok(true);
        }
        if let Some((_, newest)) = &self.known
            && shared.with_reader(|db| room_statistics::has_newer(db, room, *newest))?
        {
            self.known = None;
        }
        let known = match self.known.take() {
            Some(known) => known,
            None => self.look(shared)?,
        };
        let (fitting, _) = self.known.insert(known);
        Ok(fitting.contains(room))
    }

    fn look(&mut self, shared: &Shared) -> Result<(HashSet<RoomId>, i64), Error> {
        if let Some((name, action)) = &self.policy {
            return shared.rooms_of_policy(name, action, self.decided);
        }
        let selected = match shared.selected(&self.selectors, self.decided) {
            // A space that is gone has no rooms.
            Err(Error::BadRequest {
                errcode: "M_NOT_FOUND",
                ..
            }) => {
                let is_space = |condition: &Condition| matches!(condition, Condition::Space(_));
                self.selectors.not.retain(|condition| !is_space(condition));
                shared.selected(&self.selectors, self.decided)
            }
            selected => selected,
        }?;
        let rooms = selected.rooms.into_iter().map(|room| room.room_id);
        Ok((rooms.collect(), selected.newest_event))
    }
}

impl Shared {
    /// Does what is to be done with one room. The connection outlives it, unless it failed. Without `prepare` no other room
    /// follows.
    pub(super) fn work_on_room(
        &self,
        guard: &JobGuard,
        part: &RoomOfSet,
        kept: &mut Kept,
        prepare: Option<Prepare<'_>>,
    ) -> Result<Progress, Error> {
        let live = guard.live().clone();
        let is_stopping = || self.is_suspended(&live);
        guard.start()?;
        let mut ctx = match kept.take() {
            Some((db, watch)) => self.job_context_on(db, watch, guard, &is_stopping)?,
            None => {
                let ctx = self.job_context(guard, &is_stopping)?;
                if let Some(prepare) = prepare {
                    prepare(&ctx.db)?;
                }
                ctx
            }
        };
        ctx.is_one_of_many = prepare.is_some();
        // One look through the whole database, for all rooms.
        ctx.media.under = Some(part.set.clone());
        let done = match &part.work {
            RoomWork::Purge(request) => purge::run(&mut ctx, request),
            RoomWork::Deletion(request) => deletion::run(&mut ctx, request, DeletionScope::Whole),
            RoomWork::DeletionOfEmpty(request) => {
                deletion::run(&mut ctx, request, DeletionScope::Rows)
            }
        };
        let progress = done.map_err(|e| match e.is_busy() && is_stopping() {
            // It waited for somebody else, and is not to wait any longer.
            true => Error::Stopping,
            false => e,
        })?;
        // A rewrite leaves nothing of what was prepared on its connection.
        if !progress.rewritten {
            *kept = Some((ctx.db, ctx.watch));
        }
        Ok(progress)
    }

    /// A part of a set is taken up by its set alone; one whose set has ended is over as well. Answers whether a record is
    /// such a part.
    fn leave_to_set(&self, record: &JobRecord) -> Result<bool, Error> {
        let Some(part) = RoomOfSet::of_record(record) else {
            return Ok(false);
        };
        let ledger = self.register.ledger();
        let set = ledger.get(&part.set)?;
        if set.is_none_or(|set| set.state.is_ended()) && !self.register.is_live(&record.id) {
            let why = "interrupted, and the set of rooms that it was part of has ended";
            log::warn!("{} of {} is given up: {why}", record.id, record.subject);
            let ended = Ended {
                error: Some((why, "set_ended")),
                progress: &record.progress,
                at: self.config.clock.now(),
            };
            ledger.end(&record.id, ended)?;
        }
        Ok(true)
    }

    /// Ends the parts of a set that was cancelled while it did not run.
    pub(super) fn cancel_parts(&self, set: &JobId) -> Result<(), Error> {
        let ledger = self.register.ledger();
        for record in ledger.unended_parts(set)? {
            if self.register.cancel(&record.id) {
                continue;
            }
            let cancelled = Error::Cancelled;
            let ended = Ended {
                error: Some((&cancelled.to_string(), cancelled.code())),
                progress: &record.progress,
                at: self.config.clock.now(),
            };
            ledger.end(&record.id, ended)?;
        }
        Ok(())
    }
}
