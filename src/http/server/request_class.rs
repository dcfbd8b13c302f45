//! Classes of requests: how long a request may keep a handler, so that slow ones never have them all.
//!
//! A handler thread is held until its answer is there. A page of `/messages` may wait for a purge's batch, a
//! synchronous deletion takes as long as the deletion does. Each such kind has a class with fewer places than there are
//! handlers; what finds its class full waits at the server, in order of arrival and without a thread, while others pass it.

use super::limits::Limits;

/// How long a request may keep a handler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestClass {
    /// Milliseconds.
    #[default]
    Quick,
    /// Now and then seconds: it reads much, or waits for a room.
    Slow,
    /// As long as a whole job. These count among the slow ones, too.
    Long,
}

impl RequestClass {
    /// Its name.
    pub fn text(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Slow => "slow",
            Self::Long => "long",
        }
    }
}

/// How many requests are in each class.
#[derive(Clone, Copy, Debug, Default)]
pub struct InFlight {
    not_quick: usize,
    long: usize,
}

impl FromIterator<RequestClass> for InFlight {
    fn from_iter<T: IntoIterator<Item = RequestClass>>(classes: T) -> Self {
        classes
            .into_iter()
            .fold(Self::default(), |count, class| Self {
                not_quick: count.not_quick + usize::from(class != RequestClass::Quick),
                long: count.long + usize::from(class == RequestClass::Long),
            })
    }
}

impl InFlight {
    /// Whether one more of that class may go to a handler, when these have one.
    pub fn may_run(&self, class: RequestClass, limits: &Limits) -> bool {
        match class {
            RequestClass::Quick => true,
            RequestClass::Slow => self.not_quick < limits.slow,
            RequestClass::Long => self.not_quick < limits.slow && self.long < limits.long,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_requests_leave_handlers_to_the_others() {
        let limits = Limits::default();
        assert!(
            0 < limits.long && limits.long < limits.slow && limits.slow < limits.handler_requests
        );
        let with = |slow: usize, long: usize| {
            let slow = std::iter::repeat_n(RequestClass::Slow, slow);
            slow.chain(std::iter::repeat_n(RequestClass::Long, long))
                .collect::<InFlight>()
        };
        assert!(with(limits.slow - 1, 0).may_run(RequestClass::Slow, &limits));
        assert!(!with(limits.slow, 0).may_run(RequestClass::Slow, &limits));
        assert!(!with(0, limits.long).may_run(RequestClass::Long, &limits));
        assert!(with(0, limits.long).may_run(RequestClass::Slow, &limits));
        assert!(with(100, 100).may_run(RequestClass::Quick, &limits));
    }
}
