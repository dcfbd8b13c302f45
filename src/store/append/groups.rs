//! State groups of new events: a delta on the group before, or the whole state (D-48).

use std::collections::BTreeMap;

use super::numbers::Numbers;
use crate::error::Error;
use crate::ids::{EventId, RoomId};
use crate::store::db::{Db, params};
use crate::store::state_groups::{INSERT_EDGE, INSERT_ENTRY, previous};
use crate::store::tx::Tx;

/// The longest chain of deltas; the next group is stored whole (behaviour.md section 12).
const MOST_HOPS: usize = 100;

const INSERT_GROUP: &str = "INSERT INTO state_groups (id, room_id, event_id) VALUES ($1, $2, $3)";

/// State by type and state key.
pub type StateMap = BTreeMap<(String, String), EventId>;

/// A group, and how many deltas it rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub id: i64,
    hops: usize,
}

impl Group {
    /// An existing group. Its chain is followed no further than it matters.
    pub fn of(db: &Db, id: i64) -> Result<Self, Error> {
        let (mut hops, mut at) = (0, id);
        while hops < MOST_HOPS
            && let Some(before) = previous(db, at)?
        {
            hops += 1;
            at = before;
        }
        Ok(Self { id, hops })
    }
}

/// Makes the group after a state event: a delta of one entry on `before`, or all of `state`, which has the event in it
/// already.
pub(super) fn after(
    db: &Tx<'_>,
    numbers: &mut Numbers,
    room: &RoomId,
    before: Option<Group>,
    state: &StateMap,
    (kind, key, event): (&str, &str, &EventId),
) -> Result<Group, Error> {
    let doing = "store the state after an event";
    let room_id = room.as_str();
    if let Some(before) = before.filter(|g| g.hops < MOST_HOPS) {
        let group = empty(db, numbers, room, event)?;
        db.execute(doing, INSERT_EDGE, params![group.id, before.id])?;
        db.execute(
            doing,
            INSERT_ENTRY,
            params![group.id, room_id, kind, key, event.as_str()],
        )?;
        return Ok(Group {
            hops: before.hops + 1,
            ..group
        });
    }
    whole(db, numbers, room, state, event)
}

/// Makes a group that holds all of `state`.
pub(super) fn whole(
    db: &Tx<'_>,
    numbers: &mut Numbers,
    room: &RoomId,
    state: &StateMap,
    event: &EventId,
) -> Result<Group, Error> {
    let group = empty(db, numbers, room, event)?;
    for ((kind, key), entry) in state {
        db.execute(
            "store the state after an event",
            INSERT_ENTRY,
            params![group.id, room.as_str(), kind, key, entry.as_str()],
        )?;
    }
    Ok(group)
}

/// Makes a group that holds nothing: what a room's first event finds.
pub(super) fn empty(
    db: &Tx<'_>,
    numbers: &mut Numbers,
    room: &RoomId,
    event: &EventId,
) -> Result<Group, Error> {
    let id = numbers.next_group(db)?;
    db.execute(
        "store the state after an event",
        INSERT_GROUP,
        params![id, room.as_str(), event.as_str()],
    )?;
    Ok(Group { id, hops: 0 })
}
