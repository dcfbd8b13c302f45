//! Room event filters (M-8, M-9, M-52 … M-57).

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::event::Event;
use super::json::string;
use crate::ids::RoomId;
use crate::store::pages::SqlFilter;
use crate::store::prefixes::Prefixes;

/// Which events a reader wants: the filter of a request, as far as a page of messages knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    types: Option<Vec<String>>,
    not_types: Vec<String>,
    senders: Option<Vec<String>>,
    not_senders: Vec<String>,
    rooms: Option<Vec<String>>,
    not_rooms: Vec<String>,
    labels: Option<Vec<String>>,
    not_labels: Vec<String>,
    relation_types: Option<Vec<String>>,
    not_relation_types: Vec<String>,
    related_by_senders: Vec<String>,
    related_by_types: Vec<String>,
    contains_url: Option<bool>,
    is_federation_format: bool,
    loads_members: bool,
}

/// Most entries of one list. What each costs is looked at for every event of a room.
const MAX_ENTRIES: usize = 100;

/// A text that is no filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BadFilter {
    /// `M_NOT_JSON` or `M_BAD_JSON`.
    pub errcode: &'static str,
    /// What is wrong.
    pub message: String,
}

impl BadFilter {
    fn ill_typed(name: &str, wanted: &str) -> Self {
        Self {
            errcode: "M_BAD_JSON",
            message: format!("Filter member '{name}' must be {wanted}"),
        }
    }
}

impl Filter {
    /// Reads a filter; `None` for what says nothing (`{}`, `[]`, `0`, `null`, `""`, `false`). Members that a page of
    /// messages does not know, its own `limit` among them, are ignored. `knows_relation_types` is whether the
    /// experimental members of MSC3874 are known.
    ///
    /// # Errors
    /// It is no JSON, a member is of another type than it should be, or a list has more than 100 entries (M-94).
    pub fn parse(text: &str, knows_relation_types: bool) -> Result<Option<Self>, BadFilter> {
        let value: Value = serde_json::from_str(text).map_err(|_| BadFilter {
            errcode: "M_NOT_JSON",
            message: "Query parameter filter must be a valid JSON object".into(),
        })?;
        let object = match value {
            Value::Object(object) if !object.is_empty() => object,
            Value::Null | Value::Bool(false) | Value::Object(_) => return Ok(None),
            Value::Number(number) if number.as_f64() == Some(0.0) => return Ok(None),
            Value::String(text) if text.is_empty() => return Ok(None),
            Value::Array(list) if list.is_empty() => return Ok(None),
            _ => {
                return Err(BadFilter {
                    errcode: "M_BAD_JSON",
                    message: "The filter must be a JSON object".into(),
                });
            }
        };
        let list = |name: &str| Ok(strings(&object, name)?.unwrap_or_default());
        let mut filter = Self {
            types: strings(&object, "types")?,
            not_types: list("not_types")?,
            senders: strings(&object, "senders")?,
            not_senders: list("not_senders")?,
            rooms: strings(&object, "rooms")?,
            not_rooms: list("not_rooms")?,
            labels: strings(&object, "org.matrix.labels")?,
            not_labels: list("org.matrix.not_labels")?,
            related_by_senders: list("related_by_senders")?,
            related_by_types: list("related_by_rel_types")?,
            contains_url: boolean(&object, "contains_url")?,
            is_federation_format: object.get("event_format") == Some(&"federation".into()),
            loads_members: boolean(&object, "lazy_load_members")? == Some(true),
            ..Self::default()
        };
        if knows_relation_types {
            filter.relation_types = strings(&object, "org.matrix.msc3874.rel_types")?;
            filter.not_relation_types = list("org.matrix.msc3874.not_rel_types")?;
        }
        Ok(Some(filter))
    }

    /// Whether events are wanted as servers send them to each other.
    pub fn is_federation_format(&self) -> bool {
        self.is_federation_format
    }

    /// Whether the members who speak in a page are wanted with it.
    pub fn loads_members(&self) -> bool {
        self.loads_members
    }

    /// What is decided before events are counted; `None` when nothing of the room can pass (M-53, M-55: an empty list
    /// decides nothing yet).
    pub(crate) fn sql_filter(&self, room: &RoomId) -> Option<SqlFilter> {
        let is_room = |name: &String| name == room.as_str();
        let other_rooms = |rooms: &Vec<String>| !rooms.is_empty() && !rooms.iter().any(is_room);
        if self.rooms.as_ref().is_some_and(other_rooms) || self.not_rooms.iter().any(is_room) {
            return None;
        }
        let (types, type_prefixes) = by_wildcard(self.types.as_deref().unwrap_or_default());
        let (not_types, not_type_prefixes) = by_wildcard(&self.not_types);
        Some(SqlFilter {
            types,
            type_prefixes,
            not_types,
            not_type_prefixes,
            senders: self.senders.clone().unwrap_or_default(),
            not_senders: self.not_senders.clone(),
            contains_url: self.contains_url == Some(true),
            labels: self.labels.clone().unwrap_or_default(),
            related_by_senders: self.related_by_senders.clone(),
            related_by_types: self.related_by_types.clone(),
            relation_types: self.relation_types.clone().unwrap_or_default(),
            not_relation_types: self.not_relation_types.clone(),
        })
    }

    /// Whether an event of the room passes (M-56). What other events say about it was decided by the SQL filter.
    pub(crate) fn passes(&self, event: &Event, room: &RoomId) -> bool {
        let of_type = |listed: &String| match listed.strip_suffix('*') {
            Some(begin) => event.kind().starts_with(begin),
            None => listed == event.kind(),
        };
        let passes = evaluate(self.rooms.as_deref(), &self.not_rooms, |listed| {
            listed == room.as_str()
        }) && evaluate(self.senders.as_deref(), &self.not_senders, |sender| {
            sender == event.sender()
        }) && evaluate(self.types.as_deref(), &self.not_types, of_type);
        if !passes {
            return false;
        }
        if self.relation_types.is_some() || !self.not_relation_types.is_empty() {
            let relation = event.relation();
            let kind = relation.as_ref().map(|relation| relation.kind.as_str());
            let of_kind = |listed: &String| Some(listed.as_str()) == kind;
            if !evaluate(
                self.relation_types.as_deref(),
                &self.not_relation_types,
                of_kind,
            ) {
                return false;
            }
        }
        self.content_passes(event)
    }

    fn content_passes(&self, event: &Event) -> bool {
        if self.labels.is_none() && self.not_labels.is_empty() && self.contains_url.is_none() {
            return true;
        }
        let content = event.content();
        let labels: Option<Vec<Value>> = content
            .get("org.matrix.labels")
            .and_then(|labels| serde_json::from_str(labels).ok());
        let labels = labels.unwrap_or_default();
        let labelled = |listed: &String| labels.iter().any(|label| label == listed);
        if !evaluate(self.labels.as_deref(), &self.not_labels, labelled) {
            return false;
        }
        let url: Option<Cow<'_, str>> = content.get("url").and_then(string);
        self.contains_url
            .is_none_or(|wanted| wanted == url.is_some())
    }
}

/// One member and its opposite: none of the unwanted matches, and one of the wanted does.
fn evaluate(
    wanted: Option<&[String]>,
    unwanted: &[String],
    matches: impl Fn(&String) -> bool,
) -> bool {
    !unwanted.iter().any(&matches) && wanted.is_none_or(|wanted| wanted.iter().any(&matches))
}

/// Whole values, and beginnings of values: a `*` counts at the end (M-54).
fn by_wildcard(types: &[String]) -> (Vec<String>, Prefixes) {
    let (mut whole, mut begins) = (Vec::new(), Vec::new());
    for kind in types {
        match kind.strip_suffix('*') {
            Some(begin) => begins.push(begin.to_owned()),
            None => whole.push(kind.clone()),
        }
    }
    (whole, Prefixes::new(begins))
}

fn strings(object: &Map<String, Value>, name: &str) -> Result<Option<Vec<String>>, BadFilter> {
    let wrong = || BadFilter::ill_typed(name, "a list of strings");
    match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) if list.len() > MAX_ENTRIES => Err(BadFilter {
            errcode: "M_INVALID_PARAM",
            message: format!(
                "Filter member '{name}' has {} entries; {MAX_ENTRIES} are the most",
                list.len()
            ),
        }),
        Some(Value::Array(list)) => {
            let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(wrong);
            Ok(Some(list.iter().map(text).collect::<Result<_, _>>()?))
        }
        Some(_) => Err(wrong()),
    }
}

fn boolean(object: &Map<String, Value>, name: &str) -> Result<Option<bool>, BadFilter> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(_) => Err(BadFilter::ill_typed(name, "a boolean")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql_filter(text: &str) -> Option<SqlFilter> {
        let filter = Filter::parse(text, false)
            .expect("a filter")
            .expect("it says something");
        filter.sql_filter(&RoomId::from("!a:b"))
    }

    #[test]
    fn what_says_nothing_is_no_filter() {
        for text in ["{}", "[]", "0", "null", "\"\"", "false", " { } ", "0.0"] {
            assert_eq!(Filter::parse(text, false), Ok(None), "{text}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused_with_the_code_of_its_fault() {
        for text in ["", "{", "{\"a\":NaN}", "m.room.message", "{}x"] {
            let refused = Filter::parse(text, false).expect_err(text);
            assert_eq!(refused.errcode, "M_NOT_JSON");
            assert_eq!(
                refused.message,
                "Query parameter filter must be a valid JSON object"
            );
        }
        for text in [
            "5",
            "[1]",
            "\"x\"",
            "true",
            r#"{"types":"m.room.message"}"#,
            r#"{"not_senders":[1]}"#,
            r#"{"contains_url":1}"#,
            r#"{"lazy_load_members":"yes"}"#,
        ] {
            assert_eq!(
                Filter::parse(text, false).expect_err(text).errcode,
                "M_BAD_JSON"
            );
        }
    }

    #[test]
    fn only_the_room_itself_can_pass_a_filter_of_rooms() {
        assert_eq!(sql_filter(r#"{"rooms":["!c:d"]}"#), None);
        assert_eq!(sql_filter(r#"{"not_rooms":["!a:b"]}"#), None);
        assert!(sql_filter(r#"{"rooms":["!c:d","!a:b"]}"#).is_some());
        assert!(
            sql_filter(r#"{"rooms":[]}"#).is_some(),
            "an empty list decides later"
        );
    }

    #[test]
    fn a_star_counts_at_the_end_alone() {
        let sql_filter =
            sql_filter(r#"{"types":["m.*","m.*.x","m.room.message"],"not_types":["*"]}"#)
                .expect("some");
        assert_eq!(sql_filter.type_prefixes, Prefixes::new(vec!["m.".into()]));
        assert_eq!(sql_filter.types, ["m.*.x", "m.room.message"]);
        assert_eq!(
            sql_filter.not_type_prefixes,
            Prefixes::new(vec![String::new()])
        );
    }

    #[test]
    fn experimental_members_count_where_they_are_known() {
        let text = r#"{"org.matrix.msc3874.rel_types":["m.thread"]}"#;
        let of = |known| Filter::parse(text, known).expect("a filter").expect("some");
        assert_eq!(of(false).relation_types, None);
        assert_eq!(of(true).relation_types, Some(vec!["m.thread".into()]));
    }
}
