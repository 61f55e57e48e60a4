//! A registry in a bucket: every verb against a real S3 server (moto's), two writers beside a collector, and s3s-fs, which is
//! refused because it looks at a condition before it writes, not while it does.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::disallowed_methods, reason = "tests drive stock programs as a user would")]

#[path = "../crates/kiln-registry/tests/support/artifact.rs"]
mod support;

use std::{
    fs,
    net::TcpListener,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use kiln_io::guest::Quiet;
use kiln_registry::Registry;
use kiln_tests::{
    home::Home,
    moto::{Moto, kiln},
};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};

use support::{artifact, fixed};

/// Publishes `web` 1.0.0 and 1.1.0, which differ in one chunk, in the user's own registry.
fn bake(user: &Home) {
    let registry = Registry::open(&user.path("data/registry")).unwrap();
    for (build, content, version) in [("b-1", "one", "1.0.0"), ("b-2", "two", "1.1.0")] {
        let directory = user.path("baked").join(version);
        let artifact = artifact(&directory, build, content);
        registry.publish(&artifact, &directory, &fixed(version), &Quiet).unwrap();
    }
}

#[test]
fn a_bucket_is_a_registry_for_every_verb() {
    let (moto, user, other) = (Moto::start("127.0.0.1"), Home::new("s3"), Home::new("s3-other"));
    bake(&user);
    let bucket = &moto.registry("team/kiln");
    let early = kiln(&user, bucket, &["push", "web@1.0.0"]).ends_with(1);
    assert!(early.stderr.contains("kiln registry init --registry"), "{early:?}");
    kiln(&user, bucket, &["registry", "init"]).succeeds();
    let first = kiln(&user, bucket, &["push", "web@1.0.0"]).succeeds();
    assert!(first.stderr.starts_with("web@1.0.0 is in `s3://images/team/kiln` now; "), "{first:?}");
    kiln(&user, bucket, &["push", "web@1.1.0"]).succeeds();
    let images = kiln(&other, bucket, &["images", "web"]).succeeds().stdout;
    assert_eq!(images.lines().count(), 3, "{images}");
    kiln(&user, bucket, &["promote", "web", "1.0.0", "--to", "stable"]).succeeds();
    let stale = kiln(&user, bucket, &["promote", "web", "1.1.0", "--to", "stable", "--expect", "1.1.0"]).ends_with(1);
    assert!(stale.stderr.contains("somebody moved it"), "{stale:?}");
    kiln(&user, bucket, &["promote", "web", "1.1.0", "--to", "stable", "--expect", "1.0.0"]).succeeds();
    assert!(kiln(&other, bucket, &["resolve", "web@stable"]).succeeds().stdout.contains("\"web@1.1.0\""));
    kiln(&user, bucket, &["rollback", "web", "stable", "--reason", "slow"]).succeeds();
    let history = kiln(&other, bucket, &["channel", "web", "stable"]).succeeds().stdout;
    assert_eq!(history.lines().count(), 4, "{history}");

    // A second machine brings it into its own registry; a third reads it out of the bucket.
    kiln(&other, bucket, &["pull", "web@stable"]).succeeds();
    let (pulled, read) = (other.path("pulled.raw"), other.path("read.raw"));
    let export = |registry: &str, to: &Path| {
        kiln(&other, registry, &["export", "web@1.0.0", "--format", "raw", "--to", to.to_str().unwrap()]).succeeds();
    };
    export(other.path("data/registry").to_str().unwrap(), &pulled);
    export(bucket, &read);
    let baked = fs::read(user.path("baked/1.0.0/web.raw")).unwrap();
    assert!(fs::read(pulled).unwrap() == baked && fs::read(read).unwrap() == baked);

    kiln(&user, bucket, &["revoke", "web", "1.1.0", "--reason", "CVE-2026-1"]).succeeds();
    let refused = kiln(&other, bucket, &["pull", "web@1.1.0"]).ends_with(1);
    assert!(refused.stderr.contains("web@1.1.0 is revoked: CVE-2026-1"), "{refused:?}");
    let whole = kiln(&user, bucket, &["registry", "verify"]).succeeds().stderr;
    assert!(whole.starts_with("2 of 2 versions are whole"), "{whole}");
    let pruned = kiln(&user, bucket, &["registry", "prune", "--keep", "0", "--remove"]).succeeds().stderr;
    assert!(pruned.starts_with("removed 1 versions"), "{pruned}");
    kiln(&other, bucket, &["show", "web@1.0.0"]).succeeds();
    kiln(&other, bucket, &["show", "web@1.1.0"]).ends_with(1);
}

#[test]
fn two_writers_and_a_collector_lose_nothing() {
    let moto = Moto::start("127.0.0.1");
    let (bucket, collector) = (moto.registry("race"), Home::new("s3-collector"));
    kiln(&collector, &bucket, &["registry", "init"]).succeeds();
    let writing = AtomicUsize::new(2);
    thread::scope(|scope| {
        for writer in 0..2 {
            let (bucket, writing) = (&bucket, &writing);
            scope.spawn(move || {
                let user = Home::new(&format!("s3-writer-{writer}"));
                let registry = Registry::open(&user.path("data/registry")).unwrap();
                for number in 0..3 {
                    let (version, source) = (format!("{writer}.{number}"), user.path("baked"));
                    let baked = artifact(&source, &version, &format!("{writer} wrote {number}"));
                    registry.publish(&baked, &source, &fixed(&version), &Quiet).unwrap();
                    kiln(&user, bucket, &["push", &format!("web@{version}")]).succeeds();
                    kiln(&user, bucket, &["promote", "web", &version, "--to", "stable"]).succeeds();
                }
                writing.fetch_sub(1, Ordering::SeqCst);
            });
        }
        scope.spawn(|| {
            while writing.load(Ordering::SeqCst) > 0 {
                let pruned = kiln(&collector, &bucket, &["registry", "prune", "--keep", "100", "--remove"]);
                assert!(pruned.code == Some(0) || pruned.stderr.contains("somebody publishes"), "{pruned:?}");
                thread::sleep(Duration::from_millis(200));
            }
        });
    });
    let whole = kiln(&collector, &bucket, &["registry", "verify"]).succeeds().stderr;
    assert!(whole.starts_with("6 of 6 versions are whole"), "{whole}");
    let history = kiln(&collector, &bucket, &["channel", "web", "stable"]).succeeds().stdout;
    assert_eq!(history.lines().count(), 1 + 6, "{history}");
}

/// s3s-fs, which keeps a bucket in a directory: it looks at a condition before it writes, not while it does.
fn s3s_fs(directory: &Path) -> String {
    fs::create_dir_all(directory.join("images")).unwrap();
    let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(directory).unwrap());
    service.set_auth(SimpleAuth::from_single("test", "test"));
    let service = service.build();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service.clone());
                tokio::spawn(connection);
            }
        });
    });
    format!("http://{address}")
}

#[test]
fn a_store_that_looks_before_it_writes_is_refused() {
    let user = Home::new("s3-forgetful");
    let endpoint = s3s_fs(&user.path("bucket"));
    let bucket = format!("s3://images?endpoint={endpoint}");
    let refused = kiln(&user, &bucket, &["registry", "init"]).ends_with(1);
    assert!(refused.stderr.contains("`s3://images` cannot hold a registry: of 16 writers at once, "), "{refused:?}");
    assert!(refused.stderr.contains("whose conditional writes hold"), "{refused:?}");
    let wrong = kiln(&user, "s3://", &["registry", "init"]).ends_with(2);
    assert!(wrong.stderr.contains("does not name a bucket"), "{wrong:?}");
}
