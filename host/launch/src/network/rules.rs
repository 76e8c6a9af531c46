//! The packet filter's rules for all networks, as the text that `nft` takes.
//!
//! What always holds:
//! - a frame from a tap passes only with the MAC and the IPv4 address that the set of `filter` has for that tap; one
//!   from a tap that is not in the set does not pass; neither does IPv6, a VLAN's tag, or a DHCP server's answer;
//! - what comes from a guest reaches of this host only the gateway's echo, and answers to what the host began;
//! - guests of a NAT network reach what is outside, but no link-local address, no other network of ours and not each
//!   other; what is outside reaches them only to answer;
//! - a guest has a bounded number of connections through NAT, so it cannot use up the host's;
//! - guests of an isolated network reach each other and nothing else.
//!
//! The text is built from checked names and addresses only. This module must not know how rules get into the kernel.

use std::fmt::Write;
use std::net::Ipv4Addr;

use dwcp_launch::address::Ipv4Prefix;
use dwcp_launch::protocol::Inside;

use super::filter::{Identity, SET};
use super::forwarding::GUARD;
use super::links::GROUP;
use super::mapped::{GUEST, HOST, Mapped};
use super::names::Prefix;

/// Most elements of the set: two for each of four NICs of 256 VMs.
const ELEMENTS_MAX: usize = 2048;
/// Most addresses whose connections are counted; the kernel drops those that have none.
const ADDRESSES_MAX: usize = 65_535;

/// Most connections of one VM through NAT at a time. The kernel's table of connections is the whole host's.
const FLOWS_MAX: usize = 4096;

/// One network, as the rules know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruled<'a> {
    /// Its bridge.
    pub bridge: &'a str,
    /// Its addresses.
    pub subnet: Ipv4Prefix,
    /// The host's address in it; an isolated network has none.
    pub gateway: Option<Ipv4Addr>,
}

/// Replaces whatever rules there are for this prefix.
pub fn replace(prefix: &Prefix, networks: &[Ruled<'_>], identities: &[Identity<'_>]) -> String {
    let mut text = remove(prefix);
    text.push_str(&at_the_taps(prefix, identities));
    text.push_str(&in_the_host(prefix, networks));
    text
}

/// Removes all rules for this prefix, whether there are any or not.
pub fn remove(prefix: &Prefix) -> String {
    ["bridge", "inet"]
        .map(|family| format!("table {family} {prefix}\ndelete table {family} {prefix}\n"))
        .concat()
}

fn at_the_taps(prefix: &Prefix, identities: &[Identity<'_>]) -> String {
    let taps = prefix.taps();
    let elements: Vec<String> = identities
        .iter()
        .flat_map(|one| {
            [one.address, Ipv4Addr::UNSPECIFIED]
                .map(|address| format!("\"{}\" . {} . {address}", one.tap, one.mac))
        })
        .collect();
    let elements = match &elements[..] {
        [] => String::new(),
        some => format!("\t\telements = {{ {} }}\n", some.join(", ")),
    };
    // The type of a frame is looked at where it stands, so that a VLAN's tag is a type of its own.
    format!(
        r#"table bridge {prefix} {{
	set {SET} {{
		type ifname . ether_addr . ipv4_addr
		size {ELEMENTS_MAX}
{elements}	}}
	chain from_guests {{
		type filter hook prerouting priority -300; policy accept;
		iifname != "{taps}" accept
		@ll,96,16 0x0800 jump ipv4_frames
		@ll,96,16 0x0806 jump arp_frames
		drop
	}}
	chain ipv4_frames {{
		udp sport 67 drop
		udp dport 68 drop
		ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 iifname . ether saddr . ip saddr @{SET} accept
		ip saddr 0.0.0.0 drop
		iifname . ether saddr . ip saddr @{SET} accept
		drop
	}}
	chain arp_frames {{
		arp htype != 1 drop
		arp ptype != 0x0800 drop
		arp hlen != 6 drop
		arp plen != 4 drop
		arp saddr ip 0.0.0.0 arp operation != request drop
		iifname . ether saddr . arp saddr ip @{SET} iifname . arp saddr ether . arp saddr ip @{SET} accept
		drop
	}}
	chain to_guests {{
		type filter hook output priority -300; policy accept;
		oifname "{taps}" udp sport 67 drop
		oifname "{taps}" @ll,96,16 0x86dd drop
	}}
}}
"#
    )
}

fn in_the_host(prefix: &Prefix, networks: &[Ruled<'_>]) -> String {
    let taps = prefix.taps();
    let bridges: Vec<String> = networks
        .iter()
        .map(|network| format!("\"{}\"", network.bridge))
        .collect();
    let bridges = bridges.join(", ");
    let (mut input, mut forward, mut nat) = (String::new(), String::new(), String::new());
    for network in networks {
        // Writing to a String cannot fail.
        let _ = match network.gateway {
            Some(gateway) => through_nat(
                network,
                gateway,
                &bridges,
                &mut input,
                &mut forward,
                &mut nat,
            ),
            None => isolated(network, &mut input, &mut forward),
        };
    }
    // A frame to a reserved address goes round the bridge and comes from the tap itself: such never pass.
    format!(
        r#"table inet {prefix} {{
	set flows {{
		type ipv4_addr
		size {ADDRESSES_MAX}
		flags dynamic
	}}
	chain to_host {{
		type filter hook input priority -10; policy accept;
		iifname "{taps}" drop
{input}	}}
	chain through_host {{
		type filter hook forward priority -10; policy accept;
		iifname "{taps}" drop
{forward}	}}
	chain leaving {{
		type nat hook postrouting priority 100; policy accept;
{nat}	}}
}}
"#
    )
}

fn through_nat(
    network: &Ruled<'_>,
    gateway: Ipv4Addr,
    bridges: &str,
    input: &mut String,
    forward: &mut String,
    nat: &mut String,
) -> std::fmt::Result {
    let Ruled { bridge, subnet, .. } = network;
    write!(
        input,
        r#"		iifname "{bridge}" ct state established,related accept
		iifname "{bridge}" ip daddr {gateway} icmp type echo-request accept
		iifname "{bridge}" drop
"#
    )?;
    write!(
        forward,
        r#"		iifname "{bridge}" oifname {{ {bridges} }} drop
		iifname "{bridge}" ct state new add @flows {{ ip saddr ct count over {FLOWS_MAX} }} drop
		iifname "{bridge}" ip saddr {subnet} ip daddr != 169.254.0.0/16 accept
		iifname "{bridge}" drop
		oifname "{bridge}" ct state established,related accept
		oifname "{bridge}" drop
"#
    )?;
    writeln!(
        nat,
        "\t\tip saddr {subnet} oifname != \"{bridge}\" masquerade"
    )
}

/// Where the kernel shows bridged frames to these rules too (`bridge-nf-call-iptables`), they come and go by the same
/// bridge.
fn isolated(network: &Ruled<'_>, input: &mut String, forward: &mut String) -> std::fmt::Result {
    let bridge = network.bridge;
    writeln!(input, "\t\tiifname \"{bridge}\" drop")?;
    write!(
        forward,
        r#"		iifname "{bridge}" oifname "{bridge}" accept
		iifname "{bridge}" drop
		oifname "{bridge}" drop
"#
    )
}

/// The rules of a namespace in which one guest's addresses are mapped, as `mapped` says.
pub fn mapping(mapped: &Mapped) -> String {
    let Inside { mac, address } = mapped.inside;
    let (inside, own) = (address.address(), mapped.address.address());
    format!(
        r#"table inet dwcp {{
	chain from_guest {{
		type filter hook prerouting priority -300; policy accept;
		iifname != "{GUEST}" accept
		ether saddr != {mac} drop
		meta nfproto != ipv4 drop
		ip saddr != {inside} drop
		udp sport 67 drop
		udp dport 68 drop
	}}
	chain arriving {{
		type nat hook prerouting priority -100; policy accept;
		iifname "{HOST}" ip daddr {own} dnat ip to {inside}
	}}
	chain to_itself {{
		type filter hook input priority 0; policy drop;
	}}
	chain through {{
		type filter hook forward priority 0; policy drop;
		iifname "{GUEST}" ct state new ct count over {FLOWS_MAX} drop
		iifname "{GUEST}" oifname "{HOST}" accept
		iifname "{HOST}" oifname "{GUEST}" accept
	}}
	chain leaving {{
		type nat hook postrouting priority 100; policy accept;
		oifname "{HOST}" ip saddr {inside} snat ip to {own}
	}}
}}
"#
    )
}

/// Lets this host forward for launchers' networks and for nothing else.
pub fn guard() -> String {
    format!(
        r#"table ip {GUARD}
delete table ip {GUARD}
table ip {GUARD} {{
	chain others {{
		type filter hook forward priority -5; policy accept;
		iifgroup {GROUP} accept
		oifgroup {GROUP} accept
		meta iifkind "bridge" meta oifkind "bridge" accept
		drop
	}}
}}
"#
    )
}

/// Removes what [`guard`] made, whether it is there or not.
pub fn unguard() -> String {
    format!("table ip {GUARD}\ndelete table ip {GUARD}\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_rules_are_those_that_were_read_by_a_person() {
        let prefix: Prefix = "dwcp".parse().unwrap();
        let networks = [
            Ruled {
                bridge: "dwcp0",
                subnet: "10.83.0.0/24".parse().unwrap(),
                gateway: Some("10.83.0.1".parse().unwrap()),
            },
            Ruled {
                bridge: "dwcp1",
                subnet: "10.9.0.0/16".parse().unwrap(),
                gateway: None,
            },
        ];
        let identities = [Identity {
            tap: "dwcp-0-0",
            mac: "02:00:00:00:00:05".parse().unwrap(),
            address: "10.83.0.5".parse().unwrap(),
        }];
        let text = replace(&prefix, &networks, &identities);
        let golden = include_str!("../../tests/golden/rules.nft");
        assert_eq!(
            text, golden,
            "if this is meant: tests/golden/rules.nft\n{text}"
        );
    }

    #[test]
    fn the_rules_of_a_mapping_are_those_that_were_read_by_a_person() {
        let text = mapping(&Mapped {
            outer: "dwcp-0-0".into(),
            mac: "02:00:00:00:00:09".parse().unwrap(),
            address: "10.83.0.9/24".parse().unwrap(),
            gateway: Some("10.83.0.1".parse().unwrap()),
            inside: Inside {
                mac: "02:00:00:00:00:05".parse().unwrap(),
                address: "10.83.0.5/24".parse().unwrap(),
            },
        });
        let golden = include_str!("../../tests/golden/mapping.nft");
        assert_eq!(
            text, golden,
            "if this is meant: tests/golden/mapping.nft\n{text}"
        );
    }

    #[test]
    fn without_networks_there_is_nothing_to_let_through() {
        let text = replace(&"dwcp".parse().unwrap(), &[], &[]);
        assert!(!text.contains("elements") && !text.contains("masquerade"));
        assert!(text.contains(r#"iifname "dwcp-*" drop"#));
    }
}
