//! Who may run a virtual machine: the hand-over between two hosts as one small state machine, kept durably by each.
//!
//! ```text
//!        source                                         destination
//!        Owned n                                        (nothing, or older)
//!          |  -- offer n+1 ------------------------------> Expecting n+1
//!          |  == memory, while the guest runs ==========>
//!        pause
//!        Given n → n+1   (durable)
//!          |  -- commit n+1, behind the last data -------> Owned n+1   (durable), then the guest runs
//!          |  <----------------------------- took n+1 --
//!        Moved n+1
//! ```
//!
//! What always holds, whatever is lost, repeated or killed: a host runs a machine only in `Owned`; after `Given` the
//! source returns to `Owned` only on the destination's durable `Refused` of that very epoch, and then under a newer
//! one; a destination that refused never takes that epoch. So at most one host runs it.

use serde::{Deserialize, Serialize};

use crate::names::Name;

/// Highest epoch that is believed from another host: far beyond any honest count, far below overflow.
pub const EPOCH_MAX: u64 = 1 << 62;

/// What one host durably knows of who owns a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Ownership {
    /// This host owns it under `epoch`, and alone may run it.
    Owned {
        /// The epoch.
        epoch: u64,
    },
    /// This host gave it to `to` under `next`, and does not know yet whether it arrived.
    Given {
        /// The epoch that is offered.
        next: u64,
        /// The host it was given to.
        to: Name,
        /// The migration under which this happened.
        migration: String,
    },
    /// It lives elsewhere: `to` took it under `epoch`.
    Moved {
        /// The epoch under which it was taken.
        epoch: u64,
        /// The host that took it.
        to: Name,
    },
    /// This host agreed to take it under `next` and has not.
    Expecting {
        /// The epoch that is offered.
        next: u64,
        /// The host that offers it.
        from: Name,
        /// The migration under which this happens.
        migration: String,
        /// The highest epoch under which this host had it before; 0 if it never had.
        took: u64,
    },
    /// This host never ran it under `next`, and never will.
    Refused {
        /// The epoch that was burnt.
        next: u64,
        /// The highest epoch under which this host had it before; 0 if it never had.
        took: u64,
    },
}

/// A step that the rules forbid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The machine cannot be {wanted} here, because this host holds it as {held}")]
pub struct Forbidden {
    wanted: String,
    held: String,
}

/// What a destination answers when asked what became of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It took the machine under that epoch (and may have given it on since).
    Took,
    /// It never ran it under that epoch and never will.
    Refused,
    /// It still could take it.
    Undecided,
}

fn forbid(wanted: impl Into<String>, held: Option<&Ownership>) -> Forbidden {
    Forbidden {
        wanted: wanted.into(),
        held: held.map_or("unknown".into(), |o| o.to_string()),
    }
}

impl Ownership {
    /// The highest epoch that this host knows to have been used or offered.
    pub fn epoch(&self) -> u64 {
        match self {
            Self::Owned { epoch } | Self::Moved { epoch, .. } => *epoch,
            Self::Given { next, .. }
            | Self::Expecting { next, .. }
            | Self::Refused { next, .. } => *next,
        }
    }

    /// The highest epoch under which this host had it, or knows that its successor had.
    pub fn took(&self) -> u64 {
        match self {
            Self::Owned { epoch } | Self::Moved { epoch, .. } => *epoch,
            Self::Given { next, .. } => next - 1,
            Self::Expecting { took, .. } | Self::Refused { took, .. } => *took,
        }
    }

    /// The run permit: the epoch under which this host may run it now.
    pub fn run_permit(&self) -> Option<u64> {
        match self {
            Self::Owned { epoch } => Some(*epoch),
            _ => None,
        }
    }

    /// Source: gives it away under `next`, which the destination chose above every epoch that either host knows.
    /// The guest must be paused, and this must be durable before the commit is sent.
    pub fn give(&self, next: u64, to: Name, migration: String) -> Result<Self, Forbidden> {
        match self {
            Self::Owned { epoch } if *epoch < next && next <= EPOCH_MAX => Ok(Self::Given {
                next,
                to,
                migration,
            }),
            held => Err(forbid(format!("given to {to} under {next}"), Some(held))),
        }
    }

    /// Source: takes it back before any commit for `next` was sent. Whoever calls this must know that of its own
    /// knowledge: after a restart nobody does, and the destination must be asked.
    pub fn withdraw(&self) -> Result<Self, Forbidden> {
        match self {
            Self::Given { next, .. } => Ok(Self::Owned { epoch: next + 1 }),
            held => Err(forbid("withdrawn", Some(held))),
        }
    }

    /// Destination: the epoch to expect a machine under, which the source owns under `epoch`.
    ///
    /// # Errors
    /// When the source names an epoch that nobody can honestly have reached.
    pub fn next_epoch(held: Option<&Self>, epoch: u64) -> Result<u64, Forbidden> {
        let next = held.map_or(0, Self::epoch).max(epoch).saturating_add(1);
        if (2..=EPOCH_MAX).contains(&next) {
            Ok(next)
        } else {
            Err(forbid(format!("expected after epoch {epoch}"), held))
        }
    }

    /// Source: the destination said what became of the epoch `next` that it was given under.
    pub fn answered(&self, answered: u64, outcome: Outcome) -> Result<Self, Forbidden> {
        match (self, outcome) {
            (Self::Given { next, to, .. }, Outcome::Took) if *next == answered => Ok(Self::Moved {
                epoch: *next,
                to: to.clone(),
            }),
            (Self::Given { next, .. }, Outcome::Refused) if *next == answered => {
                Ok(Self::Owned { epoch: next + 1 })
            }
            (held, Outcome::Undecided) => Ok(held.clone()),
            (held, _) => Err(forbid(format!("settled under {answered}"), Some(held))),
        }
    }

    /// Destination: agrees to take it under `next`.
    pub fn expect(
        held: Option<&Self>,
        next: u64,
        from: Name,
        migration: String,
    ) -> Result<Self, Forbidden> {
        let allowed = match held {
            None => true,
            Some(Self::Moved { epoch, .. }) => *epoch < next,
            Some(Self::Refused { next: burnt, .. }) => *burnt < next,
            // Only who offers it can offer it anew: another host must wait until that is settled.
            Some(Self::Expecting {
                next: before,
                from: offering,
                ..
            }) => *before < next && *offering == from,
            Some(Self::Owned { .. } | Self::Given { .. }) => false,
        };
        if allowed {
            Ok(Self::Expecting {
                next,
                from,
                migration,
                took: held.map_or(0, Self::took),
            })
        } else {
            Err(forbid(format!("expected under {next}"), held))
        }
    }

    /// Destination: takes it, on the commit of `migration` and with all its state here. Durable before it runs.
    pub fn take(&self, committed: u64, by: &str) -> Result<Self, Forbidden> {
        match self {
            Self::Expecting {
                next, migration, ..
            } if *next == committed && migration == by => Ok(Self::Owned { epoch: *next }),
            held => Err(forbid(format!("taken under {committed}"), Some(held))),
        }
    }

    /// Destination: it took the machine and its process ended before the guest could run, and nobody was told that it
    /// took it. Whoever calls this must know both of its own knowledge. The source's copy is the only one again.
    /// `before` is what [`Ownership::took`] was until it took: an older source may still ask about that.
    pub fn never_ran(&self, epoch: u64, before: u64) -> Result<Self, Forbidden> {
        match self {
            Self::Owned { epoch: has } if *has == epoch && before < epoch => Ok(Self::Refused {
                next: epoch,
                took: before,
            }),
            held => Err(forbid("given back", Some(held))),
        }
    }

    /// Destination: swears never to run it under `epoch`. Durable before it is told to anyone.
    pub fn refuse(held: Option<&Self>, epoch: u64) -> Result<Self, Forbidden> {
        let took = held.map_or(0, Self::took);
        match held {
            _ if took >= epoch => Err(forbid(format!("refused under {epoch}"), held)),
            Some(Self::Owned { .. } | Self::Given { .. }) => {
                Err(forbid(format!("refused under {epoch}"), held))
            }
            // A newer offer is under way: the older epoch is behind it for ever, which is what refusing means.
            Some(newer) if newer.epoch() > epoch => Ok(newer.clone()),
            _ => Ok(Self::Refused { next: epoch, took }),
        }
    }

    /// Destination: what became of `epoch` here.
    ///
    /// A host that had the machine under `epoch` or later had it under `epoch`: while the source of `epoch` is in
    /// doubt nobody else can own the machine, so no later epoch can exist but through this one.
    pub fn outcome(held: Option<&Self>, epoch: u64) -> Outcome {
        match held {
            Some(held) if held.took() >= epoch => Outcome::Took,
            Some(Self::Refused { next, .. }) if *next >= epoch => Outcome::Refused,
            Some(Self::Expecting { next, .. }) if *next > epoch => Outcome::Refused,
            _ => Outcome::Undecided,
        }
    }

    /// By an operator's word that the destination of `migration` is fenced and will never run it: the source owns it
    /// again, under a newer epoch. Another hand-over that is under way is not touched.
    pub fn destination_is_fenced(&self, of: &str) -> Result<Self, Forbidden> {
        match self {
            Self::Given {
                next, migration, ..
            } if migration == of => Ok(Self::Owned { epoch: next + 1 }),
            held => Err(forbid("taken back", Some(held))),
        }
    }

    /// By an operator's word that this source is fenced: the machine counts as moved by `migration`.
    pub fn source_is_fenced(&self, of: &str) -> Result<Self, Forbidden> {
        match self {
            Self::Given {
                next,
                to,
                migration,
            } if migration == of => Ok(Self::Moved {
                epoch: *next,
                to: to.clone(),
            }),
            held => Err(forbid("given up", Some(held))),
        }
    }
}

impl std::fmt::Display for Ownership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Owned { epoch } => write!(f, "owned under epoch {epoch}"),
            Self::Given { next, to, .. } => write!(f, "given to {to} under epoch {next}"),
            Self::Moved { epoch, to } => write!(f, "moved to {to} under epoch {epoch}"),
            Self::Expecting { next, from, .. } => {
                write!(f, "expected from {from} under epoch {next}")
            }
            Self::Refused { next, .. } => write!(f, "refused under epoch {next}"),
        }
    }
}
