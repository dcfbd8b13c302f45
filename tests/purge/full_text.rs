//! A full-text index that is damaged or absent: it is derived data, and stops nothing. A file that is damaged stops
//! everything before a byte is written.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use crate::support::draft::{Draft, Event};
use crate::support::tables::row;
use crate::support::work::{Ask, Site};
use roomkeeper::{Config, Keeper, RoomId};

const ROOM: &str = "!room:example.org";
const ANN: &str = "@ann:example.org";

/// A room of messages with their documents.
fn talkative(messages: i64) -> Site {
    let mut draft = Draft::new("example.org", 1);
    draft.open_room(ROOM, "a", ANN, 2);
    let mut before = "$a-join".to_owned();
    for depth in 3..3 + messages {
        let id = format!("$m{depth}");
        draft.add(Event::message(&id, ROOM, ANN, depth, depth + 1).after(&[&before]));
        draft.row(
            "event_search",
            row([
                ("event_id", (&id).into()),
                ("room_id", ROOM.into()),
                ("key", "content.body".into()),
                ("value", format!("words of number {depth}").into()),
            ]),
        );
        before = id;
    }
    Site::of(draft)
}

/// Every segment of the index is nonsense.
fn damage(site: &Site) {
    site.run("UPDATE event_search_segdir SET root = zeroblob(length(root))");
}

fn ask() -> Ask {
    Ask::all_of(ROOM, 12)
}

#[test]
fn a_purge_builds_a_damaged_index_anew() {
    type Way = fn(&Site) -> Config;
    let ways: [(&str, Way); 2] = [
        ("at once", |site| site.config()),
        ("in batches", |site| site.in_batches_of(1)),
    ];
    for (name, way) in ways {
        let site = talkative(40);
        damage(&site);
        let mut config = way(&site);
        config.overwrite_deleted = true;
        let before = site.tables();
        let done = site.purge_with(config, &ask()).expect("purged");
        assert_eq!(done.events_deleted, 9, "{name}");
        assert!(
            done.notes.iter().any(|n| n.contains("built anew")),
            "{name}: {:?}",
            done.notes
        );
        site.assert_sound(name);
        site.assert_forgotten(&before, name);
        assert_eq!(
            site.number("SELECT count(*) FROM event_search WHERE value MATCH 'words'"),
            31
        );
    }
}

#[test]
fn a_deletion_and_reclaim_build_a_damaged_index_anew() {
    for batches in [100_000, 1] {
        let site = talkative(40);
        damage(&site);
        let mut config = site.in_batches_of(batches);
        config.overwrite_deleted = true;
        let keeper = Keeper::open(config).expect("opens");
        keeper
            .purge_room(&RoomId::new(ROOM), true)
            .expect("deleted");
        keeper.stop();
        site.assert_sound("deleted");
    }
    let site = talkative(40);
    damage(&site);
    let mut config = site.config();
    config.overwrite_deleted = true;
    roomkeeper::keeper::reclaim(&config).expect("reclaimed");
    site.assert_sound("reclaimed");
}

/// Beside a homeserver, which would wait for all of it, nothing is built anew: it is advised.
#[test]
fn beside_a_homeserver_a_damaged_index_is_told_with_what_to_do() {
    let site = talkative(40);
    damage(&site);
    let mut config = site.beside(100, 60_000);
    config.overwrite_deleted = true;
    let done = site.purge_with(config, &ask()).expect("the events went");
    assert_eq!(done.events_deleted, 9);
    assert!(
        done.notes
            .iter()
            .any(|n| n.contains("index is damaged") && n.contains("'rebuild'")),
        "{:?}",
        done.notes
    );
    site.purge(&ask()).expect("offline it is built anew");
    site.assert_sound("later");
}

/// I-18, P-55: a page of the file itself.
#[test]
fn a_damaged_file_is_left_as_it_is_and_never_called_recoverable() {
    let site = talkative(400);
    site.run("PRAGMA wal_checkpoint(TRUNCATE)");
    let page: i64 = site.number(
        "SELECT pageno FROM dbstat WHERE name = 'event_json' AND pagetype = 'leaf' LIMIT 1",
    );
    let size = site.number("PRAGMA page_size");
    let file = OpenOptions::new()
        .write(true)
        .open(&site.database)
        .expect("opens");
    let at = u64::try_from((page - 1) * size).expect("positive");
    file.write_all_at(&[0xff; 512], at).expect("written");
    drop(file);
    let held = "SELECT count(*) FROM events";
    let before = (
        site.number(held),
        site.number("SELECT count(*) FROM event_edges"),
    );
    let refused = site.purge(&Ask::all_of(ROOM, 402)).expect_err("damaged");
    let said = refused.to_string();
    assert!(
        said.contains("damaged") && said.contains("copy") && said.contains("integrity_check"),
        "{said}"
    );
    assert!(!said.contains(".recover"), "{said}");
    let after = (
        site.number(held),
        site.number("SELECT count(*) FROM event_edges"),
    );
    assert_eq!(before, after, "no row went");
}

/// Search switched off.
#[test]
fn a_database_without_the_index_is_purged_deleted_and_checked() {
    let site = talkative(40);
    site.run("DROP TABLE event_search");
    let mut config = site.config();
    config.overwrite_deleted = true;
    site.plan(&ask()).expect("planned");
    let done = site.purge_with(config, &ask()).expect("purged");
    assert_eq!(done.events_deleted, 9);
    site.assert_sound("purged");
    let keeper = Keeper::open(site.config()).expect("opens");
    keeper
        .purge_room(&RoomId::new(ROOM), true)
        .expect("deleted");
    keeper.stop();
    site.assert_sound("deleted");
}

also_on_postgres!(a_database_without_the_index_is_purged_deleted_and_checked);
