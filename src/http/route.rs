//! Which endpoint a request is for. Pure.
//!
//! A path is split at `/` first and its parameters are percent-decoded after that (H-3), so a parameter never
//! ends at a slash that was written as `%2F`.

use percent_encoding::percent_decode_str;

use super::{
    Api, Context, archives, block, context, delete_room, health, hierarchy, holds, jobs, listings,
    lookups, media, messages, metrics, page, plan, purge_history, receipts, room_report, room_sets,
    rooms, state, users,
};
use crate::http::handlers::Response;
use crate::http::json::ApiError;
use crate::http::server::request_class::RequestClass;

/// Answers a request; its [`Context`] has the parameters in the order of the path.
pub type Endpoint = fn(&Api, &Context) -> Result<Response, ApiError>;

/// Every endpoint, with its method and its path. `{…}` stands for one parameter, which may be empty.
const ROUTES: &[(&str, &str, Endpoint)] = &[
    (
        "POST",
        "/_synapse/admin/v1/purge_history/{room_id}",
        purge_history::start,
    ),
    (
        "POST",
        "/_synapse/admin/v1/purge_history/{room_id}/{event_id}",
        purge_history::start,
    ),
    (
        "GET",
        "/_synapse/admin/v1/purge_history_status/{purge_id}",
        purge_history::status,
    ),
    (
        "GET",
        "/_synapse/admin/v1/rooms/{room_id}/messages",
        messages::admin,
    ),
    (
        "GET",
        "/_matrix/client/api/v1/rooms/{room_id}/messages",
        messages::client,
    ),
    (
        "GET",
        "/_matrix/client/r0/rooms/{room_id}/messages",
        messages::client,
    ),
    (
        "GET",
        "/_matrix/client/v3/rooms/{room_id}/messages",
        messages::client,
    ),
    (
        "GET",
        "/_matrix/client/unstable/rooms/{room_id}/messages",
        messages::client,
    ),
    (
        "DELETE",
        "/_synapse/admin/v1/rooms/{room_id}",
        delete_room::now,
    ),
    (
        "DELETE",
        "/_synapse/admin/v2/rooms/{room_id}",
        delete_room::start,
    ),
    (
        "GET",
        "/_synapse/admin/v2/rooms/{room_id}/delete_status",
        delete_room::of_room,
    ),
    (
        "GET",
        "/_synapse/admin/v2/rooms/delete_status/{delete_id}",
        delete_room::status,
    ),
    (
        "GET",
        "/_synapse/admin/v1/rooms/{room_id}/block",
        block::get,
    ),
    (
        "PUT",
        "/_synapse/admin/v1/rooms/{room_id}/block",
        block::put,
    ),
    ("GET", "/_synapse/admin/v1/rooms", rooms::list),
    ("GET", "/_synapse/admin/v1/rooms/{room_id}", rooms::get),
    (
        "GET",
        "/_synapse/admin/v1/rooms/{room_id}/members",
        rooms::members,
    ),
    ("GET", "/_synapse/admin/v1/server_version", rooms::version),
    ("GET", "/_matrix/client/versions", lookups::versions),
    ("GET", "/_matrix/client/r0/login", lookups::login_flows),
    ("GET", "/_matrix/client/v3/login", lookups::login_flows),
    ("POST", "/_matrix/client/r0/login", lookups::login),
    ("POST", "/_matrix/client/v3/login", lookups::login),
    ("GET", "/_matrix/client/r0/account/whoami", lookups::whoami),
    ("GET", "/_matrix/client/v3/account/whoami", lookups::whoami),
    (
        "GET",
        "/_matrix/client/r0/profile/{user_id}",
        lookups::profile,
    ),
    (
        "GET",
        "/_matrix/client/v3/profile/{user_id}",
        lookups::profile,
    ),
    (
        "GET",
        "/_synapse/admin/v2/users/{user_id}",
        lookups::account,
    ),
    (
        "GET",
        "/_synapse/admin/v1/users/{user_id}/admin",
        lookups::is_admin,
    ),
    (
        "GET",
        "/_synapse/admin/v1/rooms/{room_id}/state",
        lookups::state,
    ),
    (
        "GET",
        "/_synapse/admin/v1/rooms/{room_id}/forward_extremities",
        lookups::forward_extremities,
    ),
    (
        "DELETE",
        "/_synapse/admin/v1/rooms/{room_id}/forward_extremities",
        lookups::drop_forward_extremities,
    ),
    (
        "GET",
        "/_synapse/admin/v1/rooms/{room_id}/context/{event_id}",
        context::get,
    ),
    (
        "GET",
        "/_synapse/admin/v1/rooms/{room_id}/hierarchy",
        hierarchy::get,
    ),
    (
        "GET",
        "/_synapse/admin/v1/room/{room_id}/media",
        listings::media,
    ),
    ("GET", "/_synapse/admin/v1/scheduled_tasks", listings::tasks),
    (
        "GET",
        "/_synapse/admin/v1/statistics/database/rooms",
        listings::largest_rooms,
    ),
    ("GET", "/_synapse/admin/v2/users", users::list_v2),
    ("GET", "/_synapse/admin/v3/users", users::list_v3),
    (
        "GET",
        "/_synapse/admin/v1/rooms/{room_id}/timestamp_to_event",
        lookups::timestamp_to_event,
    ),
    (
        "GET",
        "/_synapse/admin/v1/fetch_event/{event_id}",
        lookups::fetch_event,
    ),
    (
        "POST",
        "/_synapse/admin/v1/rooms/{room_id}/make_room_admin",
        lookups::make_room_admin,
    ),
    ("GET", "/_matrix/key/v2/server", rooms::server_name),
    ("POST", "/_roomkeeper/v1/plan", plan::plan),
    ("POST", "/_roomkeeper/v1/retention", plan::run),
    ("GET", "/_roomkeeper/v1/rooms", room_report::list),
    ("POST", "/_roomkeeper/v1/sets", room_sets::start),
    ("POST", "/_roomkeeper/v1/state/sweep", state::sweep),
    ("POST", "/_roomkeeper/v1/state/compress", state::compress),
    ("POST", "/_roomkeeper/v1/repair", state::repair),
    ("POST", "/_roomkeeper/v1/media", media::remove),
    ("GET", "/_roomkeeper/v1/jobs", jobs::list),
    ("GET", "/_roomkeeper/v1/jobs/{id}", jobs::get),
    ("POST", "/_roomkeeper/v1/jobs/{id}/cancel", jobs::cancel),
    ("POST", "/_roomkeeper/v1/jobs/{id}/pause", jobs::pause),
    ("POST", "/_roomkeeper/v1/jobs/{id}/continue", jobs::go_on),
    ("POST", "/_roomkeeper/v1/jobs/resume", jobs::resume),
    ("GET", "/_roomkeeper/v1/holds", holds::list),
    ("POST", "/_roomkeeper/v1/holds", holds::add),
    (
        "POST",
        "/_roomkeeper/v1/holds/{name}/release",
        holds::release,
    ),
    ("GET", "/_roomkeeper/v1/archives", archives::list),
    (
        "GET",
        "/_roomkeeper/v1/archives/verify",
        archives::verify_all,
    ),
    ("GET", "/_roomkeeper/v1/archives/{job}", archives::get),
    (
        "GET",
        "/_roomkeeper/v1/archives/{job}/verify",
        archives::verify,
    ),
    ("DELETE", "/_roomkeeper/v1/archives/{job}", archives::shred),
    (
        "POST",
        "/_roomkeeper/v1/archives/{job}/restore",
        archives::restore,
    ),
    ("GET", "/_roomkeeper/v1/receipts", receipts::list),
    ("GET", "/_roomkeeper/v1/receipts/verify", receipts::verify),
    ("GET", "/_roomkeeper/v1/receipts/{reference}", receipts::get),
    (
        "GET",
        "/_roomkeeper/v1/receipts/{reference}/proof",
        receipts::prove,
    ),
    (
        "POST",
        "/_roomkeeper/v1/receipts/{reference}/forget",
        receipts::forget,
    ),
    ("GET", "/_roomkeeper/v1/health", health::get),
    ("GET", "/metrics", metrics::get),
    ("GET", "/", page::get),
];

/// The endpoints that may keep a handler for longer than some milliseconds. All others are quick.
const SLOW: &[(&str, &str, RequestClass)] = &[
    (
        "GET",
        "/_synapse/admin/v1/rooms/{room_id}/messages",
        RequestClass::Slow,
    ),
    (
        "GET",
        "/_matrix/client/api/v1/rooms/{room_id}/messages",
        RequestClass::Slow,
    ),
    (
        "GET",
        "/_matrix/client/r0/rooms/{room_id}/messages",
        RequestClass::Slow,
    ),
    (
        "GET",
        "/_matrix/client/v3/rooms/{room_id}/messages",
        RequestClass::Slow,
    ),
    (
        "GET",
        "/_matrix/client/unstable/rooms/{room_id}/messages",
        RequestClass::Slow,
    ),
    (
        "DELETE",
        "/_synapse/admin/v1/rooms/{room_id}",
        RequestClass::Long,
    ),
    ("GET", "/_synapse/admin/v1/rooms", RequestClass::Slow),
    (
        "GET",
        "/_synapse/admin/v1/rooms/{room_id}/state",
        RequestClass::Slow,
    ),
    (
        "GET",
        "/_synapse/admin/v1/rooms/{room_id}/timestamp_to_event",
        RequestClass::Slow,
    ),
    (
        "GET",
        "/_synapse/admin/v1/rooms/{room_id}/context/{event_id}",
        RequestClass::Slow,
    ),
    (
        "GET",
        "/_synapse/admin/v1/rooms/{room_id}/hierarchy",
        RequestClass::Slow,
    ),
    (
        "GET",
        "/_synapse/admin/v1/room/{room_id}/media",
        RequestClass::Slow,
    ),
    (
        "GET",
        "/_synapse/admin/v1/statistics/database/rooms",
        RequestClass::Slow,
    ),
    ("GET", "/_synapse/admin/v2/users", RequestClass::Slow),
    ("GET", "/_synapse/admin/v3/users", RequestClass::Slow),
    // Waits for whoever writes, or for the homeserver.
    (
        "DELETE",
        "/_synapse/admin/v1/rooms/{room_id}/forward_extremities",
        RequestClass::Slow,
    ),
    (
        "PUT",
        "/_synapse/admin/v1/rooms/{room_id}/block",
        RequestClass::Slow,
    ),
    ("GET", "/_roomkeeper/v1/rooms", RequestClass::Slow),
    // Read files whole.
    ("GET", "/_roomkeeper/v1/archives", RequestClass::Slow),
    ("GET", "/_roomkeeper/v1/archives/verify", RequestClass::Slow),
    ("GET", "/_roomkeeper/v1/archives/{job}", RequestClass::Slow),
    (
        "GET",
        "/_roomkeeper/v1/archives/{job}/verify",
        RequestClass::Slow,
    ),
    (
        "DELETE",
        "/_roomkeeper/v1/archives/{job}",
        RequestClass::Slow,
    ),
    (
        "POST",
        "/_roomkeeper/v1/archives/{job}/restore",
        RequestClass::Slow,
    ),
    // Reads every receipt there ever was.
    ("GET", "/_roomkeeper/v1/receipts/verify", RequestClass::Slow),
    ("POST", "/_roomkeeper/v1/plan", RequestClass::Slow),
    ("POST", "/_roomkeeper/v1/sets", RequestClass::Slow),
    // Reads all tables of state groups where it only plans.
    ("POST", "/_roomkeeper/v1/state/sweep", RequestClass::Slow),
    ("POST", "/_roomkeeper/v1/state/compress", RequestClass::Slow),
    ("POST", "/_roomkeeper/v1/repair", RequestClass::Slow),
    ("POST", "/_roomkeeper/v1/media", RequestClass::Slow),
];

/// The class of a request.
pub fn class(method: &str, target: &str) -> RequestClass {
    let path = target.split('?').next().unwrap_or_default();
    let method = if method == "HEAD" { "GET" } else { method };
    let slow = SLOW
        .iter()
        .find(|(known, pattern, _)| *known == method && parameters(pattern, path).is_some());
    slow.map_or(RequestClass::Quick, |(_, _, class)| *class)
}

/// What a path and a method lead to.
pub enum Found {
    /// An endpoint, with its parameters.
    Endpoint(Endpoint, Vec<String>),
    /// The path is known, the method is not; these are.
    OtherMethods(Vec<&'static str>),
    /// The path is not known.
    Nothing,
}

/// Looks a path up. `HEAD` is `GET` without the body.
pub fn find(method: &str, path: &str) -> Found {
    let method = if method == "HEAD" { "GET" } else { method };
    let mut others = Vec::new();
    for (known, pattern, endpoint) in ROUTES {
        match parameters(pattern, path) {
            Some(parameters) if *known == method => return Found::Endpoint(*endpoint, parameters),
            Some(_) => others.push(*known),
            None => {}
        }
    }
    if others.is_empty() {
        Found::Nothing
    } else {
        Found::OtherMethods(others)
    }
}

/// The parameters of `path`, if it has the form of `pattern`.
fn parameters(pattern: &str, path: &str) -> Option<Vec<String>> {
    let mut parameters = Vec::new();
    let (mut expected, mut found) = (pattern.split('/'), path.split('/'));
    loop {
        match (expected.next(), found.next()) {
            (None, None) => return Some(parameters),
            (Some(expected), Some(found)) if expected.starts_with('{') => {
                // Bytes that are not UTF-8 become replacement characters, as in Synapse: a name that nothing has.
                parameters.push(percent_decode_str(found).decode_utf8_lossy().into_owned());
            }
            (Some(expected), Some(found)) if expected == found => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(method: &str, path: &str) -> Result<Vec<String>, u16> {
        match find(method, path) {
            Found::Endpoint(_, parameters) => Ok(parameters),
            Found::OtherMethods(_) => Err(405),
            Found::Nothing => Err(404),
        }
    }

    fn words(words: &[&str]) -> Result<Vec<String>, u16> {
        Ok(words.iter().map(|word| (*word).to_owned()).collect())
    }

    #[test]
    fn parameters_are_decoded_after_the_path_is_split() {
        let purge = "/_synapse/admin/v1/purge_history";
        for (path, parameters) in [
            (
                format!("{purge}/!room:example.org"),
                &["!room:example.org"][..],
            ),
            (
                format!("{purge}/%21room%3Aexample.org"),
                &["!room:example.org"],
            ),
            (
                format!("{purge}/!a:b/$event%2Fwith:slash"),
                &["!a:b", "$event/with:slash"],
            ),
            (format!("{purge}/!a:b/"), &["!a:b", ""]),
            (format!("{purge}/"), &[""]),
            (format!("{purge}/!a+b%2Bc"), &["!a+b+c"]),
            (format!("{purge}/%ff%zz"), &["\u{fffd}%zz"]),
        ] {
            assert_eq!(found("POST", &path), words(parameters), "{path}");
        }
    }

    #[test]
    fn what_is_not_an_endpoint_is_404_and_a_wrong_method_405() {
        for path in [
            "",
            "/",
            "*",
            "/_synapse/admin/v1/purge_history",
            "/_roomkeeper/v1/jobs/",
            "/_roomkeeper/v1/health/",
        ] {
            let expected = match path {
                "/" | "/_roomkeeper/v1/jobs/" => Err(405),
                _ => Err(404),
            };
            assert_eq!(found("POST", path), expected, "{path}");
        }
        assert_eq!(
            found("GET", "/_synapse/admin/v1/purge_history/!a:b/$c/d"),
            Err(404)
        );
        assert_eq!(
            found("GET", "/_synapse/admin/v1/purge%5Fhistory/!a:b"),
            Err(404)
        );
        assert_eq!(
            found("GET", "/_synapse/admin/v1/purge_history/!a:b"),
            Err(405)
        );
        assert_eq!(found("get", "/_roomkeeper/v1/health"), Err(405));
        assert_eq!(found("HEAD", "/_roomkeeper/v1/health"), words(&[]));
    }

    #[test]
    fn what_waits_for_a_writer_or_reads_much_keeps_no_quick_lane_busy() {
        let room = "/_synapse/admin/v1/rooms/%21a%3Ab";
        for (method, path, is_quick) in [
            ("PUT", format!("{room}/block"), false),
            ("GET", format!("{room}/block"), true),
            ("GET", format!("{room}/messages?limit=5"), false),
            ("HEAD", format!("{room}/messages"), false),
            ("DELETE", room.to_owned(), false),
            ("GET", "/_roomkeeper/v1/health".to_owned(), true),
        ] {
            let is = matches!(class(method, &path), RequestClass::Quick);
            assert_eq!(is, is_quick, "{method} {path}");
        }
    }

    #[test]
    fn no_endpoint_hides_another() {
        for (method, pattern, endpoint) in ROUTES {
            let Found::Endpoint(reached, _) = find(method, pattern) else {
                panic!("{pattern} is not reached")
            };
            assert!(std::ptr::fn_addr_eq(reached, *endpoint), "{pattern}");
        }
    }
}
