//! What several tests of the wire share: how many cases to try, certificates, and pairs of sockets.
#![allow(dead_code, clippy::unwrap_used)]

use std::net::{TcpListener, TcpStream};

use dwcp_wire::tls::Identity;
use proptest::test_runner::Config;

/// As many cases as `DWCP_SOAK_CASES` says, or `usual`. Proptest prints the seed of a failure, and takes one from
/// `PROPTEST_RNG_SEED`.
pub fn cases(usual: u32) -> Config {
    let asked = std::env::var("DWCP_SOAK_CASES").ok();
    let cases = asked.and_then(|text| text.parse().ok()).unwrap_or(usual);
    Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    }
}

/// A fresh certificate and key.
pub fn identity() -> Identity {
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(vec!["transfer.dwcp".into()]).unwrap();
    let certificate = parameters.self_signed(&key).unwrap();
    Identity::new(certificate.der().to_vec(), key.serialize_der())
}

/// Two ends of a TCP connection over loopback.
pub fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    (near, far)
}
