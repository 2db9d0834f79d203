//! `parhelion certs`: makes the CA of a global cluster, one certificate per region, and the SQL password.
//!
//! Decides: what is missing or unusable and therefore made. Never replaces a file that is fit unless asked (`renew`), and
//! never the CA: running it again is always safe. [`joining`] has those of regions that are invited. A crash between two files leaves a pair that does not match, which the
//! next run sees and makes anew. Private files are created with mode 0600, never widened and narrowed afterwards.

mod joining;

pub use joining::{install, issue, request};

use crate::base::{ClusterName, RegionName, UnixMicros};
use crate::io::tls::{self, Subject};
use base64::Engine as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file with the generated password of the SQL user, in the directory of the certificates.
pub const PASSWORD_FILE: &str = "sql-password";

const CA_DAYS: u32 = 3650;

/// How `parhelion certs` was asked.
#[derive(Clone, Debug)]
pub struct CertOptions {
    /// Validity of a region's certificate, 1 to 3650.
    pub days: u32,
    /// Make the regions' certificates (and keys) anew, with the same CA, even where they are fit.
    pub renew: bool,
    /// The time the certificates begin.
    pub now: UnixMicros,
    /// Regions with copies on other machines: their storage nodes get a certificate as well.
    pub copies_of: Vec<RegionName>,
    /// The witness of the global cluster gets a certificate as well.
    pub witness: Option<RegionName>,
}

impl CertOptions {
    /// A year, and only what is missing.
    #[must_use]
    pub fn new(now: UnixMicros) -> CertOptions {
        CertOptions { days: 365, renew: false, now, copies_of: Vec::new(), witness: None }
    }
}

/// What `parhelion certs` did.
#[derive(Clone, Debug, serde::Serialize)]
pub struct CertReport {
    pub dir: PathBuf,
    pub created: Vec<PathBuf>,
    pub kept: Vec<PathBuf>,
    /// Of each region's certificate, whole days until it ends.
    pub days_left: Vec<(RegionName, i64)>,
}

impl std::fmt::Display for CertReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for file in &self.created {
            writeln!(f, "created {}", file.display())?;
        }
        for file in &self.kept {
            writeln!(f, "kept    {}", file.display())?;
        }
        for (region, days) in &self.days_left {
            writeln!(f, "the certificate of {region} is valid for {days} more days")?;
        }
        Ok(())
    }
}

/// Why certificates could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    #[error("{} cannot be {action}: {source}", file.display())]
    File { file: PathBuf, action: &'static str, source: std::io::Error },
    #[error("{} is not what it should be ({reason}); restore it from a copy, or move the whole directory away to begin with a new CA", file.display())]
    Malformed { file: PathBuf, reason: String },
    #[error(
        "{} is needed to make certificates and is not here; bring the CA's key to this directory for the time of this command", file.display()
    )]
    NoCaKey { file: PathBuf },
    #[error("{} is not the CA of cluster {cluster}; each global cluster has its own directory of certificates", file.display())]
    OtherCa { file: PathBuf, cluster: ClusterName },
    #[error("certificates are valid for 1 to {CA_DAYS} days, not for {given}")]
    Days { given: u32 },
    #[error("the certificate of {what} could not be made: {reason}")]
    Generate { what: String, reason: String },
}

/// Makes what is missing in `dir`: CA, a certificate and key per region, the SQL password.
///
/// # Errors
/// [`CertsError`]: a file cannot be read or written, an existing one is not usable, the CA's key is elsewhere.
pub fn create(dir: &Path, cluster: &ClusterName, regions: &[RegionName], options: &CertOptions) -> Result<CertReport, CertsError> {
    if options.days == 0 || options.days > CA_DAYS {
        return Err(CertsError::Days { given: options.days });
    }
    if !dir.exists() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| CertsError::File {
            file: dir.to_path_buf(),
            action: "created",
            source,
        })?;
    }
    let mut report = CertReport { dir: dir.to_path_buf(), created: Vec::new(), kept: Vec::new(), days_left: Vec::new() };
    let ca = authority(dir, cluster, options, &mut report)?;
    for region in regions {
        leaf(Subject::Region, dir, cluster, region, &ca, options, &mut report)?;
    }
    for region in &options.copies_of {
        leaf(Subject::Copies, dir, cluster, region, &ca, options, &mut report)?;
    }
    if let Some(witness) = &options.witness {
        leaf(Subject::Witness, dir, cluster, witness, &ca, options, &mut report)?;
    }
    let password = dir.join(PASSWORD_FILE);
    if exists(&password)? {
        report.kept.push(password);
    } else {
        // 18 random bytes are 24 characters, none of which needs quoting in a URL.
        let mut secret = [0; 18];
        aws_lc_rs::rand::fill(&mut secret).map_err(|e| generate("the SQL password", &e))?;
        let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(secret);
        write_new(&password, format!("{text}\n").as_bytes(), 0o600)?;
        report.created.push(password);
    }
    Ok(report)
}

struct Authority {
    cert: CertificateDer<'static>,
    /// Absent when the CA's key is kept elsewhere, which is good practice once every region has its certificate.
    issuer: Option<Issuer<'static, KeyPair>>,
}

fn authority(dir: &Path, cluster: &ClusterName, options: &CertOptions, report: &mut CertReport) -> Result<Authority, CertsError> {
    let (cert_path, key_path) = (tls::ca_cert_file(dir), tls::ca_key_file(dir));
    let key = if exists(&key_path)? {
        report.kept.push(key_path.clone());
        let pem = read(&key_path)?;
        let key = KeyPair::from_pem(&pem).map_err(|e| CertsError::Malformed { file: key_path.clone(), reason: e.to_string() })?;
        Some(key)
    } else if exists(&cert_path)? {
        None
    } else {
        let key = new_key("the CA")?;
        write_new(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
        report.created.push(key_path.clone());
        Some(key)
    };
    // The issuer is rebuilt from the cluster's name, not read from ca.pem: the name is all that a CA of ours carries.
    let params = ca_params(cluster, options.now);
    if exists(&cert_path)? {
        report.kept.push(cert_path.clone());
    } else {
        let key = key.as_ref().expect("BUG: without ca.pem the key was read or made above");
        let cert = params.self_signed(key).map_err(|e| generate("the CA", &e))?;
        write_new(&cert_path, cert.pem().as_bytes(), 0o644)?;
        report.created.push(cert_path.clone());
    }
    let cert = CertificateDer::from_pem_slice(read(&cert_path)?.as_bytes())
        .map_err(|e| CertsError::Malformed { file: cert_path.clone(), reason: e.to_string() })?;
    if let Some(key) = &key
        && !tls::key_matches(&cert, pkcs8(key))
    {
        return Err(CertsError::Malformed { file: key_path, reason: format!("it is not the key of {}", cert_path.display()) });
    }
    Ok(Authority { cert, issuer: key.map(|key| Issuer::new(params, key)) })
}

fn leaf(
    subject: Subject,
    dir: &Path,
    cluster: &ClusterName,
    region: &RegionName,
    ca: &Authority,
    options: &CertOptions,
    report: &mut CertReport,
) -> Result<(), CertsError> {
    let (cert_path, key_path) = (subject.cert_file(dir, region), subject.key_file(dir, region));
    if !options.renew
        && let Some(cert) = fit(subject, dir, cluster, region, ca, options.now)?
    {
        report.kept.extend([cert_path, key_path]);
        if subject != Subject::Copies {
            report.days_left.push((region.clone(), tls::not_after(&cert).map_or(0, |end| tls::days_between(options.now, end))));
        }
        return Ok(());
    }
    let Some(issuer) = &ca.issuer else { return Err(CertsError::NoCaKey { file: tls::ca_key_file(dir) }) };
    let key = new_key(region.as_str())?;
    let cert = leaf_params(subject, cluster, region, options)
        .and_then(|params| params.signed_by(&key, issuer))
        .map_err(|e| generate(region.as_str(), &e))?;
    if !tls::issued_by(cert.der(), &ca.cert, options.now) {
        return Err(CertsError::OtherCa { file: tls::ca_cert_file(dir), cluster: cluster.clone() });
    }
    replace(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
    replace(&cert_path, cert.pem().as_bytes(), 0o644)?;
    if subject != Subject::Copies {
        report.days_left.push((region.clone(), i64::from(options.days)));
    }
    report.created.extend([cert_path, key_path]);
    Ok(())
}

/// The existing certificate when it is complete, in time, of this CA and of this region.
fn fit(
    subject: Subject,
    dir: &Path,
    cluster: &ClusterName,
    region: &RegionName,
    ca: &Authority,
    now: UnixMicros,
) -> Result<Option<CertificateDer<'static>>, CertsError> {
    let (cert_path, key_path) = (&subject.cert_file(dir, region), &subject.key_file(dir, region));
    if !exists(cert_path)? || !exists(key_path)? {
        return Ok(None);
    }
    let Ok(cert) = CertificateDer::from_pem_slice(read(cert_path)?.as_bytes()) else { return Ok(None) };
    let Ok(key) = PrivateKeyDer::from_pem_slice(read(key_path)?.as_bytes()) else { return Ok(None) };
    let named = subject.is_named_by(&cert, cluster, region);
    Ok((named && tls::issued_by(&cert, &ca.cert, now) && tls::key_matches(&cert, key)).then_some(cert))
}

fn ca_params(cluster: &ClusterName, now: UnixMicros) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Parhelion");
    params.distinguished_name.push(DnType::CommonName, format!("CA of the global cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now, CA_DAYS);
    params
}

fn leaf_params(
    subject: Subject,
    cluster: &ClusterName,
    region: &RegionName,
    options: &CertOptions,
) -> Result<CertificateParams, rcgen::Error> {
    // The first name is the identity; the others are how a PostgreSQL client on this machine calls a region.
    let mut names = vec![subject.dns_name(cluster, region)];
    let whose = match subject {
        Subject::Region => {
            names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
            format!("region {region} of {cluster}")
        }
        Subject::Copies => format!("copies of region {region} of {cluster}"),
        Subject::Witness => format!("witness {region} of {cluster}"),
    };
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Parhelion");
    params.distinguished_name.push(DnType::CommonName, whose);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, options.now, options.days);
    Ok(params)
}

/// Begins an hour early, for clocks that differ.
fn set_validity(params: &mut CertificateParams, now: UnixMicros, days: u32) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now_secs = now.0 / 1_000_000;
    params.not_before = epoch + Duration::from_secs(now_secs.saturating_sub(3600));
    params.not_after = epoch + Duration::from_secs(now_secs + u64::from(days) * 86_400);
}

fn new_key(whose: &str) -> Result<KeyPair, CertsError> {
    KeyPair::generate().map_err(|e| generate(whose, &e))
}

fn pkcs8(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(key.serialize_der().into())
}

fn generate(what: &str, reason: &dyn std::fmt::Display) -> CertsError {
    CertsError::Generate { what: what.to_owned(), reason: reason.to_string() }
}

fn file_error(file: &Path, action: &'static str) -> impl Fn(std::io::Error) -> CertsError {
    let file = file.to_path_buf();
    move |source| CertsError::File { file: file.clone(), action, source }
}

fn exists(file: &Path) -> Result<bool, CertsError> {
    file.try_exists().map_err(file_error(file, "looked up"))
}

fn read(file: &Path) -> Result<String, CertsError> {
    std::fs::read_to_string(file).map_err(file_error(file, "read"))
}

/// Complete or absent after a crash: written beside, synced, then linked to its name, which fails when the name exists.
fn write_new(file: &Path, bytes: &[u8], mode: u32) -> Result<(), CertsError> {
    let beside = write_beside(file, bytes, mode)?;
    let linked = std::fs::hard_link(&beside, file);
    std::fs::remove_file(&beside).map_err(file_error(&beside, "removed"))?;
    linked.map_err(file_error(file, "created"))
}

fn replace(file: &Path, bytes: &[u8], mode: u32) -> Result<(), CertsError> {
    let beside = write_beside(file, bytes, mode)?;
    std::fs::rename(&beside, file).map_err(file_error(file, "replaced"))
}

fn write_beside(file: &Path, bytes: &[u8], mode: u32) -> Result<PathBuf, CertsError> {
    let mut name = file.file_name().expect("BUG: a file in the directory of certificates").to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let beside = file.with_file_name(name);
    match std::fs::remove_file(&beside) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(file_error(&beside, "removed")(e)),
        _ => {}
    }
    let mut out =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside).map_err(file_error(&beside, "created"))?;
    out.write_all(bytes).and_then(|()| out.sync_all()).map_err(file_error(&beside, "written"))?;
    Ok(beside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::clock::unix_now;
    use std::os::unix::fs::PermissionsExt as _;

    fn cluster() -> ClusterName {
        ClusterName::new("sun").unwrap()
    }

    fn regions(names: &[&str]) -> Vec<RegionName> {
        names.iter().map(|n| RegionName::new(n).unwrap()).collect()
    }

    fn mode(file: &Path) -> u32 {
        std::fs::metadata(file).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_second_run_keeps_everything_and_adds_a_new_region() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("certs");
        let options = CertOptions::new(unix_now());
        let first = create(&dir, &cluster(), &regions(&["us-east", "eu-west"]), &options).unwrap();
        assert_eq!(first.created.len(), 7);
        assert_eq!(mode(&dir), 0o700);
        for secret in ["ca.key", "us-east.key", "eu-west.key", PASSWORD_FILE] {
            assert_eq!(mode(&dir.join(secret)), 0o600, "{secret}");
        }
        assert_eq!(std::fs::read_to_string(dir.join(PASSWORD_FILE)).unwrap().trim().len(), 24);
        let before = std::fs::read(dir.join("us-east.pem")).unwrap();

        let second = create(&dir, &cluster(), &regions(&["us-east", "eu-west", "ap-northeast"]), &options).unwrap();
        assert_eq!(second.created, [dir.join("ap-northeast.pem"), dir.join("ap-northeast.key")]);
        assert_eq!(second.kept.len(), 7);
        assert_eq!(std::fs::read(dir.join("us-east.pem")).unwrap(), before);
        let left: Vec<i64> = second.days_left.iter().map(|d| d.1).collect();
        assert!(left.iter().all(|d| (364..=365).contains(d)), "{left:?}");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 9, "nothing is left over");
    }

    #[test]
    fn what_a_crash_left_half_done_is_made_anew() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        let options = CertOptions::new(unix_now());
        create(dir, &cluster(), &regions(&["us-east", "eu-west"]), &options).unwrap();
        std::fs::copy(dir.join("eu-west.key"), dir.join("us-east.key")).unwrap();
        let again = create(dir, &cluster(), &regions(&["us-east", "eu-west"]), &options).unwrap();
        assert_eq!(again.created, [dir.join("us-east.pem"), dir.join("us-east.key")]);
        tls::Material::load(dir, &cluster(), &regions(&["us-east"])[0], Path::new("x.toml"), unix_now()).unwrap();
    }

    #[test]
    fn renewal_keeps_the_ca_and_another_cluster_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        let mut options = CertOptions::new(unix_now());
        create(dir, &cluster(), &regions(&["us-east"]), &options).unwrap();
        let (ca, leaf) = (std::fs::read(dir.join("ca.pem")).unwrap(), std::fs::read(dir.join("us-east.pem")).unwrap());
        options.renew = true;
        options.days = 30;
        create(dir, &cluster(), &regions(&["us-east"]), &options).unwrap();
        assert_eq!(std::fs::read(dir.join("ca.pem")).unwrap(), ca);
        assert_ne!(std::fs::read(dir.join("us-east.pem")).unwrap(), leaf);

        let moon = ClusterName::new("moon").unwrap();
        let refused = create(dir, &moon, &regions(&["us-east"]), &options).unwrap_err().to_string();
        assert!(refused.contains("is not the CA of cluster moon"), "{refused}");
        options.days = 0;
        assert!(matches!(create(dir, &cluster(), &[], &options), Err(CertsError::Days { given: 0 })));
    }

    #[test]
    fn without_the_ca_key_existing_certificates_are_kept_and_new_ones_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        let options = CertOptions::new(unix_now());
        create(dir, &cluster(), &regions(&["us-east"]), &options).unwrap();
        std::fs::remove_file(dir.join("ca.key")).unwrap();
        assert!(create(dir, &cluster(), &regions(&["us-east"]), &options).unwrap().created.is_empty());
        let refused = create(dir, &cluster(), &regions(&["eu-west"]), &options).unwrap_err();
        assert!(matches!(refused, CertsError::NoCaKey { .. }), "{refused}");
    }

    /// Loads `us-east` of `sun` from `dir`; the error as text.
    fn refused(dir: &Path, now: UnixMicros) -> String {
        tls::Material::load(dir, &cluster(), &regions(&["us-east"])[0], Path::new("x.toml"), now).unwrap_err().to_string()
    }

    #[test]
    fn a_missing_or_damaged_file_is_named_with_its_remedy() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        let now = unix_now();
        let make = || create(dir, &cluster(), &regions(&["us-east"]), &CertOptions::new(now)).unwrap();
        assert_eq!(refused(dir, now), format!("{} does not exist; run: parhelion certs --config x.toml", dir.join("ca.pem").display()));
        make();
        for file in ["us-east.pem", "us-east.key"] {
            std::fs::remove_file(dir.join(file)).unwrap();
            assert!(refused(dir, now).contains(&format!("{file} does not exist; run: parhelion certs")), "{file}");
            make();
            std::fs::write(dir.join(file), "hello").unwrap();
            assert!(refused(dir, now).contains("in PEM form"), "{file}: {}", refused(dir, now));
            make();
        }
        std::fs::set_permissions(dir.join("us-east.key"), std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(refused(dir, now).ends_with(&format!("run: chmod 600 {}", dir.join("us-east.key").display())));
    }

    #[test]
    fn a_certificate_out_of_place_or_time_is_refused_at_start() {
        let tmp = tempfile::tempdir().unwrap();
        let now = unix_now();
        let at = |days: i64| UnixMicros(now.0.checked_add_signed(days * 86_400_000_000).unwrap());
        let (dir, other) = (tmp.path().join("a"), tmp.path().join("b"));
        for d in [&dir, &other] {
            create(d, &cluster(), &regions(&["us-east", "eu-west"]), &CertOptions::new(now)).unwrap();
        }
        assert!(refused(&dir, at(366)).contains("us-east.pem expired 1 days ago; run: parhelion certs --config x.toml --renew"));
        assert!(refused(&dir, at(-1)).contains("is not valid yet; check this machine's clock"));
        let take = |from: &str, to: &str| std::fs::copy(other.join(from), dir.join(to)).unwrap();
        take("us-east.key", "us-east.key");
        assert!(refused(&dir, now).contains("us-east.key does not belong to"), "{}", refused(&dir, now));
        take("us-east.pem", "us-east.pem");
        assert!(refused(&dir, now).contains("was not issued by"), "{}", refused(&dir, now));
        take("ca.pem", "ca.pem");
        take("eu-west.pem", "us-east.pem");
        let wrong = refused(&dir, now);
        assert!(wrong.contains("is for eu-west.sun.parhelion.internal, and this is us-east.sun.parhelion.internal"), "{wrong}");
    }

    #[test]
    fn the_end_of_a_certificate_is_announced() {
        let tmp = tempfile::tempdir().unwrap();
        let now = unix_now();
        create(tmp.path(), &cluster(), &regions(&["us-east"]), &CertOptions::new(now)).unwrap();
        let config = Path::new("x.toml");
        let material = tls::Material::load(tmp.path(), &cluster(), &regions(&["us-east"])[0], config, now).unwrap();
        let after = |days: u64| UnixMicros(now.0 + days * 86_400_000_000);
        assert_eq!(material.expiry_warning(after(330), config), None);
        let warning = |days| material.expiry_warning(after(days), config).unwrap();
        assert!(warning(340).starts_with("the certificate of us-east ends in 24 days"), "{}", warning(340));
        assert!(warning(352).starts_with("attention: "), "{}", warning(352));
        assert!(warning(359).starts_with("soon: "));
        assert!(warning(364).starts_with("URGENT: "));
    }

    #[test]
    fn postgresql_clients_get_tls_for_localhost_with_and_without_its_own_name() {
        use rustls::pki_types::ServerName;
        use std::sync::Arc;
        let tmp = tempfile::tempdir().unwrap();
        create(tmp.path(), &cluster(), &regions(&["us-east"]), &CertOptions::new(unix_now())).unwrap();
        let material = tls::Material::load(tmp.path(), &cluster(), &regions(&["us-east"])[0], Path::new("x"), unix_now()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(tmp.path().join("ca.pem")).unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for (version, alpn) in [(&rustls::version::TLS12, None), (&rustls::version::TLS13, Some(b"postgresql".to_vec()))] {
            for name in ["localhost", "127.0.0.1", "us-east.sun.parhelion.internal"] {
                let mut client = rustls::ClientConfig::builder_with_provider(tls::provider())
                    .with_protocol_versions(&[version])
                    .unwrap()
                    .with_root_certificates(roots.clone())
                    .with_no_client_auth();
                client.alpn_protocols.extend(alpn.clone());
                let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
                let (near, far) = tokio::io::duplex(1 << 14);
                let both = async {
                    tokio::join!(
                        connector.connect(ServerName::try_from(name).unwrap(), near),
                        tokio_rustls::TlsAcceptor::from(material.postgres()).accept(far)
                    )
                };
                let (client, server) = runtime.block_on(both);
                client.unwrap();
                server.unwrap();
            }
        }
    }
}
