//! `kiln serve` and `kiln token`: a registry over HTTP, and who may change it.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::Arc,
};

use kiln_io::time::SystemClock;
use kiln_serve::{Options, Scope, Server, Tokens};

use crate::{
    arguments::{Allowed, Serve, Token},
    escape::visible,
    failure::{Exit, Failure, Outcome},
    limits, output,
    signals::Interruption,
    surroundings,
};

pub(crate) async fn run(arguments: Serve) -> Outcome {
    let directory = match arguments.registry {
        Some(directory) => directory,
        None => surroundings::dirs()?.data.join("registry"),
    };
    limits::many_open_files();
    let interruption = Interruption::listen()?;
    let guarded = arguments.tokens.is_some();
    let tls = arguments.tls_cert.zip(arguments.tls_key);
    let scheme = if tls.is_some() { "https" } else { "http" };
    let options = Options {
        listen: arguments.listen,
        // With this user's keys: what a channel moves to is signed, and what a restricted one takes is proven.
        registry: surroundings::open(&directory)?,
        cache: surroundings::index(),
        tokens: arguments.tokens,
        tls,
        builds: arguments.builds,
        url: arguments.url,
        clock: Arc::new(SystemClock::new()),
        log: Arc::new(|line| output::talk(&visible(line))),
    };
    let server = Server::bind(options).await?;
    let address = server.address();
    output::talk(&format!("serving `{}` on {scheme}://{address}", directory.display()));
    if !guarded {
        output::talk("everybody may read and nobody may change anything; `--tokens FILE` says who may");
    }
    if guarded && scheme == "http" && !address.ip().is_loopback() {
        output::talk("warning: tokens cross the network in the clear; give `--tls-cert` and `--tls-key`");
    }
    tokio::select! {
        () = server.run(interruption.token().clone()) => {}
        () = interruption.impatience() => {}
    }
    output::talk("stopped");
    Ok(Exit::Done)
}

pub(crate) fn token(arguments: Token) -> Outcome {
    if arguments.name.is_empty() || arguments.name.len() > 100 || arguments.name.contains(char::is_control) {
        return Err(Failure::usage("the name of a token has 1 to 100 characters, none of them a control character"));
    }
    let path = arguments.tokens;
    let known = if path.exists() { Tokens::read(&path)? } else { Tokens::default() };
    if known.tokens.iter().any(|token| token.name == arguments.name) {
        return Err(Failure::usage(format!("`{}` has a token of the name `{}`", path.display(), arguments.name))
            .hint("choose another name, or remove the entry from the file first"));
    }
    let allow = arguments.allow.into_iter().map(|allowed| match allowed {
        Allowed::Read => Scope::Read,
        Allowed::Publish => Scope::Publish,
        Allowed::Promote => Scope::Promote,
        Allowed::Revoke => Scope::Revoke,
        Allowed::Restrict => Scope::Restrict,
    });
    let (text, sha256) = kiln_serve::new_token();
    let token = kiln_serve::Token { name: arguments.name, sha256, images: arguments.images, allow: allow.collect() };
    let entry = toml::to_string(&token).map_err(|error| Failure::of(&error))?;
    append(&path, &format!("[[token]]\n{entry}\n"))
        .map_err(|error| Failure::new(format!("cannot write `{}`", path.display())).because(error.to_string()))?;
    output::talk(&format!(
        "`{}` knows `{}` now; this is its token, shown once; a server that runs reads the file again",
        path.display(),
        visible(&token.name)
    ));
    output::data(&format!("{text}\n"))?;
    Ok(Exit::Done)
}

fn append(path: &Path, entry: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    file.write_all(entry.as_bytes())?;
    file.sync_all()
}
