//! What a group launches: a launch template, alone or inside a mixed instances policy.

use super::invalid;
use crate::{form::Form, refusal::Refusal, world::World, xml::Xml};

/// A launch template and the version as it was written: a number, `$Latest` or `$Default`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Launched {
    /// Instead of all the rest: the name of a launch configuration.
    pub(super) configuration: Option<String>,
    pub(super) id: String,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) mixed: Option<Mixed>,
}

/// What a mixed instances policy says besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mixed {
    types: Vec<String>,
    /// Names and values of the distribution.
    distribution: Vec<(String, String)>,
}

/// What is to be launched, under a prefix that ends in a dot or is empty; the launch template and its version must be there.
pub(super) fn launched(world: &mut World, form: &mut Form, prefix: &str) -> Result<Option<Launched>, Refusal> {
    let (plain, policy) = (format!("{prefix}LaunchTemplate"), format!("{prefix}MixedInstancesPolicy"));
    let configuration = form.text(&format!("{prefix}LaunchConfigurationName"));
    if let Some(name) = configuration {
        if form.has(&plain) || form.has(&policy) {
            return Err(invalid("A group has a launch configuration or a launch template, not both"));
        }
        if !world.here().configurations.contains_key(&name) {
            return Err(invalid(format!("Launch configuration name not found - {name}")));
        }
        return Ok(Some(Launched { configuration: Some(name), ..Launched::default() }));
    }
    match (form.has(&plain), form.has(&policy)) {
        (false, false) => Ok(None),
        (true, true) => Err(invalid("A group has a launch template or a mixed instances policy, not both")),
        (true, false) => template(world, form, &plain).map(Some),
        (false, true) => mixed(world, &mut form.under(&policy)).map(Some),
    }
}

fn mixed(world: &mut World, form: &mut Form) -> Result<Launched, Refusal> {
    let launched = template(world, form, "LaunchTemplate.LaunchTemplateSpecification")?;
    let mut types = Vec::new();
    for at in form.indexed("LaunchTemplate.Overrides.member") {
        types.push(form.required(&format!("{at}.InstanceType"))?);
    }
    let distribution = form.under("InstancesDistribution");
    let distribution = distribution.pairs().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    std::mem::take(form).finish()?;
    Ok(Launched { mixed: Some(Mixed { types, distribution }), ..launched })
}

fn template(world: &mut World, form: &mut Form, at: &str) -> Result<Launched, Refusal> {
    let mut form = form.under(at);
    let (id, name) = (form.text("LaunchTemplateId"), form.text("LaunchTemplateName"));
    let version = form.text("Version").unwrap_or_else(|| "$Default".to_owned());
    form.finish()?;
    let template = world.template(id.as_deref(), name.as_deref()).map_err(|refusal| invalid(refusal.message))?;
    if template.number(Some(&version)).is_none() {
        return Err(invalid(format!(
            "You must use a valid fully-formed launch template. Version {version} does not exist."
        )));
    }
    Ok(Launched { id: template.id.clone(), name: template.name.clone(), version, ..Launched::default() })
}

impl Launched {
    pub(super) fn write(&self, xml: &mut Xml) {
        if let Some(name) = &self.configuration {
            xml.text("LaunchConfigurationName", name);
            return;
        }
        let Some(mixed) = &self.mixed else {
            self.write_template("LaunchTemplate", xml);
            return;
        };
        xml.node("MixedInstancesPolicy", |xml| {
            xml.node("LaunchTemplate", |xml| {
                self.write_template("LaunchTemplateSpecification", xml);
                xml.members("Overrides", &mixed.types, |xml, name| {
                    xml.text("InstanceType", name);
                });
            });
            xml.node("InstancesDistribution", |xml| {
                for (name, value) in &mixed.distribution {
                    xml.text(name, value);
                }
            });
        });
    }

    fn write_template(&self, name: &str, xml: &mut Xml) {
        xml.node(name, |xml| {
            xml.text("LaunchTemplateId", &self.id).text("LaunchTemplateName", &self.name);
            xml.text("Version", &self.version);
        });
    }
}
