//! The part of our flows that moto has, through the same client: somebody else's reading of what we send.
//!
//! moto forgets what an AMI stands on, lists no changed blocks without a parent's, and has no instance refresh, references or
//! deprecation: a second version, retention and releases cannot be had there.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
};

use kiln_tests::home::unpacked;

use crate::bench::{self, Bench, REGIONS};

/// A running moto.
struct Moto {
    child: Child,
    url: String,
    _stdin: ChildStdin,
}

impl Moto {
    #[expect(clippy::disallowed_methods, reason = "a server in another language is a process")]
    fn start() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("foreign/serve_moto.py");
        let mut command = Command::new(unpacked("aws-python/bin/python"));
        command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        let stdin = child.stdin.take().unwrap();
        Self { child, url: url.trim().to_owned(), _stdin: stdin }
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn moto_takes_a_whole_publish_and_a_parameter() {
    let moto = Moto::start();
    let bench = Bench::new("moto");
    let disk = bench.publish("1.0.0", &bench::disk(1, 6));
    // What went up is read back block by block and compared before the AMI is registered.
    let published = bench.ami_at(&moto.url, "1.0.0").await.unwrap();
    assert_eq!((published.already, published.blocks), (false, disk.len().div_ceil(bench::BLOCK)));
    assert_eq!(bench.outstanding(), 0);
    let again = bench.ami_at(&moto.url, "1.0.0").await.unwrap();
    assert_eq!((again.already, again.ami.as_str()), (true, published.ami.as_str()));
    let region = bench.region_at(&moto.url, REGIONS[0]).await.unwrap();
    assert_eq!(region.point_parameter("/images/web/stable", &published.ami).await.unwrap(), None);
    let before = region.point_parameter("/images/web/stable", &published.ami).await.unwrap();
    assert_eq!(before, Some(published.ami));
}
