//! Everything that is encoded decodes to the same, and nothing that a peer can send panics or is taken for valid.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::cases;
use dwcp_wire::frame::{self, Counts, FrameError, HEADER_BYTES, Header, Kind, PAYLOAD_BYTES_MAX};
use dwcp_wire::ladder::{
    BATCH_PAGES_MAX, Decoder, Encoded, LadderError, PAGE_BYTES, PageLadder, Run,
};
use dwcp_wire::level::Level;
use dwcp_wire::preamble::{PREAMBLE_BYTES, Preamble, PreambleError};
use proptest::prelude::*;

const MEMORY_PAGES: u64 = 1 << 20;

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Pages),
        Just(Kind::ZeroRuns),
        Just(Kind::DeviceState),
        Just(Kind::End),
        Just(Kind::Ack),
        Just(Kind::Error),
    ]
}

fn headers() -> impl Strategy<Value = Header> {
    (kinds(), any::<u64>(), any::<u64>(), any::<u64>()).prop_map(
        |(kind, transfer, sequence, offset)| Header {
            kind,
            transfer,
            sequence,
            offset,
        },
    )
}

/// A page, from its number and a seed: zeros, text, random, or mostly zeros.
fn page(shape: u8, seed: u64) -> [u8; PAGE_BYTES] {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut page = [0; PAGE_BYTES];
    match shape % 4 {
        0 => {}
        1 => page
            .iter_mut()
            .for_each(|byte| *byte = b"the page of a guest "[next() as usize % 20]),
        2 => page
            .chunks_exact_mut(8)
            .for_each(|word| word.copy_from_slice(&next().to_le_bytes())),
        _ => page[next() as usize % PAGE_BYTES] = 1 + next() as u8 / 2,
    }
    page
}

fn levels() -> impl Strategy<Value = Level> {
    prop_oneof![
        Just(Level::Raw),
        Just(Level::Zstd(1)),
        Just(Level::Zstd(3)),
        Just(Level::Zstd(9))
    ]
}

/// Distinct pages, ascending, some neighbours and some far apart.
fn batches() -> impl Strategy<Value = BTreeMap<u64, (u8, u64)>> {
    let number = prop_oneof![0..64u64, 0..MEMORY_PAGES];
    proptest::collection::btree_map(number, (any::<u8>(), any::<u64>()), 1..BATCH_PAGES_MAX)
}

fn encode(pages: &BTreeMap<u64, (u8, u64)>, level: Level) -> Vec<Encoded> {
    let mut ladder = PageLadder::new().unwrap();
    ladder.set_level(level);
    for (number, (shape, seed)) in pages {
        ladder.push(*number, &page(*shape, *seed));
    }
    let mut frames = Vec::new();
    ladder.finish(|encoded| frames.push(encoded)).unwrap();
    assert!(ladder.is_empty());
    frames
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn preambles_come_back(transfer: u64, stream: u16) {
        let preamble = Preamble::stream(transfer, stream);
        prop_assert_eq!(Preamble::decode(&preamble.encode()).unwrap(), preamble);
    }

    #[test]
    fn a_preamble_with_a_changed_bit_is_refused(transfer: u64, stream: u16, bit in 0..PREAMBLE_BYTES * 8) {
        let mut bytes = Preamble::stream(transfer, stream).encode();
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Preamble::decode(&bytes).is_err());
    }

    #[test]
    fn any_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let _ = Preamble::decode(&bytes);
        let _ = frame::decode(&bytes);
        let _ = Counts::decode(&bytes);
        let _ = frame::decode_ack(&bytes).map(Iterator::count);
        prop_assert!(!frame::decode_error(&bytes).chars().any(char::is_control));
        let mut decoder = Decoder::new(MEMORY_PAGES).unwrap();
        for kind in [Kind::Pages, Kind::ZeroRuns, Kind::DeviceState] {
            if let Ok(batch) = decoder.decode(kind, 0, &bytes) {
                prop_assert!(batch.runs().all(|(run, _)| run.end() <= MEMORY_PAGES));
            }
        }
    }

    #[test]
    fn frames_come_back(header in headers(), payload in proptest::collection::vec(any::<u8>(), 0..5000), tail: [u8; 7]) {
        let mut bytes = frame::encode(&header, &payload);
        let length = bytes.len();
        for short in [0, HEADER_BYTES - 1, HEADER_BYTES.min(length - 1), length - 1] {
            prop_assert_eq!(frame::decode(&bytes[..short]).unwrap(), None);
        }
        bytes.extend_from_slice(&tail);
        let (decoded, taken) = frame::decode(&bytes).unwrap().unwrap();
        prop_assert_eq!(taken, length);
        prop_assert_eq!(decoded.header, header);
        prop_assert_eq!(decoded.payload, &payload[..]);
    }

    #[test]
    fn a_frame_with_a_changed_bit_is_refused(
        header in headers(),
        payload in proptest::collection::vec(any::<u8>(), 0..600),
        at in any::<prop::sample::Index>(),
        bit in 0..8u8,
    ) {
        let mut bytes = frame::encode(&header, &payload);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        match frame::decode(&bytes) {
            // A length that grew asks for bytes that never come; it is refused when they do.
            Ok(None) => prop_assert!((32..36).contains(&at)),
            Ok(Some(_)) => prop_assert!(false, "a damaged frame was accepted"),
            Err(_) => {}
        }
        bytes.resize(HEADER_BYTES + PAYLOAD_BYTES_MAX, 0);
        prop_assert!(frame::decode(&bytes).is_err());
    }

    #[test]
    fn acks_and_counts_come_back(sequences in proptest::collection::vec(any::<u64>(), 0..1024), counts: [u64; 3]) {
        let bytes = frame::ack(7, &sequences);
        let (decoded, _) = frame::decode(&bytes).unwrap().unwrap();
        prop_assert_eq!(decoded.header.kind, Kind::Ack);
        prop_assert_eq!(frame::decode_ack(decoded.payload).unwrap().collect::<Vec<_>>(), sequences);
        let [data_pages, zero_pages, state_bytes] = counts;
        let counts = Counts { data_pages, zero_pages, state_bytes };
        prop_assert_eq!(Counts::decode(&counts.encode()).unwrap(), counts);
    }

    #[test]
    fn error_texts_are_bounded_and_short_payloads_refused(text: String) {
        let bytes = frame::error(7, &text);
        let (decoded, _) = frame::decode(&bytes).unwrap().unwrap();
        prop_assert!(decoded.payload.len() <= frame::ERROR_BYTES_MAX);
        prop_assert!(Counts::decode(&[0; 23]).is_err());
        prop_assert!(frame::decode_ack(&[0; 9]).is_err());
    }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn pages_come_back(pages in batches(), level in levels()) {
        let mut decoder = Decoder::new(MEMORY_PAGES).unwrap();
        let mut arrived = BTreeMap::new();
        let mut raw_bytes = 0;
        let mut bytes = 0;
        for encoded in encode(&pages, level) {
            prop_assert!(encoded.buffer.len() <= HEADER_BYTES + PAYLOAD_BYTES_MAX);
            bytes += encoded.buffer.len();
            let batch = decoder.decode(encoded.kind, encoded.offset, &encoded.buffer[HEADER_BYTES..]).unwrap();
            prop_assert_eq!(batch.pages(), encoded.pages);
            for (run, content) in batch.runs() {
                for index in 0..run.pages {
                    let at = index as usize * PAGE_BYTES;
                    let content = content.map_or([0; PAGE_BYTES], |bytes| bytes[at..at + PAGE_BYTES].try_into().unwrap());
                    raw_bytes += if content == [0; PAGE_BYTES] { 0 } else { PAGE_BYTES };
                    prop_assert_eq!(arrived.insert(run.first + index, content), None);
                }
            }
        }
        let expected: BTreeMap<_, _> = pages.iter().map(|(number, (shape, seed))| (*number, page(*shape, *seed))).collect();
        prop_assert!(arrived == expected);
        // Never longer than raw, but for headers and the list of pages.
        prop_assert!(bytes <= raw_bytes + 3 * (HEADER_BYTES + 4) + 6 * pages.len());
    }

    #[test]
    fn damaged_batches_stay_inside_memory(
        pages in batches(),
        level in levels(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        offset in prop_oneof![Just(0u64), any::<u64>(), (0..MEMORY_PAGES + 9).prop_map(|page| page * PAGE_BYTES as u64)],
    ) {
        let mut decoder = Decoder::new(MEMORY_PAGES).unwrap();
        for encoded in encode(&pages, level) {
            let mut payload = encoded.buffer[HEADER_BYTES..].to_vec();
            for (at, value) in &damage {
                let at = at.index(payload.len().min(64));
                payload[at] = *value;
            }
            for payload in [&payload[..], &payload[..cut.index(payload.len())]] {
                if let Ok(batch) = decoder.decode(encoded.kind, offset, payload) {
                    let mut last = None;
                    for (run, content) in batch.runs() {
                        prop_assert!(run.pages > 0 && run.end() <= MEMORY_PAGES);
                        prop_assert!(last.is_none_or(|end| end < run.first));
                        last = Some(run.end());
                        prop_assert!(content.is_none_or(|bytes| bytes.len() as u64 == run.pages * PAGE_BYTES as u64));
                    }
                }
            }
        }
    }
}

#[test]
fn versions_and_kinds_to_come_are_named() {
    let mut bytes = frame::encode(
        &Header {
            kind: Kind::End,
            transfer: 1,
            sequence: 1,
            offset: 0,
        },
        &[],
    );
    bytes[4] = 9;
    assert_eq!(frame::decode(&bytes).unwrap_err(), FrameError::Version(9));
    bytes[4] = 1;
    bytes[6] = 77;
    assert_eq!(frame::decode(&bytes).unwrap_err(), FrameError::Kind(77));
    bytes[6] = 1;
    bytes[32..36].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(
        frame::decode(&bytes).unwrap_err(),
        FrameError::TooLong(u32::MAX)
    );
    let mut preamble = Preamble::session().encode();
    preamble[4] = 9;
    let crc = crc32c::crc32c(&preamble[..28]);
    preamble[28..].copy_from_slice(&crc.to_le_bytes());
    let error = Preamble::decode(&preamble).unwrap_err();
    assert!(matches!(error, PreambleError::Version(9)), "{error}");
}

#[test]
fn gigabytes_of_zeros_are_a_few_bytes() {
    let mut ladder = PageLadder::new().unwrap();
    ladder.push_zero(Run {
        first: 0,
        pages: 1 << 18,
    });
    let mut frames = Vec::new();
    ladder.finish(|encoded| frames.push(encoded)).unwrap();
    assert_eq!(frames.len(), 1);
    assert!(frames[0].buffer.len() < HEADER_BYTES + 8);
    let payload = &frames[0].buffer[HEADER_BYTES..];
    let mut small = Decoder::new((1 << 18) - 1).unwrap();
    let refused = small.decode(Kind::ZeroRuns, 0, payload).unwrap_err();
    assert_eq!(refused, LadderError::OutOfRange);
}

#[test]
fn a_small_payload_cannot_ask_for_much_memory() {
    // A zstd frame that would unfold to far more than its pages.
    let bomb = zstd::encode_all(&vec![0u8; 64 << 20][..], 19).unwrap();
    let mut payload = vec![1, 1, 0, 1];
    payload.extend_from_slice(&bomb);
    let mut decoder = Decoder::new(MEMORY_PAGES).unwrap();
    assert_eq!(
        decoder.decode(Kind::Pages, 0, &payload).unwrap_err(),
        LadderError::Content
    );
    // 257 pages with content.
    let mut payload = vec![2, 1, 0, 0x81, 0x02];
    payload.resize(5 + 257 * PAGE_BYTES, 1);
    assert_eq!(
        decoder.decode(Kind::Pages, 0, &payload).unwrap_err(),
        LadderError::Runs
    );
}

#[test]
fn random_pages_do_not_spoil_their_neighbours() {
    let mut together = PageLadder::new().unwrap();
    let mut alone = PageLadder::new().unwrap();
    for number in 0..200 {
        let random = number % 3 == 0;
        let content = page(if random { 2 } else { 1 }, number);
        together.push(number, &content);
        if !random {
            alone.push(number, &content);
        }
    }
    let sizes = |ladder: &mut PageLadder| {
        let mut sizes = 0;
        ladder.finish(|part| sizes += part.buffer.len()).unwrap();
        sizes
    };
    let random_bytes = 67 * PAGE_BYTES;
    assert!(sizes(&mut together) <= sizes(&mut alone) + random_bytes + 500);
}
