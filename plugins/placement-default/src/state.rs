//! The fleet as columns, loaded whole or changed in part.
//!
//! What always holds: every column of a table has as many rows as there are slots; every index in it is in
//! range; a refused call changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::bindings::exports::dwcp::placement::decisions::{
    Changes, Fleet, Free, Hosts, Members, Problem, Refusal, Regions,
};

/// "No symbol", "no limit", "not measured".
pub const NONE: u32 = u32::MAX;

const MAX_SLOTS: usize = 1 << 20;
const MAX_SYMBOLS: usize = 1 << 20;
const MAX_REGIONS: usize = 1024;

/// The fleet at one revision.
#[derive(Clone, PartialEq, Debug)]
pub struct State {
    pub revision: u64,
    pub symbols: Vec<String>,
    pub regions: Regions,
    /// All columns but the labels, which are in `labels`.
    pub hosts: Hosts,
    /// Symbols of each slot, ascending.
    pub labels: Vec<Box<[u32]>>,
    pub free: Free,
    /// Members of each group: slot and how many. No count is 0, no map empty.
    pub groups: BTreeMap<u32, BTreeMap<u32, u32>>,
}

/// A call that is refused because of `what` at `path`.
pub fn malformed(path: &str, what: &str) -> Refusal {
    Refusal::Malformed(Problem {
        path: path.to_owned(),
        message: what.to_owned(),
    })
}

/// Every column of `table` must have `rows` rows.
pub fn check_rows(table: &str, rows: usize, columns: &[(&str, usize)]) -> Result<(), Refusal> {
    for (column, found) in columns {
        if *found != rows {
            let what = format!("This column has {found} rows, where {rows} are needed.");
            return Err(malformed(&format!("{table}.{column}"), &what));
        }
    }
    Ok(())
}

/// Every value must be below `end`, or be [`NONE`] where that is allowed.
pub fn check_range(path: &str, values: &[u32], end: usize, none: bool) -> Result<(), Refusal> {
    let good = |value: &u32| (*value as usize) < end || (none && *value == NONE);
    match values.iter().find(|value| !good(value)) {
        Some(value) => {
            let what = format!("{value} is out of range; there are {end}.");
            Err(malformed(path, &what))
        }
        None => Ok(()),
    }
}

fn check_ascending(path: &str, values: &[u32]) -> Result<(), Refusal> {
    if values.is_sorted_by(|a, b| a < b) {
        Ok(())
    } else {
        Err(malformed(path, "The slots must ascend."))
    }
}

fn check_limit(path: &str, count: usize, limit: usize) -> Result<(), Refusal> {
    if count <= limit {
        return Ok(());
    }
    let what = format!("There are {count} rows, more than the {limit} that are allowed.");
    Err(malformed(path, &what))
}

fn check_regions(regions: &Regions) -> Result<(), Refusal> {
    let count = regions.names.len();
    check_limit("regions", count, MAX_REGIONS)?;
    check_rows("regions", count, &[("priority", regions.priority.len())])?;
    let pairs = regions.latency_us.len();
    check_rows("regions", count * count, &[("latency-us", pairs)])
}

fn check_hosts(hosts: &Hosts, rows: usize, regions: usize, symbols: usize) -> Result<(), Refusal> {
    let columns = [
        ("ids", hosts.ids.len()),
        ("region", hosts.region.len()),
        ("zone", hosts.zone.len()),
        ("accepting", hosts.accepting.len()),
        ("health", hosts.health.len()),
        ("latency-us", hosts.latency_us.len()),
        ("cpu-price-micros", hosts.cpu_price_micros.len()),
        ("memory-price-micros", hosts.memory_price_micros.len()),
        ("cpu-total-millis", hosts.cpu_total_millis.len()),
        ("memory-total-mib", hosts.memory_total_mib.len()),
        ("storage-total-gib", hosts.storage_total_gib.len()),
        ("gpu-model", hosts.gpu_model.len()),
    ];
    check_rows("hosts", rows, &columns)?;
    check_rows(
        "hosts",
        rows + 1,
        &[("label-starts", hosts.label_starts.len())],
    )?;
    let starts = &hosts.label_starts;
    let whole = starts.first() == Some(&0) && starts.last() == Some(&(hosts.labels.len() as u32));
    if !whole || !starts.is_sorted() {
        return Err(malformed(
            "hosts.label-starts",
            "The bounds must ascend and cover all labels.",
        ));
    }
    check_range("hosts.zone", &hosts.zone, symbols, true)?;
    check_range("hosts.gpu-model", &hosts.gpu_model, symbols, true)?;
    check_range("hosts.labels", &hosts.labels, symbols, false)?;
    // A free slot has no region.
    for (row, id) in hosts.ids.iter().enumerate() {
        if !id.is_empty() {
            check_range("hosts.region", &hosts.region[row..=row], regions, false)?;
        }
    }
    Ok(())
}

fn check_free(free: &Free, rows: usize) -> Result<(), Refusal> {
    let columns = [
        ("cpu-millis", free.cpu_millis.len()),
        ("memory-mib", free.memory_mib.len()),
        ("storage-gib", free.storage_gib.len()),
        ("gpus", free.gpus.len()),
        ("bandwidth-mbps", free.bandwidth_mbps.len()),
    ];
    check_rows("free", rows, &columns)
}

fn check_members(members: &Members, slots: usize, symbols: usize) -> Result<(), Refusal> {
    let rows = members.host.len();
    let columns = [
        ("group", members.group.len()),
        ("count", members.count.len()),
    ];
    check_rows("members", rows, &columns)?;
    check_range("members.host", &members.host, slots, false)?;
    check_range("members.group", &members.group, symbols, false)
}

fn labels_of(hosts: &Hosts, row: usize) -> Box<[u32]> {
    let (from, to) = (hosts.label_starts[row], hosts.label_starts[row + 1]);
    let mut labels: Vec<u32> = hosts.labels[from as usize..to as usize].to_vec();
    labels.sort_unstable();
    labels.into_boxed_slice()
}

impl State {
    /// Takes a fleet as a whole.
    pub fn load(mut fleet: Fleet, revision: u64) -> Result<Self, Refusal> {
        let (rows, symbols) = (fleet.hosts.ids.len(), fleet.symbols.len());
        check_limit("hosts", rows, MAX_SLOTS)?;
        check_limit("symbols", symbols, MAX_SYMBOLS)?;
        check_regions(&fleet.regions)?;
        check_hosts(&fleet.hosts, rows, fleet.regions.names.len(), symbols)?;
        check_free(&fleet.free, rows)?;
        check_members(&fleet.members, rows, symbols)?;
        let labels = (0..rows).map(|row| labels_of(&fleet.hosts, row)).collect();
        fleet.hosts.labels = Vec::new();
        fleet.hosts.label_starts = Vec::new();
        let mut state = Self {
            revision,
            symbols: fleet.symbols,
            regions: fleet.regions,
            hosts: fleet.hosts,
            labels,
            free: fleet.free,
            groups: BTreeMap::new(),
        };
        state.set_members(&fleet.members);
        Ok(state)
    }

    /// Moves to a later revision.
    pub fn apply(&mut self, changes: Changes, base: u64, revision: u64) -> Result<(), Refusal> {
        self.check(&changes, base, revision)?;
        self.symbols.extend(changes.symbols);
        if let Some(regions) = changes.regions {
            self.regions = regions;
        }
        for (row, slot) in changes.host_slots.iter().enumerate() {
            self.set_host(*slot as usize, &changes.hosts, row);
        }
        for (row, slot) in changes.free_slots.iter().enumerate() {
            self.set_free(*slot as usize, &changes.free, row);
        }
        self.set_members(&changes.members);
        self.revision = revision;
        Ok(())
    }

    fn check(&self, changes: &Changes, base: u64, revision: u64) -> Result<(), Refusal> {
        if base != self.revision {
            return Err(Refusal::OtherRevision(self.revision));
        }
        if revision <= base {
            return Err(malformed(
                "revision",
                "It must be larger than the one it builds on.",
            ));
        }
        let symbols = self.symbols.len() + changes.symbols.len();
        check_limit("symbols", symbols, MAX_SYMBOLS)?;
        let regions = changes.regions.as_ref().unwrap_or(&self.regions);
        check_regions(regions)?;
        check_hosts(
            &changes.hosts,
            changes.host_slots.len(),
            regions.names.len(),
            symbols,
        )?;
        check_ascending("host-slots", &changes.host_slots)?;
        let mut slots = self.hosts.ids.len();
        for slot in &changes.host_slots {
            check_range("host-slots", &[*slot], slots + 1, false)?;
            slots = slots.max(*slot as usize + 1);
        }
        check_limit("hosts", slots, MAX_SLOTS)?;
        if regions.names.len() < self.regions.names.len() {
            self.check_regions_kept(&changes.host_slots, regions.names.len())?;
        }
        check_free(&changes.free, changes.free_slots.len())?;
        check_ascending("free-slots", &changes.free_slots)?;
        check_range("free-slots", &changes.free_slots, slots, false)?;
        check_members(&changes.members, slots, symbols)
    }

    /// No host that stays as it is may be in a region that goes.
    fn check_regions_kept(&self, changed: &[u32], regions: usize) -> Result<(), Refusal> {
        let changed: BTreeSet<u32> = changed.iter().copied().collect();
        for (slot, id) in self.hosts.ids.iter().enumerate() {
            if !id.is_empty() && !changed.contains(&(slot as u32)) {
                check_range("regions", &self.hosts.region[slot..=slot], regions, false)?;
            }
        }
        Ok(())
    }

    fn set_host(&mut self, slot: usize, from: &Hosts, row: usize) {
        if slot == self.hosts.ids.len() {
            self.add_slot();
        }
        let to = &mut self.hosts;
        if to.ids[slot] != from.ids[row] {
            self.groups.retain(|_, members| {
                members.remove(&(slot as u32));
                !members.is_empty()
            });
        }
        to.ids[slot].clone_from(&from.ids[row]);
        to.region[slot] = from.region[row];
        to.zone[slot] = from.zone[row];
        to.accepting[slot] = from.accepting[row];
        to.health[slot] = from.health[row];
        to.latency_us[slot] = from.latency_us[row];
        to.cpu_price_micros[slot] = from.cpu_price_micros[row];
        to.memory_price_micros[slot] = from.memory_price_micros[row];
        to.cpu_total_millis[slot] = from.cpu_total_millis[row];
        to.memory_total_mib[slot] = from.memory_total_mib[row];
        to.storage_total_gib[slot] = from.storage_total_gib[row];
        to.gpu_model[slot] = from.gpu_model[row];
        self.labels[slot] = labels_of(from, row);
    }

    fn add_slot(&mut self) {
        let to = &mut self.hosts;
        to.ids.push(String::new());
        to.region.push(NONE);
        to.zone.push(NONE);
        to.accepting.push(0);
        to.health.push(0);
        to.latency_us.push(NONE);
        to.cpu_price_micros.push(0);
        to.memory_price_micros.push(0);
        to.cpu_total_millis.push(0);
        to.memory_total_mib.push(0);
        to.storage_total_gib.push(0);
        to.gpu_model.push(NONE);
        self.labels.push(Box::default());
        self.free.cpu_millis.push(0);
        self.free.memory_mib.push(0);
        self.free.storage_gib.push(0);
        self.free.gpus.push(0);
        self.free.bandwidth_mbps.push(0);
    }

    fn set_free(&mut self, slot: usize, from: &Free, row: usize) {
        self.free.cpu_millis[slot] = from.cpu_millis[row];
        self.free.memory_mib[slot] = from.memory_mib[row];
        self.free.storage_gib[slot] = from.storage_gib[row];
        self.free.gpus[slot] = from.gpus[row];
        self.free.bandwidth_mbps[slot] = from.bandwidth_mbps[row];
    }

    fn set_members(&mut self, members: &Members) {
        for (row, group) in members.group.iter().enumerate() {
            self.set_member(*group, members.host[row], members.count[row]);
        }
    }

    /// How many members of `group` are on `slot`.
    pub fn member_count(&self, group: u32, slot: u32) -> u32 {
        let members = self.groups.get(&group);
        members.and_then(|m| m.get(&slot)).copied().unwrap_or(0)
    }

    /// Sets how many there are.
    pub fn set_member(&mut self, group: u32, slot: u32, count: u32) {
        let members = self.groups.entry(group).or_default();
        if count > 0 {
            members.insert(slot, count);
        } else {
            members.remove(&slot);
            if members.is_empty() {
                self.groups.remove(&group);
            }
        }
    }
}
