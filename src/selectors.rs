//! Which rooms are meant: one language for every command and every policy that takes rooms, as words.
//!
//! Conditions of different kinds must all hold; of conditions of one kind that can be said several times (`room`, `name`,
//! `version`, `space`) one must. A condition about which nothing is known of a room takes it neither as said nor in the
//! negative: what cannot be told chooses nothing.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::time::{Millis, parse_duration};

/// One condition on a room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Condition {
    /// It is this one: an id, or an alias.
    Room(String),
    /// Nobody of this server is joined.
    Empty,
    /// Everybody of this server who was in it has left and forgotten it.
    Forgotten,
    /// Everybody of this server who was in it has left, and nobody is invited.
    Left,
    /// No message of it is held.
    StateOnly,
    /// It takes more bytes than this.
    LargerThan(i64),
    /// Nothing was said or done in it for this long, and nobody of this server joined it for the first time.
    Inactive(Millis),
    /// It has messages older than this.
    MessagesOlderThan(Millis),
    /// Its name is of this form (`*` stands for anything, `?` for one character), whatever the case.
    Name(String),
    /// It is of this version.
    Version(String),
    /// It is encrypted.
    Encrypted,
    /// It is in the public directory.
    Public,
    /// Nobody of another server is in it.
    Local,
    /// It stands in this space, or in a space in it.
    Space(String),
}

impl Condition {
    /// By its words: `empty`, `larger-than=1G`, `name=old-*`.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (word, value) = match text.split_once('=') {
            Some((word, value)) => (word, Some(value)),
            None => (text, None),
        };
        let word = word.trim().replace('_', "-");
        let plain = |condition: Self| match value {
            None => Ok(condition),
            Some(_) => Err(format!("'{word}' takes no value")),
        };
        let with = |make: &dyn Fn(&str) -> Result<Self, String>| match value {
            Some(value) if !value.trim().is_empty() => make(value.trim()),
            _ => Err(format!("'{word}' needs a value: {word}=…")),
        };
        match word.as_str() {
            "empty" => plain(Self::Empty),
            "forgotten" => plain(Self::Forgotten),
            "left" => plain(Self::Left),
            "state-only" => plain(Self::StateOnly),
            "encrypted" => plain(Self::Encrypted),
            "public" => plain(Self::Public),
            "local" => plain(Self::Local),
            "room" => with(&|value| Self::room(value)),
            "space" => with(&|value| Self::space(value)),
            "name" => with(&|value| Ok(Self::Name(value.to_owned()))),
            "version" => with(&|value| Ok(Self::Version(value.to_owned()))),
            "larger-than" => with(&|value| parse_size(value).map(Self::LargerThan)),
            "inactive" => with(&|value| parse_age(value).map(Self::Inactive)),
            "messages-older-than" => with(&|value| parse_age(value).map(Self::MessagesOlderThan)),
            _ => Err(format!(
                "'{word}' says nothing of a room: say room, empty, forgotten, left, state-only, larger-than, inactive, \
                 messages-older-than, name, version, encrypted, public, local or space"
            )),
        }
    }

    /// A room by its id or alias.
    ///
    /// # Errors
    /// Where it is neither.
    pub fn room(text: &str) -> Result<Self, String> {
        named(text).map(Self::Room)
    }

    /// A space by its id or alias.
    ///
    /// # Errors
    /// Where it is neither.
    pub fn space(text: &str) -> Result<Self, String> {
        named(text).map(Self::Space)
    }

    /// Conditions of the same kind of which one must hold.
    pub fn kind(&self) -> std::mem::Discriminant<Self> {
        std::mem::discriminant(self)
    }
}

fn named(text: &str) -> Result<String, String> {
    match text.chars().next() {
        Some('!' | '#') => Ok(text.to_owned()),
        _ => Err(format!(
            "'{text}' is no room: an id begins with ! and an alias with # (in quotes, or the shell takes them for \
             something else)"
        )),
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Room(room) => write!(f, "room={room}"),
            Self::Empty => f.write_str("empty"),
            Self::Forgotten => f.write_str("forgotten"),
            Self::Left => f.write_str("left"),
            Self::StateOnly => f.write_str("state-only"),
            Self::LargerThan(bytes) => write!(f, "larger-than={bytes}"),
            Self::Inactive(age) => write!(f, "inactive={}", age_in_words(*age)),
            Self::MessagesOlderThan(age) => {
                write!(f, "messages-older-than={}", age_in_words(*age))
            }
            Self::Name(form) => write!(f, "name={form}"),
            Self::Version(version) => write!(f, "version={version}"),
            Self::Encrypted => f.write_str("encrypted"),
            Self::Public => f.write_str("public"),
            Self::Local => f.write_str("local"),
            Self::Space(space) => write!(f, "space={space}"),
        }
    }
}

impl From<Condition> for String {
    fn from(condition: Condition) -> Self {
        condition.to_string()
    }
}

impl TryFrom<String> for Condition {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

/// Bytes: a whole number, and one of `K M G T` (of 1,024).
///
/// # Errors
/// A sentence that names the text.
pub fn parse_size(text: &str) -> Result<i64, String> {
    let wrong =
        || format!("'{text}' is no size: write a whole number and one of K, M, G, T, such as 500M");
    let trimmed = text.trim();
    let digits = trimmed.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match trimmed[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let count: i64 = digits.trim().parse().map_err(|_| wrong())?;
    match count.checked_mul(1 << shift) {
        Some(bytes) if bytes >= 0 => Ok(bytes),
        _ => Err(wrong()),
    }
}

/// How long ago: a duration with its unit, not in the future.
fn parse_age(text: &str) -> Result<Millis, String> {
    let age =
        match text.trim().strip_suffix("ms") {
            Some(millis) => Millis(millis.trim().parse().map_err(|_| {
                format!("'{text}' is not a duration: write a whole number before ms")
            })?),
            None => parse_duration(text)?,
        };
    if text.trim().ends_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("{text} of what? Say {text}d for days"));
    }
    if age < Millis(0) {
        return Err(format!("'{text}' lies in the future"));
    }
    Ok(age)
}

/// With its unit, as it is read again.
fn age_in_words(age: Millis) -> String {
    match age.in_words() {
        words if words.ends_with(|c: char| c.is_ascii_digit()) => words + "ms",
        words => words,
    }
}

/// The rooms that are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selectors {
    /// What must be so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<Condition>,
    /// What must not be so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not: Vec<Condition>,
}

impl fmt::Display for Selectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.only.iter().map(Condition::to_string);
        let not = self.not.iter().map(|condition| format!("not {condition}"));
        let words: Vec<String> = words.chain(not).collect();
        f.write_str(&words.join(", "))
    }
}

impl Selectors {
    /// Whether nothing was said, which means every room.
    pub fn is_everything(&self) -> bool {
        self.only.is_empty() && self.not.is_empty()
    }

    /// Whether what is chosen depends on what time it is.
    pub fn depend_on_time(&self) -> bool {
        self.all().any(|condition| {
            matches!(
                condition,
                Condition::Inactive(_) | Condition::MessagesOlderThan(_)
            )
        })
    }

    /// What is looked at again when the turn of a room comes that was chosen before: whatever may have changed by what
    /// people do in it. That it was named, that it stood in a space, and its size are as they were when it was chosen.
    pub fn to_look_at_again(&self) -> Self {
        let is_kept = |condition: &&Condition| {
            !matches!(condition, Condition::Room(_) | Condition::LargerThan(_))
        };
        let only = self.only.iter().filter(is_kept);
        Self {
            only: only
                .filter(|condition| !matches!(condition, Condition::Space(_)))
                .cloned()
                .collect(),
            not: self.not.iter().filter(is_kept).cloned().collect(),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Condition> {
        self.only.iter().chain(&self.not)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_as_they_are_told() {
        for text in [
            "empty",
            "forgotten",
            "left",
            "state-only",
            "larger-than=1024",
            "inactive=1d",
            "inactive=1500ms",
            "inactive=0s",
            "messages-older-than=90m",
            "name=old-*",
            "version=10",
            "encrypted",
            "public",
            "local",
            "room=!a:b",
            "room=#a:b",
            "space=!a:b",
        ] {
            let condition = Condition::parse(text).expect(text);
            assert_eq!(condition.to_string(), text);
        }
        assert_eq!(
            Condition::parse("larger_than=2K"),
            Ok(Condition::LargerThan(2048))
        );
        for wrong in [
            "",
            "full",
            "empty=1",
            "name",
            "name=",
            "room=a:b",
            "inactive=90",
            "inactive=-1d",
            "larger-than=1X",
            "larger-than=-1",
            "larger-than=9999999999T",
        ] {
            assert!(Condition::parse(wrong).is_err(), "{wrong}");
        }
    }
}
