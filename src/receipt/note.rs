//! Checkpoints: signed notes that say how many receipts there were at a moment, and the root of their tree.
//!
//! Whoever has one of them, wherever it was written, can tell whether the receipts before it are still those that they
//! were. They have the form of other transparency logs (C2SP `signed-note`, `tlog-checkpoint`): an origin, a number, a root
//! in base64, a line with the time, an empty line, and a line with the key's name and the Ed25519 signature.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use rand::TryRngCore;
use rand::rngs::OsRng;
use sha2::{Digest, Sha256};

use super::tree::Hash;
use crate::time::Millis;

/// "Ed25519" in the form of keys.
const ALGORITHM: u8 = 1;

/// The first words of a private key's file.
const PRIVATE: &str = "PRIVATE+KEY+";

/// What begins a signature's line.
const DASH: &str = "\u{2014} ";

/// The key with which checkpoints are signed; never shown.
pub struct NoteKey {
    name: String,
    key: SigningKey,
}

impl NoteKey {
    /// A new one. Its name is made of it, so that no two logs have the same.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn random() -> Result<Self, String> {
        let mut seed = [0; 32];
        OsRng
            .try_fill_bytes(&mut seed)
            .map_err(|e| format!("the system gives no random numbers: {e}"))?;
        let key = SigningKey::from_bytes(&seed);
        let digest = Sha256::digest(key.verifying_key().as_bytes());
        let name: String = digest[..4].iter().map(|b| format!("{b:02x}")).collect();
        Ok(Self {
            name: format!("roomkeeper/receipts/{name}"),
            key,
        })
    }

    /// As its file has it: `PRIVATE+KEY+name+hash+key`.
    pub fn to_file(&self) -> String {
        let mut bytes = vec![ALGORITHM];
        bytes.extend(self.key.to_bytes());
        let hash = self.public().hash_word();
        format!("{PRIVATE}{}+{hash}+{}\n", self.name, STANDARD.encode(bytes))
    }

    /// Reads what a file has.
    ///
    /// # Errors
    /// What is wrong with it, and nothing of what is in it.
    pub fn from_file(text: &str) -> Result<Self, String> {
        let read = || {
            let mut words = text.trim().strip_prefix(PRIVATE)?.splitn(3, '+');
            let (name, hash, key) = (words.next()?, words.next()?, words.next()?);
            let bytes = STANDARD.decode(key).ok()?;
            let (ALGORITHM, seed) = (*bytes.first()?, bytes.get(1..)?) else {
                return None;
            };
            let key = Self {
                name: name.to_owned(),
                key: SigningKey::from_bytes(seed.try_into().ok()?),
            };
            (key.public().hash_word() == hash).then_some(key)
        };
        read().ok_or_else(|| "it is no key such as roomkeeper makes".to_owned())
    }

    /// What others verify with.
    pub fn public(&self) -> PublicKey {
        PublicKey {
            name: self.name.clone(),
            key: self.key.verifying_key(),
        }
    }

    /// Signs a checkpoint.
    pub fn sign(&self, checkpoint: Checkpoint) -> String {
        let text = checkpoint.text(&self.name);
        let mut bytes = self.public().hash().to_vec();
        bytes.extend(self.key.sign(text.as_bytes()).to_bytes());
        format!("{text}\n{DASH}{} {}\n", self.name, STANDARD.encode(bytes))
    }
}

impl fmt::Debug for NoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NoteKey({}, …)", self.name)
    }
}

/// What checkpoints are verified with; as it is written: `name+hash+key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    key: VerifyingKey,
}

impl PublicKey {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![ALGORITHM];
        bytes.extend(self.key.as_bytes());
        bytes
    }

    /// By which a signature says whose it is.
    fn hash(&self) -> [u8; 4] {
        let mut hasher = Sha256::new();
        hasher.update(self.name.as_bytes());
        hasher.update(b"\n");
        hasher.update(self.bytes());
        let digest = hasher.finalize();
        [digest[0], digest[1], digest[2], digest[3]]
    }

    fn hash_word(&self) -> String {
        self.hash().iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Reads one as it is written.
    ///
    /// # Errors
    /// What a key looks like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let read = || {
            let mut words = text.trim().splitn(3, '+');
            let (name, hash, key) = (words.next()?, words.next()?, words.next()?);
            let bytes = STANDARD.decode(key).ok()?;
            let (ALGORITHM, key) = (*bytes.first()?, bytes.get(1..)?) else {
                return None;
            };
            let key = Self {
                name: name.to_owned(),
                key: VerifyingKey::from_bytes(key.try_into().ok()?).ok()?,
            };
            (!name.is_empty() && key.hash_word() == hash).then_some(key)
        };
        read().ok_or_else(|| "a public key of receipts is written name+hash+key".to_owned())
    }

    /// Opens a signed note. Every byte of it counts.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(&self, note: &str) -> Result<Checkpoint, String> {
        let (text, signature) = note
            .split_once("\n\n")
            .ok_or("a checkpoint has an empty line before its signature")?;
        let signed = signature
            .strip_prefix(DASH)
            .and_then(|line| line.strip_suffix('\n'))
            .and_then(|line| line.split_once(' '))
            .ok_or("a checkpoint ends with the line of one signature")?;
        if signed.0 != self.name {
            return Err(format!("it is signed by another key than {}", self.name));
        }
        let bytes = STANDARD
            .decode(signed.1)
            .map_err(|_| "its signature is not in base64")?;
        let wrong = "its signature is not that of the key";
        let (hash, signature) = bytes.split_first_chunk::<4>().ok_or(wrong)?;
        let signature = Signature::from_slice(signature).map_err(|_| wrong)?;
        let text = format!("{text}\n");
        self.key
            .verify_strict(text.as_bytes(), &signature)
            .map_err(|_| wrong)?;
        if *hash != self.hash() {
            return Err(wrong.into());
        }
        Checkpoint::parse(&text, &self.name)
    }
}

impl std::str::FromStr for PublicKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = STANDARD.encode(self.bytes());
        write!(f, "{}+{}+{key}", self.name, self.hash_word())
    }
}

/// What a note says of itself, whoever signed it: how many receipts, and their root.
pub fn claimed(note: &str) -> Option<(u64, Hash)> {
    let mut lines = note.lines().skip(1);
    let (size, root) = (lines.next()?, lines.next()?);
    Some((
        size.parse().ok()?,
        STANDARD.decode(root).ok()?.try_into().ok()?,
    ))
}

/// How many receipts there were, and the root of their tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// How many.
    pub size: u64,
    /// The root.
    pub root: Hash,
    /// When that was.
    pub at: Millis,
}

impl Checkpoint {
    fn text(&self, origin: &str) -> String {
        let (size, root, at) = (self.size, STANDARD.encode(self.root), self.at.0);
        format!("{origin}\n{size}\n{root}\nat {at}\n")
    }

    fn parse(text: &str, origin: &str) -> Result<Self, String> {
        let read = || {
            let mut lines = text.lines();
            let (_, size, root, at) = (lines.next()?, lines.next()?, lines.next()?, lines.next()?);
            let read = Self {
                size: size.parse().ok()?,
                root: STANDARD.decode(root).ok()?.try_into().ok()?,
                at: Millis(at.strip_prefix("at ")?.parse().ok()?),
            };
            (read.text(origin) == text).then_some(read)
        };
        read().ok_or_else(|| "it is signed, and not a checkpoint of receipts".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            size: 57,
            root: [7; 32],
            at: Millis(1_764_306_000_000),
        }
    }

    #[test]
    fn what_is_signed_is_opened_and_no_other_byte() {
        let key = NoteKey::random().expect("made");
        let note = key.sign(checkpoint());
        assert_eq!(key.public().open(&note), Ok(checkpoint()));
        for at in 0..note.len() {
            for flip in [1, 32] {
                let mut bytes = note.clone().into_bytes();
                bytes[at] ^= flip;
                if let Ok(changed) = String::from_utf8(bytes) {
                    assert!(key.public().open(&changed).is_err(), "{at}: {changed}");
                }
            }
            let (cut, rest) = note.split_at(
                (0..=at)
                    .rev()
                    .find(|at| note.is_char_boundary(*at))
                    .unwrap_or(0),
            );
            assert!(key.public().open(cut).is_err());
            assert!(at == 0 || key.public().open(rest).is_err());
        }
        assert!(key.public().open(&format!("{note}\n")).is_err());
        let other = NoteKey::random().expect("made");
        assert!(other.public().open(&note).is_err());
    }

    #[test]
    fn keys_are_read_as_they_are_written_and_the_private_one_is_never_shown() {
        for _ in 0..200 {
            let key = NoteKey::random().expect("made");
            let file = key.to_file();
            let again = NoteKey::from_file(&file).expect("read");
            assert_eq!(again.public(), key.public());
            let public = key.public().to_string();
            assert_eq!(PublicKey::parse(&public), Ok(key.public()));
            // Base64 has the sign that parts the words.
            let secret = file.trim().splitn(5, '+').last().expect("a key");
            assert!(!format!("{key:?}").contains(secret) && !public.contains(secret));
            for wrong in ["", "PRIVATE+KEY+a+b+c", &file[1..], &public] {
                assert!(NoteKey::from_file(wrong).is_err(), "{wrong}");
            }
            for wrong in ["", "a+b+c", &public[1..], file.trim()] {
                assert!(PublicKey::parse(wrong).is_err(), "{wrong}");
            }
        }
    }

    /// The example of the format's own documentation.
    #[test]
    fn a_key_of_the_formats_documentation_is_read() {
        let text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        let key = PublicKey::parse(text).expect("read");
        assert_eq!((key.name(), key.to_string()), ("PeterNeumann", text.into()));
    }
}
