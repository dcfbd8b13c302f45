//! The library in a program of your own: a database, rooms with messages, a plan, a purge, a look at what is left. Nothing
//! else than a public name of the crate is used. `cargo run --example embed`

use roomkeeper::{
    Clock, Config, Keeper, Millis, NewEvent, Progress, PurgeOptions, PurgePoint, RoomId, RoomQuery,
    SystemClock, Viewer, create_database, days, list_rooms,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let database = directory.path().join("homeserver.db");
    create_database(database.as_path())?;
    let config = Config::for_sqlite(&database, "example.org");
    let keeper = Keeper::open(config.clone())?;

    // Who says what, and when; ids, order and state are roomkeeper's.
    let (room, alice) = (RoomId::from("!garden:example.org"), "@alice:example.org");
    let begun = SystemClock.now() - days(30);
    let mut events = vec![
        NewEvent::create(alice, "11", begun),
        NewEvent::join(alice, begun),
    ];
    for hour in 0..30 * 24 {
        let at = begun + Millis(hour * 3_600_000);
        events.push(NewEvent::message(alice, &format!("hour {hour}"), at));
    }
    keeper.append(&room, &events)?;

    // Looking takes no lock and changes nothing.
    let point = PurgePoint::OlderThan(days(7));
    let options = PurgeOptions {
        delete_local_events: true,
        ..PurgeOptions::default()
    };
    let plan = Viewer::open(config.clone())?.plan_purge(&room, &point, options)?;
    println!("{} events would go", plan.events_deleted);

    let purge = keeper.purge_history(&room, &point, options)?;
    let done = Progress::of(&keeper.wait(&purge)?);
    println!("{} events went", done.events_deleted);
    assert_eq!(done.events_deleted, plan.events_deleted);
    assert!(done.events_deleted > 500);
    keeper.stop();

    for room in list_rooms(&config, &RoomQuery::default())?.rooms {
        println!("{}: {} events are left", room.room_id, room.events);
    }
    Ok(())
}
