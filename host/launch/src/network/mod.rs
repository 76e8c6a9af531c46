//! Networks of VMs: bridges of this host, taps on them, and rules about what may pass.
//!
//! What always holds:
//! - rules stand before the first frame: a tap is set up after the rules know who is behind it;
//! - a request that fails leaves nothing behind, and what is left is removed: a VM's taps when it ends (out of their
//!   networks at once, then soon from the host), all networks when the launcher stops, and what a killed launcher left
//!   when the next one starts;
//! - all names begin with one prefix, which one launcher has at a time, so nobody else's links are touched;
//! - nothing is done on a machine whose VMs have no network.
//!
//! This module must not know what a VMM does with its tap, nor why a network is wanted.

mod cards;
mod error;
mod filter;
mod forwarding;
mod keep;
mod links;
mod lock;
mod mapped;
mod names;
mod netlink;
mod nft;
mod rules;
mod subnets;
mod tap;
mod watch;

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use dwcp_launch::address::{BadMac, Ipv4Prefix, Mac, NetworkName};
use dwcp_launch::protocol::{NETWORKS_MAX, Network as Shown, NetworkKind};

use crate::closer::Closer;
use cards::Nic;
pub use error::NetworkError;
use filter::Filter;
use links::{GROUP, Links};
use lock::Lock;
pub use names::Prefix;
use names::Role;
use netlink::NetlinkError;
pub use nft::Nft;
use nft::NftError;
use rules::Ruled;
use watch::Watch;

/// How long a launcher that is just starting may have the names that another one wants.
const PATIENCE: Duration = Duration::from_millis(500);

/// All networks of this launcher.
#[derive(Debug)]
pub struct Networks {
    prefix: Prefix,
    nft: Nft,
    closer: Closer,
    networks: BTreeMap<NetworkName, Network>,
    nics: Vec<Nic>,
    /// Handles of the tables that were set last.
    rules: Vec<u64>,
    /// Whether this host forwards because of launchers; remembered, because the guard may be gone.
    forwards: bool,
    // Dropped last: until then the names are ours.
    kernel: Option<Kernel>,
}

#[derive(Debug)]
struct Network {
    kind: NetworkKind,
    subnet: Ipv4Prefix,
    bridge: String,
    index: u32,
}

/// What speaks to the kernel, and the right to.
#[derive(Debug)]
struct Kernel {
    links: Links,
    filter: Filter,
    watch: Watch,
    _lock: Lock,
}

impl Networks {
    /// No network yet; removes what a killed launcher left.
    pub fn new(prefix: Prefix, nft: Nft, closer: Closer) -> Self {
        let mut networks = Self {
            prefix,
            nft,
            closer,
            networks: BTreeMap::new(),
            nics: Vec::new(),
            rules: Vec::new(),
            forwards: false,
            kernel: None,
        };
        match networks.take_hold(Duration::ZERO) {
            // A launcher that lives clears away for itself. What else fails is told here, and again when a network is
            // asked for; VMs run without.
            Ok(_) | Err(NetworkError::Locked(_)) => {}
            Err(error) => tell("Networks cannot be made for now", &error),
        }
        networks.let_go();
        networks
    }

    /// Makes a network, or finds that it is there.
    pub fn ensure(
        &mut self,
        name: &NetworkName,
        kind: NetworkKind,
        subnet: Option<Ipv4Prefix>,
    ) -> Result<Shown, NetworkError> {
        if let Some(network) = self.networks.get(name) {
            if network.kind == kind && subnet.is_none_or(|subnet| subnet == network.subnet) {
                return Ok(network.show());
            }
            return Err(NetworkError::Different {
                name: name.clone(),
                subnet: network.subnet,
            });
        }
        if self.networks.len() >= NETWORKS_MAX {
            return Err(NetworkError::TooMany);
        }
        let made = self.make(name, kind, subnet);
        self.let_go();
        made
    }

    /// Removes a network on which no VM is.
    pub fn remove(&mut self, name: &NetworkName) -> Result<(), NetworkError> {
        if self.nics.iter().any(|nic| nic.network == *name) {
            return Err(NetworkError::Busy(name.clone()));
        }
        let Some(network) = self.networks.get(name) else {
            return Ok(());
        };
        let index = network.index;
        let links = &mut self.take_hold(PATIENCE)?.links;
        links.remove(index).map_err(NetworkError::Links)?;
        self.networks.remove(name);
        // Rules about a bridge that is gone let nothing pass, and the next change replaces them.
        let result = if self.networks.is_empty() {
            let removed = self.nft.apply(&rules::remove(&self.prefix));
            removed.map_err(NetworkError::Rules)
        } else {
            self.apply_rules()
        };
        match result {
            // Without the program there were never any.
            Ok(()) | Err(NetworkError::Rules(NftError::Missing { .. })) => {}
            Err(error) => tell("Rules about a removed network stay", &error),
        }
        self.stop_forwarding();
        self.let_go();
        Ok(())
    }

    fn make(
        &mut self,
        name: &NetworkName,
        kind: NetworkKind,
        subnet: Option<Ipv4Prefix>,
    ) -> Result<Shown, NetworkError> {
        let subnet = self.find_subnet(kind, subnet)?;
        let bridge = self.free_bridge()?;
        let index = self.make_bridge(name, &bridge, subnet)?;
        let network = Network {
            kind,
            subnet,
            bridge,
            index,
        };
        let shown = network.show();
        self.networks.insert(name.clone(), network);
        if let Err(error) = self.open(name) {
            self.undo(name);
            return Err(error);
        }
        Ok(shown)
    }

    /// Takes back a network that could not be opened. A bridge that cannot be removed is no network: its name is not
    /// used, and who next takes hold of the names removes it.
    fn undo(&mut self, name: &NetworkName) {
        if let Err(error) = self.remove(name) {
            tell(&format!("The bridge of the network {name} stays"), &error);
            self.networks.remove(name);
        }
    }

    /// The name with the lowest number that no link has, whoever's it is.
    fn free_bridge(&mut self) -> Result<String, NetworkError> {
        let links = &mut self.take_hold(PATIENCE)?.links;
        let found = links.all().map_err(NetworkError::Links)?;
        let is_taken = |name: &String| found.iter().any(|link| link.name == *name);
        Ok((0..=names::BRIDGES_MAX)
            .map(|number| self.prefix.bridge(number))
            .find(|name| !is_taken(name))
            .unwrap_or_else(|| self.prefix.bridge(names::BRIDGES_MAX)))
    }

    fn find_subnet(
        &mut self,
        kind: NetworkKind,
        wanted: Option<Ipv4Prefix>,
    ) -> Result<Ipv4Prefix, NetworkError> {
        let links = &mut self.take_hold(PATIENCE)?.links;
        let mut used = links.networks().map_err(NetworkError::Links)?;
        Ok(match wanted {
            Some(subnet) => subnets::check(subnet, kind, &used)?,
            None => {
                let ours = self.networks.values().map(|network| network.subnet);
                used.joined.extend(ours);
                subnets::choose(&used)?
            }
        })
    }

    /// Makes a network's bridge, down, without an address.
    fn make_bridge(
        &mut self,
        name: &NetworkName,
        bridge: &str,
        subnet: Ipv4Prefix,
    ) -> Result<u32, NetworkError> {
        let failed = |source| NetworkError::Link {
            name: bridge.to_owned(),
            source,
        };
        // Five bytes of ours make a unicast address in any case.
        let mac = bridge_mac(subnet).map_err(|_| failed(NetlinkError::Malformed))?;
        let links = &mut self.take_hold(PATIENCE)?.links;
        let alias = format!("dwcp: network {name}");
        links.add_bridge(bridge, mac, &alias).map_err(failed)
    }

    /// Sets a new network's rules, then its bridge up.
    fn open(&mut self, name: &NetworkName) -> Result<(), NetworkError> {
        let Some(network) = self.networks.get(name) else {
            return Ok(());
        };
        let (bridge, index) = (network.bridge.clone(), network.index);
        let address = network
            .gateway()
            .and_then(|gateway| Ipv4Prefix::new(gateway, network.subnet.length()).ok());
        // The host has no business in IPv6 there, and answers ARP for the network's own address or for none.
        set(
            &format!("/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6"),
            "1",
            true,
        )?;
        let answer = if address.is_some() { "1" } else { "8" };
        set(
            &format!("/proc/sys/net/ipv4/conf/{bridge}/arp_ignore"),
            answer,
            false,
        )?;
        self.apply_rules()?;
        let links = &mut self.take_hold(PATIENCE)?.links;
        let failed = |source| NetworkError::Link {
            name: bridge.clone(),
            source,
        };
        if let Some(address) = address {
            links.add_address(index, address).map_err(failed)?;
        }
        links.set_up(index).map_err(failed)?;
        if address.is_some() {
            self.start_forwarding()?;
        }
        Ok(())
    }

    /// Takes the names if nobody has them, and clears away what has them.
    fn take_hold(&mut self, patience: Duration) -> Result<&mut Kernel, NetworkError> {
        if self.kernel.is_none() {
            let lock = Lock::take(&self.prefix.to_string(), patience)
                .map_err(NetworkError::Lock)?
                .ok_or_else(|| NetworkError::Locked(self.prefix.clone()))?;
            let kernel = Kernel {
                links: Links::open().map_err(NetworkError::Links)?,
                filter: Filter::open().map_err(NetworkError::Links)?,
                watch: Watch::open().map_err(NetworkError::Links)?,
                _lock: lock,
            };
            self.kernel = Some(kernel);
            if let Err(error) = self.clear() {
                self.kernel = None;
                return Err(error);
            }
        }
        self.kernel
            .as_mut()
            .ok_or_else(|| NetworkError::Locked(self.prefix.clone()))
    }

    /// Leaves the names to others while there is no network.
    fn let_go(&mut self) {
        if self.networks.is_empty() {
            self.kernel = None;
        }
    }

    /// Removes every link and rule of this prefix.
    fn clear(&mut self) -> Result<(), NetworkError> {
        let Some(kernel) = &mut self.kernel else {
            return Ok(());
        };
        let found = kernel.links.all().map_err(NetworkError::Links)?;
        for link in found {
            let is_ours = match self.prefix.role(&link.name) {
                Some(Role::Bridge) => link.kind == "bridge" && link.group == GROUP,
                Some(Role::Tap) => ["tun", "veth"].contains(&link.kind.as_str()),
                None => false,
            };
            if is_ours {
                kernel
                    .links
                    .remove(link.index)
                    .map_err(NetworkError::Links)?;
            }
        }
        if self.nft.is_there() {
            self.nft.apply(&rules::remove(&self.prefix))?;
            self.stop_forwarding();
        }
        Ok(())
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        if self.networks.is_empty() && self.nics.is_empty() {
            return;
        }
        self.nics.clear();
        self.networks.clear();
        if let Err(error) = self.clear() {
            tell("Networks stay", &error);
        }
    }
}

impl Network {
    /// The host's address in it.
    fn gateway(&self) -> Option<Ipv4Addr> {
        (self.kind == NetworkKind::Nat).then(|| self.subnet.first_host())
    }

    fn show(&self) -> Shown {
        Shown {
            subnet: self.subnet,
            gateway: self.gateway(),
            bridge: self.bridge.clone(),
        }
    }

    fn ruled(&self) -> Ruled<'_> {
        Ruled {
            bridge: &self.bridge,
            subnet: self.subnet,
            gateway: self.gateway(),
        }
    }
}

/// A bridge's MAC: the same on every host for the same subnet, so that a VM that moves still knows its router.
fn bridge_mac(subnet: Ipv4Prefix) -> Result<Mac, BadMac> {
    let [a, b, c, d] = subnet.first_host().octets();
    Mac::new([0x02, 0xdc, a, b, c, d])
}

/// Changes a setting of the kernel's; one that may be missing, with what it sets, is left.
fn set(path: &str, value: &str, may_be_missing: bool) -> Result<(), NetworkError> {
    match fs::write(path, value) {
        Err(error) if may_be_missing && error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|source| NetworkError::Setting {
            path: path.to_owned(),
            source,
        }),
    }
}

/// For the log: what follows from an error that stops nothing.
fn tell(what: &str, error: &dyn std::error::Error) {
    eprintln!("dwcp-launch: {what}: {}", crate::server::describe(error));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn a_bridge_that_cannot_be_removed_is_no_network() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED a_bridge_that_cannot_be_removed_is_no_network: it needs a namespace");
            return;
        }
        let alone = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let name: NetworkName = "half".parse().unwrap();
            // No other test has this prefix, in whatever process.
            let letters = std::process::id().to_string();
            let letters = letters.bytes().map(|digit| char::from(digit - b'0' + b'a'));
            let prefix = letters.collect::<String>().parse().unwrap();
            let mut networks = Networks::new(
                prefix,
                Nft::new("/nonexistent/nft".into()),
                Closer::start().unwrap(),
            );
            networks.take_hold(PATIENCE).unwrap();
            let half = Network {
                kind: NetworkKind::Isolated,
                subnet: "10.9.0.0/24".parse().unwrap(),
                bridge: "lo".into(),
                // The loopback, which the kernel does not let go.
                index: 1,
            };
            networks.networks.insert(name.clone(), half);
            assert!(matches!(
                networks.remove(&name),
                Err(NetworkError::Links(_))
            ));
            networks.undo(&name);
            assert!(networks.networks.is_empty());
        });
        alone.join().unwrap();
    }
}
