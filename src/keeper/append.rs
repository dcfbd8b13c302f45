//! Events that a program of its own writes: who says what, and when. Ids, order and state are ours.

use serde_json::{Map, Value, json};

use super::Keeper;
use crate::error::Error;
use crate::event::auth::auth_event_keys;
use crate::event::{CREATE, EventBuilder, EventError, EventSigner, MEMBER};
use crate::ids::{EventId, RoomId, UserId};
use crate::room_version::RoomVersion;
use crate::store::append::{EventWriter, RoomHead, insert_room, room_row};
use crate::store::tx::Tx;
use crate::time::Millis;

/// The longest type and state key, in bytes, as Matrix has it.
const LONGEST_KEY: usize = 255;

/// An event that is still to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    /// Who says it.
    pub sender: UserId,
    /// Its type, such as `m.room.message`.
    pub kind: String,
    /// What it is the state of; none for a message.
    pub state_key: Option<String>,
    /// What it says.
    pub content: Map<String, Value>,
    /// When it was said and received: its `origin_server_ts` and `received_ts`, in milliseconds since 1970.
    pub at: Millis,
}

impl NewEvent {
    /// The first event of a room of this version (`1` to `11`), which makes it.
    pub fn create(creator: impl Into<UserId>, version: &str, at: Millis) -> Self {
        let creator = creator.into();
        let content = json!({"creator": creator, "room_version": version});
        Self::state(creator, CREATE, "", content, at)
    }

    /// A user enters.
    pub fn join(user: impl Into<UserId>, at: Millis) -> Self {
        let user = user.into();
        let key = user.to_string();
        Self::state(user, MEMBER, &key, json!({"membership": "join"}), at)
    }

    /// A user says something.
    pub fn message(sender: impl Into<UserId>, text: &str, at: Millis) -> Self {
        Self {
            sender: sender.into(),
            kind: "m.room.message".into(),
            state_key: None,
            content: members(json!({"msgtype": "m.text", "body": text})),
            at,
        }
    }

    fn state(sender: UserId, kind: &str, key: &str, content: Value, at: Millis) -> Self {
        Self {
            sender,
            kind: kind.into(),
            state_key: Some(key.into()),
            content: members(content),
            at,
        }
    }

    fn refuse_invalid(&self, now: Millis) -> Result<(), Error> {
        let key = self.state_key.as_deref().unwrap_or_default();
        let wrong = match () {
            () if !self.sender.has_localpart() || !is_user(self.sender.as_str()) => {
                "its sender is no user id"
            }
            () if self.kind.is_empty() => "it has no type",
            () if self.kind.len() > LONGEST_KEY || key.len() > LONGEST_KEY => {
                "its type or state key has more than 255 bytes"
            }
            () if self.at < Millis(0) => "its time is before 1970",
            () if self.at > now => "its time is still to come",
            () => return Ok(()),
        };
        Err(bad(wrong))
    }
}

fn is_user(id: &str) -> bool {
    id.strip_prefix('@').is_some_and(|rest| rest.contains(':'))
}

fn members(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

fn bad(why: &str) -> Error {
    Error::bad(
        "M_INVALID_PARAM",
        format!("an event cannot be written: {why}"),
    )
}

impl Keeper {
    /// Writes events at the end of a room, in this order and in one transaction, and answers their ids. The first event of a
    /// room that is not there is its creation ([`NewEvent::create`]). Whether who says it may say it is the caller's affair.
    ///
    /// Each counts as received when it was said: whoever brings a history along knows since when it is there, and retention
    /// and ages of points go by that. In one room times should not go back by more than a day: such a time is not believed,
    /// and the event counts as received with those before it.
    ///
    /// Where the configuration has the homeserver's signing key they are hashed and signed with it. Else they are not, and no
    /// other server would take them: that is for a database of your own, and refused where a Synapse has been.
    ///
    /// # Errors
    /// [`Error::Refused`] while a homeserver runs, whatever the configuration accepts, because it would not hear of them; and
    /// for events that are not signed where a Synapse has been. [`Error::BadRequest`] for an event that cannot be, or a time
    /// that is still to come, a room that is not there, a version of rooms that is not known. [`Error::Stopping`]; those of
    /// the database. Nothing was written then.
    ///
    /// # Locking
    /// Waits until no job has the room.
    pub fn append(&self, room: &RoomId, events: &[NewEvent]) -> Result<Vec<EventId>, Error> {
        if self.is_stopping() {
            return Err(Error::Stopping);
        }
        if !room.is_valid() {
            return Err(bad("its room has no legal id"));
        }
        let config = &self.shared.config;
        let now = config.clock.now();
        events.iter().try_for_each(|new| new.refuse_invalid(now))?;
        let signer = match &config.event_signing.signing_key {
            None => None,
            Some(_) => {
                let keys = config.event_signing.keys()?;
                Some(EventSigner::new(&config.server_name, &keys).map_err(refusal)?)
            }
        };
        let writing = Writing {
            room,
            server: &config.server_name,
            signer,
            now,
        };
        self.shared
            .write_once_in(Some(room), "write events", |tx| {
                if let Some(sign) = self.shared.running_homeserver(tx)? {
                    return Err(Error::Refused(format!(
                        "a homeserver seems to be running on this database: {sign}. It would not hear of events that are \
                         written past it: stop it first. Nothing was written"
                    )));
                }
                writing.write(tx, events)
            })
    }
}

/// What writes.
struct Writing<'a> {
    room: &'a RoomId,
    server: &'a str,
    signer: Option<EventSigner>,
    now: Millis,
}

impl Writing<'_> {
    fn write(&self, tx: &Tx<'_>, events: &[NewEvent]) -> Result<Vec<EventId>, Error> {
        if self.signer.is_none() && tx.catalog().is_of_homeserver() {
            return Err(Error::Refused(
                "a Synapse has been at work on this database, and what is written into it has to be signed: say where its \
                 key is (signing_key_path). Nothing was written"
                    .into(),
            ));
        }
        let Some(first) = events.first() else {
            return Ok(Vec::new());
        };
        let mut head = self.head(tx, first)?;
        let mut writer = EventWriter::begin(tx, self.now)?;
        let ids = events.iter().map(|new| {
            let event = self.one(tx, &mut head, new)?;
            writer.received_at(new.at);
            writer.append(&mut head, &event)?;
            Ok(event.id)
        });
        let ids = ids.collect::<Result<_, Error>>()?;
        writer.end()?;
        Ok(ids)
    }

    /// The end of the room, which is made where `first` is its creation.
    fn head(&self, tx: &Tx<'_>, first: &NewEvent) -> Result<RoomHead, Error> {
        let known = |version: &str| {
            RoomVersion::of(version)
                .ok_or_else(|| bad(&format!("rooms of version {version} are not known")))
        };
        if let Some(row) = room_row(tx, self.room)? {
            let version = row.version.as_deref().unwrap_or("1");
            let head = RoomHead::read(tx, self.room, known(version)?, self.server)?;
            return head.ok_or_else(|| bad("the room has no event to follow"));
        }
        if first.kind != CREATE || first.state_key.as_deref() != Some("") {
            return Err(Error::bad(
                "M_NOT_FOUND",
                format!(
                    "room {} is not known, and its first event is its creation",
                    self.room
                ),
            ));
        }
        let version = first.content.get("room_version").and_then(Value::as_str);
        let version = known(version.unwrap_or("1"))?;
        if version.is_create_hash_room_id {
            return Err(bad(
                "the id of a room of this version follows from its first event: use 11",
            ));
        }
        insert_room(tx, self.room, version, &first.sender)?;
        Ok(RoomHead::of_new_room(self.room, version, self.server))
    }

    fn one(
        &self,
        tx: &Tx<'_>,
        head: &mut RoomHead,
        new: &NewEvent,
    ) -> Result<crate::event::Event, Error> {
        let is_first = head.state(CREATE, "").is_none();
        if (new.kind == CREATE) != is_first {
            return Err(bad(
                "the first event of a room is its creation, and no other is",
            ));
        }
        let membership = new.content.get("membership").and_then(Value::as_str);
        let membership = membership.filter(|_| new.kind == MEMBER);
        let sender = new.sender.as_str();
        let keys = auth_event_keys(&new.kind, sender, new.state_key.as_deref(), membership);
        let auth = head.auth_event_keys(tx, &keys)?;
        let prev = head.prev(tx)?;
        let version = head.version();
        let create = head.state(CREATE, "").cloned();
        let replaces = new.state_key.as_ref();
        let replaces = replaces.and_then(|key| head.state(&new.kind, key)).cloned();
        let builder = EventBuilder {
            room: Some(self.room),
            kind: &new.kind,
            sender: &new.sender,
            state_key: new.state_key.as_deref(),
            content: new.content.clone(),
            depth: head.next_depth(),
            prev,
            auth,
            create_event_id: create.as_ref().filter(|_| version.is_create_hash_room_id),
            at: new.at,
            replaces: replaces.as_ref(),
        };
        let event = match &self.signer {
            Some(_) if !new.sender.is_local(self.server) => {
                return Err(bad(
                    "its sender is of another server, which signs its own events",
                ));
            }
            Some(signer) => signer.sign(version, builder),
            None => builder.unsigned(version, self.server),
        };
        event.map_err(refusal)
    }
}

fn refusal(error: EventError) -> Error {
    match error {
        EventError::TooLarge => Error::bad("M_TOO_LARGE", "an event may have 65536 bytes"),
        EventError::Form(what) => bad(&what),
        EventError::Broken(what) => Error::Bug(what),
        other => Error::Refused(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::HomeserverPolicy;
    use crate::keeper::{RoomQuery, check_offline, rooms};
    use crate::store::schema;
    use crate::time::days;

    const ALICE: &str = "@alice:example.org";
    const BOB: &str = "@bob:elsewhere.example";

    fn opened(directory: &std::path::Path) -> (Config, Keeper) {
        let database = directory.join("homeserver.db");
        schema::create(database.as_path()).expect("made");
        let config = Config::for_sqlite(&database, "example.org");
        (config.clone(), Keeper::open(config).expect("opens"))
    }

    fn topic(text: &str) -> NewEvent {
        let content = json!({"topic": text});
        NewEvent::state(ALICE.into(), "m.room.topic", "", content, Millis(4))
    }

    #[test]
    fn rooms_of_every_version_are_whole_with_what_was_written_and_are_listed() {
        let directory = tempfile::tempdir().expect("directory");
        let (config, keeper) = opened(directory.path());
        for version in 1..=11 {
            let room = RoomId::new(format!("!room{version}:example.org"));
            let begun = [
                NewEvent::create(ALICE, &version.to_string(), Millis(1)),
                NewEvent::join(ALICE, Millis(2)),
                NewEvent::join(BOB, Millis(2)),
            ];
            let mut ids = keeper.append(&room, &begun).expect("written");
            for n in 0..3 {
                let said = [
                    NewEvent::message(BOB, "hello", Millis(3)),
                    topic("t"),
                    topic(&n.to_string()),
                ];
                ids.extend(keeper.append(&room, &said).expect("written"));
            }
            ids.sort();
            ids.dedup();
            assert_eq!(ids.len(), 12, "version {version}");
        }
        assert_eq!(
            keeper
                .append(&RoomId::new("!room1:example.org"), &[])
                .expect("nothing"),
            []
        );
        keeper.stop();
        let violations = check_offline(&config, |_, _| ()).expect("checks");
        assert_eq!(violations, []);
        let listed = rooms(&config, &RoomQuery::default()).expect("listed").rooms;
        assert_eq!(listed.len(), 11);
        for room in listed {
            assert_eq!(
                (room.events, room.joined_local_members, room.joined_members),
                (12, 1, 2),
                "{}",
                room.room_id
            );
        }
        // They count as received when they were said.
        let conn = rusqlite::Connection::open(config.database.file().expect("a file"));
        let otherwise = conn.expect("opens").query_row(
            "SELECT count(*) FROM events WHERE received_ts <> origin_server_ts OR received_ts NOT BETWEEN 1 AND 4",
            [],
            |row| row.get::<_, i64>(0),
        );
        assert_eq!(otherwise, Ok(0));
    }

    #[test]
    fn beside_a_homeserver_nothing_is_written_whatever_is_accepted() {
        let directory = tempfile::tempdir().expect("directory");
        let (mut config, keeper) = opened(directory.path());
        keeper.stop();
        config.homeserver = HomeserverPolicy::AssumeRunning;
        let keeper = Keeper::open(config.clone()).expect("opens");
        let room = RoomId::new("!room:example.org");
        let refused = keeper.append(&room, &[NewEvent::create(ALICE, "11", Millis(1))]);
        assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
        keeper.stop();
        let listed = rooms(&config, &RoomQuery::default()).expect("listed").rooms;
        assert_eq!(listed, []);
    }

    #[test]
    fn what_cannot_be_is_refused_and_nothing_is_written() {
        let directory = tempfile::tempdir().expect("directory");
        let (config, keeper) = opened(directory.path());
        let (room, at) = (RoomId::new("!room:example.org"), Millis(1));
        let create = |version| NewEvent::create(ALICE, version, at);
        let refused = |room: &RoomId, events: &[NewEvent]| match keeper.append(room, events) {
            Err(e @ Error::BadRequest { .. }) => e.to_string(),
            other => panic!("{other:?}"),
        };
        refused(&room, &[NewEvent::join(ALICE, at)]);
        refused(&room, &[create("teleport")]);
        refused(&room, &[create("12")]);
        refused(&room, &[create("11"), create("11")]);
        refused(
            &room,
            &[create("11"), NewEvent::message("alice", "no user", at)],
        );
        refused(&RoomId::new("room"), &[create("11")]);
        let long = "x".repeat(70_000);
        refused(&room, &[create("11"), NewEvent::message(ALICE, &long, at)]);
        for wrong in [config.clock.now() + days(1), Millis(-1)] {
            refused(&room, &[create("11"), NewEvent::join(ALICE, wrong)]);
        }
        assert_eq!(
            rooms(&config, &RoomQuery::default()).expect("listed").rooms,
            []
        );
        // Where a Synapse has been, what is not signed stays out.
        let conn = rusqlite::Connection::open(config.database.file().expect("a file"));
        conn.expect("opens")
            .execute("INSERT INTO applied_schema_deltas VALUES (94, 'a.sql')", [])
            .expect("noted");
        let refused = keeper.append(&room, &[create("11")]);
        assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
        keeper.stop();
    }
}
