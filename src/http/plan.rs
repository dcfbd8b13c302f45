//! `POST /_roomkeeper/v1/plan` and `POST /_roomkeeper/v1/retention`.
//!
//! Our own endpoints. A plan is what a purge or a retention run would do now; it changes nothing. The second one runs
//! retention now, as jobs.

use serde_json::{Map, Value, json};

use super::handlers::Response;
use super::json::{self, ApiError, Body};
use super::purge_history;
use super::{Api, Context};
use crate::ids::{JobId, RoomId};
use crate::keeper::PurgeOptions;
use crate::policy::{LifetimeRange, Retention};
use crate::time::{Millis, parse_duration_with_unit};

/// `{"room_id": …}` with the members of a purge's body plans that purge. `{"retention": {…}}` plans the retention jobs:
/// all of them, `{"job": N}` one, `{"shortest_max_lifetime": …, "longest_max_lifetime": …}` a range; with `"exact": true`
/// row by row. With the policies of our own, or with `{"policy": NAME}` one of them alone.
pub fn plan(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let body = json::object(&ctx.request.body, Body::Required)?;
    if let Some(retention) = body.get("retention") {
        if body.len() > 1 {
            return Err(ApiError::bad_json(
                "retention is planned for the server as a whole: room_id does not go with it",
            ));
        }
        let wanted = match retention {
            Value::Object(wanted) => wanted.clone(),
            Value::Null => Map::new(),
            _ => return Err(ApiError::bad_json("retention must be an object")),
        };
        let exact = json::flag(&wanted, "exact")?;
        let mut plans = Vec::new();
        for range in ranges(&api.keeper.config().retention, &wanted)? {
            plans.push(api.keeper.plan_retention(range, exact)?);
        }
        let policies = match policy(&wanted)? {
            None if names_job(&wanted) => Vec::new(),
            name => api.keeper.plan_policies(name)?,
        };
        let answer = json!({ "plans": plans, "policies": policies });
        return Ok(json::json(200, &answer));
    }
    let Some(room) = body.get("room_id").and_then(Value::as_str) else {
        return Err(ApiError::bad_json("must specify room_id or retention"));
    };
    let point = purge_history::point(None, &body)?;
    let options = PurgeOptions {
        delete_local_events: json::flag(&body, "delete_local_events")?,
        strict: json::flag(&body, "strict")?,
        media: json::media(&body)?,
        ..PurgeOptions::default()
    };
    let plan = api
        .keeper
        .plan_purge(&RoomId::from(room), &point, options)?;
    Ok(json::json(200, &plan))
}

/// Runs the retention jobs and the policies of our own now, all of them or what the body names as for a plan:
/// `{"job_ids": […]}`, which are fewer where a policy takes no room.
pub fn run(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let who = api.admin(ctx)?;
    let mut wanted = json::object(&ctx.request.body, Body::Optional)?;
    let keeper = api.keeper_as_planned(ctx, &who, &wanted)?;
    let is_bound = matches!(wanted.remove("plan"), Some(Value::String(_)));
    let mut ids: Vec<JobId> = Vec::new();
    let config = api.keeper.config();
    let is_disabled = wanted.is_empty() && !config.retention.enabled;
    if is_disabled && config.policies.is_empty() {
        return Err(ApiError::bad_json(
            "retention is not enabled: say which job, or which lifetimes",
        ));
    }
    let mut refused = None;
    let ranges = match is_disabled {
        true => Vec::new(),
        false => ranges(&config.retention, &wanted)?,
    };
    let names: Vec<&str> = match policy(&wanted)? {
        Some(name) => vec![name],
        None if names_job(&wanted) => Vec::new(),
        None => {
            let all = config.policies.iter();
            all.map(|policy| policy.name.as_str()).collect()
        }
    };
    if is_bound && (ranges.len() != 1 || !names.is_empty()) {
        return Err(ApiError::bad_json(
            "a plan is of one job's rooms: say which job, or which lifetimes",
        ));
    }
    let ranges = ranges.into_iter().map(|range| {
        let id = keeper.purge_history_for_rooms_in_range(range.shortest, range.longest);
        id.map(Some)
    });
    let policies = names
        .into_iter()
        .map(|name| keeper.run_policy(name).map(|started| started.job_id));
    for started in ranges.chain(policies) {
        match started {
            Ok(None) => {}
            Ok(Some(id)) => {
                log::info!("retention run {id}: {who} asks for it");
                ids.push(id);
            }
            // The ids of those that run already must not be lost.
            Err(e) if !ids.is_empty() => {
                refused = Some(e);
                break;
            }
            Err(e) => return Err(e.into()),
        }
    }
    let mut answer = json!({ "job_ids": ids });
    if let Some(refused) = refused {
        answer["error"] = refused.to_string().into();
        answer["error_code"] = refused.code().into();
    }
    Ok(json::json(200, &answer))
}

const MEMBERS: &[&str] = &[
    "job",
    "shortest_max_lifetime",
    "longest_max_lifetime",
    "exact",
    "policy",
];

/// The policy of our own that is named.
fn policy(wanted: &Map<String, Value>) -> Result<Option<&str>, ApiError> {
    match wanted.get("policy") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) => Ok(Some(name)),
        Some(_) => Err(ApiError::bad_json("policy must be the name of a policy")),
    }
}

/// Whether a range of lifetimes is named; a bound that is given as null is no bound, and names one all the same.
fn names_range(wanted: &Map<String, Value>) -> bool {
    let bounds = ["shortest_max_lifetime", "longest_max_lifetime"];
    bounds.iter().any(|key| wanted.contains_key(*key))
}

/// Whether a retention job or a range of lifetimes is named, which the policies of our own do not belong to.
fn names_job(wanted: &Map<String, Value>) -> bool {
    names_range(wanted) || wanted.get("job").is_some_and(|job| !job.is_null())
}

fn ranges(
    retention: &Retention,
    wanted: &Map<String, Value>,
) -> Result<Vec<LifetimeRange>, ApiError> {
    // A misspelt bound would be no bound, and this deletes.
    if let Some(key) = wanted.keys().find(|key| !MEMBERS.contains(&key.as_str())) {
        return Err(ApiError::bad_json(format!(
            "unknown member {key:?}; there are {}",
            MEMBERS.join(", ")
        )));
    }
    let shortest = length(wanted, "shortest_max_lifetime")?;
    let longest = length(wanted, "longest_max_lifetime")?;
    let names_range = names_range(wanted);
    if policy(wanted)?.is_some() {
        return match names_job(wanted) {
            true => Err(ApiError::bad_json(
                "a policy of our own goes with no job and no lifetimes",
            )),
            false => Ok(Vec::new()),
        };
    }
    match wanted.get("job") {
        None | Some(Value::Null) if !names_range => Ok(retention.ranges()),
        None | Some(Value::Null) => Ok(vec![LifetimeRange { shortest, longest }]),
        Some(_) if names_range => Err(ApiError::bad_json(
            "job and the bounds of a range do not go together",
        )),
        Some(number) => {
            let job = number.as_u64().and_then(|n| usize::try_from(n).ok());
            match job.and_then(|number| retention.job(number)) {
                Some(job) => Ok(vec![job.range]),
                None => Err(ApiError::not_found(format!("there is no job {number}"))),
            }
        }
    }
}

/// A length of time, as it is typed on the command line: with its unit.
fn length(wanted: &Map<String, Value>, key: &str) -> Result<Option<Millis>, ApiError> {
    match wanted.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => parse_duration_with_unit(text)
            .map(Some)
            .map_err(|said| ApiError::bad_json(format!("{key}: {said}"))),
        Some(Value::Number(count)) => Err(ApiError::bad_json(format!(
            "{key}: {count} of what? say \"{count}d\" for days"
        ))),
        Some(_) => Err(ApiError::bad_json(format!("{key} must be a duration"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::PurgeJob;
    use crate::time::days;

    #[test]
    fn ranges_are_one_job_every_job_or_one_on_demand() {
        let job = |longest| PurgeJob {
            interval: days(1),
            range: LifetimeRange {
                shortest: None,
                longest: Some(days(longest)),
            },
        };
        let retention = Retention {
            purge_jobs: vec![job(1), job(2)],
            ..Retention::default()
        };
        let of = |body: Value| {
            let found = ranges(&retention, body.as_object().expect("an object"));
            found.map(|ranges| {
                let longest = ranges.iter().map(|range| range.longest);
                longest
                    .map(|l| l.map(|l| l.0 / days(1).0))
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(of(json!({})).ok(), Some(vec![Some(1), Some(2)]));
        assert_eq!(of(json!({"job": 2})).ok(), Some(vec![Some(2)]));
        let on_demand = json!({"longest_max_lifetime": "5d", "shortest_max_lifetime": "7ms"});
        assert_eq!(of(on_demand).ok(), Some(vec![Some(5)]));
        for wrong in [json!({"job": 0}), json!({"job": 3}), json!({"job": "x"})] {
            assert_eq!(of(wrong).err().map(|f| f.status), Some(404));
        }
        for wrong in [
            json!({"longest_max_lifetime": true}),
            json!({"longest_max_lifetime": "x"}),
            json!({"longest_max_lifetime": 30}),
            json!({"shortest_max_lifetime": "30"}),
            json!({"lonest_max_lifetime": "3d"}),
            json!({"job": 1, "longest_max_lifetime": "3d"}),
        ] {
            assert_eq!(of(wrong).err().map(|f| f.errcode), Some("M_BAD_JSON"));
        }
    }
}
