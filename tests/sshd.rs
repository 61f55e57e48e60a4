//! A real OpenSSH server on a loopback port, with a host key and a login key of its own. What it runs, it runs on this
//! very machine, as the user of the tests.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use kiln_io::{
    fs::{write_atomic, write_private},
    keys::{KeyPair, PublicKey},
    process::{Running, Sink, Spec, spawn, which},
    ssh::Target,
    time::{Attempt, Policy, SystemClock, poll_until},
};
use tokio_util::sync::CancellationToken;

/// A running server. Ends when dropped; so do the connections that come through it once their clients leave.
#[derive(Debug)]
pub struct Sshd {
    pub port: u16,
    pub host_key: PublicKey,
    pub login: KeyPair,
    running: Running,
    directory: tempfile::TempDir,
}

impl Sshd {
    /// Starts a server and waits until it listens.
    ///
    /// # Panics
    /// Where `sshd` is not installed or does not start; the message quotes its log.
    pub async fn start() -> Self {
        Self::with(None).await
    }

    /// A server whose persistent shells read the kernel's boot id from a file that [`Sshd::pretend_reboot`] changes.
    pub async fn rebootable() -> Self {
        let boot_id = "DIRECTORY/boot_id";
        let command = format!(
            "if [ \"$SSH_ORIGINAL_COMMAND\" = 'exec sh' ]; then \
             sed -u 's#/proc/sys/kernel/random/boot_id#{boot_id}#' | sh; else eval \"$SSH_ORIGINAL_COMMAND\"; fi"
        );
        let sshd = Self::with(Some(&command)).await;
        sshd.pretend_reboot();
        sshd
    }

    /// A server where `sh` is another shell: a program and the arguments that make it one.
    ///
    /// # Panics
    /// As [`Sshd::start`].
    pub async fn with_shell(shell: &str) -> Self {
        let command = "PATH=DIRECTORY/bin:$PATH; export PATH; eval \"$SSH_ORIGINAL_COMMAND\"";
        let sshd = Self::with(Some(command)).await;
        let directory = sshd.directory.path().join("bin");
        fs::create_dir(&directory).expect("a directory for the shell");
        write_atomic(&directory.join("sh"), format!("#!/bin/sh\nexec {shell} \"$@\"\n").as_bytes(), 0o755)
            .expect("a shell");
        sshd
    }

    /// From now on the boot id is another one.
    ///
    /// # Panics
    /// Where the server's directory cannot be written.
    pub fn pretend_reboot(&self) {
        fs::write(self.directory.path().join("boot_id"), kiln_io::random::nonce() + "\n").expect("a boot id");
    }

    async fn with(force: Option<&str>) -> Self {
        let directory = tempfile::Builder::new().prefix("kiln-sshd-").tempdir().expect("a directory in /tmp");
        let host = KeyPair::generate("host").expect("a host key");
        let login = KeyPair::generate("login").expect("a login key");
        let at = |name: &str| directory.path().join(name);
        write_private(&at("host_key"), host.private.reveal().as_bytes()).expect("the host key is written");
        write_private(&at("login_key"), login.private.reveal().as_bytes()).expect("the login key is written");
        fs::write(at("authorized_keys"), login.public.line() + "\n").expect("the authorized keys are written");
        fs::create_dir(at("private")).expect("a private directory");
        if directory.path().metadata().expect("metadata").uid() == 0 {
            // Where sshd shuts itself in before the login.
            fs::create_dir_all("/run/sshd").expect("sshd's own directory");
        }
        let force = force.map(|command| command.replace("DIRECTORY", &directory.path().display().to_string()));
        let (port, running) = serve(directory.path(), force.as_deref()).await;
        fs::write(at("known_hosts"), host.public.known_hosts("127.0.0.1", port)).expect("the known hosts are written");
        Self { port, host_key: host.public, login, running, directory }
    }

    /// How to reach it, directly or through a proxy at `port`.
    pub fn target(&self, port: u16) -> Target {
        let at = |name: &str| self.directory.path().join(name);
        Target {
            host: "127.0.0.1".to_owned(),
            port,
            user: user(),
            proxy: None,
            host_key: self.host_key.clone(),
            login: self.login.clone(),
            key_file: at("login_key"),
            known_hosts: at("known_hosts"),
            attempt: Duration::from_secs(30),
            return_within: Duration::from_secs(2),
            private: at("private").display().to_string(),
        }
    }

    /// A directory to work in, removed with the server.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The server's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Options for the stock `ssh` and `scp` clients that reach the same server through `port`.
    pub fn client_options(&self, port: u16) -> Vec<String> {
        let key = self.directory.path().join("login_key");
        let options =
            ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "IdentitiesOnly=yes"];
        let mut list = vec!["-F".to_owned(), "none".to_owned(), "-i".to_owned(), key.display().to_string()];
        list.extend(options.iter().flat_map(|option| ["-o".to_owned(), (*option).to_owned()]));
        list.extend(["-o".to_owned(), format!("Port={port}")]);
        list
    }

    /// Stops listening; connections that are open stay.
    pub async fn stop(&mut self) {
        self.running.end().await;
    }
}

/// The user that runs the tests, which is the user that may log in.
pub fn user() -> String {
    let uid = Path::new("/proc/self").metadata().map_or(0, |meta| meta.uid()).to_string();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = passwd.lines().find(|line| line.split(':').nth(2) == Some(&uid));
    line.and_then(|line| line.split(':').next()).unwrap_or("root").to_owned()
}

async fn serve(directory: &Path, force: Option<&str>) -> (u16, Running) {
    // Another program may take the port between choosing and using it; then the next one is tried.
    for _ in 0..10 {
        let port = free_port();
        let mut running = spawn(&sshd(directory, port, force)).await.expect("sshd starts");
        let step = Duration::from_millis(20);
        let policy = Policy { first: step, max: step, deadline: Duration::from_mins(1) };
        let (clock, never) = (SystemClock::new(), CancellationToken::new());
        let up = poll_until(&clock, policy, &never, || {
            let exited = running.exited();
            async move {
                match TcpStream::connect(("127.0.0.1", port)) {
                    _ if exited.is_some() => Attempt::Stop(()),
                    Ok(_) => Attempt::Done(()),
                    Err(_) => Attempt::Again(()),
                }
            }
        });
        if up.await.is_ok() {
            return (port, running);
        }
    }
    panic!("sshd does not start: {}", fs::read_to_string(directory.join("log")).unwrap_or_default());
}

fn sshd(directory: &Path, port: u16, force: Option<&str>) -> Spec {
    let program: PathBuf = which("sshd").expect("openssh-server is installed");
    let path = |name: &str| directory.join(name).display().to_string();
    let settings = [
        format!("ListenAddress=127.0.0.1:{port}"),
        format!("HostKey={}", path("host_key")),
        format!("AuthorizedKeysFile={}", path("authorized_keys")),
        "PidFile=none".to_owned(),
        "StrictModes=no".to_owned(),
        "UsePAM=no".to_owned(),
        "UseDNS=no".to_owned(),
        "PermitRootLogin=yes".to_owned(),
        "PasswordAuthentication=no".to_owned(),
        "KbdInteractiveAuthentication=no".to_owned(),
        "MaxStartups=100".to_owned(),
        "MaxSessions=50".to_owned(),
        "AllowTcpForwarding=yes".to_owned(),
        "Subsystem=sftp internal-sftp".to_owned(),
        "LogLevel=VERBOSE".to_owned(),
    ];
    let mut spec = Spec::new(program).args(["-D", "-e", "-f", "/dev/null"]);
    for setting in settings {
        spec = spec.arg("-o").arg(setting);
    }
    if let Some(command) = force {
        spec = spec.arg("-o").arg(format!("ForceCommand={command}"));
    }
    spec.stdout = Sink::Null;
    spec.stderr = Sink::Append(directory.join("log"));
    spec
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a loopback port");
    listener.local_addr().expect("its number").port()
}
