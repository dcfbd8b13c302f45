//! The server, met as clients meet it: over sockets, with good and bad manners.

#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used)]

mod crowd;
mod manners;
mod process;
mod support;
