//! Plans and runs over HTTP.

use roomkeeper::client::Client;
use roomkeeper::config::{Listen, Secret};
use roomkeeper::policy::{LifetimeRange, PurgeJob};
use roomkeeper::{JobId, Keeper, days, http};
use serde_json::json;

use crate::town::{Town, room};

const TOKEN: &str = "static-token-0123456789";

#[test]
fn plans_and_runs_are_asked_for_by_admins_and_a_plan_changes_nothing() {
    let town = Town::new(16, 40);
    let mut config = town.config();
    config.listen = vec![Listen::Tcp(([127, 0, 0, 1], 0).into())];
    config.admin_token = Some(Secret::new(TOKEN));
    config.retention.purge_jobs = vec![
        PurgeJob {
            interval: days(1),
            range: LifetimeRange {
                shortest: None,
                longest: Some(days(1)),
            },
        },
        PurgeJob {
            interval: days(1),
            range: LifetimeRange {
                shortest: Some(days(1)),
                longest: None,
            },
        },
    ];
    let keeper = Keeper::open(config).expect("opens");
    let server = http::serve(keeper.clone()).expect("serves");
    let address = server.addresses()[0].to_string();
    let client = Client::tcp(&address, TOKEN);
    let stranger = Client::tcp(&address, "some-other-token");
    let plan = "/_roomkeeper/v1/plan";
    let run = "/_roomkeeper/v1/retention";
    for path in [plan, run] {
        let reply = stranger
            .post(path, &json!({"retention": {}}))
            .expect("answers");
        assert_eq!(reply.status, 401, "{path}");
    }

    let reply = client
        .post(plan, &json!({"retention": {}}))
        .expect("answers");
    assert_eq!(reply.status, 200, "{}", reply.body);
    let plans = reply.body["plans"].as_array().expect("a list");
    assert_eq!(plans.len(), 2);
    assert_eq!(
        plans[0]["rooms"].as_array().map(Vec::len),
        Some(2),
        "rooms of a day"
    );
    assert_eq!(
        plans[1]["rooms"].as_array().map(Vec::len),
        Some(4),
        "rooms of 2 and 30 days"
    );
    let first = &plans[0]["rooms"][0];
    assert_eq!(first["room_id"], room(1));
    assert_eq!(
        (&first["source"], &first["lifetime"]),
        (&json!("room"), &json!(days(1).0))
    );
    assert!(
        first["token"]
            .as_str()
            .is_some_and(|token| token.starts_with('t'))
    );

    let exact = json!({"retention": {"job": 1, "exact": true}});
    let reply = client.post(plan, &exact).expect("answers");
    let exact = &reply.body["plans"][0]["rooms"][0];
    assert_eq!(exact["exact"]["events"], exact["events"]);
    assert!(exact["exact"]["content_bytes"].as_i64() > Some(0));
    assert!(exact["exact"]["state_groups"].as_i64() > Some(0));

    let purge = json!({"room_id": room(3), "purge_up_to_ts": town.config().clock.now().0, "delete_local_events": true});
    let reply = client.post(plan, &purge).expect("answers");
    assert_eq!(
        (reply.status, &reply.body["events_deleted"]),
        (200, &json!(36)),
        "{}",
        reply.body
    );
    for (wrong, status) in [
        (json!({}), 400),
        (json!({"retention": 5}), 400),
        (json!({"retention": {"job": 3}}), 404),
        (json!({"retention": {"longest_max_lifetime": "soon"}}), 400),
        (json!({"room_id": room(3)}), 400),
    ] {
        let reply = client.post(plan, &wrong).expect("answers");
        assert_eq!(reply.status, status, "{wrong}: {}", reply.body);
    }
    assert_eq!(town.ask("SELECT count(*) FROM events"), 16 * 40);

    let reply = client.post(run, &json!({"job": 1})).expect("answers");
    let id = JobId::from(reply.body["job_ids"][0].as_str().expect("an id"));
    let done = keeper.wait(&id).expect("done");
    assert_eq!(done.progress["rooms_purged"], 2);
    let shown = client
        .get(&format!("/_roomkeeper/v1/jobs/{}", id.as_str()))
        .expect("answers");
    assert_eq!(
        (&shown.body["kind"], &shown.body["state"]),
        (&json!("retention"), &json!("complete"))
    );
    server.stop();
    keeper.stop();
    town.assert_sound();
}

also_on_postgres! {
    plans_and_runs_are_asked_for_by_admins_and_a_plan_changes_nothing,
}
