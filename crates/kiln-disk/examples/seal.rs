//! Seals a disk and prints seconds, bytes and digests: `seal OUT raw|qcow2 DISK [raw|qcow2 BASE]...`.
#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use std::{error::Error, path::Path, time::Instant};

use kiln_disk::{DiskFile, GuestDisk, seal};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [out, layers @ ..] = arguments.as_slice() else {
        return Err("usage: seal OUT FORMAT DISK [FORMAT BASE]...".into());
    };
    let layers = layers.chunks(2).map(|pair| match pair {
        [format, path] if format == "raw" => Ok(DiskFile::raw(path)),
        [format, path] if format == "qcow2" => Ok(DiskFile::qcow2(path)),
        _ => Err("each disk is `raw PATH` or `qcow2 PATH`"),
    });
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let level = number("KILN_SEAL_LEVEL").unwrap_or(seal::LEVEL);
    let threads = number("KILN_SEAL_THREADS").and_then(|threads| usize::try_from(threads).ok());
    let start = Instant::now();
    let disk = GuestDisk::open(&layers.collect::<Result<Vec<_>, _>>()?)?;
    let sealed = seal::seal(&disk, Path::new(out), &seal::Options { level, threads, ..Default::default() })?;
    println!("seconds {:.3}", start.elapsed().as_secs_f64());
    println!("bytes {}", sealed.bytes);
    println!("size {}", sealed.size);
    println!("chunks {} of {}", sealed.stored_chunks(), sealed.chunks.len());
    println!("disk {}", sealed.disk_digest);
    println!("qcow2 {}", sealed.qcow2);
    Ok(())
}
