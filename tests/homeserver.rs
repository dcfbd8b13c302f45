//! `running: beside` is what may be: what is so is looked at when a job starts, and again before each of its transactions.
//! And what is foretold is what happens.
#![cfg(feature = "events")]

#[macro_use]
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use roomkeeper::config::{HomeserverApi, HomeserverPolicy, Secret, SigningKey};
use roomkeeper::deletion::{Request, Shutdown};
use roomkeeper::keeper::Viewer;
use roomkeeper::{Config, Error, Keeper, RoomId, UserId};
use rusqlite::Connection;
use support::draft::{Draft, Event};
use support::engine::{Engine, current};
use support::rooms::Recipe;
use support::samples::{deepest_cut, for_each_sample};
use support::tables::assert_same;
use support::work::{NOW, Site};

const OLD: &str = "!old:example.org";

/// A homeserver that does nothing but be there: a process that has the file open, or a session.
enum StandIn {
    Process(Child),
    #[cfg(feature = "postgres")]
    Session(#[allow(dead_code)] Box<postgres::Client>),
}

impl StandIn {
    fn start(site: &Site) -> Self {
        #[cfg(feature = "postgres")]
        if let Some(server) = &site.on_server {
            let cluster = support::cluster::cluster().expect("a server");
            return Self::Session(Box::new(cluster.client_of_role(&server.name)));
        }
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["a_process_stands_in", "--exact", "--nocapture"])
            .env("ROOMKEEPER_STANDS_IN", &site.database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let out = child.stdout.take().expect("piped");
        let is_ready = |line: &String| line.contains("it is open");
        let mut lines = BufReader::new(out).lines().map(|line| line.expect("text"));
        assert!(lines.any(|line| is_ready(&line)), "it could not be opened");
        Self::Process(child)
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if let Self::Process(child) = self {
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }
}

/// Does nothing in any other process than [`StandIn`]'s.
#[test]
fn a_process_stands_in() {
    let Ok(database) = std::env::var("ROOMKEEPER_STANDS_IN") else {
        return;
    };
    let conn = Connection::open(database).expect("opens");
    let _: i64 = conn
        .query_row("SELECT count(*) FROM events", [], |row| row.get(0))
        .expect("counts");
    println!("it is open");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    std::process::exit(0);
}

/// As the README's configuration for a homeserver that keeps running.
fn may_run(mut config: Config) -> Config {
    config.homeserver = HomeserverPolicy::AllowRunning;
    config.event_signing.signing_key = Some(SigningKey::Text(Secret::new(
        "ed25519 a_test AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
    )));
    config.event_signing.room_version = Some("12".into());
    config
}

/// A room of ann's with four more people in it.
fn site() -> Site {
    let mut draft = Draft::new("example.org", 7);
    draft.open_room(OLD, "old", "@ann:example.org", 2);
    let mut last = "$old-join".to_owned();
    for (n, who) in (0..).zip(["bob", "carol", "dave", "eve"]) {
        let (id, user) = (format!("$old-{n}"), format!("@{who}:example.org"));
        let event = Event::message(&id, OLD, &user, 3 + n, 4 + n)
            .member(&user, "join")
            .after(&[&last]);
        draft.add(event);
        last = id;
    }
    draft.open_room("!other:example.org", "other", "@bob:example.org", 30);
    Site::of(draft)
}

/// From the next change of this kind on there is a sign of life.
fn arrives_with(site: &Site, change: &str) {
    let lock = format!(
        "INTO worker_read_write_locks (lock_name, lock_key, instance_name, write_lock, token, last_renewed_ts)
         VALUES ('x', 'y', 'master', FALSE, 'z', {})",
        NOW.0
    );
    match current() {
        Engine::Sqlite => site.run(&format!(
            "CREATE TRIGGER arrives {change} BEGIN INSERT OR IGNORE {lock}; END"
        )),
        Engine::Postgres => site.run(&format!(
            "CREATE FUNCTION arrives() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
             $$ BEGIN INSERT {lock} ON CONFLICT DO NOTHING; RETURN NULL; END $$;
             CREATE TRIGGER arrives {change} FOR EACH STATEMENT EXECUTE FUNCTION arrives()"
        )),
    }
}

fn whole() -> Request {
    Request {
        block: true,
        requester: Some(UserId::from("@admin:example.org")),
        ..Request::default()
    }
}

fn with_new_room() -> Request {
    Request {
        new_room_user_id: Some(UserId::from("@ann:example.org")),
        message: Some("this way".into()),
        ..whole()
    }
}

fn delete(config: Config, request: Request) -> Result<Shutdown, Error> {
    let keeper = Keeper::open(config)?;
    let id = keeper.shutdown_and_purge_room(&RoomId::from(OLD), request)?;
    let outcome = keeper.wait(&id);
    let status = keeper.delete_status(id.as_str())?.expect("it is known");
    keeper.stop();
    outcome.map(|_| status.shutdown_room)
}

fn is_blocked(site: &Site) -> bool {
    site.number("SELECT count(*) FROM blocked_rooms") > 0
}

#[test]
fn a_purge_is_that_of_a_stopped_homeserver_where_none_runs_and_else_that_beside_one() {
    let recipe = Recipe {
        rooms: 2..4,
        events: 30..70,
        may_be_long: false,
    };
    for_each_sample(4, |seed, _| {
        let (about, stopped) = (
            format!("ROOMKEEPER_SEED={seed}"),
            Site::random(seed, &recipe),
        );
        let ask = deepest_cut(&stopped.tables());
        let (alone, beside, together) = (stopped.copy(), stopped.copy(), stopped.copy());
        let plan = |config: Config| {
            let viewer = Viewer::open(config).expect("opens");
            let room = RoomId::new(&*ask.room);
            let plan = viewer.plan_purge(&room, ask.point(), ask.options());
            plan.expect("planned")
        };
        for offline in [Site::config, Site::rewriting] {
            let (stopped, alone) = (stopped.copy(), alone.copy());
            let planned = plan(may_run(offline(&alone)));
            assert_eq!(planned, plan(offline(&stopped)), "{about}");
            let expected = stopped.purge_with(offline(&stopped), &ask).expect("purged");
            let done = alone.purge_with(may_run(offline(&alone)), &ask);
            let done = done.expect("purged");
            assert_eq!(done.rewritten, expected.rewritten, "{about}");
            assert_eq!(
                done.state_groups_freed, expected.state_groups_freed,
                "{about}"
            );
            assert_same(&stopped.tables(), &alone.tables(), &about);
            alone.assert_sound(&about);
        }
        let (expected, small) = (
            beside.beside(4, 60_000),
            may_run(together.beside(4, 60_000)),
        );
        let homeserver = StandIn::start(&together);
        let planned = plan(small.clone());
        assert_eq!(planned, plan(expected.clone()), "{about}");
        beside.purge_with(expected, &ask).expect("purged");
        let done = together.purge_with(small, &ask).expect("purged");
        assert_eq!(done.state_groups_freed, 0, "{about}");
        assert_eq!(done.extremities_kept, planned.extremities_kept, "{about}");
        drop(homeserver);
        assert_same(&beside.tables(), &together.tables(), &about);
        together.assert_sound(&about);
    });
}

#[test]
fn a_room_is_shut_down_and_deleted_where_no_homeserver_runs() {
    for request in [whole(), with_new_room()] {
        let site = site();
        let config = may_run(site.beside(100, 60_000));
        let viewer = Viewer::open(config.clone()).expect("opens");
        let planned = viewer.plan_deletion(&RoomId::from(OLD), &request);
        assert_eq!(planned.expect("foretold").users_to_move.len(), 5);
        drop(viewer);
        let told = delete(config, request.clone()).expect("deleted");
        assert_eq!(told.kicked_users.len(), 5);
        assert_eq!(
            told.new_room_id.is_some(),
            request.new_room_user_id.is_some()
        );
        assert!(is_blocked(&site));
        let left = format!("SELECT count(*) FROM events WHERE room_id = '{OLD}'");
        assert_eq!(site.number(&left), 0);
        site.assert_sound("after a deletion");
    }
}

#[test]
fn a_shutdown_that_nobody_can_do_beside_a_homeserver_is_refused_and_foretold() {
    let site = site();
    let before = site.tables();
    let homeserver = StandIn::start(&site);
    let config = may_run(site.beside(100, 60_000));
    let viewer = Viewer::open(config.clone()).expect("opens");
    let room = RoomId::from(OLD);
    let planned = viewer.plan_deletion(&room, &whole()).expect_err("foretold");
    drop(viewer);
    let refused = delete(config, whole()).expect_err("refused").to_string();
    assert!(refused.contains("while a homeserver runs"), "{refused}");
    let who = match current() {
        Engine::Sqlite => "has the database open)",
        Engine::Postgres => "is connected to the database)",
    };
    assert!(refused.contains(who), "{refused}");
    assert!(
        refused.ends_with(&planned.to_string()),
        "{refused}, {planned}"
    );
    drop(homeserver);
    assert_eq!(site.tables().difference(&before), "");
}

#[test]
fn a_homeserver_that_starts_once_the_room_is_blocked_finds_it_as_it_was() {
    for policy in [
        HomeserverPolicy::AllowRunning,
        HomeserverPolicy::RequireStopped,
    ] {
        let site = site();
        arrives_with(&site, "AFTER INSERT ON blocked_rooms");
        let before = site.tables();
        let mut config = may_run(site.config());
        config.homeserver = policy;
        let refused = delete(config, whole()).expect_err("refused").to_string();
        assert!(
            refused.contains("Nothing of the room was changed"),
            "{refused}"
        );
        assert!(!is_blocked(&site), "{policy:?}");
        site.run("DELETE FROM worker_read_write_locks; DELETE FROM worker_read_write_locks_mode");
        assert_eq!(site.tables().difference(&before), "");
    }
}

#[test]
fn a_block_of_before_is_not_taken_back() {
    let site = site();
    site.run(&format!(
        "INSERT INTO blocked_rooms VALUES ('{OLD}', '@ann:example.org')"
    ));
    arrives_with(&site, "AFTER INSERT ON blocked_rooms");
    // Nothing is inserted on SQLite, so that none arrives there: the statement's trigger of a server does not ask.
    let done = delete(may_run(site.config()), whole());
    assert_eq!(done.is_err(), current() == Engine::Postgres);
    assert!(is_blocked(&site));
}

#[test]
fn a_homeserver_that_starts_in_the_middle_of_a_shutdown_is_told_how_far_it_came() {
    let site = site();
    arrives_with(&site, "AFTER INSERT ON room_memberships");
    let config = may_run(site.in_batches_of(1));
    let refused = delete(config.clone(), whole())
        .expect_err("refused")
        .to_string();
    assert!(
        refused.contains("1 person left the room, 4 people are still in it"),
        "{refused}"
    );
    assert!(is_blocked(&site), "who left cannot come back");
    // It is stopped, and the same is asked again.
    site.run("DELETE FROM worker_read_write_locks; DELETE FROM worker_read_write_locks_mode");
    site.run(match current() {
        Engine::Sqlite => "DROP TRIGGER arrives",
        Engine::Postgres => "DROP TRIGGER arrives ON room_memberships",
    });
    assert_eq!(
        delete(config, whole()).expect("deleted").kicked_users.len(),
        4
    );
    site.assert_sound("asked again");
}

#[test]
fn a_homeserver_that_starts_in_the_middle_and_can_be_asked_does_the_rest() {
    let site = site();
    arrives_with(&site, "AFTER INSERT ON room_memberships");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let asked = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.expect("a client");
            let mut line = String::new();
            let read = BufReader::new(stream.try_clone().expect("a socket")).read_line(&mut line);
            if read.expect("reads") == 0 {
                // Only looked whether it listens.
                continue;
            }
            let is_order = line.starts_with("DELETE");
            let body = match is_order {
                true => r#"{"delete_id": "x"}"#.to_owned(),
                false => r#"{"status": "complete", "shutdown_room": {"kicked_users": ["@eve:example.org"]}}"#.to_owned(),
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            stream
                .write_all((head + &body).as_bytes())
                .expect("answers");
            asked.push(line.split(' ').take(2).collect::<Vec<_>>().join(" "));
            if !is_order {
                return asked;
            }
        }
        asked
    });
    let mut config = may_run(site.in_batches_of(1));
    config.homeserver_api = Some(HomeserverApi {
        address,
        token: Secret::new("syt"),
    });
    let request = Request {
        purge: false,
        ..whole()
    };
    let told = delete(config, request).expect("shut down");
    let told: Vec<&str> = told.kicked_users.iter().map(|user| user.as_str()).collect();
    // Who left before, and whom it names.
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told.contains(&"@eve:example.org"));
    let asked = asked.join().expect("no panic");
    assert_eq!(
        asked[0],
        "DELETE /_synapse/admin/v2/rooms/%21old%3Aexample.org"
    );
}

#[test]
fn a_homeserver_that_starts_in_the_middle_of_a_purge_is_worked_beside() {
    let recipe = Recipe {
        rooms: 2..3,
        events: 40..60,
        may_be_long: false,
    };
    for_each_sample(3, |seed, _| {
        let about = format!("ROOMKEEPER_SEED={seed}");
        let site = Site::random(seed, &recipe);
        let ask = deepest_cut(&site.tables());
        arrives_with(&site, "AFTER DELETE ON event_json");
        let groups = "SELECT count(*) FROM state_groups";
        let before = site.number(groups);
        let done = site.purge_with(may_run(site.in_batches_of(2)), &ask);
        let done = done.expect("purged");
        assert!(done.batches > 1, "{about}: {done:?}");
        assert_eq!(
            site.number(groups),
            before,
            "{about}: it may be using any of them"
        );
        site.assert_sound(&about);
    });
}

also_on_postgres!(
    a_purge_is_that_of_a_stopped_homeserver_where_none_runs_and_else_that_beside_one,
    a_room_is_shut_down_and_deleted_where_no_homeserver_runs,
    a_shutdown_that_nobody_can_do_beside_a_homeserver_is_refused_and_foretold,
    a_homeserver_that_starts_once_the_room_is_blocked_finds_it_as_it_was,
    a_block_of_before_is_not_taken_back,
    a_homeserver_that_starts_in_the_middle_of_a_shutdown_is_told_how_far_it_came,
    a_homeserver_that_starts_in_the_middle_and_can_be_asked_does_the_rest,
    a_homeserver_that_starts_in_the_middle_of_a_purge_is_worked_beside,
);
