//! A dry run: what a purge would remove, table by table. It reads only.

use serde::Serialize;

use super::request::Request;
use crate::error::Error;
use crate::hold::Hold;
use crate::ids::RoomId;
use crate::job::{MediaPlan, media_of_events};
use crate::plan_hash::{Part, PlanDigest, PlanHash};
use crate::store::db::{Db, Engine};
use crate::store::event_rows::{RowCounts, add};
use crate::store::foreign_keys::ForeignKeys;
use crate::store::forward_extremities;
use crate::store::history::{self, DepthRange, Extent, Selection};
use crate::store::media::Going;
use crate::store::room_rows::Unknown;
use crate::store::state_groups::{self, References, Rules, Walk};
use crate::store::{going, search, space};
use crate::time::Millis;

/// What a purge would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The room.
    pub room_id: RoomId,
    /// The point; what lies there survives.
    pub point: String,
    /// Local users' messages that would leave the timeline and stay in the database, where nobody sees them any more
    /// (P-56).
    #[serde(skip_serializing_if = "is_zero")]
    pub local_messages_kept: i64,
    /// Forward extremities below the point that would stay with their events, because a homeserver runs beside us that
    /// remembers them (P-51).
    #[serde(skip_serializing_if = "is_zero")]
    pub extremities_kept: i64,
    /// Events below the point that would stay in the timeline because they are held.
    #[serde(skip_serializing_if = "is_zero")]
    pub events_held: i64,
    /// The holds that keep them, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub holds: Vec<String>,
    /// Events that would be deleted.
    pub events_deleted: i64,
    /// Events that would stay without being part of the timeline: state, and what must not go.
    pub events_kept_as_outliers: i64,
    /// Rows that would be removed, by table.
    pub rows_removed: RowCounts,
    /// State groups that would go.
    pub state_groups_freed: i64,
    /// Tables that roomkeeper does not know and that have rows which refer to events that go: these rows go along, or the
    /// purge stops where it comes to them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub referring_tables: Vec<Unknown>,
    /// Who looks after foreign keys meanwhile, where the database is on a PostgreSQL server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub foreign_keys: Option<&'static str>,
    /// Media that would go with their messages, where they do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub media: Option<MediaPlan>,
    /// Bytes the database file holds free already, before the purge.
    pub reclaimable_bytes: u64,
    /// What binds a purge to this plan, where it is bound to anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanHash>,
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// What becomes of forward extremities below the point (P-51).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extremities {
    /// They go like any event: no homeserver runs.
    Go,
    /// They stay: a homeserver runs and remembers them.
    Stay,
    /// They stay unless the homeserver, which will be asked, drops them.
    AskHomeserver,
}

/// As what a purge is planned.
#[derive(Clone, Copy)]
pub struct Setting<'a> {
    /// The server's name.
    pub server_name: &'a str,
    /// What becomes of forward extremities.
    pub extremities: Extremities,
    /// The holds, for media; what they keep of the events is in the request.
    pub holds: &'a [Hold],
    /// When it would be carried out.
    pub now: Millis,
}

/// Plans `request` as it would be carried out `now`; the connection may be one that cannot write. The events that go are told
/// to `bound`.
///
/// # Errors
/// What the purge itself would refuse: [`Error::WouldEmptyRoom`], [`Error::PartialState`].
pub fn plan(
    db: &Db,
    room: &RoomId,
    request: &Request,
    setting: Setting<'_>,
    bound: &mut PlanDigest,
) -> Result<Plan, Error> {
    db.read("plan a purge", |db| {
        let cut = cut(db, room, request, setting)?;
        let selected = select(db, &cut, bound)?;
        let media = tell_media(db, room, request, setting, bound)?;
        let mut plan = Plan {
            room_id: room.clone(),
            point: request.point.to_string(),
            local_messages_kept: history::local_messages(db, &cut)?,
            extremities_kept: selected.extremities_kept,
            events_held: selected.held,
            holds: Vec::new(),
            events_deleted: selected.to_delete,
            events_kept_as_outliers: selected.events - selected.to_delete,
            rows_removed: RowCounts::new(),
            state_groups_freed: 0,
            referring_tables: Vec::new(),
            foreign_keys: None,
            media,
            reclaimable_bytes: space::reclaimable_bytes(db)?,
            plan: None,
        };
        if selected.events == 0 {
            return Ok(plan);
        }
        plan.rows_removed = history::count(db, &cut, selected)?;
        if search::is_present(db) {
            add(&mut plan.rows_removed, "event_search", search::count(db)?);
        }
        let in_use = state_groups::persisting(db)?;
        let in_use = in_use.iter().map(|row| row.group).collect();
        let rules = Rules {
            room: Some(room),
            references: References::OutsideSelection,
            walk: Walk::Around,
            in_use: &in_use,
        };
        let candidates = history::selected_groups(db)?;
        let groups = state_groups::plan(db, &candidates, rules, &mut |_| Ok(()))?;
        plan.state_groups_freed = groups.to_delete.len() as i64;
        plan.referring_tables = history::referring_tables(db, &groups.to_delete)?;
        for (table, rows) in groups.rows_removed() {
            add(&mut plan.rows_removed, &table, rows);
        }
        Ok(plan)
    })
}

/// Tells `bound` the events that [`plan`] would tell it, and counts nothing else.
///
/// # Errors
/// As [`plan`].
pub fn bind(
    db: &Db,
    room: &RoomId,
    request: &Request,
    setting: Setting<'_>,
    bound: &mut PlanDigest,
) -> Result<(), Error> {
    db.read("look at what was planned", |db| {
        let cut = cut(db, room, request, setting)?;
        select(db, &cut, bound)?;
        tell_media(db, room, request, setting, bound).map(drop)
    })
}

/// Selects all of it, and tells `bound` the events.
fn select(db: &Db, cut: &DepthRange<'_>, bound: &mut PlanDigest) -> Result<Selection, Error> {
    let selected = history::select(db, cut, Extent::Whole)?;
    going::for_each_selected(db, &mut |id, goes| bound.event(id, goes))?;
    Ok(selected)
}

/// Tells `bound` the media that go with the selected events, if they do. In the transaction that selected.
fn tell_media(
    db: &Db,
    room: &RoomId,
    request: &Request,
    setting: Setting<'_>,
    bound: &mut PlanDigest,
) -> Result<Option<MediaPlan>, Error> {
    if !request.media.goes() {
        return Ok(None);
    }
    bound.word(Part::Asked, "with_media");
    let Setting {
        server_name, holds, ..
    } = setting;
    let is_running = setting.extremities != Extremities::Go;
    let mut each = |uri: &str| bound.word(Part::Media, uri);
    let (going, each) = (Going::Selected, &mut each);
    media_of_events::plan(db, room, going, server_name, holds, is_running, each).map(Some)
}

/// What the whole of `request` takes now.
fn cut<'a>(
    db: &Db,
    room: &'a RoomId,
    request: &'a Request,
    setting: Setting<'a>,
) -> Result<DepthRange<'a>, Error> {
    refuse_to_empty(db, room, request)?;
    let Setting {
        server_name,
        extremities,
        now,
        ..
    } = setting;
    let expiry = request.expiry(db, now)?;
    let mut cut = request.cut(room, server_name, extremities != Extremities::Go, expiry);
    if extremities == Extremities::AskHomeserver && forward_extremities::has_surplus(db, &cut)? {
        cut.keep_extremities = false;
    }
    Ok(cut)
}

/// What `request` would take beside what is held.
///
/// # Errors
/// As [`plan`].
pub fn selection(
    db: &Db,
    room: &RoomId,
    request: &Request,
    server_name: &str,
    now: Millis,
) -> Result<Selection, Error> {
    db.read("look at what is held", |db| {
        let expiry = request.expiry(db, now)?;
        let whole = request.cut(room, server_name, false, expiry);
        history::select(db, &whole, Extent::Whole)
    })
}

/// Bytes of the JSON of the events that `request` would delete. Reads all of it.
pub fn content_bytes(
    db: &Db,
    room: &RoomId,
    request: &Request,
    server_name: &str,
    now: Millis,
) -> Result<i64, Error> {
    db.read("measure the events to purge", |db| {
        let expiry = request.expiry(db, now)?;
        let whole = request.cut(room, server_name, false, expiry);
        history::select(db, &whole, Extent::Whole)?;
        history::bytes_to_delete(db)
    })
}

/// Who looks after foreign keys while events are deleted from a server, in words; `None` for a file. With `in_sets` we
/// do, where we may.
pub fn foreign_key_mode(db: &Db, in_sets: bool) -> Result<Option<&'static str>, Error> {
    if db.engine() != Engine::Postgres {
        return Ok(None);
    }
    Ok(Some(if in_sets && ForeignKeys::read(db)?.is_some() {
        "looked after in sets by roomkeeper, whose role may switch triggers off"
    } else {
        "looked after row by row by the server"
    }))
}

/// P-2, the guard that is looked at before any change.
pub(super) fn refuse_to_empty(db: &Db, room: &RoomId, request: &Request) -> Result<(), Error> {
    match forward_extremities::deepest(db, room)? {
        Some(depth) if depth < request.point.topological => Err(Error::WouldEmptyRoom),
        _ => Ok(()),
    }
}
