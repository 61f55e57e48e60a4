//! `kiln ssh`: into a machine that was kept, with the stock client.

use std::{fs, path::Path};

use kiln_io::{
    guest::Access,
    process::{Spec, replace_by},
};

use crate::{
    arguments::Ssh,
    builds,
    failure::{Failure, Outcome},
    surroundings,
};

pub(crate) fn run(arguments: &Ssh) -> Outcome {
    let dirs = surroundings::dirs()?;
    let kept = |build: &builds::Build| build.directory.join(Access::FILE).exists();
    let found = builds::find(&dirs, arguments.which.as_deref(), kept)?;
    let build = found.ok_or_else(|| {
        let failure = match &arguments.which {
            Some(which) => Failure::usage(format!("no machine of `{which}` is kept")),
            None => Failure::usage("no machine is kept"),
        };
        failure.hint("`kiln build --on-error keep` leaves the machine of a failed build running")
    })?;
    let access = read(&build.directory.join(Access::FILE))?;
    Err(replace_by(&client(&access, &arguments.command)).into())
}

pub(crate) fn read(path: &Path) -> Result<Access, Failure> {
    let bytes = fs::read(path).map_err(kiln_io::fs::failed("read", path, 0))?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Failure::new(format!("`{}` does not say how to reach the machine", path.display())).because(error.to_string())
    })
}

/// The stock client: only our key, only the host key we made, nothing of the user's configuration.
pub(crate) fn client(access: &Access, command: &[String]) -> Spec {
    let option = |name: &str, path: &Path| format!("{name}={}", path.display());
    Spec::new("ssh")
        .args(["-F", "none", "-p", &access.port.to_string()])
        .arg("-i")
        .arg(&access.key)
        .args(["-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=yes", "-o", "LogLevel=ERROR", "-o"])
        .arg(option("UserKnownHostsFile", &access.known_hosts))
        .args(access.proxy_command().map(|command| format!("-oProxyCommand={command}")))
        .arg(format!("{}@{}", access.user, access.host))
        .args(if command.is_empty() { None } else { Some("--") })
        .args(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_the_host_key_and_passes_the_command_on() {
        let access = Access {
            host: "127.0.0.1".to_owned(),
            port: 40_113,
            user: "root".to_owned(),
            key: "/state/key".into(),
            known_hosts: "/state/known_hosts".into(),
            proxy: None,
        };
        let expected = "ssh -F none -p 40113 -i /state/key -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes \
             -o LogLevel=ERROR -o UserKnownHostsFile=/state/known_hosts root@127.0.0.1";
        assert_eq!(client(&access, &[]).to_string(), expected);
        let command = ["uptime".to_owned(), "-p".to_owned()];
        assert_eq!(client(&access, &command).to_string(), format!("{expected} -- uptime -p"));
        let proxied = client(&Access { proxy: Some("nc -x %1 h 22".to_owned()), ..access }, &[]);
        assert!(proxied.args.contains(&"-oProxyCommand=nc -x %%1 h 22".into()), "{proxied}");
    }
}
