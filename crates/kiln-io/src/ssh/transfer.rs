//! Files up and down, and TCP from inside the guest.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use kiln_core::event::Stream;
use tokio::{fs, io::AsyncWriteExt as _, sync::mpsc, time::timeout};

use super::{
    SshGuest,
    link::{NotOpened, What},
    pipe::{Chunk, Pipe},
    script::{self, INLINE, Unpack, Words},
    shell::{Broken, Tail, Talk},
    tar, title,
};
use crate::{
    guest::{Bundle, Entry, GuestError, Output as _, Progress, Quiet},
    random,
};

/// A stream with many small entries is mostly headers: this bounds what travels as text.
const INLINE_ENTRIES: usize = 64;

impl SshGuest {
    pub(super) async fn upload_entries(
        &self,
        directory: &str,
        entries: &[Entry],
        progress: &dyn Progress,
    ) -> Result<(), GuestError> {
        tar::check(entries)?;
        let words = Words::new();
        if tar::size(entries) > INLINE || entries.len() > INLINE_ENTRIES {
            let script = script::unpack(directory, &words, Unpack::Stdin)?;
            return self.stream(directory, entries, &words, script, progress).await;
        }
        let text = script::unpack(directory, &words, Unpack::Inline(&script::packed(entries, &words.name)?))?;
        let during = format!("uploading to `{directory}`");
        let start = std::time::Instant::now();
        let (mut slot, mut shell) = self.shell(&during).await?;
        shell.discard_leftovers();
        let complaint = Tail::default();
        let mut talk = Talk::new(&words.marker);
        let ended = match shell.send(text).await {
            Ok(()) => shell.listen(&mut talk, &complaint).await,
            Err(broken) => Err(broken),
        };
        match ended {
            Ok(status) => {
                *slot = Some(shell);
                progress.at(tar::size(entries));
                unpacked(directory, &status, &complaint)
            }
            Err(Broken::Link(_)) => Err(self.lost(during, start, true, &mut slot).await),
            Err(_) => Err(GuestError::Lost { during, after: start.elapsed() }),
        }
    }

    /// A bundle that is too large for the shell's text.
    pub(super) async fn upload_bundle(&self, bundle: &Bundle) -> Result<(), GuestError> {
        tar::check(&bundle.entries)?;
        let words = Words::new();
        let script = script::unpack(&bundle.directory, &words, Unpack::Bundle)?;
        self.stream(&bundle.directory, &bundle.entries, &words, script, &Quiet).await
    }

    /// One tar stream down a channel of its own.
    async fn stream(
        &self,
        directory: &str,
        entries: &[Entry],
        words: &Words,
        script: String,
        progress: &dyn Progress,
    ) -> Result<(), GuestError> {
        let start = std::time::Instant::now();
        let during = format!("uploading to `{directory}`");
        let mut pipe = self.pipe(&script, &during).await?;
        let (sender, mut pieces) = mpsc::channel(4);
        let (entries, seal) = (entries.to_vec(), words.name.clone());
        // Read ahead on a thread of its own, so that the disk and the network work at the same time.
        let reader = tokio::task::spawn_blocking(move || {
            tar::write(&entries, &seal, &mut |piece, done| {
                sender.blocking_send((piece, done)).map_err(|_| GuestError::Cancelled)
            })
        });
        let mut refused = false;
        while let Some((piece, done)) = pieces.recv().await {
            if pipe.send(piece).await.is_err() {
                refused = true;
                break;
            }
            progress.at(done);
        }
        drop(pieces);
        let read = reader.await.unwrap_or(Err(GuestError::Cancelled));
        if !refused {
            // A local file that cannot be read leaves the stream without its seal, and the guest removes what came.
            read?;
        }
        pipe.close_input();
        let complaint = Tail::default();
        let mut talk = Talk::new(&words.marker);
        loop {
            match pipe.next().await {
                Some(Chunk::Data(stream, bytes)) => {
                    if let Some(status) = talk.take(stream, &bytes, &complaint) {
                        return unpacked(directory, &status, &complaint);
                    }
                }
                Some(Chunk::End) => return Err(failed(directory, &complaint.text())),
                None => return Err(self.lost_alone(during, start).await),
            }
        }
    }

    pub(super) async fn download_file(&self, remote: &str, local: &Path) -> Result<u64, GuestError> {
        let during = format!("downloading `{remote}`");
        let start = std::time::Instant::now();
        let nonce = random::nonce();
        if remote.contains('\0') {
            return Err(GuestError::Remote { operation: during, reason: "the path holds a NUL byte".to_owned() });
        }
        let quoted = script::quote(remote);
        let script = format!("exec <{quoted} || exit 1\ncat && printf '{nonce} 0\\n' >&2 && printf '{nonce} 0\\n'\n");
        let mut pipe = self.pipe(&script, &during).await?;
        let mut part = Part::create(local).await?;
        let complaint = Tail::default();
        let (mut out, mut err) = (super::marker::Scanner::new(&nonce), super::marker::Scanner::new(&nonce));
        loop {
            match pipe.next().await {
                Some(Chunk::Data(Stream::Stdout, bytes)) => {
                    let mut pieces = Vec::with_capacity(bytes.len());
                    out.push(&bytes, &mut |bytes| pieces.extend_from_slice(bytes));
                    part.write(&pieces).await?;
                }
                Some(Chunk::Data(Stream::Stderr, bytes)) => {
                    err.push(&bytes, &mut |bytes| complaint.write(Stream::Stderr, bytes));
                }
                Some(Chunk::End) => {
                    return Err(GuestError::Remote { operation: during, reason: complaint.text() });
                }
                None => return Err(self.lost_alone(during, start).await),
            }
            if out.found().is_some() && err.found().is_some() {
                return part.finish().await;
            }
        }
    }

    pub(super) async fn exchange_bytes(
        &self,
        host: &str,
        port: u16,
        request: &[u8],
        limit: usize,
        deadline: Duration,
    ) -> Result<Vec<u8>, GuestError> {
        let operation = format!("connecting to {host} port {port}");
        let failed = |reason: String| GuestError::Remote { operation: operation.clone(), reason };
        let talk = async {
            let link = self.live_link(&operation).await?;
            let opened = link.channel(What::Tcp { host: host.to_owned(), port }).await;
            let mut pipe = opened.map_err(|error| match error {
                NotOpened::Refused(reason) => failed(reason),
                NotOpened::Dead => GuestError::Lost { during: operation.clone(), after: Duration::ZERO },
            })?;
            let _ = pipe.send(request.to_vec()).await;
            let mut answer = Vec::new();
            while answer.len() < limit {
                match pipe.next().await {
                    Some(Chunk::Data(_, bytes)) => answer.extend(bytes),
                    Some(Chunk::End) => break,
                    None => return Err(GuestError::Lost { during: operation.clone(), after: Duration::ZERO }),
                }
            }
            answer.truncate(limit);
            Ok(answer)
        };
        timeout(deadline, talk).await.unwrap_or_else(|_| Err(failed(format!("no answer within {deadline:?}"))))
    }

    /// A connection that lives, waiting for the shell only where it has to be replaced.
    async fn live_link(&self, during: &str) -> Result<std::sync::Arc<super::Link>, GuestError> {
        if self.link().is_dead() {
            let (mut slot, shell) = self.shell(during).await?;
            *slot = Some(shell);
        }
        Ok(self.link())
    }

    async fn pipe(&self, script: &str, during: &str) -> Result<Pipe, GuestError> {
        let link = self.live_link(during).await?;
        let command = format!("exec sh -c {}", script::quote(script));
        link.channel(What::Exec(command)).await.map_err(|error| match error {
            NotOpened::Refused(reason) => GuestError::Remote { operation: during.to_owned(), reason },
            NotOpened::Dead => GuestError::Lost { during: during.to_owned(), after: Duration::ZERO },
        })
    }

    async fn lost_alone(&self, during: String, start: std::time::Instant) -> GuestError {
        let mut slot = self.shell.lock().await;
        self.lost(title(&during), start, true, &mut slot).await
    }
}

fn unpacked(directory: &str, status: &str, complaint: &Tail) -> Result<(), GuestError> {
    match status {
        "0" => Ok(()),
        "9" => Err(GuestError::Corrupted { path: directory.to_owned() }),
        _ => Err(failed(directory, &complaint.text())),
    }
}

fn failed(directory: &str, complaint: &str) -> GuestError {
    let reason = if complaint.is_empty() { "the guest's shell ended" } else { complaint };
    GuestError::Remote { operation: format!("unpacking into `{directory}`"), reason: reason.to_owned() }
}

/// A local file that appears under its name only when it is complete.
struct Part {
    file: fs::File,
    temporary: PathBuf,
    path: PathBuf,
    bytes: u64,
    done: bool,
}

impl Part {
    async fn create(path: &Path) -> Result<Self, GuestError> {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}.part", &random::nonce()[..8]));
        let part = PathBuf::from(name);
        let file = fs::File::create_new(&part).await.map_err(local(&part))?;
        Ok(Self { file, temporary: part, path: path.to_owned(), bytes: 0, done: false })
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), GuestError> {
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes).await.map_err(local(&self.path))
    }

    async fn finish(mut self) -> Result<u64, GuestError> {
        self.file.sync_all().await.map_err(local(&self.path))?;
        fs::rename(&self.temporary, &self.path).await.map_err(local(&self.path))?;
        self.done = true;
        Ok(self.bytes)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.done {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

fn local(path: &Path) -> impl FnOnce(std::io::Error) -> GuestError {
    let path = path.display().to_string();
    move |source| GuestError::Local { path, source }
}
