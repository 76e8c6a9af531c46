//! Names and addresses of networks, as they travel in requests: MAC addresses, IPv4 prefixes, network names.
//!
//! What always holds: a value of these types is well-formed, so it can stand in a file name, a netlink message or a
//! rule without being looked at again. They are text in JSON. This module must not know who uses which address.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name of a network, in bytes.
pub const NETWORK_NAME_BYTES_MAX: usize = 32;

/// The address of one interface on an Ethernet: unicast, not zero; `02:00:00:0a:0b:0c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

/// The text or the bytes are no [`Mac`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "A MAC address is six bytes as in 02:00:00:0a:0b:0c, not all zero, and its first byte is even (unicast)"
)]
pub struct BadMac;

impl Mac {
    /// Checks six bytes.
    pub fn new(bytes: [u8; 6]) -> Result<Self, BadMac> {
        let is_unicast = bytes[0] & 1 == 0;
        if is_unicast && bytes != [0; 6] {
            Ok(Self(bytes))
        } else {
            Err(BadMac)
        }
    }

    /// The six bytes, in the order in which they are sent.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs.next().filter(|pair| {
                pair.len() == 2 && pair.bytes().all(|digit| digit.is_ascii_hexdigit())
            });
            *byte = u8::from_str_radix(pair.ok_or(BadMac)?, 16).map_err(|_| BadMac)?;
        }
        if pairs.next().is_some() {
            return Err(BadMac);
        }
        Self::new(bytes)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An IPv4 address and the length of its network's prefix: `10.83.0.5/24`. As a network, its host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Prefix {
    address: Ipv4Addr,
    length: u8,
}

/// The text is no [`Ipv4Prefix`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("An address with its prefix looks like 10.83.0.5/24; the prefix has 0 to 32 bits")]
pub struct BadPrefix;

impl Ipv4Prefix {
    /// Every address.
    pub const ANY: Self = Self {
        address: Ipv4Addr::UNSPECIFIED,
        length: 0,
    };

    /// Puts the two together; the length has at most 32 bits.
    pub fn new(address: Ipv4Addr, length: u8) -> Result<Self, BadPrefix> {
        if length <= 32 {
            Ok(Self { address, length })
        } else {
            Err(BadPrefix)
        }
    }

    /// The address.
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// The prefix's length, in bits.
    pub fn length(self) -> u8 {
        self.length
    }

    /// The network: the same prefix with no host bits.
    pub fn network(self) -> Self {
        Self {
            address: Ipv4Addr::from_bits(self.address.to_bits() & self.mask()),
            length: self.length,
        }
    }

    /// The network's last address.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !self.mask())
    }

    /// The network's first address for an interface.
    pub fn first_host(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network().address.to_bits().saturating_add(1))
    }

    /// Whether the address is within the network.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask() == self.address.to_bits() & self.mask()
    }

    /// Whether any address is within both networks.
    pub fn overlaps(self, other: Self) -> bool {
        let wider = if self.length < other.length {
            self
        } else {
            other
        };
        wider.contains(self.address) && wider.contains(other.address)
    }

    fn mask(self) -> u32 {
        u32::MAX
            .checked_shl(32 - u32::from(self.length))
            .unwrap_or(0)
    }
}

impl FromStr for Ipv4Prefix {
    type Err = BadPrefix;

    fn from_str(text: &str) -> Result<Self, BadPrefix> {
        let (address, length) = text.split_once('/').ok_or(BadPrefix)?;
        if length.len() > 2 || !length.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(BadPrefix);
        }
        let address = address.parse().map_err(|_| BadPrefix)?;
        Self::new(address, length.parse().map_err(|_| BadPrefix)?)
    }
}

impl fmt::Display for Ipv4Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// Names one network of this host: 1 to [`NETWORK_NAME_BYTES_MAX`] of `a-z`, `0-9` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetworkName(String);

/// The text is no [`NetworkName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "A network's name has 1 to {NETWORK_NAME_BYTES_MAX} characters, each one of a-z, 0-9 and -"
)]
pub struct BadNetworkName;

impl NetworkName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NetworkName {
    type Err = BadNetworkName;

    fn from_str(text: &str) -> Result<Self, BadNetworkName> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let right_length = (1..=NETWORK_NAME_BYTES_MAX).contains(&text.len());
        if right_length && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadNetworkName)
        }
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! text_in_json {
    ($kind:ty, $error:ty) => {
        impl TryFrom<String> for $kind {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, $error> {
                text.parse()
            }
        }

        impl From<$kind> for String {
            fn from(value: $kind) -> Self {
                value.to_string()
            }
        }
    };
}

text_in_json!(Mac, BadMac);
text_in_json!(Ipv4Prefix, BadPrefix);
text_in_json!(NetworkName, BadNetworkName);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Ipv4Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn mac_addresses_are_unicast_and_six_pairs() {
        let mac: Mac = "02:00:00:0A:0b:0c".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:00:0a:0b:0c");
        for bad in [
            "",
            "02:00:00:0a:0b",
            "02:00:00:0a:0b:0c:0d",
            "02:00:00:0a:0b:0c:",
            "00:00:00:00:00:00",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "+2:00:00:0a:0b:0c",
            "2:0:0:a:b:c",
            "02-00-00-0a-0b-0c",
        ] {
            assert_eq!(bad.parse::<Mac>(), Err(BadMac), "{bad}");
        }
    }

    #[test]
    fn prefixes_know_their_network() {
        let one = prefix("10.83.1.5/24");
        assert_eq!(one.network(), prefix("10.83.1.0/24"));
        assert_eq!(one.broadcast().to_string(), "10.83.1.255");
        assert_eq!(one.first_host().to_string(), "10.83.1.1");
        assert!(one.contains("10.83.1.255".parse().unwrap()));
        assert!(!one.contains("10.83.2.0".parse().unwrap()));
        assert!(one.overlaps(prefix("10.0.0.0/8")) && prefix("10.0.0.0/8").overlaps(one));
        assert!(!one.overlaps(prefix("10.83.0.0/24")));
        assert!(prefix("0.0.0.0/0").overlaps(one));
        assert_eq!(prefix("1.2.3.4/32").network(), prefix("1.2.3.4/32"));
        for bad in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0/8",
            "x/8",
        ] {
            assert_eq!(bad.parse::<Ipv4Prefix>(), Err(BadPrefix), "{bad}");
        }
    }

    #[test]
    fn network_names_are_bounded_and_plain() {
        let longest = "a".repeat(NETWORK_NAME_BYTES_MAX);
        for good in ["default", "a-1", longest.as_str()] {
            assert_eq!(good.parse::<NetworkName>().unwrap().as_str(), good);
        }
        let too_long = "a".repeat(NETWORK_NAME_BYTES_MAX + 1);
        for bad in ["", "A", "a b", "a\"", "a\n", too_long.as_str()] {
            assert_eq!(bad.parse::<NetworkName>(), Err(BadNetworkName), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(bits: u32, length in 0u8..=32, bytes: [u8; 6]) {
            let one = Ipv4Prefix::new(Ipv4Addr::from_bits(bits), length).unwrap();
            prop_assert_eq!(one.to_string().parse(), Ok(one));
            if let Ok(mac) = Mac::new(bytes) {
                prop_assert_eq!(mac.to_string().parse(), Ok(mac));
            }
        }

        #[test]
        fn overlap_is_what_it_says(a: u32, b: u32, length_a in 0u8..=32, length_b in 0u8..=32) {
            let one = Ipv4Prefix::new(Ipv4Addr::from_bits(a), length_a).unwrap();
            let other = Ipv4Prefix::new(Ipv4Addr::from_bits(b), length_b).unwrap();
            let (first, last) = (one.network().address(), one.broadcast());
            let apart = last < other.network().address() || other.broadcast() < first;
            prop_assert_eq!(one.overlaps(other), !apart);
            prop_assert_eq!(other.overlaps(one), !apart);
        }

        #[test]
        fn no_text_harms(text in ".{0,64}") {
            let _ = text.parse::<Mac>();
            let _ = text.parse::<Ipv4Prefix>();
            let _ = text.parse::<NetworkName>();
        }
    }
}
