//! A registry in a bucket: every verb against a real S3 server (moto's), two writers beside a collector, and a store that is
//! refused because it looks at a condition before it writes, not while it does.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::disallowed_methods, reason = "tests drive stock programs as a user would")]

#[path = "../crates/kiln-registry/tests/support/artifact.rs"]
mod support;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use kiln_io::guest::Quiet;
use kiln_registry::Registry;
use kiln_tests::{
    home::Home,
    moto::{Moto, kiln},
};

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

/// A store that answers each request rightly, and looks at conditions before it writes instead of while it does: as s3s-fs does.
fn forgetful() -> String {
    type Objects = Arc<Mutex<BTreeMap<String, (String, Vec<u8>)>>>;
    fn answer(stream: TcpStream, objects: &Objects, count: &AtomicUsize) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_owned());
        }
        let field = |name: &str| {
            let found =
                head.iter().find_map(|line| line.split_once(':').filter(|(key, _)| key.eq_ignore_ascii_case(name)));
            found.map(|(_, value)| value.trim().to_owned())
        };
        let mut body = vec![0; field("content-length").map_or(0, |length| length.parse().unwrap())];
        reader.read_exact(&mut body).ok()?;
        let mut request = head[0].split(' ');
        let (method, target) = (request.next()?, request.next()?);
        let (key, query) = target.split_once('?').unwrap_or((target, ""));
        let found = objects.lock().unwrap().get(key).cloned();
        let (status, tag, bytes) = match method {
            "PUT" => {
                let held = match (field("if-none-match"), field("if-match")) {
                    (Some(_), _) => found.is_none(),
                    (_, Some(tag)) => found.as_ref().is_some_and(|(found, _)| *found == tag),
                    _ => true,
                };
                if held {
                    thread::sleep(Duration::from_millis(3));
                    let tag = format!("\"{}\"", count.fetch_add(1, Ordering::SeqCst));
                    objects.lock().unwrap().insert(key.to_owned(), (tag.clone(), body));
                    ("200 OK", tag, Vec::new())
                } else {
                    ("412 Precondition Failed", String::new(), Vec::new())
                }
            }
            "DELETE" => {
                objects.lock().unwrap().remove(key);
                ("204 No Content", String::new(), Vec::new())
            }
            _ if query.contains("list-type=2") => {
                let empty = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
                ("200 OK", String::new(), empty.to_vec())
            }
            _ => match found {
                Some((tag, bytes)) => ("200 OK", tag, bytes),
                None => ("404 Not Found", String::new(), Vec::new()),
            },
        };
        let mut stream = stream;
        let modified = "Last-Modified: Sat, 21 Nov 2026 12:00:00 GMT";
        let length = bytes.len();
        write!(stream, "HTTP/1.1 {status}\r\nETag: {tag}\r\n{modified}\r\nContent-Length: {length}\r\n").ok()?;
        write!(stream, "Connection: close\r\n\r\n").ok()?;
        stream.write_all(&bytes).ok()
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (objects, count) = (Objects::default(), Arc::new(AtomicUsize::new(0)));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (objects, count) = (Arc::clone(&objects), Arc::clone(&count));
            thread::spawn(move || answer(stream, &objects, &count));
        }
    });
    format!("http://{address}")
}

#[test]
fn a_store_that_looks_before_it_writes_is_refused() {
    let (user, endpoint) = (Home::new("s3-forgetful"), forgetful());
    let bucket = format!("s3://images?endpoint={endpoint}");
    let refused = kiln(&user, &bucket, &["registry", "init"]).ends_with(1);
    assert!(refused.stderr.contains("`s3://images` cannot hold a registry: of 16 writers at once, "), "{refused:?}");
    assert!(refused.stderr.contains("whose conditional writes hold"), "{refused:?}");
    let wrong = kiln(&user, "s3://", &["registry", "init"]).ends_with(2);
    assert!(wrong.stderr.contains("does not name a bucket"), "{wrong:?}");
}
