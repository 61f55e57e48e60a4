//! What a bake needs of a machine, and whether it is there.

use std::{env, path::Path};

use kiln_build::qemu::{Accel, CalibrationHost, calibrate};
use kiln_core::{
    ByteSize,
    event::{Event, Events},
    plan::Accelerator,
};
use kiln_io::{dirs::Dirs, fs, process, time::SystemClock};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

/// One finding.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub(super) name: String,
    pub(super) status: Status,
    /// The version, or what was found.
    pub(super) detail: String,
    pub(super) purpose: String,
    /// Debian packages that bring it.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(super) packages: &'static [&'static str],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remedy: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Ok,
    /// Not there, and no bake without it.
    Missing,
    /// Not there, and only some templates need it.
    Optional,
}

/// A program that has to be in the path.
struct Tool {
    program: &'static str,
    packages: &'static [&'static str],
    purpose: &'static str,
    needed: bool,
}

const TOOLS: [Tool; 9] = [
    Tool {
        program: "qemu-system-x86_64",
        packages: &["qemu-system-x86", "qemu-utils"],
        purpose: "runs the machines that are baked",
        needed: true,
    },
    Tool {
        program: "qemu-img",
        packages: &["qemu-system-x86", "qemu-utils"],
        purpose: "makes overlays, converts images",
        needed: true,
    },
    Tool {
        program: "mmdebstrap",
        packages: &["mmdebstrap"],
        purpose: "makes Debian bases from packages",
        needed: true,
    },
    Tool { program: "newuidmap", packages: &["uidmap"], purpose: "lets mmdebstrap work without root", needed: true },
    Tool { program: "setpriv", packages: &["util-linux"], purpose: "ends machines when kiln ends", needed: true },
    Tool {
        program: "setsid",
        packages: &["util-linux"],
        purpose: "starts programs in a session of their own",
        needed: true,
    },
    Tool { program: "unshare", packages: &["util-linux"], purpose: "makes Debian bases from packages", needed: true },
    Tool { program: "ssh", packages: &["openssh-client"], purpose: "`kiln ssh`", needed: true },
    Tool {
        program: "ansible-playbook",
        packages: &["ansible-core"],
        purpose: "only for steps that use `ansible`",
        needed: false,
    },
];

/// Room a first bake takes: the base while it is made, a guest's disk, the sealed image.
const ROOM: u64 = 4 << 30;

/// Every finding, in the order of the table.
pub(super) async fn all(dirs: &Dirs) -> Vec<Check> {
    let mut checks = Vec::new();
    for tool in &TOOLS {
        checks.push(self::tool(tool).await);
    }
    checks.push(subordinate_ids());
    checks.push(kvm(dirs).await);
    checks.push(firmware());
    for (name, directory) in [("cache", &dirs.cache), ("builds", &dirs.state), ("registry", &dirs.data)] {
        checks.push(self::directory(name, directory));
    }
    checks
}

async fn tool(tool: &Tool) -> Check {
    let found = process::which(tool.program);
    let status = match (&found, tool.needed) {
        (Ok(_), _) => Status::Ok,
        (Err(_), true) => Status::Missing,
        (Err(_), false) => Status::Optional,
    };
    let (detail, remedy) = match found {
        Ok(path) => (process::version(tool.program).await.unwrap_or_else(|_| path.display().to_string()), None),
        Err(_) => ("not installed".to_owned(), Some(format!("Debian package: {}", tool.packages[0]))),
    };
    let packages = if status == Status::Ok { &[][..] } else { tool.packages };
    Check { name: tool.program.to_owned(), status, detail, purpose: tool.purpose.to_owned(), packages, remedy }
}

/// mmdebstrap maps a range of 65536 ids to the files of a base. Root gets one for the run.
fn subordinate_ids() -> Check {
    let user = env::var("USER").or_else(|_| env::var("LOGNAME")).unwrap_or_default();
    let uid = rustix::process::getuid().as_raw();
    let found = if rustix::process::geteuid().is_root() {
        Some("not needed by root".to_owned())
    } else {
        let ranges = ["/etc/subuid", "/etc/subgid"].map(|path| {
            let text = fs::read_text(Path::new(path)).unwrap_or_default();
            longest_range(&text, &user, uid)
        });
        let shortest = ranges.into_iter().min().unwrap_or(0);
        (shortest >= 65_536).then(|| format!("{shortest} ids"))
    };
    let status = if found.is_some() { Status::Ok } else { Status::Missing };
    let remedy = "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER";
    Check {
        name: "subordinate ids".to_owned(),
        status,
        remedy: found.is_none().then(|| remedy.to_owned()),
        detail: found.unwrap_or_else(|| "no range of 65536 ids in /etc/subuid and /etc/subgid".to_owned()),
        purpose: "lets mmdebstrap work without root".to_owned(),
        packages: &[],
    }
}

/// The longest range that `/etc/subuid` gives a user, by name or by number.
fn longest_range(text: &str, user: &str, uid: u32) -> u64 {
    let count = |line: &str| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        let (_, count) = (fields.next()?, fields.next()?);
        ((!user.is_empty() && owner == user) || owner == uid.to_string()).then(|| count.trim().parse().ok())?
    };
    text.lines().filter_map(count).max().unwrap_or(0)
}

/// Presence proves nothing: a tiny guest is run under it, as before a bake, and the outcome remembered for the next one.
async fn kvm(dirs: &Dirs) -> Check {
    let (clock, cancel) = (SystemClock::new(), CancellationToken::new());
    let measured = calibrate(Accelerator::Auto, &CalibrationHost::new(dirs, &Unheard, &clock, &cancel)).await;
    let (status, detail, remedy) = match measured {
        Ok(found) if found.accelerator == Accel::Kvm => (Status::Ok, found.reason, None),
        Ok(found) => {
            let remedy = found
                .reason
                .contains("ermission")
                .then_some("sudo usermod --append --groups kvm $USER, then log in again");
            (Status::Optional, format!("{}; machines are emulated", found.reason), remedy)
        }
        Err(error) => (Status::Optional, format!("not measured: {error}"), None),
    };
    Check {
        name: "KVM".to_owned(),
        status,
        detail,
        purpose: "makes machines several times faster".to_owned(),
        packages: &[],
        remedy: remedy.map(str::to_owned),
    }
}

/// The verdict says it all; the events on the way are not shown.
#[derive(Debug)]
struct Unheard;

impl Events for Unheard {
    fn emit(&self, _: Event) {}
}

fn firmware() -> Check {
    let found = ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/ovmf/OVMF.fd"]
        .into_iter()
        .find(|path| Path::new(path).exists());
    Check {
        name: "UEFI firmware".to_owned(),
        status: if found.is_some() { Status::Ok } else { Status::Optional },
        detail: found.unwrap_or("not installed").to_owned(),
        purpose: "only to boot images under UEFI yourself".to_owned(),
        packages: if found.is_some() { &[] } else { &["ovmf"] },
        remedy: found.is_none().then(|| "Debian package: ovmf".to_owned()),
    }
}

fn directory(name: &str, path: &Path) -> Check {
    let there = path.ancestors().find(|directory| directory.exists()).unwrap_or(Path::new("/"));
    let writable = rustix::fs::access(there, rustix::fs::Access::WRITE_OK).is_ok();
    let free = fs::free_space(path).unwrap_or(0);
    let enough = free >= ROOM;
    let shown = path.display();
    let detail = match (writable, enough) {
        (false, _) => format!("{shown} cannot be written"),
        (true, false) => format!("{shown}: {} free, a bake may take {}", ByteSize(free).approximate(), ByteSize(ROOM)),
        (true, true) => format!("{shown}, {} free", ByteSize(free).approximate()),
    };
    let remedy = "set `KILN_CACHE_DIR`, `KILN_STATE_DIR`, `KILN_DATA_DIR` to directories with room";
    Check {
        name: format!("{name} directory"),
        status: if writable && enough { Status::Ok } else { Status::Missing },
        detail,
        purpose: "keeps bases, builds and images".to_owned(),
        packages: &[],
        remedy: (!writable || !enough).then(|| remedy.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_range_of_a_user_by_name_and_by_number() {
        let text = "alice:100000:65536\n1000:300000:1000\nbob:200000:10\n";
        assert_eq!(longest_range(text, "alice", 1), 65_536);
        assert_eq!(longest_range(text, "nobody", 1000), 1000);
        assert_eq!(longest_range(text, "", 7), 0);
        assert_eq!(longest_range("alice:1", "alice", 1), 0);
    }
}
