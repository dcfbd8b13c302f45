//! `POST /_synapse/admin/v1/purge_history/{room_id}[/{event_id}]` and
//! `GET /_synapse/admin/v1/purge_history_status/{purge_id}`.
//!
//! Source: Synapse, `docs/admin_api/purge_history_api.md`; behaviour.md H-20 to H-22.

use serde_json::{Map, Value, json};

use super::handlers::Response;
use super::json::{self, ApiError, Body};
use super::{Api, Context};
use crate::ids::{EventId, RoomId};
use crate::keeper::PurgeOptions;
use crate::point::PurgePoint;
use crate::time::{Millis, check_timestamp};

/// Starts a purge and answers its id at once.
pub fn start(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let who = api.admin(ctx)?;
    let body = json::object(&ctx.request.body, Body::Optional)?;
    let point = point(ctx.parameters.get(1).map(String::as_str), &body)?;
    let options = PurgeOptions {
        delete_local_events: json::flag(&body, "delete_local_events")?,
        strict: json::flag(&body, "strict")?,
        media: json::media(&body)?,
        ..PurgeOptions::default()
    };
    let keeper = api.keeper_as_planned(ctx, &who, &body)?;
    let id = keeper.purge_history(&RoomId::from(ctx.parameter(0)), point, options)?;
    Ok(json::json(200, &json!({"purge_id": id})))
}

/// The state of a purge that runs, or ended less than 24 hours ago.
pub fn status(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let id = ctx.parameter(0);
    let Some(status) = api.keeper.purge_status(id)? else {
        return Err(ApiError::not_found(format!("purge id '{id}' not found")));
    };
    let mut body = json!({"status": status.status});
    if let Some(error) = status.error.filter(|error| !error.is_empty()) {
        body["error"] = error.into();
    }
    Ok(json::json(200, &body))
}

/// The year 5138: nobody means a later time.
const LATEST_MS: i64 = 99_999_999_999_999;

/// Where a purge goes up to: the event in the path before the one in the body, and an event before a time.
pub(super) fn point(
    event_in_path: Option<&str>,
    body: &Map<String, Value>,
) -> Result<PurgePoint, ApiError> {
    if let Some(event) = event_in_path {
        return Ok(PurgePoint::BeforeEvent(EventId::from(event)));
    }
    match body.get("purge_up_to_event_id") {
        None | Some(Value::Null) => {}
        Some(Value::String(event)) => {
            return Ok(PurgePoint::BeforeEvent(EventId::from(event.as_str())));
        }
        Some(_) => return Err(ApiError::bad_json("purge_up_to_event_id must be a string")),
    }
    match (body.get("purge_up_to_ts"), body.get("purge_up_to_token")) {
        // Ours: a historic pagination token, for what the library and the command line can say, too.
        (None, Some(Value::String(token))) => Ok(PurgePoint::BeforeToken(token.clone())),
        (None, _) => Err(ApiError::bad_json(
            "must specify purge_up_to_event_id or purge_up_to_ts",
        )),
        (Some(ts), _) => match ts.as_i64() {
            // Microseconds: they would be the future, and everything would go (R-55). Ten digits are the past, and nothing.
            Some(ts) if ts > 0 => match check_timestamp(ts) {
                Err(why) if ts > LATEST_MS => Err(ApiError::new(
                    400,
                    "M_INVALID_PARAM",
                    format!("purge_up_to_ts: {why}"),
                )),
                _ => Ok(PurgePoint::BeforeTs(Millis(ts))),
            },
            Some(ts) => Ok(PurgePoint::BeforeTs(Millis(ts))),
            None => Err(ApiError::bad_json("purge_up_to_ts must be an int")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(event: Option<&str>, body: &str) -> Result<PurgePoint, String> {
        let body = json::object(body.as_bytes(), Body::Optional).expect("an object");
        point(event, &body).map_err(|failure| {
            assert_eq!((failure.status, failure.errcode), (400, "M_BAD_JSON"));
            failure.error
        })
    }

    #[test]
    fn the_path_wins_over_the_body_and_an_event_over_a_time() {
        let event = |id: &str| Ok(PurgePoint::BeforeEvent(EventId::from(id)));
        let both = r#"{"purge_up_to_event_id": "$b", "purge_up_to_ts": 5}"#;
        assert_eq!(read(Some("$p"), both), event("$p"));
        assert_eq!(read(Some(""), both), event(""));
        assert_eq!(
            read(Some("$p"), r#"{"purge_up_to_event_id": 5}"#),
            event("$p")
        );
        assert_eq!(read(None, both), event("$b"));
        assert_eq!(
            read(None, r#"{"purge_up_to_event_id": "", "purge_up_to_ts": 5}"#),
            event("")
        );
        assert_eq!(
            read(
                None,
                r#"{"purge_up_to_event_id": "$b", "purge_up_to_ts": "x"}"#
            ),
            event("$b")
        );
        let time = Ok(PurgePoint::BeforeTs(Millis(-5)));
        assert_eq!(
            read(
                None,
                r#"{"purge_up_to_event_id": null, "purge_up_to_ts": -5}"#
            ),
            time
        );
    }

    #[test]
    fn microseconds_are_no_time_to_purge_up_to() {
        let ask = |ts: i64| {
            let body = object(&format!(r#"{{"purge_up_to_ts": {ts}}}"#));
            point(None, &body)
        };
        for ts in [1_767_225_600_000_000, 100_000_000_000_000, i64::MAX] {
            let failure = ask(ts).expect_err("refused");
            assert_eq!((failure.status, failure.errcode), (400, "M_INVALID_PARAM"));
            assert!(failure.error.contains("Microseconds?"), "{}", failure.error);
        }
        for ts in [1_767_225_600, 1_767_225_600_000, 99_999_999_999_999, -1, 0] {
            assert_eq!(ask(ts), Ok(PurgePoint::BeforeTs(Millis(ts))), "{ts}");
        }
    }

    fn object(body: &str) -> Map<String, Value> {
        json::object(body.as_bytes(), Body::Required).expect("an object")
    }

    #[test]
    fn what_is_no_point_is_said_in_synapses_words() {
        for body in ["", "{}", r#"{"purge_up_to_event_id": null}"#] {
            assert_eq!(
                read(None, body),
                Err("must specify purge_up_to_event_id or purge_up_to_ts".into()),
                "{body}"
            );
        }
        for ts in [
            "true",
            "false",
            "null",
            "\"5\"",
            "5.0",
            "1e3",
            "[]",
            "99999999999999999999",
        ] {
            let body = format!(r#"{{"purge_up_to_ts": {ts}}}"#);
            assert_eq!(
                read(None, &body),
                Err("purge_up_to_ts must be an int".into()),
                "{ts}"
            );
        }
        for event in ["5", "false", "[]", "{}"] {
            let body = format!(r#"{{"purge_up_to_event_id": {event}, "purge_up_to_ts": 5}}"#);
            assert_eq!(
                read(None, &body),
                Err("purge_up_to_event_id must be a string".into()),
                "{event}"
            );
        }
    }
}
