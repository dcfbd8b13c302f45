//! Receipts: one line of what was done, to what, by whom and how it ended, at every end of a job, a hold, a restoration.
//!
//! A line is canonical JSON (keys in order, no spaces), and a leaf of a [Merkle tree](tree) whose roots are
//! [signed](note). It says counts and names, never what anybody wrote. Each has a number of its own that nobody can guess,
//! so that the hash of one that is forgotten tells nothing of what it said. Pure.

mod in_base64;
pub mod note;
pub mod tree;

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::note::{Checkpoint, PublicKey};
use self::tree::{Frontier, Hash};
use crate::time::Millis;

/// The form of the lines.
const VERSION: u64 = 1;

/// What a receipt always has, null where there is nothing to say.
const MEMBERS: [&str; 16] = [
    "v", "seq", "at", "who", "what", "subject", "point", "policy", "plan", "before", "after",
    "archive", "residue", "version", "database", "salt",
];

/// What is to be said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Draft {
    /// By which it is asked for: a job's id, a hold's name.
    pub reference: String,
    /// When.
    pub at: Millis,
    /// What was done.
    pub what: String,
    /// All else.
    pub said: BTreeMap<String, Value>,
}

impl Draft {
    /// That something was done.
    pub fn new(what: &str, reference: &str, at: Millis) -> Self {
        Self {
            reference: reference.to_owned(),
            at,
            what: what.to_owned(),
            said: BTreeMap::new(),
        }
    }

    /// And this.
    #[must_use]
    pub fn say(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.said.insert(member.to_owned(), value.into());
        self
    }

    /// The line, as the receipt of this number.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn line(&self, seq: u64, database: Option<&str>) -> Result<String, String> {
        let mut salt = [0; 16];
        OsRng
            .try_fill_bytes(&mut salt)
            .map_err(|e| format!("the system gives no random numbers: {e}"))?;
        let mut line: BTreeMap<&str, Value> = MEMBERS.map(|name| (name, Value::Null)).into();
        line.extend(
            self.said
                .iter()
                .map(|(name, value)| (name.as_str(), sorted(value))),
        );
        line.extend([
            ("v", json!(VERSION)),
            ("seq", json!(seq)),
            ("at", json!(self.at.0)),
            ("what", json!(self.what)),
            ("ref", json!(self.reference)),
            ("version", json!(env!("CARGO_PKG_VERSION"))),
            ("database", json!(database)),
            ("salt", json!(STANDARD.encode(salt))),
        ]);
        serde_json::to_string(&line).map_err(|e| e.to_string())
    }
}

/// With the keys of every object in order, whatever order they came in.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let members: BTreeMap<&String, Value> =
                members.iter().map(|(k, v)| (k, sorted(v))).collect();
            json!(members)
        }
        Value::Array(list) => list.iter().map(sorted).collect(),
        plain => plain.clone(),
    }
}

/// A receipt as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// How many were before it.
    pub seq: u64,
    /// Its hash in the tree.
    #[serde(with = "in_base64")]
    pub leaf: Hash,
    /// What it says; nothing where it was forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
}

/// In a file, what stands in the place of a receipt that was forgotten.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Forgotten {
    forgotten: u64,
    #[serde(with = "in_base64")]
    leaf: Hash,
}

impl Entry {
    /// Its line in a file of receipts.
    pub fn in_file(&self) -> String {
        match &self.line {
            Some(line) => line.clone(),
            None => {
                let forgotten = Forgotten {
                    forgotten: self.seq,
                    leaf: self.leaf,
                };
                serde_json::to_string(&forgotten).unwrap_or_default()
            }
        }
    }

    /// What is wrong with it as the receipt of this number.
    pub fn fault(&self, seq: u64) -> Option<String> {
        let Some(line) = &self.line else {
            return None;
        };
        if tree::leaf(line.as_bytes()) != self.leaf {
            return Some(format!("receipt {seq} is not what it was"));
        }
        let read: Result<Value, _> = serde_json::from_str(line);
        match read {
            Ok(said) if said["seq"] == json!(seq) => None,
            _ => Some(format!("receipt {seq} says another number of itself")),
        }
    }
}

/// That a receipt is in the tree of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The receipt.
    #[serde(flatten)]
    pub entry: Entry,
    /// The hashes beside its way to the root, lowest first (RFC 6962), in base64.
    pub path: Vec<String>,
    /// The checkpoint, as a signed note.
    pub checkpoint: String,
    /// The key that signed it.
    pub key: String,
}

impl Proof {
    /// The same, as it is shown.
    pub fn new(entry: Entry, path: &[Hash], checkpoint: String, key: &PublicKey) -> Self {
        Self {
            entry,
            path: path.iter().map(|hash| STANDARD.encode(hash)).collect(),
            checkpoint,
            key: key.to_string(),
        }
    }
}

/// Most faults that are named.
const MOST_FAULTS: usize = 100;

/// What a look at all receipts found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// How many there are.
    pub receipts: u64,
    /// Of these, how many were forgotten.
    pub forgotten: u64,
    /// How many checkpoints were held against them.
    pub checkpoints: u64,
    /// The root of their tree, in base64.
    pub root: String,
    /// What is wrong, a sentence each.
    pub faults: Vec<String>,
}

impl Verified {
    /// Adds a fault, as long as there is room for it.
    pub fn fault(&mut self, said: String) {
        if self.faults.len() < MOST_FAULTS {
            self.faults.push(said);
        }
    }

    /// Looks at one receipt more.
    pub fn look(&mut self, entry: &Entry, tree: &mut Frontier, whole: impl FnMut(tree::Whole)) {
        let seq = tree.size();
        if entry.seq != seq {
            self.fault(format!("after receipt {seq} comes {}", entry.seq));
        }
        if let Some(fault) = entry.fault(seq) {
            self.fault(fault);
        }
        self.receipts += 1;
        self.forgotten += u64::from(entry.line.is_none());
        tree.push(entry.leaf, whole);
    }

    /// Notes the root of all that was looked at.
    pub fn set_root(&mut self, tree: &Frontier) {
        self.root = STANDARD.encode(tree.root());
    }
}

/// Reads a file of receipts line by line: a line each, an empty one, and a checkpoint of all of them. Memory does not grow
/// with the file.
#[derive(Default)]
pub struct FileReader {
    tree: Frontier,
    found: Verified,
    /// The checkpoint, once it began.
    note: Option<String>,
}

/// Longest line of a file of receipts that is read, in bytes.
pub const LONGEST_LINE: u64 = 16 << 20;

impl FileReader {
    /// A line more, with what ends it.
    pub fn line(&mut self, bytes: &[u8]) {
        let Ok(text) = std::str::from_utf8(bytes) else {
            self.found.fault("the file is no text".into());
            return;
        };
        match (&mut self.note, text) {
            // Longer than any note.
            (Some(note), _) if note.len() < 4096 => note.push_str(text),
            (Some(_), _) => {}
            (None, "\n") => self.note = Some(String::new()),
            (None, text) => self.receipt(text),
        }
    }

    fn receipt(&mut self, text: &str) {
        let seq = self.tree.size();
        let Some(line) = text.strip_suffix('\n') else {
            self.found.fault("the file ends early".into());
            return;
        };
        let entry = match serde_json::from_str::<Forgotten>(line) {
            Ok(forgotten) => Entry {
                seq: forgotten.forgotten,
                leaf: forgotten.leaf,
                line: None,
            },
            Err(_) => Entry {
                seq,
                leaf: tree::leaf(line.as_bytes()),
                line: Some(line.to_owned()),
            },
        };
        if entry.line.is_none() && entry.in_file() != line {
            self.found
                .fault(format!("receipt {seq} is not what it was"));
        }
        self.found.look(&entry, &mut self.tree, |_| ());
    }

    /// What was found, with one of these keys.
    pub fn end(mut self, keys: &[PublicKey]) -> (Verified, Option<Checkpoint>) {
        self.found.set_root(&self.tree);
        let Some(note) = self.note.take() else {
            self.found.fault("the file has no checkpoint".into());
            return (self.found, None);
        };
        let is = (self.tree.size(), self.tree.root());
        if let Some(claimed) = note::claimed(&note)
            && claimed != is
        {
            self.found
                .fault(format!("the checkpoint is of {} other receipts", claimed.0));
            return (self.found, None);
        }
        let checkpoint = match open(&note, keys) {
            Ok(checkpoint) => checkpoint,
            Err(why) => {
                self.found
                    .fault(format!("the checkpoint does not hold: {why}"));
                return (self.found, None);
            }
        };
        self.found.checkpoints = 1;
        (self.found, Some(checkpoint))
    }
}

/// Opens a note with whichever of the keys it names.
///
/// # Errors
/// What is wrong with it.
pub fn open(note: &str, keys: &[PublicKey]) -> Result<Checkpoint, String> {
    let mut why = "no public key is known".to_owned();
    for key in keys {
        match key.open(note) {
            Ok(checkpoint) => return Ok(checkpoint),
            Err(e) => why = e,
        }
    }
    Err(why)
}

#[cfg(test)]
mod tests {
    use super::note::NoteKey;
    use super::*;

    fn draft(n: u64) -> Draft {
        Draft::new("purge_history", &format!("job{n}"), Millis(5))
            .say("subject", json!({"room_id": "!a:b"}))
            .say(
                "after",
                json!({"z": {"b": 1, "a": [2, {"d": 3, "c": 4}]}, "y": n}),
            )
    }

    /// A file of so many receipts, of which every third was forgotten.
    fn file(count: u64, key: &NoteKey) -> String {
        let (mut tree, mut text) = (Frontier::default(), String::new());
        for seq in 0..count {
            let line = draft(seq).line(seq, Some("/db")).expect("a line");
            let leaf = tree::leaf(line.as_bytes());
            let line = (seq % 3 != 1).then_some(line);
            text += &Entry { seq, leaf, line }.in_file();
            text.push('\n');
            tree.push(leaf, |_| ());
        }
        let checkpoint = Checkpoint {
            size: count,
            root: tree.root(),
            at: Millis(6),
        };
        text + "\n" + &key.sign(checkpoint)
    }

    fn read(bytes: &[u8], key: &NoteKey) -> Verified {
        let mut reader = FileReader::default();
        bytes
            .split_inclusive(|byte| *byte == b'\n')
            .for_each(|line| reader.line(line));
        reader.end(&[key.public()]).0
    }

    #[test]
    fn a_line_is_canonical_has_every_member_and_no_two_are_alike() {
        let line = draft(7).line(3, None).expect("a line");
        let again = draft(7).line(3, None).expect("a line");
        assert_ne!(line, again);
        let said: BTreeMap<String, Value> = serde_json::from_str(&line).expect("JSON");
        assert_eq!(serde_json::to_string(&said).expect("JSON"), line);
        for member in MEMBERS {
            assert!(said.contains_key(member), "{member}");
        }
        assert!(line.contains(r#""after":{"y":7,"z":{"a":[2,{"c":4,"d":3}],"b":1}}"#));
        assert_eq!((&said["seq"], &said["ref"]), (&json!(3), &json!("job7")));
    }

    #[test]
    fn every_byte_of_a_file_that_is_changed_taken_away_or_added_is_found() {
        let key = NoteKey::random().expect("made");
        for count in [0, 3] {
            let file = file(count, &key).into_bytes();
            let found = read(&file, &key);
            assert_eq!(found.faults, Vec::<String>::new());
            let forgotten = (0..count).filter(|seq| seq % 3 == 1).count() as u64;
            assert_eq!((found.receipts, found.forgotten), (count, forgotten));
            for at in 0..file.len() {
                let found = |changed: &[u8], how: &str| {
                    let found = read(changed, &key);
                    assert!(!found.faults.is_empty(), "{how} byte {at} of {count}");
                };
                for flip in [1, 4, 32] {
                    let mut changed = file.clone();
                    changed[at] ^= flip;
                    found(&changed, "changed");
                }
                let mut changed = file.clone();
                changed.remove(at);
                found(&changed, "without");
                for byte in [b'\n', file[at]] {
                    let mut changed = file.clone();
                    changed.insert(at, byte);
                    found(&changed, "one more before");
                }
                found(&file[..at], "up to");
            }
        }
    }

    #[test]
    fn a_file_of_another_key_or_of_none_is_not_believed() {
        let (key, other) = (NoteKey::random(), NoteKey::random());
        let (key, other) = (key.expect("made"), other.expect("made"));
        let file = file(2, &key);
        assert_eq!(read(file.as_bytes(), &other).faults.len(), 1);
        assert_eq!(FileReader::default().end(&[]).0.faults.len(), 1);
    }
}
