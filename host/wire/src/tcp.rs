//! The TCP socket beneath a stream: what we set on it and what it tells us.
//!
//! Congestion control is the kernel's, and so are the buffers: we never set `SO_SNDBUF` or `SO_RCVBUF`, because that
//! ends the kernel's own tuning, which follows the congestion window up to `tcp_wmem` and `tcp_rmem` (4 MiB and more
//! by default, some three times what 100 Mbit/s × 100 ms needs on a single stream).
//!
//! Must not know what the bytes are.

use std::os::fd::{AsFd, AsRawFd};

use libc::{c_int, c_void, socklen_t};

/// What the kernel knows about a connection (`TCP_INFO`, from `linux/tcp.h`). Fields that this kernel lacks are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// Smoothed round trip, in microseconds.
    pub rtt_us: u32,
    /// Its mean deviation, in microseconds.
    pub rtt_variation_us: u32,
    /// Smallest round trip seen of late, in microseconds.
    pub rtt_min_us: u32,
    /// Congestion window, in segments.
    pub congestion_window: u32,
    /// Segment size, in bytes.
    pub segment_bytes: u32,
    /// Segments sent again over the connection's life.
    pub retransmits: u32,
    /// Bytes written by us that the kernel has not sent yet.
    pub unsent_bytes: u32,
    /// Payload bytes sent, those sent again included.
    pub sent_bytes: u64,
    /// Of these, bytes sent again.
    pub resent_bytes: u64,
    /// Payload bytes that the peer's kernel has acknowledged.
    pub acked_bytes: u64,
    /// Payload bytes received.
    pub received_bytes: u64,
    /// Most recent goodput measured by the kernel, in bytes per second.
    pub delivery_bytes_per_s: u64,
    /// Whether that goodput was limited by us and not by the link.
    pub delivery_limited_by_us: bool,
    /// How long in all the peer's window, not the link, held us up, in microseconds.
    pub receiver_limited_us: u64,
}

/// Prepares a socket for a stream: small frames go at once.
///
/// # Errors
/// When it is not a TCP socket.
pub fn tune(socket: impl AsFd) -> std::io::Result<()> {
    set(
        socket,
        libc::IPPROTO_TCP,
        libc::TCP_NODELAY,
        &1i32.to_ne_bytes(),
    )
}

/// Limits what the kernel sends on one connection, in bytes of payload per second; `None` lifts the limit. Transfers are
/// not paced yet; the tests of transfers make slow links with it.
///
/// # Errors
/// When it is not a TCP socket.
pub fn set_pacing(socket: impl AsFd, bytes_per_s: Option<u64>) -> std::io::Result<()> {
    let rate = bytes_per_s.unwrap_or(u64::MAX);
    let level = libc::SOL_SOCKET;
    set(socket, level, libc::SO_MAX_PACING_RATE, &rate.to_ne_bytes())
}

/// Asks the kernel about a connection.
///
/// # Errors
/// When it is not a TCP socket.
pub fn info(socket: impl AsFd) -> std::io::Result<TcpInfo> {
    // `struct tcp_info` grows at its end; a kernel fills what it knows, and the rest stays zero.
    let mut raw = [0u8; 232];
    let mut length = raw.len() as socklen_t;
    // SAFETY: the buffer is writable for `length` bytes, and `length` is valid for reading and writing.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            raw.as_mut_ptr().cast::<c_void>(),
            &mut length,
        )
    };
    if result != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(parse(&raw))
}

fn parse(raw: &[u8; 232]) -> TcpInfo {
    let u32_at = |at: usize| {
        raw[at..]
            .first_chunk()
            .map_or(0, |b| u32::from_ne_bytes(*b))
    };
    let u64_at = |at: usize| {
        raw[at..]
            .first_chunk()
            .map_or(0, |b| u64::from_ne_bytes(*b))
    };
    TcpInfo {
        rtt_us: u32_at(68),
        rtt_variation_us: u32_at(72),
        rtt_min_us: u32_at(148),
        congestion_window: u32_at(80),
        segment_bytes: u32_at(16),
        retransmits: u32_at(100),
        unsent_bytes: u32_at(144),
        sent_bytes: u64_at(200),
        resent_bytes: u64_at(208),
        acked_bytes: u64_at(120),
        received_bytes: u64_at(128),
        delivery_bytes_per_s: u64_at(160),
        delivery_limited_by_us: raw[7] & 1 == 1,
        receiver_limited_us: u64_at(176),
    }
}

fn set(socket: impl AsFd, level: c_int, name: c_int, value: &[u8]) -> std::io::Result<()> {
    // SAFETY: the value is readable for its length, which is a few bytes.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            value.as_ptr().cast::<c_void>(),
            value.len() as socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
