use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::files::{beside, key_of};
use super::*;
use crate::hold::Hold;
use crate::ids::RoomId;
use crate::jobs::record::Subject;

fn end(ledger: &Ledger, n: i64, progress: &Value, is_part: bool) -> JobId {
    let subject = Subject::Room(RoomId::from("!a:b"));
    let job = JobRecord {
        params: json!({"point": {"topological": 7, "stream": 0}, "delete_local_events": true}),
        asked_by: Some("@admin:b".into()),
        ..JobRecord::new("purge_history", &subject, Millis(n))
    };
    ledger.insert(&job).expect("written");
    let ended = Ended {
        error: None,
        progress,
        at: Millis(n + 1),
    };
    match is_part {
        true => ledger.end_part(&job.id, ended).expect("ended"),
        false => ledger.end(&job.id, ended).expect("ended"),
    }
    job.id
}

fn removed(events: i64) -> Value {
    json!({"events_planned": 9, "events_deleted": events, "rows_removed": {"events": events}})
}

fn opened() -> (tempfile::TempDir, PathBuf, Ledger) {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("l");
    let ledger = Ledger::open(&path).expect("opens");
    (dir, path, ledger)
}

fn faults(ledger: &Ledger) -> Vec<String> {
    ledger.verify_receipts().expect("read").faults
}

#[test]
fn every_end_has_a_receipt_that_is_proven_and_lasts() {
    let (_dir, path, ledger) = opened();
    assert!(!key_of(&path).exists(), "nothing is made for nothing");
    let mut jobs = Vec::new();
    for n in 0..21 {
        jobs.push(end(&ledger, n, &removed(n), false));
    }
    let quiet = end(&ledger, 30, &removed(0), true);
    assert!(ledger.receipts_of(quiet.as_str()).is_err());
    end(&ledger, 31, &removed(1), true);
    drop(ledger);
    let ledger = Ledger::open(&path).expect("opens again");
    assert_eq!(ledger.count_receipts().expect("read"), 22);
    let found = ledger.verify_receipts().expect("read");
    assert_eq!(found.faults, Vec::<String>::new());
    // The last is of the start, for the part that had none.
    assert_eq!((found.receipts, found.checkpoints), (22, 22));
    for job in &jobs {
        let proof = ledger.prove_receipts(job.as_str(), Millis(50));
        let proof = proof.expect("proven").remove(0);
        let key = PublicKey::parse(&proof.key).expect("a key");
        let checkpoint = key.open(&proof.checkpoint).expect("signed");
        let path: Vec<Hash> = (proof.path.iter())
            .map(|hash| serde_json::from_value::<Entry>(json!({"seq": 0, "leaf": hash})))
            .map(|entry| entry.expect("a hash").leaf)
            .collect();
        let line = proof.entry.line.expect("kept");
        let leaf = tree::leaf(line.as_bytes());
        let root = tree::proven(leaf, proof.entry.seq, checkpoint.size, &path);
        assert_eq!(root, Some(checkpoint.root));
        let said: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(said["subject"]["room_id"], "!a:b");
        assert_eq!(
            (&said["who"], &said["what"]),
            (&json!("@admin:b"), &json!("purge_history"))
        );
        assert_eq!(said["point"]["topological"], 7);
    }
    let mode = fs::metadata(key_of(&path)).expect("there").mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn whatever_is_changed_in_the_ledger_is_found() {
    let (_dir, path, ledger) = opened();
    for n in 0..5 {
        end(&ledger, n, &removed(1), false);
    }
    for (sql, words) in [
        (
            "UPDATE receipt SET line = replace(line, '!a:b', '!x:y') WHERE seq = 2",
            "receipt 2",
        ),
        (
            "UPDATE receipt SET leaf = zeroblob(32), line = NULL WHERE seq = 1",
            "the tree",
        ),
        ("DELETE FROM receipt WHERE seq = 4", "and there are 4"),
        ("DELETE FROM receipt WHERE seq = 0", "comes 1"),
        ("DELETE FROM receipt_tree WHERE level = 2", "level 2"),
        (
            "UPDATE receipt_tree SET hash = zeroblob(32) WHERE level = 1",
            "level 1",
        ),
    ] {
        ledger
            .conn
            .lock()
            .execute_batch("SAVEPOINT s")
            .expect("begun");
        ledger.conn.lock().execute_batch(sql).expect(sql);
        let found = faults(&ledger);
        assert!(
            found.iter().any(|fault| fault.contains(words)),
            "{sql}: {found:?}"
        );
        ledger
            .conn
            .lock()
            .execute_batch("ROLLBACK TO s; RELEASE s")
            .expect("back");
    }
    assert_eq!(faults(&ledger), Vec::<String>::new());
    // The checkpoints, too: every byte of them.
    let file = checkpoints_of(&path);
    let whole = fs::read(&file).expect("there");
    for at in (0..whole.len()).step_by(7).chain([whole.len() - 1]) {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(&file, changed).expect("written");
        assert!(!faults(&ledger).is_empty(), "byte {at}");
    }
}

#[test]
fn a_ledger_that_was_put_back_is_found_by_its_checkpoints() {
    let (dir, path, ledger) = opened();
    end(&ledger, 0, &removed(1), false);
    drop(ledger);
    let before = fs::read(&path).expect("read");
    let ledger = Ledger::open(&path).expect("opens");
    end(&ledger, 1, &removed(1), false);
    drop(ledger);
    fs::write(&path, before).expect("put back");
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(dir.path().join(format!("l{suffix}")));
    }
    let ledger = Ledger::open(&path).expect("opens");
    assert_eq!(faults(&ledger).len(), 1);
    end(&ledger, 2, &removed(1), false);
    end(&ledger, 3, &removed(1), false);
    let found = ledger.verify_receipts().expect("read");
    assert_eq!((found.receipts, found.faults.len()), (3, 1), "{found:?}");
    assert!(found.faults[0].contains("2 other receipts"), "{found:?}");
}

#[test]
fn what_a_receipt_said_is_forgotten_and_the_others_are_proven_still() {
    let (dir, path, ledger) = opened();
    let jobs = [0, 1, 2].map(|n| end(&ledger, n, &removed(1), false));
    let entries = ledger.receipts_of(jobs[1].as_str()).expect("there");
    let line = entries[0].line.clone().expect("kept");
    let salt = line.split("\"salt\":\"").nth(1).expect("a salt")[..20].to_owned();
    let draft = Draft::new("forget_receipt", "forget", Millis(9));
    ledger.forget_receipts(&entries, &draft).expect("forgotten");
    let found = ledger.verify_receipts().expect("read");
    assert_eq!((found.receipts, found.forgotten), (4, 1));
    assert_eq!(found.faults, Vec::<String>::new());
    assert!(ledger.receipts_of(jobs[1].as_str()).is_err());
    let proof = ledger
        .prove_receipts("1", Millis(9))
        .expect("by its number");
    assert_eq!(proof[0].entry.line, None);
    drop(ledger);
    let all = fs::read_dir(dir.path()).expect("read");
    for file in all.map(|file| file.expect("a file").path()) {
        let bytes = fs::read(&file).expect("read");
        let is_in = bytes.windows(salt.len()).any(|at| at == salt.as_bytes());
        assert!(!is_in, "{} still says it", file.display());
    }
    assert!(path.exists());
}

#[test]
fn a_torn_checkpoint_is_written_anew_and_a_lost_key_is_another() {
    let (_dir, path, ledger) = opened();
    let file = checkpoints_of(&path);
    end(&ledger, 0, &removed(1), false);
    let whole = fs::read(&file).expect("there");
    for cut in 1..whole.len() {
        fs::write(&file, &whole[..cut]).expect("torn");
        take_torn_away(&file).expect("taken");
        assert_eq!(fs::read(&file).expect("there").len(), 0, "{cut}");
        fs::write(&file, [&whole[..], &whole[..cut]].concat()).expect("torn");
        take_torn_away(&file).expect("taken");
        assert_eq!(fs::read(&file).expect("there"), whole, "{cut}");
    }
    take_torn_away(&file).expect("nothing to take");
    assert_eq!(fs::read(&file).expect("there"), whole);
    drop(ledger);
    fs::remove_file(key_of(&path)).expect("lost");
    let ledger = Ledger::open(&path).expect("opens");
    end(&ledger, 1, &removed(1), false);
    let found = ledger.verify_receipts().expect("read");
    assert_eq!((found.checkpoints, found.faults.len()), (2, 0), "{found:?}");
    assert_eq!(public_keys(&path).len(), 2);
}

#[test]
fn holds_have_receipts_also_those_that_were_laid_beside() {
    let (_dir, path, ledger) = opened();
    let hold = |name: &str| Hold {
        name: name.into(),
        rooms: vec![RoomId::from("!a:b")],
        reason: "because".into(),
        ..Hold::default()
    };
    ledger.add_hold(&hold("a")).expect("laid");
    let release = crate::hold::Release {
        at_ms: Millis(7),
        reason: "over".into(),
        by: None,
    };
    ledger.release_hold("a", &release).expect("released");
    assert_eq!(ledger.receipts_of("a").expect("there").len(), 2);
    crate::jobs::holds::add_without_owning(&path, &hold("b")).expect("laid");
    for _ in 0..2 {
        ledger.holds().expect("read");
        assert_eq!(ledger.receipts_of("b").expect("there").len(), 1);
    }
    assert_eq!(faults(&ledger), Vec::<String>::new());
}

#[test]
fn what_was_left_by_others_is_taken_up_once() {
    let (_dir, path, ledger) = opened();
    let draft = Draft::new("shred_archive", "J", Millis(3)).say("who", "@admin:b");
    leave(&path, draft.clone()).expect("left");
    let left = beside(&path, ".receipts-left");
    let text = fs::read_to_string(&left).expect("there");
    end(&ledger, 4, &removed(1), false);
    assert_eq!(ledger.receipts_of("J").expect("taken").len(), 1);
    assert!(!left.exists());
    // A process that ended before it took the file away; and a line that is torn.
    fs::write(&left, format!("{text}{}", &text[..20])).expect("written");
    drop(ledger);
    let ledger = Ledger::open(&path).expect("opens");
    end(&ledger, 5, &removed(1), false);
    assert_eq!(ledger.receipts_of("J").expect("taken").len(), 1);
    let found = ledger.verify_receipts().expect("read");
    assert_eq!((found.receipts, found.faults.len()), (3, 0));
    leave(&path, draft).expect("left");
    drop(ledger);
    let ledger = Ledger::open(&path).expect("opens");
    assert_eq!(ledger.receipts_of("J").expect("taken").len(), 2);
}
