//! A WAN link between two network namespaces, for tests, the demo and benchmarks.
//!
//! The kernel here has no `netem`, so a program (`dwcp-wan`) owns a TUN device in each namespace and forwards packets
//! late: at the rate of a bottleneck with a drop-tail queue, after half a round trip, less those that are lost. The
//! kernel's own TCP runs over it.
//!
//! This library makes the namespaces ([`Namespace`]) and holds a running link ([`Link`]). What always holds: all names
//! carry the run's id, nothing else on the machine is touched, and a link ends with the process that holds it.
//!
//! It must never know what travels over the link.

mod link;
mod namespace;
mod settings;

pub use link::{Link, LinkError, LinkOptions};
pub use namespace::{Namespace, NamespaceError, RunId};
pub use settings::{Changes, Direction, Queue, Settings, SettingsError, Stats};
