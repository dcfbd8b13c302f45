//! Laying holds, releasing them, and asking what is held.

use std::sync::Arc;

use super::ownership::own_ledger;
use super::{Keeper, Shared, Viewer, retention, tell_full_disk, with_reserve};
use crate::config::Config;
use crate::error::Error;
use crate::hold::{HeldEvents, Hold, Release};
use crate::ids::RoomId;
use crate::job::Removes;
use crate::job::held::{self, Held};
use crate::jobs;
use crate::point::Point;
use crate::purge::{self, Request};
use crate::retention::Plan;
use crate::sqlite_file::NEEDED_TO_BEGIN;
use crate::store;
use crate::store::db::Db;
use crate::time::Millis;

/// Lays a hold, whoever is at work: where another process has the ledger, it finds the hold in the file beside it before its
/// next transaction. Its time and who laid it are noted, unless they are given.
///
/// # Errors
/// [`Error::BadRequest`] for a hold that cannot be meant, or a name that was used before; those of the ledger.
pub fn add_hold(config: &Config, hold: Hold) -> Result<Hold, Error> {
    let hold = noted(config, hold);
    let add = || match own_ledger(config) {
        Ok(ledger) => ledger.add_hold(&hold),
        Err(Error::LedgerLocked(_)) => jobs::holds::add_without_owning(&config.ledger, &hold),
        Err(e) => Err(e),
    };
    written(config, add)?;
    Ok(hold)
}

/// Ends a hold by its name.
///
/// # Errors
/// [`Error::NoSuchHold`]; [`Error::BadRequest`] without a reason; [`Error::LedgerLocked`] while another process has the
/// ledger.
pub fn release_hold(config: &Config, name: &str, reason: &str) -> Result<Hold, Error> {
    let by = Some(config.admin_user.to_string());
    let release = release(reason, by, config.clock.now());
    written(config, || own_ledger(config)?.release_hold(name, &release))
}

/// Every hold there ever was, oldest first; those that are released say so. Owns nothing and changes nothing.
pub fn holds(config: &Config) -> Vec<Hold> {
    jobs::holds::read(&config.ledger)
}

/// What is noted in the ledger has room where there is a reserve; else it is said how much is missing (S-35).
fn written<T>(config: &Config, work: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    with_reserve(config, work).map_err(|e| tell_full_disk(config, e, NEEDED_TO_BEGIN))
}

fn noted(config: &Config, hold: Hold) -> Hold {
    let by = hold.by.or_else(|| Some(config.admin_user.to_string()));
    Hold {
        by,
        at_ms: config.clock.now(),
        released: None,
        not_understood: None,
        ..hold
    }
}

fn release(reason: &str, by: Option<String>, at_ms: Millis) -> Release {
    Release {
        at_ms,
        reason: reason.to_owned(),
        by,
    }
}

/// The point before the first event that is held.
pub(super) fn before_what_is_held(
    db: &Db,
    room: &RoomId,
    point: Point,
    held: &[Held],
) -> Result<Point, Error> {
    let lowest = store::held::lowest(db, room, point.topological, &held::events_of(held))?;
    Ok(match lowest {
        Some(depth) => Point {
            topological: depth,
            stream: 0,
        },
        None => point,
    })
}

impl Keeper {
    /// Lays a hold. What is at work on what it keeps ends before its next transaction.
    ///
    /// # Errors
    /// As [`add_hold`].
    pub fn add_hold(&self, hold: Hold) -> Result<Hold, Error> {
        let hold = noted(&self.shared.config, hold);
        let shared = &self.shared;
        written(&shared.config, || shared.register.ledger().add_hold(&hold))?;
        log::info!("the hold {hold} is laid");
        Ok(hold)
    }

    /// Ends a hold by its name.
    ///
    /// # Errors
    /// As [`release_hold`].
    pub fn release_hold(
        &self,
        name: &str,
        reason: &str,
        by: Option<String>,
    ) -> Result<Hold, Error> {
        let config = &self.shared.config;
        let by = by.or_else(|| Some(config.admin_user.to_string()));
        let release = release(reason, by, config.clock.now());
        let ledger = self.shared.register.ledger();
        let hold = written(config, || ledger.release_hold(name, &release))?;
        log::info!("the hold {hold} is released");
        Ok(hold)
    }

    /// Every hold there ever was; those that are released say so.
    ///
    /// # Errors
    /// Those of the ledger.
    pub fn holds(&self) -> Result<Vec<Hold>, Error> {
        self.shared.holds().map(|holds| holds.to_vec())
    }

    /// What looks at the database, with the holds that this keeper knows.
    pub(super) fn viewer(&self) -> Result<Viewer, Error> {
        self.shared.viewer()
    }
}

impl Shared {
    pub(super) fn viewer(&self) -> Result<Viewer, Error> {
        let mut viewer = Viewer::open(self.config.clone())?;
        viewer.known_holds = Some(self.holds()?);
        Ok(viewer)
    }

    pub(super) fn holds(&self) -> Result<Arc<Vec<Hold>>, Error> {
        self.register.ledger().holds()
    }

    /// What is held of a room and may stay where it is, while the rest goes.
    ///
    /// # Errors
    /// [`Error::Held`].
    pub(super) fn refuse_held(&self, room: &RoomId, removes: Removes) -> Result<Vec<Held>, Error> {
        let holds = self.holds()?;
        if !holds.iter().any(Hold::is_active) {
            return Ok(Vec::new());
        }
        self.with_reader(|db| held::refuse(db, room, &holds, removes))
    }

    pub(super) fn before_what_is_held(
        &self,
        room: &RoomId,
        point: Point,
        held: &[Held],
    ) -> Result<Point, Error> {
        self.with_reader(|db| before_what_is_held(db, room, point, held))
    }

    pub(super) fn leave_held(&self, db: &Db, plan: &mut Plan) -> Result<(), Error> {
        leave_held(db, &self.config, &self.holds()?, plan)
    }
}

impl Viewer {
    /// The holds: as a keeper knows them, or as they are written down.
    pub(super) fn holds(&self) -> Arc<Vec<Hold>> {
        match &self.known_holds {
            Some(holds) => holds.clone(),
            None => Arc::new(holds(&self.config)),
        }
    }

    pub(super) fn leave_held(&self, plan: &mut Plan) -> Result<(), Error> {
        leave_held(&self.db, &self.config, &self.holds(), plan)
    }

    pub(super) fn held_of(&self, room: &RoomId) -> Result<Vec<HeldEvents>, Error> {
        let all = held::Holds::new(&self.holds()).of(&self.db, room)?;
        Ok(held::events_of(&all))
    }
}

/// Takes what is held out of a plan of retention.
fn leave_held(db: &Db, config: &Config, holds: &[Hold], plan: &mut Plan) -> Result<(), Error> {
    if !holds.iter().any(Hold::is_active) {
        return Ok(());
    }
    let now = plan.now_ms;
    let mut holds = held::Holds::of_many(holds);
    plan.leave_held(|due| {
        let all = holds.of(db, &due.room_id)?;
        let whole = all.iter().filter(|held| held.events.is_all());
        let mut names: Vec<String> = whole.map(|held| held.name.clone()).collect();
        if !names.is_empty() || all.is_empty() {
            names.dedup();
            return Ok(names);
        }
        let request = Request {
            held: held::events_of(&all),
            ..retention::request(due)
        };
        let selected = match purge::selection(db, &due.room_id, &request, &config.server_name, now)
        {
            // It says so when its turn comes.
            Err(Error::WouldEmptyRoom | Error::PartialState(_)) => return Ok(Vec::new()),
            selected => selected?,
        };
        if selected.held == 0 {
            return Ok(Vec::new());
        }
        let names = held::that_keep(db, &due.room_id, due.point.topological, &all)?;
        if selected.to_delete == 0 {
            return Ok(names);
        }
        let bytes_of_one = due.estimated_bytes / due.events.max(1);
        due.events = selected.to_delete;
        due.estimated_bytes = due.events.saturating_mul(bytes_of_one);
        due.stays.held = selected.held;
        due.holds = names;
        Ok(Vec::new())
    })
}
