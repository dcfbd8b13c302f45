//! `GET /_roomkeeper/v1/archives`, `…/archives/verify`, `…/archives/{job}`, `…/archives/{job}/verify`,
//! `DELETE …/archives/{job}`, `POST …/archives/{job}/restore`.
//!
//! Our own endpoints: what jobs removed and what is kept of it for a while. Nothing of an archive's rows is ever answered, and no
//! private key is ever taken: what is encrypted is verified at the command line.

use serde_json::json;

use super::handlers::Response;
use super::json::{self, ApiError};
use super::{Api, Context};
use crate::error::Error;
use crate::ids::JobId;

/// Whoever asks is an admin, and there are archives.
fn admin(api: &Api, ctx: &Context) -> Result<String, ApiError> {
    let who = api.admin(ctx)?;
    match api.keeper.config().archive {
        Some(_) => Ok(who.to_string()),
        None => Err(ApiError::new(
            404,
            "M_NOT_FOUND",
            "no archives are kept: roomkeeper.archive.directory says where they are to be",
        )),
    }
}

fn all(api: &Api, ctx: &Context, verify: bool) -> Result<Response, ApiError> {
    admin(api, ctx)?;
    let archives = api.keeper.archives(verify)?;
    Ok(json::json(200, &json!({ "archives": archives })))
}

fn one(api: &Api, ctx: &Context, verify: bool) -> Result<Response, ApiError> {
    admin(api, ctx)?;
    let archive = api.keeper.archive(&JobId::from(ctx.parameter(0)), verify)?;
    Ok(json::json(200, &archive))
}

/// Every archive, oldest first.
pub fn list(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    all(api, ctx, false)
}

/// The same, with every row read that is not encrypted: `damage` and `unopened` say what could not be.
pub fn verify_all(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    all(api, ctx, true)
}

/// That of one job.
pub fn get(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    one(api, ctx, false)
}

/// The same, with every row read that is not encrypted.
pub fn verify(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    one(api, ctx, true)
}

/// Takes it away for good, and answers with what it was. A hold on any of its rooms wins.
pub fn shred(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let who = admin(api, ctx)?;
    let keeper = api.keeper.on_behalf_of(&who);
    let shredded = keeper.shred_archive(&JobId::from(ctx.parameter(0)))?;
    Ok(json::json(200, &json!({ "shredded": shredded })))
}

/// Never beside anybody: says how it is done.
pub fn restore(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    admin(api, ctx)?;
    let job = JobId::from(ctx.parameter(0));
    api.keeper.archive(&job, false)?;
    Err(Error::Refused(format!(
        "a restoration needs the database for itself alone: stop the homeserver and roomkeeper, then `roomkeeper restore {job}`"
    ))
    .into())
}
