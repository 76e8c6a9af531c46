//! A launcher in a namespace that plays the host, and stand-ins with taps that play guests on its networks.
#![allow(dead_code, clippy::unwrap_used)]

use std::cell::RefCell;
use std::net::{Ipv4Addr, UdpSocket};

use dwcp_launch::address::Ipv4Prefix;
use dwcp_launch::protocol::{Inside, Needs, Network, NetworkKind, NicSpec};
use serde_json::json;

use super::frames::{self, Arp, End, Mac};
use super::namespaces::{Namespace, prefix};
use super::{Launcher, MEMORY_BYTES, StandIn, id, wait_for};

/// The host's address towards the outside, and the outside's.
pub const HOST: &str = "198.51.100.1";
pub const OUTSIDE: &str = "198.51.100.2";

/// A host, and a machine outside.
pub struct Bed {
    // The launcher goes first.
    pub launcher: Launcher,
    pub host: Namespace,
    pub outside: Namespace,
    pub prefix: String,
}

impl Bed {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// With another program than the stand-in for VMMs.
    pub fn with_vmm(vmm: &str) -> Self {
        Self::make(|_| {}, Some(vmm))
    }

    /// With a host that is prepared before its launcher starts.
    pub fn with(prepare: impl FnOnce(&Namespace)) -> Self {
        Self::make(prepare, None)
    }

    fn make(prepare: impl FnOnce(&Namespace), vmm: Option<&str>) -> Self {
        let prefix = prefix();
        let host = Namespace::new(&prefix, "host");
        let outside = Namespace::new(&prefix, "outside");
        let addresses = [HOST, OUTSIDE].map(|address| format!("{address}/24"));
        host.join(&outside, ["up0", "up0"], [&addresses[0], &addresses[1]]);
        prepare(&host);
        Self {
            launcher: Launcher::start_in_with_vmm(&host, &prefix, &[], vmm),
            host,
            outside,
            prefix,
        }
    }

    pub fn network(&self, name: &str, kind: NetworkKind) -> Network {
        let mut client = self.launcher.client();
        client
            .ensure_network(&name.parse().unwrap(), kind, None)
            .unwrap()
    }

    /// A guest with one interface, whose last bytes are `last`.
    pub fn guest(&self, network: &str, subnet: Ipv4Prefix, last: u8) -> Guest {
        self.guest_with(&nic(network, subnet, last), last, last)
    }

    /// A guest whose interface's last bytes are `last`, and which takes them for `inside`.
    pub fn mapped(&self, network: &str, subnet: Ipv4Prefix, last: u8, inside: u8) -> Guest {
        let of = nic(network, subnet, inside);
        let spec = NicSpec {
            inside: Some(Inside {
                mac: of.mac,
                address: of.address,
            }),
            ..nic(network, subnet, last)
        };
        self.guest_with(&spec, last, inside)
    }

    fn guest_with(&self, spec: &NicSpec, last: u8, inside: u8) -> Guest {
        let name = format!("vm-{}-{last}", spec.network);
        let vmm = spawn(&self.launcher, &name, std::slice::from_ref(spec));
        let known = spec.inside.map_or(spec.address, |inside| inside.address);
        Guest {
            vmm: RefCell::new(vmm),
            name,
            mac: frames::mac(inside),
            address: known.address(),
            seen: RefCell::default(),
        }
    }

    /// Whether the host forwards IPv4.
    pub fn forwards(&self) -> bool {
        let switch = self.host.run("cat", &["/proc/sys/net/ipv4/ip_forward"]);
        switch.trim() == "1"
    }

    /// A socket of the host's, or of the machine outside.
    pub fn socket(&self, namespace: &Namespace, address: &str) -> UdpSocket {
        let socket = namespace.enter(|| UdpSocket::bind(address)).unwrap();
        socket.set_read_timeout(Some(super::DEADLINE)).unwrap();
        socket
    }

    /// Takes away what looks at frames from taps.
    pub fn open_bridges(&self) {
        self.empty_table("bridge");
    }

    /// Takes away what looks at packets to and through the host.
    pub fn open_host(&self) {
        self.empty_table("inet");
        // It is not there when no NAT network is.
        let guard = ["flush", "table", "ip", "dwcp-forwarding"];
        let mut nft = self.host.command("/usr/sbin/nft");
        let _ = nft.args(guard).output();
    }

    /// A table that is gone would be put back.
    fn empty_table(&self, family: &str) {
        let arguments = ["flush", "table", family, &self.prefix];
        self.host.run("/usr/sbin/nft", &arguments);
    }

    /// Every link and rule of the launcher's that is there.
    pub fn leftovers(&self) -> Vec<String> {
        let links = self.host.run("ip", &["-o", "link", "show"]);
        let links = links
            .lines()
            .filter_map(|line| line.split([':', '@']).nth(1));
        let rules = self.host.rules();
        let marks = [self.prefix.as_str(), "dwcp-forwarding"];
        links
            .chain(rules.lines())
            .filter(|line| marks.iter().any(|mark| line.contains(mark)))
            .map(|line| line.trim().to_owned())
            .collect()
    }
}

impl Drop for Bed {
    /// A test that failed, or killed its launcher, leaves a lock that is no one's.
    fn drop(&mut self) {
        if self.launcher.process.try_wait().unwrap().is_none() {
            self.launcher.stop();
        }
        for lock in locks(&self.prefix) {
            let _ = std::fs::remove_file(lock);
        }
    }
}

/// The files by which launchers with this prefix hold its names.
pub fn locks(prefix: &str) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir("/run").unwrap().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().ends_with(&format!(".{prefix}.lock")))
        .collect()
}

/// An interface whose addresses end with `last`.
pub fn nic(network: &str, subnet: Ipv4Prefix, last: u8) -> NicSpec {
    let address = Ipv4Addr::from_bits(subnet.address().to_bits() + u32::from(last));
    NicSpec {
        mac: frames::text(frames::mac(last)).parse().unwrap(),
        address: Ipv4Prefix::new(address, subnet.length()).unwrap(),
        network: network.parse().unwrap(),
        inside: None,
    }
}

/// A stand-in with taps.
pub fn spawn(launcher: &Launcher, name: &str, nics: &[NicSpec]) -> StandIn {
    let config = json!({"taps": nics.len()});
    StandIn::start(|ours| {
        let mut client = launcher.client();
        client.spawn_vmm_with(
            &id(name),
            Needs::memory(MEMORY_BYTES),
            None,
            config,
            &[ours],
            nics,
        )
    })
    .unwrap()
}

/// A stand-in with one tap.
pub struct Guest {
    vmm: RefCell<StandIn>,
    pub name: String,
    pub mac: Mac,
    pub address: Ipv4Addr,
    seen: RefCell<Vec<Vec<u8>>>,
}

impl Guest {
    pub fn tap(&self) -> String {
        let name = &self.vmm.borrow().report["taps"][0]["name"];
        name.as_str().unwrap().to_owned()
    }

    pub fn ask(&self, order: &str) -> serde_json::Value {
        self.vmm.borrow_mut().ask(order)
    }

    pub fn ask_last(&self, order: &str) {
        self.vmm.borrow_mut().ask_last(order);
    }

    pub fn end(&self, port: u16) -> End {
        (self.mac, self.address, port)
    }

    pub fn send(&self, frame: &[u8]) {
        let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(self.ask(&format!("send 0 {hex}")), true);
    }

    /// Sends a datagram from `count` ports, from `first` on.
    pub fn say_from_ports(&self, first: u16, count: u16, to: End, text: &str) {
        let frame = frames::udp(self.end(first), to, text);
        let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(self.ask(&format!("ports 0 {hex} {count}")), true);
    }

    pub fn say(&self, to: End, text: &str) {
        self.send(&frames::udp(self.end(5000), to, text));
    }

    /// Every frame that has come so far.
    pub fn seen(&self) -> Vec<Vec<u8>> {
        let answer = self.ask("frames 0");
        let mut seen = self.seen.borrow_mut();
        for frame in answer.as_array().unwrap() {
            let hex = frame.as_str().unwrap();
            let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            seen.push((0..hex.len()).step_by(2).map(byte).collect());
        }
        seen.clone()
    }

    pub fn has_heard(&self, text: &str) -> bool {
        self.seen().iter().any(|frame| frames::carries(frame, text))
    }

    pub fn hears(&self, text: &str) {
        wait_for(text, || self.has_heard(text));
    }

    /// Asks who has the address, and waits for the answer.
    pub fn resolve(&self, about: Ipv4Addr) -> Mac {
        self.send(&self.question(about));
        let mut found = None;
        wait_for("an ARP answer", || {
            let seen = self.seen();
            found = seen
                .iter()
                .find_map(|frame| frames::arp_answer(frame, about));
            found.is_some()
        });
        found.unwrap()
    }

    pub fn question(&self, about: Ipv4Addr) -> Vec<u8> {
        frames::arp(Arp {
            is_reply: false,
            from: self.mac,
            sender: (self.mac, self.address),
            target: about,
        })
    }

    /// Answers the first question about this guest's address, from whom the question names.
    pub fn answer_arp(&self) {
        let asked = |frame: &Vec<u8>| {
            frame.get(12..14) == Some(&[8, 6]) && frame.get(38..42) == Some(&self.address.octets())
        };
        let mut asker = None;
        wait_for("a question about the guest", || {
            asker = self.seen().into_iter().find(|frame| asked(frame));
            asker.is_some()
        });
        let asker = asker.unwrap();
        let target = Ipv4Addr::new(asker[28], asker[29], asker[30], asker[31]);
        self.send(&frames::arp(Arp {
            is_reply: true,
            from: self.mac,
            sender: (self.mac, self.address),
            target,
        }));
    }
}
