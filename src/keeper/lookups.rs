//! What clients for admins look up beside rooms. All of it only reads, within a limit.

use std::sync::Arc;

use serde_json::Value;

use super::Keeper;
use crate::error::Error;
use crate::ids::{EventId, RoomId, UserId};
use crate::jobs::ledger::State;
use crate::messages::{
    self, Around, ContextRequest, EventJson, Hierarchy, HierarchyRequest, MOST_STATE, MediaId,
};
use crate::point::Direction;
use crate::rooms::{Selectors, Sort};
use crate::store::lookups::{self, Account, ForwardExtremity, Profile};
use crate::store::named_rooms;
use crate::store::read_limit::ReadLimit;
use crate::store::user_list::{self, ListedUser, UserQuery};

/// Most files that are told of a room.
const MOST_MEDIA: usize = 100_000;

/// Most of the homeserver's own tasks that are told.
const MOST_TASKS: i64 = 10_000;

/// A job of ours, or a task of the homeserver's own: what Synapse calls a scheduled task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its id.
    pub id: String,
    /// What it does: `purge_history`, `shutdown_and_purge_room`, ….
    pub action: String,
    /// `scheduled`, `active`, `complete`, `cancelled` or `failed`.
    pub status: String,
    /// When it came to that, in milliseconds; of one that waits, when it was asked for.
    pub timestamp_ms: i64,
    /// The room, where it is about one.
    pub resource_id: Option<String>,
    /// What came of it.
    pub result: Value,
    /// Why it failed.
    pub error: Option<String>,
}

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
    ///
    /// # Errors
    /// Those of the database.
    pub fn account(&self, user: &UserId) -> Result<Option<Account>, Error> {
        self.shared.with_reader(|db| lookups::account(db, user))
    }

    /// Whether a local user has a device.
    ///
    /// # Errors
    /// Those of the database.
    pub fn has_device(&self, user: &UserId, device: &str) -> Result<bool, Error> {
        self.shared
            .with_reader(|db| lookups::has_device(db, user, device))
    }

    /// A local user's name and picture; `None` where they have no profile here.
    ///
    /// # Errors
    /// Those of the database.
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
                let most = i64::try_from(MOST_STATE).unwrap_or(i64::MAX);
                let ids = lookups::current_state(db, room, most.saturating_add(1))?;
                if ids.len() > MOST_STATE {
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
    ///
    /// # Errors
    /// Those of the database.
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
    ///
    /// # Errors
    /// Those of the database.
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

    /// An event with what was said around it; of everything that the room's people have seen.
    ///
    /// # Errors
    /// [`Error::ReadTooLong`].
    pub fn context(
        &self,
        room: &RoomId,
        request: &ContextRequest,
        limit: &Arc<ReadLimit>,
    ) -> Result<Around, Error> {
        let now = self.shared.config.clock.now();
        let retention = &self.shared.config.retention;
        self.shared.read_within(Some(limit), |db| {
            db.read("read what is around an event", |db| {
                messages::context(db, room, request, retention, now)
            })
        })
    }

    /// A space, with the rooms below it that somebody of this server is in.
    ///
    /// # Errors
    /// [`Error::ReadTooLong`].
    pub fn hierarchy(
        &self,
        request: &HierarchyRequest,
        limit: &Arc<ReadLimit>,
    ) -> Result<Hierarchy, Error> {
        self.shared.read_within(Some(limit), |db| {
            db.read("read a space", |db| messages::hierarchy(db, request))
        })
    }

    /// The media that the events of a room's timeline name, the newest event's first; `None` where they are too many for one
    /// answer.
    ///
    /// # Errors
    /// [`Error::ReadTooLong`].
    pub fn media(
        &self,
        room: &RoomId,
        limit: &Arc<ReadLimit>,
    ) -> Result<Option<Vec<MediaId>>, Error> {
        let mut found: Vec<(i64, MediaId)> = Vec::new();
        self.shared.read_within(Some(limit), |db| {
            lookups::events_with_address(db, room, |stream, event| {
                let media = messages::media_of(event);
                found.extend(media.into_iter().map(|media| (stream, media)));
                found.len() <= MOST_MEDIA
            })
        })?;
        // Those of one event stay in their order.
        found.sort_by_key(|(stream, _)| std::cmp::Reverse(*stream));
        let is_whole = found.len() <= MOST_MEDIA;
        Ok(is_whole.then(|| found.into_iter().map(|(_, media)| media).collect()))
    }

    /// A page of the users of this server, and how many there are in all.
    ///
    /// # Errors
    /// [`Error::ReadTooLong`].
    pub fn users(
        &self,
        query: &UserQuery,
        limit: &Arc<ReadLimit>,
    ) -> Result<(Vec<ListedUser>, i64), Error> {
        self.shared.read_within(Some(limit), |db| {
            db.read("list the users", |db| user_list::page(db, query))
        })
    }

    /// The rooms that take the most space, with the bytes that they take, estimated: the largest first, at most so many.
    ///
    /// # Errors
    /// Those of the database.
    pub fn largest_rooms(&self, most: usize) -> Result<Vec<(RoomId, i64)>, Error> {
        let now = self.shared.config.clock.now();
        let mut rooms = self.shared.selected(&Selectors::default(), now)?.rooms;
        Sort::Bytes.sort(&mut rooms);
        let largest = rooms.into_iter().take(most);
        Ok(largest.map(|room| (room.room_id, room.bytes)).collect())
    }

    /// The jobs on record, and the homeserver's own tasks, as they stand; the oldest first.
    ///
    /// # Errors
    /// Those of the ledger and of the database.
    pub fn tasks(&self) -> Result<Vec<Task>, Error> {
        let jobs = self.jobs()?.into_iter().map(|job| Task {
            status: match job.state {
                State::Queued | State::Paused | State::Waiting => "scheduled",
                State::Running => "active",
                State::Complete => "complete",
                State::Failed if job.error_code.as_deref() == Some("cancelled") => "cancelled",
                State::Failed => "failed",
            }
            .to_owned(),
            timestamp_ms: job.ended_ms.or(job.started_ms).unwrap_or(job.created_ms).0,
            resource_id: job.subject.room().map(|room| room.as_str().to_owned()),
            result: match job.state {
                State::Complete => job.progress,
                _ => Value::Null,
            },
            id: job.id.as_str().to_owned(),
            action: job.kind,
            error: job.error,
        });
        let mut tasks: Vec<Task> = jobs.collect();
        let own = self
            .shared
            .with_reader(|db| lookups::own_tasks(db, MOST_TASKS))?;
        tasks.extend(own.into_iter().map(|task| {
            Task {
                id: task.id,
                action: task.action,
                status: task.status,
                timestamp_ms: task.timestamp_ms,
                resource_id: task.resource_id,
                result: task
                    .result
                    .and_then(|result| serde_json::from_str(&result).ok())
                    .unwrap_or(Value::Null),
                error: task.error,
            }
        }));
        tasks.sort_by(|a, b| (a.timestamp_ms, &a.id).cmp(&(b.timestamp_ms, &b.id)));
        Ok(tasks)
    }

    /// The room that an alias of this server leads to.
    ///
    /// # Errors
    /// [`Error::NoSuchRoom`] where it leads nowhere.
    pub fn room_of_alias(&self, alias: &str) -> Result<RoomId, Error> {
        let found = self
            .shared
            .with_reader(|db| named_rooms::of_alias(db, alias))?;
        found.ok_or_else(|| Error::NoSuchRoom(format!("Room alias {alias} not found")))
    }
}
