//! Access tokens that are with an authentication service (U-13): it is asked whose they are, and what it says is
//! remembered for a while.
//!
//! Source: RFC 7662; the Matrix Authentication Service's documentation; scale.md section 1.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::json::ApiError;
use crate::client::{Client, ClientError, Reply};
use crate::config::AuthenticationService;
use crate::error::Error;
use crate::ids::UserId;

/// How long an answer is believed: longer, and who was logged out would still be let in.
const BELIEVE_FOR: Duration = Duration::from_secs(120);

/// How long a refusal is: a client that tries the same token again and again costs the service nothing.
const REFUSE_FOR: Duration = Duration::from_secs(10);

/// How long the service is not asked again after it could not be: handlers are for others meanwhile.
const LEAVE_ALONE_FOR: Duration = Duration::from_secs(2);

/// Time for a question and its whole answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Most bytes of an answer, head and all; one of the service's has less than one thousand.
const MOST_BYTES: usize = 64 * 1024;

/// How many handlers may wait for the service at a time, so that some are left for the static token and the socket.
const ASKING: usize = 4;

/// How long one waits for a place among these.
const WAIT_FOR_PLACE: Duration = Duration::from_secs(1);

/// How many answers are remembered.
const REMEMBERED: usize = 1024;

/// What a token has to be good for, in its two spellings.
const CLIENT_API: [&str; 2] = [
    "urn:matrix:client:api:*",
    "urn:matrix:org.matrix.msc2967.client:api:*",
];

/// What a server admin's token is good for besides.
const ADMIN: &str = "urn:synapse:admin:*";

/// How the device stands among what a token is good for, in its two spellings.
const DEVICE: [&str; 2] = [
    "urn:matrix:client:device:",
    "urn:matrix:org.matrix.msc2967.client:device:",
];

/// Longest id of a device.
const LONGEST_DEVICE: usize = 255;

/// Whose a token is, as the service says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The user.
    pub user_id: UserId,
    /// Whether the token is good for what server admins do.
    pub is_admin: bool,
    /// The device that it belongs to.
    pub device_id: Option<String>,
}

/// Why a token is refused.
type Refused = &'static str;

/// What the service said of a token.
type Verdict = Result<Holder, Refused>;

/// Asks the service, and remembers.
pub struct Introspector {
    client: Client,
    path: String,
    url: String,
    server_name: String,
    known: Mutex<Known>,
    /// Somebody has an answer, or gave up a place.
    changed: Condvar,
}

#[derive(Default)]
struct Known {
    /// By the SHA-256 of the token, so that no token is kept.
    verdicts: HashMap<[u8; 32], (Verdict, Instant)>,
    /// What is being asked about.
    asked: Vec<[u8; 32]>,
    /// The service could not be asked: not before this moment again.
    left_alone_until: Option<Instant>,
}

/// What the service says (RFC 7662), as far as it matters here.
#[derive(Deserialize)]
struct Answer {
    active: bool,
    #[serde(default)]
    scope: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    device_id: Option<String>,
    #[serde(default)]
    expires_in: Option<i64>,
}

impl Introspector {
    /// One who asks this service about users of this server.
    ///
    /// # Errors
    /// [`Error::Config`] where its host cannot be one.
    pub fn new(service: &AuthenticationService, server_name: &str) -> Result<Self, Error> {
        let secret = service.secret.reveal();
        let client = match service.is_encrypted {
            false => Client::tcp(format!("{}:{}", service.host, service.port), secret),
            true => Client::tls(&service.host, service.port, secret).map_err(|e| {
                Error::Config(format!("matrix_authentication_service.endpoint: {e}"))
            })?,
        };
        Ok(Self {
            client: client.with_timeout(ANSWER_WITHIN).with_most(MOST_BYTES),
            path: format!("{}/oauth2/introspect", service.path),
            url: service.url(),
            server_name: server_name.to_owned(),
            known: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// 401 `M_UNKNOWN_TOKEN` where it is nobody's who may ask here; 503 where the service cannot be asked.
    pub fn holder(&self, token: &str) -> Result<Holder, ApiError> {
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(verdict) = self.begin(key)? {
            return verdict.map_err(refused);
        }
        // Whatever becomes of it, the place is given back.
        let asking = Asking { of: self, key };
        let answer = self.ask(token);
        let asked = Instant::now();
        let mut known = self.known.lock();
        let (verdict, believe_for) = match answer {
            Ok(answer) => judge(&answer, &self.server_name),
            Err(why) => {
                log::warn!(
                    "http: the authentication service at {} cannot tell whose a token is: {why}",
                    self.url
                );
                known.left_alone_until = Some(asked + LEAVE_ALONE_FOR);
                drop(known);
                drop(asking);
                return Err(unavailable());
            }
        };
        known.left_alone_until = None;
        known.remember(key, (verdict.clone(), asked + believe_for), asked);
        drop(known);
        drop(asking);
        verdict.map_err(refused)
    }

    /// The verdict that is known, or `None`: the caller is to ask, and has the place for it.
    fn begin(&self, key: [u8; 32]) -> Result<Option<Verdict>, ApiError> {
        let until = Instant::now() + WAIT_FOR_PLACE;
        let mut known = self.known.lock();
        loop {
            let now = Instant::now();
            if let Some((verdict, good_until)) = known.verdicts.get(&key)
                && now < *good_until
            {
                return Ok(Some(verdict.clone()));
            }
            if known.left_alone_until.is_some_and(|until| now < until) {
                return Err(unavailable());
            }
            if known.asked.len() < ASKING && !known.asked.contains(&key) {
                known.asked.push(key);
                return Ok(None);
            }
            if self.changed.wait_until(&mut known, until).timed_out() {
                return Err(unavailable());
            }
        }
    }

    fn ask(&self, token: &str) -> Result<Answer, String> {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("token", token)
            .append_pair("token_type_hint", "access_token")
            .finish();
        let headers = [
            ("Accept", "application/json"),
            ("X-MAS-Supports-Device-Id", "1"),
        ];
        let reply = self.client.post_form(&self.path, form, &headers);
        let Reply { status, body } = reply.map_err(|e: ClientError| e.to_string())?;
        match status {
            200 => serde_json::from_value(body)
                .map_err(|_| "its answer is not that of RFC 7662".to_owned()),
            401 | 403 => Err(format!(
                "it answered {status}: is matrix_authentication_service.secret the one that it has as matrix.secret?"
            )),
            status => Err(format!("it answered {status}")),
        }
    }
}

/// A place among those who ask; dropping it gives it back.
struct Asking<'a> {
    of: &'a Introspector,
    key: [u8; 32],
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.of.known.lock().asked.retain(|key| *key != self.key);
        self.of.changed.notify_all();
    }
}

impl Known {
    fn remember(&mut self, key: [u8; 32], verdict: (Verdict, Instant), now: Instant) {
        if self.verdicts.len() >= REMEMBERED {
            self.verdicts.retain(|_, (_, until)| now < *until);
        }
        if self.verdicts.len() >= REMEMBERED {
            let first = self.verdicts.iter().min_by_key(|(_, (_, until))| *until);
            if let Some(key) = first.map(|(key, _)| *key) {
                self.verdicts.remove(&key);
            }
        }
        self.verdicts.insert(key, verdict);
    }
}

/// What an answer means, and how long it is believed.
fn judge(answer: &Answer, server_name: &str) -> (Verdict, Duration) {
    let expires = answer.expires_in.map(|seconds| {
        let seconds = u64::try_from(seconds).unwrap_or(0);
        Duration::from_secs(seconds)
    });
    if !answer.active || expires == Some(Duration::ZERO) {
        return (Err("Token is not active"), REFUSE_FOR);
    }
    match holder(answer, server_name) {
        Ok(holder) => {
            let believe_for = expires.map_or(BELIEVE_FOR, |expires| expires.min(BELIEVE_FOR));
            (Ok(holder), believe_for)
        }
        Err(why) => (Err(why), REFUSE_FOR),
    }
}

fn holder(answer: &Answer, server_name: &str) -> Verdict {
    let scope = answer.scope.as_deref().unwrap_or_default();
    let scopes: Vec<&str> = scope.split(' ').filter(|scope| !scope.is_empty()).collect();
    if !CLIENT_API.iter().any(|api| scopes.contains(api)) {
        return Err("Token doesn't grant access to the Matrix C-S API");
    }
    // The service's own clients have tokens, too, that are nobody's.
    let Some(name) = answer.username.as_deref().filter(|name| !name.is_empty()) else {
        return Err("Token belongs to no user");
    };
    let user_id = UserId::new(format!("@{name}:{server_name}"));
    let is_word = name.chars().all(|c| !c.is_whitespace() && !c.is_control());
    if !is_word || !user_id.is_local(server_name) || user_id.as_str().len() > 255 {
        return Err("Token belongs to no user of this server");
    }
    let device_id = match &answer.device_id {
        Some(device) => Some(device.clone()),
        None => {
            let of = |scope: &&str| {
                DEVICE
                    .iter()
                    .find_map(|begin| scope.strip_prefix(begin).map(str::to_owned))
            };
            let mut devices: Vec<String> = scopes.iter().filter_map(of).collect();
            devices.sort();
            devices.dedup();
            if devices.len() > 1 {
                return Err("Token belongs to several devices");
            }
            devices.pop()
        }
    };
    if device_id
        .as_ref()
        .is_some_and(|id| id.is_empty() || id.len() > LONGEST_DEVICE)
    {
        return Err("Token belongs to no device that can be");
    }
    Ok(Holder {
        user_id,
        is_admin: scopes.contains(&ADMIN),
        device_id,
    })
}

fn refused(why: Refused) -> ApiError {
    ApiError {
        soft_logout: Some(false),
        ..ApiError::new(401, "M_UNKNOWN_TOKEN", why)
    }
}

fn unavailable() -> ApiError {
    ApiError::new(503, "M_UNKNOWN", "Unable to introspect the access token")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(answer: serde_json::Value) -> (Verdict, Duration) {
        let answer = serde_json::from_value(answer).expect("an answer");
        judge(&answer, "example.org:8448")
    }

    fn answer(scope: &str, username: &str) -> serde_json::Value {
        serde_json::json!({"active": true, "scope": scope, "username": username, "sub": "01J", "iat": 1})
    }

    #[test]
    fn an_admin_is_who_has_both_scopes() {
        for (scope, is_admin) in [
            ("urn:matrix:client:api:*", false),
            ("urn:matrix:org.matrix.msc2967.client:api:*", false),
            ("urn:matrix:client:api:* urn:synapse:admin:*", true),
            (
                "openid urn:synapse:admin:* urn:matrix:org.matrix.msc2967.client:api:*",
                true,
            ),
            ("urn:matrix:client:api:* urn:synapse:admin:*x", false),
            ("urn:matrix:client:api:* urn:synapse:admin", false),
        ] {
            let (verdict, time) = judged(answer(scope, "alice"));
            let holder = verdict.expect(scope);
            assert_eq!(holder.is_admin, is_admin, "{scope}");
            assert_eq!(holder.user_id.as_str(), "@alice:example.org:8448");
            assert_eq!((holder.device_id, time), (None, BELIEVE_FOR));
        }
    }

    #[test]
    fn what_is_no_users_token_for_this_is_refused() {
        let api = "urn:matrix:client:api:*";
        let admin = "urn:matrix:client:api:* urn:synapse:admin:*";
        let with = |mut answer: serde_json::Value, member: &str, value: serde_json::Value| {
            answer[member] = value;
            answer
        };
        for wrong in [
            serde_json::json!({"active": false}),
            with(answer(admin, "alice"), "active", false.into()),
            answer("urn:synapse:admin:*", "alice"),
            answer("", "alice"),
            with(answer(api, "alice"), "scope", serde_json::Value::Null),
            answer(admin, ""),
            with(answer(admin, ""), "username", serde_json::Value::Null),
            answer(admin, "a:elsewhere.org"),
            answer(admin, "a b"),
            answer(admin, "a\nb"),
            answer(admin, &"a".repeat(300)),
            with(answer(admin, "alice"), "expires_in", 0.into()),
            with(answer(admin, "alice"), "expires_in", (-5).into()),
            with(answer(admin, "alice"), "device_id", "".into()),
            with(answer(admin, "alice"), "device_id", "d".repeat(256).into()),
            answer(
                &format!("{admin} urn:matrix:client:device:A urn:matrix:client:device:B"),
                "alice",
            ),
        ] {
            let (verdict, time) = judged(wrong.clone());
            assert!(verdict.is_err(), "{wrong}");
            assert_eq!(time, REFUSE_FOR);
        }
    }

    #[test]
    fn a_device_is_named_beside_or_among_the_scopes_and_an_answer_lives_no_longer_than_its_token() {
        let api = "urn:matrix:client:api:* urn:matrix:client:device:ABC urn:matrix:org.matrix.msc2967.client:device:ABC";
        let (verdict, _) = judged(answer(api, "alice"));
        assert_eq!(verdict.expect("good").device_id.as_deref(), Some("ABC"));
        let mut told = answer(api, "alice");
        told["device_id"] = "XYZ".into();
        told["expires_in"] = 7.into();
        let (verdict, time) = judged(told.clone());
        assert_eq!(verdict.expect("good").device_id.as_deref(), Some("XYZ"));
        assert_eq!(time, Duration::from_secs(7));
        told["expires_in"] = i64::MAX.into();
        assert_eq!(judged(told).1, BELIEVE_FOR);
    }

    #[test]
    fn what_is_remembered_does_not_grow_without_bound() {
        let mut known = Known::default();
        let now = Instant::now();
        for n in 0..2 * REMEMBERED as u64 {
            let key: [u8; 32] = Sha256::digest(n.to_le_bytes()).into();
            known.remember(key, (Err("no"), now + Duration::from_secs(60 + n)), now);
            assert!(known.verdicts.contains_key(&key));
        }
        assert_eq!(known.verdicts.len(), REMEMBERED);
        let later = now + Duration::from_secs(100_000);
        known.remember([0; 32], (Err("no"), later + REFUSE_FOR), later);
        assert_eq!(known.verdicts.len(), 1);
    }
}
