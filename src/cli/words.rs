//! What people type and what they are asked: which room is meant, and whether they mean it.

use std::io::{IsTerminal, Write, stderr, stdin};

use super::output;
use crate::config::Config;
use crate::error::Error;
use crate::ids::{Escaped, RoomId};
use crate::keeper::Viewer;
use crate::point::PurgePoint;
use crate::store::named_rooms::Mark;

/// The room that is meant: an id, or an alias of this server.
///
/// # Errors
/// [`Error::Config`] for words that are no room, [`Error::NoSuchRoom`] for a room that is not known here.
pub(super) fn known_room(config: &Config, words: &str) -> Result<RoomId, Error> {
    let viewer = match Viewer::open(config.clone()) {
        Ok(viewer) => viewer,
        // Whoever may ask a daemon may not be allowed to read the database; it will say what it does not know.
        Err(Error::Store { .. }) if words.starts_with('!') => return Ok(RoomId::new(words)),
        Err(e) => return Err(e),
    };
    let room = viewer.room_of(words)?;
    if !viewer.knows(&room)? {
        return Err(Error::NoSuchRoom(format!(
            "this server knows no room {}: look at the id again (`roomkeeper rooms` lists them)",
            Escaped(room.as_str())
        )));
    }
    Ok(room)
}

/// As [`known_room`], for a room that need not be known; whether it is, stands beside it.
///
/// # Errors
/// [`Error::Config`] and [`Error::NoSuchRoom`] for an alias.
pub(super) fn any_room(config: &Config, words: &str) -> Result<(RoomId, bool), Error> {
    match Viewer::open(config.clone()) {
        Ok(viewer) => {
            let room = viewer.room_of(words)?;
            let is_known = viewer.knows(&room)?;
            Ok((room, is_known))
        }
        Err(Error::Store { .. }) if words.starts_with('!') => Ok((RoomId::new(words), true)),
        Err(e) => Err(e),
    }
}

/// Whether [`ask`] asks: somebody sits at a terminal, and has not said it already.
pub(super) fn can_ask(is_said: bool, as_json: bool) -> bool {
    !is_said && !as_json && stdin().is_terminal() && stderr().is_terminal()
}

/// Asks before something is destroyed, where somebody sits at a terminal to answer. Scripts and pipes are not asked.
///
/// # Errors
/// [`Error::Cancelled`] when the answer is no.
pub(super) fn ask(question: &str, is_said: bool, as_json: bool) -> Result<(), Error> {
    if !can_ask(is_said, as_json) {
        return Ok(());
    }
    output::ask(question);
    let _ = stderr().flush();
    let mut answer = String::new();
    let read = stdin().read_line(&mut answer);
    let is_yes = ["y", "yes"].contains(&answer.trim().to_lowercase().as_str());
    match read {
        Ok(_) if is_yes => Ok(()),
        _ => Err(Error::Cancelled),
    }
}

/// Where a purge cuts: date, event and author.
pub(super) fn cut(mark: &Mark) -> String {
    format!(
        "the event {} by {} of {} UTC",
        Escaped(&mark.event_id),
        Escaped(&mark.sender),
        mark.sent.as_date()
    )
}

/// The cut of a purge in words; the point as it was named, where no event of ours lies there.
pub(super) fn cut_at(
    config: &Config,
    room: &RoomId,
    point: &PurgePoint,
) -> Result<Option<String>, Error> {
    let mark = Viewer::open(config.clone())?.cut(room, point)?;
    Ok(mark.as_ref().map(cut))
}
