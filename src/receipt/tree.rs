//! A Merkle tree over receipts, as RFC 6962 has it: its root says what every receipt is and in which order they came, and a
//! few hashes prove that one of them is in it. Pure: whoever keeps the hashes hands them out.
//!
//! What is kept are the roots of whole subtrees, named by their level (0 is a leaf) and their place in it. So an append
//! costs one hash a level at most, and a root or a proof reads as many as the tree is high.

use sha2::{Digest, Sha256};

/// A SHA-256.
pub type Hash = [u8; 32];

/// The hash of a leaf.
pub fn leaf(bytes: &[u8]) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update([0]);
    hasher.update(bytes);
    hasher.finalize().into()
}

/// The hash of two subtrees.
pub fn node(left: &Hash, right: &Hash) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update([1]);
    hasher.update(left);
    hasher.update(right);
    hasher.finalize().into()
}

/// The root of a tree of nothing.
pub fn empty() -> Hash {
    Sha256::new().finalize().into()
}

/// The whole subtrees of a tree, largest first: all that is needed to go on with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Hash>,
}

/// A subtree that became whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    /// How high it is; two leaves are at level 1.
    pub level: u32,
    /// How many of its level are before it.
    pub place: u64,
    /// Its root.
    pub hash: Hash,
}

impl Frontier {
    /// How many leaves the tree has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf, and hands out every subtree that is whole with it, the leaf not among them.
    pub fn push(&mut self, leaf: Hash, mut whole: impl FnMut(Whole)) {
        let (mut hash, mut level) = (leaf, 0);
        while (self.size >> level) & 1 == 1 {
            let Some(left) = self.peaks.pop() else { break };
            hash = node(&left, &hash);
            level += 1;
            whole(Whole {
                level,
                place: self.size >> level,
                hash,
            });
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// The root of the tree.
    pub fn root(&self) -> Hash {
        let peaks = self.peaks.iter().copied();
        peaks
            .rev()
            .reduce(|right, left| node(&left, &right))
            .unwrap_or_else(empty)
    }
}

/// Answers the root of the whole subtree of a level at a place.
pub type Kept<'a, E> = &'a mut dyn FnMut(u32, u64) -> Result<Hash, E>;

/// The root over the leaves from `start` on, `count` of them; `start` is where a subtree of that size begins.
fn over<E>(start: u64, count: u64, kept: Kept<'_, E>) -> Result<Hash, E> {
    match count {
        0 => Ok(empty()),
        _ if count.is_power_of_two() => {
            let level = count.trailing_zeros();
            kept(level, start >> level)
        }
        _ => {
            let left = largest_below(count);
            let first = over(start, left, kept)?;
            Ok(node(&first, &over(start + left, count - left, kept)?))
        }
    }
}

/// The largest power of two that is less than this, which is at least 2.
fn largest_below(count: u64) -> u64 {
    1 << (63 - (count - 1).leading_zeros())
}

/// The root of the tree of the first `size` leaves.
///
/// # Errors
/// Those of `kept`.
pub fn root<E>(size: u64, kept: Kept<'_, E>) -> Result<Hash, E> {
    over(0, size, kept)
}

/// What proves that the leaf of this index is in the tree of the first `size` leaves (RFC 6962, 2.1.1); the index is less
/// than the size.
///
/// # Errors
/// Those of `kept`.
pub fn prove<E>(index: u64, size: u64, kept: Kept<'_, E>) -> Result<Vec<Hash>, E> {
    let (mut start, mut count, mut path) = (0, size, Vec::new());
    while count > 1 {
        let left = largest_below(count);
        if index < start + left {
            path.push(over(start + left, count - left, kept)?);
            count = left;
        } else {
            path.push(over(start, left, kept)?);
            (start, count) = (start + left, count - left);
        }
    }
    path.reverse();
    Ok(path)
}

/// The root that a leaf and its proof lead to; `None` where the proof is not one of that index and size.
#[cfg(test)]
pub fn proven(leaf: Hash, index: u64, size: u64, path: &[Hash]) -> Option<Hash> {
    if index >= size {
        return None;
    }
    // Which way it goes at every turn, from the root down.
    let (mut start, mut count, mut turns) = (0, size, Vec::new());
    while count > 1 {
        let left = largest_below(count);
        let goes_left = index < start + left;
        turns.push(goes_left);
        if goes_left {
            count = left;
        } else {
            (start, count) = (start + left, count - left);
        }
    }
    if turns.len() != path.len() {
        return None;
    }
    let steps = turns.iter().rev().zip(path);
    Some(
        steps.fold(leaf, |hash, (goes_left, other)| match goes_left {
            true => node(&hash, other),
            false => node(other, &hash),
        }),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::convert::Infallible;

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The leaves of the test vectors of RFC 6962's reference implementation.
    const LEAVES: [&[u8]; 8] = [
        b"",
        b"\x00",
        b"\x10",
        b"\x20\x21",
        b"\x30\x31",
        b"\x40\x41\x42\x43",
        b"\x50\x51\x52\x53\x54\x55\x56\x57",
        b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
    ];

    /// The roots of its first one, two, … leaves.
    const ROOTS: [&str; 8] = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];

    struct Tree {
        kept: HashMap<(u32, u64), Hash>,
        frontier: Frontier,
    }

    fn of(leaves: impl Iterator<Item = Hash>) -> Tree {
        let mut tree = Tree {
            kept: HashMap::new(),
            frontier: Frontier::default(),
        };
        for leaf in leaves {
            let at = tree.frontier.size();
            tree.kept.insert((0, at), leaf);
            tree.frontier.push(leaf, |whole| {
                let before = tree.kept.insert((whole.level, whole.place), whole.hash);
                assert_eq!(before, None, "whole once");
            });
        }
        tree
    }

    fn kept(tree: &Tree) -> impl FnMut(u32, u64) -> Result<Hash, Infallible> {
        |level, place| Ok(tree.kept[&(level, place)])
    }

    #[test]
    fn roots_are_those_of_the_test_vectors() {
        assert_eq!(
            hex(&Frontier::default().root()),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        for (size, expected) in (1..).zip(ROOTS) {
            let tree = of(LEAVES[..size].iter().map(|bytes| leaf(bytes)));
            assert_eq!(hex(&tree.frontier.root()), expected, "of {size}");
        }
    }

    #[test]
    fn every_leaf_of_every_tree_is_proven_and_nothing_else_is() {
        for size in 1..40_u64 {
            let leaves: Vec<Hash> = (0..size).map(|n| leaf(&n.to_be_bytes())).collect();
            let tree = of(leaves.iter().copied());
            let whole = tree.frontier.root();
            assert_eq!(root(size, &mut kept(&tree)), Ok(whole));
            for (index, leaf) in (0..).zip(&leaves) {
                let Ok(path) = prove(index, size, &mut kept(&tree));
                let is = |index, size, path: &[Hash]| proven(*leaf, index, size, path);
                assert_eq!(is(index, size, &path), Some(whole));
                assert!(path.len() <= 6);
                for other in (0..size).filter(|other| *other != index) {
                    assert_ne!(is(other, size, &path), Some(whole), "{other} of {size}");
                }
                assert_eq!(is(size, size, &path), None);
                for at in 0..path.len() {
                    let mut wrong = path.clone();
                    wrong[at][at % 32] ^= 1;
                    assert_ne!(is(index, size, &wrong), Some(whole));
                    assert_eq!(is(index, size, &path[..at]), None);
                }
            }
        }
    }

    #[test]
    fn the_roots_of_former_sizes_are_still_known() {
        let tree = of((0..100_u64).map(|n| leaf(&n.to_be_bytes())));
        for size in 0..100 {
            let then = of((0..size).map(|n: u64| leaf(&n.to_be_bytes())));
            assert_eq!(root(size, &mut kept(&tree)), Ok(then.frontier.root()));
        }
    }
}
