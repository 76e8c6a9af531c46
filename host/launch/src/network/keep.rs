//! Rules and forwarding of this launcher's networks: set, kept, and taken away with the last.
//!
//! What always holds: while there is a network its tables are those that were set here, and while this host forwards
//! because of launchers so is the guard's. A `nft flush ruleset`, as the start of a firewall of the host's does it,
//! takes them away under running guests; they are put back as soon as the kernel tells. Rules that are taken out of
//! tables that stay are not missed: who does that names these tables, and means them.
//!
//! This module must not know what the rules say.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use dwcp_launch::protocol::NetworkKind;

use super::filter::Table;
use super::forwarding;
use super::links::GROUP;
use super::{Network, NetworkError, Networks, Nic, PATIENCE, rules, tell};

/// The families in which this launcher has a table each, called like its prefix.
const FAMILIES: [libc::c_int; 2] = [libc::NFPROTO_BRIDGE, libc::NFPROTO_INET];

impl Networks {
    /// What becomes readable when [`Networks::keep_rules`] may have something to do.
    pub fn changes(&self) -> Option<BorrowedFd<'_>> {
        self.kernel.as_ref()?.watch.readable()
    }

    /// When [`Networks::keep_rules`] may have something to do all the same.
    pub fn rests_until(&self) -> Option<Instant> {
        self.kernel.as_ref()?.watch.rests_until()
    }

    /// Puts back rules that somebody else removed, if it is time to look. Costs nothing otherwise.
    pub fn keep_rules(&mut self) {
        let is_due = |kernel: &mut super::Kernel| kernel.watch.is_due();
        if !self.kernel.as_mut().is_some_and(is_due) {
            return;
        }
        let result = self.put_back();
        if let Err(error) = &result {
            tell("Guests are not confined by all rules", error);
        }
        if let Some(kernel) = &mut self.kernel {
            kernel.watch.rest(result.is_err());
        }
    }

    /// Sets whatever rules are not there, and says so.
    pub(super) fn put_back(&mut self) -> Result<(), NetworkError> {
        if self.networks.is_empty() {
            return Ok(());
        }
        let tables = self.tables()?;
        let own = self.own(&tables);
        if own.len() != FAMILIES.len() || own != self.rules {
            self.apply_rules()?;
            eprintln!("dwcp-launch: Somebody removed the rules of networks; they were put back");
        }
        if self.forwards && !tables.iter().any(Table::is_guard) {
            forwarding::guard(&self.nft)?;
            eprintln!(
                "dwcp-launch: Somebody removed what keeps this host from forwarding for others; it was put back"
            );
        }
        Ok(())
    }

    /// Sets the rules of all networks and interfaces anew.
    pub(super) fn apply_rules(&mut self) -> Result<(), NetworkError> {
        let networks: Vec<_> = self.networks.values().map(Network::ruled).collect();
        let identities: Vec<_> = self.nics.iter().map(Nic::identity).collect();
        self.nft
            .apply(&rules::replace(&self.prefix, &networks, &identities))?;
        let tables = self.tables()?;
        self.rules = self.own(&tables);
        Ok(())
    }

    fn tables(&mut self) -> Result<Vec<Table>, NetworkError> {
        let filter = &mut self.take_hold(PATIENCE)?.filter;
        filter.tables().map_err(NetworkError::Tables)
    }

    /// The handles of this launcher's tables: others, of the same names, are not what was set here.
    fn own(&self, tables: &[Table]) -> Vec<u64> {
        let name = self.prefix.to_string();
        let is_own = |table: &&Table| table.name == name && FAMILIES.contains(&table.family.into());
        tables.iter().filter(is_own).map(|t| t.handle).collect()
    }

    /// Makes this host forward, for a NAT network.
    pub(super) fn start_forwarding(&mut self) -> Result<(), NetworkError> {
        let alone = forwarding::lock()?;
        self.forwards |= forwarding::turn_on(&self.nft, &alone)?;
        Ok(())
    }

    /// Turns forwarding off when no launcher of this namespace has a NAT network any more.
    pub(super) fn stop_forwarding(&mut self) {
        let is_nat = |network: &Network| network.kind == NetworkKind::Nat;
        if self.networks.values().any(is_nat) {
            return;
        }
        match self.stop_forwarding_alone() {
            Ok(()) => self.forwards = false,
            Err(error) => tell("This host still forwards IPv4", &error),
        }
    }

    /// A launcher whose bridge is not seen here finds forwarding off when it has the lock, and turns it on again.
    fn stop_forwarding_alone(&mut self) -> Result<(), NetworkError> {
        let alone = forwarding::lock()?;
        if !self.others_have_networks()? {
            forwarding::turn_off(&self.nft, self.forwards, &alone)?;
        }
        Ok(())
    }

    fn others_have_networks(&mut self) -> Result<bool, NetworkError> {
        let prefix = self.prefix.clone();
        let links = self
            .take_hold(PATIENCE)?
            .links
            .all()
            .map_err(NetworkError::Links)?;
        let mut others = links
            .iter()
            .filter(|link| prefix.role(&link.name).is_none());
        Ok(others.any(|link| link.group == GROUP))
    }
}
