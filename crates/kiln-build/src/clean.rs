//! Cleaning: the last script of a bake, run in the guest before it is shut down and sealed.
//!
//! The script is one text for apt-, dnf- and apk-based guests. It refuses a guest in which packages are half installed
//! or something still installs (a step left it in the background). It does not decide whether the result is clean:
//! `kiln_disk::hygiene` does, from outside, on the finished disk.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use kiln_core::event::Stream;
use kiln_io::guest::{Command, Exit, Guest, GuestError, Output};

use crate::HOST_KEYS_UNIT;

const SCRIPT: &str = include_str!("clean/clean.sh");
/// What the script ends with when the guest is not ready to be cleaned.
const UNFINISHED: i32 = 20;
/// Lines of the script's stderr that an error quotes.
const QUOTED_LINES: usize = 20;

/// What cleaning needs to know of the bake.
#[derive(Debug, Clone)]
pub struct Cleaning {
    /// The public key the bake logs in with, as in `authorized_keys`; its comment does not matter.
    pub login_key: Option<String>,
    /// The guest's host name during the bake.
    pub host_name: Option<String>,
    /// Trimming a large disk takes minutes under emulation.
    pub timeout: Duration,
}

/// Why a guest could not be cleaned.
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    #[error("the guest is not finished: {reason}; let the step that started it wait for it")]
    Unfinished { reason: String },
    #[error("cleaning the guest failed ({exit:?}): {stderr}")]
    Script { exit: Exit, stderr: String },
    #[error("cleaning the guest failed")]
    Guest(#[from] GuestError),
}

/// Runs the cleaning script. Nothing may run in the guest afterwards but its shutdown.
pub async fn clean(guest: &dyn Guest, cleaning: &Cleaning, output: &dyn Output) -> Result<(), CleanError> {
    let mut command = Command::new(SCRIPT, cleaning.timeout);
    let mut set = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            command.env.insert(name.to_owned(), value.to_owned());
        }
    };
    set("KILN_LOGIN_KEY", cleaning.login_key.as_deref().map(without_comment).as_deref());
    set("KILN_HOST_NAME", cleaning.host_name.as_deref());
    set("KILN_HOST_KEYS_UNIT", Some(HOST_KEYS_UNIT));
    let quoted = Quoted { output, last: Mutex::default() };
    let exit = guest.run(&command, &quoted).await?;
    match exit {
        Exit::Code(0) => Ok(()),
        Exit::Code(UNFINISHED) => Err(CleanError::Unfinished { reason: quoted.text() }),
        exit => Err(CleanError::Script { exit, stderr: quoted.text() }),
    }
}

/// Type and base64 of a public key.
fn without_comment(key: &str) -> String {
    key.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

/// Hands output on and keeps the last lines of stderr.
struct Quoted<'a> {
    output: &'a dyn Output,
    last: Mutex<VecDeque<u8>>,
}

impl Quoted<'_> {
    /// Bytes kept; lines of a shell are short.
    const KEPT: usize = 4096;

    fn text(&self) -> String {
        let bytes: Vec<u8> = self.last.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.trim().lines().collect();
        lines[lines.len().saturating_sub(QUOTED_LINES)..].join("\n")
    }
}

impl Output for Quoted<'_> {
    fn write(&self, stream: Stream, bytes: &[u8]) {
        if stream == Stream::Stderr {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            last.extend(bytes);
            let surplus = last.len().saturating_sub(Self::KEPT);
            last.drain(..surplus);
        }
        self.output.write(stream, bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use async_trait::async_trait;
    use kiln_io::guest::{Access, Entry, Progress, Quiet};

    use super::*;

    /// Ends every script in the same way and keeps its environment.
    #[derive(Debug)]
    struct Ends {
        exit: Exit,
        stderr: &'static str,
        environment: Mutex<Vec<(String, String)>>,
    }

    impl Ends {
        fn with(exit: Exit, stderr: &'static str) -> Self {
            Self { exit, stderr, environment: Mutex::default() }
        }
    }

    #[async_trait]
    impl Guest for Ends {
        async fn run(&self, command: &Command, output: &dyn Output) -> Result<Exit, GuestError> {
            *self.environment.lock().unwrap() = command.env.clone().into_iter().collect();
            output.write(Stream::Stderr, self.stderr.as_bytes());
            Ok(self.exit.clone())
        }

        async fn upload(&self, _: &str, _: &[Entry], _: &dyn Progress) -> Result<(), GuestError> {
            Err(GuestError::Cancelled)
        }

        async fn download(&self, _: &str, _: &Path) -> Result<u64, GuestError> {
            Err(GuestError::Cancelled)
        }

        async fn exchange(&self, _: &str, _: u16, _: &[u8], _: usize, _: Duration) -> Result<Vec<u8>, GuestError> {
            Err(GuestError::Cancelled)
        }

        async fn boot_id(&self) -> Result<String, GuestError> {
            Err(GuestError::Cancelled)
        }

        async fn reconnect_after_reboot(&self, _: &str, _: Duration) -> Result<(), GuestError> {
            Err(GuestError::Cancelled)
        }

        fn access(&self) -> Option<Access> {
            None
        }
    }

    fn cleaning() -> Cleaning {
        Cleaning {
            login_key: Some("ssh-ed25519 AAAA kiln bake\n".to_owned()),
            host_name: None,
            timeout: Duration::from_mins(1),
        }
    }

    #[tokio::test]
    async fn hands_over_the_login_key_without_its_comment() {
        let guest = Ends::with(Exit::Code(0), "");
        clean(&guest, &cleaning(), &Quiet).await.unwrap();
        let environment = guest.environment.lock().unwrap();
        assert_eq!(environment.last(), Some(&("KILN_LOGIN_KEY".to_owned(), "ssh-ed25519 AAAA".to_owned())));
    }

    #[tokio::test]
    async fn tells_an_unfinished_guest_from_a_failed_script() {
        let guest = Ends::with(Exit::Code(20), "`dpkg` (process 77) is still running\n");
        let error = clean(&guest, &cleaning(), &Quiet).await.unwrap_err();
        assert!(matches!(&error, CleanError::Unfinished { reason } if reason.contains("process 77")), "{error}");
        let guest = Ends::with(Exit::Signal("KILL".to_owned()), "out of memory\n");
        let error = clean(&guest, &cleaning(), &Quiet).await.unwrap_err();
        assert!(matches!(&error, CleanError::Script { stderr, .. } if stderr == "out of memory"), "{error}");
    }

    #[test]
    fn never_stops_what_carries_the_connection() {
        for unit in ["ssh.service", "sshd.service", "systemd-journald.service", "user@*"] {
            assert!(SCRIPT.contains(unit), "{unit} is not spared");
        }
    }
}
