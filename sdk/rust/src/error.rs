//! What can go wrong between a program and a host.

use crate::types::{Operation, Problem};

/// Answer of every call.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host understood and refused; the problem says why, with single reasons.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The operation that was waited for failed.
    #[error("{} of {} failed: {}", .0.action, .0.object, .0.message)]
    OperationFailed(Box<Operation>),
    /// What was asked for makes no sense; nothing was sent.
    #[error("{0}")]
    Usage(String),
    /// The profile cannot be used.
    #[error("The profile cannot be used: {0}")]
    Profile(String),
    /// The host does not answer, or the connection broke and repeating did not help.
    #[error("The host at {address} does not answer; check the address and that dwcpd runs there")]
    Unreachable {
        /// Where it should be.
        address: String,
        /// What the network said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The host's answer is not what its API promises.
    #[error("The host's answer was not understood: {0}")]
    Answer(String),
    /// A file of this machine could not be read.
    #[error("{path} could not be read")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// The problem, if the host refused.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Problem(problem) => Some(problem),
            _ => None,
        }
    }

    /// Whether the host said that there is no such object.
    pub fn is_not_found(&self) -> bool {
        self.problem().is_some_and(|problem| problem.status == 404)
    }

    /// Single reasons, where there are several.
    pub fn reasons(&self) -> &[String] {
        self.problem().map_or(&[], |problem| &problem.reasons)
    }
}
