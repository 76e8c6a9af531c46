//! Names for the CPU features that a guest may use, so that a snapshot can say what it needs, and a host what it lacks.
//!
//! What programs look for has the name that Linux shows in `/proc/cpuinfo`; every other bit is named for its place
//! (`cpuid-7.0-ebx-9`). A name never changes its bit: names lie in snapshots.

use std::collections::BTreeSet;

use kvm_bindings::kvm_cpuid_entry2;

/// Leaf, subleaf, register (0 eax to 3 edx), first bit and the names from there on; an empty name is none.
const NAMES: &[(u32, u32, usize, u32, &[&str])] = &[
    (1, 0, 2, 0, &["pni", "pclmulqdq"]),
    (1, 0, 2, 9, &["ssse3"]),
    (1, 0, 2, 12, &["fma", "cx16"]),
    (
        1,
        0,
        2,
        19,
        &[
            "sse4_1",
            "sse4_2",
            "x2apic",
            "movbe",
            "popcnt",
            "tsc_deadline_timer",
            "aes",
            "xsave",
        ],
    ),
    (1, 0, 2, 28, &["avx", "f16c", "rdrand", "hypervisor"]),
    (1, 0, 3, 23, &["mmx", "fxsr", "sse", "sse2"]),
    (7, 0, 1, 0, &["fsgsbase"]),
    (7, 0, 1, 3, &["bmi1", "hle", "avx2"]),
    (7, 0, 1, 8, &["bmi2", "erms", "invpcid", "rtm"]),
    (
        7,
        0,
        1,
        16,
        &["avx512f", "avx512dq", "rdseed", "adx", "smap", "avx512ifma"],
    ),
    (7, 0, 1, 23, &["clflushopt", "clwb"]),
    (7, 0, 1, 28, &["avx512cd", "sha_ni", "avx512bw", "avx512vl"]),
    (7, 0, 2, 8, &["gfni", "vaes", "vpclmulqdq", "avx512_vnni"]),
    (
        7,
        0,
        3,
        22,
        &["amx_bf16", "avx512_fp16", "amx_tile", "amx_int8"],
    ),
    (0x8000_0001, 0, 2, 5, &["abm", "sse4a"]),
    (0x8000_0001, 0, 3, 26, &["pdpe1gb", "rdtscp", "", "lm"]),
];

/// The vendor and the features of a CPU. `masks` says which bits of a leaf are features at all.
pub fn describe(
    entries: &[kvm_cpuid_entry2],
    masks: impl Fn(u32, u32) -> [u32; 4],
) -> (String, BTreeSet<String>) {
    let mut features = BTreeSet::new();
    let mut vendor = String::new();
    for entry in entries {
        let registers = [entry.eax, entry.ebx, entry.ecx, entry.edx];
        if entry.function == 0 {
            let text = [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes);
            vendor = String::from_utf8_lossy(text.as_flattened()).into_owned();
        }
        let bits = masks(entry.function, entry.index);
        for (register, (value, mask)) in registers.into_iter().zip(bits).enumerate() {
            let set = (0..32).filter(|bit| (value & mask) >> bit & 1 == 1);
            features.extend(set.map(|bit| name(entry.function, entry.index, register, bit)));
        }
    }
    (vendor, features)
}

/// The name of one bit.
pub fn name(leaf: u32, subleaf: u32, register: usize, bit: u32) -> String {
    let known = NAMES
        .iter()
        .find_map(|(in_leaf, in_subleaf, in_register, first, names)| {
            let is_there = (*in_leaf, *in_subleaf, *in_register) == (leaf, subleaf, register);
            let at = bit.checked_sub(*first).filter(|_| is_there)?;
            names.get(at as usize).filter(|name| !name.is_empty())
        });
    let registers = ["eax", "ebx", "ecx", "edx"];
    known.map_or_else(
        || format!("cpuid-{leaf:x}.{subleaf:x}-{}-{bit}", registers[register]),
        |name| (*name).to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_has_a_name_of_its_own() {
        let mut seen = BTreeSet::new();
        let mut count = 0;
        for (leaf, subleaf) in [(1, 0), (7, 0), (7, 1), (0xd, 0), (0x8000_0001, 0)] {
            for (register, bit) in
                (0..4).flat_map(|register| (0..32).map(move |bit| (register, bit)))
            {
                seen.insert(name(leaf, subleaf, register, bit));
                count += 1;
            }
        }
        assert_eq!(seen.len(), count);
        assert_eq!(name(7, 0, 1, 5), "avx2");
        assert_eq!(name(0x8000_0001, 0, 3, 29), "lm");
        assert_eq!(name(7, 1, 0, 4), "cpuid-7.1-eax-4");
    }
}
