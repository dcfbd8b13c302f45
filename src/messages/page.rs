//! One page of a room, for one reader, of one moment.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use super::aggregate::{self, Bundles, Requester};
use super::client_event::Writer;
use super::event::{Event, EventError};
use super::load::Loader;
use super::read_access::{ReadAccess, read_access};
use super::request::{EventJson, MAX_LIMIT, Page, PageRequest, Reader, Session};
use super::token_range::{self, TokenRange};
use super::visibility::{StateAt, States, Viewer, Visibility};
use crate::error::Error;
use crate::ids::RoomId;
use crate::policy::Retention;
use crate::store::db::Db;
use crate::store::pages::{self, EventRow, Groups, SqlFilter};
use crate::store::policies::Said;
use crate::store::{reader_access, state_lookup};
use crate::time::Millis;

/// Most bytes of stored events on a page. What does not fit is on the next page.
const MAX_STORED: usize = 3 * 1024 * 1024;

/// Most bytes of an answer's events, with all that is shown within them: some megabytes less than an answer may have. What
/// does not fit is on the next page.
const MAX_WRITTEN: usize = 12 * 1024 * 1024;

/// A page of a room. `db` shows one moment of the database for as long as this takes ([`Db::read`]).
///
/// # Errors
/// [`Error::NotInRoom`] when the reader may not read the room; [`Error::BadRequest`] for tokens of another server.
/// A damaged event costs that event: it is left out, logged and counted.
pub fn page(
    db: &Db,
    room: &RoomId,
    reader: &Reader,
    request: &PageRequest,
    retention: &Retention,
    now: Millis,
) -> Result<Page, Error> {
    let writers = token_range::writers(db, request)?;
    let read_access = match reader {
        Reader::User(session) => Some(read_access(db, room, &session.user_id)?),
        Reader::Admin | Reader::NamedAdmin(_) => None,
    };
    let range = TokenRange::open(db, room, request, read_access, writers)?;
    let groups = match reader.sees_everything() && !loads_members(request) {
        true => Groups::Unwanted,
        false => Groups::Wanted,
    };
    let (rows, limited) = rows(db, room, request, &range, groups)?;
    let next = range.next(rows.last().map(|row| row.point));

    let mut loader = Loader::new(db, room)?;
    let ids: Vec<Rc<str>> = rows.iter().map(|row| row.event_id.clone()).collect();
    loader.take(rows);
    loader.load(&ids)?;
    let mut events: Vec<Rc<Event>> = ids.iter().filter_map(|id| loader.show(id)).collect();
    add_previous(&mut loader, &mut events)?;
    let is_end = !limited && (events.is_empty() || range.ends_at_leave());

    if let Some(filter) = &request.filter {
        events.retain(|event| filter.passes(event, room));
    }
    let ignored = match reader.session() {
        Some(session) => reader_access::ignored_by(db, &session.user_id)?,
        None => HashSet::new(),
    };
    let seen = match (reader, read_access) {
        (Reader::User(session), Some(read_access)) => {
            let hides_before = match retention.enabled {
                true => match reader_access::policy(db, room)? {
                    // It may say that they stay.
                    Said::Unreadable => None,
                    said => retention.hides_before(said.policy().as_ref(), now),
                },
                false => None,
            };
            let sight = VisibilityOfEvents {
                db,
                session,
                ignored: &ignored,
                is_peeking: read_access == ReadAccess::Peeking,
                hides_before,
            };
            sight.of(&mut loader, events)?
        }
        _ => events.into_iter().map(|event| (event, None)).collect(),
    };
    let requester = Requester {
        user: reader.session().map(|session| &session.user_id),
        ignored: &ignored,
    };
    let shown: Vec<Rc<Event>> = seen.iter().map(|(event, _)| event.clone()).collect();
    let (bundles, fitting) = aggregate::bundles(db, &mut loader, &shown, &requester)?;
    let members = members(db, &mut loader, request, &seen)?;
    let writer = Writer {
        now,
        format: request.format,
        session: reader.session(),
        is_admin: reader.session().is_some_and(|session| session.is_admin),
        loader: &loader,
        bundles: &bundles,
    };
    let Written { chunk, state } = write(&writer, &seen[..fitting], &members);
    let (mut next, mut is_end) = (next, is_end);
    if chunk.len() < seen.len() {
        next = range.next(seen.get(chunk.len() - 1).map(|(event, _)| event.point));
        is_end = false;
    }
    Ok(Page {
        chunk,
        state,
        start: range.start,
        end: (!is_end).then_some(next),
        damaged: loader.damaged(),
    })
}

/// The texts of a page.
struct Written {
    chunk: Vec<EventJson>,
    state: Vec<EventJson>,
}

/// Writes events, and the members who sent them, until that is enough for one answer: one event at least.
fn write(writer: &Writer<'_>, seen: &[Seen], members: &[Rc<Event>]) -> Written {
    let mut members: HashMap<Option<&str>, &Rc<Event>> = members
        .iter()
        .map(|member| (member.state_key(), member))
        .collect();
    let plain = Writer {
        bundles: &Bundles::new(),
        ..*writer
    };
    let (mut chunk, mut state, mut size) = (Vec::with_capacity(seen.len()), Vec::new(), 0);
    for (event, membership) in seen {
        let text = writer.event(event, membership.as_deref());
        let member = members.remove(&Some(event.sender()));
        let member = member.map(|member| plain.bare(member));
        size += text.len() + member.as_ref().map_or(0, String::len);
        if size > MAX_WRITTEN && !chunk.is_empty() {
            break;
        }
        chunk.push(EventJson::new(text));
        state.extend(member.map(EventJson::new));
    }
    Written { chunk, state }
}

/// The page's rows, and whether there are more (M-30 … M-36).
fn rows(
    db: &Db,
    room: &RoomId,
    request: &PageRequest,
    range: &TokenRange,
    groups: Groups,
) -> Result<(Vec<EventRow>, bool), Error> {
    let sql_filter = match &request.filter {
        Some(filter) => filter.sql_filter(room),
        None => Some(SqlFilter::default()),
    };
    let limit = usize::try_from(request.limit.min(MAX_LIMIT)).unwrap_or_default();
    if limit == 0 {
        return Ok((Vec::new(), !range.is_empty()));
    }
    let Some(sql_filter) = sql_filter else {
        return Ok((Vec::new(), false));
    };
    // One more shows that there is more. Where rows are left out one by one, twice as many are read, as Synapse does,
    // so that a page is seldom short.
    let wanted = if range.has_writer_positions() {
        limit * 2
    } else {
        limit + 1
    };
    let count = i64::try_from(wanted).unwrap_or(i64::MAX);
    let (row_range, direction) = (range.row_range(), request.direction);
    let mut rows = pages::page(db, room, &row_range, direction, &sql_filter, count, groups)?;
    let mut limited = rows.len() >= wanted;
    rows.retain(|row| range.holds(row));
    limited |= rows.len() > limit;
    rows.truncate(limit);
    let mut stored = 0;
    let fits = |row: &EventRow| {
        stored += row.json.as_ref().map_or(0, String::len);
        stored <= MAX_STORED
    };
    let fitting = rows
        .iter()
        .map(fits)
        .take_while(|fits| *fits)
        .count()
        .max(1);
    if fitting < rows.len() {
        limited = true;
        rows.truncate(fitting);
    }
    Ok((rows, limited))
}

/// Adds to state events what they replaced (M-83).
pub(super) fn add_previous(loader: &mut Loader<'_>, events: &mut [Rc<Event>]) -> Result<(), Error> {
    let replaced = |(at, event): (usize, &Rc<Event>)| Some((at, event.replaces_state()?.into()));
    let replaced: Vec<(usize, Rc<str>)> = events.iter().enumerate().filter_map(replaced).collect();
    let wanted: Vec<Rc<str>> = replaced.iter().map(|(_, id)| id.clone()).collect();
    loader.load(&wanted)?;
    for (at, id) in replaced {
        let (Some(event), Some(before)) = (events.get_mut(at), loader.show(&id)) else {
            continue;
        };
        let sender = before.document().get("sender").unwrap_or("null");
        let previous = (before.content_text().to_owned(), sender.to_owned());
        Rc::make_mut(event).previous = Some(previous);
    }
    Ok(())
}

/// An event as a reader sees it, and their membership after it.
type Seen = (Rc<Event>, Option<String>);

/// What one user sees.
struct VisibilityOfEvents<'a> {
    db: &'a Db,
    session: &'a Session,
    ignored: &'a HashSet<String>,
    is_peeking: bool,
    hides_before: Option<Millis>,
}

impl VisibilityOfEvents<'_> {
    /// What the user sees of the events.
    fn of(&self, loader: &mut Loader<'_>, events: Vec<Rc<Event>>) -> Result<Vec<Seen>, Error> {
        let states = self.states(loader, &events)?;
        let senders: HashSet<&str> = events.iter().map(|event| event.sender()).collect();
        let senders: Vec<&str> = senders.into_iter().collect();
        let erased = reader_access::erased(self.db, &senders)?;
        let viewer = Viewer {
            user: &self.session.user_id,
            is_peeking: self.is_peeking,
            ignored: self.ignored,
            erased: &erased,
            hides_before: self.hides_before,
        };
        let mut seen = Vec::with_capacity(events.len());
        for event in &events {
            let Some(state) = event.state_group.and_then(|group| states.get(&group)) else {
                loader.note(&event.id, EventError::NoState);
                continue;
            };
            let membership = Some(viewer.membership_after(event, state));
            match viewer.sees(event, state) {
                Visibility::Nothing => {}
                Visibility::Whole => seen.push((event.clone(), membership)),
                Visibility::Redacted => {
                    let redacted = Event::clone(event).redact(None);
                    seen.push((Rc::new(redacted), membership));
                }
            }
        }
        Ok(seen)
    }

    /// The states after the events, as far as they matter: one look-up for each place of the state.
    fn states(&self, loader: &mut Loader<'_>, events: &[Rc<Event>]) -> Result<States, Error> {
        let groups: HashSet<i64> = events
            .iter()
            .filter_map(|event| event.state_group)
            .collect();
        let groups: Vec<i64> = groups.into_iter().collect();
        let chains = state_lookup::chains(self.db, &groups)?;
        let has_call = events.iter().any(|event| event.kind() == "m.call.invite");
        let user = self.session.user_id.as_str();
        let look_up = |kind, key| state_lookup::state_at(self.db, &chains, &groups, kind, key);
        let visibilities = look_up("m.room.history_visibility", "")?;
        let memberships = look_up("m.room.member", user)?;
        let join_rules = match has_call {
            true => look_up("m.room.join_rules", "")?,
            false => HashMap::new(),
        };
        let all = [&visibilities, &memberships, &join_rules];
        let named: HashSet<&String> = all.iter().flat_map(|said| said.values()).collect();
        let named: Vec<Rc<str>> = named.into_iter().map(|id| id.as_str().into()).collect();
        loader.load(&named)?;
        let content = |event: Option<&'_ String>, name: &'static str| {
            let event = loader.show(event?)?;
            event.content().text(name).map(|text| text.into_owned())
        };
        let states = groups.iter().map(|group| {
            let state = StateAt {
                visibility: content(visibilities.get(group), "history_visibility"),
                membership: content(memberships.get(group), "membership"),
                join_rule: content(join_rules.get(group), "join_rule"),
            };
            (*group, state)
        });
        Ok(states.collect())
    }
}

/// Whether the members who speak in a page are wanted with it.
fn loads_members(request: &PageRequest) -> bool {
    let filter = request.filter.as_ref();
    filter.is_some_and(|filter| filter.loads_members())
}

/// The members who speak in a page, as they were after its first event (M-58).
fn members(
    db: &Db,
    loader: &mut Loader<'_>,
    request: &PageRequest,
    seen: &[Seen],
) -> Result<Vec<Rc<Event>>, Error> {
    let (true, Some((first, _))) = (loads_members(request), seen.first()) else {
        return Ok(Vec::new());
    };
    let Some(group) = first.state_group else {
        return Ok(Vec::new());
    };
    let senders: HashSet<&str> = seen.iter().map(|(event, _)| event.sender()).collect();
    let mut senders: Vec<&str> = senders.into_iter().collect();
    senders.sort_unstable();
    let members = state_lookup::members_at(db, group, &senders)?;
    let members: Vec<Rc<str>> = members.into_iter().map(Rc::from).collect();
    loader.load(&members)?;
    let mut members: Vec<Rc<Event>> = members.iter().filter_map(|id| loader.show(id)).collect();
    // As in the chunk, where the same event may stand (M-95).
    add_previous(loader, &mut members)?;
    Ok(members)
}
