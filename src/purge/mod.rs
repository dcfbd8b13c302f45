//! History purges (behaviour.md section 4): what a request would remove, and removing it in strides.

#[cfg(test)]
mod faults;
mod leap;
mod plan;
mod request;
mod run;
mod state;

pub use plan::{Plan, care_for_keys, content_bytes, plan};
pub use request::Request;
pub use run::{prepare_many, run};
