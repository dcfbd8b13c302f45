//! Media that nothing refers to any more: which they are, and taking them away.
//!
//! One job, which reads every text of the database once for each half million files. What is asked for is an age; where an
//! encrypted message might refer to a file nobody can tell, and it stays unless its age and its last access are to decide.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::kind::{self, JobExtent, JobKind, Runner, RunsOn, Work, parameters};
use super::many_rooms::{RoomError, RoomsSummary};
use super::{Keeper, PurgeOptions, Shared, Viewer};
use crate::config::Config;
use crate::error::{Chain, Error};
use crate::hold::Hold;
use crate::ids::{JobId, RoomId};
use crate::job::media::{self as taking, MediaSummary};
use crate::job::media_of_events::{self, removed_before, told, unreferenced};
use crate::job::{JobContext, MediaFate, MediaPlan, Phase, Progress, clean_up, overwrite};
use crate::jobs::ledger::{JobRecord, Subject};
use crate::jobs::register::JobGuard;
use crate::plural::count;
use crate::point::PurgePoint;
use crate::store::db::{Db, Engine};
use crate::store::media::{self, Going, MediaFile};
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

fn measure(progress: &Progress) -> JobExtent {
    let summary = told(progress).unwrap_or_default();
    JobExtent {
        done: summary.files_removed,
        planned: summary.files_looked_at,
        of: "files",
    }
}

fn words(job: &JobRecord, progress: &Progress) -> Vec<String> {
    let mut lines = vec![kind::what_became_of(job)];
    lines.extend(kind::media(progress));
    lines.extend(kind::rows(&progress.rows_removed));
    lines.extend(kind::reclaimable(progress));
    lines
}

/// Files whose references are looked for at once: some 100 bytes of memory each.
const WINDOW: i64 = 500_000;

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
        let nothing = Going::Nothing;
        let mut go = Vec::new();
        for file in unreferenced(db, files, nothing, self.holds, summary, each)? {
            if self.is_attributable(&file) || self.decides_by_age(&file) {
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

/// What stands in the way of media that go with their messages, so that nothing goes at all then.
fn refuse_media(
    config: &Config,
    db: &Db,
    fate: MediaFate,
    is_running: impl FnOnce() -> Result<bool, Error>,
) -> Result<(), Error> {
    if !fate.goes() {
        return Ok(());
    }
    refuse_unarchived(config, fate == MediaFate::GoUnarchived)?;
    refuse_without_tables(db)?;
    taking::way(&config.media, config.homeserver_api.as_ref(), is_running()?).map(drop)
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
    /// Refuses what would not come to an end with the media of its messages.
    pub(super) fn refuse_media(&self, fate: MediaFate) -> Result<(), Error> {
        let is_running = || Ok(self.running_homeserver()?.is_some());
        refuse_media(&self.config, &self.db, fate, is_running)
    }

    /// Which media would go with a room; or, with an age, with those of its messages that are so old, whoever wrote them. Reads
    /// every text of the database.
    ///
    /// # Errors
    /// [`Error::NothingThatOld`], [`Error::WouldEmptyRoom`] for the age; [`Error::Refused`] where the database has no media;
    /// those of the database.
    pub fn plan_media_of_room(
        &self,
        room: &RoomId,
        age: Option<Millis>,
        fate: MediaFate,
    ) -> Result<MediaPlan, Error> {
        refuse_without_tables(&self.db)?;
        let (now, holds) = (self.config.clock.now(), self.holds());
        let mut plan = match age {
            None => {
                let is_running = self.running_homeserver()?.is_some();
                self.db.read("look which media a room has", |db| {
                    let (name, going) = (&self.config.server_name, Going::Room(room));
                    let each = &mut |_: &str| ();
                    media_of_events::plan(db, room, going, name, &holds, is_running, each)
                })?
            }
            Some(age) => {
                let point = PurgePoint::OlderThan(age);
                let options = PurgeOptions {
                    delete_local_events: true,
                    media: MediaFate::Go,
                    ..PurgeOptions::default()
                };
                let (plan, _) = self.plan_purge_unrefused(room, &point, options, now, Some(now))?;
                plan.media.unwrap_or_default()
            }
        };
        let refused = self.refuse_media(fate).err();
        plan.notes
            .extend(refused.map(|e| format!("it would be refused: {}", Chain(&e))));
        Ok(plan)
    }

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
                plan.add(db, file, &config.server_name)?;
            }
        }
        plan.keep_largest();
        Ok(plan)
    }
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
    /// As [`Viewer::refuse_media`].
    pub(super) fn refuse_media(&self, fate: MediaFate) -> Result<(), Error> {
        self.with_reader(|db| {
            refuse_media(&self.config, db, fate, || {
                Ok(self.running_homeserver(db)?.is_some())
            })
        })
    }

    /// The last step of a job whose messages take their media along. `done` says how the rest of it ended.
    pub(super) fn take_media_of(
        &self,
        ctx: &mut JobContext<'_>,
        fate: MediaFate,
        done: Result<Progress, Error>,
    ) -> Result<Progress, Error> {
        if !fate.goes() {
            return done;
        }
        let taken = done.and_then(|mut progress| {
            let handle = ctx.db.interrupt_handle();
            ctx.live
                .set_interrupt(Some(Box::new(move || handle.interrupt())));
            let taken = ctx.take_noted_media(&self.config.media, &mut progress);
            ctx.live.set_interrupt(None);
            taken.map_err(|e| ctx.map_interrupt(e))?;
            Ok(progress)
        });
        self.forget_media_unless_it_goes_on(&ctx.live.id, &taken);
        taken
    }

    /// What a job noted is of use to itself alone, and only where it goes on.
    pub(super) fn forget_media_unless_it_goes_on<T>(&self, job: &JobId, ended: &Result<T, Error>) {
        if !matches!(ended, Ok(_) | Err(Error::Stopping))
            && let Err(e) = self.register.ledger().forget_media(job)
        {
            log::warn!("{job}: {}", Chain(&e));
        }
    }

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
            let how = overwrite::choose_secure_delete(&ctx, i64::MAX)?;
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
        ctx.ledger.forget_media(&ctx.live.id)?;
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
