//! A provisioner that runs on the build host, with a way into the guest.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use kiln_core::event::Stream;
use kiln_io::{
    error::{FsError, ProcessError},
    fs::create_private_dir,
    guest::{Access, Content, Entry, Exit, Output as _},
    process::{Limits, Spec, run_to_end},
};

use super::Attempt;
use crate::{error::Fault, output::StepOutput};

/// Lays the bundle down in a private directory of the host, runs it, removes the directory.
pub(super) async fn run(attempt: &Attempt<'_>, output: &StepOutput<'_>) -> Result<Exit, Fault> {
    let run = attempt.run;
    let access = run.guest.access().ok_or(Fault::NoAccess)?;
    let directory = std::path::absolute(run.work.join(format!("step-{}", run.step.number)))
        .map_err(|source| broken("find", run.work, source))?;
    let result = inside(attempt, &directory, &access, output).await;
    if let Err(source) = fs::remove_dir_all(&directory)
        && source.kind() != std::io::ErrorKind::NotFound
    {
        return result.and(Err(broken("remove", &directory, source)));
    }
    result
}

async fn inside(
    attempt: &Attempt<'_>,
    directory: &Path,
    access: &Access,
    output: &StepOutput<'_>,
) -> Result<Exit, Fault> {
    let text = directory.to_str().ok_or_else(|| {
        broken("use", directory, std::io::Error::new(std::io::ErrorKind::InvalidInput, "its path is not UTF-8"))
    })?;
    let bundle = attempt.pack(text)?;
    let _ = fs::remove_dir_all(directory);
    create_private_dir(directory).map_err(|source| Fault::Work { path: directory.to_owned(), source })?;
    for entry in &bundle.entries {
        lay_down(directory, entry).map_err(|source| broken("write", &directory.join(&entry.path), source))?;
    }
    let config = directory.join("ssh_config");
    kiln_io::fs::write_private(&config, ssh_config(access).as_bytes())
        .map_err(|source| Fault::Work { path: config.clone(), source })?;

    let mut words = bundle.run.iter();
    let mut spec = Spec::new(words.next().map_or("", String::as_str)).args(words).cwd(directory);
    for (name, value) in &bundle.env {
        spec = spec.env(name, value);
    }
    for (name, value) in ssh_environment(access, &config) {
        spec = spec.env(name, value);
    }
    for (name, value) in attempt.secrets {
        spec = spec.env(name, value.reveal());
    }
    let limits = Limits { deadline: Some(attempt.run.step.timeout), cancel: attempt.run.cancel.clone() };
    let mut line = |stream: Stream, text: &str| {
        output.write(stream, text.as_bytes());
        output.write(stream, b"\n");
    };
    match run_to_end(&spec, &limits, &mut line).await {
        Ok(finished) => Ok(exit(finished.status)),
        Err(ProcessError::TimedOut { limit, .. }) => {
            output.finish();
            Err(Fault::TimedOut { limit, tree: String::new(), last: output.last_lines_of_both() })
        }
        Err(ProcessError::Cancelled) => Err(Fault::Cancelled),
        Err(error) => Err(error.into()),
    }
}

fn exit(status: std::process::ExitStatus) -> Exit {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().map_or_else(|| Exit::Signal(status.signal().unwrap_or_default().to_string()), Exit::Code)
}

fn ssh_environment(access: &Access, config: &Path) -> [(&'static str, String); 6] {
    [
        ("KILN_SSH_HOST", access.host.clone()),
        ("KILN_SSH_PORT", access.port.to_string()),
        ("KILN_SSH_USER", access.user.clone()),
        ("KILN_SSH_KEY", access.key.display().to_string()),
        ("KILN_SSH_KNOWN_HOSTS", access.known_hosts.display().to_string()),
        ("KILN_SSH_CONFIG", config.display().to_string()),
    ]
}

/// For `ssh -F "$KILN_SSH_CONFIG" guest` and everything that is built on ssh. Only the pinned key is accepted.
fn ssh_config(access: &Access) -> String {
    let proxy = access.proxy_command().map_or_else(String::new, |command| format!("    ProxyCommand {command}\n"));
    format!(
        "Host guest {host}\n\
         \x20   HostName {host}\n\
         \x20   Port {port}\n\
         \x20   User {user}\n\
         \x20   IdentityFile \"{key}\"\n\
         \x20   IdentitiesOnly yes\n\
         \x20   UserKnownHostsFile \"{known_hosts}\"\n\
         \x20   GlobalKnownHostsFile none\n\
         \x20   StrictHostKeyChecking yes\n\
         \x20   HostKeyAlias {alias}\n\
         \x20   PasswordAuthentication no\n\
         \x20   KbdInteractiveAuthentication no\n\
         \x20   BatchMode yes\n\
         \x20   LogLevel ERROR\n\
         {proxy}",
        host = access.host,
        port = access.port,
        user = access.user,
        key = access.key.display(),
        known_hosts = access.known_hosts.display(),
        alias = alias(access),
    )
}

/// The name under which `known_hosts` holds the key.
fn alias(access: &Access) -> String {
    if access.port == 22 { access.host.clone() } else { format!("[{}]:{}", access.host, access.port) }
}

fn lay_down(directory: &Path, entry: &Entry) -> std::io::Result<()> {
    let path = directory.join(&entry.path);
    match &entry.content {
        Content::Directory => fs::create_dir_all(&path),
        Content::Link(target) => std::os::unix::fs::symlink(target, &path),
        Content::Bytes(bytes) => {
            fs::write(&path, bytes)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode))
        }
        Content::File { path: from, .. } => {
            fs::copy(from, &path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode))
        }
    }
}

fn broken(operation: &'static str, path: &Path, source: std::io::Error) -> Fault {
    let path = path.to_owned();
    Fault::Work { path: path.clone(), source: FsError::Io { operation, path, source } }
}
