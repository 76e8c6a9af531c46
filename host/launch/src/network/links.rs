//! Links, addresses and routes of the network namespace that the launcher is in, over rtnetlink(7).
//!
//! What always holds: a bridge learns no address and floods no unicast frame, so a guest can neither take another's
//! frames nor see them: where a guest is, is said once, when its tap is put in. This module must not know what the
//! links are for.

use std::net::Ipv4Addr;
use std::os::fd::RawFd;

use dwcp_launch::address::{Ipv4Prefix, Mac};
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::netlink::{Message, Netlink, NetlinkError, attributes, word};
use super::subnets::Used;

/// Every bridge of every launcher is in this group of links ("dw"): rules can name them all.
pub const GROUP: u32 = 0x6477;

const DO: i32 = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
const MAKE: i32 = DO | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
const INET: u8 = libc::AF_INET as u8;
const BRIDGE: &str = "bridge";
// linux/if_link.h, where the libc crate has no name for them.
const IFLA_BR_MCAST_SNOOPING: u16 = 23;
const VETH: &str = "veth";
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_LEARNING: u16 = 8;
const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
const IFLA_BRPORT_ISOLATED: u16 = 33;
/// Longest alias of a link, in bytes.
const ALIAS_BYTES_MAX: usize = 255;

/// A link as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `bridge`, `tun`, … or nothing.
    pub kind: String,
    /// Its group.
    pub group: u32,
}

/// A port of a bridge, to be.
#[derive(Clone, Copy, Debug)]
pub struct Port<'a> {
    /// The link that becomes one.
    pub link: u32,
    /// The bridge.
    pub bridge: u32,
    /// Who is behind it.
    pub mac: Mac,
    /// Whether it reaches no other such port.
    pub isolated: bool,
    /// Shown to a person who looks.
    pub alias: &'a str,
}

/// The kernel's links.
#[derive(Debug)]
pub struct Links {
    netlink: Netlink,
}

impl Links {
    /// Connects to the kernel.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self {
            netlink: Netlink::open(SockProtocol::NetlinkRoute)?,
        })
    }

    /// Makes a bridge in [`GROUP`], down, and answers its number. It is in the group from the first moment: a launcher
    /// that is killed here leaves nothing that the next one would take for a stranger's.
    pub fn add_bridge(&mut self, name: &str, mac: Mac, alias: &str) -> Result<u32, NetlinkError> {
        let message = link(libc::RTM_NEWLINK, MAKE, 0)
            .text(libc::IFLA_IFNAME, name)
            .attribute(libc::IFLA_GROUP, &GROUP.to_ne_bytes())
            .attribute(libc::IFLA_ADDRESS, &mac.bytes())
            .nested(libc::IFLA_LINKINFO, |info| {
                info.text(libc::IFLA_INFO_KIND, BRIDGE)
                    .nested(libc::IFLA_INFO_DATA, |data| {
                        data.attribute(IFLA_BR_MCAST_SNOOPING, &[0])
                    })
            });
        self.netlink.request(message)?;
        let index = self.index(name)?;
        let more = link(libc::RTM_SETLINK, DO, index).attribute(libc::IFLA_IFALIAS, cut(alias));
        if let Err(error) = self.netlink.request(more) {
            let _ = self.remove(index);
            return Err(error);
        }
        Ok(index)
    }

    /// Makes a pair of links, both down: one here, and its peer, with the address `mac`, in another namespace. One goes
    /// with the other.
    pub fn add_pair(
        &mut self,
        name: &str,
        peer: &str,
        mac: Mac,
        namespace: RawFd,
    ) -> Result<(), NetlinkError> {
        let message = link(libc::RTM_NEWLINK, MAKE, 0)
            .text(libc::IFLA_IFNAME, name)
            .nested(libc::IFLA_LINKINFO, |info| {
                info.text(libc::IFLA_INFO_KIND, VETH)
                    .nested(libc::IFLA_INFO_DATA, |data| {
                        data.nested_after(VETH_INFO_PEER, &link_header(0), |other| {
                            other
                                .text(libc::IFLA_IFNAME, peer)
                                .attribute(libc::IFLA_ADDRESS, &mac.bytes())
                                .attribute(libc::IFLA_NET_NS_FD, &namespace.to_ne_bytes())
                        })
                    })
            });
        self.netlink.request(message)
    }

    /// Gives a link an Ethernet address.
    pub fn set_mac(&mut self, index: u32, mac: Mac) -> Result<(), NetlinkError> {
        let message = link(libc::RTM_SETLINK, DO, index);
        self.netlink
            .request(message.attribute(libc::IFLA_ADDRESS, &mac.bytes()))
    }

    /// Leads what is for a network to a link, by a router if there is one.
    pub fn add_route(
        &mut self,
        index: u32,
        to: Ipv4Prefix,
        router: Option<Ipv4Addr>,
    ) -> Result<(), NetlinkError> {
        let scope = match router {
            Some(_) => libc::RT_SCOPE_UNIVERSE,
            None => libc::RT_SCOPE_LINK,
        };
        // struct rtmsg: family, lengths of destination and source, type of service, table, protocol, scope, type, flags.
        let table = [
            libc::RT_TABLE_MAIN,
            libc::RTPROT_STATIC,
            scope,
            libc::RTN_UNICAST,
        ];
        let mut header = [INET, to.length(), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        header[4..8].copy_from_slice(&table);
        let mut message = Message::new(libc::RTM_NEWROUTE, MAKE, &header)
            .attribute(libc::RTA_DST, &to.address().octets())
            .attribute(libc::RTA_OIF, &index.to_ne_bytes());
        if let Some(router) = router {
            message = message.attribute(libc::RTA_GATEWAY, &router.octets());
        }
        self.netlink.request(message)
    }

    /// Says for good who has an address behind a link.
    pub fn add_neighbour(
        &mut self,
        index: u32,
        address: Ipv4Addr,
        mac: Mac,
    ) -> Result<(), NetlinkError> {
        // struct ndmsg: family, index, state, flags, type.
        let mut header = [0; 12];
        header[0] = INET;
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        header[8..10].copy_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
        let message = Message::new(libc::RTM_NEWNEIGH, MAKE, &header)
            .attribute(libc::NDA_DST, &address.octets())
            .attribute(libc::NDA_LLADDR, &mac.bytes());
        self.netlink.request(message)
    }

    /// Puts a link into a bridge and sets it up. Its frames pass from then on.
    pub fn add_port(&mut self, port: &Port<'_>) -> Result<(), NetlinkError> {
        let enslave = link(libc::RTM_SETLINK, DO, port.link)
            .attribute(libc::IFLA_MASTER, &port.bridge.to_ne_bytes())
            .attribute(libc::IFLA_IFALIAS, cut(port.alias));
        self.netlink.request(enslave)?;
        let restrict = link(libc::RTM_NEWLINK, DO, port.link).nested(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_SLAVE_KIND, BRIDGE).nested(
                libc::IFLA_INFO_SLAVE_DATA,
                |data| {
                    data.attribute(IFLA_BRPORT_LEARNING, &[0])
                        .attribute(IFLA_BRPORT_UNICAST_FLOOD, &[0])
                        .attribute(IFLA_BRPORT_ISOLATED, &[port.isolated.into()])
                },
            )
        });
        self.netlink.request(restrict)?;
        self.netlink.request(neighbour(port))?;
        self.set_up(port.link)
    }

    /// Sets a link down and takes it out of its bridge, which forgets who was behind it. Done also when there is no such
    /// link.
    pub fn retire_port(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut down = link_header(index);
        down[12..].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
        let down = Message::new(libc::RTM_SETLINK, DO, &down);
        let none = 0u32.to_ne_bytes();
        let alone = link(libc::RTM_SETLINK, DO, index).attribute(libc::IFLA_MASTER, &none);
        match self
            .netlink
            .request(down)
            .and_then(|()| self.netlink.request(alone))
        {
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// Gives a link an address.
    pub fn add_address(&mut self, index: u32, address: Ipv4Prefix) -> Result<(), NetlinkError> {
        // struct ifaddrmsg: family, prefix, flags, scope, index.
        let mut header = [INET, address.length(), 0, 0, 0, 0, 0, 0];
        header[4..].copy_from_slice(&index.to_ne_bytes());
        let octets = address.address().octets();
        let message = Message::new(libc::RTM_NEWADDR, MAKE, &header)
            .attribute(libc::IFA_LOCAL, &octets)
            .attribute(libc::IFA_ADDRESS, &octets)
            .attribute(libc::IFA_BROADCAST, &address.broadcast().octets());
        self.netlink.request(message)
    }

    /// Sets a link up.
    pub fn set_up(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut header = link_header(index);
        let up = (libc::IFF_UP as u32).to_ne_bytes();
        header[8..12].copy_from_slice(&up);
        header[12..].copy_from_slice(&up);
        self.netlink
            .request(Message::new(libc::RTM_SETLINK, DO, &header))
    }

    /// Removes a link. Done also when there is none.
    pub fn remove(&mut self, index: u32) -> Result<(), NetlinkError> {
        match self.netlink.request(link(libc::RTM_DELLINK, DO, index)) {
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// The number of a link.
    pub fn index(&mut self, name: &str) -> Result<u32, NetlinkError> {
        Ok(nix::net::if_::if_nametoindex(name)?)
    }

    /// Every link.
    pub fn all(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let mut links = Vec::new();
        self.netlink
            .list(libc::RTM_GETLINK, &link_header(0), |entry| {
                links.push(read_link(entry))
            })?;
        Ok(links)
    }

    /// Every network that is in use here: of routes, in whatever table, and of addresses.
    pub fn networks(&mut self) -> Result<Used, NetlinkError> {
        let mut used = Used::default();
        let routes = [INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        self.netlink.list(libc::RTM_GETROUTE, &routes, |entry| {
            used.routes.extend(network(entry, 12, libc::RTA_DST));
        })?;
        let addresses = [INET, 0, 0, 0, 0, 0, 0, 0];
        self.netlink.list(libc::RTM_GETADDR, &addresses, |entry| {
            used.joined.extend(network(entry, 8, libc::IFA_ADDRESS));
        })?;
        Ok(used)
    }
}

/// struct ifinfomsg: family, type, index, flags, change.
fn link_header(index: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header
}

fn link(kind: u16, flags: i32, index: u32) -> Message {
    Message::new(kind, flags, &link_header(index))
}

/// A lasting entry of the bridge's table: the port's guest is behind it, and nowhere else.
fn neighbour(port: &Port<'_>) -> Message {
    // struct ndmsg: family, index, state, flags, type.
    let mut header = [0; 12];
    header[0] = libc::AF_BRIDGE as u8;
    header[4..8].copy_from_slice(&port.link.to_ne_bytes());
    header[8..10].copy_from_slice(&libc::NUD_NOARP.to_ne_bytes());
    header[10] = libc::NTF_MASTER;
    Message::new(libc::RTM_NEWNEIGH, MAKE, &header).attribute(libc::NDA_LLADDR, &port.mac.bytes())
}

fn read_link(entry: &[u8]) -> Link {
    let mut found = Link {
        index: word(entry, 4),
        name: String::new(),
        kind: String::new(),
        group: 0,
    };
    for (kind, value) in attributes(entry.get(16..).unwrap_or_default()) {
        match kind {
            libc::IFLA_IFNAME => found.name = text(value),
            libc::IFLA_GROUP => found.group = word(value, 0),
            libc::IFLA_LINKINFO => {
                let kind = attributes(value).find(|(kind, _)| *kind == libc::IFLA_INFO_KIND);
                found.kind = kind.map(|(_, value)| text(value)).unwrap_or_default();
            }
            _ => {}
        }
    }
    found
}

fn text(value: &[u8]) -> String {
    let bytes = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

/// The network of a route or an address, whose attributes follow a header of `header_bytes`. The default route is in
/// nobody's way, so it is none.
fn network(entry: &[u8], header_bytes: usize, wanted: u16) -> Option<Ipv4Prefix> {
    let length = entry.get(1).copied().filter(|length| *length > 0)?;
    let (_, value) = attributes(entry.get(header_bytes..)?)
        .find(|(kind, value)| *kind == wanted && value.len() == 4)?;
    let bits = u32::from_be_bytes([value[0], value[1], value[2], value[3]]);
    let found = Ipv4Prefix::new(Ipv4Addr::from_bits(bits), length).ok()?;
    Some(found.network())
}

fn cut(alias: &str) -> &[u8] {
    &alias.as_bytes()[..alias.len().min(ALIAS_BYTES_MAX)]
}
