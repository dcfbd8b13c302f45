//! Media that go with the messages that alone refer to them: what goes, and above all what stays, file by file, against a plain
//! model; and a process that is killed in between.

use std::process::{Command, Output};

use roomkeeper::deletion::Request;
use roomkeeper::job::{MediaFate, MediaPlan};
use roomkeeper::keeper::{SetAction, SetRequest};
use roomkeeper::rooms::Selectors;
use roomkeeper::{PurgeOptions, PurgePoint, RoomId};

use super::*;
use crate::child::{self, Trouble};
use crate::support::samples::deepest_cut;
use crate::support::tables::Value as Cell;
use crate::support::work::Ask;

/// What is done to the room.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    Purge,
    Delete,
}

/// A text with the escapes of JSON taken away, once.
fn plain(text: &str) -> String {
    let text = text.replace("\\/", "/").replace("\\u002f", "/");
    text.replace("\\u006d", "m")
}

impl Server {
    /// Lets events of rooms name files of every kind, most of them those of one room, several of them the same file.
    fn sprinkle(&self, seed: u64, room: &str) {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5b21);
        let tables = self.site.tables();
        let events = tables.rows("event_json");
        let of_room: Vec<_> = events
            .iter()
            .filter(|e| e.word("room_id") == room)
            .collect();
        let mut sql = String::new();
        for (n, file) in self.files.iter().enumerate() {
            for again in 0..rng.random_range(0..3) {
                let event = match rng.random_range(0..8) {
                    0 => &events[rng.random_range(0..events.len())],
                    _ => of_room[rng.random_range(0..of_room.len())],
                };
                let form = match rng.random_range(0..FORMS.len() + 2) {
                    0 => r#"{"url": "mxc://SERVER/ID?width=3&x=mxc://SERVER/no"}"#,
                    form => FORMS[form % FORMS.len()],
                };
                let form = form
                    .replace("SERVER", self.name_of(file))
                    .replace("ID", &file.id);
                sql += &format!(
                    "UPDATE event_json SET json = substr(json, 1, length(json) - 1) || {} WHERE event_id = {};",
                    quoted(&format!(r#","org.example.s{n}.{again}":{form}}}"#)),
                    quoted(event.word("event_id"))
                );
            }
        }
        self.site.run(&sql);
    }

    /// No room is encrypted, or at most this one.
    fn encrypt(&self, room: Option<&str>) {
        let mut sql = String::from(
            "UPDATE events SET type = 'org.example.note' WHERE type IN ('m.room.encrypted', 'm.room.encryption');",
        );
        if let Some(room) = room {
            let room = quoted(room);
            sql += &format!(
                "UPDATE events SET type = 'm.room.encrypted' WHERE event_id IN
                     (SELECT max(event_id) FROM events WHERE room_id = {room} AND state_key IS NULL);"
            );
        }
        self.site.run(&sql);
    }

    /// What should go, by what the events said that are gone, and what all tables say that are left.
    fn goes_with(&self, held: &[&str], before: &Tables, after: &Tables) -> BTreeSet<String> {
        let encrypted: BTreeSet<&str> = before
            .rows("events")
            .iter()
            .filter(|event| {
                let kind = event.text("type");
                matches!(kind, Some("m.room.encrypted" | "m.room.encryption"))
            })
            .filter_map(|event| event.text("room_id"))
            .collect();
        let left: BTreeSet<&str> = after
            .rows("event_json")
            .iter()
            .map(|row| row.word("event_id"))
            .collect();
        let gone: String = before
            .rows("event_json")
            .iter()
            .filter(|row| !left.contains(row.word("event_id")))
            .filter(|row| !encrypted.contains(row.word("room_id")))
            .map(|row| plain(row.word("json")))
            .collect();
        let mut said = String::new();
        for rows in others(after.clone()).0.values() {
            for cell in rows.iter().flat_map(|row| row.0.values()) {
                match cell {
                    Cell::Text(text) => said.push_str(text),
                    Cell::Bytes(bytes) => said.push_str(&String::from_utf8_lossy(bytes)),
                    _ => {}
                }
                said.push(' ');
            }
        }
        let never = [
            Kind::Quarantined,
            Kind::Safe,
            Kind::LinkPreview,
            Kind::Missing,
            Kind::BehindLink,
            Kind::NeverUploaded,
        ];
        let goes = |file: &&File| {
            let is_held = match (&file.origin, &file.user) {
                (Some(origin), _) => held
                    .iter()
                    .any(|user| user.ends_with(&format!(":{origin}"))),
                (None, user) => user.as_ref().is_some_and(|user| held.contains(&&**user)),
            };
            gone.contains(&self.uri(file))
                && !said.contains(&file.id)
                && !never.contains(&file.kind)
                && !is_held
        };
        self.files
            .iter()
            .filter(goes)
            .map(|file| self.uri(file))
            .collect()
    }
}

fn options(media: MediaFate) -> PurgeOptions {
    PurgeOptions {
        delete_local_events: true,
        media,
        ..PurgeOptions::default()
    }
}

fn deletion(media: MediaFate) -> Request {
    Request {
        force_purge: true,
        media,
        ..Request::default()
    }
}

/// Purges or deletes, with or without media.
fn act(config: Config, ask: &Ask, what: Act, media: MediaFate) -> Result<JobRecord, Error> {
    let keeper = Keeper::open(config)?;
    let room = RoomId::new(&*ask.room);
    let id = match what {
        Act::Purge => keeper.purge_history(&room, ask.point(), options(media))?,
        Act::Delete => keeper.shutdown_and_purge_room(&room, deletion(media))?,
    };
    let _ = keeper.wait(&id);
    let job = keeper.job(&id)?.expect("there");
    keeper.stop();
    Ok(job)
}

/// What `media plan ROOM` says.
fn planned_of_room(config: Config, room: &str) -> MediaPlan {
    let viewer = Viewer::open(config).expect("opens");
    let plan = viewer.plan_media_of_room(&RoomId::new(room), None, MediaFate::Go);
    plan.expect("planned")
}

fn planned(config: Config, ask: &Ask, what: Act) -> Result<MediaPlan, Error> {
    let viewer = Viewer::open(config)?;
    let room = RoomId::new(&*ask.room);
    let media = match what {
        Act::Purge => {
            viewer
                .plan_purge(&room, ask.point(), options(MediaFate::Go))?
                .media
        }
        Act::Delete => viewer.plan_deletion(&room, &deletion(MediaFate::Go))?.media,
    };
    Ok(media.expect("asked for"))
}

#[test]
fn media_go_with_the_messages_that_alone_refer_to_them() {
    let (mut went, mut of_encrypted) = (0, 0);
    let first = seed();
    for seed in first..first + share_of(cases(6)) {
        let what = [Act::Purge, Act::Delete][seed as usize % 2];
        let about = format!("ROOMKEEPER_SEED={seed} {what:?}");
        let server = Server::draw(seed);
        let ask = deepest_cut(&server.site.tables());
        server.encrypt((seed % 5 == 4).then_some(&*ask.room));
        server.sprinkle(seed, &ask.room);
        let mut held = Vec::new();
        // A room is not deleted while anything of it may be held.
        if seed % 3 == 0 && what == Act::Purge {
            let hold = held_user(&server.site);
            held.extend(hold.users.iter().map(ToString::to_string));
            add_hold(&server.config(), hold).expect("laid");
        }
        let held: Vec<&str> = held.iter().map(String::as_str).collect();
        let before = server.site.tables();
        let (rows, on_disk) = server.there();
        // The same without media says what is left of everything else.
        let other = server.site.copy();
        let done = act(other.config(), &ask, what, MediaFate::Stay).expect("runs");
        assert_eq!(done.state, State::Complete, "{about}: {done:?}");
        let after = other.tables();
        let goes = server.goes_with(&held, &before, &after);
        let plan = planned(server.config(), &ask, what).expect("planned");
        if what == Act::Delete {
            let of_room = planned_of_room(server.config(), &ask.room);
            assert_eq!((&plan, plan.notes.len()), (&of_room, 0), "{about}");
        }
        let mut config = server.config();
        // In one transaction, and in many.
        config.batch.events_offline = [3, 10_000][seed as usize / 2 % 2];
        let job = act(config, &ask, what, MediaFate::Go).expect("runs");
        assert_eq!(job.state, State::Complete, "{about}: {job:?}");
        let (rows_left, on_disk_left) = server.there();
        let gone: BTreeSet<String> = rows.difference(&rows_left).cloned().collect();
        assert_eq!(gone, goes, "{about}");
        let gone: BTreeSet<String> = on_disk.difference(&on_disk_left).cloned().collect();
        assert_eq!(gone, goes, "{about}");
        assert_same(&others(after), &others(server.site.tables()), &about);
        let told = summary(&job);
        assert_eq!(told.files_removed, goes.len() as i64, "{about}");
        assert_eq!(
            plan.files,
            told.files_removed + told.files_missing + told.files_odd,
            "{about}: {plan:?}"
        );
        assert_eq!(
            plan.stays.files_referred_to, told.files_referred_to,
            "{about}"
        );
        assert_eq!(plan.stays.rooms_encrypted, told.rooms_encrypted, "{about}");
        let ledger = Ledger::open(&server.config().ledger).expect("opens");
        assert_eq!(ledger.going_media().expect("read"), []);
        let none = (String::new(), String::new());
        assert_eq!(ledger.noted_media(&job.id, &none, 9).expect("read"), []);
        server.site.assert_sound(&about);
        went += goes.len();
        of_encrypted += told.rooms_encrypted;
    }
    if share_of(cases(6)) >= 5 {
        assert!(went > 10 && of_encrypted > 0, "{went} {of_encrypted}");
    }
}

/// Purges or deletes every room as one set.
fn act_on_all(config: Config, what: Act, media: MediaFate) -> JobRecord {
    let keeper = Keeper::open(config).expect("opens");
    let request = SetRequest {
        selectors: Selectors::default(),
        all_rooms: true,
        among: None,
        action: match what {
            Act::Purge => SetAction::PurgeHistory {
                point: PurgePoint::BeforeTs(NOW),
                delete_local_events: true,
                media,
            },
            Act::Delete => SetAction::DeleteRoom(deletion(media)),
        },
    };
    let plan = keeper.plan_set(&request, 1).expect("planned");
    assert_eq!(plan.totals.media_not_counted, media.goes());
    let id = keeper.start_set(&request).expect("started").job_id;
    let id = id.expect("there are rooms");
    let _ = keeper.wait(&id);
    let job = keeper.job(&id).expect("read").expect("there");
    keeper.stop();
    job
}

/// What only rooms of the set refer to together goes as well, and the database is read once for all of them.
#[test]
fn media_go_with_the_messages_of_a_set_of_rooms_once_all_have_gone() {
    let first = seed();
    for seed in first..first + share_of(cases(2)) {
        let what = [Act::Delete, Act::Purge][seed as usize % 2];
        let about = format!("ROOMKEEPER_SEED={seed} {what:?}");
        let server = Server::draw(seed);
        let room = deepest_cut(&server.site.tables()).room;
        server.encrypt((seed % 3 == 0).then_some(&*room));
        server.sprinkle(seed, &room);
        let before = server.site.tables();
        let (rows, on_disk) = server.there();
        let other = server.site.copy();
        let done = act_on_all(other.config(), what, MediaFate::Stay);
        let after = other.tables();
        let goes = server.goes_with(&[], &before, &after);
        let job = act_on_all(server.config(), what, MediaFate::Go);
        assert_eq!(
            (job.state, &job.error),
            (done.state, &done.error),
            "{about}"
        );
        let (rows_left, on_disk_left) = server.there();
        let gone: BTreeSet<String> = rows.difference(&rows_left).cloned().collect();
        assert_eq!(gone, goes, "{about}");
        let gone: BTreeSet<String> = on_disk.difference(&on_disk_left).cloned().collect();
        assert_eq!(gone, goes, "{about}");
        assert_same(&others(after), &others(server.site.tables()), &about);
        assert_eq!(summary(&job).files_removed, goes.len() as i64, "{about}");
        let ledger = Ledger::open(&server.config().ledger).expect("opens");
        let none = (String::new(), String::new());
        assert_eq!(ledger.noted_media(&job.id, &none, 9).expect("read"), []);
        server.site.assert_sound(&about);
        // Where a room is encrypted, few may be left of others.
        assert!(seed % 3 == 0 || !goes.is_empty(), "{about}");
    }
}

#[test]
fn media_that_could_not_go_with_their_messages_keep_these_from_going() {
    let server = Server::draw(8);
    let ask = deepest_cut(&server.site.tables());
    let before = server.site.tables();
    let refused = |change: &dyn Fn(&mut Config), media: MediaFate, said: &str| {
        for what in [Act::Purge, Act::Delete] {
            let mut config = server.config();
            change(&mut config);
            let done = act(config.clone(), &ask, what, media);
            let why = done.expect_err(said).to_string();
            assert!(why.contains(said), "{why}");
            // A plan says the same (E-18).
            let planned = planned(config, &ask, what);
            match media {
                MediaFate::Go => assert_eq!(planned.expect_err(said).to_string(), why),
                _ => assert!(planned.is_err()),
            }
        }
        assert_same(&before, &server.site.tables(), said);
    };
    let nowhere = |config: &mut Config| config.media.directory = None;
    refused(&nowhere, MediaFate::Go, "media_store_path");
    let providers = |config: &mut Config| config.media.has_providers = true;
    refused(&providers, MediaFate::Go, "media_storage_providers");
    let archive = |config: &mut Config| config.archive = Some(Archive::in_directory("/nowhere"));
    refused(&archive, MediaFate::Go, "--media-not-archived");
    let running = |config: &mut Config| config.homeserver = HomeserverPolicy::AssumeRunning;
    refused(&running, MediaFate::Go, "roomkeeper.homeserver.url");
    let keeper = Keeper::open(server.config()).expect("opens");
    let alone = Request {
        purge: false,
        ..deletion(MediaFate::Go)
    };
    let refused = keeper.shutdown_and_purge_room(&RoomId::new(&*ask.room), alone);
    let why = refused.expect_err("no message goes").to_string();
    assert!(why.contains("media go with the messages"), "{why}");
    keeper.stop();
    assert_eq!(MediaFate::of(true, true), Ok(MediaFate::GoUnarchived));
    assert!(MediaFate::of(false, true).is_err());
}

/// A server, and a deletion of its first room with media by the program.
struct Deletion {
    server: Server,
    room: String,
}

impl Deletion {
    /// The same server again, with files of its own.
    fn copy(&self, store: &Path) -> Self {
        let server = Server {
            site: self.server.site.copy(),
            store: tempfile::tempdir().expect("a directory"),
            files: self.server.files.clone(),
        };
        let copied = Command::new("cp")
            .arg("-a")
            .arg(store.join("."))
            .arg(server.site.directory().join("media_store"))
            .output();
        assert!(copied.expect("cp").status.success());
        Self {
            server,
            room: self.room.clone(),
        }
    }

    /// Begins, or takes up what the ledger has.
    fn run(&self, trouble: Trouble) -> Output {
        let site = &self.server.site;
        let file = site.directory().with_extension("yaml");
        let text = format!(
            "server_name: \"{}\"\ndatabase: {{name: sqlite3, args: {{database: \"{}\"}}}}\n\
             media_store_path: \"{}\"\nroomkeeper: {{ledger: \"{}\"}}\n",
            site.server_name,
            site.database.display(),
            site.directory().join("media_store").display(),
            site.config().ledger.display(),
        );
        fs::write(&file, text).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_roomkeeper"));
        command.arg("-c").arg(file).arg("--offline=assume");
        let unended = Ledger::open(&site.config().ledger)
            .and_then(|ledger| ledger.unended())
            .expect("the ledger is read");
        match unended.is_empty() {
            true => command.args([
                "delete-room",
                &self.room,
                "--force-purge",
                "--with-media",
                "--block",
            ]),
            false => command.args(["jobs", "--resume"]),
        };
        child::befall(&mut command, site, trouble);
        command.output().expect("it starts")
    }

    /// Every file of the store, by its path.
    fn store(&self) -> BTreeSet<PathBuf> {
        let root = self.server.site.directory().join("media_store");
        let (mut found, mut left) = (BTreeSet::new(), vec![root]);
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).expect("read") {
                let path = entry.expect("read").path();
                match path.is_dir() && !path.is_symlink() {
                    true => left.push(path),
                    false => {
                        let path = path.strip_prefix(self.server.site.directory());
                        found.insert(path.expect("below").to_owned());
                    }
                }
            }
        }
        found
    }
}

/// Neither a file whose row is gone, nor a row whose file is, is left of a job that goes on.
#[test]
fn whoever_is_killed_with_media_in_his_hands_finishes_it() {
    let server = Server::draw(31);
    let room = deepest_cut(&server.site.tables()).room;
    server.encrypt(None);
    server.sprinkle(31, &room);
    let sample = Deletion { server, room };
    let store = sample.server.store.path();
    let whole = sample.copy(store);
    let before = whole.store();
    let done = whole.run(Trouble::Counted);
    assert!(done.status.success(), "{done:?}");
    let (tables, left) = (whole.server.site.tables(), whole.store());
    assert!(before.len() > left.len() + 5);
    let calls = child::counted(&whole.server.site);
    // The last calls are those with files in hand.
    let kills: Vec<u64> = match child::is_campaign() {
        true => (1..=calls).collect(),
        false => (1..=8).map(|n| calls / 2 + n * calls / 17).collect(),
    };
    for at in kills {
        let about = format!("killed at {at} of {calls}");
        let one = sample.copy(store);
        let mut last = one.run(Trouble::KilledAt(at));
        for _ in 0..3 {
            if last.status.success() {
                break;
            }
            last = one.run(Trouble::None);
        }
        assert!(last.status.success(), "{about}: {last:?}");
        assert_eq!(one.store(), left, "{about}");
        assert_same(&tables, &one.server.site.tables(), &about);
    }
}

also_on_postgres!(
    media_go_with_the_messages_that_alone_refer_to_them,
    media_go_with_the_messages_of_a_set_of_rooms_once_all_have_gone,
);
