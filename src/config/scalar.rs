//! What a scalar is to PyYAML (YAML 1.1, K-2): a number, a date, a truth, nothing, or a text.

use std::fmt;
use std::sync::LazyLock;

use regex::Regex;
use saphyr_parser::Tag;

use super::yaml::Kind;

/// A pattern of ours. Every one is compiled by a test.
#[allow(clippy::expect_used)]
pub(super) fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a pattern of ours")
}

/// What a scalar is to PyYAML's safe loader.
pub(super) fn scalar(text: &str, is_plain: bool, tag: Option<&Tag>) -> Result<Kind, String> {
    let Some(tag) = tag else {
        return Ok(if is_plain {
            resolve(text)
        } else {
            Kind::Text(text.to_owned())
        });
    };
    let name = format!("{}{}", tag.handle, tag.suffix);
    let short = name
        .strip_prefix("tag:yaml.org,2002:")
        .or(name.strip_prefix("!!"));
    match short {
        Some("str" | "binary") => Ok(Kind::Text(text.to_owned())),
        Some("null") => Ok(Kind::Null),
        Some("bool" | "int" | "float" | "timestamp") => Ok(resolve(text)),
        None if name == "!" => Ok(Kind::Text(text.to_owned())),
        _ => Err("this tag (!…) means nothing to Synapse".into()),
    }
}

static BOOL: LazyLock<Regex> = LazyLock::new(|| {
    pattern("^(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$")
});
static FLOAT: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
    )
});
static INT: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        "^(?:[-+]?0b[0-1_]+|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+|[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+)$",
    )
});
static NULL: LazyLock<Regex> = LazyLock::new(|| pattern("^(?:~|null|Null|NULL|)$"));
static TIME: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"^([0-9]{4})-([0-9][0-9]?)-([0-9][0-9]?)(?:(?:[Tt]|[ \t]+)([0-9][0-9]?):([0-9]{2}):([0-9]{2})(?:\.([0-9]*))?(?:[ \t]*(Z|([-+])([0-9][0-9]?)(?::([0-9]{2}))?))?)?$",
    )
});

/// What a plain scalar is. Where PyYAML fails (a month 13), it is the text that it is.
fn resolve(text: &str) -> Kind {
    if BOOL.is_match(text) {
        let is_true = ["yes", "true", "on"].contains(&text.to_ascii_lowercase().as_str());
        return Kind::Bool(is_true);
    }
    if FLOAT.is_match(text) {
        if let Some(number) = float(text) {
            return Kind::Float(number);
        }
    } else if INT.is_match(text) {
        if let Some(digits) = integer(text) {
            return Kind::Int(digits);
        }
    } else if NULL.is_match(text) {
        return Kind::Null;
    } else if let Some(time) = time(text) {
        return Kind::Date(time);
    }
    Kind::Text(text.to_owned())
}

fn float(text: &str) -> Option<f64> {
    let text = text.replace('_', "").to_ascii_lowercase();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(&text)),
    };
    let number = match digits {
        ".inf" => f64::INFINITY,
        ".nan" => return Some(f64::NAN),
        digits if digits.contains(':') => {
            let mut sum = 0.0;
            let mut base = 1.0;
            for part in digits.rsplit(':') {
                sum += part.parse::<f64>().ok()? * base;
                base *= 60.0;
            }
            sum
        }
        digits => digits.parse().ok()?,
    };
    Some(sign * number)
}

/// The decimal digits of a whole number, of whatever size.
fn integer(text: &str) -> Option<String> {
    let text = text.replace('_', "");
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(&text)),
    };
    let decimal = if let Some(bits) = digits.strip_prefix("0b") {
        decimal(bits, 2)?
    } else if let Some(digits) = digits.strip_prefix("0x") {
        decimal(digits, 16)?
    } else if digits != "0" && digits.starts_with('0') {
        decimal(digits, 8)?
    } else if digits.contains(':') {
        let mut sum = Decimal::default();
        for part in digits.split(':') {
            sum.times_plus(60, 0);
            let mut of_part = Decimal::default();
            for digit in part.chars() {
                of_part.times_plus(10, digit.to_digit(10)?);
            }
            sum.add(&of_part);
        }
        sum.to_string()
    } else {
        decimal(digits, 10)?
    };
    let sign = if is_negative && decimal != "0" {
        "-"
    } else {
        ""
    };
    Some(format!("{sign}{decimal}"))
}

fn decimal(digits: &str, base: u32) -> Option<String> {
    if digits.is_empty() {
        return None;
    }
    let mut sum = Decimal::default();
    for digit in digits.chars() {
        sum.times_plus(base, digit.to_digit(base)?);
    }
    Some(sum.to_string())
}

/// A whole number in pieces of nine decimal digits, the lowest first.
#[derive(Default)]
struct Decimal(Vec<u32>);

const PIECE: u64 = 1_000_000_000;

impl Decimal {
    fn times_plus(&mut self, factor: u32, more: u32) {
        let mut carry = u64::from(more);
        for piece in &mut self.0 {
            let sum = u64::from(*piece) * u64::from(factor) + carry;
            *piece = (sum % PIECE) as u32;
            carry = sum / PIECE;
        }
        if carry > 0 {
            self.0.push(carry as u32);
        }
    }

    fn add(&mut self, other: &Self) {
        let mut carry = 0;
        for at in 0..self.0.len().max(other.0.len()) {
            if at == self.0.len() {
                self.0.push(0);
            }
            let sum =
                u64::from(self.0[at]) + u64::from(other.0.get(at).copied().unwrap_or(0)) + carry;
            self.0[at] = (sum % PIECE) as u32;
            carry = sum / PIECE;
        }
        if carry > 0 {
            self.0.push(carry as u32);
        }
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((highest, lower)) = self.0.split_last() else {
            return f.write_str("0");
        };
        write!(f, "{highest}")?;
        lower
            .iter()
            .rev()
            .try_for_each(|piece| write!(f, "{piece:09}"))
    }
}

/// A date or a time, as `str()` of Python writes it; `None` where Python has no such day or hour.
fn time(text: &str) -> Option<String> {
    let found = TIME.captures(text)?;
    let part = |at: usize| found.get(at).map(|part| part.as_str());
    let number = |at: usize| part(at).and_then(|digits| digits.parse::<u32>().ok());
    let (year, month, day) = (number(1)?, number(2)?, number(3)?);
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if year == 0 || !(1..=12).contains(&month) || !(1..=days).contains(&day) {
        return None;
    }
    let date = format!("{year:04}-{month:02}-{day:02}");
    let Some(hour) = number(4) else {
        // A day alone has all its digits; else it is a text.
        return (date.len() == text.len()).then_some(date);
    };
    let (minute, second) = (number(5)?, number(6)?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let fraction: String = part(7)
        .unwrap_or_default()
        .chars()
        .chain("000000".chars())
        .take(6)
        .collect();
    let fraction = if fraction == "000000" {
        String::new()
    } else {
        format!(".{fraction}")
    };
    let zone = match (part(8), part(9)) {
        (None, _) => String::new(),
        (Some(_), None) => "+00:00".into(),
        (Some(_), Some(sign)) => {
            let minutes = number(10)? * 60 + number(11).unwrap_or(0);
            if minutes >= 24 * 60 {
                return None;
            }
            let sign = if minutes == 0 { "+" } else { sign };
            format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60)
        }
    };
    Some(format!(
        "{date} {hour:02}:{minute:02}:{second:02}{fraction}{zone}"
    ))
}

/// A number as `str()` of Python writes it: the shortest digits that mean it.
pub(super) fn python_float(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.into();
    }
    let short = format!("{number:e}");
    let Some((mantissa, exponent)) = short.split_once('e') else {
        return short;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{number}");
        return if plain.contains('.') {
            plain
        } else {
            format!("{plain}.0")
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::yaml::{Source, read};
    use super::*;

    #[test]
    fn every_scalar_is_what_pyyaml_makes_of_it() {
        let table = include_str!("../../tests/config/scalars.jsonl");
        let mut wrong = Vec::new();
        let mut seen = 0;
        for line in table.lines() {
            let row: [String; 3] = serde_json::from_str(line).expect("a row");
            let [written, kind, text] = row;
            seen += 1;
            let Ok(list) = read(&format!("- {written}"), &Source::of(Path::new("x.yaml"))) else {
                wrong.push(format!("{written:?} cannot be read"));
                continue;
            };
            let value = &list.as_list().expect("a list")[0];
            let found = match value.kind() {
                Kind::Null => "null",
                Kind::Bool(_) => "bool",
                Kind::Int(_) => "int",
                Kind::Float(_) => "float",
                Kind::Date(_) => "date",
                Kind::Text(_) => "text",
                _ => "more",
            };
            // Synapse does not start with what PyYAML fails at; for us it is the text that it is.
            let (kind, text) = match kind.as_str() {
                "error" => ("text", written.as_str()),
                kind => (kind, text.as_str()),
            };
            let said = value.python_text().unwrap_or("None".into());
            if (found, &*said) != (kind, text) {
                wrong.push(format!(
                    "{written:?}: {found} {said:?}, and not {kind} {text:?}"
                ));
            }
        }
        assert!(seen >= 5000, "{seen}");
        assert!(
            wrong.is_empty(),
            "{} of {seen}: {}",
            wrong.len(),
            wrong[..wrong.len().min(20)].join("\n")
        );
    }
}
