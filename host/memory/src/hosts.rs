//! Where guest RAM lies in the process that runs the guest: what another process needs to read it there, or to fill it.
//!
//! Only numbers: nothing here reads or writes at an address.

use crate::{Layout, MemoryError, MemorySize, PAGE_BYTES, PageIndex, Region};

/// The first byte of each region of a guest, as an address in the process that has it mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMap {
    size: MemorySize,
    regions: Vec<(Region, u64)>,
}

impl HostMap {
    /// `hosts`: an address for each region of the guest's layout, in order, each a multiple of the page size.
    pub fn new(size: MemorySize, hosts: &[u64]) -> Result<Self, MemoryError> {
        let regions: Vec<_> = Layout::new(size).regions().collect();
        let is_sound = |(host, region): (&u64, &Region)| {
            host.is_multiple_of(PAGE_BYTES as u64)
                && host
                    .checked_add(region.bytes)
                    .is_some_and(|end| i64::try_from(end).is_ok())
        };
        if regions.len() != hosts.len() || !hosts.iter().zip(&regions).all(is_sound) {
            return Err(MemoryError::BadHosts);
        }
        let regions = regions.into_iter().zip(hosts.iter().copied()).collect();
        Ok(Self { size, regions })
    }

    /// The guest's size.
    pub fn size(&self) -> MemorySize {
        self.size
    }

    /// The addresses, as [`HostMap::new`] takes them.
    pub fn hosts(&self) -> Vec<u64> {
        self.regions.iter().map(|(_, host)| *host).collect()
    }

    /// The regions: first page, address, number of pages.
    pub(crate) fn regions(&self) -> impl Iterator<Item = (PageIndex, u64, u64)> {
        self.regions.iter().map(|(region, host)| {
            (
                region.offset.page(),
                *host,
                region.bytes / PAGE_BYTES as u64,
            )
        })
    }

    /// `count` pages from `first` on as pieces that are contiguous there: address and length in bytes. What lies
    /// outside memory is left out.
    pub fn spans(&self, first: PageIndex, count: u64) -> impl Iterator<Item = (u64, u64)> {
        let end = first.0.saturating_add(count);
        self.regions().filter_map(move |(start, host, pages)| {
            let from = first.0.max(start.0);
            let to = end.min(start.0 + pages);
            (from < to).then(|| {
                let page = PAGE_BYTES as u64;
                (host + (from - start.0) * page, (to - from) * page)
            })
        })
    }

    /// The page at an address of that process, if it is guest RAM.
    pub fn page_at(&self, address: u64) -> Option<PageIndex> {
        self.regions().find_map(|(first, host, pages)| {
            let page = address.checked_sub(host)? / PAGE_BYTES as u64;
            (page < pages).then(|| PageIndex(first.0 + page))
        })
    }
}
