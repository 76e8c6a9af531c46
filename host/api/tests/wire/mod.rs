//! HTTP/1.1 by hand over TLS, so that tests can be as slow, broken or hostile as they like.
#![allow(dead_code, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::common::{Served, TEST_KEY};

/// Longest that an answer may take; reached only when something hangs.
const DEADLINE: Duration = Duration::from_secs(60);

pub type Tls = TlsStream<TcpStream>;

pub fn get(path: &str) -> String {
    with("GET", path, "", "")
}

pub fn post(path: &str, body: &str) -> String {
    let header = "Content-Type: application/json\r\n";
    with("POST", path, header, body)
}

/// A request with other headers, each ending in CRLF.
pub fn with(method: &str, path: &str, headers: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TEST_KEY}\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A connection, its handshake done.
pub async fn tls(served: &Served) -> Tls {
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(served.ca_pem.as_bytes()).unwrap();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(served.address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, tcp).await.unwrap()
}

/// The head of an answer, and its body if it was read.
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value)
    }
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// A client that speaks for itself.
pub struct Peer {
    stream: BufReader<Tls>,
}

impl Peer {
    pub async fn connect(served: &Served) -> Self {
        Self {
            stream: BufReader::new(tls(served).await),
        }
    }

    pub async fn send(&mut self, text: &str) {
        self.try_send(text.as_bytes()).await.unwrap();
    }

    pub async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    async fn line(&mut self) -> std::io::Result<String> {
        let mut line = Vec::new();
        loop {
            let byte = tokio::time::timeout(DEADLINE, self.stream.read_u8()).await;
            match byte.expect("the server hangs")? {
                b'\n' => break,
                byte => line.push(byte),
            }
        }
        Ok(String::from_utf8(line).unwrap().trim_end().to_owned())
    }

    pub async fn head(&mut self) -> Answer {
        self.try_head().await.unwrap()
    }

    pub async fn try_head(&mut self) -> std::io::Result<Answer> {
        let first = self.line().await?;
        let status = first.split(' ').nth(1).unwrap_or(&first).parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap();
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(Answer {
            status,
            headers,
            body: Vec::new(),
        })
    }

    /// The next chunk of a chunked answer; `None` at its end.
    pub async fn chunk(&mut self) -> Option<Vec<u8>> {
        let length = usize::from_str_radix(&self.line().await.unwrap(), 16).unwrap();
        let mut chunk = vec![0; length];
        self.stream.read_exact(&mut chunk).await.unwrap();
        self.line().await.unwrap();
        (length > 0).then_some(chunk)
    }

    /// A whole answer.
    pub async fn answer(&mut self) -> Answer {
        let mut answer = self.head().await;
        if answer.header("transfer-encoding") == "chunked" {
            while let Some(chunk) = self.chunk().await {
                answer.body.extend(chunk);
            }
        } else {
            let length = answer.header("content-length").parse().unwrap_or(0);
            answer.body = vec![0; length];
            self.stream.read_exact(&mut answer.body).await.unwrap();
        }
        answer
    }

    /// Waits until the server has closed the connection, and gives what it said before.
    pub async fn closed(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let end = tokio::time::timeout(DEADLINE, self.stream.read_to_end(&mut rest));
        // Closed or reset, it is over.
        let _ = end.await.expect("the server keeps the connection");
        rest
    }

    /// Waits until the server refuses what is sent, sending `bytes` again and again.
    pub async fn send_until_refused(&mut self, bytes: &[u8]) {
        let refused = async { while self.try_send(bytes).await.is_ok() {} };
        tokio::time::timeout(DEADLINE, refused)
            .await
            .expect("the server takes everything");
    }
}
