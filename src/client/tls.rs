//! Encrypted connections to a service on the web: its certificate has to be for its name, from an authority that this
//! machine trusts.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::{ClientError, Socket};

/// Where an encrypted service is, and who is believed to be it.
#[derive(Clone)]
pub(super) struct Address {
    authority: String,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
}

impl Address {
    /// A service by its host and port, by the authorities that this machine trusts.
    pub(super) fn new(host: &str, port: u16) -> Result<Self, ClientError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Self::trusting(host, port, roots)
    }

    fn trusting(host: &str, port: u16, roots: RootCertStore) -> Result<Self, ClientError> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|_| ClientError::Unsendable("the host's name"))?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|_| ClientError::Unsendable("the kind of encryption"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            authority: format!("{host}:{port}"),
            name,
            config: Arc::new(config),
        })
    }

    /// `host:port`.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// A connection, encrypted from its first byte on; who is there is known before anything is sent.
    pub(super) fn encrypted(&self, stream: TcpStream) -> io::Result<Encrypted> {
        let connection = ClientConnection::new(self.config.clone(), self.name.clone());
        let connection = connection.map_err(io::Error::other)?;
        Ok(StreamOwned::new(connection, stream))
    }
}

/// An encrypted connection.
pub(super) type Encrypted = StreamOwned<ClientConnection, TcpStream>;

impl Socket for Encrypted {
    fn wait_at_most(&self, time: Duration) -> io::Result<()> {
        self.sock.wait_at_most(time)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{ServerConfig, ServerConnection};

    use super::super::Client;
    use super::*;

    struct Authority(CertifiedIssuer<'static, KeyPair>);

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::new(Vec::new()).expect("parameters");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().expect("a key");
            Self(CertifiedIssuer::self_signed(params, key).expect("signed"))
        }

        fn roots(&self) -> RootCertStore {
            let mut roots = RootCertStore::empty();
            roots.add(self.0.der().clone()).expect("an authority");
            roots
        }

        /// A server for `localhost` that answers one request.
        fn server(&self) -> u16 {
            let key = KeyPair::generate().expect("a key");
            let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
            let certificate = params.signed_by(&key, &self.0).expect("signed");
            let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
            let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
            let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_no_client_auth()
                .with_single_cert(chain, key)
                .expect("a certificate");
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let port = listener.local_addr().expect("an address").port();
            thread::spawn(move || {
                let (stream, _) = listener.accept().expect("a client");
                let connection = ServerConnection::new(Arc::new(config)).expect("a connection");
                let mut stream = StreamOwned::new(connection, stream);
                let mut asked = [0; 4096];
                if stream.read(&mut asked).is_ok_and(|count| count > 0) {
                    let said = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{\"asked\": 1}";
                    let _ = stream.write_all(said);
                    let _ = stream.flush();
                    let _ = stream.read(&mut asked);
                }
            });
            port
        }
    }

    #[test]
    fn only_one_whose_certificate_is_for_its_name_and_trusted_hears_the_token() {
        let (ours, strange) = (Authority::new(), Authority::new());
        for (host, trusted, is_good) in [
            ("localhost", &ours, true),
            ("localhost", &strange, false),
            ("127.0.0.1", &ours, false),
        ] {
            let address = Address::trusting(host, ours.server(), trusted.roots());
            let address = address.expect("an address");
            let client = Client::to(super::super::Address::Tls(address), Some("secret".into()));
            let reply = client.with_timeout(Duration::from_secs(20)).get("/");
            match reply {
                Ok(reply) => assert!(is_good && reply.body["asked"] == 1, "{host}"),
                Err(e) => assert!(
                    !is_good && e.to_string().contains("certificate"),
                    "{host}: {e}"
                ),
            }
        }
    }
}
