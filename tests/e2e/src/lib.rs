//! What needs more than one crate: a bed of two hosts joined by an emulated WAN, the demonstration, and what the fault,
//! nested and benchmark programs share.
//!
//! What always holds: traffic stays in network namespaces that this run made; every process, namespace and directory
//! carries the run's id; all of it is gone when the [`Bed`] is dropped.

pub mod bed;
pub mod bench;
pub mod demo;
pub mod host;
pub mod initramfs;
pub mod memory_check;
pub mod programs;
pub mod steps;

pub use bed::{Bed, BedOptions};
pub use host::{HostOptions, TestHost};
pub use programs::Programs;
