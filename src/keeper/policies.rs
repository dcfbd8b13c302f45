//! The server's own policies: what each would take now, and taking it.
//!
//! A policy is carried out as a set of rooms: one job, with a job for each room. Each room is judged again when its turn
//! comes, by the configuration of that time.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::{Deserialize, Serialize};

use super::room_set::{Action, ROOM_SET, RoomSet, StartedSet};
use super::rooms::load;
use super::{Keeper, Shared, Viewer};
use crate::config::{PolicyStart, PolicyWhat, ServerPolicy};
use crate::deletion::Request;
use crate::error::{Chain, Error};
use crate::ids::RoomId;
use crate::job::{MediaFate, Removes, held};
use crate::jobs::ledger::{Ledger, Subject};
use crate::jobs::register::JobGuard;
use crate::plural::count;
use crate::retention;
use crate::rooms::{Judge, Judged, Selectors, Statistics, Summary, WhyNot, forgotten, summarize};
use crate::store::policies::{self, CutOff};
use crate::store::{removed, sizes};
use crate::time::Millis;

/// What the ledger calls a room that is seen to be forgotten.
const FORGOTTEN: &str = "forgotten ";

/// What one policy would take now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyPlan {
    /// The policy.
    pub policy: ServerPolicy,
    /// The time by which it is judged.
    pub now_ms: Millis,
    /// Rooms that it would take, the largest first.
    pub rooms: Vec<RoomTaken>,
    /// Rooms that it would not take, and why.
    pub left_alone: Vec<RoomNotTaken>,
    /// Events that would go.
    pub events: i64,
    /// The bytes that would be free then, estimated.
    pub estimated_bytes: i64,
    /// People of this server that would be moved out, counted once for each room.
    pub people_to_move: i64,
}

/// A room that a policy takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoomTaken {
    /// The room.
    pub room_id: RoomId,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// From when its period counted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub since_ms: Option<Millis>,
    /// Events that would go.
    pub events: i64,
    /// The bytes they take, estimated.
    pub estimated_bytes: i64,
    /// People of this server that would be moved out.
    pub people_to_move: i64,
}

/// A room that a policy does not take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoomNotTaken {
    /// The room.
    pub room_id: RoomId,
    /// Why.
    pub reason: WhyNot,
    /// Which policy or hold says so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub by: Option<String>,
    /// From when its period counts.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub since_ms: Option<Millis>,
}

/// Asks since when rooms have been seen forgotten.
type Seen<'a> = &'a mut dyn FnMut(&[RoomId]) -> Result<BTreeMap<RoomId, Millis>, Error>;

/// The policies that are asked after.
fn named<'a>(all: &'a [ServerPolicy], name: Option<&str>) -> Result<Vec<&'a ServerPolicy>, Error> {
    let Some(name) = name else {
        return Ok(all.iter().collect());
    };
    let found: Vec<&ServerPolicy> = all.iter().filter(|policy| policy.name == name).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let names: Vec<&str> = all.iter().map(|policy| policy.name.as_str()).collect();
    Err(Error::bad(
        "M_INVALID_PARAM",
        match names.is_empty() {
            true => format!(
                "there is no policy {name}: the configuration has none (roomkeeper.policies)"
            ),
            false => format!("there is no policy {name}; there are {}", names.join(", ")),
        },
    ))
}

/// Rooms as policies judge them, all at one moment.
struct Judgement {
    policies: Vec<(ServerPolicy, Vec<Judged>)>,
    /// The newest event of that moment, by its stream ordering.
    newest_event: i64,
    /// Rooms of which something else is to be kept now.
    changed: Vec<RoomId>,
}

impl Viewer {
    fn judge(
        &self,
        which: &[&ServerPolicy],
        now: Millis,
        kept: &mut Statistics,
        seen: Seen<'_>,
    ) -> Result<Judgement, Error> {
        let config = &self.config;
        self.db.read("judge rooms by the policies", |db| {
            let changed = kept.refresh(db)?;
            let rooms = summarize(db, kept, &config.server_name)?;
            let asks = |policy: &ServerPolicy| policy.start == PolicyStart::LastForget;
            let first_seen = match config.policies.iter().any(asks) {
                true => seen(&forgotten(&rooms))?,
                false => BTreeMap::new(),
            };
            let of_left_rooms = config.retention.of_left_rooms;
            let judge = Judge::new(
                db,
                (&rooms, kept),
                &config.policies,
                &first_seen,
                of_left_rooms,
                now,
            )?;
            let mut policies = Vec::new();
            for policy in which {
                policies.push(((*policy).clone(), judge.judge(policy)?));
            }
            Ok(Judgement {
                policies,
                newest_event: removed::greatest_stream_ordering(db)?.unwrap_or(i64::MIN),
                changed,
            })
        })
    }

    /// What the server's own policies (`roomkeeper.policies`), or the one of this name, would take now, and why they leave
    /// each other room alone. Which rooms are busy, and since when rooms are forgotten where another roomkeeper has the
    /// ledger, is not known. Reads only.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for a name that no policy has, or a policy that names a room which is not known.
    pub fn plan_policies(&self, name: Option<&str>) -> Result<Vec<PolicyPlan>, Error> {
        let ledger = &self.config.ledger;
        let ledger = ledger
            .is_file()
            .then(|| Ledger::open(ledger).ok())
            .flatten();
        let mut kept = ledger.as_ref().map(load).unwrap_or_default();
        let noted = ledger.map(|ledger| ledger.seen(FORGOTTEN)).transpose()?;
        let mut seen = |_: &[RoomId]| {
            let noted = noted.iter().flatten();
            Ok(noted
                .map(|(room, at)| (RoomId::new(room.clone()), *at))
                .collect())
        };
        let now = self.config.clock.now();
        let (plans, _) = self.plan_policies_at(name, now, &mut kept, &mut seen, &|_| false)?;
        Ok(plans)
    }

    /// With the rooms of which something else is to be kept now.
    fn plan_policies_at(
        &self,
        name: Option<&str>,
        now: Millis,
        kept: &mut Statistics,
        seen: Seen<'_>,
        is_busy: &dyn Fn(&RoomId) -> bool,
    ) -> Result<(Vec<PolicyPlan>, Vec<RoomId>), Error> {
        let which = named(&self.config.policies, name)?;
        // Whether an earlier one takes a room is known when all have been asked.
        let all = named(&self.config.policies, None)?;
        let judged = self.judge(&all, now, kept, seen)?;
        let own: BTreeSet<RoomId> = policies::rooms_with_own_tasks(&self.db, now)?
            .into_iter()
            .collect();
        let mut taken: BTreeMap<RoomId, String> = BTreeMap::new();
        let mut plans = Vec::new();
        for (policy, judged) in judged.policies {
            let plan = self.plan_policy(&policy, judged, now, &mut taken, &own, is_busy)?;
            if which.iter().any(|asked| asked.name == policy.name) {
                plans.push(plan);
            }
        }
        Ok((plans, judged.changed))
    }

    fn plan_policy(
        &self,
        policy: &ServerPolicy,
        judged: Vec<Judged>,
        now: Millis,
        taken: &mut BTreeMap<RoomId, String>,
        own: &BTreeSet<RoomId>,
        is_busy: &dyn Fn(&RoomId) -> bool,
    ) -> Result<PolicyPlan, Error> {
        let mut plan = PolicyPlan {
            policy: policy.clone(),
            now_ms: now,
            rooms: Vec::new(),
            left_alone: Vec::new(),
            events: 0,
            estimated_bytes: 0,
            people_to_move: 0,
        };
        let removes = match policy.what {
            PolicyWhat::Room => Removes::Room,
            PolicyWhat::Messages => Removes::History,
        };
        let holds = self.holds();
        let mut rooms = Vec::new();
        for Judged {
            room,
            since,
            why_not,
        } in judged
        {
            let id = &room.room_id;
            let why_not = match why_not {
                Some(why) => Some(why),
                None if is_busy(id) => Some((WhyNot::Busy, None)),
                None if own.contains(id) => Some((WhyNot::BusyInHomeserver, None)),
                None => match taken.get(id) {
                    Some(by) => Some((WhyNot::AnotherPolicy, Some(by.clone()))),
                    None => match held::refuse(&self.db, id, &holds, removes) {
                        Ok(_) => None,
                        Err(Error::Held(_)) => Some((WhyNot::Held, None)),
                        Err(e) => return Err(e),
                    },
                },
            };
            match why_not {
                None => rooms.push((room, since)),
                Some((reason, by)) => plan.left_alone.push(RoomNotTaken {
                    room_id: room.room_id,
                    reason,
                    by,
                    since_ms: since,
                }),
            }
        }
        match policy.what {
            PolicyWhat::Room => {
                for (room, since) in rooms {
                    taken.insert(room.room_id.clone(), policy.name.clone());
                    plan.add(RoomTaken {
                        room_id: room.room_id,
                        name: room.name,
                        since_ms: since,
                        events: room.events,
                        estimated_bytes: room.bytes,
                        people_to_move: room.joined_local_members,
                    });
                }
            }
            PolicyWhat::Messages => self.count_messages(policy, rooms, now, &mut plan)?,
        }
        plan.rooms
            .sort_by(|a, b| (b.estimated_bytes, &a.room_id).cmp(&(a.estimated_bytes, &b.room_id)));
        plan.left_alone
            .sort_by(|a, b| (a.reason, &a.room_id).cmp(&(b.reason, &b.room_id)));
        Ok(plan)
    }

    fn count_messages(
        &self,
        policy: &ServerPolicy,
        rooms: Vec<(Summary, Option<Millis>)>,
        now: Millis,
        plan: &mut PolicyPlan,
    ) -> Result<(), Error> {
        let mut names: BTreeMap<RoomId, Option<String>> = rooms
            .into_iter()
            .map(|(room, _)| (room.room_id, room.name))
            .collect();
        let cut_off = CutOff {
            ts: now - policy.after,
            rooms: names.keys().cloned().collect(),
        };
        let (cuts, bytes_of_one) = self.db.read("plan the retention of rooms", |db| {
            let cuts = policies::cuts(db, &[cut_off], now)?;
            Ok((cuts, sizes::bytes_of_one_event(db)?))
        })?;
        for cut in cuts {
            let Some(name) = names.remove(&cut.room) else {
                continue;
            };
            let events = (cut.below - cut.state - cut.redactions - cut.young).max(0);
            let is_above_all = cut
                .deepest_extremity
                .is_some_and(|depth| depth < cut.anchor.topological);
            let reason = match events {
                _ if is_above_all => WhyNot::WouldEmptyRoom,
                0 if cut.state_in_timeline == 0 => WhyNot::NothingToPurge,
                _ => {
                    plan.add(RoomTaken {
                        room_id: cut.room,
                        name,
                        since_ms: None,
                        events,
                        estimated_bytes: events.saturating_mul(bytes_of_one),
                        people_to_move: 0,
                    });
                    continue;
                }
            };
            plan.leave(cut.room, reason);
        }
        for room in names.into_keys() {
            plan.leave(room, WhyNot::NothingThatOld);
        }
        Ok(())
    }
}

impl PolicyPlan {
    fn add(&mut self, room: RoomTaken) {
        self.events += room.events;
        self.estimated_bytes = self.estimated_bytes.saturating_add(room.estimated_bytes);
        self.people_to_move += room.people_to_move;
        self.rooms.push(room);
    }

    fn leave(&mut self, room_id: RoomId, reason: WhyNot) {
        self.left_alone.push(RoomNotTaken {
            room_id,
            reason,
            by: None,
            since_ms: None,
        });
    }
}

impl Keeper {
    /// What the server's own policies, or the one of this name, would take now, and why they leave each other room alone.
    /// Changes nothing of the homeserver's.
    ///
    /// # Errors
    /// As [`Viewer::plan_policies`].
    pub fn plan_policies(&self, name: Option<&str>) -> Result<Vec<PolicyPlan>, Error> {
        let shared = &self.shared;
        shared.plan_policies(name, shared.config.clock.now())
    }

    /// Carries out the policy of this name now, as one job with a job for each room; returns at once. Where it takes no room
    /// there is no job.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for a name that no policy has; [`Error::RoomBusy`] while the same policy is at work;
    /// [`Error::Refused`] while the clock may be ahead; [`Error::QueueFull`], [`Error::Stopping`]. Nothing was started then.
    pub fn run_policy(&self, name: &str) -> Result<StartedSet, Error> {
        if self.is_stopping() {
            return Err(Error::Stopping);
        }
        if self.plan.is_some() {
            return Err(Error::bad(
                "M_INVALID_PARAM",
                "no plan binds a policy: each of its rooms is judged when its turn comes",
            ));
        }
        let shared = &self.shared;
        let policy = named(&shared.config.policies, Some(name))?[0];
        match shared.enqueue_policy(policy, shared.config.clock.now(), self.asked_by())? {
            None => Ok(StartedSet {
                job_id: None,
                rooms: 0,
            }),
            Some((guard, set)) => {
                let (id, rooms) = (guard.id().clone(), set.rooms);
                self.hand_over(guard, Box::new(set))?;
                Ok(StartedSet {
                    job_id: Some(id),
                    rooms,
                })
            }
        }
    }
}

impl Shared {
    /// Since when rooms have been seen forgotten: those that were not, from now on. By a clock that stood back it is the time of
    /// the newest event.
    fn note_forgotten(
        &self,
        rooms: &[RoomId],
        now: Millis,
    ) -> Result<BTreeMap<RoomId, Millis>, Error> {
        let tolerance = self.config.clock_tolerance;
        let newest = self.with_reader(|db| retention::newest_arrival(db, tolerance))?;
        let names: Vec<String> = rooms.iter().map(ToString::to_string).collect();
        let at = newest.map_or(now, |newest| newest.max(now));
        let seen = self.register.ledger().first_seen(FORGOTTEN, &names, at)?;
        Ok(rooms.iter().cloned().zip(seen).collect())
    }

    /// Notes which rooms are forgotten now, where a policy asks since when.
    pub(super) fn look_for_forgotten(&self) {
        let policies = &self.config.policies;
        let asks = |policy: &&ServerPolicy| policy.start == PolicyStart::LastForget;
        let Some(policy) = policies.iter().find(asks) else {
            return;
        };
        if let Err(e) = self.judge(policy, self.config.clock.now()) {
            log::warn!("the policy {}: {}", policy.name, Chain(&e));
        }
    }

    /// Every room, as this policy judges it now, and the newest event of that moment.
    fn judge(&self, policy: &ServerPolicy, now: Millis) -> Result<(Vec<Judged>, i64), Error> {
        let viewer = self.viewer()?;
        self.with_statistics(|kept| {
            let mut seen = |rooms: &[RoomId]| self.note_forgotten(rooms, now);
            let mut judged = viewer.judge(&[policy], now, kept, &mut seen)?;
            self.keep_statistics(kept, std::mem::take(&mut judged.changed));
            let rooms = judged.policies.pop().map(|(_, rooms)| rooms);
            Ok((rooms.unwrap_or_default(), judged.newest_event))
        })
    }

    /// As [`Viewer::plan_policies`], by this time and what is known here besides.
    fn plan_policies(&self, name: Option<&str>, now: Millis) -> Result<Vec<PolicyPlan>, Error> {
        let viewer = self.viewer()?;
        let is_busy = |room: &RoomId| self.register.is_busy(room);
        self.with_statistics(|kept| {
            let mut seen = |rooms: &[RoomId]| self.note_forgotten(rooms, now);
            let (plans, changed) = viewer.plan_policies_at(name, now, kept, &mut seen, &is_busy)?;
            self.keep_statistics(kept, changed);
            Ok(plans)
        })
    }

    /// The rooms that the policy of a set takes by the configuration of now, and the newest event of that moment; none where
    /// the policy is not there any more, or does something else.
    pub(super) fn rooms_of_policy(
        &self,
        name: &str,
        action: &Action,
        decided: Millis,
    ) -> Result<(HashSet<RoomId>, i64), Error> {
        let Some(policy) = self.policy_of_now(name, action) else {
            log::info!(
                "the policy {name} is not there any more, or is another: nothing goes by it"
            );
            return Ok((HashSet::new(), i64::MAX));
        };
        let now = self.config.clock.now().min(decided);
        let (judged, newest) = self.judge(policy, now)?;
        let taken = judged.into_iter().filter(|room| room.why_not.is_none());
        Ok((taken.map(|room| room.room.room_id).collect(), newest))
    }

    pub(super) fn policy_of_now(&self, name: &str, action: &Action) -> Option<&ServerPolicy> {
        let mut policies = self.config.policies.iter();
        let policy = policies.find(|policy| policy.name == name)?;
        let is_same = match action {
            Action::DeleteRoom { .. } => policy.what == PolicyWhat::Room,
            Action::PurgeHistory { .. } => policy.what == PolicyWhat::Messages,
        };
        is_same.then_some(policy)
    }

    /// Chooses the rooms that a policy takes now, and writes them down as a job; nothing where it takes none.
    pub(super) fn enqueue_policy(
        &self,
        policy: &ServerPolicy,
        now: Millis,
        asked_by: Option<&str>,
    ) -> Result<Option<(JobGuard, RoomSet)>, Error> {
        self.refuse_clock_ahead()?;
        // What goes is what the plan of now says, and no room more.
        let plan = self.plan_policies(Some(&policy.name), now)?.pop();
        let rooms = plan.map(|plan| plan.rooms).unwrap_or_default();
        if rooms.is_empty() {
            log::info!("the policy {} takes no room now", policy.name);
            return Ok(None);
        }
        let set = RoomSet {
            action: match policy.what {
                PolicyWhat::Room => Action::DeleteRoom {
                    request: Request {
                        requester: Some(self.config.admin_user.clone()),
                        ..Request::default()
                    },
                },
                PolicyWhat::Messages => Action::PurgeHistory {
                    before_ts: now - policy.after,
                    delete_local_events: true,
                    media: MediaFate::Stay,
                },
            },
            selectors: Selectors::default(),
            rooms: i64::try_from(rooms.len()).unwrap_or(i64::MAX),
            decided_ms: now,
            policy: Some(policy.name.clone()),
        };
        let params = serde_json::to_value(&set).map_err(|e| Error::Bug(e.to_string()))?;
        self.release_reserve_if_short();
        let subject = Subject::Rooms(format!("the policy {}", policy.name));
        let guard = self
            .register
            .enqueue_for(asked_by, ROOM_SET.name, &subject, params)
            .map_err(|e| self.tell_full_disk(e, None))?;
        let rooms: Vec<(RoomId, i64)> = rooms
            .into_iter()
            .map(|room| (room.room_id, room.events))
            .collect();
        if let Err(e) = self.register.ledger().insert_room_set(guard.id(), &rooms) {
            guard.cancel_enqueue();
            return Err(self.tell_full_disk(e, None));
        }
        self.note_the_database(&guard);
        log::info!("{guard} is queued: {}", count(set.rooms, "room"));
        Ok(Some((guard, set)))
    }
}
