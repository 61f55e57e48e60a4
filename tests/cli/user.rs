//! Somebody with a home of their own who runs the binary.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

/// A home directory, removed when the test passed.
pub(crate) struct User {
    home: PathBuf,
}

/// How a run went.
pub(crate) struct Ran {
    arguments: Vec<String>,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl User {
    pub(crate) fn new(name: &str) -> Self {
        let home = env::temp_dir().join(format!("kiln-cli-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&home);
        fs::create_dir_all(&home).unwrap();
        Self { home }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    /// The binary at the top of the repository, with nothing of the caller's environment but `PATH`.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(kiln());
        command.args(arguments).current_dir(repository()).env_clear().stdin(Stdio::null());
        command.env("PATH", env::var_os("PATH").unwrap_or_default()).env("HOME", &self.home);
        for (name, directory) in [("CACHE", "cache"), ("STATE", "state"), ("DATA", "data")] {
            command.env(format!("KILN_{name}_DIR"), self.home.join(directory));
        }
        command
    }

    pub(crate) fn kiln(&self, arguments: &[&str]) -> Ran {
        let output = self.command(arguments).output().unwrap();
        Ran {
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.home);
        }
    }
}

impl Ran {
    pub(crate) fn code(self, expected: i32) -> Self {
        assert_eq!(self.code, Some(expected), "{self:?}");
        self
    }

    /// Readable, and the same on every machine.
    pub(crate) fn as_golden(&self, user: &User) -> String {
        let text = format!(
            "$ kiln {}\n--- exit code {}\n--- stdout\n{}--- stderr\n{}",
            self.arguments.join(" "),
            self.code.map_or_else(|| "none".to_owned(), |code| code.to_string()),
            self.stdout,
            self.stderr
        );
        text.replace(&*user.home.to_string_lossy(), "<home>")
    }
}

impl fmt::Debug for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arguments = self.arguments.join(" ");
        write!(f, "kiln {arguments}: {:?}\n--- stdout\n{}--- stderr\n{}", self.code, self.stdout, self.stderr)
    }
}

pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The binary, built in the profile of this test.
pub(crate) fn kiln() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let program = env::current_exe().unwrap();
        let profile = program.ancestors().nth(2).unwrap().to_owned();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "kiln"]).current_dir(repository());
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.status().unwrap().success(), "kiln does not build");
        profile.join("kiln")
    })
}
