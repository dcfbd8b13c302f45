//! Who holds an access token (U-2 … U-12). Nothing is written, ever (U-11).

use super::db::{Db, params};
use crate::error::Error;
use crate::ids::UserId;
use crate::time::Millis;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requester {
    /// The user on whose behalf the request runs.
    pub user_id: UserId,
    /// Whether they are a server admin (U-9).
    pub is_admin: bool,
    /// Whether they are a guest (U-7).
    pub is_guest: bool,
    /// The device the token belongs to (U-10).
    pub device_id: Option<String>,
    /// The token's number (M-88).
    pub token_id: Option<i64>,
}

const DENIED_UNKNOWN: Error = Error::Denied {
    status: 401,
    errcode: "M_UNKNOWN_TOKEN",
    message: "Invalid access token passed.",
    soft_logout: Some(false),
};

/// Any user's server. Binds nothing; reads one row.
const ANY_SERVER: &str = "SELECT substr(name, instr(name, ':') + 1) FROM users LIMIT 1";

/// Whether anybody is of this server. Binds `$1` its name. Walks all users where nobody is.
const HAS_USER_OF: &str =
    "SELECT EXISTS (SELECT 1 FROM users WHERE substr(name, instr(name, ':') + 1) = $1)";

/// The server that the database's users are of, where nobody is of `server_name`: everybody in `users` is local. `None`
/// where somebody is, and where there are no users.
pub fn server_name_instead_of(db: &Db, server_name: &str) -> Result<Option<String>, Error> {
    let doing = "look whose database it is";
    if !db.catalog().has("users") {
        return Ok(None);
    }
    let other: Option<String> = db.row(doing, ANY_SERVER, params![], |r| r.get(0))?;
    Ok(match other {
        Some(other)
            if other != server_name && db.count(doing, HAS_USER_OF, params![server_name])? == 0 =>
        {
            Some(other)
        }
        _ => None,
    })
}

/// The user of an access token.
///
/// # Errors
/// [`Error::Denied`] as U-3, U-4, U-5, U-8 say.
pub fn by_access_token(db: &Db, token: &str, now: Millis) -> Result<Requester, Error> {
    // `locked` came with schema 80 (U-5).
    let locked = if db.catalog().has_column("users", "locked") {
        "u.locked"
    } else {
        "FALSE"
    };
    let sql = format!(
        "SELECT u.name, u.admin, u.is_guest, u.deactivated, {locked}, t.valid_until_ms, t.device_id, t.id
           FROM access_tokens t
           JOIN users u ON u.name = coalesce(t.puppets_user_id, t.user_id)
          WHERE t.token = $1"
    );
    let found = db.row("look up an access token", &sql, params![token], |r| {
        let requester = Requester {
            user_id: UserId::new(r.get::<_, String>(0)?),
            is_admin: r.get::<_, i64>(1)? == 1,
            is_guest: r.get::<_, i64>(2)? == 1,
            device_id: r.get(6)?,
            token_id: r.get(7)?,
        };
        let deactivated = r.get::<_, i64>(3)? == 1;
        let locked = r.get::<_, Option<bool>>(4)?.unwrap_or(false);
        Ok((requester, deactivated, locked, r.get::<_, Option<i64>>(5)?))
    })?;
    match found {
        None | Some((_, true, _, _)) => Err(DENIED_UNKNOWN),
        Some((_, _, _, Some(until))) if until < now.0 => Err(Error::Denied {
            status: 401,
            errcode: "M_UNKNOWN_TOKEN",
            message: "Access token has expired",
            soft_logout: Some(true),
        }),
        Some((_, _, true, _)) => Err(Error::Denied {
            status: 401,
            errcode: "M_USER_LOCKED",
            message: "User account has been locked",
            soft_logout: Some(true),
        }),
        Some((requester, ..)) => Ok(requester),
    }
}

/// Whether the account's validity has run out (U-6); only asked where the configuration enables it.
pub fn is_expired(db: &Db, user: &UserId, now: Millis) -> Result<bool, Error> {
    const EXPIRATION: &str = "SELECT expiration_ts_ms FROM account_validity WHERE user_id = $1";
    if !db.catalog().has("account_validity") {
        return Ok(false);
    }
    let until = db.row(
        "look up an account's validity",
        EXPIRATION,
        params![user.as_str()],
        |r| r.get::<_, i64>(0),
    )?;
    Ok(until.is_some_and(|until| until <= now.0))
}
