//! Beside a running homeserver: it moves the people out itself, by its own admin API, since nobody else may write its
//! events (W-40). Its rows are ours to delete afterwards.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::request::{Request, Shutdown};
use super::shutdown::ProgressSink;
use crate::client::{Client, ClientError, Reply, encoded};
use crate::config::HomeserverApi;
use crate::error::Error;
use crate::ids::RoomId;
use crate::job::JobContext;

/// How often the homeserver is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// How often the homeserver may forget what it was doing (older ones do, at a restart) before we do, too.
const MOST_STARTS: u32 = 5;

/// Has the homeserver shut the room down, blocking it first where that is asked for, and waits for it.
///
/// A homeserver whose memory was lost meanwhile is asked again: who has left already is not moved twice.
///
/// # Errors
/// [`Error::Refused`] when it cannot be asked, or refuses; [`Error::Stopping`] and [`Error::Cancelled`] while it works.
pub(super) fn shut_down(
    ctx: &JobContext<'_>,
    api: &HomeserverApi,
    request: &Request,
    on_progress: ProgressSink<'_>,
) -> Result<Shutdown, Error> {
    let client = Client::tcp(&api.address, api.token.reveal());
    let mut body = json!({"block": request.block, "purge": false});
    for (member, text) in [
        (
            "new_room_user_id",
            request.new_room_user_id.as_ref().map(|user| user.as_str()),
        ),
        ("room_name", request.room_name.as_deref()),
        ("message", request.message.as_deref()),
    ] {
        if let Some(text) = text {
            body[member] = text.into();
        }
    }
    // It may hang; whoever stops or cancels does not wait for that.
    let ask = |method: &str, path: &str, body: Option<&Value>| {
        let is_over = || ctx.check_cancelled().is_err();
        match client.request_unless(method, path, body, &is_over) {
            Err(e @ ClientError::Abandoned { .. }) => {
                ctx.check_cancelled()?;
                Err(refusal(&e.to_string()))
            }
            Err(e) => Err(refusal(&e.to_string())),
            Ok(reply) => Ok(reply),
        }
    };
    let room = encoded(ctx.room);
    for _ in 0..MOST_STARTS {
        ctx.check_cancelled()?;
        let path = format!("/_synapse/admin/v2/rooms/{room}");
        let started = ask("DELETE", &path, Some(&body))?;
        let is_under_way = started.status == 400 && says_under_way(&started);
        let id = match is_under_way {
            // Ours, for which we stopped waiting, or somebody else's: its end is waited for in either case.
            true => {
                let path = format!("/_synapse/admin/v2/rooms/{room}/delete_status");
                let listed = ask("GET", &path, None)?;
                match unended(&listed.body) {
                    Some(id) => id,
                    None => {
                        ctx.rest(ASK_EVERY);
                        continue;
                    }
                }
            }
            false => answer(started)?
                .get("delete_id")
                .and_then(Value::as_str)
                .map(str::to_owned)
                .ok_or_else(|| refusal("it did not say under which id it deletes the room"))?,
        };
        log::info!(
            "room {}: the homeserver moves its people out: {id}",
            ctx.room
        );
        let path = format!("/_synapse/admin/v2/rooms/delete_status/{id}");
        let mut last = Shutdown::default();
        loop {
            let reply = ask("GET", &path, None)?;
            if reply.status == 404 {
                break;
            }
            let status = answer(reply)?;
            let shutdown = status.get("shutdown_room").cloned().unwrap_or_default();
            let shutdown: Shutdown = serde_json::from_value(shutdown).unwrap_or_default();
            if shutdown != last {
                on_progress(&shutdown)?;
                last = shutdown;
            }
            match status.get("status").and_then(Value::as_str) {
                Some("complete") => {
                    if is_under_way && request.block {
                        set_block(api, ctx.room, true)?;
                    }
                    return Ok(last);
                }
                Some("failed") => {
                    let why = status.get("error").and_then(Value::as_str);
                    return Err(refusal(why.unwrap_or("it did not say why; its log does")));
                }
                _ => ctx.rest(ASK_EVERY),
            }
            ctx.check_cancelled()?;
        }
    }
    Err(refusal("it forgot the order again and again"))
}

/// How long a homeserver that was started just now gets until it listens.
const TO_START: Duration = Duration::from_secs(60);

/// Waits until the homeserver listens, but not for long: what it does not hear then is told.
pub(super) fn wait_for(ctx: &JobContext<'_>, api: &HomeserverApi) {
    let begun = Instant::now();
    while TcpStream::connect(&*api.address).is_err()
        && begun.elapsed() < TO_START
        && ctx.check_cancelled().is_ok()
    {
        ctx.rest(ASK_EVERY);
    }
}

/// Whether the homeserver refuses because it has the same order already (L-2).
fn says_under_way(reply: &Reply) -> bool {
    let said = reply.body.get("error").and_then(Value::as_str);
    said.is_some_and(|said| said.contains("already in progress"))
}

/// The id of a room's deletion that has not ended.
fn unended(listed: &Value) -> Option<String> {
    let word = |deletion: &Value, key| deletion.get(key).and_then(Value::as_str).map(str::to_owned);
    let results = listed.get("results")?.as_array()?;
    let unended = results.iter().find(|deletion| {
        let status = word(deletion, "status");
        !matches!(status.as_deref(), None | Some("complete" | "failed"))
    });
    word(unended?, "delete_id")
}

/// Has the homeserver block the room or unblock it, so that it knows at once.
pub(crate) fn set_block(api: &HomeserverApi, room: &RoomId, block: bool) -> Result<(), Error> {
    let client = Client::tcp(&api.address, api.token.reveal());
    let path = format!("/_synapse/admin/v1/rooms/{}/block", encoded(room));
    let reply = client.request("PUT", &path, Some(&json!({"block": block})));
    answer(reply.map_err(|e| refusal(&e.to_string()))?).map(drop)
}

/// Has the homeserver leave the room the newest of its forward extremities alone; answers how many it dropped.
pub(crate) fn drop_surplus_extremities(api: &HomeserverApi, room: &RoomId) -> Result<i64, Error> {
    let client = Client::tcp(&api.address, api.token.reveal());
    let path = format!(
        "/_synapse/admin/v1/rooms/{}/forward_extremities",
        encoded(room)
    );
    let reply = client.request("DELETE", &path, None);
    let said = answer(reply.map_err(|e| refusal(&e.to_string()))?)?;
    let dropped = said.get("deleted").and_then(Value::as_i64);
    dropped.ok_or_else(|| refusal("it did not say how many it dropped"))
}

fn answer(reply: Reply) -> Result<Value, Error> {
    if reply.status == 200 {
        return Ok(reply.body);
    }
    let said = reply.body.get("error").and_then(Value::as_str);
    let said = said.unwrap_or("no reason given");
    Err(refusal(&format!("it answered {}: {said}", reply.status)))
}

fn refusal(why: &str) -> Error {
    Error::Refused(format!(
        "the homeserver at roomkeeper.homeserver.url did not do what it was asked: {why}. No row was deleted"
    ))
}
