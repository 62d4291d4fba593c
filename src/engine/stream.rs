//! The events of a request on their way to whoever asked.

use futures::stream::{BoxStream, StreamExt};
use tokio::sync::mpsc;

use super::request::{RequestId, StreamEvent};

/// The events of one request. Dropping it aborts the request before the next step.
#[derive(Debug)]
pub struct RequestStream {
    id: RequestId,
    events: mpsc::UnboundedReceiver<StreamEvent>,
}

impl RequestStream {
    /// A stream and the end that a backend writes to.
    pub(super) fn open(id: RequestId) -> (mpsc::UnboundedSender<StreamEvent>, Self) {
        let (sender, events) = mpsc::unbounded_channel();
        (sender, Self { id, events })
    }

    pub fn id(&self) -> RequestId {
        self.id
    }

    /// The next event; `None` after the last choice finished or an error.
    pub async fn recv(&mut self) -> Option<StreamEvent> {
        self.events.recv().await
    }

    /// The next event that is there already.
    pub fn try_recv(&mut self) -> Result<StreamEvent, mpsc::error::TryRecvError> {
        self.events.try_recv()
    }

    /// The events, each with `index`: for a caller that merges several requests.
    pub fn numbered(self, index: usize) -> BoxStream<'static, (usize, StreamEvent)> {
        futures::stream::unfold(self, move |mut stream| async move {
            let event = stream.recv().await?;
            Some(((index, event), stream))
        })
        .boxed()
    }

    /// [`Self::recv`] for threads outside a runtime.
    pub fn blocking_recv(&mut self) -> Option<StreamEvent> {
        self.events.blocking_recv()
    }
}
