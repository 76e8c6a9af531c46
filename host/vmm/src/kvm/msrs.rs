//! Model-specific registers: which are saved, and how they are put back.
//!
//! KVM names those that it can save; it stops at the first one that it then does not like, so both ways go on after
//! it. A register that cannot be set is no loss if it has its value already.

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use super::KvmError;

/// The time stamp counter.
pub const TSC: u32 = 0x10;
/// Hardware bugs that the CPU says it does not have.
pub const ARCH_CAPABILITIES: u32 = 0x10a;
/// When the local APIC's timer fires; must be set after the APIC and the counter.
const TSC_DEADLINE: u32 = 0x6e0;
/// Fast string instructions and more.
pub const MISC_ENABLE: u32 = 0x1a0;
/// The default memory type.
pub const MTRR_DEFAULT_TYPE: u32 = 0x2ff;

/// The registers to save, in the order in which to put them back.
pub fn to_save(kvm: &Kvm) -> Result<Vec<u32>, KvmError> {
    let list = kvm
        .get_msr_index_list()
        .map_err(KvmError::refused("list its registers"))?;
    let mut indices = list.as_slice().to_vec();
    indices.sort_by_key(|index| match *index {
        TSC => (0, 0),
        TSC_DEADLINE => (2, 0),
        other => (1, other),
    });
    indices.dedup();
    Ok(indices)
}

/// Reads those of `indices` that the vCPU has.
pub fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, KvmError> {
    let mut entries = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let asked: Vec<_> = rest
            .iter()
            .take(KVM_MAX_MSR_ENTRIES)
            .map(|index| entry(*index, 0))
            .collect();
        let mut msrs = to_kvm(&asked)?;
        let read = vcpu
            .get_msrs(&mut msrs)
            .map_err(KvmError::refused("read registers"))?
            .min(asked.len());
        entries.extend_from_slice(&msrs.as_slice()[..read]);
        // The one that it stopped at is not there.
        let seen = if read < asked.len() { read + 1 } else { read };
        rest = &rest[seen..];
    }
    Ok(entries)
}

/// Puts saved registers back.
pub fn write(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), KvmError> {
    let mut rest = entries;
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let written = vcpu
            .set_msrs(&to_kvm(batch)?)
            .map_err(KvmError::refused("set registers"))?
            .min(batch.len());
        rest = &rest[written..];
        if written < batch.len() {
            let refused = rest[0];
            let now = read(vcpu, &[refused.index])?;
            if now.first().is_none_or(|now| now.data != refused.data) && refused.data != 0 {
                return Err(KvmError::Msr {
                    index: refused.index,
                    value: refused.data,
                });
            }
            rest = &rest[1..];
        }
    }
    Ok(())
}

/// Sets a register if the CPU has it; answers whether it did.
pub fn try_write(vcpu: &VcpuFd, index: u32, value: u64) -> Result<bool, KvmError> {
    let written = vcpu
        .set_msrs(&to_kvm(&[entry(index, value)])?)
        .map_err(KvmError::refused("set a register"))?;
    Ok(written == 1)
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}

fn to_kvm(entries: &[kvm_msr_entry]) -> Result<Msrs, KvmError> {
    Msrs::from_entries(entries).map_err(|_| KvmError::Missing("room for so many registers"))
}
