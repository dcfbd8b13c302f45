//! Parameters of a query, read as Synapse reads them: the first of a name counts (H-62).

use super::Context;
use super::json::ApiError;

/// The first value of a parameter.
pub fn first<'a>(ctx: &'a Context, name: &str) -> Option<&'a str> {
    let mut query = ctx.query.iter();
    query
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.as_str())
}

/// Every value of a parameter that may be repeated.
pub fn all<'a>(ctx: &'a Context, name: &str) -> Vec<&'a str> {
    let named = ctx.query.iter().filter(|(known, _)| known == name);
    named.map(|(_, value)| value.as_str()).collect()
}

/// 400 `M_INVALID_PARAM`.
pub fn invalid(text: impl Into<String>) -> ApiError {
    ApiError::new(400, "M_INVALID_PARAM", text)
}

/// A number that is not negative, where it is given.
///
/// # Errors
/// 400 for what is none.
pub fn count(ctx: &Context, name: &str) -> Result<Option<i64>, ApiError> {
    match first(ctx, name).map(str::parse::<i64>) {
        None => Ok(None),
        Some(Ok(number)) if number >= 0 => Ok(Some(number)),
        Some(Ok(_)) => Err(invalid(format!(
            "Query parameter {name} must be a positive integer."
        ))),
        Some(Err(_)) => Err(invalid(format!(
            "Query parameter {name} must be an integer"
        ))),
    }
}

/// `true` or `false`, where it is given.
///
/// # Errors
/// 400 for what is neither.
pub fn truth(ctx: &Context, name: &str) -> Result<Option<bool>, ApiError> {
    match first(ctx, name) {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(_) => Err(invalid(format!(
            "Boolean query parameter '{name}' must be one of ['true', 'false']"
        ))),
    }
}

/// Whether `dir` says backwards.
///
/// # Errors
/// 400 for what is no direction.
pub fn is_backwards(ctx: &Context) -> Result<bool, ApiError> {
    match first(ctx, "dir") {
        None | Some("f") => Ok(false),
        Some("b") => Ok(true),
        Some(_) => Err(invalid("Query parameter 'dir' must be one of ['b', 'f']")),
    }
}

/// One of some words, or the first of them where nothing is said.
///
/// # Errors
/// 400 for any other.
pub fn one_of<'a>(ctx: &Context, name: &str, words: &[&'a str]) -> Result<&'a str, ApiError> {
    let said = first(ctx, name).or(words.first().copied());
    let known = words.iter().find(|word| Some(**word) == said);
    known.copied().ok_or_else(|| {
        invalid(format!(
            "Query parameter '{name}' must be one of ['{}']",
            words.join("', '")
        ))
    })
}
