//! A stream is only with the peer that was pinned, carries every byte, and ends cleanly or not at all.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use common::{identity, pair};
use dwcp_wire::preamble::{PREAMBLE_BYTES, Preamble, PreambleError};
use dwcp_wire::stream::{SecureStream, StreamError};
use dwcp_wire::tls::{self, Fingerprint, Identity, ServerConfig, Use};
use dwcp_wire::{frame, tcp};
use proptest::prelude::*;

const PATIENCE: Duration = Duration::from_secs(20);

type Ends = (
    Result<SecureStream, StreamError>,
    Result<SecureStream, StreamError>,
);

fn handshake(near: (&Identity, Fingerprint, Use), far: (&Identity, Fingerprint, Use)) -> Ends {
    let (near_socket, far_socket) = pair();
    let near_config = tls::client(near.0, &[near.1], near.2).unwrap();
    let far_config = tls::server(far.0, &[far.1], far.2).unwrap();
    let accept = std::thread::spawn(move || SecureStream::accept(far_socket, far_config, PATIENCE));
    let connected = SecureStream::connect(near_socket, near_config, PATIENCE);
    // In TLS 1.3 a client learns last that the server refused it: with the first bytes that it reads.
    let connected = connected.and_then(|mut stream| {
        let ready = stream.wait(None, true, Duration::from_millis(200))?;
        if ready.readable {
            stream.fill()?;
        }
        Ok(stream)
    });
    (connected, accept.join().unwrap())
}

#[test]
fn only_the_pinned_peer_is_accepted() {
    let (left, right, stranger) = (identity(), identity(), identity());
    let (l, r, s) = (
        left.fingerprint(),
        right.fingerprint(),
        stranger.fingerprint(),
    );
    let transfer = Use::Transfer;
    let (near, far) = handshake((&left, r, transfer), (&right, l, transfer));
    assert!(near.is_ok() && far.is_ok());
    // The server is not whom the client pinned; the client learns it, and so does the server.
    let (near, far) = handshake((&left, s, transfer), (&right, l, transfer));
    assert!(matches!(near, Err(StreamError::Tls(_))) && far.is_err());
    // The client is not whom the server pinned.
    let (near, far) = handshake((&stranger, r, transfer), (&right, l, transfer));
    assert!(near.is_err() && matches!(far, Err(StreamError::Tls(_))));
    // A session is no transfer.
    let (near, far) = handshake((&left, r, Use::Session), (&right, l, transfer));
    assert!(near.is_err() && far.is_err());
}

#[test]
fn a_stolen_certificate_without_its_key_is_refused() {
    let (left, right, thief) = (identity(), identity(), identity());
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = {
        let parameters = rcgen::CertificateParams::new(vec!["thief".into()]).unwrap();
        parameters.self_signed(&key).unwrap()
    };
    let other_key = rcgen::KeyPair::generate().unwrap().serialize_der();
    let mismatched = Identity::new(certificate.der().to_vec(), other_key);
    let config = tls::client(&mismatched, &[right.fingerprint()], Use::Transfer);
    assert!(config.is_err(), "rustls itself refuses to show it");
    let (near, far) = handshake(
        (&thief, right.fingerprint(), Use::Transfer),
        (&right, left.fingerprint(), Use::Transfer),
    );
    assert!(near.is_err() && far.is_err());
}

#[test]
fn every_byte_arrives_and_is_counted() {
    let (left, right) = (identity(), identity());
    let (near, far) = handshake(
        (&left, right.fingerprint(), Use::Transfer),
        (&right, left.fingerprint(), Use::Transfer),
    );
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    tcp::tune(near.socket()).unwrap();
    let bytes: Vec<u8> = (0..5_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let expected = bytes.clone();
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        loop {
            far.wait(None, true, PATIENCE).unwrap();
            match far.fill() {
                Ok(_) => {
                    got.extend_from_slice(far.received());
                    far.consume(far.received().len());
                }
                Err(StreamError::Closed) => return (got, far.read_bytes()),
                Err(error) => panic!("{error}"),
            }
        }
    });
    for piece in bytes.chunks(300_000) {
        near.queue(piece).unwrap();
        while near.queued_bytes() > 0 {
            near.wait(None, false, PATIENCE).unwrap();
            near.flush().unwrap();
        }
    }
    let written = near.written_bytes();
    let socket = near.socket().try_clone().unwrap();
    near.close();
    let (got, read) = reader.join().unwrap();
    assert!(got == expected);
    let info = tcp::info(&socket).unwrap();
    // The close is an alert of 24 bytes.
    assert_eq!(read, written + 24);
    assert_eq!(info.sent_bytes - info.resent_bytes, read);
    assert!(info.rtt_us > 0 && info.segment_bytes > 0);
}

#[test]
fn a_byte_changed_on_the_way_ends_the_stream() {
    let (left, right) = (identity(), identity());
    let (near_socket, mut near_proxy) = pair();
    let (mut far_proxy, far_socket) = pair();
    let near_config = tls::client(&left, &[right.fingerprint()], Use::Transfer).unwrap();
    let far_config = tls::server(&right, &[left.fingerprint()], Use::Transfer).unwrap();
    let accept = std::thread::spawn(move || SecureStream::accept(far_socket, far_config, PATIENCE));
    // Two directions; the one from the client changes a bit of what comes after the handshake.
    let (mut back_from, mut back_to) = (
        far_proxy.try_clone().unwrap(),
        near_proxy.try_clone().unwrap(),
    );
    let back = std::thread::spawn(move || std::io::copy(&mut back_from, &mut back_to));
    let (damage, damage_now) = std::sync::mpsc::sync_channel::<()>(1);
    let forward = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(got) = near_proxy.read(&mut buffer) {
            if got == 0 {
                break;
            }
            if damage_now.try_recv().is_ok() {
                buffer[got / 2] ^= 0x10;
            }
            if far_proxy.write_all(&buffer[..got]).is_err() {
                break;
            }
        }
    });
    let mut near = SecureStream::connect(near_socket, near_config, PATIENCE).unwrap();
    let mut far = accept.join().unwrap().unwrap();
    damage.send(()).unwrap();
    near.queue(&frame::ack(1, &[1, 2, 3])).unwrap();
    near.flush().unwrap();
    far.wait(None, true, PATIENCE).unwrap();
    assert!(matches!(far.fill(), Err(StreamError::Tls(_))));
    assert!(far.received().is_empty());
    drop((near, far));
    forward.join().unwrap();
    back.join().unwrap().unwrap();
}

/// The first flight of an honest client.
fn hello() -> Vec<u8> {
    let (left, right) = (identity(), identity());
    let config = tls::client(&left, &[right.fingerprint()], Use::Transfer).unwrap();
    let (near, mut far) = pair();
    let client =
        std::thread::spawn(move || SecureStream::connect(near, config, Duration::from_secs(1)));
    let mut hello = vec![0; 4096];
    let length = far.read(&mut hello).unwrap();
    hello.truncate(length);
    drop(far);
    assert!(client.join().unwrap().is_err());
    hello
}

proptest! {
    #![proptest_config(common::cases(64))]

    #[test]
    fn a_stranger_s_handshake_is_an_error_and_nothing_else(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        tail in proptest::collection::vec(any::<u8>(), 0..200),
        cut in any::<prop::sample::Index>(),
    ) {
        static HELLO: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        static CONFIG: std::sync::OnceLock<Arc<ServerConfig>> = std::sync::OnceLock::new();
        let mut bytes = HELLO.get_or_init(hello).clone();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        bytes.extend_from_slice(&tail);
        let config = CONFIG.get_or_init(|| {
            let pins = [identity().fingerprint()];
            tls::server(&identity(), &pins, Use::Transfer).unwrap()
        });
        let (near, mut far) = pair();
        far.write_all(&bytes).unwrap();
        far.shutdown(std::net::Shutdown::Write).unwrap();
        prop_assert!(SecureStream::accept(near, Arc::clone(config), PATIENCE).is_err());
    }
}

#[test]
fn a_silent_peer_costs_a_deadline() {
    let (near, far) = pair();
    let deadline = Duration::from_millis(50);
    let (left, right) = (identity(), identity());
    let config = tls::server(&right, &[left.fingerprint()], Use::Transfer).unwrap();
    let error = Preamble::read(&near, deadline).unwrap_err();
    assert!(matches!(error, PreambleError::Deadline), "{error}");
    let error = SecureStream::accept(near, config, deadline).unwrap_err();
    assert!(matches!(error, StreamError::Deadline), "{error}");
    drop(far);
}

#[test]
fn a_preamble_is_read_to_its_last_byte_and_no_further() {
    let (mut near, mut far) = pair();
    Preamble::stream(0xfeed, 3).write(&mut near).unwrap();
    near.write_all(b"next").unwrap();
    let preamble = Preamble::read(&far, PATIENCE).unwrap();
    assert_eq!(preamble, Preamble::stream(0xfeed, 3));
    let mut next = [0; 4];
    far.read_exact(&mut next).unwrap();
    assert_eq!(&next, b"next");
    near.write_all(&[0; PREAMBLE_BYTES]).unwrap();
    let error = Preamble::read(&far, PATIENCE).unwrap_err();
    assert!(matches!(error, PreambleError::Foreign), "{error}");
}

#[test]
fn fingerprints_are_hexadecimal() {
    let fingerprint = identity().fingerprint();
    let text = fingerprint.to_string();
    assert_eq!(text.len(), 64);
    assert_eq!(text.parse::<Fingerprint>().unwrap(), fingerprint);
    let json = serde_json::to_string(&fingerprint).unwrap();
    assert_eq!(
        serde_json::from_str::<Fingerprint>(&json).unwrap(),
        fingerprint
    );
    for bad in ["", "00", &format!("{}zz", &text[2..]), &format!("{text}0")] {
        assert!(bad.parse::<Fingerprint>().is_err());
    }
}

#[test]
fn pacing_is_set() {
    let (near, mut far) = pair();
    tcp::set_pacing(&near, Some(2_000_000)).unwrap();
    let sink = std::thread::spawn(move || std::io::copy(&mut far, &mut std::io::sink()));
    let start = std::time::Instant::now();
    (&near).write_all(&vec![7; 1_000_000]).unwrap();
    near.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(sink.join().unwrap().unwrap(), 1_000_000);
    // A lower bound on a paced transfer holds however busy the machine is.
    assert!(start.elapsed() > Duration::from_millis(200));
}
