//! `GET /_roomkeeper/v1/jobs`, `GET /_roomkeeper/v1/jobs/{id}`, `POST /_roomkeeper/v1/jobs/{id}/cancel`, `…/pause` and
//! `…/continue`, and `POST /_roomkeeper/v1/jobs/resume`.
//!
//! Our own endpoints: every job on record, with its progress. An id of no job is 404 `M_NOT_FOUND`.

use serde_json::json;

use super::handlers::Response;
use super::json::{self, ApiError, Body};
use super::{Api, Context};
use crate::error::Error;
use crate::ids::JobId;
use crate::keeper::job_view;

/// All jobs, oldest first: `{"jobs": [...]}`.
pub fn list(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let jobs: Vec<_> = api.keeper.jobs()?.iter().map(job_view).collect();
    Ok(json::json(200, &json!({"jobs": jobs})))
}

/// One job.
pub fn get(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let id = JobId::from(ctx.parameter(0));
    let job = api.keeper.job(&id)?.ok_or(Error::NoSuchJob(id))?;
    Ok(json::json(200, &job_view(&job)))
}

/// Leaves a job where it is, at the next whole point, and answers with the job as it is now. No start takes it up.
pub fn pause(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let who = api.admin(ctx)?;
    json::object(&ctx.request.body, Body::Optional)?;
    let id = JobId::from(ctx.parameter(0));
    api.keeper.pause(&id)?;
    log::info!("job {id}: {who} has it paused");
    get(api, ctx)
}

/// Goes on with a job that is paused, or waits for a word because an older database was put back.
pub fn go_on(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let who = api.admin(ctx)?;
    json::object(&ctx.request.body, Body::Optional)?;
    let id = JobId::from(ctx.parameter(0));
    api.keeper.continue_job(&id)?;
    log::info!("job {id}: {who} has it go on");
    get(api, ctx)
}

/// Goes on with every job that was interrupted or waits for a word: `{"job_ids": [...]}`.
pub fn resume(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let who = api.admin(ctx)?;
    json::object(&ctx.request.body, Body::Optional)?;
    let ids = api.keeper.resume()?;
    log::info!("{who} has what was interrupted go on");
    Ok(json::json(200, &json!({"job_ids": ids})))
}

/// Asks a job to end at the next whole point, and answers with the job as it is now. The body is optional and says
/// nothing. A job that has ended stays as it is.
pub fn cancel(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let who = api.admin(ctx)?;
    json::object(&ctx.request.body, Body::Optional)?;
    let id = JobId::from(ctx.parameter(0));
    api.keeper.cancel(&id)?;
    log::info!("job {id}: {who} asks for its end");
    get(api, ctx)
}
