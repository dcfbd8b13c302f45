//! A dry run: who would be moved, and which rows of which tables would go. It reads only.

use std::collections::BTreeMap;

use serde::Serialize;

use super::request::Request;
use super::run::{OWN_CLIENTS_NOTE, other_servers_note};
use crate::error::Error;
use crate::ids::{RoomId, UserId};
use crate::store::db::Db;
use crate::store::event_rows::RowCounts;
use crate::store::room_rows::{self, Unknown};
use crate::store::space;

/// What a deletion would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The room.
    pub room_id: RoomId,
    /// Whether the homeserver knows it.
    pub is_known: bool,
    /// Local users who would be moved out, with what they are now: `join`, `invite` or `knock` (D-7).
    pub users_to_move: BTreeMap<UserId, String>,
    /// Aliases that would lead to the new room, if there is to be one.
    pub aliases_to_move: Vec<String>,
    /// Other servers in the room.
    pub other_servers: Vec<String>,
    /// Rows that would be removed, by table; without those of the events with which people leave.
    pub rows_removed: RowCounts,
    /// Tables that roomkeeper does not know and that have rows of the room; these rows stay, or stop the delete.
    pub unknown_tables: Vec<Unknown>,
    /// What a person should know before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Bytes the database file holds free already, before the deletion.
    pub reclaimable_bytes: u64,
}

/// What a person should know before: servers that will not hear of it, and tables that are not known.
pub fn warnings(
    db: &Db,
    room: &RoomId,
    request: &Request,
    server_name: &str,
) -> Result<Vec<String>, Error> {
    let mut warnings = Vec::new();
    if request.purge {
        let servers = room_rows::other_servers(db, room, server_name)?;
        if !servers.is_empty() {
            warnings.push(other_servers_note(&servers));
        }
        for unknown in room_rows::unknown(db, room)? {
            warnings.push(format!(
                "the table {}, which is not known, has {} rows of this room",
                unknown.table, unknown.rows
            ));
        }
    }
    Ok(warnings)
}

/// Plans `request`; the connection may be one that writes nothing but temporary tables.
pub fn plan(db: &Db, room: &RoomId, request: &Request, server_name: &str) -> Result<Plan, Error> {
    db.read("plan a deletion", |db| {
        let is_known = room_rows::is_known(db, room)?;
        let people = if is_known {
            room_rows::local_users_to_move(db, room, server_name)?
        } else {
            Vec::new()
        };
        let other_servers = room_rows::other_servers(db, room, server_name)?;
        let mut notes = Vec::new();
        let mut rows_removed = RowCounts::new();
        let mut unknown_tables = Vec::new();
        if request.purge {
            rows_removed = room_rows::count(db, room)?;
            unknown_tables = room_rows::unknown(db, room)?;
            if !people.is_empty() {
                notes.push(OWN_CLIENTS_NOTE.to_owned());
            }
            if !other_servers.is_empty() {
                notes.push(other_servers_note(&other_servers));
            }
        }
        let moves_aliases = is_known && request.new_room_user_id.is_some();
        Ok(Plan {
            room_id: room.clone(),
            is_known,
            users_to_move: people.into_iter().collect(),
            aliases_to_move: if moves_aliases {
                room_rows::aliases(db, room)?
            } else {
                Vec::new()
            },
            other_servers,
            rows_removed,
            unknown_tables,
            notes,
            reclaimable_bytes: space::reclaimable_bytes(db)?,
        })
    })
}
