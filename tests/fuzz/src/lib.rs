//! What strangers can send, as functions that take any bytes: a guest, a peer host, a confined process, a plugin's
//! author, a client.
//!
//! A target ([`Target`]) hands its input to the code that would read it, and panics when that code does, when it
//! answers something that cannot be right, or when it takes more memory than the target allows. The same functions
//! are fuzzed by `cargo xtask soak` and replayed over `corpus/` and `regressions/` by `cargo xtask test`.
//!
//! What always holds: a target depends on nothing but its input, leaves nothing behind, and needs neither root, nor
//! KVM, nor a network.
//!
//! This crate must never know how inputs are found: that is the engine's business.

mod heap;
mod input;
mod targets;

pub use targets::TARGETS;

/// One reader of bytes that strangers send.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name: of its folders, on the command line, in results.
    pub name: &'static str,
    /// Longest input that is worth trying, in bytes.
    pub input_bytes_max: usize,
    /// Most heap memory that one input may cost, in bytes.
    pub heap_bytes_max: usize,
    /// Reads one input.
    pub read: fn(&[u8]),
}

impl Target {
    /// The target of that name.
    pub fn named(name: &str) -> Option<&'static Target> {
        TARGETS.iter().find(|target| target.name == name)
    }

    /// Reads one input and measures what it costs.
    ///
    /// # Panics
    /// When the code under test is wrong: that is what is looked for.
    pub fn try_input(&self, input: &[u8]) {
        let held = heap::most_held(|| (self.read)(input));
        assert!(
            held <= self.heap_bytes_max,
            "An input of {} bytes made {} hold {held} bytes of memory, more than {}",
            input.len(),
            self.name,
            self.heap_bytes_max
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GREEDY: Target = Target {
        name: "greedy",
        input_bytes_max: 16,
        heap_bytes_max: 1000,
        read: |input| drop(vec![0u8; usize::from(input[0]) * 10]),
    };

    #[test]
    fn an_input_that_costs_too_much_is_found() {
        GREEDY.try_input(&[100]);
        let tried = std::panic::catch_unwind(|| GREEDY.try_input(&[101]));
        let text = *tried.unwrap_err().downcast::<String>().unwrap();
        assert!(text.contains("hold 1010 bytes"), "{text}");
    }

    #[test]
    fn names_are_folders_and_found_again() {
        for target in TARGETS {
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
            assert!(target.name.bytes().all(plain), "{}", target.name);
            let found = Target::named(target.name).unwrap();
            assert!(
                std::ptr::eq(found, target),
                "{} is twice there",
                target.name
            );
        }
        assert!(Target::named("greedy").is_none());
    }
}
