//! Where a room's next event goes: after which events, and into which state.

use std::collections::{BTreeMap, BTreeSet};

use super::chains::Chains;
use super::current::MemberProfile;
use super::groups::{Group, StateMap};
use crate::error::Error;
use crate::event::{EventSigner, MEMBER, Reference};
use crate::ids::{EventId, RoomId, UserId};
use crate::room_version::{IdForm, RoomVersion};
use crate::store::db::{Db, params};
use crate::store::state_groups::state_of;

/// The most events that one event follows (D-41). Those that are left are followed by the next one.
const MOST_PREV: usize = 10;

/// The forward extremities, the deepest first. Walks `ev_extrem_room`.
const EXTREMITIES: &str = "
    SELECT f.event_id, e.depth, g.state_group
      FROM event_forward_extremities f
     CROSS JOIN events e
      LEFT JOIN event_to_state_groups g ON g.event_id = f.event_id
     WHERE f.room_id = $1 AND e.event_id = f.event_id AND NOT e.outlier
     ORDER BY e.depth DESC, e.stream_ordering DESC";

/// The resolved state of a room. Walks the unique index on (room_id, type, state_key).
const CURRENT: &str = "
    SELECT c.type, c.state_key, c.event_id, COALESCE(c.membership, m.membership)
      FROM current_state_events c
      LEFT JOIN room_memberships m ON m.event_id = c.event_id
     WHERE c.room_id = $1";

const MEMBERSHIP: &str = "SELECT membership FROM room_memberships WHERE event_id = $1";

const JSON: &str = "SELECT json FROM event_json WHERE event_id = $1";

const ROOM: &str = "SELECT room_version, has_auth_chain_index FROM rooms WHERE room_id = $1";

/// What `rooms` says of a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomRow {
    /// `rooms.room_version`; older servers filled it late.
    pub version: Option<String>,
    /// Whether the auth chain cover of the room is kept.
    pub has_chains: bool,
}

/// What `rooms` says of a room; `None` when the server does not know it.
pub fn room_row(db: &Db, room: &RoomId) -> Result<Option<RoomRow>, Error> {
    db.row("read the room", ROOM, params![room.as_str()], |r| {
        Ok(RoomRow {
            version: r.get(0)?,
            has_chains: r.get::<_, Option<bool>>(1)?.unwrap_or(false),
        })
    })
}

/// The version that a room's create event names: for rooms whose row does not. `None` where the event is not held.
pub fn version_by_create_event(db: &Db, room: &RoomId) -> Result<Option<String>, Error> {
    // The room's part of `events_order_room`, from its beginning: where the create event is, purged or not.
    const CREATE_EVENT: &str = "
        SELECT j.json
          FROM events e
         CROSS JOIN event_json j
         WHERE e.room_id = $1 AND e.type = 'm.room.create' AND j.event_id = e.event_id
         ORDER BY e.topological_ordering, e.stream_ordering
         LIMIT 1";
    let json: Option<String> = db.row(
        "read the room's version",
        CREATE_EVENT,
        params![room.as_str()],
        |r| r.get(0),
    )?;
    let event = json.and_then(|json| serde_json::from_str::<serde_json::Value>(&json).ok());
    Ok(event.map(|event| {
        let version = event["content"]["room_version"].as_str();
        version.unwrap_or("1").to_owned()
    }))
}

/// An event that nothing follows yet.
#[derive(Clone, Debug)]
pub(super) struct Extremity {
    pub id: EventId,
    pub depth: i64,
}

/// The end of a room's timeline.
#[derive(Debug)]
pub struct RoomHead {
    pub(super) room: RoomId,
    pub(super) version: &'static RoomVersion,
    /// The deepest first.
    pub(super) extremities: Vec<Extremity>,
    /// Those that are no concern of the state below, and stay.
    pub(super) aside: Vec<EventId>,
    /// The state after the extremities.
    pub(super) state: StateMap,
    /// The state group that holds exactly that; none where several extremities had to be resolved.
    pub(super) group: Option<Group>,
    /// Whether `current_state_events` holds the state. It does not once no local user is joined (D-24).
    pub(super) is_current: bool,
    /// Local users who are joined, by the current state.
    pub(super) joined_here: BTreeSet<String>,
    pub(super) looks: MemberProfile,
    pub(super) has_chains: bool,
    pub(super) chains: Chains,
    pub(super) server: String,
    /// Reference hashes that are known, where events are named with them.
    hashes: BTreeMap<EventId, Option<String>>,
}

impl RoomHead {
    /// A room that has no event yet; its row in `rooms` must be there before the first one.
    pub fn of_new_room(room: &RoomId, version: &'static RoomVersion, server: &str) -> Self {
        Self {
            room: room.clone(),
            version,
            extremities: Vec::new(),
            aside: Vec::new(),
            state: StateMap::new(),
            group: None,
            is_current: true,
            joined_here: BTreeSet::new(),
            looks: MemberProfile::default(),
            has_chains: true,
            chains: Chains::default(),
            server: server.to_owned(),
            hashes: BTreeMap::new(),
        }
    }

    /// Reads the end of a room; `None` when the server holds no timeline of it, but at most invitations.
    pub fn read(
        db: &Db,
        room: &RoomId,
        version: &'static RoomVersion,
        server: &str,
    ) -> Result<Option<Self>, Error> {
        let doing = "read the end of the room";
        let extremities = db.rows(doing, EXTREMITIES, params![room.as_str()], |r| {
            let extremity = Extremity {
                id: EventId::new(r.get::<_, String>(0)?),
                depth: r.get(1)?,
            };
            Ok((extremity, r.get::<_, Option<i64>>(2)?))
        })?;
        let Some((_, group)) = extremities.first() else {
            return Ok(None);
        };
        let mut room_head = Self::of_new_room(room, version, server);
        room_head.has_chains = room_row(db, room)?.is_some_and(|row| row.has_chains);
        room_head.is_current = false;
        db.for_each(doing, CURRENT, params![room.as_str()], |r| {
            let (kind, key): (String, String) = (r.get(0)?, r.get(1)?);
            let membership: Option<String> = r.get(3)?;
            if kind == MEMBER
                && membership.as_deref() == Some("join")
                && UserId::new(&*key).is_local(server)
            {
                room_head.joined_here.insert(key.clone());
            }
            room_head.is_current = true;
            let event = EventId::new(r.get::<_, String>(2)?);
            room_head.state.insert((kind, key), event);
            Ok(())
        })?;
        // Of several extremities, the current state is what they resolve to. Without it, the state after one of them
        // will do: the next event follows that one alone, and the others stay as they are.
        let is_one = extremities.len() == 1 || !room_head.is_current;
        if let (true, Some(group)) = (is_one, group) {
            let state = state_of(db, *group)?.into_iter();
            room_head.state = state.map(|(key, id)| (key, EventId::new(id))).collect();
            room_head.group = Some(Group::of(db, *group)?);
        }
        let mut ends = extremities.into_iter().map(|(extremity, _)| extremity);
        if room_head.is_current {
            room_head.extremities = ends.collect();
            room_head.looks = MemberProfile::read(db, &room_head.state, version)?;
        } else {
            room_head.extremities = ends.next().into_iter().collect();
            room_head.aside = ends.map(|e| e.id).collect();
        }
        Ok(Some(room_head))
    }

    /// The room.
    pub fn room(&self) -> &RoomId {
        &self.room
    }

    /// The room's version.
    pub fn version(&self) -> &'static RoomVersion {
        self.version
    }

    /// The depth of the next event.
    pub fn next_depth(&self) -> i64 {
        let deepest = self.followed().map(|e| e.depth).max().unwrap_or(0);
        deepest.saturating_add(1).min(crate::event::MAX_DEPTH)
    }

    /// The extremities that the next event follows.
    pub(super) fn followed(&self) -> impl Iterator<Item = &Extremity> {
        self.extremities.iter().take(MOST_PREV)
    }

    /// The events that the next one follows.
    pub fn prev(&mut self, db: &Db) -> Result<Vec<Reference>, Error> {
        let ids: Vec<EventId> = self.followed().map(|e| e.id.clone()).collect();
        self.references(db, ids)
    }

    /// The event that is the state of a type and key.
    pub fn state(&self, kind: &str, key: &str) -> Option<&EventId> {
        self.state.get(&(kind.to_owned(), key.to_owned()))
    }

    /// The events of these types and keys, as far as the room has them.
    pub fn auth_event_keys(
        &mut self,
        db: &Db,
        keys: &[(&str, &str)],
    ) -> Result<Vec<Reference>, Error> {
        let ids = keys.iter().filter_map(|(kind, key)| self.state(kind, key));
        let ids = ids.cloned().collect();
        self.references(db, ids)
    }

    /// A user's membership in the state.
    pub fn membership(&self, db: &Db, user: &UserId) -> Result<Option<String>, Error> {
        let Some(event) = self.state(MEMBER, user.as_str()) else {
            return Ok(None);
        };
        db.row(
            "read a membership",
            MEMBERSHIP,
            params![event.as_str()],
            |r| r.get(0),
        )
    }

    /// Remembers how an event of ours is named.
    pub(super) fn know(&mut self, reference: Reference) {
        if self.version.ids == IdForm::Chosen {
            self.hashes.insert(reference.id, reference.hash);
        }
    }

    fn references(&mut self, db: &Db, ids: Vec<EventId>) -> Result<Vec<Reference>, Error> {
        let mut references = Vec::new();
        for id in ids {
            let hash = match (self.version.ids, self.hashes.get(&id)) {
                (IdForm::HashStandard | IdForm::HashUrlSafe, _) => None,
                (IdForm::Chosen, Some(hash)) => hash.clone(),
                (IdForm::Chosen, None) => {
                    let json: Option<String> =
                        db.row("read an event", JSON, params![id.as_str()], |r| r.get(0))?;
                    let hash =
                        json.and_then(|json| EventSigner::reference_hash(self.version, &json));
                    self.hashes.insert(id.clone(), hash.clone());
                    hash
                }
            };
            references.push(Reference { id, hash });
        }
        Ok(references)
    }
}
