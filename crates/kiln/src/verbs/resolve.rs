//! `kiln resolve`: which version is meant, in the form that each kind of consumer reads.

use std::fmt::Write as _;

use kiln_registry::{Record, Reference, Registry, Selector};

use crate::{
    arguments::{Resolve, ResolveFormat},
    calendar::Moment,
    failure::{Exit, Failure, Outcome},
    output, surroundings,
};

pub(crate) fn run(arguments: &Resolve) -> Outcome {
    let registry = surroundings::registry(&arguments.registry)?;
    let record = registry.usable(&arguments.image, surroundings::seconds(), arguments.allow_revoked)?;
    let facts = facts(&registry, &arguments.image, &record);
    let text = render(&facts, arguments.format)?;
    output::data(&text)?;
    Ok(Exit::Done)
}

/// What a consumer may want to know, by name; texts, because Terraform's external data source takes nothing else.
fn facts(registry: &Registry, selector: &Selector, record: &Record) -> Vec<(&'static str, String)> {
    let artifact = &record.artifact;
    let channel = match &selector.reference {
        Reference::Named(name) if *name != artifact.version => name.to_string(),
        _ => String::new(),
    };
    let mut facts = vec![
        ("id", format!("{}@{}", artifact.image, artifact.version)),
        ("image", artifact.image.to_string()),
        ("version", artifact.version.to_string()),
        ("channel", channel),
        ("disk", artifact.disk.digest.to_string()),
        ("disk_bytes", artifact.disk.size.to_string()),
        ("manifest", record.manifest.digest.to_string()),
        ("published", Moment::of_seconds(record.published).rfc3339()),
        ("registry", std::path::absolute(registry.root()).unwrap_or_default().display().to_string()),
    ];
    if let Some(qcow2) = record.file("qcow2") {
        facts.push(("qcow2_sha256", qcow2.sha256.hex()));
        facts.push(("qcow2_bytes", qcow2.bytes.to_string()));
    }
    facts
}

fn render(facts: &[(&str, String)], format: ResolveFormat) -> Result<String, Failure> {
    if let Some((name, value)) = facts.iter().find(|(_, value)| value.contains(char::is_control)) {
        return Err(Failure::new(format!("{name} is {value:?}, which no format can carry safely")));
    }
    let mut text = String::new();
    for (name, value) in facts {
        let _ = match format {
            ResolveFormat::Json => break,
            ResolveFormat::Env => writeln!(text, "KILN_{}='{}'", name.to_uppercase(), value.replace('\'', r"'\''")),
            ResolveFormat::Tfvars => writeln!(text, "kiln_{name} = {}", hcl(value)),
            ResolveFormat::GithubOutput => writeln!(text, "{name}={value}"),
            ResolveFormat::Ansible => writeln!(text, "kiln_{name}: {}", serde_json::Value::from(value.as_str())),
        };
    }
    if format == ResolveFormat::Json {
        let object: serde_json::Map<_, _> =
            facts.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into())).collect();
        text = serde_json::to_string_pretty(&object).map_err(|error| Failure::of(&error))?;
        text.push('\n');
    }
    Ok(text)
}

/// A text in Terraform's language: quoted, without interpolation.
fn hcl(value: &str) -> String {
    let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "$${").replace("%{", "%%{");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_leave_their_quotes() {
        let facts = [("registry", r#"/a'b"c\${d}%{e}"#.to_owned())];
        let expected = [
            (ResolveFormat::Env, "KILN_REGISTRY='/a'\\''b\"c\\${d}%{e}'\n"),
            (ResolveFormat::Tfvars, "kiln_registry = \"/a'b\\\"c\\\\$${d}%%{e}\"\n"),
            (ResolveFormat::GithubOutput, "registry=/a'b\"c\\${d}%{e}\n"),
            (ResolveFormat::Ansible, "kiln_registry: \"/a'b\\\"c\\\\${d}%{e}\"\n"),
        ];
        for (format, text) in expected {
            assert_eq!(render(&facts, format).ok().as_deref(), Some(text));
        }
        assert!(render(&[("registry", "/a\nb=c".to_owned())], ResolveFormat::GithubOutput).is_err());
    }
}
