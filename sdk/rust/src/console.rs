//! A machine's console: the bytes of its serial line, both ways, over a WebSocket.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures::stream::{SplitSink, SplitStream};
use futures::{Sink, SinkExt, Stream, StreamExt};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message, client::IntoClientRequest};

use crate::error::{Error, Result};
use crate::transport::{Client, escaped, problem};

/// Longest wait until the console is attached.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(20);
/// Most bytes in a message to the guest.
const MESSAGE_BYTES: usize = 16 << 10;
/// Longest message from the host, bytes.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// An attached console.
#[derive(Debug)]
pub struct Console {
    /// From the guest; what it printed before comes first. Ends when the machine stops.
    pub output: ConsoleOutput,
    /// To the guest.
    pub input: ConsoleInput,
}

/// What the guest prints.
#[derive(Debug)]
pub struct ConsoleOutput {
    stream: SplitStream<Socket>,
    rest: Bytes,
}

/// What the guest reads.
#[derive(Debug)]
pub struct ConsoleInput {
    sink: SplitSink<Socket, Message>,
}

impl Client {
    /// Attaches to a machine's console.
    pub async fn vm_console(&self, project: &str, name: &str) -> Result<Console> {
        let path = ["v1", "projects", project, "vms", name, "console"];
        self.stream(&path).await
    }

    /// Connects to a vsock port that a program in a machine's guest listens on: its output is what the program says.
    pub async fn vm_connect(&self, project: &str, name: &str, port: u32) -> Result<Console> {
        let port = port.to_string();
        let path = ["v1", "projects", project, "vms", name, "ports", &port];
        self.stream(&path).await
    }

    async fn stream(&self, path: &[&str]) -> Result<Console> {
        let attached = tokio::time::timeout(ATTACH_TIMEOUT, self.attach(path));
        let socket = attached
            .await
            .map_err(|_| self.unreachable(io::Error::from(io::ErrorKind::TimedOut)))??;
        let (sink, stream) = socket.split();
        Ok(Console {
            output: ConsoleOutput {
                stream,
                rest: Bytes::new(),
            },
            input: ConsoleInput { sink },
        })
    }

    async fn attach(&self, path: &[&str]) -> Result<Socket> {
        let base = &self.inner.base;
        let host = base.host_str().unwrap_or_default();
        let port = base.port_or_known_default().unwrap_or(443);
        let path = escaped(path);
        let url = format!("wss://{host}:{port}{path}");
        let mut request = url
            .into_client_request()
            .map_err(|error| Error::Answer(error.to_string()))?;
        let bearer = format!("Bearer {}", self.inner.profile.api_key);
        let bearer = bearer
            .parse()
            .map_err(|_| Error::Profile("its key cannot be sent".into()))?;
        request.headers_mut().insert("authorization", bearer);

        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let tcp = TcpStream::connect((bare, port))
            .await
            .map_err(|error| self.unreachable(error))?;
        // Failing to disable Nagle's delay costs time only.
        let _ = tcp.set_nodelay(true);
        let server = ServerName::try_from(bare.to_owned())
            .map_err(|error| Error::Profile(format!("{bare:?} names no server ({error})")))?;
        let tls = TlsConnector::from(std::sync::Arc::clone(&self.inner.tls))
            .connect(server, tcp)
            .await
            .map_err(|error| self.unreachable(error))?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX))
            .write_buffer_size(0);
        let attached = tokio_tungstenite::client_async_with_config(request, tls, Some(config));
        match attached.await {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::Error::Http(response)) => {
                let body = response.body().as_deref().unwrap_or_default();
                Err(problem(response.status().as_u16(), body))
            }
            Err(error) => Err(self.unreachable(error)),
        }
    }
}

impl ConsoleOutput {
    /// The next bytes; `None` when the machine stopped or the host closed the console.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        std::future::poll_fn(|cx| self.poll_bytes(cx)).await
    }

    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.rest))));
        }
        loop {
            match ready!(Pin::new(&mut self.stream).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) if bytes.is_empty() => {}
                Some(Ok(Message::Binary(bytes))) => return Poll::Ready(Ok(Some(bytes))),
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(None)),
                Some(Ok(_)) => {}
                Some(Err(tungstenite::Error::ConnectionClosed)) => return Poll::Ready(Ok(None)),
                Some(Err(error)) => return Poll::Ready(Err(other(error))),
            }
        }
    }
}

impl AsyncRead for ConsoleOutput {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(mut bytes) = ready!(self.poll_bytes(cx))? else {
            return Poll::Ready(Ok(()));
        };
        let taken = bytes.len().min(buf.remaining());
        buf.put_slice(&bytes[..taken]);
        bytes.advance(taken);
        self.rest = bytes;
        Poll::Ready(Ok(()))
    }
}

impl ConsoleInput {
    /// Sends bytes to the guest, waiting while it does not read.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(MESSAGE_BYTES) {
            let message = Message::Binary(Bytes::copy_from_slice(piece));
            self.sink.send(message).await.map_err(other)?;
        }
        Ok(())
    }

    /// Detaches.
    pub async fn close(mut self) -> io::Result<()> {
        self.sink.close().await.map_err(other)
    }
}

impl AsyncWrite for ConsoleInput {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut sink = Pin::new(&mut self.sink);
        ready!(sink.as_mut().poll_ready(cx)).map_err(other)?;
        let piece = &buf[..buf.len().min(MESSAGE_BYTES)];
        let message = Message::Binary(Bytes::copy_from_slice(piece));
        sink.start_send(message).map_err(other)?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.sink).poll_flush(cx).map_err(other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.sink).poll_close(cx).map_err(other)
    }
}

fn other(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        error => io::Error::other(error),
    }
}
