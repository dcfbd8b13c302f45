//! Media that go with the events that refer to them, and with nothing else: which they are, in a plan and in a job.
//!
//! A job notes in its ledger what the events refer to that go, in their transactions. Once all have gone it reads every text
//! of the database: what anything still refers to stays. Of an encrypted room nothing goes, because nobody can tell.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::media::{self as taking, MEDIA, MediaSummary};
use super::{JobContext, Phase, Progress, clean_up, overwrite};
use crate::config::MediaStore;
use crate::error::Error;
use crate::hold::Hold;
use crate::ids::{JobId, RoomId};
use crate::store::db::{Db, Engine};
use crate::store::media::{
    self, Going, MediaFile, MediaName, Unreferenced, is_media_id, is_server_name,
};
use crate::store::removed;
use crate::time::Millis;

/// What becomes of media that nothing but the events refers to which go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MediaFate {
    /// They stay.
    #[default]
    Stay,
    /// They go as well.
    Go,
    /// They go as well, also where archives are kept, of which they are no part.
    GoUnarchived,
}

impl MediaFate {
    /// By the two words that are said.
    ///
    /// # Errors
    /// A sentence, where the second is said without the first.
    pub fn of(with_media: bool, not_archived: bool) -> Result<Self, String> {
        match (with_media, not_archived) {
            (false, false) => Ok(Self::Stay),
            (true, false) => Ok(Self::Go),
            (true, true) => Ok(Self::GoUnarchived),
            (false, true) => Err(
                "media_not_archived says that media go although archives are kept: say with_media as well".into(),
            ),
        }
    }

    /// Whether they go.
    pub fn goes(self) -> bool {
        self != Self::Stay
    }

    /// Whether they stay, as they do where nothing is said.
    pub fn is_stay(&self) -> bool {
        !self.goes()
    }
}

/// Files of a plan that are told one by one.
const FILES_TOLD: usize = 100;

/// A file of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedMedia {
    /// `mxc://server/id`.
    pub uri: String,
    /// Its bytes.
    pub bytes: i64,
    /// Who uploaded it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// When, or when it was fetched.
    pub created_ms: Millis,
}

/// Which media would go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MediaPlan {
    /// Files that would go, copies of what other servers have among them.
    pub files: i64,
    /// Of these, copies.
    pub remote_files: i64,
    /// Their thumbnails.
    pub thumbnails: i64,
    /// Bytes of both, as their rows say.
    pub bytes: i64,
    /// What would stay, and why.
    pub stays: MediaSummary,
    /// The largest that would go, no more than a hundred.
    pub largest: Vec<PlannedMedia>,
    /// What a person should know; why it would be refused, where it would.
    pub notes: Vec<String>,
}

impl MediaPlan {
    /// Adds a file that would go.
    pub(crate) fn add(&mut self, db: &Db, file: MediaFile, server_name: &str) -> Result<(), Error> {
        let (thumbnails, bytes) = media::thumbnails(db, &file)?;
        self.files += 1;
        self.remote_files += i64::from(file.origin.is_some());
        self.thumbnails += thumbnails;
        self.bytes += file.bytes + bytes;
        self.largest.push(PlannedMedia {
            uri: file.uri(server_name),
            bytes: file.bytes,
            user_id: file.user_id,
            created_ms: file.created,
        });
        if self.largest.len() > 2 * FILES_TOLD {
            self.keep_largest();
        }
        Ok(())
    }

    /// Leaves no more to tell than is told.
    pub(crate) fn keep_largest(&mut self) {
        let files = &mut self.largest;
        files.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.uri.cmp(&b.uri)));
        files.truncate(FILES_TOLD);
    }
}

/// Those of some files that nothing refers to which does not go, and that nobody holds. Reads every text of the database once;
/// `each` hears of every table before it is read.
///
/// # Errors
/// Those of the database, and of `each`.
pub(crate) fn unreferenced(
    db: &Db,
    files: Vec<MediaFile>,
    going: Going<'_>,
    holds: &[Hold],
    summary: &mut MediaSummary,
    each: &mut dyn FnMut(&str) -> Result<(), Error>,
) -> Result<Vec<MediaFile>, Error> {
    let mut wanted = Unreferenced::default();
    summary.files_looked_at += files.len() as i64;
    let is_plain = |file: &MediaFile| {
        is_media_id(&file.media_id) && file.origin.as_deref().is_none_or(is_server_name)
    };
    let (files, odd): (Vec<MediaFile>, Vec<MediaFile>) = files.into_iter().partition(is_plain);
    summary.files_odd += odd.len() as i64;
    files.iter().for_each(|file| wanted.add(&file.media_id));
    media::strike_referenced(db, &mut wanted, going, each)?;
    let mut left = Vec::new();
    for file in files {
        if !wanted.contains(&file.media_id) {
            summary.files_referred_to += 1;
        } else if taking::is_held(&file, holds) {
            summary.files_held += 1;
        } else {
            left.push(file);
        }
    }
    Ok(left)
}

/// Counts what encrypted messages of a room may refer to, as what stays; answers whether the room is encrypted.
fn count_encrypted(
    db: &Db,
    room: &RoomId,
    server_name: &str,
    summary: &mut MediaSummary,
) -> Result<bool, Error> {
    if !media::is_encrypted(db, room)? {
        return Ok(false);
    }
    let (files, bytes) = media::uploads_beside_encrypted(db, room, server_name)?;
    summary.files_not_attributable = files;
    summary.bytes_not_attributable = bytes;
    summary.rooms_encrypted = 1;
    Ok(true)
}

/// What would go with the events of a room that go: all of them, or those of the selection of a purge that is planned, in the
/// same transaction. Where a homeserver runs, copies of what other servers have stay. `each` hears of every file that goes, always in the same order.
///
/// # Errors
/// Those of the database.
pub(crate) fn plan(
    db: &Db,
    room: &RoomId,
    going: Going<'_>,
    server_name: &str,
    holds: &[Hold],
    is_running: bool,
    each: &mut dyn FnMut(&str),
) -> Result<MediaPlan, Error> {
    let mut plan = MediaPlan::default();
    if count_encrypted(db, room, server_name, &mut plan.stays)? {
        return Ok(plan);
    }
    let mut names = BTreeSet::new();
    let mut add = |name: MediaName| {
        names.insert(name);
    };
    match going {
        Going::Room(room) => media::for_each_of_room(db, room, server_name, &mut add)?,
        Going::Selected => media::for_each_selected(db, server_name, &mut add)?,
        Going::Nothing => {}
    }
    let files = media::files_of(db, names.into_iter())?;
    if files.is_empty() {
        return Ok(plan);
    }
    for file in unreferenced(db, files, going, holds, &mut plan.stays, &mut |_| Ok(()))? {
        if is_running && file.origin.is_some() {
            plan.stays.files_left_to_homeserver += 1;
            continue;
        }
        each(&file.uri(server_name));
        plan.add(db, file, server_name)?;
    }
    plan.keep_largest();
    Ok(plan)
}

/// Whether media go with the events of a job.
#[derive(Debug, Default)]
pub(crate) struct MediaNotes {
    /// The job that looks at them when all has gone, where it is not the one whose events go.
    pub under: Option<JobId>,
    /// Whether what its events refer to is noted.
    pub are_taken: bool,
}

/// Files whose references are looked for at once: some 100 bytes of memory each.
const WINDOW: i64 = 500_000;

/// What a job told of media so far.
pub(crate) fn told(progress: &Progress) -> Option<MediaSummary> {
    let told = progress.more.get(MEDIA).cloned();
    told.and_then(|value| serde_json::from_value(value).ok())
}

/// What an earlier process removed of the same job: that stays told, and the rest is counted anew.
pub(crate) fn removed_before(progress: &Progress) -> MediaSummary {
    let told = told(progress).unwrap_or_default();
    MediaSummary {
        files_removed: told.files_removed,
        remote_removed: told.remote_removed,
        thumbnails_removed: told.thumbnails_removed,
        bytes_removed: told.bytes_removed,
        ..MediaSummary::default()
    }
}

impl JobContext<'_> {
    /// Before the first event goes: from here on it is noted what events refer to, if media go with them at all. Of an encrypted
    /// room that is noted of none, also by whoever goes on with the job.
    pub(crate) fn begin_media(
        &mut self,
        fate: MediaFate,
        progress: &mut Progress,
    ) -> Result<(), Error> {
        self.media.are_taken = false;
        if !fate.goes() {
            return Ok(());
        }
        if told(progress).is_some_and(|told| told.rooms_encrypted > 0) {
            return Ok(());
        }
        let mut summary = removed_before(progress);
        let is_encrypted = count_encrypted(&self.db, self.room, self.server_name, &mut summary)?;
        self.media.are_taken = !is_encrypted;
        summary.publish(progress);
        if is_encrypted {
            // What shows that it is may go before the rest does.
            self.save_progress(progress);
        }
        Ok(())
    }

    /// After the last event went: takes away what was noted, as far as nothing refers to it any more.
    ///
    /// # Errors
    /// [`Error::Refused`] where media cannot be taken away as it is now; those of the database, the file system, the ledger and
    /// the homeserver. What is noted stays noted.
    pub(crate) fn take_noted_media(
        &mut self,
        store: &MediaStore,
        progress: &mut Progress,
    ) -> Result<(), Error> {
        let job = self.live.id.clone();
        let before = told(progress).unwrap_or_default();
        let mut summary = MediaSummary {
            files_not_attributable: before.files_not_attributable,
            bytes_not_attributable: before.bytes_not_attributable,
            rooms_encrypted: before.rooms_encrypted,
            files_looked_at: before.files_removed,
            ..removed_before(progress)
        };
        taking::finish_interrupted(self, store, &mut summary)?;
        let mut after = (String::new(), String::new());
        let mut has_begun = false;
        loop {
            let since = removed::greatest_stream_ordering(&self.db)?.unwrap_or(0);
            let noted = self.ledger.noted_media(&job, &after, WINDOW)?;
            let Some(last) = noted.last().cloned() else {
                break;
            };
            after = last;
            if !has_begun && self.db.engine() == Engine::Sqlite {
                let how = overwrite::choose_secure_delete(self, i64::MAX)?;
                overwrite::add_pending(self.ledger, how, false)?;
            }
            has_begun = true;
            progress.phase = Phase::Media;
            let names = noted.into_iter().map(|(origin, media_id)| MediaName {
                origin: Some(origin).filter(|origin| !origin.is_empty()),
                media_id,
            });
            let files = media::files_of(&self.db, names)?;
            let holds = self.ledger.holds()?;
            let mut each = |table: &str| {
                self.check_cancelled()?;
                progress.table = Some(table.to_owned());
                self.publish(progress);
                Ok(())
            };
            let nothing = Going::Nothing;
            let go = unreferenced(&self.db, files, nothing, &holds, &mut summary, &mut each)?;
            progress.table = None;
            taking::take(self, progress, store, since, &go, &mut summary)?;
        }
        summary.publish(progress);
        if has_begun {
            self.ledger.forget_media(&job)?;
            clean_up(self, progress)?;
        }
        self.publish(progress);
        Ok(())
    }
}
