//! Who asks, and whether they may.

use form_urlencoded::parse;
use subtle::ConstantTimeEq;

use super::Context;
use super::introspection::{Holder, Introspector};
use super::json::ApiError;
use super::server::listen::Origin;
use crate::config::Secret;
use crate::ids::UserId;
use crate::keeper::Keeper;
use crate::store::users::Requester;

/// Decides who is behind a request.
pub struct Authenticator {
    /// Our own secret, accepted as a server admin (U-14).
    pub static_token: Option<Secret>,
    /// What reads `/metrics` and nothing else, if there is such a token.
    pub metrics_token: Option<Secret>,
    /// Who the static token and the Unix socket speak for.
    pub operator: UserId,
    /// Tokens are not in the database but with an authentication service (U-13).
    pub is_delegated: bool,
    /// Asks it; without, only the static token works then.
    pub service: Option<Introspector>,
}

impl Authenticator {
    /// The requester of an endpoint for server admins (U-9).
    ///
    /// # Errors
    /// 401 when the token is missing or unknown, 403 when its user is not an admin.
    pub fn admin(&self, keeper: &Keeper, ctx: &Context) -> Result<UserId, ApiError> {
        Ok(self.admin_requester(keeper, ctx)?.user_id)
    }

    /// As [`Authenticator::admin`], with how they are logged in.
    ///
    /// # Errors
    /// As there.
    pub fn admin_requester(&self, keeper: &Keeper, ctx: &Context) -> Result<Requester, ApiError> {
        let requester = self.requester(keeper, ctx)?;
        if requester.is_guest {
            return Err(ApiError::new(
                403,
                "M_GUEST_ACCESS_FORBIDDEN",
                "Guest access not allowed",
            ));
        }
        if !requester.is_admin {
            return Err(ApiError::new(
                403,
                "M_FORBIDDEN",
                "You are not a server admin",
            ));
        }
        Ok(requester)
    }

    /// Whether somebody may read what is measured: whoever has the token for that, and every admin.
    ///
    /// # Errors
    /// As [`Authenticator::admin`].
    pub fn scraper(&self, keeper: &Keeper, ctx: &Context) -> Result<(), ApiError> {
        match token(&ctx.request.authorization, &ctx.query) {
            Ok(token) if is(self.metrics_token.as_ref(), &token) => Ok(()),
            _ => self.admin_requester(keeper, ctx).map(drop),
        }
    }

    /// Whoever asks, guests included.
    ///
    /// # Errors
    /// 401 when the token is missing or unknown.
    pub fn requester(&self, keeper: &Keeper, ctx: &Context) -> Result<Requester, ApiError> {
        let token = match token(&ctx.request.authorization, &ctx.query) {
            Ok(token) => token,
            // The file system has let them in: only the operator can open the socket. One who sends a token all
            // the same, as a proxy does for its clients, is who the token says.
            Err(Missing::None) if ctx.request.origin == Origin::Unix => return Ok(self.operator()),
            Err(missing) => return Err(missing.into()),
        };
        if is(self.static_token.as_ref(), &token) {
            return Ok(self.operator());
        }
        if is(self.metrics_token.as_ref(), &token) {
            let text = "This token reads /metrics and nothing else";
            return Err(ApiError::new(403, "M_FORBIDDEN", text));
        }
        if let Some(service) = &self.service {
            return delegated(keeper, service.holder(&token)?);
        }
        if self.is_delegated {
            let text = "Access tokens are with the authentication service; only roomkeeper's own token works here";
            return Err(ApiError {
                soft_logout: Some(false),
                ..ApiError::new(401, "M_UNKNOWN_TOKEN", text)
            });
        }
        Ok(keeper.authenticate(&token)?)
    }

    fn operator(&self) -> Requester {
        let user_id = self.operator.clone();
        Requester {
            user_id,
            is_admin: true,
            is_guest: false,
            device_id: None,
            token_id: None,
        }
    }
}

/// Whether a token is this secret; how long that takes says nothing about it.
fn is(secret: Option<&Secret>, token: &str) -> bool {
    secret.is_some_and(|secret| bool::from(secret.reveal().as_bytes().ct_eq(token.as_bytes())))
}

/// Whoever the service named, if the homeserver knows them: a device that was logged out is gone at once, and an account
/// that is closed or locked has no say, however long the service's word is good for.
fn delegated(keeper: &Keeper, holder: Holder) -> Result<Requester, ApiError> {
    let refused = |errcode, text: &str, soft_logout| ApiError {
        soft_logout: Some(soft_logout),
        ..ApiError::new(401, errcode, text)
    };
    let unknown = || refused("M_UNKNOWN_TOKEN", "Invalid access token passed.", false);
    let account = keeper.account(&holder.user_id)?.ok_or_else(unknown)?;
    if account.is_deactivated {
        return Err(unknown());
    }
    if account.is_locked {
        return Err(refused(
            "M_USER_LOCKED",
            "User account has been locked",
            true,
        ));
    }
    if let Some(device) = &holder.device_id
        && !keeper.has_device(&holder.user_id, device)?
    {
        return Err(refused("M_UNKNOWN_TOKEN", "Token is not active", false));
    }
    Ok(Requester {
        user_id: holder.user_id,
        is_admin: holder.is_admin,
        is_guest: false,
        device_id: holder.device_id,
        token_id: None,
    })
}

/// Why a request has no token (U-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Neither header nor parameter.
    None,
    /// Both.
    Mixed,
    /// More than one header.
    Several,
    /// Not `Bearer` and one word.
    Malformed,
}

impl From<Missing> for ApiError {
    fn from(missing: Missing) -> Self {
        let text = match missing {
            Missing::None => "Missing access token",
            Missing::Mixed => "Mixing Authorization headers and access_token query parameters.",
            Missing::Several => "Too many Authorization headers.",
            Missing::Malformed => "Invalid Authorization header.",
        };
        Self::new(401, "M_MISSING_TOKEN", text)
    }
}

/// The token of a request, from its headers or its query (U-1).
fn token(headers: &[String], query: &[(String, String)]) -> Result<String, Missing> {
    let parameter = query
        .iter()
        .find(|(name, _)| name == TOKEN_PARAMETER)
        .map(|(_, value)| value);
    match (headers, parameter) {
        ([], None) => Err(Missing::None),
        ([], Some(token)) => Ok(token.clone()),
        (_, Some(_)) => Err(Missing::Mixed),
        ([header], None) => match header.split(' ').collect::<Vec<_>>()[..] {
            ["Bearer", token] => Ok(token.to_owned()),
            _ => Err(Missing::Malformed),
        },
        (_, None) => Err(Missing::Several),
    }
}

/// The query parameter that is a secret.
pub(super) const TOKEN_PARAMETER: &str = "access_token";

/// Most characters of a target that are logged.
const LOGGED: usize = 300;

/// Parameters whose values may stand in a log.
const HARMLESS: [&str; 21] = [
    "dir",
    "from",
    "to",
    "limit",
    "filter",
    "raw",
    "order_by",
    "public_rooms",
    "empty_rooms",
    "ts",
    "at",
    "status",
    "resource_id",
    "job_id",
    "action_name",
    "max_timestamp",
    "max_depth",
    "guests",
    "deactivated",
    "locked",
    "admins",
];

/// How access tokens begin: Synapse's, and those of the Matrix Authentication Service.
const TOKENS: [&str; 6] = ["syt_", "mat_", "mpt_", "mct_", "mcr_", "syr_"];

/// A request's target, fit for a log: without a token, however it was meant to be given (U-15, U-16), and not without end.
pub fn loggable(target: &str) -> String {
    let mut text = String::new();
    for (n, piece) in target.split_inclusive(['?', '&']).enumerate() {
        let (piece, end) = piece.split_at(piece.trim_end_matches(['?', '&']).len());
        if n == 0 {
            for segment in piece.split_inclusive('/') {
                let (segment, slash) = segment.split_at(segment.trim_end_matches('/').len());
                text.push_str(shown(segment));
                text.push_str(slash);
            }
        } else {
            // The name as an endpoint reads it: `access%5Ftoken` is the same secret.
            let name = parse(piece.as_bytes()).next();
            let name = name.map(|(name, _)| name.into_owned()).unwrap_or_default();
            let is_word = |b: u8| b.is_ascii_lowercase() || b"_-.".contains(&b);
            text.push_str(&match piece.split_once('=') {
                _ if piece.is_empty() || HARMLESS.contains(&name.as_str()) => piece.to_owned(),
                Some(_) if name.contains(TOKEN_PARAMETER) => "access_token=<redacted>".to_owned(),
                // A parameter that nobody knows may be a token's, misspelt; and a name of any other kind a token itself.
                Some(_) if name.len() <= 24 && name.bytes().all(is_word) => {
                    format!("{name}=<redacted>")
                }
                _ => "<redacted>".to_owned(),
            });
        }
        text.push_str(end);
    }
    match text.char_indices().nth(LOGGED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A segment of a path; who forgets the question mark must not find the token in a log.
fn shown(segment: &str) -> &str {
    let decoded = parse(segment.as_bytes()).next();
    let decoded = decoded.map_or(String::new(), |(name, _)| name.to_lowercase());
    let is_token = decoded.contains("token") || decoded.contains("bearer");
    if segment.contains('=') && is_token {
        return "access_token=<redacted>";
    }
    if is_token || TOKENS.iter().any(|begin| decoded.starts_with(begin)) {
        return "<redacted>";
    }
    segment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_by_one_way_alone() {
        let take = |headers: &[&str], query: &str| {
            let headers: Vec<String> = headers.iter().map(|header| (*header).to_owned()).collect();
            let query: Vec<_> = parse(query.as_bytes()).into_owned().collect();
            token(&headers, &query)
        };
        assert_eq!(take(&["Bearer abc"], "a=b"), Ok("abc".into()));
        assert_eq!(
            take(&[], "access_token=a%2Bb&access_token=c"),
            Ok("a+b".into())
        );
        assert_eq!(take(&[], "access_token="), Ok(String::new()));
        assert_eq!(take(&["Bearer "], ""), Ok(String::new()));
        assert_eq!(take(&[], ""), Err(Missing::None));
        assert_eq!(take(&["Bearer a"], "access_token=a"), Err(Missing::Mixed));
        assert_eq!(take(&["Bearer a"], "access_token="), Err(Missing::Mixed));
        assert_eq!(take(&["Bearer a", "Bearer a"], ""), Err(Missing::Several));
        for malformed in [
            "",
            "Bearer",
            "bearer a",
            "Bearer a b",
            "Bearer  a",
            "Basic a",
            "abc",
            "Bearer\ta",
        ] {
            assert_eq!(
                take(&[malformed], ""),
                Err(Missing::Malformed),
                "{malformed:?}"
            );
        }
    }

    #[test]
    fn a_logged_target_never_shows_a_token() {
        for (target, logged) in [
            ("/a?dir=b&from=t1-2", "/a?dir=b&from=t1-2"),
            ("/a/!room:b/$event", "/a/!room:b/$event"),
            // Ways that are none (U-16).
            ("/a?acces_token=SECRET", "/a?acces_token=<redacted>"),
            ("/a?token=SECRET&dir=b", "/a?token=<redacted>&dir=b"),
            ("/a?Authorization=Bearer+SECRET", "/a?<redacted>"),
            ("/a?syt_SECRET", "/a?<redacted>"),
            ("/a?SECRET=", "/a?<redacted>"),
            ("/a/syt_SECRET", "/a/<redacted>"),
            ("/a/Bearer%20SECRET/b", "/a/<redacted>/b"),
            ("/a/accesstoken=SECRET", "/a/access_token=<redacted>"),
            ("/a", "/a"),
            ("/a?access_token=SECRET", "/a?access_token=<redacted>"),
            (
                "/a?dir=c&access_token=SECRET&to",
                "/a?dir=c&access_token=<redacted>&to",
            ),
            ("/a?access%5Ftoken=SECRET", "/a?access_token=<redacted>"),
            (
                "/a?%61ccess_token=SECRET&access_token=SECRET",
                "/a?access_token=<redacted>&access_token=<redacted>",
            ),
            (
                "/a?x?access_token=SECRET",
                "/a?<redacted>?access_token=<redacted>",
            ),
            (
                "/a&access_token=SECRET?b",
                "/a&access_token=<redacted>?<redacted>",
            ),
            ("/a/access_token=SECRET", "/a/access_token=<redacted>"),
            ("/a?&&to=?", "/a?&&to=?"),
        ] {
            assert_eq!(loggable(target), logged);
        }
        assert!(loggable(&format!("/{}", "x".repeat(5000))).chars().count() <= LOGGED + 1);
    }
}
