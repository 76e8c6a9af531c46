//! Named baselines: what a guest is told of its CPU, so that it can go to every host that has at least that much.
//!
//! The names are the x86-64 psABI's levels. A baseline is exact: a guest is told of every feature in its table and of
//! nothing else that one host could have and another lack, so what it is told depends on the baseline alone. A table
//! never changes, because guests that were told of it are in snapshots.
//!
//! Beside the psABI's features a table has what every CPU that virtualises and is of that level has and kernels need or
//! are much safer with (NX; from v3 on SMEP and FSGSBASE; in v4 SMAP, INVPCID, PCID and fast strings), and what KVM makes itself
//! on every host: x2APIC, the deadline timer, its clock. Left out although useful: AES and random numbers (no level has
//! them), controls of speculation (their registers come and go with CPUs and microcode), steal time and other
//! paravirtual features (they come with KVM's version), the invariant counter (a host of another speed may not scale).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::kvm::feature_name;

/// What a guest is told of its CPU, at most and at least.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Baseline {
    /// Whatever the host offers.
    #[default]
    #[serde(rename = "host")]
    Host,
    /// What every x86-64 CPU has.
    #[serde(rename = "x86-64")]
    V1,
    /// SSE 4.2; since about 2009.
    #[serde(rename = "x86-64-v2")]
    V2,
    /// AVX2; since about 2013.
    #[serde(rename = "x86-64-v3")]
    V3,
    /// AVX-512.
    #[serde(rename = "x86-64-v4")]
    V4,
}

/// Bits of one register of one leaf: leaf, subleaf, register (0 eax to 3 edx), bits.
type Bits = (u32, u32, usize, &'static [u32]);

const V1: &[Bits] = &[
    // x2apic, tsc_deadline_timer, hypervisor
    (1, 0, 2, &[21, 24, 31]),
    // All that 64-bit kernels take for granted, but for virtual 8086 mode, which some CPUs hide.
    (
        1,
        0,
        3,
        &[
            0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26,
        ],
    ),
    // syscall, nx, lm
    (0x8000_0001, 0, 3, &[11, 20, 29]),
    // KVM's clock, in both forms and stable; no delay after port I/O
    (0x4000_0001, 0, 0, &[0, 1, 3, 24]),
];
const V2: &[Bits] = &[
    // pni, ssse3, cx16, sse4_1, sse4_2, popcnt
    (1, 0, 2, &[0, 9, 13, 19, 20, 23]),
    // lahf_lm
    (0x8000_0001, 0, 2, &[0]),
];
const V3: &[Bits] = &[
    // fma, movbe, xsave, avx, f16c
    (1, 0, 2, &[12, 22, 26, 28, 29]),
    // fsgsbase, bmi1, avx2, smep, bmi2
    (7, 0, 1, &[0, 3, 5, 7, 8]),
    // abm
    (0x8000_0001, 0, 2, &[5]),
];
const V4: &[Bits] = &[
    // pcid
    (1, 0, 2, &[17]),
    // erms, invpcid, avx512f, avx512dq, smap, avx512cd, avx512bw, avx512vl
    (7, 0, 1, &[9, 10, 16, 17, 20, 28, 30, 31]),
];

impl Baseline {
    /// All of them, the widest first.
    pub const ALL: [Self; 5] = [Self::Host, Self::V4, Self::V3, Self::V2, Self::V1];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::V1 => "x86-64",
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
            Self::V4 => "x86-64-v4",
        }
    }

    /// Names of the features in its table; none for the host's own.
    pub fn features(self) -> BTreeSet<String> {
        let tables = self.tables().iter().flat_map(|table| table.iter());
        tables
            .flat_map(|(leaf, subleaf, register, bits)| {
                let name = |bit: &u32| feature_name(*leaf, *subleaf, *register, *bit);
                bits.iter().map(name)
            })
            .collect()
    }

    /// The bits of a register that are in its table.
    pub(crate) fn bits(self, leaf: u32, subleaf: u32, register: usize) -> u32 {
        let tables = self.tables().iter().flat_map(|table| table.iter());
        tables
            .filter(|(l, s, r, _)| (*l, *s, *r) == (leaf, subleaf, register))
            .flat_map(|(.., bits)| bits.iter())
            .fold(0, |all, bit| all | 1 << bit)
    }

    /// Extended state that its guests may switch on, as XCR0 has it; 0 if there is no XSAVE.
    pub(crate) fn extended_state(self) -> u32 {
        match self {
            Self::Host | Self::V1 | Self::V2 => 0,
            // x87, SSE, AVX
            Self::V3 => 0b111,
            // and masks, upper halves and upper registers of AVX-512
            Self::V4 => 0b1110_0111,
        }
    }

    fn tables(self) -> &'static [&'static [Bits]] {
        match self {
            Self::Host => &[],
            Self::V1 => &[V1],
            Self::V2 => &[V1, V2],
            Self::V3 => &[V1, V2, V3],
            Self::V4 => &[V1, V2, V3, V4],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The psABI's levels, by the names that Linux has for them.
    const LEVELS: [(Baseline, &[&str]); 4] = [
        (
            Baseline::V1,
            &[
                "cmov", "cx8", "fpu", "fxsr", "mmx", "syscall", "sse", "sse2", "lm",
            ],
        ),
        (
            Baseline::V2,
            &[
                "cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3",
            ],
        ),
        (
            Baseline::V3,
            &[
                "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave",
            ],
        ),
        (
            Baseline::V4,
            &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"],
        ),
    ];

    #[test]
    fn a_level_has_what_the_psabi_says_and_all_of_the_level_below() {
        let mut below = BTreeSet::new();
        for (baseline, own) in LEVELS {
            let features = baseline.features();
            for name in own {
                assert!(features.contains(*name), "{baseline:?} {name}");
                assert!(!below.contains(*name), "{baseline:?} {name}");
            }
            assert!(features.is_superset(&below));
            below = features;
        }
        // A bit without a name could not be told to an operator who lacks it.
        assert!(
            !below.iter().any(|name| name.starts_with("cpuid-")),
            "{below:?}"
        );
    }

    #[test]
    fn what_no_level_has_is_in_none() {
        let all = Baseline::V4.features();
        for name in ["aes", "rdrand", "rdseed", "hle", "rtm", "pdpe1gb", "rdtscp"] {
            assert!(!all.contains(name), "{name}");
        }
        assert!(Baseline::Host.features().is_empty());
    }

    #[test]
    fn names_are_those_that_people_write() {
        for baseline in Baseline::ALL {
            let text = serde_json::to_string(&baseline).unwrap_or_default();
            assert_eq!(text, format!("\"{}\"", baseline.name()));
        }
    }
}
