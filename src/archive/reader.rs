//! Reading: whatever is damaged, cut off or foreign is told, and the other frames can be had.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::cells::Decoder;
use super::{Digest, FRAME, Head, Header, Identity, LONGEST_HEAD, MAGIC, digest_of, unreadable};
use crate::error::Error;

/// The rows of a frame.
pub type Records =
    Decoder<BufReader<zstd::stream::read::Decoder<'static, BufReader<Box<dyn Read>>>>>;

/// An archive, open to be read.
pub struct Reader {
    file: File,
    path: PathBuf,
    length: u64,
    header: Header,
    first: u64,
    first_digest: Digest,
}

/// A whole frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameAt {
    /// Its number, from 0.
    pub number: u32,
    /// What it says of itself.
    pub head: Head,
    /// Where its rows begin.
    rows: u64,
    /// Their length in bytes.
    pub bytes: u64,
    /// Where it ends.
    pub(super) end: u64,
    pub(super) digest: Digest,
}

/// What stands in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A frame.
    Whole(FrameAt),
    /// Bytes that are no whole frame.
    Damaged {
        /// Where they begin.
        at: u64,
        /// How many they are.
        bytes: u64,
        /// What is wrong with them.
        why: String,
    },
}

impl Reader {
    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::Refused`] where it is none of ours, of a newer format, or damaged where it says what it is.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|e| unreadable(path, &e))?;
        let refuse = |why: &str| Error::Refused(format!("{} {why}", path.display()));
        let length = file.metadata().map_err(|e| unreadable(path, &e))?.len();
        let mut bytes = Vec::new();
        (&file)
            .take(MAGIC.len() as u64 + 4)
            .read_to_end(&mut bytes)
            .map_err(|e| unreadable(path, &e))?;
        let (magic, size) = match bytes.len() == MAGIC.len() + 4 {
            true => bytes.split_at(MAGIC.len()),
            false => return Err(refuse("is no archive of roomkeeper's")),
        };
        if magic != MAGIC {
            return Err(refuse(match magic.starts_with(b"roomkeeper archive ") {
                true => "is an archive of a newer roomkeeper: use that one",
                false => "is no archive of roomkeeper's",
            }));
        }
        let size = u32::from_le_bytes([size[0], size[1], size[2], size[3]]);
        let damaged = || refuse("is damaged at its beginning: nobody can say what is in it");
        if size > LONGEST_HEAD {
            return Err(damaged());
        }
        (&file)
            .take(u64::from(size) + 32)
            .read_to_end(&mut bytes)
            .map_err(|e| unreadable(path, &e))?;
        let begin = MAGIC.len() + 4;
        let end = begin + size as usize;
        if bytes.len() != end + 32 || Sha256::digest(&bytes[..end])[..] != bytes[end..] {
            return Err(damaged());
        }
        let header = serde_json::from_slice(&bytes[begin..end]).map_err(|_| damaged())?;
        let mut first_digest = [0; 32];
        first_digest.copy_from_slice(&bytes[end..]);
        Ok(Self {
            file,
            path: path.to_owned(),
            length,
            header,
            first: bytes.len() as u64,
            first_digest,
        })
    }

    /// What the file says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    pub(super) fn first(&self) -> u64 {
        self.first
    }

    pub(super) fn first_digest(&self) -> Digest {
        self.first_digest
    }

    /// Every frame, in the order in which they were written, and what is damaged between them. Reads the whole file.
    ///
    /// # Errors
    /// Those of the file itself.
    pub fn frames(&mut self) -> Result<Vec<Found>, Error> {
        self.scan().map_err(|e| unreadable(&self.path, &e))
    }

    fn scan(&mut self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        let (mut at, mut next) = (self.first, 0);
        while at < self.length {
            let bad = match self.frame_at(at)? {
                Ok(frame) => {
                    if frame.number != next {
                        found.push(Found::Damaged {
                            at,
                            bytes: 0,
                            why: "frames are missing here".into(),
                        });
                    }
                    (at, next) = (frame.end, frame.number + 1);
                    found.push(Found::Whole(frame));
                    continue;
                }
                Err(why) => why,
            };
            let begin = at;
            let mut later = None;
            while let Some(here) = self.next_mark(at + 1)? {
                at = here;
                if let Ok(frame) = self.frame_at(at)? {
                    next = frame.number;
                    later = Some(());
                    break;
                }
            }
            let end = if later.is_some() { at } else { self.length };
            found.push(Found::Damaged {
                at: begin,
                bytes: end - begin,
                why: bad.to_owned(),
            });
            at = end;
        }
        Ok(found)
    }

    /// The next place from `from` on where a frame may begin.
    fn next_mark(&mut self, from: u64) -> io::Result<Option<u64>> {
        let mut at = from;
        let mut window = vec![0; 1 << 16];
        while at < self.length {
            self.file.seek(SeekFrom::Start(at))?;
            let mut got = 0;
            while got < window.len() {
                match self.file.read(&mut window[got..])? {
                    0 => break,
                    n => got += n,
                }
            }
            let place = window[..got]
                .windows(FRAME.len())
                .position(|w| w == &FRAME[..]);
            if let Some(place) = place {
                return Ok(Some(at + place as u64));
            }
            if got < window.len() {
                break;
            }
            at += (got - FRAME.len() + 1) as u64;
        }
        Ok(None)
    }

    /// The frame that begins there, or what is wrong with it. What the digest before it is, stands before it.
    fn frame_at(&mut self, at: u64) -> io::Result<Result<FrameAt, &'static str>> {
        const CUT: &str = "it is cut off";
        const CHANGED: &str = "it is damaged";
        if at < 32 || self.length - at < 16 + 4 + 32 {
            return Ok(Err(CUT));
        }
        self.file.seek(SeekFrom::Start(at - 32))?;
        let mut begin = [0; 48];
        self.file.read_exact(&mut begin)?;
        let mut before = [0; 32];
        before.copy_from_slice(&begin[..32]);
        if begin[32..36] != FRAME[..] {
            return Ok(Err(CHANGED));
        }
        let number = u32::from_le_bytes([begin[36], begin[37], begin[38], begin[39]]);
        let mut length = [0; 8];
        length.copy_from_slice(&begin[40..]);
        let length = u64::from_le_bytes(length);
        let rows = at + 16;
        if length == 0 || length > self.length - rows {
            return Ok(Err(CUT));
        }
        let mut digest = Sha256::new();
        let hashed = io::copy(&mut (&self.file).take(length), &mut digest)?;
        let mut size = [0; 4];
        if hashed != length || self.length - rows - length < 4 + 32 {
            return Ok(Err(CUT));
        }
        self.file.read_exact(&mut size)?;
        let size = u32::from_le_bytes(size);
        if u64::from(size) + 32 > self.length - rows - length - 4 || size > LONGEST_HEAD {
            return Ok(Err(CUT));
        }
        let mut said = vec![0; size as usize];
        self.file.read_exact(&mut said)?;
        let mut stated = [0; 32];
        self.file.read_exact(&mut stated)?;
        let digest = digest_of(digest, &before, number, length, &said);
        if digest != stated {
            return Ok(Err(CHANGED));
        }
        Ok(match serde_json::from_slice(&said) {
            Ok(head) => Ok(FrameAt {
                number,
                head,
                rows,
                bytes: length,
                end: rows + length + 4 + u64::from(size) + 32,
                digest,
            }),
            Err(_) => Err("a newer roomkeeper wrote it"),
        })
    }

    /// The rows of a frame, with these keys where it is encrypted.
    ///
    /// # Errors
    /// [`Error::Refused`] where none of the keys opens it; those of the file.
    pub fn records(&self, frame: &FrameAt, keys: &[Identity]) -> Result<Records, Error> {
        let mut file = File::open(&self.path).map_err(|e| unreadable(&self.path, &e))?;
        file.seek(SeekFrom::Start(frame.rows))
            .map_err(|e| unreadable(&self.path, &e))?;
        let rows = file.take(frame.bytes);
        let rows: Box<dyn Read> = match frame.head.is_encrypted {
            false => Box::new(rows),
            true => Box::new(self.decrypted(BufReader::new(rows), keys)?),
        };
        let open = || {
            let rows = BufReader::new(rows);
            let rows = zstd::stream::read::Decoder::with_buffer(rows)?;
            Ok(Decoder::new(BufReader::with_capacity(1 << 16, rows)))
        };
        open().map_err(|e: io::Error| unreadable(&self.path, &e))
    }
}

impl Reader {
    fn decrypted<R: Read>(&self, rows: R, keys: &[Identity]) -> Result<impl Read + use<R>, Error> {
        let refuse = |why: &str| Error::Refused(format!("{}: {why}", self.path.display()));
        if keys.is_empty() {
            return Err(refuse(
                "the archive is encrypted, and nobody can read it without its private key: --identity FILE",
            ));
        }
        let keys = keys.iter().map(|key| &key.0 as &dyn age::Identity);
        let opened = age::Decryptor::new(rows).and_then(|rows| rows.decrypt(keys));
        opened.map_err(|e| match e {
            age::DecryptError::NoMatchingKeys => {
                refuse("none of the private keys that were given opens the archive")
            }
            e => refuse(&format!("the archive cannot be decrypted: {e}")),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::archive::{Cell, Kind, Record, Witness, Writer, file_of};
    use crate::ids::{EventId, JobId, RoomId};
    use crate::time::Millis;

    fn header() -> Header {
        Header {
            job: JobId::from("abc"),
            at_ms: Millis(1),
            server_name: "example.org".into(),
            engine: "sqlite".into(),
            schema: 94,
        }
    }

    fn add(writer: &mut Writer, n: i64) {
        let mut frame = writer.frame(3, &[]).expect("begun");
        frame.table("events", &["n", "text"]).expect("written");
        for row in 0..50 {
            let text = format!("the body of message {n} {row}").into();
            frame
                .row(&[Cell::Int(n * 1000 + row), Cell::Text(text)])
                .expect("written");
        }
        let head = Head {
            kind: Kind::Events,
            room: RoomId::new("!r:example.org"),
            at_ms: Millis(n),
            events: 50,
            rows: frame.counts().clone(),
            is_encrypted: false,
            witness: Some(Witness::Deleted {
                event_id: EventId::new(format!("${n}")),
                stream_ordering: n,
            }),
        };
        frame.finish(&head).expect("written");
    }

    fn numbers(path: &Path) -> (Vec<i64>, usize) {
        let mut reader = Reader::open(path).expect("ours");
        let (mut whole, mut damaged) = (Vec::new(), 0);
        for found in reader.frames().expect("read") {
            let Found::Whole(frame) = found else {
                damaged += 1;
                continue;
            };
            let mut records = reader.records(&frame, &[]).expect("read");
            let mut first = None;
            let mut rows = 0;
            while let Some(record) = records.read().expect("whole") {
                if let Record::Row(row) = record {
                    first.get_or_insert(row[0].int().expect("a number"));
                    rows += 1;
                }
            }
            assert_eq!(rows, 50);
            assert_eq!(frame.head.at_ms.0 * 1000, first.expect("rows"));
            whole.push(frame.head.at_ms.0);
        }
        (whole, damaged)
    }

    #[test]
    fn a_frame_whose_transaction_did_not_commit_gives_its_place_to_the_next() {
        let directory = tempfile::tempdir().expect("made");
        let path = file_of(&directory.path().join("new"), &header().job);
        let mut writer = Writer::open(&path, &header()).expect("made");
        add(&mut writer, 1);
        writer.committed();
        add(&mut writer, 2);
        writer.settle(|_| Ok(true)).expect("asked");
        add(&mut writer, 3);
        writer.settle(|_| Ok(false)).expect("asked");
        add(&mut writer, 4);
        drop(writer);
        assert_eq!(numbers(&path), (vec![1, 3, 4], 0));
        // The process died; what it was about to commit stands, or does not.
        for (stands, wanted) in [(false, vec![1, 3, 4, 5]), (true, vec![1, 3, 4, 6])] {
            let mut writer = Writer::open(&path, &header()).expect("ours");
            writer
                .settle(|witness| {
                    assert!(matches!(witness, Witness::Deleted { stream_ordering, .. } if *stream_ordering > 3));
                    Ok(stands)
                })
                .expect("asked");
            add(&mut writer, if stands { 6 } else { 5 });
            drop(writer);
            assert_eq!(numbers(&path), (wanted, 0));
        }
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&path).expect("there"));
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_is_damaged_costs_its_own_frame_and_no_other() {
        let directory = tempfile::tempdir().expect("made");
        let path = file_of(directory.path(), &header().job);
        let mut writer = Writer::open(&path, &header()).expect("made");
        let mut ends = vec![writer.bytes()];
        for n in 1..=4 {
            add(&mut writer, n);
            writer.committed();
            ends.push(writer.bytes());
        }
        drop(writer);
        let bytes = fs::read(&path).expect("there");
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x41;
            fs::write(&path, &changed).expect("written");
            if at < ends[0] as usize {
                Reader::open(&path)
                    .map(drop)
                    .expect_err("its beginning is damaged");
                continue;
            }
            let hit = ends
                .iter()
                .position(|end| at < *end as usize)
                .expect("within") as i64;
            // The digest at the end of a frame is needed by the one behind it as well.
            let is_digest = at + 32 >= ends[hit as usize] as usize;
            let (whole, damaged) = numbers(&path);
            let wanted: Vec<i64> = (1..=4)
                .filter(|n| *n != hit && !(is_digest && *n == hit + 1))
                .collect();
            assert_eq!((whole, damaged > 0), (wanted, true), "byte {at}");
        }
        for length in (0..bytes.len()).step_by(7) {
            fs::write(&path, &bytes[..length]).expect("written");
            if (length as u64) < ends[0] {
                Reader::open(&path).map(drop).expect_err("cut off");
                continue;
            }
            let whole = ends.iter().filter(|end| **end <= length as u64).count() - 1;
            let damaged = usize::from(!ends.contains(&(length as u64)));
            assert_eq!(numbers(&path), ((1..=whole as i64).collect(), damaged));
        }
        // A job that goes on behind a cut writes over it.
        fs::write(&path, &bytes[..ends[3] as usize - 5]).expect("written");
        let mut writer = Writer::open(&path, &header()).expect("ours");
        writer.settle(|_| Ok(false)).expect("asked");
        add(&mut writer, 9);
        drop(writer);
        assert_eq!(numbers(&path), (vec![1, 2, 9], 0));
        fs::write(&path, b"SQLite format 3").expect("written");
        Reader::open(&path).map(drop).expect_err("foreign");
    }
}
