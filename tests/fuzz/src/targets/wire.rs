//! What a peer host sends in the clear and inside TLS: preambles and frames.
//!
//! Checksums are no secret, so each input is read as it is and once more with its checksums made right: a search cannot
//! guess them.

use std::ops::Range;

use dwcp_wire::frame::{
    self, ACKS_MAX, Counts, ERROR_BYTES_MAX, Frame, HEADER_BYTES, Kind, PAYLOAD_BYTES_MAX,
};
use dwcp_wire::preamble::{PREAMBLE_BYTES, Preamble};

const PREAMBLE_CRC_AT: usize = PREAMBLE_BYTES - 4;
const FRAME_LENGTH_AT: Range<usize> = 32..36;
const FRAME_CRC_AT: Range<usize> = 36..40;

/// The head of a connection.
pub(super) fn preamble(input: &[u8]) {
    check_preamble(input);
    if let Some(mut bytes) = input.first_chunk::<PREAMBLE_BYTES>().copied() {
        let crc = crc32c::crc32c(&bytes[..PREAMBLE_CRC_AT]);
        bytes[PREAMBLE_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        check_preamble(&bytes);
    }
}

fn check_preamble(bytes: &[u8]) {
    if let Ok(preamble) = Preamble::decode(bytes) {
        // What is accepted is exactly what this version writes.
        assert_eq!(preamble.encode()[..], bytes[..PREAMBLE_BYTES]);
    }
}

/// A stream of frames.
pub(super) fn frames(input: &[u8]) {
    read_frames(input);
    read_frames(&with_checksums(input));
}

fn read_frames(mut bytes: &[u8]) {
    while let Ok(Some((frame, taken))) = frame::decode(bytes) {
        assert_eq!(frame::encode(&frame.header, frame.payload), bytes[..taken]);
        read_payload(&frame);
        bytes = &bytes[taken..];
    }
}

fn read_payload(frame: &Frame<'_>) {
    let payload = frame.payload;
    match frame.header.kind {
        Kind::End => {
            if let Ok(counts) = Counts::decode(payload) {
                assert_eq!(counts.encode(), payload);
            }
        }
        Kind::Ack => {
            if let Ok(sequences) = frame::decode_ack(payload) {
                let sequences: Vec<u64> = sequences.collect();
                assert!(sequences.len() <= ACKS_MAX);
                let again = frame::ack(frame.header.transfer, &sequences);
                assert_eq!(again[HEADER_BYTES..], *payload);
            }
        }
        Kind::Error => {
            let text = frame::decode_error(payload);
            assert!(text.chars().count() <= ERROR_BYTES_MAX);
            assert!(!text.chars().any(char::is_control));
        }
        Kind::Pages | Kind::ZeroRuns | Kind::DeviceState => {}
    }
}

/// The same bytes, read as frames one after the other, each with the right checksum.
pub(super) fn with_checksums(input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    let mut rest = &mut bytes[..];
    while rest.len() >= HEADER_BYTES {
        let length = rest[FRAME_LENGTH_AT].iter().rev();
        let length = length.fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        let end = HEADER_BYTES + length;
        if length > PAYLOAD_BYTES_MAX || end > rest.len() {
            break;
        }
        let (whole, later) = rest.split_at_mut(end);
        whole[FRAME_CRC_AT].fill(0);
        let crc = crc32c::crc32c(whole);
        whole[FRAME_CRC_AT].copy_from_slice(&crc.to_le_bytes());
        rest = later;
    }
    bytes
}
