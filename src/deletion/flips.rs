//! A homeserver that is started or stopped between any two looks of a deletion changes how its rows go, and nothing of
//! which do.

use support::rooms::Recipe;
use support::tables::{Tables, assert_same};
use support::work::{Site, seed};

use super::super::support;
use super::{DeletionScope, Request, run};
use crate::batch::BatchLimits;
use crate::job::ServerState::{self, Running, Stopped};
use crate::job::workbench::Workbench;

/// Looks of a deletion, at the least; the last of them come when nothing is left to do.
const LOOKS: usize = 30;

/// Deletes a room beside what these looks find; answers what there is then.
fn delete(site: &Site, room: &str, events_offline: i64, looks: Vec<ServerState>) -> Tables {
    let bench = Workbench::new(site, room, "delete");
    let request = Request {
        purge: true,
        force_purge: true,
        ..Request::default()
    };
    let limits = BatchLimits {
        events: 6,
        millis: 60_000,
        pause: std::time::Duration::ZERO,
        events_offline,
        ..BatchLimits::default()
    };
    let about = format!("{looks:?}");
    let mut job = bench.job(looks[0], looks, true, limits);
    run(&mut job, &request, DeletionScope::Rows).unwrap_or_else(|e| panic!("{about}: {e}"));
    drop(job);
    bench.end();
    site.assert_sound(&about);
    site.tables()
}

#[test]
fn a_homeserver_that_comes_or_goes_at_any_look_of_a_deletion_changes_nothing_of_what_goes() {
    let seed = seed();
    println!("ROOMKEEPER_SEED={seed}");
    let recipe = Recipe {
        rooms: 2..3,
        events: 18..24,
        may_be_long: false,
    };
    let site = Site::random(seed, &recipe);
    let room = support::samples::deepest_cut(&site.tables()).room;
    let end = delete(&site.copy(), &room, 6, vec![Stopped]);
    assert!(
        end.rows("events")
            .iter()
            .all(|row| row.word("room_id") != room)
    );
    for (events_offline, first, then) in [
        (6, Stopped, Running),
        (1_000, Stopped, Running),
        (6, Running, Stopped),
    ] {
        for at in 1..LOOKS {
            let about = format!("ROOMKEEPER_SEED={seed}, {then:?} from look {at}");
            let looks = vec![first; at].into_iter().chain([then]).collect();
            let found = delete(&site.copy(), &room, events_offline, looks);
            assert_same(&end, &found, &about);
        }
    }
}
