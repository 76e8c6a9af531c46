//! What is said of sockets between guest and host.

use super::{Said, record};

record! {
    /// A socket device as the guest found it.
    VsockFound, "vsock", "cid" {
        /// The guest's context number.
        cid: u64,
        /// What guest and device agreed on.
        features: u64,
    }
}

record! {
    /// `vsock=connect:`: how it went.
    VsockConnect, "vsock", "connect" {
        /// The host's port.
        port: u64,
        /// Bytes sent: the pattern of the seed, from its beginning on.
        sent: u64,
        /// Bytes that came back.
        echoed: u64,
        /// Bytes of them that are not what was sent.
        bad: u64,
        /// Packets that came although the guest had no room for them.
        excess: u64,
        /// Sum of what came back, by [`crate::pattern::add_to_sum`].
        sum: u64,
        /// `ok`, `refused`, `ended` (by the peer, too early), `silent`.
        outcome: String,
    }
}

record! {
    /// `vsock=listen:`: a connection that has ended.
    VsockServed, "vsock", "served" {
        /// The port of the host's end.
        peer_port: u64,
        /// Bytes sent back.
        echoed: u64,
        /// Packets that came although the guest had no room for them.
        excess: u64,
        /// Sum of what came, by [`crate::pattern::add_to_sum`].
        sum: u64,
        /// Connections so far.
        connections: u64,
        /// `done`, `peer` (it broke off), `reset` (the device did).
        end: String,
    }
}

record! {
    /// The device has said that all connections are gone.
    VsockReset, "vsock", "reset" {
        /// The guest's context number from now on.
        cid: u64,
    }
}
