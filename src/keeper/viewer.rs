//! What can be done without owning the work on a database, and what needs it for itself alone.

use std::borrow::Borrow;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::holds::before_what_is_held;
use super::ownership::{
    look, own_ledger, refuse_anybody_else, refuse_own_task, refuse_wrong_server_name,
};
use super::{PurgeOptions, options, tell_full_disk};
use crate::config::{Config, HomeserverPolicy};
use crate::error::{Chain, Error};
use crate::hold::Hold;
use crate::ids::RoomId;
use crate::job::{HomeserverWatch, Removes, held, overwrite, smallest_need, write_once};
use crate::jobs::ledger::{JobRecord, unfit};
use crate::jobs::reading;
use crate::locks::RoomLocks;
use crate::plan_hash::PlanDigest;
use crate::point::PurgePoint;
use crate::purge::{self, Extremities, Plan, Request};
use crate::retention;
use crate::sqlite_file::{self, NEEDED_TO_BEGIN};
use crate::store::check::{self, CheckReport, Violation};
use crate::store::db::{Access, Db, OpenOptions};
use crate::store::expiry::Expiry;
use crate::store::free_pages::RawFile;
use crate::store::homeserver::HomeserverDetector;
use crate::store::named_rooms::{self, Mark};
use crate::store::reclaim::{self, ReclaimOptions, Reclaimed};
use crate::store::space;
use crate::store::work_lock::WorkLock;
use crate::store::{points, search};
use crate::time::Millis;

/// Looks at a database without owning anything: may be used beside a running homeserver and a running daemon.
pub struct Viewer {
    pub(super) db: Db,
    pub(super) config: Config,
    /// The holds, where a keeper knows them; else they are read.
    pub(super) known_holds: Option<Arc<Vec<Hold>>>,
    /// The file, once somebody asked who has it open. Last, because it must be closed after the connection.
    raw: OnceLock<Option<Arc<RawFile>>>,
}

impl Viewer {
    /// Opens the database for reading.
    ///
    /// # Errors
    /// [`Error::Config`] where there is no database; [`Error::Refused`] when it is not one we know, or another server's.
    pub fn open(config: Config) -> Result<Self, Error> {
        let db = sqlite_file::undisturbed(|| {
            let db = Db::open(&config.database, &options(Access::ReadOnlyFile))?;
            refuse_wrong_server_name(&db, &config)?;
            Ok(db)
        })?;
        Ok(Self {
            db,
            config,
            known_holds: None,
            raw: OnceLock::new(),
        })
    }

    /// The room that words mean: an id (`!…`) or an alias of this server (`#…:server`).
    ///
    /// # Errors
    /// [`Error::Config`] for words that are neither; [`Error::NoSuchRoom`] for an alias that leads nowhere.
    pub fn room_of(&self, words: &str) -> Result<RoomId, Error> {
        let words = words.trim();
        if words.starts_with('!') {
            return Ok(RoomId::new(words));
        }
        if words.starts_with('#') {
            let found = named_rooms::of_alias(&self.db, words)?;
            return found
                .ok_or_else(|| Error::NoSuchRoom(format!("no room here has the alias {words}")));
        }
        Err(Error::Config(format!(
            "'{words}' is no room: say its id (!…), in single quotes, or an alias of it (#…:server)"
        )))
    }

    /// Whether this server knows a room.
    ///
    /// # Errors
    /// Those of the database.
    pub fn knows(&self, room: &RoomId) -> Result<bool, Error> {
        named_rooms::is_known(&self.db, room)
    }

    /// The event at which a purge up to a point would cut, where it is held.
    ///
    /// # Errors
    /// As [`crate::keeper::Keeper::plan_purge`] for a point that is not there.
    pub fn cut(&self, room: &RoomId, point: &PurgePoint) -> Result<Option<Mark>, Error> {
        let point = points::resolve(&self.db, room, point, self.config.clock.now())?;
        named_rooms::at(&self.db, room, point)
    }

    /// The order of arrival of the last event that was received before a moment, as far as stamps can be trusted; history that
    /// was fetched later counts as earlier than all of it.
    ///
    /// # Errors
    /// Those of the database.
    pub fn arrival_before(&self, moment: Millis) -> Result<i64, Error> {
        let expiry = Expiry::find(&self.db, moment, self.config.clock.now())?;
        Ok(expiry.live_before.saturating_sub(1).max(0))
    }

    /// As [`crate::keeper::Keeper::plan_purge`].
    ///
    /// # Errors
    /// What the purge would refuse at its start, with the same sentence.
    pub fn plan_purge(
        &self,
        room: &RoomId,
        point: impl Borrow<PurgePoint>,
        options: PurgeOptions,
    ) -> Result<Plan, Error> {
        let point = point.borrow();
        let now = self.config.clock.now();
        // In the order in which a purge looks.
        points::resolve(&self.db, room, point, now)?;
        let is_running = || Ok(self.running_homeserver()?.is_some());
        refuse_own_task(&self.db, room, now, is_running)?;
        let at = matches!(point, PurgePoint::OlderThan(_)).then_some(now);
        let (mut plan, digest) = self.plan_purge_at(room, point, options, now, at)?;
        plan.plan = Some(digest.hash());
        Ok(plan)
    }

    /// The same as of `now`, and what binds it: to `at` as well, where what goes depends on that.
    pub(super) fn plan_purge_at(
        &self,
        room: &RoomId,
        point: &PurgePoint,
        options: PurgeOptions,
        now: Millis,
        at: Option<Millis>,
    ) -> Result<(Plan, PlanDigest), Error> {
        self.refuse_media(options.media)?;
        self.plan_purge_unrefused(room, point, options, now, at)
    }

    /// The same, also where media could not go.
    pub(super) fn plan_purge_unrefused(
        &self,
        room: &RoomId,
        point: &PurgePoint,
        options: PurgeOptions,
        now: Millis,
        at: Option<Millis>,
    ) -> Result<(Plan, PlanDigest), Error> {
        let keep_from = point.keep_received_from(now);
        let mut point = points::resolve(&self.db, room, point, now)?;
        let known_holds = self.holds();
        let held = held::refuse(&self.db, room, &known_holds, Removes::History)?;
        if options.strict {
            point = before_what_is_held(&self.db, room, point, &held)?;
        }
        let request = Request {
            held: held::events_of(&held),
            ..options.request(point, keep_from)
        };
        let setting = self.setting(now, &known_holds)?;
        let (mut digest, holds) = self.digest_of_purge(room, &request, &held, at)?;
        let (db, bound) = (&self.db, &mut digest);
        let mut plan = purge::plan(db, room, &request, setting, bound)?;
        plan.holds = holds;
        plan.foreign_keys = purge::foreign_key_mode(&self.db, self.config.batch.check_in_bulk)?;
        Ok((plan, digest))
    }

    /// As what purges are planned.
    pub(super) fn setting<'a>(
        &'a self,
        now: Millis,
        holds: &'a [Hold],
    ) -> Result<purge::Setting<'a>, Error> {
        Ok(purge::Setting {
            server_name: &self.config.server_name,
            extremities: self.extremities()?,
            holds,
            now,
        })
    }

    /// What becomes of forward extremities below the point of a purge.
    pub(super) fn extremities(&self) -> Result<Extremities, Error> {
        // A purge is refused then.
        if self.config.homeserver == HomeserverPolicy::RequireStopped {
            return Ok(Extremities::Go);
        }
        Ok(match self.running_homeserver()? {
            None => Extremities::Go,
            Some(_) if self.config.homeserver_api.is_some() => Extremities::AskHomeserver,
            Some(_) => Extremities::Stay,
        })
    }

    /// As [`crate::keeper::Keeper::running_homeserver`].
    ///
    /// # Errors
    /// Those of the database.
    pub fn running_homeserver(&self) -> Result<Option<String>, Error> {
        let config = &self.config;
        let mut watch = HomeserverWatch::new(config.homeserver, || {
            let open = |file| RawFile::open_to_look(file).ok();
            let raw = self
                .raw
                .get_or_init(|| config.database.file().and_then(open));
            HomeserverDetector::new(config.endpoints.clone(), &config.database, raw.clone())
        });
        watch.look(&self.db, config.clock.now())
    }

    /// Refuses what depends on age while the clock may be ahead, by the database alone.
    ///
    /// # Errors
    /// [`Error::Refused`]; those of the database.
    pub fn refuse_clock_ahead(&self) -> Result<(), Error> {
        match self.config.check_clock {
            true => retention::refuse_clock_ahead(
                &self.db,
                &*self.config.clock,
                self.config.clock_tolerance,
                None,
            ),
            false => Ok(()),
        }
    }

    /// Tests the database against the invariants I-1 … I-19; `each` hears of every rule before it is tested.
    ///
    /// # Errors
    /// Those of the database.
    pub fn check(&self, each: impl FnMut(&str, &str)) -> Result<CheckReport, Error> {
        check::check(&self.db, self.config.clock.now(), each)
    }

    /// Bytes that the smallest steps of a job on a room may need on the disk.
    pub fn smallest_need(&self, room: &RoomId) -> u64 {
        smallest_need(&self.db, Some(room))
    }

    /// Bytes of the database file that hold nothing any more.
    ///
    /// # Errors
    /// Those of the database.
    pub fn reclaimable_bytes(&self) -> Result<u64, Error> {
        space::reclaimable_bytes(&self.db)
    }
}

/// Tests a database as [`Viewer::check`] does, whether or not anybody uses it: the rules that it breaks.
///
/// # Errors
/// As [`Viewer::open`] and [`Viewer::check`].
pub fn check_offline(
    config: &Config,
    each: impl FnMut(&str, &str),
) -> Result<Vec<Violation>, Error> {
    Ok(Viewer::open(config.clone())?.check(each)?.violations)
}

/// Every job on record, oldest first, as the ledger has it; the database is not looked at, and nothing is made. `None` while
/// a roomkeeper is at work, which knows more.
///
/// # Errors
/// [`Error::Config`] where the ledger cannot be read.
pub fn recorded_jobs(config: &Config) -> Result<Option<Vec<JobRecord>>, Error> {
    let ledger = &config.ledger;
    if sqlite_file::holder(ledger).is_some() {
        return Ok(None);
    }
    match (fs::metadata(ledger), config.database.file()) {
        (Err(e), file) if e.kind() == ErrorKind::NotFound => {
            // Nothing was ever done here; or the name is not that of a database.
            let missing = file.filter(|file| !file.exists());
            match missing.and_then(sqlite_file::missing_to_read) {
                Some(missing) => Err(Error::Config(missing)),
                None => Ok(Some(Vec::new())),
            }
        }
        (Ok(m), Some(file))
            if fs::metadata(file).is_ok_and(|d| (d.dev(), d.ino()) == (m.dev(), m.ino())) =>
        {
            Err(unfit(ledger, "it is the homeserver's database"))
        }
        _ => reading::read(ledger).map(Some),
    }
}

/// Gives free pages back to the file system. Nothing else may have the database open.
///
/// # Errors
/// [`Error::Refused`], [`Error::NoSpace`]; the database is whole then, and where it was unless the error says so.
pub fn reclaim(config: &Config) -> Result<Reclaimed, Error> {
    reclaim_through(config, None)
}

/// The same with the copy in a directory on another disk, where the database's own has no room for it.
///
/// # Errors
/// As [`reclaim()`].
pub fn reclaim_via(config: &Config, directory: &Path) -> Result<Reclaimed, Error> {
    if config.database.file().is_none() {
        return Err(Error::Config(
            "a PostgreSQL server has its files where it wants them: reclaim takes no directory there".into(),
        ));
    }
    reclaim_through(config, Some(directory))
}

fn reclaim_through(config: &Config, via: Option<&Path>) -> Result<Reclaimed, Error> {
    reclaim_what_is_whole(config, via).map_err(|e| match e.is_damage() {
        true => reclaim::damaged(&Chain(&e).to_string()),
        false => tell_full_disk(config, e, NEEDED_TO_BEGIN),
    })
}

fn reclaim_what_is_whole(config: &Config, via: Option<&Path>) -> Result<Reclaimed, Error> {
    let ledger = match own_ledger(config) {
        // What is to be noted is noted when there is room again; the file itself shows whether anybody is at work.
        Err(e) if e.is_full() && via.is_some() => None,
        ledger => Some(ledger?),
    };
    let _lock = WorkLock::take(&config.database, &config.ledger)?;
    refuse_anybody_else(config)?;
    let Some(file) = config.database.file() else {
        let reclaimed = space::vacuum(&Db::open(&config.database, &OpenOptions::default())?)?;
        if let Some(ledger) = &ledger {
            super::receipts::note_reclaimed(config, ledger, reclaimed);
        }
        return Ok(reclaimed);
    };
    let mut options = ReclaimOptions {
        via,
        merge_index: false,
    };
    if config.overwrite_deleted {
        // Purges beside a running homeserver leave this to us.
        options.merge_index = !merge_index_in_place(config)?;
    }
    let reclaimed = reclaim::reclaim(file, options)?;
    let ledger = match ledger {
        Some(ledger) => ledger,
        None => own_ledger(config)?,
    };
    // Nothing that was deleted is in the new file.
    for duty in [overwrite::EMPTY_LOG, overwrite::ERASE_PAGES] {
        ledger.clear_pending(duty)?;
    }
    if config.overwrite_deleted {
        ledger.clear_pending(overwrite::MERGE_INDEX)?;
    }
    super::receipts::note_reclaimed(config, &ledger, reclaimed);
    Ok(reclaimed)
}

/// Merges the full-text index where the disk has room for its log; answers whether nothing of it is left to do.
fn merge_index_in_place(config: &Config) -> Result<bool, Error> {
    let Some(file) = config.database.file() else {
        return Ok(true);
    };
    let needed = look(config, |db| match search::is_present(db) {
        true => search::merge_needs(db).map(Some),
        false => Ok(None),
    })?;
    let Some(needed) = needed else {
        return Ok(true);
    };
    if space::free_bytes(file)? < needed {
        return Ok(false);
    }
    let mut db = Db::open(&config.database, &OpenOptions::default())?;
    // Nobody else is at work here.
    let (locks, writer) = (RoomLocks::default(), Mutex::default());
    let doing = "merge the full-text index";
    let merged = write_once(
        &mut db,
        &locks,
        &writer,
        None,
        doing,
        |tx| match search::verify(tx) {
            // It is derived data, and built anew it holds no deleted word either (P-55).
            Err(e) if e.is_index_damage() => search::rebuild(tx),
            verified => verified.and_then(|()| search::optimize(tx)),
        },
    );
    match merged {
        // It is done in the copy, then.
        Err(e) if e.is_full() => Ok(false),
        merged => merged.map(|()| true),
    }
}
