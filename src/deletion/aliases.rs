//! The room's aliases: they lead to the new room, in the name of whoever asked (D-10, D-30).

use crate::error::Error;
use crate::ids::{RoomId, UserId};
use crate::store::tx::Tx;
use crate::store::{members, room_rows};

/// Moves the aliases, inside one transaction; answers all that lead to the new room, which had none of its own. The old
/// room's canonical alias stays as it is, and the new one gets none.
pub(super) fn move_aliases(
    db: &Tx<'_>,
    room: &RoomId,
    to: &RoomId,
    requester: &UserId,
) -> Result<Vec<String>, Error> {
    members::move_aliases(db, room, to, requester)?;
    room_rows::aliases(db, to)
}
