//! `roomkeeper.policies`: read, and refused where anything in it could mean something else than was meant. What stands here
//! deletes rooms.

use std::collections::BTreeSet;

use super::ours::refuse_unknown;
use super::server_policy::{PolicyStart, PolicyWhat, ServerPolicy};
use super::values::{boolean, mapping, string, wrong};
use super::yaml::{Kind, Map, Value};
use crate::error::Error;
use crate::policy::SHORT_LIFETIME;
use crate::selectors::{Condition, Selectors};
use crate::time::{Millis, days, parse_duration_with_unit};

/// The keys of a policy, with what each takes.
const POLICY_KEYS: &[(&str, &str)] = &[
    ("name", "a name for it, of letters, digits, - and _"),
    ("what", "room or messages"),
    (
        "start",
        "last_message, last_leave or last_forget for rooms, received for messages",
    ),
    ("after", "a duration with its unit, such as 26w"),
    ("at_least", "a duration with its unit, such as 7d"),
    (
        "only",
        "one word or a list, as `roomkeeper rooms` has them: state_only, [empty, \"larger-than=1G\"]",
    ),
    ("not", "the same, of rooms that it leaves alone"),
    ("override_rooms", "true or false"),
    ("even_with_members", "true or false"),
];

/// Keys and values that are to come: never ignored, because whoever writes them counts on them.
const NOTIFY: &str = "cannot be kept yet: nobody is told before a room goes. Without this key rooms go unannounced; with it nothing \
                      would be promised that is not done";
const KEEP: &str =
    "cannot be kept yet: take the key out, or lay a hold on the rooms that must not lose anything";
const MEDIA: &str = "room or messages (media by policies of ours is not there yet)";

/// A room that is deleted cannot be asked for again: a period below this was hardly meant.
const LEAST_OF_ROOMS: Millis = days(1);

/// The longest name: it stands in lists of jobs.
const LONGEST_NAME: usize = 40;

pub(super) fn read(value: &Value) -> Result<Vec<ServerPolicy>, Error> {
    let key = "roomkeeper.policies";
    let list = value
        .as_list()
        .ok_or_else(|| wrong(key, value, "a list of policies: [{name: …, what: room, …}]"))?;
    let mut names = BTreeSet::new();
    let mut policies = Vec::new();
    for (at, value) in list.iter().enumerate() {
        let key = format!("{key}[{at}]");
        let policy = policy(&key, value)?;
        if !names.insert(policy.name.clone()) {
            return Err(wrong(
                &format!("{key}.name"),
                mapping(&key, value)?.get("name").unwrap_or(value),
                "a name that no other policy has",
            ));
        }
        policies.push(policy);
    }
    Ok(policies)
}

fn policy(key: &str, value: &Value) -> Result<ServerPolicy, Error> {
    let block = mapping(key, value)?;
    for (later, says) in [("notify", NOTIFY), ("keep", KEEP)] {
        if let Some(value) = block.get(later) {
            return Err(Error::Config(format!(
                "{}: {key}.{later} {says}",
                value.place()
            )));
        }
    }
    refuse_unknown(key, block, POLICY_KEYS)?;
    let name = name(key, value, block)?;
    let what = match word(key, value, block, "what")? {
        ("room", _) => PolicyWhat::Room,
        ("messages", _) => PolicyWhat::Messages,
        (_, value) => return Err(wrong(&format!("{key}.what"), value, MEDIA)),
    };
    let (start, start_value) = word(key, value, block, "start")?;
    let start_key = format!("{key}.start");
    let start = match (what, start) {
        (PolicyWhat::Room, "last_message") => PolicyStart::LastMessage,
        (PolicyWhat::Room, "last_leave") => PolicyStart::LastLeave,
        (PolicyWhat::Room, "last_forget") => PolicyStart::LastForget,
        (PolicyWhat::Messages, "received") => PolicyStart::Received,
        (PolicyWhat::Room, _) => {
            let wanted = "last_message, last_leave or last_forget where what is room";
            return Err(wrong(&start_key, start_value, wanted));
        }
        (PolicyWhat::Messages, _) => {
            return Err(wrong(
                &start_key,
                start_value,
                "received where what is messages",
            ));
        }
    };
    let Some(after) = length(key, block, "after")? else {
        return Err(missing(key, value, "after", "a duration such as 26w"));
    };
    let least = match what {
        PolicyWhat::Room => LEAST_OF_ROOMS,
        PolicyWhat::Messages => SHORT_LIFETIME,
    };
    if after < least {
        return Err(wrong(
            &format!("{key}.after"),
            block.get("after").unwrap_or(value),
            &format!(
                "{} or longer: what goes does not come back",
                least.in_words()
            ),
        ));
    }
    let at_least = length(key, block, "at_least")?;
    if at_least.is_some_and(|least| least > after) {
        return Err(wrong(
            &format!("{key}.at_least"),
            block.get("at_least").unwrap_or(value),
            &format!(
                "no longer than after ({}), or the two contradict each other",
                after.in_words()
            ),
        ));
    }
    let flag = |name: &str| match block.get(name) {
        Some(value) => boolean(&format!("{key}.{name}"), value),
        None => Ok(false),
    };
    let even_with_members = flag("even_with_members")?;
    if even_with_members && start != PolicyStart::LastMessage {
        return Err(wrong(
            &format!("{key}.even_with_members"),
            block.get("even_with_members").unwrap_or(value),
            "said with start: last_message alone: nobody is in the other rooms",
        ));
    }
    Ok(ServerPolicy {
        name,
        what,
        start,
        after,
        at_least,
        selectors: Selectors {
            only: conditions(key, block, "only")?,
            not: conditions(key, block, "not")?,
        },
        override_rooms: flag("override_rooms")?,
        even_with_members,
    })
}

fn missing(key: &str, value: &Value, name: &str, wanted: &str) -> Error {
    Error::Config(format!(
        "{}: {key}.{name} is missing: write {wanted}",
        value.place()
    ))
}

fn name(key: &str, value: &Value, block: &Map) -> Result<String, Error> {
    let wanted = "a name of letters, digits, - and _, of 40 characters at most";
    let Some(given) = block.get("name") else {
        return Err(missing(key, value, "name", wanted));
    };
    let key = format!("{key}.name");
    let name = string(&key, given)?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    match !name.is_empty() && name.len() <= LONGEST_NAME && name.chars().all(is_plain) {
        true => Ok(name),
        false => Err(wrong(&key, given, wanted)),
    }
}

fn word<'a>(
    key: &str,
    value: &Value,
    block: &'a Map,
    name: &str,
) -> Result<(&'a str, &'a Value), Error> {
    let wanted = POLICY_KEYS.iter().find(|(known, _)| *known == name);
    let wanted = wanted.map_or("", |(_, wanted)| wanted);
    let Some(given) = block.get(name) else {
        return Err(missing(key, value, name, wanted));
    };
    match given.as_str() {
        Some(word) => Ok((word.trim(), given)),
        None => Err(wrong(&format!("{key}.{name}"), given, wanted)),
    }
}

/// A duration with its unit, whatever its size: a bare number in a policy is never milliseconds that somebody meant.
fn length(key: &str, block: &Map, name: &str) -> Result<Option<Millis>, Error> {
    let Some(value) = block.get(name) else {
        return Ok(None);
    };
    let key = format!("{key}.{name}");
    let length = match value.kind() {
        Kind::Text(text) => parse_duration_with_unit(text)
            .map_err(|said| Error::Config(format!("{}: {key}: {said}", value.place())))?,
        _ => return Err(wrong(&key, value, "a duration with its unit, such as 30d")),
    };
    match length > Millis(0) {
        true => Ok(Some(length)),
        false => Err(wrong(&key, value, "more than 0")),
    }
}

fn conditions(key: &str, block: &Map, name: &str) -> Result<Vec<Condition>, Error> {
    let Some(value) = block.get(name) else {
        return Ok(Vec::new());
    };
    let key = format!("{key}.{name}");
    let one = |value: &Value| {
        let text = string(&key, value)?;
        Condition::parse(&text)
            .map_err(|said| Error::Config(format!("{}: {key}: {said}", value.place())))
    };
    match value.as_list() {
        // What was meant to choose and chooses nothing would mean every room.
        Some([]) => Err(wrong(&key, value, "one word or several, or left out")),
        Some(list) => list.iter().map(|value| one(value)).collect(),
        None => Ok(vec![one(value)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value as Json, json};

    fn read(policies: Json) -> Result<Vec<ServerPolicy>, String> {
        super::read(&Value::from_json(&policies)).map_err(|e| e.to_string())
    }

    #[test]
    fn policies_are_read_as_they_are_written() {
        let policies = read(json!([
            {"name": "inactive", "what": "room", "start": "last_message", "after": "26w", "even_with_members": true},
            {"name": "shells", "what": "room", "start": "last_message", "after": "6w", "only": "state_only"},
            {"name": "forgotten", "what": "room", "start": "last_forget", "after": "7d"},
            {"name": "left", "what": "room", "start": "last_leave", "after": "30d", "at_least": "7d",
             "not": ["public", "larger-than=1G"]},
            {"name": "messages", "what": "messages", "start": "received", "after": "90d", "override_rooms": true},
        ]))
        .expect("reads");
        let words: Vec<String> = policies.iter().map(ServerPolicy::in_words).collect();
        assert_eq!(
            words,
            [
                "rooms, 182d after last_message",
                "rooms (state-only), 42d after last_message",
                "rooms, 7d after last_forget",
                "rooms (not public, not larger-than=1073741824), 30d after last_leave",
                "messages, 90d after received",
            ]
        );
        assert!(policies[0].even_with_members && !policies[1].even_with_members);
        assert!(policies[4].override_rooms && !policies[3].override_rooms);
        assert_eq!(policies[3].at_least, Some(days(7)));
        let again: Vec<ServerPolicy> =
            serde_json::from_value(serde_json::to_value(&policies).expect("JSON")).expect("read");
        assert_eq!(again, policies);
    }

    #[test]
    fn every_mistake_is_refused_with_its_place_and_what_to_write() {
        let with = |key: &str, value: Json| {
            let mut policy =
                json!({"name": "a", "what": "room", "start": "last_message", "after": "26w"});
            policy[key] = value;
            read(json!([policy])).err()
        };
        for (key, value, says) in [
            ("after", json!(30), "a duration with its unit, such as 30d"),
            ("after", json!("30"), "say 30d"),
            ("after", json!("0d"), "more than 0"),
            ("after", json!("-1d"), "more than 0"),
            ("after", json!("23h"), "1d or longer"),
            ("after", json!(null), "a duration with its unit"),
            ("at_least", json!("27w"), "no longer than after (182d)"),
            ("at_least", json!(7), "a duration with its unit"),
            (
                "what",
                json!("media"),
                "media by policies of ours is not there yet",
            ),
            ("what", json!("rooms"), "and should be room or messages"),
            ("what", json!("messages"), "received where what is messages"),
            ("start", json!("received"), "where what is room"),
            ("start", json!("last_reference"), "where what is room"),
            ("start", json!(7), "last_message, last_leave or last_forget"),
            ("name", json!(""), "a name of letters"),
            ("name", json!("two words"), "a name of letters"),
            ("name", json!("a".repeat(41)), "a name of letters"),
            ("only", json!([]), "or left out"),
            ("only", json!("stateonly"), "says nothing of a room"),
            ("not", json!(["inactive=90"]), "90 of what"),
            ("override_rooms", json!("yes"), "true or false"),
            ("even_with_members", json!(1), "true or false"),
            (
                "notify",
                json!({"before": "14d"}),
                "nobody is told before a room goes",
            ),
            ("keep", json!(["pinned"]), "cannot be kept yet"),
            ("affter", json!("1d"), "is not a key"),
        ] {
            let error = with(key, value.clone()).unwrap_or_else(|| panic!("{key}: {value}"));
            assert!(
                error.starts_with("test:1: roomkeeper.policies[0]") && error.contains(says),
                "{key}: {value}: {error}"
            );
        }
        for (policies, says) in [
            (json!({}), "a list of policies"),
            (json!(["x"]), "a block of keys"),
            (
                json!([{"name": "a"}]),
                "policies[0].what is missing: write room or messages",
            ),
            (json!([{"what": "room"}]), "policies[0].name is missing"),
            (
                json!([{"name": "a", "what": "room", "start": "last_leave"}]),
                "policies[0].after is missing",
            ),
            (
                json!([{"name": "a", "what": "room", "start": "last_leave", "after": "9d", "even_with_members": true}]),
                "with start: last_message alone",
            ),
            (
                json!([{"name": "a", "what": "messages", "start": "received", "after": "59m"}]),
                "1h or longer",
            ),
            (
                json!([{"name": "a", "what": "messages", "start": "received", "after": "9d"},
                       {"name": "a", "what": "room", "start": "last_leave", "after": "9d"}]),
                "policies[1].name is \"a\", and should be a name that no other policy has",
            ),
        ] {
            let error = read(policies.clone()).expect_err("refused");
            assert!(error.contains(says), "{policies}: {error}");
        }
    }
}
