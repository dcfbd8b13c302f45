//! Which rooms the server's own policies take, and why each other one is not taken.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::selectors::select;
use super::statistics::Statistics;
use super::summary::Summary;
use crate::config::{PolicyStart, PolicyWhat, ServerPolicy};
use crate::error::Error;
use crate::ids::RoomId;
use crate::store::db::Db;
use crate::store::expiry::Search;
use crate::store::policies::{self, Said};
use crate::store::{left_rooms, room_ages, room_statistics};
use crate::time::Millis;

/// Why a policy does not take a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhyNot {
    /// It is not one of those that the policy is for.
    NotMeant,
    /// Its time has not come.
    NotYet,
    /// Nobody can say since when it is as it is.
    UnknownTime,
    /// People of this server are in it, or invited.
    PeopleInIt,
    /// It is a space, in which nothing is ever said, and people of this server are in it.
    SpaceWithPeople,
    /// It has a policy of its own, or one that cannot be read.
    OwnPolicy,
    /// A policy says that it stays for at least so long.
    AtLeast,
    /// An earlier one of the policies takes it.
    AnotherPolicy,
    /// Everybody of this server has left it.
    LeftByAll,
    /// Nothing in it is that old.
    NothingThatOld,
    /// Its newest events lie below what would go (P-2).
    WouldEmptyRoom,
    /// Nothing below the cut would go.
    NothingToPurge,
    /// A job of ours has it.
    Busy,
    /// The homeserver itself is purging or deleting it (L-8).
    BusyInHomeserver,
    /// A hold keeps it.
    Held,
}

impl WhyNot {
    /// As a sentence for people.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::NotMeant => "the policy is not for them",
            Self::NotYet => "their time has not come",
            Self::UnknownTime => "nobody can say since when they are as they are",
            Self::PeopleInIt => {
                "people of this server are in them or invited (even_with_members: true moves them out)"
            }
            Self::SpaceWithPeople => {
                "they are spaces, in which nothing is ever said, and people of this server are in them"
            }
            Self::OwnPolicy => {
                "they have a retention policy of their own, which counts first (override_rooms: true says otherwise)"
            }
            Self::AtLeast => "a policy says that they stay for at least so long",
            Self::AnotherPolicy => "an earlier policy takes them",
            Self::LeftByAll => {
                "everybody of this server has left them (roomkeeper.retention_of_left_rooms: true takes them)"
            }
            Self::NothingThatOld => "nothing in them is that old",
            Self::WouldEmptyRoom => {
                "their newest events (forward extremities) lie below what would go, so their old messages stay"
            }
            Self::NothingToPurge => "nothing below the cut would go",
            Self::Busy => "another job has them",
            Self::BusyInHomeserver => "the homeserver itself is purging or deleting them",
            Self::Held => "they are held (roomkeeper hold list)",
        }
    }
}

/// One room, as a policy judges it.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// The room.
    pub room: Summary,
    /// From when its period counts, as far as that can be said; of messages nothing.
    pub since: Option<Millis>,
    /// Why it is not taken, and who says so; nothing where it is.
    pub why_not: Option<(WhyNot, Option<String>)>,
}

/// The rooms that everybody of this server who left has forgotten: the times of these are asked after.
pub fn forgotten(rooms: &[Summary]) -> Vec<RoomId> {
    let forgotten = rooms.iter().filter(|room| room.is_forgotten());
    forgotten.map(|room| room.room_id.clone()).collect()
}

/// What policies judge by.
pub struct Judge<'a> {
    db: &'a Db,
    search: Search<'a>,
    /// Every room.
    rooms: &'a [Summary],
    statistics: &'a Statistics,
    policies: &'a [ServerPolicy],
    /// Since when rooms have been seen forgotten.
    first_seen: &'a BTreeMap<RoomId, Millis>,
    of_left_rooms: bool,
    now: Millis,
    said: BTreeMap<RoomId, Said>,
    left: BTreeMap<RoomId, Option<i64>>,
    above_gaps: BTreeMap<RoomId, i64>,
}

/// How long a room is as it is.
#[derive(Clone, Copy)]
struct Age {
    since: Option<Millis>,
    /// Nothing where that cannot be told.
    is_over: Option<bool>,
}

impl<'a> Judge<'a> {
    /// # Errors
    /// Those of the database.
    ///
    /// # Locking
    /// Reads the snapshot of `rooms`, which the caller holds.
    pub fn new(
        db: &'a Db,
        (rooms, statistics): (&'a [Summary], &'a Statistics),
        policies: &'a [ServerPolicy],
        first_seen: &'a BTreeMap<RoomId, Millis>,
        of_left_rooms: bool,
        now: Millis,
    ) -> Result<Self, Error> {
        let said = policies::of_all_rooms(db)?.into_iter();
        Ok(Self {
            db,
            search: Search::new(db, now)?,
            rooms,
            statistics,
            policies,
            first_seen,
            of_left_rooms,
            now,
            said: said.map(|of| (of.room, of.said)).collect(),
            left: room_ages::last_leaves(db)?,
            above_gaps: room_ages::above_gaps(db)?,
        })
    }

    /// Every room, as this policy judges it by itself: which others take it is not asked.
    ///
    /// # Errors
    /// [`Error::BadRequest`] where it names a room that is not known.
    pub fn judge(&self, policy: &ServerPolicy) -> Result<Vec<Judged>, Error> {
        let meant = self.meant(policy)?;
        let ages = match policy.what {
            PolicyWhat::Room => self.ages(policy.start, policy.after)?,
            PolicyWhat::Messages => BTreeMap::new(),
        };
        let kept = self.kept_at_least(policy)?;
        let judge = |room: &Summary| {
            let id = &room.room_id;
            let age = ages.get(id);
            let of_policy = |why| Ok(Some((why, None)));
            let why_not = match policy.what {
                _ if !meant.contains(id) => of_policy(WhyNot::NotMeant),
                PolicyWhat::Messages => match self.said.contains_key(id) {
                    false if room.events == 0 => of_policy(WhyNot::NotMeant),
                    false if !self.of_left_rooms => of_policy(WhyNot::LeftByAll),
                    _ => Ok(None),
                },
                PolicyWhat::Room => {
                    let people = room.joined_local_members + room.waiting_local_members;
                    match age.map(|age| age.is_over) {
                        None => of_policy(WhyNot::NotMeant),
                        Some(None) => of_policy(WhyNot::UnknownTime),
                        Some(Some(false)) => of_policy(WhyNot::NotYet),
                        _ if people > 0 && room.space => of_policy(WhyNot::SpaceWithPeople),
                        _ if people > 0 && !policy.even_with_members => {
                            of_policy(WhyNot::PeopleInIt)
                        }
                        _ => Ok(None),
                    }
                }
            };
            let why_not = match why_not? {
                None => match kept.get(id) {
                    Some(by) => Some((WhyNot::AtLeast, Some(by.clone()))),
                    None if !policy.override_rooms && self.has_own_policy(id)? => {
                        Some((WhyNot::OwnPolicy, None))
                    }
                    None => None,
                },
                why => why,
            };
            Ok(Judged {
                room: room.clone(),
                since: age.and_then(|age| age.since),
                why_not,
            })
        };
        self.rooms.iter().map(judge).collect()
    }

    /// The rooms that a policy is for.
    fn meant(&self, policy: &ServerPolicy) -> Result<BTreeSet<RoomId>, Error> {
        let selected = select(self.db, self.rooms.to_vec(), &policy.selectors, self.now);
        let selected = selected.map_err(|e| match e {
            Error::BadRequest { errcode, message } => Error::BadRequest {
                errcode,
                message: format!("the policy {}: {message}", policy.name),
            },
            e => e,
        })?;
        Ok(selected.into_iter().map(|room| room.room_id).collect())
    }

    /// Whether a room says anything of how long its messages stay, of our policies' kind or in a way that we cannot read.
    fn has_own_policy(&self, room: &RoomId) -> Result<bool, Error> {
        let said = match self.said.get(room) {
            Some(said) => *said,
            // A database without the table says nothing of rooms that have no current state.
            None if !self.db.catalog().has("room_retention") => Said::Nothing,
            None => left_rooms::last_said(self.db, room)?,
        };
        Ok(said != Said::Nothing)
    }

    /// The rooms of which, by the word of any policy, nothing of this one's kind may go yet; with the name of that policy.
    fn kept_at_least(&self, of: &ServerPolicy) -> Result<BTreeMap<RoomId, String>, Error> {
        let mut kept = BTreeMap::new();
        for policy in self.policies {
            let Some(least) = policy.at_least else {
                continue;
            };
            let start = match (of.what, policy.what) {
                (PolicyWhat::Room, PolicyWhat::Room) => policy.start,
                // A room is not deleted with messages in it that have to stay.
                (PolicyWhat::Room, PolicyWhat::Messages) => PolicyStart::LastMessage,
                (PolicyWhat::Messages, PolicyWhat::Messages) if least > of.after => {
                    kept.extend(
                        self.meant(policy)?
                            .into_iter()
                            .map(|room| (room, policy.name.clone())),
                    );
                    continue;
                }
                (PolicyWhat::Messages, _) => continue,
            };
            let meant = self.meant(policy)?;
            for (room, age) in self.ages(start, least)? {
                if age.is_over != Some(true) && meant.contains(&room) {
                    kept.insert(room, policy.name.clone());
                }
            }
        }
        Ok(kept)
    }

    /// The rooms that have such a start, and whether a period from it is over.
    fn ages(&self, start: PolicyStart, period: Millis) -> Result<BTreeMap<RoomId, Age>, Error> {
        let ts = self.now - period;
        let last: Vec<(&Summary, Option<i64>)> = match start {
            PolicyStart::LastLeave => {
                let left = self.rooms.iter().filter(|room| room.is_left());
                left.map(|room| (room, self.last_leave(room))).collect()
            }
            PolicyStart::LastForget => {
                let forgotten = self.rooms.iter().filter(|room| room.is_forgotten());
                forgotten
                    .map(|room| (room, self.last_leave(room)))
                    .collect()
            }
            _ => self
                .rooms
                .iter()
                .map(|room| (room, self.last_message(&room.room_id)))
                .collect(),
        };
        let streams: Vec<i64> = last.iter().filter_map(|(_, stream)| *stream).collect();
        let expiry = self.search.before(ts)?;
        let before = room_ages::came_before(self.db, &streams, &expiry)?;
        let stamps = room_ages::stamps(self.db, &streams)?;
        let joined: BTreeSet<RoomId> = match start {
            PolicyStart::LastMessage => {
                room_statistics::joined_since(self.db, expiry.live_before - 1)?
                    .into_iter()
                    .collect()
            }
            _ => BTreeSet::new(),
        };
        let ages = last.into_iter().map(|(room, stream)| {
            let stamp = stream.and_then(|stream| stamps.get(&stream).copied());
            if start == PolicyStart::LastForget {
                // Who came back, left and forgot again between two looks forgot it then.
                let has_left = stream.is_none_or(|stream| before.contains(&stream));
                let seen = self.first_seen.get(&room.room_id).copied();
                let age = Age {
                    since: seen.map(|seen| stamp.map_or(seen, |stamp| stamp.max(seen))),
                    is_over: Some(has_left && seen.is_some_and(|seen| seen < ts)),
                };
                return (room.room_id.clone(), age);
            }
            let age = Age {
                since: stamp,
                is_over: match stream {
                    None => None,
                    Some(_) if joined.contains(&room.room_id) => Some(false),
                    Some(stream) if before.contains(&stream) => Some(true),
                    // By its own stamp it is over, and that stamp is not believed.
                    Some(_) if stamp.is_none_or(|stamp| stamp < ts) => None,
                    Some(_) => Some(false),
                },
            };
            (room.room_id.clone(), age)
        });
        Ok(ages.collect())
    }

    /// The last event by which somebody of this server left a room.
    fn last_leave(&self, room: &Summary) -> Option<i64> {
        self.left.get(&room.room_id).copied().flatten()
    }

    /// The event that a room's silence counts from.
    fn last_message(&self, room: &RoomId) -> Option<i64> {
        let of = self.statistics.rooms.get(room)?;
        let [_, message, activity] = of.times.of;
        let newest = (of.events.events > 0).then_some(of.events.last_stream);
        // A message that came later may have been purged, while this one was kept.
        let gap = self.above_gaps.get(room).copied();
        let is_known = gap.is_none_or(|gap| message.is_some_and(|message| message > gap));
        match is_known {
            true => message.or(activity).or(newest),
            false => newest,
        }
    }
}
