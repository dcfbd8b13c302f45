//! `GET /_synapse/admin/v1/rooms/{room_id}/hierarchy`: a space, with the rooms below it.
//!
//! Source: Synapse, `docs/admin_api/rooms.md`, "Room Hierarchy Endpoint". Its tokens say how many rooms were told, so that
//! nothing has to be remembered between two requests.

use super::handlers::Response;
use super::json::ApiError;
use super::{Api, Context, query};
use crate::ids::RoomId;
use crate::messages::{EventJson, Hierarchy, HierarchyRequest, MOST_ROOMS};

/// Most rooms that a token says were told.
const FARTHEST: usize = 50_000;

/// A page of what is below a room.
pub fn get(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let max_depth = query::count(ctx, "max_depth")?;
    let limit = query::count(ctx, "limit")?;
    let from = match query::first(ctx, "from").filter(|token| !token.is_empty()) {
        Some(token) => {
            let told = token.parse().ok().filter(|told| *told <= FARTHEST);
            told.ok_or_else(|| query::invalid("Unknown pagination token"))?
        }
        None => 0,
    };
    let request = HierarchyRequest {
        root: RoomId::from(ctx.parameter(0)),
        max_depth,
        limit: limit.map_or(MOST_ROOMS, |limit| {
            usize::try_from(limit).unwrap_or(MOST_ROOMS)
        }),
        from,
    };
    let (rooms, next) = match api.keeper.hierarchy(&request, &ctx.request.limit)? {
        Hierarchy::Rooms { rooms, next } => (rooms, next),
        Hierarchy::UnknownRoom => return Err(ApiError::not_found("Room not found")),
        Hierarchy::TooLarge => {
            let text =
                "This space has more rooms than can be looked at: ask with a smaller max_depth";
            return Err(ApiError::new(413, "M_TOO_LARGE", text));
        }
    };
    let rooms: Vec<&str> = rooms.iter().map(EventJson::as_str).collect();
    let next = next.map_or_else(String::new, |told| format!(r#","next_batch":"{told}""#));
    Ok(Response {
        status: 200,
        headers: Vec::new(),
        body: format!(r#"{{"rooms":[{}]{next}}}"#, rooms.join(",")).into_bytes(),
    })
}
