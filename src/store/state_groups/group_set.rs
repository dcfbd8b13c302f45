//! Numbers of state groups, as bits.

use std::collections::BTreeMap;

/// Bits of one page.
const PAGE: i64 = 1_024;

/// A set of state groups. A server hands their numbers out one after the other, so a bit each is enough: a million take
/// some 200 KiB where they lie close together, and never more than some 200 bytes each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupSet {
    pages: BTreeMap<i64, [u64; 16]>,
}

impl GroupSet {
    fn place(group: i64) -> (i64, usize, u64) {
        let bit = group.rem_euclid(PAGE);
        // Below 1,024.
        let bit = usize::try_from(bit).unwrap_or(0);
        (group.div_euclid(PAGE), bit / 64, 1 << (bit % 64))
    }

    /// Adds a group.
    pub fn insert(&mut self, group: i64) {
        let (page, word, bit) = Self::place(group);
        self.pages.entry(page).or_default()[word] |= bit;
    }

    /// Takes a group out.
    #[cfg(test)]
    pub fn remove(&mut self, group: i64) {
        let (page, word, bit) = Self::place(group);
        if let Some(words) = self.pages.get_mut(&page) {
            words[word] &= !bit;
            if words.iter().all(|word| *word == 0) {
                self.pages.remove(&page);
            }
        }
    }

    /// Whether a group is in it.
    pub fn contains(&self, group: i64) -> bool {
        let (page, word, bit) = Self::place(group);
        self.pages
            .get(&page)
            .is_some_and(|words| words[word] & bit != 0)
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        let words = self.pages.values().flatten();
        words.map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Windows of at most about `most` groups each, the highest numbers first: lowest and highest number of each.
    pub fn windows(&self, most: u64) -> Vec<(i64, i64)> {
        let mut windows: Vec<(i64, i64)> = Vec::new();
        let mut held = 0;
        for (page, words) in self.pages.iter().rev() {
            let groups: u64 = words.iter().map(|word| u64::from(word.count_ones())).sum();
            let lowest = page.saturating_mul(PAGE);
            match windows.last_mut() {
                Some(window) if held + groups <= most => {
                    window.0 = lowest;
                    held += groups;
                }
                _ => {
                    windows.push((lowest, lowest.saturating_add(PAGE - 1)));
                    held = groups;
                }
            }
        }
        windows
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn a_set_of_groups_is_the_set_that_it_should_be_and_its_windows_hold_all_of_it() {
        let seed = crate::support::work::seed();
        println!("ROOMKEEPER_SEED={seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        for spread in [100, 5_000, 1_000_000, i64::MAX] {
            let (mut set, mut model) = (GroupSet::default(), BTreeSet::new());
            for _ in 0..2_000 {
                let group = rng.random_range(-spread..spread);
                if rng.random_ratio(1, 4) {
                    set.remove(group);
                    model.remove(&group);
                } else {
                    set.insert(group);
                    model.insert(group);
                }
            }
            assert_eq!(set.len(), model.len() as u64, "seed {seed}");
            assert_eq!(set.is_empty(), model.is_empty());
            for _ in 0..2_000 {
                let group = rng.random_range(-spread..spread);
                assert_eq!(set.contains(group), model.contains(&group), "seed {seed}");
            }
            for most in [1, 50, 1_000_000] {
                let windows = set.windows(most);
                let inside = |group: &i64| {
                    let holds = windows.iter().filter(|w| w.0 <= *group && *group <= w.1);
                    holds.count()
                };
                assert!(model.iter().all(|group| inside(group) == 1), "seed {seed}");
                assert!(windows.windows(2).all(|pair| pair[1].1 < pair[0].0));
            }
        }
    }
}
