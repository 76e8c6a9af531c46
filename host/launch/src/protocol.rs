//! What the launcher is asked and what it answers: its whole closed set.
//!
//! ```text
//! dwcpd                                          dwcp-launch
//!   | Hello{version}                                  |  first on every connection
//!   |------------------------------------------------>|
//!   |           Hello{version, kvm, userfaultfd}      |
//!   |<------------------------------------------------|
//!   | SpawnVmm / SpawnMover / SpawnReader + fds / …     |  one request, one reply, in order
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
//! # What a VMM finds where
//!
//! From [`DESCRIPTORS_FD`](dwcp_jail::DESCRIPTORS_FD) on: `/dev/kvm`, `/dev/userfaultfd` or `/dev/null`, guest
//! memory, the dirty bitmap; then the message's own descriptors, as the client ordered them (`dwcpd`: the control
//! socket, the serial log, kernel, initial RAM disk, disks); then one tap for each of `nics`, in their order.
//!
//! A tap is up, non-blocking, and takes and gives one Ethernet frame a call, each after a 12-byte `virtio_net_hdr`
//! (`IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, `TUNSETVNETHDRSZ` 12). Its offloads are set to all that virtio-net can be
//! offered: `TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_UFO`. For a guest that accepts less, the VMM must lower
//! them with `TUNSETOFFLOAD`, which takes no right but the descriptor; it needs no other `ioctl` on a tap and should
//! give up all others. Frames pass only with the MAC and the address of the `NicSpec`; IPv6 does not pass. DHCP
//! answers do not pass either: the VMM answers its guest itself. The MTU is 1,500 bytes.
//!
//! Messages are those of `dwcp-channel`. A request that cannot be carried out is refused with the reason and changes
//! nothing. Every exit is kept until it is forgotten, so a client that was away learns of it later.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::address::{Ipv4Prefix, Mac, NetworkName};

/// The version spoken here.
pub const VERSION: u32 = 1;
/// Longest id, in bytes.
pub const ID_BYTES_MAX: usize = 64;
/// Longest request, in bytes.
pub const REQUEST_BYTES_MAX: usize = 256 << 10;
/// Most children that are kept, running and exited together.
pub const CHILDREN_MAX: usize = 256;
/// Most network interfaces of one VM.
pub const NICS_MAX: usize = 4;
/// Most networks at a time.
pub const NETWORKS_MAX: usize = 64;
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
    /// Reads guest memory that is private to its VMM, as a restored or forked VM's is: gets all memory of that process,
    /// read-only, in place of the VM's own.
    PrivateSource,
    /// Writes guest memory.
    Destination,
}

/// What a network is joined to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkKind {
    /// Its VMs reach what the host reaches, under the host's address; nothing reaches them but answers, and the host.
    /// They do not reach each other, nor services of the host.
    Nat,
    /// Its VMs reach each other and nothing else, not even the host.
    Isolated,
}

/// One network interface of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicSpec {
    /// The only MAC address that the guest may send from; no other VM of the network has it.
    pub mac: Mac,
    /// The only IPv4 address that the guest may send from, with the prefix of the network's subnet.
    pub address: Ipv4Prefix,
    /// A network that was made with `EnsureNetwork`.
    pub network: NetworkName,
    /// As whom the guest knows itself, if not by `mac` and `address`: it goes on from where another one was. Its tap is
    /// in a network namespace of its own, where its addresses are mapped to these and back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<Inside>,
}

/// What a guest takes for its interface's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inside {
    /// The only MAC address that the guest may send from.
    pub mac: Mac,
    /// The only IPv4 address that the guest may send from, with the prefix that it knows.
    pub address: Ipv4Prefix,
}

/// A network as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its addresses.
    pub subnet: Ipv4Prefix,
    /// The host's address in it and the guests' router: a NAT network's first one. An isolated network has none.
    pub gateway: Option<Ipv4Addr>,
    /// The name of its bridge on this host; another one after the launcher has been started again.
    pub bridge: String,
}

/// What a VM needs of its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Size of guest memory, in bytes.
    pub memory_bytes: u64,
    /// Whether that is of huge pages.
    pub huge_pages: bool,
    /// How many processors the guest has; no limit if 0.
    pub vcpus: u32,
    /// Longest file that its VMM may write, in bytes.
    pub file_bytes: u64,
}

impl Needs {
    /// Memory, and nothing else.
    pub fn memory(memory_bytes: u64) -> Self {
        Self {
            memory_bytes,
            ..Self::default()
        }
    }
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
        /// A VM whose memory was sealed with `Seal`: its memory takes the place of new memory, for a shell that is to
        /// become a fork of it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        template: Option<ChildId>,
        /// Size of guest memory, in bytes: a multiple of 4096.
        memory_bytes: u64,
        /// Handed over verbatim.
        config: serde_json::Value,
        /// Longest file that it may write, in bytes: as long as its longest disk. Some is allowed without a disk.
        #[serde(default, skip_serializing_if = "is_zero")]
        file_bytes: u64,
        /// Whether guest memory is of huge pages (2 MiB), of which the host must have as many free.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        huge_pages: bool,
        /// How many processors the guest has: it and its devices get no more than these and one beside. No limit if 0.
        #[serde(default, skip_serializing_if = "is_none")]
        vcpus: u32,
        /// At most [`NICS_MAX`]. The descriptors of their taps follow the message's own, in this order.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        nics: Vec<NicSpec>,
    },
    /// Lets a running VMM write longer files than it was started with, because a disk is to grow. Never less.
    Lengthen {
        /// Which one.
        id: ChildId,
        /// Longest file that it may write, in bytes.
        file_bytes: u64,
    },
    /// Seals the memory of a VM whose VMM has ended, as a template's: nobody can write to it any more, and forks are made
    /// of it until the VM is forgotten. Done also when it is sealed already.
    Seal {
        /// Which VM.
        id: ChildId,
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
    /// Starts a reader of images. The message's descriptors are all that it gets.
    SpawnReader {
        /// Names the reader.
        id: ChildId,
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
    /// Makes a network, or finds that it is there; answers `Network`. Networks end with the launcher, so this is asked
    /// again after a launcher was started; a client that keeps the subnet then names it.
    EnsureNetwork {
        /// Its name. One of that name with another kind or subnet is refused.
        name: NetworkName,
        /// What it is joined to.
        kind: NetworkKind,
        /// Its addresses, with a prefix of 8 to 30 bits and no host bits. A NAT network's must not be in use on this
        /// host. Without one, the first /24 is taken that is not in use, of a list that is the same on every host.
        subnet: Option<Ipv4Prefix>,
    },
    /// Removes a network. Refused while a VM is on it; done also when there is none.
    RemoveNetwork {
        /// Which one.
        name: NetworkName,
    },
    /// Turns the connection into a stream of exits.
    Watch,
}

fn is_none(number: &u32) -> bool {
    *number == 0
}

fn is_zero(number: &u64) -> bool {
    *number == 0
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
    /// The answer to `EnsureNetwork`.
    Network {
        /// As it is now.
        network: Network,
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
    /// Reads an image.
    Reader,
}

/// One child, running or exited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Child {
    /// Its name.
    pub id: ChildId,
    /// What it is.
    pub kind: ChildKind,
    /// The VM whose memory it works on; for a VMM and a reader its own id.
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
    fn networks_look_as_documented() {
        let nic = r#"{"mac":"02:00:00:00:00:05","address":"10.83.0.5/24","network":"default"}"#;
        let spawn = |nics: &str| {
            format!(r#"{{"spawn-vmm":{{"id":"vm-1","memory_bytes":4096,"config":{{}}{nics}}}}}"#)
        };
        // Without interfaces the message is what it was before there were any.
        for text in [spawn(""), spawn(&format!(r#","nics":[{nic}]"#))] {
            let request: Request = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
        }
        let text = r#"{"ensure-network":{"name":"default","kind":"nat","subnet":null}}"#;
        let request: Request = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
        for bad in [
            spawn(r#","nics":[{}]"#),
            spawn(&format!(r#","nics":[{}]"#, nic.replace("02:", "03:"))),
            spawn(&format!(r#","nics":[{}]"#, nic.replace("/24", "/33"))),
            spawn(&format!(r#","nics":[{}]"#, nic.replace("default", "../x"))),
        ] {
            assert!(serde_json::from_str::<Request>(&bad).is_err(), "{bad}");
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
