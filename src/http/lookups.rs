//! What clients for admins ask when they log in and look around: `…/account/whoami`, `…/versions`, `…/login`, `…/profile/…`,
//! `/_synapse/admin/v2/users/{user_id}`, `…/users/{user_id}/admin`, `…/rooms/{room_id}/state`, `…/forward_extremities`,
//! `…/timestamp_to_event`, `…/fetch_event/{event_id}`; `DELETE …/forward_extremities`; and what they are refused: `…/make_room_admin`.
//!
//! Source: the client-server API; Synapse, `docs/admin_api/` (`rooms.md`, `user_admin_api.md`, `fetch_event.md`).

use serde_json::{Value, json};

use super::handlers::Response;
use super::json::{self as wire, ApiError};
use super::{Api, Context, query};
use crate::ids::{EventId, RoomId, UserId};
use crate::keeper::lookups::RoomState;
use crate::messages::EventJson;
use crate::point::Direction;

/// Whose token it is.
pub fn whoami(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let session = api.user(ctx)?;
    let mut body = json!({"user_id": session.user_id, "is_guest": session.is_guest});
    if let Some(device) = &session.device_id {
        body["device_id"] = device.as_str().into();
    }
    Ok(wire::json(200, &body))
}

/// Which versions of the client API our few paths of it are of. Clients look here whether a server is one.
pub fn versions(_api: &Api, _ctx: &Context) -> Result<Response, ApiError> {
    let body = json!({"versions": ["r0.6.1", "v1.1"], "unstable_features": {}});
    Ok(wire::json(200, &body))
}

/// Nobody logs in here: an access token of the homeserver's is what works.
pub fn login_flows(_api: &Api, _ctx: &Context) -> Result<Response, ApiError> {
    Ok(wire::json(200, &json!({"flows": []})))
}

/// The same, said to who tries.
pub fn login(_api: &Api, _ctx: &Context) -> Result<Response, ApiError> {
    let text = "roomkeeper gives no access tokens: log in with one that your homeserver gave";
    Err(ApiError::new(403, "M_FORBIDDEN", text))
}

/// A user's name and picture.
pub fn profile(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.user(ctx)?;
    let user = UserId::from(ctx.parameter(0));
    let own = &api.keeper.config().server_name;
    let is_own = user
        .as_str()
        .split_once(':')
        .is_some_and(|(_, server)| server == own);
    let profile = match is_own {
        true => api.keeper.profile(&user)?,
        false => None,
    };
    let Some(profile) = profile else {
        return Err(ApiError::not_found("Profile was not found"));
    };
    let mut body = json!({});
    for (member, value) in [
        ("displayname", profile.displayname),
        ("avatar_url", profile.avatar_url),
    ] {
        if let Some(value) = value {
            body[member] = value.into();
        }
    }
    Ok(wire::json(200, &body))
}

/// A user's account, as far as it matters to who looks after rooms: without addresses and other servers' ids.
pub fn account(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let user = UserId::from(ctx.parameter(0));
    let Some(account) = api.keeper.account(&user)? else {
        return Err(ApiError::not_found("User not found"));
    };
    let profile = api.keeper.profile(&user)?.unwrap_or_default();
    let body = json!({
        "name": user,
        "displayname": profile.displayname,
        "avatar_url": profile.avatar_url,
        "admin": account.is_admin,
        "is_guest": account.is_guest,
        "deactivated": account.is_deactivated,
        "erased": account.is_erased,
        "shadow_banned": account.is_shadow_banned,
        "locked": account.is_locked,
        "suspended": account.is_suspended,
        "creation_ts": account.creation_ts,
        "appservice_id": account.appservice_id,
        "user_type": account.user_type,
    });
    Ok(wire::json(200, &body))
}

/// Whether a user is a server admin.
pub fn is_admin(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    match api.keeper.account(&UserId::from(ctx.parameter(0)))? {
        Some(account) => Ok(wire::json(200, &json!({"admin": account.is_admin}))),
        None => Err(ApiError::not_found("User not found")),
    }
}

/// A room's current state.
pub fn state(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let room = RoomId::from(ctx.parameter(0));
    match api.keeper.room_state(&room, &ctx.request.limit)? {
        RoomState::Events(events) => Ok(raw(&format!(r#"{{"state":[{}]}}"#, joined(&events)))),
        RoomState::UnknownRoom => Err(ApiError::not_found("Room not found")),
        RoomState::TooLarge => {
            let text = "The state of this room is too large for one answer";
            Err(ApiError::new(413, "M_TOO_LARGE", text))
        }
    }
}

/// A room, by its id or an alias.
fn room_of(api: &Api, words: &str) -> Result<RoomId, ApiError> {
    match words.chars().next() {
        Some('#') => Ok(api.keeper.room_of_alias(words)?),
        Some('!') => Ok(RoomId::from(words)),
        _ => {
            let text = format!("{words} was not legal room ID or room alias");
            Err(ApiError::new(400, "M_UNKNOWN", text))
        }
    }
}

/// Leaves a room the newest of its forward extremities alone.
pub fn drop_forward_extremities(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let who = api.admin(ctx)?;
    let room = room_of(api, ctx.parameter(0))?;
    let dropped = api.keeper.drop_surplus_extremities(&room)?;
    log::info!("room {room}: {who} had {dropped} of its forward extremities dropped");
    Ok(wire::json(200, &json!({"deleted": dropped})))
}

/// A room's forward extremities.
pub fn forward_extremities(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let room = room_of(api, ctx.parameter(0))?;
    let extremities = api.keeper.forward_extremities(&room)?;
    let results: Vec<Value> = extremities
        .iter()
        .map(|extremity| {
            json!({
                "event_id": extremity.event_id,
                "state_group": extremity.state_group,
                "depth": extremity.depth,
                "received_ts": extremity.received_ts,
            })
        })
        .collect();
    let body = json!({"count": results.len(), "results": results});
    Ok(wire::json(200, &body))
}

/// The event of a room that is nearest to a time.
pub fn timestamp_to_event(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let Some(ts) = query::count(ctx, "ts")? else {
        let text = "Missing required integer query parameter ts";
        return Err(ApiError::new(400, "M_MISSING_PARAM", text));
    };
    let (direction, letter) = match query::is_backwards(ctx)? {
        false => (Direction::Forwards, 'f'),
        true => (Direction::Backwards, 'b'),
    };
    let room = RoomId::from(ctx.parameter(0));
    let limit = &ctx.request.limit;
    match api.keeper.event_near(&room, ts, direction, limit)? {
        Some((event, at)) => {
            let body = json!({"event_id": event, "origin_server_ts": at});
            Ok(wire::json(200, &body))
        }
        None => Err(ApiError::not_found(format!(
            "Unable to find event from {ts} in direction {letter}"
        ))),
    }
}

/// One event.
pub fn fetch_event(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    match api.keeper.event(&EventId::new(ctx.parameter(0)))? {
        Some(event) => Ok(raw(&format!(r#"{{"event":{}}}"#, event.as_str()))),
        None => Err(ApiError::not_found("Event not found")),
    }
}

/// Making somebody a room's admin takes an event that a running homeserver must send.
pub fn make_room_admin(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let text = "roomkeeper gives nobody power in a room: ask your homeserver at the same path";
    Err(ApiError::new(403, "M_FORBIDDEN", text))
}

fn joined(events: &[EventJson]) -> String {
    let events: Vec<&str> = events.iter().map(EventJson::as_str).collect();
    events.join(",")
}

fn raw(body: &str) -> Response {
    Response {
        status: 200,
        headers: Vec::new(),
        body: body.as_bytes().to_vec(),
    }
}
