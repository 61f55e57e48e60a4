//! `kiln serve` as its own process, for whoever wants a server.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use crate::home::Home;

/// A running `kiln serve`, ended when it is dropped.
#[derive(Debug)]
pub struct Served {
    child: Child,
    /// As clients use it, without a `/` at its end.
    pub url: String,
}

impl Served {
    /// Serves the registry of `user` with these further arguments.
    pub fn new(user: &Home, arguments: &[&str]) -> Self {
        Self::spawn(user.command(&[&["serve"], arguments].concat()))
    }

    /// Starts `command`, which is a `kiln serve` or ends in one, and waits until it listens.
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("run kiln serve");
        let mut lines = BufReader::new(child.stderr.take().expect("its stderr")).lines();
        let said = lines.next().and_then(Result::ok).unwrap_or_default();
        let url = said.rsplit(' ').next().unwrap_or_default().to_owned();
        assert!(url.starts_with("http"), "kiln serve does not listen: {said}");
        // Whatever it says further on must not stop it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url }
    }

    /// `127.0.0.1:8080`
    pub fn host(&self) -> &str {
        self.url.split_once("://").map_or("", |(_, host)| host)
    }

    /// The most memory that it ever had, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the server runs");
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        peak.expect("the kernel says VmHWM") << 10
    }

    /// The same, measured anew from now on.
    pub fn forget_peak_memory(&self) -> u64 {
        let peak = self.peak_memory();
        // `CLEAR_REFS_MM_HIWATER_RSS`, proc(5).
        fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").expect("reset VmHWM");
        peak
    }

    /// Ends it as a user would; how it ended.
    pub fn interrupt(mut self) -> Option<i32> {
        let told = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        assert!(told.is_ok_and(|status| status.success()), "cannot signal the server");
        self.child.wait().ok().and_then(|status| status.code())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
