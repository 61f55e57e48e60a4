//! One connection: a thread that owns the session, and the handle that opens channels on it.

use std::{
    collections::VecDeque,
    io,
    net::{Shutdown, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, poll};
use ssh2::{BlockDirections, Channel, ErrorCode, Session};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{
    Target,
    connect::{Connected, KEEPALIVE, connect},
    lane::{CHUNK, Lane, Turn},
    pipe::{Ends, Pipe, Waker, pair},
    proxy::Proxy,
};
use crate::guest::GuestError;

/// Bytes the guest may send on one channel before it must wait for us. Bounds memory, and covers 50 MB/s at 40 ms.
const WINDOW: u32 = 4 << 20;
const PACKET: u32 = 32 << 10;
/// How often to look while a reply may have been taken off the socket by another channel's read.
const BETWEEN: Duration = Duration::from_millis(5);

/// A live connection. Dropping it closes it.
#[derive(Debug)]
pub(super) struct Link {
    orders: Sender<Order>,
    waker: Waker,
    /// Fires when the thread has ended.
    dead: CancellationToken,
    why: Arc<Mutex<String>>,
    /// What the connection goes through.
    _proxy: Option<Proxy>,
}

/// What to open.
#[derive(Debug, Clone)]
pub(super) enum What {
    Exec(String),
    Tcp { host: String, port: u16 },
}

struct Order {
    what: What,
    answer: oneshot::Sender<Result<Pipe, String>>,
}

/// Why no channel was opened.
#[derive(Debug)]
pub(super) enum NotOpened {
    /// The guest said no.
    Refused(String),
    Dead,
}

impl Link {
    /// Connects on a new thread. Returns at once when `cancel` fires; the thread then ends within one attempt's time.
    pub(super) async fn open(target: &Target, cancel: &CancellationToken) -> Result<Self, GuestError> {
        let failed = |error: io::Error| GuestError::Remote {
            operation: "preparing the SSH connection".to_owned(),
            reason: error.to_string(),
        };
        let waker = Waker::new().map_err(failed)?;
        let (proxy, socket) = match &target.proxy {
            None => (None, None),
            Some(command) => {
                let (proxy, socket) = Proxy::start(target, command).await?;
                (Some(proxy), Some(socket))
            }
        };
        let (orders, inbox) = channel();
        let dead = CancellationToken::new();
        let why = Arc::new(Mutex::new(String::new()));
        let (ready, connected) = oneshot::channel();
        let (target, stop) = (target.clone(), cancel.clone());
        let (ours, end, reason) = (waker.clone(), dead.clone(), Arc::clone(&why));
        let thread = std::thread::Builder::new().name("kiln-ssh".to_owned()).spawn(move || {
            let ends = end.drop_guard();
            match connect(&target, socket) {
                Err(error) => drop(ready.send(Err(error))),
                Ok(connected) => {
                    if ready.send(Ok(())).is_ok() {
                        let mut pump = Pump::new(connected, inbox, ours, stop);
                        *reason.lock().unwrap_or_else(PoisonError::into_inner) = pump.run();
                        // Before the channels go: whoever sees one end must see why.
                        drop(ends);
                    }
                }
            }
        });
        thread.map_err(failed)?;
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(GuestError::Cancelled),
            answer = connected => {
                let answer = answer.map_err(|_| GuestError::Cancelled)?;
                if let Err(error) = answer {
                    return Err(match proxy {
                        Some(proxy) => proxy.explain(error).await,
                        None => error,
                    });
                }
            }
        }
        let link = Self { orders, waker, dead, why, _proxy: proxy };
        link.forward_cancel(cancel);
        Ok(link)
    }

    /// Wakes the thread when `cancel` fires, so that it closes the socket at once.
    fn forward_cancel(&self, cancel: &CancellationToken) {
        let (cancel, dead, waker) = (cancel.clone(), self.dead.clone(), self.waker.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => waker.wake(),
                () = dead.cancelled() => {}
            }
        });
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.is_cancelled()
    }

    /// Why the connection ended; empty while it lives.
    pub(super) fn why(&self) -> String {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) async fn channel(&self, what: What) -> Result<Pipe, NotOpened> {
        let (answer, opened) = oneshot::channel();
        self.orders.send(Order { what, answer }).map_err(|_| NotOpened::Dead)?;
        self.waker.wake();
        opened.await.map_err(|_| NotOpened::Dead)?.map_err(NotOpened::Refused)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Disconnects `orders`; the thread sees it once it wakes.
        let (orders, _) = channel();
        self.orders = orders;
        self.waker.wake();
    }
}

/// A channel on its way: opened first, then told what to run.
struct Opening {
    order: Order,
    channel: Option<Channel>,
    ends: Option<(Pipe, Ends)>,
}

struct Pump {
    session: Session,
    socket: TcpStream,
    inbox: Receiver<Order>,
    waker: Waker,
    cancel: CancellationToken,
    /// libssh2 can open one channel at a time; the first in the queue is under way.
    opening: VecDeque<Opening>,
    lanes: Vec<Lane>,
    stuck: Option<Stuck>,
    buffer: Vec<u8>,
    quiet_since: Instant,
}

/// Who left a packet half sent.
#[derive(Debug, Clone, Copy)]
enum Stuck {
    Opening,
    Lane(usize),
}

impl Pump {
    fn new(connected: Connected, inbox: Receiver<Order>, waker: Waker, cancel: CancellationToken) -> Self {
        let Connected { session, socket } = connected;
        session.set_blocking(false);
        Self {
            session,
            socket,
            inbox,
            waker,
            cancel,
            opening: VecDeque::new(),
            lanes: Vec::new(),
            stuck: None,
            buffer: vec![0; CHUNK],
            quiet_since: Instant::now(),
        }
    }

    /// Serves until the handle is dropped, the token fires or the connection is lost; says which.
    fn run(&mut self) -> String {
        let reason = loop {
            if self.cancel.is_cancelled() {
                break "cancelled".to_owned();
            }
            if !self.take_orders() {
                break "closed".to_owned();
            }
            let worked = match self.round() {
                Ok(worked) => worked,
                Err(error) => break error.to_string(),
            };
            if worked {
                self.quiet_since = Instant::now();
            } else if let Err(error) = self.wait() {
                break error.to_string();
            }
        };
        // Freeing the channels must neither block nor send half packets.
        let _ = self.socket.shutdown(Shutdown::Both);
        reason
    }

    fn take_orders(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(order) => {
                    let ends = Some(pair(&self.waker));
                    self.opening.push_back(Opening { order, channel: None, ends });
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// One turn for everybody, or for the one that is stuck.
    fn round(&mut self) -> io::Result<bool> {
        let mut worked = false;
        match self.stuck.take() {
            Some(Stuck::Opening) => worked |= self.advance_opening()?,
            Some(Stuck::Lane(index)) => worked |= self.turn(index)?,
            None => {}
        }
        if self.stuck.is_some() {
            return Ok(worked);
        }
        worked |= self.advance_opening()?;
        let mut index = 0;
        while index < self.lanes.len() && self.stuck.is_none() {
            let before = self.lanes.len();
            worked |= self.turn(index)?;
            if self.lanes.len() == before {
                index += 1;
            }
        }
        Ok(worked)
    }

    fn turn(&mut self, index: usize) -> io::Result<bool> {
        let Some(lane) = self.lanes.get_mut(index) else { return Ok(false) };
        match lane.turn(&self.session, &mut self.buffer)? {
            Turn::Progress => return Ok(true),
            Turn::Idle => {}
            Turn::Stuck => self.stuck = Some(Stuck::Lane(index)),
            Turn::Finished => {
                self.lanes.remove(index);
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn advance_opening(&mut self) -> io::Result<bool> {
        if self.stuck.is_some() {
            return Ok(false);
        }
        let Some(first) = self.opening.front_mut() else { return Ok(false) };
        let step = first.step(&self.session);
        match step {
            Ok(false) => Ok(true),
            Ok(true) => {
                if let Some(Opening { order, channel: Some(channel), ends: Some((pipe, ends)) }) =
                    self.opening.pop_front()
                {
                    // A caller that went away drops the pipe, and the lane closes itself.
                    drop(order.answer.send(Ok(pipe)));
                    self.lanes.push(Lane::new(channel, ends));
                }
                Ok(true)
            }
            Err(error) if error.code() == ErrorCode::Session(-37) => {
                if matches!(self.session.block_directions(), BlockDirections::Outbound | BlockDirections::Both) {
                    self.stuck = Some(Stuck::Opening);
                }
                Ok(false)
            }
            // -21: refused to open, -22: refused to run.
            Err(error) if matches!(error.code(), ErrorCode::Session(-21 | -22)) => {
                if let Some(Opening { order, .. }) = self.opening.pop_front() {
                    drop(order.answer.send(Err(error.message().to_owned())));
                }
                Ok(true)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Sleeps until the socket, an order, a reader or the keep-alive needs the thread.
    fn wait(&mut self) -> io::Result<()> {
        if self.stuck.is_none() && self.lanes.iter().any(Lane::has_work) {
            return Ok(());
        }
        let mut limit = KEEPALIVE;
        if !self.opening.is_empty() {
            limit = BETWEEN;
        } else if self.stuck.is_none() && self.quiet_since.elapsed() >= KEEPALIVE {
            self.session.keepalive_send()?;
            self.quiet_since = Instant::now();
        }
        // Bytes that nobody takes off the socket would make this a busy loop; a closed connection still shows.
        let reading = !self.opening.is_empty() || !self.lanes.iter().all(Lane::is_held);
        let mut interest = if reading { PollFlags::IN } else { PollFlags::RDHUP };
        if self.stuck.is_some() {
            interest |= PollFlags::OUT;
        }
        let timeout = rustix::event::Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(1),
            tv_nsec: i64::from(limit.subsec_nanos()),
        };
        let mut fds = [PollFd::new(&self.socket, interest), PollFd::new(self.waker.fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let socket = fds[0].revents();
        self.waker.clear();
        if !reading && socket.intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl Opening {
    /// True once the channel is open and running.
    fn step(&mut self, session: &Session) -> Result<bool, ssh2::Error> {
        match (&mut self.channel, &self.order.what) {
            (None, What::Exec(_)) => {
                self.channel = Some(session.channel_open("session", WINDOW, PACKET, None)?);
                Ok(false)
            }
            (None, What::Tcp { host, port }) => {
                self.channel = Some(session.channel_direct_tcpip(host, *port, None)?);
                Ok(true)
            }
            (Some(channel), What::Exec(command)) => {
                channel.exec(command)?;
                Ok(true)
            }
            (Some(_), What::Tcp { .. }) => Ok(true),
        }
    }
}
