//! Foreign keys of an administrator's own, of every shape (P-53): a purge either stops before it breaks one, or does what
//! the key says; whatever it does, no row is left that leads nowhere.

use crate::support::draft::{Draft, Event};
use crate::support::engine::{Engine, current};
use crate::support::rooms::Recipe;
use crate::support::samples::deepest_cut;
use crate::support::work::{Ask, Site};
use roomkeeper::{Config, Error, Keeper};

const ROOM: &str = "!room:example.org";

/// Thirty messages, each after the one before.
fn room() -> Site {
    let mut draft = Draft::new("example.org", 1);
    draft.open_room(ROOM, "a", "@ann:example.org", 2);
    let mut before = "$a-join".to_owned();
    for n in 0..30 {
        let id = format!("$m{n}");
        let message = Event::message(&id, ROOM, "@rita:remote.example", 3 + n, 10 + n);
        draft.add(message.after(&[&before]));
        before = id;
    }
    Site::of(draft)
}

/// What a purge comes to where such a key exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It stops where it is.
    Stops,
    /// It is done.
    Done,
}

/// A table of somebody's own with two rows: one refers to what goes, one to what stays. What it is called, how it is made.
struct Shape {
    tables: &'static str,
    rows: &'static str,
    end: End,
}

const fn shape(tables: &'static str, rows: &'static str, end: End) -> Shape {
    Shape { tables, rows, end }
}

const TWO: &str = "INSERT INTO marks VALUES ('$m12'), ('$m29')";

/// On both engines.
const SHAPES: &[Shape] = &[
    shape("CREATE TABLE marks (event TEXT REFERENCES events (event_id))", TWO, End::Stops),
    shape("CREATE TABLE marks (event TEXT REFERENCES Events (Event_ID))", TWO, End::Stops),
    shape("CREATE TABLE marks (event TEXT REFERENCES events (event_id) ON DELETE RESTRICT)", TWO, End::Stops),
    shape("CREATE TABLE marks (event TEXT REFERENCES EVENTS (event_id) ON DELETE CASCADE)", TWO, End::Done),
    shape("CREATE TABLE marks (event TEXT REFERENCES events (event_id) ON DELETE SET NULL)", TWO, End::Done),
    shape("CREATE TABLE marks (event TEXT DEFAULT '$m29' REFERENCES events (event_id) ON DELETE SET DEFAULT)", TWO, End::Done),
    shape("CREATE TABLE marks (event TEXT NOT NULL REFERENCES events (event_id) ON DELETE SET NULL)", TWO, End::Stops),
    shape(
        "CREATE TABLE marks (event TEXT REFERENCES events (event_id) DEFERRABLE INITIALLY DEFERRED)",
        TWO,
        End::Stops,
    ),
    shape(
        "CREATE TABLE marks (place BIGINT REFERENCES events (stream_ordering))",
        "INSERT INTO marks VALUES (22), (39)",
        End::Stops,
    ),
    shape(
        "CREATE TABLE marks (place BIGINT REFERENCES events (stream_ordering) ON DELETE CASCADE)",
        "INSERT INTO marks VALUES (22), (39)",
        End::Done,
    ),
    // Of other tables that lose rows.
    shape("CREATE TABLE marks (event TEXT REFERENCES event_json (event_id))", TWO, End::Stops),
    shape("CREATE TABLE marks (event TEXT REFERENCES Event_Json (event_id) ON DELETE CASCADE)", TWO, End::Done),
    shape("CREATE TABLE marks (event TEXT REFERENCES event_to_state_groups (event_id))", TWO, End::Stops),
    shape(
        "CREATE TABLE marks (event TEXT, prev TEXT,
             FOREIGN KEY (event, prev) REFERENCES event_edges (event_id, prev_event_id))",
        "INSERT INTO marks VALUES ('$m12', '$m11'), ('$m29', '$m28')",
        End::Stops,
    ),
    shape(
        "CREATE TABLE marks (event TEXT, prev TEXT,
             FOREIGN KEY (event, prev) REFERENCES event_edges (event_id, prev_event_id) ON DELETE CASCADE)",
        "INSERT INTO marks VALUES ('$m12', '$m11'), ('$m29', '$m28')",
        End::Done,
    ),
    // Names that have to be quoted.
    shape(
        "CREATE TABLE \"Order\" (\"Group\" TEXT REFERENCES events (event_id))",
        "INSERT INTO \"Order\" VALUES ('$m12'), ('$m29')",
        End::Stops,
    ),
    shape(
        "CREATE TABLE \"a \"\"b\"\"\" (\"c'd\" TEXT REFERENCES events (event_id) ON DELETE CASCADE)",
        "INSERT INTO \"a \"\"b\"\"\" VALUES ('$m12'), ('$m29')",
        End::Done,
    ),
    // Chains.
    shape(
        "CREATE TABLE marks (event TEXT PRIMARY KEY REFERENCES events (event_id) ON DELETE CASCADE);
         CREATE TABLE notes (mark TEXT REFERENCES marks (event))",
        "INSERT INTO marks VALUES ('$m12'), ('$m29'); INSERT INTO notes VALUES ('$m12'), ('$m29')",
        End::Stops,
    ),
    shape(
        "CREATE TABLE marks (event TEXT PRIMARY KEY REFERENCES events (event_id) ON DELETE CASCADE);
         CREATE TABLE notes (mark TEXT REFERENCES marks (event) ON DELETE CASCADE)",
        "INSERT INTO marks VALUES ('$m12'), ('$m29'); INSERT INTO notes VALUES ('$m12'), ('$m29')",
        End::Done,
    ),
    shape(
        "CREATE TABLE marks (event TEXT PRIMARY KEY REFERENCES events (event_id) ON DELETE CASCADE,
             above TEXT REFERENCES marks (event) ON DELETE CASCADE)",
        "INSERT INTO marks VALUES ('$m12', NULL), ('$m29', '$m12')",
        End::Done,
    ),
];

/// What only a server has.
const ON_A_SERVER: &[Shape] = &[
    shape(
        "CREATE SCHEMA module; CREATE TABLE module.marks (event TEXT REFERENCES events (event_id))",
        "INSERT INTO module.marks VALUES ('$m12'), ('$m29')",
        End::Stops,
    ),
    shape(
        "CREATE SCHEMA module; CREATE TABLE module.event_edges (event_id TEXT REFERENCES events (event_id))",
        "INSERT INTO module.event_edges VALUES ('$m12'), ('$m29')",
        End::Stops,
    ),
    shape(
        "CREATE SCHEMA module; CREATE TABLE module.event_edges (event_id TEXT REFERENCES events (event_id) ON DELETE CASCADE)",
        "INSERT INTO module.event_edges VALUES ('$m12'), ('$m29')",
        End::Done,
    ),
    shape(
        "CREATE TABLE marks (event TEXT REFERENCES events (event_id)) PARTITION BY LIST (event);
         CREATE TABLE marks_all PARTITION OF marks DEFAULT",
        TWO,
        End::Stops,
    ),
    shape(
        "CREATE TABLE marks (event TEXT REFERENCES events (event_id));
         ALTER TABLE marks ENABLE ROW LEVEL SECURITY; ALTER TABLE marks FORCE ROW LEVEL SECURITY;
         CREATE POLICY all_go_in ON marks FOR INSERT WITH CHECK (TRUE)",
        TWO,
        End::Stops,
    ),
];

/// How a purge goes about it.
type Way = fn(&Site) -> Config;

const WAYS: [(&str, Way); 5] = [
    ("at once", |s| s.config()),
    ("in batches", |s| s.in_batches_of(4)),
    ("rewriting", |s| s.rewriting()),
    ("beside", |s| s.beside(4, 60_000)),
    ("keys left to the engine", |s| {
        let mut config = s.in_batches_of(7);
        config.batch.check_in_bulk = false;
        config
    }),
];

/// The role may switch triggers off, so that we look after keys.
fn trust_the_role() {
    #[cfg(feature = "postgres")]
    if let (Engine::Postgres, Some(cluster)) = (current(), crate::support::cluster::cluster()) {
        cluster.run("GRANT SET ON PARAMETER session_replication_role TO synapse");
    }
}

#[test]
fn a_key_of_any_shape_is_kept() {
    trust_the_role();
    let drawn = room();
    let ask = Ask::all_of(ROOM, 25);
    let on_server: &[Shape] = match current() {
        Engine::Sqlite => &[],
        Engine::Postgres => ON_A_SERVER,
    };
    for shape in SHAPES.iter().chain(on_server) {
        let prepared = drawn.copy();
        prepared.run(&format!("{}; {}", shape.tables, shape.rows));
        for (way, config) in WAYS {
            // A server takes a while to copy a database: there not each shape goes each way.
            if current() == Engine::Postgres && !["in batches", "beside"].contains(&way) {
                continue;
            }
            let about = format!("{}, {way}", shape.tables);
            let site = prepared.copy();
            let planned = site.plan(&ask).expect("planned").referring_tables;
            let is_hidden = shape.tables.contains("ROW LEVEL SECURITY");
            assert!(
                is_hidden || !planned.is_empty(),
                "{about}: the plan names no table"
            );
            let would_stop = planned.iter().any(|table| table.stops_delete);
            assert_eq!(
                would_stop,
                shape.end == End::Stops && !is_hidden,
                "{about}: {planned:?}"
            );
            let outcome = site.purge_with(config(&site), &ask);
            let is_there = site.number("SELECT count(*) FROM events WHERE event_id = '$m12'") == 1;
            match (outcome, shape.end) {
                (Ok(_), End::Done) => assert!(!is_there, "{about}"),
                (Err(Error::JobFailed { text: said, .. }), End::Stops) => {
                    assert!(is_there, "{about}: {said}");
                    let names = ["FOREIGN KEY", "NOT NULL", "23503", "23502", "23001"];
                    assert!(names.iter().any(|n| said.contains(n)), "{about}: {said}");
                    assert!(
                        is_hidden || said.contains("which this roomkeeper does not know"),
                        "{about}: {said}"
                    );
                }
                (outcome, _) => panic!("{about}: {outcome:?}"),
            }
            site.assert_sound(&about);
        }
    }
}

/// What refers to a state group is counted by the plan, and named by the purge that it stops once the events have gone.
#[test]
fn a_key_on_a_state_group_is_named() {
    trust_the_role();
    let recipe = Recipe {
        rooms: 1..2,
        events: 60..90,
        may_be_long: false,
    };
    let mut samples = (1..).map(|seed| Site::random(seed, &recipe));
    let (site, ask, freed) = samples
        .find_map(|site| {
            let ask = deepest_cut(&site.tables());
            let freed = site.plan(&ask).ok()?.state_groups_freed;
            (freed > 0).then_some((site, ask, freed))
        })
        .expect("one of them has state that goes");
    site.run(
        "CREATE TABLE marks (state_group BIGINT REFERENCES state_groups (id));
         INSERT INTO marks SELECT id FROM state_groups",
    );
    let planned = site.plan(&ask).expect("planned").referring_tables;
    let told: Vec<_> = planned
        .iter()
        .map(|table| (&*table.table, table.rows, table.stops_delete))
        .collect();
    assert_eq!(told, [("marks", freed, true)]);
    match site.purge(&ask) {
        Err(Error::JobFailed { text: said, .. }) => {
            assert!(said.contains("the table marks"), "{said}")
        }
        done => panic!("{done:?}"),
    }
    site.assert_sound("stopped at its state groups");
    site.run("DELETE FROM marks");
    site.purge(&ask).expect("nothing is in its way");
    site.assert_sound("done");
}

/// A room is not deleted half-way: what would stop that is found before anything is touched, and named by the plan.
#[test]
fn a_key_that_would_stop_the_deletion_of_a_room_is_found_before_it_begins() {
    let drawn = room();
    let room = roomkeeper::RoomId::new(ROOM);
    let on_server: &[Shape] = match current() {
        Engine::Sqlite => &[],
        Engine::Postgres => &ON_A_SERVER[..3],
    };
    for shape in SHAPES.iter().chain(on_server) {
        let about = shape.tables;
        let site = drawn.copy();
        site.run(&format!("{}; {}", shape.tables, shape.rows));
        // Names like these not every reader of tables of the tests can quote.
        let rows = || {
            [
                "events",
                "event_json",
                "room_memberships",
                "current_state_events",
                "state_groups_state",
                "rooms",
            ]
            .map(|table| site.number(&format!("SELECT count(*) FROM {table}")))
        };
        let before = rows();
        let request = roomkeeper::deletion::Request {
            force_purge: true,
            ..roomkeeper::deletion::Request::default()
        };
        let viewer = roomkeeper::keeper::Viewer::open(site.config()).expect("opens");
        // What would stop the run stops its plan, with the same sentence (E-18).
        let planned = viewer.plan_deletion(&room, &request);
        let would_stop = match &planned {
            Err(e) => {
                assert!(
                    e.to_string().contains("would stop the delete"),
                    "{about}: {e}"
                );
                true
            }
            Ok(plan) => plan.unknown_tables.iter().any(|t| t.stops_delete),
        };
        // The default is an event of this room, which goes as well.
        let end = match shape.tables.contains("SET DEFAULT") {
            true => End::Stops,
            false => shape.end,
        };
        assert_eq!(would_stop, end == End::Stops, "{about}: {planned:?}");
        drop(viewer);
        let keeper = Keeper::open(site.config()).expect("opens");
        let outcome = keeper.delete_room(&room, request);
        keeper.stop();
        match (outcome, end) {
            (Ok(_), End::Done) => {
                assert_eq!(site.number("SELECT count(*) FROM events"), 0, "{about}");
            }
            (Err(e), End::Stops) => {
                assert!(
                    e.to_string().contains("nothing was deleted"),
                    "{about}: {e}"
                );
                assert_eq!(rows(), before, "{about}");
            }
            (outcome, _) => panic!("{about}: {outcome:?}"),
        }
        site.assert_sound(about);
    }
}

/// Triggers of an administrator's own hear of every row that goes and of no other, whichever way is taken.
#[test]
fn a_trigger_hears_of_what_goes_and_of_nothing_that_stays() {
    let ask = Ask::all_of(ROOM, 25);
    let drawn = room();
    let tables = [
        "events",
        "event_json",
        "event_edges",
        "event_to_state_groups",
    ];
    for table in tables {
        let prepared = drawn.copy();
        prepared.run("CREATE TABLE heard (what TEXT, event_id TEXT)");
        match current() {
            Engine::Sqlite => prepared.run(&format!(
                "CREATE TRIGGER hears AFTER DELETE ON {table} BEGIN INSERT INTO heard VALUES ('DELETE', OLD.event_id); END;
                 CREATE TRIGGER hears_too AFTER INSERT ON {table} BEGIN INSERT INTO heard VALUES ('INSERT', NEW.event_id); END"
            )),
            Engine::Postgres => prepared.run(&format!(
                "CREATE FUNCTION hears() RETURNS trigger LANGUAGE plpgsql AS $f$
                 BEGIN INSERT INTO heard VALUES (TG_OP, OLD.event_id); RETURN NULL; END $f$;
                 CREATE TRIGGER hears AFTER DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION hears()"
            )),
        }
        for (way, config) in WAYS {
            let about = format!("{table}, {way}");
            let site = prepared.copy();
            site.purge_with(config(&site), &ask).expect("purged");
            let after = site.tables();
            let left = |id: &str| {
                let mut rows = after.rows(table).iter();
                rows.any(|r| r.text("event_id") == Some(id))
            };
            let before = drawn.tables();
            let mut gone: Vec<&str> = (before.rows(table).iter())
                .map(|r| r.word("event_id"))
                .filter(|id| !left(id))
                .collect();
            let heard = after.rows("heard");
            assert!(heard.iter().all(|h| h.word("what") == "DELETE"), "{about}");
            let mut heard: Vec<&str> = heard.iter().map(|h| h.word("event_id")).collect();
            heard.sort_unstable();
            gone.sort_unstable();
            assert_eq!(heard, gone, "{about}");
            assert!(gone.len() > 20, "{about}");
        }
    }
}

/// Rules of an administrator's own run, as triggers do.
#[cfg(feature = "postgres")]
#[test]
fn a_rule_runs_where_the_role_could_switch_it_off() {
    crate::support::engine::run(Engine::Postgres, || {
        trust_the_role();
        let site = room();
        site.run(
            "CREATE TABLE heard (event_id TEXT);
             CREATE RULE hears AS ON DELETE TO event_json DO ALSO INSERT INTO heard VALUES (OLD.event_id)",
        );
        let ask = Ask::all_of(ROOM, 25);
        let planned = site.plan(&ask).expect("planned").foreign_keys;
        assert!(planned.is_some_and(|who| who.contains("by the server")));
        let done = site.purge(&ask).expect("purged");
        let heard = site.number("SELECT count(*) FROM heard");
        assert_eq!(heard, done.rows_removed["event_json"]);
    });
}

also_on_postgres! {
    a_key_on_a_state_group_is_named,
    a_key_that_would_stop_the_deletion_of_a_room_is_found_before_it_begins,
    a_key_of_any_shape_is_kept,
    a_trigger_hears_of_what_goes_and_of_nothing_that_stays,
}
