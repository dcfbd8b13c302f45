//! `POST /_roomkeeper/v1/media` removes files that nothing refers to any more; with `{"dry_run": true}` it says which.
//!
//! Our own endpoint. The answer is `{"job_id": …}`, a job that is asked after like every other, or the plan.

use serde_json::{Value, json};

use super::handlers::Response;
use super::json::{self, ApiError, Body};
use super::{Api, Context};
use crate::keeper::MediaRequest;
use crate::time::parse_duration_with_unit;

/// Starts it, or plans it.
pub fn remove(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let who = api.admin(ctx)?;
    let body = json::object(&ctx.request.body, Body::Required)?;
    let known = [
        "dry_run",
        "older_than",
        "include_unattributable",
        "media_not_archived",
    ];
    if let Some(key) = body.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(ApiError::bad_json(format!(
            "unknown member {key:?}; there are {}",
            known.join(", ")
        )));
    }
    let flag = |name: &str| match body.get(name) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        // What destroys goes by no guess.
        Some(_) => Err(ApiError::bad_json(format!("{name} must be true or false"))),
    };
    let age = body.get("older_than").and_then(Value::as_str);
    let age =
        age.ok_or_else(|| ApiError::bad_json("older_than must be a duration like \"90d\""))?;
    let now = api.keeper.config().clock.now();
    let request = parse_duration_with_unit(age)
        .and_then(|age| MediaRequest::older_than(age, now))
        .map_err(|said| ApiError::bad_json(format!("older_than: {said}")))?;
    let request = MediaRequest {
        include_unattributable: flag("include_unattributable")?,
        media_not_archived: flag("media_not_archived")?,
        ..request
    };
    if flag("dry_run")? {
        return Ok(json::json(200, &api.keeper.plan_media(&request)?));
    }
    let id = api.keeper_for(ctx, &who).remove_media(&request)?;
    log::info!("media {id}: {who} asks for it");
    Ok(json::json(200, &json!({ "job_id": id })))
}
