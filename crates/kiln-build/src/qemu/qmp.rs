//! QEMU's machine protocol: JSON lines over a Unix socket in the build's directory. Only what kiln uses.

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{oneshot, watch},
};

/// What QEMU has told by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The guest asked for power off, or something else ended the machine: the reason.
    pub(super) shutdown: Option<String>,
    /// Resets that the guest asked for.
    pub(super) resets: u32,
    /// The guest's disk met an error on the host; the machine stands still.
    pub(super) disk_error: Option<String>,
    pub(super) closed: bool,
}

/// The connection.
#[derive(Debug)]
pub(super) struct Qmp {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    waiting: Waiting,
    seen: watch::Receiver<Seen>,
    next: AtomicU64,
}

type Waiting = Arc<Mutex<BTreeMap<u64, oneshot::Sender<Result<Value, String>>>>>;

impl Qmp {
    /// Connects to the socket `name` in `directory` and finishes the greeting. One attempt.
    pub(super) async fn connect(directory: &Path, name: &str, limit: Duration) -> Result<Self, String> {
        let stream = tokio::time::timeout(limit, connect(directory, name)).await.map_err(|_| silent(limit))?;
        let (reader, writer) = stream.map_err(|error| error.to_string())?.into_split();
        let (sender, seen) = watch::channel(Seen::default());
        let waiting = Waiting::default();
        tokio::spawn(listen(reader, sender, waiting.clone()));
        let qmp = Self { writer: tokio::sync::Mutex::new(writer), waiting, seen, next: AtomicU64::new(1) };
        qmp.execute("qmp_capabilities", json!({}), limit).await?;
        Ok(qmp)
    }

    /// Runs one command.
    pub(super) async fn execute(&self, command: &str, arguments: Value, limit: Duration) -> Result<Value, String> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments, "id": id}));
        let work = async {
            let sent = self.writer.lock().await.write_all(line.as_bytes()).await;
            sent.map_err(|error| format!("`{command}`: {error}"))?;
            answer.await.unwrap_or_else(|_| Err("QEMU closed the connection".to_owned()))
        };
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(silent(limit)))
    }

    /// The port on the host's loopback that QEMU chose to forward to the guest's port 22.
    pub(super) async fn ssh_port(&self, limit: Duration) -> Result<u16, String> {
        let arguments = json!({"command-line": "info usernet"});
        let text = self.execute("human-monitor-command", arguments, limit).await?;
        let text = text.as_str().unwrap_or_default();
        forwarded_port(text).ok_or_else(|| format!("no forwarded port in `info usernet`: {text}"))
    }

    pub(super) fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }
}

fn silent(limit: Duration) -> String {
    format!("no answer within {limit:?}")
}

/// A socket's path may be 107 bytes at most; through the directory's descriptor any directory will do.
async fn connect(directory: &Path, name: &str) -> std::io::Result<UnixStream> {
    let handle = File::open(directory)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd())).join(name);
    UnixStream::connect(path).await
}

async fn listen(reader: OwnedReadHalf, sender: watch::Sender<Seen>, waiting: Waiting) {
    let mut lines = BufReader::new(reader).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(message) = serde_json::from_str::<Value>(&line) else { continue };
        if let Some(event) = message["event"].as_str() {
            sender.send_modify(|seen| note(seen, event, &message["data"]));
        } else if let Some(id) = message["id"].as_u64() {
            let sender = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            if let Some(sender) = sender {
                let _ = sender.send(answer(&message));
            }
        }
    }
    waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
    sender.send_modify(|seen| seen.closed = true);
}

fn answer(message: &Value) -> Result<Value, String> {
    match message.get("return") {
        Some(value) => Ok(value.clone()),
        None => Err(message["error"]["desc"].as_str().unwrap_or("an error without words").to_owned()),
    }
}

fn note(seen: &mut Seen, event: &str, data: &Value) {
    match event {
        "SHUTDOWN" => seen.shutdown = Some(data["reason"].as_str().unwrap_or("unknown").to_owned()),
        "RESET" if data["guest"].as_bool() == Some(true) => seen.resets += 1,
        "BLOCK_IO_ERROR" => {
            let reason = data["reason"].as_str().unwrap_or("unknown error");
            let operation = data["operation"].as_str().unwrap_or("operation");
            seen.disk_error = Some(format!("{operation}: {reason}"));
        }
        _ => {}
    }
}

/// From the table that `info usernet` prints: protocol and state, descriptor, source address and port, ...
fn forwarded_port(text: &str) -> Option<u16> {
    let line = text.lines().find(|line| line.contains("TCP[HOST_FORWARD]"))?;
    line.split_whitespace().nth(3)?.parse().ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_port_from_the_table_of_usernet() {
        let text = "Hub -1 (net0):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n  TCP[HOST_FORWARD]  16       127.0.0.1 35717       10.0.2.15    22     0     0\r\n  UDP[236 sec]  18 10.0.2.15 54 10.0.2.3 53 0 0\r\n";
        assert_eq!(forwarded_port(text), Some(35717));
        assert_eq!(forwarded_port("Hub -1 (net0):\r\n"), None);
    }

    #[test]
    fn keeps_what_matters_of_the_events() {
        let mut seen = Seen::default();
        note(&mut seen, "RESET", &json!({"guest": true, "reason": "guest-reset"}));
        note(&mut seen, "RESET", &json!({"guest": false}));
        note(&mut seen, "SHUTDOWN", &json!({"guest": true, "reason": "guest-shutdown"}));
        note(
            &mut seen,
            "BLOCK_IO_ERROR",
            &json!({"operation": "write", "nospace": true, "reason": "No space left on device"}),
        );
        let expected = Seen {
            shutdown: Some("guest-shutdown".into()),
            resets: 1,
            disk_error: Some("write: No space left on device".into()),
            closed: false,
        };
        assert_eq!(seen, expected);
    }
}
