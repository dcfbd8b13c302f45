//! `GET` and `PUT /_synapse/admin/v1/rooms/{room_id}/block`.
//!
//! Source: Synapse, `docs/admin_api/rooms.md`; behaviour.md H-50, H-51.

use serde_json::{Value, json};

use super::handlers::Response;
use super::json::{self, ApiError, Body};
use super::{Api, Context};
use crate::ids::RoomId;

/// Whether a room is blocked, and by whom.
pub fn get(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let blocker = api.keeper.blocker(&RoomId::from(ctx.parameter(0)))?;
    let body = match blocker {
        Some(user) => json!({"block": true, "user_id": user}),
        None => json!({"block": false}),
    };
    Ok(json::json(200, &body))
}

/// Blocks or unblocks a room.
pub fn put(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let requester = api.admin(ctx)?;
    let body = json::object(&ctx.request.body, Body::Required)?;
    let room = RoomId::from(ctx.parameter(0));
    if !room.is_valid() {
        let text = format!("{room} is not a legal room ID");
        return Err(ApiError::new(400, "M_UNKNOWN", text));
    }
    let block = match body.get("block") {
        Some(Value::Bool(block)) => *block,
        None => {
            return Err(ApiError::new(
                400,
                "M_MISSING_PARAM",
                "Missing params: ['block']",
            ));
        }
        Some(_) => return Err(ApiError::bad_json("Param 'block' must be a boolean.")),
    };
    if block {
        api.keeper.block(&room, &requester)?;
    } else {
        api.keeper.unblock(&room)?;
    }
    Ok(json::json(200, &json!({"block": block})))
}
