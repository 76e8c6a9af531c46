//! What is said of balloons.

use super::{Said, record};

record! {
    /// A balloon as the guest found it.
    BalloonFound, "balloon", "features" {
        /// What guest and device agreed on.
        features: u64,
        /// Pages of 4 KiB that the guest could give.
        spare: u64,
    }
}

record! {
    /// `balloon=report`: all free blocks were reported, after their pages had been written to.
    BalloonReported, "balloon", "reported" {
        /// Pages of 4 KiB in them.
        reported: u64,
    }
}

record! {
    /// `balloon=follow`: once a second, if something has changed.
    BalloonFollow, "balloon", "follow" {
        /// Pages of 4 KiB that the host wants.
        target: u64,
        /// Pages that it has.
        actual: u64,
    }
}
