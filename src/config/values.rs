//! From values of a configuration to what a key takes, and what is said where it cannot be.

use super::yaml::{Kind, Map, Value};
use crate::error::Error;
use crate::time::{Millis, parse_duration, parse_duration_with_unit};

/// Whether what stands at a key does not belong on a screen: a key, a password, or an address with one.
fn may_be_secret(key: &str) -> bool {
    [
        "key", "password", "secret", "token", "url", "args", "database",
    ]
    .iter()
    .any(|word| key.contains(word))
}

pub(super) fn wrong(key: &str, value: &Value, wanted: &str) -> Error {
    let place = value.place();
    if may_be_secret(key) && !value.is_null() {
        return Error::Config(format!("{place}: {key} should be {wanted}"));
    }
    Error::Config(format!("{place}: {key} is {value}, and should be {wanted}"))
}

pub(super) fn text(keys: &Map, key: &str) -> Result<Option<String>, Error> {
    match keys.get(key).filter(|value| !value.is_null()) {
        None => Ok(None),
        Some(value) => string(key, value).map(Some),
    }
}

/// A text: what is written, or where PyYAML makes something else of it, that, as Python writes it (K-2).
pub(super) fn string(key: &str, value: &Value) -> Result<String, Error> {
    let text = value
        .python_text()
        .ok_or_else(|| wrong(key, value, "a text"))?;
    if value.is_changed() {
        let becomes = match may_be_secret(key) {
            true => "something else than what is written here".to_owned(),
            false => format!("{text:?}, and not {value}"),
        };
        value.warn(format!(
            "{key} is {becomes}, because Synapse's YAML takes it for no text: put it into quotes"
        ));
    }
    Ok(text.into_owned())
}

pub(super) fn mapping<'a>(key: &str, value: &'a Value) -> Result<&'a Map, Error> {
    value
        .as_map()
        .ok_or_else(|| wrong(key, value, "a block of keys"))
}

pub(super) fn boolean(key: &str, value: &Value) -> Result<bool, Error> {
    value
        .as_bool()
        .ok_or_else(|| wrong(key, value, "true or false"))
}

/// A truth of a block of Synapse's, which takes for true whatever is not nothing: a text that says false, too. What is
/// false to it is false here; what is true to it has to say so, because by this things are deleted.
pub(super) fn truth(key: &str, value: Option<&Value>) -> Result<bool, Error> {
    let Some(value) = value else {
        return Ok(false);
    };
    match value.kind() {
        Kind::Null => Ok(false),
        Kind::Bool(flag) => Ok(*flag),
        Kind::Int(digits) if digits == "0" => Ok(false),
        Kind::Int(digits) if digits == "1" => Ok(true),
        Kind::Float(number) if *number == 0.0 => Ok(false),
        Kind::Text(text) if text.is_empty() => Ok(false),
        Kind::List(list) if list.is_empty() => Ok(false),
        Kind::Map(keys) if keys.is_empty() => Ok(false),
        Kind::Text(text)
            if ["true", "yes", "on", "1"].contains(&&*text.trim().to_ascii_lowercase()) =>
        {
            value.warn(format!(
                "{key} is a text: write true without quotes, because Synapse takes any text for true, \"false\" as well"
            ));
            Ok(true)
        }
        _ => Err(wrong(
            key,
            value,
            "true or false, without quotes (Synapse takes this for true, whatever it says)",
        )),
    }
}

pub(super) fn number(key: &str, value: &Value, least: i64, most: i64) -> Result<i64, Error> {
    value
        .as_i64()
        .filter(|n| (least..=most).contains(n))
        .ok_or_else(|| {
            wrong(
                key,
                value,
                &format!("a whole number from {least} to {most}"),
            )
        })
}

pub(super) fn duration(key: &str, value: &Value) -> Result<Millis, Error> {
    match value.kind() {
        Kind::Text(text) => parse_duration(text)
            .map_err(|e| Error::Config(format!("{}: {key}: {e}", value.place()))),
        Kind::Int(_) if value.as_i64().is_some() => Ok(Millis(value.as_i64().unwrap_or_default())),
        _ => Err(wrong(key, value, "a duration such as 90d")),
    }
}

/// A duration of our own block: a number without a unit is asked back, because days are meant more often. What is
/// a minute or more in milliseconds must have been meant.
pub(super) fn duration_with_unit(key: &str, value: &Value) -> Result<Millis, Error> {
    let length = duration(key, value)?;
    if length < Millis(0) {
        return Err(wrong(key, value, "no negative duration"));
    }
    let text = match value.kind() {
        Kind::Text(text) => text.to_string(),
        _ => length.0.to_string(),
    };
    match parse_duration_with_unit(&text) {
        Err(said) if length < Millis(60_000) => {
            Err(Error::Config(format!("{}: {key}: {said}", value.place())))
        }
        _ => Ok(length),
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::testing::*;
    use super::super::file::{examine, one_error};
    use crate::database::{Database, Server};

    #[test]
    fn a_text_goes_in_as_it_is_written_or_as_python_would_say_it_with_a_warning() {
        for (written, password, is_warned) in [
            ("08", "08", false),
            ("123e45", "123e45", false),
            ("12345678901234567890", "12345678901234567890", false),
            ("hunter2", "hunter2", false),
            ("'010'", "010", false),
            ("010", "8", true),
            ("yes", "True", true),
            ("1:30", "90", true),
            ("1_000", "1000", true),
            ("2026-01-01T1:00:00Z", "2026-01-01 01:00:00+00:00", true),
            ("1.50", "1.5", true),
        ] {
            let text = format!(
                "server_name: example.org\ndatabase: {{name: psycopg2, args: {{host: h, dbname: d, password: {written}}}}}\n"
            );
            let directory = directory(&[("x.yaml", &text)]);
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            let file = directory.path().join("x.yaml");
            std::fs::set_permissions(&file, mode).expect("set");
            let examined = examine(&[file], None);
            let config = examined.config.map_err(one_error).expect(written);
            let Database::Server(Server::Keys(keys)) = config.database else {
                panic!("{written}");
            };
            assert_eq!(keys["password"], password);
            assert_eq!(examined.warnings.len(), usize::from(is_warned), "{written}");
            for warning in examined.warnings {
                // A directory's random name may say anything.
                let said = warning.to_string();
                let said = said.replace(&*directory.path().to_string_lossy(), "");
                assert!(
                    said.contains("x.yaml:2") && said.contains("quotes"),
                    "{said}"
                );
                assert!(
                    !said.contains(written) && !said.contains(password),
                    "{said}"
                );
            }
        }
        let absent = read(
            "server_name: example.org\ndatabase: {name: psycopg2, args: {host: h, password: null}}",
        );
        let Database::Server(Server::Keys(keys)) = absent.expect("reads").database else {
            panic!("a server");
        };
        assert!(!keys.contains_key("password"));
    }
}
