//! A job's archive: begun with the first transaction that removes something, and asked of the database whether its last
//! frame counts.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{JobContext, Progress, ServerState};
use crate::archive::{self, Frame, Head, Header, Kind, Witness, Writer};
use crate::config;
use crate::error::Error;
use crate::ids::{JobId, RoomId};
use crate::store::archived;
use crate::store::db::{Db, Engine};
use crate::store::event_rows::RowCounts;
use crate::store::tx::Tx;
use crate::time::Millis;

/// How hard it is compressed while others wait for the database, and while nobody does.
const LEVELS: [i32; 2] = [3, 6];

/// The archive of a job, if there is one. Whoever carries out a transaction of the job has it to itself.
pub(crate) type SharedArchive = Option<Arc<Mutex<JobArchive>>>;

/// The archive of one job.
pub(crate) struct JobArchive {
    settings: config::Archive,
    job: JobId,
    server_name: String,
    writer: Option<Writer>,
}

impl JobArchive {
    /// Makes no file yet.
    pub fn shared(settings: &config::Archive, job: &JobId, server_name: &str) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            settings: settings.clone(),
            job: job.clone(),
            server_name: server_name.to_owned(),
            writer: None,
        }))
    }

    /// Begins a frame, inside the transaction whose rows it is to hold.
    pub fn frame(&mut self, db: &Db, how: ServerState, now: Millis) -> Result<Frame<'_>, Error> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => {
                let header = Header {
                    job: self.job.clone(),
                    at_ms: now,
                    server_name: self.server_name.clone(),
                    engine: match db.engine() {
                        Engine::Sqlite => "sqlite".into(),
                        Engine::Postgres => "postgres".into(),
                    },
                    schema: db.catalog().version(),
                };
                let file = archive::file_of(&self.settings.directory, &self.job);
                none.insert(Writer::open(&file, &header)?)
            }
        };
        writer.settle(|witness| archived::stands(db, witness))?;
        let [running, stopped] = LEVELS;
        let level = match how {
            ServerState::Running => running,
            ServerState::Stopped => stopped,
        };
        writer.frame(level, &self.settings.recipients)
    }

    /// The transaction of the last frame has committed.
    pub fn committed(&mut self) {
        if let Some(writer) = &mut self.writer {
            writer.committed();
        }
    }

    /// Where it is and how large, once there is something in it.
    fn size(&self) -> Option<(PathBuf, u64)> {
        let writer = self.writer.as_ref()?;
        Some((writer.path().to_owned(), writer.bytes()))
    }
}

/// Writes down what a purge of the selected events is about to remove. In the transaction that selected, before anything
/// of it goes. Answers how many rows were written, by table.
pub(crate) fn archive_events(
    archive: &SharedArchive,
    db: &Tx<'_>,
    room: &RoomId,
    events: i64,
    with_documents: bool,
    how: ServerState,
    now: Millis,
) -> Result<Option<RowCounts>, Error> {
    let Some(archive) = archive else {
        return Ok(None);
    };
    let mut archive = archive.lock();
    let frame = archive.frame(db, how, now)?;
    archived::write_selected(db, room, events, with_documents, now, frame).map(Some)
}

/// State groups that are about to go in one transaction.
pub(crate) struct GroupsFrame<'a> {
    frame: Option<Frame<'a>>,
    witness: Option<Witness>,
    kind: Kind,
}

impl<'a> GroupsFrame<'a> {
    /// Begins one, where there is an archive.
    pub fn begin(
        archive: Option<&'a mut JobArchive>,
        db: &Db,
        kind: Kind,
        now: Millis,
    ) -> Result<Self, Error> {
        let how = match kind {
            Kind::MarkedStateGroups => ServerState::Running,
            _ => ServerState::Stopped,
        };
        let frame = archive.map(|archive| archive.frame(db, how, now));
        Ok(Self {
            frame: frame.transpose()?,
            witness: None,
            kind,
        })
    }

    /// Before this group goes, or is left to the homeserver.
    pub fn add(&mut self, db: &Db, group: i64) -> Result<(), Error> {
        let Some(frame) = &mut self.frame else {
            return Ok(());
        };
        if self.witness.is_none() && self.kind == Kind::StateGroups {
            self.witness = archived::witness_of_group(db, group)?;
        }
        archived::write_group(db, group, frame)
    }

    /// Before the transaction commits.
    pub fn finish(self, room: &RoomId, now: Millis) -> Result<(), Error> {
        let Some(frame) = self.frame.filter(|frame| !frame.counts().is_empty()) else {
            return Ok(());
        };
        let head = Head {
            kind: self.kind,
            room: room.clone(),
            at_ms: now,
            events: 0,
            rows: frame.counts().clone(),
            is_encrypted: false,
            witness: self.witness,
        };
        frame.finish(&head)
    }
}

impl JobContext<'_> {
    /// To be called after a commit of a transaction that had a frame.
    pub(crate) fn archive_committed(&self) {
        if let Some(archive) = &self.archive {
            archive.lock().committed();
        }
    }

    /// What a person should know of the archive at the end of a job; and the same for programs, and for its receipt.
    pub(crate) fn tell_of_archive(&self, progress: &mut Progress) {
        const OPENING: &str = "what was removed is in ";
        let Some(archive) = &self.archive else {
            return;
        };
        if progress.rows_removed.values().all(|rows| *rows == 0) {
            return;
        }
        let archive = archive.lock();
        let Some((path, bytes)) = archive.size() else {
            return;
        };
        let until = self.clock.now() + archive.settings.keep;
        // An earlier run of the job said so, too.
        progress.notes.retain(|note| !note.starts_with(OPENING));
        progress.notes.push(format!(
            "{OPENING}{} ({bytes} bytes) until {}: `roomkeeper restore {}` brings it back",
            path.display(),
            until.as_date(),
            archive.job
        ));
        if let Some(file) = path.file_name() {
            let file = file.to_string_lossy();
            let told = serde_json::json!({"file": file, "bytes": bytes, "until_ms": until});
            progress.more.insert("archive".into(), told);
        }
    }
}
