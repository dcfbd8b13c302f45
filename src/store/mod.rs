//! Storage: every SQL statement that touches Synapse's tables lives here.
//!
//! One SQL text serves both engines where it can; parameters are `$1 … $n` in order of first appearance.
//! Tables and columns are found by looking at the catalogue (V-3), never guessed from a version number.

pub mod append;
pub mod archived;
pub mod arrival_times;
pub mod blocks;
pub mod catalog;
pub mod check;
pub mod connections;
pub mod db;
#[cfg(feature = "postgres")]
pub mod dialect;
pub mod event_rows;
mod exact_rows;
pub mod expiry;
pub mod foreign_keys;
pub mod forward_extremities;
pub mod free_pages;
pub mod going;
pub mod held;
pub mod history;
pub mod homeserver;
pub mod index_test;
pub mod left_rooms;
pub mod lookups;
pub mod media;
pub mod members;
pub mod named_rooms;
pub mod own_events;
pub mod pages;
pub mod points;
pub mod policies;
#[cfg(feature = "postgres")]
mod postgres;
pub mod prefixes;
mod push_actions;
pub mod read_limit;
pub mod reader_access;
pub mod reclaim;
mod redactions;
mod referring;
pub mod relations;
pub mod removed;
pub mod repair;
pub mod residue;
pub mod restore;
pub mod room_ages;
pub mod room_rows;
pub mod room_statistics;
pub mod rooms;
pub mod sample;
pub mod schema;
pub mod search;
pub mod sizes;
pub mod sliding_sync;
pub mod space;
pub mod spaces;
mod sqlite;
pub mod state_groups;
pub mod state_lookup;
pub mod tables;
mod temp_tables;
pub mod tx;
pub mod user_list;
pub mod users;
pub mod value;
pub mod wal;
pub mod work_lock;
