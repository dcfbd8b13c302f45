//! What the suites share: databases of rooms that HTTP cannot make, and a plain model to hold a purge against.
//!
//! Every suite takes what it needs; none takes everything.
#![allow(dead_code)]

pub mod archives;
pub mod arrivals;
#[cfg(feature = "postgres")]
pub mod cluster;
pub mod draft;
#[macro_use]
pub mod engine;
pub mod extras;
pub mod groups;
pub mod ids;
pub mod litter;
pub mod model;
pub mod rooms;
pub mod samples;
pub mod seed;
#[cfg(feature = "daemon")]
pub mod served;
#[cfg(feature = "postgres")]
pub mod server;
pub mod state_model;
pub mod tables;
pub mod work;
