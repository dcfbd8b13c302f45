//! Media that nothing refers to: what goes, and above all what stays, file by file, against a plain model.

mod with_messages;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use crate::support::engine::share_of;
use crate::support::rooms::Recipe;
use crate::support::tables::{Tables, assert_same};
use crate::support::work::{NOW, Site, cases, seed};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use roomkeeper::config::{Archive, HomeserverApi, HomeserverPolicy, Secret};
use roomkeeper::hold::Hold;
use roomkeeper::job::media::MediaSummary;
use roomkeeper::jobs::ledger::{JobRecord, Ledger, State};
use roomkeeper::jobs::media::NotedMedia;
use roomkeeper::keeper::{MediaRequest, Viewer, add_hold};
use roomkeeper::time::days;
use roomkeeper::{Config, Error, JobId, Keeper, Millis};
use serde_json::Value;

also_on_postgres!(
    what_nothing_refers_to_goes_and_everything_else_stays,
    what_somebody_was_interrupted_in_is_finished,
);

const OLD: i64 = 100;

/// A file of the sample, and why it stays if it does.
#[derive(Clone, Debug)]
struct File {
    origin: Option<String>,
    id: String,
    user: Option<String>,
    /// Days since it was uploaded, and since somebody looked at it.
    age: i64,
    seen: i64,
    kind: Kind,
    thumbnails: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Unreferenced,
    /// In the JSON of an event, in this form.
    InEvent(usize),
    Avatar,
    AccountData,
    RoomAccountData,
    OfTomorrow,
    MemberAvatar,
    Quarantined,
    Safe,
    LinkPreview,
    Missing,
    BehindLink,
    NeverUploaded,
}

/// How an event may name a file: JSON in which SERVER and ID stand.
const FORMS: [&str; 11] = [
    r#"{"url": "mxc://SERVER/ID"}"#,
    r#"{"file": {"url": "mxc://SERVER/ID", "key": {"k": "x"}}}"#,
    r#"{"info": {"thumbnail_url": "mxc://SERVER/ID"}}"#,
    r#"{"info": {"thumbnail_file": {"url": "mxc:\/\/SERVER\/ID"}}}"#,
    r#"{"m.new_content": {"url": "mxc://SERVER/ID#x"}, "url": 5}"#,
    r#"{"formatted_body": "<img src=\"mxc://SERVER/ID\" alt=\"x\">"}"#,
    r#"{"formatted_body": "\u003cimg src=\u0022mxc://SERVER/ID\u0022\u003e"}"#,
    r#"{"org.example.gallery": [[{"u": ["mxc://SERVER/ID"]}]]}"#,
    r#"{"body": "look: https://SERVER/_matrix/media/v3/download/SERVER/ID/cat.png"}"#,
    r#"{"url": "\u006dxc:\u002f\u002fSERVER\u002fID"}"#,
    r#"{"x": "{\"y\": \"mxc:\\\/\\\/SERVER\\\/ID\"}"}"#,
];

const KINDS: [Kind; 12] = [
    Kind::Unreferenced,
    Kind::Avatar,
    Kind::AccountData,
    Kind::RoomAccountData,
    Kind::OfTomorrow,
    Kind::MemberAvatar,
    Kind::Quarantined,
    Kind::Safe,
    Kind::LinkPreview,
    Kind::Missing,
    Kind::BehindLink,
    Kind::NeverUploaded,
];

/// A server with media in a store of its own.
struct Server {
    site: Site,
    store: tempfile::TempDir,
    files: Vec<File>,
}

fn random_id(rng: &mut StdRng) -> String {
    let letters = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    (0..24)
        .map(|_| char::from(letters[rng.random_range(0..letters.len())]))
        .collect()
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

impl Server {
    fn draw(seed: u64) -> Self {
        let site = Site::random(seed, &Recipe::default());
        let mut rng = StdRng::seed_from_u64(seed ^ 0x3ed1a);
        let tables = site.tables();
        let senders: Vec<String> = tables
            .rows("events")
            .iter()
            .filter_map(|e| e.text("sender").map(str::to_owned))
            .filter(|s| s.ends_with(&format!(":{}", site.server_name)))
            .collect();
        let mut kinds: Vec<Kind> = (0..FORMS.len()).map(Kind::InEvent).collect();
        for kind in KINDS {
            kinds.extend([kind, kind]);
        }
        kinds.extend([Kind::Unreferenced; 20]);
        let files = kinds
            .into_iter()
            .enumerate()
            .map(|(n, kind)| {
                let is_local = match kind {
                    Kind::Safe | Kind::LinkPreview => true,
                    _ => rng.random_ratio(2, 3),
                };
                let user = match rng.random_range(0..4) {
                    0 if !senders.is_empty() => senders[rng.random_range(0..senders.len())].clone(),
                    1 => format!("@held:{}", site.server_name),
                    _ => format!("@uploader{n}:{}", site.server_name),
                };
                let age = rng.random_range(OLD - 60..OLD + 60);
                File {
                    origin: (!is_local)
                        .then(|| ["remote.example", "held.example:8448"][n % 2].to_owned()),
                    id: random_id(&mut rng),
                    user: (is_local && !rng.random_ratio(1, 8)).then_some(user),
                    age,
                    seen: rng.random_range(0..=age),
                    kind,
                    thumbnails: rng.random_range(0..3),
                }
            })
            .collect();
        let server = Self {
            site,
            store: tempfile::tempdir().expect("a directory"),
            files,
        };
        server.write(&tables, &mut rng);
        server
    }

    fn name_of<'a>(&'a self, file: &'a File) -> &'a str {
        file.origin.as_deref().unwrap_or(&self.site.server_name)
    }

    fn uri(&self, file: &File) -> String {
        format!("mxc://{}/{}", self.name_of(file), file.id)
    }

    fn paths(&self, file: &File) -> (PathBuf, PathBuf) {
        let place = format!("{}/{}/{}", &file.id[..2], &file.id[2..4], &file.id[4..]);
        let root = self.store.path();
        match &file.origin {
            None => (
                root.join("local_content").join(&place),
                root.join("local_thumbnails").join(&place),
            ),
            Some(origin) => (
                root.join("remote_content").join(origin).join(&place),
                root.join("remote_thumbnail").join(origin).join(&place),
            ),
        }
    }

    fn write(&self, tables: &Tables, rng: &mut StdRng) {
        let site = &self.site;
        let mut sql = String::from(
            "CREATE TABLE of_tomorrow (what TEXT); CREATE TABLE account_data (user_id TEXT, content TEXT);",
        );
        let events = tables.rows("event_json");
        let rooms = tables.rows("rooms");
        for (n, file) in self.files.iter().enumerate() {
            let (id, uri) = (quoted(&file.id), self.uri(file));
            let at = |age: i64| NOW.0 - age * days(1).0;
            let (created, seen) = (at(file.age), at(file.seen));
            let quarantined = match file.kind {
                Kind::Quarantined => "'@admin:x'",
                _ => "NULL",
            };
            let length = match file.kind {
                Kind::NeverUploaded => "NULL",
                _ => "5",
            };
            let user = file.user.as_deref().map_or("NULL".to_owned(), quoted);
            match &file.origin {
                None => {
                    let is_safe = file.kind == Kind::Safe;
                    let preview = match file.kind {
                        Kind::LinkPreview => "'https://x'",
                        _ => "NULL",
                    };
                    sql += &format!(
                        "INSERT INTO local_media_repository (media_id, media_length, created_ts, last_access_ts, user_id,
                             quarantined_by, safe_from_quarantine, url_cache)
                         VALUES ({id}, {length}, {created}, {seen}, {user}, {quarantined}, {is_safe}, {preview});"
                    );
                }
                Some(origin) => {
                    sql += &format!(
                        "INSERT INTO remote_media_cache (media_origin, media_id, filesystem_id, media_length, created_ts,
                             last_access_ts, quarantined_by)
                         VALUES ({}, {id}, {id}, {length}, {created}, {seen}, {quarantined});",
                        quoted(origin)
                    );
                }
            }
            for width in 0..file.thumbnails {
                sql += &match &file.origin {
                    None => format!(
                        "INSERT INTO local_media_repository_thumbnails VALUES ({id}, {width}, 1, 'image/png', 'crop', 3);"
                    ),
                    Some(origin) => format!(
                        "INSERT INTO remote_media_cache_thumbnails
                         VALUES ({}, {id}, {width}, 1, 'crop', 'image/png', 3, {id});",
                        quoted(origin)
                    ),
                };
            }
            let user = format!("@x{n}:{}", site.server_name);
            let account = quoted(&format!(
                r#"{{"im.ponies.emotes":{{"a":{{"url":"{uri}"}}}}}}"#
            ));
            match file.kind {
                Kind::InEvent(form) => {
                    let event = &events[rng.random_range(0..events.len())];
                    let form = FORMS[form]
                        .replace("SERVER", self.name_of(file))
                        .replace("ID", &file.id);
                    assert!(serde_json::from_str::<Value>(&form).is_ok(), "{form}");
                    let event = event.word("event_id");
                    // Two may meet in one event.
                    sql += &format!(
                        "UPDATE event_json
                            SET json = substr(json, 1, length(json) - 1) || {}
                          WHERE event_id = {};",
                        quoted(&format!(r#","org.example.m{n}":{form}}}"#)),
                        quoted(event)
                    );
                }
                Kind::Avatar => {
                    sql += &format!(
                        "INSERT INTO profiles (user_id, full_user_id, avatar_url) VALUES ('x{n}', {}, {});",
                        quoted(&user),
                        quoted(&uri)
                    );
                }
                Kind::AccountData => {
                    sql += &format!(
                        "INSERT INTO account_data VALUES ({}, {account});",
                        quoted(&user)
                    );
                }
                Kind::RoomAccountData => {
                    let room = quoted(rooms[rng.random_range(0..rooms.len())].word("room_id"));
                    sql += &format!(
                        "INSERT INTO room_account_data (user_id, room_id, account_data_type, stream_id, content)
                         VALUES ({}, {room}, 't', {n}, {account});",
                        quoted(&user)
                    );
                }
                Kind::OfTomorrow => {
                    sql += &format!(
                        "INSERT INTO of_tomorrow VALUES ({});",
                        quoted(&format!("see {uri}."))
                    );
                }
                Kind::MemberAvatar => {
                    sql += &format!(
                        "UPDATE room_memberships SET avatar_url = coalesce(avatar_url, '') || ' ' || {}
                          WHERE event_id = (SELECT min(event_id) FROM room_memberships);",
                        quoted(&uri)
                    );
                }
                _ => {}
            }
            let (path, thumbnails) = self.paths(file);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            match file.kind {
                Kind::Missing => continue,
                Kind::BehindLink => {
                    let elsewhere = self.store.path().join(format!("elsewhere{n}"));
                    fs::write(&elsewhere, "bytes").expect("written");
                    std::os::unix::fs::symlink(elsewhere, &path).expect("linked");
                }
                _ => fs::write(&path, "bytes").expect("written"),
            }
            for width in 0..file.thumbnails {
                fs::create_dir_all(&thumbnails).expect("made");
                fs::write(thumbnails.join(format!("{width}-1-image-png-crop")), "png")
                    .expect("written");
            }
        }
        site.run(&sql);
    }

    fn config(&self) -> Config {
        let mut config = self.site.config();
        config.media.directory = Some(self.store.path().to_owned());
        config.check_clock = false;
        config
    }

    /// What should go: said again in plain words, from the tables as they stand.
    fn model(&self, request: &MediaRequest, held: &[&str]) -> BTreeSet<String> {
        let tables = self.site.tables();
        let words = |table: &str, kind: &str| -> Vec<(String, String, String)> {
            let rows = tables
                .rows(table)
                .iter()
                .filter(|row| row.text("type") == Some(kind));
            rows.map(|row| {
                let word = |column| row.text(column).unwrap_or_default().to_owned();
                (word("room_id"), word("sender"), word("event_id"))
            })
            .collect()
        };
        let encrypted_rooms: BTreeSet<String> = words("state_events", "m.room.encryption")
            .into_iter()
            .map(|row| row.0)
            .collect();
        let mut private: BTreeSet<String> = words("events", "m.room.encrypted")
            .into_iter()
            .map(|row| row.1)
            .collect();
        let has_encrypted = !private.is_empty() || !encrypted_rooms.is_empty();
        for row in tables.rows("room_memberships") {
            if encrypted_rooms.contains(row.word("room_id")) {
                private.insert(row.word("user_id").to_owned());
            }
        }
        let before = (NOW.0 - request.before.0) / days(1).0;
        let goes = |file: &&File| {
            let is_held = match (&file.origin, &file.user) {
                (Some(origin), _) => held
                    .iter()
                    .any(|user| user.ends_with(&format!(":{origin}"))),
                (None, Some(user)) => held.contains(&&**user),
                (None, None) => false,
            };
            let is_private = match &file.user {
                Some(user) => private.contains(user),
                None => has_encrypted,
            };
            let by_age = request.include_unattributable && file.seen > before && held.is_empty();
            file.kind == Kind::Unreferenced
                && file.age > before
                && !is_held
                && (!is_private || by_age)
        };
        self.files
            .iter()
            .filter(goes)
            .map(|file| self.uri(file))
            .collect()
    }

    /// The files that have rows, and those that lie in the store with all their thumbnails.
    fn there(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let tables = self.site.tables();
        let mut rows = BTreeSet::new();
        for row in tables.rows("local_media_repository") {
            rows.insert(format!(
                "mxc://{}/{}",
                self.site.server_name,
                row.word("media_id")
            ));
        }
        for row in tables.rows("remote_media_cache") {
            rows.insert(format!(
                "mxc://{}/{}",
                row.word("media_origin"),
                row.word("media_id")
            ));
        }
        let mut thumbnails: BTreeMap<&str, usize> = BTreeMap::new();
        for table in [
            "local_media_repository_thumbnails",
            "remote_media_cache_thumbnails",
        ] {
            for row in tables.rows(table) {
                *thumbnails.entry(row.word("media_id")).or_default() += 1;
            }
        }
        let mut on_disk = BTreeSet::new();
        for file in &self.files {
            let (path, directory) = self.paths(file);
            let there = fs::read_dir(&directory).map_or(0, Iterator::count);
            if path.exists() {
                on_disk.insert(self.uri(file));
                assert_eq!(there, file.thumbnails, "{file:?}");
            } else if file.kind != Kind::Missing {
                assert!(!directory.exists(), "{file:?}");
            }
            let rows = thumbnails.get(&*file.id).copied().unwrap_or(0);
            let expected = match path.exists() || file.kind == Kind::Missing {
                true => file.thumbnails,
                false => 0,
            };
            assert_eq!(rows, expected, "{file:?}");
        }
        (rows, on_disk)
    }
}

fn request(include_unattributable: bool) -> MediaRequest {
    MediaRequest {
        include_unattributable,
        ..MediaRequest::older_than(days(OLD), NOW).expect("an age")
    }
}

fn run(config: Config, request: &MediaRequest) -> Result<JobRecord, Error> {
    let keeper = Keeper::open(config)?;
    let id = keeper.remove_media(request)?;
    let _ = keeper.wait(&id);
    let job = keeper.job(&id)?.expect("there");
    keeper.stop();
    Ok(job)
}

fn summary(job: &JobRecord) -> MediaSummary {
    serde_json::from_value(job.progress["media"].clone()).expect("a summary")
}

/// Everything but media themselves.
fn others(tables: Tables) -> Tables {
    tables.without(&[
        "local_media_repository",
        "local_media_repository_thumbnails",
        "remote_media_cache",
        "remote_media_cache_thumbnails",
        "sqlite_stat1",
        "sqlite_stat4",
    ])
}

fn held_user(site: &Site) -> Hold {
    Hold {
        name: "matter-1".into(),
        users: vec![
            format!("@held:{}", site.server_name).as_str().into(),
            "@somebody:held.example:8448".into(),
        ],
        written: true,
        reason: "a court".into(),
        at_ms: NOW,
        ..Hold::default()
    }
}

#[test]
fn what_nothing_refers_to_goes_and_everything_else_stays() {
    let first = seed();
    for seed in first..first + share_of(cases(4)) {
        let about = format!("ROOMKEEPER_SEED={seed}");
        let server = Server::draw(seed);
        let (rows, on_disk) = server.there();
        let before = server.site.tables();
        let request = request(seed % 2 == 0);
        let held: Vec<String> = match seed % 3 {
            0 => {
                let hold = held_user(&server.site);
                let users = hold.users.iter().map(ToString::to_string).collect();
                add_hold(&server.config(), hold).expect("laid");
                users
            }
            _ => Vec::new(),
        };
        let held: Vec<&str> = held.iter().map(String::as_str).collect();
        let goes = server.model(&request, &held);
        let viewer = Viewer::open(server.config()).expect("opens");
        let plan = viewer.plan_media(&request).expect("planned");
        drop(viewer);
        assert_eq!(plan.notes, Vec::<String>::new(), "{about}");
        let planned: BTreeSet<String> = plan.largest.iter().map(|file| file.uri.clone()).collect();
        assert!(planned.is_superset(&goes), "{about}: {goes:?} {planned:?}");
        let job = run(server.config(), &request).expect("runs");
        assert_eq!(job.state, State::Complete, "{about}: {job:?}");
        let (rows_left, on_disk_left) = server.there();
        let gone: BTreeSet<String> = rows.difference(&rows_left).cloned().collect();
        assert_eq!(gone, goes, "{about}");
        let gone: BTreeSet<String> = on_disk.difference(&on_disk_left).cloned().collect();
        assert_eq!(gone, goes, "{about}");
        let summary = summary(&job);
        assert_eq!(summary.files_removed, goes.len() as i64, "{about}");
        assert_eq!(
            plan.files,
            summary.files_removed + summary.files_missing + summary.files_odd,
            "{about}"
        );
        assert_eq!(
            plan.stays.files_not_attributable, summary.files_not_attributable,
            "{about}"
        );
        assert_eq!(
            plan.stays.files_referred_to, summary.files_referred_to,
            "{about}"
        );
        assert_same(&others(before), &others(server.site.tables()), &about);
        // Nothing is left to do, and nothing is left noted.
        let ledger = Ledger::open(&server.config().ledger).expect("opens");
        assert_eq!(ledger.going_media().expect("read"), []);
        drop(ledger);
        let again = run(server.config(), &request).expect("runs");
        assert_eq!(self::summary(&again).files_removed, 0, "{about}");
    }
}

#[test]
fn what_somebody_was_interrupted_in_is_finished() {
    let server = Server::draw(77);
    let of = |kind| {
        server
            .files
            .iter()
            .filter(move |f| f.kind == kind && f.origin.is_none())
    };
    let gone = of(Kind::Unreferenced).next().expect("one");
    let avatar = server
        .files
        .iter()
        .find(|f| f.kind == Kind::InEvent(0))
        .expect("one");
    // The rows of one had gone, those of the other had not, when somebody pulled the plug.
    server.site.run(&format!(
        "DELETE FROM local_media_repository WHERE media_id = '{0}';
         DELETE FROM local_media_repository_thumbnails WHERE media_id = '{0}'",
        gone.id
    ));
    let job = JobId::from("killed");
    let noted = |file: &File| NotedMedia {
        origin: file.origin.clone().unwrap_or_default(),
        media_id: file.id.clone(),
        file: Some(file.id.clone()),
    };
    let keeper = Keeper::open(server.config()).expect("opens");
    keeper.stop();
    let ledger = Ledger::open(&server.config().ledger).expect("opens");
    ledger
        .media_is_going(&job, &[noted(gone), noted(avatar)])
        .expect("noted");
    drop(ledger);
    let request = MediaRequest::older_than(days(10_000), NOW).expect("an age");
    let job = run(server.config(), &request).expect("runs");
    assert_eq!(job.state, State::Complete, "{job:?}");
    assert_eq!(summary(&job).files_removed, 1);
    assert!(!server.paths(gone).0.exists() && !server.paths(gone).1.exists());
    assert!(server.paths(avatar).0.exists());
    server.there();
    let ledger = Ledger::open(&server.config().ledger).expect("opens");
    assert_eq!(ledger.going_media().expect("read"), []);
}

#[test]
fn media_that_cannot_be_reached_or_come_back_are_refused_and_stay() {
    let server = Server::draw(5);
    let there = server.there();
    let refused = |change: &dyn Fn(&mut Config), said: &str| {
        let mut config = server.config();
        change(&mut config);
        let refused = run(config, &request(false)).expect_err(said).to_string();
        assert!(refused.contains(said), "{refused}");
        assert_eq!(server.there(), there);
    };
    refused(&|config| config.media.directory = None, "media_store_path");
    refused(
        &|config| config.media.directory = Some(PathBuf::from("/nowhere")),
        "/nowhere",
    );
    refused(
        &|config| config.media.has_providers = true,
        "media_storage_providers",
    );
    refused(
        &|config| config.archive = Some(Archive::in_directory("/nowhere")),
        "--media-not-archived",
    );
    refused(
        &|config| config.homeserver = HomeserverPolicy::AssumeRunning,
        "roomkeeper.homeserver.url",
    );
    assert!(MediaRequest::older_than(Millis(0), NOW).is_err());
}

/// A homeserver that removes media when it is asked to; the ids that it was asked for.
fn homeserver(database: &Path) -> (HomeserverApi, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (noted, database) = (asked.clone(), database.to_owned());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let (mut bytes, mut chunk) = (Vec::new(), [0; 1024]);
            while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut chunk) {
                    Ok(count @ 1..) => bytes.extend_from_slice(&chunk[..count]),
                    _ => break,
                }
            }
            let head = String::from_utf8_lossy(&bytes).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let id = path.rsplit('/').next().unwrap_or_default().to_owned();
            let conn = rusqlite::Connection::open(&database).expect("opens");
            conn.busy_timeout(std::time::Duration::from_secs(30))
                .expect("set");
            for table in [
                "local_media_repository",
                "local_media_repository_thumbnails",
            ] {
                conn.execute(&format!("DELETE FROM {table} WHERE media_id = ?"), [&id])
                    .expect("deleted");
            }
            noted.lock().push(format!(
                "{} {path}",
                head.split(' ').next().unwrap_or_default()
            ));
            let body = r#"{"deleted_media": ["x"], "total": 1}"#;
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
        }
    });
    (
        HomeserverApi::at(&url, Secret::new("token")).expect("an address"),
        asked,
    )
}

#[test]
fn a_homeserver_that_runs_is_asked_and_copies_are_left_to_it() {
    let server = Server::draw(12);
    let (api, asked) = homeserver(&server.site.database);
    let mut config = server.config();
    config.homeserver = HomeserverPolicy::AssumeRunning;
    config.homeserver_api = Some(api);
    let goes = server.model(&request(false), &[]);
    let local = format!("mxc://{}/", server.site.server_name);
    let (local, remote): (BTreeSet<&str>, BTreeSet<&str>) = goes
        .iter()
        .map(String::as_str)
        .partition(|uri| uri.starts_with(&local));
    assert!(!local.is_empty());
    let job = run(config, &request(false)).expect("runs");
    assert_eq!(job.state, State::Complete, "{job:?}");
    let asked = asked.lock().clone();
    let start = format!(
        "DELETE /_synapse/admin/v1/media/{}/",
        server.site.server_name.replace(':', "%3A")
    );
    let ids: BTreeSet<&str> = asked
        .iter()
        .map(|line| line.strip_prefix(&start).expect(line))
        .collect();
    let by_model: BTreeSet<&str> = local
        .iter()
        .filter_map(|uri| uri.rsplit('/').next())
        .collect();
    // What lies elsewhere is the homeserver's to find.
    let lost: BTreeSet<&str> = server
        .files
        .iter()
        .filter(|file| matches!(file.kind, Kind::Missing | Kind::BehindLink))
        .map(|file| &*file.id)
        .collect();
    assert_eq!(
        ids.difference(&lost).copied().collect::<BTreeSet<_>>(),
        by_model
    );
    let summary = summary(&job);
    assert!(
        summary.files_left_to_homeserver >= remote.len() as i64,
        "{summary:?}"
    );
    assert_eq!(summary.remote_removed, 0);
}
