//! TLS of an invitation: the joining side has no certificate yet, and knows the CA by its fingerprint only.
//!
//! Decides that: the inviter shows its own certificate and the CA's behind it; the joining side takes the one CA that has the fingerprint and
//! then checks all that it would check with a CA of its own (chain, time, and that the certificate names the inviter). Who may join is told by
//! the token, inside ([`crate::ops::membership`]). TLS 1.3 only.

use super::tls::{TlsError, ca_cert_file, cert_file, key_file, provider};
use crate::base::RegionName;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme, version};
use std::path::Path;
use std::sync::Arc;

/// Protocol and version of a join.
pub const JOIN_ALPN: &[u8] = b"parhelion-join/1";

/// SHA-256 of a certificate: what a token knows a CA by.
#[must_use]
pub fn fingerprint(cert: &CertificateDer<'_>) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, cert.as_ref());
    digest.as_ref().try_into().expect("BUG: SHA-256 has 32 bytes")
}

/// The inviting side, and the CA's fingerprint.
///
/// # Errors
/// [`TlsError`]: the files are not there, or cannot be used.
pub fn inviter(dir: &Path, region: &RegionName, config: &Path) -> Result<(Arc<ServerConfig>, [u8; 32]), TlsError> {
    let read = |file: std::path::PathBuf| {
        let parsed = CertificateDer::from_pem_file(&file);
        parsed.map_err(|e| TlsError::Malformed { file, what: "certificate", reason: e.to_string(), config: config.to_path_buf() })
    };
    let ca = read(ca_cert_file(dir))?;
    let leaf = read(cert_file(dir, region))?;
    let key_path = key_file(dir, region);
    let key = PrivateKeyDer::from_pem_file(&key_path).map_err(|e| TlsError::Malformed {
        file: key_path.clone(),
        what: "private key",
        reason: e.to_string(),
        config: config.to_path_buf(),
    })?;
    let refused = |e: &dyn std::fmt::Display| TlsError::Refused { file: cert_file(dir, region), reason: e.to_string() };
    let ca_sha256 = fingerprint(&ca);
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|e| refused(&e))?
        .with_no_client_auth()
        .with_single_cert(vec![leaf, ca], key)
        .map_err(|e| refused(&e))?;
    server.alpn_protocols = vec![JOIN_ALPN.to_vec()];
    server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok((Arc::new(server), ca_sha256))
}

/// The joining side.
#[must_use]
pub fn joiner(ca_sha256: [u8; 32]) -> Arc<ClientConfig> {
    let mut client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .expect("BUG: the provider has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ByFingerprint { ca_sha256 }))
        .with_no_client_auth();
    client.alpn_protocols = vec![JOIN_ALPN.to_vec()];
    client.resumption = rustls::client::Resumption::disabled();
    Arc::new(client)
}

/// Trusts the one CA that has the fingerprint, and nobody else.
#[derive(Debug)]
struct ByFingerprint {
    ca_sha256: [u8; 32],
}

impl ServerCertVerifier for ByFingerprint {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        shown: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let unknown = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let ca = shown.iter().find(|c| fingerprint(c) == self.ca_sha256).ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().map_err(|_| unknown())?;
        verifier.verify_server_cert(leaf, &[], name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
