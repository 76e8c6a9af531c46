//! Seeds of what travels between hosts: preambles, frames, pages, handshakes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use dwcp_wire::frame::{self, Counts, HEADER_BYTES, Header, Kind};
use dwcp_wire::ladder::{PAGE_BYTES, PageLadder, Run};
use dwcp_wire::preamble::Preamble;
use dwcp_wire::stream::SecureStream;
use dwcp_wire::tls::{self, Identity, Use};

use crate::{Made, Seed};

/// All of them.
pub fn seeds() -> Made<Vec<Seed>> {
    let (client, server) = handshake()?;
    Ok(vec![
        ("preamble", "session", Preamble::session().encode().to_vec()),
        (
            "preamble",
            "stream",
            Preamble::stream(7, 3).encode().to_vec(),
        ),
        ("frames", "talk", talk()),
        ("receiver", "transfer", transfer()?),
        ("ladder", "batches", batches()?),
        ("guest-pages", "mixed", guest_pages()),
        ("stream", "client-hello", client),
        ("stream", "server-hello", server),
    ])
}

fn header(kind: Kind, sequence: u64, offset: u64) -> Header {
    Header {
        kind,
        transfer: 7,
        sequence,
        offset,
    }
}

fn talk() -> Vec<u8> {
    let counts = Counts {
        data_pages: 3,
        zero_pages: 4,
        state_bytes: 5,
    };
    [
        frame::ack(7, &[]),
        frame::ack(7, &[1, 2, 3]),
        frame::encode(&header(Kind::DeviceState, 1, 0), b"state"),
        frame::encode(&header(Kind::End, 2, 0), &counts.encode()),
        frame::error(7, "The transfer was aborted"),
    ]
    .concat()
}

/// Frames of a batch: two runs of zeros, text-like pages, and with `raw` a page that does not shrink.
fn batch(raw: bool) -> Made<Vec<(Kind, u64, Vec<u8>)>> {
    let mut ladder = PageLadder::new()?;
    ladder.push_zero(Run { first: 0, pages: 2 });
    ladder.push(3, &[b'a'; PAGE_BYTES]);
    ladder.push(4, &[b'b'; PAGE_BYTES]);
    if raw {
        let mut scattered = [0; PAGE_BYTES];
        let mut state = 1u64;
        for byte in &mut scattered {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
        ladder.push(6, &scattered);
    }
    ladder.push_zero(Run { first: 8, pages: 2 });
    let mut frames = Vec::new();
    ladder.finish(|encoded| {
        let payload = encoded.buffer[HEADER_BYTES..].to_vec();
        frames.push((encoded.kind, encoded.offset, payload));
    })?;
    Ok(frames)
}

fn transfer() -> Made<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut sequence = 1;
    for (kind, offset, payload) in batch(false)? {
        bytes.extend(frame::encode(&header(kind, sequence, offset), &payload));
        sequence += 1;
    }
    bytes.extend(frame::encode(
        &header(Kind::DeviceState, sequence, 0),
        b"state",
    ));
    let counts = Counts {
        data_pages: 2,
        zero_pages: 4,
        state_bytes: 5,
    };
    bytes.extend(frame::encode(
        &header(Kind::End, sequence + 1, 0),
        &counts.encode(),
    ));
    Ok(bytes)
}

fn batches() -> Made<Vec<u8>> {
    let mut bytes = 1000u32.to_le_bytes().to_vec();
    for (kind, offset, payload) in batch(true)? {
        bytes.push(u8::from(kind == Kind::Pages));
        bytes.extend(u32::try_from(offset / PAGE_BYTES as u64)?.to_le_bytes());
        bytes.extend(u16::try_from(payload.len())?.to_le_bytes());
        bytes.extend(payload);
    }
    Ok(bytes)
}

/// Steps: gap, form, and what the form needs.
fn guest_pages() -> Vec<u8> {
    let mut bytes = vec![0, 0, 9, 0]; // ten zero pages
    bytes.extend([1, 6, b'a', b'b', b'c', b'd', b'e', b'f']); // text
    bytes.extend([0, 255, 1, 2, 3, 4]); // scattered
    bytes.extend([0, 1, 0]); // raw from here on
    bytes.extend([0, 5, 100, 0, 9]); // one byte
    bytes.extend([0, 2]); // the batch ends
    bytes
}

/// What a client and what a server says first.
fn handshake() -> Made<(Vec<u8>, Vec<u8>)> {
    let made = rcgen::generate_simple_self_signed(["fuzz".to_owned()])?;
    let identity = Identity::new(made.cert.der().to_vec(), made.signing_key.serialize_der());
    let pin = [identity.fingerprint()];
    let config = tls::client(&identity, &pin, Use::Transfer)?;
    let hello = said(&[], |socket| {
        SecureStream::connect(socket, config, PATIENCE).is_ok()
    })?;
    let config = tls::server(&identity, &pin, Use::Transfer)?;
    let answer = said(&hello, |socket| {
        SecureStream::accept(socket, config, PATIENCE).is_ok()
    })?;
    Ok(([&[0], &hello[..]].concat(), [&[1], &answer[..]].concat()))
}

const PATIENCE: Duration = Duration::from_secs(5);

/// What one side says to a peer that says `heard` and hangs up.
fn said(heard: &[u8], side: impl FnOnce(TcpStream) -> bool) -> Made<Vec<u8>> {
    let (ours, mut theirs) = UnixStream::pair()?;
    theirs.write_all(heard)?;
    theirs.shutdown(Shutdown::Write)?;
    side(TcpStream::from(OwnedFd::from(ours)));
    let mut bytes = Vec::new();
    theirs.read_to_end(&mut bytes)?;
    Ok(bytes)
}
