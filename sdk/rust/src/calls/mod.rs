//! The operations of the API, one file per concern.

mod audit;
mod events;
mod hosts;
mod images;
mod operations;
mod plugins;
mod policies;
mod running;
mod snapshots;
mod vms;

pub use events::EventFollow;
pub use images::Uploaded;
pub use operations::WAIT_UNREACHABLE_MAX;
