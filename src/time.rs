//! Wall-clock milliseconds, and clocks to read them from.

use std::ops::{Add, Sub};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Milliseconds: a point in time since the epoch, as Matrix counts, or a length of time.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Millis(pub i64);

impl Add for Millis {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for Millis {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl From<Duration> for Millis {
    fn from(duration: Duration) -> Self {
        Self(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX))
    }
}

impl Millis {
    /// A length of time in the largest unit that needs no fraction, as [`parse_duration_with_unit`] reads it: `90d`,
    /// `36h`, `1500ms`.
    pub fn in_words(self) -> String {
        const UNITS: [(i64, char); 4] = [
            (86_400_000, 'd'),
            (3_600_000, 'h'),
            (60_000, 'm'),
            (1_000, 's'),
        ];
        UNITS
            .iter()
            .find(|(length, _)| self.0 != 0 && self.0 % length == 0)
            .map_or_else(
                || match self.0 {
                    0 => "0s".to_owned(),
                    length => format!("{length}ms"),
                },
                |(length, letter)| format!("{}{letter}", self.0 / length),
            )
    }
}

impl Millis {
    /// A length of time as people say it, to its two largest units: `2 h 5 min`, `3 s`, `40 ms`.
    pub fn for_people(self) -> String {
        let units = [
            (86_400_000, "d"),
            (3_600_000, "h"),
            (60_000, "min"),
            (1_000, "s"),
        ];
        let length = self.0.max(0);
        let Some(at) = units.iter().position(|(unit, _)| length >= *unit) else {
            return format!("{length} ms");
        };
        let (unit, word) = units[at];
        let rest = units
            .get(at + 1)
            .map(|(unit, word)| (length % units[at].0 / unit, word));
        match rest {
            Some((rest, smaller)) if rest > 0 => {
                format!("{} {word} {rest} {smaller}", length / unit)
            }
            _ => format!("{} {word}", length / unit),
        }
    }

    /// A point in time as a date in UTC, to the second: `2026-11-23 07:14:47`.
    pub fn as_date(self) -> String {
        let seconds = self.0.div_euclid(1_000);
        let (day, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        // Years that begin in March, in eras of 400 of them: the leap day comes last, and every era is as long.
        let day = day + 719_468;
        let (era, of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
        let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let (date, month) = (of_year - (153 * month + 2) / 5 + 1, (month + 2) % 12 + 1);
        format!(
            "{:04}-{month:02}-{date:02} {:02}:{:02}:{:02}",
            era * 400 + year + i64::from(month <= 2),
            second / 3_600,
            second / 60 % 60,
            second % 60
        )
    }
}

/// A length of `count` days of 24 hours.
pub const fn days(count: i64) -> Millis {
    Millis(count.saturating_mul(24 * 60 * 60 * 1000))
}

/// Where the time comes from: the system, or a test that moves it.
pub trait Clock: Send + Sync {
    /// Milliseconds since the epoch.
    fn now(&self) -> Millis;

    /// Milliseconds since some moment, by a clock that nobody sets and that goes on while the machine is suspended.
    fn monotonic(&self) -> Millis;

    /// Whether the clock is known to follow an outer one, as the kernel says.
    fn is_synchronised(&self) -> bool;
}

/// The operating system's wall clock.
#[derive(Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Millis {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(Millis(0), Millis::from)
    }

    fn monotonic(&self) -> Millis {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Millis(time.tv_sec.saturating_mul(1_000) + time.tv_nsec / 1_000_000)
    }

    fn is_synchronised(&self) -> bool {
        // STA_UNSYNC of adjtimex(2), which NTP daemons clear; TIME_ERROR is the kernel's own doubt.
        const NOT_SYNCHRONISED: i32 = 0x0040;
        const TIME_ERROR: i32 = 5;
        let mut state = rtime_clock::adjtime::Timex::new();
        match rtime_clock::adjtime::adjtimex(&mut state) {
            Ok(said) => said != TIME_ERROR && state.0.status & NOT_SYNCHRONISED == 0,
            Err(e) => {
                log::debug!("the kernel does not say whether the clock is synchronised: {e}");
                false
            }
        }
    }
}

/// A clock that stands still until it is moved; for tests of what happens after 24 hours.
#[derive(Debug)]
pub struct ManualClock {
    now: Mutex<Millis>,
    monotonic: Mutex<Millis>,
    is_adrift: AtomicBool,
}

impl ManualClock {
    /// Says that nobody keeps this clock right, as the kernel says it of the system's.
    pub fn set_adrift(&self) {
        self.is_adrift.store(true, Ordering::SeqCst);
    }

    /// A clock that shows `now`.
    pub fn at(now: Millis) -> Self {
        Self {
            now: Mutex::new(now),
            monotonic: Mutex::new(Millis(0)),
            is_adrift: AtomicBool::new(false),
        }
    }

    /// Lets time pass.
    pub fn advance(&self, by: Millis) {
        self.jump(by);
        let mut monotonic = self.monotonic.lock();
        *monotonic = *monotonic + by.max(Millis(0));
    }

    /// Sets the clock forwards or back, while no time passes.
    pub fn jump(&self, by: Millis) {
        let mut now = self.now.lock();
        *now = *now + by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Millis {
        *self.now.lock()
    }

    fn monotonic(&self) -> Millis {
        *self.monotonic.lock()
    }

    fn is_synchronised(&self) -> bool {
        !self.is_adrift.load(Ordering::SeqCst)
    }
}

/// A difference between the clocks that is no jump: the wall clock is being slewed, or a second was inserted.
const JUMP: Millis = Millis(10_000);

/// The time of day, for work that must not be done early because somebody set the clock forwards.
///
/// It follows the wall clock for as long as that goes with the monotonic one. A jump forwards is believed when it has
/// stood for as long as it is large: a clock that is put right again in time has hurried nothing, and a machine that
/// was paused, or booted with a wrong clock, goes on. A jump back is believed at once, because late is safe.
#[derive(Debug)]
pub struct JumpTolerantClock {
    /// The wall clock and the monotonic one when they were last seen to go together.
    wall: Millis,
    monotonic: Millis,
    /// Since when, in monotonic time, the wall clock has been ahead.
    ahead_since: Option<Millis>,
}

impl JumpTolerantClock {
    /// Begins with the wall clock as it is.
    pub fn new(clock: &dyn Clock) -> Self {
        Self {
            wall: clock.now(),
            monotonic: clock.monotonic(),
            ahead_since: None,
        }
    }

    /// The time to go by.
    pub fn now(&mut self, clock: &dyn Clock) -> Millis {
        let (wall, monotonic) = (clock.now(), clock.monotonic());
        let expected = self.wall + (monotonic - self.monotonic);
        let ahead = wall - expected;
        if ahead <= JUMP {
            self.ahead_since = None;
            if ahead >= Millis(0) - JUMP {
                (self.wall, self.monotonic) = (wall, monotonic);
            }
            return wall;
        }
        let since = *self.ahead_since.get_or_insert_with(|| {
            log::warn!(
                "the clock jumped forwards by {} ms: retention does not follow before it has stood for that long",
                ahead.0
            );
            monotonic
        });
        if monotonic - since < ahead {
            return expected;
        }
        log::warn!(
            "retention follows the clock, which jumped forwards by {} ms",
            ahead.0
        );
        (self.wall, self.monotonic, self.ahead_since) = (wall, monotonic, None);
        wall
    }
}

/// Reads Synapse's duration grammar: digits and an optional `s m h d w y`; without a letter, milliseconds.
///
/// # Errors
/// A sentence that names the text when it is not of this form, or does not fit.
pub fn parse_duration(text: &str) -> Result<Millis, String> {
    let wrong = || {
        format!(
            "'{text}' is not a duration: write a whole number and one of s, m, h, d, w, y, such as 90d"
        )
    };
    let trimmed = text.trim();
    let (digits, unit) = match trimmed.char_indices().last() {
        Some((at, letter)) if letter.is_ascii_alphabetic() => {
            let unit = match letter {
                's' => 1_000,
                'm' => 60_000,
                'h' => 3_600_000,
                'd' => 86_400_000,
                'w' => 7 * 86_400_000,
                'y' => 365 * 86_400_000,
                _ => return Err(wrong()),
            };
            (&trimmed[..at], unit)
        }
        _ => (trimmed, 1),
    };
    let digits = digits.trim();
    let count: i64 = digits.replace('_', "").parse().map_err(|_| wrong())?;
    if digits.starts_with('_') || digits.ends_with('_') || digits.contains("__") {
        return Err(wrong());
    }
    count.checked_mul(unit).map(Millis).ok_or_else(wrong)
}

/// A time as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// A moment since 1970.
    At(Millis),
    /// So long before now.
    Ago(Millis),
}

/// Reads a date (`2026-01-01`), a time (`2026-01-01T12:00Z`, `2026-01-01 12:00:30.5+02:00`; without a zone UTC), or how long
/// ago (`90d`).
///
/// # Errors
/// A sentence that names the text and says what would do. A bare number is none: of what?
pub fn parse_when(text: &str) -> Result<When, String> {
    let text = text.trim();
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if is_number {
        // What other programs count since 1970 is no number of days.
        let date = |scale: i64| {
            let count = text.parse::<i64>().ok()?.checked_mul(scale)?;
            Some(Millis(count).as_date().replace(' ', "T"))
        };
        let since_1970 = match text.len() {
            10 => date(1_000).map(|date| ("seconds", date)),
            13 => date(1).map(|date| ("milliseconds", date)),
            _ => None,
        };
        return Err(match since_1970 {
            Some((unit, date)) => {
                format!("{text} of what? If {unit} since 1970 are meant, say {date}Z")
            }
            None if text.len() > 5 => format!(
                "{text} of what? Say a date such as 2026-01-01, or how long ago, such as 90d"
            ),
            None => format!(
                "{text} of what? Say a date such as 2026-01-01, or how long ago, such as {text}d"
            ),
        });
    }
    if let Some(moment) = parse_date(text) {
        return Ok(When::At(moment));
    }
    let wrong = || {
        format!(
            "'{text}' is no time: say a date such as 2026-01-01 or 2026-01-01T12:00Z, or how long ago, such as 90d"
        )
    };
    match parse_duration(text) {
        Ok(ago) if ago >= Millis(0) && text.ends_with(|c: char| c.is_ascii_alphabetic()) => {
            Ok(When::Ago(ago))
        }
        _ => Err(wrong()),
    }
}

fn parse_date(text: &str) -> Option<Millis> {
    let digits = |text: &str, count: usize| -> Option<i64> {
        let is_whole = text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
        is_whole.then(|| text.parse().ok()).flatten()
    };
    let (day, rest) = text.split_at_checked(10)?;
    let mut parts = day.split('-');
    let (year, month, date) = (parts.next()?, parts.next()?, parts.next()?);
    let (year, month, date) = (digits(year, 4)?, digits(month, 2)?, digits(date, 2)?);
    // As in `as_date`: years that begin in March.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let (era, of_era) = (y.div_euclid(400), y.rem_euclid(400));
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + (153 * m + 2) / 5 + date
        - 719_469;
    let midnight = Millis(days * 86_400_000);
    // A 30th of February is another day.
    if !midnight.as_date().starts_with(day) {
        return None;
    }
    if rest.is_empty() {
        return Some(midnight);
    }
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (clock, zone) = match rest.find(['Z', 'z', '+', '-']) {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let mut parts = clock.trim_end().split(':');
    let (hour, minute) = (digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    let (second, fraction) = match parts.next() {
        None => (0, 0),
        Some(text) => match text.split_once('.') {
            None => (digits(text, 2)?, 0),
            Some((second, fraction)) if (1..=9).contains(&fraction.len()) => {
                let billionths = digits(&format!("{fraction:0<9}"), 9)?;
                (digits(second, 2)?, billionths / 1_000_000)
            }
            Some(_) => return None,
        },
    };
    if hour > 23 || minute > 59 || second > 59 || parts.next().is_some() {
        return None;
    }
    let ahead = match zone {
        "" | "Z" | "z" => 0,
        zone => {
            let (hours, minutes) = zone[1..].split_once(':').unwrap_or((&zone[1..], "00"));
            let minutes = digits(hours, 2)? * 60 + digits(minutes, 2)?;
            if zone.starts_with('-') {
                -minutes
            } else {
                minutes
            }
        }
    };
    let seconds = hour * 3_600 + (minute - ahead) * 60 + second;
    Some(midnight + Millis(seconds * 1_000 + fraction))
}

/// Reads a length of time as a person types it: with its unit, one of [`parse_duration`]'s or `ms`.
///
/// # Errors
/// A sentence that names the text; one that asks back where the unit is missing, because other tools count in days.
pub fn parse_duration_with_unit(text: &str) -> Result<Millis, String> {
    let trimmed = text.trim();
    if let Some(count) = trimmed.strip_suffix("ms") {
        return match parse_duration(count) {
            Ok(length) if count.trim().ends_with(|last: char| last.is_ascii_digit()) => Ok(length),
            _ => Err(format!("'{text}' is not a duration: write 1500ms, or 90d")),
        };
    }
    let length = parse_duration(text)?;
    if trimmed.ends_with(|last: char| last.is_ascii_digit()) {
        return Err(format!(
            "{trimmed} of what? say {trimmed}d for days (s, m, h, d, w and y are units, and ms)"
        ));
    }
    Ok(length)
}

/// Milliseconds since 1970 as a person types them: ten digits are asked back, they are seconds more often; and so are
/// sixteen, which would be the future.
///
/// # Errors
/// A sentence that says what was probably meant.
pub fn check_timestamp(ts: i64) -> Result<Millis, String> {
    match ts {
        // 1973 to 5138 in seconds; in milliseconds, times before Matrix was made.
        100_000_000..=99_999_999_999 => Err(format!(
            "{ts} is {} in milliseconds. Seconds? then say {ts}000",
            Millis(ts).as_date()
        )),
        100_000_000_000_000.. => Err(format!(
            "{ts} is far in the future in milliseconds. Microseconds? then say {}",
            ts / 1_000
        )),
        ts => Ok(Millis(ts)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_is_said_to_its_two_largest_units() {
        for (ms, said) in [
            (-5, "0 ms"),
            (0, "0 ms"),
            (999, "999 ms"),
            (1_000, "1 s"),
            (59_999, "59 s"),
            (60_000, "1 min"),
            (65_000, "1 min 5 s"),
            (7_500_000, "2 h 5 min"),
            (86_400_000, "1 d"),
            (86_459_000, "1 d"),
            (93_600_000, "1 d 2 h"),
        ] {
            assert_eq!(Millis(ms).for_people(), said);
        }
    }

    #[test]
    fn a_clock_that_is_set_forwards_hurries_nothing_and_is_believed_in_the_end() {
        let clock = ManualClock::at(days(1000));
        let mut tolerant = JumpTolerantClock::new(&clock);
        clock.advance(days(3));
        assert_eq!(
            tolerant.now(&clock),
            days(1003),
            "a suspend is time that passed"
        );
        clock.jump(days(1));
        assert_eq!(tolerant.now(&clock), days(1003));
        clock.advance(Millis(5));
        assert_eq!(tolerant.now(&clock), days(1003) + Millis(5));
        clock.jump(days(-1));
        assert_eq!(
            tolerant.now(&clock),
            days(1003) + Millis(5),
            "put right again"
        );
        clock.jump(days(-1));
        assert_eq!(tolerant.now(&clock), days(1002) + Millis(5), "late is safe");
        clock.jump(days(1));
        assert_eq!(tolerant.now(&clock), clock.now());
        clock.jump(days(2));
        for _ in 0..47 {
            clock.advance(Millis(3_600_000));
            assert_eq!(tolerant.now(&clock), clock.now() - days(2));
        }
        clock.advance(Millis(2 * 3_600_000));
        assert_eq!(tolerant.now(&clock), clock.now(), "it stood for two days");
    }

    #[test]
    fn a_time_is_a_date_or_how_long_ago() {
        for (text, date) in [
            ("2026-01-01", "2026-01-01 00:00:00"),
            ("2026-01-01T12:00Z", "2026-01-01 12:00:00"),
            ("2026-01-01 12:00:30", "2026-01-01 12:00:30"),
            ("2026-01-01T12:00:30.999Z", "2026-01-01 12:00:30"),
            ("2026-01-01T00:30+02:00", "2025-12-31 22:30:00"),
            ("2026-01-01T00:30-02", "2026-01-01 02:30:00"),
            ("2000-02-29", "2000-02-29 00:00:00"),
            ("1969-12-31", "1969-12-31 00:00:00"),
            ("0001-01-01", "0001-01-01 00:00:00"),
        ] {
            match parse_when(text) {
                Ok(When::At(moment)) => assert_eq!(moment.as_date(), date, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        assert_eq!(parse_when("90d"), Ok(When::Ago(days(90))));
        for day in -800_000..800_000 {
            let moment = Millis(day * 86_400_000);
            let date = moment.as_date();
            if !date.starts_with('-') && date.len() == 19 {
                assert_eq!(parse_when(&date), Ok(When::At(moment)), "{date}");
            }
        }
        assert!(
            parse_when("90")
                .expect_err("a number")
                .contains("90 of what?")
        );
        for (number, meant) in [
            (
                "1700000000",
                "seconds since 1970 are meant, say 2023-11-14T22:13:20Z",
            ),
            (
                "1700000000000",
                "milliseconds since 1970 are meant, say 2023-11-14T22:13:20Z",
            ),
            (
                "20260101",
                "20260101 of what? Say a date such as 2026-01-01, or how long ago, such as 90d",
            ),
        ] {
            let said = parse_when(number).expect_err("a number");
            assert!(said.contains(meant), "{said}");
        }
        let fraction = parse_when("2026-01-01T00:00:00.0425Z");
        assert_eq!(fraction, Ok(When::At(Millis(1_767_225_600_042))));
        for wrong in [
            "",
            "2026-01-01T12:00:00.",
            "2026-01-01T12:00:00.x",
            "2026-01-01T12:00.5",
            "yesterday",
            "2026-02-30",
            "2026-13-01",
            "2026-1-1",
            "2026-01-01T25:00",
            "2026-01-01T12",
            "2026-01-01x",
            "-1d",
            "1.5d",
            "2026-01-01T12:00+2",
        ] {
            assert!(parse_when(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_told_as_dates() {
        for (seconds, date) in [
            (0, "1970-01-01 00:00:00"),
            (-1, "1969-12-31 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_800, "2000-03-01 00:00:00"),
            (1_735_689_599, "2024-12-31 23:59:59"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(Millis(seconds * 1_000 + 999).as_date(), date);
        }
    }

    #[test]
    fn lengths_are_told_in_units_that_can_be_typed() {
        for text in ["90d", "36h", "90m", "5s", "1500ms", "0s", "-1d"] {
            let length = parse_duration_with_unit(text).expect(text);
            assert_eq!(length.in_words(), text);
        }
    }

    #[test]
    fn a_length_that_is_typed_has_a_unit() {
        for (text, millis) in [
            ("90d", 90 * 86_400_000),
            (" 2 w ", 14 * 86_400_000),
            ("7ms", 7),
        ] {
            assert_eq!(parse_duration_with_unit(text), Ok(Millis(millis)), "{text}");
        }
        for text in ["90", "0", " 365 ", "-1", "+5", "1_000"] {
            let said = parse_duration_with_unit(text).expect_err(text);
            assert!(said.contains("of what? say"), "{said}");
        }
        for text in [
            "", "d", "ms", "5dms", "90 days", "90D", "90 Days", "1.5d", "1d2h",
        ] {
            let said = parse_duration_with_unit(text).expect_err(text);
            assert!(said.contains("is not a duration"), "{said}");
        }
    }

    #[test]
    fn a_time_that_is_typed_in_other_units_is_asked_back() {
        for fine in [-5, 0, 1, 99_999_999, 1_700_000_000_000, 99_999_999_999_999] {
            assert_eq!(check_timestamp(fine), Ok(Millis(fine)));
        }
        for (ts, hint) in [
            (1_700_000_000, "Seconds? then say 1700000000000"),
            (
                1_700_000_000_000_000,
                "Microseconds? then say 1700000000000",
            ),
            (i64::MAX, "Microseconds?"),
        ] {
            let said = check_timestamp(ts).expect_err("asked back");
            assert!(said.contains(hint), "{said}");
        }
    }

    #[test]
    fn durations_are_read_as_synapse_reads_them() {
        for (text, millis) in [
            ("5", 5),
            ("1s", 1_000),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("1d", 86_400_000),
            ("1w", 604_800_000),
            ("1y", 31_536_000_000),
            (" 1_000 ", 1_000),
            ("1 d", 86_400_000),
            ("+2s", 2_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Millis(millis)), "{text}");
        }
        for wrong in [
            "",
            "d",
            "1D",
            "1.5d",
            "1d2h",
            "1 fortnight",
            "99999999999999999999",
            "_1",
            "1__0d",
        ] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
        assert!(parse_duration("9223372036854775807y").is_err());
    }
}
