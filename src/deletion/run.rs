//! A deletion from its first step to its last, each of which can be done again.
//!
//! Block, move the members, delete the rows: in this order, so that nobody comes back in between. Every step says in the
//! ledger that it is done, and looks at the database before it does anything.

use super::request::{Request, Shutdown};
use super::{delegate, rows, shutdown};
use crate::config::HomeserverApi;
use crate::error::Error;
use crate::ids::{RoomId, UserId};
use crate::job::{
    Endurance, IfStarted, JobContext, Limits, Phase, Progress, Removes, Scope, ServerState,
    acquire_synapse_lock, clean_up,
};
use crate::plural::{count, count_of};
use crate::store::db::Db;
use crate::store::homeserver::{NEW_EVENT_LOCK, PURGE_LOCK};
use crate::store::{blocks, room_rows};

/// What a deletion's progress holds besides: what its shutdown did so far (S-6).
pub const SHUTDOWN_ROOM: &str = "shutdown_room";

/// Whether the shutdown is over.
const IS_SHUT_DOWN: &str = "is_shut_down";

/// What is to be done with a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeletionScope {
    /// Shut it down, then delete its rows if the request says so.
    Whole,
    /// Delete its rows, whoever was in it.
    Rows,
}

/// Carries out a deletion from wherever an earlier run of the same job left it.
///
/// # Errors
/// Refusals before anything is touched; [`Error::UsersStillJoined`] when the people are out as far as they could be
/// moved, and no row has gone; [`Error::Stopping`] and [`Error::Cancelled`] between transactions. In every case the
/// database is sound; a room of which some rows are gone has no life any more, and deleting it again goes on.
///
/// # Locking
/// Takes the room alone for each transaction; holds the homeserver's own locks on the room, where there are any, while
/// rows are deleted (W-8).
pub fn run(
    ctx: &mut JobContext<'_>,
    request: &Request,
    extent: DeletionScope,
) -> Result<Progress, Error> {
    let mut progress: Progress = serde_json::from_value(ctx.live.progress()).unwrap_or_default();
    // Said again where it is still so.
    progress.notes.clear();
    let handle = ctx.db.interrupt_handle();
    ctx.live
        .set_interrupt(Some(Box::new(move || handle.interrupt())));
    let outcome = run_interruptibly(ctx, request, extent, &mut progress);
    ctx.live.set_interrupt(None);
    ctx.tell_of_archive(&mut progress);
    if outcome.is_ok() {
        ctx.look_for_residue(&mut progress);
    }
    ctx.publish(&progress);
    outcome.map_err(|e| ctx.map_interrupt(e)).map(|()| progress)
}

fn run_interruptibly(
    ctx: &mut JobContext<'_>,
    request: &Request,
    extent: DeletionScope,
    progress: &mut Progress,
) -> Result<(), Error> {
    ctx.check_cancelled()?;
    let is_known = room_rows::is_known(&ctx.db, ctx.room)?;
    if request.purge {
        // Before anybody is moved out; and again before the first row goes.
        ctx.heed_holds(Removes::Room)?;
        refuse_what_stops_it(ctx)?;
    }
    if extent == DeletionScope::Whole {
        shut_down(ctx, request, progress)?;
    }
    if !request.purge {
        note_nothing_there(is_known, request, progress);
        progress.phase = Phase::Done;
        return Ok(());
    }
    progress.phase = Phase::Counting;
    ctx.publish(progress);
    refuse_what_stops_it(ctx)?;
    ctx.refuse_new_holds()?;
    ctx.begin_media(request.media, progress)?;
    acquire_synapse_lock(ctx, &[PURGE_LOCK, NEW_EVENT_LOCK])?;
    let deleted = rows::delete(ctx, request.force_purge, progress);
    ctx.release_synapse_lock();
    deleted?;
    note_nothing_there(is_known, request, progress);
    note_what_remains(ctx, progress);
    clean_up(ctx, progress)
}

/// D-4 to D-11, once: what an earlier run has done is in its progress.
fn shut_down(
    ctx: &mut JobContext<'_>,
    request: &Request,
    progress: &mut Progress,
) -> Result<(), Error> {
    if progress.more.contains_key(IS_SHUT_DOWN) {
        return Ok(());
    }
    progress.phase = Phase::ShuttingDown;
    ctx.publish(progress);
    ctx.look_for_homeserver()?;
    let sign = ctx.running_homeserver()?;
    let delegate = delegate(ctx);
    if delegate.is_none() {
        // What is missing is said before anything is touched.
        let setting = shutdown::Setting {
            homeserver: sign.as_deref(),
            ..shutdown::Setting::of(ctx)
        };
        let means = shutdown::means(&setting, request)?;
        if let Some(note) = means.as_ref().and_then(|means| means.note()) {
            log::info!("room {}: {note}", ctx.room);
            progress.notes.push(note.to_owned());
        }
    }
    let is_new_block = request.block && delegate.is_none() && block(ctx, request)?;
    // The homeserver blocks rooms that it does not know as well.
    let shutdown = if delegate.is_some() || room_rows::is_known(&ctx.db, ctx.room)? {
        warn_of_other_servers(ctx, request, progress)?;
        match move_people(ctx, request, progress) {
            Err(Error::Refused(why)) if ctx.running_homeserver()?.is_some() => {
                return Err(met_in_the_middle(ctx, progress, is_new_block, &why)?);
            }
            moved => moved?,
        }
    } else {
        Shutdown::default()
    };
    publish_shutdown(progress, &shutdown)?;
    ctx.note_additions();
    progress.more.insert(IS_SHUT_DOWN.to_owned(), true.into());
    ctx.publish(progress);
    ctx.save_progress(progress);
    Ok(())
}

/// The homeserver, where it runs and can be asked to move the people.
fn delegate<'a>(ctx: &JobContext<'a>) -> Option<&'a HomeserverApi> {
    ctx.homeserver
        .filter(|_| ctx.server_state == ServerState::Running)
}

/// A homeserver was started in the middle of the shutdown, and nobody but that may go on: says how far it came. What is not
/// begun is not left half done: a block goes again.
fn met_in_the_middle(
    ctx: &mut JobContext<'_>,
    progress: &Progress,
    is_new_block: bool,
    why: &str,
) -> Result<Error, Error> {
    let left = room_rows::local_users_to_move(&ctx.db, ctx.room, ctx.server_name)?.len();
    let gone = left_already(ctx, progress)?.len();
    let new_room = match told(progress).new_room_id {
        Some(room) if room_rows::is_known(&ctx.db, &room)? => Some(room),
        _ => None,
    };
    if gone == 0 && new_room.is_none() {
        if is_new_block {
            let room = ctx.room;
            let limits = Limits {
                if_started: IfStarted::GoOn,
                // Whoever goes on later does not know that the block is ours.
                endures: Endurance::Always,
                ..Limits::default()
            };
            let doing = "take the block back";
            ctx.small_transaction(doing, Scope::Room, limits, |tx| {
                Ok(blocks::remove(tx, room)?)
            })?
            .done()?;
        }
        return Ok(Error::Refused(format!(
            "{why}. Nothing of the room was changed"
        )));
    }
    let new_room = new_room.map_or(String::new(), |room| format!(", the new room is {room}"));
    Ok(Error::Refused(format!(
        "{why}. The shutdown stopped in the middle: {} left the room, {} still in it{new_room}; no row was deleted",
        count_of(gone as u64, "person", "people"),
        count_of(left as u64, "person is", "people are")
    )))
}

/// D-4: first, and whether or not the room is known. Answers whether it was not blocked before.
fn block(ctx: &mut JobContext<'_>, request: &Request) -> Result<bool, Error> {
    let requester = request
        .requester
        .as_ref()
        .ok_or_else(|| Error::Bug("a block without anybody who asked for it".into()))?;
    let room = ctx.room;
    let limits = Limits {
        if_started: IfStarted::GoOn,
        ..Limits::default()
    };
    let blocked = ctx.small_transaction("block the room", Scope::Room, limits, |tx| {
        Ok(blocks::add(tx, room, requester)?)
    })?;
    blocked.done().map(|(is_new, _)| is_new)
}

/// D-6 to D-11, from where an earlier run left it.
fn move_people(
    ctx: &mut JobContext<'_>,
    request: &Request,
    progress: &mut Progress,
) -> Result<Shutdown, Error> {
    let asked = delegate(ctx);
    let moved = move_by(ctx, request, progress, asked);
    let shutdown = match (moved, delegate(ctx)) {
        // It was started meanwhile, and moves the others itself. But it would make a new room of its own.
        (Err(Error::Refused(why)), Some(api))
            if asked.is_none() && told(progress).new_room_id.is_none() =>
        {
            log::info!("room {}: {why}; so the homeserver is asked", ctx.room);
            let already = left_already(ctx, progress)?;
            delegate::wait_for(ctx, api);
            let mut shutdown = move_by(ctx, request, progress, Some(api))?;
            shutdown.kicked_users.splice(0..0, already);
            shutdown
        }
        (moved, _) => moved?,
    };
    let failed = shutdown.failed_to_kick_users.len();
    if failed > 0 && request.purge && request.force_purge {
        progress.notes.push(format!(
            "{} moved out of the room before its rows were deleted: other servers still count them in",
            count_of(failed as u64, "local user was not", "local users were not")
        ));
    }
    Ok(shutdown)
}

fn move_by(
    ctx: &mut JobContext<'_>,
    request: &Request,
    progress: &mut Progress,
    api: Option<&HomeserverApi>,
) -> Result<Shutdown, Error> {
    let before = told(progress);
    let (live, ledger) = (ctx.live, ctx.ledger);
    let mut on_progress = |shutdown: &Shutdown| {
        publish_shutdown(progress, shutdown)?;
        let value = serde_json::to_value(&*progress).map_err(|e| Error::Bug(e.to_string()))?;
        live.set_progress(value.clone());
        ledger.progress(&live.id, &value)
    };
    match api {
        Some(api) => delegate::shut_down(ctx, api, request, &mut on_progress),
        None => shutdown::shut_down(ctx, request, before, &mut on_progress),
    }
}

/// Who left the room by what the shutdown did so far: more may have been told than was done.
fn left_already(ctx: &JobContext<'_>, progress: &Progress) -> Result<Vec<UserId>, Error> {
    let there = room_rows::local_users_to_move(&ctx.db, ctx.room, ctx.server_name)?;
    let mut told = told(progress).kicked_users;
    told.retain(|user| there.iter().all(|(there, _)| there != user));
    Ok(told)
}

/// D-51.
fn warn_of_other_servers(
    ctx: &JobContext<'_>,
    request: &Request,
    progress: &mut Progress,
) -> Result<(), Error> {
    if !request.purge {
        return Ok(());
    }
    let servers = room_rows::other_servers(&ctx.db, ctx.room, ctx.server_name)?;
    if !servers.is_empty() {
        let text = other_servers_note(&servers);
        log::info!("room {}: {text}", ctx.room);
        progress.notes.push(text);
    }
    Ok(())
}

/// What a person should know of servers that will not hear of a deletion.
pub(super) fn other_servers_note(servers: &[String]) -> String {
    let some: Vec<&str> = servers.iter().take(3).map(String::as_str).collect();
    let more = if servers.len() > some.len() {
        ", …"
    } else {
        ""
    };
    format!(
        "{} in the room or invited to it ({}{more}): they learn that our users left only if the homeserver sends that \
         before the room's rows are deleted. To tell them: delete with --no-purge, let the homeserver run for a while, \
         then delete the rows",
        count_of(servers.len() as u64, "other server is", "other servers are"),
        some.join(", ")
    )
}

/// What a person should know of a room that is not known.
pub(super) const NOTHING_THERE: &str = "the room is not known here, and there was nothing of it to delete: look at the id again (`roomkeeper rooms` lists them)";

/// D-52: what people of this server see of it.
pub(super) const OWN_CLIENTS_NOTE: &str = "people of this server see in their clients that they left only if the room is \
    shut down while the homeserver runs, and the rows go later: delete with --no-purge beside it \
    (roomkeeper.homeserver.url says how it is asked), then delete the rows";

/// What the shutdown did so far, as it was told.
fn told(progress: &Progress) -> Shutdown {
    let told = progress.more.get(SHUTDOWN_ROOM).cloned();
    told.and_then(|value| serde_json::from_value(value).ok())
        .unwrap_or_default()
}

/// What the shutdown did so far, where the status finds it.
fn publish_shutdown(progress: &mut Progress, shutdown: &Shutdown) -> Result<(), Error> {
    let value = serde_json::to_value(shutdown).map_err(|e| Error::Bug(e.to_string()))?;
    progress.more.insert(SHUTDOWN_ROOM.to_owned(), value);
    Ok(())
}

/// Whatever would end a deletion at its start, with the same sentence (E-18); for a dry run. Where the homeserver is asked
/// to move the people it looks for what that takes itself (`asks_homeserver`).
///
/// # Errors
/// As [`run`].
pub fn refuse_at_start(
    setting: &shutdown::Setting<'_>,
    request: &Request,
    asks_homeserver: bool,
) -> Result<Option<String>, Error> {
    let (db, room) = (setting.db, setting.room);
    if request.purge {
        refuse_unknown(db, room)?;
    }
    let mut note = None;
    if !asks_homeserver {
        let means = shutdown::means(setting, request)?;
        note = means.and_then(|means| means.note().map(str::to_owned));
    }
    // D-5: of a room without a row of its own nobody is moved out.
    let stays = request.purge
        && !request.force_purge
        && !asks_homeserver
        && !room_rows::is_known(db, room)?
        && !room_rows::joined_local_users(db, room, setting.server_name)?.is_empty();
    if stays {
        return Err(Error::UsersStillJoined);
    }
    Ok(note)
}

/// V-5: before the first row goes.
fn refuse_what_stops_it(ctx: &JobContext<'_>) -> Result<(), Error> {
    refuse_unknown(&ctx.db, ctx.room)
}

fn refuse_unknown(db: &Db, room: &RoomId) -> Result<(), Error> {
    for unknown in room_rows::unknown(db, room)? {
        if unknown.stops_delete {
            return Err(Error::Refused(format!(
                "the table {}, which this roomkeeper does not know, has {} of this room, which would stop the \
                 delete halfway; nothing was deleted. Use a newer roomkeeper, or delete those rows first if they are \
                 not the homeserver's own",
                unknown.table,
                count(unknown.rows, "row")
            )));
        }
        log::warn!(
            "room {room}: the unknown table {} has {} of it, which stay or go as it says",
            unknown.table,
            count(unknown.rows, "row")
        );
    }
    Ok(())
}

/// A room that is not known, and of which nothing was there, may be another than the one that was meant. Synapse takes it
/// for deleted, and so it stays (H-43).
fn note_nothing_there(is_known: bool, request: &Request, progress: &mut Progress) {
    if !is_known && progress.rows_removed.is_empty() {
        progress.notes.push(match request.block {
            true => format!("{NOTHING_THERE}. It is blocked from now on"),
            false => NOTHING_THERE.to_owned(),
        });
    }
}

fn note_what_remains(ctx: &JobContext<'_>, progress: &mut Progress) {
    if ctx.server_state == ServerState::Running {
        progress.notes.push(
            "the homeserver was told nothing of the rows that went: until it is restarted it still knows the room"
                .into(),
        );
    }
}
