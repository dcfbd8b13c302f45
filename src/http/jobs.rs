//! `GET /_roomkeeper/v1/jobs`, `GET /_roomkeeper/v1/jobs/{id}` and `POST /_roomkeeper/v1/jobs/{id}/cancel`.
//!
//! Our own endpoints: every job on record, with its progress. An id of no job is 404 `M_NOT_FOUND`.

use serde_json::json;

use super::desk::Outbound;
use super::wire::{self, Body, Failure};
use super::{Call, Site};
use crate::error::Error;
use crate::ids::JobId;
use crate::keeper::job_view;

/// All jobs, oldest first: `{"jobs": [...]}`.
pub fn list(site: &Site, call: &Call) -> Result<Outbound, Failure> {
    site.admin(call)?;
    let jobs: Vec<_> = site.keeper.jobs()?.iter().map(job_view).collect();
    Ok(wire::json(200, &json!({"jobs": jobs})))
}

/// One job.
pub fn get(site: &Site, call: &Call) -> Result<Outbound, Failure> {
    site.admin(call)?;
    let id = JobId::from(call.parameter(0));
    let job = site.keeper.job(&id)?.ok_or(Error::NoSuchJob(id))?;
    Ok(wire::json(200, &job_view(&job)))
}

/// Asks a job to end at the next whole point, and answers with the job as it is now. The body is optional and says
/// nothing. A job that has ended stays as it is.
pub fn cancel(site: &Site, call: &Call) -> Result<Outbound, Failure> {
    let who = site.admin(call)?;
    wire::object(&call.inbound.body, Body::Optional)?;
    let id = JobId::from(call.parameter(0));
    site.keeper.cancel(&id)?;
    log::info!("job {id}: {who} asks for its end");
    get(site, call)
}
