//! Encrypted connections: what the server has to show before we speak.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::encryption::{Mode, Roots, Wanted};
use crate::error::Error;

pub(super) type Connector = MakeRustlsConnect;

/// What encrypts a connection as was asked for.
pub(super) fn connector(wanted: &Wanted) -> Result<Connector, Error> {
    let provider = ring::default_provider();
    let is_verified = matches!(wanted.mode, Mode::VerifyCa | Mode::VerifyFull);
    let judge = Judge {
        trusted: match &wanted.roots {
            Some(roots) if is_verified => Some(Trusted::read(roots)?),
            _ => None,
        },
        checks_name: wanted.mode == Mode::VerifyFull,
        algorithms: provider.signature_verification_algorithms,
    };
    let failed =
        |e: rustls::Error| Error::Config(format!("preparing an encrypted connection: {e}"));
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(judge));
    let config = match &wanted.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates("sslcert", certificate)?;
            let key =
                PrivateKeyDer::from_pem_file(key).map_err(|e| unreadable("sslkey", key, &e))?;
            builder.with_client_auth_cert(chain, key).map_err(failed)?
        }
    };
    Ok(MakeRustlsConnect::new(config))
}

/// Looks at what a server shows.
#[derive(Debug)]
struct Judge {
    /// None: anybody's certificate will do.
    trusted: Option<Trusted>,
    /// Whether it has to be for the host that was asked for.
    checks_name: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
struct Trusted {
    roots: RootCertStore,
    /// As they were read.
    certificates: Vec<CertificateDer<'static>>,
}

impl Trusted {
    fn read(roots: &Roots) -> Result<Self, Error> {
        let certificates = match roots {
            Roots::File(path) => certificates("sslrootcert", path)?,
            Roots::System => rustls_native_certs::load_native_certs().certs,
        };
        let mut roots = RootCertStore::empty();
        let (taken, _) = roots.add_parsable_certificates(certificates.iter().cloned());
        if taken == 0 {
            return Err(Error::Config(
                "sslrootcert holds no certificate that can be used to verify a server".into(),
            ));
        }
        Ok(Self {
            roots,
            certificates,
        })
    }
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| unreadable(key, path, &e))
}

fn unreadable(key: &str, path: &Path, e: &rustls::pki_types::pem::Error) -> Error {
    Error::Config(format!("{key}: {} cannot be read: {e}", path.display()))
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(trusted) = &self.trusted else {
            return Ok(ServerCertVerified::assertion());
        };
        let certificate = ParsedCertificate::try_from(shown)?;
        let verdict = verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &trusted.roots,
            others,
            now,
            self.algorithms.all,
        );
        match verdict {
            // What PostgreSQL's own manual tells to make is both an authority and the server's certificate. Where it is
            // the very one that we were told to trust, that is all it is found fault with.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_)))
                if trusted.certificates.iter().any(|known| known == shown) => {}
            verdict => verdict?,
        }
        if self.checks_name {
            verify_server_name(&certificate, host)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
