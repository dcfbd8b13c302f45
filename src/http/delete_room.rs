//! `DELETE /_synapse/admin/v1/rooms/{room_id}`, the same under `v2`, and what became of the latter:
//! `GET /_synapse/admin/v2/rooms/{room_id}/delete_status`, `GET /_synapse/admin/v2/rooms/delete_status/{delete_id}`.
//!
//! Source: Synapse, `docs/admin_api/rooms.md`; behaviour.md H-40 to H-47.

use serde_json::{Map, Value, json};

use super::desk::Outbound;
use super::wire::{self, Body, Failure};
use super::{Call, Site};
use crate::deletion::Request;
use crate::ids::{RoomId, UserId};

/// Deletes a room and answers what its shutdown did, when all is over (v1).
pub fn now(site: &Site, call: &Call) -> Result<Outbound, Failure> {
    let (room, request) = wanted(site, call)?;
    let shutdown = site.keeper.delete_room(&room, request)?;
    Ok(wire::json(200, &shutdown))
}

/// Starts a deletion and answers its id at once (v2).
pub fn start(site: &Site, call: &Call) -> Result<Outbound, Failure> {
    let (room, request) = wanted(site, call)?;
    let id = site.keeper.shutdown_and_purge_room(&room, request)?;
    Ok(wire::json(200, &json!({"delete_id": id})))
}

/// The deletions of a room that run, or ended less than 24 hours ago.
pub fn of_room(site: &Site, call: &Call) -> Result<Outbound, Failure> {
    site.admin(call)?;
    let room = RoomId::from(call.parameter(0));
    if !room.is_legal() {
        let text = format!("{room} is not a legal room ID");
        return Err(Failure::new(400, "M_UNKNOWN", text));
    }
    let mut results = Vec::new();
    for id in site.keeper.delete_ids_by_room(&room)? {
        // One may be forgotten between the two looks (S-12).
        results.extend(site.keeper.delete_status(id.as_str())?);
    }
    if results.is_empty() {
        let text = format!("No delete task for room_id '{room}' found");
        return Err(Failure::not_found(text));
    }
    Ok(wire::json(200, &json!({"results": results})))
}

/// One deletion that runs, or ended less than 24 hours ago.
pub fn status(site: &Site, call: &Call) -> Result<Outbound, Failure> {
    site.admin(call)?;
    let id = call.parameter(0);
    match site.keeper.delete_status(id)? {
        Some(status) => Ok(wire::json(200, &status)),
        None => Err(Failure::not_found(format!("delete id '{id}' not found"))),
    }
}

fn wanted(site: &Site, call: &Call) -> Result<(RoomId, Request), Failure> {
    let requester = site.admin(call)?;
    let body = wire::object(&call.inbound.body, Body::Required)?;
    let request = request(&body, requester)?;
    Ok((RoomId::from(call.parameter(0)), request))
}

/// What the body asks. The flags are judged in this order (H-40).
fn request(body: &Map<String, Value>, requester: UserId) -> Result<Request, Failure> {
    Ok(Request {
        requester: Some(requester),
        block: flag(body, "block", false)?,
        purge: flag(body, "purge", true)?,
        force_purge: flag(body, "force_purge", false)?,
        new_room_user_id: text(body, "new_room_user_id")?.map(UserId::new),
        room_name: text(body, "room_name")?,
        message: text(body, "message")?,
    })
}

fn flag(body: &Map<String, Value>, name: &str, default: bool) -> Result<bool, Failure> {
    match body.get(name) {
        None => Ok(default),
        Some(Value::Bool(value)) => Ok(*value),
        Some(_) => Err(Failure::bad_json(format!(
            "Param '{name}' must be a boolean, if given"
        ))),
    }
}

/// H-8: what is no text is refused, where Synapse would fail.
fn text(body: &Map<String, Value>, name: &str) -> Result<Option<String>, Failure> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Failure::bad_json(format!(
            "Param '{name}' must be a string, if given"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Request, String> {
        let body = wire::object(body.as_bytes(), Body::Required).expect("an object");
        request(&body, UserId::from("@admin:example.org")).map_err(|failure| {
            assert_eq!((failure.status, failure.errcode), (400, "M_BAD_JSON"));
            failure.error
        })
    }

    #[test]
    fn a_deletion_purges_and_does_not_block_unless_it_is_told() {
        let plain = read("{}").expect("enough");
        assert_eq!(
            (plain.block, plain.purge, plain.force_purge),
            (false, true, false)
        );
        assert_eq!(plain.room_name(), "Content Violation Notification");
        let told = read(
            r#"{"new_room_user_id": "@a:b", "room_name": "N", "message": "M", "block": true, "purge": false, "force_purge": true}"#,
        );
        let told = told.expect("all of it");
        assert_eq!(
            (told.block, told.purge, told.force_purge),
            (true, false, true)
        );
        assert_eq!((told.room_name(), told.message()), ("N", "M"));
        assert_eq!(told.new_room_user_id, Some(UserId::from("@a:b")));
    }

    #[test]
    fn flags_are_booleans_and_judged_in_order() {
        for wrong in ["null", "0", "1", "\"true\"", "[]"] {
            for name in ["block", "purge", "force_purge"] {
                assert_eq!(
                    read(&format!(r#"{{"{name}": {wrong}}}"#)),
                    Err(format!("Param '{name}' must be a boolean, if given"))
                );
            }
        }
        assert_eq!(
            read(r#"{"force_purge": 1, "purge": 1, "block": 1}"#),
            Err("Param 'block' must be a boolean, if given".into())
        );
        assert_eq!(
            read(r#"{"new_room_user_id": 5}"#),
            Err("Param 'new_room_user_id' must be a string, if given".into())
        );
    }
}
