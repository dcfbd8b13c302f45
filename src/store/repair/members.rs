//! Memberships stand in five tables. What the member event itself says is right; what the others say follows from it.

use serde::Deserialize;
use serde_json::Value;

use super::{Finding, MOST_FOUND};
use crate::error::Error;
use crate::event::MEMBER;
use crate::ids::RoomId;
use crate::store::db::{Db, params};
use crate::store::state_lookup;
use crate::store::tx::Tx;
use crate::store::value::Json;

/// Which table of memberships is put right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// `room_memberships`, by the member event's JSON.
    MemberEvents,
    /// A member that `current_state_events` has lost, by the state at the room's only forward extremity.
    LostMembers,
    /// The membership in `current_state_events`, by the member event's JSON.
    CurrentState,
    /// `local_current_membership`, by the current state.
    Local,
    /// `sliding_sync_membership_snapshots`, by `local_current_membership`.
    Snapshots,
}

use Subject::{CurrentState, Local, LostMembers, MemberEvents, Snapshots};

/// Those that can be put right in this database, each after those that it follows from.
pub(super) fn all(db: &Db) -> Vec<Subject> {
    let catalog = db.catalog();
    let knows = |table| catalog.has_column(table, "event_stream_ordering");
    let has_all = knows("room_memberships")
        && knows("local_current_membership")
        && knows("current_state_events")
        && catalog.has("users");
    if !has_all {
        return Vec::new();
    }
    let mut all = vec![MemberEvents, LostMembers, CurrentState, Local];
    if catalog.has("sliding_sync_membership_snapshots") {
        all.push(Snapshots);
    }
    all
}

/// Binds `$1` how many.
const MEMBER_EVENTS: &str = "
    SELECT c.event_id, c.room_id FROM current_state_events c
     WHERE c.type = 'm.room.member'
       AND EXISTS (SELECT 1 FROM events e WHERE e.event_id = c.event_id)
       AND NOT EXISTS (SELECT 1 FROM room_memberships m
                        WHERE m.event_id = c.event_id AND m.room_id = c.room_id AND m.user_id = c.state_key
                          AND coalesce(c.membership = m.membership, TRUE))
     UNION
    SELECT l.event_id, l.room_id FROM local_current_membership l
     WHERE EXISTS (SELECT 1 FROM events e WHERE e.event_id = l.event_id)
       AND NOT EXISTS (SELECT 1 FROM room_memberships m
                        WHERE m.event_id = l.event_id AND m.room_id = l.room_id AND m.user_id = l.user_id
                          AND m.membership = l.membership)
     UNION
    SELECT m.event_id, s.room_id FROM room_memberships m
      JOIN state_events s ON s.event_id = m.event_id
     WHERE s.type = 'm.room.member' AND (s.state_key <> m.user_id OR s.room_id <> m.room_id)
     LIMIT $1";

/// Local members of rooms with current state, of whom that knows nothing. Binds `$1` how many.
const LOST_MEMBERS: &str = "
    SELECT l.user_id, l.room_id FROM local_current_membership l
     WHERE EXISTS (SELECT 1 FROM current_state_events c WHERE c.room_id = l.room_id AND c.type = 'm.room.create')
       AND NOT EXISTS (SELECT 1 FROM current_state_events c
                        WHERE c.room_id = l.room_id AND c.type = 'm.room.member' AND c.state_key = l.user_id)
     LIMIT $1";

/// Binds `$1` how many.
const CURRENT_STATE: &str = "
    SELECT c.event_id, c.room_id FROM current_state_events c
      JOIN room_memberships m ON m.event_id = c.event_id
     WHERE c.type = 'm.room.member' AND c.membership <> m.membership
     LIMIT $1";

/// Binds `$1` how many.
const LOCAL: &str = "
    SELECT c.state_key, c.room_id FROM current_state_events c
      JOIN local_current_membership l ON l.room_id = c.room_id AND l.user_id = c.state_key
     WHERE c.type = 'm.room.member' AND (l.event_id <> c.event_id OR coalesce(l.membership <> c.membership, FALSE))
     UNION
    SELECT c.state_key, c.room_id FROM current_state_events c
     WHERE c.type = 'm.room.member'
       AND EXISTS (SELECT 1 FROM users u WHERE u.name = c.state_key)
       AND NOT EXISTS (SELECT 1 FROM local_current_membership l
                        WHERE l.room_id = c.room_id AND l.user_id = c.state_key)
     LIMIT $1";

/// Binds `$1` how many.
const SNAPSHOTS: &str = "
    SELECT m.user_id, m.room_id FROM sliding_sync_membership_snapshots m
      JOIN local_current_membership l ON l.room_id = m.room_id AND l.user_id = m.user_id
      JOIN events e ON e.event_id = l.event_id
     WHERE m.membership_event_id <> l.event_id OR m.membership <> l.membership
     LIMIT $1";

/// What an event says that is held and not rejected.
const EVENT: &str = "
    SELECT e.room_id, e.sender, e.stream_ordering, j.json FROM events e
      JOIN event_json j ON j.event_id = e.event_id AND j.room_id = e.room_id
     WHERE e.event_id = $1
       AND NOT EXISTS (SELECT 1 FROM rejections r WHERE r.event_id = e.event_id)";

const MEMBERSHIP_OF: &str = "
    SELECT user_id, room_id, membership FROM room_memberships WHERE event_id = $1";

const UPDATE_MEMBERSHIP: &str = "
    UPDATE room_memberships SET user_id = $1, sender = $2, room_id = $3, membership = $4 WHERE event_id = $5";

const INSERT_MEMBERSHIP: &str = "
    INSERT INTO room_memberships
           (event_id, user_id, sender, room_id, membership, display_name, avatar_url, event_stream_ordering)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";

/// The state group of a room's only forward extremity, where the room is held whole.
const ONLY_GROUP: &str = "
    SELECT g.state_group FROM event_forward_extremities f
      JOIN events e ON e.event_id = f.event_id AND e.room_id = f.room_id
      JOIN event_to_state_groups g ON g.event_id = f.event_id
     WHERE f.room_id = $1 AND NOT e.outlier
       AND NOT EXISTS (SELECT 1 FROM rejections r WHERE r.event_id = f.event_id)
       AND NOT EXISTS (SELECT 1 FROM partial_state_rooms p WHERE p.room_id = f.room_id)
       AND NOT EXISTS (SELECT 1 FROM event_forward_extremities o WHERE o.room_id = f.room_id AND o.event_id <> f.event_id)";

const CURRENT_MEMBER: &str = "
    SELECT event_id, membership FROM current_state_events
     WHERE room_id = $1 AND type = 'm.room.member' AND state_key = $2";

const INSERT_CURRENT: &str = "
    INSERT INTO current_state_events (room_id, type, state_key, event_id, membership, event_stream_ordering)
    VALUES ($1, 'm.room.member', $2, $3, $4, $5)";

const UPDATE_CURRENT: &str = "
    UPDATE current_state_events SET membership = $1 WHERE event_id = $2 AND type = 'm.room.member'";

const LOCAL_MEMBER: &str = "
    SELECT event_id, membership FROM local_current_membership WHERE room_id = $1 AND user_id = $2";

const UPDATE_LOCAL: &str = "
    UPDATE local_current_membership SET event_id = $1, membership = $2, event_stream_ordering = $3
     WHERE room_id = $4 AND user_id = $5";

const INSERT_LOCAL: &str = "
    INSERT INTO local_current_membership (event_id, membership, event_stream_ordering, room_id, user_id)
    VALUES ($1, $2, $3, $4, $5)";

const SNAPSHOT: &str = "
    SELECT membership_event_id, membership FROM sliding_sync_membership_snapshots WHERE room_id = $1 AND user_id = $2";

const UPDATE_SNAPSHOT: &str = "
    UPDATE sliding_sync_membership_snapshots
       SET membership_event_id = $1, membership = $2, sender = $3, event_stream_ordering = $4
     WHERE room_id = $5 AND user_id = $6";

const DOING: &str = "mend the memberships";

/// What a member event says.
struct Member {
    event: String,
    room: String,
    user: String,
    sender: String,
    membership: String,
    display_name: Option<String>,
    avatar_url: Option<String>,
    stream: i64,
}

/// The parts of a member event that say who is what.
#[derive(Deserialize)]
struct Written {
    #[serde(rename = "type")]
    kind: String,
    state_key: String,
    room_id: String,
    sender: String,
    content: Content,
}

#[derive(Deserialize)]
struct Content {
    membership: String,
    displayname: Option<Value>,
    avatar_url: Option<Value>,
}

/// What a held event says of a member, where it is a member event and can be read.
fn member(db: &Db, event: &str) -> Result<Option<Member>, Error> {
    let held = db.row(DOING, EVENT, params![event], |r| {
        let (room, sender): (String, Option<String>) = (r.get(0)?, r.get(1)?);
        Ok((room, sender, r.get::<_, i64>(2)?, r.get::<_, Json>(3)?))
    })?;
    let Some((room, sender, stream, json)) = held else {
        return Ok(None);
    };
    let Ok(said) = serde_json::from_str::<Written>(&json.0) else {
        return Ok(None);
    };
    const MEMBERSHIPS: [&str; 5] = ["join", "invite", "leave", "ban", "knock"];
    if said.kind != MEMBER
        || said.room_id != room
        || !MEMBERSHIPS.contains(&&*said.content.membership)
    {
        return Ok(None);
    }
    let text = |value: Option<Value>| match value {
        Some(Value::String(text)) if !text.contains('\0') => Some(text),
        _ => None,
    };
    Ok(Some(Member {
        event: event.to_owned(),
        room,
        user: said.state_key,
        sender: sender.unwrap_or(said.sender),
        membership: said.content.membership,
        display_name: text(said.content.displayname),
        avatar_url: text(said.content.avatar_url),
        stream,
    }))
}

/// What is to be written.
enum Change {
    Insert(Member),
    Update(Member),
}

impl Subject {
    pub(super) fn rule(self) -> &'static str {
        match self {
            CurrentState => "I-11",
            MemberEvents | LostMembers | Local | Snapshots => "I-12",
        }
    }

    pub(super) fn wrong(self) -> &'static str {
        match self {
            MemberEvents => "a membership that is not as its event says, or is missing",
            LostMembers => {
                "a local member whom the current state has lost, and whom the state at the room's only forward extremity has"
            }
            CurrentState => "a membership of the current state that is not as its event says",
            Local => "a local membership that is not as the current state says, or is missing",
            Snapshots => "a sliding-sync membership that is not the local membership",
        }
    }

    pub(super) fn table(self) -> &'static str {
        match self {
            MemberEvents => "room_memberships",
            LostMembers | CurrentState => "current_state_events",
            Local => "local_current_membership",
            Snapshots => "sliding_sync_membership_snapshots",
        }
    }

    pub(super) fn find(self, db: &Db) -> Result<Vec<Finding>, Error> {
        let sql = match self {
            MemberEvents => MEMBER_EVENTS,
            LostMembers => LOST_MEMBERS,
            CurrentState => CURRENT_STATE,
            Local => LOCAL,
            Snapshots => SNAPSHOTS,
        };
        let doing = "look at the memberships";
        let candidates = db.rows(doing, sql, params![MOST_FOUND], Finding::of_room)?;
        let mut found = Vec::new();
        for one in candidates {
            if self.change(db, &one)?.is_some() {
                found.push(one);
            }
        }
        Ok(found)
    }

    /// What has to be written there now, if anything.
    fn change(self, db: &Db, found: &Finding) -> Result<Option<Change>, Error> {
        let Some(room) = found.room.as_ref().map(RoomId::as_str) else {
            return Ok(None);
        };
        let at = &*found.address;
        let of_user = |sql| {
            db.row(DOING, sql, params![room, at], |r| {
                Ok((r.get::<_, String>(0)?, r.get::<_, Option<String>>(1)?))
            })
        };
        let of_this_room = |member: &Member| member.room == room;
        match self {
            MemberEvents => {
                let Some(right) = member(db, at)?.filter(of_this_room) else {
                    return Ok(None);
                };
                let row = db.row(DOING, MEMBERSHIP_OF, params![at], |r| {
                    let (user, room): (String, String) = (r.get(0)?, r.get(1)?);
                    Ok((user, room, r.get::<_, String>(2)?))
                })?;
                Ok(match row {
                    None => Some(Change::Insert(right)),
                    Some(row) => {
                        let is_right = (&*row.0, &*row.1, &*row.2)
                            == (&*right.user, &*right.room, &*right.membership);
                        (!is_right).then_some(Change::Update(right))
                    }
                })
            }
            LostMembers => {
                if of_user(CURRENT_MEMBER)?.is_some() {
                    return Ok(None);
                }
                let group = db.row(DOING, ONLY_GROUP, params![room], |r| r.get::<_, i64>(0))?;
                let Some(group) = group else { return Ok(None) };
                let groups = [group];
                let chains = state_lookup::chains(db, &groups)?;
                let state = state_lookup::state_at(db, &chains, &groups, MEMBER, at)?;
                let right = match state.get(&group) {
                    Some(event) => member(db, event)?,
                    None => None,
                };
                let is_theirs = |member: &Member| member.room == room && member.user == at;
                Ok(right.filter(is_theirs).map(Change::Insert))
            }
            CurrentState => {
                let Some(right) = member(db, at)?.filter(of_this_room) else {
                    return Ok(None);
                };
                let row = db.row(DOING, CURRENT_MEMBER, params![room, right.user], |r| {
                    Ok((r.get::<_, String>(0)?, r.get::<_, Option<String>>(1)?))
                })?;
                Ok(match row {
                    Some((event, Some(membership)))
                        if event == at && membership != right.membership =>
                    {
                        Some(Change::Update(right))
                    }
                    _ => None,
                })
            }
            Local => {
                let Some((event, _)) = of_user(CURRENT_MEMBER)? else {
                    return Ok(None);
                };
                let is_theirs = |member: &Member| member.room == room && member.user == at;
                let Some(right) = member(db, &event)?.filter(is_theirs) else {
                    return Ok(None);
                };
                Ok(match of_user(LOCAL_MEMBER)? {
                    None => Some(Change::Insert(right)),
                    Some((event, membership)) => {
                        let is_right =
                            event == right.event && membership.as_ref() == Some(&right.membership);
                        (!is_right).then_some(Change::Update(right))
                    }
                })
            }
            Snapshots => {
                let (Some((event, _)), Some(row)) = (of_user(LOCAL_MEMBER)?, of_user(SNAPSHOT)?)
                else {
                    return Ok(None);
                };
                let is_theirs = |member: &Member| member.room == room && member.user == at;
                let Some(right) = member(db, &event)?.filter(is_theirs) else {
                    return Ok(None);
                };
                let is_right = row.0 == right.event && row.1.as_ref() == Some(&right.membership);
                Ok((!is_right).then_some(Change::Update(right)))
            }
        }
    }

    pub(super) fn apply(self, tx: &Tx<'_>, found: &Finding) -> Result<i64, Error> {
        let Some(change) = self.change(tx, found)? else {
            return Ok(0);
        };
        match (self, change) {
            (MemberEvents, Change::Insert(m)) => tx.execute(
                DOING,
                INSERT_MEMBERSHIP,
                params![
                    m.event,
                    m.user,
                    m.sender,
                    m.room,
                    m.membership,
                    m.display_name,
                    m.avatar_url,
                    m.stream
                ],
            ),
            (MemberEvents, Change::Update(m)) => tx.execute(
                DOING,
                UPDATE_MEMBERSHIP,
                params![m.user, m.sender, m.room, m.membership, m.event],
            ),
            (LostMembers | CurrentState, Change::Insert(m)) => tx.execute(
                DOING,
                INSERT_CURRENT,
                params![m.room, m.user, m.event, m.membership, m.stream],
            ),
            (LostMembers | CurrentState, Change::Update(m)) => {
                tx.execute(DOING, UPDATE_CURRENT, params![m.membership, m.event])
            }
            (Local, change) => {
                let (sql, m) = match change {
                    Change::Insert(m) => (INSERT_LOCAL, m),
                    Change::Update(m) => (UPDATE_LOCAL, m),
                };
                tx.execute(
                    DOING,
                    sql,
                    params![m.event, m.membership, m.stream, m.room, m.user],
                )
            }
            (Snapshots, Change::Insert(m) | Change::Update(m)) => tx.execute(
                DOING,
                UPDATE_SNAPSHOT,
                params![m.event, m.membership, m.sender, m.stream, m.room, m.user],
            ),
        }
    }
}
