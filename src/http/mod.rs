//! The HTTP doors: Synapse's paths, and a few of our own, over TCP and Unix sockets.
//!
//! A request passes the [`gate`], which speaks HTTP with clients; then the [`desk`], whose threads take requests one
//! by one; then the [`route`] to one file per endpoint. Endpoints translate: words of [`wire`] into calls of the
//! [`Keeper`](crate::Keeper), and its answers back. They decide nothing themselves.

pub mod auth;
pub mod desk;
pub mod gate;
pub mod route;
pub mod wire;

mod block;
mod delete_room;
mod door;
mod health;
mod jobs;
mod messages;
mod plan;
mod private;
mod purge_history;
mod rooms;
mod site;

pub use self::door::HttpDoor;
pub use self::site::{Call, Site, serve};
