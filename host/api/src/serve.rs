//! The listening side: TLS, deadlines, bounded connections, and an orderly end.
//!
//! Each connection is a task of its own with its own deadlines, so a client that is slow, silent or broken costs itself
//! only. When the end is asked for, nobody new is let in, streams are ended, and requests under way get a while to finish.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;

use crate::limits::{HEAD_BYTES_MAX, HEADERS_MAX, ServeLimits};
use crate::service::Service;

/// Pause after the system refused a connection (no descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Answers on `listener` until `shutdown` completes and requests under way have ended (10 s at most).
///
/// `tls` is used as it is; its ALPN list, if any, must offer `http/1.1` only.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    service: Arc<dyn Service>,
    shutdown: impl Future<Output = ()>,
) {
    serve_with(listener, tls, service, ServeLimits::default(), shutdown).await;
}

/// [`serve`] under other limits.
pub async fn serve_with(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    service: Arc<dyn Service>,
    limits: ServeLimits,
    shutdown: impl Future<Output = ()>,
) {
    let (stop, stopping) = watch::channel(false);
    let connection = Connection {
        acceptor: TlsAcceptor::from(tls),
        router: crate::router_until(service, stopping.clone()),
        limits: limits.clone(),
        stopping,
    };
    let places = Places::new(&limits);
    let mut tasks = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            // Closed at once if there is no place: whoever comes too often notices, others are not kept waiting.
            Ok((stream, from)) => match places.take(from.ip()) {
                Some(place) => {
                    let connection = connection.clone();
                    tasks.spawn(async move {
                        connection.run(stream).await;
                        drop(place);
                    });
                }
                None => tracing::warn!(%from, "no place for another connection"),
            },
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    // Nobody listens if no connection is open.
    let _ = stop.send(true);
    let drained = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.drain, drained).await.is_err() {
        tracing::warn!("requests were cut off at shutdown");
        tasks.shutdown().await;
    }
}

#[derive(Clone)]
struct Connection {
    acceptor: TlsAcceptor,
    router: Router,
    limits: ServeLimits,
    stopping: watch::Receiver<bool>,
}

impl Connection {
    async fn run(mut self, stream: TcpStream) {
        // Failing to disable Nagle's delay costs time only.
        let _ = stream.set_nodelay(true);
        let handshake = self.acceptor.accept(stream);
        let tls = match tokio::time::timeout(self.limits.handshake, handshake).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => return tracing::debug!("a TLS handshake took too long"),
        };
        let io = TokioIo::new(Stalling::new(tls, self.limits.write_stall));
        let service = TowerToHyperService::new(self.router);
        let mut served = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(self.limits.head)
                .max_headers(HEADERS_MAX)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(io, service)
                .with_upgrades()
        );
        let stopped = async { drop(self.stopping.wait_for(|stopping| *stopping).await) };
        let result = tokio::select! {
            result = served.as_mut() => result,
            () = stopped => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}

/// Places for connections, in all and per address.
#[derive(Clone)]
struct Places(Arc<PlacesInner>);

struct PlacesInner {
    total: usize,
    per_address: usize,
    taken: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

struct Place(Places, IpAddr);

impl Places {
    fn new(limits: &ServeLimits) -> Self {
        Self(Arc::new(PlacesInner {
            total: limits.connections,
            per_address: limits.connections_per_address,
            taken: Mutex::default(),
        }))
    }

    fn take(&self, from: IpAddr) -> Option<Place> {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let here = taken.1.get(&from).copied().unwrap_or(0);
        if taken.0 >= self.0.total || here >= self.0.per_address {
            return None;
        }
        taken.0 += 1;
        taken.1.insert(from, here + 1);
        Some(Place(self.clone(), from))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self
            .0
            .0
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        taken.0 = taken.0.saturating_sub(1);
        if let Some(here) = taken.1.get_mut(&self.1) {
            *here = here.saturating_sub(1);
            if *here == 0 {
                taken.1.remove(&self.1);
            }
        }
    }
}

/// A stream that fails when its peer takes nothing for a while.
struct Stalling<S> {
    inner: S,
    patience: Duration,
    /// Set while a write waits.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> Stalling<S> {
    fn new(inner: S, patience: Duration) -> Self {
        Self {
            inner,
            patience,
            deadline: None,
        }
    }

    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.deadline = None;
            return polled;
        }
        let patience = self.patience;
        let deadline = self
            .deadline
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + patience)));
        match deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalling<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stalling<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.watch(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.watch(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.watch(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.watch(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
