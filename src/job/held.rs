//! Holds, as a job heeds them: what is held when it begins stays, and a hold that is laid meanwhile stops its next
//! transaction.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::JobContext;
use crate::error::Error;
use crate::hold::{HeldEvents, Hold};
use crate::ids::{RoomId, UserId};
use crate::store::db::Db;
use crate::store::held;
use crate::time::Millis;

/// What a job takes of its room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removes {
    /// Old messages: what is held among them stays where it is.
    History,
    /// Every row: nothing of a room goes of which anything is held.
    Room,
}

/// The holds that a job knows of.
#[derive(Default)]
pub(crate) struct HoldWatch {
    removes: Option<Removes>,
    known: Arc<Vec<Hold>>,
}

/// Events of a room that are held, and the name of the hold.
pub(crate) struct Held {
    /// For people.
    pub name: String,
    /// Which.
    pub events: HeldEvents,
}

/// What holds mean for rooms, looked up in one database.
pub(crate) struct Holds<'a> {
    holds: Vec<&'a Hold>,
    /// The rooms of users that were asked about, for who asks about many rooms.
    rooms: Option<HashMap<UserId, HashSet<RoomId>>>,
}

impl<'a> Holds<'a> {
    /// Those of `holds` that hold.
    pub fn new(holds: &'a [Hold]) -> Self {
        Self {
            holds: holds.iter().filter(|hold| hold.is_active()).collect(),
            rooms: None,
        }
    }

    /// The same for who asks about many rooms.
    pub fn of_many(holds: &'a [Hold]) -> Self {
        Self {
            rooms: Some(HashMap::new()),
            ..Self::new(holds)
        }
    }

    /// What is held of a room.
    pub fn of(&mut self, db: &Db, room: &RoomId) -> Result<Vec<Held>, Error> {
        let mut all = Vec::new();
        let rooms = &mut self.rooms;
        let mut was_joined = |user: &UserId| {
            let Some(rooms) = rooms else {
                return held::was_joined(db, user, room);
            };
            if !rooms.contains_key(user) {
                rooms.insert(user.clone(), held::rooms_of(db, user)?);
            }
            Ok(rooms.get(user).is_some_and(|rooms| rooms.contains(room)))
        };
        for hold in &self.holds {
            for events in hold.events_of(room, &mut was_joined)? {
                let name = hold.to_string();
                all.push(Held { name, events });
            }
        }
        Ok(all)
    }
}

/// What is held of a room and may stay where it is, while the rest goes.
///
/// # Errors
/// [`Error::Held`] where that is the whole room; where `removes` is the room, where it is anything of it.
pub(crate) fn refuse(
    db: &Db,
    room: &RoomId,
    holds: &[Hold],
    removes: Removes,
) -> Result<Vec<Held>, Error> {
    let all = Holds::new(holds).of(db, room)?;
    let mut by = BTreeSet::new();
    for held in &all {
        let stops = held.events.is_all()
            || (removes == Removes::Room && is_anything_held(db, room, &held.events)?);
        if stops {
            by.insert(held.name.clone());
        }
    }
    match by.is_empty() {
        true => Ok(all),
        false => Err(Error::Held(sentence(room, &by, removes))),
    }
}

fn is_anything_held(db: &Db, room: &RoomId, events: &HeldEvents) -> Result<bool, Error> {
    let lowest = held::lowest(db, room, i64::MAX, std::slice::from_ref(events))?;
    Ok(lowest.is_some())
}

fn sentence(room: &RoomId, by: &BTreeSet<String>, removes: Removes) -> String {
    let names = by.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    format!(
        "room {room} is held by {names}: {} of it may be deleted until that is released (roomkeeper hold list says more)",
        match removes {
            Removes::History => "nothing",
            Removes::Room => "no row",
        }
    )
}

/// The names of the holds that keep anything below a depth.
pub(crate) fn that_keep(
    db: &Db,
    room: &RoomId,
    below: i64,
    all: &[Held],
) -> Result<Vec<String>, Error> {
    let mut names = BTreeSet::new();
    for one in all {
        if !names.contains(&one.name)
            && held::lowest(db, room, below, std::slice::from_ref(&one.events))?.is_some()
        {
            names.insert(one.name.clone());
        }
    }
    Ok(names.into_iter().collect())
}

/// Everything that is held of it, without names and each once.
pub(crate) fn events_of(held: &[Held]) -> Vec<HeldEvents> {
    let all: BTreeSet<&HeldEvents> = held.iter().map(|held| &held.events).collect();
    all.into_iter().cloned().collect()
}

impl JobContext<'_> {
    /// Heeds the holds from here on; answers what is held of the room and may stay where it is.
    ///
    /// # Errors
    /// As [`refuse`].
    pub(crate) fn heed_holds(&mut self, removes: Removes) -> Result<Vec<HeldEvents>, Error> {
        let holds = self.ledger.holds()?;
        let held = refuse(&self.db, self.room, &holds, removes)?;
        self.holds = HoldWatch {
            removes: Some(removes),
            known: holds,
        };
        Ok(events_of(&held))
    }

    /// Before every transaction that deletes: a hold that was laid since the job began, and that keeps anything of the room,
    /// ends it here.
    ///
    /// # Errors
    /// [`Error::Held`].
    pub(crate) fn refuse_new_holds(&mut self) -> Result<(), Error> {
        let Some(removes) = self.holds.removes else {
            return Ok(());
        };
        let holds = self.ledger.holds()?;
        if Arc::ptr_eq(&holds, &self.holds.known) {
            return Ok(());
        }
        let known = &self.holds.known;
        let is_new = |hold: &&Hold| hold.is_active() && !known.contains(hold);
        let new: Vec<Hold> = holds.iter().filter(is_new).cloned().collect();
        let mut by = BTreeSet::new();
        for held in Holds::new(&new).of(&self.db, self.room)? {
            if held.events.is_all() || is_anything_held(&self.db, self.room, &held.events)? {
                by.insert(held.name);
            }
        }
        if !by.is_empty() {
            return Err(Error::Held(format!(
                "{}. That was laid while the job was at work: everything up to here is done and whole",
                sentence(self.room, &by, removes)
            )));
        }
        self.holds.known = holds;
        Ok(())
    }
}

/// Says in the log which holds should be looked at again.
pub(crate) fn warn_of_reviews(holds: &[Hold], now: Millis) {
    for hold in holds.iter().filter(|hold| hold.is_due_for_review(now)) {
        let review = hold.review_ms.unwrap_or(now).as_date();
        log::warn!(
            "the hold {hold} was to be reviewed by {review}: it holds on until it is released"
        );
    }
}
