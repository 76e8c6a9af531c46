//! Which addresses a network gets. Pure.
//!
//! What always holds: the list of candidates is the same on every host, so that hosts whose networks are alike choose
//! alike, and a VM that moves keeps an address that fits; nothing that is in use is chosen.

use std::net::Ipv4Addr;

use dwcp_launch::address::Ipv4Prefix;
use dwcp_launch::protocol::NetworkKind;

/// Shortest and longest prefix of a network, in bits.
const LENGTHS: std::ops::RangeInclusive<u8> = 8..=30;
/// Prefix of a network that is chosen here, in bits.
const LENGTH: u8 = 24;
/// The second byte of the first candidate in 10.0.0.0/8.
const FIRST: u8 = 83;

/// Why a network cannot have its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// It is not what a network is.
    #[error("{0} is no subnet: it needs a prefix of 8 to 30 bits and no host bits after it")]
    Shape(Ipv4Prefix),
    /// Addresses with a meaning of their own.
    #[error("{0} cannot be a subnet of VMs: its addresses have another meaning")]
    Reserved(Ipv4Prefix),
    /// There is a route or an address there.
    #[error("{wanted} is in use on this host ({used}): choose another subnet")]
    Used {
        /// What was asked for.
        wanted: Ipv4Prefix,
        /// What is there.
        used: Ipv4Prefix,
    },
    /// Everything is in use.
    #[error(
        "Every private subnet that could be chosen is in use on this host: name one that may be used all the same"
    )]
    None,
}

/// What is in use on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Networks in which the host has an address: machines, or VMs, are there.
    pub joined: Vec<Ipv4Prefix>,
    /// Where routes lead; those of the networks in `joined` too.
    pub routes: Vec<Ipv4Prefix>,
}

impl Used {
    fn all(&self) -> impl Iterator<Item = &Ipv4Prefix> {
        self.joined.iter().chain(&self.routes)
    }
}

/// Checks a subnet that was asked for. An isolated network is not routed, so it is in nobody's way.
///
/// A wider route, as that of a VPN to 10.0.0.0/8, is not in the way either: the narrower one wins, and a network that a
/// client has kept must not be lost to a route that came later.
pub fn check(
    wanted: Ipv4Prefix,
    kind: NetworkKind,
    used: &Used,
) -> Result<Ipv4Prefix, SubnetError> {
    if !LENGTHS.contains(&wanted.length()) || wanted != wanted.network() {
        return Err(SubnetError::Shape(wanted));
    }
    let (first, last) = (wanted.address(), wanted.broadcast());
    let is_reserved = |address: Ipv4Addr| {
        let [head, ..] = address.octets();
        head == 0 || head >= 224 || address.is_loopback() || address.is_link_local()
    };
    if is_reserved(first) || is_reserved(last) {
        return Err(SubnetError::Reserved(wanted));
    }
    let routes = used.routes.iter();
    let mut in_the_way = routes
        .filter(|route| route.length() >= wanted.length())
        .chain(&used.joined);
    match in_the_way.find(|used| used.overlaps(wanted)) {
        Some(&used) if kind == NetworkKind::Nat => Err(SubnetError::Used { wanted, used }),
        _ => Ok(wanted),
    }
}

/// Chooses the first candidate that nothing overlaps, however wide.
pub fn choose(used: &Used) -> Result<Ipv4Prefix, SubnetError> {
    candidates()
        .find(|candidate| !used.all().any(|used| used.overlaps(*candidate)))
        .ok_or(SubnetError::None)
}

/// 10.83.0.0/24 and all after it in 10.0.0.0/8, round; then 172.16.0.0/12; then 192.168.0.0/16.
fn candidates() -> impl Iterator<Item = Ipv4Prefix> {
    let ten = (0..=255u8).map(|n| (10, n.wrapping_add(FIRST)));
    let others = (16..=31u8).map(|n| (172, n)).chain([(192, 168)]);
    ten.chain(others)
        .flat_map(|(first, second)| (0..=255u8).map(move |third| (first, second, third)))
        .filter_map(|(a, b, c)| Ipv4Prefix::new(Ipv4Addr::new(a, b, c, 0), LENGTH).ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn prefixes(texts: &[&str]) -> Vec<Ipv4Prefix> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn used_by(joined: &[&str], routes: &[&str]) -> Used {
        Used {
            joined: prefixes(joined),
            routes: prefixes(routes),
        }
    }

    #[test]
    fn the_first_that_is_free_is_chosen() {
        for (used, chosen) in [
            (&[][..], "10.83.0.0/24"),
            (&["10.83.0.128/25"], "10.83.1.0/24"),
            (&["10.83.0.0/16", "192.0.2.0/24"], "10.84.0.0/24"),
            (&["10.0.0.0/8"], "172.16.0.0/24"),
            (&["10.0.0.0/8", "172.16.0.0/12"], "192.168.0.0/24"),
        ] {
            for used in [used_by(&[], used), used_by(used, &[])] {
                assert_eq!(choose(&used), Ok(prefixes(&[chosen])[0]), "{used:?}");
            }
        }
        let all = used_by(&[], &["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]);
        assert_eq!(choose(&all), Err(SubnetError::None));
    }

    #[test]
    fn a_subnet_that_was_asked_for_is_checked() {
        let used = used_by(&["10.1.0.0/16"], &["10.1.0.0/16", "10.2.0.0/16"]);
        let check = |text: &str, kind| check(text.parse().unwrap(), kind, &used);
        // Beside everything; within a route that is wider.
        for good in ["10.3.0.0/16", "10.2.3.0/24"] {
            assert!(check(good, NetworkKind::Nat).is_ok(), "{good}");
        }
        // Within a network that the host is in; the same as a route; around one.
        for bad in ["10.1.2.0/24", "10.2.0.0/16", "10.2.0.0/15"] {
            let found = check(bad, NetworkKind::Nat);
            assert!(matches!(found, Err(SubnetError::Used { .. })), "{bad}");
            assert!(check(bad, NetworkKind::Isolated).is_ok(), "{bad}");
        }
        for bad in ["10.2.0.1/16", "10.2.0.0/31", "10.0.0.0/7"] {
            assert!(
                matches!(check(bad, NetworkKind::Nat), Err(SubnetError::Shape(_))),
                "{bad}"
            );
        }
        for bad in [
            "127.1.0.0/24",
            "169.254.1.0/24",
            "224.0.0.0/24",
            "0.0.0.0/8",
            "240.0.0.0/8",
        ] {
            let found = check(bad, NetworkKind::Isolated);
            assert!(matches!(found, Err(SubnetError::Reserved(_))), "{bad}");
        }
    }

    proptest! {
        // Each case looks through tens of thousands of candidates at worst.
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn what_is_chosen_is_free_and_fit(used in proptest::collection::vec((any::<u32>(), 4u8..=32), 0..40)) {
            let routes = used
                .into_iter()
                .map(|(bits, length)| Ipv4Prefix::new(Ipv4Addr::from_bits(bits), length).unwrap())
                .collect();
            let used = Used { joined: Vec::new(), routes };
            if let Ok(chosen) = choose(&used) {
                prop_assert!(!used.all().any(|used| used.overlaps(chosen)));
                prop_assert_eq!(check(chosen, NetworkKind::Nat, &used), Ok(chosen));
            }
        }
    }
}
