//! Events that real Synapses made, of every room version they had, made again and tested: ids, hashes and signatures must
//! be the same.
//!
//! `tests/events/real.json` holds some of each version and type. `ROOMKEEPER_REAL_SERVER=<directory with homeserver.db
//! and signing.key>` has every event of that server tested, too.
#![cfg(feature = "events")]

use std::path::PathBuf;

use roomkeeper::event::{
    Event, EventBuilder, EventError, EventSigner, Reference, Signed, SigningKeys,
};
use roomkeeper::room_version::{IdForm, RoomVersion};
use roomkeeper::{EventId, Millis, RoomId, UserId};
use rusqlite::Connection;
use serde_json::{Map, Value, json};

const SERVER: &str = "oracle.test";

/// An event as a server held it.
struct Held {
    id: EventId,
    room: RoomId,
    version: &'static RoomVersion,
    format: i64,
    json: Value,
}

fn real() -> Vec<(EventSigner, Vec<Held>)> {
    let text = include_str!("events/real.json");
    let all: Value = serde_json::from_str(text).expect("JSON");
    let servers = all["keys"].as_object().expect("keys by server");
    let held = |release: &str| {
        let events = all["events"].as_array().expect("events").iter();
        events
            .filter(|e| e["server"] == release)
            .map(|e| Held {
                id: word(&e["id"]).into(),
                room: word(&e["room"]).into(),
                version: RoomVersion::of(word(&e["version"])).expect("known"),
                format: e["format"].as_i64().expect("a number"),
                json: e["json"].clone(),
            })
            .collect()
    };
    servers
        .iter()
        .map(|(release, key)| (signer(word(key)), held(release)))
        .collect()
}

fn word(value: &Value) -> &str {
    value.as_str().expect("text")
}

fn signer(key: &str) -> EventSigner {
    EventSigner::new(SERVER, &SigningKeys::parse(key).expect("a key")).expect("a key")
}

/// The references of a member, by which the event is made again.
fn references(held: &Held, member: &str) -> Vec<Reference> {
    let list = held.json[member].as_array().expect("a list").iter();
    list.map(|entry| match entry {
        Value::String(id) => Reference {
            id: id.as_str().into(),
            hash: None,
        },
        pair => Reference {
            id: word(&pair[0]).into(),
            hash: pair[1]["sha256"].as_str().map(str::to_owned),
        },
    })
    .collect()
}

/// Makes a held event again, of nothing but its parts.
fn again(signer: &EventSigner, held: &Held) -> Result<Event, EventError> {
    let sender = UserId::from(word(&held.json["sender"]));
    let draft = EventBuilder {
        room: Some(&held.room),
        kind: word(&held.json["type"]),
        sender: &sender,
        state_key: held.json["state_key"].as_str(),
        content: held.json["content"].as_object().expect("content").clone(),
        depth: held.json["depth"].as_i64().expect("a number"),
        prev: references(held, "prev_events"),
        auth: references(held, "auth_events"),
        create_event_id: None,
        at: Millis(held.json["origin_server_ts"].as_i64().expect("a number")),
        replaces: None,
    };
    signer.sign(held.version, draft)
}

#[test]
fn every_real_event_stands_the_test_that_ours_must_stand() {
    let mut versions = std::collections::BTreeSet::new();
    let mut servers = real();
    if let Ok(server) = std::env::var("ROOMKEEPER_REAL_SERVER") {
        servers.push(held_by(&PathBuf::from(server)));
    }
    for (signer, events) in servers {
        eprintln!("{} events", events.len());
        for held in events {
            versions.insert(held.version.name);
            let json = held.json.to_string();
            signer
                .test(held.version, &held.id, &json)
                .unwrap_or_else(|e| panic!("version {}: {e}", held.version.name));
            assert_eq!(held.format, held.version.event_format, "{}", held.id);
            // What it is signed with can be told, whether or not it was redacted since.
            let redacted = Value::Object(held.version.redact(held.json.as_object().expect("one")));
            for json in [json, redacted.to_string()] {
                assert_eq!(signer.signed(held.version, &json), Some(Signed::ByThis));
            }
        }
    }
    assert!(versions.len() >= 8, "only {versions:?}");
}

#[test]
fn a_real_event_made_again_is_the_same_event() {
    let mut compared = 0;
    for (signer, events) in real() {
        for held in events {
            // Older releases wrote a member that events do not need, and redactions were told their target at the top.
            if held.json.get("origin").is_some() || held.json.get("redacts").is_some() {
                continue;
            }
            let made = again(&signer, &held).expect("made");
            let json: Value = serde_json::from_str(&made.json).expect("JSON");
            // Ids that the sender chooses are new ones each time, and hashes and signatures with them.
            if held.version.ids == IdForm::Chosen {
                assert!(made.id.as_str().ends_with(":oracle.test"));
                assert_eq!(json["prev_events"], held.json["prev_events"]);
                continue;
            }
            assert_eq!(made.id, held.id, "version {}", held.version.name);
            for member in ["hashes", "signatures", "auth_events", "prev_events"] {
                assert_eq!(json[member], held.json[member], "{}", held.id);
            }
            compared += 1;
        }
    }
    assert!(compared > 30, "only {compared} events were compared");
}

#[test]
fn an_event_that_was_changed_does_not_stand_the_test() {
    let (signer, events) = real().pop().expect("a server");
    for held in &events {
        for (member, value) in [
            ("content", json!({"body": "what was never said"})),
            ("depth", json!(4711)),
            ("signatures", json!({SERVER: {"ed25519:a_orac": "bm9uZQ"}})),
            ("hashes", json!({"sha256": "bm9uZQ"})),
        ] {
            let mut changed = held.json.clone();
            changed[member] = value;
            let outcome = signer.test(held.version, &held.id, &changed.to_string());
            assert!(
                matches!(outcome, Err(EventError::Broken(_) | EventError::Form(_))),
                "{}: {member}",
                held.id
            );
        }
    }
}

#[test]
fn the_events_of_an_old_room_name_others_by_the_hashes_that_synapse_computes() {
    let mut compared = 0;
    for (_, events) in real() {
        let old = |held: &&Held| held.version.ids == IdForm::Chosen;
        for held in events.iter().filter(old) {
            for named in references(held, "auth_events") {
                let of = events.iter().find(|e| e.id == named.id);
                if let (Some(of), Some(hash)) = (of, named.hash) {
                    let ours = EventSigner::reference_hash(of.version, &of.json.to_string());
                    assert_eq!(ours.as_deref(), Some(&*hash), "{}", of.id);
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 4, "only {compared}");
}

#[test]
fn a_first_event_of_version_12_is_the_rooms_id_and_others_do_not_name_it() {
    let (signer, _) = real().pop().expect("a server");
    let version = RoomVersion::of("12").expect("known");
    let ann = UserId::from("@ann:oracle.test");
    let draft = |room, kind, content: Value, auth, create_event_id| EventBuilder {
        room,
        kind,
        sender: &ann,
        state_key: Some(""),
        content: content.as_object().cloned().unwrap_or_default(),
        depth: 1,
        prev: Vec::new(),
        auth,
        create_event_id,
        at: Millis(1_700_000_000_000),
        replaces: None,
    };
    let content = json!({"room_version": "12"});
    let create = signer
        .sign(
            version,
            draft(None, "m.room.create", content, Vec::new(), None),
        )
        .expect("made");
    assert_eq!(create.room.as_str()[1..], create.id.as_str()[1..]);
    let json: Value = serde_json::from_str(&create.json).expect("JSON");
    assert_eq!(json.get("room_id"), None);
    let (room, id) = (create.room.clone(), create.id.clone());
    let auth = vec![create.reference()];
    let name = draft(
        Some(&room),
        "m.room.name",
        json!({"name": "x"}),
        auth,
        Some(&id),
    );
    let name = EventBuilder {
        prev: vec![create.reference()],
        ..name
    };
    let name = signer.sign(version, name).expect("made");
    let json: Value = serde_json::from_str(&name.json).expect("JSON");
    assert_eq!(json["auth_events"], json!([]));
    assert_eq!(json["prev_events"], json!([create.id]));
    assert_eq!(json["room_id"], json!(room));
    assert_eq!(name.auth, [create.id]);
}

#[test]
fn what_matrix_does_not_allow_is_refused() {
    let (signer, _) = real().pop().expect("a server");
    let ann = UserId::from("@ann:oracle.test");
    let room = RoomId::from("!r:oracle.test");
    let sign = |version: &str, content: Map<String, Value>| {
        let draft = EventBuilder {
            room: Some(&room),
            kind: "m.room.message",
            sender: &ann,
            state_key: None,
            content,
            depth: 1,
            prev: Vec::new(),
            auth: Vec::new(),
            create_event_id: None,
            at: Millis(0),
            replaces: None,
        };
        signer.sign(RoomVersion::of(version).expect("known"), draft)
    };
    let body = |value: Value| Map::from_iter([("body".to_owned(), value)]);
    let long = sign("10", body("x".repeat(70_000).into()));
    assert!(matches!(long, Err(EventError::TooLarge)));
    let float = sign("10", body(json!(0.5)));
    assert!(matches!(float, Err(EventError::Form(_))));
    let unknown = sign("org.matrix.msc4242.12", Map::new());
    assert!(matches!(unknown, Err(EventError::RoomVersion(_))));
}

/// Every event of the server's own users in `server`.
fn held_by(server: &std::path::Path) -> (EventSigner, Vec<Held>) {
    let key = std::fs::read_to_string(server.join("signing.key")).expect("a key");
    let conn = Connection::open(server.join("homeserver.db")).expect("a database");
    let mut asked = conn
        .prepare(
            "SELECT e.event_id, e.room_id, r.room_version, j.json, j.format_version FROM events e
               JOIN event_json j USING (event_id) JOIN rooms r ON r.room_id = e.room_id
              WHERE e.sender LIKE '%:oracle.test'",
        )
        .expect("prepared");
    let mut rows = asked.query([]).expect("asked");
    let mut events = Vec::new();
    while let Some(row) = rows.next().expect("a row") {
        let text = |n| row.get::<_, String>(n).expect("text");
        events.push(Held {
            id: text(0).as_str().into(),
            room: text(1).as_str().into(),
            version: RoomVersion::of(&text(2)).expect("known"),
            format: row.get(4).expect("a number"),
            json: serde_json::from_str(&text(3)).expect("JSON"),
        });
    }
    (signer(&key), events)
}
