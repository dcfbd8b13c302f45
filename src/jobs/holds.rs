//! Where holds are kept: in the ledger, and in a file of one JSON line each beside it. A thing is free when both say so, so
//! that neither of the two, when it is lost or comes back from a backup, lifts a hold.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, params};
use serde_json::json;

use super::ledger::Ledger;
use crate::error::{Context, Error, StoreError};
use crate::hold::{Hold, Release};
use crate::receipt::Draft;
use crate::sqlite_file;

/// The largest file of holds that is read.
const MOST_BYTES: u64 = 64 << 20;

const HOLDS: &str = "SELECT name, said FROM hold ORDER BY rowid";

const PUT_HOLD: &str = "
    INSERT INTO hold (name, said) VALUES ($1, $2)
        ON CONFLICT (name) DO UPDATE SET said = excluded.said";

/// The readable file of a ledger's holds.
pub fn file_of(ledger: &Path) -> PathBuf {
    let mut name = ledger.as_os_str().to_owned();
    name.push(".holds");
    PathBuf::from(name)
}

/// Device, number, length, and the time of the last change in seconds and nanoseconds; `None` where there is no file.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    let m = fs::metadata(path).ok()?;
    Some((m.dev(), m.ino(), m.len(), m.mtime(), m.mtime_nsec()))
}

/// What was read the last time, and of which file.
pub(super) type Cached = Option<(Stamp, Arc<Vec<Hold>>)>;

/// A line of the file, and what it means.
struct Line {
    text: String,
    hold: Hold,
}

/// The lines of the file. What cannot be read holds everything.
fn lines_of(path: &Path) -> Vec<Line> {
    let unreadable = |why: String| {
        let name = path.display().to_string();
        vec![Line {
            text: String::new(),
            hold: Hold::not_understood(&name, &why),
        }]
    };
    match fs::metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Vec::new(),
        Ok(m) if m.len() > MOST_BYTES => {
            return unreadable(format!("it has more than {MOST_BYTES} bytes"));
        }
        _ => {}
    }
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) => return unreadable(e.to_string()),
    };
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(number, line)| {
            let called = format!("line {} of {}", number + 1, path.display());
            Line {
                text: line.to_owned(),
                hold: Hold::read(line, &called),
            }
        })
        .collect()
}

fn rows_of(conn: &Connection) -> rusqlite::Result<Vec<Hold>> {
    let mut rows = conn.prepare(HOLDS)?;
    rows.query_map([], |row| {
        let (name, said): (String, String) = (row.get(0)?, row.get(1)?);
        let mut hold = Hold::read(&said, &name);
        // By this name it is looked for.
        hold.name = name;
        Ok(hold)
    })?
    .collect()
}

/// Every hold of both places. A name is free when every word of it says so; where they say different things of it, all of
/// them count.
fn merged(rows: Vec<Hold>, lines: Vec<Hold>) -> Vec<Hold> {
    let mut all = rows;
    all.extend(lines);
    let is_free = |name: &str| {
        all.iter()
            .all(|hold| hold.name != name || !hold.is_active())
    };
    let mut merged: Vec<Hold> = Vec::new();
    for hold in &all {
        let mut hold = hold.clone();
        if !is_free(&hold.name) {
            hold.released = None;
        } else if merged.iter().any(|other| other.name == hold.name) {
            continue;
        }
        if !merged.contains(&hold) {
            merged.push(hold);
        }
    }
    merged
}

/// Every hold there ever was, without owning the ledger: by the file beside it, and by the ledger itself where nobody has
/// it. Nothing is written or made.
pub fn read(ledger: &Path) -> Vec<Hold> {
    let lines = lines_of(&file_of(ledger))
        .into_iter()
        .map(|line| line.hold)
        .collect();
    let rows = match ledger.exists() && sqlite_file::holder(ledger).is_none() {
        true => rows_without_owning(ledger),
        false => Vec::new(),
    };
    merged(rows, lines)
}

fn rows_without_owning(ledger: &Path) -> Vec<Hold> {
    const HAS_HOLDS: &str =
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'hold')";
    let Ok(Ok(reading)) = sqlite_file::try_to_read(ledger) else {
        return Vec::new();
    };
    let has_holds = reading.conn.query_row(HAS_HOLDS, [], |row| row.get(0));
    match has_holds {
        Ok(true) => rows_of(&reading.conn).unwrap_or_default(),
        _ => Vec::new(),
    }
}

impl Ledger {
    /// Every hold there ever was; those that are released say so. The file is read again when it has changed.
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn holds(&self) -> Result<Arc<Vec<Hold>>, Error> {
        let path = file_of(self.path());
        let stamp = stamp(&path);
        let mut cached = self.holds.lock();
        if let Some((of, holds)) = &*cached
            && *of == stamp
        {
            return Ok(holds.clone());
        }
        let rows = rows_of(&self.conn.lock()).context("read the holds")?;
        let lines = lines_of(&path);
        self.note_laid_beside(&rows, &lines);
        let lines = lines.into_iter().map(|line| line.hold).collect();
        let holds = Arc::new(merged(rows, lines));
        *cached = Some((stamp, holds.clone()));
        Ok(holds)
    }

    /// Lays a hold. It is in both places, on disk, when this returns.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for one that cannot be meant, or by a name that was used before; [`Error::NoSpace`]. Where the
    /// second of the two places could not be written the hold holds all the same.
    pub fn add_hold(&self, hold: &Hold) -> Result<(), Error> {
        refuse_bad(hold, &self.holds()?)?;
        *self.holds.lock() = None;
        add_to_file(self.path(), hold)?;
        self.put(hold)
    }

    /// Ends a hold by its name.
    ///
    /// # Errors
    /// [`Error::NoSuchHold`] where none of that name holds; [`Error::BadRequest`] without a reason. The hold holds on then.
    pub fn release_hold(&self, name: &str, release: &Release) -> Result<Hold, Error> {
        crate::hold::validate_reason(&release.reason)
            .map_err(|why| Error::bad("M_INVALID_PARAM", why))?;
        let holds = self.holds()?;
        let found = holds
            .iter()
            .find(|hold| hold.name == name && hold.is_active());
        let Some(found) = found else {
            return Err(Error::NoSuchHold(
                match holds.iter().any(|h| h.name == name) {
                    true => format!("the hold {name} is released already"),
                    false => format!("there is no hold {}", crate::ids::Escaped(name)),
                },
            ));
        };
        if crate::hold::validate_name(name).is_err() {
            return Err(Error::bad(
                "M_INVALID_PARAM",
                format!("{found} is no hold by name: correct or remove it in the file"),
            ));
        }
        let released = |hold: &Hold| Hold {
            released: Some(release.clone()),
            not_understood: None,
            reason: match hold.not_understood {
                Some(_) => "it was not understood".to_owned(),
                None => hold.reason.clone(),
            },
            ..hold.clone()
        };
        self.put(&released(found))?;
        *self.holds.lock() = None;
        change_file(self.path(), |lines| {
            let changed = lines.into_iter().map(|line| match line.hold.name == name {
                true => said(&released(&line.hold)),
                false => Ok(line.text),
            });
            changed.collect()
        })?;
        Ok(released(found))
    }

    /// Has both places know of every hold: one of them may have been lost, or have come back from a backup.
    pub(super) fn reconcile_holds(&self) -> Result<(), Error> {
        let rows = rows_of(&self.conn.lock()).context("read the holds")?;
        let lines = lines_of(&file_of(self.path()));
        for line in &lines {
            let is_known = rows.iter().any(|hold| hold.name == line.hold.name);
            if !is_known && line.hold.not_understood.is_none() {
                self.put(&line.hold)?;
            }
        }
        let is_missing = |hold: &&Hold| {
            hold.not_understood.is_none() && lines.iter().all(|line| line.hold.name != hold.name)
        };
        let missing: Vec<&Hold> = rows.iter().filter(is_missing).collect();
        if missing.is_empty() {
            return Ok(());
        }
        log::warn!(
            "{} had not every hold that the ledger knows: it has them again",
            file_of(self.path()).display()
        );
        change_file(self.path(), |lines| {
            let lines = lines.into_iter().map(|line| Ok(line.text));
            lines.chain(missing.iter().map(|hold| said(hold))).collect()
        })
    }

    fn put(&self, hold: &Hold) -> Result<(), Error> {
        *self.holds.lock() = None;
        self.put_with_receipt(hold)
    }

    fn put_with_receipt(&self, hold: &Hold) -> Result<(), Error> {
        let said = said(hold)?;
        let receipt = receipt_of(hold);
        let run = || {
            let mut conn = self.conn.lock();
            let tx = conn.transaction()?;
            tx.execute(PUT_HOLD, params![hold.name, said])?;
            Self::append_receipt(&tx, &receipt)?;
            tx.commit()
        };
        run().context("note the hold in the ledger")?;
        self.checkpoint(receipt.at);
        Ok(())
    }

    /// What was laid while we had the ledger, by somebody who found us so.
    fn note_laid_beside(&self, rows: &[Hold], lines: &[Line]) {
        for line in lines {
            let is_known = rows.iter().any(|hold| hold.name == line.hold.name);
            if is_known || line.hold.not_understood.is_some() {
                continue;
            }
            if let Err(e) = self.put_with_receipt(&line.hold) {
                // It holds all the same.
                log::warn!("{}", crate::error::Chain(&e));
            }
        }
    }
}

fn refuse_bad(hold: &Hold, others: &[Hold]) -> Result<(), Error> {
    hold.validate()
        .map_err(|why| Error::bad("M_INVALID_PARAM", why))?;
    match others.iter().any(|other| other.name == hold.name) {
        true => Err(Error::bad(
            "M_INVALID_PARAM",
            format!(
                "there was a hold {} before: choose another name (roomkeeper hold list --all)",
                hold.name
            ),
        )),
        false => Ok(()),
    }
}

/// Lays a hold while somebody else has the ledger, who reads the file before every transaction.
///
/// # Errors
/// As [`Ledger::add_hold`].
pub fn add_without_owning(ledger: &Path, hold: &Hold) -> Result<(), Error> {
    refuse_bad(hold, &read(ledger))?;
    add_to_file(ledger, hold)
}

fn add_to_file(ledger: &Path, hold: &Hold) -> Result<(), Error> {
    change_file(ledger, |lines| {
        let lines = lines.into_iter().map(|line| Ok(line.text));
        lines.chain([said(hold)]).collect()
    })
}

/// Puts a whole new file in the place of the old one, so that no line is ever torn; one process at a time.
fn change_file(
    ledger: &Path,
    change: impl FnOnce(Vec<Line>) -> Result<Vec<String>, Error>,
) -> Result<(), Error> {
    let path = file_of(ledger);
    let told = |e: std::io::Error| {
        let source = StoreError::Io(e);
        match source.is_full() {
            true => Error::NoSpace(sqlite_file::full(&[&path], sqlite_file::NEEDED_TO_BEGIN)),
            false => Error::Store {
                doing: "write the file of holds",
                source,
            },
        }
    };
    let _locked = lock(ledger, &path).map_err(told)?;
    let lines = change(lines_of(&path))?;
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    let written = write_aside(ledger, &aside, &lines);
    if let Err(e) = written.and_then(|()| fs::rename(&aside, &path)) {
        let _ = fs::remove_file(&aside);
        return Err(told(e));
    }
    sqlite_file::sync_directory_of(&path).map_err(told)
}

/// The file as it is now, for us alone. It is opened for reading as well: what cannot be read must not be taken for
/// nothing.
fn lock(ledger: &Path, path: &Path) -> std::io::Result<File> {
    loop {
        let file = open_like(ledger, path, fs::OpenOptions::new().read(true).create(true))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
        let (ours, now) = (file.metadata()?, fs::metadata(path));
        if now.is_ok_and(|now| (now.dev(), now.ino()) == (ours.dev(), ours.ino())) {
            return Ok(file);
        }
    }
}

fn write_aside(ledger: &Path, aside: &Path, lines: &[String]) -> std::io::Result<()> {
    let mut file = open_like(
        ledger,
        aside,
        fs::OpenOptions::new().create(true).truncate(true),
    )?;
    for line in lines {
        writeln!(file, "{line}")?;
    }
    file.sync_all()
}

/// Whoever may read the ledger may read what is made.
fn open_like(ledger: &Path, path: &Path, how: &mut fs::OpenOptions) -> std::io::Result<File> {
    let is_new = !path.exists();
    let ledger = fs::metadata(ledger)?;
    let file = how.write(true).mode(ledger.mode() & 0o666).open(path)?;
    if is_new {
        // Only root may.
        let _ = fchown(&file, Some(ledger.uid()), Some(ledger.gid()));
    }
    Ok(file)
}

/// What its receipt says: all of it, in the words of whoever laid it.
fn receipt_of(hold: &Hold) -> Draft {
    let (what, at, who) = match &hold.released {
        None => ("hold_add", hold.at_ms, &hold.by),
        Some(release) => ("hold_release", release.at_ms, &release.by),
    };
    Draft::new(what, &hold.name, at)
        .say("who", json!(who))
        .say("subject", json!({ "hold": hold }))
        .say("outcome", "complete")
}

fn said(hold: &Hold) -> Result<String, Error> {
    serde_json::to_string(hold).map_err(|e| Error::Bug(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RoomId;
    use crate::time::Millis;

    fn hold(name: &str) -> Hold {
        Hold {
            name: name.into(),
            rooms: vec![RoomId::from("!a:b")],
            reason: "because".into(),
            ..Hold::default()
        }
    }

    fn release() -> Release {
        Release {
            at_ms: Millis(7),
            reason: "over".into(),
            by: None,
        }
    }

    fn active(ledger: &Ledger) -> Vec<String> {
        let holds = ledger.holds().expect("read");
        let active = holds.iter().filter(|hold| hold.is_active());
        active.map(|hold| hold.name.clone()).collect()
    }

    #[test]
    fn neither_a_lost_ledger_nor_a_lost_file_lifts_a_hold() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("l");
        let ledger = Ledger::open(&path).expect("made");
        assert!(!file_of(&path).exists(), "nothing is made for nothing");
        for name in ["a", "b", "c"] {
            ledger.add_hold(&hold(name)).expect("laid");
        }
        ledger.release_hold("b", &release()).expect("released");
        let without = |lost: &Path| {
            drop(fs::remove_file(lost));
            let ledger = Ledger::open(&path).expect("opens");
            assert_eq!(active(&ledger), ["a", "c"], "without {}", lost.display());
            let all = ledger.holds().expect("read").len();
            assert_eq!(all, 3);
            assert_eq!(read(&path).len(), 3);
        };
        drop(ledger);
        without(&file_of(&path));
        for suffix in ["-wal", "-shm"] {
            let _ = fs::remove_file(dir.path().join(format!("l{suffix}")));
        }
        without(&path);
        without(&dir.path().join("nothing"));
    }

    #[test]
    fn a_line_that_is_not_understood_holds_everything_and_stays_as_it_is() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("l");
        fs::write(file_of(&path), "{\"name\":\"of tomorrow\"}\n").expect("written");
        let ledger = Ledger::open(&path).expect("opens");
        ledger.add_hold(&hold("a")).expect("laid");
        ledger.release_hold("a", &release()).expect("released");
        let left = active(&ledger);
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(left[0].starts_with("line 1 of "), "{left:?}");
        assert!(ledger.release_hold(&left[0], &release()).is_err());
        let text = fs::read_to_string(file_of(&path)).expect("read");
        assert!(text.starts_with("{\"name\":\"of tomorrow\"}\n{"), "{text}");
        // Somebody corrects it by hand, beside the daemon that has read it.
        let corrected: String = text.lines().skip(1).map(|l| format!("{l}\n")).collect();
        fs::write(file_of(&path), corrected).expect("written");
        assert_eq!(active(&ledger), Vec::<String>::new());
    }

    #[test]
    fn a_name_is_used_once_and_a_release_needs_a_hold_and_a_reason() {
        let dir = tempfile::tempdir().expect("directory");
        let ledger = Ledger::open(&dir.path().join("l")).expect("made");
        ledger.add_hold(&hold("a")).expect("laid");
        assert!(ledger.add_hold(&hold("a")).is_err());
        let mut silent = release();
        silent.reason.clear();
        assert!(ledger.release_hold("a", &silent).is_err());
        assert_eq!(active(&ledger), ["a"]);
        ledger.release_hold("a", &release()).expect("released");
        assert!(ledger.release_hold("a", &release()).is_err());
        assert!(ledger.release_hold("b", &release()).is_err());
        assert!(
            ledger.add_hold(&hold("a")).is_err(),
            "it would not be clear which"
        );
    }

    #[test]
    fn a_hold_that_one_place_has_released_and_the_other_has_not_holds() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("l");
        let ledger = Ledger::open(&path).expect("made");
        ledger.add_hold(&hold("a")).expect("laid");
        let before = fs::read(file_of(&path)).expect("read");
        ledger.release_hold("a", &release()).expect("released");
        fs::write(file_of(&path), before).expect("put back from a backup");
        assert_eq!(active(&ledger), ["a"]);
        ledger.release_hold("a", &release()).expect("again");
        assert_eq!(active(&ledger), Vec::<String>::new());
    }
}
