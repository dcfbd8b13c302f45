//! What a retention job would do now: every room, with its policy, its cut-off and what would go, or why it is left
//! alone. It reads only, on one snapshot.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::RoomId;
use crate::plan_hash::PlanHash;
use crate::point::Point;
use crate::policy::{Decision, Lifetime, LifetimeRange, Policy, Retention};
use crate::store::db::Db;
use crate::store::event_rows::RowCounts;
use crate::store::expiry::Expiry;
use crate::store::left_rooms;
use crate::store::policies::{self, CutOff, RoomCut, RoomPolicy, Said};
use crate::store::sizes;
use crate::time::Millis;

/// What a retention job would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The lifetimes it takes.
    #[serde(flatten)]
    pub range: LifetimeRange,
    /// The time by which it judges.
    pub now_ms: Millis,
    /// Rooms that would be purged, those with a policy of their own first.
    pub rooms: Vec<Due>,
    /// Rooms that would not be, and why.
    pub left_alone: Vec<LeftAlone>,
    /// Events that would go, in all rooms.
    pub events: i64,
    /// The bytes they take in the database, as far as can be told from its average event.
    pub estimated_bytes: i64,
    /// What binds a run to this plan, where every purge of it was counted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub plan: Option<PlanHash>,
}

/// A room that would be purged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Due {
    /// The room.
    pub room_id: RoomId,
    /// Its policy, if it has one.
    pub policy: Option<Policy>,
    /// How long its messages stay, whose word that is, and which limit changed it.
    #[serde(flatten)]
    pub lifetime: Lifetime,
    /// What was received before this has expired.
    pub cut_off_ms: Millis,
    /// The point up to which its history goes; what lies there stays.
    #[serde(rename = "token", with = "token")]
    pub point: Point,
    /// What has expired, as numbers of this database.
    #[serde(skip)]
    pub(crate) expiry: Option<Expiry>,
    /// Events that would go.
    pub events: i64,
    /// The bytes they take, as in [`Plan::estimated_bytes`].
    pub estimated_bytes: i64,
    /// What stays although one might expect it to go.
    pub stays: Stays,
    /// The holds that keep some of it, by name.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub holds: Vec<String>,
    /// What was counted row by row, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exact: Option<Exact>,
}

/// Events that stay behind, by reason: what the promise of a policy does not cover.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stays {
    /// State events below the cut: they leave the timeline and stay in the database (P-5).
    pub state: i64,
    /// 1: a room's last expired event stays.
    pub anchor: i64,
    /// Expired events at the cut's depth or above it, the anchor apart.
    pub at_or_above_the_cut: i64,
    /// Redactions whose target stays, which would read as before without them (P-21).
    pub redactions: i64,
    /// Messages below the cut that have not expired.
    pub not_expired: i64,
    /// Events below the cut that are held.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub held: i64,
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// What the purge of a room would remove, counted row by row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Exact {
    /// Events that would be deleted.
    pub events: i64,
    /// Bytes of these events' JSON.
    pub content_bytes: i64,
    /// State groups that would go.
    pub state_groups: i64,
    /// Rows that would be removed, by table.
    pub rows_removed: RowCounts,
}

/// A room that would not be purged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeftAlone {
    /// The room.
    pub room_id: RoomId,
    /// Its policy, if it has one.
    pub policy: Option<Policy>,
    /// Why.
    pub reason: Reason,
    /// The lifetime that is not carried out because it is so short.
    #[serde(flatten, skip_serializing_if = "Option::is_none", default)]
    pub lifetime: Option<Lifetime>,
    /// Messages that have expired and stay all the same: because the room's newest events lie below them (P-50), or
    /// because everybody of this server has left (R-54; expired or not).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expired: Option<i64>,
    /// The holds that keep it, by name.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub holds: Vec<String>,
}

/// Why a room is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Neither the room nor the server sets a `max_lifetime`.
    NoMaxLifetime,
    /// Its policy cannot be read.
    UnreadablePolicy,
    /// Its lifetime is below an hour, and nobody said that this is meant.
    LifetimeTooShort,
    /// Its lifetime is not one that this job takes.
    OutOfRange,
    /// Nothing in it is old enough.
    NothingThatOld,
    /// Everything below the cut stays.
    NothingToPurge,
    /// The cut lies above all of the room's newest events, so that none would stay (P-2).
    WouldEmptyRoom,
    /// Nobody of this server is in it any more.
    LeftByAll,
    /// A job of ours has the room (L-3).
    Busy,
    /// The homeserver itself is purging or deleting it (L-8).
    BusyInHomeserver,
    /// A hold keeps all that would go.
    Held,
}

impl Reason {
    /// As a sentence for people.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::UnreadablePolicy => {
                "its retention policy (m.room.retention) cannot be read: it should be stated anew"
            }
            Self::LifetimeTooShort => {
                "its lifetime is below an hour; a number without a unit is milliseconds \
                 (roomkeeper.short_lifetimes: true carries it out)"
            }
            Self::NoMaxLifetime => "neither the room nor the server sets a max_lifetime",
            Self::OutOfRange => "its max_lifetime is out of this job's range",
            Self::NothingThatOld => "nothing in it is that old",
            Self::NothingToPurge => "nothing below the cut would go",
            Self::WouldEmptyRoom => {
                "its newest events (forward extremities) lie below what would go, so its old messages stay"
            }
            Self::LeftByAll => {
                "everybody of this server has left it (roomkeeper.retention_of_left_rooms: true takes it)"
            }
            Self::Busy => "another job has it",
            Self::BusyInHomeserver => {
                "the homeserver itself is purging or deleting it, or was when it was stopped (`roomkeeper purge-history` of such a \
                 room says what to do then)"
            }
            Self::Held => "it is held (roomkeeper hold list)",
        }
    }
}

mod token {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::point::Point;

    pub fn serialize<S: Serializer>(point: &Point, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(point)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Point, D::Error> {
        Point::parse(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// Plans a job of `range` at `now`. `is_busy` knows the rooms that a job of ours has.
///
/// The connection must be one that can write temporary tables.
pub fn plan(
    db: &Db,
    retention: &Retention,
    range: LifetimeRange,
    now: Millis,
    is_busy: &dyn Fn(&RoomId) -> bool,
) -> Result<Plan, Error> {
    db.read("plan the retention of rooms", |db| {
        let rooms = policies::of_all_rooms(db)?;
        let own: BTreeSet<RoomId> = policies::rooms_with_own_tasks(db, now)?
            .into_iter()
            .collect();
        let mut plan = Plan {
            range,
            now_ms: now,
            rooms: Vec::new(),
            left_alone: Vec::new(),
            events: 0,
            estimated_bytes: 0,
            plan: None,
        };
        let mut wanted: BTreeMap<RoomId, (Option<Policy>, Lifetime)> = BTreeMap::new();
        let mut rooms = rooms;
        for left in left_rooms::left_rooms(db)? {
            if retention.of_left_rooms {
                let said = left_rooms::last_said(db, &left.room)?;
                rooms.push(RoomPolicy {
                    room: left.room,
                    said,
                });
            } else {
                plan.left_alone.push(LeftAlone {
                    room_id: left.room,
                    policy: None,
                    reason: Reason::LeftByAll,
                    lifetime: None,
                    expired: Some(left.messages),
                    holds: Vec::new(),
                });
            }
        }
        for found in rooms {
            let (room_id, policy) = (found.room, found.said.policy());
            if let Some(lifetime) = policy.and_then(|policy| policy.max_lifetime)
                && lifetime <= Millis(0)
            {
                log::info!(
                    "room {room_id}: its max_lifetime is {}, which counts as not set",
                    lifetime.0
                );
            }
            let mut too_short = None;
            let reason = match retention.evaluate(&range, policy.as_ref()) {
                _ if found.said == Said::Unreadable => Reason::UnreadablePolicy,
                Decision::NoLifetime => Reason::NoMaxLifetime,
                Decision::TooShort(lifetime) => {
                    too_short = Some(lifetime);
                    Reason::LifetimeTooShort
                }
                Decision::OutOfRange(_) => Reason::OutOfRange,
                Decision::Due(_) if is_busy(&room_id) => Reason::Busy,
                Decision::Due(_) if own.contains(&room_id) => Reason::BusyInHomeserver,
                Decision::Due(lifetime) => {
                    wanted.insert(room_id, (policy, lifetime));
                    continue;
                }
            };
            plan.left_alone.push(LeftAlone {
                room_id,
                policy,
                reason,
                lifetime: too_short,
                expired: None,
                holds: Vec::new(),
            });
        }
        let cuts = policies::cuts(db, &cut_offs(&wanted, now), now)?;
        let bytes_of_one = sizes::bytes_of_one_event(db)?;
        for cut in cuts {
            let Some((policy, lifetime)) = wanted.remove(&cut.room) else {
                continue;
            };
            plan.evaluate(cut, policy, lifetime, bytes_of_one);
        }
        for (room_id, (policy, _)) in wanted {
            plan.left_alone.push(LeftAlone {
                room_id,
                policy,
                reason: Reason::NothingThatOld,
                lifetime: None,
                expired: None,
                holds: Vec::new(),
            });
        }
        plan.rooms.sort_by(|a, b| {
            (a.policy.is_none(), &a.room_id).cmp(&(b.policy.is_none(), &b.room_id))
        });
        plan.sort_left_alone();
        Ok(plan)
    })
}

/// Rooms of the same lifetime are cut at the same time.
fn cut_offs(wanted: &BTreeMap<RoomId, (Option<Policy>, Lifetime)>, now: Millis) -> Vec<CutOff> {
    let mut rooms: BTreeMap<Millis, Vec<RoomId>> = BTreeMap::new();
    for (room, (_, lifetime)) in wanted {
        rooms
            .entry(now - lifetime.lifetime)
            .or_default()
            .push(room.clone());
    }
    rooms
        .into_iter()
        .map(|(ts, rooms)| CutOff { ts, rooms })
        .collect()
}

impl Plan {
    fn sort_left_alone(&mut self) {
        self.left_alone
            .sort_by(|a, b| (a.reason, &a.room_id).cmp(&(b.reason, &b.room_id)));
    }

    /// Asks of every room whether it stays because it is held. `judge` may lower what goes of it, and answers the names of
    /// the holds that keep all of it.
    ///
    /// # Errors
    /// Those of `judge`.
    pub(crate) fn leave_held(
        &mut self,
        mut judge: impl FnMut(&mut Due) -> Result<Vec<String>, Error>,
    ) -> Result<(), Error> {
        let mut rooms = Vec::with_capacity(self.rooms.len());
        for mut due in std::mem::take(&mut self.rooms) {
            let (events, bytes) = (due.events, due.estimated_bytes);
            let holds = judge(&mut due)?;
            self.events -= events;
            self.estimated_bytes -= bytes;
            if holds.is_empty() {
                self.events += due.events;
                self.estimated_bytes += due.estimated_bytes;
                rooms.push(due);
                continue;
            }
            self.left_alone.push(LeftAlone {
                room_id: due.room_id,
                policy: due.policy,
                reason: Reason::Held,
                lifetime: None,
                expired: Some(events),
                holds,
            });
        }
        self.rooms = rooms;
        self.sort_left_alone();
        Ok(())
    }

    fn evaluate(
        &mut self,
        cut: RoomCut,
        policy: Option<Policy>,
        lifetime: Lifetime,
        bytes_of_one: i64,
    ) {
        let events = (cut.below - cut.state - cut.redactions - cut.young).max(0);
        let is_above_all = cut
            .deepest_extremity
            .is_some_and(|depth| depth < cut.anchor.topological);
        let reason = match events {
            _ if is_above_all => Some(Reason::WouldEmptyRoom),
            0 if cut.state_in_timeline == 0 => Some(Reason::NothingToPurge),
            _ => None,
        };
        if let Some(reason) = reason {
            self.left_alone.push(LeftAlone {
                room_id: cut.room,
                policy,
                reason,
                lifetime: None,
                expired: (reason == Reason::WouldEmptyRoom).then_some(events),
                holds: Vec::new(),
            });
            return;
        }
        let estimated_bytes = events.saturating_mul(bytes_of_one);
        self.events += events;
        self.estimated_bytes = self.estimated_bytes.saturating_add(estimated_bytes);
        self.rooms.push(Due {
            room_id: cut.room,
            policy,
            lifetime,
            cut_off_ms: self.now_ms - lifetime.lifetime,
            point: cut.anchor,
            expiry: Some(cut.expiry),
            events,
            estimated_bytes,
            stays: Stays {
                state: cut.state,
                anchor: 1,
                at_or_above_the_cut: cut.above,
                redactions: cut.redactions,
                not_expired: cut.young,
                held: 0,
            },
            holds: Vec::new(),
            exact: None,
        });
    }
}
