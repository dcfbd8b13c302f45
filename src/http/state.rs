//! `POST /_roomkeeper/v1/state/sweep`: lets every state group of the server go that no event has, or with
//! `{"dry_run": true}` says which those are.
//!
//! Our own endpoint. The answer is `{"job_id": …}`, a job that is asked after like every other, or the plan.

use serde_json::{Value, json};

use super::handlers::Response;
use super::json::{self, ApiError, Body};
use super::{Api, Context};

/// Starts a sweep, or plans it.
pub fn sweep(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let who = api.admin(ctx)?;
    let body = json::object(&ctx.request.body, Body::Optional)?;
    if let Some(key) = body.keys().find(|key| *key != "dry_run") {
        return Err(ApiError::bad_json(format!(
            "unknown member {key:?}; there is dry_run"
        )));
    }
    match body.get("dry_run") {
        None | Some(Value::Bool(false)) => {}
        Some(Value::Bool(true)) => return Ok(json::json(200, &api.keeper.plan_state_sweep()?)),
        // What destroys goes by no guess.
        Some(_) => return Err(ApiError::bad_json("dry_run must be true or false")),
    }
    let id = api.keeper_for(ctx, &who).sweep_state()?;
    log::info!("state sweep {id}: {who} asks for it");
    Ok(json::json(200, &json!({ "job_id": id })))
}
