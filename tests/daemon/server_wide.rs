//! Commands about the whole server: what is of no use is swept, what is wrong is mended, alone and by a daemon.

use std::process::Command;

use crate::home::{Daemon, Home, Ran};
use crate::sample;

/// State that no event has, and rows that nobody reads any more.
fn litter(home: &Home) {
    let room = sample::room_id("a");
    for sql in [
        format!("INSERT INTO state_groups (id, room_id, event_id) VALUES (70000, '{room}', '$x')"),
        format!(
            "INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id)
             SELECT 70000, '{room}', 'm.room.create', '', min(event_id) FROM state_events WHERE type = 'm.room.create'"
        ),
    ] {
        home.sql(&sql);
    }
}

fn wrong(home: &Home) {
    home.sql(
        "INSERT INTO event_relations (event_id, relates_to_id, relation_type) VALUES ('$gone', '$x', 'm.y')",
    );
}

#[test]
fn a_sweep_is_planned_asked_about_and_done_on_the_command_line() {
    let home = Home::new(60, "");
    litter(&home);
    let planned = home.run(&["state", "sweep", "--dry-run"]);
    assert_eq!(planned.code, Some(0), "{planned:?}");
    assert!(
        planned.out.contains("would remove 1 state group of"),
        "{planned:?}"
    );
    assert!(
        planned.out.ends_with("Nothing was changed.\n"),
        "{planned:?}"
    );
    let planned = home.run(&["--json", "state", "sweep", "--dry-run"]).json();
    assert_eq!(planned["state_groups"], 1);
    let swept = home.run(&["state", "sweep"]);
    assert_eq!(swept.code, Some(0), "{swept:?}");
    assert!(
        swept.out.contains("the sweep of state groups is complete"),
        "{swept:?}"
    );
    assert!(swept.out.contains("1 state group freed"), "{swept:?}");
    home.assert_sound();
    litter(&home);
    let daemon = Daemon::start(&home);
    let swept = home.run(&["--json", "state", "sweep"]);
    assert_eq!(swept.code, Some(0), "{swept:?}");
    let job = swept.json();
    assert_eq!(
        job["progress"]["rows_removed"]["state_groups_state"], 1,
        "{job}"
    );
    assert_eq!(job["server"], serde_json::json!({}));
    daemon.terminate();
    home.assert_sound();
}

#[test]
fn what_a_check_finds_is_mended_on_the_command_line_and_what_cannot_be_ends_with_1() {
    let home = Home::new(60, "");
    wrong(&home);
    let found = home.run(&["check"]);
    assert_eq!(found.code, Some(1), "{found:?}");
    assert!(
        found.err.contains("roomkeeper repair --dry-run"),
        "{found:?}"
    );
    let planned = home.run(&["repair", "--dry-run"]);
    assert_eq!(planned.code, Some(0), "{planned:?}");
    assert!(
        planned
            .out
            .contains("I-13  1 row of event_relations would go"),
        "{planned:?}"
    );
    assert!(planned.out.contains("$gone"), "{planned:?}");
    assert_eq!(home.run(&["check"]).code, Some(1), "a plan mends nothing");
    let other = home.run(&["repair", "I-5"]);
    assert_eq!(other.code, Some(1), "{other:?}");
    assert!(other.out.contains("I-13 is still broken"), "{other:?}");
    home.run(&["repair", "I-77"])
        .assert_ended(2, "there are I-1");
    let mended = home.run(&["repair"]);
    assert_eq!(mended.code, Some(0), "{mended:?}");
    assert!(mended.out.contains("1 row mended"), "{mended:?}");
    assert!(
        mended.out.contains("checked again: every invariant holds"),
        "{mended:?}"
    );
    home.assert_sound();
    let again = home.run(&["repair"]);
    assert!(again.out.contains("nothing was changed"), "{again:?}");
    home.sql("DELETE FROM event_json WHERE event_id = '$a30'");
    let left = home.run(&["repair"]);
    assert_eq!(left.code, Some(1), "{left:?}");
    assert!(
        left.out
            .contains("I-2 is still broken by 1 row, such as $a30"),
        "{left:?}"
    );
}

#[test]
fn a_daemon_that_is_at_work_mends() {
    let home = Home::new(60, "");
    wrong(&home);
    let daemon = Daemon::start(&home);
    let mended = home.run(&["repair", "i-13"]);
    assert_eq!(mended.code, Some(0), "{mended:?}");
    assert!(mended.err.contains("a daemon"), "{mended:?}");
    assert!(mended.out.contains("1 row mended"), "{mended:?}");
    let jobs = home.run(&["jobs"]);
    assert!(jobs.out.contains("repair"), "{jobs:?}");
    daemon.terminate();
    home.assert_sound();
}

#[test]
fn the_demo_is_killed_goes_on_undoes_deletes_and_all_is_well() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roomkeeper"));
    let shown = Ran::of(command.arg("demo").output().expect("runs"));
    assert_eq!(shown.code, Some(0), "{shown:?}");
    for words in [
        "To do this and nothing else: --plan ",
        "\nKilled (SIGKILL) after ",
        "\npurge_history of room !garden:example.org is complete\n",
        "1037 events of !garden:example.org are back.",
        "\nshutdown_and_purge_room of room !workshop:example.org is complete\n",
        " are as they were written.",
        "\n  !garden:example.org     1205   168  1205\n  !workshop:example.org   1205  1205     0\n",
        "$ roomkeeper check\nevery invariant holds\n",
    ] {
        assert!(shown.out.contains(words), "{words} in {}", shown.out);
    }
}
