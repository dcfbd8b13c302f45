//! `GET /_roomkeeper/v1/rooms`: what every room has and takes.
//!
//! Our own endpoint. The parameters of the query are the command line's words: `sort`, `limit`, and as often as is wanted
//! any condition by its own name (`empty`, `larger-than=1G`, `name=old-*`, …), `only=CONDITION` and `not=CONDITION`.

use super::handlers::Response;
use super::json::{self, ApiError};
use super::{Api, Context};
use crate::keeper::RoomQuery;
use crate::rooms::{Condition, Sort};

/// Rooms of an answer when nothing is said.
const DEFAULT_LIMIT: usize = 1_000;

/// Most conditions of a request.
const MOST_CONDITIONS: usize = 1_000;

/// The rooms that are meant, with sums.
pub fn list(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let query = query(&ctx.query)?;
    Ok(json::json(200, &api.keeper.rooms(&query)?))
}

fn query(parameters: &[(String, String)]) -> Result<RoomQuery, ApiError> {
    let mut query = RoomQuery {
        limit: Some(DEFAULT_LIMIT),
        ..RoomQuery::default()
    };
    if parameters.len() > MOST_CONDITIONS {
        return Err(invalid(format!(
            "no more than {MOST_CONDITIONS} conditions, please"
        )));
    }
    for (name, value) in parameters {
        match name.as_str() {
            "sort" => query.sort = Sort::parse(value).map_err(invalid)?,
            "limit" => {
                query.limit = Some(value.parse().map_err(|_| {
                    invalid("Query parameter 'limit' must be a whole number".to_owned())
                })?);
            }
            "only" => query
                .selectors
                .only
                .push(Condition::parse(value).map_err(invalid)?),
            "not" => query
                .selectors
                .not
                .push(Condition::parse(value).map_err(invalid)?),
            name => {
                let text = match value.as_str() {
                    "" | "true" => name.to_owned(),
                    value => format!("{name}={value}"),
                };
                query
                    .selectors
                    .only
                    .push(Condition::parse(&text).map_err(invalid)?);
            }
        }
    }
    Ok(query)
}

fn invalid(text: String) -> ApiError {
    ApiError::new(400, "M_INVALID_PARAM", text)
}
