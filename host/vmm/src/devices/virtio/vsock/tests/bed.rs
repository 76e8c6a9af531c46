//! A guest with a vsock device, played by a test, and programs of the host around it.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use nix::poll::{PollFd, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::super::*;
use crate::devices::virtio::driver::{Driver, Started, memory, readable, start, writable};
use crate::vsock::Asked;

pub(super) const CID: u64 = 7;
pub(super) const MEMORY_BYTES: u64 = 2 << 20;
/// Where packets from the guest are made, and where those for it go.
pub(super) const OUT: u64 = 0x2_0000;
pub(super) const IN: u64 = 0x8_0000;
pub(super) const IN_BYTES: u32 = 4096 + 44;
pub(super) const IN_COUNT: u64 = 32;
pub(super) const GUEST_BYTES: u32 = 50_000;

/// A guest, and the host around it.
pub(super) struct Bed {
    pub(super) device: Started<Vsock>,
    pub(super) drivers: Vec<Driver>,
    pub(super) directory: tempfile::TempDir,
    pub(super) control: OwnedFd,
    /// Which buffer for packets each head is.
    pub(super) posted: Vec<(u16, u64)>,
}

impl Bed {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("vsock")).unwrap();
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, control) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let device = Vsock::new(CID as u32, listener.into(), ours).unwrap();
        let (device, drivers) = start(device, &memory(MEMORY_BYTES), u64::MAX);
        let mut bed = Self {
            device,
            drivers,
            directory,
            control,
            posted: Vec::new(),
        };
        for n in 0..IN_COUNT {
            bed.post(IN + n * u64::from(IN_BYTES));
        }
        bed
    }

    pub(super) fn post(&mut self, at: u64) {
        let head = self.drivers[RECEIVE]
            .add(&[writable(at, IN_BYTES)])
            .unwrap();
        self.posted.push((head, at));
    }

    /// The guest sends.
    pub(super) fn send(&mut self, header: Header, data: &[u8]) {
        self.try_send(header, data).unwrap();
    }

    pub(super) fn try_send(&mut self, header: Header, data: &[u8]) -> Result<(), Broken> {
        let driver = &mut self.drivers[TRANSMIT];
        driver.write(OUT, &header.encode());
        driver.write(OUT + 44, data);
        driver.add(&[readable(OUT, 40), readable(OUT + 40, 4 + data.len() as u32)]);
        self.device.serve(TRANSMIT)?;
        self.drivers[TRANSMIT].take().unwrap();
        Ok(())
    }

    /// What the guest has received, its buffers given again.
    pub(super) fn received(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut all = Vec::new();
        while let Some((head, written)) = self.drivers[RECEIVE].take() {
            let at = self
                .posted
                .iter()
                .position(|(other, _)| *other == head)
                .unwrap();
            let (_, at) = self.posted.swap_remove(at);
            let bytes = self.drivers[RECEIVE].read(at, written as usize);
            let header = Header::decode(bytes.first_chunk().unwrap());
            assert_eq!((header.source_cid, header.destination_cid), (HOST_CID, CID));
            assert_eq!(header.bytes, written - 44);
            all.push((header, bytes[44..].to_vec()));
            self.post(at);
        }
        all
    }

    /// Looks until the guest receives something.
    pub(super) fn wait(&mut self) -> Vec<(Header, Vec<u8>)> {
        for _ in 0..200 {
            let received = self.received();
            if !received.is_empty() {
                return received;
            }
            self.look(50);
        }
        panic!("nothing for the guest");
    }

    /// The device hears of what happens outside within some time.
    pub(super) fn look(&mut self, ms: u16) {
        let (fd, events) = self.device.backend.watch().unwrap();
        poll(&mut [PollFd::new(fd, events)], PollTimeout::from(ms)).unwrap();
        self.device.look().unwrap();
        self.device.serve(RECEIVE).unwrap();
    }

    pub(super) fn host(&self) -> UnixStream {
        let stream = UnixStream::connect(self.directory.path().join("vsock")).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    pub(super) fn header(&self, ports: Ports, operation: Operation) -> Header {
        Header {
            source_cid: CID,
            destination_cid: HOST_CID,
            source_port: ports.guest,
            destination_port: ports.host,
            kind: STREAM,
            operation: operation as u16,
            allocated: GUEST_BYTES,
            ..Header::default()
        }
    }

    /// A connection that the host began.
    pub(super) fn began_by_host(&mut self, guest: u32) -> (UnixStream, Ports) {
        let mut host = self.host();
        writeln!(host, "CONNECT {guest}").unwrap();
        let (request, _) = self.wait()[0];
        assert_eq!(request.operation(), Some(Operation::Request));
        assert_eq!(
            (request.destination_port, request.allocated),
            (guest, BUFFER_BYTES)
        );
        let ports = Ports {
            host: request.source_port,
            guest,
        };
        self.send(self.header(ports, Operation::Response), &[]);
        let mut line = vec![0; format!("OK {}\n", ports.host).len()];
        host.read_exact(&mut line).unwrap();
        assert_eq!(line, format!("OK {}\n", ports.host).as_bytes());
        (host, ports)
    }

    /// A connection that the guest began.
    pub(super) fn began_by_guest(&mut self, ports: Ports) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.began_by_guest_over(ports, &theirs);
        ours.set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        ours
    }

    /// The same over a socket of the test's.
    pub(super) fn began_by_guest_over(&mut self, ports: Ports, theirs: &UnixStream) {
        self.send(self.header(ports, Operation::Request), &[]);
        let asked = Asked::receive(&self.control).unwrap().unwrap();
        assert_eq!(asked.port, ports.host);
        asked.answer(&self.control, Some(theirs)).unwrap();
        let (response, _) = self.wait()[0];
        assert_eq!(response.operation(), Some(Operation::Response));
        assert_eq!(
            (response.source_port, response.destination_port),
            (ports.host, ports.guest)
        );
    }
}

pub(super) const PORTS: Ports = Ports {
    host: 1024,
    guest: 5000,
};
