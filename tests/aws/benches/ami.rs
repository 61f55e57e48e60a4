//! What an AMI costs: a synthetic disk of 4 GiB with 1 GiB of data in full, then the next version with one package changed.
//!
//! `cargo bench --profile dev -p kiln-aws-tests`. Calls are counted where the fake runs in this process; time and memory are taken of a
//! second publish, to another region of a fake in a process of its own.

#![expect(clippy::disallowed_methods, reason = "the fake is a program")]
#![expect(clippy::print_stdout, reason = "it prints figures")]
#![expect(clippy::unwrap_used, reason = "a benchmark that fails should say where")]
#![allow(dead_code, reason = "it uses a part of what the tests have")]

#[path = "../../../crates/kiln-registry/tests/support/artifact.rs"]
mod artifact;
#[path = "../tests/flows/bench.rs"]
mod bench;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use kiln_aws::{Place, Sharing};
use kiln_aws_tests::{BLOCK, Fault};

use self::bench::{Bench, REGIONS};

const GIB: u64 = 1 << 30;
const SIZE: u64 = 4 * GIB;
/// Data lies in runs of so many bytes, with three times as much of nothing behind each.
const RUN: u64 = 8 << 20;

#[tokio::main]
async fn main() {
    let bench = Bench::new("bench");
    let mut child = Command::new(env!("CARGO_BIN_EXE_kiln-aws-tests"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let url = line.split_whitespace().find(|word| word.starts_with("http://")).unwrap().to_owned();
    let raw = bench.scratch().join("disk.raw");
    let before = bench.scratch().join("before.raw");
    let file = File::options().create(true).truncate(true).read(true).write(true).open(&raw).unwrap();
    file.set_len(SIZE).unwrap();
    fill(&file);
    bench.publish_file("1.0.0", &raw);
    report(&bench, &url, "1.0.0", changed(&raw, None)).await;
    Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(&raw).arg(&before).status().unwrap();
    install(&file);
    bench.publish_file("1.1.0", &raw);
    report(&bench, &url, "1.1.0", changed(&raw, Some(&before))).await;
    child.kill().unwrap();
    child.wait().unwrap();
}

/// One GiB that no compression makes smaller.
fn fill(file: &File) {
    let mut state = 1;
    let mut piece = vec![0; 1 << 20];
    for run in 0..SIZE / (4 * RUN) {
        for at in (0..RUN).step_by(piece.len()) {
            noise(&mut piece, &mut state);
            file.write_all_at(&piece, run * 4 * RUN + at).unwrap();
        }
    }
    // A BIOS would boot it.
    file.write_all_at(&[0xeb], 0).unwrap();
}

/// Three MiB of new files, 40 changed pages of databases and directories, and one MiB that is no longer there.
fn install(file: &File) {
    let mut state = 2;
    let mut piece = vec![0; 3 << 20];
    noise(&mut piece, &mut state);
    file.write_all_at(&piece, 5 * RUN + (100 << 10)).unwrap();
    for page in 0..40_u64 {
        noise(&mut piece[..4096], &mut state);
        file.write_all_at(&piece[..4096], (page * 97 % 128) * 4 * RUN + page * (64 << 10)).unwrap();
    }
    file.write_all_at(&vec![0; 1 << 20], 8 * RUN).unwrap();
}

fn noise(bytes: &mut [u8], state: &mut u64) {
    for eight in bytes.chunks_mut(8) {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        eight.copy_from_slice(&state.to_le_bytes()[..eight.len()]);
    }
}

/// Blocks of `new` that are not as before, all of them where there is no before.
fn changed(new: &Path, before: Option<&Path>) -> usize {
    let (new, before) = (File::open(new).unwrap(), before.map(|path| File::open(path).unwrap()));
    let (mut one, mut other) = (vec![0; BLOCK], vec![0; BLOCK]);
    let differs = |block: &u64| {
        new.read_exact_at(&mut one, block * BLOCK as u64).unwrap();
        if let Some(before) = &before {
            before.read_exact_at(&mut other, block * BLOCK as u64).unwrap();
        }
        before.is_none() || one != other
    };
    (0..SIZE / BLOCK as u64).filter(differs).count()
}

async fn report(bench: &Bench, url: &str, version: &str, changed: usize) {
    let from = bench.fake.ledger().len();
    let place = |region: &str| [Place { region: region.to_owned(), kms_key: None }];
    let counted = bench.report(version, &place(REGIONS[0]), &Sharing::default()).await;
    let put = counted.regions.into_values().next().unwrap().unwrap().blocks;
    let mut calls: BTreeMap<String, usize> = BTreeMap::new();
    let ledger = bench.fake.ledger();
    for call in &ledger[from..] {
        assert_eq!(call.fault, None::<Fault>);
        *calls.entry(call.action.clone()).or_default() += 1;
    }
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let (resting, began) = (memory("VmRSS:"), Instant::now());
    let timed = bench.report_at(url, version, &place(REGIONS[1]), &Sharing::default()).await.unwrap();
    let (took, peak) = (began.elapsed(), memory("VmHWM:"));
    assert_eq!(timed.regions.into_values().next().unwrap().unwrap().blocks, put);
    println!("{version}: {changed} blocks changed, {put} put, {} MiB sent", put / 2);
    println!("  {} requests: {calls:?}", ledger.len() - from);
    println!(
        "  {:.1} s on loopback, {} MiB held at most, {} of them before",
        took.as_secs_f64(),
        peak >> 10,
        resting >> 10
    );
    assert_eq!(put, changed, "every block that changed is put, and no other");
}

/// A figure of this process, in KiB.
fn memory(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
