//! The sandbox in which everything that decides runs: WebAssembly components behind the contracts of `wit/`.
//!
//! A plugin sees its input and nothing else: no clock, no randomness, no file, no network, unless an import was
//! granted. It may use so much memory, time, stack and output, and is cut off beyond; a call that fails gives a
//! [`Fault`], the instance is thrown away and the next call finds a new one. Every decision is told to a [`Recorder`]
//! with what is needed to make it again.
//!
//! Always:
//! - A faulty plugin costs its own call, never the process, never another plugin.
//! - Answers are checked against every bound of the contract before anyone sees them.
//! - Machine code from disk runs only if this daemon wrote it (see `cache`).
//! - The same component, configuration and input give the same answer, byte for byte.
//!
//! Never: what is done with an answer, whether a plugin is signed or trusted, where records are kept, what time it is.
//!
//! All calls block; callers on an async runtime use its blocking threads. All handles are `Send + Sync`.

mod bindings;
mod cache;
mod counters;
mod document;
mod fault;
mod gate;
mod instance;
mod limits;
mod manifest;
pub mod placement;
mod plugin;
mod policy;
mod probe;
mod record;
mod sandbox;
mod template;
mod ticker;

pub use cache::CacheError;
pub use counters::Usage;
pub use document::{Document, Problem};
pub use fault::{Fault, FaultKind};
pub use limits::{Limits, MAX_MEMORY_BYTES, SandboxConfig};
pub use manifest::{Capability, Manifest};
pub use placement::Placement;
pub use policy::{ConfigureError, Diagnostic, Effect, Fact, Policy, Reason, Summary, Verdict};
pub use probe::Probe;
pub use record::{
    DecisionRecord, NoRecorder, Outcome, Recorder, Replay, ReplayError, Stamp, World,
};
pub use sandbox::{CompileError, Compiled, OpenError, Sandbox, SandboxError, Setup};
pub use template::{
    Description, Image, Parameter, ParameterKind, Restart, Template, TemplateError, VmSpec, Volume,
    Wishes,
};
