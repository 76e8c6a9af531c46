//! One address on one interface: ARP, echo, datagrams.
//!
//! Asks for what it does not know and goes on; whoever sends tries again.

use core::ops::Range;

use super::packet::{self, End, Mac, Packet, Sum, UDP_OVERHEAD, UDP_PAYLOAD_AT};
use super::{FRAME_BYTES, Net};
use crate::clock::{Clock, Deadline};
use crate::orders::Address;

const NEIGHBOURS: usize = 4;
const ASK_AGAIN_MS: u64 = 100;
const NOWHERE: Address = [0; 4];

/// An interface with an address.
#[derive(Debug)]
pub struct Stack {
    /// The interface.
    pub net: Net,
    /// Its address; zeros for none.
    pub address: Address,
    /// Bits of it that name the network.
    pub prefix: u8,
    /// The way to other networks; zeros for none.
    pub router: Address,
    clock: Clock,
    neighbours: [Option<(Address, Mac)>; NEIGHBOURS],
    next_neighbour: usize,
    ask_again: Deadline,
    frame: [u8; FRAME_BYTES],
}

/// A datagram that arrived.
#[derive(Debug, Clone)]
pub struct Datagram {
    /// Who sent it.
    pub from: End,
    /// To which of our ports.
    pub port: u16,
    place: Range<usize>,
}

impl Stack {
    /// An interface and what the command line says of its address.
    pub fn new(net: Net, address: Address, prefix: u8, router: Address, clock: Clock) -> Self {
        Self {
            net,
            address,
            prefix,
            router,
            clock,
            neighbours: [None; NEIGHBOURS],
            next_neighbour: 0,
            ask_again: clock.deadline_ms(0),
            frame: [0; FRAME_BYTES],
        }
    }

    /// The longest payload of a datagram.
    pub fn payload_max(&self) -> usize {
        usize::from(self.net.mtu) - UDP_OVERHEAD
    }

    /// What a datagram carries, until the next is taken.
    pub fn payload(&self, datagram: &Datagram) -> &[u8] {
        &self.frame[datagram.place.clone()]
    }

    /// Takes a frame that has arrived; answers questions of others. `None`: nothing has arrived; `Some(None)`: it was
    /// no datagram for us.
    pub fn poll(&mut self) -> Option<Option<Datagram>> {
        let received = self.net.receive(&mut self.frame)?;
        let own = self.end(0);
        let frame = &self.frame[..received.bytes];
        let packet = packet::read(frame, received.check_sum);
        match packet {
            Packet::ArpRequest { mac, from, of } if of == self.address && of != NOWHERE => {
                self.net.send(false, |frame| {
                    packet::write_arp(frame, &own.mac, &own.address, Some(&mac), &from)
                });
                self.net.flush();
            }
            Packet::ArpReply { mac, address } => self.learn(address, mac),
            Packet::Ping { from, to, message } if to.address == self.address => {
                self.net.send(false, |frame| {
                    packet::write_pong(frame, &own, &from, message)
                });
                self.net.flush();
            }
            Packet::Udp { from, to, payload } => {
                let is_ours = to.address == self.address || self.address == NOWHERE;
                let start = payload.as_ptr() as usize - frame.as_ptr() as usize;
                let place = start..start + payload.len();
                return Some(is_ours.then_some(Datagram {
                    from,
                    port: to.port,
                    place,
                }));
            }
            _ => {}
        }
        Some(None)
    }

    fn end(&self, port: u16) -> End {
        End {
            mac: self.net.mac,
            address: self.address,
            port,
        }
    }

    fn learn(&mut self, address: Address, mac: Mac) {
        let known = self
            .neighbours
            .iter()
            .position(|n| n.is_some_and(|(known, _)| known == address));
        let place = known.unwrap_or(self.next_neighbour % NEIGHBOURS);
        self.neighbours[place] = Some((address, mac));
        if known.is_none() {
            self.next_neighbour += 1;
        }
    }

    /// Who is to be sent what goes to an address.
    fn next_hop(&self, address: Address) -> Address {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32)));
        let mask = mask.unwrap_or(0);
        let network = |address| u32::from_be_bytes(address) & mask;
        if network(address) == network(self.address) || self.router == NOWHERE {
            address
        } else {
            self.router
        }
    }

    /// The link address for an address; asks for it if it is not known.
    fn resolve(&mut self, address: Address) -> Option<Mac> {
        if address == packet::EVERYONE {
            return Some(packet::BROADCAST);
        }
        let hop = self.next_hop(address);
        let known = self.neighbours.iter().flatten().find(|(of, _)| *of == hop);
        if let Some((_, mac)) = known {
            return Some(*mac);
        }
        if self.ask_again.is_over() {
            self.ask_again = self.clock.deadline_ms(ASK_AGAIN_MS);
            let own = self.end(0);
            self.net.send(false, |frame| {
                packet::write_arp(frame, &own.mac, &own.address, None, &hop)
            });
            self.net.flush();
        }
        None
    }

    /// Sends a datagram of `bytes` bytes that `write` fills; answers whether it went. Follow it by `net.flush()`.
    pub fn send(
        &mut self,
        from_port: u16,
        to: (Address, u16),
        bytes: usize,
        write: impl FnOnce(&mut [u8]),
    ) -> bool {
        let (address, port) = to;
        match self.resolve(address) {
            Some(mac) => {
                let to = End { mac, address, port };
                self.send_to(from_port, &to, bytes, write)
            }
            None => false,
        }
    }

    fn send_to(
        &mut self,
        from_port: u16,
        to: &End,
        bytes: usize,
        write: impl FnOnce(&mut [u8]),
    ) -> bool {
        let from = self.end(from_port);
        let bytes = bytes.min(self.payload_max());
        let sum = if self.net.sums_for_us() {
            Sum::Begun
        } else {
            Sum::Whole
        };
        self.net.send(sum == Sum::Begun, |frame| {
            write(&mut frame[UDP_PAYLOAD_AT..UDP_PAYLOAD_AT + bytes]);
            packet::write_udp(frame, &from, to, bytes, sum)
        })
    }

    /// Sends a datagram back to where it came from; answers whether it went.
    pub fn echo(&mut self, datagram: &Datagram) -> bool {
        let mut copy = [0; FRAME_BYTES];
        let payload = self.payload(datagram);
        let bytes = payload.len();
        copy[..bytes].copy_from_slice(payload);
        let went = self.send_to(datagram.port, &datagram.from, bytes, |to| {
            to.copy_from_slice(&copy[..to.len()]);
        });
        self.net.flush();
        went
    }
}
