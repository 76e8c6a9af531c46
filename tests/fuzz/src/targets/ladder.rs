//! The page ladder: what a peer sends as pages, and what a guest may have in its pages.

use std::collections::BTreeMap;

use dwcp_wire::frame::{HEADER_BYTES, Kind};
use dwcp_wire::ladder::{
    BATCH_PAGES_MAX, Batch, Decoder, Encoded, PAGE_BYTES, PageLadder, RUNS_MAX, Run,
};
use dwcp_wire::level::Level;

use crate::input::Input;

/// Payloads from a peer, one after the other, for one memory.
pub(super) fn decode(input: &[u8]) {
    let mut input = Input(input);
    let memory_pages = u64::from(input.u32());
    let Ok(mut decoder) = Decoder::new(memory_pages) else {
        panic!("there is memory for a decompressor");
    };
    while !input.is_empty() {
        let kind = match input.u8() {
            0 => Kind::ZeroRuns,
            255 => Kind::End,
            _ => Kind::Pages,
        };
        let page = u64::from(input.u32());
        // Some offsets are no page's.
        let offset = page * PAGE_BYTES as u64 + u64::from(page == 77);
        let payload = input.piece();
        if let Ok(batch) = decoder.decode(kind, offset, payload) {
            check_batch(&batch, kind, memory_pages);
        }
    }
}

/// Runs ascend inside memory and never touch; content is there for each page, or for none.
pub(super) fn check_batch(batch: &Batch<'_>, kind: Kind, memory_pages: u64) {
    let mut end = None;
    let (mut pages, mut runs) = (0, 0);
    for (run, content) in batch.runs() {
        assert!(
            end.is_none_or(|end| run.first > end),
            "{run:?} after {end:?}"
        );
        assert!(run.pages > 0 && run.end() <= memory_pages);
        match content {
            Some(content) => assert_eq!(content.len() as u64, run.pages * PAGE_BYTES as u64),
            None => assert_eq!(kind, Kind::ZeroRuns),
        }
        end = Some(run.end());
        pages += run.pages;
        runs += 1;
    }
    assert_eq!(pages, batch.pages());
    assert!(kind != Kind::Pages || pages <= BATCH_PAGES_MAX as u64);
    assert!((1..=RUNS_MAX).contains(&runs));
}

/// Pages of a guest, as the source of a transfer reads them: what arrives is what was sent.
pub(super) fn encode(input: &[u8]) {
    let mut input = Input(input);
    let Ok(mut ladder) = PageLadder::new() else {
        panic!("there is memory for a compressor");
    };
    let mut sent = Sent::default();
    let mut page = 0;
    while !input.is_empty() {
        if ladder.is_full() {
            deliver(&mut ladder, &mut sent);
        }
        page += u64::from(input.u8());
        match input.u8() {
            0 => {
                let pages = u64::from(input.u16()) + 1;
                ladder.push_zero(Run { first: page, pages });
                sent.zeros += pages;
                page += pages;
            }
            1 => {
                let level = i32::from(input.u8() % 9);
                ladder.set_level(match level {
                    0 => Level::Raw,
                    level => Level::Zstd(level),
                });
            }
            2 => deliver(&mut ladder, &mut sent),
            form => {
                let content = page_of(form, &mut input);
                ladder.push(page, &content);
                if content.iter().all(|byte| *byte == 0) {
                    sent.zeros += 1;
                } else {
                    sent.pages.insert(page, content);
                }
                page += 1;
            }
        }
    }
    deliver(&mut ladder, &mut sent);
}

#[derive(Default)]
struct Sent {
    pages: BTreeMap<u64, [u8; PAGE_BYTES]>,
    zeros: u64,
}

/// A page made of a few bytes: repeated, counted on, or scattered.
fn page_of(form: u8, input: &mut Input<'_>) -> [u8; PAGE_BYTES] {
    let mut content = [0; PAGE_BYTES];
    match form % 3 {
        0 => {
            let piece = input.take(usize::from(form));
            for (byte, from) in content.iter_mut().zip(piece.iter().cycle()) {
                *byte = *from;
            }
        }
        1 => {
            let mut state = u64::from(input.u32()) | 1;
            for byte in &mut content {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                *byte = (state >> 56) as u8 % form;
            }
        }
        _ => {
            let at = usize::from(input.u16()) % PAGE_BYTES;
            content[at] = input.u8();
        }
    }
    content
}

/// Ends the batch, and reads it as the other side does.
fn deliver(ladder: &mut PageLadder, sent: &mut Sent) {
    const MEMORY_PAGES: u64 = 1 << 40;
    let Ok(mut decoder) = Decoder::new(MEMORY_PAGES) else {
        panic!("there is memory for a decompressor");
    };
    let mut read = |encoded: Encoded| {
        let payload = &encoded.buffer[HEADER_BYTES..];
        let batch = match decoder.decode(encoded.kind, encoded.offset, payload) {
            Ok(batch) => batch,
            Err(error) => panic!("what was encoded is refused: {error}"),
        };
        check_batch(&batch, encoded.kind, MEMORY_PAGES);
        assert_eq!(batch.pages(), encoded.pages);
        for (run, content) in batch.runs() {
            let Some(content) = content else {
                sent.zeros -= run.pages;
                continue;
            };
            for (page, content) in (run.first..).zip(content.chunks(PAGE_BYTES)) {
                let was = sent.pages.remove(&page);
                assert!(was.is_some_and(|was| was == content), "page {page}");
            }
        }
    };
    if let Err(error) = ladder.finish(&mut read) {
        panic!("{error}");
    }
    assert!(ladder.is_empty() && ladder.room() > 0);
    assert!(sent.pages.is_empty() && sent.zeros == 0, "not all arrived");
}
