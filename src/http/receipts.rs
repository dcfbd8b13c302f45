//! `GET /_roomkeeper/v1/receipts`, `…/receipts/verify`, `…/receipts/{reference}`, `…/receipts/{reference}/proof`,
//! `POST …/receipts/{reference}/forget`.
//!
//! Our own endpoints: what was done, a receipt each. A reference is a job, a hold, or the number of a receipt. A line is
//! given as the text that it is, because its hash is over every byte.

use serde_json::json;

use super::handlers::Response;
use super::json::{self, ApiError, Body};
use super::{Api, Context};

/// Receipts of a page, where nothing is said.
const DEFAULT_LIMIT: usize = 100;

/// Most receipts of a page.
const MOST: usize = 1_000;

/// A page of receipts, oldest first, with a checkpoint of all: `from` is the number of the first.
pub fn list(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let from = number(ctx, "from")?.unwrap_or(0);
    let limit = number(ctx, "limit")?.map_or(DEFAULT_LIMIT, |n| usize::try_from(n).unwrap_or(MOST));
    // First, so that whoever reads page by page up to its number has all of it.
    let (checkpoint, key) = api.keeper.sign_receipts()?;
    let receipts = api.keeper.receipts(from, limit.min(MOST))?;
    let next = receipts.last().map(|last| last.seq + 1);
    Ok(json::json(
        200,
        &json!({"receipts": receipts, "next": next, "checkpoint": checkpoint, "key": key.to_string()}),
    ))
}

/// Whether all of them are what they were.
pub fn verify(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    Ok(json::json(200, &api.keeper.verify_receipts()?))
}

/// Those of one job, hold, or number.
pub fn get(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let receipts = api.keeper.receipts_of(ctx.parameter(0))?;
    Ok(json::json(200, &json!({ "receipts": receipts })))
}

/// The same, with what proves them.
pub fn prove(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let proofs = api.keeper.prove_receipts(ctx.parameter(0))?;
    Ok(json::json(200, &json!({ "proofs": proofs })))
}

/// Forgets what they say, for the reason that the body gives, and answers with their numbers.
pub fn forget(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let who = api.admin(ctx)?;
    let body = json::object(&ctx.request.body, Body::Required)?;
    let reason = match body.get("reason") {
        None => String::new(),
        Some(reason) => reason
            .as_str()
            .ok_or_else(|| ApiError::bad_json("reason must be a string".to_owned()))?
            .to_owned(),
    };
    let keeper = api.keeper.on_behalf_of(who.as_str());
    let numbers = keeper.forget_receipts(ctx.parameter(0), &reason)?;
    Ok(json::json(200, &json!({ "forgotten": numbers })))
}

fn number(ctx: &Context, name: &str) -> Result<Option<u64>, ApiError> {
    let found = ctx.query.iter().find(|(known, _)| known == name);
    let Some((_, value)) = found else {
        return Ok(None);
    };
    value.parse().map(Some).map_err(|_| {
        ApiError::new(
            400,
            "M_INVALID_PARAM",
            format!("Query parameter '{name}' must be a whole number"),
        )
    })
}
