//! Beside a running homeserver: it moves the people out itself, by its own admin API, since nobody else may write its
//! events (W-40). Its rows are ours to delete afterwards.

use std::time::Duration;

use serde_json::{Value, json};

use super::request::{Request, Shutdown};
use super::shutdown::Told;
use crate::client::{Client, ClientError, Reply};
use crate::config::HomeserverApi;
use crate::error::Error;
use crate::ids::RoomId;
use crate::worksite::Worksite;

/// How often the homeserver is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// How often the homeserver may forget what it was doing (older ones do, at a restart) before we do, too.
const MOST_STARTS: u32 = 5;

/// Has the homeserver shut the room down, blocking it first where that is asked for, and waits for it.
///
/// A homeserver whose memory was lost meanwhile is asked again: who has left already is not moved twice.
///
/// # Errors
/// [`Error::Unsafe`] when it cannot be asked, or refuses; [`Error::Stopping`] and [`Error::Cancelled`] while it works.
pub(super) fn shut_down(
    site: &Worksite<'_>,
    api: &HomeserverApi,
    request: &Request,
    told: Told<'_>,
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
    let room = encoded(site.room);
    for _ in 0..MOST_STARTS {
        site.stay_or_go()?;
        let path = format!("/_synapse/admin/v2/rooms/{room}");
        let started = answer(client.request("DELETE", &path, Some(&body)))?;
        let id = started.get("delete_id").and_then(Value::as_str);
        let id = id.ok_or_else(|| refusal("it did not say under which id it deletes the room"))?;
        log::info!(
            "room {}: the homeserver moves its people out: {id}",
            site.room
        );
        let path = format!("/_synapse/admin/v2/rooms/delete_status/{id}");
        let mut last = Shutdown::default();
        loop {
            let reply = client.get(&path);
            if matches!(&reply, Ok(Reply { status: 404, .. })) {
                break;
            }
            let status = answer(reply)?;
            let shutdown = status.get("shutdown_room").cloned().unwrap_or_default();
            let shutdown: Shutdown = serde_json::from_value(shutdown).unwrap_or_default();
            if shutdown != last {
                told(&shutdown)?;
                last = shutdown;
            }
            match status.get("status").and_then(Value::as_str) {
                Some("complete") => return Ok(last),
                Some("failed") => {
                    let why = status.get("error").and_then(Value::as_str);
                    return Err(refusal(why.unwrap_or("it did not say why; its log does")));
                }
                _ => site.rest(ASK_EVERY),
            }
            site.stay_or_go()?;
        }
    }
    Err(refusal("it forgot the order again and again"))
}

/// Has the homeserver block the room or unblock it, so that it knows at once.
pub(crate) fn set_block(api: &HomeserverApi, room: &RoomId, block: bool) -> Result<(), Error> {
    let client = Client::tcp(&api.address, api.token.reveal());
    let path = format!("/_synapse/admin/v1/rooms/{}/block", encoded(room));
    let reply = client.request("PUT", &path, Some(&json!({"block": block})));
    answer(reply).map(drop)
}

fn answer(reply: Result<Reply, ClientError>) -> Result<Value, Error> {
    let reply = reply.map_err(|e| refusal(&e.to_string()))?;
    if reply.status == 200 {
        return Ok(reply.body);
    }
    let said = reply.body.get("error").and_then(Value::as_str);
    let said = said.unwrap_or("no reason given");
    Err(refusal(&format!("it answered {}: {said}", reply.status)))
}

fn refusal(why: &str) -> Error {
    Error::Unsafe(format!(
        "the homeserver at roomkeeper.homeserver.url did not do what it was asked: {why}. No row was deleted"
    ))
}

/// A room id as one piece of a path.
fn encoded(room: &RoomId) -> String {
    let mut text = String::new();
    for byte in room.as_str().bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_id_is_one_piece_of_a_path() {
        assert_eq!(encoded(&RoomId::from("!a/b:c.d-e_f")), "%21a%2Fb%3Ac.d-e_f");
    }
}
