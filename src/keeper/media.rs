//! Media that nothing refers to any more: which they are, and taking them away.
//!
//! One job, which reads every text of the database once for each half million files. What is asked for is an age; where an
//! encrypted message might refer to a file nobody can tell, and it stays unless its age and its last access are to decide.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::kind::{self, JobExtent, JobKind, Runner, RunsOn, Work, parameters};
use super::many_rooms::{RoomError, RoomsSummary};
use super::{Keeper, Shared, Viewer};
use crate::config::Config;
use crate::error::{Chain, Error};
use crate::hold::Hold;
use crate::ids::JobId;
use crate::job::media::{self as taking, MediaSummary};
use crate::job::{JobContext, Phase, Progress, clean_up, overwrite};
use crate::jobs::ledger::{JobRecord, Subject};
use crate::jobs::register::JobGuard;
use crate::plural::count;
use crate::store::db::{Db, Engine};
use crate::store::media::{self, Going, MediaFile, Unreferenced, is_media_id, is_server_name};
use crate::store::{reclaim, removed};
use crate::time::Millis;

/// Taking media away.
pub(super) static MEDIA: JobKind = JobKind {
    measure,
    words,
    ..JobKind::new("media", RunsOn::ServerThread, parameters::<MediaRequest>)
};

impl Work for MediaRequest {
    fn run(&self, on: &Runner<'_>, guard: JobGuard) {
        on.shared.run_media(guard, self);
    }
}

/// What was told of media.
fn told(progress: &Progress) -> MediaSummary {
    let told = progress.more.get(taking::MEDIA).cloned();
    told.and_then(|value| serde_json::from_value(value).ok())
        .unwrap_or_default()
}

fn measure(progress: &Progress) -> JobExtent {
    let summary = told(progress);
    JobExtent {
        done: summary.files_removed,
        planned: summary.files_looked_at,
        of: "files",
    }
}

fn words(job: &JobRecord, progress: &Progress) -> Vec<String> {
    let mut lines = vec![kind::what_became_of(job)];
    lines.extend(told(progress).words());
    lines.extend(kind::rows(&progress.rows_removed));
    lines.extend(kind::reclaimable(progress));
    lines
}

/// Files whose references are looked for at once: some 100 bytes of memory each.
const WINDOW: i64 = 500_000;

/// Files of a plan that are told one by one.
const FILES_TOLD: usize = 100;

/// What is asked for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct MediaRequest {
    /// Only what was uploaded, or fetched from another server, before then.
    pub before: Millis,
    /// Also what an encrypted message might refer to, where nobody has looked at it since then either.
    #[serde(default)]
    pub include_unattributable: bool,
    /// Go on although archives are kept, of which media are no part.
    #[serde(default)]
    pub media_not_archived: bool,
}

impl MediaRequest {
    /// Of what is older than that.
    ///
    /// # Errors
    /// A sentence, where that is no age.
    pub fn older_than(age: Millis, now: Millis) -> Result<Self, String> {
        if age <= Millis(0) {
            return Err("media are removed by an age: say how old they are, such as 90d".into());
        }
        Ok(Self {
            before: now - age,
            include_unattributable: false,
            media_not_archived: false,
        })
    }
}

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

/// What such a job would do.
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

/// What is known of who may refer to what.
struct Judge<'a> {
    request: &'a MediaRequest,
    has_encrypted_rooms: bool,
    /// Of this server, in encrypted rooms.
    users: HashSet<String>,
    holds: &'a [Hold],
}

impl<'a> Judge<'a> {
    fn read(
        db: &Db,
        server_name: &str,
        request: &'a MediaRequest,
        holds: &'a [Hold],
    ) -> Result<Self, Error> {
        let has_encrypted_rooms = media::has_encrypted_rooms(db)?;
        let users = match has_encrypted_rooms {
            true => media::users_of_encrypted_rooms(db, server_name)?,
            false => HashSet::new(),
        };
        Ok(Self {
            request,
            has_encrypted_rooms,
            users,
            holds,
        })
    }

    /// Whether every message that may refer to it can be read.
    fn is_attributable(&self, file: &MediaFile) -> bool {
        let is_private = match &file.user_id {
            Some(user) => self.users.contains(user),
            None => self.has_encrypted_rooms,
        };
        !is_private
    }

    /// Whether age and last access decide of what is not attributable. What the encrypted messages of a held room refer to
    /// nobody can tell.
    fn decides_by_age(&self, file: &MediaFile) -> bool {
        self.request.include_unattributable
            && file.last_access < self.request.before
            && !self.holds.iter().any(Hold::is_active)
    }

    /// Those of some files that go.
    fn that_go(
        &self,
        db: &Db,
        files: Vec<MediaFile>,
        summary: &mut MediaSummary,
        each: &mut dyn FnMut(&str) -> Result<(), Error>,
    ) -> Result<Vec<MediaFile>, Error> {
        let mut unreferenced = Unreferenced::default();
        summary.files_looked_at += files.len() as i64;
        let is_plain = |file: &MediaFile| {
            is_media_id(&file.media_id) && file.origin.as_deref().is_none_or(is_server_name)
        };
        let (files, odd): (Vec<MediaFile>, Vec<MediaFile>) = files.into_iter().partition(is_plain);
        summary.files_odd += odd.len() as i64;
        files
            .iter()
            .for_each(|file| unreferenced.add(&file.media_id));
        media::strike_referenced(db, &mut unreferenced, Going::Nothing, each)?;
        let mut go = Vec::new();
        for file in files {
            if !unreferenced.contains(&file.media_id) {
                summary.files_referred_to += 1;
            } else if taking::is_held(&file, self.holds) {
                summary.files_held += 1;
            } else if self.is_attributable(&file) || self.decides_by_age(&file) {
                go.push(file);
            } else {
                summary.files_not_attributable += 1;
                summary.bytes_not_attributable += file.bytes;
            }
        }
        Ok(go)
    }
}

/// Media are no part of archives: what is restored would name files that are gone.
pub(super) fn refuse_unarchived(config: &Config, is_accepted: bool) -> Result<(), Error> {
    match (&config.archive, is_accepted) {
        (Some(_), false) => Err(Error::Refused(
            "archives are kept of what goes, and media are no part of them: messages that are restored would name files that are \
             gone. Say --media-not-archived (over HTTP media_not_archived) if that is meant"
                .into(),
        )),
        _ => Ok(()),
    }
}

fn refuse_without_tables(db: &Db) -> Result<(), Error> {
    match media::is_present(db) {
        true => Ok(()),
        false => Err(Error::Refused(
            "this database has no tables of media: the homeserver keeps none in it".into(),
        )),
    }
}

impl Keeper {
    /// Starts to take media away that nothing refers to any more, and returns at once; the work is a job.
    ///
    /// # Errors
    /// [`Error::Refused`] while the clock may be ahead, where archives are kept, and where media cannot be reached;
    /// [`Error::RoomBusy`] while another job has the whole server; [`Error::QueueFull`], [`Error::Stopping`].
    pub fn remove_media(&self, request: &MediaRequest) -> Result<JobId, Error> {
        if self.is_stopping() {
            return Err(Error::Stopping);
        }
        let shared = &self.shared;
        shared.refuse_clock_ahead()?;
        refuse_unarchived(&shared.config, request.media_not_archived)?;
        shared.with_reader(refuse_without_tables)?;
        let is_running = self.running_homeserver()?.is_some();
        let api = shared.config.homeserver_api.as_ref();
        taking::way(&shared.config.media, api, is_running)?;
        self.start(&MEDIA, &Subject::Server {}, *request)
    }

    /// What that would take away now. Reads only, every text of the database.
    ///
    /// # Errors
    /// [`Error::Refused`] where the database has no media; those of the database.
    pub fn plan_media(&self, request: &MediaRequest) -> Result<MediaPlan, Error> {
        self.viewer()?.plan_media(request)
    }
}

impl Viewer {
    /// As [`Keeper::plan_media`].
    ///
    /// # Errors
    /// As there.
    pub fn plan_media(&self, request: &MediaRequest) -> Result<MediaPlan, Error> {
        let (db, config) = (&self.db, &self.config);
        refuse_without_tables(db)?;
        let holds = self.holds();
        let judge = Judge::read(db, &config.server_name, request, &holds)?;
        let mut plan = MediaPlan::default();
        let is_running = self.running_homeserver()?.is_some();
        let way = taking::way(&config.media, config.homeserver_api.as_ref(), is_running);
        for refused in [
            self.refuse_clock_ahead(),
            refuse_unarchived(config, request.media_not_archived),
            way.map(drop),
        ] {
            let refused = refused.err();
            plan.notes
                .extend(refused.map(|e| format!("it would be refused: {}", Chain(&e))));
        }
        let mut last = None;
        loop {
            let files = media::after(db, last.as_ref(), request.before, WINDOW)?;
            last = files.last().cloned();
            if last.is_none() {
                break;
            }
            for file in judge.that_go(db, files, &mut plan.stays, &mut |_| Ok(()))? {
                if is_running && file.origin.is_some() {
                    plan.stays.files_left_to_homeserver += 1;
                    continue;
                }
                let (thumbnails, bytes) = media::thumbnails(db, &file)?;
                plan.files += 1;
                plan.remote_files += i64::from(file.origin.is_some());
                plan.thumbnails += thumbnails;
                plan.bytes += file.bytes + bytes;
                plan.largest.push(PlannedMedia {
                    uri: file.uri(&config.server_name),
                    bytes: file.bytes,
                    user_id: file.user_id,
                    created_ms: file.created,
                });
                if plan.largest.len() > 2 * FILES_TOLD {
                    keep_largest(&mut plan.largest);
                }
            }
        }
        keep_largest(&mut plan.largest);
        Ok(plan)
    }
}

fn keep_largest(files: &mut Vec<PlannedMedia>) {
    files.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.uri.cmp(&b.uri)));
    files.truncate(FILES_TOLD);
}

impl RoomsSummary for MediaSummary {
    const COULD_NOT: &'static str = "could not be removed";

    fn failed(&self) -> (i64, i64, &[RoomError]) {
        (0, 0, &[])
    }

    fn complete(&self) -> String {
        format!(
            "{} of {} removed, {} bytes",
            self.files_removed,
            count(self.files_looked_at, "file"),
            self.bytes_removed
        )
    }
}

impl Shared {
    /// Carries it out, and says in the ledger how it ended.
    pub(super) fn run_media(&self, guard: JobGuard, request: &MediaRequest) {
        self.run_many(guard, |guard| {
            let goes_on = || self.check_goes_on(guard.live());
            let removed = self.remove_media(guard, request, &|| goes_on().is_err());
            guard.live().set_interrupt(None);
            removed.map_err(|e| match e {
                e if e.is_interrupt() || matches!(e, Error::Stopping) => {
                    goes_on().err().unwrap_or(e)
                }
                e if e.is_damage() => reclaim::damaged(&Chain(&e).to_string()),
                e => self.tell_full_disk(e, None),
            })
        });
    }

    fn remove_media(
        &self,
        guard: &JobGuard,
        request: &MediaRequest,
        is_stopping: &(dyn Fn() -> bool + Sync),
    ) -> Result<MediaSummary, Error> {
        let mut ctx = self.job_context(guard, is_stopping)?;
        let handle = ctx.db.interrupt_handle();
        let live = guard.live();
        live.set_interrupt(Some(Box::new(move || handle.interrupt())));
        // What an earlier process removed of it stays told; the rest is counted anew.
        let mut progress: Progress = serde_json::from_value(live.progress()).unwrap_or_default();
        let mut summary = removed_before(&progress);
        progress.phase = Phase::Counting;
        taking::finish_interrupted(&ctx, &self.config.media, &mut summary)?;
        if ctx.db.engine() == Engine::Sqlite {
            let how = overwrite::choose_secure_delete(&ctx)?;
            overwrite::add_pending(ctx.ledger, how, false)?;
        }
        let mut last = None;
        loop {
            let since = removed::greatest_stream_ordering(&ctx.db)?.unwrap_or(0);
            let files = media::after(&ctx.db, last.as_ref(), request.before, WINDOW)?;
            last = files.last().cloned();
            if last.is_none() {
                break;
            }
            let go = self.judge_media(&ctx, request, files, &mut progress, &mut summary)?;
            let store = &self.config.media;
            taking::take(&mut ctx, &mut progress, store, since, &go, &mut summary)?;
        }
        summary.publish(&mut progress);
        clean_up(&mut ctx, &mut progress)?;
        ctx.publish(&progress);
        Ok(summary)
    }

    fn judge_media(
        &self,
        ctx: &JobContext<'_>,
        request: &MediaRequest,
        files: Vec<MediaFile>,
        progress: &mut Progress,
        summary: &mut MediaSummary,
    ) -> Result<Vec<MediaFile>, Error> {
        let holds = ctx.ledger.holds()?;
        let judge = Judge::read(&ctx.db, ctx.server_name, request, &holds)?;
        let go = judge.that_go(&ctx.db, files, summary, &mut |table| {
            ctx.check_cancelled()?;
            progress.table = Some(table.to_owned());
            ctx.publish(progress);
            Ok(())
        })?;
        progress.table = None;
        summary.publish(progress);
        Ok(go)
    }
}

/// What an earlier process removed of the same job.
fn removed_before(progress: &Progress) -> MediaSummary {
    let told = told(progress);
    MediaSummary {
        files_removed: told.files_removed,
        remote_removed: told.remote_removed,
        thumbnails_removed: told.thumbnails_removed,
        bytes_removed: told.bytes_removed,
        ..MediaSummary::default()
    }
}
