//! Writing: a frame goes to the disk before its transaction commits, and the next one takes its place where it did not.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::cells::{Cell, Encoder};
use super::reader::{Found, Reader};
use super::{Digest, FRAME, Head, Header, MAGIC, Recipient, Witness, digest_of, unwritable};
use crate::error::Error;

/// A job's archive, open to be added to.
pub struct Writer {
    file: File,
    path: PathBuf,
    /// Where the next frame goes.
    end: u64,
    last: Digest,
    number: u32,
    /// Whether a frame was begun and not ended.
    is_dirty: bool,
    /// The last frame, of which nobody has said that its transaction committed.
    open: Option<Open>,
}

struct Open {
    end: u64,
    digest: Digest,
    witness: Option<Witness>,
}

impl Writer {
    /// Begins a file, or goes on with the one that an earlier run of the same job began: whether its last frame counts is
    /// asked then ([`Writer::settle`]), and what stands behind the last whole frame is cut off.
    ///
    /// # Errors
    /// Where the file cannot be made, or is something else.
    pub fn open(path: &Path, header: &Header) -> Result<Self, Error> {
        Self::make(path, header).map_err(|e| unwritable(path, &e))?;
        let mut reader = Reader::open(path)?;
        if reader.header().job != header.job || reader.header().engine != header.engine {
            return Err(Error::Refused(format!(
                "{} is the archive of something else; move it away",
                path.display()
            )));
        }
        let mut writer = Self {
            file: OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .map_err(|e| unwritable(path, &e))?,
            path: path.to_owned(),
            end: reader.first(),
            last: reader.first_digest(),
            number: 0,
            is_dirty: false,
            open: None,
        };
        let mut frames = reader.frames()?.into_iter().peekable();
        while let Some(found) = frames.next() {
            match found {
                Found::Whole(frame) if frames.peek().is_none() => {
                    writer.number = frame.number;
                    writer.open = Some(Open {
                        end: frame.end,
                        digest: frame.digest,
                        witness: frame.head.witness,
                    });
                }
                Found::Whole(frame) => {
                    (writer.end, writer.last) = (frame.end, frame.digest);
                    writer.number = frame.number + 1;
                }
                // At the end it is what was being written when the process died; elsewhere what is behind it still counts.
                Found::Damaged { .. } => {}
            }
        }
        Ok(writer)
    }

    /// A file with nothing but its header, under its name only when that is whole.
    fn make(path: &Path, header: &Header) -> io::Result<()> {
        if path.exists() {
            return Ok(());
        }
        let directory = path.parent().unwrap_or(Path::new("."));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let head = serde_json::to_vec(header)?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend((head.len() as u32).to_le_bytes());
        bytes.extend(&head);
        let digest = Sha256::digest(&bytes);
        bytes.extend(digest);
        let new = path.with_extension("rka-new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(directory)?.sync_all()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.open.as_ref().map_or(self.end, |open| open.end)
    }

    /// The transaction of the last frame has committed.
    pub fn committed(&mut self) {
        if let Some(open) = self.open.take() {
            (self.end, self.last) = (open.end, open.digest);
            self.number += 1;
        }
    }

    /// Where nobody has said so of the last frame: `stands` says whether what its transaction was to take away is still
    /// there. Then the frame does not count.
    ///
    /// # Errors
    /// Those of `stands`.
    pub fn settle(
        &mut self,
        stands: impl FnOnce(&Witness) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let Some(open) = &self.open else {
            return Ok(());
        };
        match &open.witness {
            Some(witness) if stands(witness)? => self.open = None,
            _ => self.committed(),
        }
        Ok(())
    }

    /// Begins a frame, in the place of the last one if that did not count; encrypted to whoever is named, if anybody is.
    ///
    /// # Errors
    /// Those of the file.
    pub fn frame(&mut self, level: i32, to: &[Recipient]) -> Result<Frame<'_>, Error> {
        let path = self.path.clone();
        self.begin(level, to).map_err(|e| unwritable(&path, &e))
    }

    fn begin(&mut self, level: i32, to: &[Recipient]) -> io::Result<Frame<'_>> {
        self.open = None;
        self.is_dirty = true;
        self.file.set_len(self.end)?;
        self.file.seek(SeekFrom::Start(self.end))?;
        let mut file = BufWriter::with_capacity(1 << 16, self.file.try_clone()?);
        file.write_all(FRAME)?;
        file.write_all(&self.number.to_le_bytes())?;
        file.write_all(&0u64.to_le_bytes())?;
        let hashing = Hashing {
            file,
            digest: Sha256::new(),
            length: 0,
        };
        let out = match to {
            [] => Out::Plain(hashing),
            to => {
                let to = to.iter().map(|one| &one.0 as &dyn age::Recipient);
                let encryptor = age::Encryptor::with_recipients(to).map_err(io::Error::other)?;
                Out::Encrypted(Box::new(encryptor.wrap_output(hashing)?))
            }
        };
        let is_encrypted = matches!(out, Out::Encrypted(_));
        let compressing = zstd::stream::write::Encoder::new(out, level)?;
        Ok(Frame {
            writer: self,
            is_encrypted,
            rows: Encoder::new(compressing),
            counts: BTreeMap::new(),
            table: String::new(),
        })
    }
}

impl Drop for Writer {
    /// What was begun and given up is taken away; where that fails, readers find it cut off.
    fn drop(&mut self) {
        if self.is_dirty && self.file.set_len(self.end).is_err() {
            log::warn!("{}: its end could not be cut off", self.path.display());
        }
    }
}

struct Hashing {
    file: BufWriter<File>,
    digest: Sha256,
    length: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.digest.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Where compressed rows go.
enum Out {
    Plain(Hashing),
    Encrypted(Box<age::stream::StreamWriter<Hashing>>),
}

impl Out {
    fn finish(self) -> io::Result<Hashing> {
        match self {
            Self::Plain(hashing) => Ok(hashing),
            Self::Encrypted(encrypting) => encrypting.finish(),
        }
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(hashing) => hashing.write(bytes),
            Self::Encrypted(encrypting) => encrypting.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(hashing) => hashing.flush(),
            Self::Encrypted(encrypting) => encrypting.flush(),
        }
    }
}

/// A frame that is being written. Dropped before [`Frame::finish`], it was none.
pub struct Frame<'a> {
    writer: &'a mut Writer,
    rows: Encoder<zstd::stream::write::Encoder<'static, Out>>,
    is_encrypted: bool,
    counts: BTreeMap<String, i64>,
    table: String,
}

impl Frame<'_> {
    /// See [`Encoder::chunk`].
    pub fn chunk(&mut self) -> io::Result<()> {
        self.rows.chunk()
    }

    /// See [`Encoder::table`].
    pub fn table(&mut self, name: &str, columns: &[&str]) -> io::Result<()> {
        name.clone_into(&mut self.table);
        self.rows.table(name, columns)
    }

    /// See [`Encoder::row`].
    pub fn row(&mut self, cells: &[Cell<'_>]) -> io::Result<()> {
        match self.counts.get_mut(&self.table) {
            Some(count) => *count += 1,
            None => {
                self.counts.insert(self.table.clone(), 1);
            }
        }
        self.rows.row(cells)
    }

    /// Rows so far, by table.
    pub fn counts(&self) -> &BTreeMap<String, i64> {
        &self.counts
    }

    /// What went wrong, with the file's name.
    pub fn explain(&self, e: &io::Error) -> Error {
        unwritable(&self.writer.path, e)
    }

    /// Ends the frame: it is on the disk when this returns, and its transaction may commit.
    ///
    /// # Errors
    /// Those of the file; nothing was written then.
    pub fn finish(self, head: &Head) -> Result<(), Error> {
        let path = self.writer.path.clone();
        self.write(head).map_err(|e| unwritable(&path, &e))
    }

    fn write(self, head: &Head) -> io::Result<()> {
        let Hashing {
            mut file,
            digest,
            length,
        } = self.rows.end()?.finish()?.finish()?;
        let writer = self.writer;
        let said = serde_json::to_vec(&Head {
            is_encrypted: self.is_encrypted,
            ..head.clone()
        })?;
        let digest = digest_of(digest, &writer.last, writer.number, length, &said);
        file.write_all(&(said.len() as u32).to_le_bytes())?;
        file.write_all(&said)?;
        file.write_all(&digest)?;
        file.flush()?;
        writer.file.seek(SeekFrom::Start(writer.end + 8))?;
        writer.file.write_all(&length.to_le_bytes())?;
        writer.file.sync_data()?;
        writer.is_dirty = false;
        writer.open = Some(Open {
            end: writer.end + 16 + length + 4 + said.len() as u64 + 32,
            digest,
            witness: head.witness.clone(),
        });
        Ok(())
    }
}
