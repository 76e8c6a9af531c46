//! A test bench for transfers: a guest's memory that can be scribbled on, both sides' configurations, sockets.
#![allow(dead_code, clippy::unwrap_used)]

pub mod bench;

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use dwcp_memory::{
    DirtyBitmap, GuestMemory, MemorySize, MemoryView, PAGE_BYTES, PageIndex, create_memory,
};
use dwcp_migrate::protocol::{Bytes, Event, MoverConfig, Side};
use dwcp_migrate::{EventSink, Said};
use dwcp_wire::tls::Fingerprint;

/// One generous deadline for everything that is waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A small generator whose seed is printed by the test that uses it.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// A fresh seed, or the one in `DWCP_SEED`; printed, so that a failure can be repeated.
pub fn seed() -> u64 {
    let given = std::env::var("DWCP_SEED").ok();
    let seed = given.and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::now();
        let since = now.duration_since(std::time::UNIX_EPOCH).unwrap();
        since.as_nanos() as u64 | 1
    });
    println!("seed: DWCP_SEED={seed}");
    seed
}

/// A guest's memory with its bitmap, as the VMM has them.
pub struct Guest {
    pub memory: GuestMemory,
    pub bitmap: DirtyBitmap,
}

impl Guest {
    pub fn new(pages: u64) -> Self {
        let size = MemorySize::new(pages * PAGE_BYTES as u64).unwrap();
        Self {
            memory: GuestMemory::map(create_memory(size).unwrap(), size).unwrap(),
            bitmap: DirtyBitmap::map(DirtyBitmap::create(size).unwrap(), size).unwrap(),
        }
    }

    pub fn pages(&self) -> u64 {
        self.memory.size().pages()
    }

    pub fn memory_fd(&self) -> OwnedFd {
        self.memory.fd().unwrap().try_clone_to_owned().unwrap()
    }

    pub fn bitmap_fd(&self) -> OwnedFd {
        self.bitmap.fd().try_clone_to_owned().unwrap()
    }

    pub fn view(&self) -> MemoryView {
        MemoryView::new(self.memory_fd(), self.memory.size()).unwrap()
    }

    pub fn shared_bitmap(&self) -> DirtyBitmap {
        DirtyBitmap::map(self.bitmap_fd(), self.memory.size()).unwrap()
    }

    pub fn read(&self, page: u64) -> Vec<u8> {
        let mut content = vec![0; PAGE_BYTES];
        self.memory
            .read_pages(PageIndex(page), &mut content)
            .unwrap();
        content
    }

    /// Gives a page new content and marks it, in the order in which KVM does: mark, then write.
    pub fn write(&self, page: u64, random: &mut Random) {
        self.bitmap.set(PageIndex(page));
        self.fill(page, random);
        self.bitmap.set(PageIndex(page));
    }

    fn fill(&self, page: u64, random: &mut Random) {
        let content = content(random);
        self.memory.write_pages(PageIndex(page), &content).unwrap();
    }

    /// Fills all of memory, every page of it dirty.
    pub fn fill_all(&self, random: &mut Random) {
        for page in 0..self.pages() {
            self.fill(page, random);
        }
        self.bitmap.set_all();
    }

    pub fn assert_same(&self, other: &Guest) {
        for page in 0..self.pages() {
            assert!(self.read(page) == other.read(page), "page {page} differs");
        }
    }
}

/// A page as `reference` guests have them: 30 % zero, 50 % text-like, 20 % random.
pub fn content(random: &mut Random) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "the ",
        "hypervisor ",
        "page ",
        "memory ",
        "migrate ",
        "delta ",
        "region ",
        "policy ",
        "stream ",
        "guest ",
        "host ",
        "virtual ",
        "machine ",
        "network ",
        "state ",
        "plugin ",
    ];
    let mut page = Vec::with_capacity(PAGE_BYTES + 16);
    match random.below(10) {
        0..3 => {}
        3..8 => {
            while page.len() < PAGE_BYTES {
                page.extend_from_slice(WORDS[random.below(16) as usize].as_bytes());
                if random.below(8) == 0 {
                    page.extend_from_slice(format!("{:06}", random.below(1_000_000)).as_bytes());
                }
            }
        }
        _ => {
            while page.len() < PAGE_BYTES {
                page.extend_from_slice(&random.next().to_le_bytes());
            }
        }
    }
    page.resize(PAGE_BYTES, 0);
    page
}

/// Certificates for both sides of a transfer, and what each is configured with.
pub fn configurations(pages: u64, streams: u8) -> (MoverConfig, MoverConfig) {
    let (source, destination) = (certificate(), certificate());
    let config = |side, own: &(Vec<u8>, Vec<u8>), peer: &(Vec<u8>, Vec<u8>)| MoverConfig {
        transfer: 0x1122_3344_5566_7788,
        side,
        memory_bytes: pages * PAGE_BYTES as u64,
        hosts: Vec::new(),
        certificate: Bytes(own.0.clone()),
        key: Bytes(own.1.clone()),
        peer_sha256: Fingerprint::of(&peer.0),
        streams,
        idle_timeout_ms: 30_000,
    };
    (
        config(Side::Source, &source, &destination),
        config(Side::Destination, &destination, &source),
    )
}

/// A certificate and its key, as DER.
pub fn certificate() -> (Vec<u8>, Vec<u8>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(vec!["transfer.dwcp".into()]).unwrap();
    let certificate = parameters.self_signed(&key).unwrap();
    (certificate.der().to_vec(), key.serialize_der())
}

/// Two ends of a TCP connection over loopback.
pub fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    (near, far)
}

/// The next event that is not progress.
pub fn next(events: &Receiver<Said>) -> Said {
    loop {
        let said = events.recv_timeout(PATIENCE).expect("an event in time");
        if !matches!(said.0, Event::Progress(_)) {
            return said;
        }
    }
}

/// A sink and its events.
pub fn sink() -> (EventSink, Receiver<Said>) {
    EventSink::new()
}

/// The reason of a failure.
pub fn failure(said: Said) -> String {
    match said.0 {
        Event::Failed { reason } => reason,
        other => panic!("{other:?} instead of a failure"),
    }
}
