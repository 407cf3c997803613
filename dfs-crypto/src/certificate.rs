//! Who is who: one CA a cluster, and for each member a certificate whose URI SAN names cluster,
//! role and number (`dfs://<cluster>/<role>/<number>`, and `/<issue>` where the machine took
//! another's place). The DNS SAN `<role>-<number>.dfs` is what TLS itself compares.

use std::fs;
use std::path::Path;

use dfs_common::{CertificateIssue, ClusterId, NodeName, Role};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ED25519, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use crate::error::{CryptoError, Result};
use crate::file;

/// Validity of what is issued: renewal comes with key rotation.
const FIRST_YEAR: i32 = 2024;
const LAST_YEAR: i32 = 2046;

/// The CA of one cluster.
pub struct CertificateAuthority {
    cluster: ClusterId,
    certificate_pem: String,
    key: KeyPair,
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CertificateAuthority({})", self.cluster)
    }
}

/// One member's certificate, its key, and the CA it trusts.
pub struct Credentials {
    cluster: ClusterId,
    name: NodeName,
    issue: CertificateIssue,
    ca_pem: String,
    certificate_pem: String,
    key_pem: Zeroizing<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({} of {})", self.name, self.cluster)
    }
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self {
            cluster: self.cluster,
            name: self.name,
            issue: self.issue,
            ca_pem: self.ca_pem.clone(),
            certificate_pem: self.certificate_pem.clone(),
            key_pem: self.key_pem.clone(),
        }
    }
}

/// What a verified certificate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    pub cluster: ClusterId,
    pub name: NodeName,
    pub issue: CertificateIssue,
}

/// Name that TLS compares: `meta-1.dfs`.
#[must_use]
pub fn dns_name(name: NodeName) -> String {
    format!("{name}.dfs")
}

impl CertificateAuthority {
    /// A new CA, with a fresh Ed25519 key.
    pub fn generate(cluster: ClusterId) -> Result<Self> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params
            .distinguished_name
            .push(DnType::CommonName, format!("dfs cluster {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![SanType::URI(uri(cluster, "ca")?)];
        validity(&mut params);
        let certificate_pem = params.self_signed(&key)?.pem();
        Ok(Self {
            cluster,
            certificate_pem,
            key,
        })
    }

    /// From `ca.pem` and `ca.key`.
    pub fn load(directory: &Path) -> Result<Self> {
        let certificate_pem = text(&directory.join("ca.pem"))?;
        let key_path = directory.join("ca.key");
        let key = KeyPair::from_pem(&text(&key_path)?).map_err(|error| CryptoError::BadFile {
            path: key_path,
            reason: error.to_string(),
        })?;
        let certificate = first_certificate(&certificate_pem, &directory.join("ca.pem"))?;
        let (cluster, _) = split_uri(&uri_of(&certificate)?)?;
        Ok(Self {
            cluster,
            certificate_pem: certificate_pem.to_string(),
            key,
        })
    }

    /// Writes `ca.pem` and `ca.key` (owner only) into a directory that exists.
    pub fn save(&self, directory: &Path) -> Result<()> {
        file::replace(&directory.join("ca.pem"), self.certificate_pem.as_bytes())?;
        file::replace(
            &directory.join("ca.key"),
            Zeroizing::new(self.key.serialize_pem()).as_bytes(),
        )
    }

    #[must_use]
    pub const fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// A certificate for one member, with a fresh key.
    pub fn issue(&self, name: NodeName) -> Result<Credentials> {
        self.issue_again(name, CertificateIssue(0))
    }

    /// The same for a machine that takes the place of another of this name.
    pub fn issue_again(&self, name: NodeName, issue: CertificateIssue) -> Result<Credentials> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = CertificateParams::new(vec![dns_name(name)])?;
        params.distinguished_name.push(DnType::CommonName, name.to_string());
        let mut who = format!("{}/{}", name.role, name.number);
        if issue > CertificateIssue(0) {
            who = format!("{who}/{issue}");
        }
        params.subject_alt_names.push(SanType::URI(uri(self.cluster, &who)?));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        validity(&mut params);
        let issuer = Issuer::from_ca_cert_pem(&self.certificate_pem, &self.key)?;
        let certificate = params.signed_by(&key, &issuer)?;
        Ok(Credentials {
            cluster: self.cluster,
            name,
            issue,
            ca_pem: self.certificate_pem.clone(),
            certificate_pem: certificate.pem(),
            key_pem: Zeroizing::new(key.serialize_pem()),
        })
    }
}

impl Credentials {
    /// From `ca.pem`, `cert.pem` and `key.pem`.
    pub fn load(directory: &Path) -> Result<Self> {
        let certificate_path = directory.join("cert.pem");
        let certificate_pem = text(&certificate_path)?;
        let identity = identity_of(&first_certificate(&certificate_pem, &certificate_path)?).map_err(|error| {
            CryptoError::BadFile {
                path: certificate_path,
                reason: error.to_string(),
            }
        })?;
        Ok(Self {
            cluster: identity.cluster,
            name: identity.name,
            issue: identity.issue,
            ca_pem: text(&directory.join("ca.pem"))?.to_string(),
            certificate_pem: certificate_pem.to_string(),
            key_pem: text(&directory.join("key.pem"))?,
        })
    }

    /// Writes the three files, creating the directory.
    pub fn save(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).map_err(|source| CryptoError::File {
            path: directory.to_path_buf(),
            source,
        })?;
        file::replace(&directory.join("ca.pem"), self.ca_pem.as_bytes())?;
        file::replace(&directory.join("cert.pem"), self.certificate_pem.as_bytes())?;
        file::replace(&directory.join("key.pem"), self.key_pem.as_bytes())
    }

    #[must_use]
    pub const fn cluster(&self) -> ClusterId {
        self.cluster
    }

    #[must_use]
    pub const fn name(&self) -> NodeName {
        self.name
    }

    /// See [`PeerIdentity::issue`].
    #[must_use]
    pub const fn issue(&self) -> CertificateIssue {
        self.issue
    }

    pub(crate) fn ca(&self) -> Result<CertificateDer<'static>> {
        first_certificate(&self.ca_pem, Path::new("ca.pem"))
    }

    pub(crate) fn certificate(&self) -> Result<CertificateDer<'static>> {
        first_certificate(&self.certificate_pem, Path::new("cert.pem"))
    }

    pub(crate) fn key(&self) -> Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(|error| CryptoError::BadFile {
            path: "key.pem".into(),
            reason: error.to_string(),
        })
    }
}

/// Identity in a certificate that TLS has verified already.
///
/// # Errors
/// `BadCertificate` when there is no URI SAN of the form `dfs://<cluster>/<role>/<number>` or
/// `dfs://<cluster>/<role>/<number>/<issue>`.
pub fn identity_of(certificate: &CertificateDer<'_>) -> Result<PeerIdentity> {
    let (cluster, rest) = split_uri(&uri_of(certificate)?)?;
    let bad = || CryptoError::BadCertificate(format!("{rest:?} is neither role/number nor role/number/issue"));
    let (role, number) = rest.split_once('/').ok_or_else(bad)?;
    let (number, issue) = number.split_once('/').unwrap_or((number, "0"));
    let role: Role = role.parse().map_err(|_| bad())?;
    let number = number.parse().map_err(|_| bad())?;
    Ok(PeerIdentity {
        cluster,
        name: NodeName::new(role, number),
        issue: CertificateIssue(issue.parse().map_err(|_| bad())?),
    })
}

fn uri_of(certificate: &CertificateDer<'_>) -> Result<String> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|error| CryptoError::BadCertificate(error.to_string()))?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|error| CryptoError::BadCertificate(error.to_string()))?;
    names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .find_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with("dfs://") => Some((*uri).to_owned()),
            _ => None,
        })
        .ok_or_else(|| CryptoError::BadCertificate("it has no dfs:// name".to_owned()))
}

fn split_uri(uri: &str) -> Result<(ClusterId, String)> {
    let bad = || CryptoError::BadCertificate(format!("{uri:?} is not dfs://cluster/role/number"));
    let (cluster, rest) = uri
        .strip_prefix("dfs://")
        .and_then(|rest| rest.split_once('/'))
        .ok_or_else(bad)?;
    Ok((cluster.parse().map_err(|_| bad())?, rest.to_owned()))
}

fn uri(cluster: ClusterId, rest: &str) -> Result<rcgen::string::Ia5String> {
    Ok(format!("dfs://{cluster}/{rest}").try_into()?)
}

fn validity(params: &mut CertificateParams) {
    params.not_before = rcgen::date_time_ymd(FIRST_YEAR, 1, 1);
    params.not_after = rcgen::date_time_ymd(LAST_YEAR, 1, 1);
}

fn text(path: &Path) -> Result<Zeroizing<String>> {
    let bytes = file::read(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| CryptoError::BadFile {
        path: path.to_path_buf(),
        reason: "not PEM".to_owned(),
    })?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn first_certificate(pem: &str, path: &Path) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| CryptoError::BadFile {
        path: path.to_path_buf(),
        reason: format!("no certificate in PEM: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issued_certificates_say_who_they_are_and_survive_their_files() {
        let directory = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::generate(ClusterId([7; 16])).unwrap();
        ca.save(directory.path()).unwrap();
        let ca = CertificateAuthority::load(directory.path()).unwrap();
        assert_eq!(ca.cluster(), ClusterId([7; 16]));
        let name = NodeName::new(Role::Storage, 3);
        let at = directory.path().join("storage-3");
        ca.issue(name).unwrap().save(&at).unwrap();
        let loaded = Credentials::load(&at).unwrap();
        assert_eq!((loaded.cluster(), loaded.name()), (ca.cluster(), name));
        assert_eq!(
            identity_of(&loaded.certificate().unwrap()).unwrap(),
            PeerIdentity {
                cluster: ca.cluster(),
                name,
                issue: CertificateIssue(0),
            }
        );
        let again = ca.issue_again(name, CertificateIssue(2)).unwrap();
        let identity = identity_of(&again.certificate().unwrap()).unwrap();
        assert_eq!((identity.name, identity.issue), (name, CertificateIssue(2)));
        assert!(identity_of(&loaded.ca().unwrap()).is_err(), "the CA is nobody");
        assert!(
            Credentials::load(&directory.path().join("none"))
                .unwrap_err()
                .to_string()
                .contains("none")
        );
    }
}
