//! YAML as Synapse reads it: what a scalar means is decided as PyYAML decides it (YAML 1.1, K-2), and every value knows
//! the file and line that it stands in.
//!
//! The scanning is a library's; what is built of it here is small, bounded and shared: an alias is the same value again,
//! not a copy of it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::rc::Rc;
use std::sync::LazyLock;

use regex::Regex;
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError};
use serde_json::Value as Json;

use super::scalar::{pattern, python_float, scalar};
use super::syntax;

/// How deep lists and blocks may stand in each other.
const DEEPEST: usize = 100;

/// How many values JSON made of aliases may have.
const MOST_VALUES: usize = 100_000;

/// A file that is read, and what somebody should look at in it.
#[derive(Debug)]
pub(super) struct Source {
    file: String,
    warnings: RefCell<Vec<Warning>>,
}

/// Something that works, and that somebody should look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The file as it was named.
    pub file: String,
    /// The line from 1; 0 where the whole file is meant.
    pub line: usize,
    /// What is so, and what to do.
    pub text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_place(f, &self.file, self.line)?;
        write!(f, ": {}", self.text)
    }
}

impl Source {
    pub(super) fn of(file: &Path) -> Rc<Self> {
        Rc::new(Self {
            file: file.display().to_string(),
            warnings: RefCell::default(),
        })
    }

    /// Notes something at a line of it.
    pub(super) fn warn(&self, line: usize, text: String) {
        let mut warnings = self.warnings.borrow_mut();
        let warning = Warning {
            file: self.file.clone(),
            line,
            text,
        };
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// What was noted, by line.
    pub(super) fn warnings(&self) -> Vec<Warning> {
        let mut warnings = self.warnings.borrow().clone();
        warnings.sort_by_key(|warning| warning.line);
        warnings
    }
}

/// Where a value stands.
#[derive(Clone, Debug)]
pub(super) struct Place {
    source: Rc<Source>,
    line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_place(f, &self.source.file, self.line)
    }
}

fn write_place(f: &mut fmt::Formatter<'_>, file: &str, line: usize) -> fmt::Result {
    match line {
        0 => f.write_str(file),
        line => write!(f, "{file}:{line}"),
    }
}

/// A value of a configuration.
#[derive(Clone, Debug)]
pub(super) struct Value {
    kind: Kind,
    /// A plain scalar as it is written; `None` where it was quoted, and for lists and blocks.
    written: Option<Rc<str>>,
    place: Place,
}

/// What a value is to PyYAML.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// Nothing: `~`, `null`, or nothing at all.
    Null,
    /// `true`, `yes`, `on`, …
    Bool(bool),
    /// A whole number of any size, in decimal digits.
    Int(String),
    /// A number with a point, or none that is finite.
    Float(f64),
    /// A date or a time, as Python writes it.
    Date(String),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Rc<Value>>),
    /// A block of keys.
    Map(Map),
}

/// A block of keys, in the order in which they stand; each key once.
#[derive(Clone, Debug, Default)]
pub(super) struct Map {
    keys: Vec<(String, Rc<Value>)>,
    at: HashMap<String, usize>,
}

impl PartialEq for Map {
    fn eq(&self, other: &Self) -> bool {
        self.keys.len() == other.keys.len()
            && self
                .keys
                .iter()
                .all(|(key, value)| other.get(key).is_some_and(|found| found == &**value))
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind
    }
}

impl Map {
    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.at.get(key).map(|at| &*self.keys[*at].1)
    }

    /// The keys with their values.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.keys
            .iter()
            .map(|(key, value)| (key.as_str(), &**value))
    }

    /// Whether there is no key.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Gives a key its value, and gives the one back that it had.
    pub(super) fn insert(&mut self, key: String, value: Rc<Value>) -> Option<Rc<Value>> {
        if let Some(at) = self.at.get(&key) {
            return Some(std::mem::replace(&mut self.keys[*at].1, value));
        }
        self.at.insert(key.clone(), self.keys.len());
        self.keys.push((key, value));
        None
    }

    /// Takes over all keys of another block: a later file replaces whole blocks, as Synapse's do.
    pub(super) fn extend(&mut self, other: Map) {
        for (key, value) in other.keys {
            self.insert(key, value);
        }
    }

    /// Takes a key away, and gives the value that it had.
    pub(super) fn remove(&mut self, key: &str) -> Option<Rc<Value>> {
        let at = *self.at.get(key)?;
        let (_, value) = self.keys.remove(at);
        let keys = self.keys.iter().enumerate();
        self.at = keys.map(|(at, (key, _))| (key.clone(), at)).collect();
        Some(value)
    }
}

impl Value {
    /// What it is.
    pub(super) fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Where it stands.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Notes what somebody should look at here.
    pub(super) fn warn(&self, text: String) {
        self.place.source.warn(self.place.line, text);
    }

    /// The value of a key, where this is a block.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.as_map()?.get(key)
    }

    pub(super) fn as_map(&self) -> Option<&Map> {
        match &self.kind {
            Kind::Map(map) => Some(map),
            _ => None,
        }
    }

    pub(super) fn as_list(&self) -> Option<&[Rc<Value>]> {
        match &self.kind {
            Kind::List(list) => Some(list),
            _ => None,
        }
    }

    /// A text that is one to PyYAML, too.
    pub(super) fn as_str(&self) -> Option<&str> {
        match &self.kind {
            Kind::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn as_bool(&self) -> Option<bool> {
        match self.kind {
            Kind::Bool(flag) => Some(flag),
            _ => None,
        }
    }

    /// A whole number that fits.
    pub(super) fn as_i64(&self) -> Option<i64> {
        match &self.kind {
            Kind::Int(digits) => digits.parse().ok(),
            _ => None,
        }
    }

    pub(super) fn is_null(&self) -> bool {
        self.kind == Kind::Null
    }

    /// A scalar where a text is wanted: what Python's `str()` makes of it. `None` for nothing, lists and blocks.
    pub(super) fn python_text(&self) -> Option<Cow<'_, str>> {
        Some(match &self.kind {
            Kind::Text(text) | Kind::Int(text) | Kind::Date(text) => text.into(),
            Kind::Bool(true) => "True".into(),
            Kind::Bool(false) => "False".into(),
            Kind::Float(number) => python_float(*number).into(),
            Kind::Null | Kind::List(_) | Kind::Map(_) => return None,
        })
    }

    /// Whether PyYAML makes something else of a scalar than what is written, so that it should have been quoted.
    pub(super) fn is_changed(&self) -> bool {
        match (&self.written, self.python_text()) {
            (Some(written), Some(text)) => **written != *text,
            _ => false,
        }
    }

    /// The same as JSON, for what goes into events.
    ///
    /// # Errors
    /// A sentence, where it is too much, or no JSON.
    pub(super) fn to_json(&self) -> Result<Json, String> {
        self.json(&mut MOST_VALUES.clone())
    }

    fn json(&self, left: &mut usize) -> Result<Json, String> {
        *left = left.checked_sub(1).ok_or("holds too much")?;
        Ok(match &self.kind {
            Kind::Null => Json::Null,
            Kind::Bool(flag) => Json::Bool(*flag),
            Kind::Int(digits) => match digits.parse::<i64>() {
                Ok(number) => Json::from(number),
                Err(_) => return Err(format!("holds {digits}, which is too large")),
            },
            Kind::Float(number) => serde_json::Number::from_f64(*number)
                .map(Json::Number)
                .ok_or("holds a number that is not finite")?,
            Kind::Date(text) | Kind::Text(text) => Json::String(text.clone()),
            Kind::List(list) => {
                let list = list.iter().map(|value| value.json(left));
                Json::Array(list.collect::<Result<_, _>>()?)
            }
            Kind::Map(map) => {
                let keys = map
                    .iter()
                    .map(|(key, value)| Ok((key.to_owned(), value.json(left)?)));
                Json::Object(keys.collect::<Result<_, String>>()?)
            }
        })
    }

    #[cfg(test)]
    pub(super) fn from_json(json: &Json) -> Self {
        let text = json.to_string();
        let read = read(&text, &Source::of(Path::new("test"))).expect("JSON is YAML");
        Self {
            kind: read.kind,
            written: read.written,
            place: read.place,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.written, &self.kind) {
            (Some(written), _) if !written.is_empty() => f.write_str(written),
            (_, Kind::Null) => f.write_str("empty"),
            (_, Kind::List(_)) => f.write_str("a list"),
            (_, Kind::Map(_)) => f.write_str("a block of keys"),
            (_, Kind::Text(text)) => write!(f, "{text:?}"),
            _ => f.write_str(&self.python_text().unwrap_or_default()),
        }
    }
}

/// Reads one document. What stands around a mistake is in no message: it may be a secret.
///
/// # Errors
/// A sentence with the file, the line, and what is wrong there.
pub(super) fn read(text: &str, source: &Rc<Source>) -> Result<Value, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text = join_surrogates(text);
    Builder {
        source: source.clone(),
        open: Vec::new(),
        known: HashMap::new(),
        root: None,
    }
    .build(&text)
}

/// JSON writes what lies beyond U+FFFF as two escapes; YAML has one for it. Only where the escapes are meant: in text
/// within double quotes, which JSON consists of and which other YAML has where it cannot be read otherwise.
fn join_surrogates(text: &str) -> Cow<'_, str> {
    static PAIR: LazyLock<Regex> = LazyLock::new(|| {
        pattern(r"\\(?:\\|u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2}))")
    });
    if !text.contains("\\u") || Parser::new_from_str(text).all(|event| event.is_ok()) {
        return Cow::Borrowed(text);
    }
    PAIR.replace_all(text, |found: &regex::Captures<'_>| {
        let half = |at| {
            let digits = found.get(at)?;
            u32::from_str_radix(digits.as_str(), 16).ok()
        };
        match (half(1), half(2)) {
            (Some(high), Some(low)) => {
                let code = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                format!("\\U{code:08X}")
            }
            _ => found[0].to_owned(),
        }
    })
}

/// A list or a block that has not ended.
struct Open {
    place: Place,
    /// Whether it stands in brackets.
    is_flow: bool,
    anchor: usize,
    into: Into,
}

enum Into {
    List(Vec<Rc<Value>>),
    Map {
        own: Vec<(String, Place, Rc<Value>)>,
        /// What `<<` says: each a block or a list of blocks.
        merged: Vec<Rc<Value>>,
        key: Option<(String, bool, Place)>,
    },
}

struct Builder {
    source: Rc<Source>,
    open: Vec<Open>,
    known: HashMap<usize, Rc<Value>>,
    root: Option<Rc<Value>>,
}

impl Builder {
    fn build(mut self, text: &str) -> Result<Value, String> {
        let mut documents = 0;
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|e| self.wrong_syntax(&e))?;
            let place = self.place(span.start.line());
            match event {
                Event::DocumentStart(_) => {
                    documents += 1;
                    if documents > 1 {
                        return Err(format!(
                            "{place}: a second document begins here (---); Synapse reads files with one"
                        ));
                    }
                }
                Event::Scalar(text, style, anchor, tag) => {
                    let is_plain = style == ScalarStyle::Plain;
                    let kind = scalar(&text, is_plain, tag.as_deref())
                        .map_err(|e| format!("{place}: {e}"))?;
                    let is_merge = is_plain && tag.is_none() && text == "<<";
                    let value = Value {
                        kind,
                        written: is_plain.then(|| Rc::from(&*text)),
                        place,
                    };
                    self.add(Rc::new(value), anchor, is_merge)?;
                }
                Event::SequenceStart(anchor, _) => {
                    self.begin(place, !span.is_empty(), anchor, Into::List(Vec::new()))?;
                }
                Event::MappingStart(anchor, _) => {
                    let into = Into::Map {
                        own: Vec::new(),
                        merged: Vec::new(),
                        key: None,
                    };
                    self.begin(place, !span.is_empty(), anchor, into)?;
                }
                Event::SequenceEnd | Event::MappingEnd => self.end()?,
                Event::Alias(anchor) => {
                    let Some(value) = self.known.get(&anchor).cloned() else {
                        return Err(format!("{place}: what this * refers to holds it itself"));
                    };
                    self.add(value, 0, false)?;
                }
                Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            }
        }
        let place = self.place(0);
        let root = self.root.map_or_else(
            || Value {
                kind: Kind::Null,
                written: None,
                place,
            },
            |root| Rc::try_unwrap(root).unwrap_or_else(|shared| (*shared).clone()),
        );
        Ok(root)
    }

    fn place(&self, line: usize) -> Place {
        Place {
            source: self.source.clone(),
            line,
        }
    }

    fn begin(
        &mut self,
        place: Place,
        is_flow: bool,
        anchor: usize,
        into: Into,
    ) -> Result<(), String> {
        if self.open.len() >= DEEPEST {
            return Err(format!(
                "{place}: more than {DEEPEST} lists and blocks stand in each other here"
            ));
        }
        self.open.push(Open {
            place,
            is_flow,
            anchor,
            into,
        });
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        let Some(open) = self.open.pop() else {
            return Ok(());
        };
        let kind = match open.into {
            Into::List(list) => Kind::List(list),
            Into::Map { own, merged, .. } => Kind::Map(self.block(own, &merged)?),
        };
        let value = Value {
            kind,
            written: None,
            place: open.place,
        };
        self.add(Rc::new(value), open.anchor, false)
    }

    /// A block of its own keys, and below them what `<<` says, of which the first counts.
    fn block(
        &mut self,
        own: Vec<(String, Place, Rc<Value>)>,
        merged: &[Rc<Value>],
    ) -> Result<Map, String> {
        let mut map = Map::default();
        for value in merged {
            match &value.kind {
                Kind::Map(block) => map.extend(block.clone()),
                Kind::List(list) => {
                    for value in list.iter().rev() {
                        let Kind::Map(block) = &value.kind else {
                            return Err(format!("{}: << takes blocks of keys", value.place));
                        };
                        map.extend(block.clone());
                    }
                }
                _ => return Err(format!("{}: << takes a block of keys", value.place)),
            }
        }
        let mut seen: HashMap<String, usize> = HashMap::new();
        for (key, place, value) in own {
            if let Some(first) = seen.insert(key.clone(), place.line) {
                let text = format!(
                    "the key {key:?} stands here again (it is in line {first}, too); the last one counts"
                );
                self.source.warn(place.line, text);
            }
            map.insert(key, value);
        }
        Ok(map)
    }

    fn add(&mut self, value: Rc<Value>, anchor: usize, is_merge: bool) -> Result<(), String> {
        if anchor > 0 {
            self.known.insert(anchor, value.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(value);
            return Ok(());
        };
        match &mut open.into {
            Into::List(list) => list.push(value),
            Into::Map { own, merged, key } => match key.take() {
                None => {
                    let text = match (&value.written, value.python_text()) {
                        (Some(written), _) => written.to_string(),
                        (None, Some(text)) => text.into_owned(),
                        (None, None) => {
                            return Err(format!(
                                "{}: a list or a block cannot be a key",
                                value.place
                            ));
                        }
                    };
                    *key = Some((text, is_merge, value.place.clone()));
                }
                Some((_, true, _)) => merged.push(value),
                Some((name, false, place)) => own.push((name, place, value)),
            },
        }
        Ok(())
    }

    /// What a library says of a mistake, for people.
    fn wrong_syntax(&self, e: &ScanError) -> String {
        let (line, column) = (e.marker().line(), e.marker().col() + 1);
        let bracket = self.open.last().filter(|open| open.is_flow);
        let what = syntax::explain(e.info(), bracket.map(|open| open.place.line));
        format!("{}:{line}, column {column}: {what}", self.source.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Value, String> {
        super::read(text, &Source::of(Path::new("x.yaml")))
    }

    fn warnings(text: &str) -> Vec<String> {
        let source = Source::of(Path::new("x.yaml"));
        super::read(text, &source).expect(text);
        source.warnings().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_quoted_is_text_and_what_pyyaml_changes_is_known() {
        let value = read(
            "{a: '010', b: \"yes\", c: 010, d: 08, e: !!str 010, f: 1.50, g: 1.5, h: 12345678901234567890, i: ! 12}",
        );
        let value = value.expect("reads");
        let said = |key: &str| {
            let value = value.get(key).expect(key);
            (
                value.python_text().expect(key).into_owned(),
                value.is_changed(),
            )
        };
        for (key, text, is_changed) in [
            ("a", "010", false),
            ("b", "yes", false),
            ("c", "8", true),
            ("d", "08", false),
            ("e", "010", false),
            ("f", "1.5", true),
            ("g", "1.5", false),
            ("h", "12345678901234567890", false),
            ("i", "12", false),
        ] {
            assert_eq!(said(key), (text.to_owned(), is_changed), "{key}");
        }
    }

    #[test]
    fn json_is_yaml_with_its_surrogate_pairs_joined() {
        let value =
            read(r#"{"a": "x\ud83d\ude00\/\t", "b\u00fc": [1, null], "c": "\\ud83d\\ude00"}"#);
        let value = value.expect("reads");
        assert_eq!(
            value.get("a").and_then(Value::as_str),
            Some("x\u{1f600}/\t")
        );
        assert_eq!(
            value.get("c").and_then(Value::as_str),
            Some("\\ud83d\\ude00")
        );
        assert!(value.get("bü").is_some());
        let half = read(r#"{"a": "x\ud83d"}"#).expect_err("half");
        assert!(
            half.contains("x.yaml:1") && half.contains("surrogate"),
            "{half}"
        );
    }

    #[test]
    fn the_last_of_a_key_counts_and_the_others_are_told() {
        let text = "a: 1\nb:\n  c: 1\n  c: 2\na: 3\n";
        let value = read(text).expect("reads");
        assert_eq!(value.get("a").and_then(Value::as_i64), Some(3));
        let told = warnings(text);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(
            told[0].starts_with("x.yaml:4: the key \"c\"") && told[0].contains("line 3"),
            "{told:?}"
        );
        assert!(told[1].starts_with("x.yaml:5: the key \"a\""), "{told:?}");
    }

    #[test]
    fn anchors_and_merges_are_understood_and_bounded() {
        let value =
            read("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\nz: {<<: [{a: 7}, *x]}\n").expect("reads");
        let number = |block: &str, key: &str| value.get(block)?.get(key)?.as_i64();
        assert_eq!((number("y", "a"), number("y", "b")), (Some(1), Some(3)));
        assert_eq!((number("z", "a"), number("z", "b")), (Some(7), Some(2)));
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for n in 1..40 {
            let one = format!("*a{}", n - 1);
            bomb.push_str(&format!(
                "a{n}: &a{n} [{}]\n",
                [one.as_str(); 10].join(", ")
            ));
        }
        let value = read(&bomb).expect("shared, not copied");
        assert!(value.to_json().is_err());
        assert!(read("a: &a [*a]").is_err());
        assert!(read(&"[".repeat(100_000)).is_err());
        let deep: String = (0..5_000)
            .map(|n| format!("{}-\n", " ".repeat(n)))
            .collect();
        assert!(
            read(&deep)
                .expect_err("deep")
                .contains("stand in each other")
        );
    }
}
