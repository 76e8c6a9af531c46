//! The life of virtual machines, hosts and migrations: what is wanted, what is seen, and what to do next.
//!
//! Everything here is a pure function or a record. Time comes in as a number, facts come in as values, and what is to
//! be done goes out as values, so that the same code runs in the daemon, in a test and in a simulator from one seed.
//!
//! This crate must never do input or output, read a clock, or draw a random number.

pub mod convergence;
pub mod names;
pub mod ownership;
pub mod records;

pub use names::{Name, NameError};
