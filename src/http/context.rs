//! `GET /_synapse/admin/v1/rooms/{room_id}/context/{event_id}`: an event with what was said around it.
//!
//! Source: Synapse, `docs/admin_api/rooms.md`, "Event Context API".

use super::handlers::Response;
use super::json::ApiError;
use super::{Api, Context, messages, query};
use crate::ids::{EventId, RoomId};
use crate::messages::{Around, ContextRequest, DEFAULT_LIMIT, EventJson, MAX_LIMIT};

/// What was said around an event.
pub fn get(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let reader = api.admin(ctx)?;
    let limit = query::count(ctx, "limit")?.unwrap_or(DEFAULT_LIMIT.into());
    let knows = api.keeper.config().relation_type_filters;
    let request = ContextRequest {
        event: EventId::new(ctx.parameter(1)),
        limit: u32::try_from(limit).unwrap_or(MAX_LIMIT).min(MAX_LIMIT),
        filter: messages::filter(&ctx.query, knows)?,
        reader,
    };
    let room = RoomId::from(ctx.parameter(0));
    let around = api.keeper.context(&room, &request, &ctx.request.limit)?;
    let around = match around {
        Around::Events(around) => around,
        Around::Unknown => return Err(ApiError::not_found("Event not found.")),
        Around::TooLarge => {
            let text = "This is too much for one answer: ask for fewer events, or with lazy_load_members in the filter";
            return Err(ApiError::new(413, "M_TOO_LARGE", text));
        }
    };
    // Tokens have no characters that JSON escapes.
    let body = format!(
        r#"{{"events_before":[{}],"event":{},"events_after":[{}],"state":[{}],"start":"{}","end":"{}"}}"#,
        joined(&around.before.chunk),
        around.event.as_str(),
        joined(&around.after.chunk),
        joined(&around.state),
        around.start,
        around.end,
    );
    Ok(Response {
        status: 200,
        headers: Vec::new(),
        body: body.into_bytes(),
    })
}

fn joined(events: &[EventJson]) -> String {
    let events: Vec<&str> = events.iter().map(EventJson::as_str).collect();
    events.join(",")
}
