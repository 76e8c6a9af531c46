//! One virtual machine in one process.
//!
//! `dwcp-vmm` is started by the launcher with nothing but descriptors, builds the machine that its configuration
//! describes ([`config`]), and then does what it is told over one Unix socket ([`protocol`], [`client`]). The guest is
//! hostile, and so is whoever hands over a device state: both are bounded and checked.
//!
//! What always holds: no vCPU runs before `Run`; a request is answered in order on its connection; when the guest ends
//! itself, or the process must end, its last words say why.
//!
//! This crate must never know a network peer, the store, who owns the VM, or why it is paused.

pub mod baseline;
pub mod client;
pub mod config;
pub mod dhcp;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod process;
pub mod protocol;
pub mod spawn;
pub mod state;
pub mod vsock;

mod boot;
mod devices;
mod end;
mod filters;
mod kvm;
mod machine;
mod server;
mod vcpu;
