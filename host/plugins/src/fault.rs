//! What can go wrong inside a plugin, told apart so that a caller can act on it.
//!
//! Always: a fault has a kind that a program can match and a message that a person can read; the message is bounded.
//! Never: knowledge of what the plugin decides. An error that a plugin *answers* (a template that refuses its
//! parameters) is an answer, not a fault.

use serde::{Deserialize, Serialize};
use wasmtime::Trap;

/// The longest fault message kept, in bytes. A plugin chooses part of the text.
const MESSAGE_BYTES: usize = 1024;

/// Why a call gave no usable answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// The plugin stopped itself: `unreachable`, a failed assertion, a division by zero, a wild pointer.
    Trap,
    /// The call used more processor time, or waited longer, than it may.
    Time,
    /// The plugin wanted more memory or table space than it may have.
    Memory,
    /// The plugin recursed deeper than its stack.
    Stack,
    /// The answer is larger than it may be.
    Output,
    /// The answer is well-formed and means nothing: an index out of range, a decision missing.
    Answer,
    /// The plugin could not be started or given its state.
    Start,
    /// The caller's input is larger than the plugin may be given. Not the plugin's doing.
    Input,
    /// Too many calls are already waiting for this plugin. Not the plugin's doing.
    Busy,
}

impl FaultKind {
    /// All kinds, in the order in which counters list them.
    pub const ALL: [FaultKind; 9] = [
        FaultKind::Trap,
        FaultKind::Time,
        FaultKind::Memory,
        FaultKind::Stack,
        FaultKind::Output,
        FaultKind::Answer,
        FaultKind::Start,
        FaultKind::Input,
        FaultKind::Busy,
    ];

    /// The kind's name as it appears in records and metrics.
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::Trap => "trap",
            FaultKind::Time => "time",
            FaultKind::Memory => "memory",
            FaultKind::Stack => "stack",
            FaultKind::Output => "output",
            FaultKind::Answer => "answer",
            FaultKind::Start => "start",
            FaultKind::Input => "input",
            FaultKind::Busy => "busy",
        }
    }
}

/// A call that gave no usable answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// What kind of fault.
    pub kind: FaultKind,
    /// One sentence for a person, at most 1 KiB.
    pub message: String,
}

impl Fault {
    /// A fault of `kind`; a message that is too long is cut.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Fault {
        let mut message = message.into();
        if message.len() > MESSAGE_BYTES {
            let mut end = MESSAGE_BYTES;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
            message.push('…');
        }
        Fault { kind, message }
    }

    /// Turns what wasmtime says of a failed call into a fault.
    ///
    /// `exceeded` is what the limiter refused during the call: a guest that is denied memory usually ends in
    /// `unreachable`, and the denial is the cause that a person needs to hear.
    pub(crate) fn from_wasm(error: &wasmtime::Error, exceeded: Option<String>) -> Fault {
        let trap = error.downcast_ref::<Trap>().copied();
        if trap == Some(Trap::Interrupt) {
            return Fault::new(FaultKind::Time, "The plugin ran longer than it may.");
        }
        if let Some(what) = exceeded {
            return Fault::new(FaultKind::Memory, what);
        }
        if trap == Some(Trap::StackOverflow) {
            return Fault::new(
                FaultKind::Stack,
                "The plugin recursed deeper than its stack allows.",
            );
        }
        let root = error.root_cause().to_string();
        // wasmtime's own type for this is private; a test holds the text.
        if root.contains("fuel allocated for hostcalls") {
            return Fault::new(
                FaultKind::Output,
                "The plugin's answer is larger than it may be.",
            );
        }
        Fault::new(FaultKind::Trap, format!("The plugin failed: {root}."))
    }
}
