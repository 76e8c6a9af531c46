//! The only privileged program: it makes namespaces, control groups, guest memory, networks and descriptors, and is the
//! parent of every VMM and mover.
//!
//! What always holds:
//! - it does only what [`protocol`] lists, and only for the one user it was started for;
//! - a child gets numbered descriptors, an empty read-only root, namespaces of its own, a user of its own and no
//!   capability; it dies with the launcher;
//! - a guest speaks on its network under its own addresses only, and what was made for networks goes with the launcher;
//! - why a child ended is kept until the client says that it knows;
//! - it outlives its client, and no client can make it wait.
//!
//! It must never know what a VMM or a mover does with what it is given.

pub mod address;
pub mod client;
pub mod protocol;

pub use client::{Abilities, Client, ClientError, Exits};
