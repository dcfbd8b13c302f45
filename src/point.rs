//! Places in a room's history and their order.

mod token;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::token::{Direction, NoToken, Positions, RoomToken, StreamToken};
use crate::ids::EventId;
use crate::time::Millis;

/// A place in a room: the pair by which history is ordered (section 0).
///
/// As a token it "sits just after" the event with these orderings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Point {
    /// Depth in the room graph.
    pub topological: i64,
    /// Order of arrival on this server; negative for backfilled events.
    pub stream: i64,
}

impl Point {
    /// Reads `t<topological>-<stream>` (M-1). The stream part may be negative: `t5--3`.
    ///
    /// # Errors
    /// The message of P-1. A live token (`s…`, `m…`) has no topological part and is refused, where
    /// the originals fail with a type error.
    pub fn parse(token: &str) -> Result<Self, String> {
        let wrong = || format!("Invalid room stream token '{token}'");
        let (topological, stream) = token
            .strip_prefix('t')
            .and_then(|rest| rest.split_once('-'))
            .ok_or_else(wrong)?;
        let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !plain(topological) || !plain(stream.strip_prefix('-').unwrap_or(stream)) {
            return Err(wrong());
        }
        Ok(Self {
            topological: topological.parse().map_err(|_| wrong())?,
            stream: stream.parse().map_err(|_| wrong())?,
        })
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}-{}", self.topological, self.stream)
    }
}

/// How a caller names the point up to which history goes. What is named survives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PurgePoint {
    /// Everything of lower depth than this event.
    BeforeEvent(EventId),
    /// Everything of lower depth than the room's last event received before this time, and nothing that was received
    /// later.
    BeforeTs(Millis),
    /// The same, this long ago.
    OlderThan(Millis),
    /// A historic pagination token, `t<topological>-<stream>`; only its first part counts (P-1).
    BeforeToken(String),
}

impl PurgePoint {
    /// For a time or an age: what was received at or after this stays.
    pub fn keep_received_from(&self, now: Millis) -> Option<Millis> {
        match self {
            Self::BeforeTs(ts) => Some(*ts),
            Self::OlderThan(age) => Some(now - *age),
            Self::BeforeEvent(_) | Self::BeforeToken(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn historic_tokens_are_read_and_written() {
        for (token, topological, stream) in [("t5-3", 5, 3), ("t5--3", 5, -3), ("t0-0", 0, 0)] {
            let point = Point {
                topological,
                stream,
            };
            assert_eq!(Point::parse(token), Ok(point));
            assert_eq!(point.to_string(), token);
        }
    }

    #[test]
    fn live_and_malformed_tokens_are_refused() {
        for wrong in [
            "",
            "s5",
            "m5~1.7",
            "t5",
            "t-5-3",
            "t5-",
            "t5---3",
            "tx-3",
            "t5-3x",
            "t+5-3",
            "t5-99999999999999999999",
        ] {
            assert!(Point::parse(wrong).is_err(), "{wrong}");
        }
    }
}
