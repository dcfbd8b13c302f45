//! The state that a group names, put together along its chain (P-33), for as many groups as a plan looks at.
//!
//! A large room has a hundred thousand entries in each of thousands of states. So words are kept once, however many states
//! they stand in, and only the states that others are compared with are kept at all.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use super::{ENTRIES, previous};
use crate::error::Error;
use crate::store::db::{Db, params};

/// Event ids by type and state key.
pub(super) type Resolved = BTreeMap<(Rc<str>, Rc<str>), Rc<str>>;

/// Entries of a state, to be stored.
pub(super) type Entries = Vec<((Rc<str>, Rc<str>), Rc<str>)>;

/// Resolves states, starting from one that is kept where the chain leads to it.
pub(super) struct States<'a> {
    db: &'a Db,
    words: HashSet<Rc<str>>,
    /// Words that are looked through for those that nobody uses any more when there are so many.
    most_words: usize,
    kept: HashMap<i64, Rc<Resolved>>,
    /// The state that the last group is a delta on: the next is often a delta on the same, or a little further.
    base: Option<(i64, Rc<Resolved>)>,
}

/// Fewest words that are worth looking through.
const FEW_WORDS: usize = 10_000;

impl<'a> States<'a> {
    pub(super) fn new(db: &'a Db) -> Self {
        Self {
            db,
            words: HashSet::new(),
            most_words: FEW_WORDS,
            kept: HashMap::new(),
            base: None,
        }
    }

    /// Along the chain, the entry nearest to the group wins.
    pub(super) fn of(&mut self, group: i64) -> Result<Rc<Resolved>, Error> {
        let (mut path, mut met, mut base) = (Vec::new(), HashSet::new(), None);
        let mut state = Rc::new(Resolved::new());
        let mut next = Some(group);
        // A circle says nothing new the second time.
        while let Some(at) = next.filter(|at| met.insert(*at)) {
            if let Some(held) = self.held(at) {
                state = held;
                break;
            }
            path.push(at);
            next = previous(self.db, at)?;
            if at == group {
                base = next;
            }
        }
        while let Some(at) = path.pop() {
            if at == group {
                self.base = base.map(|base| (base, state.clone()));
            }
            let state = Rc::make_mut(&mut state);
            self.db.for_each(
                "read the state of a state group",
                ENTRIES,
                params![at],
                |r| {
                    let (kind, key): (String, String) = (r.get(0)?, r.get(1)?);
                    let event: String = r.get(2)?;
                    let key = (word(&mut self.words, kind), word(&mut self.words, key));
                    state.insert(key, word(&mut self.words, event));
                    Ok(())
                },
            )?;
        }
        if self.words.len() > self.most_words {
            self.words.retain(|word| Rc::strong_count(word) > 1);
            self.most_words = FEW_WORDS.max(2 * self.words.len());
        }
        Ok(state)
    }

    fn held(&self, group: i64) -> Option<Rc<Resolved>> {
        let base = self.base.as_ref().filter(|(base, _)| *base == group);
        base.map(|(_, state)| state)
            .or_else(|| self.kept.get(&group))
            .cloned()
    }

    /// Keeps a state: others will be compared with it.
    pub(super) fn keep(&mut self, group: i64, state: Rc<Resolved>) {
        self.kept.insert(group, state);
    }

    /// Lets go of everything.
    pub(super) fn forget(&mut self) {
        self.kept.clear();
        self.base = None;
        self.words.clear();
        self.most_words = FEW_WORDS;
    }

    /// How many states are held.
    #[cfg(test)]
    fn held_states(&self) -> usize {
        self.kept.len() + usize::from(self.base.is_some())
    }
}

fn word(words: &mut HashSet<Rc<str>>, text: String) -> Rc<str> {
    match words.get(&*text) {
        Some(word) => word.clone(),
        None => {
            let word: Rc<str> = text.into();
            words.insert(word.clone());
            word
        }
    }
}

fn is_same(a: &Rc<str>, b: &Rc<str>) -> bool {
    Rc::ptr_eq(a, b) || a == b
}

/// How many entries make `state` out of `base`, where that is fewer than `below`; none where it cannot be made: a delta
/// takes nothing away.
pub(super) fn delta_length(state: &Resolved, base: &Resolved, below: usize) -> Option<usize> {
    let (mut entries, mut count) = (state.iter(), 0);
    for (key, event) in base {
        loop {
            let (next, value) = entries.next()?;
            let is_it = is_same(&next.1, &key.1) && is_same(&next.0, &key.0);
            count += usize::from(!is_it || !is_same(value, event));
            if count >= below {
                return None;
            }
            if is_it {
                break;
            }
            if next > key {
                return None;
            }
        }
    }
    count += entries.count();
    (count < below).then_some(count)
}

/// The entries that make `state` out of `base`, or none when it cannot be made.
pub(super) fn delta(state: &Resolved, base: &Resolved) -> Option<Entries> {
    if base.keys().any(|key| !state.contains_key(key)) {
        return None;
    }
    Some(
        state
            .iter()
            .filter(|(key, event)| base.get(*key).is_none_or(|held| !is_same(held, event)))
            .map(|(key, event)| (key.clone(), event.clone()))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::store::db::OpenOptions;
    use crate::store::schema;

    /// The state as it was read before: entry by entry, nearest first.
    fn slowly(db: &Db, group: i64) -> BTreeMap<(String, String), String> {
        let mut state = BTreeMap::new();
        let mut next = Some(group);
        while let Some(at) = next {
            db.for_each("read", ENTRIES, params![at], |r| {
                state.entry((r.get(0)?, r.get(1)?)).or_insert(r.get(2)?);
                Ok(())
            })
            .expect("read");
            next = previous(db, at).expect("read");
        }
        state
    }

    #[test]
    fn states_are_those_of_the_slow_way_and_few_are_held() {
        let seed = crate::support::work::seed();
        println!("ROOMKEEPER_SEED={seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("homeserver.db");
        schema::create(&path).expect("makes");
        let db = Db::open(&path, &OpenOptions::default()).expect("opens");
        db.batch("begin", "PRAGMA foreign_keys = OFF; BEGIN")
            .expect("begins");
        for group in 1..200_i64 {
            db.execute(
                "add",
                "INSERT INTO state_groups (id, room_id, event_id) VALUES ($1, '!r', '$e')",
                params![group],
            )
            .expect("added");
            if group > 1 && rng.random_range(0..30) > 0 {
                let base = rng.random_range((group - 5).max(1)..group);
                db.execute("add", super::super::INSERT_EDGE, params![group, base])
                    .expect("added");
            }
            for _ in 0..rng.random_range(0..6) {
                let key = format!("@{}", rng.random_range(0..20));
                let event = format!("$e{}", rng.random_range(0..60));
                db.execute(
                    "add",
                    "INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id)
                     SELECT $1, '!r', 'm.room.member', $2, $3
                      WHERE NOT EXISTS (SELECT 1 FROM state_groups_state
                                         WHERE state_group = $1 AND state_key = $2)",
                    params![group, key, event],
                )
                .expect("added");
            }
        }
        db.batch("commit", "COMMIT").expect("commits");
        let mut states = States::new(&db);
        let kept = states.of(7).expect("resolved");
        states.keep(7, kept);
        let plain = |state: &Resolved| {
            let entries = state.iter();
            entries
                .map(|((kind, key), event)| {
                    ((kind.to_string(), key.to_string()), event.to_string())
                })
                .collect::<BTreeMap<_, _>>()
        };
        for _ in 0..400 {
            let (a, b) = (rng.random_range(1..200), rng.random_range(1..200));
            let (of_a, of_b) = (states.of(a).expect("a"), states.of(b).expect("b"));
            assert_eq!(plain(&of_a), slowly(&db, a), "seed {seed}, group {a}");
            assert_eq!(plain(&of_b), slowly(&db, b), "seed {seed}, group {b}");
            assert!(states.held_states() <= 2);
            let whole = delta(&of_a, &of_b).map(|entries| entries.len());
            for below in [0, 1, 3, usize::MAX] {
                let expected = whole.filter(|length| *length < below);
                assert_eq!(
                    delta_length(&of_a, &of_b, below),
                    expected,
                    "seed {seed}, {a} from {b}"
                );
            }
        }
    }
}
