//! A connection whose peer must keep taking what it asked for: one that takes less than the least pace is cut.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use crate::pace::{LEAST, PATIENCE};

/// Writes of `S` that wait end after a while.
#[derive(Debug)]
pub(crate) struct Paced<S> {
    stream: S,
    /// Set while a write waits; how much was taken since.
    waiting: Option<(Pin<Box<Sleep>>, usize)>,
    patience: Duration,
}

impl<S> Paced<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, waiting: None, patience: PATIENCE }
    }

    fn judge<T>(
        &mut self,
        context: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
        taken: impl Fn(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        match &outcome {
            Poll::Pending => {
                let patience = self.patience;
                let (sleep, _) = self
                    .waiting
                    .get_or_insert_with(|| (Box::pin(tokio::time::sleep_until(Instant::now() + patience)), 0));
                if sleep.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
            Poll::Ready(Ok(count)) => {
                if let Some((_, sum)) = &mut self.waiting {
                    *sum += taken(count);
                    if *sum >= LEAST {
                        self.waiting = None;
                    }
                }
            }
            Poll::Ready(Err(_)) => {}
        }
        outcome
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(context, written, |count| *count)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.judge(context, written, |count| *count)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        // All of it was taken.
        self.judge(context, flushed, |()| LEAST)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.judge(context, shut, |()| LEAST)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_peer_that_stands_still_is_cut_and_one_that_takes_is_not() {
        let (ours, theirs) = tokio::io::duplex(1 << 10);
        let mut paced = Paced { stream: ours, waiting: None, patience: Duration::from_millis(200) };
        let cut = paced.write_all(&[0; 4096]).await;
        assert_eq!(cut.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(theirs);

        let (ours, mut theirs) = tokio::io::duplex(1 << 10);
        let mut paced = Paced { stream: ours, waiting: None, patience: Duration::from_mins(1) };
        let reader = tokio::spawn(async move {
            let mut bytes = Vec::new();
            theirs.read_to_end(&mut bytes).await.map(|_| bytes.len())
        });
        paced.write_all(&vec![0; 1 << 20]).await.unwrap();
        paced.shutdown().await.unwrap();
        drop(paced);
        assert_eq!(reader.await.unwrap().unwrap(), 1 << 20);
    }
}
