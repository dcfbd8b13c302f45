//! Which events were received before a time, as tell it: row after row, in the order of arrival.

use std::collections::BTreeSet;

use super::tables::{Row, Tables};

/// A stamp further than this below an earlier one is wrong, and so is one further ahead of now.
pub const DAY: i64 = 86_400_000;

/// Before this nobody received an event: such a stamp is none.
pub const FIRST_POSSIBLE: i64 = 1_388_534_400_000;

/// The ids of the events that have expired: received before `ts`, or backfilled and sent before it.
pub fn expired(tables: &Tables, ts: i64, now: i64) -> BTreeSet<String> {
    let mut live: Vec<&Row> = tables.rows("events").iter().collect();
    live.sort_by_key(|e| e.number("stream_ordering"));
    let (backfilled, live): (Vec<&Row>, Vec<&Row>) = live
        .into_iter()
        .partition(|e| e.number("stream_ordering") < 0);
    let mut expired = BTreeSet::new();
    for (event, received) in received(live.into_iter(), now) {
        if received.is_some_and(|received| received < ts) {
            expired.insert(event.word("event_id").to_owned());
        }
    }
    // -1 arrived first.
    for (event, received) in received(backfilled.into_iter().rev(), now) {
        let is_known = event
            .int("received_ts")
            .is_some_and(|at| at >= FIRST_POSSIBLE);
        let was_sent = event.int("origin_server_ts").is_some_and(|at| at < ts);
        // Of one whose arrival is unknown, the time at which it was sent decides alone.
        if was_sent || (is_known && received.is_some_and(|received| received < ts)) {
            expired.insert(event.word("event_id").to_owned());
        }
    }
    expired
}

/// Each event with the time at which it counts as received, if there is one. A stamp in the future counts for its own
/// event, and for no other.
pub fn received<'a>(
    events: impl Iterator<Item = &'a Row>,
    now: i64,
) -> Vec<(&'a Row, Option<i64>)> {
    let (mut latest, mut last_good) = (None::<i64>, None);
    let mut all = Vec::new();
    for event in events {
        let received = match event.int("received_ts") {
            Some(stamp) if stamp > now + DAY => Some(stamp),
            Some(stamp) if stamp < FIRST_POSSIBLE => last_good,
            Some(stamp) if latest.is_none_or(|latest| stamp >= latest - DAY) => {
                latest = Some(latest.map_or(stamp, |latest| latest.max(stamp)));
                last_good = Some(stamp);
                Some(stamp)
            }
            _ => last_good,
        };
        all.push((event, received));
    }
    all
}
