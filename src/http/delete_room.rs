//! `DELETE /_synapse/admin/v1/rooms/{room_id}`, the same under `v2`, and what became of the latter:
//! `GET /_synapse/admin/v2/rooms/{room_id}/delete_status`, `GET /_synapse/admin/v2/rooms/delete_status/{delete_id}`.
//!
//! Source: Synapse, `docs/admin_api/rooms.md`; behaviour.md H-40 to H-47.

use serde_json::{Map, Value, json};

use super::handlers::Response;
use super::json::{self, ApiError, Body};
use super::{Api, Context};
use crate::deletion::Request;
use crate::ids::{RoomId, UserId};
use crate::keeper::Keeper;

/// Deletes a room and answers what its shutdown did, when all is over (v1).
pub fn now(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let (keeper, room, request) = wanted(api, ctx)?;
    let shutdown = keeper.delete_room(&room, request)?;
    Ok(json::json(200, &shutdown))
}

/// Starts a deletion and answers its id at once (v2).
pub fn start(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let (keeper, room, request) = wanted(api, ctx)?;
    let id = keeper.shutdown_and_purge_room(&room, request)?;
    Ok(json::json(200, &json!({"delete_id": id})))
}

/// The deletions of a room that run, or ended less than 24 hours ago.
pub fn of_room(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let room = RoomId::from(ctx.parameter(0));
    if !room.is_valid() {
        let text = format!("{room} is not a legal room ID");
        return Err(ApiError::new(400, "M_UNKNOWN", text));
    }
    let mut results = Vec::new();
    for id in api.keeper.delete_ids_by_room(&room)? {
        // One may be forgotten between the two looks (S-12).
        results.extend(api.keeper.delete_status(id.as_str())?);
    }
    if results.is_empty() {
        let text = format!("No delete task for room_id '{room}' found");
        return Err(ApiError::not_found(text));
    }
    Ok(json::json(200, &json!({"results": results})))
}

/// One deletion that runs, or ended less than 24 hours ago.
pub fn status(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let id = ctx.parameter(0);
    match api.keeper.delete_status(id)? {
        Some(status) => Ok(json::json(200, &status)),
        None => Err(ApiError::not_found(format!("delete id '{id}' not found"))),
    }
}

fn wanted(api: &Api, ctx: &Context) -> Result<(Keeper, RoomId, Request), ApiError> {
    let requester = api.admin(ctx)?;
    let body = json::object(&ctx.request.body, Body::Required)?;
    let request = request(&body, requester.clone())?;
    let keeper = api.keeper_as_planned(ctx, &requester, &body)?;
    Ok((keeper, RoomId::from(ctx.parameter(0)), request))
}

/// What the body asks. The flags are judged in this order (H-40).
pub(super) fn request(body: &Map<String, Value>, requester: UserId) -> Result<Request, ApiError> {
    Ok(Request {
        requester: Some(requester),
        block: flag(body, "block", false)?,
        purge: flag(body, "purge", true)?,
        force_purge: flag(body, "force_purge", false)?,
        new_room_user_id: text(body, "new_room_user_id")?.map(UserId::new),
        room_name: text(body, "room_name")?,
        message: text(body, "message")?,
        media: json::media(body)?,
    })
}

fn flag(body: &Map<String, Value>, name: &str, default: bool) -> Result<bool, ApiError> {
    match body.get(name) {
        None => Ok(default),
        Some(Value::Bool(value)) => Ok(*value),
        Some(_) => Err(ApiError::bad_json(format!(
            "Param '{name}' must be a boolean, if given"
        ))),
    }
}

/// H-8: what is no text is refused, where Synapse would fail.
fn text(body: &Map<String, Value>, name: &str) -> Result<Option<String>, ApiError> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(ApiError::bad_json(format!(
            "Param '{name}' must be a string, if given"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::MediaFate;

    fn read(body: &str) -> Result<Request, String> {
        let body = json::object(body.as_bytes(), Body::Required).expect("an object");
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
        assert!(!plain.media.goes() && !told.media.goes());
        let with_media = read(r#"{"with_media": true}"#).expect("enough");
        assert_eq!(with_media.media, MediaFate::Go);
        for wrong in [
            r#"{"with_media": "true"}"#,
            r#"{"with_media": 1}"#,
            r#"{"media_not_archived": true}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
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
