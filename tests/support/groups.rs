//! State groups of a draft: which state each event leaves behind, and how the groups are stored.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rusqlite::Connection;

use super::draft::Event;
use super::tables::{Value, insert, row};

/// Event ids by (type, state key).
pub type State = BTreeMap<(String, String), String>;

/// One group as it is stored: in full, or as a delta on a base of lower number.
#[derive(Clone, Debug)]
pub struct Group {
    pub id: i64,
    pub room: String,
    pub event: String,
    pub base: Option<i64>,
    pub entries: State,
}

/// All groups of a draft.
pub struct Groups {
    rng: StdRng,
    pub groups: BTreeMap<i64, Group>,
    pub of_event: BTreeMap<String, i64>,
    full: BTreeMap<i64, State>,
    /// One in how many groups is stored in full although it need not be; 0 for none.
    pub full_one_in: u32,
}

impl Groups {
    /// Nothing yet.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed ^ 0x57a7e),
            groups: BTreeMap::new(),
            of_event: BTreeMap::new(),
            full: BTreeMap::new(),
            full_one_in: 12,
        }
    }

    /// The state after an event, as a map of its own.
    pub fn state_of_event(&self, event: &str) -> Option<State> {
        self.of_event.get(event).map(|g| self.full[g].clone())
    }

    /// Stores a state as a new group, on `base` where that can be.
    pub fn store(&mut self, room: &str, event: &str, state: State, base: Option<i64>) -> i64 {
        let id = self.groups.keys().next_back().map_or(1, |last| last + 1);
        // A delta takes nothing away.
        let base = base.filter(|b| self.full[b].keys().all(|key| state.contains_key(key)));
        let in_full = self.full_one_in > 0 && self.rng.random_ratio(1, self.full_one_in);
        let base = base.filter(|_| !in_full);
        let entries = match base {
            Some(base) => {
                let below = &self.full[&base];
                let differs = |key: &(String, String), id: &String| below.get(key) != Some(id);
                state
                    .iter()
                    .filter(|(k, v)| differs(k, v))
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect()
            }
            None => state.clone(),
        };
        let group = Group {
            id,
            room: room.to_owned(),
            event: event.to_owned(),
            base,
            entries,
        };
        self.groups.insert(id, group);
        self.full.insert(id, state);
        id
    }

    /// A group that nothing refers to, on `base`, with one entry more or changed.
    pub fn store_unused(&mut self, base: i64, key: (&str, &str), value: &str) -> i64 {
        let room = self.groups[&base].room.clone();
        let mut state = self.full[&base].clone();
        state.insert((key.0.to_owned(), key.1.to_owned()), value.to_owned());
        self.store(&room, value, state, Some(base))
    }

    /// Groups that no event refers to.
    pub fn unused(&self) -> Vec<i64> {
        let used: BTreeSet<&i64> = self.of_event.values().collect();
        self.groups
            .keys()
            .filter(|g| !used.contains(g))
            .copied()
            .collect()
    }

    /// Gives every event of the room's timeline its group, in the order in which they arrived.
    pub fn settle(&mut self, room: &str, events: &[&Event]) {
        let before = states_before(events);
        let mut arrived: Vec<&&Event> = events.iter().filter(|e| !e.outlier).collect();
        // Live events in order; then those that were backfilled, the deepest first.
        arrived.sort_by_key(|e| (e.stream < 0, e.stream.abs()));
        for event in arrived {
            let state = before[event.id.as_str()].clone();
            let bases: Vec<i64> = event
                .prevs
                .iter()
                .filter_map(|p| self.of_event.get(p))
                .copied()
                .collect();
            let same = bases.iter().find(|g| self.full[*g] == state).copied();
            let changes = event.state_key.is_some() && !event.rejected;
            let group = match same {
                Some(group) => group,
                None => self.store(room, &event.id, state.clone(), bases.first().copied()),
            };
            let group = if changes {
                let mut after = state;
                after.insert(key_of(event), event.id.clone());
                self.store(room, &event.id, after, Some(group))
            } else {
                group
            };
            self.of_event.insert(event.id.clone(), group);
        }
    }

    /// Writes the groups and what refers to them.
    pub fn write(&self, conn: &Connection) {
        for group in self.groups.values() {
            insert(
                conn,
                "state_groups",
                &row([
                    ("id", group.id.into()),
                    ("room_id", (&group.room).into()),
                    ("event_id", (&group.event).into()),
                ]),
            );
            if let Some(base) = group.base {
                insert(
                    conn,
                    "state_group_edges",
                    &row([
                        ("state_group", group.id.into()),
                        ("prev_state_group", base.into()),
                    ]),
                );
            }
            for ((kind, key), event) in &group.entries {
                insert(
                    conn,
                    "state_groups_state",
                    &row([
                        ("state_group", group.id.into()),
                        ("room_id", (&group.room).into()),
                        ("type", kind.into()),
                        ("state_key", key.into()),
                        ("event_id", event.into()),
                    ]),
                );
            }
        }
        for (event, group) in &self.of_event {
            let cells = row([
                ("event_id", event.into()),
                ("state_group", Value::from(*group)),
            ]);
            insert(conn, "event_to_state_groups", &cells);
        }
    }
}

fn key_of(event: &Event) -> (String, String) {
    (
        event.kind.clone(),
        event.state_key.clone().unwrap_or_default(),
    )
}

/// The state before each event of the timeline: what those it follows leave behind, the deepest having the last
/// word. Where none of them is held, the state came with the event: all that is held of lower depth.
fn states_before<'a>(events: &[&'a Event]) -> BTreeMap<&'a str, State> {
    let mut in_order: Vec<&Event> = events.to_vec();
    in_order.sort_by_key(|e| (e.depth, e.stream));
    let mut before: BTreeMap<&str, State> = BTreeMap::new();
    let mut after: BTreeMap<&str, State> = BTreeMap::new();
    for event in in_order.iter().filter(|e| !e.outlier) {
        let mut held: Vec<&&Event> = in_order
            .iter()
            .filter(|p| !p.outlier && event.prevs.contains(&p.id))
            .collect();
        held.sort_by_key(|p| (p.depth, p.stream));
        let state: State = if held.is_empty() && !event.prevs.is_empty() {
            let sound = |e: &&&Event| e.state_key.is_some() && !e.rejected && e.depth < event.depth;
            in_order
                .iter()
                .filter(sound)
                .map(|e| (key_of(e), e.id.clone()))
                .collect()
        } else {
            held.iter()
                .flat_map(|p| after.get(p.id.as_str()).cloned().unwrap_or_default())
                .collect()
        };
        before.insert(&event.id, state.clone());
        let mut then = state;
        if event.state_key.is_some() && !event.rejected {
            then.insert(key_of(event), event.id.clone());
        }
        after.insert(&event.id, then);
    }
    before
}
