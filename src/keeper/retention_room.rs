//! One room's turn in a retention run: judged again by the policy, the configuration and the clock of now.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Shared;
use super::kind::{Runner, Work};
use super::retention::RETENTION;
use crate::config::Config;
use crate::error::Error;
use crate::ids::RoomId;
use crate::jobs::ledger::{JobRecord, Subject};
use crate::jobs::register::JobGuard;
use crate::plan_hash::PlanHash;
use crate::plural::count;
use crate::point::Point;
use crate::policy::LifetimeRange;
use crate::purge::{self, Request};
use crate::retention::{self, Decided, Recheck};
use crate::store::db::Db;
use crate::time::Millis;

/// What a run takes, and on whose word: its parameters in the ledger.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct RetentionRun {
    #[serde(flatten)]
    pub(super) range: LifetimeRange,
    /// Whether the configuration asked for it; else somebody did. Of a run that an older roomkeeper began that is not
    /// known, so it goes on only where the configuration still asks for it.
    #[serde(default = "yes")]
    pub(super) scheduled: bool,
    /// What it must come to, where that was said. A run that was interrupted plans anew, and ends by this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) plan: Option<PlanHash>,
}

fn yes() -> bool {
    true
}

/// The purge of one room of a run: its parameters in the ledger.
#[derive(Serialize, Deserialize)]
pub(super) struct RoomPurge {
    #[serde(flatten)]
    pub(super) request: Request,
    #[serde(flatten)]
    pub(super) run: RetentionRun,
}

/// The same with its room: all of its job.
struct RoomOfRun(RoomId, RoomPurge);

impl RoomPurge {
    pub(super) fn of_record(job: &JobRecord) -> Option<Box<dyn Work>> {
        let Subject::Room(room) = &job.subject else {
            return None;
        };
        let purge = Self::deserialize(&job.params).ok()?;
        Some(Box::new(RoomOfRun(room.clone(), purge)))
    }
}

impl Work for RoomOfRun {
    fn run(&self, on: &Runner<'_>, guard: JobGuard) {
        let Self(room, purge) = self;
        on.shared.run_one(guard, |guard, is_stopping| {
            on.shared.finish_room_purge(guard, room, purge, is_stopping)
        });
    }
}

/// Why a run that was interrupted does not go on.
pub(super) const NO_LONGER_WANTED: &str = "interrupted, and not taken up again: retention is no longer enabled, or no job of the configuration has these lifetimes";

impl RetentionRun {
    fn is_still_wanted(self, config: &Config) -> bool {
        let retention = &config.retention;
        !self.scheduled || (retention.enabled && retention.ranges().contains(&self.range))
    }

    /// As [`Shared::recheck`].
    pub(super) fn recheck(
        self,
        db: &Db,
        config: &Config,
        room: &RoomId,
        request: &Request,
        now: Millis,
    ) -> Result<Option<Request>, Error> {
        if !self.is_still_wanted(config) {
            log::info!("room {room}: {NO_LONGER_WANTED}");
            return Ok(None);
        }
        let decided = Decided {
            point: request.point,
            cut_off: request
                .keep_received_after
                .map_or(Millis(i64::MAX), |after| after + Millis(1)),
        };
        let recheck = retention::recheck(db, &config.retention, &self.range, room, decided, now)?;
        Ok(match recheck {
            Recheck::AsDecided => Some(request.clone()),
            Recheck::Earlier(decided, expiry) => {
                log::info!("room {room}: its messages stay longer by now, so less of it goes");
                Some(Request {
                    point: decided.point,
                    keep_received_after: Some(decided.cut_off - Millis(1)),
                    expiry: Some(expiry),
                    ..request.clone()
                })
            }
            Recheck::LeftAlone(reason) => {
                log::info!(
                    "room {room}: nothing of it goes any more: {}",
                    reason.in_words()
                );
                None
            }
        })
    }
}

impl Shared {
    /// Whether the configuration of now still asks for a run, where it was the configuration that did.
    pub(super) fn is_still_wanted(&self, run: RetentionRun) -> bool {
        run.is_still_wanted(&self.config)
    }

    /// What of a purge of a run still is to be done by the policy and the configuration of now; `None`: nothing.
    pub(super) fn recheck(
        &self,
        run: RetentionRun,
        room: &RoomId,
        request: &Request,
        now: Millis,
    ) -> Result<Option<Request>, Error> {
        self.with_reader(|db| run.recheck(db, &self.config, room, request, now))
    }

    /// Goes on with the purge of a room that an earlier process began, as far as that still is to be done; what it has
    /// left behind is cleaned up in any case.
    pub(super) fn finish_room_purge(
        &self,
        guard: &JobGuard,
        room: &RoomId,
        purge: &RoomPurge,
        is_stopping: &(dyn Fn() -> bool + Sync),
    ) -> Result<String, Error> {
        let now = self.config.clock.now();
        // Up to there nothing goes.
        let nothing = Request {
            point: Point {
                topological: i64::MIN,
                stream: 0,
            },
            ..purge.request.clone()
        };
        let request = self.recheck(purge.run, room, &purge.request, now)?;
        let request = request.unwrap_or(nothing);
        let progress = purge::run(&mut self.job_context(guard, is_stopping)?, &request)?;
        Ok(format!(
            "{} deleted",
            count(progress.events_deleted, "event")
        ))
    }

    /// Refuses what depends on age while the clock may be ahead.
    pub(super) fn refuse_clock_ahead(&self) -> Result<(), Error> {
        let config = &self.config;
        if !config.check_clock {
            return Ok(());
        }
        let accepted = |job: &JobRecord| {
            job.kind == RETENTION.name && job.progress["clock_accepted"] == Value::Bool(true)
        };
        let jobs = self.register.ledger().list()?;
        let ended = jobs.iter().filter(|job| accepted(job));
        let noted = ended.filter_map(|job| job.ended_ms).max();
        self.with_reader(|db| {
            retention::refuse_clock_ahead(db, &*config.clock, config.clock_tolerance, noted)
        })
    }
}
