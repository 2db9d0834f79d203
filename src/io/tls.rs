//! TLS material of one region: the CA of the global cluster, this region's certificate and key, and the configurations
//! made from them.
//!
//! Decides: whether the files on disk are fit to start with, and which region a peer's certificate names. Never decides
//! what a peer may then do ([`crate::io::link`]), and never writes a file (`parhelion certs` does). Every configuration
//! names its crypto provider: with two providers in the build rustls would otherwise panic at run time.

use crate::base::{ClusterName, RegionName, UnixMicros};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use webpki::{EndEntityCert, KeyUsage};

/// Protocol and version between regions. Both sides must offer the same, or the handshake fails.
pub const ALPN: &[u8] = b"parhelion/1";

/// The same between a region and its copies on other machines.
pub const COPY_ALPN: &[u8] = b"parhelion-copy/4";

const DOMAIN: &str = "parhelion.internal";

/// What a certificate is asked for: `<region>.<cluster>.parhelion.internal`.
#[must_use]
pub fn dns_name(cluster: &ClusterName, region: &RegionName) -> String {
    format!("{region}.{cluster}.{DOMAIN}")
}

/// What the certificate of a region's storage nodes is asked for: `copies.<region>.<cluster>.parhelion.internal`. It has a label more
/// than a region's, so that neither is ever taken for the other.
#[must_use]
pub fn copies_dns_name(cluster: &ClusterName, region: &RegionName) -> String {
    format!("copies.{}", dns_name(cluster, region))
}

/// What the certificate of a witness is asked for: `witness.<name>.<cluster>.parhelion.internal`. A label more than a region's, for the same
/// reason: a witness votes, and nothing that is a region's is ever its.
#[must_use]
pub fn witness_dns_name(cluster: &ClusterName, witness: &RegionName) -> String {
    format!("witness.{}", dns_name(cluster, witness))
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The region process.
    Region,
    /// The processes that hold copies of this region on other machines.
    Copies,
    /// A voter without data. Its name is one among those of the regions.
    Witness,
}

impl Subject {
    #[must_use]
    pub fn dns_name(self, cluster: &ClusterName, region: &RegionName) -> String {
        match self {
            Subject::Region => dns_name(cluster, region),
            Subject::Copies => copies_dns_name(cluster, region),
            Subject::Witness => witness_dns_name(cluster, region),
        }
    }

    /// `<region>.pem`, `<region>.copies.pem`, `<name>.witness.pem`: no name has a dot.
    #[must_use]
    pub fn cert_file(self, dir: &Path, region: &RegionName) -> PathBuf {
        match self {
            Subject::Region => cert_file(dir, region),
            Subject::Copies => dir.join(format!("{region}.copies.pem")),
            Subject::Witness => dir.join(format!("{region}.witness.pem")),
        }
    }

    #[must_use]
    pub fn key_file(self, dir: &Path, region: &RegionName) -> PathBuf {
        match self {
            Subject::Region => key_file(dir, region),
            Subject::Copies => dir.join(format!("{region}.copies.key")),
            Subject::Witness => dir.join(format!("{region}.witness.key")),
        }
    }

    /// Whether the certificate says this of `region`. Its chain must have been verified before.
    #[must_use]
    pub fn is_named_by(self, leaf: &CertificateDer<'_>, cluster: &ClusterName, region: &RegionName) -> bool {
        let name = ServerName::try_from(self.dns_name(cluster, region)).expect("BUG: region and cluster are DNS labels");
        EndEntityCert::try_from(leaf).is_ok_and(|cert| cert.verify_is_valid_for_subject_name(&name).is_ok())
    }
}

/// Where everything lies in the directory of `[tls] dir`.
#[must_use]
pub fn ca_cert_file(dir: &Path) -> PathBuf {
    dir.join("ca.pem")
}

/// Needed only to make certificates: by `parhelion certs`, and by a region process at the moment at which a region joins that it invited.
#[must_use]
pub fn ca_key_file(dir: &Path) -> PathBuf {
    dir.join("ca.key")
}

#[must_use]
pub fn cert_file(dir: &Path, region: &RegionName) -> PathBuf {
    dir.join(format!("{region}.pem"))
}

#[must_use]
pub fn key_file(dir: &Path, region: &RegionName) -> PathBuf {
    dir.join(format!("{region}.key"))
}

/// Why the certificates of a region cannot be used. Each says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{} does not exist; run: parhelion certs --config {}", file.display(), config.display())]
    Missing { file: PathBuf, config: PathBuf },
    #[error("{} cannot be read: {source}; the user who runs this region must be able to read it", file.display())]
    Unreadable { file: PathBuf, source: std::io::Error },
    #[error("{} holds no {what} in PEM form ({reason}); restore it, or remove it and run: parhelion certs --config {}", file.display(), config.display())]
    Malformed { file: PathBuf, what: &'static str, reason: String, config: PathBuf },
    #[error("{} can be read by other users (mode {mode:04o}); run: chmod 600 {}", file.display(), file.display())]
    KeyExposed { file: PathBuf, mode: u32 },
    #[error("{} does not belong to {}; run: parhelion certs --config {} --renew", key.display(), cert.display(), config.display())]
    KeyMismatch { cert: PathBuf, key: PathBuf, config: PathBuf },
    #[error("the certificate {} expired {days} days ago; run: parhelion certs --config {} --renew", file.display(), config.display())]
    Expired { file: PathBuf, days: i64, config: PathBuf },
    #[error("the certificate {} is not valid yet; check this machine's clock", file.display())]
    NotYetValid { file: PathBuf },
    #[error("the certificate {} was not issued by {}; every region needs the ca.pem its certificate was made with; run: parhelion certs --config {} --renew", file.display(), ca.display(), config.display())]
    OtherCa { file: PathBuf, ca: PathBuf, config: PathBuf },
    #[error("the certificate {} is for {presented}, and this is {expected}; check `cluster`, `region` and [tls] dir in {}", file.display(), config.display())]
    OtherIdentity { file: PathBuf, presented: String, expected: String, config: PathBuf },
    #[error("the TLS library refuses the certificate {}: {reason}", file.display())]
    Refused { file: PathBuf, reason: String },
}

/// Whom a certificate (already verified against the CA) names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerIdentity {
    /// A member of this global cluster.
    Region(RegionName),
    /// The witness of this global cluster: it votes and may do nothing else.
    Witness(RegionName),
    /// A name of ours, but of another cluster. Holds the name.
    WrongCluster(String),
    /// This cluster, but no member by that name. Holds the name; empty when the certificate has none of ours.
    UnknownRegion(String),
}

/// Which of `members`, or that it is `witness`, the certificate says. The certificate's chain must have been verified before.
#[must_use]
pub fn identify(leaf: &CertificateDer<'_>, cluster: &ClusterName, members: &[RegionName], witness: Option<&RegionName>) -> PeerIdentity {
    let Ok(cert) = EndEntityCert::try_from(leaf) else { return PeerIdentity::UnknownRegion(String::new()) };
    for region in members {
        let name = ServerName::try_from(dns_name(cluster, region)).expect("BUG: region and cluster are DNS labels");
        if cert.verify_is_valid_for_subject_name(&name).is_ok() {
            return PeerIdentity::Region(region.clone());
        }
    }
    if let Some(witness) = witness.filter(|w| Subject::Witness.is_named_by(leaf, cluster, w)) {
        return PeerIdentity::Witness(witness.clone());
    }
    // Only to say what it was; nothing is allowed because of it.
    match cert.valid_dns_names().find(|name| name.ends_with(DOMAIN)) {
        Some(name) if name.ends_with(&format!(".{cluster}.{DOMAIN}")) => PeerIdentity::UnknownRegion(name.to_owned()),
        Some(name) => PeerIdentity::WrongCluster(name.to_owned()),
        None => PeerIdentity::UnknownRegion(String::new()),
    }
}

/// When the certificate ends. Asks the verifier about the end of time and takes the answer from its refusal, so that no
/// second DER parser is needed. `None` when the bytes are not a certificate.
#[must_use]
pub fn not_after(cert: &CertificateDer<'_>) -> Option<UnixMicros> {
    let parsed = EndEntityCert::try_from(cert).ok()?;
    match verify(&parsed, &[], UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX)), KeyUsage::server_auth()) {
        Err(webpki::Error::CertExpired { not_after, .. }) => Some(UnixMicros(not_after.as_secs().saturating_mul(1_000_000))),
        _ => None,
    }
}

/// How loudly it is said that a certificate ends in so many days; `None`: not yet.
#[must_use]
pub fn expiry_tone(days: i64) -> Option<&'static str> {
    match days {
        ..=1 => Some("URGENT: "),
        2..=7 => Some("soon: "),
        8..=14 => Some("attention: "),
        15..=30 => Some(""),
        _ => None,
    }
}

/// Whole days from `now` to `end`, rounded down; negative when it is over.
#[must_use]
pub fn days_between(now: UnixMicros, end: UnixMicros) -> i64 {
    end.micros_since(now).div_euclid(86_400_000_000)
}

fn verify(
    cert: &EndEntityCert<'_>,
    roots: &[rustls::pki_types::TrustAnchor<'_>],
    at: UnixTime,
    usage: KeyUsage,
) -> Result<(), webpki::Error> {
    let algorithms = provider().signature_verification_algorithms.all;
    cert.verify_for_usage(algorithms, roots, &[], at, usage, None, None).map(|_| ())
}

fn unix_time(at: UnixMicros) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_micros(at.0))
}

/// The one crypto provider of this program.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// True when `cert` is within its time and issued by `ca`, for both sides of a connection.
#[must_use]
pub fn issued_by(cert: &CertificateDer<'_>, ca: &CertificateDer<'_>, now: UnixMicros) -> bool {
    let (Ok(parsed), Ok(anchor)) = (EndEntityCert::try_from(cert), webpki::anchor_from_trusted_cert(ca)) else { return false };
    let roots = [anchor];
    [KeyUsage::server_auth(), KeyUsage::client_auth()].into_iter().all(|usage| verify(&parsed, &roots, unix_time(now), usage).is_ok())
}

/// True when the private key belongs to the certificate.
#[must_use]
pub fn key_matches(cert: &CertificateDer<'static>, key: PrivateKeyDer<'static>) -> bool {
    CertifiedKey::from_der(vec![cert.clone()], key, &provider()).is_ok()
}

/// Everything that TLS needs in one region, read and checked once at start.
pub struct Material {
    subject: Subject,
    cluster: ClusterName,
    region: RegionName,
    not_after: UnixMicros,
    quic_server: Arc<ServerConfig>,
    quic_client: Arc<ClientConfig>,
    postgres: Arc<ServerConfig>,
    reset_secret: [u8; 32],
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material").field("cluster", &self.cluster).field("region", &self.region).finish_non_exhaustive()
    }
}

impl Material {
    /// Reads `ca.pem`, `<region>.pem` and `<region>.key` in `dir` and checks all that a peer would check, so that a mistake
    /// shows here with a remedy and not there as a failed handshake. `config` is named in the errors.
    ///
    /// # Errors
    /// [`TlsError`]: a file is missing, unreadable, not PEM or exposed; the key is another's; the certificate is not
    /// valid now, not of this CA, or not of this region and cluster.
    pub fn load(dir: &Path, cluster: &ClusterName, region: &RegionName, config: &Path, now: UnixMicros) -> Result<Material, TlsError> {
        Material::load_as(Subject::Region, dir, cluster, region, config, now)
    }

    /// As [`Material::load`], of a region or of its storage nodes.
    ///
    /// # Errors
    /// As [`Material::load`].
    pub fn load_as(
        subject: Subject,
        dir: &Path,
        cluster: &ClusterName,
        region: &RegionName,
        config: &Path,
        now: UnixMicros,
    ) -> Result<Material, TlsError> {
        let config = config.to_path_buf();
        let (ca_path, cert_path, key_path) = (ca_cert_file(dir), subject.cert_file(dir, region), subject.key_file(dir, region));
        let cas = certificates(&ca_path, &config)?;
        let chain = certificates(&cert_path, &config)?;
        let key_pem = read(&key_path, &config)?;
        refuse_exposed(&key_path)?;
        let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|e| TlsError::Malformed {
            file: key_path.clone(),
            what: "private key",
            reason: e.to_string(),
            config: config.clone(),
        })?;
        let leaf = chain[0].clone();
        let refused = |e: &dyn std::fmt::Display| TlsError::Refused { file: cert_path.clone(), reason: e.to_string() };

        let mut roots = RootCertStore::empty();
        for ca in cas {
            roots.add(ca).map_err(|e| TlsError::Refused { file: ca_path.clone(), reason: e.to_string() })?;
        }
        let parsed = EndEntityCert::try_from(&leaf).map_err(|e| refused(&e))?;
        for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
            verify(&parsed, &roots.roots, unix_time(now), usage).map_err(|e| match e {
                webpki::Error::CertExpired { not_after, .. } => {
                    let end = UnixMicros(not_after.as_secs().saturating_mul(1_000_000));
                    TlsError::Expired { file: cert_path.clone(), days: days_between(end, now), config: config.clone() }
                }
                webpki::Error::CertNotValidYet { .. } => TlsError::NotYetValid { file: cert_path.clone() },
                // Two CAs of the same cluster name differ only in their key, hence the second.
                webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                    TlsError::OtherCa { file: cert_path.clone(), ca: ca_path.clone(), config: config.clone() }
                }
                other => refused(&other),
            })?;
        }
        if !subject.is_named_by(&leaf, cluster, region) {
            let presented = parsed.valid_dns_names().find(|name| name.ends_with(DOMAIN)).unwrap_or("no region").to_owned();
            let expected = subject.dns_name(cluster, region);
            return Err(TlsError::OtherIdentity { file: cert_path, presented, expected, config });
        }
        if !key_matches(&leaf, key.clone_key()) {
            return Err(TlsError::KeyMismatch { cert: cert_path, key: key_path, config });
        }
        let end = not_after(&leaf).ok_or_else(|| refused(&"it has no end of validity"))?;
        let secret = aws_lc_rs_digest(key.secret_der());
        let roots = Arc::new(roots);
        Ok(Material {
            subject,
            cluster: cluster.clone(),
            region: region.clone(),
            not_after: end,
            quic_server: quic_server(&roots, &chain, &key).map_err(|e| refused(&e))?,
            quic_client: quic_client(&roots, &chain, &key).map_err(|e| refused(&e))?,
            postgres: postgres(chain, key).map_err(|e| refused(&e))?,
            reset_secret: secret,
        })
    }

    /// What this certificate says its holder is.
    #[must_use]
    pub fn subject(&self) -> Subject {
        self.subject
    }

    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    #[must_use]
    pub fn region(&self) -> &RegionName {
        &self.region
    }

    /// Whole days until this region's certificate ends.
    #[must_use]
    pub fn days_left(&self, now: UnixMicros) -> i64 {
        days_between(now, self.not_after)
    }

    /// A sentence from 30 days before the end on, for the log at start and once a day (`ops::expiry`). `config` is the file to name.
    #[must_use]
    pub fn expiry_warning(&self, now: UnixMicros, config: &Path) -> Option<String> {
        let days = self.days_left(now);
        let tone = expiry_tone(days)?;
        let region = &self.region;
        Some(format!(
            "{tone}the certificate of {region} ends in {days} days, and other regions refuse it then; run: parhelion certs --config {} --renew",
            config.display()
        ))
    }

    /// TLS 1.3, a certificate of this CA required, no resumption (a resumed session would outlive its certificate).
    #[must_use]
    pub fn quic_server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.quic_server)
    }

    #[must_use]
    pub fn quic_client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.quic_client)
    }

    /// For the PostgreSQL ports: TLS 1.2 and 1.3 with the same certificate; clients show none (they have passwords).
    #[must_use]
    pub fn postgres(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.postgres)
    }

    /// Survives a restart of the process: lets it tell a peer at once that the old connection is gone.
    #[must_use]
    pub(crate) fn reset_secret(&self) -> &[u8; 32] {
        &self.reset_secret
    }
}

fn aws_lc_rs_digest(key: &[u8]) -> [u8; 32] {
    let mut context = ::aws_lc_rs::digest::Context::new(&::aws_lc_rs::digest::SHA256);
    context.update(b"parhelion stateless reset\0");
    context.update(key);
    context.finish().as_ref().try_into().expect("BUG: SHA-256 is 32 bytes")
}

fn read(file: &Path, config: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(file).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => TlsError::Missing { file: file.to_path_buf(), config: config.to_path_buf() },
        _ => TlsError::Unreadable { file: file.to_path_buf(), source },
    })
}

fn certificates(file: &Path, config: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let malformed =
        |reason: String| TlsError::Malformed { file: file.to_path_buf(), what: "certificate", reason, config: config.to_path_buf() };
    let pem = read(file, config)?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().map_err(|e| malformed(e.to_string()))?;
    if found.is_empty() { Err(malformed("it is empty or something else".to_owned())) } else { Ok(found) }
}

/// A private key that others can read is no secret: refused rather than warned about, the remedy is one command.
fn refuse_exposed(file: &Path) -> Result<(), TlsError> {
    let metadata = std::fs::metadata(file).map_err(|source| TlsError::Unreadable { file: file.to_path_buf(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(TlsError::KeyExposed { file: file.to_path_buf(), mode }) }
}

fn quic_server(
    roots: &Arc<RootCertStore>,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider())
        .build()
        .map_err(|e| rustls::Error::General(e.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.to_vec(), key.clone_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn quic_client(
    roots: &Arc<RootCertStore>,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_root_certificates(Arc::clone(roots))
        .with_client_auth_cert(chain.to_vec(), key.clone_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

fn postgres(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS12, &version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    // libpq offers this name when it begins with TLS; a client that offers none is served as well.
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(Arc::new(config))
}
