//! What clients for admins ask beside: `GET /_synapse/admin/v1/rooms`, `…/rooms/{room_id}`, `…/rooms/{room_id}/members`,
//! `GET /_synapse/admin/v1/server_version`, `GET /_matrix/key/v2/server`.
//!
//! Source: Synapse, `docs/admin_api/rooms.md` and `docs/admin_api/version_api.md`.

use std::cmp::Ordering;

use serde_json::json;

use super::handlers::Response;
use super::json::{self, ApiError};
use super::{Api, Context, query};
use crate::ids::RoomId;
use crate::store::rooms::Room;

/// Rooms of a page when nothing is said.
const DEFAULT_LIMIT: i64 = 100;

/// A way to order rooms: its name, whether the greatest come first, and the order itself. Rooms that are equal in it
/// are in the order of their ids.
type Order = (&'static str, bool, fn(&Room, &Room) -> Ordering);

const ORDERS: &[Order] = &[
    ("name", false, |a, b| a.name.cmp(&b.name)),
    ("alphabetical", false, |a, b| a.name.cmp(&b.name)),
    ("size", true, |a, b| a.joined_members.cmp(&b.joined_members)),
    ("joined_members", true, |a, b| {
        a.joined_members.cmp(&b.joined_members)
    }),
    ("joined_local_members", true, |a, b| {
        a.joined_local_members.cmp(&b.joined_local_members)
    }),
    ("canonical_alias", false, |a, b| {
        a.canonical_alias.cmp(&b.canonical_alias)
    }),
    ("version", true, |a, b| a.version.cmp(&b.version)),
    ("creator", false, |a, b| a.creator.cmp(&b.creator)),
    ("encryption", false, |a, b| a.encryption.cmp(&b.encryption)),
    ("federatable", false, |a, b| {
        a.federatable.cmp(&b.federatable)
    }),
    ("public", false, |a, b| a.public.cmp(&b.public)),
    ("join_rules", false, |a, b| a.join_rules.cmp(&b.join_rules)),
    ("guest_access", false, |a, b| {
        a.guest_access.cmp(&b.guest_access)
    }),
    ("history_visibility", false, |a, b| {
        a.history_visibility.cmp(&b.history_visibility)
    }),
    ("state_events", true, |a, b| {
        a.state_events.cmp(&b.state_events)
    }),
];

/// A page of the list of rooms.
pub fn list(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let wanted = Wanted::of(ctx)?;
    let rooms = api.keeper.counted_rooms()?;
    Ok(json::json(200, &wanted.page(rooms)))
}

struct Wanted {
    from: i64,
    limit: i64,
    order: &'static Order,
    is_backwards: bool,
    search: Option<String>,
    public: Option<bool>,
    empty: Option<bool>,
}

impl Wanted {
    fn of(ctx: &Context) -> Result<Self, ApiError> {
        let names: Vec<&str> = ORDERS.iter().map(|(name, ..)| *name).collect();
        let order_by = query::one_of(ctx, "order_by", &names)?;
        let order = ORDERS.iter().find(|(name, ..)| *name == order_by);
        let order = order.unwrap_or(&ORDERS[0]);
        let search = query::first(ctx, "search_term");
        if search == Some("") {
            return Err(query::invalid("search_term cannot be an empty string"));
        }
        Ok(Self {
            from: query::count(ctx, "from")?.unwrap_or(0),
            limit: query::count(ctx, "limit")?.unwrap_or(DEFAULT_LIMIT),
            order,
            is_backwards: query::is_backwards(ctx)?,
            search: search.map(str::to_lowercase),
            public: query::truth(ctx, "public_rooms")?,
            empty: query::truth(ctx, "empty_rooms")?,
        })
    }

    fn takes(&self, room: &Room) -> bool {
        let has = |text: &Option<String>, part: &str| {
            text.as_ref()
                .is_some_and(|text| text.to_lowercase().contains(part))
        };
        let is_found = self.search.as_ref().is_none_or(|term| {
            // Of an alias only what stands before the server's name.
            let local = room.canonical_alias.as_ref();
            let local = local.map(|alias| alias.split(':').next().unwrap_or_default().to_owned());
            has(&room.name, term) || has(&local, term) || room.room_id.as_str() == term
        });
        is_found
            && self.public.is_none_or(|public| room.public == public)
            && self
                .empty
                .is_none_or(|empty| (room.joined_members == Some(0)) == empty)
    }

    fn page(&self, mut rooms: Vec<Room>) -> serde_json::Value {
        rooms.retain(|room| self.takes(room));
        let (_, greatest_first, order) = self.order;
        rooms.sort_by(|a, b| {
            let ordering = order(a, b).then_with(|| a.room_id.cmp(&b.room_id));
            if *greatest_first == self.is_backwards {
                ordering
            } else {
                ordering.reverse()
            }
        });
        let total = i64::try_from(rooms.len()).unwrap_or(i64::MAX);
        let (skip, take) = (
            usize::try_from(self.from).unwrap_or(usize::MAX),
            usize::try_from(self.limit).unwrap_or(usize::MAX),
        );
        let page: Vec<Room> = rooms.into_iter().skip(skip).take(take).collect();
        let mut body = json!({"offset": self.from, "rooms": page, "total_rooms": total});
        let next = self.from.saturating_add(self.limit);
        if next < total {
            body["next_batch"] = next.into();
        }
        if self.from > 0 {
            body["prev_batch"] = (self.from - self.limit).max(0).into();
        }
        body
    }
}

/// One room.
pub fn get(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    match api.keeper.room_details(&RoomId::from(ctx.parameter(0)))? {
        Some(room) => Ok(json::json(200, &room)),
        None => Err(ApiError::not_found("Room not found")),
    }
}

/// Who is joined to a room.
pub fn members(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    match api.keeper.room_members(&RoomId::from(ctx.parameter(0)))? {
        Some(members) => {
            let body = json!({"total": members.len(), "members": members});
            Ok(json::json(200, &body))
        }
        None => Err(ApiError::not_found("Room not found")),
    }
}

/// Who answers here; clients show it. Needs no token, as with Synapse.
pub fn version(_api: &Api, _ctx: &Context) -> Result<Response, ApiError> {
    let version = concat!(env!("CARGO_PKG_VERSION"), " (roomkeeper)");
    Ok(json::json(200, &json!({"server_version": version})))
}

/// The homeserver's name, from which clients make whole user ids and aliases. Its keys are its own to publish.
pub fn server_name(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.admin(ctx)?;
    let name = &api.keeper.config().server_name;
    let body = json!({
        "server_name": name, "verify_keys": {}, "old_verify_keys": {}, "valid_until_ts": 0, "signatures": {}
    });
    Ok(json::json(200, &body))
}
