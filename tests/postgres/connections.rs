//! What an administrator of a PostgreSQL server decided about a role, a database or a server: limits, read-only defaults,
//! rights, standbys (K-4, K-5).

use std::time::{Duration, Instant};

use crate::support::cluster::{Cluster, ROLE, cluster};
use roomkeeper::config::HomeserverPolicy;
use roomkeeper::keeper::{self, RoomQuery, Viewer};
use roomkeeper::messages::{PageRequest, Reader};
use roomkeeper::policy::LifetimeRange;
use roomkeeper::rooms::Statistics;
use roomkeeper::store::schema;
use roomkeeper::{Config, Error, Keeper};

/// A database in Synapse's layout, and a configuration that reaches it.
fn database(cluster: &Cluster) -> (String, Config, tempfile::TempDir) {
    let name = cluster.create("template0");
    schema::create(cluster.database(&name)).expect("tables");
    let (config, directory) = config(cluster.database(&name));
    (name, config, directory)
}

fn config(database: roomkeeper::database::Database) -> (Config, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = Config::for_database(database, "example.org");
    config.ledger = directory.path().join("ledger");
    (config, directory)
}

#[test]
fn the_limits_of_a_role_end_no_check_and_no_reclaim() {
    let Some(cluster) = cluster() else { return };
    let (name, config, _directory) = database(cluster);
    for limit in [
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
    ] {
        cluster.run(&format!(
            "ALTER ROLE {ROLE} IN DATABASE {name} SET {limit} = '100ms'"
        ));
    }
    // Both have to wait for longer than that.
    let hold = |table: &str| {
        let mut other = cluster.client(&name);
        let sql = format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE");
        other.batch_execute(&sql).expect("locked");
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(600));
            other.batch_execute("COMMIT").expect("released");
        })
    };
    let begun = Instant::now();
    let holder = hold("event_json");
    let viewer = Viewer::open(config.clone()).expect("opens");
    let found = viewer.check(|_, _| ()).expect("checked").violations;
    holder.join().expect("ended");
    assert!(found.is_empty(), "{found:?}");
    assert!(
        begun.elapsed() > Duration::from_millis(500),
        "it had to wait"
    );
    drop(viewer);
    let holder = hold("state_groups_state");
    let mut config = config;
    config.homeserver = HomeserverPolicy::AssumeStopped;
    keeper::reclaim(&config).expect("reclaimed");
    holder.join().expect("ended");
}

#[test]
fn who_wants_nothing_written_is_obeyed_and_can_still_be_read() {
    let Some(cluster) = cluster() else { return };
    let (name, config, _directory) = database(cluster);
    cluster.run(&format!(
        "ALTER DATABASE {name} SET default_transaction_read_only = on"
    ));
    let refused = Keeper::open(config.clone()).err().expect("refused");
    assert!(matches!(refused, Error::Refused(_)), "{refused}");
    assert!(
        refused
            .to_string()
            .contains("default_transaction_read_only"),
        "{refused}"
    );
    assert_eq!(refused.class().exit, roomkeeper::error::EXIT_REFUSED);
    let found = keeper::check_offline(&config, |_, _| ()).expect("checked");
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn who_may_not_write_the_tables_anew_is_told_so() {
    let Some(cluster) = cluster() else { return };
    let (name, config, _directory) = database(cluster);
    cluster.run("DROP ROLE IF EXISTS guest; CREATE ROLE guest LOGIN");
    let mut admin = cluster.client(&name);
    admin
        .batch_execute(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO guest",
        )
        .expect("granted");
    drop(admin);
    let mut guest = config;
    guest.database = cluster.database_of("guest", &name);
    guest.homeserver = HomeserverPolicy::AssumeStopped;
    let refused = keeper::reclaim(&guest).expect_err("refused").to_string();
    assert!(refused.contains("belong to another role"), "{refused}");
}

#[test]
fn a_hot_standby_is_read_and_not_written() {
    let Some(cluster) = cluster() else { return };
    let (name, _, _directory) = database(cluster);
    let mut admin = cluster.client(&name);
    admin
        .batch_execute("INSERT INTO rooms (room_id, is_public, creator, room_version) VALUES ('!a:example.org', FALSE, '@a:example.org', '10')")
        .expect("a room");
    let standby = cluster.standby();
    let (config, _ledger) = config(standby.database(&name));
    assert!(
        standby
            .client(&name)
            .query_one("SELECT pg_is_in_recovery()", &[])
            .expect("asked")
            .get::<_, bool>(0)
    );
    let refused = Keeper::open(config.clone()).err().expect("refused");
    assert!(refused.to_string().contains("hot standby"), "{refused}");
    assert_eq!(refused.class().exit, roomkeeper::error::EXIT_REFUSED);
    let found = keeper::check_offline(&config, |_, _| ()).expect("checked");
    assert!(found.is_empty(), "{found:?}");
    let viewer = Viewer::open(config).expect("opens");
    let room = viewer.room_of("!a:example.org").expect("a room");
    assert!(viewer.knows(&room).expect("asked"));
    let page = viewer.messages(&room, &Reader::Admin, &PageRequest::backwards(10));
    assert!(page.expect("a page").chunk.is_empty());
    // Rooms are told without their policies; a plan says whom to ask.
    let (rooms, _) = viewer
        .rooms(&RoomQuery::default(), &mut Statistics::default())
        .expect("rooms");
    assert_eq!(rooms.rooms.len(), 1);
    let refused = viewer
        .plan_retention(LifetimeRange::default(), false)
        .expect_err("no plan");
    assert!(refused.to_string().contains("ask the primary"), "{refused}");
    assert_eq!(refused.class().exit, roomkeeper::error::EXIT_REFUSED);
}
