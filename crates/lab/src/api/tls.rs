//! The lab's own certificate authority, the server's certificate, and the kubeconfig.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// What goes wrong while certificates are made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate cannot be made, for example because a name is not a DNS name.
    #[error(
        "cannot make the lab's certificate for {names}: {source}: use DNS names and IP addresses only"
    )]
    Certificate {
        /// The names asked for.
        names: String,
        /// What the library says.
        source: rcgen::Error,
    },
    /// The TLS library refuses the certificate.
    #[error("cannot serve TLS with the lab's certificate: {0}")]
    Config(#[from] rustls::Error),
}

/// A certificate authority of a lab and one server certificate made by it. The authority's key is
/// thrown away, so that nothing else can ever be signed with it.
#[derive(Clone)]
pub struct Identity {
    /// The authority's certificate, PEM.
    pub ca_pem: String,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<Vec<u8>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("ca_pem", &self.ca_pem).finish_non_exhaustive()
    }
}

/// As kubeadm's: an authority for ten years, a server's certificate for one, both a little older
/// than the lab.
fn valid(certificate: &mut CertificateParams, years: u32) {
    let day = Duration::from_secs(86_400);
    let now = SystemTime::now();
    certificate.not_before = (now - day).into();
    certificate.not_after = (now + day * 365 * years).into();
}

impl Identity {
    /// Makes an authority and a certificate for these names and addresses.
    pub fn new(lab: &str, names: &[String]) -> Result<Self, TlsError> {
        Self::make(lab, names)
            .map_err(|source| TlsError::Certificate { names: names.join(", "), source })
    }

    fn make(lab: &str, names: &[String]) -> Result<Self, rcgen::Error> {
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, format!("causeway lab {lab}"));
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid(&mut ca, 10);
        let ca_key = KeyPair::generate()?;
        let ca_certificate = ca.self_signed(&ca_key)?;
        let issuer = Issuer::new(ca, ca_key);

        let mut server = CertificateParams::new(names.to_vec())?;
        server.distinguished_name.push(DnType::CommonName, "causeway lab API");
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        server.use_authority_key_identifier_extension = true;
        valid(&mut server, 1);
        let key = KeyPair::generate()?;
        let certificate = server.signed_by(&key, &issuer)?;
        Ok(Identity {
            ca_pem: ca_certificate.pem(),
            chain: vec![certificate.der().clone()],
            key: Arc::new(key.serialize_der()),
        })
    }

    /// The server's side of TLS 1.2 and 1.3, offering HTTP/2 and HTTP/1.1.
    pub(crate) fn server(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.to_vec()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// A kubeconfig for a lab: context `causeway-LAB`, namespace `default`. It holds the token: write it
/// readable for its owner alone (mode 0600).
pub fn kubeconfig(lab: &str, server: &str, ca_pem: &str, token: &str) -> String {
    let context = format!("causeway-{lab}");
    let ca = STANDARD.encode(ca_pem);
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         current-context: {context}\n\
         clusters:\n\
         - name: {context}\n  \
           cluster:\n    \
             server: {server}\n    \
             certificate-authority-data: {ca}\n\
         contexts:\n\
         - name: {context}\n  \
           context:\n    \
             cluster: {context}\n    \
             user: {context}\n    \
             namespace: default\n\
         users:\n\
         - name: {context}\n  \
           user:\n    \
             token: {token}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_serves_and_a_bad_name_is_told() {
        let identity =
            Identity::new("a", &["127.0.0.1".into(), "::1".into(), "localhost".into()]).unwrap();
        assert!(identity.ca_pem.starts_with("-----BEGIN CERTIFICATE"));
        assert_eq!(identity.server().unwrap().alpn_protocols[0], b"h2");
        assert!(!format!("{identity:?}").contains("key"));
        let error = Identity::new("a", &["ü".into()]).unwrap_err();
        assert!(error.to_string().contains("use DNS names"), "{error}");
    }

    #[test]
    fn the_kubeconfig_is_yaml_with_all_parts() {
        let text = kubeconfig("demo", "https://127.0.0.1:6443", "PEM", "secret");
        let value: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(value["current-context"], "causeway-demo");
        assert_eq!(value["contexts"][0]["context"]["namespace"], "default");
        assert_eq!(
            value["clusters"][0]["cluster"]["certificate-authority-data"],
            STANDARD.encode("PEM")
        );
        assert_eq!(value["users"][0]["user"]["token"], "secret");
    }
}
