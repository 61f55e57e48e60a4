//! A server with a registry in it, and stock programs that ask it.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, Mutex},
};

use kiln_io::{guest::Quiet, time::SystemClock};
use kiln_registry::Registry;
use kiln_serve::{Options, Server};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::artifacts::{Scratch, artifact, fixed};

/// A running server. It stops when it is dropped.
pub(crate) struct Serving {
    pub(crate) scratch: Scratch,
    pub(crate) registry: Registry,
    pub(crate) url: String,
    pub(crate) log: Arc<Mutex<Vec<String>>>,
    stop: CancellationToken,
    runtime: Option<Runtime>,
}

/// What the tokens file of a test says: `publisher` may do all with `web`, `reader` only reads `web`.
pub(crate) const PUBLISHER: &str = "kiln_publisher";
pub(crate) const READER: &str = "kiln_reader";

pub(crate) fn tokens(public: bool) -> String {
    let entry = |name: &str, token: &str, allow: &str| {
        let digest = kiln_core::Digest::of(token.as_bytes());
        format!("[[token]]\nname = \"{name}\"\nsha256 = \"{digest}\"\nimages = [\"web\"]\nallow = [{allow}]\n")
    };
    let all = "\"read\", \"publish\", \"promote\", \"revoke\", \"restrict\"";
    format!("public = {public}\n{}{}", entry("publisher", PUBLISHER, all), entry("reader", READER, "\"read\""))
}

impl Serving {
    /// Serves `web` 1.0.0 and 1.1.0, which differ in one segment, to everybody.
    pub(crate) fn new(name: &str) -> Self {
        Self::with(name, Some(tokens(true)))
    }

    pub(crate) fn with(name: &str, tokens: Option<String>) -> Self {
        let scratch = Scratch::new(name);
        let registry = scratch.registry();
        for (build, content, version) in [("b-1", "one", "1.0.0"), ("b-2", "two", "1.1.0")] {
            let directory = scratch.0.join(version);
            let artifact = artifact(&directory, build, content);
            registry.publish(&artifact, &directory, &fixed(version), &Quiet).unwrap();
        }
        Self::of(scratch, registry, tokens, None)
    }

    pub(crate) fn of(
        scratch: Scratch,
        registry: Registry,
        tokens: Option<String>,
        tls: Option<(PathBuf, PathBuf)>,
    ) -> Self {
        let tokens = tokens.map(|text| {
            let path = scratch.0.join("tokens.toml");
            fs::write(&path, text).unwrap();
            path
        });
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&log);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let options = Options {
            listen: "127.0.0.1:0".parse().unwrap(),
            registry: registry.clone(),
            cache: Some(scratch.0.join("index")),
            tokens,
            tls,
            builds: Some(scratch.0.join("builds")),
            url: None,
            clock: Arc::new(SystemClock::new()),
            log: Arc::new(move |line| lines.lock().unwrap().push(line.to_owned())),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let server = runtime.block_on(Server::bind(options)).unwrap();
        let url = format!("{scheme}://{}", server.address());
        let stop = CancellationToken::new();
        runtime.spawn(server.run(stop.clone()));
        Self { scratch, registry, url, log, stop, runtime: Some(runtime) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.0.join(name)
    }

    pub(crate) fn host(&self) -> &str {
        self.url.split_once("://").unwrap().1
    }

    /// `curl`, whose failures to talk fail the test; `-o -` is what comes back.
    pub(crate) fn curl(&self, arguments: &[&str], path: &str) -> Output {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--globoff", "--max-time", "60"])
            .args(arguments)
            .arg(format!("{}{path}", self.url))
            .output()
            .unwrap();
        assert!(output.status.success(), "{path}: {output:?}");
        output
    }

    /// Status, head and body of an answer.
    pub(crate) fn ask(&self, arguments: &[&str], path: &str) -> (u16, String, Vec<u8>) {
        let bytes = self.curl(&[&["--include"], arguments].concat(), path).stdout;
        let mut rest = bytes.as_slice();
        loop {
            let end = rest.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
            let head = String::from_utf8_lossy(&rest[..end]).into_owned();
            rest = &rest[end + 4..];
            let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
            if status >= 200 {
                return (status, head.to_lowercase(), rest.to_vec());
            }
        }
    }

    pub(crate) fn json(&self, arguments: &[&str], path: &str) -> (u16, serde_json::Value) {
        let (status, _, body) = self.ask(arguments, path);
        (status, serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&body))))
    }

    /// A request with a token and a body of JSON.
    pub(crate) fn post(&self, token: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
        let authorization = format!("Authorization: Bearer {token}");
        self.json(&["-H", &authorization, "-H", "Content-Type: application/json", "-d", body], path)
    }

    /// Ends the server, as a signal would.
    pub(crate) fn stop(&mut self) {
        self.stop.cancel();
        drop(self.runtime.take());
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    output
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
