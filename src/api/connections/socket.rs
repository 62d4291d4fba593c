//! A connection's socket, which tells what it does.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::activity::{Activity, RequestBody};

/// Bytes of later requests that a client may send while one is answered.
pub(super) const MAX_PIPELINED_BYTES: usize = 64 << 10;
const CHUNK: usize = 4096;

struct Inner<T> {
    socket: T,
    /// What came while a request was answered, and how much of it has been read.
    pipelined: Vec<u8>,
    num_read: usize,
}

/// A socket that its HTTP connection and its task share: while a request is answered, the HTTP
/// connection does not look at a socket that has brought more already, and would not see that the
/// client has left.
pub(super) struct Socket<T> {
    inner: Arc<Mutex<Inner<T>>>,
    activity: Arc<Activity>,
}

impl<T> Clone for Socket<T> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            activity: Arc::clone(&self.activity),
        }
    }
}

impl<T> Socket<T> {
    pub fn new(socket: T, activity: Arc<Activity>) -> Self {
        let inner = Inner {
            socket,
            pipelined: Vec::new(),
            num_read: 0,
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
            activity,
        }
    }

    /// One task uses it: nobody waits here.
    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: AsyncRead + Unpin> Inner<T> {
    /// Keeps what comes for later. Ready when nothing more can come: the client has closed its side
    /// or sends one request after the other without end. The rest of a body that nobody wants may
    /// be long: it waits in the network.
    fn poll_end(&mut self, body: RequestBody, cx: &mut Context<'_>) -> Poll<()> {
        let mut chunk = [0; CHUNK];
        while self.pipelined.len() < MAX_PIPELINED_BYTES {
            let mut buffer = ReadBuf::new(&mut chunk);
            match ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    self.pipelined.extend_from_slice(buffer.filled());
                }
                _ => return Poll::Ready(()),
            }
        }
        match body {
            RequestBody::Whole => Poll::Ready(()),
            RequestBody::Coming | RequestBody::Abandoned => Poll::Pending,
        }
    }

    /// Hands out what was kept. False when there is nothing.
    fn take_pipelined(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let rest = &self.pipelined[self.num_read..];
        if rest.is_empty() {
            return false;
        }
        let length = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..length]);
        self.num_read += length;
        if self.num_read == self.pipelined.len() {
            self.pipelined = Vec::new();
            self.num_read = 0;
        }
        true
    }
}

impl<T: AsyncRead + Unpin> Socket<T> {
    /// Ready when the client has left while a whole request of its is being answered.
    pub fn poll_left(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.activity.answering() {
            Some(body) => self.lock().poll_end(body, cx),
            None => Poll::Pending,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Socket<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let answering = self.activity.answering();
        let mut inner = self.lock();
        if let Some(body) = answering {
            // Nothing in the buffer says that this was the end.
            return inner.poll_end(body, cx).map(Ok);
        }
        let before = buffer.filled().len();
        if !inner.take_pipelined(buffer) {
            ready!(Pin::new(&mut inner.socket).poll_read(cx, buffer))?;
        }
        if buffer.filled().len() > before {
            self.activity.received(Instant::now());
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> Socket<T> {
    /// Tells whether the socket takes something.
    fn watch<R>(&self, written: Poll<R>) -> Poll<R> {
        let now = Instant::now();
        match written {
            Poll::Pending => self.activity.write_waits(now),
            Poll::Ready(_) => self.activity.wrote(now),
        }
        written
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Socket<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.lock().socket).poll_write(cx, bytes);
        self.watch(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.lock().socket).poll_write_vectored(cx, slices);
        self.watch(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.lock().socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.lock().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.lock().socket).poll_shutdown(cx)
    }
}
