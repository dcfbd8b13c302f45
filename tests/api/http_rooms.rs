//! Deleting and blocking rooms over HTTP, as an admin's client asks for it (H-40 … H-51), and the lists beside.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::rooms::Recipe;
use crate::support::work::{Site, seed};
use roomkeeper::client::{Client, Reply};
use roomkeeper::config::{Archive, Listen, Secret};
use roomkeeper::http::{self, HttpServer};
use roomkeeper::{Keeper, RoomId};
use rusqlite::Connection;
use serde_json::{Value, json};

const TOKEN: &str = "static-token-0123456789";

struct Daemon {
    server: Option<HttpServer>,
    keeper: Keeper,
    client: Client,
    address: String,
    site: Site,
    rooms: Vec<String>,
}

impl Daemon {
    /// A daemon over a sample; nobody is in any of its rooms any more.
    fn start(seed: u64) -> Self {
        let mut rooms = Vec::new();
        let site = Site::adjusted(seed, &Recipe::default(), |conn| rooms = Self::empty(conn));
        let mut config = site.config();
        config.listen = vec![
            Listen::Tcp(([127, 0, 0, 1], 0).into()),
            Listen::Unix(site.directory().join("s")),
        ];
        config.admin_token = Some(Secret::new(TOKEN));
        config.archive = Some(Archive::in_directory(site.directory().join("archive")));
        let keeper = Keeper::open(config).expect("opens");
        let server = http::serve(keeper.clone()).expect("serves");
        let address = server.addresses()[0].to_string();
        Self {
            client: Client::tcp(&address, TOKEN),
            server: Some(server),
            keeper,
            address,
            site,
            rooms,
        }
    }

    /// Nobody is in any room any more; answers the rooms.
    fn empty(conn: &Connection) -> Vec<String> {
        conn.execute_batch(
            "DELETE FROM current_state_events;
             DELETE FROM local_current_membership;
             INSERT INTO room_stats_state (room_id, name) SELECT room_id, 'N ' || room_id FROM rooms;
             INSERT INTO room_stats_current (room_id, current_state_events, joined_members, invited_members,
                 left_members, banned_members, local_users_in_room, completed_delta_stream_id)
             SELECT room_id, rowid, rowid - 1, 0, 0, 0, rowid - 1, 1 FROM rooms;",
        )
        .expect("emptied");
        conn.prepare("SELECT room_id FROM rooms ORDER BY rowid")
            .and_then(|mut s| s.query_map([], |r| r.get(0))?.collect())
            .expect("rooms")
    }

    fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Reply {
        let reply = self.client.request(method, path, body.as_ref());
        reply.unwrap_or_else(|e| panic!("{method} {path}: {e}"))
    }

    fn refused(&self, method: &str, path: &str, body: Option<Value>) -> (u16, String, String) {
        let reply = self.ask(method, path, body);
        let word = |member: &str| reply.body[member].as_str().unwrap_or_default().to_owned();
        (reply.status, word("errcode"), word("error"))
    }

    fn v1(&self, room: &str) -> String {
        format!("/_synapse/admin/v1/rooms/{room}")
    }

    fn v2(&self, room: &str) -> String {
        format!("/_synapse/admin/v2/rooms/{room}")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop();
        }
        self.keeper.clone().stop();
    }
}

fn nobody_moved() -> Value {
    json!({"kicked_users": [], "failed_to_kick_users": [], "local_aliases": [], "new_room_id": null})
}

#[test]
fn a_room_is_deleted_at_once_or_as_a_job_and_the_answers_are_synapses() {
    let daemon = Daemon::start(1);
    let (a, b) = (&daemon.rooms[0], &daemon.rooms[1]);
    let reply = daemon.ask("DELETE", &daemon.v1(a), Some(json!({})));
    assert_eq!((reply.status, reply.body), (200, nobody_moved()));
    let reply = daemon.ask("DELETE", &daemon.v2(b), Some(json!({"block": true})));
    let id = reply.body["delete_id"].as_str().expect("an id").to_owned();
    assert_eq!(reply.body, json!({"delete_id": id}));
    daemon.keeper.wait(&id.as_str().into()).expect("deleted");
    let expected = json!({"delete_id": id, "room_id": b, "status": "complete", "shutdown_room": nobody_moved()});
    let by_id = daemon.ask("GET", &daemon.v2(&format!("delete_status/{id}")), None);
    assert_eq!((by_id.status, &by_id.body), (200, &expected));
    let by_room = daemon.ask("GET", &daemon.v2(&format!("{b}/delete_status")), None);
    assert_eq!(by_room.body, json!({"results": [expected]}));
    let block = daemon.ask("GET", &daemon.v1(&format!("{b}/block")), None);
    assert_eq!(block.body["block"], true);
    assert!(
        block.body["user_id"]
            .as_str()
            .is_some_and(|u| u.starts_with("@roomkeeper:"))
    );
    let tables = daemon.site.tables();
    assert_eq!(tables.rows("rooms").len(), daemon.rooms.len() - 2);
}

#[test]
fn what_cannot_be_meant_is_refused_in_synapses_words_and_order() {
    let daemon = Daemon::start(2);
    let room = daemon.rooms[0].clone();
    for path in [daemon.v1("x"), daemon.v2("x")] {
        let illegal = (400, "M_UNKNOWN".into(), "x is not a legal room ID".into());
        assert_eq!(daemon.refused("DELETE", &path, Some(json!({}))), illegal);
        let flag = daemon.refused("DELETE", &path, Some(json!({"purge": null})));
        let text = "Param 'purge' must be a boolean, if given";
        assert_eq!(flag, (400, "M_BAD_JSON".into(), text.into()));
        let nothing = daemon.refused("DELETE", &path, None);
        assert_eq!(
            nothing,
            (400, "M_NOT_JSON".into(), "Content not JSON.".into())
        );
    }
    let foreign = json!({"new_room_user_id": "@a:elsewhere"});
    for path in [daemon.v1(&room), daemon.v2(&room)] {
        let text = "User must be our own: @a:elsewhere";
        assert_eq!(
            daemon.refused("DELETE", &path, Some(foreign.clone())),
            (400, "M_UNKNOWN".into(), text.into())
        );
    }
    let unknown = daemon.refused("GET", &daemon.v2("delete_status/abc"), None);
    let text = "delete id 'abc' not found";
    assert_eq!(unknown, (404, "M_NOT_FOUND".into(), text.into()));
    let none = daemon.refused("GET", &daemon.v2(&format!("{room}/delete_status")), None);
    let text = format!("No delete task for room_id '{room}' found");
    assert_eq!(none, (404, "M_NOT_FOUND".into(), text));
    let illegal = daemon.refused("GET", &daemon.v2("x/delete_status"), None);
    assert_eq!(illegal.2, "x is not a legal room ID");
    assert_eq!(
        daemon.site.tables().rows("rooms").len(),
        daemon.rooms.len(),
        "nothing went"
    );
}

#[test]
fn a_room_is_blocked_and_unblocked_known_or_not() {
    let daemon = Daemon::start(3);
    let path = daemon.v1("!nobody-knows:example.org/block");
    assert_eq!(daemon.ask("GET", &path, None).body, json!({"block": false}));
    for (block, answer) in [(true, true), (true, true), (false, false), (false, false)] {
        let reply = daemon.ask("PUT", &path, Some(json!({"block": block})));
        assert_eq!((reply.status, reply.body), (200, json!({"block": answer})));
    }
    let missing = daemon.refused("PUT", &path, Some(json!({})));
    let text = "Missing params: ['block']";
    assert_eq!(missing, (400, "M_MISSING_PARAM".into(), text.into()));
    let wrong = daemon.refused("PUT", &path, Some(json!({"block": 1})));
    let text = "Param 'block' must be a boolean.";
    assert_eq!(wrong, (400, "M_BAD_JSON".into(), text.into()));
    let illegal = daemon.refused("PUT", &daemon.v1("x/block"), Some(json!({"block": 1})));
    assert_eq!(illegal.2, "x is not a legal room ID");
}

#[test]
fn rooms_are_listed_in_pages_in_any_order() {
    let daemon = Daemon::start(4);
    let (first, count) = (&daemon.rooms[0], daemon.rooms.len());
    let ids = |body: &Value| -> Vec<String> {
        let rooms = body["rooms"].as_array().expect("a list");
        rooms
            .iter()
            .map(|room| room["room_id"].as_str().expect("an id").to_owned())
            .collect()
    };
    let list = |query: &str| {
        daemon
            .ask("GET", &format!("/_synapse/admin/v1/rooms{query}"), None)
            .body
    };
    let all = list("");
    assert_eq!(
        (&all["offset"], &all["total_rooms"]),
        (&json!(0), &json!(count))
    );
    assert_eq!(ids(&all), daemon.rooms);
    assert!(all.get("next_batch").is_none() && all.get("prev_batch").is_none());
    let mut backwards = daemon.rooms.clone();
    backwards.reverse();
    assert_eq!(ids(&list("?dir=b")), backwards);
    assert_eq!(ids(&list("?order_by=joined_local_members")), backwards);
    assert_eq!(
        ids(&list("?order_by=joined_local_members&dir=b")),
        daemon.rooms
    );
    let page = list("?limit=1&from=1");
    assert_eq!(ids(&page), daemon.rooms[1..2]);
    assert_eq!(page["prev_batch"], json!(0));
    assert_eq!(page.get("next_batch").is_some(), count > 2);
    assert_eq!(ids(&list("?empty_rooms=true")), std::slice::from_ref(first));
    assert_eq!(ids(&list("?empty_rooms=false")), daemon.rooms[1..]);
    assert_eq!(
        ids(&list(&format!("?search_term={first}"))),
        std::slice::from_ref(first)
    );
    let shown = &all["rooms"][0];
    assert_eq!(shown["name"], format!("N {first}"));
    assert_eq!(shown["joined_local_members"], 0);
    for wrong in [
        "?order_by=x",
        "?limit=x",
        "?from=-1",
        "?dir=x",
        "?empty_rooms=1",
        "?search_term=",
    ] {
        let (status, errcode, _) =
            daemon.refused("GET", &format!("/_synapse/admin/v1/rooms{wrong}"), None);
        assert_eq!(
            (status, errcode.as_str()),
            (400, "M_INVALID_PARAM"),
            "{wrong}"
        );
    }
    let one = daemon.ask("GET", &daemon.v1(first), None);
    assert_eq!((one.status, &one.body["room_id"]), (200, &json!(first)));
    assert_eq!(one.body["forgotten"], true);
    assert_eq!(
        daemon
            .ask("GET", &daemon.v1("!none:example.org"), None)
            .status,
        404
    );
    let members = daemon.ask("GET", &daemon.v1(&format!("{first}/members")), None);
    assert_eq!(members.body, json!({"members": [], "total": 0}));
    let key = daemon.ask("GET", "/_matrix/key/v2/server", None);
    assert_eq!(key.body["server_name"], daemon.site.server_name);
    let version = daemon.ask("GET", "/_synapse/admin/v1/server_version", None);
    assert!(
        version.body["server_version"]
            .as_str()
            .is_some_and(|v| v.contains("roomkeeper"))
    );
}

#[test]
fn scripts_send_what_they_like_in_paths_queries_and_content_types() {
    let daemon = Daemon::start(5);
    let room = &daemon.rooms[0];
    let body = r#"{"purge": true}"#;
    let request = format!(
        "DELETE /_synapse/admin/v2/rooms/{room}?access_token={TOKEN} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(&daemon.address).expect("connects");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let ids = daemon
        .keeper
        .delete_ids_by_room(&RoomId::new(room.as_str()))
        .expect("asked");
    daemon.keeper.wait(&ids[0]).expect("deleted");
    // The same room over the socket, by its encoded name, without a token.
    let local = Client::unix(daemon.site.directory().join("s"));
    let encoded = room.replace('!', "%21").replace(':', "%3A");
    let reply = local
        .request("DELETE", &daemon.v1(&encoded), Some(&json!({})))
        .expect("answered");
    assert_eq!((reply.status, reply.body), (200, nobody_moved()));
}

also_on_postgres! {
    a_room_is_deleted_at_once_or_as_a_job_and_the_answers_are_synapses,
    what_cannot_be_meant_is_refused_in_synapses_words_and_order,
    a_room_is_blocked_and_unblocked_known_or_not,
    rooms_are_listed_in_pages_in_any_order,
    scripts_send_what_they_like_in_paths_queries_and_content_types,
}

#[test]
fn a_set_of_rooms_is_planned_and_deleted_and_what_is_misspelt_is_refused() {
    let daemon = Daemon::start(7);
    let post = |body: Value| {
        daemon
            .client
            .post("/_roomkeeper/v1/sets", &body)
            .expect("answered")
    };
    for (body, status, errcode) in [
        (json!({"action": "delete_room"}), 400, "M_MISSING_PARAM"),
        (
            json!({"action": "delete_room", "selectors": {"not": ["empty"]}}),
            400,
            "M_INVALID_PARAM",
        ),
        (
            json!({"action": "delete_room", "selectors": {"only": ["emty"]}}),
            400,
            "M_INVALID_PARAM",
        ),
        (
            json!({"action": "delete_room", "selector": {"only": ["empty"]}}),
            400,
            "M_BAD_JSON",
        ),
        (
            json!({"action": "delete_room", "selectors": {"only": ["room=!none:x"]}}),
            400,
            "M_NOT_FOUND",
        ),
        (
            json!({"action": "purge_history", "all_rooms": true}),
            400,
            "M_BAD_JSON",
        ),
    ] {
        let reply = post(body.clone());
        assert_eq!(
            (reply.status, reply.body["errcode"].as_str()),
            (status, Some(errcode)),
            "{body}"
        );
    }
    let nobody = daemon.client.get("/_roomkeeper/v1/sets").expect("answered");
    assert_eq!(nobody.status, 405);
    let before = daemon.site.tables();
    let spared = &daemon.rooms[0];
    let mut body = json!({
        "action": "delete_room", "selectors": {"only": ["empty"], "not": [format!("room={spared}")]},
        "dry_run": true, "limit": 1,
    });
    let plan = post(body.clone());
    assert_eq!(plan.status, 200, "{:?}", plan.body);
    let others = daemon.rooms.len() - 1;
    assert_eq!(plan.body["totals"]["rooms"], others, "{:?}", plan.body);
    assert_eq!(
        plan.body["rooms"].as_array().map(Vec::len),
        Some(1.min(others))
    );
    assert_eq!(
        before.difference(&daemon.site.tables()),
        "",
        "a plan reads only"
    );
    body["dry_run"] = false.into();
    let started = post(body);
    assert_eq!(
        (started.status, &started.body["rooms"]),
        (200, &others.into()),
        "{:?}",
        started.body
    );
    let id = started.body["job_id"].as_str().expect("a job").to_owned();
    daemon.keeper.wait(&id.as_str().into()).expect("done");
    let job = daemon
        .client
        .get(&format!("/_roomkeeper/v1/jobs/{id}"))
        .expect("answered");
    assert_eq!((job.status, &job.body["state"]), (200, &"complete".into()));
    assert_eq!(job.body["progress"]["rooms_done"], others);
    assert_eq!(job.body["kind"], "room_set");
    assert!(
        job.body["rooms"]
            .as_str()
            .is_some_and(|words| words.contains("empty")),
        "{:?}",
        job.body
    );
    let left = daemon.site.tables();
    let left: Vec<&str> = left
        .rows("rooms")
        .iter()
        .map(|r| r.word("room_id"))
        .collect();
    assert_eq!(left, [spared.as_str()]);
}

#[test]
fn a_sweep_of_state_groups_is_planned_and_done_over_http_and_what_is_misspelt_does_nothing() {
    let daemon = Daemon::start(5);
    let path = "/_roomkeeper/v1/state/sweep";
    for wrong in [json!({"dry_rum": true}), json!({"dry_run": 1}), json!([])] {
        let (status, errcode, _) = daemon.refused("POST", path, Some(wrong.clone()));
        assert_eq!(status, 400, "{wrong}: {errcode}");
    }
    let before = daemon.site.tables();
    let plan = daemon.ask("POST", path, Some(json!({"dry_run": true})));
    assert_eq!(plan.status, 200, "{:?}", plan.body);
    assert_eq!(plan.body["indexes_by"], "integrity_check");
    let started = daemon.ask("POST", path, None);
    let id = started.body["job_id"].as_str().expect("an id").to_owned();
    let job = daemon.keeper.wait(&id.as_str().into()).expect("swept");
    assert_eq!(job.kind, "state_sweep");
    assert_eq!(job.progress["rows_removed"], plan.body["rows_removed"]);
    let told = daemon.ask("GET", &format!("/_roomkeeper/v1/jobs/{id}"), None);
    assert_eq!(told.body["server"], json!({}));
    assert_eq!(told.body["state"], "complete");
    let freed = plan.body["state_groups"].as_i64().expect("a number");
    let groups = |tables: &crate::support::tables::Tables| tables.rows("state_groups").len() as i64;
    assert_eq!(groups(&before) - groups(&daemon.site.tables()), freed);
}

#[test]
fn state_is_compressed_over_http_and_what_is_misspelt_does_nothing() {
    let daemon = Daemon::start(5);
    let path = "/_roomkeeper/v1/state/compress";
    for wrong in [
        json!({"dry_rum": true}),
        json!({"dry_run": 1}),
        json!({"selectors": {"only": ["emty"]}}),
        json!({"selectors": {"only": ["room=!nobody:example.org"]}}),
        json!([]),
    ] {
        let (status, errcode, _) = daemon.refused("POST", path, Some(wrong.clone()));
        assert_eq!(status, 400, "{wrong}: {errcode}");
    }
    let before = daemon.site.tables();
    let plan = daemon.ask("POST", path, Some(json!({"dry_run": true})));
    assert_eq!(plan.status, 200, "{:?}", plan.body);
    assert_eq!(plan.body["indexes_by"], "integrity_check");
    let started = daemon.ask("POST", path, None);
    let id = started.body["job_id"].as_str().expect("an id").to_owned();
    let job = daemon.keeper.wait(&id.as_str().into()).expect("compressed");
    assert_eq!(job.kind, "state_compress");
    for sum in [
        "groups_looked_at",
        "groups_changed",
        "state_rows_before",
        "state_rows_after",
    ] {
        assert!(plan.body[sum].is_i64(), "{sum}");
        assert_eq!(job.progress[sum], plan.body[sum], "{sum}");
    }
    let rows =
        |tables: &crate::support::tables::Tables| tables.rows("state_groups_state").len() as i64;
    let left = rows(&daemon.site.tables());
    let fewer = plan.body["state_rows_before"]
        .as_i64()
        .zip(plan.body["state_rows_after"].as_i64());
    assert_eq!(fewer.map(|(was, is)| was - is), Some(rows(&before) - left));
}

#[test]
fn a_repair_is_planned_and_done_over_http_and_what_is_misspelt_does_nothing() {
    let daemon = Daemon::start(5);
    let path = "/_roomkeeper/v1/repair";
    for wrong in [
        json!({"dry_rum": true}),
        json!({"dry_run": "yes"}),
        json!({"rules": "I-5"}),
        json!({"rules": ["I-55"]}),
        json!([]),
    ] {
        let (status, errcode, _) = daemon.refused("POST", path, Some(wrong.clone()));
        assert_eq!(status, 400, "{wrong}: {errcode}");
    }
    daemon.site.run(
        "INSERT INTO event_relations (event_id, relates_to_id, relation_type) VALUES ('$gone', '$x', 'm.y')",
    );
    let rules = json!({"rules": ["I-13"], "dry_run": true});
    let plan = daemon.ask("POST", path, Some(rules));
    assert_eq!(plan.status, 200, "{:?}", plan.body);
    assert_eq!(plan.body["items"][0]["told"][0]["about"], "$gone");
    let started = daemon.ask("POST", path, Some(json!({"rules": ["I-13"]})));
    let id = started.body["job_id"].as_str().expect("an id").to_owned();
    let job = daemon.keeper.wait(&id.as_str().into()).expect("mended");
    assert_eq!(job.kind, "repair");
    assert_eq!(job.progress["rows_removed"]["event_relations"], 1);
    let again = daemon.ask(
        "POST",
        path,
        Some(json!({"rules": ["I-13"], "dry_run": true})),
    );
    assert_eq!(again.body["items"], json!([]));
}

#[test]
fn archives_are_listed_verified_and_shredded_and_what_is_held_is_not() {
    let daemon = Daemon::start(seed());
    let room = daemon.rooms[0].clone();
    let path = "/_roomkeeper/v1/archives";
    assert_eq!(daemon.ask("GET", path, None).body["archives"], json!([]));
    let nobody = Client::tcp(&daemon.address, "another-token");
    let refused = nobody.request("GET", path, None).expect("answered");
    assert_eq!(refused.status, 401);
    let done = daemon.keeper.purge_room(&RoomId::new(&*room), true);
    let job = done.expect("deleted").id;
    let one = format!("{path}/{job}");
    let listed = daemon.ask("GET", path, None).body;
    let archive = daemon.ask("GET", &one, None);
    assert_eq!(
        (archive.status, &listed["archives"][0]),
        (200, &archive.body)
    );
    assert_eq!(archive.body["rooms"], json!([room]));
    for path in [format!("{path}/verify"), format!("{one}/verify")] {
        let verified = daemon.ask("GET", &path, None);
        assert_eq!(verified.status, 200, "{path}");
        let report = match verified.body.get("archives") {
            Some(all) => all[0].clone(),
            None => verified.body.clone(),
        };
        assert_eq!(report["damage"], json!([]), "{path}");
    }
    // A byte that was changed is found by reading all of it.
    let file = archive.body["file"].as_str().expect("a file");
    let whole = std::fs::read(file).expect("read");
    let mut damaged = whole.clone();
    let at = damaged.len() / 2;
    damaged[at] ^= 1;
    std::fs::write(file, &damaged).expect("written");
    let report = daemon.ask("GET", &format!("{one}/verify"), None).body;
    assert_ne!(report["damage"], json!([]));
    std::fs::write(file, &whole).expect("written");
    let restore = daemon.ask("POST", &format!("{one}/restore"), Some(json!({})));
    assert!(
        restore.status >= 400 && restore.status != 404,
        "{restore:?}"
    );
    assert!(
        restore.body["error"]
            .as_str()
            .expect("said")
            .contains("roomkeeper restore")
    );
    let hold = json!({"name": "case-7", "rooms": [room], "reason": "a court"});
    assert_eq!(
        daemon
            .ask("POST", "/_roomkeeper/v1/holds", Some(hold))
            .status,
        200
    );
    let held = daemon.ask("DELETE", &one, None);
    assert_eq!(
        (held.status, held.body["errcode"].as_str()),
        (409, Some("ROOMKEEPER_HELD"))
    );
    assert!(std::path::Path::new(file).is_file());
    let reason = json!({"reason": "lifted"});
    assert_eq!(
        daemon
            .ask("POST", "/_roomkeeper/v1/holds/case-7/release", Some(reason))
            .status,
        200
    );
    let shredded = daemon.ask("DELETE", &one, None);
    assert_eq!(
        (shredded.status, &shredded.body["shredded"]["job"]),
        (200, &json!(job))
    );
    assert!(!std::path::Path::new(file).exists());
    for (method, path) in [
        ("GET", one.clone()),
        ("DELETE", one),
        ("GET", format!("{path}/..%2Fhomeserver")),
    ] {
        assert_eq!(
            daemon.ask(method, &path, None).status,
            404,
            "{method} {path}"
        );
    }
    let receipts = daemon
        .ask("GET", &format!("/_roomkeeper/v1/receipts/{job}"), None)
        .body;
    let lines = receipts["receipts"].as_array().expect("a list").iter();
    let whats: Vec<Value> = lines
        .map(|entry| {
            serde_json::from_str::<Value>(entry["line"].as_str().expect("a line"))
                    .expect("JSON")["what"]
                    .clone()
        })
        .collect();
    assert_eq!(whats, [json!("purge_room"), json!("shred_archive")]);
}
