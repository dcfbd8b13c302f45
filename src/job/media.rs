//! Taking media away. While no homeserver runs: rows, then files. While one runs it does both, asked one by one, because it alone
//! knows what it has in its caches and where its storage providers keep things.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{JobContext, Limits, Outcome, Progress, Scope, ServerState};
use crate::client::{Client, ClientError, encoded_text};
use crate::config::{HomeserverApi, MediaStore};
use crate::error::Error;
use crate::hold::Hold;
use crate::jobs::media::NotedMedia;
use crate::media_files::{Found, MediaFiles, Paths};
use crate::plural::{count, count_of};
use crate::store::media::{self, MediaFile, MediaName, Unreferenced};
use crate::store::space::human;

/// Under which word a job tells what it did to media.
pub const MEDIA: &str = "media";

/// Files that are taken away in one transaction.
pub(crate) const CHUNK: usize = 200;

/// What a job did to media, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MediaSummary {
    /// Files that there are of those that were asked for: old enough, or named by events that went.
    pub files_looked_at: i64,
    /// Files that went with their rows, thumbnails not counted.
    pub files_removed: i64,
    /// Of these, copies of what other servers have.
    pub remote_removed: i64,
    /// Thumbnails that went.
    pub thumbnails_removed: i64,
    /// Bytes that went, of both; of what the homeserver removed those that its rows tell.
    pub bytes_removed: i64,
    /// Files that something still refers to.
    pub files_referred_to: i64,
    /// Files of which nobody can tell whether an encrypted message refers to them.
    pub files_not_attributable: i64,
    /// Their bytes.
    pub bytes_not_attributable: i64,
    /// Encrypted rooms, of which no file goes with its messages.
    #[serde(skip_serializing_if = "is_zero")]
    pub rooms_encrypted: i64,
    /// Files that a hold keeps.
    pub files_held: i64,
    /// Files that are not where the homeserver would have put them: they stay with their rows.
    pub files_missing: i64,
    /// Files with names or at places that no homeserver gives, such as behind a symbolic link: they stay.
    pub files_odd: i64,
    /// Copies of what other servers have that stay because the homeserver runs: it has no door to take one away by.
    pub files_left_to_homeserver: i64,
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// How media are taken away at this moment.
pub(crate) enum MediaWay<'a> {
    /// By ourselves.
    Files(MediaFiles),
    /// By the homeserver.
    Homeserver(&'a HomeserverApi),
}

/// How media can be taken away while a homeserver runs, or does not.
///
/// # Errors
/// [`Error::Refused`] where they cannot, with what would help.
pub(crate) fn way<'a>(
    store: &MediaStore,
    api: Option<&'a HomeserverApi>,
    is_running: bool,
) -> Result<MediaWay<'a>, Error> {
    let refused = |why: &str| Err(Error::Refused(format!("media cannot be removed: {why}")));
    match (is_running, api, &store.directory) {
        (true, Some(api), _) => Ok(MediaWay::Homeserver(api)),
        (true, None, _) => refused(
            "a homeserver runs, and it has to do it itself. Say in roomkeeper.homeserver.url and admin_token_path how to ask \
             it, or stop it",
        ),
        (false, _, _) if store.has_providers => refused(
            "media_storage_providers says that files lie elsewhere as well, where only the homeserver reaches them. Ask while it \
             runs, with roomkeeper.homeserver.url",
        ),
        (false, _, Some(directory)) => MediaFiles::open(directory).map(MediaWay::Files),
        (false, _, None) => refused(
            "nothing says where they lie: give the homeserver's configuration (-c homeserver.yaml) with media_store_path in it",
        ),
    }
}

/// Whether a hold keeps a file: whoever is held uploaded it, or may have. What events refer to that are held, these keep.
pub(crate) fn is_held(file: &MediaFile, holds: &[Hold]) -> bool {
    holds.iter().filter(|hold| hold.is_active()).any(|hold| {
        hold.everything
            || hold.users.iter().any(|user| match &file.origin {
                None => file.user_id.as_deref() == Some(user.as_str()),
                Some(origin) => user.is_local(origin),
            })
    })
}

impl MediaSummary {
    /// What went, and what stays for which reason, in sentences.
    pub fn words(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{} of {} removed with {}: {}",
            self.files_removed,
            count(self.files_looked_at, "file"),
            count(self.thumbnails_removed, "thumbnail"),
            human(self.bytes_removed.unsigned_abs())
        )];
        lines.extend(self.what_stays());
        lines
    }

    /// What stays, and why, in sentences.
    pub fn what_stays(&self) -> Vec<String> {
        let not_attributable = format!(
            "not attributable, {}: an encrypted message may refer to it",
            human(self.bytes_not_attributable.unsigned_abs())
        );
        let all: [(i64, &str); 6] = [
            (self.files_referred_to, "something refers to it"),
            (self.files_not_attributable, &not_attributable),
            (self.files_held, "a hold keeps what its uploader has"),
            (self.files_missing, "it does not lie in the media store"),
            (
                self.files_odd,
                "its name or its place is none that a homeserver gives",
            ),
            (
                self.files_left_to_homeserver,
                "a copy of what another server has, and the homeserver runs and has no door for that: ask again while it is \
                 stopped",
            ),
        ];
        let stays = all.iter().filter(|(files, _)| *files > 0);
        stays
            .map(|(files, why)| {
                format!("  {}: {why}", count_of(*files, "file stays", "files stay"))
            })
            .collect()
    }

    /// Shows what was done so far.
    pub(crate) fn publish(&self, progress: &mut Progress) {
        let told = serde_json::to_value(self).unwrap_or_default();
        progress.more.insert(MEDIA.to_owned(), told);
    }
}

fn name_of(file: &MediaFile) -> MediaName {
    MediaName {
        origin: file.origin.clone(),
        media_id: file.media_id.clone(),
    }
}

fn key_of(file: &MediaFile) -> (String, String) {
    let origin = file.origin.clone().unwrap_or_default();
    (origin, file.media_id.clone())
}

/// Finishes what somebody was interrupted in: a file whose row is gone goes, one whose row is there is looked at anew by whoever
/// wants to.
///
/// # Errors
/// Those of the file system, the database and the ledger.
pub(crate) fn finish_interrupted(
    ctx: &JobContext<'_>,
    store: &MediaStore,
    summary: &mut MediaSummary,
) -> Result<(), Error> {
    let going = ctx.ledger.going_media()?;
    let (false, Some(directory)) = (going.is_empty(), &store.directory) else {
        return Ok(());
    };
    let files = MediaFiles::open(directory)?;
    for (job, noted) in going {
        // It is in the middle of it, and will be through.
        if job != ctx.live.id && ctx.register.is_live(&job) {
            continue;
        }
        let name = MediaName {
            origin: Some(noted.origin.clone()).filter(|origin| !origin.is_empty()),
            media_id: noted.media_id.clone(),
        };
        let on_disk = noted.file.as_deref().unwrap_or_default();
        if media::has_row(&ctx.db, &name)? {
            let stands = (noted.origin, noted.media_id);
            ctx.ledger.media_stands(&job, &[stands])?;
            continue;
        }
        if let Some(paths) = Paths::of(name.origin.as_deref(), on_disk) {
            remove(&files, &paths, name.origin.is_some(), summary)?;
        }
        let decided = (noted.origin, noted.media_id);
        ctx.ledger.media_is_decided(&job, &[decided])?;
    }
    Ok(())
}

fn remove(
    files: &MediaFiles,
    paths: &Paths,
    is_remote: bool,
    summary: &mut MediaSummary,
) -> Result<(), Error> {
    let (count, bytes) = files.remove(paths)?;
    summary.files_removed += 1;
    summary.remote_removed += i64::from(is_remote);
    summary.thumbnails_removed += i64::try_from(count.saturating_sub(1)).unwrap_or(0);
    summary.bytes_removed += i64::try_from(bytes).unwrap_or(0);
    Ok(())
}

/// Takes files away, of which nothing up to the stream ordering `since` refers to any. What is referred to by now, quarantined by
/// now or held stays. A cancelled job ends between two chunks.
///
/// # Errors
/// [`Error::Refused`] where a homeserver was started or stopped, and media cannot be taken away as it is now; those of the
/// database, the file system and the homeserver. What is noted in the ledger is finished by the next who takes media away.
pub(crate) fn take(
    ctx: &mut JobContext<'_>,
    progress: &mut Progress,
    store: &MediaStore,
    since: i64,
    files: &[MediaFile],
    summary: &mut MediaSummary,
) -> Result<(), Error> {
    for chunk in files.chunks(CHUNK) {
        loop {
            ctx.check_cancelled()?;
            ctx.look_for_homeserver()?;
            let holds = ctx.ledger.holds()?;
            let (held, free): (Vec<&MediaFile>, Vec<&MediaFile>) =
                chunk.iter().partition(|file| is_held(file, &holds));
            let is_running = ctx.server_state == ServerState::Running;
            let is_done = match way(store, ctx.homeserver, is_running)? {
                MediaWay::Files(files) => {
                    take_ourselves(ctx, progress, &files, since, &free, summary)?
                }
                MediaWay::Homeserver(api) => {
                    have_taken(ctx, api, since, &free, summary)?;
                    true
                }
            };
            if is_done {
                summary.files_held += held.len() as i64;
                break;
            }
        }
        let keys: Vec<(String, String)> = chunk.iter().map(key_of).collect();
        ctx.ledger.media_is_decided(&ctx.live.id, &keys)?;
        summary.publish(progress);
        ctx.publish(progress);
        ctx.save_progress(progress);
    }
    Ok(())
}

/// Answers false where a homeserver was started meanwhile: nothing was done then.
fn take_ourselves(
    ctx: &mut JobContext<'_>,
    progress: &mut Progress,
    files: &MediaFiles,
    since: i64,
    chunk: &[&MediaFile],
    summary: &mut MediaSummary,
) -> Result<bool, Error> {
    let (mut missing, mut odd) = (0, 0);
    let mut going: Vec<(&MediaFile, Paths)> = Vec::new();
    for file in chunk {
        let Some(paths) = Paths::of(file.origin.as_deref(), &file.filesystem_id) else {
            odd += 1;
            continue;
        };
        match files.find(&paths)? {
            Found::File => going.push((file, paths)),
            Found::Nothing => missing += 1,
            Found::Odd => odd += 1,
        }
    }
    let noted: Vec<NotedMedia> = going
        .iter()
        .map(|(file, _)| NotedMedia {
            origin: file.origin.clone().unwrap_or_default(),
            media_id: file.media_id.clone(),
            file: Some(file.filesystem_id.clone()),
        })
        .collect();
    ctx.ledger.media_is_going(&ctx.live.id, &noted)?;
    let limits = Limits {
        is_batch: true,
        ..Limits::default()
    };
    let doing = "delete the rows of media";
    let outcome = ctx.transaction(progress, doing, Scope::Server, limits, |tx, effects| {
        let mut wanted = Unreferenced::default();
        going
            .iter()
            .for_each(|(file, _)| wanted.add(&file.media_id));
        media::strike_newer(tx, &mut wanted, since)?;
        let mut gone = Vec::new();
        for (at, (file, _)) in going.iter().enumerate() {
            if wanted.contains(&file.media_id) && media::delete(tx, file, &mut effects.rows)? {
                gone.push(at);
            }
        }
        Ok(gone)
    })?;
    let gone = match outcome {
        Outcome::Done(gone, _) => gone,
        Outcome::TooLong | Outcome::Aborted(_) => return Ok(false),
    };
    for at in &gone {
        let (file, paths) = &going[*at];
        remove(files, paths, file.origin.is_some(), summary)?;
    }
    summary.files_missing += missing;
    summary.files_odd += odd;
    summary.files_referred_to += (going.len() - gone.len()) as i64;
    Ok(true)
}

/// Has the homeserver take them away, one by one.
fn have_taken(
    ctx: &JobContext<'_>,
    api: &HomeserverApi,
    since: i64,
    chunk: &[&MediaFile],
    summary: &mut MediaSummary,
) -> Result<(), Error> {
    let client = Client::tcp(&api.address, api.token.reveal());
    let mut wanted = Unreferenced::default();
    chunk.iter().for_each(|file| wanted.add(&file.media_id));
    media::strike_newer(&ctx.db, &mut wanted, since)?;
    let mut asked: HashSet<&str> = HashSet::new();
    for file in chunk {
        ctx.check_cancelled()?;
        if file.origin.is_some() {
            summary.files_left_to_homeserver += 1;
            continue;
        }
        let still = media::named(&ctx.db, &name_of(file))?;
        if still.is_none() || !wanted.contains(&file.media_id) || !asked.insert(&file.media_id) {
            summary.files_referred_to += 1;
            continue;
        }
        let (thumbnails, more) = media::thumbnails(&ctx.db, file)?;
        let path = format!(
            "/_synapse/admin/v1/media/{}/{}",
            encoded_text(ctx.server_name),
            file.media_id
        );
        let is_over = || ctx.check_cancelled().is_err();
        let reply = match client.request_unless("DELETE", &path, None, &is_over) {
            Err(e @ ClientError::Abandoned { .. }) => {
                ctx.check_cancelled()?;
                return Err(refusal(&e.to_string()));
            }
            Err(e) => return Err(refusal(&e.to_string())),
            Ok(reply) => reply,
        };
        match reply.status {
            200 => {
                summary.files_removed += 1;
                summary.thumbnails_removed += thumbnails;
                summary.bytes_removed += file.bytes + more;
            }
            // Somebody else was faster.
            404 => {}
            status => {
                let said = reply.body.get("error").and_then(serde_json::Value::as_str);
                let said = said.unwrap_or("no reason given");
                return Err(refusal(&format!("it answered {status}: {said}")));
            }
        }
    }
    Ok(())
}

fn refusal(why: &str) -> Error {
    Error::Refused(format!(
        "the homeserver at roomkeeper.homeserver.url did not remove a file: {why}. What was removed before stays so; ask again \
         to go on"
    ))
}
