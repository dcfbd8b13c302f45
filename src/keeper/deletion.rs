//! Deleting rooms, blocking them, and what is known of both.

use serde::{Deserialize, Serialize};

use super::kind::{self, JobKind, Runner, RunsOn, Work};
use super::{Keeper, Shared, Viewer, ownership, with_reserve};
use crate::config::HomeserverPolicy;
use crate::deletion::{self, DeletionScope, Plan, Request, SHUTDOWN_ROOM, Shutdown};
use crate::error::Error;
use crate::ids::{Escaped, JobId, RoomId, UserId};
use crate::job::{self, Phase, Progress, Removes, held};
use crate::jobs::ledger::{JobRecord, State, Subject};
use crate::jobs::register::JobGuard;
use crate::plan_hash::PlanDigest;
use crate::plural::count;
use crate::store::db::{Access, Db};
use crate::store::tx::Tx;
use crate::store::{blocks, forward_extremities, room_rows, rooms};

/// A deletion that is asked after by its id or its room (S-16 names it so).
pub(super) static SHUTDOWN_AND_PURGE_ROOM: JobKind = JobKind {
    is_plannable: true,
    words,
    ..JobKind::new("shutdown_and_purge_room", RunsOn::Worker, |job| {
        Deletion::of_record(job, DeletionScope::Whole)
    })
};

/// A deletion that is waited for (H-42); no status tells of it.
pub(super) static DELETE_ROOM: JobKind = JobKind {
    is_plannable: true,
    words,
    ..JobKind::new("delete_room", RunsOn::Worker, |job| {
        Deletion::of_record(job, DeletionScope::Whole)
    })
};

/// A deletion of rows alone, waited for as well.
pub(super) static PURGE_ROOM: JobKind = JobKind::new("purge_room", RunsOn::Worker, |job| {
    Deletion::of_record(job, DeletionScope::Rows)
});

/// A deletion, as a job.
#[derive(Clone, Serialize)]
pub(super) struct Deletion {
    #[serde(flatten)]
    request: Request,
    #[serde(skip)]
    extent: DeletionScope,
}

impl Deletion {
    fn of_record(job: &JobRecord, extent: DeletionScope) -> Option<Box<dyn Work>> {
        let request = Request::deserialize(&job.params).ok()?;
        Some(Box::new(Self { request, extent }))
    }
}

impl Work for Deletion {
    fn run(&self, on: &Runner<'_>, guard: JobGuard) {
        on.shared.run_one(guard, |guard, is_stopping| {
            on.shared.delete_room(guard, self, is_stopping)
        });
    }
}

/// What a deletion did: what its shutdown did first.
pub(super) fn words(job: &JobRecord, progress: &Progress) -> Vec<String> {
    let has_shut_down = progress.more.contains_key(SHUTDOWN_ROOM);
    let mut lines = match has_shut_down {
        true => words_of_shutdown(&shutdown_of(job)),
        false => Vec::new(),
    };
    lines.push(kind::what_became_of(job));
    lines.extend(kind::rows(&progress.rows_removed));
    // A shutdown alone removes nothing.
    if progress.batches > 0 || !has_shut_down {
        lines.push(kind::events(progress));
        lines.extend(kind::media(progress));
    }
    lines.extend(kind::reclaimable(progress));
    lines
}

fn words_of_shutdown(shutdown: &Shutdown) -> Vec<String> {
    let list = |names: &mut dyn Iterator<Item = &str>| {
        let names: Vec<String> = names.map(|name| Escaped(name).to_string()).collect();
        names.join(", ")
    };
    let users = |users: &[UserId]| list(&mut users.iter().map(UserId::as_str));
    let mut lines = Vec::new();
    if !shutdown.kicked_users.is_empty() {
        lines.push(format!("moved out: {}", users(&shutdown.kicked_users)));
    }
    if !shutdown.failed_to_kick_users.is_empty() {
        let failed = users(&shutdown.failed_to_kick_users);
        lines.push(format!("could not be moved: {failed}"));
    }
    if let Some(room) = &shutdown.new_room_id {
        lines.push(format!("the new room is {room}"));
    }
    if !shutdown.local_aliases.is_empty() {
        let aliases = list(&mut shutdown.local_aliases.iter().map(AsRef::as_ref));
        lines.push(format!("aliases that lead there: {aliases}"));
    }
    lines
}

/// The status of a room's deletion, as Synapse's clients know it (S-5, S-18).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteStatus {
    /// Its id.
    pub delete_id: JobId,
    /// The room.
    pub room_id: RoomId,
    /// `purging`, `shutting_down`, `complete` or `failed`.
    pub status: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What its shutdown did, or has done so far.
    pub shutdown_room: Shutdown,
}

impl DeleteStatus {
    fn of(record: JobRecord) -> Self {
        let progress: Progress =
            serde_json::from_value(record.progress.clone()).unwrap_or_default();
        let status = match record.state {
            State::Running if progress.phase == Phase::ShuttingDown => "shutting_down",
            State::Queued | State::Running | State::Paused | State::Waiting => "purging",
            State::Complete => "complete",
            State::Failed => "failed",
        };
        Self {
            delete_id: record.id.clone(),
            room_id: room_of(&record),
            status: status.to_owned(),
            error: record.error.clone().filter(|text| !text.is_empty()),
            shutdown_room: shutdown_of(&record),
        }
    }
}

fn room_of(record: &JobRecord) -> RoomId {
    let room = record.subject.room().cloned();
    room.unwrap_or_else(|| RoomId::new(record.subject.to_string()))
}

/// What a job's shutdown did so far, by its progress.
fn shutdown_of(record: &JobRecord) -> Shutdown {
    let told = record.progress.get(SHUTDOWN_ROOM).cloned();
    told.and_then(|value| serde_json::from_value(value).ok())
        .unwrap_or_default()
}

impl Keeper {
    /// Starts the deletion of a room and returns at once; the work is a job (H-41).
    ///
    /// # Errors
    /// An illegal room id; [`Error::Held`] where rows are to go and a hold keeps any of them; [`Error::RoomBusy`] while another job has the room (L-2, L-8); a `new_room_user_id` of another
    /// server; [`Error::QueueFull`], [`Error::Stopping`]. Nothing was started then.
    pub fn shutdown_and_purge_room(&self, room: &RoomId, request: Request) -> Result<JobId, Error> {
        refuse_illegal(room)?;
        let shared = &self.shared;
        if shared.register.is_busy(room) {
            return Err(Error::RoomBusy { room: room.clone() });
        }
        shared.with_reader(|db| shared.refuse_own_task(db, room))?;
        refuse_foreign(&request, &self.shared.config.server_name)?;
        shared.refuse_media_of_deletion(&request)?;
        if request.purge {
            shared.refuse_held(room, Removes::Room)?;
        }
        self.refuse_drift(|viewer, _| viewer.bind_deletion(room, &request))?;
        let deletion = self.deletion(request, DeletionScope::Whole);
        let subject = Subject::Room(room.clone());
        self.start(&SHUTDOWN_AND_PURGE_ROOM, &subject, deletion)
    }

    /// Deletes a room and waits for it (H-42). Where another job has the room, that is waited for first (L-4). No status
    /// tells of it; after a crash it is taken up again like every job.
    ///
    /// # Errors
    /// As [`Keeper::shutdown_and_purge_room`], but for [`Error::RoomBusy`]; [`Error::UsersStillJoined`] when people were
    /// left in the room, and none of its rows went; [`Error::JobFailed`].
    pub fn delete_room(&self, room: &RoomId, request: Request) -> Result<Shutdown, Error> {
        refuse_illegal(room)?;
        refuse_foreign(&request, &self.shared.config.server_name)?;
        self.shared.refuse_media_of_deletion(&request)?;
        if request.purge {
            self.shared.refuse_held(room, Removes::Room)?;
        }
        let ended = self.do_and_wait(
            &DELETE_ROOM,
            room,
            self.deletion(request, DeletionScope::Whole),
        )?;
        Ok(shutdown_of(&ended))
    }

    /// Deletes the rows of a room and waits for it, without moving anybody out. Unknown rooms are no error (E-5).
    ///
    /// # Errors
    /// [`Error::UsersStillJoined`] while local users are joined, unless it is forced; as [`Keeper::delete_room`].
    pub fn purge_room(&self, room: &RoomId, force: bool) -> Result<JobRecord, Error> {
        if self.plan.is_some() {
            return Err(Error::bad(
                "M_INVALID_PARAM",
                "no plan is made of rows alone: plan the deletion of the room",
            ));
        }
        self.shared.refuse_held(room, Removes::Room)?;
        let request = Request {
            force_purge: force,
            ..Request::default()
        };
        self.do_and_wait(
            &PURGE_ROOM,
            room,
            self.deletion(request, DeletionScope::Rows),
        )
    }

    fn do_and_wait(
        &self,
        kind: &JobKind,
        room: &RoomId,
        deletion: Deletion,
    ) -> Result<JobRecord, Error> {
        // Where another job has the room it is not yet as it will be: the plan is looked at when the turn comes.
        let params = self.params_of(kind, &deletion)?;
        let register = &self.shared.register;
        let subject = Subject::Room(room.clone());
        let (asked_by, is_stopping) = (self.asked_by(), || self.is_stopping());
        self.shared.release_reserve_if_short();
        let guard = register.enqueue_when_free(kind.name, &subject, &params, asked_by, is_stopping);
        let guard = guard.map_err(|e| self.shared.tell_full_disk(e, Some(room)))?;
        let id = guard.id().clone();
        self.submit(guard, Box::new(deletion))?;
        match self.wait(&id) {
            Err(Error::JobFailed { code, .. })
                if code.as_deref() == Some(Error::UsersStillJoined.code()) =>
            {
                Err(Error::UsersStillJoined)
            }
            Err(Error::JobFailed { text, code })
                if code.as_deref() == Some(Error::PlanDrifted(String::new()).code()) =>
            {
                Err(Error::PlanDrifted(text.replacen("409: ", "", 1)))
            }
            Err(Error::Stopping) => {
                // Whoever asked hears that nothing was done, and so it must stay.
                if let Some(job) = register.ledger().get(&id)?
                    && job.started_ms.is_none()
                {
                    register.ledger().cancel_enqueue(&id)?;
                }
                Err(Error::Stopping)
            }
            ended => ended,
        }
    }

    /// The status of a deletion; `None` when there is no such one, or 24 hours after its end (S-10).
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn delete_status(&self, id: &str) -> Result<Option<DeleteStatus>, Error> {
        let register = &self.shared.register;
        let found = register.look_up(&JobId::from(id), SHUTDOWN_AND_PURGE_ROOM.name)?;
        Ok(found.map(DeleteStatus::of))
    }

    /// The ids of a room's deletions that run or ended less than 24 hours ago, oldest first (S-11, S-12).
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn delete_ids_by_room(&self, room: &RoomId) -> Result<Vec<JobId>, Error> {
        let now = self.shared.config.clock.now();
        let ledger = self.shared.register.ledger();
        let records = ledger.of_subject(
            &Subject::Room(room.clone()),
            SHUTDOWN_AND_PURGE_ROOM.name,
            now,
        )?;
        Ok(records.into_iter().map(|record| record.id).collect())
    }

    /// What such a deletion would do: who would be moved, which rows would go. Reads only.
    ///
    /// # Errors
    /// What would stop the deletion at its start, with the same error (E-18): [`Error::BadRequest`], [`Error::NoSuchRoom`],
    /// [`Error::UsersStillJoined`], [`Error::Held`], [`Error::LeftTask`], [`Error::Refused`]. Those of the database.
    pub fn plan_deletion(&self, room: &RoomId, request: &Request) -> Result<Plan, Error> {
        self.viewer()?.plan_deletion(room, request)
    }

    /// What a person should know before such a deletion begins (D-51, V-5). Reads only.
    ///
    /// # Errors
    /// Those of the database.
    pub fn warnings_before_deletion(
        &self,
        room: &RoomId,
        request: &Request,
    ) -> Result<Vec<String>, Error> {
        let server_name = &self.shared.config.server_name;
        self.shared
            .with_reader(|db| deletion::warnings(db, room, request, server_name))
    }

    /// Every room that the homeserver has counted, in no order.
    ///
    /// # Errors
    /// Those of the database.
    pub fn counted_rooms(&self) -> Result<Vec<rooms::Room>, Error> {
        self.shared.with_reader(rooms::list)
    }

    /// One room, if the homeserver knows it.
    ///
    /// # Errors
    /// Those of the database.
    pub fn room_details(&self, room: &RoomId) -> Result<Option<rooms::Details>, Error> {
        self.shared.with_reader(|db| rooms::details(db, room))
    }

    /// Who is joined, from every server; nothing when the homeserver does not know the room.
    ///
    /// # Errors
    /// Those of the database.
    pub fn room_members(&self, room: &RoomId) -> Result<Option<Vec<UserId>>, Error> {
        self.shared.with_reader(|db| {
            if room_rows::is_known(db, room)? {
                rooms::members(db, room).map(Some)
            } else {
                Ok(None)
            }
        })
    }

    /// Who blocked the room, if it is blocked. Unknown rooms are not (H-50).
    ///
    /// # Errors
    /// [`Error::BadRequest`] for an id that no room can have; those of the database.
    pub fn blocker(&self, room: &RoomId) -> Result<Option<UserId>, Error> {
        refuse_illegal(room)?;
        self.shared.with_reader(|db| blocks::blocker(db, room))
    }

    /// Lets nobody join the room any more, known or not. Who blocked it first stays on record (H-51).
    ///
    /// # Errors
    /// [`Error::BadRequest`] for an id that no room can have; [`Error::Refused`] while a homeserver runs that should not, and where
    /// it was to do it and did not; those of the database.
    pub fn block(&self, room: &RoomId, blocker: &UserId) -> Result<(), Error> {
        refuse_illegal(room)?;
        if self.is_delegated(room, true)? {
            return Ok(());
        }
        self.shared
            .write_once("block the room", |db| blocks::add(db, room, blocker))
            .map(drop)
    }

    /// Lets people join the room again.
    ///
    /// # Errors
    /// As [`Keeper::block`].
    pub fn unblock(&self, room: &RoomId) -> Result<(), Error> {
        refuse_illegal(room)?;
        if self.is_delegated(room, false)? {
            return Ok(());
        }
        self.shared
            .write_once("unblock the room", |db| blocks::remove(db, room))
    }

    /// Leaves a room the newest of its forward extremities alone, and answers how many are none any more: no event goes, and
    /// the next one that is written follows that. A homeserver that runs remembers all of them, and would follow those that
    /// are gone (P-51): so it is asked to do it, or nothing is done.
    ///
    /// # Errors
    /// [`Error::Refused`] beside a homeserver that cannot be asked, or that refuses; [`Error::BadRequest`] where none is held.
    pub fn drop_surplus_extremities(&self, room: &RoomId) -> Result<i64, Error> {
        refuse_illegal(room)?;
        if let Some(sign) = self.running_homeserver()? {
            return match &self.shared.config.homeserver_api {
                Some(api) => deletion::drop_surplus_extremities(api, room),
                None => Err(Error::Refused(format!(
                    "a homeserver is running ({sign}) and remembers the forward extremities: ask it at the same path, or say \
                     in roomkeeper.homeserver.url and admin_token_path how to. Nothing was changed"
                ))),
            };
        }
        let doing = "drop forward extremities";
        let dropped = self.shared.write_once_in(Some(room), doing, |tx| {
            forward_extremities::drop_surplus(tx, room)
        })?;
        dropped.ok_or_else(|| {
            let text = format!("No forward extremity event found for room {room}");
            Error::bad("M_UNKNOWN", text)
        })
    }

    /// A homeserver that runs beside us would notice a block of ours only by and by: it is asked to do it, where the
    /// configuration says how.
    fn is_delegated(&self, room: &RoomId, block: bool) -> Result<bool, Error> {
        let config = &self.shared.config;
        match &config.homeserver_api {
            Some(api) if self.running_homeserver()?.is_some() => {
                deletion::set_block(api, room, block).map(|()| true)
            }
            _ => Ok(false),
        }
    }

    /// How it is known that a homeserver runs on the database at this moment, if one does; by the configuration alone where
    /// that says so.
    ///
    /// # Errors
    /// Those of the database.
    pub fn running_homeserver(&self) -> Result<Option<String>, Error> {
        self.shared
            .with_reader(|db| self.shared.running_homeserver(db))
    }

    pub(super) fn deletion(&self, mut request: Request, extent: DeletionScope) -> Deletion {
        let operator = &self.shared.config.admin_user;
        request.requester.get_or_insert_with(|| operator.clone());
        Deletion { request, extent }
    }
}

/// D-6.
pub(super) fn refuse_foreign(request: &Request, server_name: &str) -> Result<(), Error> {
    match &request.new_room_user_id {
        Some(user) if !user.is_local(server_name) => Err(Error::bad(
            "M_UNKNOWN",
            format!("User must be our own: {user}"),
        )),
        Some(user) if !user.has_localpart() => Err(Error::bad(
            "M_INVALID_PARAM",
            "new_room_user_id has no name, or more than 255 bytes",
        )),
        _ => Ok(()),
    }
}

/// D-2, H-6.
fn refuse_illegal(room: &RoomId) -> Result<(), Error> {
    if room.is_valid() {
        Ok(())
    } else {
        let text = format!("{room} is not a legal room ID");
        Err(Error::bad("M_UNKNOWN", text))
    }
}

/// Media go with messages, and without `purge` none goes.
pub(super) fn refuse_media_alone(request: &Request) -> Result<(), Error> {
    match request.media.goes() && !request.purge {
        true => Err(Error::bad(
            "M_INVALID_PARAM",
            "media go with the messages that refer to them, and no message goes where only people are moved out",
        )),
        false => Ok(()),
    }
}

impl Shared {
    fn refuse_media_of_deletion(&self, request: &Request) -> Result<(), Error> {
        refuse_media_alone(request)?;
        self.refuse_media(request.media)
    }

    /// L-8, E-19.
    pub(super) fn refuse_own_task(&self, db: &Db, room: &RoomId) -> Result<(), Error> {
        let is_running = || Ok(self.running_homeserver(db)?.is_some());
        ownership::refuse_own_task(db, room, self.config.clock.now(), is_running)
    }

    pub(super) fn delete_room(
        &self,
        guard: &JobGuard,
        deletion: &Deletion,
        is_stopping: &(dyn Fn() -> bool + Sync),
    ) -> Result<String, Error> {
        self.refuse_drift_of(guard, |viewer, _| {
            viewer.bind_deletion(guard.room(), &deletion.request)
        })?;
        let mut ctx = self.job_context(guard, is_stopping)?;
        let request = &deletion.request;
        let done = deletion::run(&mut ctx, request, deletion.extent);
        let progress = self.take_media_of(&mut ctx, request.media, done)?;
        let rows: i64 = progress.rows_removed.values().sum();
        Ok(format!("{} deleted", count(rows, "row")))
    }

    /// One small change that is no job. Refused while a homeserver runs that should not (W-22).
    fn write_once<T>(
        &self,
        doing: &'static str,
        work: impl FnMut(&Tx<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.write_once_in(None, doing, work)
    }

    /// The same to a room, which nobody else reads or writes meanwhile.
    pub(super) fn write_once_in<T>(
        &self,
        room: Option<&RoomId>,
        doing: &'static str,
        mut work: impl FnMut(&Tx<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let written = with_reserve(&self.config, || self.write_in(room, doing, &mut work));
        written.map_err(|e| self.tell_full_disk(e, room))
    }

    fn write_in<T>(
        &self,
        room: Option<&RoomId>,
        doing: &'static str,
        work: impl FnMut(&Tx<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut db = Db::open(&self.config.database, &super::options(Access::Write))?;
        if self.config.homeserver == HomeserverPolicy::RequireStopped
            && let Some(sign) = self.running_homeserver(&db)?
        {
            return Err(Error::Refused(format!(
                "a homeserver seems to have been started: {sign}. Stop it first; nothing was changed"
            )));
        }
        job::write_once(&mut db, &self.locks, &self.writer, room, doing, work)
    }
}

impl Viewer {
    /// As [`Keeper::warnings_before_deletion`].
    ///
    /// # Errors
    /// Those of the database.
    pub fn warnings_before_deletion(
        &self,
        room: &RoomId,
        request: &Request,
    ) -> Result<Vec<String>, Error> {
        deletion::warnings(&self.db, room, request, &self.config.server_name)
    }

    /// As [`Keeper::plan_deletion`].
    ///
    /// # Errors
    /// As there.
    pub fn plan_deletion(&self, room: &RoomId, request: &Request) -> Result<Plan, Error> {
        let (mut plan, digest) = self.plan_deletion_bound(room, request)?;
        plan.plan = Some(digest.hash());
        Ok(plan)
    }

    pub(super) fn plan_deletion_bound(
        &self,
        room: &RoomId,
        request: &Request,
    ) -> Result<(Plan, PlanDigest), Error> {
        refuse_illegal(room)?;
        let config = &self.config;
        refuse_foreign(request, &config.server_name)?;
        let sign = self.running_homeserver()?;
        let is_running = || Ok(sign.is_some());
        ownership::refuse_own_task(&self.db, room, config.clock.now(), is_running)?;
        let holds = self.holds();
        refuse_media_alone(request)?;
        self.refuse_media(request.media)?;
        if request.purge {
            held::refuse(&self.db, room, &holds, Removes::Room)?;
        }
        let setting = deletion::Setting {
            db: &self.db,
            room,
            server_name: &config.server_name,
            homeserver: match config.homeserver {
                // Whoever starts it is refused, whatever it would do.
                HomeserverPolicy::RequireStopped => None,
                _ => sign.as_deref(),
            },
            event_signing: &config.event_signing,
            clock: &*config.clock,
        };
        let asks_homeserver = config.homeserver_api.is_some() && setting.homeserver.is_some();
        let note = deletion::refuse_at_start(&setting, request, asks_homeserver)?;
        let beside = deletion::Beside {
            holds: &holds,
            is_running: sign.is_some(),
        };
        let mut digest = self.new_digest(None);
        let (db, server_name) = (&self.db, &config.server_name);
        let mut plan = deletion::plan(db, room, request, server_name, beside, &mut digest)?;
        plan.notes.extend(note);
        Ok((plan, digest))
    }
}
