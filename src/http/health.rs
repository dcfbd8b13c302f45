//! `GET /_roomkeeper/v1/health`: alive or not, and nothing else, because it needs no token.

use serde_json::json;

use super::handlers::Response;
use super::json::{self, ApiError};
use super::{Api, Context};

/// 200 when the database answers and the daemon is not stopping; 503 otherwise.
pub fn get(api: &Api, _call: &Context) -> Result<Response, ApiError> {
    if api.keeper.is_stopping() || !api.keeper.is_healthy() {
        return Err(ApiError::new(503, "M_UNKNOWN", "not alive"));
    }
    Ok(json::json(200, &json!({"alive": true})))
}
