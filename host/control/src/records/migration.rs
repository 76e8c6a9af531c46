//! Migrations: what is asked, how far one is, what each round sent.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::VmId;
use crate::names::Name;

/// Asks for a live migration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// The host to go to, by the name it was introduced under.
    pub to: Name,
    /// TLS streams, 1 to 64; 4 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<u8>,
    /// The pause that the guest may see, ms; the last round is sent once it is forecast to fit (default 300).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<u64>,
}

/// A migration, seen from this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Migration {
    /// Its identity, the same on both hosts.
    pub id: String,
    /// The machine.
    pub vm: VmId,
    /// The machine's project.
    pub project: Name,
    /// The machine's name.
    pub vm_name: Name,
    /// Where it comes from.
    pub from: Name,
    /// Where it goes.
    pub to: Name,
    /// Whether this host sends or receives.
    pub side: Side,
    /// How far it is.
    pub phase: MigrationPhase,
    /// Why it ended as it did, in a sentence.
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
    /// The rounds, oldest first; the last 64 are kept.
    #[serde(default)]
    pub rounds: Vec<Round>,
}

/// Which end of a migration a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// It sends.
    Source,
    /// It receives.
    Destination,
}

/// How far a migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationPhase {
    /// Everything that could refuse it is being asked.
    Preparing,
    /// Memory goes over while the guest runs.
    Copying,
    /// The guest is paused and the rest goes over.
    Handover,
    /// The source gave the machine away and does not know yet whether it arrived.
    InDoubt,
    /// The destination owns and runs it.
    Done,
    /// It did not happen; the source owns the machine as before.
    Failed,
}

impl MigrationPhase {
    /// Whether nothing more will happen.
    pub fn ended(self) -> bool {
        matches!(self, Self::Done | Self::Failed)
    }
}

/// What a migration measured so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Round under way, from 1.
    pub round: u32,
    /// Pages of this round that were sent.
    pub pages_sent: u64,
    /// Pages of this round.
    pub pages_total: u64,
    /// Bytes on the wire so far, both directions, all streams, headers of TLS included and of TCP/IP not.
    pub wire_bytes: u64,
    /// Pages the guest dirties a second.
    pub dirty_pages_per_s: f64,
    /// Goodput, bytes of payload a second.
    pub rate_bytes_per_s: f64,
    /// When it will have ended, as forecast, in ms from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_ms: Option<u64>,
    /// From pause at the source to run at the destination as the hosts saw it, ms (destination: from commit received).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<f64>,
}

/// One round of copying, as recorded; the convergence decision is a function of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Round {
    /// Its number, from 1.
    pub number: u32,
    /// Pages sent, zero pages included.
    pub pages: u64,
    /// Of these, pages of zeros.
    pub zero_pages: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// How long it took until all was acknowledged, ms.
    pub duration_ms: u64,
    /// Pages dirty at its end.
    pub dirty_pages: u64,
    /// What was decided after it, and why.
    pub decision: String,
}
