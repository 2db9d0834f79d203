//! Certificates of members that join, regions and witnesses: the request on their machine, the certificate on the inviter's.
//!
//! Decides what of a request counts: its key, and that whoever asks has it. Names, uses and times are the inviter's. A private key is made
//! where it stays; one that is there already is used again, so that a join that broke off goes on.

use super::{
    CertOptions, CertReport, CertsError, Subject, authority, exists, file_error, generate, leaf_params, new_key, read, replace, tls,
    write_new,
};
use crate::base::{ClusterName, RegionName, UnixMicros};
use rcgen::{CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, KeyPair};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

/// The request for a certificate of `name`, with the key that lies in `dir`, or a new one.
///
/// # Errors
/// [`CertsError`]: a file cannot be read or written, or is no key.
pub fn request(subject: Subject, dir: &Path, cluster: &ClusterName, name: &RegionName) -> Result<Vec<u8>, CertsError> {
    if !exists(dir)? {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(file_error(dir, "created"))?;
    }
    let file = subject.key_file(dir, name);
    let key = if exists(&file)? {
        let mode = std::fs::metadata(&file).map_err(file_error(&file, "looked up"))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let reason = format!("other users can read it (mode {mode:04o}), so it may be known: move it away");
            return Err(CertsError::Malformed { file, reason });
        }
        KeyPair::from_pem(&read(&file)?).map_err(|e| CertsError::Malformed { file: file.clone(), reason: e.to_string() })?
    } else {
        let key = new_key(name.as_str())?;
        write_new(&file, key.serialize_pem().as_bytes(), 0o600)?;
        key
    };
    let made = CertificateParams::new(vec![subject.dns_name(cluster, name)]).and_then(|mut params| {
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("{name} of {cluster}"));
        params.serialize_request(&key)
    });
    Ok(made.map_err(|e| generate(name.as_str(), &e))?.der().to_vec())
}

/// The certificate of `name` for the key of `csr`, and the CA's; both PEM.
///
/// # Errors
/// [`CertsError`]: the CA's key is not here, or what was sent is no request that its sender can have signed.
pub fn issue(
    subject: Subject,
    dir: &Path,
    cluster: &ClusterName,
    name: &RegionName,
    csr: &[u8],
    days: u32,
    now: UnixMicros,
) -> Result<(String, String), CertsError> {
    let (ca_file, ca_key) = (tls::ca_cert_file(dir), tls::ca_key_file(dir));
    // Never a new CA here.
    for file in [&ca_file, &ca_key] {
        if !exists(file)? {
            return Err(CertsError::NoCaKey { file: file.clone() });
        }
    }
    let given = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
        .map_err(|e| CertsError::Generate { what: name.to_string(), reason: format!("what was sent is no request for one: {e}") })?;
    let options = CertOptions { days, ..CertOptions::new(now) };
    let mut report = CertReport { dir: dir.to_path_buf(), created: Vec::new(), kept: Vec::new(), days_left: Vec::new() };
    let ca = authority(dir, cluster, &options, &mut report)?;
    let issuer = ca.issuer.as_ref().ok_or_else(|| CertsError::NoCaKey { file: ca_key.clone() })?;
    let cert = leaf_params(subject, cluster, name, &options)
        .and_then(|params| params.signed_by(&given.public_key, issuer))
        .map_err(|e| generate(name.as_str(), &e))?;
    if !tls::issued_by(cert.der(), &ca.cert, now) {
        return Err(CertsError::OtherCa { file: ca_file, cluster: cluster.clone() });
    }
    Ok((cert.pem(), read(&ca_file)?))
}

/// Puts what the inviter sent beside the key; the password of SQL where the member has a use for it.
///
/// # Errors
/// [`CertsError`]: another CA lies there, or the certificate is not for the key.
pub fn install(
    subject: Subject,
    dir: &Path,
    name: &RegionName,
    ca_pem: &str,
    certificate_pem: &str,
    sql_password: Option<&str>,
) -> Result<(), CertsError> {
    let ca_file = tls::ca_cert_file(dir);
    let malformed = |file: &Path, reason: String| CertsError::Malformed { file: file.to_path_buf(), reason };
    let sent = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| malformed(&ca_file, e.to_string()))?;
    if exists(&ca_file)? {
        let here = CertificateDer::from_pem_slice(read(&ca_file)?.as_bytes()).map_err(|e| malformed(&ca_file, e.to_string()))?;
        if here != sent {
            return Err(malformed(&ca_file, "it is the CA of another global cluster than the one that invites".into()));
        }
    } else {
        write_new(&ca_file, ca_pem.as_bytes(), 0o644)?;
    }
    replace(&subject.cert_file(dir, name), certificate_pem.as_bytes(), 0o644)?;
    let password = dir.join(super::PASSWORD_FILE);
    match sql_password {
        Some(sql_password) if !exists(&password)? => write_new(&password, format!("{sql_password}\n").as_bytes(), 0o600),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::clock;
    use crate::ops::certs::create;

    const REGION: Subject = Subject::Region;

    #[test]
    fn a_witness_gets_a_witnesss_certificate_whatever_it_asked_for_and_no_password() {
        let tmp = tempfile::tempdir().unwrap();
        let (here, there) = (tmp.path().join("here"), tmp.path().join("there"));
        let (cluster, name) = (ClusterName::new("sun").unwrap(), RegionName::new("w2").unwrap());
        create(&here, &cluster, &[RegionName::new("us-east").unwrap()], &CertOptions::new(clock::unix_now())).unwrap();
        let csr = request(Subject::Witness, &there, &cluster, &name).unwrap();
        let (pem, ca) = issue(Subject::Witness, &here, &cluster, &name, &csr, 30, clock::unix_now()).unwrap();
        install(Subject::Witness, &there, &name, &ca, &pem, None).unwrap();
        let (file, now) = (Path::new("x.toml"), clock::unix_now());
        tls::Material::load_as(Subject::Witness, &there, &cluster, &name, file, now).unwrap();
        assert!(!there.join(super::super::PASSWORD_FILE).exists() && !here.join("w2.witness.key").exists());
        // A request that names a region makes no region of an invited witness.
        let csr = request(REGION, &there, &cluster, &name).unwrap();
        let (pem, ca) = issue(Subject::Witness, &here, &cluster, &name, &csr, 30, now).unwrap();
        install(REGION, &there, &name, &ca, &pem, None).unwrap();
        let refused = tls::Material::load(&there, &cluster, &name, file, now).unwrap_err().to_string();
        assert!(refused.contains("is for witness.w2.sun."), "{refused}");
    }

    #[test]
    fn a_certificate_is_issued_for_a_key_that_is_only_there() {
        let tmp = tempfile::tempdir().unwrap();
        let (here, there) = (tmp.path().join("here"), tmp.path().join("there"));
        let (cluster, region) = (ClusterName::new("sun").unwrap(), RegionName::new("ap-south").unwrap());
        create(&here, &cluster, &[RegionName::new("us-east").unwrap()], &CertOptions::new(clock::unix_now())).unwrap();
        let csr = request(REGION, &there, &cluster, &region).unwrap();
        let key = Subject::Region.key_file(&there, &region);
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        let kept = std::fs::read(&key).unwrap();
        let (pem, ca) = issue(REGION, &here, &cluster, &region, &csr, 30, clock::unix_now()).unwrap();
        install(REGION, &there, &region, &ca, &pem, Some("secret")).unwrap();
        let file = Path::new("x.toml");
        tls::Material::load(&there, &cluster, &region, file, clock::unix_now()).unwrap();
        assert!(!Subject::Region.key_file(&here, &region).exists());
        // Again, with the same key.
        request(REGION, &there, &cluster, &region).unwrap();
        assert_eq!(std::fs::read(&key).unwrap(), kept);

        // What is no request, one that was changed on the way, and a machine without the CA's key.
        let garbage = issue(REGION, &here, &cluster, &region, b"hello", 30, clock::unix_now()).unwrap_err().to_string();
        assert!(garbage.contains("no request"), "{garbage}");
        let mut forged = csr.clone();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        assert!(issue(REGION, &here, &cluster, &region, &forged, 30, clock::unix_now()).is_err());
        assert!(matches!(issue(REGION, &there, &cluster, &region, &csr, 30, clock::unix_now()), Err(CertsError::NoCaKey { .. })));
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(request(REGION, &there, &cluster, &region).unwrap_err().to_string().contains("other users can read it"));
    }
}
