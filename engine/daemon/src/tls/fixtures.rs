//! What tests of TLS begin with.

use std::path::Path;

use towpath_config::model::{
    CertificateFiles, CipherPolicy, ClientCertificate, EndedTls, Resumption, ServerTls, TlsVersion, VerifyServer,
};

/// TLS that is ended with the certificate and key of one file, and everything else by default.
pub(crate) fn ended_tls(file: impl AsRef<Path>, resumption: Resumption) -> EndedTls {
    EndedTls {
        certificates: vec![certificate_files(file)],
        strict_sni: false,
        min_version: TlsVersion::V1_2,
        ciphers: CipherPolicy::Intermediate,
        alpn: Vec::new(),
        resumption,
        handshake_timeout_ms: 10_000,
        client_certificate: ClientCertificate::None,
        re_encrypt: false,
        servers: ServerTls { verify: VerifyServer::None, name: None, identity: None },
    }
}

pub(crate) fn certificate_files(file: impl AsRef<Path>) -> CertificateFiles {
    let file = file.as_ref().to_path_buf();
    CertificateFiles { file, key: None, chain: None, password_file: None, staple: None }
}
