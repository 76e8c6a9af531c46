//! What this machine can hold, and what it holds.

use dwcp_api::service::Answer;
use dwcp_control::records::{Capacity, Vm, VmPhase};

use crate::config::NodeConfig;
use crate::errors::impossible;

/// Memory that is never promised to machines, bytes.
const RESERVE_BYTES: u64 = 512 << 20;

/// What this machine can hold, with nothing in it.
pub(crate) fn total(config: &NodeConfig) -> Capacity {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let memory_bytes = config
        .memory_bytes
        .unwrap_or_else(|| memory_total().saturating_sub(RESERVE_BYTES));
    Capacity {
        cpus,
        memory_bytes,
        ..Capacity::default()
    }
}

/// Adds what the machines here were promised. One that moved away, or does not run, holds nothing; a template holds its
/// memory.
pub(crate) fn with(mut capacity: Capacity, vms: &[Vm]) -> Capacity {
    for vm in vms.iter().filter(|vm| holds(vm)) {
        capacity.vms += 1;
        capacity.memory_used_bytes += vm.spec.memory_bytes;
        if vm.phase != VmPhase::Template {
            capacity.vcpus_used += u32::from(vm.spec.vcpus);
        }
    }
    capacity
}

fn holds(vm: &Vm) -> bool {
    !matches!(
        vm.phase,
        VmPhase::Moved | VmPhase::Stopped | VmPhase::Crashed
    )
}

/// Whether a machine of this size fits.
pub(crate) fn check(
    capacity: &Capacity,
    config: &NodeConfig,
    vcpus: u8,
    memory: u64,
) -> Answer<()> {
    check_many(capacity, config, vcpus, memory, 1)
}

/// Whether so many of this size fit.
pub(crate) fn check_many(
    capacity: &Capacity,
    config: &NodeConfig,
    vcpus: u8,
    memory: u64,
    count: u32,
) -> Answer<()> {
    let (vcpus, memory) = (
        u32::from(vcpus) * count,
        memory.saturating_mul(count.into()),
    );
    let these = match count {
        1 => "this one needs".to_owned(),
        _ => format!("{count} of them need"),
    };
    let free = capacity
        .memory_bytes
        .saturating_sub(capacity.memory_used_bytes);
    if memory > free {
        return Err(impossible(format!(
            "{} has {} MiB of memory left for machines, and {these} {} MiB",
            config.name,
            free >> 20,
            memory >> 20
        )));
    }
    let limit = capacity.cpus * config.vcpus_per_cpu;
    if capacity.vcpus_used + vcpus > limit {
        return Err(impossible(format!(
            "{} has promised {} of {limit} virtual CPUs, and {these} {vcpus}",
            config.name, capacity.vcpus_used
        )));
    }
    Ok(())
}

fn memory_total() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .map_or(0, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory() {
        assert!(memory_total() > 0);
    }
}
