//! A machine's network cards: wished for, given addresses, and handed to its process.
//!
//! What always holds: an address of a network is in use by one machine at most, one that is to be included. A guest that
//! goes on from where another one was knows the card under that one's addresses, which are mapped to its own.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use dwcp_api::service::Answer;
use dwcp_control::Name;
use dwcp_control::records::{CardInside, NetworkSpec, VmPhase};
use dwcp_launch::address::Ipv4Prefix;
use dwcp_launch::protocol::{Inside, NetworkKind, NicSpec};
use dwcp_vmm::config::{CardAddress, Device, NetLimits};
use serde::{Deserialize, Serialize};

use crate::errors::{impossible, internal, invalid, record};
use crate::node::Node;

/// Most network cards of a machine.
const NETWORKS_MAX: usize = dwcp_launch::protocol::NICS_MAX;
/// The network that every host has.
pub(crate) const DEFAULT_NETWORK: &str = "default";

/// A network of this host, kept so that its addresses stay as they are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct KeptNetwork {
    pub subnet: Ipv4Prefix,
}

/// Checks how many network cards there are to be.
pub(crate) fn check(number: usize) -> Answer<()> {
    if number > NETWORKS_MAX {
        return Err(invalid(format!(
            "A machine has at most {NETWORKS_MAX} network cards"
        )));
    }
    Ok(())
}

impl Node {
    /// Network cards on these networks, each with an address that no other machine here has. Until the machine is
    /// recorded, `self.addresses` must be held. The guest knows them as those in `known`, if it goes on from where it had
    /// them.
    pub(crate) async fn wish_networks(
        &self,
        id: &str,
        names: &[Name],
        known: &[NetworkSpec],
    ) -> Answer<Vec<NetworkSpec>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        // First those to be: one that is recorded meanwhile is seen twice, and never not at all.
        let to_be = self.shells.cards();
        let vms = self.vms().await?;
        let here = vms.iter().filter(|vm| vm.phase != VmPhase::Moved);
        let cards = here.flat_map(|vm| vm.spec.networks.iter()).chain(&to_be);
        // An address cannot be mapped to itself.
        let knows: Vec<_> = known.iter().map(inside).collect();
        let taken = cards.map(|card| &card.address);
        let taken = taken.chain(knows.iter().map(|card| &card.address));
        let taken = taken.filter_map(|text| text.parse::<Ipv4Prefix>().ok());
        let mut used: BTreeSet<Ipv4Addr> = taken.map(Ipv4Prefix::address).collect();
        let mut cards = Vec::new();
        for (number, name) in names.iter().enumerate() {
            let (subnet, _) = self.network(name).await?;
            let address = free_address(subnet, &used).ok_or_else(|| {
                impossible(format!("Network {name} has no address left of {subnet}"))
            })?;
            used.insert(address);
            let address = Ipv4Prefix::new(address, subnet.length()).map_err(internal)?;
            cards.push(NetworkSpec {
                network: name.clone(),
                mac: mac(id, number as u8),
                address: address.to_string(),
                inside: knows.get(number).cloned(),
            });
        }
        Ok(cards)
    }

    /// Whether so many machines more could have cards on these networks.
    pub(crate) async fn check_addresses(&self, networks: &[Name], machines: usize) -> Answer<()> {
        let all: Vec<Name> = (0..machines).flat_map(|_| networks.to_vec()).collect();
        let _addresses = self.addresses.lock().await;
        self.wish_networks("", &all, &[]).await.map(drop)
    }

    /// A network of this host, made if it is not there; answers its subnet and the way out of it.
    async fn network(&self, name: &Name) -> Answer<(Ipv4Prefix, Option<Ipv4Addr>)> {
        if name.as_str() != DEFAULT_NETWORK {
            return Err(dwcp_api::Fault::not_found(format!(
                "network {name}: this version of DWCP has the network {DEFAULT_NETWORK} and no other"
            )));
        }
        let kept = self
            .records
            .networks
            .get(name.as_str())
            .await
            .map_err(record)?;
        let subnet = kept.as_ref().map(|kept| kept.value.subnet);
        let launcher = &self.launcher;
        let network = launcher
            .ensure_network(name.as_str(), NetworkKind::Nat, subnet)
            .await?;
        if kept.is_none() {
            let keep = KeptNetwork {
                subnet: network.subnet,
            };
            let kept = self.records.networks.put(name.as_str(), &keep).await;
            kept.map_err(record)?;
        }
        Ok((network.subnet, network.gateway))
    }

    /// A card as the machine's process has it; its guest is called `hostname`.
    pub(crate) async fn card(&self, card: &NetworkSpec, hostname: &Name) -> Answer<Device> {
        let (_, gateway) = self.network(&card.network).await?;
        let known = inside(card);
        let place: Ipv4Prefix = known.address.parse().map_err(internal)?;
        Ok(Device::Net {
            mac: known.mac.parse().map_err(internal)?,
            mtu: 1500,
            told: Some(CardAddress {
                address: place.address(),
                prefix: place.length(),
                // Where it knows it, who goes on with another's address.
                router: gateway.map(|_| place.first_host()),
                dns: nameservers(),
                hostname: hostname.as_str().to_owned(),
            }),
            limits: NetLimits::default(),
        })
    }
}

/// A card's addresses as its guest knows them.
fn inside(card: &NetworkSpec) -> CardInside {
    card.inside.clone().unwrap_or_else(|| CardInside {
        mac: card.mac.clone(),
        address: card.address.clone(),
    })
}

/// What a card's tap is made from.
pub(crate) fn nic(card: &NetworkSpec) -> Answer<NicSpec> {
    let known = |known: &CardInside| -> Answer<Inside> {
        Ok(Inside {
            mac: known.mac.parse().map_err(internal)?,
            address: known.address.parse().map_err(internal)?,
        })
    };
    Ok(NicSpec {
        mac: card.mac.parse().map_err(internal)?,
        address: card.address.parse().map_err(internal)?,
        network: card.network.as_str().parse().map_err(internal)?,
        inside: card.inside.as_ref().map(known).transpose()?,
    })
}

/// The lowest address of a subnet that is neither the network's, nor the host's (its first), nor in use.
fn free_address(subnet: Ipv4Prefix, used: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let first = subnet.network().address().to_bits();
    let count = 1u64 << (32 - u32::from(subnet.length()));
    (2..count.saturating_sub(1))
        .map(|number| Ipv4Addr::from_bits(first + number as u32))
        .find(|address| !used.contains(address))
}

/// Who resolves names for this host, where a machine can reach them too: not what listens on this host alone.
fn nameservers() -> Vec<Ipv4Addr> {
    let files = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
    let texts = files
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok());
    let mut servers: Vec<Ipv4Addr> = Vec::new();
    for text in texts {
        let lines = text
            .lines()
            .filter_map(|line| line.strip_prefix("nameserver"));
        let found = lines.filter_map(|rest| rest.trim().parse::<Ipv4Addr>().ok());
        servers.extend(found.filter(|address| !address.is_loopback()));
    }
    servers.dedup();
    servers.truncate(dwcp_vmm::dhcp::DNS_MAX);
    servers
}

/// An Ethernet address of a machine's own (locally administered), the same at every start.
fn mac(id: &str, number: u8) -> String {
    use sha2::Digest as _;
    let hash = sha2::Sha256::digest(id);
    let [a, b, c, d, ..] = hash[..] else {
        return String::new();
    };
    format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{number:02x}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_are_given_once_and_none_is_the_hosts() {
        let subnet: Ipv4Prefix = "10.9.8.0/29".parse().unwrap();
        let mut used = BTreeSet::new();
        while let Some(address) = free_address(subnet, &used) {
            assert!(used.insert(address));
        }
        let all: Vec<_> = used.iter().map(|address| address.octets()[3]).collect();
        assert_eq!(all, [2, 3, 4, 5, 6]);
    }
}
