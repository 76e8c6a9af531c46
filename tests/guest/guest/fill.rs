//! What pages hold, by the mix that is asked for. The reference: per ten pages three untouched (zero), five of text-like
//! words and digits, two random.
//!
//! The sequence and every byte are fixed, so that two programs, or two runs, can be compared on the same memory.

/// Words in a page.
pub const PAGE_WORDS: usize = 512;

/// One page as words.
pub type Page = [u64; PAGE_WORDS];

const WORDS: [&[u8]; 16] = [
    b"the ",
    b"hypervisor ",
    b"page ",
    b"memory ",
    b"migrate ",
    b"delta ",
    b"region ",
    b"policy ",
    b"stream ",
    b"guest ",
    b"host ",
    b"virtual ",
    b"machine ",
    b"network ",
    b"state ",
    b"plugin ",
];

/// What the fill consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// Three parts zero, five text, two random.
    Reference,
    /// Nothing is written.
    Zero,
    /// Words without a pattern.
    Random,
    /// Text-like words and digits.
    Text,
}

impl Mix {
    /// The mix of a name.
    pub fn named(name: &[u8]) -> Option<Self> {
        match name {
            b"reference" => Some(Self::Reference),
            b"zero" => Some(Self::Zero),
            b"random" => Some(Self::Random),
            b"text" => Some(Self::Text),
            _ => None,
        }
    }
}

/// Marsaglia's xorshift64.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts at `seed`, which must not be 0.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Fills the `number`th page of the fill; answers whether anything was written.
pub fn fill_page(mix: Mix, number: u64, page: &mut Page, random: &mut Random) -> bool {
    let kind = match mix {
        Mix::Reference => match number % 10 {
            0..3 => Mix::Zero,
            3..8 => Mix::Text,
            _ => Mix::Random,
        },
        pure => pure,
    };
    match kind {
        Mix::Zero | Mix::Reference => return false,
        Mix::Text => fill_text(page, random),
        Mix::Random => page.iter_mut().for_each(|word| *word = random.next()),
    }
    true
}

fn fill_text(page: &mut Page, random: &mut Random) {
    let mut at = 0;
    let mut put = |at: &mut usize, byte: u8| {
        let shift = *at % 8 * 8;
        let word = &mut page[*at / 8];
        *word = *word & !(0xff << shift) | u64::from(byte) << shift;
        *at += 1;
    };
    while at < 4096 {
        for byte in WORDS[(random.next() & 15) as usize] {
            if at < 4096 {
                put(&mut at, *byte);
            }
        }
        if random.next() & 7 == 0 && at < 4090 {
            let mut digits = random.next();
            for _ in 0..6 {
                put(&mut at, b'0' + (digits % 10) as u8);
                digits /= 10;
            }
        }
    }
}
