//! What a daemon and its mover say to each other, and the transfer as a whole.
//!
//! ```text
//!  dwcpd          mover                     mover          dwcpd
//!  (source)      (source)                (destination) (destination)
//!    │  configuration  │                       │  configuration  │     a sealed memfd each, from the launcher
//!    │◄──── Ready ─────│                       │───── Ready ────►│
//!    │─ Stream + fd ──►│◄═══ TLS, n times ════►│◄─ Stream + fd ──│     preambles are exchanged already
//!    │                 │                       │                 │
//!    │──── Round ─────►│═══ ZeroRuns, Pages ══►│                 │     the bitmap is full the first time;
//!    │◄─── Progress ───│◄═════════ Ack ════════│─── Progress ───►│     bits are cleared as pages are taken
//!    │◄── RoundDone ───│                       │                 │     everything of the round acknowledged
//!    │      ...        │                       │                 │     the daemon harvests, decides, asks again
//!    │                 │                       │                 │
//!    │─ Final + fd ───►│═══ ZeroRuns, Pages ══►│                 │     the VM is paused; fd is its device state
//!    │                 │══ DeviceState, End ══►│                 │
//!    │◄─── Flushed ────│                       │                 │     the last byte is in the sockets
//!    │                 │◄═════════ Ack ════════│── Complete + fd►│     counts agree, every frame is applied
//!    │◄── RoundDone ───│                       │                 │     ... and acknowledged, End included
//!    │──── closes ────►│                       │◄──── closes ────│     the movers end
//! ```
//!
//! At any time a mover may say `Failed`, once; it then does nothing more. `Failed` at the source after `Flushed` tells
//! nothing about the destination, which may well have everything: only the daemons can settle that. `Abort` makes a
//! mover fail. A mover ends when its daemon closes the control socket, whatever state the transfer is in.
//!
//! Streams may come at any time before the end. A stream that dies hands its unacknowledged frames to the others;
//! a transfer that has had streams and has none left is `Failed`. `Round` or `Final` while one is running, or
//! anything after `Final`, is a mistake of the daemon's and fails the transfer.
//!
//! Messages are JSON over [`dwcp_channel`]; one that does not fit its type ends the transfer. This module must not
//! know how any of it is done.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use dwcp_wire::tls::{Fingerprint, Identity};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Most streams that one transfer has at a time.
pub const STREAMS_MAX: u8 = 64;
/// Longest device state that is sent or accepted, in bytes.
pub const DEVICE_STATE_BYTES_MAX: u64 = 64 << 20;
/// How long a peer may be silent when the configuration does not say.
pub const IDLE_TIMEOUT_MS_DEFAULT: u64 = 30_000;
/// Descriptor of the guest's memory in a mover, or of the memory of the process that has it.
pub const MEMORY_FD: i32 = 5;
/// Descriptor of the dirty bitmap in a mover.
pub const BITMAP_FD: i32 = 6;
/// Descriptor of the control socket in a mover.
pub const CONTROL_FD: i32 = 7;

/// Which end of a transfer a mover is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Reads the VM's memory and sends it; the TLS client.
    Source,
    /// Receives and writes the VM's memory; the TLS server.
    Destination,
}

/// What a mover is told at its start.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoverConfig {
    /// The transfer's number, in every preamble and frame.
    pub transfer: u64,
    /// Which end this mover is.
    pub side: Side,
    /// Guest memory, in bytes; a multiple of 4,096.
    pub memory_bytes: u64,
    /// Source: where guest memory lies in the process that runs the VM, if the descriptor is that process's memory and
    /// not the VM's: the address of each region.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<u64>,
    /// The certificate made for this side of this transfer (X.509, DER; base64 in the JSON).
    pub certificate: Bytes,
    /// Its key (PKCS#8, DER; base64 in the JSON).
    pub key: Bytes,
    /// SHA-256 of the certificate that the peer must show.
    pub peer_sha256: Fingerprint,
    /// Most streams at a time, 1 to [`STREAMS_MAX`].
    pub streams: u8,
    /// A stream whose peer is silent for this long is dead, as is a transfer that never gets a stream.
    #[serde(default = "idle_timeout_ms_default")]
    pub idle_timeout_ms: u64,
}

impl MoverConfig {
    /// Certificate and key as one.
    pub fn identity(&self) -> Identity {
        Identity::new(self.certificate.0.clone(), self.key.0.clone())
    }

    /// [`MoverConfig::idle_timeout_ms`] as a duration.
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_timeout_ms)
    }
}

fn idle_timeout_ms_default() -> u64 {
    IDLE_TIMEOUT_MS_DEFAULT
}

/// Bytes that are base64 in JSON and never shown by `Debug`, for some are keys.
#[derive(Clone, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        let bytes = BASE64.decode(text.as_bytes());
        bytes.map(Self).map_err(serde::de::Error::custom)
    }
}

/// From the daemon to its mover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// One more stream: a connected TCP socket (the message's descriptor) whose preamble is through.
    Stream,
    /// Source: send every page whose bit is set.
    Round,
    /// Source: the same, then the device state (the message's descriptor, a memfd read from its start), then the end.
    Final,
    /// Give the transfer up.
    Abort,
}

/// From a mover to its daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The mover is confined and takes commands.
    Ready,
    /// How the transfer goes; at most five a second, only while something moves.
    Progress(Progress),
    /// Source: everything of a round, or of the final one including its end, is acknowledged.
    RoundDone(RoundDone),
    /// Source, final round: the last byte has been written to the sockets.
    Flushed,
    /// Destination: everything is here and verified. The message carries the device state, a sealed memfd.
    Complete(Complete),
    /// The transfer is over and did not succeed.
    Failed {
        /// Why, in a sentence for the operator.
        reason: String,
    },
}

/// The figures of [`Event::Progress`]. At the source they are of the current round; at the destination of the whole
/// transfer, `pages_total` being the guest's pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Pages acknowledged (source) or applied (destination), zero pages included.
    pub pages_sent: u64,
    /// Pages that there are to send.
    pub pages_total: u64,
    /// Bytes on the wire so far: what TLS put into (source) or took from (destination) the sockets.
    pub wire_bytes: u64,
    /// Of `pages_sent`, those that are all zeros.
    pub zero_pages: u64,
    /// Bytes on the wire per second, over about the last second.
    pub rate_bytes_per_s: u64,
}

/// The figures of one round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundDone {
    /// Pages sent, zero pages included.
    pub pages: u64,
    /// Of these, pages that are all zeros.
    pub zero_pages: u64,
    /// Bytes of frames: headers and content after encoding, without those sent again for a dead stream.
    pub payload_bytes: u64,
    /// Bytes that TLS put into the sockets, everything included.
    pub wire_bytes: u64,
    /// From the command to the last acknowledgement, in milliseconds.
    pub duration_ms: u64,
}

/// The figures of a finished transfer at the destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complete {
    /// Pages applied over all rounds, zero pages included.
    pub pages: u64,
    /// Bytes that TLS took from the sockets.
    pub wire_bytes: u64,
}
