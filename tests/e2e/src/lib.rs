//! What needs more than one crate: a bed of two hosts joined by an emulated WAN, the demonstration, and what the fault,
//! nested and benchmark programs share.
//!
//! What always holds: traffic stays in network namespaces that this run made. Namespaces, interfaces and directories
//! carry the run's id in their names, programs in their arguments; processes and control groups of machines are known by
//! their launcher. All of it is gone when the [`Bed`] is dropped, which [`traces::Traces`] can check.

pub mod bed;
pub mod bench;
pub mod demo;
pub mod host;
pub mod initramfs;
pub mod memory_check;
pub mod programs;
pub mod steps;
pub mod traces;

pub use bed::{Bed, BedOptions};
pub use host::{HostOptions, TestHost};
pub use programs::Programs;
pub use traces::Traces;
