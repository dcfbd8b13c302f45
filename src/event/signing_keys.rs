//! The server's signing key, as Synapse keeps it in a file: `ed25519 <version> <seed in unpadded base64>` on a line.

use std::fmt;

use super::EventError;

/// Bytes of an ed25519 seed.
const SEED_BYTES: usize = 32;

/// The keys of a file. The first signs, as in Synapse; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKeys {
    version: String,
    seed: [u8; SEED_BYTES],
}

impl SigningKeys {
    /// Reads the text of a key file.
    ///
    /// # Errors
    /// [`EventError::Key`] says which line is wrong, and never what is in it.
    pub fn parse(text: &str) -> Result<Self, EventError> {
        let mut first = None;
        for (number, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let key = parse_line(line).ok_or_else(|| {
                EventError::Key(format!(
                    "line {} of the signing key is not `ed25519 <version> <key in unpadded base64>`",
                    number + 1
                ))
            })?;
            first.get_or_insert(key);
        }
        first.ok_or_else(|| EventError::Key("the signing key file is empty".into()))
    }

    /// The key's name in signatures: `ed25519:<version>`.
    pub fn id(&self) -> String {
        format!("ed25519:{}", self.version)
    }

    /// The version, without the algorithm.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// The secret.
    #[cfg(feature = "events")]
    pub(super) fn seed(&self) -> &[u8; SEED_BYTES] {
        &self.seed
    }
}

impl fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({}, …)", self.id())
    }
}

fn parse_line(line: &str) -> Option<SigningKeys> {
    let mut words = line.split_whitespace();
    let (Some("ed25519"), Some(version), Some(seed), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return None;
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !version.chars().all(is_name) {
        return None;
    }
    Some(SigningKeys {
        version: version.to_owned(),
        seed: decode(seed)?.try_into().ok()?,
    })
}

/// Standard base64, padded or not. Both alphabets are read, as Python's lenient decoder does not mind either.
fn decode(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut held, mut bits) = (Vec::new(), 0u32, 0);
    for letter in text.trim_end_matches('=').bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        held = (held << 6) | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from((held >> bits) & 0xff).ok()?);
            held &= (1 << bits) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "ed25519 a_test AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

    #[test]
    fn the_first_of_several_keys_signs() {
        let other = LINE.replace("a_test", "old").replace("AAEC", "AQEC");
        let keys = SigningKeys::parse(&format!("\n{LINE}\n{other}\n")).expect("read");
        assert_eq!(keys.id(), "ed25519:a_test");
        let seed: Vec<u8> = (0..32).collect();
        assert_eq!(keys.seed.to_vec(), seed);
        assert_eq!(
            SigningKeys::parse(&format!("{LINE}=")).expect("padded"),
            keys
        );
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_repeated() {
        for wrong in [
            "",
            "rsa a_test AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
            "ed25519 a_test AAECAwQF",
            "ed25519 a:test AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
            "ed25519 a_test AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8 more",
            "ed25519 a_test !AECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
        ] {
            let said = SigningKeys::parse(wrong).expect_err(wrong).to_string();
            assert!(!said.contains("AAEC"), "{said}");
        }
        assert!(!format!("{:?}", SigningKeys::parse(LINE)).contains("AAEC"));
    }
}
