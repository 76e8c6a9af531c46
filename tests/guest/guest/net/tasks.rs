//! What is done once with a network: an address by DHCP, datagrams to a peer that sends them back, how fast that goes.

use core::fmt::Write;

use super::dhcp::{self, CLIENT_PORT, Kind, Lease, MESSAGE_BYTES, SERVER_PORT};
use super::packet::EVERYONE;
use super::stack::Stack;
use crate::bench::Bench;
use crate::clock::{self, Clock};
use crate::orders::Address;
use crate::params::Params;
use crate::pattern;
use crate::serial::Serial;
use crate::virtio::{Fault, Platform};

const DHCP_MS: u64 = 20_000;
const DHCP_AGAIN_MS: u64 = 1000;
const SEND_PORT: u16 = 40_000;
const SEND_AHEAD: u64 = 16;
/// An echo that does not come in this time is lost.
const LOST_MS: u64 = 2000;
const BENCH_AHEAD: usize = 64;
const SMALL_BYTES: usize = 64;

/// Bytes of a datagram that say which one it is.
const NUMBER_BYTES: usize = 8;

/// Fills a datagram: its number, then the pattern of seed and number.
pub fn fill_datagram(seed: u64, number: u64, payload: &mut [u8]) {
    if let Some((head, rest)) = payload.split_first_chunk_mut::<NUMBER_BYTES>() {
        *head = number.to_le_bytes();
        pattern::fill(seed.wrapping_add(number), 0, rest);
    }
}

/// The number of a datagram, if the rest of it is as it was filled and `bytes` long.
pub fn datagram_number(seed: u64, bytes: usize, payload: &[u8]) -> Option<u64> {
    let (head, rest) = payload.split_first_chunk::<NUMBER_BYTES>()?;
    let number = u64::from_le_bytes(*head);
    let is_whole =
        payload.len() == bytes && pattern::differences(seed.wrapping_add(number), 0, rest) == 0;
    is_whole.then_some(number)
}

/// An address as it is written.
struct Dotted(Address);

impl core::fmt::Display for Dotted {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [a, b, c, d] = self.0;
        write!(f, "{a}.{b}.{c}.{d}")
    }
}

/// Gets an address, takes it into use, and tells of it.
pub fn obtain_address(stack: &mut Stack, params: &Params, clock: Clock) {
    let number = stack.net.number;
    let _ = match ask(stack, params, clock) {
        Some(lease) => {
            (stack.address, stack.prefix) = (lease.address, lease.prefix);
            stack.router = lease.router;
            writeln!(
                Serial,
                "guest: net {number}: dhcp address {}/{} router {} dns {} server {} lease_s {}",
                Dotted(lease.address),
                lease.prefix,
                Dotted(lease.router),
                Dotted(lease.dns),
                Dotted(lease.server),
                lease.lease_s
            )
        }
        None => writeln!(Serial, "guest: net {number}: no dhcp answer"),
    };
}

fn ask(stack: &mut Stack, params: &Params, clock: Clock) -> Option<Lease> {
    let mac = stack.net.mac;
    let [.., a, b, c, d] = mac;
    let transaction = u32::from_be_bytes([a, b, c, d]) ^ params.seed as u32;
    let deadline = clock.deadline_ms(DHCP_MS);
    let mut again = clock.deadline_ms(0);
    let mut offer = None;
    stack.address = [0; 4];
    while !deadline.is_over() {
        if again.is_over() {
            again = clock.deadline_ms(DHCP_AGAIN_MS);
            stack.send(
                CLIENT_PORT,
                (EVERYONE, SERVER_PORT),
                MESSAGE_BYTES,
                |message| {
                    dhcp::write(message, &mac, transaction, offer.as_ref());
                },
            );
            stack.net.flush();
        }
        let Some(Some(datagram)) = stack.poll() else {
            continue;
        };
        let answer = dhcp::read(stack.payload(&datagram), &mac, transaction)
            .filter(|_| datagram.port == CLIENT_PORT);
        match answer {
            Some(lease) if lease.kind == Kind::Offer && offer.is_none() => {
                offer = Some(lease);
                again = clock.deadline_ms(0);
            }
            Some(lease) if lease.kind == Kind::Acknowledged => return Some(lease),
            Some(lease) if lease.kind == Kind::Refused => offer = None,
            _ => {}
        }
    }
    None
}

/// Sends datagrams to the peer, and counts what comes back.
pub fn send(stack: &mut Stack, params: &Params, clock: Clock) {
    let orders = &params.orders;
    let bytes = (orders.net_bytes as usize).clamp(NUMBER_BYTES, stack.payload_max());
    let (mut sent, mut echoed, mut bad, mut lost) = (0, 0, 0, 0);
    let mut patience = clock.deadline_ms(LOST_MS);
    while echoed + bad + lost < orders.net_send {
        let is_room =
            sent < orders.net_send && sent.saturating_sub(echoed + bad + lost) < SEND_AHEAD;
        if is_room
            && stack.send(SEND_PORT, orders.peer, bytes, |payload| {
                fill_datagram(params.seed, sent, payload);
            })
        {
            stack.net.flush();
            sent += 1;
        }
        if let Some(Some(datagram)) = stack.poll()
            && datagram.port == SEND_PORT
        {
            match datagram_number(params.seed, bytes, stack.payload(&datagram)) {
                Some(number) if number < sent => echoed += 1,
                _ => bad += 1,
            }
            patience = clock.deadline_ms(LOST_MS);
        } else if patience.is_over() {
            if sent == 0 {
                break;
            }
            lost = sent.saturating_sub(echoed + bad);
            patience = clock.deadline_ms(LOST_MS);
        }
    }
    let _ = writeln!(
        Serial,
        "guest: net {}: send sent {sent} echoed {echoed} bad {bad} lost {lost}",
        stack.net.number
    );
}

/// Measures echoes: one short datagram at a time, then many long ones.
pub fn bench(stack: &mut Stack, params: &Params, platform: &mut Platform) -> Result<(), Fault> {
    let mut bench = Bench::new(platform.clock, &mut platform.arena)?;
    let long = stack.payload_max();
    for (name, ahead, bytes) in [("udp-1", 1, SMALL_BYTES), ("udp-64", BENCH_AHEAD, long)] {
        measure(stack, params, ahead, bytes, platform.clock, &mut bench);
        bench.tell(format_args!("net {} {name}", stack.net.number));
    }
    Ok(())
}

fn measure(
    stack: &mut Stack,
    params: &Params,
    ahead: usize,
    bytes: usize,
    clock: Clock,
    bench: &mut Bench,
) {
    let orders = &params.orders;
    // Another port each time, so that late echoes of the last measurement are not counted in this one.
    let port = SEND_PORT + ahead as u16;
    let end = clock.deadline_ms(orders.net_bench_s.saturating_mul(1000));
    let mut began = [0; BENCH_AHEAD];
    let mut is_free = [true; BENCH_AHEAD];
    let mut patience = clock.deadline_ms(LOST_MS);
    bench.begin();
    while !end.is_over() {
        let mut is_any_sent = false;
        for slot in 0..ahead {
            if is_free[slot]
                && stack.send(port, orders.peer, bytes, |payload| {
                    payload[..8].copy_from_slice(&(slot as u64).to_le_bytes());
                })
            {
                began[slot] = clock::now();
                is_free[slot] = false;
                is_any_sent = true;
            }
        }
        if is_any_sent {
            stack.net.flush();
        }
        while let Some(received) = stack.poll() {
            let Some(datagram) = received.filter(|datagram| datagram.port == port) else {
                continue;
            };
            let head = stack.payload(&datagram).first_chunk::<NUMBER_BYTES>();
            let slot = head.map_or(usize::MAX, |head| u64::from_le_bytes(*head) as usize);
            if is_free.get(slot) == Some(&false) {
                bench.count(began[slot], bytes as u64);
                is_free[slot] = true;
                patience = clock.deadline_ms(LOST_MS);
            }
        }
        if patience.is_over() {
            is_free.fill(true);
            patience = clock.deadline_ms(LOST_MS);
        }
    }
}
