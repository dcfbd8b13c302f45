//! Events and all that decides how they are shown, in few statements: their redactions, and what these say in turn.

use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;

use super::event::{Event, EventError};
use crate::error::Error;
use crate::ids::RoomId;
use crate::store::db::Db;
use crate::store::pages::{self, EventRow};
use crate::store::relations::{self, BanRedaction};

/// How many redactions of an event are tried first, and at most at a time.
const FIRST_TRIED: usize = 4;
const MOST_TRIED: usize = 512;

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
    /// Whether the next is known.
    is_decided: bool,
    /// The redaction that counts, if there is one.
    redacted_by: Option<Rc<str>>,
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
            is_decided: false,
            redacted_by: None,
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

    /// Where it reads.
    pub(crate) fn db(&self) -> &'a Db {
        self.db
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
        // The redaction of an event is shown with it: redacted, if it was. What redacted that one is not shown, so nothing
        // more has to be known, however long the chain is.
        let redactions = self.decide(ids)?;
        self.decide(&redactions)?;
        Ok(())
    }

    /// Reads events and decides by what they are redacted. Answers these redactions.
    fn decide(&mut self, ids: &[Rc<str>]) -> Result<Vec<Rc<str>>, Error> {
        self.fetch(ids)?;
        let (mut targets, mut redacted) = (Vec::new(), Vec::new());
        let mut undecided: Vec<(Rc<Event>, VecDeque<Rc<str>>)> = Vec::new();
        for id in ids {
            let Some(known) = self.known.get_mut(id) else {
                continue;
            };
            if std::mem::replace(&mut known.is_decided, true) {
                continue;
            }
            let has_redactions = known.has_redactions;
            let Held::Event(event) = &known.held else {
                continue;
            };
            if event.kind() == "m.room.redaction" {
                targets.extend(event.redacts().map(Rc::from));
            }
            // Never shown redacted.
            if event.kind() == "m.room.create" {
                continue;
            }
            let event = event.clone();
            if has_redactions {
                redacted.push(id.as_ref());
            }
            let bans = self.bans_of(&event);
            let bans: VecDeque<_> = bans.map(|ban| Rc::from(ban.event_id.as_str())).collect();
            if has_redactions || !bans.is_empty() {
                undecided.push((event, bans));
            }
        }
        let mut redactions = relations::redactions(self.db, &redacted)?;
        undecided.retain_mut(|(event, candidates)| {
            let of_it = redactions.remove(event.id.as_ref()).unwrap_or_default();
            if let Some(sure) = of_it.iter().find(|redaction| redaction.is_confirmed) {
                self.redact(event, Rc::from(sure.event_id.as_str()));
                return false;
            }
            // Before the bans.
            for redaction in of_it.iter().rev() {
                candidates.push_front(Rc::from(redaction.event_id.as_str()));
            }
            true
        });
        self.try_redactions(undecided)?;
        self.fetch(&targets)?;
        let by = |id: &Rc<str>| self.known.get(id)?.redacted_by.clone();
        Ok(ids.iter().filter_map(by).collect())
    }

    fn redact(&mut self, event: &Event, by: Rc<str>) {
        if let Some(known) = self.known.get_mut(&event.id) {
            known.redacted_by = Some(by);
        }
    }

    /// Finds for each event the first redaction that may redact it. Most have one that does. Anybody can add thousands that
    /// may not, so they are read some at a time, and those in vain are not kept.
    fn try_redactions(
        &mut self,
        mut undecided: Vec<(Rc<Event>, VecDeque<Rc<str>>)>,
    ) -> Result<(), Error> {
        let mut width = FIRST_TRIED;
        while !undecided.is_empty() {
            let wanted = undecided
                .iter()
                .flat_map(|(_, them)| them.iter().take(width));
            let wanted: Vec<Rc<str>> = wanted.cloned().collect();
            let is_new = |id: &&Rc<str>| !self.known.contains_key(*id);
            let mut in_vain: HashSet<Rc<str>> = wanted.iter().filter(is_new).cloned().collect();
            self.fetch(&wanted)?;
            undecided.retain_mut(|(event, candidates)| {
                let tried = candidates.len().min(width);
                let redacts = |id: &Rc<str>| {
                    let redaction = self.stored(id);
                    redaction.is_some_and(|redaction| may_redact(redaction, event))
                };
                let found = candidates.drain(..tried).find(redacts);
                if let Some(by) = found {
                    in_vain.remove(&by);
                    self.redact(event, by);
                    return false;
                }
                !candidates.is_empty()
            });
            self.known.retain(|id, _| !in_vain.contains(id));
            width = (width * 8).min(MOST_TRIED);
        }
        Ok(())
    }

    /// An event of the room as it is stored, if it is known and was not rejected.
    fn stored(&self, id: &str) -> Option<&Rc<Event>> {
        self.known.get(id)?.event()
    }

    /// How many bytes the JSON of an event has that is held.
    pub(crate) fn size_of(&self, id: &str) -> usize {
        self.stored(id).map_or(0, |event| event.document().len())
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
        match &known.redacted_by {
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
}

/// Whether the server of the one may redact events of the server of the other, where that is in doubt.
fn may_redact(redaction: &Event, target: &Event) -> bool {
    !redaction.metadata.needs_recheck() || redaction.domain() == target.domain()
}
