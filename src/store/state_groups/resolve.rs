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

    /// The same, and lets go of all that were kept before.
    pub(super) fn keep_only(&mut self, group: i64, state: Rc<Resolved>) {
        self.kept.clear();
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

    use super::super::{Freed, Rebase, rebase_one};
    use super::*;
    use crate::ids::RoomId;
    use crate::store::db::{OpenOptions, Row};
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

    /// Two hundred groups, most of them deltas on one of the five before.
    fn random_groups(db: &Db, rng: &mut StdRng) {
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
    }

    #[test]
    fn groups_that_are_stored_anew_together_are_as_if_one_by_one() {
        let first = crate::support::work::seed();
        for seed in first..first + 5 {
            println!("ROOMKEEPER_SEED={seed}");
            let mut rng = StdRng::seed_from_u64(seed);
            let dir = tempfile::tempdir().expect("directory");
            let [path, copy] = ["homeserver.db", "copy.db"].map(|name| dir.path().join(name));
            schema::create(&path).expect("makes");
            let open = |path| Db::open(path, &OpenOptions::default()).expect("opens");
            let db = open(path.as_path());
            random_groups(&db, &mut rng);
            let before: Vec<_> = (1..200).map(|group| slowly(&db, group)).collect();
            drop(db);
            std::fs::copy(&path, &copy).expect("copied");
            // Several on the same base, on each other, on ones that will not do, and in full.
            let (mut rebases, mut base) = (Vec::new(), None);
            for group in 2..200_i64 {
                if rng.random_bool(0.3) {
                    base = rng.random_bool(0.8).then(|| rng.random_range(1..group));
                }
                if rng.random_bool(0.6) {
                    let base = base.filter(|base| *base < group);
                    rebases.push(Rebase { group, base });
                }
            }
            let room = RoomId::from("!r");
            let stored = |path, together: bool| {
                let mut db = open(path);
                let mut freed = Freed::default();
                let done = db.of_test("store groups anew", |tx| {
                    freed = Freed::default();
                    let mut states = States::new(tx);
                    for rebase in &rebases {
                        if !together {
                            states = States::new(tx);
                        }
                        rebase_one(tx, &room, *rebase, &mut states, &mut freed)?;
                        assert!(states.held_states() <= 2);
                    }
                    Ok(())
                });
                done.map_err(|_| "given up").expect("stored");
                let rows = |sql| {
                    let read = |r: &Row<'_>| Ok((r.get::<_, i64>(0)?, r.get::<_, String>(1)?));
                    db.rows("read", sql, &[], read).expect("read")
                };
                let entries = rows(
                    "SELECT state_group, type || ' ' || state_key || ' ' || event_id FROM state_groups_state ORDER BY 1, 2",
                );
                let edges = rows(
                    "SELECT state_group, CAST(prev_state_group AS TEXT) FROM state_group_edges ORDER BY 1, 2",
                );
                let states: Vec<_> = (1..200).map(|group| slowly(&db, group)).collect();
                assert!(states == before, "seed {seed}: a state changed");
                (entries, edges, freed)
            };
            let (together, apart) = (stored(path.as_path(), true), stored(copy.as_path(), false));
            assert!(together == apart, "seed {seed}");
        }
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
        random_groups(&db, &mut rng);
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
