//! Who is behind which tap, told to the rules: elements of one nftables set, over nfnetlink; and what tables there are.
//!
//! The rules themselves are text (`rules`) and are set by a program (`nft`), once a network. Taps come and go with
//! VMs, in the time of one system call instead of a process's. What always holds: without its element, nothing that
//! comes from a tap passes. This module must not know what the rules do with the set.

use std::net::Ipv4Addr;

use dwcp_launch::address::Mac;
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::forwarding::GUARD;
use super::netlink::{Message, Netlink, NetlinkError, attributes};

/// The set's name in the rules.
pub const SET: &str = "nics";

const INTERFACE_NAME_BYTES: usize = 16;
// linux/netfilter/nf_tables.h, where the libc crate has no name for them.
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_HANDLE: u16 = 4;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;

/// One guest's interface, as the rules know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity<'a> {
    /// The tap.
    pub tap: &'a str,
    /// From which it may send.
    pub mac: Mac,
    /// From which it may send.
    pub address: Ipv4Addr,
}

/// A table that there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Its family, `NFPROTO_…`.
    pub family: u8,
    /// Its name, of which there is one in a family.
    pub name: String,
    /// Its number, which no other table of this network namespace ever has.
    pub handle: u64,
}

impl Table {
    /// Whether it is the one of `forwarding`.
    pub fn is_guard(&self) -> bool {
        i32::from(self.family) == libc::NFPROTO_IPV4 && self.name == GUARD
    }
}

/// The kernel's tables.
#[derive(Debug)]
pub struct Filter {
    netlink: Netlink,
}

impl Filter {
    /// Connects to the kernel.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self {
            netlink: Netlink::open(SockProtocol::NetlinkNetFilter)?,
        })
    }

    /// Lets frames of this identity pass, and those of one that has no address yet.
    pub fn add(&mut self, table: &str, identity: Identity<'_>) -> Result<(), NetlinkError> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE;
        self.change(libc::NFT_MSG_NEWSETELEM, flags, table, identity)
    }

    /// Undoes [`Filter::add`]. Done also when there is no such element.
    pub fn remove(&mut self, table: &str, identity: Identity<'_>) -> Result<(), NetlinkError> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        match self.change(libc::NFT_MSG_DELSETELEM, flags, table, identity) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Every table of this network namespace.
    pub fn tables(&mut self) -> Result<Vec<Table>, NetlinkError> {
        let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | libc::NFT_MSG_GETTABLE) as u16;
        let mut tables = Vec::new();
        let family = libc::NFPROTO_UNSPEC as u8;
        self.netlink.list(kind, &header(family, 0), |entry| {
            tables.push(read_table(entry));
        })?;
        Ok(tables)
    }

    fn change(
        &mut self,
        kind: libc::c_int,
        flags: i32,
        table: &str,
        identity: Identity<'_>,
    ) -> Result<(), NetlinkError> {
        let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16;
        let elements = |list: Message| {
            keys(identity).into_iter().fold(list, |list, key| {
                list.nested(NFTA_LIST_ELEM, |element| {
                    element.nested(NFTA_SET_ELEM_KEY, |data| {
                        data.attribute(NFTA_DATA_VALUE, &key)
                    })
                })
            })
        };
        let message = Message::new(kind, flags, &header(libc::NFPROTO_BRIDGE as u8, 0))
            .text(NFTA_SET_ELEM_LIST_TABLE, table)
            .text(NFTA_SET_ELEM_LIST_SET, SET)
            .nested(NFTA_SET_ELEM_LIST_ELEMENTS, elements);
        let edge = |kind: libc::c_int| {
            let subsystem = libc::NFNL_SUBSYS_NFTABLES as u16;
            Message::new(kind as u16, libc::NLM_F_REQUEST, &header(0, subsystem))
        };
        self.netlink.batch(vec![
            edge(libc::NFNL_MSG_BATCH_BEGIN),
            message,
            edge(libc::NFNL_MSG_BATCH_END),
        ])
    }
}

/// struct nfgenmsg: family, version, resource.
fn header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

fn read_table(entry: &[u8]) -> Table {
    let mut found = Table {
        family: entry.first().copied().unwrap_or_default(),
        ..Table::default()
    };
    for (kind, value) in attributes(entry.get(4..).unwrap_or_default()) {
        match kind {
            NFTA_TABLE_NAME => {
                let name = value.split(|byte| *byte == 0).next().unwrap_or_default();
                found.name = String::from_utf8_lossy(name).into_owned();
            }
            NFTA_TABLE_HANDLE => {
                found.handle = value.try_into().map(u64::from_be_bytes).unwrap_or_default();
            }
            _ => {}
        }
    }
    found
}

/// The set's key: interface name, MAC and IPv4 address, each padded to whole words. The second is for DHCP and for
/// ARP probes, whose source is 0.0.0.0.
fn keys(identity: Identity<'_>) -> [Vec<u8>; 2] {
    [identity.address, Ipv4Addr::UNSPECIFIED].map(|address| {
        let mut key = identity.tap.as_bytes().to_vec();
        key.resize(INTERFACE_NAME_BYTES, 0);
        key.extend_from_slice(&identity.mac.bytes());
        key.extend_from_slice(&[0, 0]);
        key.extend_from_slice(&address.octets());
        key
    })
}
