//! When jobs run: a week of it in a moment, and clocks that are set wrong.

use roomkeeper::jobs::ledger::{JobRecord, State};
use roomkeeper::policy::{LifetimeRange, PurgeJob};
use roomkeeper::{Config, Keeper, Millis, days};

use crate::town::{NOW, SPAN, Town};

const HOUR: Millis = Millis(3_600_000);

/// A daily job for short lives, and one every three days for long ones.
fn with_jobs(town: &Town) -> Config {
    let mut config = town.config();
    config.retention.enabled = true;
    config.retention_jobs = true;
    config.retention.default_policy.max_lifetime = Some(days(60));
    let job = |interval, shortest, longest| PurgeJob {
        interval,
        range: LifetimeRange { shortest, longest },
    };
    config.retention.purge_jobs = vec![
        job(days(1), None, Some(days(3))),
        job(days(3), Some(days(3)), None),
    ];
    config
}

fn runs(keeper: &Keeper) -> Vec<JobRecord> {
    let mut runs = keeper.jobs().expect("listed");
    runs.retain(|job| job.kind == "retention");
    runs
}

#[test]
fn a_week_passes_in_a_moment_and_every_job_runs_when_it_should() {
    let town = Town::new(8, 40);
    let config = with_jobs(&town);
    let start = config.clock.now();
    let keeper = Keeper::open(config).expect("opens");
    assert!(
        keeper.tick_retention().expect("looked").is_empty(),
        "not at start (R-26)"
    );
    for _ in 0..7 * 24 {
        town.clock.advance(HOUR);
        keeper.tick_retention().expect("looked");
    }
    let hours = |subject: &str| -> Vec<i64> {
        let runs = runs(&keeper).into_iter();
        let of = runs.filter(|run| run.subject.to_string().contains(subject));
        of.map(|run| (run.created_ms - start).0 / HOUR.0).collect()
    };
    assert_eq!(hours("max_lifetime <= 3d"), [24, 48, 72, 96, 120, 144, 168]);
    assert_eq!(hours("3d < max_lifetime"), [72, 144]);
    assert!(runs(&keeper).iter().all(|run| run.state == State::Complete));
    // Whoever starts anew counts on from the last run, not from the start.
    keeper.stop();
    town.clock.advance(Millis(23 * HOUR.0));
    let keeper = Keeper::open(with_jobs(&town)).expect("opens again");
    assert!(keeper.tick_retention().expect("looked").is_empty());
    town.clock.advance(HOUR);
    assert_eq!(keeper.tick_retention().expect("looked").len(), 1);
    keeper.stop();
    town.assert_sound();
}

#[test]
fn a_clock_that_is_set_wrong_neither_hurries_a_purge_nor_repeats_nor_forgets_a_run() {
    let town = Town::new(8, 40);
    let keeper = Keeper::open(with_jobs(&town)).expect("opens");
    let ticked = || keeper.tick_retention().expect("looked").len();
    let events = || town.ask("SELECT count(*) FROM events");
    town.clock.advance(days(1));
    assert_eq!(ticked(), 1);
    let left = events();
    // A day forwards: nothing is due, and when it is, it is judged by the time that really passed.
    town.clock.jump(days(1));
    assert_eq!(ticked(), 0);
    town.clock.advance(Millis(23 * HOUR.0));
    assert_eq!(ticked(), 0);
    assert_eq!(events(), left);
    town.clock.jump(days(-1));
    assert_eq!(ticked(), 0);
    town.clock.advance(HOUR);
    assert_eq!(ticked(), 1);
    // A day back: it does not run again, and runs when its day is over.
    town.clock.jump(days(-1));
    for _ in 0..23 {
        town.clock.advance(HOUR);
        assert_eq!(ticked(), 0);
    }
    town.clock.advance(HOUR);
    assert_eq!(ticked(), 2, "the daily one, and on the third day the other");
    // Asleep for four days: once each.
    town.clock.advance(days(4));
    assert_eq!(ticked(), 2);
    assert_eq!(ticked(), 0);
    keeper.stop();
    // Started while the clock is a year slow: it waits no longer than its interval.
    town.clock.jump(days(-365));
    let keeper = Keeper::open(with_jobs(&town)).expect("opens");
    town.clock.advance(days(1));
    assert_eq!(keeper.tick_retention().expect("looked").len(), 1);
    keeper.stop();
}

#[test]
fn while_the_clock_is_ahead_a_run_takes_what_has_really_expired_and_no_more() {
    let (right, ahead) = (Town::new(8, 60), Town::new(8, 60));
    for (town, is_ahead) in [(&right, false), (&ahead, true)] {
        let keeper = Keeper::open(with_jobs(town)).expect("opens");
        town.clock.advance(days(3) - HOUR);
        keeper.tick_retention().expect("looked");
        if is_ahead {
            town.clock.jump(days(30));
        }
        town.clock.advance(HOUR);
        assert_eq!(keeper.tick_retention().expect("looked").len(), 2);
        keeper.stop();
    }
    let left = "SELECT count(*) FROM events";
    assert_eq!(right.ask(left), ahead.ask(left));
}

/// a run by a clock that is ahead and that nobody keeps right is refused; any other takes what has expired by it
/// and nothing else.
#[test]
fn thirty_settings_of_the_clock_delete_what_has_expired_by_them_or_nothing() {
    let settings = [
        days(-4_000),
        days(-400),
        days(-30),
        days(-8),
        days(-1),
        Millis(-1),
        Millis(0),
        days(1),
        days(6),
        days(7),
        days(7) + Millis(1),
        days(8),
        days(30),
        days(200),
        days(4_000),
    ];
    let mut refused = 0;
    for ahead in settings {
        for is_kept_right in [true, false] {
            let about = format!("{} ms ahead, kept right: {is_kept_right}", ahead.0);
            let town = Town::new(8, 20);
            if !is_kept_right {
                town.clock.set_adrift();
            }
            let newest = Millis(town.ask("SELECT max(received_ts) FROM events"));
            let now = newest + ahead;
            town.clock.jump(now - NOW);
            let young = format!(
                "SELECT count(*) FROM events WHERE received_ts >= {}",
                (now - days(60)).0
            );
            let mut config = with_jobs(&town);
            config.retention.default_policy.max_lifetime = Some(days(60));
            // Rooms say nothing of their own: one lifetime for all.
            town.site.run("DELETE FROM room_retention");
            town.site
                .run("UPDATE events SET type = 'm.room.name' WHERE type = 'm.room.retention'");
            town.site.run(
                "UPDATE state_events SET type = 'm.room.name' WHERE type = 'm.room.retention'",
            );
            town.site.run(
                "UPDATE current_state_events SET type = 'm.room.name' WHERE type = 'm.room.retention'",
            );
            let count = || town.ask("SELECT count(*) FROM events");
            let (before, young_before) = (count(), town.ask(&young));
            let keeper = Keeper::open(config).expect("opens");
            let is_ahead = ahead > days(7);
            match keeper.purge_history_for_rooms_in_range(None, None) {
                Err(e) => {
                    assert!(is_ahead && !is_kept_right, "{about}: {e}");
                    assert!(e.to_string().contains("--trust-clock"), "{about}: {e}");
                    assert_eq!(count(), before, "{about}");
                    refused += 1;
                }
                Ok(id) => {
                    assert!(!is_ahead || is_kept_right, "{about}");
                    keeper.wait(&id).expect("done");
                    assert_eq!(town.ask(&young), young_before, "{about}: not expired");
                    if ahead >= days(-1) {
                        assert!(count() < before, "{about}: something has expired");
                    }
                    // By a clock that is further behind than the events reach, nothing has.
                    if ahead < days(60) - SPAN {
                        assert_eq!(count(), before, "{about}: nothing has expired");
                    }
                }
            }
            keeper.stop();
            town.assert_sound();
        }
    }
    assert_eq!(refused, 5);
}

#[test]
fn nothing_runs_by_itself_unless_it_is_enabled() {
    let town = Town::new(8, 40);
    let mut config = with_jobs(&town);
    config.retention.enabled = false;
    let keeper = Keeper::open(config).expect("opens");
    town.clock.advance(days(30));
    assert!(keeper.tick_retention().expect("looked").is_empty());
    // Whoever asks for it means it.
    let id = keeper
        .purge_history_for_rooms_in_range(None, Some(days(3)))
        .expect("begun");
    let done = keeper.wait(&id).expect("done");
    assert_eq!(done.progress["rooms_purged"], 2);
    keeper.stop();
}

also_on_postgres! {
    a_week_passes_in_a_moment_and_every_job_runs_when_it_should,
    a_clock_that_is_set_wrong_neither_hurries_a_purge_nor_repeats_nor_forgets_a_run,
    while_the_clock_is_ahead_a_run_takes_what_has_really_expired_and_no_more,
    nothing_runs_by_itself_unless_it_is_enabled,
}
