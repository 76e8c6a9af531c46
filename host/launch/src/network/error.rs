//! Why a request about networks was refused, in sentences that say what to do.
//!
//! This module must not know how anything is done.

use dwcp_launch::address::{Ipv4Prefix, NetworkName};
use dwcp_launch::protocol::{NETWORKS_MAX, NICS_MAX};

use super::forwarding::ForwardingError;
use super::names::Prefix;
use super::netlink::NetlinkError;
use super::nft::NftError;
use super::subnets::SubnetError;

/// Why a request about networks was refused.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// There is no such network.
    #[error("There is no network {0} on this host: ensure it first")]
    Unknown(NetworkName),
    /// VMs are on it.
    #[error("The network {0} has VMs on it: end them first")]
    Busy(NetworkName),
    /// It is there, but not as it was asked for.
    #[error(
        "The network {name} is there with another kind or with the subnet {subnet}: remove it first"
    )]
    Different {
        /// Which one.
        name: NetworkName,
        /// Its subnet.
        subnet: Ipv4Prefix,
    },
    /// The limit of networks is reached.
    #[error("There are {NETWORKS_MAX} networks already: remove one")]
    TooMany,
    /// The limit of interfaces is reached.
    #[error("A VM has at most {NICS_MAX} network interfaces, not {0}")]
    TooManyNics(usize),
    /// The addresses cannot be had.
    #[error(transparent)]
    Subnet(#[from] SubnetError),
    /// The interface's address does not fit.
    #[error("{address} is no address for a VM of the network {network}, which is {subnet}")]
    Address {
        /// The interface's.
        address: Ipv4Prefix,
        /// The network.
        network: NetworkName,
        /// The network's.
        subnet: Ipv4Prefix,
    },
    /// Another interface has one of the addresses.
    #[error("{what} is taken on the network {network}")]
    Taken {
        /// The address.
        what: String,
        /// The network.
        network: NetworkName,
    },
    /// Another launcher has these names.
    #[error(
        "Another launcher has the networks named {0} on this host: give one of them another --network-prefix"
    )]
    Locked(Prefix),
    /// The lock cannot be taken.
    #[error("The lock on the names of networks cannot be taken in /run")]
    Lock(#[source] std::io::Error),
    /// A link could not be made or changed.
    #[error("The link {name} could not be made")]
    Link {
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        source: NetlinkError,
    },
    /// The kernel's network could not be asked or cleared.
    #[error("The links of this host could not be read or cleared")]
    Links(#[source] NetlinkError),
    /// The rules do not know the tap.
    #[error("The packet filter could not be told who is behind {tap}")]
    Filter {
        /// Its name.
        tap: String,
        /// Why not.
        #[source]
        source: NetlinkError,
    },
    /// What rules there are could not be asked.
    #[error("The packet filter could not be asked for its tables")]
    Tables(#[source] NetlinkError),
    /// The tap could not be made.
    #[error("The tap {name} could not be made; the kernel needs tun")]
    Tap {
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A namespace for one interface.
    #[error("The kernel refused a network namespace for an interface whose addresses are mapped")]
    Namespace(#[source] nix::errno::Errno),
    /// The addresses inside and outside are the same.
    #[error("{0} cannot be mapped to itself: give the interface another address on its network")]
    MappedToItself(Ipv4Prefix),
    /// A setting of a bridge.
    #[error("The setting {path} cannot be changed")]
    Setting {
        /// Which one.
        path: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The rules could not be set.
    #[error(transparent)]
    Rules(#[from] NftError),
    /// The host does not forward.
    #[error(transparent)]
    Forwarding(#[from] ForwardingError),
}

impl NetworkError {
    /// Whether a link could not be made because there is one of that name.
    pub fn is_taken(&self) -> bool {
        match self {
            Self::Tap { source, .. } => source.raw_os_error() == Some(libc::EBUSY),
            Self::Link { source, .. } => source.errno() == Some(nix::errno::Errno::EEXIST),
            _ => false,
        }
    }
}
