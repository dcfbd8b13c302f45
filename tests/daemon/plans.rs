//! A plan that binds, as it is typed and asked for over HTTP: done as it was planned, or refused with nothing touched.

use serde_json::{Value, json};

use crate::home::{Daemon, Home, purge};
use crate::sample;

fn plan_of(home: &Home) -> String {
    let planned = purge(home, 200, &["--dry-run", "--json"]).json();
    planned["plan"].as_str().expect("a plan").to_owned()
}

/// One that would have gone does not go any more, by where it lies.
fn drift(home: &Home, number: i64) {
    let event = sample::event_id("a", number);
    home.sql(&format!(
        "UPDATE events SET topological_ordering = 260 WHERE event_id = '{event}'"
    ));
}

#[test]
fn a_plan_that_drifted_ends_with_3_and_one_that_did_not_is_carried_out() {
    let home = Home::new(300, "");
    let old = plan_of(&home);
    drift(&home, 100);
    let before = home.events();
    purge(&home, 200, &["--plan", &old]).assert_ended(3, "is not what was planned any more");
    let refused = purge(&home, 200, &["--plan", &old, "--json"]);
    assert_eq!(refused.code, Some(3));
    assert_eq!(refused.json()["errcode"], "ROOMKEEPER_PLAN_DRIFTED");
    purge(&home, 200, &["--plan", "rk1-any"]).assert_ended(2, "a plan is the word behind");
    purge(&home, 200, &["--plan", &old, "--dry-run"]).assert_ended(2, "cannot be used with");
    assert_eq!(home.events(), before);
    let jobs = home.run(&["jobs", "--json"]).json();
    assert_eq!(jobs["jobs"].as_array().map(Vec::len), Some(0), "{jobs}");
    let job = purge(&home, 200, &["--plan", &plan_of(&home), "--json"]);
    assert_eq!(job.code, Some(0), "{job:?}");
    assert!(home.events() < before);
    let job = job.json()["id"].as_str().expect("an id").to_owned();
    // What it was bound to stands in its receipt.
    let receipt = home.run(&["receipts", "show", &job]).json();
    assert_eq!(receipt["plan"], home.job()["params"]["plan"]);
    assert!(receipt["plan"].is_string(), "{receipt}");
}

#[test]
fn over_http_a_plan_that_drifted_is_409_and_nothing_is_touched() {
    let home = Home::new(300, "");
    let daemon = Daemon::start(&home);
    let client = daemon.client();
    let path = format!(
        "/_synapse/admin/v1/purge_history/{}",
        sample::room_id("a").replace('!', "%21")
    );
    let purge_as = |plan: &Value| {
        let body = json!({"purge_up_to_token": sample::token(200), "plan": plan});
        client.post(&path, &body).expect("answered")
    };
    let old = json!(plan_of(&home));
    let before = home.events();
    drift(&home, 100);
    let reply = purge_as(&old);
    let errcode = reply.body["errcode"].as_str();
    assert_eq!(
        (reply.status, errcode),
        (409, Some("ROOMKEEPER_PLAN_DRIFTED"))
    );
    for wrong in [json!("rk1-any"), json!(5)] {
        assert_eq!(purge_as(&wrong).status, 400, "{wrong}");
    }
    // The same words at a terminal ask the daemon, and end as they do without one.
    let plan = old.as_str().expect("a plan");
    purge(&home, 200, &["--plan", plan]).assert_ended(3, "is not what was planned any more");
    assert_eq!(home.events(), before);
    let jobs = client.get("/_roomkeeper/v1/jobs").expect("answered").body;
    assert_eq!(jobs["jobs"].as_array().map(Vec::len), Some(0), "{jobs}");
    let reply = purge_as(&json!(plan_of(&home)));
    assert_eq!(reply.status, 200, "{:?}", reply.body);
    daemon.wait_until_complete(reply.body["purge_id"].as_str().expect("an id"));
    assert!(home.events() < before);
}
