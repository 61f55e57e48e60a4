//! A TCP proxy that delays every byte, and one that cuts the connection after so many.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
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
    cut: CancellationToken,
    passed: Arc<AtomicU64>,
    _stop: DropGuard,
}

/// What the proxy does to the bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Conditions {
    /// One way; a round trip takes twice as long.
    pub delay: Duration,
    /// Close everything once so many bytes have passed towards the server.
    pub cut_after: Option<u64>,
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
        let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
        let passed = Arc::new(AtomicU64::new(0));
        let lines = Lines { conditions, cut: cut.clone(), passed: passed.clone() };
        let stopping = stop.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).expect("a socket for tokio");
                tokio::select! {
                    () = stopping.cancelled() => {}
                    () = accept(listener, ([127, 0, 0, 1], port).into(), lines) => {}
                }
            });
        });
        Self { port: own, cut, passed, _stop: stop.drop_guard() }
    }

    /// Bytes that went towards the server.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// Closes every connection now and refuses new ones.
    pub fn cut(&self) {
        self.cut.cancel();
    }
}

#[derive(Debug, Clone)]
struct Lines {
    conditions: Conditions,
    cut: CancellationToken,
    passed: Arc<AtomicU64>,
}

async fn accept(listener: TcpListener, server: SocketAddr, lines: Lines) {
    while let Ok((client, _)) = listener.accept().await {
        let lines = lines.clone();
        tokio::spawn(async move {
            if lines.cut.is_cancelled() {
                return;
            }
            let _ = connection(client, server, lines).await;
        });
    }
}

async fn connection(client: TcpStream, server: SocketAddr, lines: Lines) -> io::Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    let delay = lines.conditions.delay;
    let cut = lines.cut.clone();
    tokio::select! {
        () = cut.cancelled() => {}
        () = async {
            tokio::join!(pass(client_in, server_out, delay, Some(&lines)), pass(server_in, client_out, delay, None));
        } => {}
    }
    Ok(())
}

/// Each chunk leaves `delay` after it came; up to 16 MiB are on their way at a time.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    delay: Duration,
    count: Option<&Lines>,
) {
    let (sender, mut queue) = mpsc::channel::<(Instant, Vec<u8>)>(256);
    let take = async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read) = from.read(&mut buffer).await {
            let mut chunk = &buffer[..read];
            if let Some(lines) = count {
                let before = lines.passed.fetch_add(read as u64, Ordering::Relaxed);
                if let Some(limit) = lines.conditions.cut_after.filter(|limit| before + read as u64 >= *limit) {
                    chunk = &chunk[..usize::try_from(limit.saturating_sub(before)).unwrap_or(0)];
                    let _ = sender.send((Instant::now() + delay, chunk.to_vec())).await;
                    lines.cut.cancel();
                    return;
                }
            }
            if read == 0 || sender.send((Instant::now() + delay, chunk.to_vec())).await.is_err() {
                break;
            }
        }
    };
    let give = async move {
        while let Some((due, chunk)) = queue.recv().await {
            sleep_until(due).await;
            if to.write_all(&chunk).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(take, give);
}
