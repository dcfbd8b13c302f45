//! One read/write lock per room (L-9): a purge holds a room alone, pages read it together.
//!
//! These are `parking_lot`'s locks as they are; released fairly they serve in order of arrival. The map
//! holds weak references, so quiet rooms cost nothing. A lock is a value: a transaction that deletes takes a
//! [`RoomSet`], so that a purge without the lock does not compile.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::lock_api::{ArcRwLockReadGuard, ArcRwLockWriteGuard};
use parking_lot::{Mutex, RawRwLock, RwLock};

use crate::counters::{COUNTERS, Wait};
use crate::ids::RoomId;

/// The locks of all rooms that somebody holds or waits for.
#[derive(Debug, Default)]
pub struct RoomLocks {
    rooms: Mutex<HashMap<RoomId, Weak<RwLock<()>>>>,
}

/// The room, held alone. Dropping it lets the next in line through.
pub struct RoomWrite {
    guard: Option<ArcRwLockWriteGuard<RawRwLock, ()>>,
    room: RoomId,
}

/// One room or several, held alone (L-12). Dropping it lets the next in line through.
pub struct RoomSet(Vec<RoomWrite>);

/// The room, shared with other readers.
pub struct RoomRead {
    guard: Option<ArcRwLockReadGuard<RawRwLock, ()>>,
}

/// Entries the map may hold before dead ones are swept out: small enough to sweep in microseconds.
const SWEEP_ABOVE: usize = 64;

impl RoomLocks {
    /// Waits for the room alone, in order of arrival.
    pub fn write(&self, room: &RoomId) -> RoomWrite {
        let asked = Instant::now();
        let guard = Some(self.of(room).write_arc());
        COUNTERS.wait(Wait::Room).observe(asked.elapsed());
        RoomWrite {
            guard,
            room: room.clone(),
        }
    }

    /// The room alone, if nobody has it or waits for it now: for a second room beside one that is held (L-12).
    pub fn try_write(&self, room: &RoomId) -> Option<RoomWrite> {
        let guard = Some(self.of(room).try_write_arc()?);
        let room = room.clone();
        Some(RoomWrite { guard, room })
    }

    /// Waits for the first room alone, and tries for the others in ascending order of ids (L-12).
    ///
    /// # Errors
    /// The first of the others that somebody has or waits for; none is held then.
    pub fn write_all(&self, first: &RoomId, others: &[RoomId]) -> Result<RoomSet, RoomId> {
        let mut held = vec![self.write(first)];
        let mut others: Vec<&RoomId> = others.iter().filter(|room| *room != first).collect();
        others.sort_unstable();
        others.dedup();
        for room in others {
            held.push(self.try_write(room).ok_or_else(|| room.clone())?);
        }
        Ok(RoomSet(held))
    }

    /// Waits for the room among readers: after the writers that were there before, never after later ones.
    #[cfg(test)]
    pub fn read(&self, room: &RoomId) -> RoomRead {
        RoomRead {
            guard: Some(self.of(room).read_arc()),
        }
    }

    /// The room among readers, if it is free for them now.
    pub fn try_read(&self, room: &RoomId) -> Option<RoomRead> {
        let guard = Some(self.of(room).try_read_arc()?);
        Some(RoomRead { guard })
    }

    /// The room among readers, after the writers that were there before; waits no longer than `patience`.
    pub fn read_within(&self, room: &RoomId, patience: Duration) -> Option<RoomRead> {
        let guard = Some(self.of(room).try_read_arc_for(patience)?);
        Some(RoomRead { guard })
    }

    fn of(&self, room: &RoomId) -> Arc<RwLock<()>> {
        let mut rooms = self.rooms.lock();
        if let Some(lock) = rooms.get(room).and_then(Weak::upgrade) {
            return lock;
        }
        if rooms.len() > SWEEP_ABOVE {
            rooms.retain(|_, lock| lock.strong_count() > 0);
        }
        let lock = Arc::new(RwLock::new(()));
        rooms.insert(room.clone(), Arc::downgrade(&lock));
        lock
    }
}

impl RoomSet {
    /// Whether the room is one of those that are held.
    pub fn holds(&self, room: &RoomId) -> bool {
        self.0.iter().any(|held| held.room == *room)
    }
}

impl Drop for RoomWrite {
    fn drop(&mut self) {
        if let Some(guard) = self.guard.take() {
            ArcRwLockWriteGuard::unlock_fair(guard);
        }
    }
}

impl Drop for RoomRead {
    fn drop(&mut self) {
        if let Some(guard) = self.guard.take() {
            ArcRwLockReadGuard::unlock_fair(guard);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    #[test]
    fn a_reader_that_comes_after_a_waiting_writer_runs_after_it() {
        let locks = Arc::new(RoomLocks::default());
        let room = RoomId::from("!a:b");
        let order = Arc::new(Mutex::new(Vec::new()));
        let first = locks.read(&room);
        let start = |name: &'static str, write: bool| {
            let (locks, room, order) = (locks.clone(), room.clone(), order.clone());
            let thread = thread::spawn(move || {
                let _held: (Option<RoomWrite>, Option<RoomRead>) = if write {
                    (Some(locks.write(&room)), None)
                } else {
                    (None, Some(locks.read(&room)))
                };
                order.lock().push(name);
            });
            // Long enough for the thread to be parked in the queue.
            thread::sleep(Duration::from_millis(50));
            thread
        };
        let threads = [start("writer", true), start("reader", false)];
        assert!(order.lock().is_empty());
        drop(first);
        for thread in threads {
            thread.join().expect("no panic");
        }
        assert_eq!(*order.lock(), ["writer", "reader"]);
    }

    #[test]
    fn rooms_do_not_wait_for_each_other_and_quiet_rooms_cost_nothing() {
        let locks = RoomLocks::default();
        let _a = locks.write(&RoomId::from("!a:b"));
        for n in 0..1_000 {
            drop(locks.write(&RoomId::new(format!("!{n}:b"))));
        }
        assert!(locks.rooms.lock().len() <= SWEEP_ABOVE + 2);
    }

    #[test]
    fn several_rooms_are_held_all_or_none_and_nobody_waits_for_the_second() {
        let locks = RoomLocks::default();
        let [a, b, c] = ["!a:b", "!b:b", "!c:b"].map(RoomId::from);
        let held = locks
            .write_all(&b, &[c.clone(), a.clone(), b.clone(), a.clone()])
            .unwrap_or_else(|room| panic!("{room} is free"));
        assert!([&a, &b, &c].iter().all(|room| held.holds(room)));
        assert!(!held.holds(&RoomId::from("!d:b")));
        assert!(locks.try_read(&a).is_none() && locks.try_read(&c).is_none());
        drop(held);
        let reader = locks.read(&c);
        assert_eq!(locks.write_all(&b, &[c.clone(), a.clone()]).err(), Some(c));
        assert!(locks.try_write(&a).is_some() && locks.try_write(&b).is_some());
        drop(reader);
    }

    #[test]
    fn a_writer_is_alone() {
        let locks = Arc::new(RoomLocks::default());
        let inside = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..8)
            .map(|n| {
                let (locks, inside) = (locks.clone(), inside.clone());
                thread::spawn(move || {
                    let room = RoomId::from("!a:b");
                    for _ in 0..200 {
                        if n % 2 == 0 {
                            let _alone = locks.write(&room);
                            assert_eq!(inside.fetch_add(1_000, Ordering::SeqCst), 0);
                            inside.fetch_sub(1_000, Ordering::SeqCst);
                        } else {
                            let _shared = locks.read(&room);
                            assert!(inside.fetch_add(1, Ordering::SeqCst) < 1_000);
                            inside.fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("no overlap");
        }
    }
}
