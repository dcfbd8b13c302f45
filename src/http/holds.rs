//! `GET /_roomkeeper/v1/holds`, `POST /_roomkeeper/v1/holds`, `POST /_roomkeeper/v1/holds/{name}/release`.
//!
//! Our own endpoints: what nobody may delete for now. What a hold forbids is answered with 409 `ROOMKEEPER_HELD` by every
//! endpoint that deletes.

use serde_json::{Map, Value, json};

use super::handlers::Response;
use super::json::{self, ApiError, Body};
use super::{Api, Context};
use crate::hold::Hold;
use crate::ids::{RoomId, UserId};
use crate::time::Millis;

/// Members of a new hold.
const MEMBERS: &[&str] = &[
    "name",
    "rooms",
    "users",
    "written",
    "everything",
    "from_ms",
    "to_ms",
    "reason",
    "matter",
    "review_ms",
];

/// Every hold there ever was: `{"holds": […]}`; those that are released have a member `released`.
pub fn list(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    Ok(json::json(200, &json!({"holds": api.keeper.holds()?})))
}

/// Lays a hold, and answers with it.
pub fn add(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let who = api.admin(ctx)?;
    let body = json::object(&ctx.request.body, Body::Required)?;
    let hold = Hold {
        by: Some(who.to_string()),
        ..read(&body)?
    };
    Ok(json::json(200, &api.keeper.add_hold(hold)?))
}

/// Ends a hold, for the reason that the body says, and answers with it.
pub fn release(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let who = api.admin(ctx)?;
    let body = json::object(&ctx.request.body, Body::Required)?;
    let reason = text(&body, "reason")?.unwrap_or_default();
    let by = Some(who.to_string());
    let hold = api.keeper.release_hold(ctx.parameter(0), &reason, by)?;
    Ok(json::json(200, &hold))
}

fn read(body: &Map<String, Value>) -> Result<Hold, ApiError> {
    // A misspelt bound would be no bound.
    if let Some(key) = body.keys().find(|key| !MEMBERS.contains(&key.as_str())) {
        return Err(ApiError::bad_json(format!(
            "unknown member {key:?}; there are {}",
            MEMBERS.join(", ")
        )));
    }
    Ok(Hold {
        name: text(body, "name")?.unwrap_or_default(),
        rooms: texts(body, "rooms")?.into_iter().map(RoomId::new).collect(),
        users: texts(body, "users")?.into_iter().map(UserId::new).collect(),
        written: flag(body, "written")?,
        everything: flag(body, "everything")?,
        from_ms: moment(body, "from_ms")?,
        to_ms: moment(body, "to_ms")?,
        reason: text(body, "reason")?.unwrap_or_default(),
        matter: text(body, "matter")?,
        review_ms: moment(body, "review_ms")?,
        ..Hold::default()
    })
}

fn text(body: &Map<String, Value>, key: &str) -> Result<Option<String>, ApiError> {
    match body.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(ApiError::bad_json(format!("{key} must be a string"))),
    }
}

fn texts(body: &Map<String, Value>, key: &str) -> Result<Vec<String>, ApiError> {
    let wrong = || ApiError::bad_json(format!("{key} must be a list of strings"));
    match body.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list
            .iter()
            .map(|one| one.as_str().map(str::to_owned).ok_or_else(wrong))
            .collect(),
        Some(_) => Err(wrong()),
    }
}

fn flag(body: &Map<String, Value>, key: &str) -> Result<bool, ApiError> {
    match body.get(key) {
        None => Ok(false),
        Some(Value::Bool(is)) => Ok(*is),
        Some(_) => Err(ApiError::bad_json(format!("{key} must be a boolean"))),
    }
}

fn moment(body: &Map<String, Value>, key: &str) -> Result<Option<Millis>, ApiError> {
    match body.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_i64() {
            Some(ms) => crate::time::check_timestamp(ms)
                .map(Some)
                .map_err(|said| ApiError::bad_json(format!("{key}: {said}"))),
            None => Err(ApiError::bad_json(format!(
                "{key} must be milliseconds since 1970"
            ))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_is_read_whole_or_refused() {
        let of = |text: &str| {
            let body = json::object(text.as_bytes(), Body::Required).expect("an object");
            read(&body).map_err(|failure| failure.error)
        };
        let whole = of(
            r#"{"name": "n", "rooms": ["!a:b"], "users": ["@u:s"], "written": true, "everything": false,
            "from_ms": 1, "to_ms": 1600000000000, "reason": "r", "matter": "m", "review_ms": 1600000000000}"#,
        );
        let whole = whole.expect("all of it");
        assert_eq!((whole.rooms.len(), whole.users.len()), (1, 1));
        assert_eq!(whole.matter.as_deref(), Some("m"));
        assert!(whole.written);
        for wrong in [
            r#"{"room": "!a:b"}"#,
            r#"{"rooms": "!a:b"}"#,
            r#"{"rooms": [5]}"#,
            r#"{"name": 5}"#,
            r#"{"from_ms": "2026-01-01"}"#,
            r#"{"from_ms": 1600000000}"#,
            r#"{"everything": 1}"#,
            r#"{"released": null}"#,
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
