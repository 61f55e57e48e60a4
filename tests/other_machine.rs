//! A second machine: a network namespace of its own, where root may make one.

use std::process::{Command, Stdio};

use crate::home::{Home, Ran, kiln, repository};

/// A network of its own, joined to ours by a cable.
#[derive(Debug)]
pub struct OtherMachine(Option<String>);

const HERE: &str = "10.213.77.1";

impl OtherMachine {
    /// One joined to ours by a cable; where that is not possible, ours, and it is said.
    #[expect(
        clippy::new_without_default,
        clippy::print_stderr,
        reason = "it sets up a network, or says that it cannot"
    )]
    pub fn new() -> Self {
        if !is_root() {
            eprintln!("not root: the second machine shares the network of the first");
            return Self(None);
        }
        let name = format!("kiln{}", std::process::id() % 100_000);
        let (ours, theirs) = (format!("{name}a"), format!("{name}b"));
        let ip = |arguments: &str| {
            let done = Command::new("ip").args(arguments.split(' ')).output().expect("run ip");
            assert!(done.status.success(), "ip {arguments}: {done:?}");
        };
        let added = Command::new("ip").args(["netns", "add", &name]).output().expect("run it there");
        if !added.status.success() {
            eprintln!("no network of its own here, so the second machine shares that of the first: {added:?}");
            return Self(None);
        }
        ip(&format!("link add {ours} type veth peer name {theirs} netns {name}"));
        ip(&format!("addr add {HERE}/30 dev {ours}"));
        ip(&format!("link set {ours} up"));
        ip(&format!("-n {name} addr add 10.213.77.2/30 dev {theirs}"));
        ip(&format!("-n {name} link set {theirs} up"));
        Self(Some(name))
    }

    /// Where it finds the machine that it is joined to.
    pub fn address(&self) -> &str {
        if self.0.is_some() { HERE } else { "127.0.0.1" }
    }

    /// Runs kiln there.
    pub fn kiln(&self, user: &Home, arguments: &[&str]) -> Ran {
        let inner = user.command(arguments);
        let output = match &self.0 {
            None => user.command(arguments).output().expect("run it there"),
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name]).arg(kiln()).args(arguments).current_dir(repository());
                command.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
                command.stdin(Stdio::null()).output().expect("run it there")
            }
        };
        Ran::new(arguments, &output)
    }
}

impl Drop for OtherMachine {
    fn drop(&mut self) {
        if let Some(name) = &self.0 {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().expect("run it there").stdout == b"0\n"
}
