//! Shutting a room down: its people leave and forget it, a new room takes them up, its aliases follow (D-6 … D-11).
//!
//! Each step is one transaction that looks at the database first, so that a run which was interrupted anywhere is taken
//! up again to the same end. What a transaction is about to do is told before it commits, because the ledger and the
//! database cannot commit together; what was told and did not happen is seen in the database and told anew.

use std::collections::BTreeSet;

use super::aliases;
use super::author::{Author, refusal};
use super::members::{Moved, Person, Way, can_write};
use super::request::{Request, Shutdown};
use super::successor::{self, Plan};
use crate::config::Authorship;
use crate::error::Error;
use crate::event::EventError;
use crate::ids::{RoomId, UserId};
use crate::room_version::RoomVersion;
use crate::store::append::{self, RoomRow};
use crate::store::db::Db;
use crate::store::{people, room_rows};
use crate::worksite::{Gait, Worksite};

/// People moved in one transaction: it stays well under a second, and their state is read once.
const BATCH: usize = 200;

/// The longest notice: with everything else an event of it stays within what servers accept.
const LONGEST_NOTICE: usize = 60_000;

/// Who hears what has been done, and writes it down.
pub(super) type Told<'a> = &'a mut dyn FnMut(&Shutdown) -> Result<(), Error>;

/// Everything a shutdown needs that can be missing; found before anything is touched.
pub(super) struct Means {
    author: Author,
    /// The old room's version; none where nobody has to leave it.
    version: Option<&'static RoomVersion>,
}

impl Means {
    /// What a person should know of them.
    pub fn note(&self) -> Option<&str> {
        self.author.note.as_deref()
    }
}

/// Finds what the shutdown needs; `None` when there is nobody to move and no room to make, so that it needs nothing, or
/// when the room is given up (`force_purge`) without.
///
/// # Errors
/// [`Error::Unsafe`] when something is missing, or a homeserver runs; [`Error::BadRequest`] for a creator of another
/// server or too long a notice; [`Error::Config`] for a room that cannot be made. Nothing is touched.
pub(super) fn means(site: &Worksite<'_>, request: &Request) -> Result<Option<Means>, Error> {
    if let Some(user) = &request.new_room_user_id
        && !user.is_local(site.server_name)
    {
        let message = format!("User must be our own: {user}");
        return Err(Error::bad("M_UNKNOWN", message));
    }
    let Some(row) = append::room_row(&site.db, site.room)? else {
        return Ok(None);
    };
    let people = room_rows::local_users_to_move(&site.db, site.room, site.server_name)?;
    let creator = request.new_room_user_id.as_ref();
    if people.is_empty() && creator.is_none() {
        return Ok(None);
    }
    match find(site, request, &row, !people.is_empty()) {
        Ok(means) => Ok(Some(means)),
        // Without a new room nothing of what is missing is needed where the room goes in any case.
        Err(e) if request.force_purge && request.purge && creator.is_none() => {
            log::warn!(
                "room {}: {} local users stay in it until its rows are deleted: {e}",
                site.room,
                people.len()
            );
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

fn find(
    site: &Worksite<'_>,
    request: &Request,
    row: &RoomRow,
    has_people: bool,
) -> Result<Means, Error> {
    if site.gait == Gait::Beside {
        return Err(Error::Unsafe(
            "events cannot be written while a homeserver runs, which would not hear of them: stop it; or let it move the \
             people itself (roomkeeper.homeserver.url and admin_token_path say how it is asked)"
                .into(),
        ));
    }
    let version = match has_people {
        true => Some(version_of(site, row)?),
        false => None,
    };
    if has_people && people::is_partly_joined(&site.db, site.room)? {
        return Err(Error::Unsafe(
            "the homeserver is still on its way into the room and does not know its whole state: wait until it has fully \
             joined, then ask again"
                .into(),
        ));
    }
    let author = Author::of(&site.db, site.authorship, site.server_name, site.room)?;
    if let Some(creator) = &request.new_room_user_id {
        if request.message().len() > LONGEST_NOTICE || request.room_name().len() > LONGEST_NOTICE {
            return Err(refusal(EventError::TooLarge));
        }
        plan(&site.db, site.authorship, request, creator)?.open(&site.db, &author, site.clock)?;
    }
    Ok(Means { author, version })
}

fn plan<'a>(
    db: &Db,
    authorship: &'a Authorship,
    request: &'a Request,
    creator: &'a UserId,
) -> Result<Plan<'a>, Error> {
    Ok(Plan {
        creator,
        name: request.room_name(),
        version: successor::version(db, authorship)?,
        authorship,
    })
}

fn version_of(site: &Worksite<'_>, row: &RoomRow) -> Result<&'static RoomVersion, Error> {
    let name = match &row.version {
        Some(name) => name.clone(),
        None => append::version_by_create_event(&site.db, site.room)?
            .unwrap_or_else(|| "unknown".into()),
    };
    RoomVersion::of(&name)
        .filter(|version| can_write(version))
        .ok_or_else(|| refusal(EventError::RoomVersion(name)))
}

/// Shuts the room down, from wherever an earlier run left it: `before` is what that told last.
///
/// `told` hears what has been done, and what the next transaction is about to do.
///
/// # Errors
/// As [`means`]; [`Error::Stopping`] and [`Error::Cancelled`] between transactions. One who cannot be moved is no error.
///
/// # Locking
/// Takes the room alone, and the writer, for each transaction.
pub(super) fn shut_down(
    site: &mut Worksite<'_>,
    request: &Request,
    before: Shutdown,
    told: Told<'_>,
) -> Result<Shutdown, Error> {
    let Some(means) = means(site, request)? else {
        return left_behind(site, before);
    };
    let people = room_rows::local_users_to_move(&site.db, site.room, site.server_name)?;
    let mut shutdown = before;
    let still_there: BTreeSet<&UserId> = people.iter().map(|(user, _)| user).collect();
    shutdown.kicked_users.retain(|u| !still_there.contains(u));
    shutdown.failed_to_kick_users.clear();
    let successor = match &request.new_room_user_id {
        Some(creator) => {
            let successor = make_successor(site, request, creator, &means, &mut shutdown, told)?;
            Some((creator, successor))
        }
        None => None,
    };
    let to = successor.as_ref().map(|(_, to)| to);
    if let Some(version) = means.version {
        // Those who are only invited first: with the last who is joined, the room's current state goes (D-24).
        let (joined, others): (Vec<_>, Vec<_>) = people.into_iter().partition(|(_, m)| m == "join");
        let people: Vec<Person> = others.into_iter().chain(joined).collect();
        let bound = usize::try_from(site.bounds.events_offline).unwrap_or(BATCH);
        for batch in people.chunks(bound.clamp(1, BATCH)) {
            let moved = move_batch(site, &means.author, version, to, batch, &mut shutdown, told)?;
            shutdown.kicked_users.extend(moved.kicked);
            shutdown.failed_to_kick_users.extend(moved.failed);
            told(&shutdown)?;
        }
    }
    if let Some((creator, to)) = &successor {
        shutdown.local_aliases = finish(site, request, creator, &means, to)?;
        told(&shutdown)?;
    }
    Ok(shutdown)
}

/// The new room, and its version.
struct Successor {
    room: RoomId,
    version: &'static RoomVersion,
}

/// Everybody who is in the room stays, because nothing can be written into it.
fn left_behind(site: &Worksite<'_>, mut shutdown: Shutdown) -> Result<Shutdown, Error> {
    let people = room_rows::local_users_to_move(&site.db, site.room, site.server_name)?;
    shutdown.failed_to_kick_users = people.into_iter().map(|(user, _)| user).collect();
    Ok(shutdown)
}

/// Makes the new room, or finds the one that an earlier run has made.
fn make_successor(
    site: &mut Worksite<'_>,
    request: &Request,
    creator: &UserId,
    means: &Means,
    shutdown: &mut Shutdown,
    told: Told<'_>,
) -> Result<Successor, Error> {
    if let Some(room) = &shutdown.new_room_id
        && let Some(row) = append::room_row(&site.db, room)?
    {
        let version = version_of(site, &row)?;
        let room = room.clone();
        return Ok(Successor { room, version });
    }
    site.stay_or_go()?;
    site.still_alone()?;
    let plan = plan(&site.db, site.authorship, request, creator)?;
    let (clock, author, version) = (site.clock, &means.author, plan.version);
    let opening = plan.open(&site.db, author, clock)?;
    shutdown.new_room_id = Some(opening.room.clone());
    told(shutdown)?;
    let _writer = site.writer.lock();
    site.db.write("make the new room", |db| {
        plan.write(db, &opening, author, clock)
    })?;
    log::info!("room {}: its people go to {}", site.room, opening.room);
    Ok(Successor {
        room: opening.room,
        version,
    })
}

fn move_batch(
    site: &mut Worksite<'_>,
    author: &Author,
    version: &'static RoomVersion,
    to: Option<&Successor>,
    batch: &[Person],
    shutdown: &mut Shutdown,
    told: Told<'_>,
) -> Result<Moved, Error> {
    site.stay_or_go()?;
    site.still_alone()?;
    // Told before it is done: who is named here and did not leave is seen in the database.
    let mut planned = shutdown.clone();
    planned
        .kicked_users
        .extend(batch.iter().map(|(user, _)| user.clone()));
    told(&planned)?;
    let way = Way {
        author,
        clock: site.clock,
        room: site.room,
        server: site.server_name,
        version,
        successor: to.map(|to| (&to.room, to.version)),
    };
    let _room = site.locks.write(site.room);
    let _writer = site.writer.lock();
    site.db
        .write("move the room's people", |db| way.go(db, batch))
}

/// The notice and the aliases, in one transaction; answers the aliases.
fn finish(
    site: &mut Worksite<'_>,
    request: &Request,
    creator: &UserId,
    means: &Means,
    to: &Successor,
) -> Result<Vec<String>, Error> {
    site.stay_or_go()?;
    site.still_alone()?;
    let (room, clock, message) = (site.room, site.clock, request.message());
    let requester = request.requester.as_ref().unwrap_or(creator);
    let _room = site.locks.write(site.room);
    let _writer = site.writer.lock();
    site.db.write("finish the new room", |db| {
        if !people::has_spoken(db, &to.room, creator)? {
            let author = &means.author;
            successor::notify(db, author, &to.room, to.version, creator, message, clock)?;
        }
        aliases::hand_over(db, room, &to.room, requester)
    })
}
