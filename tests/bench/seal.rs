//! Sealing a disk, beside the conversions a user would run instead.

use std::{fs, path::Path, process::Command, sync::Arc, time::Instant};

use kiln_build::base::{BaseContext, PreparedBase, prepare};
use kiln_core::{
    event::{Event, Events},
    plan::{Base, DebianBase},
};
use kiln_disk::{DiskFile, GuestDisk, seal};
use kiln_io::{dirs::Dirs, time::SystemClock};
use tokio_util::sync::CancellationToken;

use crate::measure::{row, timed};

#[derive(Debug)]
struct Silent;

impl Events for Silent {
    fn emit(&self, _: Event) {}
}

pub(crate) async fn run() {
    let work = tempfile::tempdir().expect("a directory to work in");
    let base = debian().await;
    let (ours, zlib, zstd) = (work.path().join("ours"), work.path().join("zlib"), work.path().join("zstd"));

    // Once unmeasured, so that everybody reads from the page cache.
    fs::read(&base.disk).expect("read the disk");
    let start = Instant::now();
    let disk = GuestDisk::open(&[DiskFile::raw(&base.disk)]).expect("open the disk");
    let sealed = seal::seal(&disk, &ours, &seal::Options::default()).expect("seal the disk");
    let elapsed = start.elapsed();
    println!("disk: {} MiB of data, sealed to {} MiB", sealed.stored_chunks() / 16, sealed.bytes >> 20);

    let by_zlib = convert(&base.disk, &zlib, &[]);
    println!("zlib: {} MiB", fs::metadata(&zlib).expect("its size").len() >> 20);
    row("seal", elapsed, "convert -c (zlib)", by_zlib);
    let by_zstd = convert(&base.disk, &zstd, &["-o", "compression_type=zstd", "-m", "16", "-W"]);
    println!("zstd: {} MiB", fs::metadata(&zstd).expect("its size").len() >> 20);
    row("seal", elapsed, "convert -c (zstd, -m 16 -W)", by_zstd);
}

fn convert(from: &Path, to: &Path, options: &[&str]) -> std::time::Duration {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", "raw", "-O", "qcow2", "-c"]).args(options).arg(from).arg(to);
    timed(&mut command).elapsed
}

/// The Debian base of the benchmarks, from the cache of the machine's user.
pub(crate) async fn debian() -> PreparedBase {
    let context = BaseContext {
        dirs: Dirs::from_environment(|name| std::env::var(name).ok()).expect("a home directory"),
        events: Arc::new(Silent),
        clock: Arc::new(SystemClock::new()),
        images: None,
        cancel: CancellationToken::new(),
    };
    let base = Base::Debian(DebianBase { suite: "bookworm".into(), mirror: None, packages: Vec::new() });
    prepare(&base, &context).await.expect("make the base")
}
