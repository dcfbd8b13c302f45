//! The `retention` block of a `homeserver.yaml`, read as Synapse reads it (R-1 … R-6).
//!
//! What Synapse refuses is refused with Synapse's own sentence, and the key that it concerns. Keys that are not known
//! are ignored, because this block is not ours.

use super::values::{duration, mapping, wrong};
use super::yaml::{Kind, Map, Value};
use crate::error::Error;
use crate::policy::{LifetimeRange, Policy, PurgeJob, Retention, SHORT_LIFETIME};
use crate::time::Millis;

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
    let read = Retention {
        enabled: keys.get("enabled").is_some_and(is_truthy),
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
    for (key, value) in [
        (
            "default_policy.max_lifetime",
            read.default_policy.max_lifetime,
        ),
        ("allowed_lifetime_min", read.allowed_lifetime_min),
        ("allowed_lifetime_max", read.allowed_lifetime_max),
    ] {
        match value {
            Some(Millis(0)) => log::warn!(
                "retention.{key} is 0, which counts as not set when a lifetime is chosen"
            ),
            Some(length) if length < SHORT_LIFETIME => log::warn!(
                "retention.{key} is {}: is that meant? A bare number is milliseconds",
                length.in_words()
            ),
            _ => {}
        }
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
    Ok(Some(length))
}

fn is_above(least: Option<Millis>, most: Option<Millis>) -> bool {
    matches!((least, most), (Some(least), Some(most)) if least > most)
}

/// What Synapse takes for true: anything but nothing.
fn is_truthy(value: &Value) -> bool {
    match value.kind() {
        Kind::Null => false,
        Kind::Bool(flag) => *flag,
        Kind::Int(digits) => digits != "0",
        Kind::Float(number) => *number != 0.0,
        Kind::Date(_) => true,
        Kind::Text(text) => !text.is_empty(),
        Kind::List(list) => !list.is_empty(),
        Kind::Map(keys) => !keys.is_empty(),
    }
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
        for truthy in [json!("no"), json!(1), json!([0])] {
            assert!(read(json!({ "enabled": truthy })).expect("reads").enabled);
        }
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
