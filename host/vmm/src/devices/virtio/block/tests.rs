//! What a disk tells its guest and its host, over a disk that does as a test says.

#![allow(clippy::unwrap_used)]

use std::sync::Mutex;

use dwcp_memory::GuestRange;

use super::*;
use crate::devices::virtio::driver::{
    Driver, QUEUE_BYTES, Started, memory, readable, start, writable,
};

const MEMORY_BYTES: u64 = 1 << 20;
const HEADER: u64 = QUEUE_BYTES;
const STATUS: u64 = HEADER + 16;
const DATA: u64 = HEADER + 4096;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;

/// A disk of zeros.
#[derive(Debug, Default)]
struct Played {
    /// What flushes answer from now on.
    flush_fails: Arc<Mutex<bool>>,
}

impl Disk for Played {
    fn bytes(&self) -> u64 {
        1 << 40
    }

    fn resize(&mut self, _: u64) -> Result<(), DiskError> {
        Err(DiskError::Unsupported)
    }

    fn read(&mut self, _: &GuestMemory, _: u64, _: &[GuestRange]) -> Result<(), DiskError> {
        Ok(())
    }

    fn write(&mut self, _: &GuestMemory, _: u64, _: &[GuestRange]) -> Result<(), DiskError> {
        Ok(())
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        match *self.flush_fails.lock().unwrap() {
            true => Err(DiskError::Failed(io::ErrorKind::StorageFull.into())),
            false => Ok(()),
        }
    }

    fn discard(&mut self, _: u64, _: u64) -> Result<(), DiskError> {
        Ok(())
    }

    fn zero(&mut self, _: u64, _: u64, _: bool) -> Result<(), DiskError> {
        Ok(())
    }

    fn rules(&self) -> Rules {
        Rules::new()
    }
}

fn block(disk: Played, is_read_only: bool) -> Block {
    Block::new(
        Box::new(disk),
        "test",
        is_read_only,
        1,
        DiskLimits::default(),
    )
}

fn started(disk: Played) -> (Started<Block>, Driver) {
    let (device, mut drivers) = start(block(disk, false), &memory(MEMORY_BYTES), u64::MAX);
    (device, drivers.remove(0))
}

/// Asks something, with as much data for the device as is said, and answers the status.
fn ask(device: &mut Started<Block>, driver: &mut Driver, kind: u32, pieces: &[(u64, u32)]) -> u8 {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    driver.write(HEADER, &header);
    driver.write(STATUS, &[0xff]);
    let mut all = vec![readable(HEADER, 16)];
    all.extend(pieces.iter().map(|(start, bytes)| readable(*start, *bytes)));
    all.push(writable(STATUS, 1));
    driver.add(&all).unwrap();
    device.serve(0).unwrap();
    assert_eq!(driver.take().map(|(_, written)| written), Some(1));
    driver.read(STATUS, 1)[0]
}

#[test]
fn what_the_host_finds_lost_the_guest_is_told_once() {
    let disk = Played::default();
    let fails = Arc::clone(&disk.flush_fails);
    let (mut device, mut driver) = started(disk);
    assert_eq!(ask(&mut device, &mut driver, FLUSH, &[]), 0);
    *fails.lock().unwrap() = true;
    let failed = device.backend.sync().unwrap_err();
    assert_eq!(failed.kind(), io::ErrorKind::StorageFull);
    *fails.lock().unwrap() = false;
    assert_eq!(ask(&mut device, &mut driver, FLUSH, &[]), 1);
    assert_eq!(ask(&mut device, &mut driver, FLUSH, &[]), 0);
}

#[test]
fn a_disk_that_is_not_written_needs_no_flush() {
    let disk = Played::default();
    *disk.flush_fails.lock().unwrap() = true;
    block(disk, true).sync().unwrap();
}

#[test]
fn a_request_that_is_too_long_fails_and_the_device_goes_on() {
    let memory = memory(65 << 20);
    let (mut device, mut drivers) = start(block(Played::default(), false), &memory, u64::MAX);
    let driver = &mut drivers[0];
    for (bytes, status) in [(64 << 20, 1), ((64 << 20) - 512, 0), (1024, 0)] {
        assert_eq!(ask(&mut device, driver, WRITE, &[(DATA, bytes)]), status);
    }
    let written = &device.backend.counters.read_bytes;
    assert_eq!(written.load(Ordering::Relaxed), (64 << 20) + 512);
    // A driver that keeps to what it is told never meets it.
    let mut told = [0; 8];
    device.backend.registers.read(8, &mut told);
    let (bytes, pieces) = (
        u64::from_le_bytes(told) as u32,
        u64::from_le_bytes(told) >> 32,
    );
    assert!(bytes >= 4096 && u64::from(bytes) * pieces + 17 <= REQUEST_BYTES_MAX);
}
