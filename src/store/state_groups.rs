//! State groups: which of them nothing refers to any more, and letting those go (P-30 … P-46).
//!
//! Deciding and doing are apart. A [`Plan`] names the groups that go and, for every group that stays but
//! was a delta on one that goes, what it will be a delta on instead. The state of a group never changes, so
//! a plan can be carried out in pieces, in order, and again after a crash, to the same end.

mod compact;
mod compress;
mod group_set;
mod in_use;
mod indexes;
mod of_room;
mod resolve;
mod tangles;
mod unreferenced;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

pub use self::compress::{Compressed, Compressor, rooms_with_groups};
pub use self::in_use::{Persisting, persisting};
pub use self::indexes::verify_indexes;
pub use self::of_room::{
    Dependent, count_of_room, delete_with_room, dependents, forget_compressor,
    forget_compressor_with_room, forget_persisting, has_compressor_notes, of_room,
};
use self::resolve::{Entries, States, delta, delta_length};
pub use self::tangles::Tangles;
use self::tangles::{bases, goes_with, keep_beneath, leave_tangles};
pub use self::unreferenced::Unreferenced;
use self::unreferenced::rows_of_another_room;
use super::db::{Db, params};
use super::event_rows::{RowCounts, add};
use super::tx::Tx;
use crate::error::Error;
use crate::ids::RoomId;
use crate::time::Millis;

/// Which references count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum References {
    /// Every row of `event_to_state_groups`.
    All,
    /// Those of events outside the current selection, which a purge would leave: for a dry run.
    OutsideSelection,
}

/// How far a plan looks for groups that nothing refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// The candidates, and whatever hangs together with them (P-30).
    Around,
    /// The candidates alone: whoever names them names all there are, in pieces of bounded size.
    Candidates,
}

/// A group that stays and was a delta on one that goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebase {
    /// The group.
    pub group: i64,
    /// What it becomes a delta on; nothing means that it is stored in full.
    pub base: Option<i64>,
}

/// What to do about state groups that nothing refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order, each while its former base still stands.
    pub rebases: Vec<Rebase>,
    /// Groups that go, children before parents.
    pub to_delete: Vec<i64>,
    /// Unreferenced groups that stay because others would need more rows without them.
    pub kept_as_base: usize,
    /// Rows of `state_groups_state` before and after.
    pub rows_before: i64,
    /// See `rows_before`.
    pub rows_after: i64,
    /// Edges before and after.
    pub edges_before: i64,
    /// See `edges_before`.
    pub edges_after: i64,
    /// Groups that go and that were waiting for the homeserver to delete them.
    pub pending: i64,
    /// Mappings to groups that go, of events that are not held.
    pub mappings: i64,
    /// Candidates that stay for now because an event in flight uses them: to be looked at again.
    pub in_use: Vec<i64>,
    /// Groups that nobody can say the state of, and that are left alone with all that hangs on them.
    pub tangles: Tangles,
}

impl Plan {
    /// Rows that go, by table.
    pub fn rows_removed(&self) -> RowCounts {
        let mut rows = RowCounts::new();
        for (table, count) in [
            ("state_groups", self.to_delete.len() as i64),
            ("state_groups_state", self.rows_before - self.rows_after),
            ("state_groups_pending_deletion", self.pending),
            ("event_to_state_groups", self.mappings),
            ("state_group_edges", self.edges_before - self.edges_after),
        ] {
            add(&mut rows, table, count);
        }
        rows
    }
}

/// A resolved state: event ids by (type, state key).
pub(super) type State = BTreeMap<(String, String), String>;

const OF_ROOM: &str = "SELECT EXISTS (SELECT 1 FROM state_groups WHERE id = $1 AND room_id = $2)";

/// Whether an event that is held has the group (P-54). Asked whether there is one, PostgreSQL would read all of the table
/// where the group had a large share of it; asked for the first of a range, it walks `event_to_state_groups_sg_index`.
const REFERENCED: &str = "
    SELECT count(*) FROM (
        SELECT g.state_group FROM event_to_state_groups g
         WHERE g.state_group >= $1 AND g.state_group <= $1
           AND EXISTS (SELECT 1 FROM events e WHERE e.event_id = g.event_id)
         ORDER BY g.state_group
         LIMIT 1) AS held";

const REFERENCED_OUTSIDE: &str = "
    SELECT EXISTS (
        SELECT 1 FROM event_to_state_groups g
         WHERE g.state_group = $1
           AND NOT EXISTS (SELECT 1 FROM rk_selected s WHERE s.event_id = g.event_id)
           AND EXISTS (SELECT 1 FROM events e WHERE e.event_id = g.event_id))";

/// Mappings of events that are not held. Binds `$1` group; used where no event that is held has the group.
const DELETE_MAPPINGS: &str = "
    DELETE FROM event_to_state_groups
     WHERE state_group = $1
       AND NOT EXISTS (SELECT 1 FROM events e WHERE e.event_id = event_to_state_groups.event_id)";

/// For a dry run: those of events that a purge selects are counted with the events.
const COUNT_MAPPINGS_OUTSIDE: &str = "
    SELECT count(*) FROM event_to_state_groups g
     WHERE g.state_group = $1
       AND NOT EXISTS (SELECT 1 FROM rk_selected s WHERE s.event_id = g.event_id)";

const COUNT_MAPPINGS: &str = "SELECT count(*) FROM event_to_state_groups WHERE state_group = $1";

const PREVIOUS: &str = "SELECT prev_state_group FROM state_group_edges WHERE state_group = $1 ORDER BY prev_state_group";

/// Deltas on a group. An edge of a group that does not exist is a leftover of defect J, and no delta.
const NEXT: &str = "
    SELECT g.state_group FROM state_group_edges g
     WHERE g.prev_state_group = $1
       AND EXISTS (SELECT 1 FROM state_groups s WHERE s.id = g.state_group)
     ORDER BY g.state_group";

const COUNT_LEFTOVER_EDGES: &str = "
    SELECT count(*) FROM state_group_edges g
     WHERE g.prev_state_group = $1
       AND NOT EXISTS (SELECT 1 FROM state_groups s WHERE s.id = g.state_group)";

const DELETE_PERSISTING: &str = "DELETE FROM state_groups_persisting WHERE state_group = $1";

const ENTRIES: &str =
    "SELECT type, state_key, event_id FROM state_groups_state WHERE state_group = $1";

const COUNT_ENTRIES: &str = "SELECT count(*) FROM state_groups_state WHERE state_group = $1";

const DELETE_ENTRIES: &str = "DELETE FROM state_groups_state WHERE state_group = $1";

const DELETE_EDGES: &str = "DELETE FROM state_group_edges WHERE state_group = $1";

/// Defect J: both sides, or a new group of the same number would grow a foreign parent.
const DELETE_EDGES_TO: &str = "DELETE FROM state_group_edges WHERE prev_state_group = $1";

const DELETE_GROUP: &str = "DELETE FROM state_groups WHERE id = $1";

const DELETE_PENDING: &str = "DELETE FROM state_groups_pending_deletion WHERE state_group = $1";

const PENDING: &str = "SELECT count(*) FROM state_groups_pending_deletion WHERE state_group = $1";

pub(super) const INSERT_ENTRY: &str = "
    INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id) VALUES ($1, $2, $3, $4, $5)";

pub(super) const INSERT_EDGE: &str =
    "INSERT INTO state_group_edges (state_group, prev_state_group) VALUES ($1, $2)";

/// P-41: rows that are there stay as they are, those among them that the homeserver adds at this moment. Binds `$1` now,
/// `$2` groups.
const MARK: &str = "
    INSERT INTO state_groups_pending_deletion (state_group, insertion_ts)
    SELECT id, $1 FROM state_groups
     WHERE id IN (SELECT CAST(value AS BIGINT) FROM json_each($2))
       AND NOT EXISTS (SELECT 1 FROM state_groups_pending_deletion p WHERE p.state_group = state_groups.id)
     ORDER BY id DESC
        ON CONFLICT DO NOTHING";

/// What a plan goes by.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Only groups of this room go; of every room without one.
    pub room: Option<&'a RoomId>,
    /// Which references count.
    pub references: References,
    /// How far it looks.
    pub walk: Walk,
    /// Groups that stay, with all that they rest on, because an event in flight uses them (P-45).
    pub in_use: &'a BTreeSet<i64>,
}

/// Plans what to do about `candidates` and what hangs together with them. Reads only.
///
/// `each` hears of every group that is looked at; its error ends the work.
pub fn plan(
    db: &Db,
    candidates: &[i64],
    rules: Rules<'_>,
    each: &mut dyn FnMut(&Db) -> Result<(), Error>,
) -> Result<Plan, Error> {
    let (mut to_delete, in_use) = unreferenced(db, candidates, rules, each)?;
    let tangles = leave_tangles(db, &mut to_delete, rules.room, each)?;
    let mut plan = Plan {
        in_use,
        tangles,
        ..Plan::default()
    };
    let mut states = States::new(db);
    for cluster in clusters(db, &to_delete, each)? {
        each(db)?;
        match cluster.rebases(db, &mut states)? {
            Some((rebases, rows)) => {
                plan.rebases.extend(rebases);
                plan.rows_after += rows;
            }
            None => {
                // Fewer rows with the old base than without: keep it, and what it rests on.
                for group in &cluster.ancestors {
                    if to_delete.remove(group) {
                        plan.kept_as_base += 1;
                    }
                }
            }
        }
    }
    let mappings = match rules.references {
        References::All => COUNT_MAPPINGS,
        References::OutsideSelection => COUNT_MAPPINGS_OUTSIDE,
    };
    for group in &to_delete {
        each(db)?;
        plan.mappings += db.count("count a state group's mappings", mappings, params![group])?;
        plan.rows_before += entry_count(db, *group)?;
        plan.edges_before += i64::from(previous(db, *group)?.is_some());
        plan.edges_before += db.count(
            "count what older versions left behind",
            COUNT_LEFTOVER_EDGES,
            params![group],
        )?;
    }
    for rebase in &plan.rebases {
        plan.rows_before += entry_count(db, rebase.group)?;
        plan.edges_before += 1;
        plan.edges_after += i64::from(rebase.base.is_some());
    }
    if db.catalog().has("state_groups_pending_deletion") {
        for group in &to_delete {
            plan.pending += db.count("read the pending deletions", PENDING, params![group])?;
        }
    }
    plan.to_delete = to_delete.into_iter().rev().collect();
    match plan.rows_after <= plan.rows_before {
        true => Ok(plan),
        false => Err(Error::Bug(
            "letting state groups go would need more rows than it saves".into(),
        )),
    }
}

/// P-30: the candidates, and everything before and after them, that no event refers to; and those of them that an event
/// in flight uses. The walk does not go past a group that is referred to.
fn unreferenced(
    db: &Db,
    candidates: &[i64],
    rules: Rules<'_>,
    each: &mut dyn FnMut(&Db) -> Result<(), Error>,
) -> Result<(BTreeSet<i64>, Vec<i64>), Error> {
    let doing = "find the state groups that nothing refers to";
    let referenced = match rules.references {
        References::All => REFERENCED,
        References::OutsideSelection => REFERENCED_OUTSIDE,
    };
    let mut seen: HashSet<i64> = candidates.iter().copied().collect();
    let mut queue: VecDeque<i64> = candidates.iter().copied().collect();
    let mut to_delete = BTreeSet::new();
    let mut in_use = Vec::new();
    while let Some(group) = queue.pop_front() {
        each(db)?;
        if !goes_with(db, group, rules.room)? || db.count(doing, referenced, params![group])? == 1 {
            continue;
        }
        if rules.in_use.contains(&group) {
            in_use.push(group);
            continue;
        }
        to_delete.insert(group);
        if rules.walk == Walk::Candidates {
            continue;
        }
        let mut around = bases(db, group)?;
        around.extend(db.rows(doing, NEXT, params![group], |r| r.get::<_, i64>(0))?);
        queue.extend(around.into_iter().filter(|next| seen.insert(*next)));
    }
    // A group in use needs everything that it is a delta on.
    for group in rules.in_use {
        keep_beneath(db, *group, &mut to_delete)?;
    }
    Ok((to_delete, in_use))
}

/// The group that `group` is a delta on.
pub(super) fn previous(db: &Db, group: i64) -> Result<Option<i64>, Error> {
    db.row("read a state group's base", PREVIOUS, params![group], |r| {
        r.get(0)
    })
}

fn entry_count(db: &Db, group: i64) -> Result<i64, Error> {
    db.count("count a state group's rows", COUNT_ENTRIES, params![group])
}

/// Groups that stay, and hang on the same root to delete.
struct Cluster {
    /// In ascending order.
    survivors: Vec<i64>,
    /// The groups to delete that the survivors rest on.
    ancestors: BTreeSet<i64>,
    /// The group that stays and that the topmost of them is a delta on.
    above: Option<i64>,
}

/// Finds the groups that stay but are deltas on ones to delete, with what they share.
fn clusters(
    db: &Db,
    to_delete: &BTreeSet<i64>,
    each: &mut dyn FnMut(&Db) -> Result<(), Error>,
) -> Result<Vec<Cluster>, Error> {
    let doing = "find the state groups that hang on those that go";
    let mut by_root: BTreeMap<i64, Cluster> = BTreeMap::new();
    for group in to_delete {
        each(db)?;
        for survivor in db.rows(doing, NEXT, params![group], |r| r.get::<_, i64>(0))? {
            if to_delete.contains(&survivor) {
                continue;
            }
            let mut path = vec![*group];
            let mut root = *group;
            let above = loop {
                match previous(db, root)? {
                    // None of these is in a circle.
                    Some(before) if to_delete.contains(&before) => {
                        path.push(before);
                        root = before;
                    }
                    before => break before,
                }
            };
            let cluster = by_root.entry(root).or_insert_with(|| Cluster {
                survivors: Vec::new(),
                ancestors: BTreeSet::new(),
                above,
            });
            cluster.ancestors.extend(path);
            cluster.survivors.push(survivor);
        }
    }
    let mut clusters: Vec<Cluster> = by_root.into_values().collect();
    for cluster in &mut clusters {
        cluster.survivors.sort_unstable();
        cluster.survivors.dedup();
    }
    Ok(clusters)
}

impl Cluster {
    /// The cheapest new base for each survivor: what its former base rested on, a sibling with a lower number,
    /// or none; and the rows that they need then. `None` when the whole would need more rows than it has now.
    fn rebases(
        &self,
        db: &Db,
        states: &mut States<'_>,
    ) -> Result<Option<(Vec<Rebase>, i64)>, Error> {
        let mut rebases: Vec<Rebase> = Vec::new();
        let (mut before, mut after) = (0, 0);
        for group in &self.ancestors {
            before += entry_count(db, *group)?;
        }
        // What each is compared with; no other state is kept, of which there are thousands in a large room.
        let mut bases = Vec::new();
        if let Some(above) = self.above {
            let state = states.of(above)?;
            states.keep(above, state.clone());
            bases.push((above, state));
        }
        let most = bases.len() + MOST_SIBLINGS_TRIED;
        for &group in &self.survivors {
            before += entry_count(db, group)?;
            let state = states.of(group)?;
            let mut best = (None, state.len());
            for (base, held) in &bases {
                if let Some(length) = delta_length(&state, held, best.1) {
                    best = (Some(*base), length);
                }
            }
            after += best.1 as i64;
            rebases.push(Rebase {
                group,
                base: best.0,
            });
            if bases.len() < most {
                states.keep(group, state.clone());
                bases.push((group, state));
            }
        }
        drop(bases);
        states.forget();
        Ok((after <= before).then_some((rebases, after)))
    }
}

/// Siblings looked at as a base: the first is nearly always the best, and each costs a comparison of states.
const MOST_SIBLINGS_TRIED: usize = 8;

/// The state that a group names: event ids by type and state key (P-33).
pub(super) fn state_of(db: &Db, group: i64) -> Result<State, Error> {
    let state = States::new(db).of(group)?;
    let entries = state.iter();
    Ok(entries
        .map(|((kind, key), event)| ((kind.to_string(), key.to_string()), event.to_string()))
        .collect())
}

/// Carries out one [`Rebase`]; inside a transaction. Doing it again changes nothing.
///
/// The decision may be an old one, of a job that was interrupted before the homeserver ran again: a group that is
/// gone meanwhile, or whose number another room has now, is left alone; a base that is gone or will not do any more
/// is done without.
pub fn rebase(db: &Tx<'_>, room: &RoomId, rebase: Rebase, freed: &mut Freed) -> Result<(), Error> {
    rebase_all(db, room, &[rebase], freed)
}

/// The same for many, in order: most are deltas on the same base, or on each other, so the states are put together once.
pub fn rebase_all(
    db: &Tx<'_>,
    room: &RoomId,
    rebases: &[Rebase],
    freed: &mut Freed,
) -> Result<(), Error> {
    db.ensure_held(room)?;
    let mut states = States::new(db);
    for rebase in rebases {
        rebase_one(db, room, *rebase, &mut states, freed)?;
    }
    Ok(())
}

/// `states` may be of former ones: the state of a group never changes.
fn rebase_one(
    db: &Tx<'_>,
    room: &RoomId,
    rebase: Rebase,
    states: &mut States<'_>,
    freed: &mut Freed,
) -> Result<(), Error> {
    let doing = "store a state group anew";
    let is_ours = |group: i64| -> Result<bool, Error> {
        Ok(db.count(doing, OF_ROOM, params![group, room.as_str()])? == 1)
    };
    if !is_ours(rebase.group)? || previous(db, rebase.group)? == rebase.base {
        return Ok(());
    }
    if rows_of_another_room(db, rebase.group, room)? > 0 {
        log::warn!(
            "state group {} has rows that are not of its room: it stays as it is",
            rebase.group
        );
        return Ok(());
    }
    let mut base = rebase.base;
    let mut entries: Option<Entries> = None;
    if let Some(group) = base
        && is_ours(group)?
    {
        let held = states.of(group)?;
        states.keep_only(group, held.clone());
        entries = delta(&*states.of(rebase.group)?, &held);
    }
    let entries = match entries {
        Some(entries) => entries,
        None => {
            base = None;
            let state = states.of(rebase.group)?;
            let whole = state.iter();
            whole
                .map(|(key, event)| (key.clone(), event.clone()))
                .collect()
        }
    };
    freed.entries +=
        db.execute(doing, DELETE_ENTRIES, params![rebase.group])? - entries.len() as i64;
    freed.edges +=
        db.execute(doing, DELETE_EDGES, params![rebase.group])? - i64::from(base.is_some());
    for ((kind, key), event) in &entries {
        db.execute(
            doing,
            INSERT_ENTRY,
            params![rebase.group, room.as_str(), &**kind, &**key, &**event],
        )?;
    }
    if let Some(base) = base {
        db.execute(doing, INSERT_EDGE, params![rebase.group, base])?;
    }
    Ok(())
}

/// Rows that storing groups anew and removing others took away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// Groups.
    pub groups: i64,
    /// Rows of `state_groups_state`.
    pub entries: i64,
    /// Rows of `state_group_edges`.
    pub edges: i64,
    /// Rows of `state_groups_pending_deletion`.
    pub pending: i64,
    /// Rows of `event_to_state_groups` whose event is not held.
    pub mappings: i64,
    /// Rows of `state_groups_persisting` that nobody needs any more.
    pub persisting: i64,
    /// Rows of another program's notes, by table.
    pub notes: RowCounts,
}

impl Freed {
    /// Adds what is known by table.
    pub fn add_to(&self, counts: &mut RowCounts) {
        for (table, rows) in [
            ("state_groups", self.groups),
            ("state_groups_state", self.entries),
            ("state_group_edges", self.edges),
            ("state_groups_pending_deletion", self.pending),
            ("event_to_state_groups", self.mappings),
            ("state_groups_persisting", self.persisting),
        ] {
            add(counts, table, rows);
        }
        for (table, rows) in &self.notes {
            add(counts, table, *rows);
        }
    }
}

/// Deletes groups, children before parents, until about `rows` rows are gone; answers how many of `groups`
/// were dealt with. Inside a transaction. A group that something refers to after all stays, and so do those
/// that it rests on, and one that is `in_use`; one of another room has got the number since it was decided on. `each` hears
/// of every group before it goes; its error ends the work.
pub fn delete(
    db: &Tx<'_>,
    room: &RoomId,
    groups: &[i64],
    in_use: &BTreeSet<i64>,
    rows: i64,
    freed: &mut Freed,
    each: &mut dyn FnMut(&Db, i64) -> Result<(), Error>,
) -> Result<usize, Error> {
    db.ensure_held(room)?;
    let doing = "delete state groups";
    let until = freed.entries + rows;
    for (done, &group) in groups.iter().enumerate() {
        if freed.entries >= until {
            return Ok(done);
        }
        if db.count(doing, OF_ROOM, params![group, room.as_str()])? == 0 {
            continue;
        }
        let is_referenced = in_use.contains(&group)
            || db.count(doing, REFERENCED, params![group])? == 1
            || !db
                .rows(doing, NEXT, params![group], |r| r.get::<_, i64>(0))?
                .is_empty();
        if is_referenced {
            log::warn!("state group {group} is referred to again and stays");
            continue;
        }
        if rows_of_another_room(db, group, room)? > 0 {
            log::warn!("state group {group} has rows that are not of its room: it stays");
            continue;
        }
        each(db, group)?;
        delete_group(db, group, freed)?;
    }
    Ok(groups.len())
}

/// Deletes a group that no event which is held has, with everything that says something of it.
fn delete_group(db: &Tx<'_>, group: i64, freed: &mut Freed) -> Result<(), Error> {
    let doing = "delete state groups";
    freed.mappings += db.execute(doing, DELETE_MAPPINGS, params![group])?;
    freed.entries += db.execute(doing, DELETE_ENTRIES, params![group])?;
    freed.edges += db.execute(doing, DELETE_EDGES, params![group])?;
    freed.edges += db.execute(doing, DELETE_EDGES_TO, params![group])?;
    freed.groups += db.execute(doing, DELETE_GROUP, params![group])?;
    if db.catalog().has("state_groups_pending_deletion") {
        freed.pending += db.execute(doing, DELETE_PENDING, params![group])?;
    }
    if db.catalog().has("state_groups_persisting") {
        freed.persisting += db.execute(doing, DELETE_PERSISTING, params![group])?;
    }
    Ok(())
}

/// P-41: leaves the groups to the running homeserver, which deletes them ten minutes later. Mappings of events that are
/// not held go: the homeserver would take them for references.
pub fn mark(db: &Tx<'_>, groups: &[i64], now: Millis, freed: &mut Freed) -> Result<(), Error> {
    let doing = "mark state groups for deletion";
    for group in groups {
        freed.mappings += db.execute(doing, DELETE_MAPPINGS, params![group])?;
    }
    let groups = serde_json::to_string(groups).map_err(|e| Error::Bug(e.to_string()))?;
    db.execute(doing, MARK, params![now.0, groups])?;
    Ok(())
}

/// P-46: rows that wait for the deletion of a group which is gone. Nothing else ever removes them.
const FORGET_ORPHANS: &str = "
    DELETE FROM state_groups_pending_deletion
     WHERE NOT EXISTS (
           SELECT 1 FROM state_groups g WHERE g.id = state_groups_pending_deletion.state_group)";

/// Forgets them, whatever room they were of.
pub fn forget_orphans(db: &Tx<'_>, counts: &mut RowCounts) -> Result<(), Error> {
    if db.catalog().has("state_groups_pending_deletion") {
        let doing = "forget state groups that are gone";
        add(
            counts,
            "state_groups_pending_deletion",
            db.execute(doing, FORGET_ORPHANS, &[])?,
        );
    }
    Ok(())
}
