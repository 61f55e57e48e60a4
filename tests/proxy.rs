//! A TCP proxy that delays every byte, cuts connections on demand or after so many bytes, and counts round trips.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Forwards a loopback port to another one. Runs on a thread of its own until dropped.
#[derive(Debug)]
pub struct Proxy {
    pub port: u16,
    state: Arc<State>,
    _stop: DropGuard,
}

/// What the proxy does to the bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Conditions {
    /// One way; a round trip takes twice as long.
    pub delay: Duration,
    /// Close everything, for good, once so many bytes have passed towards the server.
    pub cut_after: Option<u64>,
}

#[derive(Debug)]
struct State {
    delay: Duration,
    cut_at: AtomicU64,
    passed: AtomicU64,
    turns: AtomicU64,
    /// The client spoke last.
    ours: AtomicBool,
    open: AtomicU64,
    /// For good.
    cut: CancellationToken,
    /// For the connections of now.
    present: Mutex<CancellationToken>,
}

impl Proxy {
    /// Adds `delay` in each direction on the way to `port`.
    pub fn delaying(port: u16, delay: Duration) -> Self {
        Self::start(port, Conditions { delay, cut_after: None })
    }

    /// # Panics
    /// Where no loopback port can be had.
    pub fn start(port: u16, conditions: Conditions) -> Self {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a loopback port");
        listener.set_nonblocking(true).expect("a socket for tokio");
        let own = listener.local_addr().expect("its number").port();
        let state = Arc::new(State {
            delay: conditions.delay,
            cut_at: AtomicU64::new(conditions.cut_after.unwrap_or(u64::MAX)),
            passed: AtomicU64::new(0),
            turns: AtomicU64::new(0),
            ours: AtomicBool::new(false),
            open: AtomicU64::new(0),
            cut: CancellationToken::new(),
            present: Mutex::new(CancellationToken::new()),
        });
        let stop = CancellationToken::new();
        let (stopping, shared) = (stop.clone(), state.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).expect("a socket for tokio");
                tokio::select! {
                    () = stopping.cancelled() => {}
                    () = accept(listener, ([127, 0, 0, 1], port).into(), shared) => {}
                }
            });
        });
        Self { port: own, state, _stop: stop.drop_guard() }
    }

    /// Bytes that went towards the server.
    pub fn passed(&self) -> u64 {
        self.state.passed.load(Ordering::SeqCst)
    }

    /// How often the client spoke after the server had: round trips, however slow the machine is.
    pub fn turns(&self) -> u64 {
        self.state.turns.load(Ordering::SeqCst)
    }

    /// Connections that are open.
    pub fn open(&self) -> u64 {
        self.state.open.load(Ordering::SeqCst)
    }

    /// Closes everything for good once so many bytes have passed towards the server.
    pub fn cut_at(&self, bytes: u64) {
        self.state.cut_at.store(bytes, Ordering::SeqCst);
    }

    /// Closes every connection of now; new ones are welcome.
    pub fn cut_once(&self) {
        let mut present = self.state.present.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *present).cancel();
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, state: Arc<State>) {
    while let Ok((client, _)) = listener.accept().await {
        let state = state.clone();
        tokio::spawn(async move {
            state.open.fetch_add(1, Ordering::SeqCst);
            if !state.cut.is_cancelled() {
                let _ = connection(client, server, &state).await;
            }
            state.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

async fn connection(client: TcpStream, server: SocketAddr, state: &State) -> io::Result<()> {
    let present = state.present.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    tokio::select! {
        () = state.cut.cancelled() => {}
        () = present.cancelled() => {}
        () = async {
            tokio::join!(pass(client_in, server_out, state, true), pass(server_in, client_out, state, false));
        } => {}
    }
    Ok(())
}

/// Each chunk leaves `delay` after it came; up to 16 MiB are on their way at a time.
async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, state: &State, up: bool) {
    let (sender, mut queue) = mpsc::channel::<(Instant, Vec<u8>)>(256);
    let take = async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count) = from.read(&mut buffer).await {
            if state.ours.swap(up, Ordering::SeqCst) != up && up {
                state.turns.fetch_add(1, Ordering::SeqCst);
            }
            if count == 0 || sender.send((Instant::now() + state.delay, buffer[..count].to_vec())).await.is_err() {
                break;
            }
        }
    };
    let give = async move {
        while let Some((due, chunk)) = queue.recv().await {
            sleep_until(due).await;
            let before = if up { state.passed.fetch_add(chunk.len() as u64, Ordering::SeqCst) } else { 0 };
            let left = if up { state.cut_at.load(Ordering::SeqCst).saturating_sub(before) } else { u64::MAX };
            let whole = chunk.len() as u64 <= left;
            let count = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if to.write_all(&chunk[..count]).await.is_err() {
                break;
            }
            if !whole {
                state.cut.cancel();
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(take, give);
}
