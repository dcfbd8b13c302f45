//! Shutting a room down: its people leave and forget it, a new room takes them up, its aliases follow (D-6 … D-11).
//!
//! Each step is one transaction that looks at the database first, so that a run which was interrupted anywhere is taken
//! up again to the same end. What a transaction is about to do is told before it commits, because the ledger and the
//! database cannot commit together; what was told and did not happen is seen in the database and told anew.

use std::collections::BTreeSet;

use super::aliases;
use super::author::{EventAuthor, refusal};
use super::members::{Member, MemberMover, MoveOutcome, can_write};
use super::new_room::{self, Plan};
use super::request::{Request, Shutdown};
use crate::config::EventSigning;
use crate::error::Error;
use crate::event::EventError;
use crate::ids::{RoomId, UserId};
use crate::job::{Endurance, IfStarted, JobContext, Limits, Log, Outcome, Scope, Why};
use crate::plural::count_of;
use crate::room_version::RoomVersion;
use crate::store::append::{self, RoomRow};
use crate::store::db::Db;
use crate::store::{members, room_rows};
use crate::time::Clock;

/// People moved in one transaction: it stays well under a second, and their state is read once.
const BATCH: usize = 200;

/// The longest notice: with everything else an event of it stays within what servers accept.
const LONGEST_NOTICE: usize = 60_000;

/// Who hears what has been done, and writes it down.
pub(super) type ProgressSink<'a> = &'a mut dyn FnMut(&Shutdown) -> Result<(), Error>;

/// Everything a shutdown needs that can be missing; found before anything is touched.
pub(super) struct ShutdownResources {
    author: EventAuthor,
    /// The old room's version; none where nobody has to leave it.
    version: Option<&'static RoomVersion>,
}

impl ShutdownResources {
    /// What a person should know of them.
    pub fn note(&self) -> Option<&str> {
        self.author.note.as_deref()
    }
}

/// Where a shutdown is to be: what a dry run has of it, too.
#[derive(Clone, Copy)]
pub struct Setting<'a> {
    /// The database.
    pub db: &'a Db,
    /// The room.
    pub room: &'a RoomId,
    /// This server's name.
    pub server_name: &'a str,
    /// How it is known that a homeserver runs, if one does.
    pub homeserver: Option<&'a str>,
    /// What events are signed with.
    pub event_signing: &'a EventSigning,
    /// The time.
    pub clock: &'a dyn Clock,
}

impl<'a> Setting<'a> {
    /// That of a job, when no homeserver runs.
    pub(super) fn of(ctx: &'a JobContext<'_>) -> Self {
        Self {
            db: &ctx.db,
            room: ctx.room,
            server_name: ctx.server_name,
            homeserver: None,
            event_signing: ctx.event_signing,
            clock: ctx.clock,
        }
    }
}

/// Finds what the shutdown needs; `None` when there is nobody to move and no room to make, so that it needs nothing, or
/// when the room is given up (`force_purge`) without.
///
/// # Errors
/// [`Error::Refused`] when something is missing, or a homeserver runs; [`Error::BadRequest`] for a creator of another
/// server or too long a notice; [`Error::Config`] for a room that cannot be made. Nothing is touched.
pub(super) fn means(
    ctx: &Setting<'_>,
    request: &Request,
) -> Result<Option<ShutdownResources>, Error> {
    if let Some(user) = &request.new_room_user_id
        && !user.is_local(ctx.server_name)
    {
        let message = format!("User must be our own: {user}");
        return Err(Error::bad("M_UNKNOWN", message));
    }
    let Some(row) = append::room_row(ctx.db, ctx.room)? else {
        return Ok(None);
    };
    let people = room_rows::local_users_to_move(ctx.db, ctx.room, ctx.server_name)?;
    let creator = request.new_room_user_id.as_ref();
    if people.is_empty() && creator.is_none() {
        return Ok(None);
    }
    match find(ctx, request, &row, !people.is_empty()) {
        Ok(means) => Ok(Some(means)),
        // Without a new room nothing of what is missing is needed where the room goes in any case.
        Err(e) if request.force_purge && request.purge && creator.is_none() => {
            log::info!(
                "room {}: {} in it until its rows are deleted: {e}",
                ctx.room,
                count_of(people.len() as u64, "local user stays", "local users stay")
            );
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

fn find(
    ctx: &Setting<'_>,
    request: &Request,
    row: &RoomRow,
    has_people: bool,
) -> Result<ShutdownResources, Error> {
    if let Some(sign) = ctx.homeserver {
        return Err(refusal_beside(sign));
    }
    let version = match has_people {
        true => Some(version_of(ctx, row)?),
        false => None,
    };
    if has_people && members::is_partly_joined(ctx.db, ctx.room)? {
        return Err(Error::Refused(
            "the homeserver is still on its way into the room and does not know its whole state: wait until it has fully \
             joined, then ask again"
                .into(),
        ));
    }
    let author = EventAuthor::of(ctx.db, ctx.event_signing, ctx.server_name, ctx.room)?;
    if let Some(creator) = &request.new_room_user_id {
        if request.message().len() > LONGEST_NOTICE || request.room_name().len() > LONGEST_NOTICE {
            return Err(refusal(EventError::TooLarge));
        }
        plan(ctx.db, ctx.event_signing, request, creator)?.open(ctx.db, &author, ctx.clock)?;
    }
    Ok(ShutdownResources { author, version })
}

fn refusal_beside(sign: &str) -> Error {
    Error::Refused(format!(
        "events cannot be written while a homeserver runs, which would not hear of them ({sign}): stop it; or let it move \
         the people itself (roomkeeper.homeserver.url and admin_token_path say how it is asked)"
    ))
}

/// Nothing is written beside a homeserver, whatever the configuration accepts.
const WHILE_STOPPED: Limits<'_> = Limits {
    deadline: None,
    if_started: IfStarted::Abort,
    endures: Endurance::UntilCancelled,
    log: Log::Leave,
    shows_tables: false,
    is_batch: false,
};

fn unless_started<T>(outcome: Outcome<T>) -> Result<T, Error> {
    match outcome {
        Outcome::Aborted(Why::HomeserverStarted(sign)) => Err(refusal_beside(&sign)),
        outcome => outcome.done().map(|(value, _)| value),
    }
}

/// Before every transaction, whatever the configuration accepts.
fn refuse_running_homeserver(ctx: &mut JobContext<'_>) -> Result<(), Error> {
    ctx.look_for_homeserver()?;
    match ctx.running_homeserver()? {
        None => Ok(()),
        Some(sign) => Err(refusal_beside(&sign)),
    }
}

fn plan<'a>(
    db: &Db,
    event_signing: &'a EventSigning,
    request: &'a Request,
    creator: &'a UserId,
) -> Result<Plan<'a>, Error> {
    Ok(Plan {
        creator,
        name: request.room_name(),
        version: new_room::version(db, event_signing)?,
        event_signing,
    })
}

fn version_of(ctx: &Setting<'_>, row: &RoomRow) -> Result<&'static RoomVersion, Error> {
    let name = match &row.version {
        Some(name) => name.clone(),
        None => {
            append::version_by_create_event(ctx.db, ctx.room)?.unwrap_or_else(|| "unknown".into())
        }
    };
    RoomVersion::of(&name)
        .filter(|version| can_write(version))
        .ok_or_else(|| refusal(EventError::RoomVersion(name)))
}

/// Shuts the room down, from wherever an earlier run left it: `before` is what that told last.
///
/// `on_progress` hears what has been done, and what the next transaction is about to do.
///
/// # Errors
/// As [`means`]; [`Error::Stopping`] and [`Error::Cancelled`] between transactions. One who cannot be moved is no error.
///
/// # Locking
/// Takes the room alone, and the writer, for each transaction.
pub(super) fn shut_down(
    ctx: &mut JobContext<'_>,
    request: &Request,
    before: Shutdown,
    on_progress: ProgressSink<'_>,
) -> Result<Shutdown, Error> {
    ctx.look_for_homeserver()?;
    let sign = ctx.running_homeserver()?;
    let setting = Setting {
        homeserver: sign.as_deref(),
        ..Setting::of(ctx)
    };
    let Some(means) = means(&setting, request)? else {
        return left_behind(ctx, before);
    };
    let people = room_rows::local_users_to_move(&ctx.db, ctx.room, ctx.server_name)?;
    let mut shutdown = before;
    let still_there: BTreeSet<&UserId> = people.iter().map(|(user, _)| user).collect();
    shutdown.kicked_users.retain(|u| !still_there.contains(u));
    shutdown.failed_to_kick_users.clear();
    let new_room = match &request.new_room_user_id {
        Some(creator) => {
            let new_room =
                make_new_room(ctx, request, creator, &means, &mut shutdown, on_progress)?;
            Some((creator, new_room))
        }
        None => None,
    };
    let to = new_room.as_ref().map(|(_, to)| to);
    if let Some(version) = means.version {
        // Those who are only invited first: with the last who is joined, the room's current state goes (D-24).
        let (joined, others): (Vec<_>, Vec<_>) = people.into_iter().partition(|(_, m)| m == "join");
        let people: Vec<Member> = others.into_iter().chain(joined).collect();
        let bound = usize::try_from(ctx.limits.events_offline).unwrap_or(BATCH);
        for batch in people.chunks(bound.clamp(1, BATCH)) {
            let moved = move_batch(
                ctx,
                &means.author,
                version,
                to,
                batch,
                &mut shutdown,
                on_progress,
            )?;
            shutdown.kicked_users.extend(moved.kicked);
            shutdown.failed_to_kick_users.extend(moved.failed);
            ctx.note_additions();
            on_progress(&shutdown)?;
        }
    }
    if let Some((creator, to)) = &new_room {
        shutdown.local_aliases = finish(ctx, request, creator, &means, to)?;
        ctx.note_additions();
        on_progress(&shutdown)?;
    }
    Ok(shutdown)
}

/// The new room, and its version.
struct NewRoom {
    room: RoomId,
    version: &'static RoomVersion,
}

/// Everybody who is in the room stays, because nothing can be written into it.
fn left_behind(ctx: &JobContext<'_>, mut shutdown: Shutdown) -> Result<Shutdown, Error> {
    let people = room_rows::local_users_to_move(&ctx.db, ctx.room, ctx.server_name)?;
    shutdown.failed_to_kick_users = people.into_iter().map(|(user, _)| user).collect();
    Ok(shutdown)
}

/// Makes the new room, or finds the one that an earlier run has made.
fn make_new_room(
    ctx: &mut JobContext<'_>,
    request: &Request,
    creator: &UserId,
    means: &ShutdownResources,
    shutdown: &mut Shutdown,
    on_progress: ProgressSink<'_>,
) -> Result<NewRoom, Error> {
    if let Some(room) = &shutdown.new_room_id
        && let Some(row) = append::room_row(&ctx.db, room)?
    {
        let version = version_of(&Setting::of(ctx), &row)?;
        let room = room.clone();
        return Ok(NewRoom { room, version });
    }
    // Here as well as in the transaction: what is told before it would not come to pass.
    ctx.check_cancelled()?;
    refuse_running_homeserver(ctx)?;
    let plan = plan(&ctx.db, ctx.event_signing, request, creator)?;
    let (clock, author, version) = (ctx.clock, &means.author, plan.version);
    let opening = plan.open(&ctx.db, author, clock)?;
    shutdown.new_room_id = Some(opening.room.clone());
    on_progress(shutdown)?;
    let (doing, limits) = ("make the new room", WHILE_STOPPED);
    ctx.small_transaction(doing, Scope::Room, limits, |tx| {
        Ok(plan.write(tx, &opening, author, clock)?)
    })
    .and_then(unless_started)?;
    log::info!("room {}: its people go to {}", ctx.room, opening.room);
    Ok(NewRoom {
        room: opening.room,
        version,
    })
}

fn move_batch(
    ctx: &mut JobContext<'_>,
    author: &EventAuthor,
    version: &'static RoomVersion,
    to: Option<&NewRoom>,
    batch: &[Member],
    shutdown: &mut Shutdown,
    on_progress: ProgressSink<'_>,
) -> Result<MoveOutcome, Error> {
    ctx.check_cancelled()?;
    refuse_running_homeserver(ctx)?;
    // Told before it is done: who is named here and did not leave is seen in the database.
    let mut planned = shutdown.clone();
    planned
        .kicked_users
        .extend(batch.iter().map(|(user, _)| user.clone()));
    on_progress(&planned)?;
    let mover = MemberMover {
        author,
        clock: ctx.clock,
        room: ctx.room,
        server: ctx.server_name,
        version,
        new_room: to.map(|to| (&to.room, to.version)),
    };
    let (doing, limits) = ("move the room's people", WHILE_STOPPED);
    let moved = ctx.small_transaction(doing, Scope::Room, limits, |tx| {
        Ok(mover.move_batch(tx, batch)?)
    })?;
    unless_started(moved)
}

/// The notice and the aliases, in one transaction; answers the aliases.
fn finish(
    ctx: &mut JobContext<'_>,
    request: &Request,
    creator: &UserId,
    means: &ShutdownResources,
    to: &NewRoom,
) -> Result<Vec<String>, Error> {
    ctx.check_cancelled()?;
    refuse_running_homeserver(ctx)?;
    let (room, clock, message) = (ctx.room, ctx.clock, request.message());
    let requester = request.requester.as_ref().unwrap_or(creator);
    let (doing, limits) = ("finish the new room", WHILE_STOPPED);
    let finished = ctx.small_transaction(doing, Scope::Room, limits, |tx| {
        if !members::has_spoken(tx, &to.room, creator)? {
            let author = &means.author;
            new_room::notify(tx, author, &to.room, to.version, creator, message, clock)?;
        }
        Ok(aliases::move_aliases(tx, room, &to.room, requester)?)
    })?;
    unless_started(finished)
}
