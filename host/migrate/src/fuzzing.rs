//! A door for fuzzing: a destination without streams, to which frames are given as a stream's thread gets them.
//!
//! Always holds: a frame is applied by the same code as one that came by a stream. Must not know what is a good frame.

use std::sync::Arc;

use dwcp_memory::{GuestMemory, MemoryError, PageIndex};
use dwcp_wire::frame::Frame;
use dwcp_wire::ladder::Decoder;
use dwcp_wire::tls::ServerConfig;

use crate::destination::Shared;
use crate::events::EventSink;
use crate::protocol::MoverConfig;
use crate::receiver::{self, Answer};

/// A destination that takes frames from its caller.
#[derive(Debug)]
pub struct Frames {
    shared: Shared,
    decoder: Decoder,
}

impl Frames {
    /// A destination of which nothing has arrived; `tls` is kept and not used.
    ///
    /// # Errors
    /// When the system gives it no descriptor or no decompressor.
    pub fn new(
        config: &MoverConfig,
        memory: GuestMemory,
        tls: Arc<ServerConfig>,
        events: EventSink,
    ) -> std::io::Result<Self> {
        let decoder = Decoder::new(memory.size().pages()).map_err(std::io::Error::other)?;
        let shared = Shared::new(config, memory, tls, events)?;
        Ok(Self { shared, decoder })
    }

    /// Applies one frame, or refuses it, after which a stream's thread would fail the transfer.
    /// Answers whether it is to be acknowledged at once.
    ///
    /// # Errors
    /// What the peer did.
    pub fn apply(&mut self, frame: &Frame<'_>) -> Result<bool, String> {
        let answer = receiver::apply(&self.shared, &mut self.decoder, frame);
        match answer {
            Ok(answer) => Ok(answer == Answer::Ack),
            Err(why) => {
                self.shared.fail(&why);
                Err(why)
            }
        }
    }

    /// Whether everything is there.
    pub fn is_complete(&self) -> bool {
        self.shared.is_complete()
    }

    /// Copies whole pages out.
    ///
    /// # Errors
    /// When they lie outside memory.
    pub fn read_pages(&self, first: PageIndex, buffer: &mut [u8]) -> Result<(), MemoryError> {
        self.shared.memory.read_pages(first, buffer)
    }
}
