//! Names that were meant to be other names: a key with a slip in it would silently leave out what it says.

/// How many letters have to be put in, taken out, changed or swapped to make one word of another.
pub(super) fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let width = other.len() + 1;
    let mut rows = vec![0; (one.len() + 1) * width];
    for i in 0..=one.len() {
        for j in 0..=other.len() {
            let at = i * width + j;
            rows[at] = if i == 0 || j == 0 {
                i + j
            } else {
                let differs = usize::from(one[i - 1] != other[j - 1]);
                let mut least = (rows[at - width] + 1)
                    .min(rows[at - 1] + 1)
                    .min(rows[at - width - 1] + differs);
                let is_swapped =
                    i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1];
                if is_swapped {
                    least = least.min(rows[at - 2 * width - 2] + 1);
                }
                least
            };
        }
    }
    rows.last().copied().unwrap_or(0)
}

/// The key that was probably meant where this one stands: one letter in six may be wrong, the words may be in another
/// order, and their case and what joins them does not matter. `None` for a known key, and for one that is like none.
pub(super) fn meant<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    if known.contains(&key) {
        return None;
    }
    let words = |key: &str| {
        let lower = key.to_lowercase();
        let words = lower.split(|c: char| !c.is_alphanumeric());
        let mut words: Vec<String> = words.filter(|w| !w.is_empty()).map(str::to_owned).collect();
        let plain = words.concat();
        words.sort_unstable();
        (plain, words)
    };
    let (plain, sorted) = words(key);
    let likeness = |name: &&'a str| {
        let (other, others) = words(name);
        let away = match sorted == others {
            true => 0,
            false => distance(&plain, &other),
        };
        (away, other.len())
    };
    let nearest = known.iter().min_by_key(|name| likeness(name))?;
    let (away, length) = likeness(nearest);
    (away <= length.div_ceil(6)).then_some(*nearest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_seen_and_another_word_is_not() {
        let known = [
            "enabled",
            "default_policy",
            "allowed_lifetime_min",
            "allowed_lifetime_max",
            "purge_jobs",
            "interval",
            "longest_max_lifetime",
        ];
        for (key, means) in [
            ("enabeld", Some("enabled")),
            ("Enabled", Some("enabled")),
            ("enable", Some("enabled")),
            ("default-policy", Some("default_policy")),
            ("defaultPolicy", Some("default_policy")),
            ("allowed_min_lifetime", Some("allowed_lifetime_min")),
            ("allowed_lifetime_maximum", None),
            ("allowed_lifetmie_max", Some("allowed_lifetime_max")),
            ("longest_max_lifetme", Some("longest_max_lifetime")),
            ("purge_job", Some("purge_jobs")),
            ("intervall", Some("interval")),
            ("enabled", None),
            ("color", None),
            ("description", None),
            ("", None),
        ] {
            assert_eq!(meant(key, &known), means, "{key}");
        }
    }
}
