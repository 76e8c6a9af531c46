//! Who this host is: a certificate authority for its API, a certificate that other hosts pin, an admin key, and the key
//! of the audit log. Made at the first start, read ever after, each readable by the daemon only.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dwcp_wire::tls::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use sha2::{Digest, Sha256};

use crate::errors::NodeError;

/// What is told once, at the first start.
#[derive(Clone, Debug)]
pub struct FirstStart {
    /// The admin key: whoever has it may do everything. It is not stored, only its hash is.
    pub admin_key: String,
}

/// The keys and certificates of a host.
#[derive(Debug)]
pub struct HostKeys {
    /// The authority that signs the API's certificate, PEM.
    pub ca_pem: String,
    /// TLS for the API.
    pub api_tls: Arc<rustls::ServerConfig>,
    /// What other hosts pin.
    pub(crate) peer: Identity,
    pub(crate) audit_seed: [u8; 32],
    admin_hash: [u8; 32],
    /// Those who came without a key that is known.
    pub(crate) strangers: Strangers,
}

impl HostKeys {
    /// Opens `dir`, making what is not there. `name` is the host's, `api` the address that the API's certificate names.
    pub fn open(
        dir: &Path,
        name: &str,
        api: IpAddr,
    ) -> Result<(Self, Option<FirstStart>), NodeError> {
        fs::create_dir_all(dir).map_err(|source| NodeError::State {
            path: dir.into(),
            source,
        })?;
        let (ca_pem, ca_key) = pair(dir, "ca", || authority(name))?;
        let (host_pem, host_key) = pair(dir, "host", || peer_certificate(name))?;
        let audit_seed = secret(dir, "audit.key")?;
        let (admin_hash, first) = admin(dir)?;
        let damaged = |what: &str| NodeError::Identity { what: what.into() };
        let peer = Identity::new(
            der(&host_pem).ok_or_else(|| damaged("host.pem"))?,
            KeyPair::from_pem(&host_key)
                .map_err(|_| damaged("host-key.pem"))?
                .serialize_der(),
        );
        let api_tls =
            api_config(&ca_pem, &ca_key, name, api).map_err(|_| damaged("The authority"))?;
        let keys = Self {
            ca_pem,
            api_tls,
            peer,
            audit_seed,
            admin_hash,
            strangers: Strangers::default(),
        };
        Ok((keys, first))
    }

    /// Whether a key is the admin key.
    pub(crate) fn is_admin(&self, key: &str) -> bool {
        let hash: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        // Both are hashes, so that the time of the comparison tells nothing of the key.
        hash == self.admin_hash
    }

    /// SHA-256 of the certificate that other hosts pin.
    pub(crate) fn fingerprint(&self) -> String {
        self.peer.fingerprint().to_string()
    }
}

/// Counts requests of nobody known, so that the audit log has all of them in at most one entry a [`Strangers::SILENCE`]:
/// whoever needs no key must not be able to fill it.
#[derive(Debug, Default)]
pub(crate) struct Strangers(Mutex<Unsaid>);

#[derive(Debug, Default)]
struct Unsaid {
    said: Option<Instant>,
    count: u64,
}

/// What to do about one more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// Note this many, now.
    Say(u64),
    /// Wait for [`Strangers::SILENCE`] and note those of [`Strangers::waited`].
    First,
    /// Somebody waits already.
    Counted,
}

impl Strangers {
    /// Between two entries.
    pub(crate) const SILENCE: Duration = Duration::from_secs(1);

    /// One more.
    pub(crate) fn came(&self, now: Instant) -> Came {
        let mut unsaid = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let quiet = unsaid
            .said
            .is_none_or(|said| now.saturating_duration_since(said) >= Self::SILENCE);
        if quiet && unsaid.count == 0 {
            unsaid.said = Some(now);
            return Came::Say(1);
        }
        unsaid.count += 1;
        if unsaid.count == 1 {
            Came::First
        } else {
            Came::Counted
        }
    }

    /// Those who came since somebody began to wait.
    pub(crate) fn waited(&self, now: Instant) -> u64 {
        let mut unsaid = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        unsaid.said = Some(now);
        std::mem::take(&mut unsaid.count)
    }
}

/// A certificate and key for one transfer, known to nobody before and after it.
pub(crate) fn transfer_identity() -> Result<(Vec<u8>, Vec<u8>), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params
        .distinguished_name
        .push(DnType::CommonName, "dwcp transfer");
    let certificate = params.self_signed(&key)?;
    Ok((certificate.der().to_vec(), key.serialize_der()))
}

fn authority(name: &str) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
        .distinguished_name
        .push(DnType::CommonName, format!("DWCP authority of {name}"));
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn peer_certificate(name: &str) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params
        .distinguished_name
        .push(DnType::CommonName, format!("DWCP host {name}"));
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn api_config(
    ca_pem: &str,
    ca_key: &str,
    name: &str,
    api: IpAddr,
) -> anyhow::Result<Arc<rustls::ServerConfig>> {
    let issuer = Issuer::from_ca_cert_pem(ca_pem, KeyPair::from_pem(ca_key)?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![name.to_owned(), "localhost".to_owned()])?;
    params
        .distinguished_name
        .push(DnType::CommonName, format!("DWCP API of {name}"));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    for ip in [api, IpAddr::from([127, 0, 0, 1])] {
        params.subject_alt_names.push(SanType::IpAddress(ip));
    }
    let certificate = params.signed_by(&key, &issuer)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn der(pem: &str) -> Option<Vec<u8>> {
    use rustls_pki_types::pem::PemObject;
    rustls_pki_types::CertificateDer::from_pem_slice(pem.as_bytes())
        .ok()
        .map(|certificate| certificate.to_vec())
}

/// A certificate and its key in two files, made by `make` if the certificate is not there. The certificate is written
/// last, so that a crash between the two leaves none.
fn pair(
    dir: &Path,
    name: &str,
    make: impl FnOnce() -> Result<(String, String), rcgen::Error>,
) -> Result<(String, String), NodeError> {
    let certificate = dir.join(format!("{name}.pem"));
    let key = dir.join(format!("{name}-key.pem"));
    if !certificate.exists() {
        let (pem, key_pem) = make().map_err(|_| NodeError::Identity { what: name.into() })?;
        write_private(&key, key_pem.as_bytes())?;
        write_private(&certificate, pem.as_bytes())?;
    }
    Ok((read_text(&certificate)?, read_text(&key)?))
}

fn secret(dir: &Path, name: &str) -> Result<[u8; 32], NodeError> {
    let path = dir.join(name);
    if !path.exists() {
        write_private(&path, hex::encode(random()?).as_bytes())?;
    }
    let mut bytes = [0; 32];
    hex::decode_to_slice(read_text(&path)?.trim(), &mut bytes)
        .map_err(|_| NodeError::Identity { what: name.into() })?;
    Ok(bytes)
}

fn admin(dir: &Path) -> Result<([u8; 32], Option<FirstStart>), NodeError> {
    let path = dir.join("admin.sha256");
    let mut first = None;
    if !path.exists() {
        let admin_key = format!("dwcp_{}", hex::encode(random()?));
        let hash: [u8; 32] = Sha256::digest(admin_key.as_bytes()).into();
        write_private(&path, hex::encode(hash).as_bytes())?;
        first = Some(FirstStart { admin_key });
    }
    Ok((secret(dir, "admin.sha256")?, first))
}

fn random() -> Result<[u8; 32], NodeError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|_| NodeError::Identity {
        what: "The random number generator".into(),
    })?;
    Ok(bytes)
}

fn read_text(path: &Path) -> Result<String, NodeError> {
    fs::read_to_string(path).map_err(|source| NodeError::State {
        path: path.into(),
        source,
    })
}

/// Writes a file that only this user reads, whole or not at all.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<(), NodeError> {
    let temporary = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        // Left by a run that did not end well; what is opened then is new, and no link that somebody put there.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        if let Some(dir) = path.parent() {
            fs::File::open(dir)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|source| NodeError::State {
        path: path.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn strangers_are_counted_and_noted_once_in_a_while() {
        let strangers = Strangers::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(strangers.came(at(0)), Came::Say(1));
        assert_eq!(strangers.came(at(1)), Came::First);
        assert_eq!(strangers.came(at(2)), Came::Counted);
        assert_eq!(strangers.came(at(1_000)), Came::Counted);
        assert_eq!(strangers.waited(at(1_001)), 3);
        assert_eq!(strangers.came(at(1_002)), Came::First);
        assert_eq!(strangers.waited(at(2_002)), 1);
        assert_eq!(strangers.came(at(3_002)), Came::Say(1));
    }

    #[test]
    fn a_stale_link_is_replaced_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let path = dir.path().join("secret.key");
        std::os::unix::fs::symlink(&victim, dir.path().join("secret.new")).unwrap();
        write_private(&path, b"mine").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        write_private(&path, b"again").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "again");
    }
}
