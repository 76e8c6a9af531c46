//! Why a node does not start, and how the faults of its parts become answers of the API.

use std::path::PathBuf;

use dwcp_api::{Fault, FaultKind};
use dwcp_control::ownership::Forbidden;
use dwcp_store::TypedError;

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A file or directory of the state cannot be used.
    #[error("{path} cannot be used")]
    State {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something of the identity is not what this program wrote.
    #[error("{what} in the state directory is damaged: restore it from a backup")]
    Identity {
        /// Which.
        what: String,
    },
    /// The store does not open.
    #[error("The store does not open")]
    Store(#[from] dwcp_store::OpenError),
    /// The store failed during the start.
    #[error("The store failed")]
    Record(#[from] TypedError),
    /// The launcher does not answer.
    #[error("The launcher does not answer at {path}: start dwcp-launch, or name its socket")]
    Launcher {
        /// Its socket.
        path: PathBuf,
        /// Why.
        source: dwcp_launch::ClientError,
    },
    /// The audit log does not open.
    #[error("The audit log does not open")]
    Audit(#[from] dwcp_audit::OpenError),
    /// The sandbox cannot be made.
    #[error("The plugin sandbox cannot be made: {0}")]
    Sandbox(String),
    /// A port is taken.
    #[error("The address {address} cannot be listened on")]
    Listen {
        /// Which.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// A store fault as an answer.
pub(crate) fn record(error: TypedError) -> Fault {
    match error {
        TypedError::Conflict(key) => Fault::new(
            FaultKind::Conflict,
            format!("{key} exists already, or changed meanwhile: read it again"),
        ),
        TypedError::Absent(key) => Fault::not_found(key),
        other => internal(other),
    }
}

/// Any fault of ours as an answer: the caller learns the chain of causes, the log has it too.
pub(crate) fn internal(error: impl std::error::Error) -> Fault {
    let text = chain(&error);
    tracing::error!("{text}");
    Fault::internal(text)
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// A step of the hand-over that the rules forbid, as an answer.
pub(crate) fn forbidden(error: Forbidden) -> Fault {
    Fault::new(FaultKind::Conflict, error.to_string())
}

/// 409 with a sentence.
pub(crate) fn conflict(message: impl Into<String>) -> Fault {
    Fault::new(FaultKind::Conflict, message)
}

/// 422 with a sentence.
pub(crate) fn impossible(message: impl Into<String>) -> Fault {
    Fault::new(FaultKind::Impossible, message)
}

/// 503 with a sentence.
pub(crate) fn unavailable(message: impl Into<String>) -> Fault {
    Fault::new(FaultKind::Unavailable, message)
}

/// 400 with a sentence.
pub(crate) fn invalid(message: impl Into<String>) -> Fault {
    Fault::new(FaultKind::Invalid, message)
}
