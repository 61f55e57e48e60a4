//! Serves made-up images, to look at the dashboard: `cargo run -p kiln-serve --example dashboard -- 127.0.0.1:8099`.
//! Log in with `kiln_publisher`.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a tool for whoever works on the dashboard")]
#![expect(clippy::disallowed_methods, reason = "it shares the support of the tests")]
#![allow(dead_code, reason = "it shares the support of the tests")]

#[path = "../../kiln-registry/tests/support/artifact.rs"]
mod artifacts;
#[path = "../tests/support/serving.rs"]
mod serving;
#[path = "../tests/support/showcase.rs"]
mod showcase;
#[path = "../../kiln-registry/tests/support/system.rs"]
mod system;

use artifacts as support;
use std::{sync::Arc, time::SystemTime};

use kiln_io::time::{Clock as _, SystemClock};
use kiln_serve::{Options, Server};
use tokio_util::sync::CancellationToken;

fn main() {
    let listen = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8099".to_owned());
    let scratch = artifacts::Scratch::new("example");
    let registry = scratch.registry();
    let now = SystemClock::new().wall().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    showcase::fill(&registry, &scratch.0, now);
    let tokens = scratch.0.join("tokens.toml");
    std::fs::write(&tokens, serving::tokens(true)).unwrap();
    let options = Options {
        listen: listen.parse().unwrap(),
        registry,
        cache: None,
        tokens: Some(tokens),
        tls: None,
        builds: Some(scratch.0.join("builds")),
        url: None,
        clock: Arc::new(SystemClock::new()),
        log: Arc::new(|line| println!("{line}")),
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(Server::bind(options)).unwrap();
    println!("http://{}", server.address());
    runtime.block_on(server.run(CancellationToken::new()));
}
