//! No event goes that has not expired: histories that were backfilled yesterday, stamps that are wrong, and
//! stamps that are missing; by a policy, by an age, and by a time.

use std::collections::BTreeSet;
use std::sync::Arc;

use rand::Rng;
use rand::rngs::StdRng;
use roomkeeper::time::ManualClock;
use roomkeeper::{Config, Error, Keeper, Millis, PurgeOptions, PurgePoint, RoomId, days};

use crate::support::arrivals::{self, DAY};
use crate::support::draft::{Draft, Event, FIRST_TS};
use crate::support::samples::for_each_sample;
use crate::support::tables::Tables;
use crate::support::work::Site;

const ROOMS: [&str; 2] = ["!a:example.org", "!b:example.org"];
const ALICE: &str = "@alice:example.org";

/// The time: more than a year after the first stamp.
const NOW: i64 = FIRST_TS + 500 * DAY;

/// A backfilled message: when it arrived, and when it was sent.
type Backfilled = (Option<i64>, i64);

/// Two rooms. Their live messages come by turns, with these stamps; the backfilled ones are of the first room.
fn stream(live: &[Option<i64>], backfilled: &[Backfilled]) -> Site {
    stream_of(live, backfilled, |number| 10 + number)
}

/// The same, with the places of the live events.
fn stream_of(live: &[Option<i64>], backfilled: &[Backfilled], place: impl Fn(i64) -> i64) -> Site {
    let mut draft = Draft::new("example.org", 7);
    for (at, room) in ROOMS.iter().enumerate() {
        let at = i64::try_from(at).expect("two");
        draft.open_room(room, &format!("r{at}"), ALICE, 2 + 2 * at);
    }
    let mut last = ROOMS.map(|room| format!("$r{}-join", usize::from(room == ROOMS[1])));
    let mut stamps = Vec::new();
    // Oldest first, by depth: what arrived last lies deepest in the past.
    for (at, (received, sent)) in backfilled.iter().enumerate().rev() {
        let number = i64::try_from(at).expect("few");
        let id = format!("$back{at}");
        let event = Event::message(
            &id,
            ROOMS[0],
            "@bob:remote.example",
            900 - number,
            -1 - number,
        );
        draft.add(event.after(&[&last[0]]));
        last[0].clone_from(&id);
        stamps.push((id, *received, *sent));
    }
    for (at, received) in live.iter().enumerate() {
        let number = i64::try_from(at).expect("few");
        let room = at % 2;
        let id = format!("$live{at}");
        let event = Event::message(&id, ROOMS[room], ALICE, 1_000 + number, place(number));
        draft.add(event.after(&[&last[room]]));
        last[room].clone_from(&id);
        stamps.push((id, *received, received.unwrap_or(FIRST_TS)));
    }
    let site = Site::of(draft);
    let mut sql = String::new();
    for (id, received, sent) in stamps {
        let received = received.map_or("NULL".to_owned(), |at| at.to_string());
        sql.push_str(&format!(
            "UPDATE events SET received_ts = {received}, origin_server_ts = {sent} WHERE event_id = '{id}';\n"
        ));
    }
    site.run(&sql);
    site
}

fn config(site: &Site) -> Config {
    let mut config = site.config();
    config.clock = Arc::new(ManualClock::at(Millis(NOW)));
    config
}

/// Purges a room of everything; answers what went.
fn purge(site: &Site, room: &str, point: PurgePoint) -> Result<BTreeSet<String>, Error> {
    let before = held(&site.tables());
    let keeper = Keeper::open(config(site)).expect("opens");
    let options = PurgeOptions {
        delete_local_events: true,
        keep_received_after: None,
        ..PurgeOptions::default()
    };
    let done = keeper
        .purge_history(&RoomId::from(room), point, options)
        .and_then(|id| keeper.wait(&id));
    keeper.stop();
    done?;
    site.assert_sound("after the purge");
    Ok(before.difference(&held(&site.tables())).cloned().collect())
}

/// Messages that are held.
fn held(tables: &Tables) -> BTreeSet<String> {
    let events = tables.rows("events").iter();
    events.map(|e| e.word("event_id").to_owned()).collect()
}

fn daily(count: i64) -> Vec<Option<i64>> {
    (0..count).map(|day| Some(FIRST_TS + day * DAY)).collect()
}

#[test]
fn a_history_that_was_backfilled_an_hour_ago_stays_whatever_its_depth() {
    let hour = DAY / 24;
    let young: Vec<Backfilled> = (0..60)
        .map(|n| (Some(NOW - hour), NOW - 2 * hour - n))
        .collect();
    let live = vec![Some(NOW - hour); 8];
    for point in [
        PurgePoint::OlderThan(days(365)),
        PurgePoint::BeforeTs(Millis(NOW - 365 * DAY)),
    ] {
        let site = stream(&live, &young);
        let outcome = purge(&site, ROOMS[0], point);
        // The room was made long ago; nothing below its creation is there to go.
        assert!(outcome.is_ok_and(|gone| gone.is_empty()));
    }
    // Sent two years ago and backfilled today: old enough to go, and what was sent lately stays.
    let mut mixed = young.clone();
    mixed.extend((0..20).map(|n| (Some(NOW - hour), NOW - 700 * DAY - n)));
    let site = stream(&live, &mixed);
    site.run(&format!(
        "UPDATE events SET received_ts = {} WHERE stream_ordering BETWEEN 0 AND 9",
        NOW - hour
    ));
    let gone = purge(&site, ROOMS[0], PurgePoint::OlderThan(days(365))).expect("done");
    // The last expired one by arrival lies at the cut, and stays.
    let expected: BTreeSet<String> = (61..80).map(|at| format!("$back{at}")).collect();
    assert_eq!(gone, expected);
}

#[test]
fn a_retention_run_leaves_a_young_history_alone_too() {
    let hour = DAY / 24;
    let young: Vec<Backfilled> = (0..60)
        .map(|n| (Some(NOW - hour), NOW - 2 * hour - n))
        .collect();
    let site = stream(&[Some(NOW - hour); 8], &young);
    let mut config = config(&site);
    config.retention.default_policy.max_lifetime = Some(days(365));
    let before = held(&site.tables());
    let keeper = Keeper::open(config).expect("opens");
    let id = keeper.purge_history_for_rooms_in_range(None, None);
    keeper.wait(&id.expect("begun")).expect("done");
    keeper.stop();
    assert_eq!(held(&site.tables()), before);
}

#[test]
fn a_clock_that_stood_in_1970_hides_no_event_and_dooms_none() {
    // What came in the last hundred days is young; 41 rows, or most of them, have stamps that are wrong.
    for (begin, length) in [(150, 41), (101, 41), (101, 98), (110, 1), (0, 41), (199, 1)] {
        for wrong in [Some(0), None, Some(FIRST_TS - 900 * DAY)] {
            let mut live: Vec<Option<i64>> =
                (0..200).map(|n| Some(NOW - 200 * DAY + n * DAY)).collect();
            for stamp in live.iter_mut().skip(begin).take(length) {
                *stamp = wrong;
            }
            for room in ROOMS {
                let site = stream(&live, &[]);
                let ts = NOW - 100 * DAY;
                let expected = expected(&site, room, ts);
                let gone = purge(&site, room, PurgePoint::BeforeTs(Millis(ts)));
                let about = format!("{length} from {begin}, {wrong:?}, {room}");
                assert_eq!(gone.expect(&about), expected, "{about}");
                // Of what came after that, nothing may go, whatever its stamp.
                let young = expected.iter().filter_map(|id| id.strip_prefix("$live"));
                let young = young.filter(|n| n.parse::<usize>().is_ok_and(|n| n >= 101));
                assert_eq!(young.count(), 0, "{about}");
            }
        }
    }
}

/// A clock that was not set when the server began, or rows from before stamps were kept: what nobody can tell stays.
#[test]
fn a_stream_that_begins_without_a_possible_stamp_loses_none_of_it() {
    let hour = DAY / 24;
    for wrong in [Some(0), Some(-1), Some(3_600_000), None] {
        for young in [0, 1, 60] {
            let mut live = vec![wrong; 120];
            live.extend(vec![Some(NOW - hour); young]);
            let backfilled = vec![(wrong, NOW - 2 * hour); 30];
            for room in ROOMS {
                let site = stream(&live, &backfilled);
                let first = format!(
                    "UPDATE events SET received_ts = {} WHERE stream_ordering BETWEEN 0 AND 9",
                    wrong.map_or("NULL".into(), |at| at.to_string())
                );
                site.run(&first);
                let point = PurgePoint::BeforeTs(Millis(NOW - 365 * DAY));
                let gone = purge(&site, room, point);
                let about = format!("{wrong:?}, {young} young, {room}: {gone:?}");
                assert!(
                    matches!(&gone, Err(Error::NothingThatOld)) || gone.is_ok_and(|g| g.is_empty()),
                    "{about}"
                );
            }
        }
    }
}

/// Stream orderings with large holes, and only rows without a stamp where the search looks first.
#[test]
fn rows_without_a_stamp_count_as_received_with_the_nearest_that_has_one() {
    let hour = DAY / 24;
    let mut live = vec![Some(NOW - hour); 40];
    live.extend(vec![None; 100]);
    let site = stream_of(&live, &[], |number| match number {
        0..60 => 10 + number,
        _ => 100_000_000 + number,
    });
    site.run(&format!(
        "UPDATE events SET received_ts = {} WHERE stream_ordering < 10",
        NOW - hour
    ));
    for room in ROOMS {
        let gone = purge(&site, room, PurgePoint::BeforeTs(Millis(NOW - 365 * DAY)));
        let is_nothing = matches!(&gone, Err(Error::NothingThatOld))
            || gone.as_ref().is_ok_and(|gone| gone.is_empty());
        assert!(is_nothing, "{room}: {gone:?}");
    }
}

#[test]
fn a_stamp_that_is_no_number_is_unknown_and_ends_no_command() {
    for what in ["'never'", "''", "x'00ff'", "0.5", "1e300", "NULL"] {
        let site = stream(&daily(400), &[(Some(FIRST_TS), FIRST_TS)]);
        let at = |days: i64| FIRST_TS + days * DAY;
        site.run(&format!(
            "UPDATE events SET received_ts = {what} WHERE event_id IN ('$live100', '$live300', '$live301', '$back0')
                OR stream_ordering <= 4"
        ));
        site.run(&format!(
            "UPDATE events SET origin_server_ts = {what} WHERE event_id IN ('$live102', '$back0')"
        ));
        let before = held(&site.tables());
        for room in ROOMS {
            purge(&site, room, PurgePoint::BeforeTs(Millis(at(200)))).expect("purges");
        }
        let after = held(&site.tables());
        let gone: BTreeSet<&String> = before.difference(&after).collect();
        // What is unknown goes with the nearest before it, and what nobody can date stays.
        // One that lies in the future keeps its own event.
        let is_future = what == "1e300";
        assert_eq!(gone.contains(&"$live100".to_owned()), !is_future, "{what}");
        assert!(gone.contains(&"$live102".to_owned()), "{what}");
        for stays in ["$live300", "$live301", "$live200", "$back0"] {
            // A number is what its sender claims, however small.
            let is_claimed = stays == "$back0" && what == "0.5";
            assert!(is_claimed || after.contains(stays), "{what}: {stays}");
        }
        let too_young = gone.iter().any(|id| {
            let number = id.strip_prefix("$live").and_then(|n| n.parse::<i64>().ok());
            number.is_some_and(|number| number >= 200)
        });
        assert!(!too_young, "{what}: {gone:?}");
        let keeper = Keeper::open(config(&site)).expect("opens");
        keeper.stop();
    }
}

#[test]
fn stamps_in_the_future_keep_their_own_events_and_no_others() {
    let mut live = daily(200);
    for stamp in live.iter_mut().skip(60).take(41) {
        *stamp = Some(NOW + 400 * DAY);
    }
    let site = stream(&live, &[]);
    let ts = FIRST_TS + 150 * DAY;
    let expected = expected(&site, ROOMS[0], ts);
    let gone = purge(&site, ROOMS[0], PurgePoint::BeforeTs(Millis(ts))).expect("done");
    assert_eq!(gone, expected);
    let numbers: BTreeSet<usize> = gone
        .iter()
        .filter_map(|id| id.strip_prefix("$live")?.parse().ok())
        .collect();
    assert!(numbers.contains(&10) && numbers.contains(&120));
    assert!(numbers.iter().all(|n| !(60..101).contains(n)));
}

/// What should go, told slowly: everything of the room that has expired and lies below the last such event by arrival.
fn expected(site: &Site, room: &str, ts: i64) -> BTreeSet<String> {
    let tables = site.tables();
    let expired = arrivals::expired(&tables, ts, NOW);
    let of_room = tables.rows("events").iter();
    let of_room: Vec<_> = of_room
        .filter(|e| e.word("room_id") == room && expired.contains(e.word("event_id")))
        .collect();
    let Some(anchor) = of_room.iter().max_by_key(|e| e.number("stream_ordering")) else {
        return BTreeSet::new();
    };
    let depth = anchor.number("topological_ordering");
    of_room
        .iter()
        .filter(|e| e.number("topological_ordering") < depth && e.text("state_key").is_none())
        .map(|e| e.word("event_id").to_owned())
        .collect()
}

/// A stream of messages some hours apart, in which the clock goes wrong for a while, more than once.
fn any_stamps(rng: &mut StdRng) -> (Vec<Option<i64>>, bool) {
    let count = rng.random_range(5..120);
    let step = rng.random_range(DAY / 24..10 * DAY);
    let first = NOW - 300 * DAY;
    let mut live: Vec<Option<i64>> = (0..count)
        .map(|n| Some((first + n * step).min(NOW)))
        .collect();
    let mut is_doubtful = false;
    for _ in 0..rng.random_range(0..4) {
        let from = rng.random_range(0..live.len());
        let length = rng.random_range(1..=live.len());
        let kind = rng.random_range(0..5);
        let by = rng.random_range(2 * DAY..400 * DAY);
        // A clock that was ahead, and not ahead of now, makes what follows doubtful: it stays longer than it need.
        is_doubtful |= kind == 4 || kind == 2;
        for stamp in live.iter_mut().skip(from).take(length) {
            *stamp = match (kind, *stamp) {
                (0, _) => None,
                (1, _) => Some(rng.random_range(0..3)),
                (2, at) => at.map(|at| at - by),
                (3, _) => Some(NOW + 2 * DAY + by),
                (_, at) => at.map(|at| (at + by).min(NOW)),
            };
        }
    }
    (live, is_doubtful)
}

#[test]
fn whatever_the_stamps_are_nothing_goes_that_has_not_expired() {
    let (mut went, mut exact) = (0, 0);
    for_each_sample(25, |seed, rng| {
        let (live, is_doubtful) = any_stamps(rng);
        let backfilled: Vec<Backfilled> = (0..rng.random_range(0..20))
            .map(|n| {
                let received = NOW - rng.random_range(1..30) * DAY + n;
                let sent = NOW - rng.random_range(1..400) * DAY;
                (rng.random_ratio(9, 10).then_some(received), sent)
            })
            .collect();
        let site = stream(&live, &backfilled);
        let room = ROOMS[rng.random_range(0..2)];
        let ts = NOW - rng.random_range(1..300) * DAY;
        let about = format!("seed {seed}, {room}, ts {ts}, {live:?}, {backfilled:?}");
        let expected = expected(&site, room, ts);
        let gone = match purge(&site, room, PurgePoint::BeforeTs(Millis(ts))) {
            Ok(gone) => gone,
            Err(Error::NothingThatOld | Error::WouldEmptyRoom | Error::JobFailed { .. }) => return,
            Err(e) => panic!("{about}: {e}"),
        };
        let wrongly: Vec<_> = gone.difference(&expected).collect();
        assert!(wrongly.is_empty(), "{about}: {wrongly:?} went");
        went += gone.len();
        if !is_doubtful && backfilled.is_empty() {
            assert_eq!(gone, expected, "{about}");
            exact += 1;
        }
    });
    println!("{went} events went; {exact} samples to the letter");
}

also_on_postgres! {
    a_history_that_was_backfilled_an_hour_ago_stays_whatever_its_depth,
    a_retention_run_leaves_a_young_history_alone_too,
    stamps_in_the_future_keep_their_own_events_and_no_others,
    whatever_the_stamps_are_nothing_goes_that_has_not_expired,
}
