//! The names of things: rooms, events, users, jobs. Parsed once, trusted after.

use std::fmt::{self, Write};

use rand::{Rng, TryRngCore, rngs::OsRng};
use serde::{Deserialize, Serialize};

macro_rules! name {
    ($(#[$doc:meta])* $Name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $Name(String);

        impl $Name {
            /// Takes the text as it is. Synapse's own endpoints look ids up before they judge them,
            /// so an id of no legal form is simply an id that nothing has.
            pub fn new(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        /// For people: what would move a terminal's cursor, or begin a line of a log, is escaped. Data is
        /// [`Self::as_str`].
        impl fmt::Display for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                Escaped(&self.0).fmt(f)
            }
        }

        impl From<&str> for $Name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
    };
}

/// A text of somebody else's, fit for a log and a terminal: on one line, what is not to be seen is escaped.
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match is_control_or_bidi(c) {
                true => write!(f, "{}", c.escape_default())?,
                false => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Whether a character does something to what is around it instead of being seen: controls, line ends, directions.
pub fn is_control_or_bidi(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

name! {
    /// A Matrix room id, `!opaque:domain` or, from room version 12 on, `!` and 43 characters.
    RoomId
}
name! {
    /// A Matrix event id.
    EventId
}
name! {
    /// A Matrix user id, `@localpart:domain`.
    UserId
}
name! {
    /// A job of ours: 16 letters, as Synapse's purge and delete ids (S-4).
    JobId
}

/// Letters in a job id, as Synapse's (behaviour.md section 12).
const JOB_ID_LETTERS: usize = 16;

impl JobId {
    /// A fresh id, drawn uniformly from `A–Z a–z` with the operating system's generator (S-4).
    pub fn random() -> Self {
        Self(random_letters(JOB_ID_LETTERS))
    }
}

/// `count` letters drawn uniformly from `A–Z a–z`; also the form of Synapse's lock tokens (W-2).
pub(crate) fn random_letters(count: usize) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut rng = OsRng.unwrap_err();
    (0..count)
        .map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())]))
        .collect()
}

impl RoomId {
    /// Whether this is a legal room id (H-6): `!…:server name`, or `!` and 43 URL-safe base64 characters.
    pub fn is_valid(&self) -> bool {
        let Some(rest) = self.0.strip_prefix('!') else {
            return false;
        };
        match rest.split_once(':') {
            Some((_, server)) => is_server_name(server),
            None => {
                rest.len() == 43
                    && rest
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            }
        }
    }
}

impl UserId {
    /// Whether there is a name between `@` and `:`, and no more than 255 bytes in all.
    pub fn has_localpart(&self) -> bool {
        let text = self.as_str();
        text.len() <= 255 && !text.starts_with("@:")
    }

    /// The text after the first `:`; empty when there is none.
    pub fn domain(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, domain)| domain)
    }

    /// Whether this is a user of the server named `server` (section 0: exact, ports included).
    pub fn is_local(&self, server: &str) -> bool {
        self.0.starts_with('@') && self.domain() == server
    }
}

/// Whether `text` is a host name, an IPv4 address or a bracketed IPv6 address, with an optional port.
pub fn is_server_name(text: &str) -> bool {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((address, after)) = rest.split_once(']') else {
            return false;
        };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match after {
            "" => return true,
            _ => match after.strip_prefix(':') {
                Some(port) => ("ipv6", Some(port)),
                None => return false,
            },
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let port_ok =
        port.is_none_or(|p| (1..=5).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_digit()));
    port_ok
        && !host.is_empty()
        && host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_ids_are_legal_in_both_forms() {
        for legal in [
            "!a:example.org",
            "!:example.org",
            "!x:127.0.0.1:8448",
            "!x:[::1]:80",
            "!0123456789012345678901234567890123456789-_a",
        ] {
            assert!(RoomId::from(legal).is_valid(), "{legal}");
        }
        for illegal in [
            "", "!", "a:b", "#a:b", "!a", "!a:", "!a:b c", "!a:[x]", "!a:b:x", "!a:b:",
        ] {
            assert!(!RoomId::from(illegal).is_valid(), "{illegal}");
        }
    }

    #[test]
    fn a_user_is_local_only_when_the_whole_domain_agrees() {
        assert!(UserId::from("@a:example.org:8448").is_local("example.org:8448"));
        assert!(!UserId::from("@a:evil:example.org").is_local("example.org"));
        assert!(!UserId::from("@a:EXAMPLE.org").is_local("example.org"));
    }

    #[test]
    fn an_id_that_is_shown_is_one_line_and_moves_no_cursor() {
        let text = "!x\n[2026] ERROR\u{1b}[2J\u{9b}\u{202e}ü:b.c";
        let room = RoomId::from(text);
        let shown = room.to_string();
        assert_eq!(shown, r"!x\n[2026] ERROR\u{1b}[2J\u{9b}\u{202e}ü:b.c");
        assert_eq!(room.as_str(), text);
        let json = serde_json::to_string(&room).expect("JSON");
        assert_eq!(serde_json::from_str::<RoomId>(&json).expect("read"), room);
    }

    #[test]
    fn job_ids_are_sixteen_letters_and_differ() {
        let (a, b) = (JobId::random(), JobId::random());
        assert_ne!(a, b);
        assert!(a.as_str().len() == 16 && a.as_str().bytes().all(|c| c.is_ascii_alphabetic()));
    }
}
