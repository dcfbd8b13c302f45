//! Holds, as they are typed and asked for over HTTP.

use crate::home::{Daemon, Home, purge};
use crate::sample;

/// Holds, by the words that people type; alone, and beside a daemon that has the ledger.
#[test]
fn what_is_held_is_refused_with_3_and_a_release_frees_it() {
    let home = Home::new(300, "");
    let room = sample::room_id("a");
    for wrong in [
        &["hold", "add", "x", "--reason", "r"][..],
        &["hold", "add", "x", "--room", &room],
        &["hold", "add", "x y", "--room", &room, "--reason", "r"],
        &["hold", "add", "x", "--room", &room, "--reason", ""],
        &[
            "hold",
            "add",
            "x",
            "--room",
            &room,
            "--written",
            "--reason",
            "r",
        ],
        &["hold", "add", "x", "--user", "alice", "--reason", "r"],
        &[
            "hold",
            "add",
            "x",
            "--room",
            &room,
            "--reason",
            "r",
            "--from",
            "2026-02-30",
        ],
        &[
            "hold", "add", "x", "--room", &room, "--reason", "r", "--review", "90d",
        ],
    ] {
        assert_eq!(home.run(wrong).code, Some(2), "{wrong:?}");
    }
    assert!(home.run(&["hold", "list"]).out.contains("Nothing is held."));
    let add = [
        "hold", "add", "case-7", "--room", &room, "--reason", "a court", "--matter", "118",
    ];
    let laid = home.run(&add);
    assert_eq!((laid.code, laid.err.as_str()), (Some(0), ""));
    home.run(&add)
        .assert_ended(2, "there was a hold case-7 before");
    purge(&home, 200, &[]).assert_ended(3, "is held by case-7");
    purge(&home, 200, &["--dry-run"]).assert_ended(3, "is held by case-7");
    home.run(&["delete-room", &room, "--force-purge"])
        .assert_ended(3, "is held by case-7");
    assert!(home.run(&["hold", "list"]).out.contains("a court"));
    assert_eq!(home.events(), 301);
    {
        let daemon = Daemon::start(&home);
        purge(&home, 200, &[]).assert_ended(3, "is held by case-7");
        let path = format!("/_synapse/admin/v1/purge_history/{room}");
        let client = daemon.client();
        let up_to = serde_json::json!({"purge_up_to_token": sample::token(200), "delete_local_events": true});
        let deletes = serde_json::json!({"force_purge": true});
        for (method, path, body) in [
            ("POST", path.as_str(), &up_to),
            (
                "DELETE",
                &format!("/_synapse/admin/v1/rooms/{room}"),
                &deletes,
            ),
            (
                "DELETE",
                &format!("/_synapse/admin/v2/rooms/{room}"),
                &deletes,
            ),
        ] {
            let reply = client.request(method, path, Some(body)).expect("answered");
            let errcode = reply.body["errcode"].as_str();
            assert_eq!(
                (reply.status, errcode),
                (409, Some("ROOMKEEPER_HELD")),
                "{path}"
            );
        }
        let second = [
            "hold", "add", "case-8", "--room", &room, "--reason", "another",
        ];
        home.run(&second)
            .assert_ended(0, "counts from the next transaction on");
        let listed = client.get("/_roomkeeper/v1/holds").expect("answered").body;
        assert_eq!(
            listed["holds"].as_array().map(Vec::len),
            Some(2),
            "{listed}"
        );
        let wrong = client.post(
            "/_roomkeeper/v1/holds",
            &serde_json::json!({"name": "x", "room": room}),
        );
        assert_eq!(wrong.expect("answered").status, 400);
        let none = client.post(
            "/_roomkeeper/v1/holds/none/release",
            &serde_json::json!({"reason": "r"}),
        );
        assert_eq!(none.expect("answered").status, 404);
        let release = ["hold", "release", "case-7", "--reason", "lifted"];
        assert_eq!(home.run(&release).code, Some(0));
        home.run(&release)
            .assert_ended(1, "the hold case-7 is released already");
        purge(&home, 200, &[]).assert_ended(3, "is held by case-8");
        daemon.terminate();
    }
    assert_eq!(
        home.run(&["hold", "release", "case-8", "--reason", "lifted"])
            .code,
        Some(0)
    );
    assert_eq!(home.events(), 301);
    assert_eq!(purge(&home, 200, &[]).code, Some(0));
    assert!(home.events() < 301);
    home.assert_sound();
    assert_eq!(
        home.run(&["hold", "list", "--all", "--json"]).json()["holds"][0]["matter"],
        "118"
    );
}

also_on_postgres! {
    what_is_held_is_refused_with_3_and_a_release_frees_it,
}
