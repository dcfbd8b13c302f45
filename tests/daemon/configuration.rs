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

/// A configuration as a distribution or a deployment renders it, what is said with `-c`, and what would be used of it.
struct Rendered {
    name: &'static str,
    files: &'static [(&'static str, &'static str)],
    used: &'static [(&'static str, &'static str)],
}

/// A rendered file, under its name there.
macro_rules! rendered {
    ($name:literal, [$($file:literal),+]) => {
        &[$(($file, include_str!(concat!("../config/rendered/", $name, "/", $file)))),+]
    };
}

const RENDERED: &[Rendered] = &[
    Rendered {
        name: "Debian",
        files: rendered!(
            "debian",
            [
                "homeserver.yaml",
                "conf.d/server_name.yaml",
                "conf.d/report_stats.yaml"
            ]
        ),
        used: &[
            ("server_name", "matrix.example.org"),
            ("database", "/var/lib/matrix-synapse/homeserver.db"),
            (
                "it is looked for at",
                "/var/run/matrix-synapse.pid, [::1]:8008, 127.0.0.1:8008",
            ),
            ("retention", "not enabled"),
        ],
    },
    Rendered {
        name: "YunoHost",
        files: rendered!("yunohost", ["homeserver.yaml", "conf.d/server_name.yaml"]),
        used: &[
            ("server_name", "example.org"),
            ("database", "postgres://localhost/synapse"),
            ("retention", "not enabled"),
        ],
    },
    Rendered {
        name: "Docker",
        files: rendered!("docker", ["homeserver.yaml"]),
        used: &[
            ("server_name", "example.org"),
            ("database", "/data/homeserver.db"),
        ],
    },
    Rendered {
        name: "NixOS",
        files: rendered!("nixos", ["homeserver.yaml"]),
        used: &[
            ("server_name", "example.org"),
            ("access tokens", "looked up in the database"),
            ("database", "postgres:///matrix-synapse"),
            (
                "it is looked for at",
                "/run/matrix-synapse.pid, 127.0.0.1:8008, [::1]:8008",
            ),
        ],
    },
    Rendered {
        name: "ESS",
        files: rendered!("ess", ["homeserver.yaml"]),
        used: &[
            ("server_name", "example.org"),
            (
                "database",
                "postgres://ess-postgres.ess.svc.cluster.local/synapse",
            ),
            (
                "access tokens",
                "the authentication service at http://ess-matrix-authentication-service.ess.svc.cluster.local.:8080 is asked",
            ),
        ],
    },
    Rendered {
        name: "the ansible playbook",
        files: rendered!("ansible", ["homeserver.yaml"]),
        used: &[
            ("server_name", "example.org"),
            ("database", "postgres://matrix-postgres/synapse"),
            ("retention", "enabled, 2 jobs"),
            ("default max_lifetime", "365d"),
            (
                "it is looked for at",
                "/homeserver.pid, [::1]:8048, [::1]:8008, 127.0.0.1:9100",
            ),
        ],
    },
];

#[test]
fn configurations_as_they_are_rendered_elsewhere_are_read_as_they_stand() {
    for Rendered { name, files, used } in RENDERED {
        let directory = tempfile::tempdir().expect("a directory");
        let here = directory.path();
        std::fs::create_dir(here.join("conf.d")).expect("made");
        for (file, text) in *files {
            let text = text.replace("@HERE@", &here.display().to_string());
            std::fs::write(here.join(file), text).expect("written");
        }
        std::fs::write(here.join("mas_synapse_shared_secret"), "secret").expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_roomkeeper"));
        let command = command.args([
            "check-config",
            "--json",
            "-c",
            "homeserver.yaml",
            "-c",
            "conf.d",
        ]);
        let ran = command
            .current_dir(here)
            .env_clear()
            .output()
            .expect("runs");
        let said: Value = serde_json::from_slice(&ran.stdout).expect("JSON");
        assert_eq!(said["errors"], serde_json::json!([]), "{name}");
        assert!(ran.status.success(), "{name}: {said}");
        for (key, value) in *used {
            assert_eq!(said["used"][key], *value, "{name}: {key}: {said:#}");
        }
        assert!(
            !said.to_string().contains("password"),
            "{name}: a secret is told: {said}"
        );
    }
}
