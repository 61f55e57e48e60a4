//! Programs of the build host: what to run as a plain value, and the ways to run it.

mod attached;
mod identity;
mod lines;
mod run;
mod spawn;

use std::{
    collections::BTreeMap,
    env,
    ffi::{OsStr, OsString},
    fmt,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

pub use attached::{replace_by, run_attached};
pub use identity::{Identity, alive, host_boot_id, kill_group, start_time};
pub use run::{Finished, run, run_to_end};
pub use spawn::{Running, spawn, spawn_on_socket};

use crate::error::ProcessError;

/// A program with its arguments. `Display` prints it quoted for pasting into a shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// A path, or a name to find in `PATH`.
    pub program: OsString,
    pub args: Vec<OsString>,
    /// Set on top of kiln's own environment.
    pub env: BTreeMap<OsString, OsString>,
    pub cwd: Option<PathBuf>,
    pub stdin: Stdin,
    pub stdout: Sink,
    pub stderr: Sink,
    /// The kernel kills it when kiln dies. On unless turned off.
    pub dies_with_kiln: bool,
}

/// Where a program reads from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stdin {
    Null,
    Bytes(Vec<u8>),
    File(PathBuf),
    /// Held open by [`Running::stdin`]; only for [`spawn`].
    Pipe,
}

/// Where a program's output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sink {
    Null,
    /// Made if missing, appended to.
    Append(PathBuf),
    /// Captured by [`run`], held open by [`Running`] for [`spawn`].
    Pipe,
}

/// How long a program may run, and who can stop it.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    pub deadline: Option<Duration>,
    pub cancel: CancellationToken,
}

impl Spec {
    /// Reads nothing, is captured, dies with kiln.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            cwd: None,
            stdin: Stdin::Null,
            stdout: Sink::Pipe,
            stderr: Sink::Pipe,
            dies_with_kiln: true,
        }
    }

    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    #[must_use]
    pub fn cwd(mut self, directory: impl Into<PathBuf>) -> Self {
        self.cwd = Some(directory.into());
        self
    }

    #[must_use]
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.stdin = stdin;
        self
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&quote(&self.program))?;
        self.args.iter().try_for_each(|arg| write!(f, " {}", quote(arg)))
    }
}

/// One word of a shell command; bytes that are not UTF-8 are shown replaced.
fn quote(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "@%+=:,./_-".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// The path of a program in `PATH`.
pub fn which(program: impl AsRef<OsStr>) -> Result<PathBuf, ProcessError> {
    let program = program.as_ref();
    let runs = |path: &Path| path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    let direct = Path::new(program);
    let found = if direct.components().count() > 1 {
        Some(direct.to_owned()).filter(|path| runs(path))
    } else {
        // The administrator's directories hold tools such as mke2fs that a user's PATH often lacks.
        let usual = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path).chain(usual).map(|directory| directory.join(program)).find(|path| runs(path))
    };
    found.ok_or_else(|| ProcessError::Missing { program: program.to_string_lossy().into_owned() })
}

/// The first dotted number that `program --version` prints: `7.2.22`.
pub async fn version(program: impl AsRef<OsStr>) -> Result<String, ProcessError> {
    let spec = Spec::new(program.as_ref()).arg("--version");
    let limits = Limits { deadline: Some(Duration::from_secs(20)), ..Limits::default() };
    let finished = run(&spec, &limits, &mut |_, _| {}).await?;
    let text = String::from_utf8_lossy(&finished.stdout).into_owned() + &finished.stderr.join("\n");
    let number = text
        .split(|c: char| !(c.is_ascii_digit() || c == '.'))
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'));
    Ok(number.map_or_else(
        || text.lines().next().unwrap_or_default().to_owned(),
        |word| word.trim_end_matches('.').to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_quoted_for_pasting() {
        let spec = Spec::new("mke2fs").args(["-L", "my root", "", "it's", "a=b"]);
        assert_eq!(spec.to_string(), r"mke2fs -L 'my root' '' 'it'\''s' a=b");
    }

    #[test]
    fn finds_programs_and_names_the_missing_one() {
        assert!(which("sh").unwrap().is_absolute());
        assert!(which("/bin/sh").is_ok());
        assert!(
            matches!(which("no-such-program-x"), Err(ProcessError::Missing { program }) if program == "no-such-program-x")
        );
    }

    #[tokio::test]
    async fn reads_a_version_number() {
        let version = version("tar").await.unwrap();
        assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{version}");
    }
}
