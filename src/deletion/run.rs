//! A deletion from its first step to its last, each of which can be done again.
//!
//! Block, move the people, delete the rows: in this order, so that nobody comes back in between. Every step says in the
//! ledger that it is done, and looks at the database before it does anything.

use super::request::{Request, Shutdown};
use super::{delegate, rows, shutdown};
use crate::error::{Chain, Error};
use crate::store::homeserver::{NEW_EVENT_LOCK, PURGE_LOCK};
use crate::store::{blocks, room_rows};
use crate::worksite::{Gait, Phase, Progress, Worksite, acquire_row_lock, tidy};

/// What a deletion's progress holds besides: what its shutdown did so far (S-6).
pub const SHUTDOWN_ROOM: &str = "shutdown_room";

/// Whether the shutdown is over.
const IS_SHUT_DOWN: &str = "is_shut_down";

/// What is to be done with a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
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
pub fn run(site: &mut Worksite<'_>, request: &Request, extent: Extent) -> Result<Progress, Error> {
    let mut progress: Progress = serde_json::from_value(site.live.progress()).unwrap_or_default();
    // Said again where it is still so.
    progress.notes.clear();
    let handle = site.db.interrupt_handle();
    site.live
        .set_interrupt(Some(Box::new(move || handle.interrupt())));
    let outcome = run_interruptibly(site, request, extent, &mut progress);
    site.live.set_interrupt(None);
    site.publish(&progress);
    outcome.map_err(|e| site.explain(e)).map(|()| progress)
}

fn run_interruptibly(
    site: &mut Worksite<'_>,
    request: &Request,
    extent: Extent,
    progress: &mut Progress,
) -> Result<(), Error> {
    site.stay_or_go()?;
    if request.purge {
        // Before anybody is moved out; and again before the first row goes.
        refuse_what_stops_it(site)?;
    }
    if extent == Extent::Whole {
        shut_down(site, request, progress)?;
    }
    if !request.purge {
        progress.phase = Phase::Done;
        return Ok(());
    }
    progress.phase = Phase::Counting;
    site.publish(progress);
    refuse_what_stops_it(site)?;
    let mut lock = acquire_row_lock(site, &[PURGE_LOCK, NEW_EVENT_LOCK])?;
    let deleted = rows::delete(site, request.force_purge, progress, lock.as_mut());
    if let Some(lock) = lock
        && let Err(e) = lock.release(&mut site.db)
    {
        log::warn!("room {}: {}", site.room, Chain(&e));
    }
    deleted?;
    tell_what_remains(site, progress);
    tidy(site, progress)
}

/// D-4 to D-11, once: what an earlier run has done is in its progress.
fn shut_down(
    site: &mut Worksite<'_>,
    request: &Request,
    progress: &mut Progress,
) -> Result<(), Error> {
    if progress.more.contains_key(IS_SHUT_DOWN) {
        return Ok(());
    }
    progress.phase = Phase::ShuttingDown;
    site.publish(progress);
    site.still_alone()?;
    let delegate = site.homeserver.filter(|_| site.gait == Gait::Beside);
    if delegate.is_none() {
        // What is missing is said before anything is touched.
        let means = shutdown::means(site, request)?;
        if let Some(note) = means.as_ref().and_then(|means| means.note()) {
            log::warn!("room {}: {note}", site.room);
            progress.notes.push(note.to_owned());
        }
    }
    if request.block && delegate.is_none() {
        block(site, request)?;
    }
    // The homeserver blocks rooms that it does not know as well.
    let shutdown = if delegate.is_some() || room_rows::is_known(&site.db, site.room)? {
        warn_of_other_servers(site, request, progress)?;
        move_people(site, request, progress)?
    } else {
        Shutdown::default()
    };
    tell(progress, &shutdown)?;
    progress.more.insert(IS_SHUT_DOWN.to_owned(), true.into());
    site.publish(progress);
    site.keep(progress);
    Ok(())
}

/// D-4: first, and whether or not the room is known.
fn block(site: &mut Worksite<'_>, request: &Request) -> Result<(), Error> {
    let requester = request
        .requester
        .as_ref()
        .ok_or_else(|| Error::Bug("a block without anybody who asked for it".into()))?;
    let _room = site.locks.write(site.room);
    let _writer = site.writer.lock();
    let room = site.room;
    site.db
        .write("block the room", |db| blocks::add(db, room, requester))
}

/// D-6 to D-11, from where an earlier run left it.
fn move_people(
    site: &mut Worksite<'_>,
    request: &Request,
    progress: &mut Progress,
) -> Result<Shutdown, Error> {
    let before = progress.more.get(SHUTDOWN_ROOM).cloned();
    let before = before.and_then(|told| serde_json::from_value(told).ok());
    let (live, ledger) = (site.live, site.ledger);
    let shutdown = {
        let progress = &mut *progress;
        let mut told = |shutdown: &Shutdown| {
            tell(progress, shutdown)?;
            let value = serde_json::to_value(&*progress).map_err(|e| Error::Bug(e.to_string()))?;
            live.set_progress(value.clone());
            ledger.progress(&live.id, &value)
        };
        match site.homeserver.filter(|_| site.gait == Gait::Beside) {
            Some(api) => delegate::shut_down(site, api, request, &mut told)?,
            None => shutdown::shut_down(site, request, before.unwrap_or_default(), &mut told)?,
        }
    };
    let failed = shutdown.failed_to_kick_users.len();
    if failed > 0 && request.purge && request.force_purge {
        progress.notes.push(format!(
            "{failed} local users were not moved out of the room before its rows were deleted: other servers still count \
             them in"
        ));
    }
    Ok(shutdown)
}

/// D-51.
fn warn_of_other_servers(
    site: &Worksite<'_>,
    request: &Request,
    progress: &mut Progress,
) -> Result<(), Error> {
    if !request.purge {
        return Ok(());
    }
    let servers = room_rows::other_servers(&site.db, site.room, site.server_name)?;
    if !servers.is_empty() {
        let text = other_servers_note(&servers);
        log::warn!("room {}: {text}", site.room);
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
        "{} other servers are in the room ({}{more}): they learn that our users left only if the homeserver sends that \
         before the room's rows are deleted. To tell them: delete with --no-purge, let the homeserver run for a while, \
         then delete the rows",
        servers.len(),
        some.join(", ")
    )
}

/// What the shutdown did so far, where the status finds it.
fn tell(progress: &mut Progress, shutdown: &Shutdown) -> Result<(), Error> {
    let value = serde_json::to_value(shutdown).map_err(|e| Error::Bug(e.to_string()))?;
    progress.more.insert(SHUTDOWN_ROOM.to_owned(), value);
    Ok(())
}

/// V-5: before the first row goes.
fn refuse_what_stops_it(site: &Worksite<'_>) -> Result<(), Error> {
    for unknown in room_rows::unknown(&site.db, site.room)? {
        if unknown.stops_delete {
            return Err(Error::Unsafe(format!(
                "the table {}, which this roomkeeper does not know, has {} rows that refer to the room and would stop the \
                 delete halfway; nothing was deleted. Use a newer roomkeeper, or delete those rows first if they are \
                 not the homeserver's own",
                unknown.table, unknown.rows
            )));
        }
        log::warn!(
            "room {}: the unknown table {} has {} rows of it, which stay",
            site.room,
            unknown.table,
            unknown.rows
        );
    }
    Ok(())
}

fn tell_what_remains(site: &Worksite<'_>, progress: &mut Progress) {
    if site.gait == Gait::Beside {
        progress.notes.push(
            "the homeserver was told nothing of the rows that went: until it is restarted it still knows the room"
                .into(),
        );
    }
}
