//! The world in memory: templates, files and provisioners as texts.

use std::collections::BTreeMap;

use kiln_core::{
    Diagnostics, Digest, ImageName,
    facts::{FactError, Facts, GivenValue, ImageFact, InputFact, Inputs, ProvisionerFact, TemplateText, VariableValue},
    manifest,
    plan::Plan,
    template,
};

/// A world in memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct World {
    pub(crate) templates: BTreeMap<String, String>,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) provisioners: BTreeMap<String, String>,
    /// By what a template writes: `golden-base@stable`.
    pub(crate) images: BTreeMap<String, ImageFact>,
}

impl Facts for World {
    fn template(&self, _: &str, path: &str) -> Result<TemplateText, FactError> {
        let text = self.templates.get(path).ok_or_else(|| FactError::new(format!("there is no `{path}`")))?;
        Ok(TemplateText { name: path.to_owned(), text: text.clone() })
    }

    fn input(&self, from: &str, path: &str, allowed: &[String]) -> Result<InputFact, FactError> {
        if path.starts_with('/') && !allowed.iter().any(|allowed| path.starts_with(allowed)) {
            return Err(FactError::new(format!("`{path}` leaves the directory of `{from}`"))
                .with_hint("name it in `allow_paths`"));
        }
        let bytes = self.files.get(path).ok_or_else(|| FactError::new(format!("cannot read `{path}`")))?;
        Ok(InputFact {
            path: format!("/somewhere/{path}"),
            directory: false,
            digest: Digest::of(bytes),
            bytes: bytes.len() as u64,
        })
    }

    fn provisioner(&self, name: &str) -> Result<ProvisionerFact, FactError> {
        let text =
            self.provisioners.get(name).ok_or_else(|| FactError::new(format!("there is no provisioner `{name}`")))?;
        let manifest = manifest::parse(&format!("{name}/provisioner.toml"), text).map_err(|details| {
            FactError::new(format!("the manifest of `{name}` has mistakes")).with_details(details)
        })?;
        Ok(ProvisionerFact { manifest, digest: Digest::of(text.as_bytes()), origin: "test".to_owned() })
    }

    fn provisioner_names(&self) -> Vec<String> {
        self.provisioners.keys().cloned().collect()
    }

    fn image(&self, image: &ImageName, reference: Option<&str>) -> Result<ImageFact, FactError> {
        let named = reference.map_or_else(|| image.to_string(), |reference| format!("{image}@{reference}"));
        self.images
            .get(&named)
            .cloned()
            .ok_or_else(|| FactError::new(format!("there is no `{named}`")).with_hint("published: `golden-base@1.4.0`"))
    }
}

const FILES: &str = r#"
api = 1
name = "files"
summary = "files"
idempotent = true
[options.files]
type = "list<table>"
doc = "files"
required = true
[options.files.fields.path]
type = "string"
doc = "path"
required = true
[options.files.fields.content]
type = "text"
doc = "content"
[options.files.fields.source]
type = "path"
doc = "source"
[options.files.fields.mode]
type = "string"
doc = "mode"
default = "0644"
"#;

const PACKAGES: &str = r#"
api = 1
name = "packages"
summary = "packages"
timeout = "30 min"
idempotent = true
[options.install]
type = "list<string>"
doc = "what to install"
default = []
[options.refresh]
type = "string"
doc = "when"
one_of = ["auto", "always"]
default = "auto"
[options.wait]
type = "duration"
doc = "how long"
default = "2 min"
[options.attempts]
type = "integer"
doc = "how often"
"#;

/// Its options may not be anything of their kind.
const NARROW: &str = r#"
api = 1
name = "narrow"
summary = "narrow"
[options.names]
type = "list<string>"
doc = "names"
pattern = '[a-z0-9][a-z0-9.+-]*'
[options.often]
type = "integer"
doc = "how often"
min = 1
max = 9
[options.pins]
type = "map<string>"
doc = "versions"
keys = '[a-z]+'
pattern = '[0-9.]+'
"#;

const SHELL: &str = "api = 1\nname = 'shell'\nsummary = 's'\n[options.script]\ntype = 'text'\ndoc = 'd'\n";

pub(crate) fn world() -> World {
    let mut world = World::default();
    for (name, text) in [("files", FILES), ("packages", PACKAGES), ("shell", SHELL), ("narrow", NARROW)] {
        world.provisioners.insert(name.to_owned(), text.to_owned());
    }
    world.files.insert("index.html".to_owned(), b"hello".to_vec());
    world
}

pub(crate) fn given(values: &[(&str, &str)]) -> Inputs {
    let variables = values
        .iter()
        .map(|(name, value)| VariableValue {
            name: (*name).to_owned(),
            value: GivenValue::Text((*value).to_owned()),
            origin: format!("`--var {name}=..`"),
        })
        .collect();
    Inputs { variables }
}

pub(crate) fn resolve_in(world: &World, text: &str, inputs: &Inputs) -> Result<Vec<Plan>, Diagnostics> {
    let entry = TemplateText { name: "template.toml".to_owned(), text: text.to_owned() };
    template::load(&entry, world)?.plans(inputs, world)
}
