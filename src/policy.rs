//! How long messages may stay: a room's policy, the server's default and limits, the ranges that jobs take. Pure.
//!
//! Two modules judge by it: retention deletes what a policy no longer covers, and `/messages` hides it
//! before it is deleted (R-41: the two need not agree).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::time::{Millis, days};

/// What a room, or the server by default, says about how long its messages stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// How long a message should stay at least. Nothing enforces it.
    #[serde(default)]
    pub min_lifetime: Option<Millis>,
    /// After how long a message goes.
    #[serde(default)]
    pub max_lifetime: Option<Millis>,
}

/// The lifetimes that a job takes: above `shortest`, up to and including `longest`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LifetimeRange {
    /// `shortest_max_lifetime`, exclusive; `None` for no bound.
    #[serde(default, rename = "shortest_max_lifetime")]
    pub shortest: Option<Millis>,
    /// `longest_max_lifetime`, inclusive; `None` for no bound.
    #[serde(default, rename = "longest_max_lifetime")]
    pub longest: Option<Millis>,
}

impl LifetimeRange {
    /// What is wrong with a range on demand, by the rules for those of the configuration (R-2d, R-5).
    pub fn validate(&self) -> Option<&'static str> {
        let ends = [self.shortest, self.longest];
        if ends.iter().flatten().any(|end| end.0 < 0) {
            return Some("a lifetime cannot be negative");
        }
        match ends {
            [Some(shortest), Some(longest)] if shortest > longest => {
                Some("the shortest lifetime of a range cannot be greater than its longest")
            }
            _ => None,
        }
    }

    /// Whether a job of this range takes rooms of this lifetime.
    pub fn contains(&self, lifetime: Millis) -> bool {
        self.shortest.is_none_or(|shortest| shortest < lifetime)
            && self.longest.is_none_or(|longest| lifetime <= longest)
    }
}

/// As people read it: `1d < max_lifetime <= 30d`.
impl fmt::Display for LifetimeRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.shortest, self.longest) {
            (None, None) => f.write_str("any max_lifetime"),
            (shortest, longest) => {
                if let Some(shortest) = shortest {
                    write!(f, "{} < ", shortest.in_words())?;
                }
                f.write_str("max_lifetime")?;
                if let Some(longest) = longest {
                    write!(f, " <= {}", longest.in_words())?;
                }
                Ok(())
            }
        }
    }
}

/// One of the configuration's `purge_jobs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgeJob {
    /// Time between two runs; more than 0.
    pub interval: Millis,
    /// Which rooms it takes, by the lifetime of their policy before clamping.
    #[serde(flatten)]
    pub range: LifetimeRange,
}

impl Default for PurgeJob {
    /// Every day, all lifetimes: what runs when the configuration names no job.
    fn default() -> Self {
        Self {
            interval: days(1),
            range: LifetimeRange::default(),
        }
    }
}

/// The `retention` block of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Whether jobs run and expired messages are hidden. Plans and runs on demand do not ask for it.
    pub enabled: bool,
    /// For rooms without a policy, or whose policy leaves something open.
    pub default_policy: Policy,
    /// Shorter lifetimes are raised to this before a purge.
    pub allowed_lifetime_min: Option<Millis>,
    /// Longer lifetimes are lowered to this before a purge.
    pub allowed_lifetime_max: Option<Millis>,
    /// What runs when; never empty.
    pub purge_jobs: Vec<PurgeJob>,
    /// Whether lifetimes below [`SHORT_LIFETIME`] are carried out (`roomkeeper.short_lifetimes`, R-55).
    pub short_lifetimes: bool,
    /// Whether rooms that everybody of this server has left are purged as well (`roomkeeper.retention_of_left_rooms`, R-54).
    pub of_left_rooms: bool,
}

/// A lifetime below this was hardly meant: a number without a unit is milliseconds.
pub const SHORT_LIFETIME: Millis = Millis(3_600_000);

impl Default for Retention {
    fn default() -> Self {
        Self {
            enabled: false,
            default_policy: Policy::default(),
            allowed_lifetime_min: None,
            allowed_lifetime_max: None,
            purge_jobs: vec![PurgeJob::default()],
            short_lifetimes: false,
            of_left_rooms: false,
        }
    }
}

/// Whose word a lifetime is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The room's own policy.
    Room,
    /// The server's default policy.
    Default,
}

/// Which of the server's limits changed a lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clamp {
    /// It was raised to `allowed_lifetime_min`.
    AllowedLifetimeMin,
    /// It was lowered to `allowed_lifetime_max`.
    AllowedLifetimeMax,
}

/// How long a room's messages stay, as a purge sees it, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifetime {
    /// After this long a message goes.
    pub lifetime: Millis,
    /// Whose word that was before clamping.
    pub source: Source,
    /// Which limit changed it, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clamp: Option<Clamp>,
}

/// What a job makes of a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Its messages go when they are this old.
    Due(Lifetime),
    /// Its lifetime, before clamping, is not this job's business (R-12, R-18; defect A).
    OutOfRange(Millis),
    /// Nobody says how long its messages may stay (R-14, defect B; R-15).
    NoLifetime,
    /// Its lifetime is so short that nobody may have meant it.
    TooShort(Lifetime),
}

/// A lifetime of 0 or less is none: it would mean that everything goes at once.
fn set(lifetime: Option<Millis>) -> Option<Millis> {
    lifetime.filter(|lifetime| *lifetime > Millis(0))
}

impl Retention {
    /// What a job of `range` makes of a room with this policy; `None` for a room without one.
    ///
    /// One rule serves: the lifetime is the room's own or else the default's, and it is looked at before
    /// it is clamped. A room whose own lifetime is out of range is never taken by the default's (defect A).
    pub fn evaluate(&self, range: &LifetimeRange, policy: Option<&Policy>) -> Decision {
        let own = set(policy.and_then(|policy| policy.max_lifetime));
        let (wanted, source) = match (own, set(self.default_policy.max_lifetime)) {
            (Some(own), _) => (own, Source::Room),
            (None, Some(default)) => (default, Source::Default),
            (None, None) => return Decision::NoLifetime,
        };
        if !range.contains(wanted) {
            return Decision::OutOfRange(wanted);
        }
        let mut lifetime = wanted;
        let mut clamp = None;
        // Min first, then max, so that max wins if they contradict each other.
        if let Some(least) = set(self.allowed_lifetime_min).filter(|least| lifetime < *least) {
            (lifetime, clamp) = (least, Some(Clamp::AllowedLifetimeMin));
        }
        if let Some(most) = set(self.allowed_lifetime_max).filter(|most| lifetime > *most) {
            (lifetime, clamp) = (most, Some(Clamp::AllowedLifetimeMax));
        }
        let found = Lifetime {
            lifetime,
            source,
            clamp,
        };
        match lifetime < SHORT_LIFETIME && !self.short_lifetimes {
            true => Decision::TooShort(found),
            false => Decision::Due(found),
        }
    }

    /// One of the jobs, counted from 1.
    pub fn job(&self, number: usize) -> Option<&PurgeJob> {
        self.purge_jobs.get(number.checked_sub(1)?)
    }

    /// The ranges of all jobs, each once.
    pub fn ranges(&self) -> Vec<LifetimeRange> {
        let mut ranges: Vec<LifetimeRange> = Vec::new();
        for job in &self.purge_jobs {
            if !ranges.contains(&job.range) {
                ranges.push(job.range);
            }
        }
        ranges
    }

    /// Messages of the room whose `origin_server_ts` is **below** this are hidden from clients (R-40 … R-42); `None`
    /// when nothing is. State events are never hidden, and an admin's `/messages` hides nothing.
    ///
    /// Limits do not count here, and 0 is a real value that hides everything.
    pub fn hides_before(&self, policy: Option<&Policy>, now: Millis) -> Option<Millis> {
        if !self.enabled {
            return None;
        }
        let own = policy.and_then(|policy| policy.max_lifetime);
        own.or(self.default_policy.max_lifetime)
            .map(|lifetime| now - lifetime)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(max_lifetime: Option<i64>) -> Policy {
        Policy {
            min_lifetime: None,
            max_lifetime: max_lifetime.map(Millis),
        }
    }

    #[test]
    fn the_shorter_bound_is_exclusive_and_the_longer_inclusive() {
        let range = LifetimeRange {
            shortest: Some(Millis(10)),
            longest: Some(Millis(20)),
        };
        let taken: Vec<i64> = (8..24).filter(|n| range.contains(Millis(*n))).collect();
        assert_eq!(taken, (11..=20).collect::<Vec<_>>());
        assert!(LifetimeRange::default().contains(Millis(1)));
    }

    #[test]
    fn limits_are_applied_after_the_range_and_the_upper_one_wins() {
        let retention = Retention {
            allowed_lifetime_min: Some(Millis(50)),
            allowed_lifetime_max: Some(Millis(40)),
            short_lifetimes: true,
            ..Retention::default()
        };
        let range = LifetimeRange {
            shortest: None,
            longest: Some(Millis(10)),
        };
        let Decision::Due(due) = retention.evaluate(&range, Some(&policy(Some(10)))) else {
            panic!("10 is in range before it is clamped")
        };
        assert_eq!(
            (due.lifetime, due.clamp),
            (Millis(40), Some(Clamp::AllowedLifetimeMax))
        );
        assert_eq!(
            retention.evaluate(&range, Some(&policy(Some(11)))),
            Decision::OutOfRange(Millis(11))
        );
    }

    #[test]
    fn zero_is_no_lifetime_for_a_purge_and_hides_everything_from_readers() {
        let mut retention = Retention {
            enabled: true,
            ..Retention::default()
        };
        let zero = policy(Some(0));
        let any = LifetimeRange::default();
        assert_eq!(retention.evaluate(&any, Some(&zero)), Decision::NoLifetime);
        assert_eq!(
            retention.hides_before(Some(&zero), Millis(9)),
            Some(Millis(9))
        );
        retention.default_policy = policy(Some(5));
        assert!(matches!(
            retention.evaluate(&any, Some(&zero)),
            Decision::TooShort(Lifetime {
                lifetime: Millis(5),
                ..
            })
        ));
        retention.short_lifetimes = true;
        assert!(matches!(
            retention.evaluate(&any, Some(&zero)),
            Decision::Due(Lifetime {
                lifetime: Millis(5),
                source: Source::Default,
                clamp: None
            })
        ));
    }

    #[test]
    fn readers_are_spared_by_the_default_and_not_by_the_limits() {
        let mut retention = Retention {
            default_policy: policy(Some(100)),
            allowed_lifetime_min: Some(Millis(500)),
            ..Retention::default()
        };
        let now = Millis(1000);
        assert_eq!(retention.hides_before(None, now), None, "not enabled");
        retention.enabled = true;
        assert_eq!(retention.hides_before(None, now), Some(Millis(900)));
        let own = policy(Some(30));
        assert_eq!(retention.hides_before(Some(&own), now), Some(Millis(970)));
        let open = policy(None);
        assert_eq!(retention.hides_before(Some(&open), now), Some(Millis(900)));
        retention.default_policy = policy(None);
        assert_eq!(retention.hides_before(None, now), None);
    }
}
