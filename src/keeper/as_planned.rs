//! What was planned, and nothing else: a plan has a hash, and what is started with it is refused when it would do anything
//! else by now.
//!
//! It is looked at when it is asked for, so that whoever asks hears of it, and again when its turn comes, before anything is
//! touched. A job that has begun and was interrupted goes on: what it was to do was as planned when it began.

use super::{Keeper, Shared, Viewer};
use crate::error::Error;
use crate::ids::RoomId;
use crate::job::Progress;
use crate::jobs::ledger::JobRecord;
use crate::jobs::register::JobGuard;
use crate::plan_hash::{Part, PlanDigest, PlanHash};
use crate::purge::{self, Request};
use crate::time::Millis;
use crate::{deletion, job};

/// Under what name a job's parameters have the plan that it is bound to.
pub(super) const PLAN: &str = "plan";

impl Keeper {
    /// The same keeper, of which a job that it starts is refused unless it does what the plan says: its purges, deletions,
    /// sets and retention runs fail with [`Error::PlanDrifted`] then, before anything is touched. What goes by an age or a
    /// policy goes as of the time of the plan.
    #[must_use]
    pub fn as_planned(&self, plan: PlanHash) -> Self {
        Self {
            plan: Some(plan),
            ..self.clone()
        }
    }

    /// The time by which is judged what is asked for: that of the plan, or now.
    pub(super) fn judged_at(&self) -> Result<Millis, Error> {
        let now = self.shared.config.clock.now();
        match self.plan.and_then(|plan| plan.at()) {
            Some(at) if at > now => Err(Error::PlanDrifted(format!(
                "the plan was made at {}, and the clock says that this is still to come. Nothing was changed; look at the \
                 clock, and plan it again",
                at.as_date()
            ))),
            Some(at) => Ok(at),
            None => Ok(now),
        }
    }

    /// Refuses what is not as it was planned, if it was.
    pub(super) fn refuse_drift(
        &self,
        bind: impl FnOnce(&Viewer, PlanHash) -> Result<PlanDigest, Error>,
    ) -> Result<(), Error> {
        match self.plan {
            Some(plan) => self.shared.refuse_drift(plan, bind),
            None => Ok(()),
        }
    }

    /// The parameters of a job, with the plan that it is bound to.
    pub(super) fn bound(&self, mut params: serde_json::Value) -> serde_json::Value {
        if let Some(plan) = self.plan {
            params[PLAN] = plan.to_string().into();
        }
        params
    }

    /// What there was when it was planned, and is not any more.
    pub(super) fn told_as_drift(&self, e: Error) -> Error {
        match (&self.plan, e) {
            (Some(_), Error::NothingThatOld) => Error::PlanDrifted(
                "this is not what was planned any more: nothing is that old. Nothing was changed; plan it again".into(),
            ),
            (_, e) => e,
        }
    }
}

impl Shared {
    pub(super) fn refuse_drift(
        &self,
        plan: PlanHash,
        bind: impl FnOnce(&Viewer, PlanHash) -> Result<PlanDigest, Error>,
    ) -> Result<(), Error> {
        let viewer = self.viewer()?;
        match plan.drift(&bind(&viewer, plan)?.hash()) {
            None => Ok(()),
            Some(drift) => Err(Error::PlanDrifted(drift)),
        }
    }

    /// The same for a job whose turn has come, unless it was begun before.
    pub(super) fn refuse_drift_of(
        &self,
        guard: &JobGuard,
        bind: impl FnOnce(&Viewer, PlanHash) -> Result<PlanDigest, Error>,
    ) -> Result<(), Error> {
        let Some(record) = self.register.ledger().get(guard.id())? else {
            return Ok(());
        };
        let Some(plan) = record.params.get(PLAN) else {
            return Ok(());
        };
        // What cannot be read binds all the same.
        let plan = plan.as_str().unwrap_or_default().parse::<PlanHash>();
        let plan = plan.map_err(Error::PlanDrifted)?;
        match self.has_begun(&record)? {
            true => Ok(()),
            false => self.refuse_drift(plan, bind),
        }
    }

    /// Whether anything of a job may be done already.
    fn has_begun(&self, record: &JobRecord) -> Result<bool, Error> {
        let progress: Progress =
            serde_json::from_value(record.progress.clone()).unwrap_or_default();
        let ledger = self.register.ledger();
        Ok(progress.batches > 0
            || progress.more.contains_key(deletion::SHUTDOWN_ROOM)
            || ledger.has_noted_removed(&record.id)?
            || ledger.has_room_outcomes(&record.id)?
            || !ledger.unended_parts(&record.id)?.is_empty())
    }
}

impl Viewer {
    /// What every plan says of the database.
    pub(super) fn new_digest(&self, at: Option<Millis>) -> PlanDigest {
        let mut digest = PlanDigest::new(at);
        digest.word(Part::Schema, &format!("{:?}", self.db.engine()));
        let version = self.db.catalog().version();
        digest.word(Part::Schema, &version.to_string());
        digest
    }

    /// What a purge says of itself, but for its events.
    pub(super) fn digest_of_purge(
        &self,
        room: &RoomId,
        request: &Request,
        held: &[job::held::Held],
        at: Option<Millis>,
    ) -> Result<(PlanDigest, Vec<String>), Error> {
        let mut digest = self.new_digest(at);
        digest.word(Part::Asked, super::purge_history::PURGE_HISTORY.name);
        digest.word(Part::Asked, &request.delete_local_events.to_string());
        digest.word(Part::Rooms, room.as_str());
        digest.word(Part::Points, &request.point.to_string());
        let holds = job::held::that_keep(&self.db, room, request.point.topological, held)?;
        for hold in &holds {
            digest.word(Part::Holds, hold);
        }
        Ok((digest, holds))
    }

    /// What a purge would be bound to now.
    ///
    /// # Errors
    /// As [`Viewer::plan_purge`].
    pub(super) fn bind_purge(
        &self,
        room: &RoomId,
        request: &Request,
        at: Option<Millis>,
    ) -> Result<PlanDigest, Error> {
        let holds = self.holds();
        let held = job::held::refuse(&self.db, room, &holds, job::Removes::History)?;
        let request = Request {
            held: job::held::events_of(&held),
            ..request.clone()
        };
        let (mut digest, _) = self.digest_of_purge(room, &request, &held, at)?;
        let now = at.unwrap_or_else(|| self.config.clock.now());
        let setting = self.setting(now, &holds)?;
        purge::bind(&self.db, room, &request, setting, &mut digest)?;
        Ok(digest)
    }

    /// What a deletion would be bound to now.
    ///
    /// # Errors
    /// [`Error::Held`]; those of the database.
    pub(super) fn bind_deletion(
        &self,
        room: &RoomId,
        request: &deletion::Request,
    ) -> Result<PlanDigest, Error> {
        let holds = self.holds();
        if request.purge {
            job::held::refuse(&self.db, room, &holds, job::Removes::Room)?;
        }
        let beside = deletion::Beside {
            holds: &holds,
            is_running: request.media.goes() && self.running_homeserver()?.is_some(),
        };
        let mut digest = self.new_digest(None);
        deletion::bind(
            &self.db,
            room,
            request,
            &self.config.server_name,
            beside,
            &mut digest,
        )?;
        Ok(digest)
    }
}
