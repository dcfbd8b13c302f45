//! The homeserver that runs beside us: how it is asked to do what only it can do.

use super::Secret;
use crate::error::Error;

/// The homeserver's own admin API, on this machine or in its network: plain HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HomeserverApi {
    /// `host:port`.
    pub address: String,
    /// An admin's access token.
    pub token: Secret,
}

impl HomeserverApi {
    /// Reads `http://host:port`.
    ///
    /// # Errors
    /// [`Error::Config`]: the homeserver's own listener is meant, which speaks HTTP without encryption.
    pub fn at(url: &str, token: Secret) -> Result<Self, Error> {
        let address = url
            .strip_prefix("http://")
            .map(|rest| rest.trim_end_matches('/'));
        let is_plain = |rest: &&str| {
            !rest.is_empty()
                && rest
                    .bytes()
                    .all(|b| b.is_ascii_graphic() && !b"/?#@".contains(&b))
        };
        let Some(address) = address.filter(is_plain) else {
            return Err(Error::Config(format!(
                "roomkeeper.homeserver.url: '{url}' is not of the form http://host:port; the homeserver's own listener is \
                 meant, not the encrypted address that users know"
            )));
        };
        let has_port = address
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let port = if has_port { "" } else { ":80" };
        Ok(Self {
            address: format!("{address}{port}"),
            token,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_homeserver_has_a_plain_address() {
        let at = |url| HomeserverApi::at(url, Secret::new("t")).map(|api| api.address);
        for (url, address) in [
            ("http://127.0.0.1:8008", "127.0.0.1:8008"),
            ("http://[::1]:8008/", "[::1]:8008"),
            ("http://synapse", "synapse:80"),
        ] {
            assert_eq!(at(url).expect("an address"), address);
        }
        for url in [
            "https://a:1",
            "a:1",
            "http://",
            "http://a/b",
            "http://u@a",
            "http://a b",
        ] {
            assert!(at(url).is_err(), "{url}");
        }
    }
}
