//! Groups of which nobody can say the state: they are left alone, with all that hangs on them (P-54).

use std::collections::{BTreeSet, HashMap};

use super::{NEXT, PREVIOUS};
use crate::error::Error;
use crate::ids::RoomId;
use crate::store::db::{Db, params};

const ROOM_OF: &str = "SELECT room_id FROM state_groups WHERE id = $1";

/// Groups that do not lead to a group which is stored in full, one step at a time (P-33, P-54).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tangles {
    /// Groups that are deltas on each other, in a circle.
    pub circles: Vec<Vec<i64>>,
    /// Groups that are deltas on more than one.
    pub doubled: BTreeSet<i64>,
}

impl Tangles {
    /// What a person should know of them.
    pub fn notes(&self) -> Vec<String> {
        let listed = |groups: &mut dyn Iterator<Item = &i64>| {
            let all: Vec<String> = groups.map(i64::to_string).collect();
            let more = if all.len() > MOST_NAMED { ", …" } else { "" };
            format!("{}{more}", all[..all.len().min(MOST_NAMED)].join(", "))
        };
        let mut notes = Vec::new();
        for circle in &self.circles {
            notes.push(format!(
                "the state groups {} form a circle: each is a change of the next. They and what rests on them were left \
                 as they are",
                listed(&mut circle.iter())
            ));
        }
        if !self.doubled.is_empty() {
            notes.push(format!(
                "these state groups are a change of more than one other: {}. They and what hangs together with them were \
                 left as they are",
                listed(&mut self.doubled.iter())
            ));
        }
        notes
    }
}

/// Most groups that one note names.
const MOST_NAMED: usize = 20;

/// Whether a group exists, and in the room where only that one's go.
pub(super) fn goes_with(db: &Db, group: i64, room: Option<&RoomId>) -> Result<bool, Error> {
    let doing = "find the state groups that nothing refers to";
    let found: Option<String> = db.row(doing, ROOM_OF, params![group], |r| r.get(0))?;
    Ok(found.is_some_and(|found| room.is_none_or(|room| room.as_str() == found)))
}

/// Takes out of those that go whatever `group` is a delta on, as far as it goes.
pub(super) fn keep_beneath(
    db: &Db,
    group: i64,
    to_delete: &mut BTreeSet<i64>,
) -> Result<(), Error> {
    let mut queue = bases(db, group)?;
    while let Some(base) = queue.pop() {
        if to_delete.remove(&base) {
            queue.extend(bases(db, base)?);
        }
    }
    Ok(())
}

/// Takes out of those that go whatever nobody can say the state of: groups that lead into a circle, or to one that is a
/// delta on several; and what groups of other rooms rest on.
pub(super) fn leave_tangles(
    db: &Db,
    to_delete: &mut BTreeSet<i64>,
    room: Option<&RoomId>,
    each: &mut dyn FnMut(&Db) -> Result<(), Error>,
) -> Result<Tangles, Error> {
    let mut paths = Paths::default();
    let mut left = Vec::new();
    for &group in to_delete.iter() {
        each(db)?;
        if paths.is_tangled(db, group)? {
            left.push(group);
        }
        for next in db.rows(
            "find the state groups that hang on those that go",
            NEXT,
            params![group],
            |r| r.get::<_, i64>(0),
        )? {
            if !to_delete.contains(&next)
                && (paths.is_tangled(db, next)? || !goes_with(db, next, room)?)
            {
                left.push(next);
            }
        }
    }
    for group in left {
        to_delete.remove(&group);
        keep_beneath(db, group, to_delete)?;
    }
    Ok(paths.tangles)
}

/// Where groups lead to, each looked at once.
#[derive(Default)]
struct Paths {
    known: HashMap<i64, bool>,
    tangles: Tangles,
}

impl Paths {
    /// Whether the group leads into a circle, or to a group that is a delta on several.
    fn is_tangled(&mut self, db: &Db, group: i64) -> Result<bool, Error> {
        let (mut path, mut places) = (Vec::new(), HashMap::new());
        let mut at = group;
        let tangled = loop {
            if let Some(known) = self.known.get(&at) {
                break *known;
            }
            if let Some(place) = places.get(&at) {
                let mut circle: Vec<i64> = path[*place..].to_vec();
                circle.sort_unstable();
                self.tangles.circles.push(circle);
                break true;
            }
            places.insert(at, path.len());
            path.push(at);
            match bases(db, at)?.as_slice() {
                [] => break false,
                [base] => at = *base,
                _ => {
                    self.tangles.doubled.insert(at);
                    break true;
                }
            }
        };
        self.known
            .extend(path.into_iter().map(|group| (group, tangled)));
        Ok(tangled)
    }
}

/// The groups that `group` is a delta on: one, none, or, in a database that is not as it should be, several.
pub(super) fn bases(db: &Db, group: i64) -> Result<Vec<i64>, Error> {
    let doing = "read a state group's base";
    db.rows(doing, PREVIOUS, params![group], |r| r.get(0))
}
