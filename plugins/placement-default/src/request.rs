//! One request of a batch, made ready to be held against every host.
//!
//! What always holds: a request was checked against the state; which hosts a term matches is worked out once.

use std::collections::BTreeSet;

use crate::bindings::exports::dwcp::placement::decisions::{Batch, Refusal, Relation, Scope, Term};
use crate::state::{NONE, State, check_range, check_rows, malformed};

const MAX_REQUESTS: usize = 1024;
const MAX_TERMS: usize = 64;
const MAX_MEMBERSHIPS: usize = 16;
const MAX_ALTERNATIVES: u8 = 8;

/// Which hosts a term is about.
pub enum Target {
    Host(u32),
    Zone(u32),
    Region(u32),
    Label(u32),
    /// Slots with a member of the group.
    GroupHosts(BTreeSet<u32>),
    /// Region and zone.
    GroupZones(BTreeSet<(u32, u32)>),
    GroupRegions(BTreeSet<u32>),
}

impl Target {
    fn of(term: &Term, state: &State) -> Self {
        let members = || {
            let group = state.groups.get(&term.subject);
            group
                .into_iter()
                .flat_map(|members| members.keys().copied())
        };
        let region = |slot: u32| state.hosts.region[slot as usize];
        let zone = |slot: u32| state.hosts.zone[slot as usize];
        match term.scope {
            Scope::Host => Self::Host(term.subject),
            Scope::Zone => Self::Zone(term.subject),
            Scope::Region => Self::Region(term.subject),
            Scope::Label => Self::Label(term.subject),
            Scope::GroupOnHost => Self::GroupHosts(members().collect()),
            Scope::GroupInZone => {
                let zoned = members().filter(|slot| zone(*slot) != NONE);
                Self::GroupZones(zoned.map(|slot| (region(slot), zone(slot))).collect())
            }
            Scope::GroupInRegion => Self::GroupRegions(members().map(region).collect()),
        }
    }

    /// Whether the host in `slot` is one of them.
    pub fn matches(&self, state: &State, slot: usize) -> bool {
        let hosts = &state.hosts;
        match self {
            Self::Host(wanted) => *wanted == slot as u32,
            Self::Zone(zone) => hosts.zone[slot] == *zone,
            Self::Region(region) => hosts.region[slot] == *region,
            Self::Label(label) => state.labels[slot].binary_search(label).is_ok(),
            Self::GroupHosts(slots) => slots.contains(&(slot as u32)),
            Self::GroupZones(zones) => zones.contains(&(hosts.region[slot], hosts.zone[slot])),
            Self::GroupRegions(regions) => regions.contains(&hosts.region[slot]),
        }
    }
}

/// A soft term: its weight, whether it is for or against, and whom it is about.
pub struct Wish {
    pub weight: u32,
    pub for_it: bool,
    pub target: Target,
}

/// One row of a batch.
pub struct Request {
    pub cpu_millis: u32,
    pub memory_mib: u32,
    pub storage_gib: u32,
    pub bandwidth_mbps: u32,
    pub gpus: u32,
    pub gpu_model: u32,
    pub near: u32,
    pub max_latency_us: u32,
    pub cost_limit_micros: u64,
    pub min_health: u8,
    pub groups: Vec<u32>,
    /// Of each list one must match: hosts, zones, regions.
    pub any_of: [Vec<Target>; 3],
    /// All must match: labels, groups.
    pub all_of: Vec<Target>,
    pub none_of: Vec<Target>,
    /// Soft terms about regions.
    pub regional: Vec<Wish>,
    /// All other soft terms.
    pub wishes: Vec<Wish>,
}

impl Request {
    /// Reads row `row`, whose terms and memberships are these. The batch was checked.
    pub fn read(
        batch: &Batch,
        row: usize,
        terms: &[Term],
        groups: Vec<u32>,
        state: &State,
    ) -> Self {
        let mut request = Self {
            cpu_millis: batch.cpu_millis[row],
            memory_mib: batch.memory_mib[row],
            storage_gib: batch.storage_gib[row],
            bandwidth_mbps: batch.bandwidth_mbps[row],
            gpus: batch.gpus[row],
            gpu_model: batch.gpu_model[row],
            near: batch.near[row],
            max_latency_us: batch.max_latency_us[row],
            cost_limit_micros: batch.cost_limit_micros[row],
            min_health: batch.min_health[row],
            groups,
            any_of: Default::default(),
            all_of: Vec::new(),
            none_of: Vec::new(),
            regional: Vec::new(),
            wishes: Vec::new(),
        };
        for term in terms {
            request.take(term, state);
        }
        request
    }

    fn take(&mut self, term: &Term, state: &State) {
        let target = Target::of(term, state);
        match (term.relation, term.scope) {
            (Relation::Requires, Scope::Host) => self.any_of[0].push(target),
            (Relation::Requires, Scope::Zone) => self.any_of[1].push(target),
            (Relation::Requires, Scope::Region) => self.any_of[2].push(target),
            (Relation::Requires, Scope::Label) => self.all_of.push(target),
            (Relation::Requires, _) => {
                // The first member of a group has nobody to stand beside.
                if state.groups.contains_key(&term.subject) {
                    self.all_of.push(target);
                }
            }
            (Relation::Forbids, _) => self.none_of.push(target),
            (Relation::Prefers | Relation::Avoids, scope) => {
                let wish = Wish {
                    weight: u32::from(term.weight),
                    for_it: term.relation == Relation::Prefers,
                    target,
                };
                match scope {
                    Scope::Region => self.regional.push(wish),
                    _ => self.wishes.push(wish),
                }
            }
        }
    }

    /// Estimated price an hour on the host in `slot`.
    pub fn cost_micros(&self, state: &State, slot: usize) -> u64 {
        let cpu = u64::from(state.hosts.cpu_price_micros[slot]) * u64::from(self.cpu_millis);
        let memory = u64::from(state.hosts.memory_price_micros[slot]) * u64::from(self.memory_mib);
        cpu / 1000 + memory / 1024
    }

    /// Round trip that counts for it, or [`NONE`].
    pub fn latency_us(&self, state: &State, slot: usize) -> u32 {
        if self.near == NONE {
            return state.hosts.latency_us[slot];
        }
        let regions = state.regions.names.len();
        let region = state.hosts.region[slot] as usize;
        state.regions.latency_us[self.near as usize * regions + region]
    }

    /// The first hard condition that the host in `slot` does not meet.
    pub fn rejects(&self, state: &State, slot: usize) -> Option<&'static str> {
        let (hosts, free) = (&state.hosts, &state.free);
        let met = |target: &Target| target.matches(state, slot);
        let conditions = [
            (hosts.accepting[slot] != 0, "not accepting VMs"),
            (hosts.health[slot] >= self.min_health, "health too low"),
            (free.cpu_millis[slot] >= self.cpu_millis, "too little CPU"),
            (
                free.memory_mib[slot] >= self.memory_mib,
                "too little memory",
            ),
            (
                free.storage_gib[slot] >= self.storage_gib,
                "too little storage",
            ),
            (free.gpus[slot] >= self.gpus, "too few GPUs"),
            (
                free.bandwidth_mbps[slot] >= self.bandwidth_mbps,
                "too little bandwidth",
            ),
        ];
        if let Some((_, reason)) = conditions.iter().find(|(good, _)| !good) {
            return Some(reason);
        }
        if self.gpus > 0 && self.gpu_model != NONE && hosts.gpu_model[slot] != self.gpu_model {
            return Some("other GPU model");
        }
        let reasons = [
            "not a required host",
            "not in a required zone",
            "not in a required region",
        ];
        for (targets, reason) in self.any_of.iter().zip(reasons) {
            if !targets.is_empty() && !targets.iter().any(met) {
                return Some(reason);
            }
        }
        if let Some(target) = self.all_of.iter().find(|target| !met(target)) {
            return Some(match target {
                Target::Label(_) => "lacks a required label",
                _ => "apart from a required group",
            });
        }
        if let Some(target) = self.none_of.iter().find(|target| met(target)) {
            return Some(match target {
                Target::Host(_) | Target::Zone(_) | Target::Region(_) => "forbidden place",
                Target::Label(_) => "has a forbidden label",
                _ => "together with a forbidden group",
            });
        }
        let latency_us = self.latency_us(state, slot);
        if self.max_latency_us != NONE && (latency_us == NONE || latency_us > self.max_latency_us) {
            return Some("latency over the limit");
        }
        if self.cost_micros(state, slot) > self.cost_limit_micros {
            return Some("cost over the limit");
        }
        None
    }
}

/// Refuses a batch whose columns do not fit each other or the state.
pub fn check(batch: &Batch, state: &State) -> Result<(), Refusal> {
    let rows = batch.ids.len();
    if rows == 0 || rows > MAX_REQUESTS {
        return Err(malformed("batch", "A batch has 1 to 1,024 requests."));
    }
    if batch.alternatives > MAX_ALTERNATIVES {
        return Err(malformed(
            "batch.alternatives",
            "At most 8 can be asked for.",
        ));
    }
    let columns = [
        ("cpu-millis", batch.cpu_millis.len()),
        ("memory-mib", batch.memory_mib.len()),
        ("storage-gib", batch.storage_gib.len()),
        ("bandwidth-mbps", batch.bandwidth_mbps.len()),
        ("gpus", batch.gpus.len()),
        ("gpu-model", batch.gpu_model.len()),
        ("near", batch.near.len()),
        ("max-latency-us", batch.max_latency_us.len()),
        ("cost-limit-micros", batch.cost_limit_micros.len()),
        ("min-health", batch.min_health.len()),
    ];
    check_rows("batch", rows, &columns)?;
    let (slots, regions) = (state.hosts.ids.len(), state.regions.names.len());
    let symbols = state.symbols.len() + batch.symbols.len();
    check_range("batch.near", &batch.near, regions, true)?;
    check_range("batch.gpu-model", &batch.gpu_model, symbols, true)?;
    let of_terms: Vec<u32> = batch.terms.iter().map(|term| term.request).collect();
    let of_groups: Vec<u32> = batch.memberships.iter().map(|m| m.request).collect();
    check_owners("batch.terms", &of_terms, rows, MAX_TERMS)?;
    check_owners("batch.memberships", &of_groups, rows, MAX_MEMBERSHIPS)?;
    for term in &batch.terms {
        let end = match term.scope {
            Scope::Host => slots,
            Scope::Region => regions,
            _ => symbols,
        };
        check_range("batch.terms", &[term.subject], end, false)?;
    }
    let groups: Vec<u32> = batch.memberships.iter().map(|m| m.group).collect();
    check_range("batch.memberships", &groups, symbols, false)
}

/// Rows that belong to requests must ascend, and be few for each.
fn check_owners(path: &str, owners: &[u32], rows: usize, most: usize) -> Result<(), Refusal> {
    check_range(path, owners, rows, false)?;
    let few = owners
        .chunk_by(|a, b| a == b)
        .all(|same| same.len() <= most);
    if !few || !owners.is_sorted() {
        let what = format!("They must ascend by request, at most {most} for each.");
        return Err(malformed(path, &what));
    }
    Ok(())
}
