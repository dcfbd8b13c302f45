//! The people of the room: each leaves by themself, forgets it, and joins the new one (D-8).

use serde_json::{Map, Value};

use super::author::{EventAuthor, NewEvent, membership};
use crate::error::Error;
use crate::event::auth::may_leave;
use crate::event::{EventError, EventSigner, MEMBER};
use crate::ids::{RoomId, UserId};
use crate::room_version::RoomVersion;
use crate::store::append::{EventWriter, RoomHead};
use crate::store::db::Db;
use crate::store::members;
use crate::store::tx::Tx;
use crate::time::Clock;

/// A local user, and their membership before.
pub(super) type Member = (UserId, String);

/// What became of a batch of people.
#[derive(Debug, Default)]
pub(super) struct MoveOutcome {
    /// Those who left, and joined the new room if they had been joined.
    pub kicked: Vec<UserId>,
    /// Those who are still where they were, or did not get into the new room.
    pub failed: Vec<UserId>,
}

/// What moves people: who makes the events, and where the rooms end.
pub(super) struct MemberMover<'a> {
    pub author: &'a EventAuthor,
    pub clock: &'a dyn Clock,
    pub room: &'a RoomId,
    pub server: &'a str,
    /// The old room's version.
    pub version: &'static RoomVersion,
    /// The new room and its version, if there is one.
    pub new_room: Option<(&'a RoomId, &'static RoomVersion)>,
}

impl MemberMover<'_> {
    /// Moves a batch of members, inside one transaction. One who cannot be moved keeps nobody else from it.
    pub fn move_batch(&self, db: &Tx<'_>, batch: &[Member]) -> Result<MoveOutcome, Error> {
        let mut room_head = RoomHead::read(db, self.room, self.version, self.server)?;
        let mut next = match self.new_room {
            Some((room, version)) => RoomHead::read(db, room, version, self.server)?,
            None => None,
        };
        let mut arrival = EventWriter::begin(db, self.clock.now())?;
        let (mut moved, mut left) = (MoveOutcome::default(), Vec::new());
        for (user, before) in batch {
            let has_left = match &mut room_head {
                Some(room_head) => self.leave(db, &mut arrival, room_head, user)?,
                None => self.reject_invite(db, &mut arrival, user)?,
            };
            let mut is_moved = has_left;
            if has_left {
                left.push(user.clone());
                if let Some(next) = next.as_mut().filter(|_| before == "join") {
                    is_moved = self.join(db, &mut arrival, next, user)?;
                }
            }
            let list = if is_moved {
                &mut moved.kicked
            } else {
                &mut moved.failed
            };
            list.push(user.clone());
        }
        members::forget(db, self.room, &left)?;
        arrival.end()?;
        Ok(moved)
    }

    fn leave(
        &self,
        db: &Db,
        arrival: &mut EventWriter<'_>,
        room_head: &mut RoomHead,
        user: &UserId,
    ) -> Result<bool, Error> {
        let before = room_head.membership(db, user)?;
        if !may_leave(before.as_deref()) {
            log::warn!(
                "room {}: {user} is not in it by its state ({}), and cannot leave",
                self.room,
                before.as_deref().unwrap_or("no membership")
            );
            return Ok(false);
        }
        let saying = NewEvent {
            kind: MEMBER,
            sender: user,
            state_key: Some(user.as_str()),
            content: membership("leave"),
        };
        let said = self
            .author
            .create(db, arrival, room_head, saying, self.clock)?;
        Ok(self.created(said, user, "leave"))
    }

    /// The answer to an invitation, or the end of a knock, in a room that this server is not in.
    fn reject_invite(
        &self,
        db: &Db,
        arrival: &mut EventWriter<'_>,
        user: &UserId,
    ) -> Result<bool, Error> {
        let Some(invitation) = members::invitation(db, self.room, user)? else {
            log::warn!(
                "room {}: the membership of {user} is held without its event",
                self.room
            );
            return Ok(false);
        };
        let (author, clock) = (self.author, self.clock);
        match author.reject_invite(self.version, self.room, user, &invitation, clock) {
            Ok(event) => arrival.append_outside(&event).map(|()| true),
            Err(e) => Ok(self.created(Err(e), user, "leave")),
        }
    }

    fn join(
        &self,
        db: &Db,
        arrival: &mut EventWriter<'_>,
        next: &mut RoomHead,
        user: &UserId,
    ) -> Result<bool, Error> {
        // Who made the room is in it, and an interrupted run may have got this far.
        if next.membership(db, user)?.as_deref() == Some("join") {
            return Ok(true);
        }
        let saying = NewEvent {
            kind: MEMBER,
            sender: user,
            state_key: Some(user.as_str()),
            content: joining(db, user)?,
        };
        let said = self.author.create(db, arrival, next, saying, self.clock)?;
        Ok(self.created(said, user, "join the new room"))
    }

    fn created(&self, said: Result<(), EventError>, user: &UserId, what: &str) -> bool {
        if let Err(e) = &said {
            log::warn!("room {}: {user} could not {what}: {e}", self.room);
        }
        said.is_ok()
    }
}

/// The content of a join: with what the user shows of themself everywhere.
pub(super) fn joining(db: &Db, user: &UserId) -> Result<Map<String, Value>, Error> {
    let mut content = membership("join");
    let profile = members::profile(db, user)?;
    for (name, value) in [
        ("displayname", profile.displayname),
        ("avatar_url", profile.avatar_url),
    ] {
        if let Some(value) = value {
            content.insert(name.to_owned(), value.into());
        }
    }
    Ok(content)
}

/// Whether leaves can be written into rooms of this version.
pub(super) fn can_write(version: &RoomVersion) -> bool {
    EventSigner::can_write(version)
}
