//! What is expensive to count of rooms, counted once and kept.
//!
//! Each time the cheap counts are asked anew: how many events there are in all, of which rooms the new ones are, how many
//! state groups every room has with the newest; and whether the events whose times are kept are still in the timeline. Where these are as they were, what was counted still holds; where they are
//! not, whatever the reason (messages came, a purge took some, the room was deleted and joined again, a backup was put
//! back), it is counted anew. So nothing has to be told of purges and deletions, by whomever they were done.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::RoomId;
use crate::store::db::Db;
use crate::store::room_statistics::{self, EventCount, GroupCount, Times};

/// What was counted of one room, and by which it is told that it still holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatisticsOf {
    /// Its events.
    pub events: EventCount,
    /// Its messages.
    pub times: Times,
    /// Its state groups.
    pub groups: GroupCount,
    /// Rows that their states take.
    pub state_rows: i64,
}

/// What was counted of every room that has events or state groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Room by room.
    pub(crate) rooms: BTreeMap<RoomId, StatisticsOf>,
}

/// Rooms whose messages are looked for by one statement: what it is asked for goes along as text.
const ROOMS_AT_ONCE: usize = 5_000;

impl Statistics {
    /// The statistics of now; what still holds of these is not counted again. Answers the rooms that are not as they
    /// were, the ones that are gone included.
    ///
    /// # Locking
    /// Reads one snapshot, which the caller holds.
    pub(crate) fn refresh(&mut self, db: &Db) -> Result<Vec<RoomId>, Error> {
        let events = self.events(db)?;
        let groups = room_statistics::groups(db)?;
        let former = std::mem::take(&mut self.rooms);
        for (room, count) in &events {
            self.rooms.entry(room.clone()).or_default().events = *count;
        }
        for (room, count) in &groups {
            self.rooms.entry(room.clone()).or_default().groups = *count;
        }
        let landmarks = former.values().flat_map(|was| was.times.of).flatten();
        let newest = former.values().map(|was| was.events.last_stream).max();
        let other_timelines: BTreeSet<RoomId> = match newest {
            Some(newest) => room_statistics::timelines_changed(db, landmarks, newest)?,
            None => Vec::new(),
        }
        .into_iter()
        .collect();
        let changed_events: Vec<(&RoomId, i64)> = events
            .iter()
            .filter(|(room, count)| {
                other_timelines.contains(*room)
                    || former.get(*room).is_none_or(|was| was.events != **count)
            })
            .map(|(room, count)| (room, count.events))
            .collect();
        let mut times = BTreeMap::new();
        for some in changed_events.chunks(ROOMS_AT_ONCE) {
            times.extend(room_statistics::times(db, some)?);
        }
        let state_rows = state_rows(db, &former, &groups)?;
        let mut changed = Vec::new();
        for (room, now) in &mut self.rooms {
            let was = former.get(room).copied();
            let kept = was.unwrap_or_default();
            now.times = times.get(room).copied().unwrap_or(kept.times);
            now.state_rows = state_rows.get(room).copied().unwrap_or(kept.state_rows);
            if was != Some(*now) {
                changed.push(room.clone());
            }
        }
        changed.extend(
            former
                .into_keys()
                .filter(|room| !self.rooms.contains_key(room)),
        );
        Ok(changed)
    }
}

impl Statistics {
    /// The events of every room. As long as all that were there still are, only what came is looked at: the number of all
    /// events says so.
    fn events(&self, db: &Db) -> Result<BTreeMap<RoomId, EventCount>, Error> {
        let known = self.rooms.iter().filter(|(_, of)| of.events.events > 0);
        let mut events: BTreeMap<RoomId, EventCount> =
            known.map(|(room, of)| (room.clone(), of.events)).collect();
        let ends = events.values().copied().reduce(EventCount::with);
        let Some(ends) = ends else {
            return room_statistics::events(db);
        };
        let beyond = room_statistics::events_beyond(db, ends.last_stream, ends.first_stream)?;
        let came: i64 = beyond.values().map(|of| of.events).sum();
        if room_statistics::count_events(db)? != ends.events + came {
            return room_statistics::events(db);
        }
        for (room, more) in beyond {
            let of = events.entry(room);
            of.and_modify(|of| *of = of.with(more)).or_insert(more);
        }
        Ok(events)
    }
}

/// The rows of the states of rooms whose groups are not as they were. Where groups have only come, only they are counted.
fn state_rows(
    db: &Db,
    former: &BTreeMap<RoomId, StatisticsOf>,
    groups: &BTreeMap<RoomId, GroupCount>,
) -> Result<BTreeMap<RoomId, i64>, Error> {
    let mark = former.values().map(|was| was.groups.newest).max();
    let mark = mark.unwrap_or(i64::MIN);
    let changed =
        |room: &RoomId, count: &GroupCount| former.get(room).is_none_or(|was| was.groups != *count);
    if !groups.iter().any(|(room, count)| changed(room, count)) {
        return Ok(BTreeMap::new());
    }
    let new = room_statistics::state_rows_since(db, mark)?;
    let (mut found, mut again) = (BTreeMap::new(), Vec::new());
    for (room, count) in groups.iter().filter(|(room, count)| changed(room, count)) {
        let (groups_before, rows_before) = former
            .get(room)
            .map_or((0, 0), |was| (was.groups.groups, was.state_rows));
        let (came, rows) = new.get(room).copied().unwrap_or_default();
        if groups_before + came == count.groups {
            found.insert(room.clone(), rows_before + rows);
        } else {
            again.push(room);
        }
    }
    for some in again.chunks(ROOMS_AT_ONCE) {
        found.extend(room_statistics::state_rows_of(db, some.iter().copied())?);
    }
    Ok(found)
}
