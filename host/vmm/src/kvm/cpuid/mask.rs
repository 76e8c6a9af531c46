//! A host's CPUID leaves reduced to a baseline: leaf by leaf, what is not known here is dropped.
//!
//! Which CPU it is stays as it is (vendor, family and model, name, caches): a guest chooses by that how to work around a
//! CPU's faults, and made-up numbers would mislead it. All else comes from the baseline's table, and the sizes of
//! extended state from the state that is left.

use kvm_bindings::kvm_cpuid_entry2;

use crate::baseline::Baseline;

/// Bytes of extended state that are always there: legacy area and header (Intel SDM volume 1, 13.4).
const EXTENDED_BYTES_MIN: u32 = 576;
/// Physical address bits that a guest is told of at most. Its memory and devices need no more, and hosts differ.
const PHYSICAL_BITS_MAX: u32 = 42;
/// Linear address bits: four levels of page tables.
const LINEAR_BITS: u32 = 48;
/// Leaf 6: the local APIC's timer never stops, which KVM sees to.
const TIMER_RUNS_ALWAYS: u32 = 1 << 2;
/// Leaf 0x80000001, ecx: several processors of one socket are cores and no threads. Only AMD's CPUs say it, and all do.
const CORES_NOT_THREADS: u32 = 1 << 1;
/// Leaf 0x80000001, edx: what AMD's CPUs repeat of leaf 1.
const REPEATED: u32 = 0x0183_fbff & !(1 << 10 | 1 << 11);

/// Reduces a host's leaves to a baseline that it has all of.
pub fn apply(baseline: Baseline, entries: &mut Vec<kvm_cpuid_entry2>) {
    let state = baseline.extended_state();
    entries.retain(|entry| is_kept(entry, state));
    let parts = entries.iter().filter(|e| e.function == 0xd && e.index >= 2);
    let state_bytes = parts
        .map(|part| part.ebx.saturating_add(part.eax))
        .fold(EXTENDED_BYTES_MIN, u32::max);
    for entry in entries {
        reduce(baseline, entry, state_bytes);
    }
}

/// Whether a guest is told of a leaf at all.
fn is_kept(entry: &kvm_cpuid_entry2, state: u32) -> bool {
    match entry.function {
        0 | 1 | 2 | 4 | 6 | 0xb => true,
        7 => entry.index == 0,
        0xd if state == 0 => false,
        0xd => entry.index < 2 || state.checked_shr(entry.index).is_some_and(|s| s & 1 == 1),
        0x4000_0000 | 0x4000_0001 => true,
        0x8000_0000..=0x8000_0008 => true,
        _ => false,
    }
}

fn reduce(baseline: Baseline, entry: &mut kvm_cpuid_entry2, state_bytes: u32) {
    let (leaf, subleaf) = (entry.function, entry.index);
    let bits = |register| baseline.bits(leaf, subleaf, register);
    match (leaf, subleaf) {
        (0, _) => {
            entry.eax = entry.eax.min(if baseline.extended_state() == 0 {
                0xb
            } else {
                0xd
            })
        }
        (1, _) => {
            entry.ecx &= bits(2);
            entry.edx &= bits(3);
        }
        (6, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (TIMER_RUNS_ALWAYS, 0, 0, 0),
        (7, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, entry.ebx & bits(1), 0, 0),
        (0xd, 0) => {
            entry.eax &= baseline.extended_state();
            // KVM puts there what the guest has switched on, as it does so.
            entry.ebx = EXTENDED_BYTES_MIN;
            entry.ecx = state_bytes;
            entry.edx = 0;
        }
        // No compacted form, so no state for supervisors either.
        (0xd, 1) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        (0x4000_0001, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (bits(0), 0, 0, 0),
        (0x8000_0000, _) => entry.eax = entry.eax.min(0x8000_0008),
        (0x8000_0001, _) => {
            entry.ebx = 0;
            entry.ecx &= bits(2) | CORES_NOT_THREADS;
            let again = REPEATED & baseline.bits(1, 0, 3);
            entry.edx &= bits(3) | again;
        }
        (0x8000_0007, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        (0x8000_0008, _) => {
            let physical = (entry.eax & 0xff).min(PHYSICAL_BITS_MAX);
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (LINEAR_BITS << 8 | physical, 0, 0, 0);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use super::super::{CpuFeatures, TooFewFeatures, needed};
    use super::*;

    /// Every leaf with every bit set, but for sizes and offsets of extended state as Intel's CPUs have them.
    fn everything() -> CpuFeatures {
        let mut entries = Vec::new();
        let mut add = |function, index, [eax, ebx, ecx, edx]: [u32; 4]| {
            entries.push(kvm_cpuid_entry2 {
                function,
                index,
                eax,
                ebx,
                ecx,
                edx,
                ..Default::default()
            });
        };
        for function in (0..=0x20)
            .chain(0x4000_0000..=0x4000_0001)
            .chain(0x8000_0000..=0x8000_0022)
        {
            match function {
                0 => add(0, 0, [0x20, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
                7 => (0..=2).for_each(|index| add(7, index, [!0; 4])),
                0xd => {
                    add(0xd, 0, [!0, 2696, 2696, !0]);
                    add(0xd, 1, [!0; 4]);
                    let parts = [
                        (2, 256, 576),
                        (5, 64, 1088),
                        (6, 512, 1152),
                        (7, 1024, 1664),
                        (9, 8, 2688),
                    ];
                    parts
                        .into_iter()
                        .for_each(|(index, bytes, at)| add(0xd, index, [bytes, at, 0, 0]));
                }
                0x8000_0000 => add(function, 0, [0x8000_0022, 0, 0, 0]),
                0x8000_0008 => add(function, 0, [0x0034_3939, !0, !0, !0]),
                _ => add(function, 0, [!0; 4]),
            }
        }
        CpuFeatures { entries }
    }

    fn leaf(features: &CpuFeatures, function: u32, index: u32) -> Option<[u32; 4]> {
        let mut entries = features.entries.iter();
        let entry = entries.find(|e| (e.function, e.index) == (function, index))?;
        Some([entry.eax, entry.ebx, entry.ecx, entry.edx])
    }

    fn limited(baseline: Baseline) -> CpuFeatures {
        let mut features = everything();
        features.limit(baseline).unwrap();
        features
    }

    #[test]
    fn a_guest_is_told_of_its_table_and_of_nothing_that_a_host_of_that_level_could_lack() {
        for baseline in [Baseline::V1, Baseline::V2, Baseline::V3, Baseline::V4] {
            let told = limited(baseline).described().1;
            let table = baseline.features();
            assert!(told.is_superset(&table), "{baseline:?}");
            let more: BTreeSet<_> = told.difference(&table).collect();
            let is_known = |name: &&String| {
                let repeats = name.starts_with("cpuid-80000001.0-edx-");
                let is_state = name.starts_with("cpuid-d.0-eax-");
                repeats || is_state || *name == "cpuid-80000001.0-ecx-1"
            };
            assert!(more.iter().all(is_known), "{baseline:?}: {more:?}");
        }
    }

    #[test]
    fn extended_state_is_as_large_as_what_is_left_of_it() {
        for baseline in [Baseline::V1, Baseline::V2] {
            let features = limited(baseline);
            assert_eq!(leaf(&features, 0xd, 0), None);
            assert_eq!(leaf(&features, 0, 0).unwrap()[0], 0xb);
            assert_eq!(leaf(&features, 1, 0).unwrap()[2] & (1 << 26 | 1 << 27), 0);
        }
        let v3 = limited(Baseline::V3);
        assert_eq!(leaf(&v3, 0xd, 0), Some([0b111, 576, 832, 0]));
        assert_eq!(leaf(&v3, 0xd, 1), Some([0; 4]));
        assert_eq!(leaf(&v3, 0xd, 5), None);
        let v4 = limited(Baseline::V4);
        assert_eq!(leaf(&v4, 0xd, 0), Some([0b1110_0111, 576, 2688, 0]));
        assert_eq!(leaf(&v4, 0xd, 7), Some([1024, 1664, 0, 0]));
        assert_eq!(leaf(&v4, 0xd, 9), None);
    }

    #[test]
    fn leaves_that_are_not_known_are_dropped_and_the_highest_says_so() {
        let v4 = limited(Baseline::V4);
        for function in [
            3,
            5,
            0xa,
            0x12,
            0x14,
            0x15,
            0x1d,
            0x8000_000a,
            0x8000_001e,
            0x8000_0021,
        ] {
            assert_eq!(leaf(&v4, function, 0), None, "{function:#x}");
        }
        assert_eq!(leaf(&v4, 7, 1), None);
        assert_eq!(leaf(&v4, 7, 0).unwrap()[0], 0);
        assert_eq!(leaf(&v4, 0, 0).unwrap()[0], 0xd);
        assert_eq!(leaf(&v4, 0x8000_0000, 0).unwrap()[0], 0x8000_0008);
        assert_eq!(leaf(&v4, 0x8000_0008, 0), Some([48 << 8 | 42, 0, 0, 0]));
        assert_eq!(leaf(&v4, 0x8000_0007, 0), Some([0; 4]));
    }

    #[test]
    fn a_host_that_lacks_something_is_refused_by_its_name() {
        let mut poor = everything();
        let leaf7 = |entry: &&mut kvm_cpuid_entry2| (entry.function, entry.index) == (7, 0);
        poor.entries.iter_mut().find(leaf7).unwrap().ebx &= !(1 << 5);
        let mut first = poor.clone();
        assert_eq!(first.limit(Baseline::V2), Ok(()));
        let refused = poor.limit(Baseline::V3);
        let missing = TooFewFeatures::Baseline(Baseline::V3, vec!["avx2".into()]);
        assert_eq!(refused, Err(missing));
    }

    #[test]
    fn a_guest_of_a_lower_level_goes_to_a_host_of_a_higher_one_and_not_back() {
        let (low, high) = (limited(Baseline::V2), limited(Baseline::V3));
        let told = low.for_vcpu(0, 2);
        assert_eq!(high.cover(&told), Ok(()));
        let Err(TooFewFeatures::Guest(missing)) = low.cover(&high.for_vcpu(0, 2)) else {
            panic!("it goes back");
        };
        assert!(missing.contains(&"avx2".to_owned()), "{missing:?}");
        assert!(needed(&told).1.contains("sse4_2"));
    }
}
