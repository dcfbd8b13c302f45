//! The policy that counts is the one at the moment of purging: a room is judged again when its turn comes.

use super::plan::Reason;
use crate::error::Error;
use crate::ids::RoomId;
use crate::point::Point;
use crate::policy::{Decision, LifetimeRange, Retention};
use crate::store::db::Db;
use crate::store::expiry::Expiry;
use crate::store::points;
use crate::store::policies::{self, Said};
use crate::time::Millis;

/// What was decided about a room earlier.
#[derive(Clone, Copy, Debug)]
pub struct Decided {
    /// Everything of lower depth goes.
    pub point: Point,
    /// Of that, what was received before this.
    pub cut_off: Millis,
}

/// What is left of it.
#[derive(Clone, Copy, Debug)]
pub enum Recheck {
    /// It holds, or would go further today: what was decided counts.
    AsDecided,
    /// Less goes by today's policy.
    Earlier(Decided, Expiry),
    /// Nothing goes any more.
    LeftAlone(Reason),
}

/// Judges a room by the policy and the configuration of now. The connection may be one that only reads.
pub fn recheck(
    db: &Db,
    retention: &Retention,
    range: &LifetimeRange,
    room: &RoomId,
    decided: Decided,
    now: Millis,
) -> Result<Recheck, Error> {
    let policy = match policies::of_room(db, room)? {
        None if !retention.of_left_rooms => return Ok(Recheck::LeftAlone(Reason::LeftByAll)),
        // What it said last was read when it was planned, and nobody is there to change it.
        None => return Ok(Recheck::AsDecided),
        Some(Said::Unreadable) => return Ok(Recheck::LeftAlone(Reason::UnreadablePolicy)),
        Some(said) => said.policy(),
    };
    let lifetime = match retention.evaluate(range, policy.as_ref()) {
        Decision::Due(lifetime) => lifetime.lifetime,
        Decision::NoLifetime => return Ok(Recheck::LeftAlone(Reason::NoMaxLifetime)),
        Decision::OutOfRange(_) => return Ok(Recheck::LeftAlone(Reason::OutOfRange)),
        Decision::TooShort(_) => return Ok(Recheck::LeftAlone(Reason::LifetimeTooShort)),
    };
    let cut_off = now - lifetime;
    if cut_off >= decided.cut_off {
        return Ok(Recheck::AsDecided);
    }
    let expiry = Expiry::find(db, cut_off, now)?;
    let Some(anchor) = points::anchor(db, room, &expiry)? else {
        return Ok(Recheck::LeftAlone(Reason::NothingThatOld));
    };
    // The earlier point of the two counts.
    let point = match anchor.topological < decided.point.topological {
        true => anchor,
        false => decided.point,
    };
    Ok(Recheck::Earlier(Decided { point, cut_off }, expiry))
}
