//! Between which places a page lies (M-10, M-22, M-24, M-30 … M-35).

use std::collections::HashMap;

use super::read_access::ReadAccess;
use super::request::PageRequest;
use crate::error::Error;
use crate::ids::RoomId;
use crate::point::{Direction, Point, Positions, RoomToken, StreamToken};
use crate::store::db::Db;
use crate::store::pages::{self, EventRow, MAIN_WRITER, RowRange};

/// Where a page begins and how far it may reach.
pub(crate) struct TokenRange {
    /// The token it really begins at.
    pub(crate) start: StreamToken,
    to: Option<RoomToken>,
    direction: Direction,
    /// Where a departed user's sight ends.
    left_at: Option<Point>,
    writers: HashMap<String, i64>,
}

impl TokenRange {
    /// The range of a request. `read_access` is `None` for readers who may see everything.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for tokens that name unknown writers (M-4).
    pub(crate) fn open(
        db: &Db,
        room: &RoomId,
        request: &PageRequest,
        read_access: Option<ReadAccess>,
        writers: HashMap<String, i64>,
    ) -> Result<Self, Error> {
        let mut start = match (&request.from, request.direction) {
            (Some(from), _) => from.clone(),
            (None, Direction::Forwards) => StreamToken::new(RoomToken::Live(0)),
            (None, Direction::Backwards) => {
                StreamToken::new(RoomToken::Historic(pages::end_of_room(db, room)?))
            }
        };
        let left_at = match read_access {
            Some(ReadAccess::Departed(left)) => Some(left),
            _ => None,
        };
        if let (Some(left), Direction::Backwards) = (left_at, request.direction) {
            let depth = match start.room.topological().filter(|depth| *depth != 0) {
                Some(depth) => depth,
                None => pages::depth_at(db, room, start.room.stream())?,
            };
            if left.topological < depth {
                start = start.at(RoomToken::Historic(left));
            }
        }
        Ok(Self {
            start,
            to: request.to.as_ref().map(|to| to.room.clone()),
            direction: request.direction,
            left_at,
            writers,
        })
    }

    /// The tokens below and above, if there are both.
    fn bounds(&self) -> (Option<&RoomToken>, Option<&RoomToken>) {
        let from = Some(&self.start.room);
        match self.direction {
            Direction::Forwards => (from, self.to.as_ref()),
            Direction::Backwards => (self.to.as_ref(), from),
        }
    }

    /// What a query can be asked for.
    pub(crate) fn row_range(&self) -> RowRange {
        let mut row_range = RowRange::default();
        let (lower, upper) = self.bounds();
        match lower {
            Some(RoomToken::Historic(point)) => row_range.above = *point,
            Some(RoomToken::Live(stream)) => row_range.after = *stream,
            Some(RoomToken::Writers(positions)) => row_range.after = positions.min,
            None => {}
        }
        match upper {
            Some(RoomToken::Historic(point)) => row_range.up_to = *point,
            Some(RoomToken::Live(stream)) => row_range.by = *stream,
            Some(RoomToken::Writers(positions)) => row_range.by = positions.max(),
            None => {}
        }
        if let Some(left) = self.left_at {
            row_range.up_to = row_range.up_to.min(left);
        }
        row_range
    }

    /// Whether rows have to be looked at one by one, because several writers are at different places.
    pub(crate) fn has_writer_positions(&self) -> bool {
        let (lower, upper) = self.bounds();
        let has_writer_positions = |token: &RoomToken| matches!(token, RoomToken::Writers(_));
        lower.is_some_and(has_writer_positions) || upper.is_some_and(has_writer_positions)
    }

    /// Whether a row lies in the range (M-32).
    pub(crate) fn holds(&self, row: &EventRow) -> bool {
        let writer = row.writer.as_deref().unwrap_or(MAIN_WRITER);
        let at = |positions: &Positions| {
            let id = self.writers.get(writer);
            let ahead = positions.ahead.iter().find(|(ahead, _)| Some(ahead) == id);
            ahead.map_or(positions.min, |(_, at)| *at)
        };
        let (lower, upper) = self.bounds();
        let is_above = match lower {
            Some(RoomToken::Writers(positions)) => row.point.stream > at(positions),
            _ => true,
        };
        is_above
            && match upper {
                Some(RoomToken::Writers(positions)) => row.point.stream <= at(positions),
                _ => true,
            }
    }

    /// Whether nothing can lie in the range, by what its tokens say alone (M-35).
    pub(crate) fn is_empty(&self) -> bool {
        let is_empty = |lower: &RoomToken, upper: &RoomToken| match (lower, upper) {
            (RoomToken::Historic(lower), RoomToken::Historic(upper)) => upper <= lower,
            (RoomToken::Live(lower), RoomToken::Live(upper)) => upper <= lower,
            _ => false,
        };
        matches!(self.bounds(), (Some(lower), Some(upper)) if is_empty(lower, upper))
    }

    /// The token after a page that ends with `last` (M-33).
    pub(crate) fn next(&self, last: Option<Point>) -> StreamToken {
        let room = match (last, self.direction) {
            (Some(last), Direction::Forwards) => RoomToken::Historic(last),
            (Some(last), Direction::Backwards) => RoomToken::Historic(Point {
                stream: last.stream.saturating_sub(1),
                ..last
            }),
            (None, _) => self.to.clone().unwrap_or_else(|| self.start.room.clone()),
        };
        self.start.at(room)
    }

    /// Whether a page that was not cut off ends where a departed user's sight ends, so that there is nothing to go on
    /// to (M-24).
    pub(crate) fn ends_at_leave(&self) -> bool {
        let Some(left) = self
            .left_at
            .filter(|_| self.direction == Direction::Forwards)
        else {
            return false;
        };
        match &self.to {
            Some(RoomToken::Historic(to)) => *to >= left,
            Some(RoomToken::Live(stream)) => *stream >= left.stream,
            Some(RoomToken::Writers(positions)) => positions.min >= left.stream,
            None => true,
        }
    }
}

/// The numbers of the writers that a request's tokens name, by name.
///
/// # Errors
/// [`Error::BadRequest`] when a token names one that is not known (M-4).
pub(crate) fn writers(db: &Db, request: &PageRequest) -> Result<HashMap<String, i64>, Error> {
    let mut writers = HashMap::new();
    for (name, token) in [("from", &request.from), ("to", &request.to)] {
        let Some(RoomToken::Writers(positions)) = token.as_ref().map(|token| &token.room) else {
            continue;
        };
        let ids: Vec<i64> = positions.ahead.iter().map(|(id, _)| *id).collect();
        let known = pages::writers(db, &ids)?;
        if ids
            .iter()
            .any(|id| !known.iter().any(|(known, _)| known == id))
        {
            return Err(Error::bad(
                "M_UNKNOWN",
                format!("'{name}' parameter is invalid"),
            ));
        }
        writers.extend(known.into_iter().map(|(id, name)| (name, id)));
    }
    Ok(writers)
}
