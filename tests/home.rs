//! A user's home for one test: private state, data and checkpoints, bases shared between tests, the environment cleared.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

/// A directory that is removed when the test passed, and left for a look when it failed.
#[derive(Debug)]
pub struct Home {
    root: PathBuf,
}

/// What a run of the binary printed, and how it ended.
#[derive(Clone, PartialEq, Eq)]
pub struct Ran {
    pub arguments: Vec<String>,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Home {
    /// One that shares bases, and nothing else, with other tests.
    pub fn new(name: &str) -> Self {
        let home = Self::apart(name);
        let (shared, own) = (target().join("cache"), home.root.join("cache"));
        std::fs::create_dir_all(shared.join("bases")).expect("make the shared cache");
        std::os::unix::fs::symlink(shared.join("bases"), own.join("bases")).expect("share the bases");
        // Measured once; the first test on a machine has none yet.
        let _ = std::fs::copy(shared.join("calibration.json"), own.join("calibration.json"));
        home
    }

    /// One whose bases are its own too.
    pub fn apart(name: &str) -> Self {
        let root = target().join("homes").join(format!("{name}-{}", std::process::id()));
        if root.exists() {
            std::fs::remove_dir_all(&root).expect("clear the test's home");
        }
        std::fs::create_dir_all(root.join("cache")).expect("make the test's home");
        Self { root }
    }

    /// One in a directory that may hold something already.
    pub fn at(root: PathBuf) -> Self {
        std::fs::create_dir_all(&root).expect("make the test's home");
        Self { root }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The binary in this home, run from the repository's top, with nothing of the caller's environment but `PATH`.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(kiln());
        command
            .args(arguments)
            .current_dir(repository())
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .env("HOME", &self.root)
            .env("KILN_CACHE_DIR", self.root.join("cache"))
            .env("KILN_STATE_DIR", self.root.join("state"))
            .env("KILN_DATA_DIR", self.root.join("data"))
            .stdin(Stdio::null());
        command
    }

    pub fn kiln(&self, arguments: &[&str]) -> Ran {
        let output = self.command(arguments).output().expect("run kiln");
        let measured = target().join("cache/calibration.json");
        if self.root.join("cache/bases").is_symlink() && !measured.exists() {
            let _ = std::fs::copy(self.root.join("cache/calibration.json"), measured);
        }
        Ran::new(arguments, &output)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.root);
        }
    }
}

impl Ran {
    pub fn new(arguments: &[&str], output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// Itself, to look into, if the exit code is 0; shows everything otherwise.
    pub fn succeeds(self) -> Self {
        self.ends_with(0)
    }

    /// Itself, to look into, if this is the exit code; shows everything otherwise.
    pub fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }
}

impl fmt::Debug for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kiln {}: exit code {:?}", self.arguments.join(" "), self.code)?;
        writeln!(f, "--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr)
    }
}

/// The repository's top directory.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository")
}

/// The binary, built once in the profile of the tests.
pub fn kiln() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let profile = profile();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--workspace", "--bin", "kiln"]).current_dir(repository());
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        // As `tests/run` has built it: another choice would replace it under the feet of other tests.
        if let Some(features) = env::var_os("KILN_TEST_FEATURES") {
            cargo.arg("--features").arg(features);
        }
        assert!(cargo.status().expect("run cargo").success(), "kiln does not build");
        profile.join("kiln")
    })
}

/// `target/<profile>`: tests run from `target/<profile>/deps`, other programs from `target/<profile>`.
fn profile() -> PathBuf {
    let program = env::current_exe().expect("know the running program");
    let directory = program.parent().expect("a program lies in a directory");
    let profile = if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory };
    profile.to_owned()
}

/// A program that `tests/run` has unpacked for the tests.
pub fn unpacked(program: &str) -> PathBuf {
    let path = target().join(program);
    assert!(path.exists(), "`{}` is missing: `tests/run` fetches it", path.display());
    path
}

/// Where tests keep what outlives them: the cache of bases.
fn target() -> PathBuf {
    profile().parent().map(|target| target.join("kiln-tests")).expect("a profile lies in the target directory")
}
