//! TLS configurations: 1.3 only, both sides show certificates of the cluster's CA, no early data, no resumption.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::certificate::Credentials;
use crate::error::{CryptoError, Result};

pub fn server_config(credentials: &Credentials, alpn: &[u8]) -> Result<ServerConfig> {
    let provider = Arc::new(default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(credentials)?), Arc::clone(&provider))
        .build()
        .map_err(|error| CryptoError::BadCertificate(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![credentials.certificate()?], credentials.key()?)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    Ok(config)
}

pub fn client_config(credentials: &Credentials, alpn: &[u8]) -> Result<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(credentials)?)
        .with_client_auth_cert(vec![credentials.certificate()?], credentials.key()?)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    config.enable_early_data = false;
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn roots(credentials: &Credentials) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(credentials.ca()?)?;
    Ok(roots)
}
