//! Rooms that are shut down: who leaves, who stays, what the new room is like, and that every event is a true one.
#[path = "model.rs"]
mod model;

use std::collections::{BTreeMap, BTreeSet};

use crate::support::draft::{Draft, Event};
use crate::support::engine::{self, Engine};
use crate::support::state_model::Graph;
use crate::support::tables::{Row, Tables, row};
use crate::support::work::Site;
use model::{KEY, Room, assert_chains_cover, assert_current};
use roomkeeper::config::{Secret, SigningKey};
use roomkeeper::deletion::{Request, Shutdown};
use roomkeeper::keeper::Viewer;
use roomkeeper::room_version::RoomVersion;
use roomkeeper::{Config, Error, Keeper, RoomId, UserId};

const SERVER: &str = "example.org";
const OLD: &str = "!old:example.org";

fn user(name: &str) -> String {
    match name.contains(':') {
        true => format!("@{name}"),
        false => format!("@{name}:{SERVER}"),
    }
}

fn users(names: &[&str]) -> Vec<UserId> {
    names.iter().map(|n| UserId::new(user(n))).collect()
}

/// A room of ann's, with people of every kind in it, and another one that nobody may touch.
fn draft() -> Draft {
    let mut draft = Draft::new(SERVER, 7);
    draft.open_room(OLD, "old", &user("ann"), 2);
    let mut last = "$old-join".to_owned();
    for (n, (who, by, membership)) in (0..).zip([
        ("bob", "bob", "join"),
        ("carol", "ann", "invite"),
        ("dave", "dave", "knock"),
        ("eve", "eve", "join"),
        ("eve", "ann", "ban"),
        ("fay", "fay", "join"),
        ("fay", "fay", "leave"),
        ("zoe:elsewhere.example", "zoe:elsewhere.example", "join"),
    ]) {
        let id = format!("$old-{n}");
        let event = Event::message(&id, OLD, &user(by), 3 + n, 4 + n)
            .member(&user(who), membership)
            .after(&[&last]);
        draft.add(event);
        last = id;
    }
    draft.open_room("!other:example.org", "other", &user("bob"), 30);
    for alias in ["#a:example.org", "#b:example.org"] {
        let cells = [("room_alias", alias.into()), ("room_id", OLD.into())];
        draft.row("room_aliases", row(cells));
    }
    let cells = [
        ("room_alias", "#c:example.org".into()),
        ("room_id", "!other:example.org".into()),
    ];
    draft.row("room_aliases", row(cells));
    draft.row(
        "profiles",
        row([
            ("user_id", "bob".into()),
            ("displayname", "Bob the \"Builder\" ü".into()),
            ("avatar_url", "mxc://example.org/bob".into()),
        ]),
    );
    draft
}

/// A keeper's configuration that can sign.
fn signing(site: &Site) -> Config {
    let mut config = site.config();
    config.event_signing.signing_key = Some(SigningKey::Text(Secret::new(KEY)));
    config.event_signing.room_version = Some("12".into());
    config
}

fn only_shut_down() -> Request {
    Request {
        purge: false,
        requester: Some(UserId::from("@admin:example.org")),
        ..Request::default()
    }
}

fn with_new_room() -> Request {
    Request {
        new_room_user_id: Some(UserId::new(user("ann"))),
        ..only_shut_down()
    }
}

/// Shuts a room down, and gives what its status says.
fn shut_down(config: Config, room: &str, request: Request) -> Result<Shutdown, Error> {
    let keeper = Keeper::open(config)?;
    let id = keeper.shutdown_and_purge_room(&RoomId::from(room), request)?;
    let outcome = keeper.wait(&id);
    let status = keeper.delete_status(id.as_str())?.expect("it is known");
    keeper.stop();
    outcome.map(|_| status.shutdown_room)
}

/// How a room stands, for the events that come.
fn before<'a>(tables: &Tables, room: &'a str, version: &str) -> Room<'a> {
    let ends: BTreeSet<String> = rows(tables, "event_forward_extremities", room)
        .map(|r| r.word("event_id").to_owned())
        .collect();
    let current = rows(tables, "current_state_events", room);
    let mut state: BTreeMap<_, _> = current
        .map(|r| {
            let key = (r.word("type").to_owned(), r.word("state_key").to_owned());
            (key, r.word("event_id").to_owned())
        })
        .collect();
    if let (true, Some(end)) = (ends.len() == 1, ends.first()) {
        state = Graph::of_events(tables)[end].clone();
    }
    Room {
        id: room,
        version: RoomVersion::of(version).expect("known"),
        since: newest(tables),
        state,
        ends,
    }
}

fn newest(tables: &Tables) -> i64 {
    let streams = tables.rows("events").iter();
    streams
        .map(|r| r.number("stream_ordering"))
        .max()
        .unwrap_or(0)
}

fn rows<'a>(tables: &'a Tables, table: &str, room: &str) -> impl Iterator<Item = &'a Row> {
    let room = room.to_owned();
    let rows = tables.rows(table).iter();
    rows.filter(move |r| r.word("room_id") == room)
}

/// Local memberships of a room, by user.
fn memberships(tables: &Tables, room: &str) -> BTreeMap<String, String> {
    rows(tables, "local_current_membership", room)
        .map(|r| {
            (
                r.word("user_id").to_owned(),
                r.word("membership").to_owned(),
            )
        })
        .collect()
}

/// The contents of a room's state, by type; of messages, too.
fn contents(tables: &Tables, room: &str) -> BTreeMap<String, serde_json::Value> {
    rows(tables, "event_json", room)
        .map(|r| serde_json::from_str::<serde_json::Value>(r.word("json")).expect("JSON"))
        .filter(|e| e["type"] != "m.room.member")
        .map(|e| {
            (
                e["type"].as_str().expect("a type").to_owned(),
                e["content"].clone(),
            )
        })
        .collect()
}

#[test]
fn everybody_of_this_server_leaves_and_forgets_and_nobody_else() {
    let site = Site::of(draft());
    let tables = site.tables();
    let room = before(&tables, OLD, "10");
    let told = shut_down(signing(&site), OLD, only_shut_down()).expect("shut down");
    assert_eq!(told.kicked_users, users(&["carol", "dave", "ann", "bob"]));
    assert_eq!(told.failed_to_kick_users, []);
    assert_eq!((told.new_room_id, told.local_aliases), (None, Vec::new()));
    site.assert_sound("after the shutdown");
    let after = site.tables();
    let (events, state) = room.told(&after, SERVER);
    assert_eq!(events.len(), 4);
    assert_current(&after, OLD, &BTreeMap::new());
    let left = memberships(&after, OLD);
    for (who, membership) in [
        ("ann", "leave"),
        ("bob", "leave"),
        ("carol", "leave"),
        ("dave", "leave"),
        ("eve", "ban"),
        ("fay", "leave"),
    ] {
        assert_eq!(left[&user(who)], membership, "{who}");
    }
    let forgotten: BTreeSet<(&str, bool)> = rows(&after, "room_memberships", OLD)
        .map(|r| (r.word("user_id"), r.is("forgotten")))
        .collect();
    for who in ["ann", "bob", "carol", "dave"] {
        assert!(!forgotten.contains(&(&*user(who), false)), "{who}");
    }
    for who in ["eve", "fay", "zoe:elsewhere.example"] {
        assert!(!forgotten.contains(&(&*user(who), true)), "{who}");
    }
    let snapshots: BTreeMap<&str, (&str, bool)> =
        rows(&after, "sliding_sync_membership_snapshots", OLD)
            .map(|r| (r.word("user_id"), (r.word("membership"), r.is("forgotten"))))
            .collect();
    assert_eq!(snapshots[&*user("bob")], ("leave", true));
    assert_eq!(snapshots[&*user("eve")], ("ban", false));
    assert_eq!(rows(&after, "sliding_sync_joined_rooms", OLD).count(), 0);
    // D-24: those who follow the stream hear that the room has no state any more.
    let ended = rows(&after, "current_state_delta_stream", OLD)
        .filter(|r| r.text("event_id").is_none())
        .count();
    assert_eq!(ended, room.state.len());
    assert_eq!(state.len(), room.state.len());
    // The aliases stay, and so does everything of other rooms.
    assert_eq!(after.rows("room_aliases"), tables.rows("room_aliases"));
    for table in [
        "events",
        "current_state_events",
        "room_memberships",
        "state_groups",
    ] {
        let of = |tables: &Tables| -> Vec<Row> {
            rows(tables, table, "!other:example.org").cloned().collect()
        };
        assert_eq!(of(&tables), of(&after), "{table}");
    }
}

#[test]
fn those_who_were_in_the_room_find_a_new_one_with_the_notice_and_the_aliases() {
    let site = Site::of(draft());
    let request = Request {
        room_name: Some("Gone".into()),
        message: Some("Ask the moderators.".into()),
        ..with_new_room()
    };
    let told = shut_down(signing(&site), OLD, request).expect("shut down");
    let new = told.new_room_id.expect("a new room");
    assert_eq!(told.local_aliases, ["#a:example.org", "#b:example.org"]);
    site.assert_sound("after the shutdown");
    let after = site.tables();
    let room = Room {
        id: new.as_str(),
        version: RoomVersion::of("12").expect("known"),
        since: 0,
        state: BTreeMap::new(),
        ends: BTreeSet::new(),
    };
    let (events, state) = room.told(&after, SERVER);
    let kinds: Vec<&str> = events.iter().map(|(kind, ..)| kind.as_str()).collect();
    assert_eq!(
        kinds,
        [
            "m.room.create",
            "m.room.member",
            "m.room.power_levels",
            "m.room.join_rules",
            "m.room.history_visibility",
            "m.room.name",
            "m.room.member",
            "m.room.message"
        ]
    );
    assert_current(&after, new.as_str(), &state);
    assert_chains_cover(&after, new.as_str());
    // Ann was there already; who was only invited or knocking is not moved.
    assert_eq!(
        memberships(&after, new.as_str()),
        BTreeMap::from([
            (user("ann"), "join".to_owned()),
            (user("bob"), "join".to_owned()),
        ])
    );
    let said = contents(&after, new.as_str());
    assert_eq!(said["m.room.message"]["body"], "Ask the moderators.");
    assert_eq!(said["m.room.name"]["name"], "Gone");
    assert_eq!(said["m.room.power_levels"]["users_default"], -10);
    let bob = rows(&after, "room_memberships", new.as_str())
        .find(|r| r.word("user_id") == user("bob"))
        .expect("bob");
    assert_eq!(bob.text("display_name"), Some("Bob the \"Builder\" ü"));
    assert_eq!(bob.text("avatar_url"), Some("mxc://example.org/bob"));
    let listed = rows(&after, "sliding_sync_joined_rooms", new.as_str())
        .next()
        .expect("listed");
    assert_eq!(listed.text("room_name"), Some("Gone"));
    assert_eq!(listed.number("event_stream_ordering"), newest(&after));
    assert_eq!(listed.number("bump_stamp"), newest(&after));
    let found = site.number(match engine::current() {
        Engine::Sqlite => "SELECT count(*) FROM event_search WHERE value MATCH 'moderators'",
        Engine::Postgres => {
            "SELECT count(*) FROM event_search WHERE vector @@ to_tsquery('english', 'moderators')"
        }
    });
    assert_eq!(found, 1);
    let mut aliases: Vec<(&str, &str, Option<&str>)> = after
        .rows("room_aliases")
        .iter()
        .map(|r| (r.word("room_alias"), r.word("room_id"), r.text("creator")))
        .collect();
    aliases.sort_unstable();
    let admin = Some("@admin:example.org");
    assert_eq!(
        aliases,
        [
            ("#a:example.org", new.as_str(), admin),
            ("#b:example.org", new.as_str(), admin),
            ("#c:example.org", "!other:example.org", None),
        ]
    );
}

#[test]
fn rooms_of_every_version_are_made_and_left() {
    for version in 1..=12 {
        let version = version.to_string();
        let site = Site::of(draft());
        let mut config = signing(&site);
        config.event_signing.room_version = Some(version.clone());
        let first = shut_down(config.clone(), OLD, with_new_room()).expect("shut down");
        let first = first.new_room_id.expect("a new room");
        let tables = site.tables();
        let room = before(&tables, first.as_str(), &version);
        let second = shut_down(config, first.as_str(), with_new_room()).expect("shut down");
        assert_eq!(
            second.kicked_users,
            users(&["ann", "bob"]),
            "version {version}"
        );
        site.assert_sound(&format!("version {version}"));
        let after = site.tables();
        let (events, _) = room.told(&after, SERVER);
        assert_eq!(events.len(), 2);
        assert_chains_cover(&after, first.as_str());
        assert_current(&after, first.as_str(), &BTreeMap::new());
        let second = second.new_room_id.expect("a new room");
        let room = Room {
            id: second.as_str(),
            since: 0,
            state: BTreeMap::new(),
            ends: BTreeSet::new(),
            ..room
        };
        let (events, state) = room.told(&after, SERVER);
        assert_eq!(events.len(), 8);
        assert_current(&after, second.as_str(), &state);
        assert_chains_cover(&after, second.as_str());
        let create = &contents(&after, second.as_str())["m.room.create"];
        assert_eq!(create["room_version"], *version);
        let names_creator = version.parse::<i32>().expect("a number") < 11;
        assert_eq!(create.get("creator").is_some(), names_creator);
    }
}

#[test]
fn the_first_to_leave_ties_the_ends_of_a_forked_room_together() {
    for ends in [2, 13] {
        let mut draft = draft();
        for n in 0..ends {
            let id = format!("$end-{n}");
            let message = Event::message(&id, OLD, &user("bob"), 20 + n, 100 + n);
            draft.add(message.after(&["$old-7"]));
        }
        let site = Site::of(draft);
        let tables = site.tables();
        let room = before(&tables, OLD, "10");
        assert_eq!(room.ends.len(), usize::try_from(ends).expect("few"));
        shut_down(signing(&site), OLD, only_shut_down()).expect("shut down");
        site.assert_sound("a forked room");
        let after = site.tables();
        let (events, _) = room.told(&after, SERVER);
        assert_eq!(events.len(), 4);
        assert_eq!(rows(&after, "event_forward_extremities", OLD).count(), 1);
    }
}

#[test]
fn one_who_is_not_there_by_the_state_keeps_nobody_else_from_leaving() {
    let site = Site::of(draft());
    // As an old bug left it: the server takes eve, who is banned, for joined.
    site.run(&format!(
        "UPDATE local_current_membership SET membership = 'join'
          WHERE user_id = '{}' AND room_id = '{OLD}'",
        user("eve")
    ));
    let told = shut_down(signing(&site), OLD, with_new_room()).expect("shut down");
    assert_eq!(told.failed_to_kick_users, users(&["eve"]));
    assert_eq!(told.kicked_users, users(&["carol", "dave", "ann", "bob"]));
    let new = told.new_room_id.expect("a new room");
    assert!(!memberships(&site.tables(), new.as_str()).contains_key(&user("eve")));
}

#[test]
fn what_is_missing_is_said_before_anything_is_touched() {
    let foreign = Request {
        new_room_user_id: Some(UserId::from("@zoe:elsewhere.example")),
        block: true,
        ..only_shut_down()
    };
    let long = Request {
        message: Some("x".repeat(70_000)),
        block: true,
        ..with_new_room()
    };
    let block = Request {
        block: true,
        ..only_shut_down()
    };
    let nothing = |_: &Site, _: &mut Config| ();
    let without_key = |_: &Site, config: &mut Config| config.event_signing.signing_key = None;
    let set_version = |site: &Site, _: &mut Config| {
        site.run("UPDATE rooms SET room_version = 'org.example.strange'");
    };
    let still_joining = |site: &Site, _: &mut Config| {
        site.run(&format!(
            "INSERT INTO partial_state_rooms (room_id) VALUES ('{OLD}')"
        ));
    };
    let powerless = |_: &Site, config: &mut Config| {
        let users = serde_json::json!({"@admin:example.org": 100});
        config
            .event_signing
            .power_levels
            .insert("users".into(), users);
        config.event_signing.room_version = Some("10".into());
    };
    type Change<'a> = &'a dyn Fn(&Site, &mut Config);
    let cases: [(&str, Request, Change<'_>); 6] = [
        ("must be our own", foreign, &nothing),
        ("too long", long, &nothing),
        ("signing key", block.clone(), &without_key),
        ("org.example.strange", block.clone(), &set_version),
        ("still on its way", block.clone(), &still_joining),
        (
            "who makes a room",
            Request {
                block: true,
                ..with_new_room()
            },
            &powerless,
        ),
    ];
    for (text, request, change) in cases {
        let site = Site::of(draft());
        let mut config = signing(&site);
        change(&site, &mut config);
        let tables = site.tables();
        let refused = shut_down(config, OLD, request).expect_err(text).to_string();
        assert!(refused.contains(text), "{refused}");
        assert_eq!(site.tables().difference(&tables), "", "{text}");
    }
}

#[test]
fn a_dry_run_promises_nothing_that_the_run_refuses() {
    let site = Site::of(draft());
    let viewer = Viewer::open(site.config()).expect("opens");
    let room = RoomId::from(OLD);
    let foreign = Request {
        new_room_user_id: Some(UserId::from("@zoe:elsewhere.example")),
        ..only_shut_down()
    };
    let refused = viewer.plan_deletion(&room, &foreign).expect_err("refused");
    assert!(refused.to_string().contains("must be our own"), "{refused}");
    // E-18: with the sentence of the run itself.
    let cases: [(&str, Request, &str); 4] = [
        ("", only_shut_down(), "no signing key"),
        (
            "INSERT INTO partial_state_rooms (room_id, device_lists_stream_id) VALUES ('{OLD}', 0)",
            only_shut_down(),
            "on its way into the room",
        ),
        (
            "UPDATE rooms SET room_version = 'org.example.unknown' WHERE room_id = '{OLD}'",
            only_shut_down(),
            "org.example.unknown",
        ),
        (
            "DELETE FROM rooms WHERE room_id = '{OLD}'",
            Request::default(),
            "Users are still joined",
        ),
    ];
    for (sql, request, words) in cases {
        let site = Site::of(draft());
        let mut config = signing(&site);
        if sql.is_empty() {
            config = site.config();
        } else {
            site.run(&format!(
                "PRAGMA foreign_keys = OFF; {}",
                sql.replace("{OLD}", OLD)
            ));
        }
        let viewer = Viewer::open(config.clone()).expect("opens");
        let planned = viewer.plan_deletion(&room, &request).expect_err("refused");
        drop(viewer);
        assert!(planned.to_string().contains(words), "{planned}");
        let run = shut_down(config, OLD, request).expect_err("refused");
        let (run, planned) = (run.to_string(), planned.to_string());
        assert!(run.ends_with(&planned), "{run} but {planned}");
    }
}

/// D-52: the homeserver, which counts, was stopped.
#[test]
fn after_a_shutdown_without_purge_the_counts_are_those_of_the_memberships() {
    let site = Site::of(draft());
    let counted = site.number("SELECT max(stream_ordering) FROM events");
    site.run(&format!(
        "INSERT INTO room_stats_state (room_id) VALUES ('{OLD}');
         INSERT INTO room_stats_current (room_id, current_state_events, joined_members, invited_members, left_members,
                banned_members, local_users_in_room, completed_delta_stream_id)
         VALUES ('{OLD}', 9, 4, 0, 0, 0, 4, {counted})"
    ));
    let counts = || {
        let keeper = Keeper::open(site.config()).expect("opens");
        let room = RoomId::from(OLD);
        let details = keeper.room_details(&room).expect("read").expect("known");
        let listed = keeper.counted_rooms().expect("read");
        keeper.stop();
        let listed = listed.into_iter().find(|r| r.room_id == room);
        let listed = listed.expect("listed");
        assert_eq!(listed, details.room);
        (listed.joined_members, listed.joined_local_members)
    };
    assert_eq!(counts(), (Some(4), Some(4)));
    shut_down(signing(&site), OLD, only_shut_down()).expect("shut down");
    assert_eq!(counts(), (Some(0), Some(0)));
}

/// M-93: Synapse reads JSON that was stored as bytes.
#[test]
fn json_that_was_stored_as_bytes_is_json() {
    let site = Site::of(draft());
    let plain = site.copy();
    site.run(
        "UPDATE event_json SET json = CAST(json AS BLOB), internal_metadata = CAST(internal_metadata AS BLOB)",
    );
    let shutdown = |site: &Site| shut_down(signing(site), OLD, with_new_room()).expect("shut down");
    let (found, expected) = (shutdown(&site), shutdown(&plain));
    assert_eq!(found.kicked_users, expected.kicked_users);
    assert_eq!(found.failed_to_kick_users, expected.failed_to_kick_users);
    site.assert_sound("bytes");
}

/// D-52: a server of which somebody is only invited does not hear of it either; nor do clients of this one.
#[test]
fn a_plan_names_servers_that_only_have_an_invited_user_and_what_clients_see() {
    let mut draft = draft();
    let guest = "@guest:invited.example";
    let invites =
        Event::message("$invites-guest", OLD, &user("ann"), 90, 9_000).member(guest, "invite");
    let last = draft.of_room(OLD).map(|e| (e.depth, e.id.clone())).max();
    let (_, last) = last.expect("it has events");
    draft.add(invites.after(&[&last]));
    let site = Site::of(draft);
    let viewer = Viewer::open(signing(&site)).expect("opens");
    let plan = viewer.plan_deletion(&RoomId::from(OLD), &Request::default());
    let plan = plan.expect("planned");
    let names = |servers: &[String]| servers.iter().any(|s| s == "invited.example");
    assert!(names(&plan.other_servers), "{:?}", plan.other_servers);
    assert!(
        plan.notes
            .iter()
            .any(|n| n.contains("see in their clients")),
        "{:?}",
        plan.notes
    );
}

#[test]
fn a_key_that_is_not_the_servers_is_refused_and_a_changed_one_is_told_of() {
    let site = Site::of(draft());
    // From now on there are events that show which key the server has.
    shut_down(signing(&site), OLD, only_shut_down()).expect("shut down");
    let other = RoomId::from("!other:example.org");
    let with_key = |key: &str| {
        let mut config = signing(&site);
        config.event_signing.signing_key = Some(SigningKey::Text(Secret::new(key)));
        config
    };
    let block = Request {
        block: true,
        ..only_shut_down()
    };
    let foreign = KEY.replace("AAEC", "AQEC");
    let tables = site.tables();
    let config = with_key(&foreign);
    let viewer = Viewer::open(config.clone()).expect("opens");
    let foretold = viewer.plan_deletion(&other, &block);
    let foretold = foretold
        .expect_err("a dry run refuses it as well")
        .to_string();
    drop(viewer);
    let refused = shut_down(config, other.as_str(), block.clone()).expect_err("refused");
    let refused = refused.to_string();
    assert!(refused.contains("is not this server's"), "{refused}");
    assert_eq!(refused, foretold, "E-18: the same sentence");
    assert_eq!(site.tables().difference(&tables), "");

    let keeper = Keeper::open(with_key(&foreign.replace("a_test", "a_new"))).expect("opens");
    let id = keeper.shutdown_and_purge_room(&other, block);
    let done = keeper.wait(&id.expect("started")).expect("shut down");
    let notes = done.progress["notes"].to_string();
    assert!(notes.contains("ed25519:a_new") && notes.contains("ed25519:a_test"));
    assert_eq!(
        done.progress["shutdown_room"]["kicked_users"][0],
        user("bob")
    );
}

#[test]
fn a_room_that_is_given_up_goes_without_leaves_where_nothing_can_be_signed() {
    let site = Site::of(draft());
    let request = Request {
        force_purge: true,
        ..Request::default()
    };
    let told = shut_down(site.config(), OLD, request).expect("deleted");
    assert_eq!(told.failed_to_kick_users.len(), 4);
    let after = site.tables();
    assert_eq!(rows(&after, "events", OLD).count(), 0);
    site.assert_sound("after a forced deletion");
}

#[test]
fn an_invitation_into_a_room_elsewhere_is_declined_outside_the_timeline() {
    let mut draft = draft();
    let there = "!there:elsewhere.example";
    draft.add(
        Event::message("$invited", there, "@zoe:elsewhere.example", 9, 200)
            .member(&user("bob"), "invite")
            .after(&["$unknown"])
            .outside(),
    );
    for (table, cells) in [
        (
            "local_current_membership",
            vec![("event_id", "$invited"), ("membership", "invite")],
        ),
        (
            "event_auth",
            vec![("event_id", "$invited"), ("auth_id", "$create")],
        ),
    ] {
        let mut cells: Vec<(&str, &str)> = cells;
        cells.push(("room_id", there));
        let mut row = row([]);
        for (column, value) in cells {
            row.set(column, value);
        }
        if table == "local_current_membership" {
            row.set("user_id", user("bob"));
            row.set("event_stream_ordering", 200_i64);
        }
        draft.row(table, row);
    }
    let site = Site::of(draft);
    let told = shut_down(signing(&site), there, only_shut_down()).expect("shut down");
    assert_eq!(told.kicked_users, users(&["bob"]));
    let after = site.tables();
    let events: Vec<&Row> = rows(&after, "events", there)
        .filter(|r| r.word("event_id") != "$invited")
        .collect();
    assert_eq!(events.len(), 1);
    assert!(events[0].is("outlier"));
    assert_eq!(events[0].number("depth"), 10);
    let id = events[0].word("event_id");
    let auth: BTreeSet<&str> = rows(&after, "event_auth", there)
        .filter(|r| r.word("event_id") == id)
        .map(|r| r.word("auth_id"))
        .collect();
    assert_eq!(auth, BTreeSet::from(["$create", "$invited"]));
    assert_eq!(memberships(&after, there)[&user("bob")], "leave");
    assert_eq!(rows(&after, "event_forward_extremities", there).count(), 0);
    site.assert_sound("a declined invitation");
}

#[test]
fn a_shutdown_of_many_makes_no_longer_chains_of_state_groups_than_the_homeserver() {
    let mut draft = Draft::new(SERVER, 8);
    draft.open_room(OLD, "old", &user("ann"), 2);
    let mut last = "$old-join".to_owned();
    for n in 0..120 {
        let (id, who) = (format!("$old-{n}"), user(&format!("user{n}")));
        let event = Event::message(&id, OLD, &who, 3 + n, 4 + n);
        draft.add(event.member(&who, "join").after(&[&last]));
        last = id;
    }
    let site = Site::of(draft);
    let room = before(&site.tables(), OLD, "10");
    let mut config = signing(&site);
    // In several transactions.
    config.batch.events_offline = 50;
    let told = shut_down(config, OLD, with_new_room()).expect("shut down");
    assert_eq!(told.kicked_users.len(), 121);
    site.assert_sound("after many have left");
    let after = site.tables();
    room.told(&after, SERVER);
    let new = told.new_room_id.expect("a new room");
    assert_eq!(memberships(&after, new.as_str()).len(), 121);
    let room = Room {
        id: new.as_str(),
        version: RoomVersion::of("12").expect("known"),
        since: 0,
        state: BTreeMap::new(),
        ends: BTreeSet::new(),
    };
    room.told(&after, SERVER);
}

also_on_postgres! {
    everybody_of_this_server_leaves_and_forgets_and_nobody_else,
    those_who_were_in_the_room_find_a_new_one_with_the_notice_and_the_aliases,
    rooms_of_every_version_are_made_and_left,
    the_first_to_leave_ties_the_ends_of_a_forked_room_together,
    one_who_is_not_there_by_the_state_keeps_nobody_else_from_leaving,
    what_is_missing_is_said_before_anything_is_touched,
    a_key_that_is_not_the_servers_is_refused_and_a_changed_one_is_told_of,
    a_room_that_is_given_up_goes_without_leaves_where_nothing_can_be_signed,
    an_invitation_into_a_room_elsewhere_is_declined_outside_the_timeline,
    a_shutdown_of_many_makes_no_longer_chains_of_state_groups_than_the_homeserver,
    after_a_shutdown_without_purge_the_counts_are_those_of_the_memberships,
    a_plan_names_servers_that_only_have_an_invited_user_and_what_clients_see,
}
