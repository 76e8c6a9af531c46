//! What the launcher is asked and what it answers: its whole closed set.
//!
//! ```text
//! dwcpd                                          dwcp-launch
//!   | Hello{version}                                  |  first on every connection
//!   |------------------------------------------------>|
//!   |           Hello{version, kvm, userfaultfd}      |
//!   |<------------------------------------------------|
//!   | SpawnVmm + fds / SpawnMover + fds / List / …    |  one request, one reply, in order
//!   |------------------------------------------------>|
//!   |           Spawned / Children / Done / Refused   |
//!   |<------------------------------------------------|
//!   | Watch                                           |  from here on the launcher alone speaks
//!   |------------------------------------------------>|
//!   |           Done, then Exited, Exited, …          |  first the exits that are kept, then new ones
//!   |<------------------------------------------------|
//!
//!  SpawnX            process ends            Forget
//! --------> running --------------> exited --------> (unknown)
//!              | Kill                  ^
//!              +-----------------------+
//! ```
//!
//! Messages are those of `dwcp-channel`. A request that cannot be carried out is refused with the reason and changes
//! nothing. Every exit is kept until it is forgotten, so a client that was away learns of it later.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The version spoken here.
pub const VERSION: u32 = 1;
/// Longest id, in bytes.
pub const ID_BYTES_MAX: usize = 64;
/// Longest request, in bytes.
pub const REQUEST_BYTES_MAX: usize = 256 << 10;
/// Most children that are kept, running and exited together.
pub const CHILDREN_MAX: usize = 256;
/// Most connections at a time.
pub const CONNECTIONS_MAX: usize = 32;

/// Names one child for its requester: 1 to [`ID_BYTES_MAX`] of `a-z`, `0-9` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChildId(String);

/// The text is no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("An id has 1 to {ID_BYTES_MAX} characters, each one of a-z, 0-9 and -")]
pub struct BadId;

impl ChildId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ChildId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let right_length = (1..=ID_BYTES_MAX).contains(&text.len());
        if right_length && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadId)
        }
    }
}

impl TryFrom<String> for ChildId {
    type Error = BadId;

    fn try_from(text: String) -> Result<Self, BadId> {
        text.parse()
    }
}

impl From<ChildId> for String {
    fn from(id: ChildId) -> Self {
        id.0
    }
}

impl fmt::Display for ChildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which end of a transfer a mover is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Reads guest memory; gets it read-only.
    Source,
    /// Writes guest memory.
    Destination,
}

/// A request to the launcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Which version the client speaks; first on every connection.
    Hello {
        /// [`VERSION`], or the request is refused.
        version: u32,
    },
    /// Makes a VM's memory and starts its VMM. The message's descriptors follow the launcher's own four.
    SpawnVmm {
        /// Names the VMM and, for movers, the VM. Replaces an exited child of that name; refused if one runs.
        id: ChildId,
        /// Size of guest memory, in bytes: a multiple of 4096.
        memory_bytes: u64,
        /// Handed over verbatim.
        config: serde_json::Value,
    },
    /// Starts a mover on the memory of a VM. The message's descriptors follow the launcher's own two.
    SpawnMover {
        /// Names the mover.
        id: ChildId,
        /// A VM that was started here and is not forgotten.
        vm: ChildId,
        /// Which end of the transfer.
        side: Side,
        /// Handed over verbatim.
        config: serde_json::Value,
    },
    /// Lists every child that is not forgotten.
    List,
    /// Ends a child at once. Done also when it has ended already.
    Kill {
        /// Which one.
        id: ChildId,
    },
    /// Forgets an exited child, and a VM's memory with it.
    Forget {
        /// Which one.
        id: ChildId,
    },
    /// Turns the connection into a stream of exits.
    Watch,
}

/// What the launcher answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The versions match.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// Whether `/dev/kvm` can be opened.
        kvm: bool,
        /// Whether `/dev/userfaultfd` can be opened.
        userfaultfd: bool,
    },
    /// The child runs its program.
    Spawned {
        /// As the launcher's own process namespace numbers it.
        pid: u32,
    },
    /// The answer to `List`.
    Children {
        /// Ascending by id.
        children: Vec<Child>,
    },
    /// The request was carried out.
    Done,
    /// The request was not carried out, and nothing changed.
    Refused {
        /// A sentence for a person.
        reason: String,
    },
    /// After `Watch`: a child ended.
    Exited {
        /// Its state is `Exited`.
        child: Child,
    },
}

/// What a child is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChildKind {
    /// Runs a VM.
    Vmm,
    /// Moves a VM's memory.
    Mover,
}

/// One child, running or exited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Child {
    /// Its name.
    pub id: ChildId,
    /// What it is.
    pub kind: ChildKind,
    /// The VM whose memory it works on; for a VMM its own id.
    pub vm: ChildId,
    /// Process id in the launcher's namespace; another process may have it once the child has exited.
    pub pid: u32,
    /// Whether and how it ended.
    pub state: ChildState,
}

/// Whether a child runs, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChildState {
    /// It has not ended.
    Running,
    /// It ended; exactly one of `code` and `signal` is there.
    Exited {
        /// Its exit code.
        code: Option<i32>,
        /// The signal that killed it.
        signal: Option<i32>,
        /// Why it ended, in its own words (`guest: power-off`, `seccomp: openat`, `error: …`); bounded and printable,
        /// but no more trustworthy than the process.
        last_words: Option<String>,
    },
}

impl Child {
    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        self.state == ChildState::Running
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn ids_are_bounded_and_plain() {
        let longest = "a".repeat(ID_BYTES_MAX);
        for good in ["a", "vm-1", "0", longest.as_str()] {
            assert_eq!(good.parse::<ChildId>().unwrap().as_str(), good);
        }
        let too_long = "a".repeat(ID_BYTES_MAX + 1);
        for bad in ["", "A", "a/b", "..", "a b", "ä", too_long.as_str()] {
            assert_eq!(bad.parse::<ChildId>(), Err(BadId), "{bad}");
        }
    }

    #[test]
    fn the_messages_look_as_documented() {
        let request = Request::SpawnMover {
            id: "m-1".parse().unwrap(),
            vm: "vm-1".parse().unwrap(),
            side: Side::Source,
            config: serde_json::json!({"streams": 4}),
        };
        let text =
            r#"{"spawn-mover":{"id":"m-1","vm":"vm-1","side":"source","config":{"streams":4}}}"#;
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
        assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
        assert_eq!(
            serde_json::to_string(&Request::Watch).unwrap(),
            r#""watch""#
        );
        assert!(serde_json::from_str::<Request>(r#"{"kill":{"id":"../x"}}"#).is_err());
        assert!(serde_json::from_str::<Request>(r#"{"kill":{"id":"x","signal":9}}"#).is_err());
    }
}
