//! A plan that binds: what is started with it does that and nothing else, or nothing at all.
//!
//! `ROOMKEEPER_SEED=<n>` repeats a failed run, `ROOMKEEPER_CASES=<n>` tries more samples.

use crate::support::rooms::Recipe;
use crate::support::samples::{any_cut, count_in_samples};
use crate::support::tables::{Row, Tables, assert_same};
use crate::support::work::{Ask, Site};
use roomkeeper::deletion::Request;
use roomkeeper::error::PLAN_DRIFTED;
use roomkeeper::hold::Hold;
use roomkeeper::keeper::{SetAction, SetRequest, Viewer};
use roomkeeper::plan_hash::PlanHash;
use roomkeeper::policy::LifetimeRange;
use roomkeeper::rooms::Selectors;
use roomkeeper::time::Clock;
use roomkeeper::{Config, Error, JobId, Keeper, Millis, PurgePoint, RoomId, UserId, days};

/// A room of some size, and a cut in its middle.
fn middle() -> (Site, Ask) {
    let recipe = Recipe {
        rooms: 2..3,
        events: 60..90,
        ..Recipe::default()
    };
    (1..80)
        .map(|seed| Site::random(seed, &recipe))
        .map(|site| {
            let tables = site.tables();
            let room = tables.rows("rooms")[0].word("room_id").to_owned();
            let mut depths: Vec<i64> = events_in(&tables, &room)
                .map(|e| e.number("topological_ordering"))
                .collect();
            depths.sort_unstable();
            let below = depths.get(depths.len() / 2).copied().unwrap_or(0);
            (site, Ask::all_of(&room, below))
        })
        .find(|(site, ask)| site.plan(ask).is_ok_and(|plan| plan.events_deleted > 10))
        .expect("one of eighty is large enough")
}

fn events_in<'a>(tables: &'a Tables, room: &'a str) -> impl Iterator<Item = &'a Row> {
    let events = tables.rows("events").iter();
    events.filter(move |e| e.word("room_id") == room)
}

/// Messages that are no state, below the cut or not.
fn messages<'a>(tables: &'a Tables, ask: &'a Ask, is_below: bool) -> Vec<&'a Row> {
    let state: Vec<&str> = (tables.rows("state_events").iter())
        .map(|s| s.word("event_id"))
        .collect();
    events_in(tables, &ask.room)
        .filter(|e| !e.is("outlier") && !state.contains(&e.word("event_id")))
        .filter(|e| (e.number("topological_ordering") < ask.below) == is_below)
        .collect()
}

fn patient(site: &Site) -> Config {
    let mut config = site.config();
    config.retention.default_policy.max_lifetime = Some(days(1));
    config.check_clock = false;
    config
}

fn every_room(action: SetAction) -> SetRequest {
    SetRequest {
        selectors: Selectors::default(),
        all_rooms: true,
        among: None,
        action,
    }
}

fn drifted<T>(done: Result<T, Error>, named: &str) -> String {
    let Err(e) = done else {
        panic!("it should have drifted: {named}");
    };
    let class = e.class();
    assert!(matches!(e, Error::PlanDrifted(_)), "{named}: {e}");
    assert_eq!(
        (class.status, class.errcode, class.exit),
        (409, PLAN_DRIFTED, 3)
    );
    let said = e.to_string();
    assert!(said.contains(named), "{named}: {said}");
    said
}

fn purge(keeper: &Keeper, ask: &Ask) -> Result<JobId, Error> {
    keeper.purge_history(&RoomId::new(&*ask.room), ask.point(), ask.options())
}

#[test]
fn a_plan_comes_to_some_bytes_and_no_more_than_there_are() {
    let (site, ask) = middle();
    let plan = site.plan(&ask).expect("planned");
    let viewer = Viewer::open(site.config()).expect("opens");
    let one = viewer
        .estimate_purge(&plan.rows_removed)
        .expect("estimates");
    assert!(one.bytes > 0 && one.bytes <= one.database_bytes, "{one:?}");
    assert_eq!(
        (one.rows_per_second, one.seconds),
        (None, None),
        "nothing was done here yet"
    );
    let mut twice = plan.rows_removed.clone();
    twice.values_mut().for_each(|rows| *rows *= 2);
    let two = viewer.estimate_deletion(&twice).expect("estimates");
    assert!(
        two.bytes >= one.bytes && two.bytes <= two.database_bytes,
        "{one:?} {two:?}"
    );
    let none = viewer
        .estimate_purge(&Default::default())
        .expect("estimates");
    assert_eq!(none.bytes, 0);
}

#[test]
fn what_is_as_planned_is_done_as_without_a_plan() {
    let purged = count_in_samples(6, |seed, rng| {
        let site = Site::random(seed, &Recipe::default());
        let ask = any_cut(&site.tables(), rng);
        let about = format!("seed {seed}, {ask:?}");
        let plain = site.copy();
        let expected = plain.purge(&ask);
        let keeper = Keeper::open(site.config()).expect("opens");
        let room = RoomId::new(&*ask.room);
        let plan = keeper.plan_purge(&room, ask.point(), ask.options());
        let Ok(done) = &expected else {
            plan.expect_err("refused like the purge");
            keeper.stop();
            return 0;
        };
        let plan = plan.expect("planned");
        let again = keeper.plan_purge(&room, ask.point(), ask.options());
        assert_eq!(again.expect("planned").plan, plan.plan, "{about}");
        let bound = keeper.as_planned(plan.plan.expect("a hash"));
        let id = purge(&bound, &ask).unwrap_or_else(|e| panic!("{about}: {e}"));
        let job = bound.wait(&id).unwrap_or_else(|e| panic!("{about}: {e}"));
        assert_eq!(job.progress["events_deleted"], done.events_deleted);
        // What is done cannot be done again as planned.
        if plan.events_deleted > 0 {
            drifted(purge(&bound, &ask), "the events that go");
        }
        bound.stop();
        keeper.stop();
        assert_same(&plain.tables(), &site.tables(), &about);
        u64::from(done.events_deleted > 0)
    });
    assert!(purged > 0);
}

#[test]
fn whatever_drifts_is_named_and_nothing_is_touched() {
    let (site, ask) = middle();
    let tables = site.tables();
    let (below, above) = (
        messages(&tables, &ask, true),
        messages(&tables, &ask, false),
    );
    let id_of = |row: &Row| row.word("event_id").to_owned();
    let (goes, stays) = (id_of(below[0]), id_of(above[0]));
    let sender = below.iter().find_map(|e| e.text("sender")).expect("one");
    let to = |id: &str, depth: i64| {
        format!("UPDATE events SET topological_ordering = {depth} WHERE event_id = '{id}';")
    };
    let one_less = to(&goes, ask.below + 1);
    let others = format!("{one_less}{}", to(&stays, ask.below - 1));
    let hold = Hold {
        name: "case-7".into(),
        users: vec![UserId::from(sender)],
        written: true,
        reason: "a court said so".into(),
        ..Hold::default()
    };
    let laid = |site: &Site| {
        roomkeeper::keeper::add_hold(&site.config(), hold.clone()).expect("laid");
    };
    let nothing = |_: &Site| ();
    let sql = |sql: String| move |site: &Site| site.run(&sql);
    let asked = |change: fn(&mut Ask)| {
        let mut ask = ask.clone();
        change(&mut ask);
        ask
    };
    type Change<'a> = Box<dyn Fn(&Site) + 'a>;
    let cases: Vec<(&str, Change<'_>, Ask)> = vec![
        ("then, ", Box::new(sql(one_less)), ask.clone()),
        ("but others", Box::new(sql(others)), ask.clone()),
        ("the holds", Box::new(laid), ask.clone()),
        (
            "the layout",
            Box::new(sql("UPDATE schema_version SET version = version - 1".into())),
            ask.clone(),
        ),
        ("the point", Box::new(nothing), asked(|ask| ask.below -= 1)),
        (
            "what is asked for",
            Box::new(nothing),
            asked(|ask| ask.delete_local_events = false),
        ),
    ];
    for (named, change, asked) in cases {
        let site = site.copy();
        let hash = site.plan(&ask).expect("planned").plan.expect("a hash");
        change(&site);
        let before = site.tables();
        let keeper = Keeper::open(site.config()).expect("opens");
        let bound = keeper.as_planned(hash);
        let said = drifted(purge(&bound, &asked), named);
        assert!(said.contains("Nothing was changed"), "{said}");
        assert!(keeper.jobs().expect("read").is_empty(), "{named}");
        bound.stop();
        keeper.stop();
        assert_same(&before, &site.tables(), named);
    }
}

/// Of a deletion, a set and a retention run: as planned it is done, and after an event came or went it is not.
#[test]
fn deletions_sets_and_retention_runs_are_bound_too() {
    let (site, ask) = middle();
    site.clock.advance(days(400));
    let room = RoomId::new(&*ask.room);
    let tables = site.tables();
    let gone = messages(&tables, &ask, true)[0].word("event_id").to_owned();
    // It lies in no room that anybody plans for.
    let drift = format!("UPDATE events SET room_id = '!elsewhere' WHERE event_id = '{gone}'");
    let purges = || {
        every_room(SetAction::PurgeHistory {
            point: PurgePoint::OlderThan(days(300)),
            delete_local_events: true,
            media: Default::default(),
        })
    };
    type Plan = fn(&Keeper, &RoomId, &SetRequest) -> Option<PlanHash>;
    type Start = fn(&Keeper, &RoomId, &SetRequest) -> Result<Option<JobId>, Error>;
    let force = || Request {
        force_purge: true,
        ..Request::default()
    };
    let deletes = || every_room(SetAction::DeleteRoom(force()));
    let plan_set: Plan = |k, _, set| Some(k.plan_set(set, 0).expect("planned").plan);
    let start_set: Start = |k, _, set| k.start_set(set).map(|started| started.job_id);
    let cases: [(&str, SetRequest, Plan, Start); 4] = [
        (
            "a deletion",
            deletes(),
            |k, room, set| {
                let SetAction::DeleteRoom(request) = &set.action else {
                    panic!("a deletion")
                };
                k.plan_deletion(room, request).expect("planned").plan
            },
            |k, room, set| {
                let SetAction::DeleteRoom(request) = &set.action else {
                    panic!("a deletion")
                };
                k.shutdown_and_purge_room(room, request.clone()).map(Some)
            },
        ),
        ("a set of deletions", deletes(), plan_set, start_set),
        ("a set of purges", purges(), plan_set, start_set),
        (
            "retention",
            purges(),
            |k, _, _| {
                let plan = k.plan_retention(LifetimeRange::default(), true);
                plan.expect("planned").plan
            },
            |k, _, _| k.purge_history_for_rooms_in_range(None, None).map(Some),
        ),
    ];
    for (about, set, plan, start) in cases {
        let (plain, undisturbed, disturbed) = (site.copy(), site.copy(), site.copy());
        for site in [&plain, &undisturbed, &disturbed] {
            site.clock.advance(days(400));
        }
        let keeper = Keeper::open(patient(&plain)).expect("opens");
        let id = start(&keeper, &room, &set).expect("begun").expect("a job");
        let _ = keeper.wait(&id);
        keeper.stop();

        let keeper = Keeper::open(patient(&undisturbed)).expect("opens");
        let hash = plan(&keeper, &room, &set).expect("a hash");
        assert_eq!(plan(&keeper, &room, &set), Some(hash), "{about}");
        let bound = keeper.as_planned(hash);
        let id = start(&bound, &room, &set).unwrap_or_else(|e| panic!("{about}: {e}"));
        let id = id.expect("a job");
        let _ = bound.wait(&id);
        let job = bound.job(&id).expect("read").expect("there");
        assert_ne!(job.error_code.as_deref(), Some("plan_drifted"), "{about}");
        bound.stop();
        keeper.stop();
        let (plain, there) = (plain.tables(), undisturbed.tables());
        assert_eq!(plain.rows("events"), there.rows("events"), "{about}");
        assert!(there.rows("events").len() < tables.rows("events").len());

        let keeper = Keeper::open(patient(&disturbed)).expect("opens");
        let hash = plan(&keeper, &room, &set).expect("a hash");
        disturbed.run(&drift);
        let before = disturbed.tables();
        let bound = keeper.as_planned(hash);
        drifted(start(&bound, &room, &set), "the events that go");
        assert!(keeper.jobs().expect("read").is_empty(), "{about}");
        bound.stop();
        keeper.stop();
        assert_same(&before, &disturbed.tables(), about);
    }
}

/// What goes by age goes as of the plan, however late somebody carries it out; and not before its time.
#[test]
fn an_age_counts_from_the_plan() {
    let recipe = Recipe {
        rooms: 1..2,
        events: 60..90,
        ..Recipe::default()
    };
    let (age, later) = (days(90), days(400));
    let point = PurgePoint::OlderThan(age);
    for seed in 1..80 {
        let site = Site::random(seed, &recipe);
        let tables = site.tables();
        let ask = Ask::all_of(tables.rows("rooms")[0].word("room_id"), 0);
        let (room, options) = (RoomId::new(&*ask.room), ask.options());
        let mut received: Vec<i64> = events_in(&tables, &ask.room)
            .filter_map(|e| e.int("received_ts"))
            .collect();
        received.sort_unstable();
        let then = Millis(received[received.len() / 2]) + age;
        let go_to = |then: Millis| site.clock.jump(then - Clock::now(&*site.clock));
        let mut config = site.config();
        config.check_clock = false;
        let keeper = Keeper::open(config).expect("opens");
        let planned_at = |at: Millis| {
            go_to(at);
            keeper.plan_purge(&room, &point, options)
        };
        let (Ok(plan), Ok(today)) = (planned_at(then), planned_at(then + later)) else {
            continue;
        };
        if plan.events_deleted == 0 || plan.events_deleted == today.events_deleted {
            continue;
        }
        let hash = plan.plan.expect("a hash");
        assert_eq!(hash.at(), Some(then));
        let bound = keeper.as_planned(hash);
        go_to(then - Millis(1));
        let early = bound.purge_history(&room, point.clone(), options);
        drifted(early, "still to come");
        go_to(then + later);
        let id = bound.purge_history(&room, point, options).expect("begun");
        let job = bound.wait(&id).expect("done");
        assert_eq!(job.progress["events_deleted"], plan.events_deleted);
        bound.stop();
        keeper.stop();
        return site.assert_sound("as of the plan");
    }
    panic!("one of eighty loses more when more time has passed");
}

/// Whoever waits for a deletion waits for the room first: so what was planned is looked at when the job's turn comes.
#[test]
fn a_job_is_looked_at_again_when_its_turn_comes() {
    let (site, ask) = middle();
    let gone = messages(&site.tables(), &ask, true)[0]
        .word("event_id")
        .to_owned();
    let room = RoomId::new(&*ask.room);
    let request = || Request {
        force_purge: true,
        ..Request::default()
    };
    let keeper = Keeper::open(site.config()).expect("opens");
    let plan = keeper.plan_deletion(&room, &request()).expect("planned");
    let bound = keeper.as_planned(plan.plan.expect("a hash"));
    site.run(&format!(
        "UPDATE events SET room_id = '!elsewhere' WHERE event_id = '{gone}'"
    ));
    let before = site.tables();
    drifted(bound.delete_room(&room, request()), "the events that go");
    let job = keeper.jobs().expect("read").pop().expect("a job");
    assert_eq!(job.error_code.as_deref(), Some("plan_drifted"), "{job:?}");
    assert!(job.error.expect("said").starts_with("409: "));
    bound.stop();
    keeper.stop();
    assert_same(&before, &site.tables(), "drifted before its turn");
}

also_on_postgres! {
    a_plan_comes_to_some_bytes_and_no_more_than_there_are,
    what_is_as_planned_is_done_as_without_a_plan,
    whatever_drifts_is_named_and_nothing_is_touched,
    deletions_sets_and_retention_runs_are_bound_too,
}
