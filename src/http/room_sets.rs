//! `POST /_roomkeeper/v1/sets`: purges or deletes every room of a set, or says what that would come to.
//!
//! Our own endpoint. The rooms are meant by `"selectors": {"only": [CONDITION, …], "not": [CONDITION, …]}`, by the words of
//! the command line, or by `"all_rooms": true` with `"not"`; `"rooms": [ID, …]` takes no others than these of them. With
//! `"dry_run": true` the answer is the plan, with no more than `limit` rooms told one by one; otherwise `{"job_id": …,
//! "rooms": N}`, whose job is asked after like every other; the id is null where no room is meant.

use serde_json::{Map, Value};

use super::handlers::Response;
use super::json::{self, ApiError, Body};
use super::{Api, Context, delete_room};
use crate::ids::{RoomId, UserId};
use crate::keeper::{SetAction, SetRequest};
use crate::point::PurgePoint;
use crate::rooms::Selectors;
use crate::time::{check_timestamp, parse_duration_with_unit};

/// Rooms of a plan that are told one by one when nothing is said, and at most.
const DEFAULT_LIMIT: usize = 100;
const MOST_TOLD: usize = 1_000;

const OF_EVERY_SET: &[&str] = &[
    "action",
    "selectors",
    "all_rooms",
    "rooms",
    "dry_run",
    "limit",
    "plan",
    "with_media",
    "media_not_archived",
];

const OF_A_PURGE: &[&str] = &["purge_up_to_ts", "older_than", "delete_local_events"];

const OF_A_DELETION: &[&str] = &[
    "block",
    "purge",
    "force_purge",
    "new_room_user_id",
    "room_name",
    "message",
];

/// Starts a set, or plans it.
pub fn start(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let who = api.admin(ctx)?;
    let body = json::object(&ctx.request.body, Body::Required)?;
    let request = request(&body, who.clone())?;
    if flag(&body, "dry_run")? {
        let most = match body.get("limit") {
            None => DEFAULT_LIMIT,
            Some(limit) => limit
                .as_u64()
                .and_then(|limit| usize::try_from(limit).ok())
                .ok_or_else(|| ApiError::bad_json("limit must be a whole number"))?,
        };
        let plan = api.keeper.plan_set(&request, most.min(MOST_TOLD))?;
        return Ok(json::json(200, &plan));
    }
    let keeper = api.keeper_as_planned(ctx, &who, &body)?;
    let started = keeper.start_set(&request)?;
    if let Some(id) = &started.job_id {
        log::info!("room set {id}: {who} asks for it");
    }
    Ok(json::json(200, &started))
}

fn request(body: &Map<String, Value>, who: UserId) -> Result<SetRequest, ApiError> {
    let (action, members) = match body.get("action").and_then(Value::as_str) {
        Some("purge_history") => (purge(body)?, OF_A_PURGE),
        Some("delete_room") => (
            SetAction::DeleteRoom(delete_room::request(body, who)?),
            OF_A_DELETION,
        ),
        _ => {
            return Err(ApiError::bad_json(
                "action must be purge_history or delete_room",
            ));
        }
    };
    // A misspelt condition would be no condition, and this deletes.
    let is_known = |key: &&String| {
        OF_EVERY_SET
            .iter()
            .chain(members)
            .any(|known| known == *key)
    };
    if let Some(key) = body.keys().find(|key| !is_known(key)) {
        return Err(ApiError::bad_json(format!(
            "unknown member {key:?}; there are {}, {}",
            OF_EVERY_SET.join(", "),
            members.join(", ")
        )));
    }
    let selectors = match body.get("selectors") {
        None | Some(Value::Null) => Selectors::default(),
        Some(said) => serde_json::from_value(said.clone())
            .map_err(|e| ApiError::new(400, "M_INVALID_PARAM", format!("selectors: {e}")))?,
    };
    let among = match body.get("rooms") {
        None | Some(Value::Null) => None,
        Some(rooms) => Some(
            serde_json::from_value::<Vec<String>>(rooms.clone())
                .map_err(|_| ApiError::bad_json("rooms must be an array of room ids"))?
                .into_iter()
                .map(RoomId::new)
                .collect(),
        ),
    };
    Ok(SetRequest {
        selectors,
        all_rooms: flag(body, "all_rooms")?,
        among,
        action,
    })
}

fn purge(body: &Map<String, Value>) -> Result<SetAction, ApiError> {
    let point = match (body.get("purge_up_to_ts"), body.get("older_than")) {
        (Some(ts), None) => {
            let ts = ts
                .as_i64()
                .ok_or_else(|| ApiError::bad_json("purge_up_to_ts must be an int"))?;
            // A body of ours: what the command line asks back is asked back here.
            let ts = check_timestamp(ts)
                .map_err(|why| ApiError::bad_json(format!("purge_up_to_ts: {why}")))?;
            PurgePoint::BeforeTs(ts)
        }
        (None, Some(Value::String(age))) => PurgePoint::OlderThan(
            parse_duration_with_unit(age)
                .map_err(|said| ApiError::bad_json(format!("older_than: {said}")))?,
        ),
        (None, Some(_)) => {
            return Err(ApiError::bad_json(
                "older_than must be a duration with its unit, such as \"90d\"",
            ));
        }
        _ => {
            return Err(ApiError::bad_json(
                "must specify purge_up_to_ts or older_than",
            ));
        }
    };
    Ok(SetAction::PurgeHistory {
        point,
        delete_local_events: flag(body, "delete_local_events")?,
        media: json::media(body)?,
    })
}

/// What destroys goes by no guess: a flag is true or false.
fn flag(body: &Map<String, Value>, name: &str) -> Result<bool, ApiError> {
    match body.get(name) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(_) => Err(ApiError::bad_json(format!(
            "Param '{name}' must be a boolean, if given"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::rooms::Condition;

    fn read(body: Value) -> Result<SetRequest, (u16, &'static str)> {
        let body = body.as_object().expect("an object").clone();
        request(&body, UserId::from("@a:b")).map_err(|e| (e.status, e.errcode))
    }

    #[test]
    fn a_set_is_read_and_what_is_misspelt_chooses_nothing() {
        let request = read(json!({
            "action": "purge_history", "selectors": {"only": ["empty", "larger-than=1K"], "not": ["public"]},
            "older_than": "90d", "delete_local_events": true, "rooms": ["!a:b"], "dry_run": true, "limit": 5
        }));
        let request = request.expect("read");
        assert_eq!(
            request.selectors.only,
            [Condition::Empty, Condition::LargerThan(1024)]
        );
        assert_eq!(request.selectors.not, [Condition::Public]);
        assert_eq!(request.among, Some(vec!["!a:b".into()]));
        let deletion = read(json!({"action": "delete_room", "all_rooms": true, "block": true}));
        let deletion = deletion.expect("read");
        assert!(deletion.all_rooms);
        let SetAction::DeleteRoom(asked) = deletion.action else {
            panic!("a deletion")
        };
        assert!(asked.block && asked.purge && !asked.force_purge);
        let bad = Err((400, "M_BAD_JSON"));
        for wrong in [
            json!({}),
            json!({"action": "purge"}),
            json!({"action": "purge_history"}),
            json!({"action": "purge_history", "older_than": 90}),
            json!({"action": "purge_history", "older_than": "90"}),
            json!({"action": "purge_history", "older_than": "9d", "purge_up_to_ts": 1}),
            json!({"action": "purge_history", "purge_up_to_ts": 1, "block": true}),
            json!({"action": "purge_history", "purge_up_to_ts": 1_767_225_600}),
            json!({"action": "purge_history", "purge_up_to_ts": 1_767_225_600_000_000_i64}),
            json!({"action": "purge_history", "purge_up_to_ts": 1, "delete_local_events": 1}),
            json!({"action": "delete_room", "selector": {"only": ["empty"]}}),
            json!({"action": "delete_room", "all_rooms": 1}),
            json!({"action": "delete_room", "rooms": "!a:b"}),
            json!({"action": "delete_room", "older_than": "1d"}),
        ] {
            assert_eq!(read(wrong.clone()), bad, "{wrong}");
        }
        for wrong in [
            json!({"only": ["full"]}),
            json!({"only": "empty"}),
            json!({"ony": ["empty"]}),
        ] {
            let body = json!({"action": "delete_room", "selectors": wrong});
            assert_eq!(read(body), Err((400, "M_INVALID_PARAM")), "{wrong}");
        }
    }
}
