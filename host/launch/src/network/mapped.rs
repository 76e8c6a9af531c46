//! A guest that goes on with the addresses of another one, on a network where it has addresses of its own.
//!
//! ```text
//! bridge --- PREFIX-SLOT-N ===== host (own address)   guest (answers for the router) --- tap's descriptor
//!            host's namespace  |        a namespace of the interface's own
//! ```
//! What always holds: on the bridge's side is only the guest's own address, so what is said of taps is said of the
//! pair's outer end; inside it, what does not come from the inside addresses goes nowhere; the namespace lives as long
//! as the tap's descriptor, and nothing else keeps it. This module must not know whose addresses the inside ones were.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use dwcp_launch::address::{Ipv4Prefix, Mac};
use dwcp_launch::protocol::Inside;
use nix::sched::{CloneFlags, unshare};

use super::links::Links;
use super::netlink::NetlinkError;
use super::nft::Nft;
use super::{NetworkError, bridge_mac, rules, set, tap};

/// The tap, in the namespace.
pub const GUEST: &str = "guest";
/// The inner end of the pair.
pub const HOST: &str = "host";
/// The answer of a router that does not let its guest wait.
const SETTINGS: [(&str, &str); 4] = [
    ("conf/guest/proxy_arp", "1"),
    ("neigh/guest/proxy_delay", "0"),
    ("conf/guest/send_redirects", "0"),
    ("conf/all/send_redirects", "0"),
];

/// What is to be made.
#[derive(Clone, Debug)]
pub struct Mapped {
    /// The outer end of the pair.
    pub outer: String,
    /// On the network.
    pub mac: Mac,
    /// On the network.
    pub address: Ipv4Prefix,
    /// The way out of the network, if there is one.
    pub gateway: Option<Ipv4Addr>,
    /// What the guest takes for its addresses.
    pub inside: Inside,
}

/// Makes the pair, the namespace behind it, and the tap in there. The outer end is down and belongs to nothing.
pub fn make(nft: &Nft, mapped: Mapped) -> Result<OwnedFd, NetworkError> {
    // A namespace is a thread's: this one ends before anything else is done.
    let nft = nft.clone();
    let thread = std::thread::Builder::new().spawn(move || make_here(&nft, &mapped));
    let thread = thread.map_err(|source| {
        let errno = source.raw_os_error().unwrap_or(libc::EAGAIN);
        NetworkError::Namespace(nix::errno::Errno::from_raw(errno))
    })?;
    let made = thread.join();
    made.unwrap_or_else(|_| Err(NetworkError::Namespace(nix::errno::Errno::ECHILD)))
}

fn make_here(nft: &Nft, mapped: &Mapped) -> Result<OwnedFd, NetworkError> {
    let failed = |name: &str| {
        let name = name.to_owned();
        move |source| NetworkError::Link { name, source }
    };
    let mut outside = Links::open().map_err(NetworkError::Links)?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(NetworkError::Namespace)?;
    let namespace = File::open("/proc/thread-self/ns/net").map_err(|source| {
        let errno = source.raw_os_error().unwrap_or(libc::EIO);
        NetworkError::Namespace(nix::errno::Errno::from_raw(errno))
    })?;
    let mut links = Links::open().map_err(NetworkError::Links)?;
    let off = "/proc/sys/net/ipv6/conf/all/disable_ipv6";
    set(off, "1", true)?;
    set("/proc/sys/net/ipv4/ip_forward", "1", false)?;
    nft.apply(&rules::mapping(mapped))?;
    let device = tap::create(GUEST).map_err(|source| NetworkError::Tap {
        name: GUEST.to_owned(),
        source,
    })?;
    outside
        .add_pair(&mapped.outer, HOST, mapped.mac, namespace.as_raw_fd())
        .map_err(failed(&mapped.outer))?;
    // The rest may fail too: then the outer end goes with the namespace.
    host_side(&mut links, mapped).map_err(failed(HOST))?;
    guest_side(&mut links, mapped).map_err(failed(GUEST))?;
    for (setting, value) in SETTINGS {
        set(&format!("/proc/sys/net/ipv4/{setting}"), value, false)?;
    }
    let guest = links.index(GUEST).map_err(failed(GUEST))?;
    links.set_up(guest).map_err(failed(GUEST))?;
    let inside = mapped.inside;
    links
        .add_route(guest, single(inside.address.address()), None)
        .and_then(|()| links.add_neighbour(guest, inside.address.address(), inside.mac))
        .map_err(failed(GUEST))?;
    Ok(device)
}

/// The guest's place on the network.
fn host_side(links: &mut Links, mapped: &Mapped) -> Result<(), NetlinkError> {
    let host = links.index(HOST)?;
    links.add_address(host, single(mapped.address.address()))?;
    links.set_up(host)?;
    links.add_route(host, mapped.address.network(), None)?;
    match mapped.gateway {
        Some(gateway) => links.add_route(host, everything(), Some(gateway)),
        None => Ok(()),
    }
}

/// Has the router's Ethernet address, which the guest may still know.
fn guest_side(links: &mut Links, mapped: &Mapped) -> Result<(), NetlinkError> {
    let guest = links.index(GUEST)?;
    // Five bytes of ours make a unicast address in any case.
    let mac = bridge_mac(mapped.inside.address.network()).map_err(|_| NetlinkError::Malformed)?;
    links.set_mac(guest, mac)
}

fn single(address: Ipv4Addr) -> Ipv4Prefix {
    Ipv4Prefix::new(address, 32).unwrap_or_else(|_| everything())
}

fn everything() -> Ipv4Prefix {
    Ipv4Prefix::ANY
}
