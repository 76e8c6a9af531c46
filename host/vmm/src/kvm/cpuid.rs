//! What the guest is told about its CPU: the host's features, less what cannot be saved or is not true for a guest.
//!
//! Nested virtualisation and the performance counters are hidden, because their state does not travel. The topology is
//! one socket with as many cores as there are vCPUs. A [`Baseline`] takes away all that it does not have.
//!
//! What a CPUID bit hides is not all switched off: an instruction that needs no permission (AES, say) works for who tries
//! it without asking. Registers and extended state that belong to a hidden feature are out of reach, for KVM goes by
//! what the guest was told.

mod mask;

use std::collections::BTreeSet;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use super::{KvmError, feature_names};
use crate::baseline::Baseline;

/// Leaf 7, edx.
const ARCH_CAPABILITIES: u32 = 1 << 29;
/// Leaf 1, edx.
const SEVERAL_PROCESSORS: u32 = 1 << 28;

/// The features that KVM on this host can give to a guest.
#[derive(Debug, Clone)]
pub struct CpuFeatures {
    entries: Vec<kvm_cpuid_entry2>,
}

/// What a guest is to be told of is missing here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooFewFeatures {
    /// It was told before.
    #[error("The guest uses CPU features that this host lacks: {}", .0.join(", "))]
    Guest(Vec<String>),
    /// Its baseline has it.
    #[error("This host's KVM lacks CPU features of {}: {}", .0.name(), .1.join(", "))]
    Baseline(Baseline, Vec<String>),
}

impl CpuFeatures {
    /// Asks KVM.
    pub fn of_host(kvm: &Kvm) -> Result<Self, KvmError> {
        let mut entries = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::refused("tell what CPUs it supports"))?
            .as_slice()
            .to_vec();
        let has_deadline_timer = kvm.check_extension(Cap::TscDeadlineTimer);
        for entry in &mut entries {
            match (entry.function, entry.index) {
                (1, _) => {
                    entry.ecx &= !(1 << 5); // VMX
                    entry.ecx |= 1 << 31; // a hypervisor is there
                    if has_deadline_timer {
                        entry.ecx |= 1 << 24;
                    }
                }
                (0xa, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
                (0x8000_0001, _) => entry.ecx &= !(1 << 2), // SVM
                _ => {}
            }
        }
        Ok(Self { entries })
    }

    /// Takes away everything beyond a baseline, which the host must have all of.
    pub fn limit(&mut self, baseline: Baseline) -> Result<(), TooFewFeatures> {
        if baseline == Baseline::Host {
            return Ok(());
        }
        let here = needed(&self.entries).1;
        let missing: Vec<_> = baseline.features().difference(&here).cloned().collect();
        if !missing.is_empty() {
            return Err(TooFewFeatures::Baseline(baseline, missing));
        }
        mask::apply(baseline, &mut self.entries);
        Ok(())
    }

    /// Takes away the register of hardware bugs, where KVM offers it but lets nobody set it.
    pub fn hide_arch_capabilities(&mut self) {
        for entry in &mut self.entries {
            if (entry.function, entry.index) == (7, 0) {
                entry.edx &= !ARCH_CAPABILITIES;
            }
        }
    }

    /// Whether the register of hardware bugs is offered.
    pub fn offers_arch_capabilities(&self) -> bool {
        let leaf7 = |entry: &&kvm_cpuid_entry2| (entry.function, entry.index) == (7, 0);
        let entry = self.entries.iter().find(leaf7);
        entry.is_some_and(|entry| entry.edx & ARCH_CAPABILITIES != 0)
    }

    /// What vCPU `index` of `count` is told.
    pub fn for_vcpu(&self, index: u8, count: u8) -> Vec<kvm_cpuid_entry2> {
        let (id, cores) = (u32::from(index), u32::from(count));
        // Bits of an APIC id that number the core.
        let core_bits = cores.next_power_of_two().trailing_zeros();
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            match entry.function {
                1 => {
                    entry.ebx = entry.ebx & 0xffff | cores << 16 | id << 24;
                    if cores > 1 {
                        entry.edx |= SEVERAL_PROCESSORS;
                    }
                }
                4 => {
                    let level = entry.eax >> 5 & 7;
                    let sharing = if level >= 3 { cores - 1 } else { 0 };
                    entry.eax = entry.eax & 0x3fff | sharing << 14 | (cores - 1) << 26;
                }
                0xb | 0x1f => {
                    let (shift, threads, kind) = match entry.index {
                        0 => (0, 1, 1),
                        1 => (core_bits, cores, 2),
                        _ => (0, 0, 0),
                    };
                    entry.eax = shift;
                    entry.ebx = threads;
                    entry.ecx = entry.index | kind << 8;
                    entry.edx = id;
                }
                0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | (cores - 1) | core_bits << 12,
                0x8000_001d => entry.eax &= !(0xfff << 14),
                0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xff, 0),
                _ => {}
            }
        }
        entries
    }

    /// The CPU's vendor, and the names of its features.
    pub fn described(&self) -> (String, BTreeSet<String>) {
        needed(&self.entries)
    }

    /// The CPU's vendor, and the names of all features that a guest may have been told of, by whatever version of this
    /// program.
    pub fn offered(&self) -> (String, BTreeSet<String>) {
        let (vendor, places) = feature_names::describe(&self.entries, feature_bits);
        let mut names = BTreeSet::new();
        for (leaf, subleaf, register, bit) in places {
            names.insert(feature_names::name(leaf, subleaf, register, bit));
            names.insert(feature_names::place(leaf, subleaf, register, bit));
        }
        // That there are several processors is our doing; older snapshots name it.
        let several = SEVERAL_PROCESSORS.trailing_zeros();
        names.insert(feature_names::name(1, 0, 3, several));
        (vendor, names)
    }

    /// Refuses a guest that was told of features which this host lacks.
    pub fn cover(&self, saved: &[kvm_cpuid_entry2]) -> Result<(), TooFewFeatures> {
        let (needed, offered) = (needed(saved).1, self.offered().1);
        let missing: Vec<_> = needed.difference(&offered).cloned().collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(TooFewFeatures::Guest(missing))
        }
    }
}

/// The vendor of the CPU that a guest was told of, and the names of the features that it needs wherever it goes.
pub fn needed(told: &[kvm_cpuid_entry2]) -> (String, BTreeSet<String>) {
    let (vendor, places) = feature_names::describe(told, feature_bits);
    let name = |(leaf, subleaf, register, bit)| feature_names::name(leaf, subleaf, register, bit);
    (vendor, places.into_iter().map(name).collect())
}

/// Which bits of eax, ebx, ecx and edx are features that a guest may use and a host must have.
fn feature_bits(leaf: u32, subleaf: u32) -> [u32; 4] {
    match (leaf, subleaf) {
        (1, 0) => [0, 0, !0, !SEVERAL_PROCESSORS],
        (7, 0) => [0, !0, !0, !0],
        (7, 1) => [!0; 4],
        (7, 2) => [0, 0, 0, !0],
        (0xd, 0) => [!0, 0, 0, !0],
        (0xd, 1) => [!0, 0, 0, 0],
        (0x4000_0001, 0) => [!0, 0, 0, 0],
        (0x8000_0001, 0) => [0, 0, !0, !0],
        (0x8000_0007, 0) => [0, 0, 0, !0],
        (0x8000_0008, 0) => [0, !0, 0, 0],
        _ => [0; 4],
    }
}

/// Whether a vCPU that was told this has extended registers and their control registers.
pub(super) fn has_xsave(told: &[kvm_cpuid_entry2]) -> bool {
    told.iter()
        .any(|entry| entry.function == 1 && entry.ecx & 1 << 26 != 0)
}

/// The form in which KVM takes it.
pub(super) fn to_kvm(entries: &[kvm_cpuid_entry2]) -> Result<CpuId, KvmError> {
    CpuId::from_entries(entries).map_err(|_| KvmError::Missing("room for so many CPUID entries"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(entries: &[(u32, u32, [u32; 4])]) -> CpuFeatures {
        let entries = entries
            .iter()
            .map(|(function, index, [eax, ebx, ecx, edx])| kvm_cpuid_entry2 {
                function: *function,
                index: *index,
                eax: *eax,
                ebx: *ebx,
                ecx: *ecx,
                edx: *edx,
                ..Default::default()
            })
            .collect();
        CpuFeatures { entries }
    }

    #[test]
    fn a_missing_feature_is_named() {
        let poor = features(&[(7, 0, [0, 0b0001, 0, 0])]);
        let rich = features(&[(7, 0, [0, 0b1001, 0, 0])]);
        assert_eq!(rich.cover(&poor.entries), Ok(()));
        let refused = poor.cover(&rich.entries);
        assert_eq!(refused, Err(TooFewFeatures::Guest(vec!["bmi1".to_owned()])));
    }

    #[test]
    fn a_guest_needs_what_it_was_told_and_no_more() {
        let host = features(&[(1, 0, [0; 4]), (7, 0, [0, 0b1001, 0, 0])]);
        let guest = features(&[(1, 0, [0; 4]), (7, 0, [0, 0b0001, 0, 0])]);
        let told = guest.for_vcpu(0, 4);
        let (_, names) = needed(&told);
        // Not that it has several processors, which any host can say.
        assert_eq!(Vec::from_iter(names), ["fsgsbase"]);
        assert_eq!(host.cover(&told), Ok(()));
        let several = "cpuid-1.0-edx-28";
        assert!(host.offered().1.contains(several));
    }

    #[test]
    fn what_got_a_name_later_is_still_known_by_its_place() {
        let host = features(&[(0x8000_0001, 0, [0, 0, 1, 0])]);
        let offered = host.offered().1;
        assert!(offered.contains("lahf_lm") && offered.contains("cpuid-80000001.0-ecx-0"));
        assert_eq!(Vec::from_iter(host.described().1), ["lahf_lm"]);
    }

    #[test]
    fn every_vcpu_has_its_own_id() {
        let features = features(&[(1, 0, [0; 4]), (0xb, 0, [0; 4]), (0xb, 1, [0; 4])]);
        for index in 0..32 {
            let told = features.for_vcpu(index, 32);
            assert_eq!(told[0].ebx >> 24, u32::from(index));
            assert_eq!(told[2].edx, u32::from(index));
            assert_eq!((told[2].eax, told[2].ebx), (5, 32));
            assert_eq!(features.cover(&told), Ok(()));
        }
    }
}
