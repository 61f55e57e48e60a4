//! From a disk to a guest that answers over SSH, or to an error that says which stage failed.

use std::{path::Path, sync::Mutex, time::Duration};

use kiln_core::plan::Login;
use kiln_io::{
    fs,
    guard::{Ended, Program},
    guest::{GuestError, Stage},
    ledger::EntryId,
    process::{self, Limits, Spec},
    ssh::{PRIVATE, SshGuest, Target},
    time::{Attempt, GaveUp, Policy, poll_until},
};
use serde_json::json;

use super::{
    BootError, LoginKeys, Running, VmHost, VmSpec,
    args::{Files, marker, qemu_args},
    console::{self, Scan},
    login::{self, LoginMaterial},
    memory,
    qmp::Qmp,
    running::{ANSWERS_WITHIN, Disk, how},
};
use crate::checkpoint::{CheckpointError, Stored};

/// The emulator.
pub(super) const QEMU: &str = "qemu-system-x86_64";
/// One attempt to connect and log in, on the reference machine.
const ATTEMPT: Duration = Duration::from_secs(15);
/// A guest that was saved while it answered needs no boot.
const COMES_BACK_WITHIN: Duration = Duration::from_mins(1);
/// A guest that resets itself this often while it boots is in a loop.
const BOOT_LOOP: u32 = 3;
/// How often the machine is looked after while it boots.
const WATCH: Duration = Duration::from_millis(500);

/// Boots a machine and connects to it. On an error the machine is gone; its files are the guard's to release.
pub async fn boot(spec: VmSpec, host: VmHost<'_>) -> Result<Running<'_>, BootError> {
    let material = login::prepare(host.ledger, &spec.name, &spec.build, spec.login)?;
    let (files, overlay_entry) = files(&spec, &host, &material).await?;
    let qmp = match start(&spec, &host, &files, false).await {
        Ok(qmp) => qmp,
        Err(error) => return Err(abandon(&spec, &host, error).await),
    };
    let limit = spec.calibration.scaled(spec.machine.boot_timeout);
    up(spec, host, material, files, overlay_entry, qmp, limit).await
}

/// Boots a machine on layers that another one wrote, with its keys: the guest has them already. `origin` is the build whose seed the
/// guest knows. On an error the machine is gone.
pub(crate) async fn boot_again<'h>(
    spec: VmSpec,
    host: VmHost<'h>,
    keys: LoginKeys,
    origin: &str,
) -> Result<Running<'h>, CheckpointError> {
    let begun = async {
        let material = login::restore(host.ledger, &spec.name, origin, spec.login, keys)?;
        let (files, entry) = files(&spec, &host, &material).await?;
        let qmp = start(&spec, &host, &files, false).await?;
        Ok::<_, BootError>((material, files, entry, qmp))
    };
    let (material, files, entry, qmp) = match begun.await {
        Ok(begun) => begun,
        Err(error) => return Err(not_up(abandon(&spec, &host, error).await)),
    };
    let limit = spec.calibration.scaled(spec.machine.boot_timeout);
    up_again(spec, host, material, files, entry, qmp, limit).await
}

/// What a machine comes back from.
#[derive(Debug)]
pub(crate) struct Saved<'a> {
    pub(crate) keys: LoginKeys,
    /// The build whose seed the guest knows.
    pub(crate) origin: &'a str,
    pub(crate) memory: &'a Path,
    pub(crate) stored: Stored,
    /// Disks are verified while the memory is on its way.
    pub(crate) verified: tokio::task::JoinHandle<Result<(), CheckpointError>>,
    pub(crate) boot_id: &'a str,
    pub(crate) nonce: &'a str,
}

/// Brings a machine back as it was when it was saved, and proves that it is the same. On an error it is gone.
pub(crate) async fn resume<'h>(
    spec: VmSpec,
    host: VmHost<'h>,
    saved: Saved<'_>,
) -> Result<Running<'h>, CheckpointError> {
    let up = async {
        let material = login::restore(host.ledger, &spec.name, saved.origin, spec.login, saved.keys)?;
        let (files, entry) = files(&spec, &host, &material).await?;
        let qmp = start(&spec, &host, &files, true).await?;
        Ok::<_, BootError>((material, files, entry, qmp))
    };
    let (material, files, entry, qmp) = match up.await {
        Ok(up) => up,
        Err(error) => return Err(not_up(abandon(&spec, &host, error).await)),
    };
    let moved = async {
        host.ledger.acquire_file("memory socket", &host.ledger.directory().join(format!("{}.memory", spec.name)))?;
        memory::load(&qmp, &host, &format!("{}.memory", spec.name), saved.memory, saved.stored).await?;
        let verified = saved.verified.await;
        verified.unwrap_or_else(|_| Err(CheckpointError::Qemu("verifying its disks was ended".into())))?;
        let limit = spec.calibration.scaled(ANSWERS_WITHIN);
        qmp.execute("cont", json!({}), limit).await.map(|_| ()).map_err(CheckpointError::Qemu)
    };
    if let Err(error) = moved.await {
        let _ = host.guard.kill(&spec.name).await;
        return Err(error);
    }
    let limit = spec.calibration.scaled(COMES_BACK_WITHIN);
    let running = up_again(spec, host, material, files, entry, qmp, limit).await?;
    match running.wake(saved.boot_id, saved.nonce).await {
        Ok(()) => Ok(running),
        Err(error) => {
            let _ = running.kill().await;
            Err(error)
        }
    }
}

async fn up_again(
    spec: VmSpec,
    host: VmHost<'_>,
    material: LoginMaterial,
    files: Files,
    entry: EntryId,
    qmp: Qmp,
    limit: Duration,
) -> Result<Running<'_>, CheckpointError> {
    up(spec, host, material, files, entry, qmp, limit).await.map_err(not_up)
}

fn not_up(error: BootError) -> CheckpointError {
    match error {
        BootError::Cancelled => CheckpointError::Cancelled,
        BootError::HostDisk { .. } => CheckpointError::NoRoom,
        error => CheckpointError::Boot(error.to_string()),
    }
}

/// A machine that runs, once it answers over SSH.
async fn up(
    spec: VmSpec,
    host: VmHost<'_>,
    material: LoginMaterial,
    files: Files,
    overlay_entry: EntryId,
    qmp: Qmp,
    limit: Duration,
) -> Result<Running<'_>, BootError> {
    match reach(&spec, &host, &qmp, &files, &material, limit).await {
        Ok(guest) => Ok(Running {
            disk: Mutex::new(Disk {
                overlay: host.ledger.directory().join(&files.overlay),
                entry: overlay_entry,
                frozen: Vec::new(),
            }),
            console: host.ledger.directory().join(&files.console),
            spec,
            host,
            guest,
            qmp,
            keys: LoginKeys { login: material.login, host: material.host },
        }),
        Err(error) => Err(abandon(&spec, &host, error).await),
    }
}

async fn abandon(spec: &VmSpec, host: &VmHost<'_>, error: BootError) -> BootError {
    // It may be gone already, or never have started; the guard looks after the rest.
    if host.guard.ended(&spec.name).is_none() && !matches!(error, BootError::Guard(_)) {
        let _ = host.guard.kill(&spec.name).await;
    }
    error
}

/// The overlay and the names of the other files; each stands in the ledger first.
async fn files(spec: &VmSpec, host: &VmHost<'_>, material: &LoginMaterial) -> Result<(Files, EntryId), BootError> {
    let directory = host.ledger.directory();
    let name = |kind: &str| format!("{}.{kind}", spec.name);
    let files = Files {
        overlay: match &spec.overlay {
            // Absolute: joined to the build's directory it stays what it is.
            Some(place) => place.directory.join(crate::checkpoint::DISK).display().to_string(),
            None => name("qcow2"),
        },
        console: name("console"),
        qmp: name("qmp"),
        credentials: material.credentials.clone(),
        seed: material.seed.clone(),
    };
    let overlay = directory.join(&files.overlay);
    let entry = match &spec.overlay {
        Some(place) => place.entry.clone(),
        None => host.ledger.acquire_file("overlay", &overlay)?,
    };
    host.ledger.acquire_file("control socket", &directory.join(&files.qmp))?;
    let (below, format) = match spec.layers.last() {
        Some(layer) => (layer, "qcow2"),
        None => (&spec.disk, spec.format.driver()),
    };
    let spec = Spec::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", "-F", format, "-b"])
        .arg(below)
        .arg(&overlay)
        .arg(spec.size.to_string());
    let limits = Limits { deadline: Some(Duration::from_mins(1)), cancel: host.cancel.clone() };
    process::run(&spec, &limits, &mut |_, _| {}).await?;
    Ok((files, entry))
}

/// Starts QEMU under the guard and shakes hands with it.
async fn start(spec: &VmSpec, host: &VmHost<'_>, files: &Files, incoming: bool) -> Result<Qmp, BootError> {
    let directory = host.ledger.directory();
    let output = directory.join(format!("{}.log", spec.name));
    let mut args = qemu_args(spec, files);
    if incoming {
        args.extend(["-incoming".into(), "defer".into()]);
    }
    let command = Spec::new(QEMU).args(args.clone()).to_string();
    let program = Program {
        name: spec.name.clone(),
        what: "VM".into(),
        program: QEMU.into(),
        args,
        marker: marker(&spec.build, &spec.name),
        directory: directory.to_owned(),
        output: output.clone(),
    };
    host.guard.start(program).await?;
    let limit = spec.calibration.scaled(ANSWERS_WITHIN);
    let policy = Policy { first: Duration::from_millis(20), max: Duration::from_millis(200), deadline: limit };
    let connected = poll_until(host.clock, policy, host.cancel, || async {
        if let Some(ended) = host.guard.ended(&spec.name) {
            let said = console::tail(&output, console::QUOTED);
            return Attempt::Stop(BootError::Refused { how: how(&ended), said, command: command.clone() });
        }
        match Qmp::connect(directory, &files.qmp, limit).await {
            Ok(qmp) => Attempt::Done(qmp),
            Err(_) => Attempt::Again(BootError::Silent { silent: limit, console: Vec::new() }),
        }
    });
    connected.await.map_err(gave_up)
}

/// Waits for SSH while it watches the machine.
async fn reach(
    spec: &VmSpec,
    host: &VmHost<'_>,
    qmp: &Qmp,
    files: &Files,
    material: &LoginMaterial,
    limit: Duration,
) -> Result<SshGuest, BootError> {
    let answers = spec.calibration.scaled(ANSWERS_WITHIN);
    let port = qmp.ssh_port(answers).await.map_err(|reason| BootError::Qmp { reason })?;
    fs::write_private(&material.known_hosts, material.host.public.known_hosts("127.0.0.1", port).as_bytes())?;
    let target = Target {
        host: "127.0.0.1".into(),
        port,
        user: login::USER.into(),
        proxy: None,
        host_key: material.host.public.clone(),
        login: material.login.clone(),
        key_file: material.key_file.clone(),
        known_hosts: material.known_hosts.clone(),
        attempt: spec.calibration.scaled(ATTEMPT),
        return_within: spec.calibration.scaled(spec.machine.boot_timeout),
        private: PRIVATE.into(),
    };
    let console = host.ledger.directory().join(&files.console);
    tokio::select! {
        biased;
        trouble = watch(spec, host, qmp, &console) => Err(trouble),
        guest = connect(spec, host, &target, &console, limit) => guest,
    }
}

async fn connect(
    spec: &VmSpec,
    host: &VmHost<'_>,
    target: &Target,
    console: &Path,
    limit: Duration,
) -> Result<SshGuest, BootError> {
    let policy = Policy { first: Duration::from_millis(100), max: Duration::from_millis(250), deadline: limit };
    let connected = poll_until(host.clock, policy, host.cancel, || async {
        match SshGuest::connect(target.clone(), host.cancel.clone()).await {
            Ok(guest) => Attempt::Done(guest),
            Err(GuestError::Cancelled) => Attempt::Stop(GuestError::Cancelled),
            // A cloud image may answer with its own keys before cloud-init has put ours in their place.
            Err(error @ (GuestError::HostKey { .. } | GuestError::Login { .. }))
                if spec.login == Login::Credentials =>
            {
                Attempt::Stop(error)
            }
            Err(error) => Attempt::Again(error),
        }
    });
    let quoted = || console::tail(console, console::QUOTED);
    match connected.await {
        Ok(guest) => Ok(guest),
        Err(GaveUp::Cancelled | GaveUp::Stopped(GuestError::Cancelled)) => Err(BootError::Cancelled),
        Err(
            GaveUp::Stopped(source)
            | GaveUp::Deadline(source @ (GuestError::HostKey { .. } | GuestError::Login { .. })),
        ) => Err(BootError::Stranger { console: quoted(), source }),
        Err(GaveUp::Deadline(source)) => {
            let console = quoted();
            Err(BootError::Unreachable {
                limit,
                stage: stage(&source, console.is_empty()),
                console,
                source: Some(Box::new(source)),
            })
        }
    }
}

/// Which stage of a boot was the last, from how far the connection came and whether the guest ever said anything.
fn stage(error: &GuestError, silent: bool) -> String {
    let text = match error {
        _ if silent => "it does not boot: its serial console stayed silent",
        GuestError::Connect { stage: Stage::Listener, .. } => "QEMU does not listen on the forwarded port",
        GuestError::Connect { stage: Stage::Banner, reason, .. } if reason.starts_with("silent") => {
            "it boots but has no network: nothing answers at its address (does it use DHCP?)"
        }
        GuestError::Connect { stage: Stage::Banner, .. } => {
            "its network is up but port 22 is closed: is an SSH server installed and enabled?"
        }
        GuestError::Connect { stage: Stage::Handshake, .. } => "its SSH server answers but the handshake fails",
        GuestError::Connect { stage: Stage::Shell, .. } => "the login works but its shell does not run",
        _ => "it answers, but not as it should",
    };
    text.to_owned()
}

/// Returns only with something that ends the boot.
async fn watch(spec: &VmSpec, host: &VmHost<'_>, qmp: &Qmp, console: &Path) -> BootError {
    let answers = spec.calibration.scaled(ANSWERS_WITHIN);
    let quoted = || console::tail(console, console::QUOTED);
    let scan = std::sync::Mutex::new(Scan::default());
    let policy = Policy { first: WATCH, max: WATCH, deadline: Duration::MAX };
    let trouble = poll_until(host.clock, policy, host.cancel, || async {
        if let Some(ended) = host.guard.ended(&spec.name) {
            return Attempt::Done(died(spec, host, &ended, console));
        }
        let seen = qmp.seen();
        if let Some(reason) = seen.disk_error {
            return Attempt::Done(BootError::HostDisk { reason });
        }
        let fatal = scan.lock().unwrap_or_else(std::sync::PoisonError::into_inner).look(console);
        if let Some(what) = fatal {
            return Attempt::Done(BootError::Stuck { what: what.to_owned(), console: quoted() });
        }
        if seen.resets >= BOOT_LOOP {
            let what = format!("it restarted itself {} times", seen.resets);
            return Attempt::Done(BootError::Stuck { what, console: quoted() });
        }
        if !seen.closed && qmp.execute("query-status", json!({}), answers).await.is_err() && !qmp.seen().closed {
            return Attempt::Done(BootError::Silent { silent: answers, console: quoted() });
        }
        Attempt::<_, ()>::Again(())
    });
    trouble.await.unwrap_or(BootError::Cancelled)
}

fn died(spec: &VmSpec, host: &VmHost<'_>, ended: &Ended, console: &Path) -> BootError {
    let said = console::tail(&host.ledger.directory().join(format!("{}.log", spec.name)), 20);
    BootError::Died { how: how(ended), said, console: console::tail(console, console::QUOTED) }
}

fn gave_up(gave_up: GaveUp<BootError>) -> BootError {
    match gave_up {
        GaveUp::Cancelled => BootError::Cancelled,
        GaveUp::Deadline(error) | GaveUp::Stopped(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_of_a_boot_has_its_own_words() {
        let connect =
            |stage, reason: &str| GuestError::Connect { address: String::new(), stage, reason: reason.into() };
        let cases = [
            (connect(Stage::Banner, "silent for 15s"), "no network"),
            (connect(Stage::Banner, "the connection was closed at once"), "port 22 is closed"),
            (connect(Stage::Listener, "refused"), "QEMU does not listen"),
            (connect(Stage::Handshake, "x"), "handshake"),
            (connect(Stage::Shell, "x"), "shell does not run"),
        ];
        for (error, words) in &cases {
            assert!(stage(error, false).contains(words), "{error}");
            assert!(stage(error, true).contains("stayed silent"), "{error}");
        }
    }
}
