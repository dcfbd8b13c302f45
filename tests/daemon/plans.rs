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

/// Typed, over HTTP, and typed beside a daemon: a policy shows what it takes, takes that, and nothing where it may not.
#[test]
fn a_policy_is_planned_and_run_by_words_over_http_and_beside_a_daemon() {
    let home = Home::new(50, "");
    let a = sample::room_id("a");
    let policies = |after: &str, more: &str| {
        home.configure(
            &format!(
                "check_clock: off, policies: [{{name: old, what: room, start: last_message, after: {after}{more}}}]"
            ),
            "",
        );
    };
    let plan_of = |words: &[&str]| {
        let ran = home.run(words);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.json()["policies"][0].clone()
    };
    let events = home.events();

    // People are in it: it stays, whatever is typed.
    policies("30d", "");
    let plan = plan_of(&["retention", "plan", "--policy", "old", "--json"]);
    assert_eq!(plan["left_alone"][0]["reason"], "people_in_it", "{plan}");
    home.run(&["retention", "plan"]).assert_ended(0, "");
    home.run(&["retention", "run", "--yes"]).assert_ended(0, "");
    assert_eq!(home.events(), events);
    home.run(&["retention", "run", "--policy", "new"])
        .assert_ended(2, "there is no policy new; there are old");
    home.run(&["retention", "run", "--policy", "old", "--job", "1"])
        .assert_ended(2, "cannot be used with");

    // It says that people are moved out: the plan says so, a dry run takes nothing, a hold keeps it.
    policies("30d", ", even_with_members: true");
    let dry = plan_of(&["retention", "run", "--policy", "old", "--dry-run", "--json"]);
    assert_eq!(dry["rooms"][0]["room_id"], json!(a), "{dry}");
    assert_eq!(dry["people_to_move"], 1, "{dry}");
    assert_eq!(home.events(), events);
    let reason = ["--reason", "a matter"];
    let hold: Vec<&str> = ["hold", "add", "h", "--room", &a]
        .into_iter()
        .chain(reason)
        .collect();
    home.run(&hold).assert_ended(0, "");
    let plan = plan_of(&["retention", "plan", "--json"]);
    assert_eq!(plan["left_alone"][0]["reason"], "held", "{plan}");
    home.run(&["retention", "run", "--yes"]);
    assert_eq!(home.events(), events);
    let release: Vec<&str> = ["hold", "release", "h"].into_iter().chain(reason).collect();
    home.run(&release).assert_ended(0, "");

    // Over HTTP the same, and what is asked wrongly is told.
    let daemon = Daemon::start(&home);
    let client = daemon.client();
    let (plan, run) = ("/_roomkeeper/v1/plan", "/_roomkeeper/v1/retention");
    for (path, body, status) in [
        (plan, json!({"retention": {"policy": "new"}}), 400),
        (run, json!({"policy": "new"}), 400),
        (run, json!({"policy": 5}), 400),
        (run, json!({"policy": "old", "job": 1}), 400),
        (run, json!({"policy": "old", "plan": "rk1-any"}), 400),
    ] {
        let reply = client.post(path, &body).expect("answered");
        assert_eq!(reply.status, status, "{path} {body}: {}", reply.body);
    }
    let planned = client
        .post(plan, &json!({"retention": {}}))
        .expect("answered");
    assert_eq!(planned.body["policies"][0]["rooms"][0]["room_id"], json!(a));
    assert_eq!(home.events(), events);

    // Who cannot be moved out, because no key signs for this server, keeps the room whole. Typed beside the daemon: it does it.
    home.run(&["retention", "run", "--policy", "old", "--yes"])
        .assert_ended(1, "no signing key is configured");
    assert_eq!(home.events(), events);
    home.sql(
        "UPDATE local_current_membership SET membership = 'leave';
         UPDATE room_memberships SET membership = 'leave' WHERE user_id = '@local:example.org';
         UPDATE current_state_events SET membership = 'leave' WHERE state_key = '@local:example.org'",
    );
    home.run(&["retention", "run", "--policy", "old", "--yes"])
        .assert_ended(0, "");
    assert_eq!(home.events(), 0);
    let again = client
        .post(run, &json!({"policy": "old"}))
        .expect("answered");
    assert_eq!((again.status, &again.body["job_ids"]), (200, &json!([])));
    drop(daemon);
    home.assert_sound();
}
