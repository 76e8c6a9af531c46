//! What the guest is told of its memory.

use dwcp_memory::Layout;

use super::place;

/// A piece of guest-physical space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEntry {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// RAM, or reserved.
    pub is_ram: bool,
}

/// Ascending and free of overlaps; two to four entries.
pub fn memory_map(layout: &Layout) -> Vec<MapEntry> {
    let ram = |start, end| MapEntry {
        start,
        bytes: end - start,
        is_ram: true,
    };
    let mut map = vec![
        ram(0, place::LOW_END.0),
        MapEntry {
            start: place::LOW_END.0,
            bytes: place::HIGH_START.0 - place::LOW_END.0,
            is_ram: false,
        },
    ];
    for region in layout.regions() {
        let start = region.start.0.max(place::HIGH_START.0);
        map.push(ram(start, region.start.0 + region.bytes));
    }
    map
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use dwcp_memory::MemorySize;

    #[test]
    fn all_ram_but_the_bios_area_is_told() {
        for mib in [16, 3071, 3072, 3073, 9000] {
            let map = memory_map(&Layout::new(MemorySize::mib(mib).unwrap()));
            let told: u64 = map.iter().filter(|e| e.is_ram).map(|e| e.bytes).sum();
            assert_eq!(told, (mib << 20) - (0x10_0000 - 0x9_fc00));
            assert!(
                map.windows(2)
                    .all(|w| w[0].start + w[0].bytes <= w[1].start)
            );
        }
    }
}
