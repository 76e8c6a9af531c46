//! What is in a vendor's disk image: its format, its partitions, and the kernel that it would boot.
//!
//! `dwcp image add FILE` takes images as vendors ship them. They are hostile input: whoever made one may have made it
//! to attack its reader. So it is read by a process of its own, the program `dwcp-image`, which has the image, two empty
//! files for kernel and initrd, and one socket for its answer, and nothing else. Start with [`protocol`]: it draws the
//! exchange.
//!
//! What always holds:
//! - no file is opened by name, neither by this crate nor on the word of an image;
//! - everything that an image can make long or deep or many is bounded ([`limits`]);
//! - a damaged image, a file system that is not read, an image without a kernel is an answer with a reason, never a
//!   panic;
//! - what the process answers is checked again by whoever reads it.
//!
//! The layers, each knowing only those above it: [`disk`] makes one disk of a chain of image files; [`partitions`]
//! divides it; [`files`] reads files out of a partition; [`system`] opens all of them; [`boot`] finds kernel, initrd and
//! command line; [`task`] does what the protocol asks.
//!
//! Two more parts have no hostile input, and run where they are called: [`seed`] makes the disk from which cloud-init
//! configures a guest, and [`volume`] makes empty volumes.
//!
//! This crate must never know what runs a VM, where images are kept, or who asked.

pub mod boot;
mod bytes;
pub mod disk;
pub mod files;
mod filters;
pub mod limits;
pub mod partitions;
pub mod process;
pub mod protocol;
pub mod seed;
mod shown;
pub mod system;
pub mod task;
pub mod volume;
