//! `--on-error ask` at a real terminal, with a real machine: retry with an edited template, and clean.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    path::PathBuf,
    process::{Child, ExitStatus},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use kiln_tests::{
    home::Home,
    running::{alone, gone, nothing_but_logs},
};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// Longer than any bake takes here, so that a question that never comes fails the test instead of hanging it.
const PATIENCE: Duration = Duration::from_mins(20);

/// kiln with a person at its terminal.
struct Session {
    child: Child,
    terminal: File,
    said: Receiver<String>,
    text: String,
}

impl Session {
    fn begin(home: &Home, arguments: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("unlock the terminal");
        let name = ptsname(&master, Vec::new()).expect("the terminal's name");
        let slave = || {
            let path = PathBuf::from(name.to_str().expect("a UTF-8 path"));
            File::options().read(true).write(true).open(path).expect("open the terminal")
        };
        let child = home.command(arguments).stdin(slave()).stdout(slave()).stderr(slave()).spawn().expect("start kiln");
        let terminal = File::from(master);
        let mut reader = terminal.try_clone().expect("share the terminal");
        let (sender, said) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The end of a terminal is an error.
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                if sender.send(String::from_utf8_lossy(&buffer[..length]).into_owned()).is_err() {
                    break;
                }
            }
        });
        Self { child, terminal, said, text: String::new() }
    }

    /// Reads until kiln has said this, after what was read before.
    fn wait_for(&mut self, wanted: &str) {
        let from = self.text.len();
        while !self.text[from..].contains(wanted) {
            let Ok(more) = self.said.recv_timeout(PATIENCE) else {
                panic!("kiln never said `{wanted}`:\n{}", self.text);
            };
            self.text.push_str(&more);
        }
    }

    fn answer(&mut self, answer: &str) {
        writeln!(self.terminal, "{answer}").expect("type an answer");
    }

    fn end(mut self) -> (ExitStatus, String) {
        while let Ok(more) = self.said.recv_timeout(PATIENCE) {
            self.text.push_str(&more);
        }
        (self.child.wait().expect("wait for kiln"), self.text)
    }
}

/// Two steps; the second is `script`.
fn write(home: &Home, script: &str) -> PathBuf {
    let template = home.path("asked.toml");
    let text = format!(
        "[image]\nname = 'asked'\n[base.debian]\nsuite = 'bookworm'\n[builder.qemu]\nmemory = '512 MiB'\ncpus = 1\ndisk = '3 GiB'\n\
         [[provision]]\nuse = 'shell'\nas = 'first'\nscript = 'echo once >> /root/first'\n\
         [[provision]]\nuse = 'shell'\nas = 'second'\nscript = '{script}'\n\
         [[check]]\nuse = 'command'\nrun = 'wc -l < /root/first; ls /root'\ncontains = '1'\n"
    );
    fs::write(&template, text).expect("write the template");
    template
}

#[test]
fn a_person_edits_the_failed_step_and_retries_it_or_cleans() {
    let _turn = alone();
    let home = Home::new("ask");
    let template = write(&home, "touch /root/dirt; exit 5");
    let template = template.to_str().expect("a UTF-8 path");
    let arguments = ["build", template, "--on-error", "ask", "--no-boot-test", "--checkpoints", "every"];

    let mut session = Session::begin(&home, &arguments);
    session.wait_for("look [i]nside? ");
    // A slip of the pen does not cost the machine.
    fs::write(template, "[image\n").expect("write the template");
    session.answer("r");
    session.wait_for("look [i]nside? ");
    write(&home, "test ! -e /root/dirt; exit 6");
    session.answer("retry");
    session.wait_for("look [i]nside? ");
    assert!(session.text.contains("came back from the checkpoint after step 1 first"), "{}", session.text);
    write(&home, "test ! -e /root/dirt");
    session.answer("r");
    let (status, text) = session.end();
    assert!(status.success(), "{text}");
    assert!(text.contains("check wc -l"), "the image holds one trace of the first step: {text}");
    assert_eq!(text.matches("boot: done in").count(), 1, "only the first attempt boots: {text}");
    assert!(text.contains("asked 2") && text.contains("published"), "{text}");
    gone(&home, "retry");
    nothing_but_logs(&home, "retry");

    write(&home, "exit 7");
    let mut session = Session::begin(&home, &arguments);
    session.wait_for("look [i]nside? ");
    session.answer("what?");
    session.wait_for("look [i]nside? ");
    session.answer("c");
    let (status, text) = session.end();
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("left: nothing"), "{text}");
    gone(&home, "clean");
    nothing_but_logs(&home, "clean");
}
