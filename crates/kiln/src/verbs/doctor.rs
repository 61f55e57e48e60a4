//! `kiln doctor`: what this machine lacks for baking, and installing it.

mod apt;
mod checks;

use std::{
    fmt::Write as _,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
};

use kiln_io::process::{self, Limits, Spec, run_attached, run_to_end};
use serde_json::json;

use self::checks::{Check, Status};
use crate::{
    arguments::Doctor,
    colour::Palette,
    failure::{Exit, Failure, Outcome},
    output, surroundings,
};

pub(crate) async fn run(arguments: Doctor) -> Outcome {
    let mut checks = checks::all(&surroundings::dirs()?).await;
    if arguments.install && !packages(&checks).is_empty() {
        install(&packages(&checks), arguments.yes).await?;
        checks = checks::all(&surroundings::dirs()?).await;
    }
    let ready = checks.iter().all(|check| check.status != Status::Missing);
    if arguments.json {
        output::json(&json!({ "ready": ready, "checks": checks }))?;
    } else {
        output::data(&report(&checks, Palette::of_stdout()))?;
        output::talk(&verdict(&checks, arguments.install));
    }
    Ok(if ready { Exit::Done } else { Exit::Failed })
}

/// Installs whatever a bake needs and this machine lacks, without asking; says nothing when nothing is missing.
pub(crate) async fn install_missing() -> Result<(), Failure> {
    let missing = packages(&checks::all(&surroundings::dirs()?).await);
    if missing.is_empty() { Ok(()) } else { install(&missing, true).await }
}

fn report(checks: &[Check], palette: Palette) -> String {
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let word = match check.status {
            Status::Ok => palette.good("ok      "),
            Status::Missing => palette.bad("missing "),
            Status::Optional => palette.warn("optional"),
        };
        let _ = writeln!(text, "{word}  {:<width$}  {}", check.name, check.detail);
        if check.status != Status::Ok {
            let _ = writeln!(text, "{:10}{:<width$}  {}", "", "", palette.faint(&check.purpose));
        }
        if let Some(remedy) = &check.remedy {
            let _ = writeln!(text, "{:10}{:<width$}  {}", "", "", palette.faint(remedy));
        }
    }
    text
}

fn verdict(checks: &[Check], tried: bool) -> String {
    let missing: Vec<_> = checks.iter().filter(|check| check.status == Status::Missing).collect();
    let names: Vec<_> = missing.iter().map(|check| format!("`{}`", check.name)).collect();
    if names.is_empty() {
        "this machine can bake".to_owned()
    } else if tried || packages(checks).is_empty() {
        format!("this machine cannot bake yet: {}", names.join(", "))
    } else {
        format!("this machine cannot bake yet: {}; `kiln doctor --install` installs what is missing", names.join(", "))
    }
}

/// The packages of what is missing and needed, each once.
fn packages(checks: &[Check]) -> Vec<&'static str> {
    let missing = checks.iter().filter(|check| check.status == Status::Missing);
    let mut packages: Vec<_> = missing.flat_map(|check| check.packages.iter().copied()).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

async fn install(packages: &[&str], yes: bool) -> Result<(), Failure> {
    if process::which("apt-get").is_err() {
        return Err(Failure::new("`apt-get` is not here, and kiln installs with nothing else")
            .hint(format!("install what these Debian packages hold: {}", packages.join(" "))));
    }
    let mut table = policy(packages).await?;
    let update = packages.iter().any(|package| !table.knows(package));
    if update {
        root(&["apt-get", "update"], yes)?;
        table = policy(packages).await?;
    }
    let unknown: Vec<_> = packages.iter().copied().filter(|package| !table.knows(package)).collect();
    if !unknown.is_empty() {
        return Err(Failure::new(format!("the system's package sources do not have {}", unknown.join(", ")))
            .hint("kiln is made for Debian 12 and its like; see `/etc/apt/sources.list.d`"));
    }
    let arguments = apt::install(packages, &table);
    root(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), yes)
}

async fn policy(packages: &[&str]) -> Result<apt::Table, Failure> {
    // The two QEMU packages are looked at together, whichever is missing.
    let spec = Spec::new("apt-cache").arg("policy").args(packages).args(apt::QEMU).env("LC_ALL", "C");
    let finished = run_to_end(&spec, &Limits::default(), &mut |_, _| {}).await?;
    Ok(apt::Table::parse(&String::from_utf8_lossy(&finished.stdout)))
}

/// Runs a command as root, where a person can see it and answer it.
fn root(command: &[&str], yes: bool) -> Result<(), Failure> {
    let mut words = command.to_vec();
    if !rustix::process::geteuid().is_root() {
        if process::which("sudo").is_err() {
            return Err(Failure::new("only root can install, and there is no `sudo`")
                .hint(format!("run as root: {}", words.join(" "))));
        }
        words.insert(0, "sudo");
    }
    if !yes && !confirmed(&words)? {
        return Err(Failure::new("nothing was installed").hint(format!("the command was: {}", words.join(" "))));
    }
    let spec = Spec::new(words[0]).args(&words[1..]);
    output::talk(&format!("running: {spec}"));
    let status = run_attached(&spec)?;
    if status.success() { Ok(()) } else { Err(Failure::new(format!("`{spec}` failed ({status})"))) }
}

fn confirmed(words: &[&str]) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("there is nobody to ask whether to install").hint("`--yes` installs without asking"));
    }
    let _ = write!(io::stderr(), "run `{}`? [y/N] ", words.join(" "));
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Failure::new("cannot read the answer").because(error.to_string()))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
