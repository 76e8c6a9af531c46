//! What is said of network interfaces.

use std::net::Ipv4Addr;

use super::{Said, record};

record! {
    /// A network interface as the guest found it.
    NetFound, "net", "mac" {
        /// Its address on the link, as six pairs of digits.
        mac: String,
        /// What guest and device agreed on.
        features: u64,
        /// The longest IP packet.
        mtu: u64,
        /// The link is up.
        link: bool,
    }
}

record! {
    /// `net=dhcp`: what the server gave; what it did not say is zero.
    NetLease, "net", "dhcp" {
        /// Address and prefix: `10.0.2.15/24`.
        address: String,
        /// The way to other networks.
        router: Ipv4Addr,
        /// The first name server.
        dns: Ipv4Addr,
        /// Who gave it.
        server: Ipv4Addr,
        /// For how long, in seconds.
        lease_s: u64,
    }
}

record! {
    /// `net=send:`: what became of the datagrams.
    NetSend, "net", "send" {
        /// Sent.
        sent: u64,
        /// Came back as they were sent.
        echoed: u64,
        /// Came back otherwise.
        bad: u64,
        /// Did not come back in time.
        lost: u64,
    }
}

record! {
    /// `net=loop`, once a second: counts since the start, but for the slowest.
    NetLoop, "net", "loop" {
        /// Sent.
        sent: u64,
        /// Came back as they were sent.
        echoed: u64,
        /// Came back otherwise.
        bad: u64,
        /// Did not come back within a second.
        lost: u64,
        /// The longest echo since the last such line, in microseconds.
        slow_us: u64,
    }
}

record! {
    /// `net=echo`, once a second.
    NetEcho, "net", "echoed" {
        /// Datagrams sent back so far.
        echoed: u64,
    }
}
