//! Names of media in texts: what one says, and whether an id stands in it. Pure.

use std::collections::HashSet;

use crate::store::value::Value;

/// Longest id that is looked for, in bytes.
const LONGEST_ID: usize = 255;

/// Shortest: the homeserver lays files out by the first four letters.
const SHORTEST_ID: usize = 5;

/// By what a file is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MediaName {
    /// The server that it came from; none where it is of this one.
    pub origin: Option<String>,
    /// Its id there.
    pub media_id: String,
}

fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

/// Whether that can be the id of a file that we take away: letters that need no care in paths, and enough of them.
pub fn is_media_id(id: &str) -> bool {
    (SHORTEST_ID..=LONGEST_ID).contains(&id.len()) && id.bytes().all(is_letter)
}

fn is_of_server(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte)
}

/// Whether that can be the name of a server, and of a directory.
pub fn is_server_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= LONGEST_ID
        && !name.starts_with('.')
        && name.bytes().all(is_of_server)
}

/// Ids that nothing was found to refer to yet.
#[derive(Debug, Default)]
pub struct Unreferenced {
    ids: HashSet<Box<[u8]>>,
    lengths: HashSet<usize>,
}

impl Unreferenced {
    /// Adds an id.
    pub fn add(&mut self, id: &str) {
        self.lengths.insert(id.len());
        self.ids.insert(id.as_bytes().into());
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Whether an id is among them.
    pub fn contains(&self, id: &str) -> bool {
        self.ids.contains(id.as_bytes())
    }

    /// Takes out every id that stands in a value.
    pub fn strike(&mut self, value: Value<'_>) {
        let Some(text) = bytes_of(value) else {
            return;
        };
        self.strike_words(text);
        if is_escaped(text) {
            self.strike_words(&unescaped(text));
        }
    }

    fn strike_words(&mut self, text: &[u8]) {
        for word in text.split(|byte| !is_letter(*byte)) {
            self.strike_word(word);
            // In Markdown these may stand around it.
            let ends = |byte: &u8| *byte == b'_' || *byte == b'-';
            if word.last().is_some_and(ends) {
                let end = word.iter().rposition(|byte| !ends(byte));
                self.strike_word(&word[..end.map_or(0, |at| at + 1)]);
            }
        }
    }

    fn strike_word(&mut self, word: &[u8]) {
        if word.len() >= SHORTEST_ID && self.lengths.contains(&word.len()) {
            self.ids.remove(word);
        }
    }
}

fn bytes_of(value: Value<'_>) -> Option<&[u8]> {
    match value {
        Value::Text(text) => Some(text.as_bytes()),
        Value::Bytes(bytes) => Some(bytes),
        _ => None,
    }
}

fn is_escaped(text: &[u8]) -> bool {
    text.contains(&b'%') || text.contains(&b'\\')
}

/// With what is escaped in JSON or in addresses as the letter that is meant, as far as that is ASCII; the rest as it stands.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let hex = |at: usize, n: usize| -> Option<u8> {
        let digits = std::str::from_utf8(text.get(at..at + n)?).ok()?;
        let number = u32::from_str_radix(digits, 16).ok()?;
        u8::try_from(number).ok().filter(u8::is_ascii)
    };
    let mut plain = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let (meant, length) = match (byte, text.get(at + 1)) {
            (b'\\', Some(b'u')) => (hex(at + 2, 4), 6),
            (b'\\', Some(b'/')) => (Some(b'/'), 2),
            (b'%', _) => (hex(at + 1, 2), 3),
            _ => (None, 1),
        };
        match meant {
            Some(letter) => {
                plain.push(letter);
                at += length;
            }
            None => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    plain
}

/// Tells `each` every `mxc://server/id` of a value, at any depth, escaped or not; with `server_name` as this server's.
pub(super) fn names_in(value: Value<'_>, server_name: &str, each: &mut dyn FnMut(MediaName)) {
    let Some(text) = bytes_of(value) else {
        return;
    };
    names(text, server_name, each);
    if is_escaped(text) {
        names(&unescaped(text), server_name, each);
    }
}

fn names(text: &[u8], server_name: &str, each: &mut dyn FnMut(MediaName)) {
    const SCHEME: &[u8] = b"mxc://";
    let mut rest = text;
    while let Some(at) = rest.windows(SCHEME.len()).position(|bytes| bytes == SCHEME) {
        rest = &rest[at + SCHEME.len()..];
        let server = rest.iter().position(|byte| !is_of_server(*byte));
        let Some((server, after)) = server.map(|end| rest.split_at(end)) else {
            return;
        };
        let Some(after) = after.strip_prefix(b"/") else {
            continue;
        };
        let end = after.iter().position(|byte| !is_letter(*byte));
        let id = &after[..end.unwrap_or(after.len())];
        // Both are ASCII.
        let (server, id) = (String::from_utf8_lossy(server), String::from_utf8_lossy(id));
        if is_server_name(&server) && is_media_id(&id) {
            each(MediaName {
                origin: (server != server_name).then(|| server.into_owned()),
                media_id: id.into_owned(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "GerZNDnDZVjsOtardLuwfIBg";

    fn is_struck(text: &str) -> bool {
        let mut wanted = Unreferenced::default();
        wanted.add(ID);
        wanted.strike(Value::Text(text));
        wanted.is_empty()
    }

    #[test]
    fn an_id_is_found_however_it_is_written() {
        for text in [
            "mxc://a.b/ID",
            "mxc://a.b/ID#auto",
            r#"{"url":"mxc:\/\/a.b\/ID"}"#,
            r#"{"formatted_body":"<img src=\"mxc://a.b/ID\" height=\"3\">"}"#,
            r#"{"formatted_body":"\u003cimg src=\u0022mxc://a.b/ID\u0022>"}"#,
            r#"{"url":"\u006dxc:\u002f\u002Fa.b\u002fID"}"#,
            "mxc%3A%2F%2Fa.b%2FID",
            "https://a.b/_matrix/media/v3/download/a.b/ID/cat.png?x=1",
            r"https:\/\/a.b\/_matrix\/client\/v1\/media\/thumbnail\/a.b\/ID?width=5",
            "_mxc://a.b/ID_",
            r#"{"data":"{\"url\":\"mxc:\\/\\/a.b\\/ID\"}"}"#,
        ] {
            assert!(is_struck(&text.replace("ID", ID)), "{text}");
        }
        for text in [
            "",
            "mxc://a.b/IDx",
            "mxc://a.b/xID",
            "mxc://a.b/other",
            "ID2",
            "%",
            r"\u00",
            r"\",
        ] {
            assert!(!is_struck(&text.replace("ID", ID)), "{text}");
        }
    }

    #[test]
    fn names_are_read_at_any_depth_and_escaped() {
        let of = |text: &str| {
            let mut found = Vec::new();
            names_in(Value::Text(text), "us", &mut |name| {
                let MediaName { origin, media_id } = name;
                let name = format!("{} {media_id}", origin.as_deref().unwrap_or("-"));
                if !found.contains(&name) {
                    found.push(name);
                }
            });
            found
        };
        assert_eq!(
            of("mxc://us/12345 mxc://c:8/abc-_"),
            ["- 12345", "c:8 abc-_"]
        );
        assert_eq!(
            of(r#"["mxc:\/\/[::1]:8\/12345", {"x": "mxc://us/12345"}]"#).len(),
            2
        );
        assert_eq!(of(r#""\u006dxc://d.e/12345?x""#), ["d.e 12345"]);
        for none in [
            "mxc://",
            "mxc://us",
            "mxc://us/",
            "mxc://us/1234",
            "mxc://../12345",
            "mxc:///12345",
            "mxc://us/..",
        ] {
            assert!(of(none).is_empty(), "{none}");
        }
    }

    #[test]
    fn what_is_no_plain_name_is_none() {
        for id in [
            "",
            "1234",
            "../../etc",
            "a/bcde",
            "ab cde",
            "äbcde",
            &"x".repeat(256),
        ] {
            assert!(!is_media_id(id), "{id}");
        }
        for name in ["", ".", "..", "a/b", "a b", "a\\b", ".a"] {
            assert!(!is_server_name(name), "{name}");
        }
    }
}
