//! What can be done without owning the work on a database, and what needs it for itself alone.

use super::ownership::{
    own_ledger, refuse_anybody_else, refuse_running_homeserver, refuse_wrong_server_name,
};
use super::{PurgeOptions, options};
use crate::config::{Config, HomeserverPolicy};
use crate::error::{Chain, Error};
use crate::ids::RoomId;
use crate::job::overwrite;
use crate::point::PurgePoint;
use crate::purge::{self, Extremities, Plan, Request};
use crate::store::check::{self, Violation};
use crate::store::db::{Access, Db, Engine, OpenOptions};
use crate::store::named_rooms::{self, Mark};
use crate::store::space::{self, Reclaimed};
use crate::store::{homeserver, points, search};

/// Looks at a database without owning anything: may be used beside a running homeserver and a running daemon.
pub struct Viewer {
    pub(super) db: Db,
    pub(super) config: Config,
}

impl Viewer {
    /// Opens the database for reading.
    pub fn open(config: Config) -> Result<Self, Error> {
        let db = Db::open(&config.database, &options(Access::ReadOnlyFile))?;
        refuse_wrong_server_name(&db, &config)?;
        Ok(Self { db, config })
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

    /// As [`crate::keeper::Keeper::plan_purge`].
    pub fn plan_purge(
        &self,
        room: &RoomId,
        point: &PurgePoint,
        options: PurgeOptions,
    ) -> Result<Plan, Error> {
        let point = points::resolve(&self.db, room, point, self.config.clock.now())?;
        let request = Request {
            point,
            delete_local_events: options.delete_local_events,
            keep_received_after: options.keep_received_after,
        };
        let server_name = &self.config.server_name;
        let mut plan = purge::plan(&self.db, room, &request, server_name, self.extremities())?;
        plan.foreign_keys = purge::foreign_key_mode(&self.db, self.config.batch.check_in_bulk)?;
        Ok(plan)
    }

    /// What becomes of forward extremities below the point of a purge.
    pub(super) fn extremities(&self) -> Extremities {
        match self.config.homeserver {
            HomeserverPolicy::RequireStopped | HomeserverPolicy::AssumeStopped => Extremities::Go,
            HomeserverPolicy::AllowRunning if self.config.homeserver_api.is_some() => {
                Extremities::AskHomeserver
            }
            HomeserverPolicy::AllowRunning => Extremities::Stay,
        }
    }

    /// Tests the database against the invariants I-1 … I-19; `each` hears of every rule before it is tested.
    pub fn check(&self, each: impl FnMut(&str, &str)) -> Result<Vec<Violation>, Error> {
        check::check(&self.db, self.config.clock.now(), each)
    }

    /// Bytes of the database file that hold nothing any more.
    pub fn reclaimable_bytes(&self) -> Result<u64, Error> {
        space::reclaimable_bytes(&self.db)
    }
}

/// Tests a database that nobody else uses, the full-text index included, which only a writer can ask.
///
/// # Errors
/// [`Error::Refused`] when a homeserver seems to be running; [`Viewer::check`] serves then.
pub fn check_offline(
    config: &Config,
    each: impl FnMut(&str, &str),
) -> Result<Vec<Violation>, Error> {
    // On a server that only reads, or takes no writes from us, nobody can be in the way, nor leave a lock behind.
    if config.database.file().is_none()
        && let Err(Error::Refused(_)) = Db::open(&config.database, &OpenOptions::default())
    {
        let db = Db::open(&config.database, &options(Access::ReadOnlyFile))?;
        return check::check(&db, config.clock.now(), each);
    }
    let _owner = own_ledger(config)?;
    refuse_running_homeserver(config)?;
    let mut db = Db::open(&config.database, &OpenOptions::default())?;
    // As every start does: a roomkeeper that was killed leaves its lock on the room.
    match homeserver::release_leftover_locks(&mut db, config.clock.now()) {
        // What is wrong with the file is for the check to say.
        Err(e) if e.is_damage() => {}
        released => drop(released?),
    }
    if db.engine() == Engine::Postgres {
        // It has no index that only a writer can ask; and what reads whole tables is planned otherwise than a batch.
        db = Db::open(&config.database, &options(Access::ReadOnlyFile))?;
    }
    check::check(&db, config.clock.now(), each)
}

/// Gives free pages back to the file system. Nothing else may have the database open.
///
/// # Errors
/// [`Error::Refused`], [`Error::NoSpace`]; the database is as before then.
pub fn reclaim(config: &Config) -> Result<Reclaimed, Error> {
    reclaim_what_is_whole(config).map_err(|e| match e.is_damage() {
        true => space::damaged(&Chain(&e).to_string()),
        false => e,
    })
}

fn reclaim_what_is_whole(config: &Config) -> Result<Reclaimed, Error> {
    let ledger = own_ledger(config)?;
    refuse_anybody_else(config)?;
    let mut db = Db::open(&config.database, &OpenOptions::default())?;
    if config.overwrite_deleted && search::is_present(&db) {
        // Purges beside a running homeserver leave this to us.
        db.write("merge the full-text index", |db| match search::verify(db) {
            // It is derived data, and built anew it holds no deleted word either (P-55).
            Err(e) if e.is_index_damage() => search::rebuild(db),
            verified => verified.and_then(|()| search::optimize(db)),
        })?;
    }
    let Some(file) = config.database.file() else {
        return space::vacuum(&db);
    };
    drop(db);
    let reclaimed = space::reclaim(file)?;
    // Nothing that was deleted is in the new file.
    for duty in [overwrite::EMPTY_LOG, overwrite::ERASE_PAGES] {
        ledger.clear_pending(duty)?;
    }
    if config.overwrite_deleted {
        ledger.clear_pending(overwrite::MERGE_INDEX)?;
    }
    Ok(reclaimed)
}
