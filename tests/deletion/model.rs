//! What must hold of events that a shutdown wrote, told again from nothing but their JSON: a plain model of a room.

use std::collections::{BTreeMap, BTreeSet};

use roomkeeper::EventId;
use roomkeeper::event::{EventSigner, SigningKeys};
use roomkeeper::room_version::{IdForm, RoomVersion};
use serde_json::{Value, json};

use crate::support::state_model::Graph;
use crate::support::tables::{Row, Tables};

/// A seed that signs for every server of these tests.
pub const KEY: &str = "ed25519 a_test AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

type State = BTreeMap<(String, String), String>;

/// A room before its new events: where they go on from.
pub struct Room<'a> {
    pub id: &'a str,
    pub version: &'static RoomVersion,
    /// The last stream ordering of before.
    pub since: i64,
    /// The state before.
    pub state: State,
    /// The forward extremities before.
    pub ends: BTreeSet<String>,
}

/// What the new events are, once they have been found in order: type, state key, sender.
pub type Told = Vec<(String, Option<String>, String)>;

fn text(row: &Row, column: &str) -> String {
    row.word(column).to_owned()
}

fn of_room<'a>(tables: &'a Tables, table: &str, room: &str) -> impl Iterator<Item = &'a Row> {
    let room = room.to_owned();
    let rows = tables.rows(table).iter();
    rows.filter(move |r| r.word("room_id") == room)
}

fn of_event<'a>(tables: &'a Tables, table: &str, id: &str) -> impl Iterator<Item = &'a Row> {
    let id = id.to_owned();
    let rows = tables.rows(table).iter();
    rows.filter(move |r| r.word("event_id") == id)
}

/// Which events must allow this one, told from the state before it.
fn allowing(event: &Value, state: &State) -> BTreeSet<String> {
    let mut keys = vec![
        ("m.room.create", ""),
        ("m.room.power_levels", ""),
        ("m.room.member", event["sender"].as_str().expect("a sender")),
    ];
    if event["type"] == "m.room.member" && event["content"]["membership"] == "join" {
        keys.push(("m.room.join_rules", ""));
    }
    let named = keys.into_iter();
    named
        .filter_map(|(kind, key)| state.get(&(kind.to_owned(), key.to_owned())).cloned())
        .collect()
}

fn names(event: &Value, member: &str) -> BTreeSet<String> {
    let list = event[member].as_array().expect("a list").iter();
    list.map(|entry| match entry {
        Value::String(id) => id.clone(),
        pair => pair[0].as_str().expect("an id").to_owned(),
    })
    .collect()
}

impl Room<'_> {
    /// Goes through the room's new events in the order in which they came, and fails at the first that does not hold
    /// together. Answers what they are, and the state in the end.
    #[track_caller]
    pub fn told(&self, tables: &Tables, server: &str) -> (Told, State) {
        let signer =
            EventSigner::new(server, &SigningKeys::parse(KEY).expect("a key")).expect("a key");
        let graph = Graph::of(tables);
        let mut events: Vec<&Row> = of_room(tables, "events", self.id)
            .filter(|e| e.number("stream_ordering") > self.since && !e.is("outlier"))
            .collect();
        events.sort_by_key(|e| e.number("stream_ordering"));
        let (mut state, mut ends) = (self.state.clone(), self.ends.clone());
        let mut told = Told::new();
        for row in events {
            let id = text(row, "event_id");
            let held = of_event(tables, "event_json", &id)
                .next()
                .expect("its JSON");
            assert_eq!(held.number("format_version"), self.version.event_format);
            let json: Value = serde_json::from_str(held.word("json")).expect("JSON");
            signer
                .test(self.version, &EventId::from(&*id), held.word("json"))
                .unwrap_or_else(|e| panic!("version {}: {e}", self.version.name));
            self.compare(row, &json);
            let is_create = json["type"] == "m.room.create";

            let prev = names(&json, "prev_events");
            let edges = of_event(tables, "event_edges", &id);
            let edges: BTreeSet<String> = edges.map(|r| text(r, "prev_event_id")).collect();
            assert_eq!(prev, edges, "{id} follows what its edges say");
            assert!(is_create || !prev.is_empty());
            assert!(prev.is_subset(&ends), "{id} follows the ends of the room");
            assert!(prev.len() == ends.len() || prev.len() == 10, "{id}");
            let deepest = prev.iter().map(|p| {
                let event = of_event(tables, "events", p).next().expect("held");
                event.number("depth")
            });
            assert_eq!(row.number("depth"), 1 + deepest.max().unwrap_or(0));
            ends.retain(|end| !prev.contains(end));
            ends.insert(id.clone());

            let wanted = match is_create {
                true => BTreeSet::new(),
                false => allowing(&json, &state),
            };
            let mut named = names(&json, "auth_events");
            if self.version.is_create_hash_room_id && !is_create {
                let create = format!("${}", &self.id[1..]);
                assert!(
                    !named.contains(&create),
                    "version 12 does not name the create event"
                );
                named.insert(create);
            }
            assert_eq!(named, wanted, "{id} is allowed by what the state says");
            let auth = of_event(tables, "event_auth", &id);
            let auth: BTreeSet<String> = auth.map(|r| text(r, "auth_id")).collect();

            let key = row.text("state_key").map(str::to_owned);
            let replaced = key
                .as_ref()
                .and_then(|key| state.get(&(text(row, "type"), key.clone())));
            let unsigned = json["unsigned"].get("replaces_state");
            assert_eq!(unsigned, replaced.map(|id| json!(id)).as_ref(), "{id}");
            if let Some(key) = &key {
                assert_eq!(auth, wanted);
                state.insert((text(row, "type"), key.clone()), id.clone());
                let rows: Vec<_> = of_event(tables, "state_events", &id).collect();
                assert_eq!(rows.len(), 1);
                assert_eq!(rows[0].word("state_key"), key);
            } else {
                assert_eq!(auth, BTreeSet::new());
            }
            let group = of_event(tables, "event_to_state_groups", &id).next();
            let group = group.expect("a state group").number("state_group");
            assert_eq!(graph.state(group), state, "the state after {id}");
            assert!(hops(&graph, group) <= 100, "a chain of deltas is bounded");
            told.push((text(row, "type"), key, text(row, "sender")));
        }
        let left = of_room(tables, "event_forward_extremities", self.id);
        let left: BTreeSet<String> = left.map(|r| text(r, "event_id")).collect();
        assert_eq!(left, ends, "the ends of {}", self.id);
        (told, state)
    }

    fn compare(&self, row: &Row, json: &Value) {
        for (column, member) in [
            ("type", "type"),
            ("sender", "sender"),
            ("state_key", "state_key"),
        ] {
            assert_eq!(row.text(column), json[member].as_str(), "{column}");
        }
        assert_eq!(row.number("depth"), json["depth"]);
        assert_eq!(row.number("topological_ordering"), json["depth"]);
        assert_eq!(row.number("origin_server_ts"), json["origin_server_ts"]);
        assert_eq!(json["unsigned"]["age_ts"], json["origin_server_ts"]);
        assert_eq!(row.word("instance_name"), "master");
        let is_create_of_12 =
            self.version.is_create_hash_room_id && json["type"] == "m.room.create";
        let room = (!is_create_of_12).then_some(self.id);
        assert_eq!(json.get("room_id").and_then(Value::as_str), room);
        let has_id = self.version.ids == IdForm::Chosen;
        assert_eq!(json.get("event_id").is_some(), has_id);
    }
}

fn hops(graph: &Graph, group: i64) -> usize {
    std::iter::successors(Some(group), |at| graph.base.get(at).copied()).count() - 1
}

/// The current state of a room must be `state`; an empty one where nobody is left to see it.
#[track_caller]
pub fn assert_current(tables: &Tables, room: &str, state: &State) {
    let rows = of_room(tables, "current_state_events", room);
    let current: State = rows
        .map(|r| ((text(r, "type"), text(r, "state_key")), text(r, "event_id")))
        .collect();
    assert_eq!(&current, state, "the current state of {room}");
}

/// By the chain cover, exactly that is in the auth chain of a state event which can be reached over `event_auth`.
#[track_caller]
pub fn assert_chains_cover(tables: &Tables, room: &str) {
    let places: BTreeMap<String, (i64, i64)> = tables
        .rows("event_auth_chains")
        .iter()
        .map(|r| {
            (
                text(r, "event_id"),
                (r.number("chain_id"), r.number("sequence_number")),
            )
        })
        .collect();
    let links: Vec<[i64; 4]> = tables
        .rows("event_auth_chain_links")
        .iter()
        .map(|r| {
            [
                r.number("origin_chain_id"),
                r.number("origin_sequence_number"),
                r.number("target_chain_id"),
                r.number("target_sequence_number"),
            ]
        })
        .collect();
    let mut auth: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in of_room(tables, "event_auth", room) {
        auth.entry(text(row, "event_id"))
            .or_default()
            .push(text(row, "auth_id"));
    }
    let events: Vec<String> = of_room(tables, "state_events", room)
        .map(|r| text(r, "event_id"))
        .collect();
    for event in &events {
        let mut needed = BTreeSet::new();
        let mut open: Vec<&String> = auth.get(event).into_iter().flatten().collect();
        while let Some(id) = open.pop() {
            if needed.insert(id.clone()) {
                open.extend(auth.get(id).into_iter().flatten());
            }
        }
        // The highest place that can be reached in each chain.
        let (chain, at) = places[event];
        let mut reached = BTreeMap::from([(chain, at)]);
        let mut again = true;
        while again {
            again = false;
            for [from, above, to, place] in &links {
                if reached.get(from).is_some_and(|at| at >= above)
                    && reached.get(to).is_none_or(|at| at < place)
                {
                    reached.insert(*to, *place);
                    again = true;
                }
            }
        }
        let covered: BTreeSet<String> = events
            .iter()
            .filter(|id| *id != event)
            .filter(|id| {
                let (chain, at) = places[*id];
                reached.get(&chain).is_some_and(|top| *top >= at)
            })
            .cloned()
            .collect();
        assert_eq!(covered, needed, "the auth chain of {event}");
    }
}
