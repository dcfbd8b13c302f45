//! An event with what was said around it, as an admin reads it.
//!
//! Source: Synapse, `docs/admin_api/rooms.md`, "Event Context API". Its two halves are pages, from the same places as
//! Synapse's: backwards from the depth before the event's, forwards from the event.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use super::aggregate::{self, Requester};
use super::client_event::Writer;
use super::event::Event;
use super::filter::Filter;
use super::load::Loader;
use super::page::{add_previous, page};
use super::request::{EventJson, Format, Page, PageRequest, Reader};
use super::single::MAX_WRITTEN;
use crate::error::Error;
use crate::ids::{EventId, RoomId, UserId};
use crate::point::{Direction, Point, RoomToken, StreamToken};
use crate::policy::Retention;
use crate::store::db::Db;
use crate::store::state_lookup;
use crate::time::Millis;

/// Most rows of state groups that are read for one answer.
const MOST_ROWS: usize = 200_000;

/// Which event, and how much around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextRequest {
    /// The event.
    pub event: EventId,
    /// At most this many events before and after it together.
    pub limit: u32,
    /// Which events, and which state.
    pub filter: Option<Filter>,
    /// Who reads: whose own threads are known.
    pub reader: UserId,
}

/// An event and what is around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventContext {
    /// What was said before it, the newest first.
    pub before: Page,
    /// The event.
    pub event: EventJson,
    /// What was said after it.
    pub after: Page,
    /// The room's state after the last of all these.
    pub state: Vec<EventJson>,
    /// From where to read on backwards.
    pub start: StreamToken,
    /// From where to read on forwards.
    pub end: StreamToken,
}

/// What can be said about an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Around {
    /// It is not held in the room, or may not be shown.
    Unknown,
    /// It is more than one answer may have.
    TooLarge,
    /// This is around it.
    Events(Box<EventContext>),
}

/// What is around an event. `db` shows one moment of the database for as long as this takes.
///
/// # Errors
/// Those of the database.
pub fn context(
    db: &Db,
    room: &RoomId,
    request: &ContextRequest,
    retention: &Retention,
    now: Millis,
) -> Result<Around, Error> {
    let id: Rc<str> = request.event.as_str().into();
    let mut loader = Loader::new(db, room)?;
    loader.load(std::slice::from_ref(&id))?;
    let Some(event) = loader.show(&id) else {
        return Ok(Around::Unknown);
    };
    let mut shown = [event];
    add_previous(&mut loader, &mut shown)?;
    let place = shown[0].point;
    let half = request.limit / 2;
    let reader = Reader::NamedAdmin(request.reader.clone().into());
    let read = |direction, point, limit| {
        let from = StreamToken::new(RoomToken::Historic(point));
        let wanted = PageRequest {
            direction,
            from: Some(from.clone()),
            to: None,
            limit,
            filter: request.filter.clone(),
            format: Format::Client,
        };
        let page = page(db, room, &reader, &wanted, retention, now)?;
        let end = page.end.clone().unwrap_or(from);
        Ok::<(Page, StreamToken), Error>((page, end))
    };
    let below = Point {
        topological: place.topological.saturating_sub(1),
        ..place
    };
    let (before, start) = read(Direction::Backwards, below, half)?;
    let (after, end) = read(Direction::Forwards, place, request.limit - half)?;

    let no_one = HashSet::new();
    let requester = Requester {
        user: Some(&request.reader),
        ignored: &no_one,
    };
    let (bundles, _) = aggregate::bundles(db, &mut loader, &shown, &requester)?;
    let event = {
        let writer = Writer::without_session(now, &loader, &bundles);
        EventJson::new(writer.event(&shown[0], None))
    };
    let last = after.chunk.last().and_then(|last| id_of(last.as_str()));
    let last = last.unwrap_or_else(|| id.to_string());
    let speakers = || {
        let all = before.chunk.iter().chain([&event]).chain(&after.chunk);
        all.filter_map(|event| sender_of(event.as_str())).collect()
    };
    let Some(state) = state_after(db, &mut loader, &last, request.filter.as_ref(), speakers)?
    else {
        return Ok(Around::TooLarge);
    };
    let no_bundles = HashMap::new();
    let writer = Writer::without_session(now, &loader, &no_bundles);
    let texts = before.chunk.iter().chain([&event]).chain(&after.chunk);
    let mut size: usize = texts.map(|event| event.as_str().len()).sum();
    let mut written = Vec::with_capacity(state.len());
    for event in &state {
        let text = writer.bare(event);
        size += text.len();
        if size > MAX_WRITTEN {
            return Ok(Around::TooLarge);
        }
        written.push(EventJson::new(text));
    }
    if size > MAX_WRITTEN {
        return Ok(Around::TooLarge);
    }
    Ok(Around::Events(Box::new(EventContext {
        before,
        event,
        after,
        state: written,
        start,
        end,
    })))
}

/// The state after an event, as far as the filter wants it; `None` where it is too much.
fn state_after(
    db: &Db,
    loader: &mut Loader<'_>,
    event: &str,
    filter: Option<&Filter>,
    speakers: impl Fn() -> HashSet<String>,
) -> Result<Option<Vec<Rc<Event>>>, Error> {
    let Some(group) = state_lookup::group_of(db, event)? else {
        return Ok(Some(Vec::new()));
    };
    let Some(mut entries) = state_lookup::whole_state(db, group, MOST_ROWS)? else {
        return Ok(None);
    };
    if filter.is_some_and(Filter::loads_members) {
        let speakers = speakers();
        entries.retain(|e| e.kind != "m.room.member" || speakers.contains(&e.state_key));
    }
    if entries.len() > super::single::MOST_STATE {
        return Ok(None);
    }
    let ids: Vec<Rc<str>> = entries.iter().map(|e| e.event_id.as_str().into()).collect();
    let mut state = Vec::with_capacity(ids.len());
    for some in ids.chunks(1000) {
        loader.load(some)?;
        state.extend(some.iter().filter_map(|id| loader.show(id)));
    }
    add_previous(loader, &mut state)?;
    if let Some(filter) = filter {
        let room = loader.room();
        state.retain(|event| filter.passes(event, room));
    }
    Ok(Some(state))
}

fn id_of(event: &str) -> Option<String> {
    super::json::Object::read(event)?
        .text("event_id")
        .map(|id| id.into_owned())
}

fn sender_of(event: &str) -> Option<String> {
    super::json::Object::read(event)?
        .text("sender")
        .map(|sender| sender.into_owned())
}
