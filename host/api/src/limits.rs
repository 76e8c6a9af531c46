//! Every limit of the API in one place; what happens at each is said beside it.
//!
//! Nothing a client sends is kept without one of these bounding it.

use std::time::Duration;

/// Longest body of a JSON or text request, bytes; longer ones are answered with 413.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// Longest image, bytes (64 GiB); longer ones are answered with 413.
pub const IMAGE_BYTES_MAX: u64 = 64 << 30;
/// Longest label of an image, bytes.
pub const LABEL_BYTES_MAX: usize = 255;
/// Objects in a part of a list unless the caller asks otherwise.
pub const PAGE_DEFAULT: usize = 100;
/// Most objects in a part of a list.
pub const PAGE_MAX: usize = 1_000;
/// Longest cursor, bytes.
pub const CURSOR_BYTES_MAX: usize = 1_024;
/// Longest API key, bytes; longer ones belong to nobody.
pub const KEY_BYTES_MAX: usize = 512;
/// Longest `Idempotency-Key`, bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;
/// Longest answer that is kept under an `Idempotency-Key`, bytes.
pub const REMEMBERED_BYTES_MAX: usize = 1 << 20;
/// Longest message on a console's WebSocket, bytes.
pub const CONSOLE_MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Changes under way at once; more are answered with 503.
pub const CHANGES_MAX: usize = 256;
/// Event streams, followed logs and consoles at once; more are answered with 503.
pub const STREAMS_MAX: usize = 256;
/// Longest wait for the next part of a body before the request is answered with 408.
pub const BODY_STALL: Duration = Duration::from_secs(30);
/// Time between two signs of life on a stream or console that has nothing to say.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Longest silence of a console's client, which answers every sign of life.
pub const CONSOLE_SILENCE: Duration = Duration::from_secs(60);
/// Headers of a request.
pub const HEADERS_MAX: usize = 64;
/// Head of a request, bytes; also the read buffer of a connection.
pub const HEAD_BYTES_MAX: usize = 64 << 10;

/// Limits of the listening side.
#[derive(Clone, Debug)]
pub struct ServeLimits {
    /// Connections at once; more are closed as they come.
    pub connections: usize,
    /// Connections at once from one address, so that one client cannot take them all.
    pub connections_per_address: usize,
    /// Longest TLS handshake.
    pub handshake: Duration,
    /// Longest wait for a whole request head, which is also how long an idle connection is kept.
    pub head: Duration,
    /// Longest time in which a client takes nothing of what was sent.
    pub write_stall: Duration,
    /// How long requests under way may go on after shutdown was asked for.
    pub drain: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            connections: 1_024,
            connections_per_address: 512,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(30),
            write_stall: Duration::from_secs(30),
            drain: Duration::from_secs(10),
        }
    }
}
