//! Retention on the landing: plans.

use super::{Keeper, Viewer};
use crate::error::Error;
use crate::ids::RoomId;
use crate::policy::LifetimeRange;
use crate::purge::{self, Request};
use crate::retention::{self, Due, Exact, Plan};

/// What retention asks of the purge of one room.
fn request(plan: &Plan, due: &Due) -> Request {
    Request {
        point: due.point,
        delete_local_events: true,
        keep_received_after: plan.keep_received_after,
    }
}

impl Keeper {
    /// What a retention run of this range would do now: every room with its policy and what would go, or why it is
    /// left alone. With `exact` each purge is counted row by row, which takes as long as it sounds. Reads only.
    pub fn plan_retention(&self, range: LifetimeRange, exact: bool) -> Result<Plan, Error> {
        let viewer = Viewer::open(self.shared.config.clone())?;
        viewer.plan_retention_beside(range, exact, &|room| self.shared.register.is_busy(room))
    }
}

impl Viewer {
    /// As [`Keeper::plan_retention`], without knowing which rooms are busy.
    pub fn plan_retention(&self, range: LifetimeRange, exact: bool) -> Result<Plan, Error> {
        self.plan_retention_beside(range, exact, &|_| false)
    }

    fn plan_retention_beside(
        &self,
        range: LifetimeRange,
        exact: bool,
        is_busy: &dyn Fn(&RoomId) -> bool,
    ) -> Result<Plan, Error> {
        let (db, config) = (&self.db, &self.config);
        let now = config.clock.now();
        let mut plan = retention::plan(db, &config.retention, range, now, is_busy)?;
        if exact {
            for at in 0..plan.rooms.len() {
                let due = &plan.rooms[at];
                let request = request(&plan, due);
                let counted = purge::plan(db, &due.room_id, &request, &config.server_name)?;
                let bytes = purge::content_bytes(db, &due.room_id, &request, &config.server_name)?;
                plan.rooms[at].exact = Some(Exact {
                    events: counted.events_deleted,
                    content_bytes: bytes,
                    state_groups: counted.state_groups_freed,
                    rows_removed: counted.rows_removed,
                });
            }
        }
        Ok(plan)
    }
}
