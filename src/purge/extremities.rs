//! Forward extremities below the point while a homeserver runs beside us (P-51).
//!
//! It remembers them and, not being told, writes back those that were taken away: from then on every event that is sent
//! into the room follows one that is not there, and fails. So they stay, with their events in the timeline. A homeserver
//! that can be asked drops the surplus ones itself.

use super::request::Request;
use crate::client::{Client, encoded};
use crate::error::{Chain, Error};
use crate::job::{JobContext, Progress, ServerState};
use crate::plural::count_of;
use crate::store::expiry::Expiry;
use crate::store::forward_extremities;
use crate::store::history::DepthRange;

/// What the whole of `request` takes.
pub(super) fn cut<'a>(
    ctx: &JobContext<'a>,
    request: &'a Request,
    expiry: Option<Expiry>,
) -> DepthRange<'a> {
    request.cut(
        ctx.room,
        ctx.server_name,
        ctx.server_state == ServerState::Running,
        expiry,
    )
}

/// Has the homeserver drop the room's forward extremities but the newest, where it can be asked and the newest is one
/// that stays anyway. What it does not drop stays, so that not being heard is no failure.
pub(super) fn have_surplus_dropped(ctx: &JobContext<'_>, request: &Request) -> Result<(), Error> {
    let Some(api) = ctx
        .homeserver
        .filter(|_| ctx.server_state == ServerState::Running)
    else {
        return Ok(());
    };
    let expiry = request.expiry(&ctx.db, ctx.clock.now())?;
    if !forward_extremities::has_surplus(&ctx.db, &cut(ctx, request, expiry))? {
        return Ok(());
    }
    let client = Client::tcp(&api.address, api.token.reveal());
    let path = format!(
        "/_synapse/admin/v1/rooms/{}/forward_extremities",
        encoded(ctx.room)
    );
    let is_over = || ctx.check_cancelled().is_err();
    let why = match client.request_unless("DELETE", &path, None, &is_over) {
        Ok(reply) if reply.status == 200 => {
            let dropped = reply
                .body
                .get("deleted")
                .and_then(serde_json::Value::as_i64);
            log::info!(
                "room {}: the homeserver dropped {}",
                ctx.room,
                count_of(
                    dropped.unwrap_or(0),
                    "forward extremity",
                    "forward extremities"
                )
            );
            return Ok(());
        }
        Ok(reply) => format!("it answered {}", reply.status),
        Err(e) => Chain(&e).to_string(),
    };
    ctx.check_cancelled()?;
    log::warn!(
        "room {}: the homeserver was asked to drop forward extremities and did not: {why}",
        ctx.room
    );
    Ok(())
}

/// Says in the result what stays.
pub(super) fn tell_what_stays(progress: &mut Progress) {
    if progress.local_messages_kept > 0 {
        let note = local_messages_note(progress.local_messages_kept);
        progress.notes.insert(0, note);
    }
    if progress.extremities_kept > 0 {
        progress
            .notes
            .push(extremities_note(progress.extremities_kept));
    }
}

/// What a person should know of forward extremities that stay.
pub fn extremities_note(kept: i64) -> String {
    format!(
        "{} below the point with their events, because the running homeserver remembers them: they go with a later purge \
         of the room, when newer events follow them, or with one while the homeserver is stopped",
        count_of(kept, "forward extremity stays", "forward extremities stay")
    )
}

/// P-56, first of all notes: what stays although it was purged.
pub fn local_messages_note(kept: i64) -> String {
    format!(
        "{} in the database, and nobody will see them any more: ask for local users' events to be deleted as well, if \
         that is not what is meant",
        count_of(kept, "local message stays", "local messages stay")
    )
}
