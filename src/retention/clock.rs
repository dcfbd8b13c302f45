//! Whether the clock can be believed: one that is ahead would delete what has not expired.

use crate::error::Error;
use crate::plural::count;
use crate::store::arrival_times;
use crate::store::db::Db;
use crate::time::{Clock, Millis};

/// How many of the newest events are asked when they arrived.
const ARRIVALS: i64 = 1_000;

/// Refuses while the clock is further ahead of the newest trustworthy time than `tolerance`, and the kernel does not say
/// that it is synchronised. `noted` is the end of the last job under a clock that was believed.
///
/// # Errors
/// [`Error::Refused`] with both times, and what to do.
pub fn refuse_clock_ahead(
    db: &Db,
    clock: &dyn Clock,
    tolerance: Millis,
    noted: Option<Millis>,
) -> Result<(), Error> {
    let arrivals = arrival_times::newest(db, ARRIVALS)?;
    let Some(newest) = newest_trustworthy(&arrivals, tolerance).max(noted) else {
        return Ok(());
    };
    let now = clock.now();
    // The kernel is asked only where that matters.
    if now - newest <= tolerance || clock.is_synchronised() {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "the clock says {} UTC, {} after the newest event ({}), and nothing says that it is synchronised: a clock that is \
         ahead would delete what has not expired. Put it right, or start time synchronisation; where it is right (a \
         quiet server, an archive), say --trust-clock once, or roomkeeper.check_clock: off",
        now.as_date(),
        in_days(now - newest),
        newest.as_date()
    )))
}

/// The newest time of arrival that can be trusted.
///
/// # Errors
/// Those of the database.
pub fn newest_arrival(db: &Db, tolerance: Millis) -> Result<Option<Millis>, Error> {
    let arrivals = arrival_times::newest(db, ARRIVALS)?;
    Ok(newest_trustworthy(&arrivals, tolerance))
}

fn in_days(length: Millis) -> String {
    count(length.0 / 86_400_000, "day")
}

/// The newest of these times of arrival, oldest first, without those after a jump of more than the tolerance: what wrote
/// them may have been the clock that is in doubt.
fn newest_trustworthy(arrivals: &[i64], tolerance: Millis) -> Option<Millis> {
    let mut newest: Option<i64> = None;
    for stamp in arrivals {
        match newest {
            Some(before) if stamp.saturating_sub(before) > tolerance.0 => break,
            Some(before) => newest = Some(before.max(*stamp)),
            None => newest = Some(*stamp),
        }
    }
    newest.map(Millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::days;

    #[test]
    fn what_was_stamped_after_a_jump_tells_nothing() {
        let day = days(1).0;
        for (arrivals, newest) in [
            (vec![], None),
            (vec![100 * day], Some(100)),
            (vec![100 * day, 103 * day, 102 * day], Some(103)),
            (vec![100 * day, 107 * day, 114 * day], Some(114)),
            (vec![100 * day, 108 * day, 101 * day], Some(100)),
            (vec![100 * day, 0, day, 101 * day], Some(101)),
            (vec![100 * day, 300 * day, 301 * day], Some(100)),
        ] {
            let found = newest_trustworthy(&arrivals, days(7));
            assert_eq!(found, newest.map(days), "{arrivals:?}");
        }
    }
}
