//! Many random samples, each named by its seed when a test fails on it.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::engine;
use super::tables::{Row, Tables};
use super::work::{Ask, cases, seed};

/// Runs `test` on so many samples; a failure names the seed that repeats it alone.
pub fn for_each_sample(few: u64, mut test: impl FnMut(u64, &mut StdRng)) {
    let _ = count_in_samples(few, |seed, rng| {
        test(seed, rng);
        1
    });
}

/// The same, until something was counted as well: a few samples can all be of the kind in which nothing happens.
pub fn count_in_samples(few: u64, mut test: impl FnMut(u64, &mut StdRng) -> u64) -> u64 {
    const AT_MOST_TIMES_AS_MANY: u64 = 40;
    let first = seed();
    println!("ROOMKEEPER_SEED={first}");
    let (few, mut counted) = (cases(engine::share_of(few)), 0);
    for n in 0..few * AT_MOST_TIMES_AS_MANY {
        if n >= few && counted > 0 {
            break;
        }
        let seed = first.wrapping_add(n);
        let mut rng = StdRng::seed_from_u64(seed);
        let run = std::panic::AssertUnwindSafe(|| test(seed, &mut rng));
        match std::panic::catch_unwind(run) {
            Ok(more) => counted += more,
            Err(panic) => {
                eprintln!("to repeat this sample alone: ROOMKEEPER_SEED={seed} ROOMKEEPER_CASES=1");
                std::panic::resume_unwind(panic);
            }
        }
    }
    counted
}

/// A cut somewhere in a room of the sample, mostly below its newest event.
pub fn any_cut(tables: &Tables, rng: &mut StdRng) -> Ask {
    let rooms: Vec<&str> = tables
        .rows("rooms")
        .iter()
        .map(|r| r.word("room_id"))
        .collect();
    let room = rooms[rng.random_range(0..rooms.len())].to_owned();
    let of_room = |table: &str| -> Vec<Row> {
        tables
            .rows(table)
            .iter()
            .filter(|r| r.word("room_id") == room)
            .cloned()
            .collect()
    };
    let extremities = of_room("event_forward_extremities");
    let deepest = of_room("events")
        .iter()
        .filter(|e| {
            extremities
                .iter()
                .any(|f| f.get("event_id") == e.get("event_id"))
        })
        .map(|e| e.number("depth"))
        .max()
        .unwrap_or(0);
    let below = if rng.random_ratio(1, 5) {
        deepest
    } else {
        rng.random_range(0..=deepest + 1)
    };
    // Some events are too young to go, whatever their depth.
    let arrivals: Vec<i64> = of_room("events")
        .iter()
        .filter_map(|e| e.int(["received_ts", "origin_server_ts"][rng.random_range(0..2)]))
        .collect();
    let keeps = rng.random_ratio(1, 3) && !arrivals.is_empty();
    Ask {
        room,
        below,
        delete_local_events: rng.random(),
        keep_received_after: keeps.then(|| arrivals[rng.random_range(0..arrivals.len())]),
    }
}

/// A cut at the newest event of the sample's first room: nearly everything of it goes.
pub fn deepest_cut(tables: &Tables) -> Ask {
    let room = tables.rows("rooms")[0].word("room_id");
    let tips = tables.rows("event_forward_extremities");
    let is_tip = |id: &str| tips.iter().any(|t| t.word("event_id") == id);
    let events = tables
        .rows("events")
        .iter()
        .filter(|e| e.word("room_id") == room);
    let depths = events
        .filter(|e| is_tip(e.word("event_id")))
        .map(|e| e.number("depth"));
    Ask::all_of(room, depths.max().expect("a room has a newest event"))
}
