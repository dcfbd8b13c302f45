//! A homeserver that is started or stopped between any two looks of a purge changes how the purge goes about it, and
//! nothing of what goes.

use support::draft::{Draft, Event};
use support::state_model::{Graph, STATE};
use support::tables::{Tables, assert_same};
use support::work::{Ask, Site};

use super::super::support;
use super::{Request, run};
use crate::batch::{BatchLimits, Rewrite};
use crate::job::ServerState::{self, Running, Stopped};
use crate::job::workbench::Workbench;
use crate::point::Point;

const ROOM: &str = "!room:example.org";

/// Looks of a purge, at the least; the last of them come when nothing is left to do.
const LOOKS: usize = 14;

/// One event after the other, so that a purge beside a homeserver finds no forward extremity that stays. Every other one is
/// state, so that there are state groups to let go of.
fn example() -> (Site, Ask) {
    let mut draft = Draft::new("example.org", 3);
    draft.open_room(ROOM, "room", "@ann:example.org", 2);
    let mut last = "$room-join".to_owned();
    for n in 0..24 {
        let id = format!("$room-{n}");
        let event = Event::message(&id, ROOM, "@ann:example.org", 3 + n, 4 + n).after(&[&last]);
        draft.add(match n % 2 {
            0 => event,
            _ => event.state("m.room.topic", ""),
        });
        last = id;
    }
    (Site::of(draft), Ask::all_of(ROOM, 22))
}

/// Purges beside what these looks find; answers what there is then.
fn purge(site: &Site, ask: &Ask, rewrite: Rewrite, looks: Vec<ServerState>) -> Tables {
    let bench = Workbench::new(site, &ask.room, "purge_history");
    let request = Request {
        point: Point {
            topological: ask.below,
            stream: 0,
        },
        delete_local_events: true,
        media: Default::default(),
        keep_received_after: None,
        expiry: None,
        held: Vec::new(),
    };
    let limits = BatchLimits {
        events: 6,
        millis: 60_000,
        pause: std::time::Duration::ZERO,
        events_offline: 6,
        rewrite,
        ..BatchLimits::default()
    };
    let about = format!("{looks:?}");
    let mut job = bench.job(looks[0], looks, true, limits);
    run(&mut job, &request).unwrap_or_else(|e| panic!("{about}: {e}"));
    drop(job);
    bench.end();
    site.assert_sound(&about);
    site.tables()
}

#[test]
fn a_homeserver_that_comes_or_goes_at_any_look_of_a_purge_changes_nothing_of_what_goes() {
    let (site, ask) = example();
    let end = purge(&site.copy(), &ask, Rewrite::Never, vec![Stopped]);
    assert!(
        end.rows("events")
            .iter()
            .all(|row| row.number("depth") >= ask.below || row.text("state_key").is_some())
    );
    for (rewrite, first, then) in [
        (Rewrite::Never, Stopped, Running),
        (Rewrite::Never, Running, Stopped),
        (Rewrite::WherePossible, Stopped, Running),
        (Rewrite::WherePossible, Running, Stopped),
    ] {
        for at in 1..LOOKS {
            let about = format!("{rewrite:?}, {then:?} from look {at}");
            let looks = vec![first; at].into_iter().chain([then]).collect();
            let found = purge(&site.copy(), &ask, rewrite, looks);
            let but = |tables: &Tables| tables.clone().without(STATE);
            assert_same(&but(&end), &but(&found), &about);
            assert_eq!(Graph::of_events(&end), Graph::of_events(&found), "{about}");
        }
    }
}
