//! Names for what a sample holds.

use rand::Rng;
use rand::rngs::StdRng;

/// An event id: a hash as rooms of version 3 and later have it, or a number with a domain as older ones do. It need
/// not be the event's true hash; nothing here computes it.
pub fn event_id(rng: &mut StdRng, with_domain: Option<&str>) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let length = if with_domain.is_some() { 16 } else { 43 };
    let mut letters = || char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]);
    let opaque: String = (0..length).map(|_| letters()).collect();
    match with_domain {
        Some(domain) => format!("${opaque}:{domain}"),
        None => format!("${opaque}"),
    }
}

/// Who speaks in a sample: users of the server, some that differ only in case, and users of servers whose names only
/// resemble it.
pub struct People {
    pub local: Vec<String>,
    pub remote: Vec<String>,
}

impl People {
    /// The people around a server.
    pub fn around(server: &str) -> Self {
        let host = server.split(':').next().unwrap_or(server);
        let other_port = if host == server {
            format!("{host}:8448")
        } else {
            host.to_owned()
        };
        let local = ["ann", "Ann", "bob", "carl:oddly"];
        let remote = [
            format!("@rita:remote.{host}"),
            format!("@ann:{other_port}"),
            format!("@ann:{}", server.to_uppercase()),
            format!("@bob:x{server}"),
            format!("@eve:evil.org:{server}"),
        ];
        Self {
            // The text after the first colon counts: the oddly named one is nobody's.
            local: local[..3]
                .iter()
                .map(|l| format!("@{l}:{server}"))
                .collect(),
            remote: remote
                .into_iter()
                .chain([format!("@{}:{server}", local[3])])
                .collect(),
        }
    }

    /// Anybody.
    pub fn any(&self, rng: &mut StdRng) -> String {
        let all: Vec<&String> = self.local.iter().chain(&self.remote).collect();
        // Locals are as frequent as all others together.
        if rng.random_ratio(1, 2) {
            self.local[rng.random_range(0..self.local.len())].clone()
        } else {
            all[rng.random_range(0..all.len())].clone()
        }
    }
}

/// A word that only this event says. It has no vowel, so that the index does not shorten it.
pub fn word_of(event: &str) -> String {
    const LETTERS: &[u8] = b"bcfghjkmpqvwxz";
    let mut hash = event.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let mut letters = || {
        let letter = LETTERS[usize::try_from(hash % 14).expect("small")];
        hash /= 14;
        char::from(letter)
    };
    (0..10).map(|_| letters()).collect()
}
