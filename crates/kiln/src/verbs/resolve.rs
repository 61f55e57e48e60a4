//! `kiln resolve`: which version is meant, in the form that each kind of consumer reads.

use std::fmt::Write as _;

use kiln_serve::{ami_facts, facts};

use crate::{
    arguments::{Resolve, ResolveFormat},
    failure::{Exit, Failure, Outcome},
    output,
    surroundings::{self, Place},
};

pub(crate) fn run(arguments: &Resolve) -> Outcome {
    let (registry, record, root) = match surroundings::place(&arguments.registry)? {
        Place::Here(registry) => {
            surroundings::refuse_old_state(&registry, &arguments.image.image, arguments.allow_unproven)?;
            let record = registry.usable(&arguments.image, surroundings::seconds(), arguments.allow_revoked)?;
            let root = std::path::absolute(registry.root()).unwrap_or_default().display().to_string();
            (registry, record, root)
        }
        Place::There(remote) => {
            let (image, allow_unproven) = (&arguments.image, arguments.allow_unproven);
            let (registry, record) = surroundings::judged(&remote, image, arguments.allow_revoked, allow_unproven)?;
            (registry, record, remote.url())
        }
    };
    surroundings::refuse_unproven(&registry, &record, arguments.allow_unproven)?;
    let mut facts: Vec<_> =
        facts(&arguments.image, &record, &root).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    facts.extend(ami_facts(&registry.amis(&record.artifact.image, &record.artifact.version)?));
    output::data(&render(&facts, arguments.format)?)?;
    Ok(Exit::Done)
}

fn render(facts: &[(String, String)], format: ResolveFormat) -> Result<String, Failure> {
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
            facts.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
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
        let facts = [("registry".to_owned(), r#"/a'b"c\${d}%{e}"#.to_owned())];
        let expected = [
            (ResolveFormat::Env, "KILN_REGISTRY='/a'\\''b\"c\\${d}%{e}'\n"),
            (ResolveFormat::Tfvars, "kiln_registry = \"/a'b\\\"c\\\\$${d}%%{e}\"\n"),
            (ResolveFormat::GithubOutput, "registry=/a'b\"c\\${d}%{e}\n"),
            (ResolveFormat::Ansible, "kiln_registry: \"/a'b\\\"c\\\\${d}%{e}\"\n"),
        ];
        for (format, text) in expected {
            assert_eq!(render(&facts, format).ok().as_deref(), Some(text));
        }
        assert!(render(&[("registry".to_owned(), "/a\nb=c".to_owned())], ResolveFormat::GithubOutput).is_err());
    }
}
