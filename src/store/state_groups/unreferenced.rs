//! Every state group of the server that no event which is held has, by the tables themselves and on no index's word.
//!
//! An index that has lost rows makes live state look unused, and a large server has lost state so. What is found here is
//! found by reading `event_to_state_groups`, `state_groups` and `state_group_edges` from end to end; the indexes are asked
//! again when a group is deleted, and both must say the same.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use super::NEXT;
use super::group_set::GroupSet;
use crate::error::Error;
use crate::ids::RoomId;
use crate::store::db::{Db, Engine, Row, RowResult, params};

/// Reads a table of PostgreSQL's by itself, in pieces: what the driver reads at once it holds in memory.
const BY_TABLE: &str = "-- PostgreSQL
    SET LOCAL enable_indexscan = off;
    SET LOCAL enable_indexonlyscan = off;
    SET LOCAL enable_bitmapscan = off";

/// Mappings, and whether their event is held.
const MAPPINGS: &str = "
    SELECT g.state_group, g.event_id,
           EXISTS (SELECT 1 FROM events e WHERE e.event_id = g.event_id)
      FROM event_to_state_groups g NOT INDEXED";

/// On a server both tables are read and joined, so no index says what is held. What is joined is named in full: an event
/// id that stands in `events` twice would only be met twice.
const MAPPINGS_ON_POSTGRES: &str = "-- PostgreSQL
    DECLARE rk_mappings NO SCROLL CURSOR FOR
    SELECT g.state_group, g.event_id, e.event_id IS NOT NULL
      FROM event_to_state_groups g LEFT JOIN events e ON e.event_id = g.event_id";

const FETCH_MAPPINGS: &str = "-- PostgreSQL
    FETCH 20000 FROM rk_mappings";

const EVENTS: &str = "SELECT event_id FROM events NOT INDEXED";

const GROUPS: &str = "SELECT id, room_id FROM state_groups NOT INDEXED WHERE id BETWEEN $1 AND $2";

const GROUPS_ON_POSTGRES: &str = "-- PostgreSQL
    DECLARE rk_groups NO SCROLL CURSOR FOR SELECT id, room_id FROM state_groups";

const FETCH_GROUPS: &str = "-- PostgreSQL
    FETCH 20000 FROM rk_groups";

const EDGES: &str = "SELECT prev_state_group, state_group FROM state_group_edges NOT INDEXED";

const EDGES_ON_POSTGRES: &str = "-- PostgreSQL
    DECLARE rk_edges NO SCROLL CURSOR FOR SELECT prev_state_group, state_group FROM state_group_edges";

const FETCH_EDGES: &str = "-- PostgreSQL
    FETCH 20000 FROM rk_edges";

/// Deltas on a group, by the table; for the few groups of which the index says something else than the table did.
const NEXT_BY_TABLE: &str = "
    SELECT g.state_group FROM state_group_edges g NOT INDEXED
     WHERE g.prev_state_group = $1
       AND EXISTS (SELECT 1 FROM state_groups s WHERE s.id = g.state_group)
     ORDER BY g.state_group";

/// Rows of a group that carry another room's id: nothing that is stored so belongs to it.
const OF_ANOTHER_ROOM: &str =
    "SELECT count(*) FROM state_groups_state WHERE state_group = $1 AND room_id <> $2";

/// One reading of a table from end to end.
struct Scan {
    sqlite: &'static str,
    declare: &'static str,
    fetch: &'static str,
}

const DOING: &str = "read the state groups of the server";

impl Scan {
    /// Every row, on one snapshot; `each` ends the reading by an error.
    fn run(
        &self,
        db: &Db,
        bounds: Option<(i64, i64)>,
        each: &mut dyn FnMut(&Row<'_>) -> RowResult<()>,
    ) -> Result<(), Error> {
        if db.engine() == Engine::Sqlite {
            let sql = self.sqlite;
            return match bounds {
                Some((low, high)) => db.for_each(DOING, sql, params![low, high], each),
                None => db.for_each(DOING, sql, &[], each),
            };
        }
        db.read(DOING, |db| {
            db.batch(DOING, BY_TABLE)?;
            db.batch(DOING, self.declare)?;
            loop {
                let mut met = 0;
                db.for_each(DOING, self.fetch, &[], |row| {
                    met += 1;
                    each(row)
                })?;
                if met == 0 {
                    return Ok(());
                }
            }
        })
    }
}

/// The state groups that no event which is held has.
#[derive(Debug, Default)]
pub struct Unreferenced {
    groups: GroupSet,
    /// Those of them that a group which stays is a delta on, as the table has it.
    bases: GroupSet,
    /// State groups that there are.
    pub looked_at: i64,
    /// Mappings whose event is not held: they keep no group (P-54).
    pub dangling: i64,
}

impl Unreferenced {
    /// Reads the tables. Takes memory for a bit a group, and some for mappings without an event.
    ///
    /// # Errors
    /// [`Error::Refused`] where the index of `events` does not know an event that the table has.
    pub fn read(db: &Db) -> Result<Self, Error> {
        let mut found = Self::default();
        let referenced = referenced(db, &mut found.dangling)?;
        let groups = Scan {
            sqlite: GROUPS,
            declare: GROUPS_ON_POSTGRES,
            fetch: FETCH_GROUPS,
        };
        groups.run(db, Some((i64::MIN, i64::MAX)), &mut |row| {
            let group = row.get(0)?;
            found.looked_at += 1;
            if !referenced.contains(group) {
                found.groups.insert(group);
            }
            Ok(())
        })?;
        drop(referenced);
        let edges = Scan {
            sqlite: EDGES,
            declare: EDGES_ON_POSTGRES,
            fetch: FETCH_EDGES,
        };
        edges.run(db, None, &mut |row| {
            let (base, group): (i64, i64) = (row.get(0)?, row.get(1)?);
            if found.groups.contains(base) && !found.groups.contains(group) {
                found.bases.insert(base);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.groups.len()
    }

    /// Whether every group is of use.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Windows of at most about `most` of them, the youngest first.
    pub fn windows(&self, most: u64) -> Vec<(i64, i64)> {
        self.groups.windows(most)
    }

    /// Those of a window by room, in each the youngest first; by the table.
    ///
    /// # Errors
    /// Those of the database.
    pub fn of_window(
        &self,
        db: &Db,
        window: (i64, i64),
    ) -> Result<BTreeMap<RoomId, Vec<i64>>, Error> {
        let mut rooms: BTreeMap<RoomId, Vec<i64>> = BTreeMap::new();
        let groups = Scan {
            sqlite: GROUPS,
            declare: GROUPS_ON_POSTGRES,
            fetch: FETCH_GROUPS,
        };
        groups.run(db, Some(window), &mut |row| {
            let group: i64 = row.get(0)?;
            if (window.0..=window.1).contains(&group) && self.groups.contains(group) {
                let room: String = row.get(1)?;
                rooms.entry(RoomId::new(room)).or_default().push(group);
            }
            Ok(())
        })?;
        for groups in rooms.values_mut() {
            groups.sort_unstable_by(|a, b| b.cmp(a));
        }
        Ok(rooms)
    }

    /// Holds what the indexes say of some of them against what the tables said: the groups that rest on them, and whose
    /// rows they have.
    ///
    /// # Errors
    /// [`Error::Refused`] where they do not agree: which index, and what to do.
    pub fn confirm(&self, db: &Db, room: &RoomId, groups: &[i64]) -> Result<(), Error> {
        let doing = "hold an index against its table";
        for group in groups {
            if rows_of_another_room(db, *group, room)? > 0 {
                return Err(damaged(
                    "state_groups_state_type_idx",
                    &format!(
                        "it finds rows of another room for state group {group} of room {room}"
                    ),
                ));
            }
            if !self.bases.contains(*group) {
                continue;
            }
            let next = |sql| db.rows(doing, sql, params![group], |r| r.get::<_, i64>(0));
            let by_index = next(NEXT)?;
            if by_index.iter().any(|next| !self.groups.contains(*next)) {
                continue;
            }
            let by_table = match db.engine() {
                Engine::Sqlite => next(NEXT_BY_TABLE)?,
                Engine::Postgres => db.read(doing, |db| {
                    db.batch(doing, BY_TABLE)?;
                    db.rows(doing, NEXT, params![group], |r| r.get(0))
                })?,
            };
            if by_index != by_table {
                return Err(damaged(
                    "state_group_edges_prev_idx",
                    &format!("it does not know every group that rests on state group {group}"),
                ));
            }
        }
        Ok(())
    }
}

/// The groups that an event which is held has.
fn referenced(db: &Db, dangling: &mut i64) -> Result<GroupSet, Error> {
    let mut referenced = GroupSet::default();
    // A number for each event id: there may be many, and the few that are met again are looked at.
    let hasher = RandomState::new();
    let mut not_held: HashSet<u64> = HashSet::new();
    let mappings = Scan {
        sqlite: MAPPINGS,
        declare: MAPPINGS_ON_POSTGRES,
        fetch: FETCH_MAPPINGS,
    };
    mappings.run(db, None, &mut |row| {
        if row.get(2)? {
            referenced.insert(row.get(0)?);
        } else {
            *dangling += 1;
            if db.engine() == Engine::Sqlite {
                not_held.insert(hasher.hash_one(row.get::<_, String>(1)?));
            }
        }
        Ok(())
    })?;
    if not_held.is_empty() {
        return Ok(referenced);
    }
    let mut is_held = false;
    db.for_each(DOING, EVENTS, &[], |row| {
        is_held |= not_held.contains(&hasher.hash_one(row.get::<_, String>(0)?));
        Ok(())
    })?;
    match is_held {
        true => Err(damaged(
            "of events.event_id",
            "it does not know events that the table has",
        )),
        false => Ok(referenced),
    }
}

/// Rows that the index finds for a group and that carry another room's id.
pub(super) fn rows_of_another_room(db: &Db, group: i64, room: &RoomId) -> Result<i64, Error> {
    let doing = "hold an index against its table";
    db.count(doing, OF_ANOTHER_ROOM, params![group, room.as_str()])
}

/// What is said of an index that does not agree with its table.
pub(super) fn damaged(index: &str, how: &str) -> Error {
    Error::Refused(format!(
        "the index {index} is damaged: {how}. By its word live state would be deleted, so no state group goes. Stop the \
         homeserver, make a copy of the database, build its indexes anew (REINDEX in psql or sqlite3), look with \
         `roomkeeper check`, and ask again"
    ))
}
