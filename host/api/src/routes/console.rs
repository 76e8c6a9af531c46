//! A machine's console over a WebSocket: binary frames, the bytes of the serial line, both ways.
//!
//! Every client is asked for signs of life and dropped when it gives none; one that reads slowly slows only itself,
//! because its own task waits for it while the service's stream loses what it must.

use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{FromRequestParts, Request, State};
use axum::response::Response;
use bytes::Bytes;
use dwcp_control::Name;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::Reply;
use crate::extract::{Caller, Path};
use crate::limits::{CONSOLE_MESSAGE_BYTES_MAX, CONSOLE_SILENCE, KEEP_ALIVE};
use crate::problem::Problem;
use crate::service::{ByteStream, Console};
use crate::state::Api;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(attach_console))
        .routes(routes!(connect_vm))
}

/// Attach to a machine's console.
///
/// A WebSocket (RFC 6455). Binary messages carry the bytes of the serial line, to and from the guest; what it printed
/// before comes first. The server closes with 1000 when the machine stops.
#[utoipa::path(get, path = "/v1/projects/{project}/vms/{name}/console", operation_id = "attachConsole", tag = "vms",
    params(("project" = Name, Path, description = "The project"), ("name" = Name, Path, description = "The machine")),
    responses((status = 101, description = "The console is attached")))]
async fn attach_console(
    State(api): State<Api>,
    Caller(who): Caller,
    Path((project, name)): Path<(Name, Name)>,
    request: Request,
) -> Reply<Response> {
    let upgrade = upgrade(request).await?;
    let place = api.stream()?;
    let console = api.service.vm_console(&who, &project, &name).await?;
    Ok(relayed(api, upgrade, place, console))
}

/// Connect to a port that a program in a machine's guest listens on.
///
/// A WebSocket (RFC 6455). Binary messages carry the bytes of a stream over virtio-vsock, both ways. It needs neither a
/// network nor an address of the guest. The server closes with 1000 when the guest closes.
#[utoipa::path(get, path = "/v1/projects/{project}/vms/{name}/ports/{port}", operation_id = "connectVm", tag = "vms",
    params(("project" = Name, Path, description = "The project"), ("name" = Name, Path, description = "The machine"),
        ("port" = u32, Path, description = "The guest's vsock port")),
    responses((status = 101, description = "The guest accepted the connection")))]
async fn connect_vm(
    State(api): State<Api>,
    Caller(who): Caller,
    Path((project, name, port)): Path<(Name, Name, u32)>,
    request: Request,
) -> Reply<Response> {
    let upgrade = upgrade(request).await?;
    let place = api.stream()?;
    let stream = api.service.vm_connect(&who, &project, &name, port).await?;
    Ok(relayed(api, upgrade, place, stream))
}

async fn upgrade(request: Request) -> Reply<WebSocketUpgrade> {
    let (mut parts, _) = request.into_parts();
    WebSocketUpgrade::from_request_parts(&mut parts, &())
        .await
        .map_err(|refused: WebSocketUpgradeRejection| Problem::upgrade(refused.body_text()))
}

/// Carries bytes between a client and a guest, as long as both are there. `place` counts the stream.
fn relayed<P: Send + 'static>(
    api: Api,
    upgrade: WebSocketUpgrade,
    place: P,
    console: Console,
) -> Response {
    upgrade
        .max_message_size(CONSOLE_MESSAGE_BYTES_MAX)
        .max_frame_size(CONSOLE_MESSAGE_BYTES_MAX)
        .max_write_buffer_size(4 * CONSOLE_MESSAGE_BYTES_MAX)
        .write_buffer_size(0)
        .on_upgrade(move |socket| async move {
            relay(&api, socket, console).await;
            drop(place);
        })
}

async fn relay(api: &Api, socket: WebSocket, console: Console) {
    let (mut sink, stream) = socket.split();
    let reason = tokio::select! {
        reason = to_client(&mut sink, console.output) => reason,
        reason = to_guest(stream, console.input) => reason,
        () = api.stopped() => Some((close_code::AWAY, "the host is shutting down")),
    };
    if let Some((code, reason)) = reason {
        let close = Message::Close(Some(CloseFrame {
            code,
            reason: reason.into(),
        }));
        // A client that is gone needs no farewell.
        let _ = tokio::time::timeout(Duration::from_secs(5), sink.send(close)).await;
    }
}

/// Why a console ends, if the client is to be told.
type End = Option<(u16, &'static str)>;

async fn to_client(sink: &mut SplitSink<WebSocket, Message>, mut output: ByteStream) -> End {
    let mut ping = tokio::time::interval(KEEP_ALIVE);
    ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            piece = output.next() => match piece {
                Some(Ok(piece)) => Message::Binary(piece),
                Some(Err(_)) => return Some((close_code::ERROR, "the console broke")),
                None => return Some((close_code::NORMAL, "the machine or its program ended it")),
            },
            _ = ping.tick() => Message::Ping(Bytes::new()),
        };
        if sink.send(message).await.is_err() {
            return None;
        }
    }
}

async fn to_guest(
    mut stream: SplitStream<WebSocket>,
    input: tokio::sync::mpsc::Sender<Bytes>,
) -> End {
    loop {
        let Ok(message) = tokio::time::timeout(CONSOLE_SILENCE, stream.next()).await else {
            return Some((close_code::POLICY, "no sign of life"));
        };
        let bytes = match message {
            Some(Ok(Message::Binary(bytes))) => bytes,
            Some(Ok(Message::Text(text))) => Bytes::from(text),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
        };
        // A guest that does not read makes its client wait.
        if input.send(bytes).await.is_err() {
            return Some((close_code::NORMAL, "the machine stopped"));
        }
    }
}
