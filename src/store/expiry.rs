//! Which events were received before a time, although nobody can be sure of every stamp.
//!
//! Events arrive in the order of their stream; their `received_ts` should grow with it, and mostly does. A clock that
//! stood in 1970 for a while, or far ahead, and rows without a stamp are found out by comparing each row that is looked
//! at with rows at growing distance before it. So a search looks at a few hundred rows however large the table is, and
//! however long a wrong stretch. Where it cannot tell, an event counts as not expired. Reads only.

use serde_json::Value;

use super::db::{Db, params};
use crate::error::Error;
use crate::time::{Millis, days};

/// A stamp that lies further than this below an earlier one is wrong, and so is one further ahead of now.
const STEP_BACK: Millis = days(1);

/// Around the time that is asked for, stamps that lie no further apart than twice this say nothing against each other.
const NEAR: Millis = Millis(STEP_BACK.0 / 2);

/// Before this nobody received an event: it is earlier than the first homeserver (1 January 2014). A clock that had not
/// been set wrote such a stamp, and it is no stamp.
pub(super) const FIRST_POSSIBLE: Millis = Millis(1_388_534_400_000);

/// The first stamp that is believed when a time is asked for. Who asks for one before the first homeserver means the stamps
/// of such a time: a database of nothing else answers as its stamps say.
fn first_believed(ts: Millis) -> Millis {
    match ts < FIRST_POSSIBLE {
        true => Millis(0),
        false => FIRST_POSSIBLE,
    }
}

/// [`FIRST_POSSIBLE`], as a statement writes it: a macro cannot name a constant there. A test holds the two together.
macro_rules! first_possible {
    () => {
        "1388534400000"
    };
}
pub(super) use first_possible;

/// R-50 as every statement asks it, of events whose columns are named with a prefix (a plus sign in it keeps SQLite from
/// an index), by the numbers of an [`Expiry`]: its `near`, `live_end`, `live_before`, `ts`, `first_known` and
/// `backfilled_after`, or the columns of those names in a table. A stamp that is no number (SQLite holds what was put in)
/// is unknown: as a number it is 0.
macro_rules! has_expired {
    ($e:literal of $table:literal) => {
        has_expired!(@ $e, ($table, ".near"), ($table, ".live_end"), ($table, ".live_before"), ($table, ".ts"),
                     ($table, ".first_known"), ($table, ".backfilled_after"))
    };
    ($e:literal, $near:literal, $end:literal, $before:literal, $ts:literal, $known:literal, $backfilled:literal) => {
        has_expired!(@ $e, ($near), ($end), ($before), ($ts), ($known), ($backfilled))
    };
    (@ $e:literal, ($($near:literal),+), ($($end:literal),+), ($($before:literal),+), ($($ts:literal),+),
     ($($known:literal),+), ($($backfilled:literal),+)) => {
        concat!(
            "(", $e, "stream_ordering > 0
              AND ", $e, "stream_ordering < CASE WHEN CAST(", $e, "received_ts AS BIGINT) >= ", $($near),+, "
                                                 THEN ", $($end),+, " ELSE ", $($before),+, " END
              AND coalesce(CAST(", $e, "received_ts AS BIGINT) < ", $($ts),+, " AND ", $e, "stream_ordering >= ", $($known),+, ",
                           ", $e, "stream_ordering >= ", $($known),+, ")
              OR ", $e, "stream_ordering < 0
                 AND (", $e, "origin_server_ts < ", $($ts),+, "
                      OR (CAST(", $e, "received_ts AS BIGINT) < ", $($ts),+, "
                          AND CAST(", $e, "received_ts AS BIGINT) >= ", $crate::store::expiry::first_possible!(), "
                          AND ", $e, "stream_ordering > ", $($backfilled),+, ")))"
        )
    };
}
pub(super) use has_expired;

/// What had been received before a time, as numbers that statements compare every event with:
///
/// - a live event (of a positive stream ordering) has expired when it lies below [`Expiry::live_before`], or near that,
///   and its own stamp is earlier than [`Expiry::ts`] or unknown, but never before [`Expiry::first_known`];
/// - a backfilled one also when it was sent before [`Expiry::ts`]; by its arrival only when it lies above
///   [`Expiry::backfilled_after`] and its stamp is possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// What was received before this has expired.
    pub ts: Millis,
    /// From this stamp on an event may have expired between [`Expiry::live_before`] and [`Expiry::live_end`].
    pub near: Millis,
    /// Below this stream ordering live events were received before `ts`, as far as the rows before them tell.
    pub live_before: i64,
    /// At or above this stream ordering no live event has expired, whatever its stamp says.
    pub live_end: i64,
    /// The first live event whose stamp is possible, or the end of all numbers: nothing is known of what came before.
    pub first_known: i64,
    /// Above this stream ordering backfilled events arrived before `ts`.
    pub backfilled_after: i64,
}

impl Expiry {
    /// Finds out what was received before `ts`. Stamps later than tomorrow, by `now`, measure no other event.
    pub fn find(db: &Db, ts: Millis, now: Millis) -> Result<Self, Error> {
        Search::new(db, now)?.before(ts)
    }
}

/// A search that is asked for several times.
pub struct Search<'a> {
    live: Arrivals<'a>,
    backfilled: Arrivals<'a>,
}

impl<'a> Search<'a> {
    /// Looks at rows from all over the table. Stamps later than tomorrow, by `now`, measure no other event.
    pub fn new(db: &'a Db, now: Millis) -> Result<Self, Error> {
        let latest = now + STEP_BACK;
        Ok(Self {
            live: Arrivals::new(db, Side::Live, latest)?,
            backfilled: Arrivals::new(db, Side::Backfilled, latest)?,
        })
    }

    /// What was received before `ts`.
    pub fn before(&self, ts: Millis) -> Result<Expiry, Error> {
        let (live, near) = (self.live.asked(ts)?, self.live.asked(ts + NEAR)?);
        let live_before = self.live.first_received_from(&live)?;
        let live_end = self.live.first_received_from(&near)?;
        let backfilled = self.backfilled.asked(ts)?;
        Ok(Expiry {
            ts,
            near: ts - NEAR,
            live_before,
            live_end: live_end.max(live_before),
            first_known: live.first_known,
            backfilled_after: -self.backfilled.first_received_from(&backfilled)?,
        })
    }
}

/// An [`Expiry`] as statements bind it; every number is NULL where there is none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bound {
    pub(super) ts: Option<i64>,
    pub(super) near: Option<i64>,
    pub(super) live_before: Option<i64>,
    pub(super) live_end: Option<i64>,
    pub(super) first_known: Option<i64>,
    pub(super) backfilled_after: Option<i64>,
}

impl Bound {
    pub(super) fn of(expiry: Option<&Expiry>) -> Self {
        expiry.map_or_else(Self::default, |expiry| Self {
            ts: Some(expiry.ts.0),
            near: Some(expiry.near.0),
            live_before: Some(expiry.live_before),
            live_end: Some(expiry.live_end),
            first_known: Some(expiry.first_known),
            backfilled_after: Some(expiry.backfilled_after),
        })
    }
}

const DOING: &str = "find the first event received after a time";

const NEWEST: &str = "SELECT max(stream_ordering) FROM events";

const OLDEST: &str = "SELECT min(stream_ordering) FROM events";

/// Nothing before it is known. Binds `$1` the first possible stamp. Walks rows without a stamp, or with one of a clock that
/// was not set, of which few servers have some.
const FIRST_KNOWN: &str = "
    SELECT stream_ordering FROM events
     WHERE stream_ordering > 0 AND CAST(received_ts AS BIGINT) >= $1
     ORDER BY stream_ordering LIMIT 1";

/// The same of backfilled events.
const FIRST_KNOWN_BACKFILLED: &str = "
    SELECT -stream_ordering FROM events
     WHERE stream_ordering < 0 AND CAST(received_ts AS BIGINT) >= $1
     ORDER BY stream_ordering DESC LIMIT 1";

/// The nearest live event at or before a place whose stamp is possible. Binds `$1` the place, `$2` the first possible
/// stamp, `$3` the last. Walks the rows between, which have none.
const KNOWN_BEFORE: &str = "
    SELECT stream_ordering, received_ts FROM events
     WHERE stream_ordering > 0 AND stream_ordering <= $1 AND CAST(received_ts AS BIGINT) BETWEEN $2 AND $3
     ORDER BY stream_ordering DESC LIMIT 1";

/// The same of backfilled events.
const KNOWN_BEFORE_BACKFILLED: &str = "
    SELECT -stream_ordering, received_ts FROM events
     WHERE stream_ordering < 0 AND stream_ordering >= -CAST($1 AS BIGINT) AND CAST(received_ts AS BIGINT) BETWEEN $2 AND $3
     ORDER BY stream_ordering LIMIT 1";

/// The live events at or before some places, with their stamps. Binds `$1` the places as a JSON array. R-24 (a), defect
/// C: backfilled events are no live ones.
const LIVE_AT: &str = "
    SELECT (SELECT n.stream_ordering FROM events n
             WHERE n.stream_ordering <= asked.place AND n.stream_ordering > 0
             ORDER BY n.stream_ordering DESC LIMIT 1),
           (SELECT e.received_ts FROM events e
             WHERE e.stream_ordering <= asked.place AND e.stream_ordering > 0
             ORDER BY e.stream_ordering DESC LIMIT 1)
      FROM (SELECT CAST(value AS BIGINT) AS place FROM json_each($1)) AS asked";

/// The same of backfilled events, which arrived in the order -1, -2, …
const BACKFILLED_AT: &str = "
    SELECT (SELECT -n.stream_ordering FROM events n
             WHERE n.stream_ordering >= -asked.place AND n.stream_ordering < 0
             ORDER BY n.stream_ordering LIMIT 1),
           (SELECT e.received_ts FROM events e
             WHERE e.stream_ordering >= -asked.place AND e.stream_ordering < 0
             ORDER BY e.stream_ordering LIMIT 1)
      FROM (SELECT CAST(value AS BIGINT) AS place FROM json_each($1)) AS asked";

#[derive(Clone, Copy)]
enum Side {
    Live,
    Backfilled,
}

/// A row: its place in the order of arrival, from 1, and its stamp.
type Arrival = (i64, Option<i64>);

/// Events in the order in which they arrived.
struct Arrivals<'a> {
    db: &'a Db,
    side: Side,
    /// Stamps above this are wrong.
    latest: Millis,
    newest: i64,
    /// The first place whose stamp is possible.
    first_possible: i64,
    /// Rows from all over the table, the newest first; of a small table all of them.
    sample: Vec<Arrival>,
}

/// What one search goes by.
struct Asked {
    ts: Millis,
    /// The first stamp that is believed.
    first_believed: Millis,
    /// The first place that has such a one.
    first_known: i64,
}

/// When a place had been reached.
enum Received {
    At(i64),
    /// No row up to there, or none whose stamp is good.
    Unknown,
}

impl<'a> Arrivals<'a> {
    fn new(db: &'a Db, side: Side, latest: Millis) -> Result<Self, Error> {
        let newest = match side {
            Side::Live => db.count(DOING, NEWEST, &[])?,
            Side::Backfilled => db.count(DOING, OLDEST, &[])?.saturating_neg(),
        };
        let mut arrivals = Self {
            db,
            side,
            latest,
            newest: newest.max(0),
            first_possible: i64::MAX,
            sample: Vec::new(),
        };
        if arrivals.newest > 0 {
            arrivals.sample = arrivals.rows(&places_all_over(arrivals.newest))?;
            arrivals.first_possible = arrivals.first_stamped_from(FIRST_POSSIBLE)?;
        }
        Ok(arrivals)
    }

    fn first_stamped_from(&self, stamp: Millis) -> Result<i64, Error> {
        let sql = match self.side {
            Side::Live => FIRST_KNOWN,
            Side::Backfilled => FIRST_KNOWN_BACKFILLED,
        };
        let found = self.db.row(DOING, sql, params![stamp.0], |r| r.get(0))?;
        Ok(found.unwrap_or(i64::MAX))
    }

    fn asked(&self, ts: Millis) -> Result<Asked, Error> {
        let first_believed = first_believed(ts);
        let first_known = match first_believed {
            FIRST_POSSIBLE => self.first_possible,
            earlier => self.first_stamped_from(earlier)?,
        };
        Ok(Asked {
            ts,
            first_believed,
            first_known,
        })
    }

    /// The binary search of R-23: the first place whose event was received at or after `ts`; one more than the newest
    /// where none was, and 0 where nothing is known to have been received before.
    fn first_received_from(&self, asked: &Asked) -> Result<i64, Error> {
        let (mut low, mut high) = (1, self.newest.saturating_add(1));
        while high > low {
            let middle = low + (high - low) / 2;
            match self.received(middle, asked)? {
                Received::At(received) if received >= asked.ts.0 => high = middle,
                _ => low = middle + 1,
            }
        }
        // What came before the first stamp was not received before anything that is known.
        Ok(if high <= asked.first_known { 0 } else { high })
    }

    /// When the last event up to a place was received; by the nearest earlier one where its own stamp is unknown.
    fn received(&self, place: i64, asked: &Asked) -> Result<Received, Error> {
        let is_possible = |stamp: &i64| (asked.first_believed.0..=self.latest.0).contains(stamp);
        let own = self.rows(&[place])?;
        let Some(&(_, stamp)) = own.first() else {
            return Ok(Received::Unknown);
        };
        // What is late enough by its own stamp need not be doubted: nothing goes because of it.
        if let Some(stamp) = stamp.filter(is_possible)
            && stamp >= asked.ts.0
        {
            return Ok(Received::At(stamp));
        }
        let mut rows = self.rows(&places_before(place))?;
        rows.extend(self.sample.iter().filter(|(at, _)| *at <= place));
        rows.sort_unstable_by_key(|row| std::cmp::Reverse(row.0));
        let latest_before = rows.iter().filter_map(|(_, stamp)| *stamp);
        let Some(reference) = latest_before.filter(is_possible).max() else {
            return Ok(self
                .known_before(place, asked)?
                .map_or(Received::Unknown, Received::At));
        };
        let good =
            |stamp: Option<i64>| stamp.filter(|s| is_possible(s) && *s >= reference - STEP_BACK.0);
        let mut doubted = place;
        for (at, stamp) in rows {
            if let Some(stamp) = good(stamp) {
                return self
                    .last_good((at, stamp), doubted, &good)
                    .map(Received::At);
            }
            doubted = at;
        }
        Ok(Received::Unknown)
    }

    /// The nearest earlier stamp that is possible, where none of the rows that are looked at has one.
    fn known_before(&self, place: i64, asked: &Asked) -> Result<Option<i64>, Error> {
        if place < asked.first_known {
            return Ok(None);
        }
        let sql = match self.side {
            Side::Live => KNOWN_BEFORE,
            Side::Backfilled => KNOWN_BEFORE_BACKFILLED,
        };
        let params = params![place, asked.first_believed.0, self.latest.0];
        let found = self.db.row(DOING, sql, params, |r| Ok(r.stamp(1)))?;
        Ok(found.flatten())
    }

    /// The stamp of the last good row between one that is and a place where there is none any more.
    fn last_good(
        &self,
        (mut at, mut stamp): (i64, i64),
        mut doubted: i64,
        good: &dyn Fn(Option<i64>) -> Option<i64>,
    ) -> Result<i64, Error> {
        while doubted - at > 1 {
            let middle = at + (doubted - at) / 2;
            match self.rows(&[middle])?.first() {
                Some(&(found, of)) if found > at => match good(of) {
                    Some(good) => (at, stamp) = (middle, good),
                    None => doubted = found,
                },
                // Nothing lies between.
                _ => at = middle,
            }
        }
        Ok(stamp)
    }

    /// The rows at or before some places, each once, the newest first.
    fn rows(&self, places: &[i64]) -> Result<Vec<Arrival>, Error> {
        let sql = match self.side {
            Side::Live => LIVE_AT,
            Side::Backfilled => BACKFILLED_AT,
        };
        let asked = Value::from(places).to_string();
        let found = self.db.rows(DOING, sql, params![asked], |r| {
            Ok((r.get::<_, Option<i64>>(0)?, r.stamp(1)))
        })?;
        let mut rows: Vec<Arrival> = found
            .into_iter()
            .filter_map(|(place, stamp)| Some((place?, stamp)))
            .collect();
        rows.sort_unstable_by_key(|row| std::cmp::Reverse(row.0));
        rows.dedup_by_key(|row| row.0);
        Ok(rows)
    }
}

/// How many rows from all over a table are looked at: a stretch of rows that is longer than such a part of it is seen.
const SAMPLE: i64 = 1_000;

/// Places all over, and at growing distance from the first.
fn places_all_over(newest: i64) -> Vec<i64> {
    let step = (newest / SAMPLE).max(1);
    let first = (0..62).map(|power| 1_i64 << power);
    let mut places: Vec<i64> = (1..=SAMPLE.min(newest)).map(|n| n * step).collect();
    places.extend(first.take_while(|at| *at <= newest));
    places
}

/// A place and others at growing distance before it.
fn places_before(place: i64) -> Vec<i64> {
    let distances = (0..62).map(|power| 1_i64 << power);
    let before = distances
        .map(|distance| place - distance)
        .take_while(|at| *at > 0);
    std::iter::once(place).chain(before).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_possible_stamp_is_one_number() {
        assert_eq!(first_possible!(), FIRST_POSSIBLE.0.to_string());
    }
}
