//! The guest over SSH against a real OpenSSH server. The "guest" is this machine: nothing here may destroy anything.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use kiln_core::event::Stream;
use kiln_io::{
    guest::{Command, Exit, Guest as _, GuestError, Output, Quiet},
    ssh::SshGuest,
};
use kiln_tests::{proxy::Proxy, sshd::Sshd};
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(120);

/// Keeps both streams.
#[derive(Debug, Default)]
struct Kept(Mutex<(Vec<u8>, Vec<u8>)>);

impl Output for Kept {
    fn write(&self, stream: Stream, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap();
        if stream == Stream::Stdout { kept.0.extend(bytes) } else { kept.1.extend(bytes) }
    }
}

impl Kept {
    fn texts(self) -> (String, String) {
        let (out, err) = self.0.into_inner().unwrap();
        (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }
}

async fn guest(sshd: &Sshd) -> SshGuest {
    SshGuest::connect(sshd.target(sshd.port), CancellationToken::new()).await.unwrap_or_else(|error| {
        panic!("{error}\n{}", sshd.log());
    })
}

async fn run(guest: &SshGuest, script: &str) -> (Exit, String, String) {
    let kept = Kept::default();
    let exit = guest.run(&Command::new(script, LONG), &kept).await.unwrap();
    let (out, err) = kept.texts();
    (exit, out, err)
}

#[tokio::test]
async fn a_script_gives_both_streams_and_its_status() {
    let sshd = Sshd::start().await;
    let guest = guest(&sshd).await;
    assert_eq!(run(&guest, "echo out; echo err >&2; exit 3").await, (Exit::Code(3), "out\n".into(), "err\n".into()));
    assert_eq!(run(&guest, "printf 'no end'").await, (Exit::Code(0), "no end".into(), String::new()));
    assert_eq!(run(&guest, "kill -9 $$").await.0, Exit::Signal("KILL".into()));
    assert_eq!(run(&guest, "echo 'ünï' \"it's\" | cat").await.1, "ünï it's\n");
}

#[tokio::test]
async fn fifty_steps_cost_fifty_round_trips() {
    let sshd = Sshd::start().await;
    let proxy = Proxy::delaying(sshd.port, Duration::from_millis(20));
    let guest = SshGuest::connect(sshd.target(proxy.port), CancellationToken::new()).await.unwrap();
    let start = Instant::now();
    for _ in 0..50 {
        assert!(guest.run(&Command::new("true", LONG), &Quiet).await.unwrap().success());
    }
    eprintln!("50 steps: {:?}", start.elapsed());
}

#[tokio::test]
async fn a_hanging_command_is_killed_with_its_tree_shown() {
    let sshd = Sshd::start().await;
    let guest = guest(&sshd).await;
    let command = Command::new("sh -c 'trap \"\" TERM; sleep 1000; true' & sleep 1001; wait", Duration::from_secs(1));
    let error = guest.run(&command, &Quiet).await.unwrap_err();
    eprintln!("{error}");
    assert!(
        matches!(&error, GuestError::TimedOut { tree, .. } if tree.contains("sleep 1000") && tree.contains("sleep 1001"))
    );
    assert_eq!(run(&guest, "echo alive").await.1, "alive\n");
}
