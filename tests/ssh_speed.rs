//! Prints how fast kiln's own connection is beside `ssh` and `scp`, on this machine: `cargo run --release -p kiln-tests --example ssh_speed`.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "it is a program that prints figures")]

use std::{
    fs,
    time::{Duration, Instant},
};

use kiln_io::{
    guest::{Command, Content, Entry, Guest as _, Quiet},
    process::{Limits, Spec, run},
};
use kiln_tests::{
    guest::{LONG, connect_through},
    proxy::Proxy,
    sshd::{Sshd, user},
};

#[tokio::main]
async fn main() {
    let sshd = Sshd::start().await;
    let proxy = Proxy::delaying(sshd.port, Duration::from_millis(20));
    for (name, port) in [("loopback", sshd.port), ("40 ms round trip", proxy.port)] {
        println!("{name}");
        steps(&sshd, port).await;
        small_files(&sshd, port).await;
        large_file(&sshd, port).await;
    }
}

async fn steps(sshd: &Sshd, port: u16) {
    let start = Instant::now();
    let guest = connect_through(sshd, port).await;
    let connected = start.elapsed();
    for _ in 0..50 {
        guest.run(&Command::new("true", LONG), &Quiet).await.unwrap();
    }
    print("connect and log in", connected);
    print("50 steps", start.elapsed().checked_sub(connected).unwrap());
}

async fn small_files(sshd: &Sshd, port: u16) {
    let guest = connect_through(sshd, port).await;
    let source = sshd.directory().join("small");
    fs::create_dir_all(&source).unwrap();
    for number in 0..500 {
        fs::write(source.join(number.to_string()), vec![b'x'; 1024]).unwrap();
    }
    let entries = kiln_io::tree::entries(&source, "small".as_ref()).unwrap();
    let target = sshd.directory().join(format!("to-{port}"));
    let start = Instant::now();
    guest.upload(target.to_str().unwrap(), &entries, &Quiet).await.unwrap();
    print("500 files of 1 KiB, kiln", start.elapsed());
    let options = sshd.client_options(port).join(" ");
    let other = sshd.directory().join(format!("tar-{port}"));
    let pipe = format!(
        "tar -C {} -cf - small | ssh {options} {}@127.0.0.1 'mkdir -p {1}; tar -C {1} -xf -'",
        sshd.directory().display(),
        user(),
    )
    .replace("{1}", &other.display().to_string());
    shell("500 files of 1 KiB, tar | ssh", &pipe).await;
}

async fn large_file(sshd: &Sshd, port: u16) {
    let guest = connect_through(sshd, port).await;
    let source = sshd.directory().join("large");
    fs::write(&source, kiln_bytes(500 << 20)).unwrap();
    let content = Content::File { path: source.clone(), bytes: 500 << 20 };
    let entry = Entry { path: "large".into(), mode: 0o644, content };
    let target = sshd.directory().join(format!("large-{port}"));
    let options = sshd.client_options(port).join(" ");
    let other = sshd.directory().join(format!("scp-{port}"));
    for _ in 0..3 {
        let start = Instant::now();
        guest.upload(target.to_str().unwrap(), std::slice::from_ref(&entry), &Quiet).await.unwrap();
        print("500 MiB up, kiln", start.elapsed());
        let copy = format!("scp {options} {} {}@127.0.0.1:{}", source.display(), user(), other.display());
        shell("500 MiB up, scp", &copy).await;
    }
    let start = Instant::now();
    guest.download(other.to_str().unwrap(), &sshd.directory().join("back")).await.unwrap();
    print("500 MiB down, kiln", start.elapsed());
    let copy = format!("scp {options} {}@127.0.0.1:{} {}.2", user(), other.display(), other.display());
    shell("500 MiB down, scp", &copy).await;
}

/// Bytes that do not compress.
fn kiln_bytes(count: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

async fn shell(name: &str, script: &str) {
    let start = Instant::now();
    run(&Spec::new("sh").args(["-c", script]), &Limits::default(), &mut |_, _| {}).await.unwrap();
    print(name, start.elapsed());
}

fn print(name: &str, took: Duration) {
    println!(
        "  {name:32} {:8.3} s   (processor so far: own {:.2} s, children {:.2} s)",
        took.as_secs_f64(),
        cpu(13),
        cpu(15)
    );
}

/// Seconds of user and system time: fields 14 and 15 of `/proc/self/stat`, and 16 and 17 for children that have ended.
fn cpu(first: usize) -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks = |index: usize| fields[index - 2].parse::<u32>().unwrap();
    f64::from(ticks(first) + ticks(first + 1)) / 100.0
}
