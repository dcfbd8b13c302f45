//! The state of a room at its events: a group is looked up through the groups it is a change of.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::db::{Db, params};
use super::pages::{json_list, json_numbers};
use crate::error::Error;

/// Groups, and what each is a change of.
#[derive(Debug, Default)]
pub struct DeltaChains {
    before: HashMap<i64, i64>,
    groups: BTreeSet<i64>,
}

/// The edges of some groups and of all that they build upon. Binds `$1` the groups. Each group is met once, however many
/// build upon it; the joins are crossed so that they are done in this order.
const EDGES: &str = "
    WITH RECURSIVE chain(state_group) AS (
        SELECT asked.id FROM (SELECT CAST(value AS BIGINT) AS id FROM json_each($1)) asked
         UNION
        SELECT x.prev_state_group FROM chain c
         CROSS JOIN state_group_edges x
         WHERE x.state_group = c.state_group)
    SELECT x.state_group, x.prev_state_group
      FROM chain c
     CROSS JOIN state_group_edges x
     WHERE x.state_group = c.state_group";

/// The groups that some groups build upon.
pub fn chains(db: &Db, groups: &[i64]) -> Result<DeltaChains, Error> {
    let mut chains = DeltaChains {
        groups: groups.iter().copied().collect(),
        ..DeltaChains::default()
    };
    if groups.is_empty() {
        return Ok(chains);
    }
    let groups = json_numbers(groups);
    db.for_each("read state groups", EDGES, params![groups], |r| {
        let (group, before) = (r.get(0)?, r.get(1)?);
        chains.before.insert(group, before);
        chains.groups.insert(before);
        Ok(())
    })?;
    Ok(chains)
}

/// Who is what: (type, state key) of each group that says it, and the event.
type Entries = HashMap<i64, String>;

impl DeltaChains {
    /// Follows a group back to the first that has an entry; every group on the way is remembered.
    fn nearest(
        &self,
        said: &Entries,
        group: i64,
        found: &mut HashMap<i64, Option<String>>,
    ) -> Option<String> {
        let (mut way, mut met) = (Vec::new(), BTreeSet::new());
        let mut at = Some(group);
        let answer = loop {
            // A circle says nothing new the second time.
            let Some(group) = at.filter(|group| met.insert(*group)) else {
                break None;
            };
            if let Some(known) = found.get(&group) {
                break known.clone();
            }
            way.push(group);
            if let Some(event) = said.get(&group) {
                break Some(event.clone());
            }
            at = self.before.get(&group).copied();
        };
        for group in way {
            found.insert(group, answer.clone());
        }
        answer
    }

    /// The event of each group for one place of its state.
    fn resolve(&self, said: &Entries, groups: &[i64]) -> HashMap<i64, String> {
        let mut found = HashMap::new();
        let nearest = |group: &i64| Some((*group, self.nearest(said, *group, &mut found)?));
        groups.iter().filter_map(nearest).collect()
    }

    /// A group and those that it builds upon, itself first.
    fn lineage(&self, group: i64) -> Vec<i64> {
        let (mut way, mut met) = (Vec::new(), BTreeSet::new());
        let mut at = Some(group);
        // A circle says nothing new the second time.
        while let Some(group) = at.filter(|group| met.insert(*group)) {
            way.push(group);
            at = self.before.get(&group).copied();
        }
        way
    }

    /// Groups that build upon none, and so hold a whole state.
    fn roots(&self) -> Vec<i64> {
        let is_root = |group: &&i64| !self.before.contains_key(group);
        self.groups.iter().filter(is_root).copied().collect()
    }
}

/// Binds `$1` groups, `$2` type, `$3` state key. Looks each up in `state_groups_state_type_idx`.
const SAID: &str = "
    SELECT s.state_group, s.event_id
      FROM (SELECT CAST(value AS BIGINT) AS id FROM json_each($1)) asked
     CROSS JOIN state_groups_state s
     WHERE s.state_group = asked.id AND s.type = $2 AND s.state_key = $3";

/// The event of each of `groups` for one place of its state, where it has one.
pub fn state_at(
    db: &Db,
    chains: &DeltaChains,
    groups: &[i64],
    kind: &str,
    state_key: &str,
) -> Result<HashMap<i64, String>, Error> {
    let all = json_numbers(&chains.groups.iter().copied().collect::<Vec<_>>());
    let mut said = Entries::new();
    let doing = "read the state at events";
    db.for_each(doing, SAID, params![all, kind, state_key], |r| {
        said.insert(r.get(0)?, r.get(1)?);
        Ok(())
    })?;
    Ok(chains.resolve(&said, groups))
}

/// The members that groups name themselves. Binds `$1` groups. Walks `state_groups_state_type_idx`; changes are small.
const CHANGED_MEMBERS: &str = "
    SELECT s.state_group, s.state_key, s.event_id
      FROM (SELECT CAST(value AS BIGINT) AS id FROM json_each($1)) asked
     CROSS JOIN state_groups_state s
     WHERE s.state_group = asked.id AND s.type = 'm.room.member'";

/// Some members of whole states. Binds `$1` groups, `$2` users. Looks each up in `state_groups_state_type_idx`.
const SOME_MEMBERS: &str = "
    SELECT s.state_group, s.state_key, s.event_id
      FROM (SELECT CAST(value AS BIGINT) AS id FROM json_each($1)) asked
     CROSS JOIN (SELECT value FROM json_each($2)) users
     CROSS JOIN state_groups_state s
     WHERE s.state_group = asked.id AND s.type = 'm.room.member' AND s.state_key = users.value";

/// The member events of some users in the state of a group (M-58).
pub fn members_at(db: &Db, group: i64, users: &[&str]) -> Result<Vec<String>, Error> {
    let chains = chains(db, &[group])?;
    let roots = chains.roots();
    let changes: Vec<i64> = chains
        .groups
        .iter()
        .copied()
        .filter(|g| !roots.contains(g))
        .collect();
    let doing = "read members";
    let mut said: HashMap<String, Entries> = HashMap::new();
    let (roots, changes) = (json_numbers(&roots), json_numbers(&changes));
    let listed = json_list(users);
    db.for_each(doing, SOME_MEMBERS, params![roots, listed], |r| {
        said.entry(r.get(1)?)
            .or_default()
            .insert(r.get(0)?, r.get(2)?);
        Ok(())
    })?;
    db.for_each(doing, CHANGED_MEMBERS, params![changes], |r| {
        said.entry(r.get(1)?)
            .or_default()
            .insert(r.get(0)?, r.get(2)?);
        Ok(())
    })?;
    let event = |user: &&str| chains.resolve(said.get(*user)?, &[group]).remove(&group);
    Ok(users.iter().filter_map(event).collect())
}

/// One place of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateEntry {
    /// The event's type.
    pub kind: String,
    /// Its state key.
    pub state_key: String,
    /// Its id.
    pub event_id: String,
}

/// The rows of some groups. Binds `$1` groups. Walks `state_groups_state_type_idx`.
const ROWS: &str = "
    SELECT s.state_group, s.type, s.state_key, s.event_id
      FROM (SELECT CAST(value AS BIGINT) AS id FROM json_each($1)) asked
     CROSS JOIN state_groups_state s
     WHERE s.state_group = asked.id";

/// The whole state of a group, in the order of types and keys; `None` where more than `most` rows say it.
pub fn whole_state(db: &Db, group: i64, most: usize) -> Result<Option<Vec<StateEntry>>, Error> {
    let lineage = chains(db, &[group])?.lineage(group);
    let near: HashMap<i64, usize> = lineage.iter().copied().zip(0..).collect();
    let mut said: BTreeMap<(String, String), (usize, String)> = BTreeMap::new();
    let mut rows = 0;
    let groups = json_numbers(&lineage);
    db.query_while("read the state at an event", ROWS, params![groups], |r| {
        rows += 1;
        let rank = near.get(&r.get(0)?).copied().unwrap_or(usize::MAX);
        let entry = said.entry((r.get(1)?, r.get(2)?));
        let (nearest, event) = entry.or_insert((usize::MAX, String::new()));
        if rank <= *nearest {
            (*nearest, *event) = (rank, r.get(3)?);
        }
        Ok(rows <= most)
    })?;
    let entry = |((kind, state_key), (_, event_id))| StateEntry {
        kind,
        state_key,
        event_id,
    };
    Ok((rows <= most).then(|| said.into_iter().map(entry).collect()))
}

/// Binds `$1` event. By its key.
const GROUP_OF: &str = "SELECT state_group FROM event_to_state_groups WHERE event_id = $1";

/// The group of the state after an event, where there is one.
pub fn group_of(db: &Db, event: &str) -> Result<Option<i64>, Error> {
    let doing = "read the state at an event";
    db.row(doing, GROUP_OF, params![event], |r| r.get(0))
}
