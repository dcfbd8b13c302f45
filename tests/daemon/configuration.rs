//! How the program is told where everything is: by `-c`, by `--database`, by both.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::home::{Home, Ran};
use crate::sample;
use crate::support::engine::{self, Engine};

/// The program in a home, with words of our own in place of its configuration.
fn run(home: &Home, words: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roomkeeper"));
    let command = command.args(words).current_dir(home.path("")).env_clear();
    Ran::of(command.stdin(Stdio::null()).output().expect("runs"))
}

#[test]
fn a_copy_beside_the_configuration_never_reaches_the_live_server() {
    if engine::current() == Engine::Postgres {
        return;
    }
    let room = sample::room_id("a");
    // Whatever asks this homeserver, or looks whether it runs, connects here.
    let homeserver = TcpListener::bind("127.0.0.1:0").expect("binds");
    homeserver.set_nonblocking(true).expect("set");
    let address = homeserver.local_addr().expect("bound");
    let home = Home::new(300, "");
    home.write_secret("token", "syt_live\n");
    std::fs::copy(home.database(), home.path("copy.db")).expect("copied");
    std::fs::write(home.path("hs.pid"), std::process::id().to_string()).expect("writes");
    home.configure(
        &format!(
            "ledger: live.ledger, listen: ['unix:live.sock'], homeserver: {{running: beside, url: 'http://{address}', \
             admin_token_path: token}}"
        ),
        &format!(
            "pid_file: '{}'\nlisteners: [{{port: {}, bind_addresses: ['127.0.0.1']}}]",
            home.path("hs.pid").display(),
            address.port()
        ),
    );
    let on_copy = |words: &[&str]| {
        let mut all = vec!["-c", "homeserver.yaml", "--database", "copy.db"];
        all.extend_from_slice(words);
        run(&home, &all)
    };
    let live = std::fs::read(home.database()).expect("reads");
    for words in [
        &["check"][..],
        &[
            "purge-history",
            &room,
            "--before-token",
            "t100-0",
            "--delete-local-events",
        ],
        &["block", &room],
        &["delete-room", &room, "--force-purge", "--dry-run"],
        &["delete-room", &room, "--force-purge"],
        &["reclaim"],
        &["jobs"],
    ] {
        let ran = on_copy(words);
        assert_eq!(ran.code, Some(0), "{words:?}: {ran:?}");
    }
    assert!(homeserver.accept().is_err(), "nobody asked the live server");
    assert!(
        !home.path("live.ledger").exists(),
        "the live ledger is not touched"
    );
    assert!(!home.path("homeserver.db.roomkeeper").exists());
    assert!(home.path("copy.db.roomkeeper").exists());
    assert_eq!(
        std::fs::read(home.database()).expect("reads"),
        live,
        "the live database is as it was"
    );
    let jobs = on_copy(&["jobs", "--json"]).json();
    assert_eq!(jobs["jobs"].as_array().map(Vec::len), Some(2), "{jobs}");
}

#[test]
fn a_database_needs_a_name_and_a_configuration_has_one() {
    let home = Home::new(10, "");
    let words = ["--database", "homeserver.db", "check"];
    run(&home, &words).assert_ended(2, "--server-name NAME, or -c");
    run(&home, &["check"]).assert_ended(2, "say which database");
    std::fs::create_dir(home.path("conf.d")).expect("made");
    run(&home, &["-c", "conf.d", "check"]).assert_ended(2, "ends in .yaml");
    std::fs::copy(home.path("homeserver.yaml"), home.path("conf.d/a.yaml")).expect("copied");
    let checked = run(&home, &["-c", "conf.d", "check"]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
}

#[test]
fn a_token_that_everybody_can_read_is_refused_and_a_group_may() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new(10, "admin_token_path: token");
    let set = |name: &str, mode| {
        std::fs::set_permissions(home.path(name), std::fs::Permissions::from_mode(mode))
            .expect("set");
    };
    home.write_secret("token", "StaticSecret0123456789\n");
    set("", 0o755);
    for (mode, code) in [(0o644, 2), (0o604, 2), (0o640, 0), (0o600, 0)] {
        set("token", mode);
        let ran = home.run(&["check"]);
        assert_eq!(ran.code, Some(code), "{mode:o}: {ran:?}");
        assert_eq!(ran.err.contains("chmod 640"), code == 2, "{ran:?}");
        assert!(!ran.err.contains("StaticSecret"), "{ran:?}");
    }
}

#[test]
fn what_works_and_should_be_looked_at_is_said_once_and_leaves_the_answer_alone() {
    let home = Home::new(10, "keep_jobs: 5d");
    let text = std::fs::read_to_string(home.path("homeserver.yaml")).expect("reads");
    std::fs::write(
        home.path("homeserver.yaml"),
        format!("report_stats: no\n{text}report_stats: yes\n"),
    )
    .expect("writes");
    let ran = home.run(&["jobs", "--json"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(ran.json()["jobs"], Value::Array(Vec::new()));
    let said = ran
        .err
        .matches("the key \"report_stats\" stands here again")
        .count();
    assert_eq!(said, 1, "{ran:?}");
}
