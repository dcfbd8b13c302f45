//! roomkeeper

#[cfg(feature = "daemon")]
pub mod http;
