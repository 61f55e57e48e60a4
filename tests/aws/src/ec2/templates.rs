//! Launch templates and their numbered versions.

mod data;
pub(crate) mod describe;

use std::collections::BTreeMap;

use kiln_core::moment::Moment;

use crate::{
    ec2::{
        names::check,
        tags::specified,
        templates::describe::{write_template, write_version},
    },
    form::Form,
    refusal::Refusal,
    world::World,
    xml::Xml,
};

#[derive(Debug, Clone)]
pub(crate) struct Template {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) default: u64,
    created: Moment,
    /// Numbers are never used twice.
    pub(crate) latest: u64,
    pub(crate) versions: BTreeMap<u64, Version>,
}

#[derive(Debug, Clone)]
pub(crate) struct Version {
    description: String,
    /// The parameters of `RunInstances`.
    pub(crate) data: Form,
    created: Moment,
}

impl Template {
    /// Whether one of the newest `depth` versions launches this image.
    pub(crate) fn uses(&self, image: &str, depth: usize) -> bool {
        let mut newest = self.versions.values().rev().take(depth);
        newest.any(|version| version.data.pairs().any(|(key, value)| key == "ImageId" && value == image))
    }

    pub(crate) fn number(&self, version: Option<&str>) -> Option<u64> {
        match version {
            None | Some("$Default") => Some(self.default),
            Some("$Latest") => self.versions.keys().next_back().copied(),
            Some(number) => number.parse().ok().filter(|number| self.versions.contains_key(number)),
        }
    }
}

impl World {
    /// The template that `LaunchTemplateId` or `LaunchTemplateName` names.
    pub(crate) fn template(&mut self, id: Option<&str>, name: Option<&str>) -> Result<&mut Template, Refusal> {
        if id.is_some() == name.is_some() {
            let message = "Exactly one of LaunchTemplateId and LaunchTemplateName must be specified";
            return Err(Refusal::client("InvalidParameterCombination", message));
        }
        if let Some(id) = id {
            check(id, "lt")?;
        }
        let mut all = self.here().templates.values();
        let found = all.find(|template| id == Some(&template.id) || name == Some(&template.name));
        let found = found.map(|template| template.id.clone()).filter(|id| self.sees(id));
        let missing = || match name {
            Some(name) => Refusal::client(
                "InvalidLaunchTemplateName.NotFoundException",
                format!("At least one of the launch templates specified in the request does not exist: {name}"),
            ),
            None => Refusal::client(
                "InvalidLaunchTemplateId.NotFound",
                format!("The specified launch template, with template ID {}, does not exist.", id.unwrap_or_default()),
            ),
        };
        let found = found.ok_or_else(missing)?;
        self.here().templates.get_mut(&found).ok_or_else(missing)
    }

    /// Adds to a `RunInstances` request what its launch template says and it does not.
    pub(crate) fn apply_template(&mut self, form: &mut Form) -> Result<(), Refusal> {
        if form.has("LaunchTemplate") {
            let mut named = form.under("LaunchTemplate");
            let (id, name) = (named.text("LaunchTemplateId"), named.text("LaunchTemplateName"));
            let version = named.text("Version");
            named.finish()?;
            let template = self.template(id.as_deref(), name.as_deref())?;
            let number = template.number(version.as_deref());
            let found = number.and_then(|number| template.versions.get(&number));
            let data = found.ok_or_else(|| no_version(version.as_deref().unwrap_or_default()))?.data.clone();
            form.complete(&data);
        }
        if let Some(name) = form.peek("ImageId").and_then(|image| image.strip_prefix("resolve:ssm:")).map(str::to_owned)
        {
            let current = self.here().parameters.get(&name).and_then(|parameter| parameter.current());
            let image = current.map(|(_, version)| version.value.clone());
            let message = format!("The parameter {name} does not exist or names no image");
            form.put("ImageId", image.ok_or_else(|| Refusal::client("InvalidParameterValue", message))?);
        }
        Ok(())
    }
}

fn no_version(version: &str) -> Refusal {
    let message = format!("Could not find the specified version {version}.");
    Refusal::client("InvalidLaunchTemplateId.VersionNotFound", message)
}

pub(crate) fn create(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let token = form.text("ClientToken");
    let request = format!("{form:?}");
    let name = form.required("LaunchTemplateName")?;
    let description = form.text("VersionDescription").unwrap_or_default();
    let data = data::of(&mut form)?;
    let tags = specified(&mut form, &["launch-template"])?.remove("launch-template").unwrap_or_default();
    form.finish()?;
    let repeated = world.repeated("CreateLaunchTemplate", token.as_deref(), &request)?;
    if let Some(template) = repeated.and_then(|id| world.here().templates.get(&id).cloned()) {
        write(xml, world, &template);
        return Ok(());
    }
    if world.here().templates.values().any(|template| template.name == name) {
        let message = "Launch template name already in use.";
        return Err(Refusal::client("InvalidLaunchTemplateName.AlreadyExistsException", message));
    }
    let (id, created) = (world.id("lt"), world.now());
    let versions = BTreeMap::from([(1, Version { description, data, created })]);
    let template = Template { id: id.clone(), name, default: 1, created, latest: 1, versions };
    world.note(&id, tags);
    world.remember("CreateLaunchTemplate", token.as_deref(), &request, &id);
    write(xml, world, &template);
    world.here().templates.insert(id, template);
    Ok(())
}

fn write(xml: &mut Xml, world: &mut World, template: &Template) {
    let (account, tags) = (world.account.clone(), world.here().tags(&template.id));
    xml.node("launchTemplate", |xml| write_template(xml, &account, template, &tags));
}

pub(crate) fn create_version(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let token = form.text("ClientToken");
    let request = format!("{form:?}");
    let (id, name) = (form.text("LaunchTemplateId"), form.text("LaunchTemplateName"));
    let source = form.text("SourceVersion");
    let description = form.text("VersionDescription").unwrap_or_default();
    let mut data = data::of(&mut form)?;
    form.finish()?;
    let (account, created) = (world.account.clone(), world.now());
    let repeated = world.repeated("CreateLaunchTemplateVersion", token.as_deref(), &request)?;
    let template = world.template(id.as_deref(), name.as_deref())?;
    let number = if let Some(number) = repeated.and_then(|number| number.parse().ok()) {
        number
    } else {
        if let Some(source) = &source {
            let from = template.number(Some(source)).and_then(|number| template.versions.get(&number));
            data.complete(&from.ok_or_else(|| no_version(source))?.data);
        }
        template.latest += 1;
        template.versions.insert(template.latest, Version { description, data, created });
        template.latest
    };
    let template = template.clone();
    if let Some(version) = template.versions.get(&number) {
        xml.node("launchTemplateVersion", |xml| write_version(xml, &account, &template, number, version));
    }
    if !world.created.contains(&template.id) {
        world.created.push(format!("{}:{number}", template.id));
    }
    world.remember("CreateLaunchTemplateVersion", token.as_deref(), &request, &number.to_string());
    Ok(())
}

pub(crate) fn modify(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    form.text("ClientToken");
    let (id, name) = (form.text("LaunchTemplateId"), form.text("LaunchTemplateName"));
    let default = form.text("SetDefaultVersion").or_else(|| form.text("DefaultVersion"));
    form.finish()?;
    let template = world.template(id.as_deref(), name.as_deref())?;
    if let Some(default) = default {
        template.default = template.number(Some(&default)).ok_or_else(|| no_version(&default))?;
    }
    let template = template.clone();
    write(xml, world, &template);
    Ok(())
}

pub(crate) fn delete(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let (id, name) = (form.text("LaunchTemplateId"), form.text("LaunchTemplateName"));
    form.finish()?;
    let template = world.template(id.as_deref(), name.as_deref())?.clone();
    write(xml, world, &template);
    world.here().templates.remove(&template.id);
    world.forget(&template.id);
    Ok(())
}

pub(crate) fn delete_versions(world: &mut World, mut form: Form, xml: &mut Xml) -> Result<(), Refusal> {
    let (id, name) = (form.text("LaunchTemplateId"), form.text("LaunchTemplateName"));
    let wanted = form.list("LaunchTemplateVersion");
    form.finish()?;
    let template = world.template(id.as_deref(), name.as_deref())?;
    let default = template.default.to_string();
    let (mut deleted, mut kept) = (Vec::new(), Vec::new());
    for version in wanted {
        let number = version.parse().ok().filter(|_| version != default);
        match number.and_then(|number| template.versions.remove(&number)) {
            Some(_) => deleted.push(version),
            None => kept.push(version),
        }
    }
    let template = template.clone();
    let item = |xml: &mut Xml, version: String| {
        xml.text("launchTemplateId", &template.id).text("launchTemplateName", &template.name);
        xml.text("versionNumber", version);
    };
    world.deleted.extend(deleted.iter().map(|version| format!("{}:{version}", template.id)));
    xml.items("successfullyDeletedLaunchTemplateVersionSet", deleted, item);
    xml.items("unsuccessfullyDeletedLaunchTemplateVersionSet", kept, |xml, version| {
        item(xml, version);
        xml.node("responseError", |xml| {
            xml.text("code", "launchTemplateVersionDoesNotExist")
                .text("message", "It is the default version or does not exist.");
        });
    });
    Ok(())
}
