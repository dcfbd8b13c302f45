//! A dry run: who would be moved, and which rows of which tables would go. It reads only.

use std::collections::BTreeMap;

use serde::Serialize;

use super::request::Request;
use super::run::{NOTHING_THERE, OWN_CLIENTS_NOTE, other_servers_note};
use crate::error::Error;
use crate::hold::Hold;
use crate::ids::{RoomId, UserId};
use crate::job::{MediaPlan, media_of_events};
use crate::plan_hash::{Part, PlanDigest, PlanHash};
use crate::plural::count;
use crate::store::db::Db;
use crate::store::event_rows::RowCounts;
use crate::store::media::Going;
use crate::store::room_rows::{self, Unknown};
use crate::store::{going, space};

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
    /// Media that would go with its messages, where they do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub media: Option<MediaPlan>,
    /// What a person should know before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Bytes the database file holds free already, before the deletion.
    pub reclaimable_bytes: u64,
    /// What binds a deletion to this plan, where it is bound to anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanHash>,
}

/// What there is beside a room, for the media that go with it.
#[derive(Clone, Copy)]
pub struct Beside<'a> {
    /// The holds.
    pub holds: &'a [Hold],
    /// Whether a homeserver runs.
    pub is_running: bool,
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
                "the table {}, which is not known, has {} of this room",
                unknown.table,
                count(unknown.rows, "row")
            ));
        }
    }
    Ok(warnings)
}

/// Tells `bound` all that binds a deletion of `request`: its options, who would be moved, and every event of the room where its
/// rows go.
///
/// # Errors
/// Those of the database.
pub fn bind(
    db: &Db,
    room: &RoomId,
    request: &Request,
    server_name: &str,
    beside: Beside<'_>,
    bound: &mut PlanDigest,
) -> Result<(), Error> {
    db.read("look at what was planned", |db| {
        tell(db, room, request, server_name, beside, bound).map(drop)
    })
}

fn tell(
    db: &Db,
    room: &RoomId,
    request: &Request,
    server_name: &str,
    beside: Beside<'_>,
    bound: &mut PlanDigest,
) -> Result<Option<MediaPlan>, Error> {
    bound.word(Part::Asked, "delete_room");
    for option in [request.block, request.purge, request.force_purge] {
        bound.word(Part::Asked, &option.to_string());
    }
    let new_room = request.new_room_user_id.as_ref();
    if let Some(user) = new_room {
        for word in [user.as_str(), request.room_name(), request.message()] {
            bound.word(Part::Asked, word);
        }
    }
    bound.word(Part::Rooms, room.as_str());
    if room_rows::is_known(db, room)? {
        for (user, membership) in room_rows::local_users_to_move(db, room, server_name)?
            .into_iter()
            .collect::<BTreeMap<_, _>>()
        {
            bound.word(Part::People, user.as_str());
            bound.word(Part::People, &membership);
        }
    }
    if request.purge {
        going::for_each_of_room(db, room, &mut |id| bound.event(id, true))?;
    }
    if !request.media.goes() {
        return Ok(None);
    }
    bound.word(Part::Asked, "with_media");
    let Beside { holds, is_running } = beside;
    let mut each = |uri: &str| bound.word(Part::Media, uri);
    let (going, each) = (Going::Room(room), &mut each);
    media_of_events::plan(db, room, going, server_name, holds, is_running, each).map(Some)
}

/// Plans `request`; the connection may be one that writes nothing but temporary tables. What binds it is told to `bound`.
pub fn plan(
    db: &Db,
    room: &RoomId,
    request: &Request,
    server_name: &str,
    beside: Beside<'_>,
    bound: &mut PlanDigest,
) -> Result<Plan, Error> {
    db.read("plan a deletion", |db| {
        let media = tell(db, room, request, server_name, beside, bound)?;
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
        if !is_known && rows_removed.is_empty() && unknown_tables.is_empty() {
            notes.push(NOTHING_THERE.to_owned());
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
            media,
            notes,
            reclaimable_bytes: space::reclaimable_bytes(db)?,
            plan: None,
        })
    })
}
