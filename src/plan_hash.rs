//! What binds a plan: a hash over all that it says would go, so that what is carried out is that, or nothing.
//!
//! A plan is written as `rk1-TIME-EVENTS-MARKS-HASH`. The hash decides; the marks, one for each part of a plan, tell which
//! part is another by now. The time stands in it where what goes depends on it (an age, a policy): the plan is carried out
//! as of then. Pure.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ids::RoomId;
use crate::time::Millis;

/// What a plan is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What is asked for: the verb and its options.
    Asked,
    /// Which rooms, and which of them are left alone, for what reason.
    Rooms,
    /// The points up to which histories go.
    Points,
    /// Who would be moved out.
    People,
    /// The ids of the events that would go, and which of them stay as outliers.
    Events,
    /// The holds that keep something of it.
    Holds,
    /// The policies that it goes by.
    Policies,
    /// The engine, and the layout of the homeserver's tables.
    Schema,
    /// The media that would go with their messages.
    Media,
}

const PARTS: [Part; 9] = [
    Part::Asked,
    Part::Rooms,
    Part::Points,
    Part::People,
    Part::Events,
    Part::Holds,
    Part::Policies,
    Part::Schema,
    Part::Media,
];

/// Bytes of a part's mark.
const MARK: usize = 3;

/// Bytes of the hash.
const HASH: usize = 16;

/// All that a plan says, part by part, as it is read.
#[derive(Clone)]
pub struct PlanDigest {
    at: Option<Millis>,
    events: i64,
    parts: [Sha256; PARTS.len()],
}

impl PlanDigest {
    /// Of nothing yet. `at` is the time by which it judges, where what goes depends on that.
    pub fn new(at: Option<Millis>) -> Self {
        Self {
            at,
            events: 0,
            parts: Default::default(),
        }
    }

    /// A word more of a part.
    pub fn word(&mut self, part: Part, word: &str) {
        let hasher = &mut self.parts[part as usize];
        hasher.update((word.len() as u64).to_be_bytes());
        hasher.update(word);
    }

    /// An event that would go; without `goes` it would stay as an outlier.
    pub fn event(&mut self, id: &str, goes: bool) {
        self.events += i64::from(goes);
        self.word(Part::Events, id);
        self.parts[Part::Events as usize].update([u8::from(goes)]);
    }

    /// All that is said of one of many rooms; always in the same order of rooms.
    pub fn room(&mut self, room: &RoomId, of: &RoomDigest) {
        self.events += of.events;
        self.word(Part::Rooms, room.as_str());
        for (mine, its) in self.parts.iter_mut().zip(&of.parts) {
            mine.update(its);
        }
    }

    /// As one of many rooms.
    pub fn of_room(self) -> RoomDigest {
        RoomDigest {
            events: self.events,
            parts: self.parts.map(|part| part.finalize().into()),
        }
    }

    /// The hash of it.
    pub fn hash(&self) -> PlanHash {
        let (mut marks, mut whole) = ([0; MARK * PARTS.len()], Sha256::new());
        whole.update(b"roomkeeper plan 1");
        whole.update(self.events.to_be_bytes());
        for (mark, part) in marks.chunks_exact_mut(MARK).zip(&self.parts) {
            let digest = part.clone().finalize();
            mark.copy_from_slice(&digest[..MARK]);
            whole.update(digest);
        }
        let mut hash = [0; HASH];
        hash.copy_from_slice(&whole.finalize()[..HASH]);
        PlanHash {
            at: self.at,
            events: self.events,
            marks,
            hash,
        }
    }
}

/// What the plan of one of many rooms says.
#[derive(Clone, Copy, Debug)]
pub struct RoomDigest {
    events: i64,
    parts: [[u8; 32]; PARTS.len()],
}

/// What binds a plan, as it is shown and given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PlanHash {
    at: Option<Millis>,
    events: i64,
    marks: [u8; MARK * PARTS.len()],
    hash: [u8; HASH],
}

impl PlanHash {
    /// The time by which it judges, where what goes depends on that.
    pub fn at(&self) -> Option<Millis> {
        self.at
    }

    /// What is another in the plan of now, as a sentence; nothing where it is the same plan. The times of the two are not
    /// compared.
    pub fn drift(&self, now: &Self) -> Option<String> {
        if (self.events, self.marks, self.hash) == (now.events, now.marks, now.hash) {
            return None;
        }
        let marks = |plan: &Self| -> Vec<[u8; MARK]> {
            let marks = plan.marks.chunks_exact(MARK);
            marks.map(|mark| [mark[0], mark[1], mark[2]]).collect()
        };
        let (then, there) = (marks(self), marks(now));
        let mut drifted: Vec<String> = Vec::new();
        for (number, part) in PARTS.into_iter().enumerate() {
            let counts = part == Part::Events && self.events != now.events;
            if then[number] == there[number] && !counts {
                continue;
            }
            drifted.push(match part {
                Part::Asked => "what is asked for".into(),
                Part::Rooms => "the rooms".into(),
                Part::Points => "the point up to which it goes".into(),
                Part::People => "who would be moved out".into(),
                Part::Events if counts => {
                    format!(
                        "the events that go ({} then, {} now)",
                        self.events, now.events
                    )
                }
                Part::Events => format!("the events that go (as many, {}, but others)", now.events),
                Part::Holds => "the holds that keep something of it".into(),
                Part::Policies => "the retention policies".into(),
                Part::Schema => "the layout of the database".into(),
                Part::Media => "the media that go with the messages".into(),
            });
        }
        if drifted.is_empty() {
            drifted.push("something that it does not say (was it copied whole?)".into());
        }
        Some(format!(
            "this is not what was planned any more: {}. Nothing was changed; plan it again",
            drifted.join(", ")
        ))
    }
}

impl fmt::Display for PlanHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at.map_or("any".to_owned(), |at| at.0.to_string());
        write!(f, "rk1-{at}-{}-", self.events)?;
        self.marks
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.hash
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for PlanHash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let mut words = text.trim().split('-');
            let mut next = || words.next();
            let (version, at, events) = (next()?, next()?, next()?);
            let (marks, hash) = (next()?, next()?);
            let plan = Self {
                at: match at {
                    "any" => None,
                    at => Some(Millis(number(at)?)),
                },
                events: number(events)?,
                marks: bytes(marks)?,
                hash: bytes(hash)?,
            };
            (version == "rk1" && next().is_none()).then_some(plan)
        };
        read().ok_or_else(|| {
            "a plan is the word behind \"plan\" in what a dry run said (rk1-…), all of it"
                .to_owned()
        })
    }
}

fn number(text: &str) -> Option<i64> {
    let is_plain = text.bytes().all(|b| b.is_ascii_digit());
    is_plain.then(|| text.parse().ok()).flatten()
}

fn bytes<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let is_plain = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if hex.len() != 2 * N || !is_plain {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

impl From<PlanHash> for String {
    fn from(plan: PlanHash) -> Self {
        plan.to_string()
    }
}

impl TryFrom<String> for PlanHash {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(change: fn(&mut PlanDigest)) -> PlanHash {
        let mut digest = PlanDigest::new(Some(Millis(7)));
        for part in PARTS {
            digest.word(part, "a");
        }
        digest.event("$a", true);
        change(&mut digest);
        digest.hash()
    }

    #[test]
    fn what_is_written_is_read_again_and_nothing_else_is() {
        for at in [None, Some(Millis(0)), Some(Millis(1_764_306_000_000))] {
            let hash = PlanDigest::new(at).hash();
            let text = hash.to_string();
            assert_eq!((text.parse(), hash.at()), (Ok(hash), at));
            let quoted = serde_json::to_string(&hash).expect("written");
            assert_eq!(serde_json::from_str::<PlanHash>(&quoted).ok(), Some(hash));
            for wrong in [
                "",
                "rk1",
                &text[1..],
                &text[..text.len() - 1],
                &format!("{text}-"),
                &format!("{text}0"),
                &text.replace("rk1", "rk2"),
                &text.replacen("-0-", "--", 1),
                &text.replacen("-0-", "-+0-", 1),
                &text.replacen("-0-", "-99999999999999999999-", 1),
                &text.replacen("rk1-", "rk1--", 1),
                &text.to_uppercase(),
                &text.replace('e', "é"),
            ] {
                assert!(wrong.parse::<PlanHash>().is_err(), "{wrong}");
            }
        }
    }

    #[test]
    fn whatever_part_drifts_is_named_and_no_other() {
        let planned = plan(|_| ());
        assert_eq!(planned.drift(&plan(|_| ())), None);
        type Change = fn(&mut PlanDigest);
        let changes: [(Change, &str); 10] = [
            (|d| d.word(Part::Asked, "b"), "what is asked for"),
            (|d| d.word(Part::Rooms, "b"), "the rooms"),
            (|d| d.word(Part::Points, "b"), "the point"),
            (|d| d.word(Part::People, "b"), "who would be moved"),
            (|d| d.event("$b", true), "(1 then, 2 now)"),
            (|d| d.event("$b", false), "(as many, 1, but others)"),
            (|d| d.word(Part::Holds, "b"), "the holds"),
            (|d| d.word(Part::Policies, "b"), "the retention policies"),
            (|d| d.word(Part::Schema, "b"), "the layout"),
            (|d| d.word(Part::Media, "b"), "the media"),
        ];
        for (change, said) in changes {
            let drift = planned.drift(&plan(change)).expect("another");
            assert!(
                drift.contains(&format!("more: {said}")) || drift.contains(said),
                "{drift}"
            );
            let named = drift.split("more: ").nth(1).expect("named");
            let named = named.split(". Nothing").next().expect("named");
            let parts = named.replace(", but", " but").replace("many, 1", "many");
            assert_eq!(
                parts.replace("then, ", "").split(", ").count(),
                1,
                "{drift}"
            );
        }
    }

    #[test]
    fn no_two_ways_to_cut_words_are_the_same_plan() {
        let of = |words: &[&str]| {
            let mut digest = PlanDigest::new(None);
            words.iter().for_each(|word| digest.word(Part::Asked, word));
            digest.hash()
        };
        let all = [
            of(&["ab"]),
            of(&["a", "b"]),
            of(&["", "ab"]),
            of(&["b", "a"]),
        ];
        for (number, one) in all.iter().enumerate() {
            assert!(all[number + 1..].iter().all(|other| other != one));
        }
    }

    #[test]
    fn a_plan_of_many_rooms_is_bound_to_each_of_them() {
        let of = |said: &[(&str, &str)]| {
            let mut all = PlanDigest::new(None);
            for (room, event) in said {
                let mut one = PlanDigest::new(None);
                one.event(event, true);
                all.room(&RoomId::from(*room), &one.of_room());
            }
            all.hash()
        };
        let planned = of(&[("!a", "$1"), ("!b", "$2")]);
        assert_eq!(planned.events, 2);
        let drift = |said| planned.drift(&of(said));
        assert_eq!(drift(&[("!a", "$1"), ("!b", "$2")]), None);
        let swapped = drift(&[("!a", "$2"), ("!b", "$1")]).expect("another");
        assert!(swapped.contains("but others") && !swapped.contains("the rooms"));
        let other = drift(&[("!a", "$1"), ("!c", "$2")]).expect("another");
        assert!(other.contains("the rooms"), "{other}");
    }
}
