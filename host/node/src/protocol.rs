//! What two daemons say to each other over a session: one JSON message with its length before it, asked and answered in
//! turn. The session is TLS with both certificates pinned, so that the speaker is known before the first byte is read.

use dwcp_control::ownership::Outcome;
use dwcp_control::records::{Capacity, Digest, Vm};
use dwcp_snapshot::Cpu;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest message, bytes.
const MESSAGE_BYTES_MAX: u32 = 1 << 20;

/// What one daemon asks the other.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ask {
    /// Who are you, and what have you left?
    Hello,
    /// Will you take this machine? The rest of the session is about it.
    Offer(Box<Offer>),
    /// Here is an image that you said you lack: this many raw bytes follow.
    Image {
        digest: Digest,
        label: String,
        size_bytes: u64,
    },
    /// Make ready to receive.
    Prepare,
    /// It is yours under this epoch, once all of it is there.
    Commit { epoch: u64 },
    /// The migration does not happen.
    Abort { reason: String },
    /// What became of the machine under this epoch?
    Outcome { vm: String, epoch: u64 },
}

/// A machine on offer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Offer {
    /// The migration's identity.
    pub migration: String,
    /// Number that the streams' preambles carry.
    pub transfer: u64,
    /// The machine, with the epoch under which the source owns it.
    pub vm: Vm,
    /// The highest epoch that the source has ever seen used for it.
    pub epoch: u64,
    /// SHA-256 of the certificate that the source made for this transfer.
    pub certificate_sha256: Digest,
    /// TLS streams.
    pub streams: u8,
    /// What the guest was told of its CPU.
    pub cpu: Cpu,
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reply {
    Hello {
        name: String,
        region: String,
        capacity: Capacity,
    },
    /// Accepted, to be owned under `epoch`; these images are missing here.
    Accepted {
        epoch: u64,
        certificate_sha256: Digest,
        missing: Vec<Digest>,
    },
    /// Done as asked.
    Done,
    /// The machine was taken under this epoch: durably, before this was said.
    Took { epoch: u64 },
    /// An answer to `Outcome`.
    Outcome { epoch: u64, outcome: Outcome },
    /// Not done, and why.
    Refused { reason: String },
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("The connection to the other host broke")]
    Io(#[source] std::io::Error),
    #[error("The other host closed the connection")]
    Closed,
    #[error("The other host sent a message of {0} bytes, over the limit of {MESSAGE_BYTES_MAX}")]
    TooLong(u32),
    #[error("The other host sent something that is not understood: it may run another version")]
    Malformed(#[from] serde_json::Error),
    #[error("The other host refused: {0}")]
    Refused(String),
    #[error("The other host answered something else than was asked")]
    Unexpected,
    #[error("The other host did not answer in time")]
    Deadline,
}

impl From<std::io::Error> for SessionError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            // Also what TLS calls an end without a goodbye, which is how a daemon that was killed ends.
            std::io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// Sends one message.
pub(crate) async fn send<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> Result<(), SessionError> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|l| *l <= MESSAGE_BYTES_MAX)
        .ok_or(SessionError::TooLong(u32::MAX))?;
    stream.write_all(&length.to_le_bytes()).await?;
    stream.write_all(&body).await?;
    stream.flush().await?;
    Ok(())
}

/// Waits for one message.
pub(crate) async fn receive<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<T, SessionError> {
    let length = stream.read_u32_le().await?;
    if length > MESSAGE_BYTES_MAX {
        return Err(SessionError::TooLong(length));
    }
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).await?;
    Ok(serde_json::from_slice(&body)?)
}
