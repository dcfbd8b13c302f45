//! What is about the whole server: `POST /_roomkeeper/v1/state/sweep` lets every state group go that no event has,
//! `POST /_roomkeeper/v1/state/compress` stores the same states in fewer rows,
//! `POST /_roomkeeper/v1/repair` mends what a check finds; with `{"dry_run": true}` they say what they would do.
//!
//! Our own endpoints. The answer is `{"job_id": …}`, a job that is asked after like every other, or the plan.

use serde_json::{Value, json};

use super::handlers::Response;
use super::json::{self, ApiError, Body};
use super::{Api, Context};
use crate::keeper::CompressRequest;
use crate::keeper::repair::RepairRequest;
use crate::rooms::Selectors;

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

/// Stores the states of rooms in fewer rows, or plans it.
pub fn compress(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let who = api.admin(ctx)?;
    let body = json::object(&ctx.request.body, Body::Optional)?;
    let known = ["dry_run", "selectors"];
    if let Some(key) = body.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(ApiError::bad_json(format!(
            "unknown member {key:?}; there are dry_run and selectors"
        )));
    }
    let is_dry_run = match body.get("dry_run") {
        None | Some(Value::Bool(false)) => false,
        Some(Value::Bool(true)) => true,
        Some(_) => return Err(ApiError::bad_json("dry_run must be true or false")),
    };
    let selectors = match body.get("selectors") {
        None | Some(Value::Null) => Selectors::default(),
        Some(said) => serde_json::from_value(said.clone())
            .map_err(|e| ApiError::new(400, "M_INVALID_PARAM", format!("selectors: {e}")))?,
    };
    let request = CompressRequest { selectors };
    if is_dry_run {
        return Ok(json::json(200, &api.keeper.plan_state_compress(&request)?));
    }
    let id = api.keeper_for(ctx, &who).compress_state(&request)?;
    log::info!("state compression {id}: {who} asks for it");
    Ok(json::json(200, &json!({ "job_id": id })))
}

/// Mends what a check finds, all of it or by `rules`; or plans it.
pub fn repair(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let who = api.admin(ctx)?;
    let body = json::object(&ctx.request.body, Body::Optional)?;
    let known = ["dry_run", "rules"];
    if let Some(key) = body.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(ApiError::bad_json(format!(
            "unknown member {key:?}; there are dry_run and rules"
        )));
    }
    let is_dry_run = match body.get("dry_run") {
        None | Some(Value::Bool(false)) => false,
        Some(Value::Bool(true)) => true,
        Some(_) => return Err(ApiError::bad_json("dry_run must be true or false")),
    };
    let rules = match body.get("rules") {
        None => Vec::new(),
        Some(rules) => serde_json::from_value::<Vec<String>>(rules.clone())
            .map_err(|_| ApiError::bad_json("rules must be a list like [\"I-5\"]"))?,
    };
    let request = RepairRequest::of(&rules).map_err(ApiError::bad_json)?;
    if is_dry_run {
        return Ok(json::json(200, &api.keeper.plan_repair(&request)?));
    }
    let id = api.keeper_for(ctx, &who).repair(&request)?;
    log::info!("repair {id}: {who} asks for it");
    Ok(json::json(200, &json!({ "job_id": id })))
}
