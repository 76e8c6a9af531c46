//! Ways in which a driver can misbehave towards a device, as the command line names them.

use crate::kind::Kind;

/// One way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// A chain of descriptors that comes back to its beginning.
    Loop,
    /// A chain that goes on at a descriptor beyond the table.
    Next,
    /// An available ring that names a descriptor beyond the table.
    Index,
    /// A buffer of 4 GiB less one byte.
    Length,
    /// Buffers outside memory, one of them around the end of the address space.
    Outside,
    /// An available index that jumps by more than the queue holds.
    Jump,
    /// Buffers that the device may not write where it must, and the other way round.
    Swapped,
    /// Buffers of no bytes.
    Empty,
    /// Indirect tables of odd length, within one another, and with a chain behind them.
    Indirect,
    /// A queue at addresses that are not aligned.
    Unaligned,
    /// A queue outside memory.
    Elsewhere,
    /// A reset with requests under way.
    Reset,
    /// Nonsense written to every register, before and while the device is in use.
    Registers,
    /// Random descriptors, indices and notifications.
    Random,
}

impl Attack {
    /// All of them, with their names.
    pub const ALL: [(Self, &'static str); 14] = [
        (Self::Loop, "loop"),
        (Self::Next, "next"),
        (Self::Index, "index"),
        (Self::Length, "length"),
        (Self::Outside, "outside"),
        (Self::Jump, "jump"),
        (Self::Swapped, "swapped"),
        (Self::Empty, "empty"),
        (Self::Indirect, "indirect"),
        (Self::Unaligned, "unaligned"),
        (Self::Elsewhere, "elsewhere"),
        (Self::Reset, "reset"),
        (Self::Registers, "registers"),
        (Self::Random, "random"),
    ];

    /// The one of a name.
    pub fn named(name: &[u8]) -> Option<Self> {
        let found = Self::ALL.iter().find(|(_, own)| own.as_bytes() == name);
        found.map(|(attack, _)| *attack)
    }
}

/// `KIND:DEVICE:QUEUE`, of which the last, or the last two, may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assault {
    /// How; all ways if none.
    pub attack: Option<Attack>,
    /// Every device of this kind.
    pub target: Kind,
    /// On which queue; the one that takes requests if none.
    pub queue: Option<u16>,
}

impl Assault {
    /// Reads it; `None` for nonsense.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let mut parts = value.split(|byte| *byte == b':');
        let attack = match parts.next()? {
            b"all" => None,
            name => Some(Attack::named(name)?),
        };
        let target = parts.next().map_or(Some(Kind::Disk), Kind::named)?;
        let queue = match parts.next() {
            Some(digits) => Some(u16::try_from(crate::orders::number(digits)?).ok()?),
            None => None,
        };
        parts.next().is_none().then_some(Self {
            attack,
            target,
            queue,
        })
    }
}
