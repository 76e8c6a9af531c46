//! Streams over real TLS: operations, events that resume, logs that go on, consoles; and that all end with the server.
#![allow(clippy::unwrap_used)]

mod common;
mod wire;

use std::time::Duration;

use common::{Served, TEST_KEY, served};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{self, Message, client::IntoClientRequest};
use wire::Peer;

/// Longest that anything here may take; reached only when something hangs.
const DEADLINE: Duration = Duration::from_secs(60);

async fn create(served: &Served, name: &str) {
    let body = json!({"name": name, "template": "dwcp/worker"}).to_string();
    let mut peer = Peer::connect(served).await;
    peer.send(&wire::post("/v1/projects/default/vms", &body))
        .await;
    assert_eq!(peer.head().await.status, 201);
}

/// Reads server-sent events until `enough`.
async fn events(peer: &mut Peer, enough: usize) -> Vec<(Option<u64>, Value)> {
    let (mut found, mut text) = (Vec::new(), String::new());
    while found.len() < enough {
        text += &String::from_utf8(peer.chunk().await.unwrap()).unwrap();
        while let Some((event, rest)) = text.split_once("\n\n") {
            let field = |name: &str| {
                let line = event.lines().find_map(|line| line.strip_prefix(name))?;
                Some(line.trim().to_owned())
            };
            if let Some(data) = field("data:") {
                let id = field("id:").map(|id| id.parse().unwrap());
                found.push((id, serde_json::from_str(&data).unwrap()));
            }
            text = rest.to_owned();
        }
    }
    found
}

#[tokio::test]
async fn an_operation_is_watched_to_its_end() {
    let served = served().await;
    create(&served, "web").await;
    let mut peer = Peer::connect(&served).await;
    peer.send(&wire::post("/v1/projects/default/vms/web/stop", ""))
        .await;
    let started: Value = peer.answer().await.json();
    let id = started["id"].as_str().unwrap();
    peer.send(&wire::get(&format!("/v1/operations/{id}/events")))
        .await;
    let head = peer.head().await;
    assert_eq!(head.header("content-type"), "text/event-stream");
    loop {
        let (_, operation) = events(&mut peer, 1).await.remove(0);
        assert_eq!(operation["id"], id);
        if operation["state"] == "done" {
            break;
        }
    }
    assert_eq!(
        peer.chunk().await,
        None,
        "the stream ends with the operation"
    );
    peer.send(&wire::get("/v1/host")).await;
    assert_eq!(peer.head().await.status, 200, "the connection is kept");
}

#[tokio::test]
async fn events_resume_where_they_broke() {
    let served = served().await;
    for n in 1..=3 {
        served
            .fake
            .happened("t", "test.happened", "x", &format!("{n}"));
    }
    let mut peer = Peer::connect(&served).await;
    peer.send(&wire::get("/v1/events?follow=true&after=1"))
        .await;
    peer.head().await;
    let seen = events(&mut peer, 2).await;
    assert_eq!(
        seen.iter().map(|(id, _)| id.unwrap()).collect::<Vec<_>>(),
        [2, 3]
    );
    drop(peer);
    served.fake.happened("t", "test.happened", "x", "4");
    let mut peer = Peer::connect(&served).await;
    let resumed = wire::with("GET", "/v1/events?follow=true", "Last-Event-ID: 3\r\n", "");
    peer.send(&resumed).await;
    peer.head().await;
    assert_eq!(events(&mut peer, 1).await[0].0, Some(4));
    // What happens while it is open comes as it happens.
    served.fake.happened("t", "test.happened", "x", "5");
    assert_eq!(events(&mut peer, 1).await[0].1["message"], "5");

    let mut peer = Peer::connect(&served).await;
    peer.send(&wire::get("/v1/events?after=2&limit=1")).await;
    let page = peer.answer().await.json();
    assert_eq!(page["items"].as_array().unwrap().len(), 1);
    assert_eq!(page["items"][0]["sequence"], 3);
    let next = page["next_cursor"].as_str().unwrap();
    peer.send(&wire::get(&format!("/v1/events?cursor={next}&limit=1")))
        .await;
    assert_eq!(peer.answer().await.json()["items"][0]["sequence"], 4);
    peer.send(&wire::get("/v1/events?cursor=x")).await;
    assert_eq!(peer.answer().await.status, 400);
    let bad = wire::with("GET", "/v1/events?follow=true", "Last-Event-ID: x\r\n", "");
    peer.send(&bad).await;
    assert_eq!(peer.answer().await.status, 400);
}

#[tokio::test]
async fn a_log_is_read_and_followed() {
    let served = served().await;
    create(&served, "web").await;
    let mut peer = Peer::connect(&served).await;
    peer.send(&wire::get("/v1/projects/default/vms/web/log"))
        .await;
    let log = peer.answer().await;
    assert_eq!(log.body, b"booted\r\ntick 1\r\n");
    peer.send(&wire::get("/v1/projects/default/vms/web/log?follow=true"))
        .await;
    assert_eq!(peer.head().await.status, 200);
    assert_eq!(peer.chunk().await.unwrap(), b"booted\r\n");
}

type Socket = tokio_tungstenite::WebSocketStream<wire::Tls>;

async fn console(served: &Served, name: &str) -> Result<Socket, tungstenite::Error> {
    let url = format!(
        "wss://{}/v1/projects/default/vms/{name}/console",
        served.address
    );
    let mut request = url.into_client_request().unwrap();
    let key = format!("Bearer {TEST_KEY}").parse().unwrap();
    request.headers_mut().insert("authorization", key);
    let stream = wire::tls(served).await;
    let (socket, _) = tokio_tungstenite::client_async(request, stream).await?;
    Ok(socket)
}

async fn next(socket: &mut Socket) -> Message {
    loop {
        let message = tokio::time::timeout(DEADLINE, socket.next()).await.unwrap();
        match message.unwrap().unwrap() {
            Message::Ping(_) | Message::Pong(_) => {}
            message => return message,
        }
    }
}

fn code(message: &Message) -> u16 {
    match message {
        Message::Close(Some(close)) => close.code.into(),
        other => panic!("{other:?} is no farewell"),
    }
}

#[tokio::test]
async fn a_console_carries_bytes_both_ways_and_ends_with_the_machine() {
    let served = served().await;
    create(&served, "web").await;
    let mut socket = console(&served, "web").await.unwrap();
    assert_eq!(next(&mut socket).await.into_data(), "booted\r\n");
    socket.send(Message::binary("hello\r")).await.unwrap();
    assert_eq!(next(&mut socket).await.into_data(), "HELLO\r");
    socket.send(Message::text("text\r")).await.unwrap();
    assert_eq!(next(&mut socket).await.into_data(), "TEXT\r");
    socket.send(Message::binary("exit\r")).await.unwrap();
    assert_eq!(code(&next(&mut socket).await), 1000);
}

#[tokio::test]
async fn a_console_of_nothing_is_a_problem() {
    let served = served().await;
    let error = console(&served, "none").await.unwrap_err();
    let tungstenite::Error::Http(response) = error else {
        panic!("{error:?}")
    };
    assert_eq!(response.status(), 404);
    let kind = &response.headers()["content-type"];
    assert_eq!(kind, "application/problem+json");
}

#[tokio::test]
async fn a_message_that_is_too_long_ends_its_console_only() {
    let served = served().await;
    create(&served, "web").await;
    let mut bad = console(&served, "web").await.unwrap();
    let mut good = console(&served, "web").await.unwrap();
    next(&mut good).await;
    let long = Message::binary(vec![b'x'; (64 << 10) + 1]);
    // It may be cut off while it is still being sent.
    let _ = bad.send(long).await;
    let end = tokio::time::timeout(DEADLINE, async {
        while let Some(Ok(message)) = bad.next().await {
            assert!(!matches!(message, Message::Text(_)));
        }
    });
    end.await.unwrap();
    good.send(Message::binary("still\r")).await.unwrap();
    assert_eq!(next(&mut good).await.into_data(), "STILL\r");
}

#[tokio::test]
async fn everything_ends_with_the_server() {
    let served = served().await;
    create(&served, "web").await;
    let mut follower = Peer::connect(&served).await;
    follower.send(&wire::get("/v1/events?follow=true")).await;
    follower.head().await;
    let mut log = Peer::connect(&served).await;
    log.send(&wire::get("/v1/projects/default/vms/web/log?follow=true"))
        .await;
    log.head().await;
    let mut socket = console(&served, "web").await.unwrap();
    next(&mut socket).await;
    let idle = Peer::connect(&served).await;
    tokio::time::timeout(DEADLINE, served.stop()).await.unwrap();
    assert_eq!(code(&next(&mut socket).await), 1001);
    while follower.chunk().await.is_some() {}
    while log.chunk().await.is_some() {}
    drop(idle);
}
