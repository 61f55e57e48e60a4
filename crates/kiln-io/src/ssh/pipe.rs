//! The async end of one SSH channel: bounded queues both ways to the session's thread.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use kiln_core::event::Stream;
use rustix::{
    event::{EventfdFlags, eventfd},
    fd::OwnedFd,
};
use tokio::sync::mpsc;

/// Chunks of at most 64 KiB that may wait for the reader; when they do, the guest's window closes.
const OUTPUT_QUEUE: usize = 16;
/// Chunks of at most 256 KiB that may wait for the guest.
const INPUT_QUEUE: usize = 4;

/// Interrupts the session's thread while it waits for its socket.
#[derive(Debug, Clone)]
pub(super) struct Waker(Arc<OwnedFd>);

impl Waker {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    pub(super) fn wake(&self) {
        // Fails only when 2^64 wake-ups are pending, and then the thread wakes anyway.
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }

    pub(super) fn clear(&self) {
        let _ = rustix::io::read(&*self.0, &mut [0; 8]);
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.0
    }
}

#[derive(Debug)]
pub(super) enum Chunk {
    Data(Stream, Vec<u8>),
    /// The last one: the other side closed the channel. Whether a command succeeded is never told by this.
    End,
}

/// Held by whoever uses the channel. Dropping it closes the channel.
#[derive(Debug)]
pub(super) struct Pipe {
    input: Option<mpsc::Sender<Vec<u8>>>,
    output: mpsc::Receiver<Chunk>,
    stalled: Arc<AtomicBool>,
    waker: Waker,
}

/// Held by the session's thread.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) input: mpsc::Receiver<Vec<u8>>,
    pub(super) output: mpsc::Sender<Chunk>,
    pub(super) stalled: Arc<AtomicBool>,
}

/// The other side of the channel is gone.
#[derive(Debug)]
pub(super) struct Gone;

pub(super) fn pair(waker: &Waker) -> (Pipe, Ends) {
    let (sender, input) = mpsc::channel(INPUT_QUEUE);
    let (output, receiver) = mpsc::channel(OUTPUT_QUEUE);
    let stalled = Arc::new(AtomicBool::new(false));
    let pipe = Pipe { input: Some(sender), output: receiver, stalled: stalled.clone(), waker: waker.clone() };
    (pipe, Ends { input, output, stalled })
}

impl Pipe {
    pub(super) async fn send(&self, bytes: Vec<u8>) -> Result<(), Gone> {
        let Some(input) = &self.input else { return Err(Gone) };
        input.send(bytes).await.map_err(|_| Gone)?;
        self.waker.wake();
        Ok(())
    }

    /// Tells the other side that no more input comes.
    pub(super) fn close_input(&mut self) {
        self.input = None;
        self.waker.wake();
    }

    /// The next chunk; `None` when the connection is gone.
    pub(super) async fn next(&mut self) -> Option<Chunk> {
        let chunk = self.output.recv().await;
        self.taken();
        chunk
    }

    /// A chunk that is already here.
    pub(super) fn ready(&mut self) -> Option<Chunk> {
        let chunk = self.output.try_recv().ok();
        self.taken();
        chunk
    }

    fn taken(&self) {
        if self.stalled.swap(false, Ordering::AcqRel) {
            self.waker.wake();
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.input = None;
        self.output.close();
        self.waker.wake();
    }
}
