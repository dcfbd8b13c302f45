//! JSON as it is stored: an object's members are found, and their texts are passed on unchanged.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

/// A member's name, borrowed where it has no escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Reader)
    }
}

/// The members of a JSON object, in its order. Of two with one name the later counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Object<'a>(Vec<(Cow<'a, str>, &'a str)>);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Object<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Object<'de>, M::Error> {
                let mut members = Vec::with_capacity(16);
                while let Some((name, value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
                    members.push((name.0, value.get()));
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

impl<'a> Object<'a> {
    /// The members of a text; `None` when it is no object.
    pub(crate) fn read(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// A member's text.
    pub(crate) fn get(&self, name: &str) -> Option<&'a str> {
        let found = self.0.iter().rev().find(|(known, _)| known == name);
        found.map(|(_, value)| *value)
    }

    /// A member that is a string.
    pub(crate) fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        self.get(name).and_then(string)
    }

    /// All members.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.0.iter().map(|(name, value)| (name.as_ref(), *value))
    }

    /// The members, for a text that outlives them.
    pub(crate) fn into_members(self) -> Vec<(Cow<'a, str>, &'a str)> {
        self.0
    }
}

/// The string that a JSON text is, if it is one.
pub(crate) fn string(json: &str) -> Option<Cow<'_, str>> {
    let inner = json.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        serde_json::from_str(json).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(inner))
    }
}

/// The integer that a JSON text is, if it is one and fits.
pub(crate) fn integer(json: &str) -> Option<i64> {
    json.parse().ok()
}

/// A JSON text as a value, as far as `depth` levels down: what lies deeper is null. Content can be nested as deep as an event
/// is long, and a value that deep can be neither read nor dropped.
pub(crate) fn outline(json: &str, depth: usize) -> Value {
    let inner = |json: &str| match depth {
        0 => Value::Null,
        _ => outline(json, depth - 1),
    };
    if json.starts_with('{') {
        let object = Object::read(json).unwrap_or_default();
        let members = object.iter();
        return members
            .map(|(name, json)| (name.to_owned(), inner(json)))
            .collect();
    }
    if json.starts_with('[') {
        let list: Vec<&RawValue> = serde_json::from_str(json).unwrap_or_default();
        return list.iter().map(|json| inner(json.get())).collect();
    }
    serde_json::from_str(json).unwrap_or_default()
}

#[derive(Clone, Debug)]
pub(crate) enum Text {
    /// Where it stands, as it is.
    At(ByteRange),
    /// What stands there with escapes.
    Unescaped(Box<str>),
}

/// A place in a document's text. Stored events have at most 64 KiB; longer texts than this can hold are no documents.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByteRange {
    start: u32,
    end: u32,
}

impl ByteRange {
    /// Where a part of a text stands in it, which begins at the address `start`.
    fn of(part: &str, start: usize) -> Self {
        let at = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let begin = part.as_ptr().addr().saturating_sub(start);
        Self {
            start: at(begin),
            end: at(begin + part.len()),
        }
    }
}

/// An object in one piece with its text.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    text: String,
    members: Vec<(Text, ByteRange)>,
}

/// Reads the members of a text that begins at this address.
struct ByteRanges(usize);

impl<'de> DeserializeSeed<'de> for ByteRanges {
    type Value = Vec<(Text, ByteRange)>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ByteRanges {
    type Value = Vec<(Text, ByteRange)>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut members = Vec::with_capacity(16);
        while let Some((name, value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
            let name = match name.0 {
                Cow::Borrowed(name) => Text::At(ByteRange::of(name, self.0)),
                Cow::Owned(name) => Text::Unescaped(name.into()),
            };
            members.push((name, ByteRange::of(value.get(), self.0)));
        }
        Ok(members)
    }
}

impl Document {
    /// Reads a text; `None` when it is no object.
    pub(crate) fn read(text: String) -> Option<Self> {
        let places = ByteRanges(text.as_ptr().addr());
        let mut reader = serde_json::Deserializer::from_str(&text);
        let members = places.deserialize(&mut reader).ok()?;
        reader.end().ok()?;
        u32::try_from(text.len()).ok()?;
        Some(Self { text, members })
    }

    /// How long its text is.
    pub(crate) fn len(&self) -> usize {
        self.text.len()
    }

    fn at(&self, place: ByteRange) -> Option<&str> {
        let start = usize::try_from(place.start).ok()?;
        let end = usize::try_from(place.end).ok()?;
        self.text.get(start..end)
    }

    fn place(&self, name: &str) -> Option<ByteRange> {
        let mut members = self.members.iter().rev();
        let found = members.find(|(known, _)| self.show(known) == name);
        found.map(|(_, place)| *place)
    }

    /// A member's text.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.place(name).and_then(|place| self.at(place))
    }

    /// A member that is a string, to be shown later.
    pub(crate) fn text_of(&self, name: &str) -> Option<Text> {
        let ByteRange { start, end } = self.place(name)?;
        Some(match string(self.at(ByteRange { start, end })?)? {
            // Without its quotes.
            Cow::Borrowed(_) => Text::At(ByteRange {
                start: start + 1,
                end: end - 1,
            }),
            Cow::Owned(text) => Text::Unescaped(text.into()),
        })
    }

    /// A text of this document.
    pub(crate) fn show<'a>(&'a self, text_of: &'a Text) -> &'a str {
        match text_of {
            Text::At(place) => self.at(*place).unwrap_or_default(),
            Text::Unescaped(text) => text,
        }
    }

    /// A member that is an object.
    pub(crate) fn object(&self, name: &str) -> Option<Object<'_>> {
        self.get(name).and_then(Object::read)
    }

    /// All members.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let members = self.members.iter();
        members.map(|(name, place)| (self.show(name), self.at(*place).unwrap_or("null")))
    }
}

/// An object that is being made, from texts of members. A later member of a name takes the earlier one's place.
#[derive(Clone, Debug, Default)]
pub(crate) struct ObjectWriter<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> ObjectWriter<'a> {
    /// Adds a member that has no namesake.
    pub(crate) fn push(&mut self, name: impl Into<Cow<'a, str>>, value: impl Into<Cow<'a, str>>) {
        self.0.push((name.into(), value.into()));
    }

    /// Adds or replaces a member.
    pub(crate) fn set(&mut self, name: impl Into<Cow<'a, str>>, value: impl Into<Cow<'a, str>>) {
        let (name, value) = (name.into(), value.into());
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    /// A member's text.
    pub(crate) fn get(&self, name: &str) -> Option<&Cow<'a, str>> {
        let found = self.0.iter().rev().find(|(known, _)| known == name);
        found.map(|(_, value)| value)
    }

    /// Whether there is a member of the name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    /// All members.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let members = self.0.iter();
        members.map(|(name, value)| (name.as_ref(), value.as_ref()))
    }

    /// The object's text.
    pub(crate) fn text(&self) -> String {
        let size = self
            .iter()
            .map(|(name, value)| name.len() + value.len() + 4);
        let mut text = String::with_capacity(size.sum::<usize>() + 2);
        push_object(&mut text, self.iter());
        text
    }
}

/// Appends an object of these members.
pub(crate) fn push_object<'a>(
    json: &mut String,
    members: impl Iterator<Item = (&'a str, &'a str)>,
) {
    json.push('{');
    for (n, (name, value)) in members.enumerate() {
        if n > 0 {
            json.push(',');
        }
        push_string(json, name);
        json.push(':');
        json.push_str(value);
    }
    json.push('}');
}

/// Appends a string as JSON.
fn push_string(json: &mut String, text: &str) {
    let is_plain = |b: u8| b >= 0x20 && b != b'"' && b != b'\\';
    if text.bytes().all(is_plain) {
        json.push('"');
        json.push_str(text);
        json.push('"');
    } else {
        json.push_str(&serde_json::Value::from(text).to_string());
    }
}

/// A string as JSON.
pub(crate) fn quoted(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 2);
    push_string(&mut json, text);
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_keep_their_texts() {
        let text = r#" {"a": 1.50, "b":{"c" : "\u00e9"} ,"d\n":[1e400],"a":"last"} "#;
        let document = Document::read(text.to_owned()).expect("an object");
        assert_eq!(document.get("a"), Some(r#""last""#));
        assert_eq!(document.get("b"), Some(r#"{"c" : "\u00e9"}"#));
        assert_eq!(document.get("d\n"), Some("[1e400]"));
        assert_eq!(
            document.object("b").and_then(|b| b.text("c")).as_deref(),
            Some("é")
        );
        assert_eq!(document.get("c"), None);
        for wrong in ["", "[]", "null", "{", r#"{"a":1}x"#, r#"{"a":NaN}"#] {
            assert!(Document::read(wrong.to_owned()).is_none(), "{wrong}");
        }
    }

    #[test]
    fn an_object_is_made_of_texts() {
        let mut writer = ObjectWriter::default();
        writer.push("a", "1.50");
        writer.set("b\"", "null");
        writer.set("a", "2");
        assert_eq!(writer.text(), r#"{"a":2,"b\"":null}"#);
        assert_eq!(ObjectWriter::default().text(), "{}");
        assert_eq!(quoted("a\u{1}\"é"), r#""a\u0001\"é""#);
    }

    #[test]
    fn an_outline_ends_where_it_is_told_to() {
        let text = r#"{"a":{"b":[1,"x",{"c":2}]},"d":null,"a\u0062":true}"#;
        let whole: Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(outline(text, 9), whole);
        assert_eq!(
            outline(text, 2),
            serde_json::json!({"a":{"b":[null,null,null]},"d":null,"ab":true})
        );
        let deep = format!(
            r#"{{"body":"x","deep":{}{}}}"#,
            "[".repeat(30_000),
            "]".repeat(30_000)
        );
        assert_eq!(outline(&deep, 3)["body"], "x");
    }

    #[test]
    fn strings_and_integers_are_told_from_other_values() {
        assert_eq!(string(r#""a\"b""#).as_deref(), Some("a\"b"));
        assert_eq!(string("1"), None);
        assert_eq!(string("\""), None);
        assert_eq!(integer("-5"), Some(-5));
        for wrong in ["5.0", "\"5\"", "99999999999999999999", "true"] {
            assert_eq!(integer(wrong), None, "{wrong}");
        }
    }
}
