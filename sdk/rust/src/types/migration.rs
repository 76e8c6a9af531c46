//! Migrations.

use serde::{Deserialize, Serialize};

use super::words;

/// Asks for a live migration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MigrateRequest {
    /// The host to go to.
    pub to: String,
    /// TLS streams, 1 to 64; 4 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<u8>,
    /// The pause that the guest may see, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<u64>,
}

impl MigrateRequest {
    /// To a host, with everything else chosen there.
    pub fn to(host: impl Into<String>) -> Self {
        Self {
            to: host.into(),
            streams: None,
            pause_ms: None,
        }
    }
}

/// Ends a doubt by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolve {
    /// The host that will never run the machine under this epoch.
    pub fenced: String,
}

/// A migration, seen from the host that answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Migration {
    /// Its identity, the same on both hosts.
    pub id: String,
    /// The machine's identity.
    pub vm: String,
    /// The machine's project.
    pub project: String,
    /// The machine's name.
    pub vm_name: String,
    /// Where it comes from.
    pub from: String,
    /// Where it goes.
    pub to: String,
    /// Whether the host sends or receives.
    pub side: Side,
    /// How far it is.
    pub phase: MigrationPhase,
    /// Why it ended as it did.
    #[serde(default)]
    pub reason: String,
    /// The epoch under which the destination will own the machine.
    pub epoch: u64,
    /// When it began, ms.
    pub started_ms: u64,
    /// When it ended, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// What was measured.
    pub progress: Progress,
    /// The rounds, oldest first; the last 64.
    #[serde(default)]
    pub rounds: Vec<Round>,
}

/// Which end of a migration a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// It sends.
    Source,
    /// It receives.
    Destination,
    /// Something that this client does not know.
    #[serde(other)]
    Unknown,
}

words!(Side { Source => "source", Destination => "destination" });

/// How far a migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationPhase {
    /// Everything that could refuse it is being asked.
    Preparing,
    /// Memory goes over while the guest runs.
    Copying,
    /// The guest is paused and the rest goes over.
    Handover,
    /// The source does not know yet whether it arrived.
    InDoubt,
    /// The destination owns and runs it.
    Done,
    /// It did not happen.
    Failed,
    /// Something that this client does not know.
    #[serde(other)]
    Unknown,
}

words!(MigrationPhase {
    Preparing => "preparing",
    Copying => "copying",
    Handover => "handover",
    InDoubt => "in-doubt",
    Done => "done",
    Failed => "failed",
});

impl MigrationPhase {
    /// Whether nothing more will happen.
    pub fn ended(self) -> bool {
        matches!(self, Self::Done | Self::Failed)
    }
}

/// What a migration measured so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Round under way, from 1.
    pub round: u32,
    /// Pages of this round that were sent.
    pub pages_sent: u64,
    /// Pages of this round.
    pub pages_total: u64,
    /// Bytes on the wire so far.
    pub wire_bytes: u64,
    /// Pages the guest dirties a second.
    pub dirty_pages_per_s: f64,
    /// Goodput, bytes of payload a second.
    pub rate_bytes_per_s: f64,
    /// When it will have ended, as forecast, in ms from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_ms: Option<u64>,
    /// From pause to run as the hosts saw it, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<f64>,
}

/// One round of copying.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Its number, from 1.
    pub number: u32,
    /// Pages sent, zero pages included.
    pub pages: u64,
    /// Of these, pages of zeros.
    pub zero_pages: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// How long it took, ms.
    pub duration_ms: u64,
    /// Pages dirty at its end.
    pub dirty_pages: u64,
    /// What was decided after it, and why.
    pub decision: String,
}
