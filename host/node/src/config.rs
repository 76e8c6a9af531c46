//! What a node is configured with. The daemon reads it from its file and flags; nothing here is optional by accident.

use std::net::SocketAddr;
use std::path::PathBuf;

use dwcp_control::names::Name;
use dwcp_control::records::CpuBaseline;

/// What a node is configured with.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// This host's name.
    pub name: Name,
    /// Its region.
    pub region: Name,
    /// Where everything durable lies.
    pub state_dir: PathBuf,
    /// The launcher's socket.
    pub launch_socket: PathBuf,
    /// Where the API listens; its certificate names this address.
    pub api_listen: SocketAddr,
    /// Where other hosts connect (the DWCP port).
    pub peer_listen: SocketAddr,
    /// The marketplace: an OCI image layout directory.
    pub marketplace: Option<PathBuf>,
    /// Publisher keys whose signatures are trusted.
    pub trusted_keys: Vec<TrustedKey>,
    /// Virtual CPUs promised per logical processor at most.
    pub vcpus_per_cpu: u32,
    /// Beyond what no machine is told of its CPU; `host` for no limit.
    pub cpu_baseline: CpuBaseline,
    /// Memory for machines, bytes; what the machine has less 512 MiB if absent.
    pub memory_bytes: Option<u64>,
    /// Processes that wait for each template to become forks of it.
    pub fork_shells: u32,
}

/// A publisher's key.
#[derive(Clone, Debug)]
pub struct TrustedKey {
    /// What it is called in lists.
    pub name: String,
    /// The public key, PEM.
    pub pem: String,
}

impl NodeConfig {
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        self.state_dir.join(name)
    }
}
