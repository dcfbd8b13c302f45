//! What the server answers by itself.

use super::handler_request::to_bytes;
use crate::http::handlers::Response;

/// Why the server does not hand a request on. Every one ends its connection, because what follows a request that
/// was not understood is not known to be a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorResponse {
    /// HTTP status.
    pub status: u16,
    /// Matrix error code.
    pub errcode: &'static str,
    /// Our word for it, for programs.
    pub code: &'static str,
    /// The sentence for the client.
    pub error: &'static str,
    /// After how many milliseconds the client may try again, where that helps.
    pub retry_after_ms: Option<u32>,
}

/// What browsers need to hear before a page of another origin may use an answer, whatever it says (H-9, H-63). Tokens come in a
/// header and never by cookie, so there is nothing to take advantage of.
pub const CROSS_ORIGIN: [(&str, &str); 3] = [
    ("Access-Control-Allow-Origin", "*"),
    (
        "Access-Control-Allow-Methods",
        "GET, HEAD, POST, PUT, DELETE, OPTIONS",
    ),
    (
        "Access-Control-Allow-Headers",
        "X-Requested-With, Content-Type, Authorization, Date",
    ),
];

impl ErrorResponse {
    const fn new(status: u16, errcode: &'static str, error: &'static str) -> Self {
        let code = match status {
            408 => "timeout",
            413 | 414 | 431 => "too_large",
            417 | 501 | 505 => "not_supported",
            429 => "too_many_requests",
            500 => "bug",
            503 => "unavailable",
            _ => "bad_request",
        };
        Self {
            status,
            errcode,
            code,
            error,
            retry_after_ms: None,
        }
    }

    /// A request that HTTP does not allow: 400.
    pub const fn malformed(error: &'static str) -> Self {
        Self::new(400, "M_UNKNOWN", error)
    }

    /// The client took too long over its head or its body.
    pub const TIMEOUT: Self = Self::new(408, "M_UNKNOWN", "The request took too long to arrive");
    /// A body over [`MAX_BODY`](super::limits::MAX_BODY).
    pub const BODY_TOO_LARGE: Self =
        Self::new(413, "M_TOO_LARGE", "The request body is larger than 1 MiB");
    /// A request line alone over [`MAX_HEAD`](super::limits::MAX_HEAD).
    pub const TARGET_TOO_LONG: Self =
        Self::new(414, "M_TOO_LARGE", "The request line is longer than 16 KiB");
    /// An `Expect` other than `100-continue`.
    pub const EXPECTATION: Self =
        Self::new(417, "M_UNKNOWN", "Only 'Expect: 100-continue' can be met");
    /// A head over [`MAX_HEAD`](super::limits::MAX_HEAD) bytes or [`MAX_HEADERS`](super::limits::MAX_HEADERS) lines.
    pub const HEAD_TOO_LARGE: Self =
        Self::new(431, "M_TOO_LARGE", "The request head is larger than 16 KiB");
    /// Something broke on our side (H-5).
    pub const INTERNAL: Self = Self::new(500, "M_UNKNOWN", "Internal server error");
    /// A transfer coding that is not known.
    pub const CODING: Self = Self::new(501, "M_UNKNOWN", "This transfer coding is not known here");
    /// `CONNECT`: we are no proxy.
    pub const NO_PROXY: Self = Self::new(501, "M_UNRECOGNIZED", "This server is not a proxy");
    /// No place, or it was waited for in vain; worth trying again.
    pub const BUSY: Self = Self {
        retry_after_ms: Some(1000),
        ..Self::new(
            429,
            "M_LIMIT_EXCEEDED",
            "Too many requests at a time; try again",
        )
    };
    /// No handler can be reached.
    pub const NO_HANDLER: Self =
        Self::new(503, "M_UNKNOWN", "The server cannot answer now; try again");
    /// The daemon is stopping.
    pub const STOPPING: Self = Self {
        code: "stopping",
        ..Self::new(503, "M_UNKNOWN", "The server is stopping")
    };
    /// Another version of HTTP.
    pub const VERSION: Self = Self::new(
        505,
        "M_UNKNOWN",
        "Only HTTP/1.0 and HTTP/1.1 are spoken here",
    );

    /// The JSON body. It has our word for it whatever was asked for: that may not be known yet, and is nothing of Synapse's.
    pub fn body(&self) -> String {
        // The sentences are ours: no quote, no backslash, no control byte (tested), so nothing needs escaping.
        let retry = self.retry_after_ms;
        let retry = retry.map(|after| format!(r#","retry_after_ms":{after}"#));
        format!(
            r#"{{"errcode":"{}","error":"{}","error_code":"{}"{}}}"#,
            self.errcode,
            self.error,
            self.code,
            retry.unwrap_or_default()
        )
    }

    /// The answer, as a handler would give it.
    pub fn to_response(self) -> Response {
        let retry = self.retry_after_ms;
        let seconds = retry.map(|after| ("Retry-After", after.div_ceil(1000).to_string()));
        Response {
            status: self.status,
            headers: seconds.into_iter().collect(),
            body: self.body().into_bytes(),
        }
    }

    /// The whole answer, in bytes ready to be sent; it announces that the connection ends.
    pub fn to_bytes(self) -> Vec<u8> {
        to_bytes(self.to_response(), true, false)
    }
}

/// The reason phrase of a status, as `tiny_http` words it.
pub fn reason(status: u16) -> &'static str {
    tiny_http::StatusCode(status).default_reason_phrase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_is_json_with_an_errcode_and_a_sentence() {
        let all = [
            ErrorResponse::malformed("Two Host headers"),
            ErrorResponse::TIMEOUT,
            ErrorResponse::NO_HANDLER,
            ErrorResponse::BODY_TOO_LARGE,
            ErrorResponse::TARGET_TOO_LONG,
            ErrorResponse::EXPECTATION,
            ErrorResponse::HEAD_TOO_LARGE,
            ErrorResponse::INTERNAL,
            ErrorResponse::CODING,
            ErrorResponse::NO_PROXY,
            ErrorResponse::BUSY,
            ErrorResponse::STOPPING,
            ErrorResponse::VERSION,
        ];
        for error_response in all {
            let body: serde_json::Value =
                serde_json::from_str(&error_response.body()).expect("JSON");
            assert_eq!(body["errcode"], error_response.errcode);
            assert_eq!(body["error"], error_response.error);
            assert_eq!(body["error_code"], error_response.code);
            assert!(!error_response.code.is_empty());
            let retry = error_response.retry_after_ms;
            assert_eq!(body["retry_after_ms"].as_u64(), retry.map(u64::from));
            let members = 3 + usize::from(retry.is_some());
            assert_eq!(body.as_object().map(serde_json::Map::len), Some(members));
            let text = String::from_utf8(error_response.to_bytes()).expect("text");
            assert_eq!(text.contains("\r\nRetry-After: 1\r\n"), retry.is_some());
            assert!(text.contains("\r\nAccess-Control-Allow-Origin: *\r\n"));
            assert!(
                error_response
                    .to_bytes()
                    .ends_with(error_response.body().as_bytes())
            );
        }
    }
}
