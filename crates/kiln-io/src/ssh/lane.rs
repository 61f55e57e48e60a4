//! One channel on the session's thread: a list of small operations that never block.
//!
//! libssh2 holds one half-sent packet a session. The operation that left it there must be repeated, with the same bytes,
//! before any other may send; such an operation is `stuck`.

use std::{
    io::{self, Read as _, Write as _},
    sync::atomic::Ordering,
};

use kiln_core::event::Stream;
use ssh2::{BlockDirections, Channel, ErrorCode, Session};
use tokio::sync::mpsc::error::{TryRecvError, TrySendError};

use super::pipe::{Chunk, Ends};

/// Operations of one kind in a row before the other channels get their turn.
const TURN: usize = 16;
pub(super) const CHUNK: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Write,
    Eof,
    Read(Stream),
    End,
    Close,
}

/// What a turn of a lane came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Progress,
    Idle,
    /// A packet is half sent: this lane goes first until it is out.
    Stuck,
    Finished,
}

#[expect(clippy::struct_excessive_bools, reason = "each bool is a message of the protocol that was sent or seen")]
pub(super) struct Lane {
    channel: Channel,
    ends: Ends,
    writing: Vec<u8>,
    written: usize,
    eof_sent: bool,
    /// Chunks that found the queue full.
    held: Option<Chunk>,
    /// The last chunk was made; `ended` once it was handed over.
    end_held: bool,
    ended: bool,
    closing: bool,
    stuck: Option<Operation>,
}

impl Lane {
    pub(super) fn new(channel: Channel, ends: Ends) -> Self {
        Self {
            channel,
            ends,
            writing: Vec::new(),
            written: 0,
            eof_sent: false,
            held: None,
            end_held: false,
            ended: false,
            closing: false,
            stuck: None,
        }
    }

    /// Does what can be done now. An error ends the whole connection.
    pub(super) fn turn(&mut self, session: &Session, buffer: &mut [u8]) -> io::Result<Turn> {
        const ALL: [Operation; 5] = [
            Operation::Write,
            Operation::Eof,
            Operation::Read(Stream::Stdout),
            Operation::Read(Stream::Stderr),
            Operation::End,
        ];
        let mut progress = false;
        if let Some(operation) = self.stuck {
            match self.attempt(operation, session, buffer)? {
                Turn::Stuck => return Ok(Turn::Stuck),
                Turn::Finished => return Ok(Turn::Finished),
                Turn::Progress | Turn::Idle => progress = true,
            }
        }
        if self.ends.output.is_closed() || self.ended {
            self.closing = true;
        }
        let operations: &[Operation] = if self.closing { &[Operation::Close] } else { &ALL };
        for operation in operations {
            match self.attempt(*operation, session, buffer)? {
                Turn::Progress => progress = true,
                Turn::Idle => {}
                other => return Ok(other),
            }
        }
        Ok(if progress { Turn::Progress } else { Turn::Idle })
    }

    /// Whether packets that another lane took off the socket wait for this one.
    pub(super) fn has_work(&self) -> bool {
        if self.closing {
            return false;
        }
        let window = self.channel.read_window();
        let unread = self.held.is_none() && window.available > 0;
        let unwritten = self.written < self.writing.len() && self.channel.write_window().remaining > 0;
        unread || unwritten || (self.held.is_none() && !self.ended && self.channel.eof())
    }

    /// Whether it takes nothing off the socket because its reader is slow.
    pub(super) fn is_held(&self) -> bool {
        self.held.is_some() && !self.closing
    }

    fn attempt(&mut self, operation: Operation, session: &Session, buffer: &mut [u8]) -> io::Result<Turn> {
        self.stuck = None;
        let done = match operation {
            Operation::Write => self.write(),
            Operation::Eof => self.send_eof(),
            Operation::Read(stream) => self.read(stream, buffer),
            Operation::End => Ok(self.end()),
            Operation::Close => return self.close(session),
        };
        match done {
            Ok(progress) => Ok(if progress { Turn::Progress } else { Turn::Idle }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(self.blocked(operation, session)),
            Err(error) => Err(error),
        }
    }

    fn blocked(&mut self, operation: Operation, session: &Session) -> Turn {
        if matches!(session.block_directions(), BlockDirections::Outbound | BlockDirections::Both) {
            self.stuck = Some(operation);
            return Turn::Stuck;
        }
        Turn::Idle
    }

    fn write(&mut self) -> io::Result<bool> {
        let mut progress = false;
        for _ in 0..TURN {
            if self.written == self.writing.len() {
                match self.ends.input.try_recv() {
                    Ok(bytes) => (self.writing, self.written) = (bytes, 0),
                    Err(_) => return Ok(progress),
                }
            }
            match self.channel.write(&self.writing[self.written..])? {
                0 => return Ok(progress),
                count => self.written += count,
            }
            progress = true;
        }
        Ok(progress)
    }

    fn send_eof(&mut self) -> io::Result<bool> {
        if self.eof_sent || self.written < self.writing.len() {
            return Ok(false);
        }
        match self.ends.input.try_recv() {
            Err(TryRecvError::Disconnected) => {}
            Err(TryRecvError::Empty) => return Ok(false),
            Ok(bytes) => {
                (self.writing, self.written) = (bytes, 0);
                return Ok(true);
            }
        }
        self.channel.send_eof()?;
        self.eof_sent = true;
        Ok(true)
    }

    fn read(&mut self, stream: Stream, buffer: &mut [u8]) -> io::Result<bool> {
        let id = i32::from(stream == Stream::Stderr);
        let mut progress = false;
        for _ in 0..TURN {
            if !self.deliver() {
                return Ok(progress);
            }
            let count = self.channel.stream(id).read(&mut buffer[..CHUNK])?;
            if count == 0 {
                return Ok(progress);
            }
            self.held = Some(Chunk::Data(stream, buffer[..count].to_vec()));
            self.deliver();
            progress = true;
        }
        Ok(progress)
    }

    /// Hands over the held chunk; false while the queue is full.
    fn deliver(&mut self) -> bool {
        for last in [false, true] {
            let Some(chunk) = self.held.take() else { return true };
            match self.ends.output.try_send(chunk) {
                // A reader that went away is noticed at the next turn.
                Ok(()) | Err(TrySendError::Closed(_)) => return true,
                Err(TrySendError::Full(chunk)) => self.held = Some(chunk),
            }
            if !last {
                // Said before the second look, so that a reader who empties the queue in between wakes us.
                self.ends.stalled.store(true, Ordering::Release);
            }
        }
        false
    }

    /// Once the other side has said all: the last chunk, then the lane closes itself.
    fn end(&mut self) -> bool {
        if !self.deliver() || !self.channel.eof() {
            return false;
        }
        if !self.end_held {
            self.held = Some(Chunk::End);
            self.end_held = true;
        }
        self.ended = self.deliver();
        self.ended
    }

    /// Closes for good. The other side's answer is not waited for longer than it takes to send.
    fn close(&mut self, session: &Session) -> io::Result<Turn> {
        match self.channel.close() {
            Ok(()) => Ok(Turn::Finished),
            // -26: already closed.
            Err(error) if error.code() == ErrorCode::Session(-26) => Ok(Turn::Finished),
            Err(error) => match io::Error::from(error) {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(self.blocked(Operation::Close, session)),
                error => Err(error),
            },
        }
    }
}
