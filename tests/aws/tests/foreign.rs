//! The fake and moto, asked the same by AWS's own Python client: what each answers is in `foreign/observed.txt`, and a
//! change of either shows there.

#![expect(clippy::disallowed_methods, reason = "a client in another language is a process")]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{fs, path::Path, process::Command};

use kiln_aws_tests::Fake;
use kiln_tests::home::unpacked;

fn observe(argument: &str) -> Vec<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("foreign/observe.py");
    let output = Command::new(unpacked("aws-python/bin/python")).arg(script).arg(argument).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// A line for each question; moto's answer below it where it is another one.
fn beside(fake: &[String], moto: &[String]) -> String {
    let question = |line: &str| line.split(": ").next().unwrap_or(line).to_owned();
    let mut text = String::new();
    for line in fake {
        text.extend([line, "\n"]);
        let others = moto.iter().find(|other| question(other) == question(line));
        let other = others.map_or("not asked", |other| &other[question(other).len() + 2..]);
        if others != Some(line) {
            text.extend(["    moto: ", other, "\n"]);
        }
    }
    text
}

#[test]
fn awss_own_client_sees_what_was_reviewed_in_the_fake_and_in_moto() {
    let fake = Fake::start();
    let (ours, theirs) = std::thread::scope(|scope| {
        let theirs = scope.spawn(|| observe("--moto"));
        (observe(&fake.endpoint()), theirs.join().unwrap())
    });
    let observed = beside(&ours, &theirs);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("foreign/observed.txt");
    if std::env::var_os("KILN_UPDATE_GOLDENS").is_some() {
        fs::write(&golden, &observed).unwrap();
    }
    let reviewed = fs::read_to_string(&golden).unwrap();
    for (number, (now, then)) in observed.lines().zip(reviewed.lines()).enumerate() {
        assert_eq!(now, then, "line {} of foreign/observed.txt", number + 1);
    }
    assert_eq!(observed.lines().count(), reviewed.lines().count());
}
