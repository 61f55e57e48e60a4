//! A guest for tests: a directory made to look like a machine, in which scripts really run, with fake tools that log
//! how they were called. It needs user namespaces (`unshare`), as building a base does, and no root.

use std::fmt::Write as _;
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use kiln_core::event::Stream;
use kiln_io::{
    error::ProcessError,
    guest::{Access, Command, Content, Entry, Exit, Guest, GuestError, Output, Progress},
    process::{Limits, Spec, run_to_end},
};

use crate::encode::quote_always;

/// Tools of the build host that scripts may use as they are. Whatever else they call must be faked, so that a case does
/// not depend on what the host has installed.
const REAL: &[&str] = &[
    "awk",
    "base64",
    "basename",
    "cat",
    "chmod",
    "cp",
    "cut",
    "date",
    "df",
    "dirname",
    "env",
    "find",
    "getent",
    "grep",
    "head",
    "id",
    "ln",
    "ls",
    "mkdir",
    "mktemp",
    "mv",
    "printenv",
    "printf",
    "readlink",
    "rm",
    "sed",
    "seq",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "tail",
    "tee",
    "touch",
    "tr",
    "uniq",
    "wc",
    "xargs",
];

/// Mounts the host's programs read-only beneath the directory and goes inside. `$1` is the directory.
const ENTER: &str = r#"set -eu
cd "$1"
mount --bind /usr usr
mount -o remount,bind,ro usr
mount --rbind /dev dev
mount -t proc proc proc
exec chroot . /usr/bin/env -i PATH=/fake/bin HOME=/root /bin/sh /fake/script
"#;

/// A machine in a directory.
#[derive(Debug)]
pub struct FakeGuest {
    root: PathBuf,
    boots: AtomicU32,
    /// Serial: one script at a time, as over one shell.
    turn: tokio::sync::Mutex<()>,
    uploads: Mutex<Vec<(String, Entry)>>,
}

impl FakeGuest {
    /// Makes the machine in `root`, an empty directory. A command is a name and the shell text that its fake runs after
    /// having logged its arguments; a file is an absolute path and its text.
    pub fn new(
        root: &Path,
        commands: &BTreeMap<String, String>,
        files: &BTreeMap<String, String>,
    ) -> std::io::Result<Self> {
        for directory in ["usr", "dev", "proc", "etc", "var/tmp", "var/lib", "run", "tmp", "root", "home", "fake/bin"] {
            fs::create_dir_all(root.join(directory))?;
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            symlink(format!("usr/{name}"), root.join(name))?;
        }
        let passwd = "root:x:0:0:root:/root:/bin/sh\n";
        for (path, text) in [
            ("etc/os-release", "ID=debian\nVERSION_ID=12\n"),
            ("etc/passwd", passwd),
            ("etc/group", "root:x:0:\n"),
            ("etc/shadow", "root:*:19000::::::\n"),
        ] {
            fs::write(root.join(path), text)?;
        }
        for (path, text) in files {
            let place = root.join(path.trim_start_matches('/'));
            fs::create_dir_all(place.parent().unwrap_or(root))?;
            fs::write(place, text)?;
        }
        for name in REAL.iter().filter(|name| !commands.contains_key(**name)) {
            // Some of them are links through /etc, which is another one inside.
            let program = Path::new("/usr/bin").join(name).canonicalize()?;
            symlink(program, root.join("fake/bin").join(name))?;
        }
        // Only one user is mapped in the namespace, so changing owners cannot work there.
        let owners = ["chown".to_owned()];
        for (name, body) in
            owners.iter().map(|name| (name, "")).chain(commands.iter().map(|(name, body)| (name, body.as_str())))
        {
            let path = root.join("fake/bin").join(name);
            if name == "chown" && body.is_empty() && commands.contains_key("chown") {
                continue;
            }
            fs::write(&path, fake(name, body))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self {
            root: root.to_owned(),
            boots: AtomicU32::new(1),
            turn: tokio::sync::Mutex::new(()),
            uploads: Mutex::default(),
        })
    }

    /// Every call of a fake tool, in order, quoted as for a shell.
    pub fn calls(&self) -> Vec<String> {
        let log = fs::read_to_string(self.root.join("fake/log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Every entry that was sent, with the directory it was sent to.
    pub fn uploads(&self) -> Vec<(String, Entry)> {
        self.uploads.lock().map(|uploads| uploads.clone()).unwrap_or_default()
    }

    /// The place of a guest path on the host.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside.trim_start_matches('/'))
    }

    /// The directory of the fake tools on the host, for provisioners that run there.
    pub fn tools(&self) -> PathBuf {
        self.root.join("fake/bin")
    }

    fn lay_down(&self, directory: &str, entries: &[Entry]) -> std::io::Result<()> {
        let base = self.path(directory);
        fs::create_dir_all(&base)?;
        for entry in entries {
            let place = base.join(&entry.path);
            if let Some(parent) = place.parent() {
                fs::create_dir_all(parent)?;
            }
            match &entry.content {
                Content::Directory => fs::create_dir_all(&place)?,
                Content::Link(target) => symlink(target, &place)?,
                Content::Bytes(bytes) => fs::write(&place, bytes)?,
                Content::File { path, .. } => fs::copy(path, &place).map(|_| ())?,
            }
            if !matches!(entry.content, Content::Link(_)) {
                fs::set_permissions(&place, fs::Permissions::from_mode(entry.mode))?;
            }
            if let Ok(mut uploads) = self.uploads.lock() {
                uploads.push((directory.to_owned(), entry.clone()));
            }
        }
        Ok(())
    }

    fn script(command: &Command) -> String {
        let mut script = String::new();
        let secrets = command.secrets.iter().map(|(name, value)| (name, value.reveal()));
        for (name, value) in command.env.iter().map(|(name, value)| (name, value.as_str())).chain(secrets) {
            let _ = writeln!(script, "export {name}={}", quote_always(value));
        }
        format!("{script}cd {}\n{}", quote_always(command.directory.as_deref().unwrap_or("/root")), command.script)
    }
}

/// A tool that logs its name and arguments, then runs `body`.
fn fake(name: &str, body: &str) -> String {
    format!(
        "#!/bin/sh\n\
         {{\n\
         printf '%s' {name}\n\
         for argument; do\n\
         case $argument in '' | *[!A-Za-z0-9@%+=:,./_-]*) printf \" '%s'\" \"$argument\" ;; *) printf ' %s' \"$argument\" ;; esac\n\
         done\n\
         echo\n\
         }} >>\"${{0%/*}}/../log\"\n\
         {body}\n"
    )
}

#[async_trait]
impl Guest for FakeGuest {
    async fn run(&self, command: &Command, output: &dyn Output) -> Result<Exit, GuestError> {
        let _turn = self.turn.lock().await;
        let remote = |reason: String| GuestError::Remote { operation: "running a script".to_owned(), reason };
        if let Some(bundle) = &command.bundle {
            self.lay_down(&bundle.directory, &bundle.entries).map_err(|error| remote(error.to_string()))?;
        }
        fs::write(self.path("fake/script"), Self::script(command)).map_err(|error| remote(error.to_string()))?;
        let spec = Spec::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--net"])
            .args(["sh", "-c", ENTER, "sh"])
            .arg(&self.root);
        let limits = Limits { deadline: Some(command.timeout), ..Limits::default() };
        let mut line = |stream: Stream, text: &str| output.write(stream, format!("{text}\n").as_bytes());
        let ended = run_to_end(&spec, &limits, &mut line).await;
        if let Some(bundle) = &command.bundle {
            let _ = fs::remove_dir_all(self.path(&bundle.directory));
        }
        if fs::remove_file(self.path("fake/rebooted")).is_ok() {
            self.boots.fetch_add(1, Ordering::SeqCst);
            let during = "the script".to_owned();
            return Err(if command.reboots {
                GuestError::Lost { during, after: Duration::ZERO }
            } else {
                GuestError::Rebooted { during }
            });
        }
        match ended {
            Ok(finished) => {
                let signal = || Exit::Signal("KILL".to_owned());
                Ok(finished.status.code().map_or_else(signal, Exit::Code))
            }
            Err(ProcessError::TimedOut { limit, .. }) => Err(GuestError::TimedOut { limit, tree: String::new() }),
            Err(error) => Err(remote(error.to_string())),
        }
    }

    async fn upload(&self, directory: &str, entries: &[Entry], progress: &dyn Progress) -> Result<(), GuestError> {
        let remote =
            |error: std::io::Error| GuestError::Remote { operation: "upload".to_owned(), reason: error.to_string() };
        self.lay_down(directory, entries).map_err(remote)?;
        progress.at(entries.len() as u64);
        Ok(())
    }

    async fn download(&self, remote: &str, local: &Path) -> Result<u64, GuestError> {
        fs::copy(self.path(remote), local).map_err(|source| GuestError::Local { path: remote.to_owned(), source })
    }

    async fn exchange(&self, host: &str, port: u16, _: &[u8], _: usize, _: Duration) -> Result<Vec<u8>, GuestError> {
        let operation = format!("connecting to {host} port {port}");
        Err(GuestError::Remote { operation, reason: "nothing listens in a fake guest".to_owned() })
    }

    async fn boot_id(&self) -> Result<String, GuestError> {
        Ok(format!("boot-{}", self.boots.load(Ordering::SeqCst)))
    }

    async fn reconnect_after_reboot(&self, before: &str, deadline: Duration) -> Result<(), GuestError> {
        if self.boot_id().await? == before {
            return Err(GuestError::TimedOut { limit: deadline, tree: String::new() });
        }
        Ok(())
    }

    fn access(&self) -> Option<Access> {
        Some(Access {
            host: "192.0.2.1".to_owned(),
            port: 2222,
            user: "root".to_owned(),
            key: "/kiln/key".into(),
            known_hosts: "/kiln/known_hosts".into(),
            proxy: None,
        })
    }
}
