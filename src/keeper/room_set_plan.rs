//! What a set of rooms would come to: the plan of every room as its own command has it, and sums.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::deletion::{DELETE_ROOM, PURGE_ROOM, SHUTDOWN_AND_PURGE_ROOM};
use super::estimate::rate;
use super::kind::JobKind;
use super::purge_history::PURGE_HISTORY;
use super::retention::RETENTION;
use super::room_set::{Action, ROOM_SET, SetRequest};
use super::rooms::{self, Selected};
use super::viewer::recorded_jobs;
use super::{Keeper, PurgeOptions, Viewer, ownership};
use crate::config::Config;
use crate::deletion::Request;
use crate::error::Error;
use crate::ids::RoomId;
use crate::job::MediaFate;
use crate::plan_hash::{Part, PlanDigest, PlanHash, RoomDigest};
use crate::point::PurgePoint;
use crate::rooms::{Summary, Totals};
use crate::store::event_rows::RowCounts;
use crate::store::space;
use crate::time::Millis;
use crate::{deletion, purge};

/// What would be done with one room.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum RoomPlan {
    /// Its history would be purged.
    Purge(purge::Plan),
    /// It would be deleted.
    Deletion(deletion::Plan),
}

impl RoomPlan {
    /// The room.
    pub fn room_id(&self) -> &RoomId {
        match self {
            Self::Purge(plan) => &plan.room_id,
            Self::Deletion(plan) => &plan.room_id,
        }
    }

    /// Rows that would be removed, by table.
    pub fn rows_removed(&self) -> &RowCounts {
        match self {
            Self::Purge(plan) => &plan.rows_removed,
            Self::Deletion(plan) => &plan.rows_removed,
        }
    }

    /// Users of this server that would be moved out.
    pub fn people_to_move(&self) -> usize {
        match self {
            Self::Purge(_) => 0,
            Self::Deletion(plan) => plan.users_to_move.len(),
        }
    }
}

/// A room of a set of which nothing would go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomLeftAlone {
    /// The room.
    pub room_id: RoomId,
    /// Why.
    pub why: String,
    /// The same for programs.
    pub code: String,
}

/// One room of a plan, as it is told.
pub type PlannedRoom = Result<RoomPlan, RoomLeftAlone>;

/// Sums over the rooms of a set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SetTotals {
    /// Rooms that would be purged or deleted.
    pub rooms: i64,
    /// Rooms that are meant and would be left alone.
    pub rooms_left_alone: i64,
    /// Events that would go.
    pub events: i64,
    /// Rows of all tables that would go.
    pub rows: i64,
    /// State groups that would go.
    pub state_groups: i64,
    /// Users of this server that would be moved out, counted once for each room.
    pub people_to_move: i64,
    /// Whether media go with the messages: which of them is found out once, when all rooms have gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub media_not_counted: bool,
    /// Bytes that would be free afterwards, estimated.
    pub estimated_bytes: i64,
    /// Bytes that the database takes now.
    pub database_bytes: i64,
    /// Bytes that it would take after `reclaim`, estimated.
    pub bytes_after_reclaim: i64,
    /// Rows a second that earlier jobs of this sort removed here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_per_second: Option<i64>,
    /// Seconds that it would take at that rate; nothing where none was measured here yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<i64>,
}

impl SetTotals {
    fn add(&mut self, plan: &RoomPlan, room: &Summary) {
        let rows = plan.rows_removed();
        let of = |table: &str| rows.get(table).copied().unwrap_or(0);
        self.rooms += 1;
        self.events += of("events");
        self.rows += rows.values().sum::<i64>();
        self.state_groups += of("state_groups");
        self.people_to_move += i64::try_from(plan.people_to_move()).unwrap_or(i64::MAX);
        let share = |bytes: i64, part: i64, whole: i64| {
            bytes as f64 * (part as f64 / whole.max(1) as f64).min(1.0)
        };
        let freed = share(room.bytes - room.state_bytes, of("events"), room.events)
            + share(room.state_bytes, of("state_groups_state"), room.state_rows);
        self.estimated_bytes = self.estimated_bytes.saturating_add(freed as i64);
    }
}

/// What a set would come to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SetPlan {
    /// The plans of the first rooms, the largest room first.
    pub rooms: Vec<RoomPlan>,
    /// The first rooms that would be left alone.
    pub left_alone: Vec<RoomLeftAlone>,
    /// How many of both are not told; they are in the sums.
    pub rooms_not_told: i64,
    /// Sums over all rooms.
    pub totals: SetTotals,
    /// What binds a set to this plan.
    pub plan: PlanHash,
}

/// The plans of a set's rooms by their digests, or why a room is left alone.
type Digests = BTreeMap<RoomId, Result<RoomDigest, &'static str>>;

impl Keeper {
    /// What a set of rooms would come to now, with no more than `most` rooms told one by one. Reads only.
    ///
    /// # Errors
    /// As [`Keeper::start_set`]; those of the database. What stops one room is told of that room.
    pub fn plan_set(&self, request: &SetRequest, most: usize) -> Result<SetPlan, Error> {
        let shared = &self.shared;
        request.validate(&shared.config)?;
        let now = shared.config.clock.now();
        let selected = shared.selected(&request.selectors, now)?;
        let (kinds, action) = does_the_same(&request.action_at(now, &shared.config.admin_user));
        let rate = rate(&shared.register.ledger().list()?, kinds, action);
        let viewer = Viewer::open(shared.config.clone())?;
        let mut plan = SetPlan {
            rooms: Vec::new(),
            left_alone: Vec::new(),
            rooms_not_told: 0,
            totals: SetTotals::default(),
            plan: PlanDigest::new(None).hash(),
        };
        let is_busy = |room: &RoomId| shared.register.is_busy(room);
        let each = &mut |room| {
            if self.is_stopping() {
                return Err(Error::Stopping);
            }
            let told = plan.rooms.len() + plan.left_alone.len();
            match room {
                _ if told >= most => plan.rooms_not_told += 1,
                Ok(room) => plan.rooms.push(room),
                Err(room) => plan.left_alone.push(room),
            }
            Ok(())
        };
        (plan.totals, plan.plan) =
            viewer.plan_rooms(request, now, selected, rate, &is_busy, each)?;
        Ok(plan)
    }
}

/// The rooms that are meant, as [`Keeper::start_set`] would choose them now, and the sums over all rooms of the server.
/// Reads only.
///
/// # Errors
/// As [`Keeper::start_set`].
pub fn rooms_of_set(
    config: &Config,
    request: &SetRequest,
) -> Result<(Vec<Summary>, Totals), Error> {
    request.validate(config)?;
    let selected = rooms::selected(config, &request.selectors)?;
    Ok((request.chosen(selected.rooms), selected.server))
}

/// As [`Keeper::plan_set`], for one who keeps nothing at work: `each` hears of every room in turn, so that nothing has to
/// be held. Which rooms are busy is not known.
///
/// # Errors
/// As [`Keeper::plan_set`]; that of `each` ends it.
pub fn plan_set(
    config: &Config,
    request: &SetRequest,
    each: &mut dyn FnMut(PlannedRoom) -> Result<(), Error>,
) -> Result<(SetTotals, PlanHash), Error> {
    request.validate(config)?;
    let now = config.clock.now();
    let selected = rooms::selected(config, &request.selectors)?;
    let jobs = recorded_jobs(config).ok().flatten().unwrap_or_default();
    let (kinds, action) = does_the_same(&request.action_at(now, &config.admin_user));
    let rate = rate(&jobs, kinds, action);
    let viewer = Viewer::open(config.clone())?;
    viewer.plan_rooms(request, now, selected, rate, &|_| false, each)
}

impl Viewer {
    fn plan_rooms(
        &self,
        request: &SetRequest,
        now: Millis,
        selected: Selected,
        rate: Option<f64>,
        is_busy: &dyn Fn(&RoomId) -> bool,
        each: &mut dyn FnMut(PlannedRoom) -> Result<(), Error>,
    ) -> Result<(SetTotals, PlanHash), Error> {
        let action = request.action_at(now, &self.config.admin_user);
        self.refuse_media(action.media())?;
        let mut digests = Digests::new();
        let mut totals = SetTotals {
            media_not_counted: action.media().goes(),
            ..SetTotals::default()
        };
        for room in request.chosen(selected.rooms) {
            let id = &room.room_id;
            let planned = match is_busy(id) {
                true => Err(Error::RoomBusy { room: id.clone() }),
                false => self.plan_room(id, &action, now),
            };
            let told = match planned {
                Ok((plan, digest)) => {
                    totals.add(&plan, &room);
                    digests.insert(id.clone(), Ok(digest.of_room()));
                    Ok(plan)
                }
                Err(e) if is_of_room(&e) => {
                    digests.insert(id.clone(), Err(e.code()));
                    totals.rooms_left_alone += 1;
                    Err(RoomLeftAlone {
                        room_id: id.clone(),
                        why: why(&e),
                        code: e.code().to_owned(),
                    })
                }
                Err(e) => return Err(e),
            };
            each(told)?;
        }
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        totals.database_bytes = bytes(space::database_bytes(&self.db)?);
        let used = totals.database_bytes - bytes(space::reclaimable_bytes(&self.db)?);
        totals.bytes_after_reclaim = (used - totals.estimated_bytes).max(0);
        totals.rows_per_second = rate.map(|rate| rate as i64);
        totals.seconds = rate.map(|rate| (totals.rows as f64 / rate).ceil() as i64);
        let at = request.depends_on_time().then_some(now);
        Ok((totals, self.digest_of_set(&action, &digests, at).hash()))
    }

    fn digest_of_set(&self, action: &Action, rooms: &Digests, at: Option<Millis>) -> PlanDigest {
        let mut digest = self.new_digest(at);
        digest.word(Part::Asked, ROOM_SET.name);
        // The time of a purge is not said: what it comes to is.
        digest.word(Part::Asked, action.verb());
        if action.media().goes() {
            digest.word(Part::Asked, "with_media");
        }
        for (room, planned) in rooms {
            match planned {
                Ok(planned) => digest.room(room, planned),
                Err(code) => {
                    digest.word(Part::Rooms, room.as_str());
                    digest.word(Part::Rooms, code);
                }
            }
        }
        digest
    }

    /// What a set of these rooms would be bound to now.
    ///
    /// # Errors
    /// As [`Keeper::plan_set`].
    pub(super) fn bind_set(
        &self,
        action: &Action,
        rooms: impl Iterator<Item = RoomId>,
        at: Option<Millis>,
        is_busy: &dyn Fn(&RoomId) -> bool,
    ) -> Result<PlanDigest, Error> {
        let now = at.unwrap_or_else(|| self.config.clock.now());
        let mut digests = Digests::new();
        for room in rooms {
            let bound = match is_busy(&room) {
                true => Err(Error::RoomBusy { room: room.clone() }),
                false => self.plan_room(&room, action, now),
            };
            match bound {
                Ok((_, digest)) => digests.insert(room, Ok(digest.of_room())),
                Err(e) if is_of_room(&e) => digests.insert(room, Err(e.code())),
                Err(e) => return Err(e),
            };
        }
        Ok(self.digest_of_set(action, &digests, at))
    }

    /// Without media: what only rooms of the set refer to together no room's own plan could tell, and each would read every text
    /// of the database for that.
    fn plan_room(
        &self,
        room: &RoomId,
        action: &Action,
        now: Millis,
    ) -> Result<(RoomPlan, PlanDigest), Error> {
        match action {
            Action::PurgeHistory {
                before_ts,
                delete_local_events,
                ..
            } => {
                let is_running = || Ok(self.running_homeserver()?.is_some());
                ownership::refuse_own_task(&self.db, room, self.config.clock.now(), is_running)?;
                let options = PurgeOptions {
                    delete_local_events: *delete_local_events,
                    ..PurgeOptions::default()
                };
                let point = PurgePoint::BeforeTs(*before_ts);
                let (mut plan, bound) = self.plan_purge_at(room, &point, options, now, None)?;
                plan.plan = Some(bound.hash());
                Ok((RoomPlan::Purge(plan), bound))
            }
            Action::DeleteRoom { request } => {
                let request = &Request {
                    media: MediaFate::Stay,
                    ..request.clone()
                };
                let (mut plan, bound) = self.plan_deletion_bound(room, request)?;
                plan.plan = Some(bound.hash());
                Ok((RoomPlan::Deletion(plan), bound))
            }
        }
    }
}

/// Whether an error is of one room, and others may be dealt with.
pub(super) fn is_of_room(e: &Error) -> bool {
    !matches!(
        e,
        Error::Store { .. }
            | Error::NoSpace(_)
            | Error::Stopping
            | Error::Cancelled
            | Error::Bug(_)
            | Error::ReadTooLong
            | Error::LedgerLocked(_)
    )
}

/// Why a room is left alone, in words that are true of a set.
pub(super) fn why(e: &Error) -> String {
    match e {
        Error::NothingThatOld => "nothing in it is that old".to_owned(),
        Error::RoomBusy { .. } => "another job has it".to_owned(),
        e => e.to_string(),
    }
}

/// What jobs do the same as this, by their kinds and by what a set of rooms calls it.
fn does_the_same(action: &Action) -> (&'static [&'static JobKind], &'static str) {
    match action {
        Action::PurgeHistory { .. } => (&PURGES, "purge_history"),
        Action::DeleteRoom { .. } => (&DELETIONS, "delete_room"),
    }
}

/// Kinds of jobs that purge histories.
pub(super) const PURGES: [&JobKind; 2] = [&PURGE_HISTORY, &RETENTION];

/// Kinds of jobs that delete rooms.
pub(super) const DELETIONS: [&JobKind; 3] = [&SHUTDOWN_AND_PURGE_ROOM, &DELETE_ROOM, &PURGE_ROOM];
