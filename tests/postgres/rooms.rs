//! The same sample on both engines, and the same asked of both: the answers and what is left are the same.

use crate::support::engine::{self, Engine};
use crate::support::rooms::Recipe;
use crate::support::tables::{Tables, assert_same};
use crate::support::work::{Site, seed};
use roomkeeper::deletion::Request;
use roomkeeper::policy::LifetimeRange;
use roomkeeper::{Config, Keeper, Millis, RoomId};

/// The sample of a seed on each engine; `None` where there is no server.
fn both(seed: u64) -> Option<[Site; 2]> {
    crate::support::cluster::cluster()?;
    let mut made = None;
    engine::run(Engine::Postgres, || {
        made = Some(Site::random(seed, &Recipe::default()));
    });
    // And back, for what follows on this thread.
    let mut file = None;
    engine::run(Engine::Sqlite, || {
        file = Some(Site::random(seed, &Recipe::default()));
    });
    Some([file?, made?])
}

/// What both engines have: not their own bookkeeping.
fn comparable(tables: Tables) -> Tables {
    tables.without(&[
        "sqlite_sequence",
        "sqlite_stat1",
        "sqlite_stat4",
        "schema_version",
        "schema_compat_version",
        "event_push_summary_stream_ordering",
    ])
}

#[track_caller]
fn assert_equal(sites: &[Site; 2], about: &str) {
    let [file, server] = sites;
    assert_same(
        &comparable(file.tables()),
        &comparable(server.tables()),
        about,
    );
    server.assert_sound(about);
}

#[test]
fn a_deleted_room_leaves_the_same_on_both_engines() {
    type Way = fn(&Site) -> Config;
    let ways: [(&str, Way); 3] = [
        ("at once", |site| site.config()),
        ("in batches", |site| site.in_batches_of(3)),
        ("beside", |site| site.beside(4, 60_000)),
    ];
    for (n, (name, way)) in ways.into_iter().enumerate() {
        let seed = seed().wrapping_add(n as u64);
        let about = format!("ROOMKEEPER_SEED={seed}, {name}");
        let Some(sites) = both(seed) else { return };
        assert_equal(&sites, &format!("{about}: as drawn"));
        let room = sites[0].tables().rows("rooms")[0]
            .word("room_id")
            .to_owned();
        let request = Request {
            force_purge: true,
            ..Request::default()
        };
        let mut plans = Vec::new();
        for site in &sites {
            let keeper = Keeper::open(way(site)).expect("opens");
            let room = RoomId::new(&*room);
            let plan = keeper.plan_deletion(&room, &request).expect("planned");
            let mut plan = serde_json::to_value(plan).expect("plain");
            forget_what_is_the_engines(&mut plan);
            plans.push(plan);
            keeper
                .delete_room(&room, request.clone())
                .unwrap_or_else(|e| panic!("{about}: {e}"));
            keeper.stop();
        }
        assert_eq!(plans[0], plans[1], "{about}");
        assert_equal(&sites, &about);
    }
}

/// How many bytes an event takes is each engine's own affair, and a plan binds the layout of its own database.
fn forget_what_is_the_engines(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(members) => {
            members.remove("estimated_bytes");
            members.remove("plan");
            members.values_mut().for_each(forget_what_is_the_engines);
        }
        serde_json::Value::Array(list) => list.iter_mut().for_each(forget_what_is_the_engines),
        _ => {}
    }
}

#[test]
fn retention_does_the_same_on_both_engines() {
    for n in 0..2 {
        let seed = seed().wrapping_add(n);
        let about = format!("ROOMKEEPER_SEED={seed}");
        let Some(sites) = both(seed) else { return };
        let mut answers = Vec::new();
        for site in &sites {
            let mut config = site.config();
            config.retention.enabled = true;
            config.retention.default_policy.max_lifetime = Some(Millis(3_600_000));
            let keeper = Keeper::open(config).expect("opens");
            let plan = keeper
                .plan_retention(LifetimeRange::default(), true)
                .unwrap_or_else(|e| panic!("{about}: {e}"));
            let mut plan = serde_json::to_value(&plan).expect("plain");
            forget_what_is_the_engines(&mut plan);
            answers.push(plan);
            let sweep = keeper
                .purge_history_for_rooms_in_range(None, None)
                .expect("begun");
            keeper
                .wait(&sweep)
                .unwrap_or_else(|e| panic!("{about}: {e}"));
            keeper.stop();
        }
        assert_eq!(answers[0], answers[1], "{about}");
        assert_equal(&sites, &about);
    }
}
