//! All targets. A new one is a function in a file of this folder and a row here; then `cargo run -p dwcp-fuzz --example
//! seeds` or a real input gives its corpus a start.

mod audit;
mod channel;
mod devices;
mod image;
mod kernel;
mod ladder;
mod marketplace;
mod messages;
mod names;
mod planted;
mod receiver;
mod session;
mod snapshot;
mod state;
mod stream;
mod wire;
mod words;

use std::path::{Path, PathBuf};

use crate::Target;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Every target, by name: longest input, most memory, function.
#[rustfmt::skip]
pub static TARGETS: &[Target] = &[
    // From peers.
    target("preamble", 64, 16 * KIB, wire::preamble),
    target("frames", 16 * KIB, MIB, wire::frames),
    target("ladder", 16 * KIB, 4 * MIB, ladder::decode),
    target("receiver", 16 * KIB, 4 * MIB, receiver::receiver),
    target("session", 16 * KIB, 4 * MIB, session::session),
    target("stream", 8 * KIB, 4 * MIB, stream::stream),
    // From guests.
    target("guest-pages", 16 * KIB, 8 * MIB, ladder::encode),
    target("dhcp", 2 * KIB, MIB, devices::dhcp),
    target("virtio-balloon", 4 * KIB, 4 * MIB, devices::balloon),
    target("virtio-block", 4 * KIB, 4 * MIB, devices::block),
    target("virtio-console", 4 * KIB, 4 * MIB, devices::console),
    target("virtio-net", 4 * KIB, 4 * MIB, devices::net),
    target("virtio-rng", 4 * KIB, 4 * MIB, devices::rng),
    target("virtio-vsock", 4 * KIB, 4 * MIB, devices::vsock),
    // From whoever made an image.
    target("kernel", 32 * KIB, MIB, kernel::kernel),
    target("image", 128 * KIB, 64 * MIB, image::image),
    // From a host that saved a state.
    target("device-state", 32 * KIB, MIB, state::device_state),
    target("snapshot", 32 * KIB, 16 * MIB, snapshot::snapshot),
    // From confined processes, and from daemons to them.
    target("channel", 16 * KIB, 9 * MIB, channel::channel),
    target("last-words", 8 * KIB, 64 * KIB, words::last_words),
    target("vmm-config", 8 * KIB, MIB, messages::vmm_config),
    target("vmm-messages", 8 * KIB, MIB, messages::vmm),
    target("mover-messages", 8 * KIB, MIB, messages::mover),
    target("launcher-messages", 8 * KIB, MIB, messages::launcher),
    // From clients.
    target("records", 8 * KIB, MIB, messages::records),
    target("names", KIB, 64 * KIB, names::names),
    // From a disk, and from a server that is not trusted.
    target("audit-log", 16 * KIB, 8 * MIB, audit::log),
    target("audit-proofs", 8 * KIB, MIB, audit::proofs),
    // From a registry.
    target("marketplace", 16 * KIB, 8 * MIB, marketplace::layout),
    // From nobody: shows that the engine finds what is there.
    target("planted", 64, KIB, planted::planted),
];

/// Where targets put files: in memory where there is such a place.
fn scratch() -> PathBuf {
    let shared_memory = Path::new("/dev/shm");
    if shared_memory.is_dir() {
        shared_memory.to_owned()
    } else {
        std::env::temp_dir()
    }
}

/// A folder that is gone when it is dropped.
fn folder() -> tempfile::TempDir {
    match tempfile::tempdir_in(scratch()) {
        Ok(folder) => folder,
        Err(error) => panic!("{error}"),
    }
}

const fn target(
    name: &'static str,
    input_bytes_max: usize,
    heap_bytes_max: usize,
    read: fn(&[u8]),
) -> Target {
    Target {
        name,
        input_bytes_max,
        heap_bytes_max,
        read,
    }
}
