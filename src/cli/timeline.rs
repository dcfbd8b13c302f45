//! Events as lines for people: when, who, what. Pure.

use serde_json::Value;

use crate::ids::is_control_or_bidi;
use crate::time::Millis;

/// One event: time, sender, and what it says or does. What others wrote cannot move the cursor of a terminal.
pub(super) fn line(event: &Value) -> String {
    let time = event["origin_server_ts"].as_i64().unwrap_or(0);
    let sender = text(&event["sender"]);
    format!("{}  {}  {}", Millis(time).as_date(), sender, what(event))
}

/// A string that somebody else wrote, fit for a terminal: one line, no control characters.
fn text(value: &Value) -> String {
    let text = value.as_str().unwrap_or("?");
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => line.push_str(" ⏎ "),
            '\t' => line.push(' '),
            c if is_control_or_bidi(c) => line.push('\u{fffd}'),
            c => line.push(c),
        }
    }
    line
}

fn what(event: &Value) -> String {
    let content = &event["content"];
    if !event["unsigned"]["redacted_because"].is_null()
        || !event["unsigned"]["redacted_by"].is_null()
    {
        let by = &event["unsigned"]["redacted_because"]["sender"];
        return match by.as_str() {
            Some(_) => format!("({}, redacted by {})", text(&event["type"]), text(by)),
            None => format!("({}, redacted)", text(&event["type"])),
        };
    }
    let is_state = !event["state_key"].is_null();
    let said = match event["type"].as_str().unwrap_or("?") {
        "m.room.message" => message(content),
        "m.room.encrypted" => "(encrypted)".into(),
        "m.sticker" => format!("[sticker {}]", text(&content["body"])),
        "m.reaction" => {
            let to = &content["m.relates_to"];
            format!("reacts {} to {}", text(&to["key"]), text(&to["event_id"]))
        }
        "m.room.redaction" => match content["reason"].as_str() {
            Some(_) => format!(
                "redacts {}: {}",
                text(&event["redacts"]),
                text(&content["reason"])
            ),
            None => format!("redacts {}", text(&event["redacts"])),
        },
        "m.call.invite" => "calls".into(),
        _ if is_state => return state(event, content),
        kind => format!("({})", text(&kind.into())),
    };
    let relates_to = &content["m.relates_to"];
    match relates_to["rel_type"].as_str() {
        Some("m.thread") => format!("{said}  (in thread {})", text(&relates_to["event_id"])),
        _ => said,
    }
}

fn message(content: &Value) -> String {
    let new = &content["m.new_content"];
    if content["m.relates_to"]["rel_type"] == "m.replace" && new.is_object() {
        return format!(
            "{}  (edits {})",
            message(new),
            text(&content["m.relates_to"]["event_id"])
        );
    }
    let name = match content["filename"].as_str() {
        Some(_) => text(&content["filename"]),
        None => text(&content["body"]),
    };
    match content["msgtype"].as_str() {
        Some("m.emote") => format!("* {}", text(&content["body"])),
        Some("m.image") => format!("[picture {name}]"),
        Some("m.video") => format!("[video {name}]"),
        Some("m.audio") => format!("[sound {name}]"),
        Some("m.file") => format!("[file {name}]"),
        Some("m.location") => format!("[place {}]", text(&content["geo_uri"])),
        _ if content["body"].is_null() => "(a message without text)".into(),
        _ => text(&content["body"]),
    }
}

/// A change of the room's state, as a sentence about its sender.
fn state(event: &Value, content: &Value) -> String {
    let key = text(&event["state_key"]);
    let word = |name: &str| text(&content[name]);
    match event["type"].as_str().unwrap_or("?") {
        "m.room.create" => match content["room_version"].as_str() {
            Some(_) => format!("created the room, version {}", word("room_version")),
            None => "created the room, version 1".into(),
        },
        "m.room.member" => member(event, content, &key),
        "m.room.name"
            if content["name"]
                .as_str()
                .is_some_and(|name| !name.is_empty()) =>
        {
            format!("named the room \"{}\"", word("name"))
        }
        "m.room.name" => "took the room's name away".into(),
        "m.room.topic" => format!("set the topic to \"{}\"", word("topic")),
        "m.room.avatar" => "changed the room's picture".into(),
        "m.room.canonical_alias" if content["alias"].is_string() => {
            format!("made {} the room's address", word("alias"))
        }
        "m.room.canonical_alias" => "took the room's address away".into(),
        "m.room.join_rules" => format!("lets people join by the rule '{}'", word("join_rule")),
        "m.room.history_visibility" => {
            format!(
                "made the history visible to '{}'",
                word("history_visibility")
            )
        }
        "m.room.guest_access" => format!("set guest access to '{}'", word("guest_access")),
        "m.room.power_levels" => "changed the power levels".into(),
        "m.room.encryption" => "turned encryption on".into(),
        "m.room.pinned_events" => "changed the pinned messages".into(),
        "m.room.retention" => match content["max_lifetime"].as_i64() {
            Some(lifetime) => format!(
                "lets messages live for {} at most",
                Millis(lifetime).for_people()
            ),
            None => "changed the retention policy".into(),
        },
        "m.room.tombstone" => format!(
            "closed the room; it goes on in {}",
            word("replacement_room")
        ),
        kind if key.is_empty() => format!("set {}", text(&kind.into())),
        kind => format!("set {} of {key}", text(&kind.into())),
    }
}

fn member(event: &Value, content: &Value, who: &str) -> String {
    let before = event["unsigned"]["prev_content"]["membership"].as_str();
    let is_own = event["sender"] == event["state_key"];
    let said = match (content["membership"].as_str(), before) {
        (Some("join"), Some("join")) => "changed how they are shown".to_owned(),
        (Some("join"), _) => "joined".into(),
        (Some("leave"), Some("invite")) if is_own => "declined the invitation".into(),
        (Some("leave"), _) if is_own => "left".into(),
        (Some("leave"), Some("ban")) => format!("let {who} come back"),
        (Some("leave"), Some("invite")) => format!("took back the invitation of {who}"),
        (Some("leave"), _) => format!("removed {who}"),
        (Some("invite"), _) => format!("invited {who}"),
        (Some("ban"), _) => format!("banned {who}"),
        (Some("knock"), _) => "asks to be let in".into(),
        _ => format!("changed the membership of {who}"),
    };
    match content["reason"].as_str() {
        Some(_) => format!("{said}: {}", text(&content["reason"])),
        None => said,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(event: Value) -> String {
        let mut whole = json!({"origin_server_ts": 0, "sender": "@a:b"});
        for (name, value) in event.as_object().expect("an object") {
            whole[name] = value.clone();
        }
        let line = line(&whole);
        let said = line.strip_prefix("1970-01-01 00:00:00  @a:b  ");
        said.unwrap_or_else(|| panic!("{line}")).to_owned()
    }

    fn message(content: Value) -> String {
        said(json!({"type": "m.room.message", "content": content}))
    }

    #[test]
    fn messages_are_shown_by_their_text_and_files_by_their_name() {
        assert_eq!(message(json!({"body": "hello"})), "hello");
        assert_eq!(
            message(json!({"msgtype": "m.emote", "body": "waves"})),
            "* waves"
        );
        assert_eq!(
            message(json!({"msgtype": "m.image", "body": "a.png"})),
            "[picture a.png]"
        );
        let file = json!({"msgtype": "m.file", "body": "see this", "filename": "a.pdf"});
        assert_eq!(message(file), "[file a.pdf]");
        assert_eq!(message(json!({})), "(a message without text)");
        let edit = json!({"body": "* new", "m.new_content": {"body": "new"}, "m.relates_to": {"rel_type": "m.replace", "event_id": "$1"}});
        assert_eq!(message(edit), "new  (edits $1)");
        let reply =
            json!({"body": "yes", "m.relates_to": {"rel_type": "m.thread", "event_id": "$1"}});
        assert_eq!(message(reply), "yes  (in thread $1)");
        let encrypted = json!({"type": "m.room.encrypted", "content": {"ciphertext": "x"}});
        assert_eq!(said(encrypted), "(encrypted)");
        let gone = json!({"type": "m.room.message", "content": {}, "unsigned": {"redacted_because": {"sender": "@m:b"}}});
        assert_eq!(said(gone), "(m.room.message, redacted by @m:b)");
    }

    #[test]
    fn nobody_writes_on_the_terminal_but_in_their_line() {
        assert_eq!(
            message(json!({"body": "a\u{1b}[2Jb\r\nc\u{202e}d\u{7f}"})),
            "a\u{fffd}[2Jb\u{fffd} ⏎ c\u{fffd}d\u{fffd}"
        );
        let line = line(&json!({"sender": "@\u{1b}]0;x\u{7}:b", "type": "\u{9b}", "content": 5}));
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }

    #[test]
    fn changes_of_state_are_sentences() {
        let state = |kind: &str, key: &str, content: Value| {
            said(json!({"type": kind, "state_key": key, "content": content}))
        };
        assert_eq!(
            state("m.room.create", "", json!({"room_version": "11"})),
            "created the room, version 11"
        );
        assert_eq!(
            state("m.room.topic", "", json!({"topic": "x"})),
            "set the topic to \"x\""
        );
        assert_eq!(
            state("m.room.member", "@a:b", json!({"membership": "join"})),
            "joined"
        );
        assert_eq!(
            state("m.room.member", "@c:b", json!({"membership": "invite"})),
            "invited @c:b"
        );
        let ban = json!({"membership": "ban", "reason": "rude"});
        assert_eq!(state("m.room.member", "@c:b", ban), "banned @c:b: rude");
        assert_eq!(state("org.odd", "k", json!({})), "set org.odd of k");
        assert_eq!(
            state("m.room.name", "", json!({})),
            "took the room's name away"
        );
    }

    #[test]
    fn no_event_whatever_it_is_makes_it_panic() {
        for odd in [
            json!(null),
            json!([]),
            json!(5),
            json!({"type": 5, "content": [], "state_key": 7, "unsigned": "x"}),
        ] {
            assert!(!line(&odd).is_empty());
        }
    }
}
