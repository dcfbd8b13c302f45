//! The `retention` block of a `homeserver.yaml`, read as Synapse reads it (R-1 … R-6).
//!
//! What Synapse refuses is refused with Synapse's own sentence, and the key that it concerns. Keys that are not known
//! are ignored with a warning, because this block is not ours. What Synapse takes and nobody can have meant is refused:
//! an `enabled: "false"`, which is true to it, and a key with a slip in it, without which a bound would be none.

use super::misspelt::meant;
use super::values::{duration, mapping, truth, wrong};
use super::yaml::{Map, Value};
use crate::error::Error;
use crate::policy::{LifetimeRange, Policy, PurgeJob, Retention, SHORT_LIFETIME};
use crate::time::Millis;

/// The keys of the block.
const KEYS: &[&str] = &[
    "enabled",
    "default_policy",
    "allowed_lifetime_min",
    "allowed_lifetime_max",
    "purge_jobs",
];

/// The keys of `default_policy`.
const POLICY_KEYS: &[&str] = &["min_lifetime", "max_lifetime"];

/// The keys of each of `purge_jobs`.
const JOB_KEYS: &[&str] = &["interval", "shortest_max_lifetime", "longest_max_lifetime"];

/// What is not known is ignored, as Synapse does, unless a known key was meant: one with a slip in it, or one that
/// belongs elsewhere in the block. Without it a limit would be none, and more would go than somebody wrote down.
fn look_at_keys(block: &str, found: &Map, known: &[&str]) -> Result<(), Error> {
    for (key, value) in found.iter().filter(|(key, _)| !known.contains(key)) {
        let place = value.place();
        if let Some(meant) = meant(key, known) {
            return Err(Error::Config(format!(
                "{place}: {block}.{key} is not a key, and would be ignored: {meant} is one"
            )));
        }
        let all = [
            ("retention", KEYS),
            ("retention.default_policy", POLICY_KEYS),
            ("retention.purge_jobs", JOB_KEYS),
        ];
        let elsewhere = all.iter().find(|(_, keys)| keys.contains(&key));
        if let Some((home, _)) = elsewhere {
            return Err(Error::Config(format!(
                "{place}: {block}.{key} is not a key, and would be ignored: {key} belongs into {home}"
            )));
        }
        value.warn(format!(
            "{block}.{key} is not a key, and is ignored, as Synapse does; the keys are {}",
            known.join(", ")
        ));
    }
    Ok(())
}

/// Reads the block. It is judged whether or not it is enabled.
///
/// # Errors
/// [`Error::Config`] with the key and what would do.
pub(super) fn read(block: Option<&Value>) -> Result<Retention, Error> {
    let keys = match block {
        None => return Ok(Retention::default()),
        Some(value) if value.is_null() => return Ok(Retention::default()),
        Some(value) => mapping("retention", value)?,
    };
    look_at_keys("retention", keys, KEYS)?;
    let read = Retention {
        enabled: truth("retention.enabled", keys.get("enabled"))?,
        default_policy: default_policy(keys)?,
        allowed_lifetime_min: length("retention", keys, "allowed_lifetime_min")?,
        allowed_lifetime_max: length("retention", keys, "allowed_lifetime_max")?,
        ..Retention::default()
    };
    if is_above(read.allowed_lifetime_min, read.allowed_lifetime_max) {
        return Err(refused(
            "retention",
            "Invalid retention policy limits: 'allowed_lifetime_min' can not be greater than 'allowed_lifetime_max'",
        ));
    }
    Ok(Retention {
        purge_jobs: purge_jobs(keys)?,
        ..read
    })
}

fn default_policy(keys: &Map) -> Result<Policy, Error> {
    const KEY: &str = "retention.default_policy";
    let block = match keys.get("default_policy") {
        None => return Ok(Policy::default()),
        Some(value) if value.is_null() => return Ok(Policy::default()),
        Some(value) => mapping(KEY, value)?,
    };
    look_at_keys(KEY, block, POLICY_KEYS)?;
    let policy = Policy {
        min_lifetime: length(KEY, block, "min_lifetime")?,
        max_lifetime: length(KEY, block, "max_lifetime")?,
    };
    if is_above(policy.min_lifetime, policy.max_lifetime) {
        return Err(refused(
            KEY,
            "The default retention policy's 'min_lifetime' can not be greater than its 'max_lifetime'",
        ));
    }
    Ok(policy)
}

/// An absent or empty list stands for one job a day.
fn purge_jobs(keys: &Map) -> Result<Vec<PurgeJob>, Error> {
    let list = match keys.get("purge_jobs") {
        None => &[],
        Some(value) if value.is_null() => &[],
        Some(value) => value
            .as_list()
            .ok_or_else(|| wrong("retention.purge_jobs", value, "a list of jobs"))?,
    };
    if list.is_empty() {
        return Ok(vec![PurgeJob::default()]);
    }
    let jobs = list.iter().enumerate();
    jobs.map(|(at, job)| purge_job(&format!("retention.purge_jobs[{at}]"), job))
        .collect()
}

fn purge_job(key: &str, job: &Value) -> Result<PurgeJob, Error> {
    let block = mapping(key, job)?;
    look_at_keys(key, block, JOB_KEYS)?;
    let Some(interval) = length(key, block, "interval")? else {
        return Err(refused(
            key,
            "A retention policy's purge jobs configuration must have the 'interval' key set.",
        ));
    };
    if interval < LEAST_INTERVAL && interval > Millis(0) && !has_unit(block.get("interval")) {
        let value = block.get("interval").unwrap_or(job);
        let key = format!("{key}.interval");
        return Err(wrong(
            &key,
            value,
            &format!(
                "a duration with its unit: a bare number is milliseconds, and that is {}",
                interval.in_words()
            ),
        ));
    }
    if interval == Millis(0) {
        // Synapse takes it, and spins.
        let key = format!("{key}.interval");
        return Err(wrong(
            &key,
            block.get("interval").unwrap_or(job),
            "more than 0",
        ));
    }
    let range = LifetimeRange {
        shortest: length(key, block, "shortest_max_lifetime")?,
        longest: length(key, block, "longest_max_lifetime")?,
    };
    if is_above(range.shortest, range.longest) {
        return Err(refused(
            key,
            "A retention policy's purge jobs configuration's 'shortest_max_lifetime' value can not be greater than its \
             'longest_max_lifetime' value.",
        ));
    }
    Ok(PurgeJob { interval, range })
}

/// A bare number below this, in milliseconds, was hardly meant.
const LEAST_INTERVAL: Millis = Millis(60_000);

/// Whether a duration was written with its unit.
fn has_unit(value: Option<&Value>) -> bool {
    value.and_then(|value| value.as_str()).is_some_and(|text| {
        text.trim()
            .ends_with(|last: char| last.is_ascii_alphabetic())
    })
}

/// A length of time that is not negative.
fn length(block: &str, keys: &Map, key: &str) -> Result<Option<Millis>, Error> {
    let value = match keys.get(key) {
        None => return Ok(None),
        Some(value) if value.is_null() => return Ok(None),
        Some(value) => value,
    };
    let key = format!("{block}.{key}");
    let length = duration(&key, value)?;
    if length < Millis(0) {
        return Err(wrong(&key, value, "no negative duration"));
    }
    if length == Millis(0) && !key.ends_with("interval") {
        value.warn(format!("{key} is 0, which counts as not set"));
    } else if length < SHORT_LIFETIME && !has_unit(Some(value)) {
        value.warn(format!(
            "{key} is {}: is that meant? A bare number is milliseconds, as in Synapse",
            length.in_words()
        ));
    }
    Ok(Some(length))
}

fn is_above(least: Option<Millis>, most: Option<Millis>) -> bool {
    matches!((least, most), (Some(least), Some(most)) if least > most)
}

fn refused(key: &str, sentence: &str) -> Error {
    Error::Config(format!("{key}: {sentence}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::days;
    use serde_json::{Value as Json, json};

    fn read(block: Json) -> Result<Retention, String> {
        super::read(Some(&Value::from_json(&block))).map_err(|e| e.to_string())
    }

    #[test]
    fn a_block_is_read_as_synapse_reads_it() {
        let retention = read(json!({
            "enabled": true,
            "default_policy": {"min_lifetime": "1d", "max_lifetime": "1y"},
            "allowed_lifetime_min": 86_400_000,
            "allowed_lifetime_max": "1y",
            "purge_jobs": [
                {"longest_max_lifetime": "3d", "interval": "12h"},
                {"shortest_max_lifetime": "3d", "interval": " 1_0 d", "color": "red"},
            ],
            "something": "else",
        }))
        .expect("reads");
        assert!(retention.enabled);
        assert_eq!(retention.default_policy.max_lifetime, Some(days(365)));
        assert_eq!(retention.allowed_lifetime_min, Some(days(1)));
        assert_eq!(retention.purge_jobs.len(), 2);
        assert_eq!(retention.purge_jobs[1].interval, days(10));
        assert_eq!(retention.purge_jobs[0].range.longest, Some(days(3)));
        assert_eq!(retention.purge_jobs[0].range.shortest, None);
    }

    #[test]
    fn what_is_left_out_has_synapses_default() {
        for block in [
            json!(null),
            json!({}),
            json!({"default_policy": null, "purge_jobs": []}),
            json!({"purge_jobs": null, "enabled": 0}),
        ] {
            assert_eq!(read(block.clone()), Ok(Retention::default()), "{block}");
        }
    }

    #[test]
    fn what_synapse_takes_for_true_has_to_say_so() {
        let yes = [
            json!(true),
            json!(1),
            json!("true"),
            json!("Yes"),
            json!(" on "),
        ];
        for enabled in yes {
            let read = read(json!({ "enabled": enabled })).expect("reads");
            assert!(read.enabled, "{enabled}");
        }
        let no = [
            json!(false),
            json!(null),
            json!(0),
            json!(0.0),
            json!(""),
            json!([]),
            json!({}),
        ];
        for enabled in no {
            let read = read(json!({ "enabled": enabled })).expect("reads");
            assert!(!read.enabled, "{enabled}");
        }
        for enabled in [
            json!("false"),
            json!("False"),
            json!("no"),
            json!("off"),
            json!("0"),
            json!("null"),
            json!("none"),
            json!(" "),
            json!("maybe"),
            json!(2),
            json!(-1),
            json!(0.5),
            json!([0]),
            json!([false]),
            json!({"enabled": false}),
        ] {
            let error = read(json!({ "enabled": enabled })).expect_err("refused");
            assert!(
                error.contains("retention.enabled is ")
                    && error.contains("true or false, without quotes"),
                "{enabled}: {error}"
            );
        }
    }

    #[test]
    fn a_key_with_a_slip_in_it_is_refused_and_another_ignored_with_a_warning() {
        for (block, says) in [
            (
                json!({"enabeld": true}),
                "retention.enabeld is not a key, and would be ignored: enabled",
            ),
            (
                json!({"allowed_min_lifetime": "1d"}),
                ": allowed_lifetime_min is one",
            ),
            (json!({"purge_job": []}), ": purge_jobs is one"),
            (
                json!({"max_lifetime": "1d"}),
                ": max_lifetime belongs into retention.default_policy",
            ),
            (
                json!({"default_policy": {"max_lifetme": "1d"}}),
                "retention.default_policy.max_lifetme is not a key",
            ),
            (
                json!({"default_policy": {"enabled": true}}),
                ": enabled belongs into retention",
            ),
            (
                json!({"purge_jobs": [{"interval": "1d", "longest_max_lifetme": "1d"}]}),
                "retention.purge_jobs[0].longest_max_lifetme is not a key, and would be ignored: longest_max_lifetime",
            ),
            (
                json!({"purge_jobs": [{"interval": "1d", "max_lifetime": "1d"}]}),
                "max_lifetime belongs into retention.default_policy",
            ),
        ] {
            let error = read(block.clone()).expect_err("refused");
            assert!(
                error.starts_with("test:1: ") && error.contains(says),
                "{block}: {error}"
            );
        }
        let source = super::super::yaml::Source::of(std::path::Path::new("x.yaml"));
        let text = "color: red\npurge_jobs:\n- interval: 1d\n  longest_max_lifetime: 30\nallowed_lifetime_max: 0\n";
        let block = super::super::yaml::read(text, &source).expect("parses");
        super::read(Some(&block)).expect("reads");
        let warnings: Vec<String> = source.warnings().iter().map(ToString::to_string).collect();
        assert_eq!(
            warnings,
            [
                "x.yaml:1: retention.color is not a key, and is ignored, as Synapse does; the keys are enabled, \
                 default_policy, allowed_lifetime_min, allowed_lifetime_max, purge_jobs",
                "x.yaml:4: retention.purge_jobs[0].longest_max_lifetime is 30ms: is that meant? A bare number is \
                 milliseconds, as in Synapse",
                "x.yaml:5: retention.allowed_lifetime_max is 0, which counts as not set",
            ]
        );
    }

    #[test]
    fn equal_bounds_are_no_contradiction() {
        let same = json!({
            "default_policy": {"min_lifetime": 5, "max_lifetime": 5},
            "allowed_lifetime_min": 5, "allowed_lifetime_max": 5,
            "purge_jobs": [{"interval": "1s", "shortest_max_lifetime": 5, "longest_max_lifetime": 5}],
        });
        assert!(read(same).is_ok());
    }

    #[test]
    fn every_refusal_names_the_key_and_says_what_synapse_says() {
        for (block, says) in [
            (
                json!({"default_policy": {"min_lifetime": "2d", "max_lifetime": "1d"}}),
                "retention.default_policy: The default retention policy's 'min_lifetime' can not be greater than its \
                 'max_lifetime'",
            ),
            (
                json!({"enabled": false, "allowed_lifetime_min": "2d", "allowed_lifetime_max": "1d"}),
                "retention: Invalid retention policy limits: 'allowed_lifetime_min' can not be greater than \
                 'allowed_lifetime_max'",
            ),
            (
                json!({"purge_jobs": [{"interval": "1d"}, {"longest_max_lifetime": "1d"}]}),
                "retention.purge_jobs[1]: A retention policy's purge jobs configuration must have the 'interval' key \
                 set.",
            ),
            (
                json!({"purge_jobs": [{"interval": "1d", "shortest_max_lifetime": 6, "longest_max_lifetime": 5}]}),
                "retention.purge_jobs[0]: A retention policy's purge jobs configuration's 'shortest_max_lifetime' \
                 value can not be greater than its 'longest_max_lifetime' value.",
            ),
        ] {
            assert_eq!(read(block.clone()), Err(says.to_owned()), "{block}");
        }
    }

    #[test]
    fn durations_that_are_none_are_refused_with_their_key() {
        for wrong in [
            json!(true),
            json!(1.5),
            json!(""),
            json!("d"),
            json!("1D"),
            json!("1.5d"),
            json!("1d2h"),
            json!([1]),
            json!(-1),
            json!("-1d"),
        ] {
            for (block, key) in [
                (
                    json!({ "allowed_lifetime_min": wrong }),
                    "retention.allowed_lifetime_min",
                ),
                (
                    json!({"purge_jobs": [{ "interval": wrong }]}),
                    "retention.purge_jobs[0].interval",
                ),
                (
                    json!({"default_policy": { "max_lifetime": wrong }}),
                    "retention.default_policy.max_lifetime",
                ),
            ] {
                let error = read(block.clone()).expect_err("refused");
                assert!(error.contains(&format!(": {key}")), "{block}: {error}");
            }
        }
        for interval in [json!(1), json!("365"), json!(59_999)] {
            let error =
                read(json!({"purge_jobs": [{ "interval": interval }]})).expect_err("refused");
            assert!(error.contains("a duration with its unit"), "{error}");
        }
        for interval in [json!("1s"), json!("59 s"), json!(60_000), json!("86400000")] {
            assert!(
                read(json!({"purge_jobs": [{ "interval": interval }]})).is_ok(),
                "{interval}"
            );
        }
        let spins = read(json!({"purge_jobs": [{"interval": 0}]})).expect_err("refused");
        assert_eq!(
            spins,
            "test:1: retention.purge_jobs[0].interval is 0, and should be more than 0"
        );
        assert!(read(json!([])).is_err() && read(json!({"purge_jobs": {}})).is_err());
    }
}
