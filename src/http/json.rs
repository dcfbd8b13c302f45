//! Our own JSON shapes: request bodies as they are read, answers as they are written. Nowhere else.

use serde::Serialize;
use serde_json::{Map, Value};

use super::handlers::Response;
use super::server::error_response::ErrorResponse;
use crate::error::{Chain, Error};
use crate::job::MediaFate;
use crate::plan_hash::PlanHash;

/// A request that is answered with an error (H-1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// Matrix error code.
    pub errcode: &'static str,
    /// Which error it is, in a word of ours ([`Error::code`]).
    pub code: &'static str,
    /// The sentence for the client.
    pub error: String,
    /// The member of that name, where the error has one (U-3 … U-5).
    pub soft_logout: Option<bool>,
}

impl ApiError {
    /// A failure without extra members.
    pub fn new(status: u16, errcode: &'static str, error: impl Into<String>) -> Self {
        Self {
            status,
            errcode,
            code: code_of(status, errcode),
            error: error.into(),
            soft_logout: None,
        }
    }

    /// 400 `M_BAD_JSON`: the body is JSON, and not the JSON that was asked for.
    pub fn bad_json(error: impl Into<String>) -> Self {
        Self::new(400, "M_BAD_JSON", error)
    }

    /// 404 `M_NOT_FOUND`.
    pub fn not_found(error: impl Into<String>) -> Self {
        Self::new(404, "M_NOT_FOUND", error)
    }

    /// H-2: no such path, or no such method there.
    pub fn unrecognized(status: u16) -> Self {
        Self::new(status, "M_UNRECOGNIZED", "Unrecognized request")
    }

    /// The JSON answer; our own say our word for it, too (`error_code`), those in Synapse's place what Synapse says.
    pub fn to_response(&self, is_ours: bool) -> Response {
        let mut body = serde_json::json!({"errcode": self.errcode, "error": self.error});
        if is_ours {
            body["error_code"] = self.code.into();
        }
        if self.status == 429 {
            body["retry_after_ms"] = RETRY_AFTER_MS.into();
        }
        if let Some(soft_logout) = self.soft_logout {
            body["soft_logout"] = soft_logout.into();
        }
        let mut response = json(self.status, &body);
        if self.status == 429 {
            let seconds = RETRY_AFTER_MS.div_ceil(1000).to_string();
            response.headers.push(("Retry-After", seconds));
        }
        response
    }
}

/// Our word for what was found wrong before the keeper was asked.
fn code_of(status: u16, errcode: &str) -> &'static str {
    match (status, errcode) {
        (_, "M_UNRECOGNIZED") => "unrecognized",
        (401 | 403, _) => "denied",
        (404, _) => "not_found",
        (400..=499, _) => "bad_request",
        _ => "unavailable",
    }
}

/// When to try again what there was no room for.
const RETRY_AFTER_MS: u32 = 5000;

impl From<Error> for ApiError {
    /// What a client may read of an error. The rest of it goes to the log, here and only here.
    fn from(error: Error) -> Self {
        let class = error.class();
        let (soft_logout, is_ours) = match &error {
            Error::Denied { soft_logout, .. } => (*soft_logout, false),
            Error::Store { .. } | Error::Bug(_) => (None, true),
            _ => (None, false),
        };
        if class.status >= 500 {
            log::error!("http: {}", Chain(&error));
        }
        // What a database says is for the operator's eyes (H-5).
        let text = if is_ours && class.status == 503 {
            "The database cannot be asked now; try again".to_owned()
        } else if is_ours {
            ErrorResponse::INTERNAL.error.to_owned()
        } else {
            error.to_string()
        };
        Self {
            status: class.status,
            errcode: class.errcode,
            code: error.code(),
            error: text,
            soft_logout,
        }
    }
}

/// An answer with a JSON body.
pub fn json(status: u16, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(body) => Response {
            status,
            headers: Vec::new(),
            body,
        },
        Err(error) => {
            log::error!("http: an answer could not be written as JSON: {error}");
            let body = ErrorResponse::INTERNAL.body().into_bytes();
            Response {
                status: ErrorResponse::INTERNAL.status,
                headers: Vec::new(),
                body,
            }
        }
    }
}

/// Whether a request must have a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing stands for `{}`.
    Optional,
    /// Nothing is an error.
    Required,
}

/// Reads a request's body as a JSON object. Its content type is not looked at (H-4).
///
/// # Errors
/// 400 `M_NOT_JSON`, or `M_BAD_JSON` for other JSON than an object.
pub fn object(body: &[u8], need: Body) -> Result<Map<String, Value>, ApiError> {
    if body.is_empty() && need == Body::Optional {
        return Ok(Map::new());
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(ApiError::bad_json("Content must be a JSON object.")),
        Err(_) => Err(ApiError::new(400, "M_NOT_JSON", "Content not JSON.")),
    }
}

/// What becomes of media that only messages refer to which go: `with_media` and `media_not_archived`, both ours. What destroys
/// goes by no guess: a flag is true or false.
pub fn media(body: &Map<String, Value>) -> Result<MediaFate, ApiError> {
    let flag = |name: &str| match body.get(name) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(_) => Err(ApiError::bad_json(format!(
            "Param '{name}' must be a boolean, if given"
        ))),
    };
    let (with_media, not_archived) = (flag("with_media")?, flag("media_not_archived")?);
    MediaFate::of(with_media, not_archived).map_err(ApiError::bad_json)
}

/// A flag that Synapse reads by Python's `bool(value)`; an absent one is false.
///
/// # Errors
/// 400 where it is a text that says no: it would be true, and nobody meant that.
pub fn flag(body: &Map<String, Value>, name: &str) -> Result<bool, ApiError> {
    let value = body.get(name);
    let says_no = value.and_then(Value::as_str).is_some_and(|text| {
        let text = text.trim().to_ascii_lowercase();
        let no = ["", "false", "f", "no", "n", "off", "0", "null", "none"];
        !value.is_some_and(|value| value == "") && no.contains(&&*text)
    });
    match says_no {
        true => Err(ApiError::bad_json(format!(
            "{name} must be a boolean: true or false, without quotes"
        ))),
        false => Ok(truthy(value)),
    }
}

/// Python's `bool(value)`, by which Synapse reads some flags; an absent value is false.
fn truthy(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::Bool(is)) => *is,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
    }
}

/// What a request is bound to, where it says so.
///
/// # Errors
/// 400 where that is no plan's hash: what destroys goes by no guess.
pub fn plan(body: &Map<String, Value>) -> Result<Option<PlanHash>, ApiError> {
    let invalid = |why: String| ApiError::new(400, "M_INVALID_PARAM", why);
    match body.get("plan") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(plan)) => plan.parse().map(Some).map_err(invalid),
        Some(_) => Err(ApiError::bad_json("plan must be a string")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &[u8], need: Body) -> (&'static str, String) {
        let failure = object(body, need).expect_err("refused");
        assert_eq!(failure.status, 400);
        (failure.errcode, failure.error)
    }

    #[test]
    fn a_body_is_an_object_or_the_answer_says_which_rule_it_broke() {
        assert_eq!(object(b"", Body::Optional), Ok(Map::new()));
        assert_eq!(object(b" {} ", Body::Required), Ok(Map::new()));
        assert_eq!(
            object(br#"{"a":1,"a":2}"#, Body::Required).map(|o| o["a"].clone()),
            Ok(2.into())
        );
        let not_json: &[&[u8]] = &[
            b"",
            b" ",
            b"{",
            b"{}x",
            b"{\"a\":NaN}",
            b"Infinity",
            b"{\"a\":\"\xff\"}",
            b"\xef\xbb\xbf{}",
        ];
        for body in not_json {
            assert_eq!(
                refused(body, Body::Required),
                ("M_NOT_JSON", "Content not JSON.".into()),
                "{body:?}"
            );
        }
        let deep = "[".repeat(100_000);
        assert_eq!(refused(deep.as_bytes(), Body::Required).0, "M_NOT_JSON");
        for body in ["[]", "null", "5", "\"{}\"", "true"] {
            let expected = ("M_BAD_JSON", "Content must be a JSON object.".into());
            assert_eq!(refused(body.as_bytes(), Body::Optional), expected, "{body}");
        }
    }

    #[test]
    fn truth_is_pythons() {
        let is = |text: &str| truthy(Some(&serde_json::from_str(text).expect("JSON")));
        for no in ["false", "0", "0.0", "-0", "null", "\"\"", "[]", "{}"] {
            assert!(!is(no), "{no}");
        }
        for yes in ["true", "1", "-1", "0.1", "\"false\"", "[0]", "{\"\":0}"] {
            assert!(is(yes), "{yes}");
        }
        assert!(!truthy(None));
    }

    #[test]
    fn a_text_that_says_no_is_not_taken_for_yes() {
        let read = |text: &str| {
            let body = format!(r#"{{"delete_local_events": {text}}}"#);
            flag(
                &object(body.as_bytes(), Body::Required).expect("an object"),
                "delete_local_events",
            )
        };
        for text in [
            "\"false\"",
            "\"False\"",
            "\" no \"",
            "\"off\"",
            "\"0\"",
            "\" \"",
            "\"null\"",
        ] {
            let failure = read(text).expect_err(text);
            assert_eq!(
                (failure.status, failure.errcode),
                (400, "M_BAD_JSON"),
                "{text}"
            );
            assert!(
                failure
                    .error
                    .starts_with("delete_local_events must be a boolean")
            );
        }
        for (text, is) in [
            ("true", true),
            ("1", true),
            ("\"true\"", true),
            ("\"\"", false),
            ("0", false),
        ] {
            assert_eq!(read(text), Ok(is), "{text}");
        }
        assert_eq!(flag(&Map::new(), "delete_local_events"), Ok(false));
    }

    #[test]
    fn a_database_error_stays_at_home() {
        let source = crate::error::StoreError::Io(std::io::Error::other("secret path"));
        let failure = ApiError::from(Error::Store {
            doing: "purge",
            source,
        });
        let stays = ApiError {
            code: "database",
            ..ApiError::new(500, "M_UNKNOWN", "Internal server error")
        };
        assert_eq!(failure, stays);
    }

    #[test]
    fn a_denial_says_whether_the_session_lives_on() {
        let denied = Error::Denied {
            status: 401,
            errcode: "M_UNKNOWN_TOKEN",
            message: "Access token has expired",
            soft_logout: Some(true),
        };
        let denied = ApiError::from(denied);
        let mut said = serde_json::json!(
            {"errcode": "M_UNKNOWN_TOKEN", "error": "Access token has expired", "soft_logout": true}
        );
        for is_ours in [false, true] {
            let response = denied.to_response(is_ours);
            assert_eq!(response.status, 401);
            let body: Value = serde_json::from_slice(&response.body).expect("JSON");
            assert_eq!(body, said);
            said["error_code"] = "denied".into();
        }
    }
}
