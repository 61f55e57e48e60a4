//! Makes a Debian base ready and says where it is: `cargo run -p kiln-build --example base -- <suite> <directory>`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a program")]

use std::{path::PathBuf, sync::Arc};

use kiln_build::base::{BaseContext, BaseError, prepare};
use kiln_core::{
    event::{Event, Events},
    plan::{Base, DebianBase},
};
use kiln_io::{dirs::Dirs, time::SystemClock};
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
struct Lines;

impl Events for Lines {
    fn emit(&self, event: Event) {
        eprintln!("{event:?}");
    }
}

#[tokio::main]
async fn main() -> Result<(), BaseError> {
    let mut arguments = std::env::args().skip(1);
    let suite = arguments.next().unwrap_or_else(|| "bookworm".into());
    let root = PathBuf::from(arguments.next().unwrap_or_else(|| "/var/tmp/kiln-base-example".into()));
    let context = BaseContext {
        dirs: Dirs { cache: root.join("cache"), state: root.join("state"), data: root.join("data") },
        events: Arc::new(Lines),
        clock: Arc::new(SystemClock::new()),
        images: None,
        cancel: CancellationToken::new(),
    };
    let base = Base::Debian(DebianBase { suite, mirror: None, packages: Vec::new() });
    let prepared = prepare(&base, &context).await?;
    println!("{prepared:#?}");
    Ok(())
}
