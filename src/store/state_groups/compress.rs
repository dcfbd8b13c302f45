//! Storing a room's state groups in fewer rows: the same states, on other bases.
//!
//! A room's groups are taken in order of their numbers, window by window, each in one transaction. Each may rest on the head of
//! a level: the lowest has a chain of up to a hundred groups, the next begins a new chain of the level below fifty times, and so
//! on. So a chain has no more links than the levels together, and the groups that are stored in full become few. A group stays as
//! it is where that takes no more rows and no longer chain; a hundred groups that would take more rows so are left as they are,
//! unless their chains are too long already: then they may take more. Doing it again finds nothing to do.
//!
//! Every group that is stored anew is read again in the same transaction, and its state held against what it was.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use super::compact::{Compact, Entry, Lately, Stored, Words};
use super::unreferenced::damaged;
use super::{DELETE_EDGES, DELETE_ENTRIES, INSERT_EDGE, INSERT_ENTRY};
use crate::error::Error;
use crate::ids::RoomId;
use crate::store::db::{Db, params};
use crate::store::tx::{Abort, Tx};

/// The longest chain of each level, the lowest first: as rust-synapse-compress-state has them by default.
const LEVELS: [u16; 3] = [100, 50, 25];

/// The most links of a chain that this makes.
const MOST_LINKS: u16 = LEVELS[0] + LEVELS[1] + LEVELS[2];

/// Groups that are stored anew together, or not at all: as many as the lowest level has.
const CHUNK: usize = 100;

/// Groups that are looked at in one transaction at most.
const MOST_GROUPS: usize = 20 * CHUNK;

/// Rows that are read at once: a server's answer is held in memory until it is taken in.
const MOST_ROWS: i64 = 200_000;

const DOING: &str = "store state groups in fewer rows";

const ROOMS: &str =
    "SELECT room_id FROM state_groups GROUP BY room_id HAVING count(*) > 1 ORDER BY room_id";

const GROUPS: &str = "SELECT id FROM state_groups WHERE room_id = $1 ORDER BY id";

/// Rows of each group. Binds `$1` groups. Walks `state_groups_state_type_idx`.
const COUNTS: &str = "
    SELECT s.state_group, count(*) FROM state_groups_state s
     WHERE s.state_group IN (SELECT CAST(value AS BIGINT) FROM json_each($1))
     GROUP BY s.state_group";

/// Binds `$1` groups. Walks `state_groups_state_type_idx`.
const ENTRIES: &str = "
    SELECT s.state_group, s.room_id, s.type, s.state_key, s.event_id FROM state_groups_state s
     WHERE s.state_group IN (SELECT CAST(value AS BIGINT) FROM json_each($1))";

/// Binds `$1` groups. Walks `state_group_edges_unique_idx`.
const EDGES: &str = "
    SELECT x.state_group, x.prev_state_group FROM state_group_edges x
     WHERE x.state_group IN (SELECT CAST(value AS BIGINT) FROM json_each($1))";

/// Groups of the room, of these. Binds `$1` groups, `$2` room.
const OF_THE_ROOM: &str = "
    SELECT g.id FROM state_groups g
     WHERE g.id IN (SELECT CAST(value AS BIGINT) FROM json_each($1)) AND g.room_id = $2";

/// Binds `$1` groups.
const THAT_STAND: &str = "SELECT g.id FROM state_groups g WHERE g.id IN (SELECT CAST(value AS BIGINT) FROM json_each($1))";

/// Groups that the homeserver is about to delete, or uses at this moment.
const NOT_PENDING: &str = "
       AND NOT EXISTS (SELECT 1 FROM state_groups_pending_deletion p WHERE p.state_group = g.id)";
const NOT_PERSISTING: &str = "
       AND NOT EXISTS (SELECT 1 FROM state_groups_persisting p WHERE p.state_group = g.id)";

/// Rooms that have more than one state group, whether or not they are known as rooms.
pub fn rooms_with_groups(db: &Db) -> Result<Vec<RoomId>, Error> {
    let doing = "find the rooms that have state groups";
    db.rows(doing, ROOMS, &[], |r| {
        Ok(RoomId::new(r.get::<_, String>(0)?))
    })
}

/// One level: its head, and how long its chain is.
#[derive(Clone, Copy, Debug, Default)]
struct Level {
    head: Option<i64>,
    length: u16,
}

/// How a group is stored, once it was come to.
#[derive(Clone, Copy, Debug)]
struct Made {
    base: Option<i64>,
    links: u16,
    /// Links that it has by the levels alone.
    by_levels: u16,
}

/// What was done to groups, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compressed {
    /// Groups that were looked at.
    pub groups: i64,
    /// Of these, groups that are stored anew.
    pub changed: i64,
    /// Of these, groups that are left alone, because the homeserver is about to delete or uses them or what they rest on, or
    /// because nobody can say their state.
    pub left_alone: i64,
    /// Rows of `state_groups_state` before and after.
    pub rows_before: i64,
    /// See `rows_before`.
    pub rows_after: i64,
    /// Rows of `state_group_edges` that there are more, or fewer.
    pub more_edges: i64,
    /// Groups from one that is stored in full to the furthest that rests on it, at most.
    pub longest_chain: i64,
}

impl Compressed {
    /// Adds what was done to others.
    pub fn add(&mut self, other: &Self) {
        self.groups += other.groups;
        self.changed += other.changed;
        self.left_alone += other.left_alone;
        self.rows_before += other.rows_before;
        self.rows_after += other.rows_after;
        self.more_edges += other.more_edges;
        self.longest_chain = self.longest_chain.max(other.longest_chain);
    }
}

/// A group that is stored anew.
struct Change {
    group: i64,
    base: Option<i64>,
    entries: Vec<Entry>,
    rows_before: usize,
    edges_before: usize,
}

/// A window: how its groups are stored.
struct Window {
    stored: HashMap<i64, Rc<Stored>>,
}

/// The groups of one room, as far as they were come to.
pub struct Compressor<'a> {
    room: &'a RoomId,
    groups: Vec<i64>,
    at: usize,
    words: Words,
    lately: Lately,
    levels: [Level; LEVELS.len()],
    made: HashMap<i64, Made>,
    /// Groups that nobody can say the state of, with those that rest on them.
    unsure: HashSet<i64>,
}

/// What has come of a window, and is kept once its transaction has committed.
pub struct Step {
    /// What was done.
    pub done: Compressed,
    at: usize,
    levels: [Level; LEVELS.len()],
    made: HashMap<i64, Made>,
    unsure: HashSet<i64>,
}

impl<'a> Compressor<'a> {
    /// For a room.
    ///
    /// # Errors
    /// Those of the database.
    pub fn new(db: &Db, room: &'a RoomId) -> Result<Self, Error> {
        let groups = db.rows(DOING, GROUPS, params![room.as_str()], |r| r.get(0))?;
        Ok(Self {
            room,
            groups,
            at: 0,
            words: Words::new(),
            lately: Lately::new(),
            levels: Default::default(),
            made: HashMap::new(),
            unsure: HashSet::new(),
        })
    }

    /// Whether all groups were come to.
    pub fn is_done(&self) -> bool {
        self.at == self.groups.len()
    }

    /// Works out what would become of the next groups, of about so many rows. Reads only.
    ///
    /// # Errors
    /// [`Error::Refused`] for a damaged index; those of the database.
    pub fn plan(&mut self, db: &Db, rows: i64) -> Result<Step, Error> {
        db.read(DOING, |db| self.decide(db, rows).map(|(step, ..)| step))
    }

    /// Stores the next groups, of about so many rows, in fewer; inside a transaction. Nothing of it counts before
    /// [`Compressor::keep`].
    ///
    /// # Errors
    /// [`Error::Refused`] for a damaged index, and where a state would have become another.
    pub fn carry_out(&mut self, tx: &Tx<'_>, rows: i64) -> Result<Step, Abort> {
        tx.ensure_held(self.room)?;
        let (step, window, changes) = self.decide(tx, rows)?;
        for change in &changes {
            tx.in_time()?;
            self.store(tx, change)?;
        }
        self.prove(tx, &window, &changes)?;
        Ok(step)
    }

    /// Goes on from there.
    pub fn keep(&mut self, step: Step) {
        self.at = step.at;
        self.levels = step.levels;
        self.made.extend(step.made);
        self.unsure.extend(step.unsure);
    }

    /// What becomes of the next groups.
    fn decide(&mut self, db: &Db, rows: i64) -> Result<(Step, Window, Vec<Change>), Error> {
        let (groups, window) = self.read_window(db, rows)?;
        let to = self.at + groups.len();
        let mut unfit: HashSet<i64> = HashSet::new();
        let bases = window.stored.values().flat_map(|stored| &stored.bases);
        let mut asked: Vec<i64> = groups.iter().chain(bases).copied().collect();
        asked.sort_unstable();
        asked.dedup();
        unfit.extend(self.unfit(db, &asked)?);
        let missing = missing(db, &unfit)?;
        loop {
            let mut round = Round {
                compressor: self,
                db,
                window: &window,
                unfit: &unfit,
                missing: &missing,
                levels: Default::default(),
                made: HashMap::new(),
                unsure: HashSet::new(),
                done: Compressed::default(),
                changes: Vec::new(),
            };
            round.levels = round.compressor.levels;
            for chunk in groups.chunks(CHUNK) {
                round.run(chunk)?;
            }
            let Round {
                levels,
                made,
                unsure,
                done,
                changes,
                ..
            } = round;
            // What was fit in an earlier window may be about to go by now.
            let mut chosen: Vec<i64> = changes.iter().filter_map(|change| change.base).collect();
            chosen.sort_unstable();
            chosen.dedup();
            let gone = self.unfit(db, &chosen)?;
            if !gone.is_empty() {
                unfit.extend(gone);
                continue;
            }
            let step = Step {
                done,
                at: to,
                levels,
                made,
                unsure,
            };
            return Ok((step, window, changes));
        }
    }

    /// The next groups, of about so many rows, and how they are stored.
    fn read_window(&mut self, db: &Db, rows: i64) -> Result<(Vec<i64>, Window), Error> {
        let next = &self.groups[self.at..];
        let mut groups = next[..next.len().min(MOST_GROUPS)].to_vec();
        let mut counts: HashMap<i64, i64> = HashMap::new();
        db.for_each(DOING, COUNTS, params![json(&groups)?], |r| {
            counts.insert(r.get(0)?, r.get(1)?);
            Ok(())
        })?;
        let rows_of = |groups: &[i64]| -> i64 {
            let counts = groups.iter().filter_map(|group| counts.get(group));
            counts.sum()
        };
        let mut held = 0;
        let fitting = groups.chunks(CHUNK).take_while(|chunk| {
            held += rows_of(chunk);
            held <= rows
        });
        groups.truncate(CHUNK * fitting.count().max(1));
        let mut stored = HashMap::new();
        let (mut from, mut held) = (0, 0);
        for at in 0..groups.len() {
            held += rows_of(&groups[at..=at]);
            if held > MOST_ROWS || at + 1 == groups.len() {
                let read = read(db, &mut self.words, self.room, &groups[from..=at])?;
                stored.extend(read);
                (from, held) = (at + 1, 0);
            }
        }
        Ok((groups, Window { stored }))
    }

    /// Those of these groups that nothing may rest on, or that must stay as they are: they are of another room or of none,
    /// or the homeserver is about to delete them, or stores an event with them.
    fn unfit(&self, db: &Db, groups: &[i64]) -> Result<Vec<i64>, Error> {
        let mut sql = OF_THE_ROOM.to_owned();
        for (table, condition) in [
            ("state_groups_pending_deletion", NOT_PENDING),
            ("state_groups_persisting", NOT_PERSISTING),
        ] {
            if db.catalog().has(table) {
                sql.push_str(condition);
            }
        }
        let mut fit: HashSet<i64> = HashSet::new();
        for groups in groups.chunks(MOST_GROUPS) {
            db.for_each(
                DOING,
                &sql,
                params![json(groups)?, self.room.as_str()],
                |r| {
                    fit.insert(r.get(0)?);
                    Ok(())
                },
            )?;
        }
        let unfit = groups.iter().filter(|group| !fit.contains(group));
        Ok(unfit.copied().collect())
    }

    /// Stores a group anew.
    fn store(&self, tx: &Tx<'_>, change: &Change) -> Result<(), Error> {
        let group = change.group;
        let gone = tx.execute(DOING, DELETE_ENTRIES, params![group])?;
        let edges = tx.execute(DOING, DELETE_EDGES, params![group])?;
        let is_as_read = usize::try_from(gone) == Ok(change.rows_before)
            && usize::try_from(edges) == Ok(change.edges_before);
        if !is_as_read {
            return Err(Error::Refused(format!(
                "state group {group} of room {} is being changed by somebody else, or its rows cannot be relied on: nothing of \
                 this step was done. Is a homeserver or another compressor at work? Ask again when it is not; if this comes \
                 again, look with `roomkeeper check`",
                self.room
            )));
        }
        for entry in &change.entries {
            let (kind, key, event) = self.words.texts(*entry);
            tx.execute(
                DOING,
                INSERT_ENTRY,
                params![group, self.room.as_str(), kind, key, event],
            )?;
        }
        if let Some(base) = change.base {
            tx.execute(DOING, INSERT_EDGE, params![group, base])?;
        }
        Ok(())
    }

    /// Reads every group that was stored anew again, and holds its state against what it was.
    fn prove(&mut self, tx: &Tx<'_>, before: &Window, changes: &[Change]) -> Result<(), Abort> {
        let groups: Vec<i64> = changes.iter().map(|change| change.group).collect();
        let mut now = HashMap::new();
        for groups in groups.chunks(MOST_GROUPS) {
            now.extend(read(tx, &mut self.words, self.room, groups)?);
        }
        let mut lately = Lately::new();
        for &group in &groups {
            tx.in_time()?;
            let was = self.state(tx, before, group)?;
            let known = |group: i64| {
                now.get(&group)
                    .or_else(|| before.stored.get(&group))
                    .cloned()
            };
            let is = lately.of(tx, &mut self.words, &known, group)?;
            let same = matches!((&was, &is), (Some(was), Some(is)) if was.is(is));
            if !same {
                return Err(Abort::Failed(Error::Refused(format!(
                    "stored anew, state group {group} of room {} would have said something else: nothing of this step was \
                     done. Please report this, with what `roomkeeper check` says",
                    self.room
                ))));
            }
        }
        Ok(())
    }

    fn state(
        &mut self,
        db: &Db,
        window: &Window,
        group: i64,
    ) -> Result<Option<Rc<Compact>>, Error> {
        let known = |group: i64| window.stored.get(&group).cloned();
        self.lately.of(db, &mut self.words, &known, group)
    }

    fn made(&self, group: i64) -> Option<Made> {
        self.made.get(&group).copied()
    }
}

/// How groups are stored.
///
/// # Errors
/// [`Error::Refused`] where the index finds rows of another room.
fn read(
    db: &Db,
    words: &mut Words,
    room: &RoomId,
    groups: &[i64],
) -> Result<HashMap<i64, Rc<Stored>>, Error> {
    let mut stored: HashMap<i64, Stored> = HashMap::new();
    for group in groups {
        stored.insert(*group, Stored::default());
    }
    let numbers = json(groups)?;
    db.for_each(DOING, EDGES, params![numbers], |r| {
        if let Some(stored) = stored.get_mut(&r.get(0)?) {
            stored.bases.push(r.get(1)?);
        }
        Ok(())
    })?;
    let mut failed = None;
    db.for_each(DOING, ENTRIES, params![numbers], |r| {
        let group: i64 = r.get(0)?;
        if r.text(1)? != room.as_str() {
            failed.get_or_insert_with(|| {
                damaged(
                    "state_groups_state_type_idx",
                    &format!(
                        "it finds rows of another room for state group {group} of room {room}"
                    ),
                )
            });
        }
        match words.entry(r.text(2)?, r.text(3)?, r.text(4)?) {
            Ok(entry) => {
                if let Some(stored) = stored.get_mut(&group) {
                    stored.entries.push(entry);
                }
            }
            Err(e) => {
                failed.get_or_insert(e);
            }
        }
        Ok(())
    })?;
    if let Some(e) = failed {
        return Err(e);
    }
    let ordered = stored.into_iter().map(|(group, mut stored)| {
        stored.entries.sort_unstable();
        stored.bases.sort_unstable();
        (group, Rc::new(stored))
    });
    Ok(ordered.collect())
}

/// Those of these groups that are not there at all.
fn missing(db: &Db, groups: &HashSet<i64>) -> Result<HashSet<i64>, Error> {
    let mut missing = groups.clone();
    let groups: Vec<i64> = groups.iter().copied().collect();
    for groups in groups.chunks(MOST_GROUPS) {
        db.for_each(DOING, THAT_STAND, params![json(groups)?], |r| {
            missing.remove(&r.get(0)?);
            Ok(())
        })?;
    }
    Ok(missing)
}

fn json(groups: &[i64]) -> Result<String, Error> {
    serde_json::to_string(groups).map_err(|e| Error::Bug(e.to_string()))
}

/// One way through a window.
struct Round<'r, 'a> {
    compressor: &'r mut Compressor<'a>,
    db: &'r Db,
    window: &'r Window,
    unfit: &'r HashSet<i64>,
    missing: &'r HashSet<i64>,
    levels: [Level; LEVELS.len()],
    made: HashMap<i64, Made>,
    unsure: HashSet<i64>,
    done: Compressed,
    changes: Vec<Change>,
}

impl Round<'_, '_> {
    /// A chunk: by the levels, where that takes fewer rows, else as it is.
    fn run(&mut self, groups: &[i64]) -> Result<(), Error> {
        let (levels, done, changes) = (self.levels, self.done, self.changes.len());
        for &group in groups {
            self.one(group, true)?;
        }
        let more = |done: &Compressed| done.rows_after - done.rows_before;
        let by_levels = more(&self.done);
        if by_levels < more(&done) || self.changes.len() == changes {
            return Ok(());
        }
        // As it is may not be possible either, where a chain has become too long: then whichever takes fewer.
        for way in [false, true] {
            self.levels = levels;
            self.done = done;
            self.changes.truncate(changes);
            for &group in groups {
                self.one(group, way)?;
            }
            if more(&self.done) <= by_levels {
                break;
            }
        }
        Ok(())
    }

    fn one(&mut self, group: i64, by_levels: bool) -> Result<(), Error> {
        let Some(stored) = self.window.stored.get(&group).cloned() else {
            return Ok(());
        };
        let base = stored.bases.first().copied();
        let links = match base {
            None => 0,
            // Of another room, or not come to: nobody counted.
            Some(base) => {
                let made = self.made_of(base);
                made.map_or(LEVELS[0], |made| made.links).saturating_add(1)
            }
        };
        let mut as_it_is = Made {
            base,
            links,
            by_levels: 0,
        };
        self.done.groups += 1;
        self.done.rows_before += count(stored.entries.len());
        let is_unsure = base.is_some_and(|base| self.is_unsure(base));
        let state = match is_unsure {
            true => None,
            false => self.compressor.state(self.db, self.window, group)?,
        };
        let is_left = self.unfit.contains(&group)
            || base.is_some_and(|base| self.unfit.contains(&base))
            || state.is_none();
        if state.is_none() {
            self.unsure.insert(group);
        }
        let (chosen, entries) = match state {
            // The homeserver is about to delete it: nothing may come to rest on it.
            None => (as_it_is, None),
            Some(_) if self.unfit.contains(&group) => (as_it_is, None),
            Some(state) => {
                let head = self.next_head(group);
                let head_made = head.and_then(|head| self.made_of(head));
                as_it_is.by_levels = head_made.map_or(0, |made| made.by_levels + 1);
                let most = match by_levels {
                    true => as_it_is.by_levels,
                    // Also of one that is longer already: an interrupted run has made it so.
                    false => MOST_LINKS,
                };
                match is_left || (!by_levels && as_it_is.links <= most) {
                    true => (as_it_is, None),
                    false => self.choose(&stored, as_it_is, &state, head, most)?,
                }
            }
        };
        self.done.left_alone += i64::from(is_left);
        self.done.longest_chain = self.done.longest_chain.max(i64::from(chosen.links));
        self.made.insert(group, chosen);
        let Some(entries) = entries else {
            self.done.rows_after += count(stored.entries.len());
            return Ok(());
        };
        self.done.changed += 1;
        self.done.rows_after += count(entries.len());
        self.done.more_edges += i64::from(chosen.base.is_some()) - count(stored.bases.len());
        self.changes.push(Change {
            group,
            base: chosen.base,
            entries,
            rows_before: stored.entries.len(),
            edges_before: stored.bases.len(),
        });
        Ok(())
    }

    fn made_of(&self, group: i64) -> Option<Made> {
        let here = self.made.get(&group).copied();
        here.or_else(|| self.compressor.made(group))
    }

    fn is_unsure(&self, group: i64) -> bool {
        self.unsure.contains(&group)
            || self.missing.contains(&group)
            || self.compressor.unsure.contains(&group)
    }

    /// The head of the lowest level that has room, on which the group becomes the next; the levels below begin anew with it.
    fn next_head(&mut self, group: i64) -> Option<i64> {
        for (level, most) in self.levels.iter_mut().zip(LEVELS) {
            let head = level.head.replace(group);
            if level.length < most {
                level.length += 1;
                return head;
            }
            level.length = 1;
        }
        None
    }

    /// As it is, where that makes no more than `most` links, or on what it rests on rests on; on the head of a level, or on what
    /// that rests on; or in full: whichever takes the fewest rows. And its entries where it changes.
    fn choose(
        &mut self,
        stored: &Stored,
        as_it_is: Made,
        state: &Compact,
        head: Option<i64>,
        most: u16,
    ) -> Result<(Made, Option<Vec<Entry>>), Error> {
        let is_short = as_it_is.links <= most;
        if is_short && as_it_is.base == head {
            return Ok((as_it_is, None));
        }
        let mut best = self.base(state, head, MOST_LINKS)?;
        let shorter = |of: &Option<Base>| match of {
            Some(base) if base.links > most => head,
            _ => None,
        };
        let of_its_own = as_it_is.base.filter(|_| !is_short);
        for from in [shorter(&best), of_its_own].into_iter().flatten() {
            if let Some(other) = self.base(state, Some(from), most)?
                && best.as_ref().is_none_or(|best| other.rows < best.rows)
            {
                best = Some(other);
            }
        }
        best = best.filter(|best| best.rows < state.len() || as_it_is.base == Some(best.group));
        let rows = best.as_ref().map_or(state.len(), |best| best.rows);
        let is_it = best.as_ref().map(|best| best.group) == as_it_is.base;
        if (is_short || is_it) && stored.entries.len() <= rows {
            return Ok((as_it_is, None));
        }
        let made = Made {
            base: best.as_ref().map(|best| best.group),
            links: best.as_ref().map_or(0, |best| best.links),
            ..as_it_is
        };
        let below = best.as_ref().map(|best| &*best.state);
        Ok((made, Some(state.delta(below))))
    }

    /// The first group from `at` on, towards the one that is stored in full, that a state can rest on by no more than `most` links.
    fn base(&mut self, state: &Compact, at: Option<i64>, most: u16) -> Result<Option<Base>, Error> {
        let mut at = at;
        while let Some(group) = at {
            let made = self.made_of(group);
            let links = made.map_or(u16::MAX, |made| made.links.saturating_add(1));
            if links <= most
                && !self.unfit.contains(&group)
                && let Some(held) = self.compressor.state(self.db, self.window, group)?
                && let Some(rows) = state.delta_length(&held)
            {
                return Ok(Some(Base {
                    group,
                    state: held,
                    rows,
                    links,
                }));
            }
            at = made.and_then(|made| made.base);
        }
        Ok(None)
    }
}

/// A group that another could rest on.
struct Base {
    group: i64,
    state: Rc<Compact>,
    /// Rows that the other would take.
    rows: usize,
    /// Links that its chain would have.
    links: u16,
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
