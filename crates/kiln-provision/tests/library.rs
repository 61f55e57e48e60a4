//! Finding provisioners: search order, digests, what is refused.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use kiln_provision::{HostFacts, Library, error::LibraryError, library};

const MANIFEST: &str = "api = 1\nname = \"motd\"\nsummary = \"sets the message of the day\"\nidempotent = true\n";

fn provisioner(directory: &Path, run: &str) {
    fs::create_dir_all(directory.join("files")).unwrap();
    fs::create_dir_all(directory.join("cases")).unwrap();
    let name = directory.file_name().unwrap().to_str().unwrap();
    fs::write(directory.join("provisioner.toml"), MANIFEST.replace("motd", name)).unwrap();
    fs::write(directory.join("run"), run).unwrap();
    fs::write(directory.join("files/data"), "data").unwrap();
    fs::write(directory.join("cases/a.toml"), "").unwrap();
}

#[test]
fn every_built_in_provisioner_is_the_one_in_the_repository() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../provisioners");
    let mut names: Vec<String> =
        fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(Library::built_in().names(), names);
    for name in names {
        let embedded = Library::built_in().find(&name).unwrap_or_else(|error| panic!("{error}: {error:?}"));
        let here = library::read(&name, &root.join(&name)).unwrap();
        assert_eq!((embedded.manifest.name.as_str(), embedded.digest), (name.as_str(), here.digest));
        assert!(embedded.entries.iter().all(|entry| !entry.path.starts_with("cases")));
    }
}

#[test]
fn the_templates_own_provisioners_come_before_the_projects_and_those_before_the_built_in() {
    let project = tempfile::tempdir().unwrap();
    let template = project.path().join("templates/web");
    fs::create_dir_all(&template).unwrap();
    fs::create_dir(project.path().join(".git")).unwrap();
    let origin = |name: &str| Library::for_template(&template).find(name).unwrap().origin;
    assert_eq!(origin("shell"), "built in");
    provisioner(&project.path().join("provisioners/shell"), "#!/bin/sh\n");
    assert!(origin("shell").ends_with("provisioners/shell") && !origin("shell").contains("templates"));
    provisioner(&template.join("provisioners/shell"), "#!/bin/sh\n");
    assert!(origin("shell").ends_with("templates/web/provisioners/shell"));
    let names = Library::for_template(&template).names();
    assert_eq!(names.iter().filter(|name| *name == "shell").count(), 1);
    assert!(names.contains(&"packages".to_owned()));
}

#[test]
fn nothing_above_the_repository_is_searched() {
    let outside = tempfile::tempdir().unwrap();
    let template = outside.path().join("project/web");
    fs::create_dir_all(&template).unwrap();
    fs::create_dir(outside.path().join("project/.git")).unwrap();
    provisioner(&outside.path().join("provisioners/motd"), "#!/bin/sh\n");
    assert!(matches!(Library::for_template(&template).find("motd"), Err(LibraryError::Unknown { .. })));
}

#[test]
fn the_digest_covers_path_bit_and_content_of_every_file_but_the_cases() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("motd");
    provisioner(&directory, "#!/bin/sh\n");
    let digest = || library::read("motd", &directory).unwrap().digest;
    let mut seen = vec![digest()];
    fs::write(directory.join("cases/a.toml"), "changed").unwrap();
    assert_eq!(digest(), seen[0]);
    let changes: [&dyn Fn(); 5] = [
        &|| fs::write(directory.join("run"), "#!/bin/sh\n:\n").unwrap(),
        &|| fs::write(directory.join("files/data"), "datA").unwrap(),
        &|| fs::rename(directory.join("files/data"), directory.join("files/other")).unwrap(),
        &|| fs::set_permissions(directory.join("files/other"), fs::Permissions::from_mode(0o755)).unwrap(),
        &|| fs::write(directory.join("provisioner.toml"), format!("{MANIFEST}timeout = \"1 min\"\n")).unwrap(),
    ];
    for change in changes {
        change();
        assert!(!seen.contains(&digest()));
        seen.push(digest());
    }
}

#[test]
fn refuses_names_that_could_leave_the_search_path_and_directories_without_a_run() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("provisioners/empty")).unwrap();
    fs::write(root.path().join("provisioners/empty/provisioner.toml"), MANIFEST.replace("motd", "empty")).unwrap();
    let library = Library::for_template(root.path());
    for name in ["", "../shell", "/etc", "a/b", "A", "."] {
        assert!(matches!(library.find(name), Err(LibraryError::Name { .. })), "{name:?}");
    }
    assert!(matches!(library.find("empty"), Err(LibraryError::NoRun { .. })));
}

#[test]
fn a_broken_manifest_is_a_fact_error_with_its_mistakes() {
    use kiln_core::facts::Facts as _;
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("provisioners/motd");
    provisioner(&directory, "#!/bin/sh\n");
    fs::write(directory.join("provisioner.toml"), format!("{MANIFEST}sumary = \"x\"\n")).unwrap();
    let facts = HostFacts::for_template(&root.path().join("template.toml"));
    let error = facts.provisioner("motd").unwrap_err();
    assert!(error.message.contains("motd/provisioner.toml"), "{}", error.message);
    assert_ne!(error.details, kiln_core::diagnostic::Diagnostics::default());
}

#[test]
fn template_files_and_inputs_are_found_beside_the_file_that_names_them() {
    use kiln_core::facts::Facts as _;
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    fs::create_dir_all(at("templates/web")).unwrap();
    fs::create_dir_all(at("templates/parts")).unwrap();
    fs::write(at("templates/parts/template.toml"), "# parts").unwrap();
    fs::write(at("templates/parts/motd"), "hello").unwrap();
    fs::write(at("templates/web/template.toml"), "# web").unwrap();
    let facts = HostFacts::for_template(&at("templates/web/template.toml"));
    let from = at("templates/web/template.toml").display().to_string();
    let part = facts.template(&from, "../parts").unwrap();
    assert_eq!(part.name, at("templates/parts/template.toml").display().to_string());
    assert_eq!(facts.input(&part.name, "motd", &[]).unwrap().bytes, 5);
    for path in ["../parts/motd", "/etc/passwd", "~/x"] {
        let error = facts.input(&from, path, &[]).unwrap_err();
        assert!(error.message.contains(path), "{}", error.message);
    }
    facts.input(&from, "../parts/motd", &["../parts".to_owned()]).unwrap();
    let missing = facts.input(&from, "nothing", &[]).unwrap_err();
    assert!(missing.message.contains("nothing") && missing.message.contains("No such file"), "{}", missing.message);
}
