//! What clients for admins look up beside rooms. All of it only reads, within a limit.

use std::sync::Arc;

use super::Keeper;
use crate::error::Error;
use crate::ids::{EventId, RoomId, UserId};
use crate::messages::{self, EventJson};
use crate::point::Direction;
use crate::store::lookups::{self, Account, ForwardExtremity, Profile};
use crate::store::read_limit::ReadLimit;

/// Most events of a room's state that are answered at once.
const MOST_STATE: i64 = 20_000;

/// A room's state, as far as it can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoomState {
    /// No such room.
    UnknownRoom,
    /// Its events.
    Events(Vec<EventJson>),
    /// They are too many for one answer.
    TooLarge,
}

impl Keeper {
    /// A local user's account; `None` where there is none.
    pub fn account(&self, user: &UserId) -> Result<Option<Account>, Error> {
        self.shared.with_reader(|db| lookups::account(db, user))
    }

    /// Whether a local user has a device.
    pub fn has_device(&self, user: &UserId, device: &str) -> Result<bool, Error> {
        self.shared
            .with_reader(|db| lookups::has_device(db, user, device))
    }

    /// A local user's name and picture; `None` where they have no profile here.
    pub fn profile(&self, user: &UserId) -> Result<Option<Profile>, Error> {
        self.shared.with_reader(|db| lookups::profile(db, user))
    }

    /// A room's current state.
    ///
    /// # Errors
    /// [`Error::ReadTooLong`].
    pub fn room_state(&self, room: &RoomId, limit: &Arc<ReadLimit>) -> Result<RoomState, Error> {
        let now = self.shared.config.clock.now();
        self.shared.read_within(Some(limit), |db| {
            db.read("read a room's state", |db| {
                if !lookups::is_known(db, room)? {
                    return Ok(RoomState::UnknownRoom);
                }
                let ids = lookups::current_state(db, room, MOST_STATE + 1)?;
                if i64::try_from(ids.len()).unwrap_or(i64::MAX) > MOST_STATE {
                    return Ok(RoomState::TooLarge);
                }
                Ok(match messages::events(db, room, &ids, now)? {
                    Some(events) => RoomState::Events(events),
                    None => RoomState::TooLarge,
                })
            })
        })
    }

    /// A room's forward extremities; none for a room that is not known.
    pub fn forward_extremities(&self, room: &RoomId) -> Result<Vec<ForwardExtremity>, Error> {
        self.shared
            .with_reader(|db| lookups::forward_extremities(db, room))
    }

    /// The event of a room that is nearest to a time (milliseconds since 1970) in a direction, and its own time.
    ///
    /// # Errors
    /// [`Error::ReadTooLong`].
    pub fn event_near(
        &self,
        room: &RoomId,
        ts: i64,
        direction: Direction,
        limit: &Arc<ReadLimit>,
    ) -> Result<Option<(String, i64)>, Error> {
        self.shared.read_within(Some(limit), |db| {
            lookups::event_near(db, room, ts, direction)
        })
    }

    /// An event, whatever room it is of; `None` when it is not held, or was rejected.
    pub fn event(&self, event: &EventId) -> Result<Option<EventJson>, Error> {
        let now = self.shared.config.clock.now();
        self.shared.with_reader(|db| {
            db.read("read an event", |db| {
                let Some(room) = lookups::room_of(db, event)? else {
                    return Ok(None);
                };
                let ids = [event.as_str().to_owned()];
                let events = messages::events(db, &room, &ids, now)?;
                Ok(events.and_then(|mut events| events.pop()))
            })
        })
    }
}
