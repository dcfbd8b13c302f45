//! `GET` and `PUT /_synapse/admin/v1/rooms/{room_id}/block`.
//!
//! Source: Synapse, `docs/admin_api/rooms.md`; behaviour.md H-50, H-51.

use serde_json::{Value, json};

use super::desk::Outbound;
use super::wire::{self, Body, Failure};
use super::{Call, Site};
use crate::ids::RoomId;

/// Whether a room is blocked, and by whom.
pub fn get(site: &Site, call: &Call) -> Result<Outbound, Failure> {
    site.admin(call)?;
    let blocker = site.keeper.blocker(&RoomId::from(call.parameter(0)))?;
    let body = match blocker {
        Some(user) => json!({"block": true, "user_id": user}),
        None => json!({"block": false}),
    };
    Ok(wire::json(200, &body))
}

/// Blocks or unblocks a room.
pub fn put(site: &Site, call: &Call) -> Result<Outbound, Failure> {
    let requester = site.admin(call)?;
    let body = wire::object(&call.inbound.body, Body::Required)?;
    let room = RoomId::from(call.parameter(0));
    if !room.is_legal() {
        let text = format!("{room} is not a legal room ID");
        return Err(Failure::new(400, "M_UNKNOWN", text));
    }
    let block = match body.get("block") {
        Some(Value::Bool(block)) => *block,
        None => {
            return Err(Failure::new(
                400,
                "M_MISSING_PARAM",
                "Missing params: ['block']",
            ));
        }
        Some(_) => return Err(Failure::bad_json("Param 'block' must be a boolean.")),
    };
    if block {
        site.keeper.block(&room, &requester)?;
    } else {
        site.keeper.unblock(&room)?;
    }
    Ok(wire::json(200, &json!({"block": block})))
}
