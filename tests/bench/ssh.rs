//! Steps and uploads over a real SSH server on loopback.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use kiln_core::{
    event::{Event, Events},
    facts::{Inputs, TemplateText},
    plan::Plan,
    template,
};
use kiln_io::{
    guest::{Content, Entry, Guest as _, Quiet},
    ssh::SshGuest,
    time::SystemClock,
};
use kiln_provision::{HostFacts, StepRun, run_step};
use kiln_tests::{proxy::Proxy, sshd::Sshd};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    measure::{row, timed},
    packer::{self, Target},
};

const ONE_WAY: Duration = Duration::from_millis(20);
const STEPS: usize = 50;

#[derive(Debug)]
struct Silent;

impl Events for Silent {
    fn emit(&self, _: Event) {}
}

pub(crate) async fn steps() {
    let sshd = Sshd::start().await;
    let proxy = Proxy::delaying(sshd.port, ONE_WAY);
    let ours = kiln_steps(&sshd, proxy.port).await;
    let shell = json!({ "type": "shell", "inline": ["true"] });
    let theirs = packer_time(&sshd, proxy.port, &vec![shell; STEPS]);
    row("50 no-op shell steps, 40 ms round trip", ours, "packer 1.6.6", theirs);
}

pub(crate) async fn files() {
    let sshd = Sshd::start().await;
    let proxy = Proxy::delaying(sshd.port, ONE_WAY);
    let source = sshd.directory().join("many");
    fs::create_dir(&source).expect("make the files' directory");
    let mut entries = Vec::new();
    for (index, number) in (0..250_u8).cycle().take(500).enumerate() {
        let (path, bytes) = (format!("file-{index:03}"), vec![b'a' + number % 26; 1024]);
        fs::write(source.join(&path), &bytes).expect("write a file");
        entries.push(Entry {
            path: path.clone().into(),
            mode: 0o644,
            content: Content::File { path: source.join(path), bytes: 1024 },
        });
    }
    let (connected, ours) = kiln_upload(&sshd, proxy.port, &entries).await;
    let script = "mkdir -p \"$2\" && tar -C \"$1\" -cf - . | ssh $4 127.0.0.1 -p \"$3\" \"tar -C $2 -xf -\"";
    let to = sshd.directory().join("from-tar");
    let theirs = timed(
        Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(&source)
            .arg(&to)
            .arg(proxy.port.to_string())
            .arg(sshd.client_options(proxy.port).join(" ")),
    );
    row("500 files of 1 KiB, 40 ms, as a bake's next step", ours, "tar | ssh", theirs.elapsed);
    let ours = connected + ours;
    row("500 files of 1 KiB, 40 ms, connecting included", ours, "tar | ssh", theirs.elapsed);
    let to = sshd.directory().join("from-packer");
    fs::create_dir(&to).expect("make the target");
    let file = json!({ "type": "file", "source": format!("{}/", source.display()), "destination": to });
    row(
        "500 files of 1 KiB, 40 ms, connecting included",
        ours,
        "packer 1.6.6",
        packer_time(&sshd, proxy.port, &[file]),
    );
}

pub(crate) async fn file() {
    const BYTES: u64 = 500 << 20;
    let sshd = Sshd::start().await;
    let source = sshd.directory().join("large");
    write_noise(&source, BYTES);
    let entry =
        Entry { path: "large".into(), mode: 0o644, content: Content::File { path: source.clone(), bytes: BYTES } };
    let (connected, ours) = kiln_upload(&sshd, sshd.port, &[entry]).await;
    let ours = connected + ours;
    let to = sshd.directory().join("from-scp");
    let theirs = timed(
        Command::new("scp")
            .args(sshd.client_options(sshd.port))
            .arg(&source)
            .arg(format!("127.0.0.1:{}", to.display()))
            .stdin(Stdio::null()),
    );
    row("one file of 500 MiB, loopback", ours, "scp", theirs.elapsed);
    let to = sshd.directory().join("from-packer");
    let file = json!({ "type": "file", "source": source, "destination": to });
    row("one file of 500 MiB, loopback", ours, "packer 1.6.6", packer_time(&sshd, sshd.port, &[file]));
}

/// From connecting to the end of the last step, as a bake runs them.
async fn kiln_steps(sshd: &Sshd, port: u16) -> Duration {
    let plan = plan_of_no_ops(sshd.directory());
    let facts = HostFacts::for_template(sshd.directory());
    let (clock, cancel, secrets) = (SystemClock::new(), CancellationToken::new(), BTreeMap::new());
    let start = Instant::now();
    let guest = SshGuest::connect(sshd.target(port), cancel.clone()).await.expect("connect");
    for step in &plan.steps {
        let run = StepRun {
            guest: &guest,
            step,
            total: plan.steps.len(),
            library: facts.library(),
            secrets: &secrets,
            events: &Silent,
            clock: &clock,
            cancel: &cancel,
            work: sshd.directory(),
        };
        run_step(run).await.expect("the step succeeds");
    }
    start.elapsed()
}

fn plan_of_no_ops(directory: &Path) -> Plan {
    let step = "[[provision]]\nuse = \"shell\"\nscript = \"true\"\n";
    let text = format!(
        "[image]\nname = \"bench\"\nversion = \"1\"\n[base.debian]\nsuite = \"bookworm\"\n{}",
        step.repeat(STEPS)
    );
    let facts = HostFacts::for_template(directory);
    let entry = TemplateText { name: directory.join("template.toml").display().to_string(), text };
    let inputs = Inputs::default();
    let plans = template::load(&entry, &facts).and_then(|template| template.plans(&inputs, &facts));
    plans.unwrap_or_else(|mistakes| panic!("{mistakes:?}")).remove(0)
}

/// How long connecting took, which a bake does once, and how long from there to the last byte confirmed.
async fn kiln_upload(sshd: &Sshd, port: u16, entries: &[Entry]) -> (Duration, Duration) {
    let to = sshd.directory().join("from-kiln");
    let start = Instant::now();
    let guest = SshGuest::connect(sshd.target(port), CancellationToken::new()).await.expect("connect");
    let connected = start.elapsed();
    guest.upload(&to.display().to_string(), entries, &Quiet).await.expect("upload");
    (connected, start.elapsed().saturating_sub(connected))
}

fn packer_time(sshd: &Sshd, port: u16, provisioners: &[serde_json::Value]) -> Duration {
    let access = sshd.target(port);
    let target = Target { port, user: &access.user, key: &access.key_file };
    packer::provision(sshd.directory(), &target, provisioners).elapsed
}

/// Bytes that do not compress, the same every time.
fn write_noise(path: &Path, bytes: u64) {
    use std::io::Write as _;
    let mut file = std::io::BufWriter::new(fs::File::create(path).expect("make the file"));
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..bytes / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.write_all(&state.to_le_bytes()).expect("write the file");
    }
    file.flush().expect("write the file");
}
