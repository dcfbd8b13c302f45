//! One event as a reader's page sees it: parsed as far as is needed, and redacted if it is.

use std::borrow::Cow;
use std::rc::Rc;

use serde::Deserialize;

use super::json::{Document, Object, ObjectWriter, Text, integer};
use crate::point::Point;
use crate::room_version::{KeptContent, KeptMember, RoomVersion};
use crate::store::pages::EventRow;

/// What the server noted about an event.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Metadata {
    soft_failed: Option<bool>,
    recheck_redaction: Option<bool>,
    /// By what name its sender sent it.
    pub(crate) txn_id: Option<String>,
    /// From which device.
    pub(crate) device_id: Option<String>,
    /// With which token.
    pub(crate) token_id: Option<i64>,
    /// By what name it was sent ahead of its time.
    pub(crate) delay_id: Option<String>,
}

impl Metadata {
    /// Whether it was accepted, and yet is shown to nobody.
    pub(crate) fn is_soft_failed(&self) -> bool {
        self.soft_failed == Some(true)
    }

    /// Whether it redacts only what is of its own server.
    pub(crate) fn needs_recheck(&self) -> bool {
        self.recheck_redaction == Some(true)
    }
}

/// How one event relates to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Relation {
    /// `m.thread`, `m.replace`, …
    pub(crate) kind: String,
}

/// An event.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// Its id.
    pub(crate) id: Rc<str>,
    /// Its place.
    pub(crate) point: Point,
    /// The state after it, where that was asked for.
    pub(crate) state_group: Option<i64>,
    /// Whether other events relate to it.
    pub(crate) has_relations: bool,
    /// What the server noted.
    pub(crate) metadata: Metadata,
    /// Its room's version.
    pub(crate) version: &'static RoomVersion,
    /// Whether its content is gone.
    pub(crate) is_redacted: bool,
    /// By what event.
    pub(crate) redacted_by: Option<String>,
    /// `unsigned.prev_content` and `unsigned.prev_sender`, where the replaced event is held.
    pub(crate) previous: Option<(String, String)>,
    kind: Text,
    sender: Text,
    state_key: Option<Text>,
    document: Document,
}

/// Why an event cannot be shown (M-37, M-51). It costs the event, not the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventError {
    /// Its JSON is missing or none.
    NoJson,
    /// What the server noted about it cannot be read.
    NoMetadata,
    /// It has no type, sender or content.
    NoEvent,
    /// Its room's version is not known, or its form is another version's.
    UnknownVersion,
    /// The state after it is not known.
    NoState,
}

impl EventError {
    /// For the log.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::NoJson => "its JSON is missing or damaged",
            Self::NoMetadata => "its internal metadata is damaged",
            Self::NoEvent => "it lacks a type, a sender or a content",
            Self::UnknownVersion => {
                "its room's version is unknown, or it has the form of another version"
            }
            Self::NoState => "the state after it is missing",
        }
    }
}

impl Event {
    /// Reads a row of a room of the named version.
    pub(crate) fn read(row: EventRow, room_version: Option<&str>) -> Result<Self, EventError> {
        let document = row
            .json
            .and_then(Document::read)
            .ok_or(EventError::NoJson)?;
        let metadata = row.metadata.as_deref().map(serde_json::from_str);
        let Some(Ok(metadata)) = metadata else {
            return Err(EventError::NoMetadata);
        };
        let (Some(kind), Some(sender)) = (document.text_of("type"), document.text_of("sender"))
        else {
            return Err(EventError::NoEvent);
        };
        if !document
            .get("content")
            .is_some_and(|content| content.starts_with('{'))
        {
            return Err(EventError::NoEvent);
        }
        let format = row.format.unwrap_or(1);
        let version = match room_version {
            Some(name) => RoomVersion::of(name).filter(|version| version.event_format == format),
            None => (document.show(&kind) == "m.room.member")
                .then(|| RoomVersion::of_event_format(format)),
        };
        Ok(Self {
            id: row.event_id,
            point: row.point,
            state_group: row.state_group,
            has_relations: row.has_relations,
            metadata,
            version: version.ok_or(EventError::UnknownVersion)?,
            is_redacted: false,
            redacted_by: None,
            previous: None,
            state_key: document.text_of("state_key"),
            kind,
            sender,
            document,
        })
    }

    /// Its type.
    pub(crate) fn kind(&self) -> &str {
        self.document.show(&self.kind)
    }

    /// Its sender.
    pub(crate) fn sender(&self) -> &str {
        self.document.show(&self.sender)
    }

    /// Its state key, if it is a state event.
    pub(crate) fn state_key(&self) -> Option<&str> {
        let state_key = self.state_key.as_ref();
        state_key.map(|text_of| self.document.show(text_of))
    }

    /// Whether it is a state event.
    pub(crate) fn is_state(&self) -> bool {
        self.state_key.is_some()
    }

    /// Whether it is this place of the state.
    pub(crate) fn is(&self, kind: &str, state_key: &str) -> bool {
        self.kind() == kind && self.state_key() == Some(state_key)
    }

    /// The server of its sender.
    pub(crate) fn domain(&self) -> &str {
        self.sender()
            .split_once(':')
            .map_or("", |(_, domain)| domain)
    }

    /// Its members.
    pub(crate) fn document(&self) -> &Document {
        &self.document
    }

    /// Its content.
    pub(crate) fn content(&self) -> Object<'_> {
        self.document.object("content").unwrap_or_default()
    }

    /// The text of its content.
    pub(crate) fn content_text(&self) -> &str {
        self.document.get("content").unwrap_or("{}")
    }

    /// Its unsigned part.
    pub(crate) fn unsigned(&self) -> Object<'_> {
        self.document.object("unsigned").unwrap_or_default()
    }

    /// When its sender says that it was sent.
    pub(crate) fn origin_server_ts(&self) -> Option<i64> {
        self.document.get("origin_server_ts").and_then(integer)
    }

    /// The event whose place in the state it took.
    pub(crate) fn replaces_state(&self) -> Option<Cow<'_, str>> {
        // Most events replace none, and have no such word in them.
        let unsigned = self.document.get("unsigned")?;
        if !unsigned.contains("replaces_state") {
            return None;
        }
        let unsigned = Object::read(unsigned)?;
        if unsigned.get("prev_content").is_some() && unsigned.get("prev_sender").is_some() {
            return None;
        }
        unsigned.text("replaces_state")
    }

    /// A member of the content that it replaced, as text.
    pub(crate) fn previous(&self, name: &str) -> Option<String> {
        let stored = self.unsigned();
        let content = match &self.previous {
            Some((content, _)) => content,
            None => stored.get("prev_content")?,
        };
        Object::read(content)?.text(name).map(Cow::into_owned)
    }

    /// The text of what it redacts, wherever its version has that.
    pub(crate) fn redacts_text(&self) -> Option<&str> {
        let text = if self.version.has_new_redactions {
            Object::read(self.content_text())?.get("redacts")?
        } else {
            self.document.get("redacts")?
        };
        (text != "null").then_some(text)
    }

    /// What it redacts.
    pub(crate) fn redacts(&self) -> Option<Cow<'_, str>> {
        self.redacts_text().and_then(super::json::string)
    }

    /// How it relates to another event.
    pub(crate) fn relation(&self) -> Option<Relation> {
        let content = self.content_text();
        // Names are stored without escapes, unless somebody else stored them.
        if !content.contains("m.relates_to") && !content.contains('\\') {
            return None;
        }
        let content = Object::read(content)?;
        let relates_to = Object::read(content.get("m.relates_to")?)?;
        relates_to.text("event_id")?;
        let kind = relates_to.text("rel_type")?.into_owned();
        Some(Relation { kind })
    }

    /// The event without what a redaction takes (M-86).
    pub(crate) fn redact(mut self, by: Option<&str>) -> Self {
        let mut redacted = ObjectWriter::default();
        for (name, value) in self.document.iter() {
            if self.version.keeps(name) && name != "content" {
                redacted.set(name, value);
            }
        }
        let content = match self.version.kept_content(self.kind()) {
            KeptContent::Everything => self.content_text().to_owned(),
            KeptContent::Members(kept) => kept_members(&self.content(), &kept),
        };
        redacted.set("content", content);
        let mut unsigned = ObjectWriter::default();
        let stored = self.unsigned();
        for name in ["age_ts", "replaces_state"] {
            if let Some(value) = stored.get(name) {
                unsigned.push(name, value);
            }
        }
        redacted.set("unsigned", unsigned.text());
        let document = Document::read(redacted.text());
        // What is kept by every version: these are always there.
        if let Some(document) = document
            && let Some(kind) = document.text_of("type")
            && let Some(sender) = document.text_of("sender")
        {
            self.kind = kind;
            self.sender = sender;
            self.state_key = document.text_of("state_key");
            self.document = document;
        }
        self.is_redacted = true;
        self.redacted_by = by.map(str::to_owned);
        self.previous = None;
        self
    }
}

/// What a redaction leaves of a content; as `RoomVersion::redact`, on texts.
fn kept_members(content: &Object<'_>, kept: &[KeptMember]) -> String {
    let mut left = ObjectWriter::default();
    for member in kept {
        let Some(value) = content.get(member.name) else {
            continue;
        };
        let Some(names) = member.inside else {
            left.push(member.name, value);
            continue;
        };
        let Some(object) = Object::read(value) else {
            continue;
        };
        let mut inside = ObjectWriter::default();
        let mut is_empty = true;
        for name in names {
            if let Some(value) = object.get(name) {
                inside.push(*name, value);
                is_empty = false;
            }
        }
        if !is_empty || member.is_kept_empty {
            left.push(member.name, inside.text());
        }
    }
    left.text()
}

#[cfg(all(test, feature = "events"))]
mod tests {
    use ruma_common::RoomVersionId;
    use ruma_common::canonical_json::{redact, try_from_json_map};
    use serde_json::{Map, Value, json};

    use super::*;

    /// Every type of event with rules of its own, some without, and contents with everything that some version keeps.
    fn samples() -> Vec<(&'static str, Value)> {
        vec![
            (
                "m.room.create",
                json!({"creator": "@a:b", "room_version": "1", "m.federate": false, "predecessor": {"room_id": "!o:b"}}),
            ),
            (
                "m.room.member",
                json!({"membership": "join", "displayname": "A", "join_authorised_via_users_server": "@c:b",
                       "third_party_invite": {"display_name": "a", "signed": {"mxid": "@a:b", "token": "t"}}}),
            ),
            (
                "m.room.join_rules",
                json!({"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": "!x:b"}], "else": 1}),
            ),
            (
                "m.room.power_levels",
                json!({"ban": 50, "events": {"m.room.name": 100}, "events_default": 0, "invite": 0, "kick": 50, "redact": 50,
                       "state_default": 50, "users": {"@a:b": 100}, "users_default": 0, "notifications": {"room": 50}}),
            ),
            (
                "m.room.history_visibility",
                json!({"history_visibility": "shared", "else": 1}),
            ),
            ("m.room.aliases", json!({"aliases": ["#a:b"], "else": 1})),
            (
                "m.room.redaction",
                json!({"redacts": "$x", "reason": "spam"}),
            ),
            (
                "m.room.message",
                json!({"body": "secret", "msgtype": "m.text", "m.relates_to": {"rel_type": "m.thread", "event_id": "$x"}}),
            ),
            (
                "m.room.server_acl",
                json!({"allow": ["*"], "deny": ["evil"], "allow_ip_literals": false}),
            ),
            ("m.room.encryption", json!({"algorithm": "m.megolm"})),
            (
                "org.example.other",
                json!({"a\n\"b": {"c": ["é", null, true]}}),
            ),
        ]
    }

    fn without_unsigned(text: &Document) -> Map<String, Value> {
        let members = text.iter().map(|(name, value)| {
            let value = serde_json::from_str(value).expect("JSON");
            (name.to_owned(), value)
        });
        members.filter(|(name, _)| name != "unsigned").collect()
    }

    #[test]
    fn every_version_redacts_every_type_as_ruma_does() {
        for name in 1..=12 {
            let name = name.to_string();
            let version = RoomVersion::of(&name).expect("known");
            let rules = RoomVersionId::try_from(name.as_str()).expect("a version");
            let rules = rules.rules().expect("known to ruma, too").redaction;
            for (kind, content) in samples() {
                let event = json!({
                    "type": kind, "sender": "@a:b", "room_id": "!r:b", "event_id": "$e", "state_key": "", "content": content,
                    "auth_events": [], "prev_events": [], "prev_state": [], "depth": 5, "origin": "b", "membership": "join",
                    "origin_server_ts": 7, "hashes": {"sha256": "h"}, "signatures": {"b": {"k": "s"}}, "redacts": "$x",
                    "unsigned": {"age_ts": 7, "secret": 1}, "secret": "secret",
                });
                let row = EventRow {
                    event_id: "$e".into(),
                    is_elsewhere: false,
                    point: Point {
                        topological: 5,
                        stream: 5,
                    },
                    writer: None,
                    json: Some(event.to_string()),
                    metadata: Some("{}".into()),
                    format: Some(version.event_format),
                    state_group: None,
                    is_rejected: false,
                    has_redactions: true,
                    has_relations: false,
                };
                let shown = Event::read(row, Some(&name)).expect("an event");
                let shown = shown.redact(Some("$by"));
                assert_eq!(
                    shown.unsigned().iter().collect::<Vec<_>>(),
                    [("age_ts", "7")]
                );
                let event = event.as_object().expect("an object").clone();
                let canonical = try_from_json_map(event.clone()).expect("canonical");
                let theirs = redact(canonical, &rules, None).expect("redacted");
                let theirs = serde_json::to_value(theirs).expect("JSON");
                let what = format!("{kind} in version {name}");
                assert_eq!(
                    Value::from(without_unsigned(shown.document())),
                    theirs,
                    "{what}"
                );
                assert_eq!(Value::from(version.redact(&event)), theirs, "{what}");
            }
        }
    }
}
