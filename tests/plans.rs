//! Every template of the project to its plan as text, and what is made from the table of keys.
//!
//! `KILN_UPDATE_GOLDENS=1 cargo test -p kiln-tests --test plans` writes the goldens and `docs/template.md` anew.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use kiln_core::{
    ImageName,
    facts::{FactError, Facts, ImageFact, InputFact, Inputs, ProvisionerFact, TemplateText},
    format, schema, template,
};
use kiln_provision::HostFacts;

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the project's directory").to_owned()
}

/// Every directory of `templates/` that holds a template, in byte order.
fn templates() -> Vec<PathBuf> {
    let entries = fs::read_dir(project().join("templates")).expect("templates/");
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry of templates/").path().join("template.toml"))
        .filter(|path| path.is_file())
        .collect();
    found.sort();
    found
}

fn toml_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory of templates") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            toml_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "toml") {
            found.push(path);
        }
    }
}

/// Compares with the file, or writes it when the goldens are being updated.
fn hold(path: &Path, actual: &str) -> Option<String> {
    if std::env::var_os("KILN_UPDATE_GOLDENS").is_some() {
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory for goldens");
        fs::write(path, actual).expect("a golden to write");
        return None;
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    if expected == actual {
        return None;
    }
    let line = expected.lines().zip(actual.lines()).take_while(|(a, b)| a == b).count();
    let at = |text: &str| text.lines().nth(line).unwrap_or("(end)").to_owned();
    let mut message = format!("{} differs in line {}:\n", path.display(), line + 1);
    let _ = write!(message, "  expected: {}\n  actual:   {}\n", at(&expected), at(actual));
    message.push_str("update it with KILN_UPDATE_GOLDENS=1 cargo test -p kiln-tests --test plans\n");
    Some(message)
}

/// The facts of this machine, where every base of a registry is built in the same run.
#[derive(Debug)]
struct Planned(HostFacts);

impl Facts for Planned {
    fn template(&self, from: &str, path: &str) -> Result<TemplateText, FactError> {
        self.0.template(from, path)
    }

    fn input(&self, from: &str, path: &str, allowed: &[String]) -> Result<InputFact, FactError> {
        self.0.input(from, path, allowed)
    }

    fn provisioner(&self, name: &str) -> Result<ProvisionerFact, FactError> {
        self.0.provisioner(name)
    }

    fn provisioner_names(&self) -> Vec<String> {
        self.0.provisioner_names()
    }

    fn image(&self, _: &ImageName, _: Option<&str>) -> Result<ImageFact, FactError> {
        Ok(ImageFact::Awaited)
    }
}

/// The plans of a template. The recipe also covers every byte of the provisioners: its digest would change every golden
/// with every line of a script, so the golden says only that there is one.
fn plans(path: &Path) -> String {
    let entry = TemplateText {
        name: path.strip_prefix(project()).expect("a path in the project").display().to_string(),
        text: fs::read_to_string(path).expect("a template"),
    };
    // Names in messages are relative to the project; facts are looked up where the tests run.
    let facts = Planned(HostFacts::for_template(path));
    let located = TemplateText { name: path.display().to_string(), ..entry };
    let template = template::load(&located, &facts).unwrap_or_else(|found| panic!("{found}"));
    let plans = template.plans(&Inputs::default(), &facts).unwrap_or_else(|found| panic!("{found}"));
    let texts: Vec<String> = plans
        .iter()
        .map(|plan| plan.render().replace(&format!("recipe {}", plan.recipe), "recipe sha256:.."))
        .collect();
    texts.join("\n---\n\n")
}

#[test]
fn every_template_has_the_plan_of_its_golden() {
    let goldens = project().join("tests/goldens/plans");
    let mut wrong = Vec::new();
    let mut names = Vec::new();
    for path in templates() {
        let directory = path.parent().and_then(Path::file_name).expect("a template's directory");
        let name = format!("{}.txt", directory.to_string_lossy());
        wrong.extend(hold(&goldens.join(&name), &plans(&path)));
        names.push(name);
    }
    assert!(names.len() >= 4, "templates/ holds {names:?}");
    for entry in fs::read_dir(&goldens).expect("tests/goldens/plans") {
        let name = entry.expect("a golden").file_name().to_string_lossy().into_owned();
        if !names.contains(&name) {
            wrong.push(format!("the golden {name} belongs to no template"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_template_is_formatted() {
    let mut found = Vec::new();
    toml_files(&project().join("templates"), &mut found);
    for path in found {
        let text = fs::read_to_string(&path).expect("a template");
        let formatted = format::format(&path.display().to_string(), &text).unwrap_or_else(|found| panic!("{found}"));
        assert_eq!(text, formatted, "{}: run `kiln fmt`", path.display());
    }
}

#[test]
fn the_template_reference_is_what_the_table_of_keys_says() {
    let wrong = hold(&project().join("docs/template.md"), &schema::reference());
    assert!(wrong.is_none(), "{}", wrong.unwrap_or_default());
}
