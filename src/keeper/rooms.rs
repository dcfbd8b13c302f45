//! What every room of the server has and takes, for whoever asks.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Keeper, Shared, Viewer};
use crate::config::Config;
use crate::error::{Chain, Error};
use crate::ids::RoomId;
use crate::jobs::ledger::Ledger;
use crate::policy::{Decision, LifetimeRange, Policy};
use crate::retention;
use crate::rooms::{
    Policies, PolicyOf, Selectors, Sort, Statistics, StatisticsOf, Summary, Totals, select,
    summarize,
};
use crate::store::removed;
use crate::time::Millis;

/// Which rooms are asked after, and how they are to be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoomQuery {
    /// Which rooms.
    pub selectors: Selectors,
    /// In which order.
    pub sort: Sort,
    /// How many of them at most; all where it is not said. What is left out is in the totals.
    pub limit: Option<usize>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoomReport {
    /// The rooms, in the order that was asked for.
    pub rooms: Vec<Summary>,
    /// Sums over all rooms that are meant, those that the limit leaves out included.
    pub selected: Totals,
    /// Sums over all rooms of the server.
    pub server: Totals,
    /// How long it took to find out.
    pub took_ms: i64,
}

/// Rooms that are meant.
pub(super) struct Selected {
    pub(super) rooms: Vec<Summary>,
    /// Sums over all rooms of the server.
    pub(super) server: Totals,
    /// The newest event of that moment, by its stream ordering.
    pub(super) newest_event: i64,
    /// Rooms of which something else is to be kept now.
    changed: Vec<RoomId>,
}

impl Viewer {
    /// What every room that is meant has and takes. `kept` is what an earlier question counted, and is what this one has
    /// counted afterwards; answers also the rooms of which something else is to be kept now. Takes no lock and writes
    /// nothing.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for a room that is named and not known.
    pub fn rooms(
        &self,
        query: &RoomQuery,
        kept: &mut Statistics,
    ) -> Result<(RoomReport, Vec<RoomId>), Error> {
        let begun = Instant::now();
        let now = self.config.clock.now();
        let Selected {
            mut rooms,
            server,
            changed,
            ..
        } = self.selected(&query.selectors, now, kept)?;
        let selected = Totals::of(&rooms);
        let mut policies = match self.policies(now) {
            // A standby makes no plans; all else can be told.
            Err(e @ Error::Refused(_)) => {
                log::warn!("what is over the retention policies is not told: {e}");
                Policies::new()
            }
            policies => policies?,
        };
        for room in &mut rooms {
            room.retention = policies.remove(&room.room_id);
        }
        query.sort.sort(&mut rooms);
        rooms.truncate(query.limit.unwrap_or(usize::MAX));
        let took_ms = i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX);
        let report = RoomReport {
            rooms,
            selected,
            server,
            took_ms,
        };
        Ok((report, changed))
    }

    /// The rooms that are meant, all as they were at one moment. `now` is the time that ages are counted from.
    ///
    /// # Errors
    /// As [`Viewer::rooms`].
    pub(super) fn selected(
        &self,
        selectors: &Selectors,
        now: Millis,
        kept: &mut Statistics,
    ) -> Result<Selected, Error> {
        self.db.read("look at the rooms", |db| {
            let changed = kept.refresh(db)?;
            let rooms = summarize(db, kept, &self.config.server_name)?;
            Ok(Selected {
                server: Totals::of(&rooms),
                rooms: select(db, rooms, selectors, now)?,
                newest_event: removed::greatest_stream_ordering(db)?.unwrap_or(i64::MIN),
                changed,
            })
        })
    }

    /// What the retention policies say of each room, whether or not anything carries them out.
    fn policies(&self, now: Millis) -> Result<Policies, Error> {
        let policy = &self.config.retention;
        let mut plan =
            retention::plan(&self.db, policy, LifetimeRange::default(), now, &|_| false)?;
        self.leave_held(&mut plan)?;
        let lifetime = |own: Option<&Policy>| match policy.evaluate(&LifetimeRange::default(), own)
        {
            Decision::Due(of) | Decision::TooShort(of) => Some(of.lifetime),
            Decision::OutOfRange(lifetime) => Some(lifetime),
            Decision::NoLifetime => None,
        };
        let mut policies = Policies::new();
        for due in plan.rooms {
            let of = PolicyOf {
                own: due.policy,
                lifetime_ms: Some(due.lifetime.lifetime),
                events_over: due.events,
                estimated_bytes: due.estimated_bytes,
                left_alone: None,
            };
            policies.insert(due.room_id, of);
        }
        for left in plan.left_alone {
            let of = PolicyOf {
                own: left.policy,
                lifetime_ms: lifetime(left.policy.as_ref()),
                events_over: 0,
                estimated_bytes: 0,
                left_alone: Some(left.reason.in_words().to_owned()),
            };
            policies.insert(left.room_id, of);
        }
        Ok(policies)
    }
}

impl Keeper {
    /// What every room that is meant has and takes. What was counted is kept in the ledger for the next question.
    ///
    /// # Errors
    /// As [`Viewer::rooms`].
    pub fn rooms(&self, query: &RoomQuery) -> Result<RoomReport, Error> {
        let ledger = self.shared.register.ledger();
        let mut kept = self.shared.room_statistics.lock();
        let statistics = kept.get_or_insert_with(|| load(ledger));
        let viewer = self.viewer()?;
        let (report, changed) = viewer.rooms(query, statistics)?;
        keep(ledger, statistics, changed);
        Ok(report)
    }
}

impl Shared {
    /// The rooms that are meant, all as they were at one moment; what was counted is kept. `now` is the time that ages are
    /// counted from.
    pub(super) fn selected(&self, selectors: &Selectors, now: Millis) -> Result<Selected, Error> {
        let viewer = Viewer::open(self.config.clone())?;
        self.with_statistics(|kept| {
            let mut selected = viewer.selected(selectors, now, kept)?;
            self.keep_statistics(kept, std::mem::take(&mut selected.changed));
            Ok(selected)
        })
    }

    /// Lends what was counted of rooms.
    pub(super) fn with_statistics<T>(&self, look: impl FnOnce(&mut Statistics) -> T) -> T {
        let mut kept = self.room_statistics.lock();
        look(kept.get_or_insert_with(|| load(self.register.ledger())))
    }

    /// Keeps what was counted of these rooms for the next process.
    pub(super) fn keep_statistics(&self, statistics: &Statistics, changed: Vec<RoomId>) {
        keep(self.register.ledger(), statistics, changed);
    }
}

/// What every room that is meant has and takes, for one who keeps nothing at work. What was counted is kept in a ledger
/// that is there already and that nobody has; otherwise it is counted anew each time, and nothing is written.
///
/// # Errors
/// As [`Viewer::rooms`].
pub fn rooms(config: &Config, query: &RoomQuery) -> Result<RoomReport, Error> {
    let ledger = || match config.ledger.is_file() {
        true => Ledger::open(&config.ledger).ok(),
        false => None,
    };
    // Held no longer than it takes to read it: others must not find it taken.
    let mut statistics = ledger().map(|ledger| load(&ledger)).unwrap_or_default();
    let viewer = Viewer::open(config.clone())?;
    let (report, changed) = viewer.rooms(query, &mut statistics)?;
    if !changed.is_empty()
        && let Some(ledger) = ledger()
    {
        keep(&ledger, &statistics, changed);
    }
    Ok(report)
}

/// As [`rooms`], of the rooms alone.
pub(super) fn selected(config: &Config, selectors: &Selectors) -> Result<Selected, Error> {
    let ledger = match config.ledger.is_file() {
        true => Ledger::open(&config.ledger).ok(),
        false => None,
    };
    let mut statistics = ledger.map(|ledger| load(&ledger)).unwrap_or_default();
    Viewer::open(config.clone())?.selected(selectors, config.clock.now(), &mut statistics)
}

/// What cannot be read is counted anew.
pub(super) fn load(ledger: &Ledger) -> Statistics {
    let kept = ledger.room_statistics().unwrap_or_else(|e| {
        log::warn!("{}; they are counted anew", Chain(&e));
        Vec::new()
    });
    let rooms = kept.into_iter().filter_map(|(room, counted)| {
        let counted: StatisticsOf = serde_json::from_str(&counted).ok()?;
        Some((RoomId::new(room), counted))
    });
    Statistics {
        rooms: rooms.collect(),
    }
}

fn keep(ledger: &Ledger, statistics: &Statistics, changed: Vec<RoomId>) {
    let rooms: Vec<(String, Option<String>)> = changed
        .into_iter()
        .map(|room| {
            let counted = statistics.rooms.get(&room);
            let counted = counted.and_then(|of| serde_json::to_string(of).ok());
            (room.as_str().to_owned(), counted)
        })
        .collect();
    if rooms.is_empty() {
        return;
    }
    if let Err(e) = ledger.keep_room_statistics(&rooms) {
        log::warn!("{}; they are counted anew next time", Chain(&e));
    }
}
