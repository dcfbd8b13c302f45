//! When recurring jobs are due, in monotonic time: whoever sets the clock neither hurries nor delays them.

use crate::time::Millis;

/// Several recurring jobs. Each is due one interval after the moment from which that counts, and then every interval;
/// what was missed meanwhile folds into one.
#[derive(Debug, Default)]
pub struct Schedule {
    jobs: Vec<Recurring>,
}

#[derive(Debug)]
struct Recurring {
    interval: Millis,
    due: Millis,
}

impl Schedule {
    /// Adds a job, of which `passed` has passed already since its last run; and gives its number.
    pub fn add(&mut self, interval: Millis, passed: Millis, monotonic: Millis) -> usize {
        let interval = interval.max(Millis(1));
        let passed = passed.clamp(Millis(0), interval);
        self.jobs.push(Recurring {
            interval,
            due: monotonic + (interval - passed),
        });
        self.jobs.len() - 1
    }

    /// When the next one is due.
    pub fn due(&self) -> Option<Millis> {
        self.jobs.iter().map(|job| job.due).min()
    }

    /// A job that is due now, each once: the next is due at the first multiple of its interval from then on.
    pub fn next_due(&mut self, monotonic: Millis) -> Option<usize> {
        let at = self.jobs.iter().position(|job| job.due <= monotonic)?;
        let job = &mut self.jobs[at];
        let missed = (monotonic - job.due).0 / job.interval.0;
        job.due = job.due + Millis(job.interval.0.saturating_mul(missed.saturating_add(1)));
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::days;

    const HOUR: Millis = Millis(3_600_000);

    fn all_due(schedule: &mut Schedule, monotonic: Millis) -> Vec<usize> {
        std::iter::from_fn(|| schedule.next_due(monotonic)).collect()
    }

    #[test]
    fn a_week_of_minutes_runs_each_job_once_an_interval() {
        let mut schedule = Schedule::default();
        schedule.add(days(1), Millis(0), Millis(0));
        schedule.add(Millis(7 * HOUR.0), HOUR, Millis(0));
        let mut runs = [Vec::new(), Vec::new()];
        for minute in 0..=7 * 24 * 60 {
            let monotonic = Millis(minute * 60_000);
            for job in all_due(&mut schedule, monotonic) {
                runs[job].push(minute / 60);
            }
        }
        assert_eq!(runs[0], [24, 48, 72, 96, 120, 144, 168]);
        assert_eq!(runs[1], (0..24).map(|n| 6 + 7 * n).collect::<Vec<_>>());
    }

    #[test]
    fn what_was_missed_folds_into_one_run() {
        let mut schedule = Schedule::default();
        schedule.add(HOUR, Millis(0), Millis(0));
        // The last run took eleven hours, or the machine was asleep.
        assert_eq!(all_due(&mut schedule, Millis(11 * HOUR.0 + 5)), [0]);
        assert!(all_due(&mut schedule, Millis(12 * HOUR.0 - 1)).is_empty());
        assert_eq!(all_due(&mut schedule, Millis(12 * HOUR.0)), [0]);
    }

    #[test]
    fn a_job_that_was_due_while_nobody_was_there_is_due_at_once_and_none_later_than_its_interval() {
        for (passed, due) in [(days(9), 0), (days(1), 0), (HOUR, 23), (days(-5), 24)] {
            let mut schedule = Schedule::default();
            schedule.add(days(1), passed, Millis(0));
            let first = (0..100).find(|hour| schedule.next_due(Millis(hour * HOUR.0)).is_some());
            assert_eq!(first, Some(due));
        }
    }
}
