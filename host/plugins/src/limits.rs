//! What a plugin may use, and how the sandbox is set up.
//!
//! Always: every limit has a value; there is no "unlimited".
//! Never: knowledge of a particular plugin or world.

use crate::record::Recorder;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, sync::Arc};

/// The most memory that any plugin can be granted, in bytes: the size of a slot of the instance pool.
pub const MAX_MEMORY_BYTES: usize = 2 << 30;

/// What one plugin may use. All limits are per plugin, the memory limit is per instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Linear memory of one instance, all its memories together, in bytes; at most [`MAX_MEMORY_BYTES`].
    pub memory_bytes: usize,
    /// Elements of all tables of one instance together.
    pub table_elements: usize,
    /// Processor time of one call, in milliseconds. Time during which the machine ran something else does not
    /// count, up to ten times this limit of wall time.
    pub call_ms: u64,
    /// Processor time for starting an instance and giving it its state (`load`, `configure`), in milliseconds.
    pub start_ms: u64,
    /// Calls that run at once. A stateful plugin (placement) runs one at a time whatever this says.
    pub concurrent_calls: u32,
    /// Calls that may wait for their turn; one more is refused at once.
    pub waiting_calls: u32,
    /// How long a call waits for its turn, in milliseconds.
    pub wait_ms: u64,
    /// The host's input to one call, in bytes.
    pub input_bytes: usize,
    /// The plugin's answer to one call, in bytes as the host keeps it.
    pub output_bytes: usize,
}

impl Default for Limits {
    /// 64 MiB, 1 s a call, 10 s to start, 4 calls at once, 64 waiting up to 5 s, 16 MiB in, 4 MiB out.
    fn default() -> Self {
        Limits {
            memory_bytes: 64 << 20,
            table_elements: 100_000,
            call_ms: 1_000,
            start_ms: 10_000,
            concurrent_calls: 4,
            waiting_calls: 64,
            wait_ms: 5_000,
            input_bytes: 16 << 20,
            output_bytes: 4 << 20,
        }
    }
}

/// How a [`crate::Sandbox`] is set up.
#[derive(Clone)]
pub struct SandboxConfig {
    /// Directory of precompiled code, private to the daemon; made if absent.
    pub cache_dir: PathBuf,
    /// File of the key that authenticates the cache; made if absent (mode 0600).
    pub key_file: PathBuf,
    /// Bytes of precompiled code kept; the oldest goes first.
    pub cache_bytes: u64,
    /// The largest component that is compiled, in bytes.
    pub component_bytes: usize,
    /// Processor time for starting a component and reading its manifest, in milliseconds.
    pub manifest_ms: u64,
    /// Instances that may live at once, over all plugins.
    pub instances: u32,
    /// Who is told every decision.
    pub recorder: Arc<dyn Recorder>,
}

impl SandboxConfig {
    /// The usual set-up below a state directory: cache in `DIR/cache`, key in `DIR/cache.key`.
    pub fn below(dir: impl Into<PathBuf>, recorder: Arc<dyn Recorder>) -> SandboxConfig {
        let dir = dir.into();
        SandboxConfig {
            cache_dir: dir.join("cache"),
            key_file: dir.join("cache.key"),
            cache_bytes: 1 << 30,
            component_bytes: 128 << 20,
            manifest_ms: 10_000,
            instances: 1_000,
            recorder,
        }
    }
}

impl std::fmt::Debug for SandboxConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SandboxConfig")
            .field("cache_dir", &self.cache_dir)
            .field("key_file", &self.key_file)
            .field("instances", &self.instances)
            .finish_non_exhaustive()
    }
}
