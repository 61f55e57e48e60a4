//! Every case of every built-in provisioner, and that a stranger's directory works the same.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::{collections::BTreeMap, fs, path::Path};

use kiln_provision::{cases, fake::FakeGuest};

fn provisioners() -> Vec<std::path::PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../provisioners").canonicalize().unwrap();
    let mut found: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

#[tokio::test]
async fn every_case_of_every_built_in_provisioner_holds() {
    let mut failures = Vec::new();
    for provisioner in provisioners() {
        let found = cases::find(&provisioner);
        assert!(!found.is_empty(), "{} has no cases", provisioner.display());
        for case in found {
            let work = tempfile::tempdir().unwrap();
            if let Err(failure) = cases::run(&provisioner, &case, work.path()).await {
                failures.push(failure.to_string());
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[tokio::test]
async fn a_directory_of_anybody_works_like_a_built_in_one() {
    let root = tempfile::tempdir().unwrap();
    let motd = root.path().join("motd");
    fs::create_dir_all(motd.join("cases")).unwrap();
    fs::create_dir_all(motd.join("files")).unwrap();
    fs::write(motd.join("files/frame"), "====\n").unwrap();
    fs::write(
        motd.join("provisioner.toml"),
        "api = 1\nname = \"motd\"\nsummary = \"Sets the message of the day\"\nrun = \"set-motd\"\n\
         [options.message]\ntype = \"text\"\ndoc = \"What people see.\"\nrequired = true\n",
    )
    .unwrap();
    fs::write(motd.join("set-motd"), "#!/bin/sh -eu\ncat \"$KILN_FILES/frame\" \"$KILN_OPT_MESSAGE\" >/etc/motd\n")
        .unwrap();
    let case = motd.join("cases/frame.toml");
    let write = |content: &str| {
        fs::write(
            &case,
            format!(
                "summary = \"the message stands in a frame\"\noptions = {{ message = \"hello\" }}\n\
                 [expect.files.\"/etc/motd\"]\ncontent = \"{content}\"\nmode = \"0644\"\n"
            ),
        )
        .unwrap();
    };
    write("====\\nhello");
    let work = tempfile::tempdir().unwrap();
    cases::run(&motd, &case, work.path()).await.unwrap_or_else(|failure| panic!("{failure}"));
    // A case that does not hold says so.
    write("bye");
    let work = tempfile::tempdir().unwrap();
    let failure = cases::run(&motd, &case, work.path()).await.unwrap_err().to_string();
    assert!(failure.contains("/etc/motd holds:\n====\nhello"), "{failure}");
}

#[test]
fn a_fake_guest_starts_with_the_files_it_is_given() {
    let root = tempfile::tempdir().unwrap();
    let files = BTreeMap::from([("/etc/x/y".to_owned(), "z".to_owned())]);
    let guest = FakeGuest::new(root.path(), &BTreeMap::new(), &files).unwrap();
    assert_eq!(fs::read_to_string(guest.path("/etc/x/y")).unwrap(), "z");
    assert!(guest.calls().is_empty());
}
