//! From the mirror to the columns of `wit/placement`: the fleet, and what changed of it. [`super::question`] and
//! [`super::answer`] do the same for a batch and for what comes back.
//!
//! Always: what is sent satisfies the contract's bounds. Never: a judgement.

use super::{
    fleet::Host,
    mirror::{Before, Mirror},
};
use crate::bindings::placement::exports::dwcp::placement::decisions as wit;
use std::collections::BTreeMap;

/// Stands for "none" in a column.
pub(super) const NONE: u32 = u32::MAX;
/// Rows of the members table that one call may carry.
const MEMBER_ROWS: usize = 65_536;

fn regions(mirror: &Mirror) -> wit::Regions {
    let of = &mirror.regions;
    wit::Regions {
        names: of.iter().map(|r| r.name.clone()).collect(),
        priority: of.iter().map(|r| r.priority).collect(),
        latency_us: of
            .iter()
            .flat_map(|from| {
                of.iter().map(|to| match from.latency_us.get(&to.name) {
                    Some(us) => *us,
                    None if from.name == to.name => 0,
                    None => NONE,
                })
            })
            .collect(),
    }
}

fn hosts<'a>(mirror: &Mirror, of: impl Iterator<Item = &'a Host> + Clone) -> wit::Hosts {
    let symbol = |name: &Option<String>| {
        name.as_ref()
            .map_or(NONE, |n| mirror.symbol_rows.get(n).copied().unwrap_or(NONE))
    };
    let mut label_starts = vec![0];
    let mut labels = Vec::new();
    for host in of.clone() {
        let start = labels.len();
        labels.extend(
            host.labels
                .iter()
                .filter_map(|l| mirror.symbol_rows.get(l).copied()),
        );
        labels[start..].sort_unstable();
        label_starts.push(labels.len() as u32);
    }
    wit::Hosts {
        ids: of.clone().map(|h| h.id.clone()).collect(),
        region: of
            .clone()
            .map(|h| mirror.region_rows.get(&h.region).copied().unwrap_or(0))
            .collect(),
        zone: of.clone().map(|h| symbol(&h.zone)).collect(),
        accepting: of.clone().map(|h| u8::from(h.accepting)).collect(),
        health: of.clone().map(|h| h.health).collect(),
        latency_us: of.clone().map(|h| h.latency_us.unwrap_or(NONE)).collect(),
        cpu_price_micros: of.clone().map(|h| h.cpu_price_micros).collect(),
        memory_price_micros: of.clone().map(|h| h.memory_price_micros).collect(),
        cpu_total_millis: of.clone().map(|h| h.cpu_total_millis).collect(),
        memory_total_mib: of.clone().map(|h| h.memory_total_mib).collect(),
        storage_total_gib: of.clone().map(|h| h.storage_total_gib).collect(),
        gpu_model: of.clone().map(|h| symbol(&h.gpu_model)).collect(),
        label_starts,
        labels,
    }
}

fn free<'a>(of: impl Iterator<Item = &'a Host> + Clone) -> wit::Free {
    wit::Free {
        cpu_millis: of.clone().map(|h| h.free.cpu_millis).collect(),
        memory_mib: of.clone().map(|h| h.free.memory_mib).collect(),
        storage_gib: of.clone().map(|h| h.free.storage_gib).collect(),
        gpus: of.clone().map(|h| h.free.gpus).collect(),
        bandwidth_mbps: of.clone().map(|h| h.free.bandwidth_mbps).collect(),
    }
}

/// Rows `(slot, group symbol, count)` as tables of at most [`MEMBER_ROWS`]; at least one table.
fn members(rows: &[(u32, u32, u32)]) -> Vec<wit::Members> {
    let table = |rows: &[(u32, u32, u32)]| wit::Members {
        host: rows.iter().map(|r| r.0).collect(),
        group: rows.iter().map(|r| r.1).collect(),
        count: rows.iter().map(|r| r.2).collect(),
    };
    if rows.is_empty() {
        vec![table(&[])]
    } else {
        rows.chunks(MEMBER_ROWS).map(table).collect()
    }
}

fn nothing(mirror: &Mirror, members: wit::Members) -> wit::Changes {
    wit::Changes {
        symbols: Vec::new(),
        regions: None,
        host_slots: Vec::new(),
        hosts: hosts(mirror, [].iter()),
        free_slots: Vec::new(),
        free: free([].iter()),
        members,
    }
}

/// The whole fleet; members that do not fit follow as changes.
pub(crate) fn fleet(mirror: &Mirror) -> (wit::Fleet, Vec<wit::Changes>) {
    let mut rows = Vec::new();
    for (slot, host) in mirror.slots.iter().enumerate() {
        for (group, count) in host.members.iter().filter(|(_, count)| **count > 0) {
            if let Some(symbol) = mirror.symbol_rows.get(group) {
                rows.push((slot as u32, *symbol, *count));
            }
        }
    }
    let mut tables = members(&rows).into_iter();
    let first = tables.next().unwrap_or_else(|| wit::Members {
        host: vec![],
        group: vec![],
        count: vec![],
    });
    let fleet = wit::Fleet {
        symbols: mirror.symbols.clone(),
        regions: regions(mirror),
        hosts: hosts(mirror, mirror.slots.iter()),
        free: free(mirror.slots.iter()),
        members: first,
    };
    (
        fleet,
        tables.map(|members| nothing(mirror, members)).collect(),
    )
}

/// What is pending, as changes to be applied in order.
pub(crate) fn changes(mirror: &Mirror) -> Vec<wit::Changes> {
    let pending = &mirror.pending;
    let at = |slot: &u32| &mirror.slots[*slot as usize];
    let changed_free = |(slot, before): &(&u32, &Option<Before>)| {
        let host = at(slot);
        before
            .as_ref()
            .is_none_or(|b| b.id != host.id || b.free != host.free)
    };
    let free_slots: Vec<u32> = pending
        .before
        .iter()
        .filter(changed_free)
        .map(|(slot, _)| *slot)
        .collect();
    let rows: Vec<(u32, u32, u32)> = pending
        .before
        .iter()
        .flat_map(|(slot, before)| changed_members(*slot, before.as_ref(), at(slot)))
        .filter_map(|(slot, group, count)| Some((slot, *mirror.symbol_rows.get(group)?, count)))
        .collect();
    let mut tables = members(&rows).into_iter();
    let first = tables.next().unwrap_or_else(|| wit::Members {
        host: vec![],
        group: vec![],
        count: vec![],
    });
    let head = wit::Changes {
        symbols: mirror.symbols[pending.symbols_told.min(mirror.symbols.len())..].to_vec(),
        regions: pending.regions.then(|| regions(mirror)),
        host_slots: pending.hosts.iter().copied().collect(),
        hosts: hosts(mirror, pending.hosts.iter().map(at)),
        free: free(free_slots.iter().map(at)),
        free_slots,
        members: first,
    };
    std::iter::once(head)
        .chain(tables.map(|members| nothing(mirror, members)))
        .collect()
}

/// Counts that differ from what the plugin knows of this slot; a plugin forgets them by itself when the id changes.
fn changed_members<'a>(
    slot: u32,
    before: Option<&'a Before>,
    now: &'a Host,
) -> Vec<(u32, &'a str, u32)> {
    let same_host = before.filter(|b| b.id == now.id);
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    if let Some(before) = same_host {
        counts.extend(before.members.keys().map(|group| (group.as_str(), 0)));
    }
    counts.extend(
        now.members
            .iter()
            .map(|(group, count)| (group.as_str(), *count)),
    );
    counts
        .into_iter()
        .filter(|(group, count)| {
            same_host.map_or(*count > 0, |b| {
                b.members.get(*group).copied().unwrap_or(0) != *count
            })
        })
        .map(|(group, count)| (slot, group, count))
        .collect()
}
