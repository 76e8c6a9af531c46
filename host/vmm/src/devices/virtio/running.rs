//! What a device has while its driver is ready: the negotiated features, the queues, guest memory.

use std::sync::Arc;

use dwcp_memory::GuestMemory;

use super::registers::{Offer, Registers};
use super::{Broken, Chain, FEATURE_EVENT_INDEX, FEATURE_INDIRECT, Interrupts, Queue, QueueState};

/// A device in use, seen by its backend.
#[derive(Debug)]
pub struct Running {
    /// What the driver accepted.
    pub features: u64,
    memory: Arc<GuestMemory>,
    queues: Vec<Option<Queue>>,
    interrupts: Arc<Interrupts>,
    /// Queues that have more entries than were taken.
    again: u64,
}

impl Running {
    /// With the queues that the driver enabled, checked.
    pub fn open(
        registers: &Registers,
        offer: &Offer,
        memory: Arc<GuestMemory>,
        interrupts: Arc<Interrupts>,
    ) -> Result<Self, Broken> {
        let features = registers.driver_features;
        let open = |(state, offered): (&QueueState, &u16)| {
            let queue = Queue::new(
                *state,
                *offered,
                features & FEATURE_EVENT_INDEX != 0,
                features & FEATURE_INDIRECT != 0,
                &memory,
            );
            state.enabled.then_some(queue).transpose()
        };
        let queues = registers.queues.iter().zip(&offer.queues).map(open);
        Ok(Self {
            features,
            queues: queues.collect::<Result<_, _>>()?,
            memory,
            interrupts,
            again: 0,
        })
    }

    /// Whether the driver accepted all of these features.
    pub fn has(&self, features: u64) -> bool {
        self.features & features == features
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The queues, with how far they are.
    pub fn queues(&self) -> &[Option<Queue>] {
        &self.queues
    }

    /// Takes the next entry of a queue.
    pub fn pop(&mut self, queue: usize) -> Result<Option<Chain>, Broken> {
        match self.queues.get_mut(queue) {
            Some(Some(open)) => open.pop(&self.memory),
            _ => Ok(None),
        }
    }

    /// Puts back the entry that was taken last.
    pub fn put_back(&mut self, queue: usize) {
        if let Some(Some(open)) = self.queues.get_mut(queue) {
            open.put_back();
        }
    }

    /// Gives an entry back.
    pub fn push(&mut self, queue: usize, head: u16, written: u32) -> Result<(), Broken> {
        match self.queues.get_mut(queue) {
            Some(Some(open)) => open.push(&self.memory, head, written),
            _ => Ok(()),
        }
    }

    /// Tells the driver of entries that were given back, if it wants to be told.
    pub fn tell(&mut self, queue: usize) -> Result<(), Broken> {
        if let Some(Some(open)) = self.queues.get_mut(queue)
            && open.wants_interrupt(&self.memory)?
        {
            self.interrupts.queue(queue);
        }
        Ok(())
    }

    /// Tells the driver that the device's registers are to be read again.
    pub fn tell_registers(&self) {
        self.interrupts.configuration();
    }

    /// Asks to be told of new entries; answers whether some have come already.
    pub fn listen(&mut self, queue: usize) -> Result<bool, Broken> {
        match self.queues.get_mut(queue) {
            Some(Some(open)) => open.listen(&self.memory),
            _ => Ok(false),
        }
    }

    /// Serves the entries of a queue, each at once; `serve` answers how many bytes it wrote. Takes no more than the
    /// queue holds, so that the thread hears what else is asked of it; what is left is served next.
    pub fn each(
        &mut self,
        queue: usize,
        mut serve: impl FnMut(&GuestMemory, &Chain) -> Result<u32, Broken>,
    ) -> Result<(), Broken> {
        let Some(Some(open)) = self.queues.get_mut(queue) else {
            return Ok(());
        };
        let memory = &*self.memory;
        open.ignore(memory)?;
        for _ in 0..open.size() {
            let Some(chain) = open.pop(memory)? else {
                break;
            };
            let written = serve(memory, &chain)?;
            open.push(memory, chain.head, written)?;
        }
        if open.listen(memory)? {
            self.again |= 1 << queue;
        }
        self.tell(queue)
    }

    /// Has a queue served again soon, although the driver says nothing.
    pub fn again(&mut self, queue: usize) {
        self.again |= 1 << queue;
    }

    /// Queues to serve again; asked for once.
    pub fn take_again(&mut self) -> u64 {
        std::mem::take(&mut self.again)
    }
}
