//! The destination of a transfer: what its frames do to memory, whatever their order and however often they come.
//!
//! A model applies each frame once, when it first comes; memory must look as the model says.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use dwcp_memory::{GuestMemory, MemorySize, PAGE_BYTES, PageIndex, create_memory};
use dwcp_migrate::EventSink;
use dwcp_migrate::fuzzing::Frames;
use dwcp_migrate::protocol::{Bytes, MoverConfig, Side};
use dwcp_wire::frame::{self, Frame, Kind};
use dwcp_wire::ladder::Decoder;
use dwcp_wire::tls::{self, Identity, ServerConfig, Use};

use super::wire::with_checksums;

const PAGES: u64 = 16;
const MEMORY_BYTES: usize = PAGES as usize * PAGE_BYTES;

/// Frames of one transfer, as one stream after another brings them.
pub(super) fn receiver(input: &[u8]) {
    let bytes = with_checksums(input);
    let mut rest = &bytes[..];
    let (events, _said) = EventSink::new();
    let mut frames = match Frames::new(&config(), memory(), tls(), events) {
        Ok(frames) => frames,
        Err(error) => panic!("{error}"),
    };
    let mut model = Model::new();
    while let Ok(Some((frame, taken))) = frame::decode(rest) {
        rest = &rest[taken..];
        let was_complete = frames.is_complete();
        let Ok(is_acknowledged) = frames.apply(&frame) else {
            break;
        };
        if is_acknowledged {
            let is_new = model.apply(&frame);
            assert!(!(is_new && was_complete), "a frame was taken after the end");
        }
    }
    let mut found = vec![0; MEMORY_BYTES];
    if let Err(error) = frames.read_pages(PageIndex(0), &mut found) {
        panic!("{error}");
    }
    assert!(found == model.memory, "memory is not what was sent");
}

struct Model {
    memory: Vec<u8>,
    seen: BTreeSet<u64>,
    decoder: Decoder,
}

impl Model {
    fn new() -> Self {
        let Ok(decoder) = Decoder::new(PAGES) else {
            panic!("there is memory for a decompressor");
        };
        Self {
            memory: vec![0; MEMORY_BYTES],
            seen: BTreeSet::new(),
            decoder,
        }
    }

    /// Applies a frame that was acknowledged, if it is new; answers whether it is.
    fn apply(&mut self, frame: &Frame<'_>) -> bool {
        let header = &frame.header;
        if !self.seen.insert(header.sequence) {
            return false;
        }
        if matches!(header.kind, Kind::Pages | Kind::ZeroRuns) {
            let batch = self
                .decoder
                .decode(header.kind, header.offset, frame.payload);
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => panic!("acknowledged, and it cannot be read: {error}"),
            };
            for (run, content) in batch.runs() {
                let range = run.first as usize * PAGE_BYTES..run.end() as usize * PAGE_BYTES;
                match content {
                    Some(content) => self.memory[range].copy_from_slice(content),
                    None => self.memory[range].fill(0),
                }
            }
        }
        true
    }
}

fn config() -> MoverConfig {
    MoverConfig {
        transfer: 7,
        side: Side::Destination,
        memory_bytes: MEMORY_BYTES as u64,
        hosts: Vec::new(),
        certificate: Bytes(Vec::new()),
        key: Bytes(Vec::new()),
        peer_sha256: identity().fingerprint(),
        streams: 1,
        idle_timeout_ms: 1000,
    }
}

fn memory() -> GuestMemory {
    let memory = MemorySize::new(MEMORY_BYTES as u64)
        .and_then(|size| GuestMemory::map(create_memory(size)?, size));
    match memory {
        Ok(memory) => memory,
        Err(error) => panic!("{error}"),
    }
}

/// A certificate of this process.
pub(super) fn identity() -> &'static Identity {
    static IDENTITY: OnceLock<Identity> = OnceLock::new();
    IDENTITY.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed(["fuzz".to_owned()]);
        match made {
            Ok(made) => Identity::new(made.cert.der().to_vec(), made.signing_key.serialize_der()),
            Err(error) => panic!("{error}"),
        }
    })
}

/// The configuration of a server that lets its own certificate in.
pub(super) fn tls() -> Arc<ServerConfig> {
    static TLS: OnceLock<Arc<ServerConfig>> = OnceLock::new();
    let made = TLS.get_or_init(|| {
        let identity = identity();
        match tls::server(identity, &[identity.fingerprint()], Use::Transfer) {
            Ok(config) => config,
            Err(error) => panic!("{error}"),
        }
    });
    Arc::clone(made)
}
