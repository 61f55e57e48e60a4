//! `kiln serve`: a version over loopback beside python's server of plain files, the server's memory meanwhile, and how many versions it resolves a second.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::symlink,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use kiln_core::{
    Digest,
    artifact::{Artifact, Disk, File, Machine},
    plan::VersionSpec,
};
use kiln_disk::{
    DiskFile, GuestDisk,
    seal::{self, StoredFrames},
};
use kiln_io::guest::Quiet;
use kiln_registry::{Publication, Registry};
use kiln_tests::home::kiln;

use crate::{
    measure::{row, timed},
    seal::debian,
};

/// Clients that ask at once.
const CLIENTS: usize = 4;
const ASKING: Duration = Duration::from_secs(5);
/// Whether the server's memory grows shows over so many rounds of downloads.
const ROUNDS: usize = 12;
const AT_ONCE: usize = 16;

pub(crate) async fn run() {
    let work = tempfile::tempdir().expect("a directory to work in");
    let base = debian().await;
    let artifact = sealed(work.path(), &base.disk, None);
    let registry = Registry::open(&work.path().join("registry")).expect("a registry");
    registry.publish(&artifact, work.path(), &fixed("1.0.0"), &Quiet).expect("publish");
    let (mut child, address) = serve(registry.root());
    let before = memory(&child, "VmRSS:");

    let mut peer = Command::new("python3");
    // It says its port on standard output, which python would keep to itself.
    peer.args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory"]).arg(work.path());
    let mut peer = peer.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("start python's server");
    let said =
        BufReader::new(peer.stdout.take().expect("its words")).lines().next().expect("a line").expect("readable");
    let port: u16 = said.split_whitespace().find_map(|word| word.parse().ok()).expect("a port");
    symlink(&base.disk, work.path().join("web.raw")).expect("link the raw disk");
    println!("qcow2: {} MiB, raw disk: {} MiB", artifact.files[0].bytes >> 20, artifact.disk.size >> 20);
    for form in ["qcow2", "raw"] {
        let fetch = |url: &str| timed(Command::new("curl").args(["-sf", "-o", "/dev/null", url])).elapsed;
        let ours = format!("http://{address}/images/web/1.0.0/disk.{form}");
        let theirs = format!("http://127.0.0.1:{port}/web.{form}");
        // Once unmeasured, so that everybody reads from the page cache.
        fetch(&ours);
        fetch(&theirs);
        row(&format!("serve {form}, verified"), fetch(&ours), "python's http.server, as it is", fetch(&theirs));
    }
    let _ = peer.kill();
    let _ = peer.wait();
    println!("resolved a second by {CLIENTS} clients: {}", resolved(&address));
    let rounds: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let many = ["qcow2", "raw", "raw.zst", "qcow2"].iter().cycle().take(AT_ONCE).map(|form| {
                let url = format!("http://{address}/images/web/1.0.0/disk.{form}");
                Command::new("curl").args(["-sf", "-o", "/dev/null", &url]).spawn().expect("curl")
            });
            for mut one in many.collect::<Vec<_>>() {
                assert!(one.wait().expect("curl ends").success(), "a download failed");
            }
            format!("{}", memory(&child, "VmRSS:") >> 10)
        })
        .collect();
    println!(
        "memory of the server before: {} MiB; after each of {ROUNDS} rounds of {AT_ONCE} downloads at once:",
        before >> 10
    );
    println!("{} MiB; at most {} MiB", rounds.join(", "), memory(&child, "VmHWM:") >> 10);
    let _ = child.kill();
    let _ = child.wait();
}

pub(crate) fn fixed(version: &str) -> Publication {
    Publication {
        version: VersionSpec::Fixed(version.parse().expect("a version")),
        date: "2026-11-21".to_owned(),
        now: 1,
        by: "bench".to_owned(),
        allow_revoked: false,
    }
}

pub(crate) fn sealed(work: &Path, disk: &Path, before: Option<&dyn StoredFrames>) -> Artifact {
    let qcow2 = work.join("web.qcow2");
    let guest = GuestDisk::open(&[DiskFile::raw(disk)]).expect("open the disk");
    let options = seal::Options { before, ..seal::Options::default() };
    let sealed = seal::seal(&guest, &qcow2, &options).expect("seal the disk");
    let file =
        File { name: "web.qcow2".to_owned(), format: "qcow2".to_owned(), bytes: sealed.bytes, sha256: sealed.qcow2 };
    let digest = Digest::of(b"bench");
    // Through JSON, so that fields that artifacts gain later need no change here.
    let mut artifact = serde_json::json!({
        "format": kiln_core::artifact::FORMAT, "image": "web", "version": "1.0.0", "build": "b-1", "created": 1, "recipe": digest,
        "disk": Disk { digest: sealed.disk_digest, size: sealed.size, chunk_size: 1 << 16, chunks: sealed.stored_chunks() },
        "files": [file],
        "base": { "name": "debian bookworm", "digest": digest, "key": digest },
        "machine": Machine { builder: "qemu".to_owned(), accelerator: "tcg".to_owned(), reason: "bench".to_owned(), memory: 1 << 30, cpus: 1 },
        "steps": [], "checks": [], "hygiene": [], "tools": {}, "times": {},
    });
    serde_json::from_value(artifact.take()).expect("an artifact")
}

pub(crate) fn serve(registry: &Path) -> (Child, String) {
    let mut command = Command::new(kiln());
    command.args(["serve", "--listen", "127.0.0.1:0", "--registry"]).arg(registry).stderr(Stdio::piped());
    let mut child = command.spawn().expect("start the server");
    let mut lines = BufReader::new(child.stderr.take().expect("its words")).lines();
    let said = lines.next().expect("a line").expect("readable");
    std::thread::spawn(move || lines.for_each(drop));
    let address = said.rsplit('/').next().expect("an address").to_owned();
    (child, address)
}

/// The memory of a process, in KiB: `VmRSS:` now, `VmHWM:` at most.
fn memory(child: &Child, which: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix(which)).expect("its memory");
    line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
}

fn resolved(address: &str) -> u64 {
    let asking = |_| {
        let mut asked = Asked::new(address);
        std::thread::spawn(move || {
            let (begun, mut count) = (Instant::now(), 0_u64);
            while begun.elapsed() < ASKING {
                asked.whole("/api/v1/images/web/resolve/latest");
                count += 1;
            }
            count
        })
    };
    let clients: Vec<_> = (0..CLIENTS).map(asking).collect();
    clients.into_iter().map(|client| client.join().expect("a client")).sum::<u64>() / ASKING.as_secs()
}

/// Bytes that the server sent as files and blobs.
pub(crate) fn sent(address: &str) -> u64 {
    let text = String::from_utf8(Asked::new(address).whole("/metrics")).expect("text");
    let line = text.lines().find_map(|line| line.strip_prefix("kiln_sent_bytes_total "));
    line.and_then(|line| line.parse::<u64>().ok()).expect("bytes sent")
}

/// One connection to a server.
pub(crate) struct Asked {
    stream: BufReader<TcpStream>,
    address: String,
}

impl Asked {
    pub(crate) fn new(address: &str) -> Self {
        let stream = BufReader::new(TcpStream::connect(address).expect("connect"));
        Self { stream, address: address.to_owned() }
    }

    /// The answer to a `GET`, which must be a good one.
    pub(crate) fn whole(&mut self, path: &str) -> Vec<u8> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address);
        self.stream.get_mut().write_all(request.as_bytes()).expect("ask");
        let (mut length, mut line) = (None, String::new());
        loop {
            line.clear();
            assert!(self.stream.read_line(&mut line).expect("an answer") > 0, "the server hung up");
            assert!(!line.starts_with("HTTP/") || line.contains(" 200 "), "{path}: {line}");
            if line == "\r\n" {
                break;
            }
            let field = line.to_ascii_lowercase();
            length = length.or(field.strip_prefix("content-length:").and_then(|length| length.trim().parse().ok()));
        }
        let mut body = vec![0; length.expect("an answer says how long it is")];
        self.stream.read_exact(&mut body).expect("the answer to its end");
        body
    }
}
