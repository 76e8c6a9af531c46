//! Connections both ways, by a driver that tests play and programs of the host.
#![allow(clippy::unwrap_used)]

mod bed;
mod begin;
mod bounds;
mod flow;
