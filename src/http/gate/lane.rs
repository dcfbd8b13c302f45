//! Lanes: how long a request may keep a handler, so that slow ones never have them all.
//!
//! A handler thread is held until its answer is there. A page of `/messages` may wait for a purge's stride, a
//! synchronous deletion takes as long as the deletion does. Each such kind has a lane with fewer places than there are
//! handlers; what finds its lane full waits at the gate, in order of arrival and without a thread, while others pass it.

use super::limits::Limits;

/// How long a request may keep a handler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lane {
    /// Milliseconds.
    #[default]
    Quick,
    /// Now and then seconds: it reads much, or waits for a room.
    Slow,
    /// As long as a whole job. These count among the slow ones, too.
    Long,
}

/// How many requests are in each lane.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    all: usize,
    not_quick: usize,
    long: usize,
}

impl FromIterator<Lane> for Traffic {
    fn from_iter<T: IntoIterator<Item = Lane>>(lanes: T) -> Self {
        lanes.into_iter().fold(Self::default(), |count, lane| Self {
            all: count.all + 1,
            not_quick: count.not_quick + usize::from(lane != Lane::Quick),
            long: count.long + usize::from(lane == Lane::Long),
        })
    }
}

impl Traffic {
    /// Whether one more of that lane may go to a handler, when these have one.
    pub fn lets_through(&self, lane: Lane, limits: &Limits) -> bool {
        match lane {
            Lane::Quick => true,
            Lane::Slow => self.not_quick < limits.slow,
            Lane::Long => self.not_quick < limits.slow && self.long < limits.long,
        }
    }

    /// Whether one more of that lane may wait, when these do. Slow ones leave a quarter of the places to the others.
    pub fn has_place(&self, lane: Lane, limits: &Limits) -> bool {
        let for_slow = limits.waiting - limits.waiting / 4;
        self.all < limits.waiting && (lane == Lane::Quick || self.not_quick < for_slow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_requests_leave_handlers_and_places_to_the_others() {
        let limits = Limits::default();
        assert!(0 < limits.long && limits.long < limits.slow && limits.slow < limits.exchanges);
        let with = |slow: usize, long: usize| {
            let slow = std::iter::repeat_n(Lane::Slow, slow);
            slow.chain(std::iter::repeat_n(Lane::Long, long))
                .collect::<Traffic>()
        };
        assert!(with(limits.slow - 1, 0).lets_through(Lane::Slow, &limits));
        assert!(!with(limits.slow, 0).lets_through(Lane::Slow, &limits));
        assert!(!with(0, limits.long).lets_through(Lane::Long, &limits));
        assert!(with(0, limits.long).lets_through(Lane::Slow, &limits));
        assert!(with(100, 100).lets_through(Lane::Quick, &limits));
        assert!(!with(limits.waiting * 3 / 4, 0).has_place(Lane::Slow, &limits));
        assert!(with(limits.waiting * 3 / 4, 0).has_place(Lane::Quick, &limits));
        assert!(!with(limits.waiting, 0).has_place(Lane::Quick, &limits));
    }
}
