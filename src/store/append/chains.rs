//! The auth chain cover: for each state event a place in a chain, and links to what it needs that is in others (D-48).
//!
//! An event B is in the auth chain of A when B lies below A in A's chain, or can be reached over links. Links are only
//! stored where no other way leads.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use super::numbers::Numbers;
use crate::error::Error;
use crate::event::Event;
use crate::ids::EventId;
use crate::store::db::{Db, params};
use crate::store::tx::Tx;

/// The place of a state event; `event_id` is unique in both tables.
const PLACE: &str = "
    SELECT c.chain_id, c.sequence_number, s.type, s.state_key
      FROM event_auth_chains c
     CROSS JOIN state_events s
     WHERE c.event_id = $1 AND s.event_id = c.event_id";

/// The end of a chain: the end of the unique index on both columns.
const END: &str = "SELECT max(sequence_number) FROM event_auth_chains WHERE chain_id = $1";

/// Links out of a chain, by its index.
const LINKS: &str = "
    SELECT origin_sequence_number, target_chain_id, target_sequence_number
      FROM event_auth_chain_links
     WHERE origin_chain_id = $1";

const INSERT_PLACE: &str =
    "INSERT INTO event_auth_chains (event_id, chain_id, sequence_number) VALUES ($1, $2, $3)";

const INSERT_LINK: &str = "
    INSERT INTO event_auth_chain_links
           (origin_chain_id, origin_sequence_number, target_chain_id, target_sequence_number)
    VALUES ($1, $2, $3, $4)";

/// What Synapse catches up on when it knows more: an event whose own auth events have no place.
const INSERT_LATER: &str = "
    INSERT INTO event_auth_chain_to_calculate (event_id, room_id, type, state_key) VALUES ($1, $2, $3, $4)
        ON CONFLICT DO NOTHING";

/// Before this schema, readers follow no link but the first: every chain that can be reached has a link of its own (V-4).
const FIRST_WITHOUT_TRANSITIVE_LINKS: i64 = 84;

/// Chain and sequence number.
type Place = (i64, i64);

/// A place, and what the event there is the state of.
#[derive(Clone, Debug)]
struct Placed {
    at: Place,
    kind: String,
    key: String,
}

/// A link out of a chain.
#[derive(Clone, Copy, Debug)]
struct Link {
    from: i64,
    to: Place,
}

/// What is known of a room's chains; read as it is needed.
#[derive(Clone, Debug, Default)]
pub(super) struct Chains {
    places: HashMap<EventId, Option<Placed>>,
    links: HashMap<i64, Vec<Link>>,
    ends: HashMap<i64, i64>,
}

const DOING: &str = "find the event's place among those that allow it";

impl Chains {
    /// Gives a state event its place; its auth events must be stored.
    pub fn place(
        &mut self,
        db: &Tx<'_>,
        numbers: &mut Numbers,
        event: &Event,
    ) -> Result<(), Error> {
        let Some(key) = &event.state_key else {
            return Ok(());
        };
        let mut auth_event_keys: Vec<Placed> = Vec::new();
        for id in &event.auth {
            match self.placed(db, id)? {
                Some(placed) => auth_event_keys.push(placed),
                None => {
                    let (id, room) = (event.id.as_str(), event.room.as_str());
                    db.execute(DOING, INSERT_LATER, params![id, room, event.kind, key])?;
                    self.places.insert(event.id.clone(), None);
                    return Ok(());
                }
            }
        }
        let at = self.next_to(db, numbers, &auth_event_keys, &event.kind, key)?;
        let mut needed: Vec<Place> = Vec::new();
        for (n, to) in auth_event_keys.iter().enumerate() {
            let mut others = auth_event_keys.iter().enumerate().filter(|(m, _)| *m != n);
            let is_led_to = to.at.0 == at.0
                || others.try_fold(false, |found, (_, from)| {
                    Ok::<_, Error>(found || self.leads(db, from.at, to.at)?)
                })?;
            if !is_led_to {
                needed.push(to.at);
            }
        }
        db.execute(DOING, INSERT_PLACE, params![event.id.as_str(), at.0, at.1])?;
        if db.catalog().version() < FIRST_WITHOUT_TRANSITIVE_LINKS {
            needed = self.all_below(db, at, &needed)?;
        }
        for to in needed {
            db.execute(DOING, INSERT_LINK, params![at.0, at.1, to.0, to.1])?;
            self.links_of(db, at.0)?.push(Link { from: at.1, to });
        }
        let placed = Placed {
            at,
            kind: event.kind.clone(),
            key: key.clone(),
        };
        self.places.insert(event.id.clone(), Some(placed));
        Ok(())
    }

    /// The highest place of every other chain that can be reached from `needed`, where no link out of the event's own
    /// chain leads there already.
    fn all_below(&mut self, db: &Db, at: Place, needed: &[Place]) -> Result<Vec<Place>, Error> {
        let mut highest: BTreeMap<i64, i64> = BTreeMap::new();
        let mut open = needed.to_vec();
        while let Some((chain, place)) = open.pop() {
            if highest.get(&chain).is_some_and(|known| *known >= place) {
                continue;
            }
            highest.insert(chain, place);
            let links = self.links_of(db, chain)?.iter();
            open.extend(links.filter(|link| link.from <= place).map(|l| l.to));
        }
        highest.remove(&at.0);
        let own = self.links_of(db, at.0)?;
        let is_linked = |(chain, place): &Place| {
            own.iter()
                .any(|l| l.from <= at.1 && l.to.0 == *chain && *place <= l.to.1)
        };
        Ok(highest.into_iter().filter(|to| !is_linked(to)).collect())
    }

    /// The place after the event that this one replaces, if that is free; else the first of a new chain.
    fn next_to(
        &mut self,
        db: &Db,
        numbers: &mut Numbers,
        auth_event_keys: &[Placed],
        kind: &str,
        key: &str,
    ) -> Result<Place, Error> {
        if let Some(same) = auth_event_keys
            .iter()
            .find(|p| p.kind == kind && p.key == key)
        {
            let (chain, after) = (same.at.0, same.at.1 + 1);
            let end = match self.ends.get(&chain) {
                Some(end) => *end,
                None => db.count(DOING, END, params![chain])?,
            };
            if end < after {
                self.ends.insert(chain, after);
                return Ok((chain, after));
            }
            self.ends.insert(chain, end);
        }
        let chain = numbers.next_chain(db)?;
        self.ends.insert(chain, 1);
        self.links.insert(chain, Vec::new());
        Ok((chain, 1))
    }

    fn placed(&mut self, db: &Db, id: &EventId) -> Result<Option<Placed>, Error> {
        if let Some(known) = self.places.get(id) {
            return Ok(known.clone());
        }
        let found = db.row(DOING, PLACE, params![id.as_str()], |r| {
            Ok(Placed {
                at: (r.get(0)?, r.get(1)?),
                kind: r.get(2)?,
                key: r.get(3)?,
            })
        })?;
        self.places.insert(id.clone(), found.clone());
        Ok(found)
    }

    fn links_of(&mut self, db: &Db, chain: i64) -> Result<&mut Vec<Link>, Error> {
        match self.links.entry(chain) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(unknown) => {
                let links = db.rows(DOING, LINKS, params![chain], |r| {
                    Ok(Link {
                        from: r.get(0)?,
                        to: (r.get(1)?, r.get(2)?),
                    })
                })?;
                Ok(unknown.insert(links))
            }
        }
    }

    /// Whether `to` can be reached from `from`.
    fn leads(&mut self, db: &Db, from: Place, to: Place) -> Result<bool, Error> {
        if from.0 == to.0 {
            return Ok(to.1 <= from.1);
        }
        // The highest place from which a chain was looked at already.
        let mut seen: HashMap<i64, i64> = HashMap::new();
        let mut open = vec![from];
        while let Some((chain, at)) = open.pop() {
            if seen.get(&chain).is_some_and(|before| *before >= at) {
                continue;
            }
            seen.insert(chain, at);
            for link in self.links_of(db, chain)?.iter() {
                if link.from > at {
                    continue;
                }
                if link.to.0 == to.0 && to.1 <= link.to.1 {
                    return Ok(true);
                }
                open.push(link.to);
            }
        }
        Ok(false)
    }
}
