//! A space, with the rooms that it names, the rooms that these name, and so on.
//!
//! Source: the client-server API, "GET /rooms/{roomId}/hierarchy"; Synapse, `docs/admin_api/rooms.md`, "Room Hierarchy".

use std::collections::HashSet;
use std::rc::Rc;

use serde_json::{Map, Value, json};

use super::event::Event;
use super::json::{Object, ObjectWriter, quoted, string};
use super::load::Loader;
use super::request::EventJson;
use super::single::MAX_WRITTEN;
use crate::error::Error;
use crate::ids::RoomId;
use crate::room_version::RoomVersion;
use crate::store::db::Db;
use crate::store::{rooms, spaces};

/// Most rooms of one answer.
pub const MOST_ROOMS: usize = 50;

/// Most children of one space that are looked at.
const MOST_CHILDREN: i64 = 10_000;

/// Most rooms that are met on the way, those that are met again included.
const MOST_MET: usize = 50_000;

/// Which part of a hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HierarchyRequest {
    /// The room at its root.
    pub root: RoomId,
    /// How many steps down from there at most.
    pub max_depth: Option<i64>,
    /// How many rooms at most; [`MOST_ROOMS`] is the most.
    pub limit: usize,
    /// How many rooms were told before.
    pub from: usize,
}

/// What there is of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hierarchy {
    /// Nobody of this server is in the room at its root.
    UnknownRoom,
    /// More than can be looked at.
    TooLarge,
    /// Some of its rooms.
    Rooms {
        /// The rooms, each before its children.
        rooms: Vec<EventJson>,
        /// How many were told, with those before, where there are more.
        next: Option<usize>,
    },
}

/// A part of a hierarchy, of the rooms that somebody of this server is in. `db` shows one moment of the database for as long
/// as this takes. What was told before is walked again, and not written.
///
/// # Errors
/// Those of the database.
pub fn hierarchy(db: &Db, request: &HierarchyRequest) -> Result<Hierarchy, Error> {
    if !spaces::is_joined(db, &request.root)? {
        return Ok(Hierarchy::UnknownRoom);
    }
    let limit = request.limit.min(MOST_ROOMS);
    let mut ahead = vec![(request.root.clone(), 0)];
    let mut met = HashSet::new();
    let (mut told, mut size, mut is_full) = (0, 0, limit == 0);
    let mut written = Vec::new();
    while !is_full {
        let Some((room, depth)) = ahead.pop() else {
            break;
        };
        if !met.insert(room.clone()) || !spaces::is_joined(db, &room)? {
            continue;
        }
        let Some(described) = rooms::described(db, &room)? else {
            continue;
        };
        let is_space = described.0.room_type.as_deref() == Some("m.space");
        let mut loader = Loader::new(db, &room)?;
        let children = match is_space {
            true => children(db, &mut loader)?,
            false => Vec::new(),
        };
        if told >= request.from {
            let text = entry(&mut loader, described, &children)?;
            size += text.len();
            if size > MAX_WRITTEN {
                if written.is_empty() {
                    return Ok(Hierarchy::TooLarge);
                }
                // It begins the next answer.
                ahead.push((room, depth));
                break;
            }
            written.push(EventJson::new(text));
        }
        told += 1;
        if request.max_depth.is_none_or(|most| depth < most) {
            let named = children.iter().rev().filter_map(|child| child.state_key());
            ahead.extend(named.map(|room| (RoomId::new(room), depth + 1)));
        }
        if ahead.len() + met.len() > MOST_MET {
            return Ok(Hierarchy::TooLarge);
        }
        is_full = written.len() >= limit;
    }
    Ok(Hierarchy::Rooms {
        rooms: written,
        next: (!ahead.is_empty()).then_some(told.max(request.from)),
    })
}

/// The children that a space names, in the order of the specification.
fn children(db: &Db, loader: &mut Loader<'_>) -> Result<Vec<Rc<Event>>, Error> {
    let ids = spaces::state_of_type(db, loader.room(), "m.space.child", MOST_CHILDREN)?;
    let mut children = shown(loader, &ids)?;
    children.retain(|child| has_via(child));
    children.sort_by_cached_key(|child| {
        let order = child
            .content()
            .text("order")
            .map(|order| order.into_owned());
        let order = order.filter(|order| is_order(order));
        let key = child.state_key().unwrap_or_default().to_owned();
        (order.is_none(), order, child.origin_server_ts(), key)
    });
    Ok(children)
}

fn shown(loader: &mut Loader<'_>, ids: &[String]) -> Result<Vec<Rc<Event>>, Error> {
    let ids: Vec<Rc<str>> = ids.iter().map(|id| id.as_str().into()).collect();
    loader.load(&ids)?;
    Ok(ids.iter().filter_map(|id| loader.show(id)).collect())
}

/// Whether a child says by which servers it is reached: one that does not was taken away.
fn has_via(child: &Event) -> bool {
    let via = child.content();
    let via = via.get("via").map(serde_json::from_str::<Vec<String>>);
    matches!(via, Some(Ok(via)) if !via.is_empty())
}

/// Whether a word may order children: at most 50 printable characters.
fn is_order(order: &str) -> bool {
    order.len() <= 50 && order.bytes().all(|b| (0x20..=0x7e).contains(&b))
}

/// A room, as it is told.
fn entry(
    loader: &mut Loader<'_>,
    (room, avatar, topic): rooms::Described,
    children: &[Rc<Event>],
) -> Result<String, Error> {
    let mut members = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            members.insert(name.to_owned(), value);
        }
    };
    put("room_id", json!(room.room_id));
    put("room_version", json!(room.version));
    put("name", json!(room.name));
    put("topic", json!(topic));
    put("canonical_alias", json!(room.canonical_alias));
    put("num_joined_members", json!(room.joined_members));
    put("avatar_url", json!(avatar));
    let is_readable = room.history_visibility.as_deref() == Some("world_readable");
    put("world_readable", is_readable.into());
    let can_join = room.guest_access.as_deref() == Some("can_join");
    put("guest_can_join", can_join.into());
    put("room_type", json!(room.room_type));
    put("encryption", json!(room.encryption));
    let ids = spaces::state_of_type(loader.db(), &room.room_id, "m.room.join_rules", 1)?;
    if let Some(rules) = shown(loader, &ids)?.first() {
        let content = rules.content();
        let rule = content.text("join_rule");
        put("join_rule", json!(rule));
        let version = room.version.as_deref().and_then(RoomVersion::of);
        let is_restricted = match rule.as_deref() {
            Some("restricted") => version.is_some_and(|version| version.knows_restricted),
            Some("knock_restricted") => version.is_some_and(|version| version.has_integer_levels),
            _ => false,
        };
        let allowed = match is_restricted {
            true => allowed(&content),
            false => Vec::new(),
        };
        if !allowed.is_empty() {
            put("allowed_room_ids", allowed.into());
        }
    }
    let children: Vec<String> = children.iter().map(|child| stripped(child)).collect();
    let mut text = Value::Object(members).to_string();
    text.pop();
    text.push_str(&format!(r#","children_state":[{}]}}"#, children.join(",")));
    Ok(text)
}

/// The rooms whose members may join.
fn allowed(content: &Object<'_>) -> Vec<Value> {
    let list = content.get("allow").unwrap_or("[]");
    let list: Vec<&serde_json::value::RawValue> = serde_json::from_str(list).unwrap_or_default();
    let room = |entry: &&serde_json::value::RawValue| {
        let entry = Object::read(entry.get())?;
        let is_membership = entry.text("type").as_deref() == Some("m.room_membership");
        let room = entry.get("room_id").and_then(string)?;
        is_membership.then(|| Value::from(room.into_owned()))
    };
    list.iter().filter_map(room).collect()
}

/// A child, as it is told.
fn stripped(child: &Event) -> String {
    let mut writer = ObjectWriter::default();
    writer.push("type", quoted(child.kind()));
    writer.push("state_key", quoted(child.state_key().unwrap_or_default()));
    writer.push("content", child.content_text().to_owned());
    writer.push("sender", quoted(child.sender()));
    let at = child.origin_server_ts().unwrap_or_default().to_string();
    writer.push("origin_server_ts", at);
    writer.text()
}
