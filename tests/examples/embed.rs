//! The library in a program of your own: a database, a plan, a purge, a look at what is left.
//! `cargo run --example embed`

use roomkeeper::keeper::Viewer;
use roomkeeper::store::db::Db;
use roomkeeper::store::{sample, schema};
use roomkeeper::time::{Clock, SystemClock};
use roomkeeper::{Config, Keeper, PurgeOptions, PurgePoint, RoomId, days};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let database = directory.path().join("homeserver.db");
    schema::create(&database)?;
    let mut db = Db::open(&database, &Default::default())?;
    sample::fill(&mut db, "example.org", 1_000, SystemClock.now())?;
    drop(db);

    let config = Config::for_sqlite(&database, "example.org");
    let room = RoomId::from("!garden:example.org");
    let point = PurgePoint::OlderThan(days(7));
    let options = PurgeOptions {
        delete_local_events: true,
        ..PurgeOptions::default()
    };
    // Looking takes no lock and changes nothing.
    let plan = Viewer::open(config.clone())?.plan_purge(&room, &point, options)?;
    println!("{} events would go", plan.events_deleted);

    let keeper = Keeper::open(config)?;
    let purge = keeper.purge_history(&room, point, options)?;
    let done = keeper.wait(&purge)?;
    println!("{} events went", done.progress["events_deleted"]);
    keeper.stop();
    Ok(())
}
