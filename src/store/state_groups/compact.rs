//! States as numbers: each word of a room once, each state a row of numbers.
//!
//! A room of twenty thousand members has twenty thousand states of twenty thousand entries each. As numbers they are compared
//! and copied at the speed of memory, and only those that were asked for lately are held.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;

use crate::error::Error;
use crate::store::db::{Db, params};

/// Bytes of states that are held at most, beside the one that is asked for.
const MOST_BYTES: usize = 48 * 1024 * 1024;

/// States that are held at most.
const MOST_STATES: usize = 20_000;

/// Entries that are compared at once: most states are the same over long stretches.
const STRETCH: usize = 64;

const ENTRIES: &str =
    "SELECT type, state_key, event_id FROM state_groups_state WHERE state_group = $1";

const BASES: &str = "SELECT prev_state_group FROM state_group_edges WHERE state_group = $1 ORDER BY prev_state_group";

/// Texts, each once, by numbers from 1.
struct Texts {
    all: String,
    ends: Vec<usize>,
    ids: HashMap<u64, u32>,
    hasher: RandomState,
}

impl Texts {
    fn new() -> Self {
        Self {
            all: String::new(),
            ends: vec![0],
            ids: HashMap::new(),
            hasher: RandomState::new(),
        }
    }

    fn text(&self, id: u32) -> &str {
        let id = id as usize;
        match (self.ends.get(id.wrapping_sub(1)), self.ends.get(id)) {
            (Some(from), Some(to)) => &self.all[*from..*to],
            _ => "",
        }
    }

    fn id(&mut self, text: &str) -> Result<u32, Error> {
        let mut place = self.hasher.hash_one(text);
        // Two texts may have one hash: the second stands at the next place.
        while let Some(id) = self.ids.get(&place) {
            if self.text(*id) == text {
                return Ok(*id);
            }
            place = place.wrapping_add(1);
        }
        let id = u32::try_from(self.ends.len())
            .map_err(|_| Error::Refused("a room has more than four billion words".into()))?;
        self.all.push_str(text);
        self.ends.push(self.all.len());
        self.ids.insert(place, id);
        Ok(id)
    }
}

/// One entry of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    /// Type and state key.
    key: u32,
    event: u32,
}

/// The words of a room.
pub(super) struct Words {
    keys: Texts,
    events: Texts,
    joined: String,
}

impl Words {
    pub(super) fn new() -> Self {
        Self {
            keys: Texts::new(),
            events: Texts::new(),
            joined: String::new(),
        }
    }

    pub(super) fn entry(&mut self, kind: &str, key: &str, event: &str) -> Result<Entry, Error> {
        let mut joined = std::mem::take(&mut self.joined);
        joined.clear();
        // With the length before it, no two pairs are one text.
        joined.push_str(&kind.len().to_string());
        joined.push(':');
        joined.push_str(kind);
        joined.push_str(key);
        let key = self.keys.id(&joined);
        self.joined = joined;
        Ok(Entry {
            key: key?,
            event: self.events.id(event)?,
        })
    }

    /// Type, state key, event.
    pub(super) fn texts(&self, entry: Entry) -> (&str, &str, &str) {
        let (length, rest) = self
            .keys
            .text(entry.key)
            .split_once(':')
            .unwrap_or(("0", ""));
        let (kind, key) = rest.split_at(length.parse().unwrap_or(0).min(rest.len()));
        (kind, key, self.events.text(entry.event))
    }
}

/// A state: the event of each key, 0 where it has none.
#[derive(Clone, Debug, Default)]
pub(super) struct Compact {
    events: Vec<u32>,
    entries: usize,
}

impl Compact {
    /// How many entries it has.
    pub(super) fn len(&self) -> usize {
        self.entries
    }

    fn set(&mut self, entry: Entry) {
        let at = entry.key as usize;
        if self.events.len() <= at {
            self.events.resize(at + 1, 0);
        }
        self.entries += usize::from(self.events[at] == 0);
        self.events[at] = entry.event;
    }

    fn bytes(&self) -> usize {
        self.events.len() * 4 + 64
    }

    fn at(&self, key: usize) -> u32 {
        self.events.get(key).copied().unwrap_or(0)
    }

    /// Every key whose event is another in `base`, and both; until `each` has enough.
    fn differences(&self, base: &Self, each: &mut dyn FnMut(usize, u32, u32) -> bool) {
        let both = self.events.len().min(base.events.len());
        let mut from = 0;
        while from < both {
            let to = (from + STRETCH).min(both);
            if self.events[from..to] != base.events[from..to] {
                for key in from..to {
                    let (is, was) = (self.events[key], base.events[key]);
                    if is != was && !each(key, is, was) {
                        return;
                    }
                }
            }
            from = to;
        }
        for key in both..self.events.len().max(base.events.len()) {
            let (is, was) = (self.at(key), base.at(key));
            if is != was && !each(key, is, was) {
                return;
            }
        }
    }

    /// How many entries make this state out of `base`; none where it cannot be made: a delta takes nothing away.
    pub(super) fn delta_length(&self, base: &Self) -> Option<usize> {
        let mut length = Some(0);
        self.differences(base, &mut |_, is, _| {
            length = length.filter(|_| is != 0).map(|n| n + 1);
            length.is_some()
        });
        length
    }

    /// These entries; all of them without a base.
    pub(super) fn delta(&self, base: Option<&Self>) -> Vec<Entry> {
        let (mut delta, nothing) = (Vec::new(), Self::default());
        self.differences(base.unwrap_or(&nothing), &mut |key, event, _| {
            if let (Ok(key), true) = (u32::try_from(key), event != 0) {
                delta.push(Entry { key, event });
            }
            true
        });
        delta
    }

    /// Whether both say the same.
    pub(super) fn is(&self, other: &Self) -> bool {
        let mut same = true;
        self.differences(other, &mut |_, _, _| {
            same = false;
            false
        });
        same
    }
}

/// How a group is stored.
#[derive(Clone, Debug, Default)]
pub(super) struct Stored {
    /// The groups that it is a delta on: one or none, or it is not as it should be.
    pub(super) bases: Vec<i64>,
    /// In order of their keys.
    pub(super) entries: Vec<Entry>,
}

impl Stored {
    /// Whether a key stands there twice.
    pub(super) fn has_doubles(&self) -> bool {
        self.entries
            .windows(2)
            .any(|pair| pair[0].key == pair[1].key)
    }
}

/// States by group, those that were asked for lately.
pub(super) struct Lately {
    states: HashMap<i64, (Rc<Compact>, u64)>,
    order: BTreeMap<u64, i64>,
    bytes: usize,
    asked: u64,
}

impl Lately {
    pub(super) fn new() -> Self {
        Self {
            states: HashMap::new(),
            order: BTreeMap::new(),
            bytes: 0,
            asked: 0,
        }
    }

    fn get(&mut self, group: i64) -> Option<Rc<Compact>> {
        let (state, asked) = self.states.get_mut(&group)?;
        self.order.remove(asked);
        self.asked += 1;
        *asked = self.asked;
        self.order.insert(self.asked, group);
        Some(state.clone())
    }

    fn hold(&mut self, group: i64, state: Rc<Compact>) {
        self.asked += 1;
        self.bytes += state.bytes();
        self.order.insert(self.asked, group);
        if let Some((before, asked)) = self.states.insert(group, (state, self.asked)) {
            self.order.remove(&asked);
            self.bytes -= before.bytes();
        }
        while self.bytes > MOST_BYTES || self.states.len() > MOST_STATES {
            let Some((_, oldest)) = self.order.pop_first() else {
                return;
            };
            if let Some((state, _)) = self.states.remove(&oldest) {
                self.bytes -= state.bytes();
            }
        }
    }

    /// The state of a group: by `known`, where that says how a group of its chain is stored, else by the database. Nothing
    /// where the chain does not lead to a group that is stored in full, one step at a time and to lower numbers, as
    /// Synapse reads it.
    pub(super) fn of(
        &mut self,
        db: &Db,
        words: &mut Words,
        known: &dyn Fn(i64) -> Option<Rc<Stored>>,
        group: i64,
    ) -> Result<Option<Rc<Compact>>, Error> {
        let mut path: Vec<(i64, Rc<Stored>)> = Vec::new();
        let mut at = group;
        let mut state = loop {
            if let Some(held) = self.get(at) {
                break held;
            }
            let stored = match known(at) {
                Some(stored) => stored,
                None => Rc::new(read_one(db, words, at)?),
            };
            if stored.has_doubles() {
                return Ok(None);
            }
            let bases = stored.bases.clone();
            path.push((at, stored));
            match bases.as_slice() {
                [] => break Rc::default(),
                [base] if *base < at => at = *base,
                _ => return Ok(None),
            }
        };
        while let Some((at, stored)) = path.pop() {
            let made = Rc::make_mut(&mut state);
            for entry in &stored.entries {
                made.set(*entry);
            }
            // Of a long chain that had to be read, the end and what it rests on are asked for again.
            if path.len() < 2 {
                self.hold(at, state.clone());
            }
        }
        Ok(Some(state))
    }
}

fn read_one(db: &Db, words: &mut Words, group: i64) -> Result<Stored, Error> {
    let doing = "read the state of a state group";
    let bases = db.rows(doing, BASES, params![group], |r| r.get::<_, i64>(0))?;
    let (mut entries, mut failed) = (Vec::new(), None);
    db.for_each(doing, ENTRIES, params![group], |r| {
        match words.entry(r.text(0)?, r.text(1)?, r.text(2)?) {
            Ok(entry) => entries.push(entry),
            Err(e) => failed = Some(e),
        }
        Ok(())
    })?;
    if let Some(e) = failed {
        return Err(e);
    }
    entries.sort_unstable();
    Ok(Stored { bases, entries })
}
