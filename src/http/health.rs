//! `GET /_roomkeeper/v1/health`: alive or not, and nothing else, because it needs no token.

use serde_json::json;

use super::desk::Outbound;
use super::wire::{self, Failure};
use super::{Call, Site};

/// 200 when the database answers and the daemon is not stopping; 503 otherwise.
pub fn get(site: &Site, _call: &Call) -> Result<Outbound, Failure> {
    if site.keeper.is_stopping() || !site.keeper.is_healthy() {
        return Err(Failure::new(503, "M_UNKNOWN", "not alive"));
    }
    Ok(wire::json(200, &json!({"alive": true})))
}
