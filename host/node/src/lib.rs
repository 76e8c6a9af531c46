//! The hands of a host: it carries out what `dwcp-control` decides, with the store, the launcher, the virtual machine
//! monitors, the movers, the sandbox and the other hosts.
//!
//! What always holds: nothing is answered before it is durable; a machine runs here only under a run permit
//! ([`Ownership::run_permit`]); whatever was cut off is found again from the store and the launcher at the next start.
//! No guest memory and no `/dev/kvm` is ever opened here.
//!
//! This crate must never know HTTP.
//!
//! [`Ownership::run_permit`]: dwcp_control::ownership::Ownership::run_permit

mod adopt;
mod auditing;
mod capacity;
mod cards;
mod config;
mod consoles;
mod cpu;
mod create;
mod decide;
mod decisions;
mod errors;
mod events;
mod forks;
mod guests;
mod hardware;
mod health;
mod identity;
mod images;
mod incoming;
mod inspect;
mod launcher;
mod layers;
mod market;
mod metrics;
mod node;
mod outgoing;
mod peers;
mod policies;
mod protocol;
mod requests;
mod restarts;
mod restore;
mod running;
mod service;
mod shells;
mod snapshots;
mod sparse;
mod state;
mod steps;
mod transfer;
mod vms;

pub use config::{NodeConfig, TrustedKey};
pub use errors::NodeError;
pub use identity::{FirstStart, HostKeys};
pub use node::Node;
