//! Cards of VMs on their networks: a tap each, known to the rules, in its bridge; and all of it taken back.
//!
//! What always holds: a card that is made only in part is taken back by the same way as a whole one.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use dwcp_launch::address::{Mac, NetworkName};
use dwcp_launch::protocol::{ChildId, NICS_MAX, NetworkKind, NicSpec};
use nix::errno::Errno;

use super::filter::Identity;
use super::links::{Links, Port};
use super::mapped::{self, Mapped};
use super::{Kernel, Network, NetworkError, Networks, PATIENCE, bridge_mac, tap, tell};

#[derive(Debug)]
pub(super) struct Nic {
    slot: u32,
    /// The network that it is on.
    pub(super) network: NetworkName,
    tap: String,
    /// The link, once it is made.
    index: Option<u32>,
    /// Our copy of what the VMM has, so that the link does not go with the VMM.
    device: Option<OwnedFd>,
    mac: Mac,
    address: Ipv4Addr,
}

impl Networks {
    /// Makes the taps of one VM, in the order of `nics`; all or none.
    pub fn attach(
        &mut self,
        slot: u32,
        id: &ChildId,
        nics: &[NicSpec],
    ) -> Result<Vec<OwnedFd>, NetworkError> {
        if nics.len() > NICS_MAX {
            return Err(NetworkError::TooManyNics(nics.len()));
        }
        let taps: Result<Vec<_>, _> = nics
            .iter()
            .enumerate()
            .map(|(number, nic)| self.attach_one(slot, id, number, nic))
            .collect();
        if taps.is_err() {
            self.detach(slot);
        }
        taps
    }

    /// Takes the taps of a VM that has ended, or never began, off their networks. They are gone soon after.
    pub fn detach(&mut self, slot: u32) {
        let (gone, kept) = std::mem::take(&mut self.nics)
            .into_iter()
            .partition(|nic| nic.slot == slot);
        self.nics = kept;
        let table = self.prefix.to_string();
        let Some(kernel) = &mut self.kernel else {
            return;
        };
        for mut nic in gone {
            if let Err(error) = kernel.filter.remove(&table, nic.identity()) {
                tell(&format!("The rules still know the tap {}", nic.tap), &error);
            }
            // From here on no frame passes it, whoever has it, and its guest's address is free.
            if let Some(Err(error)) = nic.index.map(|index| kernel.links.retire_port(index)) {
                tell(&format!("The tap {} stays", nic.tap), &error);
            }
            if let Some(device) = nic.device.take() {
                if let Err(error) = tap::let_vanish(&device) {
                    tell(&format!("The tap {} stays", nic.tap), &error);
                }
                self.closer.close(device);
            }
        }
    }

    fn attach_one(
        &mut self,
        slot: u32,
        id: &ChildId,
        number: usize,
        spec: &NicSpec,
    ) -> Result<OwnedFd, NetworkError> {
        let network = self
            .networks
            .get(&spec.network)
            .ok_or_else(|| NetworkError::Unknown(spec.network.clone()))?;
        self.check(network, spec)?;
        let (bridge, isolated) = (network.index, network.kind == NetworkKind::Nat);
        let gateway = network.gateway();
        let tap = self.prefix.tap(slot, number);
        // From here on `detach` removes what is made.
        let nic = Nic {
            slot,
            network: spec.network.clone(),
            tap: tap.clone(),
            index: None,
            device: None,
            mac: spec.mac,
            address: spec.address.address(),
        };
        let place = self.nics.len();
        self.nics.push(nic);
        let table = self.prefix.to_string();
        let nft = self.nft.clone();
        let Kernel { links, filter, .. } = self.take_hold(PATIENCE)?;
        let failed = |source| NetworkError::Link {
            name: tap.clone(),
            source,
        };
        let make = || match spec.inside {
            None => tap::create(&tap).map_err(|source| NetworkError::Tap {
                name: tap.clone(),
                source,
            }),
            Some(inside) => mapped::make(
                &nft,
                Mapped {
                    outer: tap.clone(),
                    mac: spec.mac,
                    address: spec.address,
                    gateway,
                    inside,
                },
            ),
        };
        let device = make_device(links, &tap, make)?;
        let kept = device.try_clone().map_err(|source| NetworkError::Tap {
            name: tap.clone(),
            source,
        })?;
        let index = links.index(&tap).map_err(failed)?;
        let identity = Identity {
            tap: &tap,
            mac: spec.mac,
            address: spec.address.address(),
        };
        match filter.add(&table, identity) {
            Ok(()) => {}
            // Somebody removed the rules. Those that are set now know this tap too.
            Err(error) if error.errno() == Some(Errno::ENOENT) => {
                self.rules.clear();
                self.put_back()?;
            }
            Err(source) => return Err(NetworkError::Filter { tap, source }),
        }
        let port = Port {
            link: index,
            bridge,
            mac: spec.mac,
            isolated,
            alias: &format!("dwcp: interface {number} of {id}"),
        };
        let links = &mut self.take_hold(PATIENCE)?.links;
        let ported = links.add_port(&port).map_err(failed);
        self.nics[place].index = Some(index);
        self.nics[place].device = Some(kept);
        ported?;
        Ok(device)
    }

    fn check(&self, network: &Network, spec: &NicSpec) -> Result<(), NetworkError> {
        let (subnet, address) = (network.subnet, spec.address.address());
        let reserved = [
            Some(subnet.address()),
            Some(subnet.broadcast()),
            network.gateway(),
        ];
        if spec.address.network() != subnet || reserved.contains(&Some(address)) {
            return Err(NetworkError::Address {
                address: spec.address,
                network: spec.network.clone(),
                subnet,
            });
        }
        if spec
            .inside
            .is_some_and(|inside| inside.address.address() == address)
        {
            return Err(NetworkError::MappedToItself(spec.address));
        }
        let taken = |what: String| NetworkError::Taken {
            what,
            network: spec.network.clone(),
        };
        let mut others = self.nics.iter().filter(|nic| nic.network == spec.network);
        if others.clone().any(|nic| nic.mac == spec.mac) || bridge_mac(subnet) == Ok(spec.mac) {
            return Err(taken(spec.mac.to_string()));
        }
        if others.any(|nic| nic.address == address) {
            return Err(taken(address.to_string()));
        }
        Ok(())
    }
}

impl Nic {
    /// As the rules know it.
    pub(super) fn identity(&self) -> Identity<'_> {
        Identity {
            tap: &self.tap,
            mac: self.mac,
            address: self.address,
        }
    }
}

/// Makes what has a name that nobody else has; a leftover of that name goes first.
fn make_device(
    links: &mut Links,
    name: &str,
    make: impl Fn() -> Result<OwnedFd, NetworkError>,
) -> Result<OwnedFd, NetworkError> {
    let made = make();
    if !made.as_ref().is_err_and(NetworkError::is_taken) {
        return made;
    }
    // It may just have gone.
    if let Ok(index) = links.index(name) {
        links.remove(index).map_err(NetworkError::Links)?;
    }
    make()
}
