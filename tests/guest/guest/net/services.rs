//! What goes on with a network beside the work: echoing, and one verified datagram after the other to a peer.

use core::fmt::Write;

use super::stack::{Datagram, Stack};
use super::tasks::{datagram_number, fill_datagram};
use crate::clock::{self, Clock, Pace};
use crate::params::Params;
use crate::serial::Serial;

/// Frames that are looked at in one step.
const FRAMES_PER_STEP: usize = 16;
const LOOP_PORT: u16 = 40_200;
const LOST_US: u64 = 1_000_000;

/// The services of one interface.
#[derive(Debug)]
pub struct NetServices {
    stack: Stack,
    clock: Clock,
    seed: u64,
    echo_port: Option<u16>,
    echoed: u64,
    repeat: Option<Repeat>,
}

/// Datagrams to the peer, one at a time.
#[derive(Debug)]
struct Repeat {
    pace: Pace,
    peer: ([u8; 4], u16),
    bytes: usize,
    /// Number of the one that is under way.
    under_way: Option<u64>,
    began: u64,
    sent: u64,
    echoed: u64,
    bad: u64,
    lost: u64,
    slowest: u64,
}

impl NetServices {
    /// Takes the interface over, if there is anything to go on with.
    pub fn new(stack: Stack, params: &Params, clock: Clock) -> Option<Self> {
        let orders = &params.orders;
        let repeat = orders.net_loop.then(|| Repeat {
            pace: Pace::new(orders.io_rate, clock.ticks_per_s(), clock::now()),
            peer: orders.peer,
            bytes: (orders.net_bytes as usize).clamp(8, stack.payload_max()),
            under_way: None,
            began: 0,
            sent: 0,
            echoed: 0,
            bad: 0,
            lost: 0,
            slowest: 0,
        });
        if repeat.is_none() && orders.net_echo.is_none() {
            return None;
        }
        if let Some(port) = orders.net_echo {
            let _ = writeln!(Serial, "guest: net {}: echo port {port}", stack.net.number);
        }
        Some(Self {
            stack,
            clock,
            seed: params.seed,
            echo_port: orders.net_echo,
            echoed: 0,
            repeat,
        })
    }

    /// Looks at what has arrived, and sends if it is time to.
    pub fn step(&mut self, now: u64) {
        for _ in 0..FRAMES_PER_STEP {
            match self.stack.poll() {
                Some(Some(datagram)) => self.take(&datagram, now),
                Some(None) => {}
                None => break,
            }
        }
        let Some(repeat) = self.repeat.as_mut() else {
            return;
        };
        if repeat.under_way.is_some() {
            let waited = now.saturating_sub(repeat.began);
            if self.clock.microseconds(waited) > LOST_US {
                repeat.lost += 1;
                repeat.under_way = None;
            }
        } else if repeat.pace.is_due(now) {
            let number = repeat.sent;
            let seed = self.seed;
            if self
                .stack
                .send(LOOP_PORT, repeat.peer, repeat.bytes, |payload| {
                    fill_datagram(seed, number, payload);
                })
            {
                self.stack.net.flush();
                repeat.under_way = Some(number);
                repeat.began = now;
                repeat.sent += 1;
            }
        }
    }

    fn take(&mut self, datagram: &Datagram, now: u64) {
        if Some(datagram.port) == self.echo_port {
            self.echoed += u64::from(self.stack.echo(datagram));
        }
        let Some(repeat) = self.repeat.as_mut() else {
            return;
        };
        if datagram.port != LOOP_PORT {
            return;
        }
        let payload = self.stack.payload(datagram);
        match datagram_number(self.seed, repeat.bytes, payload) {
            Some(number) if repeat.under_way == Some(number) => {
                repeat.echoed += 1;
                repeat.slowest = repeat.slowest.max(now.saturating_sub(repeat.began));
                repeat.under_way = None;
            }
            // It was taken for lost.
            Some(number) if number < repeat.sent => {}
            _ => repeat.bad += 1,
        }
    }

    /// Tells what was done so far.
    pub fn tell(&mut self) {
        let number = self.stack.net.number;
        if self.echo_port.is_some() {
            let echoed = self.echoed;
            let _ = writeln!(Serial, "guest: net {number}: echoed {echoed}");
        }
        if let Some(repeat) = self.repeat.as_mut() {
            let slow_us = self.clock.microseconds(repeat.slowest);
            let _ = writeln!(
                Serial,
                "guest: net {number}: loop sent {} echoed {} bad {} lost {} slow_us {slow_us}",
                repeat.sent, repeat.echoed, repeat.bad, repeat.lost
            );
            repeat.slowest = 0;
        }
    }
}
