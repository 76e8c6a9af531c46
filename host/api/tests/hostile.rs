//! Clients that are slow, silent, broken or hostile cost themselves only: whatever they do, others are answered.
#![allow(clippy::unwrap_used)]

mod common;
mod wire;

use std::time::Duration;

use common::{Served, served_with};
use dwcp_api::limits::ServeLimits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wire::Peer;

/// Longest that anything here may take; reached only when something hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// Short deadlines, so that reaching them takes no time.
async fn impatient() -> Served {
    served_with(ServeLimits {
        handshake: Duration::from_millis(200),
        head: Duration::from_millis(200),
        write_stall: Duration::from_millis(200),
        ..ServeLimits::default()
    })
    .await
}

async fn answers(served: &Served) {
    let mut peer = Peer::connect(served).await;
    peer.send(&wire::get("/v1/host")).await;
    assert_eq!(peer.answer().await.json()["name"], "left");
}

/// Waits until the server closed a plain connection.
async fn closed(mut tcp: TcpStream) {
    let mut rest = Vec::new();
    let end = tokio::time::timeout(DEADLINE, tcp.read_to_end(&mut rest));
    // Closed or reset, it is over.
    let _ = end.await.expect("the server keeps the connection");
}

#[tokio::test]
async fn what_is_not_tls_is_closed() {
    let served = impatient().await;
    for nonsense in [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0; 4_096],
        // A TLS record that promises more than it brings.
        vec![0x16, 0x03, 0x01, 0x40, 0x00, 0x01],
        vec![0x16, 0x03, 0x01, 0xff, 0xff],
    ] {
        let mut tcp = TcpStream::connect(served.address).await.unwrap();
        tcp.write_all(&nonsense).await.unwrap();
        closed(tcp).await;
    }
    // And one that says nothing at all.
    closed(TcpStream::connect(served.address).await.unwrap()).await;
    answers(&served).await;
}

#[tokio::test]
async fn a_head_that_does_not_end_is_cut_off() {
    let served = impatient().await;
    let mut slow = Peer::connect(&served).await;
    slow.send("GET /v1/host HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        .await;
    slow.closed().await;
    let mut idle = Peer::connect(&served).await;
    idle.send(&wire::get("/v1/host")).await;
    idle.answer().await;
    idle.closed().await;
    answers(&served).await;
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let served = impatient().await;
    let mut long = Peer::connect(&served).await;
    long.send("GET /v1/host HTTP/1.1\r\nHost: x\r\nX-Long: ")
        .await;
    long.send_until_refused(&[b'x'; 8 << 10]).await;
    let mut many = Peer::connect(&served).await;
    let headers: String = (0..100).map(|n| format!("X-{n}: y\r\n")).collect();
    many.send(&wire::with("GET", "/v1/host", &headers, ""))
        .await;
    assert_eq!(many.head().await.status, 431);
    answers(&served).await;
}

#[tokio::test]
async fn a_body_that_is_too_long_is_not_read_to_its_end() {
    let served = impatient().await;
    let mut peer = Peer::connect(&served).await;
    let head = "POST /v1/projects/default/vms HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer dwcp_test\r\n\
        Content-Type: application/json\r\nContent-Length: 1099511627776\r\n\r\n";
    peer.send(head).await;
    peer.send_until_refused(&[b' '; 64 << 10]).await;
    answers(&served).await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() {
    let served = impatient().await;
    let mut create = Peer::connect(&served).await;
    let body = r#"{"name": "flood", "template": "dwcp/worker"}"#;
    create
        .send(&wire::post("/v1/projects/default/vms", body))
        .await;
    assert_eq!(create.answer().await.status, 201);
    let mut deaf = Peer::connect(&served).await;
    deaf.send(&wire::get("/v1/projects/default/vms/flood/log?follow=true"))
        .await;
    let attached = async {
        while served.fake.consoles() == 0 {
            answers(&served).await;
        }
    };
    tokio::time::timeout(DEADLINE, attached).await.unwrap();
    // Others are served while the deaf one's buffers are full and its deadline runs.
    answers(&served).await;
    // The console that it held is let go, though it never read a byte.
    let let_go = async {
        while served.fake.consoles() > 0 {
            answers(&served).await;
        }
    };
    tokio::time::timeout(DEADLINE, let_go).await.unwrap();
    drop(deaf);
}

#[tokio::test]
async fn one_address_cannot_take_all_places() {
    let served = served_with(ServeLimits {
        connections: 8,
        connections_per_address: 4,
        handshake: Duration::from_secs(600),
        ..ServeLimits::default()
    })
    .await;
    let from = |address: &str| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket
            .bind(format!("{address}:0").parse().unwrap())
            .unwrap();
        socket.connect(served.address)
    };
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(from("127.0.0.2").await.unwrap());
    }
    closed(from("127.0.0.2").await.unwrap()).await;
    // Another address still finds a place.
    answers(&served).await;
    // A place that is given back can be taken again.
    held.pop();
    let again = async {
        loop {
            let mut tcp = from("127.0.0.2").await.unwrap();
            // The server says nothing before the client does, so silence means that there is a place.
            let silent = tokio::time::timeout(Duration::from_millis(100), tcp.read_u8()).await;
            if silent.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, again).await.unwrap();
}

#[tokio::test]
async fn broken_requests_are_refused_and_closed() {
    let served = impatient().await;
    for nonsense in [
        "NONSENSE\r\n\r\n",
        "GET /v1/host HTTP/9.9\r\n\r\n",
        "GET /v1/host HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "POST /v1/hosts HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let mut peer = Peer::connect(&served).await;
        peer.send(nonsense).await;
        let said = String::from_utf8(peer.closed().await).unwrap();
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{said}");
    }
    answers(&served).await;
}
