//! The mover: carries one VM's memory to another host while the VM runs, over the streams it is handed.
//!
//! One process per transfer and side, confined, without a name to open or a port to dial: it has the VM's memory (at
//! the source read-only), a bitmap of the pages that changed, a control socket to its daemon, and the sockets that
//! come through that. Whatever the peer sends can fail this one transfer and do nothing else.
//!
//! Start with [`protocol`]: it draws the whole exchange. [`client`] is the daemon's end of it; [`source`] and
//! [`destination`] are the two sides, working on any memory and bitmap; the binary `dwcp-mover` joins them to the
//! descriptors that the launcher hands down.
//!
//! This crate must never know who owns a VM, when it is paused or run, or how a round is decided on: that is its
//! daemon's business.

pub mod client;
mod crew;
mod cursor;
pub mod destination;
mod events;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod ledger;
mod link;
pub mod protocol;
mod receiver;
mod sender;
pub mod source;

pub use events::{EventSink, Said};
