//! DWCP (distributed WAN communication protocol) on the wire: how memory pages and host-to-host messages travel.
//!
//! The problem: move bytes between two hosts over a slow, long or lossy link, sending as few as possible, under keys
//! that only these two know, while every byte that arrives is treated as hostile.
//!
//! What always holds:
//! - No decode function panics or allocates more than a stated bound, whatever it is given.
//! - A frame's content never changes under its sequence number, so a frame that arrives twice is applied once.
//! - TLS 1.3 only, both sides authenticated, each certificate pinned by its SHA-256.
//!
//! From the outside in: [`preamble`] tells a new connection's purpose in the clear; [`tls`] and [`stream`] make it a
//! secure stream; [`frame`] cuts the stream into checked units; [`ladder`] turns memory pages into frame payloads and
//! back, at a [`level`] chosen from what was measured; [`tcp`] tunes and measures the socket beneath.
//!
//! This crate must never know what a VM is, who owns it, or how a migration is decided.

pub mod frame;
pub mod ladder;
pub mod level;
pub mod preamble;
pub mod stream;
pub mod tcp;
pub mod tls;
