//! The stream of changes that [`crate::Store::watch`] gives, whichever store it comes from.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::stream::{BoxStream, FusedStream, Stream, StreamExt};

use crate::error::StoreError;
use crate::records::Batch;

/// Changes in order, none left out. Ends after its first error; dropping it ends the watch.
///
/// Both [`Watch::next`] and the [`Stream`] it implements may be given up at any await without losing a batch.
pub struct Watch {
    batches: futures::stream::Fuse<BoxStream<'static, Result<Batch, StoreError>>>,
}

impl Watch {
    /// Wraps the stream of an implementation, which must end after its first error.
    pub fn new(batches: impl Stream<Item = Result<Batch, StoreError>> + Send + 'static) -> Self {
        Self {
            batches: batches.boxed().fuse(),
        }
    }

    /// The next batch; waits for one. `None` after an error.
    pub async fn next(&mut self) -> Option<Result<Batch, StoreError>> {
        self.batches.next().await
    }
}

impl Stream for Watch {
    type Item = Result<Batch, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.batches.poll_next_unpin(context)
    }
}

impl FusedStream for Watch {
    fn is_terminated(&self) -> bool {
        self.batches.is_terminated()
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}
