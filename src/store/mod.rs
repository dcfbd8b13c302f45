//! The cellar: every SQL statement that touches Synapse's tables lives here.
//!
//! One SQL text serves both engines where it can; parameters are `$1 … $n` in order of first appearance.
//! Tables and columns are found by looking at the catalogue (V-3), never guessed from a version number.

pub mod append;
pub mod blocks;
pub mod catalog;
pub mod check;
pub mod connections;
pub mod db;
#[cfg(feature = "postgres")]
pub mod dialect;
pub mod erase;
pub mod event_rows;
pub mod history;
pub mod homeserver;
pub mod keys;
pub mod log;
pub mod newest;
pub mod pages;
pub mod people;
pub mod points;
pub mod policies;
#[cfg(feature = "postgres")]
mod postgres;
pub mod readers;
pub mod relations;
pub mod room_rows;
pub mod rooms;
pub mod sample;
pub mod schema;
pub mod search;
mod selected;
pub mod shares;
pub mod signed;
pub mod space;
mod sqlite;
pub mod state_groups;
pub mod states;
mod unread;
pub mod users;
pub mod value;
