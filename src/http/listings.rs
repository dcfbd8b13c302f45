//! What admins list beside rooms and users: `GET /_synapse/admin/v1/room/{room_id}/media`, `…/scheduled_tasks`,
//! `…/statistics/database/rooms`.
//!
//! Source: Synapse, `docs/admin_api/media_admin_api.md`, `scheduled_tasks.md`, `statistics.md`.

use serde_json::{Value, json};

use super::handlers::Response;
use super::json::{self as wire, ApiError};
use super::{Api, Context, query};
use crate::ids::RoomId;
use crate::keeper::lookups::Task;

/// What a task may be.
const STATUSES: [&str; 5] = ["scheduled", "active", "complete", "cancelled", "failed"];

/// Rooms that are told of as the largest.
const LARGEST: usize = 10;

/// The media of a room, of this server and of others.
pub fn media(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let room = RoomId::from(ctx.parameter(0));
    let Some(media) = api.keeper.media(&room, &ctx.request.limit)? else {
        let text = "The media of this room are too many for one answer";
        return Err(ApiError::new(413, "M_TOO_LARGE", text));
    };
    let own = &api.keeper.config().server_name;
    let (local, remote): (Vec<_>, Vec<_>) =
        media.into_iter().partition(|media| media.server == *own);
    let urls = |media: Vec<crate::messages::MediaId>| -> Vec<String> {
        let urls = media.iter().map(|m| format!("mxc://{}/{}", m.server, m.id));
        urls.collect()
    };
    let body = json!({"local": urls(local), "remote": urls(remote)});
    Ok(wire::json(200, &body))
}

/// Our jobs, with Synapse's own tasks beside them.
pub fn tasks(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let actions = query::all(ctx, "action_name");
    let resource = query::first(ctx, "resource_id").filter(|id| !id.is_empty());
    // `job_status` is what the parameter was called once.
    let named = ["status", "job_status"];
    let named = named.map(|name| (name, query::all(ctx, name)));
    let statuses = named.iter().find(|(_, statuses)| !statuses.is_empty());
    if let Some((name, statuses)) = statuses
        && statuses.iter().any(|one| !STATUSES.contains(one))
    {
        return Err(query::invalid(format!(
            "Query parameter '{name}' must be one of ['{}']",
            STATUSES.join("', '")
        )));
    }
    let statuses = statuses.map(|(_, statuses)| statuses);
    let latest = query::count(ctx, "max_timestamp")?;
    let is_wanted = |task: &Task| {
        (actions.is_empty() || actions.contains(&task.action.as_str()))
            && resource.is_none_or(|id| task.resource_id.as_deref() == Some(id))
            && statuses.is_none_or(|statuses| statuses.contains(&task.status.as_str()))
            && latest.is_none_or(|latest| task.timestamp_ms <= latest)
    };
    let tasks = api.keeper.tasks()?;
    let tasks: Vec<Value> = tasks
        .into_iter()
        .filter(is_wanted)
        .map(|task| {
            json!({
                "id": task.id,
                "action": task.action,
                "status": task.status,
                "timestamp_ms": task.timestamp_ms,
                "resource_id": task.resource_id,
                "result": task.result,
                "error": task.error,
            })
        })
        .collect();
    Ok(wire::json(200, &json!({"scheduled_tasks": tasks})))
}

/// The rooms that take the most space. Synapse says it of PostgreSQL alone.
pub fn largest_rooms(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let rooms = api.keeper.largest_rooms(LARGEST)?;
    let rooms: Vec<Value> = rooms
        .iter()
        .map(|(room, bytes)| json!({"room_id": room, "estimated_size": bytes}))
        .collect();
    Ok(wire::json(200, &json!({"rooms": rooms})))
}
