//! Beginnings of texts: whether a text begins with one of many, in one clause of a statement and without trying each.

use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;
use rusqlite::types::ValueRef;

/// Beginnings, in order; none begins with another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefixes(Vec<String>);

impl Prefixes {
    /// Those of a list that matter: what begins with another one of them says nothing new.
    pub fn new(mut list: Vec<String>) -> Self {
        list.sort_unstable();
        let mut kept: Vec<String> = Vec::with_capacity(list.len());
        for prefix in list {
            if !kept.last().is_some_and(|last| prefix.starts_with(last)) {
                kept.push(prefix);
            }
        }
        Self(kept)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a text begins with one of them. Only one can be it: the last that is not greater than the text.
    pub fn cover(&self, text: &str) -> bool {
        let after = self.0.partition_point(|prefix| prefix.as_str() <= text);
        let last = after.checked_sub(1).and_then(|last| self.0.get(last));
        last.is_some_and(|prefix| text.starts_with(prefix.as_str()))
    }

    /// As statements take them: a JSON list.
    pub(super) fn to_json(&self) -> String {
        super::pages::json_list(&self.0)
    }
}

/// Gives a connection the function `begins_with_any(text, prefixes)`: whether a text begins with one of a JSON list of
/// beginnings, which must be in order and none the beginning of another.
///
/// # Errors
/// SQLite does not take it.
pub fn add_function(conn: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8
        | FunctionFlags::SQLITE_DETERMINISTIC
        | FunctionFlags::SQLITE_INNOCUOUS;
    conn.create_scalar_function("begins_with_any", 2, flags, |context| {
        // Read once for a statement, because they are bound.
        let prefixes = context.get_or_create_aux(1, |value| {
            let list: Vec<String> = serde_json::from_str(value.as_str()?)?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Prefixes(list))
        })?;
        Ok(match context.get_raw(0) {
            ValueRef::Text(text) => {
                std::str::from_utf8(text).is_ok_and(|text| prefixes.cover(text))
            }
            _ => false,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(list: &[&str]) -> Prefixes {
        Prefixes::new(list.iter().map(|prefix| (*prefix).to_owned()).collect())
    }

    #[test]
    fn a_text_is_covered_by_what_it_begins_with_and_by_nothing_else() {
        let some = prefixes(&[
            "m.room.",
            "m.r",
            "m.space.child",
            "x",
            "é",
            "m.room.message",
        ]);
        assert_eq!(some, prefixes(&["m.r", "m.space.child", "x", "é"]));
        for text in [
            "m.r",
            "m.room.member",
            "m.reaction",
            "m.space.children",
            "x",
            "été",
        ] {
            assert!(some.cover(text), "{text}");
        }
        for text in ["", "m", "m.", "m.q", "m.s", "m.space.chil", "y", "M.R", "a"] {
            assert!(!some.cover(text), "{text}");
        }
        assert!(prefixes(&[""]).cover(""));
        assert!(prefixes(&["", "a"]).cover("b"));
        assert!(!prefixes(&[]).cover(""));
    }

    #[test]
    fn any_prefixes_cover_what_trying_each_says() {
        use rand::{Rng, SeedableRng, rngs::StdRng};
        let mut rng = StdRng::seed_from_u64(7);
        let mut word = |most: usize| -> String {
            let length = rng.random_range(0..=most);
            (0..length)
                .map(|_| ['a', 'b', '.', '*'][rng.random_range(0..4)])
                .collect()
        };
        for _ in 0..2_000 {
            let list: Vec<String> = (0..6)
                .map(|_| word(3))
                .filter(|word| !word.is_empty())
                .collect();
            let text = word(5);
            let expected = list.iter().any(|prefix| text.starts_with(prefix.as_str()));
            assert_eq!(
                Prefixes::new(list.clone()).cover(&text),
                expected,
                "{text} {list:?}"
            );
        }
    }
}
