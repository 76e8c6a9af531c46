//! Names for the CPU features that a guest may use, so that a snapshot can say what it needs, and a host what it lacks.
//!
//! What programs look for has the name that Linux shows in `/proc/cpuinfo`; every other bit is named for its place
//! (`cpuid-7.0-ebx-9`). A name never changes its bit: names lie in snapshots. A bit that gets a name later keeps its place
//! as a second one, by which older snapshots know it.

use std::collections::BTreeSet;

use kvm_bindings::kvm_cpuid_entry2;

/// Leaf, subleaf, register (0 eax to 3 edx), first bit and the names from there on; an empty name is none.
const NAMES: &[(u32, u32, usize, u32, &[&str])] = &[
    (1, 0, 2, 0, &["pni", "pclmulqdq"]),
    (1, 0, 2, 9, &["ssse3"]),
    (1, 0, 2, 12, &["fma", "cx16"]),
    (1, 0, 2, 17, &["pcid"]),
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
    (
        1,
        0,
        3,
        0,
        &[
            "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic",
        ],
    ),
    (
        1,
        0,
        3,
        11,
        &[
            "sep", "mtrr", "pge", "mca", "cmov", "pat", "pse36", "", "clflush",
        ],
    ),
    (1, 0, 3, 23, &["mmx", "fxsr", "sse", "sse2"]),
    (7, 0, 1, 0, &["fsgsbase"]),
    (7, 0, 1, 3, &["bmi1", "hle", "avx2", "", "smep"]),
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
    (0x4000_0001, 0, 0, 0, &["kvmclock_old", "kvm_nop_io_delay"]),
    (0x4000_0001, 0, 0, 3, &["kvmclock"]),
    (0x4000_0001, 0, 0, 24, &["kvmclock_stable"]),
    (0x8000_0001, 0, 2, 0, &["lahf_lm"]),
    (0x8000_0001, 0, 2, 5, &["abm", "sse4a"]),
    (0x8000_0001, 0, 3, 11, &["syscall"]),
    (0x8000_0001, 0, 3, 20, &["nx"]),
    (0x8000_0001, 0, 3, 26, &["pdpe1gb", "rdtscp", "", "lm"]),
];

/// A feature: leaf, subleaf, register (0 eax to 3 edx), bit.
type Place = (u32, u32, usize, u32);

/// The vendor of a CPU, and where its features are. `masks` says which bits of a leaf are features at all.
pub fn describe(
    entries: &[kvm_cpuid_entry2],
    masks: impl Fn(u32, u32) -> [u32; 4],
) -> (String, BTreeSet<Place>) {
    let mut features = BTreeSet::new();
    let mut vendor = String::new();
    for entry in entries {
        let (leaf, subleaf) = (entry.function, entry.index);
        let registers = [entry.eax, entry.ebx, entry.ecx, entry.edx];
        if leaf == 0 {
            let text = [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes);
            vendor = String::from_utf8_lossy(text.as_flattened()).into_owned();
        }
        let bits = masks(leaf, subleaf);
        for (register, (value, mask)) in registers.into_iter().zip(bits).enumerate() {
            let set = (0..32).filter(|bit| (value & mask) >> bit & 1 == 1);
            features.extend(set.map(|bit| (leaf, subleaf, register, bit)));
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
    known.map_or_else(
        || place(leaf, subleaf, register, bit),
        |name| (*name).to_owned(),
    )
}

/// The name that every bit has.
pub fn place(leaf: u32, subleaf: u32, register: usize, bit: u32) -> String {
    let registers = ["eax", "ebx", "ecx", "edx"];
    format!("cpuid-{leaf:x}.{subleaf:x}-{}-{bit}", registers[register])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_has_a_name_of_its_own() {
        let mut seen = BTreeSet::new();
        let mut count = 0;
        for (leaf, subleaf) in [
            (1, 0),
            (7, 0),
            (7, 1),
            (0xd, 0),
            (0x4000_0001, 0),
            (0x8000_0001, 0),
        ] {
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
