//! The authentication service that has the homeserver's access tokens: Synapse's own block
//! `matrix_authentication_service`, as it stands (U-13).

#[cfg(feature = "daemon")]
use std::fs;
#[cfg(feature = "daemon")]
use std::path::Path;

use super::Secret;
#[cfg(feature = "daemon")]
use super::secrets;
#[cfg(feature = "daemon")]
use super::values::{mapping, string, text, truth};
#[cfg(feature = "daemon")]
use super::yaml::{Map, Value};
use crate::error::Error;

/// Where the service is, and what lets us ask it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthenticationService {
    /// Whether it is asked over TLS.
    pub is_encrypted: bool,
    /// Its host: a name, an address, or an address of six in brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What stands before its paths; empty or `/…` without a slash at its end.
    pub path: String,
    /// The secret that it shares with the homeserver.
    pub secret: Secret,
}

/// Where Synapse looks when it is not told.
#[cfg(feature = "daemon")]
const DEFAULT_ENDPOINT: &str = "http://localhost:8080/";

/// `http://host:port/path`, or the same with `https`, in its parts.
pub(super) struct WebAddress {
    pub is_encrypted: bool,
    pub host: String,
    pub port: u16,
    /// As it is written, from its first slash on.
    pub path: String,
}

/// Reads such an address, which has no user, no question mark and no #.
pub(super) fn web_address(url: &str) -> Option<WebAddress> {
    let (is_encrypted, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
        (Some(rest), _) => (false, rest),
        (_, Some(rest)) => (true, rest),
        _ => return None,
    };
    let is_plain = |b: u8| b.is_ascii_graphic() && !b"?#@\\\"<>".contains(&b);
    if !rest.bytes().all(is_plain) {
        return None;
    }
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    // What stands in brackets has colons of its own.
    let port_at = authority
        .rfind(':')
        .filter(|at| !authority[*at..].contains(']'));
    let (host, port) = match port_at {
        Some(at) => (&authority[..at], authority[at + 1..].parse().ok()?),
        None => (authority, if is_encrypted { 443 } else { 80 }),
    };
    let is_bracketed = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || (host.contains([':', '[', ']']) && !is_bracketed) {
        return None;
    }
    Some(WebAddress {
        is_encrypted,
        host: host.to_owned(),
        port,
        path: path.to_owned(),
    })
}

impl AuthenticationService {
    /// Reads `http://host:port/path` or the same with `https`.
    ///
    /// # Errors
    /// [`Error::Config`]: it is no such address. What was given is in no message, it may hold a password.
    pub fn at(url: &str, secret: Secret) -> Result<Self, Error> {
        let wrong = || {
            let text = "matrix_authentication_service.endpoint should be http://host:port or https://host:port, without a \
                        user, a question mark or a #";
            Error::Config(text.into())
        };
        let address = web_address(url).ok_or_else(wrong)?;
        Ok(Self {
            is_encrypted: address.is_encrypted,
            host: address.host,
            port: address.port,
            path: address.path.trim_end_matches('/').to_owned(),
            secret,
        })
    }

    /// As it is written, without the secret.
    pub fn url(&self) -> String {
        let scheme = if self.is_encrypted { "https" } else { "http" };
        format!("{scheme}://{}:{}{}", self.host, self.port, self.path)
    }
}

/// The block, where it is enabled. A secret that we may not read is warned of: everything but tokens works without it.
#[cfg(feature = "daemon")]
pub(super) fn read(
    block: Option<&Value>,
    directory: &Path,
) -> Result<Option<AuthenticationService>, Error> {
    let Some(value) = block.filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let keys = mapping("matrix_authentication_service", value)?;
    if !truth("matrix_authentication_service.enabled", keys.get("enabled"))? {
        return Ok(None);
    }
    if let Some(http2) = keys
        .get("force_http2")
        .filter(|v| v.as_bool() == Some(true))
    {
        http2.warn(
            "matrix_authentication_service.force_http2 is for Synapse: roomkeeper asks the service by HTTP/1.1".into(),
        );
    }
    let Some(secret) = secret(value, keys, directory)? else {
        return Ok(None);
    };
    let endpoint = match keys.get("endpoint").filter(|value| !value.is_null()) {
        None => DEFAULT_ENDPOINT.to_owned(),
        Some(value) => string("matrix_authentication_service.endpoint", value)?,
    };
    AuthenticationService::at(&endpoint, secret)
        .map(Some)
        .map_err(|e| Error::Config(format!("{}: {e}", value.place())))
}

#[cfg(feature = "daemon")]
fn secret(block: &Value, keys: &Map, directory: &Path) -> Result<Option<Secret>, Error> {
    let given = text(keys, "secret")?.filter(|text| !text.is_empty());
    let path = text(keys, "secret_path")?.filter(|text| !text.is_empty());
    let usable = |secret: &str| !secret.is_empty() && secret.bytes().all(|b| b.is_ascii_graphic());
    let place = block.place();
    match (given, path) {
        (Some(_), Some(_)) | (None, None) => Err(Error::Config(format!(
            "{place}: matrix_authentication_service should have secret or secret_path, one of the two"
        ))),
        (Some(secret), None) if usable(&secret) => Ok(Some(Secret::new(secret))),
        (Some(_), None) => Err(Error::Config(format!(
            "{place}: matrix_authentication_service.secret should be one word of visible ASCII characters"
        ))),
        (None, Some(path)) => {
            let key = "matrix_authentication_service.secret_path";
            let path = directory.join(path);
            if let Some(said) = secrets::everybody_reads(key, &path) {
                block.warn(said);
            }
            let read = fs::read_to_string(&path);
            let secret = read.as_deref().map(str::trim);
            let why = match secret {
                Ok(secret) if usable(secret) => return Ok(Some(Secret::new(secret))),
                Ok(_) => "does not hold one word of visible ASCII characters".to_owned(),
                Err(e) => format!("cannot be read: {e}"),
            };
            block.warn(format!(
                "{key}: {} {why}; over TCP only roomkeeper's own token works until it can be read",
                path.display()
            ));
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "daemon")]
    use super::super::file::examine;
    #[cfg(feature = "daemon")]
    use super::super::file::testing::{MINIMAL, directory, read as read_text};

    #[cfg(feature = "daemon")]
    #[test]
    fn the_block_is_read_as_synapse_reads_it() {
        let read = |block: &str| {
            read_text(&format!(
                "{MINIMAL}matrix_authentication_service: {block}\n"
            ))
        };
        for (block, url) in [
            ("null", None),
            ("{}", None),
            ("{enabled: false, endpoint: 5, secret: []}", None),
            ("{enabled: true, secret: s}", Some("http://localhost:8080")),
            (
                "{enabled: true, secret: s, endpoint: 'https://auth.example.org/x/', force_http2: true}",
                Some("https://auth.example.org:443/x"),
            ),
        ] {
            let config = read(block).expect(block);
            let found = config.authentication_service.map(|service| service.url());
            assert_eq!(found.as_deref(), url, "{block}");
            assert_eq!(config.delegated_auth, url.is_some(), "{block}");
        }
        for (block, says) in [
            ("5", "should be a block of keys"),
            ("{enabled: maybe, secret: s}", "should be true or false"),
            ("{enabled: true}", "secret or secret_path, one of the two"),
            (
                "{enabled: true, secret: ''}",
                "secret or secret_path, one of the two",
            ),
            (
                "{enabled: true, secret: hidden, secret_path: /x}",
                "secret or secret_path, one of the two",
            ),
            (
                "{enabled: true, secret: 'hidden hidden'}",
                "one word of visible ASCII",
            ),
            (
                "{enabled: true, secret: s, endpoint: 'http://u:hidden@a'}",
                "endpoint should be http",
            ),
            (
                "{enabled: true, secret: s, endpoint: a:1}",
                "endpoint should be http",
            ),
        ] {
            let error = read(block).err().expect(block);
            assert!(
                error.contains(says) && error.contains("x.yaml:6"),
                "{block}: {error}"
            );
            assert!(!error.contains("hidden"), "{error}");
        }
    }

    #[cfg(feature = "daemon")]
    #[test]
    fn a_secret_in_a_file_is_read_or_warned_of_and_another_database_has_no_service() {
        let block = "matrix_authentication_service: {enabled: true, secret_path: mas.secret}\n";
        let directory = directory(&[
            ("homeserver.yaml", &format!("{MINIMAL}{block}")),
            ("mas.secret", "of-both\n"),
        ]);
        let files = [directory.path().join("homeserver.yaml")];
        let path = directory.path().join("mas.secret");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&path, mode).expect("set");
        let examined = examine(&files, None);
        let service = examined
            .config
            .map_err(drop)
            .expect("reads")
            .authentication_service;
        assert_eq!(service.expect("a service").secret, Secret::new("of-both"));
        assert!(examined.warnings.is_empty());
        let copy = crate::database::Database::File("/copy.db".into());
        let config = examine(&files, Some(copy))
            .config
            .map_err(drop)
            .expect("reads");
        assert_eq!(config.authentication_service, None, "a copy reaches nobody");

        for wrong in ["", "two words"] {
            fs::write(&path, wrong).expect("written");
            let examined = examine(&files, None);
            let config = examined.config.map_err(drop).expect("works without");
            assert!(config.delegated_auth && config.authentication_service.is_none());
            let said = examined.warnings[0].to_string();
            assert!(said.contains("only roomkeeper's own token works"), "{said}");
        }
        fs::remove_file(&path).expect("removed");
        let said = examine(&files, None).warnings[0].to_string();
        assert!(said.contains("cannot be read"), "{said}");
    }

    #[test]
    fn an_endpoint_is_an_address_on_the_web_and_nothing_else() {
        let at = |url| AuthenticationService::at(url, Secret::new("s"));
        for (url, is_encrypted, host, port, path) in [
            ("http://localhost:8080/", false, "localhost", 8080, ""),
            (
                "https://auth.example.org",
                true,
                "auth.example.org",
                443,
                "",
            ),
            ("http://mas", false, "mas", 80, ""),
            ("http://[::1]:8080", false, "[::1]", 8080, ""),
            ("https://[::1]", true, "[::1]", 443, ""),
            (
                "https://example.org/auth/",
                true,
                "example.org",
                443,
                "/auth",
            ),
        ] {
            let found = at(url).expect(url);
            assert_eq!(
                (found.is_encrypted, &*found.host, found.port, &*found.path),
                (is_encrypted, host, port, path)
            );
        }
        for url in [
            "",
            "localhost:8080",
            "ftp://a",
            "http://",
            "http:///x",
            "http://u:p@a",
            "http://a/?b",
            "http://a#b",
            "http://a b",
            "http://a:99999",
            "http://a:b",
            "http://::1",
            "http://a\r\nX: y",
        ] {
            let refused = at(url).expect_err(url).to_string();
            assert!(
                refused.contains("endpoint should be") && !refused.contains("u:p"),
                "{refused}"
            );
        }
    }
}
