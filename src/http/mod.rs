//! HTTP: Synapse's paths, and a few of our own, over TCP and Unix sockets.
//!
//! A request passes the [`server`], which speaks HTTP with clients; then the [`handlers`], whose threads take requests one
//! by one; then the [`route`] to one file per endpoint. Endpoints translate: words of [`json`] into calls of the
//! [`Keeper`](crate::Keeper), and its answers back. They decide nothing themselves.

pub mod auth;
pub mod handlers;
pub mod json;
pub mod route;
pub mod server;

mod api;
mod archives;
mod block;
mod context;
mod delete_room;
mod health;
mod hierarchy;
mod holds;
mod http_server;
mod introspection;
mod jobs;
mod listings;
mod lookups;
mod media;
mod messages;
mod metrics;
mod page;
mod plan;
mod private;
mod purge_history;
mod query;
mod receipts;
mod room_report;
mod room_sets;
mod rooms;
mod state;
mod users;

pub use self::api::{Api, Context, serve};
pub use self::http_server::HttpServer;
