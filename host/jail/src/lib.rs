//! The contract between the launcher and a process that it confines (a VMM or a mover).
//!
//! The launcher hands over numbered descriptors and nothing else:
//!
//! | descriptor | what it is |
//! |---|---|
//! | 0, 1, 2 | `/dev/null` (2 may be the launcher's standard error) |
//! | [`LAST_WORDS_FD`] | a pipe; one line is read from it after the process has ended |
//! | [`CONFIGURATION_FD`] | a sealed memfd of at most [`CONFIGURATION_BYTES_MAX`] bytes |
//! | [`DESCRIPTORS_FD`] and up | as many as `argv[1]` says, at most [`DESCRIPTORS_MAX`] |
//!
//! The process takes them with [`inherit`], before it does anything else; gives up every system call that it does
//! not need with [`confine`]; and says why it ends with [`LastWords::say`]. A system call that it gave up ends it at
//! once with exit code [`DENIED_EXIT_CODE`], and its last words name the call.
//!
//! The launcher's half is [`Handover`], which puts descriptors in their places, [`OuterFilter`], which takes away what
//! no such process needs, and [`parse_last_words`].
//!
//! What always holds: last words are bounded and free of control characters before anyone shows them, because the
//! process that wrote them may have been taken over. This crate must never know what a VMM or a mover does.

mod confine;
mod handover;
mod inherit;
mod outer;
mod syscalls;
mod words;

pub use confine::{
    Condition, ConfineError, Rule, Scope, allow, confine, runtime_rules, thread_rules,
};
pub use handover::{Handover, HandoverError, LastWordsPipe};
pub use inherit::{InheritError, Inheritance, inherit};
pub use outer::OuterFilter;
pub use syscalls::syscall_name;
pub use words::{
    Kind, LAST_WORDS_BYTES_MAX, LAST_WORDS_TEXT_MAX, LastWords, SpokenWords, parse_last_words,
};

/// Where a confined process finds the write end of its last-words pipe.
pub const LAST_WORDS_FD: i32 = 3;
/// Where a confined process finds its configuration.
pub const CONFIGURATION_FD: i32 = 4;
/// Where a confined process finds the first of its other descriptors.
pub const DESCRIPTORS_FD: i32 = 5;
/// Most descriptors from [`DESCRIPTORS_FD`] on.
pub const DESCRIPTORS_MAX: usize = 64;
/// Longest configuration, in bytes.
pub const CONFIGURATION_BYTES_MAX: usize = 1 << 20;
/// Exit code of a process that made a system call which it had given up: 128 + SIGSYS.
pub const DENIED_EXIT_CODE: i32 = 128 + libc::SIGSYS;
