//! The files beside a ledger: the checkpoints of its receipts, the key that signs them, and the public keys of all that did.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use crate::error::{Error, StoreError};
use crate::receipt;
use crate::receipt::note::{Checkpoint, NoteKey, PublicKey};
use crate::sqlite_file;

/// How much of the end of a file of checkpoints can hold the last of them, in bytes.
const LONGEST_NOTE: u64 = 4096;

pub(super) fn beside(ledger: &Path, suffix: &str) -> PathBuf {
    let mut name = ledger.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The file of the checkpoints of a ledger's receipts, oldest first.
pub fn checkpoints_of(ledger: &Path) -> PathBuf {
    beside(ledger, ".checkpoints")
}

/// The file of the public keys that signed them, one a line.
pub fn public_keys_of(ledger: &Path) -> PathBuf {
    beside(ledger, ".checkpoints.pub")
}

/// The file of the key that signs them.
pub(super) fn key_of(ledger: &Path) -> PathBuf {
    beside(ledger, ".checkpoints.key")
}

/// The public keys beside a ledger; lines that are none are left out.
pub fn public_keys(ledger: &Path) -> Vec<PublicKey> {
    let text = fs::read_to_string(public_keys_of(ledger)).unwrap_or_default();
    let lines = text.lines().map(PublicKey::parse);
    lines.filter_map(Result::ok).collect()
}

/// The key of a ledger, which is made where there is none.
pub(super) fn key(ledger: &Path) -> Result<NoteKey, Error> {
    let path = key_of(ledger);
    let refused = |why: String| {
        Error::Refused(format!(
            "the key {} that signs checkpoints of receipts cannot be used: {why}. Move it away and another is made",
            path.display()
        ))
    };
    let key = match fs::read_to_string(&path) {
        Ok(text) => NoteKey::from_file(&text).map_err(refused)?,
        Err(e) if e.kind() == ErrorKind::NotFound => make_key(ledger, &path)?,
        Err(e) => return Err(refused(e.to_string())),
    };
    // Where its line is missing it is added: a process may have ended between the two.
    let public = key.public();
    if !public_keys(ledger).contains(&public) {
        let file = public_keys_of(ledger);
        append(ledger, &file, &format!("{public}\n")).map_err(|e| told(&file, e))?;
        log::info!("checkpoints of receipts are signed with the key {public}");
    }
    Ok(key)
}

fn make_key(ledger: &Path, path: &Path) -> Result<NoteKey, Error> {
    let key = NoteKey::random().map_err(Error::Refused)?;
    let new = beside(ledger, ".checkpoints.key-new");
    let make = || {
        let _ = fs::remove_file(&new);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        let owner = fs::metadata(ledger)?;
        let _ = fchown(&file, Some(owner.uid()), Some(owner.gid()));
        file.write_all(key.to_file().as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        sqlite_file::sync_directory_of(path)
    };
    make().map_err(|e| told(path, e))?;
    Ok(key)
}

pub(super) fn told(path: &Path, e: std::io::Error) -> Error {
    let source = StoreError::Io(e);
    match source.is_full() {
        true => Error::NoSpace(sqlite_file::full(&[path], sqlite_file::NEEDED_TO_BEGIN)),
        false => Error::Store {
            doing: "write checkpoints of receipts",
            source,
        },
    }
}

/// The end of a file of checkpoints that a process was killed over, or power failed over, is of no note.
pub(super) fn take_torn_away(path: &Path) -> std::io::Result<()> {
    let file = match fs::OpenOptions::new().read(true).write(true).open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let length = file.metadata()?.len();
    let from = length.saturating_sub(LONGEST_NOTE);
    let mut end = Vec::new();
    (&file).seek(SeekFrom::Start(from))?;
    (&file).take(LONGEST_NOTE).read_to_end(&mut end)?;
    if length == 0 || end.ends_with(b"\n\n") && after_last_note(&end) == Some(end.len()) {
        return Ok(());
    }
    match after_last_note(&end) {
        Some(whole) => file.set_len(from + whole as u64),
        None if from == 0 => file.set_len(0),
        // Somebody has written into it: that is found, and stays.
        None => Ok(()),
    }
}

/// Where the last note ends that is whole.
fn after_last_note(bytes: &[u8]) -> Option<usize> {
    let is_signature = |end: &usize| {
        let line = bytes[..*end].rsplit(|byte| *byte == b'\n').next();
        line.is_some_and(|line| line.starts_with("\u{2014} ".as_bytes()))
    };
    let empty_lines = (0..bytes.len()).rev();
    empty_lines
        .filter(|at| bytes[*at..].starts_with(b"\n\n"))
        .find(is_signature)
        .map(|at| at + 2)
}

/// Adds to a file that whoever may read the ledger may read.
pub(super) fn append(ledger: &Path, path: &Path, text: &str) -> std::io::Result<()> {
    let owner = fs::metadata(ledger)?;
    let is_new = !path.exists();
    let mut file = fs::OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(owner.mode() & 0o666)
        .open(path)?;
    if is_new {
        let _ = fchown(&file, Some(owner.uid()), Some(owner.gid()));
    }
    file.write_all(text.as_bytes())?;
    file.sync_data()
}

/// The notes of a file of checkpoints, one after the other. A torn one is handed out as it is.
pub(super) struct Notes(Option<BufReader<File>>);

impl Notes {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        match File::open(path) {
            Ok(file) => Ok(Self(Some(BufReader::new(file)))),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Self(None)),
            Err(e) => Err(told(path, e)),
        }
    }
}

impl Iterator for Notes {
    type Item = std::io::Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        let file = self.0.as_mut()?;
        let mut note = Vec::new();
        // Its text, an empty line, its signature, and another empty line.
        for _ in 0..2 {
            loop {
                let before = note.len();
                match file
                    .by_ref()
                    .take(LONGEST_NOTE)
                    .read_until(b'\n', &mut note)
                {
                    Ok(0) => break,
                    Ok(_) if note[before..] == *b"\n" => break,
                    Ok(_) if note.len() as u64 > LONGEST_NOTE => break,
                    Ok(_) => {}
                    Err(e) => return Some(Err(e)),
                }
            }
        }
        if note.is_empty() {
            return None;
        }
        // The empty line after it belongs to no note.
        if note.ends_with(b"\n\n") {
            note.pop();
        }
        Some(Ok(String::from_utf8_lossy(&note).into_owned()))
    }
}

/// The last checkpoint of a file that was signed by a key of ours, with its note.
pub(super) fn last_checkpoint(
    ledger: &Path,
    path: &Path,
) -> Result<Option<(String, Checkpoint)>, Error> {
    let read = || {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LONGEST_NOTE)))?;
        let mut end = Vec::new();
        file.take(LONGEST_NOTE).read_to_end(&mut end)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&end).into_owned())
    };
    let end = match read() {
        Ok(end) => end,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(told(path, e)),
    };
    let keys = public_keys(ledger);
    let parts: Vec<&str> = end.split("\n\n").collect();
    let notes = parts.windows(2).rev().filter_map(|pair| {
        let signature = pair[1].trim_end_matches('\n');
        let note = format!("{}\n\n{signature}\n", pair[0]);
        let opened = receipt::open(&note, &keys).ok();
        opened.map(|checkpoint| (note, checkpoint))
    });
    Ok(notes.into_iter().next())
}
