//! What people do wrong, what they are told, and how the program ends: one table, printed and checked.
//! `cargo test --test daemon mistakes -- --nocapture` shows it.

use crate::home::Home;
use crate::sample;
use crate::support::engine::{self, Engine};

/// What was typed after `roomkeeper -c homeserver.yaml`, how it ends, and what is said.
type Mistake<'a> = (&'a [&'a str], i32, &'a str);

#[test]
fn every_mistake_is_told_as_what_it_is() {
    let home = Home::new(50, "");
    if engine::current() == Engine::Postgres {
        return;
    }
    home.sql("INSERT INTO room_aliases (room_alias, room_id) VALUES ('#a:example.org', '!a:example.org')");
    home.sql("UPDATE events SET received_ts = 1700000000000 + stream_ordering");
    let room = sample::room_id("a");
    let room = room.as_str();
    let events = home.events();
    let table: &[Mistake<'_>] = &[
        // Which room.
        (
            &[
                "purge-history",
                "!unknown:example.org",
                "--older-than",
                "1d",
            ],
            1,
            "this server knows no room !unknown:example.org",
        ),
        (
            &["purge-history", "#none:example.org", "--older-than", "1d"],
            1,
            "no room here has the alias #none:example.org",
        ),
        (
            &["purge-history", "a:example.org", "--older-than", "1d"],
            2,
            "'a:example.org' is no room: say its id",
        ),
        (
            &["purge-history", "", "--older-than", "1d"],
            2,
            "is no room",
        ),
        (&["messages", "!unknown:example.org"], 1, "knows no room"),
        (&["messages", "general"], 2, "'general' is no room"),
        (
            &["delete-room", "#none:example.org", "--dry-run"],
            1,
            "no room here has the alias",
        ),
        (&["delete-room", "general", "--dry-run"], 2, "is no room"),
        (&["block", "general"], 2, "is no room"),
        // Up to when.
        (
            &["purge-history", room, "--before", "90"],
            2,
            "90 of what? Say a date such as 2026-01-01",
        ),
        (
            &["purge-history", room, "--before", "yesterday"],
            2,
            "'yesterday' is no time",
        ),
        (
            &["purge-history", room, "--before", "2026-02-30"],
            2,
            "is no time",
        ),
        (&["purge-history", room, "--before", "-3d"], 2, ""),
        (
            &["purge-history", room, "--older-than", "90 days"],
            2,
            "is not a duration",
        ),
        (
            &["purge-history", room, "--before-token", "s5"],
            2,
            "Invalid room stream token 's5'",
        ),
        (
            &["purge-history", room, "--before-event", "$none"],
            1,
            "Could not find event $none",
        ),
        (&["purge-history", room], 2, "required"),
        (
            &[
                "purge-history",
                room,
                "--before",
                "90d",
                "--older-than",
                "90d",
            ],
            2,
            "cannot be used with",
        ),
        (
            &["purge-history", room, "--before", "1700000000"],
            2,
            "If seconds since 1970 are meant, say 2023-11-14T22:13:20Z",
        ),
        (
            &["purge-history", room, "--before-ts", "1700000000"],
            2,
            "Seconds? then say 1700000000000",
        ),
        // Looking into a room.
        (
            &["messages", room, "--from", "soon"],
            2,
            "'soon' is not a pagination token, and no time either",
        ),
        (&["messages", room, "--to", "90"], 2, "90 of what?"),
        (
            &["messages", room, "--as", "bob"],
            2,
            "'bob' is no user: say the whole id",
        ),
        (&["messages", room, "--from", "1971-01-01"], 0, ""),
        (&["messages", room, "--to", "90d", "--dir", "f"], 0, ""),
        // A room that is misspelt.
        (
            &["block", "!typo"],
            2,
            "is not a legal room ID, and no such room is known here",
        ),
        (
            &["state", "compress", "--room", "!unknown:example.org"],
            2,
            "this server knows no room !unknown:example.org",
        ),
        (
            &["rooms", "--room", "#none:example.org"],
            2,
            "no room here has the alias #none:example.org",
        ),
        (
            &["jobs", "--kind", "purge"],
            2,
            "no job is of the kind 'purge': say purge_history",
        ),
        (&["jobs", "--kind", "purge-history,retention"], 0, ""),
        // Nothing to do is no mistake.
        (&["purge-history", room, "--before", "1971-01-01"], 0, ""),
        (&["purge-history", room, "--before-ts", "1"], 0, ""),
        (&["purge-history", room, "--before-ts", "-1"], 0, ""),
        (
            &[
                "purge-history",
                "#a:example.org",
                "--before",
                "1971-01-01",
                "--dry-run",
            ],
            0,
            "",
        ),
        // What is held, archived, proved, mended.
        (&["hold", "add", "court"], 2, ""),
        (&["hold", "add", "court", "--room", room], 2, "--reason"),
        (
            &["hold", "release", "nothing", "--reason", "over"],
            1,
            "nothing",
        ),
        (&["restore", "nothing"], 2, "no archives are kept"),
        (&["archives", "shred", "nothing"], 2, "no archives are kept"),
        (&["receipts", "show", "nothing"], 1, "nothing"),
        (&["receipts", "proof", "nothing"], 1, "nothing"),
        (
            &["receipts", "forget", "nothing", "--reason", "asked for"],
            1,
            "nothing",
        ),
        (&["repair", "I-99"], 2, "I-99"),
        (&["state", "sweep", "now"], 2, "unexpected argument"),
        (&["rooms", "--larger-than", "big"], 2, "big"),
        (&["rooms", "--inactive", "365"], 2, "365"),
        (&["delete-room", "--empty", room], 2, "say one of the two"),
        (&["delete-room"], 2, "say which room"),
        (&["jobs", "--state", "odd"], 2, "odd"),
        (&["jobs", "--since", "soon"], 2, "soon"),
        (
            &["purge-history", room, "--before", "90d", "--plan", "x"],
            2,
            "plan",
        ),
        // Other words.
        (&["explode"], 2, "unrecognized subcommand"),
        (
            &["jobs", "--cancel", "nothing"],
            1,
            "no job nothing is known",
        ),
    ];
    let mut wrong = Vec::new();
    println!("{:4}  {:70}  sentence", "exit", "roomkeeper …");
    for (words, code, says) in table {
        let ran = home.run(words);
        let first = ran.err.lines().chain(ran.out.lines()).next().unwrap_or("");
        println!(
            "{:4}  {:70}  {first}",
            ran.code.unwrap_or(-1),
            words.join(" ")
        );
        let is_said = ran.err.contains(says) && (*code == 0 || !ran.err.is_empty());
        // Once, in one sentence; clap's own say how to go on.
        let is_once = ran.err.matches("roomkeeper: ").count() <= 1;
        if ran.code != Some(*code) || !is_said || !is_once {
            wrong.push(format!("{words:?}: {ran:?}, and not {code} {says:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(home.events(), events, "nothing went");
    home.assert_sound();
    // A time is a place in the room, both ways: just after its last event that was received before.
    let page = |words: &[&str]| {
        let mut all = vec!["messages", room, "--json", "--limit", "1000"];
        all.extend(words);
        let ran = home.run(&all);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.out
            .lines()
            .filter(|line| line.contains("event_id"))
            .count()
    };
    let time = "2023-11-14T22:13:20.015Z";
    let (before, all) = (page(&["--from", time]), page(&[]));
    assert!(before > 5 && before < all, "{before} of {all}");
    assert_eq!(page(&["--dir", "f", "--to", time]), before);
    assert_eq!(page(&["--dir", "f", "--from", time]), all - before);
    assert_eq!(page(&["--to", time]), all - before);
    assert_eq!(
        (page(&["--from", "2020-01-01"]), page(&["--from", "0d"])),
        (0, all)
    );
    home.sql("INSERT INTO rooms (room_id, is_public, creator) VALUES ('!new:example.org', FALSE, '@a:example.org')");
    let words = ["purge-history", "!new:example.org", "--before", "90d"];
    let nothing = home.run(&words);
    assert_eq!(nothing.code, Some(0), "{nothing:?}");
    assert!(
        nothing.out.contains("nothing in it is that old"),
        "{nothing:?}"
    );
    let nothing = home.run(&[&words[..], &["--json"]].concat());
    assert_eq!(nothing.json()["events_deleted"], 0);
}

#[test]
fn a_room_is_found_by_its_alias_and_a_cut_is_an_event_of_somebody() {
    let home = Home::new(50, "");
    if engine::current() == Engine::Postgres {
        return;
    }
    home.sql("INSERT INTO room_aliases (room_alias, room_id) VALUES ('#a:example.org', '!a:example.org')");
    let alias = "#a:example.org";
    let page = home.run(&["messages", alias, "--limit", "1", "--json"]);
    assert_eq!(page.code, Some(0), "{page:?}");
    let token = sample::token(20);
    let plan = home.run(&[
        "purge-history",
        alias,
        "--before-token",
        &token,
        "--dry-run",
    ]);
    assert_eq!(plan.code, Some(0), "{plan:?}");
    let event = sample::event_id("a", 20);
    assert!(
        plan.out.contains(&format!("up to the event {event} by @")),
        "{plan:?}"
    );
    assert!(plan.out.contains(" UTC would remove"), "{plan:?}");
    let typo = home.run(&["block", "!typo:example.org"]);
    assert_eq!(typo.code, Some(0));
    assert!(
        typo.out.contains("is blocked") && typo.out.contains("not known here"),
        "{typo:?}"
    );
    let known = home.run(&["block", alias]);
    assert!(!known.out.contains("not known here"), "{known:?}");
    let one = home.run(&[
        "purge-history",
        alias,
        "--before-token",
        &sample::token(3),
        "--delete-local-events",
    ]);
    assert_eq!(one.code, Some(0), "{one:?}");
    assert!(
        !format!("{} {}", one.out, one.err).contains("1 events"),
        "{one:?}"
    );
}

/// Runs the program at a terminal of its own, where somebody types this.
fn at_a_terminal(home: &Home, words: &[&str], typed: &str) -> Option<(Option<i32>, String)> {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let line = format!(
        "{} -c homeserver.yaml {}",
        env!("CARGO_BIN_EXE_roomkeeper"),
        quoted.join(" ")
    );
    let mut child = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .current_dir(home.path(""))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    child.stdin.take()?.write_all(typed.as_bytes()).ok()?;
    let output = child.wait_with_output().ok()?;
    Some((
        output.status.code(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    ))
}

#[test]
fn somebody_at_a_terminal_is_asked_before_anything_is_destroyed() {
    let home = Home::new(50, "");
    if engine::current() == Engine::Postgres {
        return;
    }
    let (room, token) = (sample::room_id("a"), sample::token(20));
    let purge = [
        "purge-history",
        &room,
        "--before-token",
        &token,
        "--delete-local-events",
    ];
    let delete = ["delete-room", &room, "--force-purge"];
    let events = home.events();
    for words in [&purge[..], &delete] {
        for answer in ["n\n", "\n", "maybe\n"] {
            let Some((code, said)) = at_a_terminal(&home, words, answer) else {
                let why = "there is no `script` to make a terminal with";
                assert!(std::env::var_os("ROOMKEEPER_CI").is_none(), "{why}");
                eprintln!("NOT TESTED: {why}");
                return;
            };
            assert_eq!(code, Some(130), "{said}");
            assert!(said.contains("[y/N]") && said.contains(&room), "{said}");
            assert_eq!(home.events(), events, "nothing went");
        }
    }
    // A dry run destroys nothing, and who says so beforehand is not asked.
    let mut dry = purge.to_vec();
    dry.push("--dry-run");
    let (code, said) = at_a_terminal(&home, &dry, "").expect("a terminal");
    assert!(code == Some(0) && !said.contains("[y/N]"), "{said}");
    let (code, said) = at_a_terminal(&home, &purge, "y\n").expect("a terminal");
    assert_eq!(code, Some(0), "{said}");
    assert!(home.events() < events);
    let mut meant = delete.to_vec();
    meant.push("--yes");
    let (code, said) = at_a_terminal(&home, &meant, "").expect("a terminal");
    assert!(code == Some(0) && !said.contains("[y/N]"), "{said}");
    assert_eq!(home.events(), 0);
}

#[test]
fn a_configuration_is_checked_as_a_whole() {
    let home = Home::new(10, "");
    let sound = home.run(&["check-config"]);
    assert_eq!(sound.code, Some(0), "{sound:?}");
    for says in [
        "read: homeserver.yaml",
        "server_name",
        "example.org",
        "workers",
        "4",
    ] {
        assert!(sound.out.contains(says), "{says}: {}", sound.out);
    }
    let json = home.run(&["check-config", "--json"]).json();
    assert_eq!(json["used"]["server_name"], "example.org");
    let text = std::fs::read_to_string(home.path("homeserver.yaml")).expect("reads");
    let text = text.replace(
        "roomkeeper: {",
        "roomkeper: {workers: 3}\nroomkeeper: {workers: 0, lisen: [], ",
    );
    std::fs::write(
        home.path("homeserver.yaml"),
        format!("{text}retention: {{purge_jobs: [{{}}]}}\n"),
    )
    .expect("writes");
    let broken = home.run(&["check-config"]);
    assert_eq!(broken.code, Some(2), "{broken:?}");
    for says in [
        "wrong: homeserver.yaml:3: the block \"roomkeper\"",
        "wrong: homeserver.yaml:4: roomkeeper.workers is 0",
        "wrong: homeserver.yaml:4: roomkeeper.lisen is not a key",
        "'interval' key",
        "4 mistakes; nothing would be used.",
    ] {
        assert!(broken.out.contains(says), "{says}: {}", broken.out);
    }
    let json = home.run(&["check-config", "--json"]);
    assert_eq!(json.code, Some(2));
    assert_eq!(json.json()["errors"].as_array().map(Vec::len), Some(4));
    // What a connection would refuse is refused here, without one.
    for (args, says) in [
        ("service: main", "database.args.service is not supported"),
        ("dsn: 'dbname=x'", "database.args.dsn is not supported"),
        (
            "target_session_attrs: any-thing",
            "target_session_attrs should be one of any,",
        ),
        ("port: none", "database.args.port"),
        ("sslmode: perhaps", "sslmode"),
        ("frobnicate: 1", "frobnicate"),
    ] {
        let text = format!(
            "server_name: example.org\ndatabase: {{name: psycopg2, args: {{user: u, database: d, host: db.invalid, {args}}}}}\n"
        );
        std::fs::write(home.path("homeserver.yaml"), text).expect("writes");
        let ran = home.run(&["check-config"]);
        assert_eq!(ran.code, Some(2), "{args}: {ran:?}");
        assert!(
            ran.out.contains("wrong: ") && ran.out.contains(says),
            "{args}: {}",
            ran.out
        );
    }
}

#[test]
fn a_schema_that_declares_itself_compatible_is_worked_on() {
    let home = Home::new(50, "");
    home.sql("UPDATE schema_version SET version = 95");
    let room = sample::room_id("a");
    let done = home.run(&[
        "purge-history",
        &room,
        "--before-token",
        &sample::token(20),
        "--delete-local-events",
    ]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(home.run(&["check"]).code, Some(0));
    home.sql("UPDATE schema_compat_version SET compat_version = 95");
    home.run(&["check"])
        .assert_ended(3, "use a newer roomkeeper");
}

#[test]
fn shells_and_the_manual_know_every_command() {
    let home = Home::new(5, "");
    for shell in ["bash", "zsh", "fish"] {
        let said = home.run(&["completions", shell]);
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(said.out.contains("purge-history"), "{shell}");
    }
    let directory = home.path("man");
    std::fs::create_dir(&directory).expect("made");
    let made = home.run(&["man", "man"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    for page in [
        "roomkeeper.1",
        "roomkeeper-purge-history.1",
        "roomkeeper-check-config.1",
    ] {
        let text = std::fs::read_to_string(directory.join(page)).expect(page);
        assert!(text.contains(".TH"), "{page}");
    }
    let manual = std::fs::read_to_string(directory.join("roomkeeper.1")).expect("reads");
    assert!(manual.contains("Exit codes") && manual.contains("ROOMKEEPER_LOG"));
}
