//! `guest: cpuid 80000001:0: eax 0x… ebx 0x… ecx 0x… edx 0x…`

use super::Said;

/// What the guest was told of its CPU in one leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpuid {
    /// The leaf.
    pub leaf: u32,
    /// The subleaf.
    pub subleaf: u32,
    /// eax, ebx, ecx, edx.
    pub registers: [u32; 4],
}

impl Cpuid {
    /// Reads a line.
    pub fn parse(line: &str) -> Option<Self> {
        let said = Said::parse(line)?;
        let (leaf, subleaf) = said.subject.strip_prefix("cpuid ")?.split_once(':')?;
        let hexadecimal = |digits| u32::from_str_radix(digits, 16).ok();
        let register = |name| u32::try_from(said.value::<u64>(name)?).ok();
        Some(Self {
            leaf: hexadecimal(leaf)?,
            subleaf: hexadecimal(subleaf)?,
            registers: [
                register("eax")?,
                register("ebx")?,
                register("ecx")?,
                register("edx")?,
            ],
        })
    }
}
