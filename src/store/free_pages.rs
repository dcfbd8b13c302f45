//! Overwriting the pages of the file that hold nothing any more.
//!
//! SQLite keeps free pages in a list; what stands in them is of no consequence to it. `secure_delete = ON` writes
//! zeros over each page as it becomes free: once into the log, once into the file. Doing it afterwards, in place and
//! in one pass, writes each page once and never through the log.
//!
//! It is safe while we hold the database's write lock and the log is empty: nobody can take a page from the list,
//! no log holds a newer version of one, and no reader ever looks into one.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Flock, FlockOffsetType, FlockType, fcntl_getlk};

use super::db::Db;
use super::wal::WalGuard;
use crate::error::{Context, Error, StoreError};

/// Where the file's header names the first page of the free list, and how many pages are free.
const HEADER_FREE_LIST: std::ops::Range<usize> = 32..40;

/// The file itself, opened past SQLite.
///
/// Closing any descriptor of a file drops every lock that the process has on it. So each is opened once in a process, is
/// handed to whoever works on it, and must be let go after the last connection to it is closed.
pub struct RawFile {
    file: File,
    /// Device and number.
    identity: (u64, u64),
    is_writable: bool,
}

/// What is open in this process.
static OPEN: Mutex<Vec<Weak<RawFile>>> = Mutex::new(Vec::new());

impl RawFile {
    /// Opens the database file for overwriting in place, unless this process has it open.
    pub fn open(path: &Path) -> Result<Arc<Self>, Error> {
        Self::shared(path, true)
    }

    /// The same for looking who else has it open, which takes no right to write.
    pub fn open_to_look(path: &Path) -> Result<Arc<Self>, Error> {
        Self::shared(path, false)
    }

    fn shared(path: &Path, to_write: bool) -> Result<Arc<Self>, Error> {
        let doing = "open the database";
        let identity = |m: std::fs::Metadata| (m.dev(), m.ino());
        let mut open = OPEN.lock();
        open.retain(|file| file.strong_count() > 0);
        let there = identity(std::fs::metadata(path).context(doing)?);
        let is_it = |file: &Arc<Self>| file.identity == there && (file.is_writable || !to_write);
        if let Some(file) = open.iter().filter_map(Weak::upgrade).find(is_it) {
            return Ok(file);
        }
        let (file, is_writable) = match File::options().read(true).write(true).open(path) {
            Err(_) if !to_write => (File::open(path).context(doing)?, false),
            file => (file.context(doing)?, true),
        };
        let made = Arc::new(Self {
            identity: identity(file.metadata().context(doing)?),
            file,
            is_writable,
        });
        open.push(Arc::downgrade(&made));
        Ok(made)
    }

    /// Whether this is still the file at `path`: a backup that was put in its place, or a file that was made anew, is not.
    pub fn is_at(&self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|there| self.identity == (there.dev(), there.ino()))
    }

    /// Another process that holds a lock on the file, in whatever container it runs; inside, its number where it can be
    /// known here. The kernel is asked through this descriptor: `/proc/locks` is silent of other containers, and one more
    /// descriptor would have to be closed.
    pub fn holder(&self) -> Option<Option<u32>> {
        let anything = Flock {
            start: 0,
            length: 0,
            pid: None,
            typ: FlockType::WriteLock,
            offset_type: FlockOffsetType::Set,
        };
        let lock = fcntl_getlk(&self.file, &anything).ok()??;
        let pid = lock.pid.map(|pid| pid.as_raw_nonzero().get());
        Some(pid.and_then(|pid| u32::try_from(pid).ok()))
    }

    fn page(&self, number: u32, buffer: &mut [u8]) -> std::io::Result<()> {
        self.file
            .read_exact_at(buffer, offset(number, buffer.len()))
    }
}

fn offset(page: u32, size: usize) -> u64 {
    u64::from(page - 1) * size as u64
}

/// How a pass over the free pages is to go.
#[derive(Clone, Copy, Debug)]
pub struct EraseOptions {
    /// How long to wait for readers to leave the log; other writers wait as long.
    pub patience: Duration,
    /// How long other writers may be held up at a time; without a bound the pass is made at once.
    pub slice: Option<Duration>,
}

/// A pass over the free pages, in one go or slice by slice.
#[derive(Default)]
pub struct Eraser {
    clean: Pages,
    written: u64,
}

/// A set of pages: a bit for each page of the file.
#[derive(Default)]
struct Pages(Vec<u64>);

impl Pages {
    /// Answers whether the page is new to the set.
    fn insert(&mut self, page: u32) -> bool {
        let (word, bit) = (page as usize / 64, 1 << (page % 64));
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let is_new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        is_new
    }
}

/// How far a pass has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EraseProgress {
    /// Every free page; so many had to be written.
    All(u64),
    /// Some; go on after a rest.
    Part,
    /// Somebody reads the log, which cannot be emptied; nothing was done.
    LogInUse,
}

impl Eraser {
    /// Overwrites what is left of deleted content in free pages.
    ///
    /// # Locking
    /// Takes the database's write lock for the whole slice. No row changes: so it has the writer's turn, and no [`Tx`].
    ///
    /// [`Tx`]: super::tx::Tx
    pub fn step(
        &mut self,
        db: &mut Db,
        _turn: &WalGuard,
        file: &RawFile,
        options: EraseOptions,
    ) -> Result<EraseProgress, Error> {
        if !db.checkpoint_within(options.patience)? {
            return Ok(EraseProgress::LogInUse);
        }
        let doing = "overwrite free pages";
        let wal = db.wal_path();
        let erased = db.write(doing, |db| {
            // Another writer may have come between the checkpoint and our lock.
            let log = wal.as_ref().and_then(|w| std::fs::metadata(w).ok());
            if log.is_some_and(|m| m.len() > 0) {
                return Ok(EraseProgress::LogInUse);
            }
            let page_size = usize::try_from(db.pragma("page_size")?).unwrap_or(0);
            let page_count = u32::try_from(db.pragma("page_count")?).unwrap_or(u32::MAX);
            let until = options.slice.map(|slice| Instant::now() + slice);
            match self.overwrite(file, page_size, page_count, until)? {
                true => Ok(EraseProgress::All(self.written)),
                false => Ok(EraseProgress::Part),
            }
        })?;
        if matches!(erased, EraseProgress::All(_)) {
            // Without the lock: syncing can take longer than others should wait.
            file.file
                .sync_data()
                .map_err(StoreError::from)
                .context(doing)?;
        }
        Ok(erased)
    }

    /// Answers whether it came to the end of the list before its time was over.
    fn overwrite(
        &mut self,
        file: &RawFile,
        page_size: usize,
        page_count: u32,
        until: Option<Instant>,
    ) -> Result<bool, Error> {
        let doing = "overwrite free pages";
        let damaged =
            || Error::Bug("the list of free pages is damaged; nothing more was overwritten".into());
        let mut header = [0; 100];
        file.file.read_exact_at(&mut header, 0).context(doing)?;
        let mut list = numbers(&header[HEADER_FREE_LIST]);
        let (mut trunk, total) = (list.next().unwrap_or(0), list.next().unwrap_or(0));
        let mut seen = 0_u64;
        let (mut page, mut leaf, zeros) =
            (vec![0; page_size], vec![0; page_size], vec![0; page_size]);
        while trunk != 0 {
            seen += 1;
            if trunk < 2 || trunk > page_count || seen > u64::from(total) {
                return Err(damaged());
            }
            file.page(trunk, &mut page).context(doing)?;
            let mut words = numbers(&page);
            let (next, leaves) = (
                words.next().unwrap_or(0),
                words.next().unwrap_or(0) as usize,
            );
            let used = 8 + leaves * 4;
            if used > page_size {
                return Err(damaged());
            }
            let mut is_news = false;
            for number in words.take(leaves) {
                seen += 1;
                if number < 2 || number > page_count || seen > u64::from(total) {
                    return Err(damaged());
                }
                if !self.clean.insert(number) {
                    continue;
                }
                is_news = true;
                file.page(number, &mut leaf).context(doing)?;
                if leaf != zeros {
                    file.file
                        .write_all_at(&zeros, offset(number, page_size))
                        .context(doing)?;
                    self.written += 1;
                }
            }
            // What a page held before it came to head a part of the list.
            if page[used..].iter().any(|byte| *byte != 0) {
                let at = offset(trunk, page_size) + used as u64;
                file.file.write_all_at(&zeros[used..], at).context(doing)?;
                self.written += 1;
            }
            trunk = next;
            // Whatever its time, a slice comes further than the one before.
            if trunk != 0 && is_news && until.is_some_and(|until| Instant::now() > until) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes
        .chunks_exact(4)
        .map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::db::{OpenOptions, SecureDelete};
    use crate::store::schema;

    #[test]
    fn free_pages_are_overwritten_and_nothing_else_is() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("homeserver.db");
        schema::create(&path).expect("makes");
        let raw = RawFile::open(&path).expect("opens");
        let options = OpenOptions {
            secure_delete: SecureDelete::Fast,
            ..OpenOptions::default()
        };
        let mut db = Db::open(&path, &options).expect("opens");
        let insert = "
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
            INSERT INTO event_json (event_id, room_id, internal_metadata, json)
            SELECT '$' || i, '!r', '{}', CASE WHEN i > 5 THEN 'secret' ELSE 'public' END || hex(zeroblob(2000)) FROM n";
        db.execute("fill", insert, &[]).expect("fills");
        db.execute("empty", "DELETE FROM event_json WHERE rowid > 5", &[])
            .expect("empties");
        assert!(db.checkpoint().expect("checkpoint"));
        let holds = |word: &[u8]| {
            let bytes = std::fs::read(&path).expect("reads");
            bytes.windows(word.len()).filter(|w| *w == word).count()
        };
        assert!(holds(b"secret") > 1000);
        // Splitting pages left copies.
        assert!(holds(b"public") >= 5);
        let turn = WalGuard::default();
        let mut options = EraseOptions {
            patience: Duration::ZERO,
            slice: Some(Duration::ZERO),
        };
        let (mut pass, mut slices) = (Eraser::default(), 0);
        let written = loop {
            match pass.step(&mut db, &turn, &raw, options).expect("erases") {
                EraseProgress::All(written) => break written,
                EraseProgress::Part => slices += 1,
                EraseProgress::LogInUse => panic!("nobody reads"),
            }
        };
        assert!(written > 1000 && slices > 0);
        assert_eq!(holds(b"secret"), 0);
        assert!(holds(b"public") >= 5);
        options.slice = None;
        let again = Eraser::default()
            .step(&mut db, &turn, &raw, options)
            .expect("erases");
        assert_eq!(again, EraseProgress::All(0));
        let verdict = db
            .row("look", "PRAGMA integrity_check", &[], |r| {
                r.get::<_, String>(0)
            })
            .expect("asks");
        assert_eq!(verdict.as_deref(), Some("ok"));
        db.execute("fill", insert.replace("'$'", "'%'").as_str(), &[])
            .expect("the pages serve again");
        let verdict = db
            .row("look", "PRAGMA integrity_check", &[], |r| {
                r.get::<_, String>(0)
            })
            .expect("asks");
        assert_eq!(verdict.as_deref(), Some("ok"));
    }
}
