//! What each plugin did: calls, faults by kind, time. Read by metrics; written at every call.
//!
//! Always: counting costs a few uncontended atomic additions. Never: a decision.

use crate::fault::FaultKind;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Counters of one open plugin handle.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    calls: AtomicU64,
    total_ns: AtomicU64,
    longest_ns: AtomicU64,
    starts: AtomicU64,
    faults: [AtomicU64; FaultKind::ALL.len()],
}

impl Counters {
    pub(crate) fn call(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.calls.fetch_add(1, Relaxed);
        self.total_ns.fetch_add(ns, Relaxed);
        if ns > self.longest_ns.load(Relaxed) {
            self.longest_ns.fetch_max(ns, Relaxed);
        }
    }

    pub(crate) fn fault(&self, kind: FaultKind) {
        if let Some(at) = FaultKind::ALL.iter().position(|k| *k == kind) {
            self.faults[at].fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn start(&self) {
        self.starts.fetch_add(1, Relaxed);
    }

    pub(crate) fn read(&self) -> Usage {
        Usage {
            calls: self.calls.load(Relaxed),
            starts: self.starts.load(Relaxed),
            total_us: self.total_ns.load(Relaxed) / 1_000,
            longest_us: self.longest_ns.load(Relaxed) / 1_000,
            faults: FaultKind::ALL
                .iter()
                .zip(&self.faults)
                .map(|(kind, count)| (*kind, count.load(Relaxed)))
                .filter(|(_, count)| *count > 0)
                .collect(),
        }
    }
}

/// A reading of one plugin's counters since it was opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Calls made, failed ones included.
    pub calls: u64,
    /// Instances started: the first, and one after every fault.
    pub starts: u64,
    /// Wall time of all calls together, in microseconds.
    pub total_us: u64,
    /// The longest call, in microseconds.
    pub longest_us: u64,
    /// Faults by kind; kinds that never happened are absent.
    pub faults: BTreeMap<FaultKind, u64>,
}
