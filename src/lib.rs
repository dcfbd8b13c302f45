//! roomkeeper

#[cfg(feature = "daemon")]
pub mod http;

#[cfg(feature = "daemon")]
pub mod client;
