//! The kinds of devices that are driven here (virtio 1.3, 5).

/// One kind; its value is its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Net = 1,
    Disk = 2,
    Rng = 4,
    Balloon = 5,
    Vsock = 19,
}

impl Kind {
    /// All of them, as they are called on the command line and in what the guest prints.
    const ALL: [(Self, &'static str); 5] = [
        (Self::Net, "net"),
        (Self::Disk, "disk"),
        (Self::Rng, "rng"),
        (Self::Balloon, "balloon"),
        (Self::Vsock, "vsock"),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(kind, _)| *kind == self);
        found.map_or("", |(_, name)| name)
    }

    /// The one of a name.
    pub fn named(name: &[u8]) -> Option<Self> {
        let found = Self::ALL.iter().find(|(_, own)| own.as_bytes() == name);
        found.map(|(kind, _)| *kind)
    }
}
