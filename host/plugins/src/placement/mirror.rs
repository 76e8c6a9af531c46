//! The host's own copy of what a placement plugin has been told, and what it has not been told yet.
//!
//! Always: the mirror is what a fresh instance is loaded from, so a plugin that was thrown away loses nothing; a host
//! keeps its slot as long as it exists; a change that cannot be taken leaves everything as it was. Changes gather here
//! until the next decision and cross into the plugin as one. Never: a call into a plugin.

use super::fleet::{Change, Fleet, FleetError, Free, Host, Region};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Bounds of `wit/placement`.
pub(crate) const MAX_SLOTS: usize = 1 << 20;
pub(crate) const MAX_SYMBOLS: usize = 1 << 20;
const MAX_REGIONS: usize = 1_024;
const MAX_LABELS: usize = 64;
const MAX_NAME: usize = 256;

/// What a slot was when the plugin was last told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Before {
    pub(crate) id: String,
    pub(crate) free: Free,
    pub(crate) members: BTreeMap<String, u32>,
}

/// What the plugin has not been told yet.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// Everything, when set; the rest is then meaningless.
    pub(crate) all: bool,
    pub(crate) regions: bool,
    /// Slots whose host row changed.
    pub(crate) hosts: BTreeSet<u32>,
    /// Slots touched in any way, as the plugin knows them; `None` for a slot that it does not have.
    pub(crate) before: BTreeMap<u32, Option<Before>>,
    /// Symbols that the plugin has.
    pub(crate) symbols_told: usize,
}

impl Pending {
    pub(crate) fn is_empty(&self) -> bool {
        !self.all && !self.regions && self.before.is_empty()
    }
}

/// The fleet in slots.
#[derive(Debug)]
pub(crate) struct Mirror {
    pub(crate) revision: u64,
    pub(crate) regions: Vec<Region>,
    pub(crate) region_rows: HashMap<String, u32>,
    /// A free slot has an empty id.
    pub(crate) slots: Vec<Host>,
    pub(crate) by_id: HashMap<String, u32>,
    vacant: BTreeSet<u32>,
    pub(crate) symbols: Vec<String>,
    pub(crate) symbol_rows: HashMap<String, u32>,
    pub(crate) pending: Pending,
}

impl Mirror {
    /// Takes a fleet whole.
    pub(crate) fn new(fleet: Fleet, revision: u64) -> Result<Mirror, FleetError> {
        check_regions(&fleet.regions)?;
        bound("Hosts", fleet.hosts.len(), MAX_SLOTS)?;
        let names: HashSet<&str> = fleet.regions.iter().map(|r| r.name.as_str()).collect();
        let mut by_id = HashMap::with_capacity(fleet.hosts.len());
        let mut vacant = BTreeSet::new();
        for (slot, host) in fleet.hosts.iter().enumerate() {
            let slot = slot as u32;
            if host.id.is_empty() {
                vacant.insert(slot);
                continue;
            }
            check_host(host, &names)?;
            if by_id.insert(host.id.clone(), slot).is_some() {
                return Err(FleetError::Twice(host.id.clone()));
            }
        }
        let mut mirror = Mirror {
            revision,
            region_rows: rows(&fleet.regions),
            regions: fleet.regions,
            slots: fleet.hosts,
            by_id,
            vacant,
            symbols: Vec::new(),
            symbol_rows: HashMap::new(),
            pending: Pending {
                all: true,
                ..Pending::default()
            },
        };
        mirror.number_symbols();
        bound(
            "Labels, zones, groups and models",
            mirror.symbols.len(),
            MAX_SYMBOLS,
        )?;
        Ok(mirror)
    }

    /// The fleet as it is, free slots included: loading it gives the same slots.
    pub(crate) fn fleet(&self) -> Fleet {
        Fleet {
            regions: self.regions.clone(),
            hosts: self.slots.clone(),
        }
    }

    /// Takes changes, all or none.
    pub(crate) fn apply(&mut self, changes: &[Change], revision: u64) -> Result<(), FleetError> {
        if revision <= self.revision {
            return Err(FleetError::Revision {
                from: self.revision,
                to: revision,
            });
        }
        self.check(changes)?;
        for change in changes {
            match change {
                Change::Regions(regions) => self.put_regions(regions),
                Change::Host(host) => self.put_host(host),
                Change::Gone { host } => self.take_host(host),
                Change::Free { host, free } => {
                    if let Some(slot) = self.touch(host) {
                        self.slots[slot as usize].free = *free;
                    }
                }
                Change::Members { host, group, count } => {
                    if let Some(slot) = self.touch(host) {
                        self.symbol(group);
                        let members = &mut self.slots[slot as usize].members;
                        match count {
                            0 => members.remove(group),
                            count => members.insert(group.clone(), *count),
                        };
                    }
                }
            }
        }
        self.revision = revision;
        if self.symbols.len() > MAX_SYMBOLS {
            // Names that are no longer used have filled the table: number the others anew.
            self.number_symbols();
            self.pending.all = true;
        }
        Ok(())
    }

    /// Forgets what was pending, the plugin having been told.
    pub(crate) fn told(&mut self) {
        self.pending = Pending {
            symbols_told: self.symbols.len(),
            ..Pending::default()
        };
    }

    /// Whether every change could be taken, looked at in order without taking any.
    fn check(&self, changes: &[Change]) -> Result<(), FleetError> {
        let mut regions: HashSet<&str> = self.regions.iter().map(|r| r.name.as_str()).collect();
        // Hosts that differ from the mirror so far: their region, or none for gone.
        let mut hosts: HashMap<&str, Option<&str>> = HashMap::new();
        let mut count = self.by_id.len();
        for change in changes {
            match change {
                Change::Regions(new) => {
                    check_regions(new)?;
                    regions = new.iter().map(|r| r.name.as_str()).collect();
                    let kept = self
                        .slots
                        .iter()
                        .filter(|h| !h.id.is_empty() && !hosts.contains_key(h.id.as_str()));
                    let lost = kept
                        .map(|h| (h.id.as_str(), h.region.as_str()))
                        .chain(
                            hosts
                                .iter()
                                .filter_map(|(id, region)| region.map(|region| (*id, region))),
                        )
                        .find(|(_, region)| !regions.contains(region));
                    if let Some((host, region)) = lost {
                        return Err(FleetError::UnknownRegion {
                            host: host.into(),
                            region: region.into(),
                        });
                    }
                }
                Change::Host(host) => {
                    check_host(host, &regions)?;
                    let was = match hosts.insert(&host.id, Some(&host.region)) {
                        Some(state) => state.is_some(),
                        None => self.by_id.contains_key(&host.id),
                    };
                    count += usize::from(!was);
                    bound("Hosts", count, MAX_SLOTS)?;
                }
                Change::Gone { host }
                | Change::Free { host, .. }
                | Change::Members { host, .. } => {
                    let there = match hosts.get(host.as_str()) {
                        Some(state) => state.is_some(),
                        None => self.by_id.contains_key(host),
                    };
                    if !there {
                        return Err(FleetError::UnknownHost(host.clone()));
                    }
                    if let Change::Gone { .. } = change {
                        hosts.insert(host, None);
                        count -= 1;
                    }
                    if let Change::Members { group, .. } = change {
                        check_name(group)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn put_regions(&mut self, regions: &[Region]) {
        let keeps_rows = regions.len() >= self.regions.len()
            && self
                .regions
                .iter()
                .zip(regions)
                .all(|(old, new)| old.name == new.name);
        if keeps_rows {
            self.pending.regions = true;
        } else {
            // Every host row names its region by number.
            self.pending.all = true;
        }
        self.regions = regions.to_vec();
        self.region_rows = rows(regions);
    }

    fn put_host(&mut self, host: &Host) {
        let slot = match self.by_id.get(&host.id) {
            Some(slot) => *slot,
            None => {
                let slot = self.vacant.pop_first().unwrap_or(self.slots.len() as u32);
                self.by_id.insert(host.id.clone(), slot);
                slot
            }
        };
        self.remember(slot);
        for name in names_of(host) {
            self.symbol(name);
        }
        let mut host = host.clone();
        host.members.retain(|_, count| *count > 0);
        if slot as usize == self.slots.len() {
            self.slots.push(host);
        } else {
            self.slots[slot as usize] = host;
        }
        self.pending.hosts.insert(slot);
    }

    fn take_host(&mut self, id: &str) {
        if let Some(slot) = self.touch(id) {
            self.by_id.remove(id);
            self.slots[slot as usize] = Host::default();
            self.vacant.insert(slot);
            self.pending.hosts.insert(slot);
        }
    }

    fn touch(&mut self, id: &str) -> Option<u32> {
        let slot = *self.by_id.get(id)?;
        self.remember(slot);
        Some(slot)
    }

    fn remember(&mut self, slot: u32) {
        let slots = &self.slots;
        self.pending.before.entry(slot).or_insert_with(|| {
            let host = slots.get(slot as usize)?;
            Some(Before {
                id: host.id.clone(),
                free: host.free,
                members: host.members.clone(),
            })
        });
    }

    fn symbol(&mut self, name: &str) -> u32 {
        if let Some(row) = self.symbol_rows.get(name) {
            return *row;
        }
        let row = self.symbols.len() as u32;
        self.symbols.push(name.to_owned());
        self.symbol_rows.insert(name.to_owned(), row);
        row
    }

    fn number_symbols(&mut self) {
        self.symbols.clear();
        self.symbol_rows.clear();
        let slots = std::mem::take(&mut self.slots);
        for name in slots.iter().flat_map(names_of) {
            self.symbol(name);
        }
        self.slots = slots;
    }
}

fn names_of(host: &Host) -> impl Iterator<Item = &str> {
    host.zone
        .iter()
        .chain(&host.gpu_model)
        .chain(&host.labels)
        .chain(host.members.keys())
        .map(String::as_str)
}

fn rows(regions: &[Region]) -> HashMap<String, u32> {
    regions
        .iter()
        .enumerate()
        .map(|(row, region)| (region.name.clone(), row as u32))
        .collect()
}

fn bound(what: &'static str, count: usize, max: usize) -> Result<(), FleetError> {
    if count > max {
        Err(FleetError::TooMany { what, count, max })
    } else {
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), FleetError> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(FleetError::Range(format!(
            "A name has 1 to {MAX_NAME} bytes; one has {}.",
            name.len()
        )));
    }
    Ok(())
}

fn check_regions(regions: &[Region]) -> Result<(), FleetError> {
    bound("Regions", regions.len(), MAX_REGIONS)?;
    let mut seen = HashSet::new();
    for region in regions {
        check_name(&region.name)?;
        if !(1..=100).contains(&region.priority) {
            return Err(FleetError::Range(format!(
                "Region {} has priority {}, it must be 1 to 100.",
                region.name, region.priority
            )));
        }
        if !seen.insert(&region.name) {
            return Err(FleetError::Twice(region.name.clone()));
        }
    }
    Ok(())
}

fn check_host(host: &Host, regions: &HashSet<&str>) -> Result<(), FleetError> {
    check_name(&host.id)?;
    names_of(host).try_for_each(check_name)?;
    bound("Labels of a host", host.labels.len(), MAX_LABELS)?;
    if host.health > 100 {
        return Err(FleetError::Range(format!(
            "Host {} has health {}, it must be 0 to 100.",
            host.id, host.health
        )));
    }
    if !regions.contains(host.region.as_str()) {
        return Err(FleetError::UnknownRegion {
            host: host.id.clone(),
            region: host.region.clone(),
        });
    }
    Ok(())
}
