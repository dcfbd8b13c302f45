//! What differs between room versions: the form of events and of their ids, and what a redaction leaves.
//!
//! Source: the Matrix specification, "Room versions"; behaviour.md D-40 … D-48.

use serde_json::{Map, Value};

/// The form of an event's id, and what of the event names its neighbours (D-44).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdForm {
    /// `$opaque:server`, chosen by the sender and a member of the event; `auth_events` and `prev_events` are pairs of id
    /// and hash. Versions 1 and 2.
    Chosen,
    /// `$` and the reference hash in unpadded standard base64. Version 3.
    HashStandard,
    /// `$` and the reference hash in unpadded URL-safe base64. Versions 4 and newer.
    HashUrlSafe,
}

/// Which algorithm resolves the state of forks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateResolution {
    /// Version 1.
    V1,
    /// Versions 2 to 11.
    V2,
    /// Version 12.
    V2Dot1,
}

/// One room version. [`RoomVersion::of`] finds it.
#[derive(Debug, PartialEq, Eq)]
pub struct RoomVersion {
    /// Its name: `rooms.room_version`.
    pub name: &'static str,
    /// `event_json.format_version` of its events (D-48).
    pub event_format: i64,
    /// The form of event ids.
    pub ids: IdForm,
    /// How forks are resolved.
    pub state_resolution: StateResolution,
    /// Whether integers must lie within ±(2^53 − 1), and floats are refused (D-46). From version 6 on.
    pub is_canonical_json_strict: bool,
    /// Whether `content.notifications` of power levels is looked at by authorisation. From version 6 on.
    pub limits_notification_levels: bool,
    /// Whether `m.room.aliases` is special: authorised by its sender's domain, and redacted to `aliases`. To version 5.
    pub has_special_aliases: bool,
    /// Whether `join_rule: knock` is known. From version 7 on.
    pub knows_knock: bool,
    /// Whether `join_rule: restricted` is known, and redactions keep `allow`. From version 8 on.
    pub knows_restricted: bool,
    /// Whether redactions keep `join_authorised_via_users_server`. From version 9 on.
    pub keeps_authorising_user: bool,
    /// Whether `join_rule: knock_restricted` is known, and power levels must be integers. From version 10 on.
    pub has_integer_levels: bool,
    /// The rules of version 11: create events keep their content and need no `creator`, a redaction's target is in its
    /// content, and redactions leave a little more and a little less.
    pub has_new_redactions: bool,
    /// Whether the create event's hash is the room id, which the event then does not have, nor any event among its
    /// `auth_events` (version 12).
    pub is_create_hash_room_id: bool,
    /// Whether creators stand above all power levels (version 12).
    pub have_creators_power: bool,
    /// Whether redactions keep what an event relates to (experimental).
    keeps_relation: bool,
}

const V1: RoomVersion = RoomVersion {
    name: "1",
    event_format: 1,
    ids: IdForm::Chosen,
    state_resolution: StateResolution::V1,
    is_canonical_json_strict: false,
    limits_notification_levels: false,
    has_special_aliases: true,
    knows_knock: false,
    knows_restricted: false,
    keeps_authorising_user: false,
    has_integer_levels: false,
    has_new_redactions: false,
    is_create_hash_room_id: false,
    have_creators_power: false,
    keeps_relation: false,
};
const V2: RoomVersion = RoomVersion {
    name: "2",
    state_resolution: StateResolution::V2,
    ..V1
};
const V3: RoomVersion = RoomVersion {
    name: "3",
    event_format: 2,
    ids: IdForm::HashStandard,
    ..V2
};
const V4: RoomVersion = RoomVersion {
    name: "4",
    event_format: 3,
    ids: IdForm::HashUrlSafe,
    ..V3
};
const V5: RoomVersion = RoomVersion { name: "5", ..V4 };
const V6: RoomVersion = RoomVersion {
    name: "6",
    has_special_aliases: false,
    is_canonical_json_strict: true,
    limits_notification_levels: true,
    ..V5
};
const V7: RoomVersion = RoomVersion {
    name: "7",
    knows_knock: true,
    ..V6
};
const V8: RoomVersion = RoomVersion {
    name: "8",
    knows_restricted: true,
    ..V7
};
const V9: RoomVersion = RoomVersion {
    name: "9",
    keeps_authorising_user: true,
    ..V8
};
const V10: RoomVersion = RoomVersion {
    name: "10",
    has_integer_levels: true,
    ..V9
};
const V11: RoomVersion = RoomVersion {
    name: "11",
    has_new_redactions: true,
    ..V10
};
const V12: RoomVersion = RoomVersion {
    name: "12",
    event_format: 4,
    state_resolution: StateResolution::V2Dot1,
    is_create_hash_room_id: true,
    have_creators_power: true,
    ..V11
};

/// Every version we know: the stable ones, and experimental ones that servers have had.
static ALL: [RoomVersion; 18] = [
    V1,
    V2,
    V3,
    V4,
    V5,
    V6,
    V7,
    V8,
    V9,
    V10,
    V11,
    V12,
    RoomVersion {
        name: "org.matrix.msc3389.10",
        keeps_relation: true,
        ..V10
    },
    RoomVersion {
        name: "org.matrix.msc1767.10",
        ..V10
    },
    RoomVersion {
        name: "org.matrix.msc3757.10",
        ..V10
    },
    RoomVersion {
        name: "org.matrix.msc3757.11",
        ..V11
    },
    RoomVersion {
        name: "org.matrix.hydra.11",
        ..V12
    },
    RoomVersion {
        name: "org.matrix.msc4242.12",
        event_format: 5,
        ..V12
    },
];

/// What a redaction leaves of an event's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeptContent {
    /// All of it.
    Everything,
    /// These members.
    Members(Vec<KeptMember>),
}

/// A member that a redaction leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptMember {
    /// Its name.
    pub name: &'static str,
    /// The members that stay of it, where it does not stay whole; other than an object it then goes.
    pub inside: Option<&'static [&'static str]>,
    /// Whether it stays when nothing of its inside does.
    pub is_kept_empty: bool,
}

impl KeptMember {
    const fn whole(name: &'static str) -> Self {
        Self {
            name,
            inside: None,
            is_kept_empty: true,
        }
    }
}

/// Top-level members that every redaction leaves. `content` stays as [`RoomVersion::kept_content`] says.
const KEPT: [&str; 12] = [
    "auth_events",
    "content",
    "depth",
    "event_id",
    "hashes",
    "origin_server_ts",
    "prev_events",
    "room_id",
    "sender",
    "signatures",
    "state_key",
    "type",
];

/// Top-level members that redactions before version 11 leave as well.
const KEPT_OF_OLD: [&str; 3] = ["membership", "origin", "prev_state"];

impl RoomVersion {
    /// The version of that name, if we know it.
    pub fn of(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|version| version.name == name)
    }

    /// The version by which an event is read whose room has none on record: old memberships from elsewhere.
    pub fn of_event_format(format: i64) -> &'static Self {
        match format {
            1 => &ALL[0],
            2 => &ALL[2],
            _ => &ALL[4],
        }
    }

    /// Whether a redaction leaves a top-level member. Of `unsigned` it depends on who asks: hashes and signatures are
    /// made without it, readers are shown a little of it (M-86).
    pub fn keeps(&self, name: &str) -> bool {
        KEPT.contains(&name) || (!self.has_new_redactions && KEPT_OF_OLD.contains(&name))
    }

    /// What a redaction leaves of the content of an event of type `kind` (D-47).
    pub fn kept_content(&self, kind: &str) -> KeptContent {
        let mut kept: Vec<KeptMember> = Vec::new();
        let mut keep = |names: &[&'static str]| {
            kept.extend(names.iter().map(|name| KeptMember::whole(name)));
        };
        let is_new = self.has_new_redactions;
        match kind {
            "m.room.create" if is_new => return KeptContent::Everything,
            "m.room.create" => keep(&["creator"]),
            "m.room.member" => {
                keep(&["membership"]);
                if self.keeps_authorising_user {
                    keep(&["join_authorised_via_users_server"]);
                }
                if is_new {
                    kept.push(KeptMember {
                        name: "third_party_invite",
                        inside: Some(&["signed"]),
                        is_kept_empty: true,
                    });
                }
            }
            "m.room.join_rules" => {
                keep(&["join_rule"]);
                if self.knows_restricted {
                    keep(&["allow"]);
                }
            }
            "m.room.power_levels" => {
                keep(&[
                    "ban",
                    "events",
                    "events_default",
                    "kick",
                    "redact",
                    "state_default",
                    "users",
                    "users_default",
                ]);
                if is_new {
                    keep(&["invite"]);
                }
            }
            "m.room.history_visibility" => keep(&["history_visibility"]),
            "m.room.aliases" if self.has_special_aliases => keep(&["aliases"]),
            "m.room.redaction" if is_new => keep(&["redacts"]),
            _ => {}
        }
        if self.keeps_relation {
            kept.push(KeptMember {
                name: "m.relates_to",
                inside: Some(&["rel_type", "event_id"]),
                is_kept_empty: false,
            });
        }
        KeptContent::Members(kept)
    }

    /// The redacted form of an event, without `unsigned`: what its reference hash and its signatures are made of, after
    /// `signatures` has gone, too.
    pub fn redact(&self, event: &Map<String, Value>) -> Map<String, Value> {
        let mut redacted: Map<String, Value> = event
            .iter()
            .filter(|(name, _)| self.keeps(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let kind = event.get("type").and_then(Value::as_str).unwrap_or("");
        if let KeptContent::Members(kept) = self.kept_content(kind) {
            let empty = Map::new();
            let content = event
                .get("content")
                .and_then(Value::as_object)
                .unwrap_or(&empty);
            let content = kept_members(content, &kept);
            redacted.insert("content".into(), content.into());
        }
        redacted
    }
}

fn kept_members(content: &Map<String, Value>, kept: &[KeptMember]) -> Map<String, Value> {
    let mut left = Map::new();
    for member in kept {
        let Some(value) = content.get(member.name) else {
            continue;
        };
        let value = match (member.inside, value) {
            (None, value) => value.clone(),
            (Some(names), Value::Object(object)) => {
                let inside: Map<String, Value> = object
                    .iter()
                    .filter(|(name, _)| names.contains(&name.as_str()))
                    .map(|(name, value)| (name.clone(), value.clone()))
                    .collect();
                if inside.is_empty() && !member.is_kept_empty {
                    continue;
                }
                inside.into()
            }
            (Some(_), _) => continue,
        };
        left.insert(member.name.into(), value);
    }
    left
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn redacted(version: &str, event: Value) -> Value {
        let version = RoomVersion::of(version).expect("known");
        Value::Object(version.redact(event.as_object().expect("an object")))
    }

    #[test]
    fn versions_are_found_by_name_and_have_the_event_formats_of_synapse() {
        for (name, format) in [("1", 1), ("2", 1), ("3", 2), ("4", 3), ("11", 3), ("12", 4)] {
            assert_eq!(RoomVersion::of(name).map(|v| v.event_format), Some(format));
        }
        assert_eq!(RoomVersion::of("13"), None);
        for version in &ALL {
            assert_eq!(RoomVersion::of(version.name), Some(version));
        }
        for (format, name) in [(1, "1"), (2, "3"), (3, "5")] {
            assert_eq!(RoomVersion::of_event_format(format).name, name);
        }
    }

    #[test]
    fn a_message_loses_its_content_and_what_is_no_field_of_events() {
        let event = json!({
            "type": "m.room.message", "sender": "@a:b", "room_id": "!r:b", "content": {"body": "secret"}, "depth": 5,
            "origin": "b", "membership": "x", "prev_state": [], "unsigned": {"age_ts": 1}, "secret": "secret",
            "redacts": "$x", "hashes": {"sha256": "h"}, "signatures": {}, "prev_events": [], "auth_events": [],
            "origin_server_ts": 7, "event_id": "$e",
        });
        let old = redacted("10", event.clone());
        let new = redacted("11", event);
        for redacted in [&old, &new] {
            assert_eq!(redacted["content"], json!({}));
            for gone in ["unsigned", "secret", "redacts"] {
                assert_eq!(redacted.get(gone), None, "{gone}");
            }
            for kept in ["depth", "hashes", "event_id", "origin_server_ts", "room_id"] {
                assert!(redacted.get(kept).is_some(), "{kept}");
            }
        }
        for member in KEPT_OF_OLD {
            assert!(
                old.get(member).is_some() && new.get(member).is_none(),
                "{member}"
            );
        }
    }

    #[test]
    fn what_stays_of_a_content_depends_on_type_and_version() {
        let of = |version: &str, kind: &str, content: Value| {
            redacted(version, json!({"type": kind, "content": content}))["content"].clone()
        };
        let member = json!({
            "membership": "join", "displayname": "secret", "join_authorised_via_users_server": "@a:b",
            "third_party_invite": {"display_name": "secret", "signed": {"token": "t"}},
        });
        assert_eq!(
            of("8", "m.room.member", member.clone()),
            json!({"membership": "join"})
        );
        let authorised = json!({"membership": "join", "join_authorised_via_users_server": "@a:b"});
        assert_eq!(of("9", "m.room.member", member.clone()), authorised);
        let mut signed = authorised;
        signed["third_party_invite"] = json!({"signed": {"token": "t"}});
        assert_eq!(of("12", "m.room.member", member), signed);
        let odd = json!({"membership": "join", "third_party_invite": "secret"});
        assert_eq!(
            of("11", "m.room.member", odd),
            json!({"membership": "join"})
        );
        let empty = json!({"third_party_invite": {"display_name": "secret"}});
        assert_eq!(
            of("11", "m.room.member", empty),
            json!({"third_party_invite": {}})
        );

        let create = json!({"creator": "@a:b", "room_version": "10"});
        assert_eq!(
            of("10", "m.room.create", create.clone()),
            json!({"creator": "@a:b"})
        );
        assert_eq!(of("11", "m.room.create", create.clone()), create);

        let rules = json!({"join_rule": "restricted", "allow": [], "x": 1});
        assert_eq!(
            of("7", "m.room.join_rules", rules.clone()),
            json!({"join_rule": "restricted"})
        );
        let allowed = json!({"join_rule": "restricted", "allow": []});
        assert_eq!(of("8", "m.room.join_rules", rules), allowed);

        let levels = json!({"ban": 50, "invite": 0, "notifications": {"room": 50}});
        assert_eq!(
            of("10", "m.room.power_levels", levels.clone()),
            json!({"ban": 50})
        );
        assert_eq!(
            of("11", "m.room.power_levels", levels),
            json!({"ban": 50, "invite": 0})
        );

        let aliases = json!({"aliases": ["#a:b"]});
        assert_eq!(of("5", "m.room.aliases", aliases.clone()), aliases);
        assert_eq!(of("6", "m.room.aliases", aliases), json!({}));

        let redaction = json!({"redacts": "$e", "reason": "secret"});
        assert_eq!(of("10", "m.room.redaction", redaction.clone()), json!({}));
        assert_eq!(
            of("11", "m.room.redaction", redaction),
            json!({"redacts": "$e"})
        );

        let related = json!({"m.relates_to": {"rel_type": "m.thread", "event_id": "$e", "x": 1}});
        let kept = json!({"m.relates_to": {"rel_type": "m.thread", "event_id": "$e"}});
        assert_eq!(of("org.matrix.msc3389.10", "m.room.message", related), kept);
        let none = json!({"m.relates_to": {"x": 1}});
        assert_eq!(
            of("org.matrix.msc3389.10", "m.room.message", none),
            json!({})
        );
    }
}
