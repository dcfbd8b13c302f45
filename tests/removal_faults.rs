//! A removal that is killed at any stage, from the block over the new room and the people who are moved to the last row:
//! the database is sound, and the next start comes to the end that it would have come to, event for event.
//!
//! It is stopped at calls that change files, so there is none of it on PostgreSQL; `deletion_faults` kills there.
//!
//! Normal runs take a sample; this runs 100 kills, spread over all the calls by which a removal changes a file:
//!
//! ```text
//! ROOMKEEPER_CAMPAIGN=full cargo test --test removal_faults -- --nocapture
//! ```
#![cfg(feature = "events")]

#[path = "support/child.rs"]
#[allow(dead_code)]
mod child;
mod support;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Output, Stdio};

use child::{Trouble, is_campaign};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use roomkeeper::config::{Secret, SigningKey};
use roomkeeper::deletion::{Request, SHUTDOWN_ROOM, Shutdown};
use roomkeeper::jobs::ledger::{JobRecord, Ledger, Subject};
use roomkeeper::{Config, Keeper, RoomId, UserId};
use support::draft::{Draft, Event};
use support::tables::{Row, Tables, assert_same, row};
use support::work::{NOW, Site, seed};

const ROOM: &str = "!room:example.org";
const OTHER: &str = "!other:example.org";

/// What is asked for, and how it is gone about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Two people, two events at a time.
    Batches,
    /// Everybody at once, and the rows in one transaction.
    AtOnce,
    /// The people two at a time; the rows stay.
    OnlyShutDown,
}

impl Way {
    const ALL: [Self; 3] = [Self::Batches, Self::AtOnce, Self::OnlyShutDown];

    fn config(self, site: &Site) -> Config {
        let mut config = match self {
            Self::AtOnce => site.config(),
            Self::Batches | Self::OnlyShutDown => site.in_batches_of(2),
        };
        config.event_signing.signing_key = Some(SigningKey::Text(Secret::new(
            "ed25519 a_test AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
        )));
        // The id of such a room is a hash, not drawn: with the clock standing still, every life makes the same events.
        config.event_signing.room_version = Some("12".into());
        config
    }

    fn request(self) -> Request {
        Request {
            requester: Some(UserId::from("@admin:example.org")),
            new_room_user_id: Some(UserId::from("@ann:example.org")),
            block: true,
            purge: self != Self::OnlyShutDown,
            ..Request::default()
        }
    }
}

/// People of every kind, messages among them, two aliases; and a room that nobody asked for.
fn draft() -> Draft {
    let mut draft = Draft::new("example.org", 3);
    draft.open_room(ROOM, "room", "@ann:example.org", 2);
    let mut last = "$room-join".to_owned();
    let mut at = 3;
    for (who, membership) in [
        ("bob:example.org", "join"),
        ("cem:example.org", "join"),
        ("dee:example.org", "invite"),
        ("eva:example.org", "join"),
        ("fay:example.org", "join"),
        ("gus:example.org", "knock"),
        ("zoe:elsewhere.example", "join"),
    ] {
        let (id, who) = (format!("$room-{at}"), format!("@{who}"));
        let event = Event::message(&id, ROOM, &who, at, at + 1);
        draft.add(event.member(&who, membership).after(&[&last]));
        let said = format!("$room-{}", at + 1);
        draft.add(Event::message(&said, ROOM, "@ann:example.org", at + 1, at + 2).after(&[&id]));
        last = said;
        at += 2;
    }
    draft.open_room(OTHER, "other", "@bob:example.org", 100);
    for (alias, room) in [("#a", ROOM), ("#b", ROOM), ("#c", OTHER)] {
        let alias = format!("{alias}:example.org");
        let cells = [("room_alias", alias.into()), ("room_id", room.into())];
        draft.row("room_aliases", row(cells));
    }
    draft
}

#[test]
fn a_child_does_as_it_is_told() {
    let told = |name: &str| std::env::var(format!("ROOMKEEPER_CHILD_{name}")).ok();
    let Some(database) = told("DATABASE") else {
        return;
    };
    let site = Site::at(Path::new(&database), "example.org");
    let way = told("WAY").expect("told");
    let way = Way::ALL.into_iter().find(|w| format!("{w:?}") == way);
    let way = way.expect("a way");
    child::live_one_life(way.config(&site), |keeper| {
        keeper.shutdown_and_purge_room(&RoomId::from(ROOM), way.request())
    })
}

/// One life of the process, to its end.
fn live(site: &Site, way: Way, trouble: Trouble) -> Output {
    let mut command = child::telling(&[
        ("DATABASE", &site.database.display().to_string()),
        ("WAY", &format!("{way:?}")),
    ]);
    child::befall(&mut command, site, trouble);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.output().expect("it starts")
}

fn records(site: &Site) -> Vec<JobRecord> {
    let ledger = Ledger::open(&site.config().ledger).expect("opens");
    let ids = ledger.of_subject(&Subject::Room(ROOM.into()), "shutdown_and_purge_room", NOW);
    ids.expect("read")
}

/// What went last are the events by which people were moved out: no backup has them, and what is known of the deletion must
/// tell a backup all the same (S-30).
#[test]
fn a_backup_from_before_a_removal_is_known_as_one() {
    for way in [Way::Batches, Way::AtOnce] {
        let site = Site::of(draft());
        let backup = site.copy();
        let keeper = Keeper::open(way.config(&site)).expect("opens");
        // A new room would stay, with the newest events of all.
        let request = Request {
            new_room_user_id: None,
            ..way.request()
        };
        let id = keeper.shutdown_and_purge_room(&RoomId::from(ROOM), request);
        keeper.wait(&id.expect("begun")).expect("done");
        keeper.stop();
        let mut config = way.config(&site);
        config.resume = true;
        let is_told = || {
            let keeper = Keeper::open(config.clone()).expect("opens");
            let receipts = keeper.receipts(0, 100).expect("read");
            keeper.stop();
            format!("{receipts:?}").contains("put_back")
        };
        assert!(!is_told(), "{way:?}: it is the same database");
        site.put_back(&backup);
        assert!(is_told(), "{way:?}: an older database was put back");
        assert_same(&backup.tables(), &site.tables(), "nothing goes by itself");
    }
}

/// What the shutdown did, by the last word of the job; the order of people is nobody's promise.
fn told(site: &Site) -> Shutdown {
    let record = records(site).pop().expect("on record");
    let told = record.progress[SHUTDOWN_ROOM].clone();
    let mut told: Shutdown = serde_json::from_value(told).expect("a result");
    told.kicked_users.sort();
    told
}

/// How far a removal is, by what stands in the database.
fn stage(site: &Site, before: &Tables, way: Way) -> &'static str {
    let tables = site.tables();
    let of_room = |tables: &Tables, table: &str| {
        let rows = tables.rows(table).iter();
        rows.filter(|r| r.word("room_id") == ROOM).count()
    };
    let is_there = |r: &&Row| {
        r.word("room_id") == ROOM && matches!(r.word("membership"), "join" | "invite" | "knock")
    };
    let people = |tables: &Tables| {
        let rows = tables.rows("local_current_membership").iter();
        rows.filter(is_there).count()
    };
    let events = of_room(&tables, "events");
    if records(site).is_empty() {
        "0 not begun"
    } else if of_room(&tables, "blocked_rooms") == 0 {
        "1 in the ledger"
    } else if tables.rows("rooms").len() == before.rows("rooms").len()
        && people(&tables) == people(before)
    {
        "2 blocked"
    } else if of_room(&tables, "rooms") == 0 {
        "9 the room's row is gone"
    } else if people(&tables) == people(before) {
        "3 the new room is made"
    } else if people(&tables) > 0 {
        "4 some people are moved"
    } else if of_room(&tables, "room_aliases") > 0 {
        "5 everybody is moved"
    } else if way == Way::OnlyShutDown || of_room(&tables, "room_memberships") > 0 {
        "6 notice and aliases"
    } else if events > 0 {
        "7 events go"
    } else {
        "8 events are gone"
    }
}

struct Example {
    seed: u64,
    site: Site,
    way: Way,
    before: Tables,
    end: Tables,
    told: Shutdown,
    calls: u64,
}

impl Example {
    fn new(seed: u64, way: Way) -> Self {
        let site = Site::of(draft());
        let undisturbed = site.copy();
        let output = live(&undisturbed, way, Trouble::Counted);
        assert!(output.status.success(), "{way:?}: {output:?}");
        undisturbed.assert_sound("undisturbed");
        let end = undisturbed.tables();
        let told = told(&undisturbed);
        assert_eq!(told.kicked_users.len(), 7, "{told:?}");
        assert_eq!(told.local_aliases, ["#a:example.org", "#b:example.org"]);
        let is_left = end.rows("rooms").iter().any(|r| r.word("room_id") == ROOM);
        assert_eq!(is_left, way == Way::OnlyShutDown);
        let example = Self {
            seed,
            before: site.tables(),
            calls: child::counted(&undisturbed),
            site,
            way,
            end,
            told,
        };
        example.assert_others_untouched(&undisturbed);
        example
    }

    /// The room that nobody asked for is as it was.
    fn assert_others_untouched(&self, site: &Site) {
        let (before, after) = (&self.before, site.tables());
        for table in [
            "events",
            "event_json",
            "current_state_events",
            "room_memberships",
            "room_aliases",
        ] {
            let of = |tables: &Tables| {
                let rows = tables.rows(table).iter();
                let rows = rows.filter(|r| r.word("room_id") == OTHER);
                rows.cloned().collect::<Vec<_>>()
            };
            assert!(
                !of(before).is_empty() && of(before) == of(&after),
                "{table}"
            );
        }
    }

    /// Kills one life at this call, perhaps the next at another, and lets the one after that come to the end. Answers
    /// where those were that were killed.
    fn kill(&self, at: u64, again_at: Option<u64>) -> Vec<&'static str> {
        let site = self.site.copy();
        let mut stages = Vec::new();
        for at in [Some(at), again_at].into_iter().flatten() {
            let about = format!(
                "ROOMKEEPER_SEED={}, {:?}, killed at {at}",
                self.seed, self.way
            );
            let output = live(&site, self.way, Trouble::KilledAt(at));
            if output.status.signal() == Some(9) {
                stages.push(stage(&site, &self.before, self.way));
            } else {
                // The number of calls varies a little, and a life that takes up has fewer.
                assert!(output.status.success(), "{about}: {output:?}");
            }
            site.assert_sound(&about);
            if stages.len() > 1 || output.status.success() {
                break;
            }
        }
        let about = format!(
            "ROOMKEEPER_SEED={}, {:?}, killed at {at}, {again_at:?}",
            self.seed, self.way
        );
        let is_ended = |site: &Site| {
            let records = records(site);
            !records.is_empty() && records.iter().all(|record| record.state.is_ended())
        };
        // One that had ended must not be begun anew: there would be nobody left to move.
        if !is_ended(&site) {
            let output = live(&site, self.way, Trouble::None);
            assert!(output.status.success(), "{about}: {output:?}");
        }
        assert!(is_ended(&site), "{about}");
        assert_same(&self.end, &site.tables(), &about);
        assert_eq!(told(&site), self.told, "{about}");
        site.assert_sound(&about);
        stages
    }
}

#[test]
fn a_removal_killed_at_any_stage_is_taken_up_again_to_the_same_end() {
    let seed = seed();
    println!("ROOMKEEPER_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let kills: [u64; 3] = if is_campaign() {
        [40, 30, 30]
    } else {
        [3, 2, 2]
    };
    let mut met: BTreeMap<&str, u32> = BTreeMap::new();
    for (way, kills) in Way::ALL.into_iter().zip(kills) {
        let example = Example::new(seed, way);
        println!("{way:?}: {} calls change a file", example.calls);
        for n in 0..kills {
            // One in each part of the way, so that every stage has its turn.
            let part = n * example.calls / kills..(n + 1) * example.calls / kills;
            let at = rng.random_range(part) + 1;
            let again_at = rng
                .random_bool(0.3)
                .then(|| rng.random_range(1..=example.calls - at + 1));
            for stage in example.kill(at, again_at) {
                *met.entry(stage).or_default() += 1;
            }
        }
    }
    println!(
        "{} kills met a living process: {met:#?}",
        met.values().sum::<u32>()
    );
    assert!(!met.is_empty());
    if is_campaign() {
        assert!(met.values().sum::<u32>() >= 100, "{met:?}");
        assert_eq!(met.len(), 10, "every stage has its turn: {met:?}");
    }
}
