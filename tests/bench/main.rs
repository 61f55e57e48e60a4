//! Benchmarks of kiln beside its peers, in one run on one machine: `cargo run --release -p kiln-tests --bin bench`.
//!
//! Without arguments everything runs, which takes about half an hour on two cores without KVM; otherwise only the parts named.

#![expect(clippy::disallowed_methods, reason = "the peers are programs")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it prints figures")]

mod bake;
mod growth;
mod measure;
mod packer;
mod peers;
mod place;
mod publish;
mod rebake;
mod seal;
mod serve;
mod ssh;

use std::process::ExitCode;

const PARTS: [(&str, &str); 10] = [
    ("bake", "a whole bake of nginx on Debian 12, beside Packer's QEMU builder on the same base"),
    (
        "rebake",
        "the same image after an edit, unchanged, a second template; beside Packer, which starts anew each time",
    ),
    (
        "publish",
        "what a further version adds to the registry, with and without its files on the places of the one before",
    ),
    (
        "peers",
        "two versions of a disk, a package apart, beside casync, restic, a qemu-img overlay and copies: storing them and sending the second",
    ),
    ("steps", "50 no-op shell steps over a round trip of 40 ms, beside Packer"),
    ("files", "500 files of 1 KiB over a round trip of 40 ms, beside `tar | ssh` and Packer"),
    ("file", "one file of 500 MiB on loopback, beside `scp` and Packer"),
    ("serve", "a version over loopback, beside python's `http.server`; the server's memory; resolving per second"),
    ("growth", "a registry at 100, 1,000 and 10,000 versions: publishing, resolving, lists, pages, collection, bytes"),
    ("seal", "sealing a Debian disk, beside `qemu-img convert -c` with zlib and with zstd"),
];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = wanted.iter().find(|name| PARTS.iter().all(|(part, _)| part != name)) {
        if !["--help", "-h"].contains(&unknown.as_str()) {
            eprintln!("error: there is no part `{unknown}`");
        }
        eprintln!("usage: bench [PART]...");
        for (part, what) in PARTS {
            eprintln!("  {part:<7} {what}");
        }
        return ExitCode::from(2);
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for (part, what) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|name| name == part) {
            println!("\n# {part}: {what}");
            match part {
                "bake" => bake::run(),
                "rebake" => rebake::run(),
                "publish" => publish::run(),
                "peers" => runtime.block_on(peers::run()),
                "steps" => runtime.block_on(ssh::steps()),
                "files" => runtime.block_on(ssh::files()),
                "file" => runtime.block_on(ssh::file()),
                "serve" => runtime.block_on(serve::run()),
                "growth" => growth::run(),
                _ => runtime.block_on(seal::run()),
            }
        }
    }
    ExitCode::SUCCESS
}
