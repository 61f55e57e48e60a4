//! Any bytes as a template: plans or mistakes that render, the same every time, never a panic. What formats keeps its
//! meaning. A NUL separates the template from a part that it may include as `part`.

use kiln_core::{
    Digest,
    facts::{FactError, Facts, InputFact, Inputs, ProvisionerFact, TemplateText},
    format, manifest, template,
};

const MANIFEST: &str = r#"
api = 1
name = "all"
summary = "one option of every kind"
idempotent = true
[options.string]
type = "string"
doc = "d"
one_of = ["a", "b"]
[options.text]
type = "text"
doc = "d"
[options.integer]
type = "integer"
doc = "d"
[options.path]
type = "path"
doc = "d"
[options.duration]
type = "duration"
doc = "d"
[options.size]
type = "size"
doc = "d"
[options.list]
type = "list<table>"
doc = "d"
[options.list.fields.on]
type = "bool"
doc = "d"
[options.map]
type = "map<string>"
doc = "d"
"#;

#[derive(Debug)]
struct World {
    part: String,
}

impl Facts for World {
    fn template(&self, _: &str, path: &str) -> Result<TemplateText, FactError> {
        if path == "part" {
            return Ok(TemplateText { name: path.to_owned(), text: self.part.clone() });
        }
        Err(FactError::new("there is no such file"))
    }

    fn input(&self, _: &str, path: &str, _: &[String]) -> Result<InputFact, FactError> {
        Ok(InputFact { path: path.to_owned(), directory: false, digest: Digest::of(path.as_bytes()), bytes: 1 })
    }

    fn provisioner(&self, name: &str) -> Result<ProvisionerFact, FactError> {
        if name != "all" {
            return Err(FactError::new("there is no such provisioner"));
        }
        let manifest = manifest::parse("all", MANIFEST).map_err(|found| FactError::new("wrong").with_details(found))?;
        Ok(ProvisionerFact { manifest, digest: Digest::of(b"all"), origin: "fuzz".to_owned() })
    }

    fn provisioner_names(&self) -> Vec<String> {
        vec!["all".to_owned()]
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (entry, part) = text.split_once('\0').unwrap_or((&text, ""));
    let world = World { part: part.to_owned() };
    let resolve = |entry: &str| {
        let entry = TemplateText { name: "template.toml".to_owned(), text: entry.to_owned() };
        template::load(&entry, &world)?.plans(&Inputs::default(), &world)
    };
    let formatted = format::format("template.toml", entry);
    match resolve(entry) {
        Ok(plans) => {
            let recipes: Vec<Digest> = plans.iter().map(|plan| plan.recipe).collect();
            assert!(plans.iter().all(|plan| !plan.render().is_empty()));
            if let Ok(formatted) = formatted {
                let again = resolve(&formatted).expect("what was formatted resolves");
                assert_eq!(recipes, again.iter().map(|plan| plan.recipe).collect::<Vec<_>>());
            }
        }
        Err(found) => assert!(!found.render().is_empty()),
    }
}
