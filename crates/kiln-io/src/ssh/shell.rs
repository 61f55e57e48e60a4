//! The one persistent shell in the guest: each command is one text down and one marker back, one round trip.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kiln_core::event::Stream;
use tokio::time::timeout;

use super::{
    Target,
    link::{Link, NotOpened, What},
    marker::Scanner,
    pipe::{Chunk, Pipe},
    script, tree,
};
use crate::{guest::Output, random};

/// How long ending a command may take: two seconds of grace in the guest, and the slowness of an emulated machine.
const ENDING: Duration = Duration::from_secs(30);
/// Bytes of error text kept for messages.
const TAIL: usize = 4 << 10;

#[derive(Debug)]
pub(super) struct Shell {
    pipe: Pipe,
    pub(super) link: Arc<Link>,
    pub(super) boot_id: String,
    pub(super) files: script::Files,
}

/// The conversation broke off.
#[derive(Debug)]
pub(super) enum Broken {
    /// The connection is gone, for this reason.
    Link(String),
    /// Only the shell is gone: something killed it.
    Shell,
    /// It never ran.
    Refused(String),
}

/// One command's way back.
#[derive(Debug)]
pub(super) struct Talk {
    out: Scanner,
    err: Scanner,
}

impl Talk {
    pub(super) fn new(nonce: &str) -> Self {
        Self { out: Scanner::new(nonce), err: Scanner::new(nonce) }
    }

    /// Passes a chunk on; the status once both streams have ended.
    pub(super) fn take(&mut self, stream: Stream, bytes: &[u8], output: &dyn Output) -> Option<String> {
        let scanner = if stream == Stream::Stdout { &mut self.out } else { &mut self.err };
        scanner.push(bytes, &mut |bytes| output.write(stream, bytes));
        self.err.found().and_then(|_| self.out.found()).map(str::to_owned)
    }
}

impl Shell {
    /// Starts a shell and waits for its first words.
    pub(super) async fn open(link: Arc<Link>, target: &Target) -> Result<Self, Broken> {
        let pipe = link.channel(What::Exec("exec sh".to_owned())).await.map_err(|error| match error {
            NotOpened::Refused(reason) => Broken::Refused(reason),
            NotOpened::Dead => Broken::Link(link.why()),
        })?;
        let files = script::Files::new(&target.private);
        let mut shell = Self { pipe, link, boot_id: String::new(), files };
        let nonce = random::nonce();
        let complaint = Tail::default();
        let said = async {
            shell.send(script::greeting(&target.private, &nonce)).await?;
            shell.listen(&mut Talk::new(&nonce), &complaint).await
        };
        match timeout(target.attempt, said).await {
            Ok(Ok(boot_id)) => shell.boot_id = boot_id,
            Ok(Err(Broken::Shell)) => return Err(Broken::Refused(complaint.text())),
            Ok(Err(broken)) => return Err(broken),
            Err(_) => return Err(Broken::Refused(format!("it is silent for {:?}", target.attempt))),
        }
        Ok(shell)
    }

    pub(super) async fn send(&self, text: String) -> Result<(), Broken> {
        for piece in text.into_bytes().chunks(256 << 10) {
            self.pipe.send(piece.to_vec()).await.map_err(|_| self.broken())?;
        }
        Ok(())
    }

    /// Passes on output until the command has ended; gives its status.
    pub(super) async fn listen(&mut self, talk: &mut Talk, output: &dyn Output) -> Result<String, Broken> {
        loop {
            match self.pipe.next().await {
                Some(Chunk::Data(stream, bytes)) => {
                    if let Some(status) = talk.take(stream, &bytes, output) {
                        return Ok(status);
                    }
                }
                Some(Chunk::End) | None => return Err(self.broken()),
            }
        }
    }

    /// Drops what leftovers of earlier commands have written since.
    pub(super) fn discard_leftovers(&mut self) {
        while let Some(Chunk::Data(..)) = self.pipe.ready() {}
    }

    /// Ends the running command and everything it started; gives the drawing of its processes. Best effort.
    pub(super) async fn end(&mut self, talk: &mut Talk, output: &dyn Output) -> (String, bool) {
        let killing = async {
            let mut pipe = self.link.channel(What::Exec("exec sh".to_owned())).await.ok()?;
            pipe.send(script::kill(&self.files).into_bytes()).await.ok()?;
            pipe.close_input();
            let mut lines = Vec::new();
            while let Some(Chunk::Data(stream, bytes)) = pipe.next().await {
                if stream == Stream::Stdout && lines.len() < 16 << 10 {
                    lines.extend(bytes);
                }
            }
            Some(tree::draw(&String::from_utf8_lossy(&lines)))
        };
        let drawing = timeout(ENDING, killing).await.ok().flatten().unwrap_or_default();
        let usable = matches!(timeout(Duration::from_secs(5), self.listen(talk, output)).await, Ok(Ok(_)));
        (drawing, usable)
    }

    fn broken(&self) -> Broken {
        if self.link.is_dead() { Broken::Link(self.link.why()) } else { Broken::Shell }
    }
}

/// Keeps the end of stderr for an error message.
#[derive(Debug, Default)]
pub(super) struct Tail(Mutex<Vec<u8>>);

impl Tail {
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).trim().to_owned()
    }
}

impl Output for Tail {
    fn write(&self, stream: Stream, bytes: &[u8]) {
        if stream == Stream::Stderr {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(bytes);
            let surplus = kept.len().saturating_sub(TAIL);
            kept.drain(..surplus);
        }
    }
}
