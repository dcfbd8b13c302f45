//! Purges of one room's history.

use std::borrow::Borrow;

use super::kind::{JobKind, Runner, RunsOn, Work, parameters};
use super::{Keeper, Shared};
use crate::error::Error;
use crate::ids::{JobId, RoomId};
use crate::job::{MediaFate, Removes};
use crate::jobs::ledger::{State, Subject};
use crate::jobs::register::JobGuard;
use crate::plural::count;
use crate::point::{Point, PurgePoint};
use crate::purge::{self, Plan, Request};
use crate::store::points;
use crate::time::Millis;

/// A history purge (S-16 names it so).
pub(super) static PURGE_HISTORY: JobKind = JobKind {
    is_plannable: true,
    ..JobKind::new(
        "purge_history",
        RunsOn::Worker,
        parameters::<purge::Request>,
    )
};

impl Work for Request {
    fn run(&self, on: &Runner<'_>, guard: JobGuard) {
        on.shared.run_one(guard, |guard, is_stopping| {
            on.shared.purge(guard, self, is_stopping)
        });
    }

    fn detail(&self) -> String {
        format!(", up to {}", self.point)
    }
}

/// How a purge is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PurgeOptions {
    /// Whether local users' messages go as well as remote ones.
    pub delete_local_events: bool,
    /// What was received after this stays, whatever its depth; of what was backfilled, what was also sent after it. A
    /// point that is a time or an age says so already: the earlier of the two counts.
    pub keep_received_after: Option<Millis>,
    /// Go no further than to the first event that is held, instead of around it.
    pub strict: bool,
    /// What becomes of media that nothing but the messages refers to which go.
    pub media: MediaFate,
}

impl PurgeOptions {
    /// The purge up to a point, of what was received before `keep_from`.
    pub(super) fn request(self, point: Point, keep_from: Option<Millis>) -> Request {
        let by_point = keep_from.map(|from| from - Millis(1));
        let keep_received_after = match (self.keep_received_after, by_point) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Request {
            point,
            delete_local_events: self.delete_local_events,
            media: self.media,
            keep_received_after,
            expiry: None,
            held: Vec::new(),
        }
    }
}

/// The status of a history purge, in Synapse's terms (S-1, S-2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PurgeStatus {
    /// `active`, `complete` or `failed`.
    pub status: &'static str,
    /// Why it failed.
    pub error: Option<String>,
}

impl Keeper {
    /// Starts a purge of a room's history and returns at once; the work is a job.
    ///
    /// # Errors
    /// [`Error::EventNotFound`], [`Error::WrongRoom`], [`Error::NothingThatOld`] for the point;
    /// [`Error::RoomBusy`] while another job has the room; [`Error::Held`] where the whole room is held; [`Error::Refused`] for an age while the clock may be ahead;
    /// [`Error::PlanDrifted`]; [`Error::QueueFull`], [`Error::Stopping`]. Nothing was started then.
    pub fn purge_history(
        &self,
        room: &RoomId,
        point: impl Borrow<PurgePoint>,
        options: PurgeOptions,
    ) -> Result<JobId, Error> {
        if self.is_stopping() {
            return Err(Error::Stopping);
        }
        let point = point.borrow();
        if matches!(point, PurgePoint::OlderThan(_)) {
            self.shared.refuse_clock_ahead()?;
        }
        let now = self.judged_at()?;
        let keep_from = point.keep_received_from(now);
        let point = self.shared.with_reader(|db| {
            let point = points::resolve(db, room, point, now);
            let point = point.map_err(|e| self.told_as_drift(e))?;
            self.shared.refuse_own_task(db, room)?;
            Ok(point)
        })?;
        self.shared.refuse_media(options.media)?;
        let held = self.shared.refuse_held(room, Removes::History)?;
        let point = match options.strict {
            true => self.shared.before_what_is_held(room, point, &held)?,
            false => point,
        };
        let request = options.request(point, keep_from);
        self.refuse_drift(|viewer, plan| viewer.bind_purge(room, &request, plan.at()))?;
        self.start(&PURGE_HISTORY, &Subject::Room(room.clone()), request)
    }

    /// What such a purge would remove, table by table. Reads only.
    ///
    /// # Errors
    /// As [`Keeper::purge_history`] where the point is not one, or nothing may go; those of the database.
    pub fn plan_purge(
        &self,
        room: &RoomId,
        point: impl Borrow<PurgePoint>,
        options: PurgeOptions,
    ) -> Result<Plan, Error> {
        self.viewer()?.plan_purge(room, point, options)
    }

    /// The status of a history purge; `None` when there is no such purge, or 24 hours after its end (S-10).
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn purge_status(&self, id: &str) -> Result<Option<PurgeStatus>, Error> {
        let register = &self.shared.register;
        let found = register.look_up(&JobId::from(id), PURGE_HISTORY.name)?;
        Ok(found.map(|job| PurgeStatus {
            status: match job.state {
                State::Queued | State::Running | State::Paused | State::Waiting => "active",
                State::Complete => "complete",
                State::Failed => "failed",
            },
            error: job.error,
        }))
    }
}

impl Shared {
    pub(super) fn purge(
        &self,
        guard: &JobGuard,
        request: &Request,
        is_stopping: &(dyn Fn() -> bool + Sync),
    ) -> Result<String, Error> {
        self.refuse_drift_of(guard, |viewer, plan| {
            viewer.bind_purge(guard.room(), request, plan.at())
        })?;
        let mut ctx = self.job_context(guard, is_stopping)?;
        let done = purge::run(&mut ctx, request);
        let progress = self.take_media_of(&mut ctx, request.media, done)?;
        Ok(format!(
            "{} deleted",
            count(progress.events_deleted, "event")
        ))
    }
}
