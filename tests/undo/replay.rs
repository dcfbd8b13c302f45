//! After a backup was put back, what jobs removed since goes again by their receipts: the database is then equal, row by row, to
//! the one that never was put back.

use crate::support::archives::{archiving, restore};
use crate::support::rooms::Recipe;
use crate::support::samples::{any_cut, for_each_sample};
use crate::support::tables::assert_same;
use crate::support::work::{Ask, Site};
use rand::Rng;
use roomkeeper::hold::Hold;
use roomkeeper::keeper::{self, Since, plan_replay};
use roomkeeper::{Config, Keeper, RoomId};

also_on_postgres!(
    what_went_since_a_backup_goes_again_and_all_is_as_if_there_had_been_none,
    what_was_decided_since_counts,
);

fn purge(config: &Config, ask: &Ask) -> Option<roomkeeper::JobId> {
    let keeper = Keeper::open(config.clone()).expect("opens");
    let room = RoomId::new(&*ask.room);
    let id = keeper
        .purge_history(&room, ask.point(), ask.options())
        .expect("begun");
    let done = keeper.wait(&id);
    keeper.stop();
    done.ok().map(|_| id)
}

/// Carries it out as the command line does, but for so many steps; answers what was left out.
fn replay(config: &Config, since: Since, most: usize) -> Vec<String> {
    let keeper = Keeper::open(config.clone()).expect("opens");
    let (begun, steps) = keeper.replay(since).expect("read");
    for job in begun {
        let _ = keeper.wait(&job);
    }
    let mut left_out = Vec::new();
    for step in steps.iter().take(most) {
        if let Some(why) = &step.left_out {
            left_out.push(why.clone());
            continue;
        }
        match keeper.replay_step(step) {
            Ok(Some(job)) => drop(keeper.wait(&job).expect("done again")),
            Ok(None) => left_out.push("nothing".into()),
            Err(e) => left_out.push(e.to_string()),
        }
    }
    keeper.stop();
    left_out
}

#[test]
fn what_went_since_a_backup_goes_again_and_all_is_as_if_there_had_been_none() {
    let mut went_again = 0;
    for_each_sample(8, |seed, rng| {
        let recipe = Recipe {
            rooms: 2..5,
            ..Recipe::default()
        };
        let site = Site::random(seed, &recipe);
        let config = site.in_batches_of(9);
        // What was before the backup is in it.
        purge(&config, &any_cut(&site.tables(), rng));
        let size = {
            let reader = keeper::recorded_receipts(&config).expect("read");
            reader.expect("nobody has it").size().expect("read")
        };
        let backup = site.copy();
        let mut rooms: Vec<String> = Vec::new();
        for _ in 0..rng.random_range(1..5) {
            let ask = any_cut(&site.tables(), rng);
            purge(&config, &ask);
            rooms.push(ask.room);
        }
        if rng.random_bool(0.5) {
            let keeper = Keeper::open(config.clone()).expect("opens");
            let done = keeper.purge_room(&RoomId::new(&*rooms[0]), true);
            assert!(done.is_ok(), "seed {seed}: {done:?}");
            keeper.stop();
        }
        let never_restored = site.tables();
        site.put_back(&backup);
        let before = site.tables();
        let plan = plan_replay(&config, Since::Receipts(size)).expect("planned");
        assert_same(&before, &site.tables(), &format!("seed {seed}: a plan"));
        assert!(!plan.is_empty(), "seed {seed}");
        // Interrupted after any step, and begun anew.
        let most = rng.random_range(0..=plan.len());
        replay(&config, Since::Receipts(size), most);
        let left = replay(&config, Since::Receipts(size), usize::MAX);
        let about = format!("seed {seed}, {plan:#?}, left out: {left:?}");
        assert_same(&never_restored, &site.tables(), &about);
        site.assert_sound(&about);
        went_again += u64::from(before != never_restored);
        // And once more, by the clock: nothing is left to do.
        replay(&config, Since::Time(roomkeeper::Millis(0)), usize::MAX);
        assert_same(&never_restored, &site.tables(), &about);
    });
    assert!(went_again > 0);
}

#[test]
fn what_was_decided_since_counts() {
    let site = Site::random(
        5,
        &Recipe {
            rooms: 3..4,
            events: 30..50,
            may_be_long: false,
        },
    );
    let config = archiving(&site, site.config());
    let backup = site.copy();
    let before = site.tables();
    let mut rooms: Vec<&str> = before
        .rows("rooms")
        .iter()
        .map(|row| row.word("room_id"))
        .collect();
    rooms.sort_unstable();
    let ask = |room: &str| {
        let depths = before
            .rows("events")
            .iter()
            .filter(|e| e.text("room_id") == Some(room));
        let deepest = depths
            .filter(|e| !e.is("outlier"))
            .map(|e| e.number("topological_ordering"))
            .max();
        Ask::all_of(room, deepest.expect("events"))
    };
    let jobs: Vec<_> = rooms
        .iter()
        .map(|room| purge(&config, &ask(room)).expect("purged"))
        .collect();
    let after = site.tables();
    // The first was taken back, the second is held by now, the third goes again.
    restore(&site, &jobs[0], false).expect("restored");
    keeper::add_hold(
        &config,
        Hold {
            name: "of-a-court".into(),
            rooms: vec![RoomId::new(rooms[1])],
            reason: "a court".into(),
            ..Hold::default()
        },
    )
    .expect("held");
    site.put_back(&backup);
    let plan = plan_replay(&config, Since::Receipts(0)).expect("planned");
    let left: Vec<&str> = plan
        .iter()
        .map(|step| step.left_out.as_deref().unwrap_or("-"))
        .collect();
    assert!(
        left[0].contains("taken back") && left[1].contains("of-a-court") && left[2] == "-",
        "{left:?}"
    );
    let left = replay(&config, Since::Receipts(0), usize::MAX);
    assert_eq!(left.len(), 2, "{left:?}");
    let now = site.tables();
    let of = |tables: &crate::support::tables::Tables, room: &str| {
        let rows = tables
            .rows("events")
            .iter()
            .filter(|e| e.text("room_id") == Some(room));
        rows.count()
    };
    for (at, room) in rooms.iter().enumerate() {
        let expected = if at < 2 { &before } else { &after };
        assert_eq!(of(&now, room), of(expected, room), "{room}");
    }
    site.assert_sound("replayed");
}
