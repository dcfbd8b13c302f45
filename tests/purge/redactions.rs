//! Redactions in a purge (P-21, P-52): those whose target survives in the room stay, along chains and around circles, and
//! it takes time in proportion to their number.

use std::time::{Duration, Instant};

use crate::support::draft::{Draft, Event};
use crate::support::model;
use crate::support::samples::for_each_sample;
use crate::support::state_model::STATE;
use crate::support::tables::{Tables, assert_same};
use crate::support::work::{Ask, Site};
use rand::Rng;
use rand::rngs::StdRng;
use roomkeeper::Config;

const ROOM: &str = "!room:example.org";
const OTHER: &str = "!other:example.org";
const ANN: &str = "@ann:example.org";
const RITA: &str = "@rita:remote.example";

/// A room of which each event follows the one before, and a second one; `redacts` says what each of them redacts.
fn rooms(events: i64, redacts: impl Fn(i64) -> Option<String>) -> Draft {
    let mut draft = Draft::new("example.org", 1);
    draft.groups.full_one_in = 0;
    draft.open_room(ROOM, "a", ANN, 2);
    draft.open_room(OTHER, "o", ANN, 4);
    let mut before = "$a-join".to_owned();
    for n in 0..events {
        let id = format!("$m{n}");
        let mut event = Event::message(&id, ROOM, RITA, 3 + n, 10 + n).after(&[&before]);
        if let Some(target) = redacts(n) {
            event = event.redacting(&target);
        }
        draft.add(event);
        before = id;
    }
    draft.add(Event::message("$last", ROOM, RITA, 3 + events, 10 + events).after(&[&before]));
    let other = 20 + events;
    draft.add(Event::message("$elsewhere", OTHER, RITA, 3, other).after(&["$o-join"]));
    draft
}

fn redactions(tables: &Tables) -> usize {
    tables.rows("redactions").len()
}

/// P-52: a redaction of something in another room has no effect there, so nothing is kept for its sake.
#[test]
fn a_redaction_of_an_event_in_another_room_goes_like_any_message() {
    let site = Site::of(rooms(6, |n| match n {
        1 => Some("$elsewhere".into()),
        2 => Some("$m1".into()),
        3 => Some("$last".into()),
        _ => None,
    }));
    let planned = site.plan(&Ask::all_of(ROOM, 9)).expect("planned");
    site.purge(&Ask::all_of(ROOM, 9)).expect("purged");
    let after = site.tables();
    let left: Vec<&str> = after
        .rows("redactions")
        .iter()
        .map(|r| r.word("event_id"))
        .collect();
    assert_eq!(left, ["$m3"], "the one whose target survives in the room");
    assert_eq!(planned.events_deleted, 5);
    site.assert_sound("redactions across rooms");
}

/// P-52: each redacts the one before, and the first of them something that survives. None may go; and looking that up link
/// by link held the write lock for minutes.
#[test]
fn a_long_chain_of_redactions_costs_time_in_proportion_to_its_length() {
    type Way = fn(&Site) -> Config;
    let ways: [(&str, Way); 2] = [
        ("at once", |site| site.config()),
        ("beside", |site| site.beside(500, 500)),
    ];
    let links = 4_000;
    let drawn = Site::of(rooms(links, |n| {
        Some(match n {
            0 => "$last".into(),
            n => format!("$m{}", n - 1),
        })
    }));
    for (way, config) in ways {
        let site = drawn.copy();
        let started = Instant::now();
        let done = site
            .purge_with(config(&site), &Ask::all_of(ROOM, 3 + links))
            .expect("purged");
        let took = started.elapsed();
        assert!(took < Duration::from_secs(30), "{way}: {took:?}");
        assert_eq!(done.events_deleted, 0, "{way}");
        assert_eq!(redactions(&site.tables()), 4_000, "{way}");
        site.assert_sound(way);
    }
    // Where the survivor is not there all of them go.
    let links = 500;
    let site = Site::of(rooms(links, |n| {
        Some(match n {
            0 => "$elsewhere".into(),
            n => format!("$m{}", n - 1),
        })
    }));
    let done = site
        .purge_with(site.in_batches_of(100), &Ask::all_of(ROOM, 3 + links))
        .expect("purged");
    assert_eq!(done.events_deleted, links);
    assert_eq!(redactions(&site.tables()), 0);
    site.assert_sound("nothing survived");
}

/// Chains, circles, stars, redactions of themselves, of survivors, of what is elsewhere or nowhere: what the slow fixpoint
/// of the model keeps is kept, however the purge is cut up.
#[test]
fn whatever_redacts_whatever_the_slow_fixpoint_is_met() {
    for_each_sample(20, |seed, rng| {
        let events = rng.random_range(10..60);
        let wanted: Vec<Option<String>> = (0..events).map(|n| target(rng, n, events)).collect();
        let drawn = Site::of(rooms(events, |n| {
            wanted[usize::try_from(n).expect("few")].clone()
        }));
        let ask = Ask::all_of(ROOM, rng.random_range(3..=3 + events));
        let about = format!("seed {seed}, {ask:?}");
        let expected = model::purge(&drawn.tables(), &drawn.wanted(&ask))
            .unwrap_or_else(|e| panic!("{about}: {e:?}"));
        let ways = [
            drawn.config(),
            drawn.in_batches_of(rng.random_range(1..12)),
            drawn.beside(rng.random_range(1..12), 60_000),
            drawn.rewriting(),
        ];
        for (n, way) in ways.iter().enumerate() {
            let site = drawn.copy();
            let mut config = way.clone();
            config.database = site.config().database;
            site.purge_with(config, &ask)
                .unwrap_or_else(|e| panic!("{about}, way {n}: {e}"));
            assert_same(
                &expected.tables.clone().without(STATE),
                &site.tables().without(STATE),
                &format!("{about}, way {n}"),
            );
            site.assert_sound(&about);
        }
    });
}

fn target(rng: &mut StdRng, n: i64, events: i64) -> Option<String> {
    Some(match rng.random_range(0..12) {
        0..=2 => return None,
        3..=5 => format!("$m{}", (n - 1).max(0)),
        6 => format!("$m{n}"),
        7..=8 => format!("$m{}", rng.random_range(0..events)),
        9 => "$last".into(),
        10 => "$elsewhere".into(),
        _ => "$nowhere".into(),
    })
}

also_on_postgres! {
    a_redaction_of_an_event_in_another_room_goes_like_any_message,
    a_long_chain_of_redactions_costs_time_in_proportion_to_its_length,
    whatever_redacts_whatever_the_slow_fixpoint_is_met,
}
