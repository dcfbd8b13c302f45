//! Events and all that decides how they are shown, in few statements: their redactions, and what these say in turn.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use super::event::{Damage, Event};
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

/// The events that a page has to do with, by id.
pub(crate) struct Loader<'a> {
    db: &'a Db,
    room: &'a RoomId,
    version: Option<String>,
    bans: HashMap<String, Vec<BanRedaction>>,
    held: HashMap<String, Held>,
    redactions: HashMap<String, Vec<Redaction>>,
    settled: HashSet<String>,
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
            held: HashMap::new(),
            redactions: HashMap::new(),
            settled: HashSet::new(),
            damaged: 0,
        })
    }

    /// How many events could not be shown because they are damaged.
    pub(crate) fn damaged(&self) -> usize {
        self.damaged
    }

    /// Notes an event that cannot be shown.
    pub(crate) fn note(&mut self, event: &str, damage: Damage) {
        self.damaged += 1;
        log::warn!(
            "room {}: event {event} is left out of pages: {}",
            self.room,
            damage.as_str()
        );
    }

    /// Takes rows in.
    pub(crate) fn take(&mut self, rows: Vec<EventRow>) {
        for row in rows {
            let id = row.event_id.clone();
            let held = if row.room_id != self.room.as_str() {
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
            self.held.insert(id, held);
        }
    }

    /// Reads those of the events that are not known yet.
    fn fetch(&mut self, ids: &[String]) -> Result<(), Error> {
        let is_new = |id: &&String| !self.held.contains_key(*id);
        let wanted: Vec<String> = ids.iter().filter(is_new).cloned().collect();
        let rows = pages::by_id(self.db, &wanted)?;
        self.take(rows);
        for id in wanted {
            self.held.entry(id).or_insert(Held::Nothing);
        }
        Ok(())
    }

    /// Reads events, and everything that decides how [`Loader::show`] shows them.
    pub(crate) fn load(&mut self, ids: &[String]) -> Result<(), Error> {
        let mut wanted = ids.to_vec();
        // Redactions can be redacted, and so on: in the end none is new.
        while !wanted.is_empty() {
            wanted.retain(|id| self.settled.insert(id.clone()));
            self.fetch(&wanted)?;
            let events: Vec<&str> = wanted.iter().map(String::as_str).collect();
            let redactions = relations::redactions(self.db, &events)?;
            let targets: Vec<String> = wanted
                .iter()
                .filter_map(|id| self.stored(id))
                .filter(|event| event.kind() == "m.room.redaction")
                .filter_map(|event| Some(event.redacts()?.into_owned()))
                .collect();
            let mut next: Vec<String> = redactions
                .values()
                .flatten()
                .map(|redaction| redaction.event_id.clone())
                .collect();
            for event in wanted.iter().filter_map(|id| self.stored(id)) {
                let bans = self.bans_of(event).map(|ban| ban.event_id.clone());
                next.extend(bans);
            }
            self.redactions.extend(redactions);
            self.fetch(&targets)?;
            wanted = next;
        }
        Ok(())
    }

    /// An event of the room as it is stored, if it is known and was not rejected.
    fn stored(&self, id: &str) -> Option<&Rc<Event>> {
        match self.held.get(id) {
            Some(Held::Event(event)) => Some(event),
            _ => None,
        }
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
        let event = self.stored(id)?;
        if event.kind() == "m.room.redaction" && !self.shows_redaction(event) {
            return None;
        }
        match self.redacted_by(event) {
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
    fn redacted_by<'s>(&'s self, event: &'s Event) -> Option<&'s str> {
        if event.kind() == "m.room.create" {
            return None;
        }
        let redactions = self
            .redactions
            .get(&event.id)
            .map_or(&[][..], Vec::as_slice);
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
