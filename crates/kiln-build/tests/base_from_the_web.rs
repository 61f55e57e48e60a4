//! `base.qcow2` with a URL: fetched once, accepted by its digest and by its header, and kept only then.
#![expect(clippy::disallowed_methods, reason = "qemu-img makes the image, and tests have no other door to it")]
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use kiln_build::base::{BaseContext, BaseError, PreparedBase, prepare};
use kiln_core::{
    Digest,
    event::{Event, Events},
    plan::{Base, Login, Qcow2Base, Qcow2Source},
};
use kiln_io::{dirs::Dirs, time::SystemClock};
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
struct Silent;

impl Events for Silent {
    fn emit(&self, _: Event) {}
}

/// Serves one file to everybody, whatever they ask for; counts them.
#[derive(Clone)]
struct Web {
    url: String,
    asked: Arc<AtomicUsize>,
}

impl Web {
    fn serving(bytes: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/base.qcow2", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let request = BufReader::new(connection.try_clone().unwrap()).lines();
                request.map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
                counter.fetch_add(1, Ordering::SeqCst);
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", bytes.len());
                // A client that refuses the file hangs up in the middle of it.
                let _ = connection.write_all(head.as_bytes()).and_then(|()| connection.write_all(&bytes));
            }
        });
        Self { url, asked }
    }

    async fn prepare(&self, digest: Digest, root: &Path) -> Result<PreparedBase, BaseError> {
        let context = BaseContext {
            dirs: Dirs { cache: root.join("cache"), state: root.join("state"), data: root.join("data") },
            events: Arc::new(Silent),
            clock: Arc::new(SystemClock::new()),
            images: None,
            cancel: CancellationToken::new(),
        };
        let source = Qcow2Source::Url { url: self.url.clone(), digest };
        prepare(&Base::Qcow2(Qcow2Base { source, login: Login::Nocloud }), &context).await
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// A qcow2 of 1 MiB, made with these options.
fn qcow2(options: &[&str]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.qcow2");
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2"]).args(options).arg(&path).arg("1M");
    assert!(command.status().unwrap().success());
    fs::read(path).unwrap()
}

/// Whatever lies in the cache under its final name.
fn kept(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root.join("cache/bases")).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| !name.starts_with('.')).collect()
}

#[tokio::test]
async fn is_fetched_once_and_then_taken_from_the_cache() {
    let root = tempfile::tempdir().unwrap();
    let bytes = qcow2(&[]);
    let digest = Digest::of(&bytes);
    let web = Web::serving(bytes.clone());
    let base = web.prepare(digest, root.path()).await.unwrap();
    assert_eq!((base.size, fs::read(&base.disk).unwrap()), (1 << 20, bytes));
    assert_eq!(kept(root.path()).len(), 1);
    assert_eq!(web.prepare(digest, root.path()).await.unwrap().disk, base.disk);
    assert_eq!(web.asked(), 1);
}

#[tokio::test]
async fn asked_for_by_many_at_once_it_is_whole_also_when_some_of_them_stop() {
    let root = tempfile::tempdir().unwrap();
    let bytes = qcow2(&[]);
    let digest = Digest::of(&bytes);
    let web = Web::serving(bytes.clone());
    let each = |_| {
        let (web, root) = (web.clone(), root.path().to_owned());
        tokio::spawn(async move { web.prepare(digest, &root).await.map(|base| base.disk).unwrap() })
    };
    let all: Vec<_> = (0..32).map(each).collect();
    while web.asked() == 0 {
        tokio::task::yield_now().await;
    }
    let stopped = all.iter().step_by(4).map(tokio::task::JoinHandle::abort).count();
    for one in all {
        match one.await {
            Ok(disk) => assert_eq!(fs::read(disk).unwrap(), bytes),
            Err(ended) => assert!(ended.is_cancelled(), "{ended}"),
        }
    }
    assert_eq!(kept(root.path()).len(), 1);
    assert!(web.asked() <= 1 + stopped, "only who was stopped is made up for: {}", web.asked());
}

#[tokio::test]
async fn another_file_than_the_one_named_is_refused_with_both_digests_and_not_kept() {
    let root = tempfile::tempdir().unwrap();
    let bytes = qcow2(&[]);
    let (named, got) = (Digest::of(b"another"), Digest::of(&bytes));
    let error = Web::serving(bytes).prepare(named, root.path()).await.unwrap_err();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    assert!(text.contains(&named.to_string()) && text.contains(&got.to_string()), "{text}");
    assert!(kept(root.path()).is_empty(), "{:?}", kept(root.path()));
}

/// The right digest makes nobody's file harmless: one that names a backing file would let a tool read this machine.
#[tokio::test]
async fn a_header_that_names_another_file_is_refused_and_not_kept() {
    let root = tempfile::tempdir().unwrap();
    let bytes = qcow2(&["-u", "-F", "raw", "-b", "/etc/passwd"]);
    let error = Web::serving(bytes.clone()).prepare(Digest::of(&bytes), root.path()).await.unwrap_err();
    assert!(matches!(error, BaseError::Refused { .. }), "{error:?}");
    assert!(kept(root.path()).is_empty(), "{:?}", kept(root.path()));
    let parts = fs::read_dir(root.path().join("cache/bases/.downloads")).unwrap().flatten();
    let parts: Vec<_> = parts.map(|entry| entry.file_name()).collect();
    assert!(parts.is_empty(), "left for a resumed download: {parts:?}");
}
