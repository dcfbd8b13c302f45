//! Pagination tokens: what a reader holds between two pages (M-1 … M-5).

use std::fmt;
use std::str::FromStr;

use super::Point;

/// Which way a page goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From older to newer events.
    Forwards,
    /// From newer to older events.
    Backwards,
}

/// The room's part of a token: a place just after an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoomToken {
    /// `t<topological>-<stream>`: in the room's history.
    Historic(Point),
    /// `s<stream>`: in the order of arrival.
    Live(i64),
    /// `m<min>~<id>.<pos>~…`: in the order of arrival, where several writers are each at a place of their own.
    Writers(Positions),
}

/// Where several writers are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Positions {
    /// Where all are that are not named.
    pub min: i64,
    /// Further ones, by their number in `instance_map`, in the order of the token.
    pub ahead: Vec<(i64, i64)>,
}

impl Positions {
    /// Where the furthest writer is.
    pub fn max(&self) -> i64 {
        let ahead = self.ahead.iter().map(|(_, at)| *at);
        ahead.fold(self.min, i64::max)
    }
}

/// A whole number as Synapse writes it.
fn number(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    is_plain.then(|| text.parse().ok()).flatten()
}

/// Places of writers, without the letter in front.
fn positions(text: &str) -> Option<Positions> {
    let mut parts = text.split('~');
    let min = parts.next().and_then(number)?;
    let mut ahead = Vec::new();
    for part in parts.filter(|part| !part.is_empty()) {
        let (id, at) = part.split_once('.')?;
        let (id, at) = (number(id)?, number(at)?);
        if at <= min {
            return None;
        }
        ahead.push((id, at));
    }
    Some(Positions { min, ahead })
}

impl RoomToken {
    fn read(text: &str) -> Option<Self> {
        match text.split_at_checked(1)? {
            ("s", rest) => number(rest).map(Self::Live),
            ("t", _) => Point::parse(text).ok().map(Self::Historic),
            ("m", rest) => positions(rest).map(Self::Writers),
            _ => None,
        }
    }

    /// The depth, where the token has one.
    pub fn topological(&self) -> Option<i64> {
        match self {
            Self::Historic(point) => Some(point.topological),
            Self::Live(_) | Self::Writers(_) => None,
        }
    }

    /// The order of arrival up to which everything lies behind the token.
    pub fn stream(&self) -> i64 {
        match self {
            Self::Historic(point) => point.stream,
            Self::Live(stream) => *stream,
            Self::Writers(positions) => positions.min,
        }
    }
}

impl fmt::Display for RoomToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Historic(point) => point.fmt(f),
            Self::Live(stream) => write!(f, "s{stream}"),
            Self::Writers(Positions { min, ahead }) if ahead.is_empty() => write!(f, "s{min}"),
            Self::Writers(Positions { min, ahead }) => {
                write!(f, "m{min}")?;
                for (id, at) in ahead {
                    write!(f, "~{id}.{at}")?;
                }
                Ok(())
            }
        }
    }
}

/// Keys of the tokens we make ourselves: every release reads ten (M-3).
const KEYS: usize = 10;

/// A pagination token: the room's part, and parts for other streams, which are kept as they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamToken {
    /// The room's part.
    pub room: RoomToken,
    others: Vec<String>,
}

impl StreamToken {
    /// A token of our own, with nothing to say about other streams.
    pub fn new(room: RoomToken) -> Self {
        let others = vec!["0".to_owned(); KEYS - 1];
        Self { room, others }
    }

    /// The same place in all other streams, another one in the room.
    #[must_use]
    pub fn at(&self, room: RoomToken) -> Self {
        let others = self.others.clone();
        Self { room, others }
    }
}

/// A text that is no pagination token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a pagination token")]
pub struct NoToken;

impl FromStr for StreamToken {
    type Err = NoToken;

    /// Reads tokens of every release, whatever number of keys it knows, and a room's part alone.
    fn from_str(text: &str) -> Result<Self, NoToken> {
        let mut keys = text.split('_');
        let room = keys.next().and_then(RoomToken::read).ok_or(NoToken)?;
        let others: Vec<String> = keys.map(str::to_owned).collect();
        let is_key = |key: &String| match key.strip_prefix('m') {
            Some(several) => positions(several).is_some(),
            None => number(key).is_some(),
        };
        if !others.iter().all(is_key) {
            return Err(NoToken);
        }
        Ok(Self { room, others })
    }
}

impl fmt::Display for StreamToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.room.fmt(f)?;
        for key in &self.others {
            write!(f, "_{key}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_every_release_are_read_and_come_back_as_they_were() {
        for token in [
            "s5",
            "s-5",
            "t5-3",
            "t5--3",
            "m5~1.7~2.9",
            "t5-3_0_0_0_0_0_0_0_0_0",
            "s12_1_2_3_4_5_6_7_8_9_10_11_12_13",
            "m5~1.7_0_0_m3~1.4_5_6_7_m8~2.9_0_0_0_0_0_0",
            "t1-1_0_0_0_0_0_0_0_0_0_0_0_0_0_0_0",
        ] {
            let read: StreamToken = token.parse().expect(token);
            assert_eq!(read.to_string(), token);
        }
        let several: StreamToken = "m5~~1.7~".parse().expect("empty parts are skipped");
        assert_eq!(several.to_string(), "m5~1.7");
        assert_eq!(
            "m5~".parse::<StreamToken>().expect("read").to_string(),
            "s5"
        );
    }

    #[test]
    fn a_token_of_ours_has_ten_keys() {
        let point = Point {
            topological: 4,
            stream: -2,
        };
        let token = StreamToken::new(RoomToken::Historic(point));
        assert_eq!(token.to_string(), "t4--2_0_0_0_0_0_0_0_0_0");
        let next = token.at(RoomToken::Live(7));
        assert_eq!(next.to_string(), "s7_0_0_0_0_0_0_0_0_0");
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for wrong in [
            "",
            "END",
            "5",
            "s",
            "sx",
            "s5x",
            "t5",
            "t-5-3",
            "s 5",
            "s+5",
            "m",
            "m5~1",
            "m5~1.x",
            "m5~1.5",
            "m5~x.7",
            "s5_",
            "s5__0",
            "s5_x",
            "s5_0_m5~1.5",
            "x5",
            "ß5",
            "s99999999999999999999",
        ] {
            assert!(wrong.parse::<StreamToken>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_furthest_writer_bounds_them_all() {
        let RoomToken::Writers(positions) = RoomToken::read("m5~1.7~2.9~3.6").expect("read") else {
            panic!("writers")
        };
        assert_eq!((positions.min, positions.max()), (5, 9));
    }
}
