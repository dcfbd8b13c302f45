//! State groups by the rules (P-30 to P-46, and design.md section 3: never more rows than before), on tables in memory.

use std::collections::{BTreeMap, BTreeSet};

use super::groups::State;
use super::tables::Tables;

/// The tables of state groups: how they are stored is free, what they say is not.
pub const STATE: &[&str] = &[
    "state_groups",
    "state_groups_state",
    "state_group_edges",
    "state_groups_pending_deletion",
    "sqlite_sequence",
];

/// What must hold of the state tables afterwards.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    /// Groups that go.
    pub gone: BTreeSet<i64>,
    /// Groups that stay, with the state that each must have.
    pub states: BTreeMap<i64, State>,
    /// Rows of `state_groups_state` and of `state_group_edges` that are left.
    pub entries: i64,
    pub edges: i64,
    /// Groups that the homeserver is asked to delete, when it may be running (P-41): `gone`, if not asked before.
    pub to_mark: BTreeSet<i64>,
}

/// The groups of a database.
pub struct Graph {
    pub base: BTreeMap<i64, i64>,
    pub children: BTreeMap<i64, BTreeSet<i64>>,
    pub entries: BTreeMap<i64, State>,
    pub exist: BTreeSet<i64>,
    referenced: BTreeSet<i64>,
    in_use: BTreeSet<i64>,
}

impl Graph {
    /// Reads the state tables.
    pub fn of(tables: &Tables) -> Self {
        let numbers = |table: &str, column: &str| -> BTreeSet<i64> {
            tables
                .rows(table)
                .iter()
                .map(|r| r.number(column))
                .collect()
        };
        let mut graph = Self {
            base: BTreeMap::new(),
            children: BTreeMap::new(),
            entries: BTreeMap::new(),
            exist: numbers("state_groups", "id"),
            referenced: numbers("event_to_state_groups", "state_group"),
            in_use: numbers("state_groups_persisting", "state_group"),
        };
        for edge in tables.rows("state_group_edges") {
            let (group, base) = (edge.number("state_group"), edge.number("prev_state_group"));
            graph.base.insert(group, base);
            graph.children.entry(base).or_default().insert(group);
        }
        for entry in tables.rows("state_groups_state") {
            let key = (
                entry.word("type").to_owned(),
                entry.word("state_key").to_owned(),
            );
            let of_group = graph
                .entries
                .entry(entry.number("state_group"))
                .or_default();
            of_group.insert(key, entry.word("event_id").to_owned());
        }
        graph
    }

    /// P-33: the entry nearest to the group wins.
    pub fn state(&self, group: i64) -> State {
        let mut state = State::new();
        let (mut at, mut met) = (Some(group), BTreeSet::new());
        // A circle says nothing new the second time.
        while let Some(here) = at.filter(|here| met.insert(*here)) {
            for (key, event) in self.entries.get(&here).into_iter().flatten() {
                state.entry(key.clone()).or_insert_with(|| event.clone());
            }
            at = self.base.get(&here).copied();
        }
        state
    }

    /// The resolved state after every event that has one.
    pub fn of_events(tables: &Tables) -> BTreeMap<String, State> {
        let graph = Self::of(tables);
        let groups = tables.rows("event_to_state_groups").iter();
        groups
            .map(|r| {
                (
                    r.word("event_id").to_owned(),
                    graph.state(r.number("state_group")),
                )
            })
            .collect()
    }

    fn size(&self, group: i64) -> usize {
        self.entries.get(&group).map_or(0, State::len)
    }

    /// Rows that `group` takes as a delta on `base`; none when it cannot be one.
    fn size_on(&self, group: i64, base: i64) -> Option<usize> {
        let (state, below) = (self.state(group), self.state(base));
        if below.keys().any(|key| !state.contains_key(key)) {
            return None;
        }
        Some(
            state
                .iter()
                .filter(|(key, event)| below.get(*key) != Some(event))
                .count(),
        )
    }

    /// P-30, both ways; what an event in flight uses stays with all that it rests on (P-45).
    fn unreferenced(&self, candidates: &BTreeSet<i64>) -> BTreeSet<i64> {
        let mut seen = candidates.clone();
        let mut queue: Vec<i64> = candidates.iter().copied().collect();
        let mut found = BTreeSet::new();
        while let Some(group) = queue.pop() {
            let stays = self.referenced.contains(&group) || self.in_use.contains(&group);
            if stays || !self.exist.contains(&group) {
                continue;
            }
            found.insert(group);
            let children = self.children.get(&group).into_iter().flatten();
            for next in self.base.get(&group).into_iter().chain(children) {
                if seen.insert(*next) {
                    queue.push(*next);
                }
            }
        }
        for group in &self.in_use {
            let mut at = self.base.get(group);
            // A group beneath one that stays anyway is stored anew, if need be.
            while let Some(base) = at.filter(|base| found.remove(base)) {
                at = self.base.get(base);
            }
        }
        found
    }
}

/// Lets go of what nothing refers to, as far as that takes no more rows than before.
pub fn collect(tables: &Tables, candidates: &BTreeSet<i64>) -> Collected {
    let graph = Graph::of(tables);
    let mut gone = graph.unreferenced(candidates);
    let count = |table: &str| i64::try_from(tables.rows(table).len()).expect("few");
    let (mut entries, mut edges) = (count("state_groups_state"), count("state_group_edges"));
    for tree in trees(&graph, &gone) {
        let survivors: BTreeSet<i64> = tree
            .iter()
            .flat_map(|g| graph.children.get(g).into_iter().flatten())
            .filter(|child| !tree.contains(child) && graph.exist.contains(child))
            .copied()
            .collect();
        let beneath = beneath(&graph, &survivors, &tree);
        let above = beneath
            .first()
            .and_then(|root| graph.base.get(root))
            .copied();
        let held: usize = beneath
            .iter()
            .chain(&survivors)
            .map(|g| graph.size(*g))
            .sum();
        let (mut needed, mut rebased) = (0, 0);
        for &group in &survivors {
            let siblings = survivors.iter().copied().take_while(|s| *s < group);
            let bases = above
                .into_iter()
                .filter(|a| graph.exist.contains(a))
                .chain(siblings);
            let sizes = bases.filter_map(|base| graph.size_on(group, base));
            let in_full = graph.state(group).len();
            let best = sizes.min().unwrap_or(in_full).min(in_full);
            needed += best;
            rebased += i64::from(best < in_full);
        }
        if needed > held {
            for group in &beneath {
                gone.remove(group);
            }
        } else {
            let survivors_held: usize = survivors.iter().map(|g| graph.size(*g)).sum();
            entries +=
                i64::try_from(needed).expect("few") - i64::try_from(survivors_held).expect("few");
            edges += rebased - i64::try_from(survivors.len()).expect("few");
        }
    }
    for group in &gone {
        entries -= i64::try_from(graph.size(*group)).expect("few");
        edges -= i64::from(graph.base.contains_key(group));
        // Edges of groups that were never there, left by others (defect J).
        let children = graph.children.get(group).into_iter().flatten();
        edges -= i64::try_from(children.filter(|c| !graph.exist.contains(c)).count()).expect("few");
    }
    let marked: BTreeSet<i64> = tables
        .rows("state_groups_pending_deletion")
        .iter()
        .map(|r| r.number("state_group"))
        .collect();
    let states = graph
        .exist
        .difference(&gone)
        .map(|g| (*g, graph.state(*g)))
        .collect();
    Collected {
        to_mark: gone.difference(&marked).copied().collect(),
        gone,
        states,
        entries,
        edges,
    }
}

/// The groups that go, those that hang together apart from the others.
fn trees(graph: &Graph, gone: &BTreeSet<i64>) -> Vec<BTreeSet<i64>> {
    let mut by_root: BTreeMap<i64, BTreeSet<i64>> = BTreeMap::new();
    for &group in gone {
        let mut root = group;
        while let Some(base) = graph.base.get(&root).filter(|b| gone.contains(b)) {
            root = *base;
        }
        by_root.entry(root).or_default().insert(group);
    }
    by_root.into_values().collect()
}

/// Of a tree, the groups that survivors rest on.
fn beneath(graph: &Graph, survivors: &BTreeSet<i64>, tree: &BTreeSet<i64>) -> BTreeSet<i64> {
    let mut found = BTreeSet::new();
    for survivor in survivors {
        let mut at = graph.base.get(survivor);
        while let Some(group) = at.filter(|g| tree.contains(g)) {
            found.insert(*group);
            at = graph.base.get(group);
        }
    }
    found
}
