//! Events and all that decides how they are shown, in few statements: their redactions, and what these say in turn.

use std::collections::HashMap;
use std::rc::Rc;

use super::event::{Event, EventError};
use crate::error::Error;
use crate::ids::RoomId;
use crate::store::db::Db;
use crate::store::pages::{self, EventRow};
use crate::store::relations::{self, BanRedaction, Redaction};

/// What is known of an event id.
#[derive(Clone, Debug)]
enum Held {
    /// The event as it is stored.
    Event(Rc<Event>),
    /// It is of another room.
    Elsewhere,
    /// It is not held, was rejected, or cannot be read.
    Nothing,
}

/// An event id on the way to being shown.
#[derive(Clone, Debug)]
struct Known {
    held: Held,
    /// Whether there are redactions of it.
    has_redactions: bool,
    /// Those that were read.
    redactions: Vec<Redaction>,
    /// Whether all that decides how it is shown has been asked for.
    is_settled: bool,
}

impl Known {
    /// The event, if it is one of the room that was not rejected.
    fn event(&self) -> Option<&Rc<Event>> {
        match &self.held {
            Held::Event(event) => Some(event),
            Held::Elsewhere | Held::Nothing => None,
        }
    }
}

impl From<Held> for Known {
    fn from(held: Held) -> Self {
        Self {
            held,
            has_redactions: false,
            redactions: Vec::new(),
            is_settled: false,
        }
    }
}

/// The events that a page has to do with, by id.
pub(crate) struct Loader<'a> {
    db: &'a Db,
    room: &'a RoomId,
    version: Option<String>,
    bans: HashMap<String, Vec<BanRedaction>>,
    known: HashMap<Rc<str>, Known>,
    damaged: usize,
}

impl<'a> Loader<'a> {
    /// A loader of a room's events.
    pub(crate) fn new(db: &'a Db, room: &'a RoomId) -> Result<Self, Error> {
        Ok(Self {
            db,
            room,
            version: pages::room_version(db, room)?,
            bans: relations::ban_redactions(db, room)?,
            known: HashMap::new(),
            damaged: 0,
        })
    }

    /// How many events could not be shown because they are damaged.
    pub(crate) fn damaged(&self) -> usize {
        self.damaged
    }

    /// Notes an event that cannot be shown.
    pub(crate) fn note(&mut self, event: &str, damage: EventError) {
        self.damaged += 1;
        log::warn!(
            "room {}: event {event} is left out of pages: {}",
            self.room,
            damage.as_str()
        );
    }

    /// The room.
    pub(crate) fn room(&self) -> &'a RoomId {
        self.room
    }

    /// Takes rows in.
    pub(crate) fn take(&mut self, rows: Vec<EventRow>) {
        self.known.reserve(rows.len());
        for row in rows {
            let id = row.event_id.clone();
            let has_redactions = row.has_redactions;
            let held = if row.is_elsewhere {
                Held::Elsewhere
            } else if row.is_rejected {
                Held::Nothing
            } else {
                match Event::read(row, self.version.as_deref()) {
                    Ok(event) => Held::Event(Rc::new(event)),
                    Err(damage) => {
                        self.note(&id, damage);
                        Held::Nothing
                    }
                }
            };
            let known = Known {
                has_redactions,
                ..held.into()
            };
            self.known.insert(id, known);
        }
    }

    /// Reads those of the events that are not known yet.
    fn fetch(&mut self, ids: &[Rc<str>]) -> Result<(), Error> {
        let is_new = |id: &&Rc<str>| !self.known.contains_key(*id);
        let wanted: Vec<&Rc<str>> = ids.iter().filter(is_new).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let rows = pages::by_id(self.db, self.room, &wanted)?;
        self.take(rows);
        for id in ids {
            let known = self.known.entry(id.clone());
            known.or_insert_with(|| Held::Nothing.into());
        }
        Ok(())
    }

    /// Reads events, and everything that decides how [`Loader::show`] shows them.
    pub(crate) fn load(&mut self, ids: &[Rc<str>]) -> Result<(), Error> {
        let mut wanted = ids.to_vec();
        // Redactions can be redacted, and so on: in the end none is new.
        while !wanted.is_empty() {
            self.fetch(&wanted)?;
            // What they redact, and what redacts them.
            let (mut targets, mut next) = (Vec::new(), Vec::new());
            let mut redacted = Vec::new();
            for id in &wanted {
                let Some(known) = self.known.get_mut(id) else {
                    continue;
                };
                if std::mem::replace(&mut known.is_settled, true) {
                    continue;
                }
                let has_redactions = known.has_redactions;
                let Held::Event(event) = &known.held else {
                    continue;
                };
                if has_redactions {
                    redacted.push(id.as_ref());
                }
                if event.kind() == "m.room.redaction" {
                    targets.extend(event.redacts().map(Rc::from));
                }
                if !self.bans.is_empty() {
                    let event = event.clone();
                    let bans = self.bans_of(&event);
                    next.extend(bans.map(|ban| Rc::from(ban.event_id.as_str())));
                }
            }
            for (id, redactions) in relations::redactions(self.db, &redacted)? {
                let ids = redactions.iter().map(|redaction| &redaction.event_id);
                next.extend(ids.map(|id| Rc::from(id.as_str())));
                if let Some(known) = self.known.get_mut(id.as_str()) {
                    known.redactions = redactions;
                }
            }
            self.fetch(&targets)?;
            wanted = next;
        }
        Ok(())
    }

    /// An event of the room as it is stored, if it is known and was not rejected.
    fn stored(&self, id: &str) -> Option<&Rc<Event>> {
        self.known.get(id)?.event()
    }

    /// The bans that redact an event.
    fn bans_of(&self, event: &Event) -> impl Iterator<Item = &BanRedaction> {
        let bans = self.bans.get(event.sender()).map_or(&[][..], Vec::as_slice);
        let stream = event.point.stream;
        // An end of 0 is none, as in Synapse.
        bans.iter()
            .filter(move |ban| ban.end.is_none_or(|end| end == 0 || stream < end))
    }

    /// A loaded event as it is shown: redacted if it is, and not at all if it was rejected, cannot be read, or redacts
    /// what it may not (M-37, M-87).
    pub(crate) fn show(&self, id: &str) -> Option<Rc<Event>> {
        let known = self.known.get(id)?;
        let event = known.event()?;
        if event.kind() == "m.room.redaction" && !self.shows_redaction(event) {
            return None;
        }
        match self.redacted_by(event, &known.redactions) {
            Some(by) => Some(Rc::new(Event::clone(event).redact(Some(by)))),
            None => Some(event.clone()),
        }
    }

    fn shows_redaction(&self, redaction: &Event) -> bool {
        let Some(target) = redaction.redacts() else {
            return false;
        };
        // Unknown, rejected or of another room: perhaps it was not allowed.
        let Some(target) = self.stored(&target) else {
            return false;
        };
        target.kind() != "m.room.create" && may_redact(redaction, target)
    }

    /// The redaction that counts, if there is one.
    fn redacted_by<'s>(&'s self, event: &'s Event, redactions: &'s [Redaction]) -> Option<&'s str> {
        if event.kind() == "m.room.create" {
            return None;
        }
        if let Some(sure) = redactions.iter().find(|redaction| redaction.is_confirmed) {
            return Some(&sure.event_id);
        }
        let doubtful = redactions
            .iter()
            .map(|redaction| redaction.event_id.as_str());
        let bans = self.bans_of(event).map(|ban| ban.event_id.as_str());
        let mut candidates = doubtful.chain(bans);
        candidates.find(|id| {
            let redaction = self.stored(id);
            redaction.is_some_and(|redaction| may_redact(redaction, event))
        })
    }
}

/// Whether the server of the one may redact events of the server of the other, where that is in doubt.
fn may_redact(redaction: &Event, target: &Event) -> bool {
    !redaction.metadata.needs_recheck() || redaction.domain() == target.domain()
}
