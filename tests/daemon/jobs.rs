//! `jobs` as people read it: headers, times, who, which ones, watching; and what `--quiet` leaves out.

use serde_json::Value;

use crate::home::{Daemon, Home, purge};
use crate::sample;

/// A purge that ends well, and one that cannot.
fn one_of_each(home: &Home) {
    assert_eq!(purge(home, 200, &[]).code, Some(0));
    assert_eq!(purge(home, 400, &[]).code, Some(1), "above every event");
}

fn lines(home: &Home, words: &[&str]) -> Vec<String> {
    let ran = home.run(words);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran.out.lines().map(str::to_owned).collect()
}

#[test]
fn every_job_has_a_line_under_headers_and_why_it_failed_beneath() {
    let home = Home::new(300, "");
    assert_eq!(lines(&home, &["jobs"]), ["no jobs on record"]);
    one_of_each(&home);
    let records = home.run(&["jobs", "--json"]).json();
    let listed = lines(&home, &["jobs"]);
    assert_eq!(listed.len(), 4, "{listed:#?}");
    let headers = [
        "JOB",
        "STATE",
        "KIND",
        "ASKED FOR (UTC)",
        "TOOK",
        "EVENTS",
        "BY",
        "ON",
    ];
    let columns: Vec<usize> = headers
        .iter()
        .map(|header| {
            listed[0]
                .find(&format!("{header} "))
                .or(listed[0].rfind(header))
        })
        .map(|at| at.expect("a header"))
        .collect();
    for (line, job) in [
        (&listed[1], &records["jobs"][0]),
        (&listed[2], &records["jobs"][1]),
    ] {
        let cells: Vec<&str> = columns
            .iter()
            .enumerate()
            .map(|(n, at)| match columns.get(n + 1) {
                Some(end) => line[*at..*end].trim(),
                None => &line[*at..],
            })
            .collect();
        let created = job["created_ms"].as_i64().expect("a time");
        let asked_for = roomkeeper::time::Millis(created).as_date();
        assert_eq!(cells[0], job["id"]);
        assert_eq!(cells[1], job["state"]);
        assert_eq!(cells[2], "purge_history");
        assert_eq!(cells[3], asked_for);
        assert!(cells[4].ends_with('s') || cells[4] == "-", "{line}");
        assert_eq!(cells[6], "-");
        assert_eq!(cells[7], sample::room_id("a"));
    }
    assert!(listed[3].starts_with("  failed: "), "{listed:#?}");
}

#[test]
fn jobs_are_chosen_by_state_kind_room_and_time() {
    let home = Home::new(300, "");
    one_of_each(&home);
    let chosen = |words: &[&str]| {
        let all: Vec<&str> = ["jobs", "--json"].iter().chain(words).copied().collect();
        let ran = home.run(&all);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.json()["jobs"].as_array().map_or(0, Vec::len)
    };
    let room = sample::room_id("a");
    for (words, expected) in [
        (&[][..], 2),
        (&["--state", "failed"], 1),
        (&["--state", "failed,complete"], 2),
        (&["--state", "running"], 0),
        (&["--kind", "purge-history"], 2),
        (&["--kind", "retention,purge_history"], 2),
        (&["--kind", "retention"], 0),
        (&["--room", &room], 2),
        (&["--room", "!other:example.org"], 0),
        (&["--since", "1h"], 2),
        (&["--since", "2100-01-01"], 0),
        (&["--since", "2026-01-01", "--state", "complete"], 1),
        (&["--state", "complete", "--room", "!other:example.org"], 0),
    ] {
        assert_eq!(chosen(words), expected, "{words:?}");
    }
    for (words, says) in [
        (
            &["--room", "kitchen"][..],
            "say an id (!…) or an alias (#…)",
        ),
        (&["--since", "90"], "90 of what?"),
        (&["--state", "done"], "possible values: queued, running"),
        // Not "cancel what is running".
        (
            &["--cancel", "x", "--state", "running"],
            "cannot be used with",
        ),
        (&["--resume", "--watch"], "cannot be used with"),
    ] {
        let all: Vec<&str> = ["jobs"].iter().chain(words).copied().collect();
        home.run(&all).assert_ended(2, says);
    }
}

#[test]
fn a_daemons_jobs_tell_who_asked_and_can_be_watched_until_they_have_ended() {
    let home = Home::new(4_000, "batch: {events: 100}, homeserver: {running: assume}");
    let daemon = Daemon::start(&home);
    let id = daemon.purge(3_900);
    // Not in a terminal: a document whenever something has changed, the last one with the end.
    let watched = home.run(&["jobs", "--watch", "--json"]);
    assert_eq!(watched.code, Some(0), "{watched:?}");
    let last = watched.out.lines().last().expect("something");
    let last: Value = serde_json::from_str(last).expect("JSON");
    assert_eq!(last["jobs"][0]["id"], id.as_str());
    assert_eq!(last["jobs"][0]["state"], "complete");
    let told = watched.err.matches("asking it").count();
    assert_eq!(told, 1, "said once: {}", watched.err);
    let listed = lines(&home, &["jobs"]);
    assert!(listed[1].contains("@roomkeeper:example.org"), "{listed:#?}");
    // Nothing is at work: there is nothing to wait for.
    let again = home.run(&["jobs", "--watch", "--state", "complete"]);
    assert_eq!(again.code, Some(0));
    assert!(again.out.contains(&id), "{again:?}");
    assert!(!again.out.contains('\u{1b}'), "no terminal, no cursor");
    let (status, _) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    // The same without anybody at work.
    assert!(home.run(&["jobs", "--watch"]).out.contains(&id));
}

#[test]
fn quiet_says_what_was_asked_for_and_what_went_wrong_and_nothing_else() {
    let home = Home::new(300, "");
    let done = purge(&home, 200, &["--quiet"]);
    assert_eq!((done.code, &*done.out, &*done.err), (Some(0), "", ""));
    let failed = purge(&home, 400, &["-q"]);
    assert_eq!(failed.code, Some(1));
    assert!(failed.out.contains("failed: "), "{failed:?}");
    assert!(
        failed.err.contains("greater than forward extremities"),
        "{failed:?}"
    );
    // No headers, but the jobs.
    assert_eq!(lines(&home, &["jobs", "-q"]).len(), 3);
    assert!(!purge(&home, 250, &["-q", "--dry-run"]).out.is_empty());
    for words in [
        &["-q", "jobs", "--resume"][..],
        &["-q", "block", "!a:example.org"],
        &["-q", "unblock", &sample::room_id("a")],
        &["-q", "reclaim"],
    ] {
        let ran = home.run(words);
        assert_eq!((ran.code, &*ran.err), (Some(0), ""), "{words:?}");
        let is_warning = ran.out.contains("not known here");
        assert!(ran.out.is_empty() || is_warning, "{words:?}: {}", ran.out);
    }
    // Machines get their document.
    assert!(home.run(&["-q", "jobs", "--json"]).json()["jobs"].is_array());
    home.run(&["-q", "-v", "jobs"])
        .assert_ended(2, "cannot be used with");
    let daemon = Daemon::start(&home);
    let asked = home.run(&["-q", "jobs"]);
    assert_eq!((asked.code, &*asked.err), (Some(0), ""));
    drop(daemon);
}
