//! `GET /_synapse/admin/v2/users` and `GET /_synapse/admin/v3/users`: this server's users, in pages.
//!
//! Source: Synapse, `docs/admin_api/user_admin_api.md`, "List Accounts". Both are the same but for `deactivated`: v2 shows
//! closed accounts beside the others where it is true, v3 those alone.

use serde_json::json;

use super::handlers::Response;
use super::json::{self, ApiError};
use super::{Api, Context, query};
use crate::store::user_list::{self, UserQuery};

/// Users of a page when nothing is said.
const DEFAULT_LIMIT: i64 = 100;

/// Most users of a page, whatever is said.
const MAX_LIMIT: i64 = 5000;

/// Where closed accounts are asked for by `deactivated`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    V2,
    V3,
}

/// A page of the list, as version 2 of the API has it.
pub fn list_v2(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    list(api, ctx, Version::V2)
}

/// A page of the list, as version 3 of the API has it.
pub fn list_v3(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    list(api, ctx, Version::V3)
}

fn list(api: &Api, ctx: &Context, version: Version) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let wanted = wanted(ctx, version, api.keeper.config().delegated_auth)?;
    let (users, total) = api.keeper.users(&wanted, &ctx.request.limit)?;
    let next = wanted.from.saturating_add(wanted.limit);
    let told = i64::try_from(users.len()).unwrap_or(i64::MAX);
    let mut body = json!({"users": users, "total": total});
    if next < total {
        body["next_token"] = wanted.from.saturating_add(told).to_string().into();
    }
    Ok(json::json(200, &body))
}

fn wanted(ctx: &Context, version: Version, is_delegated: bool) -> Result<UserQuery, ApiError> {
    let text = |name| {
        let said = query::first(ctx, name).filter(|said| !said.is_empty());
        said.map(str::to_owned)
    };
    let from = query::count(ctx, "from")?.unwrap_or(0);
    let limit = query::count(ctx, "limit")?.unwrap_or(DEFAULT_LIMIT);
    let guests = query::truth(ctx, "guests")?.unwrap_or(true);
    if is_delegated && guests {
        return Err(query::invalid(
            "The guests parameter is not supported when delegating to MAS.",
        ));
    }
    let deactivated = query::truth(ctx, "deactivated")?;
    Ok(UserQuery {
        name: text("name"),
        user_id: text("user_id"),
        guests,
        deactivated: match version {
            Version::V2 => (deactivated != Some(true)).then_some(false),
            Version::V3 => deactivated,
        },
        locked: query::truth(ctx, "locked")?.unwrap_or(false),
        admins: query::truth(ctx, "admins")?,
        order_by: query::one_of(ctx, "order_by", &user_list::orders())?.to_owned(),
        is_backwards: query::is_backwards(ctx)?,
        not_types: query::all(ctx, "not_user_type")
            .into_iter()
            .map(str::to_owned)
            .collect(),
        from,
        limit: limit.min(MAX_LIMIT),
    })
}
