//! `GET /_synapse/admin/v1/rooms/{room_id}/messages` and `GET /_matrix/client/{…}/rooms/{room_id}/messages`.
//!
//! Source: the client-server API, "GET /rooms/{roomId}/messages"; Synapse, `docs/admin_api/rooms.md`; behaviour.md
//! section 7, H-60 to H-62.

use percent_encoding::percent_decode_str;

use super::handlers::Response;
use super::json::ApiError;
use super::{Api, Context};
use crate::ids::RoomId;
use crate::messages::{
    BadFilter, DEFAULT_LIMIT, Filter, Format, MAX_LIMIT, PageRequest, Reader, Session,
};
use crate::point::{Direction, StreamToken};

/// A page as an admin sees it: everything but what was rejected. The room's id is not judged (H-60).
pub fn admin(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let requester = api.admin_session(ctx)?;
    answer(api, ctx, &Reader::NamedAdmin(requester))
}

/// A page as a user sees it.
pub fn client(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    let session: Session = api.user(ctx)?;
    answer(api, ctx, &Reader::User(session))
}

fn answer(api: &Api, ctx: &Context, reader: &Reader) -> Result<Response, ApiError> {
    let knows = api.keeper.config().relation_type_filters;
    let request = request(&ctx.query, knows)?;
    let room = RoomId::from(ctx.parameter(0));
    let limit = &ctx.request.limit;
    let page = api.keeper.messages_within(&room, reader, &request, limit)?;
    Ok(Response {
        status: 200,
        headers: Vec::new(),
        body: page.to_json().into_bytes(),
    })
}

/// The first parameter of that name (H-62).
fn parameter<'a>(query: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = query.iter().find(|(known, _)| known == name);
    found.map(|(_, value)| value.as_str())
}

/// Reads the parameters (M-5 … M-9).
fn request(
    query: &[(String, String)],
    knows_relation_types: bool,
) -> Result<PageRequest, ApiError> {
    let direction = match parameter(query, "dir") {
        None | Some("f") => Direction::Forwards,
        Some("b") => Direction::Backwards,
        Some(_) => {
            let text = "Query parameter 'dir' must be one of ['b', 'f']";
            return Err(ApiError::new(400, "M_INVALID_PARAM", text));
        }
    };
    let from = parameter(query, "from").filter(|from| *from != "END");
    let from = token("from", from)?;
    let to = token("to", parameter(query, "to"))?;
    let limit = limit(parameter(query, "limit"))?;
    let filter = filter(query, knows_relation_types)?;
    let is_federation = parameter(query, "raw").is_some()
        || filter.as_ref().is_some_and(Filter::is_federation_format);
    Ok(PageRequest {
        direction,
        from,
        to,
        limit,
        filter,
        format: if is_federation {
            Format::Federation
        } else {
            Format::Client
        },
    })
}

/// Reads the filter, where there is one.
pub(super) fn filter(
    query: &[(String, String)],
    knows_relation_types: bool,
) -> Result<Option<Filter>, ApiError> {
    let Some(text) = parameter(query, "filter") else {
        return Ok(None);
    };
    // Decoded once more, as clients encode it twice.
    let text = percent_decode_str(text).decode_utf8_lossy();
    Ok(Filter::parse(&text, knows_relation_types)?)
}

impl From<BadFilter> for ApiError {
    fn from(bad: BadFilter) -> Self {
        Self::new(400, bad.errcode, bad.message)
    }
}

fn token(name: &str, text: Option<&str>) -> Result<Option<StreamToken>, ApiError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let wrong = |_| ApiError::new(400, "M_UNKNOWN", format!("'{name}' parameter is invalid"));
    text.parse().map(Some).map_err(wrong)
}

fn limit(text: Option<&str>) -> Result<u32, ApiError> {
    let Some(text) = text else {
        return Ok(DEFAULT_LIMIT);
    };
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        let text = "Query parameter limit must be an integer";
        return Err(ApiError::new(400, "M_INVALID_PARAM", text));
    }
    let is_zero = digits.bytes().all(|b| b == b'0');
    if text.starts_with('-') && !is_zero {
        let text = "Query parameter limit must be a positive integer.";
        return Err(ApiError::new(400, "M_INVALID_PARAM", text));
    }
    Ok(digits.parse().unwrap_or(MAX_LIMIT).min(MAX_LIMIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<PageRequest, (u16, &'static str, String)> {
        let query: Vec<_> = form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect();
        request(&query, false).map_err(|failure| (failure.status, failure.errcode, failure.error))
    }

    #[test]
    fn what_is_not_said_is_as_synapse_has_it() {
        assert_eq!(read(""), Ok(PageRequest::forwards(10)));
        assert_eq!(read("from=&to=&from=s5"), Ok(PageRequest::forwards(10)));
        assert_eq!(
            read("from=END&dir=b&limit=5000"),
            Ok(PageRequest::backwards(1000))
        );
        let token: StreamToken = "t5--3_0_1".parse().expect("a token");
        assert_eq!(
            read("from=t5--3_0_1&dir=b&limit=0"),
            Ok(PageRequest::backwards(0).from(token))
        );
        for raw in ["raw=", "raw=1", "raw"] {
            assert_eq!(
                read(raw).map(|request| request.format),
                Ok(Format::Federation)
            );
        }
        let twice = "filter=%257B%2522event_format%2522%253A%2522federation%2522%257D";
        assert_eq!(
            read(twice).map(|request| request.format),
            Ok(Format::Federation)
        );
        assert_eq!(read("filter={}").map(|request| request.filter), Ok(None));
    }

    #[test]
    fn what_cannot_be_meant_is_said_in_synapses_words() {
        for (query, errcode, text) in [
            (
                "dir=x",
                "M_INVALID_PARAM",
                "Query parameter 'dir' must be one of ['b', 'f']",
            ),
            (
                "dir=",
                "M_INVALID_PARAM",
                "Query parameter 'dir' must be one of ['b', 'f']",
            ),
            ("from=x", "M_UNKNOWN", "'from' parameter is invalid"),
            ("to=END", "M_UNKNOWN", "'to' parameter is invalid"),
            (
                "limit=-1",
                "M_INVALID_PARAM",
                "Query parameter limit must be a positive integer.",
            ),
            (
                "limit=x",
                "M_INVALID_PARAM",
                "Query parameter limit must be an integer",
            ),
            (
                "limit=",
                "M_INVALID_PARAM",
                "Query parameter limit must be an integer",
            ),
            (
                "limit=1.0",
                "M_INVALID_PARAM",
                "Query parameter limit must be an integer",
            ),
            (
                "filter=x",
                "M_NOT_JSON",
                "Query parameter filter must be a valid JSON object",
            ),
            ("filter=5", "M_BAD_JSON", "The filter must be a JSON object"),
        ] {
            assert_eq!(read(query), Err((400, errcode, text.to_owned())), "{query}");
        }
    }
}
