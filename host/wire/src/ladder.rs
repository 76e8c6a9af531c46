//! The page ladder (hierarchical delta encoding): turns memory pages into frame payloads, each page by the cheapest
//! rung that holds it, and back.
//!
//! Rungs so far: *zero* (a run-length of page numbers), *compressed* (zstd over all the batch's compressible pages
//! together, so that neighbours share context), *raw*. A page is judged by a sample of its bytes: random content is
//! set aside as raw before it can spoil the statistics of its neighbours, and costs no compression time. A batch
//! whose compressible pages do not shrink after all goes raw too, so no batch is ever longer than its raw form.
//!
//! Payloads (numbers are LEB128, pages are counted from the frame's offset):
//! ```text
//! ZeroRuns:  count, count × (gap, length)
//! Pages:     rung (1 zstd, 2 raw), count, count × (gap, length), content
//! ```
//! A gap is the distance from the end of the run before; only the first may be zero, so runs ascend and never touch.
//!
//! Always holds: never lossy; decoding never panics, allocates no more than [`RUNS_MAX`] runs and
//! [`BATCH_PAGES_MAX`] pages, and yields no page outside the memory it was told of. Must not know whose memory it is.

use zstd::bulk::{Compressor, Decompressor};

use crate::frame::{self, Kind};
use crate::level::Level;

/// Bytes in a page.
pub const PAGE_BYTES: usize = 4096;
/// Most pages with content in one batch.
pub const BATCH_PAGES_MAX: usize = 256;
/// Most runs in one frame.
pub const RUNS_MAX: usize = 4096;
/// Most zero pages in one batch (4 GiB).
pub const BATCH_ZERO_PAGES_MAX: u64 = 1 << 20;

const RUNG_ZSTD: u8 = 1;
const RUNG_RAW: u8 = 2;

/// Pages that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Number of the first page.
    pub first: u64,
    /// How many there are, at least one.
    pub pages: u64,
}

impl Run {
    /// Number of the page after the last.
    pub fn end(&self) -> u64 {
        self.first + self.pages
    }
}

/// The codec failed, which only a lack of memory explains.
#[derive(Debug, thiserror::Error)]
#[error("The compressor failed")]
pub struct EncodeError(#[from] std::io::Error);

/// Why a payload is not a batch of pages.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LadderError {
    /// The frame is of a kind that has no pages, or its offset is not a page's.
    #[error("The frame does not carry pages")]
    NotPages,
    /// The list of runs is cut off, too long, empty, or not in order.
    #[error("The list of pages is malformed")]
    Runs,
    /// A page lies outside the memory.
    #[error("A page lies outside the guest's memory")]
    OutOfRange,
    /// A rung that this version does not have.
    #[error("Pages are encoded in an unknown way ({0})")]
    Rung(u8),
    /// The content is not as long as its pages.
    #[error("The content of pages has the wrong length")]
    Content,
}

/// One encoded part of a batch: a frame, sealed but for its header.
#[derive(Debug)]
pub struct Encoded {
    /// The frame's kind.
    pub kind: Kind,
    /// The frame's offset: where its first page begins in memory, in bytes.
    pub offset: u64,
    /// Pages in it.
    pub pages: u64,
    /// A buffer from [`frame::open`] with the payload appended.
    pub buffer: Vec<u8>,
}

/// What encoding a batch took, for the choice of the next level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effort {
    /// Bytes given to the compressor.
    pub compressed_from: usize,
    /// Bytes that it made of them.
    pub compressed_to: usize,
    /// Bytes set aside as raw without trying.
    pub raw: usize,
}

/// Encodes batches of pages.
pub struct PageLadder {
    zero: Vec<Run>,
    zero_pages: u64,
    dense: Vec<Run>,
    dense_content: Vec<u8>,
    raw: Vec<Run>,
    raw_content: Vec<u8>,
    level: Level,
    zstd: Compressor<'static>,
    zstd_level: i32,
}

impl std::fmt::Debug for PageLadder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageLadder")
            .field("zero_pages", &self.zero_pages)
            .field("pages", &self.content_pages())
            .finish_non_exhaustive()
    }
}

impl PageLadder {
    /// An empty batch.
    ///
    /// # Errors
    /// When the compressor cannot be made.
    pub fn new() -> Result<Self, EncodeError> {
        let zstd_level = 1;
        Ok(Self {
            zero: Vec::new(),
            zero_pages: 0,
            dense: Vec::new(),
            dense_content: Vec::new(),
            raw: Vec::new(),
            raw_content: Vec::new(),
            level: Level::Zstd(zstd_level),
            zstd: Compressor::new(zstd_level)?,
            zstd_level,
        })
    }

    /// Pages with content that are in the batch.
    pub fn content_pages(&self) -> usize {
        (self.dense_content.len() + self.raw_content.len()) / PAGE_BYTES
    }

    /// Whether nothing is in the batch.
    pub fn is_empty(&self) -> bool {
        self.zero.is_empty() && self.content_pages() == 0
    }

    /// How many further pages the batch takes, whatever they hold.
    pub fn room(&self) -> usize {
        if self.is_full() {
            return 0;
        }
        (BATCH_PAGES_MAX - self.content_pages()).min(RUNS_MAX - self.zero.len())
    }

    /// Whether the batch takes no further page.
    pub fn is_full(&self) -> bool {
        self.content_pages() >= BATCH_PAGES_MAX
            || self.zero.len() >= RUNS_MAX
            || self.zero_pages >= BATCH_ZERO_PAGES_MAX
    }

    /// Sets how the pages that are added from now on are compressed.
    pub fn set_level(&mut self, level: Level) {
        self.level = level;
    }

    /// Adds a page. Pages must come in ascending order within a batch, the content being the caller's own copy.
    ///
    /// # Panics
    /// When the batch is full or the order is broken: mistakes of the caller's.
    pub fn push(&mut self, page: u64, content: &[u8; PAGE_BYTES]) {
        assert!(!self.is_full(), "the batch is full");
        if is_zero(content) {
            self.push_zero(Run {
                first: page,
                pages: 1,
            });
        } else if self.level == Level::Raw || !is_compressible(content) {
            extend(&mut self.raw, page, 1);
            self.raw_content.extend_from_slice(content);
        } else {
            extend(&mut self.dense, page, 1);
            self.dense_content.extend_from_slice(content);
        }
    }

    /// Adds pages that are known to be zeros, as [`PageLadder::push`] would.
    ///
    /// # Panics
    /// As [`PageLadder::push`].
    pub fn push_zero(&mut self, run: Run) {
        extend(&mut self.zero, run.first, run.pages);
        self.zero_pages += run.pages;
    }

    /// Encodes the batch into at most three frames, in any order, and empties it.
    ///
    /// # Errors
    /// When the compressor fails.
    pub fn finish(&mut self, mut emit: impl FnMut(Encoded)) -> Result<Effort, EncodeError> {
        let mut effort = Effort {
            raw: self.raw_content.len(),
            ..Effort::default()
        };
        if !self.zero.is_empty() {
            emit(encode(Kind::ZeroRuns, None, &self.zero, &[]));
        }
        if !self.raw.is_empty() {
            let content = &self.raw_content;
            emit(encode(Kind::Pages, Some(RUNG_RAW), &self.raw, content));
        }
        if !self.dense.is_empty() {
            effort.compressed_from = self.dense_content.len();
            let encoded = match self.level {
                Level::Raw => None,
                Level::Zstd(level) => self.compress(level)?,
            };
            effort.compressed_to = encoded
                .as_ref()
                .map_or(effort.compressed_from, |encoded| encoded.buffer.len());
            let content = &self.dense_content;
            emit(
                encoded
                    .unwrap_or_else(|| encode(Kind::Pages, Some(RUNG_RAW), &self.dense, content)),
            );
        }
        self.zero.clear();
        self.zero_pages = 0;
        self.raw.clear();
        self.raw_content.clear();
        self.dense.clear();
        self.dense_content.clear();
        Ok(effort)
    }

    /// The compressible pages as one zstd frame, or `None` when that is not shorter.
    fn compress(&mut self, level: i32) -> Result<Option<Encoded>, EncodeError> {
        if level != self.zstd_level {
            self.zstd.set_compression_level(level)?;
            self.zstd_level = level;
        }
        let mut encoded = encode(Kind::Pages, Some(RUNG_ZSTD), &self.dense, &[]);
        let list = encoded.buffer.len();
        let bound = zstd::zstd_safe::compress_bound(self.dense_content.len());
        encoded.buffer.resize(list + bound, 0);
        let room = &mut encoded.buffer[list..];
        let written = self.zstd.compress_to_buffer(&self.dense_content, room)?;
        encoded.buffer.truncate(list + written);
        Ok((written < self.dense_content.len()).then_some(encoded))
    }
}

/// Adds pages to the runs, joining them to the last run when they follow it.
fn extend(runs: &mut Vec<Run>, first: u64, pages: u64) {
    match runs.last_mut() {
        Some(last) if last.end() == first => last.pages += pages,
        Some(last) if last.end() > first => panic!("page {first} comes after page {}", last.end()),
        _ => runs.push(Run { first, pages }),
    }
}

fn encode(kind: Kind, rung: Option<u8>, runs: &[Run], content: &[u8]) -> Encoded {
    let start = runs.first().map_or(0, |run| run.first);
    let mut buffer = frame::open(content.len() + 16 + runs.len() * 4);
    buffer.extend(rung);
    put_number(&mut buffer, runs.len() as u64);
    let mut at = start;
    for run in runs {
        put_number(&mut buffer, run.first - at);
        put_number(&mut buffer, run.pages);
        at = run.end();
    }
    buffer.extend_from_slice(content);
    Encoded {
        kind,
        offset: start * PAGE_BYTES as u64,
        pages: runs.iter().map(|run| run.pages).sum(),
        buffer,
    }
}

/// Decodes batches of pages, for one memory.
pub struct Decoder {
    memory_pages: u64,
    runs: Vec<Run>,
    content: Vec<u8>,
    zstd: Decompressor<'static>,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder")
            .field("memory_pages", &self.memory_pages)
            .finish_non_exhaustive()
    }
}

/// Pages that have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch<'a> {
    runs: &'a [Run],
    content: Option<&'a [u8]>,
}

impl<'a> Batch<'a> {
    /// How many pages there are.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|run| run.pages).sum()
    }

    /// The runs, ascending and inside memory, each with its content; `None` means zeros.
    pub fn runs(&self) -> impl Iterator<Item = (Run, Option<&'a [u8]>)> {
        let mut rest = self.content;
        self.runs.iter().map(move |run| {
            let content = rest.map(|bytes| {
                // A batch with content has at most `BATCH_PAGES_MAX` pages, all of them there.
                let (head, tail) = bytes.split_at(run.pages as usize * PAGE_BYTES);
                rest = Some(tail);
                head
            });
            (*run, content)
        })
    }
}

impl Decoder {
    /// For a memory of `memory_pages` pages.
    ///
    /// # Errors
    /// When the decompressor cannot be made.
    pub fn new(memory_pages: u64) -> Result<Self, EncodeError> {
        Ok(Self {
            memory_pages,
            runs: Vec::new(),
            content: Vec::new(),
            zstd: Decompressor::new()?,
        })
    }

    /// Decodes the payload of a frame of `kind` at `offset`.
    ///
    /// # Errors
    /// When it is not exactly what a [`PageLadder`] makes for pages of this memory.
    pub fn decode<'a>(
        &'a mut self,
        kind: Kind,
        offset: u64,
        payload: &'a [u8],
    ) -> Result<Batch<'a>, LadderError> {
        let (rung, mut rest) = match kind {
            Kind::ZeroRuns => (None, payload),
            Kind::Pages => {
                let (rung, rest) = payload.split_first().ok_or(LadderError::Runs)?;
                (Some(*rung), rest)
            }
            _ => return Err(LadderError::NotPages),
        };
        if !offset.is_multiple_of(PAGE_BYTES as u64) {
            return Err(LadderError::NotPages);
        }
        let pages = self.decode_runs(offset / PAGE_BYTES as u64, &mut rest)?;
        let content = match rung {
            None => rest.is_empty().then_some(None),
            Some(rung) => {
                if pages > BATCH_PAGES_MAX as u64 {
                    return Err(LadderError::Runs);
                }
                let bytes = pages as usize * PAGE_BYTES;
                match rung {
                    RUNG_RAW => (rest.len() == bytes).then_some(Some(rest)),
                    RUNG_ZSTD => {
                        decompress(&mut self.zstd, &mut self.content, rest, bytes).map(Some)
                    }
                    other => return Err(LadderError::Rung(other)),
                }
            }
        };
        let content = content.ok_or(LadderError::Content)?;
        Ok(Batch {
            runs: &self.runs,
            content,
        })
    }

    /// Reads the list of runs off `rest`; returns how many pages it names.
    fn decode_runs(&mut self, start: u64, rest: &mut &[u8]) -> Result<u64, LadderError> {
        let count = take_number(rest).ok_or(LadderError::Runs)?;
        if count == 0 || count > RUNS_MAX as u64 {
            return Err(LadderError::Runs);
        }
        self.runs.clear();
        let mut at = start;
        let mut pages = 0;
        for index in 0..count {
            let gap = take_number(rest).ok_or(LadderError::Runs)?;
            let length = take_number(rest).ok_or(LadderError::Runs)?;
            if length == 0 || (gap == 0) != (index == 0) {
                return Err(LadderError::Runs);
            }
            let first = at.checked_add(gap).ok_or(LadderError::OutOfRange)?;
            at = first.checked_add(length).ok_or(LadderError::OutOfRange)?;
            if at > self.memory_pages {
                return Err(LadderError::OutOfRange);
            }
            pages += length;
            self.runs.push(Run {
                first,
                pages: length,
            });
        }
        Ok(pages)
    }
}

/// Decompresses into exactly `bytes` bytes of `room`; anything else is `None`.
fn decompress<'a>(
    zstd: &mut Decompressor<'static>,
    room: &'a mut Vec<u8>,
    compressed: &[u8],
    bytes: usize,
) -> Option<&'a [u8]> {
    if room.len() < bytes {
        room.resize(bytes, 0);
    }
    let room = &mut room[..bytes];
    let written = zstd.decompress_to_buffer(compressed, room).ok()?;
    (written == bytes).then_some(&*room)
}

fn put_number(buffer: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        buffer.push(value as u8 | 0x80);
        value >>= 7;
    }
    buffer.push(value as u8);
}

/// Numbers are below 2^42, page numbers being below 2^32 even for 16 TiB; six bytes are enough.
fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..42).step_by(7) {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Whether a page is all zeros.
pub fn is_zero(page: &[u8; PAGE_BYTES]) -> bool {
    let (words, _) = page.as_chunks::<8>();
    let zero = |word: &[u8; 8]| u64::from_ne_bytes(*word) == 0;
    zero(&words[0])
        && words
            .chunks_exact(32)
            .all(|block| block.iter().fold(true, |all, word| all & zero(word)))
}

/// Whether the bytes of a page are unevenly distributed, judged by a sample of a quarter of them.
///
/// The measure is how often two sampled bytes are equal: once in 256 pairs for random content, four times as often
/// for base64, far more for text or code. Content whose bytes are even but which repeats itself is taken for random;
/// that is rare, and costs bytes only, never correctness.
fn is_compressible(page: &[u8; PAGE_BYTES]) -> bool {
    const SAMPLE: u32 = 1024;
    /// Equal ordered pairs expected of random content, and a quarter more.
    const EVEN: u32 = SAMPLE * (SAMPLE - 1) / 256 / 4 * 5;
    let mut counts = [[0u16; 256]; 2];
    // Whole words of eight, so that no position within a word is preferred, from all over the page.
    let (words, _) = page.as_chunks::<8>();
    for word in words.iter().step_by(4) {
        for pair in word.chunks_exact(2) {
            counts[0][usize::from(pair[0])] += 1;
            counts[1][usize::from(pair[1])] += 1;
        }
    }
    let pairs: u32 = (0..256)
        .map(|byte| u32::from(counts[0][byte]) + u32::from(counts[1][byte]))
        .map(|count| count * count.saturating_sub(1))
        .sum();
    pairs > EVEN
}
